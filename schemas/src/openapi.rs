//! The schemas of Kubernetes' types as OpenAPI documents have them: names, descriptions and references of the types,
//! and what the table of [`crate::fields`] says of their lists and maps.
//!
//! A document describes types and the table describes paths: a type's field has one rule wherever the type is met. Tests hold
//! the table to that.

use k8s_openapi::api::{
    authentication::v1 as authentication, authorization::v1 as authorization, autoscaling::v1 as autoscaling,
    core::v1 as core, events::v1 as events, policy::v1 as policy,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use crate::choices::CHOICES;
use crate::fields::{self, ListRule, Mark, PatchRule};
use crate::schema::{add, register};
use crate::{KINDS, KindRow, event};

/// Which version of OpenAPI a document is of. They write references, and values of several types, differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

const GROUP_VERSION_KIND: &str = "x-kubernetes-group-version-kind";
const LIST_TYPE: &str = "x-kubernetes-list-type";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
/// How k8s-openapi marks what is a string or a number.
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// Returns the name of the type of a kind in version 1 of its group, as Kubernetes calls it in its documents.
pub fn type_name(group: &str, kind: &str) -> String {
    let package = match group.split('.').next() {
        None | Some("") => "core",
        Some(package) => package,
    };
    format!("io.k8s.api.{package}.v1.{kind}")
}

/// Returns the name of a type that all groups share: `Status`, `DeleteOptions`, `Patch`.
pub fn meta_name(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

/// Returns how a document refers to the type of a name.
pub fn reference(name: &str, form: Form) -> Value {
    let place = match form {
        Form::V2 => "definitions",
        Form::V3 => "components/schemas",
    };
    json!({"$ref": format!("#/{place}/{name}")})
}

/// Returns the schemas of kinds (each with its group) by name, in the order of names, with those of everything that they
/// refer to, of their lists where they are in the kind table, and of what all groups share. Kinds that have none are
/// left out.
pub fn definitions(kinds: &[(&str, &str)], form: Form) -> Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    add::<meta::DeleteOptions>(&mut generator);
    add::<meta::ListMeta>(&mut generator);
    add::<meta::Patch>(&mut generator);
    add::<meta::Status>(&mut generator);
    let mut named = Vec::new();
    for (group, kind) in kinds {
        if let Some(name) = register_by_name(group, kind, &mut generator) {
            named.push((name, *group, *kind));
        }
    }
    let mut definitions = generator.take_definitions(true);
    mark_all(&mut definitions, &named);
    name_words(&mut definitions);
    for (name, group, kind) in &named {
        if kept(group, kind).is_some() {
            definitions.insert(format!("{name}List"), list_of(kind, name));
        }
    }
    let mut shown: Vec<(String, Value)> = definitions
        .into_iter()
        .map(|(name, definition)| {
            let definition = shown_type(&name, definition, form);
            (name, definition)
        })
        .collect();
    shown.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut shown: Map<String, Value> = shown.into_iter().collect();
    name_kinds(&mut shown, &named);
    shown
}

/// Returns the schemas of what metrics-server's API shows, and of what they refer to, by name.
pub fn metrics_definitions(form: Form) -> Map<String, Value> {
    const VERSION: &str = "v1beta1";
    let name = |kind: &str| format!("io.k8s.metrics.pkg.apis.metrics.{VERSION}.{kind}");
    let mut generator = SchemaGenerator::default();
    add::<meta::ObjectMeta>(&mut generator);
    add::<meta::Time>(&mut generator);
    add::<Quantity>(&mut generator);
    let mut definitions = generator.take_definitions(true);
    let refer = |name: &str, description: &str| {
        let target = &reference(name, Form::V2)["$ref"];
        json!({"$ref": target, "description": description})
    };
    let usage = json!({
        "description": "What is used, by resource: processor time in cores over the window, memory in bytes at its end.",
        "type": "object",
        "additionalProperties": reference(QUANTITY, Form::V2),
    });
    let measured = |kind: &str, what: &str, field: &str, measure: Value| {
        json!({
            "description": format!("What {what} used."),
            "type": "object",
            "required": ["timestamp", "window", field],
            "properties": {
                "apiVersion": {"description": "Group and version of the object.", "type": "string"},
                "kind": {"description": "The kind of the object.", "type": "string"},
                "metadata": refer(&meta_name("ObjectMeta"), &format!("Name and labels of {what}.")),
                "timestamp": refer(&meta_name("Time"), "The end of the window that was measured."),
                "window": {"description": "How long was measured, like \"15.2s\".", "type": "string"},
                field: measure,
            },
            GROUP_VERSION_KIND: [{"group": "metrics.k8s.io", "kind": kind, "version": VERSION}],
        })
    };
    let containers = json!({
        "description": "Each container by itself.",
        "type": "array",
        "items": reference(&name("ContainerMetrics"), Form::V2),
        LIST_TYPE: "atomic",
    });
    let container = json!({
        "description": "What a container used.",
        "type": "object",
        "required": ["name", "usage"],
        "properties": {
            "name": {"description": "The container's name.", "type": "string"},
            "usage": usage,
        },
    });
    for (kind, schema) in [
        ("ContainerMetrics", container),
        (
            "NodeMetrics",
            measured("NodeMetrics", "a node", "usage", usage.clone()),
        ),
        (
            "PodMetrics",
            measured("PodMetrics", "a pod", "containers", containers),
        ),
    ] {
        definitions.insert(name(kind), schema);
    }
    let shown = definitions.into_iter();
    shown
        .map(|(name, schema)| {
            let schema = shown_type(&name, schema, form);
            (name, schema)
        })
        .collect()
}

/// The kind that is served under these names, and how.
fn kept(group: &str, name: &str) -> Option<&'static KindRow> {
    KindRow::served().find(|row| row.group == group && row.name == name)
}

