//! Nodes: who may be removed from afar, what goes with a node, and what one answers whose disk takes no writes.

use schemas::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{MemoryDisk, NodeId};

use super::fixture::{Api, cluster_of, deployment};
use crate::api::{create_token, delete_if, knows_token};

const N1: &str = "/api/v1/nodes/n1";
const N2: &str = "/api/v1/nodes/n2";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Admits a node as the peer port does, and shows it as the controller of nodes does.
async fn admit(api: &Api, id: &NodeId, name: &str) {
    let member = ObjectKey::cluster(Kind::Member, &id.0);
    let mut admitted = Object::new(&member);
    admitted.set(&["spec", "name"], name);
    let author = api.state.author("test", "");
    api.state.store.create(admitted, author).await.unwrap();
    let node = ObjectKey::cluster(Kind::Node, name);
    api.state.store.project(&node, Some(Object::new(&node)));
}

fn is_admitted(api: &Api, id: &NodeId) -> bool {
    let member = ObjectKey::cluster(Kind::Member, &id.0);
    api.state.store.get(&member).is_some()
}

fn id(name: &str) -> NodeId {
    NodeId(format!("{name:0<64}"))
}

/// Shows these nodes alive, and no others.
fn alive(api: &Api, names: &[&str]) {
    let revision = api.state.store.revision();
    let nodes = names.iter().map(|name| (id(name), *name, revision));
    let nodes: Vec<_> = nodes.collect();
    api.cluster
        .send_replace(cluster_of(&api.state.node, &nodes).into());
}

#[tokio::test]
async fn a_node_whose_agent_runs_is_removed_only_by_force_and_the_one_that_answers_never() {
    let api = Api::open().await;
    for name in ["n1", "n2"] {
        admit(&api, &id(name), name).await;
    }
    alive(&api, &["n1", "n2"]);
    let refused = api.delete(N2).await.expect(409).json();
    let message = refused["message"].as_str().unwrap().to_owned();
    for word in ["\"n2\"", "running", "podman-swarm-agent leave", "--force"] {
        assert!(message.contains(word), "{message}");
    }
    for path in [N1.to_owned(), format!("{N1}?force=true")] {
        let refused = api.delete(&path).await.expect(409);
        assert!(refused.text.contains("the node that answers"), "{}", refused.text);
    }
    api.delete(&format!("{N2}?force=true&dryRun=All"))
        .await
        .expect(200);
    assert!(is_admitted(&api, &id("n2")), "a dry run");
    api.delete(&format!("{N2}?force=true")).await.expect(200);
    assert!(!is_admitted(&api, &id("n2")));
    assert!(is_admitted(&api, &id("n1")));
    // The native way to delete keeps to the same rules.
    api.delete("/api/v1/manifests/n1?kind=node").await.expect(409);
}

#[tokio::test]
async fn what_the_cluster_keeps_for_a_node_goes_with_it() {
    let api = Api::open().await;
    for name in ["n1", "n2"] {
        admit(&api, &id(name), name).await;
    }
    let author = api.state.author("test", "");
    let mut secrets = Vec::new();
    for name in ["node-n2", "node-n1"] {
        let (token, secret) = create_token(name, None);
        api.state.store.create(token, author.clone()).await.unwrap();
        secrets.push(secret);
    }
    let cordon = json!({"spec": {"unschedulable": true}});
    api.patch(N2, "merge", cordon).await.expect(200);

    let other = json!({"preconditions": {"uid": "another"}});
    api.call(
        "DELETE",
        N2,
        &[("content-type", "application/json")],
        other.to_string(),
    )
    .await
    .expect(409);
    api.delete(N2).await.expect(200);
    assert!(!is_admitted(&api, &id("n2")));
    let known = |secret: &String| knows_token(&api.state.store, secret, super::fixture::NOW);
    assert_eq!(secrets.iter().map(known).collect::<Vec<_>>(), [false, true]);
    // Its controller takes away what it computed of it; nothing that a user said is left to be shown.
    api.state
        .store
        .project(&ObjectKey::cluster(Kind::Node, "n2"), None);
    api.get(N2).await.expect(404);
    api.delete(N2).await.expect(404);
}

