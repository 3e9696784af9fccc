//! Compaction: long histories are squashed (`epoch.rs`) when those who have to agree do.
//!
//! A node proposes to squash some documents up to heads that it holds. A replica agrees if it holds all of that too, and
//! from then on to nothing that holds less. The proposer squashes what all present nodes agreed to, if they and it are a
//! majority of the admitted: so of any two bases one node agreed to both, one after the other, and the later holds all that
//! the earlier does. What was agreed to is on the disk (`promises.rs`). Who is present, and sending, is the caller's.
//! What was agreed to is kept on the disk: `promises.rs`.

use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::sync::Arc;

use automerge::{Change, ChangeHash};
use bytes::Bytes;
use schemas::ObjectKey;
use tokio::sync::Notify;

use crate::document::Document;
use crate::epoch::{Epoch, Squash, carry_over};
use crate::frame::{self, Agreement, Body, Heads, Item};
use crate::index::Change as Shown;
use crate::json;
use crate::leaves;
use crate::prepare::Prepared;
use crate::promises::{Lineage, Promise, lineage};
use crate::record::{Record, Standing};
use crate::store::{Store, finished};
use crate::types::CommitError;

/// Changes after which a history is squashed: it is read and written whole with each change, which takes as long for a
/// hundred small changes as for a large object.
pub(crate) const LONG: u64 = 128;
/// The last changes stay as they are: for `psctl history`, and so that a change on its way is rarely one to be carried over.
pub(crate) const KEPT: usize = 32;
/// A document with more bytes than this, and than [`HEAVY_OBJECTS`] times its object, has a long history too, however few
/// changes it has: of an object of 1 MiB that is replaced again and again, 128 changes would be 128 MiB.
pub(crate) const HEAVY_BYTES: usize = 1 << 20;
/// The base and the kept changes are at most three objects, so that it is not squashed with each write.
const HEAVY_OBJECTS: usize = 4;
/// Documents of one proposal.
pub(crate) const PROPOSED_MAX: usize = 64;
/// How far before the last [`KEPT`] changes a place is looked for that all later changes build on.
const CLEAN_CUT_SEARCH: usize = 64;

/// Tells whether a document has more bytes than a history should take, beside an object of so many bytes as JSON.
pub(crate) fn is_heavy(record: &Record, object_bytes: usize) -> bool {
    record.changes > 1 && record.document.len() > most_bytes(object_bytes)
}

fn most_bytes(object_bytes: usize) -> usize {
    HEAVY_BYTES.max(HEAVY_OBJECTS.saturating_mul(object_bytes))
}

/// The last changes that a squash leaves as they are: so many, and of so many bytes together.
#[derive(Clone, Copy, Debug)]
struct Kept {
    changes: usize,
    bytes: usize,
}

/// A part of a history: some changes and all before them.
pub(crate) struct Past {
    heads: Vec<ChangeHash>,
    holds: BTreeSet<ChangeHash>,
    /// All other changes build on all of it.
    is_clean: bool,
}

impl Past {
    pub(crate) fn heads(&self) -> &[ChangeHash] {
        &self.heads
    }

    pub(crate) fn holds(&self, hash: &ChangeHash) -> bool {
        self.holds.contains(hash)
    }

    /// Finds what lies up to `heads`; None if a history does not have all of them.
    fn of(history: &[Change], heads: Vec<ChangeHash>) -> Option<Self> {
        let causes: HashMap<ChangeHash, &[ChangeHash]> = history
            .iter()
            .map(|change| (change.hash(), change.deps()))
            .collect();
        let mut holds = BTreeSet::new();
        let mut left = heads.clone();
        while let Some(hash) = left.pop() {
            let causes = causes.get(&hash)?;
            if holds.insert(hash) {
                left.extend_from_slice(causes);
            }
        }
        let others = history.iter().filter(|change| !holds.contains(&change.hash()));
        let mut causes = others.map(Change::deps);
        // A change names the last one of its own actor beside what is newest, however old that is.
        let is_clean = heads.len() == 1
            && causes.all(|causes| {
                let mut causes = causes.iter();
                causes.any(|cause| heads.contains(cause) || !holds.contains(cause))
            });
        Some(Self {
            heads,
            holds,
            is_clean,
        })
    }

