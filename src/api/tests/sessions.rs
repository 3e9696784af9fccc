//! `exec`, `attach` and `port-forward` through the listener, as clients of websockets speak; on this node and on another.
//!
//! Commands are played by a fake, which repeats its arguments, echoes its input and exits with the last argument, if a number.

use std::time::Duration;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WebSocketError;

use super::fixture::Api;
use super::listener::Served;
use super::streams::{add_container, placed_pod};
use crate::api::PlainHttp;
use crate::api::streams::spdy_client as spdy;

const DEADLINE: Duration = Duration::from_secs(20);
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// A node that answers, and one that runs the pod `web` (the same, if `apart` is not wanted).
struct Nodes {
    here: Api,
    there: Option<Api>,
    served: Served,
}

impl Nodes {
    async fn start(apart: bool) -> Self {
        let here = Api::open().await;
        let there = match apart {
            true => Some(Api::named("n2", false).await),
            false => None,
        };
        if let Some(there) = &there {
            here.join(there);
        }
        for api in [Some(&here), there.as_ref()].into_iter().flatten() {
            let uid = placed_pod(api, if apart { "n2" } else { "n1" }).await;
            let runs = apart == (api.state.node != here.state.node);
            if runs {
                add_container(api, &uid, "a", 0, "");
            }
        }
        let served = Served::start(&here, PlainHttp::Loopback).await;
        Self { here, there, served }
    }

    async fn both() -> [Self; 2] {
        [Self::start(false).await, Self::start(true).await]
    }

    fn running(&self) -> &Api {
        self.there.as_ref().unwrap_or(&self.here)
    }

    async fn connect(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Client, WebSocketError> {
        let address = self.served.address;
        let uri = format!("ws://{address}/api/v1/namespaces/default/pods/{path}");
        let mut request = uri.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let connected = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Client(connected.0))
    }

    async fn open(&self, path: &str, protocol: &str) -> Client {
        let offered = [("sec-websocket-protocol", protocol)];
        let headers: &[_] = if protocol.is_empty() { &[] } else { &offered };
        self.connect(path, headers).await.unwrap()
    }

