//! One object's automerge document: a flat map that holds the object's leaves, who owns which of them, and what was
//! true at creation. Loaded only to be changed or merged; see `record.rs` for what is kept.
//!
//! Beside the leaves (`leaves.rs`) the map has `@created` (seconds), `@namespace` (the incarnation of the namespace that
//! the object was created in), and the owners of leaves, `@creator` and `@owner/...` (`owners.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{
    ActorId, AutoCommit, Change, ChangeHash, ExpandedChange, ObjId, ROOT, ReadDoc, SaveOptions, ScalarValue,
    legacy,
};
use schemas::Kind;
use serde::{Deserialize, Serialize};

use crate::incarnation::Incarnation;
use crate::incoming::{IncomingChange, check_put, check_size, guarded};
use crate::leaves::{self, Edits, Leaves};
use crate::owners::{self, Operation, Owner, Owners};
use crate::path::{self, Role};
use crate::rescue::Sight;
use crate::types::{NodeId, Via};

pub(crate) const CREATOR: &str = "@creator";
pub(crate) const CREATED: &str = "@created";
pub(crate) const NAMESPACE: &str = "@namespace";

/// Documents up to this are not compressed, which is a tenth of what a write costs. Most are objects of some KB with a short
/// history; what grows long, or is large, gives back the most.
const MAX_PLAIN_BYTES: usize = 8 << 10;

/// The longest name of a manager or user in a change.
const MAX_AUTHOR_BYTES: usize = owners::MAX_MANAGER_BYTES;

/// A loaded document.
pub(crate) struct Document {
    pub(crate) automerge: AutoCommit,
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

impl Contents {
    /// Takes in what was written to the document.
    fn take(&mut self, edits: Edits, owners: &Owners) {
        for path in &edits.deletes {
            self.raw.remove(path);
        }
        self.raw.extend(edits.puts);
        self.leaves = leaves::unpack(self.raw.clone());
        self.owners.explicit.clone_from(&owners.explicit);
    }
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
        rename = "t",
        default,
        deserialize_with = "known_via",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) via: Option<Via>,
    /// Kept as the change's time, not in its message.
    #[serde(skip)]
    pub(crate) unix_seconds: i64,
    /// Of a base (`epoch.rs`): how many changes it stands for.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(crate) dropped: Option<u64>,
    /// Of the mark of a namespace's deletion: what was in it where that was asked for (`rescue.rs`).
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub(crate) sight: Option<Sight>,
}

/// Reads a way that this version knows: what a later one says must not make its changes unreadable.
fn known_via<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Via>, D::Error> {
    let said = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(said).ok())
}

impl ChangeAuthor {
    pub(crate) fn check(&self) -> Result<(), BadBytes> {
        let longest = [&self.manager, &self.user, &self.node.0]
            .map(String::len)
            .into_iter()
            .max();
        match longest {
            Some(..=MAX_AUTHOR_BYTES) | None => Ok(()),
            Some(bytes) => Err(BadBytes(format!("a manager or user of {bytes} bytes"))),
        }
    }

    /// Returns the message of a change.
    fn to_message(&self) -> Result<String, BadBytes> {
        self.check()?;
        serde_json::to_string(self).map_err(|error| BadBytes(error.to_string()))
    }

