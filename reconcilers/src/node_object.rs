//! The Node object that users see: computed from the Member document and from what the node says of itself.
//!
//! Pure. What users write to a Node (cordon, labels, taints) is a document of its own, over which this is laid.

use schemas::quantity::Quantity;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Map, Value, json};
use store::PROTOCOL;

use crate::nodes::{NodeState, UNSCHEDULABLE_TAINT};
use crate::ports::{Liveness, NodeFacts};
use crate::status::{NODE_STATUS_UNKNOWN, condition, put_condition};

/// Computes the Node object of a member. `written` is the document with what users wrote, `previous` the Node as it was
/// last shown.
pub fn node_object(
    node: &NodeState,
    member: &Object,
    written: Option<&Object>,
    previous: Option<&Object>,
    unix_seconds: i64,
) -> Object {
    let mut object = Object::new(&ObjectKey::cluster(Kind::Node, &node.name));
    for field in ["uid", "creationTimestamp"] {
        if let Some(value) = member.pointer(&format!("/metadata/{field}")) {
            object.set(&["metadata", field], value.clone());
        }
    }
    if node.seen {
        let labels: Map<String, Value> = node
            .facts
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        object.set(&["metadata", "labels"], labels);
    }
    let range = member.str_at("/spec/podCIDR");
    if !range.is_empty() {
        object.set(&["spec", "podCIDR"], range);
        object.set(&["spec", "podCIDRs"], json!([range]));
    }
    if node.unschedulable {
        object.set(&["spec", "unschedulable"], true);
        object.set(&["spec", "taints"], cordon_taints(written));
    }
    object.set(&["status"], status(node, previous, unix_seconds));
    object
}

/// The users' taints and that of a cordon.
fn cordon_taints(written: Option<&Object>) -> Vec<Value> {
    let users = written
        .and_then(|written| written.pointer("/spec/taints"))
        .and_then(Value::as_array);
    let users = users.into_iter().flatten();
    let cordon = json!({"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"});
    users
        .filter(|taint| taint["key"] != UNSCHEDULABLE_TAINT)
        .cloned()
        .chain([cordon])
        .collect()
}

fn status(node: &NodeState, previous: Option<&Object>, unix_seconds: i64) -> Value {
    let previous = previous
        .and_then(|node| node.pointer("/status"))
        .cloned()
        .unwrap_or(Value::Null);
    let mut addresses = Vec::new();
    if let Some(address) = node.address {
        addresses.push(json!({"type": "InternalIP", "address": address.to_string()}));
    }
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    let mut status = json!({"addresses": addresses});
    if node.seen {
        let resources = resources(&node.facts);
        status["capacity"] = resources.clone();
        status["allocatable"] = resources;
        status["nodeInfo"] = node_info(&node.facts);
    } else {
        // This agent has not heard of it yet.
        for field in ["capacity", "allocatable", "nodeInfo"] {
            if !previous[field].is_null() {
                status[field] = previous[field].clone();
            }
        }
    }
    put_condition(&mut status, &previous, ready(node), unix_seconds);
    put_condition(&mut status, &previous, disk_pressure(node), unix_seconds);
    for condition in [unreadable(node), other_protocol(node), stale(node), rescued(node)]
        .into_iter()
        .flatten()
    {
        put_condition(&mut status, &previous, condition, unix_seconds);
    }
    // Heartbeats are gossip: what is shown changes when something changed.
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = condition["lastTransitionTime"].clone();
    }
    status
}

