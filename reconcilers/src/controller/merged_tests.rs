//! Edits that were made at once and do not fit together: shown, told once, and nothing is done about them.

use proptest::prelude::*;
use schemas::{Kind, Object, ObjectKey, validate::validate};
use serde_json::{Value, json};
use store::{Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Store, View, WatchEvent, WriteError};

use super::fixture::{Fixture, author};
use super::statuses::{StatusKey, Statuses};
use super::workloads::Workloads;
use super::{NodeObjects, Reconciler, Trigger};
use crate::action::Action;
use crate::pod_state::Graces;
use crate::routes::RouteReconciler;
use crate::service::ServiceReconciler;
use crate::status::find_condition;
use crate::validity::MERGED_INVALID;

fn key() -> ObjectKey {
    ObjectKey::new(Kind::Deployment, "default", "web")
}

fn deployment() -> Object {
    let mut web = Object::new(&key());
    web.set(
        &["spec"],
        json!({
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        }),
    );
    web
}

fn other_store() -> Store {
    let options = OpenOptions {
        cluster_id: "cluster-1".to_owned(),
        node: NodeId("2".repeat(64)),
        seal_key: [7; 32],
    };
    Store::open_in_memory(MemoryDisk::default(), options).unwrap()
}

async fn exchange(from: &Store, to: &Store) {
    let (a, b) = (NodeId("1".repeat(64)), NodeId("2".repeat(64)));
    let mut next = from.begin_exchange(&b);
    let mut sides = [(to, &a), (from, &b)].into_iter().cycle();
    while let Exchange::Send(frame) = next {
        let (receiver, sender) = sides.next().unwrap();
        next = receiver.receive(sender, &frame).await.unwrap();
    }
    assert_eq!(from.digest(), to.digest());
}

/// Writes a field as the API does: only if the whole is valid.
async fn edit(store: &Store, path: &[&str], value: Value) {
    edit_of(&key(), store, path, value).await;
}

async fn edit_of(key: &ObjectKey, store: &Store, path: &[&str], value: Value) {
    store
        .update::<WriteError>(key, &Precondition::default(), author(), |object| {
            let mut object = object.clone();
            object.set(path, value.clone());
            assert_eq!(validate(&object), []);
            Ok(object)
        })
        .await
        .unwrap();
}

fn told(fixture: &Fixture) -> usize {
    let events = fixture.events.take();
    events
        .iter()
        .filter(|event| event.reason == MERGED_INVALID)
        .count()
}

/// Two sides of a partition, both with a Deployment that runs.
async fn sides() -> (Fixture, Store, Workloads, Statuses) {
    let (fixture, other) = (Fixture::new(20), other_store());
    fixture.admit().await;
    let mut web = deployment();
    web.set(&["spec", "progressDeadlineSeconds"], 600);
    fixture.store.create(web, author()).await.unwrap();
    let workloads = Workloads::new(fixture.context.clone(), Graces::default());
    let statuses = Statuses::new(fixture.context.clone(), Graces::default());
    workloads.reconcile(&key()).await.unwrap();
    workloads.reconcile(&key()).await.unwrap();
    assert_eq!(fixture.context.objects(Kind::Pod, None).len(), 2);
    exchange(&fixture.store, &other).await;
    (fixture, other, workloads, statuses)
}

