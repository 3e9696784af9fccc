//! The words of the store's interface.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use schemas::{Kind, Object, ObjectKey};
use serde_json::Value;

use crate::frame::{Delta, Header};
use crate::index::PackedView;
use crate::packed::RECENT_BYTES;

/// Identity of a node: the hex SHA-256 of its public key (64 characters).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a store needs to know of its node.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Identity of the cluster; a part of every uid.
    pub cluster_id: String,
    pub node: NodeId,
    /// Key for records of Secrets and other confidential kinds (AES-256-GCM).
    pub seal_key: [u8; 32],
}

/// A version of this node's state: strictly increasing and durable. Its text form is what `resourceVersion` shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// Bits of the tag, below the counter.
    const TAG_BITS: u32 = 16;

    /// Makes a revision of a counter (below 2^48) and the tag of the store that counts.
    pub(crate) fn new(counter: u64, tag: u16) -> Self {
        Self(counter << Self::TAG_BITS | u64::from(tag))
    }

    pub(crate) fn counter(self) -> u64 {
        self.0 >> Self::TAG_BITS
    }

    /// Returns what tells this store's revisions from those of other nodes, and of copies of its directory.
    pub fn tag(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An object as the API shows it: the document with the computed fields (projection) laid over it. `metadata` has
/// uid, creationTimestamp, generation and resourceVersion.
#[derive(Clone, Debug)]
pub struct View {
    pub key: ObjectKey,
    pub object: Arc<Object>,
    /// `metadata.managedFields` as JSON: not in the object, since few read it. None, if nobody owns any of its fields.
    pub managed: Option<Arc<str>>,
    pub revision: Revision,
    /// False for an object that is computed alone (a Node, an EndpointSlice).
    pub stored: bool,
}

/// A consistent snapshot of a list.
#[derive(Clone, Debug)]
pub struct Listing {
    pub items: Vec<View>,
    /// The state this list shows; a watch from here misses nothing.
    pub revision: Revision,
}

/// A consistent snapshot of a list, whose views are made one by one: of a long list that takes its time, and memory.
pub struct Views {
    views: std::vec::IntoIter<PackedView>,
    revision: Revision,
    /// There are more than are kept as trees.
    is_long: bool,
}

impl Views {
    pub(crate) fn new(views: Vec<PackedView>, revision: Revision) -> Self {
        let bytes: usize = views.iter().map(PackedView::bytes).sum();
        Self {
            views: views.into_iter(),
            revision,
            is_long: bytes > RECENT_BYTES,
        }
    }

    /// Leaves out what has another name, without making views of it.
    pub fn named(self, name: &str) -> Self {
        let named = self.views.filter(|view| view.key.name == name);
        Self::new(named.collect(), self.revision)
    }

    /// Returns the state that this list shows; a watch from here misses nothing.
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

impl Iterator for Views {
    type Item = View;

    fn next(&mut self) -> Option<View> {
        let make = match self.is_long {
            true => PackedView::passing,
            false => PackedView::view,
        };
        self.views.next().map(make)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.views.size_hint()
    }
}

impl ExactSizeIterator for Views {}

/// Who changes an object, and through what; attached to the change when it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Author {
    /// The field manager that owns the fields (`kubectl-client-side-apply`, `psctl`, `deployment-controller`).
    pub manager: String,
    /// The user, as the API authenticated it; empty for controllers.
    pub user: String,
    pub via: Via,
    /// Seconds since the Unix epoch, for display alone.
    pub unix_seconds: i64,
}

/// Through what a change came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Server-side apply: `psctl apply`, `kubectl apply --server-side`, manifests over HTTP.
    Apply,
    /// Any other write of the API.
    Api,
    /// The Git repository that the cluster follows.
    GitOps,
    /// A controller or a node, by itself.
    Controller,
}

/// What a node does that was away while its peers dropped tombstones (`rounds.rs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// It compares all that it holds with its peers, and takes no writes until then.
    pub catching_up: bool,
    /// How often that began since the start.
    pub catch_ups: u64,
    /// Objects that no peer can have had, and that were created again.
    pub replayed: u64,
    /// Objects with edits of users that were set aside.
    pub rescued: u64,
    /// Objects that the peers do not have any more, with those that were set aside.
    pub taken_away: u64,
}

