//! Bytes to paths, values, changes and objects: mostly such as exist, now and then such as nobody writes.

use arbitrary::{Result, Unstructured};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{AutoCommit, ObjType, ROOT, ScalarValue};
use schemas::{KINDS, Kind, Object, ObjectKey};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::epoch::Epoch;
use crate::frame::Header;
use crate::incarnation::{Incarnation, Tombstone};

/// Values within values, of generated ones.
const MAX_DEPTH: usize = 6;
/// The longest text that is one part repeated: longer than any path may be, and short enough for many executions a second.
const MAX_REPEATED_BYTES: usize = crate::path::MAX_PATH_BYTES + 1024;

pub(super) type Source<'a> = Unstructured<'a>;

const NAMES: [&str; 24] = [
    "metadata",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "spec",
    "template",
    "containers",
    "name",
    "image",
    "env",
    "value",
    "valueFrom",
    "ports",
    "containerPort",
    "protocol",
    "volumes",
    "emptyDir",
    "selector",
    "matchLabels",
    "replicas",
    "strategy",
    "data",
    "uid",
];

const ODD_TEXTS: [&str; 24] = [
    "",
    "~",
    "~1",
    "~2",
    "[x]",
    "[x]@1",
    "<y>",
    "{union}",
    "{immutable}",
    "{element}",
    "@creator",
    "a/b",
    "a.b",
    "a,b",
    "]",
    "#2",
    "ключ",
    "yes",
    "1:30",
    "0o7",
    "null",
    "- a",
    "100m",
    "\u{feff}\n\r\t\u{85}\u{2028} #",
];

/// A name or another text.
pub(super) fn text(source: &mut Source<'_>) -> Result<String> {
    Ok(match source.int_in_range(0..=7_u8)? {
        0..=3 => (*source.choose(&NAMES)?).to_owned(),
        4 | 5 => (*source.choose(&ODD_TEXTS)?).to_owned(),
        6 => source.arbitrary()?,
        _ => {
            let part: String = source.arbitrary()?;
            let times: usize = source.int_in_range(0..=200)?;
            part.repeat(times.min(MAX_REPEATED_BYTES / part.len().max(1)))
        }
    })
}

fn scalar(source: &mut Source<'_>) -> Result<Value> {
    Ok(match source.int_in_range(0..=7_u8)? {
        0 => Value::Null,
        1 => source.arbitrary::<bool>()?.into(),
        2 => (*source.choose(&[0, 1, -1, i64::MIN, i64::MAX, 80, 1 << 53])?).into(),
        3 => source.arbitrary::<i64>()?.into(),
        4 => (*source.choose(&[u64::MAX, i64::MAX as u64 + 1])?).into(),
        5 => source.arbitrary::<f64>()?.into(),
        _ => text(source)?.into(),
    })
}

/// Any JSON value.
pub(super) fn value(source: &mut Source<'_>, depth: usize) -> Result<Value> {
    let shape = source.int_in_range(0..=5_u8)?;
    Ok(match shape {
        0 | 1 if depth < MAX_DEPTH => {
            let mut map = Map::new();
            for _ in 0..source.int_in_range(0..=4_u8)? {
                map.insert(text(source)?, value(source, depth + 1)?);
            }
            map.into()
        }
        2 if depth < MAX_DEPTH => {
            let mut list = Vec::new();
            for _ in 0..source.int_in_range(0..=3_u8)? {
                list.push(value(source, depth + 1)?);
            }
            list.into()
        }
        _ => scalar(source)?,
    })
}

pub(super) fn kind(source: &mut Source<'_>) -> Result<Kind> {
    Ok(source.choose(KINDS)?.kind)
}

/// A key of one of few objects.
pub(super) fn key(source: &mut Source<'_>) -> Result<ObjectKey> {
    let kind = *source.choose(&[Kind::Deployment, Kind::Service, Kind::ApiToken, Kind::Namespace])?;
    Ok(ObjectKey::new(kind, "default", *source.choose(&["a", "b"])?))
}

