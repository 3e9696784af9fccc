//! Both forms of Events, and what is refused of each.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::schema::TypeId;
use crate::validate::{unknown_fields, validate, warnings};

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

/// Every field, as both groups have it.
fn pairs() -> Vec<(&'static str, &'static str, Value)> {
    let about = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "u",
        "resourceVersion": "7", "fieldPath": "spec.containers{web}"});
    vec![
        ("kind", "kind", json!("Event")),
        (
            "metadata",
            "metadata",
            json!({"name": "web.1", "namespace": "default", "labels": {"a": "b"}}),
        ),
        ("involvedObject", "regarding", about.clone()),
        ("related", "related", about),
        ("reason", "reason", json!("Pulled")),
        ("message", "note", json!("it is there")),
        (
            "source",
            "deprecatedSource",
            json!({"component": "kubelet", "host": "n1"}),
        ),
        (
            "firstTimestamp",
            "deprecatedFirstTimestamp",
            json!("2027-01-15T08:00:00Z"),
        ),
        (
            "lastTimestamp",
            "deprecatedLastTimestamp",
            json!("2027-01-15T08:00:05Z"),
        ),
        ("count", "deprecatedCount", json!(3)),
        ("type", "type", json!("Normal")),
        ("eventTime", "eventTime", json!("2027-01-15T08:00:00.000001Z")),
        (
            "series",
            "series",
            json!({"count": 2, "lastObservedTime": "2027-01-15T08:00:05.000002Z"}),
        ),
        ("action", "action", json!("Pulling")),
        (
            "reportingComponent",
            "reportingController",
            json!("example.com/puller"),
        ),
        ("reportingInstance", "reportingInstance", json!("puller-1")),
    ]
}

/// An Event with every field, in the form of `v1` and in the other.
fn both() -> (Object, Object) {
    let (mut older, mut newer) = (json!({"apiVersion": "v1"}), json!({"apiVersion": API_VERSION}));
    for (one, other, value) in pairs() {
        older[one] = value.clone();
        newer[other] = value;
    }
    (object(older), object(newer))
}

#[test]
fn every_field_has_its_place_in_both_groups() {
    let (older, newer) = both();
    assert_eq!(in_group(GROUP, older.clone()), newer);
    assert_eq!(in_group("", newer.clone()), older);
    // What is in the form already stays.
    assert_eq!(in_group("", older.clone()), older);
    assert_eq!(in_group(GROUP, newer.clone()), newer);
    // There are no other fields.
    for event in [older, newer] {
        let known = TypeId::of_written(Kind::Event, event.str_at("/apiVersion"))
            .unwrap()
            .get();
        let known: BTreeSet<&String> = known.fields.keys().collect();
        assert_eq!(event.0.keys().collect::<BTreeSet<_>>(), known);
    }
}

#[test]
fn what_kubernetes_writes_with_every_field_comes_back_as_it_was() {
    let text = include_str!("../protobuf/testdata/events.k8s.io.v1.Event.json");
    let event = object(serde_json::from_str(text).unwrap());
    let kept = in_group("", event.clone());
    assert_eq!(kept.str_at("/apiVersion"), "v1");
    assert_eq!(kept.str_at("/message"), "noteValue");
    assert_eq!(in_group(GROUP, kept), event);
}

#[test]
fn only_events_are_converted_and_a_stray_name_hides_no_field() {
    let pod = object(json!({"apiVersion": "v1", "kind": "Pod", "message": "m"}));
    assert_eq!(in_group(GROUP, pod.clone()), pod);
    let stray =
        json!({"apiVersion": API_VERSION, "kind": "Event", "note": "right", "message": "wrong", "odd": 1});
    assert_eq!(
        in_group("", object(stray)).into_value(),
        json!({"apiVersion": "v1", "kind": "Event", "message": "right", "odd": 1, "involvedObject": {}})
    );
}

/// What is wrong with the Event above, without what only `v1` allows, after an edit of it.
fn check(group: &str, edit: Value, expected: &[&str]) {
    let (mut older, newer) = both();
    let mut event = match group {
        GROUP => newer,
        _ => {
            older.0.retain(|name, _| name != "series");
            older
        }
    };
    if group == GROUP {
        event.0.retain(|name, _| !name.starts_with("deprecated"));
    }
    for (field, value) in edit.as_object().unwrap() {
        event.set(&field.split('.').collect::<Vec<_>>(), value.clone());
    }
    let errors: Vec<String> = validate(&event).iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{group:?} {edit}");
}

