//! This node's controllers over a real store, a fake runtime and a fake network: from a document to a name and a route.

use futures::future::join_all;
use serde_json::{Value, json};
use store::{MemoryDisk, NodeId, OpenOptions, Via};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::controller;
use crate::fakes::network::FakeNetwork;
use crate::fakes::runtime::FakeRuntime;
use crate::fakes::sinks::{FakeRoutes, FakeZone};
use crate::fakes::{FakeAnnouncer, FakeClock, FakeEvents};
use crate::pod::NetworkProber;
use crate::ports::{
    Cluster, Container, ContainerSpec, Liveness, NodeFacts, NodeObservation, PullPolicy, labels,
};
use crate::routes::RouteReconciler;
use crate::service::ServiceReconciler;
use crate::zone::ZoneReconciler;

/// How long a state may take; thousands of times what it takes.
const DEADLINE: Duration = Duration::from_secs(20);

struct Node {
    store: Store,
    cluster: watch::Sender<Arc<Cluster>>,
    context: Context,
    clock: Arc<FakeClock>,
    runtime: Arc<FakeRuntime>,
    network: Arc<FakeNetwork>,
    announcer: Arc<FakeAnnouncer>,
    zone: Arc<FakeZone>,
    routes: Arc<FakeRoutes>,
    data_dir: tempfile::TempDir,
    shutdown: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

impl Node {
    async fn new() -> Node {
        let id = NodeId("1".repeat(64));
        let options = OpenOptions {
            cluster_id: "cluster-1".to_owned(),
            node: id.clone(),
            seal_key: [7; 32],
        };
        let store = Store::open_in_memory(MemoryDisk::default(), options).unwrap();
        let clock = Arc::new(FakeClock::default());
        let runtime = Arc::new(FakeRuntime::new(clock.clone()));
        let network = Arc::new(FakeNetwork::default());
        network
            .set_range("10.244.0.0/16".parse().unwrap(), "10.244.1.0/24".parse().unwrap())
            .await
            .unwrap();
        let (cluster, receiver) = watch::channel(Arc::new(cluster(Liveness::Alive)));
        let context = Context {
            store: store.clone(),
            cluster: receiver,
            clock: clock.clone(),
            events: Arc::new(FakeEvents::default()),
            node: id,
            faults: Arc::default(),
        };
        Node {
            store,
            cluster,
            context,
            clock,
            runtime,
            network,
            announcer: Arc::default(),
            zone: Arc::default(),
            routes: Arc::default(),
            data_dir: tempfile::tempdir().unwrap(),
            shutdown: CancellationToken::new(),
            running: Vec::new(),
        }
    }

    fn pods(&self) -> PodReconciler {
        let settings = NodeSettings {
            name: "node1".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            cluster_id: "cluster-1".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            data_dir: self.data_dir.path().to_owned(),
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
        };
        let adapters = PodAdapters {
            runtime: self.runtime.clone(),
            network: self.network.clone(),
            announcer: self.announcer.clone(),
            prober: Arc::new(NetworkProber),
        };
        PodReconciler::new(&self.context, adapters, settings)
    }

    /// Starts the agent's controllers of this crate.
    async fn start(&mut self) {
        self.shutdown = CancellationToken::new();
        let context = || self.context.clone();
        let pods = Arc::new(self.pods());
        let events = pods.prepare().await.unwrap();
        let services = ServiceReconciler::new(context());
        let zone = ZoneReconciler::new(context(), "cluster.local".to_owned(), self.zone.clone());
        let routes = RouteReconciler::new(context(), "node1".to_owned(), Some(self.routes.clone()));
        let stop = || self.shutdown.clone();
        let settled = || oneshot::channel().0;
        self.running = vec![
            tokio::spawn(controller::run(
                pods.clone(),
                context(),
                Some(events),
                WORKERS,
                settled(),
                stop(),
            )),
            tokio::spawn(controller::run(
                Arc::new(services),
                context(),
                None,
                4,
                settled(),
                stop(),
            )),
            tokio::spawn(controller::run(
                Arc::new(zone),
                context(),
                None,
                1,
                settled(),
                stop(),
            )),
            tokio::spawn(controller::run(
                Arc::new(routes),
                context(),
                None,
                1,
                settled(),
                stop(),
            )),
        ];
        pods.first_pass().await;
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        join_all(self.running.drain(..)).await;
    }

