//! What survives: crashes, full and failing disks, wrong keys.

use std::path::Path;

use schemas::Kind;

use super::*;
use crate::frame::{self, Body, Header};
use crate::{CommitError, DiskState, OpenError, Revision};

#[tokio::test]
async fn what_was_acknowledged_survives_the_loss_of_power() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let web = store.create(deployment("web"), author("x")).await.unwrap();
    store.create(deployment("db"), author("x")).await.unwrap();
    let edited = edit(&store, &web.key, |object| object.set(&["spec", "replicas"], 5)).await;
    store
        .remove(&key_of(&deployment("db")), &Precondition::default(), author("x"))
        .await
        .unwrap();

    let reopened = Store::open_in_memory(disk.after_power_loss(), options("a")).unwrap();
    let shown = reopened.get(&web.key).unwrap();
    assert_eq!(plain(&shown.object), plain(&edited.object));
    assert_eq!(shown.object.uid(), web.object.uid());
    assert_eq!(shown.object.generation(), 2);
    assert_eq!(reopened.list(Kind::Deployment, None).items.len(), 1);
    assert_eq!(reopened.digest(), store.digest());
    assert!(
        reopened.revision() > store.revision(),
        "no revision is issued twice"
    );
    assert_eq!(reopened.revision().tag(), store.revision().tag());
    let again = reopened.create(deployment("db"), author("x")).await.unwrap();
    assert_eq!(again.object.generation(), 1);
}

#[tokio::test]
async fn of_rounds_that_come_at_once_the_highest_is_kept() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let frame = |round| {
        let buckets = store.shared.index().digests().buckets().to_vec();
        let header = Header {
            round,
            ..Header::default()
        };
        let going = store.shared.index().going();
        frame::encode(header, &Body::Digests { buckets, going }).unwrap()
    };
    let peer = NodeId("b".to_owned());
    let (high, low) = (frame(5), frame(4));
    let (first, second) = tokio::join!(store.receive(&peer, &high), store.receive(&peer, &low));
    first.unwrap();
    second.unwrap();
    let reopened = Store::open_in_memory(disk.after_power_loss(), options("a")).unwrap();
    assert_eq!(
        (store.shared.index().round(), reopened.shared.index().round()),
        (5, 5)
    );
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    store.create(deployment("web"), author("x")).await.unwrap();
    let mut state = store.disk();
    disk.set_full(true);
    let refused = store.create(deployment("db"), author("x")).await;
    assert!(matches!(refused, Err(WriteError::Commit(CommitError::Full(_)))));
    assert!(matches!(&*state.borrow_and_update(), DiskState::Full(shortage) if shortage.path == "memory"));
    assert!(store.get(&key_of(&deployment("db"))).is_none());
    assert_eq!(store.list(Kind::Deployment, None).items.len(), 1);
    disk.set_full(false);
    store.create(deployment("db"), author("x")).await.unwrap();
    assert_eq!(*state.borrow_and_update(), DiskState::Well);
    // Without a write, too.
    for full in [true, false] {
        disk.set_full(full);
        store.look_at_disk();
        state.changed().await.unwrap();
        assert_eq!(matches!(*state.borrow_and_update(), DiskState::Full(_)), full);
    }
    disk.set_full(true);
    let refused = Store::open_in_memory(disk, options("a")).err().unwrap();
    assert!(matches!(refused, OpenError::Full(_)), "{refused}");
}

#[tokio::test]
async fn a_failed_sync_stops_writes_for_good() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let web = store.create(deployment("web"), author("x")).await.unwrap();
    disk.set_failing(true);
    for _ in 0..2 {
        let refused = store.create(deployment("db"), author("x")).await;
        assert!(
            matches!(refused, Err(WriteError::Commit(CommitError::Failed(_)))),
            "{refused:?}"
        );
        assert!(matches!(*store.disk().borrow(), DiskState::Failed(_)));
        disk.set_failing(false);
    }
    assert!(store.get(&web.key).is_some());
    assert!(
        store.get(&key_of(&deployment("db"))).is_none(),
        "shown only when durable"
    );
}

