//! Rows of workloads: what keeps pods running, and what runs them to an end.

use schemas::{Kind, Object, time};
use serde_json::{Value, json};

use super::kinds::selector_text;
use super::{
    AGE, Column, NAME, NONE, Now, array, column, human_duration, integer, joined, or_none, text, wide,
};

const CONTAINERS: Column = wide("Containers", "Names of the containers.");
const IMAGES: Column = wide("Images", "Images of the containers.");
const SELECTOR: Column = wide("Selector", "Labels of its pods.");

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "Pods that are ready, of those wanted."),
    column("Up-to-date", "Pods of the current template."),
    column("Available", "Pods that have been ready for minReadySeconds."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn deployment(object: &Object, now: Now) -> Vec<Value> {
    let count = |pointer: &str| object.i64_at(pointer).unwrap_or_default();
    let [containers, images, selector] = template(object);
    vec![
        json!(object.name()),
        json!(format!(
            "{}/{}",
            count("/status/readyReplicas"),
            object.i64_at("/spec/replicas").unwrap_or(1)
        )),
        json!(count("/status/updatedReplicas").to_string()),
        json!(count("/status/availableReplicas").to_string()),
        json!(now.age(object)),
        containers,
        images,
        selector,
    ]
}

pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    integer("Desired", "Pods wanted."),
    integer("Current", "Pods that are there."),
    integer("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn replica_set(object: &Object, now: Now) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    vec![
        json!(object.name()),
        json!(object.i64_at("/spec/replicas").unwrap_or(1)),
        json!(object.i64_at("/status/replicas").unwrap_or_default()),
        json!(object.i64_at("/status/readyReplicas").unwrap_or_default()),
        json!(now.age(object)),
        containers,
        images,
        selector,
    ]
}

/// Containers, images and selector of a workload.
fn template(object: &Object) -> [Value; 3] {
    let [containers, images] = containers(object, "/spec/template/spec/containers");
    [containers, images, json!(or_none(pods_of(object)))]
}

/// The selector of a workload's pods as text. That of a ReplicationController is a plain map.
pub(crate) fn pods_of(object: &Object) -> String {
    let selector = object.pointer("/spec/selector");
    match object.kind() {
        Some(Kind::ReplicationController) => joined(selector.and_then(Value::as_object)),
        _ => selector_text(selector),
    }
}

fn containers(object: &Object, pointer: &str) -> [Value; 2] {
    let containers = array(object, pointer);
    let join = |field: &str| {
        containers
            .iter()
            .map(|container| text(container, field))
            .collect::<Vec<_>>()
            .join(",")
    };
    [json!(join("name")), json!(join("image"))]
}

