//! ConfigMaps and Secrets: defaults and validation.
//!
//! Source: `ValidateConfigMap` and `ValidateSecret` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::defaults::{self, Tree};
use crate::manifest::MAX_OBJECT_BYTES;
use crate::names;
use crate::node::{Errors, Node};
use crate::{Kind, Object};

/// All values of a ConfigMap or a Secret together.
const MAX_DATA_BYTES: usize = 1 << 20;

/// Puts the defaults into a Secret.
pub(crate) fn default_secret(root: &mut Tree) {
    defaults::set_text(root, "type", "Opaque");
}

/// Writes the values of a ConfigMap or a Secret as Kubernetes keeps them: null is empty text, and Base64 has no line breaks.
/// What a Secret says in plain text (`stringData`, which is written and never shown) moves to its `data`; of a key that both
/// have, the plain text counts. Values that are no text stay, for validation to find.
pub fn tidy_values(object: &mut Object) {
    let kind = object.kind();
    if !matches!(kind, Some(Kind::ConfigMap | Kind::Secret)) {
        return;
    }
    for field in ["data", "binaryData", "stringData"] {
        let is_base64 = field == "binaryData" || field == "data" && kind == Some(Kind::Secret);
        let values = object.0.get_mut(field).and_then(Value::as_object_mut);
        for value in values.into_iter().flat_map(|map| map.values_mut()) {
            match value {
                Value::Null => *value = "".into(),
                Value::String(text) if is_base64 => text.retain(|char| !matches!(char, '\r' | '\n')),
                _ => {}
            }
        }
    }
    if kind == Some(Kind::Secret) && object.0.get("stringData").is_some_and(Value::is_object) {
        take_string_data(object);
    }
}

/// Finds the first value of a Secret's `data` or a ConfigMap's `binaryData` that is no Base64; returns the byte at which Go's
/// decoder gives up (`base64.CorruptInputError`).
pub fn illegal_base64(object: &Object) -> Option<usize> {
    let field = match object.kind() {
        Some(Kind::ConfigMap) => "binaryData",
        Some(Kind::Secret) => "data",
        _ => return None,
    };
    let values = object.0.get(field)?.as_object()?.values();
    values.filter_map(Value::as_str).find_map(illegal_byte)
}

fn illegal_byte(text: &str) -> Option<usize> {
    let mut bytes = text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| !matches!(byte, b'\r' | b'\n'));
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let mut in_group = 0;
    while let Some((at, byte)) = bytes.next() {
        match (byte, in_group) {
            (b'=', 3) => return bytes.next().map(|(at, _)| at),
            (b'=', 2) => {
                return match bytes.next() {
                    None => Some(text.len()),
                    Some((_, b'=')) => bytes.next().map(|(at, _)| at),
                    Some((at, _)) => Some(at - 1),
                };
            }
            (byte, _) if is_base64(byte) => in_group = (in_group + 1) % 4,
            _ => return Some(at),
        }
    }
    // Go counts back from the end, over line breaks as well.
    (in_group > 0).then(|| text.len() - in_group)
}

fn take_string_data(object: &mut Object) {
    let Some(Value::Object(plain)) = object.0.remove("stringData") else {
        return;
    };
    let mut rest = Tree::new();
    let Some(data) = defaults::make(&mut object.0, "data") else {
        object.0.insert("stringData".to_owned(), Value::Object(plain));
        return;
    };
    for (key, value) in plain {
        match value {
            Value::String(text) => {
                data.insert(key, BASE64_STANDARD.encode(text).into());
            }
            other => {
                rest.insert(key, other);
            }
        }
    }
    if !rest.is_empty() {
        object.0.insert("stringData".to_owned(), Value::Object(rest));
    }
}

/// Checks a ConfigMap.
pub(crate) fn validate_config_map(root: &Node<'_>, errors: &mut Errors) {
    let (data, binary) = (root.at("data"), root.at("binaryData"));
    let mut bytes = 0;
    for (key, value) in data.entries() {
        validate_key(key, &value, errors);
        if binary.map().is_some_and(|binary| binary.contains_key(key)) {
            errors.invalid(
                &of_key(&data, key, &Value::String(key.clone())),
                "duplicate of key present in binaryData",
            );
        }
        bytes += value.text().len();
    }
    for (key, value) in binary.entries() {
        validate_key(key, &value, errors);
        bytes += decoded_bytes(&value, errors);
    }
    if bytes > MAX_DATA_BYTES {
        errors.too_long(&data, MAX_DATA_BYTES);
    }
}

