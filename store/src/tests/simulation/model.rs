//! What users were told, and what may therefore be seen: the oracle. Pure; knows nothing of how the store works.
//!
//! Every write draws a number (stamp) at its node and puts it in two places: as the value of each field that it sets, and
//! in an annotation of that node's own. So each object says of itself which writes it holds (one annotation a node, the
//! highest number), and each write knows which others it had seen. From that follows, for one object (key and uid):
//!
//! - an acknowledged write is in the object, or the object was removed;
//! - a field has the value of a write that no acknowledged write of that field had seen: nothing old comes back;
//! - unless histories were squashed: a put outlives a removal that had not seen it, and an element's removal beats
//!   what was done to it at the same time.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Object, ObjectKey};
use serde_json::Value;

/// By node: the number of its last write that an object holds.
pub(super) type Seen = BTreeMap<usize, u64>;

/// What a write does to a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Put(u64),
    Delete,
    /// Of an element of a list: it begins to be there.
    Add(u64),
    Edit(u64),
    Remove,
}

impl Effect {
    fn value(self) -> Option<u64> {
        match self {
            Effect::Put(value) | Effect::Add(value) | Effect::Edit(value) => Some(value),
            Effect::Delete | Effect::Remove => None,
        }
    }
}

/// A write that has happened, or may have.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Written {
    pub(super) node: usize,
    pub(super) stamp: u64,
    pub(super) seen: Seen,
    pub(super) effects: BTreeMap<String, Effect>,
    /// Made by a user: what controllers make they make again.
    pub(super) is_users: bool,
    pub(super) is_acknowledged: bool,
}

impl Written {
    fn has_seen(&self, other: &Written) -> bool {
        self.stamp_of(other.node) >= other.stamp
    }

    fn stamp_of(&self, node: usize) -> u64 {
        self.seen.get(&node).copied().unwrap_or_default()
    }
}

/// Whether an object was removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Removal {
    #[default]
    No,
    Possible,
    Acknowledged,
}

#[derive(Default, Debug)]
struct History {
    writes: Vec<Written>,
    removal: Removal,
    /// Which writes were set aside when a copy was given up.
    rescued: Seen,
}

impl History {
    /// Returns an acknowledged write of a user that is neither in an object that holds so much, nor set aside.
    fn lost(&self, held: &Seen) -> Option<&Written> {
        let at = |seen: &Seen, node| seen.get(&node).copied().unwrap_or_default();
        self.writes.iter().find(|written| {
            let is_kept =
                at(held, written.node) >= written.stamp || at(&self.rescued, written.node) >= written.stamp;
            written.is_acknowledged && written.is_users && !is_kept
        })
    }
}

/// An object as a replica shows it at the end.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Shown {
    pub(super) uid: String,
    pub(super) seen: Seen,
    pub(super) fields: BTreeMap<String, u64>,
    pub(super) is_squashed: bool,
}

impl Shown {
    pub(super) fn of(object: &Object, is_squashed: bool) -> Self {
        Self {
            uid: object.uid().to_owned(),
            seen: seen(object),
            fields: fields(object),
            is_squashed,
        }
    }
}

/// Returns which writes an object holds.
pub(super) fn seen(object: &Object) -> Seen {
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let stamps = annotations.into_iter().flatten();
    stamps
        .filter_map(|(name, stamp)| {
            Some((
                name.strip_prefix('w')?.parse().ok()?,
                stamp.as_str()?.parse().ok()?,
            ))
        })
        .collect()
}

/// Returns the fields that writes set, with their values.
pub(super) fn fields(object: &Object) -> BTreeMap<String, u64> {
    let mut fields = BTreeMap::new();
    if let Some(replicas) = object.pointer("/spec/replicas").and_then(Value::as_u64) {
        fields.insert("replicas".to_owned(), replicas);
    }
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    for (name, value) in labels.into_iter().flatten() {
        let value = value.as_str().and_then(|value| value.parse().ok());
        fields.insert(format!("label {name}"), value.unwrap_or_default());
    }
    let containers = object.pointer("/spec/template/spec/containers");
    for container in containers.and_then(Value::as_array).into_iter().flatten() {
        let image = container["image"].as_str().and_then(|image| image.parse().ok());
        let name = container["name"].as_str().unwrap_or("?");
        // Without an image it is torn: no write makes one.
        fields.insert(format!("container {name}"), image.unwrap_or_default());
    }
    fields
}

