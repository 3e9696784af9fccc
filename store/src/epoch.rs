//! Epochs of a document: a long history is squashed into one change, its *base*, on which new changes build. Pure.
//!
//! A base says exactly which changes it stands for: of each actor, up to which number. So every replica, however old its
//! copy is, can tell which of its changes are in there, and carries the others over: as the same puts and deletes, after
//! the base or after what they built on. Carrying over is a function of the base and the change alone, so that replicas
//! that carry over one change make one change of it. That bases of one document are nested (the later holds all that
//! the earlier holds) is for those who propose and agree to see to: `compaction.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use automerge::legacy::{Key, OpType};
use automerge::{ActorId, Change, ChangeHash, ScalarValue};
use schemas::{Kind, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::document::{
    BadBytes, ChangeAuthor, Contents, Document, birth_facts, decided_presence, first_change,
};
use crate::incoming::IncomingChange;
use crate::leaves::{self, Leaves};
use crate::owners::{Owner, Owners};
use crate::path::{self, Role};
use crate::types::{NodeId, Via};

/// The manager of bases.
const MANAGER: &str = "podman-swarm-compaction";
/// Actors that a base can name: as many starts of agents and carried changes. A history with more is squashed no further
/// until all admitted nodes are there, after which the old ones need not be named any more.
const MAX_ACTORS: usize = 4096;
/// The most changes that a base can speak of: no cluster makes as many, and sums of them stay numbers.
const MAX_COUNT: u64 = 1 << 53;

/// Which history a document has, in the order in which they replace one another. Zero: never squashed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Epoch {
    /// Changes that the base stands for.
    pub(crate) dropped: u64,
    /// Hash of the base.
    pub(crate) base: [u8; 32],
}

/// What a base stands for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Base {
    #[serde(skip)]
    pub(crate) dropped: u64,
    /// `metadata.generation` at the base.
    #[serde(rename = "g")]
    pub(crate) generation: u64,
    /// Of each actor (hex), the number of its last change that is in here.
    #[serde(rename = "v")]
    included: BTreeMap<String, u64>,
    /// Copies of a document that had dropped fewer changes than this cannot be carried over: `included` does not speak of
    /// them any more, since every admitted node had left them behind.
    #[serde(rename = "f")]
    floor: u64,
    /// All that is carried over to it was made with all that it stands for: see [`Squash::is_clean`].
    #[serde(rename = "c", default, skip_serializing_if = "std::ops::Not::not")]
    is_clean: bool,
}

impl Base {
    /// Reads the message of a change.
    pub(crate) fn parse(dropped: u64, message: &str) -> Option<Base> {
        let base: Base = serde_json::from_str(message).ok()?;
        let mut counts = [dropped, base.generation, base.floor]
            .into_iter()
            .chain(base.included.values().copied());
        let fits = base.included.len() <= MAX_ACTORS && counts.all(|count| count <= MAX_COUNT);
        fits.then_some(Base { dropped, ..base })
    }

    fn holds(&self, change: &Change) -> bool {
        let (actor, number) = origin(change.actor_id(), change.seq());
        self.included
            .get(&hex(&actor))
            .is_some_and(|last| number <= *last)
    }

    fn include(&mut self, actor: String, number: u64) {
        let last = self.included.entry(actor).or_default();
        *last = number.max(*last);
    }

    /// Tells whether all that `other` stands for is in this one.
    fn holds_all_of(&self, other: &Base, other_change: &Change) -> bool {
        let of = |actor: &String| self.included.get(actor).copied().unwrap_or_default();
        self.holds(other_change) || other.included.iter().all(|(actor, last)| of(actor) >= *last)
    }
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(flatten)]
    author: &'a ChangeAuthor,
    #[serde(flatten)]
    base: &'a Base,
}

/// Of what is carried over, the actor is actor and number of the original: the same, whoever carries it and however often.
const NODE_ACTOR_BYTES: usize = 16;
const CARRIED_ACTOR_BYTES: usize = NODE_ACTOR_BYTES + size_of::<u64>();

fn carried_actor(change: &Change) -> ActorId {
    let (actor, number) = origin(change.actor_id(), change.seq());
    ActorId::from([actor.as_slice(), &number.to_be_bytes()].concat())
}

/// Returns actor and number of a change as it was made first. What is carried over builds on what the original built on
/// of its actor, so of each actor a history has all changes up to one.
fn origin(actor: &ActorId, number: u64) -> (Vec<u8>, u64) {
    let actor = actor.to_bytes();
    match actor.split_first_chunk::<NODE_ACTOR_BYTES>() {
        Some((node, number)) if actor.len() == CARRIED_ACTOR_BYTES => {
            let number = number.try_into().map_or(0, u64::from_be_bytes);
            (node.to_vec(), number)
        }
        Some(_) | None => (actor.to_vec(), number),
    }
}

/// Tells whether a change was made of one of another epoch.
pub(crate) fn is_carried(change: &Change) -> bool {
    change.actor_id().to_bytes().len() == CARRIED_ACTOR_BYTES
}

