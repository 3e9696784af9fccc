//! psctl as a user meets it, on a real node: what it takes, what it prints, and how it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Ran, needs_hosts, program, text};
use crate::stories::{HELLO, wait_containers, wait_ready, web};

/// Runs psctl on host 1 with only these variables, for instance to see where it connects to.
fn bare(cluster: &Cluster, host: usize, variables: &[&str], arguments: &[&str]) -> Ran {
    let psctl = program("psctl");
    let path = ["env", "-i", "PATH=/usr/bin:/bin"];
    cluster.exec(
        host,
        &[path.as_slice(), variables, &[psctl.to_str().unwrap()], arguments].concat(),
    )
}

/// The words of each line of a table.
fn rows(table: &str) -> Vec<Vec<&str>> {
    // Columns are three spaces apart, as kubectl prints them.
    table
        .lines()
        .map(|line| {
            line.split("   ")
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .collect()
        })
        .collect()
}

#[test]
fn apply_get_describe_and_delete() {
    needs_hosts!();
    let cluster = Cluster::with_flags(1, &["--node-labels=disk=ssd"]);
    let run = |arguments: &[&str]| cluster.psctl(1, arguments);

    // A folder: its manifests, in any of three endings, and nothing else.
    let documents = web(2, "1", HELLO);
    let documents: Vec<&str> = documents.split("---").collect();
    cluster.write("dir/a.yaml", documents[0]);
    cluster.write("dir/b.yml", documents[1]);
    cluster.write("dir/README.txt", "not a manifest: [");
    cluster.write(
        "dir/below/c.yaml",
        "{apiVersion: v1, kind: Namespace, metadata: {name: below}}",
    );
    let directory = cluster.scratch("dir");
    let directory = directory.to_str().unwrap();
    let applied = run(&["apply", "-f", directory]).expect("apply -f DIR");
    assert_eq!(applied, "deployment.apps/web created\nservice/web created\n");
    let applied = run(&["apply", "-f", directory, "-R"]).expect("apply -R -f DIR");
    assert_eq!(
        applied,
        "namespace/below created\ndeployment.apps/web unchanged\nservice/web unchanged\n"
    );

    // Standard input.
    let manifest = cluster.write(
        "stdin.yaml",
        &web(2, "1", HELLO).replace("{name: web}", "{name: web, labels: {tier: front}}"),
    );
    let psctl = program("psctl");
    let piped = |words: &str| {
        let kubeconfig = cluster.data(1).join("admin.kubeconfig");
        let line = format!(
            "KUBECONFIG={} {} {words} < {manifest}",
            kubeconfig.display(),
            psctl.display()
        );
        cluster.exec(1, &["sh", "-c", &line])
    };
    let applied = piped("apply -f -").expect("apply -f -");
    assert!(
        applied.contains("deployment.apps/web configured")
            && applied.contains("ingress.networking.k8s.io/web created"),
        "{applied}"
    );
    wait_ready(&cluster, 1, "app=web", 2);

    // Tables, as kubectl prints them, with short names.
    for (names, columns) in [
        (["pods", "pod", "po"], "NAME READY STATUS RESTARTS AGE"),
        (
            ["deployments", "deployment", "deploy"],
            "NAME READY UP-TO-DATE AVAILABLE AGE",
        ),
        (
            ["replicasets", "replicaset", "rs"],
            "NAME DESIRED CURRENT READY AGE",
        ),
        (
            ["services", "service", "svc"],
            "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE",
        ),
        (
            ["ingresses", "ingress", "ing"],
            "NAME CLASS HOSTS ADDRESS PORTS AGE",
        ),
        (["nodes", "node", "no"], "NAME STATUS ROLES AGE VERSION"),
        (["namespaces", "namespace", "ns"], "NAME STATUS AGE"),
    ] {
        for name in names {
            let table = run(&["get", name]).expect(name);
            assert_eq!(rows(&table)[0].join(" "), columns, "{name}");
            assert!(table.lines().count() > 1, "{name}: {table}");
        }
        let headless = run(&["get", names[0], "--no-headers"]).expect("--no-headers");
        assert!(!headless.contains("NAME"), "{headless}");
    }
    let deployment = run(&["get", "deploy", "web"]).expect("get");
    assert_eq!(
        rows(&deployment)[1][..4],
        ["web", "2/2", "2", "2"],
        "{deployment}"
    );
    let wide = run(&["get", "po", "-o", "wide"]).expect("wide");
    assert!(
        wide.lines().next().unwrap().contains("NODE") && wide.contains("node1") && wide.contains("10.244."),
        "{wide}"
    );
    let wide = run(&["get", "deploy", "-o", "wide"]).expect("wide");
    assert!(
        wide.contains("CONTAINERS") && wide.contains(HELLO) && wide.contains("app=web"),
        "{wide}"
    );
    let labels = run(&["get", "po", "--show-labels"]).expect("--show-labels");
    assert!(
        labels.lines().next().unwrap().contains("LABELS") && labels.contains("app=web"),
        "{labels}"
    );
    assert!(
        run(&["get", "no", "--show-labels"])
            .expect("nodes")
            .contains("disk=ssd")
    );

    // Objects: names, YAML that can be applied again, JSON of one and of many.
    assert_eq!(
        run(&["get", "deploy", "-o", "name"]).expect("name"),
        "deployment.apps/web\n"
    );
    assert_eq!(
        run(&["get", "deploy/web", "svc/web", "-o", "name"]).expect("name"),
        "deployment.apps/web\nservice/web\n"
    );
    assert_eq!(
        run(&["get", "deploy,svc", "-o", "name"]).expect("name"),
        "deployment.apps/web\nservice/kubernetes\nservice/web\n"
    );
    let json: Value =
        serde_json::from_str(&run(&["get", "deploy", "web", "-o", "json"]).expect("json")).unwrap();
    assert_eq!(
        (text(&json, "/kind"), text(&json, "/apiVersion")),
        ("Deployment".into(), "apps/v1".into())
    );
    let json: Value = serde_json::from_str(&run(&["get", "po", "-o", "json"]).expect("json")).unwrap();
    assert_eq!(
        (text(&json, "/kind"), json["items"].as_array().map(Vec::len)),
        ("List".into(), Some(2))
    );
    let yaml = run(&["get", "svc", "web", "-o", "yaml"]).expect("yaml");
    assert!(
        yaml.contains("kind: Service\n") && yaml.contains("targetPort: 8080"),
        "{yaml}"
    );
    let again = cluster.write("again.yaml", &yaml);
    run(&["apply", "-f", &again]).expect("what was printed as YAML can be applied");

    // Namespaces and labels.
    cluster.apply(1, "{apiVersion: v1, kind: Service, metadata: {name: far, namespace: below}, spec: {selector: {app: x}, ports: [{port: 1}]}}");
    assert_eq!(
        run(&["get", "svc", "-n", "below", "-o", "name"]).expect("-n"),
        "service/far\n"
    );
    let all = run(&["get", "svc", "-A"]).expect("-A");
    assert!(
        all.starts_with("NAMESPACE") && all.contains("below") && all.contains("web"),
        "{all}"
    );
    for (selector, count) in [
        ("app=web", 2),
        ("app==web", 2),
        ("app!=web", 0),
        ("app in (web,x)", 2),
        ("app notin (web)", 0),
        ("!app", 0),
        ("app", 2),
    ] {
        let names = run(&["get", "po", "-l", selector, "-o", "name"]).expect(selector);
        assert_eq!(names.lines().count(), count, "{selector}: {names}");
    }
    let none = run(&["get", "po", "-n", "below"]);
    assert!(
        none.ok && none.stdout.is_empty() && none.stderr.contains("No resources found in below namespace"),
        "{none:?}"
    );

    // Describe, with events.
    let pod = run(&["get", "po", "-o", "name"]).expect("name");
    let pod = pod.lines().next().unwrap().trim_start_matches("pod/").to_owned();
    let described = run(&["describe", "pod", &pod]).expect("describe pod");
    for word in [
        pod.as_str(),
        "node1",
        "10.244.",
        HELLO,
        "Running",
        "Events:",
        "Started",
    ] {
        assert!(described.contains(word), "{word} is missing: {described}");
    }
    let described = run(&["describe", "deploy", "web"]).expect("describe deployment");
    for word in [
        "Replicas:",
        "Selector:",
        "Strategy",
        HELLO,
        "Events:",
        "ScalingReplicaSet",
    ] {
        assert!(described.contains(word), "{word} is missing: {described}");
    }
    for (kind, words) in [
        ("svc", ["Selector:", "Port:", "8080"]),
        ("ing", ["web.test", "80", "Rules"]),
    ] {
        let described = run(&["describe", kind, "web"]).expect("describe");
        for word in words {
            assert!(described.contains(word), "{word} is missing: {described}");
        }
    }
    assert!(
        run(&["describe", "node", "node1"])
            .expect("describe node")
            .contains("disk=ssd")
    );

    // What it was before, and back to that.
    let table = run(&["history", "deploy/web"]).expect("history");
    assert!(
        table.starts_with("CHANGE ") && table.contains("metadata.labels.tier") && table.contains("\"front\""),
        "{table}"
    );
    let history = || -> Vec<Value> {
        let json = run(&["history", "deploy", "web", "-o", "json"]).expect("history -o json");
        let json: Value = serde_json::from_str(&json).unwrap();
        json["changes"].as_array().unwrap().clone()
    };
    let changes = history();
    let told = |change: &Value| ["/through", "/manager", "/node"].map(|field| text(change, field));
    assert_eq!(told(&changes[0]), ["apply", "psctl", "node1"]);
    let first = text(&changes[0], "/change");
    let labelled = changes
        .iter()
        .find(|change| change["fields"][0]["new"] == "front");
    let labelled = text(labelled.expect("the change of the label"), "/change");
    let ran = run(&["diff", "deploy/web", "--to", &labelled]);
    assert!(
        ran.code == Some(1) && ran.stdout.contains("\n+ metadata.labels.tier: \"front\"\n"),
        "{ran:?}"
    );
    let ran = run(&["diff", "deploy/web", "--from", &first, "--to", &first]);
    assert!(ran.ok && ran.stdout.is_empty(), "{ran:?}");
    let undone = run(&["undo", "deploy/web", "--to", &first, "--dry-run"]).expect("undo --dry-run");
    assert!(
        undone.contains("(dry run)\n") && undone.contains("- metadata.labels.tier"),
        "{undone}"
    );
    assert_eq!(history().len(), changes.len());
    let undone = run(&["undo", "deploy/web", "--to", &first]).expect("undo");
    assert_eq!(undone, format!("deployment.apps/web undone to {first}\n"));
    assert_eq!(told(history().last().unwrap()), ["api", "psctl", "node1"]);
    assert_eq!(
        text(&cluster.get(1, &["deploy", "web"]), "/metadata/labels/tier"),
        ""
    );
    let undone = run(&["undo", "deploy/web", "--to", &first]).expect("undo again");
    assert!(undone.contains("unchanged"), "{undone}");

    // Deletion by file: what it names, in the same folder form as apply, and it waits until all is gone.
    let deleted = run(&["delete", "-f", directory]).expect("delete -f");
    assert!(
        deleted.contains("deployment.apps \"web\" deleted") && deleted.contains("service \"web\" deleted"),
        "{deleted}"
    );
    assert!(!run(&["get", "deploy", "web"]).ok);
    run(&["get", "ing", "web"]).expect("what the files do not name stays");
    run(&["delete", "ing/web"]).expect("delete by name");
    wait_containers(&cluster, &[1], 0);
}