/// All that users were told.
#[derive(Default)]
pub(super) struct Model {
    objects: BTreeMap<(ObjectKey, String), History>,
    /// Creations that may have happened, of which nobody learned the uid.
    nameless: BTreeMap<ObjectKey, Vec<Written>>,
    /// Objects that a node held to be gone.
    gone: BTreeSet<(ObjectKey, String)>,
}

impl Model {
    /// A write happened, or may have; `uid` is None if that was a creation that nobody answered.
    pub(super) fn wrote(&mut self, key: &ObjectKey, uid: Option<&str>, written: Written) {
        match uid {
            Some(uid) => self.history(key, uid).writes.push(written),
            None => self.nameless.entry(key.clone()).or_default().push(written),
        }
    }

    /// A removal happened, or may have.
    pub(super) fn removed(&mut self, key: &ObjectKey, uid: &str, is_acknowledged: bool) {
        let removal = if is_acknowledged {
            Removal::Acknowledged
        } else {
            Removal::Possible
        };
        let history = self.history(key, uid);
        history.removal = history.removal.max(removal);
    }

    fn history(&mut self, key: &ObjectKey, uid: &str) -> &mut History {
        self.objects.entry((key.clone(), uid.to_owned())).or_default()
    }

    /// A copy of an object was set aside.
    pub(super) fn rescued(&mut self, key: &ObjectKey, uid: &str, seen: Seen) {
        let rescued = &mut self.history(key, uid).rescued;
        for (node, stamp) in seen {
            let last = rescued.entry(node).or_default();
            *last = stamp.max(*last);
        }
    }

    /// An object may have been made again under another uid: true, if all that it holds is from the one before.
    pub(super) fn replayed(&mut self, key: &ObjectKey, uid: &str, again: &str, seen: &Seen) -> bool {
        let history = self.history(key, uid);
        let is_of_history = |(node, stamp): (&usize, &u64)| {
            let mut writes = history.writes.iter();
            writes.any(|written| (written.node, written.stamp) == (*node, *stamp))
        };
        if !seen.iter().all(is_of_history) {
            return false;
        }
        history.removal = history.removal.max(Removal::Possible);
        let writes = history.writes.clone();
        self.history(key, again).writes.extend(writes);
        true
    }

    /// An object was held to be gone, and must not come back.
    pub(super) fn must_be_gone(&mut self, key: &ObjectKey, uid: &str) {
        self.gone.insert((key.clone(), uid.to_owned()));
    }

    /// Tells whether somebody may have removed an object, or given it up.
    pub(super) fn may_be_gone(&self, key: &ObjectKey, uid: &str) -> bool {
        let history = self.objects.get(&(key.clone(), uid.to_owned()));
        history.is_some_and(|history| history.removal > Removal::No || !history.rescued.is_empty())
    }

    /// Tells whether a write was set aside.
    pub(super) fn is_rescued(&self, key: &ObjectKey, uid: &str, node: usize, stamp: u64) -> bool {
        let history = self.objects.get(&(key.clone(), uid.to_owned()));
        history.is_some_and(|history| history.rescued.get(&node).is_some_and(|last| *last >= stamp))
    }

    /// Tells whether somebody may have removed any object of a name.
    pub(super) fn may_have_been_removed(&self, key: &ObjectKey) -> bool {
        let of_name = self.objects.iter().filter(|((of, _), _)| of == key);
        of_name
            .into_iter()
            .any(|(_, history)| history.removal > Removal::No)
    }

    /// A node is taken out with its disk: what it alone had may be gone. `held` tells what the others have of an object,
    /// `removed` whether one of them knows that it was removed.
    pub(super) fn forgive(
        &mut self,
        node: usize,
        held: impl Fn(&ObjectKey, &str) -> u64,
        removed: impl Fn(&ObjectKey, &str) -> bool,
        removed_by: &BTreeSet<(ObjectKey, String)>,
    ) {
        for ((key, uid), history) in &mut self.objects {
            if removed_by.contains(&(key.clone(), uid.clone())) && !removed(key, uid) {
                history.removal = history.removal.min(Removal::Possible);
            }
            let held = held(key, uid);
            let of_node = history.writes.iter_mut().filter(|written| written.node == node);
            for written in of_node.filter(|written| written.stamp > held) {
                written.is_acknowledged = false;
            }
        }
    }

