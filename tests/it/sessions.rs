//! `kubectl exec`, `attach`, `cp` and `port-forward` from a node on which the pod does not run.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Ran, needs_hosts};
use crate::kubectl::with_each;

/// A pod on host 2 with a web server on its loopback address, and a container that repeats its input.
const BOX: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: box
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  containers:
    - name: box
      image: localhost/busybox:test
      command: [/bin/sh, -c]
      args: ["mkdir -p /tmp/www && echo hello from the box > /tmp/www/index.html && exec httpd -f -p 127.0.0.1:8000 -h /tmp/www"]
    - name: echo
      image: localhost/busybox:test
      stdin: true
      command: [/bin/sh, -c, "while read line; do echo got $line; done; sleep 100000"]
"#;

/// Runs a script on host 1 in which `$k` is kubectl, and the folder is one of the test's.
fn script(cluster: &Cluster, version: &str, namespace: &str, script: &str) -> Ran {
    let folder = cluster.scratch(namespace);
    std::fs::create_dir_all(&folder).unwrap();
    // A group of its own would be in the background of the terminal of `exec -t`, and stopped there.
    let script = format!(
        "cd {}; k='timeout --foreground 60 {version} -n {namespace}'; {script}",
        folder.display()
    );
    cluster.with_kubeconfig(1, "bash", &["-c", &script])
}

/// The minor version of a kubectl.
fn minor(cluster: &Cluster, program: &str) -> u32 {
    let shown = cluster.exec(1, &[program, "version", "--client", "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown.expect("version")).unwrap();
    let minor = shown["clientVersion"]["minor"].as_str().unwrap();
    minor.trim_end_matches('+').parse().unwrap()
}

#[test]
fn sessions_reach_a_pod_on_another_node() {
    needs_hosts!();
    with_each(|cluster, version, namespace| {
        let run = |text: &str| script(cluster, version, namespace, text);
        let file = cluster.write("box.yaml", BOX);
        run(&format!(
            "$k apply -f {file} && $k wait pod/box --for=condition=Ready --timeout=30s"
        ))
        .expect("the pod");
        let minor = minor(cluster, version);
        if minor < 31 {
            refuses_spdy(minor, run);
            return;
        }
        commands(run);
        copies(run);
        forwards(run);
    });
}

/// `exec` spoke SPDY before 1.30, `port-forward` before 1.31.
fn refuses_spdy(minor: u32, run: impl Fn(&str) -> Ran) {
    let reason = "SPDY is not supported; use kubectl 1.31 or later";
    if minor < 30 {
        run("$k exec box -c box -- true").refuses(1, &[reason]);
        run("$k exec none -- true").refuses(1, &["pods \"none\" not found"]);
    }
    run("$k port-forward pod/box 18080:8000").refuses(1, &[reason]);
}

fn commands(run: impl Fn(&str) -> Ran) {
    let ran = run("$k exec box -c box -- sh -c 'echo out; echo err >&2; exit 3'");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), "out\n"), "{ran:?}");
    assert!(ran.stderr.starts_with("err\n"), "{ran:?}");
    assert!(
        ran.stderr.contains("command terminated with exit code 3"),
        "{ran:?}"
    );
    assert_eq!(
        run("echo good day | $k exec -i box -c box -- cat").expect("exec -i"),
        "good day\n"
    );
    let ran = run("echo good day | $k exec -i box -- head -n 1");
    assert!(
        ran.ok
            && ran
                .stderr
                .contains("Defaulted container \"box\" out of: box, echo"),
        "{ran:?}"
    );
    run("head -c 5000000 /dev/urandom > five && $k exec -i box -c box -- cat < five | cmp - five")
        .expect("5 MB there and back");
    let terminal = "script -qec \"$k exec -it box -c box -- sh -c 'test -t 0 && test -t 1 && echo a terminal'\" /dev/null";
    let shown = run(&format!("sleep 5 | {terminal}")).expect("exec -t");
    assert!(shown.contains("a terminal\r\n"), "{shown:?}");
    let attached = run("(echo one; sleep 2) | timeout 4 $k attach -i box -c echo");
    assert!(attached.stdout.contains("got one\n"), "{attached:?}");
    for (command, words) in [
        ("exec none -- true", "pods \"none\" not found"),
        (
            "exec box -c other -- true",
            "container other is not valid for pod box",
        ),
        ("exec box -c box -- /bin/none", "/bin/none"),
    ] {
        let ran = run(&format!("$k {command}"));
        assert!(!ran.ok && ran.stderr.contains(words), "{command}: {ran:?}");
    }
}

fn copies(run: impl Fn(&str) -> Ran) {
    run("head -c 20000000 /dev/urandom > twenty && $k cp twenty box:/tmp/there -c box")
        .expect("cp to the pod");
    let sums = run("$k exec box -c box -- md5sum < /dev/null /tmp/there | cut -d' ' -f1; md5sum < twenty | cut -d' ' -f1")
        .expect("md5sum");
    let sums: Vec<&str> = sums.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
    run("$k cp box:/tmp/there back -c box && cmp twenty back").expect("cp from the pod");
}

fn forwards(run: impl Fn(&str) -> Ran) {
    // A port that nobody listens on, beside one that works.
    let began = "$k port-forward pod/box 18080:8000 > forward.out 2> forward.err & \
        forward=$!; trap 'kill $forward; wait $forward' EXIT; for try in $(seq 100); do grep -q Forwarding forward.out && break; sleep 0.1; done; ";
    let several =
        "for at in 1 2 3 4 5 6 7 8; do curl -s -m 10 127.0.0.1:18080/ & pids=\"$pids $!\"; done; wait $pids";
    let shown = run(&format!("{began} {several}")).expect("port-forward");
    assert_eq!(shown, "hello from the box\n".repeat(8));
    let ran = run(&format!(
        "{} curl -s -m 10 127.0.0.1:18080/ || echo nothing came; sleep 0.5; cat forward.err",
        began.replace("8000", "81")
    ));
    let shown = ran.expect("port-forward to a closed port");
    assert!(shown.contains("nothing came\n"), "{shown}");
    assert!(
        shown.contains("an error occurred forwarding 18080 -> 81"),
        "{shown}"
    );
    assert!(shown.contains("port 81: Connection refused"), "{shown}");
}

#[test]
fn a_session_with_a_node_that_is_away_says_so() {
    needs_hosts!();
    if let Some(version) = crate::kubectl::versions().pop() {
        let cluster = crate::kubectl::two_hosts();
        if minor(&cluster, &version) < 30 {
            eprintln!("skipped: {version} speaks SPDY");
            return;
        }
        let file = cluster.write("box.yaml", BOX);
        script(
            &cluster,
            &version,
            "default",
            &format!("$k apply -f {file} && $k wait pod/box --for=condition=Ready --timeout=30s"),
        )
        .expect("the pod");
        cluster.kill_agent(2);
        cluster.wait_for("a clear error", Duration::from_secs(10), |cluster| {
            let ran = script(cluster, &version, "default", "$k exec box -c box -- true");
            if !ran.ok && ran.stderr.contains("node node2 of pod \"box\"") {
                Ok(())
            } else {
                Err(ran)
            }
        });
    }
}
