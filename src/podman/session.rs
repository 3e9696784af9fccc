//! Interactive sessions: a command in a container or the container's own process, over a connection that Podman hands over
//! after HTTP's upgrade; and connections to ports inside a container.
//!
//! Every byte passes through buffers of fixed size: conmon's, Podman's and ours. Nothing here knows the API's protocols.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use reconcilers::ports::{
    ContainerId, Duplex, PortError, Session, SessionOutput, SessionStreams, TerminalSize,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWrite;
use tokio::sync::{oneshot, watch};
use tokio_util::io::ReaderStream;
use tracing::debug;

use super::process::Process;
use super::runtime::{LIMIT, Podman, SETTLE_PAUSE};
use super::socket::{CallError, Socket, within};
use super::stream::Frames;

/// One read of a session's output: what Podman itself reads from conmon at once.
const READ_BYTES: usize = 32 << 10;

/// From the start of a session to the connection: conmon and the runtime take a tenth of a second on a quiet machine.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// Podman refuses sizes for a process that it is still starting: a size is tried for two seconds.
const RESIZE_ATTEMPTS: u32 = 40;
const RESIZE_PAUSE: Duration = Duration::from_millis(50);

/// To a port on a loopback address: at once, unless the program's queue of connections is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Podman leaves a session at a sequence of keys; an empty one means its default, which people do type. Nobody types this.
const DETACH_KEYS: &str = "ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^";

const SIGHUP: i32 = 1;

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id")]
    id: String,
}

/// What Podman says of an exec session.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecState {
    running: bool,
    exit_code: i32,
    #[serde(default)]
    pid: u32,
}

/// An exec session on its way; its process gets a signal when this is dropped before the end, since it would run on.
pub(super) struct ExecGuard {
    pub(super) socket: Socket,
    pub(super) exec: String,
    pub(super) container: String,
    pub(super) signal: i32,
    pub(super) is_done: bool,
}

impl ExecGuard {
    /// Waits until Podman knows how the process ended.
    pub(super) async fn exit_code(mut self) -> Result<i32, CallError> {
        let mut pause = SETTLE_PAUSE;
        loop {
            let state = exec_state(&self.socket, &self.exec).await?;
            if !state.running {
                self.is_done = true;
                return Ok(state.exit_code);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

impl Drop for ExecGuard {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let (socket, signal) = (self.socket.clone(), self.signal);
        let (exec, container) = (
            std::mem::take(&mut self.exec),
            std::mem::take(&mut self.container),
        );
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Ok(state) = exec_state(&socket, &exec).await
                    && state.running
                    && let Some(process) = Process::open(state.pid, &container)
                {
                    process.signal(signal);
                }
            });
        }
    }
}

async fn exec_state(socket: &Socket, exec: &str) -> Result<ExecState, CallError> {
    socket
        .json(Method::GET, &format!("/exec/{exec}/json"), None, LIMIT)
        .await
}

impl Podman {
    /// Begins a command; see [`reconcilers::ports::ContainerRuntime::open_session`].
    pub(super) async fn exec_session(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: SessionStreams,
    ) -> Result<Session, CallError> {
        let create = json!({
            "Cmd": command,
            "AttachStdin": streams.stdin,
            "AttachStdout": streams.stdout,
            "AttachStderr": streams.stderr && !streams.tty,
            "Tty": streams.tty,
            "DetachKeys": DETACH_KEYS,
        });
        let target = format!("/containers/{}/exec", id.0);
        let created: Created = self
            .socket
            .json(Method::POST, &target, Some(&create), LIMIT)
            .await?;
        let guard = ExecGuard {
            socket: self.socket.clone(),
            exec: created.id,
            container: id.0.clone(),
            signal: SIGHUP,
            is_done: false,
        };
        let target = format!("/exec/{}/start", guard.exec);
        let start = json!({"Detach": false, "Tty": streams.tty});
        let connection = within(BEGIN_LIMIT, self.socket.upgrade(&target, Some(&start))).await?;
        let resize = format!("/exec/{}/resize", guard.exec);
        let (stdin, size, output) = self.parts(connection, streams, resize);
        let ended = stream::once(async move {
            let code = guard.exit_code().await;
            code.map(SessionOutput::Exited)
        });
        Ok(Session {
            stdin,
            size,
            output: output
                .chain(ended)
                .map_err(|error| error.into_port("exec", "ExecFailed"))
                .boxed(),
        })
    }

