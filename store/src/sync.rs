//! Sync between two stores: frames in, frames out; no socket, no clock, no state between frames.
//!
//! Of two epochs of a document the later replaces the earlier: who has the earlier gets the whole later one, carries over
//! what that does not hold (`epoch.rs`), and brings it back.
//!
//! An exchange: *digests* of all buckets → *summary* of the buckets that differ → *changes* that the other lacks and *wants* →
//! *answer*. Each frame is bounded; what does not fit is left for another exchange, which the beginner starts as long as
//! one brings something new. What a peer sends is checked change by change: a bad one is left out and the rest taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use automerge::ChangeHash;
use schemas::{Kind, ObjectKey};

use crate::changed::{LAST_APPLIED, redacted};
use crate::digest::{BUCKETS, BucketDigest, bucket_of};
use crate::disk::Write;
use crate::document::{BadBytes, Clash, Document};
use crate::epoch::carry_over;
use crate::frame::{
    self, Body, Changes, Delta, Going, Header, Heads, Item, MAX_FRAME_BYTES, Summary, WANTS_BYTES, Want, fit,
};
use crate::incarnation::{Incarnation, Seen, Tombstone};
use crate::incoming::{IncomingChange, Refused};
use crate::index::Change;
use crate::leaves;
use crate::path;
use crate::prepare::{Prepared, tombstone};
use crate::record::{Record, Standing, tombstone_key};
use crate::rescue::{Lost, UNSEEN};
use crate::settle::Theirs;
use crate::shared::Shared;
use crate::store::{Done, Store, finished};
use crate::types::{CommitError, Conflict, ConflictSide, Exchange, NodeId, Received, SyncError};

/// How many bytes of items are collected before one stops; the last may be as large as a frame.
const ITEMS_BYTES: usize = 2 << 20;
/// About what an item of a summary takes beside its key: a tombstone, an incarnation and one head.
const ITEM_BYTES: usize = 112;

/// What a replica has of a key.
#[derive(Default, Clone)]
pub(crate) struct Held {
    pub(crate) removed: Option<Tombstone>,
    pub(crate) record: Option<Arc<Record>>,
}

/// What came of a delta.
#[derive(Default)]
struct Taken {
    /// Where it is being stored.
    done: Option<Done>,
    /// It builds on changes that are not here.
    want: Option<Want>,
    /// The sender has an earlier epoch.
    is_behind: bool,
    /// What was here went to the epoch that came: the sender lacks it.
    is_carried: bool,
    refused: Refused,
}

/// What came of several deltas.
#[derive(Default)]
struct TakenAll {
    /// Something was new.
    progress: bool,
    /// Documents that lack the causes of what came.
    wants: Vec<Want>,
    /// Documents of which the sender has an earlier epoch.
    behind: Vec<ObjectKey>,
    is_carried: bool,
    /// Some was prepared before a register changed, and is not stored.
    is_overtaken: bool,
    /// Changes that nobody can take.
    refused: usize,
}

impl Store {
    pub(crate) async fn step(&self, peer: &NodeId, frame: &[u8]) -> Result<Received, SyncError> {
        let (theirs, body) = frame::decode(frame)?;
        self.meet(theirs).await?;
        let mut refused = 0;
        let next = self.answer_to(peer, theirs, body, &mut refused).await?;
        Ok(Received { next, refused })
    }

