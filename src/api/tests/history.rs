//! What an object was: history, differences and undo through the API.

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{NodeId, Precondition, WriteError};

use super::fixture::{Answer, Api, deployment, pod};
use crate::api::create_token;

const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const HISTORY: &str = "/api/v1/history/deployments/default/web";

async fn changes(api: &Api, path: &str) -> Vec<Value> {
    let answer = api.get(path).await.expect(200).json();
    answer["changes"].as_array().unwrap().clone()
}

fn paths(answer: &Value) -> Vec<&str> {
    let fields = answer["fields"].as_array().unwrap();
    fields
        .iter()
        .map(|field| field["path"].as_str().unwrap())
        .collect()
}

async fn undo(api: &Api, path: &str, to: &Value) -> Answer {
    api.post(&format!("{path}?fieldManager=psctl"), json!({ "to": to }))
        .await
}

async fn scale(api: &Api, replicas: i64) {
    api.patch(WEB, "merge", json!({"spec": {"replicas": replicas}}))
        .await
        .expect(200);
}

/// A deployment that was made with one replica and then got two and three.
async fn scaled() -> (Api, Vec<Value>) {
    let api = Api::open().await;
    api.post(
        "/apis/apps/v1/namespaces/default/deployments",
        deployment("web", 1),
    )
    .await
    .expect(201);
    scale(&api, 2).await;
    scale(&api, 3).await;
    let ids = changes(&api, HISTORY)
        .await
        .iter()
        .map(|change| change["change"].clone())
        .collect();
    (api, ids)
}

#[tokio::test]
async fn changes_say_who_made_them_and_through_what() {
    let api = Api::named("n1", true).await;
    let (token, secret) = create_token("olena", None);
    api.state
        .store
        .create(token, api.state.author("test", ""))
        .await
        .unwrap();
    let bearer = format!("Bearer {secret}");
    let send = async |method: &str, path: &str, media: &str, body: Value| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", media),
            ("user-agent", "kubectl/v1"),
        ];
        api.call(method, path, &headers, body.to_string())
            .await
            .expect(200)
            .json()
    };
    send(
        "POST",
        "/api/v1/manifests",
        "application/json",
        deployment("web", 1),
    )
    .await;
    send(
        "PATCH",
        WEB,
        "application/merge-patch+json",
        json!({"spec": {"replicas": 2}}),
    )
    .await;
    send(
        "PATCH",
        &format!("{WEB}?fieldManager=me&force=true"),
        "application/apply-patch+yaml",
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3}}),
    )
    .await;
    let answer = send("GET", HISTORY, "", json!(null)).await;
    assert_eq!(answer["object"]["name"], "web");
    assert_eq!(answer["omitted"], 0);
    let told: Vec<String> = answer["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let text = |field: &str| change[field].as_str().unwrap().to_owned();
            format!(
                "{} {} {} {}",
                text("through"),
                text("manager"),
                text("user"),
                text("node")
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "apply manifests olena n1",
            "api kubectl olena n1",
            "apply me olena n1"
        ]
    );
    assert_eq!(
        answer["changes"][1]["fields"],
        json!([{"path": "spec.replicas", "old": 1, "new": 2}])
    );
    assert_eq!(answer["changes"][1]["time"], "2027-01-15T08:00:00Z");
    let newest = send("GET", &format!("{HISTORY}?limit=1"), "", json!(null)).await;
    assert_eq!(newest["omitted"], 2);
    assert_eq!(newest["changes"], json!([answer["changes"][2]]));
    // Nobody without a token learns anything.
    api.get(HISTORY).await.expect(401);
}

#[tokio::test]
async fn undo_is_a_change_of_its_own() {
    let (api, ids) = scaled().await;
    let done = undo(&api, HISTORY, &ids[0]).await.expect(200).json();
    assert_eq!(done["result"], "undone");
    assert_eq!(
        done["fields"],
        json!([{"path": "spec.replicas", "old": 3, "new": 1}])
    );
    assert_eq!(api.get(WEB).await.json()["spec"]["replicas"], 1);
    let after = changes(&api, HISTORY).await;
    assert_eq!(after.len(), 4);
    assert_eq!(after[3]["manager"], "psctl");
    assert_eq!(after[3]["through"], "api");
    assert_eq!(after[3]["fields"], done["fields"]);
    // Once more: nothing to do, and no change.
    let again = undo(&api, HISTORY, &ids[0]).await.expect(200).json();
    assert_eq!(
        (again["result"].as_str(), paths(&again)),
        (Some("unchanged"), vec![])
    );
    assert_eq!(changes(&api, HISTORY).await.len(), 4);
    // An undo can be undone.
    undo(&api, HISTORY, &ids[2]).await.expect(200);
    assert_eq!(api.get(WEB).await.json()["spec"]["replicas"], 3);
}

