//! Puts the parts together: [`prepare`] and [`Prepared::start`] make a node part of its cluster, [`Gossip`] is what the agent holds of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use chitchat::ChitchatId;
use http::Request;
use reconcilers::pod_range;
use reconcilers::ports::{Announcer, Clock, Cluster, Liveness, NodeFacts};
use schemas::Kind;
use store::{NodeId, Precondition, Store, WriteError};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};

use super::admission::Admission;
use super::bootstrap::{Config, Sockets};
#[cfg(test)]
use super::compaction;
use super::conduct::Conduct;
use super::connections::{Connections, Peers};
use super::credentials::Credentials;
use super::datagram::GossipKey;
use super::error::Error;
use super::members::{self, Member};
use super::membership::{self, Membership};
use super::peer_server::{GENERATION_PATH, PeerServer, REMOVED};
use super::published::{Announcements, FACTS, READY, STATE, facts_text};
#[cfg(test)]
use super::sync::{Ended, ExchangeError};
use super::sync::{Exchanged, Sync};
use super::tls;
use super::token::join_token_object;
use super::transport::SealedTransport;
use crate::relay::Relay;

/// For all remembered peers together to say which generation they saw last. Those that are there answer in
/// milliseconds; a start must not wait for those that are not.
const GENERATION_TIMEOUT: Duration = Duration::from_secs(1);
/// For the peers that answered to be heard in gossip too, which takes a round or two of 200 ms. Those whose datagrams do
/// not come through must not keep a start waiting.
const HEARD_TIMEOUT: Duration = Duration::from_secs(3);
/// A number of a few digits, or the tombstone of a membership.
const GENERATION_LIMIT: usize = 1024;

/// A node's part in its cluster; ends with [`Gossip::stop`]. Dropped, it ends without a word to the others.
pub struct Gossip {
    store: Store,
    credentials: Arc<Credentials>,
    sync: Sync,
    /// The peers that answered at the start.
    answered: BTreeSet<NodeId>,
    stop: CancellationToken,
    leaving: CancellationToken,
    /// Cancelled when others have removed this node.
    removed: CancellationToken,
    /// Cancelled when the first task ends.
    ended: CancellationToken,
    membership: JoinHandle<()>,
    others: JoinSet<()>,
}

/// A node's part in its cluster before it begins: what others of this process need to be made, so that what they
/// announce is complete when the first peer hears of this start.
pub struct Prepared {
    config: Config,
    credentials: Arc<Credentials>,
    store: Store,
    clock: Arc<dyn Clock>,
    peers: (watch::Sender<Arc<Peers>>, watch::Receiver<Arc<Peers>>),
    cluster: (watch::Sender<Arc<Cluster>>, watch::Receiver<Arc<Cluster>>),
    connections: Arc<Connections>,
    announcements: Arc<Announcements>,
    /// The generation of this node that each peer saw last, of those that answered.
    reported: BTreeMap<NodeId, u64>,
}

/// Asks the peers whether this node is one of them still, stores its membership and prepares its part in the cluster.
/// Takes a second if one of them is not there.
///
/// # Errors
/// It was removed from the cluster, its membership cannot be stored, or its name is another's.
pub async fn prepare(
    config: &Config,
    credentials: Arc<Credentials>,
    store: Store,
    clock: Arc<dyn Clock>,
) -> Result<Prepared, Error> {
    let me = credentials.node().clone();
    let known = members::list(&store);
    let first_peers = Arc::new(membership::first_peers(&me, &credentials.remembered, &known));
    let peers = watch::channel(first_peers.clone());
    let connections = Arc::new(Connections::new(credentials.clone(), peers.1.clone()));
    let reported = reported_generations(&store, &connections, &first_peers).await;
    // One that takes this node for a member knows of an admission that is yet to come here.
    if reported.is_empty() && store.removal(&members::key(&me)).is_some() {
        return Err(Error::Removed);
    }
    // Until gossip hears somebody.
    store.set_alone(true);
    admit_self(config, &credentials, &store).await?;
    Ok(Prepared {
        config: config.clone(),
        cluster: watch::channel(Arc::new(Cluster {
            me,
            nodes: BTreeMap::new(),
        })),
        announcements: Arc::new(Announcements::default()),
        connections,
        reported,
        credentials,
        store,
        clock,
        peers,
    })
}

