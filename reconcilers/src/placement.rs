//! Which node a new pod goes to: among those that fit, those that carry the fewest of its workload, then by hash.
//!
//! Pure and deterministic: two owners that see the same choose the same. Preferences and affinity between pods come
//! later.

use std::collections::BTreeMap;
use std::fmt;

use schemas::Object;
use schemas::quantity::Quantity;
use serde_json::Value;

use crate::derived::hash;
use crate::nodes::{NodeState, Nodes, Taint};
use crate::ports::Liveness;

/// What a pod asks of its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Requests {
    /// Reads a pod: the sum of its containers or its largest init container, whichever is more. A container without a
    /// request asks for its limit.
    pub fn of(pod: &Object) -> Self {
        let each = |pointer: &str| -> Vec<Requests> {
            let list = pod.pointer(pointer).and_then(Value::as_array);
            list.into_iter().flatten().map(container_requests).collect()
        };
        let containers = each("/spec/containers");
        let sum = containers.iter().fold(Self::default(), |sum, one| Self {
            cpu_millis: sum.cpu_millis.saturating_add(one.cpu_millis),
            memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
        });
        each("/spec/initContainers").iter().fold(sum, |most, one| Self {
            cpu_millis: most.cpu_millis.max(one.cpu_millis),
            memory_bytes: most.memory_bytes.max(one.memory_bytes),
        })
    }
}

fn container_requests(container: &Value) -> Requests {
    let quantity = |resource: &str| -> Option<Quantity> {
        let resources = &container["resources"];
        let value = match &resources["requests"][resource] {
            Value::Null => &resources["limits"][resource],
            value => value,
        };
        Quantity::from_json(value).ok()
    };
    Requests {
        cpu_millis: quantity("cpu").map_or(0, |cpu| cpu.millis().max(0).unsigned_abs()),
        memory_bytes: quantity("memory").map_or(0, |memory| memory.value().max(0).unsigned_abs()),
    }
}

/// A port of the node that a pod wants for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
struct HostPort {
    /// None: at all addresses of the node.
    address: Option<String>,
    protocol: String,
    port: i64,
}

impl HostPort {
    /// Reads a pod: its `hostPort`s, on the host's network all its ports.
    fn of(pod: &Object) -> Vec<HostPort> {
        let on_host_network = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
        let containers = ["/spec/containers", "/spec/initContainers"]
            .into_iter()
            .filter_map(|list| pod.pointer(list)?.as_array())
            .flatten();
        let ports = containers
            .filter_map(|container| container["ports"].as_array())
            .flatten();
        ports
            .filter_map(|port| {
                let on_host = port["hostPort"].as_i64().filter(|number| *number > 0);
                let number = match on_host {
                    None if on_host_network => port["containerPort"].as_i64(),
                    on_host => on_host,
                };
                let address = port["hostIP"].as_str().unwrap_or_default();
                Some(HostPort {
                    address: Some(address.to_owned())
                        .filter(|address| !["", "0.0.0.0"].contains(&&**address)),
                    protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
                    port: number?,
                })
            })
            .collect()
    }

    fn excludes(&self, other: &HostPort) -> bool {
        let meet = match (&self.address, &other.address) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        meet && self.protocol == other.protocol && self.port == other.port
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    node: NodeState,
    used: Requests,
    host_ports: Vec<HostPort>,
    pods: u32,
}

/// The nodes with what they carry. Changes as a plan goes on, so that each choice sees the ones before.
#[derive(Clone, Debug)]
pub struct Placement {
    candidates: Vec<Candidate>,
}

/// Why a pod fits nowhere, in Kubernetes' words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misfit {
    nodes: usize,
    reasons: BTreeMap<String, usize>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

impl Placement {
    /// Adds up what `pods` (of the whole cluster) ask of the nodes that they are on.
    pub fn new<'a>(nodes: &Nodes, pods: impl IntoIterator<Item = &'a Object>) -> Self {
        let candidates = nodes
            .iter()
            .map(|node| Candidate {
                node: node.clone(),
                used: Requests::default(),
                host_ports: Vec::new(),
                pods: 0,
            })
            .collect();
        let mut placement = Self { candidates };
        for pod in pods {
            let finished = matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed");
            if !finished {
                placement.occupy(pod.str_at("/spec/nodeName"), pod);
            }
        }
        placement
    }

    /// Counts a pod to a node.
    pub fn occupy(&mut self, node: &str, pod: &Object) {
        let Some(candidate) = self
            .candidates
            .iter_mut()
            .find(|candidate| candidate.node.name == node)
        else {
            return;
        };
        let requests = Requests::of(pod);
        candidate.used.cpu_millis = candidate.used.cpu_millis.saturating_add(requests.cpu_millis);
        candidate.used.memory_bytes = candidate.used.memory_bytes.saturating_add(requests.memory_bytes);
        candidate.host_ports.extend(HostPort::of(pod));
        candidate.pods += 1;
    }

