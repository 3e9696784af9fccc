//! The planners against a small world: they act, nodes start and stop pods, die and return, users change their minds.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use serde_json::{Value, json};

use super::*;
use crate::fakes::FAKE_EPOCH_UNIX_SECONDS;
use crate::nodes::testing::{node, nodes};
use crate::nodes::{NodeState, Nodes};
use crate::pod_state::{DEAD_GRACE, Graces};
use crate::ports::{Liveness, Moment};
use crate::rollout::Strategy;
use schemas::time::to_rfc3339;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Objects, nodes and time. Each node's "kubelet" is [`World::kubelets`].
#[derive(Clone)]
struct World {
    objects: BTreeMap<ObjectKey, Object>,
    nodes: Vec<NodeState>,
    removed: Vec<String>,
    time: Duration,
    uids: u32,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut world = Self {
            objects: BTreeMap::new(),
            nodes: NAMES.map(node).to_vec(),
            removed: Vec::new(),
            time: Duration::from_secs(100),
            uids: 0,
        };
        let mut deployment = Object::new(&Self::deployment_key());
        deployment.set(&["spec"], spec);
        world.create(deployment);
        world
    }

    fn deployment_key() -> ObjectKey {
        ObjectKey::new(Kind::Deployment, "default", "web")
    }

    fn deployment(&self) -> &Object {
        &self.objects[&Self::deployment_key()]
    }

    fn edit(&mut self, path: &[&str], value: impl Into<Value>) {
        self.objects
            .get_mut(&Self::deployment_key())
            .unwrap()
            .set(path, value);
    }

    fn unix_seconds(&self) -> i64 {
        FAKE_EPOCH_UNIX_SECONDS + i64::try_from(self.time.as_secs()).unwrap()
    }

    fn now(&self) -> Now {
        Now {
            moment: Moment(self.time),
            unix_seconds: self.unix_seconds(),
        }
    }

    fn create(&mut self, mut object: Object) {
        self.uids += 1;
        object.set(&["metadata", "uid"], format!("uid-{}", self.uids));
        object.set(
            &["metadata", "creationTimestamp"],
            to_rfc3339(self.unix_seconds()),
        );
        self.objects.entry(object.key().unwrap()).or_insert(object);
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.kind == kind)
            .map(|(_, object)| object)
    }

    fn nodes(&self) -> Nodes {
        nodes(self.nodes.iter().cloned())
    }

    fn pods(&self) -> Vec<PodState> {
        let nodes = self.nodes();
        let removed = |member: &str| {
            self.removed
                .iter()
                .any(|name| member.starts_with(&format!("{name}/")))
        };
        self.of_kind(Kind::Pod)
            .map(|pod| {
                PodState::read(
                    Arc::new(pod.clone()),
                    &nodes,
                    removed,
                    Graces::default(),
                    Moment(self.time),
                )
            })
            .collect()
    }

    fn plan(&self) -> Plan {
        let owned = |set: &Object| -> Vec<PodState> {
            let mut pods = self.pods();
            pods.retain(|pod| {
                pod.object
                    .controller()
                    .is_some_and(|owner| owner.uid == set.uid())
            });
            pods
        };
        let tree = Tree {
            deployment: Some(Arc::new(self.deployment().clone())),
            replica_sets: self
                .of_kind(Kind::ReplicaSet)
                .map(|set| ReplicaSetState::new(Arc::new(set.clone()), owned(set)))
                .collect(),
            loose: Vec::new(),
        };
        plan(
            tree,
            Placement::new(&self.nodes(), self.of_kind(Kind::Pod)),
            self.now(),
        )
    }

    fn act(&mut self, plan: Plan) {
        for action in plan.actions {
            match action {
                Action::Create(object) => self.create(object),
                Action::Set {
                    key,
                    replicas,
                    min_ready_seconds,
                    annotations,
                    ..
                } => {
                    let object = self.objects.get_mut(&key).unwrap();
                    if let Some(replicas) = replicas {
                        object.set(&["spec", "replicas"], replicas);
                    }
                    if let Some(seconds) = min_ready_seconds {
                        object.set(&["spec", "minReadySeconds"], seconds);
                    }
                    for (name, value) in annotations {
                        object.set(&["metadata", "annotations", &name], value);
                    }
                }
                Action::Place {
                    key, node, member, ..
                } => {
                    let pod = self.objects.get_mut(&key).unwrap();
                    pod.set(&["spec", "nodeName"], node);
                    pod.set(
                        &["metadata", "annotations", crate::pod_state::MEMBER_ANNOTATION],
                        member,
                    );
                }
                Action::Release { key, .. } => {
                    let pod = self.objects.get_mut(&key).unwrap();
                    pod.set(&["metadata", "ownerReferences"], json!([]));
                }
                Action::Delete { key, .. } => {
                    let pod = self.objects.get_mut(&key).unwrap();
                    pod.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
                }
                Action::Remove { key, uid } => {
                    let removed = self.objects.remove(&key);
                    assert_eq!(removed.map(|object| object.uid().to_owned()), Some(uid));
                }
                Action::DeleteForeground { .. } | Action::Unhold { .. } => {
                    unreachable!("these are the garbage collector's")
                }
            }
        }
    }

    /// Plans and acts until there is nothing to do, which must be soon: a ReplicaSet's pods wait for its uid, no more.
    fn settle(&mut self) {
        for _ in 0..3 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return;
            }
            self.act(plan);
        }
        assert_eq!(self.plan().actions, [], "planning again after acting is empty");
    }

    /// Live nodes end what is deleted and run the rest; the `lazy` one in so many pods does not get ready.
    fn kubelets(&mut self, lazy: Option<usize>) {
        let now = to_rfc3339(self.unix_seconds());
        let live: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| node.liveness == Liveness::Alive)
            .map(|node| node.name.clone())
            .collect();
        self.objects.retain(|key, object| {
            key.kind != Kind::Pod
                || !object.is_terminating()
                || !live.iter().any(|node| node == object.str_at("/spec/nodeName"))
        });
        let pods = self.objects.iter_mut().filter(|(key, _)| key.kind == Kind::Pod);
        for (index, (_, pod)) in pods.enumerate() {
            let is_here = live.iter().any(|node| node == pod.str_at("/spec/nodeName"));
            let is_lazy = lazy.is_some_and(|lazy| index % lazy.max(1) == 0);
            let is_ready = pod.pointer("/status/conditions/0/status") == Some(&"True".into());
            if is_here && !is_lazy && !is_ready {
                let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": now});
                pod.set(&["status"], json!({"phase": "Running", "conditions": [ready]}));
            }
        }
    }

    fn liveness(&mut self, index: usize, liveness: Liveness) {
        let since = Moment(self.time);
        if let Some(node) = self.nodes.get_mut(index).filter(|node| node.liveness != liveness) {
            *node = node.clone().liveness(liveness, since);
        }
    }

    /// Slots that are filled: of a pod on a node that is away there may be two for a while.
    fn slots(&self, is_counted: impl Fn(&PodState) -> bool) -> usize {
        let pods = self.pods();
        let counted = pods.iter().filter(|pod| pod.is_active() && is_counted(pod));
        let slots: BTreeSet<_> = counted
            .map(|pod| (pod.object.controller().map(|owner| owner.uid), pod.slot()))
            .collect();
        slots.len()
    }

    fn active(&self) -> usize {
        self.slots(|_| true)
    }

    fn ready(&self) -> usize {
        self.slots(|pod| pod.ready_since.is_some())
    }

    /// Ready pods by node.
    fn spread(&self) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for pod in self
            .pods()
            .iter()
            .filter(|pod| pod.is_active() && pod.ready_since.is_some())
        {
            *spread.entry(pod.node().to_owned()).or_default() += 1;
        }
        spread
    }

    fn run(&mut self) {
        for _ in 0..30 {
            self.settle();
            self.kubelets(None);
            self.time += Duration::from_secs(1);
        }
        self.settle();
    }
}

