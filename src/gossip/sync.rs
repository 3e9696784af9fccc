//! Drives the store's sync: pushes fresh changes to live peers, and exchanges with a peer whose digest differs.
//!
//! Pushes make changes fast, exchanges make them certain: a push that fails is dropped and never repeated. Every node that
//! becomes live is exchanged with, so that planners know when they see all that it brings along.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use futures::FutureExt;
use http::{Request, StatusCode};
use rand::seq::IteratorRandom;
use reconcilers::ports::{Clock, Cluster, Liveness, Moment};
use store::{Exchange, NodeId, Push, Store, SyncError};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use super::connections::{Connections, Peers};
use super::members;
use super::membership::notify_on_change;
use super::observation::Peer;
use super::peer_server::{FRAME_LIMIT, REMOVED, SYNC_PATH};
use super::published::{Announcements, DIGEST};
use crate::relay::{Relay, RelayError};

/// How many bytes of changes are joined before the last: with the largest change a frame stays below [`FRAME_LIMIT`].
const PUSH_BYTES: usize = 256 << 10;
/// A push that takes longer is for a peer in trouble.
const PUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Exchanges that this node begins at a time.
const EXCHANGES: usize = 3;
/// Of those, with peers whose last one failed: one that accepts and never answers has its place for a whole
/// [`STEP_TIMEOUT`], and the others must not wait for that.
const DOUBTFUL_EXCHANGES: usize = 1;
/// For one step: a frame of [`FRAME_LIMIT`] takes 0.4 s at 100 Mbit/s, and the peer stores it durably.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Steps of one exchange; each narrows ranges or carries changes, in all up to 64 MiB. What is left over is for the next one,
/// after others had their turn. In tests few, so that there is a next one.
const STEPS: usize = if cfg!(test) { 8 } else { 64 };
/// Digests may differ for so long: a push and its digest are on their way.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two exchanges with one peer, after success and after the first failure; then it doubles.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(200);
/// Changes within this time make one announcement of the digest.
const DIGEST_PAUSE: Duration = Duration::from_millis(30);

/// Why a frame brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("this node was removed from the cluster")]
    Removed,
    #[error("status {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the answer cannot be read: {0}")]
    Body(String),
    #[error(transparent)]
    Store(#[from] SyncError),
    #[error("not done after {STEPS} steps, and nothing came of them")]
    Endless,
    #[error("it panicked")]
    Panicked,
}

/// How an exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// Both hold the same, as far as it could tell.
    Done,
    /// It brought something, and there is more.
    Unfinished,
    /// Some of what the peer sent can be taken by nobody: the next one brings that again.
    WithNonsense,
}

/// When the last exchange with each node began, of those that ended well.
pub(super) type Exchanged = BTreeMap<NodeId, Moment>;

/// What the tasks share.
#[derive(Clone)]
pub(super) struct Sync {
    pub(super) me: NodeId,
    pub(super) store: Store,
    pub(super) connections: Arc<Connections>,
    pub(super) announcements: Arc<Announcements>,
    pub(super) peers: watch::Receiver<Arc<Peers>>,
    pub(super) cluster: watch::Receiver<Arc<Cluster>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) exchanged: watch::Sender<Exchanged>,
    /// Set once this node holds what a peer held: after an exchange, or when digests are equal. Until then it admits
    /// nobody: what it does not find may be there.
    pub(super) caught_up: watch::Sender<bool>,
}

