//! One object's automerge document: a flat map that holds the object's leaves, who owns which of them, and what was
//! true at creation. Loaded only to be changed or merged; see `record.rs` for what is kept.
//!
//! Beside the leaves (`leaves.rs`) the map has `@created` (seconds), `@namespace` (the incarnation of the namespace that
//! the object was created in), and the owners of leaves, `@creator` and `@owner/...` (`owners.rs`).

use std::collections::BTreeSet;

use automerge::legacy::{Key, ObjectId, OpType};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{
    ActorId, AutoCommit, Automerge, Change, ChangeHash, ExpandedChange, ROOT, ReadDoc, ScalarValue,
};
use schemas::Kind;
use serde::{Deserialize, Serialize};

use crate::incarnation::Incarnation;
use crate::leaves::{self, Edits, Leaves};
use crate::owners::{self, Operation, Owner, Owners};
use crate::path::{self, Role};
use crate::run_lengths;
use crate::types::{NodeId, Via};

const CREATOR: &str = "@creator";
const CREATED: &str = "@created";
const NAMESPACE: &str = "@namespace";

/// The largest change from a peer: the largest object, twice (as fields and as a group), and its paths.
pub(crate) const MAX_CHANGE_BYTES: usize = 3_500_000;
/// The most operations in a change from a peer: an object of the largest size has no more leaves than this.
const MAX_OPERATIONS: u64 = 500_000;
/// The most bytes of the paths in a change from a peer, as many as two of each in it (a deletion and a put).
const MAX_PATHS_BYTES: usize = 2 * MAX_CHANGE_BYTES;
/// The longest name of a manager or user in a change.
const MAX_AUTHOR_BYTES: usize = owners::MAX_MANAGER_BYTES;

/// A loaded document.
pub(crate) struct Document {
    automerge: AutoCommit,
}

/// What a document says.
#[derive(Default, Clone, Debug, PartialEq)]
pub(crate) struct Contents {
    /// As packed: what the next change is diffed against.
    pub(crate) raw: Leaves,
    pub(crate) leaves: Leaves,
    pub(crate) owners: Owners,
    pub(crate) birth: Birth,
}

/// What was true when the object was created.
#[derive(Default, Clone, Debug, PartialEq)]
pub(crate) struct Birth {
    pub(crate) unix_seconds: i64,
    /// The incarnation of its namespace; None for cluster-scoped objects.
    pub(crate) namespace: Option<Incarnation>,
}

/// Who made a change, as the change itself says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ChangeAuthor {
    #[serde(rename = "m")]
    pub(crate) manager: String,
    /// Empty for controllers.
    #[serde(rename = "u", default, skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    #[serde(rename = "n")]
    pub(crate) node: NodeId,
    /// None in changes of agents that did not say it, and of those that know more ways than this one.
    #[serde(
        rename = "v",
        default,
        deserialize_with = "known_via",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) via: Option<Via>,
    /// The number of changes that this one, the first of a compacted document, stands for.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(crate) dropped: Option<u64>,
    /// Kept as the change's time, not in its message.
    #[serde(skip)]
    pub(crate) unix_seconds: i64,
}

/// Reads a way that this version knows: what a later one says must not make its changes unreadable.
fn known_via<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Via>, D::Error> {
    let said = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(said).ok())
}

impl ChangeAuthor {
    fn check(&self) -> Result<(), BadBytes> {
        let longest = [&self.manager, &self.user, &self.node.0]
            .map(String::len)
            .into_iter()
            .max();
        match longest {
            Some(..=MAX_AUTHOR_BYTES) | None => Ok(()),
            Some(bytes) => Err(BadBytes(format!("a manager or user of {bytes} bytes"))),
        }
    }
}

/// A field whose value differed on two sides.
pub(crate) struct Clash {
    pub(crate) path: String,
    pub(crate) winner: (ScalarValue, ChangeAuthor),
    pub(crate) loser: (ScalarValue, ChangeAuthor),
}

/// Bytes that are no document or no change of ours.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadBytes(pub(crate) String);

impl Document {
    pub(crate) fn new(actor: ActorId) -> Self {
        Self {
            automerge: AutoCommit::new().with_actor(actor),
        }
    }

