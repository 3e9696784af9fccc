//! A writer on each of three nodes, while links are cut and agents killed at random: what was acknowledged is on every
//! node in the end. `TORTURE_SECONDS` says for how long, `SEED` repeats the choices (not the timing).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::cluster::{Cluster, needs_hosts};

const NODES: usize = 3;
/// Objects in which every writer has a field of its own; few, so that their histories get long.
const SHARED: usize = 2;
/// Objects that a writer creates and removes.
const OWN: usize = 4;
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// What a writer knows of a value: what was acknowledged last, and what was tried since without an answer.
#[derive(Clone, Debug, PartialEq)]
struct Known<T> {
    acknowledged: T,
    tried: Vec<T>,
}

impl<T: Clone + PartialEq> Known<T> {
    fn write(&mut self, value: T, code: u16, done: &[u16], refused: &[u16]) {
        if done.contains(&code) {
            (self.acknowledged, self.tried) = (value, Vec::new());
        } else if !refused.contains(&code) {
            self.tried.push(value);
        }
    }

    fn allows(&self, value: &T) -> bool {
        self.acknowledged == *value || self.tried.contains(value)
    }
}

/// What one writer knows when it ends.
struct Log {
    host: usize,
    fields: Vec<Known<Option<u64>>>,
    objects: Vec<Known<bool>>,
    acknowledged: usize,
    unanswered: usize,
}

fn request(cluster: &Cluster, host: usize, method: &str, path: &str, body: &Value) -> u16 {
    let kind = match method {
        "PATCH" => "Content-Type: application/merge-patch+json",
        _ => "Content-Type: application/json",
    };
    let (bearer, url, body) = (
        format!("Authorization: Bearer {}", cluster.secret(host, "api.token")),
        format!("http://127.0.0.1:8080{path}"),
        body.to_string(),
    );
    let ran = cluster.exec(
        host,
        &[
            "curl",
            "-s",
            "-m",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            method,
            "-H",
            &bearer,
            "-H",
            kind,
            "-d",
            &body,
            &url,
        ],
    );
    ran.stdout.trim().parse().unwrap_or(0)
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"port": 80}]}
    })
}

