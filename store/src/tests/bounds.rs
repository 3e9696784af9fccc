//! What changes and removals without end leave behind, at the thresholds of the product: the bounds that `docs/store.md` states.

use std::time::{Duration, Instant};

use schemas::Kind;

use super::*;
use crate::compaction::{KEPT, LONG};
use crate::rounds::MANY;

/// Between two looks of the drivers; in the product as many as half a second brings.
const PER_LOOK: u64 = 32;
/// A document of an object of 1 KiB, with all that is remembered of its changes.
const MOST_DOCUMENT_BYTES: usize = 64 << 10;
/// Canary, copy, revision, format, contact, round and floor.
const META_RECORDS: usize = 7;
/// A disk that keeps what it must and no more.
const MOST_DISK_BYTES: usize = 256 << 10;
/// Far more than it takes, on any machine: 10,000 changes or records would take longer.
const LONGEST_START: Duration = Duration::from_secs(2);

/// Changes and removals: some in each run, and 10,000 in `make test-all`.
fn rounds() -> u64 {
    let given = std::env::var("STORE_ROUNDS").ok();
    given.and_then(|rounds| rounds.parse().ok()).unwrap_or(300)
}

/// Two nodes whose drivers look at them as those of the product do.
struct Pair {
    stores: [Store; 2],
    disks: [MemoryDisk; 2],
    most_changes: u64,
    most_document_bytes: usize,
    most_tombstones: usize,
    most_records: usize,
    most_disk_bytes: usize,
}

impl Pair {
    fn new() -> Self {
        let disks = [MemoryDisk::default(), MemoryDisk::default()];
        let open = |at: usize, name: &str| Store::open_in_memory(disks[at].clone(), options(name)).unwrap();
        Self {
            stores: [open(0, "a"), open(1, "b")],
            disks,
            most_changes: 0,
            most_document_bytes: 0,
            most_tombstones: 0,
            most_records: 0,
            most_disk_bytes: 0,
        }
    }

    /// Notes the sizes, brings the nodes in step, and squashes and closes what is due.
    async fn look(&mut self) {
        for (store, disk) in self.stores.iter().zip(&self.disks) {
            let (records, bytes) = disk.size();
            self.most_records = self.most_records.max(records);
            self.most_disk_bytes = self.most_disk_bytes.max(bytes);
            self.most_tombstones = self.most_tombstones.max(store.tombstones());
            let index = store.shared.index();
            for (_, record, _) in index.documents() {
                self.most_changes = self.most_changes.max(record.changes);
                self.most_document_bytes = self.most_document_bytes.max(record.document.len());
            }
        }
        let [a, b] = &self.stores;
        exchange(a, b).await;
        let squashed = squash(&[a, b], 0, &[true; 2], LONG, KEPT).await;
        let closing = a.propose_closing(true).await.unwrap();
        let is_closed = closing.is_some();
        if let Some(mut closing) = closing {
            let peer = NodeId("a".to_owned());
            let Exchange::Send(answer) = b.receive(&peer, &closing.frame()).await.unwrap() else {
                panic!("a proposal is answered");
            };
            closing.answered(&answer);
            assert!(a.close_round(closing).await.unwrap());
        }
        if squashed > 0 || is_closed {
            exchange(a, b).await;
        }
    }

    /// Prints and checks the sizes, and opens a disk again.
    fn check(&self, what: &str) {
        let start = Instant::now();
        let again = Store::open_in_memory(self.disks[1].after_power_loss(), options("b")).unwrap();
        let took = start.elapsed();
        println!(
            "{what}: at most {} changes and {} bytes of a document, {} tombstones, {} records and {} bytes on a disk; open again \
             in {took:.1?}",
            self.most_changes,
            self.most_document_bytes,
            self.most_tombstones,
            self.most_records,
            self.most_disk_bytes
        );
        assert_eq!(again.digest(), self.stores[0].digest());
        assert_eq!(again.digest(), self.stores[1].digest());
        assert!(self.most_changes <= LONG + PER_LOOK);
        assert!(self.most_document_bytes <= MOST_DOCUMENT_BYTES);
        assert!(self.most_tombstones < MANY + PER_LOOK as usize);
        assert!(self.most_records <= self.most_tombstones + 1 + META_RECORDS);
        assert!(self.most_disk_bytes <= MOST_DISK_BYTES);
        assert!(took < LONGEST_START, "{took:?}");
    }
}

#[tokio::test]
async fn changes_without_end_are_bounded() {
    let mut pair = Pair::new();
    let key = key_of(&deployment("web"));
    pair.stores[0]
        .create(deployment("web"), author("x"))
        .await
        .unwrap();
    pair.look().await;
    for number in 1..=rounds() {
        // Most changes are made where squashes are proposed, some on the other node.
        let at = usize::from(number % PER_LOOK == 0);
        edit(&pair.stores[at], &key, |object| {
            object.set(&["spec", "replicas"], number);
            object.set(&["metadata", "annotations", "number"], number.to_string());
            // Elements that come and go leave something to be remembered.
            let env = json!([{"name": format!("E{number}"), "value": "1"}]);
            object.0["spec"]["template"]["spec"]["containers"][0]["env"] = env;
        })
        .await;
        if number % PER_LOOK == 0 {
            pair.look().await;
        }
    }
    pair.look().await;
    let view = pair.stores[1].get(&key).unwrap();
    assert_eq!(
        view.object.str_at("/metadata/annotations/number"),
        rounds().to_string()
    );
    pair.check(&format!("{} changes of one object", rounds()));
}

async fn created_and_removed(pair: &mut Pair, rounds: u64, name: impl Fn(u64) -> String) {
    for number in 1..=rounds {
        let object = Object::new(&ObjectKey::cluster(Kind::Node, name(number)));
        let view = pair.stores[0].create(object, author("x")).await.unwrap();
        pair.stores[0]
            .remove(&view.key, &Precondition::default(), author("x"))
            .await
            .unwrap();
        assert!(pair.stores[0].is_removed(&view.key, view.object.uid()));
        if number % PER_LOOK == 0 {
            pair.look().await;
        }
    }
    pair.look().await;
}

#[tokio::test]
async fn one_name_that_is_used_without_end_is_bounded() {
    let mut pair = Pair::new();
    created_and_removed(&mut pair, rounds(), |_| "one".to_owned()).await;
    assert_eq!(pair.most_tombstones, 1);
    pair.check(&format!("{} objects of one name, made and removed", rounds()));
}

#[tokio::test]
async fn names_that_are_used_once_are_bounded() {
    let mut pair = Pair::new();
    let names = rounds().max(2 * MANY as u64);
    created_and_removed(&mut pair, names, |number| format!("n{number}")).await;
    assert!(pair.stores[1].floor() > 0, "rounds are closed");
    pair.check(&format!("{names} objects of as many names, made and removed"));
}
