//! TLS among peers (1.3, both sides' certificates, identity by public key), for joiners (the CA pinned by digest),
//! and for the API.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme, version,
};
use store::NodeId;

use super::certificates;
use super::credentials::Credentials;

/// Versions that peers speak: both sides are ours.
const PEER_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&version::TLS13];

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The server side among peers: a client certificate of the cluster's CA is asked for and may be missing (a joiner's).
pub(super) fn peer_server(credentials: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(credentials.authority.certificate.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(PEER_VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would outlive the check of the certificate.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The server side of the API.
pub(super) fn api_server(credentials: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The client side towards a member: the peer must be that very node.
pub(super) fn peer_client(credentials: &Credentials, node: &NodeId) -> Result<Arc<ClientConfig>, Error> {
    let trust = Trust::Node {
        authority: credentials.authority.certificate.clone(),
        node: node.clone(),
    };
    let mut config =
        client(trust)?.with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The client side of a joiner: the peer's chain must end in the CA that the token names, and the certificate must
/// have the name asked for, unless `skip_names`. `own`: certificate and key, if the joiner brings some.
pub(super) fn join_client(
    authority_digest: &str,
    skip_names: bool,
    own: Option<(
        Vec<CertificateDer<'static>>,
        rustls::pki_types::PrivateKeyDer<'static>,
    )>,
) -> Result<Arc<ClientConfig>, Error> {
    let builder = client(Trust::Pin {
        authority_digest: authority_digest.to_owned(),
        skip_names,
    })?;
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn client(
    trust: Trust,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(PEER_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier {
            trust,
            algorithms: provider().signature_verification_algorithms,
        })))
}

/// What makes a peer trustworthy.
#[derive(Debug)]
enum Trust {
    /// The cluster's CA vouches for it, and it holds this node's key.
    Node {
        authority: CertificateDer<'static>,
        node: NodeId,
    },
    /// It shows a CA with this digest, which vouches for it.
    Pin {
        authority_digest: String,
        skip_names: bool,
    },
}

/// Checks the certificate of the peer that we connect to.
#[derive(Debug)]
struct PeerVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// Checks that `authority` vouches for the certificate, now.
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        authority: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            intermediates,
            now,
            self.algorithms.all,
        )
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Node { authority, node } => {
                if certificates::node_id(end_entity).as_ref() != Some(node) {
                    return Err(Error::InvalidCertificate(
                        CertificateError::ApplicationVerificationFailure,
                    ));
                }
                self.verify_chain(end_entity, intermediates, authority, now)?;
            }
            Trust::Pin {
                authority_digest,
                skip_names,
            } => {
                let authority = intermediates
                    .iter()
                    .find(|one| certificates::digest(one) == *authority_digest)
                    .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                self.verify_chain(end_entity, intermediates, authority, now)?;
                if !skip_names {
                    let certificate = ParsedCertificate::try_from(end_entity)?;
                    // Certificates that the cluster issued say so themselves; others must have the name asked for.
                    let internal = ServerName::try_from(certificates::INTERNAL_NAME)
                        .map_err(|error| Error::General(error.to_string()))?;
                    verify_server_name(&certificate, &internal)
                        .or_else(|_| verify_server_name(&certificate, server_name))?;
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
