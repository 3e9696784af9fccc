//! Defaults, validation and warnings, as Kubernetes words them.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::manifest::parse;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: nginx:1.27
        ports: [{name: http, containerPort: 8080}]
        env:
        - {name: A, value: b}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        resources: {limits: {cpu: 500m, memory: 128Mi}, requests: {cpu: 1}}
        readinessProbe: {httpGet: {port: http}}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data}]
";

fn read(text: &str) -> Object {
    parse(text.as_bytes())
        .unwrap_or_else(|error| panic!("{error}"))
        .remove(0)
}

fn web() -> Object {
    let mut object = read(DEPLOYMENT);
    object.set(
        &["spec", "template", "spec", "containers"],
        json!([{"name": "web", "image": "nginx"}]),
    );
    object
}

/// Validates the YAML and compares all errors, in their order.
fn check(text: &str, expected: &[&str]) {
    let errors: Vec<String> = validate(&read(text)).iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{text}");
}

fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}")
}

fn container(fields: &str) -> String {
    pod(&format!("{{containers: [{{name: a, image: b, {fields}}}]}}"))
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}")
}

fn ingress(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: a}}\nspec: {spec}")
}

#[test]
fn deployments_get_kubernetes_defaults() {
    let object = defaulted(&read(DEPLOYMENT));
    let spec = object.0["spec"].as_object().unwrap();
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(
        (&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
        (&json!(10), &json!(600))
    );
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Always");
    assert_eq!(pod["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["securityContext"], json!({}));
    assert_eq!(pod["volumes"][0]["emptyDir"], json!({}));
    let container = &pod["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(container["resources"]["requests"], json!({"cpu": 1}));
    assert_eq!(
        container["readinessProbe"],
        json!({"httpGet": {"port": "http", "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
               "successThreshold": 1, "failureThreshold": 3})
    );
}

#[test]
fn empty_texts_are_absent_ones() {
    for (text, path, expected) in [
        (
            pod("{restartPolicy: '', containers: [{name: a, image: b}]}"),
            "/spec/restartPolicy",
            "Always",
        ),
        (
            pod("{dnsPolicy: '', containers: [{name: a, image: b}]}"),
            "/spec/dnsPolicy",
            "ClusterFirst",
        ),
        (
            container("imagePullPolicy: ''"),
            "/spec/containers/0/imagePullPolicy",
            "Always",
        ),
        (
            container("ports: [{containerPort: 1, protocol: ''}]"),
            "/spec/containers/0/ports/0/protocol",
            "TCP",
        ),
        (
            service("{type: '', ports: [{port: 1, protocol: ''}]}"),
            "/spec/type",
            "ClusterIP",
        ),
        (
            service("{sessionAffinity: '', ports: [{port: 1, protocol: ''}]}"),
            "/spec/ports/0/protocol",
            "TCP",
        ),
    ] {
        check(&text, &[]);
        assert_eq!(defaulted(&read(&text)).str_at(path), expected, "{path}");
    }
}

#[test]
fn some_defaults_are_of_pods_and_not_of_templates() {
    let spec = "{hostNetwork: true, containers: [{name: a, image: b:1, resources: {limits: {cpu: 1}}, ports: [{containerPort: 80}]}]}";
    let at = |object: &Object, prefix: &str| {
        let paths = [
            "/containers/0/resources/requests/cpu",
            "/containers/0/ports/0/hostPort",
            "/enableServiceLinks",
        ];
        paths.map(|path| object.pointer(&format!("{prefix}{path}")).cloned())
    };
    let pod = defaulted(&read(&pod(spec)));
    assert_eq!(
        at(&pod, "/spec"),
        [Some(json!(1)), Some(json!(80)), Some(json!(true))]
    );
    let mut template = read(DEPLOYMENT);
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    template.set(&["spec", "template", "spec"], spec);
    assert_eq!(
        at(&defaulted(&template), "/spec/template/spec"),
        [None, None, None]
    );
}

#[test]
fn a_volume_without_a_source_that_exists_is_an_empty_one() {
    let misspelt = read(&pod(
        "{containers: [{name: a, image: b}], volumes: [{name: v, emptydir: {}}]}",
    ));
    assert_eq!(
        defaulted(&misspelt).pointer("/spec/volumes/0/emptyDir"),
        Some(&json!({}))
    );
    assert_eq!(unknown_fields(&misspelt), ["spec.volumes[0].emptydir"]);
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
    ] {
        let object = defaulted(&read(&pod(&format!(
            "{{containers: [{{name: a, image: '{image}'}}]}}"
        ))));
        assert_eq!(
            object.str_at("/spec/containers/0/imagePullPolicy"),
            policy,
            "{image}"
        );
    }
}

#[test]
fn services_are_headless_by_default() {
    let object = defaulted(&read(&service(
        "{selector: {app: a}, ports: [{port: 80}, {port: 81, targetPort: http}]}",
    )));
    assert_eq!(object.str_at("/spec/type"), "ClusterIP");
    assert_eq!(object.str_at("/spec/clusterIP"), "None");
    assert_eq!(
        object.pointer("/spec/ports/0"),
        Some(&json!({"port": 80, "protocol": "TCP", "targetPort": 80}))
    );
    assert_eq!(object.str_at("/spec/ports/1/targetPort"), "http");
    assert_eq!(object.pointer("/spec/ipFamilies"), Some(&json!(["IPv4"])));
    assert_eq!(object.str_at("/spec/ipFamilyPolicy"), "SingleStack");
    let external = defaulted(&read(&service("{type: ExternalName, externalName: example.com}")));
    assert_eq!(external.pointer("/spec/clusterIP"), None);
    assert_eq!(external.pointer("/spec/ipFamilies"), None);
}

#[test]
fn ordinary_manifests_are_valid() {
    check(
        &DEPLOYMENT.replace("requests: {cpu: 1}", "requests: {cpu: 100m}"),
        &[],
    );
    check(
        &service("{selector: {app: a}, ports: [{port: 80, targetPort: http}]}"),
        &[],
    );
    check(&service("{clusterIP: None, selector: {app: a}}"), &[]);
    check(
        &service("{type: ExternalName, externalName: db.example.com}"),
        &[],
    );
    check("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}", &[]);
    check(
        &container("livenessProbe: {exec: {command: [a]}}, lifecycle: {preStop: {sleep: {seconds: 1}}}"),
        &[],
    );
    check(
        &ingress(
            "{rules: [{host: '*.a.b', http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}}]}",
        ),
        &[],
    );
    check(
        &ingress("{defaultBackend: {service: {name: a, port: {name: http}}}}"),
        &[],
    );
}

#[test]
fn errors_read_as_the_api_server_writes_them() {
    check(
        &DEPLOYMENT.replace("replicas: 3", "replicas: -1"),
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.spec.containers[0].resources.requests: Invalid value: \"1\": must be less than or equal to cpu limit of 500m",
        ],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {}",
        &[
            "metadata.name: Required value: name or generateName is required",
            "spec.containers: Required value",
        ],
    );
    check(
        &container("imagePullPolicy: Sometimes"),
        &[
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    check(
        &container("volumeMounts: [{name: x, mountPath: /a}]"),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"x\""],
    );
    check(
        &pod("{containers: [{name: a, image: b}, {name: a}]}"),
        &[
            "spec.containers[1].name: Duplicate value: \"a\"",
            "spec.containers[1].image: Required value",
        ],
    );
    check(
        "apiVersion: apps/v9\nkind: Pod\nmetadata: {name: a}",
        &["kind: Invalid value: \"Pod\": no matches for kind \"Pod\" in version \"apps/v9\""],
    );
}

#[test]
fn all_errors_come_at_once_with_their_paths() {
    let text = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: Web_1, labels: {a: 'b c'}}
spec:
  replicas: three
  selector: {matchLabels: {app: web}}
  strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}
  template:
    metadata: {labels: {app: other, count: 5}}
    spec:
      restartPolicy: Never
      containers:
      - name: web
        ports: [{containerPort: '80'}, {containerPort: 70000}]
        env: [{name: A, value: 5}, {value: b}]
        resources: {limits: {cpu: lots}}
";
    let errors = validate(&read(text));
    let found: Vec<(&str, Reason)> = errors
        .iter()
        .map(|error| (error.path.as_str(), error.reason))
        .collect();
    for expected in [
        ("metadata.name", Reason::Invalid),
        ("metadata.labels", Reason::Invalid),
        ("spec.replicas", Reason::TypeInvalid),
        ("spec.strategy.rollingUpdate", Reason::Forbidden),
        ("spec.template.metadata.labels", Reason::Invalid),
        ("spec.template.metadata.labels[count]", Reason::TypeInvalid),
        ("spec.template.spec.restartPolicy", Reason::NotSupported),
        ("spec.template.spec.containers[0].image", Reason::Required),
        (
            "spec.template.spec.containers[0].ports[0].containerPort",
            Reason::TypeInvalid,
        ),
        (
            "spec.template.spec.containers[0].ports[1].containerPort",
            Reason::Invalid,
        ),
        (
            "spec.template.spec.containers[0].env[0].value",
            Reason::TypeInvalid,
        ),
        ("spec.template.spec.containers[0].env[1].name", Reason::Required),
        (
            "spec.template.spec.containers[0].resources.limits[cpu]",
            Reason::Invalid,
        ),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {errors:#?}");
    }
    assert_eq!(found.len(), 13, "{errors:#?}");
}

#[test]
fn pods_are_checked_in_depth() {
    for (text, expected) in [
        (
            container("ports: [{containerPort: 0}]"),
            "spec.containers[0].ports[0].containerPort: Required value",
        ),
        (
            container("ports: [{containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]"),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"",
        ),
        (
            container("readinessProbe: {periodSeconds: 5}"),
            "spec.containers[0].readinessProbe: Required value: must specify a handler type",
        ),
        (
            container("livenessProbe: {httpGet: {port: 80}, tcpSocket: {port: 80}}"),
            "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            container("livenessProbe: {successThreshold: 2, tcpSocket: {port: 80}}"),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            container("env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
            "spec.containers[0].env[0].valueFrom: Invalid value: {\"fieldRef\":{\"fieldPath\":\"metadata.name\",\"apiVersion\":\"v1\"}}: may not be specified when `value` is not empty",
        ),
        (
            container("securityContext: {runAsUser: -1}"),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            pod(
                "{containers: [{name: a, image: b}], volumes: [{name: v, emptyDir: {}, hostPath: {path: /a}}]}",
            ),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            pod("{containers: [{name: a, image: b}], dnsPolicy: None}"),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
        (
            pod("{containers: [{name: a, image: b}], volumes: [{name: v, hostPath: {}}]}"),
            "spec.volumes[0].hostPath.path: Required value",
        ),
    ] {
        check(&text, &[expected]);
    }
}

#[test]
fn services_and_ingresses_are_checked() {
    for (text, expected) in [
        (service("{ports: []}"), "spec.ports: Required value"),
        (
            service("{ports: [{port: 80}, {port: 81, name: b}]}"),
            "spec.ports[0].name: Required value",
        ),
        (
            service("{ports: [{port: 0}]}"),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive\nspec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            service("{ports: [{port: 80, nodePort: 30000}]}"),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            service("{type: ExternalName}"),
            "spec.externalName: Required value",
        ),
        (
            ingress("{}"),
            "spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified",
        ),
        (
            ingress(
                "{rules: [{http: {paths: [{path: /, backend: {service: {name: a, port: {number: 80}}}}]}}]}",
            ),
            "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
        ),
        (
            ingress(
                "{rules: [{http: {paths: [{path: a, pathType: Prefix, backend: {service: {name: a, port: {}}}}]}}]}",
            ),
            "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path\nspec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
        ),
        (
            ingress("{rules: [{host: 10.0.0.1}]}"),
            "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
        ),
    ] {
        check(&text, &expected.split('\n').collect::<Vec<_>>());
    }
}

#[test]
fn immutable_fields_stay() {
    let texts = |old: &Object, new: &Object| {
        validate_update(old, new)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let old = web();
    let mut new = old.clone();
    new.set(&["spec", "replicas"], 5);
    new.set(&["metadata", "creationTimestamp"], Value::Null);
    assert_eq!(texts(&old, &new), Vec::<String>::new());
    new.set(&["spec", "selector", "matchLabels", "app"], "other");
    assert_eq!(
        texts(&old, &new),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable"]
    );

    let pod = |container: &str, rest: &str| {
        read(&pod(&format!("{{containers: [{{name: a, {container}}}]{rest}}}")))
    };
    let old = pod("image: b", "");
    for (new, allowed) in [
        (pod("image: c", ""), true),
        (pod("image: b", ", nodeName: n1"), true),
        (pod("image: b", ", tolerations: [{operator: Exists}]"), true),
        (pod("image: b, command: [x]", ""), false),
        (pod("image: b", ", hostNetwork: true"), false),
        (pod("image: b}, {name: z, image: b", ""), false),
    ] {
        assert_eq!(validate_update(&old, &new).is_empty(), allowed, "{new:?}");
    }
    let tolerating = |tolerations: &str| pod("image: b", &format!(", tolerations: [{tolerations}]"));
    let old = tolerating("{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 5}");
    for (new, allowed) in [
        (
            "{operator: Exists, effect: NoExecute, key: a, tolerationSeconds: 60}, {key: b}",
            true,
        ),
        ("{key: a, operator: Exists, effect: NoExecute}", true),
        (
            "{key: a, operator: Exists, effect: NoSchedule, tolerationSeconds: 5}",
            false,
        ),
        ("{key: b}", false),
    ] {
        assert_eq!(
            validate_update(&old, &tolerating(new)).is_empty(),
            allowed,
            "{new}"
        );
    }
    let old = pod("image: b", "");
    let placed = pod("image: b", ", nodeName: n1");
    assert!(!validate_update(&placed, &pod("image: b", ", nodeName: n2")).is_empty());
    assert!(!validate_update(&placed, &old).is_empty());
}

#[test]
fn fields_without_effect_are_named() {
    let mut object = read(DEPLOYMENT);
    assert_eq!(warnings(&object, None), Vec::<String>::new());
    object.set(
        &["spec", "template", "spec", "affinity"],
        json!({"nodeAffinity": {"x": 1}}),
    );
    object.set(&["spec", "template", "spec", "hostPID"], json!(false));
    object.set(&["spec", "template", "spec", "hostname"], "web");
    object.set(&["spec", "template", "spec", "subdomain"], "web");
    object.set(&["spec", "replicaz"], 3);
    object.set(
        &["spec", "template", "spec", "volumes"],
        json!([{"name": "data", "emptyDir": {"medium": "Memory"}}]),
    );
    assert_eq!(
        unknown_fields(&object),
        ["spec.template.spec.affinity.nodeAffinity.x", "spec.replicaz",]
    );
    object.set(
        &["spec", "template", "spec", "affinity"],
        json!({"podAffinity": {"x": 1}}),
    );
    assert_eq!(
        warnings(&object, None),
        [
            format!(
                "spec.template.spec.volumes[0].emptyDir.medium: {}",
                "accepted, but this version of Podman Swarm does not act on it"
            ),
            format!(
                "spec.template.spec.affinity: {}",
                "accepted, but this version of Podman Swarm does not act on it"
            ),
        ]
    );
    let probed = read(&container(
        "imagee: x, livenessProbe: {grpc: {port: 1, service: x}}, readinessProbe: {exec: {command: [a]}}",
    ));
    assert_eq!(unknown_fields(&probed), ["spec.containers[0].imagee"]);
    assert_eq!(
        warnings(&probed, None),
        [
            "spec.containers[0].livenessProbe.grpc.service: accepted, but this version of Podman Swarm does not act on it"
        ]
    );
    let sidecar = read(&pod(
        "{containers: [{name: a, image: b}], initContainers: [{name: c, image: d, restartPolicy: Always}]}",
    ));
    assert_eq!(warnings(&sidecar, None), Vec::<String>::new());
    let check = |text: &str, expected: &[&str]| {
        let warned = warnings(&read(text), None);
        let paths: Vec<&str> = warned.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(paths, expected, "{text}");
    };
    check(&container("stdin: true, stdinOnce: true, tty: true"), &[]);
    check(
        &container("ports: [{containerPort: 1}, {containerPort: 2, protocol: SCTP}]"),
        &["spec.containers[0].ports[1].protocol"],
    );
    check(
        &service("{ports: [{port: 80, protocol: SCTP}]}"),
        &["spec.ports[0].protocol"],
    );
    let resource = "{resource: {apiGroup: a, kind: B, name: c}}";
    let own = "{service: {name: c, port: {number: 80}}}";
    for (first, second, expected) in [
        (own, own, &[][..]),
        (resource, own, &["spec.defaultBackend.resource"]),
        (own, resource, &["spec.rules[0].http.paths[0].backend.resource"]),
    ] {
        let path = format!("{{path: /, pathType: Prefix, backend: {second}}}");
        let rules = format!("[{{host: a.b, http: {{paths: [{path}]}}}}]");
        check(
            &ingress(&format!("{{defaultBackend: {first}, rules: {rules}}}")),
            expected,
        );
    }
    let service = read(&service(
        "{type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80}]}",
    ));
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {taints: [{key: a, effect: NoSchedule}, {key: b, effect: NoExecute}]}";
    let warned = warnings(&read(node), None);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].starts_with("spec.taints[1].effect: it keeps new pods away"),
        "{warned:?}"
    );
    let warned = warnings(&service, None);
    assert_eq!(warned.len(), 2, "{warned:?}");
}

#[test]
fn defaults_and_what_was_there_before_are_not_warned_about() {
    let check = |object: &Object, before: Option<&Object>, expected: &[&str]| {
        let warned = warnings(object, before);
        let paths: Vec<&str> = warned.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(paths, expected, "{object:?}");
    };
    let probed = container("livenessProbe: {grpc: {port: 1}}, securityContext: {capabilities: {add: [a]}}");
    for text in [
        DEPLOYMENT.to_owned(),
        probed,
        service("{ports: [{port: 80}]}"),
        service("{type: ExternalName, externalName: example.com}"),
    ] {
        check(&defaulted(&read(&text)), None, &[]);
    }
    let mut before = defaulted(&read(&service("{ports: [{port: 80}]}")));
    before.set(&["spec", "sessionAffinity"], "ClientIP");
    check(&before, None, &["spec.sessionAffinity"]);
    let mut after = before.clone();
    after.set(&["metadata", "labels", "a"], "b");
    check(&after, Some(&before), &[]);
    after.set(&["spec", "internalTrafficPolicy"], "Local");
    check(&after, Some(&before), &["spec.internalTrafficPolicy"]);
}

/// Objects that are partly wrong: fields of the right name with values of any type.
fn broken_object() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        prop::sample::select(vec![
            "", "a", "10%", "TCP", "1Gi", "None", "ClientIP", "NodePort", "x/y:1"
        ])
        .prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "spec",
        "template",
        "metadata",
        "name",
        "labels",
        "containers",
        "initContainers",
        "image",
        "ports",
        "port",
        "protocol",
        "env",
        "value",
        "valueFrom",
        "fieldRef",
        "resources",
        "limits",
        "requests",
        "cpu",
        "livenessProbe",
        "httpGet",
        "volumes",
        "hostPath",
        "selector",
        "matchLabels",
        "strategy",
        "type",
        "rollingUpdate",
        "clusterIP",
        "sessionAffinity",
        "sessionAffinityConfig",
        "clientIP",
        "rules",
        "subsets",
        "lifecycle",
        "preStop",
        "targetPort",
    ]);
    let tree = leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    (prop::sample::select(crate::KINDS.iter().chain(crate::FACES).collect::<Vec<_>>()), tree.clone(), tree).prop_map(|(row, spec, metadata)| {
        Object::from_value(json!({
            "apiVersion": row.api_version(), "kind": row.name, "metadata": metadata, "spec": spec.clone(), "subsets": spec,
        }))
        .unwrap()
    })
}

proptest! {
    #[test]
    fn defaulting_is_idempotent(object in broken_object()) {
        let once = defaulted(&object);
        prop_assert_eq!(defaulted(&once), once);
    }

    #[test]
    fn nothing_panics_on_broken_objects(old in broken_object(), new in broken_object()) {
        let _ = (validate(&old), warnings(&old, Some(&new)), validate_update(&old, &new));
    }

    #[test]
    fn an_unchanged_object_may_be_written(object in broken_object()) {
        prop_assert_eq!(validate_update(&object, &object), Vec::new());
    }
}
