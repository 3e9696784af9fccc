//! get and list: selectors, pages, tables, and the events of other nodes.

use std::time::Duration;

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use schemas::{Kind, Object, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{NodeId, Revision};

use super::{Call, object_answer, shown};
use crate::api::content::{self, Accepted, Shape};
use crate::api::selection::Selection;
use crate::api::state::ApiState;
use crate::api::status::{ApiError, ApiResult};
use crate::api::tables::{self, Include};

/// How long another node may take to send its events; a list is not to hang on one that just died.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Twice what a node keeps at most.
const MAX_PEER_EVENTS_BYTES: usize = 8 * 1024 * 1024;

/// Answers `GET` of one object.
pub(super) async fn get(call: &Call<'_>) -> ApiResult {
    let key = call.key()?;
    match get_object(call.state, &key) {
        Ok(object) => object_answer(call, StatusCode::OK, object),
        // Another node may have seen it.
        Err(error) if key.kind == Kind::Event && !call.is_local_only() => peer_event(call).await.ok_or(error),
        Err(error) => Err(error),
    }
}

/// Returns an object as the API shows it.
pub(crate) fn get_object(state: &ApiState, key: &ObjectKey) -> ApiResult<Object> {
    let view = state.store.get(key).ok_or_else(|| ApiError::not_found(key))?;
    Ok(shown(&view))
}

/// Writes one object in an accepted shape.
pub(super) fn one(call: &Call<'_>, accepted: Accepted, object: Object) -> ApiResult<Value> {
    Ok(match accepted.shape {
        Shape::Whole => object.into_value(),
        Shape::Metadata => content::metadata_only(&object),
        Shape::Table => {
            let metadata = json!({"resourceVersion": object.str_at("/metadata/resourceVersion")});
            let row = tables::row(
                call.kind(),
                &object,
                call.state.clock.unix_seconds(),
                include(call)?,
            );
            tables::table(call.kind(), metadata, vec![row])
        }
    })
}

/// Reads `includeObject`.
pub(super) fn include(call: &Call<'_>) -> ApiResult<Include> {
    match call.query.text("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::Nothing),
        "Object" => Ok(Include::Whole),
        other => Err(ApiError::bad_request(format!(
            "parameter includeObject: Unsupported value: \"{other}\": supported values: \"Metadata\", \"None\", \"Object\""
        ))),
    }
}

/// Where the next page of a list begins.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// The state that the first page showed: a watch from it sees all that changed between pages.
    revision: u64,
    /// The last object that was shown.
    after: String,
}

/// Answers `GET` of a collection.
pub(super) async fn list(call: &Call<'_>) -> ApiResult {
    let selection = Selection::of(call.kind(), &call.query)?;
    let page = Page::of(call)?;
    let accepted = call.accepted()?;
    let listing = call
        .state
        .store
        .list(call.kind(), call.target.namespace.as_deref());
    check_version(call, listing.revision)?;
    let mut warnings = Vec::new();
    let mut views: Vec<(String, Object)> = Vec::new();
    for view in listing.items.iter().filter(|view| page.begins_before(&view.key)) {
        let object = shown(view);
        if selection.matches(&object) {
            views.push((view.key.to_string(), object));
        }
    }
    if call.kind() == Kind::Event && !call.is_local_only() && page.start.is_none() {
        let (others, missing) = peer_events(call).await;
        views.extend(others.into_iter().map(|object| (String::new(), object)));
        warnings = missing;
    }
    let revision = page
        .start
        .as_ref()
        .map_or(listing.revision.0, |start| start.revision);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    // Events of other nodes have no place in this node's order: they come all at once.
    if page.limit > 0 && views.len() > page.limit && call.kind() != Kind::Event {
        let remaining = views.len() - page.limit;
        views.truncate(page.limit);
        let after = views.last().map(|(key, _)| key.clone()).unwrap_or_default();
        metadata["continue"] = Continue { revision, after }.encode().into();
        if selection.is_everything() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let objects: Vec<Object> = views.into_iter().map(|(_, object)| object).collect();
    let value = collection(call, accepted, metadata, objects)?;
    let mut response = content::answer(StatusCode::OK, accepted.format, &value);
    content::add_warnings(&mut response, &warnings);
    Ok(response)
}

fn collection(
    call: &Call<'_>,
    accepted: Accepted,
    metadata: Value,
    objects: Vec<Object>,
) -> ApiResult<Value> {
    let row = call.kind().row();
    Ok(match accepted.shape {
        Shape::Whole => list_value(call.kind(), metadata, objects),
        Shape::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": objects.iter().map(content::metadata_only).collect::<Vec<_>>(),
        }),
        Shape::Table => {
            let (now, include) = (call.state.clock.unix_seconds(), include(call)?);
            let rows = objects
                .iter()
                .map(|object| tables::row(row.kind, object, now, include))
                .collect();
            tables::table(row.kind, metadata, rows)
        }
    })
}

fn list_value(kind: Kind, metadata: Value, objects: Vec<Object>) -> Value {
    let row = kind.row();
    json!({
        "kind": format!("{}List", row.name),
        "apiVersion": row.api_version(),
        "metadata": metadata,
        "items": objects.into_iter().map(Object::into_value).collect::<Vec<_>>(),
    })
}

