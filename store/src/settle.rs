//! What comes from a node that was away while tombstones were dropped, and what such a node does: see `rounds.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::{Kind, ObjectKey};

use crate::disk::Write;
use crate::document::BadBytes;
use crate::frame::{Body, Delta, Going, Header, Heads};
use crate::incarnation::{Incarnation, Tombstone};
use crate::index::{Change, Index};
use crate::prepare::Prepared;
use crate::record::{Record, document_key, tombstone_key};
use crate::rescue::{Lost, UNSEEN};
use crate::rounds::Registration;
use crate::shared::Shared;
use crate::store::{Done, Store, finished};
use crate::sync::{Held, send};
use crate::types::{CommitError, Exchange, SyncError};

/// What a peer has of a key: neither, if it cannot read what it had.
pub(crate) type Theirs = (Option<Tombstone>, Option<Heads>);

impl Index {
    /// Returns what may be taken of a key from a frame with a floor: its tombstone, and whether its document. Of what was
    /// dropped here, the sender may not know that it is gone.
    pub(crate) fn admitted(
        &self,
        key: &ObjectKey,
        floor: u16,
        removed: Option<Tombstone>,
        live: Option<Incarnation>,
    ) -> (Option<Tombstone>, bool) {
        let bar = self.bar();
        if floor >= bar || key.kind == Kind::Member {
            return (removed, true);
        }
        let held = self.record(key).map(|record| record.incarnation);
        let removed = removed.and_then(|removed| {
            let covers = held.is_some_and(|held| held <= removed.incarnation);
            match (removed.laid >= bar, covers) {
                (true, _) => Some(removed),
                // As if laid now: the round that it was laid in is closed, and those who closed it did not know it.
                (false, true) => Some(Tombstone::new(removed.incarnation, self.round(), removed.seen)),
                // It was dropped, or is of what never was here.
                (false, false) => None,
            }
        });
        let takes_live =
            live.is_none_or(|live| live.round >= bar || held == Some(live) || self.quarantine.holds(key));
        (removed, takes_live)
    }
}

impl Store {
    /// Takes in where a peer stands; what it is sent next says that this node knows.
    pub(crate) async fn meet(&self, theirs: Header) -> Result<(), SyncError> {
        let (is_news, is_first) = {
            let index = self.shared.index();
            let is_news = theirs.round > index.round() || theirs.floor > index.bar();
            (is_news, index.is_unheard())
        };
        if is_news {
            self.register(Registration::Meet(theirs)).await?;
        }
        if is_first {
            // Not before: what is created until this node takes no writes any more would be taken away again.
            self.shared.index_mut().heard();
        }
        Ok(())
    }

    /// Returns the first frame of an exchange.
    pub(crate) fn first_step(&self) -> Exchange {
        let index = self.shared.index();
        let digests = Body::Digests {
            buckets: index.digests().buckets().to_vec(),
            going: index.going(),
        };
        send(index.header(), &digests).unwrap_or(Exchange::Done)
    }

    /// Tells whether this node has to catch up, and a peer that stands there can tell all that it needs.
    pub(crate) fn can_settle(&self, theirs: Header) -> bool {
        let target = self.shared.index().target();
        target.is_some_and(|target| theirs.floor >= target.floor)
    }

    /// Remembers, before documents are sent, that they are not sure to be unsent any more.
    pub(crate) async fn note_sending(&self, items: &[Delta]) -> Result<(), SyncError> {
        let contact = {
            let index = self.shared.index();
            let is_unsent = |item: &&Delta| {
                let record = item.key.parse().ok().and_then(|key| index.record(&key));
                item.live.is_some() && record.is_some_and(|record| index.is_unsent(&record))
            };
            items.iter().find(is_unsent).map(|_| index.contact())
        };
        if let Some(contact) = contact {
            self.register(Registration::Send(contact)).await?;
        }
        Ok(())
    }

