//! Watchers, reflectors and conditions: they keep in step, over ends of watches, restarts, and versions that are gone.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, Store};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use schemas::Object;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::super::fixture::{deployment, pod};
use super::{DEADLINE, Swarm, config_map, in_time, typed};

/// Both ways in which kube-rs learns what is there.
fn strategies() -> [watcher::Config; 2] {
    [
        watcher::Config::default().page_size(2),
        watcher::Config::default().streaming_lists(),
    ]
}

/// A reflector of config maps with the label `tier=front`, and what it went through.
struct Reflected {
    store: Store<ConfigMap>,
    /// How often it began anew.
    begun: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Reflected {
    fn start(swarm: &Swarm, config: watcher::Config) -> Self {
        let (store, writer) = reflector::store();
        let begun: Arc<AtomicUsize> = Arc::default();
        let count = begun.clone();
        let events = watcher(swarm.all::<ConfigMap>(), config.labels("tier=front")).default_backoff();
        let events = reflector::reflector(writer, events).for_each(move |event| {
            if matches!(event, Ok(watcher::Event::Init)) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            std::future::ready(())
        });
        Self {
            store,
            begun,
            _task: AbortOnDropHandle::new(tokio::spawn(events)),
        }
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Waits until it has these names and values of `n`, in the order of names.
    async fn has(&self, expected: &[(&str, &str)]) {
        let seen = || {
            let mut seen: Vec<(String, String)> = self
                .store
                .state()
                .iter()
                .map(|map| (map.name_any(), map.data.clone().unwrap_or_default()["n"].clone()))
                .collect();
            seen.sort();
            seen
        };
        let wanted: Vec<(String, String)> = expected
            .iter()
            .map(|(name, n)| ((*name).to_owned(), (*n).to_owned()))
            .collect();
        let end = tokio::time::Instant::now() + DEADLINE;
        while seen() != wanted {
            assert!(
                tokio::time::Instant::now() < end,
                "{:?} is not {wanted:?}",
                seen()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn front(name: &str, n: &str) -> ConfigMap {
    config_map(name, json!({"tier": "front"}), json!({"n": n}))
}

async fn create(maps: &Api<ConfigMap>, map: &ConfigMap) {
    maps.create(&PostParams::default(), map).await.unwrap();
}

async fn set(maps: &Api<ConfigMap>, name: &str, n: &str) {
    let patch = Patch::Merge(json!({"data": {"n": n}}));
    maps.patch(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn a_reflector_keeps_in_step() {
    for config in strategies() {
        let swarm = Swarm::start().await;
        let maps: Api<ConfigMap> = swarm.all();
        for name in ["a", "b", "c"] {
            create(&maps, &front(name, "1")).await;
        }
        create(&maps, &config_map("other", json!({}), json!({"n": "1"}))).await;
        let reflected = Reflected::start(&swarm, config);
        in_time("ready", reflected.store.wait_until_ready())
            .await
            .unwrap();
        reflected.has(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
        create(&maps, &front("d", "1")).await;
        set(&maps, "a", "2").await;
        maps.delete("b", &DeleteParams::default()).await.unwrap();
        reflected.has(&[("a", "2"), ("c", "1"), ("d", "1")]).await;
        // By its labels one comes and another goes.
        for (name, tier) in [("other", "front"), ("c", "back")] {
            let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": tier}}}));
            maps.patch(name, &PatchParams::default(), &patch).await.unwrap();
        }
        reflected.has(&[("a", "2"), ("d", "1"), ("other", "1")]).await;
        assert_eq!(reflected.begun(), 1);
    }
}

#[tokio::test]
async fn a_reflector_goes_on_where_it_was_when_its_watches_end() {
    for config in strategies() {
        let swarm = Swarm::start().await;
        let maps: Api<ConfigMap> = swarm.all();
        create(&maps, &front("a", "1")).await;
        let reflected = Reflected::start(&swarm, config.timeout(1));
        reflected.has(&[("a", "1")]).await;
        for n in ["2", "3", "4"] {
            tokio::time::sleep(Duration::from_millis(700)).await;
            set(&maps, "a", n).await;
            reflected.has(&[("a", n)]).await;
        }
        assert_eq!(reflected.begun(), 1, "no list but the first");
    }
}

#[tokio::test]
async fn a_reflector_goes_on_after_a_restart_of_the_listener() {
    for config in strategies() {
        let mut swarm = Swarm::start().await;
        let maps: Api<ConfigMap> = swarm.all();
        create(&maps, &front("a", "1")).await;
        let reflected = Reflected::start(&swarm, config);
        reflected.has(&[("a", "1")]).await;
        swarm.served.stop().await;
        let mut made = json!(front("b", "1"));
        made["metadata"]["namespace"] = "default".into();
        let state = &swarm.node.state;
        let author = state.author("test", "");
        let made = state.store.create(Object::from_value(made).unwrap(), author);
        made.await.unwrap();
        swarm.served.answer_again(&swarm.node).await;
        reflected.has(&[("a", "1"), ("b", "1")]).await;
        assert_eq!(reflected.begun(), 1);
    }
}

#[tokio::test]
async fn a_reflector_goes_over_to_a_node_that_does_not_know_its_version() {
    for config in strategies() {
        let (mut swarm, other) = Swarm::with_another().await;
        let maps: Api<ConfigMap> = swarm.all();
        create(&maps, &front("a", "1")).await;
        create(&maps, &front("b", "1")).await;
        let reflected = Reflected::start(&swarm, config);
        reflected.has(&[("a", "1"), ("b", "1")]).await;
        swarm.served.stop().await;
        swarm.served.answer_again(&other).await;
        create(&maps, &front("b", "other")).await;
        reflected.has(&[("b", "other")]).await;
        set(&maps, "b", "2").await;
        reflected.has(&[("b", "2")]).await;
        assert!(reflected.begun() >= 2);
    }
}

#[tokio::test]
async fn a_watch_of_metadata_shows_each_change() {
    let swarm = Swarm::start().await;
    let maps: Api<ConfigMap> = swarm.all();
    create(&maps, &front("a", "1")).await;
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(swarm.client.clone());
    let mut seen = pin!(watcher(metadata, watcher::Config::default()));
    let next = |event: Option<watcher::Result<watcher::Event<_>>>| event.unwrap().unwrap();
    let first = in_time("the beginning", seen.next()).await;
    assert!(matches!(next(first), watcher::Event::Init));
    let initial = next(in_time("what is there", seen.next()).await);
    let watcher::Event::InitApply(object) = initial else {
        panic!("{initial:?}");
    };
    assert_eq!(object.name_any(), "a");
    assert!(matches!(
        next(in_time("its end", seen.next()).await),
        watcher::Event::InitDone
    ));
    set(&maps, "a", "2").await;
    assert!(matches!(
        next(in_time("a change", seen.next()).await),
        watcher::Event::Apply(_)
    ));
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(matches!(
        next(in_time("an end", seen.next()).await),
        watcher::Event::Delete(_)
    ));
}

#[tokio::test]
async fn a_plain_watch_shows_what_comes_and_that_a_version_is_gone() {
    let swarm = Swarm::start().await;
    let maps: Api<ConfigMap> = swarm.all();
    let since = maps
        .list(&kube::api::ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    create(&maps, &front("a", "1")).await;
    let mut watch = pin!(maps.watch(&WatchParams::default(), &since).await.unwrap());
    let event = in_time("an event", watch.try_next()).await.unwrap().unwrap();
    assert!(
        matches!(&event, WatchEvent::Added(map) if map.name_any() == "a"),
        "{event:?}"
    );
    let unknown = maps.watch(&WatchParams::default(), "18446744073709551615").await;
    let mut watch = pin!(unknown.unwrap());
    let event = in_time("an event", watch.try_next()).await.unwrap().unwrap();
    assert!(
        matches!(&event, WatchEvent::Error(status) if status.code == 410 && status.reason == "Expired"),
        "{event:?}"
    );
}

#[tokio::test]
async fn conditions_are_awaited() {
    let swarm = Swarm::start().await;
    let (deployments, pods): (Api<Deployment>, Api<Pod>) = (swarm.all(), swarm.all());
    let post = PostParams::default();
    let complete = tokio::spawn(await_condition(
        deployments.clone(),
        "web",
        conditions::is_deployment_completed(),
    ));
    deployments
        .create(&post, &typed(deployment("web", 1)))
        .await
        .unwrap();
    let status = Patch::Merge(json!({"status": {"conditions": [
        {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
    ]}}));
    deployments
        .patch_status("web", &PatchParams::default(), &status)
        .await
        .unwrap();
    let complete = in_time("a deployment is complete", complete).await.unwrap();
    assert_eq!(complete.unwrap().unwrap().name_any(), "web");

    let made = pods.create(&post, &typed(pod("web"))).await.unwrap();
    let running = tokio::spawn(await_condition(pods.clone(), "web", conditions::is_pod_running()));
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status("web", &PatchParams::default(), &status)
        .await
        .unwrap();
    in_time("a pod runs", running).await.unwrap().unwrap();
    let uid = made.uid().unwrap();
    pods.delete("web", &DeleteParams::default()).await.unwrap();
    let deleted = await_condition(pods, "web", conditions::is_deleted(&uid));
    in_time("a pod is gone", deleted).await.unwrap();
}