#[tokio::test]
async fn a_dry_undo_says_what_it_would_do() {
    let (api, ids) = scaled().await;
    let path = format!("{HISTORY}?dryRun=All");
    let told = api.post(&path, json!({"to": ids[1]})).await.expect(200).json();
    assert_eq!(
        (told["result"].as_str(), told["dryRun"].as_bool()),
        (Some("undone"), Some(true))
    );
    assert_eq!(
        told["fields"],
        json!([{"path": "spec.replicas", "old": 3, "new": 2}])
    );
    assert_eq!(changes(&api, HISTORY).await.len(), 3);
    assert_eq!(api.get(WEB).await.json()["spec"]["replicas"], 3);
}

#[tokio::test]
async fn undo_leaves_to_the_system_what_is_the_systems() {
    let (api, ids) = scaled().await;
    let meanwhile = json!({
        "metadata": {
            "annotations": {"deployment.kubernetes.io/revision": "7", "mine": "x"},
            "finalizers": ["example.org/hold"],
        },
        "spec": {"template": {"spec": {"containers": [{"name": "log", "image": "log:1"}]}}},
    });
    api.patch(WEB, "strategic-merge", meanwhile).await.expect(200);
    api.patch(
        &format!("{WEB}/status"),
        "merge",
        json!({"status": {"observedGeneration": 4}}),
    )
    .await
    .expect(200);
    let before = api.get(WEB).await.json();
    undo(&api, HISTORY, &ids[0]).await.expect(200);
    let after = api.get(WEB).await.json();
    for kept in [
        "/metadata/uid",
        "/metadata/creationTimestamp",
        "/metadata/finalizers",
        "/status",
    ] {
        assert_eq!(after.pointer(kept), before.pointer(kept), "{kept}");
    }
    assert_eq!(
        after["metadata"]["annotations"],
        json!({"deployment.kubernetes.io/revision": "7"})
    );
    let containers = after["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    assert_eq!((containers.len(), &containers[0]["name"]), (1, &json!("web")));
}

#[tokio::test]
async fn what_is_not_valid_any_more_does_not_come_back() {
    let api = Api::open().await;
    let key = ObjectKey::new(Kind::Deployment, "default", "web");
    let mut bad = Object::from_value(deployment("web", -1)).unwrap();
    bad.set(&["metadata", "namespace"], "default");
    let author = api.state.author("test", "");
    api.state.store.create(bad, author.clone()).await.unwrap();
    let fixed: Result<_, WriteError> = api
        .state
        .store
        .update(&key, &Precondition::default(), author, |object| {
            let mut object = object.clone();
            object.set(&["spec", "replicas"], 1);
            Ok(object)
        })
        .await;
    fixed.unwrap();
    let first = changes(&api, HISTORY).await[0]["change"].clone();
    let refused = undo(&api, HISTORY, &first).await.expect(422).json();
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.replicas");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("nothing was changed") && message.contains("spec.replicas: Invalid value: -1"),
        "{message}"
    );
    assert_eq!(changes(&api, HISTORY).await.len(), 2);
}

#[tokio::test]
async fn a_pod_stays_where_it_was_put() {
    let api = Api::open().await;
    let path = "/api/v1/namespaces/default/pods/a";
    api.post("/api/v1/namespaces/default/pods", pod("a"))
        .await
        .expect(201);
    let placed = json!({
        "metadata": {"labels": {"x": "y"}, "annotations": {"podman-swarm.io/member": "m"}},
        "spec": {"nodeName": "n1"},
    });
    api.patch(path, "merge", placed).await.expect(200);
    let history = "/api/v1/history/po/default/a";
    let first = changes(&api, history).await[0]["change"].clone();
    let done = undo(&api, history, &first).await.expect(200).json();
    assert_eq!(paths(&done), ["metadata.labels.x"]);
    assert_eq!(api.get(path).await.json()["spec"]["nodeName"], "n1");
}

