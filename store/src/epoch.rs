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
use crate::incoming::{IncomingChange, check_put};
use crate::leaves::{self, Leaves};
use crate::owners::{self, Owner, Owners};
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
    if old_epoch.dropped >= base.floor {
        let mut carried = Carried::base_alone(change, actor.clone())?;
        match carried.take_over(old, base, change.hash) {
            Ok(()) => return Ok(carried),
            // Said again it may be too large. To stay behind would be worse.
            Err(error) => tracing::warn!(%error, "a change cannot be carried over to a squashed history"),
        }
    }
    let alone = Carried::base_alone(change, actor)?;
    Ok(Carried {
        is_doubtful: true,
        ..alone
    })
}

impl Carried {
    fn base_alone(change: &IncomingChange, actor: ActorId) -> Result<Self, BadBytes> {
        let mut document = Document::new(actor);
        document.merge(&[change])?;
        Ok(Self {
            document,
            generation: change.spec_changes,
            changes: 1,
            any: false,
            is_doubtful: false,
        })
    }

    fn take_over(&mut self, old: &mut Document, base: &Base, base_hash: ChangeHash) -> Result<(), BadBytes> {
        // Of each change that is not in the base, what to build on instead of it.
        let mut stands_for: HashMap<ChangeHash, ChangeHash> = HashMap::new();
        for old_change in old.history() {
            let incoming = IncomingChange::parse(old_change.raw_bytes())?;
            if let Some(old_base) = &incoming.base {
                self.is_doubtful = !base.holds_all_of(old_base, &old_change);
                continue;
            }
            if base.holds(&old_change) {
                continue;
            }
            let causes = old_change.deps().iter();
            let causes: BTreeSet<ChangeHash> = causes
                .filter_map(|cause| stands_for.get(cause))
                .copied()
                .collect();
            let causes: Vec<ChangeHash> = if causes.is_empty() {
                vec![base_hash]
            } else {
                causes.into_iter().collect()
            };
            let put = self
                .document
                .replay(&old_change, &old.said(&old_change)?, &causes)?;
            self.any = true;
            self.changes += 1;
            self.generation = self.generation.saturating_add(put.spec_changes);
            stands_for.insert(old_change.hash(), put.hash);
        }
        Ok(())
    }
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

    /// Returns the presence of an element that is here and wins over one that was written at the same time, as it would have
    /// without a squash.
    fn outdating(&self, key: &str, value: &ScalarValue) -> Option<ScalarValue> {
        let held = self.presence(key).filter(|_| is_presence(key))?;
        let both = [&held, value].map(|value| automerge::Value::from(value.clone()));
        (decided_presence(both.into_iter()).as_ref() == Some(&held)).then_some(held)
    }

    /// Makes a change like one of another epoch, built on `causes`, which are here.
    fn replay(
        &mut self,
        change: &Change,
        said: &[Said],
        causes: &[ChangeHash],
    ) -> Result<IncomingChange, BadBytes> {
        // Mostly one change follows the other, and nothing has to be copied.
        let bytes = if self.heads() == causes {
            let actor = self.automerge.get_actor().clone();
            let bytes = self.say_again(change, said)?;
            self.automerge.set_actor(actor);
            bytes
        } else {
            self.at(causes)?.say_again(change, said)?
        };
        let change = IncomingChange::parse(&bytes)?;
        self.merge(&[&change])?;
        Ok(change)
    }

    /// Says again all that a change says, also what changes nothing here: it may where it is carried to from here, and who
    /// carries it there from elsewhere must make the same of it. [`Document::said`] reads it.
    fn say_again(&mut self, change: &Change, said: &[Said]) -> Result<Vec<u8>, BadBytes> {
        self.automerge.set_actor(carried_actor(change));
        for (key, value) in said {
            match value {
                Some(value) => {
                    // What the loser left is taken away by whoever writes next: shown, it would be an element without a name.
                    let stays = self.outdating(key, value);
                    // Of a value that is here already automerge leaves the put out, or says that the others go. Facts are not deleted.
                    if self.holds(key, value) {
                        if is_fact(key) {
                            self.put(key, other_than(value, key)?)?;
                        } else {
                            self.delete(key)?;
                        }
                    }
                    self.put(key, value.clone())?;
                    if let Some(stays) = stays {
                        self.put(key, stays)?;
                    }
                }
                None => {
                    // Of what is not there a deletion would be left out, too.
                    if self.sides(key, None).is_empty() {
                        self.put(key, other_than(&ScalarValue::Null, key)?)?;
                    }
                    self.delete(key)?;
                }
            }
        }
        let message = change.message().map(ToOwned::to_owned).unwrap_or_default();
        self.commit_as(message, change.timestamp())
    }

