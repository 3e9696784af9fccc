//! How many pods a PodDisruptionBudget lets go now. Pure; [`crate::controller::allowance`] reads what it counts.
//!
//! Source: Kubernetes, `pkg/controller/disruption`. Pods of what keeps no pods here (StatefulSets and the like) count as
//! those of nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemas::int_or_string::{Rounding, scaled};
use schemas::selector::LabelSelector;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use crate::status::{condition, put_condition};

/// What a budget counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowance {
    /// Pods that there should be.
    pub expected: i64,
    /// Pods that are ready and not on their way out.
    pub healthy: i64,
    /// Pods that must stay healthy.
    pub desired: i64,
}

impl Allowance {
    /// Pods that may go now.
    pub fn allowed(self) -> i64 {
        if self.expected == 0 {
            return 0;
        }
        (self.healthy - self.desired).max(0)
    }

    /// Returns the `status` of a budget, which has the previous one.
    pub fn status(self, budget: &Object, unix_seconds: i64) -> Value {
        let previous = budget.pointer("/status").cloned().unwrap_or_default();
        let mut status = json!({
            "observedGeneration": budget.generation(),
            "disruptionsAllowed": self.allowed(),
            "currentHealthy": self.healthy,
            "desiredHealthy": self.desired,
            "expectedPods": self.expected,
        });
        let (holds, reason) = match self.allowed() {
            0 => ("False", "InsufficientPods"),
            _ => ("True", "SufficientPods"),
        };
        let mut condition = condition("DisruptionAllowed", holds, reason, "");
        // Of a `metav1.Condition` clients ask for a message, be it empty.
        condition["message"] = "".into();
        condition["observedGeneration"] = budget.generation().into();
        put_condition(&mut status, &previous, condition, unix_seconds);
        status
    }
}

/// Returns the selector of the pods that a budget counts in its namespace. Without one it counts none, with an empty one all.
pub(crate) fn selector(budget: &Object) -> Option<LabelSelector> {
    let selector = budget
        .pointer("/spec/selector")
        .filter(|selector| !selector.is_null());
    LabelSelector::from_object(selector?).ok()
}

/// Tells whether a budget counts a pod of its namespace.
pub fn selects(budget: &Object, pod: &Object) -> bool {
    selector(budget).is_some_and(|selector| selector.matches_object(pod))
}

/// Tells whether a pod is ready.
pub fn is_ready(pod: &Object) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Counts for a budget. `pods` are those that it selects; `get` returns what keeps them.
pub(crate) fn count(
    budget: &Object,
    pods: &[Arc<Object>],
    get: impl Fn(&ObjectKey) -> Option<Arc<Object>>,
) -> Allowance {
    // What keeps the pods, by uid: what counts is how many it is to keep, also while some are missing.
    let mut kept: BTreeMap<String, i64> = BTreeMap::new();
    for keeper in pods.iter().filter_map(|pod| keeper(pod, &get)) {
        kept.insert(
            keeper.uid().to_owned(),
            keeper.i64_at("/spec/replicas").unwrap_or(1),
        );
    }
    // Peers may say any number.
    let kept = kept.into_values().fold(0, i64::saturating_add);
    let limit = |field: &str| {
        let value = budget.pointer(&format!("/spec/{field}"))?;
        serde_json::from_value::<IntOrString>(value.clone()).ok()
    };
    let of = |limit: &IntOrString, total: i64| {
        let total = i32::try_from(total).unwrap_or(i32::MAX);
        i64::from(scaled(limit, total, Rounding::Up).unwrap_or(i32::MAX))
    };
    let (expected, desired) = match (limit("maxUnavailable"), limit("minAvailable")) {
        (Some(most), _) => (kept, kept.saturating_sub(of(&most, kept)).max(0)),
        (None, Some(IntOrString::Int(least))) => (pods.len() as i64, i64::from(least)),
        (None, Some(least)) => (kept, of(&least, kept)),
        // As Kubernetes: one must stay.
        (None, None) => (pods.len() as i64, 1),
    };
    let healthy = pods.iter().filter(|pod| is_ready(pod) && !pod.is_terminating());
    Allowance {
        expected,
        healthy: healthy.count() as i64,
        desired,
    }
}

