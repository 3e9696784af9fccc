//! From pods to containers, field by field.

use serde_json::{Value, json};

use super::*;
use crate::ports::Protocol;

fn node() -> NodeSettings {
    NodeSettings {
        name: "node1".to_owned(),
        address: "192.0.2.1".parse().unwrap(),
        cluster_id: "cluster-1".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        data_dir: "/var/lib/podman-swarm".into(),
        cpu_millis: 2000,
        memory_bytes: 4 << 30,
    }
}

fn pod(spec: Value) -> DesiredPod {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web", "namespace": "default", "uid": "0123456789ab",
            "labels": { "app": "web" }, "annotations": { "note": "hello" },
        },
        "spec": spec,
    });
    DesiredPod::read(Arc::new(Object::from_value(object).unwrap())).unwrap()
}

fn build_first(pod: &DesiredPod, attempt: u32) -> Result<Built, ConfigError> {
    let attachment = Attachment {
        address: "10.244.1.7".parse().unwrap(),
        network: ContainerNetwork::Namespace("/run/netns/x".into()),
    };
    let surroundings = Surroundings {
        pod,
        node: &node(),
        gateway: Some("10.244.1.1".parse().unwrap()),
        attachment: &attachment,
        image_user: "",
    };
    build(&surroundings, &pod.spec().containers[0], attempt)
}

fn container(container: Value) -> ContainerSpec {
    build_first(&pod(json!({ "containers": [container] })), 0)
        .unwrap()
        .spec
}

/// Builds the only container of a pod with these fields beside it.
fn with_pod(mut fields: Value) -> ContainerSpec {
    fields["containers"] = json!([{ "name": "c", "image": "i" }]);
    build_first(&pod(fields), 0).unwrap().spec
}

#[test]
fn names_and_labels_tell_whose_a_container_is() {
    let pod = pod(json!({ "containers": [{ "name": "c", "image": "i" }] }));
    let spec = build_first(&pod, 3).unwrap().spec;
    assert_eq!(spec.name, "web_default_c_0123456789ab_3");
    for (label, value) in [
        (labels::CLUSTER, "cluster-1"),
        (labels::POD_NAMESPACE, "default"),
        (labels::POD_NAME, "web"),
        (labels::POD_UID, "0123456789ab"),
        (labels::CONTAINER_NAME, "c"),
        (labels::RESTART_COUNT, "3"),
        (labels::POD_IP, "10.244.1.7"),
    ] {
        assert_eq!(spec.labels.get(label).map(String::as_str), Some(value), "{label}");
    }
    assert_eq!(
        spec.labels[labels::SPEC_HASH],
        spec_hash(&pod.spec().containers[0])
    );
}

#[test]
fn the_hash_covers_what_runs_and_no_defaults() {
    let hash = |value: Value| spec_hash(&pod(json!({ "containers": [value] })).spec().containers[0]);
    let plain = hash(json!({ "name": "c", "image": "i" }));
    for different in [
        json!({ "name": "c", "image": "j" }),
        json!({ "name": "c", "image": "i", "command": ["x"] }),
        json!({ "name": "c", "image": "i", "env": [{ "name": "A", "value": "1" }] }),
    ] {
        assert_ne!(hash(different.clone()), plain, "{different}");
    }
    let defaulted = json!({
        "name": "c", "image": "i", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
    });
    assert_eq!(hash(defaulted), plain);
}

#[test]
fn environment_takes_fields_of_the_pod() {
    let field = |path: &str| json!({ "name": "X", "valueFrom": { "fieldRef": { "fieldPath": path } } });
    for (path, expected) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "0123456789ab"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", "hello"),
        ("spec.nodeName", "node1"),
        ("spec.serviceAccountName", "default"),
        ("status.podIP", "10.244.1.7"),
        ("status.podIPs", "10.244.1.7"),
        ("status.hostIP", "192.0.2.1"),
    ] {
        let spec = container(json!({ "name": "c", "image": "i", "env": [field(path)] }));
        assert_eq!(spec.env, [("X".to_owned(), expected.to_owned())], "{path}");
    }
    let unknown =
        pod(json!({ "containers": [{ "name": "c", "image": "i", "env": [field("spec.nothing")] }] }));
    assert!(build_first(&unknown, 0).is_err());
}

