//! Events in their second group, `events.k8s.io/v1`: the same objects as in `v1`, through the router and by kubectl.

use reconcilers::ports::EventSink;
use serde_json::{Value, json};

use super::fixture::Api;
use super::kubectl::{Kubectl, Session, contains};
use super::streams::{Frames, record};

const OLDER: &str = "/api/v1/namespaces/default/events";
const NEWER: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
const METADATA: (&str, &str) = (
    "accept",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
);

/// As clients of the newer group write one.
fn pulled(name: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "labels": {"a": "b"}},
        "eventTime": "2027-01-15T07:59:00.000001Z",
        "series": {"count": 3, "lastObservedTime": "2027-01-15T07:59:30.000002Z"},
        "reportingController": "example.com/puller", "reportingInstance": "puller-1",
        "action": "Pulling", "reason": "Pulled", "type": "Normal", "note": "it is there",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web"},
        "related": {"kind": "Node", "name": "n1"},
    })
}

/// What the other group has of [`pulled`].
fn pulled_in_v1(name: &str) -> Value {
    let mut event = pulled(name);
    event["apiVersion"] = "v1".into();
    for (newer, older) in [
        ("regarding", "involvedObject"),
        ("note", "message"),
        ("reportingController", "reportingComponent"),
    ] {
        event[older] = event.as_object_mut().unwrap().remove(newer).unwrap();
    }
    event
}

