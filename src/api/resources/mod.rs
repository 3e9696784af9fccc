//! The Kubernetes resources: one call, dispatched by method and subresource.
//!
//! Reading is in `read` and `watch`, writing in `write`, `apply`, `edit` and `delete`, subresources in `scale`, `log` and `session`, what was
//! before in `history`. What a
//! kind means is asked of `schemas`; nothing here knows what controllers do.

mod apply;
mod decode;
mod delete;
mod edit;
mod eviction;
mod foreign;
mod form;
pub(crate) mod history;
mod log;
mod node;
mod options;
mod peer_events;
mod read;
mod scale;
mod session;
mod watch;
mod write;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, Method, Uri, header};
use hyper::upgrade::OnUpgrade;
use schemas::meta::{MANAGER_MAX_BYTES, OWNED_APART, manager_through, split_manager};
use schemas::{Ending, Kind, Object, ObjectKey, Subresource};
use serde_json::Value;
use store::View;
use tokio_util::sync::CancellationToken;

use self::form::Form;
use super::content::{self, Accepted, Format};
use super::serve::Stopping;
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult};
use super::streams::RELAYED_PROTOCOL;
use super::target::{Behind, Query, Target, word};

use crate::caller::Caller;

pub(crate) use apply::check_applied;
pub(crate) use decode::unknown;
pub use delete::delete_if;
pub(crate) use delete::{DeleteOptions, delete_object};
pub(crate) use edit::{cleaned, tidied};
pub use node::forget_node;
pub(crate) use read::{get_object, include, list_objects, peer_list};
pub(crate) use write::{check_namespace, check_new};

/// A relayed request with this header is answered from the node's own state, without asking others.
pub(crate) const LOCAL_ONLY: &str = "x-podman-swarm-local";

/// A request of the Kubernetes API, read but for its body.
pub(crate) struct Call<'a> {
    state: &'a ApiState,
    method: Method,
    target: Target,
    query: Query,
    headers: HeaderMap,
    uri: Uri,
    user: String,
    stopping: Option<CancellationToken>,
}

/// Answers a request whose path is one of Kubernetes' resources.
pub(crate) async fn handle(state: &ApiState, mut request: Request) -> ApiResult {
    let on_upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (parts, body) = request.into_parts();
    let target = Target::parse(parts.uri.path()).ok_or_else(ApiError::no_resource)?;
    let call = Call::of(state, parts, target)?;
    answer(&call, on_upgrade, body)
        .await
        .map_err(|error| error.of_row(call.target.row))
}

