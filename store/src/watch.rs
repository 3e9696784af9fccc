//! Watches: a bounded history of changes and the readers that follow it. Lists of the past are read from it, too.
//!
//! A change costs what its matching readers cost. A reader that does not keep up loses its channel and lists again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use schemas::{Kind, ObjectKey};
use tokio::sync::mpsc;

use crate::index::set_resource_version;
use crate::packed::Packed;
use crate::types::{Gone, Revision, View, WatchEvent, WatchScope};

/// Changes that are kept for watches and lists that begin in the past: some seconds of heavy traffic.
const HISTORY_EVENTS: usize = 4096;
/// What these may take as JSON, before and after: 4,096 changes of objects of 2 KB, or eight of the largest. What is
/// still shown is counted too, although it takes nothing here.
const HISTORY_BYTES: usize = 16 << 20;
/// Changes that a reader may be behind: a second of heavy traffic.
const READER_EVENTS: usize = 1024;

/// What readers are found by; None is any.
type Interest = (Option<Kind>, Option<String>, Option<String>);

/// What a reader follows.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Empty: all kinds.
    pub(crate) kinds: Vec<Kind>,
    /// None: all namespaces.
    pub(crate) namespace: Option<String>,
    /// None: all names.
    pub(crate) name: Option<String>,
}

impl From<WatchScope> for Scope {
    fn from(WatchScope { kinds, namespace }: WatchScope) -> Self {
        Self {
            kinds,
            namespace,
            name: None,
        }
    }
}

/// A change that was.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) key: ObjectKey,
    /// As [`View::stored`], after the change.
    pub(crate) stored: bool,
    /// What was shown; None: nothing.
    pub(crate) before: Option<(Arc<Packed>, Revision)>,
    /// What is shown since; None: nothing.
    pub(crate) after: Option<Arc<Packed>>,
    pub(crate) revision: Revision,
}

