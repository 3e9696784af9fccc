//! The runtime on a real Podman.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use reconcilers::ports::{
    Container, ContainerId, ContainerResources, ContainerRuntime, ContainerSpec, ContainerState, DnsConfig,
    LogOptions, Mount, PortError, PullPolicy, labels,
};
use reconcilers::suite::{self, RuntimeFixture};

use super::{EngineError, Podman};
use crate::sandbox::{DEADLINE, Host, IMAGE, run, wait_for};

pub(super) fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

pub(super) fn spec(name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.into(),
        image: IMAGE.into(),
        command: sh(script),
        labels: BTreeMap::from([(labels::POD_UID.to_owned(), format!("uid-{name}"))]),
        stop_timeout_seconds: 5,
        ..Default::default()
    }
}

/// Sleeps for ever, and ends at SIGTERM.
pub(super) const IDLE: &str = "trap 'exit 3' TERM; while true; do sleep 0.05; done";

pub(super) fn podman(host: &Host) -> Podman {
    Podman::new(&host.socket(), "cluster-1").unwrap()
}

pub(super) async fn started(podman: &Podman, spec: &ContainerSpec) -> ContainerId {
    let id = podman.create(spec).await.unwrap();
    podman.start(&id).await.unwrap();
    id
}

async fn only(podman: &Podman) -> Container {
    let mut list = podman.list().await.unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    list.remove(0)
}

async fn exited(podman: &Podman, id: &ContainerId) -> (i32, bool) {
    wait_for("its end", async || {
        let list = podman.list().await.unwrap();
        match list
            .iter()
            .find(|container| container.id == *id)
            .map(|container| &container.state)
        {
            Some(ContainerState::Exited { code, oom_killed, .. }) => Ok((*code, *oom_killed)),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[test]
fn keeps_the_rules_of_the_port() {
    run("podman::tests::keeps_the_rules_of_the_port", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let mut template = spec("suite", &format!("echo hello; {IDLE}"));
            template.labels.insert(labels::CLUSTER.into(), "cluster-1".into());
            suite::container_runtime(&RuntimeFixture {
                runtime: &podman(&host),
                template,
                missing_image: "localhost/nowhere:1",
                log_line: "hello",
                exec: (sh("echo good day; exit 3"), 3, "good day"),
                echo: sh("cat"),
            })
            .await;
        });
    });
}

#[test]
fn a_container_lives_and_is_removed() {
    run("podman::tests::a_container_lives_and_is_removed", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            podman.ping().await.unwrap();
            let engine = podman.engine().await.unwrap();
            assert!(engine.cpus > 0 && engine.memory_bytes > 0, "{engine:?}");

            assert_eq!(podman.list().await.unwrap(), []);
            let spec = ContainerSpec {
                env: vec![("GREETING".into(), "good day".into())],
                ..spec("web", IDLE)
            };
            let id = podman.create(&spec).await.unwrap();
            let container = only(&podman).await;
            assert_eq!((&container.id, container.name.as_str()), (&id, "web"));
            assert_eq!(container.state, ContainerState::Created);
            assert_eq!(container.labels[labels::POD_UID], "uid-web");
            assert_eq!(container.image, IMAGE);

            podman.start(&id).await.unwrap();
            podman.start(&id).await.unwrap();
            let ContainerState::Running {
                pid,
                started_unix_seconds,
            } = only(&podman).await.state
            else {
                panic!("{:?}", only(&podman).await);
            };
            assert!(pid > 0 && started_unix_seconds > 1_600_000_000);
            let (code, output) = podman
                .exec(&id, &sh("echo $GREETING; exit 7"), DEADLINE)
                .await
                .unwrap();
            assert_eq!((code, output.as_str()), (7, "good day\n"));

            podman.stop(&id, DEADLINE).await.unwrap();
            let ContainerState::Exited {
                code,
                oom_killed,
                finished_unix_seconds,
                ..
            } = only(&podman).await.state
            else {
                panic!("a stopped container is listed as {:?}", only(&podman).await.state);
            };
            assert_eq!((code, oom_killed), (3, false));
            assert!(finished_unix_seconds >= started_unix_seconds);
            podman.stop(&id, DEADLINE).await.unwrap();

            podman.remove(&id).await.unwrap();
            assert_eq!(podman.list().await.unwrap(), []);
            podman.remove(&id).await.unwrap();
            podman.stop(&id, DEADLINE).await.unwrap();
            assert!(matches!(podman.start(&id).await, Err(PortError::NotFound(_))));
        });
    });
}