    pub(crate) fn load(bytes: &[u8], actor: ActorId) -> Result<Self, BadBytes> {
        let automerge = AutoCommit::load(bytes).map_err(|error| BadBytes(error.to_string()))?;
        Ok(Self {
            automerge: automerge.with_actor(actor),
        })
    }

    pub(crate) fn save(&mut self) -> Vec<u8> {
        self.automerge.save()
    }

    /// Returns the heads, sorted.
    pub(crate) fn heads(&mut self) -> Vec<ChangeHash> {
        let mut heads = self.automerge.get_heads();
        heads.sort_unstable();
        heads
    }

    /// Reads everything.
    pub(crate) fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        for item in self.automerge.map_range(&ROOT, ..) {
            let automerge::ValueRef::Scalar(value) = item.value else {
                continue;
            };
            let value = ScalarValue::from(value);
            let key = item.key.as_ref();
            if !key.starts_with('@') {
                let value = match path::role(key) {
                    Role::Presence if item.conflict => self.presence(key).unwrap_or(value),
                    Role::Presence | Role::Order | Role::Value => value,
                };
                contents.raw.insert(key.to_owned(), value);
                continue;
            }
            match (key, &value) {
                (CREATOR, _) => contents.owners.creators = self.creators(),
                (CREATED, ScalarValue::Int(seconds)) => contents.birth.unix_seconds = *seconds,
                (NAMESPACE, ScalarValue::Str(text)) => contents.birth.namespace = text.parse().ok(),
                (key, _) => {
                    if let Some((owner, path)) = owners::parse_key(key) {
                        let owners = contents.owners.explicit.entry(path.to_owned()).or_default();
                        owners.insert(owner);
                    }
                }
            }
        }
        contents.leaves = leaves::unpack(contents.raw.clone());
        contents
    }

    /// Returns what is read of the history; nothing of it is decided here.
    pub(crate) fn automerge(&mut self) -> &Automerge {
        self.automerge.document()
    }

    /// Returns this document as it was.
    pub(crate) fn at(&mut self, heads: &[ChangeHash]) -> Result<Self, BadBytes> {
        let automerge = self.automerge.fork_at(heads);
        Ok(Self {
            automerge: automerge.map_err(|error| BadBytes(error.to_string()))?,
        })
    }

    fn presence(&self, key: &str) -> Option<ScalarValue> {
        let all = self.automerge.get_all(&ROOT, key).ok()?;
        decided_presence(all.into_iter().map(|(value, _)| value))
    }

    fn creators(&self) -> BTreeSet<Owner> {
        let all = self.automerge.get_all(&ROOT, CREATOR).unwrap_or_default();
        all.into_iter()
            .filter_map(|(value, _)| Owner::parse(&value.into_string().ok()?))
            .collect()
    }

    /// Writes new leaves and owners over `contents` (which this document holds) as the smallest change, and returns its
    /// bytes; None, if nothing changes.
    pub(crate) fn write(
        &mut self,
        kind: Kind,
        contents: &Contents,
        leaves: Leaves,
        owners: &Owners,
        author: &ChangeAuthor,
    ) -> Result<Option<WrittenChange>, BadBytes> {
        let desired = leaves::pack(kind, leaves);
        let edits = leaves::diff(&contents.raw, &desired);
        let owner_edits = leaves::diff(&contents.owners.to_leaves(), &owners.to_leaves());
        if edits.is_empty() && owner_edits.is_empty() {
            return Ok(None);
        }
        let has_fields = !edits.is_empty();
        let is_spec = touches_spec(edits.puts.iter().map(|(path, _)| path).chain(&edits.deletes));
        self.edit(edits)?;
        self.edit(owner_edits)?;
        // Who removes a field while another begins to own it knows nothing of that: written again, it outlives the removal.
        // (Not an element as a whole: its removal beats all under its number.)
        for (path, value) in desired {
            let is_value = path::role(&path) == Role::Value;
            let is_adopted = !owners.of(&path).is_subset(contents.owners.of(&path));
            if is_value && is_adopted && contents.raw.get(&path) == Some(&value) {
                // A put of an equal value alone would be left out.
                self.delete(&path)?;
                self.put(&path, value)?;
            }
        }
        let bytes = self.commit(author)?;
        Ok(Some(WrittenChange {
            bytes,
            is_spec,
            has_fields,
        }))
    }

    /// Writes the first change of an object.
    pub(crate) fn create(
        &mut self,
        kind: Kind,
        leaves: Leaves,
        birth: &Birth,
        author: &ChangeAuthor,
        operation: Operation,
    ) -> Result<WrittenChange, BadBytes> {
        let creator = Owner::new(operation, &author.manager).to_text();
        self.put(CREATOR, ScalarValue::Str(creator.into()))?;
        self.put(CREATED, ScalarValue::Int(birth.unix_seconds))?;
        if let Some(namespace) = birth.namespace {
            self.put(NAMESPACE, ScalarValue::Str(namespace.to_string().into()))?;
        }
        for (path, value) in leaves::pack(kind, leaves) {
            self.put(&path, value)?;
        }
        Ok(WrittenChange {
            bytes: self.commit(author)?,
            is_spec: true,
            has_fields: true,
        })
    }

    fn edit(&mut self, edits: Edits) -> Result<(), BadBytes> {
        edits.deletes.iter().try_for_each(|path| self.delete(path))?;
        edits
            .puts
            .into_iter()
            .try_for_each(|(path, value)| self.put(&path, value))
    }

    fn delete(&mut self, path: &str) -> Result<(), BadBytes> {
        self.automerge
            .delete(&ROOT, path)
            .map_err(|error| BadBytes(error.to_string()))
    }

    /// Puts a leaf, if peers would take it.
    fn put(&mut self, path: &str, value: ScalarValue) -> Result<(), BadBytes> {
        check_put(path, &value)?;
        self.automerge
            .put(&ROOT, path, value)
            .map_err(|error| BadBytes(error.to_string()))
    }

    /// Ends a change and returns its bytes.
    fn commit(&mut self, author: &ChangeAuthor) -> Result<Vec<u8>, BadBytes> {
        author.check()?;
        let message = serde_json::to_string(author).map_err(|error| BadBytes(error.to_string()))?;
        let options = CommitOptions::default()
            .with_message(message)
            .with_time(author.unix_seconds);
        self.automerge.commit_with(options);
        let change = self.automerge.get_last_local_change();
        let bytes = change
            .map(|change| change.raw_bytes().to_vec())
            .unwrap_or_default();
        check_size(&bytes)?;
        Ok(bytes)
    }

    /// Tells whether this document has a change.
    pub(crate) fn has(&mut self, hash: &ChangeHash) -> bool {
        self.automerge.get_change_meta_by_hash(hash).is_some()
    }

    /// Returns the changes that a document with `heads` lacks, causes before effects.
    pub(crate) fn changes_after(&mut self, heads: &[ChangeHash]) -> Vec<Vec<u8>> {
        let known: Vec<ChangeHash> = heads.iter().filter(|hash| self.has(hash)).copied().collect();
        let changes = self.automerge.get_changes(&known);
        changes.iter().map(|change| change.raw_bytes().to_vec()).collect()
    }

    /// Adds changes of other replicas, except those whose causes are not here. The document must be dropped after an
    /// error.
    pub(crate) fn merge(&mut self, changes: &[IncomingChange]) -> Result<Merged, BadBytes> {
        let mut fresh: Vec<&IncomingChange> = Vec::new();
        let mut known = BTreeSet::new();
        let mut missing = false;
        for change in changes {
            if known.contains(&change.hash) || self.has(&change.hash) {
                continue;
            }
            let mut causes = change.change.deps().iter();
            if causes.all(|cause| known.contains(cause) || self.has(cause)) {
                known.insert(change.hash);
                fresh.push(change);
            } else {
                missing = true;
            }
        }
        let applied: Vec<Change> = fresh.iter().map(|change| change.change.clone()).collect();
        let automerge = std::panic::AssertUnwindSafe(&mut self.automerge);
        guarded(move || {
            let automerge = automerge;
            automerge
                .0
                .apply_changes(applied)
                .map_err(|error| BadBytes(error.to_string()))
        })?;
        Ok(Merged {
            missing,
            spec_changes: fresh.iter().filter(|change| change.is_spec).count() as u64,
            clashes: self.clashes(&fresh),
            any: !fresh.is_empty(),
        })
    }

    /// Finds the fields that new changes wrote and that others wrote at the same time.
    fn clashes(&mut self, changes: &[&IncomingChange]) -> Vec<Clash> {
        let touched: BTreeSet<&str> = changes
            .iter()
            .flat_map(|change| &change.paths)
            .map(String::as_str)
            .collect();
        let mut clashes = Vec::new();
        for path in touched {
            if path.starts_with('@') || path::role(path) != Role::Value {
                continue;
            }
            let Ok(all) = self.automerge.get_all(&ROOT, path) else {
                continue;
            };
            let all: Vec<(ScalarValue, automerge::ObjId)> = all
                .into_iter()
                .filter_map(|(value, id)| Some((value.into_scalar().ok()?, id)))
                .collect();
            if all.len() < 2 {
                continue;
            }
            let sides: Vec<(ScalarValue, Option<ChangeAuthor>)> = all
                .into_iter()
                .map(|(value, id)| (value, self.author_of(&id)))
                .collect();
            let Some(((winner, Some(winner_author)), losers)) = sides.split_last() else {
                continue;
            };
            for (loser, author) in losers.iter().filter(|(loser, _)| loser != winner) {
                if let Some(author) = author {
                    clashes.push(Clash {
                        path: path.to_owned(),
                        winner: (winner.clone(), winner_author.clone()),
                        loser: (loser.clone(), author.clone()),
                    });
                }
            }
        }
        clashes
    }

    /// Returns who made an operation.
    fn author_of(&mut self, operation: &automerge::ObjId) -> Option<ChangeAuthor> {
        let hash = self.automerge.document().hash_for_opid(operation)?;
        let change = self.automerge.get_change_by_hash(&hash)?;
        serde_json::from_str(change.message()?).ok()
    }
}