#[test]
fn environment_takes_resources() {
    let resource = |container: Value, resource: &str, divisor: &str| {
        let mut container = container;
        container["env"] = json!([{ "name": "X", "valueFrom": {
            "resourceFieldRef": { "resource": resource, "divisor": divisor } } }]);
        self::container(container).env[0].1.clone()
    };
    let limited = json!({ "name": "c", "image": "i",
        "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" }, "requests": { "cpu": "250m" } } });
    let free = json!({ "name": "c", "image": "i" });
    for (container, name, divisor, expected) in [
        (&limited, "limits.cpu", "0", "2"),
        (&limited, "limits.cpu", "1m", "1500"),
        (&limited, "limits.memory", "1Mi", "64"),
        (&limited, "limits.memory", "1", "67108864"),
        (&limited, "requests.cpu", "1m", "250"),
        (&limited, "requests.memory", "1Mi", "64"),
        (&free, "limits.cpu", "1", "2"),
        (&free, "limits.memory", "1Gi", "4"),
        (&free, "requests.cpu", "1m", "0"),
    ] {
        assert_eq!(
            resource(container.clone(), name, divisor),
            expected,
            "{name} by {divisor}"
        );
    }
}

#[test]
fn variables_are_expanded_in_env_command_and_args() {
    let spec = container(json!({
        "name": "c", "image": "i", "command": ["$(A)"], "args": ["$(B)", "$$(A)", "$(C)"],
        "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)2" }, { "name": "A", "value": "3" }],
    }));
    assert_eq!(
        spec.env,
        [
            ("A".to_owned(), "3".to_owned()),
            ("B".to_owned(), "12".to_owned())
        ]
    );
    assert_eq!(spec.command, ["3"]);
    assert_eq!(spec.args, ["12", "$(A)", "$(C)"]);
}

#[test]
fn config_maps_and_secrets_are_refused_unless_optional() {
    let with = |optional: bool| {
        let reference = json!({ "name": "settings", "key": "k", "optional": optional });
        let env = json!([{ "name": "X", "valueFrom": { "configMapKeyRef": reference } }]);
        let from = json!([{ "secretRef": { "name": "settings", "optional": optional } }]);
        let each = [
            json!({ "name": "c", "env": env }),
            json!({ "name": "c", "envFrom": from }),
        ];
        each.map(|container| build_first(&pod(json!({ "containers": [container] })), 0))
    };
    for refused in with(false) {
        let refused = refused.unwrap_err().0;
        assert!(
            refused.contains("\"settings\" is of a kind that pods do not get yet"),
            "{refused}"
        );
    }
    for accepted in with(true) {
        assert_eq!(accepted.unwrap().spec.env, []);
    }
}

#[test]
fn volumes_are_mounted_from_their_places() {
    let built = build_first(
        &pod(json!({
            "volumes": [{ "name": "cache", "emptyDir": {} }, { "name": "logs", "hostPath": { "path": "/var/log" } }],
            "containers": [{ "name": "c", "image": "i", "env": [{ "name": "DIR", "value": "d" }], "volumeMounts": [
                { "name": "cache", "mountPath": "/cache" },
                { "name": "cache", "mountPath": "/sub", "subPath": "a/b" },
                { "name": "cache", "mountPath": "/expr", "subPathExpr": "$(DIR)" },
                { "name": "logs", "mountPath": "/logs", "readOnly": true },
            ]}],
        })),
        0,
    )
    .unwrap();
    let own = "/var/lib/podman-swarm/pods/0123456789ab/volumes/cache";
    let mounts: Vec<_> = built
        .spec
        .mounts
        .iter()
        .map(|mount| {
            (
                mount.source.to_str().unwrap(),
                mount.target.to_str().unwrap(),
                mount.read_only,
            )
        })
        .collect();
    let (sub, expression) = (format!("{own}/a/b"), format!("{own}/d"));
    let expected = [
        (own, "/cache", false),
        (sub.as_str(), "/sub", false),
        (expression.as_str(), "/expr", false),
        ("/var/log", "/logs", true),
    ];
    assert_eq!(mounts, expected);
    assert_eq!(
        built.sub_paths,
        [(1, "a/b"), (2, "d")].map(|(mount, path)| SubPath {
            mount,
            volume: own.into(),
            path: path.into(),
        })
    );
}

