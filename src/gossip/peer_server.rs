//! The peer port's TCP side: TLS 1.3, then HTTP. `POST /join` for bearers of a token; everything else for members,
//! known by their certificates: `POST /sync`, `GET /generation`, and the API as [`Caller::Peer`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use store::{CommitError, Exchange, NodeId, Received, Store, SyncError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::admission::Admission;
use super::conduct::Conduct;
use super::connections::{PING_INTERVAL, PING_TIMEOUT, Peers};
use super::join::{self, JoinRequest, Refusal};
use super::{certificates, members};
use crate::addresses::Addresses;
use crate::caller::Caller;

/// Frames of sync: the store makes none above 4 MiB.
pub(super) const FRAME_LIMIT: usize = 4 * 1024 * 1024;
/// Connections whose TLS handshake is under way, and those of one address, lest it shut the others out: a peer makes a few
/// at a time. More are closed.
const HANDSHAKES: usize = 512;
const HANDSHAKES_PER_ADDRESS: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections without a certificate, which can only join; each lives for [`STRANGER_TIME`] at most.
const STRANGERS: usize = 64;
const STRANGERS_PER_ADDRESS: usize = 8;
const STRANGER_TIME: Duration = Duration::from_secs(15);
/// Connections of certified peers: one each way and a few while reconnecting, for 50 nodes.
const CERTIFIED: usize = 512;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request body: a frame of 4 MiB takes 0.4 s at 100 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests under way on one connection; watches and followed logs are long ones.
const STREAMS: u32 = 1024;
/// What a request may send before its handler reads. The connection's own window has room for all of them: a session that nobody
/// reads must not stop the others, or sync.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 << 10;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = STREAMS * STREAM_WINDOW_BYTES;
/// The same of a connection without a certificate, whose one request is a small body.
const STRANGER_STREAMS: u32 = 4;
const STRANGER_WINDOW_BYTES: u32 = 65_535;
/// After a failed accept (out of file descriptors), so that it does not spin.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Where peers ask for the generation that was last seen of them.
pub(super) const GENERATION_PATH: &str = "/generation";
/// How a node that was removed is answered, whatever it asks for; the body is the tombstone of its membership.
pub(super) const REMOVED: StatusCode = StatusCode::GONE;
/// Where frames of the store go.
pub(super) const SYNC_PATH: &str = "/sync";

/// What the handlers need.
pub(super) struct PeerServer {
    pub(super) store: Store,
    pub(super) admission: Admission,
    pub(super) peers: watch::Receiver<Arc<Peers>>,
    pub(super) conduct: Conduct,
}

/// The identity that a connection's certificate proves, if it has one.
#[derive(Clone)]
struct Certified(Option<NodeId>);

/// The address that a connection comes from.
#[derive(Clone, Copy)]
struct Origin(IpAddr);

impl PeerServer {
    fn router(self: Arc<Self>, api: Router) -> Router {
        Router::new()
            .route(SYNC_PATH, post(sync))
            .route(GENERATION_PATH, get(generation))
            .with_state(self.clone())
            .fallback_service(api)
            .layer(middleware::from_fn_with_state(self.clone(), members_only))
            // Added after the layer: the one thing that strangers may ask for.
            .merge(
                Router::new()
                    .route(join::PATH, post(join_handler))
                    .with_state(self),
            )
    }

    fn count_bad(&self, node: &NodeId) {
        if self.conduct.was_bad(node) {
            warn!(%node, "this member sends nonsense: its frames are not read for a while");
        }
    }

