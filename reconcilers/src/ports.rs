//! The traits through which reconcilers see and change the world, and the values that cross them.
//!
//! The root package implements them on Podman, netlink, hickory, pingora and chitchat; `fakes` in memory.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// A failure of a port, in words for a user; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The thing acted on is not there (any more).
    #[error("{0} not found")]
    NotFound(String),
    /// The other side answered with a refusal; `reason` is CamelCase for conditions and events (`ErrImagePull`).
    #[error("{message}")]
    Refused { reason: &'static str, message: String },
    /// No answer, or none that could be read: worth a retry.
    #[error("{operation}: {message}")]
    Unavailable {
        operation: &'static str,
        message: String,
    },
}

// ---------------------------------------------------------------- time

/// Monotonic time since the agent started (in simulations: virtual time).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// Returns the time from `earlier` to this, or zero.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The clock of this node.
pub trait Clock: Send + Sync {
    /// Monotonic; decides timeouts and graces.
    fn now(&self) -> Moment;
    /// Seconds since the Unix epoch; for display and timestamps alone.
    fn unix_seconds(&self) -> i64;
    /// Nanoseconds since the Unix epoch, as far as the clock has them; for the order of names alone.
    fn unix_nanoseconds(&self) -> u64 {
        self.unix_seconds()
            .max(0)
            .unsigned_abs()
            .saturating_mul(1_000_000_000)
    }
}

// ---------------------------------------------------------------- cluster (observed plane)

/// What this node knows of the nodes through gossip. Published whole on every change.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub me: NodeId,
    /// Every node that gossip has shown since this agent started, this node included.
    pub nodes: BTreeMap<NodeId, Arc<NodeObservation>>,
}

/// What one node says of itself, and whether it is alive as seen from here.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeObservation {
    pub liveness: Liveness,
    /// When `liveness` took this value; of a node given up because its agent was away for too long, when that went away.
    pub since: Moment,
    /// This node has taken in all desired state that it held when it became alive. Means nothing while it is not.
    pub in_sync: bool,
    pub facts: NodeFacts,
    /// `status` of its pods by pod uid, as Kubernetes writes PodStatus.
    pub pods: BTreeMap<String, Arc<Value>>,
}

/// Whether a node is there, as seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    Alive,
    /// Its agent announced a stop; containers keep running.
    Stopped,
    /// Its agent is gone, but the host answers (TCP reset): containers are taken to be running.
    AgentDown,
    /// Nothing answers, or its agent is away beyond `--restart-grace`.
    Dead,
}

/// What a node tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFacts {
    pub name: String,
    /// The address that other nodes and users reach it at.
    pub address: Option<IpAddr>,
    /// The port of its API at that address; 0: it is served to the node itself alone.
    pub api_port: u16,
    /// `--node-labels` and the well-known ones (`kubernetes.io/hostname`, `kubernetes.io/os`, `kubernetes.io/arch`).
    pub labels: BTreeMap<String, String>,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub max_pods: u32,
    pub agent_version: String,
    pub podman_version: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: String,
    /// Podman's socket does not answer: the reason; empty when all is well.
    pub podman_error: String,
    /// The disk of its store is full, so that it takes no writes for now: how; empty when all is well.
    pub disk_full: String,
    /// Its store takes no writes any more: the reason; empty when all is well.
    pub store_error: String,
    /// Records of its store that cannot be read, and that no other node has brought again yet.
    pub unreadable_records: u32,
    /// Objects with edits of users that it could not keep, and that nobody has looked at yet.
    pub rescued: u32,
    /// It was away while old deletions were forgotten, and compares what it holds with the others: it takes no writes.
    pub catching_up: bool,
    /// It serves the ingress (`--enable-ingress`).
    pub ingress: bool,
    /// Which Git repository, branch and path it was told to follow, as a hash; empty: none. Nodes with the same share
    /// that work.
    pub gitops: String,
    /// Of its store: what tells the versions that it gives from those of other nodes.
    pub revision_tag: Option<u16>,
    /// Of its store: [`store::PROTOCOL`].
    pub store_protocol: Option<u32>,
}

