//! The controller of this node's pods: looks up in the store what is wanted, and lets [`PodRunner`] bring it about.
//!
//! A pod's containers are stopped for three reasons only: its document says so, its tombstone does, or its document
//! places it on another node. That a pod is absent from the store means nothing: it may not have arrived yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use schemas::deletion::{DEFAULT_GRACE_SECONDS, is_held};
use schemas::meta::manager_through;
use schemas::{Kind, Object, ObjectKey};
use store::{Author, Precondition, Store, Via, View, WatchEvent, WatchScope, WriteError};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::plan::{Phase, Wanted, grace};
use super::runner::{Job, PodDocuments, PodPorts, PodRunner, Step};
use super::spec::{DesiredPod, NodeSettings};
use super::volumes;
use crate::controller::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::ports::{Announcer, Clock, ContainerRuntime, PodNetwork, PortError};
use crate::redirects::redirects;

/// Pods that are worked on at a time. Most of them wait (for a grace, a pull, a permit to create), so there is room for
/// all pods of a node (Kubernetes' limit of 110) twice; what costs is limited where it is done.
pub const WORKERS: usize = 256;
/// Plans of one pod in one run: setting up, init containers and clean-up take a few; more would be a plan that does not
/// become empty, and must not spin.
const STEPS_MAX: usize = 8;
/// When to go on after [`STEPS_MAX`] steps that all found something to do: a pod that needs more is late by this, one whose
/// plan never becomes empty costs eight steps a second.
const STEPS_PAUSE: Duration = Duration::from_secs(1);
/// How long the first pass waits for probes of adopted pods before it counts as complete all the same.
const FIRST_PASS_MAX: Duration = Duration::from_secs(5);

/// What the root package gives to the pods of this node.
#[derive(Clone)]
pub struct PodAdapters {
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn PodNetwork>,
    pub announcer: Arc<dyn Announcer>,
    pub prober: Arc<dyn super::probe::Prober>,
}

/// Runs the pods that are placed on this node. The key is a pod's uid.
pub struct PodReconciler {
    context: Context,
    node_name: String,
    data_dir: std::path::PathBuf,
    network: Arc<dyn PodNetwork>,
    runner: PodRunner,
    /// Pods that are or were on this node, while anything of them is left.
    index: Mutex<HashMap<String, Known>>,
    woken: Mutex<Option<mpsc::Receiver<String>>>,
    runtime: Arc<dyn ContainerRuntime>,
}

#[derive(Clone)]
struct Known {
    key: ObjectKey,
    /// As its document said last.
    grace: Duration,
    /// Its document said that it is to end.
    terminating: bool,
    /// Its last form that was valid.
    valid: Option<Arc<Object>>,
}

/// What the store says of a pod.
enum Found {
    Here(DesiredPod),
    Ended {
        pod: Option<DesiredPod>,
        grace: Duration,
        remove_object: bool,
    },
    /// Nothing that could be acted on.
    Unknown,
}

impl PodReconciler {
    pub fn new(context: &Context, adapters: PodAdapters, node: NodeSettings) -> PodReconciler {
        let documents = Documents {
            store: context.store.clone(),
            clock: context.clock.clone(),
        };
        let ports = PodPorts {
            runtime: adapters.runtime.clone(),
            network: adapters.network.clone(),
            announcer: adapters.announcer,
            events: context.events.clone(),
            clock: context.clock.clone(),
            prober: adapters.prober,
            documents: Arc::new(documents),
        };
        let (node_name, data_dir) = (node.name.clone(), node.data_dir.clone());
        let (runner, woken) = PodRunner::new(ports, node);
        PodReconciler {
            context: context.clone(),
            node_name,
            data_dir,
            network: adapters.network,
            runner,
            index: Mutex::default(),
            woken: Mutex::new(Some(woken)),
            runtime: adapters.runtime,
        }
    }

