//! Manifests: whatever is read is checked and defaulted without a panic, is written as YAML and as a document, and comes
//! back from both as it was.

use arbitrary::Result;
use automerge::ActorId;
use schemas::{Kind, Object, ObjectKey, manifest, patch, validate};
use serde_json::{Value, json};

use super::patches;
use super::values::{self, Source};
use crate::document::{Birth, ChangeAuthor, Desired, Document, FirstChange};
use crate::leaves::{self, Leaves};
use crate::owners::Operation;
use crate::{NodeId, Via, prepare};

/// Objects of one manifest that are looked at.
const OBJECTS: usize = 8;

/// Reads a manifest: as it is, if its first byte could begin one; otherwise objects, or patches of one, are made of it.
pub fn manifests(input: &[u8]) {
    let objects = match input.split_first() {
        Some((0..=8, rest)) => {
            let mut source = Source::new(rest);
            let mut objects = Vec::new();
            // What runs out of bytes is tried as it is.
            let _ = make(&mut source, &mut objects);
            objects
        }
        Some((b'\t', rest)) => {
            let mut source = Source::new(rest);
            // What runs out of bytes was tried up to there.
            let _ = make_one(&mut source).and_then(|object| patches::patches(&mut source, object));
            return;
        }
        _ => read(input),
    };
    let mut document = None;
    let mut last: Option<&Object> = None;
    for object in objects.iter().take(OBJECTS) {
        judge(object, last);
        is_read_from_yaml(object);
        if prepare::check(object).is_ok() {
            document = is_read_from_leaves(document, object);
        }
        last = Some(object);
    }
}

fn read(input: &[u8]) -> Vec<Object> {
    let parsed = manifest::parse_all(input);
    for error in &parsed.errors {
        assert!(!error.to_string().is_empty());
    }
    assert_eq!(manifest::parse(input).is_ok(), parsed.errors.is_empty());
    parsed.objects
}

fn make(source: &mut Source<'_>, objects: &mut Vec<Object>) -> Result<()> {
    let kind = values::kind(source)?;
    while !source.is_empty() && objects.len() < OBJECTS {
        objects.push(make_of(kind, source)?);
    }
    Ok(())
}

fn make_one(source: &mut Source<'_>) -> Result<Object> {
    let kind = values::kind(source)?;
    make_of(kind, source)
}

fn make_of(kind: Kind, source: &mut Source<'_>) -> Result<Object> {
    let key = ObjectKey::new(kind, "default", "a");
    let mut object = values::object(source, &key)?;
    if source.arbitrary()? {
        // Anything at all.
        object.set(&["spec"], values::value(source, 0)?);
        object.set(&[&values::text(source)?], values::value(source, 0)?);
    }
    let own = Object::new(&key);
    object.set(&["apiVersion"], own.0["apiVersion"].clone());
    object.set(&["kind"], own.0["kind"].clone());
    Ok(object)
}

/// Checks, defaults and patches.
pub(super) fn judge(object: &Object, before: Option<&Object>) {
    let defaulted = validate::defaulted(object);
    assert_eq!(
        validate::defaulted(&defaulted),
        defaulted,
        "defaults are set once"
    );
    for one in [object, &defaulted] {
        for error in validate::validate(one) {
            assert!(!error.to_string().is_empty());
        }
        validate::warnings(one, before);
    }
    validate::warnings(object, None);
    if let Some(before) = before {
        validate::validate_update(before, object);
        let value = Value::Object(object.0.clone());
        let _ = patch::merge_patch(before, &value);
        let _ = patch::strategic_merge_patch(before, &value);
        let _ = patch::json_patch(
            before,
            &json!([{"op": "replace", "path": "/spec", "value": value}]),
        );
        if let Some(spec) = object.0.get("spec") {
            let _ = patch::json_patch(before, spec);
        }
        crate::compare(object.kind().unwrap_or(Kind::Pod), before, object);
    }
}

pub(super) fn is_read_from_yaml(object: &Object) {
    let is_list = object.str_at("/kind").ends_with("List") && object.0.contains_key("items");
    let is_named = ["/apiVersion", "/kind"]
        .iter()
        .all(|field| !object.str_at(field).is_empty());
    if is_named && !is_list && leaves::check_limits(object).is_ok() {
        let yaml = manifest::to_yaml(object);
        match manifest::parse(yaml.as_bytes()) {
            Ok(read) => {
                let read: Vec<Value> = read
                    .into_iter()
                    .map(|object| plain(object.into_value()))
                    .collect();
                assert_eq!(read, [plain(object.clone().into_value())], "{yaml}");
            }
            Err(error) => panic!("{error}\n{yaml}"),
        }
    }
}

/// Writes whole floats as integers, as reading YAML does (and kubectl).
fn plain(value: Value) -> Value {
    const EXACT: f64 = (1_u64 << 53) as f64;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
                Value::from(float as i64)
            }
            _ => Value::Number(number),
        },
        Value::Array(list) => list.into_iter().map(plain).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, plain(value))).collect(),
        other => other,
    }
}

/// Writes an object over the one before, and reads it back.
fn is_read_from_leaves(document: Option<Document>, object: &Object) -> Option<Document> {
    let kind = object.kind().expect("checked");
    let object = prepare::stripped(object);
    let author = ChangeAuthor {
        manager: "git".to_owned(),
        user: String::new(),
        node: NodeId("n".to_owned()),
        via: Some(Via::Api),
        unix_seconds: 0,
        dropped: None,
        sight: None,
    };
    let mut document = match document {
        None => {
            let leaves = leaves::flatten(kind, &object, &Leaves::new());
            let (birth, actor) = (Birth::default(), ActorId::from([1; 16]));
            let first = FirstChange::new(kind, leaves, birth, &author, Operation::Apply, actor.clone());
            // A path can be too long.
            let first = first.ok()?;
            let document = Document::load(&first.save(), actor).expect("what was saved");
            assert_eq!(document.contents(), first.contents);
            document
        }
        Some(mut document) => {
            let mut contents = document.contents();
            let leaves = leaves::flatten(kind, &object, &contents.leaves);
            let desired = Desired {
                leaves,
                owners: contents.owners.clone(),
                is_applied: false,
            };
            let written = document.write(kind, &mut contents, desired, &author);
            written.ok()?;
            assert_eq!(document.contents(), contents);
            document
        }
    };
    let mut loaded = Document::load(&document.save(), ActorId::from([1; 16])).expect("what was saved");
    let contents = loaded.contents();
    assert_eq!(leaves::materialise(&contents.leaves), object);
    let same = leaves::flatten(kind, &object, &contents.leaves);
    assert!(leaves::diff(&contents.raw, &leaves::pack(kind, same)).is_empty());
    for bytes in loaded.changes_after(&[]) {
        assert!(crate::incoming::IncomingChange::parse(&bytes).is_ok());
    }
    Some(loaded)
}
