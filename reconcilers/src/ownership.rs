//! Which node works for an object: rendezvous hashing over the live nodes, without a leader and without state.
//!
//! Two owners for a while do no harm (what they create has derived names); this keeps the while short and rare.

use std::time::Duration;

use schemas::ObjectKey;
use store::NodeId;

use crate::derived::hash;
use crate::nodes::{NodeState, Nodes};
use crate::ports::{Liveness, Moment};

/// A new owner acts after two rounds of gossip (of up to 250 ms each) in which it would have heard of a better one.
pub const SETTLE: Duration = Duration::from_millis(500);
/// For so long an owner waits to be in sync with a node that became live: an exchange takes milliseconds, and a connection
/// from before a cut ends and is tried again within 4 s. A node that stalls must not stop the others.
pub const CATCH_UP: Duration = Duration::from_secs(4);

/// Whether this node works for a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holding {
    Other,
    /// Mine, if nothing changes for this long: look again then.
    Settling(Duration),
    Mine,
}

/// Decides whether `me` works for `key`, where `key` is that of the root controller (Deployment, not its Pod).
///
/// A node that ceased to be live within [`SETTLE`] still counts against `me`: it may be there, or have handed over
/// to another. While `me` itself has just started, it may not have heard of others. While what a node brings along that
/// became live is not all here, a plan could see a part of it: pods without the scale that asked for them.
pub fn holding(key: &ObjectKey, me: &NodeId, nodes: &Nodes, now: Moment) -> Holding {
    let key = key.to_string();
    let weight = |id: &NodeId| (hash(&["owner", &id.0, &key]), id.clone());
    let mine = weight(me);
    let mut wait = Duration::ZERO;
    for node in nodes.iter().filter(|node| node.id != *me) {
        let fresh = SETTLE.saturating_sub(now.since(node.since));
        let better = weight(&node.id) > mine;
        match (is_live(node), better) {
            (true, true) => return Holding::Other,
            (true, false) if !node.in_sync => {
                wait = wait.max(CATCH_UP.saturating_sub(now.since(node.since)));
            }
            (false, true) => wait = wait.max(fresh),
            (_, false) => {}
        }
    }
    if nodes.iter().any(|node| node.id != *me) {
        let started = nodes
            .iter()
            .find(|node| node.id == *me)
            .map_or(now, |node| node.since);
        wait = wait.max(SETTLE.saturating_sub(now.since(started)));
    }
    if wait.is_zero() {
        Holding::Mine
    } else {
        Holding::Settling(wait)
    }
}

fn is_live(node: &NodeState) -> bool {
    match node.liveness {
        Liveness::Alive => true,
        Liveness::Stopped | Liveness::AgentDown | Liveness::Dead => false,
    }
}

#[cfg(test)]
mod tests {
    use schemas::Kind;

    use super::*;
    use crate::nodes::testing::{node, nodes};

    fn key(n: usize) -> ObjectKey {
        ObjectKey::new(Kind::Deployment, "default", format!("web-{n}"))
    }

    const LATER: Moment = Moment(Duration::from_secs(100));

    #[test]
    fn every_key_has_exactly_one_owner_and_work_is_spread() {
        let all = nodes([node("a"), node("b"), node("c")]);
        let mut counts = [0; 3];
        for n in 0..300 {
            let owners: Vec<usize> = ["a", "b", "c"]
                .iter()
                .enumerate()
                .filter(|(_, me)| holding(&key(n), &NodeId((*me).to_string()), &all, LATER) == Holding::Mine)
                .map(|(index, _)| index)
                .collect();
            assert_eq!(owners.len(), 1, "{n}: {owners:?}");
            counts[owners[0]] += 1;
        }
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_new_owner_waits_two_rounds_and_others_keep_what_they_have() {
        let me = NodeId("a".into());
        let before = nodes([node("a"), node("b"), node("c")]);
        let died = Moment(Duration::from_secs(100));
        let after = nodes([node("a"), node("b").liveness(Liveness::Dead, died), node("c")]);
        for n in 0..100 {
            let had = holding(&key(n), &me, &before, died);
            let has = holding(&key(n), &me, &after, died);
            let later = holding(&key(n), &me, &after, Moment(died.0 + SETTLE));
            match (had, has) {
                (Holding::Mine, _) => assert_eq!(has, Holding::Mine, "{n}"),
                (_, Holding::Other) => assert_eq!(later, Holding::Other, "{n}"),
                (_, Holding::Settling(wait)) => {
                    assert_eq!((wait, later), (SETTLE, Holding::Mine), "{n}");
                }
                (_, Holding::Mine) => panic!("{n}: took over at once"),
            }
        }
    }

    #[test]
    fn an_owner_waits_until_it_holds_what_a_node_brings_along_but_not_for_long() {
        let me = NodeId("a".into());
        let returned = Moment(Duration::from_secs(100));
        let after = |liveness, in_sync| {
            let other = node("b").liveness(liveness, returned);
            nodes([node("a"), NodeState { in_sync, ..other }])
        };
        let key = (0..)
            .map(key)
            .find(|key| holding(key, &me, &after(Liveness::Alive, true), returned) == Holding::Mine)
            .unwrap();
        let at = |nodes: &Nodes, wait| holding(&key, &me, nodes, Moment(returned.0 + wait));
        let behind = after(Liveness::Alive, false);
        assert_eq!(at(&behind, Duration::ZERO), Holding::Settling(CATCH_UP));
        assert_eq!(at(&behind, CATCH_UP), Holding::Mine);
        assert_eq!(at(&after(Liveness::Dead, false), Duration::ZERO), Holding::Mine);
    }

    #[test]
    fn the_only_node_acts_at_once_and_one_of_many_hears_the_others_first() {
        let me = NodeId("a".into());
        let start = Moment::default();
        assert_eq!(holding(&key(1), &me, &nodes([node("a")]), start), Holding::Mine);
        let unseen = nodes([node("a"), node("b").unseen()]);
        assert_eq!(holding(&key(1), &me, &unseen, start), Holding::Settling(SETTLE));
        assert_eq!(holding(&key(1), &me, &unseen, LATER), Holding::Mine);
    }
}
