//! What containers and the machine have used so far: Podman's stats, and the kernel's files for the machine.
//!
//! Podman reads the control groups of the containers that it is asked about, once (4 containers: 10 to 40 ms). Nothing here
//! remembers or repeats: what is used between two measurements is for the caller to say.

use std::collections::HashMap;
use std::fs::read_to_string;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use reconcilers::ports::{Container, ContainerRuntime, ContainerState, PortError, Usage};
use serde::Deserialize;
use serde_json::Value;

use super::runtime::{LIMIT, Podman};
use super::socket::CallError;

/// One container that vanishes between the list and the measuring makes Podman refuse the whole of it; few vanish at once.
const ATTEMPTS_MAX: usize = 3;

/// The kernel counts processor time for programs in hundredths of a second (`USER_HZ`), on all that Podman runs on.
const NANOS_PER_TICK: u64 = 10_000_000;

const OPERATION: &str = "measure what is used";

/// Podman's answer. Its error is the text of one, or some empty object.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stats {
    error: Option<Value>,
    stats: Option<Vec<ContainerStats>>,
}

#[derive(Deserialize)]
struct ContainerStats {
    #[serde(rename = "ContainerID")]
    id: String,
    /// Processor time since it was started.
    #[serde(rename = "CPUNano")]
    cpu_nanos: u64,
    /// When this was measured, since the Unix epoch.
    #[serde(rename = "SystemNano")]
    unix_nanos: u64,
    /// The working set, where there are control groups of version 2; with version 1, all pages.
    #[serde(rename = "MemUsage")]
    memory_bytes: u64,
}

impl Podman {
    /// Measures the containers of this cluster that run.
    pub(super) async fn measure(&self) -> Result<Vec<(Container, Usage)>, PortError> {
        let mut attempt = 1;
        loop {
            let mut running = self.list().await?;
            running.retain(|container| matches!(container.state, ContainerState::Running { .. }));
            match self.stats(&running).await {
                Ok(mut measured) => {
                    return Ok(running
                        .into_iter()
                        .filter_map(|container| {
                            let usage = measured.remove(&container.id.0)?;
                            Some((container, usage))
                        })
                        .collect());
                }
                Err(CallError::Status { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(error.into_port(OPERATION, "StatsFailed")),
            }
        }
    }

    /// Not through `podman-api`, whose model demands the types of 4.3.
    async fn stats(&self, running: &[Container]) -> Result<HashMap<String, Usage>, CallError> {
        // Asked about none, Podman tells of all; of containers without a control group, which others may have, none of it.
        if running.is_empty() {
            return Ok(HashMap::new());
        }
        let mut target = "/containers/stats?stream=false".to_owned();
        for container in running {
            target.push_str(&format!("&containers={}", container.id.0));
        }
        let answer: Stats = self.socket.json(Method::GET, &target, None, LIMIT).await?;
        let Some(stats) = answer.stats else {
            let error = answer.error.unwrap_or_default();
            return Err(CallError::Status {
                status: http::StatusCode::INTERNAL_SERVER_ERROR,
                message: format!("Podman cannot measure: {error}"),
            });
        };
        let usage = |stats: ContainerStats| {
            let ContainerStats {
                id,
                cpu_nanos,
                unix_nanos,
                memory_bytes,
            } = stats;
            let usage = Usage {
                unix_nanos,
                cpu_nanos,
                memory_bytes,
            };
            (id, usage)
        };
        Ok(stats.into_iter().map(usage).collect())
    }
}

/// Measures this machine.
pub(super) fn of_machine() -> Result<Usage, PortError> {
    let unavailable = |message: String| PortError::Unavailable {
        operation: OPERATION,
        message,
    };
    let read = |path: &str| read_to_string(path).map_err(|error| unavailable(format!("{path}: {error}")));
    let (times, memory) = (read("/proc/stat")?, read("/proc/meminfo")?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    machine(&times, &memory, now)
        .ok_or_else(|| unavailable("/proc/stat or /proc/meminfo lacks a number".into()))
}

/// Reads `/proc/stat` and `/proc/meminfo` (proc(5)) as kubelet counts a machine: time in which nothing ran is none, nor is what
/// the hypervisor took; memory is all but what is free and the pages of files that were not used lately.
fn machine(times: &str, memory: &str, now: Duration) -> Option<Usage> {
    let total = times.lines().next()?.strip_prefix("cpu ")?;
    let ticks = total.split_whitespace().map(|number| number.parse().ok());
    let ticks: Vec<u64> = ticks.collect::<Option<_>>()?;
    // `user` has the time of guests in it already.
    let [
        user,
        nice,
        system,
        _idle,
        _waiting,
        interrupts,
        soft_interrupts,
        ..,
    ] = ticks.as_slice()
    else {
        return None;
    };
    let kilobytes = |name: &str| -> Option<u64> {
        let mut lines = memory.lines();
        let number = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        number.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let ticks = user + nice + system + interrupts + soft_interrupts;
    let used = kilobytes("MemTotal")?
        .saturating_sub(kilobytes("MemFree")?)
        .saturating_sub(kilobytes("Inactive(file)")?);
    Some(Usage {
        unix_nanos: now.as_nanos() as u64,
        cpu_nanos: ticks * NANOS_PER_TICK,
        memory_bytes: used * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_uses_what_is_neither_idle_nor_free() {
        let times = "cpu  100 20 30 100000 500 4 6 999 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n";
        let memory = "MemTotal:       1000 kB\nMemFree:         300 kB\nActive(file):    50 kB\nInactive(file):  200 kB\n";
        let now = Duration::from_secs(7);
        let expected = Usage {
            unix_nanos: 7_000_000_000,
            cpu_nanos: 1_600_000_000,
            memory_bytes: 500 * 1024,
        };
        assert_eq!(machine(times, memory, now), Some(expected));
        for (times, memory) in [
            ("", memory),
            ("cpu  1 2 3", memory),
            ("cpu  a b", memory),
            (times, ""),
        ] {
            assert_eq!(machine(times, memory, now), None, "{times} {memory}");
        }
    }
}
