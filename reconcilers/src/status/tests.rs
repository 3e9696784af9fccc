//! Status is right, and stable: computed again from its own output it does not change.

use std::sync::Arc;

use schemas::{Kind, ObjectKey};

use super::*;
use crate::fakes::FAKE_EPOCH_UNIX_SECONDS as EPOCH;
use crate::nodes::testing::node;
use crate::pod_state::{Host, Phase, PodState};
use crate::ports::Moment;

fn pod() -> Object {
    let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", "web"));
    pod.set(&["metadata", "creationTimestamp"], to_rfc3339(EPOCH));
    pod
}

/// Computes the status twice, an hour apart, and expects the same.
fn stable_pod_status(pod: &mut Object, knowledge: PodKnowledge<'_>, unix_seconds: i64) -> Value {
    let status = pod_status(pod, knowledge, unix_seconds);
    pod.set(&["status"], status.clone());
    assert_eq!(
        pod_status(pod, knowledge, unix_seconds + 3600),
        status,
        "status is stable"
    );
    status
}

#[test]
fn a_pod_is_pending_until_its_node_has_spoken() {
    let mut pod = pod();
    let misfit = PodKnowledge {
        misfit: Some("0/1 nodes are available: 1 Insufficient cpu."),
        ..PodKnowledge::default()
    };
    let status = stable_pod_status(&mut pod, misfit, EPOCH);
    assert_eq!(status["conditions"][0]["reason"], "Unschedulable");
    pod.set(&["spec", "nodeName"], "a");
    let a = node("a");
    let placed = PodKnowledge {
        node: Some(&a),
        ..PodKnowledge::default()
    };
    let status = stable_pod_status(&mut pod, placed, EPOCH);
    let scheduled =
        json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": to_rfc3339(EPOCH)});
    assert_eq!(status, json!({"phase": "Pending", "conditions": [scheduled]}));
}

#[test]
fn a_dead_nodes_pod_keeps_its_last_status_but_is_not_ready() {
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": to_rfc3339(EPOCH)});
    let observed = json!({"phase": "Running", "podIP": "10.244.0.9", "conditions": [ready]});
    let mut pod = pod();
    pod.set(&["spec", "nodeName"], "a");
    let live = node("a");
    let alive = PodKnowledge {
        node: Some(&live),
        observed: Some(&observed),
        misfit: None,
    };
    assert_eq!(stable_pod_status(&mut pod, alive, EPOCH)["conditions"][0], ready);
    let stopped = node("a").liveness(Liveness::Stopped, Moment::default());
    let knowledge = PodKnowledge {
        node: Some(&stopped),
        ..alive
    };
    assert_eq!(
        stable_pod_status(&mut pod, knowledge, EPOCH)["conditions"][0],
        ready
    );

    let dead = node("a").liveness(Liveness::Dead, Moment::default());
    for observed in [Some(&observed), None] {
        let knowledge = PodKnowledge {
            node: Some(&dead),
            observed,
            misfit: None,
        };
        let status = stable_pod_status(&mut pod, knowledge, EPOCH + 60);
        assert_eq!(
            (&status["phase"], &status["podIP"]),
            (&"Running".into(), &"10.244.0.9".into())
        );
        let ready = find_condition(&status, "Ready").unwrap();
        assert_eq!(
            (&ready["status"], &ready["reason"]),
            (&"False".into(), &NODE_STATUS_UNKNOWN.into())
        );
        assert_eq!(ready["lastTransitionTime"], to_rfc3339(EPOCH + 60));
    }
    assert_eq!(
        stable_pod_status(&mut pod, alive, EPOCH + 90)["conditions"][0],
        ready,
        "it returns"
    );
}

#[test]
fn a_pod_that_ended_stays_ended() {
    let mut pod = pod();
    pod.set(&["spec", "nodeName"], "a");
    pod.set(&["status", "phase"], "Succeeded");
    for liveness in [Liveness::Alive, Liveness::Dead] {
        let node = node("a").liveness(liveness, Moment::default());
        let knowledge = PodKnowledge {
            node: Some(&node),
            ..PodKnowledge::default()
        };
        assert_eq!(
            stable_pod_status(&mut pod, knowledge, EPOCH)["phase"],
            "Succeeded"
        );
    }
}