#[tokio::test]
async fn what_does_not_fit_together_is_shown_told_once_and_left_as_it_runs() {
    let (fixture, other, workloads, statuses) = sides().await;
    edit(&fixture.store, &["spec", "minReadySeconds"], json!(400)).await;
    edit(&other, &["spec", "progressDeadlineSeconds"], json!(300)).await;
    edit(
        &other,
        &["spec", "template", "metadata", "labels", "version"],
        json!("2"),
    )
    .await;
    exchange(&fixture.store, &other).await;

    let root = StatusKey::Root(key());
    for _ in 0..3 {
        statuses.reconcile(&root).await.unwrap();
    }
    assert_eq!(told(&fixture), 1);
    let condition = || {
        let web = fixture.context.object(&key()).unwrap();
        let status = web.pointer("/status").unwrap();
        find_condition(status, MERGED_INVALID).cloned()
    };
    let shown = condition().unwrap();
    assert_eq!(shown["status"], "True");
    let message = shown["message"].as_str().unwrap();
    assert!(message.contains("spec.progressDeadlineSeconds"), "{message}");

    // It is not rolled out; what runs is kept.
    let sets = || fixture.context.objects(Kind::ReplicaSet, None).len();
    let lost = fixture.context.objects(Kind::Pod, None)[0].key().unwrap();
    fixture.remove(&lost).await;
    for _ in 0..2 {
        workloads.reconcile(&key()).await.unwrap();
    }
    assert_eq!((sets(), fixture.context.objects(Kind::Pod, None).len()), (1, 2));

    // Until somebody mends it.
    edit(&fixture.store, &["spec", "minReadySeconds"], json!(10)).await;
    statuses.reconcile(&root).await.unwrap();
    assert_eq!((condition(), told(&fixture)), (None, 0));
    workloads.reconcile(&key()).await.unwrap();
    assert_eq!(sets(), 2);
}

#[tokio::test]
async fn names_are_made_from_the_last_form_of_a_service_that_was_valid() {
    let (fixture, other) = (Fixture::new(20), other_store());
    fixture.admit().await;
    let key = ObjectKey::new(Kind::Service, "default", "web");
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
    let mut web = Object::new(&key);
    web.set(
        &["spec"],
        json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [port("http", 80)]}),
    );
    fixture.store.create(web, author()).await.unwrap();
    exchange(&fixture.store, &other).await;
    // Each is fine; no two ports may have one name.
    let ports = ["spec", "ports"];
    edit_of(
        &key,
        &fixture.store,
        &ports,
        json!([port("http", 80), port("tls", 443)]),
    )
    .await;
    edit_of(&key, &other, &ports, json!([port("http", 80), port("tls", 8443)])).await;
    exchange(&fixture.store, &other).await;

    let services = ServiceReconciler::new(fixture.context.clone());
    for _ in 0..3 {
        services.reconcile(&key).await.unwrap();
    }
    assert_eq!(told(&fixture), 1);
    let shown = || fixture.context.object(&key).unwrap();
    let condition = || find_condition(shown().pointer("/status").unwrap(), MERGED_INVALID).cloned();
    let message = condition().unwrap()["message"].to_string();
    assert!(message.contains("spec.ports[2].name"), "{message}");
    let count = |object: &Object| object.pointer("/spec/ports").unwrap().as_array().unwrap().len();
    let settled = || fixture.context.settled_objects(Kind::Service, None);
    assert_eq!((count(&shown()), count(&settled()[0])), (3, 2));

    edit_of(
        &key,
        &fixture.store,
        &ports,
        json!([port("http", 80), port("tls", 443)]),
    )
    .await;
    services.reconcile(&key).await.unwrap();
    assert_eq!((condition(), told(&fixture)), (None, 0));
    assert_eq!(*settled()[0], *shown());
}

/// Two edits that are valid each, and not together.
struct Case {
    object: Value,
    here: (&'static [&'static str], Value),
    there: (&'static [&'static str], Value),
    /// The field that the condition names.
    field: &'static str,
    mended: (&'static [&'static str], Value),
}

