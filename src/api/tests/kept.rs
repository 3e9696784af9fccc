//! Kinds that are kept for who reads them: each is made, shown, listed, watched, changed and deleted.

use serde_json::{Value, json};

use super::fixture::Api;

/// An object of every such kind: where it goes, what it is, and an edit of it.
fn examples() -> Vec<(&'static str, Value, Value)> {
    let object = |api_version: &str, kind: &str, rest: Value| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
        for (field, value) in rest.as_object().unwrap() {
            object[field] = value.clone();
        }
        object
    };
    vec![
        (
            "/api/v1/namespaces/default/configmaps",
            object("v1", "ConfigMap", json!({"data": {"a": "b"}})),
            json!({"data": {"a": "c"}}),
        ),
        (
            "/api/v1/namespaces/default/secrets",
            object("v1", "Secret", json!({"data": {"a": "Yg=="}})),
            json!({"data": {"a": "Yw=="}}),
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts",
            object("v1", "ServiceAccount", json!({})),
            json!({"automountServiceAccountToken": false}),
        ),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            object(
                "v1",
                "PersistentVolumeClaim",
                json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            ),
            json!({"spec": {"volumeName": "v"}}),
        ),
        (
            "/api/v1/persistentvolumes",
            object(
                "v1",
                "PersistentVolume",
                json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}}),
            ),
            json!({"spec": {"capacity": {"storage": "2Gi"}}}),
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            object("storage.k8s.io/v1", "StorageClass", json!({"provisioner": "x"})),
            json!({"allowVolumeExpansion": true}),
        ),
        (
            "/apis/networking.k8s.io/v1/ingressclasses",
            object(
                "networking.k8s.io/v1",
                "IngressClass",
                json!({"spec": {"controller": "example.com/x"}}),
            ),
            json!({"spec": {"parameters": {"kind": "ConfigMap", "name": "x"}}}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            object(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                json!({"spec": {"podSelector": {}}}),
            ),
            json!({"spec": {"egress": [{}]}}),
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            object(
                "policy/v1",
                "PodDisruptionBudget",
                json!({"spec": {"minAvailable": 1}}),
            ),
            json!({"spec": {"minAvailable": "50%"}}),
        ),
        (
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            object("scheduling.k8s.io/v1", "PriorityClass", json!({"value": 5})),
            json!({"description": "high"}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            object(
                "coordination.k8s.io/v1",
                "Lease",
                json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-11-28T10:00:00.123456Z"}}),
            ),
            json!({"spec": {"holderIdentity": "you", "leaseTransitions": 1}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            object(
                "apps/v1",
                "StatefulSet",
                json!({"spec": {"serviceName": "a", "selector": selector(), "template": template("Always"),
                    "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}}}}]}}),
            ),
            json!({"spec": {"replicas": 3}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            object(
                "apps/v1",
                "DaemonSet",
                json!({"spec": {"selector": selector(), "template": template("Always")}}),
            ),
            json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}}}),
        ),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            object(
                "v1",
                "ReplicationController",
                json!({"spec": {"template": template("Always")}}),
            ),
            json!({"spec": {"replicas": 0}}),
        ),
        (
            "/api/v1/namespaces/default/podtemplates",
            object("v1", "PodTemplate", json!({"template": template("Never")})),
            json!({"template": {"spec": {"restartPolicy": "OnFailure"}}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/controllerrevisions",
            object(
                "apps/v1",
                "ControllerRevision",
                json!({"revision": 1, "data": {"spec": {"any": ["thing", 1]}}}),
            ),
            json!({"revision": 2}),
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            object(
                "batch/v1",
                "Job",
                json!({"spec": {"template": template("Never")}}),
            ),
            json!({"spec": {"parallelism": 2, "suspend": true}}),
        ),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            object(
                "batch/v1",
                "CronJob",
                json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template("OnFailure")}}}}),
            ),
            json!({"spec": {"schedule": "*/5 * * * *", "timeZone": "Europe/Kyiv"}}),
        ),
    ]
}

fn selector() -> Value {
    json!({"matchLabels": {"app": "a"}})
}

fn template(restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "a", "image": "localhost/a:1"}]}})
}