#[test]
fn mounts_do_not_leave_their_volume() {
    for (volume, sub_path) in [
        (json!({ "name": "v", "emptyDir": {} }), "../x"),
        (json!({ "name": "v", "emptyDir": {} }), "/etc"),
        (json!({ "name": "other", "emptyDir": {} }), ""),
        (json!({ "name": "v", "configMap": { "name": "x" } }), ""),
    ] {
        let mount = json!([{ "name": "v", "mountPath": "/v", "subPath": sub_path }]);
        let pod = pod(json!({ "volumes": [volume], "containers": [{ "name": "c", "volumeMounts": mount }] }));
        assert!(build_first(&pod, 0).is_err(), "{volume} {sub_path}");
    }
}

#[test]
fn dns_is_this_nodes_with_the_search_path() {
    let dns = with_pod(json!({})).dns;
    assert_eq!(dns.servers, ["10.244.1.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        dns.search,
        ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    );
    assert_eq!(dns.options, ["ndots:5"]);

    assert_eq!(
        with_pod(json!({ "dnsPolicy": "Default" })).dns,
        DnsConfig::default()
    );
    assert_eq!(with_pod(json!({ "hostNetwork": true })).dns, DnsConfig::default());
    let host = with_pod(json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" })).dns;
    assert_eq!(host.servers, [node().address]);

    let config = json!({ "nameservers": ["9.9.9.9"], "searches": ["example.com"],
                         "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }] });
    let none = with_pod(json!({ "dnsPolicy": "None", "dnsConfig": config })).dns;
    assert_eq!(none.servers, ["9.9.9.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        (none.search, none.options),
        (
            vec!["example.com".to_owned()],
            vec!["ndots:2".into(), "edns0".into()]
        )
    );
    let both = with_pod(json!({ "dnsConfig": config })).dns;
    assert_eq!(both.servers.len(), 2);
    assert_eq!(
        both.options,
        ["ndots:2", "edns0"],
        "an option of the pod replaces the default"
    );
}

#[test]
fn hosts_have_the_pod_and_its_aliases() {
    let line = |name: &str, address: &str| (name.to_owned(), address.parse::<IpAddr>().unwrap());
    let plain = with_pod(json!({}));
    assert_eq!(
        (plain.hostname.as_str(), plain.hosts),
        ("web", vec![line("web", "10.244.1.7")])
    );
    let named = with_pod(json!({
        "hostname": "db-0", "subdomain": "db",
        "hostAliases": [{ "ip": "192.0.2.9", "hostnames": ["a.example", "b.example"] }],
    }));
    let expected = [
        line("db-0.db.default.svc.cluster.local", "10.244.1.7"),
        line("db-0", "10.244.1.7"),
        line("a.example", "192.0.2.9"),
        line("b.example", "192.0.2.9"),
    ];
    assert_eq!(named.hosts, expected);
    let host = with_pod(json!({ "hostNetwork": true }));
    assert_eq!((host.hostname.as_str(), host.hosts), ("node1", vec![]));
}

#[test]
fn resources_and_security_are_carried_over() {
    let spec = container(json!({
        "name": "c", "image": "i", "tty": true, "stdin": true, "workingDir": "/app",
        "resources": { "limits": { "cpu": "0.5", "memory": "100M" }, "requests": { "cpu": "100m" } },
        "securityContext": { "runAsUser": 1000, "runAsGroup": 2000, "privileged": true, "readOnlyRootFilesystem": true,
                             "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } },
    }));
    let resources = ContainerResources {
        cpu_limit_millis: Some(500),
        cpu_request_millis: Some(100),
        memory_limit_bytes: Some(100_000_000),
    };
    assert_eq!(spec.resources, resources);
    assert_eq!(spec.user.as_deref(), Some("1000:2000"));
    assert!(spec.tty && spec.stdin && spec.privileged && spec.read_only_root);
    assert_eq!(
        (spec.capabilities_add, spec.capabilities_drop),
        (vec!["NET_ADMIN".into()], vec!["ALL".into()])
    );
    assert_eq!(
        (spec.working_dir.as_str(), spec.stop_timeout_seconds),
        ("/app", 30)
    );

    let inherited =
        with_pod(json!({ "securityContext": { "runAsUser": 7 }, "terminationGracePeriodSeconds": 5 }));
    assert_eq!(
        (inherited.user.as_deref(), inherited.stop_timeout_seconds),
        (Some("7"), 5)
    );
    let root = json!({ "securityContext": { "runAsNonRoot": true, "runAsUser": 0 }, "containers": [{ "name": "c" }] });
    assert!(build_first(&pod(root), 0).is_err());
}

#[test]
fn the_images_user_stays_and_root_is_refused_where_it_must_not_be() {
    let user = |context: Value, image_user: &str| {
        let pod = pod(json!({ "securityContext": context, "containers": [{ "name": "c" }] }));
        let container = &pod.spec().containers[0];
        (
            needs_image_user(&pod, container),
            RunAs::of(&pod, container)
                .user(image_user)
                .map_err(|ConfigError(message)| message),
        )
    };
    let some = |text: &str| Ok(Some(text.to_owned()));
    for (context, image_user, needed, expected) in [
        (json!({}), "7", false, Ok(None)),
        (json!({ "runAsUser": 5 }), "7", false, some("5")),
        (json!({ "runAsGroup": 9 }), "7:8", true, some("7:9")),
        (json!({ "runAsGroup": 9 }), "web", true, some("web:9")),
        (json!({ "runAsGroup": 9 }), "", true, some("0:9")),
        (json!({ "runAsNonRoot": true }), "7:0", true, Ok(None)),
        (
            json!({ "runAsNonRoot": true, "runAsUser": 5 }),
            "",
            false,
            some("5"),
        ),
    ] {
        let found = user(context.clone(), image_user);
        assert_eq!(found, (needed, expected), "{context} {image_user}");
    }
    for (image_user, expected) in [
        ("", "as root"),
        ("0:5", "as root"),
        ("web", "non-numeric user (web)"),
    ] {
        let (_, refused) = user(json!({ "runAsNonRoot": true, "runAsGroup": 9 }), image_user);
        assert!(refused.unwrap_err().contains(expected), "{image_user}");
    }
}

#[test]
fn images_are_pulled_as_their_tag_says() {
    for (image, policy, expected) in [
        ("web", None, PullPolicy::Always),
        ("web:latest", None, PullPolicy::Always),
        ("registry:5000/web", None, PullPolicy::Always),
        ("registry:5000/web:1", None, PullPolicy::IfNotPresent),
        ("web@sha256:00", None, PullPolicy::IfNotPresent),
        ("web:latest", Some("Never"), PullPolicy::Never),
        ("web:1", Some("Always"), PullPolicy::Always),
    ] {
        let pod = pod(json!({ "containers": [{ "name": "c", "image": image, "imagePullPolicy": policy }] }));
        assert_eq!(
            pull_policy(&pod.spec().containers[0]),
            expected,
            "{image} {policy:?}"
        );
    }
}

#[test]
fn host_ports_are_those_with_a_number() {
    let ports =
        json!([{ "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1" }, { "containerPort": 81 }]);
    let ports = pod(json!({ "containers": [{ "name": "c", "ports": ports }] })).host_ports();
    let expected = HostPort {
        protocol: Protocol::Tcp,
        host_ip: Some("127.0.0.1".parse().unwrap()),
        host_port: 8080,
        container_port: 80,
    };
    assert_eq!(ports, [expected]);
}
