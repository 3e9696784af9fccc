//! Patches of an object that fit it here and there, of the three sorts: whatever they say, they apply or are refused, and
//! what comes out is an object that could be stored.

use arbitrary::Result;
use schemas::manifest::MAX_DEPTH;
use schemas::{Object, patch};
use serde_json::{Map, Value, json};

use super::values::{self, Source};

/// Levels of one patch.
const MAX_LEVELS: usize = 6;
const OPERATIONS: u8 = 6;
/// Of an object that is patched on: large enough for all limits but that of its size.
const MAX_BYTES: usize = 64 << 10;

const DIRECTIVES: [&str; 8] = [
    "$patch",
    "$retainKeys",
    "$deleteFromPrimitiveList/finalizers",
    "$deleteFromPrimitiveList/x",
    "$setElementOrder/finalizers",
    "$setElementOrder/containers",
    "$setElementOrder/ports",
    "$unknown",
];

/// Patches an object again and again.
pub(super) fn patches(source: &mut Source<'_>, mut object: Object) -> Result<()> {
    while !source.is_empty() {
        let value = Value::Object(object.0.clone());
        let patched = match source.int_in_range(0..=2_u8)? {
            0 => {
                let patch = part(source, Some(&value), 0)?;
                let patched = patch::merge_patch(&object, &patch);
                if let Ok(once) = &patched {
                    assert_eq!(patch::merge_patch(once, &patch).as_ref(), Ok(once));
                }
                patched
            }
            1 => patch::strategic_merge_patch(&object, &part(source, Some(&value), 0)?),
            _ => {
                let mut operations = Vec::new();
                for _ in 0..source.int_in_range(0..=OPERATIONS)? {
                    operations.push(operation(source, &value)?);
                }
                let patched = patch::json_patch(&object, &operations.into());
                if let Ok(patched) = &patched {
                    assert!(depth(&Value::Object(patched.0.clone())) <= MAX_DEPTH);
                }
                patched
            }
        };
        match patched {
            Ok(patched) => object = patched,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        // Copies of copies; the API refuses what is larger than an object may be.
        if serde_json::to_vec(&object).map_or(0, |json| json.len()) > MAX_BYTES {
            break;
        }
        super::manifests::judge(&object, None);
        super::manifests::is_read_from_yaml(&object);
    }
    Ok(())
}

/// A value in the place of `old`: one that names some of what is there, and directives.
fn part(source: &mut Source<'_>, old: Option<&Value>, level: usize) -> Result<Value> {
    match (source.int_in_range(0..=7_u8)?, old) {
        (0..=3, _) if level < MAX_LEVELS => {
            let mut map = Map::new();
            for _ in 0..source.int_in_range(0..=3_u8)? {
                let name = match source.int_in_range(0..=5_u8)? {
                    0 => (*source.choose(&DIRECTIVES)?).to_owned(),
                    1 => values::text(source)?,
                    _ => name_in(source, old)?,
                };
                let value = match name.as_str() {
                    "$patch" => (*source.choose(&["delete", "replace", "merge", "x"])?).into(),
                    name => {
                        let below = old.and_then(|old| old.get(name.rsplit('/').next()?));
                        part(source, below, level + 1)?
                    }
                };
                map.insert(name, value);
            }
            Ok(map.into())
        }
        (4 | 5, Some(Value::Array(old))) if level < MAX_LEVELS => {
            let mut list = Vec::new();
            for _ in 0..source.int_in_range(0..=3_u8)? {
                let element = match old.as_slice() {
                    [] => None,
                    old => Some(source.choose(old)?),
                };
                list.push(part(source, element, level + 1)?);
            }
            Ok(list.into())
        }
        (6, Some(old)) => Ok(old.clone()),
        _ => values::value(source, level),
    }
}

fn name_in(source: &mut Source<'_>, old: Option<&Value>) -> Result<String> {
    match old {
        Some(Value::Object(map)) if !map.is_empty() => {
            let at = source.choose_index(map.len())?;
            Ok(map.keys().nth(at).cloned().unwrap_or_default())
        }
        _ => values::text(source),
    }
}

/// An operation of a JSON patch.
fn operation(source: &mut Source<'_>, value: &Value) -> Result<Value> {
    let operation = *source.choose(&["add", "remove", "replace", "move", "copy", "test", "x"])?;
    let path = pointer(source, value)?;
    Ok(json!({
        "op": operation,
        "from": pointer(source, value)?,
        "value": part(source, value.pointer(&path), MAX_LEVELS - 2)?,
        "path": path,
    }))
}

/// A JSON pointer to what is there, or nearly.
fn pointer(source: &mut Source<'_>, mut value: &Value) -> Result<String> {
    let mut pointer = String::new();
    for _ in 0..source.int_in_range(0..=5_u8)? {
        let token = match (source.int_in_range(0..=7_u8)?, value) {
            (0, _) => values::text(source)?,
            (1, _) => (*source.choose(&["-", "0", "01", "-1", "99999999999999999999", "~2", ""])?).to_owned(),
            (_, Value::Array(list)) => source.int_in_range(0..=list.len())?.to_string(),
            _ => name_in(source, Some(value))?,
        };
        pointer.push('/');
        pointer.push_str(&token.replace('~', "~0").replace('/', "~1"));
        value = value
            .pointer(&pointer[pointer.rfind('/').unwrap_or(0)..])
            .unwrap_or(&Value::Null);
    }
    Ok(pointer)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}