    /// Serves until `stop`; connections are then closed.
    pub(super) async fn run(
        self,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        api: Router,
        stop: CancellationToken,
    ) {
        let router = Arc::new(self).router(api);
        let acceptor = TlsAcceptor::from(tls);
        let limits = Arc::new(Limits {
            handshakes: Addresses::new(HANDSHAKES_PER_ADDRESS, HANDSHAKES),
            strangers: Addresses::new(STRANGERS_PER_ADDRESS, STRANGERS),
            certified: Semaphore::new(CERTIFIED),
        });
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a peer, will retry");
                    sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let Some(place) = limits.handshakes.enter(peer.ip()) else {
                debug!(%peer, "too many handshakes of peers from this address, or from all");
                continue;
            };
            let (acceptor, router, limits) = (acceptor.clone(), router.clone(), limits.clone());
            connections.spawn(async move {
                let handshake = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
                drop(place);
                match handshake {
                    Ok(Ok(stream)) => serve(stream, peer.ip(), router, &limits).await,
                    Ok(Err(error)) => debug!(%error, "handshake of a peer failed"),
                    Err(_) => debug!("handshake of a peer took too long"),
                }
            });
        }
        connections.shutdown().await;
    }
}

struct Limits {
    handshakes: Arc<Addresses>,
    strangers: Arc<Addresses>,
    certified: Semaphore,
}

async fn serve(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    address: IpAddr,
    router: Router,
    limits: &Limits,
) {
    let certified = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(certificates::node_id);
    let stranger = certified.is_none();
    let (place, permit) = match stranger {
        true => (limits.strangers.enter(address), None),
        false => (None, limits.certified.try_acquire().ok()),
    };
    if place.is_none() && permit.is_none() {
        debug!(stranger, %address, "too many peer connections");
        return;
    }
    // Answers of a few bytes must not wait for more.
    if let Err(error) = stream.get_ref().0.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    let extension = Certified(certified);
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(extension.clone());
        request.extensions_mut().insert(Origin(address));
        router.clone().oneshot(request.map(Body::new))
    });
    let builder = http_server(stranger);
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let ended = if stranger {
        timeout(STRANGER_TIME, connection).await.unwrap_or(Ok(()))
    } else {
        connection.await
    };
    if let Err(error) = ended {
        debug!(%error, "a peer connection ended");
    }
}

