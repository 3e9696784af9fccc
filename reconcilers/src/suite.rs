//! What every implementation of [`ContainerRuntime`] and [`PodNetwork`] must do: one suite for the fakes and the real ones.
//!
//! Functions panic where a rule is broken; what they made is removed also then. Everything they make carries the prefix or
//! uid that the caller gives, so that several runs can go side by side.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use ipnet::IpNet;

use crate::ports::{
    Container, ContainerId, ContainerRuntime, ContainerSpec, ContainerState, LogOptions, PodNetwork,
    PortError, PortRedirect, Protocol, PullPolicy, SessionOutput, SessionStreams, Usage, labels,
};
use tokio::io::AsyncWriteExt;

/// How long a state may take to show; Podman's slowest step takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the suite of a container runtime works with.
pub struct RuntimeFixture<'a> {
    pub runtime: &'a dyn ContainerRuntime,
    /// A container that runs until it is stopped, from an image that is present. Its `name` is the prefix of all names, its
    /// labels have the cluster's and [`labels::POD_UID`].
    pub template: ContainerSpec,
    /// A name of an image that is nowhere.
    pub missing_image: &'a str,
    /// Something that the container writes at its start.
    pub log_line: &'a str,
    /// A command, its exit code and its output.
    pub exec: (Vec<String>, i32, &'a str),
    /// A command that writes what it reads, and ends with code 0 when that does.
    pub echo: Vec<String>,
}

