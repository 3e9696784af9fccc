//! Sessions over websockets: `exec`, `attach` and `port-forward`, in the protocols of Kubernetes.
//!
//! `handshake` reads what a client asks for and makes bytes in both directions of it, whether it is connected to this node or
//! to another that relays; `channels` runs a process's streams over them, `forward` ports. Who may, and which container is meant,
//! is decided in `resources::session`; nothing here knows pods or Podman.

mod channels;
mod forward;
mod handshake;
mod sessions;
mod spdy;

pub(crate) use channels::{Dialect, PROCESS_PROTOCOLS, run_process};
pub(crate) use forward::{FORWARD_PROTOCOLS, Ports, TUNNEL, run_channels, run_tunnel};
pub(crate) use handshake::{Asked, Client, RELAYED_PROTOCOL, Way, relay};
pub use sessions::Sessions;
#[cfg(test)]
pub(crate) use spdy::client as spdy_client;

use reconcilers::ports::Duplex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode};

use std::time::Duration;

use futures::{SinkExt, StreamExt};

/// The largest message of a client: kubectl sends 32 KiB at once, simple clients whole files of a few megabytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What waits to be sent; more makes the writer wait.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// Between pings: less than the minute after which proxies give up on a silent connection.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// For the client's answer to the close.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A websocket whose handshake is done.
type Socket = WebSocketStream<Box<dyn Duplex>>;

/// Begins with the frames of a websocket.
async fn websocket(io: Box<dyn Duplex>) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES + MESSAGE_BYTES_MAX);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Why a websocket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// All has been said.
    Done,
    /// The agent stops.
    Stopping,
    /// The client went away, or does not keep to the protocol.
    Gone,
}

/// Closes a websocket and waits for the client's answer: closing with unread bytes would reset the connection, and what was sent
/// last would be lost.
async fn close(socket: &mut Socket, ending: Ending) {
    let (code, reason) = match ending {
        Ending::Done => (CloseCode::Normal, ""),
        Ending::Stopping => (CloseCode::Away, "the agent of the node stops"),
        Ending::Gone => return,
    };
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let closing = async {
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_LIMIT, closing).await;
}
