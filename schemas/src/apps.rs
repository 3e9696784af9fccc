//! Workloads that keep pods running, and their templates: defaults and validation.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::defaults::{self, Tree};
use crate::int_or_string::{self, Rounding};
use crate::node::{Errors, Node};
use crate::selector::LabelSelector;
use crate::{Kind, choices, fields, meta, names, pod, storage};

const ROLLING: &str = "RollingUpdate";
const STATEFUL_SET_NAME: &str = "StatefulSet";

/// Puts the defaults into a Deployment.
pub(crate) fn default_deployment(root: &mut Tree) {
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set(spec, "revisionHistoryLimit", 10);
    defaults::set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = defaults::make(spec, "strategy") {
        defaults::set_text(strategy, "type", ROLLING);
        if defaults::text(strategy, "type") == ROLLING
            && let Some(rolling) = defaults::make(strategy, "rollingUpdate")
        {
            defaults::set(rolling, "maxSurge", "25%");
            defaults::set(rolling, "maxUnavailable", "25%");
        }
    }
    default_replicas(spec);
}

/// Puts the defaults into a ReplicaSet.
pub(crate) fn default_replica_set(root: &mut Tree) {
    if let Some(spec) = defaults::make(root, "spec") {
        default_replicas(spec);
    }
}

/// Puts the defaults into a StatefulSet.
pub(crate) fn default_stateful_set(root: &mut Tree) {
    defaults::status(root, &["availableReplicas", "replicas"]);
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set_text(spec, "podManagementPolicy", "OrderedReady");
    defaults::set(spec, "revisionHistoryLimit", 10);
    if let Some(rolling) = default_update_strategy(spec) {
        defaults::set(rolling, "partition", 0);
    }
    if let Some(policy) = defaults::make(spec, "persistentVolumeClaimRetentionPolicy") {
        defaults::set_text(policy, "whenDeleted", "Retain");
        defaults::set_text(policy, "whenScaled", "Retain");
    }
    for claim in defaults::each(spec, "volumeClaimTemplates") {
        defaults::set_text(claim, "apiVersion", "v1");
        defaults::set_text(claim, "kind", "PersistentVolumeClaim");
        storage::default_claim(claim);
        if let Some(status) = defaults::make(claim, "status") {
            defaults::set_text(status, "phase", "Pending");
        }
    }
    default_replicas(spec);
}

/// Puts the defaults into a DaemonSet.
pub(crate) fn default_daemon_set(root: &mut Tree) {
    defaults::status(
        root,
        &[
            "currentNumberScheduled",
            "desiredNumberScheduled",
            "numberMisscheduled",
            "numberReady",
        ],
    );
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set(spec, "revisionHistoryLimit", 10);
    if let Some(rolling) = default_update_strategy(spec) {
        defaults::set(rolling, "maxSurge", 0);
        defaults::set(rolling, "maxUnavailable", 1);
    }
    default_template(spec);
}

/// Returns the parameters of a rolling update, if that is how pods are replaced.
fn default_update_strategy(spec: &mut Tree) -> Option<&mut Tree> {
    let strategy = defaults::make(spec, "updateStrategy")?;
    defaults::set_text(strategy, "type", ROLLING);
    if defaults::text(strategy, "type") != ROLLING {
        return None;
    }
    defaults::make(strategy, "rollingUpdate")
}

/// Puts the defaults into a ReplicationController, which is for the pods of its template unless it says otherwise.
pub(crate) fn default_replication_controller(root: &mut Tree) {
    defaults::status(root, &["replicas"]);
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    default_replicas(spec);
    let labels = template_labels(spec);
    if let Some(labels) = &labels {
        set_if_empty(spec, "selector", labels);
    }
    default_labels(root, labels);
}

/// The labels of the pods of a template, if it has any.
pub(crate) fn template_labels(spec: &Tree) -> Option<Tree> {
    let labels = spec.get("template")?.pointer("/metadata/labels")?.as_object()?;
    (!labels.is_empty()).then(|| labels.clone())
}

/// Labels an object without labels as its pods.
pub(crate) fn default_labels(root: &mut Tree, labels: Option<Tree>) {
    if let Some(labels) = labels
        && let Some(metadata) = defaults::make(root, "metadata")
    {
        set_if_empty(metadata, "labels", &labels);
    }
}

fn set_if_empty(map: &mut Tree, field: &str, value: &Tree) {
    let is_empty = |known: &Value| known.is_null() || known.as_object().is_some_and(Tree::is_empty);
    if map.get(field).is_none_or(is_empty) {
        map.insert(field.to_owned(), Value::Object(value.clone()));
    }
}

