//! `metadata.managedFields` over HTTP and with a real kubectl.

use axum::body::Body;
use http::StatusCode;
use http_body_util::BodyExt;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Answer, Api, deployment};
use super::kubectl::{Kubectl, Session, contains};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MAP: &str = "/api/v1/namespaces/default/configmaps/a";

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn entry(operation: &str, manager: &str, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": fields}})
}

fn fields(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

/// Operation and manager of each entry.
fn managers(object: &Value) -> Vec<String> {
    let entries = fields(object).as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| text(&entry["operation"]) + " " + &text(&entry["manager"]))
        .collect()
}

#[tokio::test]
async fn every_answer_tells_who_owns_what() {
    let api = Api::open().await;
    let made = entry("Update", "maker", json!({"f:a": {}}));
    let made = json!([made]);
    let created = api
        .post(&format!("{MAPS}?fieldManager=maker"), map(json!({"a": "1"})))
        .await;
    assert_eq!(*fields(&created.expect(201).json()), made);
    assert_eq!(*fields(&api.get(MAP).await.expect(200).json()), made);
    let list = api.get(MAPS).await.expect(200).json();
    assert_eq!(*fields(&list["items"][0]), made);
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let metadata = api.call("GET", MAP, &[("accept", metadata)], Body::empty()).await;
    assert_eq!(*fields(&metadata.expect(200).json()), made);
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let table = api.call("GET", MAPS, &[("accept", table)], Body::empty()).await;
    let table = table.expect(200).json();
    assert_eq!(*fields(&table["rows"][0]["object"]), Value::Null);

    let watch = http::Request::get(format!("{MAPS}?watch=true")).body(Body::empty());
    let mut watch = api.send(watch.unwrap()).await.into_body();
    let first = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    let first: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(*fields(&first["object"]), made);

    let patch = json!({"data": {"b": "2"}});
    let patched = api
        .patch(&format!("{MAP}?fieldManager=other"), "merge", patch)
        .await;
    assert_eq!(
        *fields(&patched.expect(200).json()),
        json!([made[0], entry("Update", "other", json!({"f:b": {}}))])
    );
    let applied = api
        .apply(
            &format!("{MAP}?fieldManager=git&dryRun=All"),
            map(json!({"b": "2"})),
        )
        .await;
    let expected = ["Apply git", "Update maker", "Update other"];
    assert_eq!(managers(&applied.expect(200).json()), expected);
    let deleted = api.delete(MAPS).await.expect(200).json();
    assert_eq!(managers(&deleted["items"][0]), ["Update maker", "Update other"]);
}

#[tokio::test]
async fn what_is_shown_of_owners_keeps_nobody_from_writing() {
    let api = Api::open().await;
    for manager in ["a%1Fb", "x/status", "x/scale", &"x".repeat(129)] {
        api.apply(&format!("{MAP}?fieldManager={manager}"), map(json!({"a": "1"})))
            .await
            .expect(400);
    }
    for number in 0..70 {
        let applied = map(json!({format!("k{number}"): "1"}));
        api.apply(&format!("{MAP}?fieldManager=m{number}"), applied).await;
    }
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let labelled = api.patch(MAP, "merge", label).await.expect(200).json();
    assert_eq!(fields(&labelled).as_array().unwrap().len(), 71);
    let mut object = api.get(MAP).await.expect(200).json();
    object["data"]["more"] = "1".into();
    api.put(MAP, object).await.expect(200);
}