/// What must hold of the stored object for a write to happen. Empty: anything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Precondition {
    pub uid: Option<String>,
    pub resource_version: Option<Revision>,
}

/// What an apply did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
}

/// The result of an apply.
#[derive(Clone, Debug)]
pub struct Applied {
    pub outcome: Outcome,
    pub view: View,
}

/// A field that another manager owns with another value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnedField {
    /// As Kubernetes writes it: `.spec.template.spec.containers[name="web"].image`.
    pub path: String,
    pub manager: String,
    /// The manager changed it, and did not apply it.
    pub by_update: bool,
}

/// Why a store could not be opened. Nothing was overwritten.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another agent: stop that one, or use another directory")]
    Locked { path: String },
    #[error(transparent)]
    Full(#[from] Shortage),
    #[error("cannot use {path}")]
    Io { path: String, source: std::io::Error },
    #[error(
        "{path} was sealed under another encryption key than encryption.key: put that one back, any other node of the cluster has it"
    )]
    WrongKey { path: String },
    #[error("{path} has format {found}, this version reads {ours}")]
    Format { path: String, found: u32, ours: u32 },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: String, reason: String },
}

/// Why a write was refused.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0} already exists")]
    Exists(ObjectKey),
    #[error("{0} not found")]
    NotFound(ObjectKey),
    #[error("{key} was changed meanwhile: {reason}")]
    Conflict { key: ObjectKey, reason: String },
    /// Server-side apply without force.
    #[error("{key}: fields are owned by other managers: {}", fields.iter().map(|field| format!("{} ({})", field.path, field.manager)).collect::<Vec<_>>().join(", "))]
    Owned {
        key: ObjectKey,
        /// Ordered by path.
        fields: Vec<OwnedField>,
    },
    /// The record of this key cannot be read, and nothing has replaced it yet.
    #[error(
        "{0} cannot be made: what this node held under that name cannot be read, and no other node has brought it yet; delete it to give it up"
    )]
    Unreadable(ObjectKey),
    /// This node was away for too long and compares what it holds with its peers; the write may succeed in a moment.
    #[error(
        "{0} was not written: this node was away while old deletions were forgotten, and takes no writes until it has caught up with the others"
    )]
    CatchingUp(ObjectKey),
    /// The object cannot be stored: too large, nested too deeply, no name.
    #[error("{key}: {reason}")]
    Invalid { key: String, reason: String },
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Why a write could not be made durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// No space; reads go on, writes may succeed later.
    #[error(transparent)]
    Full(#[from] Shortage),
    /// A sync failed; this store takes no more writes until it is opened again.
    #[error("the disk failed, writes are stopped: {0}")]
    Failed(String),
}

/// A disk that has not enough room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of {path} is full: {} MiB are free, {} MiB are needed; writes are taken again, without a restart, when there is room",
    free_bytes >> 20, needed_bytes.div_ceil(1 << 20)
)]
pub struct Shortage {
    /// What is on that disk.
    pub path: String,
    pub free_bytes: u64,
    /// What must be free for a write to be tried.
    pub needed_bytes: u64,
}

/// What a store can expect of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    Well,
    /// Writes are refused until there is room. As it was when this began.
    Full(Shortage),
    /// A sync failed: writes are refused until the store is opened again.
    Failed(String),
}

/// A watch cannot go on from where it was: list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old or foreign resource version, list again")]
pub struct Gone;

/// What a watch follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchScope {
    /// Empty: all kinds.
    pub kinds: Vec<Kind>,
    /// None: all namespaces.
    pub namespace: Option<String>,
}

/// A change of a view.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// New (`previous` is None) or changed.
    Put {
        view: View,
        previous: Option<Arc<Object>>,
    },
    /// Gone; `view.object` is its last state and `view.revision` that of the removal.
    Deleted { view: View },
}