/// Decides between presences that were written at once: the higher number; of one number, the removal.
pub(crate) fn decided_presence<'a>(all: impl Iterator<Item = automerge::Value<'a>>) -> Option<ScalarValue> {
    all.filter_map(|value| value.as_i64())
        .max_by_key(|number| (number.unsigned_abs(), *number < 0))
        .map(ScalarValue::Int)
}

/// A change that was just made here.
pub(crate) struct WrittenChange {
    pub(crate) bytes: Vec<u8>,
    /// It counts in `metadata.generation`.
    pub(crate) is_spec: bool,
    /// It changes fields, and not their owners alone.
    pub(crate) has_fields: bool,
}

/// What a merge did.
pub(crate) struct Merged {
    /// Some changes were left out, because others that they build on are not here.
    pub(crate) missing: bool,
    pub(crate) spec_changes: u64,
    pub(crate) clashes: Vec<Clash>,
    /// At least one change was new.
    pub(crate) any: bool,
}

/// Tells whether a change of these leaves counts in `metadata.generation`.
fn touches_spec<'a>(paths: impl IntoIterator<Item = &'a String>) -> bool {
    paths
        .into_iter()
        .any(|path| path.starts_with("spec/") || path == "spec" || path == path::IMMUTABLE)
}

/// A change from a peer that is well formed: it touches only leaves, and only with values that they can hold.
pub(crate) struct IncomingChange {
    change: Change,
    hash: ChangeHash,
    paths: Vec<String>,
    is_spec: bool,
}

