//! Objects through the Kubernetes paths.

use axum::body::Body;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Answer, Api, deployment, pod};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const NODE: &str = "/api/v1/nodes/n1";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn an_object_is_created_read_and_deleted() {
    let api = Api::open().await;
    let created = api
        .post(DEPLOYMENTS, deployment("web", 2))
        .await
        .expect(201)
        .json();
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(!created["metadata"]["uid"].as_str().unwrap().is_empty());
    let read = api.get(WEB).await.expect(200).json();
    assert_eq!(read, created);
    // Defaults are shown.
    assert_eq!(read["spec"]["strategy"]["type"], "RollingUpdate");
    let list = api.get(DEPLOYMENTS).await.expect(200).json();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&"DeploymentList".into(), &"web".into())
    );
    let again = api
        .post(DEPLOYMENTS, deployment("web", 2))
        .await
        .expect(409)
        .json();
    assert_eq!(again["reason"], "AlreadyExists");
    let deleted = api.delete(WEB).await.expect(200).json();
    assert_eq!(
        (&deleted["status"], &deleted["details"]["uid"]),
        (&"Success".into(), &created["metadata"]["uid"])
    );
    let missing = api.get(WEB).await.expect(404).json();
    assert_eq!(missing["message"], "deployments.apps \"web\" not found");
}

#[tokio::test]
async fn names_are_generated() {
    let api = Api::open().await;
    let mut object = pod("web");
    object["metadata"] = json!({"generateName": "web-"});
    let created = api.post(PODS, object.clone()).await.expect(201).json();
    let name = created["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    object["metadata"] = json!({});
    let refused = api.post(PODS, object).await.expect(422).json();
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.name");
}

#[tokio::test]
async fn an_invalid_object_is_refused_with_every_field() {
    let api = Api::open().await;
    let mut object = deployment("web", -1);
    object["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 0}]);
    let refused = api.post(DEPLOYMENTS, object).await.expect(422).json();
    let fields: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert!(fields.contains(&"spec.replicas"), "{fields:?}");
    assert!(
        fields.iter().any(|field| field.contains("containerPort")),
        "{fields:?}"
    );
    api.get(WEB).await.expect(404);
}

#[tokio::test]
async fn unknown_fields_are_warned_about_or_refused_as_asked() {
    let api = Api::open().await;
    let mut object = deployment("web", 1);
    object["spec"]["colour"] = "red".into();
    let created = api.post(DEPLOYMENTS, object.clone()).await.expect(201);
    assert!(
        created
            .warnings()
            .iter()
            .any(|warning| warning.contains("colour")),
        "{:?}",
        created.warnings()
    );
    assert_eq!(api.get(WEB).await.json()["spec"]["colour"], "red");
    object["metadata"]["name"] = "strict".into();
    let refused = api
        .post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), object.clone())
        .await
        .expect(400);
    assert!(refused.text.contains("colour"), "{}", refused.text);
    let silent = api
        .post(&format!("{DEPLOYMENTS}?fieldValidation=Ignore"), object)
        .await
        .expect(201);
    assert!(!silent.warnings().iter().any(|warning| warning.contains("colour")));
}

#[tokio::test]
async fn a_change_is_not_warned_about_for_what_it_leaves() {
    let api = Api::open().await;
    let mut object = deployment("web", 1);
    object["spec"]["template"]["spec"]["priorityClassName"] = "high".into();
    let check = |answer: Answer, expected: usize| {
        let answer = answer.expect(200);
        assert_eq!(answer.warnings().len(), expected, "{:?}", answer.warnings());
    };
    let created = api.post(DEPLOYMENTS, object).await.expect(201);
    assert_eq!(created.warnings().len(), 1, "{:?}", created.warnings());
    let annotate = json!({"metadata": {"annotations": {"a": "b"}}});
    check(api.patch(WEB, "merge", annotate).await, 0);
    let shown = api.get(WEB).await.json();
    check(api.put(WEB, shown).await, 0);
    let lower = json!({"spec": {"template": {"spec": {"priorityClassName": "low"}}}});
    check(api.patch(WEB, "strategic-merge", lower).await, 1);
}

