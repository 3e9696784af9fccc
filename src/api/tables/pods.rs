//! Rows of pods: what a pod is doing, in one word, as Kubernetes words it.

use schemas::{Object, time};
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Now, array, column, or_none, text, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Containers that are ready, of all."),
    column("Status", "The phase of the pod, or why it is not there."),
    column(
        "Restarts",
        "How often containers of the pod were restarted, and when last.",
    ),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Name of the node that the pod is placed on."),
    wide(
        "Nominated Node",
        "The node that the pod may be placed on after others left it.",
    ),
    wide(
        "Readiness Gates",
        "Conditions that the pod's readiness waits for.",
    ),
];

pub(super) fn cells(pod: &Object, now: Now) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, super::human_duration(now.0 - at))
        }
        _ => summary.restarts.to_string(),
    };
    let addresses = array(pod, "/status/podIPs");
    let address = addresses
        .first()
        .map_or(pod.str_at("/status/podIP"), |first| text(first, "ip"));
    vec![
        json!(pod.name()),
        json!(format!("{}/{}", summary.ready, summary.containers)),
        json!(summary.reason),
        json!(restarts),
        json!(now.age(pod)),
        json!(or_none(address)),
        json!(or_none(pod.str_at("/spec/nodeName"))),
        json!(or_none(pod.str_at("/status/nominatedNodeName"))),
        json!(or_none(readiness_gates(pod))),
    ]
}

struct Summary {
    /// Sidecars among them.
    ready: usize,
    containers: usize,
    restarts: i64,
    /// When the container that was restarted last had ended.
    last_restart: Option<i64>,
    reason: String,
}