/// HTTP for one connection: who has proven nothing gets little room.
fn http_server(stranger: bool) -> auto::Builder<TokioExecutor> {
    let (streams, stream_window, connection_window) = match stranger {
        true => (STRANGER_STREAMS, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES),
        false => (STREAMS, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window);
    builder
}

/// Lets members pass, as [`Caller::Peer`].
async fn members_only(
    State(server): State<Arc<PeerServer>>,
    Extension(Certified(certified)): Extension<Certified>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(node) = certified else {
        return refusal(StatusCode::UNAUTHORIZED, "a member's certificate is needed");
    };
    if !members::is_admitted(&server.store, &node) {
        server.conduct.forget(&node);
        return match server.store.removal(&members::key(&node)) {
            // The tombstone is the proof: a node that has joined again since then is not met by it.
            Some(removal) => (REMOVED, removal).into_response(),
            None => refusal(
                StatusCode::FORBIDDEN,
                format!("node {node} is not a member of this cluster"),
            ),
        };
    }
    request.extensions_mut().insert(Caller::Peer(node));
    next.run(request).await
}

async fn sync(
    State(server): State<Arc<PeerServer>>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Response {
    let Caller::Peer(node) = caller else {
        return refusal(StatusCode::UNAUTHORIZED, "a member's certificate is needed");
    };
    let _turn = match server.conduct.begin(&node) {
        Ok(turn) => turn,
        Err(reason) => return refusal(StatusCode::TOO_MANY_REQUESTS, reason.to_string()),
    };
    let frame = match read(body, FRAME_LIMIT).await {
        Ok(frame) => frame,
        Err(response) => return response,
    };
    match server.store.receive_and_judge(&node, &frame).await {
        Ok(Received { next, refused }) => {
            if refused > 0 {
                server.count_bad(&node);
            }
            match next {
                Exchange::Send(answer) => answer.into_response(),
                Exchange::Done => StatusCode::NO_CONTENT.into_response(),
            }
        }
        Err(error) => {
            if server.conduct.is_news(&node, &error) {
                warn!(%node, %error, "refused a frame of sync");
            } else {
                debug!(%node, %error, "refused a frame of sync");
            }
            if matches!(error, SyncError::Malformed(_)) {
                server.count_bad(&node);
            }
            let status = match error {
                SyncError::Malformed(_) | SyncError::Version { .. } => StatusCode::BAD_REQUEST,
                SyncError::Commit(CommitError::Full(_)) => StatusCode::INSUFFICIENT_STORAGE,
                SyncError::Commit(CommitError::Failed(_)) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refusal(status, error.to_string())
        }
    }
}

/// The generation that was last seen of the caller; 0 for none.
async fn generation(
    State(server): State<Arc<PeerServer>>,
    Extension(caller): Extension<Caller>,
) -> Json<u64> {
    let generation = match caller {
        Caller::Peer(node) => server.peers.borrow().get(&node).map_or(0, |peer| peer.generation),
        Caller::Anonymous | Caller::Token(_) => 0,
    };
    Json(generation)
}

async fn join_handler(
    State(server): State<Arc<PeerServer>>,
    Extension(Certified(certified)): Extension<Certified>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match join_inner(&server, certified, origin, &headers, body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(response) => response,
    }
}

async fn join_inner(
    server: &PeerServer,
    certified: Option<NodeId>,
    Origin(address): Origin,
    headers: &HeaderMap,
    body: Body,
) -> Result<join::JoinAnswer, Response> {
    let refused = |(status, refusal): (StatusCode, Refusal)| (status, Json(refusal)).into_response();
    let _attempt = server.admission.begin(address).map_err(refused)?;
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    let (token_id, counted) = server.admission.authenticate(bearer, address).map_err(refused)?;
    let body = read(body, join::REQUEST_LIMIT).await?;
    let request: JoinRequest = serde_json::from_slice(&body).map_err(|error| {
        refusal(
            StatusCode::BAD_REQUEST,
            format!("the join request does not parse: {error}"),
        )
    })?;
    server
        .admission
        .admit(&token_id, counted, certified, request)
        .await
        .map_err(refused)
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Response> {
    match timeout(BODY_TIMEOUT, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())),
        Err(_) => Err(refusal(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    }
}

fn refusal(status: StatusCode, reason: impl Into<String>) -> Response {
    let reason = reason.into();
    (status, Json(Refusal { reason })).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::StreamExt;
    use futures::future::join_all;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::bootstrap::bootstrap;
    use super::super::conduct::{BAD_FRAMES, FRAMES_AT_ONCE};
    use super::super::members::Member;
    use super::super::tests::config;
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId(name.to_owned())
    }

    /// A server with two members, whose store is in memory.
    async fn server() -> (tempfile::TempDir, Router) {
        let directory = tempfile::tempdir().unwrap();
        let credentials = Arc::new(bootstrap(&config(directory.path(), "node1")).await.unwrap());
        let options = store::OpenOptions {
            cluster_id: credentials.cluster_id().to_owned(),
            node: credentials.node().clone(),
            seal_key: credentials.seal_key(),
        };
        let store = Store::open_in_memory(store::MemoryDisk::default(), options).unwrap();
        for name in ["stalls", "other"] {
            let member = Member {
                id: node(name),
                name: name.to_owned(),
                address: ([127, 0, 0, 1], 1).into(),
                pod_cidr: None,
                voter: true,
            };
            members::put(&store, &member).await.unwrap();
        }
        let pod_cidr = "10.244.0.0/16".parse().unwrap();
        let caught_up = watch::channel(true).1;
        let server = PeerServer {
            admission: Admission::new(store.clone(), credentials, pod_cidr, caught_up),
            store,
            peers: watch::channel(Arc::new(BTreeMap::new())).1,
            conduct: Conduct::default(),
        };
        (directory, Arc::new(server).router(Router::new()))
    }

    async fn post(server: &Router, from: &str, body: Body) -> StatusCode {
        let mut request = Request::post(SYNC_PATH).body(body).unwrap();
        request.extensions_mut().insert(Certified(Some(node(from))));
        server.clone().oneshot(request).await.unwrap().status()
    }

    fn endless() -> Body {
        let bytes = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"x")));
        let slow = bytes.then(|bytes| async {
            sleep(Duration::from_secs(1)).await;
            bytes
        });
        Body::from_stream(slow)
    }

    /// A frame that is well formed, with a change that is none.
    async fn bad_change() -> Vec<u8> {
        /// How what automerge writes begins; a checksum follows, and then what it is.
        const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
        const TYPE_AT: usize = 8;
        let options = store::OpenOptions {
            cluster_id: "cluster".to_owned(),
            node: node("other"),
            seal_key: [7; 32],
        };
        let store = Store::open_in_memory(store::MemoryDisk::default(), options).unwrap();
        let mut pushes = store.pushes();
        let object = schemas::Object::new(&members::key(&node("x")));
        store.create(object, members::author()).await.unwrap();
        let push = pushes.recv().await.unwrap();
        let mut frame = store.push_frame(&[push]).unwrap().to_vec();
        let change = frame.windows(MAGIC.len()).position(|bytes| bytes == MAGIC);
        frame[change.unwrap() + TYPE_AT] = 99;
        frame
    }

    #[tokio::test]
    async fn bodies_that_never_end_are_cut_off_and_keep_nobody_else_waiting() {
        let (_directory, server) = server().await;
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let stalled = join_all((0..FRAMES_AT_ONCE).map(|_| post(&server, "stalls", endless())));
        let meanwhile = async {
            // One too many, from this peer alone.
            let more = post(&server, "stalls", Body::empty()).await;
            let other = post(&server, "other", Body::empty()).await;
            (more, other, began.elapsed())
        };
        let (stalled, (more, other, elapsed)) = tokio::join!(stalled, meanwhile);
        assert_eq!(more, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(other, StatusCode::BAD_REQUEST, "it is read, and is no frame");
        assert!(elapsed < BODY_TIMEOUT, "{elapsed:?}");
        assert_eq!(stalled, [StatusCode::REQUEST_TIMEOUT; FRAMES_AT_ONCE]);
        assert!(began.elapsed() < BODY_TIMEOUT * 2);
        // Their turns are given back.
        let again = post(&server, "stalls", Body::empty()).await;
        assert_eq!(again, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn frames_of_changes_that_nobody_can_take_cut_their_sender_off_too() {
        let (_directory, server) = server().await;
        let bad = bad_change().await;
        for _ in 0..BAD_FRAMES {
            assert!(
                post(&server, "stalls", Body::from(bad.clone()))
                    .await
                    .is_success()
            );
        }
        let turned_away = post(&server, "stalls", Body::from(bad.clone())).await;
        assert_eq!(turned_away, StatusCode::TOO_MANY_REQUESTS);
        assert!(post(&server, "other", Body::from(bad)).await.is_success());
    }

    /// What a server offers who connects: concurrent streams, bytes of a stream, bytes of the connection (RFC 9113, 6.5 and 6.9).
    async fn offered(stranger: bool) -> [u32; 3] {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        /// HEADERS that end stream 1: `GET`, `http`, `/` of the static table (RFC 7541).
        const REQUEST: &[u8] = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";
        /// What a connection has before anything is said.
        const INITIAL_WINDOW: u32 = 65_535;
        let (mut client, server) = tokio::io::duplex(1 << 12);
        tokio::spawn(async move {
            let service = TowerToHyperService::new(Router::new());
            let _ = http_server(stranger)
                .serve_connection(TokioIo::new(server), service)
                .await;
        });
        client.write_all(PREFACE).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        let mut offered = [0, 0, INITIAL_WINDOW];
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let size = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; size];
            client.read_exact(&mut payload).await.unwrap();
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            match (head[3], head[4]) {
                (4, 0) => {
                    for setting in payload.chunks(6) {
                        match setting[1] {
                            3 => offered[0] = number(&setting[2..]),
                            4 => offered[1] = number(&setting[2..]),
                            _ => {}
                        }
                    }
                }
                (8, _) => offered[2] += number(&payload),
                // What a server offers goes before what it answers.
                (1, _) => return offered,
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn strangers_are_offered_little_room() {
        let of_stranger = offered(true).await;
        assert_eq!(
            of_stranger,
            [STRANGER_STREAMS, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES]
        );
        assert_eq!(
            offered(false).await,
            [STREAMS, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES]
        );
    }
}
