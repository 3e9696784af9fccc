//! Create, update, apply and remove on one node.

use std::time::Duration;

use schemas::Kind;
use serde_json::json;

use super::*;
use crate::commit::QUEUE_CHANGES;
use crate::{Outcome, OwnedField, Revision};

#[tokio::test]
async fn an_object_comes_back_as_it_was_written() {
    let store = store("a");
    let written = deployment("web");
    let view = store.create(written.clone(), author("kubectl")).await.unwrap();
    assert_eq!(plain(&view.object), plain(&written));
    assert_eq!(view.object.generation(), 1);
    assert_eq!(view.object.uid().len(), 36);
    assert_eq!(
        view.object.str_at("/metadata/creationTimestamp"),
        "2024-05-01T10:01:01Z"
    );
    assert_eq!(
        view.object.str_at("/metadata/resourceVersion"),
        view.revision.to_string()
    );
    assert_eq!(store.get(&view.key).unwrap().object, view.object);
    assert_eq!(store.list(Kind::Deployment, None).items.len(), 1);
    assert_eq!(store.list(Kind::Deployment, Some("other")).items.len(), 0);
    let again = store.create(written, author("kubectl")).await;
    assert!(matches!(again, Err(WriteError::Exists(_))));
}

#[tokio::test]
async fn generation_counts_changes_of_spec_alone() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("kubectl")).await.unwrap();
    let before = edit(&store, &key, |object| {
        object.set(&["metadata", "labels", "b"], "c")
    })
    .await;
    assert_eq!(before.object.generation(), 1);
    let after = edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    assert_eq!(after.object.generation(), 2);
    assert!(after.revision > before.revision);
    let same = edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    assert_eq!(same.revision, after.revision, "an equal value is no change");
}

#[tokio::test]
async fn preconditions_are_checked() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    let first = store.create(deployment("web"), author("kubectl")).await.unwrap();
    let second = edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await;
    for (uid, revision, expected) in [
        (None, Some(first.revision), false),
        (None, Some(Revision(second.revision.0 ^ 1)), false),
        (Some("x"), None, false),
        (Some(first.object.uid()), Some(second.revision), true),
    ] {
        let precondition = Precondition {
            uid: uid.map(str::to_owned),
            resource_version: revision,
        };
        let result: Result<View, WriteError> = store
            .update(&key, &precondition, author("x"), |object| Ok(object.clone()))
            .await;
        assert_eq!(result.is_ok(), expected, "{uid:?} {revision:?}");
    }
}

