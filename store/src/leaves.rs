//! Between an object's tree and its leaves: the flat map from path to scalar that a document holds. Pure.
//!
//! A scalar is itself; a value that merges as a whole (an atomic list or map, a register group, an empty map or list)
//! is JSON in bytes, its keys sorted. An element of a list that merges has a presence leaf and, under its number, its order and fields
//! (see `path.rs`). A leaf that is no empty map or list hides what lies below its path, so that every set of leaves
//! has a meaning, whatever was merged. Materialising needs the leaves alone; only flattening asks `schemas::fields`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use automerge::ScalarValue;
use schemas::fields::{self, ListRule};
use schemas::{Kind, Object, meta};
use serde_json::{Map, Number, Value};

use crate::json;
use crate::order;
use crate::path::{self, Element, Role, Token};

/// The leaves of one object, by path. The register group of immutable fields is unpacked in it.
pub(crate) type Leaves = BTreeMap<String, ScalarValue>;

/// The deepest object, lists included; Kubernetes' own types stay under 20, CRDs under 40.
pub(crate) const MAX_DEPTH: usize = 64;
/// The largest object as JSON: 1 MiB of data (a ConfigMap's limit in Kubernetes) and room for the rest, as etcd has.
pub(crate) const MAX_OBJECT_BYTES: usize = 3 << 19;

/// The longest merge key of an element: names have 253 characters, paths of mounts some more.
const MAX_IDENTITY_BYTES: usize = 1024;

/// What the smallest change from one set of leaves to another is made of.
#[derive(Default, Debug, PartialEq)]
pub(crate) struct Edits {
    pub(crate) puts: Vec<(String, ScalarValue)>,
    pub(crate) deletes: Vec<String>,
}

impl Edits {
    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }
}

// ---------------------------------------------------------------- flattening

/// Removes what the store itself says in an object: key, uid, revision and the like.
pub(crate) fn strip_system_fields(object: &mut Object) {
    object.0.remove("apiVersion");
    object.0.remove("kind");
    if let Some(Value::Object(metadata)) = object.0.get_mut("metadata") {
        metadata.retain(|name, _| !is_said_by_store(name));
        if metadata.is_empty() {
            object.0.remove("metadata");
        }
    }
}

fn is_said_by_store(field: &str) -> bool {
    let said = meta::NAME_FIELDS.contains(&field) || meta::SERVER_FIELDS.contains(&field);
    said && !meta::DELETION_FIELDS.contains(&field)
}

/// Counts the levels of a value: one for a scalar.
fn depth(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Says why an object cannot be stored, if it cannot.
pub(crate) fn check_limits(object: &Object) -> Result<(), String> {
    let deepest = object.0.values().map(depth).max().unwrap_or(0);
    if deepest > MAX_DEPTH {
        return Err(format!("nested {deepest} deep, at most {MAX_DEPTH} are stored"));
    }
    let bytes = json::len(object);
    if bytes > MAX_OBJECT_BYTES {
        return Err(format!(
            "{bytes} bytes as JSON, at most {MAX_OBJECT_BYTES} are stored"
        ));
    }
    Ok(())
}

/// Lays an object (without system fields) out as leaves; `existing` are the leaves of the document that it will be
/// written to, from which elements keep their number and order.
pub(crate) fn flatten(kind: Kind, object: &Object, existing: &Leaves) -> Leaves {
    Flattening::run(kind, object, existing, false)
}

/// As [`flatten`], of an object beside whose elements others stay: new elements at the end of a list come after them.
pub(crate) fn flatten_named(kind: Kind, object: &Object, existing: &Leaves) -> Leaves {
    Flattening::run(kind, object, existing, true)
}

struct Flattening<'a> {
    kind: Kind,
    existing: &'a Leaves,
    /// Existing elements that the object does not name stay.
    others_stay: bool,
    leaves: Leaves,
}

