//! Properties over generated objects and histories.

use std::collections::BTreeMap;

use automerge::{ActorId, Change};
use proptest::prelude::*;
use proptest::sample::Index;
use schemas::{KINDS, Kind};

use super::generated::*;
use super::*;
use crate::apply;
use crate::document::{Birth, ChangeAuthor, Desired, Document, FirstChange};
use crate::incoming::IncomingChange;
use crate::leaves::{self, Leaves};
use crate::owners::Operation;
use crate::run_lengths;

/// So many cases, or as many as `PROPTEST_CASES` says.
pub(super) fn cases(cases: u32) -> ProptestConfig {
    let given = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: if given { config.cases } else { cases },
        failure_persistence: None,
        ..config
    }
}

fn change_author() -> ChangeAuthor {
    ChangeAuthor {
        manager: "m".to_owned(),
        user: String::new(),
        node: NodeId("n".to_owned()),
        via: Some(Via::Api),
        unix_seconds: 0,
        dropped: None,
        sight: None,
    }
}

fn reload(document: &mut Document) -> Document {
    Document::load(&document.save(), ActorId::random()).unwrap()
}

#[test]
fn what_is_written_is_read_of_every_kind() {
    for row in KINDS {
        let objects = prop::collection::vec(any_object(row.kind), 1..5);
        proptest!(cases(16), |(objects in objects)| is_read(row.kind, objects)?);
    }
}

