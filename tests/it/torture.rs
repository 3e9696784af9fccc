//! Writers on each of three nodes, while links are cut and agents killed at random, with requests under way: what was
//! acknowledged is on every node in the end. `TORTURE_SECONDS` says for how long, `SEED` repeats the choices (not the timing).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::cluster::{Cluster, needs_hosts};

const NODES: usize = 3;
/// On one node, so that a kill meets writes that are not acknowledged yet.
const WRITERS_PER_NODE: usize = 2;
/// Objects in which every writer has a field of its own; few, so that their histories get long. In the first there is a
/// field that all writers set.
const SHARED: usize = 2;
/// Objects that a writer creates and removes.
const OWN: usize = 4;
/// Acknowledged writes that make at least one history long.
const ENOUGH: usize = 600;
/// A run goes on until there were enough writes and a kill met one that was under way, but not longer than this.
const LONGEST: Duration = Duration::from_secs(180);
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// What came of a request.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    /// No agent was there to take it.
    NotSent,
    /// An agent took it, and was killed before it answered, or took too long.
    Lost,
}

/// What a writer knows of a value: what was acknowledged last, and what was tried since without an answer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known<T> {
    acknowledged: T,
    tried: Vec<T>,
}

impl<T: PartialEq> Known<T> {
    fn write(&mut self, value: T, answer: Answer, done: &[u16], refused: &[u16]) {
        match answer {
            Answer::NotSent => {}
            Answer::Status(code) if refused.contains(&code) => {}
            Answer::Status(code) if done.contains(&code) => {
                (self.acknowledged, self.tried) = (value, Vec::new());
            }
            Answer::Status(_) | Answer::Lost => self.tried.push(value),
        }
    }

    fn allows(&self, value: &T) -> bool {
        self.acknowledged == *value || self.tried.contains(value)
    }
}

/// What one writer knows when it ends.
#[derive(Default)]
struct Log {
    writer: usize,
    fields: [Known<Option<u64>>; SHARED],
    /// The field that all writers set.
    any: Known<Option<String>>,
    objects: [Known<bool>; OWN],
}

/// What all writers together have seen.
#[derive(Default)]
struct Counts {
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    not_sent: AtomicUsize,
    lost: AtomicUsize,
}

impl Counts {
    fn count(&self, answer: Answer) {
        let counter = match answer {
            Answer::Status(200 | 201 | 404 | 409) => &self.acknowledged,
            Answer::Status(_) => &self.refused,
            Answer::NotSent => &self.not_sent,
            Answer::Lost => &self.lost,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn are_enough(&self) -> bool {
        self.lost.load(Ordering::Relaxed) > 0 && self.acknowledged.load(Ordering::Relaxed) >= ENOUGH
    }
}

fn request(cluster: &Cluster, host: usize, method: &str, path: &str, body: &Value) -> Answer {
    /// curl's code for a connection that was refused.
    const COULD_NOT_CONNECT: i32 = 7;
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
    match (ran.stdout.trim().parse(), ran.code) {
        (Ok(code @ 100..), _) => Answer::Status(code),
        (_, Some(COULD_NOT_CONNECT)) => Answer::NotSent,
        (Ok(_) | Err(_), _) => Answer::Lost,
    }
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"port": 80}]}
    })
}

/// Writes until it is told to stop.
fn write(cluster: &Cluster, writer: usize, mut random: StdRng, counts: &Counts, stop: &AtomicBool) -> Log {
    let host = writer % NODES + 1;
    let mut log = Log {
        writer,
        ..Log::default()
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let answer = if random.random_bool(0.8) {
            let shared = random.random_range(0..SHARED);
            let path = format!("{SERVICES}/shared-{shared}");
            let mut labels = json!({format!("w{writer}"): number.to_string()});
            let any = format!("{writer}-{number}");
            if shared == 0 {
                labels["any"] = any.clone().into();
            }
            let body = json!({"metadata": {"labels": labels}});
            let answer = request(cluster, host, "PATCH", &path, &body);
            log.fields[shared].write(Some(number), answer, &[200], &[409]);
            if shared == 0 {
                log.any.write(Some(any), answer, &[200], &[409]);
            }
            answer
        } else {
            let own = random.random_range(0..OWN);
            let name = format!("own-{writer}-{own}");
            if random.random_bool(0.5) {
                let answer = request(cluster, host, "POST", SERVICES, &service(&name));
                log.objects[own].write(true, answer, &[201, 409], &[]);
                answer
            } else {
                let path = format!("{SERVICES}/{name}");
                let answer = request(cluster, host, "DELETE", &path, &json!({}));
                log.objects[own].write(false, answer, &[200, 404], &[]);
                answer
            }
        };
        counts.count(answer);
        if !matches!(answer, Answer::Status(200..500)) {
            thread::sleep(Duration::from_millis(100));
        }
    }
    log
}

