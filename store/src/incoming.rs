//! Changes as they come from peers: read and checked by their bytes alone, so that all replicas decide alike. Pure.

use std::collections::BTreeSet;

use automerge::legacy::{Key, ObjectId, OpType};
use automerge::{Change, ChangeHash, ExpandedChange, ScalarValue};

use crate::document::{BadBytes, CREATED, CREATOR, ChangeAuthor, NAMESPACE, touches_spec};
use crate::epoch::Base;
use crate::incarnation::Incarnation;
use crate::leaves;
use crate::owners::{self, Owner};
use crate::run_lengths;

/// The largest change from a peer: the largest object, twice (as fields and as a group), and its paths.
pub(crate) const MAX_CHANGE_BYTES: usize = 3_500_000;
/// The most operations in a change from a peer: an object of the largest size has no more leaves than this.
const MAX_OPERATIONS: u64 = 500_000;
/// The most bytes of the paths in a change from a peer, as many as two of each in it (a deletion and a put).
const MAX_PATHS_BYTES: usize = 2 * MAX_CHANGE_BYTES;

/// The farthest time of a change, in seconds before or after 1970: 34,000 years. automerge keeps the differences between times,
/// which must be numbers too.
const MAX_UNIX_SECONDS: u64 = 1 << 40;

/// A change from a peer that is well formed: it touches only leaves, and only with values that they can hold.
pub(crate) struct IncomingChange {
    pub(crate) change: Change,
    pub(crate) hash: ChangeHash,
    pub(crate) paths: Vec<String>,
    /// What it adds to `metadata.generation`.
    pub(crate) spec_changes: u64,
    /// It is the first change of a squashed history.
    pub(crate) base: Option<Base>,
}

impl IncomingChange {
    /// Checks and reads a change. Whether it is accepted depends on its bytes alone, so that all replicas decide alike.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BadBytes> {
        check_size(bytes)?;
        // Only plain changes: a compressed one could unpack to any size.
        if bytes.get(CHUNK_TYPE_AT) != Some(&CHUNK_TYPE_CHANGE) {
            return Err(BadBytes("not a change".to_owned()));
        }
        match run_lengths::operations(bytes) {
            Some(1..=MAX_OPERATIONS) => {}
            Some(count) => return Err(BadBytes(format!("a change of {count} operations"))),
            None => return Err(BadBytes("a change that cannot be read".to_owned())),
        }
        let (change, expanded) = guarded(|| {
            let change = Change::from_bytes(bytes.to_vec()).map_err(|error| BadBytes(error.to_string()))?;
            let expanded = change.decode();
            Ok((change, expanded))
        })?;
        if change.timestamp().unsigned_abs() > MAX_UNIX_SECONDS {
            return Err(BadBytes("a change of no time that there is".to_owned()));
        }
        let paths = check_operations(&expanded)?;
        let is_first = expanded.deps.is_empty();
        let base = read_message(&change)?;
        check_written(&change, expanded)?;
        // What is deleted and put in one change stays as it was (see `Document::write`).
        let mut changed = BTreeSet::new();
        for path in &paths {
            if !changed.insert(path) {
                changed.remove(path);
            }
        }
        let is_spec = is_first || touches_spec(changed);
        Ok(Self {
            hash: change.hash(),
            spec_changes: base.as_ref().map_or(u64::from(is_spec), |base| base.generation),
            paths,
            base,
            change,
        })
    }
}

/// Changes that nobody can take, and why the first of them.
#[derive(Default, Debug)]
pub(crate) struct Refused {
    pub(crate) count: usize,
    pub(crate) first: Option<BadBytes>,
}

impl Refused {
    pub(crate) fn add(&mut self, error: BadBytes) {
        self.count += 1;
        self.first.get_or_insert(error);
    }
}

/// Runs what reads a peer's bytes: automerge has panics for what it thinks impossible.
pub(crate) fn guarded<T>(
    read: impl FnOnce() -> Result<T, BadBytes> + std::panic::UnwindSafe,
) -> Result<T, BadBytes> {
    std::panic::catch_unwind(read).map_err(|_| BadBytes("a change that cannot be read".to_owned()))?
}

/// Magic bytes (4) and checksum (4) come before the chunk's type.
const CHUNK_TYPE_AT: usize = 8;
const CHUNK_TYPE_CHANGE: u8 = 1;