    async fn answer_to(
        &self,
        peer: &NodeId,
        theirs: Header,
        body: Body,
        refused: &mut usize,
    ) -> Result<Exchange, SyncError> {
        let header = self.shared.index().header();
        match body {
            // It needs to see what the peer holds, and not the other way round.
            Body::Digests { .. } if self.can_settle(theirs) => Ok(self.first_step()),
            Body::Digests { buckets, going } => self.summary(theirs, &buckets, going),
            Body::Summary(summary) => self.compare(peer, theirs, summary).await,
            Body::Changes { items, wants, more } => {
                let taken = self.take(peer, theirs, items).await?;
                *refused = taken.refused;
                let progress = taken.progress;
                if !taken.wants.is_empty() {
                    tracing::debug!(%peer, documents = taken.wants.len(), "changes without their causes");
                }
                let (items, left_out) = self.answer(&wants);
                let more = more || left_out || taken.is_carried;
                if items.is_empty() && !more {
                    return Ok(Exchange::Done);
                }
                self.note_sending(&items).await?;
                let answer = Body::Answer {
                    items,
                    more,
                    progress,
                };
                send(header, &answer)
            }
            Body::Answer {
                items,
                more,
                progress,
            } => {
                let taken = self.take(peer, theirs, items).await?;
                *refused = taken.refused;
                let more = more || self.can_settle(theirs);
                Ok(if taken.is_carried || more && (progress || taken.progress) {
                    self.first_step()
                } else {
                    Exchange::Done
                })
            }
            Body::Push { items } => {
                let taken = self.take(peer, theirs, items).await?;
                *refused = taken.refused;
                let TakenAll { wants, behind, .. } = taken;
                let whole = behind.iter().filter_map(|key| self.whole(key)).collect();
                let (items, more) = fit(whole);
                if wants.is_empty() && items.is_empty() {
                    return Ok(Exchange::Done);
                }
                self.note_sending(&items).await?;
                send(header, &Body::Changes { items, wants, more })
            }
            Body::Propose { items } => {
                let answers = self.agree(&items).await?;
                send(header, &Body::Agree { answers })
            }
            Body::Close { round, closed } => match self.agree_to_close(peer, round, closed) {
                Some(agreed) => send(header, &agreed),
                None => Ok(Exchange::Done),
            },
            // Goes to who proposed: `Proposal::answered`, `Closing::answered`.
            Body::Agree { .. } | Body::Agreed { .. } => Ok(Exchange::Done),
        }
    }

    /// Answers digests with what is held in the buckets that differ.
    fn summary(&self, header: Header, theirs: &[BucketDigest], going: Going) -> Result<Exchange, SyncError> {
        if theirs.len() != BUCKETS {
            return Err(SyncError::Malformed(format!(
                "{} buckets, not {BUCKETS}",
                theirs.len()
            )));
        }
        let index = self.shared.index();
        let ours = index.digests().buckets();
        let differing: Vec<u8> = (0..=u8::MAX)
            .filter(|at| ours[usize::from(*at)] != theirs[usize::from(*at)])
            .collect();
        let here = index.header();
        if differing.is_empty() && header.round >= here.round && header.floor >= here.floor {
            return Ok(Exchange::Done);
        }
        let mut by_bucket: BTreeMap<u8, Vec<Item>> =
            differing.iter().map(|bucket| (*bucket, Vec::new())).collect();
        for (key, removed, record) in index.held() {
            let bucket = bucket_of(key) as u8;
            if let Some(items) = by_bucket.get_mut(&bucket) {
                items.push(Item {
                    key: key.to_string(),
                    removed,
                    live: record.map(|record| Heads {
                        incarnation: record.incarnation,
                        epoch: record.epoch,
                        heads: record.heads.clone(),
                    }),
                });
            }
        }
        // Who catches up must not take for gone what cannot be read.
        for key in index.quarantine.keys() {
            let unreadable = Item {
                key: key.to_string(),
                removed: None,
                live: None,
            };
            let is_held = index.tombstone(key).is_some() || index.record(key).is_some();
            if let Some(items) = by_bucket.get_mut(&(bucket_of(key) as u8)).filter(|_| !is_held) {
                items.push(unreadable);
            }
        }
        let (mut buckets, mut items, mut bytes, mut more) = (Vec::new(), Vec::new(), 0, false);
        for (bucket, found) in by_bucket {
            bytes += found
                .iter()
                .map(|item| item.key.len() + ITEM_BYTES)
                .sum::<usize>();
            if bytes > MAX_FRAME_BYTES / 2 && !buckets.is_empty() {
                more = true;
                break;
            }
            buckets.push(bucket);
            items.extend(found);
        }
        let summary = Body::Summary(Summary {
            going,
            buckets,
            items,
            more,
        });
        send(index.header(), &summary)
    }

