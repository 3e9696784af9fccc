//! The simulated cluster: virtual time, events in order, the network, and what is checked while it runs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use schemas::{Kind, Object, ObjectKey};
use sha2::{Digest, Sha256};

use super::model::{self, Effect, Model};
use super::node::{Acknowledged, Asked, Fate, Intent, Node, Outcome, Purpose};
use super::operations::{NAMES, take};
use crate::frame::{self, Body, Delta};
use crate::random::seed;
use crate::tests::author;
use crate::{CommitError, Exchange, Store, SyncError, View, WriteError};

/// Between two operations, on average.
const OPERATION_MS: u64 = 40;
/// Until what is queued is committed, at most.
const COMMIT_MS: u64 = 12;

/// So much faster or slower a clock may run: seconds apart when a seed ends, as others are after weeks.
const DRIFT_PPM: i64 = 300_000;

/// What happens at some time.
pub(super) enum Event {
    Deliver(Message),
    Commit {
        node: usize,
        life: u32,
    },
    Operate,
    Exchange {
        node: usize,
    },
    /// Two nodes compare what they have, beside what they do anyway.
    Meet {
        node: usize,
        peer: usize,
    },
    /// A user edits an object, at a node or (None) at any that is with the most.
    Edit {
        node: Option<usize>,
        key: ObjectKey,
    },
    Propose,
    ProposeAgain,
    Close,
    Trouble,
    Restart {
        node: usize,
    },
    Room {
        node: usize,
    },
    Heal,
}

pub(super) enum Content {
    /// A frame; of an exchange, who began it.
    Frame {
        bytes: Bytes,
        begun_by: Option<usize>,
    },
    /// An exchange that the receiver began has nothing more to say.
    Ended,
    Ask {
        bytes: Bytes,
        proposal: u64,
    },
    Agree {
        bytes: Bytes,
        proposal: u64,
    },
}

pub(super) struct Message {
    from: usize,
    to: usize,
    content: Content,
}

