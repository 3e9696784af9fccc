//! Events as two groups have them: kept in the form of `v1`, and served in that of `events.k8s.io/v1` as well. Pure.
//!
//! The rules are those of Kubernetes, which checks Events of both groups in one form and is strict with the newer one.

use serde_json::{Map, Value};

use crate::names;
use crate::node::{Errors, Node};
use crate::{FieldError, Kind, Object};

/// The group that serves Events beside the core group.
pub const GROUP: &str = "events.k8s.io";
/// `apiVersion` of Events of that group.
pub const API_VERSION: &str = "events.k8s.io/v1";

/// Fields with two names: in `v1`, and in `events.k8s.io/v1`. All others are the same in both.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Bytes of `action`, `reason` and `reportingInstance`.
const MAX_WORD_BYTES: usize = 128;
/// Bytes of `message`.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Where Events of what has no namespace may be.
const NAMESPACES_OF_ALL: [&str; 2] = ["default", "kube-system"];

/// Returns an Event of either form in that of a group; anything else, and what is in that form, as it is. A field that the
/// form it comes in does not have goes where the other one has one of that name.
pub fn in_group(group: &str, object: Object) -> Object {
    let is_newer = object.str_at("/apiVersion") == API_VERSION;
    if object.kind() != Some(Kind::Event) || is_newer == (group == GROUP) {
        return object;
    }
    let mut converted = Map::new();
    for (name, value) in object.0 {
        let renamed = RENAMED.iter().find_map(|(older, newer)| match is_newer {
            true => (name == *newer).then_some(*older),
            false => (name == *older).then_some(*newer),
        });
        let is_known = |pair: &(&str, &str)| name == if is_newer { pair.0 } else { pair.1 };
        match renamed {
            Some(renamed) => _ = converted.insert(renamed.to_owned(), value),
            None if RENAMED.iter().any(is_known) => {}
            None => _ = converted.insert(name, value),
        }
    }
    if is_newer {
        converted.insert("apiVersion".to_owned(), Kind::Event.row().api_version().into());
        // `v1` asks for it.
        converted
            .entry("involvedObject")
            .or_insert_with(|| Map::new().into());
    } else {
        converted.insert("apiVersion".to_owned(), API_VERSION.into());
    }
    Object(converted)
}

/// Checks an Event of `v1`: one with an `eventTime` is of a client that knows the newer group.
pub(crate) fn validate(root: &Node<'_>, errors: &mut Errors) {
    check(root, "reportingComponent", errors);
}

/// Checks an Event that was sent in the form of `events.k8s.io/v1` and has that of `v1` by now.
pub(crate) fn validate_strictly(root: &Node<'_>, errors: &mut Errors) {
    check(root, "reportingController", errors);
    check_series(&root.at("series"), errors);
    if !root.at("eventTime").is_set() {
        errors.required(&root.at("eventTime"), "");
    }
    let kind = root.at("type");
    if !matches!(kind.text(), "Normal" | "Warning") {
        errors.invalid(
            &without_value(&kind),
            format!("has invalid value: {}", kind.text()),
        );
    }
    let source = root.at("source");
    let is_said = |field: &Node<'_>| match field.value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_i64() != Some(0),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => true,
    };
    for (field, said) in [
        ("firstTimestamp", is_said(&root.at("firstTimestamp"))),
        ("lastTimestamp", is_said(&root.at("lastTimestamp"))),
        ("count", is_said(&root.at("count"))),
        (
            "source",
            is_said(&source.at("component")) || is_said(&source.at("host")),
        ),
    ] {
        if said {
            errors.invalid(&without_value(&root.at(field)), "needs to be unset");
        }
    }
}

fn check_series(series: &Node<'_>, errors: &mut Errors) {
    if series.is_set() {
        if series.at("count").int().unwrap_or_default() < 2 {
            errors.invalid(&series.at("count"), "should be at least 2");
        }
        if !series.at("lastObservedTime").is_set() {
            errors.required(&series.at("lastObservedTime"), "");
        }
    }
}

/// Checks a change that was sent in the form of `events.k8s.io/v1`, of an Event that has that of `v1` by now: besides its
/// metadata, its series alone can change (Kubernetes' `ValidateEventUpdate`).
pub fn validate_strict_update(old: &Object, new: &Object) -> Vec<FieldError> {
    const FIXED: [&str; 12] = [
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ];
    let mut errors = Errors::default();
    let (old, new) = (Value::Object(old.0.clone()), Value::Object(new.0.clone()));
    let (old, new) = (Node::root(&old), Node::root(&new));
    if old.at("series").value != new.at("series").value {
        check_series(&new.at("series"), &mut errors);
    }
    for name in FIXED {
        let (old, mut new) = (old.at(name), new.at(name));
        let is_absent = is_zero(old.value) && is_zero(new.value);
        if !is_absent && old.value != new.value {
            if name == "reportingComponent" {
                new.path = "reportingController".to_owned();
            }
            errors.invalid(&new, "field is immutable");
        }
    }
    errors.0
}

/// Whether Go has nothing else where a field is absent.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(fields) => fields.values().all(is_zero),
        Value::Bool(_) | Value::Array(_) => false,
    }
}

/// Kubernetes' `legacyValidateEvent`; `controller` is what the group calls `reportingComponent`.
fn check(root: &Node<'_>, controller: &str, errors: &mut Errors) {
    let namespace = root.at("metadata").at("namespace");
    let about = root.at("involvedObject").at("namespace");
    let may_be_elsewhere = if root.at("eventTime").is_set() {
        !about.text().is_empty() || NAMESPACES_OF_ALL.contains(&namespace.text())
    } else {
        about.text() == namespace.text() || about.text().is_empty() && namespace.text() == "default"
    };
    if !may_be_elsewhere {
        let text = Value::from(about.text());
        let about = Node {
            path: about.path,
            value: &text,
        };
        errors.invalid(&about, "does not match event.namespace");
    }
    if !root.at("eventTime").is_set() {
        return;
    }
    let controller = Node {
        path: controller.to_owned(),
        ..root.at("reportingComponent")
    };
    errors.required_form(&controller, names::qualified_name);
    for field in ["reportingInstance", "action", "reason"] {
        let field = root.at(field);
        if field.text().is_empty() {
            errors.required(&field, "");
        }
        bounded(&field, MAX_WORD_BYTES, errors);
    }
    bounded(&root.at("message"), MAX_MESSAGE_BYTES, errors);
}

fn bounded(field: &Node<'_>, max_bytes: usize, errors: &mut Errors) {
    if field.text().len() > max_bytes {
        errors.invalid(
            &without_value(field),
            format!("can have at most {max_bytes} characters"),
        );
    }
}

/// The field with an empty value, as Kubernetes shows it where it does not repeat what it refuses.
fn without_value(field: &Node<'_>) -> Node<'static> {
    static NOTHING: Value = Value::String(String::new());
    Node {
        path: field.path.clone(),
        value: &NOTHING,
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
