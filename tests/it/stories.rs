//! The stories of the README, each on real hosts: what a user does, and what must have happened afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, address, condition, needs_hosts, text};

/// A Deployment, its Service and its Ingress.
pub(crate) fn web(replicas: usize, version: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: web
          image: {image}
          ports: [{{containerPort: 8080}}]
          env:
            - {{name: VERSION, value: "{version}"}}
            - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: web}}
spec:
  rules:
    - host: web.test
      http:
        paths:
          - path: /
            pathType: Prefix
            backend: {{service: {{name: web, port: {{number: 80}}}}}}
"#
    )
}

pub(crate) const HELLO: &str = "localhost/podman-swarm-hello:1";
pub(crate) const HELLO_2: &str = "localhost/podman-swarm-hello:2";

/// A pod with a shell, on a node of choice.
pub(crate) fn shell(name: &str, node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers: [{{name: shell, image: "localhost/busybox:test", command: [/bin/sleep, "100000"]}}]
"#
    )
}

#[track_caller]
pub(crate) fn wait_ready(
    cluster: &Cluster,
    host: usize,
    selector: &str,
    count: usize,
) -> Vec<(String, String)> {
    wait_ready_within(cluster, host, selector, count, Duration::from_secs(30))
}

#[track_caller]
fn wait_ready_within(
    cluster: &Cluster,
    host: usize,
    selector: &str,
    count: usize,
    deadline: Duration,
) -> Vec<(String, String)> {
    cluster.wait_for(
        &format!("{count} ready pods with {selector}"),
        deadline,
        |cluster| {
            let pods = cluster.ready_pods(host, selector);
            if pods.len() == count {
                Ok(pods)
            } else {
                Err(cluster.psctl(host, &["get", "pods", "-o", "wide"]).stdout)
            }
        },
    )
}

/// Waits until the hosts run this many of the users' containers in all.
#[track_caller]
pub(crate) fn wait_containers(cluster: &Cluster, hosts: &[usize], count: usize) {
    cluster.wait_for(
        &format!("{count} containers on hosts {hosts:?}"),
        Duration::from_secs(30),
        |cluster| {
            let running: Vec<usize> = hosts.iter().map(|host| cluster.containers(*host).len()).collect();
            if running.iter().sum::<usize>() == count {
                Ok(())
            } else {
                Err(running)
            }
        },
    );
}

/// Runs a command in the container of a pod, through Podman.
pub(crate) fn in_pod(cluster: &Cluster, host: usize, pod: &str, command: &[&str]) -> (bool, String) {
    let filter = format!("label=podman-swarm.pod-name={pod}");
    let id = cluster
        .exec(host, &["podman", "ps", "-q", "--filter", &filter])
        .stdout;
    let ran = cluster.exec(host, &[&["podman", "exec", id.trim()], command].concat());
    (ran.ok, ran.stdout + &ran.stderr)
}