    /// Tells whether nobody outside asked for the change. Not by the user: without authentication, and of what comes from
    /// Git, there is none.
    pub(crate) fn is_controller(&self) -> bool {
        match self.via {
            Some(Via::Controller) => true,
            Some(Via::Apply | Via::Api | Via::GitOps) => false,
            None => self.user.is_empty(),
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
        // A disk can hold any bytes.
        let automerge = guarded(|| AutoCommit::load(bytes).map_err(|error| BadBytes(error.to_string())))?;
        Ok(Self {
            automerge: automerge.with_actor(actor),
        })
    }

    pub(crate) fn save(&mut self) -> Vec<u8> {
        let plain = SaveOptions {
            deflate: false,
            ..SaveOptions::default()
        };
        let plain = self.automerge.save_with_options(plain);
        if plain.len() <= MAX_PLAIN_BYTES {
            return plain;
        }
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

    /// Returns the presence that decides among those written at once.
    pub(crate) fn presence(&self, key: &str) -> Option<ScalarValue> {
        let all = self.automerge.get_all(&ROOT, key).ok()?;
        decided_presence(all.into_iter().map(|(value, _)| value))
    }

    /// Tells whether a value is at a key, whatever else was put there at once.
    pub(crate) fn holds(&self, key: &str, value: &ScalarValue) -> bool {
        self.sides(key, None).iter().any(|(held, _)| held == value)
    }

    fn creators(&self) -> BTreeSet<Owner> {
        let all = self.automerge.get_all(&ROOT, CREATOR).unwrap_or_default();
        all.into_iter()
            .filter_map(|(value, _)| Owner::parse(&value.into_string().ok()?))
            .collect()
    }

    /// Writes what is desired over `contents` (which this document holds, and which then are what it holds after) as the
    /// smallest change, and returns its bytes; None, if nothing changes.
    pub(crate) fn write(
        &mut self,
        kind: Kind,
        contents: &mut Contents,
        desired: Desired,
        author: &ChangeAuthor,
    ) -> Result<Option<WrittenChange>, BadBytes> {
        let Desired {
            leaves,
            owners,
            is_applied,
        } = desired;
        let desired = leaves::pack(kind, leaves);
        let edits = leaves::diff(&contents.raw, &desired);
        let owner_edits = leaves::diff(&contents.owners.to_leaves(), &owners.to_leaves());
        if edits.is_empty() && owner_edits.is_empty() {
            return Ok(None);
        }
        let has_fields = !edits.is_empty();
        let is_spec = touches_spec(edits.puts.iter().map(|(path, _)| path).chain(&edits.deletes));
        self.edit(&edits)?;
        self.edit(&owner_edits)?;
        // Who removes a field while another begins to own it knows nothing of that: written again, it outlives the removal.
        // (Not an element as a whole: its removal beats all under its number.) Of an apply alone: whoever says only who owns what
        // must not undo what others change meanwhile.
        for (path, value) in desired {
            let is_value = is_applied && path::role(&path) == Role::Value;
            let is_adopted = owners.adopts(&path, contents.owners.of(&path));
            if is_value && is_adopted && contents.raw.get(&path) == Some(&value) {
                // A put of an equal value alone would be left out.
                self.delete(&path)?;
                self.put(&path, value)?;
            }
        }
        let bytes = self.commit(author)?;
        contents.take(edits, &owners);
        Ok(Some(WrittenChange {
            bytes,
            is_spec,
            has_fields,
        }))
    }

    fn edit(&mut self, edits: &Edits) -> Result<(), BadBytes> {
        edits.deletes.iter().try_for_each(|path| self.delete(path))?;
        edits
            .puts
            .iter()
            .try_for_each(|(path, value)| self.put(path, value.clone()))
    }

    pub(crate) fn delete(&mut self, path: &str) -> Result<(), BadBytes> {
        self.automerge
            .delete(&ROOT, path)
            .map_err(|error| BadBytes(error.to_string()))
    }

    /// Puts a leaf, if peers would take it.
    pub(crate) fn put(&mut self, path: &str, value: ScalarValue) -> Result<(), BadBytes> {
        check_put(path, &value)?;
        self.automerge
            .put(&ROOT, path, value)
            .map_err(|error| BadBytes(error.to_string()))
    }

    /// Ends a change and returns its bytes.
    fn commit(&mut self, author: &ChangeAuthor) -> Result<Vec<u8>, BadBytes> {
        self.commit_as(author.to_message()?, author.unix_seconds)
    }

    /// Ends a change with a message of any kind; empty, if it changes nothing.
    pub(crate) fn commit_as(&mut self, message: String, unix_seconds: i64) -> Result<Vec<u8>, BadBytes> {
        let options = CommitOptions::default()
            .with_message(message)
            .with_time(unix_seconds);
        if self.automerge.commit_with(options).is_none() {
            return Ok(Vec::new());
        }
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
    pub(crate) fn merge(&mut self, changes: &[&IncomingChange]) -> Result<Merged, BadBytes> {
        let mut fresh: Vec<&IncomingChange> = Vec::new();
        let mut known = BTreeSet::new();
        let mut missing = false;
        for &change in changes {
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
        let before = self.written_before(&fresh);
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
            spec_changes: fresh.iter().map(|change| change.spec_changes).sum(),
            clashes: self.clashes(&fresh, &before),
            fresh: fresh.len() as u64,
        })
    }

    /// Returns what is held in the fields that changes write.
    fn written_before<'a>(&self, changes: &[&'a IncomingChange]) -> BTreeMap<&'a str, BTreeSet<ObjId>> {
        let ids = |path| self.sides(path, None).into_iter().map(|(_, id)| id).collect();
        fields(changes)
            .into_keys()
            .map(|path| (path, ids(path)))
            .collect()
    }

    /// Returns the values of a field that were written at once, the winner last: now, or as it was.
    pub(crate) fn sides(&self, path: &str, at: Option<&[ChangeHash]>) -> Vec<(ScalarValue, ObjId)> {
        let all = match at {
            Some(heads) => self.automerge.get_all_at(&ROOT, path, heads),
            None => self.automerge.get_all(&ROOT, path),
        };
        let all = all.unwrap_or_default().into_iter();
        all.filter_map(|(value, id)| Some((value.into_scalar().ok()?, id)))
            .collect()
    }

    /// Finds the fields that new changes wrote and that others wrote at the same time, `before` being what was held in them.
    /// Somebody else may have seen both and written the field again: so they are looked for where each change was made, too.
    fn clashes(
        &mut self,
        changes: &[&IncomingChange],
        before: &BTreeMap<&str, BTreeSet<ObjId>>,
    ) -> Vec<Clash> {
        let (mut clashes, nothing) = (Vec::new(), BTreeSet::new());
        for (path, writers) in fields(changes) {
            let before = before.get(path).unwrap_or(&nothing);
            let mut states = vec![self.sides(path, None)];
            // What one change alone replaced, its author had seen; and nobody here has lost what was not here.
            if writers.len() > 1 && !before.is_empty() {
                let made_at = writers
                    .iter()
                    .map(|change| self.sides(path, Some(change.change.deps())));
                states.extend(made_at);
            }
            let mut found = BTreeSet::new();
            for sides in states {
                let Some(((winner, winner_id), losers)) = sides.split_last() else {
                    continue;
                };
                for (loser, loser_id) in losers.iter().filter(|(loser, _)| loser != winner) {
                    let is_known = before.contains(winner_id) && before.contains(loser_id);
                    if is_known || !found.insert(loser_id.clone()) {
                        continue;
                    }
                    if let (Some(winner_author), Some(author)) =
                        (self.author_of(winner_id), self.author_of(loser_id))
                    {
                        clashes.push(Clash {
                            path: path.to_owned(),
                            winner: (winner.clone(), winner_author),
                            loser: (loser.clone(), author),
                        });
                    }
                }
            }
        }
        clashes
    }

    /// Returns who made an operation.
    fn author_of(&mut self, operation: &ObjId) -> Option<ChangeAuthor> {
        let hash = self.automerge.document().hash_for_opid(operation)?;
        let change = self.automerge.get_change_by_hash(&hash)?;
        serde_json::from_str(change.message()?).ok()
    }
}

