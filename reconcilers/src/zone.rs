//! Services + endpoints → the zone of the cluster's domain. [`zone`] is pure.
//!
//! Names as in the Kubernetes DNS specification (1.1.0), and each service also without `svc`. That the names above them exist
//! too (`svc.cluster.local`, `_tcp.web.default…`) is for the server to know.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{Kind, Object, ObjectKey};
use serde::Deserialize;
use store::{WatchEvent, WatchScope};
use tokio::time::Instant;

use crate::controller::{Context, Next, ReconcileError, Reconciler, Trigger, rest_since};
use crate::endpoints::{EndpointIndex, is_external_name};
use crate::ports::{DnsWhitelist, Records, ServiceRecord, Zone, ZoneSink};

/// The only object of [`Kind::DnsWhitelist`] that counts.
pub const WHITELIST_NAME: &str = "cluster";

/// What the zone is computed from: views of the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZoneInput<'a> {
    pub services: &'a [&'a Object],
    pub slices: &'a [&'a Object],
    /// Those of services without slices count.
    pub endpoints: &'a [&'a Object],
    pub pods: &'a [&'a Object],
}

/// Computes the zone of `domain`.
pub fn zone(domain: &str, input: &ZoneInput<'_>) -> Zone {
    let domain = domain.trim_matches('.').to_lowercase();
    let index = EndpointIndex::new(input.slices.iter().copied(), input.endpoints.iter().copied());
    let mut builder = Builder {
        zone: Zone {
            domain,
            ..Zone::default()
        },
    };
    for service in input.services {
        builder.service(service, &index);
    }
    for pod in input.pods {
        builder.pod(pod);
    }
    builder.finish()
}

struct Builder {
    zone: Zone,
}

impl Builder {
    fn records(&mut self, name: &str) -> &mut Records {
        self.zone.names.entry(name.to_owned()).or_default()
    }

    fn service(&mut self, service: &Object, index: &EndpointIndex) {
        let (namespace, name) = (service.namespace(), service.name());
        let domain = self.zone.domain.clone();
        let full = format!("{name}.{namespace}.svc.{domain}").to_lowercase();
        let mut forms = vec![full.clone()];
        // In namespaces of these names the short form would be a name of another kind.
        if !matches!(namespace, "svc" | "pod") {
            forms.push(format!("{name}.{namespace}.{domain}").to_lowercase());
        }
        if is_external_name(service) {
            let alias = service
                .str_at("/spec/externalName")
                .trim_end_matches('.')
                .to_lowercase();
            for form in &forms {
                self.records(form).alias = Some(alias.clone()).filter(|alias| !alias.is_empty());
            }
            return;
        }
        for form in &forms {
            self.records(form);
        }
        for endpoint in index.of(namespace, name).iter().filter(|endpoint| endpoint.ready) {
            let label = endpoint
                .hostname
                .clone()
                .unwrap_or_else(|| dashed(endpoint.address));
            let target = format!("{label}.{full}");
            self.records(&target).addresses.push(endpoint.address);
            self.zone
                .reverse
                .entry(endpoint.address)
                .or_default()
                .push(target.clone());
            for form in &forms {
                self.records(form).addresses.push(endpoint.address);
                for (port_name, protocol, port) in endpoint.ports.iter() {
                    let record = ServiceRecord {
                        port: *port,
                        target: target.clone(),
                    };
                    self.records(form).services.push(record.clone());
                    if !port_name.is_empty() {
                        let named = format!("_{port_name}._{protocol}.{form}").to_lowercase();
                        self.records(&named).services.push(record);
                    }
                }
            }
        }
    }

    fn pod(&mut self, pod: &Object) {
        if matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed") {
            return;
        }
        let Ok(address) = pod.str_at("/status/podIP").parse::<IpAddr>() else {
            return;
        };
        let name = format!("{}.{}.pod.{}", dashed(address), pod.namespace(), self.zone.domain);
        self.records(&name.to_lowercase()).addresses.push(address);
    }

    /// Sorts, so that equal input gives an equal zone.
    fn finish(mut self) -> Zone {
        for records in self.zone.names.values_mut() {
            records.addresses.sort_unstable();
            records.addresses.dedup();
            records
                .services
                .sort_by(|a, b| (&a.target, a.port).cmp(&(&b.target, b.port)));
            records.services.dedup();
        }
        for names in self.zone.reverse.values_mut() {
            names.sort_unstable();
            names.dedup();
        }
        self.zone
    }
}

