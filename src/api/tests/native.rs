//! The native paths, authentication, discovery and health.

use axum::body::Body;
use reconcilers::zone::WHITELIST_NAME;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Api, NOW, deployment};
use crate::api::{admin_kubeconfig, create_token};

const MANIFESTS: &str = "/api/v1/manifests";

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: shop, labels: {tier: front}}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      containers: [{name: web, image: 'shop:1'}]
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: shop}
spec:
  selector: {app: shop}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";

async fn apply(api: &Api, manifest: &str) -> super::fixture::Answer {
    api.call(
        "POST",
        MANIFESTS,
        &[("content-type", "application/yaml")],
        manifest.to_owned(),
    )
    .await
}

fn results(answer: &Value) -> Vec<String> {
    let items = answer["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| {
            format!(
                "{} {}",
                item["kind"].as_str().unwrap(),
                item["result"].as_str().unwrap()
            )
        })
        .collect()
}

#[tokio::test]
async fn a_bundle_is_applied_with_its_namespace_first() {
    let api = Api::open().await;
    let answer = apply(&api, SHOP).await.expect(200).json();
    assert_eq!(
        results(&answer),
        ["Namespace created", "Deployment created", "Service created"]
    );
    let answer = apply(&api, SHOP).await.expect(200).json();
    assert_eq!(
        results(&answer),
        ["Namespace unchanged", "Deployment unchanged", "Service unchanged"]
    );
    let changed = SHOP
        .replace("shop:1", "shop:2")
        .replace(", labels: {tier: front}", "");
    let answer = apply(&api, &changed).await.expect(200).json();
    assert_eq!(results(&answer)[1], "Deployment configured");
    let shown = api.get("/api/v1/deployments/shop/shop").await.expect(200).json();
    assert_eq!(
        shown["metadata"].get("labels"),
        None,
        "what the bundle no longer names is removed"
    );
    assert_eq!(
        shown["spec"]["template"]["spec"]["containers"][0]["image"],
        "shop:2"
    );
}

#[tokio::test]
async fn a_bundle_with_a_fault_changes_nothing() {
    let api = Api::open().await;
    let bad = SHOP
        .replace("port: 80", "port: 0")
        .replace("replicas: 2", "replicas: -1");
    let refused = apply(&api, &bad).await.expect(422).json();
    let fields: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert!(
        fields.contains(&"spec.replicas") && fields.contains(&"spec.ports[0].port"),
        "{fields:?}"
    );
    api.get("/api/v1/namespaces/shop").await.expect(404);
    apply(&api, "kind: Widget\napiVersion: v1\nmetadata: {name: a}")
        .await
        .expect(400);
    apply(&api, "a: [").await.expect(400);
    apply(&api, "---\n").await.expect(400);
    apply(
        &api,
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: none}\nspec: {ports: [{port: 1}]}",
    )
    .await
    .expect(404);
    let twice = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    apply(&api, &format!("{twice}---\n{twice}")).await.expect(400);
    api.call("POST", &format!("{MANIFESTS}?dryRun=All"), &[], SHOP)
        .await
        .expect(200);
    api.get("/api/v1/namespaces/shop").await.expect(404);
}

#[tokio::test]
async fn a_bundle_is_refused_with_the_errors_of_all_its_documents() {
    let api = Api::open().await;
    let text = "apiVersion: v1\nkind: LimitRange\nmetadata: {name: a}\n---\napiVersion: apps/v2\nkind: Deployment\n\
        metadata: {name: b}\n---\nkind: Pod\nmetadata: {name: c}\n---\nfoo: bar\n---\n- a\n---\n";
    let refused = apply(&api, &format!("{text}{SHOP}")).await.expect(400).json();
    let message = refused["message"].as_str().unwrap();
    for part in [
        "LimitRange a: no matches for kind \"LimitRange\" in version \"v1\"",
        "Deployment b: no matches for kind \"Deployment\" in version \"apps/v2\"",
        "document 3, line 9, column 1: apiVersion is missing",
        "document 4, line 12, column 1: apiVersion is missing",
        "document 4, line 12, column 1: kind is missing",
        "document 5, line 14, column 1: expected an object",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    api.get("/api/v1/namespaces/shop").await.expect(404);
}

#[tokio::test]
async fn what_a_scale_set_stays_when_the_bundle_does_not_say_it() {
    let api = Api::open().await;
    let without = SHOP.replace("  replicas: 2\n", "");
    apply(&api, &without).await.expect(200);
    let scale = "/apis/apps/v1/namespaces/shop/deployments/shop/scale";
    // By the manager that applies: an update by it is no apply.
    let scale = format!("{scale}?fieldManager=manifests");
    api.patch(&scale, "merge", json!({"spec": {"replicas": 5}}))
        .await
        .expect(200);
    apply(&api, &without.replace("shop:1", "shop:2"))
        .await
        .expect(200);
    assert_eq!(
        api.get("/api/v1/deployments/shop/shop").await.json()["spec"]["replicas"],
        5
    );
}

#[tokio::test]
async fn a_bundle_cannot_delete() {
    let api = Api::open().await;
    let marks = "deletionTimestamp: '2024-05-01T10:01:01Z', deletionGracePeriodSeconds: 0";
    let manifest =
        SHOP.replace(
            "metadata: {name: shop}",
            &format!("metadata: {{name: shop, {marks}}}"),
        ) + &format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default, {marks}}}\n");
    apply(&api, &manifest).await.expect(200);
    for name in ["default", "shop"] {
        let namespace = api
            .get(&format!("/api/v1/namespaces/{name}"))
            .await
            .expect(200)
            .json();
        assert_eq!(namespace["metadata"].get("deletionTimestamp"), None, "{name}");
    }
}

