//! NodeMetrics and PodMetrics, made of two measurements. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use reconcilers::ports::{Container, ContainerId, ContainerState, Usage, labels};
use schemas::quantity::Quantity;
use schemas::{Object, time};
use serde_json::{Value, json};

use super::API_VERSION;
use super::sampler::Window;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What something uses: processor time for a second of a window, and memory at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate {
    cpu_nanos: u64,
    memory_bytes: u64,
    end_unix_nanos: u64,
    window: Duration,
}

impl Rate {
    /// None: no time lies between them (a clock that was set back), or it began anew.
    pub(super) fn between(earlier: &Usage, later: &Usage) -> Option<Self> {
        let window = later.unix_nanos.checked_sub(earlier.unix_nanos)?;
        let used = later.cpu_nanos.checked_sub(earlier.cpu_nanos)?;
        let a_second = u128::from(used) * u128::from(NANOS_PER_SECOND);
        Some(Self {
            cpu_nanos: u64::try_from(a_second.checked_div(window.into())?).ok()?,
            memory_bytes: later.memory_bytes,
            end_unix_nanos: later.unix_nanos,
            window: Duration::from_nanos(window),
        })
    }

    fn usage(&self) -> Value {
        let capped = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        json!({
            "cpu": Quantity::from_nanos(capped(self.cpu_nanos)).to_string(),
            "memory": Quantity::from_bytes(capped(self.memory_bytes)).to_string(),
        })
    }
}

/// A pod, as labels of containers name it: namespace, name, uid.
pub(super) type PodName = (String, String, String);

/// What the containers of each pod use, by name. A pod is left out of which one container was not measured twice.
pub(super) fn of_pods(window: &Window<Vec<(Container, Usage)>>) -> BTreeMap<PodName, Vec<(String, Rate)>> {
    let earlier: HashMap<&ContainerId, &Usage> = window
        .earlier
        .iter()
        .map(|(container, usage)| (&container.id, usage))
        .collect();
    let mut pods: BTreeMap<PodName, Option<Vec<(String, Rate)>>> = BTreeMap::new();
    for (container, usage) in &window.later {
        let label = |label| container.labels.get(label).cloned().unwrap_or_default();
        let pod = (
            label(labels::POD_NAMESPACE),
            label(labels::POD_NAME),
            label(labels::POD_UID),
        );
        let before = match earlier.get(&container.id) {
            Some(before) => Some(**before),
            None => nothing_before(container, usage, window.length),
        };
        let rate = before.and_then(|before| Rate::between(&before, usage));
        let rates = pods.entry(pod).or_insert_with(|| Some(Vec::new()));
        match (rates.as_mut(), rate) {
            (Some(rates), Some(rate)) => rates.push((label(labels::CONTAINER_NAME), rate)),
            _ => *rates = None,
        }
    }
    pods.into_iter()
        .filter_map(|(pod, rates)| Some((pod, rates?)))
        .collect()
}

/// The usage, when a window began, of a container that was started since.
fn nothing_before(container: &Container, later: &Usage, window: Duration) -> Option<Usage> {
    let ContainerState::Running {
        started_unix_seconds, ..
    } = container.state
    else {
        return None;
    };
    let begin = later.unix_nanos.checked_sub(window.as_nanos() as u64)?;
    // Podman tells the second it was started in.
    let started_before = started_unix_seconds.saturating_add(1).unsigned_abs();
    let started_before = started_before.saturating_mul(NANOS_PER_SECOND);
    (started_before > begin).then_some(Usage {
        unix_nanos: begin,
        cpu_nanos: 0,
        memory_bytes: 0,
    })
}

/// Makes the NodeMetrics of a node.
pub(super) fn node(node: &Object, rate: &Rate) -> Object {
    let mut object = measured(node, "NodeMetrics", std::slice::from_ref(rate));
    object.set(&["usage"], rate.usage());
    object
}

/// Makes the PodMetrics of a pod.
pub(super) fn pod(pod: &Object, containers: &[(String, Rate)]) -> Object {
    let rates: Vec<Rate> = containers.iter().map(|(_, rate)| *rate).collect();
    let mut object = measured(pod, "PodMetrics", &rates);
    let mut containers: Vec<Value> = containers
        .iter()
        .map(|(name, rate)| json!({"name": name, "usage": rate.usage()}))
        .collect();
    containers.sort_by_key(|container| container["name"].to_string());
    object.set(&["containers"], containers);
    object
}

