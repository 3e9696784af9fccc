//! What is kept of an object, in memory and on disk, and the names that records have on disk.
//!
//! | disk key | value |
//! |---|---|
//! | `d/` + object key | a document with its incarnation: see [`Record`] |
//! | `t/` + object key | the [`Tombstone`](crate::incarnation::Tombstone) of what was removed |
//! | `r/` + object key + `/` + hash | what was rescued of an object: see `rescue.rs` |
//! | `p/` + object key | what this node has promised about its history: see `promises.rs` |
//! | `j` | what the database has of the journal: see `database.rs` |
//! | `m/` + word | `format`, `canary`, `copy`, `revision`; `round`, `floor`, `contact`: see `rounds.rs` |

use std::sync::Arc;

use automerge::{ActorId, ChangeHash};
use schemas::fields::FIELDS_VERSION;
use schemas::{Object, ObjectKey, time};
use serde::{Deserialize, Serialize, Serializer};

use crate::document::{BadBytes, Birth, Contents, Document, FirstChange};
use crate::epoch::Epoch;
use crate::incarnation::Incarnation;
use crate::leaves;
use crate::managed;
use crate::seal::Seal;

/// Version of all that is kept on disk and of how objects are laid out in leaves: it is one higher with each change of the
/// table of fields, and of this.
pub(crate) const FORMAT: u32 = 4 + FIELDS_VERSION;
/// Directories of formats from this on are opened too, and are of ours from then on: records of all can be read.
pub(crate) const OLDEST_FORMAT: u32 = 3;

pub(crate) const META_FORMAT: &str = "m/format";
pub(crate) const META_CANARY: &str = "m/canary";
pub(crate) const META_COPY: &str = "m/copy";
pub(crate) const META_REVISION: &str = "m/revision";
pub(crate) const META_ROUND: &str = "m/round";
/// Floor and digest of its closing.
pub(crate) const META_FLOOR: &str = "m/floor";
/// How often this node has begun to have contact, and the identity of the disk.
pub(crate) const META_CONTACT: &str = "m/contact";
pub(crate) const DOCUMENTS: &str = "d/";
pub(crate) const TOMBSTONES: &str = "t/";

/// The first byte of a record.
const OPEN_3: u8 = 0;
const SEALED_3: u8 = 1;
const OPEN_4: u8 = 2;
const SEALED_4: u8 = 3;
const OPEN: u8 = 4;
const SEALED: u8 = 5;

/// What a record takes beside its document and most of its heads: room for it is asked for at once.
const MOST_BYTES_BESIDE: usize = 256;

pub(crate) fn document_key(key: &ObjectKey) -> Vec<u8> {
    format!("{DOCUMENTS}{key}").into_bytes()
}

pub(crate) fn tombstone_key(key: &ObjectKey) -> Vec<u8> {
    format!("{TOMBSTONES}{key}").into_bytes()
}

/// An object's document as bytes, with what must be known of it without loading it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) incarnation: Incarnation,
    /// Of what the history was squashed; a document of another epoch cannot be merged.
    pub(crate) epoch: Epoch,
    /// Number of changes of spec.
    pub(crate) generation: u64,
    /// Number of changes in the document.
    pub(crate) changes: u64,
    /// Sorted.
    pub(crate) heads: Vec<[u8; 32]>,
    /// The incarnation of the namespace that it was created in.
    pub(crate) namespace: Option<Incarnation>,
    pub(crate) created_unix_seconds: i64,
    #[serde(serialize_with = "as_bytes")]
    pub(crate) document: Box<[u8]>,
    /// The time without contact in which it was created here, if no other node can have it (`rounds.rs`); else zero.
    pub(crate) unsent: u64,
}

/// Writes what a sequence of bytes is written as, in one piece.
fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// A record of format 3.
#[derive(Deserialize)]
struct Record3 {
    incarnation: Incarnation,
    _epoch: u32,
    generation: u64,
    heads: Vec<[u8; 32]>,
    namespace: Option<Incarnation>,
    created_unix_seconds: i64,
    document: Box<[u8]>,
}

