//! `/livez`, `/readyz`, `/healthz` and `/api/v1/health`: unauthenticated, cheap, and silent about the cluster's content.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use super::state::ApiState;

/// The process answers.
pub(crate) async fn live() -> &'static str {
    "ok"
}

/// The agent has all that it needs; `?verbose` says what is missing.
pub(crate) async fn ready(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Response {
    let missing = state.readiness.borrow().clone();
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    let mut text = String::new();
    if verbose || !missing.is_empty() {
        text.push_str("[+]ping ok\n");
        for what in &missing {
            text.push_str(&format!("[-]{what} not ready\n"));
        }
        text.push_str(if missing.is_empty() {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
    } else {
        text.push_str("ok");
    }
    (code(missing.is_empty()), text).into_response()
}

/// The native form of [`ready`].
pub(crate) async fn health(State(state): State<ApiState>) -> Response {
    let missing = state.readiness.borrow().clone();
    let status = if missing.is_empty() { "ok" } else { "starting" };
    let body = json!({"status": status, "version": state.build.version, "missing": missing});
    (code(missing.is_empty()), Json(body)).into_response()
}

fn code(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
