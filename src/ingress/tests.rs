//! The ingress over real sockets, with backends in the test process.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reconcilers::ports::{Backend, BackendEndpoint, PathRoute, RouteTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Ingress, IngressConfig, StartError};

/// What a slow backend waits for before it answers.
#[derive(Clone)]
struct Gate {
    open: watch::Receiver<bool>,
    entered: Arc<watch::Sender<bool>>,
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.expect("backend socket");
    let address = listener.local_addr().expect("backend address");
    tokio::spawn(async move {
        axum::serve(listener, router).await.expect("backend");
    });
    address
}

/// A backend that answers with its name, what was asked for, and the headers that proxies set.
async fn backend(name: &'static str) -> SocketAddr {
    let answer = async move |method: Method, uri: http::Uri, headers: HeaderMap, body: String| {
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("-")
                .to_owned()
        };
        let names = [
            "host",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-real-ip",
            "forwarded",
        ];
        let values: Vec<String> = names.into_iter().map(header).collect();
        format!("{name} {method} {uri} {} {body}", values.join(" "))
    };
    serve(Router::new().fallback(answer)).await
}

/// A port on which nothing listens.
async fn dead_endpoint() -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.expect("socket");
    listener.local_addr().expect("address")
}

fn route(path: &str, name: &str, endpoints: &[(SocketAddr, bool)]) -> PathRoute {
    let endpoint = |(address, local): &(SocketAddr, bool)| BackendEndpoint {
        address: *address,
        local: *local,
    };
    PathRoute {
        path: path.into(),
        exact: false,
        backend: Arc::new(Backend {
            name: name.into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
        }),
    }
}

/// An ingress that was told no routes yet.
fn ignorant() -> Ingress {
    let config = IngressConfig {
        backend_timeout: Duration::from_millis(500),
        ..IngressConfig::new(any_port())
    };
    Ingress::start(config).expect("start")
}

/// An ingress with one host, `shop.test`.
fn ingress(routes: Vec<PathRoute>) -> Ingress {
    let ingress = ignorant();
    let mut table = RouteTable::default();
    table.hosts.insert("shop.test".into(), routes);
    ingress.sink().set_routes(table);
    ingress
}

fn request(ingress: &Ingress, host: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .uri(format!("http://{}{path}", ingress.address()))
        .header("host", host)
}

async fn send(request: Request<Body>) -> (StatusCode, HeaderMap, String) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    receive(client.request(request).await.expect("a response")).await
}

async fn receive<B: hyper::body::Body>(response: Response<B>) -> (StatusCode, HeaderMap, String)
where
    B::Error: std::fmt::Debug,
{
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (
        head.status,
        head.headers,
        String::from_utf8_lossy(&body).into_owned(),
    )
}

async fn get(ingress: &Ingress, host: &str, path: &str) -> (StatusCode, String) {
    let request = request(ingress, host, path)
        .body(Body::empty())
        .expect("a request");
    let (status, _, body) = send(request).await;
    (status, body)
}

