//! get and list: selectors, pages, tables, and the events of other nodes.

use std::cmp::Reverse;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use schemas::{Kind, Object, ObjectKey, event};
use serde::Serialize;
use serde_json::{Value, json};
use store::{NodeId, Views};

use super::form::{Form, list_value};
use super::options::{Continue, ListOptions, State};
use super::{Call, answered, foreign, object_answer, shown};
use crate::api::content::{self, Shape};
use crate::api::selection::Selection;
use crate::api::state::ApiState;
use crate::api::status::{ApiError, ApiResult};
use crate::api::tables::Include;
use crate::api::target::Query;

/// How long another node may take to send its events; a list is not to hang on one that just died.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Twice what a node keeps of events at most; what all pods of a node use takes a twentieth of it.
const MAX_PEER_LIST_BYTES: usize = 8 * 1024 * 1024;

/// Answers `GET` of one object.
pub(super) async fn get(call: &Call<'_>) -> ApiResult {
    let key = call.key()?;
    match call.state.store.get(&key) {
        Some(view) => object_answer(call, StatusCode::OK, answered(&view)),
        // Another node may have seen it.
        None if key.kind == Kind::Event && !call.is_local_only() => {
            peer_event(call).await.ok_or_else(|| ApiError::not_found(&key))
        }
        None => Err(ApiError::not_found(&key)),
    }
}

/// Returns an object as the API shows it, without `managedFields`.
pub(crate) fn get_object(state: &ApiState, key: &ObjectKey) -> ApiResult<Object> {
    let view = state.store.get(key).ok_or_else(|| ApiError::not_found(key))?;
    Ok(shown(&view))
}

/// Reads `includeObject`.
pub(crate) fn include(query: &Query) -> ApiResult<Include> {
    match query.text("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::Nothing),
        "Object" => Ok(Include::Whole),
        other => Err(ApiError::bad_request(format!(
            "parameter includeObject: Unsupported value: \"{other}\": supported values: \"Metadata\", \"None\", \"Object\""
        ))),
    }
}

/// Answers `GET` of a collection.
pub(super) async fn list(call: &Call<'_>) -> ApiResult {
    let selection = Selection::of(call.target.row, &call.query)?;
    let options = ListOptions::of(&call.target, &call.query)?;
    let accepted = call.accepted()?;
    if let State::NotOlderThan(version) | State::Exactly(version) = options.state
        && call.kind() != Kind::Event
    {
        match foreign::answer(call, Some(version), &Bytes::new()).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(why) => tracing::debug!(why, "api: a list at a version of another node"),
        }
    }
    let mut snapshot = snapshot(call, &options)?;
    if let Some(name) = selection.name() {
        snapshot = snapshot.named(name);
    }
    let mut metadata = json!({"resourceVersion": snapshot.revision().to_string()});
    let mut items = Items::of(call)?;
    let (mut others, mut warnings) = (Vec::new(), Vec::new());
    if call.kind() == Kind::Event && !call.is_local_only() && options.after.is_none() {
        (others, warnings) = peer_events(call, &Method::GET, &Bytes::new()).await;
        others.sort_by_cached_key(|event| Reverse(event.key()));
    }
    // What other nodes have has no place in a page: events come all at once.
    let limit = match (options.limit, call.kind()) {
        (0, _) | (_, Kind::Event) => usize::MAX,
        (limit, _) => limit,
    };
    let mut last = None;
    while let Some(view) = snapshot.next() {
        let object = shown(&view);
        if !selection.matches(&object) {
            continue;
        }
        if items.count < limit {
            while let Some(other) = others.pop_if(|other| other.key().as_ref() < Some(&view.key)) {
                items.push(other, None);
            }
            let managed = match accepted.shape {
                Shape::Whole | Shape::Metadata => view.managed.as_deref(),
                // Nobody reads them there.
                Shape::Table => None,
            };
            items.push(object, managed);
            last = Some(view.key);
            continue;
        }
        if let Some(last) = &last {
            metadata["continue"] = Continue::encode(Some(snapshot.revision()), last).into();
        }
        // As Kubernetes: of those that a selector leaves out nobody counts the rest.
        if selection.is_everything() {
            metadata["remainingItemCount"] = (snapshot.len() + 1).into();
        }
        break;
    }
    others
        .into_iter()
        .rev()
        .for_each(|object| items.push(object, None));
    let mut response = content::answer_json(StatusCode::OK, accepted.format, items.close(metadata));
    content::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// The state that a list is to show, from where it begins.
fn snapshot(call: &Call<'_>, options: &ListOptions) -> ApiResult<Views> {
    let store = &call.state.store;
    let at = match options.state {
        // Each node keeps its own events: of all together there is the newest state alone.
        _ if call.kind() == Kind::Event => None,
        State::Newest => None,
        State::NotOlderThan(version) if store.has_issued(version) => None,
        State::NotOlderThan(_) => return Err(ApiError::expired()),
        State::Exactly(version) => Some(version),
    };
    let namespace = call.target.namespace.as_deref();
    store
        .list_at(call.kind(), namespace, options.after.as_ref(), at)
        .map_err(|_| options.expired())
}

/// The items of a list in the form that was asked for. They are JSON from the start: as trees, those of a long list
/// would take ten times as much memory.
struct Items {
    form: Form,
    now_unix_seconds: i64,
    count: usize,
    json: Vec<u8>,
}

