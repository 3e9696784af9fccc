//! Volumes, claims on them and their classes: defaults and validation.

use serde_json::Value;

use crate::choices;
use crate::defaults::{self, Tree};
use crate::names;
use crate::node::{Errors, Node};
use crate::quantity::Quantity;
use crate::{Kind, fields};

/// What a volume can be.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Puts the defaults into a PersistentVolumeClaim.
pub(crate) fn default_claim(root: &mut Tree) {
    if let Some(spec) = defaults::make(root, "spec") {
        defaults::set_text(spec, "volumeMode", "Filesystem");
    }
}

/// Puts the defaults into a PersistentVolume.
pub(crate) fn default_volume(root: &mut Tree) {
    if let Some(spec) = defaults::make(root, "spec") {
        defaults::set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        defaults::set_text(spec, "volumeMode", "Filesystem");
        if let Some(path) = defaults::map(spec, "hostPath") {
            defaults::set(path, "type", "");
        }
    }
}

/// Puts the defaults into a StorageClass.
pub(crate) fn default_class(root: &mut Tree) {
    defaults::set_text(root, "reclaimPolicy", "Delete");
    defaults::set_text(root, "volumeBindingMode", "Immediate");
}

/// Checks the spec of a PersistentVolumeClaim.
pub(crate) fn validate_claim(spec: &Node<'_>, errors: &mut Errors) {
    validate_access_modes(&spec.at("accessModes"), errors);
    let storage = spec.at("resources").at("requests").at("storage");
    validate_storage(&storage, errors);
    errors.one_of(&spec.at("volumeMode"), choices::VOLUME_MODES);
    validate_class_name(&spec.at("storageClassName"), errors);
    crate::networking::validate_selector(&spec.at("selector"), errors);
}

/// Checks the spec of a PersistentVolume.
pub(crate) fn validate_volume(spec: &Node<'_>, errors: &mut Errors) {
    validate_access_modes(&spec.at("accessModes"), errors);
    let capacity = spec.at("capacity");
    let names: Vec<&String> = capacity.map().into_iter().flat_map(|map| map.keys()).collect();
    match names.as_slice() {
        [] => errors.required(&capacity, ""),
        [name] if *name == "storage" => validate_storage(&capacity.at("storage"), errors),
        _ => errors.not_supported(&capacity, &["storage"]),
    }
    errors.one_of(&spec.at("volumeMode"), choices::VOLUME_MODES);
    errors.one_of(
        &spec.at("persistentVolumeReclaimPolicy"),
        choices::RECLAIM_POLICIES,
    );
    validate_class_name(&spec.at("storageClassName"), errors);
    match SOURCES.iter().filter(|name| spec.at(name).is_set()).count() {
        0 => errors.required(spec, "must specify a volume type"),
        1 => {}
        _ => errors.forbidden(spec, "may not specify more than 1 volume type"),
    }
    let path = spec.at("hostPath").at("path");
    if spec.at("hostPath").is_set() && path.text().is_empty() {
        errors.required(&path, "");
    }
}

/// Checks a StorageClass.
pub(crate) fn validate_class(root: &Node<'_>, errors: &mut Errors) {
    let provisioner = root.at("provisioner");
    if provisioner.text().is_empty() {
        errors.required(&provisioner, "");
    }
    errors.one_of(&root.at("reclaimPolicy"), &["Delete", "Retain"]);
    errors.one_of(&root.at("volumeBindingMode"), choices::VOLUME_BINDINGS);
}

/// Checks a change of a claim.
pub(crate) fn validate_claim_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    let is_bound = new.at("status").at("phase").text() == "Bound";
    let (old, new) = (&old.at("spec"), &new.at("spec"));
    // A volume and a class, once they are said.
    let keeps = |name: &str| match name {
        "volumeName" => !old.at(name).text().is_empty(),
        "storageClassName" => old.at(name).is_set(),
        "volumeAttributesClassName" => !is_bound,
        "resources" => false,
        _ => is_fixed(Kind::PersistentVolumeClaim, name),
    };
    // A volume that is there can grow.
    let amounts = |node: &Node<'_>| {
        let mut amounts = node.at("resources").value.clone();
        if let (true, Some(Value::Object(requests))) = (is_bound, amounts.get_mut("requests")) {
            requests.remove("storage");
        }
        amounts
    };
    if part(old, keeps) != part(new, keeps) || amounts(old) != amounts(new) {
        errors.forbidden(
            new,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let storage = |node: &Node<'_>| {
        let storage = node.at("resources").at("requests").at("storage");
        Quantity::from_json(storage.value).map_or(0, Quantity::value)
    };
    if storage(new) < storage(old) {
        errors.forbidden(
            &new.at("resources").at("requests").at("storage"),
            "field can not be less than previous value",
        );
    }
}

/// Checks a change of a volume's spec.
pub(crate) fn validate_volume_update(old: &Node<'_>, new: &Node<'_>, errors: &mut Errors) {
    let keeps = |name: &str| is_fixed(Kind::PersistentVolume, name);
    if part(old, keeps) != part(new, keeps) {
        errors.forbidden(new, "spec.persistentvolumesource is immutable after creation");
    }
    // It can be said later, and not again.
    let (old, new) = (old.at("nodeAffinity"), new.at("nodeAffinity"));
    if old.is_set() && old.value != new.value {
        errors.invalid(&new, "field is immutable");
    }
}

fn is_fixed(kind: Kind, name: &str) -> bool {
    fields::is_immutable(kind, &["spec", name])
}

/// The fields of a map that `keeps` names, for comparison.
pub(crate) fn part<'a>(node: &Node<'a>, keeps: impl Fn(&str) -> bool) -> Vec<(&'a String, &'a Value)> {
    let all = node.map().into_iter().flatten();
    all.filter(|(name, value)| !value.is_null() && keeps(name))
        .collect()
}

fn validate_access_modes(modes: &Node<'_>, errors: &mut Errors) {
    if modes.is_empty_list() {
        errors.required(modes, "at least 1 access mode is required");
    }
    modes
        .items()
        .for_each(|mode| errors.one_of(&mode, choices::ACCESS_MODES));
    let is_alone = modes.items().count() < 2;
    if !is_alone && modes.items().any(|mode| mode.text() == "ReadWriteOncePod") {
        errors.forbidden(modes, "may not use ReadWriteOncePod with other access modes");
    }
}

fn validate_storage(storage: &Node<'_>, errors: &mut Errors) {
    if !storage.is_set() {
        return errors.required(storage, "");
    }
    if Quantity::from_json(storage.value).is_ok_and(|size| size.is_negative() || size.millis() == 0) {
        errors.invalid(storage, "must be greater than zero");
    }
}

fn validate_class_name(name: &Node<'_>, errors: &mut Errors) {
    if !name.text().is_empty() {
        errors.form(name, names::dns_subdomain);
    }
}
