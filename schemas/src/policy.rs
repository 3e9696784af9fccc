//! PodDisruptionBudgets, PriorityClasses and Leases: defaults and validation.

use crate::apps::validate_count_or_percent;
use crate::choices;
use crate::defaults::{self, Tree};
use crate::int_or_string;
use crate::networking::validate_selector;
use crate::node::{Errors, Node};

/// Above are Kubernetes' own classes.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";

/// Puts the defaults into a PriorityClass.
pub(crate) fn default_priority_class(root: &mut Tree) {
    defaults::set_text(root, "preemptionPolicy", "PreemptLowerPriority");
    // Go's zero value, which Kubernetes shows.
    defaults::set(root, "value", 0);
}

/// Checks the spec of a PodDisruptionBudget.
pub(crate) fn validate_budget(spec: &Node<'_>, errors: &mut Errors) {
    let (least, most) = (spec.at("minAvailable"), spec.at("maxUnavailable"));
    if least.is_set() && most.is_set() {
        errors.invalid(spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for amount in [&least, &most] {
        validate_count_or_percent(amount, errors);
        if int_or_string::percent(amount.text()).is_some_and(|percent| percent > 100) {
            errors.invalid(amount, "must not be greater than 100%");
        }
    }
    validate_selector(&spec.at("selector"), errors);
    errors.one_of(&spec.at("unhealthyPodEvictionPolicy"), choices::EVICTION_POLICIES);
}

/// Checks a PriorityClass.
pub(crate) fn validate_priority_class(root: &Node<'_>, errors: &mut Errors) {
    let (name, value) = (root.at("metadata").at("name"), root.at("value"));
    if name.text().starts_with(SYSTEM_PREFIX) {
        errors.forbidden(
            &name,
            "priority class names with 'system-' prefix are reserved for system use only",
        );
    }
    if value.int().is_some_and(|value| value > HIGHEST_PRIORITY) {
        errors.forbidden(
            &value,
            format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}"),
        );
    }
    errors.one_of(&root.at("preemptionPolicy"), choices::PREEMPTION_POLICIES);
}

/// Checks the spec of a Lease.
pub(crate) fn validate_lease(spec: &Node<'_>, errors: &mut Errors) {
    let duration = spec.at("leaseDurationSeconds");
    if duration.int().is_some_and(|seconds| seconds <= 0) {
        errors.invalid(&duration, "must be greater than 0");
    }
    errors.at_least(&spec.at("leaseTransitions"), 0);
}
