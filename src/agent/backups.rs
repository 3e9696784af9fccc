//! The backups that this node makes by itself, in `<data-dir>/backups`: after each interval in which something changed.

use std::fs;
use std::time::Duration;

use reconcilers::ports::{EventKind, EventRecord, EventSink};
use schemas::{Kind, ObjectKey, with_causes};
use store::Snapshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::api::ApiState;
use crate::backup::{self, Identity, PeriodicError, PeriodicFiles, Sealing};
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
        let is_first = digest.is_empty();
        let made = tokio::task::spawn_blocking(move || make(&making, &files, is_first)).await;
        match made {
            Ok(Ok(of)) => digest = of,
            Ok(Err(error)) => report(&state, &error),
            Err(error) => error!(%error, "a backup was not made"),
        }
    }
}

/// Makes one backup, and returns the digest of what the store held. The first one of an agent is only made if the newest
/// file is another one.
fn make(state: &ApiState, files: &PeriodicFiles, is_first: bool) -> Result<String, PeriodicError> {
    let snapshot = backup::snapshot(&state.store);
    if is_first && is_newest(files, &snapshot, &state.backups.identity)? {
        info!("the newest backup holds what is there");
        return Ok(snapshot.digest().to_owned());
    }
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

/// Tells whether the newest file is a backup of what a snapshot holds. One that cannot be read is none.
fn is_newest(files: &PeriodicFiles, snapshot: &Snapshot, identity: &Identity) -> Result<bool, PeriodicError> {
    let Some(path) = files.newest_path()? else {
        return Ok(false);
    };
    let opened = fs::read(path)
        .ok()
        .and_then(|file| backup::open(file, identity).ok());
    let Some(opened) = opened else { return Ok(false) };
    let Ok(newest) = backup::read(opened.clone()) else {
        return Ok(false);
    };
    let mut same = Vec::new();
    backup::write(snapshot, &newest.about, None, &mut same)?;
    Ok(same == opened)
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
    use schemas::Object;
    use store::{Author, MemoryDisk, NodeId, OpenOptions, Store, Via};

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
    #[tokio::test]
    async fn what_the_newest_backup_holds_is_not_backed_up_again_after_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let files = PeriodicFiles::new(folder.path().join(FOLDER), 3);
        let identity = Identity::of_cluster_key(&[7; 32]);
        let disk = MemoryDisk::default();
        let open = || {
            let options = OpenOptions {
                cluster_id: "c".to_owned(),
                node: NodeId("n".to_owned()),
                seal_key: [7; 32],
            };
            Store::open_in_memory(disk.clone(), options).unwrap()
        };
        let create = async |store: &Store, name: &str| {
            let author = Author {
                manager: "test".to_owned(),
                user: String::new(),
                via: Via::Api,
                unix_seconds: 0,
            };
            let namespace = Object::new(&ObjectKey::cluster(Kind::Namespace, name));
            store.create(namespace, author).await.unwrap();
        };
        let is_made = |store: &Store| is_newest(&files, &backup::snapshot(store), &identity).unwrap();
        let about = backup::About {
            cluster_id: "c".to_owned(),
            node: "n1".to_owned(),
            version: "0".to_owned(),
            created: 1_800_000_000,
        };
        let store = open();
        create(&store, "shop").await;
        assert!(!is_made(&store), "there is none");
        for sealing in [None, Some(&identity)] {
            let write = |out: &mut dyn std::io::Write| {
                backup::write(&backup::snapshot(&store), &about, sealing, out).map(drop)
            };
            let path = files.write(about.created, sealing.is_some(), write).unwrap();
            assert!(is_made(&store));
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            assert!(!is_made(&store), "it cannot be read");
            fs::write(&path, whole).unwrap();
        }
        store.close().await;
        let store = open();
        assert!(is_made(&store));
        create(&store, "office").await;
        assert!(!is_made(&store));
    }
}
