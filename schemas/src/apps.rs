//! Deployments and ReplicaSets: defaults and validation.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::defaults::{self, Tree};
use crate::int_or_string::{self, Rounding};
use crate::node::{Errors, Node};
use crate::selector::LabelSelector;
use crate::{meta, pod};

/// Puts the defaults into a Deployment.
pub(crate) fn default_deployment(root: &mut Tree) {
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set(spec, "revisionHistoryLimit", 10);
    defaults::set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = defaults::make(spec, "strategy") {
        defaults::set_text(strategy, "type", "RollingUpdate");
        if defaults::text(strategy, "type") == "RollingUpdate"
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

fn default_replicas(spec: &mut Tree) {
    defaults::set(spec, "replicas", 1);
    if let Some(template) = defaults::map(spec, "template")
        && let Some(pod_spec) = defaults::map(template, "spec")
    {
        pod::default_spec(pod_spec);
    }
}

/// Checks a Deployment.
pub(crate) fn validate_deployment(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    validate_replicas(&spec, "deployment", errors);
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
    errors.one_of(&strategy.at("type"), &["Recreate", "RollingUpdate"]);
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
    validate_replicas(&root.at("spec"), "ReplicaSet", errors);
}

/// Checks what both have: replicas, selector, template.
fn validate_replicas(spec: &Node<'_>, kind: &str, errors: &mut Errors) {
    errors.at_least(&spec.at("replicas"), 0);
    errors.at_least(&spec.at("minReadySeconds"), 0);
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
    if !template.is_set() {
        return errors.required(&template, "");
    }
    meta::validate_of_template(&template.at("metadata"), errors);
    let pod_spec = template.at("spec");
    pod::validate_spec(&pod_spec, errors);
    if matches!(pod_spec.at("restartPolicy").text(), "OnFailure" | "Never") {
        errors.one_of(&pod_spec.at("restartPolicy"), &["Always"]);
    }
    if pod_spec.at("activeDeadlineSeconds").is_set() {
        errors.forbidden(
            &pod_spec.at("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
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
