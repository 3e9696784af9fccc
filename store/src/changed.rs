//! The difference of two states of an object in words for people: which fields, from what to what. Pure.
//!
//! Who owns fields, the order of elements and what is hidden are left out. An element that comes or goes is one entry
//! with all that is in it. Values of confidential kinds are redacted, long ones are cut, and that is said.

use std::collections::BTreeSet;

use automerge::ScalarValue;
use schemas::{Kind, hex};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::leaves::{self, Leaves};
use crate::path::{self, Role, Token};
use crate::types::{ChangedFields, FieldChange};

/// The most fields that are shown of one change: the rest is counted. People read some tens.
const MAX_FIELDS: usize = 100;
/// The most bytes that are shown of one value: an argument list fits, a file in a ConfigMap is cut.
const MAX_VALUE_BYTES: usize = 1024;

/// What `kubectl apply` keeps of the last manifest: it differs with every apply, and says nothing of its own.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io~1last-applied-configuration";

/// Shows that a value is there, and whether two are equal, but not what it is.
pub(crate) fn redacted(value: &str) -> String {
    format!("<redacted, sha256:{}>", hex(&Sha256::digest(value)[..8]))
}

/// Compares two sets of leaves, unpacked. Of a leaf within a list's element, the presence of that element must be in
/// its set.
pub(crate) fn changed_fields(kind: Kind, old: &Leaves, new: &Leaves) -> ChangedFields {
    let mut differences = Differences {
        confidential: kind.row().confidential,
        found: ChangedFields::default(),
    };
    // Contents of elements that are shown as a whole.
    let mut shown: BTreeSet<String> = BTreeSet::new();
    let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for path in paths {
        let mut ends = path.match_indices('/').map(|(end, _)| end);
        if ends.any(|end| shown.contains(&path[..end])) {
            continue;
        }
        let before = old.get(path).filter(|_| leaves::within_live_elements(path, old));
        let after = new.get(path).filter(|_| leaves::within_live_elements(path, new));
        if before == after {
            continue;
        }
        match path::role(path) {
            Role::Order => {}
            Role::Presence => {
                let (before, after) = (live_number(before), live_number(after));
                if before == after {
                    continue;
                }
                let element = |leaves, number: Option<u32>| Some(element(leaves, path, number?));
                let values = (element(old, before), element(new, after));
                differences.value(path::display(path), values.0, values.1);
                let contents = [before, after].into_iter().flatten();
                shown.extend(contents.map(|number| path::numbered(path, number)));
            }
            Role::Value if path.ends_with(LAST_APPLIED) => {}
            Role::Value => {
                // A map or list that gets its first entry was empty before; that it no longer is goes without saying.
                let fills = |marker: Option<&ScalarValue>, other: &Leaves| {
                    marker.is_some_and(leaves::is_marker) && leaves::below(other, path).next().is_some()
                };
                if (after.is_none() && fills(before, new)) || (before.is_none() && fills(after, old)) {
                    continue;
                }
                let (before, after) = (before.map(leaves::to_json), after.map(leaves::to_json));
                if leaves::is_group(path) {
                    differences.members(&path::display(path), before, after);
                } else {
                    differences.value(path::display(path), before, after);
                }
            }
        }
    }
    differences.found
}

fn live_number(presence: Option<&ScalarValue>) -> Option<u32> {
    match presence {
        Some(ScalarValue::Int(number @ 1..)) => u32::try_from(*number).ok(),
        Some(_) | None => None,
    }
}

/// Returns an element of a list with all that is in it.
fn element(leaves: &Leaves, presence: &str, number: u32) -> Value {
    if let Some(Token::Element(path::Element {
        set_value: Some(value),
        ..
    })) = path::parse(path::split_last(presence).1)
    {
        return Value::String(value.into_owned());
    }
    let content = path::numbered(presence, number);
    let inner = leaves::below(leaves, &content)
        .map(|(path, value)| (path[content.len() + 1..].to_owned(), value.clone()))
        .collect();
    Value::Object(leaves::materialise(&inner).0)
}

struct Differences {
    confidential: bool,
    found: ChangedFields,
}

impl Differences {
    /// Adds what differs between two values of a field.
    fn value(&mut self, path: String, old: Option<Value>, new: Option<Value>) {
        match (old, new) {
            (old, new) if old == new => {}
            (Some(Value::Object(old)), Some(Value::Object(new))) if !old.is_empty() && !new.is_empty() => {
                self.members(&path, Some(Value::Object(old)), Some(Value::Object(new)));
            }
            (old, new) => {
                if self.found.fields.len() >= MAX_FIELDS {
                    self.found.omitted += 1;
                    return;
                }
                let mut cut = false;
                let mut show = |value: Value| self.shown(value, &mut cut);
                let (old, new) = (old.map(&mut show), new.map(&mut show));
                self.found.fields.push(FieldChange { path, old, new, cut });
            }
        }
    }

    /// As [`Self::value`], of the fields of a map; neither is shown as a whole.
    fn members(&mut self, path: &str, old: Option<Value>, new: Option<Value>) {
        let map = |value| match value {
            Some(Value::Object(map)) => map,
            Some(_) | None => Map::new(),
        };
        let (mut old, mut new) = (map(old), map(new));
        let names: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
        for name in names {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            self.value(path, old.remove(&name), new.remove(&name));
        }
    }

