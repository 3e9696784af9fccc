//! Who owns which leaves, by the rule of Kubernetes' managed fields: a manager owns what it *applied* apart from what it
//! changed by *updates*, so that an apply drops only what an apply owned. Pure.
//!
//! In a document `@creator` is `<operation>/<manager>`, and `@owner/<operation>/<manager>/<path>` a leaf's owner. A leaf
//! without an owner of its own belongs to the creators, so that an object that one manager wrote in one way has no
//! ownership leaves at all.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ScalarValue;

use crate::leaves::Leaves;
use crate::path::{self, Role, Token};

const OWNER: &str = "@owner/";
/// The longest name of a manager, as written in a path.
pub(crate) const MAX_MANAGER_BYTES: usize = 1024;

/// As many managers own by updates, as in Kubernetes.
pub(crate) const MAX_UPDATERS: usize = 10;
/// Who owns what those owned that were too many.
const ANCIENT_CHANGES: &str = "ancient-changes";

/// How a manager writes (`managedFields[].operation`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Operation {
    /// Server-side apply.
    Apply,
    /// Creation, update, patch and deletion.
    Update,
}

/// A manager by operation: two owners of one name are not the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner {
    pub(crate) operation: Operation,
    pub(crate) manager: String,
}

impl Owner {
    pub(crate) fn new(operation: Operation, manager: &str) -> Self {
        Self {
            operation,
            manager: manager.to_owned(),
        }
    }

    /// Returns who stands for nobody: what was taken from its owners belongs to nobody, and not to the creators again.
    pub(crate) fn nobody() -> Self {
        Self::new(Operation::Update, "")
    }

    pub(crate) fn is_nobody(&self) -> bool {
        *self == Self::nobody()
    }

    /// Writes this owner as two tokens of a path.
    pub(crate) fn to_text(&self) -> String {
        let operation = match self.operation {
            Operation::Apply => "apply",
            Operation::Update => "update",
        };
        format!("{operation}/{}", path::field(&self.manager))
    }

    /// Reads what [`Owner::to_text`] wrote; None, if this is nothing of the kind.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (operation, manager) = text.split_once('/')?;
        let operation = match operation {
            "apply" => Operation::Apply,
            "update" => Operation::Update,
            _ => return None,
        };
        match path::parse(manager)? {
            Token::Field(name) if manager.len() <= MAX_MANAGER_BYTES => Some(Self::new(operation, &name)),
            Token::Field(_) | Token::Element(_) | Token::Group(_) => None,
        }
    }
}

/// Tells whether a key of a document is that of an ownership leaf, well formed or not.
pub(crate) fn is_owner_key(key: &str) -> bool {
    key.starts_with(OWNER)
}

/// Reads the key of an ownership leaf: the owner, and the path of what it owns.
pub(crate) fn parse_key(key: &str) -> Option<(Owner, &str)> {
    let rest = key.strip_prefix(OWNER)?;
    let (end, _) = rest.match_indices('/').nth(1)?;
    Some((Owner::parse(&rest[..end])?, &rest[end + 1..]))
}

/// Which managers own which leaves.
#[derive(Default, Clone, Debug, PartialEq)]
pub(crate) struct Owners {
    /// More than one, if the object was created twice at once.
    pub(crate) creators: BTreeSet<Owner>,
    /// Leaves whose owners are others than the creators.
    pub(crate) explicit: BTreeMap<String, BTreeSet<Owner>>,
}

impl Owners {
    /// Returns the owners of a leaf that is there.
    pub(crate) fn of(&self, path: &str) -> &BTreeSet<Owner> {
        self.explicit.get(path).unwrap_or(&self.creators)
    }

    /// Returns the owners of a leaf by name: none, if it is nobody's.
    pub(crate) fn named<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a Owner> + use<'a> {
        self.of(path).iter().filter(|owner| !owner.is_nobody())
    }

    /// Tells whether an applier owns a leaf that it did not own before.
    pub(crate) fn adopts(&self, path: &str, before: &BTreeSet<Owner>) -> bool {
        let mut new = self.of(path).difference(before);
        new.any(|owner| owner.operation == Operation::Apply)
    }

    /// Sets the owners of a leaf; none are the creators.
    pub(crate) fn set(&mut self, path: &str, owners: BTreeSet<Owner>) {
        if owners == self.creators || owners.is_empty() {
            self.explicit.remove(path);
        } else {
            self.explicit.insert(path.to_owned(), owners);
        }
    }

    /// Merges owners by update into one where there are more than [`MAX_UPDATERS`], as Kubernetes does: those that own the least
    /// (Kubernetes takes the oldest, and a document does not tell ages), and neither `writer`, who just wrote, nor creators, whose
    /// leaves name no owner.
    pub(crate) fn cap_updaters(&mut self, leaves: &Leaves, writer: &Owner) {
        let mut owned: BTreeMap<&Owner, usize> = BTreeMap::new();
        for path in leaves.keys().filter(|path| path::role(path) != Role::Order) {
            let named = self.named(path);
            for owner in named.filter(|owner| owner.operation == Operation::Update) {
                *owned.entry(owner).or_default() += 1;
            }
        }
        let ancient = Owner::new(Operation::Update, ANCIENT_CHANGES);
        let excess = owned.len().saturating_sub(MAX_UPDATERS);
        if excess == 0 {
            return;
        }
        let excess = excess + usize::from(!owned.contains_key(&ancient));
        let is_kept = |owner: &Owner| *owner == ancient || owner == writer || self.creators.contains(owner);
        let mut merged: Vec<(usize, &Owner)> = owned
            .into_iter()
            .filter(|(owner, _)| !is_kept(owner))
            .map(|(owner, count)| (count, owner))
            .collect();
        merged.sort_unstable();
        let merged: BTreeSet<Owner> = merged
            .into_iter()
            .take(excess)
            .map(|(_, owner)| owner.clone())
            .collect();
        for path in leaves.keys() {
            let before = self.of(path);
            if before.is_disjoint(&merged) {
                continue;
            }
            let mut after: BTreeSet<Owner> = before.difference(&merged).cloned().collect();
            after.insert(ancient.clone());
            self.set(path, after);
        }
    }

    pub(crate) fn to_leaves(&self) -> Leaves {
        let mut leaves = Leaves::new();
        for (path, owners) in &self.explicit {
            for owner in owners {
                let key = format!("{OWNER}{}/{path}", owner.to_text());
                leaves.insert(key, ScalarValue::Boolean(true));
            }
        }
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_survive_their_text() {
        for manager in ["kubectl", "a/b", "", "[x]", "~", "@owner"] {
            for operation in [Operation::Apply, Operation::Update] {
                let owner = Owner::new(operation, manager);
                assert_eq!(Owner::parse(&owner.to_text()), Some(owner.clone()));
                let owners = Owners {
                    explicit: BTreeMap::from([("spec/replicas".to_owned(), BTreeSet::from([owner.clone()]))]),
                    ..Owners::default()
                };
                let leaves = owners.to_leaves();
                let keys: Vec<_> = leaves.keys().map(|key| parse_key(key)).collect();
                assert_eq!(keys, [Some((owner, "spec/replicas"))]);
            }
        }
    }

    #[test]
    fn refuses_what_names_no_owner() {
        for bad in [
            "@owner/kubectl/spec",
            "@owner/apply/kubectl",
            "@owner/other/kubectl/spec",
            "@creator",
        ] {
            assert_eq!(parse_key(bad), None, "{bad}");
        }
    }
}
