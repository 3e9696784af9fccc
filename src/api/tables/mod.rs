//! Tables as `kubectl get` and `psctl get` print them: Kubernetes' own columns per kind. Pure.
//!
//! The rows of each kind are in `kinds`, those of pods in `pods`, of what keeps or runs pods in `workloads`, of what is only
//! kept in `stored`, of metrics, which have no kind, in `metrics`.

mod kinds;
mod metrics;
mod pods;
mod stored;
mod workloads;

use std::collections::BTreeMap;

use schemas::{Kind, Object, time};
use serde_json::{Map, Value, json};

pub(crate) use metrics::table as metrics_table;
pub(crate) use workloads::pods_of;

/// A cell that has no value.
const NONE: &str = "<none>";
/// Addresses, hosts or ports shown before "+ n more...".
const SHOWN_ITEMS: usize = 3;

/// What the rows carry of their objects (`includeObject`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Include {
    Nothing,
    Metadata,
    Whole,
}

/// A column; `priority` 1 is shown with `-o wide` alone.
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: u8,
    description: &'static str,
}

const fn column(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 0,
        description,
    }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 1,
        description,
    }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        priority: 0,
        description,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    description: "Name must be unique within a namespace.",
};
const AGE: Column = column("Age", "Time since the object was created.");

/// Returns `columnDefinitions` of a kind.
pub fn columns(kind: Kind) -> Value {
    described(definitions(kind))
}

fn described(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

fn definitions(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => pods::COLUMNS,
        Kind::Namespace => kinds::NAMESPACE,
        Kind::Node => kinds::NODE,
        Kind::Service => kinds::SERVICE,
        Kind::Endpoints => kinds::ENDPOINTS,
        Kind::Event => kinds::EVENT,
        Kind::Deployment => workloads::DEPLOYMENT,
        Kind::ReplicaSet => workloads::REPLICA_SET,
        Kind::Ingress => kinds::INGRESS,
        Kind::EndpointSlice => kinds::ENDPOINT_SLICE,
        Kind::ConfigMap => stored::CONFIG_MAP,
        Kind::Secret => stored::SECRET,
        Kind::ServiceAccount => stored::SERVICE_ACCOUNT,
        Kind::PersistentVolumeClaim => stored::CLAIM,
        Kind::PersistentVolume => stored::VOLUME,
        Kind::StorageClass => stored::STORAGE_CLASS,
        Kind::IngressClass => stored::INGRESS_CLASS,
        Kind::NetworkPolicy => stored::NETWORK_POLICY,
        Kind::PodDisruptionBudget => stored::DISRUPTION_BUDGET,
        Kind::PriorityClass => stored::PRIORITY_CLASS,
        Kind::Lease => stored::LEASE,
        Kind::StatefulSet => workloads::STATEFUL_SET,
        Kind::DaemonSet => workloads::DAEMON_SET,
        Kind::ReplicationController => workloads::REPLICA_SET,
        Kind::PodTemplate => workloads::POD_TEMPLATE,
        Kind::ControllerRevision => workloads::REVISION,
        Kind::Job => workloads::JOB,
        Kind::CronJob => workloads::CRON_JOB,
        Kind::Member | Kind::ApiToken | Kind::JoinToken | Kind::DnsWhitelist | Kind::GitInventory => {
            kinds::PLAIN
        }
    }
}

