//! Group commit: one thread that writes what is queued, syncs once, shows it to readers and only then acknowledges it.
//!
//! Writers prepare a change under a claim on its key, so that no two changes of one key are under way at once; the claim
//! travels with the change and ends when it is shown or has failed, also if nobody waits for it any more. No lock is
//! held while the disk works.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::ObjectKey;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::disk::{Disk, DiskError, Write};
use crate::document::WrittenChange;
use crate::frame;
use crate::index::Change;
use crate::quarantine::unreadable_key;
use crate::record::{META_REVISION, META_ROUND};
use crate::shared::Shared;
use crate::types::{CommitError, Conflict, Push, View};

/// Changes that may wait for the disk; writers beyond wait for room.
pub(crate) const QUEUE_CHANGES: usize = 1024;
/// Bytes that are written before a sync: some large objects, or a thousand small ones.
const BATCH_BYTES: usize = 8 << 20;

/// What the commit thread is asked to do.
pub(crate) enum Job {
    Commit(Box<Commit>),
    /// Look whether there is room, and reserve revisions, if there is nothing else to do.
    Reserve,
    /// End after all that was queued before.
    Close(oneshot::Sender<()>),
}

/// A prepared change.
pub(crate) struct Commit {
    pub(crate) writes: Vec<Write>,
    pub(crate) change: Change,
    /// A change of this node's own, for its peers.
    pub(crate) fresh: Option<Fresh>,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) claim: Option<Claim>,
    pub(crate) done: oneshot::Sender<Result<Option<View>, CommitError>>,
}

/// What peers are told of a change of this node.
pub(crate) struct Fresh {
    pub(crate) key: ObjectKey,
    pub(crate) change: Option<WrittenChange>,
}

/// The keys that are being changed.
#[derive(Default, Debug)]
pub(crate) struct Claims {
    claimed: Mutex<HashMap<ObjectKey, watch::Sender<()>>>,
}

/// The right to change a key, until it is dropped.
pub(crate) struct Claim {
    key: ObjectKey,
    claims: Arc<Claims>,
}

impl Claims {
    fn claimed(&self) -> MutexGuard<'_, HashMap<ObjectKey, watch::Sender<()>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else changes `key`.
    pub(crate) async fn claim(self: &Arc<Self>, key: &ObjectKey) -> Claim {
        loop {
            let mut other = {
                let mut claimed = self.claimed();
                match claimed.get(key) {
                    Some(other) => other.subscribe(),
                    None => {
                        claimed.insert(key.clone(), watch::Sender::new(()));
                        return Claim {
                            key: key.clone(),
                            claims: self.clone(),
                        };
                    }
                }
            };
            // An error: the claim has ended.
            while other.changed().await.is_ok() {}
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.claimed().remove(&self.key);
    }
}

/// Runs until it is told to close, or nobody can queue any more.
pub(crate) fn run(mut disk: impl Disk, shared: &Shared, mut queue: mpsc::Receiver<Job>) {
    let mut failure: Option<String> = None;
    while let Some(first) = queue.blocking_recv() {
        let mut batch = Batch::default();
        batch.take(first);
        while batch.has_room() {
            match queue.try_recv() {
                Ok(job) => batch.take(job),
                Err(_) => break,
            }
        }
        let closing = batch.closing.take();
        let result = match &failure {
            Some(reason) => Err(CommitError::Failed(reason.clone())),
            None => batch.write(&mut disk, shared),
        };
        if let (Err(CommitError::Failed(reason)), None) = (&result, &failure) {
            tracing::error!(error = reason, "the disk failed: no more writes are taken");
            failure = Some(reason.clone());
        }
        shared.disk_was(&result);
        batch.finish(shared, result);
        if let Some(closed) = closing {
            queue.close();
            while let Some(job) = queue.blocking_recv() {
                let mut batch = Batch::default();
                batch.take(job);
                batch.finish(shared, Err(CommitError::Failed("the store is closed".to_owned())));
            }
            shared.index_mut().close();
            drop(disk);
            // Nobody waits any more, if this fails.
            let _ = closed.send(());
            return;
        }
    }
    shared.index_mut().close();
}

fn refused(error: DiskError) -> CommitError {
    match error {
        DiskError::Full(shortage) => CommitError::Full(shortage),
        DiskError::Io(error) => CommitError::Failed(error.to_string()),
    }
}

#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    bytes: usize,
    closing: Option<oneshot::Sender<()>>,
}

