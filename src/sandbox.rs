//! For tests of the adapters on the real thing: hosts with a network, a `/run` and a Podman engine of their own.
//!
//! A test runs in a process of its own, as the first of new namespaces (process ids, mounts, network): whatever it starts dies
//! with it, also when it panics or is killed, and nothing of the machine is changed. Needs root, Podman and busybox; without
//! them a test says so and passes, except in CI.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Names the test (`module::function`) that runs inside.
const INSIDE: &str = "PODMAN_SWARM_SANDBOX_TEST";
/// The sandbox's directory.
const DIRECTORY: &str = "PODMAN_SWARM_SANDBOX_DIRECTORY";

/// How long anything may take that should take a second.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The image that every host with an engine has: busybox, sleeping for ever unless told otherwise.
pub(crate) const IMAGE: &str = "localhost/busybox:test";

/// Runs a test in a sandbox. `name` is the path of the calling test, without the crate's.
pub(crate) fn run(name: &str, test: impl FnOnce(&Sandbox)) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        let directory = PathBuf::from(std::env::var(DIRECTORY).expect("set together with the name"));
        shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up");
        return test(&Sandbox { directory });
    }
    if let Some(reason) = missing() {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI nothing is skipped: {reason}"
        );
        eprintln!("skipped {name}: {reason}");
        return;
    }
    let directory = tempfile::Builder::new()
        .prefix("podman-swarm-")
        .tempdir()
        .unwrap();
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args([
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            name,
            "--include-ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(INSIDE, name)
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    remove_control_groups(directory.path());
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "in its sandbox: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".into());
    }
    ["podman", "ip", "nft", "iptables", "unshare", "setpriv", "busybox"]
        .into_iter()
        .find(|program| {
            !Command::new("sh")
                .args(["-c", &format!("command -v {program}")])
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
        .map(|program| format!("`{program}` is not installed"))
}

/// Control groups outlive the processes of a container whose engine was killed; those of the sandbox's containers are removed.
fn remove_control_groups(directory: &Path) {
    let pattern = format!("{}/*/storage/overlay-containers/", directory.display());
    shell(&format!(
        "for d in {pattern}*/; do [ -d \"$d\" ] && find /sys/fs/cgroup -depth -type d -name \"*$(basename $d)*\" \
         -exec rmdir {{}} \\; 2>/dev/null; done; true"
    ));
}

/// Runs a shell command, which must succeed, and returns its output.
pub(crate) fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "`{command}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a condition gives something, and fails with what it said last.
pub(crate) async fn wait_for<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(last) if start.elapsed() > DEADLINE => {
                panic!("{what}: not within {DEADLINE:?}; last: {last}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Runs a future in the namespaces of a thread of its own, entered before its runtime starts.
fn inside<T: Send>(namespaces: &[(PathBuf, LinkNameSpaceType)], work: impl AsyncFnOnce() -> T + Send) -> T {
    let body = || {
        // SAFETY: only the file system attributes (working directory) are separated, which a thread needs before it may change
        // its mount namespace; file descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
        for (path, kind) in namespaces {
            move_into_link_name_space(File::open(path).unwrap().as_fd(), Some(*kind)).unwrap();
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work())
    };
    std::thread::scope(|scope| match scope.spawn(body).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs a future in a network namespace (of a pod, made on this host).
pub(crate) fn in_network<T: Send>(path: &Path, work: impl AsyncFnOnce() -> T + Send) -> T {
    inside(&[(path.to_owned(), LinkNameSpaceType::Network)], work)
}

/// Where the tests of one sandbox run.
pub(crate) struct Sandbox {
    directory: PathBuf,
}

impl Sandbox {
    /// Makes a host without an engine.
    pub(crate) fn host(&self, number: u8) -> Host {
        let directory = self.directory.join(number.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        let ready = directory.join("ready");
        let _ = std::fs::remove_file(&ready);
        let init = Command::new("unshare")
            .args(["--mount", "--net", "--uts", "sh", "-c"])
            .arg(format!(
                "mount -t tmpfs tmpfs /run && mkdir /run/netns /run/lock && mount -t tmpfs tmpfs /dev/shm \
                 && ip link set lo up && hostname host{number} && touch {} && exec sleep infinity",
                ready.display()
            ))
            .spawn()
            .unwrap();
        wait_until("the host", || ready.exists());
        Host {
            number,
            directory,
            init,
            service: None,
        }
    }

    /// Makes a host with a Podman engine and the test image.
    pub(crate) fn host_with_engine(&self, number: u8) -> Host {
        let mut host = self.host(number);
        host.configure();
        host.start_engine();
        let root = host.directory.join("image");
        shell(&format!(
            "mkdir -p {0}/bin {0}/www/cgi-bin {0}/tmp && cp $(command -v busybox) {0}/bin/busybox && ln -s busybox {0}/bin/sh",
            root.display()
        ));
        // Tells a caller which address it comes from.
        let script = root.join("www/cgi-bin/who");
        std::fs::write(&script, "#!/bin/sh\nprintf '\\r\\n%s' \"$REMOTE_ADDR\"\n").unwrap();
        shell(&format!("chmod +x {}", script.display()));
        host.podman(&format!(
            "import -q --change 'CMD=[\"/bin/busybox\",\"sleep\",\"1000000\"]' - {IMAGE} < {0}.tar",
            {
                shell(&format!("tar -C {0} -cf {0}.tar .", root.display()));
                root.display()
            }
        ));
        host
    }

    /// Joins two hosts by a cable: `eth0` with 192.0.2.<number>/24 on both.
    pub(crate) fn connect(&self, one: &Host, two: &Host) {
        shell(&format!(
            "ip link add eth0 netns {} type veth peer name eth0 netns {}",
            one.init.id(),
            two.init.id()
        ));
        for host in [one, two] {
            host.shell(&format!(
                "ip addr add 192.0.2.{}/24 dev eth0 && ip link set eth0 up",
                host.number
            ));
        }
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pretended machine.
pub(crate) struct Host {
    number: u8,
    directory: PathBuf,
    init: Child,
    service: Option<Child>,
}

impl Host {
    /// The address of its Podman's socket.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.socket_path().display())
    }

    fn socket_path(&self) -> PathBuf {
        self.directory.join("podman.sock")
    }

    /// Runs a future as a program of this host would.
    pub(crate) fn enter<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        let namespace = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", self.init.id()));
        inside(
            &[
                // First: with the other mounts, /proc may show other processes.
                (namespace("net"), LinkNameSpaceType::Network),
                (namespace("mnt"), LinkNameSpaceType::Mount),
            ],
            work,
        )
    }

    /// Runs a shell command on this host, which must succeed, and returns its output.
    pub(crate) fn shell(&self, command: &str) -> String {
        let output = self.command("sh").args(["-c", command]).output().unwrap();
        assert!(
            output.status.success(),
            "`{command}`: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs Podman's command line on this host, as a user beside us would.
    pub(crate) fn podman(&self, arguments: &str) -> String {
        self.shell(&format!("podman {arguments}")).trim().to_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.init.id().to_string(),
                "--mount",
                "--net",
                "--uts",
                program,
            ])
            .env("CONTAINERS_CONF", self.directory.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.directory.join("storage.conf"));
        command
    }

    fn configure(&self) {
        // Where limits cannot be raised, Podman's defaults (a million) cannot be set.
        let files = shell("ulimit -Hn")
            .trim()
            .parse::<u64>()
            .unwrap_or(1 << 20)
            .min(1 << 20);
        let networks = self.directory.join("networks");
        std::fs::create_dir_all(&networks).unwrap();
        std::fs::write(
            self.directory.join("containers.conf"),
            format!(
                "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc=4096:4096\"]\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
                 [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
                networks.display()
            ),
        )
        .unwrap();
        std::fs::write(
            self.directory.join("storage.conf"),
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"/run/containers/storage\"\n",
                self.directory.join("storage").display()
            ),
        )
        .unwrap();
    }

    /// Starts Podman's service and waits until it answers.
    pub(crate) fn start_engine(&mut self) {
        let socket = self.socket_path();
        let _ = std::fs::remove_file(&socket);
        let service = self
            .command("podman")
            .args(["system", "service", "--time=0", &self.socket()])
            .spawn()
            .unwrap();
        self.service = Some(service);
        wait_until("Podman's socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Ends Podman's service; containers run on.
    pub(crate) fn stop_engine(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}