#[tokio::test]
async fn before_the_first_table_it_is_starting_and_nothing_is_missing() {
    let ingress = ignorant();
    let (status, text) = get(&ingress, "shop.test", "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("starting"), "{text}");
    ingress.sink().set_routes(RouteTable::default());
    assert_eq!(get(&ingress, "shop.test", "/").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_request_reaches_its_backend_and_tells_it_who_asked() {
    let ingress = ingress(vec![route(
        "/",
        "default/shop:80",
        &[(backend("shop").await, false)],
    )]);
    let request = request(&ingress, "Shop.Test:8080", "/cart?id=1%2F2")
        .method(Method::POST)
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-real-ip", "203.0.113.9")
        .header("forwarded", "for=203.0.113.9")
        .body(Body::from("payload"))
        .expect("a request");
    let (status, _, body) = send(request).await;
    assert_eq!(status, StatusCode::OK);
    let expected =
        "shop POST /cart?id=1%2F2 Shop.Test:8080 127.0.0.1 http Shop.Test:8080 127.0.0.1 - payload";
    assert_eq!(body, expected);
    ingress.stop().await;
}

#[tokio::test]
async fn no_rule_and_no_endpoint_are_told_apart() {
    let ingress = ingress(vec![route("/empty", "default/empty:80", &[])]);
    let (status, body) = get(&ingress, "shop.test", "/other").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(body, "no ingress rule for host `shop.test` and path `/other`\n");
    let (status, body) = get(&ingress, "elsewhere.test", "/").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    let (status, body) = get(&ingress, "shop.test", "/empty/x").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "no ready endpoint of backend default/empty:80\n");

    let head = request(&ingress, "shop.test", "/other").method(Method::HEAD);
    let (status, headers, body) = send(head.body(Body::empty()).expect("a request")).await;
    assert_eq!((status, body.as_str()), (StatusCode::NOT_FOUND, ""));
    assert_ne!(
        headers["content-length"], "0",
        "HEAD tells the length that GET has"
    );
    ingress.stop().await;
}

#[tokio::test]
async fn endpoints_take_turns_and_local_ones_go_first() {
    let (one, two, far) = (backend("one").await, backend("two").await, backend("far").await);
    let ingress = ingress(vec![
        route("/spread", "default/spread:80", &[(one, false), (two, false)]),
        route("/local", "default/local:80", &[(far, false), (one, true)]),
    ]);
    let mut seen = HashSet::new();
    for _ in 0..4 {
        let (_, body) = get(&ingress, "shop.test", "/spread").await;
        seen.insert(body[..3].to_owned());
        let (_, body) = get(&ingress, "shop.test", "/local").await;
        assert!(body.starts_with("one"), "{body}");
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    ingress.stop().await;
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_all_dead_is_a_bad_gateway() {
    let (dead, other_dead, alive) = (
        dead_endpoint().await,
        dead_endpoint().await,
        backend("alive").await,
    );
    let ingress = ingress(vec![
        route("/one", "default/one:80", &[(dead, true), (alive, false)]),
        route("/none", "default/none:80", &[(dead, false), (other_dead, false)]),
    ]);
    for method in [Method::GET, Method::POST] {
        let request = request(&ingress, "shop.test", "/one").method(method);
        let (status, _, body) = send(request.body(Body::from("payload")).expect("a request")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(body.ends_with("payload"), "{body}");
    }
    let (status, body) = get(&ingress, "shop.test", "/none").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(body, "backend default/none:80 cannot be reached\n");
    ingress.stop().await;
}

#[tokio::test]
async fn a_silent_backend_is_a_timeout() {
    let silent = TcpListener::bind(any_port()).await.expect("socket");
    let address = silent.local_addr().expect("address");
    let ingress = ingress(vec![route("/", "default/slow:80", &[(address, false)])]);
    let (status, body) = get(&ingress, "shop.test", "/").await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(body, "backend default/slow:80 does not answer in time\n");
    ingress.stop().await;
}

/// Many times with a new ingress: it is at its first connection that it sees the backend's answer too early (a third of the
/// time, without `upgrade`).
#[tokio::test]
async fn websockets_are_carried_both_ways_to_their_last_byte() {
    let listener = TcpListener::bind(any_port()).await.expect("socket");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let head = read_head(&mut stream).await.to_ascii_lowercase();
                assert!(head.contains("upgrade: websocket"), "{head}");
                let answer =
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.expect("send");
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.expect("receive");
                buffer.reverse();
                stream.write_all(&buffer).await.expect("send");
            });
        }
    });
    for _ in 0..20 {
        let ingress = ingress(vec![route("/", "default/chat:80", &[(address, false)])]);
        let mut client = ask_for_upgrade(&ingress).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        client.write_all(b"ping").await.expect("send");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("receive");
        assert_eq!(answer, "gnip");
        ingress.stop().await;
    }
}

#[tokio::test]
async fn a_backend_need_not_upgrade() {
    let address = serve(Router::new().fallback(async || "no websockets here")).await;
    let ingress = ingress(vec![route("/", "default/chat:80", &[(address, false)])]);
    for _ in 0..3 {
        let mut client = ask_for_upgrade(&ingress).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut body = [0; 18];
        client.read_exact(&mut body).await.expect("receive");
        assert_eq!(&body, b"no websockets here");
    }
    ingress.stop().await;
}

async fn ask_for_upgrade(ingress: &Ingress) -> TcpStream {
    let mut client = TcpStream::connect(ingress.address()).await.expect("connect");
    let request = "GET /chat HTTP/1.1\r\nhost: shop.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("send");
    client
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[tokio::test]
async fn http2_without_tls_is_served_and_grpc_reaches_an_http2_backend() {
    let version = async |request: Request<Body>| format!("{:?}", request.version());
    let address = serve(Router::new().fallback(version)).await;
    let ingress = ingress(Vec::new());
    // An HTTP/2 client names the address that it connects to: a rule for any host.
    ingress.sink().set_routes(RouteTable {
        any_host: vec![route("/", "default/grpc:80", &[(address, false)])],
        ..RouteTable::default()
    });
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    for (content_type, expected) in [("text/plain", "HTTP/1.1"), ("application/grpc+proto", "HTTP/2.0")] {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/x", ingress.address()))
            .header("content-type", content_type)
            .body(Body::empty())
            .expect("a request");
        let response = client.request(request).await.expect("a response");
        assert_eq!(response.version(), http::Version::HTTP_2);
        let (status, _, body) = receive(response).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::OK, expected),
            "{content_type}"
        );
    }
    ingress.stop().await;
}

