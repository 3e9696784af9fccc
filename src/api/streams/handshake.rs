//! What a client asks for in the headers, the answer to it, and the way of the bytes: over the client's own connection, or
//! relayed between nodes as the bodies of one HTTP/2 request.
//!
//! A relaying node passes the bytes of the websocket on unread; the pod's node speaks with the client. Flow control of HTTP/2
//! and of TCP makes each side wait for the other.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures::TryStreamExt;
use futures::future::{Either, select};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use reconcilers::ports::Duplex;
use store::NodeId;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex, join, split};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::sync::CancellationToken;

use super::CLOSE_LIMIT;
use super::sessions::{Place, Sessions};
use crate::api::status::{ApiError, ApiResult};
use crate::relay::{Relay, RelayError};

/// In a relayed request: the protocol that was agreed on, or [`SPDY`]; empty for none.
pub(crate) const RELAYED_PROTOCOL: HeaderName = HeaderName::from_static("x-podman-swarm-protocol");
/// Stands for a client that cannot be served: the pod's node says what else is wrong before that.
const SPDY: &str = "SPDY";
/// Protocols that a client may offer.
const OFFERS_MAX: usize = 32;
/// Between a body and the session, each way.
const RELAY_BUFFER_BYTES: usize = 64 << 10;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A websocket with one of these protocols, the best first; None: whatever we have.
    WebSocket { offers: Vec<String> },
    /// SPDY, as kubectl did before 1.31.
    Spdy,
}