pub(super) const STATEFUL_SET: &[Column] = &[
    NAME,
    column("Ready", "Pods that are ready, of those wanted."),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub(super) fn stateful_set(object: &Object, now: Now) -> Vec<Value> {
    let [containers, images, _] = template(object);
    let (ready, wanted) = (
        count(object, "/status/readyReplicas"),
        object.i64_at("/spec/replicas"),
    );
    vec![
        json!(object.name()),
        json!(format!("{ready}/{}", wanted.unwrap_or(1))),
        json!(now.age(object)),
        containers,
        images,
    ]
}

pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    integer("Desired", "Nodes that should run its pod."),
    integer("Current", "Nodes that run its pod."),
    integer("Ready", "Nodes whose pod is ready."),
    integer("Up-to-date", "Nodes whose pod is of the current template."),
    integer("Available", "Nodes whose pod has been ready for minReadySeconds."),
    column("Node Selector", "Labels of the nodes it is for."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn daemon_set(object: &Object, now: Now) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    let nodes = object.pointer("/spec/template/spec/nodeSelector");
    vec![
        json!(object.name()),
        json!(count(object, "/status/desiredNumberScheduled")),
        json!(count(object, "/status/currentNumberScheduled")),
        json!(count(object, "/status/numberReady")),
        json!(count(object, "/status/updatedNumberScheduled")),
        json!(count(object, "/status/numberAvailable")),
        json!(or_none(joined(nodes.and_then(Value::as_object)))),
        json!(now.age(object)),
        containers,
        images,
        selector,
    ]
}

pub(super) const POD_TEMPLATE: &[Column] = &[
    NAME,
    column("Containers", "Names of the containers."),
    column("Images", "Images of the containers."),
    column("Pod Labels", "Labels of the pods."),
];

pub(super) fn pod_template(object: &Object, _: Now) -> Vec<Value> {
    let [containers, images] = containers(object, "/template/spec/containers");
    let labels = object.pointer("/template/metadata/labels");
    vec![
        json!(object.name()),
        containers,
        images,
        json!(or_none(joined(labels.and_then(Value::as_object)))),
    ]
}

pub(super) const REVISION: &[Column] = &[
    NAME,
    column("Controller", "Whose state it is."),
    integer("Revision", "The higher, the newer."),
    AGE,
];

pub(super) fn revision(object: &Object, now: Now) -> Vec<Value> {
    let controller = object.controller().map_or(NONE.to_owned(), |owner| {
        let group = owner
            .api_version
            .split_once('/')
            .map(|(group, _)| format!(".{group}"));
        let kind = owner.kind.to_ascii_lowercase();
        format!("{kind}{}/{}", group.unwrap_or_default(), owner.name)
    });
    vec![
        json!(object.name()),
        json!(controller),
        json!(count(object, "/revision")),
        json!(now.age(object)),
    ]
}

pub(super) const JOB: &[Column] = &[
    NAME,
    column("Status", "How far it is."),
    column("Completions", "Pods that succeeded, of those wanted."),
    column("Duration", "Time that it took, or has taken so far."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn job(object: &Object, now: Now) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    let succeeded = count(object, "/status/succeeded");
    let wanted = match (
        object.i64_at("/spec/completions"),
        object.i64_at("/spec/parallelism"),
    ) {
        (Some(wanted), _) => wanted.to_string(),
        (None, Some(workers)) if workers > 1 => format!("1 of {workers}"),
        (None, _) => "1".to_owned(),
    };
    let at = |pointer: &str| time::from_rfc3339(object.str_at(pointer));
    let duration = at("/status/startTime").map(|start| {
        let end = at("/status/completionTime").unwrap_or(now.0);
        human_duration(end - start)
    });
    vec![
        json!(object.name()),
        json!(job_status(object)),
        json!(format!("{succeeded}/{wanted}")),
        json!(duration.unwrap_or_default()),
        json!(now.age(object)),
        containers,
        images,
        selector,
    ]
}

fn job_status(object: &Object) -> &'static str {
    let is_true = |name: &str| {
        let mut conditions = array(object, "/status/conditions").iter();
        conditions.any(|condition| text(condition, "type") == name && text(condition, "status") == "True")
    };
    let known = ["Complete", "Failed"].into_iter().find(|name| is_true(name));
    known.unwrap_or_else(|| {
        if object.is_terminating() {
            return "Terminating";
        }
        let known = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
        known.into_iter().find(|name| is_true(name)).unwrap_or("Running")
    })
}

pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    column("Schedule", "When its jobs begin."),
    column(
        "Timezone",
        "Where the schedule is meant; <none>: where the node is.",
    ),
    column("Suspend", "Whether no more jobs begin."),
    integer("Active", "Jobs that run."),
    column("Last Schedule", "Time since the last job began."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn cron_job(object: &Object, now: Now) -> Vec<Value> {
    let [containers, images] = containers(object, "/spec/jobTemplate/spec/template/spec/containers");
    let suspend = match object.pointer("/spec/suspend") {
        Some(Value::Bool(true)) => "True",
        _ => "False",
    };
    let last = match object.str_at("/status/lastScheduleTime") {
        "" => NONE.to_owned(),
        at => now.since(at),
    };
    vec![
        json!(object.name()),
        json!(object.str_at("/spec/schedule")),
        json!(or_none(object.str_at("/spec/timeZone"))),
        json!(suspend),
        json!(array(object, "/status/active").len()),
        json!(last),
        json!(now.age(object)),
        containers,
        images,
        json!(or_none(selector_text(
            object.pointer("/spec/jobTemplate/spec/selector")
        ))),
    ]
}

fn count(object: &Object, pointer: &str) -> i64 {
    object.i64_at(pointer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cells: fn(&Object, Now) -> Vec<Value>, mut object: Value, expected: &[&str]) {
        object["metadata"] = json!({"name": "web", "creationTimestamp": "1970-01-01T00:00:30Z"});
        let object = Object::from_value(object).unwrap();
        let cells = cells(&object, Now(60));
        let shown: Vec<String> = cells
            .iter()
            .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
            .collect();
        assert_eq!(shown, expected);
    }

    /// A template whose pods are on nodes with disks.
    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}]}})
    }

    #[test]
    fn workloads_show_counts_and_template() {
        let selector = json!({"matchLabels": {"app": "web"}});
        let spec = json!({"replicas": 3, "selector": selector, "template": template()});
        check(
            deployment,
            json!({"status": {"readyReplicas": 2}, "spec": spec}),
            &["web", "2/3", "0", "0", "30s", "a,b", "x:1,y:2", "app=web"],
        );
        check(
            stateful_set,
            json!({"status": {"readyReplicas": 2}, "spec": spec}),
            &["web", "2/3", "30s", "a,b", "x:1,y:2"],
        );
        check(
            daemon_set,
            json!({"status": {"desiredNumberScheduled": 5, "currentNumberScheduled": 4, "numberReady": 3,
                "updatedNumberScheduled": 2, "numberAvailable": 1}, "spec": spec}),
            &[
                "web", "5", "4", "3", "2", "1", "disk=ssd", "30s", "a,b", "x:1,y:2", "app=web",
            ],
        );
        check(
            replica_set,
            json!({"apiVersion": "v1", "kind": "ReplicationController", "status": {"replicas": 2, "readyReplicas": 1},
                "spec": {"replicas": 3, "selector": {"b": "2", "a": "1"}, "template": template()}}),
            &["web", "3", "2", "1", "30s", "a,b", "x:1,y:2", "a=1,b=2"],
        );
        check(
            pod_template,
            json!({"template": template()}),
            &["web", "a,b", "x:1,y:2", "app=web"],
        );
        check(
            cron_job,
            json!({"spec": {"schedule": "@daily", "timeZone": "Europe/Kyiv", "jobTemplate": {"spec": {"template": template()}}},
                "status": {"active": [{}], "lastScheduleTime": "1970-01-01T00:00:50Z"}}),
            &[
                "web",
                "@daily",
                "Europe/Kyiv",
                "False",
                "1",
                "10s",
                "30s",
                "a,b",
                "x:1,y:2",
                "<none>",
            ],
        );
    }

    #[test]
    fn jobs_show_how_far_they_are() {
        let end = |condition: &str| json!({"type": condition, "status": "True"});
        let times = ("1970-01-01T00:00:40Z", "1970-01-01T00:00:55Z");
        for (spec, status, expected) in [
            (json!({"completions": 2}), json!({}), ["Running", "0/2", ""]),
            (
                json!({"parallelism": 3}),
                json!({"startTime": times.0, "succeeded": 1}),
                ["Running", "1/1 of 3", "20s"],
            ),
            (
                json!({"completions": 2}),
                json!({"startTime": times.0, "completionTime": times.1, "succeeded": 2, "conditions": [end("Complete")]}),
                ["Complete", "2/2", "15s"],
            ),
            (
                json!({"completions": 1}),
                json!({"conditions": [end("Suspended")]}),
                ["Suspended", "0/1", ""],
            ),
        ] {
            check(
                |object, now| job(object, now)[1..4].to_vec(),
                json!({"spec": spec, "status": status}),
                &expected,
            );
        }
    }
}
