//! DNS over TCP, with a limit of connections: any container can reach this port, and hickory's own listener takes as many as
//! there are descriptors, which the agent's API and Podman need too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::handler::Handler;

/// Connections at once to one address. TCP is for the few answers that do not fit a datagram; more wait in the backlog.
const MAX_CONNECTIONS: usize = 256;

/// A client that sends no question, or does not take its answer, for this long is cut off; resolvers ask at once.
const IDLE: Duration = Duration::from_secs(5);

/// After a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until it is dropped, and they with it.
pub(super) async fn serve(listener: TcpListener, handler: Handler) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, client)) => {
                let handler = handler.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(stream, client, &handler).await {
                        tracing::debug!(%client, %error, "DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers the questions of one client, one after the other.
async fn connection(mut stream: TcpStream, client: SocketAddr, handler: &Handler) -> std::io::Result<()> {
    loop {
        let bytes = tokio::time::timeout(IDLE, read_message(&mut stream)).await??;
        let Ok(request) = Request::from_bytes(bytes, client, Protocol::Tcp) else {
            return Ok(());
        };
        let encoded = Encoded::default();
        handler
            .handle_request::<_, TokioTime>(&request, encoded.clone())
            .await;
        let bytes = std::mem::take(&mut *encoded.0.lock().unwrap_or_else(PoisonError::into_inner));
        let Ok(length) = u16::try_from(bytes.len()) else {
            return Ok(());
        };
        if length == 0 {
            return Ok(());
        }
        // Length and message in one segment (RFC 7766, 8).
        let message = [&length.to_be_bytes()[..], &bytes].concat();
        tokio::time::timeout(IDLE, stream.write_all(&message)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Takes an answer as bytes; stays empty if there is none.
#[derive(Clone, Default)]
struct Encoded(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl ResponseHandler for Encoded {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}