/// A fresh change of this node, to be sent to every live peer at once: [`Store::push_frame`](crate::Store::push_frame).
#[derive(Clone, Debug)]
pub struct Push {
    /// Of the store when the change was made.
    pub(crate) header: Header,
    pub(crate) delta: Arc<Delta>,
}

impl Push {
    /// Returns about how many bytes this takes in a frame.
    pub fn bytes(&self) -> usize {
        self.delta.bytes()
    }
}

/// What to do next in an exchange with a peer.
#[derive(Clone, Debug)]
pub enum Exchange {
    /// Send this to the peer, and hand its answer to `Store::receive`.
    Send(Bytes),
    /// Both sides hold the same, as far as this exchange could tell.
    Done,
}

/// What came of a frame from a peer.
#[derive(Clone, Debug)]
pub struct Received {
    pub next: Exchange,
    /// Changes in it that no store can take: who sends them is broken, or means harm. The rest of it is stored.
    pub refused: usize,
}

/// Two values that users gave to one field at once. Told once, by the node that wrote the losing one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    pub key: ObjectKey,
    /// For people: `spec.template.spec.containers[web].image`.
    pub path: String,
    pub winner: ConflictSide,
    pub loser: ConflictSide,
}

/// One of the values of a conflict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConflictSide {
    /// As JSON; of confidential kinds `<redacted, sha256:...>`.
    pub value: String,
    pub node: NodeId,
    pub user: String,
    pub manager: String,
}

/// A field that differs between two states of an object.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct FieldChange {
    /// For people: `spec.template.spec.containers[web].image`.
    pub path: String,
    /// None: it was not there. Of confidential kinds `<redacted, sha256:...>`; long values are text that ends in `…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// None: it is gone. Otherwise as `old`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// A value was too long to be shown whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// The fields that differ between two states of an object, ordered by path (100 at most).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ChangedFields {
    pub fields: Vec<FieldChange>,
    /// So many more differ.
    pub omitted: usize,
}

/// The changes of one object, of this incarnation of it.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    /// Causes before effects; what happened at once is ordered by time, the same on every node.
    pub changes: Vec<HistoryChange>,
    /// So many changes before those are kept, and not listed.
    pub omitted: usize,
}

/// One change of an object.
#[derive(Clone, PartialEq, Debug)]
pub struct HistoryChange {
    /// The beginning of what the change is known by, long enough to tell it from the others of its object (8 hex digits
    /// or more). It stays the same when the history before it is squashed.
    pub id: String,
    pub unix_seconds: i64,
    /// The node that wrote it.
    pub node: NodeId,
    /// The user, as the API authenticated it; empty for controllers.
    pub user: String,
    /// The field manager.
    pub manager: String,
    /// None, if the agent that wrote it did not say, or in a word of a later version.
    pub via: Option<Via>,
    /// Against what its writer saw. Empty, if it changes nothing but who owns fields or the order of a list.
    pub changed: ChangedFields,
    /// It stands for so many changes, of which nothing else is known any more; `changed` is empty.
    pub compacted: Option<u64>,
}

/// What differs between an object at two changes.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    /// The changes that `from` is the state after: several, if they were made at once; none, before the first.
    pub from: Vec<String>,
    /// As `from`.
    pub to: Vec<String>,
    pub changed: ChangedFields,
}

/// Why nothing can be said of an object's history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("{0} not found")]
    NotFound(ObjectKey),
    #[error("{0} is computed and was never written")]
    Computed(ObjectKey),
    #[error("{key} has no change {change:?}")]
    UnknownChange { key: ObjectKey, change: String },
    #[error("{count} changes of {key} begin with {change:?}")]
    Ambiguous {
        key: ObjectKey,
        change: String,
        count: usize,
    },
    #[error("the history of {key} cannot be read: {reason}")]
    Unreadable { key: ObjectKey, reason: String },
}

/// Why a frame from a peer was refused. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("malformed sync frame: {0}")]
    Malformed(String),
    #[error("sync protocol version {theirs} of the peer is not {ours}")]
    Version { ours: u32, theirs: u32 },
    #[error(transparent)]
    Commit(#[from] CommitError),
}
