//! The real kubectl, the oldest and the newest that are installed, against a node on which the pods do not run.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

#[path = "../../src/api/tests/kubectl_programs.rs"]
mod kubectl_programs;

use crate::cluster::{Cluster, Ran, address, needs_hosts, text};
use crate::stories::{HELLO, wait_ready, web};

/// The kubectls of this machine, the newest last.
pub(crate) fn versions() -> Vec<String> {
    let found = kubectl_programs::found();
    found
        .iter()
        .map(|program| program.display().to_string())
        .collect()
}

/// The oldest and the newest; all with `KUBECTL_VERSIONS=all`.
fn chosen_versions() -> Vec<String> {
    if std::env::var("KUBECTL_VERSIONS").is_ok_and(|which| which == "all") {
        return versions();
    }
    let found = kubectl_programs::found();
    let chosen = kubectl_programs::oldest_and_newest(&found).into_iter();
    chosen.map(|program| program.display().to_string()).collect()
}

/// Host 1 answers, host 2 (`place=there`) runs the pods.
pub(crate) fn two_hosts() -> Cluster {
    let cluster = Cluster::hosts(2);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    cluster.join(2, &["--node-labels=place=there"]);
    cluster.wait_healthy(2);
    cluster.wait_nodes(2);
    cluster
}

fn there(manifest: &str) -> String {
    manifest.replace(
        "      containers:",
        "      nodeSelector: {place: there}\n      containers:",
    )
}