/// What both have; the metrics are as old as their end, and carry the labels of what was measured.
fn measured(of: &Object, kind: &str, rates: &[Rate]) -> Object {
    let end = rates.iter().map(|rate| rate.end_unix_nanos).max();
    let end = time::to_rfc3339((end.unwrap_or_default() / NANOS_PER_SECOND) as i64);
    let window = rates.iter().map(|rate| rate.window).max().unwrap_or_default();
    let mut metadata = json!({"name": of.name(), "creationTimestamp": end});
    for field in ["namespace", "labels"] {
        if let Some(value) = of.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let mut object = Object::default();
    object.set(&["kind"], kind);
    object.set(&["apiVersion"], API_VERSION);
    object.set(&["metadata"], metadata);
    object.set(&["timestamp"], end);
    object.set(&["window"], duration(window));
    object
}

/// Writes a duration for Go to read, to the millisecond.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = (millis % 60_000) as f64 / 1000.0;
    match millis / 60_000 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(seconds: u64, cpu_seconds: u64) -> Usage {
        Usage {
            unix_nanos: seconds * NANOS_PER_SECOND,
            cpu_nanos: cpu_seconds * NANOS_PER_SECOND,
            memory_bytes: seconds,
        }
    }

    fn container(pod: &str, name: &str, started_unix_seconds: i64) -> Container {
        let pairs = [
            (labels::POD_NAMESPACE, "default"),
            (labels::POD_NAME, pod),
            (labels::CONTAINER_NAME, name),
        ];
        Container {
            id: ContainerId(format!("{pod}-{name}")),
            name: String::new(),
            image: String::new(),
            image_id: String::new(),
            labels: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            state: ContainerState::Running {
                pid: 1,
                started_unix_seconds,
            },
        }
    }

    #[test]
    fn a_rate_is_what_was_used_in_a_second() {
        let check = |earlier, later, expected: Option<u64>| {
            let rate = Rate::between(&earlier, &later);
            assert_eq!(rate.map(|rate| rate.cpu_nanos), expected, "{earlier:?} {later:?}");
        };
        check(usage(10, 5), usage(14, 7), Some(500_000_000));
        check(usage(10, 5), usage(11, 8), Some(3_000_000_000));
        check(usage(10, 5), usage(14, 5), Some(0));
        check(usage(10, 5), usage(10, 7), None);
        check(usage(10, 5), usage(9, 7), None);
        check(usage(10, 5), usage(14, 4), None);
        let rate = Rate::between(&usage(10, 5), &usage(14, 7)).unwrap();
        assert_eq!((rate.memory_bytes, rate.window), (14, Duration::from_secs(4)));
    }

    #[test]
    fn a_pod_is_shown_once_all_its_containers_have_a_rate() {
        let (web, new, missed) = (
            container("web", "one", 0),
            container("web", "new", 102),
            container("missed", "one", 0),
        );
        let window = Window::of(
            vec![(web.clone(), usage(100, 50))],
            vec![
                (web, usage(110, 55)),
                // Started in the window: it used all that it ever did since the window began.
                (new, usage(110, 1)),
                // Runs for long, and was not measured before: nobody knows how much of it is of the window.
                (missed, usage(110, 90)),
            ],
            Duration::from_secs(10),
        );
        let pods = of_pods(&window);
        let shown: Vec<_> = pods
            .iter()
            .flat_map(|((_, pod, _), rates)| {
                rates
                    .iter()
                    .map(move |(name, rate)| (pod.as_str(), name.as_str(), rate.cpu_nanos))
            })
            .collect();
        assert_eq!(shown, [("web", "one", 500_000_000), ("web", "new", 100_000_000)]);
    }

    #[test]
    fn durations_are_read_as_they_were_written() {
        for (millis, text) in [(1_002, "1.002s"), (15_000, "15s"), (61_500, "1m1.5s")] {
            let written = duration(Duration::from_millis(millis));
            assert_eq!(written, text);
            assert_eq!(
                time::parse_duration(&written),
                Some(Duration::from_millis(millis))
            );
        }
    }
}