impl<'a> Flattening<'a> {
    fn run(kind: Kind, object: &'a Object, existing: &'a Leaves, others_stay: bool) -> Leaves {
        let mut flattening = Self {
            kind,
            existing,
            others_stay,
            leaves: Leaves::new(),
        };
        flattening.map("", &object.0, &mut Vec::new());
        flattening.leaves
    }

    fn put(&mut self, path: String, value: ScalarValue) {
        self.leaves.insert(path, value);
    }

    fn map(&mut self, parent: &str, map: &'a Map<String, Value>, names: &mut Vec<&'a str>) {
        let union = fields::union_at(self.kind, names);
        let in_union = |name: &str| {
            union.is_some_and(|union| union.members.contains(&name) || union.discriminator == Some(name))
        };
        let members: BTreeMap<&String, &Value> = map.iter().filter(|(name, _)| in_union(name)).collect();
        if !members.is_empty() {
            self.put(path::child(parent, path::UNION), whole(&members));
        }
        for (name, value) in map.iter().filter(|(name, _)| !in_union(name)) {
            names.push(name);
            self.value(path::child(parent, &path::field(name)), value, names);
            names.pop();
        }
    }

    fn value(&mut self, path: String, value: &'a Value, names: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) if !map.is_empty() && !fields::is_atomic_map(self.kind, names) => {
                self.map(&path, map, names);
            }
            Value::Array(list) if !list.is_empty() => match identities(self.kind, names, list) {
                Some(identities) => self.elements(&path, list, identities, names),
                None => self.put(path, whole(value)),
            },
            other => self.put(path, scalar(other)),
        }
    }

    fn elements(
        &mut self,
        list_path: &str,
        list: &'a [Value],
        identities: Vec<String>,
        names: &mut Vec<&'a str>,
    ) {
        let existing = self.existing;
        let numbers: Vec<u32> = identities
            .iter()
            .map(|identity| number_for(existing.get(&path::child(list_path, identity))))
            .collect();
        let paths: Vec<String> = identities
            .iter()
            .zip(&numbers)
            .map(|(identity, number)| path::child(list_path, &path::numbered(identity, *number)))
            .collect();
        let mut placed: Vec<(&str, Option<&str>)> = identities
            .iter()
            .zip(&paths)
            .map(|(identity, path)| (identity.as_str(), order_at(existing, path)))
            .collect();
        let old = placed
            .iter()
            .rposition(|(_, order)| order.is_some())
            .map_or(0, |last| last + 1);
        let last = if self.others_stay && old < placed.len() {
            last_element(existing, list_path)
        } else {
            None
        };
        // It may be one of those that are named, which then has its place.
        let last = last.filter(|(identity, _)| placed[..old].iter().all(|(named, _)| named != identity));
        if let Some((identity, order)) = last {
            placed.insert(old, (identity, Some(order)));
        }
        let mut orders = order::assign(&placed);
        if last.is_some() {
            orders.remove(old);
        }
        let one_value = fields::is_atomic_map(self.kind, names);
        for (index, element) in list.iter().enumerate() {
            self.put(
                path::child(list_path, &identities[index]),
                ScalarValue::Int(i64::from(numbers[index])),
            );
            self.put(
                paths[index].clone(),
                ScalarValue::Str(orders[index].as_str().into()),
            );
            match element {
                Value::Object(_) if one_value => {
                    self.put(path::child(&paths[index], path::ELEMENT), whole(element))
                }
                Value::Object(map) => self.map(&paths[index], map, names),
                // A set's element is its own value.
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
            }
        }
    }
}