#[tokio::test]
async fn every_kept_kind_is_made_shown_changed_and_deleted() {
    let api = Api::open().await;
    for (path, object, edit) in examples() {
        let created = api.post(path, object.clone()).await.expect(201).json();
        let mut expected = created.clone();
        // What was written is there, beside defaults.
        merge(&mut expected, &object);
        assert_eq!(created, expected, "{path}");
        assert!(created["metadata"]["uid"].is_string(), "{path}");
        let refused = api.post(path, object.clone()).await.expect(409).json();
        assert_eq!(refused["reason"], "AlreadyExists", "{path}");
        let one = format!("{path}/a");
        assert_eq!(api.get(&one).await.expect(200).json(), created, "{path}");
        let list = api.get(path).await.expect(200).json();
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{path}");

        let version = created["metadata"]["resourceVersion"].as_str().unwrap();
        let watch = format!("{path}?watch=true&resourceVersion={version}&timeoutSeconds=1");
        let changed = api.patch(&one, "merge", edit.clone()).await.expect(200).json();
        let mut expected = changed.clone();
        merge(&mut expected, &edit);
        assert_eq!(changed, expected, "{path}");
        let event: Value = serde_json::from_str(api.get(&watch).await.text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&event["type"], &event["object"]),
            (&json!("MODIFIED"), &changed),
            "{path}"
        );

        // What it is shown as is what it can be written as.
        assert_eq!(
            api.put(&one, changed.clone()).await.expect(200).json(),
            changed,
            "{path}"
        );
        let mut applied = object.clone();
        merge(&mut applied, &edit);
        applied["metadata"]["labels"] = json!({"x": "y"});
        let applied = api
            .apply(&format!("{one}?fieldManager=test&force=true"), applied)
            .await
            .expect(200)
            .json();
        assert_eq!(applied["metadata"]["labels"]["x"], "y", "{path}");
        api.delete(&one).await.expect(200);
        api.get(&one).await.expect(404);
    }
}

#[tokio::test]
async fn a_status_that_nobody_wrote_has_gos_zeros() {
    let api = Api::open().await;
    let scheduled = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
    let expected = |kind: &str| match kind {
        "StatefulSet" => json!({"availableReplicas": 0, "replicas": 0}),
        "DaemonSet" => scheduled.clone(),
        "ReplicationController" => json!({"replicas": 0}),
        "Job" | "CronJob" => json!({}),
        _ => Value::Null,
    };
    for (path, object, _) in examples() {
        let kind = object["kind"].as_str().unwrap().to_owned();
        if expected(&kind).is_null() {
            continue;
        }
        let created = api.post(path, object).await.expect(201).json();
        assert_eq!(created["status"], expected(&kind), "{kind}");
        let one = format!("{path}/a");
        let label = json!({"metadata": {"labels": {"x": "y"}}});
        let labelled = api.patch(&one, "merge", label).await.expect(200).json();
        let owned = labelled["metadata"]["managedFields"].to_string();
        assert!(
            !owned.contains("f:status"),
            "{kind}: what is shown is not stored: {owned}"
        );
        // What is written by a controller stands beside the others.
        let observed = json!([{"op": "add", "path": "/status/observedGeneration", "value": 7}]);
        let written = api.patch(&format!("{one}/status"), "json", observed).await;
        if kind != "CronJob" && kind != "Job" {
            let mut status = expected(&kind);
            status["observedGeneration"] = 7.into();
            assert_eq!(written.expect(200).json()["status"], status, "{kind}");
        }
    }
}

/// Puts what `patch` says into `value`; lists item by item.
fn merge(value: &mut Value, patch: &Value) {
    match patch {
        Value::Object(map) => {
            for (field, patch) in map {
                merge(&mut value[field], patch);
            }
        }
        Value::Array(items) if value.is_array() => {
            for (index, item) in items.iter().enumerate() {
                merge(&mut value[index], item);
            }
        }
        other => *value = other.clone(),
    }
}

#[tokio::test]
async fn what_nothing_acts_on_is_warned_about() {
    let api = Api::open().await;
    let rule = "accepted, but this version of Podman Swarm does not act on it";
    let silent = [
        "PodDisruptionBudget",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "Lease",
        "PodTemplate",
        "ControllerRevision",
    ];
    for (path, object, _) in examples() {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let named = format!(
            "{kind} \\\"{}\\\": ",
            object["metadata"]["name"].as_str().unwrap()
        );
        let created = api.post(path, object).await.expect(201);
        let warnings = created.warnings();
        let warned = warnings
            .iter()
            .any(|warning| warning.contains(&named) && warning.contains(rule));
        assert_eq!(warned, !silent.contains(&kind.as_str()), "{kind}: {warnings:?}");
    }
}

