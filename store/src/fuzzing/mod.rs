//! What the targets in `fuzz/` try: bytes to whatever they can stand for, and what must hold then. Never in what ships;
//! a test replays their corpora and the regressions.
//!
//! An input is read through `arbitrary`, so that mutations of its bytes are mutations of a structure: bytes alone would
//! never pass a change's checksum. Begin at `values.rs`. Executions draw their randomness from a seed, and start no thread
//! (`replica.rs`).

mod changes;
mod frames;
mod manifests;
mod patches;
mod records;
mod replica;
mod values;

pub use changes::changes;
pub use frames::frames;
pub use manifests::manifests;
pub use records::records;

use schemas::{KINDS, Object, ObjectKey};

use crate::{NodeId, OpenOptions, Store};

/// Frames of an exchange between stores that hold a handful of objects; more would be one that does not end.
const MAX_EXCHANGE_FRAMES: usize = 100;

fn options(node: &str) -> OpenOptions {
    OpenOptions {
        cluster_id: "cluster".to_owned(),
        node: NodeId(node.to_owned()),
        seal_key: [7; 32],
    }
}

/// Every digest, and what it is of: told when two differ.
fn held(store: &Store) -> Vec<String> {
    let index = store.shared.index();
    let mut held = vec![format!("{:?}", index.header())];
    held.extend(index.held().map(|(key, removed, record)| {
        let record = record.map(|record| (record.incarnation, record.epoch, &record.heads));
        format!("{key} {removed:?} {record:?}")
    }));
    held
}

/// All that a store shows, but for revisions.
fn shown(store: &Store) -> Vec<(ObjectKey, Object)> {
    let views = KINDS.iter().flat_map(|row| store.list(row.kind, None).items);
    let without_revision = views.map(|view| {
        let mut object = Object::clone(&view.object);
        object.remove(&["metadata", "resourceVersion"]);
        (view.key, object)
    });
    without_revision.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, run: impl Fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let mut inputs = 0;
        for of in ["corpus", "regressions"] {
            for entry in std::fs::read_dir(folder.join(of).join(target))
                .into_iter()
                .flatten()
            {
                let path = entry.unwrap().path();
                eprintln!("{}", path.display());
                run(&std::fs::read(path).unwrap());
                inputs += 1;
            }
        }
        assert!(inputs > 0, "no corpus");
    }

    #[test]
    fn the_corpus_of_changes_is_merged() {
        replay("changes", super::changes);
    }

    #[test]
    fn the_corpus_of_frames_is_received() {
        replay("frames", super::frames);
    }

    #[test]
    fn the_corpus_of_records_is_opened() {
        replay("records", super::records);
    }

    #[test]
    fn the_corpus_of_manifests_is_read() {
        replay("manifests", super::manifests);
    }
}
