//! Sets of fields as Kubernetes writes them down (`FieldsV1`), and the fields that a document's leaves stand for. Pure.
//!
//! A set is a tree of steps: `f:` a field's name, `k:` the merge keys of an element, `v:` an element of a set, each with what is
//! named below it; one with nothing below it is in the set itself, and one with more where it holds `.`. The form is that of
//! structured-merge-diff (`fieldpath/serialize.go`). Who owns what is in `managed.rs`.

use std::collections::BTreeMap;

use automerge::ScalarValue;
use schemas::Kind;
use schemas::fields::{self, ListRule};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::leaves::{Leaves, is_marker, to_json};
use crate::path::{self, Element, Token};

/// What stands for a field or element itself, beside what is below it.
const ITSELF: &str = ".";

/// A set of fields. The root is in none.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct FieldSet {
    is_member: bool,
    below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(crate) fn insert(&mut self, steps: &[String]) {
        let mut set = self;
        for step in steps {
            if !set.below.contains_key(step) {
                set.below.insert(step.clone(), Self::default());
            }
            let Some(next) = set.below.get_mut(step) else {
                return;
            };
            set = next;
        }
        set.is_member = true;
    }

    pub(crate) fn contains(&self, steps: &[String]) -> bool {
        let mut set = self;
        for step in steps {
            let Some(next) = set.below.get(step) else {
                return false;
            };
            set = next;
        }
        set.is_member
    }

    /// Reads a set; steps of kinds that nobody knows are left out, as in Kubernetes. Nothing is an empty set.
    ///
    /// # Errors
    /// What is no set, in words.
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        let set = Self::read(value)?;
        Ok(Self {
            is_member: false,
            ..set
        })
    }

    fn read(value: &Value) -> Result<Self, String> {
        let mut set = Self::default();
        match value {
            Value::Null => return Ok(set),
            Value::Object(map) => {
                for (step, below) in map {
                    set.take(step, below)?;
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err("is not a map of fields".to_owned());
            }
        }
        Ok(set)
    }

    fn take(&mut self, step: &str, below: &Value) -> Result<(), String> {
        if step == ITSELF {
            self.is_member = true;
            return Ok(());
        }
        let Some(step) = canonical(step)? else {
            return Ok(());
        };
        let mut set = Self::read(below)?;
        set.is_member |= set.below.is_empty();
        self.below.insert(step, set);
        Ok(())
    }
}

impl Serialize for FieldSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.is_member && !self.below.is_empty() {
            map.serialize_entry(ITSELF, &Map::new())?;
        }
        for (step, set) in &self.below {
            map.serialize_entry(step, set)?;
        }
        map.end()
    }
}