/// Returns what tells the elements of a list apart; None if the list is one value: by its rule, or because an element
/// lacks its key or has one that is no name.
fn identities(kind: Kind, names: &[&str], list: &[Value]) -> Option<Vec<String>> {
    let plain: Vec<String> = match fields::list_rule(kind, names) {
        ListRule::Atomic => return None,
        ListRule::Set => list
            .iter()
            .map(|element| Some(path::set_element(element.as_str()?)))
            .collect::<Option<_>>()?,
        ListRule::Keyed { keys } => list
            .iter()
            .map(|element| {
                let map = element.as_object()?;
                let values: Vec<Cow<'_, str>> = keys
                    .iter()
                    .map(|key| match map.get(key.field) {
                        Some(Value::String(text)) => Some(Cow::Borrowed(text.as_str())),
                        Some(Value::Number(number)) => Some(Cow::Owned(number.to_string())),
                        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => None,
                        None => key.default.map(Cow::Borrowed),
                    })
                    .collect::<Option<_>>()?;
                Some(path::keyed(values.into_iter()))
            })
            .collect::<Option<_>>()?,
    };
    if plain.iter().any(|identity| identity.len() > MAX_IDENTITY_BYTES) {
        return None;
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let identities = plain.iter().map(|identity| {
        let count = seen.entry(identity).or_insert(0);
        *count += 1;
        path::duplicate(identity, *count)
    });
    Some(identities.collect())
}

/// Returns the order of an element, given the path of its content.
fn order_at<'a>(existing: &'a Leaves, content: &str) -> Option<&'a str> {
    let order = existing.get(content).and_then(text);
    order.filter(|order| order::is_valid(order))
}

/// Returns identity and order of the last element that is in a list.
fn last_element<'a>(existing: &'a Leaves, list_path: &str) -> Option<(&'a str, &'a str)> {
    let prefix = format!("{list_path}/");
    let below = existing.range(prefix.clone()..);
    let elements = below
        .take_while(|(path, _)| path.starts_with(&prefix))
        .filter_map(|(path, value)| {
            let (identity, ScalarValue::Int(number @ 1..)) = (&path[prefix.len()..], value) else {
                return None;
            };
            let is_presence = !identity.contains('/') && path::role(path) == Role::Presence;
            let order = order_at(existing, &format!("{path}@{number}"))?;
            is_presence.then_some((identity, order))
        });
    elements.max_by_key(|(identity, order)| (*order, *identity))
}

/// Returns the number for an element that is to be there: its own, or the one after that which was removed.
fn number_for(presence: Option<&ScalarValue>) -> u32 {
    match presence {
        Some(ScalarValue::Int(number)) if *number > 0 => u32::try_from(*number).unwrap_or(u32::MAX),
        Some(ScalarValue::Int(removed)) => u32::try_from(removed.unsigned_abs())
            .unwrap_or(u32::MAX)
            .saturating_add(1),
        Some(_) | None => 1,
    }
}

// ---------------------------------------------------------------- differences

/// Tells whether a value only says that a map or list is there, and empty.
pub(crate) fn is_marker(value: &ScalarValue) -> bool {
    matches!(value, ScalarValue::Bytes(bytes) if matches!(bytes.as_slice(), b"{}" | b"[]"))
}

/// Returns the leaves below a path.
pub(crate) fn below<'a>(
    leaves: &'a Leaves,
    path: &str,
) -> impl Iterator<Item = (&'a String, &'a ScalarValue)> + use<'a> {
    let prefix = format!("{path}/");
    let start = prefix.clone();
    leaves
        .range(start..)
        .take_while(move |(path, _)| path.starts_with(&prefix))
}

/// Returns the smallest change that makes `desired` of `existing`.
pub(crate) fn diff(existing: &Leaves, desired: &Leaves) -> Edits {
    let mut edits = Edits::default();
    for (path, value) in desired {
        if existing.get(path) != Some(value) {
            edits.puts.push((path.clone(), value.clone()));
        }
    }
    for (path, value) in existing.iter().filter(|(path, _)| !desired.contains_key(*path)) {
        match (path::role(path), value) {
            // Remembered, so that the next element of this key takes the next number. Below an element that is gone
            // itself there is nothing to remember.
            (Role::Presence, ScalarValue::Int(number)) if within_live_elements(path, desired) => {
                if *number > 0 {
                    edits.puts.push((path.clone(), ScalarValue::Int(-number)));
                }
            }
            (Role::Presence | Role::Order | Role::Value, _) => edits.deletes.push(path.clone()),
        }
    }
    edits
}

