//! A small HTTP client for Podman's unix socket: one connection per request, a time limit on each, bounded bodies.
//!
//! It exists beside `podman-api` for the calls which that crate cannot do (see where it is used). Paths are sent in the form
//! of API version 4.0, which Podman 4.3 and 5.x both speak.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use reconcilers::ports::PortError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// Podman 5 answers requests of this version in the shapes of Podman 4.
const PREFIX: &str = "/v4.0.0/libpod";

/// The largest answer that is read whole: inspecting a container or the engine takes tens of kilobytes.
const BODY_BYTES_MAX: usize = 8 << 20;

/// Why a call to Podman failed, before it is known what that means for the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Podman answered, with a refusal.
    #[error("{message}")]
    Status { status: StatusCode, message: String },
    /// No answer, or none that makes sense.
    #[error("{0}")]
    Unavailable(String),
}

impl CallError {
    pub(super) fn is(&self, expected: StatusCode) -> bool {
        matches!(self, Self::Status { status, .. } if *status == expected)
    }

    /// Tells a refusal (with the reason that Kubernetes has for it) from a failure worth a retry.
    pub(super) fn into_port(self, operation: &'static str, reason: &'static str) -> PortError {
        match self {
            Self::Status { message, .. } => PortError::Refused { reason, message },
            Self::Unavailable(message) => PortError::Unavailable { operation, message },
        }
    }
}

impl From<podman_api::Error> for CallError {
    fn from(error: podman_api::Error) -> Self {
        match error {
            podman_api::Error::Fault { code, message } => match StatusCode::from_u16(code.as_u16()) {
                Ok(status) => Self::Status {
                    status,
                    message: message.trim_end_matches([':', ' ']).to_owned(),
                },
                Err(_) => Self::Unavailable(message),
            },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Puts a time limit on a call: neither `podman-api` nor Podman has any of its own.
pub(super) async fn within<T, E: Into<CallError>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(CallError::Unavailable(format!(
            "no answer from Podman within {} s",
            limit.as_secs()
        ))),
    }
}

/// Podman's socket.
#[derive(Clone, Debug)]
pub(super) struct Socket(PathBuf);

/// How Podman writes an error.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
}

impl Socket {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Sends a request and reads the JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<T, CallError> {
        within(limit, async {
            let (response, _connection) = self.send(method, target, body).await?;
            let bytes = collect(response.into_body()).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| CallError::Unavailable(format!("Podman's answer does not parse: {error}")))
        })
        .await
    }

    /// Sends a request and returns the answer's body as it comes, once its head is there. Dropping it ends the call.
    ///
    /// Without a limit of its own: Podman sends the head of some streams with their first byte.
    pub(super) async fn stream(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<BodyStream, CallError> {
        let (response, connection) = self.send(method, target, body).await?;
        Ok(BodyStream {
            body: response.into_body(),
            _connection: connection,
        })
    }

    /// Sends a request whose answer has nothing in it.
    pub(super) async fn call(&self, method: Method, target: &str, limit: Duration) -> Result<(), CallError> {
        within(limit, async { self.send(method, target, None).await.map(drop) }).await
    }

    /// Sends a request after which Podman hands over the connection.
    pub(super) async fn upgrade(&self, target: &str, body: Option<&Value>) -> Result<Upgraded, CallError> {
        let (response, _connection) = self.send_asking(Method::POST, target, body, true).await?;
        hyper::upgrade::on(response).await.map_err(|error| {
            CallError::Unavailable(format!("Podman does not hand over the connection: {error}"))
        })
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), CallError> {
        self.send_asking(method, target, body, false).await
    }

    /// Sends a request; `upgrade`: asks for the connection.
    async fn send_asking(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), CallError> {
        let unavailable = |error: &dyn std::fmt::Display| CallError::Unavailable(error.to_string());
        let stream = UnixStream::connect(&self.0)
            .await
            .map_err(|error| CallError::Unavailable(format!("{}: {error}", self.0.display())))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unavailable(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // A broken connection shows as an error of the request or of its body.
            let _ = connection.with_upgrades().await;
        }));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{target}"))
            .header(header::HOST, "podman");
        if upgrade {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "tcp");
        }
        let payload = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(value.to_string())
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(payload))
            .map_err(|error| unavailable(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| unavailable(&error))?;
        if response.status().is_success() || (upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS)
        {
            return Ok((response, connection));
        }
        let status = response.status();
        let bytes = collect(response.into_body()).await?;
        let message = match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(refusal) if !refusal.message.is_empty() => refusal.message,
            Ok(refusal) if !refusal.cause.is_empty() => refusal.cause,
            _ => String::from_utf8_lossy(&bytes).trim().to_owned(),
        };
        Err(CallError::Status { status, message })
    }
}

async fn collect(body: Incoming) -> Result<Bytes, CallError> {
    Limited::new(body, BODY_BYTES_MAX)
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .map_err(|error| CallError::Unavailable(error.to_string()))
}

/// A body as it arrives. Ends at a broken connection with an error.
#[derive(Debug)]
pub(super) struct BodyStream {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Stream for BodyStream {
    type Item = Result<Bytes, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(CallError::Unavailable(error.to_string())))),
                // Trailers carry nothing for us.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

/// Escapes a value for the query of a URL.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
