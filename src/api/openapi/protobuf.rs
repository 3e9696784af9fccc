//! A document of version 2 in protobuf, as the gnostic library reads it: of its messages, what our documents have.
//!
//! Source: <https://github.com/google/gnostic/blob/main/openapiv2/OpenAPIv2.proto>, by whose numbers fields are written here.

use serde_json::Value;

/// A message on its way: fields in the order in which they are written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut number: u64) {
        // Seven bits a byte, the lowest first; the eighth says that more follow.
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(self, field: u64, message: Message) -> Self {
        self.bytes(field, &message.0)
    }

    /// Writes a text; what is none is left out.
    fn text(self, field: u64, value: &Value) -> Self {
        match value.as_str() {
            Some(text) => self.bytes(field, text.as_bytes()),
            None => self,
        }
    }

    fn texts(mut self, field: u64, list: &Value) -> Self {
        for element in list.as_array().into_iter().flatten() {
            self = self.text(field, element);
        }
        self
    }

    /// Writes each member of a map with its name.
    fn named(mut self, field: u64, map: &Value, write: fn(&Value) -> Message) -> Self {
        for (name, value) in map.as_object().into_iter().flatten() {
            let pair = Message::default()
                .bytes(1, name.as_bytes())
                .message(2, write(value));
            self = self.message(field, pair);
        }
        self
    }

    /// Writes a message, if there is anything to write.
    fn some(self, field: u64, value: &Value, write: fn(&Value) -> Message) -> Self {
        match value {
            Value::Null => self,
            value => self.message(field, write(value)),
        }
    }

    /// Writes what begins with `x-`: names, and values as YAML, which JSON is.
    fn extensions(mut self, field: u64, of: &Value) -> Self {
        for (name, value) in of.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                let value = Message::default().bytes(2, value.to_string().as_bytes());
                let pair = Message::default().bytes(1, name.as_bytes()).message(2, value);
                self = self.message(field, pair);
            }
        }
        self
    }
}

/// Writes a whole document.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let info = Message::default()
        .text(1, &value["info"]["title"])
        .text(2, &value["info"]["version"]);
    let definitions = Message::default().named(1, &value["definitions"], schema);
    Message::default()
        .text(1, &value["swagger"])
        .message(2, info)
        .message(8, Message::default())
        .message(9, definitions)
        .0
}

fn schema(value: &Value) -> Message {
    let type_item = |value: &Value| Message::default().text(1, value);
    let wrapped = |value: &Value| Message::default().message(1, schema(value));
    let properties = |value: &Value| Message::default().named(1, value, schema);
    Message::default()
        .text(1, &value["$ref"])
        .text(2, &value["format"])
        .text(4, &value["description"])
        .texts(19, &value["required"])
        .some(21, &value["additionalProperties"], wrapped)
        .some(22, &value["type"], type_item)
        .some(23, &value["items"], wrapped)
        .some(25, &value["properties"], properties)
        .extensions(31, value)
}
