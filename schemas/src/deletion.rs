//! How objects end: the grace that they get, the mark of a deletion, what holds them, and what becomes of what they own. Pure.
//!
//! Who takes a marked object away at last is in the kind table ([`crate::KindRow::ending`]).

use serde_json::Value;

use crate::{Ending, Kind, Object, time};

/// Kubernetes' default of `spec.terminationGracePeriodSeconds`.
pub const DEFAULT_GRACE_SECONDS: u32 = 30;

/// What becomes of what an object owns (`DeleteOptions.propagationPolicy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Propagation {
    /// It goes after the owner.
    Background,
    /// It goes before the owner.
    Foreground,
    /// It stays, without the owner.
    Orphan,
}

impl Propagation {
    /// The finalizer that holds an owner until the garbage collector has seen to what it owns, as Kubernetes names it.
    pub fn finalizer(self) -> Option<&'static str> {
        match self {
            Propagation::Background => None,
            Propagation::Foreground => Some("foregroundDeletion"),
            Propagation::Orphan => Some("orphan"),
        }
    }

    /// Returns what an object that is being deleted waits for. Of both, leaving what it owns counts.
    pub fn of(object: &Object) -> Propagation {
        let waits_for = |one: &Propagation| {
            one.finalizer()
                .is_some_and(|name| finalizers(object).contains(&name))
        };
        let known = [Propagation::Orphan, Propagation::Foreground];
        known
            .into_iter()
            .find(waits_for)
            .unwrap_or(Propagation::Background)
    }

    /// Returns the object with the finalizer of this propagation and of no other.
    pub fn set(self, object: &Object) -> Object {
        let others = [Propagation::Foreground, Propagation::Orphan].map(Propagation::finalizer);
        let mut names = finalizers(object);
        names.retain(|name| !others.contains(&Some(*name)));
        names.extend(self.finalizer());
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut object = object.clone();
        if names.is_empty() {
            object.remove(&["metadata", "finalizers"]);
        } else {
            object.set(&["metadata", "finalizers"], names);
        }
        object
    }
}

