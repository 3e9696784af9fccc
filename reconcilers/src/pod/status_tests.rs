//! The status of pods, as Kubernetes writes it.

use std::sync::Arc;
use std::time::Duration;

use schemas::Object;

use super::*;
use crate::pod::memory::Failure;
use crate::pod::probe::ProbeResults;
use crate::pod::spec::spec_hash;
use crate::ports::ContainerId;

fn pod(spec: Value) -> DesiredPod {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "uid": "u" }, "spec": spec,
    });
    DesiredPod::read(Arc::new(Object::from_value(object).unwrap())).unwrap()
}

fn container(pod: &DesiredPod, name: &str, attempt: u32, state: ContainerState) -> Container {
    let hash = pod.container(name).map(spec_hash).unwrap_or_default();
    let labels = [
        (labels::CONTAINER_NAME, name.to_owned()),
        (labels::SPEC_HASH, hash),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::POD_IP, "10.244.1.2".to_owned()),
    ];
    Container {
        id: ContainerId(format!("{name}{attempt:063x}")),
        name: format!("{name}-{attempt}"),
        image: "web:1".to_owned(),
        image_id: format!("sha256:{attempt:064x}"),
        labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
        state,
    }
}

fn running() -> ContainerState {
    ContainerState::Running {
        pid: 1,
        started_unix_seconds: 100,
    }
}

fn exited(code: i32, oom_killed: bool) -> ContainerState {
    ContainerState::Exited {
        code,
        oom_killed,
        started_unix_seconds: 100,
        finished_unix_seconds: 200,
    }
}

const NOW: Moment = Moment(Duration::from_secs(1000));

fn status_of(
    pod: &DesiredPod,
    containers: &[Container],
    memory: PodMemory,
    previous: Option<&Value>,
) -> Value {
    let mut memory = memory;
    memory.observe(containers, NOW, |name, running| {
        ProbeResults::before(running, pod.container(name), 0)
    });
    status(&StatusInput {
        pod,
        containers,
        memory: &memory,
        host_address: "192.0.2.1".parse().unwrap(),
        previous,
        now: NOW,
        unix_seconds: 1_767_225_600,
    })
}

fn condition(status: &Value, kind: &str) -> Value {
    let list = status["conditions"].as_array().unwrap();
    list.iter()
        .find(|condition| condition["type"] == kind)
        .cloned()
        .unwrap()
}

fn web() -> DesiredPod {
    pod(json!({ "containers": [{ "name": "c", "image": "web:1" }] }))
}

#[test]
fn a_new_pod_is_being_created() {
    let status = status_of(&web(), &[], PodMemory::default(), None);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(condition(&status, "PodScheduled")["status"], "True");
    assert_eq!(condition(&status, "Ready")["reason"], "ContainersNotReady");
    assert_eq!(status["startTime"], "2026-01-01T00:00:00Z");
    assert_eq!(status.get("podIP"), None);
}

#[test]
fn times_stay_while_nothing_changes() {
    let pod = web();
    let containers = [container(&pod, "c", 0, running())];
    let mut before = status_of(&pod, &containers, PodMemory::default(), None);
    before["startTime"] = "2025-12-31T00:00:00Z".into();
    for condition in before["conditions"].as_array_mut().unwrap() {
        condition["lastTransitionTime"] = "2025-12-31T00:00:00Z".into();
    }
    assert_eq!(
        status_of(&pod, &containers, PodMemory::default(), Some(&before)),
        before
    );

    let stopped = [container(&pod, "c", 0, exited(1, false))];
    let after = status_of(&pod, &stopped, PodMemory::default(), Some(&before));
    assert_eq!(
        condition(&after, "Ready")["lastTransitionTime"],
        "2026-01-01T00:00:00Z"
    );
    assert_eq!(
        condition(&after, "Initialized")["lastTransitionTime"],
        "2025-12-31T00:00:00Z"
    );
}