    /// Takes tombstones from a summary and says what each side lacks.
    async fn compare(
        &self,
        peer: &NodeId,
        their_header: Header,
        summary: Summary,
    ) -> Result<Exchange, SyncError> {
        let Summary {
            going,
            buckets,
            items,
            mut more,
        } = summary;
        let header = self.shared.index().header();
        let mut theirs: BTreeMap<ObjectKey, Theirs> = BTreeMap::new();
        let mut tombstones = Vec::new();
        for item in items {
            // A kind that this version does not know is kept by those who do.
            let Ok(key) = item.key.parse::<ObjectKey>() else {
                continue;
            };
            if item.removed.is_some() {
                tombstones.push(Delta {
                    key: item.key,
                    removed: item.removed,
                    live: None,
                });
            }
            theirs.insert(key, (item.removed, item.live));
        }
        let taken = self.take(peer, their_header, tombstones).await?;
        let mut progress = taken.progress;
        let buckets: BTreeSet<u8> = buckets.into_iter().collect();
        let settles = self.can_settle(their_header);
        if settles && going != self.shared.index().going() {
            // What was created after the digests were sent, and before no more was, may be in a bucket that is not among these.
            return Ok(self.first_step());
        }
        let mut ours = self.held_in(&buckets);
        if settles {
            let is_partial = more || taken.is_overtaken;
            progress |= self
                .settle(their_header, going, &ours, &theirs, is_partial)
                .await?;
            more |= self.can_settle(their_header);
            ours = self.held_in(&buckets);
        }
        let keys: BTreeSet<&ObjectKey> = ours.keys().chain(theirs.keys()).collect();
        let (mut deltas, mut wants, mut bytes, mut want_bytes) = (Vec::new(), Vec::new(), 0, 0);
        for key in keys {
            let mut mine = ours.get(key).cloned().unwrap_or_default();
            let (removed, live) = theirs.get(key).cloned().unwrap_or_default();
            let is_unreadable = theirs.contains_key(key) && removed.is_none() && live.is_none();
            let incarnation = live.as_ref().map(|live| live.incarnation);
            let (_, takes_live) = self
                .shared
                .index()
                .admitted(key, their_header.floor, None, incarnation);
            let live = live.filter(|_| takes_live);
            // Nor would the peer take it from us.
            mine.record.take_if(|record| {
                let is_old = record.incarnation.round < their_header.floor && key.kind != Kind::Member;
                let is_other = Some(record.incarnation) != incarnation;
                header.floor < their_header.floor && is_old && is_other && !is_unreadable
            });
            let (delta, want) = self.shared.difference(key, &mine, removed, live.as_ref());
            if (bytes > ITEMS_BYTES || want_bytes > WANTS_BYTES) && (delta.is_some() || want.is_some()) {
                more = true;
                break;
            }
            bytes += delta.as_ref().map_or(0, Delta::bytes);
            want_bytes += want.as_ref().map_or(0, |want| want.key.len() + ITEM_BYTES);
            deltas.extend(delta);
            wants.extend(want);
        }
        let (deltas, cut) = fit(deltas);
        more |= cut;
        if deltas.is_empty() && wants.is_empty() {
            return Ok(if more && progress {
                self.first_step()
            } else {
                Exchange::Done
            });
        }
        self.note_sending(&deltas).await?;
        let changes = Body::Changes {
            items: deltas,
            wants,
            more,
        };
        send(header, &changes)
    }

