//! Backups and restores through the API: round trips over every kind, and files that are refused.

use std::collections::BTreeMap;

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use reconcilers::zone::WHITELIST_NAME;
use schemas::{KINDS, Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{Author, Store, Via};

use super::fixture::{Api, deployment, pod};
use crate::api::restore::act_on;
use crate::backup::{self, Action, Entry, Identity, Line};

fn author() -> Author {
    Author {
        manager: "test".to_owned(),
        user: String::new(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

async fn create(api: &Api, object: Value) {
    let object = Object::from_value(object).unwrap();
    api.state.store.create(object, author()).await.unwrap();
}

fn pods(restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": "set"}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "set", "image": "localhost/set:1"}]}})
}

fn workload(api_version: &str, kind: &str, restart: &str) -> Value {
    let selector = match kind {
        "ReplicationController" => json!({"app": "set"}),
        _ => json!({"matchLabels": {"app": "set"}}),
    };
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "set"},
        "spec": {"selector": selector, "template": pods(restart)}})
}

/// One object of every kind that a backup has, as documents, with what it must not have; and some that it leaves out.
async fn fill(api: &Api) {
    let labels = json!({"tier": "front", "odd": "yes"});
    create(
        api,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels,
            "annotations": {"text": "two\nlines\n", "unicode": "größe \u{1f600}", "dashes": "---\n--- \n---"}}}),
    )
    .await;
    let in_shop = |mut object: Value| {
        object["metadata"]["namespace"] = "shop".into();
        object
    };
    let mut web = in_shop(deployment("web", 3));
    web["status"] = json!({"replicas": 3});
    web["metadata"]["finalizers"] = json!(["example.com/hold"]);
    create(api, web).await;
    let mut lone = in_shop(pod("lone"));
    lone["spec"]["nodeName"] = "node1".into();
    lone["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "other", "uid": "u"}]);
    create(api, lone).await;
    let mut owned = in_shop(pod("web-1"));
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]);
    create(api, owned).await;
    let mut set = in_shop(deployment("set", 1));
    set["kind"] = "ReplicaSet".into();
    create(api, set).await;
    create(
        api,
        in_shop(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}], "selector": {"app": "web"}}}),
        ),
    )
    .await;
    create(
        api,
        in_shop(
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "by-hand"},
            "subsets": [{"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 5432}]}]}),
        ),
    )
    .await;
    create(
        api,
        in_shop(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "by-hand"},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.9"]}], "ports": [{"port": 5432}]})),
    )
    .await;
    create(
        api,
        in_shop(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"},
            "spec": {"rules": [{"host": "shop.example", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}}),
        ),
    )
    .await;
    create(
        api,
        json!({"apiVersion": "podman-swarm.io/v1", "kind": "DnsWhitelist", "metadata": {"name": WHITELIST_NAME},
            "spec": {"enabled": true, "hosts": {"example.com": true}}}),
    )
    .await;
    for object in [
        in_shop(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}}),
        ),
        in_shop(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}})),
        in_shop(
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}}),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast"},
            "provisioner": "example.com/disks"}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "edge"},
            "spec": {"controller": "example.com/edge"}}),
        in_shop(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
            "spec": {"podSelector": {}}}),
        ),
        in_shop(
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
            "spec": {"minAvailable": 1}}),
        ),
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 5}),
        in_shop(workload("apps/v1", "StatefulSet", "Always")),
        in_shop(workload("apps/v1", "DaemonSet", "Always")),
        in_shop(workload("v1", "ReplicationController", "Always")),
        in_shop(
            json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "set"},
            "template": pods("Always")}),
        ),
        in_shop(
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "set"},
            "revision": 1, "data": {"a": [1]}}),
        ),
        in_shop(
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
            "spec": {"template": pods("Never")}}),
        ),
        in_shop(
            json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
            "spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": pods("Never")}}}}),
        ),
    ] {
        create(api, object).await;
    }
    for kind in [
        Kind::Member,
        Kind::ApiToken,
        Kind::JoinToken,
        Kind::GitInventory,
        Kind::Node,
    ] {
        let mut object = Object::new(&ObjectKey::cluster(kind, "secret"));
        object.set(&["spec", "value"], "not-in-a-backup");
        create(api, object.into_value()).await;
    }
    create(
        api,
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "going", "deletionTimestamp": "2027-01-15T08:00:00Z", "finalizers": ["a/b"]}}),
    )
    .await;
    let mut left = pod("left");
    left["metadata"]["namespace"] = "going".into();
    create(api, left).await;
}

