//! Putting defaults into a JSON tree, and the steps from a map to the maps in it.

use serde_json::{Map, Value};

pub(crate) type Tree = Map<String, Value>;

/// Sets a field that is absent or null.
pub(crate) fn set(map: &mut Tree, field: &str, value: impl Into<Value>) {
    let slot = map.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// Sets a text that is absent, null or empty: of most texts, Kubernetes cannot tell these apart.
pub(crate) fn set_text(map: &mut Tree, field: &str, value: &str) {
    if map.get(field).is_none_or(|value| value.is_null() || value == "") {
        map.insert(field.to_owned(), value.into());
    }
}

/// Returns the map in a field, if it is one.
pub(crate) fn map<'a>(map: &'a mut Tree, field: &str) -> Option<&'a mut Tree> {
    map.get_mut(field)?.as_object_mut()
}

/// Returns the map in a field, made if absent; None if something else is there.
pub(crate) fn make<'a>(map: &'a mut Tree, field: &str) -> Option<&'a mut Tree> {
    set(map, field, Tree::new());
    map.get_mut(field)?.as_object_mut()
}

/// Puts what Kubernetes shows as the `status` of an object that no controller has looked at: Go's zeros.
pub(crate) fn status(root: &mut Tree, counts: &[&str]) {
    if let Some(status) = make(root, "status") {
        counts.iter().for_each(|count| set(status, count, 0));
    }
}

/// Returns the maps in the list in a field.
pub(crate) fn each<'a>(map: &'a mut Tree, field: &str) -> impl Iterator<Item = &'a mut Tree> {
    let list = map.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

pub(crate) fn text<'a>(map: &'a Tree, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}
