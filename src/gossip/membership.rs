//! The one task that owns chitchat: publishes what this node says, turns what others say into [`Cluster`], probes who
//! falls silent, and remembers who is where.
//!
//! Woken by events (values heard, liveness changed, something to publish, a member added or removed); a tick drives
//! only probes and knocking at nodes that gossip does not reach.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use futures::FutureExt;
use rand::seq::IteratorRandom;
use reconcilers::ports::{Clock, Cluster};
use schemas::Kind;
use store::{NodeId, Store, WatchScope};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::connections::{Connections, Peers};
use super::credentials::{Credentials, Remembered};
use super::error::Error;
use super::members::{self, Member};
use super::observation::{Observations, Peer, Probe};
use super::published::{Announcements, Published, STATE, STOPPED};
use super::sync::Exchanged;
use super::transport::{Dropped, SealedTransport};

/// A change reaches 50 nodes in 0.4-0.6 s, for 15 % of a core of all 50 together (PLATFORM).
const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);
/// Silence after which a node is probed: with a window of one heartbeat and a prior of weight 5, the mean interval
/// that phi divides by is (5 · 0.25 s + last) / 6, about 0.22-0.29 s whatever the size and traffic of the cluster,
/// so 6 means 1.3-1.75 s. A probe decides what the silence means, so a stalled machine costs a probe, not a flap.
const PHI_THRESHOLD: f64 = 6.0;
const HEARTBEATS_SAMPLED: usize = 1;
const USUAL_HEARTBEAT: Duration = Duration::from_millis(250);
/// Intervals above this are stalls and teach nothing.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(1);
/// chitchat keeps a start that it does not hear for so long; digests carry it for half of it. An agent in a crash
/// loop every 5 s leaves 360 entries of 110 bytes in digests of at most 64 KiB. We keep observations ourselves.
const DEAD_KEPT: Duration = Duration::from_secs(60 * 60);
/// Deleted values are remembered for so long; who was away longer is told everything again.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(15 * 60);
/// A fresh value goes to so many peers at once; from there it spreads in rounds.
const PEERS_TOLD_AT_ONCE: usize = 3;
/// Between two looks: everything that happens meanwhile is taken in together.
const PAUSE: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(250);
/// Between probes of one silent node, and between knocks.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Probes under way; a cluster of 50 that is cut in two probes 25.
const PROBES: usize = 64;
/// After so many probes (as many seconds), a node that answers them and is not heard is worth a warning.
const ANSWERS_WITHOUT_GOSSIP: u32 = 10;
/// After the stop is announced to all: one exchange is three datagrams, a busy host takes its time.
const STOP_TIME: Duration = Duration::from_millis(300);
/// After a watch was cut off for being slow.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// What the task is made of.
pub(super) struct Membership {
    pub(super) store: Store,
    pub(super) credentials: Arc<Credentials>,
    pub(super) connections: Arc<Connections>,
    pub(super) announcements: Arc<Announcements>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cluster: watch::Sender<Arc<Cluster>>,
    pub(super) peers: watch::Sender<Arc<Peers>>,
    /// Written by sync.
    pub(super) exchanged: watch::Receiver<Exchanged>,
    /// This node removes itself.
    pub(super) leaving: CancellationToken,
    /// Cancelled when others have removed this node.
    pub(super) removed: CancellationToken,
    pub(super) restart_grace: Duration,
}

/// Peers as far as the store and memory know them, before gossip has shown any.
pub(super) fn first_peers(me: &NodeId, remembered: &Remembered, members: &BTreeMap<NodeId, Member>) -> Peers {
    addresses(me, remembered, members)
        .into_iter()
        .map(|(id, address)| (id, unheard(address)))
        .collect()
}

fn unheard(address: SocketAddr) -> Peer {
    Peer {
        address,
        live: false,
        digest: String::new(),
        generation: 0,
    }
}

/// Where the other nodes should be: as admitted, else as remembered.
fn addresses(
    me: &NodeId,
    remembered: &Remembered,
    members: &BTreeMap<NodeId, Member>,
) -> BTreeMap<NodeId, SocketAddr> {
    let mut addresses = remembered.peers.clone();
    addresses.extend(members.values().map(|member| (member.id.clone(), member.address)));
    addresses.retain(|id, _| id != me && !remembered.removed.contains(id));
    addresses
}

