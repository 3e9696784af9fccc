//! Versions that another node gave: what hangs on one is answered by that node, which alone can compare it.
//!
//! The node that is asked has authenticated the user and says who it is; a relayed request is never relayed again.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures::future::join_all;
use http::{StatusCode, header};
use reconcilers::ports::Liveness;
use schemas::{Kind, ObjectKey};
use store::Revision;

use super::Call;
use crate::api::status::{ApiError, ApiResult};

/// From the request to the head of the answer: a connection, and a write that waits for a slow disk.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the other node needs of the client's headers; who the user is, it is told.
const PASSED_HEADERS: [header::HeaderName; 3] = [header::ACCEPT, header::CONTENT_TYPE, header::USER_AGENT];

/// Lets the node that gave `version` answer; None if that is this one, or no version is named.
///
/// # Errors
/// Why it cannot be asked, in words.
pub(super) async fn answer(
    call: &Call<'_>,
    version: Option<Revision>,
    body: &Bytes,
) -> Result<Option<Response>, String> {
    let Some(version) = version else {
        return Ok(None);
    };
    let tag = version.tag();
    if tag == call.state.store.revision().tag() {
        return Ok(None);
    }
    let given = format!("resourceVersion {version} was given by");
    if call.is_local_only() {
        return Err(format!("{given} another node than this one"));
    }
    let found: Vec<_> = {
        let cluster = call.state.cluster.borrow();
        let of_tag = cluster
            .nodes
            .iter()
            .filter(|(_, node)| node.facts.revision_tag == Some(tag));
        of_tag.map(|(id, node)| (id.clone(), node.clone())).collect()
    };
    // Two nodes may have drawn one tag: which of them it was, nobody knows.
    let [(id, node)] = found.as_slice() else {
        return Err(format!("{given} a node that is not known here"));
    };
    let name = &node.facts.name;
    if node.liveness != Liveness::Alive {
        return Err(format!("{given} node {name}, which is not reachable"));
    }
    let request = passed_on(call, body).map_err(|error| error.message)?;
    tracing::debug!(node = name, %version, path = call.uri.path(), "api: relayed to the node that gave the version");
    match tokio::time::timeout(TIMEOUT, call.state.relay.send(id, request)).await {
        Ok(Ok(response)) => Ok(Some(response)),
        Ok(Err(error)) => Err(format!("{given} node {name}: {error}")),
        Err(_) => Err(format!("{given} node {name}, which did not answer in time")),
    }
}

/// The client's request for another node.
fn passed_on(call: &Call<'_>, body: &Bytes) -> ApiResult<Request> {
    let mut request = call.relayed(None)?;
    *request.method_mut() = call.method.clone();
    for name in PASSED_HEADERS {
        if let Some(value) = call.headers.get(&name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    *request.body_mut() = Body::from(body.clone());
    Ok(request)
}

/// [`answer`] for a write of an object on condition, or of an Event that another node keeps.
///
/// # Errors
/// 409 if that node cannot be asked.
pub(super) async fn write(
    call: &Call<'_>,
    key: &ObjectKey,
    version: Option<Revision>,
    body: &Bytes,
) -> ApiResult<Option<Response>> {
    let answered = answer(call, version, body).await.map_err(|why| {
        ApiError::conflict(
            key,
            &format!("{why}; please read the object again, apply your changes to that and try again"),
        )
    })?;
    let is_elsewhere = || key.kind == Kind::Event && call.state.store.get(key).is_none();
    if answered.is_some() || call.is_local_only() || !is_elsewhere() {
        return Ok(answered);
    }
    let answers = join_all(call.state.live_peers().into_iter().map(|node| async move {
        let request = passed_on(call, body).ok()?;
        let answer = tokio::time::timeout(TIMEOUT, call.state.relay.send(&node, request)).await;
        answer.ok()?.ok()
    }));
    let mut answers = answers.await.into_iter().flatten();
    Ok(answers.find(|answer| answer.status() != StatusCode::NOT_FOUND))
}