#[tokio::test]
async fn confidential_records_need_their_key() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let mut token = Object::new(&ObjectKey::cluster(Kind::ApiToken, "t1"));
    token.set(&["spec", "hash"], "0123456789abcdef");
    let written = store.create(token, author("x")).await.unwrap();
    store.close().await;
    assert!(!format!("{disk:?}").contains(&format!("{:?}", b"0123456789abcdef").replace(['[', ']'], "")));

    let mut wrong = options("a");
    wrong.seal_key = [8; 32];
    let refused = Store::open_in_memory(disk.after_power_loss(), wrong);
    assert!(matches!(refused, Err(OpenError::WrongKey { .. })));
    let reopened = Store::open_in_memory(disk.after_power_loss(), options("a")).unwrap();
    assert_eq!(
        plain(&reopened.get(&written.key).unwrap().object),
        plain(&written.object)
    );
}

#[tokio::test]
async fn a_directory_keeps_everything_and_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), options("a")).unwrap();
    let written = store.create(deployment("web"), author("x")).await.unwrap();
    let mut large = deployment("large");
    large.set(&["metadata", "annotations", "x"], "y".repeat(1 << 20));
    store.create(large.clone(), author("x")).await.unwrap();
    assert!(matches!(
        Store::open(folder.path(), options("a")),
        Err(OpenError::Locked { .. })
    ));
    store.close().await;
    let refused = store.create(deployment("db"), author("x")).await;
    assert!(matches!(refused, Err(WriteError::Commit(CommitError::Failed(_)))));
    let reopened = Store::open(folder.path(), options("a")).unwrap();
    assert_eq!(
        plain(&reopened.get(&written.key).unwrap().object),
        plain(&written.object)
    );
    assert_eq!(
        plain(&reopened.get(&key_of(&large)).unwrap().object),
        plain(&large)
    );
    reopened.close().await;
}

#[tokio::test]
async fn a_cancelled_write_frees_its_key() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    for _ in 0..50 {
        let write = edit(&store, &key, |object| object.set(&["spec", "replicas"], 9));
        tokio::select! {
            biased;
            _ = write => {}
            () = tokio::task::yield_now() => {}
        }
    }
    let done = edit(&store, &key, |object| object.set(&["spec", "replicas"], 10)).await;
    assert_eq!(done.object.i64_at("/spec/replicas"), Some(10));
    assert_ne!(done.revision, Revision::default());
}

/// Opens a store that an earlier version made.
fn fixture(format: u32) -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/tests/fixtures/format-{format}.tar.gz"));
    let unpacked = std::process::Command::new("tar")
        .arg("xzf")
        .arg(fixture)
        .arg("-C")
        .arg(directory.path())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let store = Store::open(&directory.path().join("store"), options("a")).unwrap();
    (directory, store)
}

/// Each has a Deployment with six changes, a confidential object, and a name that was removed twice; those from format 4 on also
/// a squashed history.
#[tokio::test]
async fn directories_of_earlier_formats_are_opened_and_go_on() {
    for format in [3, 4, 5] {
        let (directory, store) = fixture(format);
        let key = key_of(&deployment("web"));
        let view = store.get(&key).unwrap();
        assert_eq!(view.object.uid(), "3d9f80a4-ba0c-8670-92c8-a897b67dc198");
        assert_eq!(view.object.generation(), 6);
        assert_eq!(view.object.pointer("/spec/replicas"), Some(&json!(7)));
        assert_eq!(store.shared.index().record(&key).unwrap().changes, 6);
        let token = store.get(&ObjectKey::cluster(Kind::ApiToken, "one")).unwrap();
        assert_eq!(token.object.pointer("/spec/secret"), Some(&json!("hunter2")));
        if format >= 4 {
            let long = key_of(&deployment("long"));
            assert_eq!(store.shared.index().record(&long).unwrap().changes, 9);
            edit(&store, &long, |object| object.set(&["spec", "replicas"], 8)).await;
            assert_eq!(store.shared.index().record(&long).unwrap().changes, 10);
        }
        let gone = key_of(&deployment("gone"));
        assert!(store.get(&gone).is_none());
        edit(&store, &key, |object| object.set(&["spec", "replicas"], 8)).await;
        let again = store.create(deployment("gone"), author("x")).await.unwrap();
        let incarnation = store.shared.uids.incarnation(&gone, again.object.uid());
        assert_eq!(incarnation.map(|incarnation| incarnation.number), Some(3));
        let digest = store.digest();
        store.close().await;
        drop(store);
        let store = Store::open(&directory.path().join("store"), options("a")).unwrap();
        assert_eq!(store.digest(), digest);
        assert_eq!(store.get(&key).unwrap().object.generation(), 7);
    }
}