/// A program that goes on, with what it printed so far.
struct Following {
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Following {
    fn start(cluster: &Cluster, program: &str, arguments: &[&str]) -> Self {
        let mut child = cluster.child(1, program, arguments);
        let (stdout, printed) = (child.stdout.take().unwrap(), Arc::new(Mutex::new(String::new())));
        let sink = printed.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                *sink.lock().unwrap() += &(line + "\n");
            }
        });
        Self { child, printed }
    }

    #[track_caller]
    fn wait_for(&self, cluster: &Cluster, what: impl Fn(&str) -> bool) {
        cluster.wait_for(
            "the output of a program that follows",
            Duration::from_secs(10),
            |_| {
                let printed = self.printed.lock().unwrap().clone();
                if what(&printed) { Ok(()) } else { Err(printed) }
            },
        );
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Runs `check` with the oldest and the newest kubectl (or all) on one cluster, each in a namespace of its own.
pub(crate) fn with_each(check: impl Fn(&Cluster, &str, &str)) {
    let versions = chosen_versions();
    if versions.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "CI must have kubectl");
        eprintln!("skipped: kubectl is not on this machine");
        return;
    }
    let cluster = two_hosts();
    for (number, version) in versions.iter().enumerate() {
        eprintln!("with {version}");
        let namespace = format!("kubectl-{number}");
        let file = cluster.write(
            "namespace.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"),
        );
        kubectl(&cluster, version, &["apply", "-f", &file]).expect("apply a namespace");
        check(&cluster, version, &namespace);
        kubectl(
            &cluster,
            version,
            &["delete", "namespace", &namespace, "--timeout=30s"],
        )
        .expect("delete namespace");
        cluster.wait_for("no containers", Duration::from_secs(15), |cluster| {
            let left = cluster.containers(2);
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}

fn kubectl(cluster: &Cluster, version: &str, arguments: &[&str]) -> Ran {
    cluster.with_kubeconfig(1, "timeout", &[&["60", version], arguments].concat())
}

#[test]
fn applies_shows_changes_and_deletes() {
    needs_hosts!();
    with_each(|cluster, version, namespace| {
        let run = |arguments: &[&str]| kubectl(cluster, version, &[&["-n", namespace], arguments].concat());
        let get = |arguments: &[&str]| -> Value {
            serde_json::from_str(&run(&[&["get", "-o", "json"], arguments].concat()).expect("get -o json"))
                .unwrap()
        };

        // Client-side apply: created, unchanged, changed; what is no longer named goes.
        let labelled = there(&web(2, "1", HELLO)).replacen(
            "metadata: {name: web}",
            "metadata: {name: web, labels: {tier: front}}",
            1,
        );
        let file = cluster.write("kubectl.yaml", &labelled);
        let applied = run(&["apply", "-f", &file]).expect("apply");
        assert_eq!(
            applied,
            "deployment.apps/web created\nservice/web created\ningress.networking.k8s.io/web created\n"
        );
        let waited = run(&["rollout", "status", "deployment/web", "--timeout=30s"]).expect("rollout status");
        assert!(waited.contains("successfully rolled out"), "{waited}");
        let ran = run(&["apply", "-f", &file]);
        assert_eq!(
            ran.stdout,
            "deployment.apps/web unchanged\nservice/web unchanged\ningress.networking.k8s.io/web unchanged\n",
            "{ran:?}"
        );
        let file = cluster.write("kubectl.yaml", &there(&web(2, "2", HELLO)));
        let applied = run(&["apply", "-f", &file]).expect("apply again");
        assert!(
            applied.contains("deployment.apps/web configured\nservice/web unchanged"),
            "{applied}"
        );
        let deployment = get(&["deployment", "web"]);
        assert_eq!(deployment.pointer("/metadata/labels"), None, "the label is gone");
        assert_eq!(
            text(&deployment, "/spec/template/spec/containers/0/env/0/value"),
            "2"
        );
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]).expect("rollout status");

        // Tables, YAML, JSONPath.
        let table = run(&["get", "pods"]).expect("get pods");
        assert_eq!(
            table.split_whitespace().take(5).collect::<Vec<_>>(),
            ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
        );
        assert!(table.matches("Running").count() >= 2, "{table}");
        let wide = run(&["get", "pods", "-o", "wide", "-l", "app=web"]).expect("get -o wide");
        assert!(
            wide.contains("node2") && !wide.contains("node1") && wide.contains("10.244."),
            "{wide}"
        );
        let yaml = run(&["get", "deployment", "web", "-o", "yaml"]).expect("get -o yaml");
        assert!(
            yaml.starts_with("apiVersion: apps/v1\nkind: Deployment\n"),
            "{yaml}"
        );
        assert_eq!(
            run(&[
                "get",
                "deployment",
                "web",
                "-o",
                "jsonpath={.status.readyReplicas} {.spec.replicas}"
            ])
            .expect("jsonpath"),
            "2 2"
        );
        assert_eq!(
            run(&["get", "deploy,svc,ing", "-o", "name"]).expect("several kinds"),
            "deployment.apps/web\nservice/web\ningress.networking.k8s.io/web\n"
        );
        assert!(
            run(&["get", "all"])
                .expect("get all")
                .contains("replicaset.apps/web-")
        );
        assert!(run(&["get", "pods", "-A"]).expect("-A").contains(namespace));
        assert!(
            run(&["get", "nodes", "-L", "place"])
                .expect("nodes")
                .contains("there")
        );
        run(&["get", "endpoints", "web"]).expect("endpoints");
        assert!(run(&["get", "events"]).expect("events").contains("Started"));

        // Describe.
        let pods = run(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ])
        .expect("names");
        let pod = pods.split(' ').next().unwrap().to_owned();
        for (arguments, words) in [
            (
                ["deployment", "web"],
                vec![
                    "2 desired",
                    "2 available",
                    "RollingUpdate",
                    HELLO,
                    "NewReplicaSet:",
                    "ScalingReplicaSet",
                ],
            ),
            (
                ["pod", &pod],
                vec![
                    "node2/10.231.0.2",
                    "Running",
                    "10.244.",
                    "place=there",
                    "Started",
                    "Ready",
                ],
            ),
            (["service", "web"], vec!["app=web", "8080/TCP", "10.244."]),
            (["ingress", "web"], vec!["web.test", "web:80"]),
            (
                ["node", "node2"],
                vec![
                    "place=there",
                    "InternalIP:",
                    "10.231.0.2",
                    "Capacity:",
                    "Allocatable:",
                    &pod,
                ],
            ),
        ] {
            let described = run(&[&["describe"], arguments.as_slice()].concat()).expect("describe");
            for word in words {
                assert!(
                    described.contains(word),
                    "describe {arguments:?}: {word} is missing in:\n{described}"
                );
            }
        }

        // A watch sees a scale, and the scale stays with the next apply that does not name it.
        let watch = Following::start(
            cluster,
            version,
            &["-n", namespace, "get", "deployment", "web", "-w"],
        );
        watch.wait_for(cluster, |printed| printed.contains("2/2"));
        run(&["scale", "deployment/web", "--replicas=3"]).expect("scale");
        watch.wait_for(cluster, |printed| printed.contains("3/3"));
        drop(watch);
        assert!(!run(&["scale", "deployment/web", "--replicas=1", "--current-replicas=7"]).ok);
        run(&["rollout", "status", "deployment/web", "--timeout=30s"]).expect("rollout status");

        // Restart: other pods, as many.
        let names = |cluster: &Cluster| -> Vec<String> {
            let mut names: Vec<String> = cluster
                .items(1, &["pods", "-n", namespace, "-l", "app=web"])
                .iter()
                .map(|pod| text(pod, "/metadata/name"))
                .collect();
            names.sort();
            names
        };
        let before = names(cluster);
        run(&["rollout", "restart", "deployment/web"]).expect("rollout restart");
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]).expect("rollout status");
        cluster.wait_for("three other pods", Duration::from_secs(15), |cluster| {
            let now = names(cluster);
            if now.len() == 3 && now.iter().all(|name| !before.contains(name)) {
                Ok(())
            } else {
                Err(now)
            }
        });
        assert!(
            run(&["rollout", "history", "deployment/web"])
                .expect("rollout history")
                .contains("REVISION")
        );

        // Logs, of a pod on the other node.
        let pod = names(cluster)[0].clone();
        assert_eq!(run(&["logs", &pod]).expect("logs"), "listening on port 8080\n");
        assert_eq!(
            run(&["logs", &pod, "-c", "web", "--tail=1"]).expect("logs -c"),
            "listening on port 8080\n"
        );
        assert!(
            run(&["logs", "deployment/web"])
                .expect("logs of a deployment")
                .contains("listening on port 8080")
        );
        let follow = Following::start(cluster, version, &["-n", namespace, "logs", "-f", &pod]);
        follow.wait_for(cluster, |printed| printed.contains("listening on port 8080"));
        drop(follow);

        // Labels and annotations.
        run(&["label", "pod", &pod, "colour=red"]).expect("label");
        assert_eq!(text(&get(&["pod", &pod]), "/metadata/labels/colour"), "red");
        assert!(
            !run(&["label", "pod", &pod, "colour=blue"]).ok,
            "without --overwrite"
        );
        run(&["label", "pod", &pod, "colour=blue", "--overwrite"]).expect("label --overwrite");
        run(&["label", "pod", &pod, "colour-"]).expect("label -");
        assert_eq!(get(&["pod", &pod]).pointer("/metadata/labels/colour"), None);
        run(&["annotate", "deployment", "web", "note=hello there"]).expect("annotate");
        assert_eq!(
            text(&get(&["deployment", "web"]), "/metadata/annotations/note"),
            "hello there"
        );
        run(&["patch", "deployment", "web", "-p", r#"{"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "MORE", "value": "1"}]}]}}}}"#]).expect("patch");
        let env = get(&["deployment", "web"])
            .pointer("/spec/template/spec/containers/0/env")
            .cloned()
            .unwrap();
        assert_eq!(
            env.as_array().map(Vec::len),
            Some(4),
            "a strategic merge patch adds: {env}"
        );
        run(&["set", "env", "deployment/web", "MORE=2"]).expect("set env");
        run(&[
            "set",
            "image",
            "deployment/web",
            "web=localhost/podman-swarm-hello:2",
        ])
        .expect("set image");
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]).expect("rollout status");
        run(&[
            "wait",
            "deployment/web",
            "--for=condition=Available",
            "--timeout=20s",
        ])
        .expect("wait");

        // Deletion waits until it is gone.
        let pod = names(cluster)[0].clone();
        run(&["delete", "pod", &pod, "--timeout=30s"]).expect("delete pod");
        assert!(!run(&["get", "pod", &pod]).ok);
        let deleted = run(&["delete", "-f", &file, "--timeout=30s"]).expect("delete -f");
        assert!(deleted.contains("deployment.apps \"web\" deleted"), "{deleted}");
        for kind in ["deployment", "service", "ingress"] {
            assert!(run(&["get", kind, "web"]).stderr.contains("NotFound"), "{kind}");
        }
        cluster.wait_for("no pods", Duration::from_secs(15), |cluster| {
            let left = cluster.items(1, &["pods", "-n", namespace]);
            if left.is_empty() { Ok(()) } else { Err(left.len()) }
        });
    });
}

