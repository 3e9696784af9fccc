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
pub(super) fn of(group: &str, form: Form) -> Map<String, Value> {
    let root = format!("/{}", group_path(group));
    let mut paths = Map::new();
    for row in served(group) {
        of_kind(row, &root, form, &mut paths);
    }
    for resource in unkept(group) {
        of_unkept(resource, &root, form, &mut paths);
    }
    paths
}

fn of_kind(row: &KindRow, root: &str, form: Form, paths: &mut Map<String, Value>) {
    let about = (row.group, row.name);
    let (scope, within) = match row.scope {
        Scope::Namespaced => ("/namespaces/{namespace}", &["namespace"][..]),
        Scope::Cluster => ("", &[][..]),
    };
    let mut insert = |path: String, names: &[&str], verbs: &[&str], about: About<'_>| {
        paths.insert(path, item(names, verbs, about, form));
    };
    let has = |verb: &&str| verbs(row).contains(verb);
    let some = |wanted: &[&'static str]| wanted.iter().copied().filter(has).collect::<Vec<_>>();
    if row.scope == Scope::Namespaced {
        insert(format!("{root}/{}", row.plural), &[], &["list"], about);
    }
    let collection = format!("{root}{scope}/{}", row.plural);
    let verbs = some(&["list", "create", "deletecollection"]);
    insert(collection.clone(), within, &verbs, about);
    let names: Vec<&str> = within.iter().copied().chain(["name"]).collect();
    let object = format!("{collection}/{{name}}");
    let verbs = some(&["get", "update", "patch", "delete"]);
    insert(object.clone(), &names, &verbs, about);
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
                paths.insert(path, item(&names, verbs, about, form));
                continue;
            }
        };
        let mut session = item(&names, &[], about, form);
        for operation in verbs.iter().filter_map(|verb| operation(verb)) {
            session[operation.method] = of_session(operation.method, parameters, about, form);
        }
        paths.insert(path, session);
    }
}

fn of_unkept(resource: &Unkept, root: &str, form: Form, paths: &mut Map<String, Value>) {
    let about = (resource.group, resource.kind);
    let (within, names) = match resource.scope {
        Scope::Namespaced => ("/namespaces/{namespace}", &["namespace", "name"][..]),
        Scope::Cluster => ("", &["name"][..]),
    };
    let collection = format!("{root}{within}/{}", resource.plural);
    if resource.verbs.contains(&"create") {
        paths.insert(collection, item(&[], &["create"], about, form));
        return;
    }
    // Figures, whose types are not Kubernetes' own.
    let outer = names.iter().copied().filter(|name| *name != "name");
    let outer: Vec<&str> = outer.collect();
    for (verb, path, names) in [
        ("list", collection.clone(), &outer[..]),
        ("get", format!("{collection}/{{name}}"), names),
    ] {
        let mut shown = item(names, &[], about, form);
        if let Some(operation) = operation(verb) {
            shown["get"] = plain(&operation, about, form);
        }
        paths.insert(path, shown);
    }
}

/// What can be done at a path that has these names in it.
fn item(names: &[&str], verbs: &[&str], about: About<'_>, form: Form) -> Value {
    let mut item = Map::new();
    for operation in verbs.iter().filter_map(|verb| operation(verb)) {
        item.insert(operation.method.to_owned(), described(&operation, about, form));
    }
    let names = names.iter().map(|name| parameter(name, "path", form));
    item.insert("parameters".to_owned(), names.collect());
    item.into()
}

fn described(operation: &Operation, about: About<'_>, form: Form) -> Value {
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
    let mut described = plain(operation, about, form);
    let answer = reference(&answer, form);
    let body = body.map(|name| reference(&name, form));
    match form {
        Form::V2 => {
            described["produces"] = json!(["application/json", "application/yaml"]);
            described["responses"]["200"]["schema"] = answer;
            if let (Some(body), Some(parameters)) = (body, described["parameters"].as_array_mut()) {
                parameters.push(json!({
                    "name": "body",
                    "in": "body",
                    "required": is_required(operation),
                    "schema": body,
                }));
            }
            if operation.action == "patch" {
                described["consumes"] = PATCHES.into();
            }
        }
        Form::V3 => {
            let content =
                json!({"application/json": {"schema": answer}, "application/yaml": {"schema": answer}});
            described["responses"]["200"]["content"] = content;
            if let Some(body) = body {
                let types = match operation.action {
                    "patch" => PATCHES,
                    _ => &["*/*"],
                };
                let content = types.iter().map(|kind| (*kind, json!({"schema": body})));
                described["requestBody"] = json!({
                    "required": is_required(operation),
                    "content": content.collect::<std::collections::BTreeMap<_, _>>(),
                });
            }
        }
    }
    described
}

/// The options of a deletion may be left out.
fn is_required(operation: &Operation) -> bool {
    operation.method != "delete"
}

/// An operation without its body and without what it answers with.
fn plain(operation: &Operation, (group, kind): About<'_>, form: Form) -> Value {
    let parameters = operation.parameters.iter();
    json!({
        "parameters": parameters.map(|name| parameter(name, "query", form)).collect::<Vec<_>>(),
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
fn of_session(
    method: &'static str,
    parameters: &'static [&'static str],
    about: About<'_>,
    form: Form,
) -> Value {
    let operation = Operation {
        method,
        action: "connect",
        parameters,
    };
    let mut described = plain(&operation, about, form);
    let text = json!({"type": "string"});
    match form {
        Form::V2 => {
            described["produces"] = json!(["text/plain"]);
            described["responses"]["200"]["schema"] = text;
        }
        Form::V3 => described["responses"]["200"]["content"] = json!({"text/plain": {"schema": text}}),
    }
    described
}

fn parameter(name: &str, place: &str, form: Form) -> Value {
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
    match form {
        Form::V2 => {
            parameter["type"] = kind.into();
            parameter["uniqueItems"] = true.into();
        }
        Form::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    parameter
}