    /// Judges what one replica shows of an object: no value that one of the writes which it holds has replaced, and no element
    /// that one of them removed.
    pub(super) fn judge_replica(&self, key: &ObjectKey, shown: &Shown) -> Result<(), String> {
        let history = self.objects.get(&(key.clone(), shown.uid.clone()));
        let writes = || history.into_iter().flat_map(|history| &history.writes);
        // What nobody answered happened only where it is named itself.
        let is_held = |written: &Written| {
            let last = shown.seen.get(&written.node).copied().unwrap_or_default();
            last == written.stamp || written.is_acknowledged && last > written.stamp
        };
        for (field, value) in &shown.fields {
            if *value == 0 {
                return Err(format!("{field} is torn"));
            }
            let says_so = |written: &&Written| {
                let effect = written.effects.get(field);
                effect.is_some_and(|effect| effect.value() == Some(*value))
            };
            let Some(by) = writes().find(says_so) else {
                continue;
            };
            let replaces = |later: &&Written| {
                is_held(later)
                    && later.effects.contains_key(field)
                    && !std::ptr::eq(*later, by)
                    && later.has_seen(by)
            };
            if let Some(later) = writes().find(replaces) {
                return Err(format!("{field} is {value} again, of {by:?}, after {later:?}"));
            }
            let is_removal =
                |later: &Written| is_held(later) && later.effects.get(field) == Some(&Effect::Remove);
            if !shown.is_squashed && writes().any(is_removal) {
                let nameless = self.nameless.get(key).into_iter().flatten();
                let writes: Vec<&Written> = writes().chain(nameless).collect();
                Field::new(&writes, field)
                    .judge_removals(*value, is_held)
                    .map_err(|error| format!("{field} is {value}: {error}"))?;
            }
        }
        Ok(())
    }

    /// Judges what all replicas show in the end.
    pub(super) fn judge(&self, shown: &BTreeMap<ObjectKey, Shown>) -> Result<(), String> {
        for ((key, uid), history) in &self.objects {
            let shown = shown.get(key).filter(|shown| shown.uid == *uid);
            match (shown, history.removal) {
                (Some(_), Removal::Acknowledged) => {
                    return Err(format!("{key} {uid} was removed and is there again"));
                }
                (Some(shown), Removal::No | Removal::Possible) => {
                    self.judge_object(key, history, shown)
                        .map_err(|error| format!("{key} {uid}: {error}"))?;
                }
                (None, Removal::No) => {
                    if let Some(lost) = history.lost(&Seen::new()) {
                        return Err(format!(
                            "{key} {uid} is gone, nobody removed it, and it was not set aside: {lost:?}"
                        ));
                    }
                }
                (None, Removal::Possible | Removal::Acknowledged) => {}
            }
        }
        let is_shown =
            |(key, uid): &&(ObjectKey, String)| shown.get(key).is_some_and(|shown| shown.uid == *uid);
        if let Some((key, uid)) = self.gone.iter().find(is_shown) {
            return Err(format!("{key} {uid} was held to be gone and is there"));
        }
        for (key, shown) in shown {
            let is_known = self.objects.contains_key(&(key.clone(), shown.uid.clone()));
            if !is_known && !self.nameless.contains_key(key) {
                return Err(format!("{key} {} was never made", shown.uid));
            }
        }
        Ok(())
    }

    fn judge_object(&self, key: &ObjectKey, history: &History, shown: &Shown) -> Result<(), String> {
        if let Some(lost) = history.lost(&shown.seen) {
            return Err(format!(
                "acknowledged and lost: {lost:?}; it holds {:?}",
                shown.seen
            ));
        }
        let nameless = self.nameless.get(key).into_iter().flatten();
        let writes: Vec<&Written> = history.writes.iter().chain(nameless).collect();
        let touched: BTreeSet<&String> = writes
            .iter()
            .flat_map(|written| written.effects.keys())
            .chain(shown.fields.keys())
            .collect();
        for field in touched {
            let value = shown.fields.get(field).copied();
            let of_field = Field::new(&writes, field);
            of_field
                .judge(value)
                .map_err(|error| format!("{field} is {value:?}: {error}"))?;
            if !shown.is_squashed {
                of_field
                    .judge_strictly(value)
                    .map_err(|error| format!("{field} is {value:?}: {error}"))?;
            }
        }
        Ok(())
    }
}

/// By write (node and stamp): how often an element had begun to be there, as the writer saw it.
struct Numbers(BTreeMap<(usize, u64), usize>);

impl Numbers {
    fn of(&self, written: &Written) -> usize {
        self.0
            .get(&(written.node, written.stamp))
            .copied()
            .unwrap_or_default()
    }
}

/// The writes of one field of an object.
struct Field<'a>(Vec<(&'a Written, Effect)>);

