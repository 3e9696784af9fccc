//! What was freed goes back to the system.

use std::convert::Infallible;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

const TICK: Duration = Duration::from_secs(5);
/// An agent that worked less than this of a tick is at rest.
const AT_REST: Duration = Duration::from_millis(250);

/// Gives back what the allocator keeps whenever the agent has come to rest: glibc does so by itself only at the end of an arena,
/// and of what a start or ten thousand writes leave behind most lies between what is in use. Not amid the work: what is kept is
/// used again soon, and giving it back holds up all that allocates.
pub(super) async fn give_back() -> Infallible {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut worked, mut is_due) = (worked_so_far(), true);
    loop {
        ticks.tick().await;
        let before = std::mem::replace(&mut worked, worked_so_far());
        let is_at_rest = worked.saturating_sub(before) < AT_REST;
        if is_due && is_at_rest {
            // It ends when the runtime does.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
        is_due = !is_at_rest;
    }
}

/// Processor time of this process.
fn worked_so_far() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim(3) can be called at any time from any thread: it takes the locks of the allocator and touches nothing
    // that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such call.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
