//! The plan for one pod: what is wanted and what is there make a list of actions. Total and pure.
//!
//! The list is in order and assumes that each action succeeds; when one fails, [`super::runner`] writes it into the
//! memory and the next plan reckons with it. Planning again after acting gives an empty list.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use schemas::deletion::DEFAULT_GRACE_SECONDS;

use super::memory::{Backoff, ContainerMemory, FAILURE_SHOWN, PodMemory};
use super::spec::{DesiredPod, spec_hash};
use super::view::{Attempts, may_run};
use crate::ports::{Container, ContainerId, ContainerState, Moment, PortRedirect, labels};

/// A state that is neither running nor exited (`stopping`) is looked at again after this.
const UNSETTLED_AGAIN: Duration = Duration::from_millis(500);

/// What is to become of a pod on this node.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// It is placed here.
    Running {
        pod: &'a DesiredPod,
        redirects: &'a [PortRedirect],
    },
    /// It is deleted, or placed on another node.
    Ended {
        grace: Duration,
        /// Its document is still there, and this node takes the last step.
        remove_object: bool,
    },
}

/// One step. Everything that an execution needs to know is in it, in the pod's spec or in the memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    MakeVolumes,
    Attach,
    SetRedirects(Vec<PortRedirect>),
    /// Makes the container's image present, by its policy.
    Pull {
        container: String,
    },
    /// Creates and starts a container.
    Run {
        container: String,
        attempt: u32,
    },
    /// Starts one that an earlier run of the agent, or a reboot, left created.
    Start {
        container: String,
        id: ContainerId,
    },
    /// Stops all of these at once.
    Stop {
        containers: Vec<ContainerId>,
        grace: Duration,
        why: StopReason,
    },
    Detach,
    RemoveVolumes,
    Remove {
        containers: Vec<ContainerId>,
    },
    /// Writes the last phase into the document: a fact that must not be forgotten.
    Record(Phase),
    RemoveObject,
    /// Takes back the announced status and the memory.
    Forget,
}

/// Why containers are stopped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// The pod is deleted, done, or placed elsewhere.
    Ended,
    /// Its liveness or startup probe failed; says how.
    Unhealthy { container: String, message: String },
    /// Its spec changed.
    Changed { container: String },
    /// Nothing in the pod's spec asks for it.
    Unwanted,
}

/// A phase that a pod never leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Succeeded,
    Failed,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Reads the last phase from a pod, if it has reached one.
    pub fn of(pod: &DesiredPod) -> Option<Phase> {
        match pod.object.str_at("/status/phase") {
            "Succeeded" => Some(Phase::Succeeded),
            "Failed" => Some(Phase::Failed),
            _ => None,
        }
    }
}

/// What to do now, and when to look again if nothing happens meanwhile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub again: Option<Duration>,
}

impl Plan {
    fn look_again(&mut self, pause: Duration) {
        self.again = Some(self.again.map_or(pause, |known| known.min(pause)));
    }
}

/// Plans one pod. `containers` are all of it that the runtime has.
pub fn plan(wanted: &Wanted<'_>, containers: &[Container], memory: &PodMemory, now: Moment) -> Plan {
    match wanted {
        Wanted::Ended { grace, remove_object } => plan_ended(*grace, *remove_object, containers, memory),
        Wanted::Running { pod, redirects } => match Phase::of(pod).or(memory.ended) {
            Some(_) => plan_finished(pod, containers, memory),
            None => plan_running(pod, redirects, containers, memory, now),
        },
    }
}

/// Containers go last: their labels are what a restarted agent finds the rest by.
fn plan_ended(grace: Duration, remove_object: bool, containers: &[Container], memory: &PodMemory) -> Plan {
    let mut actions = Vec::new();
    if containers.is_empty() && memory.cleaned && !remove_object {
        return Plan::default();
    }
    let alive: Vec<_> = containers
        .iter()
        .filter(|container| may_run(container))
        .map(id)
        .collect();
    if !alive.is_empty() {
        actions.push(Action::Stop {
            containers: alive,
            grace,
            why: StopReason::Ended,
        });
    }
    if !memory.cleaned {
        actions.extend([Action::Detach, Action::RemoveVolumes]);
    }
    if !containers.is_empty() {
        actions.push(Action::Remove {
            containers: containers.iter().map(id).collect(),
        });
    }
    if remove_object {
        actions.push(Action::RemoveObject);
    }
    actions.push(Action::Forget);
    Plan { actions, again: None }
}

