//! One node beside etcd, and what a joiner has to do; and one node whose objects change for ever.

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use podman_swarm::gossip::{self, Config};
use serde_json::json;
use store::{OpenOptions, Store};

use crate::client::{self, Client, Server};
use crate::cluster::{self, Cluster};
use crate::etcd::{Etcd, disk_bytes};
use crate::figures::{Table, Times, mebibytes};
use crate::{AGENT, Deed, QUIET, Wanted, agent, all_do, memory_of, on_the_lan, pid_of};

const OBJECTS: usize = 10_000;
/// Clients that fill a store.
const FILLERS: usize = 16;
const WRITERS: [usize; 2] = [1, 16];
/// Turns that each server has in a measurement, lest a slow spell of the machine hit one of them.
const TURNS: usize = 10;
/// Writes of one turn, by 1 writer and by each of 16.
const WRITES: [usize; 2] = [100, 40];
const READS: usize = 100;
const LISTS: usize = 5;
/// Writes under strace, by all writers together.
const TRACED: usize = 320;
/// Changes of one object, and lives of one name.
const CHANGES: usize = 10_000;
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// The limit for what a condition waits for.
const DEADLINE: Duration = Duration::from_secs(120);

fn filled(number: usize) -> String {
    format!("filled-{number}")
}

/// Ours and etcd's.
struct Both {
    ours: Vec<Client>,
    peer: Vec<Client>,
}

impl Both {
    async fn open(ours: &Server, peer: &Server, count: usize) -> Self {
        Self {
            ours: Client::open_many(ours, count).await,
            peer: Client::open_many(peer, count).await,
        }
    }

    /// Has both do the same, turn and turn about.
    async fn turns(
        &mut self,
        deed: Deed,
        turns: usize,
        count: usize,
        name: &(dyn Fn(usize, usize) -> String + Sync),
    ) -> (Times, Times) {
        let (mut ours, mut peer) = (Times::default(), Times::default());
        // What is updated was created with another version: the same bytes again would be no write for the agent.
        let version = match deed {
            Deed::Create | Deed::Read => 1,
            Deed::Update => 2,
        };
        for turn in 0..turns {
            let name = |number: usize| name(turn, number);
            // Who begins changes too.
            for is_ours in [turn % 2 == 0, turn % 2 != 0] {
                let (clients, times) = if is_ours {
                    (&mut self.ours, &mut ours)
                } else {
                    (&mut self.peer, &mut peer)
                };
                times.extend(all_do(clients, deed, count, &name, version).await);
            }
        }
        (ours, peer)
    }
}

/// Sections `size`, `read`, `list`, `write`, `syncs`, `load` and `join`.
pub(crate) fn beside_etcd(wanted: &Wanted, table: &mut Table) {
    let cluster = Cluster::hosts(2);
    cluster.start(1, &[QUIET]);
    cluster.wait_healthy(1);
    let etcd = Etcd::start(&cluster);
    let ours = agent(&cluster, 1);
    if wanted.any(&["size", "read", "list", "load", "join"]) {
        fill(&cluster, &ours, &etcd, table);
    }
    on_the_lan(&cluster, async || {
        if wanted.has("read") {
            reads(&ours, &etcd.server, table).await;
        }
        if wanted.has("list") {
            lists(&ours, &etcd.server, table).await;
        }
    });
    if wanted.has("load") {
        load(&cluster, "10,000 objects", table);
        let memory = memory_of(&cluster, 1, AGENT);
        table.row(
            "memory after a start with 10,000 objects",
            format!("{} MiB", mebibytes(memory)),
            "120 MB",
        );
    }
    if wanted.has("join") {
        join(&cluster, table);
        // Writes are measured without it.
        cluster.stop_agent(2);
    }
    if wanted.has("write") {
        on_the_lan(&cluster, async || writes(&ours, &etcd.server, table).await);
    }
    if wanted.has("syncs") {
        syncs(&cluster, &ours, &etcd.server, table);
    }
}

