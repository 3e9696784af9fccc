//! Generated histories of nodes that write, delete, close rounds, are away and restart: nothing comes back, nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use schemas::Kind;

use super::properties::cases;
use super::rounds::*;
use super::*;

/// What happens to one of the nodes in a generated history.
#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize),
    Remove(usize, usize),
    Edit(usize, usize),
    Exchange(usize, usize),
    Deliver(usize, usize),
    Close(usize, Vec<bool>),
    Alone(usize, bool),
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..60_usize;
    let hear = || prop::collection::vec(prop::bool::weighted(0.7), 5);
    prop_oneof![
        5 => (at(), at()).prop_map(|(a, b)| Step::Create(a, b)),
        5 => (at(), at()).prop_map(|(a, b)| Step::Remove(a, b)),
        2 => (at(), at()).prop_map(|(a, b)| Step::Edit(a, b)),
        5 => (at(), at()).prop_map(|(a, b)| Step::Exchange(a, b)),
        4 => (0..1000_usize, at()).prop_map(|(a, b)| Step::Deliver(a, b)),
        4 => (at(), hear()).prop_map(|(a, hear)| Step::Close(a, hear)),
        1 => (at(), any::<bool>()).prop_map(|(a, alone)| Step::Alone(a, alone)),
        1 => at().prop_map(Step::Restart),
    ]
}

/// What users were told.
#[derive(Default)]
struct Told {
    /// Uid and key of what was created, with what was written into it.
    created: BTreeMap<String, (ObjectKey, BTreeSet<String>)>,
    /// Uid and key of what was removed.
    removed: BTreeMap<String, ObjectKey>,
    /// What was written into objects that were removed, as who removed them saw it.
    dead: BTreeSet<String>,
    /// What a node had set aside is on its disk: asked for at the end.
    labels: usize,
}

fn key_of_step(at: usize) -> ObjectKey {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    match names[at % names.len()] {
        "f" => ObjectKey::cluster(Kind::Namespace, "default"),
        "g" => ObjectKey::new(Kind::Service, "default", "g"),
        name => ObjectKey::cluster(Kind::Node, name),
    }
}

async fn perform(nodes: &mut Nodes, told: &mut Told, step: Step) {
    let count = nodes.stores.len();
    match step {
        Step::Create(at, key) => {
            let mut object = Object::new(&key_of_step(key));
            told.labels += 1;
            let label = format!("l{}", told.labels);
            object.set(&["metadata", "labels", "id"], label.as_str());
            match nodes.stores[at % count].create(object, author("x")).await {
                Ok(view) => {
                    let uid = view.object.uid().to_owned();
                    let created = told.created.entry(uid).or_insert((view.key, BTreeSet::new()));
                    created.1.insert(label);
                }
                Err(WriteError::Exists(_) | WriteError::CatchingUp(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Step::Remove(at, key) => {
            let key = key_of_step(key);
            let store = &nodes.stores[at % count];
            match store.remove(&key, &Precondition::default(), author("x")).await {
                Ok(view) => {
                    told.dead.extend(view.object.label("id").map(str::to_owned));
                    told.removed.insert(view.object.uid().to_owned(), key);
                }
                Err(WriteError::NotFound(_) | WriteError::CatchingUp(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Step::Edit(at, key) => {
            let store = &nodes.stores[at % count];
            told.labels += 1;
            let label = told.labels.to_string();
            let result: Result<View, WriteError> = store
                .update(
                    &key_of_step(key),
                    &Precondition::default(),
                    author("x"),
                    |object| {
                        let mut changed = object.clone();
                        changed.set(&["metadata", "labels", "edited"], label.as_str());
                        Ok(changed)
                    },
                )
                .await;
            assert!(matches!(
                result,
                Ok(_) | Err(WriteError::NotFound(_) | WriteError::CatchingUp(_))
            ));
        }
        Step::Exchange(from, to) => {
            nodes.exchange(from % count, to % count).await;
        }
        Step::Deliver(frame, to) => {
            if !nodes.frames.is_empty() {
                let (from, frame) = nodes.frames[frame % nodes.frames.len()].clone();
                let to = to % count;
                if from != to
                    && let Exchange::Send(answer) = nodes.stores[to].receive(&id(from), &frame).await.unwrap()
                {
                    nodes.frames.push((to, answer));
                }
            }
        }
        Step::Close(at, hear) => {
            nodes.close(at % count, &hear, 1).await;
        }
        Step::Alone(at, alone) => nodes.stores[at % count].set_alone(alone),
        Step::Restart(at) => nodes.restart(at % count),
    }
    nodes.keep_pushes();
}

async fn run(count: usize, steps: Vec<Step>) {
    let mut nodes = Nodes::new(count);
    let mut told = Told::default();
    for step in steps {
        perform(&mut nodes, &mut told, step).await;
    }
    for _ in 0..4 {
        nodes.exchange_all().await;
    }
    nodes.assert_equal();
    let rescued: BTreeSet<String> = nodes
        .stores
        .iter()
        .flat_map(Store::rescued)
        .map(|rescued| rescued.object.uid().to_owned())
        .collect();
    for (at, store) in nodes.stores.iter().enumerate() {
        for (uid, key) in &told.removed {
            assert!(store.get(key).is_none_or(|view| view.object.uid() != uid));
            assert!(store.is_removed(key, uid), "{key} at {at}");
        }
        for (uid, (key, labels)) in &told.created {
            let view = store.get(key);
            let uids = &store.shared.uids;
            let incarnation = uids.incarnation(key, uid);
            // Also as part of what was removed or created later under its name.
            let is_later = |later: &str| uids.incarnation(key, later) >= incarnation;
            let is_gone = told
                .removed
                .iter()
                .any(|(removed, of)| of == key && is_later(removed));
            let is_there = view.as_ref().is_some_and(|view| view.object.uid() == uid);
            let is_again = view.as_ref().is_some_and(|view| is_later(view.object.uid()));
            assert!(
                is_there || is_gone || is_again || rescued.contains(uid),
                "{key} with {labels:?} was created and is not at {at}"
            );
        }
        for kind in [Kind::Node, Kind::Namespace, Kind::Service] {
            for view in store.list(kind, None).items {
                let label = view.object.label("id").unwrap();
                assert!(!told.dead.contains(label), "{} came back with {label}", view.key);
            }
        }
    }
    // Nothing is left to be said, and with all there the tombstones go.
    for to in 1..count {
        assert_eq!(nodes.exchange(0, to).await, 1);
    }
    for store in &nodes.stores {
        store.set_alone(false);
    }
    // One that was begun before comes first, and may never be agreed on.
    for _ in 0..3 {
        nodes.close_and_tell(0, &[true; 5][..count], 1).await;
    }
    nodes.exchange_all().await;
    nodes.assert_equal();
    let droppable = nodes.stores[0].tombstones();
    assert!(droppable <= 1, "{droppable} tombstones are left");
}

proptest! {
    #![proptest_config(cases(64))]

    /// P1, P4, P5 where tombstones are dropped.
    #[test]
    fn nothing_comes_back_and_nothing_is_lost(count in 1..6_usize, steps in prop::collection::vec(step(), 1..90)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(count, steps));
    }
}