impl<'a> Field<'a> {
    fn new(writes: &[&'a Written], field: &str) -> Self {
        let of_field = writes
            .iter()
            .filter_map(|written| Some((*written, *written.effects.get(field)?)));
        Self(of_field.collect())
    }

    /// The value is of a write that no acknowledged one had seen.
    fn judge(&self, value: Option<u64>) -> Result<(), String> {
        let Self(writes) = self;
        let is_seen = |written: &Written| {
            let mut later = writes.iter().filter(|(later, _)| later.is_acknowledged);
            later.any(|(later, _)| !std::ptr::eq(*later, written) && later.has_seen(written))
        };
        let mut last = writes.iter().filter(|(written, _)| !is_seen(written));
        if last.any(|(_, effect)| effect.value() == value) || writes.is_empty() && value.is_none() {
            return Ok(());
        }
        // Of two creations of one object a field that only one sets is there; of none that is acknowledged it need not be.
        if value.is_none() && writes.iter().all(|(written, _)| !written.is_acknowledged) {
            return Ok(());
        }
        Err(format!(
            "no write that was not overwritten says so, of {writes:?}"
        ))
    }

    /// How puts and removals at the same time end.
    fn judge_strictly(&self, value: Option<u64>) -> Result<(), String> {
        let Self(writes) = self;
        let is_element = writes
            .iter()
            .any(|(_, effect)| matches!(effect, Effect::Add(_) | Effect::Edit(_) | Effect::Remove));
        if !is_element {
            let is_seen = |written: &Written| {
                writes
                    .iter()
                    .any(|(later, _)| !std::ptr::eq(*later, written) && later.has_seen(written))
            };
            let mut puts = writes
                .iter()
                .filter(|(written, effect)| effect.value().is_some() && written.is_acknowledged);
            return match puts.find(|(written, _)| !is_seen(written)) {
                Some(put) if value.is_none() => {
                    Err(format!("a removal that had not seen it took {put:?} away"))
                }
                Some(_) | None => Ok(()),
            };
        }
        if let Some(value) = value {
            return self.judge_removals(value, |written| written.is_acknowledged);
        }
        let numbers = self.numbers();
        let number = |written: &Written| numbers.of(written);
        let adds = writes
            .iter()
            .filter(|(written, effect)| written.is_acknowledged && matches!(effect, Effect::Add(_)));
        let added = adds.map(|(written, _)| number(written)).max().unwrap_or_default();
        let may_be_removed = writes
            .iter()
            .any(|(written, effect)| *effect == Effect::Remove && number(written) >= added);
        if may_be_removed || added == 0 {
            Ok(())
        } else {
            Err(format!("it was added {added} times, of {writes:?}"))
        }
    }

    /// An element with this value is there: it had not begun to be there when a removal that counts was made.
    fn judge_removals(&self, value: u64, counts: impl Fn(&Written) -> bool) -> Result<(), String> {
        let Self(writes) = self;
        let says_so = |effect: &Effect| effect.value() == Some(value);
        let Some((by, _)) = writes.iter().find(|(_, effect)| says_so(effect)) else {
            return Ok(());
        };
        let numbers = self.numbers();
        let number = |written: &Written| numbers.of(written);
        let removal = writes.iter().find(|(written, effect)| {
            *effect == Effect::Remove && counts(written) && number(written) >= number(by)
        });
        match removal {
            Some((removal, _)) => Err(format!("it was removed: {by:?}, {removal:?}")),
            None => Ok(()),
        }
    }

    fn numbers(&self) -> Numbers {
        let mut writes = self.0.clone();
        // Who has seen another has seen all that that one had seen, too.
        writes.sort_by_key(|(written, _)| written.seen.values().sum::<u64>());
        let mut numbers: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for (written, effect) in &writes {
            let number_of = |(other, before): &(&Written, Effect)| {
                let number = numbers
                    .get(&(other.node, other.stamp))
                    .copied()
                    .filter(|_| written.has_seen(other))?;
                match (effect, before) {
                    (Effect::Add(_), Effect::Remove) => Some(number + 1),
                    (Effect::Edit(_) | Effect::Remove, Effect::Add(_)) => Some(number),
                    _ => None,
                }
            };
            let first = usize::from(matches!(effect, Effect::Add(_)));
            let number = writes.iter().filter_map(number_of).fold(first, usize::max);
            numbers.insert((written.node, written.stamp), number);
        }
        Numbers(numbers)
    }
}
