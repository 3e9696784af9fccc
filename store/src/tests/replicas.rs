//! Several replicas: P1 to P4.

use schemas::Kind;
use serde_json::json;
use sha2::{Digest, Sha256};

use bytes::Bytes;
use tokio::sync::broadcast;

use super::*;
use crate::frame::{self, Blob, Body, HEADER_BYTES, VERSION};
use crate::incoming::IncomingChange;
use crate::{Push, SyncError, WatchScope};

/// Two replicas of one object.
async fn pair(object: &Object) -> (Store, Store, ObjectKey) {
    let (a, b) = (store("a"), store("b"));
    a.create(object.clone(), author("x")).await.unwrap();
    exchange(&a, &b).await;
    assert_eq!(a.digest(), b.digest());
    (a, b, key_of(object))
}

async fn meet(a: &Store, b: &Store, key: &ObjectKey) -> Option<Value> {
    exchange(a, b).await;
    assert_eq!(a.digest(), b.digest());
    let (left, right) = (a.get(key), b.get(key));
    let (left, right) = (
        left.map(|view| plain(&view.object)),
        right.map(|view| plain(&view.object)),
    );
    assert_eq!(left, right);
    left
}

fn containers(object: &mut Object) -> &mut Vec<Value> {
    object.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
}

#[tokio::test]
async fn edits_of_different_fields_all_stay() {
    let (a, b, key) = pair(&deployment("web")).await;
    edit(&a, &key, |object| {
        object.set(&["metadata", "labels", "a"], "1");
        containers(object)[0]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "X", "value": "a"}));
        containers(object).push(json!({"name": "a", "image": "a:1"}));
    })
    .await;
    edit(&b, &key, |object| {
        object.set(&["metadata", "labels", "b"], "2");
        containers(object)[0]["env"][0]["value"] = "changed".into();
        containers(object)[0]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "Y", "value": "b"}));
        containers(object)[1]["image"] = "log:2".into();
        object.set(&["spec", "replicas"], 9);
    })
    .await;
    let merged = meet(&a, &b, &key).await.unwrap();
    assert_eq!(
        merged["metadata"]["labels"],
        json!({"app": "web", "a": "1", "b": "2"})
    );
    assert_eq!(merged["spec"]["replicas"], 9);
    let containers = &merged["spec"]["template"]["spec"]["containers"];
    let names: Vec<&str> = containers
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["web", "log", "a"]);
    assert_eq!(containers[1]["image"], "log:2");
    assert_eq!(
        containers[0]["env"],
        json!([{"name": "A", "value": "changed"}, {"name": "X", "value": "a"}, {"name": "Y", "value": "b"}])
    );
    assert_eq!(
        a.get(&key).unwrap().object.generation(),
        3,
        "two changes of spec at once count as two"
    );
    assert_eq!(b.get(&key).unwrap().object.generation(), 3);
}

#[tokio::test]
async fn removing_an_element_beats_editing_it_and_adding_it_again_shows_no_ghost() {
    let (a, b, key) = pair(&deployment("web")).await;
    edit(&a, &key, |object| containers(object)[1]["image"] = "log:2".into()).await;
    edit(&b, &key, |object| {
        containers(object).remove(1);
    })
    .await;
    let merged = meet(&a, &b, &key).await.unwrap();
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    edit(&a, &key, |object| {
        containers(object).push(json!({"name": "log", "image": "new:1"}))
    })
    .await;
    let merged = meet(&a, &b, &key).await.unwrap();
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"][1],
        json!({"name": "log", "image": "new:1"})
    );
}

#[tokio::test]
async fn removing_and_adding_again_here_beats_removing_there() {
    let (a, b, key) = pair(&deployment("web")).await;
    for _ in 0..3 {
        edit(&a, &key, |object| object.set(&["spec", "minReadySeconds"], 1)).await;
        edit(&a, &key, |object| object.set(&["spec", "minReadySeconds"], 2)).await;
    }
    edit(&a, &key, |object| {
        containers(object).remove(1);
    })
    .await;
    edit(&b, &key, |object| {
        containers(object).remove(1);
    })
    .await;
    edit(&b, &key, |object| {
        containers(object).push(json!({"name": "log", "image": "new:1"}))
    })
    .await;
    let merged = meet(&a, &b, &key).await.unwrap();
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"][1]["image"],
        "new:1"
    );
}