    /// Returns what is wanted, and whether another exchange has something to bring: what did not fit, or what the peer
    /// has and we lack.
    fn answer(&self, wants: &[Want]) -> (Vec<Delta>, bool) {
        let (mut deltas, mut more) = (Vec::new(), false);
        let mut bytes = 0;
        let mut seen = BTreeSet::new();
        for want in wants {
            let Ok(key) = want.key.parse::<ObjectKey>() else {
                continue;
            };
            if !seen.insert(key.clone()) {
                continue;
            }
            if bytes > ITEMS_BYTES {
                return (fit(deltas).0, true);
            }
            let (removed, record) = {
                let index = self.shared.index();
                (index.tombstone(&key), index.record(&key))
            };
            let mut changes = Vec::new();
            let is_earlier =
                |record: &&Arc<Record>| record.incarnation == want.incarnation && record.epoch < want.epoch;
            if record.as_ref().is_some_and(|record| is_earlier(&record)) {
                // Theirs comes with another exchange.
                more = true;
                continue;
            }
            if let Some(record) = &record {
                let is_same = record.incarnation == want.incarnation && record.epoch == want.epoch;
                let heads = if is_same { want.heads.as_slice() } else { &[] };
                let lacks;
                (changes, lacks) = self.shared.changes_after(&key, record, heads);
                more |= lacks;
            }
            let delta = Delta::new(&key, removed, record.as_deref(), changes);
            if delta.live.is_some() || delta.removed.is_some() {
                bytes += delta.bytes();
                deltas.push(delta);
            }
        }
        let (deltas, cut) = fit(deltas);
        (deltas, more || cut)
    }

    /// Returns what is held in some buckets.
    fn held_in(&self, buckets: &BTreeSet<u8>) -> BTreeMap<ObjectKey, Held> {
        let index = self.shared.index();
        let held = index
            .held()
            .filter(|(key, ..)| buckets.contains(&(bucket_of(key) as u8)));
        held.map(|(key, removed, record)| {
            let record = record.cloned();
            (key.clone(), Held { removed, record })
        })
        .collect()
    }

    /// Returns all that is held of a key.
    fn whole(&self, key: &ObjectKey) -> Option<Delta> {
        let (removed, record) = {
            let index = self.shared.index();
            (index.tombstone(key), index.record(key)?)
        };
        let (changes, _) = self.shared.changes_after(key, &record, &[]);
        Some(Delta::new(key, removed, Some(&record), changes))
    }

    /// Stores what is new and well formed in deltas, and waits until it is durable.
    async fn take(&self, peer: &NodeId, theirs: Header, deltas: Vec<Delta>) -> Result<TakenAll, SyncError> {
        let mut pending = Vec::new();
        let mut all = TakenAll::default();
        // One line a frame, however many there are.
        let mut told: Option<(String, BadBytes)> = None;
        for delta in deltas {
            let refused = match self.take_delta(theirs, &delta).await {
                Ok(taken) => {
                    pending.extend(taken.done);
                    all.wants.extend(taken.want);
                    all.is_carried |= taken.is_carried;
                    if taken.is_behind {
                        all.behind.extend(delta.key.parse());
                    }
                    taken.refused
                }
                Err(TakeError::Refused(refused)) => refused,
                // It may be ours that is bad.
                Err(TakeError::Bad(error)) => Refused {
                    count: 0,
                    first: Some(error),
                },
                Err(TakeError::Commit(error)) => return Err(error.into()),
            };
            all.refused += refused.count;
            told = told.or(refused.first.map(|error| (delta.key, error)));
        }
        if let Some((key, error)) = told {
            let (refused, key) = (all.refused, key.escape_debug());
            tracing::warn!(%peer, refused, %key, %error, "changes were refused");
        }
        all.progress = !pending.is_empty();
        for done in pending {
            all.is_overtaken |= !finished(done).await?;
        }
        Ok(all)
    }

