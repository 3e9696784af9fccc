//! HTTP to a node's API.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use schemas::with_causes;
use serde_json::Value;

use super::settings::Settings;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to begin its answer. Applying many objects takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read whole, bytes: all objects of a full cluster (10,000 of a few KiB) fit.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// On the way from a manifest's URL to where it is: Go's limit, and so kubectl's.
const MAX_REDIRECTS: usize = 10;

const USER_AGENT: &str = concat!("psctl/", env!("CARGO_PKG_VERSION"));

/// A connection to the API.
pub(super) struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    settings: Settings,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot reach {server}: {reason}")]
    Unreachable { server: String, reason: String },
    /// The node answers, with a certificate from a CA that is not known here.
    #[error("the certificate of {server} cannot be trusted: {reason}")]
    Untrusted { server: String, reason: String },
    #[error("the answer of {server} broke off: {reason}")]
    Broken { server: String, reason: String },
    /// The node refused: its `Status`.
    #[error("{}", status.message)]
    Refused { status: Box<Refusal> },
    #[error("the CA certificate cannot be used: {0}")]
    Ca(String),
}

/// What matters of a Kubernetes `Status`.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: StatusCode,
    pub(super) message: String,
}

impl ClientError {
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreachable { .. } => {
                Some("is the agent running there? any other node answers as well: --server")
            }
            Self::Untrusted { .. } => Some(
                "copy <data-dir>/ca.crt from a node and run: psctl config set-ca ca.crt; or copy its admin.kubeconfig and set KUBECONFIG",
            ),
            Self::Refused { status } if status.code == StatusCode::UNAUTHORIZED => {
                Some("give a token: psctl config set-token TOKEN (a node's own is in <data-dir>/api.token)")
            }
            Self::Refused { status } if status.code == StatusCode::INSUFFICIENT_STORAGE => {
                Some("any other node with room takes the write: --server; reads go on here")
            }
            Self::Refused { .. } | Self::Broken { .. } | Self::Ca(_) => None,
        }
    }

    /// Tells whether the object asked for is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status } if status.code == StatusCode::NOT_FOUND)
    }
}

impl Client {
    /// Prepares a connection; nothing is sent yet.
    pub(super) fn new(settings: Settings) -> Result<Self, ClientError> {
        let http = http_client(settings.ca.as_deref())?;
        Ok(Self { http, settings })
    }

