//! Service + Pods → EndpointSlice and Endpoints, as projections. [`project`] is pure.
//!
//! Services without a selector are left alone: their endpoints are written by hand. Of those, only whether they are valid
//! is shown. One stands for the API: its endpoints are the nodes. Where the results go: [`crate::zone`]
//! and [`crate::routes`] read them back from the store's views.
//! Source of the shapes: Kubernetes API, `discovery.k8s.io/v1` and `Endpoints`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{WatchEvent, WatchScope};

use crate::controller::{Context, Next, ReconcileError, Reconciler, Trigger, api_service};
use crate::endpoints::{SERVICE_NAME_LABEL, has_selector, selects, service_ports};
use crate::ports::{Cluster, Liveness};

/// Marks the slices that are computed here.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGED_BY: &str = "podman-swarm";
/// Endpoints of one slice; Kubernetes' limit.
const SLICE_ENDPOINTS_MAX: usize = 1000;
/// Characters of a slice's suffix: 32^5 are enough that the slices of one service do not meet.
const SUFFIX_LENGTH: usize = 5;

/// What a service's endpoints look like in the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// At least one, also without endpoints.
    pub slices: Vec<Object>,
    pub endpoints: Object,
}

/// Name, protocol and number of each port: pods that resolve a named target port differently are in different slices.
type Ports = Vec<(String, String, u16)>;

/// A pod behind a service.
struct Member<'a> {
    pod: &'a Object,
    address: IpAddr,
    ready: bool,
    terminating: bool,
}

/// Computes the endpoints of a service with a selector. `pods` are views of its namespace; `is_dead` tells of a node's
/// name whether nothing on it answers any more.
pub fn project(service: &Object, pods: &[&Object], is_dead: impl Fn(&str) -> bool) -> Projection {
    let ports = service_ports(service);
    let mut groups: BTreeMap<(bool, Ports), Vec<Member<'_>>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| selects(service, pod)) {
        let Some(member) = member(pod).filter(|_| !is_dead(pod.str_at("/spec/nodeName"))) else {
            continue;
        };
        let resolved = ports.iter().filter_map(|port| {
            let number = port.target_in(pod)?;
            Some((port.name.clone(), port.protocol.clone(), number))
        });
        let group = (member.address.is_ipv6(), resolved.collect());
        groups.entry(group).or_default().push(member);
    }
    for members in groups.values_mut() {
        members.sort_by_key(|member| (member.address, member.pod.name()));
    }
    Projection {
        endpoints: endpoints(service, &groups),
        slices: slices(service, &groups),
    }
}

/// Reads a pod that has an address and has not ended.
fn member(pod: &Object) -> Option<Member<'_>> {
    if matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed") {
        return None;
    }
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let mut conditions = conditions.into_iter().flatten();
    Some(Member {
        pod,
        address: pod.str_at("/status/podIP").parse().ok()?,
        ready: conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        terminating: pod.is_terminating(),
    })
}

fn target_ref(pod: &Object) -> Value {
    json!({ "kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid() })
}

fn hostname<'a>(service: &Object, pod: &'a Object) -> Option<&'a str> {
    let named = pod.str_at("/spec/subdomain") == service.name();
    Some(pod.str_at("/spec/hostname")).filter(|hostname| named && !hostname.is_empty())
}

fn port_values(ports: &Ports) -> Vec<Value> {
    ports
        .iter()
        .map(|(name, protocol, port)| json!({ "name": name, "protocol": protocol, "port": port }))
        .collect()
}

fn publishes_unready(service: &Object) -> bool {
    service.pointer("/spec/publishNotReadyAddresses") == Some(&Value::Bool(true))
}

