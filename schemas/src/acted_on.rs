//! Which fields this version acts on: everything else that a user writes is kept, shown, and warned about.

use serde_json::Value;

use crate::Kind;
use crate::node::{MAX_FINDINGS, Node};

/// A field that is accepted and has no effect.
pub(crate) struct Idle {
    pub(crate) path: String,
    /// The same place, as a JSON pointer.
    pub(crate) pointer: String,
    pub(crate) reason: String,
}

const NO_EFFECT: &str = "accepted, but this version of Podman Swarm does not act on it";

/// Fields acted on, with all below them, by plain names with list elements skipped. A name that ends in `{}` is a map
/// of which only the fields listed beside it count.
const POD_SPEC: &[&str] = &[
    "containers.name",
    "containers.image",
    "containers.command",
    "containers.args",
    "containers.workingDir",
    "containers.env.name",
    "containers.env.value",
    "containers.env.valueFrom.fieldRef",
    "containers.env.valueFrom.resourceFieldRef",
    "containers.ports",
    "containers.resources.limits.cpu",
    "containers.resources.limits.memory",
    "containers.resources.requests.cpu",
    "containers.resources.requests.memory",
    "containers.volumeMounts.name",
    "containers.volumeMounts.mountPath",
    "containers.volumeMounts.readOnly",
    "containers.volumeMounts.subPath",
    "containers.volumeMounts.subPathExpr",
    "containers.imagePullPolicy",
    "containers.restartPolicy",
    "containers.livenessProbe{}",
    "containers.readinessProbe{}",
    "containers.startupProbe{}",
    "containers.securityContext.runAsUser",
    "containers.securityContext.runAsGroup",
    "containers.securityContext.runAsNonRoot",
    "containers.securityContext.privileged",
    "containers.securityContext.readOnlyRootFilesystem",
    "containers.securityContext.capabilities",
    "containers.tty",
    "containers.stdin",
    "containers.stdinOnce",
    "volumes.name",
    "volumes.emptyDir{}",
    "volumes.hostPath",
    "restartPolicy",
    "nodeSelector",
    "tolerations.key",
    "tolerations.operator",
    "tolerations.value",
    "tolerations.effect",
    "nodeName",
    "hostname",
    "subdomain",
    "hostNetwork",
    "hostAliases",
    "terminationGracePeriodSeconds",
    "dnsPolicy",
    "dnsConfig",
    "securityContext{}",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
];

const PROBE: &[&str] = &[
    "httpGet",
    "tcpSocket",
    "exec",
    "grpc.port",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
];

/// A part of an object, and the fields of it that are acted on. Without any, the part as a whole has no effect.
pub(crate) struct Part {
    pub(crate) path: &'static str,
    pub(crate) fields: &'static [&'static str],
}

/// Returns what of a kind is looked at. Empty: nothing is warned about.
pub(crate) fn parts_of(kind: Kind) -> &'static [Part] {
    match kind {
        Kind::Pod => &[Part {
            path: "spec",
            fields: POD_SPEC,
        }],
        Kind::Deployment => &[
            Part {
                path: "spec",
                fields: &[
                    "replicas",
                    "selector",
                    "template",
                    "strategy",
                    "minReadySeconds",
                    "revisionHistoryLimit",
                    "paused",
                    "progressDeadlineSeconds",
                ],
            },
            Part {
                path: "spec.template.spec",
                fields: POD_SPEC,
            },
        ],
        Kind::ReplicaSet => &[
            Part {
                path: "spec",
                fields: &["replicas", "selector", "template", "minReadySeconds"],
            },
            Part {
                path: "spec.template.spec",
                fields: POD_SPEC,
            },
        ],
        Kind::Service => &[Part {
            path: "spec",
            fields: &[
                "selector",
                "ports",
                "type",
                "externalName",
                "publishNotReadyAddresses",
                "clusterIP",
                "clusterIPs",
            ],
        }],
        Kind::Ingress => &[Part {
            path: "spec",
            fields: &[
                "rules.host",
                "rules.http.paths.path",
                "rules.http.paths.pathType",
                "rules.http.paths.backend.service",
                "defaultBackend.service",
                "ingressClassName",
            ],
        }],
        Kind::PersistentVolumeClaim
        | Kind::PersistentVolume
        | Kind::IngressClass
        | Kind::NetworkPolicy
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::ReplicationController
        | Kind::Job
        | Kind::CronJob => &[Part {
            path: "spec",
            fields: &[],
        }],
        Kind::StorageClass => &[Part {
            path: "provisioner",
            fields: &[],
        }],
        Kind::PriorityClass => &[Part {
            path: "value",
            fields: &[],
        }],
        Kind::ServiceAccount => &[
            Part {
                path: "imagePullSecrets",
                fields: &[],
            },
            Part {
                path: "secrets",
                fields: &[],
            },
        ],
        Kind::PodDisruptionBudget => &[Part {
            path: "spec",
            fields: &[
                "selector",
                "minAvailable",
                "maxUnavailable",
                "unhealthyPodEvictionPolicy",
            ],
        }],
        // What these say is for who reads them.
        Kind::ConfigMap | Kind::Secret | Kind::Lease | Kind::PodTemplate | Kind::ControllerRevision => &[],
        Kind::Namespace
        | Kind::Node
        | Kind::Endpoints
        | Kind::Event
        | Kind::EndpointSlice
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => &[],
    }
}