impl Prepared {
    /// The nodes as gossip shows them; none before it begins.
    pub fn cluster(&self) -> watch::Receiver<Arc<Cluster>> {
        self.cluster.1.clone()
    }

    /// Publishes what this node observes; what is announced before the start is part of the first values.
    pub fn announcer(&self) -> Arc<dyn Announcer> {
        self.announcements.clone()
    }

    /// Sends requests to other nodes.
    pub fn relay(&self) -> Arc<dyn Relay> {
        self.connections.clone()
    }

    /// Runs an exchange with a peer, while nothing of this node runs by itself.
    #[cfg(test)]
    pub(super) async fn catch_up(&self, node: &NodeId) -> Result<Ended, ExchangeError> {
        let sync = Sync {
            me: self.credentials.node().clone(),
            store: self.store.clone(),
            connections: self.connections.clone(),
            announcements: self.announcements.clone(),
            peers: self.peers.1.clone(),
            cluster: self.cluster.1.clone(),
            clock: self.clock.clone(),
            exchanged: watch::Sender::new(Exchanged::new()),
            caught_up: watch::Sender::new(false),
        };
        sync.catch_up(node).await
    }

    /// Begins to serve peers, to gossip and to sync, in this order. `api` answers what peers relay; every request
    /// carries [`crate::caller::Caller::Peer`].
    ///
    /// # Errors
    /// TLS or gossip do not start.
    pub async fn start(self, sockets: Sockets, api: Router, facts: NodeFacts) -> Result<Gossip, Error> {
        let Self {
            config,
            credentials,
            store,
            clock,
            peers,
            cluster,
            connections,
            announcements,
            reported,
        } = self;
        let ((peers_sender, peers), (cluster_sender, cluster)) = (peers, cluster);
        let me = credentials.node().clone();
        let stop = CancellationToken::new();
        let leaving = CancellationToken::new();
        let removed = CancellationToken::new();
        let ended = CancellationToken::new();
        let mut others = JoinSet::new();

        // A joiner's store is empty at first.
        let caught_up = watch::Sender::new(members::list(&store).contains_key(&me));
        let server = PeerServer {
            conduct: Conduct::default(),
            store: store.clone(),
            admission: Admission::new(
                store.clone(),
                credentials.clone(),
                config.pod_cidr,
                caught_up.subscribe(),
            ),
            peers: peers.clone(),
        };
        let listen = sockets.local_addr().map_err(|source| Error::Bind {
            address: config.advertise,
            protocol: "TCP",
            source,
        })?;
        let serving = server.run(sockets.tcp, tls::peer_server(&credentials)?, api, stop.clone());
        others.spawn(telling(serving, ended.clone().drop_guard()));

        let highest = reported.values().max().copied().unwrap_or(0);
        let generation = u64::try_from(members::unix_seconds())
            .unwrap_or(0)
            .max(credentials.remembered.generation + 1)
            .max(highest + 1);

        let transport =
            SealedTransport::new(sockets.udp, GossipKey::new(credentials.cluster_key.gossip()), &me)
                .map_err(|error| Error::Gossip(error.to_string()))?;
        let (exchanged_sender, exchanged) = watch::channel(Exchanged::new());
        let membership = Membership {
            store: store.clone(),
            credentials: credentials.clone(),
            connections: connections.clone(),
            announcements: announcements.clone(),
            clock: clock.clone(),
            cluster: cluster_sender,
            peers: peers_sender,
            exchanged,
            leaving: leaving.clone(),
            removed: removed.clone(),
            restart_grace: config.restart_grace,
        }
        .start(
            transport,
            ChitchatId::new(me.0.as_str(), generation, config.advertise),
            first_values(&facts, announcements.take()),
            stop.clone(),
        )
        .await?;
        let membership = tokio::spawn(telling(membership, ended.clone().drop_guard()));

        let sync = Sync {
            me: me.clone(),
            store: store.clone(),
            connections,
            announcements,
            peers,
            cluster,
            clock,
            exchanged: exchanged_sender,
            caught_up,
        };
        others.spawn(telling(
            sync.clone().run(stop.clone()),
            ended.clone().drop_guard(),
        ));
        info!(node = %me, %listen, advertise = %config.advertise, generation, "gossip started");
        Ok(Gossip {
            store,
            credentials,
            sync,
            answered: reported.into_keys().collect(),
            stop,
            leaving,
            removed,
            ended,
            membership,
            others,
        })
    }
}

