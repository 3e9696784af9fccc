//! `port-forward`: connections to ports of a pod, over SPDY in a websocket (kubectl) or over channels (other clients).
//!
//! As kubelet has it (`k8s.io/kubelet/pkg/cri/streaming/portforward`): a stream for data and one for an error to each connection.
//! A connection that fails says so on its own and leaves the others alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use reconcilers::ports::{Duplex, PortError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::channels::Dialect;
use super::spdy::{self, Frame, Reader, Writer};
use super::{Ending, PING_INTERVAL, close, websocket};

/// What kubectl asks for: frames of SPDY as the messages of a websocket (KEP-4006).
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The protocols for `portforward`.
pub(crate) const FORWARD_PROTOCOLS: &[&str] = &[
    TUNNEL,
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// Connections at once in one session; a browser opens six to a site.
const CONNECTIONS_MAX: usize = 128;
/// How long a connection may take no bytes while others wait behind it: the tunnel has no windows of their own.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// One read of a port.
const READ_BYTES: usize = 32 << 10;
/// Pieces that wait for a connection, or for the client: beyond it whoever sends waits.
const PIECES_MAX: usize = 8;

/// Connects to a port of the pod.
pub(crate) type Connect =
    Arc<dyn Fn(u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, PortError>> + Send + Sync>;

/// The pod's ports.
#[derive(Clone)]
pub(crate) struct Ports {
    /// For messages: `default/web`.
    pub(crate) pod: String,
    pub(crate) connect: Connect,
}

/// Where a connection's bytes go on their way to the client.
trait Sink: Clone + Send + 'static {
    /// A piece of data.
    fn data(&self, payload: &[u8]) -> Message;
    /// Why there is no connection, or no more.
    fn error(&self, text: &str) -> Message;
    /// What is said at the end of the data, and at the end of the connection if there was no error.
    fn ends(&self) -> (Option<Message>, Option<Message>);
}

/// A connection of a tunnel.
#[derive(Clone)]
struct Pair {
    data: u32,
    error: u32,
}

impl Sink for Pair {
    fn data(&self, payload: &[u8]) -> Message {
        Message::Binary(spdy::data(self.data, payload, false))
    }

    /// Ends the stream: clients wait for that.
    fn error(&self, text: &str) -> Message {
        Message::Binary(spdy::data(self.error, text.as_bytes(), true))
    }

    fn ends(&self) -> (Option<Message>, Option<Message>) {
        let end = Message::Binary(spdy::data(self.data, b"", true));
        (Some(end), Some(self.error("")))
    }
}

/// A connection by channels: an even one for data, the next for its error.
#[derive(Clone)]
struct Channels {
    dialect: Dialect,
    data: u8,
}

impl Sink for Channels {
    fn data(&self, payload: &[u8]) -> Message {
        self.dialect.message(self.data, payload)
    }

    fn error(&self, text: &str) -> Message {
        self.dialect.message(self.data + 1, text.as_bytes())
    }

    fn ends(&self) -> (Option<Message>, Option<Message>) {
        (None, None)
    }
}

/// Connects to a port and passes bytes on until both sides have ended or either is gone.
async fn carry(
    ports: Ports,
    port: u16,
    mut incoming: mpsc::Receiver<Bytes>,
    outgoing: mpsc::Sender<Message>,
    sink: impl Sink,
) {
    let failed = |error: &dyn std::fmt::Display| {
        let pod = &ports.pod;
        sink.error(&format!("error forwarding port {port} to pod {pod}: {error}"))
    };
    let (end_of_data, end) = sink.ends();
    let error = match (ports.connect)(port).await {
        Ok(stream) => {
            let (mut read, mut write) = tokio::io::split(stream);
            let towards_pod = async {
                let fed = async {
                    while let Some(piece) = incoming.recv().await {
                        write.write_all(&piece).await?;
                        write.flush().await?;
                    }
                    write.shutdown().await
                };
                if fed.await.is_err() {
                    // It reads no more, and may still answer. What comes for it must not hold up the others.
                    while incoming.recv().await.is_some() {}
                }
                std::future::pending::<std::io::Result<()>>().await
            };
            let towards_client = async {
                let mut buffer = vec![0; READ_BYTES];
                loop {
                    let count = read.read(&mut buffer).await?;
                    let piece = buffer.get(..count).unwrap_or_default();
                    if piece.is_empty() || outgoing.send(sink.data(piece)).await.is_err() {
                        return std::io::Result::Ok(());
                    }
                }
            };
            // What the pod says counts: when it has ended, more input is of no use.
            let ended = tokio::select! {
                ended = towards_client => ended,
                ended = towards_pod => ended,
            };
            ended.err().map(|error| failed(&error))
        }
        Err(error) => Some(failed(&error)),
    };
    for message in [end_of_data, error.or(end)].into_iter().flatten() {
        let _ = outgoing.send(message).await;
    }
}

/// A stream of data that is open.
struct Open {
    incoming: Option<mpsc::Sender<Bytes>>,
    cancelled: CancellationToken,
}

/// The streams of a tunnel.
struct Tunnel {
    ports: Ports,
    reader: Reader,
    writer: Writer,
    outgoing: mpsc::Sender<Message>,
    /// Error streams whose stream of data has not come yet, by `requestid`.
    waiting: HashMap<String, u32>,
    open: HashMap<u32, Open>,
    tasks: JoinSet<u32>,
}

/// Serves a tunnel of kubectl until the client goes or the agent stops.
pub(crate) async fn run_tunnel(io: Box<dyn Duplex>, ports: Ports, stopping: CancellationToken) {
    let (mut sink, mut stream) = websocket(io).await.split();
    let (outgoing, mut queue) = mpsc::channel(PIECES_MAX);
    let mut tunnel = Tunnel {
        ports,
        reader: Reader::new(),
        writer: Writer::new(),
        outgoing,
        waiting: HashMap::new(),
        open: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let receive = async {
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                Some(ended) = tunnel.tasks.join_next() => {
                    if let Ok(data) = ended {
                        tunnel.open.remove(&data);
                    }
                    continue;
                }
            };
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Err(error) = tunnel.take(&bytes).await {
                        tracing::debug!(%error, "api: a tunnel of port-forward sends nonsense");
                        return Ending::Done;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ending::Gone,
                Some(Ok(_)) => {}
            }
        }
    };
    let ending = tokio::select! {
        ending = receive => ending,
        ending = forward(&mut sink, &mut queue) => ending,
        () = stopping.cancelled() => Ending::Stopping,
    };
    drop(tunnel);
    if let Ok(mut socket) = sink.reunite(stream) {
        close(&mut socket, ending).await;
    }
}

