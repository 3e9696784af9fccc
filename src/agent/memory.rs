//! What was freed goes back to the system.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How long what was freed is kept for what comes next. Giving it back takes some milliseconds, if there is any.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Gives back now and then what the allocator keeps: glibc does so by itself only at the end of an arena, and of what a start
/// or ten thousand writes leave behind most lies between what is in use.
pub(super) async fn give_back() -> Infallible {
    let mut ticks = interval(KEPT_FOR);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // It ends when the runtime does.
        let _ = tokio::task::spawn_blocking(trim).await;
    }
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
