//! Keeps workloads in line: for each root controller that this node works for, gather, plan, act.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{WatchEvent, WatchScope};

use super::act::{Component, act_all};
use super::snapshot::NodesSeen;
use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::action::{Action, Plan, Unplaced};
use crate::ownership::Holding;
use crate::placement::Placement;
use crate::pod_state::Graces;
use crate::ports::{EventKind, EventRecord};
use crate::workload::plan;

/// The controller of Deployments, ReplicaSets and the placement of Pods.
pub struct Workloads {
    context: Context,
    graces: Graces,
    nodes_seen: Mutex<NodesSeen>,
    /// `spec` and labels of Node and Member objects as last seen: their status changes often and does not matter here.
    node_specs: Mutex<HashMap<ObjectKey, Value>>,
    /// What was last reported of pods that fit nowhere, by root; forgotten with them.
    reported: Mutex<HashMap<ObjectKey, BTreeMap<ObjectKey, String>>>,
}

impl Workloads {
    /// Roots that are worked on at a time. A plan counts the room of the nodes as the store has it: two at once would give
    /// the same room away twice, and nothing takes it back. One plan has many writes in flight, so that little is lost.
    pub const WORKERS: usize = 1;

    pub fn new(context: Context, graces: Graces) -> Self {
        Self {
            context,
            graces,
            nodes_seen: Mutex::default(),
            node_specs: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Plans for a root as things are now, whoever works for it.
    pub fn plan(&self, root: &ObjectKey) -> Plan {
        let context = &self.context;
        let now = context.now();
        let nodes = context.nodes();
        let pods = context.objects(Kind::Pod, None);
        let mut tree = context.tree(root, &pods, &nodes, self.graces, now.moment);
        let namespace = context.object(&ObjectKey::cluster(Kind::Namespace, &root.namespace));
        if namespace.is_some_and(|namespace| namespace.is_terminating()) {
            tree = tree.ending();
        }
        tree = tree.holding_still(|object| context.faults.of(object).is_some());
        let placement = Placement::new(&nodes, pods.iter().map(AsRef::as_ref));
        let mut plan = plan(tree, placement, now);
        plan.actions.retain(|action| !self.is_held(action));
        plan
    }

    /// Tells whether an action would go by what an object says that is not valid.
    fn is_held(&self, action: &Action) -> bool {
        match action {
            Action::Place { key, .. } | Action::Set { key, .. } => {
                let object = self.context.object(key);
                object.is_some_and(|object| self.context.faults.of(&object).is_some())
            }
            Action::Create(_)
            | Action::Release { .. }
            | Action::Delete { .. }
            | Action::DeleteForeground { .. }
            | Action::Unhold { .. }
            | Action::Remove { .. } => false,
        }
    }

    /// Wakes all workloads if what they read of a node changed.
    fn node_changed(&self, key: &ObjectKey, node: Option<&Object>) -> Vec<ObjectKey> {
        let read = |node: &Object| {
            let parts = ["/spec", "/metadata/labels"].map(|part| node.pointer(part).cloned());
            json!(parts)
        };
        let spec = node.map(read);
        let mut specs = self.node_specs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &spec {
            Some(spec) => specs.insert(key.clone(), spec.clone()),
            None => specs.remove(key),
        };
        drop(specs);
        if before == spec {
            return Vec::new();
        }
        self.context.roots().into_iter().collect()
    }

    /// Forgets nodes that went unheard, in a gap of the watch, and wakes all workloads if there were some.
    fn forget_nodes(&self) -> Vec<ObjectKey> {
        let mut specs = self.node_specs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = specs.len();
        specs.retain(|key, _| self.context.object(key).is_some());
        let forgotten = specs.len() < before;
        drop(specs);
        if forgotten {
            self.context.roots().into_iter().collect()
        } else {
            Vec::new()
        }
    }

    /// Records an event for each pod of `root` of which something else is to be said than before. Of one that is not created
    /// yet the next plan tells: an Event belongs to a uid.
    fn report(&self, root: &ObjectKey, unplaced: &[Unplaced]) {
        let unplaced = || unplaced.iter().filter(|pod| !pod.uid.is_empty());
        let now: BTreeMap<ObjectKey, String> = unplaced()
            .map(|pod| (pod.key.clone(), pod.message.clone()))
            .collect();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if now.is_empty() {
            reported.remove(root)
        } else {
            reported.insert(root.clone(), now)
        };
        drop(reported);
        let before = before.unwrap_or_default();
        for pod in unplaced().filter(|pod| before.get(&pod.key) != Some(&pod.message)) {
            self.context.events.event(EventRecord {
                key: pod.key.clone(),
                uid: pod.uid.clone(),
                kind: EventKind::Warning,
                reason: "FailedScheduling",
                message: pod.message.clone(),
                component: "default-scheduler",
            });
        }
    }
}

#[async_trait]
impl Reconciler for Workloads {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "workloads"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![
                Kind::Deployment,
                Kind::ReplicaSet,
                Kind::Pod,
                Kind::Member,
                Kind::Node,
            ],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<ObjectKey> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, .. }) => match view.key.kind {
                Kind::Node | Kind::Member => self.node_changed(&view.key, Some(&view.object)),
                _ => self.context.root(&view.object).into_iter().collect(),
            },
            Trigger::Store(WatchEvent::Deleted { view }) => match view.key.kind {
                Kind::Node | Kind::Member => self.node_changed(&view.key, None),
                _ => self.context.root(&view.object).into_iter().collect(),
            },
            Trigger::Cluster(cluster) => {
                let seen = NodesSeen::of(cluster);
                let mut before = self.nodes_seen.lock().unwrap_or_else(PoisonError::into_inner);
                if *before == seen {
                    return Vec::new();
                }
                *before = seen;
                self.context.roots().into_iter().collect()
            }
            Trigger::Resync => self.forget_nodes(),
            Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, root: &ObjectKey) -> Result<Next, ReconcileError> {
        let context = &self.context;
        match context.holding(root) {
            Holding::Mine => {}
            Holding::Settling(wait) => return Ok(Next::After(wait)),
            Holding::Other => {
                self.report(root, &[]);
                return Ok(Next::Done);
            }
        }
        let plan = self.plan(root);
        self.report(root, &plan.unplaced);
        act_all(context, Component::Workloads, plan.actions).await?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::super::fixture::{Fixture, author};
    use super::*;
    use crate::ownership::{CATCH_UP, SETTLE};

    /// How long a state may take; thousands of times what it takes.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// The spec of a ReplicaSet.
    fn replicas(count: u32) -> Value {
        json!({
            "replicas": count,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        })
    }

    #[tokio::test]
    async fn a_node_whose_deletion_was_missed_wakes_all_once() {
        let fixture = Fixture::new(2);
        let pod = ObjectKey::new(Kind::Pod, "default", "a");
        let view = fixture
            .store
            .create(schemas::Object::new(&pod), author())
            .await
            .unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        let key = ObjectKey::cluster(Kind::Member, "gone");
        let mut member = schemas::Object::new(&key);
        member.set(&["spec", "name"], "gone");
        let put = WatchEvent::Put {
            view: store::View {
                object: std::sync::Arc::new(member),
                key,
                ..view
            },
            previous: None,
        };
        assert_eq!(workloads.keys(&Trigger::Store(put)), std::slice::from_ref(&pod));
        assert_eq!(workloads.keys(&Trigger::Resync), [pod]);
        assert_eq!(workloads.keys(&Trigger::Resync), []);
    }

    #[tokio::test]
    async fn an_owner_that_returns_ends_nothing_while_what_came_meanwhile_is_not_all_here() {
        let fixture = Fixture::new(20);
        fixture.admit().await;
        let other = "2".repeat(64);
        let mut member = schemas::Object::new(&ObjectKey::cluster(Kind::Member, &other));
        member.set(&["spec", "name"], "node2");
        fixture.store.create(member, author()).await.unwrap();
        let sees_other = |in_sync| {
            fixture.cluster.send_modify(|cluster| {
                let mut node = cluster.nodes[&cluster.me].as_ref().clone();
                node.since = crate::ports::Moment(SETTLE);
                node.in_sync = in_sync;
                let nodes = &mut std::sync::Arc::make_mut(cluster).nodes;
                nodes.insert(store::NodeId(other.clone()), std::sync::Arc::new(node));
            });
        };
        fixture.clock.advance(SETTLE);
        sees_other(true);
        let keys = (0..).map(|number| ObjectKey::new(Kind::ReplicaSet, "default", format!("web-{number}")));
        let key = keys
            .into_iter()
            .find(|key| fixture.context.holding(key) == Holding::Mine)
            .unwrap();
        let mut set = schemas::Object::new(&key);
        set.set(&["spec"], replicas(6));
        fixture.store.create(set, author()).await.unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        workloads.reconcile(&key).await.unwrap();
        let pods = || {
            let pods = fixture.context.objects(Kind::Pod, None);
            pods.iter().filter(|pod| !pod.is_terminating()).count()
        };
        assert_eq!(pods(), 6);

        // As it is in the middle of an exchange: the other's pods came, its scale did not yet.
        fixture.edit(&key, &["spec", "replicas"], json!(2)).await;
        sees_other(false);
        let next = workloads.reconcile(&key).await.unwrap();
        assert_eq!((pods(), next), (6, Next::After(CATCH_UP)));
        fixture.edit(&key, &["spec", "replicas"], json!(6)).await;
        sees_other(true);
        let woken = workloads.keys(&Trigger::Cluster(fixture.context.cluster.borrow().clone()));
        assert!(woken.contains(&key));
        workloads.reconcile(&key).await.unwrap();
        assert_eq!(pods(), 6);
    }

    #[tokio::test]
    async fn what_users_say_of_a_node_decides_what_it_takes() {
        let fixture = Fixture::new(10);
        fixture.admit().await;
        let node = ObjectKey::cluster(Kind::Node, "node1");
        fixture.store.create(Object::new(&node), author()).await.unwrap();
        let pod = ObjectKey::new(Kind::Pod, "default", "a");
        let mut object = Object::new(&pod);
        object.set(
            &["spec"],
            json!({"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "web:1"}]}),
        );
        fixture.store.create(object, author()).await.unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        let taints = json!([{"key": "for", "value": "tests", "effect": "NoSchedule"}]);
        for (path, value, expected) in [
            (&["spec", "taints"], taints, "had untolerated taint {for: tests}"),
            (
                &["spec", "taints"],
                json!([]),
                "didn't match Pod's node affinity/selector",
            ),
            (&["metadata", "labels"], json!({"disk": "ssd"}), ""),
        ] {
            fixture.edit(&node, path, value).await;
            let view = fixture.store.get(&node).unwrap();
            let put = Trigger::Store(WatchEvent::Put { view, previous: None });
            assert_eq!(workloads.keys(&put), std::slice::from_ref(&pod), "it wakes");
            assert_eq!(workloads.keys(&put), [], "once");
            let plan = workloads.plan(&pod);
            let messages: Vec<_> = plan.unplaced.iter().map(|pod| pod.message.as_str()).collect();
            assert_eq!(messages.is_empty(), expected.is_empty(), "{messages:?}");
            assert!(
                messages.iter().all(|message| message.contains(expected)),
                "{messages:?}"
            );
        }
        workloads.reconcile(&pod).await.unwrap();
        assert_eq!(
            fixture.context.object(&pod).unwrap().str_at("/spec/nodeName"),
            "node1"
        );
    }

    #[tokio::test]
    async fn events_tell_from_how_many_to_how_many_a_set_was_scaled() {
        let fixture = Fixture::new(10);
        fixture.admit().await;
        let key = ObjectKey::new(Kind::Deployment, "default", "web");
        let mut web = Object::new(&key);
        web.set(&["spec"], replicas(1));
        fixture.store.create(web, author()).await.unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        for count in [1, 3, 0] {
            fixture.edit(&key, &["spec", "replicas"], json!(count)).await;
            workloads.reconcile(&key).await.unwrap();
        }
        let set = fixture.context.objects(Kind::ReplicaSet, None)[0]
            .name()
            .to_owned();
        let events = fixture.events.take().into_iter();
        let scaled = events.filter(|event| event.reason == "ScalingReplicaSet");
        let expected = ["up .. from 0 to 1", "up .. from 1 to 3", "down .. from 3 to 0"]
            .map(|text| format!("Scaled {}", text.replace("..", &format!("replica set {set}"))));
        assert_eq!(scaled.map(|event| event.message).collect::<Vec<_>>(), expected);
    }

    /// A ReplicaSet of so many pods, and who makes them.
    async fn replica_set(count: u32) -> (Fixture, Workloads, ObjectKey) {
        let fixture = Fixture::new(20);
        fixture.admit().await;
        let key = ObjectKey::new(Kind::ReplicaSet, "default", "web");
        let mut set = Object::new(&key);
        set.set(&["spec"], replicas(count));
        fixture.store.create(set, author()).await.unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        (fixture, workloads, key)
    }

    #[tokio::test]
    async fn the_replacement_of_a_pod_that_is_gone_has_a_name_of_its_own() {
        let (fixture, workloads, key) = replica_set(1).await;
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..3 {
            workloads.reconcile(&key).await.unwrap();
            let pods = fixture.context.objects(Kind::Pod, None);
            assert_eq!(pods.len(), 1);
            assert!(names.insert(pods[0].name().to_owned()), "{names:?}");
            fixture.remove(&pods[0].key().unwrap()).await;
        }
    }

    #[tokio::test]
    async fn a_pod_whose_labels_are_taken_away_is_replaced_and_left_alone() {
        let (fixture, workloads, key) = replica_set(2).await;
        workloads.reconcile(&key).await.unwrap();
        let taken_out = fixture.context.objects(Kind::Pod, None)[0].key().unwrap();
        fixture
            .edit(&taken_out, &["metadata", "labels", "app"], json!("debug"))
            .await;
        for _ in 0..2 {
            workloads.reconcile(&key).await.unwrap();
            let pods = fixture.context.objects(Kind::Pod, None);
            let own = pods.iter().filter(|pod| pod.controller().is_some()).count();
            assert_eq!((own, pods.len()), (2, 3));
        }
        assert!(workloads.plan(&key).actions.is_empty());
        fixture.edit(&key, &["spec", "replicas"], json!(0)).await;
        workloads.reconcile(&key).await.unwrap();
        let pods = fixture.context.objects(Kind::Pod, None);
        let left = pods.iter().filter(|pod| !pod.is_terminating());
        assert_eq!(left.filter_map(|pod| pod.key()).collect::<Vec<_>>(), [taken_out]);
    }

    #[tokio::test]
    async fn events_of_pods_that_fit_nowhere_are_about_pods_that_exist() {
        let fixture = Fixture::new(0);
        fixture.admit().await;
        let key = ObjectKey::new(Kind::ReplicaSet, "default", "web");
        let mut set = schemas::Object::new(&key);
        set.set(&["spec"], replicas(1));
        fixture.store.create(set, author()).await.unwrap();
        let workloads = Workloads::new(fixture.context.clone(), Graces::default());
        for _ in 0..3 {
            workloads.reconcile(&key).await.unwrap();
        }
        let uids: Vec<String> = (fixture.events.take().into_iter())
            .filter(|event| event.reason == "FailedScheduling")
            .map(|event| event.uid)
            .collect();
        let pods = fixture.context.objects(Kind::Pod, None);
        let expected: Vec<_> = pods.iter().map(|pod| pod.uid()).collect();
        assert_eq!(
            (uids.len(), uids),
            (1, expected.into_iter().map(str::to_owned).collect())
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_last_room_of_a_node_is_given_away_once() {
        let fixture = Fixture::new(20);
        fixture.admit().await;
        let keys: Vec<ObjectKey> = (0..40)
            .map(|number| ObjectKey::new(Kind::Pod, "default", format!("web-{number}")))
            .collect();
        for key in &keys {
            let mut pod = schemas::Object::new(key);
            pod.set(&["spec", "containers"], json!([{"name": "c", "image": "web:1"}]));
            fixture.store.create(pod, author()).await.unwrap();
        }
        let shutdown = CancellationToken::new();
        let workloads = std::sync::Arc::new(Workloads::new(fixture.context.clone(), Graces::default()));
        let running = tokio::spawn(super::super::run(
            workloads,
            fixture.context.clone(),
            None,
            Workloads::WORKERS,
            tokio::sync::oneshot::channel().0,
            shutdown.clone(),
        ));
        let end = tokio::time::Instant::now() + DEADLINE;
        // Every pod is either placed or told why it waits.
        let placed = loop {
            let placed = keys.iter().filter(|key| {
                let pod = fixture.context.object(key);
                pod.is_some_and(|pod| !pod.str_at("/spec/nodeName").is_empty())
            });
            let (placed, waiting) = (placed.count(), fixture.events.count("FailedScheduling"));
            if placed + waiting >= keys.len() {
                break placed;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "{placed} placed, {waiting} wait"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        shutdown.cancel();
        running.await.unwrap();
        assert_eq!(placed, 20);
    }
}
