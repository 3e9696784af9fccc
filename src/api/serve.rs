//! The API's listener: TLS and plain HTTP on one port, HTTP/1.1 and HTTP/2, with a limit on everything.
//!
//! The first byte tells a TLS handshake from a plain request. Nothing of a request is interpreted here; the
//! router's first layer authenticates it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use clap::ValueEnum;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::status::ApiError;
use crate::addresses::Addresses;

/// Connections at once: 50 nodes and some hundred clients with watches; at up to 100 KiB each below 100 MiB.
const MAX_CONNECTIONS: usize = 1024;
/// Of these from one address, lest one client shut the others out; this machine's own are not counted.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 256;
/// Of these from all other machines: 64 are left for people and programs on this one.
const MAX_REMOTE_CONNECTIONS: usize = MAX_CONNECTIONS - 64;
/// Requests at once on one HTTP/2 connection, as Go's server has it.
const MAX_STREAMS: u32 = 250;
/// All header lines of a request: a bearer token and kubectl's own fit many times.
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// From accept to the first byte, and for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a request to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// From the handshake to the first request with a token. Connections that only probe for health end then, and come anew.
const STRANGER_TIME: Duration = Duration::from_secs(15);
/// A peer that does not answer HTTP/2 pings for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests in flight may take once the server stops (the agent has 10 s for everything).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause after `accept` failed (out of file descriptors), lest it spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may use plain HTTP on the API's port (`--plain-http`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum PlainHttp {
    /// Clients on this machine
    Loopback,
    /// Everybody
    All,
    /// Nobody
    Off,
}

/// Fires when the server stops, as a request extension: streams without an end (watches, logs) end then.
#[derive(Clone, Debug)]
pub struct Stopping(pub CancellationToken);

/// Fires when a request of the connection has shown a token, as a request extension: until then it has little time.
#[derive(Clone, Debug, Default)]
pub(super) struct Proven(pub(super) CancellationToken);

/// Serves the API until `shutdown` fires; then takes no more connections, ends watches and waits a few seconds for
/// requests in flight.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Arc<rustls::ServerConfig>,
    plain: PlainHttp,
    shutdown: CancellationToken,
) {
    let server = Server::new(router, tls, plain, shutdown);
    Arc::new(server).serve(listener).await;
}

/// HTTP/2 and HTTP/1.1 are offered, whatever the caller's configuration says.
fn with_alpn(tls: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    let mut config = Arc::unwrap_or_clone(tls);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// What connections are served with.
pub(super) struct Server {
    router: Router,
    tls: TlsAcceptor,
    plain: PlainHttp,
    shutdown: CancellationToken,
    pub(super) stranger_time: Duration,
}

impl Server {
    pub(super) fn new(
        router: Router,
        tls: Arc<rustls::ServerConfig>,
        plain: PlainHttp,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            router,
            tls: TlsAcceptor::from(with_alpn(tls)),
            plain,
            shutdown,
            stranger_time: STRANGER_TIME,
        }
    }

    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let addresses = Addresses::new(MAX_CONNECTIONS_PER_ADDRESS, MAX_REMOTE_CONNECTIONS);
        let tasks = TaskTracker::new();
        let cut_off = CancellationToken::new();
        loop {
            // A full server leaves connections in the kernel's queue instead of refusing them.
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = self.shutdown.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let place = if peer.ip().to_canonical().is_loopback() {
                        None
                    } else if let Some(place) = addresses.enter(peer.ip()) {
                        Some(place)
                    } else {
                        tracing::debug!(%peer, "api: too many connections from this address, or from all others");
                        continue;
                    };
                    let server = self.clone();
                    let cut_off = cut_off.clone();
                    tasks.spawn(async move {
                        cut_off.run_until_cancelled(server.run(stream, peer)).await;
                        drop((permit, place));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "api: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!(connections = tasks.len(), "api: requests in flight were cut off");
            cut_off.cancel();
        }
    }

    async fn run(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let mut first = [0u8; 1];
        let peeked = tokio::select! {
            peeked = tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)) => peeked,
            () = self.shutdown.cancelled() => return,
        };
        if !matches!(peeked, Ok(Ok(1))) {
            return;
        }
        // 0x16: the record type of a TLS handshake (RFC 8446, 5.1); no HTTP method begins with it.
        if first[0] == 0x16 {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream, peer, true).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "api: TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "api: TLS handshake took too long"),
            }
        } else {
            let allowed = match self.plain {
                PlainHttp::All => true,
                PlainHttp::Loopback => peer.ip().to_canonical().is_loopback(),
                PlainHttp::Off => false,
            };
            self.http(stream, peer, allowed).await;
        }
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        allowed: bool,
    ) {
        let router = self.router.clone();
        let shutdown = self.shutdown.clone();
        let proven = Proven::default();
        let given = proven.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            let stopping = Stopping(shutdown.clone());
            let proven = given.clone();
            async move {
                if !allowed {
                    return Ok::<_, Infallible>(plain_http_refused().into_response());
                }
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(stopping);
                request.extensions_mut().insert(proven);
                router.oneshot(request).await
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // hyper's own limits begin with a request and end after it: neither sees a connection that makes none.
        let stranger = async {
            tokio::time::sleep(self.stranger_time).await;
            if proven.0.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stranger => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
            }
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "api: connection ended");
        }
    }
}

/// Finds clients that vanished without a word (their watches would stay for ever).
fn keep_alive(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(stream, PING_INTERVAL);
    let _ = rustix::net::sockopt::set_tcp_keepintvl(stream, PING_INTERVAL / 3);
}

fn plain_http_refused() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "Forbidden",
        "plain HTTP is not accepted from this address: use https:// (or start the agent with --plain-http=all)",
    )
}
