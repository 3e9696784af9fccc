//! chitchat's transport: UDP, each datagram sealed ([`super::datagram`]). What does not open never reaches chitchat.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use store::NodeId;
use tokio::net::UdpSocket;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::datagram::{DATAGRAM_LIMIT, GossipKey, Opened, Opener, Sealer};

/// Pause after a failed receive, so that a broken socket does not spin.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// What was dropped, since the start.
#[derive(Default, Debug)]
pub(super) struct Dropped {
    pub(super) strangers: AtomicU64,
    pub(super) replays: AtomicU64,
}

/// Opens once, on the socket that was bound at the start.
pub(super) struct SealedTransport {
    socket: Mutex<Option<UdpSocket>>,
    key: GossipKey,
    sender: [u8; 32],
    dropped: Arc<Dropped>,
}

impl SealedTransport {
    /// # Errors
    /// `node` is not 64 hex digits.
    pub(super) fn new(socket: UdpSocket, key: GossipKey, node: &NodeId) -> anyhow::Result<Self> {
        let sender = (0..32)
            .map(|index| {
                let digits = node.0.get(2 * index..2 * index + 2)?;
                u8::from_str_radix(digits, 16).ok()
            })
            .collect::<Option<Vec<u8>>>()
            .and_then(|bytes| bytes.try_into().ok())
            .context("a node id has 64 hex digits")?;
        Ok(Self {
            socket: Mutex::new(Some(socket)),
            key,
            sender,
            dropped: Arc::default(),
        })
    }

    pub(super) fn dropped(&self) -> Arc<Dropped> {
        self.dropped.clone()
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        use rand::RngExt;
        let socket = self
            .socket
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
            .with_context(|| format!("gossip on {listen_addr} is open already"))?;
        Ok(Box::new(SealedSocket {
            socket,
            sealer: Sealer::new(&self.key, self.sender, rand::rng().random()),
            opener: Opener::new(self.key.clone()),
            buffer: vec![0; DATAGRAM_LIMIT + 1],
            plain: Vec::new(),
            dropped: self.dropped.clone(),
        }))
    }
}

struct SealedSocket {
    socket: UdpSocket,
    sealer: Sealer,
    opener: Opener,
    buffer: Vec<u8>,
    plain: Vec<u8>,
    dropped: Arc<Dropped>,
}

