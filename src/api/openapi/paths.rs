//! The paths of a group and what can be done at each: parameters, bodies and answers, from the kind table.
//!
//! kubectl reads from here which kind a resource is of, that its PATCH takes `fieldValidation` (or it validates by itself)
//! and that it takes strategic merge patches (or it sends others).

use schemas::openapi::{Form, meta_name, reference, type_name};
use schemas::{KindRow, Scope, Subresource};
use serde_json::{Map, Value, json};

use super::group_path;
use crate::api::discovery::{Unkept, own_kind, served, subresource_verbs, unkept, verbs, version_of};
use crate::api::target::word;

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "propagationPolicy"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const LOG: &[&str] = &[
    "container",
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "timestamps",
];

const ATTACH: &[&str] = &["container", "stderr", "stdin", "stdout", "tty"];
const EXEC: &[&str] = &["command", "container", "stderr", "stdin", "stdout", "tty"];
const PORT_FORWARD: &[&str] = &["ports"];

/// The media types of a PATCH.
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Group and kind that a path is about.
type About<'a> = (&'a str, &'a str);

/// The operation of a verb, as Kubernetes names it in documents.
struct Operation {
    method: &'static str,
    action: &'static str,
    parameters: &'static [&'static str],
}

fn operation(verb: &str) -> Option<Operation> {
    let (method, action, parameters) = match verb {
        "create" => ("post", "post", WRITE),
        "delete" => ("delete", "delete", DELETE),
        "deletecollection" => ("delete", "deletecollection", DELETE),
        "get" => ("get", "get", &[][..]),
        "list" => ("get", "list", LIST),
        "patch" => ("patch", "patch", PATCH),
        "update" => ("put", "put", WRITE),
        // A list that goes on.
        _ => return None,
    };
    Some(Operation {
        method,
        action,
        parameters,
    })
}

/// The paths of a group.
pub(super) fn of(group: &str) -> Map<String, Value> {
    let root = format!("/{}", group_path(group));
    let mut paths = Map::new();
    for row in served(group) {
        of_kind(row, &root, &mut paths);
    }
    for resource in unkept(group) {
        of_unkept(resource, &root, &mut paths);
    }
    paths
}

fn of_kind(row: &KindRow, root: &str, paths: &mut Map<String, Value>) {
    let about = (row.group, row.name);
    let (scope, within) = match row.scope {
        Scope::Namespaced => ("/namespaces/{namespace}", &["namespace"][..]),
        Scope::Cluster => ("", &[][..]),
    };
    let mut insert = |path: String, names: &[&str], verbs: &[&str], about: About<'_>| {
        paths.insert(path, item(names, verbs, about));
    };
    if row.scope == Scope::Namespaced {
        insert(format!("{root}/{}", row.plural), &[], &["list"], about);
    }
    let collection = format!("{root}{scope}/{}", row.plural);
    let mut of_all = vec!["list", "create", "deletecollection"];
    of_all.retain(|verb| verbs(row).contains(verb));
    insert(collection.clone(), within, &of_all, about);
    let names: Vec<&str> = within.iter().copied().chain(["name"]).collect();
    let object = format!("{collection}/{{name}}");
    let of_one = ["get", "update", "patch", "delete"];
    insert(object.clone(), &names, &of_one, about);
    for part in row.subresources {
        let path = format!("{object}/{}", word(*part));
        let about = own_kind(*part).unwrap_or(about);
        let verbs = subresource_verbs(*part);
        let parameters = match part {
            Subresource::Log => LOG,
            Subresource::Exec => EXEC,
            Subresource::Attach => ATTACH,
            Subresource::PortForward => PORT_FORWARD,
            Subresource::Status | Subresource::Scale | Subresource::Eviction | Subresource::Binding => {
                paths.insert(path, item(&names, verbs, about));
                continue;
            }
        };
        let mut session = item(&names, &[], about);
        for operation in verbs.iter().filter_map(|verb| operation(verb)) {
            session[operation.method] = of_session(operation.method, parameters, about);
        }
        paths.insert(path, session);
    }
}

