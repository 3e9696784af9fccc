//! `/api/v1/tokens`: making, listing and revoking API tokens. A secret is shown once, when it is made.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use schemas::{Kind, Object, time};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Author, Precondition, Store, View, WriteError};

use super::auth::{create_token, token_id};
use super::content::{MAX_OBJECT_BYTES, read_body};
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult};

const MANAGER: &str = "api";
const MAX_NAME_BYTES: usize = 253;
/// A hundred years; much later times cannot be written down (RFC 3339 has four digits for the year).
const MAX_SECONDS: i64 = 100 * 365 * 24 * 3600;

#[derive(Deserialize)]
struct NewToken {
    name: String,
    /// Seconds from now; 0 or absent: for ever.
    #[serde(default)]
    expires_in: i64,
}

/// `POST`: makes a token.
pub(crate) async fn create(State(state): State<ApiState>, request: Request) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let new: NewToken = read_json(request.into_body()).await?;
    if new.name.is_empty() || new.name.len() > MAX_NAME_BYTES {
        return Err(ApiError::bad_request(format!(
            "name: must have 1 to {MAX_NAME_BYTES} bytes"
        )));
    }
    if !(0..=MAX_SECONDS).contains(&new.expires_in) {
        return Err(ApiError::bad_request(format!(
            "expires_in: must be a number of seconds, at most {MAX_SECONDS}, or 0 for ever"
        )));
    }
    if tokens(&state).any(|view| view.object.str_at("/spec/name") == new.name) {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("a token named \"{}\" already exists", new.name),
        ));
    }
    let expires = (new.expires_in > 0).then(|| state.clock.unix_seconds() + new.expires_in);
    let (object, secret) = create_token(&new.name, expires);
    let view = state.store.create(object, state.author(MANAGER, &user)).await?;
    let mut shown = summary(&view.object, state.clock.unix_seconds());
    shown["token"] = secret.into();
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

/// `GET`: names the tokens, without secrets.
pub(crate) async fn list(State(state): State<ApiState>) -> Response {
    let now = state.clock.unix_seconds();
    let all: Vec<Value> = tokens(&state).map(|view| summary(&view.object, now)).collect();
    Json(json!({"count": all.len(), "tokens": all})).into_response()
}

/// `DELETE`: revokes a token, by its name, its id or itself.
pub(crate) async fn delete(
    State(state): State<ApiState>,
    Path(word): Path<String>,
    request: Request,
) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let id = token_id(&word).unwrap_or(&word);
    let named = |view: &View| view.key.name == id || view.object.str_at("/spec/name") == word;
    let revoked = revoke(&state.store, named, state.author(MANAGER, &user)).await?;
    // The word may be a secret: it is not repeated.
    let Some(first) = revoked.first() else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "NotFound", "no such token"));
    };
    let name = first.object.str_at("/spec/name");
    let answer = json!({"id": first.key.name, "name": name, "result": "revoked", "count": revoked.len()});
    Ok(Json(answer).into_response())
}

/// Names the token that a node makes for the people who work on it.
pub fn node_token_name(node_name: &str) -> String {
    format!("node-{node_name}")
}

/// Revokes all tokens of a name: two nodes may have made one each.
///
/// # Errors
/// A removal cannot be stored.
pub async fn revoke_tokens(store: &Store, name: &str, author: Author) -> Result<(), WriteError> {
    let named = |view: &View| view.object.str_at("/spec/name") == name;
    revoke(store, named, author).await.map(drop)
}

async fn revoke(
    store: &Store,
    which: impl Fn(&View) -> bool,
    author: Author,
) -> Result<Vec<View>, WriteError> {
    let mut views = store.list(Kind::ApiToken, None).items;
    views.retain(which);
    for view in &views {
        match store
            .remove(&view.key, &Precondition::default(), author.clone())
            .await
        {
            Ok(_) | Err(WriteError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(views)
}

fn tokens(state: &ApiState) -> impl Iterator<Item = View> {
    state.store.list(Kind::ApiToken, None).items.into_iter()
}

fn summary(token: &Object, now_unix_seconds: i64) -> Value {
    let expires = token.str_at("/spec/expiresAt");
    json!({
        "id": token.name(),
        "name": token.str_at("/spec/name"),
        "created_at": token.str_at("/metadata/creationTimestamp"),
        "expires_at": if expires.is_empty() { Value::Null } else { expires.into() },
        "expired": !expires.is_empty() && time::from_rfc3339(expires).is_none_or(|at| at <= now_unix_seconds),
    })
}

/// Reads a small JSON body.
pub(super) async fn read_json<T: serde::de::DeserializeOwned>(body: Body) -> ApiResult<T> {
    let bytes = read_body(body, MAX_OBJECT_BYTES).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))
}
