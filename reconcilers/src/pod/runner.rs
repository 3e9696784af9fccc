//! Carries out the plan of one pod on the ports, and keeps what it learns in the pod's memory.
//!
//! No decision is taken here that [`super::plan()`] could take. The store is not known here: [`super::reconciler`] looks up
//! what is wanted and calls [`PodRunner::step`] until nothing is left to do.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::core::v1;
use schemas::ObjectKey;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{info, warn};

use super::containers::{Containers, Observation};
use super::memory::{Backoff, Failure, PodMemory};
use super::plan::{Action, Phase, Plan, Wanted, plan};
use super::probe::{ProbeResults, Prober};
use super::probing::Probing;
use super::spec::{
    Built, ConfigError, DesiredPod, NodeSettings, Surroundings, build, host_attachment, needs_image_user,
    pull_policy,
};
use super::status::{StatusInput, status};
use super::stop::interruptible;
use super::volumes;
use crate::controller::ReconcileError;
use crate::ports::{
    Announcer, Attachment, Clock, Container, ContainerId, ContainerRuntime, ContainerState, EventKind,
    EventRecord, EventSink, PodNetwork, PortError, labels,
};

/// Creations at a time: measured, four saturate two cores and more make Podman slower.
const CREATIONS_MAX: usize = 4;
/// Removals at a time: they wait in Podman's poll of 100 ms more than they work.
const REMOVALS_MAX: usize = 8;
/// Pods that may be waiting to be woken by probes; beyond that the periodic resync finds them.
const WAKE_MAX: usize = 4096;
/// Longest message of a failure that is kept; causes stand at the beginning.
const MESSAGE_MAX: usize = 1024;

/// What pods act through.
#[derive(Clone)]
pub struct PodPorts {
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn PodNetwork>,
    pub announcer: Arc<dyn Announcer>,
    pub events: Arc<dyn EventSink>,
    pub clock: Arc<dyn Clock>,
    pub prober: Arc<dyn Prober>,
    pub documents: Arc<dyn PodDocuments>,
}

/// The two writes that a pod's node makes to its document.
#[async_trait]
pub trait PodDocuments: Send + Sync {
    /// Writes the last phase. The incarnation is gone: Ok.
    async fn record(&self, key: &ObjectKey, uid: &str, phase: Phase) -> Result<(), ReconcileError>;
    /// The last step of a deletion. The incarnation is gone: Ok.
    async fn remove(&self, key: &ObjectKey, uid: &str) -> Result<(), ReconcileError>;
}

/// One pod and what is to become of it.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub key: &'a ObjectKey,
    pub uid: &'a str,
    /// Its document, if that is still there.
    pub pod: Option<&'a DesiredPod>,
    pub wanted: Wanted<'a>,
}

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing to do now; look again after this, if anything.
    Idle(Option<Duration>),
    /// Something was done: look again at once.
    Acted,
}

/// Runs the pods of this node.
pub struct PodRunner {
    pub(super) ports: PodPorts,
    node: NodeSettings,
    pub(super) containers: Arc<Containers>,
    pods: Mutex<HashMap<String, Arc<Mutex<PodMemory>>>>,
    probing: Probing,
    creations: Semaphore,
    /// Pods that ran when the agent started and whose status is not announced yet.
    adopting: watch::Sender<HashSet<String>>,
}

/// Tells a runner what the runtime's events say.
#[derive(Clone)]
pub struct Teller(Arc<Containers>);

impl Teller {
    /// As [`PodRunner::tell`].
    pub fn tell(&self, uid: &str) {
        self.0.tell(uid);
    }
}