    /// Waits until `seen` gives something, laying announced statuses over the pods meanwhile, as the agent does.
    async fn wait_for<T>(&self, what: &str, seen: impl Fn(&Node) -> Option<T>) -> T {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let announced = self.announcer.pods();
            for view in self.store.list(Kind::Pod, None).items {
                if let Some(status) = announced.get(view.object.uid()) {
                    let mut shown = Object::default();
                    shown.set(&["status"], status.clone());
                    self.store.project(&view.key, Some(shown));
                }
            }
            if let Some(seen) = seen(self) {
                return seen;
            }
            let late = tokio::time::Instant::now() >= end;
            assert!(
                !late,
                "{what}: {:?} {:?}",
                self.runtime.all(),
                self.announcer.pods()
            );
            self.clock.advance(Duration::from_millis(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn create(&self, object: Value) -> View {
        self.store
            .create(Object::from_value(object).unwrap(), author())
            .await
            .unwrap()
    }

    async fn edit(&self, view: &View, path: &[&str], value: impl Into<Value>) {
        let value = value.into();
        let change = |object: &Object| -> Result<Object, WriteError> {
            let mut object = object.clone();
            object.set(path, value.clone());
            Ok(object)
        };
        self.store
            .update(&view.key, &Precondition::default(), author(), change)
            .await
            .unwrap();
    }

    fn running(&self) -> Vec<Container> {
        self.runtime.running()
    }
}

fn author() -> Author {
    Author {
        manager: "test".to_owned(),
        user: String::new(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

/// This node, and another one.
fn cluster(other: Liveness) -> Cluster {
    let node = |name: &str, liveness| {
        let facts = NodeFacts {
            name: name.to_owned(),
            address: Some("192.0.2.1".parse().unwrap()),
            ..NodeFacts::default()
        };
        Arc::new(NodeObservation {
            liveness,
            since: Default::default(),
            in_sync: true,
            facts,
            pods: Default::default(),
        })
    };
    let me = NodeId("1".repeat(64));
    let other = (NodeId("2".repeat(64)), node("node2", other));
    Cluster {
        nodes: [(me.clone(), node("node1", Liveness::Alive)), other].into(),
        me,
    }
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" } },
        "spec": { "nodeName": node, "containers": [{
            "name": "c", "image": "web:1", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    })
}

/// A container of ours that an earlier agent left running.
async fn left_behind(node: &Node, name: &str, uid: &str) {
    let labels = [
        (labels::POD_UID, uid),
        (labels::POD_NAMESPACE, "default"),
        (labels::POD_NAME, name),
        (labels::CONTAINER_NAME, "c"),
        (labels::RESTART_COUNT, "0"),
    ];
    let spec = ContainerSpec {
        name: format!("{name}-{uid}"),
        image: "web:1".to_owned(),
        labels: labels
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into(),
        ..ContainerSpec::default()
    };
    node.runtime
        .ensure_image("web:1", PullPolicy::IfNotPresent, &|| ())
        .await
        .unwrap();
    let id = node.runtime.create(&spec).await.unwrap();
    node.runtime.start(&id).await.unwrap();
    node.network.attach(uid, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_a_container_a_name_and_a_route() {
    let mut node = Node::new().await;
    node.start().await;
    node.create(service()).await;
    node.create(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "rules": [{ "host": "web.example", "http": { "paths": [{ "path": "/", "pathType": "Prefix",
            "backend": { "service": { "name": "web", "port": { "number": 80 } } } }] } }] },
    }))
    .await;
    let view = node.create(pod("web-1", "node1")).await;
    node.create(pod("web-2", "node2")).await;

    let address = node
        .wait_for("a name", |node| {
            let zone = node.zone.zone();
            zone.names
                .get("web.default.svc.cluster.local")?
                .addresses
                .first()
                .copied()
        })
        .await;
    assert_eq!(node.running().len(), 1, "the other pod is not ours");
    let endpoint = node
        .wait_for("a route", |node| {
            let routes = node.routes.routes();
            routes
                .hosts
                .get("web.example")?
                .first()?
                .backend
                .endpoints
                .first()
                .cloned()
        })
        .await;
    assert_eq!(
        (endpoint.address.ip(), endpoint.address.port(), endpoint.local),
        (address, 8080, true)
    );
    let redirects = node.wait_for("a redirect", |node| {
        node.network
            .redirects(view.object.uid())
            .filter(|list| !list.is_empty())
    });
    assert_eq!(
        redirects
            .await
            .iter()
            .map(|found| (found.from, found.to))
            .collect::<Vec<_>>(),
        [(80, 8080)]
    );

    node.edit(&view, &["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z")
        .await;
    node.wait_for("the last step", |node| {
        node.store.get(&view.key).is_none().then_some(())
    })
    .await;
    assert_eq!(node.runtime.all(), []);
    node.wait_for("no name", |node| {
        node.zone.zone().names["web.default.svc.cluster.local"]
            .addresses
            .is_empty()
            .then_some(())
    })
    .await;
    node.wait_for("503", |node| {
        node.routes.routes().hosts["web.example"][0]
            .backend
            .endpoints
            .is_empty()
            .then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_dead_node_are_no_endpoints_and_come_back_with_it() {
    let mut node = Node::new().await;
    node.start().await;
    node.create(service()).await;
    let view = node.create(pod("web-2", "node2")).await;
    let mut shown = Object::default();
    shown.set(
        &["status"],
        json!({ "podIP": "10.244.2.2", "conditions": [{ "type": "Ready", "status": "True" }] }),
    );
    node.store.project(&view.key, Some(shown));
    for (liveness, count) in [
        (Liveness::Alive, 1),
        (Liveness::Dead, 0),
        (Liveness::AgentDown, 1),
    ] {
        node.cluster.send_replace(Arc::new(cluster(liveness)));
        node.wait_for(&format!("{count} addresses with {liveness:?}"), |node| {
            let zone = node.zone.zone();
            let records = zone.names.get("web.default.svc.cluster.local")?;
            (records.addresses.len() == count).then_some(())
        })
        .await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absence_from_the_store_kills_nothing_and_a_tombstone_does() {
    let mut node = Node::new().await;
    let removed = node.create(pod("removed", "node1")).await;
    node.store
        .remove(&removed.key, &Precondition::default(), author())
        .await
        .unwrap();
    let moved = node.create(pod("moved", "node2")).await;
    let replaced = node.create(pod("replaced", "node1")).await;
    node.store
        .remove(&replaced.key, &Precondition::default(), author())
        .await
        .unwrap();
    node.create(pod("replaced", "node2")).await;

    left_behind(&node, "unknown", "uid-unknown").await;
    left_behind(&node, "removed", removed.object.uid()).await;
    left_behind(&node, "moved", moved.object.uid()).await;
    left_behind(&node, "replaced", replaced.object.uid()).await;
    node.network.attach("uid-leaked", &[]).await.unwrap();

    node.start().await;
    node.wait_for("one container", |node| {
        (node.runtime.all().len() == 1).then_some(())
    })
    .await;
    assert_eq!(node.running()[0].labels[labels::POD_UID], "uid-unknown");
    node.wait_for("one address", |node| {
        let attached = futures::executor::block_on(node.network.attached()).unwrap();
        (attached.len() == 1 && attached.contains_key("uid-unknown")).then_some(())
    })
    .await;
    assert!(
        node.store.get(&moved.key).is_some(),
        "a pod that moved is not ours to remove"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_not_valid_is_kept_as_it_last_was() {
    let mut node = Node::new().await;
    node.start().await;
    let view = node.create(pod("web", "node1")).await;
    let images = |node: &Node| -> Vec<String> {
        let all = node.running().into_iter();
        all.map(|container| container.image).collect()
    };
    let runs = async |node: &Node, image: &str| {
        let what = format!("{image} to run alone");
        node.wait_for(&what, |node| (images(node) == [image]).then_some(()))
            .await;
    };
    runs(&node, "web:1").await;
    node.edit(
        &view,
        &["spec", "containers"],
        json!([{ "name": "c", "image": "web:2" }]),
    )
    .await;
    runs(&node, "web:2").await;

    // A container without an image is not valid.
    let merged = json!([{ "name": "c", "image": "web:3" }, { "name": "d", "image": "" }]);
    node.edit(&view, &["spec", "containers"], merged).await;
    let mut never = pod("never", "node1");
    never["spec"]["containers"][0]["image"] = "".into();
    let never = node.create(never).await;
    // It is still restarted, which shows that this controller has seen the edit.
    for _ in 0..2 {
        let before = node.running().remove(0).id;
        node.runtime.exit(&before, 1);
        node.wait_for("another container", |node| {
            let running = node.running();
            (running.len() == 1 && running[0].id != before).then_some(())
        })
        .await;
        assert_eq!(images(&node), ["web:2"]);
    }
    assert!(node.runtime.all().iter().all(|container| {
        container.labels[labels::POD_UID] == view.object.uid() && container.image != "web:3"
    }));
    // An agent that starts anew goes by the history.
    node.stop().await;
    node.start().await;
    runs(&node, "web:2").await;

    node.edit(
        &view,
        &["spec", "containers"],
        json!([{ "name": "c", "image": "web:4" }]),
    )
    .await;
    node.edit(&never, &["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z")
        .await;
    runs(&node, "web:4").await;
    node.wait_for("the last step", |node| {
        node.store.get(&never.key).is_none().then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_pods_start_once_with_few_lists_and_survive_an_agent() {
    const PODS: usize = 50;
    let mut node = Node::new().await;
    node.start().await;
    let before = node.runtime.calls();
    join_all((0..PODS).map(|number| node.create(pod(&format!("web-{number}"), "node1")))).await;
    node.wait_for("all ready", |node| {
        let ready = |status: &Value| status.pointer("/conditions/1/status") == Some(&json!("True"));
        (node
            .announcer
            .pods()
            .values()
            .filter(|status| ready(status))
            .count()
            == PODS)
            .then_some(())
    })
    .await;
    let calls = node.runtime.calls();
    assert_eq!(calls.create - before.create, PODS);
    assert!(
        calls.list - before.list < PODS,
        "{} lists for {PODS} pods",
        calls.list - before.list
    );

    let mut ran: Vec<_> = node.running().into_iter().map(|container| container.id).collect();
    node.stop().await;
    node.start().await;
    let killed = ran.pop().unwrap();
    node.runtime.exit(&killed, 137);
    node.wait_for("it is back", |node| (node.running().len() == PODS).then_some(()))
        .await;
    let runs: Vec<_> = node.running().into_iter().map(|container| container.id).collect();
    assert!(ran.iter().all(|id| runs.contains(id)), "adopted, not restarted");
    node.stop().await;
}
