//! The pod network in real namespaces, and with real containers.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use reconcilers::ports::{
    Attachment, ContainerId, ContainerNetwork, ContainerRuntime, ContainerSpec, HostPort, PodNetwork,
    PortError, PortRedirect, Protocol, labels,
};

use super::Network;
use crate::podman::Podman;
use crate::sandbox::{DEADLINE, Host, IMAGE, in_network, run, wait_for};

const CLUSTER: &str = "10.244.0.0/16";

/// The network of host `number`, with range 10.244.<number>.0/24.
async fn network(number: u8) -> Network {
    let network = Network::new().await.unwrap();
    network
        .set_range(net(CLUSTER), net(&format!("10.244.{number}.0/24")))
        .await
        .unwrap();
    network
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn path(attachment: &Attachment) -> PathBuf {
    match &attachment.network {
        ContainerNetwork::Namespace(path) => path.clone(),
        ContainerNetwork::Host => panic!("{attachment:?}"),
    }
}

/// Answers on a port of a pod, telling each caller the address that it comes from. Ends with the sandbox.
fn serve(namespace: &Path, port: u16) {
    let listener = in_network(namespace, async || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let caller = connection.peer_addr().unwrap().ip();
            let _ = connection.write_all(caller.to_string().as_bytes());
        }
    });
}

/// Calls [`serve`] from where this thread is.
fn call(to: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    let mut connection = TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_secs(5))?;
    connection.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    text.parse().map_err(std::io::Error::other)
}

fn call_from(namespace: &Path, to: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    in_network(namespace, async || call(to, port))
}

fn tcp(host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port,
        container_port,
    }
}

#[test]
fn keeps_the_rules_of_the_port() {
    run("network::tests::keeps_the_rules_of_the_port", |sandbox| {
        sandbox.host(1).enter(async || {
            let network = Network::new().await.unwrap();
            reconcilers::suite::pod_network(
                &network,
                net(CLUSTER),
                net("10.244.3.0/24"),
                ["uid-1", "uid-2", "uid-3"],
            )
            .await;
            assert_eq!(network.attached().await.unwrap(), HashMap::new());
        });
    });
}

#[test]
fn a_pod_keeps_its_address_until_it_is_detached() {
    run(
        "network::tests::a_pod_keeps_its_address_until_it_is_detached",
        |sandbox| {
            sandbox.host(1).enter(async || {
                let network = network(1).await;
                assert_eq!(network.gateway(), Some(address("10.244.1.1")));
                // The DNS server's place is there before any pod.
                TcpListener::bind(("10.244.1.1", 53)).unwrap();

                let one = network.attach("uid-1", &[]).await.unwrap();
                let two = network.attach("uid-2", &[]).await.unwrap();
                assert!(net("10.244.1.0/24").contains(&one.address));
                assert_ne!(one.address, two.address);
                assert_eq!(network.attach("uid-1", &[]).await.unwrap(), one);

                serve(&path(&one), 8080);
                assert_eq!(call_from(&path(&two), one.address, 8080).unwrap(), two.address);
                assert_eq!(
                    call(one.address, 8080).unwrap(),
                    address("10.244.1.1"),
                    "from the node itself"
                );

                // A second agent has no pod network, and leaves this one alone.
                let second = Network::new().await.unwrap();
                assert!(second.attached().await.unwrap().is_empty());
                second
                    .set_range(net("10.244.0.0/16"), net("10.244.9.0/24"))
                    .await
                    .unwrap();
                second.set_routes(&BTreeMap::new()).await.unwrap();
                assert!(matches!(
                    second.attach("uid-3", &[]).await,
                    Err(PortError::Refused {
                        reason: "NetworkTaken",
                        ..
                    })
                ));
                second.detach("uid-1").await.unwrap();
                second.remove_all().await.unwrap();
                assert_eq!(call_from(&path(&two), one.address, 8080).unwrap(), two.address);

                // An agent that starts anew finds all as it was.
                drop(network);
                let restarted = self::network(1).await;
                let expected = HashMap::from([
                    ("uid-1".to_owned(), one.address),
                    ("uid-2".to_owned(), two.address),
                ]);
                assert_eq!(restarted.attached().await.unwrap(), expected);
                assert_eq!(restarted.attach("uid-1", &[]).await.unwrap(), one);
                assert_eq!(call_from(&path(&two), one.address, 8080).unwrap(), two.address);

                restarted.detach("uid-1").await.unwrap();
                restarted.detach("uid-1").await.unwrap();
                assert_eq!(restarted.attached().await.unwrap().len(), 1);
                assert!(!path(&one).exists());
                assert!(call_from(&path(&two), one.address, 8080).is_err());
                assert!(matches!(
                    restarted.attach("../../etc", &[]).await,
                    Err(PortError::Refused {
                        reason: "InvalidUid",
                        ..
                    })
                ));
            });
        },
    );
}

