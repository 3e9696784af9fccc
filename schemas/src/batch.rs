//! Jobs and CronJobs: defaults and validation.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/batch` (defaults, validation, and what `registry/batch/job` generates).

use serde_json::json;

use crate::choices;
use crate::defaults::{self, Tree};
use crate::networking::validate_selector;
use crate::node::{Errors, Node};
use crate::selector::LabelSelector;
use crate::{apps, cron, meta, pod};

const INDEXED: &str = "Indexed";
/// Indexes of a Job's pods: each is kept in its status.
const MAX_INDEXES: i64 = 1_000_000;
/// A CronJob appends 11 characters to name its Jobs, which have at most 63.
const CRON_JOB_NAME_MAX: usize = 52;

/// Puts the defaults into a Job. One that has a uid shows what makes its pods its own, unless the user sees to that.
pub(crate) fn default_job(root: &mut Tree) {
    defaults::status(root, &[]);
    let metadata = |field: &str| {
        let text = root
            .get("metadata")
            .and_then(|metadata| metadata.get(field)?.as_str());
        text.unwrap_or_default().to_owned()
    };
    let (uid, name) = (metadata("uid"), metadata("name"));
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    let is_set = |spec: &Tree, field: &str| spec.get(field).is_some_and(|value| !value.is_null());
    if !is_set(spec, "completions") && !is_set(spec, "parallelism") {
        defaults::set(spec, "completions", 1);
    }
    defaults::set(spec, "parallelism", 1);
    let retries = if is_set(spec, "backoffLimitPerIndex") {
        i32::MAX
    } else {
        6
    };
    defaults::set(spec, "backoffLimit", retries);
    defaults::set_text(spec, "completionMode", "NonIndexed");
    defaults::set(spec, "suspend", false);
    defaults::set(spec, "manualSelector", false);
    let replaced = if is_set(spec, "podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    defaults::set_text(spec, "podReplacementPolicy", replaced);
    apps::default_template(spec);
    let is_generated = spec.get("manualSelector").and_then(|value| value.as_bool()) == Some(false);
    if is_generated && !uid.is_empty() {
        generate_selector(spec, &uid, &name);
    }
    let labels = apps::template_labels(spec);
    apps::default_labels(root, labels);
}

fn generate_selector(spec: &mut Tree, uid: &str, name: &str) {
    let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    defaults::set(spec, "selector", selector);
    if let Some(template) = defaults::map(spec, "template")
        && let Some(metadata) = defaults::make(template, "metadata")
        && let Some(labels) = defaults::make(metadata, "labels")
    {
        for prefix in ["batch.kubernetes.io/", ""] {
            defaults::set(labels, &format!("{prefix}controller-uid"), uid);
            defaults::set(labels, &format!("{prefix}job-name"), name);
        }
    }
}

/// Puts the defaults into a CronJob.
pub(crate) fn default_cron_job(root: &mut Tree) {
    defaults::status(root, &[]);
    let Some(spec) = defaults::make(root, "spec") else {
        return;
    };
    defaults::set_text(spec, "concurrencyPolicy", "Allow");
    defaults::set(spec, "suspend", false);
    defaults::set(spec, "successfulJobsHistoryLimit", 3);
    defaults::set(spec, "failedJobsHistoryLimit", 1);
    if let Some(template) = defaults::map(spec, "jobTemplate")
        && let Some(job) = defaults::map(template, "spec")
    {
        apps::default_template(job);
    }
}

/// Checks a Job.
pub(crate) fn validate_job(root: &Node<'_>, errors: &mut Errors) {
    let spec = root.at("spec");
    let (selector, is_manual) = (spec.at("selector"), spec.at("manualSelector").is_true());
    let labels = spec.at("template").at("metadata").at("labels");
    if selector.is_set() {
        validate_selector(&selector, errors);
        let is_its_own = LabelSelector::from_object(selector.value)
            .is_ok_and(|parsed| parsed.matches(|key| labels.value.get(key)?.as_str()));
        if !is_its_own && is_manual {
            errors.invalid(&labels, "`selector` does not match template `labels`");
        } else if !is_its_own {
            errors.invalid(&selector, "`selector` not auto-generated");
        }
    } else if is_manual {
        errors.required(&selector, "");
    }
    validate_job_spec(&spec, errors);
}

/// Checks a CronJob.
pub(crate) fn validate_cron_job(root: &Node<'_>, errors: &mut Errors) {
    let (name, spec) = (root.at("metadata").at("name"), root.at("spec"));
    if name.text().len() > CRON_JOB_NAME_MAX {
        errors.invalid(
            &name,
            format!("must be no more than {CRON_JOB_NAME_MAX} characters"),
        );
    }
    let schedule = spec.at("schedule");
    match cron::check(schedule.text()) {
        _ if schedule.text().is_empty() => errors.required(&schedule, ""),
        Some(problem) => errors.invalid(&schedule, problem),
        None => {}
    }
    let zone = spec.at("timeZone");
    if zone.is_set() && !is_zone_name(zone.text()) {
        errors.invalid(&zone, format!("unknown time zone {}", zone.text()));
    }
    for field in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        errors.at_least(&spec.at(field), 0);
    }
    errors.one_of(&spec.at("concurrencyPolicy"), choices::CONCURRENCY_POLICIES);
    let template = spec.at("jobTemplate");
    meta::validate_of_template(&template.at("metadata"), errors);
    let job = template.at("spec");
    if job.at("selector").is_set() {
        errors.invalid(&job.at("selector"), "`selector` will be auto-generated");
    }
    if job.at("manualSelector").is_true() {
        errors.one_of(&job.at("manualSelector"), &["nil", "false"]);
    }
    validate_job_spec(&job, errors);
}