    /// Adopts what runs, gives back addresses and directories of pods that left nothing else, and returns the stream for
    /// [`crate::controller::run`]. To be called once, before it; again after an error.
    ///
    /// # Errors
    /// The runtime or the network does not answer.
    pub async fn prepare(&self) -> Result<BoxStream<'static, String>, PortError> {
        let events = self.runtime.events();
        self.runner.adopt().await?;
        self.sweep().await?;
        for uid in self.runner.known() {
            self.remember_from_labels(&uid);
        }
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let woken = stream::unfold(woken, |woken| async move {
            let mut woken = woken?;
            woken.recv().await.map(|uid| (uid, Some(woken)))
        });
        let events = events.map(|uid| (uid, true));
        let merged = stream::select(events, woken.map(|uid| (uid, false)));
        let told = self.runner.teller();
        Ok(merged
            .map(move |(uid, from_runtime)| {
                if from_runtime {
                    told.tell(&uid);
                }
                uid
            })
            .boxed())
    }

    /// Waits until the status of every pod that ran when the agent started is announced, probes included, or a few
    /// seconds. Gossip under a new generation begins after this, so that a restart makes nothing flap.
    pub async fn first_pass(&self) {
        let mut adopting = self.runner.adopting();
        let complete = adopting.wait_for(|left| left.is_empty());
        if tokio::time::timeout(FIRST_PASS_MAX, complete).await.is_err() {
            let left = self.runner.adopting().borrow().len();
            warn!(
                left,
                "pods of before the start are announced without an answer of their probes"
            );
            self.runner.adopted();
        }
    }

    /// Takes back what no container is left of: without one, nothing runs that could need it, and a pod whose document
    /// has yet to arrive gets all of it anew.
    async fn sweep(&self) -> Result<(), PortError> {
        let known = self.runner.known();
        let pods = self.context.store.list(Kind::Pod, None);
        let mine: Vec<&View> = pods
            .items
            .iter()
            .filter(|view| self.is_mine(&view.object))
            .collect();
        let needed = |uid: &str| known.contains(uid) || mine.iter().any(|view| view.object.uid() == uid);
        for uid in self.network.attached().await?.into_keys() {
            if !needed(&uid) {
                info!(uid, "taking back the address of a pod that is gone");
                self.network.detach(&uid).await?;
            }
        }
        let Ok(directories) = std::fs::read_dir(self.data_dir.join("pods")) else {
            return Ok(());
        };
        for uid in directories
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
        {
            if !needed(&uid)
                && let Err(error) = volumes::remove(&volumes::pod_directory(&self.data_dir, &uid))
            {
                warn!(uid, %error, "cannot remove the volumes of a pod that is gone");
            }
        }
        Ok(())
    }

    fn is_mine(&self, pod: &Object) -> bool {
        pod.str_at("/spec/nodeName") == self.node_name
    }

    fn index(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, pod: &Object) {
        if let Some(key) = pod.key() {
            let grace = DesiredPod::read(Arc::new(pod.clone())).map_or(default_grace(), |pod| grace(&pod));
            let terminating = pod.is_terminating();
            let mut index = self.index();
            let valid = index.remove(pod.uid()).and_then(|known| known.valid);
            let known = Known {
                key,
                grace,
                terminating,
                valid,
            };
            index.insert(pod.uid().to_owned(), known);
        }
    }

    fn remember_from_labels(&self, uid: &str) {
        if let Some(key) = self.runner.key_of(uid) {
            let grace = default_grace();
            let known = Known {
                key,
                grace,
                terminating: false,
                valid: None,
            };
            self.index().entry(uid.to_owned()).or_insert(known);
        }
    }

    /// Notes a pod of the store if it concerns this node, and returns its uid then.
    fn concerned(&self, pod: &Object) -> Option<String> {
        let uid = pod.uid();
        if self.is_mine(pod) || self.index().contains_key(uid) {
            self.remember(pod);
            return Some(uid.to_owned());
        }
        None
    }

    fn pods_of_namespace(&self, namespace: &str) -> Vec<String> {
        let index = self.index();
        let inside = index.iter().filter(|(_, known)| known.key.namespace == namespace);
        inside.map(|(uid, _)| uid.clone()).collect()
    }

    fn find(&self, uid: &str) -> Found {
        let Some(Known {
            key,
            grace: last_grace,
            terminating: was_terminating,
            valid,
        }) = self.index().get(uid).cloned()
        else {
            return Found::Unknown;
        };
        // Removed before its containers had ended: somebody did not want to wait (`kubectl delete --force`).
        let hurried = if was_terminating {
            Duration::ZERO
        } else {
            last_grace.min(default_grace())
        };
        let gone = Found::Ended {
            pod: None,
            grace: hurried,
            remove_object: false,
        };
        let Some(view) = self.context.store.get(&key) else {
            return if self.context.store.is_removed(&key, uid) {
                gone
            } else {
                Found::Unknown
            };
        };
        let node = view.object.str_at("/spec/nodeName");
        if view.object.uid() != uid {
            // Another incarnation of the name: ours was removed before that one could be made.
            return gone;
        }
        if node.is_empty() {
            return Found::Unknown;
        }
        if node != self.node_name {
            return gone;
        }
        let terminating = view.object.is_terminating();
        let wanted = match terminating {
            true => Some(view.object.clone()),
            false => self.valid(&view.object, valid),
        };
        let Some(pod) = wanted.and_then(DesiredPod::read) else {
            if !terminating {
                return Found::Unknown;
            }
            return Found::Ended {
                pod: None,
                grace: last_grace,
                remove_object: !is_held(&view.object),
            };
        };
        if !terminating {
            return Found::Here(pod);
        }
        Found::Ended {
            grace: grace(&pod),
            remove_object: !is_held(&pod.object),
            pod: Some(pod),
        }
    }

    /// Returns a pod that is valid. Of one that is not, its containers are kept as its last form says that was: the one that
    /// was acted on, or after a restart the last in its history.
    fn valid(&self, pod: &Arc<Object>, before: Option<Arc<Object>>) -> Option<Arc<Object>> {
        if self.context.faults.of(pod).is_none() {
            if let Some(known) = self.index().get_mut(pod.uid()) {
                known.valid = Some(pod.clone());
            }
            return Some(pod.clone());
        }
        let before = before.or_else(|| self.context.settled(pod))?;
        let mut held = Object::clone(pod);
        held.set(&["spec"], before.0.get("spec")?.clone());
        held.set(&["spec", "nodeName"], self.node_name.as_str());
        Some(Arc::new(held))
    }

    /// Tells whether something else is wanted than when `before` was found.
    fn is_overtaken(&self, uid: &str, before: &Found) -> bool {
        match (before, self.find(uid)) {
            (Found::Here(_), Found::Here(_)) | (Found::Unknown, _) => false,
            (Found::Ended { grace: before, .. }, Found::Ended { grace: now, .. }) => now < *before,
            (Found::Here(_) | Found::Ended { .. }, _) => true,
        }
    }

    async fn step(&self, uid: &str, found: &Found) -> Result<Step, ReconcileError> {
        let Some(Known { key, .. }) = self.index().get(uid).cloned() else {
            return Ok(Step::Idle(None));
        };
        let services;
        let wanted_redirects;
        let (pod, wanted) = match found {
            Found::Unknown => {
                debug!(
                    uid,
                    "nothing is known of this pod yet, its containers are left alone"
                );
                self.runner.pass(uid);
                return Ok(Step::Idle(None));
            }
            Found::Here(pod) => {
                services = self.context.settled_objects(Kind::Service, Some(&key.namespace));
                let services: Vec<&Object> = services.iter().map(AsRef::as_ref).collect();
                wanted_redirects = redirects(pod, &services);
                let redirects = wanted_redirects.as_slice();
                (Some(pod), Wanted::Running { pod, redirects })
            }
            Found::Ended {
                pod,
                grace,
                remove_object,
            } => {
                let (grace, remove_object) = (*grace, *remove_object);
                (pod.as_ref(), Wanted::Ended { grace, remove_object })
            }
        };
        let job = Job {
            key: &key,
            uid,
            pod,
            wanted,
        };
        self.runner.step(&job, &|| self.is_overtaken(uid, found)).await
    }
}