fn cases() -> Vec<Case> {
    let object = |api: &str, kind: &str, rest: Value| {
        let mut object =
            json!({"apiVersion": api, "kind": kind, "metadata": {"name": "web", "namespace": "default"}});
        let (all, rest) = (object.as_object_mut().unwrap(), rest.as_object().unwrap());
        all.extend(rest.clone());
        object
    };
    // Each annotation fits, both do not. It is in metadata, which has no generation.
    let annotated = |object: Value| Case {
        object,
        here: (&["metadata", "annotations", "a"], "a".repeat(200_000).into()),
        there: (&["metadata", "annotations", "b"], "b".repeat(200_000).into()),
        field: "metadata.annotations",
        mended: (&["metadata", "annotations", "a"], "".into()),
    };
    let cluster = |kind: &str, name: &str| {
        annotated(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}))
    };
    let of_cluster = |api: &str, kind: &str, rest: Value| {
        let mut case = annotated(object(api, kind, rest));
        case.object["metadata"] = json!({"name": "web"});
        case
    };
    let pod_spec = |mounts: Value| {
        json!({
            "containers": [{"name": "web", "image": "web:1", "volumeMounts": mounts}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        })
    };
    let mounts = || json!([{"name": "data", "mountPath": "/data"}]);
    let workload = |template: Value| {
        json!({"spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": template},
        }})
    };
    let owner = |name: &str| {
        json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "controller": true,
        }])
    };
    let deployment = || object("apps/v1", "Deployment", workload(pod_spec(json!([]))));
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
    let backend = || json!({"service": {"name": "web", "port": {"number": 80}}});
    let rules = || json!([{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend()}]}}]);
    vec![
        cluster("Namespace", "web"),
        cluster("Node", "node1"),
        // Its spec is one value, but for a few fields that go with any others.
        annotated(object("v1", "Pod", json!({"spec": pod_spec(mounts())}))),
        Case {
            object: object("v1", "Pod", json!({"spec": pod_spec(mounts())})),
            here: (&["metadata", "ownerReferences"], owner("one")),
            there: (&["metadata", "ownerReferences"], owner("two")),
            field: "metadata.ownerReferences",
            mended: (&["metadata", "ownerReferences"], json!([])),
        },
        Case {
            object: deployment(),
            here: (&["spec", "minReadySeconds"], json!(400)),
            there: (&["spec", "progressDeadlineSeconds"], json!(300)),
            field: "spec.progressDeadlineSeconds",
            mended: (&["spec", "minReadySeconds"], json!(10)),
        },
        annotated(deployment()),
        Case {
            object: object("apps/v1", "ReplicaSet", workload(pod_spec(json!([])))),
            here: (&["spec", "template", "spec", "volumes"], json!([])),
            there: (
                &["spec", "template", "spec", "containers"],
                pod_spec(mounts())["containers"].clone(),
            ),
            field: "spec.template.spec.containers[0].volumeMounts[0].name",
            mended: (
                &["spec", "template", "spec", "volumes"],
                pod_spec(json!([]))["volumes"].clone(),
            ),
        },
        Case {
            object: object(
                "v1",
                "Service",
                json!({"spec": {"clusterIP": "None", "ports": [port("http", 80)]}}),
            ),
            here: (&["spec", "ports"], json!([port("http", 80), port("tls", 443)])),
            there: (&["spec", "ports"], json!([port("http", 80), port("tls", 8443)])),
            field: "spec.ports[2].name",
            mended: (&["spec", "ports"], json!([port("http", 80)])),
        },
        Case {
            object: object(
                "networking.k8s.io/v1",
                "Ingress",
                json!({
                    "spec": {"defaultBackend": backend(), "rules": rules()},
                }),
            ),
            here: (&["spec"], json!({"defaultBackend": backend()})),
            there: (&["spec"], json!({"rules": rules()})),
            field: "spec",
            mended: (&["spec"], json!({"rules": rules()})),
        },
        annotated(object(
            "v1",
            "Endpoints",
            json!({
                "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 80}]}],
            }),
        )),
        annotated(object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({
                "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.7"]}],
            }),
        )),
        Case {
            object: object("v1", "ConfigMap", json!({})),
            here: (&["data"], json!({"a": "b"})),
            there: (&["binaryData"], json!({"a": "AAE="})),
            field: "data[a]",
            mended: (&["binaryData"], json!({})),
        },
        annotated(object("v1", "Secret", json!({"data": {"a": "AAE="}}))),
        annotated(object("v1", "ServiceAccount", json!({}))),
        annotated(object(
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        )),
        of_cluster(
            "v1",
            "PersistentVolume",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"},
            }}),
        ),
        of_cluster("storage.k8s.io/v1", "StorageClass", json!({"provisioner": "x"})),
        of_cluster(
            "networking.k8s.io/v1",
            "IngressClass",
            json!({"spec": {"controller": "example.com/x"}}),
        ),
        annotated(object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
        )),
        annotated(object(
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": 1}}),
        )),
        of_cluster("scheduling.k8s.io/v1", "PriorityClass", json!({"value": 5})),
        annotated(object(
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"holderIdentity": "me"}}),
        )),
        annotated(object(
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template("Always")}}),
        )),
        annotated(object(
            "apps/v1",
            "DaemonSet",
            json!({"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template("Always")}}),
        )),
        annotated(object(
            "v1",
            "ReplicationController",
            json!({"spec": {"template": template("Always")}}),
        )),
        annotated(object(
            "v1",
            "PodTemplate",
            json!({"template": template("Always")}),
        )),
        annotated(object(
            "apps/v1",
            "ControllerRevision",
            json!({"revision": 1, "data": {"a": 1}}),
        )),
        annotated(object(
            "batch/v1",
            "Job",
            json!({"spec": {"template": template("Never")}}),
        )),
        annotated(object(
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template("Never")}}}}),
        )),
    ]
}

