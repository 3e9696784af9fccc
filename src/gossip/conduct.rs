//! How members behave where frames of sync come in: one that floods waits for its turn or is turned away, one that sends
//! nonsense is cut off for a while, and neither fills the log. Whether it means to or is broken: the others must not suffer.

use std::collections::HashMap;
use std::mem::Discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::{NodeId, SyncError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Frames of one peer that are taken at a time: it pushes one after another, and begins few exchanges. With the largest
/// frames these are 64 MiB.
pub(super) const FRAMES_AT_ONCE: usize = 16;
/// Frames of one peer that cannot be read, or hold what no store can take, within [`WINDOW`]; after that many it is cut off until the window ends.
pub(super) const BAD_FRAMES: u32 = 16;
const WINDOW: Duration = Duration::from_secs(60);

/// Between two lines of the log of one kind of refusal: a peer of another version would make one with each write.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Why a peer's frame is not even read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum TurnedAway {
    #[error("{FRAMES_AT_ONCE} frames of yours are being taken, send less at once")]
    Flood,
    #[error("{BAD_FRAMES} frames of yours could not be read or taken; wait for {0:?}")]
    Nonsense(Duration),
}

struct Peer {
    turns: Arc<Semaphore>,
    bad: u32,
    /// The first bad frame.
    since: Instant,
    /// When which refusals were told.
    told: HashMap<Discriminant<SyncError>, Instant>,
}

/// What is remembered of all members: as much as there are of them.
#[derive(Default)]
pub(super) struct Conduct(Mutex<HashMap<NodeId, Peer>>);

impl Conduct {
    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a member's frame be read; its turn ends with the permit.
    pub(super) fn begin(&self, node: &NodeId) -> Result<OwnedSemaphorePermit, TurnedAway> {
        let mut peers = self.peers();
        let peer = peers.entry(node.clone()).or_insert_with(|| Peer {
            turns: Arc::new(Semaphore::new(FRAMES_AT_ONCE)),
            bad: 0,
            since: Instant::now(),
            told: HashMap::new(),
        });
        let left = WINDOW.saturating_sub(peer.since.elapsed());
        if left.is_zero() {
            peer.bad = 0;
        }
        if peer.bad >= BAD_FRAMES {
            return Err(TurnedAway::Nonsense(left));
        }
        let turn = peer.turns.clone().try_acquire_owned();
        turn.map_err(|_| TurnedAway::Flood)
    }

    /// Counts a frame that could not be read, or held what no store can take; true if that was the last one that is let pass.
    pub(super) fn was_bad(&self, node: &NodeId) -> bool {
        let mut peers = self.peers();
        let Some(peer) = peers.get_mut(node) else {
            return false;
        };
        if peer.bad == 0 {
            peer.since = Instant::now();
        }
        peer.bad += 1;
        peer.bad == BAD_FRAMES
    }

    /// Tells whether a refusal of a member's frame belongs into the log: others of its kind were not told for a while.
    pub(super) fn is_news(&self, node: &NodeId, refusal: &SyncError) -> bool {
        let mut peers = self.peers();
        let Some(peer) = peers.get_mut(node) else {
            return true;
        };
        let now = Instant::now();
        let kind = std::mem::discriminant(refusal);
        let last = peer.told.get(&kind);
        let is_news = last.is_none_or(|last| now.duration_since(*last) >= TELL_AGAIN);
        if is_news {
            peer.told.insert(kind, now);
        }
        is_news
    }

    /// Forgets who is no member any more.
    pub(super) fn forget(&self, node: &NodeId) {
        self.peers().remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nonsense_cuts_off_for_a_while_and_only_who_sends_it() {
        let conduct = Conduct::default();
        let [bad, good] = ["bad", "good"].map(|node| NodeId(node.to_owned()));
        for number in 1..=BAD_FRAMES {
            drop(conduct.begin(&bad).unwrap());
            assert_eq!(conduct.was_bad(&bad), number == BAD_FRAMES);
        }
        assert_eq!(conduct.begin(&bad).err(), Some(TurnedAway::Nonsense(WINDOW)));
        assert!(conduct.begin(&good).is_ok());
        tokio::time::advance(WINDOW).await;
        drop(conduct.begin(&bad).unwrap());
        assert!(!conduct.was_bad(&bad), "it begins anew");
    }

    #[tokio::test]
    async fn a_flood_is_turned_away_and_only_who_sends_it() {
        let conduct = Conduct::default();
        let [bad, good] = ["bad", "good"].map(|node| NodeId(node.to_owned()));
        let mut turns: Vec<_> = (0..FRAMES_AT_ONCE)
            .map(|_| conduct.begin(&bad).unwrap())
            .collect();
        assert_eq!(conduct.begin(&bad).err(), Some(TurnedAway::Flood));
        assert!(conduct.begin(&good).is_ok());
        turns.pop();
        assert!(conduct.begin(&bad).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_once_in_a_while_of_each_peer_and_kind() {
        let conduct = Conduct::default();
        let [old, new] = ["old", "new"].map(|node| NodeId(node.to_owned()));
        for node in [&old, &new] {
            drop(conduct.begin(node).unwrap());
        }
        let version = |theirs| SyncError::Version { ours: 3, theirs };
        assert!(conduct.is_news(&old, &version(2)));
        for theirs in 0..5 {
            assert!(!conduct.is_news(&old, &version(theirs)));
        }
        assert!(conduct.is_news(&new, &version(4)));
        assert!(conduct.is_news(&old, &SyncError::Malformed("bytes".to_owned())));
        tokio::time::advance(TELL_AGAIN).await;
        assert!(conduct.is_news(&old, &version(2)));
    }
}
