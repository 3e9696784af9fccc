//! What real containers use, as `kubectl top` shows it: pods on one node, asked of the other.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, needs_hosts};
use crate::kubectl::{two_hosts, versions};

/// One container that takes all the processor time it is let have, and one that sleeps.
const BUSY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {app: busy}}
spec:
  nodeSelector: {place: there}
  terminationGracePeriodSeconds: 0
  containers:
    - name: burns
      image: localhost/busybox:test
      command: [/bin/sh, -c, "while true; do true; done"]
      resources: {limits: {cpu: 200m}}
    - name: sleeps
      image: localhost/busybox:test
      command: [/bin/sleep, "100000"]
"#;

/// The numbers in a column of what `kubectl top` printed: thousandths of a core, or MiB.
#[track_caller]
fn column(printed: &str, number: usize, unit: &str) -> Vec<u64> {
    let cells = printed.lines().map(|line| line.split_whitespace().nth(number));
    cells
        .map(|cell| {
            let value = cell.and_then(|cell| cell.strip_suffix(unit)?.parse().ok());
            value.unwrap_or_else(|| panic!("column {number} is no number of {unit} in:\n{printed}"))
        })
        .collect()
}

#[test]
fn top_shows_what_containers_of_another_node_use() {
    needs_hosts!();
    let Some(kubectl) = versions().pop() else {
        eprintln!("skipped: no kubectl on this machine");
        return;
    };
    let cluster = two_hosts();
    let top = |cluster: &Cluster, arguments: &[&str]| {
        let ran = cluster.with_kubeconfig(
            1,
            "timeout",
            &[&["30", &kubectl, "top"], arguments, &["--no-headers"]].concat(),
        );
        if ran.ok { Ok(ran.stdout) } else { Err(ran.stderr) }
    };
    cluster.apply(1, BUSY);
    let containers = cluster.wait_for("both containers' use", Duration::from_secs(40), |cluster| {
        let printed = top(cluster, &["pod", "busy", "--containers"])?;
        if printed.lines().count() == 2 {
            Ok(printed)
        } else {
            Err(printed)
        }
    });
    eprintln!("{containers}");

    // A limit of 200m is one of 20 ms in every 100: what a window cuts off shows.
    let busy = cluster.wait_for("200m or nearly so", Duration::from_secs(20), |cluster| {
        let printed = top(cluster, &["pod", "busy", "--containers"])?;
        let used = column(&printed, 2, "m");
        if (120..=240).contains(&used[0]) && used[1] <= 20 {
            Ok(printed)
        } else {
            Err(printed)
        }
    });
    eprintln!("{busy}");
    assert!(
        column(&busy, 3, "Mi").iter().all(|mebibytes| *mebibytes < 64),
        "{busy}"
    );
    let pods = top(&cluster, &["pod", "-A", "-l", "app=busy"]).unwrap();
    assert!(
        pods.starts_with("default") && (100..=280).contains(&column(&pods, 2, "m")[0]),
        "{pods}"
    );

    let started = Instant::now();
    let nodes = top(&cluster, &["node"]).unwrap();
    let (took, used) = (started.elapsed(), column(&nodes, 1, "m"));
    eprintln!("{nodes}in {took:?}");
    assert_eq!(used.len(), 2, "{nodes}");
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(
        used.iter().all(|millis| (1..=cores * 1050).contains(millis)),
        "{nodes}"
    );
    let shares = column(&nodes, 4, "%");
    assert!(shares.iter().all(|share| (1..=100).contains(share)), "{nodes}");
    let table = cluster
        .with_kubeconfig(1, &kubectl, &["get", "podmetrics,nodemetrics"])
        .expect("get");
    for word in [
        "podmetrics.metrics.k8s.io/busy",
        "WINDOW",
        "nodemetrics.metrics.k8s.io/node2",
    ] {
        assert!(table.contains(word), "{table}");
    }

    // A node that is away has no metrics.
    cluster.crash(2);
    cluster.wait_for("node2 to be left out", Duration::from_secs(20), |cluster| {
        let path = "/apis/metrics.k8s.io/v1beta1/nodes";
        let (_, list) = cluster.api(1, "GET", path, "");
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if items.len() == 1 && items[0]["metadata"]["name"] == "node1" {
            Ok(())
        } else {
            Err(list)
        }
    });
    assert_eq!(
        cluster.api(1, "GET", "/apis/metrics.k8s.io/v1beta1/pods", "").1["items"],
        serde_json::json!([])
    );
}
