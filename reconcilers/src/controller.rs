//! The one control loop: what happened becomes keys, keys become runs of a [`Reconciler`].
//!
//! Only this module and its children know the store; they read snapshots, call the pure planners beside them, and act.
//! The queue is in `controller::queue`.

mod act;
mod defaults;
#[cfg(test)]
mod fixture;
mod garbage;
#[cfg(test)]
mod merged_tests;
mod network;
mod node_objects;
mod queue;
mod snapshot;
mod statuses;
mod workloads;

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::future::pending;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use schemas::{KINDS, Kind, with_causes};
use store::{Gone, NodeId, Revision, Store, View, WatchEvent, WatchScope, WriteError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::ports::{Clock, Cluster, EventSink, PortError};
use crate::validity::Faults;
use queue::{Ended, Queue};

pub use defaults::{Defaults, api_service, is_of_this_cluster};
pub use garbage::{Garbage, GarbageKey};
pub use network::Network;
pub use node_objects::NodeObjects;
pub use statuses::{StatusKey, Statuses, allowance};
pub use workloads::Workloads;

/// Everything is looked at this often, however quiet it is: the net under lost events. Thirty seconds bound what a lost
/// event costs and are too rare to be felt (a list of 10,000 objects takes milliseconds).
const RESYNC: Duration = Duration::from_secs(30);
/// Wait before listing again after a watch was cut off, so that a store that cuts at once is not hammered.
const RELIST_PAUSE: Duration = Duration::from_millis(100);
/// How long runs in progress may take to end when the agent stops; then they are dropped. Below the 10 s in which the
/// agent must be gone.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What may call for a run.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// A view changed. At the start, on resync and after a gap, every object in scope comes as a `Put` without
    /// `previous`.
    Store(WatchEvent),
    /// A node appeared, died, returned or said something new. Comes once at the start.
    Cluster(Arc<Cluster>),
    /// Something happened to the containers of the pod with this uid; empty: look at all.
    Runtime(String),
    /// The start, each resync, and each gap in the watch. What is in the store comes as `Store` beside it, so this asks
    /// only for keys of what may be left of objects that are gone.
    Resync,
}

/// When to run again without being woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Done,
    After(Duration),
}

/// Why a run failed; it is repeated with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Port(#[from] PortError),
}

/// One controller: maps events to keys and brings what a key names in line.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// What one run looks at; `()` for those that compute everything at once, so that bursts collapse into one run.
    type Key: Clone + Eq + Hash + Ord + Debug + Send + Sync + 'static;
    /// For logs: `deployment`, `zone`.
    fn name(&self) -> &'static str;
    /// The store's events that wake it.
    fn scope(&self) -> WatchScope;
    /// Maps an event to keys. Called on the loop: must not block.
    fn keys(&self, trigger: &Trigger) -> Vec<Self::Key>;
    /// Brings what `key` names in line: reads the state as it is now, plans, acts. Never two at a time for one key.
    /// Dropped at an await point if it outlives the stop of the agent.
    async fn reconcile(&self, key: &Self::Key) -> Result<Next, ReconcileError>;
}

/// What controllers share. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub store: Store,
    pub cluster: watch::Receiver<Arc<Cluster>>,
    pub clock: Arc<dyn Clock>,
    pub events: Arc<dyn EventSink>,
    pub node: NodeId,
    pub faults: Arc<Faults>,
}

/// Runs a controller with up to `workers` keys at a time until `shutdown`; then lets the runs in progress end. Sends
/// `settled` once every key that the start called for has had its run, however that ended: what is computed from this
/// controller's results is whole from then on.
pub async fn run<R: Reconciler>(
    reconciler: Arc<R>,
    context: Context,
    runtime_events: Option<BoxStream<'static, String>>,
    workers: usize,
    settled: oneshot::Sender<()>,
    shutdown: CancellationToken,
) {
    let sources = Sources {
        store: context.store,
        cluster: context.cluster,
        runtime: runtime_events,
    };
    Loop::new(reconciler, workers, settled)
        .run(sources, shutdown)
        .await;
}

/// The part of the store that the loop needs; a seam for its tests.
trait Watched: Send + Sync {
    fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> (impl Iterator<Item = View> + Send + use<Self>, Revision);
    fn watch(&self, scope: WatchScope, from: Revision) -> Result<mpsc::Receiver<WatchEvent>, Gone>;
}

impl Watched for Store {
    fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> (impl Iterator<Item = View> + Send + use<>, Revision) {
        let views = self.views(kind, namespace);
        let revision = views.revision();
        (views, revision)
    }

    fn watch(&self, scope: WatchScope, from: Revision) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        Store::watch(self, scope, Some(from))
    }
}

/// Where triggers come from.
struct Sources<W> {
    store: W,
    cluster: watch::Receiver<Arc<Cluster>>,
    runtime: Option<BoxStream<'static, String>>,
}

struct Loop<R: Reconciler> {
    reconciler: Arc<R>,
    workers: usize,
    queue: Queue<R::Key>,
    running: JoinSet<Result<Next, ReconcileError>>,
    keys: HashMap<Id, R::Key>,
    /// Until the first pass is complete.
    first_pass: Option<FirstPass<R::Key>>,
}

struct FirstPass<K> {
    /// What the first listing called for and has not run yet; None before it.
    left: Option<HashSet<K>>,
    settled: oneshot::Sender<()>,
}

impl<R: Reconciler> Loop<R> {
    fn new(reconciler: Arc<R>, workers: usize, settled: oneshot::Sender<()>) -> Self {
        Self {
            reconciler,
            workers: workers.max(1),
            queue: Queue::new(),
            running: JoinSet::new(),
            keys: HashMap::new(),
            first_pass: Some(FirstPass { left: None, settled }),
        }
    }

