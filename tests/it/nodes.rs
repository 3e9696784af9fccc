//! Nodes in trouble: taken out of the cluster from afar; with a disk that is full.

use std::fs;
use std::time::Duration;

use crate::cluster::{Cluster, condition, needs_hosts, program, text};
use crate::stories::{HELLO, wait_ready, web};

/// The exit code of an agent whose node was removed.
const REMOVED: Option<i32> = Some(3);

/// Waits until a node is shown nowhere but on itself, and its pods are ready elsewhere.
fn wait_gone(cluster: &Cluster, node: &str, witnesses: &[usize], pods: usize) {
    for host in witnesses {
        cluster.wait_for(
            &format!("{node} to be gone"),
            Duration::from_secs(10),
            |cluster| {
                let ran = cluster.psctl(*host, &["get", "nodes", node]);
                if ran.ok { Err(ran) } else { Ok(()) }
            },
        );
        cluster.wait_for("its pods elsewhere", Duration::from_secs(15), |cluster| {
            let ready = cluster.ready_pods(*host, "app=web");
            let elsewhere = ready.iter().filter(|(_, on)| on != node).count();
            if elsewhere == pods { Ok(()) } else { Err(ready) }
        });
    }
}

#[test]
fn a_removed_node_is_gone_everywhere_and_does_not_come_back_by_itself() {
    needs_hosts!();
    let cluster = Cluster::with_agents(3);
    cluster.apply(1, &web(6, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 6);

    // Not by mistake.
    let remove = |cluster: &Cluster, host: usize, arguments: &[&str]| {
        cluster.psctl(host, &[&["node", "remove"], arguments].concat())
    };
    remove(&cluster, 1, &["node3", "--yes"]).refuses(1, &["node3", "running", "leave", "--force"]);
    remove(&cluster, 1, &["node1", "--yes", "--force"]).refuses(1, &["the node that answers"]);
    remove(&cluster, 1, &["node9", "--yes"]).refuses(1, &["node9", "not found"]);

    // A host that is off for good.
    cluster.crash(3);
    cluster.wait_for("node3 to be away", Duration::from_secs(15), |cluster| {
        let ready = cluster.ready_nodes(1);
        if ready == 2 { Ok(()) } else { Err(ready) }
    });
    remove(&cluster, 1, &["node3"]).refuses(2, &["pods are placed on it", "--yes"]);
    assert_eq!(
        remove(&cluster, 1, &["node3", "--yes"]).expect("node remove"),
        "node \"node3\" removed\n"
    );
    wait_gone(&cluster, "node3", &[1, 2], 6);

    // It comes back, and was not told: it runs nothing, says why, and no restart changes that.
    cluster.boot(3);
    for _ in 0..2 {
        cluster.start(3, &[]);
        assert_eq!(cluster.wait_ended(3), REMOVED);
        assert_eq!(cluster.containers(3), [""; 0]);
    }
    let log = fs::read_to_string(cluster.log(3)).unwrap();
    let data = cluster.data(3);
    for words in [
        "this node was removed from its cluster",
        &format!("kept in {}", data.join("store").display()),
        "podman-swarm-agent leave",
    ] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    assert_eq!(cluster.ready_nodes(1), 2);

    // Its data is set aside when a person says so, and the name is free.
    let (agent, flag) = (
        program("podman-swarm-agent"),
        format!("--data-dir={}", data.display()),
    );
    cluster
        .exec(3, &[agent.to_str().unwrap(), "leave", &flag])
        .expect("leave");
    assert!(data.join("left/store").exists() && !data.join("store").exists());
    cluster.join(3, &[]);
    cluster.wait_healthy(3);
    cluster.wait_nodes(3);

    // By force also one that runs: it ends what it ran, and ends.
    cluster.apply(1, &web(7, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 7);
    cluster.wait_for("a pod on host 3", Duration::from_secs(10), |cluster| {
        let running = cluster.containers(3);
        if running.is_empty() { Err(()) } else { Ok(()) }
    });
    remove(&cluster, 2, &["node3", "--yes", "--force"]).expect("node remove --force");
    assert_eq!(cluster.wait_ended(3), REMOVED);
    assert_eq!(cluster.containers(3), [""; 0]);
    wait_gone(&cluster, "node3", &[1, 2], 7);

    // What kubectl calls it.
    let kubectl = cluster.with_kubeconfig(1, "kubectl", &["delete", "node", "node2"]);
    if crate::cluster::on_path("kubectl") {
        kubectl.refuses(1, &["node2", "running"]);
        cluster.crash(2);
        cluster.wait_for("node2 to be away", Duration::from_secs(15), |cluster| {
            let ready = cluster.ready_nodes(1);
            if ready == 1 { Ok(()) } else { Err(ready) }
        });
        let kubectl = cluster.with_kubeconfig(1, "kubectl", &["delete", "node", "node2"]);
        assert!(kubectl.expect("kubectl delete node").contains("deleted"));
        wait_gone(&cluster, "node2", &[1], 7);
    }
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    // A small disk of its own for the store of host 2.
    cluster.stop_agent(2);
    let data = cluster.data(2).display().to_string();
    let script = format!(
        "cd {data} && mv store on-disk && mkdir store && mount -t tmpfs -o size=80m tmpfs store && cp -a on-disk/. store"
    );
    cluster
        .exec(2, &["sh", "-c", &script])
        .expect("a disk for the store");
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    cluster.wait_nodes(2);
    let namespace =
        |name: &str| format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
    cluster.apply(2, &namespace("before"));

    let filler = format!("{data}/store/filler");
    cluster
        .exec(2, &["fallocate", "-l", "60M", &filler])
        .expect("fill the disk");
    let (code, status) = cluster.api(2, "POST", "/api/v1/namespaces", &namespace("refused"));
    assert_eq!(
        (code, text(&status, "/reason").as_str()),
        (507, "InsufficientStorage")
    );
    let file = cluster.write("refused.yaml", &namespace("refused"));
    let words = ["is full", &format!("{data}/store"), "MiB are needed", "hint: "];
    cluster.psctl(2, &["apply", "-f", &file]).refuses(1, &words);
    cluster.psctl(2, &["get", "namespace", "before"]).expect("a read");
    let (code, health) = cluster.api(2, "GET", "/api/v1/health", "");
    assert_eq!((code, text(&health, "/status").as_str()), (503, "full"));
    let wait_pressure = |expected: &str| {
        let what = format!("DiskPressure {expected} as node 1 shows it");
        cluster.wait_for(&what, Duration::from_secs(20), |cluster| {
            let node = cluster.get(1, &["node", "node2"]);
            if condition(&node, "DiskPressure") == expected {
                Ok(())
            } else {
                Err(node)
            }
        });
    };
    wait_pressure("True");
    // Others take writes all the while.
    cluster.apply(1, &namespace("meanwhile"));

    cluster.exec(2, &["rm", &filler]).expect("make room");
    cluster.apply(2, &namespace("after"));
    wait_pressure("False");
    cluster.wait_healthy(2);
    cluster.wait_for("what was written meanwhile", Duration::from_secs(30), |cluster| {
        let ran = cluster.psctl(2, &["get", "namespace", "meanwhile"]);
        if ran.ok { Ok(()) } else { Err(ran) }
    });
    assert!(!cluster.psctl(1, &["get", "namespace", "refused"]).ok);
}

#[test]
fn an_edit_that_a_deletion_elsewhere_took_away_is_in_a_file_that_can_be_applied() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    let service = |side: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: shop, labels: {{side: {side}}}}}, spec: {{selector: {{app: shop}}, ports: [{{port: 80}}]}}}}"
        )
    };
    cluster.apply(1, &service("a"));
    cluster.wait_for("the service on node 2", Duration::from_secs(60), |cluster| {
        let ran = cluster.psctl(2, &["get", "service", "shop"]);
        if ran.ok { Ok(()) } else { Err(ran) }
    });
    cluster.cut(2);
    cluster.apply(2, &service("b"));
    cluster
        .psctl(1, &["delete", "service", "shop"])
        .expect("psctl delete");
    cluster.heal();

    let folder = cluster.data(2).join("rescued");
    let file = cluster.wait_for("a rescued file", Duration::from_secs(60), |_| {
        let entries = fs::read_dir(&folder).map_err(|error| error.to_string())?;
        let names = entries.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = names
            .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
            .collect();
        files
            .pop()
            .filter(|_| files.is_empty())
            .ok_or(format!("{files:?}"))
    });
    let described = |host: usize, words: &[&str], are_there: bool| {
        cluster.wait_for("what psctl describe says", Duration::from_secs(60), |cluster| {
            let said = cluster.psctl(host, &["describe", "node", "node2"]).stdout;
            if words.iter().all(|word| said.contains(word) == are_there) {
                Ok(())
            } else {
                Err(said)
            }
        });
    };
    described(1, &["Rescued", "rescued/"], true);
    let events = cluster.psctl(1, &["get", "events"]).expect("psctl get events");
    assert!(events.contains("Rescued") && events.contains("shop"), "{events}");
    assert!(!cluster.data(1).join("rescued").exists(), "node 1 lost nothing");

    cluster
        .psctl(1, &["get", "service", "shop"])
        .refuses(1, &["not found"]);
    cluster
        .psctl(1, &["apply", "-f", file.to_str().unwrap()])
        .expect("psctl apply of the file");
    let again = cluster.get(1, &["service", "shop"]);
    assert_eq!(text(&again, "/metadata/labels/side"), "b");
    fs::remove_file(file).unwrap();
    described(1, &["rescued/"], false);
}