/// Lists a kind whole, as native paths show it.
pub(crate) fn list_objects(state: &ApiState, kind: Kind, namespace: Option<&str>) -> Value {
    let listing = state.store.list(kind, namespace);
    let metadata = json!({"resourceVersion": listing.revision.to_string()});
    list_value(kind, metadata, listing.items.iter().map(shown).collect())
}

/// `limit` and `continue`.
struct Page {
    /// 0: all.
    limit: usize,
    start: Option<Continue>,
}

impl Page {
    fn of(call: &Call<'_>) -> ApiResult<Self> {
        let limit = call.query.number::<usize>("limit")?.unwrap_or_default();
        let start = match call.query.text("continue") {
            "" => None,
            text => Some(Continue::decode(text).ok_or_else(|| {
                ApiError::bad_request("continue key is not valid: it is not one that this server gave out")
            })?),
        };
        Ok(Self { limit, start })
    }

    fn begins_before(&self, key: &ObjectKey) -> bool {
        match self
            .start
            .as_ref()
            .and_then(|start| start.after.parse::<ObjectKey>().ok())
        {
            Some(after) => *key > after,
            None => true,
        }
    }
}

impl Continue {
    fn encode(&self) -> String {
        // A struct of a number and a string is always JSON.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Option<Self> {
        let found: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        found.after.parse::<ObjectKey>().ok()?;
        Some(found)
    }
}

/// Reads a `resourceVersion`; None for "any".
pub(super) fn resource_version(text: &str) -> ApiResult<Option<Revision>> {
    match text {
        "" | "0" => Ok(None),
        text => text
            .parse()
            .map(|revision| Some(Revision(revision)))
            .map_err(|_| {
                ApiError::bad_request(format!(
                    "resourceVersion: Invalid value: \"{text}\": not a version of this server"
                ))
            }),
    }
}

/// We hold the newest state alone: a list at exactly another version is gone; "not older than" holds for any that
/// this node has issued.
fn check_version(call: &Call<'_>, newest: Revision) -> ApiResult<()> {
    let version = resource_version(call.query.text("resourceVersion"))?;
    match (call.query.text("resourceVersionMatch"), version) {
        ("" | "NotOlderThan", _) => Ok(()),
        ("Exact", Some(version)) if version == newest => Ok(()),
        ("Exact", Some(_)) => Err(ApiError::expired()),
        ("Exact", None) => Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\" or none",
        )),
        (other, _) => Err(ApiError::bad_request(format!(
            "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

// ---------------------------------------------------------------- events of other nodes

/// Asks every live node for its events (the same request); names those that did not answer.
async fn peer_events(call: &Call<'_>) -> (Vec<Object>, Vec<String>) {
    let answers = join_all(call.state.live_peers().into_iter().map(|node| async move {
        let answer = tokio::time::timeout(PEER_TIMEOUT, peer_list(call, &node)).await;
        (
            node,
            answer.unwrap_or_else(|_| Err("no answer in time".to_owned())),
        )
    }))
    .await;
    let (mut objects, mut missing) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(found) => objects.extend(found),
            Err(reason) => missing.push(format!("events of node {node} are missing: {reason}")),
        }
    }
    (objects, missing)
}

async fn peer_list(call: &Call<'_>, node: &NodeId) -> Result<Vec<Object>, String> {
    let request = call
        .relayed(Some("application/json"))
        .map_err(|error| error.message)?;
    let response = call
        .state
        .relay
        .send(node, request)
        .await
        .map_err(|error| error.to_string())?;
    let body = Limited::new(response.into_body(), MAX_PEER_EVENTS_BYTES)
        .collect()
        .await;
    let bytes = body.map_err(|error| error.to_string())?.to_bytes();
    let mut list: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match list["items"].take() {
        Value::Array(items) => Ok(items.into_iter().filter_map(Object::from_value).collect()),
        _ => Err("its answer is not a list".to_owned()),
    }
}

/// Asks the other nodes for one event; the first that has it answers.
async fn peer_event(call: &Call<'_>) -> Option<Response> {
    let event = peer_answer(call, Method::GET, &Bytes::new()).await?;
    object_answer(call, StatusCode::OK, event).ok()
}

/// Sends a request for one event on to the other nodes, each for itself; returns the answer of the first that did it.
pub(super) async fn peer_answer(call: &Call<'_>, method: Method, body: &Bytes) -> Option<Object> {
    let answers = join_all(call.state.live_peers().into_iter().map(|node| {
        let method = method.clone();
        async move {
            let mut request = call.relayed(Some("application/json")).ok()?;
            *request.method_mut() = method;
            *request.body_mut() = body.clone().into();
            let answer = tokio::time::timeout(PEER_TIMEOUT, call.state.relay.send(&node, request)).await;
            let response = answer.ok()?.ok()?;
            if !response.status().is_success() {
                return None;
            }
            let body = Limited::new(response.into_body(), content::MAX_OBJECT_BYTES).collect();
            serde_json::from_slice(&body.await.ok()?.to_bytes()).ok()
        }
    }))
    .await;
    answers.into_iter().flatten().next()
}