    /// Asks in vain; returns code and message.
    async fn refused(&self, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        match self.connect(path, headers).await {
            Err(WebSocketError::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                let status: Value = serde_json::from_slice(&body).unwrap_or_default();
                assert_eq!(status["kind"], "Status", "{}", String::from_utf8_lossy(&body));
                let message = status["message"].as_str().unwrap().to_owned();
                (response.status().as_u16(), message)
            }
            Ok(_) => panic!("{path} was accepted"),
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn send(&mut self, channel: u8, payload: &[u8]) {
        let message = [&[channel], payload].concat();
        self.0.send(Message::binary(message)).await.unwrap();
    }

    async fn next(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(DEADLINE, self.0.next());
        next.await
            .expect("no message in time")
            .map(|message| message.unwrap())
    }

    /// Reads until the other side closes; returns each channel's bytes, and the code of the close.
    async fn rest(&mut self) -> (Vec<Vec<u8>>, u16) {
        let mut channels = vec![Vec::new(); 8];
        loop {
            match self.next().await {
                Some(Message::Binary(bytes)) => {
                    channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
                }
                Some(Message::Close(frame)) => return (channels, frame.unwrap().code.into()),
                Some(Message::Ping(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads `length` bytes of stdout.
    async fn stdout(&mut self, length: usize) -> Vec<u8> {
        let mut found = Vec::new();
        while found.len() < length {
            let message = self.next().await.unwrap().into_data();
            assert_eq!(message[0], 1, "{message:?}");
            found.extend_from_slice(&message[1..]);
        }
        found
    }
}

#[tokio::test]
async fn a_command_says_how_it_ended() {
    for nodes in Nodes::both().await {
        let mut client = nodes
            .open("web/exec?command=run&command=3&stdout=1&container=a", V5)
            .await;
        let (channels, code) = client.rest().await;
        assert_eq!(channels[1], b"[\"run\", \"3\"]\n");
        let status: Value = serde_json::from_slice(&channels[3]).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        assert_eq!(code, 1000);

        let mut client = nodes.open("web/exec?command=run&stdout=1&container=a", V4).await;
        let (channels, _) = client.rest().await;
        let status: Value = serde_json::from_slice(&channels[3]).unwrap();
        assert_eq!(status["status"], "Success");

        // Without a protocol: the oldest, which knows no Status.
        let mut client = nodes.open("web/exec?command=4&stdout=1&container=a", "").await;
        let (channels, _) = client.rest().await;
        assert_eq!(channels[3], b"command terminated with non-zero exit code: 4");
    }
}

#[tokio::test]
async fn input_comes_back_whole_and_its_end_is_passed_on() {
    for nodes in Nodes::both().await {
        let path = "web/exec?command=x&stdin=1&stdout=1&container=a";
        let client = nodes.open(path, &format!("unknown, {V5}, {V4}")).await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at / 5) as u8).collect();
        let (mut sink, stream) = client.0.split();
        let copy = sent.clone();
        let write = tokio::spawn(async move {
            for piece in copy.chunks(40_000) {
                let message = [&[0], piece].concat();
                sink.send(Message::binary(message)).await.unwrap();
            }
            sink.send(Message::binary(vec![255, 0])).await.unwrap();
            sink
        });
        let mut found = Vec::new();
        let mut status = Value::Null;
        let mut stream = stream;
        while status.is_null() {
            let message = tokio::time::timeout(DEADLINE, stream.next()).await.unwrap();
            let bytes = message.unwrap().unwrap().into_data();
            match bytes[0] {
                1 => found.extend_from_slice(&bytes[1..]),
                _ => status = serde_json::from_slice(&bytes[1..]).unwrap(),
            }
        }
        drop(write.await.unwrap());
        assert_eq!(status["status"], "Success");
        assert!(
            found == [b"[\"x\"]\n", &sent[..]].concat(),
            "{} bytes",
            found.len()
        );
    }
}

#[tokio::test]
async fn a_terminal_is_told_its_size() {
    for nodes in Nodes::both().await {
        let path = "web/exec?command=x&stdin=1&stdout=1&stderr=1&tty=1&container=a";
        let mut client = nodes.open(path, V5).await;
        client.send(4, br#"{"Width":132,"Height":43}"#).await;
        client.send(255, &[0]).await;
        let (channels, _) = client.rest().await;
        assert_eq!(channels[1], b"[\"x\"]\n132x43\n");
    }
}

#[tokio::test]
async fn base64_is_text() {
    let nodes = Nodes::start(false).await;
    let path = "web/exec?command=x&stdin=1&stdout=1&container=a";
    let mut client = nodes.open(path, "v4.base64.channel.k8s.io").await;
    let mut seen = String::new();
    client.0.send(Message::text("0aGk=")).await.unwrap();
    while !seen.contains("1aGk=") {
        seen += client.next().await.unwrap().to_text().unwrap();
    }
}

#[tokio::test]
async fn who_does_not_read_makes_the_process_wait() {
    for nodes in Nodes::both().await {
        let path = "web/exec?command=x&stdin=1&stdout=1&container=a";
        let mut client = nodes.open(path, V5).await;
        let piece = vec![7; 1_000_000];
        let pile = tokio::time::timeout(Duration::from_secs(2), async {
            for _ in 0..100 {
                client.send(0, &piece).await;
            }
        });
        assert!(pile.await.is_err(), "100 MB were taken in without a reader");
    }
}

#[tokio::test]
async fn an_attached_client_sees_the_process_and_the_agents_stop() {
    for nodes in Nodes::both().await {
        let mut client = nodes.open("web/attach?container=a&stdin=1", V5).await;
        assert_eq!(client.stdout(10).await, b"this is a\n");
        // The container has no stdin: so this is the end of the fake.
        let (channels, code) = client.rest().await;
        assert_eq!((channels[3].is_empty(), code), (false, 1000));

        let mut client = nodes
            .open("web/exec?command=x&stdin=1&stdout=1&container=a", V5)
            .await;
        client.stdout(6).await;
        nodes.running().stopping.cancel();
        assert_eq!(client.rest().await.1, 1001);
        let (code, _) = nodes
            .refused("web/exec?command=x&stdout=1&container=a", &[])
            .await;
        assert_eq!(code, 503);
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_before_the_upgrade() {
    for nodes in Nodes::both().await {
        for (path, code, expected) in [
            ("none/exec?command=x&stdout=1", 404, "pods \"none\" not found"),
            ("web/exec?stdout=1&container=a", 400, "at least one command"),
            (
                "web/exec?command=x&container=a",
                400,
                "at least 1 of stdin, stdout, stderr",
            ),
            ("web/exec?command=x&stdout=1", 400, "choose one of: [a b]"),
            (
                "web/exec?command=x&stdout=1&container=c",
                400,
                "container c is not valid for pod web",
            ),
            (
                "web/exec?command=x&stdout=1&container=b",
                400,
                "container \"b\" in pod \"web\" is not running",
            ),
            (
                "web/portforward?ports=http",
                400,
                "unable to parse \"http\" as a port",
            ),
        ] {
            let (found, message) = nodes.refused(path, &[]).await;
            assert_eq!(found, code, "{path}: {message}");
            assert!(message.contains(expected), "{path}: {message}");
        }
        let exec = "web/exec?command=x&stdout=1&container=a";
        for (headers, code, expected) in [
            (
                &[("sec-websocket-protocol", "chat")][..],
                400,
                "the client offers [chat]",
            ),
            (
                &[("upgrade", "SPDY/3.1")],
                400,
                "SPDY is not supported; use kubectl 1.31 or later",
            ),
            (&[("upgrade", "none")], 400, "Upgrade request required"),
            (&[("origin", "https://evil.example")], 403, "https://evil.example"),
        ] {
            let (found, message) = nodes.refused(exec, headers).await;
            assert_eq!(found, code, "{headers:?}: {message}");
            assert!(message.contains(expected), "{headers:?}: {message}");
        }
        // Also to a client that cannot be served anyway.
        let path = "web/exec?command=x&stdout=1&container=b";
        let (_, message) = nodes.refused(path, &[("upgrade", "SPDY/3.1")]).await;
        assert!(message.contains("is not running"), "{message}");
    }
}

#[tokio::test]
async fn a_node_that_is_away_is_named() {
    let nodes = Nodes::start(true).await;
    nodes.here.peers.forget(nodes.running());
    let (code, message) = nodes
        .refused("web/exec?command=x&stdout=1&container=a", &[])
        .await;
    assert_eq!(code, 503);
    assert!(
        message.contains("node n2 of pod \"web\" does not answer"),
        "{message}"
    );
}

// ---------------------------------------------------------------- port-forward

/// A server that answers each line in capitals. Returns its port.
pub(super) async fn shouting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    buffer[..count].make_ascii_uppercase();
                    stream.write_all(&buffer[..count]).await.unwrap();
                }
            });
        }
    });
    port
}

/// A tunnel's client.
struct Tunnel {
    client: Client,
    opener: spdy::Opener,
    received: BytesMut,
    /// Bytes of each stream, and whether it has ended.
    streams: std::collections::BTreeMap<u32, (Vec<u8>, bool)>,
}

impl Tunnel {
    async fn open(nodes: &Nodes) -> Self {
        Self {
            client: nodes.open("web/portforward", TUNNEL).await,
            opener: spdy::Opener::new(),
            received: BytesMut::new(),
            streams: Default::default(),
        }
    }

