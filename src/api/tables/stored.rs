//! Rows of kinds that are kept for who reads them: configuration, storage, policies.

use schemas::Object;
use serde_json::{Value, json};

use super::kinds::selector_text;
use super::{AGE, Column, NAME, Now, array, column, integer, or_none, wide};

const UNSET: &str = "<unset>";

pub(super) const CONFIG_MAP: &[Column] = &[NAME, column("Data", "How many values it has."), AGE];

pub(super) fn config_map(object: &Object, now: Now) -> Vec<Value> {
    let values = count(object, "/data") + count(object, "/binaryData");
    vec![
        json!(object.name()),
        json!(values.to_string()),
        json!(now.age(object)),
    ]
}

pub(super) const SECRET: &[Column] = &[
    NAME,
    column("Type", "What is in it."),
    column("Data", "How many values it has."),
    AGE,
];

pub(super) fn secret(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(object.name()),
        json!(object.str_at("/type")),
        json!(count(object, "/data").to_string()),
        json!(now.age(object)),
    ]
}

pub(super) const SERVICE_ACCOUNT: &[Column] = &[NAME, column("Secrets", "How many secrets it may use."), AGE];

pub(super) fn service_account(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(object.name()),
        json!(array(object, "/secrets").len().to_string()),
        json!(now.age(object)),
    ]
}

pub(super) const CLAIM: &[Column] = &[
    NAME,
    column("Status", "Whether it is bound."),
    column("Volume", "The volume that it is bound to."),
    column("Capacity", "Size of that volume."),
    column("Access Modes", "How that volume may be mounted."),
    column("StorageClass", "Class of the volume that is asked for."),
    column(
        "VolumeAttributesClass",
        "Class of the attributes that are asked for.",
    ),
    AGE,
    wide("VolumeMode", "A file system, or a device."),
];

pub(super) fn claim(object: &Object, now: Now) -> Vec<Value> {
    let phase = if object.is_terminating() {
        "Terminating"
    } else {
        object.str_at("/status/phase")
    };
    vec![
        json!(object.name()),
        json!(phase),
        json!(object.str_at("/spec/volumeName")),
        json!(object.str_at("/status/capacity/storage")),
        json!(access_modes(object, "/status/accessModes")),
        json!(object.str_at("/spec/storageClassName")),
        json!(or_unset(object.str_at("/spec/volumeAttributesClassName"))),
        json!(now.age(object)),
        json!(object.str_at("/spec/volumeMode")),
    ]
}

pub(super) const VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "Its size."),
    column("Access Modes", "How it may be mounted."),
    column("Reclaim Policy", "What becomes of it when its claim goes."),
    column("Status", "Whether it is bound."),
    column("Claim", "The claim that it is bound to."),
    column("StorageClass", "Its class."),
    column("VolumeAttributesClass", "Class of its attributes."),
    column("Reason", "Why it is in this status."),
    AGE,
    wide("VolumeMode", "A file system, or a device."),
];

pub(super) fn volume(object: &Object, now: Now) -> Vec<Value> {
    let phase = if object.is_terminating() {
        "Terminating"
    } else {
        object.str_at("/status/phase")
    };
    let claim = match object.str_at("/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", object.str_at("/spec/claimRef/namespace")),
    };
    vec![
        json!(object.name()),
        json!(object.str_at("/spec/capacity/storage")),
        json!(access_modes(object, "/spec/accessModes")),
        json!(object.str_at("/spec/persistentVolumeReclaimPolicy")),
        json!(phase),
        json!(claim),
        json!(object.str_at("/spec/storageClassName")),
        json!(or_unset(object.str_at("/spec/volumeAttributesClassName"))),
        json!(object.str_at("/status/reason")),
        json!(now.age(object)),
        json!(object.str_at("/spec/volumeMode")),
    ]
}

