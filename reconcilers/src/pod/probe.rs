//! Probes: when they run, what their results mean, and how HTTP and TCP ones are done.
//!
//! A task per probe of a running container, so that pods without probes cost no timer. Results go into
//! [`ProbeResults`], from where plan and status read them. Exec probes go through the container runtime.
//! Source of periods and thresholds: Kubernetes API, `Probe`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::view::running_for;
use crate::ports::{Container, ContainerId, ContainerRuntime};

/// As much of an HTTP answer as is read: the status line and some of the body, for the message.
const ANSWER_MAX: u64 = 10 * 1024;
/// Longest message of a failed probe that is kept.
const MESSAGE_MAX: usize = 256;

/// Where a network probe goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeTarget {
    /// Succeeds with a status from 200 to 399.
    Http {
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    /// Succeeds if the port accepts a connection.
    Tcp { host: String, port: u16 },
}

/// Does probes over the network, from this node to the pod.
#[async_trait]
pub trait Prober: Send + Sync {
    /// # Errors
    /// Why the probe failed, in words for an event.
    async fn probe(&self, target: &ProbeTarget) -> Result<(), String>;
}

/// Probes over real connections, a new one each time, as kubelet does.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkProber;

#[async_trait]
impl Prober for NetworkProber {
    async fn probe(&self, target: &ProbeTarget) -> Result<(), String> {
        match target {
            ProbeTarget::Tcp { host, port } => connect(host, *port).await.map(drop),
            ProbeTarget::Http {
                host,
                port,
                path,
                headers,
            } => {
                let request = request(host, *port, path, headers)?;
                let mut stream = connect(host, *port).await?;
                let failed = |error: std::io::Error| format!("Get \"http://{host}:{port}{path}\": {error}");
                stream.write_all(request.as_bytes()).await.map_err(failed)?;
                let mut answer = Vec::new();
                let mut limited = stream.take(ANSWER_MAX);
                while !answer.contains(&b'\n') {
                    if limited.read_buf(&mut answer).await.map_err(failed)? == 0 {
                        break;
                    }
                }
                match status_code(&answer) {
                    Some(200..400) => Ok(()),
                    Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
                    None => Err(format!(
                        "Get \"http://{host}:{port}{path}\": malformed HTTP response"
                    )),
                }
            }
        }
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|error| format!("dial tcp {host}:{port}: {error}"))
}

fn request(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<String, String> {
    let named = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    let mut line = |name: &str, value: &str| {
        request.push_str(name);
        request.push_str(": ");
        request.push_str(value);
        request.push_str("\r\n");
    };
    if !named("host") {
        line("Host", &format!("{host}:{port}"));
    }
    if !named("user-agent") {
        line("User-Agent", "kube-probe/podman-swarm");
    }
    line("Connection", "close");
    for (name, value) in headers {
        line(name, value);
    }
    let broken = |text: &str| text.contains(|character: char| character.is_control());
    if path.contains(' ') || broken(path) || headers.iter().any(|(name, value)| broken(name) || broken(value))
    {
        return Err("path and headers of a probe must be on one line".to_owned());
    }
    Ok(request + "\r\n")
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

/// Which of a container's probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// What the probes of a running container have said so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeResults {
    pub container: ContainerId,
    /// The startup probe succeeded, or there is none, or it would have ended the container by now.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// It is known whether the container is ready: it has started, and the readiness probe has a verdict, or there is none.
    pub settled: bool,
    /// Why the container must be killed: its liveness or startup probe failed too often.
    pub unhealthy: Option<String>,
}

impl ProbeResults {
    /// Returns the state before the first probe of a running container, which may have run before this agent did.
    pub fn before(running: &Container, spec: Option<&v1::Container>, unix_seconds: i64) -> ProbeResults {
        let age = running_for(running, unix_seconds).unwrap_or_default();
        let startup = spec.and_then(|spec| spec.startup_probe.as_ref());
        let started = startup.is_none_or(|probe| age > time_for(probe, failure_threshold(probe)));
        let ready = spec.is_none_or(|spec| spec.readiness_probe.is_none());
        ProbeResults {
            container: running.id.clone(),
            started,
            ready,
            settled: started && ready,
            unhealthy: None,
        }
    }

    /// Takes in an outcome of `kind`: `verdict` is Some once a threshold is reached.
    pub(super) fn report(&mut self, kind: ProbeKind, verdict: Option<bool>, message: &str) {
        match (kind, verdict) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Readiness, Some(ready)) => {
                self.ready = ready;
                self.settled = true;
            }
            (ProbeKind::Startup, Some(true)) => {
                self.started = true;
                // Without a readiness probe it is ready from here on.
                self.settled |= self.ready;
            }
            (ProbeKind::Startup | ProbeKind::Liveness, Some(false)) => {
                self.unhealthy = Some(format!("{} probe failed: {message}", kind.name()));
            }
        }
    }
}