#[tokio::test]
async fn what_does_not_fit_the_path_is_refused() {
    let api = Api::open().await;
    let check = async |path: &str, object: Value, code: u16| {
        api.post(path, object).await.expect(code);
    };
    check(
        "/apis/apps/v1/namespaces/none/deployments",
        deployment("web", 1),
        404,
    )
    .await;
    check(DEPLOYMENTS, pod("web"), 400).await;
    check("/apis/apps/v1/deployments", deployment("web", 1), 405).await;
    let mut elsewhere = deployment("web", 1);
    elsewhere["metadata"]["namespace"] = "other".into();
    check(DEPLOYMENTS, elsewhere, 400).await;
    check(
        "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
        deployment("web", 1),
        404,
    )
    .await;
    api.call("POST", DEPLOYMENTS, &[("content-type", "text/csv")], "a,b")
        .await
        .expect(415);
    api.call("POST", DEPLOYMENTS, &[("content-type", "application/json")], "{")
        .await
        .expect(400);
    let large = "x".repeat(4 * 1024 * 1024);
    api.call(
        "POST",
        DEPLOYMENTS,
        &[("content-type", "application/json")],
        large,
    )
    .await
    .expect(413);
    api.call(
        "GET",
        WEB,
        &[("accept", "application/vnd.kubernetes.protobuf")],
        Body::empty(),
    )
    .await
    .expect(404);
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    api.call(
        "GET",
        WEB,
        &[("accept", "application/vnd.kubernetes.protobuf")],
        Body::empty(),
    )
    .await
    .expect(406);
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_goes() {
    let api = Api::open().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    api.post("/api/v1/namespaces", namespace).await.expect(201);
    let going = api.delete("/api/v1/namespaces/shop").await.expect(200).json();
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let refused = api
        .post("/api/v1/namespaces/shop/pods", pod("web"))
        .await
        .expect(403)
        .json();
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    api.delete("/api/v1/namespaces/default").await.expect(403);
}

#[tokio::test]
async fn an_update_of_an_old_version_is_a_conflict() {
    let api = Api::open().await;
    let old = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    let mut new = old.clone();
    new["spec"]["replicas"] = 3.into();
    let changed = api.put(WEB, new.clone()).await.expect(200).json();
    assert_eq!(
        (&changed["spec"]["replicas"], &changed["metadata"]["generation"]),
        (&3.into(), &2.into())
    );
    assert_eq!(
        api.put(WEB, new.clone()).await.expect(409).json()["reason"],
        "Conflict"
    );
    new["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    api.put(WEB, new).await.expect(200);
    let mut immutable = changed;
    immutable["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    immutable["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    immutable["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let refused = api.put(WEB, immutable).await.expect(422);
    assert!(refused.text.contains("spec.selector"), "{}", refused.text);
}

#[tokio::test]
async fn defaults_that_a_client_sends_back_are_not_stored() {
    let api = Api::open().await;
    let mut shown = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    shown["spec"]["replicas"] = 2.into();
    api.put(WEB, shown).await.expect(200);
    let stored = api
        .state
        .store
        .get(&ObjectKey::new(Kind::Deployment, "default", "web"))
        .unwrap()
        .object;
    assert_eq!(stored.i64_at("/spec/replicas"), Some(2));
    assert_eq!(stored.pointer("/spec/strategy"), None);
}

#[tokio::test]
async fn a_status_has_the_types_of_its_fields() {
    let api = Api::open().await;
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let merge = "merge";
    let wrong = json!({"status": {"replicas": "many"}});
    let refused = api
        .patch(&format!("{WEB}/status"), merge, wrong)
        .await
        .expect(422);
    assert_eq!(refused.json()["details"]["causes"][0]["field"], "status.replicas");
    let right = json!({"status": {"replicas": 2}});
    api.patch(&format!("{WEB}/status"), merge, right)
        .await
        .expect(200);
    api.patch(WEB, merge, json!({"spec": {"replicas": 2}}))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_applies_with_one_version_one_succeeds() {
    let api = std::sync::Arc::new(Api::open().await);
    let created = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    let applies = (0..20).map(|number| {
        let metadata = json!({
            "resourceVersion": created["metadata"]["resourceVersion"], "labels": {"winner": number.to_string()},
        });
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata});
        let (api, path) = (api.clone(), format!("{WEB}?fieldManager=m{number}&force=true"));
        tokio::spawn(async move { api.apply(&path, object).await.code.as_u16() })
    });
    let answers = futures::future::join_all(applies).await;
    let codes = answers.into_iter().map(Result::unwrap);
    assert_eq!(codes.filter(|code| *code == 200).count(), 1);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let api = Api::open().await;
    let mut object = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    object["spec"]["replicas"] = 9.into();
    object["status"] = json!({"replicas": 4});
    let status = api
        .put(&format!("{WEB}/status"), object.clone())
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&1.into(), &4.into())
    );
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    object["status"] = json!({"replicas": 7});
    let main = api.put(WEB, object).await.expect(200).json();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"]),
        (&9.into(), &4.into())
    );
}