    /// Returns what a change of this document says of each key, in its order. What it does last counts, but of the presence of
    /// an element the first put does, after which [`Document::say_again`] may say what stays.
    fn said(&self, change: &Change) -> Result<Vec<Said>, BadBytes> {
        let mut said: Vec<Said> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for operation in change.decode().operations {
            let Key::Map(key) = &operation.key else {
                return Err(BadBytes("an operation outside the flat map".to_owned()));
            };
            let value = match operation.action {
                OpType::Put(value) => Some(value),
                OpType::Delete => None,
                OpType::Make(_) | OpType::Increment(_) | OpType::MarkBegin(..) | OpType::MarkEnd(_) => {
                    return Err(BadBytes("an operation that is neither put nor delete".to_owned()));
                }
            };
            let place = *places.entry(key.to_string()).or_insert(said.len());
            match said.get_mut(place) {
                Some((key, Some(_))) if value.is_some() && is_presence(key) => {}
                Some((_, before)) => *before = value,
                None => said.push((key.to_string(), value)),
            }
        }
        // Of several values that are there at once, automerge says that one is put by deleting the others.
        for (key, value) in said.iter_mut().filter(|(_, value)| value.is_none()) {
            *value = self
                .sides(key, Some(&[change.hash()]))
                .pop()
                .map(|(left, _)| left);
        }
        Ok(said)
    }
}

/// What a change says of a key; None: that it is deleted.
type Said = (String, Option<ScalarValue>);

fn is_presence(key: &str) -> bool {
    !key.starts_with('@') && path::role(key) == Role::Presence
}

/// What a document says of an object's creation: see `birth_facts`.
fn is_fact(key: &str) -> bool {
    key.starts_with('@') && !owners::is_owner_key(key)
}

