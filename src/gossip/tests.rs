//! Whole nodes in one process: real sockets on loopback, real TLS, real stores.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Extension;
use axum::routing::get;
use http::{Request, StatusCode};
use reconcilers::ports::{Announcer, Clock, Cluster, Liveness, Moment, NodeFacts, NodeObservation};
use schemas::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{NodeId, OpenOptions, Precondition, Store, WriteError};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;

mod streams;
mod upkeep;

use super::bootstrap::{Config, IDENTITY, Sockets, UserTls, bootstrap};
use super::certificates::{self, Names};
use super::credentials::pem;
use super::members;
use super::observation::Probe;
use super::token::{JoinToken, join_token_object};
use super::{Credentials, Error, Gossip, prepare};
use crate::caller::Caller;
use crate::relay::Relay;

const DEADLINE: Duration = Duration::from_secs(60);

struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }

    fn unix_seconds(&self) -> i64 {
        members::unix_seconds()
    }
}

/// Polls until `look` gives something; prints what it last saw.
async fn wait_for<T, S: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(start.elapsed() < DEADLINE, "{what}: last saw {seen:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

struct Node {
    gossip: Gossip,
    cluster: watch::Receiver<Arc<Cluster>>,
    announcer: Arc<dyn Announcer>,
    relay: Arc<dyn Relay>,
    store: Store,
    credentials: Arc<Credentials>,
    config: Config,
}

pub(super) fn config(directory: &Path, name: &str) -> Config {
    Config {
        data_dir: directory.to_owned(),
        advertise: ([127, 0, 0, 1], 0).into(),
        node_name: name.into(),
        host_name: "localhost".into(),
        join: Vec::new(),
        join_token: None,
        encryption_key: None,
        tls: None,
        tls_skip_verify: false,
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        restart_grace: Duration::from_secs(60),
    }
}

fn joining(directory: &Path, name: &str, via: &Node) -> Config {
    Config {
        join: vec![via.config.advertise.to_string()],
        join_token: Some(via.credentials.join_token.to_string()),
        ..config(directory, name)
    }
}

async fn whoami(Extension(caller): Extension<Caller>) -> String {
    format!("{caller:?}")
}

/// Opens a node's store: what a node that was killed in this process was doing lets go of it a moment later.
async fn open(config: &Config, credentials: &Credentials) -> Store {
    wait_for("the store", || {
        let options = OpenOptions {
            cluster_id: credentials.cluster_id().to_owned(),
            node: credentials.node().clone(),
            seal_key: credentials.seal_key(),
        };
        Store::open(&config.data_dir.join("store"), options)
    })
    .await
}

/// Starts a node; at `address` again, if it was started before.
async fn node(config: Config, address: Option<SocketAddr>) -> Result<Node, Error> {
    node_with(config, address, |_| {}).await
}

/// The same; `before` sees the store before any peer does.
async fn node_with(
    mut config: Config,
    address: Option<SocketAddr>,
    before: impl FnOnce(&Store),
) -> Result<Node, Error> {
    let sockets = Sockets::bind(address.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    config.advertise = sockets.local_addr().unwrap();
    let credentials = Arc::new(bootstrap(&config).await?);
    let store = open(&config, &credentials).await;
    before(&store);
    let api = Router::new()
        .route("/api/whoami", get(whoami))
        .route("/api/held", axum::routing::post(streams::held));
    let clock = Arc::new(TestClock(Instant::now()));
    let prepared = prepare(&config, credentials.clone(), store.clone(), clock).await?;
    let pod = format!("pod-of-{}", config.node_name);
    prepared
        .announcer()
        .announce_pod(&pod, Some(json!({"phase": "Running"})));
    let facts = NodeFacts {
        name: config.node_name.clone(),
        ..NodeFacts::default()
    };
    let (cluster, announcer, relay) = (prepared.cluster(), prepared.announcer(), prepared.relay());
    let gossip = prepared.start(sockets, api, facts).await?;
    Ok(Node {
        gossip,
        cluster,
        announcer,
        relay,
        store,
        credentials,
        config,
    })
}

impl Node {
    fn id(&self) -> &NodeId {
        self.credentials.node()
    }

    fn sees(&self, other: &NodeId) -> Option<Arc<NodeObservation>> {
        self.cluster.borrow().nodes.get(other).cloned()
    }

    async fn wait_for_liveness(&self, other: &NodeId, liveness: Liveness) -> Arc<NodeObservation> {
        wait_for(&format!("{liveness:?}"), || {
            let seen = self.sees(other);
            seen.clone().filter(|node| node.liveness == liveness).ok_or(seen)
        })
        .await
    }

    async fn stop(self) -> Config {
        self.gossip.stop().await;
        self.store.close().await;
        self.config
    }
}

async fn everybody_sees_everybody(nodes: &[&Node]) {
    for one in nodes {
        for other in nodes {
            let seen = one.wait_for_liveness(other.id(), Liveness::Alive).await;
            assert_eq!(seen.facts.name, other.config.node_name);
            assert!(
                seen.pods
                    .contains_key(&format!("pod-of-{}", other.config.node_name))
            );
        }
    }
}

fn namespace(name: &str) -> Object {
    Object::new(&ObjectKey::cluster(Kind::Namespace, name))
}

async fn wait_for_object(node: &Node, name: &str) {
    let key = ObjectKey::cluster(Kind::Namespace, name);
    wait_for(name, || node.store.get(&key).ok_or("nothing")).await;
}

fn directories<const N: usize>() -> [TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_join_by_token_and_share_writes_status_and_requests() {
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    // The token is on every node, and any node admits.
    let third = node(joining(d3.path(), "node3", &second), None).await.unwrap();
    let all = [&first, &second, &third];
    everybody_sees_everybody(&all).await;

    // Writes.
    for (writer, name) in [(&first, "a"), (&second, "b"), (&third, "c")] {
        writer
            .store
            .create(namespace(name), members::author())
            .await
            .unwrap();
        for reader in &all {
            wait_for_object(reader, name).await;
        }
    }
    wait_for("equal digests", || {
        let digests = all.map(|node| node.store.digest());
        (digests[0] == digests[1] && digests[1] == digests[2])
            .then_some(())
            .ok_or(digests)
    })
    .await;
    let ranges: std::collections::BTreeSet<_> = members::list(&third.store)
        .into_values()
        .map(|member| member.pod_cidr.unwrap())
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");

    // Status.
    second
        .announcer
        .announce_pod("fresh", Some(json!({"podIP": "10.244.1.7"})));
    second.announcer.announce_pod("pod-of-node2", None);
    wait_for("the status of a pod", || {
        let seen = third.sees(second.id()).unwrap();
        let fits = seen.pods.len() == 1
            && seen
                .pods
                .get("fresh")
                .is_some_and(|pod| pod["podIP"] == "10.244.1.7");
        fits.then_some(()).ok_or(seen)
    })
    .await;

    // Requests.
    let request = Request::get("/api/whoami").body(Body::empty()).unwrap();
    let response = first.relay.send(third.id(), request).await.unwrap();
    let body = to_bytes(response.into_body(), 1024).await.unwrap();
    assert_eq!(body, format!("{:?}", Caller::Peer(first.id().clone())));
    let request = Request::get("/api/whoami").body(Body::empty()).unwrap();
    let nobody = first.relay.send(&NodeId("0".repeat(64)), request).await;
    assert!(nobody.is_err());

    for one in [first, second, third] {
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_catches_up_by_an_exchange_where_digests_are_never_equal() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    // Its digest is that of another state from here on, as in a cluster where writes never cease.
    first.gossip.fall_silent();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    let caught_up = tokio::time::timeout(DEADLINE / 3, second.gossip.caught_up()).await;
    let digests = [&first, &second].map(|node| node.store.digest());
    assert!(caught_up.is_ok(), "last saw {digests:?}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_node_may_say_arrives_also_at_those_who_join_late() {
    use rand::RngExt;
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    // Random text does not compress: this takes several datagrams of the greatest size.
    for pod in 0..60 {
        let texts: Vec<String> = (0..28)
            .map(|_| {
                (0..4)
                    .map(|_| format!("{:032x}", rand::rng().random::<u128>()))
                    .collect()
            })
            .collect();
        first
            .announcer
            .announce_pod(&format!("pod-{pod}"), Some(json!({ "conditions": texts })));
    }
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    wait_for("all pods", || {
        let seen = second.sees(first.id()).map_or(0, |seen| seen.pods.len());
        (seen == 61).then_some(()).ok_or(seen)
    })
    .await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_returns_by_its_data_directory_and_a_killed_one_counts_as_agent_down() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let id = second.id().clone();

    let address = second.config.advertise;
    let ended = second.gossip.ended();
    let mut config = second.stop().await;
    ended.await;
    let stopped = first.wait_for_liveness(&id, Liveness::Stopped).await;
    assert_eq!(stopped.pods.len(), 1, "hidden, not forgotten");
    first
        .store
        .create(namespace("meanwhile"), members::author())
        .await
        .unwrap();

    // Neither --join nor a token are needed again.
    config.join.clear();
    config.join_token = None;
    let second = node(config, Some(address)).await.unwrap();
    assert_eq!(*second.id(), id);
    everybody_sees_everybody(&[&first, &second]).await;
    for (one, other) in [(&first, &second), (&second, &first)] {
        wait_for("both in sync", || {
            let seen = one.sees(other.id());
            seen.clone().filter(|node| node.in_sync).ok_or(seen)
        })
        .await;
    }
    let key = ObjectKey::cluster(Kind::Namespace, "meanwhile");
    assert!(
        second.store.get(&key).is_some(),
        "it says so only when all is here"
    );

    // Killed: the sockets close, nothing is said.
    let Node {
        gossip,
        config,
        store,
        ..
    } = second;
    drop(gossip);
    let down = first.wait_for_liveness(&id, Liveness::AgentDown).await;
    assert_eq!(down.pods.len(), 1);
    store.close().await;
    drop(store);
    let before = first.sees(&id).unwrap();
    let second = node(config, None).await.unwrap();
    let back = first.wait_for_liveness(&id, Liveness::Alive).await;
    assert_eq!(back.pods, before.pods, "nothing flaps");
    // At another port now: its Member object says so everywhere.
    wait_for("the new address", || {
        let seen = members::list(&first.store)[&id].address;
        (seen == second.config.advertise).then_some(()).ok_or(seen)
    })
    .await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_join_is_told_why_and_changes_nothing() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let good = first.credentials.join_token.clone();
    let expired = JoinToken::generate(&good.authority_digest);
    let single = JoinToken::generate(&good.authority_digest);
    for object in [
        join_token_object(&expired, Some(1), None),
        join_token_object(&single, None, Some(1)),
    ] {
        first.store.create(object, members::author()).await.unwrap();
    }
    let join = |change: &dyn Fn(&mut Config)| {
        let mut config = joining(d2.path(), "node2", &first);
        change(&mut config);
        async move {
            match node(config, None).await {
                Ok(_) => panic!("it was admitted"),
                Err(error) => error.to_string(),
            }
        }
    };
    let with = |token: &JoinToken| {
        let text = token.to_string();
        move |config: &mut Config| config.join_token = Some(text.clone())
    };

    let wrong = JoinToken {
        secret: "0".repeat(64),
        ..good.clone()
    };
    assert!(join(&with(&wrong)).await.contains("not known"));
    let unknown = JoinToken::generate(&good.authority_digest);
    assert!(join(&with(&unknown)).await.contains("not known"));
    assert!(join(&with(&expired)).await.contains("expired"));
    let elsewhere = JoinToken::generate(&"0".repeat(64));
    assert!(join(&with(&elsewhere)).await.contains("CA"));
    assert!(
        join(&|config| config.join_token = None)
            .await
            .contains("--join-token")
    );
    assert!(
        join(&|config| config.node_name = "node1".into())
            .await
            .contains("in use")
    );
    assert!(
        join(&|config| config.node_name = "Node 2".into())
            .await
            .contains("no node name")
    );
    let key = super::credentials::ClusterKey::generate().to_text();
    assert!(
        join(&|config| config.encryption_key = Some(key.clone()))
            .await
            .contains("encryption key")
    );
    let other_range = join(&|config| config.pod_cidr = "10.50.0.0/16".parse().unwrap()).await;
    for part in ["10.50.0.0/16", "start the node with --pod-cidr=10.244.0.0/16"] {
        assert!(other_range.contains(part), "{other_range}");
    }
    assert_eq!(members::list(&first.store).len(), 1);

    // A token for one use admits once; the same node may not use it again under another identity.
    let mut config = joining(d2.path(), "node2", &first);
    config.join_token = Some(single.to_string());
    let second = node(config, None).await.unwrap();
    let [d3] = directories();
    let mut config = joining(d3.path(), "node3", &first);
    config.join_token = Some(single.to_string());
    let error = node(config, None).await.err().unwrap().to_string();
    assert!(error.contains("used"), "{error}");
    assert_eq!(members::list(&first.store).len(), 2);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_answer_but_a_refusal() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;

    // Without a certificate.
    let tls = super::tls::join_client(&first.credentials.join_token.authority_digest, false, None).unwrap();
    for (method, path, expected) in [
        ("POST", "/sync", StatusCode::UNAUTHORIZED),
        ("GET", "/generation", StatusCode::UNAUTHORIZED),
        ("GET", "/api/whoami", StatusCode::UNAUTHORIZED),
        ("POST", "/join", StatusCode::FORBIDDEN),
    ] {
        let tcp = tokio::net::TcpStream::connect(first.config.advertise)
            .await
            .unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(tls.clone())
            .connect(name, tcp)
            .await
            .unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), expected, "{method} {path}");
    }

    // Nobody said of this one that it was removed.
    let unknown = NodeId("0".repeat(64));
    assert!(first.store.removal(&members::key(&unknown)).is_none());
    first.stop().await;
    second.stop().await;
}

async fn remove(remover: &Node, removed: &NodeId) {
    let (key, gone) = (members::key(removed), Precondition::default());
    remover
        .store
        .remove(&key, &gone, members::author())
        .await
        .unwrap();
    wait_for("the removed node to vanish", || {
        remover.sees(removed).map_or(Ok(()), Err)
    })
    .await;
}

/// Asks something that only members are told; the body too, as it is read from the wire.
async fn ask(asker: &Node, asked: &NodeId, request: Request<Body>) -> (StatusCode, bytes::Bytes) {
    let response = asker.relay.send(asked, request).await.unwrap();
    let status = response.status();
    (status, to_bytes(response.into_body(), 1024).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told_so_and_nothing_of_it_is_taken() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let removed = second.id().clone();
    let told = second.gossip.removed();
    remove(&first, &removed).await;
    let told = tokio::time::timeout(DEADLINE, told).await;
    assert!(told.is_ok(), "nobody told it");

    // What it writes now is for itself: its certificate is still good, and opens nothing.
    second
        .store
        .create(namespace("late"), members::author())
        .await
        .unwrap();
    let store::Exchange::Send(frame) = second.store.begin_exchange(first.id()) else {
        panic!("it has nothing to say");
    };
    for request in [
        Request::post("/sync").body(Body::from(frame)).unwrap(),
        Request::get("/api/whoami").body(Body::empty()).unwrap(),
    ] {
        let (status, tombstone) = ask(&second, first.id(), request).await;
        assert_eq!(status, StatusCode::GONE);
        assert_eq!(Some(tombstone), first.store.removal(&members::key(&removed)));
    }
    // Nor does the other ask it for anything, whatever it gossips; also after a start that remembers nothing of it.
    let address = first.config.advertise;
    let config = first.stop().await;
    let path = d1.path().join("cluster.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut remembered: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(remembered["removed"], json!([removed.0]));
    remembered["removed"] = json!([]);
    remembered["peers"] = json!({removed.0.as_str(): second.config.advertise});
    std::fs::write(&path, remembered.to_string()).unwrap();
    let first = node(config, Some(address)).await.unwrap();
    // Gossip goes both ways: once it is heard here, the other has been heard there.
    second.wait_for_liveness(first.id(), Liveness::Alive).await;
    wait_for("the removed node to be no peer", || {
        let request = Request::get("/generation").body(Body::empty()).unwrap();
        let sent = futures::FutureExt::now_or_never(first.relay.send(&removed, request));
        match sent {
            Some(Err(crate::relay::RelayError::Unknown(_))) => Ok(()),
            other => Err(format!(
                "{:?}",
                other.map(|sent| sent.map(|answer| answer.status()))
            )),
        }
    })
    .await;
    let late = ObjectKey::cluster(Kind::Namespace, "late");
    assert!(first.store.get(&late).is_none());
    assert!(second.store.get(&late).is_some(), "and it is not lost");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_it_was_away_does_not_start_and_its_name_is_free() {
    let [d1, d2, d3] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let removed = second.id().clone();
    let away = second.stop().await;
    remove(&first, &removed).await;

    // Told by the others at first, by its own store from then on.
    for first_is_there in [true, false] {
        let mut alone = away.clone();
        if !first_is_there {
            let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let path = d2.path().join("cluster.json");
            let text = std::fs::read_to_string(&path).unwrap();
            let mut remembered: serde_json::Value = serde_json::from_str(&text).unwrap();
            remembered["peers"] = json!({first.id().0.as_str(): nowhere.local_addr().unwrap()});
            std::fs::write(&path, remembered.to_string()).unwrap();
        }
        alone.join.clear();
        let error = node(alone, None).await.err().expect("it started");
        assert!(matches!(error, Error::Removed), "{error}");
    }

    let again = node(joining(d3.path(), "node2", &first), None).await.unwrap();
    assert_ne!(*again.id(), removed);
    everybody_sees_everybody(&[&first, &again]).await;
    first.stop().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_gone_everywhere_and_can_join_anew() {
    let [d1, d2] = directories();
    let first = node(config(d1.path(), "node1"), None).await.unwrap();
    let second = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    let left = second.id().clone();
    second.gossip.leave().await.unwrap();
    second.store.close().await;
    drop(second.store);
    wait_for("the node that left to vanish", || {
        let gone = !members::is_admitted(&first.store, &left) && first.sees(&left).is_none();
        gone.then_some(()).ok_or(first.sees(&left))
    })
    .await;
    std::fs::remove_dir_all(d2.path().join("store")).unwrap();
    for name in IDENTITY {
        std::fs::remove_file(d2.path().join(name)).unwrap();
    }
    assert_eq!(std::fs::read_dir(d2.path()).unwrap().count(), 0);

    let again = node(joining(d2.path(), "node2", &first), None).await.unwrap();
    assert_ne!(*again.id(), left);
    everybody_sees_everybody(&[&first, &again]).await;
    first.stop().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_certificates_of_their_own_need_the_ca_that_the_token_names() {
    let [files, d1, d2, d3] = directories();
    let now = std::time::SystemTime::now();
    let (authority, authority_key) = certificates::new_authority("users", now).unwrap();
    let own = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = Names {
            node_name: name.into(),
            host_name: "localhost".into(),
            address: [127, 0, 0, 1].into(),
        };
        let certificate = certificates::issue(&key, &names, authority.der(), &authority_key, now).unwrap();
        let path = |suffix: &str| files.path().join(format!("{name}.{suffix}"));
        std::fs::write(path("crt"), pem("CERTIFICATE", &certificate)).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::write(path("ca"), authority.pem()).unwrap();
        Some(UserTls {
            certificate: path("crt"),
            key: path("key"),
            authority: path("ca"),
        })
    };
    let mut founding = config(d1.path(), "node1");
    founding.tls = own("node1");
    let first = node(founding, None).await.unwrap();
    let mut second = joining(d2.path(), "node2", &first);
    second.tls = own("node2");
    let second = node(second, None).await.unwrap();
    everybody_sees_everybody(&[&first, &second]).await;
    assert!(!d2.path().join("ca.key").exists());

    let without = joining(d3.path(), "node3", &first);
    let error = node(without, None).await.err().unwrap().to_string();
    assert!(error.contains("their own certificates"), "{error}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn probes_tell_hosts_from_silence() {
    let [d1] = directories();
    let credentials = Arc::new(bootstrap(&config(d1.path(), "node1")).await.unwrap());
    let (_sender, peers) = tokio::sync::watch::channel(Arc::default());
    let connections = super::connections::Connections::new(credentials.clone(), peers);
    let node = credentials.node().clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(
        connections.probe(&node, address).await,
        Probe::HostOnly,
        "it hangs"
    );
    drop(listener);
    assert_eq!(
        connections.probe(&node, address).await,
        Probe::HostOnly,
        "it refuses"
    );
    // A host that is gone drops packets, and so does a full queue of connections.
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let full = full.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) = tokio::time::timeout(
        Duration::from_millis(100),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        queued.push(connected.unwrap());
    }
    assert_eq!(connections.probe(&node, address).await, Probe::Silent);
}
