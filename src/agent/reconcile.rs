//! Starts the controllers with what they need.

use std::sync::Arc;

use anyhow::Result;
use futures::future::join_all;
use futures::stream::BoxStream;
use reconcilers::controller::{
    self, Context, Defaults, Garbage, NodeObjects, Reconciler, Statuses, Workloads,
};
use reconcilers::pod::{self, NetworkProber, NodeSettings, PodAdapters, PodReconciler};
use reconcilers::pod_state::Graces;
use reconcilers::ports::{Announcer, NodeFacts, RouteSink, ZoneSink};
use reconcilers::routes::RouteReconciler;
use reconcilers::service::ServiceReconciler;
use reconcilers::zone::ZoneReconciler;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::essential::Essential;
use crate::config::Config;
use crate::network::Network;
use crate::podman::Podman;

/// Objects that one controller works on at a time. Plans are CPU work of microseconds; what waits is the store's sync.
const WORKERS: usize = 4;

/// What controllers are made of.
pub(super) struct Reconcilers<'a> {
    pub(super) config: &'a Config,
    pub(super) context: Context,
    pub(super) cluster_id: &'a str,
    pub(super) facts: &'a NodeFacts,
    /// What clients of the API trust.
    pub(super) authority_pem: String,
    pub(super) podman: Arc<Podman>,
    pub(super) network: Arc<Network>,
    pub(super) announcer: Arc<dyn Announcer>,
    pub(super) zone: Arc<dyn ZoneSink>,
    /// None: no ingress on this node.
    pub(super) routes: Option<Arc<dyn RouteSink>>,
    pub(super) tasks: &'a TaskTracker,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) essential: &'a Essential,
}

impl Reconcilers<'_> {
    /// Starts the controller of this node's pods and waits until what ran before is announced.
    ///
    /// # Errors
    /// Podman or the network does not answer.
    pub(super) async fn start_pods(&self) -> Result<()> {
        let adapters = PodAdapters {
            runtime: self.podman.clone(),
            network: self.network.clone(),
            announcer: self.announcer.clone(),
            prober: Arc::new(NetworkProber),
        };
        let settings = NodeSettings {
            name: self.config.node_name.clone(),
            address: self.config.advertise,
            cluster_id: self.cluster_id.to_owned(),
            cluster_domain: self.config.flags.cluster_domain.clone(),
            data_dir: self.config.data_dir.clone(),
            cpu_millis: self.facts.cpu_millis,
            memory_bytes: self.facts.memory_bytes,
        };
        let pods = Arc::new(PodReconciler::new(&self.context, adapters, settings));
        // The range of the last start, if there was one: adopted pods have addresses of it. The first run may only claim.
        let network = self.pod_network();
        network.reconcile(&()).await?;
        network.reconcile(&()).await?;
        let events = pods.prepare().await?;
        // What it waits for says more than that each pod was looked at once.
        _ = self.run(pods.clone(), Some(events), pod::WORKERS);
        pods.first_pass().await;
        Ok(())
    }

    /// Starts all others, each after those whose results it reads, and returns when names and routes lead to all that is
    /// known: a zone that is computed half-way through would take endpoints from who asks after a restart.
    pub(super) async fn start(&self) {
        let context = || self.context.clone();
        let graces = Graces {
            restart: self.config.flags.restart_grace,
            ..Graces::default()
        };
        let domain = self.config.flags.cluster_domain.clone();
        let zone = ZoneReconciler::new(context(), domain, self.zone.clone());
        let routes = RouteReconciler::new(context(), self.config.node_name.clone(), self.routes.clone());
        _ = self.spawn(self.pod_network(), 1);
        _ = self.spawn(NodeObjects::new(context()), 1);
        settled([self.spawn(Statuses::new(context(), graces), WORKERS)]).await;
        settled([self.spawn(ServiceReconciler::new(context()), WORKERS)]).await;
        settled([self.spawn(zone, 1), self.spawn(routes, 1)]).await;
        _ = self.spawn(Workloads::new(context(), graces), Workloads::WORKERS);
        _ = self.spawn(Garbage::new(context()), WORKERS);
        let defaults = Defaults::new(
            context(),
            self.authority_pem.clone(),
            self.config.flags.api_addr.port(),
        );
        _ = self.spawn(defaults, WORKERS);
    }

    fn pod_network(&self) -> controller::Network {
        controller::Network::new(
            self.context.clone(),
            self.network.clone(),
            self.config.flags.pod_cidr,
        )
    }

    fn spawn<R: Reconciler>(&self, reconciler: R, workers: usize) -> Settled {
        self.run(Arc::new(reconciler), None, workers)
    }

    fn run<R: Reconciler>(
        &self,
        reconciler: Arc<R>,
        runtime_events: Option<BoxStream<'static, String>>,
        workers: usize,
    ) -> Settled {
        let name = reconciler.name();
        let (sender, settled) = oneshot::channel();
        let controller = controller::run(
            reconciler,
            self.context.clone(),
            runtime_events,
            workers,
            sender,
            self.shutdown.clone(),
        );
        self.tasks.spawn(self.essential.clone().watch(name, controller));
        settled
    }
}

/// Comes when a controller has settled, see [`controller::run`].
type Settled = oneshot::Receiver<()>;

async fn settled(controllers: impl IntoIterator<Item = Settled>) {
    // One that ended instead was stopped.
    join_all(controllers).await;
}