#[tokio::test]
async fn three_kinds_of_patches_are_applied() {
    let api = Api::open().await;
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let merged = api
        .patch(
            WEB,
            "merge",
            json!({"metadata": {"labels": {"a": "1", "app": null}}}),
        )
        .await
        .expect(200);
    assert_eq!(merged.json()["metadata"]["labels"], json!({"a": "1"}));
    let json_patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]);
    assert_eq!(
        api.patch(WEB, "json", json_patch).await.expect(200).json()["spec"]["replicas"],
        5
    );
    let containers = json!([{"name": "web", "image": "web:2"}, {"name": "side", "image": "side:1"}]);
    let strategic = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let changed = api
        .patch(WEB, "strategic-merge", strategic)
        .await
        .expect(200)
        .json();
    let containers = changed["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    let mut images: Vec<&str> = containers
        .iter()
        .map(|container| container["image"].as_str().unwrap())
        .collect();
    images.sort_unstable();
    assert_eq!(images, ["side:1", "web:2"]);
    api.patch(WEB, "csv", json!({})).await.expect(415);
    api.patch(
        WEB,
        "json",
        json!([{"op": "test", "path": "/spec/replicas", "value": 6}]),
    )
    .await
    .expect(422);
    api.patch(WEB, "merge", json!({"metadata": {"name": "other"}}))
        .await
        .expect(400);
    api.patch(WEB, "merge", json!({"spec": {"replicas": -1}}))
        .await
        .expect(422);
    api.patch(&format!("{DEPLOYMENTS}/none"), "merge", json!({}))
        .await
        .expect(404);
}

#[tokio::test]
async fn server_side_apply_keeps_what_others_own() {
    let api = Api::open().await;
    let path = format!("{WEB}?fieldManager=alice");
    api.apply(WEB, deployment("web", 1)).await.expect(422);
    api.apply(&path, deployment("web", 1)).await.expect(201);
    api.apply(&path, deployment("web", 1)).await.expect(200);
    let bob = format!("{WEB}?fieldManager=bob");
    let replicas = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3}});
    let refused = api.apply(&bob, replicas.clone()).await.expect(409).json();
    let cause = &refused["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["field"]),
        (&"FieldManagerConflict".into(), &".spec.replicas".into())
    );
    assert!(cause["message"].as_str().unwrap().contains("alice"));
    api.apply(&format!("{bob}&force=true"), replicas)
        .await
        .expect(200);
    // What a manager no longer names goes, if nobody else owns it.
    let mut fewer = deployment("web", 3);
    fewer["metadata"]["labels"] = json!({"tier": "front"});
    let applied = api.apply(&path, fewer).await.expect(200).json();
    assert_eq!(applied["metadata"]["labels"], json!({"tier": "front"}));
    assert_eq!(applied["spec"]["replicas"], 3);
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let api = Api::open().await;
    api.post(&format!("{DEPLOYMENTS}?dryRun=All"), deployment("web", 1))
        .await
        .expect(201);
    api.apply(&format!("{WEB}?dryRun=All&fieldManager=a"), deployment("web", 1))
        .await
        .expect(201);
    api.get(WEB).await.expect(404);
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let patched = api
        .patch(
            &format!("{WEB}?dryRun=All"),
            "merge",
            json!({"spec": {"replicas": 4}}),
        )
        .await
        .expect(200);
    assert_eq!(patched.json()["spec"]["replicas"], 4);
    api.delete(&format!("{WEB}?dryRun=All")).await.expect(200);
    assert_eq!(api.get(WEB).await.expect(200).json()["spec"]["replicas"], 1);
    api.post(&format!("{DEPLOYMENTS}?dryRun=Some"), deployment("b", 1))
        .await
        .expect(400);
}