fn template(restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"restartPolicy": restart, "containers": [{"name": "x", "image": "localhost/x:1"}]}})
}

/// Lets a controller work at what a change of `view` asks it for.
async fn wake<R: Reconciler>(reconciler: &R, view: &View) {
    if reconciler.scope().kinds.contains(&view.key.kind) {
        let (view, previous) = (view.clone(), None);
        for key in reconciler.keys(&Trigger::Store(WatchEvent::Put { view, previous })) {
            reconciler.reconcile(&key).await.unwrap();
        }
    }
}

#[tokio::test]
async fn of_every_kind_what_does_not_fit_together_is_shown_told_once_and_acted_on_by_nobody() {
    let cases = cases();
    let rows = schemas::KINDS
        .iter()
        .filter(|row| row.served && row.kind != Kind::Event);
    for row in rows {
        let has_kind = |case: &Case| case.object["kind"] == row.name;
        assert!(cases.iter().any(has_kind), "no case has kind {}", row.name);
    }
    for case in cases {
        let name = format!("{} {}", case.object["kind"], case.field);
        let (fixture, other) = (Fixture::new(20), other_store());
        fixture.admit().await;
        let context = || fixture.context.clone();
        let statuses = Statuses::new(context(), Graces::default());
        let services = ServiceReconciler::new(context());
        let routes = RouteReconciler::new(context(), "node1".to_owned(), None);
        let (nodes, workloads) = (
            NodeObjects::new(context()),
            Workloads::new(context(), Graces::default()),
        );
        let created = Object::from_value(case.object).unwrap();
        assert_eq!(validate(&created), [], "{name}");
        let key = fixture.store.create(created, author()).await.unwrap().key;
        let all_run = async || {
            for _ in 0..3 {
                let view = fixture.store.get(&key).unwrap();
                wake(&statuses, &view).await;
                wake(&services, &view).await;
                wake(&routes, &view).await;
                wake(&nodes, &view).await;
            }
            told(&fixture)
        };
        let condition = || {
            let shown = fixture.context.object(&key).unwrap();
            find_condition(shown.pointer("/status").unwrap_or(&Value::Null), MERGED_INVALID).cloned()
        };
        assert_eq!((all_run().await, condition()), (0, None), "{name}");
        exchange(&fixture.store, &other).await;
        edit_of(&key, &fixture.store, case.here.0, case.here.1).await;
        edit_of(&key, &other, case.there.0, case.there.1).await;
        exchange(&fixture.store, &other).await;

        assert_eq!(all_run().await, 1, "{name}");
        let message = condition().map(|condition| condition["message"].to_string());
        assert!(
            message
                .as_ref()
                .is_some_and(|message| message.contains(case.field)),
            "{name}: {message:?}"
        );
        assert_eq!(workloads.plan(&key).actions, [], "{name}");
        let settled = fixture.context.settled_objects(key.kind, None);
        assert_eq!(settled.len(), 1, "{name}");
        assert_eq!(validate(&settled[0]), [], "{name}");

        edit_of(&key, &fixture.store, case.mended.0, case.mended.1).await;
        assert_eq!((all_run().await, condition()), (0, None), "{name}");
        let is_planned = matches!(key.kind, Kind::Pod | Kind::Deployment | Kind::ReplicaSet);
        assert_eq!(!workloads.plan(&key).actions.is_empty(), is_planned, "{name}");
    }
}

