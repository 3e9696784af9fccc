//! Rounds: when tombstones may be dropped, and what a node does that was away when they were.
//!
//! Three registers. The *round* is what new incarnations and tombstones are stamped with. The *floor* is not above it:
//! tombstones that were laid in rounds below it have been dropped, and who says so in the header of a frame holds nothing
//! that they covered. The *digest of its closing* goes with the floor: it tells what all held when that round was closed.
//!
//! Closing round `c`: the proposer raises its round to `c` and asks all present peers. Each raises its round to `c`, so that
//! from then on what it creates or removes has stamps of `c` or more, and agrees, if it holds what the proposer holds of the
//! rounds below ([`Index::closing_digest`]), and if it agreed to nobody else's `c`: of two sides that both see a majority, one
//! closes it. If all agree and the proposer holds the same still, it drops the tombstones laid below `c` and raises its floor.
//! All others find that in the header of its frames. Who holds the same still does likewise; who does not is *stale*.
//!
//! So at each floor `c` this holds: *of documents with an incarnation of a round below `c`, none is alive here that was removed,
//! and none is alive at another node with this floor unless it is alive here, or was removed by a tombstone that is not dropped
//! yet.* From that follow the rules:
//!
//! - A frame whose floor is lower than ours may bring back the dead: documents of a round below our floor are taken from it
//!   only where we hold the same incarnation. Its tombstones that may have been dropped are taken where we hold what they
//!   cover, as if laid now.
//! - A stale node compares all that it holds with a peer ([`Store::settle`](crate::Store)): what it has of rounds below and the
//!   peer does not know is taken away, after it was rescued; or made anew, if no other node can ever have had it. Its floor
//!   rises when it lacks nothing that the peer has of the rounds below. Meanwhile it holds the frames of others to the floor
//!   that it goes to, and takes no writes.
//! - A change that was prepared before a register changed is dropped and prepared again (`commit.rs`), so that no stamp is too low.
//!
//! Members are none of this: their tombstones are never dropped, since they tell a node that it was removed. A namespace's
//! stays as long as something is here that was created in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use schemas::{Kind, ObjectKey};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot, watch};

use crate::commit::Job;
use crate::disk::Write;
use crate::frame::{self, Body, Closed, Going, Header};
use crate::incarnation::{Incarnation, Tombstone};
use crate::index::Index;
use crate::open::contact_record;
use crate::record::{META_CONTACT, META_FLOOR, META_ROUND, tombstone_key};
use crate::shared::Shared;
use crate::store::{Store, closed};
use crate::types::{CommitError, NodeId, Standing};

/// Tombstones that are worth a round, of which there are 65,535, while all admitted nodes are present: 100 KiB.
pub(crate) const MANY: usize = 1024;
/// While a majority is present: what is not there will have to catch up. A few MiB.
pub(crate) const MANY_FOR_SOME: usize = 16 * MANY;
/// So often whoever closes rounds is woken while tombstones grow many.
const WAKE_EVERY: usize = MANY / 4;

/// How the registers are to change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Registration {
    /// A peer stands there.
    Meet(Header),
    Raise(u16),
    /// Close a round, if this is what is held below it.
    Close(u16, Closed),
    /// This store holds all that a peer holds that stands there, as it was found while it went to one target.
    CaughtUp(Header, Going),
    /// What was unsent up to now is going to be sent.
    Send(u64),
}

/// How the registers do change.
#[derive(Debug)]
pub(crate) struct Decision {
    before: (Header, Going, u64),
    registers: Header,
    target: Option<Header>,
    contact: u64,
    /// Keys of tombstones.
    dropped: Vec<ObjectKey>,
    /// What was to be done is done.
    is_done: bool,
}

impl Decision {
    /// Returns what must be durable first; `identity` of the disk.
    pub(crate) fn writes(&self, identity: u64) -> Vec<Write> {
        let (header, _, contact) = self.before;
        let mut writes = Vec::new();
        if self.registers.round != header.round {
            let round = u64::from(self.registers.round);
            writes.push(Write::put(META_ROUND, round.to_be_bytes()));
        }
        if self.registers.floor != header.floor {
            let floor = self.registers.floor.to_be_bytes();
            writes.push(Write::put(
                META_FLOOR,
                [&floor[..], &self.registers.closed].concat(),
            ));
        }
        if self.contact != contact {
            writes.push(Write::put(META_CONTACT, contact_record(self.contact, identity)));
        }
        writes.extend(self.dropped.iter().map(|key| Write::remove(tombstone_key(key))));
        writes
    }
}

