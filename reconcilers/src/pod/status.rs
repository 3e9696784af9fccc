//! The status of a pod as Kubernetes' kubelet writes it, small enough for gossip. Pure.
//!
//! Source: Kubernetes API, `PodStatus`. Times that must not move (conditions, start) are taken over from the status
//! before, so that an unchanged pod gives an equal value; after a start of the agent from what its containers tell.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use schemas::time::to_rfc3339;
use serde_json::{Map, Value, json};

use super::memory::{ContainerMemory, FAILURE_SHOWN, PodMemory};
use super::plan::{Phase, RestartPolicy, Standing, has_started, is_initialized, is_sidecar, standing};
use super::spec::{DesiredPod, thousandths};
use super::view::{Attempts, STOPPED};
use crate::ports::{Container, ContainerState, Moment, labels};

/// Hard limit of a status in gossip, in bytes of JSON: 64 pods of a node fill its 256 KiB, and one value never comes near
/// the 65,507 bytes of a datagram.
pub const STATUS_BYTES_MAX: usize = 4 * 1024;
/// Messages are cut to this, so that most statuses stay under 1 KiB.
const MESSAGE_MAX: usize = 200;

/// What a status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct StatusInput<'a> {
    pub pod: &'a DesiredPod,
    pub containers: &'a [Container],
    pub memory: &'a PodMemory,
    pub host_address: IpAddr,
    /// The status before: announced by this run of the agent, or else what the store shows. One without times: the agent
    /// has just started.
    pub previous: Option<&'a Value>,
    pub now: Moment,
    pub unix_seconds: i64,
}

/// Computes the status of a pod of this node.
pub fn status(input: &StatusInput<'_>) -> Value {
    let pod = input.pod;
    let spec = pod.spec();
    let attempts = Attempts::by_name(input.containers);
    let initialized = is_initialized(pod, &attempts, input.memory);
    let policy = RestartPolicy::of(pod);
    let status_of = |container: &v1::Container, init: bool| {
        let policy = if init {
            RestartPolicy::of_init(pod, container)
        } else {
            policy
        };
        let attempts = attempts.get(container.name.as_str());
        ContainerReading {
            input,
            container,
            attempts,
            memory: input.memory.container(&container.name),
            standing: standing(
                container,
                attempts.and_then(Attempts::latest).map(|(_, latest)| latest),
                input.memory.container(&container.name),
                policy,
            ),
            waits_for_init: !init && !initialized,
            init,
        }
        .status()
    };
    let inits: Vec<Value> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|c| status_of(c, true))
        .collect();
    let mains: Vec<Value> = spec.containers.iter().map(|c| status_of(c, false)).collect();

    // One that exited to make room for its next image is not done.
    let is_done = |container: &v1::Container| {
        let latest = attempts.get(container.name.as_str()).and_then(Attempts::latest);
        let known = input.memory.container(&container.name);
        let standing = standing(container, latest.map(|(_, latest)| latest), known, policy);
        matches!(standing, Standing::Done { .. })
    };
    let all_done = spec.containers.iter().all(is_done);
    let ended = Phase::of(pod).or(input.memory.ended);
    let phase = ended.map_or_else(|| phase(&mains, initialized, policy, all_done), Phase::name);
    let address = pod_address(input);
    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    status.insert("conditions".into(), conditions(input, &mains, initialized, phase));
    status.insert("hostIP".into(), input.host_address.to_string().into());
    status.insert("hostIPs".into(), json!([{ "ip": input.host_address }]));
    if let Some(address) = &address {
        status.insert("podIP".into(), address.as_str().into());
        status.insert("podIPs".into(), json!([{ "ip": address }]));
    }
    let start = input
        .previous
        .and_then(|previous| previous.get("startTime"))
        .cloned();
    let oldest = || starts(input).map(|(_, started)| started).min();
    let start = start.unwrap_or_else(|| to_rfc3339(oldest().unwrap_or(input.unix_seconds)).into());
    status.insert("startTime".into(), start);
    if !inits.is_empty() {
        status.insert("initContainerStatuses".into(), inits.into());
    }
    status.insert("containerStatuses".into(), mains.into());
    status.insert("qosClass".into(), qos_class(spec).into());
    bounded(Value::Object(status))
}

/// Whether each container of the pod runs, and when it started.
fn starts(input: &StatusInput<'_>) -> impl Iterator<Item = (bool, i64)> {
    let containers = input.containers.iter();
    containers.filter_map(|container| match container.state {
        ContainerState::Running {
            started_unix_seconds, ..
        } => Some((true, started_unix_seconds)),
        ContainerState::Exited {
            started_unix_seconds, ..
        } => Some((false, started_unix_seconds)),
        ContainerState::Created | ContainerState::Other(_) => None,
    })
}

/// The pod's address: attached now, or as the labels of its containers say.
fn pod_address(input: &StatusInput<'_>) -> Option<String> {
    if let Some(attachment) = &input.memory.attachment {
        return Some(attachment.address.to_string());
    }
    let mut labelled = input
        .containers
        .iter()
        .filter_map(|container| container.labels.get(labels::POD_IP));
    labelled.next().cloned()
}