#[test]
fn what_is_wrong_is_said_on_stderr_with_an_exit_code() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let run = |arguments: &[&str]| cluster.psctl(1, arguments);
    let manifest = |text: &str| cluster.write("wrong.yaml", text);

    // Refused or failed: 1, nothing on stdout.
    for (arguments, words) in [
        (vec!["get", "po", "none"], vec!["none", "not found"]),
        (vec!["delete", "svc", "none"], vec!["none", "not found"]),
        (vec!["describe", "deploy", "none"], vec!["none", "not found"]),
        (
            vec!["history", "deploy", "none"],
            vec!["none", "not found", "deleted"],
        ),
        (
            vec!["undo", "deploy/none", "--to", "1"],
            vec!["none", "not found"],
        ),
        (
            vec!["apply", "-f", "/nonexistent.yaml"],
            vec!["/nonexistent.yaml", "No such file"],
        ),
    ] {
        let ran = run(&arguments);
        ran.refuses(1, &words);
        assert!(ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
    }
    // Of `diff`, 1 is a difference.
    let ran = run(&["diff", "deploy/none"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("deleted"), "{ran:?}");
    let service = |ports: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{selector: {{a: b}}, ports: [{ports}]}}}}"
        )
    };
    for (text, words) in [
        (service("{port: 99999}"), vec!["spec.ports[0].port", "99999"]),
        (
            service("{port: 1, protocol: XYZ}"),
            vec!["spec.ports[0].protocol", "XYZ"],
        ),
        (service("{port: abc}"), vec!["spec.ports[0].port", "abc"]),
        (service("{port: 1}").replace("Service", "Widget"), vec!["Widget"]),
        (service("{port: 1}").replace("v1", "v9"), vec!["v9"]),
        (
            service("{port: 1}").replace("name: s", "name: Not_A_Name"),
            vec!["metadata.name", "Not_A_Name"],
        ),
        (
            service("{port: 1}").replace("name: s", "name: s, namespace: none"),
            vec!["none", "not found"],
        ),
        ("kind: [\n".into(), vec!["wrong.yaml: document 1, line"]),
        (
            "{kind: Namespace, kind: Namespace, apiVersion: v1, metadata: {name: twice}}".into(),
            vec!["kind"],
        ),
    ] {
        let ran = run(&["apply", "-f", &manifest(&text)]);
        ran.refuses(1, &words);
        assert!(ran.stdout.is_empty(), "{text}: {ran:?}");
    }
    // All faults at once, and nothing of a stream with a fault is stored.
    let stream = "{apiVersion: v1, kind: Namespace, metadata: {name: good}}\n---\n".to_owned()
        + &service("{port: 0}, {port: -1}");
    run(&["apply", "-f", &manifest(&stream)]).refuses(1, &["spec.ports[0].port", "spec.ports[1].port"]);
    run(&["get", "ns", "good"]).refuses(1, &["not found"]);

    // Unknown fields: applied, warned about on stderr, and kept.
    let ran = run(&[
        "apply",
        "-f",
        &manifest(&service("{port: 80, portt: 81}").replace("spec: {", "spec: {colour: red, ")),
    ]);
    assert!(ran.ok && ran.stdout == "service/s created\n", "{ran:?}");
    for field in ["spec.colour", "spec.ports[0].portt"] {
        assert!(
            ran.stderr
                .lines()
                .any(|line| line.starts_with("Warning:") && line.contains(&format!("{field}\""))),
            "{field}: {ran:?}"
        );
    }
    assert_eq!(text(&cluster.get(1, &["svc", "s"]), "/spec/colour"), "red");

    // Wrong usage: 2.
    for arguments in [
        vec!["get"],
        vec!["get", "widgets"],
        vec!["get", "po", "-o", "table"],
        vec!["apply"],
        vec!["delete"],
        vec!["delete", "po"],
        vec!["frobnicate"],
        vec!["history", "deploy"],
        vec!["history", "deploy/a", "deploy/b"],
        vec!["undo", "deploy/a"],
        vec!["diff"],
        vec!["get", "po", "--no-such-flag"],
    ] {
        let ran = run(&arguments);
        assert!(
            ran.code == Some(2) && ran.stdout.is_empty() && !ran.stderr.is_empty(),
            "{arguments:?}: {ran:?}"
        );
    }
    // A reader that goes away is no error.
    let kubeconfig = cluster.data(1).join("admin.kubeconfig");
    let line = format!(
        "KUBECONFIG={} {} get ns | true",
        kubeconfig.display(),
        program("psctl").display()
    );
    let ran = cluster.exec(1, &["sh", "-c", &line]);
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
}

