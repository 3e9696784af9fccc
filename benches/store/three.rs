//! Three nodes on hosts of their own: how fast a change is everywhere and what it costs on the wire, what gossip costs
//! when nothing happens, and what it costs when one of the three is away.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Client, OBJECTS, Server, object};
use crate::cluster::Cluster;
use crate::etcd::disk_bytes;
use crate::figures::{Table, Times, mebibytes};
use crate::single::{patch, wait_ready};
use crate::{AGENT, Deed, QUIET, Wanted, agent, all_do, memory_of, on_the_lan, pid_of};

/// Writes whose way is timed.
const WRITES: usize = 500;
/// Changes whose bytes are counted.
const COUNTED: usize = 200;
/// How long nothing is done while processor time and bytes are counted.
const IDLE: Duration = Duration::from_secs(20);
/// Objects that are changed while a node is away, by as many writers as there are, and how often each.
const AWAY_OBJECTS: usize = 160;
const AWAY_ROUNDS: usize = 60;
const WRITERS: usize = 16;
const DEADLINE: Duration = Duration::from_secs(120);

/// Sections `visible`, `wire`, `idle` and `away`.
pub(crate) fn run(wanted: &Wanted, table: &mut Table) {
    let cluster = Cluster::with_flags(3, &[QUIET]);
    if wanted.has("idle") {
        idle(&cluster, table);
    }
    if wanted.has("visible") {
        visible(&cluster, table);
    }
    if wanted.has("wire") {
        wire(&cluster, table);
    }
    if wanted.has("away") {
        away(&cluster, table);
    }
}

fn idle(cluster: &Cluster, table: &mut Table) {
    // What the start left to do.
    std::thread::sleep(Duration::from_secs(5));
    let before = cpu_time(cluster, 2);
    let bytes = lan_bytes(cluster, 2);
    std::thread::sleep(IDLE);
    let spent = cpu_time(cluster, 2).saturating_sub(before);
    let bytes = lan_bytes(cluster, 2) - bytes;
    table.row(
        "CPU of an agent of three, idle: all of it",
        format!(
            "{:.2} % of a core",
            spent.as_secs_f64() / IDLE.as_secs_f64() * 100.0
        ),
        "gossip < 1 %",
    );
    table.row(
        "bytes to and from an agent of three, idle",
        format!("{:.1} KiB/s", bytes as f64 / IDLE.as_secs_f64() / 1024.0),
        "",
    );
}

/// User and system time of a host's agent.
fn cpu_time(cluster: &Cluster, host: usize) -> Duration {
    let pid = pid_of(cluster, host, AGENT);
    crate::cpu_time(&cluster.exec(host, &["cat", &format!("/proc/{pid}/stat")]).stdout)
}

/// Bytes that a host's cable has carried, both ways.
fn lan_bytes(cluster: &Cluster, host: usize) -> u64 {
    let both = "cat /sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes";
    let text = cluster.exec(host, &["sh", "-c", both]).expect("counters");
    text.split_whitespace()
        .filter_map(|text| text.parse::<u64>().ok())
        .sum()
}

// ---------------------------------------------------------------- how fast

/// Tells the names of the objects that a node's watch shows, and when.
async fn watch(server: Server, host: usize, sender: mpsc::UnboundedSender<(usize, String, Instant)>) {
    let mut client = Client::open(&server).await;
    let path = format!("{OBJECTS}?watch=true");
    let answer = client
        .begin(Method::GET, &path, "application/json", Bytes::new())
        .await;
    let mut body = answer.into_body();
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let now = Instant::now();
        rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).expect("JSON");
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
            if sender.send((host, name.to_owned(), now)).is_err() {
                return;
            }
        }
    }
}

fn visible(cluster: &Cluster, table: &mut Table) {
    let servers: Vec<Server> = (1..=3).map(|host| agent(cluster, host)).collect();
    let (since_sent, since_acknowledged) = on_the_lan(cluster, async || {
        let (sender, mut told) = mpsc::unbounded_channel();
        for host in [2, 3] {
            tokio::spawn(watch(servers[host - 1].clone(), host, sender.clone()));
        }
        let mut writer = Client::open(&servers[0]).await;
        // The watches are on once they have shown something.
        let mut index = 0;
        let mut heard = [false, false];
        while heard != [true, true] {
            assert!(index < 600, "the watches show nothing");
            writer
                .create(&format!("first-{index}"), object("first", index))
                .await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            while let Ok((host, ..)) = told.try_recv() {
                heard[host - 2] = true;
            }
            index += 1;
        }
        let (mut since_sent, mut since_acknowledged) = (Times::default(), Times::default());
        for index in 0..WRITES {
            let name = format!("visible-{index}");
            let object = object(&name, 0);
            let sent = Instant::now();
            writer.create(&name, object).await;
            let acknowledged = Instant::now();
            let mut missing = 2;
            while missing > 0 {
                let (_, what, when) = tokio::time::timeout(DEADLINE, told.recv())
                    .await
                    .expect("the change")
                    .expect("the watches");
                if what == name {
                    missing -= 1;
                    since_sent.push(when - sent);
                    since_acknowledged.push(when.saturating_duration_since(acknowledged));
                }
            }
        }
        (since_sent, since_acknowledged)
    });
    table.row(
        format!(
            "3 nodes: write -> visible on each other node, p50, p99 of {} (since it was sent)",
            since_sent.count()
        ),
        since_sent.text(),
        "p99 < 100 ms",
    );
    table.row(
        "the same, since it was acknowledged (0 where it was seen before)",
        since_acknowledged.text(),
        "",
    );
}