    /// Returns the node of this name, whether it takes pods or not.
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        let mut nodes = self.candidates.iter().map(|candidate| &candidate.node);
        nodes.find(|node| node.name == name)
    }

    /// Chooses a node for a pod: it fits, `carried` of its name is least, and among equals by hash with `seed`.
    ///
    /// # Errors
    /// Why each node does not fit.
    pub fn choose<C: Ord>(
        &self,
        pod: &Object,
        seed: &str,
        carried: impl Fn(&str) -> C,
    ) -> Result<&NodeState, Misfit> {
        let (requests, host_ports) = (Requests::of(pod), HostPort::of(pod));
        let mut reasons = BTreeMap::new();
        let mut best: Option<(C, u64, &NodeState)> = None;
        for candidate in &self.candidates {
            let misfits = misfits(candidate, pod, requests, &host_ports);
            if misfits.is_empty() {
                let node = &candidate.node;
                let rank = (carried(&node.name), hash(&["place", seed, &node.name]), node);
                if best
                    .as_ref()
                    .is_none_or(|best| (&rank.0, rank.1) < (&best.0, best.1))
                {
                    best = Some(rank);
                }
            }
            for reason in misfits {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        best.map(|(_, _, node)| node).ok_or(Misfit {
            nodes: self.candidates.len(),
            reasons,
        })
    }
}

/// The reasons why a node cannot take a pod, in the order and words of Kubernetes' scheduler: the first filter that
/// refuses tells its reasons.
fn misfits(candidate: &Candidate, pod: &Object, requests: Requests, host_ports: &[HostPort]) -> Vec<String> {
    let node = &candidate.node;
    if node.unschedulable {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    let taint = match node.liveness {
        Liveness::Alive if !node.facts.podman_error.is_empty() || !node.facts.store_error.is_empty() => {
            Some("node.kubernetes.io/not-ready")
        }
        // What it cannot store it would not hear of.
        Liveness::Alive if !node.facts.disk_full.is_empty() => Some("node.kubernetes.io/disk-pressure"),
        Liveness::Alive => None,
        Liveness::Stopped | Liveness::AgentDown | Liveness::Dead => Some("node.kubernetes.io/unreachable"),
    };
    if let Some(taint) = taint {
        return vec![format!("node(s) had untolerated taint {{{taint}: }}")];
    }
    let keeps_away = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let mut taints = node.taints.iter().filter(keeps_away);
    if let Some(taint) = taints.find(|taint| !tolerates(pod, taint)) {
        return vec![format!(
            "node(s) had untolerated taint {{{}: {}}}",
            taint.key, taint.value
        )];
    }
    if !matches_selector(node, pod) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    let is_taken = |port: &HostPort| candidate.host_ports.iter().any(|taken| taken.excludes(port));
    if host_ports.iter().any(is_taken) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    let mut reasons = Vec::new();
    let exceeds = |asked: u64, used: u64, capacity: u64| asked > 0 && used.saturating_add(asked) > capacity;
    if exceeds(1, candidate.pods.into(), node.facts.max_pods.into()) {
        reasons.push("Too many pods".to_owned());
    }
    if exceeds(
        requests.cpu_millis,
        candidate.used.cpu_millis,
        node.facts.cpu_millis,
    ) {
        reasons.push("Insufficient cpu".to_owned());
    }
    if exceeds(
        requests.memory_bytes,
        candidate.used.memory_bytes,
        node.facts.memory_bytes,
    ) {
        reasons.push("Insufficient memory".to_owned());
    }
    reasons
}

/// Source: Kubernetes API, `Toleration`: no key is every key, no effect every effect, no operator `Equal`.
fn tolerates(pod: &Object, taint: &Taint) -> bool {
    let tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array);
    tolerations.into_iter().flatten().any(|toleration| {
        let text = |field: &str| toleration[field].as_str().unwrap_or_default();
        let is_of_any = text("operator") == "Exists";
        let (key, effect) = (text("key"), text("effect"));
        (key == taint.key || key.is_empty() && is_of_any)
            && (effect.is_empty() || effect == taint.effect)
            && (is_of_any || text("value") == taint.value)
    })
}

fn matches_selector(node: &NodeState, pod: &Object) -> bool {
    let selector = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    selector.into_iter().flatten().all(|(key, value)| {
        let label = node.labels.get(key).map(String::as_str);
        label.is_some() && label == value.as_str()
    })
}

#[cfg(test)]
mod tests {
    use schemas::{Kind, ObjectKey};
    use serde_json::json;

    use super::*;
    use crate::nodes::testing::{node, nodes};
    use crate::ports::Moment;

    fn pod(name: &str, spec: Value) -> Object {
        let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", name));
        pod.set(&["spec"], spec);
        pod
    }

    fn asking(cpu: &str, memory: &str) -> Value {
        json!({"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
    }

    fn check(nodes: &Nodes, others: &[Object], spec: Value, expected: Result<&str, &str>) {
        let placement = Placement::new(nodes, others);
        let chosen = placement.choose(&pod("new", spec), "seed", |_| 0);
        let chosen = chosen
            .map(|node| node.name.clone())
            .map_err(|misfit| misfit.to_string());
        assert_eq!(chosen.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn taints_keep_pods_away_that_do_not_tolerate_them() {
        let tainted = |effect: &str| {
            let taint = Taint {
                key: "for".into(),
                value: "tests".into(),
                effect: effect.into(),
            };
            nodes([NodeState {
                taints: vec![taint],
                ..node("a")
            }])
        };
        let refused = Err("0/1 nodes are available: 1 node(s) had untolerated taint {for: tests}.");
        check(&tainted("PreferNoSchedule"), &[], json!({}), Ok("a"));
        for (toleration, expected) in [
            (json!({}), refused),
            (json!({"operator": "Exists"}), Ok("a")),
            (json!({"key": "for", "operator": "Exists"}), Ok("a")),
            (json!({"key": "for", "value": "tests"}), Ok("a")),
            (
                json!({"key": "for", "value": "tests", "operator": "Equal", "effect": "NoSchedule"}),
                Ok("a"),
            ),
            (json!({"key": "for", "value": "other"}), refused),
            (json!({"key": "other", "operator": "Exists"}), refused),
            (
                json!({"operator": "Exists", "effect": "PreferNoSchedule"}),
                refused,
            ),
        ] {
            check(
                &tainted("NoSchedule"),
                &[],
                json!({"tolerations": [toleration]}),
                expected,
            );
        }
        check(&tainted("NoExecute"), &[], json!({}), refused);
    }

    #[test]
    fn pods_go_only_where_they_fit() {
        let three = nodes([node("a"), node("b"), node("c")]);
        check(
            &three,
            &[],
            json!({"nodeSelector": {"kubernetes.io/hostname": "b"}}),
            Ok("b"),
        );
        check(
            &three,
            &[],
            json!({"nodeSelector": {"disk": "ssd"}}),
            Err("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
        );
        let mut full = asking("3", "1Gi");
        full["nodeName"] = "a".into();
        let others = [pod("other", full)];
        let mut two = nodes([node("a"), node("b").liveness(Liveness::Dead, Moment::default())]);
        check(
            &two,
            &others,
            asking("1500m", "1Gi"),
            Err(
                "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint \
                 {node.kubernetes.io/unreachable: }.",
            ),
        );
        check(&two, &others, asking("1", "1Gi"), Ok("a"));
        two = nodes([NodeState {
            unschedulable: true,
            ..node("a")
        }]);
        check(
            &two,
            &[],
            json!({}),
            Err("0/1 nodes are available: 1 node(s) were unschedulable."),
        );
        check(
            &nodes([]),
            &[],
            json!({}),
            Err("no nodes available to schedule pods"),
        );
    }

    #[test]
    fn a_port_of_a_node_is_given_away_once() {
        let ports = |ports: Value| json!({"nodeName": "a", "containers": [{"ports": ports}]});
        let others = [
            pod("web", ports(json!([{"containerPort": 8080, "hostPort": 80}]))),
            pod(
                "one-address",
                ports(
                    json!([{"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1"}]),
                ),
            ),
        ];
        let full =
            Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
        for (port, expected) in [
            (json!({"containerPort": 80}), Ok("a")),
            (json!({"containerPort": 1, "hostPort": 81}), Ok("a")),
            (json!({"containerPort": 1, "hostPort": 80}), full),
            (
                json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"}),
                full,
            ),
            (
                json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"}),
                Ok("a"),
            ),
            (
                json!({"containerPort": 1, "hostPort": 53, "protocol": "UDP"}),
                full,
            ),
            (
                json!({"containerPort": 1, "hostPort": 53, "protocol": "UDP", "hostIP": "10.0.0.2"}),
                Ok("a"),
            ),
        ] {
            check(&nodes([node("a")]), &others, ports(json!([port])), expected);
        }
        let mut on_host = ports(json!([{"containerPort": 80}]));
        on_host["hostNetwork"] = true.into();
        check(&nodes([node("a"), node("b")]), &others, on_host, Ok("b"));
    }

    #[test]
    fn the_emptiest_node_wins_and_ties_are_spread_by_hash() {
        let three = nodes([node("a"), node("b"), node("c")]);
        let placement = Placement::new(&three, []);
        let pod = pod("new", json!({}));
        let chosen = placement.choose(&pod, "x", |name| if name == "c" { 0 } else { 1 });
        assert_eq!(chosen.unwrap().name, "c");
        let mut counts = BTreeMap::new();
        for seed in 0..90 {
            let chosen = placement.choose(&pod, &seed.to_string(), |_| 0).unwrap();
            *counts.entry(chosen.name.clone()).or_insert(0) += 1;
        }
        assert!(
            counts.len() == 3 && counts.values().all(|count| *count > 15),
            "{counts:?}"
        );
    }

    #[test]
    fn init_containers_count_by_the_largest() {
        let spec = json!({
            "containers": [
                {"resources": {"limits": {"cpu": 1, "memory": "100Mi"}}},
                {"resources": {"requests": {"cpu": "500m"}}},
            ],
            "initContainers": [{"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
        });
        let expected = Requests {
            cpu_millis: 1500,
            memory_bytes: 1 << 30,
        };
        assert_eq!(Requests::of(&pod("new", spec)), expected);
    }
}