/// The outgoing side of the observed plane: this node's own key-values in gossip.
pub trait Announcer: Send + Sync {
    /// Publishes the status of a pod of this node (compact JSON of PodStatus), or takes it back.
    fn announce_pod(&self, pod_uid: &str, status: Option<Value>);
    /// Publishes what this node is.
    fn announce_node(&self, facts: NodeFacts);
}

/// Records an Event (kept by this node for an hour, deduplicated by object, reason and message).
pub trait EventSink: Send + Sync {
    fn event(&self, event: EventRecord);
}

/// One Event about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    pub key: schemas::ObjectKey,
    pub uid: String,
    pub kind: EventKind,
    /// CamelCase, as in Kubernetes (`Scheduled`, `Pulled`, `BackOff`).
    pub reason: &'static str,
    pub message: String,
    /// `kubelet`, `deployment-controller`, …: as Kubernetes names the component.
    pub component: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

// ---------------------------------------------------------------- containers

/// The labels that everything of ours in Podman carries.
pub mod labels {
    pub const CLUSTER: &str = "podman-swarm.cluster";
    pub const POD_NAMESPACE: &str = "podman-swarm.pod-namespace";
    pub const POD_NAME: &str = "podman-swarm.pod-name";
    pub const POD_UID: &str = "podman-swarm.pod-uid";
    pub const CONTAINER_NAME: &str = "podman-swarm.container-name";
    /// Hash of the container's part of the pod's spec: a container with another hash is not the one wanted.
    pub const SPEC_HASH: &str = "podman-swarm.spec-hash";
    /// How often this container of the pod was restarted before (decimal).
    pub const RESTART_COUNT: &str = "podman-swarm.restart-count";
    /// The pod's address.
    pub const POD_IP: &str = "podman-swarm.pod-ip";
}

/// Podman's id of a container.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ContainerId(pub String);

/// A container to be made.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ContainerSpec {
    /// Podman's name for it, unique on the machine.
    pub name: String,
    pub image: String,
    /// Kubernetes `command`: replaces the image's entrypoint. Empty: the image's.
    pub command: Vec<String>,
    /// Kubernetes `args`: replaces the image's command. Empty: the image's (unless `command` is set).
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Empty: the image's.
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub resources: ContainerResources,
    pub network: ContainerNetwork,
    pub dns: DnsConfig,
    pub hostname: String,
    /// Lines for /etc/hosts: name → address.
    pub hosts: Vec<(String, IpAddr)>,
    pub tty: bool,
    pub stdin: bool,
    pub user: Option<String>,
    pub privileged: bool,
    pub read_only_root: bool,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    /// Seconds between SIGTERM and SIGKILL if someone else stops it.
    pub stop_timeout_seconds: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct ContainerResources {
    /// Limit in thousandths of a CPU.
    pub cpu_limit_millis: Option<u64>,
    pub cpu_request_millis: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
}