/// Returns the values' paths that changes write, each with the changes that do.
fn fields<'a>(changes: &[&'a IncomingChange]) -> BTreeMap<&'a str, Vec<&'a IncomingChange>> {
    let mut fields: BTreeMap<&str, Vec<&IncomingChange>> = BTreeMap::new();
    for &change in changes {
        let paths = change.paths.iter().map(String::as_str);
        for path in paths.filter(|path| !path.starts_with('@') && path::role(path) == Role::Value) {
            let writers = fields.entry(path).or_default();
            // It may remove and put.
            if writers.last().is_none_or(|last| last.hash != change.hash) {
                writers.push(change);
            }
        }
    }
    fields
}

/// Decides between presences that were written at once: the higher number; of one number, the removal.
pub(crate) fn decided_presence<'a>(all: impl Iterator<Item = automerge::Value<'a>>) -> Option<ScalarValue> {
    all.filter_map(|value| value.as_i64())
        .max_by_key(|number| (number.unsigned_abs(), *number < 0))
        .map(ScalarValue::Int)
}

/// An object's first change. All that is known of its document then, none being loaded.
pub(crate) struct FirstChange {
    change: Change,
    pub(crate) contents: Contents,
}

impl FirstChange {
    pub(crate) fn new(
        kind: Kind,
        leaves: Leaves,
        birth: Birth,
        author: &ChangeAuthor,
        operation: Operation,
        actor: ActorId,
    ) -> Result<Self, BadBytes> {
        let creator = Owner::new(operation, &author.manager);
        let raw = leaves::pack(kind, leaves);
        let facts = birth_facts(Some(&creator), &birth);
        let puts = facts
            .into_iter()
            .chain(raw.iter().map(|(path, value)| (path.clone(), value.clone())));
        let change = first_change(actor, puts, author.to_message()?, author.unix_seconds)?;
        let owners = Owners {
            creators: BTreeSet::from([creator]),
            ..Owners::default()
        };
        let leaves = leaves::unpack(raw.clone());
        Ok(Self {
            change,
            contents: Contents {
                raw,
                leaves,
                owners,
                birth,
            },
        })
    }