/// `10.244.1.3` → `10-244-1-3`, as Kubernetes names pods.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// Reads the whitelist; without an object every name is allowed.
pub fn whitelist(object: Option<&Object>) -> DnsWhitelist {
    let spec = object.and_then(|object| object.pointer("/spec"));
    let read = spec.and_then(|spec| DnsWhitelist::deserialize(spec).ok());
    let mut whitelist = match (read, spec) {
        (Some(whitelist), _) => whitelist,
        (None, None) => DnsWhitelist::default(),
        // What cannot be read must not open what was closed.
        (None, Some(_)) => DnsWhitelist {
            enabled: true,
            hosts: Vec::new(),
        },
    };
    for host in &mut whitelist.hosts {
        *host = host.trim().trim_matches('.').to_lowercase();
    }
    whitelist.hosts.retain(|host| !host.is_empty());
    whitelist.hosts.sort_unstable();
    whitelist.hosts.dedup();
    whitelist
}

/// Keeps the zone and the whitelist of this node's DNS server.
pub struct ZoneReconciler {
    context: Context,
    domain: String,
    sink: Arc<dyn ZoneSink>,
    last: Mutex<Option<(Zone, DnsWhitelist)>>,
}

impl ZoneReconciler {
    pub fn new(context: Context, domain: String, sink: Arc<dyn ZoneSink>) -> ZoneReconciler {
        ZoneReconciler {
            context,
            domain,
            sink,
            last: Mutex::default(),
        }
    }
}

/// Tells whether a change of a pod changes its name in the zone.
fn moves_pod(previous: &Object, current: &Object) -> bool {
    ["/status/podIP", "/status/phase"]
        .iter()
        .any(|pointer| previous.pointer(pointer) != current.pointer(pointer))
}

#[async_trait]
impl Reconciler for ZoneReconciler {
    type Key = ();

    fn name(&self) -> &'static str {
        "zone"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![
                Kind::Service,
                Kind::EndpointSlice,
                Kind::Endpoints,
                Kind::Pod,
                Kind::DnsWhitelist,
            ],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<()> {
        match trigger {
            Trigger::Store(WatchEvent::Put {
                view,
                previous: Some(previous),
            }) if view.key.kind == Kind::Pod && !moves_pod(previous, &view.object) => Vec::new(),
            Trigger::Store(_) | Trigger::Resync => vec![()],
            Trigger::Cluster(_) | Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, _key: &()) -> Result<Next, ReconcileError> {
        let start = Instant::now();
        self.publish();
        rest_since(start).await;
        Ok(Next::Done)
    }
}

impl ZoneReconciler {
    fn publish(&self) {
        let lists = Lists::of(
            &self.context,
            &[Kind::Service, Kind::EndpointSlice, Kind::Endpoints, Kind::Pod],
        );
        let zone = zone(
            &self.domain,
            &ZoneInput {
                services: &lists.objects(Kind::Service),
                slices: &lists.objects(Kind::EndpointSlice),
                endpoints: &lists.objects(Kind::Endpoints),
                pods: &lists.objects(Kind::Pod),
            },
        );
        let allowed = self
            .context
            .store
            .get(&ObjectKey::cluster(Kind::DnsWhitelist, WHITELIST_NAME));
        let whitelist = whitelist(allowed.as_ref().map(|view| &*view.object));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (last_zone, last_whitelist) = last
            .as_ref()
            .map_or((None, None), |(zone, list)| (Some(zone), Some(list)));
        if last_zone != Some(&zone) {
            self.sink.set_zone(zone.clone());
        }
        if last_whitelist != Some(&whitelist) {
            self.sink.set_whitelist(whitelist.clone());
        }
        *last = Some((zone, whitelist));
    }
}

/// Lists of several kinds, held while objects are borrowed from them.
pub(crate) struct Lists(HashMap<Kind, Vec<Arc<Object>>>);

impl Lists {
    pub(crate) fn of(context: &Context, kinds: &[Kind]) -> Lists {
        let list = |kind: &Kind| {
            let objects = match kind {
                // What users write, and can be invalid once it is merged.
                Kind::Service | Kind::Ingress | Kind::EndpointSlice | Kind::Endpoints => {
                    context.settled_objects(*kind, None)
                }
                _ => context.store.views(*kind, None).map(|view| view.object).collect(),
            };
            (*kind, objects)
        };
        Lists(kinds.iter().map(list).collect())
    }