/// Tells whether every element that `path` leads through is there (with that number).
pub(crate) fn within_live_elements(path: &str, leaves: &Leaves) -> bool {
    let mut ends = path.match_indices('/').map(|(end, _)| end);
    let mut start = 0;
    ends.all(|end| {
        let token = &path[start..end];
        start = end + 1;
        if !token.starts_with(['[', '<']) {
            return true;
        }
        let Some((identity, number)) = path[..end].rsplit_once('@') else {
            return false;
        };
        matches!(leaves.get(identity), Some(ScalarValue::Int(live)) if number == live.to_string())
    })
}

// ---------------------------------------------------------------- register group of immutable fields

/// Puts leaves in the form that the document holds: all immutable fields in one register, so that of two creations at
/// once the winner's are there as a whole.
pub(crate) fn pack(kind: Kind, leaves: Leaves) -> Leaves {
    let (immutable, mut packed): (Leaves, Leaves) =
        leaves.into_iter().partition(|(path, _)| is_immutable(kind, path));
    if !immutable.is_empty() {
        let group: Map<String, Value> = immutable
            .into_iter()
            .map(|(path, value)| (path, to_json(&value)))
            .collect();
        packed.insert(path::IMMUTABLE.to_owned(), whole(&group));
    }
    packed
}

/// Undoes [`pack`]. A leaf beside the group gives way to the group's.
pub(crate) fn unpack(mut packed: Leaves) -> Leaves {
    if let Some(ScalarValue::Bytes(bytes)) = packed.remove(path::IMMUTABLE)
        && let Ok(group) = serde_json::from_slice::<BTreeMap<String, Value>>(&bytes)
    {
        packed.extend(group.iter().map(|(path, value)| (path.clone(), scalar(value))));
    }
    packed
}