#[test]
fn what_an_agent_left_half_done_is_done_anew() {
    run(
        "network::tests::what_an_agent_left_half_done_is_done_anew",
        |sandbox| {
            let host = sandbox.host(1);
            host.enter(async || {
                host.shell("ip netns add psw-torn; ip netns add psw-lost; ip netns add other");
                let network = network(1).await;
                assert_eq!(network.attached().await.unwrap(), HashMap::new());
                assert_eq!(host.shell("ip netns list"), "other\n");
                let pod = network.attach("torn", &[]).await.unwrap();
                // Somebody pulls the cable, or deletes the name.
                for damage in [
                    "ip link del $(ip -br link show master psw0 | cut -d@ -f1)",
                    "ip netns del psw-torn",
                ] {
                    host.shell(damage);
                    assert_eq!(network.attach("torn", &[]).await.unwrap(), pod);
                    serve(&path(&pod), 8080);
                    wait_for("the pod", async || {
                        call(pod.address, 8080).map_err(|error| error.to_string())
                    })
                    .await;
                }
            });
        },
    );
}

#[test]
fn a_redirect_leads_to_the_target_port() {
    run("network::tests::a_redirect_leads_to_the_target_port", |sandbox| {
        sandbox.host(1).enter(async || {
            let network = network(1).await;
            let one = network.attach("uid-1", &[]).await.unwrap();
            let two = network.attach("uid-2", &[]).await.unwrap();
            serve(&path(&one), 8080);
            serve(&path(&two), 80);
            let redirect = |from| PortRedirect {
                protocol: Protocol::Tcp,
                from,
                to: 8080,
            };
            network
                .set_redirects("uid-1", &[redirect(80), redirect(81)])
                .await
                .unwrap();
            let two_calls = |port| call_from(&path(&two), one.address, port);
            for port in [80, 81, 8080] {
                assert_eq!(
                    two_calls(port).unwrap(),
                    two.address,
                    "from a neighbour to {port}"
                );
            }
            assert_eq!(
                call_from(&path(&one), one.address, 80).unwrap(),
                one.address,
                "to itself"
            );
            assert!(
                call_from(&path(&one), address("127.0.0.1"), 80).is_err(),
                "localhost is the pod's own"
            );
            assert_eq!(
                call_from(&path(&one), two.address, 80).unwrap(),
                one.address,
                "others' ports are theirs"
            );

            network.set_redirects("uid-1", &[redirect(82)]).await.unwrap();
            assert!(two_calls(80).is_err());
            assert_eq!(two_calls(82).unwrap(), two.address);
            network.set_redirects("uid-1", &[]).await.unwrap();
            assert!(two_calls(82).is_err());
            assert!(matches!(
                network.set_redirects("uid-3", &[]).await,
                Err(PortError::NotFound(_))
            ));
        });
    });
}

