//! Server-side apply and field ownership over leaves. Pure.
//!
//! Owned are value and presence leaves; the order of elements belongs to nobody. An apply by a manager sets and owns
//! what it names, takes away what only its applies owned and it no longer names, and leaves the rest: also what the same
//! manager changed by an update, such as a deletion or a scale.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ScalarValue;
use schemas::fields::{self, ListRule};
use schemas::{Kind, Object, meta};
use serde_json::Value;

use crate::field_set;
use crate::leaves::{self, Leaves, below, is_marker};
use crate::owners::{Operation, Owner, Owners};
use crate::path::{self, Role, Token};
use crate::types::OwnedField;

/// Returns the owners after `manager` has changed `before` to `after` by an update: what it changed is its own.
pub(crate) fn owners_after_update(before: &Leaves, after: &Leaves, owners: &Owners, manager: &str) -> Owners {
    let updater = Owner::new(Operation::Update, manager);
    let mut result = owners.clone();
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        result.explicit.remove(path);
    }
    for (path, value) in after {
        if path::role(path) != Role::Order && before.get(path) != Some(value) {
            result.set(path, BTreeSet::from([updater.clone()]));
        }
    }
    result
}

/// Merges what an apply names into the leaves of a document.
///
/// # Errors
/// Without `force`, the fields that others own with another value.
pub(crate) fn apply(
    kind: Kind,
    existing: &Leaves,
    owners: &Owners,
    named: Leaves,
    manager: &str,
    force: bool,
) -> Result<(Leaves, Owners), Vec<OwnedField>> {
    let applier = &Owner::new(Operation::Apply, manager);
    let owners = &before_first_apply(existing, owners);
    let dropped = Dropped::find(kind, existing, owners, &named, applier);
    let named = without_needless_markers(existing, &dropped, named);
    let hidden: BTreeSet<&String> = hidden_by(existing, &named).collect();
    let mut conflicts = Conflicts {
        owners,
        applier,
        found: BTreeMap::new(),
    };
    // A map or list that was empty and gets something is not changed by that for who said that it is there.
    let is_filled =
        |path: &str| existing.get(path).is_some_and(is_marker) && below(&named, path).next().is_some();
    for path in hidden.iter().filter(|path| !is_filled(path)) {
        conflicts.check(path);
    }
    for (path, value) in named.iter().filter(|(path, _)| path::role(path) == Role::Value) {
        if existing.get(path).is_some_and(|old| old != value) {
            conflicts.check(path);
        }
    }
    if !force && !conflicts.found.is_empty() {
        return Err(conflicts.fields(kind, existing));
    }

    let mut leaves: Leaves = existing
        .iter()
        .filter(|(path, value)| {
            !hidden.contains(path) && !dropped.leaves.contains(*path) && !is_removed_element(path, value)
        })
        .map(|(path, value)| (path.clone(), value.clone()))
        .collect();
    leaves.extend(named.iter().map(|(path, value)| (path.clone(), value.clone())));

    let mut result = owners.clone();
    for path in existing.keys().filter(|path| !leaves.contains_key(*path)) {
        result.explicit.remove(path);
    }
    for path in &dropped.shared {
        let mut rest = owners.of(path).clone();
        rest.remove(applier);
        result.set(path, rest);
    }
    for (path, value) in named.iter().filter(|(path, _)| path::role(path) != Role::Order) {
        let mut new = match existing.get(path) {
            Some(old) if old == value => owners.named(path).cloned().collect(),
            Some(_) | None => BTreeSet::new(),
        };
        new.insert(applier.clone());
        result.set(path, new);
    }
    Ok((leaves, result))
}

/// Writes down what kubectl applies where its client-side applies do, if they did: who goes back to them goes on from here. As
/// in Kubernetes; whose the annotation is stays, and if it makes annotations too large, it goes.
pub(crate) fn renew_last_applied(applied: &Object, leaves: &mut Leaves, owners: &mut Owners) {
    let leaf = format!("metadata/annotations/{}", path::field(meta::LAST_APPLIED));
    let before = match leaves.get(&leaf) {
        Some(ScalarValue::Str(before)) if !before.is_empty() => before.len(),
        Some(_) | None => return,
    };
    let mut applied = applied.clone();
    applied.remove(&["metadata", "annotations", meta::LAST_APPLIED]);
    let mut applied = applied.into_value();
    applied.sort_all_objects();
    let text = format!("{applied}\n");
    let object = leaves::materialise(leaves);
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let annotations = annotations.into_iter().flatten();
    let all: usize = annotations
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if (all + text.len()).saturating_sub(before) > meta::ANNOTATIONS_MAX_BYTES {
        leaves.remove(&leaf);
        owners.explicit.remove(&leaf);
    } else {
        leaves.insert(leaf, ScalarValue::Str(text.into()));
    }
}