#[test]
fn stopping_kills_when_the_grace_is_over() {
    run(
        "podman::tests::stopping_kills_when_the_grace_is_over",
        |sandbox| {
            let host = sandbox.host_with_engine(1);
            host.enter(async || {
                let podman = podman(&host);
                let deaf = spec("deaf", "trap '' TERM; while true; do sleep 0.05; done");
                for (grace, least) in [(0, 0), (1, 1)] {
                    let id = started(&podman, &deaf).await;
                    let start = Instant::now();
                    podman.stop(&id, Duration::from_secs(grace)).await.unwrap();
                    let elapsed = start.elapsed();
                    assert!(elapsed >= Duration::from_secs(least), "{elapsed:?}");
                    assert!(
                        elapsed < Duration::from_secs(grace) + DEADLINE / 10,
                        "{elapsed:?}"
                    );
                    assert_eq!(exited(&podman, &id).await, (137, false));
                    podman.remove(&id).await.unwrap();
                }
                // Removing does not wait for a grace.
                let id = started(&podman, &deaf).await;
                let start = Instant::now();
                podman.remove(&id).await.unwrap();
                assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
            });
        },
    );
}

#[test]
fn a_container_gets_what_its_specification_says() {
    run(
        "podman::tests::a_container_gets_what_its_specification_says",
        |sandbox| {
            let host = sandbox.host_with_engine(1);
            let volume = tempfile::tempdir().unwrap();
            std::fs::write(volume.path().join("file"), "content").unwrap();
            host.enter(async || {
            let podman = podman(&host);
            let mount = |target: &str, read_only| Mount {
                source: volume.path().to_owned(),
                target: target.into(),
                read_only,
            };
            let spec = ContainerSpec {
                command: vec!["/bin/busybox".into()],
                args: ["sh", "-c", "while true; do sleep 1; done"].map(str::to_owned).to_vec(),
                working_dir: "/tmp".into(),
                mounts: vec![mount("/read", true), mount("/write", false)],
                resources: ContainerResources {
                    cpu_limit_millis: Some(500),
                    cpu_request_millis: Some(250),
                    memory_limit_bytes: Some(64 << 20),
                },
                dns: DnsConfig {
                    servers: vec!["10.244.1.1".parse().unwrap()],
                    search: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
                    options: vec!["ndots:5".into()],
                },
                hosts: vec![("friend".into(), "192.0.2.77".parse().unwrap())],
                user: Some("1234:5678".into()),
                read_only_root: true,
                capabilities_add: vec!["NET_ADMIN".into()],
                capabilities_drop: vec!["CHOWN".into()],
                ..spec("full", "")
            };
            let id = started(&podman, &spec).await;
            let run = async |script: &str| podman.exec(&id, &sh(script), DEADLINE).await.unwrap();
            let output = async |script: &str| run(script).await.1;
            assert_eq!(output("cat /read/file; pwd; id -u; id -g").await, "content/tmp\n1234\n5678\n");
            assert_ne!(run("echo x > /read/new").await.0, 0, "a read-only mount");
            assert_ne!(run("echo x > /new").await.0, 0, "a read-only root");
            let resolver = output("cat /etc/resolv.conf").await;
            for line in [
                "nameserver 10.244.1.1",
                "search default.svc.cluster.local cluster.local",
                "options ndots:5",
            ] {
                assert!(resolver.contains(line), "{resolver}");
            }
            assert!(output("cat /etc/hosts").await.contains("192.0.2.77\tfriend"));
            let shown = host.podman(
                "inspect full --format '{{.HostConfig.Memory}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpuShares}} \
                 {{.HostConfig.LogConfig.Type}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.CapAdd}} {{.HostConfig.CapDrop}}'",
            );
            assert_eq!(shown, "67108864 50000 256 k8s-file no [CAP_NET_ADMIN] [CAP_CHOWN]");
            podman.remove(&id).await.unwrap();

            let image_default = ContainerSpec {
                command: vec![],
                ..spec.clone()
            };
            // `args` alone replaces the image's command; this image has no entrypoint.
            let id = podman.create(&ContainerSpec { args: vec![], ..image_default }).await.unwrap();
            assert_eq!(host.podman("inspect full --format '{{.Path}} {{.Args}}'"), "/bin/busybox [sleep 1000000]");
            podman.remove(&id).await.unwrap();
        });
            assert!(
                volume.path().join("file").exists(),
                "a host's directory survives the container"
            );
        },
    );
}