/// How an action ended, if it did not end with an error worth a retry of everything.
pub(super) enum Outcome {
    Done,
    /// Written into the memory; other containers of the pod go on.
    ContainerFailed,
    /// Written into the memory; nothing else can be done for the pod now.
    PodFailed,
    /// Another state is wanted by now.
    Interrupted,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PodRunner {
    /// Makes a runner, and the receiver of the uids of pods that must be looked at because of a probe.
    pub fn new(ports: PodPorts, node: NodeSettings) -> (PodRunner, mpsc::Receiver<String>) {
        let (wake, woken) = mpsc::channel(WAKE_MAX);
        let probing = Probing::new(&ports, wake);
        let containers = Arc::new(Containers::new(ports.runtime.clone(), ports.clock.clone()));
        let runner = PodRunner {
            ports,
            node,
            containers,
            pods: Mutex::default(),
            probing,
            creations: Semaphore::new(CREATIONS_MAX),
            adopting: watch::Sender::new(HashSet::new()),
        };
        (runner, woken)
    }

    /// Takes in what runs already, before the first step.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn adopt(&self) -> Result<(), PortError> {
        self.containers.observe("").await?;
        let mut running = HashSet::new();
        for uid in self.containers.pods() {
            let containers = self.containers.observe(&uid).await?.containers;
            if containers
                .iter()
                .any(|container| matches!(container.state, ContainerState::Running { .. }))
            {
                running.insert(uid);
            }
        }
        self.adopting.send_replace(running);
        Ok(())
    }

    /// Follows which adopted pods are not announced yet; empty when the first pass over the runtime is complete.
    pub fn adopting(&self) -> watch::Receiver<HashSet<String>> {
        self.adopting.subscribe()
    }

    /// Ends the first pass: what is announced by now is what others hear.
    pub fn adopted(&self) {
        self.adopting.send_replace(HashSet::new());
    }

    /// Notes that something happened to a pod's containers; empty: to any.
    pub fn tell(&self, uid: &str) {
        self.containers.tell(uid);
    }

    /// Returns a handle for [`PodRunner::tell`] that outlives a borrow.
    pub fn teller(&self) -> Teller {
        Teller(self.containers.clone())
    }

    /// Returns the uids of all pods that have containers or are remembered.
    pub fn known(&self) -> HashSet<String> {
        let mut known: HashSet<String> = self.containers.pods().into_iter().collect();
        known.extend(lock(&self.pods).keys().cloned());
        known
    }

    /// Reads the key of a pod from its containers' labels.
    pub fn key_of(&self, uid: &str) -> Option<ObjectKey> {
        let container = self.containers.any_of(uid)?;
        let namespace = container.labels.get(labels::POD_NAMESPACE)?;
        let name = container.labels.get(labels::POD_NAME)?;
        Some(ObjectKey::new(schemas::Kind::Pod, namespace, name))
    }