/// Returns another value that a key can hold, whatever it is of.
fn other_than(value: &ScalarValue, key: &str) -> Result<ScalarValue, BadBytes> {
    // Of leaves and owners, elements, groups, and facts.
    let texts = ["V", "update/a", "update/b", "0.1", "0.2"].map(|text| ScalarValue::Str(text.into()));
    let others = [
        ScalarValue::Boolean(true),
        ScalarValue::Int(1),
        ScalarValue::Int(2),
    ]
    .into_iter()
    .chain(texts)
    .chain([ScalarValue::Bytes(b"{}".to_vec())]);
    let mut others = others.filter(|other| other != value && check_put(key, other).is_ok());
    others
        .next()
        .ok_or_else(|| BadBytes("nothing else can be put there".to_owned()))
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

#[cfg(test)]
mod tests {
    use automerge::transaction::Transactable;

    use super::*;
    use crate::document::{CREATED, CREATOR, NAMESPACE};

    const PRESENCE: &str = "spec/template/spec/containers/[log]";

    /// Makes a change of what is put and deleted, on all that a document has.
    fn change(document: &mut Document, actor: &str, said: &[(&str, Option<ScalarValue>)]) {
        let actor: [u8; NODE_ACTOR_BYTES] = Sha256::digest(actor)[..NODE_ACTOR_BYTES].try_into().unwrap();
        document.automerge.set_actor(ActorId::from(actor));
        for (key, value) in said {
            match value {
                Some(value) => document.put(key, value.clone()).unwrap(),
                None => document.delete(key).unwrap(),
            }
        }
        let bytes = document.commit_as(r#"{"m":"x","n":"y"}"#.to_owned(), 0).unwrap();
        IncomingChange::parse(&bytes).unwrap();
    }

    /// Squashes all that a document has.
    fn base(document: &mut Document, epoch: Epoch) -> (IncomingChange, Epoch) {
        let heads = document.heads();
        let node = NodeId("node".to_owned());
        let squash = Squash {
            kind: Kind::Deployment,
            epoch,
            heads: &heads,
            is_clean: false,
            is_everyones: false,
            node: &node,
        };
        let base = squash.base(document).unwrap().unwrap();
        let epoch = Epoch {
            dropped: base.base.as_ref().unwrap().dropped,
            base: base.hash.0,
        };
        (base, epoch)
    }

    #[test]
    fn what_is_carried_over_is_the_same_by_every_way() {
        let (number, text) = (ScalarValue::Int, |text: &str| ScalarValue::Str(text.into()));
        let put = |key, value| (key, Some(value));
        let actor = || ActorId::from([9; NODE_ACTOR_BYTES]);
        let mut document = Document::new(actor());
        let first = [
            put(CREATED, number(0)),
            put("spec/replicas", number(1)),
            put("spec/paused", text("a")),
            put("metadata/labels/x", text("1")),
            put(PRESENCE, number(1)),
        ];
        change(&mut document, "a", &first);
        let heads = document.heads();
        let mut away = document.at(&heads).unwrap();
        // One half of it changes nothing on the first base, the other on the second.
        let said = [
            put(CREATED, number(0)),
            put(CREATOR, text("update/x")),
            put(NAMESPACE, text("0.1")),
            put("spec/replicas", number(2)),
            put("spec/paused", text("b")),
            ("metadata/labels/x", None),
            put(PRESENCE, number(-1)),
        ];
        change(&mut away, "b", &said);
        let mut beside = away.at(&heads).unwrap();
        change(&mut away, "b", &[put("spec/paused", text("b2"))]);
        // Another at the same time: some of what is said again then is what wins already.
        let said_beside = [
            put("spec/replicas", number(2)),
            put("spec/paused", text("b3")),
            put(PRESENCE, number(3)),
        ];
        change(&mut beside, "d", &said_beside);
        let all: Vec<_> = beside.changes_after(&[]);
        let all: Vec<_> = all
            .iter()
            .map(|bytes| IncomingChange::parse(bytes).unwrap())
            .collect();
        away.merge(&all.iter().collect::<Vec<_>>()).unwrap();
        let adopted = [("spec/replicas", None), put("spec/replicas", number(2))];
        change(&mut away, "e", &adopted);
        change(
            &mut away,
            "e",
            &[put("spec/paused", text("b2")), put(PRESENCE, number(-3))],
        );
        change(&mut document, "a", &said[..4]);
        change(
            &mut document,
            "c",
            &[("metadata/labels/x", None), put(PRESENCE, number(2))],
        );
        let (first, first_epoch) = base(&mut document, Epoch::default());
        let second = [
            put(CREATED, number(1)),
            put(CREATOR, text("update/a")),
            put(NAMESPACE, text("0.2")),
            put("spec/replicas", number(3)),
            put("metadata/labels/x", text("3")),
            put("spec/paused", text("b")),
        ];
        change(&mut document, "a", &second);
        let (second, _) = base(&mut document, Epoch::default());
        let mut once = carry_over(&mut away, Epoch::default(), &second, actor()).unwrap();
        let mut between = carry_over(&mut away, Epoch::default(), &first, actor()).unwrap();
        let mut twice = carry_over(&mut between.document, first_epoch, &second, actor()).unwrap();
        assert_eq!(once.changes, 6);
        assert_eq!(twice.document.heads(), once.document.heads());
        let all = twice.document.changes_after(&[]);
        let all: Vec<_> = all
            .iter()
            .map(|bytes| IncomingChange::parse(bytes).unwrap())
            .collect();
        let merged = once.document.merge(&all.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(merged.fresh, 0);
        let shown = once.document.contents().raw;
        let held = |key| shown.get(key).cloned();
        assert_eq!(held("spec/replicas"), Some(number(2)));
        assert_eq!(held("spec/paused"), Some(text("b2")));
        assert_eq!(held("metadata/labels/x"), None);
        assert_eq!(once.document.presence(PRESENCE), Some(number(-3)));
    }

    #[test]
    fn what_cannot_be_said_again_is_doubtful_and_holds_up_nothing() {
        let actor = || ActorId::from([9; NODE_ACTOR_BYTES]);
        let mut document = Document::new(actor());
        change(&mut document, "a", &[(CREATED, Some(ScalarValue::Int(0)))]);
        let (base, _) = base(&mut document, Epoch::default());
        let counter = ScalarValue::counter(1);
        document
            .automerge
            .put(&automerge::ROOT, "spec/replicas", counter)
            .unwrap();
        document.commit_as(r#"{"m":"x","n":"y"}"#.to_owned(), 0).unwrap();
        let carried = carry_over(&mut document, Epoch::default(), &base, actor()).unwrap();
        assert!(carried.is_doubtful && !carried.any);
    }
}