#[test]
fn a_rollout_is_undone_and_pauses() {
    needs_hosts!();
    with_each(|cluster, version, namespace| {
        let run = |arguments: &[&str]| kubectl(cluster, version, &[&["-n", namespace], arguments].concat());
        let rollout = |word: &str, more: &[&str]| run(&[&["rollout", word, "deployment/web"], more].concat());
        let revisions = || -> Vec<u32> {
            let history = rollout("history", &[]).expect("rollout history");
            let numbers = history
                .lines()
                .filter_map(|line| line.split(' ').next()?.parse().ok());
            numbers.collect()
        };
        // Of the pods that run when the rollout is over.
        let value = || {
            rollout("status", &["--timeout=60s"]).expect("rollout status");
            let env = "jsonpath={.spec.template.spec.containers[0].env[0].value}";
            run(&["get", "deployment", "web", "-o", env]).expect("get")
        };
        let file = cluster.write("kubectl.yaml", &there(&web(1, "1", HELLO)));
        run(&["apply", "-f", &file]).expect("apply");
        for number in ["2", "3"] {
            value();
            let set = format!("VERSION={number}");
            run(&["set", "env", "deployment/web", &set]).expect("set env");
        }
        assert_eq!((value().as_str(), revisions()), ("3", vec![1, 2, 3]));
        let shown = rollout("history", &["--revision=2"]).expect("rollout history");
        assert!(shown.contains("VERSION:\t2"), "{shown}");

        // The last but one becomes the newest, with a number of its own.
        let undone = rollout("undo", &[]).expect("rollout undo");
        assert_eq!(undone, "deployment.apps/web rolled back\n");
        assert_eq!((value().as_str(), revisions()), ("2", vec![1, 3, 4]));
        rollout("undo", &["--to-revision=1"]).expect("rollout undo");
        assert_eq!((value().as_str(), revisions()), ("1", vec![3, 4, 5]));
        rollout("undo", &["--to-revision=1"]).refuses(1, &["unable to find specified revision 1 in history"]);
        let skipped = rollout("undo", &["--to-revision=5"]).expect("rollout undo");
        assert!(skipped.contains("skipped rollback"), "{skipped}");

        // While it is paused, nothing rolls.
        rollout("pause", &[]).expect("rollout pause");
        run(&["set", "env", "deployment/web", "VERSION=6"]).expect("set env");
        rollout("undo", &[]).refuses(1, &["rollout resume"]);
        assert_eq!(revisions(), [3, 4, 5]);
        rollout("resume", &[]).expect("rollout resume");
        assert_eq!((value().as_str(), revisions()), ("6", vec![3, 4, 5, 6]));
        rollout("restart", &[]).expect("rollout restart");
        assert_eq!((value().as_str(), revisions()), ("6", vec![3, 4, 5, 6, 7]));
        run(&["delete", "-f", &file, "--timeout=30s"]).expect("delete -f");
    });
}

