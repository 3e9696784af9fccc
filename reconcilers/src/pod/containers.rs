//! One shared picture of the runtime's containers, so that no pod asks the runtime by itself.
//!
//! Our own actions are written into it as they succeed; events say that a pod must be looked at, and one list serves
//! all that were told of meanwhile. Lists never come faster than their cost allows.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ports::{
    Clock, Container, ContainerId, ContainerRuntime, ContainerState, Moment, PortError, labels,
};

/// Least time between two lists: 50 containers started at once make 50 events in 2 s, and 8 lists of 22 ms answer them.
const LIST_PAUSE_MIN: Duration = Duration::from_millis(250);
/// A list may take at most one part in so many of the time. More than that would be late for containers that end at
/// once: beside eight starts a list takes 600 ms, of which it waits for Podman's locks and costs next to nothing.
const LIST_SHARE: u32 = 2;

/// The containers of one pod as far as they are known.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    pub containers: Vec<Container>,
    /// Something happened since, and the next list may be made after this.
    pub stale_for: Option<Duration>,
}

pub(super) struct Containers {
    runtime: Arc<dyn ContainerRuntime>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held while a list runs: those who wait for it use its result.
    listing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    pods: HashMap<String, Vec<Container>>,
    /// When the last list was asked for, and how long it took.
    listed: Option<(Moment, Duration)>,
    /// Pods of which an event told since the last list.
    told: HashSet<String>,
    /// Pods that the list under way is for: what is known of them is from before.
    being_listed: HashSet<String>,
    /// All pods must be looked at.
    told_all: bool,
    /// Counts our own actions, so that a list that began before one does not undo it.
    sequence: u64,
    acted: HashMap<String, u64>,
}

impl Containers {
    pub(super) fn new(runtime: Arc<dyn ContainerRuntime>, clock: Arc<dyn Clock>) -> Self {
        Self {
            runtime,
            clock,
            state: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something happened to a pod's containers; empty: to any.
    pub(super) fn tell(&self, uid: &str) {
        let mut state = self.state();
        if uid.is_empty() {
            state.told_all = true;
        } else {
            state.told.insert(uid.to_owned());
        }
    }

    /// Returns the containers of a pod, after a list if one is needed and may be made.
    pub(super) async fn observe(&self, uid: &str) -> Result<Observation, PortError> {
        if self.pause(uid) == Some(Duration::ZERO) {
            let _one_at_a_time = self.listing.lock().await;
            if self.pause(uid) == Some(Duration::ZERO) {
                self.list().await?;
            }
        }
        let stale_for = self.pause(uid);
        let state = self.state();
        Ok(Observation {
            containers: state.pods.get(uid).cloned().unwrap_or_default(),
            stale_for,
        })
    }

    /// Returns how long a list for this pod must wait; None if none is needed.
    fn pause(&self, uid: &str) -> Option<Duration> {
        let state = self.state();
        let Some((at, took)) = state.listed else {
            return Some(Duration::ZERO);
        };
        if !state.told_all && !state.told.contains(uid) && !state.being_listed.contains(uid) {
            return None;
        }
        let pause = LIST_PAUSE_MIN.max(took * LIST_SHARE);
        Some(pause.saturating_sub(self.clock.now().since(at)))
    }

    async fn list(&self) -> Result<(), PortError> {
        let (began, sequence) = {
            let mut state = self.state();
            state.told_all = false;
            state.being_listed = std::mem::take(&mut state.told);
            (self.clock.now(), state.sequence)
        };
        let listed = self.runtime.list().await;
        let mut state = self.state();
        state.being_listed.clear();
        state.listed = match &listed {
            Ok(_) => Some((began, self.clock.now().since(began))),
            // What was told is still to be seen; a first list is still to be had.
            Err(_) => state.listed,
        };
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                state.told_all = true;
                return Err(error);
            }
        };
        state.take(listed, sequence);
        Ok(())
    }

    /// Returns the uids of all pods that have containers.
    pub(super) fn pods(&self) -> Vec<String> {
        self.state().pods.keys().cloned().collect()
    }

    /// Returns one container of a pod, for what its labels say of the pod.
    pub(super) fn any_of(&self, uid: &str) -> Option<Container> {
        self.state().pods.get(uid)?.first().cloned()
    }

