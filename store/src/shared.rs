//! What the handles of a store and its commit thread share.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use automerge::ActorId;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, broadcast, watch};

use crate::commit::Claims;
use crate::epoch::Epoch;
use crate::incarnation::Uids;
use crate::index::Index;
use crate::promises::Promises;
use crate::random::random;
use crate::rescue::LastSight;
use crate::rounds::Ballot;
use crate::seal::Seal;
use crate::types::{CommitError, Conflict, DiskState, NodeId, Push, Standing};

/// Frames that a slow reader of pushes may be behind; the rest it gets by digests.
const PUSH_FRAMES: usize = 256;
/// Conflicts that a slow reader may be behind; they are for display.
const CONFLICTS: usize = 256;

pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) uids: Uids,
    pub(crate) seal: Seal,
    pub(crate) claims: Arc<Claims>,
    pub(crate) pushes: broadcast::Sender<Push>,
    pub(crate) conflicts: broadcast::Sender<Conflict>,
    pub(crate) disk: watch::Sender<DiskState>,
    index: RwLock<Index>,
    actor: Mutex<[u8; 16]>,
    pub(crate) promises: Promises,
    /// Woken when a history has become long.
    pub(crate) long: Arc<Notify>,
    /// Woken when an object was rescued.
    pub(crate) rescues: Arc<Notify>,
    pub(crate) last_sight: LastSight,
    pub(crate) ballot: Ballot,
    pub(crate) standing: watch::Sender<Standing>,
    /// Woken when tombstones have become many.
    pub(crate) many_tombstones: Arc<Notify>,
}

impl Shared {
    pub(crate) fn new(node: NodeId, uids: Uids, seal: Seal, index: Index, promises: Promises) -> Self {
        let ballot = Ballot::new(index.round());
        Self {
            node,
            uids,
            seal,
            claims: Arc::default(),
            pushes: broadcast::Sender::new(PUSH_FRAMES),
            conflicts: broadcast::Sender::new(CONFLICTS),
            disk: watch::Sender::new(DiskState::Well),
            index: RwLock::new(index),
            actor: Mutex::new(random()),
            promises,
            long: Arc::default(),
            rescues: Arc::default(),
            last_sight: LastSight::default(),
            ballot,
            standing: watch::Sender::default(),
            many_tombstones: Arc::default(),
        }
    }

    /// Takes in what came of the last use of the disk.
    pub(crate) fn disk_was(&self, result: &Result<(), CommitError>) {
        self.disk.send_if_modified(|state| {
            let next = match result {
                Ok(()) => DiskState::Well,
                Err(CommitError::Full(shortage)) => DiskState::Full(shortage.clone()),
                Err(CommitError::Failed(reason)) => DiskState::Failed(reason.clone()),
            };
            // How much is free changes all the time.
            let changes = std::mem::discriminant(state) != std::mem::discriminant(&next);
            if changes {
                *state = next;
            }
            changes
        });
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns who this process is in documents of an epoch. Numbers of changes begin anew with each, so that one actor in
    /// two would seem to have written one change twice.
    pub(crate) fn actor(&self, epoch: Epoch) -> ActorId {
        let process = *self.actor.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch == Epoch::default() {
            return ActorId::from(process);
        }
        let mut hasher = Sha256::new();
        hasher.update(process);
        hasher.update(epoch.base);
        ActorId::from(&hasher.finalize()[..process.len()])
    }

    /// Becomes another: two changes of one actor must never have one number.
    pub(crate) fn new_actor(&self) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = random();
    }
}
