//! Watches: a bounded history of changes and the readers that follow it.
//!
//! A change costs what its matching readers cost. A reader that does not keep up loses its channel and lists again.

use std::collections::{BTreeSet, HashMap, VecDeque};

use schemas::{Kind, ObjectKey};
use tokio::sync::mpsc;

use crate::types::{Gone, View, WatchEvent, WatchScope};

/// Changes that are kept for watches that begin in the past. Each has one tree of its own; at 10 KB in memory this is
/// 10 MB.
const HISTORY_EVENTS: usize = 1024;
/// Changes that a reader may be behind: a second of heavy traffic.
const READER_EVENTS: usize = 1024;

/// What readers are found by; None is any.
type Interest = (Option<Kind>, Option<String>);

#[derive(Debug)]
struct Reader {
    sender: mpsc::Sender<WatchEvent>,
    interests: Vec<Interest>,
}

/// The history and its readers.
#[derive(Debug)]
pub(crate) struct Watches {
    events: VecDeque<WatchEvent>,
    /// The counter of the newest change that is no longer kept.
    forgotten: u64,
    readers: HashMap<u64, Reader>,
    by_interest: HashMap<Interest, BTreeSet<u64>>,
    next_reader: u64,
}

fn counter(event: &WatchEvent) -> u64 {
    view(event).revision.counter()
}

fn view(event: &WatchEvent) -> &View {
    match event {
        WatchEvent::Put { view, .. } | WatchEvent::Deleted { view } => view,
    }
}

fn matches(scope: &WatchScope, key: &ObjectKey) -> bool {
    (scope.kinds.is_empty() || scope.kinds.contains(&key.kind))
        && scope
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == key.namespace)
}

impl Watches {
    /// Begins with a history after the change `counter`.
    pub(crate) fn new(counter: u64) -> Self {
        Self {
            events: VecDeque::new(),
            forgotten: counter,
            readers: HashMap::new(),
            by_interest: HashMap::new(),
            next_reader: 0,
        }
    }

    /// Adds a reader of all changes after `from`.
    pub(crate) fn follow(
        &mut self,
        scope: &WatchScope,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        if from < self.forgotten {
            return Err(Gone);
        }
        self.forget_closed();
        let start = self.events.partition_point(|event| counter(event) <= from);
        let backlog: Vec<&WatchEvent> = self
            .events
            .range(start..)
            .filter(|event| matches(scope, &view(event).key))
            .collect();
        let (sender, receiver) = mpsc::channel(backlog.len() + READER_EVENTS);
        for event in backlog {
            // There is room for all of them.
            let _ = sender.try_send(event.clone());
        }
        let kinds = scope.kinds.iter().copied().map(Some);
        let interests: Vec<Interest> = if scope.kinds.is_empty() {
            vec![None]
        } else {
            kinds.collect()
        }
        .into_iter()
        .map(|kind| (kind, scope.namespace.clone()))
        .collect();
        let id = self.next_reader;
        self.next_reader += 1;
        for interest in &interests {
            self.by_interest.entry(interest.clone()).or_default().insert(id);
        }
        self.readers.insert(id, Reader { sender, interests });
        Ok(receiver)
    }

    /// Adds a change and tells those that follow.
    pub(crate) fn publish(&mut self, event: WatchEvent) {
        let key = &view(&event).key;
        let namespace = Some(key.namespace.clone());
        let interests = [
            (Some(key.kind), namespace.clone()),
            (Some(key.kind), None),
            (None, namespace),
            (None, None),
        ];
        // A reader that names a kind twice is told once.
        let readers: BTreeSet<u64> = interests
            .iter()
            .filter_map(|interest| self.by_interest.get(interest))
            .flatten()
            .copied()
            .collect();
        for id in readers {
            let told = self
                .readers
                .get(&id)
                .map(|reader| reader.sender.try_send(event.clone()));
            if !matches!(told, Some(Ok(()))) {
                self.forget(id);
            }
        }
        self.events.push_back(event);
        if self.events.len() > HISTORY_EVENTS
            && let Some(oldest) = self.events.pop_front()
        {
            self.forgotten = counter(&oldest);
        }
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        self.readers.clear();
        self.by_interest.clear();
    }

