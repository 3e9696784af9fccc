//! The file of a backup: a YAML stream, as a whole in age format where it holds confidential objects.
//!
//! Its first document says what it is (`Backup`), the last one (`BackupEnd`) how many objects there are and the SHA-256 of
//! all before it; between them are manifests as any tool reads them. The digest finds accidents: who may write the file
//! may write that, too. What a sealed file holds proves itself by age's own means.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;

use schemas::{Kind, Object, hex, manifest, time};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use store::Snapshot;

use super::age::{AgeError, Identity, Sealer, is_sealed};
use super::content::portable;

/// Version of the stream.
pub const FORMAT: i64 = 1;
/// Largest backup, unsealed: 10,000 objects of 2 KB are 20 MB, 200 of the largest size 200 MB. It is held in memory once to
/// be restored.
pub const MAX_BACKUP_BYTES: usize = 256 << 20;

const API_VERSION: &str = "podman-swarm.io/v1";
const FIRST: &str = "Backup";
const LAST: &str = "BackupEnd";
const SEPARATOR: &str = "---\n";

/// Where a backup is from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    pub cluster_id: String,
    /// Name of the node that made it.
    pub node: String,
    /// Of the agent that made it.
    pub version: String,
    /// Seconds since the Unix epoch.
    pub created: i64,
}

/// Whether a backup is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sealing {
    /// If it holds objects of a confidential kind.
    #[default]
    Confidential,
    Always,
    Never,
}

impl Sealing {
    /// Decides for what is in a snapshot.
    pub fn seals(self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Confidential => snapshot.kinds().any(|kind| kind.row().confidential),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Why a backup was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the content is larger than {} MiB, the most that can be restored", MAX_BACKUP_BYTES >> 20)]
    TooLarge,
    #[error("cannot write the backup")]
    Io(#[from] io::Error),
}

/// Why a file is no backup that can be restored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Age(#[from] AgeError),
    #[error("it is larger than {} MiB", MAX_BACKUP_BYTES >> 20)]
    TooLarge,
    #[error("it is no backup: {0}")]
    Foreign(&'static str),
    #[error("it has format {found}, this version reads {FORMAT}: use a newer version of Podman Swarm")]
    Format { found: i64 },
    #[error("it was cut off or changed: {0}")]
    Damaged(String),
}

/// Counts and digests what passes.
struct Digesting<W> {
    out: W,
    digest: Sha256,
    bytes: usize,
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, text: &str) -> Result<(), WriteError> {
        self.bytes += text.len();
        if self.bytes > MAX_BACKUP_BYTES {
            return Err(WriteError::TooLarge);
        }
        self.digest.update(text.as_bytes());
        Ok(self.out.write_all(text.as_bytes())?)
    }
}

/// Writes a backup of a snapshot, sealed under `identity` or not, and returns the number of its objects.
///
/// # Errors
/// `out` does not take it, or there is more than can be restored.
pub fn write<W: Write>(
    snapshot: &Snapshot,
    about: &About,
    seal_for: Option<&Identity>,
    mut out: W,
) -> Result<usize, WriteError> {
    match seal_for {
        Some(identity) => {
            let mut sealer = Sealer::new(identity, &mut out)?;
            let count = write_plain(snapshot, about, &mut sealer)?;
            sealer.finish()?;
            out.flush()?;
            Ok(count)
        }
        None => {
            let count = write_plain(snapshot, about, &mut out)?;
            out.flush()?;
            Ok(count)
        }
    }
}

fn write_plain(snapshot: &Snapshot, about: &About, out: impl Write) -> Result<usize, WriteError> {
    let mut stream = Digesting {
        out,
        digest: Sha256::new(),
        bytes: 0,
    };
    stream.put(&document(first(about)))?;
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut namespaces_left_out = BTreeSet::new();
    // Namespaces come first, in the order of kinds.
    for (key, stored) in snapshot.documents() {
        match portable(&stored) {
            Some(_) if namespaces_left_out.contains(&key.namespace) => {}
            Some(object) => {
                stream.put(SEPARATOR)?;
                stream.put(&manifest::to_yaml(&object))?;
                *counts.entry(key.kind.row().name).or_default() += 1;
            }
            None if key.kind == Kind::Namespace => {
                namespaces_left_out.insert(key.name.clone());
            }
            None => {}
        }
    }
    let total = counts.values().sum();
    let digest = hex(&stream.digest.clone().finalize());
    let last = json!({
        "apiVersion": API_VERSION,
        "kind": LAST,
        "spec": {"counts": counts, "sha256": digest},
    });
    stream.put(SEPARATOR)?;
    stream.put(&document(last))?;
    Ok(total)
}

fn first(about: &About) -> serde_json::Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": FIRST,
        "metadata": {"creationTimestamp": time::to_rfc3339(about.created)},
        "spec": {
            "clusterID": about.cluster_id,
            "node": about.node,
            "version": about.version,
            "format": FORMAT,
        },
    })
}

