//! `GET /api/v1/backup`: a backup of the cluster as this node knows it, made while it is sent.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::state::ApiState;
use super::status::{ApiError, ApiResult};
use super::target::Query;
use crate::backup::{self, About, Identity, Sealing};

/// Bytes handed over at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that may wait for the client.
const CHUNKS_AHEAD: usize = 4;
/// A client that takes nothing for this long holds a thread for nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Backups and restores at once: each holds a thread, and a restore the whole file.
const MAX_AT_ONCE: usize = 2;

/// What backups of this node say of themselves, and their key.
#[derive(Clone)]
pub struct BackupSource {
    pub cluster_id: String,
    pub node_name: String,
    pub identity: Identity,
    pub(super) places: Arc<Semaphore>,
}

impl BackupSource {
    pub fn new(cluster_id: impl Into<String>, node_name: impl Into<String>, identity: Identity) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            node_name: node_name.into(),
            identity,
            places: Arc::new(Semaphore::new(MAX_AT_ONCE)),
        }
    }
}

impl ApiState {
    /// What a backup that is made now says of itself.
    pub fn about_backup(&self) -> About {
        About {
            cluster_id: self.backups.cluster_id.clone(),
            node: self.backups.node_name.clone(),
            version: self.build.version.to_owned(),
            created: self.clock.unix_seconds(),
        }
    }

    /// A place among the backups and restores that run.
    pub(super) fn backup_place(&self) -> ApiResult<tokio::sync::OwnedSemaphorePermit> {
        let place = self.backups.places.clone().try_acquire_owned();
        place
            .map_err(|_| ApiError::unavailable("other backups or restores run on this node: try again later"))
    }
}

/// `?seal=confidential|always|never`.
pub(crate) async fn backup(State(state): State<ApiState>, request: Request) -> ApiResult {
    let query = Query::of(request.uri())?;
    let sealing = match query.text("seal") {
        "" | "confidential" => Sealing::Confidential,
        "always" => Sealing::Always,
        "never" => Sealing::Never,
        other => {
            return Err(ApiError::bad_request(format!(
                "parameter seal: Unsupported value: \"{other}\": supported values: \"always\", \"confidential\", \"never\""
            )));
        }
    };
    let place = state.backup_place()?;
    let snapshot = backup::snapshot(&state.store);
    let sealed = sealing.seals(&snapshot);
    let about = state.about_backup();
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let seal_for = sealed.then_some(&state.backups.identity);
        let mut out = ChunkWriter {
            chunk: BytesMut::with_capacity(CHUNK_BYTES),
            chunks,
            handle,
        };
        if let Err(error) = backup::write(&snapshot, &about, seal_for, &mut out) {
            tracing::warn!(%error, "api: a backup was not sent to its end");
            // The client must see that something is missing; one that is gone sees nothing.
            _ = out.send(Err(io::Error::other(error)));
        }
        drop(place);
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let media = match sealed {
        true => "application/octet-stream",
        false => "application/yaml",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    Ok(response)
}

/// Hands what is written on a blocking thread to a body.
struct ChunkWriter {
    chunk: BytesMut,
    chunks: mpsc::Sender<io::Result<Bytes>>,
    handle: Handle,
}

impl ChunkWriter {
    fn send(&self, chunk: io::Result<Bytes>) -> io::Result<()> {
        let sending = self
            .handle
            .block_on(async { tokio::time::timeout(STALL_TIMEOUT, self.chunks.send(chunk)).await });
        match sending {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        self.send(Ok(chunk))
    }
}
