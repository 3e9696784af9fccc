//! Readings of the runtime's containers that plan, status and memory share.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ports::{Container, ContainerState, labels};

/// A state that [`crate::ports::ContainerRuntime`] never shows: stopped by us, its exit not read yet.
pub(super) const STOPPED: &str = "stopped by us";

/// The containers that stand for one container of a pod, by number of the attempt.
#[derive(Default, Debug)]
pub(super) struct Attempts<'a> {
    /// Ascending; of equal numbers the one that runs is last.
    all: Vec<(u32, &'a Container)>,
}

impl<'a> Attempts<'a> {
    /// Sorts the containers of a pod by container name.
    pub(super) fn by_name(containers: &'a [Container]) -> BTreeMap<&'a str, Attempts<'a>> {
        let mut by_name: BTreeMap<&str, Attempts<'_>> = BTreeMap::new();
        for container in containers {
            let name = container
                .labels
                .get(labels::CONTAINER_NAME)
                .map_or("", String::as_str);
            by_name
                .entry(name)
                .or_default()
                .all
                .push((attempt(container), container));
        }
        for attempts in by_name.values_mut() {
            attempts
                .all
                .sort_by_key(|(number, container)| (*number, !is_exited(container), container.id.clone()));
        }
        by_name
    }

    pub(super) fn latest(&self) -> Option<(u32, &'a Container)> {
        self.all.last().copied()
    }

    /// Returns the attempt before the latest: `lastState`, and what `logs --previous` reads.
    pub(super) fn previous(&self) -> Option<&'a Container> {
        let before = self.all.len().checked_sub(2)?;
        self.all.get(before).map(|(_, container)| *container)
    }

    /// Returns all attempts but the latest, oldest first.
    pub(super) fn superseded(&self) -> impl DoubleEndedIterator<Item = &'a Container> {
        let count = self.all.len().saturating_sub(1);
        self.all.iter().take(count).map(|(_, container)| *container)
    }
}

fn attempt(container: &Container) -> u32 {
    let label = container.labels.get(labels::RESTART_COUNT);
    label.and_then(|count| count.parse().ok()).unwrap_or_default()
}

pub(super) fn is_exited(container: &Container) -> bool {
    matches!(container.state, ContainerState::Exited { .. })
}

/// Returns how long a container has been running, by the wall clock; None: it does not run.
pub(super) fn running_for(container: &Container, unix_seconds: i64) -> Option<Duration> {
    let ContainerState::Running {
        started_unix_seconds, ..
    } = container.state
    else {
        return None;
    };
    let age = unix_seconds.saturating_sub(started_unix_seconds);
    Some(Duration::from_secs(age.try_into().unwrap_or_default()))
}

/// Tells whether processes of the container may still be there.
pub(super) fn may_run(container: &Container) -> bool {
    match &container.state {
        ContainerState::Created | ContainerState::Exited { .. } => false,
        ContainerState::Running { .. } => true,
        ContainerState::Other(state) => state != STOPPED,
    }
}
