//! Objects in Kubernetes' protobuf form, as `kubectl create` of 1.32 and later sends them: read, and never written.
//!
//! What Kubernetes' types are in protobuf is a table (`schemas/protobuf/types.txt`, whose head says how to read it); what is not
//! in it (a field of a later version) is left out. So are zero values where JSON leaves them out: in this form clients send them.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::time;

/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";
const TABLE: &str = include_str!("../protobuf/types.txt");

/// Why bytes are no object in protobuf.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("it does not begin with the four bytes `k8s\\0`")]
    Magic,
    #[error("it is cut off")]
    End,
    #[error("a number has more than 64 bits")]
    Number,
    #[error("field {field} of {of} is of another form")]
    Form { of: String, field: u64 },
    #[error("field {field} of {of} is not UTF-8")]
    Text { of: String, field: u64 },
    #[error("{0} is not read in this form; send JSON")]
    Unknown(String),
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// Reads an object with its `apiVersion` and `kind`.
///
/// # Errors
/// Whatever bytes are none of a kind that is in the table.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let of = type_of(&api_version, &kind);
    if !TYPES.contains_key(of.as_str()) {
        return Err(ProtobufError::Unknown(format!("{kind} of {api_version}")));
    }
    let mut object = message(&of, raw)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// The name of a type in the table.
fn type_of(api_version: &str, kind: &str) -> String {
    // Each group has its own name for what is one type.
    if kind == "DeleteOptions" {
        return "meta/v1.DeleteOptions".to_owned();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or(group);
    format!("{package}/{version}.{kind}")
}

// ---------------------------------------------------------------- the table

struct Field {
    number: u64,
    /// None: what it holds is the holder's.
    name: Option<&'static str>,
    many: Many,
    kind: &'static str,
    /// JSON has it when it is zero, too.
    has_zero: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Many {
    One,
    List,
    Map,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let mut types: HashMap<&str, Vec<Field>> = HashMap::new();
    let mut current = "";
    for line in TABLE.lines() {
        let mut words = line.split(' ');
        let (Some(first), second) = (words.next(), words.next()) else {
            continue;
        };
        let Some(name) = second else {
            current = first;
            types.insert(current, Vec::new());
            continue;
        };
        let (Ok(number), Some(code)) = (first.parse(), words.next()) else {
            continue;
        };
        let (many, kind) = match (code.strip_prefix("[]"), code.strip_prefix("{}")) {
            (Some(kind), _) => (Many::List, kind),
            (_, Some(kind)) => (Many::Map, kind),
            _ => (Many::One, code),
        };
        types.entry(current).or_default().push(Field {
            number,
            name: (name != "^").then_some(name),
            many,
            kind,
            has_zero: words.next().is_some(),
        });
    }
    types
});

// ---------------------------------------------------------------- values

/// Reads the fields of a type.
fn message(of: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
    let mut object = Map::new();
    let known = TYPES.get(of).map_or(&[][..], Vec::as_slice);
    for field in fields(bytes) {
        let (number, wire) = field?;
        let Some(field) = known.iter().find(|field| field.number == number) else {
            continue;
        };
        let context = Context { of, number };
        let Some(name) = field.name else {
            object.extend(message(field.kind, context.bytes(wire)?)?);
            continue;
        };
        match field.many {
            Many::One => {
                let value = value(field.kind, wire, context)?;
                if field.has_zero || !is_zero(&value) {
                    object.insert(name.to_owned(), value);
                }
            }
            Many::List => {
                let list = object.entry(name).or_insert_with(|| json!([]));
                if let Value::Array(list) = list {
                    items(field.kind, wire, context, list)?;
                }
            }
            Many::Map => {
                let (key, value) = entry(field.kind, context.bytes(wire)?, context)?;
                let map = object.entry(name).or_insert_with(|| json!({}));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(object)
}

/// Where a value is, for errors.
#[derive(Clone, Copy)]
struct Context<'a> {
    of: &'a str,
    number: u64,
}

impl Context<'_> {
    fn form(self) -> ProtobufError {
        ProtobufError::Form {
            of: self.of.to_owned(),
            field: self.number,
        }
    }

    fn bytes<'b>(self, wire: Wire<'b>) -> Result<&'b [u8]> {
        match wire {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Number(_) | Wire::Fixed(_) => Err(self.form()),
        }
    }

    fn text(self, bytes: &[u8]) -> Result<String> {
        String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Text {
            of: self.of.to_owned(),
            field: self.number,
        })
    }

    fn number(self, wire: Wire<'_>) -> Result<u64> {
        match wire {
            Wire::Number(number) => Ok(number),
            Wire::Bytes(_) | Wire::Fixed(_) => Err(self.form()),
        }
    }
}