#[tokio::test]
async fn a_secret_is_written_in_plain_text_and_shown_in_base64() {
    let api = Api::open().await;
    let path = "/api/v1/namespaces/default/secrets";
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
        "data": {"a": "b2xk"}, "stringData": {"a": "new", "b": "x"}});
    let created = api.post(path, secret).await.expect(201).json();
    assert_eq!(created["data"], json!({"a": "bmV3", "b": "eA=="}));
    assert_eq!(created["stringData"], Value::Null);
    assert_eq!(created["type"], "Opaque");
    let one = format!("{path}/a");
    for (media, patch) in [
        ("merge", json!({"stringData": {"b": "y"}})),
        ("strategic-merge", json!({"stringData": {"b": "z"}})),
    ] {
        let text = patch["stringData"]["b"].as_str().unwrap().to_owned();
        let changed = api.patch(&one, media, patch).await.expect(200).json();
        let expected = if text == "y" { "eQ==" } else { "eg==" };
        assert_eq!(changed["data"], json!({"a": "bmV3", "b": expected}), "{media}");
        assert_eq!(changed["stringData"], Value::Null);
    }
    let applied =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"c": "w"}});
    let applied = api
        .apply(&format!("{one}?fieldManager=test"), applied)
        .await
        .expect(200)
        .json();
    assert_eq!(applied["data"]["c"], "dw==");

    // A list says so little, and what is refused says no value.
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let text = api
        .call("GET", path, &[("accept", table)], String::new())
        .await
        .text;
    assert!(text.contains("Opaque") && !text.contains("bmV3"), "{text}");
    let broken =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}, "data": {"a": "hunter2"}});
    let refused = api.post(path, broken).await.expect(400).json();
    assert_eq!(refused["reason"], "BadRequest");
    assert_eq!(
        refused["message"],
        "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 4"
    );
    let patched = api.patch(&one, "merge", json!({"data": {"a": "hunter2"}})).await;
    let patched = patched.expect(422).text;
    assert!(
        patched.contains("data[a]") && !patched.contains("hunter2"),
        "{patched}"
    );
    let broken = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "binaryData": {"a": "YQ=x"}});
    let refused = api.post("/api/v1/namespaces/default/configmaps", broken).await;
    assert_eq!(
        refused.expect(400).json()["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: illegal base64 data at input byte 2"
    );
    let list = api
        .get(&format!("{path}?fieldSelector=type%3DOpaque"))
        .await
        .expect(200)
        .json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let list = api
        .get(&format!("{path}?fieldSelector=type!%3DOpaque"))
        .await
        .expect(200)
        .json();
    assert_eq!(list["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_kept_workload_can_be_scaled() {
    let api = Api::open().await;
    for (path, object, _) in examples() {
        if !path.contains("statefulsets") && !path.contains("replicationcontrollers") {
            continue;
        }
        api.post(path, object).await.expect(201);
        let scale = format!("{path}/a/scale");
        let before = api.get(&scale).await.expect(200).json();
        assert_eq!(
            (&before["spec"]["replicas"], &before["status"]["selector"]),
            (&json!(1), &json!("app=a"))
        );
        api.patch(&scale, "merge", json!({"spec": {"replicas": 4}}))
            .await
            .expect(200);
        let scaled = api.get(&format!("{path}/a")).await.json();
        assert_eq!(scaled["spec"]["replicas"], 4, "{path}");
    }
}

#[tokio::test]
async fn a_generation_is_shown_of_the_kinds_that_have_one() {
    let api = Api::open().await;
    let core = "/api/v1/namespaces/default";
    let map = json!({"metadata": {"name": "a"}, "data": {"a": "b"}});
    let created = api
        .post(&format!("{core}/configmaps"), map)
        .await
        .expect(201)
        .json();
    assert_eq!(created["metadata"]["generation"], Value::Null);
    let account = api.get(&format!("{core}/serviceaccounts/default")).await.json();
    assert_eq!(account["metadata"]["generation"], Value::Null);
    let class = json!({"metadata": {"name": "high"}, "value": 1});
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let created = api.post(path, class).await.expect(201).json();
    assert_eq!(created["metadata"]["generation"], 1);
}