#[tokio::test]
async fn pods_that_run_get_time_to_end() {
    let api = Api::open().await;
    let mut placed = pod("placed");
    placed["spec"]["nodeName"] = "n1".into();
    api.post(PODS, placed).await.expect(201);
    api.post(PODS, pod("unplaced")).await.expect(201);
    api.delete(&format!("{PODS}/unplaced")).await.expect(200);
    api.get(&format!("{PODS}/unplaced")).await.expect(404);
    api.delete(&format!("{PODS}/placed?gracePeriodSeconds=20"))
        .await
        .expect(200);
    let going = api.get(&format!("{PODS}/placed")).await.expect(200).json();
    assert_eq!(going["metadata"]["deletionTimestamp"], "2027-01-15T08:00:20Z");
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 20);
    api.delete(&format!("{PODS}/placed?gracePeriodSeconds=0"))
        .await
        .expect(200);
    api.get(&format!("{PODS}/placed")).await.expect(404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let api = Api::open().await;
    let mut object = deployment("web", 1);
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(DEPLOYMENTS, object).await.expect(201);
    api.delete(WEB).await.expect(200);
    let held = api.get(WEB).await.expect(200).json();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    // Nothing new is waited for.
    let more =
        json!({"metadata": {"finalizers": ["example.com/hold", "b.example.com/x", "a.example.com/x"]}});
    let refused = api.patch(WEB, "merge", more).await.expect(422).json();
    assert_eq!(
        refused["message"],
        "Deployment.apps \"web\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is \
         being deleted, found new finalizers []string{\"a.example.com/x\", \"b.example.com/x\"}"
    );
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    api.patch(WEB, "merge", labels).await.expect(200);
    api.patch(WEB, "merge", json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    api.get(WEB).await.expect(404);
}

#[tokio::test]
async fn what_an_object_owns_goes_first_or_stays_when_a_deletion_asks() {
    let api = Api::open().await;
    for (policy, finalizer) in [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")] {
        let name = finalizer.to_lowercase();
        api.post(DEPLOYMENTS, deployment(&name, 1)).await.expect(201);
        let options = json!({"propagationPolicy": policy}).to_string();
        let path = format!("{DEPLOYMENTS}/{name}");
        let answer = api.call("DELETE", &path, &[], options).await.expect(200).json();
        assert_eq!(answer["metadata"]["finalizers"], json!([finalizer]));
        assert!(answer["metadata"]["deletionTimestamp"].is_string());
        // The garbage collector, or who takes the finalizer off, takes it away.
        api.patch(&path, "merge", json!({"metadata": {"finalizers": null}}))
            .await
            .expect(200);
        api.get(&path).await.expect(404);
    }
}

#[tokio::test]
async fn deletions_have_preconditions_and_selectors() {
    let api = Api::open().await;
    for name in ["a", "b", "c"] {
        api.post(DEPLOYMENTS, deployment(name, 1)).await.expect(201);
    }
    let options = json!({"preconditions": {"uid": "another"}}).to_string();
    api.call("DELETE", &format!("{DEPLOYMENTS}/a"), &[], options)
        .await
        .expect(409);
    api.delete(&format!("{DEPLOYMENTS}/a?propagationPolicy=Sideways"))
        .await
        .expect(400);
    api.delete(&format!("{DEPLOYMENTS}?labelSelector=app%20in%20(a,b)"))
        .await
        .expect(200);
    let left = api.get(DEPLOYMENTS).await.json();
    let names: Vec<&Value> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["metadata"]["name"])
        .collect();
    assert_eq!(names, ["c"]);
}

#[tokio::test]
async fn scale_is_replicas_alone() {
    let api = Api::open().await;
    api.post(DEPLOYMENTS, deployment("web", 2)).await.expect(201);
    let path = format!("{WEB}/scale");
    let mut scale = api.get(&path).await.expect(200).json();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&"Scale".into(), &2.into())
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = 4.into();
    api.put(&path, scale.clone()).await.expect(200);
    api.put(&path, scale).await.expect(409);
    let patched = api
        .patch(&path, "merge", json!({"spec": {"replicas": 7}}))
        .await
        .expect(200)
        .json();
    assert_eq!(patched["spec"]["replicas"], 7);
    assert_eq!(api.get(WEB).await.json()["spec"]["replicas"], 7);
    api.patch(&path, "merge", json!({"spec": {"replicas": -7}}))
        .await
        .expect(422);
}

