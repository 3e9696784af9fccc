//! The OpenAPI documents: what `kubectl explain`, validation and patches by clients are made from. All of it comes from
//! the tables of kinds and fields.
//!
//! A document is made when it is asked for, which takes milliseconds, and not kept: clients keep it by its hash. Paths are in
//! `paths.rs`, the protobuf form of version 2 is in `protobuf.rs`, the types' schemas are in [`schemas::openapi`].

mod paths;
mod protobuf;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemas::hex;
use schemas::openapi::{Form, definitions, metrics_definitions};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::content::{accepted, answer_json};
use super::discovery::{named_groups, own_kind, served, unkept, version_of};
use super::metrics::GROUP as METRICS_GROUP;
use super::status::{ApiError, ApiResult};

/// Asked for with an `@` before the version, which is no media type (RFC 6838) and older clients cannot read back.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const TITLE: &str = "Podman Swarm";
/// For what a hash names, and so never changes: a year, as Kubernetes has it.
const FOREVER: HeaderValue = HeaderValue::from_static("public, immutable, max-age=31536000");

/// The hash of each group's document, by its path.
static HASHES: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let groups = groups();
    let hashes = groups
        .iter()
        .map(|group| (group_path(group), hash(&v3_document(group))));
    hashes.collect()
});

/// A document is a tree of some MiB while it is made, so that only one is at a time.
static MAKING: Mutex<()> = Mutex::const_new(());

static V2_HASH: LazyLock<String> = LazyLock::new(|| hash(v2_document().to_string().as_bytes()));

/// `GET /openapi/v3`: where each group's document is.
pub(crate) async fn v3_index() -> ApiResult {
    made(|| {
        let paths: Map<String, Value> = HASHES
            .iter()
            .map(|(path, hash)| (path.clone(), json!({"serverRelativeURL": hashed(path, hash)})))
            .collect();
        Json(json!({"paths": paths})).into_response()
    })
    .await
}

/// `GET /openapi/v3/api/v1` and `/openapi/v3/apis/{group}/{version}`. With another `hash` than the document's (a node of another
/// version gave it), the client is sent to the right one.
pub(crate) async fn v3_group(
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> ApiResult {
    let group = groups()
        .into_iter()
        .find(|group| group_path(group) == path)
        .ok_or_else(ApiError::no_resource)?;
    let format = accepted(&headers)?.format;
    made(move || {
        let known = HASHES.get(&path).map_or("", String::as_str);
        let query = query.unwrap_or_default();
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("hash="));
        if asked.is_some_and(|asked| asked != known) {
            let place = [(header::LOCATION, hashed(&path, known))];
            return (StatusCode::MOVED_PERMANENTLY, place).into_response();
        }
        let mut response = tagged(&headers, known, || {
            answer_json(StatusCode::OK, format, v3_document(group))
        });
        if asked.is_some() {
            response.headers_mut().insert(header::CACHE_CONTROL, FOREVER);
        }
        response
    })
    .await
}

/// `GET /openapi/v2`: all groups in one, as JSON or in the protobuf of the gnostic library, which kubectl asks for.
pub(crate) async fn v2(headers: HeaderMap) -> ApiResult {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.unwrap_or_default().contains("+protobuf") {
        return made(move || {
            tagged(&headers, &format!("{}-protobuf", *V2_HASH), || {
                let bytes = protobuf::document(&v2_document());
                ([(header::CONTENT_TYPE, V2_PROTOBUF)], bytes).into_response()
            })
        })
        .await;
    }
    let format = accepted(&headers)?.format;
    made(move || {
        tagged(&headers, &V2_HASH, || {
            answer_json(StatusCode::OK, format, v2_document().to_string().into_bytes())
        })
    })
    .await
}

/// Makes an answer where it holds up no other requests.
async fn made(make: impl FnOnce() -> Response + Send + 'static) -> ApiResult {
    let _one = MAKING.lock().await;
    tokio::task::spawn_blocking(make)
        .await
        .map_err(|_| ApiError::internal("the document was not made"))
}

/// Answers with what `make` makes, or that the client has it already (RFC 9110, 13.1.2).
fn tagged(headers: &HeaderMap, tag: &str, make: impl FnOnce() -> Response) -> Response {
    let tag = format!("\"{tag}\"");
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().trim_start_matches("W/"))
        .any(|value| value == tag || value == "*");
    let mut response = if known {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        make()
    };
    let headers = response.headers_mut();
    // Hexadecimal digits and one word.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    response
}

fn hash(document: &[u8]) -> String {
    hex(&Sha256::digest(document))
}

fn hashed(path: &str, hash: &str) -> String {
    format!("/openapi/v3/{path}?hash={hash}")
}

fn groups() -> Vec<&'static str> {
    let mut groups = vec![""];
    groups.extend(named_groups());
    groups
}

fn group_path(group: &str) -> String {
    if group.is_empty() {
        "api/v1".to_owned()
    } else {
        format!("apis/{group}/{}", version_of(group))
    }
}

/// What clients send to a group's paths and get from them: groups and kinds.
fn kinds(group: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for row in served(group) {
        kinds.push((row.group, row.name));
        let parts = row.subresources.iter().filter(|part| !paths::is_session(**part));
        kinds.extend(parts.filter_map(|part| own_kind(*part)));
    }
    let sent = unkept(group).filter(|resource| resource.verbs.contains(&"create"));
    kinds.extend(sent.map(|resource| (resource.group, resource.kind)));
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn v3_document(group: &'static str) -> Vec<u8> {
    let mut schemas = definitions(&kinds(group), Form::V3);
    if group == METRICS_GROUP {
        schemas.extend(metrics_definitions(Form::V3));
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": "unversioned"},
        "paths": paths::of(group),
        "components": {"schemas": schemas},
    });
    document.to_string().into_bytes()
}

/// Without paths: kubectl asks for custom resource definitions, which there are none of, where they say that the server
/// validates and a kind is not among them.
fn v2_document() -> Value {
    let mut all: Vec<(&str, &str)> = groups().into_iter().flat_map(kinds).collect();
    all.sort_unstable();
    all.dedup();
    let mut definitions = definitions(&all, Form::V2);
    definitions.extend(metrics_definitions(Form::V2));
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": "unversioned"},
        "paths": {},
        "definitions": definitions,
    })
}
