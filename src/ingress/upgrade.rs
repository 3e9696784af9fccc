//! Connections to backends for requests that ask for an upgrade (websockets).
//!
//! pingora 0.9 ends an upgraded connection at once when it reads the backend's 101 before it has handled the end of the
//! request's own empty body (cloudflare/pingora#946). The end waits in a channel by the time of the first read, and both
//! are polled together: a first read that finds nothing, though there may be something, lets the end come first.

use std::io::Result as IoResult;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{ErrorType, OkOrErr, OrErr, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Makes such connections. They are of no use to other requests and must not be pooled: to pingora they have no socket,
/// by which it tells those in the pool apart.
#[derive(Debug)]
pub(super) struct ConnectForUpgrade;

#[async_trait]
impl L4Connect for ConnectForUpgrade {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let address = address
            .as_inet()
            .or_err(ErrorType::InternalError, "backends have IP addresses")?;
        let stream = TcpStream::connect(address)
            .await
            .or_err(ErrorType::ConnectError, "the endpoint takes no connection")?;
        let socket = UpgradeSocket {
            stream,
            was_read: false,
        };
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

#[derive(Debug)]
struct UpgradeSocket {
    stream: TcpStream,
    /// The first read was asked for.
    was_read: bool,
}

impl AsyncRead for UpgradeSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<IoResult<()>> {
        if !std::mem::replace(&mut self.was_read, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for UpgradeSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl VirtualSocket for UpgradeSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> IoResult<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            // Not asked for here: upgraded connections are given up by UPGRADED_IDLE.
            _ => Ok(()),
        }
    }
}
