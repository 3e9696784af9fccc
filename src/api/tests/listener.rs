//! The listener: TLS and plain HTTP on one port, and its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fixture::{Api, pod};
use crate::api::serve::Server;
use crate::api::{PlainHttp, create_token};

const DEADLINE: Duration = Duration::from_secs(20);
/// For the tests that wait until it is over.
const STRANGER_TIME: Duration = Duration::from_millis(300);

/// An API behind the listener, on a port of its own.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) certificate_pem: String,
    certificate: CertificateDer<'static>,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    pub(super) async fn start(api: &Api, plain: PlainHttp) -> Self {
        Self::start_with(api, plain, None).await
    }

    /// `stranger_time`: how long a connection may go without a token, if not as long as usual.
    async fn start_with(api: &Api, plain: PlainHttp, stranger_time: Option<Duration>) -> Self {
        let made =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key)
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let tls = Arc::new(config);
        let mut server = Server::new(api.router.clone(), tls.clone(), plain, shutdown.clone());
        server.stranger_time = stranger_time.unwrap_or(server.stranger_time);
        let task = tokio::spawn(Arc::new(server).serve(listener));
        Self {
            address,
            certificate_pem: made.cert.pem(),
            certificate,
            tls,
            shutdown,
            task,
        }
    }

    /// Ends as an agent does that is told to.
    pub(super) async fn stop(&mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
    }

    /// After [`Served::stop`]: an API, perhaps another, answers over TLS at the same address with the same certificate.
    pub(super) async fn answer_again(&mut self, api: &Api) {
        self.shutdown = CancellationToken::new();
        let listener = TcpListener::bind(self.address).await.unwrap();
        let server = Server::new(
            api.router.clone(),
            self.tls.clone(),
            PlainHttp::Off,
            self.shutdown.clone(),
        );
        self.task = tokio::spawn(Arc::new(server).serve(listener));
    }

    async fn connect_tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("localhost").unwrap();
        connector
            .connect(name, TcpStream::connect(self.address).await.unwrap())
            .await
            .unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a request of HTTP/1.1 and reads until the other side closes.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
    read.expect("the connection stayed open").unwrap();
    answer
}

#[tokio::test]
async fn one_port_takes_tls_and_plain_http() {
    let api = Api::open().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    let plain = get(TcpStream::connect(served.address).await.unwrap(), "/livez").await;
    assert!(
        plain.starts_with("HTTP/1.1 200") && plain.ends_with("ok"),
        "{plain}"
    );
    let sealed = get(served.connect_tls().await, "/livez").await;
    assert!(
        sealed.starts_with("HTTP/1.1 200") && sealed.ends_with("ok"),
        "{sealed}"
    );
}

#[tokio::test]
async fn plain_http_can_be_turned_off() {
    let api = Api::open().await;
    let served = Served::start(&api, PlainHttp::Off).await;
    let refused = get(TcpStream::connect(served.address).await.unwrap(), "/livez").await;
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("use https://"),
        "{refused}"
    );
    let sealed = get(served.connect_tls().await, "/livez").await;
    assert!(sealed.starts_with("HTTP/1.1 200"), "{sealed}");
}

/// What is answered before a body was looked at: where, and how.
const EARLY: [(&str, &str, u16); 4] = [
    ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", 404),
    ("PATCH", "/api/v1/namespaces/default/pods/web/resize", 501),
    (
        "POST",
        "/api/v1/namespaces/default/pods?fieldValidation=Bogus",
        400,
    ),
    ("PUT", "/api/v1/namespaces/default/pods", 405),
];

