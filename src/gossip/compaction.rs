//! Drives compaction: proposes to squash long histories, asks all present peers, and squashes what they agree to.
//!
//! One node at a time proposes, the first of those present, so that proposals do not get in one another's way.

use std::time::Duration;

use reconcilers::ports::Liveness;
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
    async fn squash_some(&self) -> Outcome {
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
        let admitted = members::list(&self.store);
        let cluster = self.cluster.borrow().clone();
        let is_present = |node: &&NodeId| {
            let seen = cluster.nodes.get(*node);
            **node == self.me || seen.is_some_and(|seen| seen.liveness == Liveness::Alive)
        };
        let present: Vec<&NodeId> = admitted.keys().filter(is_present).collect();
        if present.first() != Some(&&self.me) || present.len() * 2 <= admitted.len() {
            return None;
        }
        Some(Electorate {
            is_everyone: present.len() == admitted.len(),
            others: present[1..].iter().map(|node| (*node).clone()).collect(),
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

enum Outcome {
    /// There may be more to squash.
    Squashed,
    /// No history is long, this node is not the one to propose, or too few are there.
    NothingToDo,
    NotAgreed,
}

/// Who has to agree to what one node proposes.
pub(super) struct Electorate {
    pub(super) others: Vec<NodeId>,
    /// All that are admitted are present.
    pub(super) is_everyone: bool,
}