    /// Plans once and carries the plan out. `interrupted` tells whether something else is wanted by now.
    ///
    /// # Errors
    /// A port or the store did not answer; the next step goes on from where this one ended.
    pub async fn step(
        &self,
        job: &Job<'_>,
        interrupted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Step, ReconcileError> {
        let Observation {
            containers,
            stale_for,
        } = self.containers.observe(job.uid).await?;
        let known = lock(&self.pods).contains_key(job.uid);
        if let Wanted::Ended {
            remove_object: false, ..
        } = job.wanted
            && containers.is_empty()
            && !known
        {
            return Ok(Step::Idle(None));
        }
        let memory = self.memory(job.uid);
        let Plan { actions, again } = self.observe(job, &memory, &containers);
        if actions.is_empty() {
            return Ok(Step::Idle(again.into_iter().chain(stale_for).min()));
        }
        let mut failed: HashSet<String> = HashSet::new();
        for action in &actions {
            let container = match action {
                Action::Pull { container }
                | Action::Run { container, .. }
                | Action::Start { container, .. } => Some(container),
                _ => None,
            };
            if container.is_some_and(|container| failed.contains(container)) {
                continue;
            }
            if interrupted() {
                break;
            }
            match self.act(action, job, &memory, &containers, interrupted).await? {
                Outcome::Done => {}
                Outcome::ContainerFailed => failed.extend(container.cloned()),
                Outcome::PodFailed | Outcome::Interrupted => break,
            }
        }
        Ok(Step::Acted)
    }

    fn memory(&self, uid: &str) -> Arc<Mutex<PodMemory>> {
        lock(&self.pods).entry(uid.to_owned()).or_default().clone()
    }

    /// Takes in what is there, announces it, and plans.
    fn observe(&self, job: &Job<'_>, memory: &Arc<Mutex<PodMemory>>, containers: &[Container]) -> Plan {
        let now = self.ports.clock.now();
        let unix_seconds = self.ports.clock.unix_seconds();
        let planned = {
            let mut memory = lock(memory);
            memory.observe(containers, now, |name, running| {
                let spec = job.pod.and_then(|pod| pod.container(name));
                ProbeResults::before(running, spec, unix_seconds)
            });
            match job.pod {
                Some(pod) => self.announce(job, pod, &mut memory, containers),
                None => self.pass(job.uid),
            }
            plan(&job.wanted, containers, &memory, now)
        };
        self.probing.supervise(job, memory, containers);
        planned
    }

    fn announce(&self, job: &Job<'_>, pod: &DesiredPod, memory: &mut PodMemory, containers: &[Container]) {
        let shown = pod.object.pointer("/status");
        // What is announced before its probes have answered is said to nobody, and no change begins with it.
        let adopting = self.adopting.borrow().contains(job.uid);
        let announced = memory.announced.as_ref().filter(|_| !adopting);
        let status = status(&StatusInput {
            pod,
            containers,
            memory,
            host_address: self.node.address,
            previous: announced.or(shown),
            now: self.ports.clock.now(),
            unix_seconds: self.ports.clock.unix_seconds(),
        });
        self.report_backoff(job, memory, &status);
        if memory.announced.as_ref() != Some(&status) {
            self.ports.announcer.announce_pod(job.uid, Some(status.clone()));
            memory.announced = Some(status);
        }
        let settled = |probes: &ProbeResults| probes.settled;
        if memory
            .containers
            .values()
            .all(|container| container.probes.as_ref().is_none_or(settled))
        {
            self.pass(job.uid);
        }
    }

    /// Counts a pod as seen by the first pass: nothing more is to be announced of it.
    pub(super) fn pass(&self, uid: &str) {
        self.adopting.send_if_modified(|adopting| adopting.remove(uid));
    }

    /// Tells once for each exit that the restart is held back.
    fn report_backoff(&self, job: &Job<'_>, memory: &mut PodMemory, status: &Value) {
        let lists = ["initContainerStatuses", "containerStatuses"];
        for entry in lists
            .iter()
            .filter_map(|list| status.get(list)?.as_array())
            .flatten()
        {
            let name = entry["name"].as_str().unwrap_or_default();
            if entry.pointer("/state/waiting/reason").and_then(Value::as_str) != Some("CrashLoopBackOff") {
                continue;
            }
            if let Some(container) = memory.containers.get_mut(name)
                && let Some((exited, _)) = container.exit.clone()
                && container.told.as_ref() != Some(&exited)
            {
                container.told = Some(exited);
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    job.key.name
                );
                self.event(job, EventKind::Warning, "BackOff", message);
            }
        }
    }

    pub(super) fn event(&self, job: &Job<'_>, kind: EventKind, reason: &'static str, message: String) {
        self.ports.events.event(EventRecord {
            key: job.key.clone(),
            uid: job.uid.to_owned(),
            kind,
            reason,
            message,
            component: "kubelet",
        });
    }