/// Checks a Secret.
pub(crate) fn validate_secret(root: &Node<'_>, errors: &mut Errors) {
    let data = root.at("data");
    let mut bytes = 0;
    for (key, value) in data.entries() {
        validate_key(key, &value, errors);
        bytes += decoded_bytes(&value, errors);
    }
    // `stringData` is shorter than what it becomes.
    let size = serde_json::to_vec(root.value).map_or(0, |json| json.len());
    if bytes > MAX_DATA_BYTES || size > MAX_OBJECT_BYTES {
        errors.too_long(&data, MAX_OBJECT_BYTES / 4 * 3);
    }
    let required = |key: &str, errors: &mut Errors| {
        if !data.map().is_some_and(|data| data.contains_key(key)) {
            errors.required(&of_key(&data, key, &Value::Null), "");
        }
    };
    match root.at("type").text() {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let annotations = root.at("metadata").at("annotations");
            if annotations
                .map()
                .and_then(|all| all.get(ACCOUNT))
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.required(&of_key(&annotations, ACCOUNT, &Value::Null), "");
            }
        }
        "kubernetes.io/dockercfg" => validate_json(&data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => validate_json(&data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" => {
            let has = |key| data.map().is_some_and(|data| data.contains_key(key));
            if !has("username") && !has("password") {
                required("username", errors);
                required("password", errors);
            }
        }
        "kubernetes.io/ssh-auth" => required("ssh-privatekey", errors),
        "kubernetes.io/tls" => {
            required("tls.crt", errors);
            required("tls.key", errors);
        }
        _ => {}
    }
}

/// Checks a change of a ConfigMap or a Secret that says of itself that it cannot change.
pub(crate) fn validate_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    if !old.at("immutable").is_true() {
        return;
    }
    let rule = "field is immutable when `immutable` is set";
    if !new.at("immutable").is_true() {
        errors.forbidden(&new.at("immutable"), rule);
    }
    let nothing = Tree::new();
    for field in ["data", "binaryData"] {
        let (old, new) = (old.at(field), new.at(field));
        if old.map().unwrap_or(&nothing) != new.map().unwrap_or(&nothing) {
            errors.forbidden(&new, rule);
        }
    }
}

fn of_key<'a>(map: &Node<'_>, key: &str, value: &'a Value) -> Node<'a> {
    Node {
        path: format!("{}[{key}]", map.path),
        value,
    }
}

/// `value` names the place; what is shown is the key.
fn validate_key(key: &str, value: &Node<'_>, errors: &mut Errors) {
    if let Some(problem) = names::config_key(key) {
        let key = Value::String(key.to_owned());
        errors.invalid(
            &Node {
                path: value.path.clone(),
                value: &key,
            },
            problem,
        );
    }
}

/// Returns how many bytes a value in Base64 says; zero, if it says none.
fn decoded_bytes(value: &Node<'_>, errors: &mut Errors) -> usize {
    match decoded(value.text()) {
        Some(bytes) => bytes.len(),
        None => {
            errors.invalid(value, "must be Base64");
            0
        }
    }
}

/// As Go reads it: line breaks count for nothing.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|char| !matches!(char, '\r' | '\n')).collect();
    BASE64_STANDARD.decode(text).ok()
}

fn validate_json(data: &Node<'_>, key: &str, errors: &mut Errors) {
    let Some(value) = data.map().and_then(|data| data.get(key)) else {
        return errors.required(&of_key(data, key, &Value::Null), "");
    };
    let bytes = decoded(value.as_str().unwrap_or_default());
    let is_json = bytes.is_some_and(|bytes| serde_json::from_slice::<Tree>(&bytes).is_ok());
    if !is_json {
        errors.invalid(&of_key(data, key, value), "must be a JSON object");
    }
}

#[cfg(test)]
mod tests {
    use super::illegal_byte;

    #[test]
    fn base64_is_given_up_at_the_byte_where_go_does() {
        for (text, byte) in [
            ("", None),
            ("YQ==", None),
            ("YWI=", None),
            ("YW\nJj\r\n", None),
            ("YQ=\n=\n", None),
            ("hunter2", Some(4)),
            ("YQ", Some(0)),
            ("YWJjY\n", Some(5)),
            ("a-b_", Some(1)),
            ("=", Some(0)),
            ("Y===", Some(1)),
            ("YQ=", Some(3)),
            ("YQ=x", Some(2)),
            ("YQ==YQ==", Some(4)),
            ("YWI=x", Some(4)),
        ] {
            assert_eq!(illegal_byte(text), byte, "{text:?}");
        }
    }
}