#[test]
fn after_a_start_of_the_agent_times_are_those_of_the_containers() {
    let pod = pod(json!({ "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] }));
    let started = |started_unix_seconds| ContainerState::Running {
        pid: 1,
        started_unix_seconds,
    };
    let containers = [
        container(&pod, "a", 0, exited(1, false)),
        container(&pod, "a", 1, started(300)),
        container(&pod, "b", 0, started(160)),
    ];
    for previous in [None, Some(json!({ "phase": "Running" }))] {
        let status = status_of(&pod, &containers, PodMemory::default(), previous.as_ref());
        assert_eq!(status["startTime"], "1970-01-01T00:01:40Z");
        assert_eq!(
            condition(&status, "Ready")["lastTransitionTime"],
            "1970-01-01T00:05:00Z"
        );
    }
}

#[test]
fn exits_are_named_as_in_kubernetes() {
    let pod = pod(json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "web:1" }] }));
    for (code, oom, reason, phase) in [
        (0, false, "Completed", "Succeeded"),
        (2, false, "Error", "Failed"),
        (137, true, "OOMKilled", "Failed"),
    ] {
        let containers = [container(&pod, "c", 0, exited(code, oom))];
        let status = status_of(&pod, &containers, PodMemory::default(), None);
        let terminated = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (&terminated["reason"], &terminated["exitCode"]),
            (&json!(reason), &json!(code))
        );
        assert_eq!(terminated["finishedAt"], "1970-01-01T00:03:20Z");
        assert_eq!(status["phase"], phase);
    }
    let containers = [container(&pod, "c", 0, exited(0, false))];
    let status = status_of(&pod, &containers, PodMemory::default(), None);
    assert_eq!(condition(&status, "Ready")["reason"], "PodCompleted");
}

#[test]
fn the_attempt_before_is_the_last_state() {
    let pod = web();
    let containers = [
        container(&pod, "c", 0, exited(3, false)),
        container(&pod, "c", 1, running()),
    ];
    let status = status_of(&pod, &containers, PodMemory::default(), None);
    let shown = &status["containerStatuses"][0];
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(shown["restartCount"], 1);
    assert_eq!(shown["containerID"], format!("podman://{}", containers[1].id.0));
    assert_eq!(
        status["podIP"], "10.244.1.2",
        "from the labels, before the pod is attached again"
    );
    assert_eq!(shown["ready"], true);
}

#[test]
fn quality_of_service_is_kubernetes() {
    let with = |resources: Value| json!({ "containers": [{ "name": "c", "resources": resources }] });
    for (spec, expected) in [
        (with(json!({})), "BestEffort"),
        (with(json!({ "requests": { "cpu": "1" } })), "Burstable"),
        (with(json!({ "limits": { "cpu": "1" } })), "Burstable"),
        (
            with(json!({ "limits": { "cpu": "1", "memory": "1Gi" } })),
            "Guaranteed",
        ),
        (
            with(json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m" } })),
            "Guaranteed",
        ),
        (
            with(json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1m" } })),
            "Burstable",
        ),
    ] {
        assert_eq!(qos_class(pod(spec.clone()).spec()), expected, "{spec}");
    }
}

#[test]
fn a_status_never_exceeds_its_limit() {
    for count in [1, 10, 40, 200] {
        let containers: Vec<Value> = (0..count)
            .map(|number| json!({ "name": format!("container-{number}"), "image": "web:1" }))
            .collect();
        let pod = pod(json!({ "containers": containers }));
        let mut memory = PodMemory::default();
        let mut made = Vec::new();
        for number in 0..count {
            let name = format!("container-{number}");
            made.push(container(&pod, &name, 0, exited(1, false)));
            let failure = Failure::again(None, "CreateContainerError", "x".repeat(5000), NOW);
            memory.containers.entry(name).or_default().failure = Some(failure);
        }
        let status = status_of(&pod, &made, memory, None);
        let length = status.to_string().len();
        assert!(length <= STATUS_BYTES_MAX, "{count} containers: {length} bytes");
        assert_eq!(status["phase"], "Running");
        assert!(
            count > 10
                || status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError"
        );
    }
}
