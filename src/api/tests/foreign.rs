//! Versions that another node gave.

use std::sync::Arc;

use axum::body::Body;
use reconcilers::ports::{Cluster, Liveness};
use schemas::{Kind, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Answer, Api, deployment, pod};
use super::streams::is_gone;
use crate::api::create_token;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const SCALE: &str = "/apis/apps/v1/namespaces/default/deployments/web/scale";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Two nodes that know each other. Sync is not a part of this: what is made on one is there alone.
async fn two() -> (Api, Api) {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    (here, there)
}

/// Makes an object on a node that asks for tokens.
async fn create(api: &Api, object: Value) -> Value {
    let object = schemas::Object::from_value(object).unwrap();
    let mut named = object.clone();
    named.set(&["metadata", "namespace"], "default");
    let key = named.key().unwrap();
    let author = api.state.author("test", "");
    api.state.store.create(named, author).await.unwrap();
    shown(api, &key)
}

fn shown(api: &Api, key: &ObjectKey) -> Value {
    let view = api.state.store.get(key).unwrap();
    Value::Object(view.object.0.clone())
}

fn web() -> ObjectKey {
    ObjectKey::new(Kind::Deployment, "default", "web")
}

fn version(value: &Value) -> &str {
    value["metadata"]["resourceVersion"].as_str().unwrap()
}

fn relayed(api: &Api) -> usize {
    api.peers.sent.lock().unwrap().len()
}

fn change_cluster(api: &Api, change: impl Fn(&mut Cluster)) {
    api.cluster.send_modify(|cluster| change(Arc::make_mut(cluster)));
}

#[tokio::test]
async fn a_write_on_the_version_of_another_node_is_made_there() {
    let (here, there) = two().await;
    let mut object = create(&there, deployment("web", 1)).await;
    object["spec"]["replicas"] = 2.into();
    let changed = here.put(WEB, object.clone()).await.expect(200).json();
    assert_eq!(shown(&there, &web())["spec"]["replicas"], 2);
    assert_eq!(version(&changed), version(&shown(&there, &web())));
    // It is compared there.
    let refused = here.put(WEB, object).await.expect(409);
    assert!(refused.text.contains("has been modified"), "{}", refused.text);

    let path = "/metadata/resourceVersion";
    let old = version(&changed).to_owned();
    let now = || version(&shown(&there, &web())).to_owned();
    let merge = |version: String, value: i64| json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": value}});
    here.patch(WEB, "merge", merge(now(), 3)).await.expect(200);
    here.patch(WEB, "strategic-merge", merge(now(), 4))
        .await
        .expect(200);
    let replace = json!({"op": "replace", "path": "/spec/replicas", "value": 5});
    for op in ["test", "replace"] {
        let patch = json!([{"op": op, "path": path, "value": now()}, replace]);
        here.patch(WEB, "json", patch).await.expect(200);
    }
    let mut applied = deployment("web", 6);
    applied["metadata"]["resourceVersion"] = now().into();
    let path = format!("{WEB}?fieldManager=test&force=true");
    here.apply(&path, applied).await.expect(200);
    assert_eq!(shown(&there, &web())["spec"]["replicas"], 6);
    here.patch(SCALE, "merge", merge(now(), 7)).await.expect(200);
    here.put(SCALE, merge(now(), 8)).await.expect(200);
    assert_eq!(shown(&there, &web())["spec"]["replicas"], 8);

    let delete = async |version: String| {
        let options = json!({"preconditions": {"resourceVersion": version}}).to_string();
        here.call("DELETE", WEB, &[], options).await
    };
    delete(old).await.expect(409);
    delete(now()).await.expect(200);
    assert!(there.state.store.get(&web()).is_none());
}

#[tokio::test]
async fn a_relayed_write_is_by_the_user_and_program_that_asked() {
    let (here, there) = (Api::named("n1", true).await, Api::named("n2", true).await);
    here.join(&there);
    let mut object = create(&there, deployment("web", 1)).await;
    object["spec"]["replicas"] = 2.into();
    let put = async |token: &str| -> Answer {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("content-type", "application/json"),
            ("user-agent", "tester/1.0"),
            ("authorization", &bearer),
            ("x-podman-swarm-user", "somebody else"),
        ];
        here.call("PUT", WEB, &headers, object.to_string()).await
    };
    // Who proves nothing where he asks is not heard anywhere.
    put("wrong").await.expect(401);
    assert_eq!(relayed(&here), 0);
    let (token, secret) = create_token("Zoë", None);
    let author = here.state.author("test", "");
    here.state.store.create(token, author).await.unwrap();
    put(&secret).await.expect(200);
    {
        let sent = here.peers.sent.lock().unwrap();
        let [(method, headers)] = sent.as_slice() else {
            panic!("{sent:?}")
        };
        assert_eq!(method, "PUT");
        assert_eq!(headers["x-podman-swarm-user"].as_bytes(), "Zoë".as_bytes());
        assert_eq!(headers["user-agent"], "tester/1.0");
        assert_eq!(headers.get("authorization"), None);
    }
    // The fields that it changed are its program's.
    let applied = schemas::Object::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"}, "spec": {"replicas": 9},
    }));
    let other = there.state.author("other", "");
    let refused = there.state.store.apply(applied.unwrap(), other, false).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("spec.replicas (tester)"), "{refused}");
}