/// A pod that is done keeps its containers for their logs, and nothing else.
fn plan_finished(pod: &DesiredPod, containers: &[Container], memory: &PodMemory) -> Plan {
    let mut plan = Plan::default();
    let alive: Vec<_> = containers
        .iter()
        .filter(|container| may_run(container))
        .map(id)
        .collect();
    if !alive.is_empty() {
        plan.actions.push(Action::Stop {
            containers: alive,
            grace: grace(pod),
            why: StopReason::Ended,
        });
    }
    if memory.attachment.is_some() && !pod.uses_host_network() {
        plan.actions.push(Action::Detach);
    }
    plan
}

fn plan_running(
    pod: &DesiredPod,
    redirects: &[PortRedirect],
    containers: &[Container],
    memory: &PodMemory,
    now: Moment,
) -> Plan {
    let attempts = Attempts::by_name(containers);
    let mut steps = Steps {
        pod,
        memory,
        now,
        plan: Plan::default(),
    };
    let outcome = steps.containers(&attempts);
    steps.clean_up(containers, &attempts);
    let Steps { plan: mut steps, .. } = steps;

    let starts = |action: &Action| matches!(action, Action::Run { .. } | Action::Start { .. });
    let to_start = steps.actions.iter().any(starts);
    let alive = containers.iter().any(may_run);
    let waits = containers
        .iter()
        .any(|container| container.state == ContainerState::Created);
    let attach = memory.attachment.is_none() && (to_start || alive || waits);
    if (to_start || attach)
        && let Some(failure) = memory
            .setup_failure
            .as_ref()
            .filter(|failure| failure.due() > now)
    {
        steps
            .actions
            .retain(|action| matches!(action, Action::Stop { .. } | Action::Remove { .. }));
        steps.look_again(failure.due().since(now));
        return steps;
    }
    let mut actions = Vec::new();
    if to_start && !memory.volumes_made && pod.spec().volumes.as_ref().is_some_and(|list| !list.is_empty()) {
        actions.push(Action::MakeVolumes);
    }
    if attach {
        actions.push(Action::Attach);
    }
    if (memory.attachment.is_some() || attach) && !pod.uses_host_network() {
        // A fresh namespace has none, so that a pod without redirects costs no call.
        let fresh = attach && containers.is_empty();
        let known = memory
            .redirects
            .as_deref()
            .or(if fresh { Some(&[]) } else { None });
        if known != Some(redirects) {
            actions.push(Action::SetRedirects(redirects.to_vec()));
        }
    }
    actions.append(&mut steps.actions);
    if let Some(phase) = outcome {
        actions.push(Action::Record(phase));
    }
    Plan {
        actions,
        again: steps.again,
    }
}

/// Where a container of the spec stands.
pub(super) enum Standing<'a> {
    /// Never made, or removed behind our back.
    Absent,
    Created(&'a Container),
    Running(&'a Container),
    /// Between two states of the runtime.
    Unsettled,
    /// Exited, to be started again at this moment.
    Restart(Moment),
    /// Exited for good.
    Done {
        success: bool,
    },
}

/// Which containers start again after they ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// Returns the policy for a main container of the pod.
    pub(super) fn of(pod: &DesiredPod) -> RestartPolicy {
        match pod.spec().restart_policy.as_deref() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        }
    }

    /// Returns the policy for an init container: it is done once it succeeded, unless it is a sidecar.
    pub(super) fn of_init(pod: &DesiredPod, container: &v1::Container) -> RestartPolicy {
        match RestartPolicy::of(pod) {
            _ if is_sidecar(container) => RestartPolicy::Always,
            RestartPolicy::Never => RestartPolicy::Never,
            RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        }
    }
}

/// An init container with `restartPolicy: Always` runs beside the main ones.
pub(super) fn is_sidecar(container: &v1::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Says where a container stands.
pub(super) fn standing<'a>(
    container: &v1::Container,
    latest: Option<&'a Container>,
    memory: Option<&ContainerMemory>,
    policy: RestartPolicy,
) -> Standing<'a> {
    let Some(latest) = latest else {
        return Standing::Absent;
    };
    match &latest.state {
        ContainerState::Created => Standing::Created(latest),
        ContainerState::Running { .. } => Standing::Running(latest),
        ContainerState::Other(_) => Standing::Unsettled,
        ContainerState::Exited { code, .. } => {
            let changed = latest.labels.get(labels::SPEC_HASH) != Some(&spec_hash(container));
            let restart = match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => *code != 0 || changed,
                RestartPolicy::Never => changed,
            };
            if !restart {
                return Standing::Done { success: *code == 0 };
            }
            let seen = memory.and_then(|memory| memory.exit.as_ref());
            let ended = match seen {
                Some((id, moment)) if *id == latest.id => *moment,
                _ => Moment::default(),
            };
            let due = Backoff::due(memory.and_then(|memory| memory.backoff.as_ref()), ended);
            Standing::Restart(due)
        }
    }
}