impl Asked {
    /// Reads the headers of a request; of a relayed one, what another node read.
    ///
    /// # Errors
    /// 400 for a request that asks for no upgrade, 403 for one that a page of another site made.
    pub(crate) fn of(headers: &HeaderMap) -> ApiResult<Self> {
        if let Some(relayed) = headers.get(&RELAYED_PROTOCOL) {
            return Ok(match relayed.to_str() {
                Ok(SPDY) => Self::Spdy,
                Ok("") | Err(_) => Self::WebSocket { offers: Vec::new() },
                Ok(protocol) => Self::WebSocket {
                    offers: vec![protocol.to_owned()],
                },
            });
        }
        let upgrade = text(headers, &header::UPGRADE).to_ascii_lowercase();
        if upgrade.starts_with("spdy/") {
            return Ok(Self::Spdy);
        }
        let key = text(headers, &header::SEC_WEBSOCKET_KEY);
        if upgrade != "websocket" || key.is_empty() {
            return Err(ApiError::bad_request(
                "Upgrade request required: this is for websockets over HTTP/1.1",
            ));
        }
        let version = text(headers, &header::SEC_WEBSOCKET_VERSION);
        if version != "13" {
            return Err(ApiError::bad_request(format!(
                "header Sec-WebSocket-Version: `{version}` is not supported: 13 is"
            )));
        }
        check_origin(headers)?;
        let offers = headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|offer| offer.trim().to_owned())
            .filter(|offer| !offer.is_empty())
            .take(OFFERS_MAX)
            .collect();
        Ok(Self::WebSocket { offers })
    }

    /// Agrees on the first offer that is known; without offers, on an empty one.
    ///
    /// # Errors
    /// 400 for SPDY and for offers of which none is known.
    pub(crate) fn choose(&self, known: &[&'static str]) -> ApiResult<&'static str> {
        let offers = match self {
            Self::Spdy => {
                return Err(ApiError::bad_request(
                    "SPDY is not supported; use kubectl 1.31 or later, or another client that uses websockets",
                ));
            }
            Self::WebSocket { offers } if offers.is_empty() => return Ok(""),
            Self::WebSocket { offers } => offers,
        };
        let chosen = offers
            .iter()
            .find_map(|offer| known.iter().find(|name| *name == offer));
        chosen.copied().ok_or_else(|| {
            ApiError::bad_request(format!(
                "unable to negotiate a protocol: the client offers [{}], supported are [{}]",
                offers.join(", "),
                known.join(", ")
            ))
        })
    }

    /// [`RELAYED_PROTOCOL`] for the pod's node.
    fn relayed(&self, known: &[&'static str]) -> ApiResult<&'static str> {
        match self {
            Self::Spdy => Ok(SPDY),
            Self::WebSocket { .. } => self.choose(known),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().trim()
}

/// Browsers let pages of any site open websockets to any other, and name the page's site in `Origin`.
fn check_origin(headers: &HeaderMap) -> ApiResult<()> {
    let origin = text(headers, &header::ORIGIN);
    let site = origin.split_once("://").map_or(origin, |(_, site)| site);
    if origin.is_empty() || site.eq_ignore_ascii_case(text(headers, &header::HOST)) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "Forbidden",
        format!("header Origin: pages of {origin} may not open sessions here"),
    ))
}

/// Where the bytes of a client come from and go to.
pub(crate) enum Client {
    /// Its own connection, when the answer has gone out.
    Upgrade { on_upgrade: OnUpgrade, key: String },
    /// The bodies of a relayed request.
    Relayed(Body),
}

impl Client {
    /// Takes what a request brought along.
    ///
    /// # Errors
    /// 400 if there is no connection to take over: HTTP/2 has none.
    pub(crate) fn of(headers: &HeaderMap, on_upgrade: Option<OnUpgrade>, body: Body) -> ApiResult<Self> {
        if headers.contains_key(&RELAYED_PROTOCOL) {
            return Ok(Self::Relayed(body));
        }
        let on_upgrade = on_upgrade.ok_or_else(|| {
            ApiError::bad_request("Upgrade request required: websockets are for HTTP/1.1 here")
        })?;
        let key = text(headers, &header::SEC_WEBSOCKET_KEY).to_owned();
        Ok(Self::Upgrade { on_upgrade, key })
    }

    /// Makes the answer that accepts, and what gives the bytes once it has gone out.
    pub(crate) fn accept(
        self,
        protocol: &'static str,
    ) -> (
        Response,
        impl Future<Output = io::Result<Box<dyn Duplex>>> + Send + 'static,
    ) {
        let (mut response, opened) = match self {
            Self::Relayed(body) => {
                let (near, far) = duplex(RELAY_BUFFER_BYTES);
                let io = join(reader(body), far);
                (Response::new(sent(near)), Opened::Relayed(Box::new(io)))
            }
            Self::Upgrade { on_upgrade, key } => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
                (response, Opened::Upgrade(on_upgrade))
            }
        };
        if !protocol.is_empty() {
            response
                .headers_mut()
                .insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let opened = async move {
            match opened {
                Opened::Relayed(io) => Ok(io),
                Opened::Upgrade(on_upgrade) => {
                    let upgraded = on_upgrade.await.map_err(io::Error::other)?;
                    Ok(Box::new(TokioIo::new(upgraded)) as Box<dyn Duplex>)
                }
            }
        };
        (response, opened)
    }
}

enum Opened {
    Relayed(Box<dyn Duplex>),
    Upgrade(OnUpgrade),
}

/// A body that is read.
fn reader(body: Body) -> impl tokio::io::AsyncRead + Send + Unpin {
    StreamReader::new(body.into_data_stream().map_err(io::Error::other))
}

/// A body of what is written to the other end.
fn sent(end: DuplexStream) -> Body {
    Body::from_stream(ReaderStream::with_capacity(end, RELAY_BUFFER_BYTES))
}

/// Where and as what a session is relayed.
pub(crate) struct Way<'a> {
    pub(crate) relay: &'a Arc<dyn Relay>,
    pub(crate) node: &'a NodeId,
    pub(crate) known: &'a [&'static str],
}

/// Has the pod's node run the session. `request` is without protocol and body.
///
/// # Errors
/// The outer: what is wrong with the client's request; the inner: the node cannot be reached. A refusal of the pod's node is the
/// answer.
pub(crate) async fn relay(
    way: Way<'_>,
    (sessions, place): (&Sessions, Place),
    asked: &Asked,
    client: Option<Client>,
    mut request: Request,
) -> ApiResult<Result<Response, RelayError>> {
    let protocol = asked.relayed(way.known)?;
    let (near, far) = duplex(RELAY_BUFFER_BYTES);
    request
        .headers_mut()
        .insert(RELAYED_PROTOCOL, HeaderValue::from_static(protocol));
    *request.method_mut() = http::Method::POST;
    *request.body_mut() = sent(near);
    let answer = match way.relay.send(way.node, request).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let Some(client) = client.filter(|_| answer.status() == StatusCode::OK) else {
        return Ok(Ok(answer));
    };
    let (response, opened) = client.accept(protocol);
    sessions.spawn(place, |stopping| async move {
        let mut peer = join(reader(answer.into_body()), far);
        let Ok(mut client) = opened.await else { return };
        let copied = copy(&mut client, &mut peer, stopping).await;
        if let Err(error) = copied {
            tracing::debug!(%error, "api: a relayed session broke off");
        }
    });
    Ok(Ok(response))
}

async fn copy(
    client: &mut Box<dyn Duplex>,
    peer: &mut (impl Duplex + ?Sized),
    stopping: CancellationToken,
) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_peer, mut to_peer)) = (split(client), split(peer));
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_peer).await?;
        to_peer.shutdown().await
    };
    let down = async {
        tokio::io::copy(&mut from_peer, &mut to_client).await?;
        to_client.shutdown().await
    };
    let both = async {
        let (up, down) = (pin!(up), pin!(down));
        match select(up, down).await {
            Either::Left((ended, down)) => ended.and(down.await),
            // The session is over: a client that is gone without a word is not waited for.
            Either::Right((ended, up)) => {
                ended?;
                timeout(CLOSE_LIMIT, up).await.unwrap_or(Ok(()))
            }
        }
    };
    tokio::select! {
        copied = both => copied,
        () = stopping.cancelled() => Ok(()),
    }
}