#[test]
fn a_container_out_of_memory_says_so() {
    run("podman::tests::a_container_out_of_memory_says_so", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let mut greedy = spec(
                "greedy",
                "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=256M count=1",
            );
            greedy.resources.memory_limit_bytes = Some(32 << 20);
            let id = started(&podman, &greedy).await;
            let (code, oom_killed) = exited(&podman, &id).await;
            // Podman 4.3 misses it on version 1 of control groups; then there is nothing to tell.
            let podmans = host.podman("inspect greedy --format '{{.State.OOMKilled}}'");
            assert_eq!((code, oom_killed.to_string()), (137, podmans));
        });
    });
}

/// Reads a log until it has this many bytes.
async fn read(
    stream: &mut futures::stream::BoxStream<'static, Result<Bytes, PortError>>,
    bytes: usize,
) -> String {
    let mut text = Vec::new();
    while text.len() < bytes {
        let piece = tokio::time::timeout(DEADLINE, stream.next()).await;
        text.extend_from_slice(&piece.expect("in time").expect("more").unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn logs_are_read_and_followed() {
    run("podman::tests::logs_are_read_and_followed", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let script = "echo one; echo two >&2; while ! [ -e /tmp/go ]; do sleep 0.02; done; echo three; exec sleep 1000";
            let id = started(&podman, &spec("talker", script)).await;
            let follow = LogOptions {
                follow: true,
                ..Default::default()
            };
            let mut stream = podman.logs(&id, &follow).await.unwrap();
            // Two pipes: their order is what conmon saw.
            let first = read(&mut stream, 8).await;
            assert!(["one\ntwo\n", "two\none\n"].contains(&first.as_str()), "{first:?}");
            podman.exec(&id, &sh("touch /tmp/go"), DEADLINE).await.unwrap();
            assert_eq!(read(&mut stream, 6).await, "three\n");
            drop(stream);

            let whole = async |options: &LogOptions| {
                let pieces: Vec<_> = podman.logs(&id, options).await.unwrap().collect().await;
                let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.unwrap()).collect();
                String::from_utf8(bytes).unwrap()
            };
            let options = LogOptions {
                tail: Some(1),
                ..Default::default()
            };
            assert_eq!(whole(&options).await, "three\n");
            let options = LogOptions {
                tail: Some(1),
                timestamps: true,
                ..Default::default()
            };
            let line = whole(&options).await;
            assert!(line.starts_with("20") && line.ends_with("Z three\n"), "{line}");
            let options = LogOptions {
                since_unix_seconds: Some(4_000_000_000),
                ..Default::default()
            };
            assert_eq!(whole(&options).await, "");

            // The end of the container is the end of its log.
            let stream = podman.logs(&id, &follow).await.unwrap();
            podman.stop(&id, Duration::ZERO).await.unwrap();
            let all = tokio::time::timeout(DEADLINE, stream.collect::<Vec<_>>()).await;
            assert!(all.is_ok(), "the log of a dead container ends");
        });
    });
}