#[test]
fn it_finds_its_server_by_flag_variable_file_and_on_the_node() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let token = cluster.secret(1, "api.token");
    let home = cluster.scratch("home");
    std::fs::create_dir_all(&home).unwrap();
    let home_variable = format!("HOME={}", home.display());
    let server = "http://127.0.0.1:8080";
    let (server_variable, token_variable) =
        (format!("PSCTL_SERVER={server}"), format!("PSCTL_TOKEN={token}"));
    let nodes = ["get", "no", "-o", "name"];
    let home_only = [home_variable.as_str()];

    // Its own version it knows by itself.
    for arguments in [&["version"][..], &["version", "--client"]] {
        let alone = bare(&cluster, 1, &home_only, arguments);
        assert!(alone.ok && alone.stdout.starts_with("psctl "), "{alone:?}");
        assert_eq!(alone.stderr.is_empty(), arguments.len() == 2, "{alone:?}");
    }
    let asked = bare(
        &cluster,
        1,
        &home_only,
        &["version", "--server=http://127.0.0.1:9"],
    );
    asked.refuses(1, &["127.0.0.1:9"]);
    assert!(asked.stdout.starts_with("psctl "), "{asked:?}");
    // Nothing known: told so, with what to do. (The data directory of this node is not where it would look.)
    bare(&cluster, 1, &home_only, &nodes).refuses(1, &["server", "set-server"]);

    let by_flag = [&nodes[..], &["--server", server, "--token", &token]].concat();
    assert_eq!(
        bare(&cluster, 1, &home_only, &by_flag).expect("flags"),
        "node/node1\n"
    );
    let variables = [home_variable.as_str(), &server_variable, &token_variable];
    assert_eq!(
        bare(&cluster, 1, &variables, &nodes).expect("variables"),
        "node/node1\n"
    );
    // A flag beats its variable.
    let wrong = [
        home_variable.as_str(),
        "PSCTL_SERVER=http://127.0.0.1:9",
        "PSCTL_TOKEN=wrong",
    ];
    assert_eq!(
        bare(&cluster, 1, &wrong, &by_flag).expect("flags before variables"),
        "node/node1\n"
    );
    let ran = bare(&cluster, 1, &wrong, &nodes);
    ran.refuses(1, &["127.0.0.1:9"]);
    let ran = bare(
        &cluster,
        1,
        &[home_variable.as_str(), &server_variable, "PSCTL_TOKEN=wrong"],
        &nodes,
    );
    ran.refuses(1, &["nauthorized"]);

    // Saved: only its owner may read it, and the token is not shown.
    let location = home.join(".psctl/config");
    assert_eq!(
        bare(&cluster, 1, &home_only, &["config", "get-location"])
            .expect("get-location")
            .trim(),
        location.to_str().unwrap()
    );
    bare(&cluster, 1, &home_only, &["config", "set-server", server]).expect("set-server");
    bare(&cluster, 1, &home_only, &["config", "set-token", &token]).expect("set-token");
    assert_eq!(
        bare(&cluster, 1, &home_only, &nodes).expect("saved"),
        "node/node1\n"
    );
    let view = bare(&cluster, 1, &home_only, &["config", "view"]).expect("view");
    assert!(view.contains(server) && !view.contains(&token), "{view}");
    let mode = cluster
        .exec(1, &["stat", "-c", "%a", location.to_str().unwrap()])
        .stdout;
    assert_eq!(mode.trim(), "600");
    let ran = bare(&cluster, 1, &home_only, &["config", "set-server", "nowhere"]);
    assert!(!ran.ok && ran.stderr.contains("nowhere"), "{ran:?}");
    // From afar, with the cluster's own CA: told what is missing, and then it is there.
    let far = [&nodes[..], &["--server", "https://10.231.0.1:8080"]].concat();
    bare(&cluster, 1, &home_only, &far).refuses(1, &["10.231.0.1:8080", "ca.crt", "set-ca", "KUBECONFIG"]);
    let no_ca = cluster.write("no-ca", "not a certificate");
    bare(&cluster, 1, &home_only, &["config", "set-ca", &no_ca]).refuses(1, &[&no_ca, "no certificate"]);
    let ca = cluster.data(1).join("ca.crt");
    bare(
        &cluster,
        1,
        &home_only,
        &["config", "set-ca", ca.to_str().unwrap()],
    )
    .expect("set-ca");
    assert_eq!(
        bare(&cluster, 1, &home_only, &far).expect("with the CA"),
        "node/node1\n"
    );
    let view = bare(&cluster, 1, &home_only, &["config", "view"]).expect("view");
    assert!(view.contains("BEGIN CERTIFICATE"), "{view}");
    // Variables beat what is saved.
    bare(&cluster, 1, &wrong, &nodes).refuses(1, &["127.0.0.1:9"]);
    let version = bare(&cluster, 1, &home_only, &["version"]).expect("version");
    assert!(
        version.contains("psctl ") && version.contains("server "),
        "{version}"
    );

    // On a node, as root, with nothing said: the node's own admin.kubeconfig, at its usual place.
    let psctl = program("psctl");
    let line = format!(
        "mount -t tmpfs none /var/lib && mkdir /var/lib/podman-swarm && cp {} /var/lib/podman-swarm/ && {} get no -o name",
        cluster.data(1).join("admin.kubeconfig").display(),
        psctl.display()
    );
    let empty = format!("HOME={}", cluster.scratch("empty").display());
    let ran = cluster.exec(
        1,
        &[
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            &empty,
            "unshare",
            "-m",
            "sh",
            "-c",
            &line,
        ],
    );
    assert_eq!(ran.expect("on a node"), "node/node1\n");

    // A watch sees what comes.
    let mut watch = cluster.psctl_child(1, &["get", "ns", "-w"]);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (reader, seen_too) = (watch.stdout.take().unwrap(), seen.clone());
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(std::io::BufReader::new(reader)).map_while(Result::ok) {
            *seen_too.lock().unwrap() += &(line + "\n");
        }
    });
    let wait_seen = |what: &str| {
        cluster.wait_for(
            &format!("the watch to print {what}"),
            Duration::from_secs(5),
            |_| {
                let text = seen.lock().unwrap().clone();
                if text.contains(what) { Ok(()) } else { Err(text) }
            },
        );
    };
    wait_seen("default");
    cluster.apply(1, "{apiVersion: v1, kind: Namespace, metadata: {name: new-one}}");
    wait_seen("new-one");
    _ = watch.kill();
    _ = watch.wait();
    let help = Command::new(program("psctl"))
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in [
        "apply",
        "get",
        "describe",
        "delete",
        "config",
        "version",
        "PSCTL_SERVER",
        "PSCTL_TOKEN",
    ] {
        assert!(help.contains(word), "{word} is in the help");
    }
}

