//! One plan for all that a root controller owns: Deployment → ReplicaSets → Pods, a ReplicaSet of its own, a lone Pod.
//!
//! Pure. What it reads is gathered, and what it decides is done, in `controller::workloads`.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};

use crate::action::{Action, Plan};
use crate::deployment::{self, ReplicaSetState};
use crate::placement::Placement;
use crate::pod_state::{Host, MEMBER_ANNOTATION, Now, PodState};
use crate::replica_set::{self, Chooser, Pods};

/// A root controller and all that it owns, by controller reference and uid.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The root, if it is a Deployment that exists.
    pub deployment: Option<Arc<Object>>,
    pub replica_sets: Vec<ReplicaSetState>,
    /// Pods whose ReplicaSet is not there, or that have none.
    pub loose: Vec<PodState>,
}

impl Tree {
    /// Drops what has a fault, and what plans for that: it stays as it is.
    pub fn holding_still(mut self, has_fault: impl Fn(&Object) -> bool) -> Self {
        let holds_still = |object: &Object| !object.is_terminating() && has_fault(object);
        let before = self.replica_sets.len();
        self.replica_sets.retain(|set| !holds_still(&set.object));
        let is_whole = self.replica_sets.len() == before;
        self.deployment
            .take_if(|deployment| !is_whole || holds_still(deployment));
        self
    }

    /// Drops what is wanted, so that planning only takes the last steps for what is being deleted.
    pub fn ending(self) -> Self {
        let sets = self.replica_sets.into_iter();
        let sets = sets.flat_map(|set| set.pods.into_iter().chain(set.strangers));
        let mut loose: Vec<PodState> = sets.chain(self.loose).collect();
        loose.retain(|pod| pod.object.is_terminating());
        Self {
            loose,
            ..Self::default()
        }
    }
}

/// Follows controller references upwards to the key that decides who works for an object. `get` returns an object if it
/// is there; a reference to an object that is not there (yet, or any more) is followed by name.
pub fn root(object: &Object, get: impl Fn(&ObjectKey) -> Option<Arc<Object>>) -> Option<ObjectKey> {
    /// Kubernetes has chains of three (CronJob, Job, Pod); a longer one is a cycle.
    const LONGEST_CHAIN: usize = 4;
    let mut key = object.key()?;
    let mut owner = object.controller();
    for _ in 0..LONGEST_CHAIN {
        let Some(reference) = owner else { break };
        let Some(kind) = Kind::from_api(&reference.api_version, &reference.kind) else {
            break;
        };
        key = ObjectKey::new(kind, key.namespace, reference.name);
        owner = get(&key).and_then(|object| object.controller());
    }
    Some(key)
}

/// Plans for one root. `placement` carries the pods of the whole cluster.
pub fn plan(mut tree: Tree, mut placement: Placement, now: Now) -> Plan {
    let mut plan = Plan::default();
    if let Some(deployment) = tree.deployment.filter(|deployment| !deployment.is_terminating()) {
        deployment::plan(&deployment, &mut tree.replica_sets, now, &mut plan);
    }
    for pod in tree
        .replica_sets
        .iter()
        .flat_map(|set| &set.pods)
        .chain(&tree.loose)
    {
        if let Host::Away(Some(rest)) = pod.host {
            plan.look_again(rest);
        }
        remember_member(pod, &placement, &mut plan);
    }
    let mut carried: BTreeMap<String, u32> = BTreeMap::new();
    for pod in tree
        .replica_sets
        .iter()
        .flat_map(|set| &set.pods)
        .filter(|pod| pod.is_active())
    {
        if pod.host != Host::None {
            *carried.entry(pod.node().to_owned()).or_default() += 1;
        }
    }
    for set in &tree.replica_sets {
        if set.object.is_terminating() {
            end_what_is_deleted(&set.pods, &mut plan);
            continue;
        }
        let pods = Pods {
            replica_set: &set.object,
            replicas: set.replicas,
            pods: &set.pods,
            taken_names: &set.taken_names,
        };
        let strangers = set.strangers.iter().map(|pod| Action::Release {
            key: pod.key(),
            uid: pod.object.uid().to_owned(),
            owner: set.object.uid().to_owned(),
        });
        plan.actions.extend(strangers);
        replica_set::plan(pods, &mut carried, &mut placement, now, &mut plan);
    }
    end_what_is_deleted(&tree.loose, &mut plan);
    for pod in tree
        .loose
        .iter()
        .filter(|pod| pod.is_active() && pod.host == Host::None)
    {
        let mut chooser = Chooser {
            own: BTreeMap::new(),
            carried: &mut carried,
            placement: &mut placement,
        };
        replica_set::place(pod, &mut chooser, &mut plan);
    }
    plan
}

/// Writes down which member a pod is on whose node a user named, so that it is known to be gone when that is.
fn remember_member(pod: &PodState, placement: &Placement, plan: &mut Plan) {
    if let Some(node) = placement.node(pod.node())
        && pod.object.annotation(MEMBER_ANNOTATION).is_none()
    {
        plan.actions.push(Action::Set {
            key: pod.key(),
            uid: pod.object.uid().to_owned(),
            replicas: None,
            min_ready_seconds: None,
            annotations: BTreeMap::from([(MEMBER_ANNOTATION.to_owned(), node.member())]),
        });
    }
}

/// Takes the last step for pods that are being deleted and have no node to take it; a pod on a node that left the
/// cluster is gone with it.
fn end_what_is_deleted(pods: &[PodState], plan: &mut Plan) {
    for pod in pods {
        if pod.object.is_terminating() || pod.host == Host::Removed {
            plan.actions.extend(pod.end());
        }
    }
}

#[cfg(test)]
mod tests;