#[tokio::test]
async fn manifests_are_deleted_by_name_and_by_kind() {
    let api = Api::open().await;
    apply(&api, SHOP).await.expect(200);
    let answer = api
        .delete("/api/v1/manifests/shop/shop?kind=svc")
        .await
        .expect(200)
        .json();
    assert_eq!(results(&answer), ["Service deleted"]);
    apply(&api, SHOP).await.expect(200);
    let mut answer = results(&api.delete("/api/v1/manifests/shop/shop").await.expect(200).json());
    answer.sort_unstable();
    assert_eq!(answer, ["Deployment deleted", "Service deleted"]);
    api.delete("/api/v1/manifests/shop/shop").await.expect(404);
    api.delete("/api/v1/manifests/shop").await.expect(400);
    api.delete("/api/v1/manifests/shop?kind=namespace")
        .await
        .expect(200);
    api.delete("/api/v1/manifests/shop/shop?kind=widget")
        .await
        .expect(400);
}

#[tokio::test]
async fn endpoints_of_a_service_are_listed() {
    let api = Api::open().await;
    apply(&api, SHOP).await.expect(200);
    let key = ObjectKey::new(Kind::EndpointSlice, "shop", "shop-1");
    let mut slice = Object::new(&key);
    slice.set(
        &["metadata", "labels"],
        json!({"kubernetes.io/service-name": "shop"}),
    );
    slice.set(&["ports"], json!([{"port": 8080}]));
    let endpoint = |address: &str, ready: bool| json!({"addresses": [address], "nodeName": "n1", "conditions": {"ready": ready}, "targetRef": {"name": "p"}});
    slice.set(
        &["endpoints"],
        json!([endpoint("10.244.0.2", true), endpoint("10.244.0.3", false)]),
    );
    api.state.store.project(&key, Some(slice));
    let found = api
        .get("/api/v1/services/shop/shop/endpoints")
        .await
        .expect(200)
        .json();
    let expected =
        json!({"nodeName": "n1", "address": "10.244.0.2", "port": 8080, "healthy": true, "podName": "p"});
    assert_eq!(
        (found.as_array().unwrap().len(), &found[0], &found[1]["healthy"]),
        (2, &expected, &false.into())
    );
    let found = api
        .get("/api/v1/services/shop/shop/addresses")
        .await
        .expect(200)
        .json();
    assert_eq!(found, json!({"addresses": ["10.244.0.2:8080"]}));
    api.get("/api/v1/services/shop/none/endpoints").await.expect(404);
}

#[tokio::test]
async fn endpoints_that_someone_wrote_by_hand_are_listed() {
    let api = Api::open().await;
    let manifest = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{port: 5432}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: db}
subsets:
- addresses: [{ip: 192.0.2.1}]
  notReadyAddresses: [{ip: 192.0.2.2}]
  ports: [{port: 5432}]
";
    apply(&api, manifest).await.expect(200);
    let path = "/api/v1/services/default/db";
    let found = api.get(&format!("{path}/endpoints")).await.expect(200).json();
    let healthy: Vec<(&Value, &Value)> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (&entry["address"], &entry["healthy"]))
        .collect();
    assert_eq!(
        healthy,
        [
            (&"192.0.2.1".into(), &true.into()),
            (&"192.0.2.2".into(), &false.into())
        ]
    );
    let found = api.get(&format!("{path}/addresses")).await.expect(200).json();
    assert_eq!(found, json!({"addresses": ["192.0.2.1:5432"]}));
}

