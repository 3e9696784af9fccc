//! List-then-watch.

use schemas::Kind;

use super::*;
use crate::incarnation::Uids;
use crate::index::{Index, REVISION_BLOCK};
use crate::{Gone, Revision, WatchEvent, WatchScope};

fn scope(kinds: &[Kind]) -> WatchScope {
    WatchScope {
        kinds: kinds.to_vec(),
        namespace: None,
    }
}

#[tokio::test]
async fn a_watch_from_a_list_misses_nothing() {
    let store = store("a");
    store.create(deployment("web"), author("x")).await.unwrap();
    let listing = store.list(Kind::Deployment, None);
    let key = key_of(&deployment("web"));
    let edited = edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    let mut watch = store
        .watch(scope(&[Kind::Deployment]), Some(listing.revision))
        .unwrap();
    let last = store
        .remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let Some(WatchEvent::Put { view, previous }) = watch.recv().await else {
        panic!()
    };
    assert_eq!(
        (view.revision, view.object.i64_at("/spec/replicas")),
        (edited.revision, Some(4))
    );
    assert_eq!(previous.unwrap().i64_at("/spec/replicas"), Some(3));
    let Some(WatchEvent::Deleted { view }) = watch.recv().await else {
        panic!()
    };
    assert!(view.revision > edited.revision);
    assert_eq!(plain(&view.object), plain(&last.object));
    store.close().await;
    assert!(watch.recv().await.is_none(), "the store stopped");
}

#[tokio::test]
async fn an_object_of_another_incarnation_comes_after_the_old_one_went() {
    let (a, b) = (store("a"), store("b"));
    let old = a.create(deployment("web"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    let mut watch = b.watch(scope(&[Kind::Deployment]), None).unwrap();
    a.remove(&old.key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let new = a.create(deployment("web"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    let mut seen = Vec::new();
    while let Ok(event) = watch.try_recv() {
        seen.push(match event {
            WatchEvent::Put { view, previous } => (previous.is_none(), view.object.uid().to_owned()),
            WatchEvent::Deleted { view } => (false, view.object.uid().to_owned()),
        });
    }
    assert_eq!(
        seen,
        [
            (false, old.object.uid().to_owned()),
            (true, new.object.uid().to_owned())
        ]
    );
}

#[tokio::test]
async fn foreign_and_future_revisions_are_gone() {
    let (store, other) = (store("a"), store("b"));
    let revision = store.revision();
    for bad in [
        other.revision(),
        Revision(revision.0 + (1 << 16)),
        Revision(0),
        Revision(1),
    ] {
        if bad.tag() != revision.tag() || bad != revision {
            assert_eq!(store.watch(scope(&[]), Some(bad)).err(), Some(Gone), "{bad}");
        }
    }
    assert!(store.watch(scope(&[]), Some(revision)).is_ok());
}

#[test]
fn two_stores_with_one_tag_have_no_revision_in_common() {
    let counters = ["a", "b"].map(|node| store(node).revision().0 >> 16);
    // As far as either counts before its next start.
    assert!(counters[0].abs_diff(counters[1]) > REVISION_BLOCK, "{counters:?}");
    assert!(counters.iter().all(|counter| *counter <= 1 << 46), "{counters:?}");
}

fn shown(views: crate::Views) -> Vec<(String, Option<i64>, Revision)> {
    views
        .map(|view| {
            let version = view.object.str_at("/metadata/resourceVersion");
            assert_eq!(version, view.revision.to_string());
            (view.key.name, view.object.i64_at("/spec/replicas"), view.revision)
        })
        .collect()
}

#[tokio::test]
async fn a_list_of_the_past_is_what_a_list_then_was() {
    let store = store("a");
    let other_namespace = ObjectKey::new(Kind::Deployment, "other", "elsewhere");
    let mut elsewhere = deployment("elsewhere");
    elsewhere.set(&["metadata", "namespace"], "other");
    let mut past = Vec::new();
    let list = |namespace: Option<&str>, at| store.list_at(Kind::Deployment, namespace, None, at);
    let names = ["a", "b", "c"];
    let key = |name: &str| key_of(&deployment(name));
    for step in 0..30 {
        let name = names[step % 3];
        match step {
            4 | 13 | 19 => drop(
                store
                    .remove(&key(name), &Precondition::default(), author("x"))
                    .await
                    .unwrap(),
            ),
            8 => drop(store.create(elsewhere.clone(), author("x")).await.unwrap()),
            _ if store.get(&key(name)).is_some() => drop(
                edit(&store, &key(name), |object| {
                    object.set(&["spec", "replicas"], step as i64);
                })
                .await,
            ),
            _ => drop(store.create(deployment(name), author("x")).await.unwrap()),
        }
        let now = [None, Some("default")].map(|namespace| list(namespace, None).unwrap());
        past.push((store.revision(), now.map(shown)));
    }
    assert!(store.get(&other_namespace).is_some());
    for (at, [all, default]) in past {
        let snapshot = list(None, Some(at)).unwrap();
        assert_eq!((snapshot.revision(), snapshot.len()), (at, all.len()));
        assert_eq!(shown(snapshot), all);
        assert_eq!(shown(list(Some("default"), Some(at)).unwrap()), default);
        // From the middle.
        for after in names.map(key) {
            let rest = store.list_at(Kind::Deployment, Some("default"), Some(&after), Some(at));
            let expected: Vec<_> = default.iter().filter(|(name, ..)| *name > after.name).collect();
            assert_eq!(shown(rest.unwrap()).iter().collect::<Vec<_>>(), expected);
        }
    }
    let foreign = Revision(store.revision().0 ^ 1);
    for gone in [foreign, Revision(store.revision().0 + (1 << 16)), Revision(1)] {
        assert_eq!(list(None, Some(gone)).err(), Some(Gone));
    }
}

#[test]
fn no_revision_is_issued_that_is_not_reserved() {
    let mut index = Index::new(Uids::new("cluster".to_owned()), 7, 10, 12);
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let project = |index: &mut Index, number: i64| {
        let mut node = Object::new(&key);
        node.set(&["status", "number"], number);
        index.project(&key, Some(node));
        (
            index.revision().0 >> 16,
            index.get(&key).unwrap().object.i64_at("/status/number"),
        )
    };
    assert_eq!(project(&mut index, 1), (11, Some(1)));
    assert_eq!(project(&mut index, 2), (12, Some(2)));
    assert_eq!(project(&mut index, 3), (12, Some(2)));
    index.set_reserved(20);
    assert_eq!(project(&mut index, 4), (13, Some(4)));
}