async fn fetch(api: &Api, query: &str) -> Vec<u8> {
    let request = Request::get(format!("/api/v1/backup{query}"))
        .body(Body::empty())
        .unwrap();
    let answer = api.send(request).await;
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap().to_bytes().to_vec()
}

/// The lines about objects, and the counts of the end.
async fn restore(api: &Api, query: &str, file: &[u8]) -> (Vec<Entry>, BTreeMap<Action, usize>) {
    let path = format!("/api/v1/restore{query}");
    let answer = api
        .call("POST", &path, &[], Bytes::copy_from_slice(file))
        .await
        .expect(200);
    let mut entries = Vec::new();
    for line in answer.text.lines() {
        match serde_json::from_str(line).unwrap() {
            Line::Backup(about) => {
                assert_eq!((about.cluster_id.as_str(), about.node.as_str()), ("test", "n1"))
            }
            Line::Object(entry) => entries.push(entry),
            Line::End(counts) => return (entries, counts),
        }
    }
    panic!("the answer has no end: {}", answer.text);
}

/// What a backup has of a store, by key.
fn content(store: &Store) -> BTreeMap<ObjectKey, Object> {
    let snapshot = backup::snapshot(store);
    let portable =
        |(key, object): (&ObjectKey, std::sync::Arc<Object>)| Some((key.clone(), backup::portable(&object)?));
    snapshot.documents().filter_map(portable).collect()
}

fn find<'a>(entries: &'a [Entry], object: &str) -> &'a Entry {
    entries
        .iter()
        .find(|entry| entry.object == object)
        .unwrap_or_else(|| panic!("no {object} in {entries:?}"))
}

#[tokio::test]
async fn every_kind_survives_a_backup_and_a_restore_into_a_new_cluster() {
    let old = Api::open().await;
    fill(&old).await;
    let file = fetch(&old, "").await;
    let text = String::from_utf8(file.clone()).unwrap();
    for absent in [
        "not-in-a-backup",
        "uid:",
        "resourceVersion",
        "node1",
        "ownerReferences",
        "web-1",
        "going",
        "left",
    ] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    let new = Api::open().await;
    let before = new.state.store.digest();
    let (plan, counts) = restore(&new, "?dryRun=All", &file).await;
    assert_eq!(counts[&Action::Create], 25, "{plan:?}");
    assert_eq!(new.state.store.digest(), before, "a plan changes nothing");
    let (done, counts) = restore(&new, "", &file).await;
    // The four namespaces that every cluster has are there.
    assert_eq!(
        counts,
        BTreeMap::from([(Action::Create, 25), (Action::Unchanged, 4)]),
        "{done:?}"
    );

    let mut expected = content(&old.state.store);
    expected.retain(|key, _| key.namespace != "going");
    let restored = content(&new.state.store);
    assert_eq!(restored, expected);
    let kinds: Vec<Kind> = restored.keys().map(|key| key.kind).collect();
    // Secrets, which have a backup sealed, are tried below.
    let tried = |kind| backup::is_backed_up(kind) && kind != Kind::Secret;
    for row in KINDS.iter().filter(|row| tried(row.kind)) {
        assert!(kinds.contains(&row.kind), "no {} was tried", row.name);
    }
    let (_, counts) = restore(&new, "", &file).await;
    assert_eq!(
        counts,
        BTreeMap::from([(Action::Unchanged, 29)]),
        "a second one has nothing to do"
    );
}