pub(crate) fn dig(cluster: &Cluster, host: usize, server: &str, arguments: &[&str]) -> Vec<String> {
    let server = format!("@{server}");
    let ran = cluster.exec(
        host,
        &[&["dig", &server, "+short", "+tries=1", "+time=2"], arguments].concat(),
    );
    let mut lines: Vec<String> = ran.stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

pub(crate) fn ingress(cluster: &Cluster, host: usize, node: usize, name: &str, path: &str) -> (u16, String) {
    let url = format!("http://{}{path}", address(node));
    let host_header = format!("Host: {name}");
    let ran = cluster.exec(
        host,
        &[
            "curl",
            "-s",
            "-m",
            "3",
            "-w",
            "\n%{http_code}",
            "-H",
            &host_header,
            &url,
        ],
    );
    let (body, code) = ran.stdout.rsplit_once('\n').unwrap_or(("", "0"));
    (code.parse().unwrap_or(0), body.to_owned())
}

#[test]
fn three_nodes_show_themselves_everywhere() {
    needs_hosts!();
    let cluster = Cluster::with_flags(3, &["--node-labels=disk=ssd"]);
    for host in 1..=3 {
        let nodes = cluster.items(host, &["nodes"]);
        let names: BTreeSet<String> = nodes.iter().map(|node| text(node, "/metadata/name")).collect();
        assert_eq!(
            names,
            BTreeSet::from(["node1".into(), "node2".into(), "node3".into()])
        );
        for node in &nodes {
            assert_eq!(condition(node, "Ready"), "True");
            assert_eq!(text(node, "/metadata/labels/disk"), "ssd");
            let name = text(node, "/metadata/name");
            let number = name.trim_start_matches("node");
            assert_eq!(
                text(node, "/status/addresses/0/address"),
                format!("10.231.0.{number}")
            );
            for resource in ["cpu", "memory", "pods"] {
                assert!(
                    !text(node, &format!("/status/capacity/{resource}")).is_empty(),
                    "{name} has {resource}"
                );
            }
        }
        for file in ["join.token", "api.token", "admin.kubeconfig", "encryption.key"] {
            let mode = cluster.exec(
                host,
                &[
                    "stat",
                    "-c",
                    "%a",
                    cluster.data(host).join(file).to_str().unwrap(),
                ],
            );
            assert_eq!(mode.stdout.trim(), "600", "{file} on host {host}");
        }
    }
}

#[test]
fn a_node_without_a_valid_token_learns_nothing() {
    needs_hosts!();
    let cluster = Cluster::hosts(2);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    let token = std::fs::read_to_string(cluster.data(1).join("join.token")).unwrap();
    let (head, secret) = token.trim().rsplit_once('.').unwrap();
    let wrong: String = secret.chars().rev().collect();
    cluster.start(
        2,
        &["--join=10.231.0.1:7946", &format!("--join-token={head}.{wrong}")],
    );
    cluster.wait_for(
        "the refusal in the log of host 2",
        Duration::from_secs(10),
        |cluster| {
            let log = std::fs::read_to_string(cluster.log(2)).unwrap();
            if log.contains("token") && log.contains("refused") {
                Ok(())
            } else {
                Err(log)
            }
        },
    );
    assert_eq!(cluster.items(1, &["nodes"]).len(), 1);
    assert!(!cluster.data(2).join("ca.key").exists());
}

#[test]
fn applied_anywhere_seen_and_run_everywhere() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    let start = Instant::now();
    cluster.apply(1, &web(3, "1", HELLO));
    for host in [2, 3] {
        cluster.wait_for(
            "the deployment to be readable",
            Duration::from_secs(1),
            |cluster| {
                let got = cluster.psctl(host, &["get", "deployment", "web"]);
                if got.ok { Ok(()) } else { Err(got.stderr) }
            },
        );
    }
    eprintln!("applied and read on nodes 2 and 3 after {:?}", start.elapsed());
    let pods = wait_ready(&cluster, 2, "app=web", 3);
    let nodes: BTreeSet<&String> = pods.iter().map(|(_, node)| node).collect();
    assert_eq!(nodes.len(), 3, "spread over all nodes: {pods:?}");
    wait_containers(&cluster, &[1, 2, 3], 3);

    // Names, on every node and in every container, on the service's port.
    cluster.apply(
        2,
        &(1..=3)
            .map(|node| shell(&format!("shell{node}"), &format!("node{node}")))
            .collect::<Vec<_>>()
            .join("---"),
    );
    for host in 1..=3 {
        let addresses = cluster.wait_for("three addresses", Duration::from_secs(10), |cluster| {
            let found = dig(cluster, host, "127.0.0.1", &["web.default.svc.cluster.local"]);
            if found.len() == 3 { Ok(found) } else { Err(found) }
        });
        assert_eq!(
            addresses,
            dig(
                &cluster,
                host,
                &address(host),
                &["web.default.cluster.local", "+tcp"]
            )
        );
        let services = dig(
            &cluster,
            host,
            "127.0.0.1",
            &["SRV", "_8080._tcp.web.default.svc.cluster.local"],
        );
        let services = if services.is_empty() {
            dig(
                &cluster,
                host,
                "127.0.0.1",
                &["SRV", "web.default.svc.cluster.local"],
            )
        } else {
            services
        };
        assert_eq!(services.len(), 3);
        assert!(
            services.iter().all(|service| service.contains(" 8080 ")),
            "{services:?}"
        );
        let pod = format!("shell{host}");
        wait_ready(&cluster, host, "app=web", 3);
        for url in [
            "http://web/",
            "http://web.default:80/",
            "http://web.default.svc.cluster.local/",
            "http://web:8080/",
        ] {
            let (_, answer) = cluster.wait_for(
                &format!("{url} to answer in {pod}"),
                Duration::from_secs(15),
                |cluster| {
                    let (ok, answer) = in_pod(cluster, host, &pod, &["wget", "-q", "-O", "-", url]);
                    if ok { Ok((ok, answer)) } else { Err(answer) }
                },
            );
            assert!(answer.contains("Hello from pod web-"), "{answer}");
            // The server saw the pod's own address, not a node's.
            assert!(answer.contains("you are 10.244."), "{answer}");
        }
    }
    for host in 1..=3 {
        cluster.wait_for(
            "the ingress to reach all pods",
            Duration::from_secs(10),
            |cluster| {
                let (code, body) = ingress(cluster, 0, host, "web.test", "/");
                if code == 200 && body.contains("Hello") {
                    Ok(())
                } else {
                    Err((code, body))
                }
            },
        );
        assert_eq!(ingress(&cluster, 0, host, "other.test", "/").0, 404);
    }

    // Scale up and down, by another node.
    cluster.apply(2, &web(10, "1", HELLO));
    wait_ready(&cluster, 3, "app=web", 10);
    wait_containers(&cluster, &[1, 2, 3], 13);
    cluster.apply(3, &web(2, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 2);
    wait_containers(&cluster, &[1, 2, 3], 5);

    // Delete everything: containers, names and routes go.
    for (kind, host) in [("deployment", 1), ("service", 2), ("ingress", 3)] {
        cluster.psctl(host, &["delete", kind, "web"]).expect("delete");
    }
    wait_containers(&cluster, &[1, 2, 3], 3);
    for host in 1..=3 {
        cluster.wait_for("names and routes to go", Duration::from_secs(10), |cluster| {
            let names = dig(cluster, host, "127.0.0.1", &["web.default.svc.cluster.local"]);
            let (code, _) = ingress(cluster, 0, host, "web.test", "/");
            if names.is_empty() && code == 404 {
                Ok(())
            } else {
                Err((names, code))
            }
        });
        assert_eq!(cluster.items(host, &["pods", "-l", "app=web"]).len(), 0);
        assert_eq!(cluster.items(host, &["replicasets"]).len(), 0);
    }
}

#[test]
fn an_update_keeps_within_its_bounds() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    let manifest = |version: &str, image: &str| {
        web(6, version, image).replace(
            "replicas: 6",
            "replicas: 6\n  strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 2}}",
        )
    };
    cluster.apply(1, &manifest("1", HELLO));
    wait_ready(&cluster, 1, "app=web", 6);
    for (version, image) in [("2", HELLO), ("3", HELLO_2)] {
        cluster.apply(2, &manifest(version, image));
        let hash = |cluster: &Cluster| -> BTreeMap<String, usize> {
            let look = || {
                let mut alive = cluster.items(3, &["pods", "-l", "app=web"]);
                alive.retain(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
                alive
            };
            let ready = |alive: &[Value]| {
                alive
                    .iter()
                    .filter(|pod| condition(pod, "Ready") == "True")
                    .count()
            };
            let mut alive = look();
            if ready(&alive) < 5 || alive.len() > 8 {
                // Readiness comes by gossip, and later than a deletion that it allowed; a pod too many would stay for longer.
                std::thread::sleep(Duration::from_millis(150));
                alive = look();
            }
            let (ready, total) = (ready(&alive), alive.len());
            assert!(ready >= 5, "never fewer than replicas - maxUnavailable: {ready}");
            assert!(total <= 8, "never more than replicas + maxSurge: {total}");
            let mut counts = BTreeMap::new();
            for pod in alive.iter().filter(|pod| condition(pod, "Ready") == "True") {
                let value = pod
                    .pointer("/spec/containers/0/env/0/value")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                *counts.entry(value.to_owned()).or_default() += 1;
            }
            counts
        };
        cluster.wait_for("the update to finish", Duration::from_secs(60), |cluster| {
            let counts = hash(cluster);
            if counts == BTreeMap::from([(version.to_owned(), 6)]) {
                Ok(())
            } else {
                Err(counts)
            }
        });
    }
    wait_containers(&cluster, &[1, 2, 3], 6);
}

#[test]
fn a_killed_container_comes_back() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    cluster.apply(1, &web(2, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 2);
    let before = cluster.containers(1);
    cluster
        .exec(1, &["podman", "kill", &before[0]])
        .expect("podman kill");
    cluster.wait_for("a new container", Duration::from_secs(10), |cluster| {
        let now = cluster.containers(1);
        if now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1]) {
            Ok(())
        } else {
            Err(now)
        }
    });
    cluster
        .exec(1, &["podman", "rm", "-f", &before[1]])
        .expect("podman rm");
    wait_containers(&cluster, &[1], 2);
    wait_ready(&cluster, 1, "app=web", 2);
}

