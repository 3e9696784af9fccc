//! Whole objects: defaults, all errors at once, what may change, and what is accepted without effect.
//!
//! Pure functions of the object. Existence of other objects, quotas and permissions are not looked at. The rules of each
//! kind are in the file of its API group (`core`, `pod`, `apps`, `networking`, `meta`); types of fields in `typecheck`.

use serde_json::Value;

use crate::acted_on::{self, Idle};
use crate::field_error::{FieldError, Reason};
use crate::node::{Errors, Node};
use crate::{
    Kind, Object, apps, batch, config, core, event, fields, meta, networking, pod, policy, storage, typecheck,
};

/// Returns the object with Kubernetes' defaults in the fields that are absent or null. Idempotent; what has the wrong
/// type stays as it is.
pub fn defaulted(object: &Object) -> Object {
    let mut object = object.clone();
    let Some(kind) = object.kind() else { return object };
    let root = &mut object.0;
    match kind {
        Kind::Pod => {
            if let Some(spec) = crate::defaults::make(root, "spec") {
                pod::default_pod(spec);
            }
        }
        Kind::Deployment => apps::default_deployment(root),
        Kind::ReplicaSet => apps::default_replica_set(root),
        Kind::StatefulSet => apps::default_stateful_set(root),
        Kind::DaemonSet => apps::default_daemon_set(root),
        Kind::ReplicationController => apps::default_replication_controller(root),
        Kind::PodTemplate => apps::default_template(root),
        Kind::Job => batch::default_job(root),
        Kind::CronJob => batch::default_cron_job(root),
        Kind::Service => core::default_service(root),
        Kind::Namespace => core::default_namespace(root),
        Kind::Endpoints => core::default_endpoints(root),
        Kind::EndpointSlice => core::default_endpoint_slice(root),
        Kind::Secret => config::default_secret(root),
        Kind::PersistentVolumeClaim => storage::default_claim(root),
        Kind::PersistentVolume => storage::default_volume(root),
        Kind::StorageClass => storage::default_class(root),
        Kind::IngressClass => networking::default_ingress_class(root),
        Kind::NetworkPolicy => networking::default_policy(root),
        Kind::PriorityClass => policy::default_priority_class(root),
        Kind::ControllerRevision => apps::default_revision(root),
        Kind::Node
        | Kind::Event
        | Kind::Ingress
        | Kind::ConfigMap
        | Kind::ServiceAccount
        | Kind::PodDisruptionBudget
        | Kind::Lease
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => {}
    }
    object
}