#[tokio::test]
async fn what_a_client_says_of_owners_counts() {
    let api = Api::open().await;
    let apply = async |data: Value| api.apply(&format!("{MAP}?fieldManager=git"), map(data)).await;
    let applied = apply(json!({"a": "1", "b": "2"})).await.expect(201).json();
    // Sent back, and left out, it says nothing new.
    let same = api.put(MAP, applied.clone()).await.expect(200).json();
    assert_eq!(same, applied);
    let mut without = applied.clone();
    without["metadata"] = json!({"name": "a"});
    assert_eq!(api.put(MAP, without).await.expect(200).json(), applied);
    let removed = json!([{"op": "remove", "path": "/metadata/managedFields"}]);
    assert_eq!(api.patch(MAP, "json", removed).await.expect(200).json(), applied);

    // A JSON patch as client-go's csaupgrade sends it.
    let said = json!([
        entry("Apply", "other", json!({"f:a": {}})),
        entry("Update", "x", json!({"f:b": {}}))
    ]);
    let patch = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": said},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": applied["metadata"]["resourceVersion"]},
    ]);
    let moved = api.patch(MAP, "json", patch.clone()).await.expect(200).json();
    assert_eq!(*fields(&moved), said);
    let dry = api
        .patch(&format!("{MAP}?dryRun=All"), "json", patch.clone())
        .await;
    assert_eq!(dry.code, StatusCode::CONFLICT);
    assert_eq!(
        api.patch(MAP, "json", patch).await.code,
        StatusCode::CONFLICT,
        "a version that is not the newest"
    );

    for reset in [json!([]), json!([{}])] {
        apply(json!({"a": "1"})).await.expect(200);
        let patch = json!({"metadata": {"managedFields": reset}});
        let reset = api.patch(MAP, "merge", patch).await.expect(200).json();
        assert_eq!(*fields(&reset), Value::Null);
        assert_eq!(reset["data"], json!({"a": "1", "b": "2"}));
    }
    let refused = apply(json!({"a": "2"})).await.expect(409).json();
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
}

#[tokio::test]
async fn what_is_no_list_of_owners_is_refused_or_changes_nothing() {
    let api = Api::open().await;
    let made = api.post(MAPS, map(json!({"a": "1"}))).await.expect(201).json();
    let patched = async |said: Value| -> Answer {
        let patch = json!({"metadata": {"managedFields": said}});
        api.patch(MAP, "merge", patch).await
    };
    let with = |field: &str, value: Value| {
        let mut entry = fields(&made)[0].clone();
        entry[field] = value;
        json!([entry])
    };
    for (said, field) in [
        (json!("x"), "metadata.managedFields"),
        (json!({"a": 1}), "metadata.managedFields"),
        (json!(["x"]), "metadata.managedFields[0]"),
        (with("manager", json!(1)), "metadata.managedFields[0].manager"),
        (
            with("manager", json!("x".repeat(129))),
            "metadata.managedFields[0].manager",
        ),
        (
            with("manager", json!("a\u{1f}b")),
            "metadata.managedFields[0].manager",
        ),
        (
            Value::from(vec![with("time", Value::Null)[0].clone(); 65]),
            "metadata.managedFields",
        ),
    ] {
        let refused = patched(said.clone()).await.expect(422).json();
        assert_eq!(refused["details"]["causes"][0]["field"], field, "{said}");
    }
    for said in [
        Value::Null,
        with("operation", json!("Own")),
        with("fieldsType", json!("FieldsV2")),
        with("fieldsV1", json!({"a": 1})),
        with("fieldsV1", json!({"f:a": {"k:": {}}})),
    ] {
        assert_eq!(patched(said).await.expect(200).json(), made);
    }
    let mut applied = map(json!({"a": "1"}));
    applied["metadata"]["managedFields"] = json!([]);
    let refused = api.apply(&format!("{MAP}?fieldManager=git"), applied).await;
    assert_eq!(
        refused.expect(400).json()["message"],
        "metadata.managedFields must be nil"
    );
}