/// Without what a server adds.
fn as_sent(mut event: Value) -> Value {
    let metadata = event["metadata"].as_object_mut().unwrap();
    for field in [
        "uid",
        "creationTimestamp",
        "resourceVersion",
        "namespace",
        "generation",
    ] {
        metadata.remove(field);
    }
    event
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn an_event_is_changed_in_both_groups_where_it_is_kept() {
    let (here, there) = (Api::open().await, Api::named("n2", false).await);
    here.join(&there);
    there.post(OLDER, pulled_in_v1("web.1")).await.expect(201);
    let (older, newer) = (format!("{OLDER}/web.1"), format!("{NEWER}/web.1"));
    let counted = json!({"series": {"count": 4, "lastObservedTime": "2027-01-15T07:59:40.000002Z"}});
    let changed = here.patch(&newer, "merge", counted).await.expect(200).json();
    assert_eq!(
        (&changed["series"]["count"], &changed["note"]),
        (&json!(4), &json!("it is there"))
    );
    let changed = here
        .patch(&older, "strategic-merge", json!({"message": "it came"}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["series"]["count"], &changed["message"]),
        (&json!(4), &json!("it came"))
    );
    let mut event = here.get(&newer).await.expect(200).json();
    event["series"]["count"] = 5.into();
    let changed = here.put(&newer, event.clone()).await.expect(200).json();
    assert_eq!(changed["series"]["count"], 5);
    // That was another version.
    here.put(&newer, event.clone()).await.expect(409);
    let refused = here
        .patch(&older, "merge", json!({"message": "x".repeat(1025)}))
        .await
        .expect(422);
    contains(&refused.text, &["can have at most 1024 characters"]);
    let dry = here
        .patch(&format!("{older}?dryRun=All"), "merge", json!({"message": "dry"}))
        .await;
    assert_eq!(dry.expect(200).json()["message"], "dry");
    assert_eq!(here.get(&newer).await.expect(200).json()["note"], "it came");
    for (field, value, path) in [
        ("note", json!("it went"), "message"),
        ("reason", json!("Gone"), "reason"),
        ("type", json!("Warning"), "type"),
        (
            "reportingController",
            json!("example.com/x"),
            "reportingController",
        ),
        ("deprecatedCount", json!(2), "count"),
    ] {
        let refused = here.patch(&newer, "merge", json!({field: value})).await;
        let causes = refused.expect(422).json()["details"]["causes"].clone();
        assert_eq!(causes[0]["field"], path, "{causes}");
        contains(causes[0]["message"].as_str().unwrap(), &["field is immutable"]);
    }
    let refused = here.patch(&newer, "merge", json!({"series": {"count": 1}})).await;
    contains(&refused.expect(422).text, &["should be at least 2"]);
    here.patch(&format!("{NEWER}/none"), "merge", json!({}))
        .await
        .expect(404);
    let regarding = json!({"regarding": {"name": "another"}});
    let refused = here.patch(&newer, "merge", regarding).await.expect(422);
    contains(&refused.text, &["field is immutable"]);

    // One of the agent's own has no eventTime.
    there.state.events.event(record("far", "Failed"));
    let list = there.get(NEWER).await.expect(200).json();
    let names = names(&list);
    let own = names.iter().find(|name| name.starts_with("far")).unwrap();
    let marked = json!({"metadata": {"annotations": {"a": "b"}}});
    let changed = here.patch(&format!("{NEWER}/{own}"), "merge", marked).await;
    assert_eq!(changed.expect(200).json()["metadata"]["annotations"]["a"], "b");
}

#[tokio::test]
async fn what_is_made_in_one_group_is_in_both() {
    let api = Api::open().await;
    let dry = format!("{NEWER}?dryRun=All");
    let made = api.post(&dry, pulled("web.1")).await.expect(201).json();
    assert_eq!(as_sent(made), pulled("web.1"));
    api.get(&format!("{NEWER}/web.1")).await.expect(404);

    let made = api.post(NEWER, pulled("web.1")).await.expect(201);
    assert!(made.warnings().is_empty(), "{:?}", made.warnings());
    assert_eq!(as_sent(made.json()), pulled("web.1"));
    let (older, newer) = (
        api.get(&format!("{OLDER}/web.1")).await.expect(200).json(),
        api.get(&format!("{NEWER}/web.1")).await.expect(200).json(),
    );
    assert_eq!(older["metadata"], newer["metadata"]);
    assert_eq!(as_sent(older), pulled_in_v1("web.1"));
    assert_eq!(as_sent(newer), pulled("web.1"));

    api.post(OLDER, pulled_in_v1("web.2")).await.expect(201);
    for path in [NEWER, "/apis/events.k8s.io/v1/events"] {
        let list = api.get(path).await.expect(200).json();
        assert_eq!(
            (&list["kind"], &list["apiVersion"]),
            (&json!("EventList"), &json!("events.k8s.io/v1"))
        );
        assert_eq!(names(&list), ["web.1", "web.2"]);
        assert_eq!(as_sent(list["items"][1].clone()), pulled("web.2"));
    }
    let yaml = [("accept", "application/yaml")];
    let text = api.call("GET", &format!("{NEWER}/web.1"), &yaml, "").await.text;
    contains(&text, &["apiVersion: events.k8s.io/v1", "note: it is there"]);

    api.delete(&format!("{NEWER}/web.1")).await.expect(200);
    api.get(&format!("{OLDER}/web.1")).await.expect(404);
    let gone = api.delete(NEWER).await.expect(200).json();
    assert_eq!(gone["apiVersion"], "events.k8s.io/v1");
    assert_eq!(as_sent(gone["items"][0].clone()), pulled("web.2"));
    assert_eq!(api.get(OLDER).await.json()["items"], json!([]));
}

#[tokio::test]
async fn what_is_refused_is_named_in_the_group_that_was_asked() {
    let api = Api::open().await;
    let path = format!("{NEWER}/none");
    for answer in [api.get(&path).await, api.delete(&path).await] {
        let status = answer.expect(404).json();
        assert_eq!(status["message"], "events.events.k8s.io \"none\" not found");
        let details = json!({"name": "none", "group": "events.k8s.io", "kind": "events"});
        assert_eq!(status["details"], details);
    }
    let status = api.get(&format!("{OLDER}/none")).await.expect(404).json();
    assert_eq!(status["message"], "events \"none\" not found");

    api.post(NEWER, pulled("web.1")).await.expect(201);
    let twice = api.post(NEWER, pulled("web.1")).await.expect(409).json();
    assert_eq!(twice["message"], "events.events.k8s.io \"web.1\" already exists");
    let deleted = api.delete(&format!("{NEWER}/web.1")).await.expect(200).json();
    assert_eq!(deleted["details"]["group"], "events.k8s.io");

    let mut wrong = pulled("web.1");
    wrong["action"] = "".into();
    wrong["deprecatedCount"] = 1.into();
    wrong["type"] = "Strange".into();
    let status = api.post(NEWER, wrong).await.expect(422).json();
    assert_eq!(
        status["message"],
        "Event.events.k8s.io \"web.1\" is invalid: [action: Required value, type: Invalid value: \"\": has invalid value: \
         Strange, count: Invalid value: \"\": needs to be unset]"
    );
    // What the older group lets pass.
    let mut older = pulled_in_v1("web.1");
    older["type"] = "Strange".into();
    older["count"] = 1.into();
    api.post(OLDER, older.clone()).await.expect(201);
    let status = api.post(NEWER, older).await.expect(400).json();
    contains(
        status["message"].as_str().unwrap(),
        &[
            "API version in the data (v1)",
            "expected API version (events.k8s.io/v1)",
        ],
    );
    let missing = "/apis/events.k8s.io/v1/namespaces/none/events";
    let status = api.post(missing, pulled("web.1")).await.expect(404).json();
    contains(
        status["message"].as_str().unwrap(),
        &["namespaces \"none\" not found"],
    );
    let applied = format!("{NEWER}/web.1?fieldManager=x");
    api.apply(&applied, pulled("web.1")).await.expect(405);

    let mut odd = pulled("web.2");
    odd["message"] = "of the older group".into();
    odd["regarding"]["colour"] = "red".into();
    let strict = format!("{NEWER}?fieldValidation=Strict");
    api.post(&strict, odd.clone()).await.expect(400);
    let made = api.post(NEWER, odd).await.expect(201);
    assert_eq!(
        made.warnings(),
        [
            "299 - \"unknown field \\\"regarding.colour\\\"\"",
            "299 - \"unknown field \\\"message\\\"\""
        ]
    );
    assert_eq!(made.json()["note"], "it is there");
}

#[tokio::test]
async fn events_are_selected_by_the_fields_of_their_group() {
    let api = Api::open().await;
    api.state.events.event(record("db", "Failed"));
    api.post(NEWER, pulled("web.1")).await.expect(201);
    for (selector, about) in [
        ("regarding.name=web", "web"),
        ("regarding.name!=web", "db"),
        ("reportingController=example.com/puller", "web"),
        ("source=example.com/puller", "web"),
        ("source=kubelet", "db"),
        ("type=Normal,reason=Pulled", "web"),
        ("metadata.name=web.1", "web"),
    ] {
        let list = api
            .get(&format!("{NEWER}?fieldSelector={selector}"))
            .await
            .expect(200)
            .json();
        let found: Vec<&Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| &item["regarding"]["name"])
            .collect();
        assert_eq!(found, [about], "{selector}");
    }
    let refused = api
        .get(&format!("{NEWER}?fieldSelector=involvedObject.name=web"))
        .await;
    contains(
        &refused.expect(400).text,
        &["field label not supported: involvedObject.name"],
    );
    let labelled = api.get(&format!("{NEWER}?labelSelector=a=b")).await.json();
    assert_eq!(names(&labelled), ["web.1"]);
}

