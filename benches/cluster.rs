//! Figures of whole clusters on real hosts, each beside its peer: `make bench`.
//!
//! (a) apply → all pods Ready, beside the same containers made through Podman's socket at its best;
//! (b) a write on one node → visible on the others; (c) memory of the agent. Read the ratios: one machine's
//! milliseconds say little about another's.

#[path = "../tests/it/cluster.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "the harness is shared; not all of it is used here"
)]
mod cluster;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster::Cluster;

/// Runs of each measurement; the median is printed, with the least and the greatest beside it.
const ROUNDS: usize = 5;
/// Writes whose way to the other nodes is timed.
const WRITES: usize = 200;
const IMAGE: &str = "localhost/podman-swarm-hello:1";

fn main() {
    if let Some(reason) = cluster::unable() {
        eprintln!("skipped: {reason}");
        return;
    }
    println!("machine: {}", machine());
    startup();
    visibility();
}

fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, |cores| cores.get());
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| {
        line.strip_prefix("model name")
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']))
    });
    let podman = std::process::Command::new("podman")
        .arg("--version")
        .output()
        .map(|output| output.stdout);
    let podman = String::from_utf8_lossy(&podman.unwrap_or_default())
        .trim()
        .to_owned();
    format!("{cores} cores, {}, {podman}", cpu.unwrap_or("unknown CPU"))
}

struct Spread {
    median: Duration,
    least: Duration,
    greatest: Duration,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2?} ({:.2?} to {:.2?})",
            self.median, self.least, self.greatest
        )
    }
}

fn spread(mut times: Vec<Duration>) -> Spread {
    times.sort();
    Spread {
        median: times[times.len() / 2],
        least: times[0],
        greatest: times[times.len() - 1],
    }
}

// ---------------------------------------------------------------- (a) and (c)

fn startup() {
    let cluster = Cluster::with_agents(1);
    let pid = cluster.exec(1, &["pgrep", "-x", "podman-swarm-ag"]).stdout;
    let memory = || resident_mib(&cluster, pid.trim());
    println!("\nmemory of the agent, idle: {:.1} MiB resident", memory());
    println!(
        "\napply -> all pods Ready, beside the same containers made through Podman's socket (best of 1, 2, 4, 8 at a time)"
    );
    for replicas in [1, 10, 50] {
        let rounds = match replicas {
            1 => 3 * ROUNDS,
            50 => 3,
            _ => ROUNDS,
        };
        let mut ours = Vec::new();
        let mut podman = Vec::new();
        let mut best_width = 0;
        // Turn and turn about, so that a slow spell of the machine hits both.
        for _ in 0..rounds {
            ours.push(ours_once(&cluster, replicas));
            // Wider than the work is wide would be the same once more.
            let widths = [1, 2, 4, 8].into_iter().filter(|width| *width <= replicas);
            let (time, width) = widths
                .map(|width| (podman_once(&cluster, replicas, width), width))
                .min()
                .expect("one at least");
            podman.push(time);
            best_width = width;
        }
        if replicas == 50 {
            apply_and_wait(&cluster, replicas);
            println!("memory of the agent with 50 pods: {:.1} MiB resident", memory());
            remove(&cluster);
        }
        let (ours, podman) = (spread(ours), spread(podman));
        let ratio = ours.median.as_secs_f64() / podman.median.as_secs_f64();
        println!(
            "{replicas:>3} replicas: ours {ours}   podman {podman}, {best_width} at a time   ratio {ratio:.2}"
        );
    }
}

fn resident_mib(cluster: &Cluster, pid: &str) -> f64 {
    let status = cluster.exec(1, &["cat", &format!("/proc/{pid}/status")]).stdout;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok())
        .unwrap_or_default()
        / 1024.0
}

fn ours_once(cluster: &Cluster, replicas: usize) -> Duration {
    let time = apply_and_wait(cluster, replicas);
    remove(cluster);
    time
}