#[tokio::test]
async fn defaults_and_what_is_computed_belong_to_nobody() {
    let api = Api::open().await;
    let made = api
        .post(DEPLOYMENTS, deployment("web", 2))
        .await
        .expect(201)
        .json();
    let spec = &fields(&made)[0]["fieldsV1"]["f:spec"];
    assert_eq!(spec["f:replicas"], json!({}));
    assert_eq!(spec["f:strategy"], Value::Null);
    let read = api.get(WEB).await.expect(200).json();
    assert_eq!(read["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(fields(&read), fields(&made));
}

#[tokio::test]
async fn what_is_written_through_a_subresource_is_owned_apart() {
    let api = Api::open().await;
    let by_hand = |path: &str| format!("{path}?fieldManager=hand");
    api.post(&by_hand(DEPLOYMENTS), deployment("web", 2))
        .await
        .expect(201);
    let scale = json!({"spec": {"replicas": 3}});
    let scaled = api.patch(&by_hand(&format!("{WEB}/scale")), "merge", scale).await;
    scaled.expect(200);
    let status = json!({"status": {"collisionCount": 1}});
    let patched = api
        .patch(&by_hand(&format!("{WEB}/status")), "merge", status)
        .await;
    patched.expect(200);
    let mut web = api.get(WEB).await.expect(200).json();
    web["status"]["collisionCount"] = 2.into();
    let put = api.put(&by_hand(&format!("{WEB}/status")), web).await;
    let web = put.expect(200).json();
    let parts: Vec<&Value> = fields(&web)
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| &entry["subresource"])
        .collect();
    assert_eq!(parts, [&Value::Null, &json!("scale"), &json!("status")]);
    assert_eq!(managers(&web), ["Update hand"; 3]);
    assert_eq!(fields(&web)[0]["fieldsV1"]["f:spec"]["f:replicas"], Value::Null);
    assert_eq!(fields(&web)[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(
        fields(&web)[2]["fieldsV1"],
        json!({"f:status": {"f:collisionCount": {}}})
    );

    let refused = api
        .apply(&format!("{WEB}?fieldManager=git"), deployment("web", 5))
        .await;
    let message = refused.expect(409).json()["message"].to_string();
    assert!(
        message.contains(
            "conflict with \\\"hand\\\" with subresource \\\"scale\\\" using apps/v1: .spec.replicas"
        ),
        "{message}"
    );
    let manifests = "/api/v1/manifests?fieldManager=x/scale";
    api.post(manifests, deployment("web", 5)).await.expect(400);
}

#[tokio::test]
async fn a_scale_can_be_applied() {
    let api = Api::open().await;
    let scale = format!("{WEB}/scale");
    let of = |replicas: Value| {
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"replicas": replicas}})
    };
    let apply = async |query: &str, replicas: Value| -> Answer {
        api.apply(&format!("{scale}?fieldManager=scaler{query}"), of(replicas))
            .await
    };
    apply("", 3.into()).await.expect(404);
    let path = format!("{WEB}?fieldManager=git");
    api.apply(&path, deployment("web", 2)).await.expect(201);
    let refused = apply("", 3.into()).await.expect(409).json();
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"git\": .spec.replicas"
    );
    let dry = apply("&force=true&dryRun=All", 3.into()).await.expect(200).json();
    assert_eq!(dry["spec"]["replicas"], 3);
    let applied = apply("&force=true", 3.into()).await.expect(200).json();
    assert_eq!(
        (&applied["kind"], &applied["spec"]["replicas"]),
        (&json!("Scale"), &json!(3))
    );
    let web = api.get(WEB).await.expect(200).json();
    assert_eq!(web["spec"]["replicas"], 3);
    assert_eq!(
        applied["metadata"]["resourceVersion"],
        web["metadata"]["resourceVersion"]
    );
    assert_eq!(managers(&web), ["Apply git", "Apply scaler"]);
    assert_eq!(fields(&web)[0]["fieldsV1"]["f:spec"]["f:replicas"], Value::Null);
    let mut owned = entry("Apply", "scaler", Value::Null);
    owned["apiVersion"] = "apps/v1".into();
    owned["fieldsV1"] = json!({"f:spec": {"f:replicas": {}}});
    owned["subresource"] = "scale".into();
    assert_eq!(fields(&web)[1], owned);
    let refused = api.apply(&path, deployment("web", 2)).await.expect(409).json();
    let expected =
        "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\": .spec.replicas";
    assert_eq!(refused["message"], expected);

    // Who scales by an update is met in the version of scales.
    let patch = json!({"spec": {"replicas": 4}});
    let hand = format!("{scale}?fieldManager=hand");
    api.patch(&hand, "merge", patch).await.expect(200);
    let refused = apply("", 3.into()).await.expect(409).json();
    let expected = "Apply failed with 1 conflict: conflict with \"hand\" with subresource \"scale\" using autoscaling/v1: .spec.replicas";
    assert_eq!(refused["message"], expected);
    assert_eq!(
        apply("", 4.into()).await.expect(200).json()["spec"]["replicas"],
        4
    );

    apply("", (-1).into()).await.expect(422);
    let mut other = of(4.into());
    other["kind"] = "Deployment".into();
    api.apply(&format!("{scale}?fieldManager=x"), other)
        .await
        .expect(400);
    let mut other = of(4.into());
    other["metadata"]["name"] = "other".into();
    api.apply(&format!("{scale}?fieldManager=x"), other.clone())
        .await
        .expect(400);
    api.put(&scale, other).await.expect(400);
    let mut other = of(4.into());
    other["metadata"]["managedFields"] = json!([]);
    api.apply(&format!("{scale}?fieldManager=x"), other)
        .await
        .expect(400);
    let mut other = of(4.into());
    other["metadata"]["uid"] = "another".into();
    api.apply(&format!("{scale}?fieldManager=x"), other)
        .await
        .expect(409);
    api.apply(&scale, of(4.into())).await.expect(422);
}