#[tokio::test]
async fn tables_and_metadata_are_those_of_the_core_group() {
    let api = Api::open().await;
    api.post(NEWER, pulled("web.1")).await.expect(201);
    for suffix in ["", "?includeObject=None", "/web.1"] {
        let of = async |path: &str| {
            api.call("GET", &format!("{path}{suffix}"), &[TABLE], "")
                .await
                .json()
        };
        assert_eq!(of(NEWER).await, of(OLDER).await, "{suffix}");
    }
    let whole = format!("{NEWER}?includeObject=Object");
    let table = api.call("GET", &whole, &[TABLE], "").await.json();
    assert_eq!(table["rows"][0]["cells"][0], "30s");
    assert_eq!(as_sent(table["rows"][0]["object"].clone()), pulled("web.1"));
    let of = async |path: &str| api.call("GET", path, &[METADATA], "").await.json();
    assert_eq!(of(NEWER).await, of(OLDER).await);
}

#[tokio::test]
async fn a_watch_shows_events_in_the_form_of_its_group() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    there.state.events.event(record("far", "Failed"));
    let watch = format!(
        "{NEWER}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let mut frames = Frames::open(&here, &watch, &[]).await;
    here.post(OLDER, pulled_in_v1("web.1")).await.expect(201);
    here.delete(&format!("{OLDER}/web.1")).await.expect(200);
    let mut told = Vec::new();
    while told.len() < 4 {
        let frame = frames.next().await.unwrap();
        assert_eq!(frame["object"]["apiVersion"], "events.k8s.io/v1", "{frame}");
        let text = |pointer: &str| {
            frame
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        told.push((
            text("/type"),
            text("/object/regarding/name"),
            text("/object/note"),
        ));
    }
    told.sort_unstable();
    let line = |event: &str, name: &str, note: &str| (event.to_owned(), name.to_owned(), note.to_owned());
    assert_eq!(
        told,
        [
            line("ADDED", "far", "no image"),
            line("ADDED", "web", "it is there"),
            line("BOOKMARK", "", ""),
            line("DELETED", "web", "it is there")
        ]
    );
}

#[tokio::test]
async fn a_list_has_what_happened_to_an_object_in_the_order_in_which_it_happened() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    let reasons = [
        "Scheduled",
        "Pulled",
        "Created",
        "Started",
        "Unhealthy",
        "Killing",
    ];
    for (number, reason) in reasons.into_iter().enumerate() {
        let api = if number < 3 { &there } else { &here };
        api.state.events.event(record("web", reason));
        if number == 2 {
            here.clock.advance(1);
        }
    }
    // The same again has its place.
    here.state.events.event(record("web", "Started"));
    here.state.events.event(record("a", "Pulled"));
    let list = here.get(NEWER).await.expect(200).json();
    let items = list["items"].as_array().unwrap();
    let shown: Vec<_> = items
        .iter()
        .map(|event| event["reason"].as_str().unwrap())
        .collect();
    assert_eq!(shown[..1], ["Pulled"], "of a");
    assert_eq!(shown[1..], reasons);
    assert_eq!(items[4]["deprecatedCount"], 2);
}

