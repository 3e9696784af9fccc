//! The ConfigMaps of a run, and the requests that make, change and remove them.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::connection::Call;

/// What a ConfigMap holds, bytes.
const DATA_BYTES: usize = 256;
/// Who the fields of an apply belong to.
const MANAGER: &str = "podman-swarm-bench";

pub(crate) const NAMESPACES: &str = "/api/v1/namespaces";

/// Where the ConfigMaps of a namespace are.
pub(crate) fn path(namespace: &str) -> String {
    format!("{NAMESPACES}/{namespace}/configmaps")
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}

fn path_of(namespace: &str, number: usize) -> String {
    format!("{}/{}", path(namespace), name(number))
}

/// The ConfigMap of a number: [`DATA_BYTES`] of text that compresses little, another for every number.
pub(crate) fn object(number: usize) -> Value {
    let mut state = number as u64 + 1;
    let text: String = (0..DATA_BYTES)
        .map(|_| {
            // A generator of Knuth's is enough.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + (state >> 60) as u8)
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(number)}, "data": {"text": text}})
}

pub(crate) fn create(namespace: &str, number: usize) -> Call {
    Call {
        method: Method::POST,
        path: path(namespace),
        content_type: "application/json",
        body: bytes(&object(number)),
    }
}

pub(crate) fn get(namespace: &str, number: usize) -> Call {
    Call::bare(Method::GET, path_of(namespace, number))
}

pub(crate) fn list(namespace: &str) -> Call {
    Call::bare(Method::GET, path(namespace))
}

pub(crate) fn delete(namespace: &str, number: usize) -> Call {
    Call::bare(Method::DELETE, path_of(namespace, number))
}

pub(crate) fn merge_patch(namespace: &str, number: usize, data: &Value) -> Call {
    Call {
        method: Method::PATCH,
        path: path_of(namespace, number),
        content_type: "application/merge-patch+json",
        body: bytes(&json!({"data": data})),
    }
}

pub(crate) fn strategic_patch(namespace: &str, number: usize, data: &Value) -> Call {
    Call {
        content_type: "application/strategic-merge-patch+json",
        ..merge_patch(namespace, number, data)
    }
}

/// Applies one key beside those of the creation.
pub(crate) fn apply(namespace: &str, number: usize, data: &Value) -> Call {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(number)}, "data": data});
    Call {
        method: Method::PATCH,
        path: format!("{}?fieldManager={MANAGER}", path_of(namespace, number)),
        content_type: "application/apply-patch+yaml",
        body: bytes(&object),
    }
}

fn bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}
