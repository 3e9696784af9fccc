//! Sessions on a real Podman: terminals, the container's own process, ports inside.

use std::time::Duration;

use futures::StreamExt;
use reconcilers::ports::{
    ContainerRuntime, ContainerSpec, PortError, SessionOutput, SessionStreams, TerminalSize,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tests::{IDLE, podman, sh, spec, started};
use crate::sandbox::{DEADLINE, run, wait_for};

const ALL: SessionStreams = SessionStreams {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

/// Reads until something has come, and returns all that has.
async fn read_until(
    output: &mut (impl futures::Stream<Item = Result<SessionOutput, PortError>> + Unpin),
    expected: &str,
) -> String {
    let mut text = String::new();
    let reading = tokio::time::timeout(DEADLINE, async {
        while !text.contains(expected) {
            match output.next().await {
                Some(Ok(SessionOutput::Stdout(piece) | SessionOutput::Stderr(piece))) => {
                    text.push_str(&String::from_utf8_lossy(&piece));
                }
                other => panic!("`{expected}` did not come: {text}{other:?}"),
            }
        }
    });
    let in_time = reading.await.is_ok();
    assert!(in_time, "`{expected}` did not come: {text}");
    text
}

#[test]
fn a_terminal_has_the_size_it_is_told_and_hangs_up_when_its_session_ends() {
    let name = "podman::session_tests::a_terminal_has_the_size_it_is_told_and_hangs_up_when_its_session_ends";
    run(name, |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let id = started(&podman, &spec("web", IDLE)).await;
            let streams = SessionStreams { tty: true, ..ALL };
            let command = sh("while true; do /bin/busybox stty size; sleep 0.1; done");
            let mut session = podman.open_session(&id, &command, streams).await.unwrap();
            session.size.send_replace(TerminalSize {
                columns: 132,
                rows: 43,
            });
            read_until(&mut session.output, "43 132\r\n").await;
            let processes = || host.shell("ps ax -o args");
            assert!(processes().contains("stty size; sleep 0.1"));
            drop(session);
            wait_for("the end of the process", async || {
                let left = processes();
                if left.contains("stty size; sleep 0.1") {
                    Err(left)
                } else {
                    Ok(())
                }
            })
            .await;
            podman.remove(&id).await.unwrap();
        });
    });
}

#[test]
fn the_containers_own_process_is_read_and_written_to() {
    let name = "podman::session_tests::the_containers_own_process_is_read_and_written_to";
    run(name, |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let asks = ContainerSpec {
                stdin: true,
                ..spec(
                    "asks",
                    "read line; echo got $line; echo bad >&2; read line; exit 4",
                )
            };
            let id = started(&podman, &asks).await;
            let mut first = podman.attach(&id, ALL).await.unwrap();
            let without = SessionStreams { stdin: false, ..ALL };
            let mut second = podman.attach(&id, without).await.unwrap();
            let stdin = first.stdin.as_mut().unwrap();
            stdin.write_all(b"a line\n").await.unwrap();
            stdin.flush().await.unwrap();
            for output in [&mut first.output, &mut second.output] {
                let text = read_until(output, "bad\n").await;
                assert!(text.contains("got a line\n"), "{text}");
            }
            first.stdin.take().unwrap().shutdown().await.unwrap();
            for output in [&mut first.output, &mut second.output] {
                let rest: Vec<_> = output.collect().await;
                assert!(rest.is_empty(), "{rest:?}");
            }
            podman.remove(&id).await.unwrap();
        });
    });
}

#[test]
fn a_port_on_the_loopback_address_of_a_container_is_reached() {
    let name = "podman::session_tests::a_port_on_the_loopback_address_of_a_container_is_reached";
    run(name, |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let podman = podman(&host);
            let script = "exec /bin/busybox httpd -f -p 127.0.0.1:7777 -h /www";
            let id = started(&podman, &spec("listens", script)).await;
            let mut stream = wait_for("the port", async || {
                podman.connect(&id, 7777).await.map_err(|error| error.to_string())
            })
            .await;
            stream.write_all(b"GET /none HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer))
                .await
                .expect("an answer")
                .unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
            let refused = podman.connect(&id, 7778).await.map(drop).unwrap_err();
            assert!(
                refused.to_string().contains("port 7778: Connection refused"),
                "{refused}"
            );
            podman.remove(&id).await.unwrap();
        });
    });
}
