//! Shows status: projects what [`crate::status`] computes over Pods, ReplicaSets and Deployments, and what budgets allow. Of other kinds
//! only that an object is not valid, if it is not: nothing works for them, or, for Namespaces, the API itself shows their phase.
//!
//! Runs on every node for every object and writes nothing durable.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{KINDS, Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{Store, WatchEvent, WatchScope};

use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::budget::{Allowance, count, selector, selects};
use crate::ownership::Holding;
use crate::placement::Placement;
use crate::pod_state::{Graces, Host};
use crate::ports::{Cluster, EventKind, EventRecord};
use crate::status::{PodKnowledge, deployment_status, pod_status, replica_set_status};
use crate::validity::{MERGED_INVALID, show_fault};

/// What one run computes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum StatusKey {
    /// A pod on a node.
    Pod(ObjectKey),
    /// All pods that wait for a node: why none takes them is computed from one sum of what the nodes carry.
    Unplaced,
    /// The ReplicaSets of a root, and the root.
    Root(ObjectKey),
    /// A budget.
    Budget(ObjectKey),
    /// An object that shows nothing but that it is not valid.
    Fault(ObjectKey),
}

const KINDS_WITH_STATUS: [Kind; 5] = [
    Kind::Member,
    Kind::Deployment,
    Kind::ReplicaSet,
    Kind::Pod,
    Kind::PodDisruptionBudget,
];

/// Tells whether no controller tells more of a kind than that an object is not valid.
fn is_alone(kind: Kind) -> bool {
    let told_of = matches!(
        kind,
        Kind::Pod
            | Kind::ReplicaSet
            | Kind::Deployment
            | Kind::Service
            | Kind::Endpoints
            | Kind::EndpointSlice
            | Kind::Ingress
            | Kind::Node
            | Kind::Event
            | Kind::PodDisruptionBudget
    );
    kind.row().served && !told_of
}

/// Who tells of workloads, in Events.
const COMPONENT: &str = "deployment-controller";
/// Who tells of merged objects that no controller tells more of.
pub(crate) const STORE: &str = "store";

/// The controller of status.
pub struct Statuses {
    context: Context,
    graces: Graces,
    seen: Mutex<Seen>,
}

/// What was known when events were last mapped to keys.
#[derive(Default)]
struct Seen {
    cluster: Option<Arc<Cluster>>,
    /// Every pod by uid, with the name of its node.
    pods: HashMap<String, (ObjectKey, String)>,
}

impl Statuses {
    pub fn new(context: Context, graces: Graces) -> Self {
        Self {
            context,
            graces,
            seen: Mutex::default(),
        }
    }