/// Returns the fields, each as high up as possible, that are written and have no effect; at most [`MAX_FINDINGS`].
pub(crate) fn idle_fields(kind: Kind, root: &Node<'_>) -> Vec<Idle> {
    let mut idle = Vec::new();
    for part in parts_of(kind) {
        let node = part
            .path
            .split('.')
            .fold(root.clone(), |node, name| node.at(name));
        let pointer = format!("/{}", part.path.replace('.', "/"));
        if part.fields.is_empty() {
            if !is_nothing(node.value) {
                idle.push(Idle {
                    path: node.path,
                    pointer,
                    reason: NO_EFFECT.to_owned(),
                });
            }
            continue;
        }
        walk(&node, &pointer, "", part.fields, &mut idle);
        sctp_ports(&node, &pointer, &mut idle);
    }
    if kind == Kind::Service {
        service_values(&root.at("spec"), &mut idle);
    }
    if kind == Kind::Node {
        taint_effects(&root.at("spec").at("taints"), &mut idle);
    }
    idle
}

fn walk(node: &Node<'_>, pointer: &str, path: &str, fields: &[&str], idle: &mut Vec<Idle>) {
    for name in node.map().into_iter().flat_map(serde_json::Map::keys) {
        let field = node.at(name);
        let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        if is_nothing(field.value) {
            continue;
        }
        // Init containers are containers.
        let name = if path.is_empty() && name == "initContainers" {
            "containers"
        } else {
            name
        };
        let path = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        };
        let below = format!("{path}.");
        if fields.contains(&path.as_str()) {
            continue;
        }
        if is_probe(&path, name) {
            walk(&field, &pointer, "", PROBE, idle);
        } else if fields
            .iter()
            .any(|known| known.starts_with(&below) || known.strip_suffix("{}") == Some(&path))
        {
            match field.value {
                Value::Array(_) => field.items().enumerate().for_each(|(index, item)| {
                    walk(&item, &format!("{pointer}/{index}"), &path, fields, idle);
                }),
                _ => walk(&field, &pointer, &path, fields, idle),
            }
        } else if idle.len() < MAX_FINDINGS {
            idle.push(Idle {
                path: field.path,
                pointer,
                reason: NO_EFFECT.to_owned(),
            });
        }
    }
}

/// Tells whether a field of this path and name is a container's probe, of which [`probe_fields`] are acted on.
pub(crate) fn is_probe(path: &str, name: &str) -> bool {
    path.starts_with("containers.") && name.ends_with("Probe")
}

/// The fields of a probe that are acted on.
pub(crate) fn probe_fields() -> &'static [&'static str] {
    PROBE
}

/// Values that say nothing: asking for none of something is granted.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}

/// Ports of services and containers that the pod network does not carry.
fn sctp_ports(spec: &Node<'_>, pointer: &str, idle: &mut Vec<Idle>) {
    let mut lists = vec![(spec.at("ports"), format!("{pointer}/ports"))];
    for field in ["initContainers", "containers"] {
        for (index, container) in spec.at(field).items().enumerate() {
            lists.push((container.at("ports"), format!("{pointer}/{field}/{index}/ports")));
        }
    }
    for (ports, pointer) in lists {
        for (index, port) in ports.items().enumerate() {
            let protocol = port.at("protocol");
            if protocol.text() == "SCTP" && idle.len() < MAX_FINDINGS {
                idle.push(Idle {
                    path: protocol.path,
                    pointer: format!("{pointer}/{index}/protocol"),
                    reason: "the pod network carries TCP and UDP alone".to_owned(),
                });
            }
        }
    }
}

/// Taints that do less than they say.
fn taint_effects(taints: &Node<'_>, idle: &mut Vec<Idle>) {
    for (index, taint) in taints.items().enumerate() {
        let effect = taint.at("effect");
        let reason = match effect.text() {
            "NoExecute" => "it keeps new pods away, as NoSchedule does, and evicts none; kubectl drain does",
            "PreferNoSchedule" => NO_EFFECT,
            _ => continue,
        };
        if idle.len() < MAX_FINDINGS {
            idle.push(Idle {
                path: effect.path,
                pointer: format!("/spec/taints/{index}/effect"),
                reason: reason.to_owned(),
            });
        }
    }
}

/// Services of which a part has no effect because of what a field says.
fn service_values(spec: &Node<'_>, idle: &mut Vec<Idle>) {
    let kind = spec.at("type");
    if matches!(kind.text(), "NodePort" | "LoadBalancer") {
        let reason = format!(
            "{} is served inside the cluster only, as ClusterIP; use an Ingress or hostPort to reach it from outside",
            kind.text()
        );
        idle.push(Idle {
            path: kind.path,
            pointer: "/spec/type".to_owned(),
            reason,
        });
    }
    let address = spec.at("clusterIP");
    if !matches!(address.text(), "" | "None") {
        let reason =
            "services have no virtual address here: the name resolves to the pods' addresses".to_owned();
        idle.push(Idle {
            path: address.path,
            pointer: "/spec/clusterIP".to_owned(),
            reason,
        });
    }
}
