//! As much of the OpenAPI documents as kubectl needs to apply: the paths with their parameters, from the kind table.
//!
//! kubectl looks for `fieldValidation` and `dryRun` at a kind's PATCH to leave validation to the server. Schemas of
//! fields (for `kubectl explain`) are not here yet; strategic merge patches are therefore not promised to be
//! computable from this document, and kubectl uses the types built into it.

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use schemas::{KindRow, Scope};
use serde_json::{Map, Value, json};

use super::discovery::{named_groups, served, unkept, version_of};
use super::status::{ApiError, ApiResult};

/// Asked for with an `@` before the version, which is no media type (RFC 6838) and older clients cannot read back.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const TITLE: &str = "Podman Swarm";

/// `GET /openapi/v3`: where each group's document is.
pub(crate) async fn v3_index() -> Json<Value> {
    let mut paths = Map::new();
    for group in std::iter::once("").chain(named_groups()) {
        let path = group_path(group);
        paths.insert(
            path.clone(),
            json!({"serverRelativeURL": format!("/openapi/v3/{path}")}),
        );
    }
    Json(json!({"paths": paths}))
}

/// `GET /openapi/v3/api/v1` and `/openapi/v3/apis/{group}/{version}`.
pub(crate) async fn v3_group(Path(path): Path<String>) -> ApiResult {
    let group = std::iter::once("")
        .chain(named_groups())
        .find(|group| group_path(group) == path)
        .ok_or_else(ApiError::no_resource)?;
    let mut paths = Map::new();
    let collection = |scope, plural| match scope {
        Scope::Namespaced => format!("/{path}/namespaces/{{namespace}}/{plural}"),
        Scope::Cluster => format!("/{path}/{plural}"),
    };
    for row in served(group) {
        let collection = collection(row.scope, row.plural);
        paths.insert(
            collection.clone(),
            json!({
                "get": operation(row, "list", &["labelSelector", "fieldSelector", "limit", "continue", "watch"]),
                "post": operation(row, "post", &["dryRun", "fieldManager", "fieldValidation"]),
            }),
        );
        let mut patch = operation(
            row,
            "patch",
            &["dryRun", "fieldManager", "fieldValidation", "force"],
        );
        patch["requestBody"] = json!({"content": {
            "application/apply-patch+yaml": {},
            "application/json-patch+json": {},
            "application/merge-patch+json": {},
        }});
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({
                "get": operation(row, "get", &[]),
                "put": operation(row, "put", &["dryRun", "fieldManager", "fieldValidation"]),
                "patch": patch,
                "delete": operation(row, "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            }),
        );
    }
    for resource in unkept(group) {
        let collection = collection(resource.scope, resource.plural);
        let described = |action, parameters: &[&str]| described(group, resource.kind, action, parameters);
        for verb in resource.verbs {
            let (path, operation) = match *verb {
                "create" => (
                    collection.clone(),
                    json!({"post": described("post", &["dryRun"])}),
                ),
                "list" => (
                    collection.clone(),
                    json!({"get": described("list", &["labelSelector", "fieldSelector"])}),
                ),
                _ => (
                    format!("{collection}/{{name}}"),
                    json!({"get": described("get", &[])}),
                ),
            };
            paths.insert(path, operation);
        }
    }
    Ok(Json(json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": {}},
    }))
    .into_response())
}

fn group_path(group: &str) -> String {
    if group.is_empty() {
        "api/v1".to_owned()
    } else {
        format!("apis/{group}/{}", version_of(group))
    }
}

fn operation(row: &KindRow, action: &str, parameters: &[&str]) -> Value {
    described(row.group, row.name, action, parameters)
}

fn described(group: &str, kind: &str, action: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version_of(group), "kind": kind},
    })
}

/// `GET /openapi/v2`: a document without paths; kubectl then uses the types built into it.
pub(crate) async fn v2(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.unwrap_or_default().contains("+protobuf") {
        return ([(header::CONTENT_TYPE, V2_PROTOBUF)], v2_protobuf()).into_response();
    }
    Json(json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": "unversioned"},
        "paths": {},
    }))
    .into_response()
}

/// `openapi.v2.Document` with `swagger` (field 1) and `info` (field 2: `title` 1, `version` 2) and `paths` (field 8).
fn v2_protobuf() -> Vec<u8> {
    // A length-delimited field: its number and type in one byte, its length in one byte, its bytes.
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    };
    let info = [field(1, TITLE.as_bytes()), field(2, b"unversioned")].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b"")].concat()
}