#[test]
fn exec_is_bounded_in_time_and_output() {
    run("podman::tests::exec_is_bounded_in_time_and_output", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let id = started(&podman, &spec("web", IDLE)).await;
            let (code, output) = podman
                .exec(
                    &id,
                    &sh("/bin/busybox yes | /bin/busybox head -c 1000000; echo late >&2"),
                    DEADLINE,
                )
                .await
                .unwrap();
            assert_eq!((code, output.len()), (0, 10 << 10));

            let start = Instant::now();
            let slow = podman
                .exec(&id, &sh("exec sleep 777"), Duration::from_millis(500))
                .await;
            assert!(
                matches!(
                    slow,
                    Err(PortError::Unavailable {
                        operation: "exec",
                        ..
                    })
                ),
                "{slow:?}"
            );
            assert!(start.elapsed() < DEADLINE / 2);
            wait_for("the end of its process", async || {
                match podman
                    .exec(
                        &id,
                        &sh("/bin/busybox ps | /bin/busybox grep -c 'sleep [7]77'"),
                        DEADLINE,
                    )
                    .await
                {
                    Ok((_, count)) if count == "0\n" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;

            let absent = podman.exec(&id, &["/no/such".to_owned()], DEADLINE).await;
            assert!(
                matches!(&absent, Ok((126 | 127, _)) | Err(PortError::Refused { .. })),
                "{absent:?}"
            );
            podman.stop(&id, Duration::ZERO).await.unwrap();
            assert!(matches!(
                podman.exec(&id, &sh("true"), DEADLINE).await,
                Err(PortError::Refused { .. })
            ));
        });
    });
}

#[test]
fn events_tell_of_changes_and_gaps() {
    run("podman::tests::events_tell_of_changes_and_gaps", |sandbox| {
        let mut host = sandbox.host_with_engine(1);
        let (to_host, mut orders) = tokio::sync::mpsc::channel::<()>(1);
        let (done, mut answers) = tokio::sync::mpsc::channel::<()>(1);
        let podman = podman(&host);
        let address = host.socket();
        std::thread::scope(|scope| {
            // Restarts the engine when told to.
            scope.spawn(move || {
                while orders.blocking_recv().is_some() {
                    host.stop_engine();
                    host.start_engine();
                    done.blocking_send(()).unwrap();
                }
            });
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let mut events = podman.events();
                let mut next = async || {
                    tokio::time::timeout(DEADLINE, events.next())
                        .await
                        .unwrap()
                        .unwrap()
                };
                assert_eq!(next().await, "", "at first, look at everything");
                let id = started(&podman, &spec("web", IDLE)).await;
                assert_eq!(next().await, "uid-web");
                podman.stop(&id, Duration::ZERO).await.unwrap();
                assert_eq!(next().await, "uid-web");

                to_host.send(()).await.unwrap();
                while !next().await.is_empty() {}
                answers.recv().await.unwrap();
                podman.remove(&id).await.unwrap();
                while next().await != "uid-web" {}

                // Another cluster's containers are silent.
                let other = Podman::new(&address, "cluster-2").unwrap();
                let foreign = started(&other, &spec("foreign", IDLE)).await;
                let own = started(&podman, &spec("own", IDLE)).await;
                loop {
                    match next().await.as_str() {
                        "uid-own" => break,
                        "uid-foreign" => panic!("an event of another cluster"),
                        _ => {}
                    }
                }
                other.remove(&foreign).await.unwrap();
                podman.remove(&own).await.unwrap();
            });
        });
    });
}