#[tokio::test]
async fn of_two_nodes_with_one_name_an_id_says_which() {
    let api = Api::open().await;
    let (one, other) = (NodeId("1".repeat(64)), NodeId("2".repeat(64)));
    for id in [&one, &other] {
        admit(&api, id, "n2").await;
    }
    let refused = api.delete(N2).await.expect(409);
    assert!(
        refused.text.contains(&one.0) && refused.text.contains(&other.0),
        "{}",
        refused.text
    );
    api.delete(&format!("/api/v1/nodes/{other}")).await.expect(200);
    assert!(is_admitted(&api, &one) && !is_admitted(&api, &other));
    api.delete(N2).await.expect(200);
}

#[tokio::test]
async fn what_git_applied_to_a_node_can_be_taken_back() {
    let api = Api::open().await;
    admit(&api, &id("n1"), "n1").await;
    let cordon = json!({"spec": {"unschedulable": true}});
    api.patch(N1, "merge", cordon).await.expect(200);
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let uid = api.state.store.get(&key).unwrap().object.uid().to_owned();
    let author = api.state.author("test", "");
    delete_if(&api.state, &key, &uid, author).await.unwrap();
    assert_eq!(api.get(N1).await.json().pointer("/spec/unschedulable"), None);
    assert!(is_admitted(&api, &id("n1")));
}

#[tokio::test]
async fn a_node_that_takes_no_writes_says_why_and_is_not_ready() {
    let disk = MemoryDisk::default();
    let api = Api::on(disk.clone()).await;
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);

    disk.set_full(true);
    let refused = api.post(DEPLOYMENTS, deployment("db", 1)).await.expect(507);
    assert_eq!(
        refused.headers.get("retry-after"),
        None,
        "kubectl would wait for it"
    );
    let status = refused.json();
    assert_eq!(status["kind"], "Status");
    assert_eq!(status["reason"], "InsufficientStorage");
    let message = status["message"].as_str().unwrap();
    for words in [
        "the disk of memory is full",
        "MiB are free",
        "needed",
        "without a restart",
    ] {
        assert!(message.contains(words), "{message}");
    }
    api.get(&format!("{DEPLOYMENTS}/web")).await.expect(200);
    let health = api.get("/api/v1/health").await.expect(503).json();
    assert_eq!(health["status"], "full");
    assert!(api.get("/readyz").await.expect(503).text.contains("is full"));
    api.get("/livez").await.expect(200);

    disk.set_full(false);
    api.post(DEPLOYMENTS, deployment("db", 1)).await.expect(201);
    assert_eq!(api.get("/api/v1/health").await.expect(200).json()["status"], "ok");

    disk.set_failing(true);
    api.post(DEPLOYMENTS, deployment("late", 1)).await.expect(503);
    disk.set_failing(false);
    let health = api.get("/api/v1/health").await.expect(503).json();
    assert_eq!(health["status"], "failed");
    assert!(
        health["missing"][0].as_str().unwrap().contains("takes no writes"),
        "{health}"
    );
    api.get(&format!("{DEPLOYMENTS}/db")).await.expect(200);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_not_made_again_before_it_is_deleted() {
    let disk = MemoryDisk::default();
    let api = Api::on(disk.clone()).await;
    let made = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    api.post(DEPLOYMENTS, deployment("db", 1)).await.expect(201);
    for lost in [
        ObjectKey::new(Kind::Deployment, "default", "web"),
        ObjectKey::cluster(Kind::Namespace, "kube-public"),
    ] {
        disk.damage(&format!("d/{lost}"));
    }

    // Its start makes the namespaces that every cluster has.
    let api = Api::on(disk.after_power_loss()).await;
    let health = api.get("/api/v1/health").await.expect(200).json();
    assert_eq!(health["unreadable_records"], 2);
    api.get(&format!("{DEPLOYMENTS}/db")).await.expect(200);
    api.get(&format!("{DEPLOYMENTS}/web")).await.expect(404);
    let refused = api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(503);
    for words in ["default/web", "cannot be read", "delete it to give it up"] {
        assert!(refused.text.contains(words), "{}", refused.text);
    }
    api.delete(&format!("{DEPLOYMENTS}/web?dryRun=All"))
        .await
        .expect(404);
    api.delete(&format!("{DEPLOYMENTS}/web")).await.expect(200);
    let again = api
        .post(DEPLOYMENTS, deployment("web", 1))
        .await
        .expect(201)
        .json();
    assert_ne!(again["metadata"]["uid"], made["metadata"]["uid"]);
    let health = api.get("/api/v1/health").await.expect(200).json();
    assert_eq!(health["unreadable_records"], 1);
}