#[test]
fn server_side_apply_and_what_is_refused() {
    needs_hosts!();
    with_each(|cluster, version, namespace| {
        let run = |arguments: &[&str]| kubectl(cluster, version, &[&["-n", namespace], arguments].concat());
        // Before 1.29 kubectl takes what begins with a brace for JSON.
        let service = |ports: &str, colour: &str| {
            cluster.write(
                "service.yaml",
                &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, labels: {{colour: {colour}}}}}\nspec: {{selector: {{app: s}}, ports: [{ports}]}}\n"),
            )
        };
        let file = service("{name: a, port: 80}", "red");
        let applied = run(&["apply", "--server-side", "-f", &file]).expect("apply --server-side");
        assert_eq!(applied, "service/s serverside-applied\n");
        // The same by another manager is no conflict, another value is; it names manager and field, and force wins.
        run(&["apply", "--server-side", "--field-manager=other", "-f", &file]).expect("the same value");
        let file = service("{name: a, port: 80}", "blue");
        let refused = run(&["apply", "--server-side", "--field-manager=other", "-f", &file]);
        refused.refuses(1, &["conflict", ".metadata.labels.colour", "kubectl"]);
        run(&[
            "apply",
            "--server-side",
            "--field-manager=other",
            "--force-conflicts",
            "-f",
            &file,
        ])
        .expect("--force-conflicts");
        let colour = run(&["get", "service", "s", "-o", "jsonpath={.metadata.labels.colour}"]).expect("get");
        assert_eq!(colour, "blue");

        // Refused: each names what and why.
        run(&["get", "service", "none"]).refuses(1, &["NotFound", "services \"none\" not found"]);
        run(&["delete", "deployment", "none"])
            .refuses(1, &["NotFound", "deployments.apps \"none\" not found"]);
        run(&["get", "widgets"]).refuses(1, &["the server doesn't have a resource type \"widgets\""]);
        let file = service("{name: a, port: 99999}", "red");
        run(&["apply", "-f", &file]).refuses(1, &["spec.ports[0].port", "99999", "invalid"]);
        run(&["create", "-f", &service("{name: a, port: 80}", "red")])
            .refuses(1, &["AlreadyExists", "services \"s\" already exists"]);
        let widget = cluster.write(
            "widget.yaml",
            "apiVersion: v1\nkind: Widget\nmetadata: {name: w}\n",
        );
        run(&["apply", "-f", &widget]).refuses(1, &["Widget", "v1"]);
        let strange = cluster.write("strange.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: t}\nspec: {colour: red, selector: {a: b}, ports: [{port: 1}]}\n");
        run(&["apply", "-f", &strange]).refuses(1, &["unknown field", "spec.colour"]);
        let ran = run(&["apply", "-f", &strange, "--validate=warn"]);
        assert!(ran.ok && ran.stderr.contains("spec.colour"), "{ran:?}");
        let elsewhere = cluster.write("elsewhere.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: nowhere}\nspec: {ports: [{port: 1}]}\n");
        run(&["apply", "-f", &elsewhere, "--namespace=nowhere"]).refuses(1, &["NotFound", "nowhere"]);

        // Two write at once: the one that read an older version is told.
        let old = run(&["get", "service", "s", "-o", "yaml"]).expect("get");
        run(&["label", "service", "s", "by=another"]).expect("label");
        let old = cluster.write("old.yaml", &old.replace("colour: blue", "colour: green"));
        run(&["replace", "-f", &old]).refuses(1, &["Conflict", "the object has been modified"]);
        // What may not change.
        let deployment = cluster.write("deployment.yaml", &web(0, "1", HELLO));
        run(&["apply", "-f", &deployment]).expect("apply");
        let deployment = cluster.write(
            "deployment.yaml",
            &web(0, "1", HELLO).replace("app: web", "app: other"),
        );
        run(&["apply", "-f", &deployment]).refuses(1, &["spec.selector", "immutable"]);
        // Nothing is changed by a dry run.
        run(&["delete", "deployment", "web", "--dry-run=server"]).expect("dry run");
        run(&["get", "deployment", "web"]).expect("it is still there");
        run(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "-f",
            &service("{name: a, port: 80}", "violet"),
            "--force-conflicts",
        ])
        .expect("dry run");
        assert_eq!(
            run(&["get", "service", "s", "-o", "jsonpath={.metadata.labels.colour}"]).expect("get"),
            "blue"
        );
        // Discovery.
        let kinds = run(&["api-resources", "-o", "name"]).expect("api-resources");
        for kind in [
            "pods",
            "services",
            "namespaces",
            "nodes",
            "events",
            "deployments.apps",
            "replicasets.apps",
            "ingresses.networking.k8s.io",
        ] {
            assert!(kinds.lines().any(|line| line == kind), "{kind} is in {kinds}");
        }
        run(&["version"]).expect("version");
    });
}