/// Tells whether the init containers are behind the pod: all succeeded, or main containers were made already.
pub(super) fn is_initialized(
    pod: &DesiredPod,
    attempts: &BTreeMap<&str, Attempts<'_>>,
    memory: &PodMemory,
) -> bool {
    let mut main = pod.spec().containers.iter();
    if main.any(|container| attempts.contains_key(container.name.as_str())) {
        return true;
    }
    pod.spec().init_containers.iter().flatten().all(|container| {
        let latest = attempts.get(container.name.as_str()).and_then(Attempts::latest);
        let latest = latest.map(|(_, latest)| latest);
        let known = memory.container(&container.name);
        match standing(container, latest, known, RestartPolicy::of_init(pod, container)) {
            Standing::Done { success } => success,
            Standing::Running(running) => is_sidecar(container) && has_started(known, running),
            _ => false,
        }
    })
}

/// Tells whether the startup probe of a running container succeeded (or it has none).
pub(super) fn has_started(memory: Option<&ContainerMemory>, running: &Container) -> bool {
    let probes = memory.and_then(|memory| memory.probes.as_ref());
    probes.is_some_and(|probes| probes.container == running.id && probes.started)
}

struct Steps<'a> {
    pod: &'a DesiredPod,
    memory: &'a PodMemory,
    now: Moment,
    plan: Plan,
}

