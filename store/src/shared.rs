//! What the handles of a store and its commit thread share.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use automerge::ActorId;
use tokio::sync::broadcast;

use crate::commit::Claims;
use crate::incarnation::Uids;
use crate::index::Index;
use crate::seal::Seal;
use crate::types::{Conflict, NodeId, Push};

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
    index: RwLock<Index>,
    actor: Mutex<ActorId>,
}

impl Shared {
    pub(crate) fn new(node: NodeId, uids: Uids, seal: Seal, index: Index) -> Self {
        Self {
            node,
            uids,
            seal,
            claims: Arc::default(),
            pushes: broadcast::Sender::new(PUSH_FRAMES),
            conflicts: broadcast::Sender::new(CONFLICTS),
            index: RwLock::new(index),
            actor: Mutex::new(random_actor()),
        }
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns who this process is in documents.
    pub(crate) fn actor(&self) -> ActorId {
        self.actor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes another: two changes of one actor must never have one number.
    pub(crate) fn new_actor(&self) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = random_actor();
    }
}

fn random_actor() -> ActorId {
    ActorId::from(rand::random::<[u8; 16]>())
}