    /// Joins the container's process; see [`reconcilers::ports::ContainerRuntime::attach`].
    pub(super) async fn attach_session(
        &self,
        id: &ContainerId,
        streams: SessionStreams,
    ) -> Result<Session, CallError> {
        let target = format!(
            "/containers/{}/attach?stream=true&logs=false&stdin={}&stdout={}&stderr={}&detachKeys=",
            id.0,
            streams.stdin,
            streams.stdout,
            streams.stderr && !streams.tty
        );
        let connection = within(BEGIN_LIMIT, self.socket.upgrade(&target, None)).await?;
        let (stdin, size, output) = self.parts(connection, streams, format!("/containers/{}/resize", id.0));
        let output = output
            .map_err(|error| error.into_port("attach", "AttachFailed"))
            .boxed();
        Ok(Session { stdin, output, size })
    }

    /// Splits a connection that Podman handed over; `resize` is where sizes go.
    #[expect(clippy::type_complexity, reason = "the three parts of a session")]
    fn parts(
        &self,
        connection: Upgraded,
        streams: SessionStreams,
        resize: String,
    ) -> (
        Option<Box<dyn AsyncWrite + Send + Unpin>>,
        watch::Sender<TerminalSize>,
        impl futures::Stream<Item = Result<SessionOutput, CallError>> + Send + 'static,
    ) {
        let (read, write) = tokio::io::split(TokioIo::new(connection));
        let stdin: Option<Box<dyn AsyncWrite + Send + Unpin>> = match streams.stdin {
            true => Some(Box::new(write)),
            // Closed, it would be the end of a container's input that others use.
            false => None,
        };
        let (size, sizes) = watch::channel(TerminalSize::default());
        if streams.tty {
            tokio::spawn(resizing(self.socket.clone(), resize, sizes));
        }
        let mut frames = (!streams.tty).then(Frames::default);
        let output = ReaderStream::with_capacity(read, READ_BYTES)
            .map_err(|error| CallError::Unavailable(error.to_string()))
            .and_then(move |piece| {
                let parts = match &mut frames {
                    Some(frames) => frames.parts(piece),
                    None => Ok(vec![(1, piece)]),
                };
                std::future::ready(parts.map(|parts| stream::iter(parts.into_iter().map(told).map(Ok))))
            })
            .try_flatten();
        (stdin, size, output)
    }

    /// Connects to a port of a container; see [`reconcilers::ports::ContainerRuntime::connect`].
    pub(super) async fn connect_inside(
        &self,
        id: &ContainerId,
        pid: u32,
        port: u16,
    ) -> Result<Box<dyn Duplex>, PortError> {
        let unavailable = |message: String| PortError::Unavailable {
            operation: "connect to a port of the container",
            message,
        };
        let namespace =
            File::open(format!("/proc/{pid}/ns/net")).map_err(|error| unavailable(error.to_string()))?;
        // Asked after the namespace was opened: so it is the container's.
        if Process::open(pid, &id.0).is_none() {
            return Err(unavailable(format!(
                "process {pid} of container {} is not to be seen",
                id.0
            )));
        }
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("pod-connect".into())
            .spawn(move || {
                let connected =
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(std::io::Error::from)
                        .and_then(|()| connect_loopback(port));
                let _ = done.send(connected);
            })
            .map_err(|error| unavailable(error.to_string()))?;
        let connected = result
            .await
            .map_err(|_| unavailable("its thread ended".to_owned()))?;
        let stream = connected
            .and_then(tokio::net::TcpStream::from_std)
            .map_err(|error| PortError::Refused {
                reason: "ConnectFailed",
                message: format!("port {port}: {error}"),
            })?;
        Ok(Box::new(stream))
    }
}

/// A part of a framed stream, by the number of its stream.
fn told((stream, payload): (u8, Bytes)) -> SessionOutput {
    match stream {
        2 => SessionOutput::Stderr(payload),
        _ => SessionOutput::Stdout(payload),
    }
}

/// Connects as kubelet does: IPv4 first.
fn connect_loopback(port: u16) -> std::io::Result<std::net::TcpStream> {
    let connect = |address: SocketAddr| std::net::TcpStream::connect_timeout(&address, CONNECT_LIMIT);
    let stream = connect((Ipv4Addr::LOCALHOST, port).into())
        .or_else(|first| connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| first))?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Passes sizes on until the session is dropped.
async fn resizing(socket: Socket, path: String, mut sizes: watch::Receiver<TerminalSize>) {
    while sizes.changed().await.is_ok() {
        for _ in 0..RESIZE_ATTEMPTS {
            let TerminalSize { columns, rows } = *sizes.borrow_and_update();
            let target = format!("{path}?h={rows}&w={columns}");
            match socket.call(Method::POST, &target, LIMIT).await {
                Ok(()) => break,
                Err(error) if error.is(StatusCode::NOT_FOUND) => break,
                Err(error) => debug!(%error, "a terminal cannot be resized (yet)"),
            }
            if sizes.has_changed().is_err() {
                return;
            }
            tokio::time::sleep(RESIZE_PAUSE).await;
        }
    }
}
