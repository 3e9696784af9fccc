//! Properties over generated objects and histories.

use std::collections::BTreeMap;

use automerge::{ActorId, Change};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use schemas::fields::{self, ListRule};
use schemas::{KINDS, Kind};
use serde_json::{Map, json};

use super::*;
use crate::document::{Birth, ChangeAuthor, Document};
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

fn odd_key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec!["a", "name", "app.kubernetes.io/name", "", "~", "~1", "[x]", "[x]@1", "<y>", "{union}",
            "{immutable}", "@creator", "a/b", "a.b", "a,b", "]", "#2", "ключ", "containers", "env", "value"])
            .prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

fn odd_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select(vec![
            0,
            1,
            -1,
            i64::MIN,
            i64::MIN + 1,
            i64::MAX,
            1 << 53,
            (1 << 53) + 1
        ])
        .prop_map(Value::from),
        select(vec![u64::MAX, u64::MAX - 1, i64::MAX as u64 + 1]).prop_map(Value::from),
        // The last are the smallest of all, and what is nearest to integers that do not fit.
        select(vec![
            0.0,
            -0.0,
            1.0,
            -0.5,
            0.1,
            1e300,
            f64::MIN_POSITIVE,
            f64::MAX,
            f64::MIN,
            f64::EPSILON,
            5e-324,
            -5e-324,
            9_007_199_254_740_993.0,
            9_223_372_036_854_775_808.0,
            18_446_744_073_709_551_616.0,
        ])
        .prop_map(Value::from),
        odd_key().prop_map(Value::from),
        select(vec![
            "",
            "{}",
            "[]",
            "null",
            "1",
            "\0",
            "\u{feff}",
            "\u{10ffff}",
            "e\u{301}",
            "é",
            "👩‍👩‍👧‍👦"
        ])
        .prop_map(Value::from),
        Just(Value::from("long ".repeat(2000))),
    ]
}

fn odd_value() -> impl Strategy<Value = Value> {
    odd_scalar().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((odd_key(), inner), 0..5)
                .prop_map(|pairs| { Value::Object(pairs.into_iter().collect::<Map<_, _>>()) }),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "d/e", "]", "f,g"]).prop_map(str::to_owned)
}

/// A value of a union, or an odd one.
fn env() -> impl Strategy<Value = Value> {
    (
        name(),
        prop_oneof![
            odd_scalar().prop_map(|value| json!({ "value": value })),
            Just(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
            Just(json!({})),
        ],
    )
        .prop_map(|(name, mut entry)| {
            entry["name"] = name.into();
            entry
        })
}

fn container() -> impl Strategy<Value = Value> {
    let port = (select(vec![80, 443]), any::<bool>()).prop_map(|(port, udp)| {
        if udp {
            json!({"containerPort": port, "protocol": "UDP"})
        } else {
            json!({"containerPort": port})
        }
    });
    (
        prop::option::weighted(0.95, name()),
        select(vec!["i:1", "i:2"]),
        prop::option::of(prop::collection::vec(env(), 0..4)),
        prop::option::of(prop::collection::vec(port, 0..3)),
        prop::option::of(prop::collection::vec(odd_scalar(), 0..3)),
        prop::option::weighted(0.1, (odd_key(), odd_value())),
    )
        .prop_map(|(name, image, env, ports, args, odd)| {
            let mut container = json!({ "image": image });
            let fields = [
                ("name", name.map(Value::from)),
                ("env", env.map(Value::from)),
                ("ports", ports.map(Value::from)),
                ("args", args.map(Value::from)),
            ];
            for (field, value) in fields {
                if let Some(value) = value {
                    container[field] = value;
                }
            }
            if let Some((key, value)) = odd {
                container[key] = value;
            }
            container
        })
}

fn pod_spec() -> impl Strategy<Value = Value> {
    let volume = (
        name(),
        select(vec![json!({"emptyDir": {}}), json!({"hostPath": {"path": "/x"}})]),
    );
    (
        prop::collection::vec(container(), 0..4),
        prop::option::of(prop::collection::vec(volume, 0..3)),
        prop::option::of(odd_value()),
    )
        .prop_map(|(containers, volumes, odd)| {
            let mut spec = json!({ "containers": containers });
            if let Some(volumes) = volumes {
                let volumes = volumes.into_iter().map(|(name, mut volume)| {
                    volume["name"] = name.into();
                    volume
                });
                spec["volumes"] = volumes.collect();
            }
            if let Some(odd) = odd {
                spec["odd"] = odd;
            }
            spec
        })
}

fn metadata() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map(odd_key(), odd_scalar(), 0..4);
    let finalizers = prop::collection::vec(name(), 0..3);
    let owners = prop::collection::vec(name(), 0..3).prop_map(|uids| {
        uids.into_iter()
            .map(|uid| json!({"uid": uid, "kind": "X", "controller": true}))
            .collect::<Value>()
    });
    (
        prop::option::of(labels),
        prop::option::of(finalizers),
        prop::option::of(owners),
    )
        .prop_map(|(labels, finalizers, owners)| {
            let mut metadata = json!({});
            for (field, value) in [
                ("labels", labels.map(|labels| json!(labels))),
                ("finalizers", finalizers.map(|one| json!(one))),
                ("ownerReferences", owners),
            ] {
                if let Some(value) = value {
                    metadata[field] = value;
                }
            }
            metadata
        })
}