/// Who owns what was there when nobody's fields are applied to, as in Kubernetes.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Returns the owners that an apply meets: where all were taken away, one that stands for all that was before.
fn before_first_apply(existing: &Leaves, owners: &Owners) -> Owners {
    let mut owners = owners.clone();
    let owned: Vec<&String> = existing
        .keys()
        .filter(|path| path::role(path) != Role::Order)
        .collect();
    if owned.iter().all(|path| owners.named(path).next().is_none()) {
        let before = BTreeSet::from([Owner::new(Operation::Update, BEFORE_FIRST_APPLY)]);
        for path in owned {
            owners.set(path, before.clone());
        }
    }
    owners
}

struct Conflicts<'a> {
    owners: &'a Owners,
    applier: &'a Owner,
    /// By leaf.
    found: BTreeMap<String, Owner>,
}

impl Conflicts<'_> {
    fn check(&mut self, path: &str) {
        if path::role(path) == Role::Order {
            return;
        }
        if let Some(other) = self.owners.named(path).find(|owner| *owner != self.applier) {
            self.found.insert(path.to_owned(), other.clone());
        }
    }

    fn fields(self, kind: Kind, existing: &Leaves) -> Vec<OwnedField> {
        let mut shown = field_set::display(kind, existing, |leaf| self.found.contains_key(leaf));
        let fields = self.found.into_iter().map(|(leaf, owner)| OwnedField {
            path: shown.remove(&leaf).unwrap_or_else(|| path::display(&leaf)),
            manager: owner.manager,
            by_update: owner.operation == Operation::Update,
        });
        fields.collect()
    }
}

fn is_removed_element(path: &str, value: &ScalarValue) -> bool {
    matches!(value, ScalarValue::Int(..0)) && path::role(path) == Role::Presence
}

/// Leaves out the marker of an empty map or list where something stays in it.
fn without_needless_markers(existing: &Leaves, dropped: &Dropped, mut named: Leaves) -> Leaves {
    let stays = |path: &String, value: &ScalarValue| {
        !dropped.leaves.contains(path) && !is_removed_element(path, value)
    };
    named.retain(|path, value| {
        !is_marker(value) || !below(existing, path).any(|(path, value)| stays(path, value))
    });
    named
}

/// Returns the leaves that cannot stay beside the named ones: a value where a map is named, and what lies below a value.
fn hidden_by<'a>(existing: &'a Leaves, named: &'a Leaves) -> impl Iterator<Item = &'a String> {
    named.iter().flat_map(|(path, value)| {
        let above = path
            .match_indices('/')
            .filter_map(|(end, _)| existing.get_key_value(&path[..end]));
        let above = above
            .filter(|(path, _)| path::role(path) == Role::Value)
            .map(|(path, _)| path);
        let hides = path::role(path) == Role::Value && !is_marker(value);
        let below = below(existing, path).filter(move |_| hides).map(|(path, _)| path);
        above.chain(below)
    })
}

/// What a manager's applies owned and it no longer names.
#[derive(Default)]
struct Dropped {
    /// Nobody else owns it.
    leaves: BTreeSet<String>,
    /// Others own it too.
    shared: BTreeSet<String>,
}

impl Dropped {
    fn find(kind: Kind, existing: &Leaves, owners: &Owners, named: &Leaves, applier: &Owner) -> Self {
        let mut dropped = Self::default();
        let mut presences: Vec<&String> = Vec::new();
        for (path, value) in existing {
            let role = path::role(path);
            if role == Role::Order
                || is_removed_element(path, value)
                || named.contains_key(path)
                || !owners.of(path).contains(applier)
            {
                continue;
            }
            if owners.named(path).count() > 1 {
                dropped.shared.insert(path.clone());
            } else if role == Role::Presence {
                presences.push(path);
            } else {
                dropped.leaves.insert(path.clone());
            }
        }
        // The longest first: an element goes only when all that is in it goes.
        presences.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for presence in presences {
            dropped.element(kind, existing, presence);
        }
        dropped
    }

    /// Drops an element with all that is in it, or, where others own something in it, keeps it and its merge keys.
    fn element(&mut self, kind: Kind, existing: &Leaves, presence: &str) {
        let Some(ScalarValue::Int(number)) = existing.get(presence) else {
            return;
        };
        let content = format!("{presence}@{number}");
        let kept = below(existing, &content)
            .filter(|(path, value)| path::role(path) != Role::Order && !is_removed_element(path, value))
            .any(|(path, _)| !self.leaves.contains(path));
        if kept {
            for key in merge_keys(kind, presence) {
                self.leaves.remove(&path::child(&content, &path::field(key)));
            }
            return;
        }
        self.leaves
            .extend(below(existing, &content).map(|(path, _)| path.clone()));
        self.leaves.insert(content);
        self.leaves.insert(presence.to_owned());
    }
}

fn merge_keys(kind: Kind, presence: &str) -> impl Iterator<Item = &'static str> {
    let names: Vec<String> = presence
        .split('/')
        .filter_map(|token| match path::parse(token)? {
            Token::Field(name) => Some(name.into_owned()),
            Token::Element(_) | Token::Group(_) => None,
        })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let keys = match fields::list_rule(kind, &names) {
        ListRule::Keyed { keys } => keys,
        ListRule::Set | ListRule::Atomic => &[],
    };
    keys.iter().map(|key| key.field)
}
