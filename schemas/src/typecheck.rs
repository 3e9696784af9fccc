//! Every field against the type that Kubernetes gives it: wrong types, missing fields and fields that no
//! type has, all at once.

use serde_json::{Map, Value};

use crate::node::{Errors, MAX_FINDINGS, Node};
use crate::quantity::Quantity;
use crate::schema::{Shape, TypeId};
use crate::{Kind, time};

/// Finds what the type of an object does not have, at any depth. Returns the paths, at most [`MAX_FINDINGS`]. Internal
/// kinds have no types.
pub(crate) fn unknown_fields(kind: Kind, api_version: &str, object: &Map<String, Value>) -> Vec<String> {
    let mut unknown = Vec::new();
    if let Some(id) = TypeId::of_written(kind, api_version) {
        find_unknown(object, id, "", &mut unknown);
    }
    unknown
}

fn find_unknown(map: &Map<String, Value>, id: TypeId, place: &str, unknown: &mut Vec<String>) {
    let fields = &id.get().fields;
    for (name, value) in map {
        let path = match place {
            "" => name.clone(),
            _ => format!("{place}.{name}"),
        };
        match fields.get(name) {
            Some(shape) => find_unknown_in(value, shape, path, unknown),
            None if unknown.len() < MAX_FINDINGS => unknown.push(path),
            None => {}
        }
    }
}

fn find_unknown_in(value: &Value, shape: &Shape, path: String, unknown: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Struct(id), Value::Object(map)) => find_unknown(map, *id, &path, unknown),
        (Shape::List(item), Value::Array(list)) if item.has_fields() => {
            for (index, value) in list.iter().enumerate() {
                find_unknown_in(value, item, format!("{path}[{index}]"), unknown);
            }
        }
        (Shape::Map(item), Value::Object(map)) if item.has_fields() => {
            for (key, value) in map {
                find_unknown_in(value, item, format!("{path}[{key}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Checks a whole object. Internal kinds have no types and pass.
pub(crate) fn check(kind: Kind, root: &Node<'_>) -> Errors {
    let mut errors = Errors::default();
    if let Some(id) = TypeId::of_written(kind, root.at("apiVersion").text()) {
        errors.fields(root, id);
    }
    errors
}

impl Errors {
    fn fields(&mut self, node: &Node<'_>, id: TypeId) {
        let Some(map) = node.map() else {
            return self.type_invalid(node, "object");
        };
        let fields = id.get();
        for name in map.keys() {
            if let Some(shape) = fields.fields.get(name) {
                self.value(&node.at(name), shape);
            }
        }
        // What controllers report is theirs to complete.
        if node.path.starts_with("status") {
            return;
        }
        for name in &fields.required {
            let field = node.at(name);
            let missing = match fields.fields.get(name) {
                // An absent list is an empty one.
                Some(Shape::List(_)) | None => false,
                Some(Shape::Text) => !field.is_set() || field.text().is_empty() && field.value.is_string(),
                Some(_) => !field.is_set(),
            };
            if missing {
                self.required(&field, "");
            }
        }
    }

    fn value(&mut self, node: &Node<'_>, shape: &Shape) {
        // `null` is how clients write "not set".
        if !node.is_set() {
            return;
        }
        let value = node.value;
        let expected = match shape {
            Shape::Struct(id) => return self.fields(node, *id),
            Shape::List(item) if value.is_array() => {
                for element in node.items() {
                    match element.value {
                        Value::Null => self.type_invalid(&element, item.name()),
                        _ => self.value(&element, item),
                    }
                }
                return;
            }
            Shape::Map(item) if value.is_object() => {
                return node.entries().for_each(|(_, entry)| self.value(&entry, item));
            }
            Shape::Any => return,
            Shape::Text if value.is_string() => return,
            Shape::Boolean if value.is_boolean() => return,
            Shape::Float if value.is_number() => return,
            Shape::Int64 if value.is_i64() => return,
            Shape::Int32 if is_int32(value) => return,
            Shape::IntOrString if value.is_string() || is_int32(value) => return,
            Shape::Time if time::from_rfc3339(node.text()).is_some() => return,
            Shape::Quantity if value.is_string() || value.is_number() => match Quantity::from_json(value) {
                Ok(_) => return,
                Err(error) => return self.invalid(node, error.to_string()),
            },
            // A number or boolean where text belongs is nearly always a missing pair of quotes.
            Shape::Text if value.is_number() || value.is_boolean() => "string (quote it)",
            other => other.name(),
        };
        self.type_invalid(node, expected);
    }
}

fn is_int32(value: &Value) -> bool {
    value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

impl Shape {
    /// Tells whether something in a value can be no field.
    fn has_fields(&self) -> bool {
        match self {
            Shape::Struct(_) => true,
            Shape::List(item) | Shape::Map(item) => item.has_fields(),
            _ => false,
        }
    }

    /// Names the type as users know it.
    fn name(&self) -> &'static str {
        match self {
            Shape::Text => "string",
            Shape::Time => "date-time (RFC 3339)",
            Shape::Boolean => "boolean",
            Shape::Int32 => "integer (32 bits)",
            Shape::Int64 => "integer",
            Shape::Float => "number",
            Shape::IntOrString => "integer (32 bits) or string",
            Shape::Quantity => "quantity (a string or a number)",
            Shape::List(_) => "array",
            Shape::Map(_) | Shape::Struct(_) => "object",
            Shape::Any => "any",
        }
    }
}