/// Returns one row of a table.
pub fn row(kind: Kind, object: &Object, now_unix_seconds: i64, include: Include) -> Value {
    let now = Now(now_unix_seconds);
    let cells = match kind {
        Kind::Pod => pods::cells(object, now),
        Kind::Namespace => kinds::namespace(object, now),
        Kind::Node => kinds::node(object, now),
        Kind::Service => kinds::service(object, now),
        Kind::Endpoints => kinds::endpoints(object, now),
        Kind::Event => kinds::event(object, now),
        Kind::Deployment => workloads::deployment(object, now),
        Kind::ReplicaSet => workloads::replica_set(object, now),
        Kind::Ingress => kinds::ingress(object, now),
        Kind::EndpointSlice => kinds::endpoint_slice(object, now),
        Kind::ConfigMap => stored::config_map(object, now),
        Kind::Secret => stored::secret(object, now),
        Kind::ServiceAccount => stored::service_account(object, now),
        Kind::PersistentVolumeClaim => stored::claim(object, now),
        Kind::PersistentVolume => stored::volume(object, now),
        Kind::StorageClass => stored::storage_class(object, now),
        Kind::IngressClass => stored::ingress_class(object, now),
        Kind::NetworkPolicy => stored::network_policy(object, now),
        Kind::PodDisruptionBudget => stored::disruption_budget(object, now),
        Kind::PriorityClass => stored::priority_class(object, now),
        Kind::Lease => stored::lease(object, now),
        Kind::StatefulSet => workloads::stateful_set(object, now),
        Kind::DaemonSet => workloads::daemon_set(object, now),
        Kind::ReplicationController => workloads::replica_set(object, now),
        Kind::PodTemplate => workloads::pod_template(object, now),
        Kind::ControllerRevision => workloads::revision(object, now),
        Kind::Job => workloads::job(object, now),
        Kind::CronJob => workloads::cron_job(object, now),
        Kind::Member | Kind::ApiToken | Kind::JoinToken | Kind::DnsWhitelist | Kind::GitInventory => {
            kinds::plain(object, now)
        }
    };
    row_of(cells, object, include)
}

fn row_of(cells: Vec<Value>, object: &Object, include: Include) -> Value {
    let shown = match include {
        Include::Nothing => Value::Null,
        Include::Metadata => super::content::metadata_only(object),
        Include::Whole => object.clone().into_value(),
    };
    json!({"cells": cells, "object": shown})
}

/// Returns a whole table; `metadata` is the list's (or the object's) own.
pub fn table(kind: Kind, metadata: Value, rows: Vec<Value>) -> Value {
    table_of(definitions(kind), metadata, rows)
}

fn table_of(columns: &[Column], metadata: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": described(columns),
        "rows": rows,
    })
}

/// The time that ages count to, in seconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Now(i64);

impl Now {
    /// The age of a timestamp (RFC 3339), or `<unknown>`.
    fn since(self, timestamp: &str) -> String {
        match time::from_rfc3339(timestamp) {
            Some(at) => human_duration(self.0 - at),
            None => "<unknown>".to_owned(),
        }
    }

    fn age(self, object: &Object) -> String {
        self.since(object.str_at("/metadata/creationTimestamp"))
    }
}

/// Writes a duration in seconds as Kubernetes does: two units where the second one matters.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        // A clock that runs behind by up to a second makes an age of "0s", more of it is shown.
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s / MINUTE % 60, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s / HOUR % 24, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s / DAY % 365, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// Text, or `<none>`.
fn or_none(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { NONE.to_owned() } else { text }
}

fn array<'a>(object: &'a Object, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// `a=b,c=d`, sorted, or `<none>`.
fn labels(map: Option<&Map<String, Value>>) -> String {
    or_none(joined(map))
}

/// `a=b,c=d`, sorted.
fn joined(map: Option<&Map<String, Value>>) -> String {
    let sorted: BTreeMap<&str, &str> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    let pairs: Vec<String> = sorted
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

/// The first items, and how many more there are.
fn shortened(items: &[String]) -> String {
    if items.len() <= SHOWN_ITEMS {
        return items.join(",");
    }
    format!(
        "{} + {} more...",
        items[..SHOWN_ITEMS].join(","),
        items.len() - SHOWN_ITEMS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_kubectl() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (9 * 3600 + 300, "9h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (3 * 365 * 86400 + 86400, "3y1d"),
            (-1, "0s"),
            (-60, "<invalid>"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn every_row_has_a_cell_per_column() {
        for row_of_kinds in schemas::KINDS {
            let key = schemas::ObjectKey::new(row_of_kinds.kind, "default", "web");
            let row = row(row_of_kinds.kind, &Object::new(&key), 0, Include::Metadata);
            let cells = row["cells"].as_array().unwrap().len();
            assert_eq!(
                cells,
                definitions(row_of_kinds.kind).len(),
                "{}",
                row_of_kinds.name
            );
        }
    }
}