/// Returns the one spelling of a step; None, if it is of a kind that is not known.
fn canonical(step: &str) -> Result<Option<String>, String> {
    let bad = |reason: &dyn std::fmt::Display| format!("{step:?}: {reason}");
    let (kind, text) = step.split_once(':').ok_or_else(|| bad(&"there is no colon"))?;
    match kind {
        "f" => Ok(Some(step.to_owned())),
        "k" => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| bad(&error))?;
            Ok(Some(key_step(&keys)))
        }
        "v" => {
            let value: Value = serde_json::from_str(text).map_err(|error| bad(&error))?;
            Ok(Some(value_step(&value)))
        }
        "i" => {
            // No list of ours is told apart by places.
            let _: i64 = text.parse().map_err(|error| bad(&error))?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn field_step(name: &str) -> String {
    format!("f:{name}")
}

fn key_step(keys: &BTreeMap<String, Value>) -> String {
    // Maps with text keys can be written.
    format!("k:{}", serde_json::to_string(keys).unwrap_or_default())
}

fn value_step(value: &Value) -> String {
    format!("v:{value}")
}

// ---------------------------------------------------------------- fields of leaves

/// Calls `found` with the leaves that are shown and the steps to the fields that they stand for: an element's register or a
/// union has several.
pub(crate) fn fields_of(kind: Kind, leaves: &Leaves, found: &mut dyn FnMut(&str, &[String])) {
    let mut root = Node::default();
    for (path, value) in leaves.iter().filter(|(path, _)| !path::is_too_deep(path)) {
        let mut node = &mut root;
        for token in path.split('/') {
            node = node.children.entry(token).or_default();
        }
        node.leaf = Some((path, value));
    }
    let mut walk = Walk {
        kind,
        names: Vec::new(),
        steps: Vec::new(),
        found,
    };
    walk.children(&root);
}

/// Shows wanted leaves to people as Kubernetes does (`.spec.containers[name="web"].image`); of one with several fields, what
/// they have in common.
pub(crate) fn display(
    kind: Kind,
    leaves: &Leaves,
    is_wanted: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    fields_of(kind, leaves, &mut |leaf, steps| {
        if !is_wanted(leaf) {
            return;
        }
        let common = found.entry(leaf.to_owned()).or_insert_with(|| steps.to_vec());
        let equal = common.iter().zip(steps).take_while(|(one, other)| one == other);
        let equal = equal.count();
        common.truncate(equal);
    });
    let show = |steps: Vec<String>| steps.iter().map(|step| display_step(step)).collect();
    found
        .into_iter()
        .map(|(leaf, steps)| (leaf, show(steps)))
        .collect()
}

fn display_step(step: &str) -> String {
    match step.split_once(':') {
        Some(("k", keys)) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, name)) => format!(".{name}"),
        None => String::new(),
    }
}

#[derive(Default)]
struct Node<'a> {
    leaf: Option<(&'a str, &'a ScalarValue)>,
    children: BTreeMap<&'a str, Node<'a>>,
}

struct Walk<'a> {
    kind: Kind,
    /// The plain names on the way, by which rules are found.
    names: Vec<String>,
    steps: Vec<String>,
    found: &'a mut dyn FnMut(&str, &[String]),
}