/// Sends what waits, and pings.
async fn forward(
    sink: &mut (impl futures::Sink<Message> + Unpin),
    queue: &mut mpsc::Receiver<Message>,
) -> Ending {
    let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else {
            return Ending::Done;
        };
        if sink.send(message).await.is_err() {
            return Ending::Gone;
        }
    }
}

impl Tunnel {
    /// Handles what came. Waits for connections that do not take their bytes.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), spdy::SpdyError> {
        self.reader.push(bytes);
        while let Some(frame) = self.reader.next()? {
            match frame {
                Frame::Open { stream, headers, .. } => self.open(stream, &headers).await,
                Frame::Data {
                    stream,
                    payload,
                    is_last,
                } => {
                    let Some(open) = self.open.get_mut(&stream) else {
                        continue;
                    };
                    if let Some(incoming) = &open.incoming
                        && !payload.is_empty()
                    {
                        // It may have ended; the client is told by the stream's end.
                        if timeout(STALL_LIMIT, incoming.send(payload)).await.is_err() {
                            open.cancelled.cancel();
                            open.incoming = None;
                        }
                    }
                    if is_last {
                        open.incoming = None;
                    }
                }
                Frame::Reset { stream } => {
                    if let Some(open) = self.open.get(&stream) {
                        open.cancelled.cancel();
                    }
                    self.waiting.retain(|_, error| *error != stream);
                }
                // A client's pings have odd numbers; others are answers.
                Frame::Ping(number) if number % 2 == 1 => self.send(spdy::ping(number)).await,
                Frame::Ping(_) | Frame::GoAway => {}
            }
        }
        Ok(())
    }

    async fn send(&self, frame: Bytes) {
        let _ = self.outgoing.send(Message::Binary(frame)).await;
    }

    /// Opens a stream as its headers say: `streamtype`, `port` and `requestid`, which joins the two of a connection.
    async fn open(&mut self, stream: u32, headers: &[(String, String)]) {
        let header = |name: &str| {
            let found = headers.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let port = header("port").parse::<u16>().ok().filter(|port| *port > 0);
        let request = header("requestid");
        let is_full = self.waiting.len() + self.open.len() >= CONNECTIONS_MAX;
        let is_known = self.open.contains_key(&stream) || self.waiting.values().any(|error| *error == stream);
        match (header("streamtype"), port) {
            ("error", Some(_)) if !is_full && !is_known => {
                self.waiting.insert(request.to_owned(), stream);
                let reply = self.writer.reply(stream);
                self.send(reply).await;
            }
            ("data", Some(port)) if !is_known => {
                let Some(error) = self.waiting.remove(request) else {
                    self.send(spdy::reset(stream, spdy::PROTOCOL_ERROR)).await;
                    return;
                };
                let reply = self.writer.reply(stream);
                self.send(reply).await;
                self.begin(Pair { data: stream, error }, port);
            }
            ("error", Some(_)) if is_full => self.send(spdy::reset(stream, spdy::REFUSED_STREAM)).await,
            _ => self.send(spdy::reset(stream, spdy::PROTOCOL_ERROR)).await,
        }
    }

    fn begin(&mut self, pair: Pair, port: u16) {
        let (sender, incoming) = mpsc::channel(PIECES_MAX);
        let cancelled = CancellationToken::new();
        let open = Open {
            incoming: Some(sender),
            cancelled: cancelled.clone(),
        };
        self.open.insert(pair.data, open);
        let (ports, outgoing) = (self.ports.clone(), self.outgoing.clone());
        self.tasks.spawn(async move {
            let carried = carry(ports, port, incoming, outgoing.clone(), pair.clone());
            if cancelled.run_until_cancelled(carried).await.is_none() {
                let _ = outgoing.send(pair.error("")).await;
            }
            pair.data
        });
    }
}

