//! Edits that were made at once and do not fit together: shown, told once, and nothing is done about them.

use proptest::prelude::*;
use schemas::{Kind, Object, ObjectKey, validate::validate};
use serde_json::{Value, json};
use store::{Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Store, WriteError};

use super::Reconciler;
use super::fixture::{Fixture, author};
use super::statuses::{StatusKey, Statuses};
use super::workloads::Workloads;
use crate::action::Action;
use crate::pod_state::Graces;
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
                Action::Set { .. } | Action::Delete { .. } | Action::Remove { .. } => true,
                Action::Place { .. } | Action::Release { .. } => false,
            });
            assert_eq!(rolls_out, faults[0].is_none(), "{actions:?}");
        });
    }
}
