//! What nodes do for the good of the store: histories are squashed, old tombstones dropped, and who disturbs is cut off.

use super::super::compaction::Outcome;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn long_histories_are_squashed_on_all_nodes_while_writes_go_on() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let view = first
        .store
        .create(namespace("busy"), members::author())
        .await
        .unwrap();
    wait_for_object(&second, "busy").await;
    // Both write at once, each into a field of its own.
    let write = async |node: &Node| {
        for number in 0..200_u32 {
            let written: Result<_, WriteError> = node
                .store
                .update(&view.key, &Precondition::default(), members::author(), |object| {
                    let mut changed = object.clone();
                    changed.set(
                        &["metadata", "labels", &node.config.node_name],
                        number.to_string(),
                    );
                    Ok(changed)
                })
                .await;
            written.unwrap();
        }
    };
    tokio::join!(write(&first), write(&second));
    for one in [&first, &second] {
        wait_for("a short history with both fields", || {
            let object = one.store.get(&view.key).ok_or("nothing".to_owned())?.object;
            let labels = (object.label("node1"), object.label("node2"));
            let seen = (labels, one.store.longest_history());
            if seen.0 == (Some("199"), Some("199"))
                && seen.1 < 128
                && object.generation() == view.object.generation()
            {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
    }
    assert_eq!(first.store.digest(), second.store.digest());
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_without_end_are_dropped_on_all_nodes_and_a_joiner_gets_none() {
    /// More than make a round worth while.
    const NAMES: usize = 1200;
    const WRITERS: usize = 50;
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let kept = first
        .store
        .create(namespace("kept"), members::author())
        .await
        .unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = if writer % 2 == 0 {
            &first.store
        } else {
            &second.store
        }
        .clone();
        writers.spawn(async move {
            for number in 0..NAMES / WRITERS {
                let object = namespace(&format!("n{writer}-{number}"));
                let key = object.key().unwrap();
                store.create(object, members::author()).await.unwrap();
                let gone = Precondition::default();
                store.remove(&key, &gone, members::author()).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    for one in [&first, &second] {
        wait_for("few tombstones", || {
            let seen = (one.store.tombstones(), one.store.floor());
            if seen.0 < NAMES - 1024 && seen.1 > 0 {
                Ok(())
            } else {
                Err(seen)
            }
        })
        .await;
        assert_eq!(one.store.standing().borrow().taken_away, 0);
    }
    let third = node(joining(d3.path(), "node3", &second), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second, &third]).await;
    wait_for("equal stores", || {
        let seen = [&first, &second, &third].map(|one| (one.store.digest(), one.store.floor()));
        if seen[0] == seen[1] && seen[1] == seen[2] {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
    assert!(third.store.tombstones() < NAMES - 1024);
    let view = third.store.get(&kept.key).unwrap();
    assert_eq!(view.object.uid(), kept.object.uid());
    third
        .store
        .create(namespace("x"), members::author())
        .await
        .unwrap();
    for one in [first, second, third] {
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sends_nonsense_is_cut_off_for_a_while() {
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    let third = node(joining(d3.path(), "node3", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second, &third]).await;
    let nonsense = || {
        let frame = [&store::PROTOCOL.to_be_bytes(), "nonsense".as_bytes()].concat();
        Request::post("/sync").body(Body::from(frame)).unwrap()
    };
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(ask(&second, first.id(), nonsense()).await.0);
    }
    assert_eq!(answers[0], StatusCode::BAD_REQUEST);
    assert_eq!(answers[19], StatusCode::TOO_MANY_REQUESTS);
    // What others write reaches it all the same, and the other way about once it asks by itself.
    third
        .store
        .create(namespace("fine"), members::author())
        .await
        .unwrap();
    for node in [&first, &second] {
        wait_for_object(node, "fine").await;
    }
    second
        .store
        .create(namespace("cut-off"), members::author())
        .await
        .unwrap();
    wait_for_object(&third, "cut-off").await;
    wait_for_object(&first, "cut-off").await;
    for node in [first, second, third] {
        node.stop().await;
    }
}

/// Makes the history of an object long, and tells how long the longest is then.
async fn write_much(node: &Node, key: &ObjectKey) -> u64 {
    for number in 0..200_u32 {
        let written: Result<_, WriteError> = node
            .store
            .update(key, &Precondition::default(), members::author(), |object| {
                let mut changed = object.clone();
                changed.set(&["metadata", "labels", "n"], number.to_string());
                Ok(changed)
            })
            .await;
        written.unwrap();
    }
    node.store.longest_history()
}

async fn wait_for_short_histories(nodes: &[&Node]) {
    wait_for("short histories", || {
        let seen: Vec<u64> = nodes.iter().map(|node| node.store.longest_history()).collect();
        seen.iter()
            .all(|longest| *longest < 128)
            .then_some(())
            .ok_or(seen)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_are_squashed_while_a_majority_is_there_and_not_otherwise() {
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    let third = node(joining(d3.path(), "node3", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second, &third]).await;
    let view = first.store.create(namespace("busy"), members::author()).await;
    let key = view.unwrap().key;
    for other in [&second, &third] {
        wait_for_object(other, "busy").await;
    }

    let id = third.id().clone();
    third.stop().await;
    for one in [&first, &second] {
        one.wait_for_liveness(&id, Liveness::Stopped).await;
    }
    write_much(&first, &key).await;
    wait_for_short_histories(&[&first, &second]).await;

    let (id, address) = (second.id().clone(), second.config.advertise);
    let config = second.stop().await;
    first.wait_for_liveness(&id, Liveness::Stopped).await;
    assert!(write_much(&first, &key).await >= 200);
    // It would be the one to propose.
    assert_eq!(first.gossip.squash_some().await, Outcome::NothingToDo);
    assert!(first.store.longest_history() >= 200);

    let second = node(config, Some(address)).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    // A write is what wakes who proposes.
    write_much(&first, &key).await;
    wait_for_short_histories(&[&first, &second]).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_while_deletions_were_forgotten_catches_up_before_it_takes_writes() {
    /// So many that taking them away takes a moment.
    const NAMES: usize = 300;
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    let third = node(joining(d3.path(), "node3", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second, &third]).await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..NAMES {
        let store = first.store.clone();
        writers.spawn(async move {
            let created = store
                .create(namespace(&format!("n{number}")), members::author())
                .await;
            created.unwrap().key
        });
    }
    let keys = writers.join_all().await;
    wait_for("all names", || {
        let seen = third.store.list(Kind::Namespace, None).items.len();
        if seen == NAMES { Ok(()) } else { Err(seen) }
    })
    .await;

    let (id, address) = (third.id().clone(), third.config.advertise);
    let config = third.stop().await;
    for one in [&first, &second] {
        one.wait_for_liveness(&id, Liveness::Stopped).await;
    }
    let mut writers = tokio::task::JoinSet::new();
    for key in keys {
        let store = first.store.clone();
        writers.spawn(async move {
            let removed = store
                .remove(&key, &Precondition::default(), members::author())
                .await;
            removed.unwrap();
        });
    }
    writers.join_all().await;
    let closed = async {
        while first.store.floor() == 0 || second.store.floor() == 0 {
            // One of them is the one to propose; it is tried again while changes are under way.
            first.gossip.close_round_beyond(NAMES).await;
            second.gossip.close_round_beyond(NAMES).await;
            sleep(Duration::from_millis(50)).await;
        }
    };
    let closed = tokio::time::timeout(DEADLINE, closed).await;
    let seen = [&first, &second].map(|one| (one.store.floor(), one.store.tombstones()));
    assert!(closed.is_ok(), "{seen:?}");
    assert_eq!(seen.map(|(_, tombstones)| tombstones), [0, 0]);

    // Reads go on meanwhile, and writes do not.
    let mut meanwhile = None;
    let third = node_with(config, Some(address), |store| {
        let store = store.clone();
        meanwhile = Some(tokio::spawn(async move {
            let mut standing = store.standing();
            standing.wait_for(|standing| standing.catching_up).await.unwrap();
            let shown = store.list(Kind::Namespace, None).items.len();
            (shown, store.create(namespace("early"), members::author()).await)
        }));
    })
    .await
    .unwrap();
    let meanwhile = tokio::time::timeout(DEADLINE, meanwhile.unwrap()).await;
    let (shown, refused) = meanwhile.expect("it was never stale").unwrap();
    assert!(shown > 0);
    assert!(matches!(refused, Err(WriteError::CatchingUp(_))), "{refused:?}");
    wait_for("equal stores", || {
        let seen = [&first, &second, &third].map(|one| (one.store.digest(), one.store.floor()));
        if seen[0] == seen[1] && seen[1] == seen[2] {
            Ok(())
        } else {
            Err(seen)
        }
    })
    .await;
    let caught_up = *third.store.standing().borrow();
    assert!(!caught_up.catching_up && caught_up.catch_ups > 0);
    let became = (caught_up.taken_away, caught_up.replayed, caught_up.rescued);
    assert_eq!(became, (NAMES as u64, 0, 0));
    assert_eq!(third.store.list(Kind::Namespace, None).items.len(), 0);
    let written = third.store.create(namespace("late"), members::author()).await;
    written.unwrap();
    for one in [&first, &second] {
        wait_for_object(one, "late").await;
    }
    for one in [first, second, third] {
        one.stop().await;
    }
}