fn default_replicas(spec: &mut Tree) {
    defaults::set(spec, "replicas", 1);
    default_template(spec);
}

/// Puts the defaults into the pod template of `map`.
pub(crate) fn default_template(map: &mut Tree) {
    if let Some(template) = defaults::map(map, "template")
        && let Some(pod_spec) = defaults::map(template, "spec")
    {
        pod::default_spec(pod_spec);
    }
}

/// Puts the default into a ControllerRevision: Go's zero value, which Kubernetes shows.
pub(crate) fn default_revision(root: &mut Tree) {
    defaults::set(root, "revision", 0);
}

/// Checks a Deployment.
pub(crate) fn validate_deployment(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    validate_replicas(&spec, "deployment", "ReplicaSet", errors);
    errors.at_least(&spec.at("revisionHistoryLimit"), 0);
    let deadline = spec.at("progressDeadlineSeconds");
    errors.at_least(&deadline, 0);
    if deadline
        .int()
        .is_some_and(|seconds| seconds <= spec.at("minReadySeconds").int().unwrap_or_default())
    {
        errors.invalid(&deadline, "must be greater than minReadySeconds");
    }

    let strategy = spec.at("strategy");
    errors.one_of(&strategy.at("type"), choices::DEPLOYMENT_STRATEGIES);
    let rolling = strategy.at("rollingUpdate");
    if strategy.at("type").text() == "Recreate" {
        if rolling.is_set() {
            errors.forbidden(
                &rolling,
                "may not be specified when strategy `type` is 'Recreate'",
            );
        }
        return;
    }
    let (surge, unavailable) = (rolling.at("maxSurge"), rolling.at("maxUnavailable"));
    validate_count_or_percent(&surge, errors);
    validate_count_or_percent(&unavailable, errors);
    if int_or_string::percent(unavailable.text()).is_some_and(|percent| percent > 100) {
        errors.invalid(&unavailable, "must not be greater than 100%");
    }
    if is_zero(surge.value) && is_zero(unavailable.value) {
        errors.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
    }
}

/// Checks a ReplicaSet.
pub(crate) fn validate_replica_set(root: &Node<'_>, errors: &mut Errors) {
    validate_replicas(&root.at("spec"), "ReplicaSet", "ReplicaSet", errors);
}

/// Checks a StatefulSet.
pub(crate) fn validate_stateful_set(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    validate_replicas(&spec, "statefulset", STATEFUL_SET_NAME, errors);
    errors.at_least(&spec.at("revisionHistoryLimit"), 0);
    errors.at_least(&spec.at("ordinals").at("start"), 0);
    errors.one_of(&spec.at("podManagementPolicy"), choices::POD_MANAGEMENT_POLICIES);
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    for when in ["whenDeleted", "whenScaled"] {
        errors.one_of(&retention.at(when), &["Delete", "Retain"]);
    }
    let rolling = validate_update_strategy(&spec, errors);
    errors.at_least(&rolling.at("partition"), 0);
    validate_count_or_percent(&rolling.at("maxUnavailable"), errors);
    let service = spec.at("serviceName");
    if !service.text().is_empty() {
        errors.form(&service, names::dns_subdomain);
    }
}

/// Checks a change of the spec of a StatefulSet.
pub(crate) fn validate_stateful_set_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    let keeps = |name: &str| fields::is_immutable(Kind::StatefulSet, &["spec", name]);
    if storage::part(old, keeps) != storage::part(new, keeps) {
        errors.forbidden(
            new,
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

/// Checks a DaemonSet.
pub(crate) fn validate_daemon_set(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    errors.at_least(&spec.at("minReadySeconds"), 0);
    errors.at_least(&spec.at("revisionHistoryLimit"), 0);
    validate_pods(&spec, "daemonset", "DaemonSet", errors);
    let rolling = validate_update_strategy(&spec, errors);
    let (surge, unavailable) = (rolling.at("maxSurge"), rolling.at("maxUnavailable"));
    for count in [&surge, &unavailable] {
        validate_count_or_percent(count, errors);
        if int_or_string::percent(count.text()).is_some_and(|percent| percent > 100) {
            errors.invalid(count, "must not be greater than 100%");
        }
    }
    match (is_zero(surge.value), is_zero(unavailable.value)) {
        (true, true) => errors.invalid(&unavailable, "cannot be 0 when maxSurge is 0"),
        (false, false) if surge.is_set() && unavailable.is_set() => {
            errors.invalid(&surge, "may not be set when maxUnavailable is non-zero");
        }
        _ => {}
    }
}

/// Checks how pods are replaced and returns the parameters of a rolling update.
fn validate_update_strategy<'a>(spec: &Node<'a>, errors: &mut Errors) -> Node<'a> {
    let strategy = spec.at("updateStrategy");
    errors.one_of(&strategy.at("type"), choices::UPDATE_STRATEGIES);
    let rolling = strategy.at("rollingUpdate");
    if strategy.at("type").text() == "OnDelete" && rolling.is_set() {
        errors.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'");
    }
    rolling
}

