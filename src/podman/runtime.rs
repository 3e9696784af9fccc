//! The port `ContainerRuntime` on Podman.
//!
//! Everything is looked up before it is changed, so that an id of a container without our label is not found.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use podman_api::models::ListContainer;
use podman_api::opts::{ContainerDeleteOpts, ContainerListFilter, ContainerListOpts, ExecCreateOpts};
use reconcilers::ports::{
    Container, ContainerId, ContainerRuntime, ContainerSpec, ContainerState, Duplex, LogOptions, PortError,
    PullPolicy, Session, SessionStreams, Usage, labels,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::debug;

use super::create;
use super::engine::EngineError;
use super::image::{ImageName, Pulls};
use super::memory_deaths::MemoryDeaths;
use super::process::Process;
use super::session::ExecGuard;
use super::socket::{CallError, Socket, within};
use super::stream::{self, Frames};
use super::usage;

/// For calls that only look something up: milliseconds on a quiet machine.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// For calls that make or remove something: a tenth of a second each, but they queue behind one another's locks.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to die of SIGKILL. It dies at once, unless it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A container that dies while it is being removed makes Podman refuse ("container state improper"); it works the next time.
const REMOVE_ATTEMPTS_MAX: usize = 3;

/// Podman learns of a death from conmon's file, some milliseconds later.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
pub(super) const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// The port's promise for the output of exec.
const EXEC_OUTPUT_BYTES_MAX: usize = 10 << 10;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// The exit code of a container whose first process SIGKILL ended, as the kernel does when memory is out.
pub(super) const EXIT_KILLED: i32 = 128 + SIGKILL;

/// The Podman of this machine, seen by one cluster.
pub struct Podman {
    pub(super) api: podman_api::Podman,
    pub(super) socket: Socket,
    pub(super) pulls: Pulls,
    memory_deaths: MemoryDeaths,
    cluster: String,
}

/// What we read of a container's inspection. Not through `podman-api`, whose model demands the types of 4.3 (Podman 5 made
/// the stop signal a string).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: InspectedState,
    config: InspectedConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    #[serde(default)]
    status: String,
    #[serde(default)]
    pid: u32,
    #[serde(rename = "OOMKilled", default)]
    oom_killed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    labels: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    stop_signal: Value,
}

impl InspectedState {
    fn is_running(&self) -> bool {
        matches!(self.status.as_str(), "running" | "paused" | "stopping")
    }
}

