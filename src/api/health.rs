//! `/livez`, `/readyz`, `/healthz` and `/api/v1/health`: unauthenticated, cheap, and silent about the cluster's content.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use serde_json::json;
use store::DiskState;

use super::state::ApiState;

/// The process answers.
pub(crate) async fn live(RawQuery(query): RawQuery) -> &'static str {
    if is_verbose(query.as_deref()) {
        "[+]ping ok\nlivez check passed\n"
    } else {
        "ok"
    }
}

/// That part of the checks which asks whether anybody answers.
pub(crate) async fn ping() -> &'static str {
    "ok"
}

fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")))
}

/// What keeps this node from being ready: to serve reads and to take writes.
struct Readiness {
    /// One word for it.
    status: &'static str,
    missing: Vec<String>,
}

impl Readiness {
    fn of(state: &ApiState) -> Self {
        let missing = state.readiness.borrow().clone();
        if !missing.is_empty() {
            let status = "starting";
            return Self { status, missing };
        }
        match &*state.store.disk().borrow() {
            DiskState::Well => Self {
                status: "ok",
                missing,
            },
            // Any other node takes writes: who spreads requests should go there, and nobody should restart this one.
            DiskState::Full(shortage) => Self {
                status: "full",
                missing: vec![shortage.to_string()],
            },
            DiskState::Failed(reason) => Self {
                status: "failed",
                missing: vec![format!("the store takes no writes: {reason}")],
            },
        }
    }
}

/// The agent has all that it needs; `?verbose` says what is missing.
pub(crate) async fn ready(State(state): State<ApiState>, uri: Uri) -> Response {
    let Readiness { missing, .. } = Readiness::of(&state);
    let name = uri.path().trim_start_matches('/');
    let mut text = String::new();
    if is_verbose(uri.query()) || !missing.is_empty() {
        text.push_str("[+]ping ok\n");
        for what in &missing {
            text.push_str(&format!("[-]{what} not ready\n"));
        }
        let result = if missing.is_empty() { "passed" } else { "failed" };
        text.push_str(&format!("{name} check {result}\n"));
    } else {
        text.push_str("ok");
    }
    (code(missing.is_empty()), text).into_response()
}

/// The native form of [`ready`].
pub(crate) async fn health(State(state): State<ApiState>) -> Response {
    let Readiness { status, missing } = Readiness::of(&state);
    let body = json!({
        "status": status,
        "version": state.build.version,
        "missing": missing,
        "unreadable_records": state.store.unreadable().len(),
        "catching_up": state.store.standing().borrow().catching_up,
    });
    (code(missing.is_empty()), Json(body)).into_response()
}

fn code(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