#[tokio::test]
async fn a_restored_object_is_another_one_of_its_name() {
    let api = Api::open().await;
    let key = ObjectKey::new(Kind::Deployment, "default", "web");
    let mut object = deployment("web", 3);
    object["metadata"]["namespace"] = "default".into();
    create(&api, object).await;
    let uid = |api: &Api| api.state.store.get(&key).unwrap().object.uid().to_owned();
    let first = uid(&api);
    let file = fetch(&api, "").await;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    api.delete(path).await.expect(200);
    restore(&api, "", &file).await;
    let second = uid(&api);
    assert_ne!(first, second);

    // What says something else stays, unless it is asked for.
    api.patch(
        path,
        "merge",
        json!({"spec": {"replicas": 5}, "metadata": {"annotations": {"new": "1"}}}),
    )
    .await
    .expect(200);
    api.patch(
        "/api/v1/namespaces/default",
        "merge",
        json!({"metadata": {"labels": {"new": "1"}}}),
    )
    .await
    .expect(200);
    let (entries, _) = restore(&api, "", &file).await;
    for object in ["Deployment default/web", "Namespace default"] {
        let entry = find(&entries, object);
        assert_eq!(entry.action, Action::Skip);
        assert!(entry.message.contains("--replace"), "{entry:?}");
    }
    assert_eq!(uid(&api), second);
    let namespace = ObjectKey::cluster(Kind::Namespace, "default");
    let namespace_uid = api.state.store.get(&namespace).unwrap().object.uid().to_owned();
    let (entries, _) = restore(&api, "?replace=true", &file).await;
    assert_eq!(find(&entries, "Deployment default/web").action, Action::Replace);
    assert_eq!(find(&entries, "Namespace default").action, Action::Update);
    assert_ne!(uid(&api), second);
    let view = api.state.store.get(&key).unwrap();
    assert_eq!(
        (
            view.object.i64_at("/spec/replicas"),
            view.object.annotation("new")
        ),
        (Some(3), None)
    );
    let view = api.state.store.get(&namespace).unwrap();
    assert_eq!(
        (view.object.uid(), view.object.label("new")),
        (namespace_uid.as_str(), None)
    );
}

#[tokio::test]
async fn what_cannot_be_made_is_told_and_the_rest_is_made() {
    let old = Api::open().await;
    create(
        &old,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
    )
    .await;
    let mut bad = pod("bad");
    bad["metadata"]["namespace"] = "shop".into();
    bad["spec"]["containers"] = json!([]);
    create(&old, bad).await;
    let mut good = pod("good");
    good["metadata"]["namespace"] = "shop".into();
    create(&old, good).await;
    let mut lost = pod("lost");
    lost["metadata"]["namespace"] = "nowhere".into();
    create(&old, lost).await;
    let file = fetch(&old, "").await;
    let new = Api::open().await;
    let (entries, counts) = restore(&new, "", &file).await;
    assert_eq!(
        (counts[&Action::Create], counts[&Action::Refuse]),
        (2, 2),
        "{entries:?}"
    );
    assert!(
        find(&entries, "Pod shop/bad").message.contains("spec.containers"),
        "{entries:?}"
    );
    assert!(
        find(&entries, "Pod nowhere/lost").message.contains("nowhere"),
        "{entries:?}"
    );
    assert_eq!(find(&entries, "Pod shop/good").action, Action::Create);
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_is_not_there_or_goes() {
    let (old, new) = (Api::open().await, Api::open().await);
    for (api, name, ends) in [(&old, "shop", false), (&new, "shop", true)] {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Namespace, name));
        if ends {
            object.set(&["metadata", "deletionTimestamp"], "2027-01-15T08:00:00Z");
        }
        create(api, object.into_value()).await;
    }
    let mut web = pod("web");
    web["metadata"]["namespace"] = "shop".into();
    create(&old, web).await;
    let (entries, _) = restore(&new, "", &fetch(&old, "").await).await;
    let entry = find(&entries, "Pod shop/web");
    assert_eq!(entry.action, Action::Refuse, "{entry:?}");
    assert!(entry.message.contains("being terminated"), "{entry:?}");

    // The plan had one made, and that failed.
    let mut lost = Object::from_value(pod("lost")).unwrap();
    lost.set(&["metadata", "namespace"], "nowhere");
    let key = lost.key().unwrap();
    let error = act_on(&new.state, &key, lost, Action::Create, &author()).await;
    assert!(error.unwrap_err().message.contains("nowhere"));
    assert!(new.state.store.get(&key).is_none());
}

