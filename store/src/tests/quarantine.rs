//! Records that cannot be read: nothing else suffers, peers bring them back, and no incarnation is issued twice.

use super::*;
use crate::disk::{Disk, Write};
use crate::memory_disk::DAMAGED;

fn records(disk: &MemoryDisk, prefix: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    disk.scan(prefix, &mut |_, value| found.push(value.to_vec()))
        .unwrap();
    found
}

/// Opens what a disk holds after the loss of power; returns the disk, too.
fn reopened(disk: &MemoryDisk) -> (MemoryDisk, Store) {
    let disk = disk.after_power_loss();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    (disk, store)
}

fn is_refused(created: Result<View, WriteError>) -> bool {
    matches!(created, Err(WriteError::Unreadable(_)))
}

#[tokio::test]
async fn an_unreadable_record_is_set_aside_and_brought_back_by_a_peer() {
    let disk = MemoryDisk::default();
    let (a, b) = (
        Store::open_in_memory(disk.clone(), options("a")).unwrap(),
        store("b"),
    );
    let web = a.create(deployment("web"), author("x")).await.unwrap();
    let db = a.create(deployment("db"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    // What this node alone has goes with the record.
    edit(&a, &web.key, |object| object.set(&["spec", "replicas"], 9)).await;
    disk.damage(&format!("d/{}", web.key));

    let (disk, a) = reopened(&disk);
    assert_eq!(a.unreadable().as_slice(), std::slice::from_ref(&web.key));
    assert!(a.get(&web.key).is_none());
    assert_eq!(plain(&a.get(&db.key).unwrap().object), plain(&db.object));
    edit(&a, &db.key, |object| object.set(&["spec", "replicas"], 4)).await;
    assert!(is_refused(a.create(deployment("web"), author("x")).await));
    let applied = a.apply(deployment("web"), author("x"), false).await;
    assert!(matches!(applied, Err(WriteError::Unreadable(_))), "{applied:?}");

    exchange(&a, &b).await;
    assert_eq!(a.unreadable(), []);
    let repaired = a.get(&web.key).unwrap();
    assert_eq!(repaired.object.uid(), web.object.uid());
    assert_eq!(plain(&repaired.object), plain(&web.object));
    assert_eq!(a.digest(), b.digest());
    edit(&a, &web.key, |object| object.set(&["spec", "replicas"], 5)).await;
    let (disk, a) = reopened(&disk);
    assert_eq!(a.unreadable(), []);
    assert_eq!(a.get(&web.key).unwrap().object.i64_at("/spec/replicas"), Some(5));
    assert_eq!(records(&disk, "q/"), [DAMAGED], "kept for people");
}

#[tokio::test]
async fn what_nobody_brings_back_is_given_up_as_a_whole() {
    let disk = MemoryDisk::default();
    let (a, b) = (
        Store::open_in_memory(disk.clone(), options("a")).unwrap(),
        store("b"),
    );
    let web = a.create(deployment("web"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    disk.damage(&format!("d/{}", web.key));
    let (disk, _) = reopened(&disk);
    let (disk, a) = reopened(&disk);
    assert!(
        is_refused(a.create(deployment("web"), author("x")).await),
        "still"
    );
    assert!(!a.give_up(&key_of(&deployment("db"))).await.unwrap());
    assert!(a.give_up(&web.key).await.unwrap());
    let new = a.create(deployment("web"), author("x")).await.unwrap();
    assert_ne!(new.object.uid(), web.object.uid());
    assert!(a.is_removed(&web.key, web.object.uid()));
    // The one that was lost does not come back from who has it.
    exchange(&a, &b).await;
    for store in [&a, &b, &reopened(&disk).1] {
        assert_eq!(store.get(&web.key).unwrap().object.uid(), new.object.uid());
        assert_eq!(store.unreadable(), []);
    }
}

#[tokio::test]
async fn an_unreadable_tombstone_lets_no_name_be_used_again() {
    let disk = MemoryDisk::default();
    let (a, b) = (
        Store::open_in_memory(disk.clone(), options("a")).unwrap(),
        store("b"),
    );
    let web = a.create(deployment("web"), author("x")).await.unwrap();
    a.remove(&web.key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    exchange(&a, &b).await;
    disk.damage(&format!("t/{}", web.key));
    let (_, a) = reopened(&disk);
    assert!(is_refused(a.create(deployment("web"), author("x")).await));
    exchange(&a, &b).await;
    let new = a.create(deployment("web"), author("x")).await.unwrap();
    assert_ne!(new.object.uid(), web.object.uid());
    assert!(a.is_removed(&web.key, web.object.uid()));
}

/// One of the two is damaged, and nobody knows which.
#[tokio::test]
async fn a_record_below_its_tombstone_is_not_shown() {
    let mut disk = MemoryDisk::default();
    let a = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let web = a.create(deployment("web"), author("x")).await.unwrap();
    a.close().await;
    let tombstone = Write::put(format!("t/{}", web.key), "0.1");
    disk.write(vec![tombstone]).and_then(|()| disk.sync()).unwrap();

    let (disk, a) = reopened(&disk);
    assert_eq!(a.unreadable().as_slice(), std::slice::from_ref(&web.key));
    assert!(a.get(&web.key).is_none());
    assert_eq!(records(&disk, "q/").len(), 1, "kept for people");
    assert!(is_refused(a.create(deployment("web"), author("x")).await));
    assert!(a.give_up(&web.key).await.unwrap());
    let again = a.create(deployment("web"), author("x")).await.unwrap();
    assert_ne!(again.object.uid(), web.object.uid());
    let digest = a.digest();
    assert_eq!(reopened(&disk).1.digest(), digest);
}

#[tokio::test]
async fn a_revision_that_no_store_has_counted_to_is_damage() {
    let mut disk = MemoryDisk::default();
    Store::open_in_memory(disk.clone(), options("a"))
        .unwrap()
        .close()
        .await;
    for (last, opens) in [(1_u64 << 47, true), ((1 << 47) + 1, false), (u64::MAX, false)] {
        let revision = Write::put("m/revision", last.to_be_bytes());
        disk.write(vec![revision]).and_then(|()| disk.sync()).unwrap();
        let opened = Store::open_in_memory(disk.after_power_loss(), options("a"));
        assert_eq!(opened.is_ok(), opens, "{last}");
        assert!(opens || matches!(opened, Err(crate::OpenError::Damaged { .. })));
    }
}
