//! How an edit of what is shown becomes an edit of what is stored. Pure.
//!
//! Clients see objects with defaults filled in and send them back whole. Only what they changed shall be stored: edits
//! of different fields then never undo one another, and defaults stay defaults.

use schemas::{Kind, Object, meta};
use serde_json::{Map, Value};

/// The half of an object that a request writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// All but `status`, for kinds that have one.
    Main,
    Status,
}

/// Returns what an edit leaves of the object: `edited`, with the system's metadata and the half that the request does
/// not write as in `base`.
pub(super) fn confined(base: &Object, mut edited: Object, part: Part, has_status: bool) -> Object {
    let keep = |edited: &mut Object, path: &[&str]| {
        let pointer = format!("/{}", path.join("/"));
        match base.pointer(&pointer) {
            Some(value) => edited.set(path, value.clone()),
            None => {
                edited.remove(path);
            }
        }
    };
    if part == Part::Status {
        let mut whole = base.clone();
        match edited.0.remove("status") {
            Some(status) => whole.set(&["status"], status),
            None => {
                whole.remove(&["status"]);
            }
        }
        return whole;
    }
    // Who owns what can be said anew; by nothing, nothing is said.
    let said = edited.remove(&["metadata", "managedFields"]);
    for field in meta::NAME_FIELDS.into_iter().chain(meta::SERVER_FIELDS) {
        keep(&mut edited, &["metadata", field]);
    }
    if let Some(said) = said.filter(|said| !said.is_null()) {
        edited.set(&["metadata", "managedFields"], said);
    }
    if has_status {
        keep(&mut edited, &["status"]);
    } else {
        // Only what is merged and not valid shows one.
        edited.remove(&["status"]);
    }
    edited
}

/// Returns the document to store, given the stored one, what was shown of it and what the client made of that.
///
/// Where storing the difference alone would show something else (a default that hangs on a field that changed: the pull
/// policy on the image), the edit is stored as it is, as Kubernetes does; but for a status that it leaves alone.
pub(super) fn stored(raw: &Object, shown: &Object, edited: &Object) -> Object {
    let candidate = Object(transfer_map(&raw.0, &shown.0, &edited.0));
    if schemas::validate::defaulted(&candidate) == *edited {
        candidate
    } else {
        let mut whole = edited.clone();
        if shown.pointer("/status") == edited.pointer("/status") {
            whole.remove(&["status"]);
            if let Some(status) = raw.pointer("/status") {
                whole.set(&["status"], status.clone());
            }
        }
        whole
    }
}

/// [`stored`] for computed objects, of which only what the client changed becomes a document.
pub(super) fn stored_beside(raw: &Object, shown: &Object, edited: &Object) -> Object {
    Object(transfer_map(&raw.0, &shown.0, &edited.0))
}

fn transfer_map(
    raw: &Map<String, Value>,
    shown: &Map<String, Value>,
    edited: &Map<String, Value>,
) -> Map<String, Value> {
    let mut result = Map::new();
    for (key, value) in edited {
        let kept = match shown.get(key) {
            Some(before) if before == value => raw.get(key).cloned(),
            Some(before) => Some(transfer(raw.get(key), before, value)),
            None => Some(value.clone()),
        };
        if let Some(kept) = kept {
            result.insert(key.clone(), kept);
        }
    }
    result
}

fn transfer(raw: Option<&Value>, shown: &Value, edited: &Value) -> Value {
    match (raw, shown, edited) {
        (None, Value::Object(shown), Value::Object(edited)) => {
            Value::Object(transfer_map(&Map::new(), shown, edited))
        }
        (Some(Value::Object(raw)), Value::Object(shown), Value::Object(edited)) => {
            Value::Object(transfer_map(raw, shown, edited))
        }
        // Defaults neither add nor move elements: equal positions are the same element.
        (Some(Value::Array(raw)), Value::Array(shown), Value::Array(edited))
            if raw.len() == shown.len() && shown.len() == edited.len() =>
        {
            let pairs = raw.iter().zip(shown).zip(edited);
            pairs
                .map(|((raw, shown), edited)| {
                    if shown == edited {
                        raw.clone()
                    } else {
                        transfer(Some(raw), shown, edited)
                    }
                })
                .collect()
        }
        _ => edited.clone(),
    }
}