/// Serves ports by channels until all have ended, the client goes or the agent stops.
pub(crate) async fn run_channels(
    io: Box<dyn Duplex>,
    dialect: Dialect,
    asked: Vec<u16>,
    ports: Ports,
    stopping: CancellationToken,
) {
    let (mut sink, mut stream) = websocket(io).await.split();
    let (outgoing, mut queue) = mpsc::channel(PIECES_MAX);
    let mut tasks = JoinSet::new();
    let mut senders = Vec::new();
    let begin = async {
        for (data, port) in (0u8..).step_by(2).zip(asked) {
            // Each channel begins with its port, the low byte first.
            for channel in [data, data + 1] {
                let _ = outgoing.send(dialect.message(channel, &port.to_le_bytes())).await;
            }
            let (sender, incoming) = mpsc::channel(PIECES_MAX);
            senders.push(sender);
            let to = Channels { dialect, data };
            tasks.spawn(carry(ports.clone(), port, incoming, outgoing.clone(), to));
        }
        drop(outgoing);
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() {
                break;
            }
            let Some((channel, payload)) = dialect.read(message).filter(|(_, payload)| !payload.is_empty())
            else {
                continue;
            };
            if let Some(sender) = senders.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0) {
                let _ = sender.send(payload).await;
            }
        }
        Ending::Gone
    };
    let ending = tokio::select! {
        ending = begin => ending,
        ending = forward(&mut sink, &mut queue) => ending,
        () = stopping.cancelled() => Ending::Stopping,
    };
    drop(tasks);
    if let Ok(mut socket) = sink.reunite(stream) {
        close(&mut socket, ending).await;
    }
}