#[test]
fn a_node_takes_pods_again_after_uncordon() {
    needs_hosts!();
    let Some(kubectl) = versions().pop() else {
        eprintln!("skipped: no kubectl on this machine");
        return;
    };
    let cluster = two_hosts();
    for (verb, cordoned) in [
        ("cordon", true),
        ("uncordon", false),
        ("cordon", true),
        ("uncordon", false),
    ] {
        cluster
            .with_kubeconfig(1, &kubectl, &[verb, "node2"])
            .expect(verb);
        cluster.wait_for(verb, Duration::from_secs(5), |cluster| {
            let seen =
                [1, 2].map(|host| cluster.get(host, &["node", "node2"])["spec"]["unschedulable"] == true);
            if seen == [cordoned; 2] { Ok(()) } else { Err(seen) }
        });
    }
    cluster.apply(1, &there(&web(2, "1", HELLO)));
    wait_ready(&cluster, 1, "app=web", 2);

    // A budget keeps what it needs.
    let kubectl_of = |arguments: &[&str]| cluster.with_kubeconfig(1, &kubectl, arguments);
    let budget = ["create", "pdb", "web", "--min-available=2", "--selector=app=web"];
    kubectl_of(&budget).expect("create pdb");
    cluster.wait_for("the budget's status", Duration::from_secs(5), |_| {
        let healthy = ["get", "pdb", "web", "-o", "jsonpath={.status.currentHealthy}"];
        let ran = kubectl_of(&healthy);
        if ran.stdout == "2" { Ok(()) } else { Err(ran) }
    });
    let refused = kubectl_of(&["drain", "node2", "--timeout=7s"]);
    assert!(
        !refused.ok
            && refused
                .stderr
                .contains("would violate the pod's disruption budget"),
        "{refused:?}"
    );
    kubectl_of(&["delete", "pdb", "web"]).expect("delete pdb");

    // The pods may be on that node alone, so that those that come after them wait.
    let drained = cluster
        .with_kubeconfig(1, &kubectl, &["drain", "node2", "--timeout=60s"])
        .expect("drain");
    assert_eq!(drained.matches(" evicted").count(), 2, "{drained}");
    assert!(drained.contains("node/node2 drained"), "{drained}");
    cluster.wait_for("no pod is left on node2", Duration::from_secs(30), |cluster| {
        let pods = cluster.get(1, &["pods", "-l", "app=web"]);
        let placed = pods["items"].as_array().into_iter().flatten();
        let placed = placed.filter(|pod| pod["spec"]["nodeName"].is_string()).count();
        if placed == 0 { Ok(()) } else { Err(placed) }
    });
    cluster
        .with_kubeconfig(1, &kubectl, &["uncordon", "node2"])
        .expect("uncordon");
    wait_ready(&cluster, 1, "app=web", 2);
}