fn fill(cluster: &Cluster, ours: &Server, etcd: &Etcd, table: &mut Table) {
    let mut filled_to = 0;
    for objects in [0, 1_000, OBJECTS] {
        let start = Instant::now();
        on_the_lan(cluster, async || {
            let mut both = Both::open(ours, &etcd.server, FILLERS).await;
            for clients in [&mut both.ours, &mut both.peer] {
                let name = |number: usize| filled(filled_to + number);
                let count = (objects - filled_to).next_multiple_of(FILLERS);
                all_do(clients, Deed::Create, count, &name, 0).await;
            }
        });
        // A few more than that, so that all writers have as many.
        filled_to += (objects - filled_to).next_multiple_of(FILLERS);
        eprintln!("{objects} objects in both after {:.1?}", start.elapsed());
        table.numbers(
            format!("memory with {objects} objects"),
            memory_of(cluster, 1, AGENT) as f64 / 1_048_576.0,
            memory_of(cluster, 1, "etcd") as f64 / 1_048_576.0,
            " MiB",
            if objects == OBJECTS { "120 MB" } else { "" },
        );
        table.numbers(
            format!("disk with {objects} objects"),
            disk_bytes(&cluster.data(1).join("store")) as f64 / 1_048_576.0,
            etcd.disk_bytes() as f64 / 1_048_576.0,
            " MiB",
            "",
        );
    }
}

async fn reads(ours: &Server, peer: &Server, table: &mut Table) {
    for writers in WRITERS {
        let mut both = Both::open(ours, peer, writers).await;
        let name = |turn: usize, number: usize| filled((turn * 997 + number * 31) % OBJECTS);
        let (ours, peer) = both.turns(Deed::Read, TURNS, READS * writers, &name).await;
        table.beside(
            format!(
                "read of one object, {writers} at once: p50, p99 of {}",
                ours.count()
            ),
            &ours,
            &peer,
            "",
        );
    }
}

async fn lists(ours: &Server, peer: &Server, table: &mut Table) {
    let mut both = Both::open(ours, peer, 1).await;
    let (mut ours, mut peer) = (Times::default(), Times::default());
    for _ in 0..LISTS {
        for (client, times) in [(&mut both.ours[0], &mut ours), (&mut both.peer[0], &mut peer)] {
            let start = Instant::now();
            assert!(client.list().await > OBJECTS * 2_000);
            times.push(start.elapsed());
        }
    }
    table.beside(
        format!("list of 10,000 objects: p50, greatest of {LISTS}"),
        &ours,
        &peer,
        "",
    );
}

async fn writes(ours: &Server, peer: &Server, table: &mut Table) {
    for (writers, each) in WRITERS.into_iter().zip(WRITES) {
        let mut both = Both::open(ours, peer, writers).await;
        for (deed, what) in [
            (Deed::Create, "of a new object"),
            (Deed::Update, "of all of an object"),
        ] {
            let name = |turn: usize, number: usize| format!("written-{writers}-{turn}-{number}");
            let (ours, peer) = both.turns(deed, TURNS, each * writers, &name).await;
            table.beside(
                format!(
                    "durable write {what}, {writers} writers: p50, p99 of {}",
                    ours.count()
                ),
                &ours,
                &peer,
                "p99 ratio < 1",
            );
        }
    }
}

// ---------------------------------------------------------------- syncs

/// Counts the calls that make files durable, in a pass of its own: strace slows down what it looks at.
fn syncs(cluster: &Cluster, ours: &Server, peer: &Server, table: &mut Table) {
    for writers in WRITERS {
        let mut counted = Vec::new();
        for (server, program) in [(ours, AGENT), (peer, "etcd")] {
            let trace = Trace::of(cluster, program);
            on_the_lan(cluster, async || {
                let mut clients = Client::open_many(server, writers).await;
                let name = |number: usize| format!("traced-{writers}-{number}");
                all_do(&mut clients, Deed::Create, TRACED, &name, 0).await;
            });
            counted.push(trace.end(cluster));
        }
        let text = |counted: &[(String, u64)]| {
            let all: u64 = counted.iter().map(|(_, count)| count).sum();
            let calls: Vec<String> = counted
                .iter()
                .map(|(call, count)| format!("{count} {call}"))
                .collect();
            (format!("{} ({})", all, calls.join(", ")), all)
        };
        let ((ours_text, ours_all), (peer_text, peer_all)) = (text(&counted[0]), text(&counted[1]));
        table.texts(
            format!("syncs of {TRACED} writes, {writers} writers"),
            ours_text,
            peer_text,
            ours_all as f64 / peer_all as f64,
        );
    }
}