/// The network that a container joins; made by [`PodNetwork`].
#[derive(Clone, Debug, PartialEq, Default)]
pub enum ContainerNetwork {
    /// The host's (`hostNetwork: true`).
    #[default]
    Host,
    /// A network namespace at a path, shared by all containers of a pod.
    Namespace(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct DnsConfig {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A container of ours as Podman shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: ContainerId,
    pub name: String,
    pub image: String,
    pub image_id: String,
    pub labels: BTreeMap<String, String>,
    pub state: ContainerState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ContainerState {
    Created,
    Running {
        pid: u32,
        started_unix_seconds: i64,
    },
    Exited {
        code: i32,
        oom_killed: bool,
        started_unix_seconds: i64,
        finished_unix_seconds: i64,
    },
    /// Anything else (`paused`, `removing`, `stopping`).
    Other(String),
}

/// When to pull an image, as Kubernetes' `imagePullPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// What a container or a machine has used, measured at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// When, by the machine's clock: nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
    /// Processor time of all cores together, since the container was started or the machine booted.
    pub cpu_nanos: u64,
    /// The working set: memory without the pages of files that the kernel takes back first.
    pub memory_bytes: u64,
}

/// Which part of a container's log to read.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since_unix_seconds: Option<i64>,
    pub timestamps: bool,
}

/// Which streams of a process a session has: Kubernetes' `PodExecOptions` and `PodAttachOptions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStreams {
    pub stdin: bool,
    pub stdout: bool,
    /// Nothing comes of it with a terminal, which has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// What comes out of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last of a session that began its process.
    Exited(i32),
}

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An interactive session with a process in a container. Holds a few buffers of some 64 KiB, however much passes through: whoever
/// does not read makes the process wait. Dropping it ends the session; a process that the session began gets SIGHUP.
pub struct Session {
    /// Shutting it down is the end of the input. None: not asked for.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Ends when the process has, with [`SessionOutput::Exited`] if the session began it.
    pub output: BoxStream<'static, Result<SessionOutput, PortError>>,
    /// Takes sizes for the terminal; only the newest counts.
    pub size: watch::Sender<TerminalSize>,
}

/// The container engine of this node. Sees and touches only what carries our cluster's label.
#[async_trait]
pub trait ContainerRuntime: Send + Sync {
    /// Lists all containers of this cluster on this machine.
    async fn list(&self) -> Result<Vec<Container>, PortError>;
    /// Makes the image present as the policy says; several that want one image share one pull. Calls `pulling` if it has to ask a registry, before it does.
    /// Refusals: `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
    async fn ensure_image(
        &self,
        image: &str,
        policy: PullPolicy,
        pulling: &(dyn Fn() + Send + Sync),
    ) -> Result<(), PortError>;
    /// Returns as whom a present image runs if nobody chooses: `user[:group]`, names or numbers; empty: root.
    async fn image_user(&self, image: &str) -> Result<String, PortError>;
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, PortError>;
    async fn start(&self, id: &ContainerId) -> Result<(), PortError>;
    /// SIGTERM (the image's stop signal), then SIGKILL after `grace`; returns when it has exited. Stopped already: Ok.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), PortError>;
    /// Removes it, killing it if it runs. Absent: Ok.
    async fn remove(&self, id: &ContainerId) -> Result<(), PortError>;
    /// Runs a command in the container and returns its exit code and its output (at most 10 KiB).
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, String), PortError>;
    /// Begins a command in the container, as [`SessionOutput::Exited`] ends it.
    /// Refusals: `ContainerNotRunning`, `ExecFailed`.
    async fn open_session(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: SessionStreams,
    ) -> Result<Session, PortError>;
    /// Joins the container's own process. `streams.tty` must be the container's; what was written before is not repeated.
    /// The end of `stdin` is the end of the container's. Refusals: `ContainerNotRunning`, `AttachFailed`.
    async fn attach(&self, id: &ContainerId, streams: SessionStreams) -> Result<Session, PortError>;
    /// Connects to a TCP port of the container's loopback address. Refusals: `ContainerNotRunning`, `ConnectFailed`.
    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Box<dyn Duplex>, PortError>;
    /// The container's output, both streams in order.
    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, PortError>>, PortError>;
    /// Fires (with the pod's uid) when a container of ours starts, dies or is removed. Lives as long as the runtime
    /// and reconnects by itself; after a gap it yields an empty uid: look at everything.
    fn events(&self) -> BoxStream<'static, String>;
    /// Measures all containers of this cluster on this machine that run.
    async fn usage(&self) -> Result<Vec<(Container, Usage)>, PortError>;
    /// Measures the machine that the containers run on.
    async fn machine_usage(&self) -> Result<Usage, PortError>;
}

// ---------------------------------------------------------------- pod network