impl Sync {
    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().push());
        tasks.spawn(self.clone().announce_digest());
        tasks.spawn(self.clone().repair());
        tasks.spawn(self.clone().compact());
        tasks.spawn(self.clone().close_rounds());
        tasks.spawn(self.clone().tell_contact());
        tasks.spawn(async move {
            // A start asks right away, and does not wait for gossip to show who differs. Ends by itself.
            self.exchange_with_one(|_| true).await;
        });
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "a task of sync did not end well");
                        break;
                    }
                }
            }
        }
        tasks.shutdown().await;
    }

    /// Sends every fresh change to all live peers at once.
    async fn push(self) {
        let mut peers = self.peers.clone();
        let mut pushing: HashMap<NodeId, AbortOnDropHandle<()>> = HashMap::new();
        loop {
            let now = peers.borrow_and_update().clone();
            let is_live = |node: &NodeId| now.get(node).is_some_and(|peer| peer.live);
            pushing.retain(|node, task| is_live(node) && !task.is_finished());
            for node in now.keys().filter(|node| is_live(node)) {
                pushing.entry(node.clone()).or_insert_with(|| {
                    let push = self.clone().push_to(node.clone(), self.store.pushes());
                    AbortOnDropHandle::new(tokio::spawn(push))
                });
            }
            if peers.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends fresh changes to one peer in their order: one frame at a time, with all that came meanwhile in the next. So a
    /// peer sees what this node writes as this node does.
    async fn push_to(self, node: NodeId, mut pushes: broadcast::Receiver<Push>) {
        let mut joined = Vec::new();
        loop {
            match pushes.recv().await {
                Ok(push) => joined.push(push),
                Err(RecvError::Lagged(lost)) => {
                    debug!(%node, lost, "pushes were lost, digests will repair");
                    continue;
                }
                Err(RecvError::Closed) => return,
            }
            while joined.iter().map(Push::bytes).sum::<usize>() < PUSH_BYTES {
                match pushes.try_recv() {
                    Ok(push) => joined.push(push),
                    Err(_) => break,
                }
            }
            if let Err(error) = self.push_frame(&node, &joined).await {
                debug!(%node, %error, "a push was not taken");
            }
            joined.clear();
        }
    }

    async fn push_frame(&self, node: &NodeId, pushes: &[Push]) -> Result<(), ExchangeError> {
        let frame = self.store.push_frame(pushes)?;
        match self.send(node, frame, PUSH_TIMEOUT).await? {
            // The peer misses what this builds on: go on as an exchange.
            Some(answer) => self.exchange(node, Some(answer)).await.map(drop),
            None => Ok(()),
        }
    }

    /// Gossips the digest of the store when it changes.
    async fn announce_digest(self) {
        let changed = Arc::new(Notify::new());
        let mut watching = JoinSet::new();
        watching.spawn(notify_on_change(self.store.clone(), Vec::new(), changed.clone()));
        let mut announced = String::new();
        loop {
            let digest = self.store.digest();
            if digest != announced {
                self.announcements.put(DIGEST, Some(digest.clone()));
                announced = digest;
            }
            // Not every change of a document changes a view: look from time to time.
            let _ = timeout(PATIENCE, changed.notified()).await;
            sleep(DIGEST_PAUSE).await;
        }
    }

    /// Exchanges with peers whose digest differs from ours for longer than [`PATIENCE`], and at once with those that became
    /// live: what gossip shows of their digest may be from before.
    async fn repair(self) {
        let mut peers = self.peers.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut differing: BTreeMap<NodeId, Differing> = BTreeMap::new();
        let mut exchanges: JoinSet<(NodeId, Result<Ended, ExchangeError>)> = JoinSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = peers.changed() => {}
                Some(ended) = exchanges.join_next() => {
                    if let Ok((node, result)) = ended
                        && let Some(differing) = differing.get_mut(&node)
                    {
                        differing.ended(&node, result);
                    }
                }
            }
            let ours = self.store.digest();
            let now = Instant::now();
            let peers = peers.borrow_and_update().clone();
            let cluster = self.cluster.borrow().clone();
            let is_new = |node: &NodeId| {
                let seen = cluster.nodes.get(node);
                seen.is_some_and(|seen| seen.liveness == Liveness::Alive && !seen.in_sync)
            };
            let differs = |node: &NodeId| {
                peers.get(node).is_some_and(|peer| {
                    let differs = !peer.digest.is_empty() && peer.digest != ours;
                    peer.live && (differs || is_new(node))
                })
            };
            if peers.values().any(|peer| peer.live && peer.digest == ours) && !self.is_catching_up() {
                self.caught_up.send_replace(true);
            }
            differing.retain(|node, one| one.running || differs(node));
            for node in peers.keys().filter(|node| differs(node)) {
                let patience = if is_new(node) { Duration::ZERO } else { PATIENCE };
                differing
                    .entry(node.clone())
                    .or_insert_with(|| Differing::new(now + patience));
            }
            while exchanges.len() < EXCHANGES {
                let digest_of = |node: &NodeId| peers.get(node).map(|peer| peer.digest.as_str());
                let may_begin = may_begin(&differing, now, digest_of);
                let next = may_begin.into_iter().choose(&mut rand::rng());
                let next = next.and_then(|node| Some((node.clone(), differing.get_mut(&node)?)));
                let Some((node, one)) = next else {
                    break;
                };
                one.running = true;
                let sync = self.clone();
                exchanges.spawn(async move {
                    let result = unless_panicked(sync.catch_up(&node)).await;
                    (node, result)
                });
            }
        }
    }

    /// Exchanges what differs with a peer. Where writes never cease, digests are never equal, and this alone tells that a
    /// joiner has arrived.
    pub(super) async fn catch_up(&self, node: &NodeId) -> Result<Ended, ExchangeError> {
        let began = self.clock.now();
        let ended = self.exchange(node, None).await?;
        // What this node holds is not all there or not all decided yet: the next exchange goes on.
        if ended == Ended::Unfinished || self.is_catching_up() {
            return Ok(ended);
        }
        self.exchanged.send_modify(|exchanged| {
            exchanged.insert(node.clone(), began);
        });
        // Who admits a node stores its membership first: a peer without it may know no more than this node did.
        if members::list(&self.store).contains_key(&self.me) {
            self.caught_up
                .send_if_modified(|caught_up| !std::mem::replace(caught_up, true));
        }
        Ok(ended)
    }

    fn is_catching_up(&self) -> bool {
        self.store.standing().borrow().catching_up
    }

    /// Runs an exchange to its end, or for [`STEPS`]; `answer`: one that is under way.
    async fn exchange(&self, node: &NodeId, answer: Option<Bytes>) -> Result<Ended, ExchangeError> {
        let before = self.digests(node);
        let mut refused = 0;
        let mut next = match answer {
            Some(answer) => self.receive(node, &answer, &mut refused).await?,
            None => self.store.begin_exchange(node),
        };
        for _ in 0..STEPS {
            let Exchange::Send(frame) = next else {
                break;
            };
            next = match self.send(node, frame, STEP_TIMEOUT).await? {
                Some(answer) => self.receive(node, &answer, &mut refused).await?,
                None => Exchange::Done,
            };
        }
        if matches!(next, Exchange::Done) {
            return Ok(match refused {
                0 => Ended::Done,
                _ => Ended::WithNonsense,
            });
        }
        if self.digests(node) == before {
            return Err(ExchangeError::Endless);
        }
        Ok(Ended::Unfinished)
    }

    async fn receive(
        &self,
        node: &NodeId,
        answer: &[u8],
        refused: &mut usize,
    ) -> Result<Exchange, ExchangeError> {
        let received = self.store.receive_and_judge(node, answer).await?;
        *refused += received.refused;
        Ok(received.next)
    }

    /// What is held here, and what a peer says it holds: either changes with an exchange that brings something.
    fn digests(&self, node: &NodeId) -> (String, Option<String>) {
        let peers = self.peers.borrow();
        let theirs = peers.get(node).map(|peer| peer.digest.clone());
        (self.store.digest(), theirs)
    }

    /// Exchanges with a live peer now; true if one confirmed to hold what we hold.
    pub(super) async fn flush(&self) -> bool {
        self.exchange_with_one(|peer| peer.live).await
    }

    /// Exchanges with the first of the suitable peers that can.
    async fn exchange_with_one(&self, suits: impl Fn(&Peer) -> bool) -> bool {
        let peers = self.peers.borrow().clone();
        for node in peers.iter().filter(|(_, peer)| suits(peer)).map(|(node, _)| node) {
            loop {
                match self.catch_up(node).await {
                    Ok(Ended::Done | Ended::WithNonsense) => return true,
                    Ok(Ended::Unfinished) => {}
                    Err(error) => {
                        debug!(%node, %error, "cannot exchange changes with this peer");
                        break;
                    }
                }
            }
        }
        false
    }

    /// Sends one frame and returns the answer, if there is one.
    pub(super) async fn send(
        &self,
        node: &NodeId,
        frame: Bytes,
        limit: Duration,
    ) -> Result<Option<Bytes>, ExchangeError> {
        let request = Request::post(SYNC_PATH)
            .body(Body::from(frame))
            .map_err(|error| ExchangeError::Body(error.to_string()))?;
        let step = async {
            let response = self.connections.send(node, request).await?;
            let status = response.status();
            let body = to_bytes(response.into_body(), FRAME_LIMIT)
                .await
                .map_err(|error| ExchangeError::Body(error.to_string()))?;
            match status {
                StatusCode::OK => Ok(Some(body)),
                StatusCode::NO_CONTENT => Ok(None),
                REMOVED => {
                    self.store.receive(node, &body).await?;
                    Err(ExchangeError::Removed)
                }
                _ => Err(ExchangeError::Refused {
                    status,
                    reason: String::from_utf8_lossy(&body).into_owned(),
                }),
            }
        };
        timeout(limit, step)
            .await
            .map_err(|_| ExchangeError::Timeout(limit))?
    }
}

