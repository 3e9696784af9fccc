//! Reads what planners plan from out of the store and gossip.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};
use store::View;

use super::Context;
use crate::deployment::ReplicaSetState;
use crate::nodes::Nodes;
use crate::ownership::{Holding, holding};
use crate::pod_state::{Graces, Now, PodState};
use crate::ports::{Cluster, Liveness, Moment, NodeFacts};
use crate::workload::{Tree, root};

/// Earlier forms of an object that are looked at for one that is valid. Two edits made it invalid; these are some more.
const FORMS: usize = 20;

impl Context {
    pub(super) fn objects(&self, kind: Kind, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.store
            .list(kind, namespace)
            .items
            .into_iter()
            .map(|view| view.object)
            .collect()
    }

    /// Lists objects for planners that go on while some are not valid: of those, the last form that was
    /// ([`crate::validity`]).
    pub(crate) fn settled_objects(&self, kind: Kind, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let views = self.store.views(kind, namespace);
        // What is computed is not what somebody wrote beside it.
        let is_computed =
            |view: &View| !view.stored || (kind.row().derived && view.object.controller().is_some());
        let settled = views.filter_map(|view| match is_computed(&view) {
            true => Some(view.object),
            false => self.settled(&view.object),
        });
        settled.collect()
    }

    /// Lists what users wrote of nodes, in forms that are valid.
    pub(super) fn written_nodes(&self) -> Vec<Arc<Object>> {
        let written = self.store.written(Kind::Node);
        written.iter().filter_map(|node| self.settled(node)).collect()
    }

    pub(crate) fn settled(&self, object: &Arc<Object>) -> Option<Arc<Object>> {
        self.faults.settled(object, |key| {
            let history = self.store.history(key, FORMS);
            let changes = history.map(|history| history.changes).unwrap_or_default();
            let (store, key) = (self.store.clone(), key.clone());
            changes
                .into_iter()
                .rev()
                .filter_map(move |change| store.object_at(&key, Some(&change.id)).ok())
        })
    }

    pub(super) fn object(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.store.get(key).map(|view| view.object)
    }

    pub(super) fn now(&self) -> Now {
        Now {
            moment: self.clock.now(),
            unix_seconds: self.clock.unix_seconds(),
        }
    }

    pub(super) fn nodes(&self) -> Nodes {
        let cluster = self.cluster.borrow().clone();
        Nodes::read(&self.objects(Kind::Member, None), &self.written_nodes(), &cluster)
    }

    /// Tells whether this node works for an object with this root.
    pub(super) fn holding(&self, root: &ObjectKey) -> Holding {
        holding(root, &self.node, &self.nodes(), self.clock.now())
    }

    /// Follows controller references from an object to the key of its root.
    pub(super) fn root(&self, object: &Object) -> Option<ObjectKey> {
        root(object, |key| self.object(key))
    }

    /// Tells whether the Member `<id>/<uid>` was removed from the cluster.
    fn is_removed_member(&self, member: &str) -> bool {
        member
            .split_once('/')
            .is_some_and(|(id, uid)| self.store.is_removed(&ObjectKey::cluster(Kind::Member, id), uid))
    }

    pub(super) fn pod_state(&self, pod: Arc<Object>, nodes: &Nodes, graces: Graces, now: Moment) -> PodState {
        PodState::read(pod, nodes, |member| self.is_removed_member(member), graces, now)
    }

    /// Gathers all that a root owns; `pods` are at least those of its namespace.
    pub(super) fn tree(
        &self,
        key: &ObjectKey,
        pods: &[Arc<Object>],
        nodes: &Nodes,
        graces: Graces,
        now: Moment,
    ) -> Tree {
        let deployment = match key.kind {
            Kind::Deployment => self.object(key),
            _ => None,
        };
        let all_sets: BTreeMap<ObjectKey, Arc<Object>> = self
            .objects(Kind::ReplicaSet, Some(&key.namespace))
            .into_iter()
            .filter_map(|set| Some((set.key()?, set)))
            .collect();
        let root_of = |object: &Object| root(object, |key| all_sets.get(key).cloned());
        let mut owned: BTreeMap<String, Vec<PodState>> = BTreeMap::new();
        let mut tree = Tree::default();
        for pod in pods.iter().filter(|pod| pod.namespace() == key.namespace) {
            if root_of(pod).as_ref() == Some(key) {
                let state = self.pod_state(pod.clone(), nodes, graces, now);
                let owner = pod.controller().map(|owner| owner.uid).unwrap_or_default();
                owned.entry(owner).or_default().push(state);
            }
        }
        for set in all_sets.values().filter(|set| root_of(set).as_ref() == Some(key)) {
            let is_ours = match &deployment {
                Some(deployment) => set
                    .controller()
                    .is_some_and(|owner| owner.uid == deployment.uid()),
                None => true,
            };
            if is_ours {
                let own = owned.remove(set.uid()).unwrap_or_default();
                let mut state = ReplicaSetState::new(set.clone(), own);
                let named_like_its_own = |pod: &&Object| {
                    let rest = pod.name().strip_prefix(set.name());
                    rest.is_some_and(|rest| rest.starts_with('-'))
                };
                let others = pods
                    .iter()
                    .map(AsRef::as_ref)
                    .filter(|pod| pod.namespace() == key.namespace)
                    .filter(named_like_its_own)
                    .filter(|pod| pod.controller().is_none_or(|owner| owner.uid != set.uid()));
                state.taken_names.extend(others.map(|pod| pod.name().to_owned()));
                let prefix = format!("{}-", set.name());
                let removed = self.store.removed_names(Kind::Pod, &key.namespace, &prefix);
                state.taken_names.extend(removed);
                tree.replica_sets.push(state);
            }
        }
        tree.loose = owned.into_values().flatten().collect();
        tree.deployment = deployment;
        tree
    }

    /// Returns the keys of all roots of workloads.
    pub(super) fn roots(&self) -> BTreeSet<ObjectKey> {
        [Kind::Deployment, Kind::ReplicaSet, Kind::Pod]
            .into_iter()
            .flat_map(|kind| self.objects(kind, None))
            .filter_map(|object| self.root(&object))
            .collect()
    }
}

/// What planners of workloads read of the nodes in gossip: it changes rarely, while the pods' status changes often.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct NodesSeen(BTreeMap<String, (Liveness, Moment, bool, NodeFacts)>);

impl NodesSeen {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes.iter();
        Self(
            nodes
                .map(|(id, node)| {
                    let facts = node.facts.clone();
                    (id.0.clone(), (node.liveness, node.since, node.in_sync, facts))
                })
                .collect(),
        )
    }
}
