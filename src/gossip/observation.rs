//! From what chitchat holds and what probes found to [`Cluster`]. Pure: no socket, no clock of its own.
//!
//! Of a node that restarts, the last complete observation is shown until its new start has published everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatId, NodeState, Version};
use reconcilers::pod_state::DEAD_GRACE;
use reconcilers::ports::{Cluster, Liveness, Moment, NodeFacts, NodeObservation};
use serde_json::Value;
use store::NodeId;
use tracing::warn;

use super::published::{DIGEST, FACTS, POD_PREFIX, READY, STATE, STOPPED};

/// What knocking at a silent node's peer port came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Probe {
    /// The node itself answered, with its certificate: only its datagrams do not come through.
    Answers,
    /// The host is there, the agent is not (or does not react).
    HostOnly,
    /// Nothing came back.
    Silent,
}

/// A peer as the rest of gossip needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// chitchat hears it or it answers probes, and it has not announced a stop.
    pub(super) live: bool,
    /// The digest of its store; empty until it says.
    pub(super) digest: String,
    /// chitchat's generation of its newest start.
    pub(super) generation: u64,
}

/// Everything that gossip has shown since this agent started.
pub(super) struct Observations {
    me: NodeId,
    /// How long an agent may be away before its node counts as dead.
    restart_grace: Duration,
    nodes: BTreeMap<NodeId, Node>,
}

struct Node {
    /// Of the newest start, whether complete or not.
    generation: u64,
    address: SocketAddr,
    digest: String,
    /// chitchat hears the shown start or a newer one.
    heard: bool,
    /// The last probe's result, since the node fell silent.
    probe: Option<Probe>,
    shown: Option<Shown>,
}

/// The last start of a node that published everything.
struct Shown {
    generation: u64,
    /// What chitchat held when it was read: equal means that there is nothing new.
    read: (Version, Version),
    facts: (Version, NodeFacts),
    pods: BTreeMap<String, (Version, Arc<Value>)>,
    stopped: bool,
    observation: Arc<NodeObservation>,
    /// None until chitchat or a probe has said something of it.
    known: bool,
}

impl Observations {
    pub(super) fn new(me: NodeId, restart_grace: Duration) -> Self {
        Self {
            me,
            restart_grace,
            nodes: BTreeMap::new(),
        }
    }