impl Steps<'_> {
    /// Goes through init containers, then main ones. Returns the last phase, if it is reached.
    fn containers(&mut self, attempts: &BTreeMap<&str, Attempts<'_>>) -> Option<Phase> {
        let pod = self.pod;
        let latest = |container: &v1::Container| {
            let attempts = attempts.get(container.name.as_str())?;
            attempts.latest().map(|(_, latest)| latest)
        };
        let initialized = is_initialized(pod, attempts, self.memory);
        for container in pod.spec().init_containers.iter().flatten() {
            let sidecar = is_sidecar(container);
            if initialized && !sidecar {
                continue;
            }
            let memory = self.memory.container(&container.name);
            let standing = standing(
                container,
                latest(container),
                memory,
                RestartPolicy::of_init(pod, container),
            );
            match &standing {
                Standing::Done { success: true } => continue,
                Standing::Done { success: false } => return Some(Phase::Failed),
                _ => {}
            }
            let started = match &standing {
                Standing::Running(running) => has_started(memory, running),
                _ => container.startup_probe.is_none() && self.may_start(container, &standing),
            };
            self.container(container, &standing);
            let passed = initialized || (sidecar && started);
            if !passed {
                return None;
            }
        }
        let mut ends = Vec::new();
        let policy = RestartPolicy::of(pod);
        for container in &pod.spec().containers {
            let memory = self.memory.container(&container.name);
            let standing = standing(container, latest(container), memory, policy);
            match standing {
                Standing::Done { success } => ends.push(success),
                standing => self.container(container, &standing),
            }
        }
        (!ends.is_empty() && ends.len() == pod.spec().containers.len()).then(|| {
            if ends.iter().all(|success| *success) {
                Phase::Succeeded
            } else {
                Phase::Failed
            }
        })
    }

    /// Tells whether [`Steps::container`] would start it now.
    fn may_start(&self, container: &v1::Container, standing: &Standing<'_>) -> bool {
        let failure = self
            .memory
            .container(&container.name)
            .and_then(|memory| memory.failure.as_ref());
        let waits = failure.is_some_and(|failure| failure.due() > self.now);
        !waits
            && match standing {
                Standing::Absent | Standing::Created(_) => true,
                Standing::Restart(due) => *due <= self.now,
                Standing::Running(_) | Standing::Unsettled | Standing::Done { .. } => false,
            }
    }

    fn container(&mut self, container: &v1::Container, standing: &Standing<'_>) {
        let memory = self.memory.container(&container.name);
        if let Some(failure) = memory.and_then(|memory| memory.failure.as_ref())
            && failure.due() > self.now
            && !matches!(standing, Standing::Running(_))
        {
            let shown = Moment(failure.at.0 + FAILURE_SHOWN);
            let next = if shown > self.now { shown } else { failure.due() };
            self.plan.look_again(next.since(self.now));
            return;
        }
        let next_attempt = memory
            .and_then(|memory| memory.last_attempt)
            .map_or(0, |last| last + 1);
        match standing {
            Standing::Absent => self.run(container, next_attempt),
            Standing::Created(created) => self.created(container, created, next_attempt),
            Standing::Running(running) => self.running(container, running, memory),
            Standing::Unsettled => self.plan.look_again(UNSETTLED_AGAIN),
            Standing::Restart(due) if *due > self.now => self.plan.look_again(due.since(self.now)),
            Standing::Restart(_) => self.run(container, next_attempt),
            Standing::Done { .. } => {}
        }
    }

    fn run(&mut self, container: &v1::Container, attempt: u32) {
        let name = &container.name;
        self.plan.actions.extend([
            Action::Pull {
                container: name.clone(),
            },
            Action::Run {
                container: name.clone(),
                attempt,
            },
        ]);
    }

    fn running(&mut self, container: &v1::Container, running: &Container, memory: Option<&ContainerMemory>) {
        let probes = memory.and_then(|memory| memory.probes.as_ref());
        let unhealthy = probes.filter(|probes| probes.container == running.id);
        let why = if running.labels.get(labels::SPEC_HASH) != Some(&spec_hash(container)) {
            StopReason::Changed {
                container: container.name.clone(),
            }
        } else if let Some(message) = unhealthy.and_then(|probes| probes.unhealthy.clone()) {
            StopReason::Unhealthy {
                container: container.name.clone(),
                message,
            }
        } else {
            return;
        };
        self.plan.actions.push(Action::Stop {
            containers: vec![id(running)],
            grace: grace(self.pod),
            why,
        });
    }

    /// Starts what was left created, or makes it anew if it was made for another address (before a reboot, for
    /// instance). Without an attachment that cannot be told: the plan attaches first, and the next one decides.
    fn created(&mut self, container: &v1::Container, created: &Container, next_attempt: u32) {
        let Some(attachment) = &self.memory.attachment else {
            return;
        };
        if created.labels.get(labels::POD_IP) == Some(&attachment.address.to_string()) {
            self.plan.actions.push(Action::Start {
                container: container.name.clone(),
                id: id(created),
            });
        } else {
            let containers = vec![id(created)];
            self.plan.actions.push(Action::Remove { containers });
            self.run(container, next_attempt);
        }
    }

    /// Removes what no longer counts: attempts before the last two, and containers that the spec does not name.
    fn clean_up(&mut self, containers: &[Container], attempts: &BTreeMap<&str, Attempts<'_>>) {
        let mut stop = Vec::new();
        let mut remove = Vec::new();
        for (name, attempts) in attempts {
            if self.pod.container(name).is_none() {
                let unwanted = containers.iter().filter(|container| {
                    container
                        .labels
                        .get(labels::CONTAINER_NAME)
                        .map_or("", String::as_str)
                        == *name
                });
                for container in unwanted {
                    if may_run(container) {
                        stop.push(id(container));
                    }
                    remove.push(id(container));
                }
                continue;
            }
            let replaced = self.plan.actions.iter().any(|action| match action {
                Action::Run { container, .. } => container == name,
                _ => false,
            });
            // The latest is the previous one as soon as it is replaced.
            let keep_previous = usize::from(!replaced);
            for container in attempts.superseded().rev().skip(keep_previous) {
                if may_run(container) {
                    stop.push(id(container));
                }
                remove.push(id(container));
            }
            // A second one that runs is never wanted, also when it is the one before the latest.
            let doubled = attempts
                .superseded()
                .rev()
                .take(keep_previous)
                .filter(|container| may_run(container));
            stop.extend(doubled.map(id));
        }
        if !stop.is_empty() {
            self.plan.actions.push(Action::Stop {
                containers: stop,
                grace: grace(self.pod),
                why: StopReason::Unwanted,
            });
        }
        if !remove.is_empty() {
            self.plan.actions.push(Action::Remove { containers: remove });
        }
    }
}

fn id(container: &Container) -> ContainerId {
    container.id.clone()
}

/// The grace with which a pod's containers are stopped.
pub(super) fn grace(pod: &DesiredPod) -> Duration {
    let seconds = pod.object.i64_at("/metadata/deletionGracePeriodSeconds");
    let seconds = seconds.or(pod.spec().termination_grace_period_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Duration::from_secs(seconds.unwrap_or(DEFAULT_GRACE_SECONDS.into()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