/// An strace that looks at a program.
struct Trace {
    child: Child,
    counts: std::path::PathBuf,
}

impl Trace {
    fn of(cluster: &Cluster, program: &str) -> Self {
        let pid = pid_of(cluster, 1, program);
        let counts = cluster.scratch(&format!("syncs-{program}"));
        let child = cluster.child(
            1,
            "strace",
            &[
                "-f",
                "-c",
                "-o",
                &counts.to_string_lossy(),
                "-e",
                "trace=fdatasync,fsync,sync_file_range,msync",
                "-p",
                &pid,
            ],
        );
        cluster.wait_for("strace to look at every thread", DEADLINE, |cluster| {
            let statuses = cluster.exec(
                1,
                &[
                    "sh",
                    "-c",
                    &format!("grep -h TracerPid /proc/{pid}/task/*/status"),
                ],
            );
            let untraced = statuses
                .stdout
                .lines()
                .filter(|line| line.split_whitespace().nth(1) == Some("0"))
                .count();
            if untraced == 0 { Ok(()) } else { Err(untraced) }
        });
        Self { child, counts }
    }

    /// Ends it and returns the calls that it has seen, with how often.
    fn end(mut self, cluster: &Cluster) -> Vec<(String, u64)> {
        cluster.exec(1, &["pkill", "-INT", "-x", "strace"]);
        _ = self.child.wait();
        let counts = std::fs::read_to_string(&self.counts).unwrap_or_default();
        // % time, seconds, usecs/call, calls, errors (mostly empty), name
        let rows = counts.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = words.last()?;
            let count = words.get(3)?.parse().ok()?;
            (*name != "total").then(|| ((*name).to_owned(), count))
        });
        rows.collect()
    }
}

// ---------------------------------------------------------------- start and join

/// Opens the store of host 1 in this process, and starts its agent again.
fn load(cluster: &Cluster, what: &str, table: &mut Table) {
    cluster.stop_agent(1);
    let time = open(&cluster.data(1));
    table.row(
        format!("load of a directory, {what}"),
        format!("{:.2} s", time.as_secs_f64()),
        "",
    );
    let start = Instant::now();
    cluster.start(1, &[QUIET]);
    wait_ready(cluster, 1);
    table.row(
        format!("start of the agent until it is ready, {what}"),
        format!("{:.2} s", start.elapsed().as_secs_f64()),
        "",
    );
}

/// What takes longer than tests may wait is a figure all the same.
pub(crate) fn wait_ready(cluster: &Cluster, host: usize) {
    cluster.wait_for("the agent to be ready", DEADLINE, |cluster| {
        let health = cluster.exec(
            host,
            &["curl", "-s", "-m", "2", "http://127.0.0.1:8080/api/v1/health"],
        );
        if health.stdout.contains("\"ok\"") {
            Ok(())
        } else {
            Err(health.stdout)
        }
    });
}

fn open(data_dir: &Path) -> Duration {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let config = Config {
            data_dir: data_dir.to_owned(),
            advertise: format!("{}:7946", cluster::address(1))
                .parse()
                .expect("an address"),
            node_name: "node1".to_owned(),
            host_name: "localhost".to_owned(),
            join: Vec::new(),
            join_token: None,
            encryption_key: None,
            tls: None,
            tls_skip_verify: false,
            pod_cidr: "10.244.0.0/16".parse().expect("a range"),
            restart_grace: Duration::from_secs(60),
        };
        let credentials = Arc::new(gossip::bootstrap(&config).await.expect("credentials"));
        let options = OpenOptions {
            cluster_id: credentials.cluster_id().to_owned(),
            node: credentials.node().clone(),
            seal_key: credentials.seal_key(),
        };
        let start = Instant::now();
        let store = Store::open(&data_dir.join("store"), options).expect("a store");
        let time = start.elapsed();
        store.close().await;
        time
    })
}

