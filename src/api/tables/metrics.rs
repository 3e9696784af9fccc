//! Rows of NodeMetrics and PodMetrics.

use schemas::Object;
use schemas::quantity::Quantity;
use serde_json::{Value, json};

use super::{Column, Include, NAME, array, column, row_of, table_of};

const COLUMNS: &[Column] = &[
    NAME,
    Column {
        format: "quantity",
        ..column("cpu", "Cores in use, over the window.")
    },
    Column {
        format: "quantity",
        ..column("memory", "The working set, at the end of the window.")
    },
    Column {
        format: "duration",
        ..column("Window", "The time that was measured over.")
    },
];

/// Returns a table of them, with the columns of metrics-server: of a pod, the sums of its containers.
pub(crate) fn table(metadata: Value, metrics: &[Object], include: Include) -> Value {
    let rows = metrics.iter().map(|object| {
        let cells = vec![
            json!(object.name()),
            json!(Quantity::from_nanos(sum(object, "cpu", Quantity::nanos)).to_string()),
            json!(Quantity::from_bytes(sum(object, "memory", Quantity::value)).to_string()),
            json!(object.str_at("/window")),
        ];
        row_of(cells, object, include)
    });
    table_of(COLUMNS, metadata, rows.collect())
}

fn sum(object: &Object, resource: &str, number: impl Fn(Quantity) -> i64) -> i64 {
    let containers = array(object, "/containers").iter();
    let used = containers.filter_map(|container| container.get("usage"));
    used.chain(object.pointer("/usage"))
        .filter_map(|usage| Quantity::from_json(&usage[resource]).ok())
        .fold(0, |sum, quantity| sum.saturating_add(number(quantity)))
}