#[tokio::test]
async fn odd_requests_do_not_confuse_the_match() {
    let (shop, admin) = (backend("shop").await, backend("admin").await);
    let ingress = ingress(vec![
        route("/", "default/shop:80", &[(shop, false)]),
        route("/admin", "default/admin:80", &[(admin, false)]),
    ]);
    for (target, expected) in [
        ("/x/../admin/y", "admin GET /x/../admin/y"),
        ("/x/%2e%2e/admin", "admin GET /x/%2e%2e/admin"),
        ("/x%2F..%2Fadmin", "shop GET /x%2F..%2Fadmin"),
        ("/%61dmin", "admin GET /%61dmin"),
        ("http://SHOP.test/admin", "admin GET http://SHOP.test/admin"),
    ] {
        let answer = raw(
            &ingress,
            &format!("GET {target} HTTP/1.1\r\nHost: SHOP.test\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.contains(expected), "{target}: {answer}");
    }
    let short = raw(&ingress, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(
        short.starts_with("HTTP/1.1 404") || short.starts_with("HTTP/1.0 404"),
        "{short}"
    );
    let junk = raw(&ingress, "NOT HTTP AT ALL\r\n\r\n").await;
    assert!(junk.starts_with("HTTP/1.1 400") || junk.is_empty(), "{junk}");
    let large = format!(
        "GET / HTTP/1.1\r\nHost: shop.test\r\nX-Large: {}\r\nConnection: close\r\n\r\n",
        "x".repeat(70_000)
    );
    let large = raw(&ingress, &large).await;
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    ingress.stop().await;
}

/// Sends bytes and returns all that comes back until the end of the connection.
async fn raw(ingress: &Ingress, text: &str) -> String {
    let mut stream = TcpStream::connect(ingress.address()).await.expect("connect");
    stream.write_all(text.as_bytes()).await.expect("send");
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    assert!(
        end.is_ok(),
        "the connection stays open: {}",
        String::from_utf8_lossy(&answer)
    );
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn connections_to_backends_are_reused() {
    let listener = TcpListener::bind(any_port()).await.expect("socket");
    let address = listener.local_addr().expect("address");
    let (connections, mut seen) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            connections.send_modify(|count| *count += 1);
            let service = hyper::service::service_fn(async |_| {
                Ok::<_, std::io::Error>(Response::new(String::from("ok")))
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { connection.await.ok() });
        }
    });
    let ingress = ingress(vec![route("/", "default/shop:80", &[(address, false)])]);
    for _ in 0..5 {
        let (status, _) = get(&ingress, "shop.test", "/").await;
        assert_eq!(status, StatusCode::OK);
    }
    // One goes back to the pool a moment after its answer: the next request may have come before.
    assert!(*seen.borrow_and_update() < 5);
    ingress.stop().await;
}

#[tokio::test]
async fn stopping_waits_for_requests_under_way() {
    let (open, gate) = watch::channel(false);
    let (entered, mut has_entered) = watch::channel(false);
    let gate = Gate {
        open: gate,
        entered: Arc::new(entered),
    };
    let wait = async |State(mut gate): State<Gate>| {
        gate.entered.send_replace(true);
        gate.open
            .wait_for(|open| *open)
            .await
            .expect("the test opens the gate");
        "finished"
    };
    let address = serve(Router::new().fallback(wait).with_state(gate)).await;
    let ingress = ingress(vec![route("/", "default/slow:80", &[(address, false)])]);
    let port = ingress.address();
    let idle = TcpStream::connect(port).await.expect("an idle connection");
    let request = request(&ingress, "shop.test", "/")
        .body(Body::empty())
        .expect("a request");
    let asked = tokio::spawn(send(request));
    has_entered
        .wait_for(|entered| *entered)
        .await
        .expect("the backend was asked");

    let begin = Instant::now();
    let stopped = tokio::spawn(ingress.stop());
    // The port closes first; then the request may finish.
    wait_until(async || TcpStream::connect(port).await.is_err()).await;
    assert!(!stopped.is_finished(), "stop waits for the request");
    open.send_replace(true);
    let (status, _, body) = asked.await.expect("the request");
    assert_eq!((status, body.as_str()), (StatusCode::OK, "finished"));
    stopped.await.expect("stop");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "idle connections are not waited for"
    );
    drop(idle);
}

async fn wait_until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 5 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_remedy() {
    let taken = TcpListener::bind(any_port()).await.expect("socket");
    let address = taken.local_addr().expect("address");
    match Ingress::start(IngressConfig::new(address)) {
        Err(error @ StartError::InUse(_)) => {
            let text = error.to_string();
            assert!(
                text.contains(&address.to_string()) && text.contains("--ingress-port"),
                "{text}"
            );
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("started on a port in use"),
    }
}