fn spec(replicas: u32) -> Value {
    json!({
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]},
        },
    })
}

const IMAGE: [&str; 4] = ["spec", "template", "spec", "image"];

#[test]
fn replicas_are_spread_over_the_nodes_and_scaled() {
    let mut world = World::new(spec(8));
    world.run();
    assert_eq!(world.spread(), NAMES.map(|name| (name.to_owned(), 2)).into());
    world.edit(&["spec", "replicas"], 3);
    world.run();
    assert_eq!((world.active(), world.spread().len()), (3, 3));
    let set = world.of_kind(Kind::ReplicaSet).next().unwrap();
    assert_eq!(set.label("pod-template-hash"), set.name().strip_prefix("web-"));
    assert_eq!(
        world.deployment().annotation("deployment.kubernetes.io/revision"),
        Some("1")
    );
}

#[test]
fn a_rollout_keeps_its_bounds_at_every_step_and_ends_spread() {
    let mut world = World::new(spec(10));
    world.run();
    world.edit(&IMAGE, "web:2");
    let mut steps = 0;
    loop {
        world.settle();
        let (active, ready) = (world.active(), world.ready());
        assert!(active <= 13, "maxSurge 25 % of 10 is 3: {active}");
        assert!(ready >= 8, "maxUnavailable 25 % of 10 is 2: {ready}");
        world.kubelets((steps < 3).then_some(2));
        steps += 1;
        let new = crate::deployment::new_replica_set_name(world.deployment(), &[]).unwrap();
        let updated = world
            .pods()
            .iter()
            .filter(|pod| pod.name().starts_with(&new))
            .count();
        if (updated, world.active(), world.of_kind(Kind::Pod).count()) == (10, 10, 10) {
            break;
        }
        assert!(steps < 50, "the rollout ends");
    }
    assert!(
        world.spread().values().all(|count| (2..=3).contains(count)),
        "{:?}",
        world.spread()
    );
    assert_eq!(
        world.deployment().annotation("deployment.kubernetes.io/revision"),
        Some("2")
    );
}

