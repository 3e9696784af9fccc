//! What nodes and pods use, asked of one node about two, through the router and by kubectl.

use std::time::Duration;

use http::Method;
use reconcilers::ports::{Container, ContainerId, ContainerState, Liveness, labels};
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::fixture::{Api, pod};
use super::kubectl::{Session, contains};
use crate::api::resources::LOCAL_ONLY;

const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
const PODS: &str = "/apis/metrics.k8s.io/v1beta1/pods";
const POD: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/web";
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");

/// Makes the pods `web` on n1 and `far` on n2, of two containers each, known to both; and `new`, of which nothing runs.
async fn two_nodes(auth_required: bool) -> [Api; 2] {
    let nodes = [
        Api::named("n1", auth_required).await,
        Api::named("n2", false).await,
    ];
    nodes[0].join(&nodes[1]);
    for api in &nodes {
        for (name, node) in [("web", "n1"), ("far", "n2"), ("new", "n1")] {
            let mut made = pod(name);
            made["metadata"]["namespace"] = "default".into();
            made["spec"]["nodeName"] = node.into();
            let made = Object::from_value(made).unwrap();
            let author = api.state.author("test", "");
            let view = api.state.store.create(made, author).await.unwrap();
            if api.state.node_name(&api.state.node) == node && name != "new" {
                for container in ["one", "two"] {
                    run(api, &view.object, container);
                }
            }
        }
        for name in ["n1", "n2"] {
            let key = ObjectKey::cluster(Kind::Node, name);
            let mut node = Object::new(&key);
            node.set(&["metadata", "labels"], json!({"host": name}));
            let resources = json!({"cpu": "2", "memory": "48Mi"});
            node.set(
                &["status"],
                json!({"capacity": resources, "allocatable": resources}),
            );
            api.state.store.project(&key, Some(node));
        }
    }
    nodes
}

fn run(api: &Api, pod: &Object, name: &str) {
    let pairs = [
        (labels::POD_NAMESPACE, pod.namespace()),
        (labels::POD_NAME, pod.name()),
        (labels::POD_UID, pod.uid()),
        (labels::CONTAINER_NAME, name),
    ];
    let container = Container {
        id: ContainerId(format!("{}-{name}", pod.name())),
        name: name.to_owned(),
        image: String::new(),
        image_id: String::new(),
        labels: pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        state: ContainerState::Running {
            pid: 1,
            started_unix_seconds: 0,
        },
    };
    api.containers.0.lock().unwrap().push((container, ""));
}

/// Shows a node dead, to the other.
fn lose(nodes: &[Api; 2], lost: usize) {
    let id = &nodes[lost].state.node;
    nodes[1 - lost].cluster.send_modify(|cluster| {
        let mut changed = (**cluster).clone();
        let mut node = (*changed.nodes[id]).clone();
        node.liveness = Liveness::Dead;
        changed.nodes.insert(id.clone(), node.into());
        *cluster = changed.into();
    });
}

async fn names(api: &Api, path: &str) -> Vec<String> {
    let list = api.get(path).await.expect(200).json();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn each_node_tells_of_all_nodes_and_all_pods_that_run() {
    let nodes = two_nodes(false).await;
    for api in &nodes {
        assert_eq!(names(api, NODES).await, ["n1", "n2"]);
        assert_eq!(names(api, PODS).await, ["far", "web"]);
    }
    let api = &nodes[0];
    let list = api.get(PODS).await.json();
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PodMetricsList"), &json!("metrics.k8s.io/v1beta1"))
    );
    let mut one = api.get(POD).await.expect(200).json();
    assert_eq!(
        (&one["kind"], &one["apiVersion"]),
        (&json!("PodMetrics"), &json!("metrics.k8s.io/v1beta1"))
    );
    assert_eq!(one["metadata"]["namespace"], "default");
    assert_eq!(one["metadata"]["labels"], json!({"app": "web"}));
    let usage = json!({"cpu": "500m", "memory": "24Mi"});
    let containers = json!([{"name": "one", "usage": usage}, {"name": "two", "usage": usage}]);
    assert_eq!(one["containers"].take(), containers);
    let window = schemas::time::parse_duration(one["window"].as_str().unwrap()).unwrap();
    assert!(
        (Duration::from_millis(990)..Duration::from_secs(20)).contains(&window),
        "{one}"
    );
    assert!(
        schemas::time::from_rfc3339(one["timestamp"].as_str().unwrap()).is_some(),
        "{one}"
    );
    let node = api.get(&format!("{NODES}/n2")).await.expect(200).json();
    assert_eq!(
        (&node["kind"], &node["usage"]["memory"]),
        (&json!("NodeMetrics"), &json!("24Mi"))
    );
    assert_eq!(node["metadata"]["labels"], json!({"host": "n2"}));
}