#[tokio::test]
async fn endpoints_by_hand_that_are_not_valid_lead_where_they_did() {
    let fixture = Fixture::new(20);
    let zone_of = |service: &str| {
        let zone = crate::zone::Lists::of(&fixture.context, &[Kind::Endpoints, Kind::EndpointSlice]);
        let (slices, endpoints) = (zone.objects(Kind::EndpointSlice), zone.objects(Kind::Endpoints));
        let index = crate::endpoints::EndpointIndex::new(slices.into_iter(), endpoints.into_iter());
        let found = index.of("default", service).iter();
        found
            .map(|endpoint| endpoint.address.to_string())
            .collect::<Vec<_>>()
    };
    let subsets = |ip: &str, port: u32| json!([{"addresses": [{"ip": ip}], "ports": [{"port": port}]}]);
    let mut by_hand = Object::new(&ObjectKey::new(Kind::Endpoints, "default", "web"));
    by_hand.set(&["subsets"], subsets("192.0.2.7", 80));
    let key = fixture.store.create(by_hand, author()).await.unwrap().key;
    fixture
        .edit(&key, &["subsets"], subsets("192.0.2.8", 70_000))
        .await;
    assert_eq!(zone_of("web"), ["192.0.2.7"]);
    fixture.edit(&key, &["subsets"], subsets("192.0.2.8", 8080)).await;
    assert_eq!(zone_of("web"), ["192.0.2.8"]);

    let endpoints = |ip: &str| json!([{"addresses": [ip]}]);
    let mut slice = Object::new(&ObjectKey::new(Kind::EndpointSlice, "default", "never"));
    slice.set(&["metadata", "labels", "kubernetes.io/service-name"], "db");
    slice.set(&["addressType"], "IPv6");
    slice.set(&["endpoints"], endpoints("192.0.2.9"));
    let key = fixture.store.create(slice, author()).await.unwrap().key;
    assert_eq!(zone_of("db"), [""; 0], "it never was valid");
    fixture.edit(&key, &["endpoints"], endpoints("2001:db8::9")).await;
    assert_eq!(zone_of("db"), ["2001:db8::9"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two sides wrote: both see the same fault or none, and with a fault no plan touches the ReplicaSets that
    /// are there or makes one; without, the new template is rolled out.
    #[test]
    fn no_plan_acts_on_what_does_not_fit_together(min_ready in 1..600_i64, deadline in 2..600_i64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (fixture, other, workloads, _) = sides().await;
            edit(&fixture.store, &["spec", "minReadySeconds"], json!(min_ready.min(599))).await;
            edit(&other, &["spec", "progressDeadlineSeconds"], json!(deadline)).await;
            edit(&other, &["spec", "template", "metadata", "labels", "version"], json!("2")).await;
            exchange(&fixture.store, &other).await;
            let faults = [&fixture.store, &other].map(|store| {
                crate::validity::Faults::default().of(&store.get(&key()).unwrap().object)
            });
            assert_eq!(faults[0], faults[1]);
            assert_eq!(faults[0].is_some(), deadline <= min_ready);
            let actions = workloads.plan(&key()).actions;
            let rolls_out = actions.iter().any(|action| match action {
                Action::Create(object) => object.kind() == Some(Kind::ReplicaSet),
                Action::Place { .. } | Action::Release { .. } => false,
                _ => true,
            });
            assert_eq!(rolls_out, faults[0].is_none(), "{actions:?}");
        });
    }
}