fn check_operations(change: &ExpandedChange) -> Result<Vec<String>, BadBytes> {
    let (mut paths, mut bytes) = (Vec::with_capacity(change.operations.len()), 0);
    for operation in &change.operations {
        let (ObjectId::Root, Key::Map(key), false) = (&operation.obj, &operation.key, operation.insert)
        else {
            return Err(BadBytes("an operation outside the flat map".to_owned()));
        };
        let at_path = |reason| bad_leaf(key, reason);
        match &operation.action {
            OpType::Put(value) => check_put(key, value)?,
            OpType::Delete if owners::is_owner_key(key) => {}
            OpType::Delete if key.starts_with('@') => {
                return Err(at_path("a deletion of what never changes"));
            }
            OpType::Delete => leaves::check_path(key).map_err(at_path)?,
            OpType::Make(_) | OpType::Increment(_) | OpType::MarkBegin(..) | OpType::MarkEnd(_) => {
                return Err(at_path("an operation that is neither put nor delete"));
            }
        }
        bytes += key.len();
        if bytes > MAX_PATHS_BYTES {
            return Err(at_path("a path that is repeated"));
        }
        paths.push(key.to_string());
    }
    Ok(paths)
}

/// Checks that a change is written as automerge writes what it says. A document keeps operations, not the bytes of changes:
/// loaded, it writes them anew, and finds another hash than it was saved with if they were written otherwise (in longer runs
/// than there are operations, say). Nobody could read such a document again.
fn check_written(change: &Change, expanded: ExpandedChange) -> Result<(), BadBytes> {
    let written = guarded(|| Ok(Change::from(expanded).hash()))?;
    if written != change.hash() {
        return Err(BadBytes("a change that is not written as its like".to_owned()));
    }
    Ok(())
}

pub(crate) fn check_size(change: &[u8]) -> Result<(), BadBytes> {
    if change.len() > MAX_CHANGE_BYTES {
        return Err(BadBytes(format!(
            "a change of {} bytes, at most {MAX_CHANGE_BYTES}",
            change.len()
        )));
    }
    Ok(())
}

fn bad_leaf(key: &str, reason: &'static str) -> BadBytes {
    BadBytes(format!("{key:.100}: {reason}"))
}

/// Checks what is put at a key, here and by peers alike.
pub(crate) fn check_put(key: &str, value: &ScalarValue) -> Result<(), BadBytes> {
    let checked = if key.starts_with('@') {
        check_meta(key, value)
    } else {
        leaves::check_leaf(key, value)
    };
    checked.map_err(|reason| bad_leaf(key, reason))
}

fn check_meta(key: &str, value: &ScalarValue) -> Result<(), &'static str> {
    let fits = match (key, value) {
        (CREATOR, ScalarValue::Str(owner)) => Owner::parse(owner).is_some(),
        (CREATED, ScalarValue::Int(_)) => true,
        (NAMESPACE, ScalarValue::Str(text)) => text.parse::<Incarnation>().is_ok(),
        (key, ScalarValue::Boolean(true)) => {
            owners::parse_key(key).is_some_and(|(_, path)| leaves::check_path(path).is_ok())
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err("not a leaf of ours") }
}

/// Reads who made a change and, of a base, what it stands for.
fn read_message(change: &Change) -> Result<Option<Base>, BadBytes> {
    let message = change.message().unwrap_or_default();
    let author: ChangeAuthor =
        serde_json::from_str(message).map_err(|_| BadBytes("a change without its author".to_owned()))?;
    author.check()?;
    let Some(dropped) = author.dropped else {
        return Ok(None);
    };
    if !change.deps().is_empty() {
        return Err(BadBytes("a base that builds on something".to_owned()));
    }
    let base =
        Base::parse(dropped, message).ok_or_else(|| BadBytes("a base that cannot be read".to_owned()))?;
    Ok(Some(base))
}

#[cfg(test)]
mod tests {
    use automerge::transaction::{CommitOptions, Transactable};
    use automerge::{AutoCommit, ROOT};

    use super::*;
    use crate::path::MAX_LEVELS;

