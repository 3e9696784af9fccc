//! Starts the controllers with what they need.

use std::sync::Arc;

use anyhow::Result;
use futures::stream::BoxStream;
use reconcilers::controller::{self, Context, Garbage, NodeObjects, Reconciler, Statuses, Workloads};
use reconcilers::pod::{self, NetworkProber, NodeSettings, PodAdapters, PodReconciler};
use reconcilers::pod_state::Graces;
use reconcilers::ports::{Announcer, NodeFacts, RouteSink, ZoneSink};
use reconcilers::routes::RouteReconciler;
use reconcilers::service::ServiceReconciler;
use reconcilers::zone::ZoneReconciler;
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
        self.run(pods.clone(), Some(events), pod::WORKERS);
        pods.first_pass().await;
        Ok(())
    }

    /// Starts all others.
    pub(super) fn start(&self) {
        let context = || self.context.clone();
        let graces = Graces {
            restart: self.config.flags.restart_grace,
            ..Graces::default()
        };
        self.spawn(self.pod_network(), 1);
        self.spawn(NodeObjects::new(context()), 1);
        self.spawn(Statuses::new(context(), graces), WORKERS);
        self.spawn(Workloads::new(context(), graces), Workloads::WORKERS);
        self.spawn(Garbage::new(context()), WORKERS);
        self.spawn(ServiceReconciler::new(context()), WORKERS);
        self.spawn(
            ZoneReconciler::new(
                context(),
                self.config.flags.cluster_domain.clone(),
                self.zone.clone(),
            ),
            1,
        );
        self.spawn(
            RouteReconciler::new(context(), self.config.node_name.clone(), self.routes.clone()),
            1,
        );
    }

    fn pod_network(&self) -> controller::Network {
        controller::Network::new(
            self.context.clone(),
            self.network.clone(),
            self.config.flags.pod_cidr,
        )
    }

    fn spawn<R: Reconciler>(&self, reconciler: R, workers: usize) {
        self.run(Arc::new(reconciler), None, workers);
    }

    fn run<R: Reconciler>(
        &self,
        reconciler: Arc<R>,
        runtime_events: Option<BoxStream<'static, String>>,
        workers: usize,
    ) {
        let name = reconciler.name();
        let controller = controller::run(
            reconciler,
            self.context.clone(),
            runtime_events,
            workers,
            self.shutdown.clone(),
        );
        self.tasks.spawn(self.essential.clone().watch(name, controller));
    }
}
