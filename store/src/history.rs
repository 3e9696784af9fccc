//! The changes of one object as its document tells them: who made them, in which order, and what each changed.
//!
//! Reads alone, and by change: what an old value was is asked of the document at the causes of the change that replaced
//! it. Changes are put in an order that depends on the changes alone, so that every node shows the same. How a
//! difference is put in words is in `changed.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use automerge::legacy::{Key, ObjectId, OpType};
use automerge::{Automerge, ChangeHash, ROOT, ReadDoc, ScalarValue};
use schemas::{Kind, Object, ObjectKey};

use crate::changed::changed_fields;
use crate::document::{ChangeAuthor, Document, decided_presence};
use crate::epoch::lasting_id;
use crate::leaves::{self, Leaves};
use crate::path::{self, Role};
use crate::prepare::stripped;
use crate::record::{Record, show};
use crate::store::Store;
use crate::types::{ChangedFields, Difference, History, HistoryChange, HistoryError, NodeId};

/// The most changes in one answer: some minutes of reading, and under a second of work.
pub(crate) const MAX_CHANGES: usize = 1000;
/// The most leaves that are looked at for one answer; then the older changes are left out. Objects have some tens, so
/// this is far above [`MAX_CHANGES`] of them, and a second of work.
const MAX_LEAVES: usize = 200_000;
/// The shortest id. As many digits as are needed to tell two apart are shown.
const MIN_ID_DIGITS: usize = 8;

impl Store {
    /// Returns the newest changes of an object, at most `limit` and 1,000. Takes milliseconds for some hundred changes:
    /// not for a thread that others wait for.
    ///
    /// # Errors
    /// It is not there (its history goes with it), was never written, or its document cannot be read.
    pub fn history(&self, key: &ObjectKey, limit: usize) -> Result<History, HistoryError> {
        let (mut document, _) = self.document(key)?;
        Ok(Log::read(document.automerge.document()).newest(key.kind, limit))
    }

    /// Compares an object at two changes: at each as its writer saw it, with what that change did. `to`: None for
    /// the object as it is; `from`: None for what `to` was made of.
    ///
    /// # Errors
    /// As [`Store::history`]; there is no such change.
    pub fn difference(
        &self,
        key: &ObjectKey,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<Difference, HistoryError> {
        let (mut document, _) = self.document(key)?;
        let log = Log::read(document.automerge.document());
        let to_heads = match to {
            Some(id) => vec![log.find(key, id)?.hash],
            None => log.heads(log.entries.len()),
        };
        let from_heads = match (from, to) {
            (Some(id), _) => vec![log.find(key, id)?.hash],
            (None, Some(id)) => log.find(key, id)?.causes.clone(),
            (None, None) => log.heads(log.entries.len().saturating_sub(1)),
        };
        let ids = |heads: &[ChangeHash]| log.ids(heads);
        let (from, to) = (ids(&from_heads), ids(&to_heads));
        let mut leaves_at = |heads: &[ChangeHash]| leaves_at(key, &mut document, heads);
        let (old, new) = (leaves_at(&from_heads)?, leaves_at(&to_heads)?);
        Ok(Difference {
            from,
            to,
            changed: changed_fields(key.kind, &old, &new),
        })
    }

    /// Returns the document of an object as the writer of a change saw it, with what that change did, or as it is;
    /// without projection. Name, uid and what else the store itself says is of now.
    ///
    /// # Errors
    /// As [`Store::difference`].
    pub fn object_at(&self, key: &ObjectKey, change: Option<&str>) -> Result<Object, HistoryError> {
        let (mut document, record) = self.document(key)?;
        let leaves = match change {
            Some(id) => {
                let heads = [Log::read(document.automerge.document()).find(key, id)?.hash];
                leaves_at(key, &mut document, &heads)?
            }
            None => document.contents().leaves,
        };
        let uid = self.shared.uids.uid(key, record.incarnation);
        Ok(show(key, uid, &record, leaves::materialise(&leaves)))
    }

    fn document(&self, key: &ObjectKey) -> Result<(Document, Arc<Record>), HistoryError> {
        let (record, is_shown) = {
            let index = self.shared.index();
            (index.record(key), index.get(key).is_some())
        };
        let Some(record) = record else {
            return Err(if is_shown {
                HistoryError::Computed(key.clone())
            } else {
                HistoryError::NotFound(key.clone())
            });
        };
        let document = record
            .load(self.shared.actor(record.epoch))
            .map_err(|error| unreadable(key, error))?;
        Ok((document, record))
    }
}

/// Compares two objects of one kind, both without projection, in the words of a history.
pub fn compare(kind: Kind, before: &Object, after: &Object) -> ChangedFields {
    let old = leaves::flatten(kind, &stripped(before), &Leaves::new());
    let new = leaves::flatten(kind, &stripped(after), &old);
    changed_fields(kind, &old, &new)
}

fn unreadable(key: &ObjectKey, error: impl std::fmt::Display) -> HistoryError {
    HistoryError::Unreadable {
        key: key.clone(),
        reason: error.to_string(),
    }
}

fn leaves_at(key: &ObjectKey, document: &mut Document, heads: &[ChangeHash]) -> Result<Leaves, HistoryError> {
    let past = document.at(heads).map_err(|error| unreadable(key, error))?;
    Ok(past.contents().leaves)
}

/// One change, without what it changed.
struct Entry {
    hash: ChangeHash,
    /// In hex; stays when the change is carried over to another epoch, unlike its hash.
    id: String,
    causes: Vec<ChangeHash>,
    unix_seconds: i64,
    author: Option<ChangeAuthor>,
}

/// All changes of a document, in order.
struct Log<'a> {
    automerge: &'a Automerge,
    entries: Vec<Entry>,
    id_digits: usize,
}