    async fn send(&mut self, frame: bytes::Bytes) {
        self.client.0.send(Message::Binary(frame)).await.unwrap();
    }

    /// Opens the two streams of a connection; `first` is the one for errors.
    async fn begin(&mut self, first: u32, port: u16) {
        let (port, request) = (port.to_string(), first.to_string());
        for (stream, kind) in [(first, "error"), (first + 2, "data")] {
            let headers = [("streamtype", kind), ("port", &port), ("requestid", &request)];
            let frame = self.opener.open(stream, &headers);
            self.send(frame).await;
            if kind == "error" {
                self.send(spdy::data(stream, b"", true)).await;
            }
        }
    }

    async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        while !what(self) {
            let message = self.client.next().await.expect("the tunnel ended");
            self.received.extend_from_slice(&message.into_data());
            for (stream, payload, is_last) in spdy::take_data(&mut self.received) {
                let entry = self.streams.entry(stream).or_default();
                entry.0.extend_from_slice(&payload);
                entry.1 |= is_last;
            }
        }
    }

    fn has(&self, stream: u32, expected: &[u8]) -> bool {
        self.streams
            .get(&stream)
            .is_some_and(|(bytes, _)| bytes == expected)
    }

    fn ended(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_some_and(|(_, ended)| *ended)
    }
}