impl IncomingChange {
    /// Checks and reads a change. Whether it is accepted depends on its bytes alone, so that all replicas decide alike.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BadBytes> {
        check_size(bytes)?;
        // Only plain changes: a compressed one could unpack to any size.
        if bytes.get(CHUNK_TYPE_AT) != Some(&CHUNK_TYPE_CHANGE) {
            return Err(BadBytes("not a change".to_owned()));
        }
        match run_lengths::operations(bytes) {
            Some(1..=MAX_OPERATIONS) => {}
            Some(count) => return Err(BadBytes(format!("a change of {count} operations"))),
            None => return Err(BadBytes("a change that cannot be read".to_owned())),
        }
        let (change, expanded) = guarded(|| {
            let change = Change::from_bytes(bytes.to_vec()).map_err(|error| BadBytes(error.to_string()))?;
            let expanded = change.decode();
            Ok((change, expanded))
        })?;
        let paths = check_operations(&expanded)?;
        check_author(&change)?;
        // What is deleted and put in one change stays as it was (see `Document::write`).
        let mut changed = BTreeSet::new();
        for path in &paths {
            if !changed.insert(path) {
                changed.remove(path);
            }
        }
        Ok(Self {
            hash: change.hash(),
            is_spec: expanded.deps.is_empty() || touches_spec(changed),
            paths,
            change,
        })
    }
}