fn ready(node: &NodeState) -> Value {
    let unknown = |message: &str| condition("Ready", "Unknown", NODE_STATUS_UNKNOWN, message);
    match node.liveness {
        Liveness::Alive if !node.facts.podman_error.is_empty() => condition(
            "Ready",
            "False",
            "ContainerRuntimeNotReady",
            &node.facts.podman_error,
        ),
        Liveness::Alive if !node.facts.store_error.is_empty() => {
            condition("Ready", "False", "StoreFailed", &node.facts.store_error)
        }
        Liveness::Alive => condition(
            "Ready",
            "True",
            "KubeletReady",
            "the agent answers and Podman is there",
        ),
        Liveness::Stopped => unknown("the agent was stopped; containers keep running"),
        Liveness::AgentDown => unknown("the agent does not answer, the host does"),
        Liveness::Dead => unknown("the node does not answer"),
    }
}

/// Kubernetes' condition, of the disk that the store is on.
fn disk_pressure(node: &NodeState) -> Value {
    let full = &node.facts.disk_full;
    match node.liveness {
        Liveness::Alive if full.is_empty() => condition(
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "the store has room on its disk",
        ),
        Liveness::Alive => condition("DiskPressure", "True", "KubeletHasDiskPressure", full),
        Liveness::Stopped | Liveness::AgentDown | Liveness::Dead => condition(
            "DiskPressure",
            "Unknown",
            NODE_STATUS_UNKNOWN,
            "the node says nothing",
        ),
    }
}

/// Ours: shown while a node lacks objects that it had.
fn unreadable(node: &NodeState) -> Option<Value> {
    let count = node.facts.unreadable_records;
    (node.liveness == Liveness::Alive && count > 0).then(|| {
        let message = format!("{count} records of the store cannot be read, and no other node has brought the objects again yet: see the agent's log");
        condition("StoreIncomplete", "True", "RecordsUnreadable", &message)
    })
}

/// Ours: shown while a node that was away for too long catches up.
fn stale(node: &NodeState) -> Option<Value> {
    (node.liveness == Liveness::Alive && node.facts.catching_up).then(|| {
        let message = "it was away while old deletions were forgotten, and takes no writes until it has compared what it holds with the others";
        condition("Stale", "True", "CatchingUp", message)
    })
}

/// Ours: shown as long as files lie in the node's folder `rescued`.
fn rescued(node: &NodeState) -> Option<Value> {
    let count = node.facts.rescued;
    (node.liveness == Liveness::Alive && count > 0).then(|| {
        let message = format!("{count} objects that were changed through this node could not be kept as they were: look at the files in rescued/ of its data directory, and remove them");
        condition("Rescued", "True", "EditsNotKept", &message)
    })
}

/// Ours: shown of a node whose store does not talk to this one's, after an upgrade of some of the agents.
fn other_protocol(node: &NodeState) -> Option<Value> {
    let theirs = node.facts.store_protocol?;
    (theirs != PROTOCOL).then(|| {
        let agent = &node.facts.agent_version;
        let message = format!("its agent ({agent}) speaks version {theirs} of the stores' protocol, that of the node you ask {PROTOCOL}: no changes travel between them until all agents are of one release");
        condition("StoreUnreachable", "True", "OtherProtocol", &message)
    })
}

fn resources(facts: &NodeFacts) -> Value {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    json!({
        "cpu": Quantity::from_millis(signed(facts.cpu_millis)).to_string(),
        "memory": Quantity::from_bytes(signed(facts.memory_bytes)).to_string(),
        "pods": facts.max_pods.to_string(),
    })
}

