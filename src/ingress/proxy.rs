//! What happens to one request: choose a backend, try its endpoints, tell the backend who asked, answer for a backend that
//! cannot. Never answers with content of its own but short texts for its errors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::routes::{Routes, Target, comparable_path, host_name};
use super::upgrade::ConnectForUpgrade;

/// Endpoints tried until one takes the connection; with [`CONNECT_TIMEOUT`] a client waits 6 s at most.
pub(super) const MAX_ATTEMPTS: usize = 3;

/// A connection inside the cluster takes milliseconds; a node that is cut off should cost no more than this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle connections to backends are kept for this long.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// An upgraded connection (a websocket) may be silent for this long.
const UPGRADED_IDLE: Duration = Duration::from_secs(3600);

/// All headers of a request, names and values; above it 431. As large as HTTP/2 lets them be.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// How much of a host or a path an error text repeats.
const MAX_ECHO_CHARS: usize = 200;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The proxy that pingora runs.
pub(super) struct Proxy {
    /// None until the first table arrives.
    pub(super) routes: Arc<ArcSwapOption<Routes>>,
    /// Counts requests under way, for a graceful stop.
    pub(super) in_flight: TaskTracker,
    /// How long a backend may be silent before 504.
    pub(super) backend_timeout: Duration,
}

/// One request.
pub(super) struct Context {
    begin: Instant,
    host: String,
    target: Option<Arc<Target>>,
    tried: Vec<SocketAddr>,
    _in_flight: TaskTrackerToken,
}

impl Context {
    fn backend(&self) -> &str {
        self.target.as_ref().map_or("none", |target| &target.name)
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            begin: Instant::now(),
            host: String::new(),
            target: None,
            tried: Vec::new(),
            _in_flight: self.in_flight.token(),
        }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let request = session.req_header();
        let headers = request.headers.iter();
        let header_bytes: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if header_bytes > MAX_HEADER_BYTES {
            let text = format!("the headers are larger than {MAX_HEADER_BYTES} bytes\n");
            respond(session, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text).await?;
            return Ok(true);
        }
        context.host = authority(request);
        let path = comparable_path(request.uri.path());
        let Some(routes) = self.routes.load_full() else {
            let text = "the ingress of this node is starting\n".to_owned();
            respond(session, StatusCode::SERVICE_UNAVAILABLE, text).await?;
            return Ok(true);
        };
        context.target = routes.find(&host_name(&context.host), &path);
        match &context.target {
            Some(target) if !target.is_empty() => Ok(false),
            Some(target) => {
                let text = format!("no ready endpoint of backend {}\n", target.name);
                respond(session, StatusCode::SERVICE_UNAVAILABLE, text).await?;
                Ok(true)
            }
            None => {
                let (host, path) = (printable(&context.host), printable(request.uri.path()));
                let text = format!("no ingress rule for host `{host}` and path `{path}`\n");
                respond(session, StatusCode::NOT_FOUND, text).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        let target = context.target.as_ref();
        let next = target.and_then(|target| target.next(&context.tried).or_else(|| target.next(&[])));
        let Some(address) = next else {
            return Err(Error::new_in(ErrorType::HTTPStatus(
                StatusCode::BAD_GATEWAY.as_u16(),
            )));
        };
        context.tried.push(address);
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.idle_timeout = Some(POOL_IDLE);
        peer.options.write_timeout = Some(self.backend_timeout);
        peer.options.read_timeout = Some(self.backend_timeout);
        if session.is_upgrade_req() {
            peer.options.read_timeout = Some(UPGRADED_IDLE);
            peer.options.custom_l4 = Some(Arc::new(ConnectForUpgrade));
            // A connection of its own, from no pool and into none.
            peer.group_key = rand::random();
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        if is_grpc(session.req_header()) {
            // gRPC is HTTP/2 by definition, and without TLS there is nothing to negotiate.
            peer.options.set_http_version(2, 2);
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        // What a client claims in these headers is not known to be true: this is the first proxy that is.
        request.remove_header(&header::FORWARDED);
        request.insert_header(X_FORWARDED_PROTO, "http")?;
        request.insert_header(X_FORWARDED_HOST, context.host.as_str())?;
        if let Some(client) = session.client_addr().and_then(|address| address.as_inet()) {
            let client = client.ip().to_canonical().to_string();
            request.insert_header(X_FORWARDED_FOR, client.as_str())?;
            request.insert_header(X_REAL_IP, client.as_str())?;
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        tracing::debug!(endpoint = %peer, backend = context.backend(), %error, "endpoint does not take connections");
        let untried = |target: &Arc<Target>| target.next(&context.tried).is_some();
        let retry = context.tried.len() < MAX_ATTEMPTS && context.target.as_ref().is_some_and(untried);
        error.set_retry(retry);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        let status = match (error.esource(), error.etype()) {
            (_, ErrorType::HTTPStatus(code)) => StatusCode::from_u16(*code).ok(),
            (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
                Some(StatusCode::GATEWAY_TIMEOUT)
            }
            (ErrorSource::Upstream, _) => Some(StatusCode::BAD_GATEWAY),
            // The client is gone, or sent what is no HTTP.
            (
                ErrorSource::Downstream,
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
            ) => None,
            (ErrorSource::Downstream, _) => Some(StatusCode::BAD_REQUEST),
            (ErrorSource::Internal | ErrorSource::Unset, _) => Some(StatusCode::INTERNAL_SERVER_ERROR),
        };
        if let Some(status) = status
            && session.response_written().is_none()
        {
            let what = match status {
                StatusCode::GATEWAY_TIMEOUT => "does not answer in time",
                StatusCode::BAD_GATEWAY => "cannot be reached",
                _ => "could not be asked",
            };
            let text = format!("backend {} {what}\n", context.backend());
            if let Err(error) = respond(session, status, text).await {
                tracing::debug!(%error, "error response not sent");
            }
        }
        FailToProxy {
            error_code: status.map_or(0, |status| status.as_u16()),
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        let request = session.req_header();
        tracing::debug!(
            client = session.client_addr().map(tracing::field::display),
            method = %request.method,
            host = context.host,
            path = request.uri.path(),
            status,
            backend = context.backend(),
            endpoint = context.tried.last().map(tracing::field::display),
            attempts = context.tried.len(),
            elapsed_ms = context.begin.elapsed().as_millis() as u64,
            error = error.map(tracing::field::display),
            "request"
        );
    }

    // The access log above has these.
    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _context: &Context,
        _error: &Error,
        _log: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Answers with a short plain text; without it for HEAD, whose length says what GET would have got.
async fn respond(session: &mut Session, status: StatusCode, text: String) -> Result<()> {
    let mut response = ResponseHeader::build(status, Some(4))?;
    response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    response.insert_header(header::CONTENT_LENGTH, text.len())?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    response.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    let head = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(response), head).await?;
    if !head {
        session.write_response_body(Some(Bytes::from(text)), true).await?;
    }
    Ok(())
}

/// The authority a request is for: of its target (HTTP/2, proxies' absolute form), else its Host header.
fn authority(request: &RequestHeader) -> String {
    let host = || request.headers.get(header::HOST)?.to_str().ok();
    match request.uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => host().unwrap_or_default().to_owned(),
    }
}

fn is_grpc(request: &RequestHeader) -> bool {
    let content_type = request.headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A client's text as it may be repeated in an answer.
fn printable(text: &str) -> String {
    let keep = |char: char| if char.is_ascii_graphic() { char } else { '?' };
    text.chars().take(MAX_ECHO_CHARS).map(keep).collect()
}
