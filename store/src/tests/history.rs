//! What a store tells of an object's past.

use super::*;
use crate::{ChangedFields, FieldChange, HistoryError, Via};

const ALL: usize = 1000;

fn lines(changed: &ChangedFields) -> Vec<String> {
    let text = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
    let line = |field: &FieldChange| format!("{}: {} -> {}", field.path, text(&field.old), text(&field.new));
    changed.fields.iter().map(line).collect()
}

/// The changes of an object but for its creation, each as lines.
fn steps(store: &Store, key: &ObjectKey) -> Vec<Vec<String>> {
    let history = store.history(key, ALL).unwrap();
    history
        .changes
        .iter()
        .skip(1)
        .map(|change| lines(&change.changed))
        .collect()
}

fn containers(object: &mut Object) -> &mut Vec<Value> {
    object.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
}

#[tokio::test]
async fn each_change_says_who_when_where_how_and_what() {
    let store = store("a");
    let mut applied = deployment("web");
    let key = key_of(&applied);
    let author = |via, unix_seconds| Author {
        via,
        unix_seconds,
        ..author("me")
    };
    store
        .apply(applied.clone(), author(Via::Apply, 10), false)
        .await
        .unwrap();
    applied.set(&["spec", "replicas"], 4);
    // A clock that goes back changes no order.
    store.apply(applied, author(Via::GitOps, 5), false).await.unwrap();
    edit(&store, &key, |object| {
        object.set(&["metadata", "labels", "ярлик"], "значення");
    })
    .await;
    let history = store.history(&key, ALL).unwrap();
    assert_eq!(history.omitted, 0);
    let told: Vec<_> = history
        .changes
        .iter()
        .map(|change| {
            (
                change.via,
                change.unix_seconds,
                change.manager.as_str(),
                change.user.as_str(),
                change.node.0.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (Some(Via::Apply), 10, "me", "admin", "a"),
            (Some(Via::GitOps), 5, "me", "admin", "a"),
            (Some(Via::Api), 1_714_557_661, "test", "admin", "a"),
        ]
    );
    let created = lines(&history.changes[0].changed);
    assert!(
        created.contains(&"spec.replicas: - -> 3".to_owned()),
        "{created:?}"
    );
    assert_eq!(
        steps(&store, &key),
        [
            vec!["spec.replicas: 3 -> 4"],
            vec![r#"metadata.labels.ярлик: - -> "значення""#]
        ]
    );
    let ids: Vec<&str> = history.changes.iter().map(|change| change.id.as_str()).collect();
    assert!(ids.iter().all(|id| id.len() >= 8), "{ids:?}");
    let newest = store.history(&key, 2).unwrap();
    assert_eq!(
        (newest.omitted, newest.changes.as_slice()),
        (1, &history.changes[1..])
    );
}

#[tokio::test]
async fn every_node_tells_the_same_and_each_change_against_what_its_writer_saw() {
    let (a, b) = (store("a"), store("b"));
    let key = key_of(&deployment("web"));
    a.create(deployment("web"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    edit(&a, &key, |object| object.set(&["spec", "replicas"], 5)).await;
    edit(&b, &key, |object| object.set(&["spec", "replicas"], 7)).await;
    edit(&b, &key, |object| object.set(&["spec", "replicas"], 8)).await;
    exchange(&a, &b).await;
    let history = a.history(&key, ALL).unwrap();
    assert_eq!(history, b.history(&key, ALL).unwrap());
    let mut told = steps(&a, &key).concat();
    let place = |line: &str| told.iter().position(|told| told == line).unwrap();
    assert!(place("spec.replicas: 3 -> 7") < place("spec.replicas: 7 -> 8"));
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "spec.replicas: 3 -> 5",
            "spec.replicas: 3 -> 7",
            "spec.replicas: 7 -> 8"
        ]
    );
}

#[tokio::test]
async fn elements_come_and_go_and_their_ghosts_are_not_seen() {
    let (a, b) = (store("a"), store("b"));
    let key = key_of(&deployment("web"));
    a.create(deployment("web"), author("x")).await.unwrap();
    exchange(&a, &b).await;
    edit(&a, &key, |object| containers(object)[1]["image"] = "log:2".into()).await;
    edit(&b, &key, |object| {
        containers(object).remove(1);
    })
    .await;
    exchange(&a, &b).await;
    let mut at_once = steps(&a, &key);
    at_once.sort_unstable();
    assert_eq!(
        at_once,
        [
            vec![r#"spec.template.spec.containers[log].image: "log:1" -> "log:2""#],
            vec![
                r#"spec.template.spec.containers[log]: {"args":["-v","--x"],"image":"log:1","name":"log"} -> -"#
            ],
        ]
    );
    // The edit of what was removed is swept away with the next change, which is none of that one's doing.
    edit(&a, &key, |object| {
        containers(object)[0]["env"] = json!([{"name": "A", "value": "2"}, {"name": "B", "value": "1"}]);
        containers(object).push(json!({"name": "log", "image": "new:1"}));
    })
    .await;
    assert_eq!(
        steps(&a, &key)[2],
        [
            r#"spec.template.spec.containers[log]: - -> {"image":"new:1","name":"log"}"#,
            r#"spec.template.spec.containers[web].env[A].value: "1" -> "2""#,
            r#"spec.template.spec.containers[web].env[B]: - -> {"name":"B","value":"1"}"#,
        ]
    );
}

#[tokio::test]
async fn fields_in_elements_that_cannot_change_are_told() {
    let store = store("a");
    let pod = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}]}]},
    }));
    let key = key_of(&pod);
    store.create(pod, author("x")).await.unwrap();
    edit(&store, &key, |object| {
        object.0["spec"]["containers"][0]["image"] = "web:2".into()
    })
    .await;
    assert_eq!(
        steps(&store, &key),
        [[r#"spec.containers[web].image: "web:1" -> "web:2""#]]
    );
}

#[tokio::test]
async fn values_of_confidential_kinds_are_never_told() {
    let store = store("a");
    let key = ObjectKey::cluster(Kind::ApiToken, "t");
    let mut token = Object::new(&key);
    token.set(&["spec", "hash"], "first secret");
    store.create(token, author("x")).await.unwrap();
    edit(&store, &key, |object| {
        object.set(&["spec", "hash"], "second secret")
    })
    .await;
    let told = format!(
        "{:?} {:?}",
        store.history(&key, ALL).unwrap(),
        store.difference(&key, None, None).unwrap()
    );
    assert!(
        !told.contains("secret") && told.contains("<redacted, sha256:"),
        "{told}"
    );
    let first = store.history(&key, ALL).unwrap().changes[0].id.clone();
    let old = store.object_at(&key, Some(&first)).unwrap();
    assert_eq!(
        old.str_at("/spec/hash"),
        "first secret",
        "what undo writes is the value itself"
    );
}

#[tokio::test]
async fn two_changes_are_compared() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    edit(&store, &key, |object| {
        object.set(&["spec", "replicas"], 3);
        object.set(&["spec", "paused"], true);
    })
    .await;
    let history = store.history(&key, ALL).unwrap();
    let ids: Vec<&str> = history.changes.iter().map(|change| change.id.as_str()).collect();
    let check = |from: Option<&str>, to: Option<&str>, expected: &[&str]| {
        let difference = store.difference(&key, from, to).unwrap();
        assert_eq!(lines(&difference.changed), expected, "{from:?} {to:?}");
        difference
    };
    let last = ["spec.paused: - -> true", "spec.replicas: 4 -> 3"];
    let newest = check(None, None, &last);
    assert_eq!(
        (newest.from, newest.to),
        (vec![ids[1].to_owned()], vec![ids[2].to_owned()])
    );
    check(Some(ids[1]), None, &last);
    check(None, Some(ids[1]), &["spec.replicas: 3 -> 4"]);
    check(Some(ids[0]), Some(ids[2]), &["spec.paused: - -> true"]);
    check(Some(ids[2]), Some(ids[0]), &["spec.paused: true -> -"]);
    check(Some(ids[0]), Some(&ids[0].to_ascii_uppercase()), &[]);
    assert!(check_created(&store, &key, ids[0]).contains(&"spec.replicas: - -> 3".to_owned()));
    assert_eq!(
        store
            .object_at(&key, Some(ids[1]))
            .unwrap()
            .i64_at("/spec/replicas"),
        Some(4)
    );
    for unknown in ["", "ffffffffffff", "HEAD", "../x"] {
        let refused = store.difference(&key, Some(unknown), None);
        assert!(
            matches!(refused, Err(HistoryError::UnknownChange { .. })),
            "{unknown}"
        );
    }
}