#[tokio::test]
async fn a_new_object_of_a_removed_name_is_another() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    let first = store.create(deployment("web"), author("x")).await.unwrap();
    assert!(!store.is_removed(&key, first.object.uid()));
    store
        .remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    assert!(store.get(&key).is_none());
    assert!(store.is_removed(&key, first.object.uid()));
    for (prefix, expected) in [("we", &["web"][..]), ("wed", &[])] {
        assert_eq!(store.removed_names(key.kind, &key.namespace, prefix), expected);
        assert!(store.removed_names(key.kind, "other", prefix).is_empty());
    }
    let second = store.create(deployment("web"), author("x")).await.unwrap();
    // Names of containers have so much of it.
    assert_ne!(first.object.uid()[..13], second.object.uid()[..13]);
    assert!(!store.is_removed(&key, second.object.uid()));
    let precondition = Precondition {
        uid: Some(first.object.uid().to_owned()),
        ..Default::default()
    };
    let gone = store.remove(&key, &precondition, author("x"));
    assert!(matches!(gone.await, Err(WriteError::Conflict { .. })));
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused() {
    let store = store("a");
    let mut deep = json!({});
    for _ in 0..70 {
        deep = json!({ "a": deep });
    }
    let mut object = deployment("web");
    object.set(&["spec", "deep"], deep);
    let mut large = deployment("web");
    large.set(&["spec", "large"], "x".repeat(2 << 20));
    let unknown = super::object(json!({"apiVersion": "v9", "kind": "Nothing", "metadata": {"name": "x"}}));
    let slash = Object::new(&ObjectKey::new(Kind::Pod, "a/b", "c"));
    for object in [object, large, unknown, slash] {
        let result = store.create(object, author("x")).await;
        assert!(matches!(result, Err(WriteError::Invalid { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn apply_removes_what_it_no_longer_names_and_leaves_the_rest() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    let applied = store
        .apply(deployment("web"), author("git"), false)
        .await
        .unwrap();
    assert_eq!(applied.outcome, Outcome::Created);
    let applied = store
        .apply(deployment("web"), author("git"), false)
        .await
        .unwrap();
    assert_eq!(applied.outcome, Outcome::Unchanged);

    // Another manager adds a label, a container and an env entry, and scales.
    edit(&store, &key, |object| {
        object.set(&["metadata", "labels", "mine"], "yes");
        object.set(&["spec", "replicas"], 7);
        let containers = object.0["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap();
        containers[0]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "B", "value": "2"}));
        containers.push(json!({"name": "extra", "image": "extra:1"}));
    })
    .await;

    let mut next = deployment("web");
    next.remove(&["spec", "replicas"]);
    let containers = next.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap();
    containers.truncate(1);
    containers[0]["image"] = "web:2".into();
    containers[0].as_object_mut().unwrap().remove("env");
    containers[0].as_object_mut().unwrap().remove("ports");
    let dry = store.apply_dry(next.clone(), &author("git"), false).unwrap();
    let applied = store.apply(next, author("git"), false).await.unwrap();
    assert_eq!(plain(&dry.view.object), plain(&applied.view.object));
    assert_eq!(applied.outcome, Outcome::Configured);
    let object = &applied.view.object;
    assert_eq!(object.label("mine"), Some("yes"));
    assert_eq!(object.i64_at("/spec/replicas"), Some(7), "the scale is not ours");
    assert_eq!(
        object.pointer("/spec/template/spec/containers").unwrap(),
        &json!([
            {"name": "web", "image": "web:2", "env": [{"name": "B", "value": "2"}]},
            {"name": "extra", "image": "extra:1"}
        ])
    );
}

#[tokio::test]
async fn values_that_differ_in_the_order_of_their_keys_are_equal() {
    let store = store("a");
    let ingress = |rules: Value| {
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"rules": rules}
        }))
    };
    let one = ingress(json!([{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix"}]}}]));
    let other = ingress(json!([{"http": {"paths": [{"pathType": "Prefix", "path": "/"}]}, "host": "a.b"}]));
    store.apply(one.clone(), author("git"), false).await.unwrap();
    for (object, manager) in [(other.clone(), "git"), (other, "psctl"), (one, "git")] {
        let applied = store.apply(object, author(manager), false).await.unwrap();
        assert_eq!(applied.outcome, Outcome::Unchanged, "{manager}");
    }
}

#[tokio::test]
async fn apply_names_the_owners_of_what_it_would_take() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store
        .apply(deployment("web"), author("git"), false)
        .await
        .unwrap();
    edit(&store, &key, |object| object.set(&["spec", "replicas"], 7)).await;
    let refused = store.apply(deployment("web"), author("git"), false).await;
    let Err(WriteError::Owned { fields, .. }) = refused else {
        panic!("{refused:?}")
    };
    let replicas = OwnedField {
        path: ".spec.replicas".to_owned(),
        manager: "test".to_owned(),
        by_update: true,
    };
    assert_eq!(fields, [replicas]);
    let forced = store.apply(deployment("web"), author("git"), true).await.unwrap();
    assert_eq!(forced.view.object.i64_at("/spec/replicas"), Some(3));
    // Now it is ours alone.
    let mut without = deployment("web");
    without.remove(&["spec", "replicas"]);
    let applied = store.apply(without, author("git"), false).await.unwrap();
    assert_eq!(applied.view.object.i64_at("/spec/replicas"), None);
}

/// A deployment whose first container has these resources.
fn with_resources(resources: Value) -> Object {
    let mut object = deployment("web");
    object.0["spec"]["template"]["spec"]["containers"][0]["resources"] = resources;
    object
}

#[tokio::test]
async fn an_empty_map_takes_the_place_of_what_an_apply_drops_from_it() {
    let store = store("a");
    let full = with_resources(json!({"limits": {"memory": "64Mi"}}));
    let empty = with_resources(json!({}));
    store.apply(full, author("git"), false).await.unwrap();
    let first = store.apply(empty.clone(), author("git"), false).await.unwrap();
    assert_eq!(plain(&first.view.object), plain(&empty));
    let second = store.apply(empty, author("git"), false).await.unwrap();
    assert_eq!(second.outcome, Outcome::Unchanged);
    assert_eq!(first.view.object, second.view.object);
}

#[tokio::test]
async fn what_another_left_empty_can_be_filled() {
    let store = store("a");
    let empty = with_resources(json!({}));
    store.apply(empty.clone(), author("git"), false).await.unwrap();
    let limits = object(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"name": "web", "resources": {"limits": {"memory": "64Mi"}}}]}}}
    }));
    let filled = store.apply(limits, author("sizer"), false).await.unwrap();
    let full = with_resources(json!({"limits": {"memory": "64Mi"}}));
    assert_eq!(plain(&filled.view.object), plain(&full));
    let again = store.apply(empty, author("git"), false).await.unwrap();
    assert_eq!(again.outcome, Outcome::Unchanged);
    // A value in its place is another matter.
    let scalar = store
        .apply(with_resources(json!("none")), author("other"), false)
        .await;
    assert!(matches!(scalar, Err(WriteError::Owned { .. })), "{scalar:?}");
}