/// Where kinds have lists that merge, or that do not.
const LISTS: [&[&str]; 20] = [
    &["spec", "hosts"],
    &["spec", "ports"],
    &["spec", "podCIDRs"],
    &["spec", "taints"],
    &["spec", "finalizers"],
    &["spec", "rules"],
    &["spec", "tls"],
    &["spec", "volumes"],
    &["spec", "hostAliases"],
    &["spec", "topologySpreadConstraints"],
    &["spec", "imagePullSecrets"],
    &["spec", "tolerations"],
    &["spec", "template", "metadata", "finalizers"],
    &["spec", "template", "spec", "volumes"],
    &["status", "conditions"],
    &["status", "addresses"],
    &["status", "podIPs"],
    &["subsets"],
    &["endpoints"],
    &["ports"],
];

/// A list as a kind has it at a path: of elements with their keys (one may lack), of texts, or of anything.
fn list(kind: Kind, path: &'static [&'static str]) -> BoxedStrategy<Value> {
    let elements = match fields::list_rule(kind, path) {
        ListRule::Atomic => odd_value().boxed(),
        ListRule::Set => odd_key().prop_map(Value::from).boxed(),
        ListRule::Keyed { keys } => {
            let of_key = || {
                prop_oneof![
                    name().prop_map(Value::from),
                    odd_key().prop_map(Value::from),
                    odd_scalar()
                ]
            };
            let more = prop::collection::vec((odd_key(), odd_value()), 0..3);
            let values = prop::collection::vec(prop::option::weighted(0.95, of_key()), keys.len());
            (values, more)
                .prop_map(|(values, more)| {
                    let mut element: Map<String, Value> = more.into_iter().collect();
                    for (key, value) in keys.iter().zip(values) {
                        element.extend(value.map(|value| (key.field.to_owned(), value)));
                    }
                    Value::Object(element)
                })
                .boxed()
        }
    };
    prop::collection::vec(elements, 0..4)
        .prop_map(Value::from)
        .boxed()
}