/// Wakes `changed` for every change of these kinds (none: all), for as long as it runs.
pub(super) async fn notify_on_change(store: Store, kinds: Vec<Kind>, changed: Arc<Notify>) {
    loop {
        let scope = WatchScope {
            kinds: kinds.clone(),
            namespace: None,
        };
        if let Ok(mut events) = store.watch(scope, None) {
            // Whatever happened before the watch began.
            changed.notify_one();
            while events.recv().await.is_some() {
                changed.notify_one();
            }
        }
        sleep(WATCH_PAUSE).await;
    }
}

impl Membership {
    /// Starts gossip as `id`, a new start of this node, with first values, and returns the task.
    pub(super) async fn start(
        self,
        transport: SealedTransport,
        id: ChitchatId,
        first_values: Vec<(String, String)>,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let me = self.credentials.node().clone();
        let mut published = Published::default();
        let order: Vec<String> = first_values.iter().map(|(key, _)| key.clone()).collect();
        let first_values = first_values.into_iter().map(|(key, value)| (key, Some(value)));
        let mut admitted = published.admit(first_values.collect());
        let fitting: Vec<(String, String)> = order
            .into_iter()
            .filter_map(|key| {
                let value = admitted.remove(&key)??;
                Some((key, value))
            })
            .collect();
        let generation = id.generation_id;
        let mut remembered = self.credentials.remembered.clone();
        remembered.generation = generation;
        remembered.save(&self.credentials.directory)?;
        let config = ChitchatConfig {
            // The transport brings its socket, so this is for messages alone.
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: self.credentials.cluster_id().to_owned(),
            gossip_interval: GOSSIP_INTERVAL,
            // Addresses come from members and memory, which change; chitchat's seeds would not.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI_THRESHOLD,
                sampling_window_size: HEARTBEATS_SAMPLED,
                max_interval: LONGEST_HEARTBEAT,
                initial_interval: USUAL_HEARTBEAT,
                dead_node_grace_period: DEAD_KEPT,
            },
            marked_for_deletion_grace_period: TOMBSTONES_KEPT,
            catchup_callback: None,
            // The watcher is only waited on; with no node in it, chitchat copies no state for it.
            extra_liveness_predicate: Some(Box::new(|_| false)),
        };
        let dropped = transport.dropped();
        let chitchat = spawn_chitchat(config, fitting, &transport)
            .await
            .map_err(|error| Error::Gossip(format!("{error:#}")))?;
        let task = Task {
            observations: Observations::new(me.clone(), self.restart_grace),
            me,
            generation,
            remembered,
            published,
            chitchat,
            dropped,
            members: BTreeMap::new(),
            probes: JoinSet::new(),
            probed: HashMap::new(),
            knocked: None,
            unsaved: false,
            saving: None,
            told_of_twin: false,
            parts: self,
        };
        Ok(task.run(stop))
    }
}

struct Task {
    parts: Membership,
    me: NodeId,
    generation: u64,
    remembered: Remembered,
    published: Published,
    chitchat: ChitchatHandle,
    dropped: Arc<Dropped>,
    observations: Observations,
    members: BTreeMap<NodeId, Member>,
    /// None: the probe panicked.
    probes: JoinSet<(NodeId, Option<Probe>)>,
    /// Of each silent node, while it is silent.
    probed: HashMap<NodeId, Probed>,
    knocked: Option<Instant>,
    unsaved: bool,
    saving: Option<JoinHandle<()>>,
    /// That another agent has this node's identity is told once.
    told_of_twin: bool,
}