#[test]
fn a_rollback_takes_the_old_set_with_a_new_revision_and_history_is_bounded() {
    let mut world = World::new(spec(2));
    world.edit(&["spec", "revisionHistoryLimit"], 2);
    for image in ["web:1", "web:2", "web:1", "web:3", "web:4", "web:5"] {
        world.edit(&IMAGE, image);
        world.run();
        assert_eq!((world.active(), world.ready()), (2, 2), "{image}");
    }
    let mut revisions: Vec<_> = world
        .of_kind(Kind::ReplicaSet)
        .map(|set| {
            set.annotation("deployment.kubernetes.io/revision")
                .unwrap()
                .to_owned()
        })
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["4", "5", "6"]);
    world.edit(&IMAGE, "web:3");
    world.run();
    let set = crate::deployment::new_replica_set_name(world.deployment(), &[]).unwrap();
    let set = &world.objects[&ObjectKey::new(Kind::ReplicaSet, "default", set)];
    assert_eq!(set.annotation("deployment.kubernetes.io/revision"), Some("7"));
    assert_eq!(
        set.annotation("deployment.kubernetes.io/revision-history"),
        Some("4")
    );
}

#[test]
fn a_default_that_is_written_out_or_left_out_restarts_nothing() {
    let mut world = World::new(spec(2));
    world.run();
    let pods = |world: &World| -> Vec<_> { world.of_kind(Kind::Pod).cloned().collect() };
    let before = pods(&world);
    let containers = ["spec", "template", "spec", "containers"];
    for container in [
        json!({"name": "web", "image": "web:1", "imagePullPolicy": "IfNotPresent"}),
        json!({"name": "web", "image": "web:1", "resources": {}}),
    ] {
        world.edit(&containers, json!([container]));
        world.run();
        assert_eq!(pods(&world), before, "{container}");
    }
    world.edit(
        &containers,
        json!([{"name": "web", "image": "web:1", "imagePullPolicy": "Always"}]),
    );
    world.run();
    assert_eq!(world.of_kind(Kind::ReplicaSet).count(), 2);
    world.edit(
        &containers,
        json!([{"name": "web", "image": "web:1", "imagePullPolicy": "IfNotPresent"}]),
    );
    world.run();
    assert_eq!(
        world.of_kind(Kind::ReplicaSet).count(),
        2,
        "the first is taken again"
    );
}

