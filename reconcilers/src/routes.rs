//! Ingresses + services + endpoints → the route table of the ingress. [`routes`] is pure.
//!
//! Where two ingresses want the same host and path, the older has it, so that a newcomer takes nothing away.
//! Source of the rules: Kubernetes API, `networking.k8s.io/v1` Ingress.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::{Kind, Object};
use serde_json::{Value, json};
use store::{View, WatchScope};
use tokio::time::Instant;

use crate::controller::{Context, Next, ReconcileError, Reconciler, Trigger, rest_since};
use crate::endpoints::{EndpointIndex, service_ports};
use crate::ports::{Backend, BackendEndpoint, Cluster, Liveness, PathRoute, RouteSink, RouteTable};
use crate::zone::Lists;

/// What routes are computed from: views of the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteInput<'a> {
    pub ingresses: &'a [&'a Object],
    pub services: &'a [&'a Object],
    pub slices: &'a [&'a Object],
    /// Those of services without slices count.
    pub endpoints: &'a [&'a Object],
    /// This node's name: its endpoints are preferred.
    pub node_name: &'a str,
}

/// Computes the route table.
pub fn routes(input: &RouteInput<'_>) -> RouteTable {
    let mut ingresses = input.ingresses.to_vec();
    ingresses.sort_by_key(|ingress| {
        (
            ingress.str_at("/metadata/creationTimestamp"),
            ingress.namespace(),
            ingress.name(),
        )
    });
    let services = input
        .services
        .iter()
        .map(|service| ((service.namespace(), service.name()), *service));
    let mut builder = Builder {
        table: RouteTable::default(),
        taken: HashSet::new(),
        backends: HashMap::new(),
        services: services.collect(),
        index: EndpointIndex::new(input.slices.iter().copied(), input.endpoints.iter().copied()),
        node_name: input.node_name,
    };
    for ingress in ingresses {
        builder.ingress(ingress);
    }
    builder.table
}

struct Builder<'a> {
    table: RouteTable,
    /// Host, path, exact.
    taken: HashSet<(String, String, bool)>,
    backends: HashMap<String, Arc<Backend>>,
    services: HashMap<(&'a str, &'a str), &'a Object>,
    index: EndpointIndex,
    node_name: &'a str,
}

impl Builder<'_> {
    fn ingress(&mut self, ingress: &Object) {
        let namespace = ingress.namespace();
        let default = ingress
            .pointer("/spec/defaultBackend")
            .and_then(|backend| self.backend(namespace, backend));
        if self.table.default_backend.is_none() {
            self.table.default_backend.clone_from(&default);
        }
        let rules = ingress.pointer("/spec/rules").and_then(Value::as_array);
        for rule in rules.into_iter().flatten() {
            let host = rule["host"]
                .as_str()
                .unwrap_or_default()
                .trim_end_matches('.')
                .to_lowercase();
            let Some(paths) = rule["http"]["paths"].as_array() else {
                // A host without paths is served by the default backend.
                if let Some(default) = &default {
                    self.route(&host, "/", false, default.clone());
                }
                continue;
            };
            for entry in paths {
                let Some(backend) = self.backend(namespace, &entry["backend"]) else {
                    continue;
                };
                let exact = entry["pathType"] == "Exact";
                let path = entry["path"]
                    .as_str()
                    .filter(|path| !path.is_empty())
                    .unwrap_or("/");
                self.route(&host, path, exact, backend);
            }
        }
    }

    fn route(&mut self, host: &str, path: &str, exact: bool, backend: Arc<Backend>) {
        // `/shop/` and `/shop` are the same prefix: elements are compared, not characters.
        let path = match path.trim_end_matches('/') {
            _ if exact => path,
            "" => "/",
            trimmed => trimmed,
        };
        if !self.taken.insert((host.to_owned(), path.to_owned(), exact)) {
            return;
        }
        let list = match (host, host.strip_prefix("*.")) {
            ("", _) => &mut self.table.any_host,
            (_, Some(rest)) => self.table.wildcards.entry(rest.to_owned()).or_default(),
            (_, None) => self.table.hosts.entry(host.to_owned()).or_default(),
        };
        list.push(PathRoute {
            path: path.to_owned(),
            exact,
            backend,
        });
    }

    /// Finds the backend of a rule; None for one that names no service.
    fn backend(&mut self, namespace: &str, backend: &Value) -> Option<Arc<Backend>> {
        let service_name = backend["service"]["name"].as_str()?;
        let port = &backend["service"]["port"];
        let port = match (port["name"].as_str(), port["number"].as_u64()) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (_, Some(number)) => number.to_string(),
            _ => String::new(),
        };
        let name = format!("{namespace}/{service_name}:{port}");
        if let Some(known) = self.backends.get(&name) {
            return Some(known.clone());
        }
        let backend = Arc::new(Backend {
            name: name.clone(),
            endpoints: self.endpoints(namespace, service_name, &port),
        });
        self.backends.insert(name, backend.clone());
        Some(backend)
    }

    /// Returns the ready endpoints behind a port of a service; none if there is no such service or port.
    fn endpoints(&self, namespace: &str, service: &str, port: &str) -> Vec<BackendEndpoint> {
        let Some(service) = self.services.get(&(namespace, service)) else {
            return Vec::new();
        };
        let mut ports = service_ports(service).into_iter();
        let Some(wanted) = ports.find(|known| known.name == port || known.port.to_string() == port) else {
            return Vec::new();
        };
        let ready = self
            .index
            .of(namespace, service.name())
            .iter()
            .filter(|endpoint| endpoint.ready);
        let mut endpoints: Vec<BackendEndpoint> = ready
            .filter_map(|endpoint| {
                let mut ports = endpoint.ports.iter();
                // Slices name their ports as the service does; a port is matched by that name.
                let (_, _, number) =
                    ports.find(|(name, protocol, _)| *name == wanted.name && protocol == "TCP")?;
                Some(BackendEndpoint {
                    address: SocketAddr::new(endpoint.address, *number),
                    local: !self.node_name.is_empty() && endpoint.node_name == self.node_name,
                })
            })
            .collect();
        endpoints.dedup();
        endpoints
    }
}