#[tokio::test]
async fn a_sealed_backup_opens_in_its_cluster_and_with_its_key() {
    let api = Api::open().await;
    fill(&api).await;
    let file = fetch(&api, "?seal=always").await;
    assert!(backup::is_sealed(&file));
    let own = &api.state.backups.identity;
    let opened = backup::open(file.clone(), own).unwrap();
    assert_eq!(backup::read(opened.clone()).unwrap().count(), 29);
    assert_eq!(opened, fetch(&api, "?seal=never").await);
    let (_, counts) = restore(&api, "?dryRun=All", &file).await;
    assert_eq!(counts, BTreeMap::from([(Action::Unchanged, 29)]));

    let mut foreign = Api::open().await.state;
    foreign.backups.identity = Identity::of_cluster_key(&[1; 32]);
    let error = backup::open(file, &foreign.backups.identity)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("another key") && error.contains("--encryption-key"),
        "{error}"
    );
}

#[tokio::test]
async fn a_backup_with_confidential_objects_is_sealed_unless_asked_otherwise() {
    let api = Api::open().await;
    let is_sealed = |file: &[u8]| file.starts_with(b"age-encryption.org/");
    for (query, expected) in [("", false), ("?seal=always", true), ("?seal=never", false)] {
        assert_eq!(is_sealed(&fetch(&api, query).await), expected, "{query}");
    }
    create(
        &api,
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "namespace": "default"},
            "data": {"password": "aHVudGVyMg=="}}),
    )
    .await;
    for (query, expected) in [("", true), ("?seal=always", true), ("?seal=never", false)] {
        let file = fetch(&api, query).await;
        assert_eq!(is_sealed(&file), expected, "{query}");
        let says = file.windows(12).any(|window| window == b"aHVudGVyMg==");
        assert_eq!(says, !expected, "{query}");
    }
    let new = Api::open().await;
    restore(&new, "", &fetch(&api, "?seal=never").await).await;
    let secret = ObjectKey::new(Kind::Secret, "default", "a");
    let restored = new.state.store.get(&secret).unwrap().object;
    assert_eq!(restored.str_at("/data/password"), "aHVudGVyMg==");
}

#[tokio::test]
async fn a_file_that_is_not_whole_is_refused_and_nothing_is_written() {
    let old = Api::open().await;
    fill(&old).await;
    let (plain, sealed) = (fetch(&old, "").await, fetch(&old, "?seal=always").await);
    let edited = |from: &str, to: &str| {
        String::from_utf8(plain.clone())
            .unwrap()
            .replace(from, to)
            .into_bytes()
    };
    let last = plain.windows(5).rposition(|window| window == b"\n---\n").unwrap();
    let mut flipped = sealed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let new = Api::open().await;
    let before = new.state.store.digest();
    for (what, file, words) in [
        ("empty", Vec::new(), "no backup"),
        (
            "a manifest",
            b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".to_vec(),
            "no backup",
        ),
        ("no text", vec![0xff; 100], "no text"),
        ("newer", edited("format: 1", "format: 2"), "newer version"),
        ("edited", edited("replicas: 3", "replicas: 4"), "checksum"),
        (
            "cut off in the last document",
            plain[..plain.len() - 20].to_vec(),
            "cut off or changed",
        ),
        (
            "without its last document",
            plain[..last + 1].to_vec(),
            "cut off or changed",
        ),
        (
            "cut off in the middle",
            plain[..plain.len() / 2].to_vec(),
            "cut off or changed",
        ),
        (
            "sealed and cut off",
            sealed[..sealed.len() - 1].to_vec(),
            "cut off or changed",
        ),
        ("sealed and changed", flipped, "cut off or changed"),
        ("sealed, cut off in its header", sealed[..50].to_vec(), "header"),
    ] {
        let refused = new.call("POST", "/api/v1/restore", &[], file).await;
        assert_eq!(refused.code, 400, "{what}: {}", refused.text);
        let message = refused.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(words), "{what}: {message}");
        assert_eq!(new.state.store.digest(), before, "{what}");
    }
}