#[test]
fn a_changed_min_ready_seconds_reaches_the_newest_set() {
    let mut world = World::new(spec(2));
    world.run();
    let seconds = |world: &World| {
        let set = world.of_kind(Kind::ReplicaSet).next().unwrap();
        set.i64_at("/spec/minReadySeconds")
    };
    for wanted in [5, 0] {
        world.edit(&["spec", "minReadySeconds"], wanted);
        world.settle();
        assert_eq!(seconds(&world), Some(wanted));
    }
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    let mut world = World::new(spec(3));
    world.edit(&["spec", "strategy", "type"], "Recreate");
    world.run();
    world.edit(&IMAGE, "web:2");
    for _ in 0..10 {
        world.settle();
        let owners: BTreeSet<String> = world
            .pods()
            .iter()
            .filter_map(|pod| Some(pod.object.controller()?.name))
            .collect();
        assert!(owners.len() <= 1, "{owners:?}");
        world.kubelets(None);
    }
    assert_eq!((world.active(), world.ready()), (3, 3));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(spec(2));
    world.run();
    world.edit(&["spec", "paused"], true);
    world.edit(&IMAGE, "web:2");
    world.edit(&["spec", "replicas"], 4);
    world.run();
    assert_eq!((world.active(), world.of_kind(Kind::ReplicaSet).count()), (4, 1));
    world.edit(&["spec", "paused"], false);
    world.run();
    assert_eq!((world.active(), world.of_kind(Kind::ReplicaSet).count()), (4, 2));
}

#[test]
fn a_dead_nodes_pods_run_elsewhere_and_its_own_stay_when_it_returns_ready() {
    let mut world = World::new(spec(4));
    world.run();
    let before: Vec<String> = world.pods().iter().map(|pod| pod.name().to_owned()).collect();
    world.liveness(0, Liveness::Dead);
    world.settle();
    assert_eq!(
        world.of_kind(Kind::Pod).count(),
        4,
        "within the grace nothing moves"
    );
    assert_eq!(world.plan().again, Some(DEAD_GRACE));
    world.time += DEAD_GRACE;
    world.run();
    assert_eq!(
        (world.ready(), world.of_kind(Kind::Pod).count()),
        (4, 5),
        "the old document stays"
    );
    world.liveness(0, Liveness::Alive);
    world.run();
    let after: Vec<String> = world.pods().iter().map(|pod| pod.name().to_owned()).collect();
    assert_eq!(
        before, after,
        "of each slot the ready pod of the lowest attempt stays"
    );
}

#[test]
fn a_restarting_agent_moves_nothing() {
    for liveness in [Liveness::Stopped, Liveness::AgentDown] {
        let mut world = World::new(spec(4));
        world.run();
        let pods = world.of_kind(Kind::Pod).count();
        world.liveness(0, liveness);
        world.time += Duration::from_secs(59);
        world.settle();
        assert_eq!(
            (world.of_kind(Kind::Pod).count(), world.ready()),
            (pods, 4),
            "{liveness:?}"
        );
        world.time += Duration::from_secs(1);
        world.run();
        assert_eq!(world.of_kind(Kind::Pod).count(), pods + 1, "{liveness:?}");
    }
}

