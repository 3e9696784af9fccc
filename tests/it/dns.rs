//! Names and the native API about them, on real hosts: the whitelist with an upstream of the test's own, SRV, TCP,
//! NXDOMAIN and NODATA, endpoints and addresses, tokens, health.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::cluster::{Cluster, address, needs_hosts, text};
use crate::stories::{HELLO, dig, wait_ready, web};

const SERVICE: &str = "web.default.svc.cluster.local";
/// The LAN's own address, where the upstream answers.
const UPSTREAM: &str = "10.231.0.254:53";

/// A resolver on the LAN: `alias.…` is a CNAME of `target.elsewhere.test`, every other name has one address.
struct Upstream {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start(cluster: &Cluster) -> Self {
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (lan, asked_too, stop_too) = (cluster.lan(), asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            move_into_link_name_space(lan.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let socket = UdpSocket::bind(UPSTREAM).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut query = [0; 1500];
            while !stop_too.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut query) {
                    asked_too.fetch_add(1, Ordering::Relaxed);
                    _ = socket.send_to(&answer(&query[..length]), from);
                }
            }
        });
        Self {
            asked,
            stop,
            thread: Some(thread),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// Answers a query in wire format (RFC 1035, 4.1): the question again, then the records.
fn answer(query: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    const A: [u8; 10] = [0, 1, 0, 1, 0, 0, 0, 60, 0, 4];
    let name_end = HEADER + query[HEADER..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let question = &query[HEADER..name_end + 4];
    let is_alias = question[1..].to_ascii_lowercase().starts_with(b"alias");
    let asks_address = question[question.len() - 4..][..2] == [0, 1];
    let records = match (asks_address, is_alias) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, records, 0, 0, 0, 0]);
    message.extend(question);
    let owner = if is_alias && asks_address {
        let target = b"\x06target\x09elsewhere\x04test\0";
        message.extend([
            0xc0,
            12,
            0,
            5,
            0,
            1,
            0,
            0,
            0,
            60,
            0,
            u8::try_from(target.len()).unwrap(),
        ]);
        message.extend(target);
        target.to_vec()
    } else {
        vec![0xc0, 12]
    };
    if asks_address {
        message.extend(owner);
        message.extend(A);
        message.extend([192, 0, 2, 7]);
    }
    message
}

