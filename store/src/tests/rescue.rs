//! Edits that were acknowledged and cannot be kept are set aside, once, and nothing else is.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use schemas::{Kind, time};

use super::generated::{any_kind, placed, small_object};
use super::properties::cases;
use super::*;
use crate::{Lost, Rescued};

fn key() -> ObjectKey {
    key_of(&deployment("web"))
}

fn controller() -> Author {
    Author {
        user: String::new(),
        via: Via::Controller,
        ..author("controller")
    }
}

async fn set(store: &Store, key: &ObjectKey, author: Author, path: &[&str], value: impl Into<Value> + Send) {
    let value = value.into();
    let result: Result<View, WriteError> = store
        .update(key, &Precondition::default(), author, |object| {
            let mut changed = object.clone();
            changed.set(path, value.clone());
            Ok(changed)
        })
        .await;
    result.unwrap();
}

async fn remove(store: &Store, key: &ObjectKey, author: Author) {
    store.remove(key, &Precondition::default(), author).await.unwrap();
}

/// Replicas of one object, made by the first.
async fn replicas<const N: usize>(object: Object) -> [Store; N] {
    let stores = std::array::from_fn(|number| store(&format!("node{number}")));
    let [first, others @ ..] = stores.as_slice() else {
        panic!("no replicas")
    };
    first.create(object, author("x")).await.unwrap();
    for other in others {
        exchange(first, other).await;
    }
    stores
}

async fn heal(stores: &[Store]) {
    for from in stores {
        for to in stores {
            exchange(from, to).await;
        }
    }
    for store in stores {
        assert_eq!(store.digest(), stores[0].digest());
    }
}

/// What each store has set aside: `spec.replicas`, or the empty text.
fn rescued(stores: &[Store]) -> Vec<Vec<String>> {
    let replicas = |rescued: &Arc<Rescued>| {
        let replicas = rescued.object.pointer("/spec/replicas").cloned();
        replicas.map(|replicas| replicas.to_string()).unwrap_or_default()
    };
    let of = |store: &Store| store.rescued().iter().map(replicas).collect();
    stores.iter().map(of).collect()
}

#[tokio::test]
async fn an_edit_that_the_deleter_had_not_seen_is_set_aside_by_its_node_alone() {
    let stores: [Store; 3] = replicas(deployment("web")).await;
    let uid = stores[0].get(&key()).unwrap().object.uid().to_owned();
    remove(&stores[0], &key(), author("x")).await;
    set(&stores[1], &key(), author("psctl"), &["spec", "replicas"], 9).await;
    exchange(&stores[1], &stores[2]).await;
    let woken = stores[1].rescues();
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec!["9".to_owned()], vec![]]);
    assert!(stores.iter().all(|store| store.get(&key()).is_none()));
    woken.notified().await;
    let rescue = stores[1].rescued().remove(0);
    assert_eq!(
        (rescue.why, rescue.user.as_str(), rescue.manager.as_str()),
        (Lost::Deleted, "admin", "psctl")
    );
    assert_eq!(rescue.object.uid(), uid);
    assert_eq!(rescue.edited_unix_seconds, author("x").unix_seconds);
    assert_eq!(rescue.object.key(), Some(key()));
}

#[tokio::test]
async fn what_is_set_aside_survives_until_it_is_forgotten() {
    let disk = MemoryDisk::default();
    let (a, b) = (
        store("a"),
        Store::open_in_memory(disk.clone(), options("b")).unwrap(),
    );
    for (kind, name) in [(Kind::Deployment, "web"), (Kind::ApiToken, "secret-token")] {
        let key = match kind {
            Kind::Deployment => key(),
            _ => ObjectKey::cluster(kind, name),
        };
        let mut object = Object::new(&key);
        object.set(&["spec", "note"], "confidential-value");
        a.create(object, author("x")).await.unwrap();
        exchange(&a, &b).await;
        remove(&a, &key, author("x")).await;
        set(&b, &key, author("x"), &["spec", "note"], "confidential-value-2").await;
        exchange(&a, &b).await;
    }
    let before = b.rescued();
    assert_eq!(before.len(), 2);
    b.close().await;
    let mut open = 0;
    crate::disk::Disk::scan(&disk, crate::rescue::RESCUED, &mut |key, value| {
        let is_open = value.windows(18).any(|window| window == b"confidential-value");
        assert_eq!(is_open, key.starts_with(b"r/deployments"), "{key:?}");
        open += usize::from(is_open);
    })
    .unwrap();
    assert_eq!(open, 1);
    let again = |disk: &MemoryDisk| Store::open_in_memory(disk.after_power_loss(), options("b")).unwrap();
    assert_eq!(again(&disk).rescued(), before);
    let disk = disk.after_power_loss();
    let b = Store::open_in_memory(disk.clone(), options("b")).unwrap();
    b.forget_rescued(&before[0].id).await.unwrap();
    assert_eq!(b.rescued(), before[1..]);
    assert_eq!(again(&disk).rescued(), before[1..]);
}

