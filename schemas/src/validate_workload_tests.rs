//! Rules of the workloads that are kept: StatefulSets, DaemonSets, ReplicationControllers, templates, Jobs, CronJobs.

use serde_json::{Value, json};

use super::*;

const POD: &str = "metadata: {labels: {app: a}}, spec: {containers: [{name: a, image: x}]";

fn read(kind: &str, rest: &str) -> Object {
    let api_version = match kind {
        "StatefulSet" | "DaemonSet" | "ControllerRevision" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        _ => "v1",
    };
    // `POD` is a template whose pods run on, `ENDS` one whose pods end.
    let rest = rest
        .replace("POD", &format!("{{{POD}}}}}"))
        .replace("ENDS", &format!("{{{POD}, restartPolicy: Never}}}}"));
    let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n{rest}\n");
    crate::manifest::parse(text.as_bytes())
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .remove(0)
}

fn check(kind: &str, rest: &str, expected: &[&str]) {
    let errors: Vec<String> = validate(&read(kind, rest))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors, expected, "{kind} {rest}");
}

fn check_update(kind: &str, old: &str, new: &str, expected: &[&str]) {
    let errors: Vec<String> = validate_update(&read(kind, old), &read(kind, new))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors, expected, "{kind} {old} {new}");
}

#[test]
fn stateful_sets() {
    const OF: &str = "selector: {matchLabels: {app: a}}, template: POD";
    let check = |rest: &str, expected: &[&str]| check("StatefulSet", &format!("spec: {{{rest}}}"), expected);
    check(OF, &[]);
    check(
        "selector: {}, template: POD",
        &["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"],
    );
    check(
        &format!("{OF}, podManagementPolicy: Random, ordinals: {{start: -1}}"),
        &[
            "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
            "spec.podManagementPolicy: Unsupported value: \"Random\": supported values: \"OrderedReady\", \"Parallel\"",
        ],
    );
    check(
        &format!("{OF}, updateStrategy: {{type: OnDelete, rollingUpdate: {{partition: 1}}}}"),
        &[
            "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy \
             'RollingUpdate'",
        ],
    );
    check(
        &format!("{OF}, persistentVolumeClaimRetentionPolicy: {{whenScaled: Keep}}"),
        &[
            "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\": supported values: \
             \"Delete\", \"Retain\"",
        ],
    );
    check(
        "selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {restartPolicy: Never, \
         activeDeadlineSeconds: 5, containers: [{name: a, image: x}]}}",
        &[
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported",
        ],
    );
    // Pods get the claims as volumes.
    const MOUNTED: &str = "{metadata: {labels: {app: a}}, spec: {containers: [{name: a, image: x, volumeMounts: \
                           [{name: www, mountPath: /a}, {name: logs, mountPath: /b}]}]}}";
    let mounted = format!("selector: {{matchLabels: {{app: a}}}}, template: {MOUNTED}");
    let claim = "{metadata: {name: www}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}";
    let missing = |name: &str, mount: usize| {
        format!("spec.template.spec.containers[0].volumeMounts[{mount}].name: Not found: \"{name}\"")
    };
    check(
        &format!("{mounted}, volumeClaimTemplates: [{claim}]"),
        &[&missing("logs", 1)],
    );
    super::workload_tests::check(
        "DaemonSet",
        &format!("spec: {{{mounted}, volumeClaimTemplates: [{claim}]}}"),
        &[&missing("www", 0), &missing("logs", 1)],
    );
    let old = format!("spec: {{{OF}}}");
    check_update(
        "StatefulSet",
        &old,
        &format!("spec: {{{OF}, replicas: 4, minReadySeconds: 3}}"),
        &[],
    );
    check_update(
        "StatefulSet",
        &old,
        &format!("spec: {{{OF}, serviceName: other}}"),
        &[
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
           'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
           forbidden",
        ],
    );
}

#[test]
fn daemon_sets() {
    const OF: &str = "selector: {matchLabels: {app: a}}, template: POD";
    let check = |rest: &str, expected: &[&str]| check("DaemonSet", &format!("spec: {{{rest}}}"), expected);
    check(OF, &[]);
    for (rolling, expected) in [
        ("{maxSurge: 1, maxUnavailable: 0}", None),
        (
            "{maxSurge: 0, maxUnavailable: 0%}",
            Some("maxUnavailable: Invalid value: \"0%\": cannot be 0 when maxSurge is 0"),
        ),
        (
            "{maxSurge: 1, maxUnavailable: 1}",
            Some("maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"),
        ),
        (
            "{maxUnavailable: 101%}",
            Some("maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"),
        ),
    ] {
        let expected = expected.map(|rest| format!("spec.updateStrategy.rollingUpdate.{rest}"));
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(
            &format!("{OF}, updateStrategy: {{rollingUpdate: {rolling}}}"),
            &expected,
        );
    }
    check_update(
        "DaemonSet",
        &format!("spec: {{{OF}}}"),
        "spec: {selector: {matchLabels: {app: b}}, template: POD}",
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"],
    );
}