/// Tells whether a change is a base that what was carried over to it may have been made without some of.
pub(crate) fn is_loose_base(change: &Change) -> bool {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "d")]
        dropped: Option<u64>,
        #[serde(rename = "c", default)]
        is_clean: bool,
    }
    let said = || serde_json::from_str::<Said>(change.message()?).ok();
    change.deps().is_empty() && said().is_some_and(|said| said.dropped.is_some() && !said.is_clean)
}

/// Returns what a change is known by to users, given its actor and number: the same when it was carried over.
pub(crate) fn lasting_id(actor: &ActorId, number: u64) -> String {
    let (actor, number) = origin(actor, number);
    let hash = Sha256::new()
        .chain_update(actor)
        .chain_update(number.to_be_bytes());
    hex(&hash.finalize())
}

/// Who writes the base of a history up to these heads.
fn base_actor(heads: &[ChangeHash]) -> ActorId {
    let mut hasher = Sha256::new();
    heads.iter().for_each(|hash| hasher.update(hash.0));
    ActorId::from(<[u8; 32]>::from(hasher.finalize()))
}

/// How a history is squashed.
pub(crate) struct Squash<'a> {
    pub(crate) kind: Kind,
    pub(crate) epoch: Epoch,
    /// The base stands for these changes and all before them.
    pub(crate) heads: &'a [ChangeHash],
    /// All other changes that there are and will be build on these heads: nothing needs to be remembered of elements
    /// that were removed.
    pub(crate) is_clean: bool,
    /// Every admitted node has this epoch.
    pub(crate) is_everyones: bool,
    pub(crate) node: &'a NodeId,
}

impl Squash<'_> {
    /// Makes the base; None if it would have to name too many actors.
    pub(crate) fn base(&self, document: &mut Document) -> Result<Option<IncomingChange>, BadBytes> {
        let mut past = document.at(self.heads)?;
        let history = past.history();
        let mut base = Base {
            dropped: self.epoch.dropped,
            is_clean: self.is_clean,
            ..Base::default()
        };
        let mut unix_seconds = 0;
        for change in &history {
            let incoming = IncomingChange::parse(change.raw_bytes())?;
            base.generation += incoming.spec_changes;
            unix_seconds = unix_seconds.max(change.timestamp());
            let (actor, number) = origin(change.actor_id(), change.seq());
            base.include(hex(&actor), number);
            match incoming.base {
                None => base.dropped = base.dropped.saturating_add(1),
                Some(_) if self.is_everyones => base.floor = self.epoch.dropped,
                Some(before) => {
                    base.floor = before.floor;
                    for (actor, number) in before.included {
                        base.include(actor, number);
                    }
                }
            }
        }
        if base.included.len() > MAX_ACTORS {
            return Ok(None);
        }
        let author = ChangeAuthor {
            manager: MANAGER.to_owned(),
            user: String::new(),
            node: self.node.clone(),
            via: Some(Via::Controller),
            unix_seconds,
            dropped: Some(base.dropped),
            sight: None,
        };
        let message = Message {
            author: &author,
            base: &base,
        };
        let message = serde_json::to_string(&message).map_err(|error| BadBytes(error.to_string()))?;
        let puts = self.puts(past.contents());
        let base = first_change(base_actor(self.heads), puts, message, unix_seconds)?;
        IncomingChange::parse(base.raw_bytes()).map(Some)
    }

    /// Returns what the base puts: all that a document says.
    fn puts(&self, contents: Contents) -> impl Iterator<Item = (String, ScalarValue)> {
        let Contents {
            raw,
            leaves,
            mut owners,
            birth,
        } = contents;
        let creator = one_creator(&mut owners, &leaves);
        let raw = if self.is_clean {
            let shown = without_removed(leaves);
            owners.explicit.retain(|path, _| shown.contains_key(path));
            leaves::pack(self.kind, shown)
        } else {
            raw
        };
        let facts = birth_facts(creator.as_ref(), &birth);
        facts.into_iter().chain(raw).chain(owners.to_leaves())
    }
}

/// A document on another base.
pub(crate) struct Carried {
    pub(crate) document: Document,
    /// `metadata.generation`.
    pub(crate) generation: u64,
    /// Changes of the document.
    pub(crate) changes: u64,
    /// Some were carried over: the others do not have them yet.
    pub(crate) any: bool,
    /// What the document held could not be told from what the base holds: some of it may be lost.
    pub(crate) is_doubtful: bool,
}