impl Podman {
    /// Takes the address of a socket (`unix:///run/podman/podman.sock`) and the cluster whose containers are ours. Does not
    /// connect: see [`Podman::ping`].
    ///
    /// # Errors
    /// [`EngineError::Address`].
    pub fn new(address: &str, cluster_id: &str) -> Result<Self, EngineError> {
        let path = address
            .strip_prefix("unix://")
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| EngineError::Address(address.to_owned()))?;
        Ok(Self {
            api: podman_api::Podman::unix(path),
            socket: Socket::new(path),
            pulls: Pulls::default(),
            memory_deaths: MemoryDeaths::default(),
            cluster: cluster_id.to_owned(),
        })
    }

    /// Looks a container up; `None` if it is not there or not ours.
    async fn inspect(&self, id: &ContainerId) -> Result<Option<Inspected>, CallError> {
        let target = format!("/containers/{}/json", id.0);
        match self
            .socket
            .json::<Inspected>(Method::GET, &target, None, LIMIT)
            .await
        {
            Ok(found) => {
                let cluster = found
                    .config
                    .labels
                    .as_ref()
                    .and_then(|all| all.get(labels::CLUSTER));
                Ok((cluster == Some(&self.cluster)).then_some(found))
            }
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, id: &ContainerId, operation: &'static str) -> Result<Inspected, PortError> {
        self.inspect(id)
            .await
            .map_err(|error| error.into_port(operation, "InspectFailed"))?
            .ok_or_else(|| PortError::NotFound(format!("container {}", id.0)))
    }

    /// Sends a signal to a container, past Podman where possible: Podman starts a process for it (30 ms).
    async fn signal(
        &self,
        id: &ContainerId,
        process: Option<&Process>,
        number: i32,
    ) -> Result<(), CallError> {
        if process.is_some_and(|process| process.signal(number)) {
            return Ok(());
        }
        let container = self.api.containers().get(id.0.as_str());
        match within(LIMIT, container.send_signal(number.to_string())).await {
            // It died in the meantime.
            Err(error) if error.is(StatusCode::CONFLICT) || error.is(StatusCode::NOT_FOUND) => Ok(()),
            other => other,
        }
    }

    /// Waits until a container's process is dead, by the kernel's word or else by Podman's.
    async fn exited_within(
        &self,
        id: &ContainerId,
        process: Option<&Process>,
        limit: Duration,
    ) -> Result<bool, CallError> {
        match process {
            Some(process) => Ok(process.exited_within(limit).await),
            None => self.settled_within(id, limit).await,
        }
    }

    /// Waits until Podman too knows that a container does not run.
    async fn settled_within(&self, id: &ContainerId, limit: Duration) -> Result<bool, CallError> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut pause = SETTLE_PAUSE;
        loop {
            match self.inspect(id).await? {
                Some(found) if found.state.is_running() => {}
                _ => return Ok(true),
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    async fn kill(&self, id: &ContainerId, process: Option<&Process>) -> Result<(), CallError> {
        self.signal(id, process, SIGKILL).await?;
        if self.exited_within(id, process, KILL_LIMIT).await? {
            return Ok(());
        }
        Err(CallError::Unavailable(format!(
            "container {} is alive {} s after SIGKILL",
            id.0,
            KILL_LIMIT.as_secs()
        )))
    }

    async fn stop_within(&self, id: &ContainerId, grace: Duration) -> Result<(), CallError> {
        let Some(found) = self.inspect(id).await?.filter(|found| found.state.is_running()) else {
            return Ok(());
        };
        let process = Process::open(found.state.pid, &id.0);
        let process = process.as_ref();
        let is_dead = !grace.is_zero() && {
            self.signal(id, process, stop_signal(&found.config.stop_signal))
                .await?;
            self.exited_within(id, process, grace).await?
        };
        if !is_dead {
            self.kill(id, process).await?;
        }
        // The caller's next list must not show it running.
        if self.settled_within(id, SETTLE_LIMIT).await? {
            return Ok(());
        }
        Err(CallError::Unavailable(format!(
            "Podman does not notice that container {} is dead",
            id.0
        )))
    }

    async fn remove_once(&self, id: &ContainerId) -> Result<(), CallError> {
        // Podman's own force waits for its stop timeout first.
        self.stop_within(id, Duration::ZERO).await?;
        if self.inspect(id).await?.is_none() {
            return Ok(());
        }
        let options = ContainerDeleteOpts::builder()
            .force(true)
            .volumes(true)
            .timeout(0)
            .build();
        match within(
            CHANGE_LIMIT,
            self.api.containers().get(id.0.as_str()).delete(&options),
        )
        .await
        {
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(()),
            other => other,
        }
    }

    /// Podman keeps two conmon processes (3.4 MB) after each exec, for 300 s unless `exit_command_delay` of containers.conf
    /// says otherwise: not the way for probes every second.
    async fn run_exec(&self, id: &ContainerId, command: &[String]) -> Result<(i32, String), CallError> {
        let options = ExecCreateOpts::builder()
            .command(command)
            .attach_stdout(true)
            .attach_stderr(true)
            .build();
        let exec = within(
            LIMIT,
            self.api.containers().get(id.0.as_str()).create_exec(&options),
        )
        .await?;
        // The process runs on when the connection closes, so a caller that gives up, or is dropped, ends it here.
        let guard = ExecGuard {
            socket: self.socket.clone(),
            exec: exec.id().to_string(),
            container: id.0.clone(),
            signal: SIGKILL,
            is_done: false,
        };
        let target = format!("/exec/{}/start", guard.exec);
        let start = json!({"Detach": false, "Tty": false});
        let mut body = self.socket.stream(Method::POST, &target, Some(&start)).await?;
        let mut frames = Frames::default();
        let mut output: Vec<u8> = Vec::new();
        while let Some(piece) = body.next().await {
            let payload = frames.payload(piece?)?;
            let room = EXEC_OUTPUT_BYTES_MAX - output.len();
            // What is beyond is read and dropped: a full pipe would stop the process.
            output.extend_from_slice(&payload[..payload.len().min(room)]);
        }
        let code = guard.exit_code().await?;
        Ok((code, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Looks up the first process of a container that runs.
    async fn running(&self, id: &ContainerId, operation: &'static str) -> Result<u32, PortError> {
        let found = self.find(id, operation).await?;
        if found.state.status == "running" {
            return Ok(found.state.pid);
        }
        Err(PortError::Refused {
            reason: "ContainerNotRunning",
            message: format!("the container does not run: it is {}", found.state.status),
        })
    }
}

/// The number of the image's stop signal: a number in Podman 4, a name in 5 (where the API of 4 still gives the number).
fn stop_signal(value: &Value) -> i32 {
    let number = match value {
        Value::Number(number) => number.as_i64().and_then(|number| i32::try_from(number).ok()),
        Value::String(name) => signal_number(name),
        _ => None,
    };
    number
        .filter(|number| (1..=64).contains(number))
        .unwrap_or(SIGTERM)
}

fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim_start_matches("SIG");
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        "WINCH" => 28,
        // systemd's.
        "RTMIN+3" => 37,
        other => other.parse().ok()?,
    })
}

/// Reads an entry of Podman's list; `None` if it lacks what every container has.
fn container(entry: ListContainer) -> Option<Container> {
    let started_unix_seconds = entry.started_at.unwrap_or_default();
    let state = match entry.state.as_deref().unwrap_or_default() {
        "created" | "configured" | "initialized" => ContainerState::Created,
        "running" => ContainerState::Running {
            pid: entry
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or_default(),
            started_unix_seconds,
        },
        // The machine went down under it: Podman resets such containers to an exit with code 0 that nobody saw.
        "exited" if entry.exited == Some(false) => ContainerState::Exited {
            code: EXIT_KILLED,
            oom_killed: false,
            started_unix_seconds,
            finished_unix_seconds: started_unix_seconds.max(entry.exited_at.unwrap_or_default()),
        },
        "exited" | "stopped" => ContainerState::Exited {
            code: entry.exit_code.unwrap_or_default(),
            oom_killed: false,
            started_unix_seconds,
            finished_unix_seconds: entry.exited_at.unwrap_or_default(),
        },
        other => ContainerState::Other(other.to_owned()),
    };
    Some(Container {
        id: ContainerId(entry.id?),
        name: entry.names.unwrap_or_default().into_iter().next()?,
        image: entry.image.unwrap_or_default(),
        image_id: entry.image_id.unwrap_or_default(),
        labels: entry.labels.unwrap_or_default().into_iter().collect(),
        state,
    })
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id")]
    id: String,
}

#[async_trait]
impl ContainerRuntime for Podman {
    async fn list(&self) -> Result<Vec<Container>, PortError> {
        let options = ContainerListOpts::builder()
            .all(true)
            .filter([ContainerListFilter::LabelKeyVal(
                labels::CLUSTER.to_owned(),
                self.cluster.clone(),
            )])
            .build();
        let unavailable = |error: CallError| PortError::Unavailable {
            operation: "list containers",
            message: error.to_string(),
        };
        let entries = within(LIMIT, self.api.containers().list(&options))
            .await
            .map_err(unavailable)?;
        let mut containers: Vec<Container> = entries.into_iter().filter_map(container).collect();
        self.memory_deaths
            .tell(&mut containers, async |id| {
                let found = self.inspect(&id).await.inspect_err(|error| {
                    debug!(container = id.0, %error, "cannot see what killed a container");
                });
                found.ok().flatten().map(|found| found.state.oom_killed)
            })
            .await;
        Ok(containers)
    }

    async fn ensure_image(
        &self,
        image: &str,
        policy: PullPolicy,
        pulling: &(dyn Fn() + Send + Sync),
    ) -> Result<(), PortError> {
        self.make_present(image, policy, pulling).await
    }

    async fn image_user(&self, image: &str) -> Result<String, PortError> {
        self.user_of(image).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, PortError> {
        let name = ImageName::parse(&spec.image)?;
        let failed = |error: CallError| error.into_port("create the container", "CreateContainerError");
        let (image, _) = self.resolve(&name).await.map_err(failed)?;
        let body = create::body(spec, &image, &self.cluster);
        self.socket
            .json::<Created>(Method::POST, "/containers/create", Some(&body), CHANGE_LIMIT)
            .await
            .map(|created| ContainerId(created.id))
            .map_err(failed)
    }

    async fn start(&self, id: &ContainerId) -> Result<(), PortError> {
        self.find(id, "start the container").await?;
        match within(CHANGE_LIMIT, self.api.containers().get(id.0.as_str()).start(None)).await {
            Err(error) if error.is(StatusCode::NOT_MODIFIED) => Ok(()),
            other => other.map_err(|error| error.into_port("start the container", "RunContainerError")),
        }
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), PortError> {
        self.stop_within(id, grace)
            .await
            .map_err(|error| error.into_port("stop the container", "KillContainerError"))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), PortError> {
        let mut result = Ok(());
        for _ in 0..REMOVE_ATTEMPTS_MAX {
            result = self.remove_once(id).await;
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|error| error.into_port("remove the container", "RemoveContainerError"))
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<(i32, String), PortError> {
        self.find(id, "exec").await?;
        within(timeout, self.run_exec(id, command))
            .await
            .map_err(|error| error.into_port("exec", "ExecFailed"))
    }

    async fn open_session(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: SessionStreams,
    ) -> Result<Session, PortError> {
        self.running(id, "exec").await?;
        self.exec_session(id, command, streams)
            .await
            .map_err(|error| error.into_port("exec", "ExecFailed"))
    }

    async fn attach(&self, id: &ContainerId, streams: SessionStreams) -> Result<Session, PortError> {
        self.running(id, "attach").await?;
        self.attach_session(id, streams)
            .await
            .map_err(|error| error.into_port("attach", "AttachFailed"))
    }

    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Box<dyn Duplex>, PortError> {
        let pid = self.running(id, "connect to a port of the container").await?;
        self.connect_inside(id, pid, port).await
    }

    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, PortError>>, PortError> {
        self.find(id, "read the log").await?;
        let mut target = format!(
            "/containers/{}/logs?stdout=true&stderr=true&follow={}&timestamps={}",
            id.0, options.follow, options.timestamps
        );
        if let Some(lines) = options.tail {
            target.push_str(&format!("&tail={lines}"));
        }
        if let Some(seconds) = options.since_unix_seconds {
            target.push_str(&format!("&since={seconds}"));
        }
        let socket = self.socket.clone();
        let failed = |error: CallError| error.into_port("read the log", "LogFailed");
        // Podman sends the head with the first line, which may be hours away: the whole call is inside the stream.
        let body = async move { socket.stream(Method::GET, &target, None).await };
        let mut frames = Frames::default();
        Ok(body
            .into_stream()
            .try_flatten()
            .map(move |piece| piece.and_then(|piece| frames.payload(piece)).map_err(failed))
            .try_filter(|payload| std::future::ready(!payload.is_empty()))
            .boxed())
    }

    fn events(&self) -> BoxStream<'static, String> {
        stream::events(self.socket.clone(), self.cluster.clone())
    }

    async fn usage(&self) -> Result<Vec<(Container, Usage)>, PortError> {
        self.measure().await
    }

    async fn machine_usage(&self) -> Result<Usage, PortError> {
        usage::of_machine()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_of_podman_4_and_5_are_read() {
        for (value, expected) in [
            (json!(15), 15),
            (json!(37), 37),
            (json!("SIGQUIT"), 3),
            (json!("QUIT"), 3),
            (json!("37"), 37),
            (json!("SIGRTMIN+3"), 37),
            (json!(0), 15),
            (json!(null), 15),
            (json!("nonsense"), 15),
            (json!(-1), 15),
        ] {
            assert_eq!(stop_signal(&value), expected, "{value}");
        }
    }

    #[test]
    fn a_container_that_the_machine_took_down_was_killed() {
        // As Podman 4.3 lists them: one that ended by itself, and one that ran when the power went.
        let entry = |exited: bool, exited_at: i64| {
            json!({
                "Id": "05b1", "Names": ["job"], "Image": "i", "ImageID": "1c2e", "Labels": {}, "State": "exited",
                "ExitCode": 0, "Exited": exited, "ExitedAt": exited_at, "StartedAt": 1_763_740_800, "Pid": 0,
            })
        };
        for (entry, code, finished) in [
            (entry(true, 1_763_740_860), 0, 1_763_740_860),
            (entry(false, -62_135_596_800), EXIT_KILLED, 1_763_740_800),
        ] {
            let expected = ContainerState::Exited {
                code,
                oom_killed: false,
                started_unix_seconds: 1_763_740_800,
                finished_unix_seconds: finished,
            };
            let read = container(serde_json::from_value(entry).unwrap()).unwrap();
            assert_eq!(read.state, expected);
        }
    }

    #[test]
    fn an_address_is_a_unix_socket() {
        assert!(Podman::new("unix:///run/podman/podman.sock", "c").is_ok());
        for bad in ["", "/run/podman/podman.sock", "tcp://127.0.0.1:1", "unix://run/x"] {
            assert!(
                matches!(Podman::new(bad, "c"), Err(EngineError::Address(_))),
                "{bad}"
            );
        }
    }
}