#[test]
fn replication_controllers_templates_and_revisions() {
    check("ReplicationController", "spec: {template: POD}", &[]);
    let defaulted = defaulted(&read("ReplicationController", "spec: {template: POD}"));
    assert_eq!(defaulted.pointer("/spec/selector"), Some(&json!({"app": "a"})));
    assert_eq!(defaulted.pointer("/metadata/labels"), Some(&json!({"app": "a"})));
    check(
        "ReplicationController",
        "spec: {replicas: -1, selector: {app: b}, template: POD}",
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ],
    );
    check(
        "ReplicationController",
        "spec: {selector: {app: b}}",
        &["spec.template: Required value"],
    );
    check("PodTemplate", "template: ENDS", &[]);
    check(
        "PodTemplate",
        "template: {spec: {containers: []}}",
        &["template.spec.containers: Required value"],
    );
    check("ControllerRevision", "revision: 1\ndata: {a: 1}", &[]);
    check("ControllerRevision", "data: {a: 1}", &[]);
    check(
        "ControllerRevision",
        "revision: -1",
        &[
            "revision: Invalid value: -1: must be greater than or equal to 0",
            "data: Required value: data is mandatory",
        ],
    );
    check_update(
        "ControllerRevision",
        "revision: 1\ndata: {a: 1}",
        "revision: 2\ndata: {a: 2}",
        &["data: Invalid value: {\"a\":2}: field is immutable"],
    );
}

#[test]
fn jobs() {
    let check = |rest: &str, expected: &[&str]| check("Job", &format!("spec: {{{rest}}}"), expected);
    check("template: ENDS", &[]);
    check(
        "template: POD",
        &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
    );
    check(
        "template: ENDS, parallelism: -1, backoffLimit: -1",
        &[
            "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
            "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
        ],
    );
    check(
        "template: ENDS, completionMode: Indexed, parallelism: 2, maxFailedIndexes: 1",
        &[
            "spec.completions: Required value: when completion mode is Indexed",
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ],
    );
    check(
        "template: ENDS, backoffLimitPerIndex: 1",
        &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
    );
    check(
        "template: ENDS, manualSelector: true",
        &["spec.selector: Required value"],
    );
    check(
        "template: ENDS, manualSelector: true, selector: {matchLabels: {app: a}}",
        &[],
    );
    check(
        "template: ENDS, selector: {matchLabels: {app: b}}",
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: `selector` not auto-generated"],
    );
    check(
        "template: ENDS, podFailurePolicy: {rules: [{action: Retry, onExitCodes: {operator: In, values: [1]}}, {action: Count}]}",
        &[
            "spec.podFailurePolicy.rules[0].action: Unsupported value: \"Retry\": supported values: \"Count\", \
             \"FailIndex\", \"FailJob\", \"Ignore\"",
            "spec.podFailurePolicy.rules[1]: Invalid value: {\"action\":\"Count\"}: specifying one of OnExitCodes and \
             OnPodConditions is required",
        ],
    );
    check_update(
        "Job",
        "spec: {template: ENDS, completions: 1}",
        "spec: {template: ENDS, completions: 2, parallelism: 5}",
        &["spec.completions: Invalid value: 2: field is immutable"],
    );
}

/// As `registry/batch/job` of Kubernetes: by the uid, in the selector and in the labels of the template and of the Job.
#[test]
fn a_job_shows_what_makes_its_pods_its_own() {
    let mut job = read("Job", "spec: {template: ENDS}");
    let shown = defaulted(&job);
    assert_eq!(shown.pointer("/spec/selector"), None, "it is not made yet");
    job.set(&["metadata", "uid"], "u-1");
    let shown = defaulted(&job);
    assert_eq!(
        shown.pointer("/spec/selector"),
        Some(&json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}))
    );
    let labels = json!({"app": "a", "batch.kubernetes.io/controller-uid": "u-1", "batch.kubernetes.io/job-name": "a",
        "controller-uid": "u-1", "job-name": "a"});
    assert_eq!(shown.pointer("/spec/template/metadata/labels"), Some(&labels));
    assert_eq!(shown.pointer("/metadata/labels"), Some(&labels));
    assert_eq!(validate(&shown), []);
    assert_eq!(validate_update(&job, &shown), [], "what is shown can be written");
    assert_eq!(defaulted(&shown), shown);
    for (field, expected) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(
            shown.pointer(&format!("/spec/{field}")),
            Some(&expected),
            "{field}"
        );
    }
    let workers = defaulted(&read("Job", "spec: {template: ENDS, parallelism: 3}"));
    assert_eq!(workers.pointer("/spec/completions"), None::<&Value>);
}

#[test]
fn cron_jobs() {
    let check = |rest: &str, expected: &[&str]| check("CronJob", &format!("spec: {{{rest}}}"), expected);
    const OF: &str = "jobTemplate: {spec: {template: ENDS}}";
    check(
        &format!("{OF}, schedule: '*/5 * * * *', timeZone: Europe/Kyiv"),
        &[],
    );
    check(OF, &["spec.schedule: Required value"]);
    check(
        &format!("{OF}, schedule: '61 * * * *'"),
        &["spec.schedule: Invalid value: \"61 * * * *\": minute `61`: it must be from 0 to 59"],
    );
    for zone in ["UTC", "Europe/Kiev", "US/Pacific", "Etc/GMT+5"] {
        check(&format!("{OF}, schedule: '@daily', timeZone: '{zone}'"), &[]);
    }
    for zone in ["Local", "", "Europe/", "../etc", "Europe/Kyyiv", "europe/kyiv"] {
        let error = format!("spec.timeZone: Invalid value: \"{zone}\": unknown time zone {zone}");
        check(
            &format!("{OF}, schedule: '@daily', timeZone: '{zone}'"),
            &[&error],
        );
    }
    check(
        &format!("{OF}, schedule: '@daily', concurrencyPolicy: Wait, failedJobsHistoryLimit: -1"),
        &[
            "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            "spec.concurrencyPolicy: Unsupported value: \"Wait\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
        ],
    );
    check(
        "schedule: '@daily', jobTemplate: {spec: {selector: {}, template: POD}}",
        &[
            "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
            "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ],
    );
    let mut long = read("CronJob", &format!("spec: {{{OF}, schedule: '@daily'}}"));
    long.set(&["metadata", "name"], "a".repeat(53));
    assert_eq!(validate(&long)[0].detail, "must be no more than 52 characters");
}