#[tokio::test]
async fn the_whitelist_is_set_and_changed() {
    let api = Api::open().await;
    let path = "/api/v1/dns/whitelist";
    assert_eq!(
        api.get(path).await.expect(200).json(),
        json!({"enabled": false, "hosts": []})
    );
    let set = api
        .put(path, json!({"enabled": true, "hosts": ["GitHub.com."]}))
        .await
        .expect(200)
        .json();
    assert_eq!(set, json!({"enabled": true, "hosts": ["github.com"]}));
    api.post(&format!("{path}/hosts"), json!({"host": "crates.io"}))
        .await
        .expect(200);
    let hosts = api.get(path).await.json()["hosts"].clone();
    assert!(hosts.as_array().unwrap().contains(&"crates.io".into()), "{hosts}");
    api.post(&format!("{path}/hosts"), json!({"host": "not a host"}))
        .await
        .expect(400);
    api.delete(&format!("{path}/hosts/github.com")).await.expect(200);
    api.delete(&format!("{path}/hosts/github.com")).await.expect(404);
    assert_eq!(
        api.get(path).await.json(),
        json!({"enabled": true, "hosts": ["crates.io"]})
    );
}

#[tokio::test]
async fn a_whitelist_that_lacks_a_field_is_refused() {
    let api = Api::open().await;
    let path = "/api/v1/dns/whitelist";
    let whole = json!({"enabled": true, "hosts": ["github.com"]});
    api.put(path, whole.clone()).await.expect(200);
    for (body, named) in [
        (json!({"enabled": true}), "hosts"),
        (json!({"hosts": []}), "enabled"),
        (json!({}), "enabled"),
        (json!({"enabled": true, "hosts": [], "host": "a"}), "`host`"),
    ] {
        let refused = api.put(path, body).await.expect(400).json();
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(named), "{message}");
    }
    assert_eq!(api.get(path).await.json(), whole);
}

#[tokio::test]
async fn nothing_is_told_to_who_proves_nothing() {
    let api = Api::named("n1", true).await;
    for path in [
        "/api/v1/pods",
        "/apis",
        "/api/v1/tokens",
        "/openapi/v2",
        "/nothing",
        "/",
    ] {
        assert_eq!(
            api.get(path).await.expect(401).json()["reason"],
            "Unauthorized",
            "{path}"
        );
    }
    for path in ["/api/v1/health", "/livez", "/readyz", "/healthz", "/version"] {
        api.get(path).await.expect(200);
    }
    let (object, secret) = create_token("admin", None);
    api.state
        .store
        .create(object, api.state.author("test", ""))
        .await
        .unwrap();
    let check = async |secret: &str, code: u16| {
        let bearer = format!("Bearer {secret}");
        api.call(
            "GET",
            "/api/v1/pods",
            &[("authorization", &bearer)],
            Body::empty(),
        )
        .await
        .expect(code);
    };
    check(&secret, 200).await;
    check(&format!("{secret}x"), 401).await;
    check(&secret[..secret.len() - 1], 401).await;
    check("pst-.", 401).await;
    check("", 401).await;
}

#[tokio::test]
async fn tokens_are_made_shown_once_expired_and_revoked() {
    let api = Api::open().await;
    let made = api
        .post("/api/v1/tokens", json!({"name": "ci", "expires_in": 60}))
        .await
        .expect(201)
        .json();
    let secret = made["token"].as_str().unwrap();
    api.post("/api/v1/tokens", json!({"name": "ci"}))
        .await
        .expect(409);
    api.post("/api/v1/tokens", json!({"name": ""})).await.expect(400);
    let list = api.get("/api/v1/tokens").await.expect(200);
    assert!(!list.text.contains(secret));
    assert_eq!(list.json()["tokens"][0]["expires_at"], "2027-01-15T08:01:00Z");
    let authenticated = |now| crate::api::auth::authenticate(&api.state.store, secret, now).is_some();
    assert!(authenticated(NOW + 59) && !authenticated(NOW + 60));
    api.delete(&format!("/api/v1/tokens/{secret}")).await.expect(200);
    assert!(!authenticated(NOW));
    let missing = api.delete(&format!("/api/v1/tokens/{secret}")).await.expect(404);
    assert!(!missing.text.contains(secret));
    api.post("/api/v1/tokens", json!({"name": "ci"}))
        .await
        .expect(201);
    api.delete("/api/v1/tokens/ci").await.expect(200);
}

#[tokio::test]
async fn a_name_revokes_all_tokens_that_nodes_have_made_under_it() {
    let api = Api::open().await;
    for _ in 0..2 {
        let author = api.state.author("test", "");
        let made = api.state.store.create(create_token("ci", None).0, author).await;
        made.unwrap();
    }
    let revoked = api.delete("/api/v1/tokens/ci").await.expect(200);
    assert_eq!(revoked.json()["count"], 2);
    let left = api.get("/api/v1/tokens").await.expect(200).json();
    assert_eq!(left["count"], 0, "{left}");
}

#[tokio::test]
async fn a_token_cannot_outlive_the_calendar() {
    let api = Api::open().await;
    for (seconds, code) in [
        (i64::MAX, 400),
        (300_000_000_000, 400),
        (-1, 400),
        (3_000_000_000, 201),
    ] {
        api.post(
            "/api/v1/tokens",
            json!({"name": format!("t{seconds}"), "expires_in": seconds}),
        )
        .await
        .expect(code);
    }
}