/// Computes `status` of an ingress: every node that is alive and serves the ingress answers for it.
pub fn ingress_status(cluster: &Cluster) -> Value {
    let alive = cluster
        .nodes
        .values()
        .filter(|node| node.liveness == Liveness::Alive && node.facts.ingress);
    let mut addresses: Vec<_> = alive.filter_map(|node| node.facts.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let entries: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    json!({ "loadBalancer": { "ingress": entries } })
}

/// Keeps the route table of this node's ingress, if it has one, and what ingresses show as their addresses.
pub struct RouteReconciler {
    context: Context,
    node_name: String,
    sink: Option<Arc<dyn RouteSink>>,
    last: Mutex<Option<RouteTable>>,
    last_status: Mutex<Value>,
}

impl RouteReconciler {
    pub fn new(context: Context, node_name: String, sink: Option<Arc<dyn RouteSink>>) -> RouteReconciler {
        RouteReconciler {
            context,
            node_name,
            sink,
            last: Mutex::default(),
            last_status: Mutex::default(),
        }
    }
}

#[async_trait]
impl Reconciler for RouteReconciler {
    type Key = ();

    fn name(&self) -> &'static str {
        "routes"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Ingress, Kind::Service, Kind::EndpointSlice, Kind::Endpoints],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<()> {
        match trigger {
            Trigger::Store(_) | Trigger::Resync => vec![()],
            Trigger::Cluster(cluster) => {
                let status = ingress_status(cluster);
                let mut last = self.last_status.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = *last != status;
                *last = status;
                if changed { vec![()] } else { Vec::new() }
            }
            Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, _key: &()) -> Result<Next, ReconcileError> {
        let start = Instant::now();
        if let Some(sink) = &self.sink {
            self.publish_table(&**sink);
        }
        self.publish_status();
        rest_since(start).await;
        Ok(Next::Done)
    }
}

impl RouteReconciler {
    fn publish_table(&self, sink: &dyn RouteSink) {
        let lists = Lists::of(
            &self.context,
            &[Kind::Ingress, Kind::Service, Kind::EndpointSlice, Kind::Endpoints],
        );
        let table = routes(&RouteInput {
            ingresses: &lists.objects(Kind::Ingress),
            services: &lists.objects(Kind::Service),
            slices: &lists.objects(Kind::EndpointSlice),
            endpoints: &lists.objects(Kind::Endpoints),
            node_name: &self.node_name,
        });
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&table) {
            sink.set_routes(table.clone());
            *last = Some(table);
        }
    }

    fn publish_status(&self) {
        let status = ingress_status(&self.context.cluster.borrow());
        for View { key, object, .. } in self.context.store.views(Kind::Ingress, None) {
            self.context
                .show_checked(&key, &object, status.clone(), "ingress-controller");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use store::NodeId;

    use super::*;
    use crate::ports::{Moment, NodeFacts, NodeObservation};

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn ingress(name: &str, created: &str, spec: Value) -> Object {
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": { "name": name, "namespace": "default", "creationTimestamp": created }, "spec": spec,
        }))
    }

    fn rule(host: &str, paths: &[(&str, &str, &str)]) -> Value {
        let paths: Vec<Value> = paths
            .iter()
            .map(|(path, kind, service)| {
                json!({ "path": path, "pathType": kind,
                        "backend": { "service": { "name": service, "port": { "number": 80 } } } })
            })
            .collect();
        json!({ "host": host, "http": { "paths": paths } })
    }

    fn table(ingresses: &[Object]) -> RouteTable {
        let service = object(json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
        }));
        let slice = object(json!({
            "metadata": { "name": "web-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" } },
            "endpoints": [
                { "addresses": ["10.244.1.3"], "nodeName": "node1" },
                { "addresses": ["10.244.2.3"], "nodeName": "node2" },
                { "addresses": ["10.244.2.4"], "nodeName": "node2", "conditions": { "ready": false } },
            ],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        }));
        let ingresses: Vec<&Object> = ingresses.iter().collect();
        routes(&RouteInput {
            ingresses: &ingresses,
            services: &[&service],
            slices: &[&slice],
            endpoints: &[],
            node_name: "node2",
        })
    }

    fn paths(list: &[PathRoute]) -> Vec<(&str, bool, &str)> {
        list.iter()
            .map(|route| (route.path.as_str(), route.exact, route.backend.name.as_str()))
            .collect()
    }

    #[test]
    fn an_ingress_is_reached_at_the_live_nodes_that_serve_it() {
        let node = |number: u8, liveness, ingress| {
            let facts = NodeFacts {
                address: Some([192, 0, 2, number].into()),
                ingress,
                ..NodeFacts::default()
            };
            let node = NodeObservation {
                liveness,
                since: Moment::default(),
                in_sync: true,
                facts,
                pods: BTreeMap::new(),
            };
            (NodeId(number.to_string()), Arc::new(node))
        };
        let cluster = Cluster {
            me: NodeId("2".into()),
            nodes: [
                node(1, Liveness::Alive, true),
                node(2, Liveness::Alive, false),
                node(3, Liveness::Dead, true),
            ]
            .into(),
        };
        assert_eq!(
            ingress_status(&cluster),
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } })
        );
    }

    #[test]
    fn backends_have_the_ready_endpoints() {
        let spec = json!({ "rules": [rule("Shop.example.com", &[("/", "Prefix", "web")])] });
        let table = table(&[ingress("a", "2026-01-01T00:00:00Z", spec)]);
        let endpoints = &table.hosts["shop.example.com"][0].backend.endpoints;
        let expected = [("10.244.1.3:8080", false), ("10.244.2.3:8080", true)];
        let expected = expected.map(|(address, local)| BackendEndpoint {
            address: address.parse().unwrap(),
            local,
        });
        assert_eq!(endpoints.as_slice(), expected);
    }

    #[test]
    fn named_and_unknown_ports_are_told_apart() {
        for (port, count) in [
            (json!({ "name": "http" }), 2),
            (json!({ "number": 80 }), 2),
            (json!({ "number": 8080 }), 0),
            (json!({ "name": "grpc" }), 0),
        ] {
            let backend = json!({ "service": { "name": "web", "port": port } });
            let table = table(&[ingress("a", "", json!({ "defaultBackend": backend }))]);
            assert_eq!(table.default_backend.unwrap().endpoints.len(), count, "{port}");
        }
        let missing = json!({ "rules": [rule("", &[("/", "Prefix", "missing")])] });
        let table = table(&[ingress("a", "", missing)]);
        assert_eq!(table.any_host[0].backend.name, "default/missing:80");
        assert!(table.any_host[0].backend.endpoints.is_empty(), "503, not 404");
    }

    #[test]
    fn of_equal_paths_the_first_stays() {
        let spec = json!({ "rules": [rule("*.example.com", &[
            ("/", "Prefix", "web"), ("/shop/", "Prefix", "web"), ("/shop", "Exact", "web"),
            ("/shop/cart", "ImplementationSpecific", "web"), ("", "Prefix", "other"),
        ])] });
        let table = table(&[ingress("a", "", spec)]);
        let web = "default/web:80";
        let expected = [
            ("/", false, web),
            ("/shop", false, web),
            ("/shop", true, web),
            ("/shop/cart", false, web),
        ];
        assert_eq!(paths(&table.wildcards["example.com"]), expected);
    }

    #[test]
    fn the_older_ingress_keeps_its_path() {
        let spec = |service: &str| json!({ "rules": [rule("x", &[("/", "Prefix", service)])] });
        let older = ingress("z", "2026-01-01T00:00:00Z", spec("web"));
        let newer = ingress("a", "2026-02-01T00:00:00Z", spec("other"));
        for order in [[older.clone(), newer.clone()], [newer, older]] {
            let table = table(&order);
            assert_eq!(paths(&table.hosts["x"]), [("/", false, "default/web:80")]);
        }
    }

    #[test]
    fn a_host_without_paths_has_the_default_backend() {
        let spec = json!({
            "defaultBackend": { "service": { "name": "web", "port": { "number": 80 } } },
            "rules": [{ "host": "x" }],
        });
        let table = table(&[ingress("a", "", spec)]);
        assert_eq!(paths(&table.hosts["x"]), [("/", false, "default/web:80")]);
    }
}
