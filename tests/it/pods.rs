//! What a pod's manifest says, and what its containers then are, on a real Podman.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, condition, needs_hosts, text};
use crate::stories::wait_containers;

const SHELL: &str = "localhost/busybox:test";

/// Runs a command in a container of a pod, through Podman.
fn inside(cluster: &Cluster, pod: &str, container: &str, command: &[&str]) -> String {
    let filters = [
        format!("label=podman-swarm.pod-name={pod}"),
        format!("label=podman-swarm.container-name={container}"),
    ];
    let listed = cluster.exec(
        1,
        &[
            "podman",
            "ps",
            "-q",
            "--filter",
            &filters[0],
            "--filter",
            &filters[1],
        ],
    );
    let ran = cluster.exec(1, &[&["podman", "exec", listed.stdout.trim()], command].concat());
    ran.stdout + &ran.stderr
}

#[track_caller]
fn wait_pod(cluster: &Cluster, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    cluster.wait_for(
        &format!("pod {name} to be {what}"),
        Duration::from_secs(40),
        |cluster| {
            let pod = cluster.get(1, &["pod", name]);
            if fits(&pod) {
                Ok(pod)
            } else {
                Err(pod["status"].to_string())
            }
        },
    )
}

#[test]
fn containers_are_what_the_manifest_says() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let shared = cluster.scratch("shared");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::write(shared.join("from-host"), "hello from the host\n").unwrap();
    cluster.apply(
        1,
        &format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: full, labels: {{app: full}}, annotations: {{note: here}}}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
    - {{name: scratch, emptyDir: {{}}}}
    - {{name: host, hostPath: {{path: {shared}}}}}
  containers:
    - name: one
      image: {SHELL}
      command: [/bin/sh, -c]
      args: ["echo $GREETING $0 $1 > /scratch/said; exec sleep 100000", first, "second word"]
      workingDir: /scratch
      env:
        - {{name: GREETING, value: "hello $(NAME)"}}
        - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: SPACE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}
        - {{name: ADDRESS, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: HOST, valueFrom: {{fieldRef: {{fieldPath: status.hostIP}}}}}}
        - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
        - {{name: APP, valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['app']"}}}}}}
      resources: {{limits: {{cpu: 500m, memory: 64Mi}}, requests: {{cpu: 100m}}}}
      volumeMounts:
        - {{name: scratch, mountPath: /scratch}}
        - {{name: host, mountPath: /host, readOnly: true}}
    - name: two
      image: {SHELL}
      command: [/bin/sleep, "100000"]
      volumeMounts: [{{name: scratch, mountPath: /other}}]
"#,
            shared = shared.display()
        ),
    );
    let pod = wait_pod(&cluster, "full", "Ready", |pod| condition(pod, "Ready") == "True");
    let address = text(&pod, "/status/podIP");
    assert!(address.starts_with("10.244."), "{address}");
    let statuses = pod
        .pointer("/status/containerStatuses")
        .and_then(Value::as_array)
        .unwrap();
    assert_eq!(statuses.len(), 2);

    // Command, arguments, variables, a volume that both containers have.
    assert_eq!(
        inside(&cluster, "full", "two", &["cat", "/other/said"]),
        "hello $(NAME) first second word\n"
    );
    let environment = inside(&cluster, "full", "one", &["env"]);
    for line in [
        "NAME=full",
        "SPACE=default",
        "HOST=10.231.0.1",
        "NODE=node1",
        "APP=full",
        &format!("ADDRESS={address}"),
    ] {
        assert!(
            environment.lines().any(|found| found == line),
            "{line} is in {environment}"
        );
    }
    assert_eq!(
        inside(&cluster, "full", "one", &["sh", "-c", "pwd"]),
        "/scratch\n"
    );
    assert_eq!(
        inside(&cluster, "full", "one", &["cat", "/host/from-host"]),
        "hello from the host\n"
    );
    assert!(inside(&cluster, "full", "one", &["touch", "/host/x"]).contains("Read-only"));
    // One network for both, with the pod's address and name, and the node's own DNS server.
    for container in ["one", "two"] {
        assert!(inside(&cluster, "full", container, &["ip", "addr"]).contains(&address));
        assert_eq!(inside(&cluster, "full", container, &["hostname"]), "full\n");
        let resolver = inside(&cluster, "full", container, &["cat", "/etc/resolv.conf"]);
        assert!(
            resolver
                .lines()
                .any(|line| line == "search default.svc.cluster.local svc.cluster.local cluster.local"),
            "{resolver}"
        );
        assert!(
            resolver.contains("nameserver 10.244.") && resolver.contains("ndots:5"),
            "{resolver}"
        );
    }
    // Limits reach Podman.
    let id = text(&statuses[0], "/containerID").replace("podman://", "");
    let limits = cluster
        .exec(
            1,
            &[
                "podman",
                "inspect",
                "-f",
                "{{.HostConfig.Memory}} {{.HostConfig.CpuQuota}}",
                &id,
            ],
        )
        .stdout;
    assert_eq!(limits.trim(), format!("{} 50000", 64 << 20));

    // A container that ends comes back, in the same pod, and its volume keeps what is in it.
    inside(&cluster, "full", "two", &["touch", "/other/kept"]);
    cluster.exec(1, &["podman", "kill", &id]).expect("podman kill");
    let again = wait_pod(&cluster, "full", "Ready again with one restart", |pod| {
        condition(pod, "Ready") == "True"
            && pod
                .pointer("/status/containerStatuses/0/restartCount")
                .and_then(Value::as_i64)
                == Some(1)
    });
    assert_eq!(
        text(&again, "/status/podIP"),
        address,
        "the address stays for the pod's life"
    );
    assert!(inside(&cluster, "full", "one", &["ls", "/scratch"]).contains("kept"));

    // Nothing is left of a deleted pod but what the host lent it.
    let started = std::time::Instant::now();
    cluster.psctl(1, &["delete", "pod", "full"]).expect("delete");
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "deleting took {:?}",
        started.elapsed()
    );
    wait_containers(&cluster, &[1], 0);
    let left = cluster
        .exec(
            1,
            &[
                "sh",
                "-c",
                "podman ps -aq; podman pod ps -q; podman volume ls -q; ls /run/netns",
            ],
        )
        .stdout;
    assert_eq!(left, "");
    assert!(shared.join("from-host").exists());
    let found = cluster
        .exec(1, &["find", cluster.data(1).to_str().unwrap(), "-name", "kept"])
        .stdout;
    assert_eq!(found, "", "the emptyDir went with its pod");
}