#[tokio::test]
async fn a_version_whose_node_does_not_answer_is_a_conflict_that_says_so() {
    let (here, there) = two().await;
    let local = here
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    let object = create(&there, deployment("web", 1)).await;
    let refused = async |why: &str| {
        let answer = here.put(WEB, object.clone()).await.expect(409);
        assert_eq!(answer.json()["reason"], "Conflict");
        assert!(answer.text.contains(why), "{}", answer.text);
    };
    // It is there for gossip, and cannot be reached.
    here.peers.forget(&there);
    refused("given by node n2: node").await;
    for liveness in [Liveness::Dead, Liveness::AgentDown, Liveness::Stopped] {
        change_cluster(&here, |cluster| {
            let node = cluster.nodes.get_mut(&there.state.node).unwrap();
            Arc::make_mut(node).liveness = liveness;
        });
        refused("node n2, which is not reachable").await;
    }
    change_cluster(&here, |cluster| {
        cluster.nodes.remove(&there.state.node);
    });
    refused("a node that is not known here").await;
    assert_eq!(relayed(&here), 1);
    assert_eq!(version(&shown(&here, &web())), version(&local));
}

#[tokio::test]
async fn a_relayed_request_is_not_relayed_again() {
    let (here, there) = two().await;
    there.join(&here);
    here.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let mut object = create(&there, deployment("web", 1)).await;
    // A version that each of them takes to be the other's.
    let own = [&here, &there].map(|api| api.state.store.revision().tag());
    let tag = (1..=3).find(|tag| !own.contains(tag)).unwrap();
    for (one, another) in [(&here, &there), (&there, &here)] {
        change_cluster(one, |cluster| {
            let node = cluster.nodes.get_mut(&another.state.node).unwrap();
            Arc::make_mut(node).facts.revision_tag = Some(tag);
        });
    }
    object["metadata"]["resourceVersion"] = (5u64 << 16 | u64::from(tag)).to_string().into();
    let refused = here.put(WEB, object).await.expect(409);
    assert!(
        refused.text.contains("another node than this one"),
        "{}",
        refused.text
    );
    assert_eq!((relayed(&here), relayed(&there)), (1, 0));
}

#[tokio::test]
async fn lists_and_watches_at_the_version_of_another_node() {
    let (here, there) = two().await;
    here.post(PODS, pod("here")).await.expect(201);
    for name in ["a", "b", "c"] {
        create(&there, pod(name)).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    // The second page of a list that began there.
    let revision = there.state.store.revision();
    let first = here
        .get(&format!("{PODS}?limit=1&resourceVersion={revision}"))
        .await;
    let first = first.expect(200).json();
    assert_eq!(names(&first), ["a"]);
    create(&there, pod("bb")).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let second = format!("{PODS}?limit=5&continue={token}");
    assert_eq!(names(&here.get(&second).await.expect(200).json()), ["b", "c"]);
    let not_older = format!("{PODS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan");
    assert_eq!(
        names(&here.get(&not_older).await.expect(200).json()),
        ["a", "b", "bb", "c"]
    );
    let watch = format!("{PODS}?watch=1&resourceVersion={revision}");
    is_gone(&here, &watch).await;
    let initial = format!("{watch}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    is_gone(&here, &initial).await;

    change_cluster(&here, |cluster| {
        cluster.nodes.remove(&there.state.node);
    });
    here.get(&not_older).await.expect(410);
    let gone = here.get(&second).await.expect(410).json();
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let rest = here
        .get(&format!("{PODS}?continue={token}"))
        .await
        .expect(200)
        .json();
    assert_eq!(names(&rest), ["here"]);
    // What hangs on no version is answered here.
    let head = here.call("GET", PODS, &[], Body::empty()).await.expect(200);
    assert_eq!(names(&head.json()), ["here"]);
}