#[tokio::test]
async fn who_is_answered_early_can_send_the_rest() {
    let api = Api::open().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    let stream = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for (method, path, code) in EARLY {
        let is_sent = Arc::new(AtomicBool::new(false));
        let sent = is_sent.clone();
        let parts = stream::iter(0..3).then(move |part| {
            let sent = sent.clone();
            async move {
                // Long enough for an answer that does not wait.
                tokio::time::sleep(Duration::from_millis(50)).await;
                sent.store(part == 2, Ordering::SeqCst);
                Ok::<_, Infallible>(Bytes::from_static(b"{}"))
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(format!("http://localhost{path}"))
            .body(Body::from_stream(parts))
            .unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), code, "{method} {path}");
        assert!(is_sent.load(Ordering::SeqCst), "{method} {path}");
        answer.into_body().collect().await.unwrap();
    }
    connection.abort();
}

#[tokio::test]
async fn curl_reads_early_answers_over_http_2() {
    let api = Api::open().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    for (method, path, code) in EARLY.iter().cycle().take(5 * EARLY.len()) {
        let url = format!("http://{}{path}", served.address);
        let options = [
            "--http2-prior-knowledge",
            "-sS",
            "-w",
            "%{http_code}",
            "-d",
            "{}",
            "-X",
        ];
        let mut curl = tokio::process::Command::new("curl");
        let Ok(ran) = curl.args(options).args([*method, &url]).output().await else {
            eprintln!("no curl");
            return;
        };
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success() && text.ends_with(&code.to_string()),
            "{ran:?}"
        );
    }
}

/// Reads until the other side closes; tells whether it did so within the time.
async fn closes(stream: &mut (impl AsyncRead + Unpin), within: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(within, stream.read_to_end(&mut rest))
        .await
        .is_ok()
}

#[tokio::test]
async fn a_connection_that_shows_no_token_does_not_stay() {
    let api = Api::named("n1", true).await;
    let served = Served::start_with(&api, PlainHttp::Loopback, Some(STRANGER_TIME)).await;
    let probe = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for sent in [&b"P"[..], b"PRI * HTTP/2.0\r\n", preface, probe] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        assert!(
            closes(&mut stream, DEADLINE).await,
            "{:?}",
            String::from_utf8_lossy(sent)
        );
    }
    let mut silent = served.connect_tls().await;
    assert!(closes(&mut silent, DEADLINE).await, "TLS without a request");
}

#[tokio::test]
async fn a_connection_that_has_shown_a_token_stays() {
    let api = Api::named("n1", true).await;
    let (token, secret) = create_token("ci", None);
    api.state
        .store
        .create(token, api.state.author("test", ""))
        .await
        .unwrap();
    let served = Served::start_with(&api, PlainHttp::Loopback, Some(STRANGER_TIME)).await;
    let mut watch = TcpStream::connect(served.address).await.unwrap();
    let request = "GET /api/v1/pods?watch=1 HTTP/1.1\r\nhost: localhost\r\n";
    watch
        .write_all(format!("{request}authorization: Bearer {secret}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = [0; 12];
    watch.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(!closes(&mut watch, 3 * STRANGER_TIME).await);
}

#[tokio::test]
async fn a_stop_ends_watches_and_idle_connections() {
    let api = Api::open().await;
    api.post("/api/v1/namespaces/default/pods", pod("web"))
        .await
        .expect(201);
    let served = Served::start(&api, PlainHttp::Loopback).await;
    let idle = TcpStream::connect(served.address).await.unwrap();
    let mut watch = TcpStream::connect(served.address).await.unwrap();
    watch
        .write_all(b"GET /api/v1/pods?watch=1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("ADDED") {
        let mut chunk = [0; 4096];
        let read = tokio::time::timeout(DEADLINE, watch.read(&mut chunk))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
    served.shutdown.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, watch.read_to_end(&mut rest))
        .await
        .expect("the watch stayed open")
        .unwrap();
    assert!(
        String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"),
        "the stream ended in order"
    );
    drop(idle);
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn garbage_is_dropped() {
    let api = Api::open().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    for garbage in [
        &b"\x16\x03\x01\x00\x05hello"[..],
        b"\x00\x01\x02",
        b"NONSENSE\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{garbage:?}");
    }
    let many = "x: y\r\n".repeat(200);
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream
        .write_all(format!("GET /livez HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}