impl<'a> Log<'a> {
    fn read(automerge: &'a Automerge) -> Self {
        let changes = automerge.get_changes_meta(&[]);
        let entries = changes.into_iter().map(|change| Entry {
            hash: change.hash,
            id: lasting_id(&change.actor, change.seq),
            unix_seconds: change.timestamp,
            author: change
                .message
                .as_deref()
                .and_then(|message| serde_json::from_str(message).ok()),
            causes: change.deps,
        });
        let entries = in_order(entries.collect());
        let id_digits = id_digits(entries.iter().map(|entry| entry.id.as_str()));
        Self {
            automerge,
            entries,
            id_digits,
        }
    }

    fn id(&self, entry: &Entry) -> String {
        entry.id.chars().take(self.id_digits).collect()
    }

    fn ids(&self, hashes: &[ChangeHash]) -> Vec<String> {
        let named = self.entries.iter().filter(|entry| hashes.contains(&entry.hash));
        named.map(|entry| self.id(entry)).collect()
    }

    /// Finds a change by the beginning of its id.
    fn find(&self, key: &ObjectKey, change: &str) -> Result<&Entry, HistoryError> {
        let wanted = change.to_ascii_lowercase();
        let mut found = self
            .entries
            .iter()
            .filter(|entry| !wanted.is_empty() && entry.id.starts_with(&wanted));
        match (found.next(), found.count()) {
            (Some(entry), 0) => Ok(entry),
            (Some(_), others) => Err(HistoryError::Ambiguous {
                key: key.clone(),
                change: change.to_owned(),
                count: others + 1,
            }),
            (None, _) => Err(HistoryError::UnknownChange {
                key: key.clone(),
                change: change.to_owned(),
            }),
        }
    }

    /// Returns the heads of the first changes, so many of them.
    fn heads(&self, count: usize) -> Vec<ChangeHash> {
        let first = &self.entries[..count];
        let causes: HashSet<&ChangeHash> = first.iter().flat_map(|entry| &entry.causes).collect();
        let heads = first.iter().map(|entry| entry.hash);
        heads.filter(|hash| !causes.contains(hash)).collect()
    }

    fn newest(&self, kind: Kind, limit: usize) -> History {
        let mut room = MAX_LEAVES;
        let mut changes = Vec::new();
        for entry in self.entries.iter().rev().take(limit.min(MAX_CHANGES)) {
            let compacted = entry.author.as_ref().and_then(|author| author.dropped);
            let changed = match compacted {
                Some(_) => ChangedFields::default(),
                None => {
                    let step = Step::read(self.automerge, entry);
                    if step.edits.len() > room && !changes.is_empty() {
                        break;
                    }
                    room = room.saturating_sub(step.edits.len());
                    step.changed(kind)
                }
            };
            let author = entry.author.clone();
            let (manager, user, node, via) = author.map_or_else(
                || (String::new(), String::new(), NodeId(String::new()), None),
                |author| (author.manager, author.user, author.node, author.via),
            );
            changes.push(HistoryChange {
                id: self.id(entry),
                unix_seconds: entry.unix_seconds,
                node,
                user,
                manager,
                via,
                changed,
                compacted,
            });
        }
        changes.reverse();
        History {
            omitted: self.entries.len() - changes.len(),
            changes,
        }
    }
}

/// Puts causes before effects, and what has no such order by time and id.
fn in_order(entries: Vec<Entry>) -> Vec<Entry> {
    let mut effects: HashMap<ChangeHash, Vec<usize>> = HashMap::new();
    let mut waits_for: Vec<usize> = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        waits_for.push(entry.causes.len());
        for cause in &entry.causes {
            effects.entry(*cause).or_default().push(at);
        }
    }
    let rank = |at: usize| Reverse((entries[at].unix_seconds, &entries[at].id, at));
    let ready = (0..entries.len()).filter(|at| waits_for[*at] == 0);
    let mut ready: BinaryHeap<_> = ready.map(rank).collect();
    let mut order = Vec::with_capacity(entries.len());
    while let Some(Reverse((_, _, at))) = ready.pop() {
        order.push(at);
        for effect in effects.remove(&entries[at].hash).unwrap_or_default() {
            waits_for[effect] -= 1;
            if waits_for[effect] == 0 {
                ready.push(rank(effect));
            }
        }
    }
    let mut entries: Vec<Option<Entry>> = entries.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| entries[at].take()).collect()
}