#[tokio::test]
async fn what_the_deleter_saw_is_not_set_aside() {
    // The last edit, and what only controllers did on top of it where it was not deleted.
    let stores: [Store; 3] = replicas(deployment("web")).await;
    set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
    heal(&stores).await;
    set(
        &stores[1],
        &key(),
        controller(),
        &["metadata", "annotations", "n"],
        "1",
    )
    .await;
    // Asked for on a node that sees no more of it than that.
    mark(&stores[2], &key(), author("x")).await;
    exchange(&stores[2], &stores[0]).await;
    set(
        &stores[0],
        &key(),
        controller(),
        &["metadata", "annotations", "m"],
        "1",
    )
    .await;
    remove(&stores[0], &key(), controller()).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec![], Vec::<String>::new()]);
}

/// Asks for a deletion that somebody else finishes.
async fn mark(store: &Store, key: &ObjectKey, author: Author) {
    let mark = time::to_rfc3339(1_700_000_000);
    set(store, key, author, &["metadata", "deletionTimestamp"], mark).await;
}

#[tokio::test]
async fn an_edit_made_while_a_deletion_was_asked_for_is_set_aside_whoever_finishes_it() {
    for last in 0..3 {
        let stores: [Store; 3] = replicas(deployment("web")).await;
        // Its author loses nothing: the deleter has seen it.
        set(
            &stores[2],
            &key(),
            author("x"),
            &["metadata", "labels", "seen"],
            "x",
        )
        .await;
        exchange(&stores[2], &stores[0]).await;
        mark(&stores[0], &key(), author("x")).await;
        set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
        heal(&stores).await;
        remove(&stores[last], &key(), controller()).await;
        heal(&stores).await;
        assert_eq!(
            rescued(&stores),
            [vec![], vec!["9".to_owned()], vec![]],
            "finished by {last}"
        );
    }
}

#[tokio::test]
async fn what_is_edited_in_the_knowledge_that_it_goes_is_not_set_aside() {
    let mut held = deployment("web");
    held.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
    let stores: [Store; 3] = replicas(held).await;
    mark(&stores[0], &key(), author("x")).await;
    heal(&stores).await;
    // As who holds it does, with a user's name.
    set(
        &stores[1],
        &key(),
        author("x"),
        &["metadata", "finalizers"],
        json!([]),
    )
    .await;
    remove(&stores[1], &key(), author("x")).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec![], Vec::<String>::new()]);
}

#[tokio::test]
async fn of_an_ending_namespace_what_its_deleter_had_not_seen_is_set_aside_and_nothing_else() {
    for collector in 0..3 {
        let stores: [Store; 3] = replicas(namespace("default")).await;
        let name = ObjectKey::cluster(Kind::Namespace, "default");
        for (at, seen) in ["api", "held", "web"].into_iter().enumerate() {
            stores[at].create(deployment(seen), author("x")).await.unwrap();
        }
        heal(&stores).await;
        mark(&stores[0], &name, author("x")).await;
        // On the other side: something new, and an edit of what was there.
        let mut new = deployment("new");
        new.set(&["spec", "replicas"], 5);
        stores[1].create(new, author("x")).await.unwrap();
        set(
            &stores[2],
            &key_of(&deployment("held")),
            author("x"),
            &["spec", "replicas"],
            9,
        )
        .await;
        heal(&stores).await;
        // As the garbage collector does, on any node: what is held it marks first.
        let at = &stores[collector];
        mark(at, &key_of(&deployment("held")), controller()).await;
        for object in ["api", "held", "new", "web"] {
            remove(at, &key_of(&deployment(object)), controller()).await;
        }
        remove(at, &name, controller()).await;
        heal(&stores).await;
        assert_eq!(
            rescued(&stores),
            [vec![], vec!["5".to_owned()], vec!["9".to_owned()]],
            "collected by {collector}"
        );
    }
}