/// Runs an exchange. One that panics has failed like any other, and is tried again.
async fn unless_panicked(
    exchange: impl Future<Output = Result<Ended, ExchangeError>>,
) -> Result<Ended, ExchangeError> {
    let ended = AssertUnwindSafe(exchange).catch_unwind().await;
    ended.unwrap_or(Err(ExchangeError::Panicked))
}

/// Returns the peers with which an exchange may begin; `digest_of` those that are there.
fn may_begin<'a>(
    differing: &BTreeMap<NodeId, Differing>,
    now: Instant,
    digest_of: impl Fn(&NodeId) -> Option<&'a str>,
) -> Vec<NodeId> {
    let running = || differing.iter().filter(|(_, one)| one.running);
    // Peers with one digest hold the same: one of them is enough at a time.
    let busy: Vec<&str> = running().filter_map(|(node, _)| digest_of(node)).collect();
    let doubtful = running().filter(|(_, one)| one.is_doubtful()).count();
    let may_begin = differing.iter().filter(|(node, one)| {
        !one.running
            && one.not_before <= now
            && (!one.is_doubtful() || doubtful < DOUBTFUL_EXCHANGES)
            && digest_of(node).is_some_and(|digest| !busy.contains(&digest))
    });
    may_begin.map(|(node, _)| node.clone()).collect()
}

