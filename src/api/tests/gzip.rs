//! Which answers are compressed, over HTTP/1.1 and HTTP/2.

use std::io::Read;

use axum::body::Body;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::response::Parts;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use schemas::Object;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::fixture::Api;
use super::listener::Served;
use crate::api::PlainHttp;

const LIST: &str = "/api/v1/namespaces/default/configmaps";
const ONE: &str = "/api/v1/namespaces/default/configmaps/settings-0";

/// An API with a list of 128 KiB and more, of which one page is less.
async fn with_a_large_list() -> Api {
    let api = Api::open().await;
    for number in 0..600 {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": format!("settings-{number}"), "namespace": "default"},
            "data": {"value": format!("{number:0>256}")},
        });
        let object = Object::from_value(object).unwrap();
        let author = api.state.author("test", "");
        api.state.store.create(object, author).await.unwrap();
    }
    api
}

fn get(path: &str, encoding: &str) -> Request<Body> {
    let mut request = Request::get(format!("http://localhost{path}")).header("host", "localhost");
    if !encoding.is_empty() {
        request = request.header("accept-encoding", encoding);
    }
    request.body(Body::empty()).unwrap()
}

async fn answer(served: &Served, is_http2: bool, request: Request<Body>) -> Response<Incoming> {
    let stream = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    if is_http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }
}

async fn whole(response: Response<Incoming>) -> (Parts, Bytes) {
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

fn header<'a>(parts: &'a Parts, name: &str) -> &'a str {
    parts
        .headers
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

#[tokio::test]
async fn a_large_list_is_compressed_for_who_takes_that_and_is_the_same() {
    let api = with_a_large_list().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    for is_http2 in [false, true] {
        let (parts, plain) = whole(answer(&served, is_http2, get(LIST, "")).await).await;
        assert_eq!(header(&parts, "content-encoding"), "");
        assert_eq!(header(&parts, "vary"), "Accept-Encoding");
        let list: Value = serde_json::from_slice(&plain).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 600);

        let (parts, packed) = whole(answer(&served, is_http2, get(LIST, "deflate, gzip")).await).await;
        assert_eq!(header(&parts, "content-encoding"), "gzip");
        assert_eq!(header(&parts, "vary"), "Accept-Encoding");
        assert_eq!(header(&parts, "content-type"), "application/json");
        assert_eq!(header(&parts, "content-length"), packed.len().to_string());
        assert!(
            packed.len() * 5 < plain.len(),
            "{} of {}",
            packed.len(),
            plain.len()
        );
        assert_eq!(unpacked(&packed), plain);
    }
}

#[tokio::test]
async fn small_answers_watches_and_refusals_are_sent_as_they_are() {
    let api = with_a_large_list().await;
    let served = Served::start(&api, PlainHttp::Loopback).await;
    for is_http2 in [false, true] {
        let page = format!("{LIST}?limit=100");
        for path in [ONE, &page, "/api/v1/namespaces/default/configmaps/none"] {
            let (parts, bytes) = whole(answer(&served, is_http2, get(path, "gzip")).await).await;
            assert_eq!(header(&parts, "content-encoding"), "", "{path}");
            serde_json::from_slice::<Value>(&bytes).unwrap();
        }
        // All that is there comes first, more than 128 KiB of it.
        let watch = format!("{LIST}?watch=true&timeoutSeconds=1");
        let (parts, bytes) = whole(answer(&served, is_http2, get(&watch, "gzip")).await).await;
        assert_eq!(header(&parts, "content-encoding"), "");
        assert!(bytes.starts_with(b"{\"type\":\"ADDED\"") && bytes.len() > 128 << 10);
    }
    let (parts, bytes) = whole(answer(&served, false, get(LIST, "gzip;q=0")).await).await;
    assert_eq!(header(&parts, "content-encoding"), "");
    assert!(bytes.len() > 128 << 10);
}

#[tokio::test]
async fn yaml_and_tables_are_compressed_too_and_what_is_no_get_is_not() {
    let api = with_a_large_list().await;
    for accept in ["application/yaml", "application/json;as=Table;v=v1;g=meta.k8s.io"] {
        let mut request = get(&format!("{LIST}?includeObject=Object"), "gzip");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let (parts, body) = api.send(request).await.into_parts();
        assert_eq!(header(&parts, "content-encoding"), "gzip", "{accept}");
        unpacked(&body.collect().await.unwrap().to_bytes());
    }
    let mut request = get(LIST, "gzip");
    *request.method_mut() = http::Method::HEAD;
    let (parts, _) = api.send(request).await.into_parts();
    assert_eq!(
        (parts.status.as_u16(), header(&parts, "content-encoding")),
        (200, "")
    );
}
