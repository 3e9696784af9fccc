//! The tasks of all probes on this node: started with a container, ended with it, reporting into its pod's memory.
//!
//! What a probe does and what its results mean is in [`super::probe`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1;
use schemas::ObjectKey;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::memory::PodMemory;
use super::plan::{Phase, Wanted};
use super::probe::{Checker, ProbeKind, Prober, probes_of, watch_probe};
use super::runner::{Job, PodPorts, lock};
use super::view::{Attempts, running_for};
use crate::ports::{Clock, Container, ContainerId, ContainerRuntime, EventKind, EventRecord, EventSink};

/// Runs the probes of all pods.
pub(super) struct Probing {
    runtime: Arc<dyn ContainerRuntime>,
    prober: Arc<dyn Prober>,
    events: Arc<dyn EventSink>,
    clock: Arc<dyn Clock>,
    wake: mpsc::Sender<String>,
    /// By pod uid.
    pods: Mutex<HashMap<String, HashMap<ContainerId, Tasks>>>,
}

/// The probes of one container; dropped with it.
struct Tasks {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Probing {
    /// `wake` is sent the uid of a pod of which a probe has changed something.
    pub(super) fn new(ports: &PodPorts, wake: mpsc::Sender<String>) -> Probing {
        Probing {
            runtime: ports.runtime.clone(),
            prober: ports.prober.clone(),
            events: ports.events.clone(),
            clock: ports.clock.clone(),
            wake,
            pods: Mutex::default(),
        }
    }

    /// Ends all probes of a pod.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.pods).remove(uid);
    }

    /// Starts the probes of containers that run, and ends those of containers that do not.
    pub(super) fn supervise(&self, job: &Job<'_>, memory: &Arc<Mutex<PodMemory>>, containers: &[Container]) {
        let pod = match (&job.wanted, job.pod) {
            (Wanted::Running { .. }, Some(pod)) if Phase::of(pod).is_none() => pod,
            _ => return self.forget(job.uid),
        };
        let has_probes = |container: &&v1::Container| {
            let probes = [
                &container.startup_probe,
                &container.liveness_probe,
                &container.readiness_probe,
            ];
            probes.iter().any(|probe| probe.is_some())
        };
        let mut wanted: HashMap<ContainerId, Tasks> = HashMap::new();
        let attempts = Attempts::by_name(containers);
        let mut all = lock(&self.pods);
        let mut running = all.remove(job.uid).unwrap_or_default();
        for spec in pod.all_containers().filter(has_probes) {
            let latest = attempts.get(spec.name.as_str()).and_then(Attempts::latest);
            let Some((_, latest)) = latest else { continue };
            let Some(age) = running_for(latest, self.clock.unix_seconds()) else {
                continue;
            };
            let tasks = running
                .remove(&latest.id)
                .or_else(|| self.start(job, memory, spec, &latest.id, age));
            if let Some(tasks) = tasks {
                wanted.insert(latest.id.clone(), tasks);
            }
        }
        if !wanted.is_empty() {
            all.insert(job.uid.to_owned(), wanted);
        }
    }

    /// Starts the probes of a container, once its pod has an address.
    fn start(
        &self,
        job: &Job<'_>,
        memory: &Arc<Mutex<PodMemory>>,
        spec: &v1::Container,
        id: &ContainerId,
        age: Duration,
    ) -> Option<Tasks> {
        let (address, started) = {
            let memory = lock(memory);
            let probes = memory.container(&spec.name)?.probes.as_ref()?;
            (memory.attachment.as_ref()?.address, probes.started)
        };
        let mut plans = probes_of(spec, address, age);
        plans.retain(|plan| plan.kind != ProbeKind::Startup || !started);
        let started = Arc::new(watch::Sender::new(started));
        let tasks = plans.into_iter().map(|plan| {
            let checker = Checker {
                prober: self.prober.clone(),
                runtime: self.runtime.clone(),
                container: id.clone(),
            };
            let reporter = Reporter {
                key: job.key.clone(),
                uid: job.uid.to_owned(),
                container: spec.name.clone(),
                id: id.clone(),
                memory: memory.clone(),
                events: self.events.clone(),
                wake: self.wake.clone(),
                started: started.clone(),
            };
            let started = started.subscribe();
            let report = move |kind, verdict, outcome| reporter.report(kind, verdict, outcome);
            AbortOnDropHandle::new(tokio::spawn(watch_probe(plan, checker, age, started, report)))
        });
        Some(Tasks {
            _tasks: tasks.collect(),
        })
    }
}

/// Brings results of probes into a pod's memory and wakes the pod where they change something.
struct Reporter {
    key: ObjectKey,
    uid: String,
    container: String,
    id: ContainerId,
    memory: Arc<Mutex<PodMemory>>,
    events: Arc<dyn EventSink>,
    wake: mpsc::Sender<String>,
    started: Arc<watch::Sender<bool>>,
}

impl Reporter {
    fn report(&self, kind: ProbeKind, verdict: Option<bool>, outcome: Result<(), String>) {
        let message = outcome.err();
        let changed = {
            let mut memory = lock(&self.memory);
            let results = memory
                .containers
                .get_mut(&self.container)
                .and_then(|memory| memory.probes.as_mut());
            match results.filter(|results| results.container == self.id) {
                Some(results) => {
                    let before = results.clone();
                    results.report(kind, verdict, message.as_deref().unwrap_or_default());
                    before != *results
                }
                None => false,
            }
        };
        if kind == ProbeKind::Startup && verdict == Some(true) {
            self.started.send_replace(true);
        }
        if let Some(message) = message {
            self.events.event(EventRecord {
                key: self.key.clone(),
                uid: self.uid.clone(),
                kind: EventKind::Warning,
                reason: "Unhealthy",
                message: format!("{} probe failed: {message}", kind.name()),
                component: "kubelet",
            });
        }
        if changed && self.wake.try_send(self.uid.clone()).is_err() {
            warn!(
                uid = self.uid,
                "too many pods wait to be woken; the next resync looks at this one"
            );
        }
    }
}