#[test]
fn a_removed_node_takes_its_pods_with_it() {
    let mut world = World::new(spec(4));
    world.run();
    world.nodes.remove(0);
    world.removed.push("a".into());
    world.run();
    assert_eq!((world.of_kind(Kind::Pod).count(), world.ready()), (4, 4));
}

#[test]
fn a_pod_whose_node_a_user_named_goes_with_that_node() {
    let mut world = World::new(spec(2));
    world.edit(&["spec", "template", "spec", "nodeName"], "a");
    world.run();
    assert_eq!(world.spread(), BTreeMap::from([("a".to_owned(), 2)]));
    world.nodes.remove(0);
    world.removed.push("a".into());
    world.settle();
    assert_eq!(
        (world.of_kind(Kind::Pod).count(), world.active(), world.ready()),
        (2, 2, 0)
    );
    // No node is there that could take the last step.
    world.edit(&["spec", "replicas"], 0);
    world.settle();
    assert_eq!(world.of_kind(Kind::Pod).count(), 0);
}

#[test]
fn a_pod_that_fits_nowhere_waits_and_says_why() {
    let mut world = World::new(spec(1));
    world.edit(
        &["spec", "template", "spec", "nodeSelector"],
        json!({"disk": "ssd"}),
    );
    world.run();
    let plan = world.plan();
    assert_eq!(
        plan.unplaced[0].message,
        "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector."
    );
    world.nodes[2].labels.insert("disk".into(), "ssd".into());
    world.run();
    assert_eq!(world.spread(), BTreeMap::from([("c".to_owned(), 1)]));
}

#[test]
fn pods_are_made_some_at_a_time_and_none_while_hundreds_wait() {
    let creates = |plan: &Plan| {
        let actions = plan.actions.iter();
        actions
            .filter(|action| matches!(action, Action::Create(pod) if pod.kind() == Some(Kind::Pod)))
            .count()
    };
    // Kubernetes' largest, and a room of 4 * 110 pods.
    let mut world = World::new(spec(i32::MAX.unsigned_abs()));
    world.act(world.plan());
    for (made, again) in [(500, true), (440, false), (0, false)] {
        let plan = world.plan();
        assert_eq!((creates(&plan), plan.again.is_some()), (made, again));
        world.act(plan);
    }
    assert_eq!(world.plan().unplaced.len(), 500);
    world.nodes.push(node("e"));
    for made in [110, 0] {
        let plan = world.plan();
        assert_eq!(creates(&plan), made);
        world.act(plan);
    }
}

#[test]
fn two_owners_that_see_the_same_make_the_same() {
    let mut world = World::new(spec(5));
    world.act(world.plan());
    assert_eq!(world.plan(), world.clone().plan());
    let names = |world: &World| -> Vec<String> {
        world
            .of_kind(Kind::Pod)
            .map(|pod| format!("{} {}", pod.name(), pod.str_at("/spec/nodeName")))
            .collect()
    };
    let (mut one, mut other) = (world.clone(), world);
    let plan = one.plan();
    one.act(plan.clone());
    other.act(plan.clone());
    other.act(plan);
    assert_eq!(names(&one), names(&other), "acting twice adds nothing");
    assert_eq!(names(&one).len(), 5);
}

#[derive(Clone, Debug)]
enum Change {
    Scale(u32),
    Image(u8),
    Pause(bool),
    Recreate(bool),
    Bounds(u32, u32),
    Liveness(usize, Liveness),
    Fail(usize),
    DeletePod(usize),
    Kubelets(Option<usize>),
    Wait(u64),
}

