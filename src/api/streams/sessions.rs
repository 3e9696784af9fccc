//! [`Sessions`]: how many there are at once, and their end with the agent.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::status::{ApiError, ApiResult};

/// Sessions at once that a node serves or relays: each holds some 300 KiB of buffers.
const SESSIONS_MAX: usize = 256;

/// The sessions of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A place among the sessions, until it is dropped.
pub(crate) struct Place(OwnedSemaphorePermit);

impl Sessions {
    /// Sessions run as `tasks`, and end when `stopping` fires.
    pub fn new(tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self {
            places: Arc::new(Semaphore::new(SESSIONS_MAX)),
            tasks,
            stopping,
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// 503 when all are taken, or the agent stops.
    pub(crate) fn enter(&self) -> ApiResult<Place> {
        if self.stopping.is_cancelled() {
            return Err(ApiError::unavailable("the agent of this node stops"));
        }
        let permit = self.places.clone().try_acquire_owned();
        permit.map(Place).map_err(|_| {
            ApiError::unavailable(format!(
                "this node has {SESSIONS_MAX} sessions (exec, attach, port-forward) already: try again, or another node"
            ))
        })
    }

    /// Runs a session, which is told of the agent's stop.
    pub(crate) fn spawn<F>(&self, place: Place, session: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let session = session(self.stopping.clone());
        self.tasks.spawn(async move {
            session.await;
            drop(place.0);
        });
    }
}