/// `status.phase` of a pod that has not ended, as kubelet's getPhase.
fn phase(mains: &[Value], initialized: bool, policy: RestartPolicy, all_done: bool) -> &'static str {
    if !initialized {
        return "Pending";
    }
    let never_ran = |status: &Value| {
        status.pointer("/state/waiting").is_some() && status.pointer("/lastState/terminated").is_none()
    };
    if mains.iter().any(never_ran) {
        return "Pending";
    }
    if policy == RestartPolicy::Never && !mains.is_empty() && all_done {
        let success = |status: &Value| status.pointer("/state/terminated/exitCode") == Some(&json!(0));
        return if mains.iter().all(success) {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    "Running"
}

fn conditions(input: &StatusInput<'_>, mains: &[Value], initialized: bool, phase: &str) -> Value {
    let is_ready = |status: &&Value| status["ready"] == json!(true);
    let unready: Vec<&str> = mains
        .iter()
        .filter(|status| !is_ready(status))
        .filter_map(|status| status["name"].as_str())
        .collect();
    let containers_ready = if phase == "Succeeded" {
        Err(("PodCompleted", String::new()))
    } else if unready.is_empty() {
        Ok(())
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        Err(("ContainersNotReady", message))
    };
    let initialized = if initialized {
        Ok(())
    } else {
        Err((
            "ContainersNotInitialized",
            "containers with incomplete status".to_owned(),
        ))
    };
    let all = [
        ("Initialized", initialized),
        ("Ready", containers_ready.clone()),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Ok(())),
    ];
    all.into_iter()
        .map(|(kind, outcome)| {
            let truth = if outcome.is_ok() { "True" } else { "False" };
            let mut condition = Map::new();
            condition.insert("type".into(), kind.into());
            condition.insert("status".into(), truth.into());
            condition.insert("lastTransitionTime".into(), transition(input, kind, truth));
            if let Err((reason, message)) = outcome {
                condition.insert("reason".into(), reason.into());
                if !message.is_empty() {
                    condition.insert("message".into(), cut(&message).into());
                }
            }
            Value::Object(condition)
        })
        .collect()
}

/// Keeps the time of a condition as long as its status stays. Where there was none before, the pod is as it is since the
/// last of its running containers started.
fn transition(input: &StatusInput<'_>, kind: &str, truth: &str) -> Value {
    let before = input
        .previous
        .and_then(|previous| previous.get("conditions")?.as_array());
    let Some(before) = before else {
        let running = starts(input).filter_map(|(runs, started)| runs.then_some(started));
        return to_rfc3339(running.max().unwrap_or(input.unix_seconds)).into();
    };
    let same = |condition: &&Value| condition["type"] == kind && condition["status"] == truth;
    let kept = before
        .iter()
        .find(same)
        .and_then(|condition| condition.get("lastTransitionTime").cloned());
    kept.unwrap_or_else(|| to_rfc3339(input.unix_seconds).into())
}

/// One container with all that its status is read from.
struct ContainerReading<'a> {
    input: &'a StatusInput<'a>,
    container: &'a v1::Container,
    attempts: Option<&'a Attempts<'a>>,
    memory: Option<&'a ContainerMemory>,
    standing: Standing<'a>,
    waits_for_init: bool,
    init: bool,
}