    /// Takes in all starts of all nodes, each with whether chitchat hears it, in the order of their ids.
    pub(super) fn read<'a>(
        &mut self,
        states: impl Iterator<Item = (&'a ChitchatId, &'a NodeState, bool)>,
        now: Moment,
    ) {
        // Nodes that chitchat has forgotten stay, silent.
        for node in self.nodes.values_mut() {
            node.heard = false;
        }
        for (id, state, heard) in states {
            let name = NodeId(id.node_id.to_string());
            let node = self.nodes.entry(name).or_insert_with(|| Node {
                generation: id.generation_id,
                address: id.gossip_advertise_addr,
                digest: String::new(),
                heard: false,
                probe: None,
                shown: None,
            });
            if id.generation_id >= node.generation {
                node.generation = id.generation_id;
                node.address = id.gossip_advertise_addr;
                if let Some(digest) = state.get(DIGEST)
                    && node.digest != digest
                {
                    node.digest = digest.to_owned();
                }
            }
            let shown_generation = node.shown.as_ref().map_or(0, |shown| shown.generation);
            if id.generation_id < shown_generation {
                continue;
            }
            node.heard |= heard;
            // Before it is ready, a start has not published everything.
            if matches!(state.get(STATE), Some(READY | STOPPED)) {
                match &mut node.shown {
                    Some(shown) if shown.generation == id.generation_id => shown.read(state),
                    shown => {
                        let mut fresh = Shown::new(id.generation_id);
                        // A restart is not news about liveness.
                        if let Some(before) = shown {
                            fresh.observation = before.observation.clone();
                            fresh.known = before.known;
                        }
                        fresh.read(state);
                        *shown = Some(fresh);
                    }
                }
            }
        }
        for node in self.nodes.values_mut() {
            if node.heard {
                node.probe = None;
            }
            node.judge(self.restart_grace, now);
        }
    }

    /// Takes in a probe's result. It is late if chitchat hears the node again.
    pub(super) fn probed(&mut self, id: &NodeId, probe: Probe, now: Moment) {
        if let Some(node) = self.nodes.get_mut(id)
            && !node.heard
        {
            node.probe = Some(probe);
            node.judge(self.restart_grace, now);
        }
    }

    /// Takes in that this node holds all that `id` held at `began`.
    pub(super) fn exchanged(&mut self, id: &NodeId, began: Moment) {
        if let Some(shown) = self.nodes.get_mut(id).and_then(|node| node.shown.as_mut())
            && !shown.observation.in_sync
            && began >= shown.observation.since
        {
            Arc::make_mut(&mut shown.observation).in_sync = true;
        }
    }

    /// Nodes that chitchat does not hear, with their addresses.
    pub(super) fn silent(&self) -> impl Iterator<Item = (&NodeId, SocketAddr)> {
        self.nodes
            .iter()
            .filter(|(id, node)| !node.heard && **id != self.me)
            .map(|(id, node)| (id, node.address))
    }

    /// All nodes but this one, as peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&NodeId, Peer)> {
        self.nodes
            .iter()
            .filter(|(id, _)| **id != self.me)
            .map(|(id, node)| {
                let there = node.heard || node.probe == Some(Probe::Answers);
                let peer = Peer {
                    address: node.address,
                    live: there && !node.announced_stop(),
                    digest: node.digest.clone(),
                    generation: node.generation,
                };
                (id, peer)
            })
    }

    /// The highest generation that anybody has gossiped of this node.
    pub(super) fn own_generation(&self) -> u64 {
        self.nodes.get(&self.me).map_or(0, |node| node.generation)
    }

    /// What the rest of the agent sees: admitted nodes that have published everything at least once.
    pub(super) fn cluster(&self, admitted: impl Fn(&NodeId) -> bool) -> Cluster {
        Cluster {
            me: self.me.clone(),
            nodes: self
                .nodes
                .iter()
                .filter(|(id, _)| **id == self.me || admitted(id))
                .filter_map(|(id, node)| {
                    let shown = node.shown.as_ref().filter(|shown| shown.known)?;
                    Some((id.clone(), shown.observation.clone()))
                })
                .collect(),
        }
    }
}

impl Node {
    /// The newest start said that it stops.
    fn announced_stop(&self) -> bool {
        self.shown
            .as_ref()
            .is_some_and(|shown| shown.stopped && shown.generation == self.generation)
    }

    /// Decides the liveness; without news it stays.
    fn judge(&mut self, restart_grace: Duration, now: Moment) {
        let answers = self.heard || self.probe == Some(Probe::Answers);
        let liveness = match (self.heard, self.probe) {
            // What is shown is from before: a host that was powered on again runs none of it.
            _ if answers && !self.speaks_for_itself() && self.is_given_up(restart_grace, now) => {
                Liveness::Dead
            }
            (true, _) | (false, Some(Probe::Answers)) if self.announced_stop() => Liveness::Stopped,
            (true, _) | (false, Some(Probe::Answers)) => Liveness::Alive,
            (false, Some(Probe::HostOnly)) if self.is_given_up(restart_grace, now) => Liveness::Dead,
            (false, Some(Probe::HostOnly)) if self.announced_stop() => Liveness::Stopped,
            (false, Some(Probe::HostOnly)) => Liveness::AgentDown,
            (false, Some(Probe::Silent)) => Liveness::Dead,
            (false, None) => return,
        };
        if let Some(shown) = &mut self.shown
            && (!shown.known || shown.observation.liveness != liveness)
        {
            shown.known = true;
            let observation = Arc::make_mut(&mut shown.observation);
            // Its pods were replaced when the grace was over: it is dead as long as it was away.
            let given_up = liveness == Liveness::Dead && self.probe != Some(Probe::Silent);
            observation.liveness = liveness;
            observation.in_sync = false;
            if !given_up {
                observation.since = now;
            }
        }
    }

    /// What is shown comes from the start that is heard now.
    fn speaks_for_itself(&self) -> bool {
        let shown = self.shown.as_ref();
        self.heard && shown.is_some_and(|shown| shown.generation == self.generation)
    }

