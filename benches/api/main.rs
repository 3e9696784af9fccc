//! Latency and throughput of the API, beside kube-apiserver's: `make bench-api`, `BENCH=get,list` for some of it.
//!
//! It starts an agent on a host of the tests' harness. `API_URL=https://host:6443 API_TOKEN=…`, with `API_CA=file` or
//! `API_INSECURE=1` where the system does not know the server's CA, has it ask any other Kubernetes API server instead.
//! The run fails if any request failed. It removes what it made, also when it fails or is interrupted.

#[path = "../store/client.rs"]
#[allow(
    dead_code,
    reason = "shared with benches/store; only etcd is asked through it here"
)]
mod client;
#[path = "../../tests/it/cluster.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "the harness is shared; not all of it is used here"
)]
mod cluster;
mod connection;
#[path = "../store/etcd.rs"]
#[allow(dead_code, reason = "shared with benches/store")]
mod etcd;
#[path = "../store/figures.rs"]
#[allow(dead_code, reason = "shared with benches/store")]
mod figures;
#[path = "../store/host.rs"]
#[allow(dead_code, reason = "shared with benches/store")]
mod host;
mod load;
mod objects;
mod phases;
mod report;
#[path = "../store/wanted.rs"]
#[allow(dead_code, reason = "shared with benches/store")]
mod wanted;
mod watch;
mod yardstick;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use cluster::Cluster;
use connection::{Api, Trust};
use etcd::Etcd;
use load::Outcome;
use phases::Run;
use report::{PEER_MEMORY_MB, Peer, Report};
use wanted::Wanted;

/// Clients of the loads of many.
pub(crate) const MANY: usize = 16;

/// The sections. ConfigMaps are made in any case: the others need them.
const SECTIONS: [&str; 9] = [
    "create",
    "get",
    "merge",
    "apply",
    "strategic",
    "list",
    "watch",
    "delete",
    "etcd",
];

fn main() -> ExitCode {
    let wanted = Wanted::from_environment(&SECTIONS);
    let stop = CancellationToken::new();
    cancel_at_a_signal(stop.clone());
    let mut report = Report::default();
    report.note(machine());
    if let Err(error) = measure(&wanted, &stop, &mut report) {
        report.failed("the run", &[format!("{error:#}")]);
    }
    match report.print() {
        0 => ExitCode::SUCCESS,
        failures => {
            eprintln!("error: {failures} failures");
            ExitCode::FAILURE
        }
    }
}

/// Cancels at SIGINT and SIGTERM; the second one ends the process at once.
fn cancel_at_a_signal(stop: CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("a signal handler");
            let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.is_cancelled() {
                    std::process::exit(130);
                }
                eprintln!("removing what was made; once more to leave it");
                stop.cancel();
            }
        });
    });
}

/// The machine, and what else it did before the run.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown").to_owned();
    format!("Machine: {cores} cores, {model}; load average before the run {load}.")
}

/// Where the server is that is asked.
enum Place<'a> {
    /// On the first host of the harness.
    Host(&'a Cluster),
    /// Wherever `API_URL` says.
    Elsewhere,
}

impl Place<'_> {
    /// Runs something that opens connections to the server, in a runtime of its own with a thread for each core.
    fn run<T: Send>(&self, run: impl AsyncFnOnce() -> T + Send) -> T {
        let block = || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(run())
        };
        match self {
            Self::Host(cluster) => host::in_the_lan(cluster, block),
            Self::Elsewhere => block(),
        }
    }

    /// The agent's memory at rest, MB; None: it is not ours to look at, or all is to stop.
    fn memory(&self, stop: &CancellationToken) -> Option<f64> {
        let Self::Host(cluster) = self else {
            return None;
        };
        let rest = Instant::now() + host::SETTLING;
        while Instant::now() < rest && !stop.is_cancelled() {
            std::thread::sleep(Duration::from_millis(50));
        }
        // An interrupt from a terminal ends the agent as well.
        (!stop.is_cancelled()).then(|| host::memory_now(cluster, 1, host::AGENT) as f64 / 1e6)
    }
}

/// Removes the harness's directory after the cluster, also when the run panics.
struct WorkDirectory;

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        cluster::remove_work_directory();
    }
}