#[test]
fn a_killed_agent_adopts_what_runs() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    cluster.apply(1, &web(6, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 6);
    let before: Vec<Vec<String>> = (1..=3).map(|host| sorted(cluster.containers(host))).collect();
    let names = dig(&cluster, 1, "127.0.0.1", &["web.default.svc.cluster.local"]);
    assert_eq!(names.len(), 6);

    cluster.kill_agent(2);
    // What is acknowledged while node 2 is away, and by node 2 just before a kill, must be there after it.
    cluster.apply(
        1,
        "{apiVersion: v1, kind: Namespace, metadata: {name: while-away}}",
    );
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(
            dig(&cluster, 1, "127.0.0.1", &["web.default.svc.cluster.local"]),
            names,
            "endpoints must not flap"
        );
        assert_eq!(
            dig(&cluster, 3, "127.0.0.1", &["web.default.svc.cluster.local"]),
            names,
            "endpoints must not flap"
        );
    }
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    cluster.apply(
        2,
        "{apiVersion: v1, kind: Namespace, metadata: {name: just-before}}",
    );
    cluster.kill_agent(2);
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        for host in 1..=3 {
            assert_eq!(
                dig(&cluster, host, "127.0.0.1", &["web.default.svc.cluster.local"]),
                names,
                "on host {host}"
            );
        }
    }
    for namespace in ["while-away", "just-before"] {
        cluster
            .psctl(2, &["get", "namespace", namespace])
            .expect("the namespace");
    }
    let after: Vec<Vec<String>> = (1..=3).map(|host| sorted(cluster.containers(host))).collect();
    assert_eq!(before, after, "containers were restarted or moved");
    assert_eq!(cluster.ready_nodes(1), 3);
}

