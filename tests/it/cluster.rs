//! The harness: N hosts on one machine, each with a Podman engine and an agent of its own.
//!
//! Hosts are made by `tests/cluster/hosts.sh`. A cluster removes everything it made when it is dropped; what a killed
//! run left behind goes at the start of the next.

use std::fmt::Debug;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often a condition is looked at. Tests wait for states; this only bounds how late they notice.
const POLL: Duration = Duration::from_millis(50);

pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Says why tests on real hosts cannot run here; None if they can.
pub(crate) fn unable() -> Option<String> {
    let mut missing: Vec<&str> = ["podman", "ip", "nft", "nsenter", "curl", "dig", "busybox"]
        .into_iter()
        .filter(|program| !on_path(program))
        .collect();
    if !rustix::process::geteuid().is_root() {
        missing.push("root");
    }
    if missing.is_empty() {
        return None;
    }
    let reason = format!("not on this machine: {}", missing.join(", "));
    assert!(
        std::env::var_os("CI").is_none(),
        "CI must be able to run this: {reason}"
    );
    Some(reason)
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .any(|directory| Path::new(directory).join(program).exists())
}

/// Returns from the test, saying why, where real hosts cannot be had.
macro_rules! needs_hosts {
    () => {
        if let Some(reason) = crate::cluster::unable() {
            eprintln!("skipped: {reason}");
            return;
        }
    };
}
pub(crate) use needs_hosts;

/// The programs under test: those that Cargo built beside the tests, or those in the folder `PODMAN_SWARM_BIN`.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_psctl")).parent().map(PathBuf::from);
    let named = std::env::var_os("PODMAN_SWARM_BIN").filter(|folder| !folder.is_empty());
    let folder = named.map(PathBuf::from).or_else(beside).unwrap_or_default();
    let path = folder.join(name);
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// The archive of test images, built once per run.
fn images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let hello = hello();
        let tar = work_directory().join("images.tar");
        let output = Command::new(Path::new(ROOT).join("tests/cluster/images.sh"))
            .arg(hello)
            .arg(&tar)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "images.sh: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        tar
    })
}

/// Builds the example's web server, linked statically.
fn hello() -> PathBuf {
    let output = Command::new(Path::new(ROOT).join("scripts/build-hello.sh"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "build-hello.sh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A directory of this run. Its name carries our pid, so that a later run can tell whether it is in use.
fn work_directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        remove_leftovers();
        let directory = std::env::temp_dir().join(format!("podman-swarm-it-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    })
}

/// Removes what clusters of this run share, for who leaves nothing behind. Comes after the last cluster.
#[allow(dead_code, reason = "of benches/api; tests leave it to the next run")]
pub(crate) fn remove_work_directory() {
    _ = fs::remove_dir_all(work_directory());
}

/// Removes clusters of runs that were killed.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("podman-swarm-it-") else {
            continue;
        };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        for cluster in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            let name = cluster.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_prefix("cluster-") {
                _ = hosts_sh(name, &cluster.path(), None).arg("down").output();
            }
        }
        _ = fs::remove_dir_all(entry.path());
    }
}

fn hosts_sh(name: &str, directory: &Path, images: Option<&Path>) -> Command {
    let mut command = Command::new(Path::new(ROOT).join("tests/cluster/hosts.sh"));
    command
        .env("PS_NAME", name)
        .env("PS_DIR", directory)
        .env("PS_WARM", "0")
        .stdin(Stdio::null());
    if let Some(images) = images {
        command.env("PS_IMAGE_TAR", images);
    }
    command
}

/// A cluster of pretend machines.
pub(crate) struct Cluster {
    name: String,
    directory: PathBuf,
    /// Locked for moments only: an agent can be killed while requests to it are under way.
    agents: Vec<Mutex<Option<Child>>>,
}

/// What a program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) ok: bool,
    /// None: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Returns stdout, and fails with all that was printed if the program failed.
    #[track_caller]
    pub(crate) fn expect(self, what: &str) -> String {
        assert!(
            self.ok,
            "{what} failed with {:?}\nstdout: {}\nstderr: {}",
            self.code, self.stdout, self.stderr
        );
        self.stdout
    }

    /// Fails unless the program ended with this code and said each of `words` on stderr.
    #[track_caller]
    pub(crate) fn refuses(&self, code: i32, words: &[&str]) {
        assert!(
            self.code == Some(code) && words.iter().all(|word| self.stderr.contains(word)),
            "expected exit code {code} and {words:?} on stderr; saw {self:?}"
        );
    }
}