#[tokio::test]
async fn what_is_shown_of_owners_does_not_count_as_the_object() {
    let api = Api::open().await;
    let names = (0..1000).map(|number| format!("{}{number}", "n".repeat(240)));
    let data: Value = names.map(|name| (name, Value::from("1"))).collect();
    for manager in ["a", "b", "c", "d", "e"] {
        api.apply(&format!("{MAP}?fieldManager={manager}"), map(data.clone()))
            .await;
    }
    let mut shown = api.get(MAP).await.expect(200).json();
    assert!(fields(&shown).to_string().len() > 1 << 20);
    shown["data"]["more"] = "1".into();
    let put = api.put(MAP, shown.clone()).await.expect(200).json();
    assert_eq!(put["data"]["more"], "1");
    shown["data"]["more"] = "2".into();
    shown["metadata"]["resourceVersion"] = Value::Null;
    let yaml = serde_yaml::to_string(&shown).unwrap();
    let headers = [("content-type", "application/yaml")];
    api.call("PUT", MAP, &headers, yaml).await.expect(200);
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": fields(&shown)}]);
    api.patch(MAP, "json", patch).await.expect(200);

    shown["data"]["more"] = "x".repeat(1 << 20).into();
    let refused = api.put(MAP, shown.clone()).await.expect(413).json();
    assert_eq!(refused["message"], "Request entity too large: limit is 1048576");
    let yaml = serde_yaml::to_string(&shown).unwrap();
    api.call("PUT", MAP, &headers, yaml).await.expect(413);
}