pub(crate) fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

#[test]
fn a_stopped_agent_leaves_its_containers_alone() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    cluster.apply(1, &web(4, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 4);
    // What was read on one node can be written on another, as long as the first is there to compare the version.
    let namespace = "/api/v1/namespaces/default";
    let label = |object: &mut Value, value: &str| object["metadata"]["labels"]["seen"] = value.into();
    let (_, mut object) = cluster.api(2, "GET", namespace, "");
    label(&mut object, "by-two");
    let (code, mut object) = cluster.api(1, "PUT", namespace, &object.to_string());
    assert_eq!(code, 200, "{object}");
    let (_, shown) = cluster.api(2, "GET", namespace, "");
    assert_eq!(shown["metadata"], object["metadata"], "node 2 made the write");

    let before = sorted(cluster.containers(2));
    let start = Instant::now();
    assert_eq!(cluster.stop_agent(2), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "stopping took {:?}",
        start.elapsed()
    );
    assert_eq!(sorted(cluster.containers(2)), before);
    label(&mut object, "alone");
    let (code, refused) = cluster.api(1, "PUT", namespace, &object.to_string());
    assert_eq!(code, 409, "{refused}");
    assert!(text(&refused, "/message").contains("node2"), "{refused}");
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    assert_eq!(sorted(cluster.containers(2)), before);
}

#[test]
fn a_lost_node_is_replaced_within_ten_seconds() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    cluster.apply(1, &web(6, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 6);

    // Cut off.
    let start = Instant::now();
    cluster.cut(3);
    let pods = wait_lost_node(&cluster, "node3");
    eprintln!("node cut off -> all pods ready elsewhere: {:?}", start.elapsed());
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
    assert_eq!(pods.len(), 6);
    let names = dig(&cluster, 1, "127.0.0.1", &["web.default.svc.cluster.local"]);
    assert!(
        names.iter().all(|name| !name.starts_with("10.244.2.")) || names.len() == 6,
        "{names:?}"
    );
    cluster.heal();
    cluster.wait_for("three nodes and no surplus", Duration::from_secs(30), |cluster| {
        let running: Vec<usize> = (1..=3).map(|host| cluster.containers(host).len()).collect();
        let nodes = cluster.ready_nodes(1);
        if nodes == 3 && running.iter().sum::<usize>() == 6 {
            Ok(())
        } else {
            Err((nodes, running))
        }
    });
    wait_ready(&cluster, 3, "app=web", 6);

    // Powered off, and back.
    let pods = cluster.ready_pods(1, "app=web");
    let on = |host: usize| {
        pods.iter()
            .filter(|(_, node)| *node == format!("node{host}"))
            .count()
    };
    let victim = if on(2) > on(3) { 2 } else { 3 };
    assert!(on(victim) > 0, "{pods:?}");
    let start = Instant::now();
    cluster.crash(victim);
    wait_lost_node(&cluster, &format!("node{victim}"));
    eprintln!(
        "node powered off -> all pods ready elsewhere: {:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
    cluster.boot(victim);
    cluster.start(victim, &[]);
    cluster.wait_healthy(victim);
    cluster.wait_for("three nodes and no surplus", Duration::from_secs(30), |cluster| {
        let ready = cluster.ready_pods(1, "app=web");
        assert!(
            ready.len() >= 6,
            "the node that returned takes nothing away: {ready:?}"
        );
        let running: Vec<usize> = (1..=3).map(|host| cluster.containers(host).len()).collect();
        let nodes = cluster.ready_nodes(1);
        if nodes == 3 && running.iter().sum::<usize>() == 6 {
            Ok(())
        } else {
            Err((nodes, running))
        }
    });
}

/// Waits until six pods are ready outside of `lost`, while node 1 answers reads and writes all the while.
fn wait_lost_node(cluster: &Cluster, lost: &str) -> Vec<(String, String)> {
    let mut write = 0;
    cluster.wait_for(
        "six ready pods on the other nodes",
        Duration::from_secs(15),
        |cluster| {
            write += 1;
            let manifest =
                format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: n{lost}-{write}}}}}");
            cluster.apply(1, &manifest);
            let pods: Vec<_> = cluster
                .ready_pods(1, "app=web")
                .into_iter()
                .filter(|(_, node)| node != lost)
                .collect();
            if pods.len() == 6 {
                Ok(pods)
            } else {
                Err(cluster.psctl(1, &["get", "pods", "-o", "wide"]).stdout)
            }
        },
    )
}

