//! A store without a thread and a runtime: what is queued is committed where its own futures wait for that. An execution of
//! a target is then the store's work alone, and the same each time.
//!
//! Never here: the thread that commits. It runs the same committer (`commit.rs`), and tests of the store try it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::{MAX_EXCHANGE_FRAMES, options};
use crate::commit::Committer;
use crate::{Exchange, MemoryDisk, NodeId, OpenError, Store};

pub(super) struct Replica {
    pub(super) store: Store,
    committer: Committer<MemoryDisk>,
}

impl Replica {
    pub(super) fn open(disk: &MemoryDisk, node: &str) -> Result<Self, OpenError> {
        let (store, committer) = Store::load(disk.clone(), "memory", options(node))?;
        Ok(Self { store, committer })
    }

    /// Does something with the store to its end.
    pub(super) fn run<T>(&mut self, work: impl AsyncFnOnce(&Store) -> T) -> T {
        let mut work = pin!(work(&self.store));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
                return done;
            }
            assert!(self.committer.commit_queued(), "it waits for what never comes");
        }
    }

    /// Commits what nobody waits for, and ends the writes; the store can still be read.
    pub(super) fn close(mut self) -> Store {
        while self.committer.commit_queued() {}
        self.store
    }
}

/// Runs exchanges that `from` begins until there is nothing more to say, and returns their frames.
pub(super) fn exchange(from: &mut Replica, to: &mut Replica) -> Vec<bytes::Bytes> {
    let peer = NodeId("peer".to_owned());
    let mut frames = Vec::new();
    let mut next = from.store.begin_exchange(&peer);
    let mut to_is_next = true;
    while let Exchange::Send(frame) = next {
        assert!(
            frames.len() < MAX_EXCHANGE_FRAMES,
            "an exchange that does not end"
        );
        let receiver = if to_is_next { &mut *to } else { &mut *from };
        next = receiver
            .run(async |store| store.receive(&peer, &frame).await)
            .expect("a frame of a store's");
        frames.push(frame);
        to_is_next = !to_is_next;
    }
    frames
}
