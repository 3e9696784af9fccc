//! `/exec`, `/attach` and `/portforward` of pods: what is asked for, of which container, on which node.
//!
//! All that can be wrong is said before the connection is handed over, as a `Status`; also to a client that asks for SPDY, and
//! kubectl asks for that when it was refused a websocket. The pod's node decides; others relay to it.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::FutureExt;
use http::Method;
use hyper::upgrade::OnUpgrade;
use reconcilers::ports::{Container, ContainerState, PortError, Session, SessionStreams, labels};
use schemas::{Object, ObjectKey, Subresource};

use super::log::{container_name, pick, waiting_reason};
use super::{Call, get_object, relay_failed};
use crate::api::status::{ApiError, ApiResult};
use crate::api::streams::{
    Asked, Client, Dialect, FORWARD_PROTOCOLS, PROCESS_PROTOCOLS, Ports, RELAYED_PROTOCOL, TUNNEL, Way,
    relay, run_channels, run_process, run_tunnel,
};

/// As many as have two channels each, with room to spare.
const PORTS_MAX: usize = 64;
/// The arguments of a command, together: what the kernel takes of one.
const COMMAND_BYTES_MAX: usize = 128 << 10;

/// What a client wants of a pod.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Exec(Vec<String>, SessionStreams),
    Attach(SessionStreams),
    /// The ports are for clients that use channels.
    Forward(Vec<u16>),
}

/// What is ready to run once the client's connection is there.
enum Ready {
    Process(Session, Dialect),
    Tunnel(Ports),
    Channels(Ports, Vec<u16>, Dialect),
}

/// Answers `GET` and `POST`.
pub(super) async fn open(
    call: &Call<'_>,
    subresource: Subresource,
    on_upgrade: Option<OnUpgrade>,
    body: Body,
) -> ApiResult {
    if !matches!(call.method, Method::GET | Method::POST) {
        return Err(ApiError::method_not_allowed());
    }
    let key = call.key()?;
    let pod = get_object(call.state, &key)?;
    let wanted = Wanted::of(call, subresource)?;
    let asked = Asked::of(&call.headers)?;
    let node = pod.str_at("/spec/nodeName");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            key.name
        )));
    }
    match call.state.node_named(node) {
        Some(id) if id == call.state.node => {
            local(call, (&key, &pod), wanted, &asked, (on_upgrade, body)).await
        }
        Some(id) if !call.headers.contains_key(&RELAYED_PROTOCOL) => {
            let client = match asked {
                Asked::Spdy => None,
                Asked::WebSocket { .. } => Some(Client::of(&call.headers, on_upgrade, body)?),
            };
            let way = Way {
                relay: &call.state.relay,
                node: &id,
                known: wanted.protocols(),
            };
            let sessions = &call.state.sessions;
            let place = sessions.enter()?;
            let relayed = relay(way, (sessions, place), &asked, client, call.relayed(None)?).await?;
            relayed.map_err(|error| relay_failed(node, &key.name, &error))
        }
        _ => Err(ApiError::unavailable(format!(
            "node {node} of pod \"{}\" is not known here",
            key.name
        ))),
    }
}

/// Runs the session with a container of this node.
async fn local(
    call: &Call<'_>,
    (key, pod): (&ObjectKey, &Object),
    wanted: Wanted,
    asked: &Asked,
    (on_upgrade, body): (Option<OnUpgrade>, Body),
) -> ApiResult<Response> {
    let containers = call.state.runtime.list().await.map_err(port_failed)?;
    let container = match &wanted {
        Wanted::Exec(..) | Wanted::Attach(_) => {
            let name = container_name(call.query.text("container"), pod)?;
            running(containers, pod, &name).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "container \"{name}\" in pod \"{}\" is not running: {}",
                    key.name,
                    waiting_reason(pod, &name)
                ))
            })?
        }
        // All containers of a pod share its network.
        Wanted::Forward(_) => any_running(containers, pod).ok_or_else(|| {
            ApiError::bad_request(format!(
                "unable to forward port because pod \"{}\" is not running. Current status={}",
                key.name,
                pod.str_at("/status/phase")
            ))
        })?,
    };
    let protocol = asked.choose(wanted.protocols())?;
    let client = Client::of(&call.headers, on_upgrade, body)?;
    let place = call.state.sessions.enter()?;
    let ready = begin(call, (key, pod), container, wanted, protocol).await?;
    let (response, opened) = client.accept(protocol);
    call.state.sessions.spawn(place, |stopping| async move {
        let Ok(io) = opened.await else { return };
        match ready {
            Ready::Process(session, dialect) => run_process(io, dialect, session, stopping).await,
            Ready::Tunnel(ports) => run_tunnel(io, ports, stopping).await,
            Ready::Channels(ports, asked, dialect) => run_channels(io, dialect, asked, ports, stopping).await,
        }
    });
    Ok(response)
}