#[tokio::test]
async fn a_whitelist_that_cannot_be_read_is_not_switched_off() {
    let api = Api::open().await;
    let mut object = Object::new(&ObjectKey::cluster(Kind::DnsWhitelist, WHITELIST_NAME));
    object.set(&["spec"], json!({"enabled": "in another form", "hosts": []}));
    api.state
        .store
        .create(object, api.state.author("test", ""))
        .await
        .unwrap();
    let shown = api.get("/api/v1/dns/whitelist").await.expect(200).json();
    assert_eq!(shown["enabled"], true);
    let body = json!({"host": "example.com"});
    let answer = api.post("/api/v1/dns/whitelist/hosts", body).await.expect(200);
    assert_eq!(answer.json(), json!({"enabled": true, "hosts": ["example.com"]}));
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let api = Api::named("n1", true).await;
    api.readiness.send_replace(vec!["podman".into()]);
    assert_eq!(
        api.get("/api/v1/health").await.expect(503).json()["missing"],
        json!(["podman"])
    );
    assert!(
        api.get("/readyz?verbose")
            .await
            .expect(503)
            .text
            .contains("[-]podman not ready")
    );
    api.get("/livez").await.expect(200);
    api.readiness.send_replace(Vec::new());
    assert_eq!(api.get("/api/v1/health").await.expect(200).json()["status"], "ok");
}

#[tokio::test]
async fn discovery_lists_the_kind_table_in_both_forms() {
    let api = Api::open().await;
    let legacy = api.get("/apis/apps/v1").await.expect(200).json();
    let names: Vec<&str> = legacy["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|resource| resource["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"deployments") && names.contains(&"deployments/scale"),
        "{names:?}"
    );
    let form = [(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    )];
    let aggregated = api
        .call("GET", "/apis", &form, Body::empty())
        .await
        .expect(200)
        .json();
    assert_eq!(aggregated["kind"], "APIGroupDiscoveryList");
    assert!(
        !aggregated.to_string().contains("apitokens"),
        "internal kinds are not shown"
    );
    api.get("/apis/none.example.com/v1").await.expect(404);
    for (path, value) in api.get("/openapi/v3").await.expect(200).json()["paths"]
        .as_object()
        .unwrap()
    {
        let document = api
            .get(value["serverRelativeURL"].as_str().unwrap())
            .await
            .expect(200)
            .json();
        assert!(!document["paths"].as_object().unwrap().is_empty(), "{path}");
    }
    let version = api.get("/version").await.expect(200).json();
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1."));
}

#[tokio::test]
async fn answers_to_wrong_methods_and_paths_are_statuses() {
    let api = Api::open().await;
    let check = async |method: &str, path: &str, code: u16| {
        let answer = api.call(method, path, &[], Body::empty()).await.expect(code);
        assert_eq!(answer.json()["kind"], "Status", "{method} {path}");
    };
    check("GET", "/nothing", 404).await;
    check("GET", "/api/v1/widgets", 404).await;
    check("POST", "/api/v1/health", 405).await;
    check("POST", "/api/v1/pods", 405).await;
    check("GET", "/api/v1/namespaces/default/pods/web/proxy", 501).await;
    for path in ["proxy", "proxy/", "proxy/healthz"] {
        let path = format!("/api/v1/namespaces/default/services/web/{path}");
        let refused = api.get(&path).await.expect(501).json();
        assert_eq!(
            refused["message"],
            "this version of Podman Swarm does not serve proxy"
        );
    }
    check("GET", "/api/v1/namespaces/default/pods/web/exec", 404).await;
    check("PUT", "/api/v1/namespaces/default/pods", 405).await;
}

#[tokio::test]
async fn short_forms_show_kubernetes_objects() {
    let api = Api::open().await;
    api.post(
        "/apis/apps/v1/namespaces/default/deployments",
        deployment("web", 1),
    )
    .await
    .expect(201);
    let list = api.get("/api/v1/deployments").await.expect(200).json();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&"DeploymentList".into(), 1)
    );
    api.get("/api/v1/deployments/default/none").await.expect(404);
    api.get("/api/v1/pods/default/none").await.expect(404);
}

#[test]
fn the_kubeconfig_is_yaml_with_the_authority_inside() {
    let text = admin_kubeconfig("https://10.0.0.1:8080", "PEM", "pst-1.x");
    let config: Value = serde_yaml::from_str(&text).unwrap();
    assert_eq!(
        config["clusters"][0]["cluster"]["certificate-authority-data"],
        "UEVN"
    );
    assert_eq!(config["users"][0]["user"]["token"], "pst-1.x");
}