#[tokio::test]
async fn one_of_two_members_of_a_union_wins_whole() {
    let (a, b, key) = pair(&deployment("web")).await;
    edit(&a, &key, |object| {
        containers(object)[0]["env"][0] = json!({"name": "A", "value": "2"})
    })
    .await;
    edit(&b, &key, |object| {
        containers(object)[0]["env"][0] =
            json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
    })
    .await;
    let merged = meet(&a, &b, &key).await.unwrap();
    let entry = &merged["spec"]["template"]["spec"]["containers"][0]["env"][0];
    assert!(
        entry.get("value").is_some() != entry.get("valueFrom").is_some(),
        "{entry}"
    );
}

#[tokio::test]
async fn two_creations_at_once_are_one_object_with_one_selector() {
    let (a, b) = (store("a"), store("b"));
    let mut other = deployment("web");
    other.set(&["spec", "selector", "matchLabels"], json!({"tier": "front"}));
    other.set(&["metadata", "labels", "b"], "1");
    let key = key_of(&other);
    let first = a.create(deployment("web"), author("x")).await.unwrap();
    let second = b.create(other, author("x")).await.unwrap();
    assert_eq!(first.object.uid(), second.object.uid());
    let merged = meet(&a, &b, &key).await.unwrap();
    assert_eq!(
        merged["spec"]["selector"]["matchLabels"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(merged["metadata"]["labels"], json!({"app": "web", "b": "1"}));
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn two_pods_created_at_once_do_not_mix() {
    let pod = |container: &str| {
        object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": container, "image": container, "command": [container]}]}
        }))
    };
    let (a, b) = (store("a"), store("b"));
    a.create(pod("a"), author("x")).await.unwrap();
    b.create(pod("b"), author("x")).await.unwrap();
    let merged = meet(&a, &b, &key_of(&pod("a"))).await.unwrap();
    let container = merged["spec"]["containers"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(merged["spec"], plain(&pod(&container))["spec"]);
}

#[tokio::test]
async fn what_was_deleted_stays_deleted() {
    let (a, b, key) = pair(&deployment("web")).await;
    let uid = a.get(&key).unwrap().object.uid().to_owned();
    a.remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    edit(&b, &key, |object| object.set(&["spec", "replicas"], 9)).await;
    assert_eq!(meet(&b, &a, &key).await, None);
    assert!(b.is_removed(&key, &uid));

    // Deleted and created anew here while edited there.
    a.create(deployment("web"), author("x")).await.unwrap();
    let anew = meet(&a, &b, &key).await.unwrap();
    assert_eq!(anew, plain(&deployment("web")));
    let c = store("c");
    exchange(&c, &b).await;
    a.remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    a.create(deployment("web"), author("x")).await.unwrap();
    edit(&c, &key, |object| object.set(&["spec", "replicas"], 9)).await;
    assert_eq!(meet(&c, &a, &key).await, Some(plain(&deployment("web"))));
    assert_eq!(meet(&c, &b, &key).await, Some(plain(&deployment("web"))));
}

#[tokio::test]
async fn a_deleted_namespace_covers_what_was_created_in_it() {
    let (a, b) = (store("a"), store("b"));
    a.create(namespace("default"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    let name = ObjectKey::cluster(Kind::Namespace, "default");
    a.remove(&name, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let web = b.create(deployment("web"), author("x")).await.unwrap().key;
    assert!(b.orphaned_by_namespace().is_empty());
    exchange(&a, &b).await;
    assert_eq!(a.orphaned_by_namespace(), std::slice::from_ref(&web));
    assert_eq!(b.orphaned_by_namespace(), [web]);
    a.create(namespace("default"), author("x")).await.unwrap();
    a.create(deployment("db"), author("x")).await.unwrap();
    assert_eq!(
        a.orphaned_by_namespace().len(),
        1,
        "what is created in the new one is not covered"
    );
}

#[tokio::test]
async fn a_lost_value_is_told_once_where_it_was_written() {
    let (a, b, key) = pair(&deployment("web")).await;
    let (mut at_a, mut at_b) = (a.conflicts(), b.conflicts());
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 5)).await;
    edit(&b, &key, |object| object.set(&["spec", "replicas"], 6)).await;
    let merged = meet(&a, &b, &key).await.unwrap();
    let c = store("c");
    let mut at_c = c.conflicts();
    exchange(&c, &a).await;
    let told: Vec<_> = [at_a.try_recv(), at_b.try_recv(), at_c.try_recv()]
        .into_iter()
        .flatten()
        .collect();
    let [conflict] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(conflict.path, "spec.replicas");
    assert_eq!(conflict.winner.value, merged["spec"]["replicas"].to_string());
    assert_ne!(conflict.winner.value, conflict.loser.value);
    assert_ne!(conflict.winner.node, conflict.loser.node);
}

#[tokio::test]
async fn a_lost_value_is_told_whoever_wrote_it_but_a_controller() {
    for (via, is_told) in [
        (Via::Apply, true),
        (Via::Api, true),
        (Via::GitOps, true),
        (Via::Controller, false),
    ] {
        // As without authentication, and from Git.
        let nobody = Author {
            user: String::new(),
            via,
            ..author("x")
        };
        let (a, b, key) = pair(&deployment("web")).await;
        let (mut at_a, mut at_b) = (a.conflicts(), b.conflicts());
        for (store, replicas, author) in [(&a, 5, nobody), (&b, 6, author("x"))] {
            let set: Result<View, WriteError> = store
                .update(&key, &Precondition::default(), author, |object| {
                    let mut changed = object.clone();
                    changed.set(&["spec", "replicas"], replicas);
                    Ok(changed)
                })
                .await;
            set.unwrap();
        }
        meet(&a, &b, &key).await;
        let told = at_a.try_recv().is_ok() || at_b.try_recv().is_ok();
        assert_eq!(told, is_told, "{via:?}");
    }
}

#[tokio::test]
async fn a_lost_value_is_told_though_somebody_who_saw_both_has_written_a_third() {
    let (a, b, key) = pair(&deployment("web")).await;
    let c = store("c");
    exchange(&c, &b).await;
    let mut told = [a.conflicts(), b.conflicts(), c.conflicts()];
    let set = |replicas: i64| move |object: &mut Object| object.set(&["spec", "replicas"], replicas);
    edit(&a, &key, set(5)).await;
    // More operations: it wins.
    edit(&b, &key, |object| {
        object.set(&["metadata", "labels", "more"], "x")
    })
    .await;
    edit(&b, &key, set(6)).await;
    exchange(&c, &a).await;
    exchange(&c, &b).await;
    edit(&c, &key, set(7)).await;
    edit(&c, &key, set(8)).await;
    for (from, to) in [(&c, &a), (&c, &b), (&a, &b)] {
        exchange(from, to).await;
    }
    let told = told.each_mut().map(|told| {
        let conflicts = std::iter::from_fn(|| told.try_recv().ok());
        conflicts
            .map(|told| (told.path, told.winner.value, told.loser.value))
            .collect::<Vec<_>>()
    });
    let lost = ("spec.replicas".to_owned(), "6".to_owned(), "5".to_owned());
    assert_eq!(told, [vec![lost], vec![], vec![]]);
    assert_eq!(
        a.get(&key).unwrap().object.pointer("/spec/replicas"),
        Some(&json!(8))
    );
}

/// The next fresh change, as a frame.
async fn pushed(store: &Store, pushes: &mut broadcast::Receiver<Push>) -> Bytes {
    store.push_frame(&[pushes.recv().await.unwrap()]).unwrap()
}

#[tokio::test]
async fn pushes_are_joined_in_their_order() {
    let (a, b, key) = pair(&deployment("web")).await;
    let mut pushes = a.pushes();
    for replicas in [5, 6, 7] {
        edit(&a, &key, |object| object.set(&["spec", "replicas"], replicas)).await;
    }
    let other = a.create(deployment("other"), author("x")).await.unwrap().key;
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 8)).await;
    a.remove(&other, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let mut joined = Vec::new();
    while let Ok(push) = pushes.try_recv() {
        joined.push(push);
    }
    assert_eq!(joined.len(), 6);
    let scope = WatchScope {
        kinds: vec![Kind::Deployment],
        namespace: None,
    };
    let mut seen = b.watch(scope, Some(b.revision())).unwrap();
    let answer = b
        .receive(&NodeId("a".to_owned()), &a.push_frame(&joined).unwrap())
        .await
        .unwrap();
    assert!(matches!(answer, Exchange::Done));
    assert_eq!(a.digest(), b.digest());
    let mut events = Vec::new();
    while let Ok(event) = seen.try_recv() {
        events.push(event);
    }
    // Of one object what follows one another is one change.
    assert_eq!(events.len(), 4, "{events:?}");
}

#[tokio::test]
async fn pushes_carry_fresh_changes_and_ask_for_what_they_build_on() {
    let (a, b, key) = pair(&deployment("web")).await;
    let mut pushes = a.pushes();
    let (from_a, from_b) = (NodeId("a".to_owned()), NodeId("b".to_owned()));
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 5)).await;
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 6)).await;
    let lost = pushed(&a, &mut pushes).await;
    let second = pushed(&a, &mut pushes).await;
    let Exchange::Send(request) = b.receive(&from_a, &second).await.unwrap() else {
        panic!("b lacks the first")
    };
    let Exchange::Send(answer) = a.receive(&from_b, &request).await.unwrap() else {
        panic!("a has it")
    };
    assert!(matches!(
        b.receive(&from_a, &answer).await.unwrap(),
        Exchange::Done
    ));
    assert_eq!(a.digest(), b.digest());
    let revision = b.revision();
    assert!(matches!(b.receive(&from_a, &lost).await.unwrap(), Exchange::Done));
    assert_eq!(b.revision(), revision, "what is known changes nothing");
    a.remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let removal = pushed(&a, &mut pushes).await;
    b.receive(&from_a, &removal).await.unwrap();
    assert!(b.get(&key).is_none());
    assert_eq!(a.digest(), b.digest());
}