/// A port of a service that leads to another port of the pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRedirect {
    pub protocol: Protocol,
    pub from: u16,
    pub to: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    pub protocol: Protocol,
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// The pod network of this node: an address and a namespace per pod, routes to the other nodes' ranges.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Makes the bridge and the rules for this node's range; again after the range changed.
    async fn set_range(&self, cluster: IpNet, node: IpNet) -> Result<(), PortError>;
    /// The address containers reach this node's DNS server at (the bridge's), once there is a range.
    fn gateway(&self) -> Option<IpAddr>;
    /// Replaces the whole set of routes: range of each other node → that node's address.
    async fn set_routes(&self, routes: &BTreeMap<IpNet, IpAddr>) -> Result<(), PortError>;
    /// Gives a pod its namespace and address (the same again if it has them already).
    async fn attach(&self, pod_uid: &str, host_ports: &[HostPort]) -> Result<Attachment, PortError>;
    /// Replaces the pod's set of redirects.
    async fn set_redirects(&self, pod_uid: &str, redirects: &[PortRedirect]) -> Result<(), PortError>;
    /// Takes namespace and address back. Absent: Ok.
    async fn detach(&self, pod_uid: &str) -> Result<(), PortError>;
    /// Pods that have a namespace on this machine.
    async fn attached(&self) -> Result<HashMap<String, IpAddr>, PortError>;
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    pub address: IpAddr,
    pub network: ContainerNetwork,
}

// ---------------------------------------------------------------- DNS zone

/// All that the cluster's DNS answers by itself. A whole value: computed from a snapshot, swapped in atomically.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zone {
    /// `cluster.local`: lower case, no trailing dot. Names below it are ours: NXDOMAIN or NODATA, never forwarded.
    pub domain: String,
    /// By full name, lower case, no trailing dot (`web.default.svc.cluster.local`). Names between these and the domain exist
    /// without data, and are not listed.
    pub names: HashMap<String, Records>,
    /// For PTR.
    pub reverse: HashMap<IpAddr, Vec<String>>,
}

/// The records of a name. All empty: the name exists, without data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// A and AAAA.
    pub addresses: Vec<IpAddr>,
    pub services: Vec<ServiceRecord>,
    /// For `ExternalName` services.
    pub alias: Option<String>,
}

/// One SRV record (priority 0, weight 100 / number of records).
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceRecord {
    pub port: u16,
    /// A name in the zone that has addresses.
    pub target: String,
}

/// Which names outside the cluster containers may resolve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsWhitelist {
    /// False: every name.
    pub enabled: bool,
    /// Each allows itself and its subdomains; lower case, no trailing dot.
    pub hosts: Vec<String>,
}

/// Where zones go.
pub trait ZoneSink: Send + Sync {
    fn set_zone(&self, zone: Zone);
    fn set_whitelist(&self, whitelist: DnsWhitelist);
}

// ---------------------------------------------------------------- ingress routes

/// All routes of the ingress. A whole value, as [`Zone`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTable {
    /// By host, lower case (`shop.example.com`).
    pub hosts: HashMap<String, Vec<PathRoute>>,
    /// By what follows `*.` (`example.com`); matches exactly one more label.
    pub wildcards: HashMap<String, Vec<PathRoute>>,
    /// Rules without a host.
    pub any_host: Vec<PathRoute>,
    /// `spec.defaultBackend`.
    pub default_backend: Option<Arc<Backend>>,
}

/// A path and where it leads. The longest match wins; of equal ones Exact before Prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct PathRoute {
    pub path: String,
    pub exact: bool,
    pub backend: Arc<Backend>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// `namespace/service:port`, for logs and errors.
    pub name: String,
    /// Ready endpoints. Empty: 503.
    pub endpoints: Vec<BackendEndpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendEndpoint {
    pub address: SocketAddr,
    /// Runs on this node: preferred.
    pub local: bool,
}

/// Where route tables go.
pub trait RouteSink: Send + Sync {
    fn set_routes(&self, routes: RouteTable);
}