/// An object of `key` in the form of real ones, with odd values here and there.
pub(super) fn object(source: &mut Source<'_>, key: &ObjectKey) -> Result<Object> {
    let mut object = Object::new(key);
    let mut container = json!({"name": text(source)?, "image": "i:1", "ports": [{"containerPort": 80}]});
    for _ in 0..source.int_in_range(0..=3_u8)? {
        container[text(source)?] = value(source, 3)?;
    }
    for _ in 0..source.int_in_range(0..=5_u8)? {
        match source.int_in_range(0..=5_u8)? {
            0 => object.set(&["metadata", "labels", &text(source)?], scalar(source)?),
            1 => object.set(
                &["spec", "template", "spec", "containers"],
                json!([container.clone()]),
            ),
            2 => object.set(&["spec", "replicas"], scalar(source)?),
            3 => object.set(&["metadata", &text(source)?], value(source, 0)?),
            4 => object.set(&["spec", &text(source)?], value(source, 0)?),
            _ => object.set(&[&text(source)?], value(source, 0)?),
        }
    }
    // It keeps its key, and lists stay maps where the store puts fields.
    if let Some(Value::Object(metadata)) = object.0.get_mut("metadata") {
        metadata.extend(
            Object::new(key)
                .0
                .remove("metadata")
                .and_then(|own| match own {
                    Value::Object(own) => Some(own),
                    _ => None,
                })
                .unwrap_or_default(),
        );
    }
    Ok(object)
}

/// A path of a leaf, well formed or not.
pub(super) fn path(source: &mut Source<'_>) -> Result<String> {
    const PATHS: [&str; 20] = [
        "spec/replicas",
        "spec",
        "metadata/labels/a",
        "metadata/labels",
        "data/k",
        "spec/containers/[web]",
        "spec/containers/[web]@1",
        "spec/containers/[web]@1/image",
        "spec/containers/[web]@2/image",
        "spec/containers/[web]#2",
        "metadata/finalizers/<x>",
        "metadata/finalizers/<x>@1",
        "spec/{union}",
        "spec/containers/[web]@1/{element}",
        "{immutable}",
        "@creator",
        "@created",
        "@namespace",
        "@owner/apply/git/spec/replicas",
        "@owner/update/x/spec",
    ];
    Ok(match source.int_in_range(0..=7_u8)? {
        0..=4 => (*source.choose(&PATHS)?).to_owned(),
        5 => format!("{}/{}", source.choose(&PATHS)?, text(source)?),
        6 => format!("{}/{}", text(source)?, text(source)?),
        _ => text(source)?,
    })
}

/// A leaf's value, such as its path can hold or not.
fn leaf(source: &mut Source<'_>, path: &str) -> Result<ScalarValue> {
    if source.ratio(3, 4)? {
        return Ok(match path {
            "@creator" => ScalarValue::Str((*source.choose(&["apply/git", "update/x"])?).into()),
            "@created" => ScalarValue::Int(source.arbitrary()?),
            "@namespace" => ScalarValue::Str(incarnation(source)?.to_string().into()),
            _ if path.starts_with('@') => ScalarValue::Boolean(true),
            _ if path.ends_with('}') => {
                let mut map = Map::new();
                for _ in 0..source.int_in_range(0..=2_u8)? {
                    map.insert(self::path(source)?, value(source, 4)?);
                }
                ScalarValue::Bytes(Value::Object(map).to_string().into_bytes())
            }
            _ if path.ends_with(']') || path.ends_with('>') => {
                ScalarValue::Int(*source.choose(&[1, 2, -1, -2, 1 << 31, -(1 << 31)])?)
            }
            _ if path.ends_with("]@1") || path.ends_with(">@1") => {
                ScalarValue::Str((*source.choose(&["V", "Vk", "k", "zzz"])?).into())
            }
            _ => crate::leaves::scalar(&value(source, 4)?),
        });
    }
    Ok(match source.int_in_range(0..=6_u8)? {
        0 => ScalarValue::Bytes(source.arbitrary()?),
        1 => ScalarValue::Counter(source.arbitrary::<i64>()?.into()),
        2 => ScalarValue::Timestamp(source.arbitrary()?),
        3 => ScalarValue::F64(source.arbitrary()?),
        4 => ScalarValue::Unknown {
            type_code: source.int_in_range(10..=15)?,
            bytes: source.arbitrary()?,
        },
        _ => crate::leaves::scalar(&scalar(source)?),
    })
}

pub(super) fn incarnation(source: &mut Source<'_>) -> Result<Incarnation> {
    Ok(Incarnation {
        round: *source.choose(&[0, 0, 0, 1, 2, u16::MAX])?,
        number: *source.choose(&[1, 1, 1, 0, 2, 3, u32::MAX - 1, u32::MAX])?,
    })
}

