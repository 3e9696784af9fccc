//! Patches as the Kubernetes API takes them: JSON patch, JSON merge patch, strategic merge patch.
//!
//! Pure functions of object and patch. What comes out is not validated, and whether a patch may change name or kind is
//! for the caller to check. Server-side apply is the store's. Merge keys come from [`crate::fields`].

use std::collections::{HashMap, HashSet};

use json_patch::PatchOperation;
use json_patch::jsonptr::{Pointer, PointerBuf};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fields::{self, ListRule, PatchRule};
use crate::manifest::{MAX_DEPTH, MAX_OBJECT_BYTES};
use crate::{Kind, Object};

/// Operations of a JSON patch, as in Kubernetes.
pub const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the `copy` and `move` operations of a JSON patch may take along together: a few copies could fill the
/// memory, and each is looked through for its depth.
pub const MAX_COPIED_BYTES: usize = MAX_OBJECT_BYTES;

/// Elements of one list with the same merge key (a port for each protocol), among which an element of a strategic patch
/// looks for its own.
pub const MAX_SAME_KEY: usize = 64;

/// Why a patch does not apply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatchError {
    #[error("a JSON patch is a list of operations: {0}")]
    NotOperations(String),
    #[error("the patch has {0} operations, more than {MAX_OPERATIONS}")]
    TooManyOperations(usize),
    #[error("what the patch copies and moves has more than {MAX_COPIED_BYTES} bytes")]
    TooMuchCopied,
    #[error("operation {index} at `{path}`: {problem}")]
    Operation {
        index: usize,
        path: PointerBuf,
        problem: String,
    },
    /// A `test` operation found another value.
    #[error("operation {index} at `{path}`: the test failed, the value is another")]
    TestFailed { index: usize, path: PointerBuf },
    #[error("a patch of an object is a map, and leaves one")]
    NotAnObject,
    #[error("the patched object is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("{path}: {problem}")]
    Directive { path: String, problem: String },
    #[error("{path}: an element has no {key}, by which elements are merged")]
    NoMergeKey { path: String, key: &'static str },
}

/// Applies a JSON patch (RFC 6902, `application/json-patch+json`), all of it or nothing.
///
/// As in Kubernetes, a `test` for null holds for a field that is not there: kube-rs adds an object's first finalizer so.
pub fn json_patch(object: &Object, patch: &Value) -> Result<Object, PatchError> {
    let operations: Vec<PatchOperation> =
        Vec::deserialize(patch).map_err(|error| PatchError::NotOperations(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let mut value = object.clone().into_value();
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if let PatchOperation::Test(test) = operation
            && test.value.is_null()
            && is_absent(&value, &test.path)
        {
            continue;
        }
        let added = match operation {
            PatchOperation::Add(add) => Some(&add.value),
            PatchOperation::Replace(replace) => Some(&replace.value),
            PatchOperation::Move(moved) => moved.from.resolve(&value).ok(),
            PatchOperation::Copy(copy) => copy.from.resolve(&value).ok(),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
        };
        if let (PatchOperation::Move(_) | PatchOperation::Copy(_), Some(source)) = (operation, added) {
            copied += serde_json::to_vec(source).map_or(0, |json| json.len());
            if copied > MAX_COPIED_BYTES {
                return Err(PatchError::TooMuchCopied);
            }
        }
        // Before each step: a value that many moves have nested could not even be dropped. The object is level 0, as in
        // manifests.
        if let Some(added) = added {
            let left = MAX_DEPTH.checked_sub(operation.path().count());
            if left.is_none_or(|left| depth_exceeds(added, left)) {
                return Err(PatchError::TooDeep);
            }
        }
        // On an error `value` is dropped, so that nothing needs to be undone.
        json_patch::patch_unsafe(&mut value, std::slice::from_ref(operation)).map_err(|error| match error
            .kind
        {
            json_patch::PatchErrorKind::TestFailed => PatchError::TestFailed {
                index,
                path: error.path,
            },
            kind => PatchError::Operation {
                index,
                path: error.path,
                problem: kind.to_string(),
            },
        })?;
    }
    Object::from_value(value).ok_or(PatchError::NotAnObject)
}

/// Tells whether a path names a field of a map that has no such field.
fn is_absent(value: &Value, path: &Pointer) -> bool {
    let Some((parent, field)) = path.split_back() else {
        return false;
    };
    let parent = parent.resolve(value).ok().and_then(Value::as_object);
    parent.is_some_and(|map| !map.contains_key(field.decoded().as_ref()))
}

fn depth_exceeds(value: &Value, levels: usize) -> bool {
    let below = |inner: &Value| levels == 0 || depth_exceeds(inner, levels - 1);
    match value {
        Value::Array(list) => levels == 0 || list.iter().any(below),
        Value::Object(map) => levels == 0 || map.values().any(below),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Applies a JSON merge patch (RFC 7396, `application/merge-patch+json`).
pub fn merge_patch(object: &Object, patch: &Value) -> Result<Object, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::NotAnObject);
    }
    let mut value = object.clone().into_value();
    json_patch::merge(&mut value, patch);
    Object::from_value(value).ok_or(PatchError::NotAnObject)
}