#[test]
fn delete_reads_the_files_that_apply_reads() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let namespace = |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n");
    cluster.write("tree/top.yaml", &namespace("top"));
    cluster.write("tree/below/deep.yaml", &namespace("deep"));
    let tree = cluster.scratch("tree");
    let tree = tree.to_str().unwrap();
    cluster.psctl(1, &["apply", "-R", "-f", tree]).expect("apply -R");
    let deleted = cluster.psctl(1, &["delete", "-f", tree]).expect("delete -f");
    assert_eq!(deleted, "namespace \"top\" deleted\n", "without -R, as apply");
    cluster
        .psctl(1, &["get", "ns", "deep"])
        .expect("what apply -f DIR does not name");
}

#[test]
fn the_wait_after_a_deletion_ends() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let run = |arguments: &[&str]| cluster.psctl(1, arguments);
    // Something that does not go by itself: nobody removes this finalizer.
    cluster.apply(
        1,
        "{apiVersion: v1, kind: Service, metadata: {name: stuck, finalizers: [example.com/never]}, spec: {ports: [{port: 1}]}}",
    );
    let ran = run(&["delete", "svc/stuck", "--timeout=1s"]);
    ran.refuses(1, &["service/stuck is still there after 1 s"]);
    assert_eq!(ran.stdout, "service \"stuck\" deleted\n");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for arguments in [
        ["version", "--server=http://127.0.0.1:9"],
        ["config", "get-location"],
    ] {
        // Gone before it says anything.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut psctl = Command::new(program("psctl"));
        let ended = psctl.args(arguments).stdout(writer).output().expect("psctl runs");
        assert_eq!(
            (
                ended.status.code(),
                String::from_utf8_lossy(&ended.stderr).as_ref()
            ),
            (Some(0), "")
        );
    }
}