async fn answer(call: &Call<'_>, on_upgrade: Option<OnUpgrade>, body: Body) -> ApiResult {
    let named = call.target.name.is_some();
    let subresource = match call.target.behind {
        Some(Behind::Unserved(word)) => {
            return Err(ApiError::not_implemented(format!(
                "this version of Podman Swarm does not serve {word}"
            )));
        }
        Some(Behind::Served(subresource)) => Some(subresource),
        None => None,
    };
    match (call.method.clone(), subresource, named) {
        (Method::GET, None, _) if call.query.flag("watch") => watch::watch(call).await,
        (Method::GET | Method::HEAD, None | Some(Subresource::Status), true) => read::get(call).await,
        (Method::GET | Method::HEAD, None, false) => read::list(call).await,
        (Method::POST, None, false) => write::create(call, body).await,
        (Method::PUT, None | Some(Subresource::Status), true) => write::update(call, body).await,
        (Method::PATCH, None | Some(Subresource::Status), true) => write::patch(call, body).await,
        (Method::DELETE, None, true) => delete::delete(call, body).await,
        (Method::DELETE, None, false) => delete::delete_collection(call, body).await,
        (Method::GET, Some(Subresource::Scale), true) => scale::get(call),
        (Method::PUT, Some(Subresource::Scale), true) => scale::update(call, body).await,
        (Method::PATCH, Some(Subresource::Scale), true) => scale::patch(call, body).await,
        (Method::GET, Some(Subresource::Log), true) => log::log(call).await,
        (Method::POST, Some(Subresource::Eviction), true) => eviction::evict(call, body).await,
        (Method::POST, Some(Subresource::Binding), true) => eviction::bind(call, body).await,
        (_, Some(part @ (Subresource::Exec | Subresource::Attach | Subresource::PortForward)), true) => {
            session::open(call, part, on_upgrade, body).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

impl<'a> Call<'a> {
    fn of(state: &'a ApiState, mut parts: Parts, target: Target) -> ApiResult<Self> {
        // Peers say it, and nobody else.
        if !matches!(parts.extensions.get::<Caller>(), Some(Caller::Peer(_))) {
            parts.headers.remove(&RELAYED_PROTOCOL);
        }
        Ok(Self {
            state,
            method: parts.method,
            query: Query::of(&parts.uri)?,
            user: user_of(&parts.extensions, &parts.headers),
            stopping: parts
                .extensions
                .get::<Stopping>()
                .map(|stopping| stopping.0.clone()),
            headers: parts.headers,
            uri: parts.uri,
            target,
        })
    }

    fn kind(&self) -> Kind {
        self.target.row.kind
    }

    /// The key of the object that the path names.
    fn key(&self) -> ApiResult<ObjectKey> {
        let name = self
            .target
            .name
            .as_deref()
            .ok_or_else(ApiError::method_not_allowed)?;
        Ok(ObjectKey::new(
            self.kind(),
            self.target.namespace.clone().unwrap_or_default(),
            name,
        ))
    }

    /// The field manager of a write: as the client names it, else its program's name.
    fn manager(&self) -> ApiResult<String> {
        let named = self.query.text("fieldManager");
        check_manager(named)?;
        if !named.is_empty() {
            return Ok(named.to_owned());
        }
        let agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok());
        let program = agent.unwrap_or_default().split('/').next().unwrap_or_default();
        let short: String = program.chars().take(MANAGER_MAX_BYTES / 4).collect();
        Ok(if short.is_empty() {
            "unknown".to_owned()
        } else {
            short
        })
    }

    /// The author of this request's writes: through some subresources another than of the object itself.
    fn author(&self) -> ApiResult<store::Author> {
        let mut manager = self.manager()?;
        if let Some(Behind::Served(subresource)) = self.target.behind
            && OWNED_APART.contains(&word(subresource))
        {
            manager = manager_through(&manager, word(subresource));
        }
        Ok(self.state.author(&manager, &self.user))
    }

    fn accepted(&self) -> ApiResult<Accepted> {
        content::accepted(&self.headers)
    }

    fn is_local_only(&self) -> bool {
        self.headers.contains_key(LOCAL_ONLY)
    }

    /// Makes a request for another node: to read what this one reads, for the same user.
    fn relayed(&self, accept: Option<&'static str>) -> ApiResult<Request> {
        // Over HTTP/2 the URI names this node; the other one is reached by the relay.
        let path = self
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        relayed(path, &self.user, accept)
    }
}

/// Checks the name of a field manager, as a client says it.
pub(crate) fn check_manager(named: &str) -> ApiResult<()> {
    if named.len() > MANAGER_MAX_BYTES {
        return Err(ApiError::bad_request(format!(
            "parameter fieldManager: may not be more than {MANAGER_MAX_BYTES} bytes"
        )));
    }
    if named.chars().any(char::is_control) {
        return Err(ApiError::bad_request(
            "parameter fieldManager: should only contain printable characters",
        ));
    }
    if let (_, Some(subresource)) = split_manager(named) {
        return Err(ApiError::bad_request(format!(
            "parameter fieldManager: Invalid value: \"{named}\": may not end with \"/{subresource}\": so who writes a {subresource} is kept; choose another name"
        )));
    }
    Ok(())
}

/// Makes a request for another node to read a path for a user, from its own state alone.
pub(crate) fn relayed(path: &str, user: &str, accept: Option<&'static str>) -> ApiResult<Request> {
    let mut request = Request::builder().method(Method::GET).uri(path);
    if let Some(headers) = request.headers_mut() {
        headers.insert(LOCAL_ONLY, http::HeaderValue::from_static("true"));
        let user = http::HeaderValue::from_bytes(user.as_bytes());
        let user = user.map_err(|_| ApiError::bad_request("the name of the token has control characters"))?;
        headers.insert(super::auth::RELAYED_USER, user);
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
        }
    }
    request
        .body(Body::empty())
        .map_err(|error| ApiError::internal(format!("the request cannot be relayed: {error}")))
}

/// What the API shows of a view: defaults filled in, which are never stored, and the phase of what nobody observes, or has
/// not yet.
pub(crate) fn shown(view: &View) -> Object {
    shown_object(view.key.kind, &view.object)
}

/// What the API answers of a view: [`shown`], with `metadata.managedFields`.
fn answered(view: &View) -> Object {
    with_managed(shown(view), view)
}

fn with_managed(mut object: Object, view: &View) -> Object {
    if let Some(managed) = &view.managed {
        // The store's own JSON can be read.
        let managed: Value = serde_json::from_str(managed).unwrap_or_default();
        object.set(&["metadata", "managedFields"], managed);
    }
    object
}

/// [`shown`] for an earlier state of a view.
fn shown_object(kind: Kind, object: &Object) -> Object {
    let mut object = schemas::validate::defaulted(object);
    let row = kind.row();
    let phase = match row.ending {
        // While a controller empties it, nobody else says so.
        Ending::ByController if object.is_terminating() => "Terminating",
        Ending::ByController => row.first_phase,
        Ending::ByNode | Ending::AtOnce if object.str_at("/status/phase").is_empty() => row.first_phase,
        Ending::ByNode | Ending::AtOnce => "",
    };
    if !phase.is_empty() {
        object.set(&["status", "phase"], phase);
    }
    object
}

/// Writes one object in the form that the client asked for.
fn object_answer(call: &Call<'_>, code: http::StatusCode, object: Object) -> ApiResult {
    let value = Form::of(call)?.one(object, call.state.clock.unix_seconds());
    Ok(content::answer(code, call.accepted()?.format, &value))
}

/// A value that has one form alone (`Status`, `Scale`).
fn plain_answer(call: &Call<'_>, code: http::StatusCode, value: &serde_json::Value) -> Response {
    let format = call.accepted().map_or(Format::Json, |accepted| accepted.format);
    content::answer(code, format, value)
}

/// Says to users which node of theirs does not answer, and in a log line why.
fn relay_failed(node: &str, pod: &str, error: &crate::relay::RelayError) -> ApiError {
    tracing::warn!(node, pod, %error, "api: a request could not be relayed");
    ApiError::unavailable(format!(
        "node {node} of pod \"{pod}\" does not answer: its agent is down or cannot be reached"
    ))
}