#[test]
fn every_namespace_has_what_kubernetes_gives_it() {
    needs_hosts!();
    let Some(kubectl) = versions().pop() else {
        eprintln!("skipped: no kubectl on this machine");
        return;
    };
    let cluster = two_hosts();
    let run = |arguments: &[&str]| cluster.with_kubeconfig(1, &kubectl, arguments).expect("kubectl");
    let wait_for = |what: &str, arguments: &[&str], expected: &dyn Fn(&str) -> bool| {
        cluster.wait_for(what, Duration::from_secs(10), |cluster| {
            let ran = cluster.with_kubeconfig(2, &kubectl, arguments);
            if expected(&ran.stdout) { Ok(()) } else { Err(ran) }
        });
    };
    let addresses = "jsonpath={.subsets[*].addresses[*].ip}";
    wait_for(
        "the API's endpoints",
        &["get", "endpoints", "kubernetes", "-o", addresses],
        &|ips| ips.split(' ').count() == 2,
    );
    run(&["create", "namespace", "shop"]);
    let names = ["-n", "shop", "get", "sa,cm", "-o", "name"];
    let is_whole = |text: &str| text == "serviceaccount/default\nconfigmap/kube-root-ca.crt\n";
    wait_for("what a namespace has", &names, &is_whole);

    // Who takes it away gets it again, as in Kubernetes: a new one.
    let uid = ["get", "svc", "kubernetes", "-o", "jsonpath={.metadata.uid}"];
    let before = run(&uid);
    run(&["delete", "svc", "kubernetes", "--timeout=20s"]);
    wait_for("the API's service", &uid, &|uid| {
        !uid.is_empty() && *uid != before
    });
    run(&["-n", "shop", "delete", "sa,cm", "--all", "--timeout=20s"]);
    wait_for("what a namespace has", &names, &is_whole);

    // Its certificate is the API's.
    let ca = run(&[
        "-n",
        "shop",
        "get",
        "cm",
        "kube-root-ca.crt",
        "-o",
        "jsonpath={.data.ca\\.crt}",
    ]);
    let file = cluster.write("ca.crt", &ca);
    let port = run(&["get", "svc", "kubernetes", "-o", "jsonpath={.spec.ports[0].port}"]);
    for host in [1, 2] {
        let server = format!("kubernetes.default.svc:{port}");
        let resolved = format!("{server}:{}", address(host));
        let url = format!("https://{server}/version");
        let curl = ["curl", "-sS", "--cacert", &file, "--resolve", &resolved, &url];
        let version = cluster.exec(1, &curl).expect("curl");
        assert!(version.contains("podman-swarm"), "{version}");
    }
    run(&["delete", "namespace", "shop", "--timeout=30s"]);
}