fn document(value: serde_json::Value) -> String {
    manifest::to_yaml(&Object::from_value(value).unwrap_or_default())
}

// ---------------------------------------------------------------- reading

/// Opens a file if it is sealed.
///
/// # Errors
/// It is sealed for another key, or damaged.
pub fn open(file: Vec<u8>, identity: &Identity) -> Result<Vec<u8>, ReadError> {
    if is_sealed(&file) {
        Ok(identity.open(&file)?)
    } else {
        Ok(file)
    }
}

/// A backup whose frame was checked.
#[derive(Debug)]
pub struct Backup {
    pub about: About,
    text: String,
    /// Where the objects are in the text.
    objects: Vec<Range<usize>>,
}

/// Checks the frame of an unsealed backup: whole, unchanged, and of a format that this version reads.
///
/// # Errors
/// What it is instead.
pub fn read(bytes: Vec<u8>) -> Result<Backup, ReadError> {
    if is_sealed(&bytes) {
        return Err(ReadError::Foreign("it is sealed, and has to be opened first"));
    }
    if bytes.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----") {
        return Err(ReadError::Foreign(
            "it is armoured: open it with `age -d -i` first",
        ));
    }
    if bytes.len() > MAX_BACKUP_BYTES {
        return Err(ReadError::TooLarge);
    }
    let text = String::from_utf8(bytes).map_err(|_| ReadError::Foreign("it is no text"))?;
    let mut objects = split(&text);
    let about = about(&text[objects.remove(0)])?;
    let cut_off = || ReadError::Damaged("its end is missing".to_owned());
    let end = objects.pop().ok_or_else(cut_off)?;
    let last = parse(&text[end.clone()]).filter(|last| last.str_at("/kind") == LAST);
    let last = last.ok_or_else(cut_off)?;
    let covered = &text[..end.start - SEPARATOR.len()];
    if hex(&Sha256::digest(covered)) != last.str_at("/spec/sha256") {
        let reason = "its content does not match its checksum; to use what was edited on purpose, take out the first and the last document and apply it with psctl apply -f";
        return Err(ReadError::Damaged(reason.to_owned()));
    }
    Ok(Backup { about, text, objects })
}

/// A line of three dashes stands between documents: nothing that our writer writes inside one begins in the first column
/// with a dash and two more. There is always one document, perhaps an empty one.
fn split(text: &str) -> Vec<Range<usize>> {
    let mut documents = Vec::new();
    let mut begin = 0;
    for (at, _) in text.match_indices("\n---\n") {
        documents.push(begin..at + 1);
        begin = at + 1 + SEPARATOR.len();
    }
    documents.push(begin..text.len());
    documents
}

fn parse(document: &str) -> Option<Object> {
    let mut objects = manifest::parse(document.as_bytes()).ok()?;
    objects.pop().filter(|_| objects.is_empty())
}

fn about(document: &str) -> Result<About, ReadError> {
    let first = parse(document)
        .filter(|first| first.str_at("/apiVersion") == API_VERSION && first.str_at("/kind") == FIRST)
        .ok_or(ReadError::Foreign(
            "it does not begin with a document of kind Backup",
        ))?;
    match first.i64_at("/spec/format") {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => return Err(ReadError::Format { found }),
        Some(_) | None => return Err(ReadError::Foreign("its format is no number that ever was")),
    }
    Ok(About {
        cluster_id: first.str_at("/spec/clusterID").to_owned(),
        node: first.str_at("/spec/node").to_owned(),
        version: first.str_at("/spec/version").to_owned(),
        created: time::from_rfc3339(first.str_at("/metadata/creationTimestamp")).unwrap_or_default(),
    })
}

impl Backup {
    /// Returns how many objects it holds.
    pub fn count(&self) -> usize {
        self.objects.len()
    }

    /// Reads one of its objects, in the order that they are to be made in. Trees take many times their text in memory, so
    /// few of them should be there at once.
    ///
    /// # Errors
    /// The document is no object.
    pub fn object(&self, index: usize) -> Result<Object, ReadError> {
        let document = self.objects.get(index).map(|range| &self.text[range.clone()]);
        let no_object = || ReadError::Damaged(format!("document {} holds no object", index + 2));
        document.and_then(parse).ok_or_else(no_object)
    }
}
