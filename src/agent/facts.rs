//! What this node tells about itself, and the watch over its Podman.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reconcilers::ports::{Announcer, NodeFacts};
use schemas::hex;
use sha2::{Digest, Sha256};
use store::{DiskState, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::{ARCHITECTURE_LABEL, Config, Flags, HOSTNAME_LABEL, OS_LABEL};
use crate::podman::{Engine, Podman};

/// Pods a node takes; Kubernetes' default.
const MAX_PODS: u32 = 110;
/// How often Podman is asked whether it answers, and the disk how much is free. Podman's death also ends the events stream, and a
/// write meets a full disk by itself; this is for the node's status.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Describes this node.
pub(super) fn node_facts(config: &Config, engine: &Engine, store: &Store) -> NodeFacts {
    let mut labels = BTreeMap::from([
        (HOSTNAME_LABEL.to_owned(), config.node_name.clone()),
        (OS_LABEL.to_owned(), "linux".to_owned()),
        (ARCHITECTURE_LABEL.to_owned(), engine.architecture.clone()),
    ]);
    labels.extend(
        config
            .flags
            .node_labels
            .iter()
            .map(|label| (label.0.clone(), label.1.clone())),
    );
    NodeFacts {
        name: config.node_name.clone(),
        address: Some(config.advertise),
        api_port: public_port(config.flags.api_addr, config.advertise),
        labels,
        cpu_millis: u64::from(engine.cpus) * 1000,
        memory_bytes: engine.memory_bytes,
        max_pods: MAX_PODS,
        agent_version: format!("v{}", env!("CARGO_PKG_VERSION")),
        podman_version: engine.podman_version.clone(),
        kernel_version: engine.kernel_version.clone(),
        os_image: engine.os_image.clone(),
        architecture: engine.architecture.clone(),
        podman_error: String::new(),
        disk_full: String::new(),
        store_error: String::new(),
        unreadable_records: 0,
        rescued: 0,
        catching_up: false,
        ingress: config.flags.enable_ingress,
        gitops: followed(&config.flags),
        revision_tag: Some(store.revision().tag()),
        store_protocol: Some(store::PROTOCOL),
    }
}

/// The port of what is served at the address that others know, else 0.
fn public_port(served: SocketAddr, advertised: IpAddr) -> u16 {
    let is_reached = served.ip().is_unspecified() || served.ip() == advertised;
    if is_reached { served.port() } else { 0 }
}

/// Names what `--gitops-*` says by a hash: nodes that follow the same share the work, and a password in the URL is not
/// told to anybody. Empty: nothing is followed.
pub(super) fn followed(flags: &Flags) -> String {
    let Some(repository) = &flags.gitops_repo else {
        return String::new();
    };
    let text = [repository.as_str(), &flags.gitops_branch, &flags.gitops_path].join("\0");
    hex(&Sha256::digest(text.as_bytes())[..16])
}

/// Tells the cluster when Podman stops answering or the store's disk is full or has failed, and when all is well again.
pub(super) async fn watch_node(
    podman: Arc<Podman>,
    store: Store,
    announcer: Arc<dyn Announcer>,
    mut facts: NodeFacts,
    mut rescued: watch::Receiver<u32>,
    shutdown: CancellationToken,
) {
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    let (mut disk, mut standing) = (store.disk(), store.standing());
    loop {
        let podman_error = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {
                store.look_at_disk();
                let answer = podman.ping().await;
                answer.err().map(|error| error.to_string()).unwrap_or_default()
            }
            Ok(()) = disk.changed() => facts.podman_error.clone(),
            Ok(()) = rescued.changed() => facts.podman_error.clone(),
            Ok(()) = standing.changed() => facts.podman_error.clone(),
        };
        let (disk_full, store_error) = match &*disk.borrow_and_update() {
            DiskState::Well => (String::new(), String::new()),
            DiskState::Full(shortage) => (shortage.to_string(), String::new()),
            DiskState::Failed(reason) => (String::new(), format!("the store takes no writes: {reason}")),
        };
        let unreadable = u32::try_from(store.unreadable().len()).unwrap_or(u32::MAX);
        let files = *rescued.borrow_and_update();
        let catching_up = standing.borrow_and_update().catching_up;
        let now = (unreadable, files, catching_up);
        let mut changed = (facts.unreadable_records, facts.rescued, facts.catching_up) != now;
        (facts.unreadable_records, facts.rescued, facts.catching_up) = now;
        for (now, before, what, well) in [
            (
                podman_error,
                &mut facts.podman_error,
                "Podman does not answer",
                "Podman answers again",
            ),
            (
                disk_full,
                &mut facts.disk_full,
                "writes are refused",
                "the store's disk has room again",
            ),
            (
                store_error,
                &mut facts.store_error,
                "restart the agent after looking at its disk",
                "the store is well",
            ),
        ] {
            if now == *before {
                continue;
            }
            if now.is_empty() {
                info!("{well}");
            } else {
                error!(error = now, "{what}");
            }
            *before = now;
            changed = true;
        }
        if changed {
            announcer.announce_node(facts.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use reconcilers::fakes::FakeAnnouncer;
    use schemas::{Kind, Object, ObjectKey};
    use store::{Author, Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Via};
    use tokio::time::{sleep, timeout};

    use super::*;

    fn node(name: &str) -> (NodeId, Store) {
        let node = NodeId(name.to_owned());
        let options = OpenOptions {
            cluster_id: "cluster".to_owned(),
            node: node.clone(),
            seal_key: [7; 32],
        };
        let store = Store::open_in_memory(MemoryDisk::default(), options);
        (node, store.unwrap())
    }

    async fn create(store: &Store, name: &str) -> ObjectKey {
        let object = Object::new(&ObjectKey::cluster(Kind::Namespace, name));
        store.create(object, author()).await.unwrap().key
    }

    fn author() -> Author {
        Author {
            manager: "test".to_owned(),
            user: String::new(),
            via: Via::Controller,
            unix_seconds: 0,
        }
    }

    async fn wait_until_announced(announcer: &FakeAnnouncer, catching_up: bool) {
        let announced = async {
            while announcer.facts().catching_up != catching_up {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let announced = timeout(Duration::from_secs(20), announced).await;
        assert!(announced.is_ok(), "last saw {:?}", announcer.facts());
    }

    #[tokio::test]
    async fn a_node_that_was_away_for_too_long_says_so_until_it_has_caught_up() {
        let ((there_id, there), (away_id, away)) = (node("there"), node("away"));
        create(&away, "old").await;
        let gone = create(&there, "gone").await;
        let any = Precondition::default();
        there.remove(&gone, &any, author()).await.unwrap();
        let closing = there.propose_closing_beyond(1).await.unwrap().unwrap();
        assert!(there.close_round(closing).await.unwrap());

        let announcer = Arc::new(FakeAnnouncer::default());
        let podman = Podman::new("unix:///no/such/podman.sock", "c").unwrap();
        let shutdown = CancellationToken::new();
        let watching = tokio::spawn(watch_node(
            Arc::new(podman),
            away.clone(),
            announcer.clone(),
            NodeFacts::default(),
            watch::channel(0).1,
            shutdown.clone(),
        ));
        let Exchange::Send(first) = there.begin_exchange(&away_id) else {
            panic!("it has nothing to say");
        };
        let mut next = away.receive(&there_id, &first).await.unwrap();
        wait_until_announced(&announcer, true).await;
        while let Exchange::Send(frame) = next {
            next = match there.receive(&away_id, &frame).await.unwrap() {
                Exchange::Send(answer) => away.receive(&there_id, &answer).await.unwrap(),
                Exchange::Done => Exchange::Done,
            };
        }
        wait_until_announced(&announcer, false).await;
        shutdown.cancel();
        watching.await.unwrap();
    }
}
