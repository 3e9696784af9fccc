//! The keys that wait for a run: deduplicated, one run per key at a time, with backoff after failures.
//!
//! Pure: times and randomness come in. Its size is bounded by the number of distinct keys. The loop around it is in
//! [`super`].

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Wait after the first failure; also the least time between a failure and the next run, whatever happens.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: a remedy that makes no event (a disk with room again) is noticed within this.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Done,
    /// Run again after this time.
    After(Duration),
    Failed,
}

#[derive(Debug)]
enum State {
    Waiting(Instant),
    /// `again` is set by what wanted the key during the run.
    Running {
        again: Option<Instant>,
    },
}

#[derive(Debug)]
struct Entry {
    state: State,
    failures: u32,
    /// No run before this, after a failure.
    not_before: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Queue<K> {
    entries: HashMap<K, Entry>,
    /// The waiting entries in the order in which they are due.
    due: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub(super) fn new() -> Self {
        Self {
            entries: HashMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// Asks for a run of `key` at `at` or earlier.
    pub(super) fn want(&mut self, key: K, at: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.wait(key, at, 0, None);
            return;
        };
        let at = entry.not_before.map_or(at, |earliest| earliest.max(at));
        match &mut entry.state {
            State::Running { again } => *again = Some(again.map_or(at, |earlier| earlier.min(at))),
            State::Waiting(due) if at < *due => {
                self.due.remove(&(*due, key.clone()));
                *due = at;
                self.due.insert((at, key));
            }
            State::Waiting(_) => {}
        }
    }

    /// Takes the key that is due the longest; it counts as running until [`Queue::ended`].
    pub(super) fn take(&mut self, now: Instant) -> Option<K> {
        if self.next_due()? > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::Running { again: None };
            entry.not_before = None;
        }
        Some(key)
    }

    /// All keys that wait or run.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Returns when the next key is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes note of the end of a run. `jitter` in 0..1 spreads what failed together.
    pub(super) fn ended(&mut self, key: K, ended: Ended, now: Instant, jitter: f64) {
        let Some(entry) = self.entries.remove(&key) else {
            return;
        };
        let again = match entry.state {
            State::Running { again } => again,
            State::Waiting(_) => None,
        };
        match ended {
            Ended::Done => {
                if let Some(at) = again {
                    self.wait(key, at, 0, None);
                }
            }
            Ended::After(pause) => {
                let at = now + pause;
                self.wait(key, again.map_or(at, |again| again.min(at)), 0, None);
            }
            Ended::Failed => {
                let earliest = now + BACKOFF_FIRST;
                let at = now + backoff(entry.failures, jitter);
                let at = again.map_or(at, |again| again.max(earliest).min(at));
                self.wait(key, at, entry.failures.saturating_add(1), Some(earliest));
            }
        }
    }

    fn wait(&mut self, key: K, at: Instant, failures: u32, not_before: Option<Instant>) {
        self.due.insert((at, key.clone()));
        let state = State::Waiting(at);
        self.entries.insert(
            key,
            Entry {
                state,
                failures,
                not_before,
            },
        );
    }
}

/// 100, 200, 400 ms … 30 s after `failures` earlier failures, each up to a half longer by `jitter`.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    let jitter = jitter.clamp(0.0, 1.0);
    doubled
        .min(BACKOFF_MAX)
        .mul_f64(1.0 + jitter / 2.0)
        .min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_wanted_twice_runs_once() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.want("a", now);
        queue.want("a", now);
        assert_eq!(queue.take(now), Some("a"));
        assert_eq!(queue.take(now), None);
        queue.ended("a", Ended::Done, now, 0.0);
        assert_eq!(queue.next_due(), None);
        assert!(queue.entries.is_empty(), "an idle key costs nothing");
    }

    #[test]
    fn a_key_wanted_while_it_runs_runs_again_afterwards() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.want("a", now);
        assert_eq!(queue.take(now), Some("a"));
        queue.want("a", now);
        assert_eq!(queue.take(now), None, "one run per key at a time");
        queue.ended("a", Ended::After(Duration::from_secs(9)), now, 0.0);
        assert_eq!(queue.take(now), Some("a"));
    }

    #[test]
    fn the_earliest_wish_counts() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.want("a", now + Duration::from_secs(5));
        queue.want("a", now + Duration::from_secs(1));
        queue.want("a", now + Duration::from_secs(3));
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn failures_back_off_up_to_the_bound_and_success_forgets_them() {
        let mut now = Instant::now();
        let mut queue = Queue::new();
        queue.want("a", now);
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            assert_eq!(queue.take(now), Some("a"));
            queue.ended("a", Ended::Failed, now, 0.5);
            let due = queue.next_due().expect("a failed key is tried again");
            assert!(due - now >= last, "backoff does not shrink");
            last = due - now;
            now = due;
        }
        assert_eq!(last, BACKOFF_MAX);
        assert_eq!(queue.take(now), Some("a"));
        queue.ended("a", Ended::Done, now, 0.0);
        queue.want("a", now);
        assert_eq!(queue.take(now), Some("a"));
        queue.ended("a", Ended::Failed, now, 0.0);
        assert_eq!(queue.next_due(), Some(now + BACKOFF_FIRST));
    }

    #[test]
    fn an_event_shortens_a_backoff_but_never_below_the_first() {
        let now = Instant::now();
        let mut queue = Queue::new();
        queue.want("a", now);
        for _ in 0..10 {
            let due = queue.next_due().expect("wanted");
            assert_eq!(queue.take(due), Some("a"));
            queue.ended("a", Ended::Failed, now, 0.0);
        }
        assert!(queue.next_due() > Some(now + BACKOFF_FIRST));
        queue.want("a", now);
        assert_eq!(queue.next_due(), Some(now + BACKOFF_FIRST));
    }
}
