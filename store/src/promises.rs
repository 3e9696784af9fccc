//! What this node has promised about histories (`compaction.rs`): to agree to no base that holds less. On the disk before
//! it is said: two sides of a partition may squash one document, and a node that was on both, with a restart between,
//! is all that keeps their bases nested. What a node *proposes* is kept in memory alone: it ends with the proposer.
//!
//! | disk key | value |
//! |---|---|
//! | `p/` + object key | incarnation, epoch and the heads; gone with that history |

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use automerge::ChangeHash;
use schemas::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::compaction::{Asked, LONG, Past};
use crate::disk::Write;
use crate::epoch::Epoch;
use crate::incarnation::Incarnation;
use crate::index::Change;
use crate::record::Record;

pub(crate) const PROMISES: &str = "p/";

/// Which history a document has: its incarnation and its epoch.
pub(crate) type Lineage = (Incarnation, Epoch);

pub(crate) fn lineage(record: &Record) -> Lineage {
    (record.incarnation, record.epoch)
}

/// The heads up to which this node agreed to squash a history, or proposed to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Promise {
    lineage: Lineage,
    heads: Vec<[u8; 32]>,
}

impl Promise {
    pub(crate) fn new(lineage: Lineage, heads: &[ChangeHash]) -> Self {
        let heads = heads.iter().map(|head| head.0).collect();
        Self { lineage, heads }
    }

    /// Reads a record; None, if it is none.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        postcard::from_bytes(value).ok()
    }

    pub(crate) fn is_of(&self, record: &Record) -> bool {
        self.lineage == lineage(record)
    }

    fn is_within(&self, past: &Past) -> bool {
        self.heads.iter().all(|head| past.holds(&ChangeHash(*head)))
    }
}

fn disk_key(key: &ObjectKey) -> Vec<u8> {
    format!("{PROMISES}{key}").into_bytes()
}

/// What this node remembers of documents while their histories are as they are: never more than there are documents.
#[derive(Default)]
pub(crate) struct Promises(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    made: HashMap<ObjectKey, Promise>,
    /// Those that could not be squashed, with as many changes as they had then.
    unsquashable: HashMap<ObjectKey, (Lineage, u64)>,
}

impl Remembered {
    fn make(&mut self, key: &ObjectKey, promise: Promise, past: &Past) -> bool {
        let before = self.made.get(key);
        let is_free = before.is_none_or(|before| before.lineage != promise.lineage || before.is_within(past));
        if is_free {
            self.made.insert(key.clone(), promise);
        }
        is_free
    }
}

impl Promises {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what an earlier run promised.
    pub(crate) fn restore(&self, key: ObjectKey, promise: Promise) {
        self.remembered().made.insert(key, promise);
    }

    /// Promises to agree to nothing that holds less than these heads; false if more was promised.
    pub(crate) fn make(&self, key: &ObjectKey, lineage: Lineage, past: &Past) -> bool {
        self.remembered()
            .make(key, Promise::new(lineage, past.heads()), past)
    }

    /// Promises as [`make`](Self::make) does, one by one, and hands to `write` what has to be on the disk before any of
    /// them is said: in the order in which they are made. Returns which are made, and what `write` returned.
    pub(crate) fn give<'a, T>(
        &self,
        asked: impl Iterator<Item = &'a Asked>,
        write: impl FnOnce(Vec<Write>) -> T,
    ) -> (Vec<bool>, T) {
        let mut remembered = self.remembered();
        let mut writes = Vec::new();
        let mut make = |asked: &Asked| {
            let promise = Promise::new(asked.lineage, asked.past.heads());
            let Ok(value) = postcard::to_stdvec(&promise) else {
                return false;
            };
            let is_made = remembered.make(&asked.key, promise, &asked.past);
            writes.extend(is_made.then(|| Write::put(disk_key(&asked.key), value)));
            is_made
        };
        let made = asked.map(&mut make).collect();
        (made, write(writes))
    }

    /// Tells whether this is the last that was promised.
    pub(crate) fn stands(&self, key: &ObjectKey, promise: &Promise) -> bool {
        self.remembered().made.get(key) == Some(promise)
    }

    pub(crate) fn cannot_squash(&self, key: &ObjectKey, record: &Record) {
        let unsquashable = &mut self.remembered().unsquashable;
        unsquashable.insert(key.clone(), (lineage(record), record.changes));
    }

    /// Tells whether it is worth to try to squash a document: not again before it has changed as much as makes a history long.
    pub(crate) fn may_squash(&self, key: &ObjectKey, record: &Record) -> bool {
        let unsquashable = &self.remembered().unsquashable;
        let failed = unsquashable
            .get(key)
            .filter(|(failed, _)| *failed == lineage(record));
        failed.is_none_or(|(_, changes)| record.changes >= changes.saturating_add(LONG))
    }

    /// What to write with changes that end a history: nobody will ever ask for it again.
    pub(crate) fn ended_by<'a>(&self, changes: impl Iterator<Item = &'a Change>) -> Vec<Write> {
        let remembered = self.remembered();
        let is_ended = |change: &&Change| {
            let promise = change.key().and_then(|key| remembered.made.get(key));
            promise.is_some_and(
                |promise| !matches!(change, Change::Put { stored, .. } if promise.is_of(&stored.record)),
            )
        };
        let ended = changes.filter(is_ended).filter_map(Change::key);
        ended.map(|key| Write::remove(disk_key(key))).collect()
    }

    /// Forgets all of documents that are gone, or that have another history now.
    pub(crate) fn prune(&self, now: impl Fn(&ObjectKey) -> Option<Lineage>) {
        let mut remembered = self.remembered();
        remembered
            .made
            .retain(|key, promise| now(key) == Some(promise.lineage));
        remembered
            .unsquashable
            .retain(|key, (lineage, _)| now(key) == Some(*lineage));
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let remembered = self.remembered();
        remembered.made.len() + remembered.unsquashable.len()
    }
}