#[tokio::test]
async fn differences_between_changes() {
    let (api, ids) = scaled().await;
    let diff = async |query: &str| {
        api.get(&format!("{HISTORY}/diff?{query}"))
            .await
            .expect(200)
            .json()
    };
    let newest = diff("").await;
    assert_eq!(
        newest["fields"],
        json!([{"path": "spec.replicas", "old": 2, "new": 3}])
    );
    assert_eq!(
        (&newest["from"], &newest["to"]),
        (&json!([ids[1]]), &json!([ids[2]]))
    );
    let (first, last) = (ids[0].as_str().unwrap(), ids[2].as_str().unwrap());
    let whole = diff(&format!("from={last}&to={first}")).await;
    assert_eq!(
        whole["fields"],
        json!([{"path": "spec.replicas", "old": 3, "new": 1}])
    );
    assert_eq!(
        diff(&format!("from={first}&to={first}")).await["fields"],
        json!([])
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_with_what_to_do() {
    let (api, ids) = scaled().await;
    let message = async |path: &str, code: u16| {
        let status = api.get(path).await.expect(code).json();
        status["message"].as_str().unwrap().to_owned()
    };
    for (path, code, said) in [
        ("/api/v1/history/widgets/default/web", 400, "no kind \"widgets\""),
        ("/api/v1/history/events/default/web", 400, "no kind \"events\""),
        ("/api/v1/history/deployments/_/web", 400, "name one instead of _"),
        (
            "/api/v1/history/namespaces/default/default",
            400,
            "write _ for it",
        ),
        (
            "/api/v1/history/deploy/default/none",
            404,
            "goes with it when it is deleted",
        ),
        (
            "/api/v1/history/deploy/default/web?limit=x",
            400,
            "parameter limit",
        ),
        (
            "/api/v1/history/deploy/default/web/diff?to=zz",
            404,
            "has no change \"zz\"",
        ),
    ] {
        let told = message(path, code).await;
        assert!(told.contains(said), "{path}: {told}");
    }
    undo(&api, HISTORY, &json!("zz")).await.expect(404);
    undo(&api, HISTORY, &json!("")).await.expect(404);
    api.post(HISTORY, json!({})).await.expect(400);
    api.post(HISTORY, json!({"to": ids[0], "form": 1}))
        .await
        .expect(400);
    api.delete(WEB).await.expect(200);
    api.get(HISTORY).await.expect(404);
    undo(&api, HISTORY, &ids[0]).await.expect(404);
}

#[tokio::test]
async fn what_users_wrote_beside_a_computed_object_has_a_history() {
    let api = Api::open().await;
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let mut node = Object::new(&key);
    node.set(&["metadata", "labels"], json!({"kubernetes.io/hostname": "n1"}));
    node.set(&["status"], json!({"capacity": {"cpu": "2"}}));
    api.state.store.project(&key, Some(node));
    let history = "/api/v1/history/nodes/_/n1";
    let told = api.get(history).await.expect(404).json();
    assert!(
        told["message"].as_str().unwrap().contains("it is computed"),
        "{told}"
    );
    let patch = async |body: Value| api.patch("/api/v1/nodes/n1", "merge", body).await.expect(200);
    patch(json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    patch(json!({"spec": {"unschedulable": true}})).await;
    let ids = changes(&api, history).await;
    undo(&api, history, &ids[0]["change"]).await.expect(200);
    let node = api.get("/api/v1/nodes/n1").await.json();
    assert_eq!(node["spec"].get("unschedulable"), None, "{node}");
    assert_eq!(node["metadata"]["labels"]["disk"], "ssd");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
}

#[tokio::test]
async fn nodes_are_named_also_when_they_are_silent() {
    let api = Api::open().await;
    assert_eq!(api.state.node_name(&api.state.node), "n1");
    let silent = NodeId("5".repeat(64));
    assert_eq!(api.state.node_name(&silent), "5".repeat(12));
    let mut member = Object::new(&ObjectKey::cluster(Kind::Member, &silent.0));
    member.set(&["spec", "name"], "far");
    api.state
        .store
        .create(member, api.state.author("test", ""))
        .await
        .unwrap();
    assert_eq!(api.state.node_name(&silent), "far");
}
