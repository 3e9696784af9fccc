//! [`Store`]: reads, durable writes, watches, projections and sync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use schemas::{Kind, Object, ObjectKey};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::commit::{Claim, Commit, Committed, Committer, Job, QUEUE_CHANGES};
use crate::disk::Disk;
use crate::frame::{self, Body, Delta};
use crate::index::Written;
use crate::memory_disk::MemoryDisk;
use crate::open;
use crate::owners::Operation;
use crate::prepare::{self, Ownership, Prepared};
use crate::quarantine;
use crate::shared::Shared;
use crate::sled_disk::SledDisk;
use crate::types::{
    Applied, Author, CommitError, Conflict, DiskState, Exchange, Gone, Listing, NodeId, OpenError,
    OpenOptions, Outcome, Precondition, Push, Received, Revision, SyncError, View, Views, WatchEvent,
    WatchScope, WriteError,
};
use crate::watch::Scope;

/// The store of one node. Cheap to clone.
///
/// Two planes: *documents* (durable, replicated) and *projections* (computed here, in memory, laid over documents).
/// Reads, lists and watches show both as one view. When the last handle is dropped, the store closes.
///
/// Writes may be cancelled while they wait; one that waits for the disk happens all the same.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
}

/// The answer to a queued change.
pub(crate) type Done = oneshot::Receiver<Result<Committed, CommitError>>;

