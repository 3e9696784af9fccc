//! Events of what the store has to tell people: values that lost against concurrent ones, and records that it could not read.
//!
//! Listens from the moment the store is open: a restarted node meets what others did meanwhile in its first exchange.

use std::sync::Arc;

use reconcilers::ports::{EventKind, EventRecord, EventSink};
use schemas::{Kind, ObjectKey};
use store::{Conflict, ConflictSide, Store};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How much of a value is shown: both of a conflict fit the 1,024 bytes of an Event's message, with the names beside them.
const MAX_VALUE_BYTES: usize = 256;

/// What the store tells from when this was made.
pub(super) struct Reports {
    store: Store,
    conflicts: broadcast::Receiver<Conflict>,
    /// What could not be read then.
    unreadable: Vec<ObjectKey>,
}

impl Reports {
    /// Listens to a store that was just opened, before it meets another.
    pub(super) fn listen(store: &Store) -> Self {
        Self {
            store: store.clone(),
            conflicts: store.conflicts(),
            unreadable: store.unreadable(),
        }
    }

    /// Takes out the records that could not be read when the store was opened.
    pub(super) fn take_unreadable(&mut self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.unreadable)
    }

    /// Makes an Event of each value that lost against a concurrent one, until `shutdown` fires.
    pub(super) async fn run(mut self, events: Arc<dyn EventSink>, shutdown: CancellationToken) {
        loop {
            match shutdown.run_until_cancelled(self.conflicts.recv()).await {
                Some(Ok(conflict)) => events.event(resolved(&self.store, conflict)),
                Some(Err(RecvError::Lagged(missed))) => {
                    warn!(missed, "conflicts came faster than they could be reported");
                }
                Some(Err(RecvError::Closed)) | None => return,
            }
        }
    }
}

fn resolved(store: &Store, conflict: Conflict) -> EventRecord {
    let (winner, loser) = (side(store, &conflict.winner), side(store, &conflict.loser));
    let message = if conflict.path.is_empty() {
        format!("created at once by {winner} and by {loser}, not alike: what the former made stays")
    } else {
        format!(
            "{} was set at once to {} by {winner} and to {} by {loser}: the former stays",
            conflict.path,
            cut(&conflict.winner.value),
            cut(&conflict.loser.value),
        )
    };
    record(store, conflict.key, "ConflictResolved", message)
}

/// Says of a record that could not be read when the store was opened what became of it until now.
pub(super) fn unreadable(store: &Store, key: ObjectKey, node_name: &str) -> EventRecord {
    let outcome = if store.unreadable().contains(&key) {
        "cannot be read and is set aside; another node brings it, or it can be deleted"
    } else if store.get(&key).is_some_and(|view| view.stored) {
        "could not be read and is set aside; it was repaired from another node, without what that one did not have yet"
    } else {
        "could not be read and is set aside; it was deleted on another node"
    };
    let message = format!("what node {node_name} held of this object {outcome}");
    record(store, key, "RecordUnreadable", message)
}

fn record(store: &Store, key: ObjectKey, reason: &'static str, message: String) -> EventRecord {
    let view = store.get(&key);
    EventRecord {
        uid: view.map(|view| view.object.uid().to_owned()).unwrap_or_default(),
        key,
        kind: EventKind::Warning,
        reason,
        message,
        component: "store",
    }
}

fn side(store: &Store, side: &ConflictSide) -> String {
    let member = store.get(&ObjectKey::cluster(Kind::Member, &side.node.0));
    let name = member.map(|member| member.object.str_at("/spec/name").to_owned());
    let who = if side.user.is_empty() {
        &side.manager
    } else {
        &side.user
    };
    format!("{who} on node {}", name.as_deref().unwrap_or(&side.node.0))
}