/// Puts what a document holds beyond a base on that.
pub(crate) fn carry_over(
    old: &mut Document,
    old_epoch: Epoch,
    change: &IncomingChange,
    actor: ActorId,
) -> Result<Carried, BadBytes> {
    let base = change
        .base
        .as_ref()
        .ok_or_else(|| BadBytes("not a base".to_owned()))?;
    let mut document = Document::new(actor);
    document.merge(&[change])?;
    let mut carried = Carried {
        document,
        generation: change.spec_changes,
        changes: 1,
        any: false,
        is_doubtful: old_epoch.dropped < base.floor,
    };
    if carried.is_doubtful {
        return Ok(carried);
    }
    // Of each change that is not in the base, what to build on instead of it.
    let mut stands_for: HashMap<ChangeHash, Vec<ChangeHash>> = HashMap::new();
    for old_change in old.history() {
        let incoming = IncomingChange::parse(old_change.raw_bytes())?;
        if let Some(old_base) = &incoming.base {
            carried.is_doubtful = !base.holds_all_of(old_base, &old_change);
            continue;
        }
        if base.holds(&old_change) {
            continue;
        }
        let causes = old_change.deps().iter();
        let causes: BTreeSet<ChangeHash> = causes
            .filter_map(|cause| stands_for.get(cause))
            .flatten()
            .copied()
            .collect();
        let causes: Vec<ChangeHash> = if causes.is_empty() {
            vec![change.hash]
        } else {
            causes.into_iter().collect()
        };
        let put = carried.document.replay(&old_change, &causes)?;
        if let Some(put) = &put {
            carried.any = true;
            carried.changes += 1;
            carried.generation = carried.generation.saturating_add(put.spec_changes);
        }
        stands_for.insert(old_change.hash(), put.map_or(causes, |put| vec![put.hash]));
    }
    Ok(carried)
}

impl Document {
    /// Returns all changes, causes before effects.
    pub(crate) fn history(&mut self) -> Vec<Change> {
        self.automerge.get_changes(&[])
    }

    /// Returns the document as it was.
    pub(crate) fn at(&mut self, heads: &[ChangeHash]) -> Result<Document, BadBytes> {
        let automerge = self.automerge.fork_at(heads);
        automerge
            .map(|automerge| Document { automerge })
            .map_err(|error| BadBytes(error.to_string()))
    }

    /// Tells whether the presence of an element that is here wins over one that was written at the same time, as it would
    /// have without a squash.
    fn outdates(&self, key: &str, value: &ScalarValue) -> bool {
        let held = self.presence(key).filter(|_| path::role(key) == Role::Presence);
        held.is_some_and(|held| {
            let both = [&held, value].map(|value| automerge::Value::from(value.clone()));
            decided_presence(both.into_iter()) == Some(held)
        })
    }

    /// Makes a change like one of another epoch, built on `causes`, which are here; None if nothing is left of it.
    fn replay(&mut self, change: &Change, causes: &[ChangeHash]) -> Result<Option<IncomingChange>, BadBytes> {
        // Mostly one change follows the other, and nothing has to be copied.
        let bytes = if self.heads() == causes {
            let actor = self.automerge.get_actor().clone();
            let bytes = self.put_again(change)?;
            self.automerge.set_actor(actor);
            bytes
        } else {
            self.at(causes)?.put_again(change)?
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        let change = IncomingChange::parse(&bytes)?;
        self.merge(&[&change])?;
        Ok(Some(change))
    }

    fn put_again(&mut self, change: &Change) -> Result<Vec<u8>, BadBytes> {
        self.automerge.set_actor(carried_actor(change));
        for operation in change.decode().operations {
            let Key::Map(key) = &operation.key else {
                return Err(BadBytes("an operation outside the flat map".to_owned()));
            };
            match operation.action {
                // What the loser left is taken away by whoever writes next: shown again, it would be an element without a name.
                OpType::Put(value) if self.outdates(key, &value) => {}
                OpType::Put(value) => self.put(key, value)?,
                OpType::Delete => self.delete(key)?,
                OpType::Make(_) | OpType::Increment(_) | OpType::MarkBegin(..) | OpType::MarkEnd(_) => {
                    return Err(BadBytes("an operation that is neither put nor delete".to_owned()));
                }
            }
        }
        let message = change.message().map(ToOwned::to_owned).unwrap_or_default();
        self.commit_as(message, change.timestamp())
    }
}

/// Names the creator. Of several at once the first: that the others own what they do not own by name is written out.
fn one_creator(owners: &mut Owners, leaves: &Leaves) -> Option<Owner> {
    let creators = owners.creators.clone();
    if creators.len() > 1 {
        for path in leaves.keys().filter(|path| path::role(path) != Role::Order) {
            owners
                .explicit
                .entry(path.clone())
                .or_insert_with(|| creators.clone());
        }
    }
    creators.into_iter().next()
}

/// Leaves out what is remembered of elements that were removed.
fn without_removed(leaves: Leaves) -> Leaves {
    let is_shown = |path: &String, value: &ScalarValue| {
        let is_removed = path::role(path) == Role::Presence && matches!(value, ScalarValue::Int(..=0));
        !is_removed && leaves::within_live_elements(path, &leaves)
    };
    let shown = leaves.iter().filter(|(path, value)| is_shown(path, value));
    shown.map(|(path, value)| (path.clone(), value.clone())).collect()
}