/// Applies a strategic merge patch (`application/strategic-merge-patch+json`): as a merge patch, but lists are merged
/// by their keys, and `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/x` and `$setElementOrder/x` are obeyed.
///
/// One difference from Kubernetes: where several elements share the merge key (a port for TCP and for UDP), the one that
/// has all key fields of the patch's element is meant, not the first.
pub fn strategic_merge_patch(object: &Object, patch: &Value) -> Result<Object, PatchError> {
    let (Some(kind), Some(patch)) = (object.kind(), patch.as_object()) else {
        return Err(PatchError::NotAnObject);
    };
    let mut strategic = Strategic {
        kind,
        path: Vec::new(),
    };
    strategic.map(object.0.clone(), patch).map(Object)
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// A strategic merge on its way through the object.
struct Strategic<'a> {
    kind: Kind,
    /// Plain names down to where the merge is.
    path: Vec<&'a str>,
}

impl<'a> Strategic<'a> {
    fn fail<T>(&self, problem: impl Into<String>) -> Result<T, PatchError> {
        Err(PatchError::Directive {
            path: self.path.join("."),
            problem: problem.into(),
        })
    }

    fn rule(&self) -> PatchRule {
        fields::patch_rule(self.kind, &self.path)
    }

    fn map(
        &mut self,
        mut original: Map<String, Value>,
        patch: &'a Map<String, Value>,
    ) -> Result<Map<String, Value>, PatchError> {
        match patch
            .get(DIRECTIVE)
            .map(|directive| directive.as_str().unwrap_or_default())
        {
            None | Some("merge") => {}
            Some("delete") => return Ok(Map::new()),
            Some("replace") => {
                let fields = patch.iter().filter(|(name, _)| *name != DIRECTIVE);
                return Ok(fields
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect());
            }
            Some(other) => return self.fail(format!("unknown {DIRECTIVE} `{other}`")),
        }
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            let Some(retained) = retained.as_array() else {
                return self.fail(format!("{RETAIN_KEYS} is a list of names"));
            };
            let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
            original.retain(|name, _| retained.contains(name.as_str()));
        }
        for (name, change) in patch {
            if let Some(field) = name.strip_prefix(DELETE_VALUES) {
                let (Some(gone), list) = (change.as_array(), original.get_mut(field)) else {
                    return self.fail(format!("{name} is a list"));
                };
                if let Some(Value::Array(list)) = list {
                    let gone: HashSet<&Value> = gone.iter().collect();
                    list.retain(|value| !gone.contains(value));
                }
            }
        }
        // What the server has, before the patch: `$setElementOrder` leaves the elements it does not name in this order.
        let before: Vec<(&str, Option<Value>)> = patch
            .keys()
            .filter_map(|name| name.strip_prefix(ELEMENT_ORDER))
            .map(|name| (name, original.get(name).cloned()))
            .collect();

