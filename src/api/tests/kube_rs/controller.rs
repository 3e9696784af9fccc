//! An operator, written as people write them: a Deployment for each ConfigMap with the label `app=site`, kept as it should be with
//! server-side apply, told of through a finalizer, and looked at again when either changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{EventType, Recorder};
use kube::runtime::finalizer::{self, Event, finalizer};
use kube::runtime::wait::await_condition;
use kube::runtime::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::fixture::deployment;
use super::{Swarm, config_map, in_time};

const FINALIZER: &str = "sites.example.org/cleanup";

struct Context {
    client: Client,
    /// How often a site was looked at.
    reconciled: AtomicUsize,
    errors: Mutex<Vec<String>>,
}

struct Operator {
    context: Arc<Context>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Operator {
    fn start(swarm: &Swarm) -> Self {
        let context = Arc::new(Context {
            client: swarm.client.clone(),
            reconciled: AtomicUsize::new(0),
            errors: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let sites = watcher::Config::default().labels("app=site");
        let running = Controller::new(swarm.all::<ConfigMap>(), sites)
            .owns(swarm.all::<Deployment>(), watcher::Config::default())
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(reconcile, again, context.clone())
            .for_each(|_| std::future::ready(()));
        Self {
            context,
            stop,
            task: tokio::spawn(running),
        }
    }

    /// Ends it in order; returns how often it looked at a site, and what went wrong.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.cancel();
        in_time("the operator's end", self.task).await.unwrap();
        let errors = self.context.errors.lock().unwrap().clone();
        (self.context.reconciled.load(Ordering::SeqCst), errors)
    }
}

async fn reconcile(
    site: Arc<ConfigMap>,
    context: Arc<Context>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let sites: Api<ConfigMap> = Api::default_namespaced(context.client.clone());
    let action = finalizer(&sites, FINALIZER, site, |event| async {
        let deployments: Api<Deployment> = Api::default_namespaced(context.client.clone());
        match event {
            Event::Apply(site) => apply(&sites, &deployments, &site).await?,
            Event::Cleanup(site) => remove(&deployments, &site.name_any()).await?,
        }
        Ok(Action::await_change())
    })
    .await;
    context.reconciled.fetch_add(1, Ordering::SeqCst);
    action
}

fn again(_: Arc<ConfigMap>, error: &finalizer::Error<kube::Error>, context: Arc<Context>) -> Action {
    context.errors.lock().unwrap().push(error.to_string());
    Action::requeue(Duration::from_millis(100))
}

/// Makes the deployment as the site wants it, and writes on the site how many of its pods are ready.
async fn apply(
    sites: &Api<ConfigMap>,
    deployments: &Api<Deployment>,
    site: &ConfigMap,
) -> Result<(), kube::Error> {
    let name = site.name_any();
    let replicas = site.data.as_ref().and_then(|data| data["replicas"].parse().ok());
    let mut wanted = deployment(&name, replicas.unwrap_or(1));
    wanted["metadata"]["ownerReferences"] = json!([site.controller_owner_ref(&())]);
    let manager = PatchParams::apply("sites.example.org").force();
    let applied = deployments.patch(&name, &manager, &Patch::Apply(&wanted)).await?;
    let ready = applied
        .status
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    let told = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "annotations": {"ready": ready.to_string()}},
    });
    sites.patch(&name, &manager, &Patch::Apply(&told)).await?;
    Ok(())
}

async fn remove(deployments: &Api<Deployment>, name: &str) -> Result<(), kube::Error> {
    match deployments.delete(name, &DeleteParams::foreground()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        removed => removed.map(|_| ()),
    }
}

/// Waits for an object to be as it should; None: for it to be gone.
async fn becomes<K>(what: &str, api: &Api<K>, name: &str, is: impl Fn(Option<&K>) -> bool) -> Option<K>
where
    K: Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + Resource + 'static,
{
    in_time(what, await_condition(api.clone(), name, is))
        .await
        .unwrap()
}

fn wants(deployment: Option<&Deployment>, replicas: i32) -> bool {
    deployment
        .and_then(|deployment| deployment.spec.as_ref()?.replicas)
        .is_some_and(|wanted| wanted == replicas)
}

