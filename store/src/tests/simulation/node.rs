//! A node: a store whose commits the simulation drives, on a disk in memory, and what users of it were told.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use schemas::ObjectKey;
use tokio::sync::broadcast;

use super::model::{Seen, Written};
use crate::commit::Committer;
use crate::epoch::Epoch;
use crate::incarnation::{Incarnation, Tombstone};
use crate::tests::options;
use crate::{
    Closing, CommitError, Conflict, Exchange, MemoryDisk, NodeId, OpenError, Precondition, Proposal, Push,
    RescueId, Standing, Store, SyncError, View, WriteError,
};

/// What a task of a store came to.
pub(super) enum Outcome {
    User(Result<View, WriteError>),
    Frame(Result<Exchange, SyncError>),
    Squash(Result<usize, CommitError>),
    Propose(Result<Option<Closing>, CommitError>),
    Close(Result<bool, CommitError>),
}

/// What a write found and did, once it was its turn.
pub(super) type Executed = Arc<Mutex<Option<Done>>>;

/// Of an update that was prepared.
pub(super) struct Done {
    pub(super) uid: String,
    pub(super) written: Written,
    /// The object that was changed, as it was shown.
    pub(super) before: schemas::Object,
}

/// What a user asked for.
pub(super) enum Intent {
    Create {
        key: ObjectKey,
        written: Written,
    },
    Edit {
        key: ObjectKey,
        executed: Executed,
        expected: Option<View>,
    },
    Remove {
        key: ObjectKey,
        uid: String,
    },
}

/// Why a task is there.
pub(super) enum Purpose {
    User(Intent),
    /// A frame; of an exchange, who began it.
    Frame {
        from: usize,
        begun_by: Option<usize>,
    },
    Ask {
        from: usize,
        proposal: u64,
    },
    /// Its proposal to close a round is being prepared, for these peers.
    Propose {
        peers: Vec<usize>,
    },
    /// Something that nobody waits for.
    Own,
}

pub(super) struct Task {
    future: Pin<Box<dyn Future<Output = Outcome>>>,
    pub(super) purpose: Purpose,
}

/// A proposal that was sent and is being answered. A node has one of each sort at a time.
pub(super) struct Asking {
    pub(super) number: u64,
    pub(super) what: Asked,
    pub(super) silent: Vec<usize>,
}

pub(super) enum Asked {
    Squash { proposal: Proposal, is_everyone: bool },
    Close(Closing),
}

/// What happens with the next commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Well,
    /// Power is lost while it is being synced.
    CutInSync,
    /// Power is lost when it is durable and nobody was told.
    CutBeforeAnswer,
}

/// A running agent.
pub(super) struct Agent {
    pub(super) store: Store,
    pub(super) committer: Committer<MemoryDisk>,
    pub(super) pushes: broadcast::Receiver<Push>,
    pub(super) conflicts: broadcast::Receiver<Conflict>,
    pub(super) tasks: Vec<Task>,
    pub(super) is_commit_due: bool,
    pub(super) fate: Fate,
    pub(super) asking: Vec<Asking>,
    /// As it was when it was last looked at.
    pub(super) standing: Standing,
}

/// What the last write that was acknowledged left of a key.
#[derive(Debug)]
pub(super) enum Acknowledged {
    Holds { uid: String, stamp: u64 },
    Removed { uid: String },
}