fn is_immutable(kind: Kind, leaf: &str) -> bool {
    let mut names: Vec<String> = Vec::new();
    let mut tokens = leaf.split('/').peekable();
    while let Some(token) = tokens.next() {
        match path::parse(token) {
            Some(Token::Field(name)) => names.push(name.into_owned()),
            Some(Token::Group(name)) => names.push(name.to_owned()),
            Some(Token::Element(_)) if tokens.peek().is_none() => {
                // Presence and order of an element are as changeable as its merge key.
                let list: Vec<&str> = names.iter().map(String::as_str).collect();
                if let ListRule::Keyed { keys: [first, ..] } = fields::list_rule(kind, &list) {
                    names.push(first.field.to_owned());
                }
            }
            Some(Token::Element(_)) | None => {}
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fields::is_immutable(kind, &names)
}

// ---------------------------------------------------------------- materialising

/// Makes the tree that leaves stand for, without system fields. Leaves so deep that no tree of ours has them are left out: a
/// disk can hold any path, and a tree is built and dropped by recursion.
pub(crate) fn materialise(leaves: &Leaves) -> Object {
    let mut root = Node::default();
    for (path, value) in leaves.iter().filter(|(path, _)| !path::is_too_deep(path)) {
        let mut node = &mut root;
        for token in path.split('/') {
            node = node.children.entry(token).or_default();
        }
        node.value = Some(value);
    }
    match root.map_or_list() {
        Some(Value::Object(map)) => Object(map),
        _ => Object::default(),
    }
}

#[derive(Default)]
struct Node<'a> {
    value: Option<&'a ScalarValue>,
    children: BTreeMap<&'a str, Node<'a>>,
}

impl Node<'_> {
    fn to_value(&self) -> Option<Value> {
        match self.value.map(to_json) {
            Some(Value::Object(map)) if map.is_empty() => {
                Some(self.map_or_list().unwrap_or(Value::Object(map)))
            }
            Some(Value::Array(list)) if list.is_empty() => {
                Some(self.map_or_list().unwrap_or(Value::Array(list)))
            }
            Some(value) => Some(value),
            None => self.map_or_list(),
        }
    }

    /// Reads the children. Where concurrent writes made both a map and a list, the map hides the list.
    fn map_or_list(&self) -> Option<Value> {
        let mut map = Map::new();
        let mut elements: Vec<(&str, &str, Value)> = Vec::new();
        for (token, child) in &self.children {
            match path::parse(token) {
                Some(Token::Field(name)) => {
                    if let Some(value) = child.to_value() {
                        map.entry(name).or_insert(value);
                    }
                }
                Some(Token::Group(_)) => {
                    if let Some(Value::Object(group)) = child.value.map(to_json) {
                        map.extend(group);
                    }
                }
                Some(Token::Element(element)) => elements.extend(self.element(&element, child)),
                None => {}
            }
        }
        if !map.is_empty() {
            return Some(Value::Object(map));
        }
        elements.sort_by_key(|(identity, order, _)| (*order, *identity));
        let list: Vec<Value> = elements.into_iter().map(|(_, _, value)| value).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// Reads an element from its presence; nothing, if `element` is not a presence or says that it was removed.
    fn element<'a>(
        &'a self,
        element: &Element<'a>,
        presence: &Node<'_>,
    ) -> Option<(&'a str, &'a str, Value)> {
        let Some(ScalarValue::Int(number @ 1..)) = presence.value else {
            return None;
        };
        let content = self
            .children
            .get(format!("{}@{number}", element.identity).as_str());
        let order = content
            .and_then(|content| content.value)
            .and_then(text)
            .unwrap_or_default();
        let value = match &element.set_value {
            Some(value) => Value::String(value.clone().into_owned()),
            None => content
                .and_then(Node::map_or_list)
                .unwrap_or_else(|| Value::Object(Map::new())),
        };
        (element.number.is_none()).then_some((element.identity, order, value))
    }
}

/// Gives a tree's maps, lists and texts the room they need and no more: they are kept, and grow in steps when built.
pub(crate) fn compact(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(compact_map(map)),
        Value::Array(list) => {
            Value::Array(list.into_iter().map(compact).collect::<Box<[Value]>>().into_vec())
        }
        Value::String(text) => Value::String(text.into_boxed_str().into_string()),
        value @ (Value::Null | Value::Bool(_) | Value::Number(_)) => value,
    }
}

/// As [`compact`].
pub(crate) fn compact_map(map: Map<String, Value>) -> Map<String, Value> {
    let mut compacted = Map::with_capacity(map.len());
    compacted.extend(
        map.into_iter()
            .map(|(name, value)| (name.into_boxed_str().into_string(), compact(value))),
    );
    compacted
}

// ---------------------------------------------------------------- values

/// Writes a value that merges as a whole, its keys sorted: equal values have equal bytes, by which they are compared.
fn whole(value: &impl serde::Serialize) -> ScalarValue {
    // Maps with text keys cannot fail to be written.
    let mut value = serde_json::to_value(value).unwrap_or_default();
    value.sort_all_objects();
    ScalarValue::Bytes(json::to_vec(&value))
}

pub(crate) fn scalar(value: &Value) -> ScalarValue {
    match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(*value),
        Value::String(text) => ScalarValue::Str(text.as_str().into()),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), _, _) => ScalarValue::Int(integer),
            (None, Some(integer), _) => ScalarValue::Uint(integer),
            (None, None, Some(float)) => ScalarValue::F64(float),
            (None, None, None) => ScalarValue::Null,
        },
        Value::Array(_) | Value::Object(_) => whole(value),
    }
}