/// Any object of a kind, in the form of real ones or not.
fn any_object(kind: Kind) -> impl Strategy<Value = Object> {
    let lists = select(LISTS.to_vec()).prop_flat_map(move |path| (Just(path), list(kind, path)));
    let lists = prop::collection::vec(lists, 0..4);
    let spec = prop_oneof![
        pod_spec(),
        (pod_spec(), odd_scalar()).prop_map(|(spec, replicas)| json!({
            "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}
        })),
        odd_value(),
    ];
    let more = prop::collection::vec((odd_key(), odd_value()), 0..2);
    // As long as an object may be, all in one value.
    let longest = prop::option::weighted(0.05, Just(Value::from("ы".repeat((1 << 19) - 4096))));
    let parts = (prop::option::of(metadata()), spec, more, lists, longest);
    parts.prop_map(|(metadata, spec, more, lists, longest)| {
        let mut object = Map::new();
        object.insert("spec".to_owned(), spec);
        if let Some(metadata) = metadata.filter(|metadata| *metadata != json!({})) {
            object.insert("metadata".to_owned(), metadata);
        }
        for (key, value) in more
            .into_iter()
            .filter(|(key, _)| !["apiVersion", "kind", "metadata"].contains(&key.as_str()))
        {
            object.insert(key, value);
        }
        let mut object = Object(object);
        for (path, list) in lists {
            object.set(path, list);
        }
        if let Some(longest) = longest {
            object.set(&["data", "longest"], longest);
        }
        object
    })
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
                let mut document = Document::new(ActorId::random());
                let leaves = leaves::flatten(kind, &object, &Leaves::new());
                let change = document
                    .create(
                        kind,
                        leaves,
                        &Birth::default(),
                        &change_author(),
                        Operation::Update,
                    )
                    .unwrap();
                let operations = Change::from_bytes(change.bytes.clone()).unwrap().len() as u64;
                prop_assert_eq!(run_lengths::operations(&change.bytes), Some(operations));
                document
            }
            Some(mut document) => {
                let contents = document.contents();
                let leaves = leaves::flatten(kind, &object, &contents.leaves);
                document
                    .write(kind, &contents, leaves, &contents.owners, &change_author())
                    .unwrap();
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
    Create(Index, Index),
    Remove(Index, Index),
    Label(Index, Index, String, u8),
    Replicas(Index, Index, u8),
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

fn step() -> impl Strategy<Value = Step> {
    let at = || any::<Index>();
    let whole = || {
        (metadata(), pod_spec()).prop_map(|(metadata, spec)| {
            let mut object = deployment("x");
            object.set(&["spec", "template", "spec"], spec);
            for (field, value) in metadata.as_object().cloned().unwrap_or_default() {
                object.set(&["metadata", &field], value);
            }
            Box::new(object)
        })
    };
    prop_oneof![
        3 => (at(), at()).prop_map(|(a, b)| Step::Create(a, b)),
        2 => (at(), at()).prop_map(|(a, b)| Step::Remove(a, b)),
        3 => (at(), at(), odd_key(), any::<u8>()).prop_map(|(a, b, key, value)| Step::Label(a, b, key, value)),
        2 => (at(), at(), any::<u8>()).prop_map(|(a, b, value)| Step::Replicas(a, b, value)),
        3 => (at(), at(), name()).prop_map(|(a, b, name)| Step::AddContainer(a, b, name)),
        2 => (at(), at(), name()).prop_map(|(a, b, name)| Step::RemoveContainer(a, b, name)),
        3 => (at(), at(), name(), any::<u8>()).prop_map(|(a, b, name, image)| Step::Image(a, b, name, image)),
        3 => (at(), at(), name(), env()).prop_map(|(a, b, name, env)| Step::Env(a, b, name, env)),
        1 => (at(), at(), whole()).prop_map(|(a, b, object)| Step::Whole(a, b, object)),
        2 => (at(), at(), whole()).prop_map(|(a, b, object)| Step::Apply(a, b, object)),
        2 => (at(), at()).prop_map(|(a, b)| Step::Exchange(a, b)),
        4 => (at(), at()).prop_map(|(a, b)| Step::Deliver(a, b)),
        3 => (at(), prop::collection::vec(any::<bool>(), 5)).prop_map(|(a, hear)| Step::Squash(a, hear)),
        1 => at().prop_map(Step::Crash),
    ]
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
    object
        .0
        .get_mut("spec")?
        .get_mut("template")?
        .get_mut("spec")?
        .get_mut("containers")?
        .as_array_mut()
}

fn named<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Value> {
    containers(object)?
        .iter_mut()
        .find(|container| container["name"] == name)
}

const NAMES: [&str; 2] = ["web", "db"];

async fn run(replicas: usize, steps: Vec<Step>) {
    let mut nodes: Vec<Replica> = (0..replicas)
        .map(|number| Replica::open(MemoryDisk::default(), number))
        .collect();
    let mut frames = Vec::new();
    let mut removed: BTreeMap<String, ObjectKey> = BTreeMap::new();
    for step in steps {
        perform(&mut nodes, &frames, &mut removed, step).await;
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
            let items = store.list(Kind::Deployment, None).items;
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
    nodes: &mut [Replica],
    frames: &[bytes::Bytes],
    removed: &mut BTreeMap<String, ObjectKey>,
    step: Step,
) {
    let key = |at: Index| ObjectKey::new(Kind::Deployment, "default", *at.get(&NAMES));
    let count = nodes.len();
    let mut change: Option<(Index, Index, Edit)> = None;
    match step {
        Step::Create(node, at) => {
            let _ = node
                .get(nodes)
                .store
                .create(deployment(&key(at).name), author("kubectl"))
                .await;
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
        Step::Apply(node, at, mut object) => {
            object.set(&["metadata", "name"], key(at).name);
            let manager = if node.index(2) == 0 { "git" } else { "psctl" };
            node.get(nodes)
                .store
                .apply(*object, author(manager), true)
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
        Step::Replicas(node, at, value) => {
            change = Some((
                node,
                at,
                Box::new(move |object| object.set(&["spec", "replicas"], value)),
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
                    object.0.insert("spec".to_owned(), whole.0["spec"].clone());
                }),
            ));
        }
    }
    if let Some((node, at, change)) = change {
        let store = &node.get(nodes).store;
        if store.get(&key(at)).is_some() {
            let edited = edit(store, &key(at), &*change).await;
            let mut expected = Object::clone(&edited.object);
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

    /// P1, P4, P5: any edits, in any order of delivery, with duplication, loss and crashes.
    #[test]
    fn replicas_that_talk_become_equal(replicas in 2..=5_usize, steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(replicas, steps));
    }

    /// P2: edits of different fields all survive, wherever they are made.
    #[test]
    fn edits_of_different_fields_survive(order in prop::collection::vec(any::<Index>(), 8), rounds in 1..4_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let stores: Vec<Store> = (0..4).map(|number| store(&format!("node{number}"))).collect();
            let key = key_of(&deployment("web"));
            stores[0].create(deployment("web"), author("x")).await.unwrap();
            for other in &stores[1..] {
                exchange(&stores[0], other).await;
            }
            for round in 0..rounds {
                for (number, store) in stores.iter().enumerate() {
                    edit(store, &key, |object| {
                        object.set(&["metadata", "labels", &format!("label{number}")], round);
                        let env = json!({"name": format!("E{number}"), "value": format!("{round}")});
                        let containers = containers(object).unwrap();
                        let list = containers[0]["env"].as_array_mut().unwrap();
                        list.retain(|entry| entry["name"] != env["name"]);
                        list.push(env);
                        containers.retain(|container| container["name"] != format!("c{number}"));
                        containers.push(json!({"name": format!("c{number}"), "image": format!("i:{round}")}));
                    }).await;
                }
                for at in &order {
                    let from = at.index(stores.len());
                    exchange(&stores[from], &stores[(from + 1 + round) % stores.len()]).await;
                }
            }
            for from in &stores {
                for to in &stores {
                    exchange(from, to).await;
                }
            }
            for store in &stores {
                let view = store.get(&key).unwrap();
                let mut object = Object::clone(&view.object);
                for number in 0..stores.len() {
                    let last = rounds - 1;
                    assert_eq!(object.pointer(&format!("/metadata/labels/label{number}")), Some(&json!(last)));
                    let containers = containers(&mut object).unwrap();
                    assert!(containers.contains(&json!({"name": format!("c{number}"), "image": format!("i:{last}")})));
                    let env = containers.iter().find(|one| one["name"] == "web").unwrap()["env"].as_array().unwrap();
                    assert!(env.contains(&json!({"name": format!("E{number}"), "value": format!("{last}")})));
                }
            }
        });
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