/// The object that a user scales to have more pods like this.
fn keeper(pod: &Object, get: &impl Fn(&ObjectKey) -> Option<Arc<Object>>) -> Option<Arc<Object>> {
    let owner_of = |object: &Object| {
        let owner = object.controller()?;
        let kind = Kind::from_api(&owner.api_version, &owner.kind)?;
        get(&ObjectKey::new(kind, object.namespace(), owner.name)).filter(|found| found.uid() == owner.uid)
    };
    let set = owner_of(pod)?;
    Some(owner_of(&set).unwrap_or(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, name: &str, owner: Option<&Object>, rest: Value) -> Object {
        let mut object = Object::new(&ObjectKey::new(kind, "default", name));
        object.set(&["metadata", "uid"], format!("{name}-uid"));
        if let Some(owner) = owner {
            let reference = crate::replica_set::controller_reference(owner);
            object.set(&["metadata", "ownerReferences"], json!([reference]));
        }
        for (field, value) in rest.as_object().into_iter().flatten() {
            object.set(&[field], value.clone());
        }
        object
    }

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_stay() {
        let web = object(Kind::Deployment, "web", None, json!({"spec": {"replicas": 10}}));
        let set = object(
            Kind::ReplicaSet,
            "web-1",
            Some(&web),
            json!({"spec": {"replicas": 9}}),
        );
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let pod = |name: &str, rest: &Value| Arc::new(object(Kind::Pod, name, Some(&set), rest.clone()));
        // Eight of ten are there, one of them is not ready.
        let mut pods: Vec<_> = (0..7).map(|n| pod(&format!("p{n}"), &ready)).collect();
        pods.push(pod("unready", &json!({})));
        let all = [web, set.clone()].map(Arc::new);
        let get = |key: &ObjectKey| all.iter().find(|one| one.key().as_ref() == Some(key)).cloned();
        for (spec, expected, desired, allowed) in [
            (json!({"minAvailable": 5}), 8, 5, 2),
            (json!({"minAvailable": 8}), 8, 8, 0),
            (json!({"minAvailable": "55%"}), 10, 6, 1),
            (json!({"maxUnavailable": 4}), 10, 6, 1),
            (json!({"maxUnavailable": "30%"}), 10, 7, 0),
            (json!({"maxUnavailable": "100%"}), 10, 0, 7),
            (json!({}), 8, 1, 6),
        ] {
            let budget = object(Kind::PodDisruptionBudget, "web", None, json!({"spec": spec}));
            let found = count(&budget, &pods, get);
            assert_eq!(
                (found.expected, found.healthy, found.desired, found.allowed()),
                (expected, 7, desired, allowed),
                "{spec}"
            );
            let status = found.status(&budget, 0);
            assert_eq!(status["disruptionsAllowed"], allowed, "{spec}");
            let condition = &status["conditions"][0];
            assert_eq!(condition["status"], if allowed > 0 { "True" } else { "False" });
            assert_eq!(condition["message"], "");
            assert_eq!(condition["observedGeneration"], status["observedGeneration"]);
        }
        let budget = object(
            Kind::PodDisruptionBudget,
            "web",
            None,
            json!({"spec": {"maxUnavailable": 1}}),
        );
        let lone: Vec<_> = vec![Arc::new(object(Kind::Pod, "lone", None, ready))];
        assert_eq!(
            count(&budget, &lone, get).allowed(),
            0,
            "nobody says how many there should be"
        );
    }

    #[test]
    fn a_budget_counts_the_pods_that_it_selects() {
        let pod = object(Kind::Pod, "a", None, json!({}));
        let budget = |spec: Value| object(Kind::PodDisruptionBudget, "b", None, json!({"spec": spec}));
        assert!(selects(&budget(json!({"selector": {}})), &pod));
        assert!(!selects(&budget(json!({})), &pod));
        assert!(!selects(
            &budget(json!({"selector": {"matchLabels": {"app": "x"}}})),
            &pod
        ));
    }
}
