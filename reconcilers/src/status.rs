//! Status as users see it, computed from documents and observations: of Pods, ReplicaSets and Deployments.
//!
//! Pure. Computed on every node for every object and stored nowhere, so equal input gives equal output: times are those of
//! the previous status wherever nothing changed. The loop around it is `controller::statuses`.

use std::time::Duration;

use schemas::Object;
use schemas::time::{from_rfc3339, to_rfc3339};
use serde_json::{Value, json};

use crate::deployment::{ReplicaSetState, new_replica_set_name, replicas, strategy};
use crate::nodes::NodeState;
use crate::pod_state::Now;
use crate::ports::Liveness;
use crate::replica_set::{Counts, counts, min_ready_seconds};

/// The reason of `Ready=False` while nobody hears of the pod's node.
pub const NODE_STATUS_UNKNOWN: &str = "NodeStatusUnknown";
/// Kubernetes' default of `spec.progressDeadlineSeconds`.
const PROGRESS_DEADLINE_SECONDS: i64 = 600;

/// What is known of a pod besides its object.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodKnowledge<'a> {
    /// The node that it is on, if it is a member.
    pub node: Option<&'a NodeState>,
    /// What that node says of it.
    pub observed: Option<&'a Value>,
    /// Why it fits nowhere.
    pub misfit: Option<&'a str>,
}

/// Computes `status` of a pod; `pod` has the previous one.
pub fn pod_status(pod: &Object, knowledge: PodKnowledge<'_>, unix_seconds: i64) -> Value {
    let previous = pod.pointer("/status").cloned().unwrap_or(Value::Null);
    let placed = !pod.str_at("/spec/nodeName").is_empty();
    let live = knowledge
        .node
        .is_some_and(|node| node.liveness == Liveness::Alive);
    let finished = matches!(previous["phase"].as_str(), Some("Succeeded" | "Failed"));
    let mut status = match knowledge.observed.filter(|_| placed) {
        Some(observed) => observed.clone(),
        // Its node was heard of before this agent started, or it ended: what was last known stays.
        None if placed && previous["phase"].is_string() && (!live || finished) => previous.clone(),
        None => json!({"phase": "Pending"}),
    };
    if !status.is_object() {
        status = json!({"phase": "Unknown"});
    }
    let scheduled = match (placed, knowledge.misfit) {
        (true, _) => Some(condition("PodScheduled", "True", "", "")),
        (false, Some(message)) => Some(condition("PodScheduled", "False", "Unschedulable", message)),
        (false, None) => None,
    };
    if let Some(scheduled) = scheduled {
        let since = from_rfc3339(pod.str_at("/metadata/creationTimestamp")).unwrap_or(unix_seconds);
        put_condition(&mut status, &previous, scheduled, since);
    }
    if placed && knowledge.node.is_some_and(|node| node.liveness == Liveness::Dead) && !finished {
        let message = "the node of this pod does not answer";
        put_condition(
            &mut status,
            &previous,
            condition("Ready", "False", NODE_STATUS_UNKNOWN, message),
            unix_seconds,
        );
    }
    status
}

/// Computes `status` of a ReplicaSet.
pub fn replica_set_status(set: &ReplicaSetState, now: Now) -> Value {
    let counts = counts(&set.pods, min_ready_seconds(&set.object), now);
    let mut status = json!({
        "replicas": counts.replicas,
        "fullyLabeledReplicas": counts.replicas,
        "readyReplicas": counts.ready,
        "availableReplicas": counts.available,
        "observedGeneration": set.object.generation(),
    });
    leave_out_zeros(&mut status, &["replicas"]);
    status
}

/// As Kubernetes writes counts: a zero is not there, but for those in `kept`.
fn leave_out_zeros(status: &mut Value, kept: &[&str]) {
    if let Value::Object(fields) = status {
        fields.retain(|name, value| *value != 0 || kept.contains(&name.as_str()));
    }
}

