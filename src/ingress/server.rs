//! [`Ingress`]: the entry point. Binds the port, accepts connections on a runtime of its own, and stops gracefully.
//!
//! The accept loop is ours and not pingora's: that one retries a taken port for 30 s and panics, has no limit of
//! connections, and waits for ever for the first bytes of a client when HTTP/2 without TLS is enabled.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use pingora::apps::HttpServerOptions;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use reconcilers::ports::{RouteSink, RouteTable};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::proxy::{MAX_ATTEMPTS, Proxy};
use super::routes::Routes;

/// Connections of clients at once: each takes one descriptor and at most one more to a backend, of the 20,000 that an
/// ordinary limit allows. More wait in the backlog.
const MAX_CONNECTIONS: usize = 8000;

/// Connections to backends that are kept open while idle.
const MAX_IDLE_BACKEND_CONNECTIONS: usize = 512;

/// How long a new connection may take to say whether it speaks HTTP/1 or HTTP/2.
const FIRST_BYTES: Duration = Duration::from_secs(30);

/// Between looks at a connection that sent a part of the HTTP/2 preface, which is rare.
const PREFACE_POLL: Duration = Duration::from_millis(5);

/// A connection without a request is closed after this.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long [`Ingress::stop`] waits for requests under way.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// After a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How an ingress is to be set up.
#[derive(Clone, Debug)]
pub struct IngressConfig {
    /// Where to listen: `--ingress-port` on all addresses.
    pub listen: SocketAddr,
    /// How long a backend may be silent before the client gets 504.
    pub backend_timeout: Duration,
}

impl IngressConfig {
    /// An ingress at `listen` with a backend timeout of 60 s, as other ingress controllers have it.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            backend_timeout: Duration::from_secs(60),
        }
    }
}

/// Why the ingress could not be started, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "cannot serve the ingress on {0}: another program has this port (`ss -lntp 'sport = :{port}'` shows it): stop it, \
         choose another --ingress-port, or switch the ingress off with --enable-ingress=false", port = .0.port()
    )]
    InUse(SocketAddr),
    #[error(
        "cannot serve the ingress on {0}: ports below 1024 need root or CAP_NET_BIND_SERVICE: choose an --ingress-port \
         above 1023, or set `sysctl net.ipv4.ip_unprivileged_port_start={port}`", port = .0.port()
    )]
    Forbidden(SocketAddr),
    #[error("cannot serve the ingress on {listen}")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("cannot start the ingress's runtime")]
    Runtime(#[source] io::Error),
}

/// The ingress of this node. Dropping it stops it without waiting for requests under way.
pub struct Ingress {
    routes: Arc<ArcSwapOption<Routes>>,
    address: SocketAddr,
    shutdown: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Ingress {
    /// Binds the port and starts serving: 503 for all until the first table comes.
    ///
    /// # Errors
    /// The port is in use or not allowed, or there are no threads to be had.
    pub fn start(config: IngressConfig) -> Result<Ingress, StartError> {
        let listener = bind(config.listen)?;
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            listen: config.listen,
            source,
        })?;
        let routes = Arc::new(ArcSwapOption::empty());
        let in_flight = TaskTracker::new();
        let proxy = Proxy {
            routes: routes.clone(),
            in_flight: in_flight.clone(),
            backend_timeout: config.backend_timeout,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("ingress")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let (shutdown, watch) = watch::channel(false);
        let serve = move || {
            runtime.block_on(serve(listener, proxy, in_flight, watch));
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("ingress-accept".into())
            .spawn(serve)
            .map_err(StartError::Runtime)?;
        Ok(Ingress {
            routes,
            address,
            shutdown,
            thread,
        })
    }

    /// Where route tables go.
    pub fn sink(&self) -> Arc<dyn RouteSink> {
        Arc::new(Sink(self.routes.clone()))
    }

    /// The address listened on (the port that was found, for port 0).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops taking connections, lets requests under way finish for up to 5 s, and ends.
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        let thread = self.thread;
        if !matches!(tokio::task::spawn_blocking(|| thread.join()).await, Ok(Ok(()))) {
            tracing::error!("the ingress's thread panicked");
        }
    }
}

struct Sink(Arc<ArcSwapOption<Routes>>);

impl RouteSink for Sink {
    fn set_routes(&self, routes: RouteTable) {
        self.0.store(Some(Arc::new(Routes::new(&routes))));
    }
}

fn bind(listen: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    let listener = std::net::TcpListener::bind(listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::InUse(listen),
        io::ErrorKind::PermissionDenied => StartError::Forbidden(listen),
        _ => StartError::Listen { listen, source },
    })
}

/// Runs the ingress until `shutdown` turns true (or its sender is gone).
async fn serve(
    listener: std::net::TcpListener,
    proxy: Proxy,
    in_flight: TaskTracker,
    shutdown: ShutdownWatch,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the ingress cannot use its socket");
            return;
        }
    };
    let conf = ServerConf {
        max_retries: MAX_ATTEMPTS,
        upstream_keepalive_pool_size: MAX_IDLE_BACKEND_CONNECTIONS,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), proxy);
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(KEEPALIVE);
    proxy.server_options = Some(options);
    let proxy = Arc::new(proxy);

    accept(listener, &proxy, shutdown).await;
    proxy.cleanup().await;
    in_flight.close();
    if tokio::time::timeout(STOP_GRACE, in_flight.wait()).await.is_err() {
        tracing::warn!(
            requests = in_flight.len(),
            "the ingress stops with requests under way"
        );
    }
}

async fn accept(listener: TcpListener, proxy: &Arc<HttpProxy<Proxy>>, mut shutdown: ShutdownWatch) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let watch = shutdown.clone();
    let next = async || {
        let permit = permits.clone().acquire_owned().await;
        (permit, listener.accept().await)
    };
    loop {
        let (permit, accepted) = tokio::select! {
            next = next() => next,
            _ = shutdown.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (proxy, shutdown) = (proxy.clone(), watch.clone());
                tokio::spawn(async move {
                    connection(stream, &proxy, &shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the ingress cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client until it is gone, idle for too long, or the ingress stops.
async fn connection(stream: TcpStream, proxy: &Arc<HttpProxy<Proxy>>, shutdown: &ShutdownWatch) {
    let mut stopped = shutdown.clone();
    let version = tokio::select! {
        version = tokio::time::timeout(FIRST_BYTES, version(&stream)) => version,
        _ = stopped.changed() => return,
    };
    let Ok(Ok(version)) = version else {
        return;
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    match version {
        Version::Http2 => {
            proxy.process_new(Box::new(stream), shutdown).await;
        }
        Version::Http1 => http1(Box::new(stream), proxy, shutdown).await,
    }
}

async fn http1(stream: Stream, proxy: &Arc<HttpProxy<Proxy>>, shutdown: &ShutdownWatch) {
    let mut session = ServerSession::new_http1(stream);
    session.set_keepalive(Some(KEEPALIVE.as_secs()));
    while let Some(reused) = proxy.process_new_http(session, shutdown).await {
        let (stream, settings) = reused.consume();
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
}

enum Version {
    Http1,
    Http2,
}

/// Looks at the first bytes of a connection without taking them.
async fn version(stream: &TcpStream) -> io::Result<Version> {
    let mut buffer = [0; HTTP2_PREFACE.len()];
    loop {
        let length = stream.peek(&mut buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if buffer[..length] != HTTP2_PREFACE[..length] {
            return Ok(Version::Http1);
        }
        if length == HTTP2_PREFACE.len() {
            return Ok(Version::Http2);
        }
        tokio::time::sleep(PREFACE_POLL).await;
    }
}
