//! Who somebody is and what he may do; discovery and health, as clients ask for them.

use serde_json::{Value, json};

use super::fixture::Api;
use crate::api::create_token;

const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RULES: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

#[tokio::test]
async fn whoever_is_let_in_may_do_everything() {
    let api = Api::open().await;
    let ask = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "resource": "pods"}}});
    let answered = api.post(ACCESS, ask.clone()).await.expect(201).json();
    assert_eq!(answered["status"]["allowed"], true);
    assert_eq!(answered["spec"], ask["spec"]);
    let refused = api.post(ACCESS, json!({"spec": {}})).await.expect(422).json();
    assert_eq!(
        refused["details"]["causes"][0]["field"],
        "spec.resourceAttributes"
    );
    let refused = api
        .post(ACCESS, json!({"kind": "Pod", "spec": {}}))
        .await
        .expect(400);
    assert!(
        refused.text.contains("kind in the data (Pod)"),
        "{}",
        refused.text
    );
    api.get(ACCESS).await.expect(405);

    let rules = api
        .post(RULES, json!({"spec": {"namespace": "default"}}))
        .await
        .expect(201)
        .json();
    assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    api.post(RULES, json!({"spec": {}})).await.expect(400);
}

#[tokio::test]
async fn a_client_is_told_who_it_is() {
    let api = Api::named("n1", true).await;
    let (token, secret) = create_token("ci", None);
    api.state
        .store
        .create(token, api.state.author("test", ""))
        .await
        .unwrap();
    let whoami = async |headers: &[(&str, &str)]| api.call("POST", SELF, headers, "{}").await;
    let bearer = format!("Bearer {secret}");
    let known = whoami(&[("authorization", &bearer)]).await.expect(201).json();
    assert_eq!(known["status"]["userInfo"]["username"], "ci");
    whoami(&[]).await.expect(401);
    let open = Api::open().await;
    let anybody = open.post(SELF, json!({})).await.expect(201).json();
    assert_eq!(anybody["status"]["userInfo"]["username"], "system:anonymous");
}

#[tokio::test]
async fn nobody_can_be_somebody_else() {
    let api = Api::named("n1", true).await;
    let (token, secret) = create_token("ci", None);
    let author = api.state.author("test", "");
    api.state.store.create(token, author).await.unwrap();
    let bearer = format!("Bearer {secret}");
    for (header, resource) in [
        ("impersonate-user", "users"),
        ("impersonate-group", "groups"),
        ("impersonate-uid", "uids"),
        ("impersonate-extra-scopes", "userextras"),
    ] {
        for path in ["/api/v1/pods", "/apis", "/livez", "/api/v1/tokens", "/nothing"] {
            let headers = [("authorization", bearer.as_str()), (header, "bob")];
            let refused = api.call("GET", path, &headers, "").await.expect(403).json();
            let said = refused["message"].as_str().unwrap();
            let expected = format!(
                "{resource} \"bob\" is forbidden: User \"ci\" cannot impersonate resource \"{resource}\""
            );
            assert!(said.starts_with(&expected), "{said}");
            assert_eq!(refused["reason"], "Forbidden");
        }
    }
    api.call("GET", "/apis", &[("impersonate-user", "bob")], "")
        .await
        .expect(401);
}

#[tokio::test]
async fn discovery_names_what_is_served_and_no_more() {
    let api = Api::open().await;
    for path in [
        "/api",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/api/v1",
        "/version",
    ] {
        let plain = api.get(path).await.expect(200).json();
        assert_eq!(
            api.get(&format!("{path}/")).await.expect(200).json(),
            plain,
            "{path}"
        );
    }
    let resources = api.get("/api/v1").await.json();
    let named = |name: &str| -> Value {
        let all = resources["resources"].as_array().unwrap().iter();
        all.clone().find(|one| one["name"] == name).unwrap().clone()
    };
    for name in ["pods", "events"] {
        let verbs = &named(name)["verbs"];
        assert!(verbs.as_array().unwrap().contains(&json!("patch")), "{name}");
    }
    let verbs = &named("namespaces")["verbs"];
    assert!(!verbs.as_array().unwrap().contains(&json!("deletecollection")));
    api.delete("/api/v1/namespaces").await.expect(405);
    api.get("/api/v1/namespaces/default").await.expect(200);
    let reviews = api.get("/apis/authorization.k8s.io/v1").await.expect(200).json();
    assert_eq!(reviews["resources"][0]["verbs"], json!(["create"]));
    api.get("/apis/authorization.k8s.io/v2").await.expect(404);
    for check in ["livez", "readyz", "healthz"] {
        assert_eq!(api.get(&format!("/{check}")).await.expect(200).text, "ok");
        assert_eq!(api.get(&format!("/{check}/ping")).await.expect(200).text, "ok");
        let verbose = api.get(&format!("/{check}?verbose")).await.expect(200).text;
        assert_eq!(verbose, format!("[+]ping ok\n{check} check passed\n"));
    }
}
