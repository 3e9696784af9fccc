//! Starting and ending an agent on real hosts: each mistake gets one clear error and its exit code; `leave` leaves
//! nothing behind; who may talk to the API.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Ran, address, needs_hosts, program, text};
use crate::stories::{HELLO, wait_ready, web};

/// Runs an agent that is not expected to stay; one that does is ended after 20 s, which gives code 124.
fn start(cluster: &Cluster, host: usize, flags: &[&str]) -> Ran {
    let (agent, name) = (program("podman-swarm-agent"), format!("--node-name=node{host}"));
    let advertise = format!("--advertise-addr={}", address(host));
    let usual = ["timeout", "20", agent.to_str().unwrap(), &advertise];
    let named = if flags.iter().any(|flag| flag.starts_with("--node-name")) {
        vec![]
    } else {
        vec![name.as_str()]
    };
    cluster.exec(host, &[&usual, named.as_slice(), flags].concat())
}

/// The one line that tells the error; fails if there is none or more.
#[track_caller]
fn error_line(ran: &Ran) -> &str {
    let lines: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(lines.len(), 1, "one clear error: {ran:?}");
    lines[0]
}

#[test]
fn a_value_that_does_not_parse_is_wrong_usage() {
    needs_hosts!();
    let cluster = Cluster::hosts(1);
    let data = format!("--data-dir={}", cluster.data(1).display());
    let agent = program("podman-swarm-agent");
    let agent = agent.to_str().unwrap();
    let mut wrong = Vec::new();
    for (flag, value) in [
        ("--bind-addr", "nowhere"),
        ("--api-addr", "8080"),
        ("--advertise-addr", "here"),
        ("--advertise-addr", "0.0.0.0"),
        ("--node-name", "Not_A_Name"),
        ("--podman-socket", "tcp://127.0.0.1:1"),
        ("--tls-skip-verify", "perhaps"),
        ("--enable-ingress", "perhaps"),
        ("--enable-api-auth", "yes please"),
        ("--ingress-port", "0"),
        ("--ingress-tls-port", "70000"),
        ("--dns-port", "dns"),
        ("--dns-ttl", "-1"),
        ("--cluster-domain", "no_domain!"),
        ("--upstream-dns", "8.8.8.8:53,google"),
        ("--plain-http", "some"),
        ("--restart-grace", "soon"),
        ("--pod-cidr", "10.0.0.0/30"),
        ("--node-labels", "disk"),
        ("--node-labels", "kubernetes.io/hostname=x"),
        ("--gitops-repo", ""),
        ("--gitops-interval", "often"),
        ("--gitops-interval", "0s"),
        ("--log-level", ""),
        ("--bind-addr", "0.0.0.0:0"),
        ("--api-addr", "0.0.0.0:0"),
        ("--join", "10.231.0.1:7946"),
        ("--log-format", "xml"),
    ] {
        let flagged = format!("{flag}={value}");
        let named = value.rsplit(',').next().unwrap();
        let mut flags = vec!["timeout", "5", agent, &data, &flagged];
        if flag != "--advertise-addr" {
            flags.push("--advertise-addr=10.231.0.1");
        }
        let ran = cluster.exec(1, &flags);
        if ran.code != Some(2) || ![flag, named].iter().all(|word| ran.stderr.contains(word)) {
            wrong.push(format!("{flagged}: {ran:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        !cluster.data(1).exists(),
        "wrong usage touched the data directory"
    );
    // A variable is as good as its flag, and as wrong.
    cluster
        .exec(1, &["env", "DNS_PORT=x", "timeout", "5", agent, &data])
        .refuses(2, &["--dns-port", "x"]);
    // Empty, it is not set. (Nobody to leave: the flags were fine.)
    let empty = [
        "JOIN",
        "JOIN_TOKEN",
        "NODE_LABELS",
        "BIND_ADDR",
        "TLS_CERT",
        "ENABLE_INGRESS",
        "DNS_PORT",
        "LOG_LEVEL",
    ];
    let empty: Vec<String> = empty.iter().map(|variable| format!("{variable}=")).collect();
    let mut leave = vec!["env"];
    leave.extend(empty.iter().map(String::as_str));
    leave.extend(["timeout", "5", agent, "leave", &data]);
    cluster.exec(1, &leave).refuses(1, &["must be running", &data]);
    // Secrets are named, never shown.
    let secret = "c2VjcmV0IHRoYXQgaXMgdG9vIHNob3J0";
    for flags in [
        vec![format!("--encryption-key={secret}")],
        vec!["--join=10.231.0.1:7946".into(), format!("--join-token={secret}")],
    ] {
        let flags: Vec<&str> = [data.as_str()]
            .into_iter()
            .chain(flags.iter().map(String::as_str))
            .collect();
        let ran = start(&cluster, 1, &flags);
        assert!(
            !ran.ok
                && ran
                    .stderr
                    .contains(flags.last().unwrap().split('=').next().unwrap()),
            "{ran:?}"
        );
        assert!(!format!("{ran:?}").contains(secret), "{ran:?}");
    }
    start(&cluster, 1, &[&data, "--join-token=PSWTKN-1-x"]).refuses(2, &["--join-token", "--join"]);
    start(&cluster, 1, &[&data, "--tls-cert=/nonexistent"]).refuses(2, &["--tls-key", "--tls-ca"]);
    start(&cluster, 1, &[&data, "--no-such-flag"]).refuses(2, &["--no-such-flag"]);
    // Booleans have three forms, and all flags are in the help with their variables.
    let help = Command::new(program("podman-swarm-agent"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for (flag, variable) in [
        ("--node-name", "NODE_NAME"),
        ("--bind-addr", "BIND_ADDR"),
        ("--advertise-addr", "ADVERTISE_ADDR"),
        ("--api-addr", "API_ADDR"),
        ("--podman-socket", "PODMAN_SOCKET"),
        ("--data-dir", "DATA_DIR"),
        ("--join", "JOIN"),
        ("--join-token", "JOIN_TOKEN"),
        ("--encryption-key", "ENCRYPTION_KEY"),
        ("--tls-cert", "TLS_CERT"),
        ("--tls-key", "TLS_KEY"),
        ("--tls-ca", "TLS_CA"),
        ("--tls-skip-verify", "TLS_SKIP_VERIFY"),
        ("--ingress-port", "INGRESS_PORT"),
        ("--ingress-tls-port", "INGRESS_TLS_PORT"),
        ("--enable-ingress", "ENABLE_INGRESS"),
        ("--dns-port", "DNS_PORT"),
        ("--cluster-domain", "CLUSTER_DOMAIN"),
        ("--upstream-dns", "UPSTREAM_DNS"),
        ("--enable-api-auth", "ENABLE_API_AUTH"),
        ("--plain-http", "PLAIN_HTTP"),
        ("--restart-grace", "RESTART_GRACE"),
        ("--dns-ttl", "DNS_TTL"),
        ("--pod-cidr", "POD_CIDR"),
        ("--node-labels", "NODE_LABELS"),
        ("--log-level", "LOG_LEVEL"),
        ("--log-format", "LOG_FORMAT"),
        ("--gitops-repo", "GITOPS_REPO"),
        ("--gitops-branch", "GITOPS_BRANCH"),
        ("--gitops-path", "GITOPS_PATH"),
        ("--gitops-interval", "GITOPS_INTERVAL"),
    ] {
        assert!(
            help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}[")),
            "{flag} is in the help"
        );
        assert!(
            ["=", "]"]
                .iter()
                .any(|end| help.contains(&format!("env: {variable}{end}"))),
            "{variable} is in the help"
        );
    }
}

#[test]
fn what_is_in_the_way_is_named_with_its_remedy() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let data = format!("--data-dir={}", cluster.scratch("other").display());
    let ports = [
        "--bind-addr=0.0.0.0:7947",
        "--api-addr=0.0.0.0:8081",
        "--ingress-port=81",
        "--dns-port=54",
    ];
    let with = |flags: &[&str]| {
        let mut all: Vec<&str> = ports
            .into_iter()
            .filter(|port| {
                !flags
                    .iter()
                    .any(|flag| flag.split('=').next() == port.split('=').next())
            })
            .collect();
        if !flags.iter().any(|flag| flag.starts_with("--data-dir")) {
            all.push(&data);
        }
        all.extend(flags);
        start(&cluster, 1, &all)
    };
    // Ports in use: the running agent has them.
    for (flag, port) in [
        ("--bind-addr=0.0.0.0:7946", "7946"),
        ("--api-addr=0.0.0.0:8080", "8080"),
        ("--ingress-port=80", "80"),
        ("--dns-port=53", "53"),
    ] {
        let ran = with(&[flag]);
        ran.refuses(1, &[flag.split('=').next().unwrap(), port]);
        let line = error_line(&ran);
        assert!(
            ["in use", "another program"]
                .iter()
                .any(|words| line.contains(words)),
            "{line}"
        );
    }
    // An address of another machine is no matter of ports.
    for flag in ["--bind-addr=10.99.9.9:7947", "--api-addr=10.99.9.9:8081"] {
        let ran = with(&[flag]);
        let (name, address) = flag.split_once('=').unwrap();
        ran.refuses(1, &[name, address, "no address of this machine"]);
        error_line(&ran);
    }
    let tls = ["--tls-cert=/none/crt", "--tls-key=/none/key", "--tls-ca=/none/ca"];
    with(&tls).refuses(1, &["--tls-cert", "/none/crt", "name a PEM file"]);
    // The engine is not there, or is no engine.
    let ran = with(&["--podman-socket=unix:///run/podman/none.sock"]);
    ran.refuses(
        1,
        &[
            "--podman-socket",
            "/run/podman/none.sock",
            "systemctl enable --now podman.socket",
        ],
    );
    error_line(&ran);
    let file = cluster.write("no-socket", "");
    with(&[&format!("--podman-socket=unix://{file}")]).refuses(1, &["--podman-socket", &file]);
    // The data directory is another agent's, or cannot be written.
    let own = format!("--data-dir={}", cluster.data(1).display());
    // Told before the ports, which that agent has, too.
    let ran = with(&[&own, "--bind-addr=0.0.0.0:7946"]);
    ran.refuses(
        1,
        &[
            "--data-dir",
            cluster.data(1).to_str().unwrap(),
            "another agent",
            "choose another",
        ],
    );
    error_line(&ran);
    for directory in ["/proc/swarm", &format!("{file}/below")] {
        let ran = with(&[&format!("--data-dir={directory}")]);
        ran.refuses(1, &["--data-dir", directory]);
        error_line(&ran);
    }
    // None of that did anything to the one that runs, and what a refused start began leaves no trace.
    cluster.wait_healthy(1);
    assert_eq!(cluster.ready_nodes(1), 1);
    cluster.apply(
        1,
        "{apiVersion: v1, kind: Namespace, metadata: {name: still-there}}",
    );
}

#[test]
fn who_may_not_join_is_told_why() {
    needs_hosts!();
    let cluster = Cluster::hosts(2);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    let token = cluster.secret(1, "join.token");
    let data = format!("--data-dir={}", cluster.data(2).display());
    let try_join = |flags: &[&str]| {
        start(
            &cluster,
            2,
            &[&[data.as_str(), "--join=10.231.0.1:7946"], flags].concat(),
        )
    };

    // A token for another cluster: the CA is not the one that the token names. Its secret is not shown to anybody.
    let (head, secret) = token.split_once('.').unwrap();
    let mut parts: Vec<String> = head.split('-').map(str::to_owned).collect();
    parts[2] = parts[2]
        .chars()
        .map(|digit| if digit == '0' { '1' } else { '0' })
        .collect();
    let other = format!("--join-token={}.{secret}", parts.join("-"));
    let ran = try_join(&[&other]);
    ran.refuses(1, &["join token", "10.231.0.1:7946", "CA"]);
    error_line(&ran);
    assert!(
        !format!("{ran:?}").contains(secret),
        "a secret is in the log: {ran:?}"
    );

    let valid = format!("--join-token={token}");
    let ran = try_join(&[&valid, "--node-name=node1"]);
    ran.refuses(1, &["node1", "--node-name"]);
    error_line(&ran);

    let ran = try_join(&[
        &valid,
        "--encryption-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ]);
    ran.refuses(1, &["--encryption-key"]);
    error_line(&ran);

    try_join(&[]).refuses(2, &["--join-token"]);

    // Nobody was let in, and the right flags still are enough.
    assert_eq!(cluster.items(1, &["nodes"]).len(), 1);
    cluster.join(2, &[]);
    cluster.wait_healthy(2);
    cluster.wait_nodes(2);
    // A node that brings the cluster's own key is as good.
    assert_eq!(
        cluster.secret(1, "encryption.key"),
        cluster.secret(2, "encryption.key")
    );
}

#[test]
fn a_node_that_leaves_leaves_nothing_behind() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    cluster
        .exec(
            2,
            &[
                "podman",
                "run",
                "-d",
                "--name",
                "bystander",
                "--network=none",
                "localhost/busybox:test",
                "/bin/sleep",
                "1000",
            ],
        )
        .expect("podman run");
    cluster.apply(1, &web(4, "1", HELLO));
    let pods = wait_ready(&cluster, 1, "app=web", 4);
    assert!(pods.iter().any(|(_, node)| node == "node2"), "{pods:?}");
    let trace = |cluster: &Cluster| {
        let links = cluster.exec(2, &["ip", "-o", "link"]).stdout;
        let tables = cluster.exec(2, &["nft", "list", "tables"]).stdout;
        let spaces = cluster.exec(2, &["sh", "-c", "ls /run/netns"]).stdout;
        let routes = cluster.exec(2, &["ip", "route"]).stdout;
        (
            links.contains("psw"),
            tables.contains("swarm") || tables.contains("psw"),
            spaces.lines().any(|name| name.starts_with("psw-")),
            routes.contains("10.244."),
            cluster.containers(2).len(),
        )
    };
    let before = trace(&cluster);
    assert!(before.0 && before.2 && before.3 && before.4 > 0, "{before:?}");

    let agent = program("podman-swarm-agent");
    let data = format!("--data-dir={}", cluster.data(2).display());
    cluster
        .exec(2, &[agent.to_str().unwrap(), "leave", &data])
        .expect("leave");
    cluster.wait_for("the agent to end", Duration::from_secs(10), |cluster| {
        let left = cluster.exec(2, &["pgrep", "-x", "podman-swarm-ag"]).stdout;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(trace(&cluster), (false, false, false, false, 0));
    let left = cluster
        .exec(2, &["podman", "ps", "--format", "{{.Names}}"])
        .stdout;
    assert_eq!(left.trim(), "bystander", "what is not ours is not touched");

    cluster.wait_for("node2 to disappear", Duration::from_secs(5), |cluster| {
        let nodes: Vec<String> = cluster
            .items(1, &["nodes"])
            .iter()
            .map(|node| text(node, "/metadata/name"))
            .collect();
        if nodes == ["node1"] { Ok(()) } else { Err(nodes) }
    });
    cluster.wait_for("all pods on node1", Duration::from_secs(20), |cluster| {
        let pods = cluster.ready_pods(1, "app=web");
        if pods.len() == 4 && pods.iter().all(|(_, node)| node == "node1") {
            Ok(())
        } else {
            Err(pods)
        }
    });
    let routes = cluster.exec(1, &["ip", "route"]).stdout;
    assert!(!routes.contains("via 10.231.0.2"), "{routes}");
    // It may come back as a new node under its name.
    cluster.join(2, &[]);
    cluster.wait_healthy(2);
    cluster.wait_nodes(2);
    // Without the file that says who it is, nothing is guessed and no key replaced.
    cluster.kill_agent(2);
    let path = cluster.data(2);
    std::fs::rename(path.join("cluster.json"), path.join("kept")).unwrap();
    let key = std::fs::read_to_string(path.join("encryption.key")).unwrap();
    cluster.start(2, &[]);
    assert_eq!(cluster.wait_ended(2), Some(1));
    let log = std::fs::read_to_string(cluster.log(2)).unwrap();
    assert!(log.contains("no cluster.json"), "{log}");
    let key_now = std::fs::read_to_string(path.join("encryption.key")).unwrap();
    assert!(key_now == key && path.join("store").exists());
    std::fs::rename(path.join("kept"), path.join("cluster.json")).unwrap();
    // Interrupted while it sets aside what it held, a start finishes it.
    std::fs::write(path.join("leaving"), "").unwrap();
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    for kept in ["left/store", "left/encryption.key", "left.1/store"] {
        assert!(path.join(kept).exists(), "{kept}");
    }
    assert_eq!(cluster.ready_nodes(2), 1, "a cluster of its own");
}

#[test]
fn the_api_asks_for_a_token_and_for_tls_from_afar() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let (token, ca) = (cluster.secret(1, "api.token"), cluster.data(1).join("ca.crt"));
    let bearer = format!("Authorization: Bearer {token}");
    let call = |cluster: &Cluster, host: usize, url: &str, token: Option<&str>| {
        let mut all = vec![
            "curl",
            "-s",
            "-m",
            "5",
            "--cacert",
            ca.to_str().unwrap(),
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ];
        if let Some(token) = token {
            all.extend(["-H", token]);
        }
        all.push(url);
        cluster.exec(host, &all).stdout
    };
    let (own, lan) = ("127.0.0.1", address(1));
    for path in [
        "/api/v1/pods",
        "/api",
        "/apis",
        "/api/v1/manifests",
        "/api/v1/tokens",
        "/api/v1/dns/whitelist",
        "/api/v1/namespaces",
    ] {
        for url in [
            format!("http://{own}:8080{path}"),
            format!("https://{lan}:8080{path}"),
            format!("https://localhost:8080{path}"),
        ] {
            assert_eq!(call(&cluster, 1, &url, None), "401", "{url}");
            assert_eq!(
                call(&cluster, 1, &url, Some("Authorization: Bearer nothing")),
                "401",
                "{url}"
            );
            assert_ne!(call(&cluster, 1, &url, Some(&bearer)), "401", "{url}");
        }
    }
    let url = format!("{lan}:8080/api/v1/pods");
    // From another host: TLS with the cluster's CA, and plain HTTP not even with the token.
    assert_eq!(call(&cluster, 0, &format!("https://{url}"), Some(&bearer)), "200");
    assert_eq!(call(&cluster, 0, &format!("https://{url}"), None), "401");
    let plain = call(&cluster, 0, &format!("http://{url}"), Some(&bearer));
    assert!(plain == "000" || plain.starts_with('4'), "{plain}");
    assert_eq!(
        call(&cluster, 0, &format!("https://{lan}:8080/api/v1/health"), None),
        "200"
    );
    let unknown = cluster.exec(0, &["curl", "-s", "-m", "5", &format!("https://{url}")]);
    assert!(!unknown.ok, "a client without the CA must not trust it");
    let old = cluster.exec(
        0,
        &[
            "curl",
            "-s",
            "-m",
            "5",
            "--cacert",
            ca.to_str().unwrap(),
            "--tls-max",
            "1.1",
            &format!("https://{url}"),
        ],
    );
    assert!(!old.ok, "TLS 1.1");

    // SIGTERM with a watch open: 0 within 10 s, and the same data directory starts again with other settings.
    let mut watch = cluster.psctl_child(1, &["get", "pods", "-w"]);
    let start = Instant::now();
    assert_eq!(cluster.stop_agent(1), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "stopping took {:?}",
        start.elapsed()
    );
    _ = watch.kill();
    _ = watch.wait();
    cluster.start(1, &["--plain-http=all", "--enable-api-auth=false"]);
    cluster.wait_healthy(1);
    assert_eq!(call(&cluster, 0, &format!("http://{url}"), None), "200");
    assert_eq!(call(&cluster, 0, &format!("https://{url}"), None), "200");
    assert_eq!(cluster.stop_agent(1), Some(0));
    cluster.start(1, &["--plain-http=off", "--enable-api-auth"]);
    cluster.wait_for("TLS to answer", Duration::from_secs(15), |cluster| {
        let code = call(cluster, 1, &format!("https://{lan}:8080/readyz"), None);
        if code == "200" { Ok(()) } else { Err(code) }
    });
    let plain = call(
        &cluster,
        1,
        &format!("http://{own}:8080/api/v1/pods"),
        Some(&bearer),
    );
    assert!(plain == "000" || plain.starts_with('4'), "{plain}");
    assert_eq!(
        call(&cluster, 0, &format!("https://{url}"), Some(&bearer)),
        "200",
        "the token is as good as before"
    );
}

#[test]
fn pods_of_a_crashed_agent_stay_for_the_grace_and_move_after_it() {
    needs_hosts!();
    let grace = "--restart-grace=6s";
    let cluster = Cluster::with_flags(2, &[grace]);
    cluster.apply(1, &web(4, "1", HELLO));
    let on_two = |pods: &[(String, String)]| pods.iter().filter(|(_, node)| node == "node2").count();
    let pods = wait_ready(&cluster, 1, "app=web", 4);
    let (count, running) = (on_two(&pods), cluster.containers(2));
    assert!(count > 0, "{pods:?}");
    cluster.kill_agent(2);
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(4) {
        assert_eq!(
            on_two(&cluster.ready_pods(1, "app=web")),
            count,
            "after {:?}",
            killed.elapsed()
        );
    }
    cluster.wait_for("four ready pods on node1", Duration::from_secs(15), |cluster| {
        let pods = cluster.ready_pods(1, "app=web");
        if pods.len() - on_two(&pods) == 4 {
            Ok(())
        } else {
            Err(pods)
        }
    });
    assert!(
        killed.elapsed() > Duration::from_secs(6),
        "moved before the grace was over"
    );
    assert_eq!(
        cluster.containers(2),
        running,
        "nobody stops containers of a host without an agent"
    );
    // Nobody knows what the old ones do: they do not count as ready beside those that replaced them.
    cluster.wait_for("only four to be ready", Duration::from_secs(3), |cluster| {
        let pods = cluster.ready_pods(1, "app=web");
        if pods.len() == 4 { Ok(()) } else { Err(pods) }
    });
    // It returns: what was replaced goes.
    cluster.start(2, &[grace]);
    cluster.wait_healthy(2);
    cluster.wait_for("no surplus", Duration::from_secs(20), |cluster| {
        let (there, ready) = (
            cluster.containers(1).len() + cluster.containers(2).len(),
            cluster.ready_pods(1, "app=web").len(),
        );
        if (there, ready) == (4, 4) {
            Ok(())
        } else {
            Err((there, ready))
        }
    });
}

#[test]
fn a_node_alone_serves_from_its_disk_and_finds_the_others_again() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    let namespace = |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
    cluster.apply(1, &namespace("before"));
    cluster.wait_for("the namespace on node 2", Duration::from_secs(2), |cluster| {
        if cluster.psctl(2, &["get", "ns", "before"]).ok {
            Ok(())
        } else {
            Err(())
        }
    });
    cluster.kill_agent(1);
    cluster.kill_agent(2);
    // Without --join, and with nobody there.
    cluster.start(2, &[]);
    cluster.wait_healthy(2);
    cluster
        .psctl(2, &["get", "ns", "before"])
        .expect("what was on its disk");
    cluster.apply(2, &namespace("alone"));
    cluster.start(1, &["--log-format=json", "--enable-ingress=false"]);
    cluster.wait_healthy(1);
    cluster.wait_nodes(2);
    cluster.wait_for("both to have both", Duration::from_secs(10), |cluster| {
        if cluster.psctl(1, &["get", "ns", "before", "alone"]).ok {
            Ok(())
        } else {
            Err(())
        }
    });
    // The other settings hold: JSON in the log, step by step, and no ingress on this node.
    let log = std::fs::read_to_string(cluster.log(1)).unwrap();
    let steps: Vec<serde_json::Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let messages: Vec<String> = steps.iter().map(|step| text(step, "/fields/message")).collect();
    let place = |word: &str| {
        messages
            .iter()
            .position(|message| message.contains(word))
            .unwrap_or_else(|| panic!("{word}: {messages:?}"))
    };
    assert!(place("starting") < place("Podman answers") && place("Podman answers") < place("store is open"));
    assert!(place("store is open") < place("adopted") && place("adopted") < place("ready"));
    assert!(
        !cluster
            .exec(1, &["curl", "-s", "-m", "3", "http://127.0.0.1/"])
            .ok
    );
    assert!(
        cluster
            .exec(2, &["curl", "-s", "-m", "3", "http://127.0.0.1/"])
            .ok
    );
}

#[test]
fn every_value_that_does_not_parse_is_wrong_usage() {
    needs_hosts!();
    let cluster = Cluster::hosts(1);
    let data = format!("--data-dir={}", cluster.data(1).display());
    let secret = "c2VjcmV0IHRoYXQgaXMgdG9vIHNob3J0";
    let (key, token) = (
        format!("--encryption-key={secret}"),
        format!("--join-token={secret}"),
    );
    let mut wrong = Vec::new();
    for flags in [
        vec!["--log-level=loud"],
        vec!["--join=a host:7946", "--join-token=PSWTKN-1-00-x.y"],
        vec!["--join=10.231.0.9", &token],
        vec![key.as_str()],
    ] {
        let flag = flags.last().unwrap().split('=').next().unwrap();
        let ran = cluster.exec(
            1,
            &[
                &[
                    "timeout",
                    "5",
                    program("podman-swarm-agent").to_str().unwrap(),
                    &data,
                    "--advertise-addr=10.231.0.1",
                ],
                flags.as_slice(),
            ]
            .concat(),
        );
        if ran.code != Some(2) || !(ran.stderr.contains(flag) || ran.stderr.contains("--join")) {
            wrong.push(format!(
                "{flags:?}: {:?} {}",
                ran.code,
                ran.stderr.lines().last().unwrap_or_default()
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn health_is_503_until_the_node_has_joined() {
    needs_hosts!();
    let cluster = Cluster::hosts(2);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    // The one to join is there and does not answer.
    cluster.cut(1);
    cluster.join(2, &[]);
    cluster.wait_for("503 from /api/v1/health", Duration::from_secs(5), |cluster| {
        let health = cluster.exec(
            2,
            &[
                "curl",
                "-s",
                "-m",
                "2",
                "-w",
                "%{http_code}",
                "http://127.0.0.1:8080/api/v1/health",
            ],
        );
        if health.stdout.ends_with("503") {
            Ok(())
        } else {
            Err(health)
        }
    });
    cluster.heal();
    cluster.wait_healthy(2);
}

#[test]
fn a_write_is_synced_before_it_is_acknowledged() {
    needs_hosts!();
    let cluster = Cluster::with_agents(1);
    let trace = cluster.data(1).join("trace");
    let script = format!(
        "strace -f -y -s 400 -e trace=pwrite64,fdatasync,write,writev,sendto -o {trace} -p $(pgrep -x podman-swarm-ag) &
         for i in {{1..300}}; do
             grep -q TracerPid:.*[1-9] /proc/$(pgrep -x podman-swarm-ag)/status && break; sleep 0.1
         done
         curl -sf -o {trace}.answer http://127.0.0.1:8080/api/v1/namespaces -H \"Authorization: Bearer $(cat {data}/api.token)\" \\
             -H 'Content-Type: application/json' -d '{{\"metadata\": {{\"name\": \"traced\"}}}}'
         kill %1; wait",
        trace = trace.display(),
        data = cluster.data(1).display(),
    );
    let ran = cluster.exec(1, &["bash", "-c", &script]);
    let trace = std::fs::read_to_string(trace).unwrap_or_default();
    let lines: Vec<&str> = trace.lines().collect();
    let after = |from: usize, what: &str, is: &dyn Fn(&str) -> bool| {
        let found = lines[from..].iter().position(|line| is(line));
        found.map_or_else(|| panic!("{what}: {ran:?} {trace}"), |at| from + at)
    };
    // Of several threads, a call may be told in two lines.
    let written = after(0, "the write of the record", &|line| {
        line.contains("pwrite64") && line.contains("/journal.") && line.contains("d/namespaces//traced")
    });
    let synced = after(written, "its sync", &|line| {
        line.contains("fdatasync") && line.ends_with("= 0")
    });
    let answered = after(0, "the answer", &|line| line.contains("HTTP/1.1 201 Created"));
    assert!(
        synced < answered,
        "{}",
        lines[written..=synced.max(answered)].join("\n")
    );
}