fn change() -> impl proptest::strategy::Strategy<Value = Change> {
    use proptest::strategy::Strategy as _;
    let liveness = prop_oneof![
        3 => Just(Liveness::Alive),
        2 => Just(Liveness::Dead),
        1 => Just(Liveness::Stopped),
        1 => Just(Liveness::AgentDown),
    ];
    prop_oneof![
        (0_u32..12).prop_map(Change::Scale),
        (0_u8..3).prop_map(Change::Image),
        any::<bool>().prop_map(Change::Pause),
        any::<bool>().prop_map(Change::Recreate),
        (0_u32..4, 0_u32..4).prop_map(|(surge, unavailable)| Change::Bounds(surge, unavailable)),
        (0_usize..4, liveness).prop_map(|(node, liveness)| Change::Liveness(node, liveness)),
        (0_usize..20).prop_map(Change::Fail),
        (0_usize..20).prop_map(Change::DeletePod),
        prop::option::of(1_usize..4).prop_map(Change::Kubelets),
        (0_u64..70).prop_map(Change::Wait),
    ]
}

impl World {
    fn change(&mut self, change: &Change) {
        let nth_pod = |world: &World, n: usize| {
            world
                .objects
                .keys()
                .filter(|key| key.kind == Kind::Pod)
                .nth(n)
                .cloned()
        };
        match *change {
            Change::Scale(replicas) => self.edit(&["spec", "replicas"], replicas),
            Change::Image(image) => self.edit(&IMAGE, format!("web:{image}")),
            Change::Pause(paused) => self.edit(&["spec", "paused"], paused),
            Change::Recreate(yes) => {
                self.edit(
                    &["spec", "strategy", "type"],
                    if yes { "Recreate" } else { "RollingUpdate" },
                );
            }
            Change::Bounds(surge, unavailable) => self.edit(
                &["spec", "strategy", "rollingUpdate"],
                json!({"maxSurge": surge, "maxUnavailable": unavailable}),
            ),
            Change::Liveness(node, liveness) => self.liveness(node, liveness),
            Change::Fail(n) => {
                if let Some(pod) = nth_pod(self, n) {
                    self.objects
                        .get_mut(&pod)
                        .unwrap()
                        .set(&["status", "phase"], "Failed");
                }
            }
            Change::DeletePod(n) => {
                if let Some(pod) = nth_pod(self, n) {
                    let pod = self.objects.get_mut(&pod).unwrap();
                    pod.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
                }
            }
            Change::Kubelets(lazy) => self.kubelets(lazy),
            Change::Wait(seconds) => self.time += Duration::from_secs(seconds),
        }
    }
}

proptest! {
    // A case plans some hundred times: ten seconds for all of them.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_happens_plans_settle_keep_bounds_and_end_with_what_is_wanted(
        changes in prop::collection::vec(change(), 0..40),
    ) {
        let mut world = World::new(spec(3));
        for change in &changes {
            world.change(change);
            let ready = world.ready();
            let had: u32 = world.of_kind(Kind::ReplicaSet).map(crate::deployment::replicas).sum();
            world.settle();
            let replicas = crate::deployment::replicas(world.deployment());
            let strategy = crate::deployment::strategy(world.deployment());
            let most = usize::try_from(had.max(replicas + strategy.max_surge())).unwrap();
            prop_assert!(world.active() <= most, "{change:?}: {} active", world.active());
            if let Strategy::RollingUpdate { .. } = strategy {
                let least = usize::try_from(replicas - strategy.max_unavailable(replicas)).unwrap();
                prop_assert!(world.ready() >= least.min(ready), "{change:?}: {ready} to {} ready", world.ready());
            }
        }
        world.edit(&["spec", "paused"], false);
        for node in 0..NAMES.len() {
            world.liveness(node, Liveness::Alive);
        }
        world.run();
        let replicas = usize::try_from(crate::deployment::replicas(world.deployment())).unwrap();
        let new = crate::deployment::new_replica_set_name(world.deployment(), &[]).unwrap();
        let updated = world.pods().iter().filter(|pod| pod.name().starts_with(&new)).count();
        prop_assert_eq!((updated, world.ready(), world.of_kind(Kind::Pod).count()), (replicas, replicas, replicas));
    }
}