#[tokio::test]
async fn events_of_other_nodes_come_in_either_form() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    there.state.events.event(record("far", "Failed"));
    let list = here.get(NEWER).await.expect(200);
    assert!(list.warnings().is_empty(), "{:?}", list.warnings());
    let list = list.json();
    let event = &list["items"][0];
    assert_eq!(
        (&event["apiVersion"], &event["regarding"]["name"], &event["note"]),
        (&json!("events.k8s.io/v1"), &json!("far"), &json!("no image"))
    );
    assert_eq!(
        event["deprecatedSource"],
        json!({"component": "kubelet", "host": "n2"})
    );
    assert_eq!(event["deprecatedCount"], 1);
    let path = format!("{NEWER}/{}", event["metadata"]["name"].as_str().unwrap());
    assert_eq!(
        here.get(&path).await.expect(200).json()["regarding"],
        event["regarding"]
    );
    let table = here.call("GET", NEWER, &[TABLE], "").await.json();
    assert_eq!(table["rows"][0]["cells"][3], "pod/far");
    let selected = here
        .get(&format!("{NEWER}?fieldSelector=regarding.name=other"))
        .await;
    assert_eq!(selected.json()["items"], json!([]));
    let deleted = here.delete(&path).await.expect(200).json();
    assert_eq!(deleted["details"]["group"], "events.k8s.io");
    assert_eq!(there.get_all_events(), 0);
}