fn check_created(store: &Store, key: &ObjectKey, id: &str) -> Vec<String> {
    let difference = store.difference(key, None, Some(id)).unwrap();
    assert!(difference.from.is_empty());
    lines(&difference.changed)
}

#[tokio::test]
async fn a_beginning_that_fits_several_changes_names_none() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    // Of seventeen, two begin alike.
    for replicas in 4..20 {
        edit(&store, &key, |object| object.set(&["spec", "replicas"], replicas)).await;
    }
    let history = store.history(&key, ALL).unwrap();
    let mut firsts: Vec<&str> = history.changes.iter().map(|change| &change.id[..1]).collect();
    firsts.sort_unstable();
    let twice = firsts.windows(2).find(|pair| pair[0] == pair[1]).unwrap()[0];
    let refused = store.difference(&key, Some(twice), None);
    assert!(
        matches!(refused, Err(HistoryError::Ambiguous { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_history_goes_with_the_object() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    store
        .remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    assert!(matches!(store.history(&key, ALL), Err(HistoryError::NotFound(_))));
    store.create(deployment("web"), author("x")).await.unwrap();
    assert_eq!(store.history(&key, ALL).unwrap().changes.len(), 1);
    let node = ObjectKey::cluster(Kind::Node, "n");
    store.project(&node, Some(Object::new(&node)));
    assert!(matches!(
        store.history(&node, ALL),
        Err(HistoryError::Computed(_))
    ));
}

#[tokio::test]
async fn a_squash_is_said_and_what_is_left_stays_as_it_was_told() {
    let (a, b) = (store("a"), store("b"));
    let key = key_of(&deployment("web"));
    a.create(deployment("web"), author("x")).await.unwrap();
    for replicas in 4..44 {
        edit(&a, &key, |object| object.set(&["spec", "replicas"], replicas)).await;
    }
    exchange(&a, &b).await;
    let before = a.history(&key, ALL).unwrap().changes;
    assert_eq!(squash(&[&a, &b], 0, &[true; 2], 10, 5).await, 1);
    exchange(&a, &b).await;
    let history = a.history(&key, ALL).unwrap();
    assert_eq!(history, b.history(&key, ALL).unwrap());
    let (base, left) = history.changes.split_first().unwrap();
    assert_eq!(left, &before[before.len() - 5..]);
    assert_eq!((base.compacted, base.via), (Some(36), Some(Via::Controller)));
    assert_eq!(base.changed, ChangedFields::default());
    let replicas = |id: &str| a.object_at(&key, Some(id)).unwrap().i64_at("/spec/replicas");
    assert_eq!((replicas(&base.id), replicas(&left[0].id)), (Some(38), Some(39)));
    let dropped = a.object_at(&key, Some(&before[0].id));
    assert!(
        matches!(dropped, Err(HistoryError::UnknownChange { .. })),
        "{dropped:?}"
    );
}
