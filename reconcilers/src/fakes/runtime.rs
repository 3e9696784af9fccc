//! A container engine in memory. Containers run until they are told to exit, stopped or killed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::io::ReaderStream;

use super::lock;
use crate::ports::{
    Clock, Container, ContainerId, ContainerRuntime, ContainerSpec, ContainerState, Duplex, LogOptions,
    PortError, PullPolicy, Session, SessionOutput, SessionStreams, TerminalSize, Usage, labels,
};

/// As much as a pipe of the kernel holds.
const SESSION_BUFFER_BYTES: usize = 64 << 10;

/// A [`ContainerRuntime`] whose containers are entries of a map.
pub struct FakeRuntime {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    containers: BTreeMap<String, (Container, ContainerSpec)>,
    images: HashSet<String>,
    image_users: HashMap<String, String>,
    /// Refusals of `ensure_image` by image: reason and message.
    broken_images: HashMap<String, (&'static str, String)>,
    exec: HashMap<Vec<String>, (i32, String)>,
    listeners: Vec<mpsc::UnboundedSender<String>>,
    calls: Calls,
}

/// How often the expensive calls were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calls {
    pub list: usize,
    pub create: usize,
    pub stop: usize,
}

impl FakeRuntime {
    pub fn new(clock: Arc<dyn Clock>) -> FakeRuntime {
        FakeRuntime {
            clock,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Makes every pull of an image fail, or (None) succeed again.
    pub fn break_image(&self, image: &str, refusal: Option<(&'static str, &str)>) {
        let mut state = self.state();
        match refusal {
            Some((reason, message)) => {
                state
                    .broken_images
                    .insert(image.to_owned(), (reason, message.to_owned()));
            }
            None => {
                state.broken_images.remove(image);
            }
        }
    }

    /// Sets as whom an image runs; otherwise as root.
    pub fn set_image_user(&self, image: &str, user: &str) {
        let mut state = self.state();
        state.image_users.insert(image.to_owned(), user.to_owned());
    }

    /// Sets what a command gives in every container; otherwise it gives 0 and nothing.
    pub fn answer_exec(&self, command: &[&str], code: i32, output: &str) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.state().exec.insert(command, (code, output.to_owned()));
    }

    /// Lets a running container exit by itself.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        let finished_unix_seconds = self.clock.unix_seconds();
        let mut state = self.state();
        if let Some((container, _)) = state.containers.get_mut(&id.0)
            && let ContainerState::Running {
                started_unix_seconds, ..
            } = container.state
        {
            container.state = ContainerState::Exited {
                code,
                oom_killed: false,
                started_unix_seconds,
                finished_unix_seconds,
            };
            let container = container.clone();
            state.tell(&container);
        }
    }

    /// Takes a container away behind everyone's back.
    pub fn lose(&self, id: &ContainerId) {
        let mut state = self.state();
        if let Some((container, _)) = state.containers.remove(&id.0) {
            state.tell(&container);
        }
    }

    /// Returns the containers that run, by name of the container in its pod.
    pub fn running(&self) -> Vec<Container> {
        let state = self.state();
        let containers = state.containers.values().map(|(container, _)| container);
        let running =
            containers.filter(|container| matches!(container.state, ContainerState::Running { .. }));
        running.cloned().collect()
    }

    /// Returns all containers.
    pub fn all(&self) -> Vec<Container> {
        self.state()
            .containers
            .values()
            .map(|(container, _)| container.clone())
            .collect()
    }

    /// Returns the spec that a container was made from.
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        self.state().containers.get(&id.0).map(|(_, spec)| spec.clone())
    }

    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    /// As though something had kept one core busy for as long as there is a clock.
    fn used(&self) -> Usage {
        Usage {
            unix_nanos: self.clock.unix_seconds().unsigned_abs() * 1_000_000_000,
            cpu_nanos: self.clock.now().0.as_nanos() as u64,
            memory_bytes: 1 << 20,
        }
    }

    fn unknown(id: &ContainerId) -> PortError {
        PortError::NotFound(format!("container {}", id.0))
    }

    fn find_running(&self, id: &ContainerId) -> Result<Container, PortError> {
        let state = self.state();
        let (container, _) = state.containers.get(&id.0).ok_or_else(|| Self::unknown(id))?;
        if matches!(container.state, ContainerState::Running { .. }) {
            return Ok(container.clone());
        }
        Err(PortError::Refused {
            reason: "ContainerNotRunning",
            message: format!("container {} does not run", id.0),
        })
    }
}

/// A session that gives `text`, then what comes in until that ends, then the sizes it was told, then `code` if any.
pub fn session(text: String, streams: SessionStreams, code: Option<i32>) -> Session {
    let (near, far) = tokio::io::duplex(SESSION_BUFFER_BYTES);
    let (size, sizes) = watch::channel(TerminalSize::default());
    let stdin: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>> = match streams.stdin {
        true => Some(Box::new(near)),
        false => None,
    };
    let failed = |error: std::io::Error| PortError::Unavailable {
        operation: "fake session",
        message: error.to_string(),
    };
    let echoed = ReaderStream::new(far).map(move |piece| piece.map(SessionOutput::Stdout).map_err(failed));
    let told = stream::once(async move {
        let TerminalSize { columns, rows } = *sizes.borrow();
        Ok(SessionOutput::Stdout(Bytes::from(format!("{columns}x{rows}\n"))))
    });
    let told = stream::iter(streams.tty.then_some(told)).flatten();
    let output = stream::iter([Ok(SessionOutput::Stdout(text.into()))])
        .chain(echoed)
        .chain(told)
        .chain(stream::iter(code.map(|code| Ok(SessionOutput::Exited(code)))))
        .boxed();
    Session { stdin, output, size }
}

