//! Documents beside the tables that they are made of.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::Kind;
use crate::schema::{Shape, TypeId};

fn everything(form: Form) -> Map<String, Value> {
    let kinds: Vec<(&str, &str)> = KindRow::served().map(|row| (row.group, row.name)).collect();
    definitions(&kinds, form)
}

fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                found.push(target.clone());
            }
            members.values().for_each(|member| references(member, found));
        }
        _ => {}
    }
}

#[test]
fn every_served_kind_and_its_list_have_schemas_with_descriptions() {
    for form in [Form::V2, Form::V3] {
        let all = everything(form);
        for row in KindRow::served() {
            for (suffix, field) in [("", "metadata"), ("List", "items")] {
                let kind = format!("{}{suffix}", row.name);
                let schema = &all[&type_name(row.group, &kind)];
                let expected = json!([{"group": row.group, "kind": kind, "version": "v1"}]);
                assert_eq!(schema[GROUP_VERSION_KIND], expected);
                assert!(schema["properties"][field]["description"].is_string(), "{kind}");
                assert!(
                    !schema["required"].to_string().contains("\"metadata\""),
                    "{kind}: {}",
                    schema["required"]
                );
            }
        }
    }
}

#[test]
fn every_choice_is_a_field_and_a_document_names_its_words() {
    let all = everything(Form::V3);
    for choice in CHOICES {
        let field = &all[&format!("io.k8s.api.{}", choice.of)]["properties"][choice.field];
        let one = if field["type"] == "array" {
            &field["items"]
        } else {
            field
        };
        assert_eq!(one["type"], "string", "{}.{}", choice.of, choice.field);
        let named: BTreeSet<&str> = one["enum"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            named,
            choice.words.iter().copied().collect(),
            "{}.{}",
            choice.of,
            choice.field
        );
    }
}

#[test]
fn a_document_has_what_its_kinds_refer_to_and_nothing_else() {
    for (form, prefix) in [(Form::V2, "#/definitions/"), (Form::V3, "#/components/schemas/")] {
        let few = definitions(&[("", "ConfigMap"), ("none.example.com", "Widget")], form);
        assert!(!few.contains_key("io.k8s.api.core.v1.PodSpec"));
        for document in [few, everything(form)] {
            let mut found = Vec::new();
            document
                .values()
                .for_each(|schema| references(schema, &mut found));
            assert!(!found.is_empty());
            for target in found {
                let name = target.strip_prefix(prefix).unwrap_or_else(|| panic!("{target}"));
                assert!(document.contains_key(name), "{target} leads nowhere");
            }
        }
    }
}