#[tokio::test]
async fn an_operator_keeps_what_it_owns() {
    let swarm = Swarm::start().await;
    let (sites, deployments): (Api<ConfigMap>, Api<Deployment>) = (swarm.all(), swarm.all());
    let patch = PatchParams::default();
    let other = config_map("other", json!({}), json!({"replicas": "1"}));
    sites.create(&PostParams::default(), &other).await.unwrap();
    let operator = Operator::start(&swarm);
    let shop = config_map("shop", json!({"app": "site"}), json!({"replicas": "2"}));
    let shop = sites.create(&PostParams::default(), &shop).await.unwrap();

    let made = becomes("a deployment", &deployments, "shop", |found| wants(found, 2)).await;
    let owners = made.unwrap().metadata.owner_references.unwrap();
    assert_eq!(
        (&*owners[0].kind, &owners[0].uid, owners[0].controller),
        ("ConfigMap", &shop.uid().unwrap(), Some(true))
    );
    let three = Patch::Merge(json!({"data": {"replicas": "3"}}));
    sites.patch("shop", &patch, &three).await.unwrap();
    becomes("three replicas", &deployments, "shop", |found| wants(found, 3)).await;

    // What others do to what it owns, it undoes.
    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    deployments.patch_scale("shop", &patch, &one).await.unwrap();
    becomes("three again", &deployments, "shop", |found| wants(found, 3)).await;
    let removed = deployments.get("shop").await.unwrap().uid();
    deployments
        .delete("shop", &DeleteParams::default())
        .await
        .unwrap();
    becomes("another deployment", &deployments, "shop", |found| {
        found.is_some_and(|found| found.uid() != removed)
    })
    .await;
    let ready = Patch::Merge(json!({"status": {"readyReplicas": 3}}));
    deployments.patch_status("shop", &patch, &ready).await.unwrap();
    let told = becomes("news of the pods", &sites, "shop", |site| {
        site.is_some_and(|site| site.annotations().get("ready").is_some_and(|ready| ready == "3"))
    })
    .await;
    assert_eq!(told.unwrap().finalizers(), [FINALIZER]);

    // One that is started anew finds all as it should be.
    let (_, errors) = operator.stop().await;
    assert_eq!(errors, [""; 0]);
    let before = deployments.get("shop").await.unwrap();
    let operator = Operator::start(&swarm);
    let looked = async {
        while operator.context.reconciled.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("a look at the site", looked).await;
    assert_eq!(deployments.get("shop").await.unwrap(), before);

    // The end waits until the operator has cleaned up.
    let ending = sites.delete("shop", &DeleteParams::default()).await.unwrap();
    let ending = ending.left().expect("it is still there");
    assert!(ending.meta().deletion_timestamp.is_some());
    becomes("the site's end", &sites, "shop", |site: Option<&ConfigMap>| {
        site.is_none()
    })
    .await;
    let (_, errors) = operator.stop().await;
    assert_eq!(errors, [""; 0]);
    let (left, other) = (deployments.get_opt("shop").await, sites.get("other").await);
    assert!(
        left.unwrap()
            .is_none_or(|left| left.meta().deletion_timestamp.is_some())
    );
    assert!(other.unwrap().finalizers().is_empty(), "it has no label");
}

#[tokio::test]
async fn what_a_recorder_tells_is_an_event_that_counts() {
    let swarm = Swarm::start().await;
    let sites: Api<ConfigMap> = Api::namespaced(swarm.client.clone(), "default");
    let site = sites
        .create(&PostParams::default(), &config_map("site", json!({}), json!({})))
        .await
        .unwrap();
    let recorder = Recorder::new(swarm.client.clone(), "sites.example.org/operator".into());
    let told = runtime::events::Event {
        type_: EventType::Normal,
        reason: "Deployed".into(),
        note: Some("it is there".into()),
        action: "Deploying".into(),
        secondary: None,
    };
    for _ in 0..3 {
        recorder.publish(&told, &site.object_ref(&())).await.unwrap();
    }
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(swarm.client.clone(), "default");
    let found = events
        .list(&ListParams::default().fields("reason=Deployed"))
        .await
        .unwrap();
    let counts = found
        .items
        .iter()
        .map(|event| event.series.as_ref().map(|series| series.count));
    assert_eq!(counts.collect::<Vec<_>>(), [Some(3)]);
}