/// Computes `status` of a Deployment from its ReplicaSets; `deployment` has the previous one. Also returns when to look
/// again although nothing changes: at the progress deadline.
pub fn deployment_status(
    deployment: &Object,
    sets: &[ReplicaSetState],
    now: Now,
) -> (Value, Option<Duration>) {
    let new_name = new_replica_set_name(deployment, sets).unwrap_or_default();
    let mut total = Counts::default();
    let mut updated = 0;
    for set in sets {
        let counts = counts(&set.pods, min_ready_seconds(&set.object), now);
        total.replicas += counts.replicas;
        total.ready += counts.ready;
        total.available += counts.available;
        if set.object.name() == new_name {
            updated += counts.replicas;
        }
    }
    let wanted = replicas(deployment);
    let previous = deployment.pointer("/status").cloned().unwrap_or(Value::Null);
    let mut status = json!({
        "observedGeneration": deployment.generation(),
        "replicas": total.replicas,
        "updatedReplicas": updated,
        "readyReplicas": total.ready,
        "availableReplicas": total.available,
        "unavailableReplicas": total.replicas.max(wanted).saturating_sub(total.available),
    });
    leave_out_zeros(&mut status, &[]);
    let minimum = wanted.saturating_sub(strategy(deployment).max_unavailable(wanted));
    let available = if total.available >= minimum {
        condition(
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        condition(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    put_updated_condition(&mut status, &previous, available, now.unix_seconds, false);
    let is_complete = updated == wanted && total.replicas == wanted && total.available >= wanted;
    let again = progress(deployment, &mut status, &previous, is_complete, &new_name, now);
    (status, again)
}

/// Adds the condition `Progressing`, which `kubectl rollout status` reads.
fn progress(
    deployment: &Object,
    status: &mut Value,
    previous: &Value,
    is_complete: bool,
    new_name: &str,
    now: Now,
) -> Option<Duration> {
    let deadline = deployment
        .i64_at("/spec/progressDeadlineSeconds")
        .unwrap_or(PROGRESS_DEADLINE_SECONDS);
    let before = find_condition(previous, "Progressing");
    let reason = before
        .and_then(|before| before["reason"].as_str())
        .unwrap_or_default();
    let same_generation = previous["observedGeneration"] == status["observedGeneration"];
    let is_paused = deployment.pointer("/spec/paused").and_then(Value::as_bool) == Some(true);
    if is_paused {
        let paused = condition(
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused",
        );
        put_updated_condition(status, previous, paused, now.unix_seconds, false);
        return None;
    }
    if is_complete || (same_generation && reason == "NewReplicaSetAvailable") {
        // A pod that fails after the rollout is not a failure of the rollout.
        let message = format!("ReplicaSet \"{new_name}\" has successfully progressed.");
        let complete = condition("Progressing", "True", "NewReplicaSetAvailable", &message);
        put_updated_condition(status, previous, complete, now.unix_seconds, false);
        return None;
    }
    let number = |status: &Value, field: &str| status[field].as_i64().unwrap_or_default();
    let grew = ["updatedReplicas", "readyReplicas", "availableReplicas"]
        .iter()
        .any(|field| number(status, field) > number(previous, field));
    let old = |status: &Value| number(status, "replicas") - number(status, "updatedReplicas");
    let progressed = !same_generation || grew || old(status) < old(previous) || reason == "DeploymentPaused";
    let last = before
        .and_then(|before| before["lastUpdateTime"].as_str())
        .and_then(from_rfc3339);
    let last = last.filter(|_| !progressed).unwrap_or(now.unix_seconds);
    let rest = last.saturating_add(deadline).saturating_sub(now.unix_seconds);
    if rest <= 0 || (reason == "ProgressDeadlineExceeded" && !progressed) {
        let message = format!("ReplicaSet \"{new_name}\" has timed out progressing.");
        let late = condition("Progressing", "False", "ProgressDeadlineExceeded", &message);
        put_updated_condition(status, previous, late, now.unix_seconds, false);
        return None;
    }
    let message = format!("ReplicaSet \"{new_name}\" is progressing.");
    let moving = condition("Progressing", "True", "ReplicaSetUpdated", &message);
    put_updated_condition(status, previous, moving, now.unix_seconds, progressed);
    Some(Duration::from_secs(rest.unsigned_abs()))
}

pub(crate) fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let mut condition = json!({"type": kind, "status": status});
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    condition
}

/// Returns the condition of a type.
pub(crate) fn find_condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Puts a condition into `status`. Its transition time is the one it had if its status is the same, else `since`.
pub(crate) fn put_condition(status: &mut Value, previous: &Value, mut condition: Value, since: i64) {
    let kind = condition["type"].as_str().unwrap_or_default().to_owned();
    let same = |before: &&Value| before["status"] == condition["status"];
    let kept = find_condition(status, &kind)
        .filter(same)
        .or(find_condition(previous, &kind).filter(same));
    let time = kept
        .and_then(|kept| kept["lastTransitionTime"].as_str())
        .map(str::to_owned);
    condition["lastTransitionTime"] = time.unwrap_or_else(|| to_rfc3339(since)).into();
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|condition| condition["type"] == kind.as_str())
    {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
}

/// As [`put_condition`], with `lastUpdateTime`: that of the previous one, unless it says something else now or is
/// `touched`.
fn put_updated_condition(
    status: &mut Value,
    previous: &Value,
    mut condition: Value,
    unix_seconds: i64,
    touched: bool,
) {
    let kind = condition["type"].as_str().unwrap_or_default().to_owned();
    let same = find_condition(previous, &kind).filter(|before| {
        !touched && before["reason"] == condition["reason"] && before["status"] == condition["status"]
    });
    let time = same
        .and_then(|same| same["lastUpdateTime"].as_str())
        .map(str::to_owned);
    condition["lastUpdateTime"] = time.unwrap_or_else(|| to_rfc3339(unix_seconds)).into();
    put_condition(status, previous, condition, unix_seconds);
}

#[cfg(test)]
mod tests;