#[tokio::test]
async fn hosts_added_to_the_whitelist_at_once_are_all_there() {
    let key = ObjectKey::cluster(Kind::DnsWhitelist, "default");
    let mut whitelist = Object::new(&key);
    whitelist.set(&["spec"], json!({"enabled": true, "hosts": ["a.com", "b.com"]}));
    let (a, b, _) = pair(&whitelist).await;
    let hosts = |hosts: &'static [&'static str]| {
        move |object: &mut Object| {
            object.set(&["spec"], json!({"enabled": true, "hosts": hosts}));
        }
    };
    edit(&a, &key, hosts(&["a.com", "b.com", "c.com"])).await;
    edit(&b, &key, hosts(&["b.com", "d.com"])).await;
    let met = meet(&a, &b, &key).await.unwrap();
    assert_eq!(met["spec"]["hosts"], json!(["b.com", "c.com", "d.com"]));
}

#[tokio::test]
async fn only_what_is_missing_travels() {
    let (a, b, key) = pair(&deployment("web")).await;
    for number in 0..50 {
        edit(&a, &key, |object| {
            object.set(
                &["metadata", "annotations", "x"],
                format!("{number}").repeat(1000),
            )
        })
        .await;
    }
    exchange(&a, &b).await;
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 5)).await;
    // Whoever begins, the larger frames are those of the digests.
    for (from, to) in [(&b, &a), (&a, &b)] {
        let (mut bytes, mut next) = (0, from.begin_exchange(&NodeId("to".to_owned())));
        let mut sides = [to, from].into_iter().cycle();
        while let (Exchange::Send(frame), Some(receiver)) = (next, sides.next()) {
            bytes += frame.len();
            next = receiver
                .receive(&NodeId("peer".to_owned()), &frame)
                .await
                .unwrap();
        }
        assert!(bytes < 20_000, "{bytes}");
        assert_eq!(a.digest(), b.digest());
        edit(&a, &key, |object| object.set(&["spec", "replicas"], 6)).await;
    }
    // Where each lacks what the other has, a second exchange brings the rest.
    edit(&b, &key, |object| object.set(&["metadata", "labels", "b"], "1")).await;
    meet(&a, &b, &key).await;
}