/// What a document does not say of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) generation: u64,
    pub(crate) changes: u64,
    pub(crate) unsent: u64,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRecord {
    #[error("not a record of this version: {0}")]
    Encoding(String),
    #[error(transparent)]
    Sealed(#[from] crate::seal::Unsealable),
    #[error(transparent)]
    Document(#[from] BadBytes),
}

impl Record {
    /// Takes what is to be kept out of a document that was just changed.
    pub(crate) fn of(document: &mut Document, birth: &Birth, standing: Standing) -> Self {
        let heads = document.heads();
        Self::new(&heads, document.save(), birth, standing)
    }

    /// Takes what is to be kept of an object that was just created.
    pub(crate) fn first(first: &FirstChange, standing: Standing) -> Self {
        Self::new(&[first.hash()], first.save(), &first.contents.birth, standing)
    }

    fn new(heads: &[ChangeHash], document: Vec<u8>, birth: &Birth, standing: Standing) -> Self {
        let Standing {
            incarnation,
            epoch,
            generation,
            changes,
            unsent,
        } = standing;
        Self {
            incarnation,
            epoch,
            generation,
            changes,
            heads: heads.iter().map(|hash| hash.0).collect(),
            namespace: birth.namespace,
            created_unix_seconds: birth.unix_seconds,
            document: document.into_boxed_slice(),
            unsent,
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        Standing {
            incarnation: self.incarnation,
            epoch: self.epoch,
            generation: self.generation,
            changes: self.changes,
            unsent: self.unsent,
        }
    }

    pub(crate) fn load(&self, actor: ActorId) -> Result<Document, BadBytes> {
        Document::load(&self.document, actor)
    }

    pub(crate) fn heads(&self) -> Vec<ChangeHash> {
        self.heads.iter().map(|hash| ChangeHash(*hash)).collect()
    }

    /// Writes the value for the disk, sealed if the kind is confidential.
    pub(crate) fn encode(&self, key: &ObjectKey, seal: &Seal) -> Result<Vec<u8>, BadRecord> {
        let is_sealed = key.kind.row().confidential;
        let mut record = Vec::with_capacity(self.document.len() + MOST_BYTES_BESIDE);
        record.push(if is_sealed { SEALED } else { OPEN });
        let record =
            postcard::to_extend(self, record).map_err(|error| BadRecord::Encoding(error.to_string()))?;
        if !is_sealed {
            return Ok(record);
        }
        let sealed = seal.seal(&document_key(key), &record[1..])?;
        Ok([&[SEALED], sealed.as_slice()].concat())
    }

    pub(crate) fn decode(key: &ObjectKey, value: &[u8], seal: &Seal) -> Result<Self, BadRecord> {
        let mut plain = match value.split_first() {
            Some((&(OPEN | OPEN_4 | OPEN_3), plain)) => plain.to_vec(),
            Some((&(SEALED | SEALED_4 | SEALED_3), sealed)) => seal.unseal(&document_key(key), sealed)?,
            Some(_) | None => return Err(BadRecord::Encoding("unknown kind of record".to_owned())),
        };
        let encoding = |error: postcard::Error| BadRecord::Encoding(error.to_string());
        match value.first() {
            Some(&(OPEN_3 | SEALED_3)) => {
                let before: Record3 = postcard::from_bytes(&plain).map_err(encoding)?;
                return before.now();
            }
            // It ends before `unsent`.
            Some(&(OPEN_4 | SEALED_4)) => plain.push(0),
            Some(_) | None => {}
        }
        postcard::from_bytes(&plain).map_err(encoding)
    }
}

impl Record3 {
    fn now(self) -> Result<Record, BadRecord> {
        let changes = Document::load(&self.document, ActorId::random())?.history().len() as u64;
        Ok(Record {
            incarnation: self.incarnation,
            epoch: Epoch::default(),
            generation: self.generation,
            changes,
            heads: self.heads,
            namespace: self.namespace,
            created_unix_seconds: self.created_unix_seconds,
            document: self.document,
            unsent: 0,
        })
    }
}

/// A record with the object that it holds.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) record: Arc<Record>,
    /// With key, uid, creationTimestamp and generation, and without resourceVersion.
    pub(crate) object: Arc<Object>,
    /// `metadata.managedFields` as JSON.
    pub(crate) managed: Option<Arc<str>>,
}

impl Stored {
    pub(crate) fn new(key: &ObjectKey, uid: String, record: Record, contents: &Contents) -> Self {
        let object = show(key, uid, &record, leaves::materialise(&contents.leaves));
        Self {
            record: Arc::new(record),
            object: Arc::new(object),
            managed: managed::shown(key.kind, contents),
        }
    }
}

/// Puts key and system fields into a materialised tree.
pub(crate) fn show(key: &ObjectKey, uid: String, record: &Record, tree: Object) -> Object {
    let mut object = Object::new(key);
    let mut metadata = object.0.remove("metadata").unwrap_or_default();
    if let Some(fields) = metadata.as_object_mut() {
        fields.insert("uid".to_owned(), uid.into());
        let created = time::to_rfc3339(record.created_unix_seconds);
        fields.insert("creationTimestamp".to_owned(), created.into());
        if key.kind.has_generation() {
            fields.insert("generation".to_owned(), record.generation.into());
        }
    }
    object.0.insert("metadata".to_owned(), metadata);
    for (name, value) in tree.0 {
        match (object.0.get_mut(&name), value) {
            (Some(serde_json::Value::Object(metadata)), serde_json::Value::Object(stored)) => {
                for (name, value) in stored {
                    metadata.entry(name).or_insert(value);
                }
            }
            // Only a peer could have written these.
            (Some(_), _) => {}
            (None, value) => {
                object.0.insert(name, value);
            }
        }
    }
    object
}