#[tokio::test]
async fn elements_that_an_apply_adds_come_after_those_of_others() {
    let store = store("a");
    store
        .apply(deployment("web"), author("git"), false)
        .await
        .unwrap();
    let check = |manager: &'static str, names: &'static [&'static str], expected: &'static [&'static str]| {
        let store = store.clone();
        async move {
            let mut object = deployment("web");
            object.0.remove("spec");
            let containers: Value = names.iter().map(|name| json!({ "name": name })).collect();
            object.set(&["spec", "template", "spec", "containers"], containers);
            let applied = store.apply(object, author(manager), false).await.unwrap();
            let containers = applied
                .view
                .object
                .pointer("/spec/template/spec/containers")
                .unwrap();
            let shown: Vec<_> = containers
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["name"].as_str().unwrap())
                .collect();
            assert_eq!(shown, expected, "{names:?}");
        }
    };
    check("istio", &["istio"], &["web", "log", "istio"]).await;
    check("a", &["web", "a", "b"], &["web", "log", "istio", "a", "b"]).await;
    // Before one that it names.
    check("z", &["z", "log"], &["web", "z", "log", "istio", "a", "b"]).await;
    check(
        "z",
        &["z", "log", "y"],
        &["web", "z", "log", "istio", "a", "b", "y"],
    )
    .await;
    check("z", &["y", "x"], &["web", "log", "istio", "a", "b", "y", "x"]).await;
}

#[tokio::test]
async fn apply_keeps_what_the_same_manager_changed_by_updates() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store
        .apply(deployment("web"), author("test"), false)
        .await
        .unwrap();
    let marked = edit(&store, &key, |object| {
        object.set(&["metadata", "deletionTimestamp"], "2024-05-01T10:01:01Z");
        object.set(&["spec", "replicas"], 7);
    })
    .await;
    assert!(marked.object.is_terminating());
    let mut without = deployment("web");
    without.remove(&["spec", "replicas"]);
    let applied = store.apply(without.clone(), author("test"), false).await.unwrap();
    assert!(applied.view.object.is_terminating());
    assert_eq!(applied.view.object.i64_at("/spec/replicas"), Some(7));
    let refused = store.apply(deployment("web"), author("test"), false).await;
    assert!(matches!(refused, Err(WriteError::Owned { .. })), "{refused:?}");
    // Forced, the apply owns it, and drops it again.
    store
        .apply(deployment("web"), author("test"), true)
        .await
        .unwrap();
    let dropped = store.apply(without, author("test"), false).await.unwrap();
    assert_eq!(dropped.view.object.i64_at("/spec/replicas"), None);
}

#[tokio::test]
async fn apply_keeps_what_the_same_manager_created_without_it() {
    let store = store("a");
    store.create(deployment("web"), author("x")).await.unwrap();
    store.apply(deployment("web"), author("x"), false).await.unwrap();
    let mut without = deployment("web");
    without.remove(&["metadata", "labels"]);
    let applied = store.apply(without, author("x"), false).await.unwrap();
    assert_eq!(applied.view.object.label("app"), Some("web"));
}

#[tokio::test]
async fn a_field_stays_while_one_of_its_owners_names_it() {
    let store = store("a");
    store
        .apply(deployment("web"), author("git"), false)
        .await
        .unwrap();
    let shared = store
        .apply(deployment("web"), author("psctl"), false)
        .await
        .unwrap();
    assert_eq!(shared.outcome, Outcome::Unchanged, "only ownership changed");
    let mut without = deployment("web");
    without.remove(&["metadata", "labels"]);
    let containers = without.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap();
    containers.truncate(1);
    let first = store.apply(without.clone(), author("git"), false).await.unwrap();
    assert_eq!(plain(&first.view.object), plain(&deployment("web")));
    let second = store
        .apply(without.clone(), author("psctl"), false)
        .await
        .unwrap();
    assert_eq!(plain(&second.view.object), plain(&without));
}

