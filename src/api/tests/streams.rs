//! What streams: watches, logs, and events of several nodes.

use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use http::Request;
use reconcilers::ports::{Container, ContainerId, ContainerState, EventKind, EventRecord, EventSink, labels};
use schemas::{Kind, ObjectKey};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

use super::fixture::{Api, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
/// Far more than a change takes to arrive.
const DEADLINE: Duration = Duration::from_secs(10);

/// Reads a watch frame by frame.
pub(super) struct Frames {
    body: BodyDataStream,
    rest: Vec<u8>,
    ready: VecDeque<Value>,
}

impl Frames {
    pub(super) async fn open(api: &Api, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body().into_data_stream(),
            rest: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(DEADLINE, self.body.next())
                .await
                .expect("no frame in time")?;
            self.rest.extend_from_slice(&chunk.unwrap());
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                self.ready.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
    }

    /// The next frame as `TYPE name`.
    pub(super) async fn next_text(&mut self) -> String {
        let frame = self.next().await.expect("the watch ended");
        let name = frame["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", frame["type"].as_str().unwrap())
    }
}

/// A watch of this path begins, and its only event says that the version is gone.
pub(super) async fn is_gone(api: &Api, path: &str) {
    let mut watch = Frames::open(api, path, &[]).await;
    let error = watch.next().await.expect("an event");
    let seen = (&error["type"], &error["object"]["kind"], &error["object"]["code"]);
    assert_eq!(seen, (&"ERROR".into(), &"Status".into(), &410.into()), "{error}");
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_shows_each_change_after_a_list() {
    let api = Api::open().await;
    api.post(PODS, pod("before")).await.expect(201);
    let version = api.get(PODS).await.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut watch = Frames::open(&api, &format!("{PODS}?watch=1&resourceVersion={version}"), &[]).await;
    api.post(PODS, pod("web")).await.expect(201);
    assert_eq!(watch.next_text().await, "ADDED web");
    api.patch(
        &format!("{PODS}/web"),
        "merge",
        json!({"metadata": {"labels": {"x": "1"}}}),
    )
    .await
    .expect(200);
    let frame = watch.next().await.unwrap();
    assert_eq!(
        (&frame["type"], &frame["object"]["metadata"]["labels"]["x"]),
        (&"MODIFIED".into(), &"1".into())
    );
    api.delete(&format!("{PODS}/web")).await.expect(200);
    assert_eq!(watch.next_text().await, "DELETED web");
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let api = Api::open().await;
    api.post(PODS, pod("a")).await.expect(201);
    api.post(PODS, pod("b")).await.expect(201);
    let path = format!(
        "{PODS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = Frames::open(&api, &path, &[]).await;
    assert_eq!(watch.next_text().await, "ADDED a");
    assert_eq!(watch.next_text().await, "ADDED b");
    let end = watch.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn an_object_that_ceases_to_match_is_deleted_for_the_watcher() {
    let api = Api::open().await;
    api.post(PODS, pod("web")).await.expect(201);
    let mut watch = Frames::open(&api, &format!("{PODS}?watch=1&labelSelector=app=web"), &[]).await;
    assert_eq!(watch.next_text().await, "ADDED web");
    let path = format!("{PODS}/web");
    api.patch(&path, "merge", json!({"metadata": {"labels": {"app": "other"}}}))
        .await
        .expect(200);
    assert_eq!(watch.next_text().await, "DELETED web");
    api.patch(&path, "merge", json!({"metadata": {"labels": {"app": "web"}}}))
        .await
        .expect(200);
    assert_eq!(watch.next_text().await, "ADDED web");
}

#[tokio::test]
async fn a_watched_table_has_its_columns_once() {
    let api = Api::open().await;
    api.post(PODS, pod("a")).await.expect(201);
    api.post(PODS, pod("b")).await.expect(201);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let mut watch = Frames::open(&api, &format!("{PODS}?watch=1"), &table).await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout() {
    let api = Api::open().await;
    let mut watch = Frames::open(&api, &format!("{PODS}?watch=1&timeoutSeconds=1"), &[]).await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_from_an_unknown_version_is_gone() {
    let api = Api::open().await;
    is_gone(
        &api,
        &format!("{PODS}?watch=1&resourceVersion=18446744073709551615"),
    )
    .await;
    api.get(&format!("{PODS}?watch=1&resourceVersion=abc"))
        .await
        .expect(400);
}

// ---------------------------------------------------------------- logs

/// The pod `web` of two containers on a node.
pub(super) fn placed(node: &str) -> Value {
    let mut object = pod("web");
    object["spec"]["nodeName"] = node.into();
    object["spec"]["containers"] = json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]);
    object
}

pub(super) async fn placed_pod(api: &Api, node: &str) -> String {
    let created = api.post(PODS, placed(node)).await.expect(201).json();
    created["metadata"]["uid"].as_str().unwrap().to_owned()
}

pub(super) fn add_container(api: &Api, uid: &str, name: &str, restarts: u32, log: &'static str) {
    let pairs = [
        (labels::POD_UID, uid.to_owned()),
        (labels::CONTAINER_NAME, name.to_owned()),
        (labels::RESTART_COUNT, restarts.to_string()),
    ];
    let container = Container {
        id: ContainerId(format!("{name}{restarts}")),
        name: name.to_owned(),
        image: String::new(),
        image_id: String::new(),
        labels: pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        state: ContainerState::Running {
            pid: 1,
            started_unix_seconds: 0,
        },
    };
    api.containers.0.lock().unwrap().push((container, log));
}

#[tokio::test]
async fn logs_are_those_of_the_container_asked_for() {
    let api = Api::open().await;
    let uid = placed_pod(&api, "n1").await;
    let log = format!("{PODS}/web/log");
    let refused = api.get(&log).await.expect(400);
    assert!(refused.text.contains("choose one of: [a b]"), "{}", refused.text);
    let waiting = api.get(&format!("{log}?container=a")).await.expect(400);
    assert!(
        waiting.text.contains("is waiting to start: ContainerCreating"),
        "{}",
        waiting.text
    );
    add_container(&api, &uid, "a", 0, "first\n");
    add_container(&api, &uid, "a", 1, "one\ntwo\n");
    add_container(&api, &uid, "b", 0, "other\n");
    let check = async |query: &str, expected: &str| {
        assert_eq!(
            api.get(&format!("{log}?{query}")).await.expect(200).text,
            expected,
            "{query}"
        );
    };
    check("container=a", "one\ntwo\n").await;
    check("container=a&previous=true", "first\n").await;
    check("container=a&tailLines=1", "two\n").await;
    check("container=a&limitBytes=5", "one\nt").await;
    check("container=b", "other\n").await;
    api.get(&format!("{log}?container=b&previous=true"))
        .await
        .expect(400);
    api.get(&format!("{log}?container=c")).await.expect(400);
    api.get(&format!("{log}?container=a&tailLines=-1"))
        .await
        .expect(400);
}

#[tokio::test]
async fn logs_of_a_pod_elsewhere_come_from_its_node() {
    let (here, there) = (Api::open().await, Api::named("n2", false).await);
    here.join(&there);
    let uid = placed_pod(&here, "n2").await;
    // Sync is not a part of this: the other node gets the same pod, with a uid of its own.
    let uid_there = placed_pod(&there, "n2").await;
    add_container(&there, &uid_there, "a", 0, "from n2\n");
    assert_eq!(
        here.get(&format!("{PODS}/web/log?container=a"))
            .await
            .expect(200)
            .text,
        "from n2\n"
    );
    // Users know nodes by their names, not by their ids.
    here.peers.forget(&there);
    let refused = here.get(&format!("{PODS}/web/log?container=a")).await;
    assert_eq!(
        refused.expect(503).json()["message"],
        "node n2 of pod \"web\" does not answer: its agent is down or cannot be reached"
    );
    add_container(&here, &uid, "a", 0, "never read\n");
    here.delete(&format!("{PODS}/web?gracePeriodSeconds=0"))
        .await
        .expect(200);
    placed_pod(&here, "n9").await;
    here.get(&format!("{PODS}/web/log?container=a")).await.expect(503);
}

// ---------------------------------------------------------------- events

pub(super) fn record(name: &str, reason: &'static str) -> EventRecord {
    EventRecord {
        key: ObjectKey::new(Kind::Pod, "default", name),
        uid: "u1".into(),
        kind: EventKind::Warning,
        reason,
        message: "no image".into(),
        component: "kubelet",
    }
}

const EVENTS: &str = "/api/v1/namespaces/default/events";

#[tokio::test]
async fn events_are_counted_selected_and_forgotten() {
    let api = Api::open().await;
    api.state.events.event(record("web", "Failed"));
    api.clock.advance(10);
    api.state.events.event(record("web", "Failed"));
    api.state.events.event(record("other", "Failed"));
    let list = api
        .get(&format!("{EVENTS}?fieldSelector=involvedObject.name=web"))
        .await
        .expect(200)
        .json();
    let [event] = list["items"].as_array().unwrap().as_slice() else {
        panic!("{list}")
    };
    assert_eq!((&event["count"], &event["type"]), (&2.into(), &"Warning".into()));
    assert_eq!(event["firstTimestamp"], "2027-01-15T08:00:00Z");
    assert_eq!(event["lastTimestamp"], "2027-01-15T08:00:10Z");
    assert_eq!(event["source"], json!({"component": "kubelet", "host": "n1"}));
    api.clock.advance(3600);
    api.state.events.forget_expired();
    assert_eq!(api.get(EVENTS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn events_of_clients_are_small() {
    let api = Api::open().await;
    let event = |bytes: usize| {
        json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "web-"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web"},
            "reason": "Tested", "message": "m", "type": "Normal",
            "source": {"component": "x".repeat(bytes)},
        })
    };
    api.post(EVENTS, event(1024)).await.expect(201);
    api.post(EVENTS, event(8 << 10)).await.expect(413);
    api.post(&format!("{EVENTS}?dryRun=All"), event(8 << 10))
        .await
        .expect(413);
}

#[tokio::test]
async fn any_node_lists_the_events_of_all() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    here.state.events.event(record("web", "Failed"));
    there.state.events.event(record("web", "Failed"));
    let list = here.get(EVENTS).await.expect(200).json();
    let items = list["items"].as_array().unwrap();
    let mut hosts: Vec<&str> = items
        .iter()
        .map(|event| event["source"]["host"].as_str().unwrap())
        .collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["n1", "n2"]);
    let theirs = items
        .iter()
        .find(|event| event["source"]["host"] == "n2")
        .unwrap();
    let path = format!("{EVENTS}/{}", theirs["metadata"]["name"].as_str().unwrap());
    assert_eq!(here.get(&path).await.expect(200).json()["source"]["host"], "n2");
}

#[tokio::test]
async fn any_node_watches_the_events_of_all() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    there.state.events.event(record("old", "Failed"));
    for number in 0..3 {
        here.post(PODS, pod(&format!("ahead-of-the-other-node-{number}")))
            .await
            .expect(201);
    }
    let about = |frame: Value| {
        let text = |pointer| frame.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        (text("/type"), text("/object/involvedObject/name"))
    };
    let added = |name: &str| ("ADDED".to_owned(), name.to_owned());
    let mut all = Frames::open(&here, &format!("{EVENTS}?watch=1"), &[]).await;
    assert_eq!(about(all.next().await.unwrap()), added("old"));
    let version = here.get(EVENTS).await.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let since = format!("{EVENTS}?watch=1&resourceVersion={version}");
    let mut news = Frames::open(&here, &since, &[]).await;
    // The other node is asked beside the watch: until it has heard of it, what happens may be missed.
    let mut count = 0;
    let first = loop {
        count += 1;
        there
            .state
            .events
            .event(record(&format!("new-{count}"), "Failed"));
        if let Ok(frame) = tokio::time::timeout(Duration::from_millis(50), news.next()).await {
            break frame.unwrap();
        }
    };
    assert_eq!(first["object"]["metadata"]["resourceVersion"], version.as_str());
    let (event, name) = about(first);
    assert!(event == "ADDED" && name.starts_with("new-"), "{event} {name}");
    assert_eq!(about(all.next().await.unwrap()), added("new-1"));
}

#[tokio::test]
async fn any_node_deletes_the_events_of_all() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    there.state.events.event(record("web", "Failed"));
    let list = here.get(EVENTS).await.expect(200).json();
    let name = list["items"][0]["metadata"]["name"].as_str().unwrap();
    let path = format!("{EVENTS}/{name}");
    let dry = json!({"dryRun": ["All"]}).to_string();
    here.call("DELETE", &path, &[], dry).await.expect(200);
    here.get(&path).await.expect(200);
    let deleted = here.delete(&path).await.expect(200).json();
    assert_eq!(deleted["details"]["name"], name);
    here.delete(&path).await.expect(404);
    assert_eq!(here.get(EVENTS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_in_a_warning() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    let lost = Api::named("n3", true).await;
    here.join(&lost);
    let list = here.get(EVENTS).await.expect(200);
    assert!(list.warnings().is_empty(), "{:?}", list.warnings());
    let unknown = Api::open().await;
    let nodes = here.cluster.borrow().nodes.clone();
    unknown.cluster.send_modify(|cluster| {
        let mut changed = (**cluster).clone();
        changed.nodes.extend(nodes);
        *cluster = std::sync::Arc::new(changed);
    });
    let list = unknown.get(EVENTS).await.expect(200);
    assert!(
        list.warnings()[0].contains("are missing"),
        "{:?}",
        list.warnings()
    );
}
