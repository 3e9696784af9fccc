//! Ports of services that lead to another port of a pod, on the pod's own address: a Service has no address of its own,
//! so `port: 80, targetPort: 8080` must be answered by each pod on 80 too. Pure.

use std::collections::{BTreeMap, BTreeSet};

use schemas::Object;

use crate::endpoints::{protocol, selects, service_ports};
use crate::pod::DesiredPod;
use crate::ports::{PortRedirect, Protocol};

/// Computes the redirects of a pod from the services of its namespace. A port that a container of the pod declares is
/// the container's. Where two services want one port, the one that is first by name has it.
pub fn redirects(pod: &DesiredPod, services: &[&Object]) -> Vec<PortRedirect> {
    if pod.spec().host_network == Some(true) {
        return Vec::new();
    }
    let containers = pod
        .spec()
        .containers
        .iter()
        .chain(pod.spec().init_containers.iter().flatten());
    let declared: BTreeSet<(Protocol, i32)> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| Some((protocol(port.protocol.as_deref())?, port.container_port)))
        .collect();
    let mut services: Vec<&Object> = services
        .iter()
        .copied()
        .filter(|service| service.namespace() == pod.key.namespace && selects(service, &pod.object))
        .collect();
    services.sort_by_key(|service| service.name());
    let mut chosen = BTreeMap::new();
    for service in services {
        for port in service_ports(service) {
            let (Some(protocol), Some(to)) = (port.redirectable(), port.target_in(&pod.object)) else {
                continue;
            };
            if to != port.port && !declared.contains(&(protocol, i32::from(port.port))) {
                chosen.entry((protocol, port.port)).or_insert(to);
            }
        }
    }
    chosen
        .into_iter()
        .map(|((protocol, from), to)| PortRedirect { protocol, from, to })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn service(name: &str, ports: Value) -> Object {
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": { "selector": { "app": "web" }, "ports": ports },
        }))
    }

    fn check(services: &[Object], expected: &[(Protocol, u16, u16)]) {
        let pod = DesiredPod::read(Arc::new(object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "default", "uid": "u", "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "web", "ports": [
                { "name": "http", "containerPort": 8080 }, { "containerPort": 9000 },
                { "containerPort": 53, "protocol": "UDP" },
            ]}]},
        }))))
        .unwrap();
        let services: Vec<&Object> = services.iter().collect();
        let redirects: Vec<_> = redirects(&pod, &services)
            .iter()
            .map(|found| (found.protocol, found.from, found.to))
            .collect();
        assert_eq!(redirects, expected);
    }

    #[test]
    fn service_ports_lead_to_target_ports() {
        let tcp = Protocol::Tcp;
        check(
            &[service("a", json!([{ "port": 80, "targetPort": 8080 }]))],
            &[(tcp, 80, 8080)],
        );
        check(
            &[service("a", json!([{ "port": 80, "targetPort": "http" }]))],
            &[(tcp, 80, 8080)],
        );
        check(&[service("a", json!([{ "port": 8080 }]))], &[]);
        check(
            &[service("a", json!([{ "port": 80, "targetPort": "nothing" }]))],
            &[],
        );
    }

    #[test]
    fn a_declared_port_stays_the_containers() {
        check(
            &[service("a", json!([{ "port": 9000, "targetPort": 8080 }]))],
            &[],
        );
        let udp = json!([{ "port": 53, "targetPort": 8080 }]);
        check(&[service("a", udp)], &[(Protocol::Tcp, 53, 8080)]);
    }

    #[test]
    fn the_first_service_by_name_has_a_contested_port() {
        let services = [
            service("b", json!([{ "port": 80, "targetPort": 9000 }])),
            service("a", json!([{ "port": 80, "targetPort": 8080 }])),
        ];
        check(&services, &[(Protocol::Tcp, 80, 8080)]);
    }

    #[test]
    fn services_that_select_nothing_count_for_nothing() {
        let mut other = service("a", json!([{ "port": 80, "targetPort": 8080 }]));
        other.set(&["spec", "selector"], json!({ "app": "other" }));
        let mut none = service("b", json!([{ "port": 81, "targetPort": 8080 }]));
        none.set(&["spec", "selector"], json!({}));
        let mut external = service("c", json!([{ "port": 82, "targetPort": 8080 }]));
        external.set(&["spec", "type"], "ExternalName");
        check(&[other, none, external], &[]);
    }
}
