//! What is to go because its owner or its namespace went. Pure.
//!
//! An owner is gone only when a tombstone covers its uid; that it is not there proves nothing, it may be on its way.

use schemas::deletion::{Propagation, is_held};
use schemas::{Ending, Kind, Object, ObjectKey};

use crate::action::Action;

/// Decides on an object with owners: it goes when all of them were removed.
pub fn collect(object: &Object, removed: impl Fn(&ObjectKey, &str) -> bool) -> Option<Action> {
    let owners = object.owner_references();
    let namespace = object.namespace();
    let is_garbage = !owners.is_empty()
        && owners.iter().all(|owner| {
            Kind::from_api(&owner.api_version, &owner.kind)
                .is_some_and(|kind| removed(&ObjectKey::new(kind, namespace, &owner.name), &owner.uid))
        });
    is_garbage.then(|| end(object)).flatten()
}

/// Decides on what an object owns that is being deleted and waits for the garbage collector: it is let go, or goes first;
/// then the object itself. `owned` refers to the object by its uid. Source: Kubernetes, `garbagecollector`.
pub fn finish<'a>(owner: &Object, owned: impl Iterator<Item = &'a Object>) -> Vec<Action> {
    let (Some(key), uid) = (owner.key(), owner.uid().to_owned()) else {
        return Vec::new();
    };
    let propagation = Propagation::of(owner);
    if is_over(owner) {
        return vec![Action::Remove { key, uid }];
    }
    let reference = |object: &Object| object.owner_references().into_iter().find(|one| one.uid == uid);
    let mut actions = Vec::new();
    let mut is_waiting = false;
    for object in owned {
        let (Some(reference), Some(key)) = (reference(object), object.key()) else {
            continue;
        };
        let is_alone = object.owner_references().len() == 1;
        match propagation {
            Propagation::Background => return Vec::new(),
            Propagation::Foreground if is_alone => {
                // What does not hold its owner goes after it, as in the background.
                if reference.block_owner_deletion != Some(true) {
                    continue;
                }
                let has_own = key.kind.row().owner && !object.is_terminating();
                actions.extend(match has_own {
                    true => Some(Action::DeleteForeground {
                        key,
                        uid: object.uid().to_owned(),
                    }),
                    false if Propagation::of(object) != Propagation::Background => None,
                    false => end(object),
                });
            }
            // Another owner keeps it.
            Propagation::Foreground | Propagation::Orphan => actions.push(Action::Release {
                key,
                uid: object.uid().to_owned(),
                owner: uid.clone(),
            }),
        }
        is_waiting = true;
    }
    if !is_waiting && propagation != Propagation::Background {
        let is_held_by_others = is_held(&Propagation::Background.set(owner));
        actions.push(match is_held_by_others {
            true => Action::Unhold { key, uid },
            false => Action::Remove { key, uid },
        });
    }
    actions
}

/// Tells whether nothing holds an object that is being deleted and that nobody stops first.
pub fn is_over(object: &Object) -> bool {
    let ending = object.kind().map(|kind| kind.row().ending);
    object.is_terminating() && !is_held(object) && ending == Some(Ending::AtOnce)
}

/// Returns what ends an object: a pod on a node gracefully, what has finalizers with the last of them, everything else at
/// once. None: it is ending already.
pub fn end(object: &Object) -> Option<Action> {
    let (key, uid) = (object.key()?, object.uid().to_owned());
    let is_placed_pod = key.kind == Kind::Pod && !object.str_at("/spec/nodeName").is_empty();
    match (is_placed_pod || is_held(object), object.is_terminating()) {
        (true, true) => None,
        (true, false) => Some(Action::Delete { key, uid }),
        (false, _) => Some(Action::Remove { key, uid }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_tombstone_of_every_owner_makes_garbage() {
        let owner =
            |name: &str| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name});
        let removed = |key: &ObjectKey, uid: &str| key.kind == Kind::ReplicaSet && uid == "removed";
        for (owners, node, goes) in [
            (json!([]), "a", None),
            (json!([owner("absent")]), "a", None),
            (json!([owner("removed"), owner("absent")]), "a", None),
            (
                json!([{"apiVersion": "v9", "kind": "X", "name": "x", "uid": "removed"}]),
                "a",
                None,
            ),
            (json!([owner("removed")]), "a", Some("delete")),
            (json!([owner("removed")]), "", Some("remove")),
        ] {
            let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", "web"));
            pod.set(&["metadata", "ownerReferences"], owners.clone());
            pod.set(&["spec", "nodeName"], node);
            let action = collect(&pod, removed).map(|action| match action {
                Action::Delete { .. } => "delete",
                _ => "remove",
            });
            assert_eq!(action, goes, "{owners}");
        }
    }

    #[test]
    fn finalizers_hold_what_goes() {
        for (kind, node, finalizers, terminating, expected) in [
            (Kind::ReplicaSet, "", json!([]), false, Some("remove")),
            (
                Kind::ReplicaSet,
                "",
                json!(["example.com/hold"]),
                false,
                Some("delete"),
            ),
            (Kind::ReplicaSet, "", json!(["example.com/hold"]), true, None),
            (Kind::ReplicaSet, "", json!([]), true, Some("remove")),
            (Kind::Pod, "", json!(["example.com/hold"]), true, None),
            (Kind::Pod, "a", json!([]), true, None),
        ] {
            let mut object = Object::new(&ObjectKey::new(kind, "default", "web"));
            object.set(&["metadata", "finalizers"], finalizers.clone());
            if !node.is_empty() {
                object.set(&["spec", "nodeName"], node);
            }
            if terminating {
                object.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
            }
            let action = end(&object).map(|action| match action {
                Action::Delete { .. } => "delete",
                _ => "remove",
            });
            assert_eq!(action, expected, "{kind} {node} {finalizers} {terminating}");
        }
    }
}