#[tokio::test]
async fn a_dry_run_shows_whose_the_fields_would_be() {
    let api = Api::open().await;
    let path = format!("{DEPLOYMENTS}?fieldManager=maker&dryRun=All");
    let made = api.post(&path, deployment("web", 2)).await.expect(201).json();
    assert_eq!(managers(&made), ["Update maker"]);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["resourceVersion"], Value::Null);
    api.get(WEB).await.expect(404);
    let path = format!("{DEPLOYMENTS}?fieldManager=maker");
    let again = api.post(&path, deployment("web", 2)).await.expect(201).json();
    assert_eq!(fields(&made), fields(&again));
    api.post(&format!("{DEPLOYMENTS}?dryRun=All"), deployment("web", 2))
        .await
        .expect(409);

    // A status as a controller computes it.
    let key = ObjectKey::new(Kind::Deployment, "default", "web");
    let status = json!({"status": {"replicas": 2}});
    api.state.store.project(&key, Object::from_value(status));
    let before = api.get(WEB).await.expect(200).json();
    let patch = json!({"spec": {"replicas": 3}});
    let path = format!("{WEB}?fieldManager=hand&dryRun=All");
    let patched = api.patch(&path, "merge", patch.clone()).await.expect(200).json();
    let mut changed = before.clone();
    changed["spec"]["replicas"] = 3.into();
    let put = api.put(&path, changed).await.expect(200).json();
    let mut applied = deployment("web", 3);
    applied["metadata"]["labels"] = json!({"by": "git"});
    let path = format!("{WEB}?fieldManager=git&dryRun=All&force=true");
    let applied = api.apply(&path, applied).await.expect(200).json();
    for (shown, expected) in [
        (&patched, ["Update hand", "Update maker"]),
        (&put, ["Update hand", "Update maker"]),
        (&applied, ["Apply git", "Update maker"]),
    ] {
        assert_eq!(shown["spec"]["replicas"], 3);
        assert_eq!(shown["status"]["replicas"], 2);
        assert_eq!(shown["metadata"]["generation"], 2);
        assert_eq!(managers(shown), expected);
        assert_eq!(
            shown["metadata"]["resourceVersion"],
            before["metadata"]["resourceVersion"]
        );
    }
    assert_eq!(api.get(WEB).await.expect(200).json(), before);
    let hand = api
        .patch(&format!("{WEB}?fieldManager=hand"), "merge", patch)
        .await;
    assert_eq!(fields(&hand.expect(200).json()), fields(&patched));
}

const SETTINGS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n";

async fn with_each(check: impl AsyncFn(&Kubectl)) {
    let Some(session) = Session::start().await else {
        return;
    };
    for kubectl in session.oldest_and_newest() {
        check(&kubectl).await;
        kubectl.ok("delete cm,deploy --all").await;
    }
}