    /// The pods of which gossip says something else than before, and those of nodes that changed.
    fn changed_pods(&self, cluster: &Arc<Cluster>) -> BTreeSet<StatusKey> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.cluster.replace(cluster.clone());
        let mut changed = BTreeSet::new();
        for (id, node) in &cluster.nodes {
            let known = before.as_ref().and_then(|before| before.nodes.get(id));
            match known {
                Some(known) if Arc::ptr_eq(known, node) => {}
                Some(known) if known.liveness == node.liveness && known.facts == node.facts => {
                    let said = node
                        .pods
                        .iter()
                        .filter(|(uid, status)| known.pods.get(*uid) != Some(status));
                    let silent = known.pods.keys().filter(|uid| !node.pods.contains_key(*uid));
                    let uids = said.map(|(uid, _)| uid).chain(silent);
                    changed.extend(
                        uids.filter_map(|uid| seen.pods.get(uid))
                            .map(|(key, on)| status_key(key, on)),
                    );
                }
                // Those that wait for a node, too: another one may fit now.
                _ => {
                    let name = &node.facts.name;
                    let here = seen.pods.values().filter(|(_, on)| on.is_empty() || on == name);
                    changed.extend(here.map(|(key, on)| status_key(key, on)));
                }
            }
        }
        changed
    }

    /// Forgets pods that went unheard, in a gap of the watch.
    fn forget_pods(&self) {
        let pods = self.context.objects(Kind::Pod, None);
        let there: HashSet<&str> = pods.iter().map(|pod| pod.uid()).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.pods.retain(|uid, _| there.contains(uid.as_str()));
    }

    fn all_pods(&self) -> BTreeSet<StatusKey> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.pods.values().map(|(key, on)| status_key(key, on)).collect()
    }

    fn of_object(&self, object: &Object, key: &ObjectKey) -> Vec<StatusKey> {
        let root = self.context.root(object).map(StatusKey::Root);
        match key.kind {
            Kind::Pod => {
                let own = status_key(key, object.str_at("/spec/nodeName"));
                let budgets = self.budgets(&key.namespace, |budget| selects(budget, object));
                [own].into_iter().chain(root).chain(budgets).collect()
            }
            Kind::Deployment | Kind::ReplicaSet => {
                let budgets = self.budgets(&key.namespace, |_| true);
                root.into_iter().chain(budgets).collect()
            }
            Kind::PodDisruptionBudget => vec![StatusKey::Budget(key.clone())],
            // It tells which node a name stands for.
            Kind::Member => self.all_pods().into_iter().collect(),
            kind if is_alone(kind) => vec![StatusKey::Fault(key.clone())],
            _ => root.into_iter().collect(),
        }
    }

    fn budgets(&self, namespace: &str, concerns: impl Fn(&Object) -> bool) -> Vec<StatusKey> {
        let budgets = self
            .context
            .store
            .views(Kind::PodDisruptionBudget, Some(namespace));
        let budgets = budgets.filter(|budget| concerns(&budget.object));
        budgets.map(|budget| StatusKey::Budget(budget.key)).collect()
    }

    fn budget(&self, key: &ObjectKey) {
        let context = &self.context;
        let Some(budget) = context.object(key) else { return };
        let settled = context.settled(&budget);
        let allowance = settled.map(|settled| allowance(&context.store, &settled));
        let status = allowance
            .unwrap_or_default()
            .status(&budget, context.clock.unix_seconds());
        context.show_checked(key, &budget, status, "disruption-controller");
    }

    fn pod(&self, key: &ObjectKey) {
        let context = &self.context;
        // Another of this name that waits for a node has asked for its own run.
        let Some(pod) = context.object(key).filter(|pod| !waits_for_node(pod)) else {
            return;
        };
        let nodes = context.nodes();
        let cluster = context.cluster.borrow().clone();
        let node = nodes.get(pod.str_at("/spec/nodeName"));
        let observation = node.and_then(|node| cluster.nodes.get(&node.id));
        let knowledge = PodKnowledge {
            node,
            observed: observation
                .and_then(|node| node.pods.get(pod.uid()))
                .map(AsRef::as_ref),
            misfit: None,
        };
        let status = pod_status(&pod, knowledge, context.clock.unix_seconds());
        context.show_checked(key, &pod, status, STORE);
    }

    fn unplaced(&self) {
        let context = &self.context;
        let nodes = context.nodes();
        let pods = context.objects(Kind::Pod, None);
        let placement = Placement::new(&nodes, pods.iter().map(AsRef::as_ref));
        for pod in pods.iter().filter(|pod| waits_for_node(pod)) {
            let Some(key) = pod.key() else { continue };
            let chosen = placement.choose(pod, "", |_| 0);
            let misfit = chosen.err().map(|misfit| misfit.to_string());
            let knowledge = PodKnowledge {
                node: None,
                observed: None,
                misfit: misfit.as_deref(),
            };
            let status = pod_status(pod, knowledge, context.clock.unix_seconds());
            context.show_checked(&key, pod, status, STORE);
        }
    }

    fn fault(&self, key: &ObjectKey) {
        let context = &self.context;
        if let Some(object) = context.object(key) {
            let shown = context.fault_alone(key, &object).map(|status| {
                let mut shown = Object::default();
                shown.set(&["status"], status);
                shown
            });
            context.store.project(key, shown);
        }
    }

    fn root(&self, key: &ObjectKey) -> Next {
        let context = &self.context;
        let now = context.now();
        let pods = context.objects(Kind::Pod, Some(&key.namespace));
        let tree = context.tree(key, &pods, &context.nodes(), self.graces, now.moment);
        let mut again = None;
        for set in &tree.replica_sets {
            if let Some(key) = set.object.key() {
                context.show_checked(&key, &set.object, replica_set_status(set, now), COMPONENT);
            }
            let min_ready = crate::replica_set::min_ready_seconds(&set.object);
            for pod in &set.pods {
                let lost = match pod.host {
                    Host::Away(rest) => rest,
                    Host::None | Host::Live | Host::Lost | Host::Removed | Host::Nowhere => None,
                };
                let available = pod.available_in(min_ready, now).filter(|rest| !rest.is_zero());
                again = [again, lost, available].into_iter().flatten().min();
            }
        }
        if let Some(deployment) = &tree.deployment {
            let (status, deadline) = deployment_status(deployment, &tree.replica_sets, now);
            context.show_checked(key, deployment, status, COMPONENT);
            again = [again, deadline].into_iter().flatten().min();
        }
        again.map_or(Next::Done, Next::After)
    }
}