impl Store {
    /// Opens the store in a directory, checks what it loads and locks the directory against a second process.
    ///
    /// # Errors
    /// The directory cannot be used, is in use, or was sealed under another key.
    pub fn open(directory: &Path, options: OpenOptions) -> Result<Store, OpenError> {
        let path = directory.display().to_string();
        // sled panics at some of what it finds damaged; nothing of a failed start is used again.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Self::open_disk(SledDisk::open(directory)?, &path, options)
        }));
        let reason = "the database cannot be read".to_owned();
        opened.unwrap_or(Err(OpenError::Damaged { path, reason }))
    }

    /// Opens the store on a disk in memory, for tests and simulations.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in_memory(disk: MemoryDisk, options: OpenOptions) -> Result<Store, OpenError> {
        Self::open_disk(disk, "memory", options)
    }

    fn open_disk<D: Disk + 'static>(disk: D, path: &str, options: OpenOptions) -> Result<Store, OpenError> {
        let (store, committer) = Self::load(disk, path, options)?;
        thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || committer.run())
            .map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(store)
    }

    /// Opens the store on a disk without a thread: its writes wait until the committer is told to commit what is queued.
    pub(crate) fn load<D: Disk>(
        mut disk: D,
        path: &str,
        options: OpenOptions,
    ) -> Result<(Store, Committer<D>), OpenError> {
        let shared = Arc::new(open::load(&mut disk, path, options)?);
        let (queue, jobs) = mpsc::channel(QUEUE_CHANGES);
        let committer = Committer::new(disk, shared.clone(), jobs);
        Ok((Store { shared, queue }, committer))
    }

    // -------------------------------------------------------------- reading

    /// Returns the view of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<View> {
        self.shared.index().get(key)
    }

    /// Lists a kind, in all namespaces or one, ordered by key.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Listing {
        let views = self.views(kind, namespace);
        Listing {
            revision: views.revision(),
            items: views.collect(),
        }
    }

    /// [`Store::list`], whose objects are read from memory as they are asked for.
    pub fn views(&self, kind: Kind, namespace: Option<&str>) -> Views {
        let (views, revision) = self.shared.index().list(kind, namespace, None);
        Views::new(views, revision)
    }

    /// Lists a kind as it was at `at` (now, if None), from the object after `after` on; objects are read from memory as
    /// they are asked for.
    ///
    /// # Errors
    /// [`Gone`], if `at` is older than the kept history, or another node's.
    pub fn list_at(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        at: Option<Revision>,
    ) -> Result<Views, Gone> {
        let index = self.shared.index();
        let (views, revision) = match at {
            Some(at) => index.list_at(kind, namespace, after, at)?,
            None => index.list(kind, namespace, after),
        };
        Ok(Views::new(views, revision))
    }

    /// Lists the documents of a kind as they were written, without what is projected over them.
    pub fn written(&self, kind: Kind) -> Vec<Arc<Object>> {
        let written: Vec<Written> = {
            let index = self.shared.index();
            index.written(kind).map(|(_, written)| written).collect()
        };
        written.iter().map(Written::tree).collect()
    }

    /// Returns the newest revision.
    pub fn revision(&self) -> Revision {
        self.shared.index().revision()
    }

    /// Tells whether a revision is one of this store's, that now's state is not older than.
    pub fn has_issued(&self, revision: Revision) -> bool {
        self.shared.index().issued(revision).is_ok()
    }

    /// Follows changes after `from` (now, if None). The receiver closes when the reader is too slow or the store stops.
    ///
    /// # Errors
    /// [`Gone`], if `from` is older than the kept history, or another node's.
    pub fn watch(
        &self,
        scope: WatchScope,
        from: Option<Revision>,
    ) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        self.follow(&scope.into(), from)
    }

    /// [`Store::watch`] of the objects with one name: other changes cost it, and those who write, nothing.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub fn watch_named(
        &self,
        scope: WatchScope,
        name: &str,
        from: Option<Revision>,
    ) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        let name = Some(name.to_owned());
        self.follow(&Scope { name, ..scope.into() }, from)
    }

    fn follow(&self, scope: &Scope, from: Option<Revision>) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        let (past, until) = self.shared.index().since(scope, from)?;
        // What is far behind may have to be read from JSON: no writer waits for that.
        let backlog = past.iter().map(|past| past.event()).collect();
        self.shared.index_mut().follow(scope, backlog, until)
    }

    /// Tells whether the incarnation of `key` with this uid was removed: by a tombstone, or by one that was dropped when all
    /// knew it; never because it has not arrived yet.
    pub fn is_removed(&self, key: &ObjectKey, uid: &str) -> bool {
        let incarnation = self.shared.uids.incarnation(key, uid);
        incarnation.is_some_and(|incarnation| self.shared.index().is_removed(key, incarnation))
    }

    /// Returns the names of a kind in a namespace that begin with `prefix` and that something had that was removed, as
    /// long as tombstones tell of it. Something may be there again by such a name.
    pub fn removed_names(&self, kind: Kind, namespace: &str, prefix: &str) -> Vec<String> {
        let index = self.shared.index();
        let from = ObjectKey::new(kind, namespace, prefix);
        let keys = index.tombstones().range(from..).map(|(key, _)| key);
        keys.take_while(|key| key.kind == kind && key.namespace == namespace && key.name.starts_with(prefix))
            .map(|key| key.name.clone())
            .collect()
    }

    /// Returns the tombstone of a key that has no document, as a frame for a peer's [`Store::receive`]; None if nothing of
    /// that key was removed, or if there is one again.
    pub fn removal(&self, key: &ObjectKey) -> Option<Bytes> {
        let (header, removed) = {
            let index = self.shared.index();
            let is_gone = index.record(key).is_none() && !index.quarantine.holds(key);
            (index.header(), index.tombstone(key).filter(|_| is_gone)?)
        };
        let delta = Delta::new(key, Some(removed), None, Vec::new());
        frame::encode(header, &Body::Push { items: vec![delta] }).ok()
    }

    /// Returns the keys whose records could not be read when this store was opened, and that nothing has replaced yet.
    pub fn unreadable(&self) -> Vec<ObjectKey> {
        self.shared.index().quarantine.keys().cloned().collect()
    }

    /// Returns objects whose namespace's tombstone covers the incarnation they were created under: garbage.
    pub fn orphaned_by_namespace(&self) -> Vec<ObjectKey> {
        self.shared.index().orphaned_by_namespace()
    }

    // -------------------------------------------------------------- writing

    /// Creates an object; durable when this returns. What it sets of uid, generation and creationTimestamp is ours.
    ///
    /// # Errors
    /// It exists, cannot be stored, or the disk does not take it.
    pub async fn create(&self, object: Object, author: Author) -> Result<View, WriteError> {
        let key = prepare::check(&object)?;
        loop {
            let (permit, claim) = self.claim_to_write(&key).await?;
            let prepared = self
                .shared
                .prepare_create(&key, &object, &author, Operation::Update)?;
            if let Some(view) = self.commit(&key, permit, claim, prepared).await? {
                return Ok(view);
            }
        }
    }

    /// Changes an object: `change` gets the document (without projection) and returns the whole new one; the smallest
    /// set of puts and deletes is stored, or nothing if they are equal. `change` may run again after a conflict
    /// and must not block. Its error passes through.
    ///
    /// # Errors
    /// It is not there, the precondition does not hold, it cannot be stored, or the disk does not take it.
    pub async fn update<E: From<WriteError>>(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: Author,
        change: impl FnMut(&Object) -> Result<Object, E> + Send,
    ) -> Result<View, E> {
        self.updated(key, precondition, author, Ownership::Unsaid, change)
            .await
    }

    /// [`Store::update`] by a client that sees `metadata.managedFields` and can say them anew: `change` gets them in the object,
    /// and what it makes of them says who owns what before its other changes. None, or what cannot be read, says nothing.
    ///
    /// # Errors
    /// As [`Store::update`].
    pub async fn update_with_managed_fields<E: From<WriteError>>(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: Author,
        change: impl FnMut(&Object) -> Result<Object, E> + Send,
    ) -> Result<View, E> {
        self.updated(key, precondition, author, Ownership::Said, change)
            .await
    }

    async fn updated<E: From<WriteError>>(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: Author,
        ownership: Ownership,
        mut change: impl FnMut(&Object) -> Result<Object, E> + Send,
    ) -> Result<View, E> {
        loop {
            let (permit, claim) = self.claim_to_write(key).await?;
            let prepared = self
                .shared
                .prepare_update(key, precondition, &author, ownership, &mut change)?;
            let Some(prepared) = prepared else {
                return Ok(self.get(key).ok_or_else(|| WriteError::NotFound(key.clone()))?);
            };
            if let Some(view) = self.commit(key, permit, claim, prepared).await? {
                return Ok(view);
            }
        }
    }

    /// Server-side apply by `author.manager`: sets the fields that `object` names, removes those that an apply of this
    /// manager owned and that it no longer names (unless another owns them too), and leaves the rest. What the same
    /// manager changed by updates has another owner, as in Kubernetes. By the manager `kubectl`, it renews what kubectl's
    /// client-side apply wrote down. Creates if absent and no uid or resourceVersion is in `object`, which must be the
    /// current ones.
    ///
    /// # Errors
    /// [`WriteError::Owned`] without `force`, where another manager owns a field with another value.
    pub async fn apply(&self, object: Object, author: Author, force: bool) -> Result<Applied, WriteError> {
        let key = prepare::check(&object)?;
        loop {
            let (permit, claim) = self.claim_to_write(&key).await?;
            let (outcome, prepared) = self.prepare_apply(&key, &object, &author, force)?;
            let view = match prepared {
                Some(prepared) => self.commit(&key, permit, claim, prepared).await?,
                None => Some(self.get(&key).ok_or_else(|| WriteError::NotFound(key.clone()))?),
            };
            if let Some(view) = view {
                return Ok(Applied { outcome, view });
            }
        }
    }

    /// Computes what [`Store::apply`] would show, and stores nothing. The view is the document without projection.
    ///
    /// # Errors
    /// As [`Store::apply`].
    pub fn apply_dry(&self, object: Object, author: &Author, force: bool) -> Result<Applied, WriteError> {
        let key = prepare::check(&object)?;
        let (outcome, prepared) = self.prepare_apply(&key, &object, author, force)?;
        let view = match prepared {
            Some(prepared) => self.shared.preview(prepared),
            None => self.get(&key),
        };
        let view = view.ok_or(WriteError::NotFound(key))?;
        Ok(Applied { outcome, view })
    }

    /// Computes what [`Store::create`] would show, and stores nothing.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_dry(&self, object: &Object, author: &Author) -> Result<View, WriteError> {
        let key = prepare::check(object)?;
        let prepared = self
            .shared
            .prepare_create(&key, object, author, Operation::Update)?;
        self.shared.preview(prepared).ok_or(WriteError::NotFound(key))
    }

    /// Computes what [`Store::update_with_managed_fields`] would show, and stores nothing. The view is as of
    /// [`Store::apply_dry`].
    ///
    /// # Errors
    /// As [`Store::update`].
    pub fn update_dry<E: From<WriteError>>(
        &self,
        key: &ObjectKey,
        author: &Author,
        change: impl FnMut(&Object) -> Result<Object, E>,
    ) -> Result<View, E> {
        let anything = Precondition::default();
        let prepared = self
            .shared
            .prepare_update(key, &anything, author, Ownership::Said, change)?;
        let view = match prepared {
            Some(prepared) => self.shared.preview(prepared),
            None => self.get(key),
        };
        Ok(view.ok_or_else(|| WriteError::NotFound(key.clone()))?)
    }

    /// Lays what is projected over a view that a dry run computed.
    pub fn projected(&self, view: View) -> View {
        let mut object = Arc::unwrap_or_clone(view.object);
        self.shared.index().lay_projection(&view.key, &mut object);
        View {
            object: object.into(),
            ..view
        }
    }

    fn prepare_apply(
        &self,
        key: &ObjectKey,
        object: &Object,
        author: &Author,
        force: bool,
    ) -> Result<(Outcome, Option<Prepared>), WriteError> {
        if self.shared.index().record(key).is_none() {
            self.shared.check_without_document(key, object)?;
            let prepared = self
                .shared
                .prepare_create(key, object, author, Operation::Apply)?;
            return Ok((Outcome::Created, Some(prepared)));
        }
        let prepared = self.shared.prepare_apply(key, object, author, force)?;
        let outcome = match &prepared {
            Some(prepared) if prepared.changes_fields() => Outcome::Configured,
            Some(_) | None => Outcome::Unchanged,
        };
        Ok((outcome, prepared))
    }

    /// Removes an object for good and leaves a tombstone. Graceful deletion (deletionTimestamp, finalizers) is the
    /// caller's: this is the last step. Returns the last view.
    ///
    /// # Errors
    /// It is not there, the precondition does not hold, or the disk does not take it.
    pub async fn remove(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: Author,
    ) -> Result<View, WriteError> {
        loop {
            let (permit, claim) = self.claim_to_write(key).await?;
            let prepared = self.shared.prepare_remove(key, precondition, &author)?;
            if let Some(view) = self.commit(key, permit, claim, prepared).await? {
                tracing::debug!(%key, manager = author.manager, user = author.user, "object removed");
                return Ok(view);
            }
        }
    }

    /// Gives up an object whose record cannot be read: removes all that it can have held, here and on every node that has
    /// it. False: the key is none of [`Store::unreadable`].
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn give_up(&self, key: &ObjectKey) -> Result<bool, WriteError> {
        loop {
            let (permit, claim) = self.claim_to_write(key).await?;
            let removed = {
                let index = self.shared.index();
                if !index.quarantine.holds(key) {
                    return Ok(false);
                }
                quarantine::beyond(index.round(), index.removed(key))
            };
            let removed = removed.ok_or_else(|| WriteError::Invalid {
                key: key.to_string(),
                reason: "this name was used too often".to_owned(),
            })?;
            let prepared = self.shared.burial(key, removed, true);
            if finished(Self::enqueue(permit, Some(claim), prepared, Vec::new())).await? {
                return Ok(true);
            }
        }
    }

    /// [`Store::claim`], for a write by somebody who is told what came of it. Members are no part of rounds, and can always be
    /// written.
    async fn claim_to_write(&self, key: &ObjectKey) -> Result<(mpsc::Permit<'_, Job>, Claim), WriteError> {
        let claimed = self.claim(key).await?;
        if key.kind != Kind::Member && self.shared.index().target().is_some() {
            return Err(WriteError::CatchingUp(key.clone()));
        }
        Ok(claimed)
    }

    /// Waits for the right to change `key` and for room in the queue: in this order, so that those who wait for one key
    /// hold no room that others need. The queue is emptied without claims, so that both come.
    pub(crate) async fn claim(&self, key: &ObjectKey) -> Result<(mpsc::Permit<'_, Job>, Claim), CommitError> {
        let mut claim = self.shared.claims.claim(key).await;
        let permit = self.permit().await?;
        claim.stance = self.shared.index().stance();
        Ok((permit, claim))
    }

    /// Waits until a change is durable; None, if it has to be prepared again.
    async fn commit(
        &self,
        key: &ObjectKey,
        permit: mpsc::Permit<'_, Job>,
        claim: Claim,
        prepared: Prepared,
    ) -> Result<Option<View>, WriteError> {
        let done = Self::enqueue(permit, Some(claim), prepared, Vec::new());
        match done.await.map_err(|_| closed())?? {
            Committed::Shown(Some(view)) => Ok(Some(view)),
            Committed::Shown(None) => Err(WriteError::NotFound(key.clone())),
            Committed::Overtaken => Ok(None),
        }
    }

    pub(crate) fn enqueue(
        permit: mpsc::Permit<'_, Job>,
        claim: Option<Claim>,
        prepared: Prepared,
        conflicts: Vec<Conflict>,
    ) -> Done {
        let (done, waiting) = oneshot::channel();
        permit.send(Job::Commit(Box::new(Commit {
            writes: prepared.writes,
            change: prepared.change,
            fresh: prepared.fresh,
            rescued: prepared.rescued,
            conflicts,
            claim,
            done,
        })));
        waiting
    }

    pub(crate) async fn permit(&self) -> Result<mpsc::Permit<'_, Job>, CommitError> {
        self.queue.reserve().await.map_err(|_| closed())
    }

    // -------------------------------------------------------------- projections

    /// Lays computed fields over an object (JSON merge: maps merge, the projection's other values win), or, where no
    /// document exists and `projection` names a whole object, shows that; anything else without a document is as None,
    /// which takes it away. Costs no disk write; moves the revision only if the view changes.
    pub fn project(&self, key: &ObjectKey, projection: Option<Object>) {
        let mut index = self.shared.index_mut();
        index.project(key, projection);
        if index.wanted_reservation().is_some() {
            // A full queue reserves as well.
            let _ = self.queue.try_send(Job::Reserve);
        }
    }

    // -------------------------------------------------------------- sync

    /// This node's fresh changes, to push to live peers at once. A slow reader loses some; digests repair it.
    pub fn pushes(&self) -> broadcast::Receiver<Push> {
        self.shared.pushes.subscribe()
    }

    /// Returns a frame with changes that a peer takes in this order.
    ///
    /// # Errors
    /// They cannot be encoded.
    pub fn push_frame(&self, pushes: &[Push]) -> Result<Bytes, SyncError> {
        let mut items: Vec<Delta> = Vec::with_capacity(pushes.len());
        for Push { delta, .. } in pushes {
            match items.last_mut() {
                Some(last) if last.goes_on_with(delta) => last.append(delta),
                Some(_) | None => items.push(Delta::clone(delta)),
            }
        }
        // That of the oldest: what was closed since then may cover it.
        let header = pushes
            .iter()
            .map(|push| push.header)
            .min_by_key(|header| header.floor);
        frame::encode(header.unwrap_or_default(), &Body::Push { items })
    }

    /// Conflicts in which a value that a user wrote through this node lost. A slow reader loses some.
    pub fn conflicts(&self) -> broadcast::Receiver<Conflict> {
        self.shared.conflicts.subscribe()
    }

    /// A short hash (hex) of everything this store holds; equal on nodes that hold the same.
    pub fn digest(&self) -> String {
        let index = self.shared.index();
        index.digests().total(index.header())
    }

    /// Begins an exchange with a peer whose digest differs.
    pub fn begin_exchange(&self, peer: &NodeId) -> Exchange {
        tracing::debug!(%peer, "exchange begins");
        self.first_step()
    }

    /// Takes a frame from an authenticated peer (a push, a step of an exchange, or an answer) and says what to send
    /// back. What it stores is durable when this returns.
    ///
    /// # Errors
    /// The frame is refused as a whole.
    pub async fn receive(&self, peer: &NodeId, frame: &[u8]) -> Result<Exchange, SyncError> {
        Ok(self.receive_and_judge(peer, frame).await?.next)
    }

    /// As [`Store::receive`], and says how much of it no store can take.
    ///
    /// # Errors
    /// The frame is refused as a whole.
    pub async fn receive_and_judge(&self, peer: &NodeId, frame: &[u8]) -> Result<Received, SyncError> {
        self.step(peer, frame).await
    }

    // -------------------------------------------------------------- the disk

    /// What this store can expect of its disk: as the last write found it, or [`Store::look_at_disk`].
    pub fn disk(&self) -> watch::Receiver<DiskState> {
        self.shared.disk.subscribe()
    }

    /// Looks whether there is room on the disk, without waiting for the answer: while nothing is written, nobody else does.
    pub fn look_at_disk(&self) {
        // With a full queue there are writes, which find out.
        let _ = self.queue.try_send(Job::Reserve);
    }

    /// Waits until all accepted writes are on disk, and closes. Writes fail from then on; reads go on.
    pub async fn close(&self) {
        let (closed, waiting) = oneshot::channel();
        if self.queue.send(Job::Close(closed)).await.is_ok() {
            let _ = waiting.await;
        }
    }
}

/// Waits until a queued change is durable; false, if it has to be prepared again.
pub(crate) async fn finished(done: Done) -> Result<bool, CommitError> {
    let committed = done.await.map_err(|_| closed())??;
    Ok(matches!(committed, Committed::Shown(_)))
}

pub(crate) fn closed() -> CommitError {
    CommitError::Failed("the store is closed".to_owned())
}