fn cut(value: &str) -> String {
    if value.len() <= MAX_VALUE_BYTES {
        return value.to_owned();
    }
    format!("{}…", &value[..value.floor_char_boundary(MAX_VALUE_BYTES)])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reconcilers::fakes::FakeEvents;
    use schemas::Object;
    use store::{Author, Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Via, WriteError};

    use super::*;

    fn open(disk: &MemoryDisk, node: &str) -> Store {
        let options = OpenOptions {
            cluster_id: "c".into(),
            node: NodeId(node.into()),
            seal_key: [0; 32],
        };
        Store::open_in_memory(disk.clone(), options).unwrap()
    }

    fn author(user: &str) -> Author {
        Author {
            manager: "psctl".into(),
            user: user.into(),
            via: Via::Api,
            unix_seconds: 1_800_000_000,
        }
    }

    fn named(node: &str) -> Object {
        let mut member = Object::new(&ObjectKey::cluster(Kind::Member, node));
        member.set(&["spec", "name"], format!("node-{node}"));
        member
    }

    async fn exchange(from: &Store, to: &Store) {
        let (a, b) = (NodeId("a".into()), NodeId("b".into()));
        let mut next = from.begin_exchange(&b);
        let mut sides = [(to, &a), (from, &b)].into_iter().cycle();
        while let Exchange::Send(frame) = next {
            let (receiver, sender) = sides.next().unwrap();
            next = receiver.receive(sender, &frame).await.unwrap();
        }
    }

    async fn label(store: &Store, key: &ObjectKey, user: &str, value: &str) {
        let any = Precondition::default();
        let labelled = store.update::<WriteError>(key, &any, author(user), |object| {
            let mut object = object.clone();
            object.set(&["metadata", "labels", "side"], value);
            Ok(object)
        });
        labelled.await.unwrap();
    }

    #[tokio::test]
    async fn what_lost_while_the_agent_started_is_reported_with_both_values_and_nodes() {
        let (a, disk) = (open(&MemoryDisk::default(), "a"), MemoryDisk::default());
        let b = open(&disk, "b");
        let key = ObjectKey::new(Kind::Service, "shop", "web");
        for object in [named("a"), named("b"), Object::new(&key)] {
            a.create(object, author("admin")).await.unwrap();
        }
        exchange(&a, &b).await;
        label(&b, &key, "", "short").await;
        // More operations: it wins.
        label(&a, &key, "eve", "x").await;
        label(&a, &key, "eve", &"long ".repeat(1000)).await;

        drop(b);
        let b = open(&disk.after_power_loss(), "b");
        let reports = Reports::listen(&b);
        exchange(&a, &b).await;
        // So much later it begins to report.
        let (events, stop) = (Arc::new(FakeEvents::default()), CancellationToken::new());
        let running = tokio::spawn(reports.run(events.clone(), stop.clone()));
        let told = async {
            while events.count("ConflictResolved") == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told)
            .await
            .expect("an Event");
        stop.cancel();
        running.await.unwrap();
        let events = events.take();
        let [event] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((event.reason, &event.key), ("ConflictResolved", &key));
        for said in [
            "metadata.labels.side was set at once to \"long long ",
            "… by eve on node node-a and to \"short\" by psctl on node node-b",
        ] {
            assert!(event.message.contains(said), "{}", event.message);
        }
        assert!(event.message.len() < 1024, "an Event shows all of it");
    }

    #[tokio::test]
    async fn what_became_of_an_unreadable_record_is_said_whenever_it_was_repaired() {
        let (a, disk) = (open(&MemoryDisk::default(), "a"), MemoryDisk::default());
        let b = open(&disk, "b");
        let keys = ["deleted", "repaired"].map(|name| ObjectKey::new(Kind::Service, "shop", name));
        for key in &keys {
            a.create(Object::new(key), author("admin")).await.unwrap();
        }
        exchange(&a, &b).await;
        for key in &keys {
            disk.damage(&format!("d/{key}"));
        }
        a.remove(&keys[0], &Precondition::default(), author("admin"))
            .await
            .unwrap();
        let b = open(&disk.after_power_loss(), "b");
        let mut reports = Reports::listen(&b);
        let said = |key: &ObjectKey| unreadable(&b, key.clone(), "node-b").message;
        assert!(keys.iter().all(|key| said(key).contains("can be deleted")));
        exchange(&a, &b).await;
        assert_eq!(reports.take_unreadable(), keys);
        let messages = keys.each_ref().map(said);
        for (message, outcome) in messages.iter().zip(["was deleted", "repaired from another"]) {
            assert!(message.contains(outcome), "{message}");
        }
    }
}