/// Counts results in a row until a threshold is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streak {
    success_threshold: u32,
    failure_threshold: u32,
    last: bool,
    count: u32,
}

impl Streak {
    /// `seen`: successes just before the first result.
    pub(super) fn new(success_threshold: u32, failure_threshold: u32, seen: u32) -> Streak {
        Streak {
            success_threshold,
            failure_threshold,
            last: true,
            count: seen,
        }
    }

    /// Returns the verdict, if this result makes or keeps one.
    pub(super) fn add(&mut self, success: bool) -> Option<bool> {
        self.count = if self.last == success {
            self.count.saturating_add(1)
        } else {
            1
        };
        self.last = success;
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        (self.count >= threshold).then_some(success)
    }
}

/// One probe of one container, ready to run.
#[derive(Clone, Debug)]
pub(super) struct ProbePlan {
    pub kind: ProbeKind,
    check: Check,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    streak: Streak,
}

#[derive(Clone, Debug)]
enum Check {
    Network(ProbeTarget),
    Exec(Vec<String>),
    /// Fails with this message, always: kinds of probes that are not done.
    Unsupported(&'static str),
}

fn number(value: Option<i32>, default: u32) -> u32 {
    match value.map(u32::try_from) {
        Some(Ok(value)) if value > 0 => value,
        _ => default,
    }
}

fn success_threshold(probe: &v1::Probe) -> u32 {
    number(probe.success_threshold, 1)
}

fn failure_threshold(probe: &v1::Probe) -> u32 {
    number(probe.failure_threshold, 3)
}

fn initial_delay(probe: &v1::Probe) -> Duration {
    Duration::from_secs(number(probe.initial_delay_seconds, 0).into())
}

fn period(probe: &v1::Probe) -> Duration {
    Duration::from_secs(number(probe.period_seconds, 10).into())
}

/// Returns how long after the start of its container a probe has answered so many times.
fn time_for(probe: &v1::Probe, answers: u32) -> Duration {
    initial_delay(probe) + period(probe) * answers
}

/// Reads the probes of a container whose pod has `address` and which has run for `age` already.
pub(super) fn probes_of(container: &v1::Container, address: IpAddr, age: Duration) -> Vec<ProbePlan> {
    [
        (ProbeKind::Startup, &container.startup_probe),
        (ProbeKind::Liveness, &container.liveness_probe),
        (ProbeKind::Readiness, &container.readiness_probe),
    ]
    .into_iter()
    .filter_map(|(kind, probe)| {
        let probe = probe.as_ref()?;
        let threshold = success_threshold(probe);
        // Where an agent before this one had the time for all successes but the last, the next one is enough.
        let seen = if age > time_for(probe, threshold) {
            threshold - 1
        } else {
            0
        };
        Some(ProbePlan {
            kind,
            check: check_of(probe, container, address),
            initial_delay: initial_delay(probe),
            period: period(probe),
            timeout: Duration::from_secs(number(probe.timeout_seconds, 1).into()),
            streak: Streak::new(threshold, failure_threshold(probe), seen),
        })
    })
    .collect()
}

fn check_of(probe: &v1::Probe, container: &v1::Container, address: IpAddr) -> Check {
    let host = |given: &Option<String>| match given.as_deref() {
        Some(host) if !host.is_empty() => host.to_owned(),
        _ => match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        },
    };
    let no_port = Check::Unsupported("the probe names a port that the container does not have");
    if let Some(exec) = &probe.exec {
        return Check::Exec(exec.command.clone().unwrap_or_default());
    }
    if let Some(http) = &probe.http_get {
        let Some(port) = port_of(&http.port, container) else {
            return no_port;
        };
        // As for kubelet, the certificate would not be checked: that the port answers is what is left to see.
        if http.scheme.as_deref() == Some("HTTPS") {
            let host = host(&http.host);
            return Check::Network(ProbeTarget::Tcp { host, port });
        }
        let path = http.path.as_deref().unwrap_or("/");
        let headers = http.http_headers.iter().flatten();
        return Check::Network(ProbeTarget::Http {
            host: host(&http.host),
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match port_of(&tcp.port, container) {
            Some(port) => Check::Network(ProbeTarget::Tcp {
                host: host(&tcp.host),
                port,
            }),
            None => no_port,
        };
    }
    if let Some(grpc) = &probe.grpc {
        // The health service is not asked yet: that the port answers is what is left to see.
        return match u16::try_from(grpc.port) {
            Ok(port) if port > 0 => Check::Network(ProbeTarget::Tcp {
                host: host(&None),
                port,
            }),
            Ok(_) | Err(_) => no_port,
        };
    }
    Check::Unsupported("the probe says neither exec nor httpGet nor tcpSocket nor grpc")
}

fn port_of(port: &IntOrString, container: &v1::Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// Runs checks, over the network or in the container.
pub(super) struct Checker {
    pub prober: Arc<dyn Prober>,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub container: ContainerId,
}

impl Checker {
    async fn check(&self, plan: &ProbePlan) -> Result<(), String> {
        let limit = plan.timeout;
        let checked = match &plan.check {
            Check::Network(target) => timeout(limit, self.prober.probe(target)).await,
            Check::Exec(command) => {
                let output = timeout(limit, self.runtime.exec(&self.container, command, limit)).await;
                output.map(|output| match output {
                    Ok((0, _)) => Ok(()),
                    Ok((code, output)) => Err(format!("command exited with {code}: {}", output.trim())),
                    Err(error) => Err(error.to_string()),
                })
            }
            Check::Unsupported(why) => return Err((*why).to_owned()),
        };
        let outcome = checked.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())));
        outcome.map_err(|message| message.chars().take(MESSAGE_MAX).collect())
    }
}