    /// Notes that a container was made.
    pub(super) fn insert(&self, uid: &str, container: Container) {
        let mut state = self.state();
        let pod = state.pods.entry(uid.to_owned()).or_default();
        pod.retain(|known| known.id != container.id);
        pod.push(container);
        state.act(uid);
    }

    /// Notes that we brought a container into a state.
    pub(super) fn set_state(&self, uid: &str, id: &ContainerId, to: &ContainerState) {
        self.state().set(uid, id, to);
    }

    /// Notes that a container was removed.
    pub(super) fn remove(&self, uid: &str, id: &ContainerId) {
        let mut state = self.state();
        if let Some(pod) = state.pods.get_mut(uid) {
            pod.retain(|container| container.id != *id);
            if pod.is_empty() {
                state.pods.remove(uid);
            }
        }
        state.act(uid);
    }
}

impl State {
    /// Takes in a list that was asked for when our own actions had come to `sequence`.
    fn take(&mut self, listed: Vec<Container>, sequence: u64) {
        let mut pods: HashMap<String, Vec<Container>> = HashMap::new();
        for container in listed {
            if let Some(uid) = pod_uid(&container) {
                pods.entry(uid.to_owned()).or_default().push(container);
            }
        }
        // Where we acted meanwhile the list may be from before: what we know is newer, and the next list tells.
        let acted = std::mem::take(&mut self.acted).into_iter();
        for (uid, _) in acted.filter(|(_, at)| *at > sequence) {
            match self.pods.remove(&uid) {
                Some(known) => pods.insert(uid.clone(), known),
                None => pods.remove(&uid),
            };
            self.told.insert(uid);
        }
        self.pods = pods;
    }

    fn set(&mut self, uid: &str, id: &ContainerId, to: &ContainerState) {
        let starts = matches!(to, ContainerState::Running { .. });
        let mut ended = false;
        let pod = self.pods.get_mut(uid).into_iter().flatten();
        for container in pod.filter(|container| container.id == *id) {
            // Some programs end before the call that starts them returns, and a list for another pod has seen it.
            if starts && matches!(container.state, ContainerState::Exited { .. }) {
                ended = true;
            } else {
                container.state = to.clone();
            }
        }
        if ended {
            self.told.insert(uid.to_owned());
        }
        self.act(uid);
    }

    fn act(&mut self, uid: &str) {
        self.sequence += 1;
        self.acted.insert(uid.to_owned(), self.sequence);
    }
}

pub(super) fn pod_uid(container: &Container) -> Option<&str> {
    container.labels.get(labels::POD_UID).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(uid: &str, state: ContainerState) -> Container {
        Container {
            id: ContainerId(format!("id-{uid}")),
            name: String::new(),
            image: String::new(),
            image_id: String::new(),
            labels: [(labels::POD_UID.to_owned(), uid.to_owned())].into(),
            state,
        }
    }

    #[test]
    fn a_start_does_not_undo_an_end_that_was_seen() {
        let ended = ContainerState::Exited {
            code: 0,
            oom_killed: false,
            started_unix_seconds: 1,
            finished_unix_seconds: 1,
        };
        let mut state = State::default();
        let container = container("quick", ended.clone());
        state.pods.insert("quick".to_owned(), vec![container.clone()]);
        let running = ContainerState::Running {
            pid: 1,
            started_unix_seconds: 1,
        };
        state.set("quick", &container.id, &running);
        assert_eq!(state.pods["quick"][0].state, ended);
        assert!(state.told.contains("quick"), "it is looked at again");
    }

    #[test]
    fn a_list_from_before_does_not_undo_what_we_did_since() {
        let mut state = State::default();
        let early = container("early", ContainerState::Created);
        let late = container("late", ContainerState::Created);
        state.pods.insert("early".to_owned(), vec![early.clone()]);
        state.act("early");
        let asked = state.sequence;
        state.pods.insert("late".to_owned(), vec![late.clone()]);
        state.act("late");
        state.act("removed");

        let newer = container("early", ContainerState::Other("paused".to_owned()));
        state.take(
            vec![newer.clone(), container("removed", ContainerState::Created)],
            asked,
        );
        assert_eq!(state.pods["early"], [newer], "the list is newer than the action");
        assert_eq!(state.pods["late"], [late], "the list is older than the action");
        assert!(!state.pods.contains_key("removed"));
        let told: Vec<_> = state.told.iter().map(String::as_str).collect();
        assert!(
            told.len() == 2 && told.contains(&"late") && told.contains(&"removed"),
            "{told:?}"
        );
    }
}
