//! Keeps this node's part of the pod network: its range, and the routes to the others'.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use schemas::{Kind, Object, ObjectKey, with_causes};
use store::{Author, Precondition, Via, WatchEvent, WatchScope, WriteError};
use tracing::{error, info, warn};

use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::pod_range::{Claim, claim, routes};
use crate::ports::PodNetwork;

/// Routes that the kernel refused are tried again after this: their link may come up without any event of ours.
const ROUTES_AGAIN: Duration = Duration::from_secs(10);

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
            via: Via::Controller,
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
        // A member whose address is on no link of this node is no failure of this node: it works with all others.
        let routes = routes(&self.context.node, &members);
        if let Err(failure) = self.network.set_routes(&routes).await {
            warn!(error = %with_causes(&failure), "pods of some nodes cannot be reached from here, will retry");
            return Ok(Next::After(ROUTES_AGAIN));
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{Fixture, author};
    use super::*;
    use crate::fakes::network::FakeNetwork;

    #[tokio::test]
    async fn a_member_that_is_on_no_link_does_not_stop_the_node() {
        let fixture = Fixture::new(10);
        fixture.admit().await;
        let mut far = Object::new(&ObjectKey::cluster(Kind::Member, "2".repeat(64)));
        let spec = json!({"name": "node2", "address": "203.0.113.9", "podCIDR": "10.244.7.0/24"});
        far.set(&["spec"], spec);
        fixture.store.create(far, author()).await.unwrap();
        let fake = Arc::new(FakeNetwork::default());
        fake.refuse_routes(true);
        let cluster_range = "10.244.0.0/16".parse().unwrap();
        let network = Network::new(fixture.context.clone(), fake.clone(), cluster_range);
        // The first run claims.
        assert_eq!(network.reconcile(&()).await.unwrap(), Next::Done);
        assert_eq!(network.reconcile(&()).await.unwrap(), Next::After(ROUTES_AGAIN));
        assert!(fake.gateway().is_some());
        fake.refuse_routes(false);
        assert_eq!(network.reconcile(&()).await.unwrap(), Next::Done);
        assert_eq!(fake.routes().len(), 1);
    }
}