#[test]
fn values_of_two_types_are_written_as_each_version_writes_them() {
    let port = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
    let amount = "io.k8s.apimachinery.pkg.api.resource.Quantity";
    let (old, new) = (everything(Form::V2), everything(Form::V3));
    assert_eq!(
        (&old[port]["type"], &old[port]["format"]),
        (&"string".into(), &"int-or-string".into())
    );
    assert_eq!(
        (&old[amount]["type"], old[amount].get("format")),
        (&"string".into(), None)
    );
    assert_eq!(
        new[port]["oneOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
    assert_eq!(
        new[amount]["oneOf"],
        json!([{"type": "string"}, {"type": "number"}])
    );
    for document in [old, new] {
        assert!(!json!(document).to_string().contains(INT_OR_STRING));
        assert_eq!(document[&meta_name("Time")]["format"], "date-time");
        let spec = &document["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
        assert!(spec["description"].is_string());
        assert!(spec.get("$ref").is_some() != spec.get("allOf").is_some());
    }
}

/// The name of the type that a field, or each element of it, is of.
fn target(field: &Value) -> Option<&str> {
    let field = field.get("items").unwrap_or(field);
    let field = field.pointer("/allOf/0").unwrap_or(field);
    field["$ref"].as_str().map(last_part)
}

/// Visits every field of a type by its path from the kind.
fn walk(kind: Kind, visit: &mut dyn FnMut(&str, &str, &[&str])) {
    fn fields(id: TypeId, path: &mut Vec<&'static str>, visit: &mut dyn FnMut(&str, &str, &[&str])) {
        for (name, shape) in &id.get().fields {
            path.push(name);
            visit(id.full_name(), name, path);
            let inner = match shape {
                Shape::List(inner) | Shape::Map(inner) => inner,
                other => other,
            };
            if let Shape::Struct(inner) = inner {
                fields(*inner, path, visit);
            }
            path.pop();
        }
    }
    if let Some(root) = TypeId::of(kind) {
        fields(root, &mut Vec::new(), visit);
    }
}

/// The paths of a kind that are one value, lists and maps; what is within is not merged, whatever a document says of its type.
fn whole(kind: Kind) -> BTreeSet<String> {
    let marks = fields::marks(Some(kind)).into_iter();
    let is_whole = |mark: &Mark| mark.atomic_map || mark.list == Some((ListRule::Atomic, PatchRule::Replace));
    marks.filter(is_whole).map(|mark| mark.path).collect()
}

/// Where a type is met whose maps are one value elsewhere, and are merged here: a document cannot say so of a path. Of these, users
/// write the claim's reference alone.
const GRANULAR: &[&str] = &[
    "Event involvedObject",
    "Event related",
    "Node status.config.active.configMap",
    "Node status.config.assigned.configMap",
    "Node status.config.lastKnownGood.configMap",
    "PersistentVolume spec.claimRef",
];

#[test]
fn documents_say_what_the_table_says_wherever_a_type_is_met() {
    let all = everything(Form::V3);
    let mut keys = BTreeMap::new();
    for row in KINDS {
        let whole = whole(row.kind);
        walk(row.kind, &mut |holder, name, path| {
            let field = &all[holder]["properties"][name];
            if (1..path.len()).any(|at| whole.contains(&path[..at].join("."))) {
                return;
            }
            let at = format!("{} {}", row.name, path.join("."));
            let unit = match target(field) {
                Some(name) => &all[name],
                None => field,
            };
            let is_unit = unit["x-kubernetes-map-type"] == "atomic";
            let is_known = whole.contains(&path.join(".")) || GRANULAR.contains(&at.as_str());
            assert!(
                is_unit == fields::is_atomic_map(row.kind, path) || is_known,
                "{at}"
            );
            if field["type"] != "array" {
                return;
            }
            let rule = fields::patch_rule(row.kind, path);
            let key = match rule {
                PatchRule::MergeBy(key) => {
                    keys.insert(format!("{holder}.{name}"), key);
                    key.into()
                }
                _ => Value::Null,
            };
            assert_eq!(field["x-kubernetes-patch-merge-key"], key, "{at}");
            let strategy = field["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
            assert_eq!(strategy.starts_with("merge"), rule != PatchRule::Replace, "{at}");
            let list_type = match fields::list_rule(row.kind, path) {
                ListRule::Keyed { .. } => "map",
                ListRule::Set => "set",
                ListRule::Atomic => "atomic",
            };
            assert_eq!(field[LIST_TYPE], list_type, "{at}");
        });
    }
    assert_eq!(keys["io.k8s.api.core.v1.PodSpec.containers"], "name");
    assert_eq!(keys["io.k8s.api.core.v1.Container.ports"], "containerPort");
    assert_eq!(keys["io.k8s.api.core.v1.ServiceSpec.ports"], "port");
    let strategy = |holder: &str, field: &str| {
        let field = &all[&format!("io.k8s.api.{holder}")]["properties"][field];
        field["x-kubernetes-patch-strategy"].clone()
    };
    assert_eq!(strategy("core.v1.PodSpec", "volumes"), "merge,retainKeys");
    assert_eq!(strategy("apps.v1.DeploymentSpec", "strategy"), "retainKeys");
}

#[test]
fn a_map_that_is_one_value_is_so_in_all_documents() {
    let all = everything(Form::V3);
    let kept_whole = |name: &str| all[name]["x-kubernetes-map-type"] == "atomic";
    assert!(kept_whole(&meta_name("LabelSelector")));
    assert!(kept_whole("io.k8s.api.core.v1.LocalObjectReference"));
    let selector = &all["io.k8s.api.core.v1.PodSpec"]["properties"]["nodeSelector"];
    assert_eq!(selector["x-kubernetes-map-type"], "atomic");
    // A pod's own metadata is not.
    assert!(!kept_whole(&meta_name("ObjectMeta")));
}