    async fn take_delta(&self, theirs: Header, delta: &Delta) -> Result<Taken, TakeError> {
        // A kind that this version does not know is kept by those who do.
        let Ok(key) = delta.key.parse::<ObjectKey>() else {
            return Ok(Taken::default());
        };
        let (mut changes, mut refused) = (Vec::new(), Refused::default());
        for change in delta.live.iter().flat_map(|live| &live.changes) {
            match IncomingChange::parse(&change.0) {
                Ok(change) => changes.push(change),
                Err(error) => refused.add(error),
            }
        }
        // Nothing is left that it would be worth to load a document for.
        if changes.is_empty() && refused.count > 0 && delta.removed.is_none() {
            return Err(TakeError::Refused(refused));
        }
        let (permit, claim) = self.claim(&key).await?;
        let Delivery {
            prepared,
            conflicts,
            want,
            is_behind,
            is_carried,
        } = self.shared.prepare_delta(&key, theirs, delta, &changes)?;
        let done = prepared.map(|prepared| Self::enqueue(permit, Some(claim), prepared, conflicts));
        Ok(Taken {
            done,
            want,
            is_behind,
            is_carried,
            refused,
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("{} changes were refused", .0.count)]
    Refused(Refused),
    #[error(transparent)]
    Bad(#[from] BadBytes),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What is to be done about a delta.
#[derive(Default)]
struct Delivery {
    /// None if nothing in it is new, or a tombstone covers it.
    prepared: Option<Prepared>,
    conflicts: Vec<Conflict>,
    /// Some of it builds on changes that are not here.
    want: Option<Want>,
    is_behind: bool,
    is_carried: bool,
}

impl Shared {
    /// Compares what two replicas hold of a key: what the other lacks, and what is lacking here.
    fn difference(
        &self,
        key: &ObjectKey,
        mine: &Held,
        their_removed: Option<Tombstone>,
        their_live: Option<&Heads>,
    ) -> (Option<Delta>, Option<Want>) {
        let buried = mine.removed.max(their_removed).map(|buried| buried.incarnation);
        let is_alive = |incarnation: Incarnation| buried.is_none_or(|buried| incarnation > buried);
        let record = mine
            .record
            .as_deref()
            .filter(|record| is_alive(record.incarnation));
        let live = their_live.filter(|live| is_alive(live.incarnation));
        let want_of = |live: &Heads, heads: Vec<[u8; 32]>| Want {
            key: key.to_string(),
            incarnation: live.incarnation,
            epoch: live.epoch,
            heads,
        };
        let (changes, want) = match (record, live) {
            (None, None) => (Vec::new(), None),
            (Some(record), None) => (self.changes_after(key, record, &[]).0, None),
            (None, Some(live)) => (Vec::new(), Some(want_of(live, Vec::new()))),
            (Some(record), Some(live)) if record.incarnation > live.incarnation => {
                (self.changes_after(key, record, &[]).0, None)
            }
            (Some(record), Some(live)) if record.incarnation < live.incarnation => {
                (Vec::new(), Some(want_of(live, Vec::new())))
            }
            (Some(record), Some(live)) if record.epoch > live.epoch => {
                (self.changes_after(key, record, &[]).0, None)
            }
            (Some(record), Some(live)) if record.epoch < live.epoch => {
                (Vec::new(), Some(want_of(live, Vec::new())))
            }
            (Some(record), Some(live)) if record.heads == live.heads => (Vec::new(), None),
            (Some(record), Some(live)) => match self.load(key, record) {
                Some(mut document) => {
                    let heads = live.heads.iter().map(|head| ChangeHash(*head));
                    let (known, unknown): (Vec<_>, Vec<_>) = heads.partition(|head| document.has(head));
                    // Without any head that is known here, the peer would seem to lack the whole history. Mostly it lacks
                    // nothing; if it does, it says so with its answer.
                    let changes = match known.as_slice() {
                        [] => Vec::new(),
                        known => document.changes_after(known),
                    };
                    let want = (!unknown.is_empty()).then(|| want_of(live, record.heads.clone()));
                    (changes, want)
                }
                None => (Vec::new(), None),
            },
        };
        let newer_tombstone = mine.removed > their_removed;
        let delta =
            (newer_tombstone || !changes.is_empty()).then(|| Delta::new(key, mine.removed, record, changes));
        (delta, want)
    }

    pub(crate) fn load(&self, key: &ObjectKey, record: &Record) -> Option<Document> {
        let loaded = record.load(self.actor(record.epoch));
        loaded
            .map_err(|error| tracing::error!(%key, %error, "a document cannot be loaded"))
            .ok()
    }

    /// Returns the changes that a document with `heads` lacks, and whether ours lacks some of those.
    fn changes_after(&self, key: &ObjectKey, record: &Record, heads: &[[u8; 32]]) -> (Vec<Vec<u8>>, bool) {
        if record.heads == heads {
            return (Vec::new(), false);
        }
        let Some(mut document) = self.load(key, record) else {
            return (Vec::new(), false);
        };
        let heads: Vec<ChangeHash> = heads.iter().map(|head| ChangeHash(*head)).collect();
        let lacks = heads.iter().any(|head| !document.has(head));
        (document.changes_after(&heads), lacks)
    }

    /// Decides what to store of a delta.
    fn prepare_delta(
        &self,
        key: &ObjectKey,
        theirs: Header,
        delta: &Delta,
        changes: &[IncomingChange],
    ) -> Result<Delivery, TakeError> {
        let incarnation = delta.live.as_ref().map(|live| live.incarnation);
        let (known_removed, held, (their_removed, takes_live)) = {
            let index = self.index();
            let admitted = index.admitted(key, theirs.floor, delta.removed, incarnation);
            (index.tombstone(key), index.record(key), admitted)
        };
        let mut removed = known_removed.max(their_removed);
        let buried = removed.map(|removed| removed.incarnation);
        let live = delta
            .live
            .as_ref()
            .filter(|live| takes_live && Some(live.incarnation) > buried);
        let record = held.clone().filter(|record| Some(record.incarnation) > buried);
        // A newer incarnation says that the older was removed.
        let replaced = match (&record, live) {
            (Some(record), Some(live)) if record.incarnation < live.incarnation => {
                // Or, if its round is later, that it was not known there: what is in a namespace that was made twice stays.
                let is_removed =
                    key.kind != Kind::Namespace || record.incarnation.round == live.incarnation.round;
                let round = self.index().round();
                let laid = Tombstone::new(record.incarnation, round, Seen::default());
                Some((record.incarnation, Some(laid).filter(|_| is_removed)))
            }
            _ => None,
        };
        let base = record.filter(|_| replaced.is_none());
        let mut delivery = match live {
            Some(live) => self.merge(key, base.as_deref(), live, changes)?,
            None => Delivery::default(),
        };
        let mut gone = buried;
        let burial = match &mut delivery.prepared {
            Some(Prepared {
                writes,
                change: Change::Put { removed: below, .. },
                ..
            }) => {
                if let Some((incarnation, laid)) = replaced {
                    gone = Some(incarnation);
                    removed = removed.max(laid);
                }
                *below = removed;
                Some(writes)
            }
            Some(_) | None => None,
        };
        if let Some(removed) = removed.filter(|_| removed > known_removed) {
            match burial {
                Some(writes) => writes.push(Write::put(tombstone_key(key), tombstone(removed))),
                None => delivery.prepared = Some(self.burial(key, removed, false)),
            }
        }
        if let (Some(prepared), Some(held)) = (&mut delivery.prepared, held)
            && Some(held.incarnation) <= gone
        {
            // Who removed a later one may have seen nothing of this.
            let of_it = delta
                .removed
                .filter(|removed| removed.incarnation == held.incarnation);
            let seen = of_it.map_or(UNSEEN, |removed| removed.seen);
            // One of a later round says nothing of it: who began that name anew did not know of this.
            let is_deleted = delta.removed.is_some_and(|removed| {
                removed.incarnation >= held.incarnation && removed.incarnation.round == held.incarnation.round
            });
            let why = if is_deleted { Lost::Deleted } else { Lost::Replaced };
            self.rescue(prepared, key, &held, why, seen)?;
        }
        Ok(delivery)
    }

    /// Merges changes into a document (None: a new one).
    fn merge(
        &self,
        key: &ObjectKey,
        base: Option<&Record>,
        live: &Changes,
        changes: &[IncomingChange],
    ) -> Result<Delivery, TakeError> {
        // An older incarnation than ours.
        if base.is_some_and(|base| base.incarnation != live.incarnation) {
            return Ok(Delivery::default());
        }
        if base.is_some_and(|base| base.epoch > live.epoch) {
            return Ok(Delivery {
                is_behind: true,
                ..Delivery::default()
            });
        }
        let is_base = |change: &IncomingChange| {
            let base = change.base.as_ref();
            base.is_some_and(|base| base.dropped == live.epoch.dropped && change.hash.0 == live.epoch.base)
        };
        // Nothing but its own base can be one in a document.
        let fitting: Vec<&IncomingChange> = changes
            .iter()
            .filter(|change| change.base.is_none() || is_base(change))
            .collect();
        let actor = self.actor(live.epoch);
        let (mut is_carried, mut is_doubtful) = (false, false);
        let (mut document, mut standing) = match base {
            Some(base) if base.epoch == live.epoch => (base.load(actor)?, base.standing()),
            Some(base) => {
                let Some(squashed) = fitting.iter().find(|change| is_base(change)) else {
                    return Ok(Delivery {
                        want: Some(Want {
                            key: key.to_string(),
                            incarnation: live.incarnation,
                            epoch: live.epoch,
                            heads: Vec::new(),
                        }),
                        ..Delivery::default()
                    });
                };
                let mut old = base.load(self.actor(base.epoch))?;
                let carried = carry_over(&mut old, base.epoch, squashed, actor)?;
                is_carried = carried.any;
                is_doubtful = carried.is_doubtful;
                let standing = Standing {
                    incarnation: live.incarnation,
                    epoch: live.epoch,
                    generation: carried.generation,
                    changes: carried.changes,
                    unsent: base.unsent,
                };
                (carried.document, standing)
            }
            None => {
                let standing = Standing {
                    incarnation: live.incarnation,
                    epoch: live.epoch,
                    generation: 0,
                    changes: 0,
                    unsent: 0,
                };
                (Document::new(actor), standing)
            }
        };
        let is_replaced = base.is_some_and(|base| base.epoch != live.epoch);
        let merged = document.merge(&fitting).map_err(|error| {
            TakeError::Refused(Refused {
                count: fitting.len(),
                first: Some(error),
            })
        })?;
        let want = merged.missing.then(|| Want {
            key: key.to_string(),
            incarnation: live.incarnation,
            epoch: live.epoch,
            heads: match base {
                Some(base) if !is_replaced => base.heads.clone(),
                Some(_) | None => Vec::new(),
            },
        });
        if merged.fresh == 0 && !is_replaced {
            return Ok(Delivery {
                want,
                ..Delivery::default()
            });
        }
        let contents = document.contents();
        standing.unsent = 0;
        // A disk can say any numbers.
        standing.generation = standing.generation.saturating_add(merged.spec_changes);
        standing.changes = standing.changes.saturating_add(merged.fresh);
        let record = Record::of(&mut document, &contents.birth, standing);
        let mut prepared = self
            .put(key, record, &contents, None)
            .map_err(|error| BadBytes(error.to_string()))?;
        if let Some(base) = base.filter(|_| is_doubtful) {
            tracing::warn!(%key, "a copy of this object that was away for too long gives way to that of the others");
            self.rescue(&mut prepared, key, base, Lost::SquashedAway, UNSEEN)?;
        }
        let conflicts = merged
            .clashes
            .into_iter()
            .filter_map(|clash| self.conflict(key, clash));
        Ok(Delivery {
            prepared: Some(prepared),
            conflicts: conflicts.collect(),
            want,
            is_behind: false,
            is_carried,
        })
    }

    /// Makes of a clash what users are told: by the node of the loser, unless a controller wrote one of the values.
    fn conflict(&self, key: &ObjectKey, clash: Clash) -> Option<Conflict> {
        let is_told = clash.loser.1.node == self.node
            && !clash.loser.1.is_controller()
            && !clash.winner.1.is_controller()
            && !clash.path.ends_with(LAST_APPLIED);
        let side = |(value, author): (automerge::ScalarValue, crate::document::ChangeAuthor)| {
            let json = leaves::to_json(&value).to_string();
            let value = if key.kind.row().confidential {
                redacted(&json)
            } else {
                json
            };
            ConflictSide {
                value,
                node: author.node,
                user: author.user,
                manager: author.manager,
            }
        };
        is_told.then(|| Conflict {
            key: key.clone(),
            path: path::display(&clash.path),
            winner: side(clash.winner),
            loser: side(clash.loser),
        })
    }
}

pub(crate) fn send(header: Header, body: &Body) -> Result<Exchange, SyncError> {
    frame::encode(header, body).map(Exchange::Send)
}