    /// Others run its pods by now: nothing but its agent itself, which knows what still runs, brings it back.
    fn is_given_up(&self, restart_grace: Duration, now: Moment) -> bool {
        let Some(shown) = self.shown.as_ref().filter(|shown| shown.known) else {
            return false;
        };
        let grace = match shown.observation.liveness {
            Liveness::Alive => return false,
            Liveness::Stopped | Liveness::AgentDown => restart_grace,
            Liveness::Dead => DEAD_GRACE,
        };
        now.since(shown.observation.since) >= grace
    }
}

impl Shown {
    fn new(generation: u64) -> Self {
        Self {
            generation,
            // Versions begin with 1.
            read: (0, 0),
            facts: (0, NodeFacts::default()),
            pods: BTreeMap::new(),
            stopped: false,
            observation: Arc::new(NodeObservation {
                liveness: Liveness::Dead,
                since: Moment::default(),
                in_sync: false,
                facts: NodeFacts::default(),
                pods: BTreeMap::new(),
            }),
            known: false,
        }
    }

    /// Reads what is new in this start's values.
    fn read(&mut self, state: &NodeState) {
        let version = (state.max_version(), state.last_gc_version());
        if self.read == version {
            return;
        }
        self.read = version;
        self.stopped = state.get(STATE) == Some(STOPPED);
        if let Some(value) = state.get_versioned(FACTS)
            && value.version != self.facts.0
        {
            match serde_json::from_str(&value.value) {
                Ok(facts) => self.facts = (value.version, facts),
                Err(error) => warn!(node = %state.chitchat_id().node_id, %error, "facts do not parse"),
            }
        }
        let mut pods = BTreeMap::new();
        for (key, value) in state.iter_prefix(POD_PREFIX) {
            let uid = &key[POD_PREFIX.len()..];
            match self.pods.remove(uid) {
                Some(kept) if kept.0 == value.version => {
                    pods.insert(uid.to_owned(), kept);
                }
                _ => match serde_json::from_str(&value.value) {
                    Ok(status) => {
                        pods.insert(uid.to_owned(), (value.version, Arc::new(status)));
                    }
                    Err(error) => {
                        warn!(node = %state.chitchat_id().node_id, pod_uid = uid, %error, "status does not parse");
                    }
                },
            }
        }
        self.pods = pods;
        let same = self.observation.facts == self.facts.1
            && self.observation.pods.len() == self.pods.len()
            && self
                .pods
                .iter()
                .all(|(uid, (_, status))| self.observation.pods.get(uid).is_some_and(|old| old == status));
        if !same {
            let observation = Arc::make_mut(&mut self.observation);
            observation.facts = self.facts.1.clone();
            observation.pods = self
                .pods
                .iter()
                .map(|(uid, (_, status))| (uid.clone(), status.clone()))
                .collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn me() -> NodeId {
        NodeId("me".into())
    }

    fn other() -> NodeId {
        NodeId("other".into())
    }

    fn id(generation: u64) -> ChitchatId {
        ChitchatId::new("other", generation, ([10, 0, 0, 2], 7946).into())
    }

    fn state(values: &[(&str, &str)]) -> NodeState {
        let mut state = NodeState::for_test();
        for (key, value) in values {
            state.set(key, value);
        }
        state
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    const FULL: &[(&str, &str)] = &[
        ("facts", r#"{"name":"node2"}"#),
        ("pod/a", r#"{"phase":"Running"}"#),
        ("digest", "d1"),
        ("state", "ready"),
    ];

    fn seen(observations: &Observations) -> Option<Arc<NodeObservation>> {
        observations.cluster(|_| true).nodes.get(&other()).cloned()
    }

    #[test]
    fn a_restart_shows_the_last_complete_observation_until_the_new_one_is() {
        let mut observations = Observations::new(me(), GRACE);
        let before = state(FULL);
        observations.read([(&id(1), &before, true)].into_iter(), at(1));
        let first = seen(&observations).unwrap();
        assert_eq!(first.liveness, Liveness::Alive);
        assert_eq!(first.facts.name, "node2");
        assert_eq!(first.pods["a"]["phase"], "Running");

        // The new start is heard, and has not published its pods.
        let mut after = state(&FULL[..1]);
        observations.read(
            [(&id(1), &before, false), (&id(2), &after, true)].into_iter(),
            at(2),
        );
        assert_eq!(seen(&observations), Some(first.clone()), "nothing flaps");

        after.set("pod/a", r#"{"phase":"Running"}"#);
        after.set("state", "ready");
        observations.read(
            [(&id(1), &before, false), (&id(2), &after, true)].into_iter(),
            at(3),
        );
        assert_eq!(
            seen(&observations),
            Some(first),
            "the same state is the same observation"
        );

        after.delete("pod/a");
        observations.read(
            [(&id(1), &before, false), (&id(2), &after, true)].into_iter(),
            at(4),
        );
        assert!(seen(&observations).unwrap().pods.is_empty());
    }

    #[test]
    fn an_exchange_makes_a_node_in_sync_until_it_is_away() {
        let mut observations = Observations::new(me(), GRACE);
        let node = state(FULL);
        observations.read([(&id(1), &node, true)].into_iter(), at(1));
        observations.exchanged(&other(), at(0));
        assert!(!seen(&observations).unwrap().in_sync, "it began too early");
        observations.exchanged(&other(), at(1));
        assert!(seen(&observations).unwrap().in_sync);
        observations.read([(&id(1), &node, false)].into_iter(), at(2));
        observations.probed(&other(), Probe::Silent, at(3));
        observations.read([(&id(1), &node, true)].into_iter(), at(9));
        observations.exchanged(&other(), at(8));
        assert!(!seen(&observations).unwrap().in_sync, "it was away since");
    }

    #[test]
    fn silence_is_judged_by_what_a_probe_finds() {
        let check = |state_value: &str, probe: Probe, expected: Liveness| {
            let mut observations = Observations::new(me(), GRACE);
            let mut node = state(FULL);
            observations.read([(&id(1), &node, true)].into_iter(), at(1));
            node.set("state", state_value);
            observations.read([(&id(1), &node, true)].into_iter(), at(2));
            let before = seen(&observations).unwrap();
            observations.read([(&id(1), &node, false)].into_iter(), at(3));
            assert_eq!(seen(&observations).unwrap(), before, "silence alone says nothing");
            assert_eq!(observations.silent().count(), 1);

            observations.probed(&other(), probe, at(4));
            let judged = seen(&observations).unwrap();
            assert_eq!(judged.liveness, expected, "{state_value}, {probe:?}");
            let changed = before.liveness != expected;
            assert_eq!(judged.since, if changed { at(4) } else { before.since });
            assert_eq!(judged.pods, before.pods, "hidden, not forgotten");

            // chitchat forgets it: we do not.
            observations.read(std::iter::empty(), at(5));
            assert_eq!(seen(&observations).unwrap(), judged);
        };
        check("ready", Probe::Answers, Liveness::Alive);
        check("ready", Probe::HostOnly, Liveness::AgentDown);
        check("ready", Probe::Silent, Liveness::Dead);
        check("stopped", Probe::Answers, Liveness::Stopped);
        check("stopped", Probe::HostOnly, Liveness::Stopped);
        check("stopped", Probe::Silent, Liveness::Dead);
    }

    #[test]
    fn an_agent_that_is_away_for_too_long_counts_as_dead_until_it_answers() {
        for state_value in ["ready", "stopped"] {
            let mut observations = Observations::new(me(), GRACE);
            let mut node = state(FULL);
            node.set("state", state_value);
            observations.read([(&id(1), &node, false)].into_iter(), at(1));
            let mut liveness_at = |probe, seconds| {
                observations.probed(&other(), probe, at(seconds));
                let seen = seen(&observations).unwrap();
                (seen.liveness, seen.since)
            };
            let away = if state_value == "ready" {
                Liveness::AgentDown
            } else {
                Liveness::Stopped
            };
            assert_eq!(liveness_at(Probe::HostOnly, 10), (away, at(10)));
            assert_eq!(liveness_at(Probe::HostOnly, 69), (away, at(10)));
            assert_eq!(
                liveness_at(Probe::HostOnly, 70),
                (Liveness::Dead, at(10)),
                "no grace on top"
            );
            assert_eq!(liveness_at(Probe::HostOnly, 500), (Liveness::Dead, at(10)));
            observations.read([(&id(2), &state(FULL), true)].into_iter(), at(501));
            assert_eq!(seen(&observations).unwrap().liveness, Liveness::Alive);
        }
    }

    #[test]
    fn a_host_that_is_powered_on_again_does_not_bring_its_pods_back() {
        let mut observations = Observations::new(me(), GRACE);
        observations.read([(&id(1), &state(FULL), true)].into_iter(), at(1));
        observations.read([(&id(1), &state(FULL), false)].into_iter(), at(2));
        let mut liveness_at = |probe, seconds| {
            observations.probed(&other(), probe, at(seconds));
            seen(&observations).unwrap().liveness
        };
        assert_eq!(liveness_at(Probe::Silent, 3), Liveness::Dead);
        assert_eq!(
            liveness_at(Probe::HostOnly, 4),
            Liveness::AgentDown,
            "one probe was lost"
        );
        assert_eq!(liveness_at(Probe::Silent, 5), Liveness::Dead);
        assert_eq!(liveness_at(Probe::HostOnly, 7), Liveness::Dead);
        assert_eq!(
            liveness_at(Probe::Answers, 8),
            Liveness::Dead,
            "nobody has said yet what runs"
        );
        let starting = state(&FULL[..1]);
        let old = state(FULL);
        observations.read(
            [(&id(1), &old, false), (&id(2), &starting, true)].into_iter(),
            at(9),
        );
        assert_eq!(seen(&observations).unwrap().liveness, Liveness::Dead, "nor now");
        let empty = state(&[("facts", r#"{"name":"node2"}"#), ("state", "ready")]);
        observations.read(
            [(&id(1), &old, false), (&id(2), &empty, true)].into_iter(),
            at(10),
        );
        let back = seen(&observations).unwrap();
        assert_eq!((back.liveness, back.pods.len()), (Liveness::Alive, 0));
    }

    #[test]
    fn a_node_that_was_cut_off_is_alive_as_soon_as_it_is_heard() {
        let mut observations = Observations::new(me(), GRACE);
        let node = state(FULL);
        observations.read([(&id(1), &node, true)].into_iter(), at(1));
        observations.read([(&id(1), &node, false)].into_iter(), at(2));
        observations.probed(&other(), Probe::Silent, at(3));
        observations.read([(&id(1), &node, true)].into_iter(), at(30));
        let back = seen(&observations).unwrap();
        assert_eq!((back.liveness, back.pods.len()), (Liveness::Alive, 1));
    }

    #[test]
    fn a_node_that_comes_back_is_alive_whatever_the_last_probe_said() {
        let mut observations = Observations::new(me(), GRACE);
        let node = state(FULL);
        observations.read([(&id(1), &node, false)].into_iter(), at(1));
        assert_eq!(seen(&observations), None, "nobody knows whether it lives");
        observations.probed(&other(), Probe::Silent, at(2));
        assert_eq!(seen(&observations).unwrap().liveness, Liveness::Dead);
        observations.read([(&id(1), &node, true)].into_iter(), at(3));
        observations.probed(&other(), Probe::Silent, at(4));
        let back = seen(&observations).unwrap();
        assert_eq!((back.liveness, back.since), (Liveness::Alive, at(3)));
    }

    #[test]
    fn a_stopped_node_that_starts_again_is_alive_before_it_is_ready() {
        let mut observations = Observations::new(me(), GRACE);
        let mut before = state(FULL);
        before.set("state", "stopped");
        observations.read([(&id(1), &before, true)].into_iter(), at(1));
        assert_eq!(seen(&observations).unwrap().liveness, Liveness::Stopped);
        assert!(observations.peers().all(|(_, peer)| !peer.live));
        let after = state(&FULL[..1]);
        observations.read(
            [(&id(1), &before, false), (&id(2), &after, true)].into_iter(),
            at(2),
        );
        let back = seen(&observations).unwrap();
        assert_eq!(back.liveness, Liveness::Alive);
        assert_eq!(back.pods.len(), 1);
        assert!(
            observations
                .peers()
                .all(|(_, peer)| peer.live && peer.generation == 2)
        );
    }

    #[test]
    fn only_admitted_nodes_are_shown() {
        let mut observations = Observations::new(me(), GRACE);
        let node = state(FULL);
        observations.read([(&id(1), &node, true)].into_iter(), at(1));
        assert!(observations.cluster(|_| false).nodes.is_empty());
        assert_eq!(
            observations.peers().count(),
            1,
            "but sync may learn from it who is admitted"
        );
    }
}