#[test]
fn pods_of_two_hosts_see_each_others_addresses() {
    run(
        "network::tests::pods_of_two_hosts_see_each_others_addresses",
        |sandbox| {
            let (one, two) = (sandbox.host(1), sandbox.host(2));
            sandbox.connect(&one, &two);
            let route = |number: u8| -> BTreeMap<IpNet, IpAddr> {
                BTreeMap::from([(
                    net(&format!("10.244.{number}.0/24")),
                    address(&format!("192.0.2.{number}")),
                )])
            };
            let server = one.enter(async || {
                let network = network(1).await;
                let pod = network.attach("server", &[]).await.unwrap();
                serve(&path(&pod), 8080);
                // A route of the machine's own, to a range that will be a node's for a while.
                one.shell("ip route add 10.244.7.0/24 via 192.0.2.2");
                let mut routes = route(2);
                routes.extend([
                    (net("10.244.7.0/24"), address("192.0.2.2")),
                    (net("10.244.8.0/24"), address("192.0.2.2")),
                ]);
                network.set_routes(&routes).await.unwrap();
                network.set_routes(&route(2)).await.unwrap();
                let shown = one.shell("ip route show");
                assert!(
                    shown.contains("10.244.7.0/24 via 192.0.2.2 dev eth0 \n"),
                    "{shown}"
                );
                assert!(!shown.contains("10.244.8.0"), "{shown}");
                pod.address
            });
            two.enter(async || {
                let network = network(2).await;
                let pod = network.attach("client", &[]).await.unwrap();
                // A node that is nowhere does not keep the others away.
                let mut routes = route(1);
                routes.insert(net("10.244.0.0/24"), address("203.0.113.9"));
                let error = network.set_routes(&routes).await.unwrap_err().to_string();
                assert!(error.contains("invalid gateway"), "{error}");
                assert_eq!(
                    call_from(&path(&pod), server, 8080).unwrap(),
                    pod.address,
                    "the source is kept"
                );

                // Out of the cluster's range, the pod hides behind its node.
                let outside = one.enter(async || TcpListener::bind(("192.0.2.1", 9000)).unwrap());
                let caller = std::thread::spawn(move || outside.accept().unwrap().1.ip());
                let _ = call_from(&path(&pod), address("192.0.2.1"), 9000);
                assert_eq!(caller.join().unwrap(), address("192.0.2.2"));
            });
        },
    );
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    run(
        "network::tests::host_ports_lead_to_the_pod_from_everywhere",
        |sandbox| {
            let (one, two) = (sandbox.host(1), sandbox.host(2));
            sandbox.connect(&one, &two);
            let here = address("192.0.2.1");
            one.enter(async || {
            let network = network(1).await;
            let at = HostPort {
                host_ip: Some(here),
                ..tcp(9001, 8080)
            };
            let pod = network.attach("server", &[tcp(9000, 8080), at]).await.unwrap();
            assert_eq!(network.attach("server", &[tcp(9000, 8080), at]).await.unwrap(), pod);
            let neighbour = network.attach("neighbour", &[]).await.unwrap();
            serve(&path(&pod), 8080);

            assert_eq!(two.enter(async || call(here, 9000)).unwrap(), address("192.0.2.2"), "the source is kept");
            assert!(two.enter(async || call(here, 9001)).is_ok());
            assert!(call(here, 9000).is_ok(), "the node itself");
            assert!(call(address("127.0.0.1"), 9000).is_ok(), "the node's localhost");
            assert!(call(address("127.0.0.1"), 9001).is_err(), "only at its address");
            assert!(call_from(&path(&neighbour), here, 9000).is_ok(), "a neighbour");
            assert!(call_from(&path(&pod), here, 9000).is_ok(), "the pod itself");
            // What listens on the node's localhost stays there.
            let _listener = TcpListener::bind(("127.0.0.1", 9100)).unwrap();
            in_network(&path(&neighbour), async || {
                crate::sandbox::shell("ip route add 127.0.0.0/8 via 10.244.1.1 table 9 && ip rule add pref 0 to 127.0.0.1 table 9 \
                     && ip rule add pref 1 table local && ip rule del pref 0 table local; true");
            });
            assert!(call_from(&path(&neighbour), address("127.0.0.1"), 9100).is_err());

            let conflict = network.attach("neighbour", &[tcp(9000, 80)]).await;
            assert!(
                matches!(conflict, Err(PortError::Refused { reason: "HostPortConflict", .. })),
                "{conflict:?}"
            );
            // Also by an agent that did not make them.
            drop(network);
            let restarted = self::network(1).await;
            assert!(call(here, 9000).is_ok());
            restarted.detach("server").await.unwrap();
            assert!(call(here, 9000).is_err());
            assert!(restarted.attach("neighbour", &[tcp(9000, 80)]).await.is_ok());
        });
        },
    );
}

