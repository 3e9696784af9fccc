//! Readings of services, pods and endpoint slices that endpoints, zone, routes and redirects share. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use schemas::Object;
use serde_json::Value;

use crate::ports::Protocol;

/// The label by which an EndpointSlice names its service. Source: Kubernetes, `discovery.k8s.io`.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Reads `TCP` or `UDP`, TCP if absent; None for SCTP, which the pod network does not carry.
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// One entry of `spec.ports` of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServicePort {
    /// Empty where the only port has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub port: u16,
    target: Target,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Number(u16),
    Name(String),
}

impl ServicePort {
    /// Returns the port of the pod that this port leads to; None if it has none of that name.
    pub(crate) fn target_in(&self, pod: &Object) -> Option<u16> {
        let name = match &self.target {
            Target::Number(number) => return Some(*number),
            Target::Name(name) => name,
        };
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        let ports = containers
            .into_iter()
            .flatten()
            .filter_map(|container| container.get("ports")?.as_array());
        let mut ports = ports.flatten().filter(|port| port["name"] == name.as_str());
        let found = ports.find(|port| port["protocol"].as_str().unwrap_or("TCP") == self.protocol)?;
        port_number(&found["containerPort"])
    }

    /// Returns the protocol, if the pod network can redirect it.
    pub(crate) fn redirectable(&self) -> Option<Protocol> {
        protocol(Some(&self.protocol))
    }
}

fn port_number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0)
}

/// Reads `spec.ports`; entries that are no ports are left out.
pub(crate) fn service_ports(service: &Object) -> Vec<ServicePort> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let read = |entry: &Value| {
        let port = port_number(&entry["port"])?;
        let target = match &entry["targetPort"] {
            Value::Null => Target::Number(port),
            // 0 is what some clients write for "not given".
            Value::Number(number) if number.as_u64() == Some(0) => Target::Number(port),
            Value::String(text) => match text.parse() {
                Ok(number) => Target::Number(number),
                Err(_) => Target::Name(text.clone()),
            },
            number => Target::Number(port_number(number)?),
        };
        Some(ServicePort {
            name: entry["name"].as_str().unwrap_or_default().to_owned(),
            protocol: entry["protocol"].as_str().unwrap_or("TCP").to_owned(),
            port,
            target,
        })
    };
    ports.into_iter().flatten().filter_map(read).collect()
}

pub(crate) fn is_external_name(service: &Object) -> bool {
    service.str_at("/spec/type") == "ExternalName"
}

/// Tells whether a service has a selector, so that its endpoints are computed.
pub(crate) fn has_selector(service: &Object) -> bool {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    !is_external_name(service) && selector.is_some_and(|selector| !selector.is_empty())
}

/// Tells whether a service's selector matches a pod's labels (the namespace is the caller's).
pub(crate) fn selects(service: &Object, pod: &Object) -> bool {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    has_selector(service)
        && selector.is_some_and(|selector| {
            selector
                .iter()
                .all(|(key, value)| pod.label(key) == value.as_str())
        })
}

/// One address behind a service, with the ports of its slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    /// The pod's host name, where it has one of its own.
    pub hostname: Option<String>,
    pub node_name: String,
    /// Name, protocol, number.
    pub ports: Arc<[(String, String, u16)]>,
}

/// The endpoints of services, by namespace and name.
#[derive(Default, Debug)]
pub(crate) struct EndpointIndex {
    by_service: BTreeMap<(String, String), Vec<Endpoint>>,
}

impl EndpointIndex {
    /// Reads endpoint slices; for services without any, `Endpoints` that someone wrote by hand.
    pub(crate) fn new<'a>(
        slices: impl Iterator<Item = &'a Object>,
        endpoints: impl Iterator<Item = &'a Object>,
    ) -> EndpointIndex {
        let mut by_service: BTreeMap<(String, String), Vec<Endpoint>> = BTreeMap::new();
        for slice in slices {
            if let Some(service) = slice.label(SERVICE_NAME_LABEL) {
                let key = (slice.namespace().to_owned(), service.to_owned());
                by_service.entry(key).or_default().extend(of_slice(slice));
            }
        }
        let mut by_hand: BTreeMap<(String, String), Vec<Endpoint>> = BTreeMap::new();
        for object in endpoints {
            let key = (object.namespace().to_owned(), object.name().to_owned());
            if !by_service.contains_key(&key) {
                by_hand.insert(key, of_endpoints(object));
            }
        }
        by_service.append(&mut by_hand);
        for list in by_service.values_mut() {
            list.sort_by(|a, b| (a.address, &a.ports).cmp(&(b.address, &b.ports)));
            list.dedup();
        }
        EndpointIndex { by_service }
    }

    pub(crate) fn of(&self, namespace: &str, service: &str) -> &[Endpoint] {
        let key = (namespace.to_owned(), service.to_owned());
        self.by_service.get(&key).map_or(&[], Vec::as_slice)
    }
}

fn ports(list: &Value) -> Arc<[(String, String, u16)]> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|port| {
        let name = port["name"].as_str().unwrap_or_default().to_owned();
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        Some((name, protocol, port_number(&port["port"])?))
    })
    .collect()
}

fn endpoint(
    entry: &Value,
    address: &Value,
    ready: bool,
    ports: &Arc<[(String, String, u16)]>,
) -> Option<Endpoint> {
    Some(Endpoint {
        address: address.as_str()?.parse().ok()?,
        ready,
        hostname: entry["hostname"]
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_lowercase),
        node_name: entry["nodeName"].as_str().unwrap_or_default().to_owned(),
        ports: ports.clone(),
    })
}

fn of_slice(slice: &Object) -> Vec<Endpoint> {
    let null = Value::Null;
    let ports = ports(slice.0.get("ports").unwrap_or(&null));
    let entries = slice
        .0
        .get("endpoints")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    entries
        .flat_map(|entry| {
            // Not said: ready, as in Kubernetes.
            let ready = entry["conditions"]["ready"].as_bool().unwrap_or(true);
            let addresses = entry["addresses"].as_array().into_iter().flatten();
            addresses
                .filter_map(|address| endpoint(entry, address, ready, &ports))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn of_endpoints(object: &Object) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for subset in object
        .0
        .get("subsets")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let ports = ports(&subset["ports"]);
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let entries = subset[list].as_array().into_iter().flatten();
            all.extend(entries.filter_map(|entry| endpoint(entry, &entry["ip"], ready, &ports)));
        }
    }
    all
}