/// Counts what a budget allows by what the store shows.
pub fn allowance(store: &Store, budget: &Object) -> Allowance {
    let selector = selector(budget);
    let is_counted = |pod: &Arc<Object>| {
        let selector = selector.as_ref();
        selector.is_some_and(|selector| selector.matches_object(pod))
    };
    let pods = store.views(Kind::Pod, Some(budget.namespace()));
    let pods: Vec<Arc<Object>> = pods.map(|view| view.object).filter(is_counted).collect();
    count(budget, &pods, |key| store.get(key).map(|view| view.object))
}

impl Context {
    /// Shows a status, and that the object is not valid, if it is not.
    pub(crate) fn show_checked(
        &self,
        key: &ObjectKey,
        object: &Object,
        mut status: Value,
        component: &'static str,
    ) {
        self.add_fault(&mut status, key, object, object, component);
        let mut projection = Object::default();
        projection.set(&["status"], status);
        self.store.project(key, Some(projection));
    }

    /// Returns the status of an object that shows none but that it is not valid; None: it is.
    pub(crate) fn fault_alone(&self, key: &ObjectKey, object: &Object) -> Option<Value> {
        let mut status = json!({});
        self.add_fault(&mut status, key, object, object, STORE);
        status.get("conditions").is_some().then_some(status)
    }

    /// Adds to a status that the object is not valid, if it is not, as `written` says. Who works for it tells that in an
    /// Event.
    pub(crate) fn add_fault(
        &self,
        status: &mut Value,
        key: &ObjectKey,
        object: &Object,
        written: &Object,
        component: &'static str,
    ) {
        let (fault, now) = (self.faults.of(written), self.clock.unix_seconds());
        let told = show_fault(status, object, fault.as_deref(), now);
        if let Some(message) = told.filter(|_| self.is_told_here(object)) {
            self.events.event(EventRecord {
                key: key.clone(),
                uid: object.uid().to_owned(),
                kind: EventKind::Warning,
                reason: MERGED_INVALID,
                message,
                component,
            });
        }
    }

    fn is_told_here(&self, object: &Object) -> bool {
        let root = self.root(object);
        root.is_some_and(|root| self.holding(&root) != Holding::Other)
    }
}

fn waits_for_node(pod: &Object) -> bool {
    pod.str_at("/spec/nodeName").is_empty()
}

/// Returns the key of the run that shows a pod.
fn status_key(pod: &ObjectKey, node: &str) -> StatusKey {
    if node.is_empty() {
        StatusKey::Unplaced
    } else {
        StatusKey::Pod(pod.clone())
    }
}

#[async_trait]
impl Reconciler for Statuses {
    type Key = StatusKey;

