//! delete and deletecollection: what goes at once, what gets a deletionTimestamp and is finished by others.

use std::fmt::Display;

use axum::body::Body;
use axum::response::Response;
use http::{Method, StatusCode};
use schemas::deletion::Propagation;
use schemas::{Ending, Kind, Object, ObjectKey, deletion, event};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Author, Precondition, Revision, View};

use super::form::list_value;
use super::read::{peer_answer, peer_events};
use super::{Call, answered, foreign, node, object_answer, plain_answer, shown};
use crate::api::content::{self, MAX_OBJECT_BYTES, PROTOBUF, content_type, parse_value, read_body};
use crate::api::discovery::verbs;
use crate::api::selection::Selection;
use crate::api::state::ApiState;
use crate::api::status::{self, ApiError, ApiResult};

/// Namespaces that stay.
const PROTECTED_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

/// `DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    grace_period_seconds: Option<i64>,
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Option<Preconditions>,
    dry_run: Vec<String>,
    /// `?force=true`, ours: removes a node whose agent runs.
    #[serde(skip)]
    force: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// What a deletion did.
pub(crate) enum Deleted {
    /// Gone; its last state.
    Removed(View),
    /// Marked; others finish it.
    Terminating(View),
    /// Gone, whatever it was: its record could not be read.
    GivenUp,
}

/// Answers `DELETE` of an object.
pub(super) async fn delete(call: &Call<'_>, body: Body) -> ApiResult {
    let key = call.key()?;
    let body = read_body(body, MAX_OBJECT_BYTES).await?;
    let options = options(call, &body)?;
    if let Some(answer) = foreign::write(call, &key, options.meant(), &body).await? {
        return Ok(answer);
    }
    let deleted = match delete_object(call.state, &key, &options, call.author()?).await {
        // Another node may keep it.
        Err(error)
            if key.kind == Kind::Event && error.code == StatusCode::NOT_FOUND && !call.is_local_only() =>
        {
            let answer = peer_answer(call, Method::DELETE, &body).await.ok_or(error)?;
            return Ok(plain_answer(call, StatusCode::OK, &answer.into_value()));
        }
        deleted => deleted?,
    };
    match deleted {
        Deleted::Terminating(view) => object_answer(call, StatusCode::OK, answered(&view)),
        Deleted::GivenUp => Ok(plain_answer(
            call,
            StatusCode::OK,
            &status::success(call.target.row, &key.name, ""),
        )),
        // As Kubernetes: what a grace was possible for is shown, anything else is reported.
        Deleted::Removed(view) if key.kind == Kind::Pod => {
            object_answer(call, StatusCode::OK, answered(&view))
        }
        Deleted::Removed(view) => Ok(plain_answer(
            call,
            StatusCode::OK,
            &status::success(call.target.row, &key.name, view.object.uid()),
        )),
    }
}

