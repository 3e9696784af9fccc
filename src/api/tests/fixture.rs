//! One node's API in a temporary directory; other nodes are other fixtures, reached through an in-memory relay.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use reconcilers::fakes::runtime as fake;
use reconcilers::ports::{
    Clock, Cluster, Container, ContainerId, ContainerRuntime, ContainerSpec, ContainerState, Duplex,
    Liveness, LogOptions, Moment, NodeFacts, NodeObservation, PortError, PullPolicy, Session, SessionStreams,
    Usage,
};
use serde_json::Value;
use store::{MemoryDisk, NodeId, OpenOptions, Revision, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::api::{ApiState, BackupSource, Build, Events, Sessions, ensure_namespaces, router};
use crate::backup::Identity;
use crate::caller::Caller;
use crate::relay::{Relay, RelayError};

pub(super) const NOW: i64 = 1_800_000_000;

pub(super) struct ManualClock(AtomicI64);

impl ManualClock {
    pub(super) fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        Moment(Duration::from_secs(self.0.load(Ordering::SeqCst).unsigned_abs()))
    }

    fn unix_seconds(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Hands requests to the routers of other fixtures, as the peer port does.
#[derive(Default)]
pub(super) struct Peers {
    routers: Mutex<HashMap<NodeId, Router>>,
    /// What was sent to other nodes: method and headers.
    pub(super) sent: Mutex<Vec<(Method, HeaderMap)>>,
}

impl Peers {
    pub(super) fn add(&self, api: &Api) {
        self.routers
            .lock()
            .unwrap()
            .insert(api.state.node.clone(), api.router.clone());
    }

    pub(super) fn forget(&self, api: &Api) {
        self.routers.lock().unwrap().remove(&api.state.node);
    }
}

#[async_trait]
impl Relay for Peers {
    async fn send(&self, node: &NodeId, mut request: Request<Body>) -> Result<Response<Body>, RelayError> {
        let sent = (request.method().clone(), request.headers().clone());
        self.sent.lock().unwrap().push(sent);
        let router = self.routers.lock().unwrap().get(node).cloned();
        let router = router.ok_or_else(|| RelayError::Unknown(node.clone()))?;
        request
            .extensions_mut()
            .insert(Caller::Peer(NodeId("relaying".into())));
        Ok(router
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {}))
    }
}

/// What keeps half a core busy, and has since the epoch.
fn half_a_core() -> Usage {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Even, so that half of it is exact.
    let unix_nanos = now.as_nanos() as u64 & !1;
    Usage {
        unix_nanos,
        cpu_nanos: unix_nanos / 2,
        memory_bytes: 24 << 20,
    }
}

/// Containers that exist in a list alone, each with a text as its log.
#[derive(Default)]
pub(super) struct Containers(pub(super) Mutex<Vec<(Container, &'static str)>>);

impl Containers {
    fn running(&self, id: &ContainerId) -> Result<String, PortError> {
        let containers = self.0.lock().unwrap();
        let found = containers.iter().find(|(container, _)| container.id == *id);
        let (container, _) = found.ok_or_else(|| PortError::NotFound(id.0.clone()))?;
        match container.state {
            ContainerState::Running { .. } => Ok(container.name.clone()),
            _ => Err(PortError::Refused {
                reason: "ContainerNotRunning",
                message: "the container does not run".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl ContainerRuntime for Containers {
    async fn list(&self) -> Result<Vec<Container>, PortError> {
        Ok(self
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(container, _)| container.clone())
            .collect())
    }

    async fn ensure_image(
        &self,
        image: &str,
        _: PullPolicy,
        _: &(dyn Fn() + Send + Sync),
    ) -> Result<(), PortError> {
        Err(PortError::NotFound(image.to_owned()))
    }

    async fn image_user(&self, image: &str) -> Result<String, PortError> {
        Err(PortError::NotFound(image.to_owned()))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, PortError> {
        Err(PortError::NotFound(spec.name.clone()))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), PortError> {
        Err(PortError::NotFound(id.0.clone()))
    }

    async fn stop(&self, _: &ContainerId, _: Duration) -> Result<(), PortError> {
        Ok(())
    }

    async fn remove(&self, _: &ContainerId) -> Result<(), PortError> {
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, _: &[String], _: Duration) -> Result<(i32, String), PortError> {
        Err(PortError::NotFound(id.0.clone()))
    }

    async fn open_session(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: SessionStreams,
    ) -> Result<Session, PortError> {
        self.running(id)?;
        let code = command.last().and_then(|word| word.parse().ok());
        Ok(fake::session(format!("{command:?}\n"), streams, code.or(Some(0))))
    }

    async fn attach(&self, id: &ContainerId, streams: SessionStreams) -> Result<Session, PortError> {
        let name = self.running(id)?;
        Ok(fake::session(format!("this is {name}\n"), streams, None))
    }

    /// To the port on this machine.
    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Box<dyn Duplex>, PortError> {
        self.running(id)?;
        let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        connected
            .map(|stream| Box::new(stream) as Box<dyn Duplex>)
            .map_err(|error| PortError::Refused {
                reason: "ConnectFailed",
                message: format!("port {port}: {error}"),
            })
    }

    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, PortError>>, PortError> {
        let containers = self.0.lock().unwrap();
        let found = containers.iter().find(|(container, _)| container.id == *id);
        let (_, text) = found.ok_or_else(|| PortError::NotFound(id.0.clone()))?;
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let tail = options
            .tail
            .map_or(lines.len(), |tail| lines.len().min(tail as usize));
        let text = lines[lines.len() - tail..].concat();
        Ok(stream::iter([Ok(Bytes::from(text))]).boxed())
    }

    fn events(&self) -> BoxStream<'static, String> {
        stream::pending().boxed()
    }

    async fn usage(&self) -> Result<Vec<(Container, Usage)>, PortError> {
        let running = self.list().await?.into_iter();
        let running = running.filter(|container| matches!(container.state, ContainerState::Running { .. }));
        Ok(running.map(|container| (container, half_a_core())).collect())
    }

    async fn machine_usage(&self) -> Result<Usage, PortError> {
        Ok(half_a_core())
    }
}

fn options(name: &str) -> OpenOptions {
    OpenOptions {
        cluster_id: "test".into(),
        node: NodeId(format!("{name:0<64}")),
        seal_key: [7; 32],
    }
}

pub(super) struct Api {
    pub(super) state: ApiState,
    pub(super) router: Router,
    pub(super) clock: Arc<ManualClock>,
    pub(super) peers: Arc<Peers>,
    pub(super) containers: Arc<Containers>,
    pub(super) cluster: watch::Sender<Arc<Cluster>>,
    pub(super) readiness: watch::Sender<Vec<String>>,
    /// Fires when the agent stops.
    pub(super) stopping: CancellationToken,
    _directory: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(super) fn warnings(&self) -> Vec<&str> {
        self.headers
            .get_all("warning")
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }

    #[track_caller]
    pub(super) fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }
}

impl Api {
    /// Opens a node without authentication.
    pub(super) async fn open() -> Self {
        Self::named("n1", false).await
    }

    pub(super) async fn named(name: &str, auth_required: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), options(name)).unwrap();
        Self::over(name, auth_required, store, directory).await
    }

    /// Opens a node on a disk that can be told to be full or to fail.
    pub(super) async fn on(disk: MemoryDisk) -> Self {
        let store = Store::open_in_memory(disk, options("n1")).unwrap();
        Self::over("n1", false, store, tempfile::tempdir().unwrap()).await
    }

    async fn over(name: &str, auth_required: bool, store: Store, directory: tempfile::TempDir) -> Self {
        let node = options(name).node;
        ensure_namespaces(&store, NOW).await.unwrap();
        let clock = Arc::new(ManualClock(AtomicI64::new(NOW)));
        let peers = Arc::new(Peers::default());
        let containers = Arc::new(Containers::default());
        let (cluster, cluster_receiver) = watch::channel(Arc::new(cluster_of(
            &node,
            &[(node.clone(), name, store.revision())],
        )));
        let (readiness, readiness_receiver) = watch::channel(Vec::new());
        let stopping = CancellationToken::new();
        let state = ApiState {
            events: Arc::new(Events::new(store.clone(), node.clone(), name, clock.clone())),
            store,
            cluster: cluster_receiver,
            node,
            relay: peers.clone(),
            runtime: containers.clone(),
            sessions: Sessions::new(TaskTracker::new(), stopping.clone()),
            metrics: Arc::default(),
            clock: clock.clone(),
            auth_required,
            build: Build {
                version: "0.0.0",
                git_commit: "test",
            },
            readiness: readiness_receiver,
            backups: BackupSource::new("test", name, Identity::of_cluster_key(&[9; 32])),
            leave: tokio::sync::mpsc::channel(1).0,
        };
        let router = router(state.clone());
        Self {
            state,
            router,
            clock,
            peers,
            containers,
            cluster,
            readiness,
            stopping,
            _directory: directory,
        }
    }

    /// Makes two nodes known to each other.
    pub(super) fn join(&self, other: &Api) {
        let names = [self, other].map(|api| {
            let cluster = api.state.cluster.borrow();
            cluster.nodes[&api.state.node].facts.name.clone()
        });
        let nodes = [(self, &names[0]), (other, &names[1])]
            .map(|(api, name)| (api.state.node.clone(), name.as_str(), api.state.store.revision()));
        for (one, another) in [(self, other), (other, self)] {
            one.peers.add(another);
            one.cluster
                .send_replace(Arc::new(cluster_of(&one.state.node, &nodes)));
        }
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {})
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(body.into()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], Body::empty()).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[], Body::empty()).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
        .await
    }

    pub(super) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(
            "PUT",
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
        .await
    }

    /// `kind`: `json`, `merge` or `strategic-merge`.
    pub(super) async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let media = format!("application/{kind}-patch+json");
        self.call("PATCH", path, &[("content-type", &media)], body.to_string())
            .await
    }

    pub(super) async fn apply(&self, path: &str, body: Value) -> Answer {
        self.call(
            "PATCH",
            path,
            &[("content-type", "application/apply-patch+yaml")],
            body.to_string(),
        )
        .await
    }
}

pub(super) fn cluster_of(me: &NodeId, nodes: &[(NodeId, &str, Revision)]) -> Cluster {
    let nodes = nodes.iter().map(|(id, name, revision)| {
        let facts = NodeFacts {
            name: (*name).to_owned(),
            revision_tag: Some(revision.tag()),
            ..NodeFacts::default()
        };
        let observation = NodeObservation {
            liveness: Liveness::Alive,
            since: Moment::default(),
            in_sync: true,
            facts,
            pods: BTreeMap::new(),
        };
        (id.clone(), Arc::new(observation))
    });
    Cluster {
        me: me.clone(),
        nodes: nodes.collect(),
    }
}

/// A deployment as people write them.
pub(super) fn deployment(name: &str, replicas: i64) -> Value {
    serde_json::json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    })
}

pub(super) fn pod(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    })
}