#[test]
fn a_new_range_leaves_running_pods_alone() {
    run(
        "network::tests::a_new_range_leaves_running_pods_alone",
        |sandbox| {
            let host = sandbox.host(1);
            host.enter(async || {
                let network = network(1).await;
                let old = network.attach("old", &[tcp(9000, 8080)]).await.unwrap();
                serve(&path(&old), 8080);
                network
                    .set_range(net(CLUSTER), net("10.244.5.0/24"))
                    .await
                    .unwrap();
                assert_eq!(network.gateway(), Some(address("10.244.5.1")));
                let new = network.attach("new", &[]).await.unwrap();
                assert!(net("10.244.5.0/24").contains(&new.address));
                assert_eq!(network.attach("old", &[]).await.unwrap(), old);
                assert_eq!(call_from(&path(&new), old.address, 8080).unwrap(), new.address);
                assert!(call(address("127.0.0.1"), 9000).is_ok(), "its host port too");
                // The range's new owner, as the other nodes know it: not from here, while the pod is here.
                let routes = BTreeMap::from([(net("10.244.1.0/24"), address("10.244.5.1"))]);
                let _ = network.set_routes(&routes).await;
                assert!(call(old.address, 8080).is_ok());
                network.detach("old").await.unwrap();
                assert!(!host.shell("ip addr show dev psw0").contains("10.244.1.1/"));
            });
        },
    );
}

#[test]
fn leaving_removes_ours_and_nothing_else() {
    run(
        "network::tests::leaving_removes_ours_and_nothing_else",
        |sandbox| {
            let (host, other) = (sandbox.host(1), sandbox.host(2));
            sandbox.connect(&host, &other);
            host.enter(async || {
            host.shell(
                "ip link add cni0 type bridge && ip netns add cni-1 && ip route add 10.9.0.0/16 via 192.0.2.2 \
                 && nft add table ip nat && nft add table ip filter",
            );
            let state = || {
                host.shell("nft list ruleset; ip netns list; ip -o route show; ip -o link show | cut -d: -f2; iptables -S; ip -o rule show")
            };
            let before = state();
            let network = network(1).await;
            network.attach("uid-1", &[tcp(9000, 80)]).await.unwrap();
            let routes = BTreeMap::from([(net("10.244.2.0/24"), address("192.0.2.2"))]);
            network.set_routes(&routes).await.unwrap();
            assert_ne!(state(), before);
            network.remove_all().await.unwrap();
            assert_eq!(state(), before);
            assert_eq!(network.gateway(), None);
            network.remove_all().await.unwrap();

            host.shell("ip link add psw0 type bridge");
            let taken = network.set_range(net(CLUSTER), net("10.244.1.0/24")).await;
            assert!(matches!(taken, Err(PortError::Refused { reason: "BridgeTaken", .. })), "{taken:?}");
            network.remove_all().await.unwrap();
            assert!(host.shell("ip -o link").contains("psw0"), "another's bridge of that name stays");
        });
        },
    );
}