/// How often each thing happened.
#[derive(Default, Clone, Debug, PartialEq)]
pub(super) struct Counters(pub(super) BTreeMap<&'static str, u64>);

impl Counters {
    pub(super) fn bump(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(super) fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

/// How bad things are, drawn once a seed.
pub(super) struct Weather {
    pub(super) loss: f64,
    pub(super) duplication: f64,
    pub(super) longest_delay_ms: u64,
    /// Between two troubles, on average.
    pub(super) trouble_ms: u64,
    /// Histories of so many changes are squashed, but for the last ones.
    pub(super) long: u64,
    pub(super) kept: usize,
    /// So many tombstones are worth closing a round.
    pub(super) many: usize,
    /// Of the removals of Deployments that come to somebody's mind, so many happen: where few do, histories get long.
    pub(super) removals: f64,
    /// Names in use.
    pub(super) names: usize,
}

pub(super) struct World {
    pub(super) random: StdRng,
    pub(super) now_ms: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) model: Model,
    pub(super) counters: Counters,
    pub(super) weather: Weather,
    /// Which side of the partition each node is on.
    pub(super) side: Vec<u8>,
    /// By node: an object as it was read some time ago.
    pub(super) remembered: BTreeMap<usize, View>,
    /// Objects that were removed on each node.
    pub(super) removed_by: BTreeMap<usize, BTreeSet<(ObjectKey, String)>>,
    pub(super) operations_left: usize,
    pub(super) nodes_max: usize,
    pub(super) is_healed: bool,
    /// Until then one node is on its own side, and no other partition comes.
    pub(super) away_until_ms: u64,
    pub(super) proposals: u64,
    /// How often a node was looked at.
    pub(super) looks: u64,
    pub(super) events: BTreeMap<(u64, u64), Event>,
    event: u64,
    failure: Option<String>,
    pub(super) trace: Sha256,
    pub(super) log: Option<String>,
}

impl World {
    pub(super) fn new(number: u64, nodes: usize, operations: usize, is_logged: bool) -> Self {
        seed(number);
        let mut random = StdRng::seed_from_u64(number);
        let weather = Weather {
            loss: [0.0, 0.05, 0.3].choose(&mut random).copied().unwrap_or_default(),
            duplication: [0.0, 0.1].choose(&mut random).copied().unwrap_or_default(),
            longest_delay_ms: [20, 200, 3000].choose(&mut random).copied().unwrap_or(20),
            trouble_ms: [150, 400, 1500].choose(&mut random).copied().unwrap_or(400),
            long: random.random_range(3..10),
            kept: random.random_range(1..4),
            many: random.random_range(1..20),
            removals: [0.15, 1.0].choose(&mut random).copied().unwrap_or(1.0),
            names: random.random_range(1..=NAMES.len()),
        };
        let mut world = Self {
            random,
            now_ms: 0,
            nodes: Vec::new(),
            model: Model::default(),
            counters: Counters::default(),
            weather,
            side: Vec::new(),
            remembered: BTreeMap::new(),
            removed_by: BTreeMap::new(),
            operations_left: operations,
            nodes_max: nodes + nodes / 3 + 1,
            is_healed: true,
            away_until_ms: 0,
            proposals: 0,
            looks: 0,
            events: BTreeMap::new(),
            event: 0,
            failure: None,
            trace: Sha256::new(),
            log: is_logged.then(String::new),
        };
        for node in 0..nodes {
            world.add_node();
            world.nodes[node].is_caught_up = true;
        }
        for node in 0..nodes {
            world.admit(0, node);
        }
        // All begin in step.
        for node in 1..nodes {
            world.exchange(node, 0);
            world.drain();
        }
        world.is_healed = false;
        for (event, after_ms) in [
            (Event::Operate, 1),
            (Event::Propose, 100),
            (Event::Close, 300),
            (Event::Trouble, 200),
        ] {
            world.after(after_ms, event);
        }
        for node in 0..nodes {
            let after_ms = world.random.random_range(0..400);
            world.after(after_ms, Event::Exchange { node });
        }
        world
    }

    pub(super) fn add_node(&mut self) -> usize {
        let number = self.nodes.len();
        let mut node = Node::new(number);
        if let Err(error) = node.start() {
            self.fail(format!("a new store does not open: {error}"));
        }
        node.clock_ahead_s = self.random.random_range(-5..5);
        node.clock_drift_ppm = self.random.random_range(-DRIFT_PPM..DRIFT_PPM);
        self.nodes.push(node);
        self.side.push(0);
        number
    }

    /// Writes on `at` that `node` is a member.
    pub(super) fn admit(&mut self, at: usize, node: usize) {
        let member = Object::new(&ObjectKey::cluster(Kind::Member, &self.nodes[node].id.0));
        if let Some(agent) = &mut self.nodes[at].agent {
            let store = agent.store.clone();
            agent.begin(Purpose::Own, async move {
                Outcome::Squash(match store.create(member, author("membership")).await {
                    Ok(_) | Err(WriteError::Exists(_)) => Ok(0),
                    Err(WriteError::Commit(error)) => Err(error),
                    Err(other) => Err(CommitError::Failed(other.to_string())),
                })
            });
        }
        self.go_on(at);
    }

    // ------------------------------------------------------------ time

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.event += 1;
        self.events.insert((self.now_ms + ms, self.event), event);
    }

    /// Runs until all operations were done.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while self.operations_left > 0 {
            self.next();
            self.check()?;
        }
        Ok(())
    }

    /// Runs until nothing is under way any more.
    pub(super) fn drain(&mut self) {
        while self.failure.is_none() && !self.events.is_empty() {
            self.next();
        }
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        self.failure.take().map_or(Ok(()), Err)
    }

    pub(super) fn fail(&mut self, what: String) {
        self.note(|| format!("FAILED: {what}"));
        self.failure.get_or_insert(what);
    }

    /// Something that a replay must repeat.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>8} ms  {}\n", self.now_ms, what());
        self.trace.update(&line);
        if let Some(log) = &mut self.log {
            log.push_str(&line);
        }
    }

    /// Something for who reads the log of a replay.
    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push_str(&format!("{:>8} ms  {}\n", self.now_ms, what()));
        }
    }

    fn next(&mut self) {
        let Some(((at_ms, _), event)) = self.events.pop_first() else {
            return;
        };
        self.now_ms = at_ms;
        match event {
            Event::Deliver(message) => self.deliver(message),
            Event::Commit { node, life } => self.commit(node, life),
            Event::Restart { node } => self.restart(node),
            Event::Room { node } => self.nodes[node].disk.set_full(false),
            // The rest is what makes things go on and wrong, until they are to end.
            _ if self.is_healed => {}
            Event::Operate => {
                let ready: Vec<usize> = (0..self.nodes.len()).filter(|at| self.is_ready(*at)).collect();
                if let Some(node) = ready.choose(&mut self.random).copied() {
                    self.operate(node);
                }
                let ms = self.random.random_range(0..2 * OPERATION_MS);
                self.after(ms, Event::Operate);
            }
            Event::Exchange { node } => {
                let peers: Vec<usize> = (0..self.nodes.len())
                    .filter(|at| self.is_connected(node, *at))
                    .collect();
                if let Some(agent) = &self.nodes[node].agent {
                    agent.store.set_alone(peers.is_empty());
                }
                if let Some(peer) = peers.choose(&mut self.random).copied() {
                    self.exchange(node, peer);
                }
                let ms = self.random.random_range(100..1000);
                self.after(ms, Event::Exchange { node });
            }
            Event::Meet { node, peer } => {
                if self.is_connected(node, peer) {
                    self.exchange(node, peer);
                }
            }
            Event::Edit { node, key } => self.edit_somewhere(node, &key),
            Event::ProposeAgain => self.propose(),
            Event::Propose => {
                self.propose();
                let ms = self.random.random_range(50..600);
                self.after(ms, Event::Propose);
            }
            Event::Close => {
                self.propose_closing();
                let ms = self.random.random_range(50..600);
                self.after(ms, Event::Close);
            }
            Event::Trouble => {
                self.trouble();
                let ms = self.random.random_range(0..2 * self.weather.trouble_ms);
                self.after(ms, Event::Trouble);
            }
            Event::Heal if self.now_ms < self.away_until_ms => {}
            Event::Heal => self.side.fill(0),
        }
    }

    pub(super) fn chance(&mut self, chance: f64) -> bool {
        self.random.random_bool(chance)
    }

    pub(super) fn store(&self, node: usize) -> Option<Store> {
        self.nodes[node].agent.as_ref().map(|agent| agent.store.clone())
    }

    pub(super) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].agent.is_some()
    }

    /// Users may write here.
    pub(super) fn is_ready(&self, node: usize) -> bool {
        self.is_up(node) && self.nodes[node].is_caught_up
    }

    pub(super) fn is_connected(&self, one: usize, other: usize) -> bool {
        one != other && self.is_up(one) && self.is_up(other) && self.side[one] == self.side[other]
    }

    // ------------------------------------------------------------ the network

    pub(super) fn send(&mut self, from: usize, to: usize, content: Content) {
        let loss = match &content {
            Content::Frame { .. } | Content::Ended => self.weather.loss,
            // All have to hear and to be heard.
            Content::Ask { .. } | Content::Agree { .. } => self.weather.loss / 4.0,
        };
        if !self.is_healed && self.chance(loss) {
            self.counters.bump("messages lost");
            return;
        }
        if let Content::Frame { bytes, begun_by } = &content
            && !self.is_healed
            && self.chance(self.weather.duplication)
        {
            self.counters.bump("messages doubled");
            let content = Content::Frame {
                bytes: bytes.clone(),
                begun_by: *begun_by,
            };
            self.on_its_way(from, to, content);
        }
        self.on_its_way(from, to, content);
    }

    fn on_its_way(&mut self, from: usize, to: usize, content: Content) {
        let longest_ms = if self.is_healed {
            2
        } else if self.chance(0.9) {
            20
        } else {
            self.weather.longest_delay_ms
        };
        let ms = self.random.random_range(1..=longest_ms);
        self.after(ms, Event::Deliver(Message { from, to, content }));
    }

    fn deliver(&mut self, message: Message) {
        let Message { from, to, content } = message;
        if self.nodes[from].is_retired || self.side[from] != self.side[to] {
            return;
        }
        let peer = self.nodes[from].id.clone();
        let Some(agent) = &mut self.nodes[to].agent else {
            return;
        };
        self.counters.bump("messages delivered");
        if let Content::Frame { bytes, .. } = &content {
            let earlier = changes_of_earlier_epochs(&agent.store, bytes);
            self.counters.add("changes of earlier epochs delivered", earlier);
        }
        match content {
            Content::Frame { bytes, begun_by } => {
                agent.receive(Purpose::Frame { from, begun_by }, peer, bytes)
            }
            Content::Ask { bytes, proposal } => agent.receive(Purpose::Ask { from, proposal }, peer, bytes),
            Content::Ended => self.caught_up(to),
            Content::Agree { bytes, proposal } => self.agreed(to, from, proposal, &bytes),
        }
        self.go_on(to);
    }

    /// A node has heard all that a peer had.
    fn caught_up(&mut self, node: usize) {
        let member = ObjectKey::cluster(Kind::Member, &self.nodes[node].id.0);
        let is_member = self.store(node).is_some_and(|store| store.get(&member).is_some());
        if !self.nodes[node].is_caught_up && is_member {
            self.counters.bump("joiners in step");
            self.nodes[node].is_caught_up = true;
        }
    }

    pub(super) fn exchange(&mut self, node: usize, peer: usize) {
        let (Some(store), Some(other)) = (self.store(node), self.store(peer)) else {
            return;
        };
        if store.digest() == other.digest() {
            self.caught_up(node);
            return;
        }
        self.counters.bump("exchanges begun");
        if let Exchange::Send(bytes) = store.begin_exchange(&self.nodes[peer].id) {
            self.send(
                node,
                peer,
                Content::Frame {
                    bytes,
                    begun_by: Some(node),
                },
            );
        }
    }

    // ------------------------------------------------------------ the nodes

    /// Lets a node's tasks go on, and takes what ended.
    pub(super) fn go_on(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let ended = agent.poll();
        let life = self.nodes[node].life;
        for (purpose, outcome) in ended {
            self.ended(node, purpose, outcome);
        }
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        if !agent.tasks.is_empty() && !agent.is_commit_due {
            agent.is_commit_due = true;
            let ms = self.random.random_range(1..=COMMIT_MS);
            self.after(ms, Event::Commit { node, life });
        }
    }

    fn commit(&mut self, node: usize, life: u32) {
        if self.nodes[node].life != life {
            return;
        }
        let disk = self.nodes[node].disk.clone();
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        agent.is_commit_due = false;
        let fate = agent.fate;
        if fate == Fate::CutInSync {
            disk.set_failing(true);
        }
        agent.committer.commit_queued();
        self.watch(node);
        if fate != Fate::CutBeforeAnswer || self.chance(0.5) {
            self.push(node);
        }
        if fate != Fate::CutBeforeAnswer {
            self.go_on(node);
        }
        self.nodes[node].revision = self.store(node).map_or(0, |store| store.revision().0);
        if fate != Fate::Well {
            self.crash(node);
        }
    }

    /// Sends what was committed to all peers that are there.
    fn push(&mut self, node: usize) {
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let mut pushes = Vec::new();
        while let Ok(push) = agent.pushes.try_recv() {
            pushes.extend(agent.store.push_frame(&[push]));
        }
        let mut conflicts = 0;
        while agent.conflicts.try_recv().is_ok() {
            conflicts += 1;
        }
        self.counters.add("conflicts told", conflicts);
        for bytes in pushes {
            for peer in 0..self.nodes.len() {
                if self.is_connected(node, peer) {
                    self.send(
                        node,
                        peer,
                        Content::Frame {
                            bytes: bytes.clone(),
                            begun_by: None,
                        },
                    );
                }
            }
        }
    }

    fn ended(&mut self, node: usize, purpose: Purpose, outcome: Outcome) {
        match (purpose, outcome) {
            (Purpose::User(intent), Outcome::User(result)) => self.answered(node, intent, result),
            (Purpose::Frame { from, begun_by }, Outcome::Frame(result)) => match self.exchanged(node, result)
            {
                Some(Exchange::Send(bytes)) => self.send(node, from, Content::Frame { bytes, begun_by }),
                Some(Exchange::Done) if begun_by == Some(node) => self.caught_up(node),
                Some(Exchange::Done) if begun_by == Some(from) => self.send(node, from, Content::Ended),
                Some(Exchange::Done) | None => {}
            },
            (Purpose::Ask { from, proposal }, Outcome::Frame(result)) => {
                if let Some(Exchange::Send(bytes)) = self.exchanged(node, result) {
                    self.send(node, from, Content::Agree { bytes, proposal });
                }
            }
            (Purpose::Own, Outcome::Squash(Ok(squashed))) => {
                self.counters.add("histories squashed", squashed as u64)
            }
            (Purpose::Own, Outcome::Squash(Err(_))) => {}
            (Purpose::Propose { peers }, Outcome::Propose(Ok(Some(closing)))) => {
                self.counters.bump("rounds proposed");
                let bytes = closing.frame();
                self.ask(node, peers, bytes, Asked::Close(closing));
            }
            (Purpose::Own, Outcome::Close(Ok(true))) => self.counters.bump("rounds closed"),
            (Purpose::Own, Outcome::Close(_)) | (Purpose::Propose { .. }, Outcome::Propose(_)) => {}
            _ => self.fail("an outcome of another task".to_owned()),
        }
    }

    fn exchanged(&mut self, node: usize, result: Result<Exchange, SyncError>) -> Option<Exchange> {
        match result {
            Ok(next) => Some(next),
            Err(SyncError::Commit(_)) => {
                self.counters.bump("frames refused by disks");
                None
            }
            Err(error) => {
                self.fail(format!("node {node} refuses a frame: {error}"));
                None
            }
        }
    }

    /// A user got an answer.
    fn answered(&mut self, node: usize, intent: Intent, result: Result<View, WriteError>) {
        match result {
            Ok(view) => self.acknowledged(node, intent, view),
            Err(WriteError::Commit(CommitError::Failed(_))) => {
                self.counters.bump("writes on failed disks");
                self.unanswered(intent);
            }
            Err(WriteError::Commit(CommitError::Full(_))) => {
                self.counters.bump("writes refused by full disks")
            }
            Err(WriteError::CatchingUp(_)) => self.counters.bump("writes refused while catching up"),
            Err(WriteError::Conflict { .. }) => self.counters.bump("conditional writes refused"),
            Err(WriteError::Exists(_) | WriteError::NotFound(_)) => self.counters.bump("writes refused"),
            Err(error) => self.fail(format!("node {node} refuses a write: {error}")),
        }
    }

    /// A user got no answer: what was asked for may have happened.
    pub(super) fn unanswered(&mut self, intent: Intent) {
        self.counters.bump("writes without an answer");
        match intent {
            Intent::Create { key, written } => self.model.wrote(&key, None, written),
            Intent::Edit { key, executed, .. } => {
                if let Some(done) = take(&executed) {
                    self.model.wrote(&key, Some(&done.uid), done.written);
                }
            }
            Intent::Remove { key, uid } => self.model.removed(&key, &uid, false),
        }
    }

    fn acknowledged(&mut self, node: usize, intent: Intent, view: View) {
        self.counters.bump("writes acknowledged");
        let uid = view.object.uid().to_owned();
        let (key, latest) = match intent {
            Intent::Create { key, mut written } => {
                written.is_acknowledged = true;
                let stamp = written.stamp;
                self.is_shown(node, &view, &written);
                self.model.wrote(&key, Some(&uid), written);
                (key, Acknowledged::Holds { uid, stamp })
            }
            Intent::Edit {
                key,
                executed,
                expected,
            } => {
                let Some(mut done) = take(&executed) else {
                    return self.fail(format!("an edit of {key} was acknowledged without being made"));
                };
                if done.uid != uid {
                    self.fail(format!("an edit of {key} {} is shown on {uid}", done.uid));
                }
                if let Some(expected) = expected {
                    self.counters.bump("conditional writes");
                    if *expected.object != done.before {
                        self.fail(format!(
                            "a write to {key} at revision {} found another object",
                            expected.revision
                        ));
                    }
                }
                done.written.is_acknowledged = true;
                let stamp = done.written.stamp;
                self.is_shown(node, &view, &done.written);
                self.model.wrote(&key, Some(&uid), done.written);
                (key, Acknowledged::Holds { uid, stamp })
            }
            Intent::Remove { key, uid: wanted } => {
                if wanted != uid {
                    self.fail(format!("a removal of {key} {wanted} took {uid} away"));
                }
                self.model.removed(&key, &uid, true);
                self.removed_by
                    .entry(node)
                    .or_default()
                    .insert((key.clone(), uid.clone()));
                (key, Acknowledged::Removed { uid })
            }
        };
        self.note(|| format!("node {node} acknowledged {key} {latest:?} at {}", view.revision));
        self.nodes[node].acknowledged.insert(key, latest);
    }

    /// The answer to a write must show it.
    fn is_shown(&mut self, node: usize, view: &View, written: &model::Written) {
        let counter = view.revision.0;
        if counter <= self.nodes[node].revision {
            self.fail(format!(
                "revision {counter} on node {node} comes after {}",
                self.nodes[node].revision
            ));
        }
        let fields = model::fields(&view.object);
        for (field, effect) in &written.effects {
            let is_shown = match effect {
                Effect::Put(value) | Effect::Add(value) | Effect::Edit(value) => {
                    fields.get(field) == Some(value)
                }
                Effect::Delete | Effect::Remove => !fields.contains_key(field),
            };
            if !is_shown {
                self.fail(format!(
                    "{} on node {node} was told {written:?} and shows {fields:?}",
                    view.key
                ));
            }
        }
    }
}

/// Counts the documents in a frame that a store has of a later epoch.
fn changes_of_earlier_epochs(store: &Store, frame: &[u8]) -> u64 {
    let items = match frame::decode(frame) {
        Ok((_, Body::Push { items } | Body::Changes { items, .. } | Body::Answer { items, .. })) => items,
        Ok(_) | Err(_) => return 0,
    };
    let index = store.shared.index();
    let is_earlier = |item: &Delta| {
        let record = item.key.parse().ok().and_then(|key| index.record(&key));
        record.zip(item.live.as_ref()).is_some_and(|(record, live)| {
            record.incarnation == live.incarnation && record.epoch > live.epoch && !live.changes.is_empty()
        })
    };
    items.iter().filter(|item| is_earlier(item)).count() as u64
}