#[test]
fn pods_that_do_not_run_say_why() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let pod = |name: &str, image: &str, restart: &str, command: &str, more: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, \
             restartPolicy: {restart}, {more} containers: [{{name: c, image: \"{image}\", command: {command}}}]}}}}\n---\n"
        )
    };
    cluster.apply(
        1,
        &[
            pod("good", SHELL, "Never", "[/bin/true]", ""),
            pod("bad", SHELL, "Never", "[/bin/sh, -c, \"echo why; exit 3\"]", ""),
            pod("retried", SHELL, "OnFailure", "[/bin/false]", ""),
            pod("looping", SHELL, "Always", "[/bin/sh, -c, exit 1]", ""),
            pod("absent", "localhost/none:1", "Always", "[/x]", ""),
            pod("never-pulled", "localhost/none:1", "Always", "[/x]", "")
                .replace("image:", "imagePullPolicy: Never, image:"),
            pod("no-command", SHELL, "Always", "[/no/such/program]", ""),
            pod(
                "nowhere",
                SHELL,
                "Always",
                "[/bin/sleep, \"1\"]",
                "nodeSelector: {disk: gold},",
            ),
            pod("huge", SHELL, "Always", "[/bin/sleep, \"1\"]", "")
                .replace("command:", "resources: {requests: {memory: 9000Gi}}, command:"),
        ]
        .concat(),
    );
    let reason = |pod: &Value| text(pod, "/status/containerStatuses/0/state/waiting/reason");
    let phase = |pod: &Value| text(pod, "/status/phase");
    let restarts = |pod: &Value| {
        pod.pointer("/status/containerStatuses/0/restartCount")
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    wait_pod(&cluster, "good", "Succeeded", |pod| phase(pod) == "Succeeded");
    let bad = wait_pod(&cluster, "bad", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(
        bad.pointer("/status/containerStatuses/0/state/terminated/exitCode"),
        Some(&3.into())
    );
    wait_pod(&cluster, "absent", "ErrImagePull or ImagePullBackOff", |pod| {
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason(pod).as_str())
    });
    wait_pod(&cluster, "never-pulled", "ErrImageNeverPull", |pod| {
        reason(pod) == "ErrImageNeverPull"
    });
    for name in ["looping", "retried"] {
        wait_pod(&cluster, name, "CrashLoopBackOff", |pod| {
            reason(pod) == "CrashLoopBackOff" && restarts(pod) > 0
        });
    }
    wait_pod(&cluster, "no-command", "waiting with a reason", |pod| {
        [
            "RunContainerError",
            "CreateContainerError",
            "CrashLoopBackOff",
            "StartError",
        ]
        .contains(&reason(pod).as_str())
    });
    for (name, word) in [("nowhere", "selector"), ("huge", "memory")] {
        let pod = wait_pod(&cluster, name, "Pending, not scheduled", |pod| {
            phase(pod) == "Pending" && condition(pod, "PodScheduled") == "False"
        });
        let conditions = pod.pointer("/status/conditions").unwrap().to_string();
        assert!(
            conditions.contains("Unschedulable") && conditions.contains(word),
            "{conditions}"
        );
        let described = cluster.psctl(1, &["describe", "pod", name]).expect("describe");
        assert!(described.contains("FailedScheduling"), "{described}");
    }
    // kubectl's columns say the same.
    let table = cluster.psctl(1, &["get", "pods"]).expect("get pods");
    for (name, status) in [
        ("good", "Completed"),
        ("bad", "Error"),
        ("looping", "CrashLoopBackOff"),
        ("nowhere", "Pending"),
    ] {
        assert!(
            table
                .lines()
                .any(|line| line.starts_with(name) && line.contains(status)),
            "{name} {status}: {table}"
        );
    }
    assert_eq!(
        cluster
            .psctl(1, &["logs", "bad"])
            .expect("logs of what has ended"),
        "why\n"
    );
    // The API answers what they are, after a restart of the agent too: a pod that succeeded is not run again.
    cluster.kill_agent(1);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    let good = wait_pod(&cluster, "good", "Succeeded", |pod| phase(pod) == "Succeeded");
    assert_eq!(restarts(&good), 0);
    // A node that fits makes it run.
    cluster.stop_agent(1);
    cluster.start(1, &["--node-labels=disk=gold"]);
    cluster.wait_healthy(1);
    wait_pod(&cluster, "nowhere", "scheduled", |pod| {
        condition(pod, "PodScheduled") == "True"
    });
}

#[test]
fn a_forced_deletion_does_not_wait_for_the_grace() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    cluster.apply(
        1,
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: stubborn}}, spec: {{terminationGracePeriodSeconds: 900, \
             containers: [{{name: c, image: \"{SHELL}\", command: [/bin/sh, -c, \"trap '' TERM; while :; do sleep 1; done\"]}}]}}}}"
        ),
    );
    wait_pod(&cluster, "stubborn", "Ready", |pod| {
        condition(pod, "Ready") == "True"
    });
    let path = "/api/v1/namespaces/default/pods/stubborn";
    assert_eq!(cluster.api(1, "DELETE", path, "").0, 200);
    assert_eq!(
        cluster.get(1, &["pod", "stubborn"])["metadata"]["deletionGracePeriodSeconds"],
        900
    );
    assert_eq!(
        cluster.api(1, "DELETE", path, r#"{"gracePeriodSeconds": 0}"#).0,
        200
    );
    assert!(
        !cluster.psctl(1, &["get", "pod", "stubborn"]).ok,
        "it is gone at once"
    );
    cluster.wait_for("its container to be gone", Duration::from_secs(5), |cluster| {
        let left = cluster.containers(1);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn pods_that_are_done_have_their_last_phase() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let pod = |name: &str, policy: &str, main: &str, init: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: {policy}, initContainers: [{{name: i, \
             image: \"{SHELL}\", command: [{init}]}}], containers: [{{name: c, image: \"{SHELL}\", command: [{main}]}}]}}}}\n---\n"
        )
    };
    let (good, bad) = ("/bin/true", "/bin/false");
    for (name, policy, main, init, expected) in [
        ("good", "OnFailure", good, good, "Succeeded"),
        ("once", "Never", good, good, "Succeeded"),
        ("bad", "Never", bad, good, "Failed"),
        ("init", "Never", good, bad, "Failed"),
    ] {
        cluster.apply(1, &pod(name, policy, main, init));
        let done = wait_pod(&cluster, name, expected, |pod| {
            text(pod, "/status/phase") == expected
        });
        assert_eq!(text(&done, "/spec/restartPolicy"), policy);
    }
    let again = pod("again", "OnFailure", bad, good);
    cluster.apply(1, &again);
    let restarted = |pod: &Value| {
        pod.pointer("/status/containerStatuses/0/restartCount")
            .and_then(Value::as_u64)
            > Some(0)
    };
    let pod = wait_pod(&cluster, "again", "a restart", restarted);
    assert_eq!(text(&pod, "/status/phase"), "Running");
}

#[test]
fn containers_that_end_at_once_are_noticed_at_once() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let names: Vec<String> = (1..=8).map(|i| format!("short-{i}")).collect();
    let pod = |name: &String| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, containers: [{{name: c, \
             image: \"{SHELL}\", command: [/bin/false]}}]}}}}\n---\n"
        )
    };
    cluster.apply(1, &names.iter().map(pod).collect::<String>());
    cluster.wait_for("all to end", Duration::from_secs(30), |cluster| {
        let listed = cluster
            .exec(1, &["podman", "ps", "-a", "--format", "{{.State}}"])
            .stdout;
        let ended = listed.lines().filter(|state| state.starts_with("Exited")).count();
        if ended == names.len() { Ok(()) } else { Err(listed) }
    });
    // Well under the resync: what ends is seen by its event.
    cluster.wait_for("all to be Failed", Duration::from_secs(3), |cluster| {
        let phases: Vec<String> = names
            .iter()
            .map(|name| text(&cluster.get(1, &["pod", name]), "/status/phase"))
            .collect();
        if phases.iter().all(|phase| phase == "Failed") {
            Ok(())
        } else {
            Err(format!("{phases:?}"))
        }
    });
}
