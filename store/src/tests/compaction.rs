//! Long histories are squashed, and nothing is lost by it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use schemas::Kind;

use super::generated::{any_kind, placed, small_object};
use super::properties::cases;
use super::*;
use crate::compaction::{LONG, PROPOSED_MAX};
use crate::disk::Disk;
use crate::frame::{self, Agreement, Body, Delta, Header, Heads, Item};
use crate::promises::PROMISES;

fn label(object: &mut Object, name: &str, value: &str) {
    object.set(&["metadata", "labels", name], value);
}

fn containers(object: &mut Object) -> &mut Vec<Value> {
    object.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
}

fn shown(store: &Store, key: &ObjectKey) -> (String, i64, Value) {
    let view = store.get(key).unwrap();
    (
        view.object.uid().to_owned(),
        view.object.generation(),
        plain(&view.object),
    )
}

fn changes(store: &Store, key: &ObjectKey) -> u64 {
    store.shared.index().record(key).unwrap().changes
}

fn bytes_of(store: &Store, key: &ObjectKey) -> usize {
    store.shared.index().record(key).unwrap().document.len()
}

#[tokio::test]
async fn a_squash_changes_nothing_that_is_shown_and_reaches_the_others() {
    let (a, b, c) = (store("a"), store("b"), store("c"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    for number in 0..LONG {
        edit(&a, &key, |object| {
            object.set(&["spec", "replicas"], number);
            object.set(&["metadata", "annotations", "n"], number.to_string());
        })
        .await;
    }
    exchange(&a, &b).await;
    exchange(&b, &c).await;
    let before = shown(&a, &key);
    assert_eq!(squash(&[&a, &b, &c], 1, &[true; 3], LONG, 32).await, 1);
    assert_eq!(changes(&b, &key), 33, "the base and the last 32");
    for (from, to) in [(&a, &b), (&b, &c), (&a, &c)] {
        exchange(from, to).await;
    }
    for one in [&a, &b, &c] {
        assert_eq!(shown(one, &key), before);
        assert_eq!(changes(one, &key), 33);
        assert_eq!(one.digest(), a.digest());
    }
    let reopened = Store::open_in_memory(MemoryDisk::default(), options("d")).unwrap();
    exchange(&reopened, &c).await;
    assert_eq!(
        shown(&reopened, &key),
        before,
        "a joiner gets the squashed history"
    );
    edit(&reopened, &key, |object| label(object, "d", "1")).await;
    exchange(&reopened, &a).await;
    assert_eq!(shown(&a, &key), shown(&reopened, &key));
}

#[tokio::test]
async fn changes_without_end_stay_small() {
    const CHANGES: u32 = 300;
    let (a, b) = (store("a"), store("b"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    exchange(&a, &b).await;
    let first = bytes_of(&a, &key);
    let mut largest = 0;
    for number in 1..=CHANGES {
        edit(&a, &key, |object| {
            object.set(&["spec", "replicas"], number);
            // Elements that come and go leave something to be remembered.
            let env = &mut containers(object)[0]["env"];
            *env = json!([{"name": format!("E{number}"), "value": "1"}]);
        })
        .await;
        if number % 10 == 0 {
            exchange(&a, &b).await;
            squash(&[&a, &b], (number as usize / 10) % 2, &[true; 2], 20, 4).await;
            exchange(&a, &b).await;
        }
        largest = largest.max(changes(&a, &key));
    }
    assert!(largest <= 40, "{largest} changes");
    let last = bytes_of(&a, &key);
    assert!(last < 4 * first, "{last} bytes, {first} at first");
    assert_eq!(shown(&a, &key), shown(&b, &key));
    assert_eq!(
        shown(&a, &key).1,
        i64::from(CHANGES) + 1,
        "the generation counts on"
    );
}

/// Text that cannot be made smaller: of each byte six bits are random.
fn incompressible(bytes: usize, seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let letters = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[(state >> 32) as usize % LETTERS.len()])
    });
    letters.collect()
}

#[tokio::test]
async fn a_history_is_long_also_by_its_bytes() {
    const LARGE: usize = 288 << 10;
    let (a, b) = (store("a"), store("b"));
    let key = key_of(&deployment("web"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let (mut largest, mut squashes) = (0, 0);
    for number in 1..=12 {
        let text = incompressible(LARGE, number);
        edit(&a, &key, |object| {
            object.set(&["metadata", "annotations", "large"], text.as_str());
        })
        .await;
        exchange(&a, &b).await;
        largest = largest.max(bytes_of(&a, &key));
        let is_woken = tokio::time::timeout(std::time::Duration::ZERO, a.long_histories().notified()).await;
        // Whoever proposes, it is the same.
        let heads = |store: &Store| store.propose().map(|proposal| proposal.frame());
        assert_eq!(heads(&a), heads(&b));
        if squash(&[&a, &b], number as usize % 2, &[true; 2], LONG, 32).await > 0 {
            squashes += 1;
            assert!(is_woken.is_ok());
            exchange(&a, &b).await;
        }
        assert_eq!(shown(&a, &key), shown(&b, &key));
        assert!(a.propose().is_none(), "what was squashed is not squashed again");
    }
    assert!(largest <= 5 * LARGE, "{largest} bytes: four objects and one more");
    assert!((2..=5).contains(&squashes), "{squashes} squashes");
    let last = changes(&a, &key);
    assert!(
        (3..=7).contains(&last),
        "{last} changes, of which the last two are always kept"
    );
}

#[tokio::test]
async fn who_was_away_brings_what_it_alone_has_and_brings_nothing_back() {
    let (a, b, c) = (store("a"), store("b"), store("c"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    edit(&a, &key, |object| label(object, "gone", "old")).await;
    exchange(&a, &b).await;
    exchange(&a, &c).await;
    // c is cut off, and goes on.
    edit(&c, &key, |object| label(object, "c", "1")).await;
    edit(&c, &key, |object| {
        containers(object)[1]["image"] = "log:c".into();
    })
    .await;
    edit(&a, &key, |object| {
        object.0["metadata"]["labels"]
            .as_object_mut()
            .unwrap()
            .remove("gone");
        containers(object).remove(0);
    })
    .await;
    for number in 0..120 {
        edit(&a, &key, |object| label(object, "a", &number.to_string())).await;
        if number % 40 == 39 {
            exchange(&a, &b).await;
            assert_eq!(squash(&[&a, &b, &c], 0, &[true, true, false], 40, 2).await, 1);
        }
    }
    exchange(&a, &b).await;
    exchange(&c, &b).await;
    exchange(&a, &c).await;
    let (_, _, object) = shown(&a, &key);
    assert_eq!(
        object["metadata"]["labels"],
        json!({"app": "web", "a": "119", "c": "1"})
    );
    let containers = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["image"], "log:c");
    assert_eq!(shown(&b, &key), shown(&c, &key));
    assert_eq!(shown(&a, &key), shown(&c, &key));
}

#[tokio::test]
async fn a_squash_shows_the_element_that_had_won() {
    let (a, b) = (store("a"), store("b"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    exchange(&a, &b).await;
    let remove_and_add = async |store: &Store, image: &str| {
        edit(store, &key, |object| {
            containers(object).remove(1);
        })
        .await;
        edit(store, &key, |object| {
            containers(object).push(json!({"name": "log", "image": image}));
        })
        .await;
    };
    // Added more often on one side, which therefore wins.
    remove_and_add(&b, "log:b").await;
    remove_and_add(&a, "log:a1").await;
    remove_and_add(&a, "log:a2").await;
    exchange(&a, &b).await;
    // Takes away what is left of the other's.
    edit(&a, &key, |object| label(object, "a", "1")).await;
    exchange(&a, &b).await;
    let (_, _, before) = shown(&a, &key);
    assert_eq!(
        before["spec"]["template"]["spec"]["containers"][1]["image"],
        "log:a2"
    );
    // Up to where that had seen nothing of the other's.
    assert_eq!(squash(&[&a, &b], 0, &[true; 2], 4, 3).await, 1);
    exchange(&a, &b).await;
    for one in [&a, &b] {
        assert_eq!(shown(one, &key).2, before);
    }
}

#[tokio::test]
async fn a_minority_and_who_lacks_something_stop_a_squash() {
    let (a, b, c) = (store("a"), store("b"), store("c"));
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    exchange(&a, &b).await;
    for number in 0..10 {
        edit(&a, &key, |object| label(object, "a", &number.to_string())).await;
    }
    let all = [&a, &b, &c];
    assert_eq!(squash(&all, 0, &[true, false, false], 4, 2).await, 0, "alone");
    assert_eq!(
        squash(&all, 0, &[true, true, false], 4, 2).await,
        0,
        "b lacks the last changes"
    );
    exchange(&a, &b).await;
    assert_eq!(squash(&all, 0, &[true, true, false], 4, 2).await, 1);
}

#[tokio::test]
async fn two_creators_stay_owners_after_a_squash() {
    let (a, b) = (store("a"), store("b"));
    a.apply(deployment("web"), author("git"), false).await.unwrap();
    b.apply(deployment("web"), author("psctl"), false).await.unwrap();
    exchange(&a, &b).await;
    let key = key_of(&deployment("web"));
    for number in 0..8 {
        edit(&a, &key, |object| label(object, "a", &number.to_string())).await;
    }
    exchange(&a, &b).await;
    assert_eq!(squash(&[&a, &b], 0, &[true; 2], 4, 1).await, 1);
    exchange(&a, &b).await;
    let mut fewer = deployment("web");
    containers(&mut fewer).remove(1);
    a.apply(fewer.clone(), author("git"), false).await.unwrap();
    let kept = shown(&a, &key).2;
    assert_eq!(
        kept["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2,
        "psctl owns it too"
    );
    a.apply(fewer, author("psctl"), false).await.unwrap();
    let kept = shown(&a, &key).2;
    assert_eq!(
        kept["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

async fn edit_often(store: &Store, key: &ObjectKey, changes: u64) {
    for number in 0..changes {
        edit(store, key, |object| label(object, "n", &number.to_string())).await;
    }
}

#[tokio::test]
async fn promises_end_with_the_histories_that_they_were_made_for() {
    let (a, b) = (store("a"), store("b"));
    let keys = ["web", "again"].map(|name| key_of(&deployment(name)));
    for key in &keys {
        a.create(deployment(&key.name), author("x")).await.unwrap();
        edit_often(&a, key, 8).await;
    }
    exchange(&a, &b).await;
    // Both promise, and nothing comes of it.
    let proposal = a.propose_beyond(4, 1).unwrap();
    b.receive(&NodeId("a".to_owned()), &proposal.frame())
        .await
        .unwrap();
    assert_eq!([&a, &b].map(|store| store.shared.promises.count()), [2, 2]);
    // Another object of that name is not held to what was promised of the first.
    let gone = Precondition::default();
    a.remove(&keys[1], &gone, author("x")).await.unwrap();
    a.create(deployment("again"), author("x")).await.unwrap();
    edit_often(&a, &keys[1], 8).await;
    exchange(&a, &b).await;
    assert_eq!(squash(&[&a, &b], 0, &[true; 2], 4, 1).await, 2);
    exchange(&a, &b).await;
    for store in [&a, &b] {
        assert!(store.propose().is_none());
        assert_eq!(store.shared.promises.count(), 0);
    }
    // Those of one that is gone go too.
    edit_often(&a, &keys[0], 8).await;
    assert!(a.propose_beyond(4, 1).is_some());
    a.remove(&keys[0], &gone, author("x")).await.unwrap();
    assert!(a.propose().is_none());
    assert_eq!(a.shared.promises.count(), 0);
}

#[tokio::test]
async fn what_was_promised_is_held_after_a_restart() {
    let mut disk = MemoryDisk::default();
    let open = |disk: &MemoryDisk| Store::open_in_memory(disk.clone(), options("b")).unwrap();
    let promised = |disk: &MemoryDisk| {
        let mut count = 0;
        disk.scan(PROMISES, &mut |_, _| count += 1).unwrap();
        count
    };
    let (a, b, c) = (store("a"), open(&disk), store("c"));
    let key = key_of(&deployment("web"));
    a.create(deployment("web"), author("x")).await.unwrap();
    for other in [&b, &c] {
        exchange(&a, other).await;
    }
    edit_often(&a, &key, 8).await;
    edit(&c, &key, |object| label(object, "c", "1")).await;
    exchange(&a, &b).await;
    // Two sides of a partition, with one node on both, one after the other.
    assert_eq!(squash(&[&a, &b, &c], 0, &[false, true, false], 4, 1).await, 1);
    assert_eq!(promised(&disk), 1);
    drop(b);
    disk = disk.after_power_loss();
    let b = open(&disk);
    edit_often(&c, &key, 8).await;
    // Without most of what the other base stands for.
    let mut proposal = c.propose_beyond(4, 1).unwrap();
    exchange(&c, &b).await;
    let Exchange::Send(answer) = b
        .receive(&NodeId("c".to_owned()), &proposal.frame())
        .await
        .unwrap()
    else {
        panic!("a proposal is answered");
    };
    proposal.answered(&answer);
    assert_eq!(c.squash(proposal, false).await.unwrap(), 0);
    exchange(&a, &b).await;
    exchange(&b, &c).await;
    assert_eq!(a.digest(), c.digest());
    assert_eq!(promised(&disk), 0, "that history has ended");
}

#[tokio::test]
async fn those_that_cannot_be_proposed_take_nobodys_place() {
    let a = store("a");
    let names = (0..PROPOSED_MAX).map(|number| format!("a{number}"));
    for name in names.chain(["z".to_owned()]) {
        a.create(deployment(&name), author("x")).await.unwrap();
        edit_often(&a, &key_of(&deployment(&name)), 4).await;
    }
    // To somebody with longer histories of all but the last it promised more than it would propose.
    let items: Vec<Item> = a
        .list(Kind::Deployment, None)
        .items
        .iter()
        .filter(|view| view.key.name != "z")
        .map(|view| {
            let record = a.shared.index().record(&view.key).unwrap();
            Item {
                key: view.key.to_string(),
                removed: None,
                live: Some(Heads {
                    incarnation: record.incarnation,
                    epoch: record.epoch,
                    heads: record.heads.clone(),
                }),
            }
        })
        .collect();
    assert!(
        a.agree(&items)
            .await
            .unwrap()
            .iter()
            .all(|answer| *answer != Agreement::No)
    );
    assert_eq!(squash(&[&a], 0, &[true], 4, 1).await, 1);
    assert_eq!(changes(&a, &key_of(&deployment("z"))), 2, "the base and the last");
}

/// Brings changes of a document to a store, each of another actor.
async fn bring_changes(store: &Store, key: &ObjectKey, count: u64, first: u64) {
    let record = store.shared.index().record(key).unwrap();
    let mut document = record.load(store.shared.actor(record.epoch)).unwrap();
    let before = document.heads();
    for number in first..first + count {
        let actor = automerge::ActorId::from(u128::from(number).to_be_bytes());
        document.automerge.set_actor(actor);
        let number = i64::try_from(number).unwrap();
        document
            .put("spec/replicas", automerge::ScalarValue::Int(number))
            .unwrap();
        document.commit_as(r#"{"m":"x","n":"y"}"#.to_owned(), 0).unwrap();
    }
    let delta = Delta::new(key, None, Some(&record), document.changes_after(&before));
    let frame = frame::encode(Header::default(), &Body::Push { items: vec![delta] }).unwrap();
    store.receive(&NodeId("y".to_owned()), &frame).await.unwrap();
    assert_eq!(changes(store, key), record.changes + count);
}

#[tokio::test]
async fn a_history_of_too_many_actors_is_not_tried_again_and_again() {
    /// More than a base can name, and as many as are kept.
    const ACTORS: u64 = 4096 + 64;
    let a = store("a");
    a.create(deployment("web"), author("x")).await.unwrap();
    let key = key_of(&deployment("web"));
    bring_changes(&a, &key, ACTORS, 1).await;
    let proposal = a.propose().unwrap();
    assert_eq!(a.squash(proposal, true).await.unwrap(), 0);
    assert!(a.propose().is_none());
    // It may be another matter once much has changed.
    bring_changes(&a, &key, LONG - 1, ACTORS + 1).await;
    assert!(a.propose().is_none());
    bring_changes(&a, &key, 1, ACTORS + LONG).await;
    assert!(a.propose().is_some());
}

/// What may happen between writes.
#[derive(Clone, Debug)]
enum Step {
    /// A node sets its own field.
    Write(Index, u8),
    Exchange(Index, Index),
    Squash(Index, Vec<bool>),
    Crash(Index),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || any::<Index>();
    prop_oneof![
        6 => (at(), any::<u8>()).prop_map(|(node, value)| Step::Write(node, value)),
        3 => (at(), at()).prop_map(|(from, to)| Step::Exchange(from, to)),
        3 => (at(), prop::collection::vec(any::<bool>(), 5)).prop_map(|(node, hear)| Step::Squash(node, hear)),
        1 => at().prop_map(Step::Crash),
    ]
}

async fn own_fields_survive(kind: Kind, object: Object, count: usize, steps: Vec<Step>) {
    let disks: Vec<MemoryDisk> = (0..count).map(|_| MemoryDisk::default()).collect();
    let open = |at: usize, disk: &MemoryDisk| {
        Store::open_in_memory(disk.clone(), options(&format!("node{at}"))).unwrap()
    };
    let mut disks = disks;
    let mut stores: Vec<Store> = disks
        .iter()
        .enumerate()
        .map(|(at, disk)| open(at, disk))
        .collect();
    let key = ObjectKey::new(kind, "default", "web");
    let mut object = placed(&key, &object);
    object.set(&["metadata", "labels"], json!({"app": "web"}));
    stores[0].create(object.clone(), author("x")).await.unwrap();
    for at in 1..count {
        exchange(&stores[0], &stores[at]).await;
    }
    let mut written: BTreeMap<usize, u8> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Write(node, value) => {
                let at = node.index(count);
                let name = format!("n{at}");
                edit(&stores[at], &key, |object| {
                    label(object, &name, &value.to_string())
                })
                .await;
                written.insert(at, value);
            }
            Step::Exchange(from, to) => {
                exchange(from.get(&stores), to.get(&stores)).await;
            }
            Step::Squash(node, hear) => {
                let stores: Vec<&Store> = stores.iter().collect();
                squash(&stores, node.index(count), &hear, 3, 1).await;
            }
            Step::Crash(node) => {
                let at = node.index(count);
                disks[at] = disks[at].after_power_loss();
                stores[at] = open(at, &disks[at]);
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
    for (at, value) in written {
        label(&mut object, &format!("n{at}"), &value.to_string());
    }
    for store in &stores {
        assert_eq!(store.digest(), stores[0].digest());
        assert_eq!(shown(store, &key).2, plain(&object));
        assert_eq!(shown(store, &key), shown(&stores[0], &key));
        assert_eq!(store.list(kind, None).items.len(), 1);
    }
}

proptest! {
    #![proptest_config(cases(16))]

    /// Whoever squashes when, and with whom: the last value that a node wrote into a field of its own stays.
    #[test]
    fn squashes_lose_no_write(
        (kind, object) in any_kind().prop_flat_map(|kind| (Just(kind), small_object(kind))),
        count in 2..5_usize,
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(own_fields_survive(kind, object, count, steps));
    }
}