fn measure(wanted: &Wanted, stop: &CancellationToken, report: &mut Report) -> Result<()> {
    let elsewhere = api_of_environment()?;
    let unable = cluster::unable();
    if let (None, Some(reason)) = (&elsewhere, &unable) {
        bail!("no host for an agent: {reason}; API_URL and API_TOKEN have another server asked");
    }
    let _work_directory = unable.is_none().then_some(WorkDirectory);
    // For a server elsewhere only etcd needs it.
    let cluster =
        (unable.is_none() && (elsewhere.is_none() || wanted.has("etcd"))).then(|| Cluster::hosts(1));
    if let Some(reason) = unable.filter(|_| wanted.has("etcd")) {
        report.note(format!("etcd was not measured: {reason}."));
    }
    let puts = || {
        let host = cluster.as_ref().filter(|_| wanted.has("etcd"));
        host.filter(|_| !stop.is_cancelled()).map(etcd_puts)
    };
    let before = puts();
    let result = match (&elsewhere, &cluster) {
        (Some(api), _) => load(&Place::Elsewhere, api, wanted, stop, report),
        (None, Some(cluster)) => {
            start(cluster).and_then(|api| load(&Place::Host(cluster), &api, wanted, stop, report))
        }
        (None, None) => Ok(()),
    };
    // Once more at the end: a slow spell of the machine's may have come in between.
    if let Some((before, after)) = before.and_then(|before| Some((before, puts()?))) {
        let clients = ["1 client".to_owned(), format!("{MANY} clients")];
        for ((mut outcome, after), clients) in before.into_iter().zip(after).zip(clients) {
            outcome.extend(after);
            let what = format!("etcd's own put of the same bytes, {clients}");
            report.row(&what, &outcome, Peer::default());
        }
    }
    result
}

/// The server that `API_URL` names.
fn api_of_environment() -> Result<Option<Api>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let Some(url) = variable("API_URL") else {
        return Ok(None);
    };
    let token = variable("API_TOKEN").context("API_URL is set and API_TOKEN is not")?;
    let trust = match (variable("API_CA"), variable("API_INSECURE").as_deref()) {
        (Some(file), _) => {
            Trust::Authority(std::fs::read_to_string(&file).with_context(|| format!("API_CA={file}"))?)
        }
        (None, Some("1")) => Trust::Anybody,
        (None, Some(other)) => bail!("API_INSECURE={other}: only 1 is known"),
        (None, None) => Trust::System,
    };
    Api::new(&url, &token, &trust).map(Some)
}

fn etcd_puts(cluster: &Cluster) -> [Outcome; 2] {
    let etcd = Etcd::start(cluster);
    Place::Host(cluster).run(async || yardstick::puts(&etcd.server, MANY).await)
}

/// Starts an agent and waits until it is ready.
fn start(cluster: &Cluster) -> Result<Api> {
    cluster.start(1, &[host::QUIET]);
    cluster.wait_healthy(1);
    let agent = host::agent(cluster, 1);
    let token = agent.token.context("an agent has a token")?;
    Api::new(
        &format!("https://{}", agent.address),
        &token,
        &Trust::Authority(agent.authority),
    )
}

/// Makes objects, has them read, changed and removed, and removes what is left.
fn load(
    place: &Place<'_>,
    api: &Api,
    wanted: &Wanted,
    stop: &CancellationToken,
    report: &mut Report,
) -> Result<()> {
    let idle = place.memory(stop);
    let run = Run::new(api);
    let filled = place.run(async || unless(stop, run.fill_and_use(wanted, report)).await);
    let loaded = idle.zip(place.memory(stop).filter(|_| filled.is_ok()));
    if let Some((idle, loaded)) = loaded {
        report.note(format!(
            "Memory of the agent: {idle:.0} MB idle, {loaded:.0} MB at rest after the load, with its objects; \
             kube-apiserver and etcd together {PEER_MEMORY_MB:.0} MB idle: {:.2}.",
            idle / PEER_MEMORY_MB
        ));
    }
    let emptied = match &filled {
        Ok(()) if wanted.has("delete") => place.run(async || unless(stop, run.delete(report)).await),
        _ => Ok(()),
    };
    // An agent of ours goes as a whole, and got the interrupt too if it came from a terminal.
    let removed = match place {
        Place::Host(_) if stop.is_cancelled() => Ok(()),
        _ => place.run(async || run.remove().await),
    };
    let removed = removed.with_context(|| format!("namespace {} may be left", run.namespace));
    if let Err(error) = &removed {
        report.failed("the end", &[format!("{error:#}")]);
    }
    filled.and(emptied)
}

/// Runs something until it ends, panics or is to stop.
async fn unless(stop: &CancellationToken, run: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        ended = AssertUnwindSafe(run).catch_unwind() => ended.unwrap_or_else(|_| Err(anyhow!("panicked"))),
        () = stop.cancelled() => Err(anyhow!("interrupted")),
    }
}
