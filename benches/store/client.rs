//! What talks to the agent's API and to etcd: HTTP/2 over TLS for both, one connection per writer, kept open.
//!
//! etcd is asked through its own gRPC service and not through its JSON gateway, which is a second server before the
//! first: the peer is measured at its best. Its few messages are encoded here by hand.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What an object is in bytes, the same for both.
pub(crate) const OBJECT_BYTES: usize = 2048;
/// Room for a list of 10,000 objects without a pause for the window.
const WINDOW_BYTES: u32 = 64 << 20;

/// Objects are ConfigMaps: about no other kind is less done.
pub(crate) const OBJECTS: &str = "/api/v1/namespaces/default/configmaps";
/// Where kube-apiserver would keep them.
const ETCD_PREFIX: &str = "/registry/configmaps/default/";

/// Where a server is and how it is spoken to.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The certificate that its own is signed by, PEM.
    pub(crate) authority: String,
    /// The agent's bearer token; None: this is etcd.
    pub(crate) token: Option<String>,
}

/// One connection.
pub(crate) struct Client {
    server: Server,
    sender: SendRequest<Full<Bytes>>,
}

/// Makes a ConfigMap of [`OBJECT_BYTES`]; another one for another `version`.
pub(crate) fn object(name: &str, version: usize) -> Bytes {
    let make = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default"},
            "data": {"text": text},
        })
        .to_string()
    };
    let room = OBJECT_BYTES - make("").len();
    // Text that does not compress well, different for every object: a generator of Knuth's is enough.
    let mut state = name.bytes().fold(version as u64 + 1, |state, byte| {
        state.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let text: String = (0..room)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from(b'0' + (state >> 58) as u8)
        })
        .map(|letter| if letter == '\\' { '_' } else { letter })
        .collect();
    Bytes::from(make(&text))
}

/// A field of a protocol buffer that holds bytes (wire type 2).
fn field(message: &mut BytesMut, number: u8, value: &[u8]) {
    message.put_u8(number << 3 | 2);
    let mut length = value.len();
    while length >= 0x80 {
        message.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8(length as u8);
    message.put_slice(value);
}

/// A gRPC frame (not compressed) of a message whose fields are bytes.
fn grpc(fields: &[(u8, &[u8])]) -> Bytes {
    let mut message = BytesMut::new();
    for (number, value) in fields {
        field(&mut message, *number, value);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

impl Client {
    pub(crate) async fn open(server: &Server) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(server.authority.as_bytes()).expect("PEM");
        roots.add(authority).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.set_nodelay(true).expect("TCP");
        let name = ServerName::IpAddress(server.address.ip().into());
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .expect("TLS");
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        Self {
            server: server.clone(),
            sender,
        }
    }

    pub(crate) async fn open_many(server: &Server, count: usize) -> Vec<Self> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(Self::open(server).await);
        }
        clients
    }

    /// Sends a request to the agent and returns the answer with its body still to come.
    pub(crate) async fn begin(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> http::Response<Incoming> {
        let token = self.server.token.as_deref().unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.server.address))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(body))
            .expect("a request");
        self.sender.ready().await.expect("a connection");
        self.sender.send_request(request).await.expect("an answer")
    }

    /// Sends a request to the agent; fails the run unless the answer is one of success.
    pub(crate) async fn call(&mut self, method: Method, path: &str, kind: &str, body: Bytes) -> Bytes {
        let answer = self.begin(method, path, kind, body).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(
            status.is_success(),
            "{path}: {status} {}",
            String::from_utf8_lossy(&bytes)
        );
        bytes
    }

    async fn json(&mut self, method: Method, path: &str, body: Bytes) -> Bytes {
        self.call(method, path, "application/json", body).await
    }

    /// Calls etcd's service of keys and values.
    async fn etcd(&mut self, method: &str, frame: Bytes) -> Bytes {
        let request = Request::post(format!(
            "https://{}/etcdserverpb.KV/{method}",
            self.server.address
        ))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(frame))
        .expect("a request");
        self.sender.ready().await.expect("a connection");
        let answer = self.sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let collected = answer.into_body().collect().await.expect("a body");
        let status = collected
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .cloned();
        assert_eq!(
            status.as_ref().map(|status| status.as_bytes()),
            Some(b"0".as_slice()),
            "{method}"
        );
        collected.to_bytes()
    }

    /// Writes an object that is not there yet; durable when this returns.
    pub(crate) async fn create(&mut self, name: &str, object: Bytes) {
        match &self.server.token {
            Some(_) => drop(self.json(Method::POST, OBJECTS, object).await),
            None => self.etcd_put(name, &object).await,
        }
    }

    /// Replaces a whole object; durable when this returns.
    pub(crate) async fn update(&mut self, name: &str, object: Bytes) {
        match &self.server.token {
            Some(_) => drop(self.json(Method::PUT, &format!("{OBJECTS}/{name}"), object).await),
            None => self.etcd_put(name, &object).await,
        }
    }

    async fn etcd_put(&mut self, name: &str, object: &[u8]) {
        let key = format!("{ETCD_PREFIX}{name}");
        self.etcd("Put", grpc(&[(1, key.as_bytes()), (2, object)])).await;
    }

    /// Reads one object, as linearizable as the server has it; returns the bytes of the answer.
    pub(crate) async fn read(&mut self, name: &str) -> usize {
        match &self.server.token {
            Some(_) => self
                .json(Method::GET, &format!("{OBJECTS}/{name}"), Bytes::new())
                .await
                .len(),
            None => {
                let key = format!("{ETCD_PREFIX}{name}");
                self.etcd("Range", grpc(&[(1, key.as_bytes())])).await.len()
            }
        }
    }

    /// Reads all objects in one answer; returns its bytes.
    pub(crate) async fn list(&mut self) -> usize {
        match &self.server.token {
            Some(_) => self.json(Method::GET, OBJECTS, Bytes::new()).await.len(),
            None => {
                // All keys that begin with the prefix: up to it with its last byte raised by one.
                let end = ETCD_PREFIX.trim_end_matches('/').to_owned() + "0";
                let fields = [(1, ETCD_PREFIX.as_bytes()), (2, end.as_bytes())];
                self.etcd("Range", grpc(&fields)).await.len()
            }
        }
    }

    /// Counts the agent's objects.
    pub(crate) async fn count(&mut self) -> usize {
        let page = self
            .json(Method::GET, &format!("{OBJECTS}?limit=1"), Bytes::new())
            .await;
        let page: Value = serde_json::from_slice(&page).expect("JSON");
        let listed = page["items"].as_array().map_or(0, Vec::len);
        listed + page["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) as usize
    }
}