#[tokio::test]
async fn projections_lie_over_documents_and_cost_no_write() {
    let disk = MemoryDisk::default();
    let store = Store::open_in_memory(disk.clone(), options("a")).unwrap();
    let key = key_of(&deployment("web"));
    let created = store.create(deployment("web"), author("x")).await.unwrap();
    let syncs = disk.syncs();
    let mut status = Object::default();
    status.set(&["status", "readyReplicas"], 2);
    store.project(&key, Some(status.clone()));
    let shown = store.get(&key).unwrap();
    assert_eq!(shown.object.i64_at("/status/readyReplicas"), Some(2));
    assert!(shown.revision > created.revision);
    store.project(&key, Some(status));
    assert_eq!(
        store.get(&key).unwrap().revision,
        shown.revision,
        "nothing changed"
    );
    let edited = edit(&store, &key, |object| {
        assert_eq!(
            object.i64_at("/status/readyReplicas"),
            None,
            "updates see the document"
        );
        assert_eq!(
            object.str_at("/metadata/resourceVersion"),
            shown.revision.to_string()
        );
        object.set(&["status", "readyReplicas"], 9);
        object.set(&["status", "own"], 1);
    })
    .await;
    assert_eq!(
        edited.object.i64_at("/status/readyReplicas"),
        Some(2),
        "the projection wins"
    );
    assert_eq!(edited.object.i64_at("/status/own"), Some(1));
    let written = &store.written(Kind::Deployment)[0];
    assert_eq!(written.i64_at("/status/readyReplicas"), Some(9));
    store.project(&key, None);
    assert_eq!(
        store.get(&key).unwrap().object.i64_at("/status/readyReplicas"),
        Some(9)
    );
    assert_eq!(disk.syncs(), syncs + 1);

    let node = ObjectKey::cluster(Kind::Node, "n1");
    store.project(&node, Some(Object::new(&node)));
    let shown = store.get(&node).unwrap();
    assert!(!shown.stored && shown.object.uid().len() == 36);
    store.project(&node, None);
    assert!(store.get(&node).is_none());
}

#[tokio::test]
async fn conditions_of_projection_and_document_merge_by_type() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let mut written = deployment("web");
    written.set(
        &["status", "conditions"],
        json!([condition("Mine", "True"), condition("Available", "False")]),
    );
    store.create(written, author("x")).await.unwrap();
    let mut status = Object::default();
    status.set(
        &["status", "conditions"],
        json!([condition("Available", "True"), condition("Progressing", "True")]),
    );
    store.project(&key, Some(status));
    assert_eq!(
        store
            .get(&key)
            .unwrap()
            .object
            .pointer("/status/conditions")
            .unwrap(),
        &json!([
            condition("Available", "True"),
            condition("Progressing", "True"),
            condition("Mine", "True")
        ])
    );
}

#[tokio::test]
async fn a_new_incarnation_does_not_show_the_status_of_the_old_one() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    let mut status = Object::default();
    status.set(&["status", "readyReplicas"], 2);
    store.project(&key, Some(status));
    store
        .remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let created = store.create(deployment("web"), author("x")).await.unwrap();
    assert_eq!(created.object.i64_at("/status/readyReplicas"), None);
}

#[tokio::test]
async fn a_status_that_comes_after_the_removal_is_not_kept() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    store
        .remove(&key, &Precondition::default(), author("x"))
        .await
        .unwrap();
    let mut status = Object::default();
    status.set(&["status", "readyReplicas"], 2);
    store.project(&key, Some(status));
    assert!(store.get(&key).is_none());
    let created = store.create(deployment("web"), author("x")).await.unwrap();
    assert_eq!(created.object.i64_at("/status/readyReplicas"), None);
}

#[tokio::test]
async fn writers_of_one_key_do_not_lose_updates() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    let writers: Vec<_> = (0..20)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                edit(&store, &key, |object| {
                    let replicas = object.i64_at("/spec/replicas").unwrap();
                    object.set(&["spec", "replicas"], replicas + 1);
                })
                .await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.get(&key).unwrap().object.i64_at("/spec/replicas"), Some(23));
}

#[tokio::test]
async fn writers_that_wait_for_one_key_do_not_hold_up_others() {
    let store = store("a");
    let key = key_of(&deployment("web"));
    store.create(deployment("web"), author("x")).await.unwrap();
    let claim = store.shared.claims.claim(&key).await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..=QUEUE_CHANGES {
        let (store, key) = (store.clone(), key.clone());
        writers.spawn(async move { edit(&store, &key, |object| object.set(&["spec", "replicas"], 4)).await });
    }
    // Begun after all of them.
    let other = tokio::spawn({
        let store = store.clone();
        async move { store.create(deployment("other"), author("x")).await }
    });
    let created = tokio::time::timeout(Duration::from_secs(10), other).await;
    created.expect("no room for another key").unwrap().unwrap();
    drop(claim);
    writers.join_all().await;
}