/// Reads a leaf's value; what no version of ours writes is null.
pub(crate) fn to_json(value: &ScalarValue) -> Value {
    match value {
        ScalarValue::Str(text) => Value::String(text.to_string()),
        ScalarValue::Int(integer) => Value::from(*integer),
        ScalarValue::Uint(integer) => Value::from(*integer),
        ScalarValue::F64(float) => Number::from_f64(*float).map_or(Value::Null, Value::Number),
        ScalarValue::Boolean(value) => Value::Bool(*value),
        ScalarValue::Bytes(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
        ScalarValue::Null
        | ScalarValue::Counter(_)
        | ScalarValue::Timestamp(_)
        | ScalarValue::Unknown { .. } => Value::Null,
    }
}

fn text(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Str(text) => Some(text),
        _ => None,
    }
}

/// Says why a leaf that came from outside is none of ours, if it is not.
pub(crate) fn check_leaf(leaf: &str, value: &ScalarValue) -> Result<(), &'static str> {
    check_path(leaf)?;
    if leaf == path::IMMUTABLE {
        let ScalarValue::Bytes(bytes) = value else {
            return Err("a register group that is not JSON");
        };
        let group: BTreeMap<String, Value> =
            serde_json::from_slice(bytes).map_err(|_| "a register group that is no map")?;
        return group.iter().try_for_each(|(path, value)| match path.as_str() {
            path::IMMUTABLE => Err("a register group within itself"),
            path => check_leaf(path, &scalar(value)),
        });
    }
    let fits = match (path::role(leaf), value) {
        (Role::Presence, ScalarValue::Int(number)) => (1..=MAX_NUMBER).contains(&number.unsigned_abs()),
        (Role::Order, ScalarValue::Str(order)) => order::is_valid(order),
        (Role::Presence | Role::Order, _) => false,
        (Role::Value, ScalarValue::Bytes(bytes)) => {
            let json: Result<Value, _> = serde_json::from_slice(bytes);
            let levels = |json: &Value| leaf.split('/').count() + depth(json);
            if json.as_ref().is_ok_and(|json| levels(json) > path::MAX_LEVELS) {
                return Err("a value that is too deep for its path");
            }
            json.is_ok_and(|json| json.is_object() || (json.is_array() && !is_group(leaf)))
        }
        (Role::Value, ScalarValue::F64(float)) => float.is_finite() && !is_group(leaf),
        (
            Role::Value,
            ScalarValue::Str(_)
            | ScalarValue::Int(_)
            | ScalarValue::Uint(_)
            | ScalarValue::Boolean(_)
            | ScalarValue::Null,
        ) => !is_group(leaf),
        (Role::Value, ScalarValue::Counter(_) | ScalarValue::Timestamp(_) | ScalarValue::Unknown { .. }) => {
            false
        }
    };
    if fits {
        Ok(())
    } else {
        Err("a value that its path cannot hold")
    }
}

/// The highest number of an element: one below which the next always fits.
const MAX_NUMBER: u64 = 1 << 31;

/// Tells whether a leaf holds several fields as one register.
pub(crate) fn is_group(leaf: &str) -> bool {
    matches!(path::parse(path::split_last(leaf).1), Some(Token::Group(_)))
}

/// Says why a path is none of ours, if it is not.
pub(crate) fn check_path(leaf: &str) -> Result<(), &'static str> {
    if leaf.len() > path::MAX_PATH_BYTES {
        return Err("a path that is too long");
    }
    if path::is_too_deep(leaf) {
        return Err("a path that is too deep");
    }
    let mut tokens = leaf.split('/').peekable();
    let mut first = true;
    while let Some(token) = tokens.next() {
        let last = tokens.peek().is_none();
        let fits = match path::parse(token) {
            Some(Token::Field(_)) => true,
            Some(Token::Group(name)) => last && (name != path::IMMUTABLE || first),
            Some(Token::Element(element)) => {
                !first && (last || (element.number.is_some() && element.set_value.is_none()))
            }
            None => false,
        };
        if !fits {
            return Err("a path that is not well formed");
        }
        first = false;
    }
    Ok(())
}
