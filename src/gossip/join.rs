//! The joiner's side of admission, and the messages of both sides.
//!
//! One `POST /join` over TLS 1.3: the CA is checked against the token's digest while connecting, and only then is the
//! token shown, in the `Authorization` header, so that the other side needs to parse nothing before it has checked it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use store::NodeId;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::certificates;
use super::credentials::{ClusterKey, parse_certificates};
use super::error::Error;
use super::token::JoinToken;

/// Version of this protocol; other versions are refused by both sides.
pub(super) const PROTOCOL: u32 = 1;
/// Where the request goes.
pub(super) const PATH: &str = "/join";
/// A request holds one certificate request and three names: about 2 KiB.
pub(super) const REQUEST_LIMIT: usize = 16 * 1024;
/// An answer holds two certificates, a key and 50 members: about 10 KiB.
const ANSWER_LIMIT: usize = 256 * 1024;
/// For one attempt at one address, from name lookup to answer: the other side writes to its disk once.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pauses between rounds over all addresses.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a joiner says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JoinRequest {
    pub(super) protocol: u32,
    /// [`store::PROTOCOL`].
    #[serde(default)]
    pub(super) store_protocol: u32,
    /// PEM; None if the joiner showed a certificate of the cluster's CA while connecting.
    pub(super) certificate_request: Option<String>,
    pub(super) node_name: String,
    pub(super) host_name: String,
    pub(super) address: IpAddr,
    pub(super) gossip_port: u16,
    /// Of the key that it brings, if it brings one.
    pub(super) key_fingerprint: Option<String>,
    /// Range of all pods, which must be the cluster's.
    pub(super) pod_cidr: IpNet,
}

impl JoinRequest {
    /// Tells why this release cannot admit the joiner's.
    pub(super) fn other_version(&self) -> Option<String> {
        let of = |what, ours, theirs| {
            (ours != theirs).then(|| {
                format!(
                    "this node speaks version {ours} of {what}, the joiner {theirs}: run one release of podman-swarm-agent on both"
                )
            })
        };
        of("the join protocol", PROTOCOL, self.protocol)
            .or_else(|| of("the stores' protocol", store::PROTOCOL, self.store_protocol))
    }
}

/// What an admitted node is given.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JoinAnswer {
    pub(super) protocol: u32,
    pub(super) cluster_id: String,
    /// PEM; None if the joiner brought its own.
    pub(super) certificate: Option<String>,
    pub(super) authority: String,
    pub(super) authority_key: Option<String>,
    /// Base64.
    pub(super) cluster_key: String,
    pub(super) join_token: String,
    /// Every member's peer address.
    pub(super) members: BTreeMap<NodeId, SocketAddr>,
}

/// Why a node is not admitted, as the body of the answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) reason: String,
}

/// An answer whose parts were checked.
pub(super) struct Grant {
    pub(super) cluster_id: String,
    pub(super) certificate: Option<CertificateDer<'static>>,
    pub(super) authority: CertificateDer<'static>,
    pub(super) authority_key: Option<rcgen::KeyPair>,
    pub(super) cluster_key: ClusterKey,
    pub(super) join_token: JoinToken,
    pub(super) members: BTreeMap<NodeId, SocketAddr>,
}

impl JoinAnswer {
    /// Parses what was given, and checks that it comes from the cluster that the token names.
    pub(super) fn into_grant(self, token: &JoinToken) -> Result<Grant, Error> {
        let refused = |reason: &str| Error::Refused {
            address: "the join answer".into(),
            reason: reason.to_owned(),
        };
        if self.protocol != PROTOCOL {
            return Err(refused(&format!(
                "it speaks version {} of the join protocol, this agent {PROTOCOL}",
                self.protocol
            )));
        }
        let source = Path::new("the join answer");
        let first = |text: &str| -> Result<CertificateDer<'static>, Error> {
            parse_certificates(source, text)?
                .into_iter()
                .next()
                .ok_or_else(|| refused("a certificate is missing"))
        };
        let authority = first(&self.authority)?;
        if certificates::digest(&authority) != token.authority_digest {
            return Err(refused("it holds another CA than the token names"));
        }
        Ok(Grant {
            cluster_id: self.cluster_id,
            certificate: self.certificate.as_deref().map(first).transpose()?,
            authority,
            authority_key: self
                .authority_key
                .as_deref()
                .map(rcgen::KeyPair::from_pem)
                .transpose()?,
            cluster_key: ClusterKey::parse(&self.cluster_key)
                .ok_or_else(|| refused("the cluster key does not parse"))?,
            join_token: self.join_token.parse()?,
            members: self.members,
        })
    }
}

