//! Large objects, and many of them, over real streams.

use std::collections::BTreeMap;

use futures::StreamExt;
use store::Revision;

use super::super::sync::Ended;
use super::*;

const MEBIBYTE: usize = 1 << 20;
/// Of those that make a store large.
const OBJECTS: usize = 128;

/// An object of about this size.
fn large(name: &str, bytes: usize) -> Object {
    let mut object = Object::new(&ObjectKey::new(Kind::Service, "default", name));
    object.set(&["metadata", "annotations", "text"], "x".repeat(bytes));
    object
}

/// Waits until two nodes hold the same.
async fn wait_for_equal_stores(one: &Node, other: &Node) {
    wait_for("equal stores", || {
        let seen = [one, other].map(|node| node.store.digest());
        if seen[0] == seen[1] { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_a_mebibyte_goes_by_exchange_and_by_push() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let before = large("before", MEBIBYTE);
    let created = first.store.create(before.clone(), members::author()).await;
    created.unwrap();
    // It was there before: it can come by an exchange alone.
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    wait_for_equal_stores(&first, &second).await;
    let there = second.store.get(&before.key().unwrap()).unwrap().object;
    assert_eq!(there.str_at("/metadata/annotations/text").len(), MEBIBYTE);

    let after = large("after", MEBIBYTE);
    let mut pushes = first.store.pushes();
    first
        .store
        .create(after.clone(), members::author())
        .await
        .unwrap();
    wait_for("the new object", || {
        second.store.get(&after.key().unwrap()).ok_or("nothing")
    })
    .await;
    // Whether that was the push or what repairs a lost one: the push fits, and is taken.
    let mut push = pushes.recv().await.unwrap();
    while push.bytes() < MEBIBYTE {
        push = pushes.recv().await.unwrap();
    }
    let frame = first.store.push_frame(&[push]).unwrap();
    assert!(frame.len() > MEBIBYTE);
    let request = Request::post("/sync").body(Body::from(frame)).unwrap();
    assert_eq!(ask(&first, second.id(), request).await.0, StatusCode::NO_CONTENT);
    wait_for_equal_stores(&first, &second).await;
    first.stop().await;
    second.stop().await;
}

fn revisions(store: &Store) -> BTreeMap<ObjectKey, Revision> {
    let items = store.list(Kind::Service, None).items;
    items
        .iter()
        .map(|view| (view.key.clone(), view.revision))
        .collect()
}

/// Creates objects of 32 MiB in all: more than one exchange of the few steps that it has in tests carries.
async fn fill(store: &Store) {
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..OBJECTS {
        let store = store.clone();
        writers.spawn(async move {
            let object = large(&format!("number-{number}"), MEBIBYTE / 4);
            store.create(object, members::author()).await.unwrap();
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_is_stopped_halfway_goes_on_with_what_it_has() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    fill(&first.store).await;

    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    let (id, address) = (second.id().clone(), second.config.advertise);
    wait_for("a part of the objects", || {
        let seen = revisions(&second.store).len();
        if seen >= OBJECTS / 8 { Ok(()) } else { Err(seen) }
    })
    .await;
    // Killed: the sockets close, nothing is said.
    let Node {
        gossip,
        store,
        mut config,
        ..
    } = second;
    drop(gossip);
    store.close().await;
    drop(store);
    first.wait_for_liveness(&id, Liveness::AgentDown).await;

    config.join.clear();
    config.join_token = None;
    let mut had = BTreeMap::new();
    let second = node_with(config, Some(address), |store| had = revisions(store)).await;
    let second = second.unwrap();
    assert!((OBJECTS / 8..OBJECTS).contains(&had.len()), "{}", had.len());
    wait_for("all objects", || {
        let seen = revisions(&second.store).len();
        if seen == OBJECTS { Ok(()) } else { Err(seen) }
    })
    .await;
    wait_for_equal_stores(&first, &second).await;
    let has = revisions(&second.store);
    for (key, revision) in &had {
        assert_eq!(has.get(key), Some(revision), "{key} came again");
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_does_not_end_soon_has_not_failed_and_the_next_goes_on() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    fill(&first.store).await;
    // A joiner of which nothing runs by itself.
    let mut config = joining(d2.path(), "node2", &first);
    let sockets = Sockets::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    config.advertise = sockets.local_addr().unwrap();
    let credentials = Arc::new(bootstrap(&config).await.unwrap());
    let store = open(&config, &credentials).await;
    let clock = Arc::new(TestClock(Instant::now()));
    let joiner = prepare(&config, credentials, store.clone(), clock).await.unwrap();
    let mut held = vec![0];
    while joiner.catch_up(first.id()).await.unwrap() == Ended::Unfinished {
        held.push(revisions(&store).len());
    }
    assert!(
        held.len() > 2 && held.is_sorted_by(|before, after| before < after),
        "{held:?}"
    );
    assert_eq!(revisions(&store).len(), OBJECTS, "{held:?}");
    store.close().await;
    first.stop().await;
}

/// Takes nothing of its request, and gives without end.
pub(super) async fn held(body: Body) -> Body {
    Body::from_stream(endless().map(move |piece| {
        let _held = &body;
        piece
    }))
}

fn endless() -> impl futures::Stream<Item = Result<bytes::Bytes, std::convert::Infallible>> {
    futures::stream::repeat_with(|| Ok(bytes::Bytes::from(vec![0; 64 << 10])))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_nobody_reads_do_not_stop_the_others() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let mut sessions = Vec::new();
    for _ in 0..32 {
        let body = Body::from_stream(endless());
        let request = Request::post("/api/held").body(body).unwrap();
        sessions.push(first.relay.send(second.id(), request).await.unwrap());
    }
    // Until each has filled what it may.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let push = async {
        let object = large("meanwhile", MEBIBYTE);
        first
            .store
            .create(object.clone(), members::author())
            .await
            .unwrap();
        wait_for("the new object", || {
            second.store.get(&object.key().unwrap()).ok_or("nothing")
        })
        .await;
        let request = Request::get("/api/whoami").body(Body::empty()).unwrap();
        assert_eq!(ask(&first, second.id(), request).await.0, StatusCode::OK);
    };
    tokio::time::timeout(Duration::from_secs(20), push)
        .await
        .expect("the connection is stuck");
    assert_eq!(sessions.len(), 32);
    drop(sessions);
    first.stop().await;
    second.stop().await;
}
