//! What an object was: its changes, the difference between two of them, and the way back.
//!
//! Any node answers from its own store, which has the whole history. An undo is an ordinary update: checked as one, and
//! a change of its own. It brings back what users say of an object; what the system says of it stays as it is.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use schemas::{Kind, Object, ObjectKey, time, validate};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{ChangedFields, HistoryChange, HistoryError, Precondition, Via};

use super::Call;
use super::edit::{Part, confined};
use super::write::check_changed;
use crate::api::content::add_warnings;
use crate::api::state::ApiState;
use crate::api::status::{ApiError, ApiResult, Cause};
use crate::api::target::{Query, Target};
use crate::api::tokens::read_json;

/// In the place of the namespace in the paths of cluster-scoped objects.
const NO_NAMESPACE: &str = "_";
/// Changes in an answer, where the client names no number. The store has a limit of its own.
const DEFAULT_CHANGES: usize = 100;
/// What controllers say of an object: by which they agree on its end (brought back, it would delete or keep what nobody
/// means), and where a pod runs.
const CONTROLLERS_FIELDS: [[&str; 2]; 3] = [
    ["metadata", "finalizers"],
    ["metadata", "ownerReferences"],
    ["spec", "nodeName"],
];
/// Domains of the annotations that controllers count and remember in.
const CONTROLLERS_ANNOTATIONS: [&str; 2] = ["deployment.kubernetes.io/", "podman-swarm.io/"];

type Named = Path<(String, String, String)>;

/// `GET /api/v1/history/{resource}/{namespace}/{name}?limit=`: the newest changes, the oldest of them first.
pub(crate) async fn list(State(state): State<ApiState>, path: Named, request: Request) -> ApiResult {
    let key = key_of(path)?;
    let limit = Query::of(request.uri())?.number("limit")?;
    let history = read(&state, &key, move |store, key| {
        store.history(key, limit.unwrap_or(DEFAULT_CHANGES))
    })
    .await?;
    let changes: Vec<Value> = history
        .changes
        .into_iter()
        .map(|change| shown_change(&state, change))
        .collect();
    let mut answer = header("History", &key);
    answer["omitted"] = history.omitted.into();
    answer["changes"] = changes.into();
    Ok(Json(answer).into_response())
}