    pub(crate) fn hash(&self) -> ChangeHash {
        self.change.hash()
    }

    /// Returns the document: a change is one, too.
    pub(crate) fn save(&self) -> Vec<u8> {
        let plain = self.change.raw_bytes();
        if plain.len() <= MAX_PLAIN_BYTES {
            return plain.to_vec();
        }
        self.change.clone().bytes().into_owned()
    }

    pub(crate) fn written(&self) -> WrittenChange {
        WrittenChange {
            bytes: self.change.raw_bytes().to_vec(),
            is_spec: true,
            has_fields: true,
        }
    }
}

/// Returns what a document says of an object's creation.
pub(crate) fn birth_facts(creator: Option<&Owner>, birth: &Birth) -> Vec<(String, ScalarValue)> {
    let text = |text: String| ScalarValue::Str(text.into());
    let creator = creator.map(|creator| (CREATOR.to_owned(), text(creator.to_text())));
    let created = (CREATED.to_owned(), ScalarValue::Int(birth.unix_seconds));
    let namespace = birth
        .namespace
        .map(|namespace| (NAMESPACE.to_owned(), text(namespace.to_string())));
    creator.into_iter().chain([created]).chain(namespace).collect()
}

/// Makes the first change of a history from what it puts, each path once.
///
/// Not by a transaction of an empty document, which looks for the place of each put in each of its columns: of 44 puts that
/// took some 500 µs, and this takes 16.
pub(crate) fn first_change(
    actor: ActorId,
    puts: impl IntoIterator<Item = (String, ScalarValue)>,
    message: String,
    unix_seconds: i64,
) -> Result<Change, BadBytes> {
    let put = |(path, value): (String, ScalarValue)| {
        check_put(&path, &value)?;
        Ok(legacy::Op {
            action: legacy::OpType::Put(value),
            obj: legacy::ObjectId::Root,
            key: legacy::Key::Map(path.into()),
            pred: legacy::SortedVec::new(),
            insert: false,
        })
    };
    let change = ExpandedChange {
        operations: puts.into_iter().map(put).collect::<Result<_, BadBytes>>()?,
        actor_id: actor,
        hash: None,
        seq: 1,
        start_op: NonZeroU64::MIN,
        time: unix_seconds,
        message: Some(message),
        deps: Vec::new(),
        extra_bytes: Vec::new(),
        author: None,
    };
    let change = Change::from(change);
    check_size(change.raw_bytes())?;
    Ok(change)
}

/// What a document shall hold.
pub(crate) struct Desired {
    pub(crate) leaves: Leaves,
    pub(crate) owners: Owners,
    /// An apply says it.
    pub(crate) is_applied: bool,
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
    /// Changes that were new.
    pub(crate) fresh: u64,
}

/// Tells whether a change of these leaves counts in `metadata.generation`.
pub(crate) fn touches_spec<'a>(paths: impl IntoIterator<Item = &'a String>) -> bool {
    paths
        .into_iter()
        .any(|path| path.starts_with("spec/") || path == "spec" || path == path::IMMUTABLE)
}
