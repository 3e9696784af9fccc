//! Events of the other nodes in a watch: each is asked for a watch of its own, and what it tells is passed on.
//!
//! What a node tells between a client's list and its watch, or while it cannot be reached, is in the next list alone.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use futures::TryStreamExt;
use http::request::Parts;
use http::{HeaderValue, Request};
use schemas::{Kind, Object};
use serde::Deserialize;
use store::NodeId;
use tokio::io::AsyncBufReadExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use super::read::as_kept;
use super::{Call, LOCAL_ONLY};
use crate::api::state::ApiState;
use crate::api::status::ApiResult;

/// The value of [`LOCAL_ONLY`] for a watch that shows what happens from now on: versions of one node mean nothing to another.
const FROM_NOW: &str = "from-now";
/// Changes of all nodes that the client has not taken yet; the nodes wait then.
const WAITING_CHANGES: usize = 64;
/// How often nodes are looked for that came, or whose watch ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What other nodes tell, until this is dropped.
pub(super) struct PeerEvents {
    changes: mpsc::Receiver<Change>,
    _following: Option<AbortOnDropHandle<()>>,
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Change {
    #[serde(rename = "type")]
    pub(super) event: String,
    pub(super) object: Object,
}

/// Tells whether a watch, asked for by another node, shows what happens from now on.
pub(super) fn begins_now(call: &Call<'_>) -> bool {
    call.headers
        .get(LOCAL_ONLY)
        .is_some_and(|value| value == FROM_NOW)
}

impl PeerEvents {
    /// Follows the events of all other live nodes, if that is what the call watches. `initial`: those that are there come
    /// first.
    pub(super) fn follow(call: &Call<'_>, initial: bool) -> ApiResult<Self> {
        let (sender, changes) = mpsc::channel(WAITING_CHANGES);
        let _following = if call.kind() == Kind::Event && !call.is_local_only() {
            let (parts, _) = call.relayed(Some("application/json"))?.into_parts();
            let following = follow_all(call.state.clone(), parts, initial, sender);
            Some(AbortOnDropHandle::new(tokio::spawn(following)))
        } else {
            None
        };
        Ok(Self { changes, _following })
    }

    /// Follows nobody.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self {
            changes: mpsc::channel(1).1,
            _following: None,
        }
    }

    /// Waits for the next change; None: nobody is followed.
    pub(super) async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }
}

async fn follow_all(state: ApiState, request: Parts, mut initial: bool, changes: mpsc::Sender<Change>) {
    let mut followed: HashSet<NodeId> = HashSet::new();
    let mut watches: JoinSet<NodeId> = JoinSet::new();
    loop {
        for node in state.live_peers() {
            if followed.insert(node.clone()) {
                let mut request = request.clone();
                if !initial {
                    let value = HeaderValue::from_static(FROM_NOW);
                    request.headers.insert(LOCAL_ONLY, value);
                }
                let request = Request::from_parts(request, Body::empty());
                let (state, changes) = (state.clone(), changes.clone());
                watches.spawn(async move {
                    let ended = follow(&state, &node, request, &changes).await;
                    tracing::debug!(%node, error = ended.err(), "a watch of another node's events ended");
                    node
                });
            }
        }
        initial = false;
        tokio::time::sleep(LOOK_INTERVAL).await;
        while let Some(ended) = watches.try_join_next() {
            if let Ok(node) = ended {
                followed.remove(&node);
            }
        }
    }
}

/// Passes on what a node tells, until it ends the watch.
async fn follow(
    state: &ApiState,
    node: &NodeId,
    request: Request<Body>,
    changes: &mpsc::Sender<Change>,
) -> Result<(), String> {
    let answer = state.relay.send(node, request).await;
    let body = answer.map_err(|error| error.to_string())?.into_body();
    let body = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let mut lines = body.lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        let mut change: Change = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        change.object = as_kept(change.object);
        // Its bookmarks are of its own versions; its end is not that of this watch.
        if matches!(change.event.as_str(), "ADDED" | "MODIFIED" | "DELETED")
            && changes.send(change).await.is_err()
        {
            break;
        }
    }
    Ok(())
}