    fn parsed(message: &str, unix_seconds: i64) -> Result<IncomingChange, BadBytes> {
        let mut document = AutoCommit::new();
        document.put(ROOT, "spec/replicas", 1).unwrap();
        let options = CommitOptions::default()
            .with_message(message)
            .with_time(unix_seconds);
        document.commit_with(options);
        IncomingChange::parse(document.get_last_local_change().unwrap().raw_bytes())
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let author = r#"{"m": "git", "n": "node"}"#;
        let latest = 1 << 40;
        for unix_seconds in [0, latest, -latest] {
            assert!(parsed(author, unix_seconds).is_ok());
        }
        for unix_seconds in [latest + 1, -latest - 1, i64::MAX, i64::MIN] {
            assert!(parsed(author, unix_seconds).is_err());
        }
        let base = |generation: u64, dropped: u64, included: u64| {
            format!(r#"{{"m":"x","n":"y","d":{dropped},"g":{generation},"v":{{"00":{included}}},"f":0}}"#)
        };
        let most = 1 << 53;
        assert!(parsed(&base(most, most, most), 0).is_ok());
        for (generation, dropped, included) in [(u64::MAX, 1, 1), (1, u64::MAX, 1), (1, 1, most + 1)] {
            assert!(parsed(&base(generation, dropped, included), 0).is_err());
        }
    }

    #[test]
    fn what_is_too_deep_to_be_read_again_is_refused() {
        let leaf = |tokens: usize, levels: usize| {
            let json = "[".repeat(levels) + &"]".repeat(levels);
            (vec!["a"; tokens].join("/"), ScalarValue::Bytes(json.into_bytes()))
        };
        let accepted = |(path, value): &(String, ScalarValue)| {
            let mut document = AutoCommit::new();
            document.put(ROOT, path, value.clone()).unwrap();
            document.commit_with(CommitOptions::default().with_message(r#"{"m": "git", "n": "node"}"#));
            IncomingChange::parse(document.get_last_local_change().unwrap().raw_bytes()).is_ok()
        };
        for tokens in [1, 2, 60, MAX_LEVELS - 1] {
            let deepest = leaf(tokens, MAX_LEVELS - tokens);
            assert!(accepted(&deepest));
            assert!(!accepted(&leaf(tokens, MAX_LEVELS - tokens + 1)));
            let object = leaves::materialise(&[deepest].into());
            // As one of a list.
            let list = serde_json::json!({ "items": [object] });
            let read: serde_json::Value = serde_json::from_str(&list.to_string()).unwrap();
            assert_eq!(read, list);
        }
        for (tokens, fits) in [(MAX_LEVELS, true), (MAX_LEVELS + 1, false)] {
            assert_eq!(accepted(&(leaf(tokens, 0).0, ScalarValue::Int(1))), fits);
        }
        // What is written here is far below: depth, and a group's token and map.
        const { assert!(leaves::MAX_DEPTH + 2 < MAX_LEVELS) }
    }

    /// [`check_written`] refuses nothing that automerge wrote, however large, and whatever it builds on.
    #[test]
    fn changes_of_any_size_are_written_as_automerge_writes_them() {
        let value = |number: usize| match number % 7 {
            0 => ScalarValue::Str("the same".into()),
            1 => ScalarValue::Str(number.to_string().into()),
            2 => ScalarValue::Int(number as i64 - 50),
            3 => ScalarValue::Boolean(number.is_multiple_of(2)),
            4 => ScalarValue::Null,
            5 => ScalarValue::F64(0.5),
            _ => ScalarValue::Bytes(b"[]".to_vec()),
        };
        let commit = |document: &mut AutoCommit, message: &str| {
            document.commit_with(CommitOptions::default().with_message(message));
            let bytes = document.get_last_local_change().unwrap().raw_bytes().to_vec();
            if let Err(error) = IncomingChange::parse(&bytes) {
                panic!("{error}");
            }
        };
        let author = r#"{"m": "git", "n": "node"}"#;
        for operations in [1, 2, 100, 10_000] {
            let mut document = AutoCommit::new();
            for number in 0..operations {
                document
                    .put(ROOT, format!("data/{number}"), value(number))
                    .unwrap();
            }
            commit(&mut document, author);
            let mut other = document.fork();
            for (document, step) in [(&mut document, 1), (&mut other, 2)] {
                for number in (0..operations).step_by(step) {
                    let path = format!("data/{number}");
                    match number % 3 {
                        0 => document.delete(ROOT, path).unwrap(),
                        _ => document.put(ROOT, path, value(number + 1)).unwrap(),
                    }
                }
                commit(document, author);
            }
            // What both wrote has two predecessors now, of two writers.
            document.merge(&mut other).unwrap();
            for number in 0..operations {
                document.put(ROOT, format!("data/{number}"), "x").unwrap();
            }
            commit(&mut document, author);
        }
    }
}