impl Summary {
    fn of(pod: &Object) -> Self {
        let phase = match pod.str_at("/status/phase") {
            "" => "Pending",
            phase => phase,
        };
        let mut reason = match pod.str_at("/status/reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        };
        let mut summary = Summary {
            ready: 0,
            containers: array(pod, "/spec/containers").len() + sidecars(pod).count(),
            restarts: 0,
            last_restart: None,
            reason: String::new(),
        };
        let initializing = summary.init_reason(pod);
        if let Some(waiting) = &initializing {
            reason.clone_from(waiting);
        }
        if initializing.is_none() || condition(pod, "Initialized") {
            (summary.restarts, summary.last_restart) = (0, None);
            let sidecars = array(pod, "/status/initContainerStatuses").iter();
            for status in sidecars.filter(|status| is_sidecar(pod, status)) {
                summary.count_restarts(status);
            }
            let mut running = false;
            for status in array(pod, "/status/containerStatuses").iter().rev() {
                summary.count_restarts(status);
                if let Some(cause) = stopped_reason(status) {
                    reason = cause;
                } else if status["ready"] == true && status["state"]["running"].is_object() {
                    running = true;
                    summary.ready += 1;
                }
            }
            if reason == "Completed" && running {
                reason = if condition(pod, "Ready") {
                    "Running"
                } else {
                    "NotReady"
                }
                .to_owned();
            }
        }
        if pod.is_terminating() {
            if pod.str_at("/status/reason") == "NodeLost" {
                reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                reason = "Terminating".to_owned();
            }
        }
        summary.reason = reason;
        summary
    }

    /// Why the pod's init containers are not through, if they are not; counts the sidecars that are ready.
    fn init_reason(&mut self, pod: &Object) -> Option<String> {
        let statuses = array(pod, "/status/initContainerStatuses");
        for (index, status) in statuses.iter().enumerate() {
            self.count_restarts(status);
            let state = &status["state"];
            if state["terminated"].is_object() && state["terminated"]["exitCode"] == 0 {
                continue;
            }
            if is_sidecar(pod, status) && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            return Some(match stopped_reason(status) {
                Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
                _ => format!("Init:{index}/{}", array(pod, "/spec/initContainers").len()),
            });
        }
        None
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or_default();
        let ended = time::from_rfc3339(text(&status["lastState"]["terminated"], "finishedAt"));
        self.last_restart = self.last_restart.max(ended);
    }
}

/// The init containers that run beside the others.
fn sidecars(pod: &Object) -> impl Iterator<Item = &Value> {
    let containers = array(pod, "/spec/initContainers").iter();
    containers.filter(|container| container["restartPolicy"] == "Always")
}

/// Whether a status is that of a sidecar.
fn is_sidecar(pod: &Object, status: &Value) -> bool {
    sidecars(pod).any(|container| container["name"] == status["name"])
}

/// Why a container is waiting or ended; None if it runs (or nothing is known).
fn stopped_reason(status: &Value) -> Option<String> {
    let state = &status["state"];
    let waiting = text(&state["waiting"], "reason");
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let terminated = state.get("terminated")?.as_object()?;
    match terminated
        .get("reason")
        .and_then(Value::as_str)
        .unwrap_or_default()
    {
        "" => match terminated
            .get("signal")
            .and_then(Value::as_i64)
            .unwrap_or_default()
        {
            0 => Some(format!("ExitCode:{}", state["terminated"]["exitCode"])),
            signal => Some(format!("Signal:{signal}")),
        },
        reason => Some(reason.to_owned()),
    }
}

fn condition(pod: &Object, name: &str) -> bool {
    array(pod, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == name && condition["status"] == "True")
}

fn readiness_gates(pod: &Object) -> String {
    let gates = array(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let met = gates
        .iter()
        .filter(|gate| condition(pod, text(gate, "conditionType")))
        .count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pod: Value, expected: [&str; 3]) {
        let cells = cells(&Object::from_value(pod.clone()).unwrap(), Now(1_000));
        assert_eq!(cells[1..4], expected.map(Value::from), "{pod}");
    }

    #[test]
    fn status_says_what_the_pod_is_doing() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        check(json!({"spec": spec}), ["0/2", "Pending", "0"]);
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [running, running]}}),
            ["2/2", "Running", "0"],
        );
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [
                running,
                {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "1970-01-01T00:16:00Z"}}},
            ]}}),
            ["1/2", "CrashLoopBackOff", "3 (40s ago)"],
        );
        check(
            json!({"spec": spec, "metadata": {"deletionTimestamp": "1970-01-01T00:16:00Z"},
                "status": {"phase": "Running", "containerStatuses": [running]}}),
            ["1/2", "Terminating", "0"],
        );
        check(
            json!({"spec": spec, "status": {"phase": "Failed", "containerStatuses": [
                {"state": {"terminated": {"exitCode": 7}}}]}}),
            ["0/2", "ExitCode:7", "0"],
        );
        check(
            json!({"spec": {"containers": [{}], "initContainers": [{}]}, "status": {"phase": "Pending",
                "initContainerStatuses": [{"state": {"running": {}}}]}}),
            ["0/1", "Init:0/1", "0"],
        );
    }

    #[test]
    fn sidecars_count_as_containers_once_they_started() {
        let spec = json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "once"}, {"name": "side", "restartPolicy": "Always"}]});
        let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
        let once = json!({"name": "once", "restartCount": 5, "state": {"terminated": {"exitCode": 0}}});
        let side = |started: bool, ready: bool| json!({"name": "side", "started": started, "ready": ready, "restartCount": 2, "state": {"running": {}}});
        for (phase, side, others, expected) in [
            (
                "Running",
                side(true, true),
                json!([running]),
                ["2/2", "Running", "2"],
            ),
            (
                "Running",
                side(true, false),
                json!([running]),
                ["1/2", "Running", "2"],
            ),
            ("Pending", side(false, false), json!([]), ["0/2", "Init:1/2", "7"]),
        ] {
            check(
                json!({"spec": spec, "status": {"phase": phase,
                    "initContainerStatuses": [once, side], "containerStatuses": others}}),
                expected,
            );
        }
    }
}