impl Past {
    /// Returns what readers are told; reads trees from JSON, if nobody did lately.
    pub(crate) fn event(&self) -> WatchEvent {
        let before = self.before.as_ref().map(|(before, _)| before.tree());
        let last = self
            .after
            .as_ref()
            .or(self.before.as_ref().map(|(before, _)| before));
        let managed = last.and_then(|last| last.managed.clone());
        let view = |object| View {
            key: self.key.clone(),
            object,
            managed: managed.clone(),
            revision: self.revision,
            stored: self.stored,
        };
        match &self.after {
            Some(after) => WatchEvent::Put {
                view: view(after.tree()),
                previous: before,
            },
            None => {
                let mut object = before.map(Arc::unwrap_or_clone).unwrap_or_default();
                set_resource_version(&mut object, self.revision);
                WatchEvent::Deleted {
                    view: view(Arc::new(object)),
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let before = self.before.as_ref().map(|(before, _)| before);
        let objects = before.into_iter().chain(&self.after);
        objects.map(|object| object.all_bytes()).sum()
    }
}

#[derive(Debug)]
struct Reader {
    sender: mpsc::Sender<WatchEvent>,
    interests: Vec<Interest>,
}

/// The history and its readers.
#[derive(Debug)]
pub(crate) struct Watches {
    history: VecDeque<Arc<Past>>,
    /// Of all of the history.
    bytes: usize,
    /// The counter of the newest change that is no longer kept.
    forgotten: u64,
    readers: HashMap<u64, Reader>,
    by_interest: HashMap<Interest, BTreeSet<u64>>,
    next_reader: u64,
}

fn matches(scope: &Scope, key: &ObjectKey) -> bool {
    let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
    (scope.kinds.is_empty() || scope.kinds.contains(&key.kind))
        && is(&scope.namespace, &key.namespace)
        && is(&scope.name, &key.name)
}

impl Watches {
    /// Begins with a history after the change `counter`.
    pub(crate) fn new(counter: u64) -> Self {
        Self {
            history: VecDeque::new(),
            bytes: 0,
            forgotten: counter,
            readers: HashMap::new(),
            by_interest: HashMap::new(),
            next_reader: 0,
        }
    }

    /// Returns the changes after `from`, in their order.
    pub(crate) fn since(&self, scope: &Scope, from: u64) -> Result<Vec<Arc<Past>>, Gone> {
        if from < self.forgotten {
            return Err(Gone);
        }
        let start = self
            .history
            .partition_point(|past| past.revision.counter() <= from);
        let matching = self.history.range(start..);
        Ok(matching
            .filter(|past| matches(scope, &past.key))
            .cloned()
            .collect())
    }

    /// Adds a reader of `backlog`, of all changes after `from`, and of all that come.
    pub(crate) fn follow(
        &mut self,
        scope: &Scope,
        mut backlog: Vec<WatchEvent>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        backlog.extend(self.since(scope, from)?.iter().map(|past| past.event()));
        self.forget_closed();
        let (sender, receiver) = mpsc::channel(backlog.len() + READER_EVENTS);
        for event in backlog {
            // There is room for all of them.
            let _ = sender.try_send(event);
        }
        let kinds = scope.kinds.iter().copied().map(Some);
        let interests: Vec<Interest> = if scope.kinds.is_empty() {
            vec![None]
        } else {
            kinds.collect()
        }
        .into_iter()
        .map(|kind| (kind, scope.namespace.clone(), scope.name.clone()))
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
    pub(crate) fn publish(&mut self, past: Past) {
        let key = &past.key;
        // A reader that names a kind twice is told once.
        let mut readers: BTreeSet<u64> = BTreeSet::new();
        for kind in [Some(key.kind), None] {
            for namespace in [Some(&key.namespace), None] {
                for name in [Some(&key.name), None] {
                    let interest = (kind, namespace.cloned(), name.cloned());
                    readers.extend(self.by_interest.get(&interest).into_iter().flatten());
                }
            }
        }
        if !readers.is_empty() {
            let event = past.event();
            for id in readers {
                let told = self
                    .readers
                    .get(&id)
                    .map(|reader| reader.sender.try_send(event.clone()));
                if !matches!(told, Some(Ok(()))) {
                    self.forget(id);
                }
            }
        }
        self.bytes += past.bytes();
        self.history.push_back(Arc::new(past));
        while (self.history.len() > HISTORY_EVENTS || self.bytes > HISTORY_BYTES)
            && let Some(oldest) = self.history.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.forgotten = oldest.revision.counter();
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
    use schemas::Object;
    use serde_json::json;

    use super::*;
    use crate::packed::Recent;

    /// An object of half so many bytes, with as many of `managedFields`.
    fn packed(bytes: usize) -> Arc<Packed> {
        let half = "x".repeat(bytes / 2);
        let object = Object::from_value(json!({ "text": half })).unwrap();
        let managed = Some(Arc::from(half));
        Arc::new(Packed::new(
            &Arc::new(object),
            managed,
            &Arc::new(Recent::default()),
        ))
    }

    fn change(kind: Kind, namespace: &str, counter: u64) -> Past {
        Past {
            key: ObjectKey::new(kind, namespace, "x"),
            stored: true,
            before: None,
            after: Some(packed(1)),
            revision: Revision::new(counter, 7),
        }
    }

    fn scope(kinds: &[Kind], namespace: Option<&str>) -> Scope {
        Scope {
            kinds: kinds.to_vec(),
            namespace: namespace.map(str::to_owned),
            name: None,
        }
    }

    fn named(kinds: &[Kind], name: &str) -> Scope {
        Scope {
            name: Some(name.to_owned()),
            ..scope(kinds, None)
        }
    }

    fn follow(watches: &mut Watches, scope: &Scope, from: u64) -> mpsc::Receiver<WatchEvent> {
        watches.follow(scope, Vec::new(), from).unwrap()
    }

    fn counters(receiver: &mut mpsc::Receiver<WatchEvent>) -> Vec<u64> {
        std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|event| match event {
                WatchEvent::Put { view, .. } | WatchEvent::Deleted { view } => view.revision.counter(),
            })
            .collect()
    }

    #[test]
    fn readers_see_their_scope_from_where_they_begin() {
        let mut watches = Watches::new(0);
        for number in 1..=4 {
            let kind = if number % 2 == 0 { Kind::Pod } else { Kind::Service };
            watches.publish(change(kind, if number < 3 { "a" } else { "b" }, number));
        }
        for (scope, expected) in [
            (scope(&[], None), vec![2, 3, 4, 5]),
            (scope(&[Kind::Pod], None), vec![2, 4, 5]),
            (
                scope(&[Kind::Pod, Kind::Service, Kind::Pod], Some("b")),
                vec![3, 4],
            ),
            (scope(&[Kind::Node], None), vec![]),
            (named(&[Kind::Pod], "x"), vec![2, 4, 5]),
            (named(&[], "y"), vec![]),
        ] {
            let mut watches = Watches {
                history: watches.history.clone(),
                ..Watches::new(0)
            };
            let mut receiver = follow(&mut watches, &scope, 1);
            watches.publish(change(Kind::Pod, "a", 5));
            assert_eq!(counters(&mut receiver), expected, "{scope:?}");
        }
    }

    #[test]
    fn a_backlog_comes_before_what_happened_since() {
        let mut watches = Watches::new(0);
        let all = scope(&[], None);
        watches.publish(change(Kind::Pod, "a", 1));
        let backlog = watches.since(&all, 0).unwrap();
        let backlog = backlog.iter().map(|past| past.event()).collect();
        watches.publish(change(Kind::Pod, "a", 2));
        let mut receiver = watches.follow(&all, backlog, 1).unwrap();
        watches.publish(change(Kind::Pod, "a", 3));
        assert_eq!(counters(&mut receiver), [1, 2, 3]);
    }

    #[test]
    fn what_was_forgotten_is_gone() {
        let mut watches = Watches::new(10);
        let all = scope(&[], None);
        assert_eq!(watches.follow(&all, Vec::new(), 9).err(), Some(Gone));
        for number in 11..11 + HISTORY_EVENTS as u64 + 5 {
            watches.publish(change(Kind::Pod, "a", number));
        }
        assert_eq!(watches.follow(&all, Vec::new(), 14).err(), Some(Gone));
        let mut receiver = follow(&mut watches, &all, 15);
        assert_eq!(counters(&mut receiver).first(), Some(&16));
    }

    #[test]
    fn large_objects_have_a_shorter_history() {
        let mut watches = Watches::new(0);
        let large = packed(HISTORY_BYTES / 8);
        let mut before = None;
        for number in 1..=100 {
            let mut change = change(Kind::Pod, "a", number);
            change.after = Some(large.clone());
            change.before = before.replace((large.clone(), change.revision));
            watches.publish(change);
            assert!(watches.bytes <= HISTORY_BYTES, "{}", watches.bytes);
        }
        assert_eq!(
            watches.since(&scope(&[], None), 97).map(|events| events.len()),
            Ok(3)
        );
        assert_eq!(watches.since(&scope(&[], None), 96).err(), Some(Gone));
        let kept: usize = watches.history.iter().map(|past| past.bytes()).sum();
        assert_eq!(kept, watches.bytes);
    }

    #[test]
    fn a_slow_reader_is_cut_off_and_others_are_not() {
        let mut watches = Watches::new(0);
        let mut slow = follow(&mut watches, &scope(&[Kind::Pod], None), 0);
        let mut quiet = follow(&mut watches, &scope(&[Kind::Service], None), 0);
        for number in 1..=READER_EVENTS as u64 + 1 {
            watches.publish(change(Kind::Pod, "a", number));
        }
        watches.publish(change(Kind::Service, "a", 5000));
        assert_eq!(counters(&mut slow).len(), READER_EVENTS);
        assert!(slow.is_closed());
        assert_eq!(counters(&mut quiet), [5000]);
        drop(quiet);
        watches.forget_closed();
        assert!(watches.readers.is_empty() && watches.by_interest.is_empty());
    }
}