fn finalizers(object: &Object) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Tells whether a finalizer (`metadata.finalizers`) keeps an object that is being deleted.
pub fn is_held(object: &Object) -> bool {
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// Returns the seconds that an object gives itself to end: `spec.terminationGracePeriodSeconds` of a pod, 0 of others.
pub fn own_grace_seconds(kind: Kind, object: &Object) -> i64 {
    match kind.row().ending {
        Ending::ByNode => object
            .i64_at("/spec/terminationGracePeriodSeconds")
            .unwrap_or(DEFAULT_GRACE_SECONDS.into())
            .max(0),
        Ending::ByController | Ending::AtOnce => 0,
    }
}

/// Returns the seconds that an object has before it goes, when a user deletes it with the grace that was `asked` for
/// (`DeleteOptions.gracePeriodSeconds`); None if it goes at once.
pub fn grace_seconds(kind: Kind, object: &Object, asked: Option<i64>) -> Option<i64> {
    match kind.row().ending {
        Ending::ByController => Some(0),
        Ending::ByNode => {
            let placed = !object.str_at("/spec/nodeName").is_empty();
            let ended = matches!(object.str_at("/status/phase"), "Succeeded" | "Failed");
            let grace = match asked {
                _ if !placed || ended => 0,
                Some(seconds) => seconds.max(0),
                // 0 would be a deletion by force, which has to be asked for.
                None => own_grace_seconds(kind, object).max(1),
            };
            (is_held(object) || grace > 0).then_some(grace)
        }
        Ending::AtOnce => is_held(object).then_some(0),
    }
}

/// Marks an object as being deleted. The mark is made once; a later deletion can only shorten the grace.
pub fn marked(object: &Object, grace_seconds: i64, now_unix_seconds: i64) -> Object {
    let mut object = object.clone();
    let shorter = match object.i64_at("/metadata/deletionGracePeriodSeconds") {
        Some(before) if object.is_terminating() => grace_seconds < before,
        _ => !object.is_terminating(),
    };
    if shorter {
        let end = time::to_rfc3339(now_unix_seconds.saturating_add(grace_seconds));
        object.set(&["metadata", "deletionTimestamp"], end);
        object.set(&["metadata", "deletionGracePeriodSeconds"], grace_seconds);
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ObjectKey;

    fn object(kind: Kind, spec: Value) -> Object {
        let mut object = Object::new(&ObjectKey::new(kind, "default", "web"));
        object.set(&["spec"], spec);
        object
    }

    #[test]
    fn pods_get_a_grace_only_where_they_run() {
        let check = |spec: Value, asked: Option<i64>, expected: Option<i64>| {
            let pod = object(Kind::Pod, spec.clone());
            assert_eq!(
                grace_seconds(Kind::Pod, &pod, asked),
                expected,
                "{spec} {asked:?}"
            );
        };
        check(json!({}), None, None);
        check(json!({"nodeName": "n1"}), None, Some(30));
        check(
            json!({"nodeName": "n1", "terminationGracePeriodSeconds": 5}),
            None,
            Some(5),
        );
        check(
            json!({"nodeName": "n1", "terminationGracePeriodSeconds": 0}),
            None,
            Some(1),
        );
        check(json!({"nodeName": "n1"}), Some(2), Some(2));
        check(json!({"nodeName": "n1"}), Some(0), None);
    }

    #[test]
    fn finalizers_hold_what_would_go_at_once() {
        for kind in [Kind::Pod, Kind::Service, Kind::ReplicaSet] {
            let mut held = object(kind, json!({}));
            assert_eq!((is_held(&held), grace_seconds(kind, &held, None)), (false, None));
            held.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
            assert_eq!(
                (is_held(&held), grace_seconds(kind, &held, None)),
                (true, Some(0))
            );
        }
        assert_eq!(
            grace_seconds(Kind::Namespace, &object(Kind::Namespace, json!({})), None),
            Some(0)
        );
    }

    #[test]
    fn one_finalizer_says_what_becomes_of_what_an_object_owns() {
        let mut owner = object(Kind::ReplicaSet, json!({}));
        owner.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
        let finalizers = |object: &Object| object.pointer("/metadata/finalizers").cloned();
        let orphan = Propagation::Orphan.set(&owner);
        assert_eq!(finalizers(&orphan), Some(json!(["example.com/hold", "orphan"])));
        assert_eq!(Propagation::of(&orphan), Propagation::Orphan);
        let foreground = Propagation::Foreground.set(&orphan);
        assert_eq!(
            finalizers(&foreground),
            Some(json!(["example.com/hold", "foregroundDeletion"]))
        );
        assert_eq!(Propagation::of(&foreground), Propagation::Foreground);
        assert_eq!(Propagation::Background.set(&foreground), owner);
        assert_eq!(Propagation::of(&owner), Propagation::Background);
        owner.remove(&["metadata", "finalizers"]);
        assert_eq!(
            finalizers(&Propagation::Background.set(&Propagation::Orphan.set(&owner))),
            None
        );
    }

    #[test]
    fn only_pods_give_themselves_time() {
        for (kind, expected) in [(Kind::Pod, 30), (Kind::ReplicaSet, 0), (Kind::Namespace, 0)] {
            assert_eq!(
                own_grace_seconds(kind, &object(kind, json!({}))),
                expected,
                "{kind}"
            );
        }
    }

    #[test]
    fn a_second_deletion_only_shortens_the_grace() {
        let first = marked(&object(Kind::Pod, json!({})), 30, 100);
        assert_eq!(
            first.str_at("/metadata/deletionTimestamp"),
            "1970-01-01T00:02:10Z"
        );
        assert_eq!(marked(&first, 60, 110), first);
        let shorter = marked(&first, 5, 110);
        assert_eq!(
            shorter.str_at("/metadata/deletionTimestamp"),
            "1970-01-01T00:01:55Z"
        );
    }
}
