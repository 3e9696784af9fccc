//! Rules of the kinds that are kept for who reads them: configuration, storage, policies.

use serde_json::json;

use super::*;
use crate::config::tidy_values;
use crate::manifest::parse;

/// An object of a kind; `rest` is YAML beside its metadata.
fn read(kind: &str, rest: &str) -> Object {
    let api_version = match kind {
        "StorageClass" => "storage.k8s.io/v1",
        "IngressClass" | "NetworkPolicy" => "networking.k8s.io/v1",
        "PodDisruptionBudget" => "policy/v1",
        "PriorityClass" => "scheduling.k8s.io/v1",
        "Lease" => "coordination.k8s.io/v1",
        _ => "v1",
    };
    let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n{rest}\n");
    parse(text.as_bytes())
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

#[test]
fn config_maps_and_secrets() {
    check(
        "ConfigMap",
        "data: {key.name: x, _K: ''}\nbinaryData: {b: AAE=}",
        &[],
    );
    check(
        "ConfigMap",
        "data: {a/b: x}",
        &[
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
             (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    check(
        "ConfigMap",
        "data: {..: x}",
        &["data[..]: Invalid value: \"..\": must not be '..'"],
    );
    check(
        "ConfigMap",
        "data: {a: x}\nbinaryData: {a: AAE=}",
        &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
    );
    let mut large = read("ConfigMap", "data: {}");
    large.set(&["data", "a"], "x".repeat((1 << 20) + 1));
    assert_eq!(
        validate(&large)[0].to_string(),
        "data: Too long: may not be more than 1048576 bytes"
    );
    check("Secret", "data: {a: AAE=}", &[]);
    check(
        "Secret",
        "type: kubernetes.io/tls\ndata: {tls.crt: ''}",
        &["data[tls.key]: Required value"],
    );
    check(
        "Secret",
        "type: kubernetes.io/basic-auth",
        &["data[username]: Required value", "data[password]: Required value"],
    );
    check(
        "Secret",
        "type: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: eA==}",
        &["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": must be a JSON object"],
    );
    check(
        "Secret",
        "type: kubernetes.io/service-account-token",
        &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
    );
    // No value of a secret in a message, broken as it may be.
    for rest in [
        "data: {a: hunter2}",
        "data: hunter2",
        "data: {a: [hunter2]}",
        "stringData: {a: {b: hunter2}}",
        "type: kubernetes.io/dockercfg\ndata: {.dockercfg: hunter2}",
    ] {
        let errors = validate(&read("Secret", rest));
        assert!(!errors.is_empty(), "{rest}");
        for error in errors {
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
    let wrapped = "type: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: \"e30\\n=\\n\"}";
    check("Secret", wrapped, &[]);
    assert_eq!(defaulted(&read("Secret", "")).str_at("/type"), "Opaque");
}

#[test]
fn plain_text_of_a_secret_comes_to_its_data() {
    let taken = |rest: &str| {
        let mut secret = read("Secret", rest);
        tidy_values(&mut secret);
        (
            secret.pointer("/data").cloned(),
            secret.pointer("/stringData").cloned(),
        )
    };
    let both = "data: {a: b2xk, b: Yg==}\nstringData: {a: new, c: ''}";
    assert_eq!(
        taken(both),
        (Some(json!({"a": "bmV3", "b": "Yg==", "c": ""})), None)
    );
    assert_eq!(taken("stringData: {}"), (Some(json!({})), None));
    assert_eq!(
        taken("data: {a: \"Y\\ng==\\n\", b: null}\nstringData: {c: null}"),
        (Some(json!({"a": "Yg==", "b": "", "c": ""})), None)
    );
    assert_eq!(
        taken("stringData: {a: 5}"),
        (Some(json!({})), Some(json!({"a": 5})))
    );
    assert_eq!(
        taken("data: wrong\nstringData: {a: b}"),
        (Some(json!("wrong")), Some(json!({"a": "b"})))
    );
}

#[test]
fn what_says_that_it_is_immutable_is() {
    for kind in ["ConfigMap", "Secret"] {
        let old = read(kind, "immutable: true\ndata: {a: AAAA}");
        let change = |rest: &str| -> Vec<String> {
            let errors = validate_update(&old, &read(kind, rest));
            errors.iter().map(ToString::to_string).collect()
        };
        assert_eq!(change("immutable: true\ndata: {a: AAAA}"), Vec::<String>::new());
        assert_eq!(
            change("data: {a: AAAB}"),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
        let open = read(kind, "data: {a: AAAA}");
        assert_eq!(
            validate_update(&open, &read(kind, "immutable: true\ndata: {}")),
            []
        );
    }
    let typed = read("Secret", "type: example.com/x");
    assert_eq!(
        validate_update(&typed, &read("Secret", "type: example.com/y"))[0].to_string(),
        "type: Invalid value: \"example.com/y\": field is immutable"
    );
}

#[test]
fn volumes_claims_and_classes() {
    let claim = "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}";
    let spec = |fields: &str| format!("spec: {{{fields}}}");
    check("PersistentVolumeClaim", &spec(claim), &[]);
    check(
        "PersistentVolumeClaim",
        "spec: {}",
        &[
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources.requests.storage: Required value",
        ],
    );
    check(
        "PersistentVolumeClaim",
        &spec("accessModes: [Anything], resources: {requests: {storage: 0}}"),
        &[
            "spec.accessModes[0]: Unsupported value: \"Anything\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
             \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            "spec.resources.requests.storage: Invalid value: 0: must be greater than zero",
        ],
    );
    let volume = "accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}";
    check(
        "PersistentVolume",
        &spec(&format!("{volume}, hostPath: {{path: /x}}")),
        &[],
    );
    check(
        "PersistentVolume",
        &spec(&format!("{volume}, hostPath: {{path: /x}}, hostpath: 1")),
        &[],
    );
    check(
        "PersistentVolume",
        &spec(volume),
        &["spec: Required value: must specify a volume type"],
    );
    check(
        "PersistentVolume",
        &spec(&format!(
            "{volume}, hostPath: {{path: /x}}, nfs: {{server: a, path: /}}"
        )),
        &["spec: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        "PersistentVolume",
        &spec("accessModes: [ReadWriteOnce], capacity: {storage: 1Gi, cpu: 1}, hostPath: {path: /x}"),
        &["spec.capacity: Unsupported value: {\"storage\":\"1Gi\",\"cpu\":1}: supported values: \"storage\""],
    );
    check("StorageClass", "provisioner: x", &[]);
    check(
        "StorageClass",
        "reclaimPolicy: Never",
        &[
            "provisioner: Required value",
            "reclaimPolicy: Unsupported value: \"Never\": supported values: \"Delete\", \"Retain\"",
        ],
    );

    let change = |kind: &str, old: &str, new: &str| -> Vec<String> {
        let errors = validate_update(&read(kind, &spec(old)), &read(kind, &spec(new)));
        errors.iter().map(ToString::to_string).collect()
    };
    let fixed = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                 volumeAttributesClassName for bound claims";
    let larger = claim.replace("1Gi", "2Gi");
    for (old, new, expected) in [
        (claim, claim, vec![]),
        // Only the volume of a bound one can grow.
        (claim, &larger, vec![fixed]),
        (
            &larger,
            claim,
            vec![
                fixed,
                "spec.resources.requests.storage: Forbidden: field can not be less than previous value",
            ],
        ),
        (claim, &format!("{claim}, volumeName: v"), vec![]),
        (
            &format!("{claim}, volumeName: v"),
            &format!("{claim}, volumeName: w"),
            vec![fixed],
        ),
        (claim, &format!("{claim}, storageClassName: c"), vec![]),
        (
            &format!("{claim}, storageClassName: c"),
            &format!("{claim}, storageClassName: d"),
            vec![fixed],
        ),
        (claim, &format!("{claim}, volumeMode: Block"), vec![fixed]),
    ] {
        assert_eq!(change("PersistentVolumeClaim", old, new), expected, "{old} {new}");
    }
    let bound = |text: &str| {
        let mut claim = read("PersistentVolumeClaim", &spec(text));
        claim.set(&["status", "phase"], "Bound");
        claim
    };
    let grown = format!("{larger}, volumeAttributesClassName: fast");
    assert_eq!(validate_update(&bound(claim), &bound(&grown)), []);
    let limited = claim.replace("requests:", "limits: {storage: 9Gi}, requests:");
    let errors = validate_update(&bound(claim), &bound(&limited));
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [fixed]
    );
    let anywhere = format!("{volume}, hostPath: {{path: /x}}");
    let near = format!("{anywhere}, nodeAffinity: {{required: {{nodeSelectorTerms: [{{}}]}}}}");
    assert_eq!(change("PersistentVolume", &anywhere, &near), Vec::<String>::new());
    assert_eq!(
        change("PersistentVolume", &near, &anywhere),
        ["spec.nodeAffinity: Invalid value: null: field is immutable"]
    );
    assert_eq!(
        change(
            "PersistentVolume",
            &format!("{volume}, hostPath: {{path: /x}}"),
            &format!("{volume}, hostPath: {{path: /y}}")
        ),
        ["spec: Forbidden: spec.persistentvolumesource is immutable after creation"]
    );
}

#[test]
fn network_policies_and_ingress_classes() {
    let policy = |spec: &str| defaulted(&read("NetworkPolicy", &format!("spec: {spec}")));
    assert_eq!(
        policy("{podSelector: {}}").pointer("/spec/policyTypes"),
        Some(&json!(["Ingress"]))
    );
    assert_eq!(
        policy("{podSelector: {}, egress: [{ports: [{port: 53}]}]}").pointer("/spec"),
        Some(&json!({
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}],
        }))
    );
    check(
        "NetworkPolicy",
        "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}, {}], ports: [{port: 80, endPort: 79}]}]}",
        &[
            "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, \
             (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.ingress[0].from[1]: Required value: must specify a peer",
        ],
    );
    check(
        "NetworkPolicy",
        "spec: {podSelector: {}, ingress: [{from: [\
         {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.0.0.0/8, 11.0.0.0/16, 'fd00::/16']}}, \
         {ipBlock: {cidr: 'fd00::/8', except: ['fd01::/16', 'fe00::/16']}}, \
         {ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}]}",
        &[
            "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[0].ipBlock.except[2]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[0].ipBlock.except[3]: Invalid value: \"fd00::/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[1].ipBlock.except[1]: Invalid value: \"fe00::/16\": must be a strict subset of `cidr`",
        ],
    );
    check("IngressClass", "spec: {controller: example.com/c}", &[]);
    check(
        "IngressClass",
        "spec: {controller: nginx}",
        &[
            "spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ],
    );
}

#[test]
fn budgets_priorities_and_leases() {
    check(
        "PodDisruptionBudget",
        "spec: {minAvailable: 1, selector: {}}",
        &[],
    );
    check(
        "PodDisruptionBudget",
        "spec: {minAvailable: 1, maxUnavailable: 50%}",
        &[
            "spec: Invalid value: {\"minAvailable\":1,\"maxUnavailable\":\"50%\"}: minAvailable and maxUnavailable cannot be both set",
        ],
    );
    check(
        "PodDisruptionBudget",
        "spec: {maxUnavailable: 101%}",
        &["spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"],
    );
    check(
        "PriorityClass",
        "value: 1000000001",
        &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    check(
        "Lease",
        "spec: {leaseDurationSeconds: 0}",
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
}

#[test]
fn who_writes_what_nothing_acts_on_is_told_once() {
    let rule = "accepted, but this version of Podman Swarm does not act on it";
    for (kind, rest, field) in [
        ("NetworkPolicy", "spec: {podSelector: {}}", "spec"),
        (
            "PersistentVolumeClaim",
            "spec: {accessModes: [ReadWriteOnce]}",
            "spec",
        ),
        ("StorageClass", "provisioner: x", "provisioner"),
        ("PriorityClass", "value: 1", "value"),
        (
            "ServiceAccount",
            "imagePullSecrets: [{name: x}]",
            "imagePullSecrets",
        ),
    ] {
        let object = read(kind, rest);
        assert_eq!(warnings(&object, None), [format!("{field}: {rule}")], "{kind}");
        assert_eq!(warnings(&object, Some(&object)), Vec::<String>::new(), "{kind}");
    }
    for (kind, rest) in [
        ("ConfigMap", "data: {a: b}"),
        ("Secret", "data: {a: AAAA}"),
        ("ServiceAccount", ""),
        ("Lease", "spec: {holderIdentity: x}"),
        ("PodDisruptionBudget", "spec: {minAvailable: 1}"),
    ] {
        assert_eq!(warnings(&read(kind, rest), None), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn what_is_not_said_is_gos_zero_value_or_the_default() {
    check("PriorityClass", "description: x", &[]);
    let class = defaulted(&read("PriorityClass", "description: x"));
    assert_eq!(class.pointer("/value"), Some(&json!(0)));
    // Of a Secret that is put without a type, Kubernetes fills in the default first, and compares then.
    let tls = read(
        "Secret",
        "type: kubernetes.io/tls\ndata: {tls.crt: '', tls.key: ''}",
    );
    let untyped = read("Secret", "data: {tls.crt: '', tls.key: ''}");
    let errors = validate_update(&tls, &untyped);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["type: Invalid value: \"Opaque\": field is immutable"]);
    let opaque = read("Secret", "type: Opaque\ndata: {a: ''}");
    assert_eq!(validate_update(&opaque, &read("Secret", "data: {b: ''}")), []);
}

#[test]
fn a_secret_is_not_larger_than_what_can_be_put_back() {
    let secret = |base64_bytes: usize| {
        let mut secret = read("Secret", "type: Opaque");
        secret.set(&["data", "a"], "A".repeat(base64_bytes));
        let errors = validate(&secret);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(secret(1_000_000), Vec::<String>::new());
    assert_eq!(
        secret(1 << 20),
        ["data: Too long: may not be more than 786432 bytes"]
    );
}
