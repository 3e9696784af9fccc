//! `resourceVersion`: lists that are one snapshot, watches from a version, writes on condition.

use axum::body::Body;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Api, deployment, pod};
use super::streams::{Frames, is_gone};

const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
/// More changes than are kept, and than a reader may be behind.
const MANY_CHANGES: usize = 6000;

fn version(value: &Value) -> String {
    value["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

/// Names and labels of a list.
fn items(list: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| {
            (
                text(&item["metadata"]["name"]),
                text(&item["metadata"]["labels"]["x"]),
            )
        })
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(name, label)| ((*name).to_owned(), (*label).to_owned()))
        .collect()
}

/// Changes what is shown of a node, without a write to the disk.
fn change_node(api: &Api, times: usize) {
    let key = ObjectKey::cluster(Kind::Node, "n1");
    for number in 0..times {
        let mut node = Object::new(&key);
        node.set(&["status", "number"], number as i64);
        api.state.store.project(&key, Some(node));
    }
}

async fn change_pods(api: &Api) {
    let label = json!({"metadata": {"labels": {"x": "new"}}});
    for name in ["a", "c", "e"] {
        api.patch(&format!("{PODS}/{name}"), "merge", label.clone())
            .await
            .expect(200);
    }
    api.delete(&format!("{PODS}/d")).await.expect(200);
    api.post(PODS, pod("bb")).await.expect(201);
}

#[tokio::test]
async fn the_pages_of_a_list_are_one_snapshot() {
    let api = Api::open().await;
    for name in ["a", "b", "c", "d", "e"] {
        api.post(PODS, pod(name)).await.expect(201);
    }
    let first = api.get(&format!("{PODS}?limit=2")).await.expect(200).json();
    assert_eq!(items(&first), pairs(&[("a", ""), ("b", "")]));
    change_pods(&api).await;
    let mut shown = Vec::new();
    let mut page = first.clone();
    for remaining in [3, 1] {
        assert_eq!(page["metadata"]["remainingItemCount"], remaining);
        let token = page["metadata"]["continue"].as_str().unwrap();
        let path = format!("{PODS}?limit=2&continue={token}");
        page = api.get(&path).await.expect(200).json();
        assert_eq!(version(&page), version(&first));
        shown.extend(items(&page));
    }
    assert_eq!(shown, pairs(&[("c", ""), ("d", ""), ("e", "")]));
    assert_eq!(page["metadata"].get("continue"), None);
    // A watch from there shows each change once.
    let path = format!("{PODS}?watch=1&resourceVersion={}", version(&first));
    let mut watch = Frames::open(&api, &path, &[]).await;
    for expected in ["MODIFIED a", "MODIFIED c", "MODIFIED e", "DELETED d", "ADDED bb"] {
        assert_eq!(watch.next_text().await, expected);
    }
}

#[tokio::test]
async fn a_list_is_of_the_version_that_is_asked_for() {
    let api = Api::open().await;
    for name in ["a", "c", "d", "e"] {
        api.post(PODS, pod(name)).await.expect(201);
    }
    let before = version(&api.get(PODS).await.json());
    change_pods(&api).await;
    let old = pairs(&[("a", ""), ("c", ""), ("d", ""), ("e", "")]);
    let new = pairs(&[("a", "new"), ("bb", ""), ("c", "new"), ("e", "new")]);
    let check = async |query: &str, expected: &[(String, String)]| {
        let list = api.get(&format!("{PODS}?{query}")).await.expect(200).json();
        assert_eq!(items(&list), expected, "{query}");
    };
    check(
        &format!("resourceVersion={before}&resourceVersionMatch=Exact"),
        &old,
    )
    .await;
    check(&format!("resourceVersion={before}&limit=3"), &old[..3]).await;
    check(&format!("resourceVersion={before}"), &new).await;
    check(
        &format!("resourceVersion={before}&resourceVersionMatch=NotOlderThan&limit=2"),
        &new[..2],
    )
    .await;
    check("resourceVersion=0&resourceVersionMatch=NotOlderThan", &new).await;
    // Of what a selector leaves out nobody counts the rest.
    let some = api
        .get(&format!("{PODS}?limit=1&labelSelector=x=new"))
        .await
        .json();
    assert!(some["metadata"]["continue"].is_string());
    assert_eq!(some["metadata"].get("remainingItemCount"), None);
    let last = api.get(&format!("{PODS}?limit=1&labelSelector=!x")).await.json();
    assert_eq!(items(&last), pairs(&[("bb", "")]));
    assert_eq!(last["metadata"].get("continue"), None, "no page is empty");
}

