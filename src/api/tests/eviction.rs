//! Evictions and bindings of pods.

use serde_json::{Value, json};

use super::fixture::{Answer, Api};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn evict(api: &Api, name: &str, rest: Value) -> Answer {
    let mut eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    for (field, value) in rest.as_object().unwrap() {
        eviction[field] = value.clone();
    }
    api.post(&format!("{PODS}/{name}/eviction"), eviction).await
}

/// A pod with the label `app`, ready or not.
async fn pod(api: &Api, name: &str, app: &str, ready: bool) {
    let mut pod = super::fixture::pod(name);
    pod["metadata"]["labels"] = json!({"app": app});
    api.post(PODS, pod).await.expect(201);
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    api.patch(&format!("{PODS}/{name}/status"), "merge", status)
        .await
        .expect(200);
}

async fn budget(api: &Api, name: &str, spec: Value) {
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": spec});
    api.post("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)
        .await
        .expect(201);
}

#[tokio::test]
async fn an_eviction_is_a_deletion_with_its_options() {
    let api = Api::open().await;
    evict(&api, "a", json!({})).await.expect(404);
    pod(&api, "a", "a", true).await;
    for (rest, code) in [
        (json!({"metadata": {"name": "b"}}), 400),
        (json!({"kind": "DeleteOptions"}), 400),
        (json!({"deleteOptions": {"gracePeriodSeconds": "soon"}}), 400),
        (json!({"deleteOptions": {"preconditions": {"uid": "other"}}}), 409),
        (json!({"deleteOptions": {"dryRun": ["All"]}}), 201),
    ] {
        evict(&api, "a", rest).await.expect(code);
        api.get(&format!("{PODS}/a")).await.expect(200);
    }
    let evicted = evict(&api, "a", json!({})).await.expect(201);
    assert_eq!(evicted.json()["status"], "Success");
    api.get(&format!("{PODS}/a")).await.expect(404);
    api.get(&format!("{PODS}/a/eviction")).await.expect(405);
}

#[tokio::test]
async fn a_budget_keeps_pods_that_it_needs() {
    let api = Api::open().await;
    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    budget(
        &api,
        "web",
        json!({"minAvailable": 2, "selector": selector("web")}),
    )
    .await;
    budget(
        &api,
        "other",
        json!({"minAvailable": 9, "selector": selector("other")}),
    )
    .await;
    budget(&api, "nobody", json!({"minAvailable": 9})).await;
    for name in ["a", "b", "c"] {
        pod(&api, name, "web", true).await;
    }
    pod(&api, "sick", "web", false).await;
    evict(&api, "a", json!({})).await.expect(201);
    let refused = evict(&api, "b", json!({})).await.expect(429).json();
    assert_eq!(refused["reason"], "TooManyRequests");
    assert_eq!(
        refused["message"],
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "DisruptionBudget",
            "message": "The disruption budget web needs 2 healthy pods and has 2 currently"}])
    );
    // One that is not ready is no loss while those that must stay are there.
    evict(&api, "sick", json!({})).await.expect(201);
    api.delete(&format!("{PODS}/b")).await.expect(200);
    pod(&api, "sick", "web", false).await;
    evict(&api, "sick", json!({})).await.expect(429);
    let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    let web = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web";
    api.patch(web, "merge", always).await.expect(200);
    evict(&api, "sick", json!({})).await.expect(201);

    budget(&api, "every", json!({"minAvailable": 0, "selector": {}})).await;
    evict(&api, "c", json!({})).await.expect(500);
}

#[tokio::test]
async fn a_binding_puts_a_pod_on_a_node_once() {
    let api = Api::open().await;
    let mut lone = super::fixture::pod("a");
    lone["spec"].as_object_mut().unwrap().remove("nodeName");
    api.post(PODS, lone).await.expect(201);
    let path = format!("{PODS}/a/binding");
    let bind = async |kind: &str, node: &str, query: &str| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
            "target": {"kind": kind, "name": node}});
        api.post(&format!("{path}{query}"), binding).await
    };
    bind("Node", "", "").await.expect(400);
    bind("Pod", "x", "").await.expect(400);
    bind("Node", "n1", "?dryRun=All").await.expect(201);
    bind("Node", "n1", "").await.expect(201);
    let placed = api.get(&format!("{PODS}/a")).await.expect(200).json();
    assert_eq!(placed["spec"]["nodeName"], "n1");
    let refused = bind("Node", "n2", "").await.expect(409).json();
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("pod a is already assigned to node \"n1\""),
        "{refused}"
    );
}

#[tokio::test]
async fn a_lease_is_made_by_who_renews_it() {
    let api = Api::open().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"},
        "spec": {"holderIdentity": "me"}});
    let path = format!("{leases}/a");
    let made = api.put(&path, lease.clone()).await.expect(201).json();
    let mut renewed = made.clone();
    renewed["spec"]["holderIdentity"] = "you".into();
    api.put(&path, renewed.clone()).await.expect(200);
    api.delete(&path).await.expect(200);
    api.put(&path, renewed).await.expect(404);
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    api.put("/api/v1/namespaces/default/configmaps/a", config)
        .await
        .expect(404);
}
