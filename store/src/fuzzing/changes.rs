//! Changes of peers, merged in two orders: nobody's bytes break a document, and of what is taken both copies hold the same.

use arbitrary::Result;
use automerge::{ActorId, AutoCommit, Change, ChangeHash};

use super::values::{self, Source};
use crate::document::Document;
use crate::incoming::IncomingChange;
use crate::leaves::{self, Leaves};

const STEPS: usize = 16;

/// Merges changes that several writers made, those whose bytes were changed, and bytes that are none.
pub fn changes(input: &[u8]) {
    let mut source = Source::new(input);
    let mut changes = Vec::new();
    // What runs out of bytes is tried as it is.
    let _ = make(&mut source, &mut changes);
    let changes: Vec<IncomingChange> = changes
        .iter()
        .filter_map(|bytes| IncomingChange::parse(bytes).ok())
        .collect();
    let forth = merged(changes.iter());
    let back = merged(changes.iter().rev());
    if let (Some(mut forth), Some(mut back)) = (forth, back) {
        assert_eq!(forth.heads(), back.heads());
        assert_eq!(forth.contents(), back.contents());
    }
}

fn make(source: &mut Source<'_>, changes: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut writers: Vec<AutoCommit> = (0..3_u8)
        .map(|number| AutoCommit::new().with_actor(ActorId::from([number; 16])))
        .collect();
    while !source.is_empty() && changes.len() < STEPS {
        let writer = source.choose_index(writers.len())?;
        match source.int_in_range(0..=9_u8)? {
            0..=4 => changes.push(values::change(source, &mut writers[writer])?),
            5 | 6 => {
                let other = source.choose_index(writers.len())?;
                let mut other = writers[other].clone();
                let _ = writers[writer].merge(&mut other);
            }
            7 if !changes.is_empty() => {
                let (of_type, content) = values::content(source.choose(changes)?);
                let content = values::mutated(source, content.to_vec())?;
                changes.push(values::chunk(of_type, &content));
            }
            8 => changes.push(values::chunk(1, source.arbitrary()?)),
            _ => changes.push(source.arbitrary()?),
        }
    }
    Ok(())
}

/// Merges one change after the other until nothing is taken any more; None, if automerge refuses one: two that say to be
/// the same of one writer.
fn merged<'a>(changes: impl Iterator<Item = &'a IncomingChange>) -> Option<Document> {
    let mut left: Vec<&IncomingChange> = changes.collect();
    let mut document = Document::new(ActorId::from([9; 16]));
    let mut taken: Vec<&IncomingChange> = Vec::new();
    let mut is_refused = false;
    loop {
        let before = left.len();
        let mut later = Vec::new();
        for change in left {
            match document.merge(&[change]) {
                Ok(merged) if merged.missing => later.push(change),
                Ok(_) => taken.push(change),
                Err(_) => {
                    is_refused = true;
                    // After an error it is of no use.
                    document = Document::new(ActorId::from([9; 16]));
                    for change in &taken {
                        document.merge(&[change]).expect("it was taken before");
                    }
                }
            }
        }
        if later.len() == before {
            check(&mut document);
            return (!is_refused).then_some(document);
        }
        left = later;
    }
}

/// What must hold of a document, whatever it took.
fn check(document: &mut Document) {
    let contents = document.contents();
    let loaded = Document::load(&document.save(), ActorId::from([9; 16]));
    let mut loaded = loaded.expect("what was saved");
    assert_eq!(loaded.heads(), document.heads());
    assert_eq!(loaded.contents(), contents);
    for (path, value) in &contents.raw {
        assert_eq!(leaves::check_leaf(path, value), Ok(()), "{path}");
    }
    let object = leaves::materialise(&contents.leaves);
    if leaves::check_limits(&object).is_ok() {
        let kind = schemas::Kind::Deployment;
        let written = leaves::flatten(kind, &object, &contents.leaves);
        let edits = leaves::diff(&contents.leaves, &written);
        let mut after: Leaves = contents.leaves;
        edits.deletes.iter().for_each(|path| drop(after.remove(path)));
        after.extend(edits.puts);
        assert_eq!(leaves::materialise(&after), object);
    }
    // What peers are sent of it they take.
    let own: Vec<Vec<u8>> = document.changes_after(&[]);
    assert_eq!(own.len(), document.history().len());
    for bytes in own {
        let hash = Change::from_bytes(bytes.clone()).map(|change| change.hash());
        let taken = IncomingChange::parse(&bytes).map(|change| change.hash);
        assert_eq!(
            taken.ok().as_ref().map(ChangeHash::as_ref),
            hash.ok().as_ref().map(ChangeHash::as_ref)
        );
    }
}