/// Reads one item of a list, or several that are packed.
fn items(kind: &str, wire: Wire<'_>, context: Context<'_>, list: &mut Vec<Value>) -> Result<()> {
    match (kind, wire) {
        ("i" | "b", Wire::Bytes(mut packed)) => {
            while !packed.is_empty() {
                let number = Wire::Number(varint(&mut packed)?);
                list.push(value(kind, number, context)?);
            }
        }
        _ => list.push(value(kind, wire, context)?),
    }
    Ok(())
}

fn entry(kind: &str, bytes: &[u8], context: Context<'_>) -> Result<(String, Value)> {
    let (mut key, mut found) = (String::new(), value(kind, empty(kind), context)?);
    for field in fields(bytes) {
        match field? {
            (1, wire) => key = context.text(context.bytes(wire)?)?,
            (2, wire) => found = value(kind, wire, context)?,
            _ => {}
        }
    }
    Ok((key, found))
}

/// What a value is that is not said.
fn empty(kind: &str) -> Wire<'static> {
    match kind {
        "i" | "b" => Wire::Number(0),
        _ => Wire::Bytes(&[]),
    }
}

fn value(kind: &str, wire: Wire<'_>, context: Context<'_>) -> Result<Value> {
    Ok(match kind {
        "s" => context.text(context.bytes(wire)?)?.into(),
        "y" => BASE64_STANDARD.encode(context.bytes(wire)?).into(),
        "b" => (context.number(wire)? != 0).into(),
        "i" => context.number(wire)?.cast_signed().into(),
        "f" => match wire {
            Wire::Fixed(bits) => f64::from_bits(bits).into(),
            Wire::Number(_) | Wire::Bytes(_) => return Err(context.form()),
        },
        // A message whose only field is the text.
        "q" => match first(context.bytes(wire)?)? {
            Some(Wire::Bytes(text)) => context.text(text)?.into(),
            _ => "0".into(),
        },
        "o" => int_or_string(context.bytes(wire)?, context)?,
        "t" | "m" => timestamp(context.bytes(wire)?, kind == "m", context)?,
        "r" => match first(context.bytes(wire)?)? {
            Some(Wire::Bytes(json)) => serde_json::from_slice(json).map_err(|_| context.form())?,
            _ => Value::Null,
        },
        of => {
            let object = message(of, context.bytes(wire)?)?;
            match of.strip_prefix("items:") {
                Some(_) => object.get("items").cloned().unwrap_or_else(|| json!([])),
                None => Value::Object(object),
            }
        }
    })
}

/// The first field of a message, if it has any.
fn first(bytes: &[u8]) -> Result<Option<Wire<'_>>> {
    let found = fields(bytes).find(|field| !matches!(field, Ok((number, _)) if *number != 1));
    Ok(found.transpose()?.map(|(_, wire)| wire))
}

/// `{type, intVal, strVal}`; of type 1 it is text.
fn int_or_string(bytes: &[u8], context: Context<'_>) -> Result<Value> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in fields(bytes) {
        match field? {
            (1, wire) => is_text = context.number(wire)? == 1,
            (2, wire) => number = context.number(wire)?.cast_signed(),
            (3, wire) => text = context.text(context.bytes(wire)?)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `{seconds, nanos}` since the Unix epoch; nothing is no time.
fn timestamp(bytes: &[u8], with_micros: bool, context: Context<'_>) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(bytes) {
        match field? {
            (1, wire) => seconds = context.number(wire)?.cast_signed(),
            (2, wire) => nanos = context.number(wire)?,
            _ => {}
        }
    }
    let text = time::to_rfc3339(seconds);
    Ok(match text.strip_suffix('Z').filter(|_| with_micros) {
        Some(text) => format!("{text}.{:06}Z", nanos / 1000 % 1_000_000).into(),
        None => text.into(),
    })
}

/// Tells what JSON would leave out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

// ---------------------------------------------------------------- the wire

/// A value as it is sent.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    /// Of 64 bits, or of 32.
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// Reads the fields of a message one by one; ends after the first error.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Wire<'a>)> {
    let key = varint(bytes)?;
    let number = key >> 3;
    let wire = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Fixed(u64::from_le_bytes(fixed(bytes)?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| ProtobufError::End)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => Wire::Fixed(u32::from_le_bytes(fixed(bytes)?).into()),
        _ => {
            return Err(ProtobufError::Form {
                of: "a message".to_owned(),
                field: number,
            });
        }
    };
    Ok((number, wire))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(ProtobufError::End)?;
    *bytes = rest;
    Ok(taken)
}

fn fixed<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(ProtobufError::End)?;
    *bytes = rest;
    Ok(*taken)
}

/// Seven bits a byte, the lowest first, at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = fixed(bytes)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(ProtobufError::Number)
}

#[cfg(test)]
#[path = "protobuf_tests.rs"]
mod tests;