#[tokio::test]
async fn metrics_are_selected_by_label_name_and_namespace() {
    let [api, _other] = two_nodes(false).await;
    for (path, query, expected) in [
        (PODS, "labelSelector=app%3Dfar", &["far"][..]),
        (PODS, "labelSelector=app+in+(far,web)", &["far", "web"]),
        (PODS, "fieldSelector=metadata.name%3Dweb", &["web"]),
        (PODS, "fieldSelector=metadata.namespace!%3Ddefault", &[]),
        (NODES, "labelSelector=host%3Dn2", &["n2"]),
        (NODES, "fieldSelector=metadata.name!%3Dn2", &["n1"]),
    ] {
        assert_eq!(names(&api, &format!("{path}?{query}")).await, expected, "{query}");
    }
    let here = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
    assert_eq!(names(&api, here).await, ["far", "web"]);
    let elsewhere = "/apis/metrics.k8s.io/v1beta1/namespaces/kube-system/pods";
    assert_eq!(names(&api, elsewhere).await, [""; 0]);
    let refused = api
        .get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1"))
        .await
        .expect(400);
    assert!(refused.text.contains("spec.nodeName"), "{}", refused.text);
}

#[tokio::test]
async fn what_is_not_measured_is_not_found_and_nothing_is_watched_or_written() {
    let [api, _other] = two_nodes(false).await;
    let pods = |name: &str| format!("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/{name}");
    for (path, message) in [
        (
            pods("none"),
            "podmetrics.metrics.k8s.io \"default/none\" not found",
        ),
        (pods("new"), "podmetrics.metrics.k8s.io \"default/new\" not found"),
        (
            format!("{NODES}/none"),
            "nodemetrics.metrics.k8s.io \"none\" not found",
        ),
    ] {
        let status = api.get(&path).await.expect(404).json();
        assert_eq!(
            (&status["message"], &status["reason"]),
            (&json!(message), &json!("NotFound"))
        );
    }
    let refused = api.get(&format!("{PODS}?watch=true")).await.expect(405).json();
    assert_eq!(
        refused["message"],
        "watch is not supported on resources of kind \"pods.metrics.k8s.io\""
    );
    api.post(PODS, json!({})).await.expect(405);
    api.delete(POD).await.expect(405);
    for path in [
        "/apis/metrics.k8s.io/v1/pods",
        "/apis/metrics.k8s.io/v1beta1/services",
        "/apis/metrics.k8s.io/v1beta1/pods/web",
    ] {
        api.get(path).await.expect(404);
    }
}

#[tokio::test]
async fn a_node_that_is_away_is_left_out_and_one_that_does_not_answer_is_told_of() {
    let nodes = two_nodes(false).await;
    let [api, other] = &nodes;
    let far = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/far";
    api.get(far).await.expect(200);

    api.peers.forget(other);
    let list = api.get(PODS).await.expect(200);
    assert_eq!(list.warnings().len(), 1, "{:?}", list.warnings());
    assert!(
        list.warnings()[0].contains("metrics of node n2 are missing"),
        "{:?}",
        list.warnings()
    );
    assert_eq!(names(api, PODS).await, ["web"]);
    api.get(far).await.expect(503);

    lose(&nodes, 1);
    let list = api.get(NODES).await.expect(200);
    assert!(list.warnings().is_empty());
    assert_eq!(names(api, NODES).await, ["n1"]);
    api.get(far).await.expect(404);
}