        for (name, change) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
            if change.is_null() {
                original.remove(name);
                continue;
            }
            self.path.push(name);
            let old = original.get_mut(name).map(Value::take);
            let merged = self.value(old, change)?;
            original.insert(name.clone(), merged);
            self.path.pop();
        }
        for (name, server) in before {
            let Some(Value::Array(order)) = patch.get(&format!("{ELEMENT_ORDER}{name}")) else {
                return self.fail(format!("{ELEMENT_ORDER}{name} is a list"));
            };
            let Some(list) = original.get_mut(name).and_then(Value::as_array_mut) else {
                continue;
            };
            self.path.push(name);
            let key = match self.rule() {
                PatchRule::MergeBy(key) => Some(key),
                PatchRule::MergeValues | PatchRule::Replace => None,
            };
            self.path.pop();
            let server = server
                .as_ref()
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            *list = in_order(std::mem::take(list), order, server, key);
        }
        Ok(original)
    }

    fn value(&mut self, old: Option<Value>, change: &'a Value) -> Result<Value, PatchError> {
        match (old, change) {
            (Some(Value::Object(old)), Value::Object(change)) => self.map(old, change).map(Value::Object),
            (_, Value::Object(change)) => self.map(Map::new(), change).map(Value::Object),
            (Some(Value::Array(old)), Value::Array(change)) => self.list(old, change).map(Value::Array),
            (_, Value::Array(change)) => self.list(Vec::new(), change).map(Value::Array),
            (_, scalar) => Ok(scalar.clone()),
        }
    }

    fn list(&mut self, old: Vec<Value>, change: &'a [Value]) -> Result<Vec<Value>, PatchError> {
        let server = old.clone();
        match self.rule() {
            PatchRule::Replace => Ok(change.to_vec()),
            PatchRule::MergeValues => {
                let mut list = old;
                let mut there: HashSet<&Value> = server.iter().collect();
                list.extend(change.iter().filter(|value| there.insert(value)).cloned());
                Ok(in_order(list, change, &server, None))
            }
            PatchRule::MergeBy(key) => {
                let list = self.elements(old, change, key)?;
                Ok(in_order(list, change, &server, Some(key)))
            }
        }
    }

    fn elements(
        &mut self,
        old: Vec<Value>,
        change: &'a [Value],
        key: &'static str,
    ) -> Result<Vec<Value>, PatchError> {
        let directive = |element: &Value| element.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
        // An element that says `replace` speaks for the whole list and is none of it.
        let replaces = change
            .iter()
            .any(|element| directive(element).as_deref() == Some("replace"));
        let mut list: Vec<Option<Value>> = match replaces {
            true => Vec::new(),
            false => old.into_iter().map(Some).collect(),
        };
        // Where the elements of each merge key are: list and patch can both have many thousands.
        let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
        for (at, element) in list.iter().enumerate() {
            if let Some(value) = element.as_ref().and_then(|element| element.get(key)) {
                places.entry(value.clone()).or_default().push(at);
            }
        }
        if places.values().any(|same| same.len() > MAX_SAME_KEY) {
            return self.fail(format!("more than {MAX_SAME_KEY} elements have the same {key}"));
        }
        for element in change {
            let Value::Object(fields) = element else {
                return self.fail("elements of this list are maps");
            };
            if directive(element).as_deref() == Some("replace") {
                continue;
            }
            let Some(wanted) = fields.get(key).filter(|wanted| !wanted.is_null()) else {
                return Err(PatchError::NoMergeKey {
                    path: self.path.join("."),
                    key,
                });
            };
            let same_key = places.entry(wanted.clone()).or_default();
            let names_same = |at: usize, with_defaults| {
                let old = list[at].as_ref();
                old.is_some_and(|old| self.names_same(old, element, with_defaults))
            };
            if directive(element).as_deref() == Some("delete") {
                let (gone, rest): (Vec<usize>, _) = same_key.iter().partition(|at| names_same(**at, false));
                gone.into_iter().for_each(|at| list[at] = None);
                *same_key = rest;
                continue;
            }
            let exact = same_key.iter().find(|at| names_same(**at, true));
            match exact.or(same_key.first()) {
                Some(at) => {
                    let old = list[*at].take();
                    list[*at] = Some(self.value(old, element)?);
                }
                None => {
                    same_key.push(list.len());
                    list.push(Some(self.value(None, element)?));
                }
            }
        }
        Ok(list.into_iter().flatten().collect())
    }

    /// Tells whether two elements agree in all key fields of the list; a field that is missing has its default, or
    /// (not `with_defaults`) agrees with anything if the patch does not have it.
    fn names_same(&self, old: &Value, patch: &Value, with_defaults: bool) -> bool {
        let ListRule::Keyed { keys } = fields::list_rule(self.kind, &self.path) else {
            return true;
        };
        keys.iter().all(|key| {
            let field = |element: &Value| {
                let default = || key.default.map(Value::from);
                element.get(key.field).cloned().or_else(default)
            };
            !with_defaults && patch.get(key.field).is_none() || field(old) == field(patch)
        })
    }
}