    fn name(&self) -> &'static str {
        "statuses"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: KINDS_WITH_STATUS
                .into_iter()
                .chain(KINDS.iter().map(|row| row.kind).filter(|kind| is_alone(*kind)))
                .collect(),
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<StatusKey> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, previous }) => {
                let mut keys = self.of_object(&view.object, &view.key);
                if view.key.kind == Kind::Pod {
                    let node = view.object.str_at("/spec/nodeName").to_owned();
                    let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.pods
                        .insert(view.object.uid().to_owned(), (view.key.clone(), node));
                }
                // One that was relabelled counts in others than before.
                let before = previous.iter().filter(|_| view.key.kind == Kind::Pod);
                for pod in before
                    .filter(|pod| pod.pointer("/metadata/labels") != view.object.pointer("/metadata/labels"))
                {
                    keys.extend(self.budgets(&view.key.namespace, |budget| selects(budget, pod)));
                }
                keys
            }
            Trigger::Store(WatchEvent::Deleted { view }) => {
                if view.key.kind == Kind::Pod {
                    let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.pods.remove(view.object.uid());
                }
                self.of_object(&view.object, &view.key)
            }
            Trigger::Cluster(cluster) => self.changed_pods(cluster).into_iter().collect(),
            Trigger::Resync => {
                self.forget_pods();
                Vec::new()
            }
            Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, key: &StatusKey) -> Result<Next, ReconcileError> {
        match key {
            StatusKey::Pod(key) => self.pod(key),
            StatusKey::Unplaced => self.unplaced(),
            StatusKey::Root(key) => return Ok(self.root(key)),
            StatusKey::Budget(key) => self.budget(key),
            StatusKey::Fault(key) => self.fault(key),
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use store::View;

    use super::super::fixture::{Fixture, author};
    use super::*;

    fn put(view: View) -> Trigger {
        Trigger::Store(WatchEvent::Put { view, previous: None })
    }

    #[tokio::test]
    async fn a_pod_whose_deletion_was_missed_is_forgotten() {
        let fixture = Fixture::new(110);
        let statuses = Statuses::new(fixture.context.clone(), Graces::default());
        for name in ["stays", "goes"] {
            let pod = Object::new(&ObjectKey::new(Kind::Pod, "default", name));
            statuses.keys(&put(fixture.store.create(pod, author()).await.unwrap()));
        }
        fixture
            .remove(&ObjectKey::new(Kind::Pod, "default", "goes"))
            .await;
        statuses.keys(&Trigger::Resync);
        let seen = statuses.seen.lock().unwrap();
        let names: Vec<_> = seen.pods.values().map(|(key, _)| key.name.as_str()).collect();
        assert_eq!(names, ["stays"]);
    }

    #[tokio::test]
    async fn pods_that_wait_for_a_node_share_one_run() {
        let fixture = Fixture::new(0);
        fixture.admit().await;
        let statuses = Statuses::new(fixture.context.clone(), Graces::default());
        let key = |name: &str| ObjectKey::new(Kind::Pod, "default", name);
        let (root, pod) = (|name: &str| StatusKey::Root(key(name)), StatusKey::Pod(key("c")));
        for (name, node, expected) in [
            ("a", "", [StatusKey::Unplaced, root("a")]),
            ("b", "", [StatusKey::Unplaced, root("b")]),
            ("c", "node1", [pod.clone(), root("c")]),
        ] {
            let mut pod = Object::new(&key(name));
            pod.set(&["spec", "nodeName"], node);
            let keys = statuses.keys(&put(fixture.store.create(pod, author()).await.unwrap()));
            assert_eq!(keys, expected);
        }
        let member = ObjectKey::cluster(Kind::Member, &fixture.context.node.0);
        let both = [pod, StatusKey::Unplaced];
        assert_eq!(statuses.keys(&put(fixture.store.get(&member).unwrap())), both);
        let heard = Trigger::Cluster(fixture.context.cluster.borrow().clone());
        assert_eq!(statuses.keys(&heard), both);

        statuses.reconcile(&StatusKey::Unplaced).await.unwrap();
        for name in ["a", "b"] {
            let pod = fixture.context.object(&key(name)).unwrap();
            let conditions = pod.pointer("/status/conditions").unwrap().as_array().unwrap();
            let scheduled = conditions
                .iter()
                .find(|one| one["type"] == "PodScheduled")
                .unwrap();
            assert_eq!(
                scheduled["message"], "0/1 nodes are available: 1 Too many pods.",
                "{name}"
            );
        }
    }
}
