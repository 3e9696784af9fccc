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
/// Between two looks, so that a burst of changes is one proposal.
const PAUSE: Duration = Duration::from_millis(500);
/// For a peer to read [a proposal's](Proposal) documents.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Sync {
    /// Runs until it is dropped.
    pub(super) async fn compact(self) {
        let long = self.store.long_histories();
        loop {
            // Either is a reason to look.
            _ = timeout(LOOK_AGAIN, long.notified()).await;
            sleep(PAUSE).await;
            while self.squash_some().await {}
        }
    }

    /// Squashes some histories; true if there may be more.
    async fn squash_some(&self) -> bool {
        let Some(present) = self.electorate() else {
            return false;
        };
        let Some(mut proposal) = self.store.propose() else {
            return false;
        };
        for peer in present.others {
            if !self.ask(&peer, &mut proposal).await {
                return false;
            }
        }
        match self.store.squash(proposal, present.is_everyone).await {
            Ok(squashed) => squashed > 0,
            Err(error) => {
                error!(%error, "histories cannot be squashed");
                false
            }
        }
    }

    /// Who has to agree; None if this node is not the one to propose, or too few are there.
    fn electorate(&self) -> Option<Electorate> {
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

struct Electorate {
    others: Vec<NodeId>,
    /// All that are admitted are present.
    is_everyone: bool,
}