    /// Finds where to cut a history: before the changes that are kept, and where all later ones build on one.
    fn to_drop(history: &[Change], kept: Kept) -> Option<Self> {
        let mut bytes = 0;
        let fits = |change: &&Change| {
            bytes += change.raw_bytes().len();
            bytes <= kept.bytes
        };
        // Before this, more would be kept than fits.
        let shortest = history.len() - history.iter().rev().take_while(fits).count();
        let longest = history.len().saturating_sub(kept.changes).max(shortest);
        if longest < 2 {
            return None;
        }
        let first = longest.saturating_sub(CLEAN_CUT_SEARCH).max(shortest).max(2);
        let cut = |length: usize| {
            let part = &history[..length];
            let causes: BTreeSet<ChangeHash> = part.iter().flat_map(Change::deps).copied().collect();
            let hashes = part.iter().map(Change::hash);
            hashes.filter(|hash| !causes.contains(hash)).collect::<Vec<_>>()
        };
        let lone = (first..=longest).rev().map(cut).find(|heads| heads.len() == 1);
        let mut heads = lone.unwrap_or_else(|| cut(longest));
        heads.sort_unstable();
        Self::of(history, heads)
    }
}

/// What a peer would squash, of what this node holds.
pub(crate) struct Asked {
    pub(crate) key: ObjectKey,
    pub(crate) lineage: Lineage,
    pub(crate) past: Past,
}

/// Documents whose histories this node would squash.
pub struct Proposal {
    items: Vec<Proposed>,
    frame: Bytes,
}

struct Proposed {
    key: ObjectKey,
    heads: Heads,
    is_clean: bool,
}

impl Proposal {
    /// What to send to every present peer.
    pub fn frame(&self) -> Bytes {
        self.frame.clone()
    }

    /// Takes a peer's answer: what it does not agree to is left as it is. An answer that cannot be read agrees to nothing.
    pub fn answered(&mut self, answer: &[u8]) {
        let answers = match frame::decode(answer) {
            Ok((_, Body::Agree { answers })) if answers.len() == self.items.len() => answers,
            _ => vec![Agreement::No; self.items.len()],
        };
        for (item, answer) in self.items.iter_mut().zip(&answers) {
            item.is_clean &= *answer == Agreement::YesCleanly;
        }
        let mut agreed = answers.iter().map(|answer| *answer != Agreement::No);
        self.items.retain(|_| agreed.next().unwrap_or(false));
    }
}

impl Store {
    /// Is woken when a history has become long.
    pub fn long_histories(&self) -> Arc<Notify> {
        self.shared.long.clone()
    }

    /// Returns how many changes the longest history has.
    pub fn longest_history(&self) -> u64 {
        let index = self.shared.index();
        let records = index.held().filter_map(|(_, _, record)| record);
        records.map(|record| record.changes).max().unwrap_or_default()
    }

    /// Proposes to squash long histories; None if there are none.
    pub fn propose(&self) -> Option<Proposal> {
        self.propose_beyond(LONG, KEPT)
    }

    /// As [`Store::propose`], of histories with `long` changes or more and those that are heavy, but for the last `kept`.
    pub(crate) fn propose_beyond(&self, long: u64, kept: usize) -> Option<Proposal> {
        self.shared.prune_promises();
        let long: Vec<(ObjectKey, Arc<Record>)> = {
            let index = self.shared.index();
            let long = index.documents().filter(|(_, record, object_bytes)| {
                record.changes >= long || is_heavy(record, *object_bytes)
            });
            long.map(|(key, record, _)| (key.clone(), record.clone()))
                .collect()
        };
        // Those that cannot be proposed take nobody's place.
        let items: Vec<Proposed> = long
            .into_iter()
            .filter(|(key, record)| self.shared.promises.may_squash(key, record))
            .filter_map(|(key, record)| self.proposed(key, &record, kept))
            .take(PROPOSED_MAX)
            .collect();
        let wire = items.iter().map(|item| Item {
            key: item.key.to_string(),
            removed: None,
            live: Some(item.heads.clone()),
        });
        let body = Body::Propose {
            items: wire.collect(),
        };
        let frame = frame::encode(self.shared.index().header(), &body)
            .ok()
            .filter(|_| !items.is_empty())?;
        Some(Proposal { items, frame })
    }

    fn proposed(&self, key: ObjectKey, record: &Record, kept: usize) -> Option<Proposed> {
        let mut document = self.shared.load(&key, record)?;
        // From the document alone, so that all who hold it would propose the same.
        let object = leaves::materialise(&document.contents().leaves);
        let kept = Kept {
            changes: kept,
            bytes: most_bytes(json::len(&object)) / 2,
        };
        let past = Past::to_drop(&document.history(), kept)?;
        self.shared
            .promises
            .make(&key, lineage(record), &past)
            .then(|| Proposed {
                heads: Heads {
                    incarnation: record.incarnation,
                    epoch: record.epoch,
                    heads: past.heads.iter().map(|head| head.0).collect(),
                },
                is_clean: past.is_clean,
                key,
            })
    }