/// How probing a silent node goes.
#[derive(Default)]
struct Probed {
    /// When the last probe ended; None while one is under way.
    last: Option<Instant>,
    /// Probes that the node answered although gossip does not hear it.
    answered: u32,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        let heard = Arc::new(Notify::new());
        let (mut liveness, _listener) = {
            let heard = heard.clone();
            self.chitchat
                .with_chitchat(move |chitchat| {
                    let heard = heard.clone();
                    // Runs under chitchat's lock: it wakes, and nothing else.
                    let listener = chitchat.subscribe_event("", move |_| heard.notify_one());
                    (chitchat.live_nodes_watcher(), listener)
                })
                .await
        };
        let members_changed = Arc::new(Notify::new());
        let mut watching = JoinSet::new();
        watching.spawn(notify_on_change(
            self.parts.store.clone(),
            vec![Kind::Member],
            members_changed.clone(),
        ));
        let mut ended = std::pin::pin!(self.chitchat.termination_watcher());
        let announcements = self.parts.announcements.clone();
        let mut exchanged = self.parts.exchanged.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.take_members();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = announcements.changed.notified() => {}
                () = heard.notified() => {}
                Ok(()) = liveness.changed() => {}
                Ok(()) = exchanged.changed() => {}
                () = members_changed.notified() => self.take_members(),
                Some(probe) = self.probes.join_next() => self.take_probe(probe),
                _ = tick.tick() => {}
                result = &mut ended => {
                    error!(?result, "gossip ended: this node sees no other any more, restart the agent");
                    return;
                }
            }
            self.publish().await;
            self.observe().await;
            self.probe_silent();
            self.knock();
            self.save();
            sleep(PAUSE).await;
        }
        self.stop().await;
    }

    /// Takes in who is admitted now.
    fn take_members(&mut self) {
        let members = members::list(&self.parts.store);
        for gone in self.members.keys().filter(|id| !members.contains_key(*id)) {
            if *gone == self.me {
                if !self.parts.leaving.is_cancelled() {
                    warn!("this node was removed from the cluster");
                    self.parts.removed.cancel();
                }
                continue;
            }
            info!(node = %gone, "a node was removed from the cluster");
            self.remembered.removed.insert(gone.clone());
            self.unsaved = true;
        }
        let known = self.remembered.removed.len();
        self.remembered.removed.retain(|id| !members.contains_key(id));
        self.unsaved |= known != self.remembered.removed.len();
        self.members = members;
    }

    /// Tells whether a node was taken out of the cluster, also while this one slept.
    fn was_removed(&self, id: &NodeId) -> bool {
        let buried = || self.parts.store.removal(&members::key(id)).is_some();
        !self.members.contains_key(id) && (self.remembered.removed.contains(id) || buried())
    }

    /// Hands what was announced to chitchat, and tells a few peers at once.
    async fn publish(&mut self) {
        let fresh = self.parts.announcements.take();
        if fresh.is_empty() {
            return;
        }
        let values = self.published.admit(fresh);
        if values.is_empty() {
            return;
        }
        let changed = self
            .chitchat
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                let before = state.max_version();
                for (key, value) in &values {
                    match value {
                        Some(value) => state.set(key, value),
                        None if state.contains_key(key) => state.delete(key),
                        None => {}
                    }
                }
                state.max_version() != before
            })
            .await;
        if changed {
            let peers = self.parts.peers.borrow().clone();
            let told = peers
                .values()
                .filter(|peer| peer.live)
                .map(|peer| peer.address)
                .sample(&mut rand::rng(), PEERS_TOLD_AT_ONCE);
            self.gossip_with(told);
        }
    }

    fn gossip_with(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            if let Err(error) = self.chitchat.gossip(address) {
                debug!(%address, %error, "gossip is stopping");
            }
        }
    }

    /// Takes in what chitchat holds, and passes on what changed.
    async fn observe(&mut self) {
        let now = self.parts.clock.now();
        let observations = &mut self.observations;
        self.chitchat
            .with_chitchat(|chitchat: &mut Chitchat| {
                let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
                let states = chitchat.node_states();
                observations.read(
                    states.iter().map(|(id, state)| (id, state, live.contains(id))),
                    now,
                );
            })
            .await;
        for (id, began) in self.parts.exchanged.borrow().iter() {
            self.observations.exchanged(id, *began);
        }
        if self.observations.own_generation() > self.generation && !self.told_of_twin {
            self.told_of_twin = true;
            error!(
                ours = self.generation,
                theirs = self.observations.own_generation(),
                "another agent gossips with this node's identity: was the data directory copied?"
            );
        }
        self.pass_on();
    }

    fn pass_on(&mut self) {
        let cluster = self.observations.cluster(|id| self.members.contains_key(id));
        self.parts.cluster.send_if_modified(|current| {
            if **current == cluster {
                return false;
            }
            for (id, node) in &cluster.nodes {
                let before = current.nodes.get(id).map(|node| node.liveness);
                if before != Some(node.liveness) {
                    info!(node = %id, name = node.facts.name, ?before, now = ?node.liveness, "liveness");
                }
            }
            *current = Arc::new(cluster);
            true
        });

        let mut peers: Peers = addresses(&self.me, &self.remembered, &self.members)
            .into_iter()
            .map(|(id, address)| (id, unheard(address)))
            .collect();
        for (id, peer) in self.observations.peers() {
            peers.insert(id.clone(), peer);
        }
        // Who gossips without being a member may have been admitted elsewhere, and be the one to tell of it. Nothing is sent
        // to who was removed, nor taken from its answers.
        peers.retain(|id, _| !self.was_removed(id));
        let remembered: BTreeMap<_, _> = peers
            .iter()
            .filter(|(id, _)| self.members.contains_key(*id) || self.remembered.peers.contains_key(*id))
            .map(|(id, peer)| (id.clone(), peer.address))
            .collect();
        if self.remembered.peers != remembered {
            self.remembered.peers = remembered;
            self.unsaved = true;
        }
        let changed = self.parts.peers.send_if_modified(|current| {
            let changed = **current != peers;
            if changed {
                *current = Arc::new(peers);
            }
            changed
        });
        if changed {
            self.parts.connections.forget_strangers();
        }
    }

    fn take_probe(&mut self, result: Result<(NodeId, Option<Probe>), tokio::task::JoinError>) {
        match result {
            Ok((node, probe)) => {
                debug!(%node, ?probe, "probed a silent node");
                let probed = self.probed.entry(node.clone()).or_default();
                probed.last = Some(Instant::now());
                let Some(probe) = probe else {
                    error!(%node, "a probe panicked, will retry");
                    return;
                };
                self.observations.probed(&node, probe, self.parts.clock.now());
                if probe == Probe::Answers {
                    probed.answered += 1;
                    if probed.answered == ANSWERS_WITHOUT_GOSSIP {
                        warn!(%node, "a node answers over TCP, and its UDP datagrams do not come through: a firewall?");
                    }
                }
            }
            Err(error) => error!(%error, "a probe failed"),
        }
    }

    /// Probes nodes that chitchat does not hear, each once in a while.
    fn probe_silent(&mut self) {
        let silent: Vec<_> = self
            .observations
            .silent()
            .filter(|(id, _)| self.members.contains_key(*id))
            .map(|(id, address)| (id.clone(), address))
            .collect();
        self.probed
            .retain(|id, probed| probed.last.is_none() || silent.iter().any(|(silent, _)| silent == id));
        for (id, address) in silent {
            let due = match self.probed.get(&id) {
                None => true,
                Some(probed) => probed.last.is_some_and(|last| last.elapsed() >= PROBE_INTERVAL),
            };
            if due && self.probes.len() < PROBES {
                self.probed.entry(id.clone()).or_default().last = None;
                let connections = self.parts.connections.clone();
                self.probes.spawn(async move {
                    let probe = AssertUnwindSafe(connections.probe(&id, address))
                        .catch_unwind()
                        .await;
                    (id, probe.ok())
                });
            }
        }
    }

    /// Gossips with nodes that should be there and are not heard: all of them while this node hears nobody, else one
    /// at a time. So a heal is noticed however long the cut lasted.
    fn knock(&mut self) {
        if self.knocked.is_some_and(|last| last.elapsed() < PROBE_INTERVAL) {
            return;
        }
        self.knocked = Some(Instant::now());
        let peers = self.parts.peers.borrow().clone();
        let unheard = peers.values().filter(|peer| !peer.live).map(|peer| peer.address);
        if peers.values().any(|peer| peer.live) {
            self.gossip_with(unheard.choose(&mut rand::rng()));
        } else {
            self.gossip_with(unheard);
        }
    }

    /// Saves what is remembered, in the background.
    fn save(&mut self) {
        if !self.unsaved || self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        self.unsaved = false;
        let remembered = self.remembered.clone();
        let directory = self.parts.credentials.directory.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = remembered.save(&directory) {
                warn!(%error, "cannot remember the peers");
            }
        }));
    }

    /// Announces the stop to all live peers, and ends.
    async fn stop(mut self) {
        self.publish().await;
        self.chitchat
            .with_chitchat(|chitchat| chitchat.self_node_state().set(STATE, STOPPED))
            .await;
        let peers = self.parts.peers.borrow().clone();
        let live: Vec<_> = peers
            .values()
            .filter(|peer| peer.live)
            .map(|peer| peer.address)
            .collect();
        if !live.is_empty() {
            self.gossip_with(live);
            sleep(STOP_TIME).await;
        }
        if let Some(saving) = self.saving.take() {
            // It has logged its failure.
            let _ = saving.await;
        }
        self.save();
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        if let Err(error) = self.chitchat.shutdown().await {
            warn!(%error, "gossip did not end well");
        }
        info!(
            strangers = self.dropped.strangers.load(Ordering::Relaxed),
            replays = self.dropped.replays.load(Ordering::Relaxed),
            "gossip stopped; datagrams dropped since the start"
        );
    }
}