/// Runs what reads a peer's bytes: automerge has panics for what it thinks impossible.
fn guarded<T>(read: impl FnOnce() -> Result<T, BadBytes> + std::panic::UnwindSafe) -> Result<T, BadBytes> {
    std::panic::catch_unwind(read).map_err(|_| BadBytes("a change that cannot be read".to_owned()))?
}

/// Magic bytes (4) and checksum (4) come before the chunk's type.
const CHUNK_TYPE_AT: usize = 8;
const CHUNK_TYPE_CHANGE: u8 = 1;

fn check_operations(change: &ExpandedChange) -> Result<Vec<String>, BadBytes> {
    let (mut paths, mut bytes) = (Vec::with_capacity(change.operations.len()), 0);
    for operation in &change.operations {
        let (ObjectId::Root, Key::Map(key), false) = (&operation.obj, &operation.key, operation.insert)
        else {
            return Err(BadBytes("an operation outside the flat map".to_owned()));
        };
        let at_path = |reason| bad_leaf(key, reason);
        match &operation.action {
            OpType::Put(value) => check_put(key, value)?,
            OpType::Delete if owners::is_owner_key(key) => {}
            OpType::Delete if key.starts_with('@') => {
                return Err(at_path("a deletion of what never changes"));
            }
            OpType::Delete => leaves::check_path(key).map_err(at_path)?,
            OpType::Make(_) | OpType::Increment(_) | OpType::MarkBegin(..) | OpType::MarkEnd(_) => {
                return Err(at_path("an operation that is neither put nor delete"));
            }
        }
        bytes += key.len();
        if bytes > MAX_PATHS_BYTES {
            return Err(at_path("a path that is repeated"));
        }
        paths.push(key.to_string());
    }
    Ok(paths)
}

fn check_size(change: &[u8]) -> Result<(), BadBytes> {
    if change.len() > MAX_CHANGE_BYTES {
        return Err(BadBytes(format!(
            "a change of {} bytes, at most {MAX_CHANGE_BYTES}",
            change.len()
        )));
    }
    Ok(())
}

fn bad_leaf(key: &str, reason: &'static str) -> BadBytes {
    BadBytes(format!("{key:.100}: {reason}"))
}

/// Checks what is put at a key, here and by peers alike.
fn check_put(key: &str, value: &ScalarValue) -> Result<(), BadBytes> {
    let checked = if key.starts_with('@') {
        check_meta(key, value)
    } else {
        leaves::check_leaf(key, value)
    };
    checked.map_err(|reason| bad_leaf(key, reason))
}

fn check_meta(key: &str, value: &ScalarValue) -> Result<(), &'static str> {
    let fits = match (key, value) {
        (CREATOR, ScalarValue::Str(owner)) => Owner::parse(owner).is_some(),
        (CREATED, ScalarValue::Int(_)) => true,
        (NAMESPACE, ScalarValue::Str(text)) => text.parse::<Incarnation>().is_ok(),
        (key, ScalarValue::Boolean(true)) => {
            owners::parse_key(key).is_some_and(|(_, path)| leaves::check_path(path).is_ok())
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err("not a leaf of ours") }
}

fn check_author(change: &Change) -> Result<(), BadBytes> {
    let author: Option<ChangeAuthor> = change
        .message()
        .and_then(|message| serde_json::from_str(message).ok());
    author
        .ok_or_else(|| BadBytes("a change without its author".to_owned()))?
        .check()
}