fn register_by_name(group: &str, kind: &str, generator: &mut SchemaGenerator) -> Option<String> {
    if let Some(row) = kept(group, kind).filter(|row| row.is_own()) {
        return register(row.kind, generator);
    }
    // What is sent and never kept, and what is kept otherwise.
    match (group, kind) {
        ("authentication.k8s.io", "SelfSubjectReview") => add::<authentication::SelfSubjectReview>(generator),
        ("authorization.k8s.io", "SelfSubjectAccessReview") => {
            add::<authorization::SelfSubjectAccessReview>(generator)
        }
        ("authorization.k8s.io", "SelfSubjectRulesReview") => {
            add::<authorization::SelfSubjectRulesReview>(generator)
        }
        ("autoscaling", "Scale") => add::<autoscaling::Scale>(generator),
        ("policy", "Eviction") => add::<policy::Eviction>(generator),
        (event::GROUP, "Event") => add::<events::Event>(generator),
        ("", "Binding") => add::<core::Binding>(generator),
        _ => None,
    }
}

// ---------------------------------------------------------------- what the table says

/// Writes the table to the types of all its kinds that are among the definitions, also by way of another kind.
fn mark_all(definitions: &mut Map<String, Value>, named: &[(String, &str, &str)]) {
    for (name, _, _) in named {
        for found in fields::marks(None) {
            mark(definitions, name, &found);
        }
    }
    for row in KINDS {
        let name = type_name(row.group, row.name);
        if definitions.contains_key(&name) {
            for found in fields::marks(Some(row.kind)) {
                mark(definitions, &name, &found);
            }
        }
    }
    let fields = definitions
        .values_mut()
        .filter_map(|definition| definition.get_mut("properties")?.as_object_mut())
        .flat_map(|properties| properties.values_mut());
    for field in fields.filter(|field| field["type"] == "array" && field.get(LIST_TYPE).is_none()) {
        // Lists that the table does not know.
        field[LIST_TYPE] = "atomic".into();
    }
}

/// Says of fields that hold one of a few words which these are.
fn name_words(definitions: &mut Map<String, Value>) {
    for choice in CHOICES {
        let holder = definitions.get_mut(&format!("io.k8s.api.{}", choice.of));
        let Some(field) = holder.and_then(|of| of["properties"].get_mut(choice.field)) else {
            continue;
        };
        let mut words = choice.words.to_vec();
        words.sort_unstable();
        let one = if field["type"] == "array" {
            &mut field["items"]
        } else {
            field
        };
        one["enum"] = words.into();
    }
}