/// Removes what says nothing: nulls, and empty collections of metadata, which Kubernetes neither keeps nor shows.
pub(crate) fn tidied(mut object: Object) -> Object {
    schemas::tidy_values(&mut object);
    remove_nulls(&mut object.0);
    if let Some(Value::Object(metadata)) = object.0.get_mut("metadata") {
        for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
            let empty = match metadata.get(field) {
                Some(Value::Object(map)) => map.is_empty(),
                Some(Value::Array(list)) => list.is_empty(),
                _ => false,
            };
            if empty {
                metadata.remove(field);
            }
        }
    }
    object
}

fn remove_nulls(map: &mut Map<String, Value>) {
    map.retain(|_, value| !value.is_null());
    for value in map.values_mut() {
        remove_nulls_below(value);
    }
}

fn remove_nulls_below(value: &mut Value) {
    match value {
        Value::Object(map) => remove_nulls(map),
        Value::Array(list) => list.iter_mut().for_each(remove_nulls_below),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Removes what a client cannot say of an object that it makes or applies.
pub(crate) fn cleaned(kind: Kind, mut object: Object) -> Object {
    for field in meta::SERVER_FIELDS {
        object.remove(&["metadata", field]);
    }
    object.remove(&["status"]);
    if !kind.is_namespaced() {
        object.remove(&["metadata", "namespace"]);
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn only_what_the_client_changed_is_stored() {
        let check = |raw: Value, shown: Value, edited: Value, expected: Value| {
            let result = stored_beside(&object(raw), &object(shown), &object(edited));
            assert_eq!(result.into_value(), expected);
        };
        // A default that was shown and came back stays unsaid.
        check(
            json!({"a": 1}),
            json!({"a": 1, "d": 5}),
            json!({"a": 2, "d": 5}),
            json!({"a": 2}),
        );
        // One that was changed is said.
        check(
            json!({"a": 1}),
            json!({"a": 1, "d": 5}),
            json!({"a": 1, "d": 6}),
            json!({"a": 1, "d": 6}),
        );
        // What was taken away is gone.
        check(
            json!({"a": 1, "b": 2}),
            json!({"a": 1, "b": 2}),
            json!({"a": 1}),
            json!({"a": 1}),
        );
        // In lists, element by element.
        check(
            json!({"l": [{"n": "x"}, {"n": "y"}]}),
            json!({"l": [{"n": "x", "d": 1}, {"n": "y", "d": 1}]}),
            json!({"l": [{"n": "x", "d": 1}, {"n": "z", "d": 1}]}),
            json!({"l": [{"n": "x"}, {"n": "z"}]}),
        );
        // Below a map that is all default.
        check(
            json!({}),
            json!({"m": {"a": 1, "b": 1}}),
            json!({"m": {"a": 2, "b": 1}}),
            json!({"m": {"a": 2}}),
        );
    }

    #[test]
    fn what_says_nothing_goes() {
        let noisy = object(
            json!({"metadata": {"labels": {}, "finalizers": [], "creationTimestamp": null},
            "spec": {"emptyDir": {}, "list": [{"a": null, "b": 1}]}}),
        );
        let expected = json!({"metadata": {}, "spec": {"emptyDir": {}, "list": [{"b": 1}]}});
        assert_eq!(tidied(noisy).into_value(), expected);
    }

    #[test]
    fn an_edit_changes_one_half_and_no_system_metadata() {
        let base = object(json!({"metadata": {"name": "a", "uid": "1"}, "spec": 1, "status": 1}));
        let edited = object(json!({"metadata": {"name": "b", "labels": {"x": "y"}}, "spec": 2, "status": 2}));
        assert_eq!(
            confined(&base, edited.clone(), Part::Main, true).into_value(),
            json!({"metadata": {"name": "a", "uid": "1", "labels": {"x": "y"}}, "spec": 2, "status": 1}),
        );
        assert_eq!(
            confined(&base, edited, Part::Status, true).into_value(),
            json!({"metadata": {"name": "a", "uid": "1"}, "spec": 1, "status": 2}),
        );
    }
}
