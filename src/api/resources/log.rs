//! `/log` of pods: from this node's containers, or relayed to the node that runs the pod.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, future};
use http::{HeaderValue, StatusCode, header};
use reconcilers::ports::{Container, ContainerState, LogOptions, PortError, labels};
use schemas::{Object, ObjectKey, time};

use super::{Call, get_object, relay_failed};
use crate::api::status::{ApiError, ApiResult};

/// Answers `GET` of a pod's log.
pub(super) async fn log(call: &Call<'_>) -> ApiResult {
    let key = call.key()?;
    let pod = get_object(call.state, &key)?;
    let container = container_name(call.query.text("container"), &pod)?;
    let node = pod.str_at("/spec/nodeName");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "container \"{container}\" in pod \"{}\" is waiting to start: the pod is not placed on a node",
            key.name
        )));
    }
    match call.state.node_named(node) {
        Some(id) if id == call.state.node => local(call, &key, &pod, &container).await,
        Some(id) if !call.is_local_only() => {
            let request = call.relayed(None)?;
            call.state
                .relay
                .send(&id, request)
                .await
                .map_err(|error| relay_failed(node, &key.name, &error))
        }
        _ => Err(ApiError::unavailable(format!(
            "node {node} of pod \"{}\" is not known here",
            key.name
        ))),
    }
}

/// The container that a client means.
pub(super) fn container_name(asked: &str, pod: &Object) -> ApiResult<String> {
    let names: Vec<&str> = ["/spec/initContainers", "/spec/containers"]
        .iter()
        .filter_map(|pointer| pod.pointer(pointer)?.as_array())
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    if !asked.is_empty() {
        if !names.contains(&asked) {
            return Err(ApiError::bad_request(format!(
                "container {asked} is not valid for pod {}",
                pod.name()
            )));
        }
        return Ok(asked.to_owned());
    }
    if let Some(default) = pod.annotation("kubectl.kubernetes.io/default-container")
        && names.contains(&default)
    {
        return Ok(default.to_owned());
    }
    match names.as_slice() {
        [one] => Ok((*one).to_owned()),
        many => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            many.join(" ")
        ))),
    }
}

/// Streams from this node's engine.
async fn local(call: &Call<'_>, key: &ObjectKey, pod: &Object, name: &str) -> ApiResult {
    let options = options(call)?;
    let limit = call.query.number::<u64>("limitBytes")?;
    let containers = call.state.runtime.list().await.map_err(port_failed)?;
    let container = pick(containers, pod.uid(), name, call.query.flag("previous")).ok_or_else(|| {
        if call.query.flag("previous") {
            return ApiError::bad_request(format!(
                "previous terminated container \"{name}\" in pod \"{}\" not found",
                key.name
            ));
        }
        ApiError::bad_request(format!(
            "container \"{name}\" in pod \"{}\" is waiting to start: {}",
            key.name,
            waiting_reason(pod, name)
        ))
    })?;
    let lines = call
        .state
        .runtime
        .logs(&container.id, &options)
        .await
        .map_err(port_failed)?;
    let stopping = call.stopping.clone().unwrap_or_default();
    let stopped = Box::pin(async move { stopping.cancelled().await });
    let body = Body::from_stream(bounded(lines, limit).take_until(stopped));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn options(call: &Call<'_>) -> ApiResult<LogOptions> {
    let query = &call.query;
    let since = match (query.number::<i64>("sinceSeconds")?, query.text("sinceTime")) {
        (Some(_), text) if !text.is_empty() => {
            return Err(ApiError::bad_request(
                "at most one of sinceTime and sinceSeconds may be specified",
            ));
        }
        (Some(seconds), _) if seconds < 1 => {
            return Err(ApiError::bad_request(
                "sinceSeconds: Invalid value: must be greater than 0",
            ));
        }
        (Some(seconds), _) => Some(call.state.clock.unix_seconds().saturating_sub(seconds)),
        (None, "") => None,
        (None, text) => Some(time::from_rfc3339(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "sinceTime: Invalid value: \"{text}\": not a time as RFC 3339 writes it"
            ))
        })?),
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        tail: query.number("tailLines")?,
        since_unix_seconds: since,
        timestamps: query.flag("timestamps"),
    })
}

/// The newest container of the name in the pod that has run; the one before it for `previous`.
pub(super) fn pick(containers: Vec<Container>, uid: &str, name: &str, previous: bool) -> Option<Container> {
    let label = |container: &Container, key: &str| container.labels.get(key).cloned().unwrap_or_default();
    let mut found: Vec<(u64, Container)> = containers
        .into_iter()
        .filter(|container| {
            label(container, labels::POD_UID) == uid && label(container, labels::CONTAINER_NAME) == name
        })
        .filter(|container| container.state != ContainerState::Created)
        .map(|container| {
            (
                label(&container, labels::RESTART_COUNT)
                    .parse()
                    .unwrap_or_default(),
                container,
            )
        })
        .collect();
    found.sort_by_key(|(restarts, _)| std::cmp::Reverse(*restarts));
    found
        .into_iter()
        .nth(usize::from(previous))
        .map(|(_, container)| container)
}

pub(super) fn waiting_reason(pod: &Object, name: &str) -> String {
    ["/status/containerStatuses", "/status/initContainerStatuses"]
        .iter()
        .filter_map(|pointer| pod.pointer(pointer)?.as_array())
        .flatten()
        .find(|status| status["name"] == name)
        .and_then(|status| status["state"]["waiting"]["reason"].as_str())
        .unwrap_or("ContainerCreating")
        .to_owned()
}

/// Ends the stream after `limit` bytes (`limitBytes`).
fn bounded(
    lines: impl Stream<Item = Result<Bytes, PortError>> + Send + 'static,
    limit: Option<u64>,
) -> impl Stream<Item = Result<Bytes, PortError>> + Send + 'static {
    let Some(limit) = limit else {
        return lines.left_stream();
    };
    lines
        .scan(limit, |left, chunk| {
            let chunk = chunk.map(|mut chunk| {
                chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= chunk.len() as u64;
                chunk
            });
            let done = matches!(&chunk, Ok(bytes) if bytes.is_empty());
            future::ready((!done).then_some(chunk))
        })
        .right_stream()
}

fn port_failed(error: PortError) -> ApiError {
    match error {
        PortError::NotFound(what) => ApiError::bad_request(format!("{what} is not there any more")),
        PortError::Refused { message, .. } => ApiError::internal(message),
        PortError::Unavailable { .. } => ApiError::unavailable(error.to_string()),
    }
}