fn ran(output: Output) -> Ran {
    Ran {
        ok: output.status.success(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Cluster {
    /// Makes hosts 1 to `count`, without agents.
    pub(crate) fn hosts(count: usize) -> Cluster {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = work_directory();
        // Host names are letters alone: the pid and a counter in base 26, so that runs go side by side.
        let mut number = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
        let mut name = String::from("it");
        while number > 0 {
            name.push(char::from(b'a' + u8::try_from(number % 26).unwrap()));
            number /= 26;
        }
        name.push('h');
        let directory = base.join(format!("cluster-{name}"));
        let cluster = Cluster {
            name,
            directory,
            agents: (0..=count).map(|_| Mutex::default()).collect(),
        };
        cluster.sh(&["up", &count.to_string()]).expect("hosts.sh up");
        cluster
    }

    /// Makes `count` hosts with an agent each: the first starts a cluster, the others join it.
    pub(crate) fn with_agents(count: usize) -> Cluster {
        Self::with_flags(count, &[])
    }

    /// The same, with more flags for every agent.
    pub(crate) fn with_flags(count: usize, flags: &[&str]) -> Cluster {
        let cluster = Self::hosts(count);
        cluster.start(1, flags);
        cluster.wait_healthy(1);
        for host in 2..=count {
            cluster.join(host, flags);
        }
        for host in 2..=count {
            cluster.wait_healthy(host);
        }
        cluster.wait_nodes(count);
        cluster
    }

    /// Starts the agent of a host, to join that of host 1.
    pub(crate) fn join(&self, host: usize, flags: &[&str]) {
        let join = [
            format!("--join={}:7946", address(1)),
            format!("--join-token={}", self.secret(1, "join.token")),
        ];
        let join = [join[0].as_str(), join[1].as_str()];
        self.start(host, &[join.as_slice(), flags].concat());
    }

    /// Waits until hosts 1 to `count` show this many nodes as Ready.
    #[track_caller]
    pub(crate) fn wait_nodes(&self, count: usize) {
        self.wait_for(
            "all nodes to be Ready on all nodes",
            Duration::from_secs(20),
            |cluster| {
                let ready: Vec<usize> = (1..=count).map(|host| cluster.ready_nodes(host)).collect();
                if ready.iter().all(|nodes| *nodes == count) {
                    Ok(())
                } else {
                    Err(ready)
                }
            },
        );
    }

    fn sh(&self, arguments: &[&str]) -> Ran {
        ran(hosts_sh(&self.name, &self.directory, Some(images()))
            .args(arguments)
            .output()
            .unwrap())
    }

    /// A host's data directory, valid inside and outside.
    pub(crate) fn data(&self, host: usize) -> PathBuf {
        self.directory.join(format!("{}{host}", self.name)).join("data")
    }

    /// The text of a file in a host's data directory, a token for instance.
    #[track_caller]
    pub(crate) fn secret(&self, host: usize, name: &str) -> String {
        let text = fs::read_to_string(self.data(host).join(name)).unwrap();
        text.trim().to_owned()
    }

    /// A path for a file of the test's own, valid on every host. Goes with the cluster.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file of the test's own and returns its path.
    #[track_caller]
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.scratch(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The network namespace of the LAN itself, valid outside.
    pub(crate) fn lan(&self) -> File {
        File::open(format!("/run/netns/{}sw", self.name)).unwrap()
    }

    /// A command that runs on the LAN itself, an operator's desk, when it is spawned.
    pub(crate) fn on_lan(&self, program: &Path) -> Command {
        let mut command = hosts_sh(&self.name, &self.directory, None);
        command.args(["exec", "0"]).arg(program);
        command
    }

    /// The log of a host's agent.
    pub(crate) fn log(&self, host: usize) -> PathBuf {
        self.directory.join(format!("agent-{host}.log"))
    }

    fn agent(&self, host: usize) -> MutexGuard<'_, Option<Child>> {
        self.agents[host].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the agent of a host with these flags besides the usual ones.
    pub(crate) fn start(&self, host: usize, flags: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(host))
            .unwrap();
        let is_quiet = flags.iter().any(|flag| flag.starts_with("--log-level"));
        let child = hosts_sh(&self.name, &self.directory, None)
            .arg("exec")
            .arg(host.to_string())
            .arg(program("podman-swarm-agent"))
            .args([
                format!("--node-name=node{host}"),
                format!("--advertise-addr={}", address(host)),
                format!("--data-dir={}", self.data(host).display()),
                // The hosts reach no Internet; a resolver that refuses at once stands in for it.
                "--upstream-dns=127.0.0.1:9".to_owned(),
            ])
            .args((!is_quiet).then_some("--log-level=info,podman_swarm=debug,reconcilers=debug,store=debug"))
            .args(flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.agent(host) = Some(child);
    }

    /// Waits until the agent answers that it is ready.
    #[track_caller]
    pub(crate) fn wait_healthy(&self, host: usize) {
        self.wait_for(
            &format!("the agent of host {host} to be ready"),
            Duration::from_secs(30),
            |cluster| {
                let health = cluster.exec(
                    host,
                    &["curl", "-s", "-m", "2", "http://127.0.0.1:8080/api/v1/health"],
                );
                if health.stdout.contains("\"ok\"") {
                    Ok(())
                } else {
                    Err(health.stdout + &health.stderr)
                }
            },
        );
    }

    /// Runs a program on a host (0: on the LAN itself).
    pub(crate) fn exec(&self, host: usize, arguments: &[&str]) -> Ran {
        let mut all = vec!["exec".to_owned(), host.to_string()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let output = hosts_sh(&self.name, &self.directory, None)
            .args(all)
            .output()
            .unwrap();
        ran(output)
    }

    /// Calls the native API of a host's agent on the host itself; returns status code and answer.
    pub(crate) fn api(&self, host: usize, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.api_as(host, &self.secret(host, "api.token"), method, path, body)
    }

    /// The same with a token of choice.
    pub(crate) fn api_as(
        &self,
        host: usize,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, Value) {
        let (bearer, url) = (
            format!("Authorization: Bearer {token}"),
            format!("http://127.0.0.1:8080{path}"),
        );
        let mut all = vec![
            "curl",
            "-s",
            "-m",
            "10",
            "-X",
            method,
            "-H",
            &bearer,
            "-w",
            "\n%{http_code}",
        ];
        if !body.is_empty() {
            all.extend(["-H", "Content-Type: application/json", "-d", body]);
        }
        all.push(&url);
        let stdout = self.exec(host, &all).stdout;
        let (body, code) = stdout.rsplit_once('\n').unwrap_or(("", "0"));
        let answer = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        (code.parse().unwrap_or(0), answer)
    }

    /// Runs psctl on a host.
    pub(crate) fn psctl(&self, host: usize, arguments: &[&str]) -> Ran {
        self.with_kubeconfig(host, program("psctl").to_str().unwrap(), arguments)
    }

    /// Starts psctl on a host and leaves it running, its output piped.
    pub(crate) fn psctl_child(&self, host: usize, arguments: &[&str]) -> Child {
        self.child(host, program("psctl").to_str().unwrap(), arguments)
    }

    /// Starts a program on a host, with the admin's kubeconfig, and leaves it running, its output piped.
    pub(crate) fn child(&self, host: usize, program: &str, arguments: &[&str]) -> Child {
        let kubeconfig = format!(
            "KUBECONFIG={}",
            self.data(host).join("admin.kubeconfig").display()
        );
        hosts_sh(&self.name, &self.directory, None)
            .args(["exec", &host.to_string(), "env", &kubeconfig, "HOME=/nonexistent"])
            .arg(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The path of a host's Podman socket, valid outside.
    #[allow(dead_code, reason = "benches/cluster.rs measures beside it")]
    pub(crate) fn socket(&self, host: usize) -> PathBuf {
        self.directory
            .join(format!("{}{host}", self.name))
            .join("sock/podman.sock")
    }

    /// Runs a program on a host with the admin's kubeconfig.
    pub(crate) fn with_kubeconfig(&self, host: usize, program: &str, arguments: &[&str]) -> Ran {
        let kubeconfig = format!(
            "KUBECONFIG={}",
            self.data(host).join("admin.kubeconfig").display()
        );
        self.exec(
            host,
            &[&["env", &kubeconfig, "HOME=/nonexistent", program], arguments].concat(),
        )
    }

    /// Gets an object or list as JSON through a host's agent; Null if that fails.
    pub(crate) fn get(&self, host: usize, arguments: &[&str]) -> Value {
        let ran = self.psctl(host, &[&["get", "-o", "json"], arguments].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_default()
    }

    /// Lists the items of a kind.
    pub(crate) fn items(&self, host: usize, arguments: &[&str]) -> Vec<Value> {
        self.get(host, arguments)
            .get_mut("items")
            .and_then(Value::as_array_mut)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Counts the nodes that a host's agent shows as Ready.
    pub(crate) fn ready_nodes(&self, host: usize) -> usize {
        self.items(host, &["nodes"])
            .iter()
            .filter(|node| condition(node, "Ready") == "True")
            .count()
    }

    /// Pods that are Running and Ready, as a host's agent shows them: (name, node).
    pub(crate) fn ready_pods(&self, host: usize, selector: &str) -> Vec<(String, String)> {
        let pods = self.items(host, &["pods", "-l", selector]);
        pods.iter()
            .filter(|pod| {
                condition(pod, "Ready") == "True" && pod.pointer("/metadata/deletionTimestamp").is_none()
            })
            .map(|pod| (text(pod, "/metadata/name"), text(pod, "/spec/nodeName")))
            .collect()
    }

    /// Ids of the running containers on a host, straight from its Podman.
    pub(crate) fn containers(&self, host: usize) -> Vec<String> {
        let listed = self.exec(
            host,
            &[
                "podman",
                "ps",
                "-q",
                "--no-trunc",
                "--filter",
                "label=podman-swarm.container-name",
            ],
        );
        listed.stdout.lines().map(str::to_owned).collect()
    }

    /// Applies a manifest through a host's agent.
    #[track_caller]
    pub(crate) fn apply(&self, host: usize, manifest: &str) -> String {
        let file = self.directory.join("manifest.yaml");
        fs::write(&file, manifest).unwrap();
        self.psctl(host, &["apply", "-f", file.to_str().unwrap()])
            .expect("psctl apply")
    }

    /// The pid of a host's agent, as its host sees it.
    fn agent_pid(&self, host: usize) -> Option<String> {
        let found = self.exec(host, &["pgrep", "-x", "podman-swarm-ag"]);
        found.stdout.lines().next().map(str::to_owned)
    }

    /// SIGKILL to the agent.
    pub(crate) fn kill_agent(&self, host: usize) {
        if let Some(pid) = self.agent_pid(host) {
            self.exec(host, &["kill", "-9", &pid]);
        }
        self.reap(host);
    }

    /// SIGTERM to the agent; returns its exit code.
    pub(crate) fn stop_agent(&self, host: usize) -> Option<i32> {
        if let Some(pid) = self.agent_pid(host) {
            self.exec(host, &["kill", "-TERM", &pid]);
        }
        self.reap(host)
    }

    fn reap(&self, host: usize) -> Option<i32> {
        let child = self.agent(host).take();
        child
            .and_then(|mut child| child.wait().ok())
            .and_then(|status| status.code())
    }

    /// Waits until the agent of a host has ended by itself; returns its exit code.
    #[track_caller]
    pub(crate) fn wait_ended(&self, host: usize) -> Option<i32> {
        let mut child = self.agent(host).take().unwrap();
        let what = format!("the agent of host {host} to end");
        let status = self.wait_for(&what, Duration::from_secs(30), |_| {
            child.try_wait().unwrap().ok_or("it runs")
        });
        status.code()
    }

    /// Cuts a host off from everybody, silently.
    pub(crate) fn cut(&self, host: usize) {
        self.sh(&["cut", &host.to_string()]).expect("cut");
    }

    /// Undoes every cut.
    pub(crate) fn heal(&self) {
        self.sh(&["heal"]).expect("heal");
    }

    /// Powers a host off.
    pub(crate) fn crash(&self, host: usize) {
        self.sh(&["crash", &host.to_string()]).expect("crash");
        self.reap(host);
    }

    /// Powers a host on again, without its agent.
    pub(crate) fn boot(&self, host: usize) {
        self.sh(&["boot", &host.to_string()]).expect("boot");
    }

    /// Waits until `condition` holds. Fails at the deadline with what it last saw and the ends of the agents' logs.
    #[track_caller]
    pub(crate) fn wait_for<T, E: Debug>(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Cluster) -> Result<T, E>,
    ) -> T {
        let start = Instant::now();
        loop {
            match condition(self) {
                Ok(value) => return value,
                Err(seen) if start.elapsed() > deadline => {
                    panic!(
                        "waited {deadline:?} for {what}; last seen: {seen:?}\n{}",
                        self.log_ends()
                    );
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn log_ends(&self) -> String {
        let mut text = String::new();
        for host in 1..self.agents.len() {
            let log = fs::read_to_string(self.log(host)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text += &format!(
                "--- the end of host {host}'s log\n{}\n",
                lines[lines.len().saturating_sub(25)..].join("\n")
            );
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("PODMAN_SWARM_KEEP").is_some() {
            eprintln!("kept: PS_NAME={} PS_DIR={}", self.name, self.directory.display());
            return;
        }
        for host in 0..self.agents.len() {
            if let Some(mut child) = self.agent(host).take() {
                _ = child.kill();
                _ = child.wait();
            }
        }
        let down = hosts_sh(&self.name, &self.directory, None).arg("down").output();
        if !down.is_ok_and(|output| output.status.success()) {
            eprintln!("hosts.sh down failed for {}", self.name);
        }
    }
}

/// A host's address on the LAN.
pub(crate) fn address(host: usize) -> String {
    format!("10.231.0.{host}")
}

/// The status of a condition of an object, or an empty string.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind))
        .map(|condition| text(condition, "/status"))
        .unwrap_or_default()
}

/// The string at a JSON pointer, or an empty one.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}