/// Sorts a merged list: elements that `order` names by it, the others as on the server, woven as Kubernetes does (an
/// element that the server does not have yet goes first). Checked against `kubectl patch --local`.
fn in_order(list: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    fn name<'a>(element: &'a Value, key: Option<&str>) -> Option<&'a Value> {
        match key {
            Some(key) => element.get(key),
            None => Some(element),
        }
    }
    // Of equal names the first place counts.
    fn places<'a>(within: &'a [Value], key: Option<&str>) -> HashMap<&'a Value, usize> {
        let elements = within.iter().enumerate().rev();
        elements
            .filter_map(|(at, element)| Some((name(element, key)?, at)))
            .collect()
    }
    let place = |places: &HashMap<&Value, usize>, element: &Value| places.get(name(element, key)?).copied();
    let (order, server) = (places(order, key), places(server, key));
    let (mut named, others): (Vec<_>, Vec<_>) = list
        .into_iter()
        .partition(|element| place(&order, element).is_some());
    named.sort_by_cached_key(|element| place(&order, element));

    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut woven = Vec::new();
    while let (Some(left), Some(right)) = (named.peek(), others.peek()) {
        let left_first = match (place(&server, left), place(&server, right)) {
            (Some(left), Some(right)) => left < right,
            _ => true,
        };
        woven.extend(if left_first { named.next() } else { others.next() });
    }
    woven.extend(named);
    woven.extend(others);
    woven
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn deployment() -> Object {
        Object::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"a": "1", "b": "2"}, "finalizers": ["x/one", "x/two"]},
            "spec": {
                "replicas": 3,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                "template": {"spec": {
                    "containers": [
                        {"name": "web", "image": "web:1", "args": ["a", "b"],
                         "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                         "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]},
                        {"name": "side", "image": "side:1"},
                    ],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "tolerations": [{"key": "a"}],
                }},
            },
        }))
        .unwrap()
    }

    /// Applies a strategic patch of the pod's spec and compares what is at the pointer below it.
    fn check(patch: Value, pointer: &str, expected: Value) {
        let patched = strategic_merge_patch(&deployment(), &json!({"spec": {"template": {"spec": patch}}}));
        let patched = patched.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            patched.pointer(&format!("/spec/template/spec{pointer}")),
            Some(&expected)
        );
    }

    #[test]
    fn containers_merge_by_name() {
        check(
            json!({"containers": [{"name": "side", "image": "side:2"}, {"name": "new", "image": "n"}]}),
            "/containers",
            json!([
                deployment().pointer("/spec/template/spec/containers/0"),
                {"name": "side", "image": "side:2"}, {"name": "new", "image": "n"},
            ]),
        );
        check(
            json!({"containers": [{"name": "web", "args": ["c"]}]}),
            "/containers/0/args",
            json!(["c"]),
        );
        check(
            json!({"tolerations": [{"key": "b"}]}),
            "/tolerations",
            json!([{"key": "b"}]),
        );
        check(
            json!({"containers": [{"name": "web", "ports": [{"containerPort": 53, "protocol": "TCP", "name": "dns"}]}]}),
            "/containers/0/ports",
            json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP", "name": "dns"}]),
        );
    }

    #[test]
    fn directives_are_obeyed() {
        check(
            json!({"containers": [{"name": "web", "$patch": "delete"}]}),
            "/containers",
            json!([{"name": "side", "image": "side:1"}]),
        );
        check(
            json!({"containers": [{"$patch": "replace"}, {"name": "only", "image": "o"}]}),
            "/containers",
            json!([{"name": "only", "image": "o"}]),
        );
        check(
            json!({"containers": [{"name": "web", "env": [{"name": "A", "$patch": "delete"}]}]}),
            "/containers/0/env",
            json!([{"name": "B", "value": "2"}]),
        );
        check(
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/a"}}]}),
            "/volumes",
            json!([{"name": "v", "hostPath": {"path": "/a"}}]),
        );
        let whole = |patch: Value| strategic_merge_patch(&deployment(), &patch).unwrap();
        let strategy = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            whole(strategy).pointer("/spec/strategy"),
            Some(&json!({"type": "Recreate"}))
        );
        let labels = json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}});
        assert_eq!(
            whole(labels).pointer("/metadata/labels"),
            Some(&json!({"c": "3"}))
        );
        let finalizers = json!({"metadata": {
            "$deleteFromPrimitiveList/finalizers": ["x/one"], "finalizers": ["x/three"],
            "$setElementOrder/finalizers": ["x/three", "x/two"],
        }});
        assert_eq!(
            whole(finalizers).pointer("/metadata/finalizers"),
            Some(&json!(["x/three", "x/two"]))
        );
        let error = strategic_merge_patch(&deployment(), &json!({"spec": {"$patch": "twist"}})).unwrap_err();
        assert_eq!(error.to_string(), "spec: unknown $patch `twist`");
        let nameless = json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}});
        assert!(matches!(
            strategic_merge_patch(&deployment(), &nameless),
            Err(PatchError::NoMergeKey { key: "name", .. })
        ));
    }

    #[test]
    fn a_patch_of_kubectl_apply_applies() {
        // kubectl 1.32 apply: image of one container changed, an env entry removed, a container put before the others.
        check(
            json!({
                "$setElementOrder/containers": [{"name": "init"}, {"name": "web"}],
                "containers": [
                    {"name": "init", "image": "i"},
                    {"name": "web", "image": "web:2", "$setElementOrder/env": [{"name": "B"}],
                     "env": [{"$patch": "delete", "name": "A"}]},
                ],
            }),
            "/containers",
            json!([
                {"name": "init", "image": "i"},
                {"name": "web", "image": "web:2", "args": ["a", "b"], "env": [{"name": "B", "value": "2"}],
                 "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]},
                {"name": "side", "image": "side:1"},
            ]),
        );
    }

    #[test]
    fn json_patches_apply_whole_or_not_at_all() {
        let replace = json!([
            {"op": "test", "path": "/spec/replicas", "value": 3},
            {"op": "replace", "path": "/spec/replicas", "value": 5},
            {"op": "remove", "path": "/metadata/labels/a"},
        ]);
        let patched = json_patch(&deployment(), &replace).unwrap();
        assert_eq!(
            (patched.i64_at("/spec/replicas"), patched.label("a")),
            (Some(5), None)
        );
        let test = json!([{"op": "test", "path": "/spec/replicas", "value": 4}]);
        assert!(matches!(
            json_patch(&deployment(), &test),
            Err(PatchError::TestFailed { index: 0, .. })
        ));
        let check_absent = |path: &str, holds: bool| {
            let test = json!([{"op": "test", "path": path, "value": null}]);
            assert_eq!(json_patch(&deployment(), &test).is_ok(), holds, "{path}");
        };
        check_absent("/metadata/annotations", true);
        check_absent("/metadata/labels/none~1here", true);
        check_absent("/metadata/labels/a", false);
        check_absent("/metadata/none/annotations", false);
        check_absent("/spec/template/spec/containers/9", false);
        let missing = json!([{"op": "remove", "path": "/nothing"}]);
        assert!(matches!(
            json_patch(&deployment(), &missing),
            Err(PatchError::Operation { .. })
        ));
        assert!(matches!(
            json_patch(&deployment(), &json!({"op": "add"})),
            Err(PatchError::NotOperations(_))
        ));
        assert_eq!(
            json_patch(&deployment(), &json!([{"op": "replace", "path": "", "value": 1}])),
            Err(PatchError::NotAnObject)
        );
        let doubling = json!(vec![json!({"op": "copy", "from": "", "path": "/spec/x"}); 100]);
        assert!(matches!(
            json_patch(&deployment(), &doubling),
            Err(PatchError::TooMuchCopied | PatchError::TooDeep)
        ));
    }

    #[test]
    fn lists_of_many_thousands_are_merged_in_one_pass() {
        let element = |number: usize| json!({"name": number.to_string()});
        let (old, new): (Vec<_>, Vec<_>) = (
            (0..20_000).map(element).collect(),
            (10_000..30_000).map(element).collect(),
        );
        let mut object = deployment();
        object.set(&["spec", "template", "spec", "volumes"], old);
        let patch =
            json!({"spec": {"template": {"spec": {"$setElementOrder/volumes": new, "volumes": new}}}});
        let patched = strategic_merge_patch(&object, &patch).unwrap();
        let volumes = patched
            .pointer("/spec/template/spec/volumes")
            .and_then(Value::as_array);
        assert_eq!(volumes.unwrap().len(), 30_000);

        object.set(
            &["spec", "template", "spec", "volumes"],
            vec![element(1); MAX_SAME_KEY + 1],
        );
        let error = strategic_merge_patch(&object, &patch).unwrap_err();
        assert_eq!(
            error.to_string(),
            "spec.template.spec.volumes: more than 64 elements have the same name"
        );
    }

    #[test]
    fn moves_do_not_nest_without_bound() {
        let chain = |length: usize| "/n".repeat(length);
        let mut operations = vec![json!({"op": "add", "path": "/c", "value": 1})];
        for _ in 0..1000 {
            for length in 1..MAX_DEPTH - 1 {
                operations.push(json!({"op": "add", "path": chain(length), "value": {}}));
            }
            operations.push(json!({"op": "move", "from": "/c", "path": chain(MAX_DEPTH - 1)}));
            operations.push(json!({"op": "move", "from": "/n", "path": "/c"}));
        }
        operations.truncate(MAX_OPERATIONS);
        assert_eq!(
            json_patch(&deployment(), &json!(operations)),
            Err(PatchError::TooDeep)
        );

        let deepest = json!([{"op": "add", "path": "/n", "value": {}},
            {"op": "move", "from": "/spec/replicas", "path": "/n/n"}]);
        assert!(json_patch(&deployment(), &deepest).is_ok());
        let moves: Vec<Value> = (0..MAX_OPERATIONS)
            .map(|number| match number % 2 {
                0 => json!({"op": "move", "from": "/spec", "path": "/other"}),
                _ => json!({"op": "move", "from": "/other", "path": "/spec"}),
            })
            .collect();
        assert_eq!(
            json_patch(&deployment(), &json!(moves)),
            Err(PatchError::TooMuchCopied)
        );
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Object> {
        tree().prop_map(|spec| {
            Object::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})).unwrap()
        })
    }

    proptest! {
        #[test]
        fn merge_patches_are_idempotent_and_empty_ones_change_nothing(object in object(), patch in tree()) {
            let patch = json!({"spec": patch});
            let once = merge_patch(&object, &patch).unwrap();
            prop_assert_eq!(&merge_patch(&once, &patch).unwrap(), &once);
            prop_assert_eq!(&merge_patch(&object, &json!({})).unwrap(), &object);
            prop_assert_eq!(&strategic_merge_patch(&object, &json!({})).unwrap(), &object);
        }

        #[test]
        fn without_keyed_lists_both_merges_agree(object in object(), patch in tree()) {
            // A merge patch drops nulls of maps it makes; in lists both leave them.
            let patch = json!({"spec": patch});
            prop_assert_eq!(strategic_merge_patch(&object, &patch).unwrap(), merge_patch(&object, &patch).unwrap());
        }
    }
}