#[tokio::test]
async fn an_edit_below_what_a_controller_did_elsewhere_is_set_aside() {
    let stores: [Store; 3] = replicas(deployment("web")).await;
    set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
    exchange(&stores[1], &stores[0]).await;
    set(
        &stores[0],
        &key(),
        controller(),
        &["metadata", "annotations", "n"],
        "1",
    )
    .await;
    exchange(&stores[1], &stores[0]).await;
    remove(&stores[2], &key(), author("x")).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec!["9".to_owned()], vec![]]);
}

#[tokio::test]
async fn an_edit_of_what_is_made_anew_elsewhere_is_set_aside() {
    let stores: [Store; 2] = replicas(deployment("web")).await;
    remove(&stores[0], &key(), author("x")).await;
    stores[0].create(deployment("web"), author("x")).await.unwrap();
    set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec!["9".to_owned()]]);
    assert_eq!(
        plain(&stores[1].get(&key()).unwrap().object),
        plain(&deployment("web"))
    );
}

#[tokio::test]
async fn what_is_made_in_a_namespace_that_is_deleted_elsewhere_is_set_aside() {
    let stores: [Store; 3] = replicas(namespace("default")).await;
    let name = ObjectKey::cluster(Kind::Namespace, "default");
    remove(&stores[0], &name, author("x")).await;
    stores[1].create(deployment("web"), author("x")).await.unwrap();
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec![], Vec::<String>::new()]);
    // As the garbage collector does, on any node.
    remove(&stores[2], &key(), controller()).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], vec!["3".to_owned()], vec![]]);

    // The collector's own.
    stores[2].create(deployment("db"), author("x")).await.unwrap();
    stores[0].create(namespace("default"), author("x")).await.unwrap();
    heal(&stores).await;
    remove(&stores[0], &name, author("x")).await;
    let key = stores[2]
        .create(deployment("web"), author("x"))
        .await
        .unwrap()
        .key;
    heal(&stores).await;
    remove(&stores[2], &key, controller()).await;
    heal(&stores).await;
    assert_eq!(stores[2].rescued().len(), 1);
    assert_eq!(stores[0].rescued().len(), 0);
}

#[tokio::test]
async fn what_a_controller_owns_is_not_set_aside() {
    let mut owned = deployment("web");
    owned.set(
        &["metadata", "ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": true}]),
    );
    let stores: [Store; 2] = replicas(owned).await;
    remove(&stores[0], &key(), author("x")).await;
    set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec![], Vec::<String>::new()]);
}

#[tokio::test]
async fn an_edit_that_was_squashed_is_set_aside_by_who_squashed_it() {
    let stores: [Store; 3] = replicas(deployment("web")).await;
    set(&stores[1], &key(), author("x"), &["spec", "replicas"], 9).await;
    exchange(&stores[1], &stores[0]).await;
    for number in 0..5 {
        let path = ["metadata", "annotations", "n"];
        set(&stores[0], &key(), controller(), &path, number.to_string()).await;
    }
    exchange(&stores[1], &stores[0]).await;
    let all: Vec<&Store> = stores.iter().collect();
    assert_eq!(squash(&all, 0, &[true, true, false], 4, 1).await, 1);
    exchange(&stores[1], &stores[0]).await;
    remove(&stores[2], &key(), author("x")).await;
    heal(&stores).await;
    assert_eq!(rescued(&stores), [vec!["9".to_owned()], vec![], vec![]]);
}

