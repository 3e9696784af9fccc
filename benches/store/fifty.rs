//! Fifty nodes in one process, on loopback: real gossip, real TLS, real stores on one disk. All of an agent that moves
//! a change; no Podman, no API.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use podman_swarm::gossip::{self, Config, Gossip, Sockets};
use reconcilers::ports::{Clock, Cluster, Liveness, Moment, NodeFacts};
use schemas::{Kind, Object};
use store::{Author, OpenOptions, Store, Via, WatchEvent, WatchScope};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client;
use crate::figures::{Table, Times, mebibytes};

const NODES: usize = 50;
/// Joins at once: a node takes 8 strangers of one address.
const JOINS: usize = 4;
const WRITES: usize = 100;
const IDLE: Duration = Duration::from_secs(10);
/// For fifty nodes on two cores to find one another.
const DEADLINE: Duration = Duration::from_secs(180);

struct BenchClock(Instant);

impl Clock for BenchClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }

    fn unix_seconds(&self) -> i64 {
        0
    }
}

struct Node {
    gossip: Gossip,
    store: Store,
    cluster: watch::Receiver<Arc<Cluster>>,
    address: SocketAddr,
}

async fn node(data_dir: PathBuf, number: usize, join: Option<(SocketAddr, String)>) -> Node {
    fs::create_dir_all(&data_dir).expect("a directory");
    let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into())
        .await
        .expect("ports");
    let address = sockets.local_addr().expect("an address");
    let (via, join_token) = join.unzip();
    let config = Config {
        data_dir,
        advertise: address,
        node_name: format!("node{number}"),
        host_name: "localhost".to_owned(),
        join: via.iter().map(SocketAddr::to_string).collect(),
        join_token,
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
    let store = Store::open(&config.data_dir.join("store"), options).expect("a store");
    let clock = Arc::new(BenchClock(Instant::now()));
    let prepared = gossip::prepare(&config, credentials, store.clone(), clock)
        .await
        .expect("membership");
    let facts = NodeFacts {
        name: config.node_name,
        ..NodeFacts::default()
    };
    let cluster = prepared.cluster();
    let gossip = prepared
        .start(sockets, Router::new(), facts)
        .await
        .expect("gossip");
    gossip.caught_up().await;
    Node {
        gossip,
        store,
        cluster,
        address,
    }
}

/// Times of changes on their way: since the write was begun, and since it was acknowledged.
struct Seen {
    since_begun: Times,
    since_acknowledged: Times,
    acknowledged: Times,
}

async fn writes(nodes: &[Node]) -> Seen {
    let (sender, mut told) = mpsc::unbounded_channel();
    let mut watching = JoinSet::new();
    for (number, node) in nodes.iter().enumerate() {
        let scope = WatchScope {
            kinds: vec![Kind::ConfigMap],
            namespace: None,
        };
        let mut changes = node.store.watch(scope, None).expect("now");
        let sender = sender.clone();
        watching.spawn(async move {
            while let Some(WatchEvent::Put { view, .. }) = changes.recv().await {
                if sender
                    .send((number, view.key.name.clone(), Instant::now()))
                    .is_err()
                {
                    break;
                }
            }
        });
    }
    let mut seen = Seen {
        since_begun: Times::default(),
        since_acknowledged: Times::default(),
        acknowledged: Times::default(),
    };
    for index in 0..WRITES {
        let (name, writer) = (format!("fifty-{index}"), index * 7 % nodes.len());
        let object = serde_json::from_slice(&client::object(&name, 0)).expect("JSON");
        let object = Object::from_value(object).expect("an object");
        let author = Author {
            manager: "bench".to_owned(),
            user: "bench".to_owned(),
            via: Via::Api,
            unix_seconds: 0,
        };
        let begun = Instant::now();
        nodes[writer].store.create(object, author).await.expect("a write");
        let acknowledged = Instant::now();
        seen.acknowledged.push(acknowledged - begun);
        let mut missing = nodes.len();
        while missing > 0 {
            let told = timeout(DEADLINE, told.recv()).await.expect("the change");
            let (number, what, when) = told.expect("they watch");
            if what != name {
                continue;
            }
            missing -= 1;
            if number != writer {
                seen.since_begun.push(when - begun);
                seen.since_acknowledged
                    .push(when.saturating_duration_since(acknowledged));
            }
        }
    }
    seen
}

pub(crate) async fn run(table: &mut Table) {
    let directory = tempfile::tempdir().expect("a directory");
    let start = Instant::now();
    let mut nodes = vec![node(directory.path().join("0"), 0, None).await];
    let token = fs::read_to_string(directory.path().join("0/join.token")).expect("a token");
    let mut joining = JoinSet::new();
    for number in 1..NODES {
        if joining.len() >= JOINS {
            nodes.extend(joining.join_next().await.map(|node| node.expect("a node")));
        }
        let via = (nodes[number % nodes.len()].address, token.trim().to_owned());
        joining.spawn(node(directory.path().join(number.to_string()), number, Some(via)));
    }
    nodes.extend(joining.join_all().await);
    for node in &mut nodes {
        let all_live = |cluster: &Arc<Cluster>| {
            let live = cluster.nodes.values();
            live.filter(|node| node.liveness == Liveness::Alive).count() == NODES
        };
        timeout(DEADLINE, node.cluster.wait_for(all_live))
            .await
            .expect("all nodes to see all")
            .expect("gossip");
    }
    eprintln!("{NODES} nodes see one another after {:.1?}", start.elapsed());

    let before = cpu_time();
    sleep(IDLE).await;
    let idle = (cpu_time() - before).as_secs_f64() / IDLE.as_secs_f64() / NODES as f64;
    let seen = writes(&nodes).await;
    table.row(
        format!("50 nodes in one process: write -> visible on each other node, p50, p99 of {} (since it was sent)", seen.since_begun.count()),
        seen.since_begun.text(),
        "p99 < 500 ms",
    );
    table.row(
        "the same, since it was acknowledged",
        seen.since_acknowledged.text(),
        "",
    );
    table.row(
        "50 nodes: the write itself, p50, p99",
        seen.acknowledged.text(),
        "",
    );
    table.row(
        "50 nodes: CPU of one node's gossip and store, idle",
        format!("{:.2} % of a core", idle * 100.0),
        "",
    );
    table.row(
        "50 nodes: memory of one, a 50th of the process",
        format!("{} MiB", mebibytes(resident_bytes() / NODES as u64)),
        "",
    );
    let mut stopping = JoinSet::new();
    for node in nodes {
        stopping.spawn(async move {
            node.gossip.stop().await;
            node.store.close().await;
        });
    }
    stopping.join_all().await;
}

fn cpu_time() -> Duration {
    crate::cpu_time(&fs::read_to_string("/proc/self/stat").expect("/proc"))
}

fn resident_bytes() -> u64 {
    crate::resident_bytes(&fs::read_to_string("/proc/self/status").expect("/proc"))
}