fn apply_and_wait(cluster: &Cluster, replicas: usize) -> Duration {
    let manifest = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: bench}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: bench}}}}, template: {{metadata: {{labels: {{app: bench}}}}, \
         spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: web, image: '{IMAGE}'}}]}}}}}}}}"
    );
    // It shows the namespace's deployments, of which there is none yet: the first line is this one's.
    let mut watch = cluster.psctl_child(1, &["get", "deployments", "--watch", "--no-headers"]);
    let lines = BufReader::new(watch.stdout.take().expect("piped"));
    let start = Instant::now();
    cluster.apply(1, &manifest);
    let wanted = format!("{replicas}/{replicas}");
    for line in lines.lines().map_while(Result::ok) {
        if line.split_whitespace().nth(1) == Some(&wanted) {
            break;
        }
    }
    let time = start.elapsed();
    _ = watch.kill();
    _ = watch.wait();
    time
}

fn remove(cluster: &Cluster) {
    cluster
        .psctl(1, &["delete", "deployment", "bench"])
        .expect("delete");
    cluster.wait_for("all containers to go", Duration::from_secs(60), |cluster| {
        let left = cluster.containers(1).len() + cluster.items(1, &["pods"]).len();
        if left == 0 { Ok(()) } else { Err(left) }
    });
}

/// Makes and starts containers through Podman's socket, `width` at a time, and removes them again (not timed).
fn podman_once(cluster: &Cluster, count: usize, width: usize) -> Duration {
    let socket = cluster.socket(1);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let body = format!("{{\"name\":\"direct{index}\",\"image\":\"{IMAGE}\",\"netns\":{{\"nsmode\":\"bridge\"}}}}");
                    request(&socket, "POST", "/v4.0.0/libpod/containers/create", &body);
                    request(&socket, "POST", &format!("/v4.0.0/libpod/containers/direct{index}/start"), "");
                }
            });
        }
    });
    let time = start.elapsed();
    for index in 0..count {
        request(
            &socket,
            "DELETE",
            &format!("/v4.0.0/libpod/containers/direct{index}?force=true&timeout=0"),
            "",
        );
    }
    time
}

fn request(socket: &Path, method: &str, path: &str, body: &str) {
    let mut stream = UnixStream::connect(socket).expect("Podman's socket");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
}

// ---------------------------------------------------------------- (b)

/// Times how long after its acknowledgement on node 1 a write is seen by a watch on nodes 2 and 3.
fn visibility() {
    let cluster = Cluster::with_agents(3);
    let mut watches: Vec<_> = (2..=3)
        .map(|host| {
            let mut watch = cluster.psctl_child(host, &["get", "namespaces", "--watch", "--no-headers"]);
            let lines = BufReader::new(watch.stdout.take().expect("piped"));
            let (sender, receiver) = std::sync::mpsc::channel();
            thread::spawn(move || {
                for line in lines.lines().map_while(Result::ok) {
                    let name = line.split_whitespace().next().unwrap_or_default().to_owned();
                    if sender.send((name, Instant::now())).is_err() {
                        break;
                    }
                }
            });
            (watch, receiver)
        })
        .collect();
    for (_, seen) in &watches {
        // The list comes first: the watch is on once it has been printed.
        while seen.recv_timeout(Duration::from_secs(5)).expect("the list").0 != "kube-system" {}
    }
    let mut times = Vec::new();
    for index in 0..WRITES {
        let name = format!("visible-{index}");
        cluster.apply(
            1,
            &format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"),
        );
        let acknowledged = Instant::now();
        for (_, seen) in &watches {
            loop {
                let (what, when) = seen.recv_timeout(Duration::from_secs(10)).expect("the write");
                if what == name {
                    times.push(when.saturating_duration_since(acknowledged));
                    break;
                }
            }
        }
    }
    for (watch, _) in &mut watches {
        _ = watch.kill();
        _ = watch.wait();
    }
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "\na write acknowledged by node 1 -> seen by watches on nodes 2 and 3, {} samples: p50 {:.1?}, p99 {:.1?}, greatest {:.1?}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