    fn forget_closed(&mut self) {
        let closed = self
            .readers
            .iter()
            .filter(|(_, reader)| reader.sender.is_closed());
        let closed: Vec<u64> = closed.map(|(id, _)| *id).collect();
        closed.into_iter().for_each(|id| self.forget(id));
    }

    fn forget(&mut self, id: u64) {
        let Some(reader) = self.readers.remove(&id) else {
            return;
        };
        for interest in reader.interests {
            if let Some(readers) = self.by_interest.get_mut(&interest) {
                readers.remove(&id);
                if readers.is_empty() {
                    self.by_interest.remove(&interest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::Object;

    use super::*;
    use crate::types::Revision;

    fn event(kind: Kind, namespace: &str, counter: u64) -> WatchEvent {
        let key = ObjectKey::new(kind, namespace, "x");
        let object = Arc::new(Object::new(&key));
        let revision = Revision::new(counter, 7);
        WatchEvent::Deleted {
            view: View {
                key,
                object,
                revision,
                stored: true,
            },
        }
    }

    fn scope(kinds: &[Kind], namespace: Option<&str>) -> WatchScope {
        WatchScope {
            kinds: kinds.to_vec(),
            namespace: namespace.map(str::to_owned),
        }
    }

    fn counters(receiver: &mut mpsc::Receiver<WatchEvent>) -> Vec<u64> {
        std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|event| counter(&event))
            .collect()
    }

    #[test]
    fn readers_see_their_scope_from_where_they_begin() {
        let mut watches = Watches::new(0);
        for number in 1..=4 {
            let kind = if number % 2 == 0 { Kind::Pod } else { Kind::Service };
            watches.publish(event(kind, if number < 3 { "a" } else { "b" }, number));
        }
        for (scope, expected) in [
            (scope(&[], None), vec![2, 3, 4, 5]),
            (scope(&[Kind::Pod], None), vec![2, 4, 5]),
            (
                scope(&[Kind::Pod, Kind::Service, Kind::Pod], Some("b")),
                vec![3, 4],
            ),
            (scope(&[Kind::Node], None), vec![]),
        ] {
            let mut watches = Watches {
                events: watches.events.clone(),
                ..Watches::new(0)
            };
            let mut receiver = watches.follow(&scope, 1).unwrap();
            watches.publish(event(Kind::Pod, "a", 5));
            assert_eq!(counters(&mut receiver), expected, "{scope:?}");
        }
    }

    #[test]
    fn what_was_forgotten_is_gone() {
        let mut watches = Watches::new(10);
        assert_eq!(watches.follow(&scope(&[], None), 9).err(), Some(Gone));
        for number in 11..11 + HISTORY_EVENTS as u64 + 5 {
            watches.publish(event(Kind::Pod, "a", number));
        }
        assert_eq!(watches.follow(&scope(&[], None), 14).err(), Some(Gone));
        let mut receiver = watches.follow(&scope(&[], None), 15).unwrap();
        assert_eq!(counters(&mut receiver).first(), Some(&16));
    }

    #[test]
    fn a_slow_reader_is_cut_off_and_others_are_not() {
        let mut watches = Watches::new(0);
        let mut slow = watches.follow(&scope(&[Kind::Pod], None), 0).unwrap();
        let mut quiet = watches.follow(&scope(&[Kind::Service], None), 0).unwrap();
        for number in 1..=READER_EVENTS as u64 + 1 {
            watches.publish(event(Kind::Pod, "a", number));
        }
        watches.publish(event(Kind::Service, "a", 5000));
        assert_eq!(counters(&mut slow).len(), READER_EVENTS);
        assert!(slow.is_closed());
        assert_eq!(counters(&mut quiet), [5000]);
        drop(quiet);
        watches.forget_closed();
        assert!(watches.readers.is_empty() && watches.by_interest.is_empty());
    }
}