/// Returns everything that is wrong with an object (as written; defaults are put in here), up to some hundred
/// findings. Empty: valid.
pub fn validate(object: &Object) -> Vec<FieldError> {
    let written = Value::Object(object.0.clone());
    let Some(kind) = object.kind() else {
        return vec![unknown_kind(&written)];
    };
    let mut types = typecheck::check(kind, &Node::root(&written)).0;
    // The rules of Events speak of the form that is kept, as those of Kubernetes do.
    let defaulted = event::in_group(kind.row().group, defaulted(object)).into_value();
    let root = Node::root(&defaulted);
    types.retain(|error| error.reason != Reason::Required || !follow(&root, &error.path).is_set());
    let mut errors = Errors::default();
    meta::validate(kind, &root.at("metadata"), &mut errors);
    match kind {
        Kind::Pod => pod::validate_spec(&root.at("spec"), &mut errors),
        Kind::Deployment => apps::validate_deployment(&root, &mut errors),
        Kind::ReplicaSet => apps::validate_replica_set(&root, &mut errors),
        Kind::StatefulSet => apps::validate_stateful_set(&root, &mut errors),
        Kind::DaemonSet => apps::validate_daemon_set(&root, &mut errors),
        Kind::ReplicationController => apps::validate_replication_controller(&root, &mut errors),
        Kind::PodTemplate => apps::validate_pod_template(&root, &mut errors),
        Kind::ControllerRevision => apps::validate_revision(&root, &mut errors),
        Kind::Job => batch::validate_job(&root, &mut errors),
        Kind::CronJob => batch::validate_cron_job(&root, &mut errors),
        Kind::Service => core::validate_service(&root, &Node::root(&written), &mut errors),
        Kind::Endpoints => core::validate_endpoints(&root, &mut errors),
        Kind::EndpointSlice => core::validate_endpoint_slice(&root, &mut errors),
        Kind::Ingress => networking::validate_ingress(&root, &mut errors),
        Kind::ConfigMap => config::validate_config_map(&root, &mut errors),
        Kind::Secret => config::validate_secret(&root, &mut errors),
        Kind::PersistentVolumeClaim => storage::validate_claim(&root.at("spec"), &mut errors),
        Kind::PersistentVolume => storage::validate_volume(&root.at("spec"), &mut errors),
        Kind::StorageClass => storage::validate_class(&root, &mut errors),
        Kind::IngressClass => networking::validate_ingress_class(&root.at("spec"), &mut errors),
        Kind::NetworkPolicy => networking::validate_policy(&root.at("spec"), &mut errors),
        Kind::PodDisruptionBudget => policy::validate_budget(&root.at("spec"), &mut errors),
        Kind::PriorityClass => policy::validate_priority_class(&root, &mut errors),
        Kind::Lease => policy::validate_lease(&root.at("spec"), &mut errors),
        Kind::Event if written["apiVersion"] == event::API_VERSION => {
            event::validate_strictly(&root, &mut errors);
        }
        Kind::Event => event::validate(&root, &mut errors),
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceAccount
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => {}
    }
    let mut errors = combine(types, errors.0);
    if kind.row().confidential {
        errors.iter_mut().for_each(hide);
    }
    errors
}

/// Returns what Kubernetes' decoder cannot read into the object's types, and refuses before it looks at any rule: values of
/// wrong types, and quantities that are none.
pub fn undecodable(object: &Object) -> Vec<FieldError> {
    let Some(kind) = object.kind() else {
        return Vec::new();
    };
    let written = Value::Object(object.0.clone());
    let mut errors = typecheck::check(kind, &Node::root(&written)).0;
    // What is missing, also in a list, is Go's zero value to the decoder.
    errors.retain(|error| error.reason != Reason::Required && !error.value.is_null());
    if kind.row().confidential {
        errors.iter_mut().for_each(hide);
    }
    errors
}

/// Takes what a Secret holds out of an error.
fn hide(error: &mut FieldError) {
    if error.path.starts_with("data") || error.path.starts_with("stringData") {
        error.value = "<secret contents redacted>".into();
    }
}