pub(super) fn tombstone(source: &mut Source<'_>) -> Result<Tombstone> {
    Ok(Tombstone {
        incarnation: incarnation(source)?,
        laid: *source.choose(&[0, 0, 1, 2, u16::MAX])?,
        seen: if source.arbitrary()? {
            source.arbitrary()?
        } else {
            [0; 8]
        },
    })
}

pub(super) fn header(source: &mut Source<'_>) -> Result<Header> {
    Ok(Header {
        round: *source.choose(&[0, 0, 0, 1, 2, u16::MAX])?,
        floor: *source.choose(&[0, 0, 0, 1, 2])?,
        closed: if source.arbitrary()? {
            source.arbitrary()?
        } else {
            [0; 16]
        },
    })
}

/// What a change says of who made it.
fn message(source: &mut Source<'_>) -> Result<String> {
    Ok(match source.int_in_range(0..=9_u8)? {
        0 => source.arbitrary()?,
        1 => json!({"m": text(source)?, "u": text(source)?, "n": text(source)?, "t": text(source)?})
            .to_string(),
        2 => {
            let actor = "00".repeat(16);
            json!({
                "m": "podman-swarm-compaction", "n": "x", "d": source.int_in_range(0..=9_u64)?,
                "g": source.arbitrary::<u64>()?, "v": {actor: source.int_in_range(0..=9_u64)?},
                "f": source.int_in_range(0..=2_u64)?,
            })
            .to_string()
        }
        _ => json!({"m": "git", "u": "admin", "n": "x", "t": "api"}).to_string(),
    })
}

/// Adds a change to a document, of any operations that automerge takes, and returns its bytes.
pub(super) fn change(source: &mut Source<'_>, document: &mut AutoCommit) -> Result<Vec<u8>> {
    for _ in 0..=source.int_in_range(0..=6_u8)? {
        let path = path(source)?;
        // What automerge refuses is not in the change.
        let _ = match source.int_in_range(0..=15_u8)? {
            0..=11 => document.put(ROOT, &path, leaf(source, &path)?),
            12 | 13 => document.delete(ROOT, &path),
            14 => document.increment(ROOT, &path, source.int_in_range(-1..=1)?),
            _ => match document.put_object(ROOT, &path, ObjType::Map) {
                Ok(inner) => document.put(&inner, "x", 1),
                Err(error) => Err(error),
            },
        };
    }
    let options = CommitOptions::default()
        .with_message(message(source)?)
        .with_time(*source.choose(&[0, 1, -1, 1 << 40, -(1 << 40), (1 << 40) + 1])?);
    document.commit_with(options);
    let change = document.get_last_local_change();
    Ok(change
        .map(|change| change.raw_bytes().to_vec())
        .unwrap_or_default())
}

/// Changes some bytes.
pub(super) fn mutated(source: &mut Source<'_>, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    for _ in 0..=source.int_in_range(0..=3_u8)? {
        if bytes.is_empty() {
            return source.arbitrary();
        }
        let at = source.choose_index(bytes.len())?;
        match source.int_in_range(0..=4_u8)? {
            0 => bytes.insert(at, source.arbitrary()?),
            1 => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ => bytes[at] = source.arbitrary()?,
        }
    }
    Ok(bytes)
}

/// Makes a chunk of automerge's of any content: magic, the checksum that it must have, type, length and content.
pub(super) fn chunk(of_type: u8, content: &[u8]) -> Vec<u8> {
    let mut rest = vec![of_type];
    let mut length = content.len();
    while length > 0x7f {
        rest.push(length as u8 | 0x80);
        length >>= 7;
    }
    rest.push(length as u8);
    rest.extend(content);
    let hash = Sha256::digest(&rest);
    [&[0x85, 0x6f, 0x4a, 0x83], &hash[..4], &rest].concat()
}

/// Returns type and content of a chunk.
pub(super) fn content(chunk: &[u8]) -> (u8, &[u8]) {
    let length_bytes = chunk.iter().skip(9).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    (
        chunk.get(8).copied().unwrap_or_default(),
        chunk.get(9 + length_bytes..).unwrap_or_default(),
    )
}

pub(super) fn epoch(source: &mut Source<'_>, bases: &[[u8; 32]]) -> Result<Epoch> {
    if source.ratio(3, 4)? {
        return Ok(Epoch::default());
    }
    Ok(Epoch {
        dropped: *source.choose(&[1, 2, 3, 9, u64::MAX])?,
        base: match bases {
            [] => source.arbitrary()?,
            bases => *source.choose(bases)?,
        },
    })
}