// ---------------------------------------------------------------- how much

fn wire(cluster: &Cluster, table: &mut Table) {
    let server = agent(cluster, 1);
    for (what, is_new) in [
        ("a new object of 2 KB", true),
        ("a change of one label of it", false),
    ] {
        let before = lan_bytes(cluster, 2);
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(5));
        let idle = (lan_bytes(cluster, 2) - before) as f64 / start.elapsed().as_secs_f64();
        let before = lan_bytes(cluster, 2);
        let start = Instant::now();
        on_the_lan(cluster, async || {
            let mut client = Client::open(&server).await;
            for number in 0..COUNTED {
                let name = format!("wire-{number}");
                if is_new {
                    client.create(&name, object(&name, 0)).await;
                } else {
                    patch(
                        &mut client,
                        &format!("{OBJECTS}/{name}"),
                        &json!({"metadata": {"labels": {"changed": "yes"}}}),
                    )
                    .await;
                }
            }
            // What digests and acknowledgements say of the last ones.
            tokio::time::sleep(Duration::from_secs(2)).await;
        });
        let elapsed = start.elapsed().as_secs_f64();
        let bytes = (lan_bytes(cluster, 2) - before) as f64 - idle * elapsed;
        table.row(
            format!("bytes on the wire to and from one other node, {what}"),
            format!("{:.0}", bytes / COUNTED as f64),
            "",
        );
    }
}

// ---------------------------------------------------------------- one is away

fn away(cluster: &Cluster, table: &mut Table) {
    let server = agent(cluster, 1);
    let name = |number: usize| format!("away-{number}");
    on_the_lan(cluster, async || {
        let mut clients = Client::open_many(&server, WRITERS).await;
        all_do(&mut clients, Deed::Create, AWAY_OBJECTS, &name, 0).await;
    });
    let rounds = |cluster: &Cluster, count: usize, first: usize| {
        on_the_lan(cluster, async || {
            let mut clients = Client::open_many(&server, WRITERS).await;
            let mut all = Times::default();
            for round in first..first + count {
                all = all_do(&mut clients, Deed::Update, AWAY_OBJECTS, &name, round).await;
            }
            all
        })
    };
    let size = |cluster: &Cluster| {
        (
            memory_of(cluster, 1, AGENT),
            disk_bytes(&cluster.data(1).join("store")),
        )
    };
    let before = rounds(cluster, 2, 1);
    let (memory, disk) = size(cluster);
    table.row(
        "before a node goes: write (16 writers), memory, disk",
        format!(
            "{}, {} MiB, {} MiB",
            before.text(),
            mebibytes(memory),
            mebibytes(disk)
        ),
        "",
    );
    cluster.kill_agent(3);
    let after = rounds(cluster, AWAY_ROUNDS, 10);
    let (memory, disk) = size(cluster);
    table.row(
        format!(
            "one of three away, after {} changes of {AWAY_OBJECTS} objects of 2 KB: write, memory, disk",
            AWAY_OBJECTS * AWAY_ROUNDS
        ),
        format!(
            "{}, {} MiB, {} MiB",
            after.text(),
            mebibytes(memory),
            mebibytes(disk)
        ),
        "",
    );
    let last = object(&name(AWAY_OBJECTS - 1), 10 + AWAY_ROUNDS - 1);
    let last: Value = serde_json::from_slice(&last).expect("JSON");
    let start = Instant::now();
    cluster.start(3, &[QUIET]);
    wait_ready(cluster, 3);
    let server = agent(cluster, 3);
    on_the_lan(cluster, async || {
        let mut client = Client::open(&server).await;
        loop {
            let path = format!("{OBJECTS}/{}", name(AWAY_OBJECTS - 1));
            let seen = client
                .call(Method::GET, &path, "application/json", Bytes::new())
                .await;
            let seen: Value = serde_json::from_slice(&seen).expect("JSON");
            if seen["data"] == last["data"] {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "it never catches up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    table.row(
        "it comes back: until it holds the last change",
        format!("{:.1} s", start.elapsed().as_secs_f64()),
        "",
    );
}