fn slices(service: &Object, groups: &BTreeMap<(bool, Ports), Vec<Member<'_>>>) -> Vec<Object> {
    let always_ready = publishes_unready(service);
    let endpoint = |member: &Member<'_>| {
        let ready = always_ready || (member.ready && !member.terminating);
        let mut endpoint = json!({
            "addresses": [member.address],
            "conditions": { "ready": ready, "serving": member.ready, "terminating": member.terminating },
            "targetRef": target_ref(member.pod),
            "nodeName": member.pod.str_at("/spec/nodeName"),
        });
        if let Some(hostname) = hostname(service, member.pod) {
            endpoint["hostname"] = hostname.into();
        }
        endpoint
    };
    let empty = BTreeMap::from([((false, Ports::new()), Vec::new())]);
    let groups = if groups.is_empty() { &empty } else { groups };
    let mut slices = Vec::new();
    for ((is_ipv6, ports), members) in groups {
        let family = if *is_ipv6 { "IPv6" } else { "IPv4" };
        // An empty group makes one empty slice.
        for number in 0..members.len().div_ceil(SLICE_ENDPOINTS_MAX).max(1) {
            let part = members
                .iter()
                .skip(number * SLICE_ENDPOINTS_MAX)
                .take(SLICE_ENDPOINTS_MAX);
            let name = format!(
                "{}-{}",
                service.name(),
                suffix(service.uid(), family, ports, number)
            );
            let mut slice = derived(service, Kind::EndpointSlice, &name);
            slice.set(&["metadata", "labels", SERVICE_NAME_LABEL], service.name());
            slice.set(&["metadata", "labels", MANAGED_BY_LABEL], MANAGED_BY);
            slice.set(&["addressType"], family);
            slice.set(&["endpoints"], part.map(endpoint).collect::<Vec<_>>());
            slice.set(&["ports"], port_values(ports));
            slices.push(slice);
        }
    }
    slices
}

/// Computes the endpoints of the Service that stands for the API, from where live nodes serve it.
fn project_api(service: &Object, nodes: &BTreeSet<SocketAddr>) -> Projection {
    let port = |port: u16| json!([{"name": "https", "protocol": "TCP", "port": port}]);
    let mut groups: BTreeMap<(bool, u16), Vec<IpAddr>> = BTreeMap::new();
    for node in nodes {
        let group = groups.entry((node.is_ipv6(), node.port())).or_default();
        group.push(node.ip());
    }
    let slices = groups.iter().map(|((is_ipv6, number), addresses)| {
        let family = if *is_ipv6 { "IPv6" } else { "IPv4" };
        let name = format!("{}-{}-{number}", service.name(), family.to_ascii_lowercase());
        let mut slice = derived(service, Kind::EndpointSlice, &name);
        slice.set(&["metadata", "labels", SERVICE_NAME_LABEL], service.name());
        slice.set(&["metadata", "labels", MANAGED_BY_LABEL], MANAGED_BY);
        slice.set(&["addressType"], family);
        let endpoint = |address: &IpAddr| json!({"addresses": [address], "conditions": {"ready": true}});
        slice.set(&["endpoints"], addresses.iter().map(endpoint).collect::<Vec<_>>());
        slice.set(&["ports"], port(*number));
        slice
    });
    let subsets = groups.iter().map(|((_, number), addresses)| {
        let addresses: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        json!({"addresses": addresses, "ports": port(*number)})
    });
    let mut endpoints = derived(service, Kind::Endpoints, service.name());
    endpoints.set(&["subsets"], subsets.collect::<Vec<_>>());
    Projection {
        slices: slices.collect(),
        endpoints,
    }
}

/// Makes an object that belongs to a service.
fn derived(service: &Object, kind: Kind, name: &str) -> Object {
    let mut object = Object::new(&ObjectKey::new(kind, service.namespace(), name));
    object.set(
        &["metadata", "creationTimestamp"],
        service.str_at("/metadata/creationTimestamp"),
    );
    let owner = json!([{
        "apiVersion": "v1", "kind": "Service", "name": service.name(), "uid": service.uid(),
        "controller": true, "blockOwnerDeletion": true,
    }]);
    object.set(&["metadata", "ownerReferences"], owner);
    object
}

fn suffix(uid: &str, family: &str, ports: &Ports, number: usize) -> String {
    /// As Kubernetes' generated names: no vowels, so that no words appear.
    const ALPHABET: &[u8; 32] = b"bcdfghjklmnpqrstvwxz0123456789ya";
    let identity = json!([uid, family, ports, number]).to_string();
    let digest = Sha256::digest(identity.as_bytes());
    let letter = |byte: &u8| char::from(ALPHABET[usize::from(byte % 32)]);
    digest.iter().take(SUFFIX_LENGTH).map(letter).collect()
}