impl Items {
    fn of(call: &Call<'_>) -> ApiResult<Self> {
        Ok(Self {
            form: Form::of(call)?,
            now_unix_seconds: call.state.clock.unix_seconds(),
            count: 0,
            json: Vec::new(),
        })
    }

    /// Adds an object, with its `managedFields` as JSON: to read them would take as long as to write all else.
    fn push(&mut self, object: Object, managed: Option<&str>) {
        let item = self.form.item(object, self.now_unix_seconds);
        if self.count > 0 {
            self.json.push(b',');
        }
        self.count += 1;
        let (Some(managed), Value::Object(fields)) = (managed, &item) else {
            return self.write(&item);
        };
        let mut before = b'{';
        for (name, value) in fields {
            self.json.push(before);
            before = b',';
            self.write(name);
            self.json.push(b':');
            self.write(value);
            // An object has metadata, and those have a name.
            if name == "metadata" && self.json.pop() == Some(b'}') {
                self.json.extend(b",\"managedFields\":");
                self.json.extend(managed.as_bytes());
                self.json.push(b'}');
            }
        }
        self.json.push(b'}');
    }

    fn write(&mut self, value: &(impl Serialize + ?Sized)) {
        // Trees can be written, and memory takes it.
        let _: serde_json::Result<()> = serde_json::to_writer(&mut self.json, value);
    }

    /// Returns the whole list as JSON.
    fn close(self, metadata: Value) -> Vec<u8> {
        let mut json = self.form.list(metadata, Vec::new()).to_string().into_bytes();
        // The last field of all of them is the list without its items.
        json.truncate(json.len() - "]}".len());
        json.extend(self.json);
        json.extend(b"]}");
        json
    }
}

/// Lists a kind whole, as native paths show it.
pub(crate) fn list_objects(state: &ApiState, kind: Kind, namespace: Option<&str>) -> Value {
    let listing = state.store.list(kind, namespace);
    let metadata = json!({"resourceVersion": listing.revision.to_string()});
    let items = listing.items.iter().map(|view| shown(view).into_value());
    list_value(kind.row(), metadata, items.collect())
}

// ---------------------------------------------------------------- events of other nodes

/// Asks every live node for its events, or to delete them (the same request); names those that did not answer.
pub(super) async fn peer_events(
    call: &Call<'_>,
    method: &Method,
    body: &Bytes,
) -> (Vec<Object>, Vec<String>) {
    let answers = join_all(call.state.live_peers().into_iter().map(|node| async move {
        let answer = tokio::time::timeout(PEER_TIMEOUT, events_of(call, &node, method, body)).await;
        (
            node,
            answer.unwrap_or_else(|_| Err("no answer in time".to_owned())),
        )
    }))
    .await;
    let lack = match *method {
        Method::DELETE => "may be there still",
        _ => "are missing",
    };
    let (mut objects, mut missing) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(found) => objects.extend(found),
            Err(reason) => missing.push(format!("events of node {node} {lack}: {reason}")),
        }
    }
    (objects, missing)
}

async fn events_of(
    call: &Call<'_>,
    node: &NodeId,
    method: &Method,
    body: &Bytes,
) -> Result<Vec<Object>, String> {
    let request = peer_request(call, method, body).map_err(|error| error.message)?;
    peer_list(call.state, node, request).await
}

/// The client's request, for another node's own state.
fn peer_request(call: &Call<'_>, method: &Method, body: &Bytes) -> ApiResult<Request> {
    let mut request = call.relayed(Some("application/json"))?;
    *request.method_mut() = method.clone();
    *request.body_mut() = body.clone().into();
    if let Some(media) = call.headers.get(header::CONTENT_TYPE) {
        request.headers_mut().insert(header::CONTENT_TYPE, media.clone());
    }
    Ok(request)
}

/// Sends a request for a list to another node; the error says in words why there is none.
pub(crate) async fn peer_list(
    state: &ApiState,
    node: &NodeId,
    request: Request,
) -> Result<Vec<Object>, String> {
    let response = state
        .relay
        .send(node, request)
        .await
        .map_err(|error| error.to_string())?;
    let body = Limited::new(response.into_body(), MAX_PEER_LIST_BYTES)
        .collect()
        .await;
    let bytes = body.map_err(|error| error.to_string())?.to_bytes();
    let mut list: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match list["items"].take() {
        Value::Array(items) => Ok(items
            .into_iter()
            .filter_map(Object::from_value)
            .map(as_kept)
            .collect()),
        _ => Err(match list["message"].as_str() {
            Some(message) => message.to_owned(),
            None => "its answer is not a list".to_owned(),
        }),
    }
}

/// Another node answers in the form that the client asked for.
pub(super) fn as_kept(event: Object) -> Object {
    event::in_group(Kind::Event.row().group, event)
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
            let request = peer_request(call, &method, body).ok()?;
            let answer = tokio::time::timeout(PEER_TIMEOUT, call.state.relay.send(&node, request)).await;
            let response = answer.ok()?.ok()?;
            if !response.status().is_success() {
                return None;
            }
            let body = Limited::new(response.into_body(), content::MAX_OBJECT_BYTES).collect();
            serde_json::from_slice(&body.await.ok()?.to_bytes())
                .ok()
                .map(as_kept)
        }
    }))
    .await;
    answers.into_iter().flatten().next()
}
