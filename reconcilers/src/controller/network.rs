//! Keeps this node's part of the pod network: its range, and the routes to the others'.

use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use schemas::{Kind, Object, ObjectKey};
use store::{Author, Precondition, WatchEvent, WatchScope, WriteError};
use tracing::{error, info};

use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::pod_range::{Claim, claim, routes};
use crate::ports::PodNetwork;

/// The controller of the pod network.
pub struct Network {
    context: Context,
    network: Arc<dyn PodNetwork>,
    /// `--pod-cidr`.
    cluster_range: IpNet,
}

impl Network {
    pub fn new(context: Context, network: Arc<dyn PodNetwork>, cluster_range: IpNet) -> Self {
        Self {
            context,
            network,
            cluster_range,
        }
    }

    async fn take(&self, range: IpNet) -> Result<(), WriteError> {
        let author = Author {
            manager: "pod-network".to_owned(),
            user: String::new(),
            unix_seconds: self.context.clock.unix_seconds(),
        };
        let key = ObjectKey::cluster(Kind::Member, &self.context.node.0);
        let change = |member: &Object| {
            let mut member = member.clone();
            member.set(&["spec", "podCIDR"], range.to_string());
            Ok::<_, WriteError>(member)
        };
        self.context
            .store
            .update(&key, &Precondition::default(), author, change)
            .await?;
        info!(%range, "claimed a range of pod addresses");
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Network {
    type Key = ();

    fn name(&self) -> &'static str {
        "network"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Member],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<()> {
        match trigger {
            Trigger::Store(WatchEvent::Put { .. } | WatchEvent::Deleted { .. }) => vec![()],
            Trigger::Cluster(_) | Trigger::Runtime(_) | Trigger::Resync => Vec::new(),
        }
    }

    async fn reconcile(&self, (): &()) -> Result<Next, ReconcileError> {
        let members = self.context.objects(Kind::Member, None);
        let members: Vec<&Object> = members.iter().map(AsRef::as_ref).collect();
        match claim(&self.context.node, &members, self.cluster_range) {
            Claim::Keep(range) => self.network.set_range(self.cluster_range, range).await?,
            // The write wakes the next run.
            Claim::Take(range) => {
                self.take(range).await?;
                return Ok(Next::Done);
            }
            Claim::NoneLeft => {
                error!(cluster = %self.cluster_range, "every range of pod addresses is taken; use a larger --pod-cidr");
            }
            Claim::NotMember => return Ok(Next::Done),
        }
        self.network
            .set_routes(&routes(&self.context.node, &members))
            .await?;
        Ok(Next::Done)
    }
}