#[tokio::test]
async fn a_collection_of_events_is_deleted_on_all_nodes() {
    let (here, there) = (Api::open().await, Api::named("n2", true).await);
    here.join(&there);
    here.post(OLDER, pulled_in_v1("web.1")).await.expect(201);
    there.state.events.event(record("far", "Failed"));
    there.state.events.event(record("further", "Killed"));
    let dry = here
        .delete(&format!("{NEWER}?dryRun=All"))
        .await
        .expect(200)
        .json();
    assert_eq!(dry["items"].as_array().unwrap().len(), 3);
    assert_eq!((here.get_all_events(), there.get_all_events()), (1, 2));
    let some = format!("{NEWER}?fieldSelector=reason=Failed");
    let some = here.delete(&some).await.expect(200).json();
    assert_eq!(some["items"][0]["regarding"]["name"], "far");
    let all = here.delete(OLDER).await.expect(200);
    assert!(all.warnings().is_empty(), "{:?}", all.warnings());
    let all = all.json();
    let about = |item: usize| &all["items"][item]["involvedObject"]["name"];
    assert_eq!([about(0), about(1)], ["web", "further"]);
    assert_eq!((here.get_all_events(), there.get_all_events()), (0, 0));
}

impl Api {
    /// How many this node keeps.
    fn get_all_events(&self) -> usize {
        self.state.store.list(schemas::Kind::Event, None).items.len()
    }
}

#[tokio::test]
async fn the_group_is_discovered_with_what_it_serves() {
    let api = Api::open().await;
    let groups = api.get("/apis").await.json();
    let mut groups = groups["groups"].as_array().unwrap().iter();
    let group = groups.find(|group| group["name"] == "events.k8s.io").unwrap();
    let version = json!({"groupVersion": "events.k8s.io/v1", "version": "v1"});
    assert_eq!(
        (&group["versions"], &group["preferredVersion"]),
        (&json!([version]), &version)
    );
    let resources = |path: &'static str| async {
        let list = api.get(path).await.expect(200).json();
        let mut all = list["resources"].as_array().unwrap().iter();
        all.find(|one| one["name"] == "events").unwrap().clone()
    };
    let events = resources("/apis/events.k8s.io/v1").await;
    assert_eq!(events, resources("/api/v1").await);
    assert_eq!(
        (&events["shortNames"], &events["namespaced"]),
        (&json!(["ev"]), &json!(true))
    );
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = api.call("GET", "/apis", &[("accept", accept)], "").await.json();
    let mut groups = all["items"].as_array().unwrap().iter();
    let group = groups
        .find(|group| group["metadata"]["name"] == "events.k8s.io")
        .unwrap();
    let kind = json!({"group": "events.k8s.io", "version": "v1", "kind": "Event"});
    assert_eq!(group["versions"][0]["resources"][0]["responseKind"], kind);

    let document = api
        .get("/openapi/v3/apis/events.k8s.io/v1")
        .await
        .expect(200)
        .json();
    let schema = &document["components"]["schemas"]["io.k8s.api.events.v1.Event"];
    assert_eq!(schema["x-kubernetes-group-version-kind"], json!([kind]));
    for (field, is_there) in [("regarding", true), ("note", true), ("involvedObject", false)] {
        assert_eq!(schema["properties"].get(field).is_some(), is_there, "{field}");
    }
    let post = &document["paths"]["/apis/events.k8s.io/v1/namespaces/{namespace}/events"]["post"];
    assert_eq!(post["x-kubernetes-group-version-kind"], kind);
    let all = api.get("/openapi/v2").await.expect(200).json();
    let definitions = &all["definitions"];
    for name in ["events.v1.Event", "events.v1.EventList", "core.v1.Event"] {
        assert!(definitions.get(format!("io.k8s.api.{name}")).is_some(), "{name}");
    }
}

