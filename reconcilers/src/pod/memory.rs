//! What this node remembers of a pod between two plans, and what it cannot read from the runtime again: back-off,
//! results of probes, the attachment. Lost when the agent stops; the plan is right without it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::plan::Phase;
use super::probe::ProbeResults;
use super::view::{Attempts, is_exited};
use crate::ports::{Attachment, Container, ContainerId, ContainerState, Moment, PortRedirect};

/// Wait before the second restart of a container, or the second try of an image. Kubernetes' value.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest wait between restarts. Kubernetes' value.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);
/// A container that ran this long is well again: twice the longest wait, as in Kubernetes.
pub(super) const BACKOFF_RESET: Duration = Duration::from_secs(10 * 60);
/// For this long a failure is shown by its cause (`ErrImagePull`), then by what is done about it (`ImagePullBackOff`).
pub(super) const FAILURE_SHOWN: Duration = Duration::from_secs(2);

/// How restarts of a container are held back. The first is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    pub delay: Duration,
    /// When it was last restarted.
    pub since: Moment,
}

impl Backoff {
    /// Returns when a container that ended at `ended` may start again.
    pub fn due(backoff: Option<&Backoff>, ended: Moment) -> Moment {
        match backoff {
            Some(backoff) if ended.since(backoff.since) <= BACKOFF_RESET => Moment(ended.0 + backoff.delay),
            _ => ended,
        }
    }

    /// Returns the back-off after a restart at `now` of what ended at `ended`.
    pub fn next(backoff: Option<&Backoff>, ended: Moment, now: Moment) -> Backoff {
        let delay = match backoff {
            Some(backoff) if ended.since(backoff.since) <= BACKOFF_RESET => {
                (backoff.delay * 2).min(BACKOFF_MAX)
            }
            _ => BACKOFF_FIRST,
        };
        Backoff { delay, since: now }
    }
}

/// Something that failed and will be tried again after a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// CamelCase: `ErrImagePull`, `CreateContainerError`, `FailedCreatePodSandBox`.
    pub reason: &'static str,
    pub message: String,
    pub at: Moment,
    /// Time from `at` to the next try.
    pub delay: Duration,
}

impl Failure {
    /// Records a failure; the wait doubles as long as the reason stays the same.
    pub fn again(previous: Option<&Failure>, reason: &'static str, message: String, now: Moment) -> Failure {
        let delay = match previous {
            Some(previous) if previous.reason == reason => (previous.delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_FIRST,
        };
        Failure {
            reason,
            message,
            at: now,
            delay,
        }
    }

    /// Returns when to try again.
    pub fn due(&self) -> Moment {
        Moment(self.at.0 + self.delay)
    }
}

/// What is remembered of a pod.
#[derive(Clone, Default, Debug)]
pub struct PodMemory {
    /// Namespace and address, once attached by this run of the agent.
    pub attachment: Option<Attachment>,
    /// The redirects that the pod has; None: not known.
    pub redirects: Option<Vec<PortRedirect>>,
    pub volumes_made: bool,
    /// Why volumes or network could not be made.
    pub setup_failure: Option<Failure>,
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Network and volumes were taken back.
    pub cleaned: bool,
    /// The last phase, once it is recorded: the pod that is shown has it when the status that says so comes back.
    pub ended: Option<Phase>,
    /// The status as last announced.
    pub announced: Option<Value>,
}

/// What is remembered of a container, over all its attempts.
#[derive(Clone, Default, Debug)]
pub struct ContainerMemory {
    pub backoff: Option<Backoff>,
    /// The exit last seen, and when it was seen first.
    pub exit: Option<(ContainerId, Moment)>,
    /// Why its image is not there, or it could not be made or started. Until it starts.
    pub failure: Option<Failure>,
    /// Results for the container that runs now.
    pub probes: Option<ProbeResults>,
    /// Highest number of an attempt that was ever seen or made.
    pub last_attempt: Option<u32>,
    /// The exit whose back-off was told in an event.
    pub told: Option<ContainerId>,
}

impl PodMemory {
    /// Takes in what the runtime shows at `now`. `probed` tells what is known of a running container's probes
    /// before they answer.
    pub fn observe(
        &mut self,
        containers: &[Container],
        now: Moment,
        probed: impl Fn(&str, &Container) -> ProbeResults,
    ) {
        for (name, attempts) in Attempts::by_name(containers) {
            let memory = self.containers.entry(name.to_owned()).or_default();
            let Some((number, latest)) = attempts.latest() else {
                continue;
            };
            memory.last_attempt = memory.last_attempt.max(Some(number));
            if is_exited(latest) && memory.exit.as_ref().is_none_or(|(id, _)| *id != latest.id) {
                memory.exit = Some((latest.id.clone(), now));
            }
            let running = matches!(latest.state, ContainerState::Running { .. });
            let known = memory
                .probes
                .as_ref()
                .is_some_and(|probes| probes.container == latest.id);
            if !running {
                memory.probes = None;
            } else if !known {
                memory.probes = Some(probed(name, latest));
            }
        }
    }

    /// Returns what is remembered of a container.
    pub fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_as_in_kubernetes() {
        let mut backoff = None;
        let mut now = Moment::default();
        for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
            let ended = Moment(now.0 + Duration::from_secs(1));
            let due = Backoff::due(backoff.as_ref(), ended);
            assert_eq!(due.since(ended), Duration::from_secs(expected));
            backoff = Some(Backoff::next(backoff.as_ref(), ended, due));
            now = due;
        }
        let ended = Moment(now.0 + BACKOFF_RESET + Duration::from_secs(1));
        assert_eq!(
            Backoff::due(backoff.as_ref(), ended),
            ended,
            "it ran long enough to be well"
        );
        assert_eq!(Backoff::next(backoff.as_ref(), ended, ended).delay, BACKOFF_FIRST);
    }

    #[test]
    fn failures_of_one_kind_wait_longer() {
        let first = Failure::again(None, "ErrImagePull", String::new(), Moment::default());
        let second = Failure::again(Some(&first), "ErrImagePull", String::new(), first.due());
        assert_eq!((first.delay, second.delay), (BACKOFF_FIRST, 2 * BACKOFF_FIRST));
        let other = Failure::again(Some(&second), "CreateContainerError", String::new(), second.due());
        assert_eq!(other.delay, BACKOFF_FIRST);
    }
}
