//! Shows the Node objects: one for each member, computed anew when gossip or a Member document says something else.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{Kind, Object, ObjectKey};
use store::{WatchEvent, WatchScope};

use super::statuses::STORE;
use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::node_object::node_object;

/// The controller of Node objects. Runs on every node and writes nothing durable.
pub struct NodeObjects {
    context: Context,
}

impl NodeObjects {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[async_trait]
impl Reconciler for NodeObjects {
    type Key = ();

    fn name(&self) -> &'static str {
        "node-objects"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Member, Kind::Node],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<()> {
        match trigger {
            Trigger::Store(WatchEvent::Put { .. } | WatchEvent::Deleted { .. }) | Trigger::Cluster(_) => {
                vec![()]
            }
            Trigger::Runtime(_) | Trigger::Resync => Vec::new(),
        }
    }

    async fn reconcile(&self, (): &()) -> Result<Next, ReconcileError> {
        let context = &self.context;
        let nodes = context.nodes();
        let written = context.store.written(Kind::Node);
        let settled = context.written_nodes();
        for node in nodes.iter() {
            let Some(member) = context.object(&ObjectKey::cluster(Kind::Member, &node.id.0)) else {
                continue;
            };
            let key = ObjectKey::cluster(Kind::Node, &node.name);
            let previous = context.object(&key);
            let named = |list: &[Arc<Object>]| list.iter().find(|one| one.name() == node.name).cloned();
            let mut object = node_object(
                node,
                &member,
                named(&settled).as_deref(),
                previous.as_deref(),
                context.clock.unix_seconds(),
            );
            if let (Some(written), Some(status)) = (named(&written), object.0.get_mut("status")) {
                let previous = previous.as_deref().unwrap_or(&written);
                context.add_fault(status, &key, previous, &written, STORE);
            }
            context.store.project(&key, Some(object));
        }
        for shown in context.objects(Kind::Node, None) {
            if nodes.get(shown.name()).is_none() {
                context
                    .store
                    .project(&ObjectKey::cluster(Kind::Node, shown.name()), None);
            }
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{Fixture, author};
    use super::*;

    #[tokio::test]
    async fn a_node_is_cordoned_as_long_as_its_document_says_so() {
        let fixture = Fixture::new(10);
        fixture.admit().await;
        let reconciler = NodeObjects::new(fixture.context.clone());
        let key = ObjectKey::cluster(Kind::Node, "node1");
        let document = schemas::Object::new(&key);
        fixture.store.create(document, author()).await.unwrap();
        for cordoned in [true, false, true] {
            fixture
                .edit(&key, &["spec", "unschedulable"], json!(cordoned))
                .await;
            for _ in 0..2 {
                reconciler.reconcile(&()).await.unwrap();
                let shown = fixture.context.object(&key).unwrap();
                assert_eq!(shown.pointer("/spec/unschedulable"), Some(&json!(cordoned)));
                assert_eq!(shown.pointer("/spec/taints").is_some(), cordoned);
                assert_eq!(
                    fixture.context.nodes().get("node1").unwrap().unschedulable,
                    cordoned
                );
            }
        }
    }
}
