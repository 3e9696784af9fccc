//! `metadata.managedFields`: the owners of a document's leaves as Kubernetes shows them, and what a client makes of them. Pure.
//!
//! Entries have no time. A document does not hold it of each owner: an ownership leaf is `true`, and nodes of earlier versions
//! refuse all changes of who puts anything else there. The times of the changes that wrote the leaves would do until they are
//! squashed, which happens to each history, and at another time on each node: an object's text would change without a new version.
//! What is projected over a document belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::{Kind, Object, meta};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::document::Contents;
use crate::field_set::{FieldSet, fields_of};
use crate::json;
use crate::leaves::Leaves;
use crate::owners::{MAX_MANAGER_BYTES, Operation, Owner, Owners};
use crate::path;

/// The longest text that an apply may make: with an object of the largest size (1 MiB over HTTP) it fits in the body of a request
/// (3 MiB, as in Kubernetes), so that what is read can be sent back.
const MAX_BYTES: usize = 2 << 20;

const FIELDS_TYPE: &str = "FieldsV1";

/// One entry, its fields in Kubernetes' order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    manager: &'a str,
    operation: &'static str,
    api_version: String,
    fields_type: &'static str,
    fields_v1: FieldSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    subresource: Option<&'a str>,
}

/// Returns `managedFields` of a document as JSON; None, if nobody owns anything.
pub(crate) fn shown(kind: Kind, contents: &Contents) -> Option<Arc<str>> {
    let entries = entries(kind, contents);
    if entries.is_empty() {
        return None;
    }
    String::from_utf8(json::to_vec(&entries)).ok().map(Arc::from)
}

/// Says why an apply that makes the text grow from so many bytes to so many cannot be stored, if it cannot. Managers that update
/// are merged when they are many; those that apply are not, and own what they named last for good.
pub(crate) fn check_size(before: usize, after: usize) -> Result<(), String> {
    if after <= MAX_BYTES || after <= before {
        return Ok(());
    }
    Err(format!(
        "metadata.managedFields would have {after} bytes, at most {MAX_BYTES} are kept: take out managers that no longer apply it \
         (a patch of metadata.managedFields; [{{}}] takes out all)"
    ))
}

/// Puts `managedFields` into an object that is made of a document.
pub(crate) fn show_in(object: &mut Object, kind: Kind, contents: &Contents) {
    let entries = entries(kind, contents);
    if !entries.is_empty() {
        // Maps with text keys can be written.
        let entries = serde_json::to_value(&entries).unwrap_or_default();
        object.set(&["metadata", "managedFields"], entries);
    }
}

/// Applies come before updates, as in Kubernetes.
fn entries(kind: Kind, contents: &Contents) -> Vec<Entry<'_>> {
    let mut sets: BTreeMap<&Owner, FieldSet> = BTreeMap::new();
    fields_of(kind, &contents.leaves, &mut |leaf, steps| {
        if is_of_deletion(leaf) {
            return;
        }
        for owner in contents.owners.named(leaf) {
            sets.entry(owner).or_default().insert(steps);
        }
    });
    let entries = sets.into_iter().map(|(owner, fields_v1)| {
        let (manager, subresource) = meta::split_manager(&owner.manager);
        Entry {
            manager,
            operation: match owner.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            },
            api_version: kind.row().api_version(),
            fields_type: FIELDS_TYPE,
            fields_v1,
            subresource,
        }
    });
    entries.collect()
}

/// That an object goes is a part of its document, and of nobody's fields.
fn is_of_deletion(leaf: &str) -> bool {
    let (parent, name) = path::split_last(leaf);
    parent == "metadata" && meta::DELETION_FIELDS.contains(&name)
}

/// Returns who owns what, if a client says so by `managedFields`; None, if it says nothing that can be understood, which
/// leaves all as it is. An empty list, or one empty entry, takes everything from its owners. All as in Kubernetes.
pub(crate) fn assigned(kind: Kind, leaves: &Leaves, owners: &Owners, said: &Value) -> Option<Owners> {
    let said = said.as_array()?;
    let sets: BTreeMap<Owner, Vec<FieldSet>> = match said.as_slice() {
        [one] if is_empty(one) => BTreeMap::new(),
        entries if entries.len() > meta::MANAGED_FIELDS_MAX => return None,
        entries => {
            let mut sets: BTreeMap<Owner, Vec<FieldSet>> = BTreeMap::new();
            for entry in entries {
                let (owner, set) = parse(entry)?;
                sets.entry(owner).or_default().push(set);
            }
            sets
        }
    };
    let mut claimed: BTreeMap<String, BTreeSet<Owner>> = BTreeMap::new();
    fields_of(kind, leaves, &mut |leaf, steps| {
        if is_of_deletion(leaf) {
            return;
        }
        let named = sets
            .iter()
            .filter(|(_, sets)| sets.iter().any(|set| set.contains(steps)));
        let claims = claimed.entry(leaf.to_owned()).or_default();
        claims.extend(named.map(|(owner, _)| owner.clone()));
    });
    let mut result = owners.clone();
    for (leaf, mut claims) in claimed {
        if claims.is_empty() {
            claims.insert(Owner::nobody());
        }
        result.set(&leaf, claims);
    }
    Some(result)
}

fn is_empty(entry: &Value) -> bool {
    let is_nothing = |value: &Value| value.is_null() || value == "";
    entry
        .as_object()
        .is_some_and(|entry| entry.values().all(is_nothing))
}

fn parse(entry: &Value) -> Option<(Owner, FieldSet)> {
    let entry: &Map<String, Value> = entry.as_object()?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let operation = match text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    // Such a name is another manager's.
    if meta::split_manager(text("manager")).1.is_some() {
        return None;
    }
    let manager = match text("subresource") {
        part if meta::OWNED_APART.contains(&part) => meta::manager_through(text("manager"), part),
        _ => text("manager").to_owned(),
    };
    if text("apiVersion").is_empty() || text("fieldsType") != FIELDS_TYPE {
        return None;
    }
    // In a path it is written with escapes.
    if path::field(&manager).len() > MAX_MANAGER_BYTES {
        return None;
    }
    let set = FieldSet::parse(entry.get("fieldsV1").unwrap_or(&Value::Null)).ok()?;
    Some((Owner::new(operation, &manager), set))
}
