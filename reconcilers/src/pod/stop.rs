//! Ending containers, and waits that end early when something else is wanted by then.

use std::pin::pin;
use std::time::Duration;

use futures::future::join_all;
use tracing::info;

use super::plan::StopReason;
use super::probe::ProbeKind;
use super::runner::{Job, Outcome, PodRunner};
use super::view::STOPPED;
use crate::controller::ReconcileError;
use crate::ports::{Container, ContainerId, ContainerState, EventKind, PortError, labels};

/// A long wait (a grace, a pull) looks this often whether it is still wanted. No IO.
const INTERRUPT_POLL: Duration = Duration::from_millis(500);
impl PodRunner {
    pub(super) fn report_stop(
        &self,
        job: &Job<'_>,
        stopped: &[ContainerId],
        containers: &[Container],
        why: &StopReason,
    ) {
        match why {
            StopReason::Ended | StopReason::Unwanted => {
                for container in containers
                    .iter()
                    .filter(|container| stopped.contains(&container.id))
                {
                    let name = container
                        .labels
                        .get(labels::CONTAINER_NAME)
                        .map_or("", String::as_str);
                    self.event(
                        job,
                        EventKind::Normal,
                        "Killing",
                        format!("Stopping container {name}"),
                    );
                }
            }
            StopReason::Unhealthy { container, message } => {
                let probe = if message.starts_with(ProbeKind::Startup.name()) {
                    "startup"
                } else {
                    "liveness"
                };
                let message = format!("Container {container} failed {probe} probe, will be restarted");
                self.event(job, EventKind::Normal, "Killing", message);
            }
            StopReason::Changed { container } => {
                let message = format!("Container {container} definition changed, will be restarted");
                self.event(job, EventKind::Normal, "Killing", message);
            }
        }
        info!(
            namespace = job.key.namespace,
            name = job.key.name,
            count = stopped.len(),
            ?why,
            "stopping containers"
        );
    }

    pub(super) async fn stop(
        &self,
        uid: &str,
        stopped: &[ContainerId],
        grace: Duration,
        interrupted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Outcome, ReconcileError> {
        let each = stopped.iter().map(|id| async move {
            match self.ports.runtime.stop(id, grace).await {
                Ok(()) | Err(PortError::NotFound(_)) => {
                    self.containers
                        .set_state(uid, id, &ContainerState::Other(STOPPED.to_owned()));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        });
        let ended = interruptible(interrupted, join_all(each)).await;
        // How it exited is for the next list to say.
        self.containers.tell(uid);
        match ended {
            None => Ok(Outcome::Interrupted),
            Some(ended) => {
                ended.into_iter().collect::<Result<(), PortError>>()?;
                Ok(Outcome::Done)
            }
        }
    }
}

/// Waits for `work`, or until something else is wanted (then `work` is dropped and this gives None).
pub(super) async fn interruptible<T>(
    interrupted: &(dyn Fn() -> bool + Send + Sync),
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            output = &mut work => return Some(output),
            () = tokio::time::sleep(INTERRUPT_POLL) => if interrupted() {
                return None;
            },
        }
    }
}
