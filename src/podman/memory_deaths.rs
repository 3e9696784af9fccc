//! Which containers the kernel killed because memory was out. Podman's list does not say it, only an inspection of each does.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use futures::stream;
use reconcilers::ports::{Container, ContainerId, ContainerState};

use super::runtime::EXIT_KILLED;

/// Inspections at a time: each takes milliseconds, and others use Podman too.
const INSPECTIONS_MAX: usize = 8;

/// What is known of containers that SIGKILL ended, by id and time of their end: an exited container does not change, and one
/// that was started again ends at another time. Holds no more than the last list did.
#[derive(Debug, Default)]
pub(super) struct MemoryDeaths(Mutex<HashMap<(ContainerId, i64), bool>>);

impl MemoryDeaths {
    /// Fills in `oom_killed`. `inspect` is asked once for each end; None: not known now, asked again the next time.
    pub(super) async fn tell<F>(&self, containers: &mut [Container], inspect: impl Fn(ContainerId) -> F)
    where
        F: Future<Output = Option<bool>>,
    {
        let known = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let ends = containers.iter().filter_map(end);
        let (inspect, known) = (&inspect, &known);
        let found: HashMap<(ContainerId, i64), bool> = stream::iter(ends)
            .map(|end| async move {
                let is_memory = match known.get(&end) {
                    Some(is_memory) => Some(*is_memory),
                    None => inspect(end.0.clone()).await,
                };
                Some((end, is_memory?))
            })
            .buffer_unordered(INSPECTIONS_MAX)
            .filter_map(async |found| found)
            .collect()
            .await;
        for container in containers {
            if let Some(is_memory) = end(container).and_then(|end| found.get(&end))
                && let ContainerState::Exited { oom_killed, .. } = &mut container.state
            {
                *oom_killed = *is_memory;
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

/// Returns the end of a container that SIGKILL ended.
fn end(container: &Container) -> Option<(ContainerId, i64)> {
    match container.state {
        ContainerState::Exited {
            code: EXIT_KILLED,
            finished_unix_seconds,
            ..
        } => Some((container.id.clone(), finished_unix_seconds)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn killed(id: &str, finished_unix_seconds: i64) -> Container {
        Container {
            id: ContainerId(id.to_owned()),
            name: id.to_owned(),
            image: String::new(),
            image_id: String::new(),
            labels: BTreeMap::new(),
            state: ContainerState::Exited {
                code: EXIT_KILLED,
                oom_killed: false,
                started_unix_seconds: 0,
                finished_unix_seconds,
            },
        }
    }

    /// Lists `a` and `b` once; returns who was asked for, and of whom it is known that memory was the cause.
    async fn list(deaths: &MemoryDeaths, ends: [i64; 2], answer: Option<bool>) -> (Vec<String>, Vec<String>) {
        let asked = Mutex::new(Vec::new());
        let mut containers = vec![killed("a", ends[0]), killed("b", ends[1])];
        deaths
            .tell(&mut containers, |id| {
                asked.lock().unwrap().push(id.0);
                async move { answer }
            })
            .await;
        let is_memory = |container: &Container| {
            matches!(container.state, ContainerState::Exited { oom_killed: true, .. })
        };
        let told = containers.iter().filter(|container| is_memory(container));
        let told = told.map(|container| container.id.0.clone()).collect();
        (asked.into_inner().unwrap(), told)
    }

    #[tokio::test]
    async fn each_end_is_inspected_until_it_is_known_and_then_no_more() {
        let deaths = MemoryDeaths::default();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (ends, answer, asked, told) in [
            ([1, 1], None, &["a", "b"][..], &[][..]),
            ([1, 1], Some(true), &["a", "b"], &["a", "b"]),
            ([1, 1], Some(false), &[], &["a", "b"]),
            ([2, 1], Some(false), &["a"], &["b"]),
        ] {
            assert_eq!(
                list(&deaths, ends, answer).await,
                (names(asked), names(told)),
                "{ends:?}"
            );
        }
        deaths.tell(&mut [], async |_| None).await;
        assert!(
            deaths.0.lock().unwrap().is_empty(),
            "what is not listed is forgotten"
        );
    }
}