    /// Sends a request and returns the answer's head, with its body still to be read.
    ///
    /// # Errors
    /// Not reachable, or an answer other than 2xx.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.settings.server))
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, USER_AGENT);
        if let Some(token) = &self.settings.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                bytes
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| self.unreachable(error))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.http.request(request))
            .await
            .map_err(|_| self.unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
            .map_err(|error| self.failed(&error))?;
        print_warnings(&answer);
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let bytes = self.read(answer).await?;
        let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |field: &str| status.get(field).and_then(Value::as_str).map(str::to_owned);
        let message = text("message").unwrap_or_else(|| {
            let body = String::from_utf8_lossy(&bytes);
            format!(
                "{} answered {code}: {}",
                self.settings.server,
                body.trim().chars().take(200).collect::<String>()
            )
        });
        Err(ClientError::Refused {
            status: Box::new(Refusal { code, message }),
        })
    }

    /// Reads the rest of an answer.
    pub(super) async fn read(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok(body.map_err(|error| self.broken(error))?.to_bytes())
    }

    /// Gets a JSON document.
    pub(super) async fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        let answer = self.send(Method::GET, path, "application/json", None).await?;
        self.parse(answer).await
    }

    /// Reads an answer as JSON.
    pub(super) async fn parse(&self, answer: Response<Incoming>) -> Result<Value, ClientError> {
        let bytes = self.read(answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    pub(super) fn broken(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Broken {
            server: self.settings.server.clone(),
            reason: reason.to_string(),
        }
    }

    /// Says why a request got no answer.
    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        let reason = with_causes(error);
        if is_unknown_authority(error) {
            ClientError::Untrusted {
                server: self.settings.server.clone(),
                reason,
            }
        } else {
            self.unreachable(reason)
        }
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Unreachable {
            server: self.settings.server.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Fetches a manifest from the web, trusting the machine's own CAs.
pub(super) async fn download(url: &str, max_bytes: usize) -> Result<Bytes, String> {
    let http = http_client(None).map_err(|error| error.to_string())?;
    let mut url: Url = url.parse().map_err(|_| "not a URL".to_owned())?;
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::get(url.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .body(Full::new(Bytes::new()));
        let request = request.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, http.request(request))
            .await
            .map_err(|_| format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))?
            .map_err(|error| with_causes(&error))?;
        if let Some(target) = redirect(&url, &answer)? {
            url = target;
            continue;
        }
        if !answer.status().is_success() {
            return Err(format!("the server answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), max_bytes)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        return Ok(body.to_bytes());
    }
    Err(format!("more than {MAX_REDIRECTS} redirects"))
}

/// Returns where the server sends us instead, if it does (RFC 9110, 15.4). What was asked for with TLS is not taken without.
fn redirect<T>(url: &Url, answer: &Response<T>) -> Result<Option<Url>, String> {
    let redirects = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = answer.headers().get(header::LOCATION).filter(|_| redirects) else {
        return Ok(None);
    };
    let location = String::from_utf8_lossy(location.as_bytes());
    let target = url.join(&location).ok();
    let allowed = target
        .filter(|target| target.scheme() == "https" || (target.scheme() == "http" && url.scheme() == "http"));
    match allowed {
        Some(target) => Ok(Some(target)),
        None => Err(format!(
            "the server redirects to {location:?}, which is not followed"
        )),
    }
}

fn http_client(
    ca: Option<&[u8]>,
) -> Result<HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>, ClientError> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Ca(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in certificates(pem)? {
                roots
                    .add(certificate)
                    .map_err(|error| ClientError::Ca(error.to_string()))?;
            }
        }
        None => {
            // Certificates that the machine has but rustls cannot read are none of our business.
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    let tls = builder.with_root_certificates(roots).with_no_client_auth();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(connector);
    Ok(HttpClient::builder(TokioExecutor::new()).build(connector))
}

/// Reads the certificates of a PEM text; there may be none.
///
/// # Errors
/// A block that cannot be read.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| ClientError::Ca(error.to_string()))
}

/// Tells whether TLS failed since the certificate comes from a CA that is not trusted: an unknown one, or another of the
/// same name, whose signature does not match.
fn is_unknown_authority(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error shows the causes of what it wraps, not that itself.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = match wrapped {
            Some(wrapped) => wrapped.downcast_ref::<rustls::Error>(),
            None => error.downcast_ref(),
        };
        if let Some(rustls::Error::InvalidCertificate(problem)) = tls {
            return matches!(
                problem,
                CertificateError::UnknownIssuer | CertificateError::BadSignature
            );
        }
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// Prints the `Warning:` headers (RFC 9110 removed them, Kubernetes uses them) as kubectl does.
fn print_warnings(answer: &Response<Incoming>) {
    for value in answer.headers().get_all(header::WARNING) {
        eprintln!(
            "Warning: {}",
            warning_text(&String::from_utf8_lossy(value.as_bytes()))
        );
    }
}

/// The text of `299 - "text"`: a quoted string, in which a backslash stands before a character that is meant as it is
/// (RFC 9110, 5.6.4).
fn warning_text(header: &str) -> String {
    let quoted = header.splitn(3, ' ').nth(2).unwrap_or(header);
    let Some(inner) = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return quoted.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        let meant = if character == '\\' {
            characters.next()
        } else {
            None
        };
        text.push(meant.unwrap_or(character));
    }
    text
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;

    use super::*;

    #[test]
    fn warnings_lose_their_outer_quotes_alone() {
        for (header, expected) in [
            (r#"299 - "plain text""#, "plain text"),
            (
                r#"299 - "unknown field \"spec.colour\"""#,
                r#"unknown field "spec.colour""#,
            ),
            (r#"299 - "a \\ and \"""#, r#"a \ and ""#),
            (r#"299 - "größe""#, "größe"),
            ("299 - bare", "bare"),
            ("odd", "odd"),
        ] {
            assert_eq!(warning_text(header), expected, "{header}");
        }
    }

    #[test]
    fn redirects_never_lead_out_of_tls() {
        let check = |from: &str, location: &str, expected: Result<&str, ()>| {
            let answer = Response::builder().status(302).header(header::LOCATION, location);
            let target = redirect(&from.parse().unwrap(), &answer.body(()).unwrap());
            let target = target.map(|target| target.unwrap().to_string()).map_err(drop);
            assert_eq!(target, expected.map(str::to_owned), "{from} to {location}");
        };
        check("https://a/b/c.yaml", "d.yaml", Ok("https://a/b/d.yaml"));
        check("https://a/b", "https://c/d", Ok("https://c/d"));
        check("http://a/b", "//c/d", Ok("http://c/d"));
        check("http://a/b", "https://a/b", Ok("https://a/b"));
        check("https://a/b", "http://a/b", Err(()));
        check("http://a/b", "file:///etc/passwd", Err(()));
    }

    #[tokio::test]
    async fn a_manifest_is_found_where_its_url_leads() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |request: Request<Incoming>| async move {
            let target = match request.uri().path() {
                "/first" => "/second",
                "/second" => "third",
                "/loop" => "/loop",
                _ => return Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("found"))),
            };
            let answer = Response::builder().status(302).header(header::LOCATION, target);
            Ok(answer.body(Full::default()).unwrap())
        };
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::spawn(async move { connection.await.ok() });
            }
        });
        let get = |path: &str| {
            let url = format!("http://{address}{path}");
            async move { download(&url, 1024).await }
        };
        assert_eq!(get("/first").await.unwrap(), "found");
        assert!(get("/loop").await.unwrap_err().contains("redirects"));
        server.abort();
    }

    #[test]
    fn an_unknown_authority_is_told_from_other_faults() {
        let invalid = |problem| rustls::Error::InvalidCertificate(problem);
        for (error, expected) in [
            (invalid(CertificateError::UnknownIssuer), true),
            (invalid(CertificateError::BadSignature), true),
            (invalid(CertificateError::Expired), false),
            (rustls::Error::DecryptError, false),
        ] {
            let wrapped = std::io::Error::other(std::io::Error::other(error.clone()));
            assert_eq!(is_unknown_authority(&error), expected, "{error}");
            assert_eq!(is_unknown_authority(&wrapped), expected, "{error}");
        }
        assert!(!is_unknown_authority(&std::io::Error::from_raw_os_error(111)));
    }
}