#[test]
fn what_is_not_ours_is_not_touched() {
    run("podman::tests::what_is_not_ours_is_not_touched", |sandbox| {
        let host = sandbox.host_with_engine(1);
        let unlabelled = host.podman(&format!("run -d --network host --name user {IMAGE}"));
        host.enter(async || {
            let podman = podman(&host);
            let other = Podman::new(&host.socket(), "cluster-2").unwrap();
            let theirs = started(&other, &spec("theirs", IDLE)).await;
            assert_eq!(podman.list().await.unwrap(), []);
            for id in [ContainerId(unlabelled.clone()), ContainerId("user".into()), theirs.clone()] {
                podman.stop(&id, Duration::ZERO).await.unwrap();
                podman.remove(&id).await.unwrap();
                assert!(matches!(podman.start(&id).await, Err(PortError::NotFound(_))));
                assert!(matches!(podman.exec(&id, &sh("true"), DEADLINE).await, Err(PortError::NotFound(_))));
                assert!(matches!(
                    podman.logs(&id, &LogOptions::default()).await.map(drop),
                    Err(PortError::NotFound(_))
                ));
            }
            assert!(matches!(only(&other).await.state, ContainerState::Running { .. }));
            assert_eq!(host.podman("inspect user --format '{{.State.Status}}'"), "running");
            // A name that a user's container has is refused, in words.
            let taken = podman.create(&spec("user", IDLE)).await;
            assert!(
                matches!(&taken, Err(PortError::Refused { reason: "CreateContainerError", message }) if message.contains("user")),
                "{taken:?}"
            );
            other.remove(&theirs).await.unwrap();
        });
        host.podman("rm -f -t 0 user");
    });
}

#[test]
fn images_are_found_pulled_or_refused() {
    run("podman::tests::images_are_found_pulled_or_refused", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = Arc::new(podman(&host));
            let reason = async |image: &str, policy| match podman.ensure_image(image, policy, &|| ()).await {
                Ok(()) => "present",
                Err(PortError::Refused { reason, message }) => {
                    assert!(!message.is_empty());
                    reason
                }
                Err(other) => panic!("{image}: {other:?}"),
            };
            use PullPolicy::{Always, IfNotPresent, Never};
            for (image, policy, expected) in [
                (IMAGE, IfNotPresent, "present"),
                (IMAGE, Never, "present"),
                (IMAGE, Always, "present"),
                // A short name finds what was built here.
                ("busybox:test", Always, "present"),
                ("busybox:other", Never, "ErrImageNeverPull"),
                ("localhost/absent", IfNotPresent, "ErrImagePull"),
                // Nobody listens there.
                ("127.0.0.1:1/web", IfNotPresent, "ErrImagePull"),
                ("127.0.0.1:1/web", Never, "ErrImageNeverPull"),
                ("No Name", IfNotPresent, "InvalidImageName"),
            ] {
                assert_eq!(reason(image, policy).await, expected, "{image} {policy:?}");
            }
            host.shell(&format!(
                "printf 'FROM {IMAGE}\\nUSER 7:8\\n' | podman build -q -t localhost/user:1 -"
            ));
            for (image, user) in [(IMAGE, ""), ("busybox:test", ""), ("user:1", "7:8")] {
                assert_eq!(podman.image_user(image).await.unwrap(), user, "{image}");
            }
            assert!(podman.image_user("localhost/absent").await.is_err());
            let short = ContainerSpec {
                image: "busybox:test".into(),
                ..spec("short", IDLE)
            };
            let id = started(&podman, &short).await;
            podman.remove(&id).await.unwrap();
            let absent = ContainerSpec {
                image: "localhost/absent".into(),
                ..spec("absent", IDLE)
            };
            assert!(matches!(
                podman.create(&absent).await,
                Err(PortError::Refused { .. })
            ));
        });
    });
}

#[tokio::test]
async fn an_absent_socket_is_explained() {
    let podman = Podman::new("unix:///no/such/podman.sock", "c").unwrap();
    let error = podman.ping().await.unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }));
    let text = error.to_string();
    assert!(
        text.contains("unix:///no/such/podman.sock") && text.contains("enable --now podman.socket"),
        "{text}"
    );
    assert!(matches!(podman.list().await, Err(PortError::Unavailable { .. })));
}
