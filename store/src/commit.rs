//! Group commit: one thread that writes what is queued, syncs once, shows it to readers and only then acknowledges it.
//!
//! Writers prepare a change under a claim on its key, so that no two changes of one key are under way at once; the claim
//! travels with the change and ends when it is shown or has failed, also if nobody waits for it any more. No lock is
//! held while the disk works.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::ObjectKey;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::disk::{Disk, DiskError, Write};
use crate::document::WrittenChange;
use crate::frame;
use crate::index::{Change, Stance};
use crate::quarantine::unreadable_key;
use crate::record::META_REVISION;
use crate::rescue::Rescued;
use crate::rounds::Registration;
use crate::shared::Shared;
use crate::types::{CommitError, Conflict, Push, View};

/// Changes that may wait for the disk; writers beyond wait for room.
pub(crate) const QUEUE_CHANGES: usize = 1024;
/// Bytes that are written before a sync: some large objects, or a thousand small ones.
const BATCH_BYTES: usize = 8 << 20;

/// What the commit thread is asked to do.
pub(crate) enum Job {
    Commit(Box<Commit>),
    /// Change the registers: after all that was queued before, and before all that comes after.
    Register(Registration, oneshot::Sender<Result<bool, CommitError>>),
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
    pub(crate) rescued: Option<Arc<Rescued>>,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) claim: Option<Claim>,
    pub(crate) done: oneshot::Sender<Result<Committed, CommitError>>,
}

/// What became of a change.
pub(crate) enum Committed {
    /// It is durable; with the view after it.
    Shown(Option<View>),
    /// It was prepared before a register changed, and was dropped: prepare it again.
    Overtaken,
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
    /// Of the store before the change was prepared.
    pub(crate) stance: Stance,
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
                            stance: Stance::default(),
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

/// Writes what is queued, batch by batch: on a thread of its own, or where a simulation says so.
pub(crate) struct Committer<D> {
    disk: D,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Job>,
    failure: Option<String>,
}

impl<D: Disk> Committer<D> {
    pub(crate) fn new(disk: D, shared: Arc<Shared>, queue: mpsc::Receiver<Job>) -> Self {
        Self {
            disk,
            shared,
            queue,
            failure: None,
        }
    }

    /// Runs until it is told to close, or nobody can queue any more.
    pub(crate) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            if let ControlFlow::Break(closed) = self.commit(first) {
                self.close(closed);
                return;
            }
        }
        self.shared.index_mut().close();
    }

    /// Commits one batch of what is queued now; false, if nothing is.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn commit_queued(&mut self) -> bool {
        let Ok(first) = self.queue.try_recv() else {
            return false;
        };
        // Who simulates or fuzzes does not close.
        let _ = self.commit(first);
        true
    }

    /// Commits a job and what is queued behind it. Breaks, if it was told to close, with who waits for that.
    fn commit(&mut self, first: Job) -> ControlFlow<oneshot::Sender<()>> {
        let mut batch = Batch::default();
        batch.take(first);
        while batch.has_room() {
            match self.queue.try_recv() {
                Ok(job) => batch.take(job),
                Err(_) => break,
            }
        }
        let closing = batch.closing.take();
        let registration = batch.registration.take();
        batch.drop_overtaken(&self.shared);
        let result = match &self.failure {
            Some(reason) => Err(CommitError::Failed(reason.clone())),
            None => batch.write(&mut self.disk, &self.shared),
        };
        self.came_to(&result);
        batch.finish(&self.shared, result);
        if let Some((registration, done)) = registration {
            let result = self.register(&registration);
            // Nobody waits any more, if this fails.
            let _ = done.send(result);
        }
        closing.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Takes in what came of a use of the disk.
    fn came_to(&mut self, result: &Result<(), CommitError>) {
        if let (Err(CommitError::Failed(reason)), None) = (result, &self.failure) {
            tracing::error!(error = reason, "the disk failed: no more writes are taken");
            self.failure = Some(reason.clone());
        }
        self.shared.disk_was(result);
    }

    /// Changes the registers, if what is held now says so; true if it does.
    fn register(&mut self, registration: &Registration) -> Result<bool, CommitError> {
        if let Some(reason) = &self.failure {
            return Err(CommitError::Failed(reason.clone()));
        }
        let decision = self.shared.index().decide(registration);
        let writes = decision.writes(self.disk.identity());
        if !writes.is_empty() {
            let written = self.disk.write(writes).and_then(|()| self.disk.sync());
            let result = written.map_err(refused);
            self.came_to(&result);
            result?;
        }
        Ok(self.shared.take_decision(decision))
    }

    fn close(mut self, closed: oneshot::Sender<()>) {
        self.queue.close();
        while let Some(job) = self.queue.blocking_recv() {
            let mut batch = Batch::default();
            batch.take(job);
            let error = CommitError::Failed("the store is closed".to_owned());
            if let Some((_, done)) = batch.registration.take() {
                let _ = done.send(Err(error.clone()));
            }
            batch.finish(&self.shared, Err(error));
        }
        self.shared.index_mut().close();
        drop(self.disk);
        // Nobody waits any more, if this fails.
        let _ = closed.send(());
    }
}