async fn shown(kubectl: &Kubectl, object: &str) -> Value {
    let text = kubectl
        .ok(&format!("get {object} -o json --show-managed-fields"))
        .await;
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_over_to_server_side_apply_owns_what_the_client_side_owned() {
    with_each(async |kubectl| {
        let server = ["apply", "--server-side", "-f", "-"];
        let applied = kubectl
            .run(
                &["apply", "-f", "-"],
                &format!("{SETTINGS}data: {{a: '1', b: '1'}}\n"),
            )
            .await;
        assert_eq!(applied, "configmap/settings created\n");
        let before = shown(kubectl, "cm settings").await;
        assert_eq!(managers(&before), ["Update kubectl-client-side-apply"]);
        kubectl
            .ok("patch cm settings -p {\"data\":{\"by\":\"hand\"}}")
            .await;
        let (code, text, errors) = kubectl.ran("get cm settings -o yaml", "").await;
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        assert!(!text.contains("managedFields"), "{text}");

        let output = kubectl
            .output(&server, &format!("{SETTINGS}data: {{a: '2'}}\n"))
            .await;
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "",
            "no warning of a migration that failed"
        );
        assert_eq!(
            kubectl.ok("get cm settings -o jsonpath={.data}").await,
            r#"{"a":"2","by":"hand"}"#
        );
        let after = shown(kubectl, "cm settings").await;
        let expected = [
            "Apply kubectl",
            "Apply kubectl-last-applied",
            "Update kubectl-patch",
        ];
        assert_eq!(managers(&after), expected);
        assert_eq!(fields(&after)[0]["fieldsV1"], json!({"f:data": {"f:a": {}}}));
        let yaml = kubectl.ok("get cm settings -o yaml --show-managed-fields").await;
        contains(
            &yaml,
            &["fieldsV1:\n      f:data:\n        f:a: {}\n    manager: kubectl\n    operation: Apply\n"],
        );
        let last = |data: &str| {
            format!("{{\"apiVersion\":\"v1\",\"data\":{data},\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"settings\",\"namespace\":\"default\"}}}}\n")
        };
        let annotation = "get cm settings -o jsonpath={.metadata.annotations.kubectl\\.kubernetes\\.io/last-applied-configuration}";
        assert_eq!(kubectl.ok(annotation).await, last(r#"{"a":"2"}"#));
        // And again, without a second migration.
        kubectl
            .run(&server, &format!("{SETTINGS}data: {{c: '1'}}\n"))
            .await;
        assert_eq!(
            kubectl.ok("get cm settings -o jsonpath={.data}").await,
            r#"{"by":"hand","c":"1"}"#
        );
        // Who goes back goes on from there.
        assert_eq!(kubectl.ok(annotation).await, last(r#"{"c":"1"}"#));
        kubectl
            .run(&["apply", "-f", "-"], &format!("{SETTINGS}data: {{d: '1'}}\n"))
            .await;
        assert_eq!(
            kubectl.ok("get cm settings -o jsonpath={.data}").await,
            r#"{"by":"hand","d":"1"}"#
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_word_of_kubectl_is_a_manager() {
    with_each(async |kubectl| {
        kubectl.ok("create deploy web --image=web:1").await;
        kubectl.ok("label deploy web tier=front").await;
        kubectl.ok("annotate deploy web note=a").await;
        kubectl.ok("set image deploy/web web=web:2").await;
        kubectl.ok("rollout pause deploy/web").await;
        kubectl.ok("patch deploy web -p {\"spec\":{\"minReadySeconds\":1}}").await;
        let edited = kubectl
            .command(&["edit", "deploy", "web"])
            .env("KUBE_EDITOR", "sed -i s/revisionHistoryLimit:.*/revisionHistoryLimit:\\ 3/")
            .output()
            .await
            .unwrap();
        assert!(edited.status.success(), "{edited:?}");
        let web = shown(kubectl, "deploy web").await;
        assert_eq!(
            managers(&web),
            [
                "Update kubectl-annotate",
                "Update kubectl-create",
                "Update kubectl-edit",
                "Update kubectl-label",
                "Update kubectl-patch",
                "Update kubectl-rollout",
                "Update kubectl-set",
            ]
        );
        let of = |manager: &str| {
            let entries = fields(&web).as_array().unwrap();
            let entry = entries.iter().find(|entry| entry["manager"] == manager);
            entry.unwrap()["fieldsV1"].clone()
        };
        assert_eq!(of("kubectl-label"), json!({"f:metadata": {"f:labels": {"f:tier": {}}}}));
        assert_eq!(of("kubectl-edit"), json!({"f:spec": {"f:revisionHistoryLimit": {}}}));
        assert_eq!(
            of("kubectl-set"),
            json!({"f:spec": {"f:template": {"f:spec": {"f:containers":
                {"k:{\"name\":\"web\"}": {"f:image": {}}}}}}})
        );
        let applied = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: web, image: 'web:3'}]}}, minReadySeconds: 4}\n";
        let output = kubectl.output(&["apply", "--server-side", "-f", "-"], applied).await;
        contains(
            &String::from_utf8_lossy(&output.stderr),
            &["Apply failed with 2 conflicts: conflicts with \"kubectl-patch\" using apps/v1:\n- .spec.minReadySeconds\nconflicts with \"kubectl-set\" using apps/v1:\n- .spec.template.spec.containers[name=\"web\"].image\n"],
        );
    })
    .await;
}
