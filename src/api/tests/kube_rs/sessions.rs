//! What kube-rs does with a pod that runs: logs, `exec`, `attach`, ports. Its containers are played by a fake.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::sessions::shouting;
use super::super::streams::{add_container, placed};
use super::{Swarm, in_time, refused};

/// A node with the pod `web`, whose container `a` runs.
async fn running() -> (Swarm, Api<Pod>) {
    let swarm = Swarm::start().await;
    let pods: Api<Pod> = swarm.all();
    let pod = super::typed(placed("n1"));
    let made = pods
        .create(&kube::api::PostParams::default(), &pod)
        .await
        .unwrap();
    let uid = made.metadata.uid.unwrap();
    add_container(&swarm.node, &uid, "a", 0, "one\ntwo\n");
    (swarm, pods)
}

#[tokio::test]
async fn logs_are_read_and_followed() {
    let (_swarm, pods) = running().await;
    let a = LogParams {
        container: Some("a".to_owned()),
        ..LogParams::default()
    };
    assert_eq!(pods.logs("web", &a).await.unwrap(), "one\ntwo\n");
    let last = LogParams {
        tail_lines: Some(1),
        follow: true,
        ..a
    };
    let mut read = String::new();
    let mut log = std::pin::pin!(pods.log_stream("web", &last).await.unwrap());
    in_time(
        "the log",
        futures::AsyncReadExt::read_to_string(&mut log, &mut read),
    )
    .await
    .unwrap();
    assert_eq!(read, "two\n");
    let status = refused(pods.logs("web", &LogParams::default()).await);
    assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
}

#[tokio::test]
async fn a_command_has_its_input_output_and_end() {
    let (_swarm, pods) = running().await;
    let params = AttachParams::default().container("a").stdin(true).stderr(false);
    let mut process = pods.exec("web", ["cat", "0"], &params).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let status = process.take_status().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    let mut seen = vec![0; "[\"cat\", \"0\"]\nhello".len()];
    in_time("the output", stdout.read_exact(&mut seen)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), "[\"cat\", \"0\"]\nhello");
    // An end of the input ends this command (`v5.channel.k8s.io`).
    stdin.shutdown().await.unwrap();
    let status = in_time("its status", status).await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"), "{status:?}");
    in_time("its end", process.join()).await.unwrap();

    let params = AttachParams::default().container("a");
    let mut process = pods.exec("web", ["exit", "3"], &params).await.unwrap();
    let status = in_time("its status", process.take_status().unwrap())
        .await
        .unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    let cause = &status.details.unwrap().causes.unwrap()[0];
    let seen = (cause.reason.as_deref(), cause.message.as_deref());
    assert_eq!(seen, (Some("ExitCode"), Some("3")));
}

#[tokio::test]
async fn a_container_is_attached_to() {
    let (_swarm, pods) = running().await;
    let params = AttachParams::default().container("a");
    let mut process = pods.attach("web", &params).await.unwrap();
    let (mut stdout, mut seen) = (process.stdout().unwrap(), String::new());
    in_time("the output", stdout.read_to_string(&mut seen))
        .await
        .unwrap();
    assert_eq!(seen, "this is a\n");
}

#[tokio::test]
async fn ports_are_forwarded() {
    let (_swarm, pods) = running().await;
    let port = shouting().await;
    let mut forwarded = pods.portforward("web", &[port]).await.unwrap();
    let mut stream = forwarded.take_stream(port).unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut seen = [0; 5];
    in_time("the answer", stream.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"HELLO");
}