#[tokio::test]
async fn an_edit_of_a_copy_that_all_had_left_behind_is_set_aside() {
    let disk = MemoryDisk::default();
    let open = |disk: &MemoryDisk| Store::open_in_memory(disk.clone(), options("c")).unwrap();
    let [a, b] = replicas(deployment("web")).await;
    let c = open(&disk);
    exchange(&a, &c).await;
    let old = disk.after_power_loss();
    for round in 0..3 {
        for number in 0..4 {
            let path = ["metadata", "labels", &format!("n{round}{number}")];
            set(&a, &key(), author("x"), &path, "x").await;
        }
        for _ in 0..2 {
            exchange(&a, &b).await;
            exchange(&a, &c).await;
        }
        assert_eq!(squash(&[&a, &b, &c], 0, &[true; 3], 4, 1).await, 1);
        exchange(&a, &b).await;
        exchange(&a, &c).await;
    }
    drop(c);
    // Its machine comes back with the disk that it had long ago.
    let c = open(&old);
    set(&c, &key(), author("x"), &["spec", "replicas"], 9).await;
    exchange(&a, &c).await;
    assert_eq!(a.digest(), c.digest());
    assert_eq!(
        c.get(&key()).unwrap().object.pointer("/spec/replicas"),
        Some(&json!(3))
    );
    let waiting = c.rescued();
    assert_eq!((waiting.len(), waiting[0].why), (1, Lost::SquashedAway));
    assert_eq!(waiting[0].object.pointer("/spec/replicas"), Some(&json!(9)));
    assert_eq!((a.rescued().len(), b.rescued().len()), (0, 0));
}

#[tokio::test]
async fn an_edit_within_a_base_is_set_aside_if_the_deleter_had_not_seen_it() {
    for squashes in 0..2 {
        let (a, b) = (store("node0"), store("node1"));
        for store in [&a, &b] {
            store.create(deployment("web"), author("x")).await.unwrap();
        }
        set(&a, &key(), author("x"), &["metadata", "labels", "unseen"], "x").await;
        set(&b, &key(), author("x"), &["metadata", "labels", "seen"], "x").await;
        mark(&b, &key(), author("x")).await;
        exchange(&a, &b).await;
        assert_eq!(squash(&[&a, &b], squashes, &[true; 2], 3, 1).await, 1);
        exchange(&a, &b).await;
        remove(&a, &key(), controller()).await;
        exchange(&a, &b).await;
        let waiting: Vec<_> = [a.rescued(), b.rescued()].concat();
        assert_eq!(waiting.len(), 1, "squashed by {squashes}");
        let label = waiting[0].object.pointer("/metadata/labels/unseen");
        assert_eq!(label, Some(&json!("x")), "squashed by {squashes}");
    }
}

#[tokio::test]
async fn a_history_that_all_squashed_was_seen_by_who_deletes_it() {
    for is_marked in [false, true] {
        let stores: [Store; 2] = replicas(deployment("web")).await;
        let [a, b] = &stores;
        for number in 0..4 {
            let label = format!("n{number}");
            set(b, &key(), author("x"), &["metadata", "labels", &label], "x").await;
        }
        exchange(a, b).await;
        if is_marked {
            mark(a, &key(), author("x")).await;
            exchange(a, b).await;
        }
        assert_eq!(squash(&[a, b], 0, &[true; 2], 3, 2).await, 1);
        // The other one still has the history as it was.
        remove(a, &key(), controller()).await;
        heal(&stores).await;
        assert_eq!(
            rescued(&stores),
            [vec![], Vec::<String>::new()],
            "marked: {is_marked}"
        );
    }
}