impl Index {
    /// Decides how the registers change, given all that is held now.
    pub(crate) fn decide(&self, registration: &Registration) -> Decision {
        let mut decision = Decision {
            before: (self.header(), self.going(), self.contact()),
            registers: self.header(),
            target: self.target(),
            contact: self.contact(),
            dropped: Vec::new(),
            is_done: true,
        };
        let registers = &mut decision.registers;
        match *registration {
            Registration::Raise(round) => registers.round = round.max(registers.round),
            Registration::Meet(theirs) => {
                registers.round = theirs.round.max(registers.round);
                if theirs.floor > self.bar() {
                    if self.holds(theirs.floor, theirs.closed) {
                        (registers.floor, registers.closed) = (theirs.floor, theirs.closed);
                        decision.dropped = self.droppable(theirs.floor);
                        decision.target = None;
                    } else {
                        decision.target = Some(theirs);
                    }
                }
            }
            Registration::Close(round, closed) => {
                let is_ours = round == registers.round && self.bar() < round && self.target().is_none();
                decision.is_done = is_ours && self.holds(round, closed);
                if decision.is_done {
                    (registers.floor, registers.closed) = (round, closed);
                    decision.dropped = self.droppable(round);
                }
            }
            Registration::CaughtUp(theirs, going) => {
                // Whoever gave up in between took frames again that it did not hold to the target.
                let is_going = going == self.going();
                decision.is_done = is_going && theirs.floor > registers.floor;
                if decision.is_done {
                    (registers.floor, registers.closed) = (theirs.floor, theirs.closed);
                    decision.target.take_if(|target| target.floor <= theirs.floor);
                }
            }
            Registration::Send(contact) => decision.contact = self.contact().max(contact.saturating_add(1)),
        }
        decision
    }

    /// Tells whether this is all that is held of rounds below one.
    fn holds(&self, round: u16, closed: Closed) -> bool {
        self.quarantine.keys().next().is_none() && self.closing_digest(round) == closed
    }

    /// Digests what all must hold for a round to be closed: what is removed by tombstones that are to be dropped, and what
    /// is alive, or was until it was removed in this round. All members belong to it: they say who has to agree.
    pub(crate) fn closing_digest(&self, round: u16) -> Closed {
        const REMOVED: u8 = 0;
        const KNOWN: u8 = 1;
        let mut digest = Closed::default();
        let mut add = |what: u8, key: &ObjectKey, incarnation: Incarnation| {
            let hash = Sha256::new()
                .chain_update([what])
                .chain_update(incarnation.round.to_be_bytes())
                .chain_update(incarnation.number.to_be_bytes())
                .chain_update(key.to_string())
                .finalize();
            digest.iter_mut().zip(hash).for_each(|(byte, hash)| *byte ^= hash);
        };
        for (key, removed, record) in self.held() {
            let is_member = key.kind == Kind::Member;
            if let Some(record) = record.filter(|record| is_member || record.incarnation.round < round) {
                add(KNOWN, key, record.incarnation);
            }
            match removed {
                Some(removed) if !is_member && removed.laid < round => add(REMOVED, key, removed.incarnation),
                Some(removed) if !is_member && removed.incarnation.round < round => {
                    add(KNOWN, key, removed.incarnation);
                }
                Some(_) | None => {}
            }
        }
        digest
    }

    /// Returns the keys of the tombstones that are dropped when a round is closed.
    fn droppable(&self, round: u16) -> Vec<ObjectKey> {
        // Of each namespace that something was created in, the first incarnation.
        let mut in_use: BTreeMap<&str, Incarnation> = BTreeMap::new();
        for (key, _, record) in self.held() {
            if let Some(namespace) = record.and_then(|record| record.namespace) {
                let first = in_use.entry(&key.namespace).or_insert(namespace);
                *first = namespace.min(*first);
            }
        }
        let is_droppable = |key: &ObjectKey, removed: &Tombstone| {
            if key.kind == Kind::Namespace {
                let first = in_use.get(key.name.as_str());
                return first.is_none_or(|first| *first > removed.incarnation);
            }
            key.kind != Kind::Member
        };
        let below = self
            .tombstones()
            .iter()
            .filter(|(_, removed)| removed.laid < round);
        let droppable = below.filter(|(key, removed)| is_droppable(key, removed));
        droppable.map(|(key, _)| key.clone()).collect()
    }