#[test]
fn both_sides_of_a_partition_accept_and_merge() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    cluster.apply(1, &web(3, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 3);
    let conflicts = [(1, 3), (3, 1)];
    let labelled = |winner: usize, labels: &str| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: of-node{winner}, labels: {{{labels}}}}}}}"
        )
    };
    for (winner, _) in conflicts {
        cluster.apply(1, &labelled(winner, ""));
        let name = format!("of-node{winner}");
        cluster.wait_for("it on node 3", Duration::from_secs(5), |cluster| {
            let got = cluster.psctl(3, &["get", "namespace", &name]);
            if got.ok { Ok(()) } else { Err(got.stderr) }
        });
    }
    cluster.cut(3);
    cluster.wait_for("node 3 to be alone", Duration::from_secs(15), |cluster| {
        let seen = (cluster.ready_nodes(1), cluster.ready_nodes(3));
        if seen == (2, 1) { Ok(()) } else { Err(seen) }
    });
    // Both sides label the same objects differently, and each makes an object of its own. Who has made more changes wins.
    for (winner, loser) in conflicts {
        cluster.apply(loser, &labelled(winner, &format!("side: from-{loser}")));
        cluster.apply(winner, &labelled(winner, "more: x"));
        cluster.apply(
            winner,
            &labelled(winner, &format!("more: x, side: from-{winner}")),
        );
    }
    cluster.apply(
        1,
        &web(3, "1", HELLO).replace(
            "metadata: {name: web}",
            "metadata: {name: web, labels: {side: a}}",
        ),
    );
    cluster.apply(
        3,
        "{apiVersion: v1, kind: Namespace, metadata: {name: from-b, labels: {b: b}}}",
    );
    cluster.apply(1, "{apiVersion: v1, kind: Namespace, metadata: {name: from-a}}");
    // It meets the others' changes while it starts.
    cluster.kill_agent(3);
    cluster.heal();
    cluster.start(3, &[]);
    cluster.wait_healthy(3);
    for host in 1..=3 {
        cluster.wait_for("both changes", Duration::from_secs(20), |cluster| {
            let seen: Vec<bool> = [["namespace", "from-a"], ["namespace", "from-b"]]
                .iter()
                .map(|arguments| cluster.psctl(host, &[&["get"], arguments.as_slice()].concat()).ok)
                .collect();
            let side = text(
                &cluster.get(host, &["deployment", "web"]),
                "/metadata/labels/side",
            );
            if seen == [true, true] && side == "a" {
                Ok(())
            } else {
                Err((seen, side))
            }
        });
    }
    // The node whose value lost tells, and any node shows it.
    for (winner, loser) in conflicts {
        let name = format!("of-node{winner}");
        let said = [
            "ConflictResolved".to_owned(),
            format!("metadata.labels.side was set at once to \"from-{winner}\" by"),
            format!("on node node{winner} and to \"from-{loser}\" by"),
            format!("on node node{loser}: the former stays"),
        ];
        cluster.wait_for(&said.concat(), Duration::from_secs(20), |cluster| {
            let described = cluster.psctl(2, &["describe", "namespace", &name]).stdout;
            if said.iter().all(|said| described.contains(said)) {
                Ok(())
            } else {
                Err(described)
            }
        });
    }
    wait_ready(&cluster, 2, "app=web", 3);
    wait_containers(&cluster, &[1, 2, 3], 3);
}