/// Writes objects one over the other, and reads each.
fn is_read(kind: Kind, objects: Vec<Object>) -> Result<(), TestCaseError> {
    let mut document: Option<Document> = None;
    for object in objects {
        let mut written = match document {
            None => {
                let leaves = leaves::flatten(kind, &object, &Leaves::new());
                let (birth, author) = (Birth::default(), change_author());
                let first =
                    FirstChange::new(kind, leaves, birth, &author, Operation::Update, ActorId::random())
                        .unwrap();
                let bytes = first.written().bytes;
                let operations = Change::from_bytes(bytes.clone()).unwrap().len() as u64;
                prop_assert_eq!(run_lengths::operations(&bytes), Some(operations));
                let document = Document::load(&first.save(), ActorId::random()).unwrap();
                prop_assert_eq!(&document.contents(), &first.contents);
                prop_assert!(IncomingChange::parse(&bytes).is_ok());
                document
            }
            Some(mut document) => {
                let mut contents = document.contents();
                let leaves = leaves::flatten(kind, &object, &contents.leaves);
                let owners = apply::owners_after_update(&contents.leaves, &leaves, &contents.owners, "other");
                let desired = Desired {
                    leaves,
                    owners,
                    is_applied: false,
                };
                document
                    .write(kind, &mut contents, desired, &change_author())
                    .unwrap();
                prop_assert_eq!(&document.contents(), &contents);
                document
            }
        };
        let read = reload(&mut written);
        let contents = read.contents();
        prop_assert_eq!(&leaves::materialise(&contents.leaves), &object);
        let same = leaves::flatten(kind, &object, &contents.leaves);
        prop_assert_eq!(
            leaves::diff(&contents.raw, &leaves::pack(kind, same)),
            Default::default()
        );
        for (path, value) in &contents.raw {
            prop_assert_eq!(leaves::check_leaf(path, value), Ok(()), "{}", path);
        }
        document = Some(read);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_leaves_make_an_object(
        leaves in prop::collection::btree_map("[a~/\\[\\]<>{}@#0-3]{0,12}", odd_scalar(), 0..12)
    ) {
        let leaves: Leaves = leaves.iter().map(|(path, value)| (path.clone(), leaves::scalar(value))).collect();
        let object = leaves::materialise(&leaves);
        // And what is written over them replaces them, whatever they were.
        let mut next = object.clone();
        next.set(&["spec", "x"], 1);
        let written = leaves::flatten(Kind::Pod, &next, &leaves);
        let edits = leaves::diff(&leaves, &written);
        let mut after = leaves;
        edits.deletes.iter().for_each(|path| { after.remove(path); });
        after.extend(edits.puts);
        prop_assert_eq!(leaves::materialise(&after), next);
    }
}

/// What a replica does in a generated history.
#[derive(Clone, Debug)]
enum Step {
    Create(Index, Index, Box<Object>),
    Remove(Index, Index),
    Label(Index, Index, String, u8),
    /// An edit somewhere in the object.
    Touch(Index, Index, Index, Touch),
    AddContainer(Index, Index, String),
    RemoveContainer(Index, Index, String),
    Image(Index, Index, String, u8),
    Env(Index, Index, String, Value),
    Whole(Index, Index, Box<Object>),
    Apply(Index, Index, Box<Object>),
    Exchange(Index, Index),
    /// Squashes histories, with those who hear of it.
    Squash(Index, Vec<bool>),
    /// Delivers a frame that was pushed at some time, perhaps again.
    Deliver(Index, Index),
    Crash(Index),
}

fn step(kind: Kind) -> impl Strategy<Value = Step> {
    let at = || any::<Index>();
    let whole = || small_object(kind).prop_map(Box::new);
    // Elsewhere there are few containers, and other lists.
    let has_containers = matches!(kind, Kind::Pod | Kind::Deployment | Kind::ReplicaSet);
    let of_pods = if has_containers { 3 } else { 1 };
    prop_oneof![
        3 => (at(), at(), whole()).prop_map(|(a, b, object)| Step::Create(a, b, object)),
        2 => (at(), at()).prop_map(|(a, b)| Step::Remove(a, b)),
        3 => (at(), at(), odd_key(), any::<u8>()).prop_map(|(a, b, key, value)| Step::Label(a, b, key, value)),
        8 => (at(), at(), at(), touch()).prop_map(|(a, b, place, touch)| Step::Touch(a, b, place, touch)),
        of_pods => (at(), at(), name()).prop_map(|(a, b, name)| Step::AddContainer(a, b, name)),
        of_pods => (at(), at(), name()).prop_map(|(a, b, name)| Step::RemoveContainer(a, b, name)),
        of_pods => (at(), at(), name(), any::<u8>()).prop_map(|(a, b, name, image)| Step::Image(a, b, name, image)),
        of_pods => (at(), at(), name(), env()).prop_map(|(a, b, name, env)| Step::Env(a, b, name, env)),
        1 => (at(), at(), whole()).prop_map(|(a, b, object)| Step::Whole(a, b, object)),
        2 => (at(), at(), whole()).prop_map(|(a, b, object)| Step::Apply(a, b, object)),
        2 => (at(), at()).prop_map(|(a, b)| Step::Exchange(a, b)),
        4 => (at(), at()).prop_map(|(a, b)| Step::Deliver(a, b)),
        3 => (at(), prop::collection::vec(any::<bool>(), 5)).prop_map(|(a, hear)| Step::Squash(a, hear)),
        1 => at().prop_map(Step::Crash),
    ]
}

fn history() -> impl Strategy<Value = (Kind, Vec<Step>)> {
    any_kind().prop_flat_map(|kind| (Just(kind), prop::collection::vec(step(kind), 1..60)))
}

type Edit = Box<dyn Fn(&mut Object) + Send + Sync>;

struct Replica {
    store: Store,
    disk: MemoryDisk,
    pushes: tokio::sync::broadcast::Receiver<crate::Push>,
}

impl Replica {
    fn open(disk: MemoryDisk, number: usize) -> Self {
        let store = Store::open_in_memory(disk.clone(), options(&format!("node{number}"))).unwrap();
        let pushes = store.pushes();
        Self { store, disk, pushes }
    }
}

fn containers(object: &mut Object) -> Option<&mut Vec<Value>> {
    let spec = object.0.get_mut("spec")?;
    let is_template = spec.get("template").is_some();
    let of_pod = if is_template {
        spec.pointer_mut("/template/spec")?
    } else {
        spec
    };
    of_pod.get_mut("containers")?.as_array_mut()
}

fn named<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Value> {
    containers(object)?
        .iter_mut()
        .find(|container| container["name"] == name)
}

const NAMES: [&str; 2] = ["web", "db"];

async fn run(kind: Kind, replicas: usize, steps: Vec<Step>) {
    let mut nodes: Vec<Replica> = (0..replicas)
        .map(|number| Replica::open(MemoryDisk::default(), number))
        .collect();
    let mut frames = Vec::new();
    let mut removed: BTreeMap<String, ObjectKey> = BTreeMap::new();
    for step in steps {
        perform(kind, &mut nodes, &frames, &mut removed, step).await;
        for node in &mut nodes {
            while let Ok(push) = node.pushes.try_recv() {
                frames.push(node.store.push_frame(&[push]).unwrap());
            }
        }
    }
    // Everybody meets everybody, until all is told.
    for _ in 0..2 {
        for from in 0..nodes.len() {
            for to in 0..nodes.len() {
                exchange(&nodes[from].store, &nodes[to].store).await;
            }
        }
    }
    for node in &nodes {
        let (first, other) = (&nodes[0].store, &node.store);
        assert_eq!(first.digest(), other.digest());
        assert_eq!(exchange(first, other).await, 1, "nothing more to say");
        let shown = |store: &Store| {
            let items = store.list(kind, None).items;
            items
                .iter()
                .map(|view| {
                    let metadata = &view.object.0["metadata"];
                    (
                        metadata["uid"].clone(),
                        metadata["generation"].clone(),
                        plain(&view.object),
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(first), shown(other));
        let reopened = Store::open_in_memory(node.disk.after_power_loss(), options("again")).unwrap();
        assert_eq!(reopened.digest(), first.digest());
        assert_eq!(shown(&reopened), shown(first));
        for (uid, key) in &removed {
            assert!(other.is_removed(key, uid), "a removed object must stay removed");
            assert!(other.get(key).is_none_or(|view| view.object.uid() != uid));
        }
    }
}

async fn perform(
    kind: Kind,
    nodes: &mut [Replica],
    frames: &[bytes::Bytes],
    removed: &mut BTreeMap<String, ObjectKey>,
    step: Step,
) {
    let key = |at: Index| ObjectKey::new(kind, "default", *at.get(&NAMES));
    let count = nodes.len();
    let mut change: Option<(Index, Index, Edit)> = None;
    match step {
        Step::Create(node, at, object) => {
            let store = &node.get(nodes).store;
            let created = store.create(placed(&key(at), &object), author("kubectl")).await;
            assert!(
                matches!(created, Ok(_) | Err(WriteError::Exists(_))),
                "{created:?}"
            );
        }
        Step::Remove(node, at) => {
            let key = key(at);
            if let Ok(view) = node
                .get(nodes)
                .store
                .remove(&key, &Precondition::default(), author("x"))
                .await
            {
                removed.insert(view.object.uid().to_owned(), key);
            }
        }
        Step::Apply(node, at, object) => {
            let manager = if node.index(2) == 0 { "git" } else { "psctl" };
            node.get(nodes)
                .store
                .apply(placed(&key(at), &object), author(manager), true)
                .await
                .unwrap();
        }
        Step::Exchange(from, to) => {
            exchange(&from.get(nodes).store, &to.get(nodes).store).await;
        }
        Step::Squash(at, hear) => {
            let stores: Vec<&Store> = nodes.iter().map(|node| &node.store).collect();
            squash(&stores, at.index(count), &hear, 2, 1).await;
        }
        Step::Deliver(frame, to) => {
            if !frames.is_empty() {
                let peer = NodeId("peer".to_owned());
                to.get(nodes)
                    .store
                    .receive(&peer, &frames[frame.index(frames.len())])
                    .await
                    .unwrap();
            }
        }
        Step::Crash(at) => {
            let at = at.index(count);
            nodes[at] = Replica::open(nodes[at].disk.after_power_loss(), at);
        }
        Step::Label(node, at, label, value) => {
            change = Some((
                node,
                at,
                Box::new(move |object| object.set(&["metadata", "labels", &label], value)),
            ));
        }
        Step::Touch(node, at, place, touch) => {
            change = Some((
                node,
                at,
                Box::new(move |object| touch.perform(kind, object, place)),
            ));
        }
        Step::AddContainer(node, at, name) => {
            change = Some((
                node,
                at,
                Box::new(move |object| {
                    if named(object, &name).is_none()
                        && let Some(containers) = containers(object)
                    {
                        containers.insert(containers.len() / 2, json!({"name": name, "image": "i"}));
                    }
                }),
            ));
        }
        Step::RemoveContainer(node, at, name) => {
            change = Some((
                node,
                at,
                Box::new(move |object| {
                    if let Some(containers) = containers(object) {
                        containers.retain(|container| container["name"] != name.as_str());
                    }
                }),
            ));
        }
        Step::Image(node, at, name, image) => {
            change = Some((
                node,
                at,
                Box::new(move |object| {
                    if let Some(container) = named(object, &name) {
                        container["image"] = image.into();
                    }
                }),
            ));
        }
        Step::Env(node, at, name, entry) => {
            change = Some((
                node,
                at,
                Box::new(move |object| {
                    if let Some(container) = named(object, &name)
                        && let Some(container) = container.as_object_mut()
                        && let Some(env) = container.entry("env").or_insert(json!([])).as_array_mut()
                    {
                        env.retain(|other| other["name"] != entry["name"]);
                        env.push(entry.clone());
                    }
                }),
            ));
        }
        Step::Whole(node, at, whole) => {
            change = Some((
                node,
                at,
                Box::new(move |object| {
                    let key = object.key().unwrap();
                    *object = placed(&key, &whole);
                }),
            ));
        }
    }
    if let Some((node, at, change)) = change {
        let store = &node.get(nodes).store;
        if let Some(before) = store.get(&key(at)) {
            let edited = edit(store, &key(at), &*change).await;
            let mut expected = Object::clone(&before.object);
            change(&mut expected);
            assert_eq!(
                plain(&expected),
                plain(&edited.object),
                "an edit is shown as it was made"
            );
        }
    }
}

proptest! {
    #![proptest_config(cases(32))]

    /// P1, P4, P5, of every kind: any edits, in any order of delivery, with duplication, loss and crashes.
    #[test]
    fn replicas_that_talk_become_equal(replicas in 2..=5_usize, (kind, steps) in history()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(kind, replicas, steps));
    }

    /// What a manager applies stays, also where those who had it before drop it at the same time.
    #[test]
    fn what_an_apply_names_outlives_its_removal_elsewhere(kept in 0..8_usize, taken in 0..8_usize, by_update in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let some = |bits: usize| {
                let mut object = deployment("web");
                object.remove(&["spec", "replicas"]);
                for bit in (0..3).filter(|bit| bits & 1 << bit != 0) {
                    object.set(&["metadata", "annotations", &format!("a{bit}")], bit);
                    object.0["spec"]["template"]["spec"]["containers"][0][format!("f{bit}")] = json!({"x": [bit]});
                }
                object
            };
            let (a, b) = (store("a"), store("b"));
            let key = key_of(&some(7));
            a.apply(some(7), author("git"), false).await.unwrap();
            exchange(&a, &b).await;
            b.apply(some(taken), author("psctl"), false).await.unwrap();
            if by_update {
                edit(&a, &key, |object| object.0 = some(kept).0).await;
            } else {
                a.apply(some(kept), author("git"), false).await.unwrap();
            }
            exchange(&a, &b).await;
            for store in [&a, &b] {
                let view = store.get(&key).unwrap();
                assert_eq!(plain(&view.object), plain(&some(kept | taken)), "{}", view.revision);
                assert_eq!(view.object.generation(), a.get(&key).unwrap().object.generation());
            }
        });
    }
}