/// What was seen of a key at a node.
#[derive(Default, Clone)]
pub(super) struct Watched {
    pub(super) live: Option<(Incarnation, Epoch)>,
    pub(super) removed: Option<Tombstone>,
    /// When it was looked at last.
    pub(super) look: u64,
    /// Of the document that `live` tells of.
    pub(super) heads: Vec<[u8; 32]>,
    /// Which writes it held, and with which uid.
    pub(super) held: (String, Seen),
    /// The highest incarnation that was removed: none up to it comes back.
    pub(super) buried: Option<Incarnation>,
    /// Those that went. Without a tombstone: another comes in their place, which may be of an earlier round.
    pub(super) gone: BTreeSet<Incarnation>,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) disk: MemoryDisk,
    /// How often it was started.
    pub(super) life: u32,
    /// None while it is down.
    pub(super) agent: Option<Agent>,
    /// It was removed from the cluster.
    pub(super) is_retired: bool,
    pub(super) is_caught_up: bool,
    /// The last number drawn by a write.
    pub(super) stamp: Arc<Mutex<u64>>,
    /// How far its clock is ahead, and how fast it runs away.
    pub(super) clock_ahead_s: i64,
    pub(super) clock_drift_ppm: i64,
    pub(super) revision: u64,
    pub(super) acknowledged: BTreeMap<ObjectKey, Acknowledged>,
    pub(super) watched: BTreeMap<ObjectKey, Watched>,
    pub(super) rescued: BTreeSet<RescueId>,
    pub(super) tombstones: usize,
}

impl Node {
    pub(super) fn new(number: usize) -> Self {
        Self {
            id: NodeId(format!("node{number}")),
            disk: MemoryDisk::default(),
            life: 0,
            agent: None,
            is_retired: false,
            is_caught_up: false,
            stamp: Arc::default(),
            clock_ahead_s: 0,
            clock_drift_ppm: 0,
            revision: 0,
            acknowledged: BTreeMap::new(),
            watched: BTreeMap::new(),
            rescued: BTreeSet::new(),
            tombstones: 0,
        }
    }

    pub(super) fn start(&mut self) -> Result<(), OpenError> {
        let (store, committer) = Store::load(self.disk.clone(), "memory", options(&self.id.0))?;
        self.life += 1;
        self.agent = Some(Agent {
            pushes: store.pushes(),
            conflicts: store.conflicts(),
            store,
            committer,
            tasks: Vec::new(),
            is_commit_due: false,
            fate: Fate::Well,
            asking: Vec::new(),
            standing: Standing::default(),
        });
        Ok(())
    }

    /// Draws the number of a write.
    pub(super) fn draw(stamp: &Mutex<u64>) -> u64 {
        let mut stamp = stamp.lock().unwrap_or_else(PoisonError::into_inner);
        *stamp += 1;
        *stamp
    }

    pub(super) fn unix_seconds(&self, now_ms: u64) -> i64 {
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        1_700_000_000 + self.clock_ahead_s + (now_ms + self.drifted_ms(now_ms)) / 1000
    }

    /// How far its clock has run away by itself.
    pub(super) fn drifted_ms(&self, now_ms: i64) -> i64 {
        now_ms * self.clock_drift_ppm / 1_000_000
    }
}

impl Agent {
    pub(super) fn begin(&mut self, purpose: Purpose, future: impl Future<Output = Outcome> + 'static) {
        self.tasks.push(Task {
            future: Box::pin(future),
            purpose,
        });
    }

    pub(super) fn receive(&mut self, purpose: Purpose, peer: NodeId, frame: Bytes) {
        let store = self.store.clone();
        self.begin(purpose, async move {
            Outcome::Frame(store.receive(&peer, &frame).await)
        });
    }

    pub(super) fn remove(
        &mut self,
        key: ObjectKey,
        uid: String,
        precondition: Precondition,
        author: crate::Author,
    ) {
        let store = self.store.clone();
        let intent = Intent::Remove {
            key: key.clone(),
            uid,
        };
        self.begin(Purpose::User(intent), async move {
            Outcome::User(store.remove(&key, &precondition, author).await)
        });
    }

    /// Lets all tasks go on as far as they can without a commit; returns those that ended.
    pub(super) fn poll(&mut self) -> Vec<(Purpose, Outcome)> {
        let mut context = Context::from_waker(Waker::noop());
        let mut ended = Vec::new();
        loop {
            let before = ended.len();
            let mut at = 0;
            while at < self.tasks.len() {
                match self.tasks[at].future.as_mut().poll(&mut context) {
                    Poll::Ready(outcome) => ended.push((self.tasks.remove(at).purpose, outcome)),
                    Poll::Pending => at += 1,
                }
            }
            // Who ended may have let go of a key that others wait for.
            if ended.len() == before {
                return ended;
            }
        }
    }
}