#[tokio::test]
async fn of_scales_with_one_version_one_succeeds() {
    let api = Api::open().await;
    api.post(DEPLOYMENTS, deployment("web", 2)).await.expect(201);
    let path = format!("{WEB}/scale");
    let scale = api.get(&path).await.expect(200).json();
    let requests = (3..11).map(|replicas| {
        let mut scale = scale.clone();
        scale["spec"]["replicas"] = replicas.into();
        api.put(&path, scale)
    });
    let answers = futures::future::join_all(requests).await;
    let mut codes: Vec<u16> = answers.iter().map(|answer| answer.code.as_u16()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [200, 409, 409, 409, 409, 409, 409, 409]);
}

#[tokio::test]
async fn lists_come_in_pages_and_by_selectors() {
    let api = Api::open().await;
    for name in ["a", "b", "c"] {
        api.post(PODS, pod(name)).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = api.get("/api/v1/pods?limit=2").await.expect(200).json();
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a".into(), "b".into()], &1.into())
    );
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = api
        .get(&format!("/api/v1/pods?limit=2&continue={token}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (names(&second), second["metadata"].get("continue")),
        (vec!["c".into()], None)
    );
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    api.get("/api/v1/pods?continue=nonsense").await.expect(400);
    let selected = api
        .get("/api/v1/pods?labelSelector=app!=a")
        .await
        .expect(200)
        .json();
    assert_eq!(names(&selected), ["b", "c"]);
    let selected = api
        .get("/api/v1/pods?fieldSelector=metadata.name=b")
        .await
        .expect(200)
        .json();
    assert_eq!(names(&selected), ["b"]);
    api.get("/api/v1/pods?fieldSelector=spec.colour=b")
        .await
        .expect(400);
    api.get("/api/v1/pods?resourceVersion=1&resourceVersionMatch=Exact")
        .await
        .expect(410);
}

#[tokio::test]
async fn objects_are_shown_as_tables_metadata_and_yaml() {
    let api = Api::open().await;
    api.post(PODS, pod("web")).await.expect(201);
    let table = [(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )];
    let answer = api
        .call("GET", PODS, &table, Body::empty())
        .await
        .expect(200)
        .json();
    assert_eq!(answer["kind"], "Table");
    assert_eq!(answer["columnDefinitions"][1]["name"], "Ready");
    assert_eq!(
        answer["rows"][0]["cells"].as_array().unwrap()[..3],
        ["web", "0/1", "Pending"].map(Value::from)
    );
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata = [(
        "accept",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    )];
    let answer = api
        .call("GET", PODS, &metadata, Body::empty())
        .await
        .expect(200)
        .json();
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert_eq!(answer["items"][0].get("spec"), None);
    let yaml = api
        .call(
            "GET",
            &format!("{PODS}/web"),
            &[("accept", "application/yaml")],
            Body::empty(),
        )
        .await
        .expect(200);
    assert!(
        yaml.text.contains("\nkind: Pod\n") || yaml.text.starts_with("kind: Pod\n"),
        "{}",
        yaml.text
    );
    let other = yaml.text.replace("name: web", "name: copy");
    let other: String = other
        .lines()
        .filter(|line| !line.trim_start().starts_with("resourceVersion"))
        .map(|line| format!("{line}\n"))
        .collect();
    api.call("POST", PODS, &[("content-type", "application/yaml")], other)
        .await
        .expect(201);
}

#[tokio::test]
async fn a_computed_object_keeps_what_users_say_of_it() {
    let api = Api::open().await;
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let mut node = Object::new(&key);
    node.set(&["status", "nodeInfo", "kubeletVersion"], "v1");
    api.state.store.project(&key, Some(node));
    api.patch(NODE, "strategic-merge", json!({"spec": {"unschedulable": true}}))
        .await
        .expect(200);
    api.patch(NODE, "merge", json!({"metadata": {"labels": {"disk": "ssd"}}}))
        .await
        .expect(200);
    let shown = api.get(NODE).await.expect(200).json();
    assert_eq!(shown["spec"]["unschedulable"], true);
    assert_eq!(shown["metadata"]["labels"]["disk"], "ssd");
    assert_eq!(shown["status"]["nodeInfo"]["kubeletVersion"], "v1");
    api.state.store.project(&key, None);
    let document = api.get(NODE).await.expect(200).json();
    assert_eq!(document.get("status"), None, "what is computed was not stored");
}
