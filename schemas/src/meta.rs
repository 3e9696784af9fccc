//! `metadata` of all kinds: names, labels, annotations, owners.

use crate::Kind;
use crate::names;
use crate::node::{Errors, Node};

/// Metadata that a server says; what a client says of it in a new object or a manifest goes.
pub const SERVER_FIELDS: [&str; 8] = [
    "uid",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];
/// Those of [`SERVER_FIELDS`] that are part of what is stored: a deletion is a change like others.
pub const DELETION_FIELDS: [&str; 2] = ["deletionTimestamp", "deletionGracePeriodSeconds"];
/// What an object is found by. Clients say it, and it never changes.
pub const NAME_FIELDS: [&str; 2] = ["name", "namespace"];

/// Entries of `managedFields`: Kubernetes keeps ten updaters, and few objects have as many appliers.
pub const MANAGED_FIELDS_MAX: usize = 64;
/// Subresources through which a manager owns apart from what it writes of the object itself, as in Kubernetes: an apply of one
/// drops nothing of the other.
pub const OWNED_APART: [&str; 2] = ["status", "scale"];
/// The longest name of a field manager.
pub const MANAGER_MAX_BYTES: usize = 128;
/// The annotation in which `kubectl apply` without `--server-side` writes down what it applied.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All keys and values of an object's annotations together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

/// Returns the owner of what a manager writes through one of [`OWNED_APART`], as documents name it.
pub fn manager_through(manager: &str, subresource: &str) -> String {
    format!("{manager}/{subresource}")
}

/// Returns the manager and the subresource that it writes through, if [`manager_through`] made this.
pub fn split_manager(owner: &str) -> (&str, Option<&str>) {
    match owner.rsplit_once('/') {
        Some((manager, subresource)) if OWNED_APART.contains(&subresource) => (manager, Some(subresource)),
        Some(_) | None => (owner, None),
    }
}

/// Checks the metadata of a whole object.
pub(crate) fn validate(kind: Kind, metadata: &Node<'_>, errors: &mut Errors) {
    let (name, prefix) = (metadata.at("name"), metadata.at("generateName"));
    if name.text().is_empty() && prefix.text().is_empty() {
        errors.required(&name, "name or generateName is required");
    }
    if let Some(form) = name_form(kind) {
        if !name.text().is_empty() {
            errors.form(&name, form);
        }
        // What is appended begins with a letter or a digit.
        let stem = prefix.text().trim_end_matches('-');
        if let (false, Some(problem)) = (stem.is_empty(), form(stem)) {
            errors.invalid(&prefix, problem);
        }
    }
    let namespace = metadata.at("namespace");
    if !namespace.text().is_empty() {
        match kind.is_namespaced() {
            true => errors.form(&namespace, names::dns_label),
            false => errors.forbidden(&namespace, "not allowed on this type"),
        }
    }
    validate_of_template(metadata, errors);
}

/// Checks what a client says of who owns what, if it is not what was shown. What no API server could read changes nothing,
/// and is not refused.
pub(crate) fn validate_managed(shown: &Node<'_>, entries: &Node<'_>, errors: &mut Errors) {
    if entries.value == shown.value {
        return;
    }
    if entries.items().count() > MANAGED_FIELDS_MAX {
        errors.invalid(entries, format!("must have at most {MANAGED_FIELDS_MAX} items"));
    }
    for entry in entries.items() {
        let manager = entry.at("manager");
        if manager.text().len() > MANAGER_MAX_BYTES {
            errors.too_long(&manager, MANAGER_MAX_BYTES);
        }
        if manager.text().chars().any(char::is_control) {
            errors.invalid(&manager, "should only contain printable characters");
        }
    }
}

/// Checks that nothing new is waited for once an object is being deleted.
pub(crate) fn validate_finalizers_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    if !old.at("deletionTimestamp").is_set() {
        return;
    }
    let (known, said) = (old.at("finalizers"), new.at("finalizers"));
    let known: Vec<&str> = known.items().map(|finalizer| finalizer.text()).collect();
    let names = said.items().map(|finalizer| finalizer.text());
    let mut added: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
    added.sort_unstable();
    added.dedup();
    if !added.is_empty() {
        errors.forbidden(
            &said,
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{\"{}\"}}",
                added.join("\", \"")
            ),
        );
    }
}

/// Checks what metadata of objects and of pod templates have in common.
pub(crate) fn validate_of_template(metadata: &Node<'_>, errors: &mut Errors) {
    validate_labels(&metadata.at("labels"), errors);
    let annotations = metadata.at("annotations");
    let mut size = 0;
    for (key, value) in annotations.entries() {
        size += key.len() + value.text().len();
        if let Some(problem) = names::qualified_name(&key.to_ascii_lowercase()) {
            errors.invalid(
                &Node {
                    value: &key.as_str().into(),
                    ..annotations.clone()
                },
                problem,
            );
        }
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(&annotations, ANNOTATIONS_MAX_BYTES);
    }
    for finalizer in metadata.at("finalizers").items() {
        errors.form(&finalizer, names::qualified_name);
    }
    let owners = metadata.at("ownerReferences");
    if owners
        .items()
        .filter(|owner| owner.at("controller").is_true())
        .count()
        > 1
    {
        errors.invalid(&owners, "Only one reference can have Controller set to true");
    }
}

/// Checks a map of labels, or a selector that is one.
pub(crate) fn validate_labels(labels: &Node<'_>, errors: &mut Errors) {
    for (key, value) in labels.entries() {
        if let Some(problem) = names::qualified_name(key) {
            errors.invalid(
                &Node {
                    value: &key.as_str().into(),
                    ..labels.clone()
                },
                problem,
            );
        }
        if let Some(problem) = value.value.as_str().and_then(names::label_value) {
            errors.invalid(
                &Node {
                    value: value.value,
                    ..labels.clone()
                },
                problem,
            );
        }
    }
}

/// The form of names of a kind; internal ones are made by us.
fn name_form(kind: Kind) -> Option<fn(&str) -> Option<String>> {
    match kind {
        Kind::Namespace => Some(names::dns_label),
        Kind::Service => Some(names::dns_1035_label),
        Kind::Node
        | Kind::Pod
        | Kind::Endpoints
        | Kind::Event
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::Ingress
        | Kind::EndpointSlice
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::ServiceAccount
        | Kind::PersistentVolumeClaim
        | Kind::PersistentVolume
        | Kind::StorageClass
        | Kind::IngressClass
        | Kind::NetworkPolicy
        | Kind::PodDisruptionBudget
        | Kind::PriorityClass
        | Kind::Lease
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::ReplicationController
        | Kind::PodTemplate
        | Kind::ControllerRevision
        | Kind::Job
        | Kind::CronJob => Some(names::dns_subdomain),
        Kind::Member | Kind::ApiToken | Kind::JoinToken | Kind::DnsWhitelist | Kind::GitInventory => None,
    }
}