    /// Compares what is held with what a peer holds that has a higher floor, of some buckets. `is_partial`: there may be more
    /// that differs; `going`: when this store was compared. Returns whether anything was done.
    pub(crate) async fn settle(
        &self,
        theirs: Header,
        going: Going,
        ours: &BTreeMap<ObjectKey, Held>,
        items: &BTreeMap<ObjectKey, Theirs>,
        is_partial: bool,
    ) -> Result<bool, SyncError> {
        let mut settlement = Settlement {
            store: self,
            going,
            pending: Vec::new(),
            is_complete: !is_partial,
            unsent: Vec::new(),
        };
        let keys: BTreeSet<&ObjectKey> = ours.keys().chain(items.keys()).collect();
        for key in keys.into_iter().filter(|key| key.kind != Kind::Member) {
            let mine = ours.get(key).cloned().unwrap_or_default();
            settlement.compare(theirs, key, mine, items.get(key)).await?;
        }
        settlement.end(theirs).await
    }
}

/// One comparison with a peer.
struct Settlement<'a> {
    store: &'a Store,
    going: Going,
    /// What is being written.
    pending: Vec<Done>,
    /// Nothing is lacking here of what the peer has of the rounds that it closed.
    is_complete: bool,
    /// What the peer does not know, and nobody can have removed.
    unsent: Vec<(ObjectKey, Arc<Record>)>,
}