    pub(crate) fn objects(&self, kind: Kind) -> Vec<&Object> {
        self.0
            .get(&kind)
            .into_iter()
            .flatten()
            .map(|object| &**object)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn service(name: &str, namespace: &str) -> Object {
        object(json!({ "metadata": { "name": name, "namespace": namespace }, "spec": {} }))
    }

    fn slice(service: &str, endpoints: Value) -> Object {
        object(json!({
            "metadata": { "name": "s", "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        }))
    }

    fn of(services: &[Object], slices: &[Object]) -> Zone {
        let (services, slices): (Vec<_>, Vec<_>) = (services.iter().collect(), slices.iter().collect());
        let input = ZoneInput {
            services: &services,
            slices: &slices,
            ..ZoneInput::default()
        };
        zone("Cluster.Local.", &input)
    }

    fn web() -> Zone {
        let ready = json!([
            { "addresses": ["10.244.1.3"], "conditions": { "ready": true } },
            { "addresses": ["10.244.2.4"], "hostname": "Web-0" },
            { "addresses": ["10.244.3.5"], "conditions": { "ready": false } },
        ]);
        of(
            &[service("web", "default"), service("empty", "default")],
            &[slice("web", ready)],
        )
    }

    #[test]
    fn both_forms_have_the_ready_addresses() {
        let zone = web();
        let expected: Vec<IpAddr> = vec!["10.244.1.3".parse().unwrap(), "10.244.2.4".parse().unwrap()];
        for name in ["web.default.svc.cluster.local", "web.default.cluster.local"] {
            assert_eq!(zone.names[name].addresses, expected, "{name}");
        }
        assert!(
            !zone.reverse.contains_key(&"10.244.3.5".parse().unwrap()),
            "not ready"
        );
    }

    #[test]
    fn srv_names_lead_to_target_ports() {
        let zone = web();
        let target = |port, target: &str| ServiceRecord {
            port,
            target: format!("{target}.web.default.svc.cluster.local"),
        };
        for name in [
            "web.default.svc.cluster.local",
            "web.default.cluster.local",
            "_http._tcp.web.default.svc.cluster.local",
        ] {
            assert_eq!(
                zone.names[name].services,
                [target(8080, "10-244-1-3"), target(8080, "web-0")],
                "{name}"
            );
        }
        for record in &zone.names["web.default.svc.cluster.local"].services {
            assert!(
                !zone.names[&record.target].addresses.is_empty(),
                "{}",
                record.target
            );
        }
        let reverse = &zone.reverse[&"10.244.2.4".parse().unwrap()];
        assert_eq!(reverse, &["web-0.web.default.svc.cluster.local"]);
    }

    #[test]
    fn a_service_without_endpoints_has_a_name_without_data() {
        let zone = web();
        let empty = zone.names.get("empty.default.svc.cluster.local");
        assert_eq!(empty, Some(&Records::default()));
        assert!(!zone.names.contains_key("other.default.svc.cluster.local"));
    }

    #[test]
    fn external_names_are_aliases() {
        let mut external = service("db", "default");
        external.set(
            &["spec"],
            json!({ "type": "ExternalName", "externalName": "DB.example.com." }),
        );
        let zone = of(&[external], &[]);
        let alias = zone.names["db.default.svc.cluster.local"].alias.as_deref();
        assert_eq!(alias, Some("db.example.com"));
    }

    #[test]
    fn endpoints_by_hand_count_without_slices() {
        let hand = object(json!({
            "metadata": { "name": "legacy", "namespace": "default" },
            "subsets": [{ "addresses": [{ "ip": "192.0.2.7" }], "notReadyAddresses": [{ "ip": "192.0.2.8" }],
                          "ports": [{ "port": 5432 }] }],
        }));
        let legacy = service("legacy", "default");
        let input = ZoneInput {
            services: &[&legacy],
            endpoints: &[&hand],
            ..ZoneInput::default()
        };
        let zone = zone("cluster.local", &input);
        let records = &zone.names["legacy.default.svc.cluster.local"];
        assert_eq!(records.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(records.services[0].port, 5432);
    }

    #[test]
    fn pods_have_names_by_address() {
        let pod = object(json!({ "metadata": { "name": "p", "namespace": "default" },
                                 "status": { "podIP": "10.244.1.3" } }));
        let input = ZoneInput {
            pods: &[&pod],
            ..ZoneInput::default()
        };
        let zone = zone("cluster.local", &input);
        assert_eq!(
            zone.names["10-244-1-3.default.pod.cluster.local"].addresses.len(),
            1
        );
    }

    #[test]
    fn a_whitelist_that_cannot_be_read_allows_nothing() {
        assert!(!whitelist(None).enabled);
        let broken = object(json!({ "spec": { "enabled": "maybe" } }));
        assert_eq!(
            whitelist(Some(&broken)),
            DnsWhitelist {
                enabled: true,
                hosts: vec![]
            }
        );
        let good =
            object(json!({ "spec": { "enabled": true, "hosts": ["Example.com.", " example.com", ""] } }));
        assert_eq!(whitelist(Some(&good)).hosts, ["example.com"]);
    }
}