impl ContainerReading<'_> {
    fn status(&self) -> Value {
        let latest = self.attempts.and_then(Attempts::latest);
        let (state, replaced) = self.state();
        // `lastState` is the attempt before, or the latest itself where the state already speaks of the next one.
        let last = if replaced {
            latest.map(|(_, latest)| latest)
        } else {
            self.attempts.and_then(Attempts::previous)
        };
        let (started, ready) = self.progress();
        let mut status = Map::new();
        status.insert("name".into(), self.container.name.as_str().into());
        status.insert("state".into(), state);
        let last = last.and_then(terminated).unwrap_or_else(|| json!({}));
        status.insert("lastState".into(), last);
        status.insert("ready".into(), ready.into());
        let restarts = latest
            .map(|(number, _)| number)
            .max(self.memory.and_then(|memory| memory.last_attempt));
        status.insert("restartCount".into(), restarts.unwrap_or_default().into());
        let image = self.container.image.as_deref().unwrap_or_default();
        status.insert("image".into(), image.into());
        let latest = latest.map(|(_, latest)| latest);
        status.insert(
            "imageID".into(),
            latest.map_or("", |latest| latest.image_id.as_str()).into(),
        );
        if let Some(latest) = latest {
            status.insert("containerID".into(), container_id(latest).into());
        }
        status.insert("started".into(), started.into());
        Value::Object(status)
    }

    /// `started` and `ready`.
    fn progress(&self) -> (bool, bool) {
        match &self.standing {
            Standing::Running(running) => {
                let started = has_started(self.memory, running);
                let probes = self.memory.and_then(|memory| memory.probes.as_ref());
                let probed = probes.is_some_and(|probes| probes.container == running.id && probes.ready);
                let ready = started && probed && (!self.init || is_sidecar(self.container));
                (started, ready)
            }
            Standing::Done { success } => (false, self.init && *success),
            _ => (false, false),
        }
    }

    /// Returns `state`, and whether it speaks of the attempt after the latest.
    fn state(&self) -> (Value, bool) {
        if let Standing::Running(running) = &self.standing {
            let ContainerState::Running {
                started_unix_seconds, ..
            } = running.state
            else {
                return (waiting("ContainerCreating", ""), false);
            };
            return (
                json!({ "running": { "startedAt": to_rfc3339(started_unix_seconds) } }),
                false,
            );
        }
        let latest = self.attempts.and_then(Attempts::latest).map(|(_, latest)| latest);
        let exited = latest.and_then(terminated);
        if let Some(failure) = self.memory.and_then(|memory| memory.failure.as_ref()) {
            let image = self.container.image.as_deref().unwrap_or_default();
            let fresh = self.input.now.since(failure.at) < FAILURE_SHOWN;
            let state = match failure.reason {
                "ErrImagePull" if !fresh => {
                    waiting("ImagePullBackOff", &format!("Back-off pulling image \"{image}\""))
                }
                reason => waiting(reason, &failure.message),
            };
            return (state, exited.is_some());
        }
        match &self.standing {
            Standing::Restart(due) if *due > self.input.now => {
                let delay = self
                    .memory
                    .and_then(|memory| memory.backoff)
                    .map_or(0, |backoff| backoff.delay.as_secs());
                let pod = self.input.pod;
                let message = format!(
                    "back-off {delay}s restarting failed container={} pod={}_{}({})",
                    self.container.name, pod.key.name, pod.key.namespace, pod.uid
                );
                (waiting("CrashLoopBackOff", &message), true)
            }
            Standing::Restart(_) | Standing::Done { .. } => {
                (exited.unwrap_or_else(|| waiting("ContainerCreating", "")), false)
            }
            Standing::Unsettled if self.was_stopped() => (waiting("ContainerStopping", ""), false),
            _ if self.waits_for_init => (waiting("PodInitializing", ""), exited.is_some()),
            _ => (waiting("ContainerCreating", ""), exited.is_some()),
        }
    }

    fn was_stopped(&self) -> bool {
        let latest = self.attempts.and_then(Attempts::latest);
        latest.is_some_and(|(_, latest)| latest.state == ContainerState::Other(STOPPED.to_owned()))
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut inner = Map::new();
    inner.insert("reason".into(), reason.into());
    if !message.is_empty() {
        inner.insert("message".into(), cut(message).into());
    }
    json!({ "waiting": inner })
}

/// Returns the `terminated` state of an exited container.
fn terminated(container: &Container) -> Option<Value> {
    let ContainerState::Exited {
        code,
        oom_killed,
        started_unix_seconds,
        finished_unix_seconds,
    } = container.state
    else {
        return None;
    };
    let reason = match (oom_killed, code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Some(json!({ "terminated": {
        "exitCode": code,
        "reason": reason,
        "startedAt": to_rfc3339(started_unix_seconds),
        "finishedAt": to_rfc3339(finished_unix_seconds),
        "containerID": container_id(container),
    }}))
}

fn container_id(container: &Container) -> String {
    format!("podman://{}", container.id.0)
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_MAX) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_owned(),
    }
}

/// Kubernetes' quality of service class, from cpu and memory of all containers.
fn qos_class(spec: &v1::PodSpec) -> &'static str {
    type List = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;
    let mut any = false;
    let mut guaranteed = true;
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let resources = container.resources.as_ref();
        let read = |list: Option<&List>, name: &str| {
            let value = thousandths(&list?.get(name)?.0)?;
            (value > 0).then_some(value)
        };
        for name in ["cpu", "memory"] {
            let limit = read(resources.and_then(|resources| resources.limits.as_ref()), name);
            let request = read(resources.and_then(|resources| resources.requests.as_ref()), name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Keeps a status below [`STATUS_BYTES_MAX`]: without messages, then without past states, then without ids; what is
/// left of a pod with dozens of containers is the phase, the conditions and the addresses.
fn bounded(mut status: Value) -> Value {
    let fits = |status: &Value| status.to_string().len() <= STATUS_BYTES_MAX;
    let lists = ["initContainerStatuses", "containerStatuses"];
    for dropped in ["message", "lastState", "containerID", "imageID", "image"] {
        if fits(&status) {
            return status;
        }
        for list in lists {
            for entry in status
                .get_mut(list)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                drop_field(entry, dropped);
            }
        }
    }
    for list in lists {
        if !fits(&status)
            && let Some(map) = status.as_object_mut()
        {
            map.remove(list);
        }
    }
    status
}

/// Empties a field that the API requires, removes one that it does not.
fn drop_field(entry: &mut Value, field: &str) {
    let Some(map) = entry.as_object_mut() else {
        return;
    };
    match field {
        "image" | "imageID" => {
            map.insert(field.to_owned(), "".into());
        }
        "message" => {
            for state in map
                .get_mut("state")
                .and_then(Value::as_object_mut)
                .into_iter()
                .flatten()
            {
                state.1.as_object_mut().and_then(|state| state.remove(field));
            }
        }
        _ => {
            map.remove(field);
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