/// A peer that holds something else than we do.
struct Differing {
    /// When the next exchange may begin.
    not_before: Instant,
    /// After the next failure.
    pause: Duration,
    running: bool,
    /// The last failure that was logged: each is told once.
    told: String,
}

impl Differing {
    fn new(not_before: Instant) -> Self {
        Self {
            not_before,
            pause: PAUSE,
            running: false,
            told: String::new(),
        }
    }

    /// The last exchange failed.
    fn is_doubtful(&self) -> bool {
        !self.told.is_empty()
    }

    fn ended(&mut self, node: &NodeId, result: Result<Ended, ExchangeError>) {
        self.running = false;
        match result {
            Ok(ended) => {
                self.told.clear();
                let now = Instant::now();
                (self.not_before, self.pause) = match ended {
                    Ended::Done => (now + PAUSE, PAUSE),
                    Ended::Unfinished => (now, PAUSE),
                    Ended::WithNonsense => (now + self.pause, self.longer_pause()),
                };
            }
            Err(error) => {
                let error = error.to_string();
                if self.told != error {
                    warn!(%node, error, "cannot exchange changes, will retry");
                    self.told = error;
                }
                self.not_before = Instant::now() + self.pause;
                self.pause = self.longer_pause();
            }
        }
    }

    fn longer_pause(&self) -> Duration {
        (self.pause * 2).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_exchange_that_panics_has_failed() {
        let panics = async { panic!("on purpose") };
        let mut peer = Differing::new(Instant::now());
        peer.running = true;
        peer.ended(&NodeId("peer".into()), unless_panicked(panics).await);
        assert!(!peer.running && peer.not_before > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn peers_that_never_answer_do_not_keep_the_others_waiting() {
        let node = |name: &str| NodeId(name.to_owned());
        let names = ["bad1", "bad2", "bad3", "bad4", "good"];
        let mut differing: BTreeMap<NodeId, Differing> = names
            .iter()
            .map(|name| (node(name), Differing::new(Instant::now())))
            .collect();
        // Each holds something else.
        let digest_of = |node: &NodeId| names.iter().find(|name| **name == node.0).copied();
        let timeout = || Err(ExchangeError::Timeout(STEP_TIMEOUT));
        for name in ["bad1", "bad2", "bad3"] {
            differing.get_mut(&node(name)).unwrap().running = true;
        }
        // Nobody knows yet that they do not answer.
        assert_eq!(may_begin(&differing, Instant::now(), digest_of).len(), 2);
        for name in ["bad1", "bad2", "bad3"] {
            let ended = differing.get_mut(&node(name)).unwrap();
            ended.ended(&node(name), timeout());
            assert!(ended.not_before > Instant::now());
        }
        tokio::time::advance(LONGEST_PAUSE).await;
        differing.get_mut(&node("bad1")).unwrap().running = true;
        let next = may_begin(&differing, Instant::now(), digest_of);
        assert_eq!(
            next,
            [node("bad4"), node("good")],
            "one of those that failed is enough"
        );
        // Who answers again is like any other.
        let back = differing.get_mut(&node("bad1")).unwrap();
        back.ended(&node("bad1"), Ok(Ended::Unfinished));
        let next = may_begin(&differing, Instant::now(), digest_of);
        assert_eq!(next.len(), 5, "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_that_is_unfinished_goes_on_at_once_and_one_with_nonsense_waits_ever_longer() {
        let node = NodeId("peer".into());
        let mut peer = Differing::new(Instant::now());
        peer.ended(&node, Ok(Ended::Unfinished));
        assert!(peer.not_before <= Instant::now() && !peer.is_doubtful());
        for pause in [PAUSE, PAUSE * 2, PAUSE * 4] {
            peer.ended(&node, Ok(Ended::WithNonsense));
            assert_eq!(peer.not_before, Instant::now() + pause);
        }
        peer.ended(&node, Ok(Ended::Done));
        assert_eq!((peer.not_before, peer.pause), (Instant::now() + PAUSE, PAUSE));
    }
}
