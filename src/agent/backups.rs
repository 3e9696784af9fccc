//! The backups that this node makes by itself, in `<data-dir>/backups`: after each interval in which something changed.

use std::time::Duration;

use reconcilers::ports::{EventKind, EventRecord, EventSink};
use schemas::{Kind, ObjectKey, with_causes};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::api::ApiState;
use crate::backup::{self, PeriodicError, PeriodicFiles, Sealing};
use crate::config::Config;

/// The folder in the data directory.
pub(super) const FOLDER: &str = "backups";

/// When backups are made, and where they are kept.
pub(super) struct Schedule {
    interval: Duration,
    files: PeriodicFiles,
}

impl Schedule {
    /// Takes the flags.
    pub(super) fn of(config: &Config) -> Self {
        let flags = &config.flags;
        let retention = usize::try_from(flags.backup_retention).unwrap_or(usize::MAX);
        Self {
            interval: flags.backup_interval,
            files: PeriodicFiles::new(config.data_dir.join(FOLDER), retention),
        }
    }

    /// How long to wait after a start: restarts make no backups of their own, or an agent that restarts again and again
    /// would leave none that is older than its trouble.
    fn first_wait(&self, now: i64) -> Result<Duration, PeriodicError> {
        Ok(match self.files.newest()? {
            // A time to come is a clock's fault.
            Some(newest) if newest <= now => {
                let age = Duration::from_secs(newest.abs_diff(now));
                self.interval.saturating_sub(age)
            }
            Some(_) => self.interval,
            None => Duration::ZERO,
        })
    }
}

/// Makes backups until the agent stops. What fails is told, and tried again after the next interval.
pub(super) async fn run(schedule: Schedule, state: ApiState, shutdown: CancellationToken) {
    let mut wait = match schedule.first_wait(state.clock.unix_seconds()) {
        Ok(wait) => wait,
        Err(error) => {
            report(&state, &error);
            schedule.interval
        }
    };
    // Of the store when the last backup was made.
    let mut digest = String::new();
    while shutdown
        .run_until_cancelled(tokio::time::sleep(wait))
        .await
        .is_some()
    {
        wait = schedule.interval;
        if state.store.digest() == digest {
            continue;
        }
        // It ends by itself when the agent stops meanwhile: a file comes whole or not at all.
        let (making, files) = (state.clone(), schedule.files.clone());
        let made = tokio::task::spawn_blocking(move || make(&making, &files)).await;
        match made {
            Ok(Ok(of)) => digest = of,
            Ok(Err(error)) => report(&state, &error),
            Err(error) => error!(%error, "a backup was not made"),
        }
    }
}

/// Makes one backup, and returns the digest of what the store held.
fn make(state: &ApiState, files: &PeriodicFiles) -> Result<String, PeriodicError> {
    let snapshot = backup::snapshot(&state.store);
    let about = state.about_backup();
    let seal_for = Sealing::Confidential
        .seals(&snapshot)
        .then_some(&state.backups.identity);
    let mut objects = 0;
    let path = files.write(about.created, seal_for.is_some(), |out| {
        objects = backup::write(&snapshot, &about, seal_for, out)?;
        Ok(())
    })?;
    info!(path = %path.display(), objects, "a backup was made");
    Ok(snapshot.digest().to_owned())
}

/// A log line for who runs the machine, an Event on the node for who runs the cluster.
fn report(state: &ApiState, error: &PeriodicError) {
    let reason = with_causes(error);
    error!(reason, "a backup was not made");
    state.events.event(EventRecord {
        key: ObjectKey::cluster(Kind::Node, state.backups.node_name.clone()),
        uid: String::new(),
        kind: EventKind::Warning,
        reason: "BackupFailed",
        message: reason,
        component: "backup",
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_the_rest_of_the_interval() {
        let folder = tempfile::tempdir().unwrap();
        let schedule = Schedule {
            interval: Duration::from_secs(3600),
            files: PeriodicFiles::new(folder.path().join(FOLDER), 3),
        };
        let wait = |now| schedule.first_wait(now).unwrap().as_secs();
        assert_eq!(wait(1_800_000_000), 0, "there is none yet");
        let written = schedule.files.write(1_800_000_000, false, |_| Ok(()));
        written.unwrap();
        assert_eq!(wait(1_800_000_600), 3000);
        assert_eq!(wait(1_800_009_000), 0);
        assert_eq!(wait(1_700_000_000), 3600, "the clock ran ahead");
    }
}