/// The status of an answer (NOERROR, NXDOMAIN, …) and how many records it has.
fn status(cluster: &Cluster, host: usize, server: &str, arguments: &[&str]) -> (String, usize) {
    let server = format!("@{server}");
    let printed = cluster
        .exec(
            host,
            &[&["dig", &server, "+tries=1", "+time=3"], arguments].concat(),
        )
        .stdout;
    let after = |word: &str| {
        let rest = printed.split(word).nth(1).unwrap_or_default();
        rest.split(|character: char| !character.is_alphanumeric())
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    (after("status: "), after("ANSWER: ").parse().unwrap_or(0))
}

#[track_caller]
fn wait_status(cluster: &Cluster, host: usize, name: &str, expected: &str) {
    cluster.wait_for(
        &format!("{expected} for {name} on host {host}"),
        Duration::from_secs(5),
        |cluster| {
            let seen = status(cluster, host, "127.0.0.1", &[name]).0;
            if seen == expected { Ok(()) } else { Err(seen) }
        },
    );
}

#[test]
fn names_outside_are_forwarded_as_the_whitelist_says() {
    needs_hosts!();
    let cluster = Cluster::with_flags(2, &[&format!("--upstream-dns={UPSTREAM}")]);
    let upstream = Upstream::start(&cluster);
    let path = "/api/v1/dns/whitelist";

    // Off: every name is forwarded, once per TTL.
    assert_eq!(cluster.api(1, "GET", path, "").1["enabled"], json!(false));
    assert_eq!(dig(&cluster, 1, "127.0.0.1", &["a.other.test"]), ["192.0.2.7"]);
    let asked = upstream.asked();
    assert_eq!(dig(&cluster, 1, "127.0.0.1", &["a.other.test"]), ["192.0.2.7"]);
    assert_eq!(upstream.asked(), asked, "the second answer came from the cache");
    assert_eq!(
        dig(&cluster, 1, "127.0.0.1", &["alias.good.test"]),
        ["192.0.2.7", "target.elsewhere.test."]
    );

    // On, by node 1: holds on node 2 as well, also for what is in the cache.
    let (code, set) = cluster.api(
        1,
        "PUT",
        path,
        r#"{"enabled": true, "hosts": ["good.test", "github.com"]}"#,
    );
    assert_eq!((code, &set["enabled"]), (200, &json!(true)), "{set}");
    for host in [1, 2] {
        wait_status(&cluster, host, "a.other.test", "REFUSED");
        for name in ["good.test", "www.good.test", "A.b.GOOD.test"] {
            assert_eq!(dig(&cluster, host, "127.0.0.1", &[name]), ["192.0.2.7"], "{name}");
            assert_eq!(
                dig(&cluster, host, "127.0.0.1", &["+tcp", name]),
                ["192.0.2.7"],
                "{name}"
            );
        }
        let before = upstream.asked();
        for name in ["notgood.test", "good.test.evil.test", "test", "example.org"] {
            assert_eq!(
                status(&cluster, host, "127.0.0.1", &[name]).0,
                "REFUSED",
                "{name}"
            );
            assert_eq!(
                status(&cluster, host, "127.0.0.1", &["+tcp", name]).0,
                "REFUSED",
                "{name}"
            );
        }
        assert_eq!(upstream.asked(), before, "a refused name is asked of nobody");
        // A listed name whose CNAME leads out of the list.
        assert_eq!(
            status(&cluster, host, "127.0.0.1", &["alias.good.test"]).0,
            "REFUSED"
        );
        // Names of the cluster need no place in the list.
        assert_eq!(
            status(&cluster, host, "127.0.0.1", &["none.default.svc.cluster.local"]).0,
            "NXDOMAIN"
        );
    }

    // Single hosts, added and removed by the other node.
    let hosts = format!("{path}/hosts");
    assert_eq!(
        cluster.api(2, "POST", &hosts, r#"{"host": "elsewhere.test"}"#).0,
        200
    );
    wait_status(&cluster, 1, "alias.good.test", "NOERROR");
    assert_eq!(cluster.api(2, "DELETE", &format!("{hosts}/good.test"), "").0, 200);
    wait_status(&cluster, 1, "www.good.test", "REFUSED");
    assert_eq!(cluster.api(2, "DELETE", &format!("{hosts}/good.test"), "").0, 404);
    let (code, refused) = cluster.api(1, "POST", &hosts, r#"{"host": "http://a b"}"#);
    assert!(
        (400..500).contains(&code) && refused["kind"] == "Status",
        "{code} {refused}"
    );
    let (_, now) = cluster.api(1, "GET", path, "");
    let listed: BTreeSet<&str> = now["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(listed, BTreeSet::from(["elsewhere.test", "github.com"]));

    assert_eq!(
        cluster
            .api(1, "PUT", path, r#"{"enabled": false, "hosts": []}"#)
            .0,
        200
    );
    wait_status(&cluster, 2, "a.other.test", "NOERROR");

    // Upstreams that do not answer are no reason to say that a name does not exist.
    drop(upstream);
    assert_eq!(status(&cluster, 1, "127.0.0.1", &["unheard.test"]).0, "SERVFAIL");
}

#[test]
fn a_service_has_names_endpoints_and_addresses() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    let manifest = web(2, "1", HELLO).replace(
        "{port: 80, targetPort: 8080}",
        "{name: http, port: 80, targetPort: 8080}",
    ) + "---\n{apiVersion: v1, kind: Service, metadata: {name: idle}, spec: {selector: {app: none}, ports: [{port: 1}]}}\n";
    cluster.apply(1, &manifest);
    wait_ready(&cluster, 2, "app=web", 2);

    for host in [1, 2] {
        let addresses = cluster.wait_for("two addresses", Duration::from_secs(10), |cluster| {
            let found = dig(cluster, host, "127.0.0.1", &[SERVICE]);
            if found.len() == 2 { Ok(found) } else { Err(found) }
        });
        // The same everywhere: at the node's address, over TCP, and from the other node.
        for arguments in [
            vec![SERVICE],
            vec!["+tcp", SERVICE],
            vec!["web.default.cluster.local"],
            vec!["WEB.Default.svc.Cluster.LOCAL"],
        ] {
            assert_eq!(
                dig(&cluster, 0, &address(host), &arguments),
                addresses,
                "{arguments:?}"
            );
        }
        // SRV names the target port, and its targets have the pods' addresses.
        for name in [
            "_http._tcp.web.default.svc.cluster.local",
            "_http._tcp.web.default.cluster.local",
        ] {
            let records = dig(&cluster, host, "127.0.0.1", &["SRV", name]);
            assert_eq!(records.len(), 2, "{name}: {records:?}");
            let mut found: Vec<String> = Vec::new();
            for record in &records {
                let fields: Vec<&str> = record.split(' ').collect();
                assert_eq!(fields[2], "8080", "{record}");
                found.extend(dig(&cluster, host, "127.0.0.1", &[fields[3]]));
            }
            found.sort();
            assert_eq!(found, addresses);
        }
        // A name that is not there, and one that is there but has no such record.
        for (arguments, expected) in [
            (vec!["none.default.svc.cluster.local"], "NXDOMAIN"),
            (vec!["web.none.svc.cluster.local"], "NXDOMAIN"),
            (
                vec!["SRV", "_smtp._tcp.web.default.svc.cluster.local"],
                "NXDOMAIN",
            ),
            (vec!["AAAA", SERVICE], "NOERROR"),
            (vec!["TXT", SERVICE], "NOERROR"),
            (vec!["idle.default.svc.cluster.local"], "NOERROR"),
        ] {
            for transport in ["+notcp", "+tcp"] {
                let seen = status(
                    &cluster,
                    host,
                    "127.0.0.1",
                    &[&[transport], arguments.as_slice()].concat(),
                );
                assert_eq!(seen, (expected.to_owned(), 0), "{arguments:?} {transport}");
            }
        }
        // The same by the API.
        let (code, endpoints) = cluster.api(host, "GET", "/api/v1/services/default/web/endpoints", "");
        let endpoints = endpoints
            .as_array()
            .unwrap_or_else(|| panic!("{code} {endpoints}"));
        let mut listed: Vec<String> = endpoints
            .iter()
            .map(|endpoint| text(endpoint, "/address"))
            .collect();
        listed.sort();
        assert_eq!(listed, addresses);
        for endpoint in endpoints {
            let keys: BTreeSet<&str> = endpoint.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(
                keys,
                BTreeSet::from(["address", "healthy", "nodeName", "podName", "port"])
            );
            assert_eq!(
                (&endpoint["port"], &endpoint["healthy"]),
                (&json!(8080), &json!(true))
            );
            assert!(text(endpoint, "/podName").starts_with("web-"), "{endpoint}");
            assert!(text(endpoint, "/nodeName").starts_with("node"), "{endpoint}");
        }
        let (_, found) = cluster.api(host, "GET", "/api/v1/services/default/web/addresses", "");
        let mut found: Vec<&str> = found["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        found.sort_unstable();
        let expected: Vec<String> = addresses
            .iter()
            .map(|address| format!("{address}:8080"))
            .collect();
        assert_eq!(found, expected);
        // Each of them answers from every node.
        for address in found {
            let page = cluster.exec(host, &["curl", "-s", "-m", "3", &format!("http://{address}/")]);
            assert!(page.stdout.contains("Hello from pod web-"), "{address}: {page:?}");
        }
        assert_eq!(
            cluster
                .api(host, "GET", "/api/v1/services/default/idle/addresses", "")
                .1,
            json!({"addresses": []})
        );
        let (code, missing) = cluster.api(host, "GET", "/api/v1/services/default/none/endpoints", "");
        assert_eq!(
            (code, &missing["kind"], &missing["reason"]),
            (404, &json!("Status"), &json!("NotFound"))
        );
    }

    // Reads of the native API, and what a manifest made by name alone.
    let (_, nodes) = cluster.api(2, "GET", "/api/v1/nodes", "");
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(2));
    let (_, pods) = cluster.api(2, "GET", "/api/v1/pods", "");
    let pod = text(&pods["items"][0], "/metadata/name");
    assert_eq!(
        text(
            &cluster
                .api(1, "GET", &format!("/api/v1/pods/default/{pod}"), "")
                .1,
            "/metadata/name"
        ),
        pod
    );
    let (_, deployment) = cluster.api(1, "GET", "/api/v1/deployments/default/web", "");
    assert_eq!(text(&deployment, "/kind"), "Deployment");
    assert_eq!(
        cluster.api(1, "GET", "/api/v1/deployments", "").1["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(cluster.api(1, "GET", "/api/v1/services", "").0, 200);

    let (code, answer) = cluster.api(1, "DELETE", "/api/v1/manifests/default/web", "");
    assert_eq!(code, 200, "{answer}");
    for kind in ["deployments", "services", "ingresses", "replicasets", "pods"] {
        cluster.wait_for(&format!("no {kind}"), Duration::from_secs(15), |cluster| {
            let left = cluster
                .psctl(2, &["get", kind, "-o", "name", "-l", "app=web"])
                .stdout;
            let named = cluster.psctl(2, &["get", kind, "web"]).ok;
            if left.is_empty() && !named {
                Ok(())
            } else {
                Err(left)
            }
        });
    }
    assert_eq!(status(&cluster, 2, "127.0.0.1", &[SERVICE]).0, "NXDOMAIN");
}

#[test]
fn tokens_are_made_used_and_revoked() {
    needs_hosts!();
    let cluster = Cluster::with_agents(2);
    let (code, made) = cluster.api(
        1,
        "POST",
        "/api/v1/tokens",
        r#"{"name": "ci", "expires_in": 3600}"#,
    );
    assert!(code == 200 || code == 201, "{code} {made}");
    let secret = text(&made, "/token");
    assert!(!secret.is_empty(), "{made}");
    // Replicated: it opens the other node too.
    cluster.wait_for(
        "the token on node 2",
        Duration::from_secs(2),
        |cluster| match cluster.api_as(2, &secret, "GET", "/api/v1/pods", "").0 {
            200 => Ok(()),
            code => Err(code),
        },
    );
    let listed = cluster.api(2, "GET", "/api/v1/tokens", "").1.to_string();
    assert!(listed.contains("ci") && !listed.contains(&secret), "{listed}");

    // One that is over at once.
    let (_, short) = cluster.api(
        2,
        "POST",
        "/api/v1/tokens",
        r#"{"name": "short", "expires_in": 1}"#,
    );
    let short = text(&short, "/token");
    cluster.wait_for(
        "the short token to expire",
        Duration::from_secs(4),
        |cluster| match cluster.api_as(2, &short, "GET", "/api/v1/pods", "").0 {
            401 => Ok(()),
            code => Err(code),
        },
    );

    assert_eq!(
        cluster
            .api(2, "DELETE", &format!("/api/v1/tokens/{secret}"), "")
            .0,
        200
    );
    for host in [1, 2] {
        cluster.wait_for(
            "the token to be refused",
            Duration::from_secs(2),
            |cluster| match cluster.api_as(host, &secret, "GET", "/api/v1/pods", "") {
                (401, answer) if answer["reason"] == "Unauthorized" => Ok(()),
                seen => Err(seen),
            },
        );
        for token in ["", "x", &cluster.secret(host, "join.token")] {
            assert_eq!(cluster.api_as(host, token, "GET", "/api/v1/pods", "").0, 401);
            assert_eq!(
                cluster
                    .api_as(host, token, "POST", "/api/v1/tokens", r#"{"name": "x"}"#)
                    .0,
                401
            );
            assert_eq!(cluster.api_as(host, token, "GET", "/api/v1/health", "").0, 200);
        }
        // No secret is on disk or in a log in plain text.
        let data = cluster.data(host);
        let grep = cluster.exec(
            host,
            &[
                "grep",
                "-rlaF",
                &secret,
                data.to_str().unwrap(),
                cluster.log(host).to_str().unwrap(),
            ],
        );
        assert_eq!(grep.stdout, "", "the token is in plain text");
        for name in ["api.token", "join.token", "encryption.key"] {
            let secret = cluster.secret(host, name);
            let log = std::fs::read_to_string(cluster.log(host)).unwrap();
            assert!(!log.contains(&secret), "{name} is in the log of host {host}");
        }
    }
    assert_eq!(
        cluster
            .api(1, "DELETE", &format!("/api/v1/tokens/{secret}"), "")
            .0,
        404
    );
    assert!((400..500).contains(&cluster.api(1, "POST", "/api/v1/tokens", r#"{"expires_in": 1}"#).0));
    assert!((400..500).contains(&cluster.api(1, "POST", "/api/v1/tokens", "{").0));
}