const PULLED: &str = "
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: web.1, namespace: default}
eventTime: '2027-01-15T07:59:00.000001Z'
reportingController: example.com/puller
reportingInstance: puller-1
action: Pulling
reason: Pulled
type: Normal
note: told in the newer group
regarding: {apiVersion: v1, kind: Pod, namespace: default, name: web, uid: u1}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_with_events_of_both_groups() {
    let Some(session) = Session::start().await else {
        return;
    };
    for kubectl in session.oldest_and_newest() {
        session.api.state.events.event(record("db", "Failed"));
        both_groups(&kubectl).await;
    }
}

async fn both_groups(kubectl: &Kubectl) {
    contains(&kubectl.ok("api-versions").await, &["events.k8s.io/v1\n"]);
    let kinds = kubectl
        .ok("api-resources --api-group=events.k8s.io --no-headers")
        .await;
    let words: Vec<&str> = kinds.split_whitespace().collect();
    assert_eq!(words, ["events", "ev", "events.k8s.io/v1", "true", "Event"]);
    // With the group in its name, kubectl takes it for fields of the core group's.
    let shown = kubectl.ok("explain --api-version=events.k8s.io/v1 events").await;
    contains(&shown, &["events.k8s.io", "regarding", "deprecatedSource"]);
    assert!(!shown.contains("involvedObject"), "{shown}");
    contains(&kubectl.ok("explain events").await, &["involvedObject"]);

    assert_eq!(
        kubectl.run(&["create", "-f", "-"], PULLED).await,
        "event.events.k8s.io/web.1 created\n"
    );
    let again = PULLED.replace("web.1", "web.2");
    assert_eq!(
        kubectl.run(&["apply", "-f", "-"], &again).await,
        "event.events.k8s.io/web.2 created\n"
    );
    let (code, _, errors) = kubectl
        .ran(
            "create -f -",
            &PULLED.replace("web.1", "web.3").replace("Pulling", "''"),
        )
        .await;
    assert_eq!(code, Some(1));
    contains(&errors, &["\"web.3\" is invalid", "action: Required value"]);

    let table = kubectl.ok("get events.events.k8s.io -A").await;
    let columns = ["NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    contains(table.lines().next().unwrap(), &columns);
    contains(
        &table,
        &["pod/web", "told in the newer group", "pod/db", "no image"],
    );
    let wide = kubectl
        .ok("get ev.events.k8s.io -o wide --field-selector=regarding.name=web")
        .await;
    contains(&wide, &["example.com/puller, puller-1", "web.1"]);
    assert!(!wide.contains("pod/db"), "{wide}");
    let yaml = kubectl.ok("get events.events.k8s.io -o yaml").await;
    contains(
        &yaml,
        &[
            "apiVersion: events.k8s.io/v1",
            "regarding:",
            "note: told in",
            "deprecatedCount: 1",
        ],
    );
    assert!(!yaml.contains("involvedObject"), "{yaml}");
    let sorted = kubectl
        .ok("get events.events.k8s.io --sort-by=.regarding.name -o custom-columns=N:.regarding.name")
        .await;
    assert_eq!(sorted, "N\ndb\nweb\nweb\n");
    let older = kubectl
        .ok("get events web.1 -o jsonpath={.apiVersion}/{.message}")
        .await;
    assert_eq!(older, "v1/told in the newer group");
    contains(
        &kubectl.ok("events").await,
        &["Pod/web", "told in the newer group", "Pod/db"],
    );
    contains(
        &kubectl.ok("describe events.events.k8s.io web.1").await,
        &["Regarding:", "example.com/puller"],
    );

    let gone = kubectl.ok("delete events.events.k8s.io web.1").await;
    contains(&gone, &["event.events.k8s.io \"web.1\" deleted"]);
    contains(
        &kubectl.fails("get events.events.k8s.io web.1").await,
        &["events.events.k8s.io \"web.1\" not found"],
    );
    kubectl.ok("delete events.events.k8s.io --all").await;
    assert_eq!(kubectl.ok("get events -o name").await, "");
}