/// Answers `DELETE` of a collection.
pub(super) async fn delete_collection(call: &Call<'_>, body: Body) -> ApiResult<Response> {
    let selection = Selection::of(call.target.row, &call.query)?;
    let is_across = call.kind().is_namespaced() && call.target.namespace.is_none();
    if is_across || !verbs(call.target.row).contains(&"deletecollection") {
        return Err(ApiError::method_not_allowed());
    }
    let body = read_body(body, MAX_OBJECT_BYTES).await?;
    let options = options(call, &body)?;
    let listing = call
        .state
        .store
        .list(call.kind(), call.target.namespace.as_deref());
    let row = call.target.row;
    let whole = |view: &View| event::in_group(row.group, answered(view)).into_value();
    let mut items = Vec::new();
    for view in listing
        .items
        .iter()
        .filter(|view| selection.matches(&shown(view)))
    {
        match delete_object(call.state, &view.key, &options, call.author()?).await {
            Ok(Deleted::Removed(view) | Deleted::Terminating(view)) => items.push(whole(&view)),
            Ok(Deleted::GivenUp) => {}
            // Someone else was faster.
            Err(error) if error.code == StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    let mut left = Vec::new();
    if call.kind() == Kind::Event && !call.is_local_only() {
        let (events, unanswered) = peer_events(call, &Method::DELETE, &body).await;
        let in_group = |event| event::in_group(row.group, event).into_value();
        items.extend(events.into_iter().map(in_group));
        left = unanswered;
    }
    let metadata = json!({"resourceVersion": call.state.store.revision().to_string()});
    let list = list_value(row, metadata, items);
    let mut response = plain_answer(call, StatusCode::OK, &list);
    content::add_warnings(&mut response, &left);
    Ok(response)
}

/// Deletes an object as clients expect of its kind, if it has this uid; absent or another one: nothing to do. Of a node
/// that is a member goes what was applied to it.
///
/// # Errors
/// The object may not be deleted, or the store refuses.
pub async fn delete_if(state: &ApiState, key: &ObjectKey, uid: &str, author: Author) -> ApiResult<()> {
    let preconditions = Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    };
    let options = DeleteOptions {
        preconditions: Some(preconditions),
        ..DeleteOptions::default()
    };
    match state.store.get(key) {
        Some(view) if view.object.uid() == uid => {}
        Some(_) | None => return Ok(()),
    }
    match delete_stored(state, key, &options, author).await {
        Ok(_) => Ok(()),
        Err(error) if error.code == StatusCode::NOT_FOUND => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes an object as clients expect of its kind: at once, or by marking it.
pub(crate) async fn delete_object(
    state: &ApiState,
    key: &ObjectKey,
    options: &DeleteOptions,
    author: Author,
) -> ApiResult<Deleted> {
    if key.kind == Kind::Node
        && let Some(member) = node::member(state, key)?
    {
        node::check_removal(state, key, &member, options.force)?;
        // Shown a moment after the node was admitted.
        let shown = state.store.get(&ObjectKey::cluster(
            Kind::Node,
            member.object.str_at("/spec/name"),
        ));
        let view = shown.unwrap_or_else(|| member.clone());
        options.precondition(key, &view)?;
        if options.dry_run.is_empty() {
            node::remove_member(state, &member, author).await?;
        }
        return Ok(Deleted::Removed(view));
    }
    delete_stored(state, key, options, author).await
}

fn computed(key: &ObjectKey) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "MethodNotAllowed",
        format!(
            "{} \"{}\" is computed from other objects and cannot be deleted",
            key.kind.row().resource(),
            key.name
        ),
    )
    .about(key)
}

async fn delete_stored(
    state: &ApiState,
    key: &ObjectKey,
    options: &DeleteOptions,
    author: Author,
) -> ApiResult<Deleted> {
    let Some(view) = state.store.get(key) else {
        // Of what cannot be read nobody can tell whether a precondition holds.
        let is_asked = options.dry_run.is_empty() && options.preconditions.is_none();
        if is_asked && state.store.give_up(key).await? {
            return Ok(Deleted::GivenUp);
        }
        return Err(ApiError::not_found(key));
    };
    let precondition = options.precondition(key, &view)?;
    if key.kind == Kind::Namespace && PROTECTED_NAMESPACES.contains(&key.name.as_str()) {
        return Err(ApiError::forbidden(key, "this namespace may not be deleted"));
    }
    // Pods end by themselves, and what users gave to them goes after them.
    let propagation = options
        .propagation()?
        .filter(|_| key.kind.row().ending == Ending::AtOnce);
    let waiting = |object: &Object| propagation.map_or_else(|| object.clone(), |chosen| chosen.set(object));
    let dry_run = !options.dry_run.is_empty();
    if key.kind == Kind::Event && !view.stored {
        if !dry_run {
            state.events.forget(key);
        }
        return Ok(Deleted::Removed(view));
    }
    if !view.stored {
        return Err(computed(key));
    }
    let grace = deletion::grace_seconds(key.kind, &waiting(&view.object), options.grace_period_seconds);
    let Some(grace) = grace else {
        if dry_run {
            return Ok(Deleted::Removed(view));
        }
        return Ok(Deleted::Removed(
            state.store.remove(key, &precondition, author).await?,
        ));
    };
    if dry_run {
        return Ok(Deleted::Terminating(view));
    }
    let now = author.unix_seconds;
    let marked = state
        .store
        .update::<ApiError>(key, &precondition, author, |object| {
            Ok(deletion::marked(&waiting(object), grace, now))
        })
        .await?;
    Ok(Deleted::Terminating(marked))
}

fn options(call: &Call<'_>, body: &[u8]) -> ApiResult<DeleteOptions> {
    let options = if body.is_empty() {
        DeleteOptions::default()
    } else if content_type(&call.headers) == PROTOBUF {
        parsed(parse_value(&call.headers, body)?)?
    } else {
        // YAML holds JSON, too.
        serde_yaml::from_slice(body).map_err(no_options)?
    };
    completed(call, options)
}

/// Reads options that are part of something else.
pub(super) fn parsed(options: Value) -> ApiResult<DeleteOptions> {
    serde_json::from_value(options).map_err(no_options)
}

fn no_options(error: impl Display) -> ApiError {
    ApiError::bad_request(format!("the body is not DeleteOptions: {error}"))
}

/// Adds what the query says.
pub(super) fn completed(call: &Call<'_>, mut options: DeleteOptions) -> ApiResult<DeleteOptions> {
    if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
        options.grace_period_seconds = Some(seconds);
    }
    if !call.query.text("propagationPolicy").is_empty() {
        options.propagation_policy = Some(call.query.text("propagationPolicy").to_owned());
    }
    if call.query.flag("orphanDependents") {
        options.orphan_dependents = Some(true);
    }
    options.force = call.query.flag("force");
    if call.query.dry_run()? {
        options.dry_run = vec!["All".to_owned()];
    }
    if options.dry_run.iter().any(|word| word != "All") {
        return Err(ApiError::bad_request(
            "dryRun: Unsupported value: supported values: \"All\"",
        ));
    }
    Ok(options)
}

