//! What comes in and what goes out: media types, bodies with limits, and the forms an object can be shown in.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemas::Object;
use serde_json::{Value, json};

use super::status::{ApiError, ApiResult};

/// One object, as the design bounds objects. Without `metadata.managedFields`: we say it, and do not store it.
pub(crate) const MAX_OBJECT_BYTES: usize = 1024 * 1024;
/// A body with an object or a patch of one, as in Kubernetes: what is shown of the largest object can be sent back.
pub(crate) const MAX_OBJECT_BODY_BYTES: usize = 3 * 1024 * 1024;
/// A bundle of manifests: some thousand ordinary objects.
pub(crate) const MAX_MANIFEST_BYTES: usize = 16 * 1024 * 1024;
/// A body of the largest size at 300 KiB a second; a slower client holds a connection for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Warnings in one answer, and bytes of each, as kube-apiserver bounds them (4 KiB in all, 256 bytes each).
const MAX_WARNING_BYTES: usize = 256;
const MAX_ALL_WARNINGS_BYTES: usize = 4096;

/// What clients send objects in that prefer it, as `kubectl create` of 1.32 and later. Read, and never written.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Json,
    Yaml,
}

/// What of an object is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Whole,
    /// Rows of columns, as `kubectl get` asks for.
    Table,
    /// Metadata alone.
    Metadata,
}

/// What a client asked for in `Accept`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Accepted {
    pub(crate) format: Format,
    pub(crate) shape: Shape,
}

/// Picks the first form of `Accept` that we can write.
///
/// # Errors
/// 406, if there is none (a client that reads protobuf alone).
pub(crate) fn accepted(headers: &HeaderMap) -> ApiResult<Accepted> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Ok(Accepted {
            format: Format::Json,
            shape: Shape::Whole,
        });
    };
    accept.split(',').find_map(clause).ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    })
}

fn clause(clause: &str) -> Option<Accepted> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "application/*" | "*/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let known = group == "meta.k8s.io" && version == "v1";
    let shape = match kind {
        "" => Shape::Whole,
        "Table" if known => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Shape::Metadata,
        _ => return None,
    };
    Some(Accepted { format, shape })
}

/// Writes a value as an answer.
pub(crate) fn answer(code: StatusCode, format: Format, value: &Value) -> Response {
    let text = match format {
        Format::Json => value.to_string(),
        // A tree of JSON values has string keys, so that YAML can say it.
        Format::Yaml => serde_yaml::to_string(value).unwrap_or_else(|_| value.to_string()),
    };
    respond(code, format, text.into())
}

/// Answers with what is JSON already.
pub(crate) fn answer_json(code: StatusCode, format: Format, json: Vec<u8>) -> Response {
    match format {
        Format::Json => respond(code, format, json),
        // It was written here, so that it can be read.
        Format::Yaml => answer(code, format, &serde_json::from_slice(&json).unwrap_or_default()),
    }
}

fn respond(code: StatusCode, format: Format, text: Vec<u8>) -> Response {
    let content_type = match format {
        Format::Json => "application/json",
        Format::Yaml => "application/yaml",
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// Adds `Warning: 299` headers (RFC 7234, 5.5), which kubectl prints; within Kubernetes' bounds.
pub(crate) fn add_warnings(response: &mut Response, warnings: &[String]) {
    let mut total = 0;
    for warning in warnings {
        let mut text = String::new();
        for char in warning.chars().filter(|char| !char.is_control()) {
            if text.len() + char.len_utf8() > MAX_WARNING_BYTES {
                break;
            }
            if matches!(char, '"' | '\\') {
                text.push('\\');
            }
            text.push(char);
        }
        total += text.len();
        if total > MAX_ALL_WARNINGS_BYTES {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Reads a body whole.
///
/// # Errors
/// 413 above `limit_bytes`, 408 when it comes too slowly, 400 when it breaks off.
pub(crate) async fn read_body(body: Body, limit_bytes: usize) -> ApiResult<Bytes> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit_bytes)),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body cannot be read: {error}"))),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// Returns the media type of a body, without parameters; empty if none was given.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(str::trim)
        .unwrap_or_default()
}

/// Reads an object in JSON, or in Kubernetes' protobuf if that is its media type.
///
/// # Errors
/// 400 for a body that is neither.
pub(crate) fn parse_value(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    if content_type(headers) == PROTOBUF {
        return schemas::protobuf::decode(bytes)
            .map_err(|error| ApiError::bad_request(format!("error decoding protobuf: {error}")));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON that can be read: {error}")))
}

/// Checks that a value is of a type, as far as it says one.
///
/// # Errors
/// 400 for one of another.
pub(crate) fn expect_type(value: &Value, api_version: &str, kind: &str) -> ApiResult<()> {
    for (field, expected) in [("apiVersion", api_version), ("kind", kind)] {
        let found = value[field].as_str().unwrap_or_default();
        if !found.is_empty() && found != expected {
            return Err(ApiError::bad_request(format!(
                "the {field} in the data ({found}) does not match the expected {field} ({expected})"
            )));
        }
    }
    Ok(())
}

/// 415, with what is read.
pub(crate) fn unsupported_media(accepted: &[&str]) -> ApiError {
    ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        ),
    )
}

/// An object's metadata alone.
pub(crate) fn metadata_only(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.pointer("/metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_takes_the_first_form_that_can_be_written() {
        let check = |accept: &str, expected: Option<(Format, Shape)>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            let found = accepted(&headers).ok().map(|found| (found.format, found.shape));
            assert_eq!(found, expected, "{accept}");
        };
        let kubectl_get = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(kubectl_get, Some((Format::Json, Shape::Table)));
        check("application/json", Some((Format::Json, Shape::Whole)));
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Format::Json, Shape::Whole)),
        );
        check("application/vnd.kubernetes.protobuf", None);
        check("application/yaml", Some((Format::Yaml, Shape::Whole)));
        check("*/*", Some((Format::Json, Shape::Whole)));
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Json, Shape::Metadata)),
        );
        check("application/json;as=Unknown;g=x;v=v1", None);
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        let mut response = Response::new(Body::empty());
        add_warnings(&mut response, &["say \"no\"\n".to_owned(), "x".repeat(10_000)]);
        let headers: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(headers[0], "299 - \"say \\\"no\\\"\"");
        assert!(headers[1].len() <= MAX_WARNING_BYTES + 16);
    }
}