#[test]
fn events_of_the_newer_group_are_checked_strictly() {
    let long = "x".repeat(129);
    check(GROUP, json!({}), &[]);
    check(
        GROUP,
        json!({"regarding": null, "series": null, "related": null}),
        &[],
    );
    check(GROUP, json!({"eventTime": null}), &["eventTime: Required value"]);
    for field in ["reportingController", "reportingInstance", "action", "reason"] {
        check(GROUP, json!({field: ""}), &[&format!("{field}: Required value")]);
    }
    for field in ["reportingInstance", "action", "reason"] {
        let expected = format!("{field}: Invalid value: \"\": can have at most 128 characters");
        check(GROUP, json!({field: long}), &[&expected]);
    }
    check(
        GROUP,
        json!({"note": "x".repeat(1025)}),
        &["message: Invalid value: \"\": can have at most 1024 characters"],
    );
    check(GROUP, json!({"note": "x".repeat(1024)}), &[]);
    check(
        GROUP,
        json!({"type": "Strange"}),
        &["type: Invalid value: \"\": has invalid value: Strange"],
    );
    check(
        GROUP,
        json!({"series.count": 1}),
        &["series.count: Invalid value: 1: should be at least 2"],
    );
    check(
        GROUP,
        json!({"series.lastObservedTime": null}),
        &["series.lastObservedTime: Required value"],
    );
    for (field, value, known_as) in [
        (
            "deprecatedFirstTimestamp",
            json!("2027-01-15T08:00:00Z"),
            "firstTimestamp",
        ),
        (
            "deprecatedLastTimestamp",
            json!("2027-01-15T08:00:00Z"),
            "lastTimestamp",
        ),
        ("deprecatedCount", json!(1), "count"),
        ("deprecatedSource", json!({"host": "n1"}), "source"),
    ] {
        let expected = format!("{known_as}: Invalid value: \"\": needs to be unset");
        check(GROUP, json!({field: value}), &[&expected]);
    }
    check(GROUP, json!({"deprecatedCount": 0, "deprecatedSource": {}}), &[]);
    // Types are checked where they were written.
    check(
        GROUP,
        json!({"note": 5}),
        &["note: Invalid value: 5: must be of type string (quote it)"],
    );
}

#[test]
fn events_of_the_core_group_are_checked_as_far_as_they_say_when() {
    let elsewhere = "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace";
    check("", json!({}), &[]);
    check("", json!({"series": {"count": 1}, "type": "Strange"}), &[]);
    check("", json!({"action": ""}), &["action: Required value"]);
    check(
        "",
        json!({"reportingComponent": ""}),
        &["reportingComponent: Required value"],
    );
    check("", json!({"involvedObject.namespace": "other"}), &[]);
    check("", json!({"eventTime": null, "action": "", "reason": ""}), &[]);
    check(
        "",
        json!({"eventTime": null, "involvedObject.namespace": "other"}),
        &[elsewhere],
    );
    let nowhere = "involvedObject.namespace: Invalid value: \"\": does not match event.namespace";
    for (namespace, time, expected) in [
        ("default", json!(null), &[][..]),
        ("kube-system", json!(null), &[nowhere][..]),
        ("kube-system", json!("2027-01-15T08:00:00Z"), &[]),
        ("other", json!("2027-01-15T08:00:00Z"), &[nowhere]),
    ] {
        let edit =
            json!({"eventTime": time, "metadata.namespace": namespace, "involvedObject": {"kind": "Node"}});
        check("", edit, expected);
    }
}

#[test]
fn unknown_fields_are_named_as_they_were_written() {
    let (_, mut event) = both();
    assert_eq!(warnings(&event, None), Vec::<String>::new());
    event.set(&["message"], "of the other group");
    event.set(&["regarding", "colour"], "red");
    assert_eq!(unknown_fields(&event), ["regarding.colour", "message"]);
}