/// `GET /api/v1/history/{resource}/{namespace}/{name}/diff?from=&to=`. Without `to`: the object as it is. Without
/// `from`: what `to` was made of.
pub(crate) async fn diff(State(state): State<ApiState>, path: Named, request: Request) -> ApiResult {
    let key = key_of(path)?;
    let query = Query::of(request.uri())?;
    let named = |parameter| Some(query.text(parameter).to_owned()).filter(|change| !change.is_empty());
    let (from, to) = (named("from"), named("to"));
    let difference = read(&state, &key, move |store, key| {
        store.difference(key, from.as_deref(), to.as_deref())
    })
    .await?;
    let mut answer = header("HistoryDiff", &key);
    answer["from"] = difference.from.into();
    answer["to"] = difference.to.into();
    put_fields(&mut answer, difference.changed);
    Ok(Json(answer).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Undo {
    /// The change whose state comes back.
    to: String,
}

/// `POST /api/v1/history/{resource}/{namespace}/{name}` with `{"to": "<change>"}`, also `?dryRun=All`: writes the object
/// as it was at that change, as a new change.
pub(crate) async fn undo(State(state): State<ApiState>, path: Named, request: Request) -> ApiResult {
    let key = key_of(path)?;
    let (parts, body) = request.into_parts();
    let target = Target {
        row: key.kind.row(),
        namespace: key.kind.is_namespaced().then(|| key.namespace.clone()),
        name: Some(key.name.clone()),
        behind: None,
    };
    let call = Call::of(&state, parts, target)?;
    let Undo { to } = read_json(body).await?;
    let change = to.clone();
    let old = read(&state, &key, move |store, key| {
        store.object_at(key, Some(&change))
    })
    .await?;
    let (mut changed, mut warnings) = (ChangedFields::default(), Vec::new());
    let mut step = |document: &Object| -> ApiResult<Object> {
        let wanted = restored(document, &old);
        changed = store::compare(key.kind, document, &wanted);
        if wanted != *document {
            let (before, after) = (validate::defaulted(document), validate::defaulted(&wanted));
            warnings = check_changed(&key, &before, &after).map_err(|error| not_undone(error, &key, &to))?;
        }
        Ok(wanted)
    };
    let dry_run = call.query.dry_run()?;
    if dry_run {
        let current = read(&state, &key, |store, key| store.object_at(key, None)).await?;
        step(&current)?;
    } else {
        // Of another object of this name, the old values are none.
        let precondition = Precondition {
            uid: Some(old.uid().to_owned()),
            resource_version: None,
        };
        state
            .store
            .update(&key, &precondition, call.author()?, step)
            .await?;
    }
    let mut answer = header("Undo", &key);
    answer["to"] = to.into();
    answer["dryRun"] = dry_run.into();
    answer["result"] = if changed == ChangedFields::default() {
        "unchanged".into()
    } else {
        "undone".into()
    };
    put_fields(&mut answer, changed);
    let mut response = Json(answer).into_response();
    add_warnings(&mut response, &warnings);
    Ok(response)
}

/// Returns a document with what users said of it in an old one.
fn restored(document: &Object, old: &Object) -> Object {
    let mut wanted = confined(document, old.clone(), Part::Main, true);
    for path in CONTROLLERS_FIELDS {
        match document.pointer(&format!("/{}", path.join("/"))) {
            Some(value) => wanted.set(&path, value.clone()),
            None => {
                wanted.remove(&path);
            }
        }
    }
    let annotations = |object: &Object| {
        let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
        annotations.cloned().unwrap_or_default()
    };
    let is_controllers = |name: &str| {
        let mut domains = CONTROLLERS_ANNOTATIONS.iter();
        domains.any(|domain| name.starts_with(domain))
    };
    let mut kept = annotations(&wanted);
    kept.retain(|name, _| !is_controllers(name));
    kept.extend(
        annotations(document)
            .into_iter()
            .filter(|(name, _)| is_controllers(name)),
    );
    if kept.is_empty() {
        wanted.remove(&["metadata", "annotations"]);
    } else {
        wanted.set(&["metadata", "annotations"], kept);
    }
    wanted
}

fn not_undone(error: ApiError, key: &ObjectKey, to: &str) -> ApiError {
    let message = format!(
        "{} \"{}\" cannot be what it was at {to}, nothing was changed: {}",
        key.kind.row().resource(),
        key.name,
        error.message
    );
    ApiError { message, ..error }
}

/// Finds what a path names.
fn key_of(Path((resource, namespace, name)): Named) -> ApiResult<ObjectKey> {
    let kind = Kind::from_user(&resource)
        .filter(|kind| *kind != Kind::Event)
        .ok_or_else(|| ApiError::bad_request(format!("there is no kind \"{resource}\" with a history")))?;
    match (kind.is_namespaced(), namespace == NO_NAMESPACE) {
        (true, false) => Ok(ObjectKey::new(kind, namespace, name)),
        (false, true) => Ok(ObjectKey::cluster(kind, name)),
        (true, true) => Err(ApiError::bad_request(format!(
            "{resource} are in namespaces: name one instead of {NO_NAMESPACE}"
        ))),
        (false, false) => Err(ApiError::bad_request(format!(
            "{resource} are in no namespace: write {NO_NAMESPACE} for it"
        ))),
    }
}

/// Reads a history where it keeps nobody waiting: of thousands of changes that takes a while.
async fn read<T: Send + 'static>(
    state: &ApiState,
    key: &ObjectKey,
    read: impl FnOnce(&store::Store, &ObjectKey) -> Result<T, HistoryError> + Send + 'static,
) -> ApiResult<T> {
    let (store, of) = (state.store.clone(), key.clone());
    let result = tokio::task::spawn_blocking(move || read(&store, &of)).await;
    let result =
        result.map_err(|error| ApiError::internal(format!("the history cannot be read: {error}")))?;
    result.map_err(|error| refusal(key, error))
}

fn refusal(key: &ObjectKey, error: HistoryError) -> ApiError {
    let resource = key.kind.row().resource();
    let not_found = |message| ApiError::new(StatusCode::NOT_FOUND, "NotFound", message).about(key);
    match error {
        HistoryError::NotFound(_) => not_found(format!(
            "{resource} \"{}\" not found: the history of an object goes with it when it is deleted",
            key.name
        )),
        HistoryError::Computed(_) => not_found(format!(
            "{resource} \"{}\" has no history: nobody wrote it, it is computed",
            key.name
        )),
        HistoryError::UnknownChange { change, .. } => not_found(format!(
            "{resource} \"{}\" has no change \"{change}\" (any more): its history names those that there are",
            key.name
        )),
        HistoryError::Ambiguous { change, count, .. } => {
            let message = format!(
                "{count} changes of {resource} \"{}\" begin with \"{change}\": give more of it",
                key.name
            );
            let cause = Cause {
                reason: "FieldValueInvalid".into(),
                message: message.clone(),
                field: "change".into(),
            };
            let mut error = ApiError::bad_request(message).about(key);
            error.details.causes.push(cause);
            error
        }
        HistoryError::Unreadable { .. } => ApiError::internal(error.to_string()),
    }
}

fn header(kind: &str, key: &ObjectKey) -> Value {
    let row = key.kind.row();
    let mut object = json!({"apiVersion": row.api_version(), "kind": row.name, "name": key.name});
    if !key.namespace.is_empty() {
        object["namespace"] = key.namespace.clone().into();
    }
    json!({"kind": kind, "apiVersion": "podman-swarm.io/v1", "object": object})
}

fn shown_change(state: &ApiState, change: HistoryChange) -> Value {
    let mut shown = json!({
        "change": change.id,
        "time": time::to_rfc3339(change.unix_seconds),
        "node": state.node_name(&change.node),
        "manager": change.manager,
    });
    if !change.user.is_empty() {
        shown["user"] = change.user.into();
    }
    if let Some(via) = change.via {
        shown["through"] = match via {
            Via::Apply => "apply",
            Via::Api => "api",
            Via::GitOps => "gitops",
            Via::Controller => "controller",
        }
        .into();
    }
    if let Some(count) = change.compacted {
        shown["compacted"] = count.into();
    }
    put_fields(&mut shown, change.changed);
    shown
}

fn put_fields(answer: &mut Value, changed: ChangedFields) {
    answer["fields"] = json!(changed.fields);
    if changed.omitted > 0 {
        answer["omittedFields"] = changed.omitted.into();
    }
}
