//! Ten nodes in virtual time: real stores, their sync frames over a bad network, the real planners and controllers, and a
//! pod runtime in memory. Users change things on any node while hosts crash, agents are killed and the network parts.
//! After the heal all must agree, want nothing, and run what is wanted; and what was wanted and ready must stay so meanwhile.
//!
//! `SEED=n cargo test -p reconcilers --test simulation` replays a failure. The seed decides all that this file decides; the
//! stores draw the ids of their actors themselves, so a tie between concurrent edits may fall otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reconcilers::controller::{Context, Garbage, NodeObjects, Reconciler, Statuses, Trigger, Workloads};
use reconcilers::fakes::{FakeClock, FakeEvents};
use reconcilers::nodes::Nodes;
use reconcilers::ownership::{CATCH_UP, Holding, holding};
use reconcilers::pod_state::Graces;
use reconcilers::ports::{Clock, Cluster, Liveness, NodeFacts, NodeObservation};
use schemas::{KINDS, Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{
    Author, Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Push, Revision, Store, Via, WatchEvent,
    WriteError,
};
use tokio::sync::{broadcast, watch};

const NODES: usize = 10;
const TICK: Duration = Duration::from_millis(250);
/// Trouble lasts so many ticks; then everything is healed.
const TROUBLE_TICKS: u32 = 160;
/// All must be well this long after the heal.
const HEAL_TICKS: u32 = 600;
/// A node is seen dead after so many ticks of silence.
const DETECTION_TICKS: u32 = 4;
/// Only what stays well so long is well.
const WELL_TICKS: u32 = 20;
/// Controllers look again at least this often.
const TIMER_TICKS: u32 = 4;
const NAMESPACE: &str = "default";

struct Frame {
    from: usize,
    to: usize,
    due: u32,
    bytes: bytes::Bytes,
}

/// A container of a pod.
struct Running {
    key: ObjectKey,
    ready_at: u32,
}

struct Host {
    id: NodeId,
    disk: MemoryDisk,
    /// None while the agent is down.
    agent: Option<Agent>,
    up: bool,
    /// By pod uid. Survives the agent, not the host.
    running: BTreeMap<String, Running>,
    /// What it last told the others, while it was there.
    said: BTreeMap<String, Arc<Value>>,
}

struct Agent {
    store: Store,
    pushes: broadcast::Receiver<Push>,
    clock: Arc<FakeClock>,
    cluster: watch::Sender<Arc<Cluster>>,
    heard: BTreeMap<usize, u32>,
    /// What the controllers saw at their last run.
    seen: (Revision, Arc<Cluster>),
    workloads: Workloads,
    statuses: Statuses,
    node_objects: NodeObjects,
    garbage: Garbage,
}

struct World {
    random: StdRng,
    tick: u32,
    hosts: Vec<Host>,
    /// Which side of the partition each host is on.
    side: Vec<u8>,
    frames: Vec<Frame>,
    /// Pushes into another side of the partition, if they are only late; then nobody exchanges until they are there.
    late: Option<Vec<Frame>>,
    log: String,
}

fn name(index: usize) -> String {
    format!("node{index}")
}

fn author(who: &str) -> Author {
    Author {
        manager: who.to_owned(),
        user: String::new(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

fn deployment_key(number: u32) -> ObjectKey {
    ObjectKey::new(Kind::Deployment, NAMESPACE, format!("web{number}"))
}

fn graces() -> Graces {
    Graces {
        restart: Duration::from_secs(10),
        ..Graces::default()
    }
}

impl Host {
    fn start(&mut self, tick: u32) {
        let options = OpenOptions {
            cluster_id: "simulation".into(),
            node: self.id.clone(),
            seal_key: [7; 32],
        };
        let store = Store::open_in_memory(self.disk.clone(), options).expect("a synced disk opens");
        let clock = Arc::new(FakeClock::default());
        clock.advance(TICK * tick);
        let empty = Arc::new(Cluster {
            me: self.id.clone(),
            nodes: BTreeMap::new(),
        });
        let (cluster, receiver) = watch::channel(empty.clone());
        let context = Context {
            store: store.clone(),
            cluster: receiver,
            clock: clock.clone(),
            events: Arc::new(FakeEvents::default()),
            node: self.id.clone(),
            faults: Arc::default(),
        };
        self.agent = Some(Agent {
            pushes: store.pushes(),
            store,
            clock,
            cluster,
            heard: BTreeMap::new(),
            seen: (Revision::default(), empty),
            workloads: Workloads::new(context.clone(), graces()),
            statuses: Statuses::new(context.clone(), graces()),
            node_objects: NodeObjects::new(context.clone()),
            garbage: Garbage::new(context),
        });
    }

    /// `kill -9`: what was not synced is gone.
    fn kill_agent(&mut self) {
        if self.agent.take().is_some() {
            self.disk = self.disk.after_power_loss();
        }
    }
}

/// One run of each key of a controller, as the loop does it on resync.
async fn pass<R: Reconciler>(reconciler: &R, store: &Store) {
    let scope = reconciler.scope();
    let kinds: Vec<Kind> = match scope.kinds.is_empty() {
        true => KINDS.iter().map(|row| row.kind).collect(),
        false => scope.kinds,
    };
    let mut keys: BTreeSet<R::Key> = reconciler.keys(&Trigger::Resync).into_iter().collect();
    for view in kinds.into_iter().flat_map(|kind| store.list(kind, None).items) {
        let event = WatchEvent::Put { view, previous: None };
        keys.extend(reconciler.keys(&Trigger::Store(event)));
    }
    for key in keys {
        reconciler
            .reconcile(&key)
            .await
            .expect("nothing fails but what others did first");
    }
}

impl Agent {
    /// Runs all controllers, if there is something new or it is time.
    async fn reconcile(&mut self, timers_are_due: bool) {
        let seen = (self.store.revision(), self.cluster.borrow().clone());
        let is_new = seen.0 != self.seen.0 || !Arc::ptr_eq(&seen.1, &self.seen.1);
        if is_new || timers_are_due {
            self.seen = seen;
            pass(&self.node_objects, &self.store).await;
            pass(&self.statuses, &self.store).await;
            pass(&self.workloads, &self.store).await;
            pass(&self.garbage, &self.store).await;
        }
    }
}

impl World {
    async fn new(seed: u64) -> Self {
        let hosts = (0..NODES).map(|index| Host {
            id: NodeId(format!("{index:064}")),
            disk: MemoryDisk::default(),
            agent: None,
            up: true,
            running: BTreeMap::new(),
            said: BTreeMap::new(),
        });
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            tick: 0,
            hosts: hosts.collect(),
            side: vec![0; NODES],
            frames: Vec::new(),
            late: None,
            log: String::new(),
        };
        for host in &mut world.hosts {
            host.start(0);
        }
        let store = world.store(0).expect("just started");
        store
            .create(
                Object::new(&ObjectKey::cluster(Kind::Namespace, NAMESPACE)),
                author("setup"),
            )
            .await
            .expect("a new store takes it");
        for (index, host) in world.hosts.iter().enumerate() {
            let mut member = Object::new(&ObjectKey::cluster(Kind::Member, &host.id.0));
            member.set(
                &["spec"],
                json!({"name": name(index), "address": format!("10.0.0.{index}")}),
            );
            store
                .create(member, author("setup"))
                .await
                .expect("a new store takes it");
        }
        world
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn note(&mut self, what: String) {
        let _ = writeln!(self.log, "{:>8.2} s  {what}", (TICK * self.tick).as_secs_f32());
    }

    fn store(&self, index: usize) -> Option<Store> {
        self.hosts[index].agent.as_ref().map(|agent| agent.store.clone())
    }

    fn connected(&self, one: usize, other: usize) -> bool {
        self.hosts[one].up && self.hosts[other].up && self.side[one] == self.side[other]
    }

    async fn step(&mut self, in_trouble: bool) {
        self.tick += 1;
        self.deliver(in_trouble).await;
        let digests: Vec<Option<String>> = (0..NODES)
            .map(|index| self.store(index).map(|store| store.digest()))
            .collect();
        for index in 0..NODES {
            self.observe(index, &digests);
            self.run_pods(index).await;
            let timers_are_due = (self.tick + index as u32).is_multiple_of(TIMER_TICKS);
            if let Some(agent) = &mut self.hosts[index].agent {
                agent.reconcile(timers_are_due).await;
            }
            self.push(index, in_trouble);
            self.exchange(index, in_trouble);
        }
    }

    /// Puts a frame on its way, if it is not lost; sometimes twice.
    fn send(&mut self, from: usize, to: usize, bytes: &bytes::Bytes, in_trouble: bool) {
        let (copies, delays) = match in_trouble {
            true => (u32::from(!self.chance(15)) + u32::from(self.chance(5)), 4),
            false => (1, 1),
        };
        for _ in 0..copies {
            let due = self.tick + 1 + self.random.random_range(0..delays);
            let bytes = bytes.clone();
            self.frames.push(Frame { from, to, due, bytes });
        }
    }

    async fn deliver(&mut self, in_trouble: bool) {
        let tick = self.tick;
        let (due, later) = std::mem::take(&mut self.frames)
            .into_iter()
            .partition(|frame| frame.due <= tick);
        self.frames = later;
        let due: Vec<Frame> = due;
        for frame in due {
            let Some(store) = self
                .store(frame.to)
                .filter(|_| self.connected(frame.from, frame.to))
            else {
                continue;
            };
            let peer = self.hosts[frame.from].id.clone();
            let answer = store
                .receive(&peer, &frame.bytes)
                .await
                .expect("frames of peers are well-formed");
            if let Exchange::Send(bytes) = answer {
                self.send(frame.to, frame.from, &bytes, in_trouble);
            }
        }
    }

    fn push(&mut self, index: usize, in_trouble: bool) {
        let mut fresh = Vec::new();
        if let Some(agent) = &mut self.hosts[index].agent {
            loop {
                match agent.pushes.try_recv() {
                    Ok(push) => fresh.extend(agent.store.push_frame(&[push])),
                    Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                    Err(_) => break,
                }
            }
        }
        for bytes in fresh {
            for to in (0..NODES).filter(|to| *to != index) {
                if self.connected(index, to) {
                    self.send(index, to, &bytes, in_trouble);
                } else if let Some(late) = &mut self.late {
                    late.push(Frame {
                        from: index,
                        to,
                        due: 0,
                        bytes: bytes.clone(),
                    });
                }
            }
        }
    }

    /// Begins an exchange with one peer whose digest differs, as gossip makes it known.
    fn exchange(&mut self, index: usize, in_trouble: bool) {
        let peer = self.random.random_range(0..NODES);
        let (Some(mine), Some(theirs)) = (self.store(index), self.store(peer)) else {
            return;
        };
        if self.late.is_some()
            || peer == index
            || !self.connected(index, peer)
            || mine.digest() == theirs.digest()
        {
            return;
        }
        if let Exchange::Send(bytes) = mine.begin_exchange(&self.hosts[peer].id) {
            self.send(index, peer, &bytes, in_trouble);
        }
    }

    /// Lets an agent see the cluster as gossip would show it; stores of one digest are in sync.
    fn observe(&mut self, index: usize, digests: &[Option<String>]) {
        let tick = self.tick;
        let reachable: Vec<bool> = (0..NODES).map(|other| self.connected(index, other)).collect();
        let agents: Vec<bool> = self.hosts.iter().map(|host| host.agent.is_some()).collect();
        let said: Vec<_> = self.hosts.iter().map(|host| host.said.clone()).collect();
        let ids: Vec<_> = self.hosts.iter().map(|host| host.id.clone()).collect();
        let Some(agent) = &mut self.hosts[index].agent else {
            return;
        };
        agent.clock.advance(TICK);
        let now = agent.clock.now();
        let before = agent.cluster.borrow().clone();
        let mut nodes = BTreeMap::new();
        for other in 0..NODES {
            let known = before.nodes.get(&ids[other]);
            let hears = reachable[other] && agents[other];
            if hears {
                agent.heard.insert(other, tick);
            }
            let Some(heard) = agent.heard.get(&other) else {
                continue;
            };
            let is_silent = tick - heard >= DETECTION_TICKS;
            let liveness = match (is_silent, reachable[other]) {
                (false, _) => Liveness::Alive,
                (true, true) => Liveness::AgentDown,
                (true, false) => Liveness::Dead,
            };
            let before = known.filter(|known| known.liveness == liveness);
            let since = before.map_or(now, |known| known.since);
            let in_sync = digests[index] == digests[other] || before.is_some_and(|known| known.in_sync);
            let pods = match (hears, known) {
                (false, Some(known)) => known.pods.clone(),
                _ => said[other].clone(),
            };
            let facts = NodeFacts {
                name: name(other),
                cpu_millis: 8000,
                memory_bytes: 16 << 30,
                max_pods: 110,
                ..NodeFacts::default()
            };
            nodes.insert(
                ids[other].clone(),
                Arc::new(NodeObservation {
                    liveness,
                    since,
                    in_sync,
                    facts,
                    pods,
                }),
            );
        }
        let cluster = Cluster {
            me: ids[index].clone(),
            nodes,
        };
        if *before != cluster {
            agent.cluster.send_replace(Arc::new(cluster));
        }
    }

    /// The node's part of each pod: starts what is placed here, stops what is not, takes the last step of deletion.
    async fn run_pods(&mut self, index: usize) {
        let (tick, start_ticks) = (self.tick, self.random.random_range(2..8));
        let host = &mut self.hosts[index];
        let Some(store) = host.agent.as_ref().map(|agent| agent.store.clone()) else {
            return;
        };
        let here = |pod: &Object| pod.str_at("/spec/nodeName") == name(index);
        let pods: Vec<Arc<Object>> = store
            .list(Kind::Pod, None)
            .items
            .into_iter()
            .map(|view| view.object)
            .filter(|pod| here(pod))
            .collect();
        let wanted: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| !pod.is_terminating())
            .map(|pod| pod.uid())
            .collect();
        host.running.retain(|uid, _| wanted.contains(uid.as_str()));
        for pod in &pods {
            let key = pod.key().expect("a stored object has a key");
            if pod.is_terminating() {
                let precondition = Precondition {
                    uid: Some(pod.uid().to_owned()),
                    resource_version: None,
                };
                match store.remove(&key, &precondition, author("kubelet")).await {
                    Ok(_) | Err(WriteError::NotFound(_) | WriteError::Conflict { .. }) => {}
                    Err(error) => panic!("{key}: {error}"),
                }
            } else {
                let ready_at = tick + start_ticks;
                host.running
                    .entry(pod.uid().to_owned())
                    .or_insert(Running { key, ready_at });
            }
        }
        host.said = host
            .running
            .iter()
            .map(|(uid, running)| {
                let is_ready = running.ready_at <= tick;
                let since = schemas::time::to_rfc3339(i64::from(running.ready_at));
                let status = if is_ready { "True" } else { "False" };
                let ready = json!({"type": "Ready", "status": status, "lastTransitionTime": since});
                (
                    uid.clone(),
                    Arc::new(json!({"phase": "Running", "conditions": [ready]})),
                )
            })
            .collect();
    }

    /// A user at a random node.
    async fn change_something(&mut self) {
        let index = self.random.random_range(0..NODES);
        let key = deployment_key(self.random.random_range(0..4));
        let replicas = self.random.random_range(0..7);
        let image = format!("web:{}", self.random.random_range(0..3));
        let dice = self.random.random_range(0..10);
        let Some(store) = self.store(index) else {
            return;
        };
        let user = author("user");
        let done = match (store.get(&key), dice) {
            (None, _) => {
                self.note(format!("node {index}: create {key} with {replicas} of {image}"));
                let mut deployment = Object::new(&key);
                let template = json!({
                    "metadata": {"labels": {"app": key.name}},
                    "spec": {"containers": [{"name": "web", "image": image}]},
                });
                let selector = json!({"matchLabels": {"app": key.name}});
                deployment.set(
                    &["spec"],
                    json!({"replicas": replicas, "selector": selector, "template": template}),
                );
                store.create(deployment, user).await
            }
            (Some(_), 0) => {
                self.note(format!("node {index}: delete {key}"));
                store.remove(&key, &Precondition::default(), user).await
            }
            (Some(_), 1..=5) => {
                self.note(format!("node {index}: scale {key} to {replicas}"));
                let change = |object: &Object| {
                    let mut object = object.clone();
                    object.set(&["spec", "replicas"], replicas);
                    Ok::<_, WriteError>(object)
                };
                store.update(&key, &Precondition::default(), user, change).await
            }
            (Some(_), _) => {
                self.note(format!("node {index}: {key} runs {image}"));
                let change = |object: &Object| {
                    let mut object = object.clone();
                    let containers = json!([{"name": "web", "image": image}]);
                    object.set(&["spec", "template", "spec", "containers"], containers);
                    Ok::<_, WriteError>(object)
                };
                store.update(&key, &Precondition::default(), user, change).await
            }
        };
        done.expect("nobody else writes in this moment");
    }

    fn break_something(&mut self) {
        let index = self.random.random_range(0..NODES);
        match self.random.random_range(0..6) {
            0 if self.hosts[index].up => {
                self.note(format!("host {index} loses power"));
                let host = &mut self.hosts[index];
                host.kill_agent();
                host.up = false;
                host.running.clear();
                host.said.clear();
            }
            1 if self.hosts[index].up && self.hosts[index].agent.is_some() => {
                self.note(format!("agent {index} is killed"));
                self.hosts[index].kill_agent();
            }
            2 => {
                self.side = (0..NODES).map(|_| self.random.random_range(0..2)).collect();
                self.note(format!("the network parts: {:?}", self.side));
            }
            3 => {
                self.note("the network heals".into());
                self.side = vec![0; NODES];
            }
            _ if self.hosts[index].agent.is_none() => {
                self.note(format!("host {index} starts"));
                self.hosts[index].up = true;
                self.hosts[index].start(self.tick);
            }
            _ => {}
        }
    }

    fn heal(&mut self) {
        self.note("all is healed".into());
        self.side = vec![0; NODES];
        for index in 0..NODES {
            self.hosts[index].up = true;
            if self.hosts[index].agent.is_none() {
                self.hosts[index].start(self.tick);
            }
        }
    }

    /// Goes on until nothing is wrong for a while; returns how long that took.
    async fn settle(&mut self, faults: impl Fn(&Self) -> String) -> Result<Duration, String> {
        let mut found = String::new();
        let mut well_for = 0;
        for tick in 1..=HEAL_TICKS {
            self.step(false).await;
            found = faults(self);
            well_for = if found.is_empty() { well_for + 1 } else { 0 };
            if well_for == WELL_TICKS {
                return Ok(TICK * (tick - WELL_TICKS));
            }
        }
        Err(format!(
            "{}\nstill wrong after {HEAL_TICKS} ticks:\n{found}",
            self.log
        ))
    }

    async fn delete_namespace(&mut self) {
        self.note("node 3: delete the namespace".into());
        let store = self.store(3).expect("all agents run");
        let key = ObjectKey::cluster(Kind::Namespace, NAMESPACE);
        let change = |object: &Object| {
            let mut object = object.clone();
            object.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
            Ok::<_, WriteError>(object)
        };
        let deleted = store
            .update(&key, &Precondition::default(), author("user"), change)
            .await;
        deleted.expect("it is there");
    }

    /// Tells what is left of the namespace after its deletion.
    fn leftovers(&self) -> String {
        let mut left = String::new();
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(agent) = &host.agent else { continue };
            let kinds = [Kind::Namespace, Kind::Deployment, Kind::ReplicaSet, Kind::Pod];
            for view in kinds
                .into_iter()
                .flat_map(|kind| agent.store.list(kind, None).items)
            {
                let _ = writeln!(left, "node {index} has {}", view.key);
            }
            for running in host.running.values() {
                let _ = writeln!(left, "node {index} runs {}", running.key);
            }
        }
        left
    }

    /// Tells what is not as it should be; empty when all is well.
    fn faults(&self) -> String {
        let mut faults = String::new();
        let stores: Vec<Store> = (0..NODES).filter_map(|index| self.store(index)).collect();
        let digests: BTreeSet<String> = stores.iter().map(Store::digest).collect();
        if digests.len() != 1 {
            let _ = writeln!(faults, "{} different digests", digests.len());
            return faults;
        }
        let store = &stores[0];
        let mut wanted = 0;
        for view in store.list(Kind::Deployment, None).items {
            let replicas = view.object.i64_at("/spec/replicas").unwrap_or(1);
            wanted += replicas;
            for field in [
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
            ] {
                // A zero is left out.
                let shown = view
                    .object
                    .i64_at(&format!("/status/{field}"))
                    .unwrap_or_default();
                if shown != replicas {
                    let _ = writeln!(faults, "{}: {field} {shown} of {replicas}", view.key);
                }
            }
        }
        let pods = store.list(Kind::Pod, None).items;
        let running: Vec<&Running> = self.hosts.iter().flat_map(|host| host.running.values()).collect();
        let counts = [pods.len(), running.len()];
        if counts != [usize::try_from(wanted).unwrap_or_default(); 2] {
            let keys: Vec<String> = running.iter().map(|running| running.key.name.clone()).collect();
            let _ = writeln!(faults, "{wanted} wanted, {} pods, running {keys:?}", pods.len());
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(agent) = &host.agent else { continue };
            for view in agent.store.list(Kind::Deployment, None).items {
                let plan = agent.workloads.plan(&view.key);
                if !plan.actions.is_empty() {
                    let _ = writeln!(faults, "node {index} would still do {:?}", plan.actions);
                }
            }
        }
        faults
    }
}

/// Runs one life of a cluster; returns what happened if it did not end well.
async fn simulate(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed).await;
    for _ in 0..20 {
        world.step(false).await;
    }
    for _ in 0..TROUBLE_TICKS {
        if world.chance(15) {
            world.change_something().await;
        }
        if world.chance(8) {
            world.break_something();
        }
        world.step(true).await;
    }
    world.heal();
    let after = world.settle(World::faults).await?;
    world.delete_namespace().await;
    world.settle(World::leftovers).await?;
    println!("SEED={seed}: well {after:?} after the heal");
    Ok(())
}

/// Pods of a Deployment that run and are ready somewhere.
fn ready_pods(world: &World, deployment: &ObjectKey) -> BTreeSet<String> {
    let prefix = format!("{}-", deployment.name);
    let running = world.hosts.iter().flat_map(|host| host.running.values());
    running
        .filter(|running| running.ready_at <= world.tick && running.key.name.starts_with(&prefix))
        .map(|running| running.key.name.clone())
        .collect()
}

/// The owner of a Deployment is cut off, the others scale it up, and after the heal what they did reaches the owner in small
/// parts, the newest first.
async fn heal_in_small_parts() {
    let mut world = World::new(1).await;
    let key = deployment_key(0);
    let mut deployment = Object::new(&key);
    let template = json!({
        "metadata": {"labels": {"app": key.name}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    });
    let selector = json!({"matchLabels": {"app": key.name}});
    deployment.set(
        &["spec"],
        json!({"replicas": 2, "selector": selector, "template": template}),
    );
    let store = world.store(0).expect("all agents run");
    let created = store.create(deployment, author("user")).await;
    created.expect("a new store takes it");
    let settled = world.settle(World::faults).await;
    settled.expect("nothing is in its way");

    let members: Vec<_> = store.list(Kind::Member, None).items;
    let members: Vec<_> = members.into_iter().map(|view| view.object).collect();
    let owns = |host: &Host| {
        let agent = host.agent.as_ref().expect("all agents run");
        let nodes = Nodes::read(&members, &[], &agent.cluster.borrow());
        holding(&key, &host.id, &nodes, agent.clock.now()) == Holding::Mine
    };
    let owner = world.hosts.iter().position(owns).expect("one owns it");
    world.side[owner] = 1;
    world.late = Some(Vec::new());
    let other = world.store((owner + 1) % NODES).expect("all agents run");
    let scale = |object: &Object| {
        let mut object = object.clone();
        object.set(&["spec", "replicas"], 6);
        Ok::<_, WriteError>(object)
    };
    let scaled = other
        .update(&key, &Precondition::default(), author("user"), scale)
        .await;
    scaled.expect("nobody else writes in this moment");
    for _ in 0..40 {
        world.step(false).await;
    }
    assert!(ready_pods(&world, &key).len() >= 6, "the others scale it");

    world.heal();
    let mut late: Vec<Frame> = world.late.replace(Vec::new()).unwrap_or_default();
    late.retain(|frame| frame.to == owner);
    assert!(late.len() >= 5, "the scale and four pods, {}", late.len());
    let all_are_there = late.len() as u32;
    assert!(TICK * all_are_there < CATCH_UP, "owners wait so long");
    for (due, frame) in (world.tick + 1..).zip(late.into_iter().rev()) {
        world.frames.push(Frame { due, ..frame });
    }
    for tick in 0..HEAL_TICKS / 10 {
        if tick == all_are_there {
            world.late = None;
        }
        world.step(false).await;
        let ready = ready_pods(&world, &key);
        assert!(ready.len() >= 6, "after {tick} ticks: {ready:?}");
    }
    let settled = world.settle(World::faults).await;
    settled.expect("the heal is over");
}

#[test]
fn a_heal_takes_away_no_ready_pod_that_is_wanted() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime starts");
    runtime.block_on(heal_in_small_parts());
}

#[test]
fn ten_nodes_agree_and_run_what_is_wanted_after_any_trouble() {
    let seeds: Vec<u64> = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (1..=2).collect(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime starts");
    for seed in seeds {
        if let Err(story) = runtime.block_on(simulate(seed)) {
            panic!("SEED={seed}\n{story}");
        }
    }
}
