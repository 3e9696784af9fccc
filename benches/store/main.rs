//! Figures of the store, beside etcd's where etcd has such a thing: `make bench`, `BENCH=write,read` for some.
//!
//! Agents and etcd run on one host of the tests' harness, on one file system, and get the same bytes through their
//! network API with TLS, turn and turn about. Read the ratios: one machine's milliseconds say little about another's.

mod client;
#[path = "../../tests/it/cluster.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "the harness is shared; not all of it is used here"
)]
mod cluster;
mod etcd;
mod fifty;
mod figures;
mod single;
mod three;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cluster::Cluster;
use futures::future::join_all;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use client::{Client, Server};
use figures::{Table, Times};

/// Files, and Podman's socket, are on the agent's side; its log is not part of what is measured.
pub(crate) const QUIET: &str = "--log-level=info";

/// The sections, in the order in which they run.
const SECTIONS: [&str; 12] = [
    "size", "read", "list", "load", "join", "write", "syncs", "visible", "wire", "idle", "away", "churn",
];
const FIFTY: &str = "fifty";

/// Which sections were asked for: all, unless `BENCH` names some.
pub(crate) struct Wanted(Vec<String>);

impl Wanted {
    fn from_environment() -> Self {
        let named = std::env::var("BENCH").unwrap_or_default();
        let named: Vec<String> = named
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        let all = SECTIONS.iter().chain([&FIFTY]);
        let unknown: Vec<_> = named
            .iter()
            .filter(|name| !all.clone().any(|known| known == name))
            .collect();
        assert!(
            unknown.is_empty(),
            "BENCH={unknown:?}: not a section of {:?}",
            all.collect::<Vec<_>>()
        );
        if named.is_empty() {
            return Self(all.map(|name| (*name).to_owned()).collect());
        }
        Self(named)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|wanted| wanted == name)
    }

    pub(crate) fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(name))
    }
}

fn main() {
    let wanted = Wanted::from_environment();
    let mut table = Table::default();
    if wanted.has(FIFTY) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(fifty::run(&mut table));
    }
    match cluster::unable() {
        Some(reason) => eprintln!("only `{FIFTY}`, others need hosts: {reason}"),
        None => {
            let start = Instant::now();
            if wanted.any(&["size", "read", "list", "write", "syncs", "load", "join"]) {
                single::beside_etcd(&wanted, &mut table);
            }
            if wanted.any(&["visible", "wire", "idle", "away"]) {
                three::run(&wanted, &mut table);
            }
            if wanted.has("churn") {
                single::churn(&mut table);
            }
            eprintln!("{:.0?} in all", start.elapsed());
        }
    }
    table.print();
}

/// Runs on the hosts' LAN: all sockets that are opened meanwhile are there.
pub(crate) fn on_the_lan<T: Send>(cluster: &Cluster, run: impl AsyncFnOnce() -> T + Send) -> T {
    // What was made before, hosts with their images for instance, must not be written back while others' syncs are timed.
    rustix::fs::sync();
    let lan = cluster.lan();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(lan.as_fd(), Some(LinkNameSpaceType::Network)).expect("the LAN");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(run())
        });
        thread.join().expect("no panic")
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

/// What each writer does with a name and a number.
#[derive(Clone, Copy)]
pub(crate) enum Deed {
    Create,
    Update,
    Read,
}

/// Has every client do a share of `count` deeds at a time with the others, each one after the other; returns how long each took.
pub(crate) async fn all_do(
    clients: &mut [Client],
    deed: Deed,
    count: usize,
    name: &(dyn Fn(usize) -> String + Sync),
    version: usize,
) -> Times {
    let share = count / clients.len();
    let running = clients.iter_mut().enumerate().map(|(index, client)| async move {
        let mut times = Times::default();
        for number in index * share..(index + 1) * share {
            let name = name(number);
            let object = client::object(&name, version);
            let start = Instant::now();
            match deed {
                Deed::Create => client.create(&name, object).await,
                Deed::Update => client.update(&name, object).await,
                Deed::Read => assert!(client.read(&name).await >= client::OBJECT_BYTES),
            }
            times.push(start.elapsed());
        }
        times
    });
    let mut all = Times::default();
    join_all(running)
        .await
        .into_iter()
        .for_each(|times| all.extend(times));
    all
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
    let pid = pid_of(cluster, host, program);
    resident_bytes(
        &cluster
            .exec(host, &["cat", &format!("/proc/{pid}/status")])
            .stdout,
    )
}

/// Our agent gives memory back within ten seconds after it has come to rest; etcd is waited for as long.
const SETTLING: Duration = Duration::from_secs(11);

pub(crate) const AGENT: &str = "podman-swarm-ag";

pub(crate) fn pid_of(cluster: &Cluster, host: usize, program: &str) -> String {
    let found = cluster.exec(host, &["pgrep", "-x", program]).expect("pgrep");
    found.lines().next().unwrap_or_default().to_owned()
}
