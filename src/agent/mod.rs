//! The composition root: starts every part in order, hands each what it needs, and stops them in order.
//!
//! The only module that sees all others. What decides anything is elsewhere.

mod applier;
mod backups;
mod check;
mod clock;
mod credentials_for_people;
mod data_dir;
mod essential;
mod facts;
mod listen;
mod logging;
mod memory;
mod reconcile;
mod removal;
mod reports;
mod rescued;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{StatusCode, header};
use reconcilers::controller::Context;
use reconcilers::ports::{Clock, EventSink};
use store::{OpenOptions, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{error, info, warn};

use crate::api::{self, ApiState, BackupSource, Build, Events, Sessions};
use crate::config::{self, Config};
use crate::dns::{Dns, DnsConfig};
use crate::gossip;
use crate::ingress::{Ingress, IngressConfig};
use crate::network::Network;
use crate::podman::Podman;
pub use check::{check, print_backup_identity};
use clock::SystemClock;
use essential::Essential;
use reconcile::Reconcilers;
pub use removal::{Removed, leave_without_agent, needs_no_agent_to_leave};
use reports::Reports;

/// All of a stop. Announcing and draining take a few seconds at most; systemd would kill us after 90.
const STOP_TIMEOUT: Duration = Duration::from_secs(9);
/// Connections that wait to be accepted; the kernel's own default limit is 4096.
const API_BACKLOG: u32 = 1024;
/// The port that containers ask: a resolver's configuration cannot name another.
const RESOLVER_PORT: u16 = 53;

/// Runs the agent until SIGINT, SIGTERM or `leave`.
///
/// # Errors
/// [`Removed`]; or what kept it from starting, or which part of it ended although nothing stopped it, in a sentence for the user.
pub async fn run(config: Config) -> Result<()> {
    logging::init(&config.flags)?;
    let mut signals = Signals::new()?;
    let (leave, mut leaving) = mpsc::channel(1);
    let working = CancellationToken::new();
    let (essential, mut failed) = Essential::new(working.clone());
    let started = tokio::select! {
        agent = Agent::start(config, leave, working, essential) => agent?,
        () = signals.next() => return Ok(()),
        Some(task) = failed.recv() => return Err(ended_early(task)),
    };
    tokio::select! {
        () = signals.next() => started.stop().await,
        _ = leaving.recv() => started.leave().await?,
        () = started.gossip.removed() => return Err(started.removed().await?.into()),
        Some(task) = failed.recv() => {
            started.stop().await;
            return Err(ended_early(task));
        }
    }
    Ok(())
}

fn ended_early(task: &str) -> anyhow::Error {
    anyhow!("a part of the agent ended before its stop: {task}; the log says more")
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A running agent.
struct Agent {
    config: Config,
    store: Store,
    gossip: gossip::Gossip,
    dns: Arc<Dns>,
    ingress: Option<Ingress>,
    podman: Arc<Podman>,
    network: Arc<Network>,
    /// Ends reconcilers and helpers. Cancelled first: what ends before is missed.
    working: CancellationToken,
    /// Ends the API: no new requests, watches end.
    serving: CancellationToken,
    tasks: TaskTracker,
    api: tokio::task::JoinHandle<()>,
    /// Keeps other agents out of the data directory.
    _lock: File,
}

impl Agent {
    async fn start(
        config: Config,
        leave: mpsc::Sender<()>,
        working: CancellationToken,
        essential: Essential,
    ) -> Result<Agent> {
        let flags = &config.flags;
        info!(
            version = env!("CARGO_PKG_VERSION"),
            node = config.node_name,
            advertise = %config.advertise,
            data_dir = %config.data_dir.display(),
            "starting"
        );
        if flags.ingress_tls_port != config::DEFAULT_INGRESS_TLS_PORT {
            warn!("--ingress-tls-port is accepted, but TLS at the ingress is not served yet");
        }
        let lock = data_dir::take(&config.data_dir)?;
        Removed::check(&config.data_dir)?;

        // Ports first: one in use is the commonest mistake, and nothing has been touched yet.
        let sockets = listen::bind_peers(flags.bind_addr).await?;
        let api_socket = listen::bind_api(flags.api_addr)?;
        let listener = api_socket.listen(API_BACKLOG).context("--api-addr")?.into_std()?;
        let starting = answer_starting(listener.try_clone()?)?;
        let ingress = match flags.enable_ingress {
            true => Some(
                Ingress::start(IngressConfig::new(SocketAddr::new(
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    flags.ingress_port,
                )))
                .context("--ingress-port (choose another, or --enable-ingress=false)")?,
            ),
            false => None,
        };
        let dns = Arc::new(Dns::start(DnsConfig {
            upstreams: flags.upstream_dns.clone(),
            ttl_seconds: flags.dns_ttl,
        })?);
        dns.listen(dns_addresses(&config, None))
            .await
            .context("--dns-port")?;
        let ingress_port = ingress.is_some().then_some(flags.ingress_port);
        info!(gossip = %flags.bind_addr, api = %flags.api_addr, dns = flags.dns_port, ingress = ingress_port, "ports are bound");

        let socket = format!("unix://{}", config.podman_socket.display());
        // Whose containers are ours is known once the cluster is; whether Podman answers, at once.
        let engine = Podman::new(&socket, "")
            .context("--podman-socket")?
            .engine()
            .await
            .context("--podman-socket")?;
        let network = Arc::new(Network::new().await?);
        info!(
            podman = engine.podman_version,
            cpus = engine.cpus,
            "Podman answers"
        );

        data_dir::settle(&config.data_dir)?;
        let gossip_config = gossip_config(&config);
        let credentials = Arc::new(gossip::bootstrap(&gossip_config).await?);
        info!(cluster = credentials.cluster_id(), node = %credentials.node(), "credentials are there");

        let store = Store::open(
            &config.data_dir.join("store"),
            OpenOptions {
                cluster_id: credentials.cluster_id().to_owned(),
                node: credentials.node().clone(),
                seal_key: credentials.seal_key(),
            },
        )
        .map_err(|error| anyhow!("--data-dir: {error:#}"))?;
        info!(revision = %store.revision(), "the store is open");
        let mut reports = Reports::listen(&store);

        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let podman = Arc::new(Podman::new(&socket, credentials.cluster_id())?);
        let events = Arc::new(Events::new(
            store.clone(),
            credentials.node().clone(),
            config.node_name.clone(),
            clock.clone(),
        ));
        let prepared =
            gossip::prepare(&gossip_config, credentials.clone(), store.clone(), clock.clone()).await;
        if matches!(prepared, Err(gossip::Error::Removed)) {
            removal::clean_up(&podman, &network).await;
            store.close().await;
            return Err(Removed::of(&config.data_dir).mark()?.into());
        }
        let prepared = prepared?;

        let context = Context {
            store: store.clone(),
            cluster: prepared.cluster(),
            clock: clock.clone(),
            events: events.clone(),
            node: credentials.node().clone(),
            faults: Arc::default(),
        };
        let tasks = TaskTracker::new();
        let facts = facts::node_facts(&config, &engine, &store);
        let reconcilers = Reconcilers {
            config: &config,
            context: context.clone(),
            cluster_id: credentials.cluster_id(),
            facts: &facts,
            authority_pem: credentials.authority_pem(),
            podman: podman.clone(),
            network: network.clone(),
            announcer: prepared.announcer(),
            zone: dns.sink(),
            routes: ingress.as_ref().map(Ingress::sink),
            tasks: &tasks,
            shutdown: &working,
            essential: &essential,
        };
        // What runs is adopted and announced before others hear of this start, so that nothing flaps.
        reconcilers.start_pods().await?;
        info!("pods of this node are adopted");

        let (waiting, readiness) = watch::channel(vec!["the agent is starting".to_owned()]);
        let state = ApiState {
            store: store.clone(),
            cluster: prepared.cluster(),
            node: credentials.node().clone(),
            relay: prepared.relay(),
            runtime: podman.clone(),
            sessions: Sessions::new(tasks.clone(), working.clone()),
            metrics: Arc::default(),
            clock: clock.clone(),
            events: events.clone(),
            auth_required: flags.enable_api_auth,
            build: Build {
                version: env!("CARGO_PKG_VERSION"),
                git_commit: option_env!("PODMAN_SWARM_COMMIT").unwrap_or("unknown"),
            },
            readiness,
            backups: BackupSource::new(
                credentials.cluster_id(),
                config.node_name.clone(),
                credentials.backup_identity(),
            ),
            leave,
        };
        let router = api::router(state.clone());
        let announcer = prepared.announcer();
        let spawn = |name, task: BoxFuture<'static, ()>| tasks.spawn(essential.clone().watch(name, task));
        let unreadable = reports.take_unreadable();
        spawn("conflicts", reports.run(events.clone(), working.clone()).boxed());
        let gossip = prepared.start(sockets, router.clone(), facts.clone()).await?;
        // Gossip ends after all others, which its end must not keep waiting.
        let ended = working.clone().run_until_cancelled_owned(gossip.ended());
        tasks.spawn(essential.clone().watch("gossip", ended.map(drop)));

        gossip.caught_up().await;
        gossip.heard().await;
        info!("in step with the cluster");
        api::ensure_namespaces(&store, clock.unix_seconds()).await?;

        for key in unreadable {
            events.event(reports::unreadable(&store, key, &config.node_name));
        }

        reconcilers.start().await;
        info!("names and routes are in place");
        let (count_rescued, rescued) = watch::channel(0);
        let export = rescued::Export::new(&state, &config.data_dir, count_rescued);
        spawn("rescue", export.run(working.clone()).boxed());
        let watching = facts::watch_node(
            podman.clone(),
            store.clone(),
            announcer,
            facts,
            rescued,
            working.clone(),
        );
        spawn("node watch", watching.boxed());
        let memory = working.clone().run_until_cancelled_owned(memory::give_back());
        spawn("memory", memory.map(drop).boxed());
        spawn("events", {
            let (events, working) = (events.clone(), working.clone());
            async move { events.run(working).await }.boxed()
        });
        if !flags.backup_interval.is_zero() {
            let making = backups::run(backups::Schedule::of(&config), state.clone(), working.clone());
            spawn("backups", making.boxed());
        }
        if let Some(repository) = &flags.gitops_repo {
            let gitops = applier::gitops(repository, &config, state, &context, &working)?;
            spawn("gitops", gitops.boxed());
        }

        credentials_for_people::write(&config, &credentials, &store, clock.unix_seconds()).await?;
        let serving = CancellationToken::new();
        starting.abort();
        let listener = TcpListener::from_std(listener)?;
        let api = api::serve(
            listener,
            router,
            credentials.api_tls()?,
            flags.plain_http,
            serving.clone(),
        );
        let api = tokio::spawn(essential.clone().watch("API", api));
        let following = follow_gateway(dns.clone(), config.clone(), network.clone(), working.clone());
        spawn("gateway", following.boxed());
        waiting.send_replace(Vec::new());
        info!("ready");
        Ok(Agent {
            config,
            store,
            gossip,
            dns,
            ingress,
            podman,
            network,
            working,
            serving,
            tasks,
            api,
            _lock: lock,
        })
    }

    /// Stops everything in order; containers keep running and the node stays a member.
    async fn stop(self) {
        info!("stopping");
        let all = async {
            self.working.cancel();
            self.serving.cancel();
            self.gossip.stop().await;
            self.dns.stop().await;
            if let Some(ingress) = self.ingress {
                ingress.stop().await;
            }
            if let Err(error) = self.api.await {
                error!(%error, "the API did not end well");
            }
            self.tasks.close();
            self.tasks.wait().await;
            self.store.close().await;
        };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            warn!("not everything ended in time; what was acknowledged is on disk all the same");
        }
        info!("stopped");
    }

    /// Takes the node out of the cluster: removes its membership, its containers and its network, and sets its data
    /// directory aside.
    async fn leave(self) -> Result<()> {
        info!("leaving the cluster");
        self.working.cancel();
        self.serving.cancel();
        self.tasks.close();
        _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await;
        // Containers first: once the others know, they start the same pods.
        removal::clean_up(&self.podman, &self.network).await;
        // Before the membership: what leaves waits until a peer has confirmed that removal, and so this one too.
        let now = SystemClock::new().unix_seconds();
        if let Err(error) = credentials_for_people::forget(&self.config.node_name, &self.store, now).await {
            error!(%error, "the node's API token stays valid, and what was said of the node stays: remove both by hand");
        }
        self.gossip.leave().await?;
        data_dir::begin_leave(&self.config.data_dir)?;
        self.dns.stop().await;
        if let Some(ingress) = self.ingress {
            ingress.stop().await;
        }
        _ = self.api.await;
        self.store.close().await;
        data_dir::set_aside(&self.config.data_dir)?;
        info!("left");
        Ok(())
    }

    /// Ends what this node did for a cluster that has removed it; what it held stays. Returns what is to be said of it.
    async fn removed(self) -> Result<Removed> {
        self.working.cancel();
        self.serving.cancel();
        self.tasks.close();
        _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await;
        removal::clean_up(&self.podman, &self.network).await;
        self.gossip.stop().await;
        self.dns.stop().await;
        if let Some(ingress) = self.ingress {
            ingress.stop().await;
        }
        _ = self.api.await;
        self.store.close().await;
        Removed::of(&self.config.data_dir).mark()
    }
}

fn gossip_config(config: &Config) -> gossip::Config {
    let flags = &config.flags;
    let tls = match (&flags.tls_cert, &flags.tls_key, &flags.tls_ca) {
        (Some(certificate), Some(key), Some(authority)) => Some(gossip::UserTls {
            certificate: certificate.clone(),
            key: key.clone(),
            authority: authority.clone(),
        }),
        _ => None,
    };
    gossip::Config {
        data_dir: config.data_dir.clone(),
        advertise: SocketAddr::new(config.advertise, flags.bind_addr.port()),
        node_name: config.node_name.clone(),
        host_name: config.host_name.clone(),
        join: flags.join.clone(),
        join_token: flags.join_token.clone(),
        encryption_key: flags.encryption_key.clone(),
        tls,
        tls_skip_verify: flags.tls_skip_verify,
        pod_cidr: flags.pod_cidr,
        restart_grace: flags.restart_grace,
    }
}

/// Answers every request that it is too early, until it is aborted: joining may take long, and a health check should see
/// why. Speaks plain HTTP alone, since there is no certificate yet.
fn answer_starting(listener: std::net::TcpListener) -> Result<AbortOnDropHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let answer = || async {
        let body = serde_json::json!({"status": "starting", "missing": ["the agent is starting"]});
        // Closed, so that the next request finds the real API.
        (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::CONNECTION, "close")],
            axum::Json(body),
        )
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, axum::Router::new().fallback(answer)).await {
            warn!(%error, "cannot say that the agent is starting");
        }
    })))
}

/// Where the DNS server listens: for this machine, for others, and for containers.
fn dns_addresses(config: &Config, gateway: Option<IpAddr>) -> Vec<SocketAddr> {
    let port = config.flags.dns_port;
    let mut addresses = vec![
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        SocketAddr::new(config.advertise, port),
    ];
    addresses.extend(gateway.map(|gateway| SocketAddr::new(gateway, RESOLVER_PORT)));
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Listens on the pod network's gateway too, once there is one, and again when it moves.
async fn follow_gateway(dns: Arc<Dns>, config: Config, network: Arc<Network>, shutdown: CancellationToken) {
    let listen = |gateway| {
        let (dns, addresses) = (dns.clone(), dns_addresses(&config, gateway));
        async move { dns.listen_until_bound(addresses).await }
    };
    shutdown.run_until_cancelled(network.follow_gateway(listen)).await;
}
