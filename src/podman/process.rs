//! The process of a container, held so that it cannot be mistaken for another: signalled and awaited without Podman.
//!
//! Podman's own stop looks every 100 ms whether the container is dead; a pidfd tells within a millisecond.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A running container's first process.
#[derive(Debug)]
pub(super) struct Process(AsyncFd<OwnedFd>);

impl Process {
    /// Takes hold of a process, if it is there and is the container's: an agent in a pid namespace of its own sees other processes
    /// under Podman's numbers. `None` is no error: Podman has to do it then.
    pub(super) fn open(pid: u32, container: &str) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Read after the descriptor was opened, so it is about the same process, or about none.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
        if !groups.contains(container) {
            return None;
        }
        // SAFETY: the descriptor is open and owned by the AsyncFd, which nobody takes it out of.
        unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .ok()
            .map(Self)
    }

    /// Sends a signal by number; false if it has none that the kernel gives a name (real-time signals) or was not sent.
    /// A process that is dead already took it.
    pub(super) fn signal(&self, number: i32) -> bool {
        let Some(signal) = Signal::from_named_raw(number) else {
            return false;
        };
        matches!(
            pidfd_send_signal(self.0.get_ref(), signal),
            Ok(()) | Err(rustix::io::Errno::SRCH)
        )
    }

    /// Waits until it is dead; false: it was not within the limit.
    pub(super) async fn exited_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.readable()).await.is_ok()
    }
}