#[tokio::test]
async fn others_are_asked_once_and_for_themselves_alone() {
    let [api, _other] = two_nodes(false).await;
    api.get(PODS).await.expect(200);
    {
        let sent = api.peers.sent.lock().unwrap();
        let [(Method::GET, headers)] = sent.as_slice() else {
            panic!("{sent:?}");
        };
        assert!(headers.contains_key(LOCAL_ONLY));
    }
    let alone = api.call("GET", PODS, &[(LOCAL_ONLY, "true")], "").await.json();
    assert_eq!(alone["items"].as_array().unwrap().len(), 1);
    assert_eq!(api.peers.sent.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn tables_have_the_columns_of_metrics_server() {
    let [api, _other] = two_nodes(false).await;
    let table = api.call("GET", PODS, &[TABLE], "").await.expect(200).json();
    let columns: Vec<&Value> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["name"])
        .collect();
    assert_eq!(columns, ["Name", "cpu", "memory", "Window"]);
    let cells = &table["rows"][1]["cells"];
    assert_eq!(
        (&cells[0], &cells[1], &cells[2]),
        (&json!("web"), &json!("1"), &json!("48Mi"))
    );
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn a_group_of_another_version_is_discovered_in_both_forms() {
    let api = Api::open().await;
    let version = json!({"groupVersion": "metrics.k8s.io/v1beta1", "version": "v1beta1"});
    let group = api.get("/apis/metrics.k8s.io").await.expect(200).json();
    assert_eq!(group["preferredVersion"], version);
    let groups = api.get("/apis").await.json();
    let last = groups["groups"].as_array().unwrap().last().unwrap();
    assert_eq!(last["name"], "metrics.k8s.io");
    assert_eq!(last["versions"], json!([version]));
    for path in ["/apis/metrics.k8s.io/v1beta1", "/apis/metrics.k8s.io/v1beta1/"] {
        let list = api.get(path).await.expect(200).json();
        assert_eq!(list["groupVersion"], "metrics.k8s.io/v1beta1");
        let kinds: Vec<&Value> = list["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["kind"])
            .collect();
        assert_eq!(kinds, ["NodeMetrics", "PodMetrics"]);
        assert_eq!(list["resources"][1]["verbs"], json!(["get", "list"]));
    }
    api.get("/apis/metrics.k8s.io/v1").await.expect(404);
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = api.call("GET", "/apis", &[("accept", accept)], "").await.json();
    let versions = &all["items"].as_array().unwrap().last().unwrap()["versions"];
    assert_eq!(versions[0]["version"], "v1beta1");
    let pods = &versions[0]["resources"][1];
    assert_eq!(
        (&pods["resource"], &pods["scope"], &pods["responseKind"]),
        (
            &json!("pods"),
            &json!("Namespaced"),
            &json!({"group": "metrics.k8s.io", "version": "v1beta1", "kind": "PodMetrics"})
        )
    );
    let document = api
        .get("/openapi/v3/apis/metrics.k8s.io/v1beta1")
        .await
        .expect(200)
        .json();
    let path = "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/{name}";
    assert_eq!(document["paths"][path]["get"]["x-kubernetes-action"], "get");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_top_shows_nodes_pods_and_containers() {
    let [api, _other] = two_nodes(true).await;
    let Some(session) = Session::over(api).await else {
        return;
    };
    for kubectl in session.all() {
        let nodes = kubectl.ok("top node").await;
        contains(&nodes, &["CPU(cores)", "n1     500m", "25%", "24Mi", "50%", "n2"]);
        contains(&kubectl.ok("top node n2").await, &["n2     500m"]);
        let pods = kubectl.ok("top pod").await;
        contains(
            &pods,
            &["NAME   CPU(cores)", "far    1000m        48Mi", "web    1000m"],
        );
        contains(
            &kubectl.ok("top pod -A --sum").await,
            &["NAMESPACE", "default", "2000m", "96Mi"],
        );
        let containers = kubectl.ok("top pod web --containers").await;
        contains(
            &containers,
            &[
                "POD   NAME",
                "web   one    500m",
                "web   two    500m         24Mi",
            ],
        );
        let selected = kubectl.ok("top pod -l app=far --sort-by=cpu --no-headers").await;
        assert!(
            selected.starts_with("far") && selected.lines().count() == 1,
            "{selected}"
        );
        contains(
            &kubectl.fails("top pod none").await,
            &["podmetrics.metrics.k8s.io \"default/none\" not found"],
        );
        contains(
            &kubectl.ok("get podmetrics -A").await,
            &[
                "NAMESPACE   NAME   CPU   MEMORY   WINDOW",
                "default     web    1     48Mi",
            ],
        );
        contains(&kubectl.ok("get nodemetrics n2").await, &["n2     500m   24Mi"]);
        contains(
            &kubectl.ok("get podmetrics web -o yaml").await,
            &["kind: PodMetrics", "cpu: 500m"],
        );
        contains(&kubectl.fails("get podmetrics -w").await, &["MethodNotAllowed"]);
        contains(
            &kubectl.ok("api-resources --api-group=metrics.k8s.io").await,
            &["NodeMetrics", "metrics.k8s.io/v1beta1"],
        );
        contains(&kubectl.ok("get pods web").await, &["READY   STATUS"]);
        contains(
            &kubectl.ok(&format!("get --raw {NODES}")).await,
            &["NodeMetricsList"],
        );
    }
}