    async fn run<W: Watched>(mut self, mut sources: Sources<W>, shutdown: CancellationToken) {
        let mut shutdown = pin!(shutdown.cancelled_owned());
        let mut events = None;
        let mut relist_at = Instant::now();
        sources.cluster.mark_changed();
        loop {
            self.start_due();
            let due = self
                .queue
                .next_due()
                .filter(|_| self.running.len() < self.workers);
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                Ok(()) = sources.cluster.changed() => {
                    let cluster = sources.cluster.borrow_and_update().clone();
                    self.trigger(&Trigger::Cluster(cluster));
                }
                event = next_event(&mut events) => match event {
                    Some(event) => self.trigger(&Trigger::Store(event)),
                    None => {
                        debug!(controller = self.reconciler.name(), "watch was cut off");
                        events = None;
                        relist_at = Instant::now() + RELIST_PAUSE;
                    }
                },
                Some(pod) = next_runtime(&mut sources.runtime) => self.trigger(&Trigger::Runtime(pod)),
                () = sleep_until(relist_at) => {
                    let (listed_from, pause) = match self.list(&sources.store, events.is_none()) {
                        Ok(receiver) => (receiver, RESYNC),
                        Err(Gone) => (None, RELIST_PAUSE),
                    };
                    events = listed_from.or(events);
                    relist_at = Instant::now() + pause;
                    self.pass(None);
                }
                () = sleep_until_due(due) => {}
            }
        }
        self.stop().await;
    }

    /// Starts runs of what is due, up to the number of workers.
    fn start_due(&mut self) {
        while self.running.len() < self.workers {
            let Some(key) = self.queue.take(Instant::now()) else {
                return;
            };
            let reconciler = self.reconciler.clone();
            let span = info_span!("reconcile", controller = reconciler.name(), ?key);
            let task_key = key.clone();
            let task = async move { reconciler.reconcile(&task_key).await };
            let handle = self.running.spawn(task.instrument(span));
            self.keys.insert(handle.id(), key);
        }
    }

    /// Counts a run for the first pass; None: the first listing is complete.
    fn pass(&mut self, ran: Option<&R::Key>) {
        let Some(pass) = &mut self.first_pass else {
            return;
        };
        match (ran, &mut pass.left) {
            (Some(key), Some(left)) => _ = left.remove(key),
            (None, left @ None) => *left = Some(self.queue.keys().cloned().collect()),
            _ => {}
        }
        let is_complete = pass.left.as_ref().is_some_and(HashSet::is_empty);
        if let Some(pass) = self.first_pass.take_if(|_| is_complete) {
            // Most controllers have nobody who waits for them.
            _ = pass.settled.send(());
        }
    }

    fn trigger(&mut self, trigger: &Trigger) {
        let now = Instant::now();
        for key in self.reconciler.keys(trigger) {
            self.queue.want(key, now);
        }
    }

    /// Triggers for all that is there, and if asked to, follows it from there.
    fn list<W: Watched>(
        &mut self,
        store: &W,
        follow: bool,
    ) -> Result<Option<mpsc::Receiver<WatchEvent>>, Gone> {
        let scope = self.reconciler.scope();
        let kinds: Vec<Kind> = if scope.kinds.is_empty() {
            KINDS.iter().map(|row| row.kind).collect()
        } else {
            scope.kinds.clone()
        };
        let mut from = None;
        for kind in kinds {
            let (views, revision) = store.list(kind, scope.namespace.as_deref());
            // The lists are not one snapshot: following from the oldest misses nothing, and repeats do no harm.
            from = from.or(Some(revision));
            for view in views {
                self.trigger(&Trigger::Store(WatchEvent::Put { view, previous: None }));
            }
        }
        self.trigger(&Trigger::Resync);
        match from {
            Some(from) if follow => store.watch(scope, from).map(Some),
            _ => Ok(None),
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<Next, ReconcileError>), tokio::task::JoinError>) {
        let name = self.reconciler.name();
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(join) => join.id(),
        };
        let Some(key) = self.keys.remove(&id) else {
            return;
        };
        let ended = match ended {
            Ok((_, Ok(Next::Done))) => Ended::Done,
            Ok((_, Ok(Next::After(pause)))) => Ended::After(pause),
            Ok((_, Err(failure))) => {
                warn!(controller = name, ?key, error = %with_causes(&failure), "reconcile failed, will retry");
                Ended::Failed
            }
            Err(join) => {
                error!(controller = name, ?key, error = %join, "reconcile panicked, will retry");
                Ended::Failed
            }
        };
        self.pass(Some(&key));
        self.queue
            .ended(key, ended, Instant::now(), rand::random::<f64>());
    }

    async fn stop(mut self) {
        let name = self.reconciler.name();
        let all_ended = async { while self.running.join_next().await.is_some() {} };
        if timeout(STOP_GRACE, all_ended).await.is_err() {
            warn!(
                controller = name,
                "runs in progress did not end in time and are dropped"
            );
            self.running.shutdown().await;
        }
    }
}

/// Ends a run that looks at everything: a burst of changes gets a quarter of the time, the rest of the agent the others.
pub(crate) async fn rest_since(start: Instant) {
    tokio::time::sleep(start.elapsed() * 3).await;
}

async fn next_event(events: &mut Option<mpsc::Receiver<WatchEvent>>) -> Option<WatchEvent> {
    match events {
        Some(events) => events.recv().await,
        None => pending().await,
    }
}

async fn next_runtime(runtime: &mut Option<BoxStream<'static, String>>) -> Option<String> {
    let Some(stream) = runtime else {
        return pending().await;
    };
    let next = stream.next().await;
    if next.is_none() {
        *runtime = None;
    }
    next
}

async fn sleep_until_due(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