#[tokio::test]
async fn a_list_whose_snapshot_is_gone_may_go_on_without_it() {
    let api = Api::open().await;
    for name in ["a", "b", "c"] {
        api.post(PODS, pod(name)).await.expect(201);
    }
    let first = api.get(&format!("{PODS}?limit=1")).await.expect(200).json();
    change_node(&api, MANY_CHANGES);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let gone = api.get(&format!("{PODS}?limit=1&continue={token}")).await;
    let gone = gone.expect(410).json();
    assert_eq!(gone["reason"], "Expired");
    let token = gone["metadata"]["continue"].as_str().unwrap();
    api.delete(&format!("{PODS}/b")).await.expect(200);
    let rest = api
        .get(&format!("{PODS}?continue={token}"))
        .await
        .expect(200)
        .json();
    assert_eq!(items(&rest), pairs(&[("c", "")]));
    assert_ne!(version(&rest), version(&first));
    let exact = format!(
        "{PODS}?resourceVersion={}&resourceVersionMatch=Exact",
        version(&first)
    );
    let gone = api.get(&exact).await.expect(410).json();
    assert_eq!(gone["metadata"], json!({}));
    let watch = format!("{PODS}?watch=1&resourceVersion={}", version(&first));
    is_gone(&api, &watch).await;
}

#[tokio::test]
async fn a_refused_option_is_named() {
    let api = Api::open().await;
    let refused = api.get(&format!("{PODS}?watch=1&sendInitialEvents=true")).await;
    let refused = refused.expect(422).json();
    assert_eq!(refused["reason"], "Invalid");
    assert_eq!(refused["details"]["causes"][0]["field"], "resourceVersionMatch");
    api.get(&format!("{PODS}?resourceVersionMatch=Exact"))
        .await
        .expect(422);
}

#[tokio::test]
async fn a_watch_may_begin_without_what_is_there() {
    let api = Api::open().await;
    api.post(PODS, pod("before")).await.expect(201);
    let path = format!("{PODS}?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan");
    let mut watch = Frames::open(&api, &path, &[]).await;
    api.post(PODS, pod("after")).await.expect(201);
    assert_eq!(watch.next_text().await, "ADDED after");
}

#[tokio::test]
async fn what_ceases_to_match_ends_as_it_matched() {
    let api = Api::open().await;
    api.post(PODS, pod("web")).await.expect(201);
    let mut watch = Frames::open(&api, &format!("{PODS}?watch=1&labelSelector=app=web"), &[]).await;
    assert_eq!(watch.next_text().await, "ADDED web");
    let other = json!({"metadata": {"labels": {"app": "other"}}});
    let changed = api
        .patch(&format!("{PODS}/web"), "merge", other)
        .await
        .expect(200);
    let last = watch.next().await.unwrap();
    assert_eq!(last["type"], "DELETED");
    assert_eq!(last["object"]["metadata"]["labels"]["app"], "web");
    assert_eq!(version(&last["object"]), version(&changed.json()));
}