fn refused(error: DiskError) -> CommitError {
    match error {
        DiskError::Full(shortage) => CommitError::Full(shortage),
        DiskError::Damaged(reason) => CommitError::Failed(reason),
        DiskError::Io(error) => CommitError::Failed(error.to_string()),
    }
}

#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    bytes: usize,
    closing: Option<oneshot::Sender<()>>,
    registration: Option<(Registration, oneshot::Sender<Result<bool, CommitError>>)>,
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
            Job::Register(registration, done) => self.registration = Some((registration, done)),
            Job::Close(closed) => self.closing = Some(closed),
        }
    }

    fn has_room(&self) -> bool {
        let is_open = self.closing.is_none() && self.registration.is_none();
        self.bytes < BATCH_BYTES && self.commits.len() < QUEUE_CHANGES && is_open
    }

    /// Drops what was prepared before a register changed: its stamps may be too low.
    fn drop_overtaken(&mut self, shared: &Shared) {
        let stance = shared.index().stance();
        let is_overtaken = |commit: &mut Commit| {
            let claim = commit.claim.as_ref();
            claim.is_some_and(|claim| claim.stance != stance)
        };
        for commit in self.commits.extract_if(.., is_overtaken) {
            drop(commit.claim);
            let _ = commit.done.send(Ok(Committed::Overtaken));
        }
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
        let changes = self.commits.iter().map(|commit| &commit.change);
        writes.extend(shared.promises.ended_by(changes));
        if let Some(reserved) = reserved {
            writes.push(Write::put(META_REVISION, reserved.to_be_bytes()));
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
            let is_removal = matches!(commit.change, Change::Bury { .. });
            if matches!(commit.change, Change::TakeAway { .. }) {
                // Here, since nobody may wait for it any more.
                let rescued = u64::from(commit.rescued.is_some());
                shared.standing.send_modify(|standing| {
                    standing.rescued += rescued;
                    standing.taken_away += 1;
                });
            }
            if let Some(rescued) = commit.rescued {
                // Before the object is seen to be gone.
                shared.index_mut().rescued.add(rescued);
                shared.rescues.notify_one();
            }
            let view = shared.index_mut().publish(commit.change);
            if is_removal && shared.index().has_many_tombstones() {
                shared.many_tombstones.notify_one();
            }
            // Before the claim ends: peers get the changes of a key in order.
            if let Some(fresh) = commit.fresh {
                push(shared, fresh);
            }
            drop(commit.claim);
            for conflict in commit.conflicts {
                let _ = shared.conflicts.send(conflict);
            }
            let _ = commit.done.send(Ok(Committed::Shown(view)));
        }
    }
}

fn push(shared: &Shared, fresh: Fresh) {
    if shared.pushes.receiver_count() == 0 {
        return;
    }
    let (header, record, removed) = {
        let index = shared.index();
        // What cannot be anywhere else stays so, and what builds on it is of no use there.
        if index
            .record(&fresh.key)
            .is_some_and(|record| index.is_unsent(&record))
        {
            return;
        }
        (
            index.header(),
            index.record(&fresh.key),
            index.tombstone(&fresh.key),
        )
    };
    let changes = fresh.change.map(|change| vec![change.bytes]).unwrap_or_default();
    let delta = frame::Delta::new(&fresh.key, removed, record.as_deref(), changes);
    let delta = Arc::new(delta);
    // An error: nobody listens.
    let _: Result<usize, broadcast::error::SendError<Push>> = shared.pushes.send(Push { header, delta });
}