#[tokio::test]
async fn a_tunnel_carries_connections_side_by_side_and_outlives_a_closed_port() {
    let port = shouting().await;
    for nodes in Nodes::both().await {
        let mut tunnel = Tunnel::open(&nodes).await;
        tunnel.begin(1, port).await;
        tunnel.begin(5, port).await;
        tunnel.send(spdy::data(3, b"one", false)).await;
        tunnel.send(spdy::data(7, b"two", false)).await;
        tunnel
            .until(|tunnel| tunnel.has(3, b"ONE") && tunnel.has(7, b"TWO"))
            .await;

        // Nobody listens on port 1.
        tunnel.begin(9, 1).await;
        tunnel.until(|tunnel| tunnel.ended(9) && tunnel.ended(11)).await;
        let error = String::from_utf8(tunnel.streams[&9].0.clone()).unwrap();
        assert!(
            error.contains("error forwarding port 1 to pod default/web: port 1:"),
            "{error}"
        );

        tunnel.send(spdy::data(3, b"!", true)).await;
        tunnel.until(|tunnel| tunnel.ended(3) && tunnel.ended(1)).await;
        assert!(tunnel.has(3, b"ONE!") && tunnel.has(1, b""));

        // Much at once, while the other connection rests.
        let much = vec![b'x'; 300_000];
        tunnel.begin(13, port).await;
        for piece in much.chunks(30_000) {
            tunnel.send(spdy::data(15, piece, false)).await;
        }
        tunnel.send(spdy::data(15, b"", true)).await;
        tunnel.until(|tunnel| tunnel.ended(13)).await;
        assert_eq!(tunnel.streams[&15].0.len(), much.len());
        tunnel.send(spdy::data(7, b"three", false)).await;
        tunnel.until(|tunnel| tunnel.has(7, b"TWOTHREE")).await;
    }
}

#[tokio::test]
async fn nonsense_in_a_tunnel_ends_it() {
    let nodes = Nodes::start(false).await;
    let mut tunnel = Tunnel::open(&nodes).await;
    tunnel
        .send(bytes::Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"))
        .await;
    assert_eq!(tunnel.client.rest().await.1, 1000);
}

#[tokio::test]
async fn ports_are_forwarded_by_channels_too() {
    let port = shouting().await;
    for nodes in Nodes::both().await {
        let path = format!("web/portforward?ports={port}&ports=1");
        let mut client = nodes.open(&path, V4).await;
        client.send(0, b"hello").await;
        let mut channels = vec![Vec::new(); 4];
        while channels[0].len() < 7 || channels[3].len() < 3 {
            let bytes = client.next().await.unwrap().into_data();
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
        assert_eq!(channels[0], [&port.to_le_bytes()[..], b"HELLO"].concat());
        assert_eq!(channels[1], port.to_le_bytes());
        assert_eq!(channels[2], 1u16.to_le_bytes());
        assert!(channels[3].starts_with(&[1, 0]), "{channels:?}");
        assert!(String::from_utf8_lossy(&channels[3]).contains("error forwarding port 1"));
        let (code, message) = nodes
            .refused("web/portforward", &[("sec-websocket-protocol", V4)])
            .await;
        assert_eq!((code, message.contains("\"ports\" is required")), (400, true));
    }
}

#[tokio::test]
async fn discovery_shows_sessions_as_kubernetes_does() {
    let api = Api::open().await;
    let list = api.get("/api/v1").await.json();
    let resources = list["resources"].as_array().unwrap();
    for (name, kind) in [
        ("pods/exec", "PodExecOptions"),
        ("pods/attach", "PodAttachOptions"),
        ("pods/portforward", "PodPortForwardOptions"),
    ] {
        let row = resources.iter().find(|row| row["name"] == name).unwrap();
        let expected = serde_json::json!({
            "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["create", "get"],
        });
        assert_eq!(row, &expected);
    }
}