/// Checks all rules of [`ContainerRuntime`].
pub async fn container_runtime(fixture: &RuntimeFixture<'_>) {
    let checked = AssertUnwindSafe(async {
        images(fixture).await;
        life_of_a_container(fixture).await;
    });
    let outcome = checked.catch_unwind().await;
    for container in fixture.runtime.list().await.unwrap_or_default() {
        if container.name.starts_with(&fixture.template.name) {
            let _ = fixture.runtime.remove(&container.id).await;
        }
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

async fn images(fixture: &RuntimeFixture<'_>) {
    let RuntimeFixture {
        runtime,
        template,
        missing_image,
        ..
    } = fixture;
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
        let present = runtime
            .ensure_image(&template.image, policy, &|| panic!("nothing is to be pulled"))
            .await;
        assert!(present.is_ok(), "{policy:?}: {present:?}");
    }
    for (image, policy, expected) in [
        (*missing_image, PullPolicy::Never, "ErrImageNeverPull"),
        ("Not A Name", PullPolicy::IfNotPresent, "InvalidImageName"),
    ] {
        match runtime.ensure_image(image, policy, &|| ()).await {
            Err(PortError::Refused { reason, .. }) => assert_eq!(reason, expected, "{image}"),
            other => panic!("{image} with {policy:?} must be refused with {expected}: {other:?}"),
        }
    }
}

async fn life_of_a_container(fixture: &RuntimeFixture<'_>) {
    let RuntimeFixture {
        runtime,
        template,
        exec,
        ..
    } = fixture;
    let uid = template.labels.get(labels::POD_UID).cloned().unwrap_or_default();
    let mut events = runtime.events();
    let spec = ContainerSpec {
        name: format!("{}-life", template.name),
        ..template.clone()
    };

    let id = runtime.create(&spec).await.expect("create");
    let created = find(*runtime, &id).await.expect("a created container is listed");
    assert_eq!(
        (&created.name, &created.state),
        (&spec.name, &ContainerState::Created)
    );
    for (label, value) in &spec.labels {
        assert_eq!(created.labels.get(label), Some(value), "label {label}");
    }
    let again = runtime.create(&spec).await;
    assert!(
        matches!(again, Err(PortError::Refused { .. })),
        "a name is unique: {again:?}"
    );
    let used = usage(*runtime, &id).await;
    assert_eq!(used, None, "what does not run uses nothing");

    runtime.start(&id).await.expect("start");
    wait_for_event(&mut events, &uid).await;
    wait_for_state(*runtime, &id, |state| {
        matches!(state, ContainerState::Running { .. })
    })
    .await;

    let (command, code, output) = exec;
    let (found_code, found_output) = runtime.exec(&id, command, DEADLINE).await.expect("exec");
    assert_eq!((found_code, found_output.trim()), (*code, output.trim()));

    wait_for("a line in the log", || logged(fixture, &id)).await;
    sessions(fixture, &id).await;
    let used = usage(*runtime, &id).await.expect("what runs is measured");
    assert!(used.unix_nanos > 0 && used.memory_bytes > 0, "{used:?}");
    let later = usage(*runtime, &id).await.expect("what runs is measured");
    assert!(later.unix_nanos >= used.unix_nanos && later.cpu_nanos >= used.cpu_nanos);
    let machine = runtime.machine_usage().await.expect("the machine is measured");
    assert!(machine.memory_bytes >= later.memory_bytes && machine.cpu_nanos >= later.cpu_nanos);

    runtime.stop(&id, Duration::from_secs(1)).await.expect("stop");
    wait_for_event(&mut events, &uid).await;
    wait_for_state(*runtime, &id, |state| {
        matches!(state, ContainerState::Exited { .. })
    })
    .await;
    runtime
        .stop(&id, Duration::from_secs(1))
        .await
        .expect("stopping twice is fine");
    let used = usage(*runtime, &id).await;
    assert_eq!(used, None, "what does not run any more uses nothing");

    let late = runtime
        .open_session(&id, command, SessionStreams::default())
        .await;
    assert!(
        matches!(
            late.map(drop),
            Err(PortError::Refused {
                reason: "ContainerNotRunning",
                ..
            })
        ),
        "no session without a running container"
    );

    runtime.remove(&id).await.expect("remove");
    assert_eq!(
        find(*runtime, &id).await,
        None,
        "a removed container is not listed"
    );
    runtime.remove(&id).await.expect("removing twice is fine");
    let missing = runtime.start(&id).await;
    assert!(missing.is_err(), "a removed container does not start");

    let running = runtime.create(&spec).await.expect("the name is free again");
    runtime.start(&running).await.expect("start");
    runtime
        .remove(&running)
        .await
        .expect("removing a running container kills it");
    assert_eq!(find(*runtime, &running).await, None);
}

/// What passes through a session: far more than all buffers on the way hold.
const SESSION_BYTES: usize = 5 << 20;

async fn sessions(fixture: &RuntimeFixture<'_>, id: &ContainerId) {
    let RuntimeFixture {
        runtime, exec, echo, ..
    } = fixture;
    let output_only = SessionStreams {
        stdout: true,
        stderr: true,
        ..SessionStreams::default()
    };
    let both = SessionStreams {
        stdin: true,
        ..output_only
    };
    let (command, code, output) = exec;
    let session = runtime
        .open_session(id, command, output_only)
        .await
        .expect("open_session");
    assert!(session.stdin.is_none(), "stdin was not asked for");
    let (found_output, found_code) = read(session.output).await;
    assert_eq!(String::from_utf8_lossy(&found_output).trim(), output.trim());
    assert_eq!(found_code, Some(*code));

    // Every byte comes back, in order, and the end of the input is the end.
    let mut session = runtime.open_session(id, echo, both).await.expect("open_session");
    let mut stdin = session.stdin.take().expect("stdin was asked for");
    let sent: Vec<u8> = (0..SESSION_BYTES).map(|at| (at / 7) as u8).collect();
    let write = async {
        stdin.write_all(&sent).await.expect("write");
        stdin.shutdown().await.expect("the end of the input");
    };
    let ((), (found, found_code)) = tokio::join!(write, read(session.output));
    assert_eq!((found.len(), found_code), (sent.len(), Some(0)));
    assert!(found == sent, "what came back is not what was sent");

    // A session that nobody reads makes the writer wait, and ends when it is dropped.
    let mut session = runtime.open_session(id, echo, both).await.expect("open_session");
    let mut stdin = session.stdin.take().expect("stdin was asked for");
    let piled = tokio::time::timeout(Duration::from_secs(2), async {
        for _ in 0..4 {
            stdin.write_all(&sent).await.expect("write");
        }
    });
    assert!(piled.await.is_err(), "20 MB were taken in without a reader");
    drop((session, stdin));

    let mut attached = runtime.attach(id, output_only).await.expect("attach");
    assert!(attached.stdin.is_none(), "stdin was not asked for");
    let waiting = tokio::time::timeout(Duration::from_millis(200), async {
        while let Some(part) = attached.output.next().await {
            assert!(!matches!(part.expect("output"), SessionOutput::Exited(_)));
        }
    });
    assert!(
        waiting.await.is_err() || attached.output.next().await.is_none(),
        "an attached session has no exit code"
    );
}

/// Reads a session to its end.
async fn read(
    output: futures::stream::BoxStream<'static, Result<SessionOutput, PortError>>,
) -> (Vec<u8>, Option<i32>) {
    let reading = output.fold((Vec::new(), None), async |(mut bytes, code), part| {
        assert_eq!(code, None, "the exit is the last that comes");
        match part.expect("output") {
            SessionOutput::Stdout(piece) | SessionOutput::Stderr(piece) => {
                bytes.extend_from_slice(&piece);
                (bytes, None)
            }
            SessionOutput::Exited(code) => (bytes, Some(code)),
        }
    });
    tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("the session does not end")
}

async fn logged(fixture: &RuntimeFixture<'_>, id: &ContainerId) -> Result<(), String> {
    let logs = fixture
        .runtime
        .logs(id, &LogOptions::default())
        .await
        .map_err(|error| error.to_string())?;
    let chunks: Vec<_> = logs.filter_map(async |chunk| chunk.ok()).collect().await;
    let text = String::from_utf8_lossy(&chunks.concat()).into_owned();
    if text.contains(fixture.log_line) {
        Ok(())
    } else {
        Err(text)
    }
}

async fn usage(runtime: &dyn ContainerRuntime, id: &ContainerId) -> Option<Usage> {
    let measured = runtime.usage().await.expect("usage").into_iter();
    let mut measured = measured.filter(|(container, _)| container.id == *id);
    measured.next().map(|(_, usage)| usage)
}

async fn find(runtime: &dyn ContainerRuntime, id: &ContainerId) -> Option<Container> {
    let list = runtime.list().await.expect("list");
    list.into_iter().find(|container| container.id == *id)
}

async fn wait_for_state(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
    wanted: impl Fn(&ContainerState) -> bool,
) {
    let wanted = &wanted;
    wait_for("the state of the container", || async move {
        match find(runtime, id).await {
            Some(container) if wanted(&container.state) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn wait_for_event(events: &mut (impl futures::Stream<Item = String> + Unpin), uid: &str) {
    let told = async {
        while let Some(event) = events.next().await {
            // Empty: look at everything.
            if event == uid || event.is_empty() {
                return;
            }
        }
        panic!("the stream of events ended");
    };
    let in_time = tokio::time::timeout(DEADLINE, told).await;
    assert!(in_time.is_ok(), "no event about pod {uid}");
}

/// Tries until it is so, or panics with what it last saw.
async fn wait_for<F>(what: &str, mut attempt: impl FnMut() -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Ok(()) => return,
            Err(seen) if tokio::time::Instant::now() >= end => panic!("{what}: last seen {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Checks all rules of [`PodNetwork`]. `uids` are three that no pod has.
pub async fn pod_network(network: &dyn PodNetwork, cluster: IpNet, node: IpNet, uids: [&str; 3]) {
    let outcome = AssertUnwindSafe(attachments(network, cluster, node, uids))
        .catch_unwind()
        .await;
    for uid in uids {
        let _ = network.detach(uid).await;
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

async fn attachments(
    network: &dyn PodNetwork,
    cluster: IpNet,
    node: IpNet,
    [first, second, absent]: [&str; 3],
) {
    network.set_range(cluster, node).await.expect("set_range");
    network
        .set_range(cluster, node)
        .await
        .expect("the same range again");
    let gateway = network
        .gateway()
        .expect("there is a gateway once there is a range");
    assert!(node.contains(&gateway));

    let attachment = network.attach(first, &[]).await.expect("attach");
    assert!(node.contains(&attachment.address), "{attachment:?} is in {node}");
    assert_ne!(attachment.address, gateway);
    let again = network.attach(first, &[]).await.expect("attach again");
    assert_eq!(again, attachment, "a pod keeps its address");
    let other = network.attach(second, &[]).await.expect("attach another");
    assert_ne!(other.address, attachment.address);

    let attached = network.attached().await.expect("attached");
    assert_eq!(attached.get(first), Some(&attachment.address));
    assert_eq!(attached.get(second), Some(&other.address));
    assert_eq!(attached.get(absent), None);

    let redirect = |from, to| PortRedirect {
        protocol: Protocol::Tcp,
        from,
        to,
    };
    for redirects in [
        &[redirect(80, 8080), redirect(81, 8081)][..],
        &[redirect(80, 9090)],
        &[],
    ] {
        network
            .set_redirects(first, redirects)
            .await
            .expect("set_redirects");
        network
            .set_redirects(first, redirects)
            .await
            .expect("the same redirects again");
    }

    network.detach(first).await.expect("detach");
    network.detach(first).await.expect("detaching twice is fine");
    network
        .detach(absent)
        .await
        .expect("detaching what was never attached is fine");
    let attached = network.attached().await.expect("attached");
    assert_eq!(attached.get(first), None);
    assert_eq!(
        attached.get(second),
        Some(&other.address),
        "others are left alone"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fakes::FakeClock;
    use crate::fakes::network::FakeNetwork;
    use crate::fakes::runtime::FakeRuntime;

    #[tokio::test]
    async fn fake_runtime_keeps_the_rules() {
        let runtime = FakeRuntime::new(Arc::new(FakeClock::default()));
        runtime
            .ensure_image("example/web:1", PullPolicy::Always, &|| ())
            .await
            .unwrap();
        runtime.answer_exec(&["echo", "hello"], 3, "hello\n");
        let labels = [(labels::CLUSTER, "c"), (labels::POD_UID, "uid-1")];
        let template = ContainerSpec {
            name: "suite".to_owned(),
            image: "example/web:1".to_owned(),
            labels: labels
                .map(|(label, value)| (label.to_owned(), value.to_owned()))
                .into(),
            ..ContainerSpec::default()
        };
        container_runtime(&RuntimeFixture {
            runtime: &runtime,
            template,
            missing_image: "example/missing:1",
            log_line: "this is suite-life",
            exec: (vec!["echo".to_owned(), "hello".to_owned()], 3, "hello"),
            echo: vec!["cat".to_owned()],
        })
        .await;
        assert_eq!(runtime.all(), []);
    }

    #[tokio::test]
    async fn fake_network_keeps_the_rules() {
        let network = FakeNetwork::default();
        let (cluster, node) = ("10.244.0.0/16".parse().unwrap(), "10.244.3.0/24".parse().unwrap());
        pod_network(&network, cluster, node, ["one", "two", "three"]).await;
        assert!(network.attached().await.unwrap().is_empty());
    }
}