fn endpoints(service: &Object, groups: &BTreeMap<(bool, Ports), Vec<Member<'_>>>) -> Object {
    let always_ready = publishes_unready(service);
    let address = |member: &&Member<'_>| {
        let mut address = json!({
            "ip": member.address,
            "nodeName": member.pod.str_at("/spec/nodeName"),
            "targetRef": target_ref(member.pod),
        });
        if let Some(hostname) = hostname(service, member.pod) {
            address["hostname"] = hostname.into();
        }
        address
    };
    let mut subsets = Vec::new();
    for ((_, ports), members) in groups {
        let (ready, unready): (Vec<_>, Vec<_>) = members
            .iter()
            .filter(|member| always_ready || !member.terminating)
            .partition(|member| always_ready || member.ready);
        let mut subset = serde_json::Map::new();
        for (name, members) in [("addresses", ready), ("notReadyAddresses", unready)] {
            if !members.is_empty() {
                subset.insert(name.to_owned(), members.iter().map(address).collect());
            }
        }
        if !subset.is_empty() {
            subset.insert("ports".to_owned(), port_values(ports).into());
            subsets.push(Value::Object(subset));
        }
    }
    let mut object = derived(service, Kind::Endpoints, service.name());
    object.set(&["subsets"], subsets);
    object
}

/// Names the nodes on which nothing answers. A name is dead if no node that has it is anything else.
fn dead_nodes(cluster: &Cluster) -> BTreeSet<String> {
    let named = |dead: bool| {
        let nodes = cluster
            .nodes
            .values()
            .filter(move |node| (node.liveness == Liveness::Dead) == dead);
        nodes.map(|node| node.facts.name.clone()).collect::<BTreeSet<_>>()
    };
    named(true).difference(&named(false)).cloned().collect()
}

/// What of the cluster concerns services.
#[derive(Default, PartialEq)]
struct Known {
    /// Nodes on which nothing answers.
    dead: BTreeSet<String>,
    /// Where the API is.
    api: BTreeSet<SocketAddr>,
}

impl Known {
    fn of(cluster: &Cluster) -> Known {
        let live = cluster
            .nodes
            .values()
            .filter(|node| node.liveness == Liveness::Alive);
        let api = live
            .filter(|node| node.facts.api_port > 0)
            .filter_map(|node| Some(SocketAddr::new(node.facts.address?, node.facts.api_port)));
        Known {
            dead: dead_nodes(cluster),
            api: api.collect(),
        }
    }
}

/// Keeps the endpoints of every service with a selector. The key is the service's, or that of a slice somebody wrote.
pub struct ServiceReconciler {
    context: Context,
    /// As of the last event of the cluster: only a change of these concerns services.
    known: Mutex<Arc<Known>>,
    /// The slices that each service has now; services that are gone are in here until theirs are.
    slices: Mutex<HashMap<ObjectKey, Vec<ObjectKey>>>,
}

