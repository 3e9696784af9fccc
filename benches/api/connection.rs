//! Connections to an API server: HTTP/2 where it has it, else HTTP/1.1, over TLS and kept open, one for each worker.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;

/// kube-apiserver gives up on a request after as long.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Room for a list of all objects without a pause for the window, bytes.
const WINDOW_BYTES: u32 = 64 << 20;

/// Whose certificates are believed.
pub(crate) enum Trust {
    /// Those that this certificate authority (PEM) has signed.
    Authority(String),
    /// Those that the system believes.
    System,
    /// Everybody's: what is sent could go to anybody.
    Anybody,
}

/// An API server and who asks.
#[derive(Clone)]
pub(crate) struct Api {
    /// `https://host:port`, without a slash at its end.
    url: String,
    token: String,
    tls: ClientConfig,
}

/// A request that can be sent.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

impl Call {
    /// A request without a body.
    pub(crate) fn bare(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            content_type: "application/json",
            body: Bytes::new(),
        }
    }
}

/// One worker's connection.
pub(crate) struct Connection {
    api: Api,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Api {
    /// # Errors
    /// The certificate authority cannot be used.
    pub(crate) fn new(url: &str, token: &str, trust: &Trust) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let tls = if matches!(trust, Trust::Anybody) {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth()
        } else {
            builder
                .with_root_certificates(roots(trust)?)
                .with_no_client_auth()
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            tls,
        })
    }

    /// A connection that is made by the first request.
    pub(crate) fn connection(&self) -> Connection {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_only()
            .enable_all_versions()
            .wrap_connector(connector);
        let http = Client::builder(TokioExecutor::new())
            // What is sent again would hide a failure.
            .retry_canceled_requests(false)
            .http2_initial_stream_window_size(WINDOW_BYTES)
            .http2_initial_connection_window_size(WINDOW_BYTES)
            .http2_max_frame_size(1 << 20)
            .build(connector);
        Connection {
            api: self.clone(),
            http,
        }
    }
}

fn roots(trust: &Trust) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::Authority(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.context("the CA is not PEM")?)?;
            }
            if roots.is_empty() {
                bail!("the CA has no certificate");
            }
        }
        Trust::System => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Trust::Anybody => {}
    }
    Ok(roots)
}

impl Connection {
    /// Sends a request; returns the answer with its body still to come.
    ///
    /// # Errors
    /// There was none in time, or it is not one of success.
    pub(crate) async fn begin(&self, call: Call) -> Result<Response<Incoming>> {
        let what = format!("{} {}", call.method, call.path);
        let request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.api.url, call.path))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.api.token))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, call.content_type)
            .header(header::USER_AGENT, "podman-swarm-bench")
            .body(Full::new(call.body))?;
        let answer = tokio::time::timeout(TIMEOUT, self.http.request(request))
            .await
            .map_err(|_| anyhow!("{what}: no answer within {TIMEOUT:?}"))?
            .with_context(|| what.clone())?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.with_context(|| what.clone())?;
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        bail!("{what}: {status} {}", body.trim());
    }

    /// Sends a request; returns the whole answer.
    ///
    /// # Errors
    /// As [`Self::begin`], or the answer broke off.
    pub(crate) async fn call(&self, call: Call) -> Result<Bytes> {
        let what = format!("{} {}", call.method, call.path);
        let answer = self.begin(call).await?;
        let body = tokio::time::timeout(TIMEOUT, answer.into_body().collect())
            .await
            .map_err(|_| anyhow!("{what}: the answer has no end after {TIMEOUT:?}"))?;
        Ok(body.with_context(|| what)?.to_bytes())
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`Self::call`], or it is none.
    pub(crate) async fn read(&self, path: &str) -> Result<Value> {
        let answer = self.call(Call::bare(Method::GET, path)).await?;
        serde_json::from_slice(&answer).with_context(|| format!("GET {path}"))
    }
}

/// Believes every certificate (`API_INSECURE=1`), as `curl -k` does; who has its key is checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
