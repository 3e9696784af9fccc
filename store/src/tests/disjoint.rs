//! P2: edits of different fields never undo one another, in generated objects of every kind.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ScalarValue;
use proptest::prelude::*;
use proptest::sample::Index;
use schemas::Kind;

use super::generated::*;
use super::properties::cases;
use super::*;
use crate::leaves::{self, Edits, Leaves};
use crate::path::{self, Role};
use crate::record::show;

/// What happens in a history.
#[derive(Clone, Debug)]
enum Step {
    /// One of the edits, by the replica whose it is.
    Edit(Index),
    Exchange(Index, Index),
    Squash(Index, Vec<bool>),
    /// Delivers a frame that was pushed at some time, perhaps again.
    Deliver(Index, Index),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || any::<Index>();
    prop_oneof![
        8 => at().prop_map(Step::Edit),
        2 => (at(), at()).prop_map(|(from, to)| Step::Exchange(from, to)),
        2 => (at(), prop::collection::vec(any::<bool>(), 5)).prop_map(|(at, hear)| Step::Squash(at, hear)),
        4 => (at(), at()).prop_map(|(frame, to)| Step::Deliver(frame, to)),
    ]
}

#[derive(Clone, Debug)]
struct History {
    kind: Kind,
    object: Object,
    /// Edits of the object, each of a replica.
    touches: Vec<(Index, Touch, Index)>,
    steps: Vec<Step>,
}

fn history() -> impl Strategy<Value = History> {
    let touches = prop::collection::vec((any::<Index>(), touch(), any::<Index>()), 1..24);
    let of_kind = any_kind().prop_flat_map(|kind| (Just(kind), small_object(kind)));
    let steps = prop::collection::vec(step(), 1..60);
    (of_kind, touches, steps).prop_map(|((kind, object), touches, steps)| History {
        kind,
        object,
        touches,
        steps,
    })
}

/// What is a field of its own: the order of lists is nobody's.
fn is_field(path: &str) -> bool {
    path::role(path) != Role::Order
}

/// Tells whether one of two fields is below the other: a keyed list in which an element lacks its key is one value, and who
/// writes that writes over the fields of all elements.
fn are_nested(one: &str, other: &str) -> bool {
    let is_below = |path: &str, above: &str| {
        let rest = path.strip_prefix(above);
        rest.is_some_and(|rest| rest.starts_with('/'))
    };
    is_below(one, other) || is_below(other, one)
}

fn apply(leaves: &mut Leaves, edits: &Edits) {
    leaves.retain(|path, _| !edits.deletes.contains(path));
    leaves.extend(edits.puts.iter().cloned());
}

/// Gives each field that is edited to one replica, and returns what each edits. Left out are edits of several fields, but for
/// new elements.
fn disjoint(history: &History, object: &Object, count: usize) -> Vec<(usize, Edits)> {
    let kind = history.kind;
    let mut stripped = object.clone();
    leaves::strip_system_fields(&mut stripped);
    let before = leaves::flatten(kind, &stripped, &Leaves::new());
    let packed = leaves::pack(kind, before.clone());
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    let mut edits = Vec::new();
    for (place, touch, replica) in &history.touches {
        let mut edited = object.clone();
        touch.perform(kind, &mut edited, *place);
        leaves::strip_system_fields(&mut edited);
        let after = leaves::flatten(kind, &edited, &before);
        let change = leaves::diff(&packed, &leaves::pack(kind, after.clone()));
        let puts = change.puts.iter().map(|(path, _)| path);
        let fields: BTreeSet<&String> = puts
            .chain(&change.deletes)
            .filter(|path| is_field(path))
            .collect();
        let is_new = change.deletes.is_empty() && fields.iter().all(|path| !packed.contains_key(*path));
        if fields.is_empty() || fields.len() > 1 && !is_new {
            continue;
        }
        let is_entangled = |owned: &String| fields.iter().any(|path| are_nested(owned, path));
        let owning: BTreeSet<usize> = fields
            .iter()
            .filter_map(|path| owners.get(*path).copied())
            .collect();
        let replica = owning.first().copied().unwrap_or(replica.index(count));
        // Two edits that add one element with different fields are edits of one field too.
        if owning.len() > 1 || owners.keys().any(is_entangled) {
            continue;
        }
        owners.extend(fields.into_iter().map(|path| (path.clone(), replica)));
        edits.push((replica, leaves::diff(&before, &after)));
    }
    edits
}