impl State {
    fn tell(&mut self, container: &Container) {
        let uid = container.labels.get(labels::POD_UID).cloned().unwrap_or_default();
        self.listeners
            .retain(|listener| listener.send(uid.clone()).is_ok());
    }
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn list(&self) -> Result<Vec<Container>, PortError> {
        self.state().calls.list += 1;
        Ok(self.all())
    }

    async fn ensure_image(
        &self,
        image: &str,
        policy: PullPolicy,
        pulling: &(dyn Fn() + Send + Sync),
    ) -> Result<(), PortError> {
        let mut state = self.state();
        if image.is_empty() || image.contains(char::is_whitespace) {
            return Err(PortError::Refused {
                reason: "InvalidImageName",
                message: format!("\"{image}\" is not the name of an image"),
            });
        }
        let present = state.images.contains(image);
        if present && policy != PullPolicy::Always {
            return Ok(());
        }
        if policy == PullPolicy::Never {
            return Err(PortError::Refused {
                reason: "ErrImageNeverPull",
                message: format!("Container image \"{image}\" is not present with pull policy of Never"),
            });
        }
        pulling();
        if let Some((reason, message)) = state.broken_images.get(image) {
            let (reason, message) = (*reason, message.clone());
            return Err(PortError::Refused { reason, message });
        }
        state.images.insert(image.to_owned());
        Ok(())
    }

    async fn image_user(&self, image: &str) -> Result<String, PortError> {
        let state = self.state();
        if !state.images.contains(image) {
            return Err(PortError::NotFound(format!("image {image}")));
        }
        Ok(state.image_users.get(image).cloned().unwrap_or_default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, PortError> {
        let mut state = self.state();
        state.calls.create += 1;
        let refused = |message: String| PortError::Refused {
            reason: "CreateContainerError",
            message,
        };
        if state
            .containers
            .values()
            .any(|(container, _)| container.name == spec.name)
        {
            return Err(refused(format!("the name {} is in use", spec.name)));
        }
        if !state.images.contains(&spec.image) {
            return Err(refused(format!("{}: image not known", spec.image)));
        }
        state.next += 1;
        let id = format!("{:064x}", state.next);
        let container = Container {
            id: ContainerId(id.clone()),
            name: spec.name.clone(),
            image: spec.image.clone(),
            image_id: format!("sha256:{}", spec.image),
            labels: spec.labels.clone(),
            state: ContainerState::Created,
        };
        state.containers.insert(id.clone(), (container, spec.clone()));
        Ok(ContainerId(id))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), PortError> {
        let started_unix_seconds = self.clock.unix_seconds();
        let mut state = self.state();
        let (container, _) = state.containers.get_mut(&id.0).ok_or_else(|| Self::unknown(id))?;
        container.state = ContainerState::Running {
            pid: 1,
            started_unix_seconds,
        };
        let container = container.clone();
        state.tell(&container);
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, _grace: Duration) -> Result<(), PortError> {
        {
            let mut state = self.state();
            state.calls.stop += 1;
            if !state.containers.contains_key(&id.0) {
                return Err(Self::unknown(id));
            }
        }
        self.exit(id, 143);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), PortError> {
        self.lose(id);
        Ok(())
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        _timeout: Duration,
    ) -> Result<(i32, String), PortError> {
        self.find_running(id)?;
        Ok(self.state().exec.get(command).cloned().unwrap_or_default())
    }

    async fn open_session(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: SessionStreams,
    ) -> Result<Session, PortError> {
        self.find_running(id)?;
        let (code, text) = self.state().exec.get(command).cloned().unwrap_or_default();
        Ok(session(text, streams, Some(code)))
    }

    async fn attach(&self, id: &ContainerId, streams: SessionStreams) -> Result<Session, PortError> {
        let container = self.find_running(id)?;
        Ok(session(format!("this is {}\n", container.name), streams, None))
    }

    /// Connects to the port on this machine.
    async fn connect(&self, id: &ContainerId, port: u16) -> Result<Box<dyn Duplex>, PortError> {
        self.find_running(id)?;
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(PortError::Refused {
                reason: "ConnectFailed",
                message: format!("port {port}: {error}"),
            }),
        }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        _options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, PortError>>, PortError> {
        let state = self.state();
        let (container, _) = state.containers.get(&id.0).ok_or_else(|| Self::unknown(id))?;
        let line = format!("this is {}\n", container.name);
        Ok(stream::iter([Ok(Bytes::from(line))]).boxed())
    }

    fn events(&self) -> BoxStream<'static, String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().listeners.push(sender);
        let next = |mut receiver: mpsc::UnboundedReceiver<String>| async move {
            receiver.recv().await.map(|uid| (uid, receiver))
        };
        stream::unfold(receiver, next).boxed()
    }

    async fn usage(&self) -> Result<Vec<(Container, Usage)>, PortError> {
        let running = self.running().into_iter();
        Ok(running.map(|container| (container, self.used())).collect())
    }

    async fn machine_usage(&self) -> Result<Usage, PortError> {
        Ok(self.used())
    }
}