impl Settlement<'_> {
    async fn compare(
        &mut self,
        theirs: Header,
        key: &ObjectKey,
        mine: Held,
        item: Option<&Theirs>,
    ) -> Result<(), CommitError> {
        let (their_removed, live) = match item {
            // It cannot read what it had: nothing follows from what it does not say.
            Some((None, None)) => {
                self.is_complete = false;
                return Ok(());
            }
            Some((removed, live)) => (*removed, live.as_ref().map(|live| live.incarnation)),
            None => (None, None),
        };
        let is_old = |incarnation: Incarnation| incarnation.round < theirs.floor;
        let held = mine.record.as_ref().map(|record| record.incarnation);
        let buried = mine.removed.map(|removed| removed.incarnation);
        // What is removed here is no lack.
        if live.is_some_and(is_old) && live > held && live > buried {
            self.is_complete = false;
        }
        let their_buried = their_removed.map(|removed| removed.incarnation);
        let is_unknown = held.is_some_and(is_old) && live < held && their_buried < held;
        if let Some(record) = mine.record.filter(|_| is_unknown) {
            if self.store.shared.index().is_unsent(&record) {
                self.unsent.push((key.clone(), record));
            } else {
                self.take_away(key, &record).await?;
            }
        }
        let stale = mine.removed.filter(|removed| removed.laid < theirs.floor);
        if let Some(removed) = stale.filter(|removed| their_removed < Some(*removed)) {
            let is_news = live.is_some_and(|live| live <= removed.incarnation);
            self.drop_tombstone(key, removed, is_news).await?;
        }
        Ok(())
    }

    /// Takes a document away that was removed, or never got to anybody who is there now.
    async fn take_away(&mut self, key: &ObjectKey, record: &Record) -> Result<(), CommitError> {
        let (permit, claim) = self.store.claim(key).await?;
        let shared = &self.store.shared;
        let incarnation = record.incarnation;
        let held = shared.index().record(key);
        let Some(record) = held.filter(|held| held.incarnation == incarnation) else {
            return Ok(());
        };
        let mut prepared = Prepared {
            writes: vec![Write::remove(document_key(key))],
            change: Change::TakeAway {
                key: key.clone(),
                incarnation,
            },
            fresh: None,
            rescued: None,
        };
        if let Err(error) = shared.rescue(&mut prepared, key, &record, Lost::Stale, UNSEEN) {
            tracing::error!(%key, %error, "an object that the others do not have cannot be set aside");
            self.is_complete = false;
            return Ok(());
        }
        let done = Store::enqueue(permit, Some(claim), prepared, Vec::new());
        self.pending.push(done);
        Ok(())
    }

    /// Drops a tombstone as the others did; if it is news to them, it is laid again instead.
    async fn drop_tombstone(
        &mut self,
        key: &ObjectKey,
        removed: Tombstone,
        is_news: bool,
    ) -> Result<(), CommitError> {
        let (permit, claim) = self.store.claim(key).await?;
        let shared = &self.store.shared;
        let prepared = if is_news {
            let again = Tombstone::new(removed.incarnation, shared.index().round(), removed.seen);
            shared.burial(key, again, false)
        } else {
            shared.exhumation(key, removed)
        };
        let done = Store::enqueue(permit, Some(claim), prepared, Vec::new());
        self.pending.push(done);
        Ok(())
    }

    /// Waits for what is being written. What a register overtook is tried again.
    async fn finish_pending(&mut self) -> Result<(), CommitError> {
        let mut failed = Ok(());
        for done in std::mem::take(&mut self.pending) {
            let is_done = match finished(done).await {
                Ok(is_done) => is_done,
                Err(error) => {
                    failed = Err(error);
                    false
                }
            };
            self.is_complete &= is_done;
        }
        failed
    }

    /// Makes an object anew that nobody else can have had.
    async fn replay(&mut self, key: &ObjectKey, record: &Record) -> Result<(), CommitError> {
        let (permit, claim) = self.store.claim(key).await?;
        let shared = &self.store.shared;
        let held = shared.index().record(key);
        let Some(record) = held.filter(|held| held.incarnation == record.incarnation) else {
            return Ok(());
        };
        match shared.anew(key, &record) {
            Ok(prepared) => {
                tracing::info!(%key, "an object that was created while no other node was in reach is created again");
                shared.standing.send_modify(|standing| standing.replayed += 1);
                let done = Store::enqueue(permit, Some(claim), prepared, Vec::new());
                self.is_complete &= finished(done).await?;
            }
            Err(error) => {
                tracing::error!(%key, %error, "an object cannot be created again");
                self.is_complete = false;
            }
        }
        Ok(())
    }

    /// Waits for what was done, and raises the floor if that is all. Returns whether anything was done.
    async fn end(mut self, theirs: Header) -> Result<bool, SyncError> {
        let mut is_progress = !self.pending.is_empty();
        self.finish_pending().await?;
        if !self.is_complete {
            return Ok(is_progress);
        }
        // Namespaces first: what is in them is nowhere without them.
        let mut unsent = std::mem::take(&mut self.unsent);
        unsent.sort_by_key(|(key, _)| key.kind != Kind::Namespace);
        for (key, record) in unsent {
            let namespace = ObjectKey::cluster(Kind::Namespace, &key.namespace);
            let has_place =
                key.namespace.is_empty() || self.store.shared.index().record(&namespace).is_some();
            let view = self.store.get(&key);
            let is_controllers = view.is_some_and(|view| view.object.controller().is_some());
            if has_place && !is_controllers {
                self.replay(&key, &record).await?;
            } else {
                self.take_away(&key, &record).await?;
            }
            is_progress = true;
        }
        self.finish_pending().await?;
        if self.is_complete {
            is_progress |= self
                .store
                .register(Registration::CaughtUp(theirs, self.going))
                .await?;
        }
        Ok(is_progress)
    }
}

impl Shared {
    /// Prepares to drop a tombstone.
    fn exhumation(&self, key: &ObjectKey, removed: Tombstone) -> Prepared {
        Prepared {
            writes: vec![Write::remove(tombstone_key(key))],
            change: Change::Unbury {
                key: key.clone(),
                removed,
            },
            fresh: None,
            rescued: None,
        }
    }

    /// Prepares the same object as the next incarnation of its key, with its history.
    fn anew(&self, key: &ObjectKey, record: &Record) -> Result<Prepared, BadBytes> {
        let incarnation = {
            let index = self.index();
            Incarnation::next(index.round(), index.removed(key))
        };
        let incarnation = incarnation.ok_or_else(|| BadBytes("this name was used too often".to_owned()))?;
        let contents = record.load(self.actor(record.epoch))?.contents();
        let again = Record {
            incarnation,
            ..record.clone()
        };
        self.put(key, again, &contents, None)
            .map_err(|error| BadBytes(error.to_string()))
    }
}
