//! Drives rounds: proposes to drop old tombstones, asks all present peers, and tells them when it is done. Tells the store
//! whether anybody is in reach.
//!
//! One node at a time proposes, as in `compaction.rs`. What is decided, and why nothing comes back by it, is the store's.

use std::time::Duration;

use store::{Closing, CommitError, NodeId};
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use super::compaction::Electorate;
use super::sync::Sync;

/// Without being woken: tombstones that stayed because somebody was missing.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After a proposal that not everybody agreed to: mostly, changes of the rounds before were still under way.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// For a peer to digest all that it holds: some 100,000 objects take a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Sync {
    /// Runs until it is dropped.
    pub(super) async fn close_rounds(self) {
        let many = self.store.many_tombstones();
        let mut rest = LOOK_AGAIN;
        loop {
            // Either is a reason to look.
            _ = timeout(rest, many.notified()).await;
            sleep(PAUSE).await;
            rest = loop {
                match self.close_round().await {
                    Outcome::Closed => {}
                    Outcome::NothingToDo => break LOOK_AGAIN,
                    Outcome::NotAgreed => break ASK_AGAIN,
                }
            };
        }
    }

    async fn close_round(&self) -> Outcome {
        let Some(present) = self.electorate() else {
            return Outcome::NothingToDo;
        };
        let proposed = self.store.propose_closing(present.is_everyone).await;
        self.close(&present, proposed).await
    }

    /// As what is done now and then, with so many tombstones or more, however many nodes are present.
    #[cfg(test)]
    pub(super) async fn close_round_beyond(&self, tombstones: usize) {
        if let Some(present) = self.electorate() {
            let proposed = self.store.propose_closing_beyond(tombstones).await;
            self.close(&present, proposed).await;
        }
    }

    async fn close(&self, present: &Electorate, proposed: Result<Option<Closing>, CommitError>) -> Outcome {
        let mut closing = match proposed {
            Ok(Some(closing)) => closing,
            Ok(None) => return Outcome::NothingToDo,
            Err(error) => {
                error!(%error, "no round can be proposed");
                return Outcome::NothingToDo;
            }
        };
        for peer in &present.others {
            if !self.ask_to_close(peer, &mut closing).await {
                return Outcome::NotAgreed;
            }
            if !closing.is_agreed() {
                break;
            }
        }
        match self.store.close_round(closing).await {
            Ok(true) => {}
            Ok(false) => return Outcome::NotAgreed,
            Err(error) => {
                error!(%error, "a round cannot be closed");
                return Outcome::NothingToDo;
            }
        }
        for peer in &present.others {
            // Who does not hear of it now does with the next frame.
            if let Err(error) = self.catch_up(peer).await {
                debug!(%peer, %error, "a peer was not told that a round is closed");
            }
        }
        Outcome::Closed
    }

    /// False: the peer says nothing.
    async fn ask_to_close(&self, peer: &NodeId, closing: &mut Closing) -> bool {
        match self.send(peer, closing.frame(), ANSWER_TIMEOUT).await {
            Ok(answer) => {
                closing.answered(&answer.unwrap_or_default());
                true
            }
            Err(error) => {
                debug!(%peer, %error, "a peer does not answer whether a round can be closed");
                false
            }
        }
    }

    /// Tells the store whether peers are in reach. Runs until it is dropped.
    pub(super) async fn tell_contact(self) {
        let mut peers = self.peers.clone();
        loop {
            let is_alone = !peers.borrow_and_update().values().any(|peer| peer.live);
            self.store.set_alone(is_alone);
            if peers.changed().await.is_err() {
                return;
            }
        }
    }
}

enum Outcome {
    /// There may be more to close.
    Closed,
    /// There are few tombstones, this node is not the one to propose, or too few are there.
    NothingToDo,
    NotAgreed,
}