fn default_grace() -> Duration {
    Duration::from_secs(DEFAULT_GRACE_SECONDS.into())
}

/// Tells whether a change of a pod's view can change its plan: everything but its own status coming back.
fn matters(previous: &Object, current: &Object) -> bool {
    let pointers = [
        "/metadata/uid",
        "/metadata/deletionTimestamp",
        "/metadata/deletionGracePeriodSeconds",
        "/metadata/finalizers",
        "/metadata/labels",
        "/metadata/annotations",
        "/metadata/ownerReferences",
        "/status/phase",
        "/spec",
    ];
    pointers
        .iter()
        .any(|pointer| previous.pointer(pointer) != current.pointer(pointer))
}

#[async_trait]
impl Reconciler for PodReconciler {
    type Key = String;

    fn name(&self) -> &'static str {
        "pod"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Pod, Kind::Service],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<String> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, previous }) if view.key.kind == Kind::Pod => {
                if previous
                    .as_ref()
                    .is_some_and(|previous| !matters(previous, &view.object))
                {
                    return Vec::new();
                }
                let before = previous
                    .as_ref()
                    .filter(|previous| previous.uid() != view.object.uid());
                let before = before.and_then(|previous| self.concerned(previous));
                before.into_iter().chain(self.concerned(&view.object)).collect()
            }
            Trigger::Store(WatchEvent::Deleted { view }) if view.key.kind == Kind::Pod => {
                self.concerned(&view.object).into_iter().collect()
            }
            Trigger::Store(WatchEvent::Put { view, .. } | WatchEvent::Deleted { view }) => {
                self.pods_of_namespace(&view.key.namespace)
            }
            Trigger::Cluster(_) => Vec::new(),
            Trigger::Runtime(uid) if !uid.is_empty() => {
                self.remember_from_labels(uid);
                vec![uid.clone()]
            }
            Trigger::Runtime(_) | Trigger::Resync => {
                self.runner.tell("");
                for uid in self.runner.known() {
                    self.remember_from_labels(&uid);
                }
                self.index().keys().cloned().collect()
            }
        }
    }

    async fn reconcile(&self, uid: &String) -> Result<Next, ReconcileError> {
        for _ in 0..STEPS_MAX {
            let found = self.find(uid);
            match self.step(uid, &found).await? {
                Step::Acted => {}
                Step::Idle(again) => {
                    let ended = matches!(found, Found::Ended { .. }) || self.store_forgot(uid);
                    if ended && again.is_none() && !self.runner.known().contains(uid) {
                        self.index().remove(uid);
                    }
                    return Ok(again.map_or(Next::Done, Next::After));
                }
            }
        }
        warn!(
            uid,
            steps = STEPS_MAX,
            "there is still something to do for a pod, will go on after a pause"
        );
        Ok(Next::After(STEPS_PAUSE))
    }
}