    /// Answers a proposal, one by one; what it agrees to is promised durably when this returns.
    ///
    /// # Errors
    /// The disk does not take it.
    pub(crate) async fn agree(&self, items: &[Item]) -> Result<Vec<Agreement>, CommitError> {
        self.shared.prune_promises();
        // More than anybody proposes is not looked at.
        let asked = items.iter().take(PROPOSED_MAX).map(|item| self.asked(item));
        let asked: Vec<Option<Asked>> = asked.collect();
        let permit = self.permit().await?;
        let (agreed, written) = self.shared.promises.give(asked.iter().flatten(), |writes| {
            let prepared = Prepared {
                writes,
                change: Shown::Promise,
                fresh: None,
                rescued: None,
            };
            Self::enqueue(permit, None, prepared, Vec::new())
        });
        finished(written).await?;
        let mut agreed = agreed.into_iter();
        let answer = |asked: Option<&Asked>| match asked {
            Some(asked) if agreed.next() == Some(true) => match asked.past.is_clean {
                true => Agreement::YesCleanly,
                false => Agreement::Yes,
            },
            Some(_) | None => Agreement::No,
        };
        let asked = asked.iter().map(Option::as_ref);
        let asked = asked.chain(iter::repeat(None)).take(items.len());
        Ok(asked.map(answer).collect())
    }

    /// Finds what a peer proposes to squash; None if this node does not hold all of it.
    fn asked(&self, item: &Item) -> Option<Asked> {
        let key: ObjectKey = item.key.parse().ok()?;
        let asked = item.live.as_ref()?;
        let record = self.shared.index().record(&key)?;
        let lineage = lineage(&record);
        if lineage != (asked.incarnation, asked.epoch) {
            return None;
        }
        let mut document = self.shared.load(&key, &record)?;
        let heads = asked.heads.iter().map(|head| ChangeHash(*head)).collect();
        let past = Past::of(&document.history(), heads)?;
        Some(Asked { key, lineage, past })
    }

    /// Squashes what all present nodes have agreed to. They and this one must be a majority of the admitted;
    /// `all_agreed`: they are all of them. Returns how many documents were squashed.
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn squash(&self, proposal: Proposal, all_agreed: bool) -> Result<usize, CommitError> {
        let mut squashed = 0;
        for item in proposal.items {
            let (permit, claim) = self.claim(&item.key).await?;
            if let Some(prepared) = self.shared.prepare_squash(&item, all_agreed) {
                let done = finished(Self::enqueue(permit, Some(claim), prepared, Vec::new())).await?;
                squashed += usize::from(done);
            }
        }
        Ok(squashed)
    }
}

impl crate::shared::Shared {
    fn prune_promises(&self) {
        let index = self.index();
        self.promises
            .prune(|key| index.record(key).map(|record| lineage(&record)));
    }

    /// Prepares a squash; None if it is overtaken, or not possible.
    fn prepare_squash(&self, item: &Proposed, all_agreed: bool) -> Option<Prepared> {
        let Proposed { key, heads, is_clean } = item;
        let record = self.index().record(key)?;
        let changes: Vec<ChangeHash> = heads.heads.iter().map(|head| ChangeHash(*head)).collect();
        let is_same = lineage(&record) == (heads.incarnation, heads.epoch);
        let promise = Promise::new(lineage(&record), &changes);
        if !is_same || !self.promises.stands(key, &promise) {
            return None;
        }
        let prepared = self.load(key, &record).map(|mut document| {
            let squash = Squash {
                kind: key.kind,
                epoch: record.epoch,
                heads: &changes,
                is_clean: *is_clean && all_agreed,
                is_everyones: all_agreed,
                node: &self.node,
            };
            self.squash(key, &record, &mut document, &squash)
        })?;
        let prepared = prepared.unwrap_or_else(|error| {
            tracing::error!(%key, %error, "a history cannot be squashed");
            None
        });
        if prepared.is_none() {
            self.promises.cannot_squash(key, &record);
        }
        prepared
    }

    fn squash(
        &self,
        key: &ObjectKey,
        record: &Record,
        document: &mut Document,
        squash: &Squash<'_>,
    ) -> Result<Option<Prepared>, crate::document::BadBytes> {
        let Some(base) = squash.base(document)? else {
            return Ok(None);
        };
        let dropped = base.base.as_ref().map_or(0, |base| base.dropped);
        let epoch = Epoch {
            dropped,
            base: base.hash.0,
        };
        let mut carried = carry_over(document, record.epoch, &base, self.actor(epoch))?;
        let contents = carried.document.contents();
        let standing = Standing {
            incarnation: record.incarnation,
            epoch,
            generation: carried.generation,
            changes: carried.changes,
            unsent: record.unsent,
        };
        let squashed = Record::of(&mut carried.document, &contents.birth, standing);
        tracing::debug!(%key, before = record.changes, now = squashed.changes, "history squashed");
        self.put(key, squashed, &contents, None)
            .map(Some)
            .map_err(|error| crate::document::BadBytes(error.to_string()))
    }
}