/// Runs one probe until it is dropped; a startup probe ends with its first success. `running_for` is how long the
/// container has run already. `started` turns true once the startup probe succeeded; others wait for it.
pub(super) async fn watch_probe(
    mut plan: ProbePlan,
    checker: Checker,
    running_for: Duration,
    mut started: watch::Receiver<bool>,
    report: impl Fn(ProbeKind, Option<bool>, Result<(), String>),
) {
    let first = Instant::now() + plan.initial_delay.saturating_sub(running_for);
    let mut ticks = interval_at(first, plan.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if plan.kind != ProbeKind::Startup && started.wait_for(|started| *started).await.is_err() {
            return;
        }
        let outcome = checker.check(&plan).await;
        let verdict = plan.streak.add(outcome.is_ok());
        report(plan.kind, verdict, outcome);
        if plan.kind == ProbeKind::Startup && verdict == Some(true) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn verdicts_need_their_threshold_in_a_row() {
        let mut streak = Streak::new(1, 3, 0);
        let verdicts: Vec<_> = [true, false, false, true, false, false, false, false, true]
            .map(|success| streak.add(success))
            .into();
        let expected = [
            Some(true),
            None,
            None,
            Some(true),
            None,
            None,
            Some(false),
            Some(false),
            Some(true),
        ];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn headers_cannot_smuggle_a_second_request() {
        let headers = vec![("X".to_owned(), "a\r\nEvil: b".to_owned())];
        assert!(request("10.0.0.1", 80, "/", &headers).is_err());
        assert!(request("10.0.0.1", 80, "/a b", &[]).is_err());
        assert!(request("10.0.0.1", 80, "/ok", &[]).is_ok());
    }

    async fn serve_once(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        port
    }

    #[tokio::test]
    async fn http_probes_go_by_the_status() {
        for (answer, healthy) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false),
            ("HTTP/1.1 500 \r\n\r\n", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("", false),
        ] {
            let port = serve_once(answer).await;
            let target = ProbeTarget::Http {
                host: "127.0.0.1".to_owned(),
                port,
                path: "/healthz".to_owned(),
                headers: vec![],
            };
            let outcome = NetworkProber.probe(&target).await;
            assert_eq!(outcome.is_ok(), healthy, "{answer:?}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn tcp_probes_need_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = ProbeTarget::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        };
        assert_eq!(NetworkProber.probe(&target).await, Ok(()));
        drop(listener);
        assert!(NetworkProber.probe(&target).await.is_err());
    }
}