/// Runs a task with something that is dropped when it ends, also by a panic.
async fn telling(task: impl Future<Output = ()>, _ended: DropGuard) {
    task.await;
}

/// The founder admits itself and the join token; every member keeps its name and address up to date.
async fn admit_self(config: &Config, credentials: &Credentials, store: &Store) -> Result<(), Error> {
    let me = credentials.node();
    let known = members::list(store);
    if let Some(other) = known
        .values()
        .find(|member| member.name == config.node_name && member.id != *me)
    {
        return Err(Error::Flag {
            flag: "--node-name",
            reason: format!(
                "`{}` is the name of the node at {}: choose another, or remove that node",
                other.name, other.address
            ),
        });
    }
    let is_lost = store.unreadable().contains(&members::key(me));
    let is_alone = known.is_empty() && credentials.remembered.peers.is_empty();
    match known.get(me) {
        Some(member) if member.name == config.node_name && member.address == config.advertise => Ok(()),
        Some(member) => {
            let changed = Member {
                name: config.node_name.clone(),
                address: config.advertise,
                ..member.clone()
            };
            Ok(members::put(store, &changed).await?)
        }
        None if is_lost && !is_alone => Ok(()),
        // Later starts find members, unless the record cannot be read; alone, nobody else can bring that.
        None if (credentials.remembered.founder || is_lost) && known.is_empty() => {
            for lost in store.unreadable() {
                if matches!(lost.kind, Kind::Member | Kind::JoinToken) {
                    store.give_up(&lost).await?;
                }
            }
            let token = join_token_object(&credentials.join_token, None, None);
            match store.create(token, members::author()).await {
                Ok(_) | Err(WriteError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
            let member = Member {
                id: me.clone(),
                name: config.node_name.clone(),
                address: config.advertise,
                pod_cidr: pod_range::first_free(config.pod_cidr, &[]),
                voter: true,
            };
            Ok(members::put(store, &member).await?)
        }
        // A joiner's Member object comes from the node that admitted it.
        None => Ok(()),
    }
}

/// Facts and pods first, [`STATE`] last: whoever sees it has seen the rest.
fn first_values(facts: &NodeFacts, announced: BTreeMap<String, Option<String>>) -> Vec<(String, String)> {
    let mut values = Vec::new();
    match facts_text(facts) {
        Some(text) => values.push((FACTS.to_owned(), text)),
        None => error!("this node's labels are too large for gossip"),
    }
    values.extend(
        announced
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    values.push((STATE.to_owned(), READY.to_owned()));
    values
}

/// Asks all peers which generation of this node they saw last: more than was saved, if the directory is an old copy. Takes in
/// what those say that have removed it.
async fn reported_generations(
    store: &Store,
    connections: &Arc<Connections>,
    peers: &Peers,
) -> BTreeMap<NodeId, u64> {
    let mut asking = JoinSet::new();
    for node in peers.keys() {
        let (store, connections, node) = (store.clone(), connections.clone(), node.clone());
        asking.spawn(async move {
            let request = Request::get(GENERATION_PATH).body(Body::empty()).ok()?;
            let response = connections.send(&node, request).await.ok()?;
            let status = response.status();
            let body = to_bytes(response.into_body(), GENERATION_LIMIT).await.ok()?;
            if status == REMOVED {
                store.receive(&node, &body).await.ok()?;
            }
            if !status.is_success() {
                debug!(%node, %status, "a peer does not tell our generation");
                return None;
            }
            Some((node, serde_json::from_slice(&body).ok()?))
        });
    }
    let mut reported = BTreeMap::new();
    let all = async {
        while let Some(answer) = asking.join_next().await {
            reported.extend(answer.ok().flatten());
        }
    };
    // What came until then counts.
    let _ = timeout(GENERATION_TIMEOUT, all).await;
    reported
}

impl Gossip {
    /// The identity of this node.
    pub fn node(&self) -> &NodeId {
        self.credentials.node()
    }

    /// Waits until this node holds what the cluster knew when it came to it; at once, unless it has just joined.
    pub async fn caught_up(&self) {
        // The sender lives as long as `self`.
        _ = self
            .sync
            .caught_up
            .subscribe()
            .wait_for(|caught_up| *caught_up)
            .await;
    }

    /// Waits until what this node and the peers that are there say of their pods is known, or a few seconds.
    pub async fn heard(&self) {
        let mut cluster = self.sync.cluster.clone();
        let is_heard = |cluster: &Arc<Cluster>| {
            let mut expected = self.answered.iter().chain([self.node()]);
            expected.all(|node| {
                let seen = cluster.nodes.get(node);
                seen.is_some_and(|seen| seen.liveness == Liveness::Alive)
            })
        };
        if timeout(HEARD_TIMEOUT, cluster.wait_for(is_heard)).await.is_err() {
            warn!("not all peers that answer are heard in gossip: is UDP let through?");
        }
    }

    /// Waits until a task of gossip has ended: before [`Gossip::stop`] this node is cut off then, and knows no better than
    /// to start anew.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.ended.clone().cancelled_owned()
    }

    /// Waits until others have removed this node from the cluster.
    pub fn removed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.removed.clone().cancelled_owned()
    }

    /// Serves peers on, and gossips no more.
    #[cfg(test)]
    pub(super) fn fall_silent(&self) {
        self.membership.abort();
    }

    /// Looks at once whether there are histories to squash, as it is done now and then.
    #[cfg(test)]
    pub(super) async fn squash_some(&self) -> compaction::Outcome {
        self.sync.squash_some().await
    }

    /// Closes a round as is done now and then, with so many tombstones or more.
    #[cfg(test)]
    pub(super) async fn close_round_beyond(&self, tombstones: usize) {
        self.sync.close_round_beyond(tombstones).await;
    }

    /// Announces the stop to the others, closes all connections and ends. The node stays a member. Takes less than
    /// 2 s. The store must still be open.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.membership).await {
            error!(%error, "membership did not end well");
        }
        while let Some(ended) = self.others.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a task of gossip did not end well");
            }
        }
    }

    /// Takes this node out of the cluster for good: removes its Member object, tells the others, and stops. The
    /// files of the cluster are the caller's to set aside.
    ///
    /// # Errors
    /// The removal cannot be stored.
    pub async fn leave(self) -> Result<(), Error> {
        self.leaving.cancel();
        let key = members::key(self.node());
        let is_alone = members::list(&self.store)
            .keys()
            .all(|member| member == self.node());
        match self
            .store
            .remove(&key, &Precondition::default(), members::author())
            .await
        {
            Ok(_) | Err(WriteError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if !is_alone && !self.sync.flush().await {
            warn!("no peer confirmed the removal: the others may go on showing this node");
        }
        self.stop().await;
        Ok(())
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        // After `stop` these have ended. Without it nothing is announced, so that it must not hear of an end first.
        self.membership.abort();
        self.stop.cancel();
    }
}