    /// Tells whether an incarnation is gone for good: a tombstone says so, or did, until it was dropped.
    pub(crate) fn is_removed(&self, key: &ObjectKey, incarnation: Incarnation) -> bool {
        let by_tombstone = self.removed(key).is_some_and(|removed| incarnation <= removed);
        // What is computed has number 0, and no document.
        let is_closed = key.kind != Kind::Member
            && incarnation.number > 0
            && incarnation.round < self.header().floor
            && self.target().is_none()
            && !self.quarantine.holds(key);
        by_tombstone || is_closed && self.record(key).map(|record| record.incarnation) != Some(incarnation)
    }

    /// Tells whether tombstones have become many, now and then.
    pub(crate) fn has_many_tombstones(&self) -> bool {
        let count = self.tombstones().len();
        count >= MANY && count.is_multiple_of(WAKE_EVERY)
    }
}

impl Shared {
    /// Takes a durable decision in; true if what was to be done is done.
    pub(crate) fn take_decision(&self, decision: Decision) -> bool {
        let Decision {
            before: (before, going, _),
            registers,
            target,
            contact,
            dropped,
            is_done,
        } = decision;
        let (was_stale, is_stale, is_empty) = {
            let mut index = self.index_mut();
            let was_stale = index.target().is_some();
            // Given up in between, it stays so.
            let target = if index.going() == going {
                target
            } else {
                index.target()
            };
            index.set_registers(registers, target, contact);
            index.unbury_all(&dropped);
            let is_empty = index.held().all(|(_, _, record)| record.is_none());
            (was_stale, index.target().is_some(), is_empty)
        };
        if registers.floor != before.floor {
            let (floor, tombstones) = (registers.floor, dropped.len());
            tracing::info!(floor, tombstones, "closed rounds: old tombstones are dropped");
        }
        if is_stale != was_stale {
            self.standing.send_modify(|standing| {
                standing.catching_up = is_stale;
                standing.catch_ups += u64::from(is_stale);
                match (is_stale, standing) {
                    // A joiner.
                    (true, _) if is_empty => {}
                    (true, _) => tracing::warn!(
                        floor = registers.floor,
                        "this node was away while old deletions were forgotten: it compares all that it holds with its peers, and takes no writes until then"
                    ),
                    (false, standing) => tracing::info!(
                        replayed = standing.replayed,
                        rescued = standing.rescued,
                        taken_away = standing.taken_away,
                        "this node has caught up (counts since its start)"
                    ),
                }
            });
        }
        is_done
    }
}

/// To whom this node has agreed, or that it proposed itself: one proposer per round.
pub(crate) struct Ballot(Mutex<(u16, Option<NodeId>)>);

impl Ballot {
    /// Begins with nothing known of rounds up to one: this node may have agreed to somebody before it was started.
    pub(crate) fn new(round: u16) -> Self {
        Self(Mutex::new((round, None)))
    }

    /// Agrees to a proposer's round, unless to another's.
    fn cast(&self, round: u16, proposer: &NodeId) -> bool {
        let mut ballot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if round > ballot.0 {
            *ballot = (round, Some(proposer.clone()));
        }
        *ballot == (round, Some(proposer.clone()))
    }

    fn is_cast(&self, round: u16, proposer: &NodeId) -> bool {
        let ballot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ballot == (round, Some(proposer.clone()))
    }

    /// Agrees to nobody's from now on.
    fn spoil(&self, round: u16) {
        let mut ballot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if round >= ballot.0 {
            *ballot = (round, None);
        }
    }
}

/// A round that this node would close.
pub struct Closing {
    round: u16,
    closed: Closed,
    frame: Bytes,
    is_agreed: bool,
    /// Somebody will never agree to it.
    is_refused: bool,
}

impl Closing {
    /// What to send to every present peer.
    pub fn frame(&self) -> Bytes {
        self.frame.clone()
    }

    /// Takes a peer's answer; none (no bytes), or one that cannot be read, does not agree.
    pub fn answered(&mut self, answer: &[u8]) {
        match frame::decode(answer) {
            Ok((_, Body::Agreed { round, closed })) if round == self.round => {
                self.is_agreed &= closed == self.closed;
            }
            Ok(_) | Err(_) => (self.is_agreed, self.is_refused) = (false, true),
        }
    }