/// What one attempt came to, short of an answer.
enum Failure {
    /// This address said no, for good.
    Refused(String),
    /// Try again, or elsewhere.
    Unavailable(String),
}

/// Asks the addresses in turn until one admits or refuses; waits while none answers, saying so once per cause.
pub(super) async fn join(
    addresses: &[String],
    token: &JoinToken,
    tls: Arc<ClientConfig>,
    request: &JoinRequest,
) -> Result<JoinAnswer, Error> {
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    loop {
        for address in addresses {
            let attempt = timeout(ATTEMPT_TIMEOUT, ask(address, token, tls.clone(), request));
            let failure = match attempt.await {
                Ok(Ok(answer)) => {
                    info!(address, "admitted");
                    return Ok(answer);
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Unavailable(format!("no answer within {ATTEMPT_TIMEOUT:?}")),
            };
            match failure {
                Failure::Refused(reason) => {
                    return Err(Error::Refused {
                        address: address.clone(),
                        reason,
                    });
                }
                Failure::Unavailable(error) => {
                    if said.get(address.as_str()) != Some(&error) {
                        warn!(address, error, "cannot join yet, will retry");
                        said.insert(address, error);
                    }
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn ask(
    address: &str,
    token: &JoinToken,
    tls: Arc<ClientConfig>,
    request: &JoinRequest,
) -> Result<JoinAnswer, Failure> {
    let unavailable = |error: &dyn std::fmt::Display| Failure::Unavailable(error.to_string());
    let host = host_of(address)
        .ok_or_else(|| Failure::Refused("--join takes host:port (or [address]:port)".into()))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::Refused(format!("`{host}` is no host name")))?;
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| Failure::Unavailable(format!("no connection within {CONNECT_TIMEOUT:?}")))?
        .map_err(|error| unavailable(&error))?;
    let stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| match rustls_error(&error) {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                Failure::Refused(
                    "its CA is not the one that the join token names: wrong cluster or token".into(),
                )
            }
            Some(rustls::Error::InvalidCertificate(problem)) => {
                Failure::Refused(format!("its certificate is not accepted: {problem}"))
            }
            _ => unavailable(&error),
        })?;

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unavailable(&error))?;
    let body = serde_json::to_vec(request).map_err(|error| unavailable(&error))?;
    let message = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(header::HOST, address)
        .header(header::AUTHORIZATION, format!("Bearer {}", token.bearer()))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| unavailable(&error))?;
    // Ends when `sender` is dropped, also on a timeout.
    tokio::spawn(connection);
    let response = sender
        .send_request(message)
        .await
        .map_err(|error| unavailable(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| unavailable(&error))?
        .to_bytes();
    if status == StatusCode::OK {
        return serde_json::from_slice(&body)
            .map_err(|error| Failure::Refused(format!("its answer does not parse: {error}")));
    }
    let reason = serde_json::from_slice::<Refusal>(&body)
        .map_or_else(|_| format!("status {status}"), |refusal| refusal.reason);
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        return Err(Failure::Unavailable(reason));
    }
    Err(Failure::Refused(reason))
}

/// The host of `host:port` or `[address]:port`.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(host) => Some(host),
        None if host.is_empty() || host.contains(':') => None,
        None => Some(host),
    }
}

fn rustls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_addresses_need_a_host_and_a_port() {
        for (address, host) in [
            ("node1:7946", Some("node1")),
            ("10.0.0.1:7946", Some("10.0.0.1")),
            ("[fd00::1]:7946", Some("fd00::1")),
            ("fd00::1:7946", None),
            ("node1", None),
            (":7946", None),
            ("node1:port", None),
        ] {
            assert_eq!(host_of(address), host, "{address}");
        }
    }

    #[test]
    fn an_agent_of_another_release_is_told_so() {
        let request = |protocol, store_protocol| JoinRequest {
            protocol,
            store_protocol,
            certificate_request: None,
            node_name: "node2".into(),
            host_name: "node2".into(),
            address: "10.0.0.2".parse().unwrap(),
            gossip_port: 7946,
            key_fingerprint: None,
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
        };
        assert_eq!(request(PROTOCOL, store::PROTOCOL).other_version(), None);
        for (request, what) in [
            (request(PROTOCOL + 1, store::PROTOCOL), "join protocol"),
            (request(PROTOCOL, store::PROTOCOL - 1), "stores' protocol"),
        ] {
            let reason = request.other_version().unwrap();
            assert!(
                reason.contains(what) && reason.contains("one release"),
                "{reason}"
            );
        }
    }
}