    async fn act(
        &self,
        action: &Action,
        job: &Job<'_>,
        memory: &Arc<Mutex<PodMemory>>,
        containers: &[Container],
        interrupted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Outcome, ReconcileError> {
        match action {
            Action::MakeVolumes => Ok(self.make_volumes(job, memory).await),
            Action::Attach => self.attach(job, memory, containers).await,
            Action::SetRedirects(redirects) => {
                self.ports.network.set_redirects(job.uid, redirects).await?;
                lock(memory).redirects = Some(redirects.clone());
                Ok(Outcome::Done)
            }
            Action::Pull { container } => self.pull(container, job, memory, interrupted).await,
            Action::Run { container, attempt } => self.run(container, *attempt, job, memory).await,
            Action::Start { container, id } => self.start(container, id, job, memory).await,
            Action::Stop {
                containers: stopped,
                grace,
                why,
            } => {
                self.report_stop(job, stopped, containers, why);
                self.stop(job.uid, stopped, *grace, interrupted).await
            }
            Action::Detach => {
                self.ports.network.detach(job.uid).await?;
                let mut memory = lock(memory);
                memory.attachment = None;
                memory.redirects = None;
                Ok(Outcome::Done)
            }
            Action::RemoveVolumes => {
                let directory = volumes::pod_directory(&self.node.data_dir, job.uid);
                on_disk(move || volumes::remove(&directory))
                    .await
                    .map_err(|error| {
                        let message = error.to_string();
                        PortError::Unavailable {
                            operation: "remove volumes",
                            message,
                        }
                    })?;
                let mut memory = lock(memory);
                memory.cleaned = true;
                memory.volumes_made = false;
                Ok(Outcome::Done)
            }
            Action::Remove { containers } => self.remove(job.uid, containers).await,
            Action::Record(phase) => {
                self.ports.documents.record(job.key, job.uid, *phase).await?;
                lock(memory).ended = Some(*phase);
                Ok(Outcome::Done)
            }
            Action::RemoveObject => {
                self.ports.documents.remove(job.key, job.uid).await?;
                info!(
                    namespace = job.key.namespace,
                    name = job.key.name,
                    uid = job.uid,
                    "pod removed"
                );
                Ok(Outcome::Done)
            }
            Action::Forget => {
                self.ports.announcer.announce_pod(job.uid, None);
                lock(&self.pods).remove(job.uid);
                self.probing.forget(job.uid);
                self.pass(job.uid);
                Ok(Outcome::Done)
            }
        }
    }

    async fn make_volumes(&self, job: &Job<'_>, memory: &Mutex<PodMemory>) -> Outcome {
        let Some(pod) = job.pod else {
            return Outcome::Interrupted;
        };
        for volume in volumes::memory_volumes(pod) {
            let message = format!("emptyDir \"{volume}\" is on disk: medium Memory is not supported yet");
            self.event(job, EventKind::Warning, "EmptyDirOnDisk", message);
        }
        let ground = volumes::ground(pod, &self.node);
        match on_disk(move || volumes::make(&ground)).await {
            Ok(()) => {
                lock(memory).volumes_made = true;
                Outcome::Done
            }
            Err(error) => self.setup_failed(job, memory, "FailedMount", error.to_string()),
        }
    }

    async fn attach(
        &self,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
        containers: &[Container],
    ) -> Result<Outcome, ReconcileError> {
        let Some(pod) = job.pod else {
            return Ok(Outcome::Interrupted);
        };
        let attached = if pod.uses_host_network() {
            Ok(host_attachment(&self.node))
        } else {
            let _permit = self.creations.acquire().await;
            self.ports.network.attach(job.uid, &pod.host_ports()).await
        };
        match attached {
            Ok(attachment) => {
                let mut memory = lock(memory);
                memory.setup_failure = None;
                memory.cleaned = false;
                memory.redirects = containers.is_empty().then(Vec::new);
                memory.attachment = Some(attachment);
                Ok(Outcome::Done)
            }
            Err(error @ PortError::Unavailable { .. }) => Err(error.into()),
            Err(error) => Ok(self.setup_failed(job, memory, "FailedCreatePodSandBox", error.to_string())),
        }
    }

    fn setup_failed(
        &self,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
        reason: &'static str,
        message: String,
    ) -> Outcome {
        let message = cut(message);
        warn!(
            namespace = job.key.namespace,
            name = job.key.name,
            reason,
            error = message,
            "pod cannot be set up"
        );
        self.event(job, EventKind::Warning, reason, message.clone());
        let mut memory = lock(memory);
        memory.setup_failure = Some(Failure::again(
            memory.setup_failure.as_ref(),
            reason,
            message,
            self.ports.clock.now(),
        ));
        Outcome::PodFailed
    }

    async fn pull(
        &self,
        container: &str,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
        interrupted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Outcome, ReconcileError> {
        let Some(spec) = job.pod.and_then(|pod| pod.container(container)) else {
            return Ok(Outcome::Interrupted);
        };
        let image = spec.image.as_deref().unwrap_or_default();
        let policy = pull_policy(spec);
        let is_pulled = AtomicBool::new(false);
        let pulling = || {
            is_pulled.store(true, Ordering::Relaxed);
            let message = format!("Pulling image \"{image}\"");
            self.event(job, EventKind::Normal, "Pulling", message);
        };
        let pulled = interruptible(
            interrupted,
            self.ports.runtime.ensure_image(image, policy, &pulling),
        )
        .await;
        match pulled {
            None => Ok(Outcome::Interrupted),
            Some(Ok(())) => {
                // A failure stays until the container starts: what comes after the pull may fail as before.
                let message = if is_pulled.load(Ordering::Relaxed) {
                    format!("Successfully pulled image \"{image}\"")
                } else {
                    format!("Container image \"{image}\" present on machine")
                };
                self.event(job, EventKind::Normal, "Pulled", message);
                Ok(Outcome::Done)
            }
            Some(Err(error @ PortError::Unavailable { .. })) => Err(error.into()),
            Some(Err(PortError::Refused { reason, message })) => {
                let told = format!("Failed to pull image \"{image}\": {message}");
                self.event(job, EventKind::Warning, "Failed", cut(told));
                Ok(self.container_failed(container, job, memory, reason, message))
            }
            Some(Err(PortError::NotFound(what))) => Ok(self.container_failed(
                container,
                job,
                memory,
                "ErrImagePull",
                format!("{what} not found"),
            )),
        }
    }

    fn container_failed(
        &self,
        container: &str,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
        reason: &'static str,
        message: String,
    ) -> Outcome {
        let message = cut(message);
        warn!(
            namespace = job.key.namespace,
            name = job.key.name,
            container,
            reason,
            error = message,
            "container cannot run"
        );
        // Why an image could not be pulled has an event of its own.
        let cause = if reason.starts_with("ErrImage") {
            reason
        } else {
            &message
        };
        self.event(job, EventKind::Warning, "Failed", format!("Error: {cause}"));
        let now = self.ports.clock.now();
        let mut memory = lock(memory);
        let container = memory.containers.entry(container.to_owned()).or_default();
        container.failure = Some(Failure::again(container.failure.as_ref(), reason, message, now));
        Outcome::ContainerFailed
    }

    /// Creates and starts attempt number `attempt` of a container.
    async fn run(
        &self,
        name: &str,
        attempt: u32,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
    ) -> Result<Outcome, ReconcileError> {
        let (Some(pod), Some(attachment)) = (job.pod, lock(memory).attachment.clone()) else {
            return Ok(Outcome::Interrupted);
        };
        let Some(container) = pod.container(name) else {
            return Ok(Outcome::Interrupted);
        };
        let spec = match self.build(pod, &attachment, container, attempt).await {
            Ok(spec) => spec,
            Err(error @ PortError::Unavailable { .. }) => return Err(error.into()),
            Err(error) => {
                let message = error.to_string();
                return Ok(self.container_failed(name, job, memory, "CreateContainerConfigError", message));
            }
        };
        let permit = self.creations.acquire().await;
        let id = match self.ports.runtime.create(&spec).await {
            Ok(id) => id,
            Err(error @ PortError::Unavailable { .. }) => {
                // It may have been made all the same.
                self.containers.tell(job.uid);
                return Err(error.into());
            }
            Err(error) => {
                self.containers.tell(job.uid);
                let message = error.to_string();
                return Ok(self.container_failed(name, job, memory, "CreateContainerError", message));
            }
        };
        self.containers.insert(
            job.uid,
            Container {
                id: id.clone(),
                name: spec.name,
                image: spec.image,
                image_id: String::new(),
                labels: spec.labels,
                state: ContainerState::Created,
            },
        );
        self.hold_back_next(name, memory);
        self.event(
            job,
            EventKind::Normal,
            "Created",
            format!("Created container: {name}"),
        );
        let outcome = self.start(name, &id, job, memory).await;
        drop(permit);
        outcome
    }

    async fn build(
        &self,
        pod: &DesiredPod,
        attachment: &Attachment,
        container: &v1::Container,
        attempt: u32,
    ) -> Result<crate::ports::ContainerSpec, PortError> {
        let refused = |message: String| PortError::Refused {
            reason: "CreateContainerConfigError",
            message,
        };
        let image_user = if needs_image_user(pod, container) {
            let image = container.image.as_deref().unwrap_or_default();
            self.ports.runtime.image_user(image).await?
        } else {
            String::new()
        };
        let surroundings = Surroundings {
            pod,
            node: &self.node,
            gateway: self.ports.network.gateway(),
            attachment,
            image_user: &image_user,
        };
        let Built { mut spec, sub_paths } =
            build(&surroundings, container, attempt).map_err(|ConfigError(message)| refused(message))?;
        for sub_path in sub_paths {
            let mount = sub_path.mount;
            let located = on_disk(move || volumes::locate(&sub_path)).await;
            spec.mounts[mount].source = located.map_err(|error| refused(format!("subPath: {error}")))?;
        }
        Ok(spec)
    }

    /// Holds back the next attempt if this one replaces another.
    fn hold_back_next(&self, name: &str, memory: &Mutex<PodMemory>) {
        let now = self.ports.clock.now();
        let mut memory = lock(memory);
        let container = memory.containers.entry(name.to_owned()).or_default();
        if container.last_attempt.is_some() {
            let ended = container.exit.as_ref().map_or(now, |(_, seen)| *seen);
            container.backoff = Some(Backoff::next(container.backoff.as_ref(), ended, now));
        }
    }

    async fn start(
        &self,
        name: &str,
        id: &ContainerId,
        job: &Job<'_>,
        memory: &Mutex<PodMemory>,
    ) -> Result<Outcome, ReconcileError> {
        match self.ports.runtime.start(id).await {
            Ok(()) => {
                // The process id comes with the next list; nobody here needs it.
                let running = ContainerState::Running {
                    pid: 0,
                    started_unix_seconds: self.ports.clock.unix_seconds(),
                };
                self.containers.set_state(job.uid, id, &running);
                if let Some(memory) = lock(memory).containers.get_mut(name) {
                    memory.failure = None;
                }
                self.event(
                    job,
                    EventKind::Normal,
                    "Started",
                    format!("Started container {name}"),
                );
                info!(
                    namespace = job.key.namespace,
                    name = job.key.name,
                    container = name,
                    "container started"
                );
                Ok(Outcome::Done)
            }
            Err(error @ PortError::Unavailable { .. }) => {
                self.containers.tell(job.uid);
                Err(error.into())
            }
            Err(error) => {
                let outcome =
                    self.container_failed(name, job, memory, "RunContainerError", error.to_string());
                self.remove(job.uid, std::slice::from_ref(id)).await?;
                Ok(outcome)
            }
        }
    }

    async fn remove(&self, uid: &str, containers: &[ContainerId]) -> Result<Outcome, ReconcileError> {
        let removed: Vec<Result<(), PortError>> = stream::iter(containers.iter().cloned())
            .map(|id| async move {
                match self.ports.runtime.remove(&id).await {
                    Ok(()) | Err(PortError::NotFound(_)) => {
                        self.containers.remove(uid, &id);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(REMOVALS_MAX)
            .collect()
            .await;
        removed.into_iter().collect::<Result<(), PortError>>()?;
        Ok(Outcome::Done)
    }
}

/// Runs work that blocks on the disk.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
}

fn cut(message: String) -> String {
    match message.char_indices().nth(MESSAGE_MAX) {
        Some((at, _)) => message[..at].to_owned(),
        None => message,
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