/// Cuts links and kills agents until the time is over and enough has happened; returns how often each happened.
fn disturb(cluster: &Cluster, random: &mut StdRng, time: Duration, counts: &Counts) -> (usize, usize) {
    let (start, mut cuts, mut kills) = (Instant::now(), 0, 0);
    let pause = |random: &mut StdRng| Duration::from_millis(random.random_range(200..4_000));
    while start.elapsed() < time || (!counts.are_enough() && start.elapsed() < LONGEST) {
        thread::sleep(pause(random));
        let host = random.random_range(1..=NODES);
        let cut = random.random_bool(0.6);
        if cut {
            cuts += 1;
            cluster.cut(host);
        }
        if !cut || random.random_bool(0.3) {
            kills += 1;
            let victim = random.random_range(1..=NODES);
            cluster.kill_agent(victim);
            thread::sleep(pause(random));
            cluster.start(victim, &[]);
        }
        thread::sleep(pause(random));
        cluster.heal();
    }
    (cuts, kills)
}

/// The services as a node shows them, without what differs from node to node.
fn shown(cluster: &Cluster, host: usize) -> BTreeMap<String, Value> {
    let mut items = cluster.items(host, &["services"]);
    // The cluster's own.
    items.retain(|item| item["metadata"]["name"] != "kubernetes");
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
        let name = format!("shared-{shared}");
        let answer = request(&cluster, 1, "POST", SERVICES, &service(&name));
        assert!(matches!(answer, Answer::Status(201)), "{name}");
    }
    for host in 2..=NODES {
        cluster.wait_for("the shared objects", Duration::from_secs(10), |cluster| {
            let seen = shown(cluster, host).len();
            if seen == SHARED { Ok(()) } else { Err(seen) }
        });
    }

    let (stop, counts) = (AtomicBool::new(false), Counts::default());
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let (logs, (cuts, kills)) = thread::scope(|scope| {
        let writers: Vec<_> = (0..NODES * WRITERS_PER_NODE)
            .map(|writer| {
                let random = StdRng::seed_from_u64(seed.wrapping_add(1 + writer as u64));
                let (cluster, counts, stop) = (&cluster, &counts, &stop);
                scope.spawn(move || write(cluster, writer, random, counts, stop))
            })
            .collect();
        let disturbed = disturb(&cluster, &mut random, time, &counts);
        stop.store(true, Ordering::Relaxed);
        let logs: Vec<Log> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (logs, disturbed)
    });
    let time = start.elapsed();

    for host in 1..=NODES {
        cluster.wait_healthy(host);
    }
    let squashed = cluster.wait_for("a squashed history", Duration::from_secs(60), |cluster| {
        let squashed = (1..=NODES).map(|host| {
            let log = std::fs::read_to_string(cluster.log(host)).unwrap_or_default();
            log.matches("history squashed").count()
        });
        let squashed: usize = squashed.sum();
        if squashed > 0 { Ok(squashed) } else { Err(squashed) }
    });
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
    let labels = |shared: usize| &everywhere[&format!("shared-{shared}")]["metadata"]["labels"];
    let any = labels(0)["any"].as_str().map(str::to_owned);
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{time:?}, {} writers: {cuts} cuts, {kills} kills; {} writes acknowledged, {} refused, {} not sent, {} lost under \
         way; {squashed} histories squashed; what all wrote is {any:?}",
        logs.len(),
        count(&counts.acknowledged),
        count(&counts.refused),
        count(&counts.not_sent),
        count(&counts.lost),
    );
    for log in &logs {
        for (shared, known) in log.fields.iter().enumerate() {
            let label = labels(shared)[format!("w{}", log.writer)].as_str();
            let found = label.and_then(|label| label.parse().ok());
            assert!(
                known.allows(&found),
                "shared-{shared}, w{}: {found:?}, {known:?}",
                log.writer
            );
        }
        for (own, known) in log.objects.iter().enumerate() {
            let name = format!("own-{}-{own}", log.writer);
            assert!(known.allows(&everywhere.contains_key(&name)), "{name}: {known:?}");
        }
    }
    // Of a writer's values, the last alone can have stayed: each of the others came before one that was acknowledged.
    let all: Vec<_> = logs.iter().map(|log| &log.any).collect();
    assert!(
        any.is_some() && all.iter().any(|known| known.allows(&any)),
        "what all wrote: {any:?}, {all:?}"
    );
    assert!(
        counts.are_enough(),
        "too few writes, or no kill met one: nothing is shown"
    );
}