#[test]
fn a_firewall_that_drops_forwarded_packets_lets_pods_through() {
    run(
        "network::tests::a_firewall_that_drops_forwarded_packets_lets_pods_through",
        |sandbox| {
            let (one, two) = (sandbox.host(1), sandbox.host(2));
            sandbox.connect(&one, &two);
            one.enter(async || {
                // As Docker leaves it.
                one.shell("iptables -P FORWARD DROP && iptables -A FORWARD -i docker0 -j ACCEPT");
                let before = one.shell("iptables -S");
                let network = network(1).await;
                network
                    .set_range(net(CLUSTER), net("10.244.1.0/24"))
                    .await
                    .unwrap();
                assert_eq!(one.shell("iptables -S | grep -c podman-swarm").trim(), "2");
                let pod = network.attach("uid-1", &[tcp(9000, 8080)]).await.unwrap();
                serve(&path(&pod), 8080);
                two.enter(async || call(address("192.0.2.1"), 9000)).unwrap();
                network.remove_all().await.unwrap();
                assert_eq!(one.shell("iptables -S"), before);
            });
        },
    );
}

// ---------------------------------------------------------------- with containers

fn spec(name: &str, network: &ContainerNetwork, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.into(),
        image: IMAGE.into(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        network: network.clone(),
        labels: BTreeMap::from([(labels::POD_UID.to_owned(), name.to_owned())]),
        hostname: name.into(),
        ..Default::default()
    }
}

/// Answers any number of callers with their address.
const SERVE: &str = "exec /bin/busybox httpd -f -p 8080 -h /www";
const SLEEP: &str = "exec /bin/busybox sleep 100000";

async fn started(podman: &Podman, spec: &ContainerSpec) -> ContainerId {
    let id = podman.create(spec).await.unwrap();
    podman.start(&id).await.unwrap();
    id
}

