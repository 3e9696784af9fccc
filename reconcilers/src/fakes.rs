//! The ports in memory, for tests and simulations: a clock that the test moves, sinks that remember.
//!
//! Never a part of the agent.

pub mod network;
pub mod runtime;
pub mod sinks;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::ports::{Announcer, Clock, EventRecord, EventSink, Moment, NodeFacts};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A clock that stands still until it is advanced.
#[derive(Debug, Default)]
pub struct FakeClock {
    now: Mutex<Duration>,
}

/// What the wall clock shows at [`Moment`] zero: 2026-01-01T00:00:00Z.
pub const FAKE_EPOCH_UNIX_SECONDS: i64 = 1_767_225_600;

impl FakeClock {
    /// Moves both the monotonic and the wall clock.
    pub fn advance(&self, by: Duration) {
        *lock(&self.now) += by;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Moment {
        Moment(*lock(&self.now))
    }

    fn unix_seconds(&self) -> i64 {
        FAKE_EPOCH_UNIX_SECONDS.saturating_add_unsigned(lock(&self.now).as_secs())
    }
}

/// Remembers every event in order.
#[derive(Debug, Default)]
pub struct FakeEvents {
    events: Mutex<Vec<EventRecord>>,
}

impl FakeEvents {
    /// Returns what was recorded since the last call.
    pub fn take(&self) -> Vec<EventRecord> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Returns how many events with this reason were recorded since the last [`FakeEvents::take`].
    pub fn count(&self, reason: &str) -> usize {
        let events = lock(&self.events);
        events.iter().filter(|event| event.reason == reason).count()
    }
}

impl EventSink for FakeEvents {
    fn event(&self, event: EventRecord) {
        lock(&self.events).push(event);
    }
}

/// Remembers what this node would publish.
#[derive(Debug, Default)]
pub struct FakeAnnouncer {
    pods: Mutex<BTreeMap<String, Value>>,
    facts: Mutex<NodeFacts>,
}

impl FakeAnnouncer {
    /// Returns the published status of each pod by uid.
    pub fn pods(&self) -> BTreeMap<String, Value> {
        lock(&self.pods).clone()
    }

    /// Returns the published facts of the node.
    pub fn facts(&self) -> NodeFacts {
        lock(&self.facts).clone()
    }
}

impl Announcer for FakeAnnouncer {
    fn announce_pod(&self, pod_uid: &str, status: Option<Value>) {
        let mut pods = lock(&self.pods);
        match status {
            Some(status) => pods.insert(pod_uid.to_owned(), status),
            None => pods.remove(pod_uid),
        };
    }

    fn announce_node(&self, facts: NodeFacts) {
        *lock(&self.facts) = facts;
    }
}
