//! Large answers are sent compressed to who takes that, by the rules of kube-apiserver. Never streams (watches, logs, backups)
//! and what is no list or object.

use std::io::{self, Write};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::status::ApiError;

/// Smaller answers are sent sooner as they are, as kube-apiserver has it.
pub(super) const LARGE_BYTES: u64 = 128 * 1024;
/// Answers that are compressed at once, on threads of their own: a core is left for all else on two.
static PLACES: Semaphore = Semaphore::const_new(1);

/// Compresses the answer to a GET, if it is large and the client takes gzip.
pub(super) async fn compress(request: Request, next: Next) -> Response {
    let is_get = request.method() == Method::GET;
    let accepts = accepts_gzip(request.headers());
    let mut response = next.run(request).await;
    if !(is_get && is_large(&response)) {
        return response;
    }
    let vary = HeaderValue::from_static("Accept-Encoding");
    response.headers_mut().append(header::VARY, vary);
    if !accepts {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    match gzip(body).await {
        Ok(compressed) => {
            // The length that it had.
            parts.headers.remove(header::CONTENT_LENGTH);
            let gzip = HeaderValue::from_static("gzip");
            parts.headers.insert(header::CONTENT_ENCODING, gzip);
            // Other bytes of the same (RFC 9110, 8.8.3).
            let tag = parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
            if let Some(Ok(weak)) = tag.map(|tag| HeaderValue::from_str(&format!("W/{tag}"))) {
                parts.headers.insert(header::ETAG, weak);
            }
            Response::from_parts(parts, compressed.into())
        }
        Err(error) => ApiError::internal(format!("the answer cannot be compressed: {error}")).into_response(),
    }
}

/// Tells whether an answer is a large object or list. A stream has no length, and what has one is in memory, but for what
/// another node answers.
fn is_large(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE);
    let media = media.and_then(|value| value.to_str().ok()).unwrap_or_default();
    response.status() == StatusCode::OK
        && (media.starts_with("application/json") || media.starts_with("application/yaml"))
        && !response.headers().contains_key(header::CONTENT_ENCODING)
        && response
            .body()
            .size_hint()
            .exact()
            .is_some_and(|bytes| bytes > LARGE_BYTES)
}

/// Reads `Accept-Encoding` (RFC 9110, 12.5.3): gzip is named, and not with a weight of zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().trim_start_matches("q=");
        name.trim().eq_ignore_ascii_case("gzip") && weight.parse() != Ok(0.0)
    })
}

async fn gzip(body: Body) -> io::Result<Bytes> {
    let plain = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let _place = PLACES.acquire().await.map_err(io::Error::other)?;
    let compressed = tokio::task::spawn_blocking(move || {
        // The fastest level, as kube-apiserver uses.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain)?;
        encoder.finish()
    });
    Ok(compressed.await??.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_accepted_where_it_is_named_and_wanted() {
        let check = |value: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        };
        check("gzip", true);
        check("deflate, GZIP;q=0.5", true);
        check("gzip;q=0", false);
        check("gzip; q=0.0", false);
        check("identity", false);
        check("*", false);
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