/// Checks a ReplicationController, whose selector is a plain map.
pub(crate) fn validate_replication_controller(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    errors.at_least(&spec.at("replicas"), 0);
    errors.at_least(&spec.at("minReadySeconds"), 0);
    let (selector, template) = (spec.at("selector"), spec.at("template"));
    let labels = template.at("metadata").at("labels");
    meta::validate_labels(&selector, errors);
    let matches = |(key, value): (&String, Node<'_>)| labels.at(key).value == value.value;
    if selector.map().is_none_or(Tree::is_empty) {
        errors.required(&selector, "");
    } else if template.is_set() && !selector.entries().all(matches) {
        errors.invalid(&labels, "`selector` does not match template `labels`");
    }
    validate_template(&template, "ReplicationController", HashSet::new(), errors);
}

/// Checks a PodTemplate.
pub(crate) fn validate_pod_template(root: &Node<'_>, errors: &mut Errors) {
    let template = root.at("template");
    meta::validate_of_template(&template.at("metadata"), errors);
    pod::validate_spec(&template.at("spec"), errors);
}

/// Checks a ControllerRevision.
pub(crate) fn validate_revision(root: &Node<'_>, errors: &mut Errors) {
    errors.at_least(&root.at("revision"), 0);
    if !root.at("data").is_set() {
        errors.required(&root.at("data"), "data is mandatory");
    }
}

/// Checks replicas, selector and template. `kind` is what Kubernetes calls the owner of the selector, `keeper` that of
/// the pods.
fn validate_replicas(spec: &Node<'_>, kind: &str, keeper: &str, errors: &mut Errors) {
    errors.at_least(&spec.at("replicas"), 0);
    errors.at_least(&spec.at("minReadySeconds"), 0);
    validate_pods(spec, kind, keeper, errors);
}

fn validate_pods(spec: &Node<'_>, kind: &str, keeper: &str, errors: &mut Errors) {
    let template = spec.at("template");
    let labels = template.at("metadata").at("labels");
    let selector = spec.at("selector");
    if !selector.is_set() {
        errors.required(&selector, "");
    } else {
        match LabelSelector::from_object(selector.value) {
            Err(error) => errors.invalid(&selector, error.to_string()),
            Ok(parsed) if parsed.is_empty() => {
                errors.invalid(&selector, format!("empty selector is invalid for {kind}"));
            }
            Ok(parsed) if !parsed.matches(|key| labels.value.get(key).and_then(Value::as_str)) => {
                errors.invalid(&labels, "`selector` does not match template `labels`");
            }
            Ok(_) => {}
        }
    }
    let claims = spec.at("volumeClaimTemplates");
    let claims = claims.items().filter(|_| keeper == STATEFUL_SET_NAME);
    let claims = claims.map(|claim| claim.at("metadata").at("name").text());
    validate_template(&template, keeper, claims.collect(), errors);
}

/// Checks the template of pods that run until they are removed, and get `claims` as volumes.
fn validate_template(template: &Node<'_>, keeper: &str, claims: HashSet<&str>, errors: &mut Errors) {
    if !template.is_set() {
        return errors.required(template, "");
    }
    meta::validate_of_template(&template.at("metadata"), errors);
    let pod_spec = template.at("spec");
    pod::validate_spec_with_claims(&pod_spec, claims, errors);
    if matches!(pod_spec.at("restartPolicy").text(), "OnFailure" | "Never") {
        errors.one_of(&pod_spec.at("restartPolicy"), &["Always"]);
    }
    let deadline = pod_spec.at("activeDeadlineSeconds");
    if deadline.is_set() {
        errors.forbidden(
            &deadline,
            format!("activeDeadlineSeconds in {keeper} is not Supported"),
        );
    }
}

pub(crate) fn validate_count_or_percent(node: &Node<'_>, errors: &mut Errors) {
    errors.at_least(node, 0);
    if node.value.is_string() && int_or_string::percent(node.text()).is_none() {
        errors.invalid(node, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
    }
}

fn is_zero(value: &Value) -> bool {
    let parsed = match value {
        Value::String(text) => IntOrString::String(text.clone()),
        Value::Number(number) => {
            IntOrString::Int(number.as_i64().and_then(|n| n.try_into().ok()).unwrap_or(1))
        }
        _ => return false,
    };
    int_or_string::scaled(&parsed, 100, Rounding::Up) == Some(0)
}
