//! `channel.k8s.io`: several streams in one websocket, told apart by a byte before each message; and a process over it.
//!
//! As kubelet speaks it (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`), KEP-4006 for version 5.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reconcilers::ports::{Duplex, Session, SessionOutput, TerminalSize};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{Ending, PING_INTERVAL, Socket, close, websocket};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How the process ended, or why there is none.
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: names a channel that ends.
const CLOSE: u8 = 255;

/// The protocols for `exec` and `attach`.
pub(crate) const PROCESS_PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// Text messages: the channel as a digit, the rest in base64.
    is_base64: bool,
    /// The end of a process is told as a `Status`; before version 4, an error as plain text.
    has_status: bool,
    /// A client can end its stdin.
    can_close: bool,
}

impl Dialect {
    /// The dialect of an agreed protocol; an empty one is the oldest.
    pub(crate) fn of(protocol: &str) -> Self {
        let version = protocol.split('.').next().unwrap_or_default();
        Self {
            is_base64: protocol.contains("base64"),
            has_status: matches!(version, "v4" | "v5"),
            can_close: version == "v5",
        }
    }

    pub(super) fn message(self, channel: u8, payload: &[u8]) -> Message {
        if self.is_base64 {
            let digit = char::from(b'0'.saturating_add(channel));
            return Message::text(format!("{digit}{}", STANDARD.encode(payload)));
        }
        let mut bytes = BytesMut::with_capacity(1 + payload.len());
        bytes.put_u8(channel);
        bytes.put_slice(payload);
        Message::Binary(bytes.freeze())
    }

    /// Reads a message; None for what is none of a channel.
    pub(super) fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            // The Python client sends strings as text also where bytes are meant.
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return None,
        };
        let channel = *bytes.first()?;
        let payload = bytes.split_off(1);
        if !self.is_base64 {
            return Some((channel, payload));
        }
        let decoded = STANDARD.decode(payload).ok()?;
        Some((channel.checked_sub(b'0')?, decoded.into()))
    }
}

/// The size as clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Connects a client with a process until that ends, the client goes or the agent stops.
pub(crate) async fn run_process(
    io: Box<dyn Duplex>,
    dialect: Dialect,
    session: Session,
    stopping: CancellationToken,
) {
    let Session {
        stdin,
        mut output,
        size,
    } = session;
    let (mut sink, mut stream) = websocket(io).await.split();
    let ending = tokio::select! {
        ending = receive(&mut stream, dialect, stdin, size) => ending,
        ending = send(&mut sink, dialect, &mut output) => ending,
        () = stopping.cancelled() => Ending::Stopping,
    };
    drop(output);
    if let Ok(mut socket) = sink.reunite(stream) {
        close(&mut socket, ending).await;
    }
}

/// Passes on what the client sends. A process that does not read makes the client wait.
async fn receive(
    stream: &mut SplitStream<Socket>,
    dialect: Dialect,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    size: watch::Sender<TerminalSize>,
) -> Ending {
    while let Some(Ok(message)) = stream.next().await {
        if message.is_close() {
            break;
        }
        let Some((channel, payload)) = dialect.read(message) else {
            continue;
        };
        match channel {
            STDIN => {
                let written = match &mut stdin {
                    Some(input) => write(input, &payload).await,
                    None => Ok(()),
                };
                // The process has closed its input: the rest is nothing to it.
                if written.is_err() {
                    stdin = None;
                }
            }
            RESIZE => {
                if let Ok(Size { width, height }) = serde_json::from_slice(&payload) {
                    size.send_replace(TerminalSize {
                        columns: width,
                        rows: height,
                    });
                }
            }
            CLOSE if dialect.can_close && payload.as_ref() == [STDIN] => {
                if let Some(mut input) = stdin.take() {
                    let _ = input.shutdown().await;
                }
            }
            _ => {}
        }
    }
    Ending::Gone
}

async fn write(input: &mut (dyn AsyncWrite + Send + Unpin), payload: &[u8]) -> std::io::Result<()> {
    input.write_all(payload).await?;
    input.flush().await
}

/// Sends what the process says, and how it ended. A client that does not read makes the process wait.
async fn send(
    sink: &mut SplitSink<Socket, Message>,
    dialect: Dialect,
    output: &mut (impl futures::Stream<Item = Result<SessionOutput, reconcilers::ports::PortError>> + Unpin),
) -> Ending {
    // Nothing on stdout: tells clients that the streams are there.
    let mut next = Some(dialect.message(STDOUT, b""));
    let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    let status = loop {
        if let Some(message) = next.take()
            && sink.send(message).await.is_err()
        {
            return Ending::Gone;
        }
        let part = tokio::select! {
            part = output.next() => part,
            _ = pings.tick() => {
                next = Some(Message::Ping(Bytes::new()));
                continue;
            }
        };
        next = match part {
            Some(Ok(SessionOutput::Stdout(piece) | SessionOutput::Stderr(piece))) if piece.is_empty() => None,
            Some(Ok(SessionOutput::Stdout(piece))) => Some(dialect.message(STDOUT, &piece)),
            Some(Ok(SessionOutput::Stderr(piece))) => Some(dialect.message(STDERR, &piece)),
            Some(Ok(SessionOutput::Exited(code))) => break exited(code),
            Some(Err(error)) => break failed(&error.to_string()),
            None => break exited(0),
        };
    };
    let text = match status["status"].as_str() {
        _ if dialect.has_status => status.to_string(),
        Some("Success") => return Ending::Done,
        _ => status["message"].as_str().unwrap_or_default().to_owned(),
    };
    match sink.send(dialect.message(ERROR, text.as_bytes())).await {
        Ok(()) => Ending::Done,
        Err(_) => Ending::Gone,
    }
}

/// The `Status` of a process that ended.
fn exited(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failed(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "code": 500,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written_in_every_dialect() {
        for protocol in PROCESS_PROTOCOLS {
            let dialect = Dialect::of(protocol);
            for payload in [&b""[..], b"a line\n", &[0, 255, 10]] {
                let message = dialect.message(STDERR, payload);
                assert_eq!(message.is_text(), protocol.contains("base64"), "{protocol}");
                let read = dialect.read(message).unwrap();
                assert_eq!((read.0, read.1.as_ref()), (STDERR, payload), "{protocol}");
            }
        }
    }

    #[test]
    fn nonsense_is_no_message() {
        let base64 = Dialect::of("base64.channel.k8s.io");
        for message in [
            Message::text(""),
            Message::text("\u{1}YQ=="),
            Message::text("0***"),
            Message::Ping(Bytes::new()),
        ] {
            assert_eq!(base64.read(message.clone()), None, "{message:?}");
        }
    }

    #[test]
    fn only_version_5_ends_stdin_and_only_4_and_5_have_a_status() {
        let can = |protocol| {
            let dialect = Dialect::of(protocol);
            (dialect.can_close, dialect.has_status)
        };
        assert_eq!(can("v5.channel.k8s.io"), (true, true));
        assert_eq!(can("v4.channel.k8s.io"), (false, true));
        assert_eq!(can("v4.base64.channel.k8s.io"), (false, true));
        assert_eq!(can("channel.k8s.io"), (false, false));
        assert_eq!(can(""), (false, false));
    }
}