impl PodReconciler {
    fn store_forgot(&self, uid: &str) -> bool {
        let known = self.index().get(uid).cloned();
        known.is_some_and(|known| {
            self.context
                .store
                .get(&known.key)
                .is_none_or(|view| view.object.uid() != uid)
        })
    }
}

/// [`PodDocuments`] on the store.
struct Documents {
    store: Store,
    clock: Arc<dyn Clock>,
}

impl Documents {
    fn author(&self) -> Author {
        Author {
            // What it writes of a pod is its status alone.
            manager: manager_through("kubelet", "status"),
            user: String::new(),
            via: Via::Controller,
            unix_seconds: self.clock.unix_seconds(),
        }
    }
}

/// An incarnation that is gone, or replaced by another, needs no more writing.
fn unless_gone(written: Result<View, WriteError>) -> Result<(), ReconcileError> {
    match written {
        Ok(_) | Err(WriteError::NotFound(_) | WriteError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl PodDocuments for Documents {
    async fn record(&self, key: &ObjectKey, uid: &str, phase: Phase) -> Result<(), ReconcileError> {
        let precondition = Precondition {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        let change = |pod: &Object| -> Result<Object, WriteError> {
            let mut pod = pod.clone();
            pod.set(&["status", "phase"], phase.name());
            Ok(pod)
        };
        unless_gone(self.store.update(key, &precondition, self.author(), change).await)
    }

    async fn remove(&self, key: &ObjectKey, uid: &str) -> Result<(), ReconcileError> {
        let precondition = Precondition {
            uid: Some(uid.to_owned()),
            resource_version: None,
        };
        unless_gone(self.store.remove(key, &precondition, self.author()).await)
    }
}

#[cfg(test)]
#[path = "reconciler_tests.rs"]
mod tests;
