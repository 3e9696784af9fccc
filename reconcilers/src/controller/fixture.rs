//! A store and the rest of a [`Context`] in memory, for the tests of single controllers.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{Author, MemoryDisk, NodeId, OpenOptions, Precondition, Store, Via, WriteError};
use tokio::sync::watch;

use super::Context;
use crate::fakes::{FakeClock, FakeEvents};
use crate::ports::{Cluster, Liveness, Moment, NodeFacts, NodeObservation};

pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) context: Context,
    /// What [`Context::cluster`] shows.
    pub(super) cluster: watch::Sender<Arc<Cluster>>,
    pub(super) events: Arc<FakeEvents>,
    pub(super) clock: Arc<FakeClock>,
}

pub(super) fn author() -> Author {
    Author {
        manager: "test".to_owned(),
        user: String::new(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

/// One live node, `node1`, that takes so many pods.
pub(super) fn cluster(max_pods: u32) -> Arc<Cluster> {
    let me = NodeId("1".repeat(64));
    let node = NodeObservation {
        liveness: Liveness::Alive,
        since: Moment::default(),
        in_sync: true,
        facts: NodeFacts {
            name: "node1".to_owned(),
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            max_pods,
            ..NodeFacts::default()
        },
        pods: BTreeMap::new(),
    };
    Arc::new(Cluster {
        nodes: BTreeMap::from([(me.clone(), Arc::new(node))]),
        me,
    })
}

impl Fixture {
    /// `max_pods`: how many the one node takes.
    pub(super) fn new(max_pods: u32) -> Fixture {
        let all = cluster(max_pods);
        let node = all.me.clone();
        let options = OpenOptions {
            cluster_id: "cluster-1".to_owned(),
            node: node.clone(),
            seal_key: [7; 32],
        };
        let store = Store::open_in_memory(MemoryDisk::default(), options).expect("an empty disk opens");
        let (cluster, receiver) = watch::channel(all);
        let events = Arc::new(FakeEvents::default());
        let clock = Arc::new(FakeClock::default());
        let context = Context {
            store: store.clone(),
            cluster: receiver,
            clock: clock.clone(),
            events: events.clone(),
            node,
            faults: Arc::default(),
        };
        Fixture {
            store,
            context,
            cluster,
            events,
            clock,
        }
    }

    /// Admits `node1`, so that pods can be placed.
    pub(super) async fn admit(&self) {
        let mut member = Object::new(&ObjectKey::cluster(Kind::Member, &self.context.node.0));
        member.set(&["spec"], json!({"name": "node1", "address": "192.0.2.1"}));
        self.store.create(member, author()).await.unwrap();
    }

    pub(super) async fn edit(&self, key: &ObjectKey, path: &[&str], value: Value) {
        let change = |object: &Object| -> Result<Object, WriteError> {
            let mut object = object.clone();
            object.set(path, value.clone());
            Ok(object)
        };
        self.store
            .update(key, &Precondition::default(), author(), change)
            .await
            .unwrap();
    }

    pub(super) async fn remove(&self, key: &ObjectKey) {
        self.store
            .remove(key, &Precondition::default(), author())
            .await
            .unwrap();
    }
}