fn of_unkept(resource: &Unkept, root: &str, paths: &mut Map<String, Value>) {
    let about = (resource.group, resource.kind);
    let (within, names) = match resource.scope {
        Scope::Namespaced => ("/namespaces/{namespace}", &["namespace", "name"][..]),
        Scope::Cluster => ("", &["name"][..]),
    };
    let collection = format!("{root}{within}/{}", resource.plural);
    if resource.verbs.contains(&"create") {
        paths.insert(collection, item(&[], &["create"], about));
        return;
    }
    // Figures, whose types are not Kubernetes' own.
    let outer = names.iter().copied().filter(|name| *name != "name");
    let outer: Vec<&str> = outer.collect();
    for (verb, path, names) in [
        ("list", collection.clone(), &outer[..]),
        ("get", format!("{collection}/{{name}}"), names),
    ] {
        let mut shown = item(names, &[], about);
        if let Some(operation) = operation(verb) {
            shown["get"] = plain(&operation, about);
        }
        paths.insert(path, shown);
    }
}

/// What can be done at a path that has these names in it.
fn item(names: &[&str], verbs: &[&str], about: About<'_>) -> Value {
    let mut item = Map::new();
    for operation in verbs.iter().filter_map(|verb| operation(verb)) {
        item.insert(operation.method.to_owned(), described(&operation, about));
    }
    let names = names.iter().map(|name| parameter(name, "path"));
    item.insert("parameters".to_owned(), names.collect());
    item.into()
}

fn described(operation: &Operation, about: About<'_>) -> Value {
    let (group, kind) = about;
    let of_kind = type_name(group, kind);
    let answer = match operation.action {
        "delete" | "deletecollection" => meta_name("Status"),
        "list" => type_name(group, &format!("{kind}List")),
        _ => of_kind.clone(),
    };
    let body = match operation.action {
        "delete" | "deletecollection" => Some(meta_name("DeleteOptions")),
        "patch" => Some(meta_name("Patch")),
        "post" | "put" => Some(of_kind),
        _ => None,
    };
    let mut described = plain(operation, about);
    let answer = reference(&answer, Form::V3);
    described["responses"]["200"]["content"] =
        json!({"application/json": {"schema": answer}, "application/yaml": {"schema": answer}});
    if let Some(body) = body {
        let schema = reference(&body, Form::V3);
        let types = match operation.action {
            "patch" => PATCHES,
            _ => &["*/*"],
        };
        let content = types.iter().map(|kind| (*kind, json!({"schema": schema})));
        described["requestBody"] = json!({
            "required": is_required(operation),
            "content": content.collect::<std::collections::BTreeMap<_, _>>(),
        });
    }
    described
}

/// The options of a deletion may be left out.
fn is_required(operation: &Operation) -> bool {
    operation.method != "delete"
}

/// An operation without its body and without what it answers with.
fn plain(operation: &Operation, (group, kind): About<'_>) -> Value {
    let parameters = operation.parameters.iter();
    json!({
        "parameters": parameters.map(|name| parameter(name, "query")).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version_of(group), "kind": kind},
    })
}

/// Tells whether a part is no object: text, or streams.
pub(super) fn is_session(part: Subresource) -> bool {
    matches!(
        part,
        Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward
    )
}

/// What is no object: text, or streams.
fn of_session(method: &'static str, parameters: &'static [&'static str], about: About<'_>) -> Value {
    let operation = Operation {
        method,
        action: "connect",
        parameters,
    };
    let mut described = plain(&operation, about);
    described["responses"]["200"]["content"] = json!({"text/plain": {"schema": {"type": "string"}}});
    described
}

fn parameter(name: &str, place: &str) -> Value {
    let kind = match name {
        "allowWatchBookmarks"
        | "follow"
        | "force"
        | "previous"
        | "sendInitialEvents"
        | "stderr"
        | "stdin"
        | "stdout"
        | "timestamps"
        | "tty"
        | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "limitBytes" | "sinceSeconds" | "tailLines" | "timeoutSeconds" => {
            "integer"
        }
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter["schema"] = json!({"type": kind, "uniqueItems": true});
    parameter
}