/// Calls a server in a container, and returns whom it saw.
async fn ask(podman: &Podman, from: &ContainerId, to: &str, port: u16) -> IpAddr {
    let script = format!(
        "printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {to} {port} | /bin/busybox tail -n 1"
    );
    let command = ["/bin/sh".to_owned(), "-c".to_owned(), script];
    wait_for("an answer", async || {
        match podman.exec(from, &command, DEADLINE).await {
            // As httpd writes it: `[::ffff:10.244.1.2]`.
            Ok((_, output)) => output
                .trim_start_matches("[::ffff:")
                .trim_end_matches(']')
                .parse()
                .map_err(|_| format!("{output:?}")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

fn engine(host: &Host) -> Podman {
    Podman::new(&host.socket(), "cluster-1").unwrap()
}

#[test]
fn the_containers_of_a_pod_share_localhost() {
    run(
        "network::tests::the_containers_of_a_pod_share_localhost",
        |sandbox| {
            let host = sandbox.host_with_engine(1);
            host.enter(async || {
                let (network, podman) = (network(1).await, engine(&host));
                let pod = network.attach("pod", &[]).await.unwrap();
                // Not root, no capability: a pod's low ports are its own.
                let mut server = spec("web", &pod.network, "exec /bin/busybox httpd -f -p 80 -h /www");
                server.user = Some("1000".into());
                server.capabilities_drop = vec!["ALL".into()];
                let web = started(&podman, &server).await;
                let side = started(&podman, &spec("side", &pod.network, SLEEP)).await;
                assert_eq!(ask(&podman, &side, "127.0.0.1", 80).await, address("127.0.0.1"));

                // The network outlives its containers.
                podman.remove(&web).await.unwrap();
                started(&podman, &server).await;
                assert_eq!(
                    ask(&podman, &side, &pod.address.to_string(), 80).await,
                    pod.address
                );
                assert_eq!(network.attached().await.unwrap().len(), 1);
                for container in podman.list().await.unwrap() {
                    podman.remove(&container.id).await.unwrap();
                }
                network.detach("pod").await.unwrap();
            });
        },
    );
}

#[test]
fn a_container_reaches_one_on_another_host() {
    run(
        "network::tests::a_container_reaches_one_on_another_host",
        |sandbox| {
            let (one, two) = (sandbox.host_with_engine(1), sandbox.host_with_engine(2));
            sandbox.connect(&one, &two);
            let server = one.enter(async || {
                let (network, podman) = (network(1).await, engine(&one));
                // Podman's own network beside ours.
                one.podman(&format!("run -d --name theirs -p 7000:7000 {IMAGE}"));
                network
                    .set_routes(&BTreeMap::from([(net("10.244.2.0/24"), address("192.0.2.2"))]))
                    .await
                    .unwrap();
                let pod = network.attach("server", &[]).await.unwrap();
                started(&podman, &spec("server", &pod.network, SERVE)).await;
                let redirect = PortRedirect {
                    protocol: Protocol::Tcp,
                    from: 80,
                    to: 8080,
                };
                network.set_redirects("server", &[redirect]).await.unwrap();
                pod.address.to_string()
            });
            two.enter(async || {
                let (network, podman) = (network(2).await, engine(&two));
                network
                    .set_routes(&BTreeMap::from([(net("10.244.1.0/24"), address("192.0.2.1"))]))
                    .await
                    .unwrap();
                let pod = network.attach("client", &[]).await.unwrap();
                let client = started(&podman, &spec("client", &pod.network, SLEEP)).await;
                for port in [8080, 80] {
                    assert_eq!(
                        ask(&podman, &client, &server, port).await,
                        pod.address,
                        "port {port}"
                    );
                }
            });
            one.enter(async || {
                assert_eq!(
                    one.podman("inspect theirs --format '{{.State.Status}}'"),
                    "running"
                );
                one.podman("rm -f -t 0 theirs");
            });
        },
    );
}

/// Not a test: prints what docs/decisions/0002-pod-network-without-netavark.md quotes.
#[test]
#[ignore = "a measurement"]
fn measure() {
    const ROUNDS: usize = 20;
    run("network::tests::measure", |sandbox| {
        let host = sandbox.host_with_engine(1);
        host.enter(async || {
            let (network, podman) = (network(1).await, engine(&host));
            let mut figures: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
            let mut clock = Instant::now();
            let mut lap = |what| {
                figures.entry(what).or_default().push(clock.elapsed());
                clock = Instant::now();
            };
            for round in 0..ROUNDS {
                let name = format!("pod-{round}");
                lap("(between)");
                let pod = network.attach(&name, &[]).await.unwrap();
                lap("pod: attach");
                let redirect = PortRedirect {
                    protocol: Protocol::Tcp,
                    from: 80,
                    to: 8080,
                };
                network.set_redirects(&name, &[redirect]).await.unwrap();
                lap("pod: redirects");
                let id = podman.create(&spec(&name, &pod.network, SLEEP)).await.unwrap();
                lap("own network: create");
                podman.start(&id).await.unwrap();
                lap("own network: start");
                podman.remove(&id).await.unwrap();
                lap("own network: remove (kill, wait, delete)");
                network.detach(&name).await.unwrap();
                lap("pod: detach");

                let id = podman
                    .create(&spec(&name, &ContainerNetwork::Host, SLEEP))
                    .await
                    .unwrap();
                lap("host's network: create");
                podman.start(&id).await.unwrap();
                lap("host's network: start");
                podman.remove(&id).await.unwrap();
                lap("host's network: remove (kill, wait, delete)");

                let labels = format!("--label {}=cluster-1", labels::CLUSTER);
                host.podman(&format!(
                    "create -q --name {name} --network bridge {labels} {IMAGE} 2>/dev/null"
                ));
                let id = podman.list().await.unwrap()[0].id.clone();
                lap("(between)");
                podman.start(&id).await.unwrap();
                lap("netavark: start");
                podman.remove(&id).await.unwrap();
                lap("netavark: remove (kill, wait, delete)");
            }
            for (what, mut times) in figures {
                times.sort();
                let millis = |index: usize| times[index].as_secs_f64() * 1e3;
                println!(
                    "{what:45} median {:6.1} ms, worst {:6.1} ms",
                    millis(times.len() / 2),
                    millis(times.len() - 1)
                );
            }
        });
    });
}
