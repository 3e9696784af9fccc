//! Shows the Node objects: one for each member, computed anew when gossip or a Member document says something else.

use async_trait::async_trait;
use schemas::{Kind, ObjectKey};
use store::{WatchEvent, WatchScope};

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
        for node in nodes.iter() {
            let Some(member) = context.object(&ObjectKey::cluster(Kind::Member, &node.id.0)) else {
                continue;
            };
            let key = ObjectKey::cluster(Kind::Node, &node.name);
            let previous = context.object(&key);
            let object = node_object(node, &member, previous.as_deref(), context.clock.unix_seconds());
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