/// What the replicas do.
#[derive(Clone, Debug)]
enum Step {
    Create(Index, usize),
    /// An edit of a user, or of a controller.
    Edit(Index, usize, bool),
    /// Asks for a deletion.
    Mark(Index, usize),
    /// Deletes, or finishes a deletion.
    Remove(Index, usize),
    Exchange(Index, Index),
    Squash(Index, Vec<bool>),
    Crash(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || any::<Index>();
    let name = || select(vec![0_usize, 1]);
    prop_oneof![
        2 => (at(), name()).prop_map(|(at, name)| Step::Create(at, name)),
        8 => (at(), name(), prop::bool::weighted(0.7)).prop_map(|(at, name, user)| Step::Edit(at, name, user)),
        1 => (at(), name()).prop_map(|(at, name)| Step::Mark(at, name)),
        2 => (at(), name()).prop_map(|(at, name)| Step::Remove(at, name)),
        5 => (at(), at()).prop_map(|(from, to)| Step::Exchange(from, to)),
        2 => (at(), prop::collection::vec(any::<bool>(), 4)).prop_map(|(at, hear)| Step::Squash(at, hear)),
        1 => at().prop_map(Step::Crash),
    ]
}

/// Object (by uid) and label: each edit of a user sets a label of its own, which nobody takes away.
type Edits = BTreeSet<(String, String)>;

fn labels(object: &Object) -> Edits {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let names = labels.into_iter().flat_map(|labels| labels.keys());
    names
        .map(|name| (object.uid().to_owned(), name.clone()))
        .collect()
}

/// Runs a history, and returns the edits that are neither there, nor were seen by who deleted their object, nor set aside.
async fn run(kind: Kind, mut tree: Object, count: usize, steps: Vec<Step>) -> Edits {
    // What a controller owns is not set aside.
    tree.remove(&["metadata", "ownerReferences"]);
    let keys = ["a", "b"].map(|name| ObjectKey::new(kind, "default", name));
    let open = |disk: MemoryDisk, number: usize| {
        let store = Store::open_in_memory(disk.clone(), options(&format!("node{number}"))).unwrap();
        (store, disk)
    };
    let mut nodes: Vec<(Store, MemoryDisk)> = (0..count)
        .map(|number| open(MemoryDisk::default(), number))
        .collect();
    let (mut edits, mut seen, mut next) = (Edits::new(), Edits::new(), 0);
    for step in steps {
        match step {
            Step::Create(at, name) => {
                let object = placed(&keys[name], &tree);
                // It may be there.
                let _ = at.get(&nodes).0.create(object, author("x")).await;
            }
            Step::Edit(at, name, by_user) => {
                let store = &at.get(&nodes).0;
                if let Some(view) = store.get(&keys[name]) {
                    next += 1;
                    let label = format!("edit{next}");
                    let by = if by_user { author("x") } else { controller() };
                    set(store, &keys[name], by, &["metadata", "labels", &label], "x").await;
                    let is_edit = by_user && !view.object.is_terminating();
                    edits.extend(is_edit.then(|| (view.object.uid().to_owned(), label)));
                }
            }
            Step::Mark(at, name) => {
                let store = &at.get(&nodes).0;
                let view = store.get(&keys[name]);
                if let Some(view) = view.filter(|view| !view.object.is_terminating()) {
                    mark(store, &keys[name], author("x")).await;
                    seen.extend(labels(&view.object));
                }
            }
            Step::Remove(at, name) => {
                let (store, any) = (&at.get(&nodes).0, Precondition::default());
                let removed = store.remove(&keys[name], &any, author("x")).await;
                if let Some(view) = removed.ok().filter(|view| !view.object.is_terminating()) {
                    seen.extend(labels(&view.object));
                }
            }
            Step::Exchange(from, to) => {
                exchange(&from.get(&nodes).0, &to.get(&nodes).0).await;
            }
            Step::Squash(at, hear) => {
                let stores: Vec<&Store> = nodes.iter().map(|(store, _)| store).collect();
                squash(&stores, at.index(count), &hear, 3, 1).await;
            }
            Step::Crash(at) => {
                let at = at.index(count);
                nodes[at] = open(nodes[at].1.after_power_loss(), at);
            }
        }
    }
    for _ in 0..2 {
        for (from, _) in &nodes {
            for (to, _) in &nodes {
                exchange(from, to).await;
            }
        }
    }
    let mut kept = seen;
    for (number, (store, disk)) in nodes.iter().enumerate() {
        for key in &keys {
            kept.extend(store.get(key).iter().flat_map(|view| labels(&view.object)));
        }
        let waiting = store.rescued();
        assert_eq!(
            open(disk.after_power_loss(), number).0.rescued(),
            waiting,
            "durable"
        );
        kept.extend(waiting.iter().flat_map(|rescued| labels(&rescued.object)));
    }
    edits.difference(&kept).cloned().collect()
}

proptest! {
    #![proptest_config(cases(32))]

    /// P5: no edit of a user disappears: it is in the object, or whoever deleted the object had seen it, or it is set aside.
    #[test]
    fn no_edit_disappears(
        (kind, object) in any_kind().prop_flat_map(|kind| (Just(kind), small_object(kind))),
        count in 2..5_usize,
        steps in prop::collection::vec(step(), 10..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert_eq!(runtime.block_on(run(kind, object, count, steps)), Edits::new());
    }
}