fn mark(definitions: &mut Map<String, Value>, root: &str, mark: &Mark) {
    let (way, last) = mark.path.rsplit_once('.').unwrap_or(("", &mark.path));
    let mut holder = root.to_owned();
    for name in way.split('.').filter(|name| !name.is_empty()) {
        let field = definitions.get(&holder).and_then(|of| of["properties"].get(name));
        let Some(next) = field.and_then(held) else { return };
        holder = next;
    }
    let field = definitions
        .get_mut(&holder)
        .and_then(|of| of["properties"].get_mut(last));
    let Some(field) = field else { return };
    if let Some((merge, patch)) = mark.list {
        match merge {
            ListRule::Keyed { keys } => {
                field[LIST_TYPE] = "map".into();
                let keys: Vec<&str> = keys.iter().map(|key| key.field).collect();
                field["x-kubernetes-list-map-keys"] = keys.into();
            }
            ListRule::Set => field[LIST_TYPE] = "set".into(),
            ListRule::Atomic => field[LIST_TYPE] = "atomic".into(),
        }
        if let PatchRule::MergeBy(key) = patch {
            field["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
    let merges = mark.list.is_some_and(|(_, patch)| patch != PatchRule::Replace);
    let strategy = match (merges, mark.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => "",
    };
    if !strategy.is_empty() {
        field["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if mark.atomic_map {
        // Of a type with named fields Kubernetes says it at the type, of a map with free keys at the field.
        let held = held(field);
        let unit = match held.and_then(|name| definitions.get_mut(&name)) {
            Some(held) => held,
            None => &mut definitions[&holder]["properties"][last],
        };
        unit["x-kubernetes-map-type"] = "atomic".into();
    }
}

/// The type that a field, or each element of it, is of.
fn held(field: &Value) -> Option<String> {
    let items = field.get("items").unwrap_or(field);
    items.get("$ref")?.as_str().map(|text| last_part(text).to_owned())
}

fn last_part(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}

// ---------------------------------------------------------------- as documents have it

/// A type as a document has it, without what k8s-openapi alone says of it.
fn shown_type(name: &str, mut definition: Value, form: Form) -> Value {
    let unwraps = definition
        .as_object_mut()
        .and_then(|definition| definition.remove(INT_OR_STRING));
    if unwraps.is_some() {
        let is_quantity = name.ends_with(".Quantity");
        match form {
            Form::V2 => definition["type"] = "string".into(),
            Form::V3 if is_quantity => {
                definition["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
            }
            Form::V3 => definition["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]),
        }
        if !is_quantity {
            definition["format"] = "int-or-string".into();
        }
    }
    // Its structs always have metadata; Kubernetes does not ask for any.
    let is_object = ["apiVersion", "kind"]
        .iter()
        .all(|field| definition["properties"].get(field).is_some());
    if is_object && let Some(required) = definition.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| field != "metadata");
    }
    if let Some(definition) = definition.as_object_mut()
        && definition.get("required") == Some(&json!([]))
    {
        definition.remove("required");
    }
    shown(definition, form)
}

/// Writes references as the form wants them.
fn shown(schema: Value, form: Form) -> Value {
    match schema {
        Value::Array(items) => items.into_iter().map(|item| shown(item, form)).collect(),
        Value::Object(members) => {
            let mut members: Map<String, Value> = members
                .into_iter()
                .map(|(name, member)| (name, shown(member, form)))
                .collect();
            let target = members.get("$ref").and_then(Value::as_str);
            let Some(target) = target.map(|text| reference(last_part(text), form)) else {
                return members.into();
            };
            if members.len() == 1 {
                return target;
            }
            if form == Form::V2 {
                members["$ref"] = target["$ref"].clone();
            } else {
                // What is beside a reference does not count in 3.0.
                members.shift_remove("$ref");
                members.insert("allOf".to_owned(), json!([target]));
            }
            members.into()
        }
        other => other,
    }
}

fn list_of(kind: &str, name: &str) -> Value {
    json!({
        "description": format!("{kind}List is a list of objects of the kind {kind}."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": "The group and version of the list.", "type": "string"},
            "items": {"description": "The objects.", "type": "array", "items": reference(name, Form::V2)},
            "kind": {"description": "The kind of the list.", "type": "string"},
            "metadata": {
                "$ref": reference(&meta_name("ListMeta"), Form::V2)["$ref"],
                "description": "The version of the list, and where its next page begins.",
            },
        },
    })
}

/// Says of each type which kind it is of.
fn name_kinds(definitions: &mut Map<String, Value>, named: &[(String, &str, &str)]) {
    let of = |group: &str, kind: &str| json!({"group": group, "kind": kind, "version": "v1"});
    let mut insert = |name: &str, kinds: Value| {
        if let Some(definition) = definitions.get_mut(name) {
            definition[GROUP_VERSION_KIND] = kinds;
        }
    };
    let mut groups = vec![""];
    for (name, group, kind) in named {
        insert(name, json!([of(group, kind)]));
        insert(&format!("{name}List"), json!([of(group, &format!("{kind}List"))]));
        if !groups.contains(group) {
            groups.push(group);
        }
    }
    insert(&meta_name("Status"), json!([of("", "Status")]));
    let options: Vec<Value> = groups.iter().map(|group| of(group, "DeleteOptions")).collect();
    insert(&meta_name("DeleteOptions"), options.into());
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