/// Begins what is wanted, in a container that runs.
async fn begin(
    call: &Call<'_>,
    (key, pod): (&ObjectKey, &Object),
    container: Container,
    wanted: Wanted,
    protocol: &'static str,
) -> ApiResult<Ready> {
    let runtime = &call.state.runtime;
    let dialect = Dialect::of(protocol);
    Ok(match wanted {
        Wanted::Exec(command, streams) => {
            let session = runtime.open_session(&container.id, &command, streams).await;
            Ready::Process(session.map_err(port_failed)?, dialect)
        }
        Wanted::Attach(streams) => {
            let streams = of_container(streams, pod, &container);
            let session = runtime.attach(&container.id, streams).await;
            Ready::Process(session.map_err(port_failed)?, dialect)
        }
        Wanted::Forward(asked) => {
            let (runtime, id) = (runtime.clone(), container.id);
            let connect = move |port| {
                let (runtime, id) = (runtime.clone(), id.clone());
                async move { runtime.connect(&id, port).await }.boxed()
            };
            let ports = Ports {
                pod: format!("{}/{}", key.namespace, key.name),
                connect: Arc::new(connect),
            };
            match protocol {
                TUNNEL => Ready::Tunnel(ports),
                _ if asked.is_empty() => {
                    return Err(ApiError::bad_request(
                        "query parameter \"ports\" is required: for example ports=8080",
                    ));
                }
                _ => Ready::Channels(ports, asked, dialect),
            }
        }
    })
}

impl Wanted {
    /// Reads the query: `PodExecOptions`, `PodAttachOptions` or `PodPortForwardOptions`.
    fn of(call: &Call<'_>, subresource: Subresource) -> ApiResult<Self> {
        let query = &call.query;
        if subresource == Subresource::PortForward {
            return ports(query.all("ports")).map(Self::Forward);
        }
        let is_exec = subresource == Subresource::Exec;
        // Kubernetes' defaults: attach shows the output, exec what is asked for.
        let or_default = |name: &str| match query.has(name) {
            true => query.flag(name),
            false => !is_exec,
        };
        let tty = query.flag("tty");
        let streams = SessionStreams {
            stdin: query.flag("stdin"),
            stdout: or_default("stdout"),
            // As kubelet: a terminal has one output.
            stderr: or_default("stderr") && !tty,
            tty,
        };
        if !(streams.stdin || streams.stdout || streams.stderr) {
            return Err(ApiError::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        if !is_exec {
            return Ok(Self::Attach(streams));
        }
        let command: Vec<String> = query.all("command").map(str::to_owned).collect();
        if command.first().is_none_or(String::is_empty) {
            return Err(ApiError::bad_request(
                "you must specify at least one command for the container: query parameter \"command\", once for each argument",
            ));
        }
        let size: usize = command.iter().map(String::len).sum();
        if size > COMMAND_BYTES_MAX {
            return Err(ApiError::bad_request(format!(
                "the command has {size} bytes: at most {COMMAND_BYTES_MAX} are taken"
            )));
        }
        Ok(Self::Exec(command, streams))
    }

    fn protocols(&self) -> &'static [&'static str] {
        match self {
            Self::Exec(..) | Self::Attach(_) => PROCESS_PROTOCOLS,
            Self::Forward(_) => FORWARD_PROTOCOLS,
        }
    }
}

/// Reads port numbers, which come in one parameter or several, or several in one.
fn ports<'a>(values: impl Iterator<Item = &'a str>) -> ApiResult<Vec<u16>> {
    let ports: Vec<u16> = values
        .flat_map(|value| value.split(','))
        .map(|text| match text.trim().parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(ApiError::bad_request(format!(
                "query parameter \"ports\": unable to parse \"{text}\" as a port: it is 1 to 65535"
            ))),
        })
        .collect::<ApiResult<_>>()?;
    if ports.len() > PORTS_MAX {
        return Err(ApiError::bad_request(format!(
            "query parameter \"ports\": {} ports: at most {PORTS_MAX} in one session",
            ports.len()
        )));
    }
    Ok(ports)
}

fn is_running(container: &Container) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

fn running(containers: Vec<Container>, pod: &Object, name: &str) -> Option<Container> {
    pick(containers, pod.uid(), name, false).filter(is_running)
}

fn any_running(containers: Vec<Container>, pod: &Object) -> Option<Container> {
    let mut containers = containers.into_iter().filter(is_running);
    containers.find(|container| container.labels.get(labels::POD_UID).map(String::as_str) == Some(pod.uid()))
}

/// What an attached session can have: a terminal and stdin are the container's, or are not.
fn of_container(streams: SessionStreams, pod: &Object, container: &Container) -> SessionStreams {
    let name = container.labels.get(labels::CONTAINER_NAME);
    let spec = ["/spec/containers", "/spec/initContainers"]
        .iter()
        .filter_map(|pointer| pod.pointer(pointer)?.as_array())
        .flatten()
        .find(|spec| spec["name"].as_str() == name.map(String::as_str));
    let has = |field: &str| spec.is_some_and(|spec| spec[field].as_bool() == Some(true));
    SessionStreams {
        stdin: streams.stdin && has("stdin"),
        stderr: streams.stderr && !has("tty"),
        tty: has("tty"),
        ..streams
    }
}

fn port_failed(error: PortError) -> ApiError {
    match error {
        PortError::NotFound(what) => ApiError::bad_request(format!("{what} is not there any more")),
        PortError::Refused { message, .. } => ApiError::bad_request(message),
        PortError::Unavailable { .. } => ApiError::unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_one_by_one_or_together() {
        assert_eq!(ports(["80", "8080,443"].into_iter()).unwrap(), [80, 8080, 443]);
        for wrong in ["0", "65536", "http", ""] {
            assert!(ports([wrong].into_iter()).is_err(), "{wrong}");
        }
        assert!(ports(std::iter::repeat_n("80", PORTS_MAX + 1)).is_err());
    }
}