/// Returns how many digits tell all ids apart.
fn id_digits<'a>(ids: impl Iterator<Item = &'a str>) -> usize {
    let mut texts: Vec<&str> = ids.collect();
    texts.sort_unstable();
    let shared = texts.windows(2).map(|pair| {
        let digits = pair[0].bytes().zip(pair[1].bytes());
        digits.take_while(|(left, right)| left == right).count()
    });
    shared
        .max()
        .map_or(MIN_ID_DIGITS, |most| MIN_ID_DIGITS.max(most + 1))
}

/// What one change did to leaves.
struct Step<'a> {
    automerge: &'a Automerge,
    causes: &'a [ChangeHash],
    /// None: deleted.
    edits: BTreeMap<String, Option<ScalarValue>>,
}

impl<'a> Step<'a> {
    fn read(automerge: &'a Automerge, entry: &'a Entry) -> Self {
        let mut edits = BTreeMap::new();
        if let Some(change) = automerge.get_change_by_hash(&entry.hash) {
            for operation in change.decode().operations {
                let (ObjectId::Root, Key::Map(path)) = (operation.obj, operation.key) else {
                    continue;
                };
                if path.starts_with('@') {
                    continue;
                }
                let value = match operation.action {
                    OpType::Put(value) => Some(value),
                    OpType::Delete => None,
                    OpType::Make(_) | OpType::Increment(_) | OpType::MarkBegin(..) | OpType::MarkEnd(_) => {
                        continue;
                    }
                };
                edits.insert(path.to_string(), value);
            }
        }
        Self {
            automerge,
            causes: &entry.causes,
            edits,
        }
    }

    /// Returns a leaf as the writer of the change found it.
    fn before(&self, path: &str) -> Option<ScalarValue> {
        if self.causes.is_empty() {
            return None;
        }
        let all = self.automerge.get_all_at(&ROOT, path, self.causes).ok()?;
        match path::role(path) {
            Role::Presence => decided_presence(all.into_iter().map(|(value, _)| value)),
            Role::Order | Role::Value => all.into_iter().next_back()?.0.into_scalar().ok(),
        }
    }

    fn changed(self, kind: Kind) -> ChangedFields {
        let (mut old, mut new) = (Leaves::new(), Leaves::new());
        // Elements that edits lead through, which say whether those are seen at all.
        let mut through: BTreeSet<&str> = BTreeSet::new();
        for (path, value) in &self.edits {
            old.extend(self.before(path).map(|value| (path.clone(), value)));
            new.extend(value.clone().map(|value| (path.clone(), value)));
            for (end, _) in path.match_indices('/') {
                let start = path[..end].rfind('/').map_or(0, |slash| slash + 1);
                if path[start..].starts_with(['[', '<'])
                    && let Some((presence, _)) = path[..end].rsplit_once('@')
                    && !self.edits.contains_key(presence)
                {
                    through.insert(presence);
                }
            }
        }
        let mut add = |path: &str| {
            let value = self.before(path)?;
            old.insert(path.to_owned(), value.clone());
            new.insert(path.to_owned(), value);
            Some(())
        };
        let mut found = through.into_iter().map(|presence| add(presence).is_some());
        // One that is not there by itself may be among what cannot change.
        if !found.all(|found| found) && !self.edits.contains_key(path::IMMUTABLE) {
            add(path::IMMUTABLE);
        }
        changed_fields(kind, &leaves::unpack(old), &leaves::unpack(new))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::object;

    #[test]
    fn ids_are_as_long_as_they_must_be() {
        let check = |ids: &[&str], expected: usize| assert_eq!(id_digits(ids.iter().copied()), expected);
        check(&[], 8);
        check(&["0000000000"], 8);
        check(&["0000000000", "9000000000"], 8);
        check(&["0000000001", "9000000000", "0000000000"], 10);
    }

    #[test]
    fn two_objects_are_compared_by_what_was_written() {
        let before = object(json!({"metadata": {"uid": "1", "resourceVersion": "5"}, "spec": {"a": 1}}));
        let after = object(json!({"metadata": {"uid": "2"}, "spec": {"a": 2}}));
        let changed = compare(Kind::Deployment, &before, &after);
        let paths: Vec<&str> = changed.fields.iter().map(|field| field.path.as_str()).collect();
        assert_eq!(paths, ["spec.a"]);
    }
}