impl Walk<'_> {
    fn within(&mut self, step: String, walk: impl FnOnce(&mut Self)) {
        self.steps.push(step);
        walk(self);
        self.steps.pop();
    }

    fn within_field(&mut self, name: &str, walk: impl FnOnce(&mut Self)) {
        self.names.push(name.to_owned());
        self.within(field_step(name), walk);
        self.names.pop();
    }

    fn rule(&self) -> ListRule {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        fields::list_rule(self.kind, &names)
    }

    fn is_atomic_map(&self) -> bool {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        fields::is_atomic_map(self.kind, &names)
    }

    fn node(&mut self, node: &Node<'_>) {
        if let Some((leaf, value)) = node.leaf {
            (self.found)(leaf, &self.steps);
            // Any other value hides what is below it.
            if !is_marker(value) {
                return;
            }
        }
        self.children(node);
    }

    fn children(&mut self, node: &Node<'_>) {
        for (token, child) in &node.children {
            match path::parse(token) {
                Some(Token::Field(name)) => self.within_field(&name, |walk| walk.node(child)),
                Some(Token::Group(_)) => self.group(child),
                Some(Token::Element(element)) if element.number.is_none() => {
                    self.element(node, &element, child);
                }
                Some(Token::Element(_)) | None => {}
            }
        }
    }

    /// An element of a list that is there, from its presence.
    fn element(&mut self, list: &Node<'_>, element: &Element<'_>, presence: &Node<'_>) {
        let Some((leaf, ScalarValue::Int(number @ 1..))) = presence.leaf else {
            return;
        };
        let content = list
            .children
            .get(format!("{}@{number}", element.identity).as_str());
        let step = match &element.set_value {
            Some(value) => value_step(&Value::from(value.as_ref())),
            None => self.element_step(element, content),
        };
        self.within(step, |walk| {
            (walk.found)(leaf, &walk.steps);
            let Some(content) = content else { return };
            match content.children.get(path::ELEMENT).and_then(|node| node.leaf) {
                // It is one value with its fields.
                Some((leaf, _)) => (walk.found)(leaf, &walk.steps),
                None => walk.children(content),
            }
        });
    }

    /// Names an element by its merge keys: their values are texts in its path, and numbers where its fields are.
    fn element_step(&self, element: &Element<'_>, content: Option<&Node<'_>>) -> String {
        let ListRule::Keyed { keys } = self.rule() else {
            return key_step(&BTreeMap::new());
        };
        let texts = element.key_values().unwrap_or_default();
        let value = |(key, text): (&fields::MergeKey, String)| {
            let field = content.and_then(|content| content.children.get(path::field(key.field).as_ref()));
            let number = field
                .and_then(|field| field.leaf)
                .map(|(_, value)| to_json(value))
                .filter(Value::is_number);
            (key.field.to_owned(), number.unwrap_or(Value::String(text)))
        };
        key_step(&keys.iter().zip(texts).map(value).collect())
    }

    /// Several fields in one leaf.
    fn group(&mut self, node: &Node<'_>) {
        let Some((leaf, value)) = node.leaf else { return };
        let Value::Object(members) = to_json(value) else {
            return;
        };
        for (name, value) in &members {
            self.within_field(name, |walk| walk.value(leaf, value));
        }
    }

    fn value(&mut self, leaf: &str, value: &Value) {
        match (value, self.rule()) {
            (Value::Object(map), _) if !map.is_empty() && !self.is_atomic_map() => {
                for (name, value) in map {
                    self.within_field(name, |walk| walk.value(leaf, value));
                }
            }
            (Value::Array(list), ListRule::Keyed { keys })
                if !list.is_empty() && list.iter().all(Value::is_object) =>
            {
                for element in list {
                    let named = keys.iter().filter_map(|key| {
                        let default = || key.default.map(Value::from);
                        let value = element.get(key.field).cloned().or_else(default)?;
                        Some((key.field.to_owned(), value))
                    });
                    let step = key_step(&named.collect());
                    self.within(step, |walk| {
                        (walk.found)(leaf, &walk.steps);
                        if !walk.is_atomic_map() {
                            walk.value(leaf, element);
                        }
                    });
                }
            }
            (Value::Array(list), ListRule::Set) if !list.is_empty() => {
                for element in list {
                    self.within(value_step(element), |walk| (walk.found)(leaf, &walk.steps));
                }
            }
            _ => (self.found)(leaf, &self.steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::leaves;
    use crate::tests::object;

    /// The set of all fields of an object.
    fn set_of(kind: Kind, value: Value) -> FieldSet {
        let leaves = leaves::flatten(kind, &object(value), &Leaves::new());
        let mut set = FieldSet::default();
        fields_of(kind, &leaves, &mut |_, steps| set.insert(steps));
        set
    }

    #[test]
    fn fields_are_written_as_kubernetes_writes_them() {
        let check = |kind, value: Value, expected: Value| {
            assert_eq!(serde_json::to_value(set_of(kind, value)).unwrap(), expected);
        };
        check(
            Kind::Deployment,
            json!({
                "metadata": {"labels": {"app.kubernetes.io/name": "web"}, "finalizers": ["a/b"],
                    "ownerReferences": [{"uid": "1", "kind": "A", "name": "a", "apiVersion": "v1"}]},
                "spec": {
                    "replicas": 2,
                    "selector": {"matchLabels": {"app": "web"}},
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                    "template": {"spec": {
                        "containers": [{
                            "name": "web", "args": ["a"],
                            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                            "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
                        }],
                        "imagePullSecrets": [{"name": "key"}],
                        "tolerations": [{"key": "a"}],
                        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "m", "items": [{"key": "k"}]}}],
                    }},
                },
            }),
            json!({
                "f:metadata": {"f:labels": {"f:app.kubernetes.io/name": {}}, "f:finalizers": {"v:\"a/b\"": {}},
                    "f:ownerReferences": {"k:{\"uid\":\"1\"}": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:selector": {},
                    "f:strategy": {"f:type": {}, "f:rollingUpdate": {"f:maxSurge": {}}},
                    "f:template": {"f:spec": {
                        "f:containers": {"k:{\"name\":\"web\"}": {
                            ".": {}, "f:name": {}, "f:args": {},
                            "f:env": {
                                "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}},
                                "k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:valueFrom": {"f:fieldRef": {}}},
                            },
                            "f:ports": {
                                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
                                "k:{\"containerPort\":53,\"protocol\":\"UDP\"}":
                                    {".": {}, "f:containerPort": {}, "f:protocol": {}},
                            },
                        }},
                        "f:imagePullSecrets": {"k:{\"name\":\"key\"}": {}},
                        "f:tolerations": {},
                        "f:volumes": {
                            "k:{\"name\":\"v\"}": {".": {}, "f:name": {}, "f:emptyDir": {}},
                            "k:{\"name\":\"w\"}": {".": {}, "f:name": {}, "f:configMap": {"f:name": {}, "f:items": {}}},
                        },
                    }},
                },
            }),
        );
        // An element is itself and what it holds; a key may have what ends a token.
        check(
            Kind::Service,
            json!({"spec": {"ports": [{"port": 80, "name": "a"}], "externalName": ""}}),
            json!({"f:spec": {"f:externalName": {}, "f:ports": {
                "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:name": {}}}}}),
        );
        check(
            Kind::ConfigMap,
            json!({"data": {"a/b~c": "1", "": "2", ".": "3", "[x]": "4"}}),
            json!({"f:data": {"f:a/b~c": {}, "f:": {}, "f:.": {}, "f:[x]": {}}}),
        );
        check(Kind::ConfigMap, json!({"data": {}}), json!({"f:data": {}}));
    }

    #[test]
    fn people_see_fields_as_kubernetes_shows_them() {
        let pod = json!({
            "metadata": {"labels": {"a/b": "c"}, "finalizers": ["a/b"]},
            "spec": {
                "containers": [{"name": "web", "ports": [{"containerPort": 80}], "env": [{"name": "A", "value": "1"}]}],
                "volumes": [{"name": "v", "configMap": {"name": "m", "optional": true}}],
            },
        });
        let leaves = leaves::flatten(Kind::Pod, &object(pod), &Leaves::new());
        let shown: Vec<String> = display(Kind::Pod, &leaves, |_| true).into_values().collect();
        for path in [
            ".metadata.labels.a/b",
            ".metadata.finalizers[=\"a/b\"]",
            ".spec.containers[name=\"web\"]",
            ".spec.containers[name=\"web\"].ports[containerPort=80,protocol=\"TCP\"].containerPort",
            ".spec.containers[name=\"web\"].env[name=\"A\"].value",
            ".spec.volumes[name=\"v\"].configMap",
        ] {
            assert!(shown.contains(&path.to_owned()), "{path} is not in {shown:#?}");
        }
    }

    #[test]
    fn sets_survive_their_json() {
        let check = |read: Value, written: Value| {
            let set = FieldSet::parse(&read).unwrap();
            assert_eq!(serde_json::to_value(&set).unwrap(), written);
            assert_eq!(FieldSet::parse(&written).unwrap(), set);
        };
        let same = |value: Value| check(value.clone(), value);
        same(json!({}));
        same(json!({"f:a": {".": {}, "f:b": {}, "k:{\"x\":1,\"y\":\"\"}": {"f:x": {}}, "v:1": {}}}));
        // One spelling of each; what is not known is left out.
        check(
            json!({"f:a": {"k:{ \"y\": 2, \"x\": 1}": {}}}),
            json!({"f:a": {"k:{\"x\":1,\"y\":2}": {}}}),
        );
        check(json!({"f:a": {"z:new": {}, "i:3": {}}}), json!({"f:a": {}}));
        check(json!({"f:a": null}), json!({"f:a": {}}));
        check(json!({".": {}}), json!({}));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for bad in [
            json!("f:a"),
            json!([]),
            json!({"a": {}}),
            json!({"f:a": 1}),
            json!({"f:a": {"k:": {}}}),
            json!({"k:[]": {}}),
            json!({"v:": {}}),
            json!({"i:x": {}}),
            json!({"f:a": {"f:b": "c"}}),
        ] {
            assert!(FieldSet::parse(&bad).is_err(), "{bad}");
        }
    }
}
