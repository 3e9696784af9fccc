//! Tasks without which an agent is only half alive: one that ends before the stop, by a panic or by itself, ends the agent,
//! so that what started it starts it again.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Watches over tasks.
#[derive(Clone)]
pub(super) struct Essential {
    /// Cancelled when the agent stops: from then on tasks may end.
    working: CancellationToken,
    failed: mpsc::Sender<&'static str>,
}

impl Essential {
    /// Returns the receiver of the name of the first task that ended too early, too.
    pub(super) fn new(working: CancellationToken) -> (Essential, mpsc::Receiver<&'static str>) {
        let (failed, receiver) = mpsc::channel(1);
        (Essential { working, failed }, receiver)
    }

    /// Runs a task, and tells if it ends before the stop.
    pub(super) async fn watch(self, name: &'static str, task: impl Future<Output = ()>) {
        let panicked = AssertUnwindSafe(task).catch_unwind().await.is_err();
        if !self.working.is_cancelled() {
            error!(task = name, panicked, "a part of the agent ended before its stop");
            // With one in the channel already, the agent ends because of that one.
            _ = self.failed.try_send(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_ends_before_the_stop_is_named() {
        for (stopped, panics, expected) in [
            (false, false, Some("zone")),
            (false, true, Some("zone")),
            (true, false, None),
            (true, true, None),
        ] {
            let working = CancellationToken::new();
            let (essential, mut failed) = Essential::new(working.clone());
            if stopped {
                working.cancel();
            }
            let task = async move { assert!(!panics, "as the test wants") };
            essential.watch("zone", task).await;
            assert_eq!(
                failed.recv().await,
                expected,
                "stopped {stopped}, panics {panics}"
            );
        }
    }
}