#[tokio::test]
async fn a_watch_that_ends_in_time_says_where_to_go_on() {
    let api = Api::open().await;
    let path = format!("{PODS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut watch = Frames::open(&api, &path, &[]).await;
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        version(&bookmark["object"]),
        api.state.store.revision().to_string()
    );
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_told() {
    let api = Api::open().await;
    change_node(&api, 1);
    let now = api.state.store.revision();
    let path = format!("/api/v1/nodes?watch=1&resourceVersion={now}");
    let mut slow = Frames::open(&api, &path, &[]).await;
    change_node(&api, MANY_CHANGES);
    let mut changes = 0;
    let end = loop {
        let frame = slow.next().await.expect("an end that is told");
        match frame["type"].as_str().unwrap() {
            "MODIFIED" => changes += 1,
            _ => break frame,
        }
    };
    assert_eq!(
        (&end["type"], &end["object"]["code"]),
        (&"ERROR".into(), &410.into())
    );
    assert!((1..MANY_CHANGES).contains(&changes), "{changes}");
    assert_eq!(slow.next().await, None);
}

#[tokio::test]
async fn a_patch_says_which_object_and_version_it_means() {
    let api = Api::open().await;
    let created = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    let (uid, old) = (created["metadata"]["uid"].clone(), version(&created));
    let changed = api
        .patch(WEB, "merge", json!({"spec": {"replicas": 2}}))
        .await
        .expect(200);
    let new = version(&changed.json());
    let metadata = |metadata: Value| json!({"metadata": metadata, "spec": {"replicas": 2}});
    let path = "/metadata/resourceVersion";
    for (kind, patch, code) in [
        ("merge", metadata(json!({"resourceVersion": old})), 409),
        ("strategic-merge", metadata(json!({"resourceVersion": old})), 409),
        ("merge", metadata(json!({"uid": "another"})), 409),
        (
            "json",
            json!([{"op": "replace", "path": path, "value": old}]),
            409,
        ),
        (
            "json",
            json!([{"op": "add", "path": "/metadata/uid", "value": "another"}]),
            409,
        ),
        ("json", json!([{"op": "test", "path": path, "value": old}]), 422),
        ("json", json!([{"op": "test", "path": path, "value": new}]), 200),
        (
            "json",
            json!([{"op": "replace", "path": path, "value": new}]),
            200,
        ),
        (
            "merge",
            metadata(json!({"resourceVersion": new, "uid": uid})),
            200,
        ),
        ("merge", metadata(json!({"resourceVersion": "0"})), 200),
    ] {
        let answer = api.patch(WEB, kind, patch.clone()).await;
        assert_eq!(answer.code, code, "{kind} {patch}: {}", answer.text);
    }
    let apply = |version: &str| {
        let mut object = deployment("web", 2);
        object["metadata"]["resourceVersion"] = version.into();
        object
    };
    let path = format!("{WEB}?fieldManager=test&force=true");
    api.apply(&path, apply(&old)).await.expect(409);
    api.apply(&path, apply(&new)).await.expect(200);
}

#[tokio::test]
async fn a_deletion_says_which_object_and_version_it_means() {
    let api = Api::open().await;
    let mut held = pod("held");
    held["spec"]["nodeName"] = "n1".into();
    for (path, object) in [(DEPLOYMENTS, deployment("web", 1)), (PODS, held)] {
        let created = api.post(path, object).await.expect(201).json();
        let (uid, old) = (created["metadata"]["uid"].clone(), version(&created));
        let path = format!("{path}/{}", created["metadata"]["name"].as_str().unwrap());
        let label = json!({"metadata": {"labels": {"x": "1"}}});
        let new = version(&api.patch(&path, "merge", label).await.expect(200).json());
        for (preconditions, code) in [
            (json!({"resourceVersion": old}), 409),
            (json!({"uid": "another"}), 409),
            (json!({"uid": uid, "resourceVersion": old}), 409),
            (json!({"uid": uid, "resourceVersion": new}), 200),
        ] {
            let options = json!({"preconditions": preconditions}).to_string();
            let answer = api.call("DELETE", &path, &[], Body::from(options)).await;
            assert_eq!(answer.code, code, "{path} {preconditions}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn one_object_is_watched_by_name() {
    let api = Api::open().await;
    for name in ["a", "b"] {
        api.post(PODS, pod(name)).await.expect(201);
    }
    let label = json!({"metadata": {"labels": {"x": "1"}}});
    for path in [
        format!("{PODS}?watch=1&fieldSelector=metadata.name=b"),
        format!("{PODS}/b?watch=1"),
    ] {
        let mut watch = Frames::open(&api, &path, &[]).await;
        assert_eq!(watch.next_text().await, "ADDED b");
        for name in ["a", "b"] {
            let path = format!("{PODS}/{name}");
            api.patch(&path, "merge", label.clone()).await.expect(200);
            let none = json!({"metadata": {"labels": {"x": null}}});
            api.patch(&path, "merge", none).await.expect(200);
        }
        assert_eq!(watch.next_text().await, "MODIFIED b");
        assert_eq!(watch.next_text().await, "MODIFIED b");
    }
    let named = api
        .get(&format!("{PODS}?fieldSelector=metadata.name=b"))
        .await
        .json();
    assert_eq!(items(&named), pairs(&[("b", "")]));
}