#[async_trait]
impl Socket for SealedSocket {
    /// A datagram that cannot be sent is one that was lost: gossip repeats itself.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.plain.clear();
        message.serialize(&mut self.plain);
        match self.sealer.seal(&self.plain) {
            Ok(datagrams) => {
                for datagram in datagrams {
                    if let Err(error) = self.socket.send_to(&datagram, to).await {
                        debug!(%to, %error, "cannot send gossip");
                        break;
                    }
                }
            }
            Err(error) => warn!(%to, %error, "gossip is not sent"),
        }
        Ok(())
    }

    /// Cancel-safe: the one wait that takes a datagram is the last before it is returned.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.buffer).await {
                Ok(received) => received,
                // An error from here would end gossip for good.
                Err(error) => {
                    warn!(%error, "cannot receive gossip, will retry");
                    sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            match self.opener.open(&self.buffer[..length]) {
                Opened::Message(plain) => match ChitchatMessage::deserialize(&mut plain.as_slice()) {
                    Ok(message) => return Ok((from, message)),
                    Err(error) => warn!(%from, %error, "a member's gossip does not parse: another version?"),
                },
                Opened::Partial => {}
                Opened::Stranger => {
                    self.dropped.strangers.fetch_add(1, Ordering::Relaxed);
                }
                Opened::Replayed => {
                    self.dropped.replays.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Instant;

    use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Peer {
        handle: ChitchatHandle,
        address: SocketAddr,
        dropped: Arc<Dropped>,
    }

    async fn peer(id: u8, key: u8, seeds: &[SocketAddr]) -> Peer {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let node = NodeId(format!("{id:064x}"));
        let transport = SealedTransport::new(socket, GossipKey::new([key; 32]), &node).unwrap();
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(node.0.as_str(), 1, address),
            cluster_id: "test".into(),
            gossip_interval: Duration::from_millis(50),
            listen_addr: address,
            seed_nodes: seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: Duration::from_millis(200),
                ..Default::default()
            },
            marked_for_deletion_grace_period: Duration::from_secs(60),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let initial = vec![("name".to_owned(), format!("node{id}"))];
        let handle = spawn_chitchat(config, initial, &transport).await.unwrap();
        Peer {
            handle,
            address,
            dropped: transport.dropped(),
        }
    }

    impl Peer {
        async fn names(&self) -> HashSet<String> {
            self.handle
                .with_chitchat(|chitchat| {
                    chitchat
                        .node_states()
                        .values()
                        .filter_map(|state| state.get("name").map(str::to_owned))
                        .collect()
                })
                .await
        }
    }

    async fn wait_for_names(peer: &Peer, expected: &[&str]) {
        let expected: HashSet<String> = expected.iter().map(ToString::to_string).collect();
        let start = Instant::now();
        loop {
            let names = peer.names().await;
            if names == expected {
                return;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "last saw {names:?}, want {expected:?}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn holders_of_the_key_converge_and_strangers_learn_nothing() {
        let first = peer(1, 7, &[]).await;
        let second = peer(2, 7, &[first.address]).await;
        let third = peer(3, 7, &[first.address]).await;
        let stranger = peer(4, 8, &[first.address, second.address]).await;
        let all = ["node1", "node2", "node3"];
        for one in [&first, &second, &third] {
            wait_for_names(one, &all).await;
        }
        // Values that change travel too, and large ones.
        let large = "x".repeat(4096);
        second
            .handle
            .with_chitchat(|chitchat| chitchat.self_node_state().set("name", &large))
            .await;
        wait_for_names(&third, &["node1", "node3", &large]).await;

        let start = Instant::now();
        while first.dropped.strangers.load(Ordering::Relaxed) == 0 {
            assert!(start.elapsed() < DEADLINE, "no stranger was counted");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(stranger.names().await, HashSet::from(["node4".to_owned()]));
        for one in [first, second, third, stranger] {
            one.handle.shutdown().await.unwrap();
        }
    }

    #[tokio::test]
    async fn junk_and_replays_are_dropped_and_receiving_can_be_cancelled() {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = receiver.local_addr().unwrap();
        let key = GossipKey::new([7; 32]);
        let transport = SealedTransport::new(receiver, key.clone(), &NodeId("0".repeat(64))).unwrap();
        let mut socket = transport.open(address).await.unwrap();
        assert!(transport.open(address).await.is_err(), "it opens once");

        // Cancelled before anything came.
        let nothing = tokio::time::timeout(Duration::from_millis(10), socket.recv()).await;
        assert!(nothing.is_err());

        let mut plain = Vec::new();
        ChitchatMessage::BadCluster.serialize(&mut plain);
        let mut sealer = Sealer::new(&key, [1; 32], [1; 16]);
        let valid = sealer.seal(&plain).unwrap().remove(0);
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for datagram in [&b"junk"[..], &plain, &valid, &valid] {
            sender.send_to(datagram, address).await.unwrap();
        }
        let (from, message) = tokio::time::timeout(DEADLINE, socket.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(from, sender.local_addr().unwrap());
        assert_eq!(message, ChitchatMessage::BadCluster);

        let next = sealer.seal(&plain).unwrap().remove(0);
        sender.send_to(&next, address).await.unwrap();
        tokio::time::timeout(DEADLINE, socket.recv())
            .await
            .unwrap()
            .unwrap();
        let dropped = transport.dropped();
        assert_eq!(dropped.strangers.load(Ordering::Relaxed), 2);
        assert_eq!(dropped.replays.load(Ordering::Relaxed), 1);
    }
}
