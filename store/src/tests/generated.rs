//! Objects of any kind, real ones and odd ones, and edits of them.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use schemas::fields::{self, ListRule};
use schemas::{KINDS, Kind};
use serde_json::{Map, json};

use super::*;
use crate::leaves;

pub(super) fn odd_key() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec!["a", "name", "app.kubernetes.io/name", "", "~", "~1", "[x]", "[x]@1", "<y>", "{union}",
            "{immutable}", "@creator", "a/b", "a.b", "a,b", "]", "#2", "ключ", "containers", "env", "value"])
            .prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

pub(super) fn odd_scalar() -> impl Strategy<Value = Value> {
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

pub(super) fn odd_value() -> impl Strategy<Value = Value> {
    odd_scalar().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((odd_key(), inner), 0..5)
                .prop_map(|pairs| { Value::Object(pairs.into_iter().collect::<Map<_, _>>()) }),
        ]
    })
}

pub(super) fn name() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "d/e", "]", "f,g"]).prop_map(str::to_owned)
}

/// A value of a union, or an odd one.
pub(super) fn env() -> impl Strategy<Value = Value> {
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

pub(super) fn pod_spec() -> impl Strategy<Value = Value> {
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

pub(super) fn metadata() -> impl Strategy<Value = Value> {
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
pub(super) fn any_object(kind: Kind) -> impl Strategy<Value = Object> {
    // As long as an object may be, all in one value.
    let longest = prop::option::weighted(0.05, Just(Value::from("ы".repeat((1 << 19) - 4096))));
    (small_object(kind), longest).prop_map(|(mut object, longest)| {
        if let Some(longest) = longest {
            object.set(&["data", "longest"], longest);
        }
        object
    })
}

/// As [`any_object`], but for those that take long.
pub(super) fn small_object(kind: Kind) -> impl Strategy<Value = Object> {
    let mut merging = LISTS.to_vec();
    merging.retain(|path| fields::list_rule(kind, path) != ListRule::Atomic);
    let merging = if merging.is_empty() {
        LISTS.to_vec()
    } else {
        merging
    };
    let lists = prop_oneof![select(merging), select(LISTS.to_vec())];
    let lists = lists.prop_flat_map(move |path| (Just(path), list(kind, path)));
    let lists = prop::collection::vec(lists, 0..4);
    let template = (pod_spec(), odd_scalar()).prop_map(|(spec, replicas)| {
        json!({
            "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}
        })
    });
    let often = |is_usual: bool| if is_usual { 4 } else { 1 };
    let of_pods = often(kind == Kind::Pod);
    let of_templates = often(matches!(kind, Kind::Deployment | Kind::ReplicaSet));
    let spec = prop_oneof![of_pods => pod_spec(), of_templates => template, 1 => odd_value()];
    let more = prop::collection::vec((odd_key(), odd_value()), 0..2);
    let parts = (prop::option::of(metadata()), spec, more, lists);
    parts.prop_map(|(metadata, spec, more, lists)| {
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
        object
    })
}

pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    select(KINDS.iter().map(|row| row.kind).collect::<Vec<_>>())
}

/// Gives a generated object its kind and name.
pub(super) fn placed(key: &ObjectKey, tree: &Object) -> Object {
    let mut object = Object::new(key);
    for (name, value) in &tree.0 {
        match (object.0.get_mut(name), value) {
            (Some(Value::Object(metadata)), Value::Object(more)) => metadata.extend(more.clone()),
            _ => {
                object.0.insert(name.clone(), value.clone());
            }
        }
    }
    object
}

/// An edit at a place of an object that is drawn when it is made.
#[derive(Clone, Debug)]
pub(super) enum Touch {
    Replace(Value),
    Remove,
    /// Into a map.
    Insert(String, Value),
    /// To a list: an element of its own, if the list merges.
    Append(u64),
}

pub(super) fn touch() -> impl Strategy<Value = Touch> {
    prop_oneof![
        4 => odd_scalar().prop_map(Touch::Replace),
        1 => odd_value().prop_map(Touch::Replace),
        2 => Just(Touch::Remove),
        3 => (odd_key(), odd_value()).prop_map(|(key, value)| Touch::Insert(key, value)),
        3 => any::<u64>().prop_map(Touch::Append),
    ]
}

/// Where an object (without system fields) can be edited: map keys and positions in lists, from the root.
fn places(object: &Object) -> Vec<Vec<String>> {
    fn visit(value: &Value, place: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        // The maps of metadata hold what the store says.
        if *place != ["metadata"] {
            found.push(place.clone());
        }
        let mut below = |name: String, value: &Value| {
            place.push(name);
            visit(value, place, found);
            place.pop();
        };
        match value {
            Value::Object(map) => map.iter().for_each(|(name, value)| below(name.clone(), value)),
            Value::Array(list) => {
                let numbered = list.iter().enumerate();
                numbered.for_each(|(at, value)| below(at.to_string(), value));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    for (name, value) in &object.0 {
        visit(value, &mut vec![name.clone()], &mut found);
    }
    found
}

impl Touch {
    /// Edits an object at one of its places; where it does not fit nothing is done.
    pub(super) fn perform(&self, kind: Kind, object: &mut Object, place: Index) {
        let mut tree = object.clone();
        leaves::strip_system_fields(&mut tree);
        let places = places(&tree);
        if places.is_empty() {
            return;
        }
        let (last, parents) = place.get(&places).split_last().unwrap();
        let mut root = Value::Object(std::mem::take(&mut object.0));
        let (mut value, mut names) = (&mut root, Vec::new());
        for token in parents {
            value = match value {
                Value::Array(list) => &mut list[token.parse::<usize>().unwrap()],
                map => {
                    names.push(token.as_str());
                    &mut map[token.as_str()]
                }
            };
        }
        match (value, self) {
            (Value::Array(list), Self::Remove) => drop(list.remove(last.parse().unwrap())),
            (Value::Array(list), _) => self.change(kind, &mut list[last.parse::<usize>().unwrap()], &names),
            (map, Self::Remove) => drop(map.as_object_mut().unwrap().remove(last)),
            (map, _) => {
                names.push(last);
                self.change(kind, &mut map[last.as_str()], &names);
            }
        }
        object.0 = root.as_object_mut().map(std::mem::take).unwrap();
    }

    fn change(&self, kind: Kind, value: &mut Value, names: &[&str]) {
        match (self, value) {
            (Self::Replace(new), value) => *value = new.clone(),
            (Self::Insert(key, new), Value::Object(map)) => drop(map.insert(key.clone(), new.clone())),
            (Self::Append(number), Value::Array(list)) => list.push(match fields::list_rule(kind, names) {
                ListRule::Atomic | ListRule::Set => format!("appended{number}").into(),
                ListRule::Keyed { keys } => {
                    let keys = keys
                        .iter()
                        .map(|key| (key.field.to_owned(), format!("appended{number}").into()));
                    Value::Object(keys.collect())
                }
            }),
            (Self::Insert(..) | Self::Append(_) | Self::Remove, _) => {}
        }
    }
}