/// The names of tzdata 2025b, zones and links, of Debian's `/usr/share/zoneinfo/tzdata.zi` (in the public domain), one a line:
/// fields 2 of its lines `Z` and 3 of its lines `L`, sorted by bytes.
const TIME_ZONES: &str = include_str!("time_zones.txt");

/// Tells whether a zone is known; upper and lower case count, as in Kubernetes.
fn is_zone_name(name: &str) -> bool {
    TIME_ZONES.lines().any(|zone| zone == name)
}

fn validate_job_spec(spec: &Node<'_>, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        errors.at_least(&spec.at(field), 0);
    }
    errors.one_of(&spec.at("completionMode"), choices::COMPLETION_MODES);
    errors.one_of(&spec.at("podReplacementPolicy"), choices::REPLACEMENT_POLICIES);
    validate_indexes(spec, errors);
    let template = spec.at("template");
    if !template.is_set() {
        return errors.required(&template, "");
    }
    meta::validate_of_template(&template.at("metadata"), errors);
    let pod_spec = template.at("spec");
    pod::validate_spec(&pod_spec, errors);
    let restart = pod_spec.at("restartPolicy");
    if restart.text() == "Always" {
        errors.required(&restart, "valid values: \"OnFailure\", \"Never\"");
    }
    validate_failure_policy(&spec.at("podFailurePolicy"), restart.text(), errors);
}

/// Checks what is only for Jobs whose pods have an index each.
fn validate_indexes(spec: &Node<'_>, errors: &mut Errors) {
    let completions = spec.at("completions");
    if spec.at("completionMode").text() == INDEXED {
        if !completions.is_set() {
            errors.required(&completions, "when completion mode is Indexed");
        }
        if completions.int().is_some_and(|count| count > MAX_INDEXES) {
            errors.invalid(
                &completions,
                format!("must be less than or equal to {MAX_INDEXES} when completion mode is Indexed"),
            );
        }
        let (per_index, most) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"));
        if most.is_set() && !per_index.is_set() {
            errors.required(&per_index, "when maxFailedIndexes is specified");
        }
        return;
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        let field = spec.at(field);
        if field.is_set() {
            errors.invalid(&field, "requires indexed completion mode");
        }
    }
}

fn validate_failure_policy(policy: &Node<'_>, restart: &str, errors: &mut Errors) {
    if policy.is_set() && restart != "Never" {
        errors.invalid(policy, "only supported when `restartPolicy` is 'Never'");
    }
    for rule in policy.at("rules").items() {
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        errors.one_of(&rule.at("action"), choices::FAILURE_ACTIONS);
        match (codes.is_set(), conditions.is_empty_list()) {
            (true, false) => errors.invalid(
                &rule,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (false, true) => errors.invalid(
                &rule,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
        errors.one_of(&codes.at("operator"), choices::EXIT_CODE_OPERATORS);
        if codes.is_set() && codes.at("values").is_empty_list() {
            errors.invalid(&codes.at("values"), "at least one value is required");
        }
    }
}