fn deployment(replicas: u32) -> Object {
    let mut deployment = Object::new(&ObjectKey::new(Kind::Deployment, "default", "web"));
    deployment.set(&["metadata", "generation"], 1);
    deployment.set(&["spec"], json!({"replicas": replicas, "template": {"spec": {}}}));
    deployment
}

fn set(deployment: &Object, replicas: u32, ready: u32) -> ReplicaSetState {
    let name = new_replica_set_name(deployment, &[]).unwrap();
    let set = Object::new(&ObjectKey::new(Kind::ReplicaSet, "default", name));
    let pods = (0..replicas).map(|number| {
        let mut pod = pod();
        pod.set(
            &["metadata", "annotations", crate::pod_state::SLOT_ANNOTATION],
            number.to_string(),
        );
        PodState {
            object: Arc::new(pod),
            host: Host::Live,
            phase: Phase::Running,
            ready_since: (number < ready).then_some(EPOCH),
            restarts: 0,
        }
    });
    ReplicaSetState::new(Arc::new(set), pods.collect())
}

fn at(seconds: i64) -> Now {
    Now {
        moment: Moment::default(),
        unix_seconds: EPOCH + seconds,
    }
}

#[test]
fn deployment_status_says_what_kubectl_rollout_status_waits_for() {
    let mut deployment = deployment(3);
    let reason = |status: &Value, kind: &str| find_condition(status, kind).unwrap()["reason"].clone();
    for (sets, seconds, available, progressing, again) in [
        (
            vec![],
            0,
            "MinimumReplicasUnavailable",
            "ReplicaSetUpdated",
            Some(600),
        ),
        (
            vec![set(&deployment, 3, 0)],
            100,
            "MinimumReplicasUnavailable",
            "ReplicaSetUpdated",
            Some(600),
        ),
        (
            vec![set(&deployment, 3, 0)],
            150,
            "MinimumReplicasUnavailable",
            "ReplicaSetUpdated",
            Some(550),
        ),
        (
            vec![set(&deployment, 3, 0)],
            700,
            "MinimumReplicasUnavailable",
            "ProgressDeadlineExceeded",
            None,
        ),
        (
            vec![set(&deployment, 3, 3)],
            701,
            "MinimumReplicasAvailable",
            "NewReplicaSetAvailable",
            None,
        ),
        (
            vec![set(&deployment, 3, 2)],
            9000,
            "MinimumReplicasUnavailable",
            "NewReplicaSetAvailable",
            None,
        ),
    ] {
        let (status, look) = deployment_status(&deployment, &sets, at(seconds));
        assert_eq!(reason(&status, "Available"), available, "{seconds}");
        assert_eq!(reason(&status, "Progressing"), progressing, "{seconds}");
        assert_eq!(look.map(|look| look.as_secs()), again, "{seconds}");
        deployment.set(&["status"], status.clone());
        let (repeated, _) = deployment_status(&deployment, &sets, at(seconds + 1));
        assert_eq!(repeated, status, "status is stable");
    }
    let (status, _) = deployment_status(&deployment, &[set(&deployment, 3, 3)], at(9001));
    for (field, expected) in [
        ("observedGeneration", 1),
        ("replicas", 3),
        ("updatedReplicas", 3),
        ("readyReplicas", 3),
        ("availableReplicas", 3),
    ] {
        assert_eq!(status[field], expected, "{field}");
    }
    assert_eq!(status.get("unavailableReplicas"), None, "a zero is left out");
    let empty = replica_set_status(&set(&deployment, 0, 0), at(0));
    assert_eq!(empty, serde_json::json!({"replicas": 0}));
}

#[test]
fn the_pods_of_an_old_template_are_not_updated() {
    let mut deployment = deployment(3);
    let old = set(&deployment, 3, 3);
    deployment.set(&["spec", "template", "spec", "hostname"], "new");
    let (status, _) = deployment_status(&deployment, &[old], at(0));
    assert_eq!(status.get("updatedReplicas"), None, "a zero is left out");
    assert_eq!(status["replicas"], 3);
}
