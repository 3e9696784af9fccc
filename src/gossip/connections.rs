//! HTTP/2 connections to other nodes: one each, opened when needed, both sides' certificates checked, kept alive with
//! pings so that a dead peer ends what waits for it. Also knocks at the doors of silent nodes.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use http::uri::{Authority, Scheme};
use http::{HeaderName, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use store::NodeId;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::INTERNAL_NAME;
use super::credentials::Credentials;
use super::observation::{Peer, Probe};
use super::peer_server::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use super::tls;
use crate::relay::{Relay, RelayError};

/// For TCP and TLS together, when there is a request to send.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For TCP when probing. Linux repeats a lost SYN after 1 s: one loss does not make a node dead.
const PROBE_TCP_TIMEOUT: Duration = Duration::from_millis(1_200);
/// For TLS when probing: an agent that is there answers in milliseconds, on a busy host in hundreds.
const PROBE_TLS_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings on every connection; what waits for a dead peer fails after the sum of both.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Every node that this one could talk to, itself excluded.
pub(super) type Peers = BTreeMap<NodeId, Peer>;

/// Headers that concern one connection, and must not be sent on over HTTP/2 (RFC 9113, 8.2.2).
const CONNECTION_HEADERS: [HeaderName; 6] = [
    header::CONNECTION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What is known of the connection to one node.
enum Connection {
    Open(SendRequest<Body>),
    /// The last attempt failed, then and for this reason.
    Failed(Instant, String),
    None,
}

/// Locked while a connection is being opened: requests that wait share the result, good or bad.
type Slot = Arc<tokio::sync::Mutex<Connection>>;

/// The connections of this node.
pub(super) struct Connections {
    credentials: Arc<Credentials>,
    peers: watch::Receiver<Arc<Peers>>,
    slots: Mutex<HashMap<NodeId, Slot>>,
}

impl Connections {
    pub(super) fn new(credentials: Arc<Credentials>, peers: watch::Receiver<Arc<Peers>>) -> Self {
        Self {
            credentials,
            peers,
            slots: Mutex::default(),
        }
    }

    fn slot(&self, node: &NodeId) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .entry(node.clone())
            .or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Connection::None)))
            .clone()
    }

    /// Returns the open connection to a node, or opens one.
    async fn connection(&self, node: &NodeId, address: SocketAddr) -> Result<SendRequest<Body>, String> {
        let slot = self.slot(node);
        let asked = Instant::now();
        let mut slot = slot.lock().await;
        match &*slot {
            Connection::Open(open) if !open.is_closed() => return Ok(open.clone()),
            Connection::Failed(when, reason) if *when > asked => return Err(reason.clone()),
            Connection::Open(_) | Connection::Failed(..) | Connection::None => {}
        }
        let opened = timeout(CONNECT_TIMEOUT, self.open(node, address))
            .await
            .unwrap_or_else(|_| Err(format!("no connection to {address} within {CONNECT_TIMEOUT:?}")));
        *slot = match &opened {
            Ok(open) => Connection::Open(open.clone()),
            Err(reason) => Connection::Failed(Instant::now(), reason.clone()),
        };
        opened
    }

    async fn open(&self, node: &NodeId, address: SocketAddr) -> Result<SendRequest<Body>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{address}: {error}");
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| failed(&error))?;
        let stream = self.secure(node, stream).await.map_err(|error| failed(&error))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        // It ends with the last sender, or when the peer is gone; requests in flight are told.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn secure(&self, node: &NodeId, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        // Small frames must not wait for others.
        stream.set_nodelay(true)?;
        let config = tls::peer_client(&self.credentials, node).map_err(std::io::Error::other)?;
        let name = ServerName::try_from(INTERNAL_NAME).map_err(std::io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Finds out what a node that gossip does not hear is like.
    pub(super) async fn probe(&self, node: &NodeId, address: SocketAddr) -> Probe {
        let stream = match timeout(PROBE_TCP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            // A reset comes from a host that lives; everything else (unreachable, timeouts) from none.
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Probe::HostOnly,
            Ok(Err(_)) | Err(_) => return Probe::Silent,
        };
        match timeout(PROBE_TLS_TIMEOUT, self.secure(node, stream)).await {
            Ok(Ok(_)) => Probe::Answers,
            Ok(Err(_)) | Err(_) => Probe::HostOnly,
        }
    }

    /// Drops connections to nodes that are no peers any more.
    pub(super) fn forget_strangers(&self) {
        let peers = self.peers.borrow().clone();
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|node, _| peers.contains_key(node));
    }
}

#[async_trait]
impl Relay for Connections {
    async fn send(&self, node: &NodeId, request: Request<Body>) -> Result<Response<Body>, RelayError> {
        let address = self
            .peers
            .borrow()
            .get(node)
            .map(|peer| peer.address)
            .ok_or_else(|| RelayError::Unknown(node.clone()))?;
        let unreachable = |message: String| RelayError::Unreachable {
            node: node.clone(),
            message,
        };
        let mut request = for_peer(request).map_err(|error| unreachable(error.to_string()))?;
        // A connection that ended while it was idle says so only now; what was not sent is sent again, once.
        for last in [false, true] {
            let mut connection = self.connection(node, address).await.map_err(unreachable)?;
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body: Incoming| Body::new(body))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !last => request = unsent,
                    _ => return Err(unreachable(error.into_error().to_string())),
                },
            }
        }
        Err(unreachable("the connection was closed twice".into()))
    }
}

/// Makes a request of one connection fit to be sent over another.
fn for_peer(request: Request<Body>) -> Result<Request<Body>, http::Error> {
    let (mut parts, body) = request.into_parts();
    for name in CONNECTION_HEADERS {
        parts.headers.remove(name);
    }
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = Some(Authority::from_static(INTERNAL_NAME));
    parts.uri = Uri::from_parts(uri)?;
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lose_what_concerned_their_connection() {
        let request = Request::get("/api/v1/pods?watch=true")
            .header("connection", "keep-alive")
            .header("host", "localhost:8080")
            .header("accept", "application/json")
            .body(Body::empty())
            .unwrap();
        let request = for_peer(request).unwrap();
        assert_eq!(request.uri().path_and_query().unwrap(), "/api/v1/pods?watch=true");
        assert_eq!(request.headers().len(), 1);
        assert_eq!(request.version(), Version::HTTP_2);
    }
}