fn held(store: &Store, key: &ObjectKey) -> Leaves {
    let record = store.shared.index().record(key).unwrap();
    store.shared.load(key, &record).unwrap().contents().leaves
}

/// Edits the object as it is now at a store; false, if that cannot be: an element without its key makes one value of its list.
async fn edit_leaves(store: &Store, key: &ObjectKey, edits: &Edits) -> bool {
    let mut leaves = held(store, key);
    apply(&mut leaves, edits);
    let object = leaves::materialise(&leaves);
    let again = leaves::flatten(key.kind, &object, &leaves);
    if leaves::materialise(&again) != object || fields(again) != fields(leaves) {
        return false;
    }
    let record = store.shared.index().record(key).unwrap();
    let edited = show(key, String::new(), &record, object);
    edit(store, key, |object| *object = edited.clone()).await;
    true
}

/// What is shown of an object. What is remembered of elements that were removed may be forgotten.
fn fields(leaves: Leaves) -> Leaves {
    let is_shown = |path: &str, value: &ScalarValue| {
        is_field(path) && !(path::role(path) == Role::Presence && matches!(value, ScalarValue::Int(..=0)))
    };
    let shown = leaves.into_iter().filter(|(path, value)| is_shown(path, value));
    shown.collect()
}

async fn run(count: usize, history: History) {
    let key = ObjectKey::new(history.kind, "default", "x");
    let stores: Vec<Store> = (0..count).map(|number| store(&format!("node{number}"))).collect();
    let mut pushes: Vec<_> = stores.iter().map(Store::pushes).collect();
    let object = placed(&key, &history.object);
    stores[0].create(object.clone(), author("x")).await.unwrap();
    for other in &stores[1..] {
        exchange(&stores[0], other).await;
    }
    let edits = disjoint(&history, &object, count);
    let mut expected = held(&stores[0], &key);
    let mut frames = Vec::new();
    for step in &history.steps {
        match step {
            Step::Edit(_) if edits.is_empty() => {}
            Step::Edit(at) => {
                let (replica, edits) = at.get(&edits);
                if edit_leaves(&stores[*replica], &key, edits).await {
                    apply(&mut expected, edits);
                }
            }
            Step::Exchange(from, to) => {
                exchange(from.get(&stores), to.get(&stores)).await;
            }
            Step::Squash(at, hear) => {
                let stores: Vec<&Store> = stores.iter().collect();
                squash(&stores, at.index(count), hear, 3, 1).await;
            }
            Step::Deliver(frame, to) => {
                if !frames.is_empty() {
                    let frame: &bytes::Bytes = frame.get(&frames);
                    let peer = NodeId("peer".to_owned());
                    to.get(&stores).receive(&peer, frame).await.unwrap();
                }
            }
        }
        for (store, pushes) in stores.iter().zip(&mut pushes) {
            while let Ok(push) = pushes.try_recv() {
                frames.push(store.push_frame(&[push]).unwrap());
            }
        }
    }
    for _ in 0..2 {
        for from in &stores {
            for to in &stores {
                exchange(from, to).await;
            }
        }
    }
    let expected = fields(expected);
    for store in &stores {
        assert_eq!(fields(held(store, &key)), expected);
        assert_eq!(
            plain(&store.get(&key).unwrap().object),
            plain(&stores[0].get(&key).unwrap().object)
        );
        assert_eq!(store.digest(), stores[0].digest());
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// P2: edits of different fields all survive, whoever makes them, where and when.
    #[test]
    fn edits_of_different_fields_survive(count in 2..=5_usize, history in history()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(count, history));
    }
}