fn join(cluster: &Cluster, table: &mut Table) {
    let wanted = on_the_lan(cluster, {
        let server = agent(cluster, 1);
        async move || Client::open(&server).await.count().await
    });
    let start = Instant::now();
    cluster.join(2, &[QUIET]);
    wait_ready(cluster, 2);
    let ready = start.elapsed();
    let server = agent(cluster, 2);
    on_the_lan(cluster, async || {
        let mut client = Client::open(&server).await;
        while client.count().await < wanted {
            assert!(start.elapsed() < DEADLINE, "the joiner never has all");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    table.row(
        format!("join of a cluster of {wanted} objects: until it is ready, and holds all"),
        format!(
            "{:.1}, {:.1} s",
            ready.as_secs_f64(),
            start.elapsed().as_secs_f64()
        ),
        "30 s",
    );
    table.row(
        "memory of the joiner",
        format!("{} MiB", mebibytes(memory_of(cluster, 2, AGENT))),
        "120 MB",
    );
}

// ---------------------------------------------------------------- changes without end

/// Section `churn`.
pub(crate) fn churn(table: &mut Table) {
    let cluster = Cluster::hosts(1);
    cluster.start(1, &[QUIET]);
    cluster.wait_healthy(1);
    let server = agent(&cluster, 1);
    size(&cluster, "memory and disk before", table);
    let time = on_the_lan(&cluster, async || {
        let mut clients = Client::open_many(&server, FILLERS).await;
        create(&mut clients[0], "changed").await;
        let start = Instant::now();
        let share = CHANGES / clients.len();
        let running = clients.iter_mut().enumerate().map(|(index, client)| async move {
            for number in 0..share {
                let label = json!({"metadata": {"labels": {format!("writer-{index}"): number.to_string()}}});
                patch(client, &format!("{SERVICES}/changed"), &label).await;
            }
        });
        futures::future::join_all(running).await;
        start.elapsed()
    });
    eprintln!("{CHANGES} changes in {time:.1?}");
    size(
        &cluster,
        "memory and disk after 10,000 changes of one object",
        table,
    );
    load(&cluster, "one object of 10,000 changes", table);
    let time = on_the_lan(&cluster, async || {
        let mut client = Client::open(&server).await;
        let path = format!("{SERVICES}/reborn");
        let start = Instant::now();
        for _ in 0..CHANGES {
            create(&mut client, "reborn").await;
            client
                .call(Method::DELETE, &path, "application/json", Bytes::new())
                .await;
        }
        start.elapsed()
    });
    eprintln!("{CHANGES} lives in {time:.1?}");
    size(
        &cluster,
        "memory and disk after 10,000 rounds of create and delete of one name",
        table,
    );
    load(&cluster, "10,000 rounds of one name", table);
    size(&cluster, "memory and disk after that start", table);
}

/// Makes a Service: it goes at once when it is deleted.
async fn create(client: &mut Client, name: &str) {
    let text = "x".repeat(client::OBJECT_BYTES - 256);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "annotations": {"text": text}},
        "spec": {"ports": [{"port": 80}]},
    });
    let body = Bytes::from(service.to_string());
    client
        .call(Method::POST, SERVICES, "application/json", body)
        .await;
}

/// Changes an object by a merge patch.
pub(crate) async fn patch(client: &mut Client, path: &str, change: &serde_json::Value) {
    let body = Bytes::from(change.to_string());
    client
        .call(Method::PATCH, path, "application/merge-patch+json", body)
        .await;
}

fn size(cluster: &Cluster, what: &str, table: &mut Table) {
    let memory = memory_of(cluster, 1, AGENT);
    let disk = disk_bytes(&cluster.data(1).join("store"));
    table.row(
        what,
        format!("{}, {} MiB", mebibytes(memory), mebibytes(disk)),
        "",
    );
}