pub(super) const STORAGE_CLASS: &[Column] = &[
    NAME,
    column("Provisioner", "Who makes the volumes."),
    column("ReclaimPolicy", "What becomes of a volume when its claim goes."),
    column("VolumeBindingMode", "When volumes are made."),
    column("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];

pub(super) fn storage_class(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(name_of_default(
            object,
            "storageclass.kubernetes.io/is-default-class"
        )),
        json!(object.str_at("/provisioner")),
        json!(object.str_at("/reclaimPolicy")),
        json!(object.str_at("/volumeBindingMode")),
        json!(is_true(object, "/allowVolumeExpansion")),
        json!(now.age(object)),
    ]
}

pub(super) const INGRESS_CLASS: &[Column] = &[
    NAME,
    column("Controller", "Who serves ingresses of the class."),
    column("Parameters", "The object with more of its configuration."),
    AGE,
];

pub(super) fn ingress_class(object: &Object, now: Now) -> Vec<Value> {
    let part = |field: &str| object.str_at(&format!("/spec/parameters/{field}"));
    let parameters = match (part("apiGroup"), part("kind"), part("name")) {
        (_, "", _) => String::new(),
        ("", kind, name) => format!("{kind}/{name}"),
        (group, kind, name) => format!("{kind}.{group}/{name}"),
    };
    vec![
        json!(name_of_default(
            object,
            "ingressclass.kubernetes.io/is-default-class"
        )),
        json!(object.str_at("/spec/controller")),
        json!(or_none(parameters)),
        json!(now.age(object)),
    ]
}

pub(super) const NETWORK_POLICY: &[Column] =
    &[NAME, column("Pod-Selector", "Labels of the pods it is for."), AGE];

pub(super) fn network_policy(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(object.name()),
        json!(selector_text(object.pointer("/spec/podSelector"))),
        json!(now.age(object)),
    ]
}

pub(super) const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    column("Min Available", "Pods that must stay."),
    column("Max Unavailable", "Pods that may be missing."),
    integer("Allowed Disruptions", "Pods that may be evicted now."),
    AGE,
];

pub(super) fn disruption_budget(object: &Object, now: Now) -> Vec<Value> {
    let limit = |field: &str| match object.pointer(&format!("/spec/{field}")) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "N/A".to_owned(),
    };
    let allowed = object.pointer("/status/disruptionsAllowed");
    vec![
        json!(object.name()),
        json!(limit("minAvailable")),
        json!(limit("maxUnavailable")),
        allowed.cloned().unwrap_or_else(|| json!(0)),
        json!(now.age(object)),
    ]
}

pub(super) const PRIORITY_CLASS: &[Column] = &[
    NAME,
    integer("Value", "The higher, the more important."),
    column("Global-Default", "Whether pods without a class are of this one."),
    AGE,
    column("PreemptionPolicy", "Whether its pods take the place of others."),
];

pub(super) fn priority_class(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(object.name()),
        object.pointer("/value").cloned().unwrap_or_else(|| json!(0)),
        json!(is_true(object, "/globalDefault")),
        json!(now.age(object)),
        json!(object.str_at("/preemptionPolicy")),
    ]
}

pub(super) const LEASE: &[Column] = &[NAME, column("Holder", "Who holds it."), AGE];

pub(super) fn lease(object: &Object, now: Now) -> Vec<Value> {
    vec![
        json!(object.name()),
        json!(object.str_at("/spec/holderIdentity")),
        json!(now.age(object)),
    ]
}

fn count(object: &Object, pointer: &str) -> usize {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.map_or(0, |map| map.len())
}

fn is_true(object: &Object, pointer: &str) -> bool {
    object.pointer(pointer) == Some(&Value::Bool(true))
}

fn or_unset(text: &str) -> &str {
    if text.is_empty() { UNSET } else { text }
}

fn name_of_default(object: &Object, annotation: &str) -> String {
    let annotations = object.pointer("/metadata/annotations");
    let is_default = annotations
        .and_then(|all| all.get(annotation))
        .is_some_and(|value| value == "true");
    if is_default {
        format!("{} (default)", object.name())
    } else {
        object.name().to_owned()
    }
}

/// `RWO,ROX`, in Kubernetes' order and each once.
fn access_modes(object: &Object, pointer: &str) -> String {
    const SHORT: &[(&str, &str)] = &[
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes = array(object, pointer);
    let named = SHORT
        .iter()
        .filter(|(mode, _)| modes.iter().any(|value| value == mode));
    named.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}