#[test]
fn what_a_deployment_owns_stays_or_goes_first_as_its_deletion_asks() {
    needs_hosts!();
    let Some(kubectl) = versions().pop() else {
        eprintln!("skipped: no kubectl on this machine");
        return;
    };
    let cluster = two_hosts();
    let run = |arguments: &[&str]| cluster.with_kubeconfig(1, &kubectl, arguments).expect("kubectl");
    cluster.apply(1, &there(&web(2, "1", HELLO)));
    wait_ready(&cluster, 1, "app=web", 2);
    let pods = cluster.containers(2);
    run(&["delete", "deployment", "web", "--cascade=orphan", "--timeout=20s"]);
    assert_eq!(run(&["get", "deployments", "-o", "name"]), "");
    let set = run(&["get", "rs", "-o", "name"]);
    let owners = ["get", set.trim(), "-o", "jsonpath={.metadata.ownerReferences}"];
    assert_eq!(run(&owners), "");
    // What is left keeps its pods.
    run(&["scale", set.trim(), "--replicas=3"]);
    wait_ready(&cluster, 1, "app=web", 3);
    let left = cluster.containers(2);
    assert!(pods.iter().all(|pod| left.contains(pod)), "{pods:?} {left:?}");

    run(&["delete", set.trim(), "--cascade=foreground", "--timeout=60s"]);
    assert_eq!(run(&["get", "pods,rs", "-o", "name"]), "");
    assert_eq!(cluster.containers(2), Vec::<String>::new());
}