impl ServiceReconciler {
    pub fn new(context: Context) -> ServiceReconciler {
        ServiceReconciler {
            context,
            known: Mutex::default(),
            slices: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Arc<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn services_of(&self, pods: &[&Object]) -> Vec<ObjectKey> {
        let Some(namespace) = pods.first().map(|pod| pod.namespace()) else {
            return Vec::new();
        };
        let services = self.context.settled_objects(Kind::Service, Some(namespace));
        let concerned = services
            .into_iter()
            .filter(|service| pods.iter().any(|pod| selects(service, pod)));
        concerned.filter_map(|service| service.key()).collect()
    }

    fn slices(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Vec<ObjectKey>>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows these slices of a service, and none that it had before.
    fn show_slices(&self, service: &ObjectKey, slices: Vec<Object>) {
        let keys: Vec<ObjectKey> = slices.iter().filter_map(Object::key).collect();
        let before = if keys.is_empty() {
            self.slices().remove(service)
        } else {
            self.slices().insert(service.clone(), keys.clone())
        };
        for gone in before.iter().flatten().filter(|before| !keys.contains(before)) {
            self.show(gone, None);
        }
        for (key, slice) in keys.iter().zip(slices) {
            self.show(key, Some(slice));
        }
    }

    /// Shows what was computed of endpoints, and of what users wrote of them that it is not valid, if it is not.
    fn show(&self, key: &ObjectKey, computed: Option<Object>) {
        let store = &self.context.store;
        let written = store.get(key).filter(|view| view.stored);
        let fault = written.and_then(|view| self.context.fault_alone(key, &view.object));
        let shown = match (computed, fault) {
            (computed, None) => computed,
            (computed, Some(fault)) => {
                let mut shown = computed.unwrap_or_default();
                shown.set(&["status"], fault);
                Some(shown)
            }
        };
        store.project(key, shown);
    }

    /// The service whose run shows an EndpointSlice.
    fn owner_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        let slices = self.slices();
        let owner = slices.iter().find(|(_, slices)| slices.contains(slice));
        owner.map(|(service, _)| service.clone())
    }
}

#[async_trait]
impl Reconciler for ServiceReconciler {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "service"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Service, Kind::Pod, Kind::Endpoints, Kind::EndpointSlice],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<ObjectKey> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, previous }) if view.key.kind == Kind::Pod => {
                let pods: Vec<&Object> = previous.iter().chain([&view.object]).map(|pod| &**pod).collect();
                self.services_of(&pods)
            }
            Trigger::Store(WatchEvent::Deleted { view }) if view.key.kind == Kind::Pod => {
                self.services_of(&[&view.object])
            }
            Trigger::Store(WatchEvent::Put { view, .. } | WatchEvent::Deleted { view }) => {
                let mut key = view.key.clone();
                // What comes back of this controller's own is in no document.
                if key.kind != Kind::Service && !view.stored {
                    return Vec::new();
                }
                if key.kind == Kind::Endpoints {
                    key.kind = Kind::Service;
                }
                vec![key]
            }
            Trigger::Cluster(cluster) => {
                let now = Known::of(cluster);
                let mut known = self.known();
                let are_dead_as_before = known.dead == now.dead;
                if **known == now {
                    return Vec::new();
                }
                *known = Arc::new(now);
                if are_dead_as_before {
                    return vec![api_service()];
                }
                let services = self.context.store.list(Kind::Service, None).items;
                services.into_iter().map(|view| view.key).collect()
            }
            Trigger::Resync => {
                let store = &self.context.store;
                let gone = |service: &&ObjectKey| store.get(service).is_none();
                self.slices().keys().filter(gone).cloned().collect()
            }
            Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let store = &self.context.store;
        let owner;
        let key = if key.kind == Kind::EndpointSlice {
            owner = self.owner_of(key);
            let Some(owner) = &owner else {
                self.show(key, None);
                return Ok(Next::Done);
            };
            owner
        } else {
            key
        };
        let endpoints_key = ObjectKey::new(Kind::Endpoints, &key.namespace, &key.name);
        let Some(service) = store.get(key) else {
            self.show_slices(key, Vec::new());
            self.show(&endpoints_key, None);
            return Ok(Next::Done);
        };
        let status = json!({"loadBalancer": {}});
        self.context
            .show_checked(key, &service.object, status, "service-controller");
        let Some(service) = self.context.settled(&service.object) else {
            return Ok(Next::Done);
        };
        let known = self.known().clone();
        if *key == api_service() && !has_selector(&service) {
            let Projection { slices, endpoints } = project_api(&service, &known.api);
            self.show_slices(key, slices);
            self.show(&endpoints_key, Some(endpoints));
            return Ok(Next::Done);
        }
        if !has_selector(&service) {
            self.show_slices(key, Vec::new());
            self.show(&endpoints_key, None);
            return Ok(Next::Done);
        }
        let pods = store.list(Kind::Pod, Some(&key.namespace)).items;
        let pods: Vec<&Object> = pods.iter().map(|view| &*view.object).collect();
        let Projection { slices, endpoints } = project(&service, &pods, |node| known.dead.contains(node));
        self.show_slices(key, slices);
        self.show(&endpoints_key, Some(endpoints));
        Ok(Next::Done)
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