impl DeleteOptions {
    /// No wishes but, perhaps, to see what would happen.
    pub(crate) fn dry(dry_run: bool) -> Self {
        let dry_run = if dry_run {
            vec!["All".to_owned()]
        } else {
            Vec::new()
        };
        Self {
            dry_run,
            ..Self::default()
        }
    }

    /// The version that the object is to have.
    pub(super) fn meant(&self) -> Option<Revision> {
        let version = self.preconditions.as_ref()?.resource_version.as_ref()?;
        version.parse().ok().map(Revision)
    }

    fn precondition(&self, key: &ObjectKey, view: &View) -> ApiResult<Precondition> {
        let mut precondition = Precondition::default();
        let Some(wanted) = &self.preconditions else {
            return Ok(precondition);
        };
        if let Some(uid) = &wanted.uid {
            if uid != view.object.uid() {
                return Err(ApiError::another(key, uid, view.object.uid()));
            }
            precondition.uid = Some(uid.clone());
        }
        if let Some(version) = &wanted.resource_version {
            let version = version
                .parse()
                .map(Revision)
                .map_err(|_| ApiError::modified(key))?;
            if version != view.revision {
                return Err(ApiError::modified(key));
            }
            precondition.resource_version = Some(version);
        }
        Ok(precondition)
    }

    /// What shall become of what the object owns, if the client says so.
    fn propagation(&self) -> ApiResult<Option<Propagation>> {
        match self.propagation_policy.as_deref() {
            None if self.orphan_dependents == Some(true) => Ok(Some(Propagation::Orphan)),
            None => Ok(None),
            Some("Background") => Ok(Some(Propagation::Background)),
            Some("Foreground") => Ok(Some(Propagation::Foreground)),
            Some("Orphan") => Ok(Some(Propagation::Orphan)),
            Some(other) => Err(ApiError::bad_request(format!(
                "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
            ))),
        }
    }
}
