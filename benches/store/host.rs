//! An agent on a host of the tests' harness, as the benchmarks start it, reach it and look at it from outside.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::client::Server;
use crate::cluster::{self, Cluster};

/// Files, and Podman's socket, are on the agent's side; its log is not part of what is measured.
pub(crate) const QUIET: &str = "--log-level=info";
pub(crate) const AGENT: &str = "podman-swarm-ag";
/// Our agent gives memory back within ten seconds after it has come to rest; etcd is waited for as long.
pub(crate) const SETTLING: Duration = Duration::from_secs(11);

/// Runs in a thread on the hosts' LAN: all sockets that it and the threads it starts open are there.
pub(crate) fn in_the_lan<T: Send>(cluster: &Cluster, run: impl FnOnce() -> T + Send) -> T {
    // What was made before, hosts with their images for instance, must not be written back while others' syncs are timed.
    rustix::fs::sync();
    let lan = cluster.lan();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(lan.as_fd(), Some(LinkNameSpaceType::Network)).expect("the LAN");
            run()
        });
        thread.join().expect("no panic")
    })
}

/// Runs on the hosts' LAN, in one thread.
pub(crate) fn on_the_lan<T: Send>(cluster: &Cluster, run: impl AsyncFnOnce() -> T + Send) -> T {
    in_the_lan(cluster, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(run())
    })
}

/// A host's agent, as a client of its API sees it.
pub(crate) fn agent(cluster: &Cluster, host: usize) -> Server {
    Server {
        address: format!("{}:8080", cluster::address(host))
            .parse()
            .expect("an address"),
        authority: cluster.secret(host, "ca.crt"),
        token: Some(cluster.secret(host, "api.token")),
    }
}

/// `VmRSS` of a `/proc/PID/status`, in bytes.
pub(crate) fn resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or_default()
        * 1024
}

/// User and system time of a `/proc/PID/stat`.
pub(crate) fn cpu_time(stat: &str) -> Duration {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime are fields 14 and 15 (proc(5)), in ticks of 10 ms; the state after the name is field 3.
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|text| text.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// The memory of a program on a host, when what it was doing has settled.
pub(crate) fn memory_of(cluster: &Cluster, host: usize, program: &str) -> u64 {
    std::thread::sleep(SETTLING);
    memory_now(cluster, host, program)
}

/// The memory of a program on a host.
pub(crate) fn memory_now(cluster: &Cluster, host: usize, program: &str) -> u64 {
    let pid = pid_of(cluster, host, program);
    resident_bytes(
        &cluster
            .exec(host, &["cat", &format!("/proc/{pid}/status")])
            .stdout,
    )
}

pub(crate) fn pid_of(cluster: &Cluster, host: usize, program: &str) -> String {
    let found = cluster.exec(host, &["pgrep", "-x", program]).expect("pgrep");
    found.lines().next().unwrap_or_default().to_owned()
}