    /// Tells whether all who answered agreed.
    pub fn is_agreed(&self) -> bool {
        self.is_agreed
    }
}

impl Store {
    /// Is woken when tombstones have become many.
    pub fn many_tombstones(&self) -> Arc<Notify> {
        self.shared.many_tombstones.clone()
    }

    /// Whether this node holds what its peers do not tell any more, and what became of that.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// Returns how many tombstones are held.
    pub fn tombstones(&self) -> usize {
        self.shared.index().tombstones().len()
    }

    /// Returns the round that new objects are created in.
    pub fn round(&self) -> u16 {
        self.shared.index().round()
    }

    /// Returns the round below which tombstones are dropped.
    pub fn floor(&self) -> u16 {
        self.shared.index().header().floor
    }

    /// Says whether no other node is in reach, from which on what is created here is known to be nowhere else: until a frame of
    /// another comes after some are in reach again. A store begins with others in reach.
    pub fn set_alone(&self, alone: bool) {
        self.shared.index_mut().set_alone(alone);
        if alone {
            self.shared
                .standing
                .send_if_modified(|standing| std::mem::take(&mut standing.catching_up));
        }
    }

    /// Proposes to close a round, if there are many tombstones to drop; `is_everyone`: all admitted nodes are present. All
    /// present ones are to be asked, and with this one they must be a majority of the admitted.
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn propose_closing(&self, is_everyone: bool) -> Result<Option<Closing>, CommitError> {
        self.propose_closing_beyond(if is_everyone { MANY } else { MANY_FOR_SOME })
            .await
    }

    /// As [`Store::propose_closing`], with so many tombstones or more.
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn propose_closing_beyond(&self, many: usize) -> Result<Option<Closing>, CommitError> {
        let me = &self.shared.node;
        let round = {
            let index = self.shared.index();
            if index.tombstones().len() < many || index.target().is_some() {
                return Ok(None);
            }
            let round = index.round();
            let is_worth = |round: &u16| index.droppable(*round).len() >= many;
            // One that was not agreed on is tried again: there are only so many.
            let again = Some(round)
                .filter(|round| self.shared.ballot.is_cast(*round, me) && index.header().floor < *round);
            let next = || round.checked_add(1).filter(is_worth);
            again.filter(is_worth).or_else(next)
        };
        let Some(round) = round else {
            return Ok(None);
        };
        if !self.shared.ballot.cast(round, me) {
            return Ok(None);
        }
        self.register(Registration::Raise(round)).await?;
        let (header, closed) = {
            let index = self.shared.index();
            (index.header(), index.closing_digest(round))
        };
        let frame = frame::encode(header, &Body::Close { round, closed });
        Ok(frame.ok().map(|frame| Closing {
            round,
            closed,
            frame,
            is_agreed: true,
            is_refused: false,
        }))
    }

    /// Answers who would close a round: with another digest, if this node does not hold the same now; with nothing, if it
    /// will never agree.
    pub(crate) fn agree_to_close(&self, peer: &NodeId, round: u16, closed: Closed) -> Option<Body> {
        let index = self.shared.index();
        let is_next = index.round() == round && index.bar() < round;
        let agrees = is_next && self.shared.ballot.cast(round, peer);
        let holds = index.target().is_none() && index.holds(round, closed);
        let closed = if holds { closed } else { closed.map(|byte| !byte) };
        agrees.then_some(Body::Agreed { round, closed })
    }

    /// Closes a round that all present nodes agreed to, if they and this one are a majority of the admitted and this one
    /// holds what it held. False: it was not agreed on, or is overtaken. What is dropped instead is tried again, as it is.
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn close_round(&self, closing: Closing) -> Result<bool, CommitError> {
        let Closing {
            round,
            closed,
            is_agreed,
            is_refused,
            ..
        } = closing;
        if is_refused {
            self.shared.ballot.spoil(round);
        }
        Ok(is_agreed && self.register(Registration::Close(round, closed)).await?)
    }

    /// Changes the registers, durably; false if what is held then says otherwise.
    pub(crate) async fn register(&self, registration: Registration) -> Result<bool, CommitError> {
        let permit = self.permit().await?;
        let (done, waiting) = oneshot::channel();
        permit.send(Job::Register(registration, done));
        waiting.await.map_err(|_| closed())?
    }
}
