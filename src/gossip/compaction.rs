//! Drives compaction: proposes to squash long histories, asks all present peers, and squashes what they agree to.
//!
//! One node at a time proposes, the first of those present, so that proposals do not get in one another's way.

use std::collections::BTreeSet;
use std::time::Duration;

use reconcilers::ports::{Liveness, NodeFacts};
use store::{NodeId, Proposal};
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use super::members;
use super::sync::Sync;

/// Without being woken: histories that stayed long because somebody was missing.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After a proposal that not everybody agreed to: mostly a peer that does not have all of a burst of changes yet.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks, so that a burst of changes is one proposal.
const PAUSE: Duration = Duration::from_millis(500);
/// For a peer to read [a proposal's](Proposal) documents.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Sync {
    /// Runs until it is dropped.
    pub(super) async fn compact(self) {
        let long = self.store.long_histories();
        let mut rest = LOOK_AGAIN;
        loop {
            // Either is a reason to look.
            _ = timeout(rest, long.notified()).await;
            sleep(PAUSE).await;
            rest = loop {
                match self.squash_some().await {
                    Outcome::Squashed => {}
                    Outcome::NothingToDo => break LOOK_AGAIN,
                    Outcome::NotAgreed => break ASK_AGAIN,
                }
            };
        }
    }

    /// Squashes some histories.
    pub(super) async fn squash_some(&self) -> Outcome {
        let Some(present) = self.electorate() else {
            return Outcome::NothingToDo;
        };
        let Some(mut proposal) = self.store.propose() else {
            return Outcome::NothingToDo;
        };
        for peer in present.others {
            if !self.ask(&peer, &mut proposal).await {
                return Outcome::NotAgreed;
            }
        }
        match self.store.squash(proposal, present.is_everyone).await {
            Ok(0) => Outcome::NotAgreed,
            Ok(_) => Outcome::Squashed,
            Err(error) => {
                error!(%error, "histories cannot be squashed");
                Outcome::NothingToDo
            }
        }
    }

    /// Who has to agree; None if this node is not the one to propose, or too few are there.
    pub(super) fn electorate(&self) -> Option<Electorate> {
        let admitted = members::list(&self.store).into_keys().collect();
        let cluster = self.cluster.borrow().clone();
        elect(&admitted, &self.me, |node| {
            let seen = cluster.nodes.get(node);
            // Who can write nothing down can agree to nothing.
            let can_write = |facts: &NodeFacts| facts.disk_full.is_empty() && facts.store_error.is_empty();
            seen.is_some_and(|seen| seen.liveness == Liveness::Alive && can_write(&seen.facts))
        })
    }

    async fn ask(&self, peer: &NodeId, proposal: &mut Proposal) -> bool {
        match self.send(peer, proposal.frame(), ANSWER_TIMEOUT).await {
            Ok(Some(answer)) => {
                proposal.answered(&answer);
                true
            }
            Ok(None) => false,
            Err(error) => {
                debug!(%peer, %error, "a peer does not answer a proposal");
                false
            }
        }
    }
}

/// What came of a look at the histories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// There may be more to squash.
    Squashed,
    /// No history is long, this node is not the one to propose, or too few are there.
    NothingToDo,
    NotAgreed,
}

/// Who has to agree to what one node proposes.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Electorate {
    pub(super) others: Vec<NodeId>,
    /// All that are admitted are present.
    pub(super) is_everyone: bool,
}

/// Decides who has to agree to what `me` proposes: all that are present, and they must be more than half of the admitted.
/// Of those the first proposes.
fn elect(admitted: &BTreeSet<NodeId>, me: &NodeId, is_alive: impl Fn(&NodeId) -> bool) -> Option<Electorate> {
    let is_present = |node: &&NodeId| *node == me || is_alive(node);
    let mut present = admitted.iter().filter(is_present);
    if present.next()? != me {
        return None;
    }
    let others: Vec<NodeId> = present.cloned().collect();
    let present = 1 + others.len();
    (present * 2 > admitted.len()).then_some(Electorate {
        is_everyone: present == admitted.len(),
        others,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes are letters. `expected`: those who are asked, and whether they and `me` are everyone.
    #[track_caller]
    fn check(admitted: &str, alive: &str, me: &str, expected: Option<(&str, bool)>) {
        let node = |letter: char| NodeId(letter.to_string());
        let admitted_nodes = admitted.chars().map(node).collect();
        let elected = elect(&admitted_nodes, &NodeId(me.into()), |node| {
            alive.contains(&node.0)
        });
        let expected = expected.map(|(others, is_everyone)| Electorate {
            others: others.chars().map(node).collect(),
            is_everyone,
        });
        assert_eq!(elected, expected, "admitted {admitted}, alive {alive}, me {me}");
    }

    #[test]
    fn the_first_of_a_majority_of_the_admitted_proposes_to_all_that_are_there() {
        // Whether this node sees itself as alive does not matter.
        check("a", "a", "a", Some(("", true)));
        check("a", "", "a", Some(("", true)));
        check("ab", "ab", "a", Some(("b", true)));
        check("ab", "a", "a", None);
        check("ab", "b", "b", None);
        check("abc", "abc", "a", Some(("bc", true)));
        check("abc", "abc", "b", None);
        check("abc", "bc", "b", Some(("c", false)));
        check("abc", "ac", "a", Some(("c", false)));
        check("abc", "c", "c", None);
        // Half is no majority: both halves could have it.
        check("abcd", "ab", "a", None);
        check("abcd", "cd", "c", None);
        check("abcd", "abd", "a", Some(("bd", false)));
        check("abcde", "cde", "c", Some(("de", false)));
        check("abcde", "ab", "a", None);
        // Who was removed neither counts nor is asked, although it lives; nor does it propose.
        check("bc", "abc", "b", Some(("c", true)));
        check("bc", "abc", "a", None);
        check("bcd", "ab", "b", None);
        check("", "a", "a", None);
    }
}