#[tokio::test]
async fn large_objects_and_many_pass_in_steps() {
    let (a, b) = (store("a"), store("b"));
    for number in 0..6 {
        let mut large = deployment(&format!("large{number}"));
        large.set(&["metadata", "annotations", "x"], "y".repeat(1 << 20));
        a.create(large, author("x")).await.unwrap();
    }
    for number in 0..300 {
        b.create(deployment(&format!("d{number}")), author("x"))
            .await
            .unwrap();
    }
    let frames = exchange(&a, &b).await;
    assert_eq!(a.digest(), b.digest());
    assert_eq!(a.list(Kind::Deployment, None).items.len(), 306);
    assert!(frames > 4, "{frames}");
}

/// A change of so many operations that all put null at one path, with so many predecessors each, in a few bytes.
fn repeated(operations: i64, predecessors: u8) -> Vec<u8> {
    let leb = |mut number: i64| {
        let mut bytes = Vec::new();
        while number >= 0x40 {
            bytes.push(number as u8 & 0x7f | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let run = |value: &[u8]| [leb(operations), value.to_vec()].concat();
    let columns = [
        (21, run(&[1, b'a'])),
        (52, leb(operations)),
        (66, run(&[1])),
        (86, run(&[0])),
        (112, run(&[predecessors])),
    ];
    // No causes, actor 0, first change, first operation, no time, no message, no other actors.
    let mut data = vec![0, 1, 0, 1, 1, 0, 0, 0, columns.len() as u8];
    for (kind, column) in &columns {
        data.extend([*kind, column.len() as u8]);
    }
    columns.iter().for_each(|(_, column)| data.extend(column));
    let body = [vec![1, data.len() as u8], data].concat();
    let checksum = &Sha256::digest(&body)[..4];
    [&[0x85, 0x6f, 0x4a, 0x83], checksum, &body].concat()
}

#[test]
fn a_small_change_of_many_operations_is_refused() {
    let refused = |operations, predecessors| match IncomingChange::parse(&repeated(operations, predecessors))
    {
        Ok(_) => panic!("taken"),
        Err(error) => error.to_string(),
    };
    // Well formed, but nobody's.
    assert_eq!(refused(1, 0), "a change without its author");
    assert_eq!(
        refused(1 << 60, 0),
        format!("a change of {} operations", 1_u64 << 60)
    );
    assert_eq!(refused(10_000, 100), "a change of 1000000 operations");
    assert_eq!(refused(1 << 60, 100), "a change that cannot be read");
}

#[tokio::test]
async fn nonsense_is_refused_and_nothing_panics() {
    let (a, b, key) = pair(&deployment("web")).await;
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 5)).await;
    let peer = NodeId("b".to_owned());
    let Exchange::Send(good) = a.begin_exchange(&peer) else {
        panic!()
    };
    let mut version = good.to_vec();
    version[3] = 9;
    assert!(matches!(
        b.receive(&peer, &version).await,
        Err(SyncError::Version { theirs: 9, .. })
    ));
    for frame in [
        &[][..],
        &[0, 0, 0, 1],
        &[0; 4],
        &VERSION.to_be_bytes(),
        // A floor above the round.
        &[&VERSION.to_be_bytes()[..], &[0, 1, 0, 2], &[0; 17]].concat(),
        &[&VERSION.to_be_bytes()[..], &[0; 20], &[200]].concat(),
        &vec![0; 5 << 20],
    ] {
        assert!(b.receive(&peer, frame).await.is_err());
    }
    let mut pushes = a.pushes();
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 6)).await;
    let push = pushed(&a, &mut pushes).await;
    for at in HEADER_BYTES..push.len() {
        let mut bad = push.to_vec();
        bad[at] ^= 0x55;
        let _ = b.receive(&peer, &bad).await;
        let _ = b.receive(&peer, &push[..at]).await;
    }
    assert_eq!(b.get(&key).unwrap().object.i64_at("/spec/replicas"), Some(3));
    exchange(&a, &b).await;
    assert_eq!(
        plain(&a.get(&key).unwrap().object),
        plain(&b.get(&key).unwrap().object)
    );
}

#[tokio::test]
async fn changes_that_nobody_can_take_are_counted_and_the_rest_is_taken() {
    let (a, b, key) = pair(&deployment("web")).await;
    let mut pushes = a.pushes();
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 6)).await;
    let push = pushes.recv().await.unwrap();
    let mut good = (*push.delta).clone();
    let bad = |key: &str| {
        let mut bad = good.clone();
        bad.key = key.to_owned();
        bad.live.as_mut().unwrap().changes = vec![Blob(b"nonsense".to_vec()); 3];
        bad
    };
    let other = key.to_string().replace("web", "other");
    let mut items = vec![bad(&other), bad(&key.to_string()), bad("Unknown//x")];
    good.live.as_mut().unwrap().changes.push(Blob(Vec::new()));
    items.push(good);
    let frame = frame::encode(push.header, &Body::Push { items }).unwrap();
    let received = b.receive_and_judge(&NodeId("a".to_owned()), &frame).await;
    // Of a kind that this version does not know, nothing is read.
    assert_eq!(received.unwrap().refused, 3 + 3 + 1);
    assert_eq!(b.get(&key).unwrap().object.i64_at("/spec/replicas"), Some(6));
    assert_eq!(b.list(Kind::Deployment, None).items.len(), 1);
}