/// Writes until it is told to stop.
fn write(cluster: &RwLock<Cluster>, host: usize, mut random: StdRng, stop: &AtomicBool) -> Log {
    let mut log = Log {
        host,
        fields: vec![
            Known {
                acknowledged: None,
                tried: Vec::new()
            };
            SHARED
        ],
        objects: vec![
            Known {
                acknowledged: false,
                tried: Vec::new()
            };
            OWN
        ],
        acknowledged: 0,
        unanswered: 0,
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let cluster = cluster.read().unwrap();
        let code = if random.random_bool(0.8) {
            let shared = random.random_range(0..SHARED);
            let path = format!("{SERVICES}/shared-{shared}");
            let body = json!({"metadata": {"labels": {format!("w{host}"): number.to_string()}}});
            let code = request(&cluster, host, "PATCH", &path, &body);
            log.fields[shared].write(Some(number), code, &[200], &[409]);
            code
        } else {
            let own = random.random_range(0..OWN);
            let name = format!("own-{host}-{own}");
            if random.random_bool(0.5) {
                let code = request(&cluster, host, "POST", SERVICES, &service(&name));
                log.objects[own].write(true, code, &[201, 409], &[]);
                code
            } else {
                let code = request(
                    &cluster,
                    host,
                    "DELETE",
                    &format!("{SERVICES}/{name}"),
                    &json!({}),
                );
                log.objects[own].write(false, code, &[200, 404], &[]);
                code
            }
        };
        drop(cluster);
        match code {
            200 | 201 | 404 | 409 => log.acknowledged += 1,
            _ => {
                log.unanswered += 1;
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    log
}

/// Cuts links and kills agents until the time is over; returns how often each happened.
fn disturb(cluster: &RwLock<Cluster>, random: &mut StdRng, time: Duration) -> (usize, usize) {
    let (start, mut cuts, mut kills) = (Instant::now(), 0, 0);
    let pause = |random: &mut StdRng| Duration::from_millis(random.random_range(200..4_000));
    while start.elapsed() < time {
        thread::sleep(pause(random));
        let host = random.random_range(1..=NODES);
        let cut = random.random_bool(0.6);
        if cut {
            cuts += 1;
            cluster.read().unwrap().cut(host);
        }
        if !cut || random.random_bool(0.3) {
            kills += 1;
            let victim = random.random_range(1..=NODES);
            cluster.write().unwrap().kill_agent(victim);
            thread::sleep(pause(random));
            cluster.write().unwrap().start(victim, &[]);
        }
        thread::sleep(pause(random));
        cluster.read().unwrap().heal();
    }
    (cuts, kills)
}

/// The services as a node shows them, without what differs from node to node.
fn shown(cluster: &Cluster, host: usize) -> BTreeMap<String, Value> {
    let items = cluster.items(host, &["services"]);
    let stripped = items.into_iter().map(|mut item| {
        if let Some(metadata) = item["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        (
            item["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            item,
        )
    });
    stripped.collect()
}

#[test]
fn what_was_acknowledged_is_everywhere_in_the_end() {
    needs_hosts!();
    let number = |name: &str, default: u64| {
        let given = std::env::var(name).ok().and_then(|text| text.parse().ok());
        given.unwrap_or(default)
    };
    let time = Duration::from_secs(number("TORTURE_SECONDS", 20));
    let seed = number("SEED", rand::random());
    println!("SEED={seed}");
    let cluster = Cluster::with_agents(NODES);
    for shared in 0..SHARED {
        let code = request(
            &cluster,
            1,
            "POST",
            SERVICES,
            &service(&format!("shared-{shared}")),
        );
        assert_eq!(code, 201);
    }
    for host in 2..=NODES {
        cluster.wait_for("the shared objects", Duration::from_secs(10), |cluster| {
            let seen = shown(cluster, host).len();
            if seen == SHARED { Ok(()) } else { Err(seen) }
        });
    }

    let cluster = RwLock::new(cluster);
    let stop = AtomicBool::new(false);
    let mut random = StdRng::seed_from_u64(seed);
    let (logs, (cuts, kills)) = thread::scope(|scope| {
        let writers: Vec<_> = (1..=NODES)
            .map(|host| {
                let random = StdRng::seed_from_u64(seed + host as u64);
                let (cluster, stop) = (&cluster, &stop);
                scope.spawn(move || write(cluster, host, random, stop))
            })
            .collect();
        let disturbed = disturb(&cluster, &mut random, time);
        stop.store(true, Ordering::Relaxed);
        let logs: Vec<Log> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (logs, disturbed)
    });

    let cluster = cluster.into_inner().unwrap();
    for host in 1..=NODES {
        cluster.wait_healthy(host);
    }
    let everywhere = cluster.wait_for("equal stores", Duration::from_secs(60), |cluster| {
        let all: Vec<_> = (1..=NODES).map(|host| shown(cluster, host)).collect();
        let names: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
        let differing: Vec<_> = names
            .into_iter()
            .filter(|name| all.iter().any(|one| one.get(*name) != all[0].get(*name)))
            .cloned()
            .collect();
        if differing.is_empty() {
            Ok(all[0].clone())
        } else {
            Err(differing)
        }
    });
    let squashed: usize = (1..=NODES)
        .map(|host| {
            let log = std::fs::read_to_string(cluster.log(host)).unwrap_or_default();
            log.matches("history squashed").count()
        })
        .sum();
    let sum = |count: fn(&Log) -> usize| logs.iter().map(count).sum::<usize>();
    println!(
        "{time:?}: {cuts} cuts, {kills} kills, {} writes acknowledged, {} not, {squashed} histories squashed",
        sum(|log| log.acknowledged),
        sum(|log| log.unanswered),
    );
    for log in &logs {
        for (shared, known) in log.fields.iter().enumerate() {
            let labels = &everywhere[&format!("shared-{shared}")]["metadata"]["labels"];
            let label = labels[format!("w{}", log.host)].as_str();
            let found = label.and_then(|label| label.parse().ok());
            assert!(
                known.allows(&found),
                "shared-{shared}, w{}: {found:?}, {known:?}",
                log.host
            );
        }
        for (own, known) in log.objects.iter().enumerate() {
            let name = format!("own-{}-{own}", log.host);
            assert!(known.allows(&everywhere.contains_key(&name)), "{name}: {known:?}");
        }
    }
    assert!(
        sum(|log| log.acknowledged) > 100,
        "too few writes to show anything"
    );
}