/// Joins both lists. Where a field has the wrong type, what rules say of it and below means nothing; where both
/// miss a field, the rules may say more.
fn combine(types: Vec<FieldError>, rules: Vec<FieldError>) -> Vec<FieldError> {
    let covers = |broken: &FieldError, path: &str| {
        let rest = path.strip_prefix(broken.path.as_str());
        broken.reason == Reason::TypeInvalid
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let said_better = |error: &FieldError| {
        let same = |rule: &FieldError| rule.reason == Reason::Required && rule.path == error.path;
        error.reason == Reason::Required && rules.iter().any(same)
    };
    let mut all: Vec<FieldError> = types.into_iter().filter(|error| !said_better(error)).collect();
    for error in rules {
        if !all
            .iter()
            .any(|known| covers(known, &error.path) || *known == error)
        {
            all.push(error);
        }
    }
    all
}

fn unknown_kind(object: &Value) -> FieldError {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let detail = format!(
        "no matches for kind \"{}\" in version \"{}\"",
        text("kind"),
        text("apiVersion")
    );
    FieldError {
        path: "kind".to_owned(),
        reason: Reason::Invalid,
        value: object["kind"].clone(),
        detail,
    }
}

/// Returns what a change from `old` to `new` breaks: immutable fields. Does not validate `new` by itself.
pub fn validate_update(old: &Object, new: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let Some(kind) = old.kind() else { return Vec::new() };
    let (old, new) = (defaulted(old).into_value(), defaulted(new).into_value());
    let (old, new) = (Node::root(&old), Node::root(&new));
    let [shown, said] = [&old, &new].map(|node| follow(node, "metadata.managedFields"));
    meta::validate_managed(&shown, &said, &mut errors);
    meta::validate_finalizers_update(&old.at("metadata"), &new.at("metadata"), &mut errors);
    for path in fields::METADATA_IMMUTABLE {
        let (old, new) = (follow(&old, path), follow(&new, path));
        // What the server fills in, clients may leave out.
        if new.is_set() && old.is_set() && new.value != old.value {
            errors.invalid(&new, "field is immutable");
        }
    }
    // An ExternalName service has no address, so that becoming or leaving one changes it.
    let external = |node: &Node<'_>| node.at("spec").at("type").text() == "ExternalName";
    match kind {
        Kind::Pod => {
            pod::validate_update(&old, &new, &mut errors);
            return errors.0;
        }
        Kind::PersistentVolumeClaim => {
            storage::validate_claim_update(&old, &new, &mut errors);
            return errors.0;
        }
        Kind::PersistentVolume => {
            storage::validate_volume_update(&old.at("spec"), &new.at("spec"), &mut errors);
            return errors.0;
        }
        Kind::StatefulSet => {
            apps::validate_stateful_set_update(&old.at("spec"), &new.at("spec"), &mut errors);
            return errors.0;
        }
        Kind::Service if external(&old) || external(&new) => return errors.0,
        Kind::ConfigMap | Kind::Secret => config::validate_update(&old, &new, &mut errors),
        _ => {}
    }
    for path in fields::immutable_paths(kind).0 {
        let (old, new) = (follow(&old, path), follow(&new, path));
        if old.is_set() && new.value != old.value {
            errors.invalid(&new, "field is immutable");
        }
    }
    errors.0
}

fn follow<'a>(node: &Node<'a>, path: &str) -> Node<'a> {
    path.split('.').fold(node.clone(), |node, name| node.at(name))
}

/// Returns the paths of fields that Kubernetes does not have, at any depth (`spec.foo`), up to some hundred. They are kept: who
/// wrote them is told.
pub fn unknown_fields(object: &Object) -> Vec<String> {
    let version = object.str_at("/apiVersion");
    object.kind().map_or_else(Vec::new, |kind| {
        typecheck::unknown_fields(kind, version, &object.0)
    })
}

/// Returns a sentence for each field, as written, that this version does not act on. What is the default says nothing new,
/// nor what `before`, the object that is being changed, has as well: clients send back what they were shown.
pub fn warnings(object: &Object, before: Option<&Object>) -> Vec<String> {
    let Some(kind) = object.kind() else {
        return Vec::new();
    };
    let value = Value::Object(object.0.clone());
    let root = Node::root(&value);
    let mut idle = acted_on::idle_fields(kind, &root);
    if idle.is_empty() {
        return Vec::new();
    }
    // Those are told of as such.
    let unknown = unknown_fields(object);
    idle.retain(|field| !unknown.contains(&field.path));
    let untouched = without(object, &idle);
    let says_something = |field: &&Idle| {
        let said = object.pointer(&field.pointer);
        let known = [Some(&untouched), before].into_iter().flatten();
        known
            .map(|known| known.pointer(&field.pointer))
            .all(|known| known != said)
    };
    let idle = idle.iter().filter(says_something);
    idle.map(|field| format!("{}: {}", field.path, field.reason))
        .collect()
}

/// Returns the object as if these fields had not been written.
fn without(object: &Object, fields: &[Idle]) -> Object {
    let mut tree = object.clone().into_value();
    for field in fields {
        if let Some((parent, name)) = field.pointer.rsplit_once('/')
            && let Some(Value::Object(map)) = tree.pointer_mut(parent)
        {
            map.remove(&name.replace("~1", "/").replace("~0", "~"));
        }
    }
    Object::from_value(tree).map_or_else(Object::default, |object| defaulted(&object))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "validate_kept_tests.rs"]
mod kept_tests;

#[cfg(test)]
#[path = "validate_workload_tests.rs"]
mod workload_tests;