impl Batch {
    fn take(&mut self, job: Job) {
        match job {
            Job::Commit(commit) => {
                let values = commit
                    .writes
                    .iter()
                    .map(|write| write.value.as_ref().map_or(0, Vec::len));
                self.bytes += values.sum::<usize>();
                self.commits.push(*commit);
            }
            Job::Reserve => {}
            Job::Close(closed) => self.closing = Some(closed),
        }
    }

    fn has_room(&self) -> bool {
        self.bytes < BATCH_BYTES && self.commits.len() < QUEUE_CHANGES && self.closing.is_none()
    }

    fn write(&mut self, disk: &mut impl Disk, shared: &Shared) -> Result<(), CommitError> {
        let mut writes: Vec<Write> = self
            .commits
            .iter_mut()
            .flat_map(|commit| std::mem::take(&mut commit.writes))
            .collect();
        let reserved = {
            let index = shared.index();
            let keys = self.commits.iter().filter_map(|commit| commit.change.key());
            writes.extend(
                keys.filter(|key| index.quarantine.holds(key))
                    .map(|key| Write::remove(unreadable_key(key))),
            );
            index.wanted_reservation()
        };
        if let Some(reserved) = reserved {
            writes.push(Write::put(META_REVISION, reserved.to_be_bytes()));
        }
        let rounds = self.commits.iter().filter_map(|commit| match commit.change {
            Change::Round(round) => Some(round),
            Change::Put { .. } | Change::Bury { .. } => None,
        });
        if let Some(round) = rounds.max() {
            // Those that were queued before may have been higher.
            let round = round.max(shared.index().round());
            writes.push(Write::put(META_ROUND, u64::from(round).to_be_bytes()));
        }
        if writes.is_empty() {
            return disk.check_room(0).map_err(refused);
        }
        disk.write(writes).and_then(|()| disk.sync()).map_err(refused)?;
        if let Some(reserved) = reserved {
            shared.index_mut().set_reserved(reserved);
        }
        Ok(())
    }

    fn finish(self, shared: &Shared, result: Result<(), CommitError>) {
        if let Err(error) = result {
            // What was not shown may be on disk all the same: its actor must not number another change like it.
            shared.new_actor();
            for commit in self.commits {
                drop(commit.claim);
                let _ = commit.done.send(Err(error.clone()));
            }
            return;
        }
        for commit in self.commits {
            if commit.change.is_long() {
                shared.long.notify_one();
            }
            let view = shared.index_mut().publish(commit.change);
            // Before the claim ends: peers get the changes of a key in order.
            if let Some(fresh) = commit.fresh {
                push(shared, fresh);
            }
            drop(commit.claim);
            for conflict in commit.conflicts {
                let _ = shared.conflicts.send(conflict);
            }
            let _ = commit.done.send(Ok(view));
        }
    }
}

fn push(shared: &Shared, fresh: Fresh) {
    if shared.pushes.receiver_count() == 0 {
        return;
    }
    let (record, removed) = {
        let index = shared.index();
        (index.record(&fresh.key), index.removed(&fresh.key))
    };
    let changes = fresh.change.map(|change| vec![change.bytes]).unwrap_or_default();
    let delta = frame::Delta::new(&fresh.key, removed, record.as_deref(), changes);
    // An error: nobody listens.
    let _: Result<usize, broadcast::error::SendError<Push>> = shared.pushes.send(Push(Arc::new(delta)));
}