    fn shown(&self, value: Value, cut: &mut bool) -> Value {
        if self.confidential {
            return Value::String(redacted(&value.to_string()));
        }
        let text = match &value {
            Value::String(text) if text.len() > MAX_VALUE_BYTES => text.clone(),
            Value::Array(_) | Value::Object(_) => value.to_string(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return value,
        };
        if text.len() <= MAX_VALUE_BYTES {
            return value;
        }
        *cut = true;
        let end = text.floor_char_boundary(MAX_VALUE_BYTES);
        Value::String(format!("{}…", &text[..end]))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::{deployment, object};

    /// Each change as `path: old -> new`.
    fn check(kind: Kind, old: Value, new: Value, expected: &[&str]) {
        let before = leaves::flatten(kind, &object(old), &Leaves::new());
        let after = leaves::flatten(kind, &object(new), &before);
        let text = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
        let lines: Vec<String> = changed_fields(kind, &before, &after)
            .fields
            .iter()
            .map(|field| format!("{}: {} -> {}", field.path, text(&field.old), text(&field.new)))
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn fields_are_named_as_people_write_them() {
        let mut changed = deployment("web");
        changed.set(&["spec", "replicas"], 5);
        changed.set(&["metadata", "labels", "мітка"], "значення");
        check(
            Kind::Deployment,
            json!(deployment("web")),
            json!(changed),
            &[
                "metadata.labels.мітка: - -> \"значення\"",
                "spec.replicas: 3 -> 5",
            ],
        );
    }

    #[test]
    fn an_element_comes_and_goes_as_a_whole() {
        let pod = |containers: Value| json!({"spec": {"containers": containers}});
        let web = json!({"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]});
        check(
            Kind::Deployment,
            json!({"spec": {"template": pod(json!([web, {"name": "log", "image": "log:1"}]))}}),
            json!({"spec": {"template": pod(json!([{"name": "new", "image": "new:1"}, {"name": "web", "image": "web:2"}]))}}),
            &[
                r#"spec.template.spec.containers[log]: {"image":"log:1","name":"log"} -> -"#,
                r#"spec.template.spec.containers[new]: - -> {"image":"new:1","name":"new"}"#,
                r#"spec.template.spec.containers[web].env[A]: {"name":"A","value":"1"} -> -"#,
                r#"spec.template.spec.containers[web].image: "web:1" -> "web:2""#,
            ],
        );
    }

    #[test]
    fn members_of_a_union_are_fields() {
        let strategy = |value: Value| json!({"spec": {"strategy": value}});
        check(
            Kind::Deployment,
            strategy(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})),
            strategy(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}})),
            &["spec.strategy.rollingUpdate.maxSurge: 1 -> 2"],
        );
        check(
            Kind::Deployment,
            strategy(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}})),
            strategy(json!({"type": "Recreate"})),
            &[
                r#"spec.strategy.rollingUpdate: {"maxSurge":1} -> -"#,
                r#"spec.strategy.type: "RollingUpdate" -> "Recreate""#,
            ],
        );
    }

    #[test]
    fn bookkeeping_is_left_out() {
        let list = |names: &[&str]| {
            let elements: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"spec": {"containers": elements}})
        };
        check(Kind::Pod, list(&["a", "b"]), list(&["b", "a"]), &[]);
        let annotated = |text: &str| json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": text}}});
        check(Kind::Pod, annotated("{}"), annotated("{1}"), &[]);
        check(
            Kind::Pod,
            json!({"metadata": {"labels": {}}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            &[r#"metadata.labels.a: - -> "b""#],
        );
    }

    #[test]
    fn secrets_are_told_apart_and_not_told() {
        let token = |hash: &str| json!({"spec": {"hash": hash, "name": "x"}});
        let before = leaves::flatten(Kind::ApiToken, &object(token("one")), &Leaves::new());
        let after = leaves::flatten(Kind::ApiToken, &object(token("two")), &before);
        let fields = changed_fields(Kind::ApiToken, &before, &after).fields;
        let [field] = fields.as_slice() else {
            panic!("{fields:?}")
        };
        let text = format!("{field:?}");
        assert!(
            !text.contains("one") && !text.contains("two") && text.contains("<redacted, sha256:"),
            "{text}"
        );
        assert_ne!(field.old, field.new);
    }

    #[test]
    fn what_is_long_is_cut_and_counted() {
        let many: Map<String, Value> = (0..MAX_FIELDS + 5)
            .map(|number| (format!("l{number:04}"), json!("ї".repeat(MAX_VALUE_BYTES))))
            .collect();
        let labels = json!({"metadata": {"labels": many}});
        let after = leaves::flatten(Kind::Pod, &object(labels), &Leaves::new());
        let changed = changed_fields(Kind::Pod, &Leaves::new(), &after);
        assert_eq!((changed.fields.len(), changed.omitted), (MAX_FIELDS, 5));
        let Some(Value::String(text)) = &changed.fields[0].new else {
            panic!("{changed:?}")
        };
        assert!(changed.fields[0].cut && text.ends_with("ї…") && text.len() <= MAX_VALUE_BYTES + "…".len());
    }
}