fn node_info(facts: &NodeFacts) -> Value {
    json!({
        "architecture": facts.architecture,
        "bootID": "",
        "containerRuntimeVersion": format!("podman://{}", facts.podman_version),
        "kernelVersion": facts.kernel_version,
        "kubeProxyVersion": "",
        "kubeletVersion": facts.agent_version,
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": facts.os_image,
        "systemUUID": "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FAKE_EPOCH_UNIX_SECONDS as EPOCH;
    use crate::nodes::testing::node;
    use crate::ports::Moment;

    fn member() -> Object {
        let mut member = Object::new(&ObjectKey::cluster(Kind::Member, "id"));
        member.set(&["metadata", "uid"], "member-uid");
        member.set(&["spec"], json!({"name": "a", "podCIDR": "10.244.3.0/24"}));
        member
    }

    /// Shows a node twice, an hour apart, and expects the same.
    fn shown(
        node: &NodeState,
        written: Option<&Object>,
        previous: Option<&Object>,
        unix_seconds: i64,
    ) -> Object {
        let object = node_object(node, &member(), written, previous, unix_seconds);
        let again = node_object(node, &member(), written, Some(&object), unix_seconds + 3600);
        assert_eq!(again, object, "a node object is stable");
        object
    }

    #[test]
    fn a_node_shows_what_it_is_and_whether_it_is_ready() {
        let mut alive = node("a");
        alive.address = "10.0.0.1".parse().ok();
        alive.facts.podman_version = "4.3.1".into();
        let object = shown(&alive, None, None, EPOCH);
        for (pointer, expected) in [
            ("/metadata/uid", "member-uid"),
            ("/metadata/labels/kubernetes.io~1hostname", "a"),
            ("/spec/podCIDR", "10.244.3.0/24"),
            ("/status/capacity/cpu", "4"),
            ("/status/allocatable/memory", "8Gi"),
            ("/status/capacity/pods", "110"),
            ("/status/nodeInfo/containerRuntimeVersion", "podman://4.3.1"),
            ("/status/addresses/0/address", "10.0.0.1"),
            ("/status/conditions/0/status", "True"),
        ] {
            assert_eq!(object.str_at(pointer), expected, "{pointer}");
        }
        let mut full = alive.clone();
        full.facts.disk_full = "the disk of /data is full".into();
        full.facts.store_error = "the disk failed".into();
        full.facts.unreadable_records = 2;
        full.facts.rescued = 3;
        full.facts.catching_up = true;
        let in_trouble = shown(&full, None, Some(&object), EPOCH + 30);
        for (condition, status, reason) in [
            ("/status/conditions/0", "False", "StoreFailed"),
            ("/status/conditions/1", "True", "KubeletHasDiskPressure"),
            ("/status/conditions/2", "True", "RecordsUnreadable"),
            ("/status/conditions/3", "True", "CatchingUp"),
            ("/status/conditions/4", "True", "EditsNotKept"),
        ] {
            assert_eq!(in_trouble.str_at(&format!("{condition}/status")), status);
            assert_eq!(in_trouble.str_at(&format!("{condition}/reason")), reason);
        }
        let mut older = alive.clone();
        older.facts.store_protocol = Some(PROTOCOL - 1);
        let older = shown(&older, None, Some(&object), EPOCH + 30);
        assert_eq!(older.str_at("/status/conditions/2/reason"), "OtherProtocol");
        assert_eq!(object.str_at("/status/conditions/1/status"), "False");
        assert_eq!(object.pointer("/status/conditions/2"), None);
        let dead = alive.liveness(Liveness::Dead, Moment::default());
        let object = shown(&dead, None, Some(&object), EPOCH + 60);
        assert_eq!(object.str_at("/status/conditions/0/status"), "Unknown");
        let since = object.str_at("/status/conditions/0/lastTransitionTime");
        assert_eq!(since, schemas::time::to_rfc3339(EPOCH + 60));
    }

    #[test]
    fn a_cordoned_node_shows_the_taint_beside_the_users() {
        let mut cordoned = node("a");
        cordoned.unschedulable = true;
        let mut written = Object::new(&ObjectKey::cluster(Kind::Node, "a"));
        written.set(
            &["spec", "taints"],
            json!([{"key": "own", "effect": "NoSchedule"}]),
        );
        let object = shown(&cordoned, Some(&written), None, EPOCH);
        let keys: Vec<_> = object
            .pointer("/spec/taints")
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|t| &t["key"])
            .collect();
        assert_eq!(keys, ["own", UNSCHEDULABLE_TAINT]);
    }
}
