//! Verifies a store that nobody uses: everything is read as at a start, and compared. Works on a copy, since sled writes
//! where it opens; the directory itself is only read.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use schemas::{Kind, ObjectKey};

use crate::disk::Disk;
use crate::incarnation::{Tombstone, Uids};
use crate::open;
use crate::quarantine::UNREADABLE;
use crate::record::{DOCUMENTS, META_COPY, META_REVISION, TOMBSTONES};
use crate::rescue::{RESCUED, Rescued};
use crate::seal::Seal;
use crate::sled_disk::SledDisk;
use crate::types::{OpenError, OpenOptions};

const FROM_PEERS: &str = "start the agent while another node runs: it brings the object again; in a cluster of one node, take the object from a backup";
const FROM_BACKUP: &str = "set the folder store aside and start the agent: it gets everything from the other nodes; in a cluster of one node, restore a backup then";

/// Something that is not as it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// A file, or an object in the store.
    pub place: String,
    pub what: String,
    /// What a person can do about it.
    pub remedy: String,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Objects that were read, by kind.
    pub objects: BTreeMap<Kind, usize>,
    pub tombstones: usize,
    pub problems: Vec<Problem>,
}

impl CheckReport {
    fn problem(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: &str) {
        self.problems.push(Problem {
            place: place.into(),
            what: what.into(),
            remedy: remedy.to_owned(),
        });
    }
}

/// Verifies the store in a directory: format, key, every record (its seal, its history, its heads), and that nothing is
/// there that a tombstone covers. Changes nothing in it. Blocks, and takes room for a copy where temporary files go.
///
/// # Errors
/// It could not be verified: an agent uses it, it cannot be read or copied, or another version wrote it.
pub fn check(directory: &Path, options: &OpenOptions) -> Result<CheckReport, OpenError> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| OpenError::Io { path, source }
    };
    let mut report = CheckReport::default();
    let place = directory.display().to_string();
    let database = directory.join("sled");
    if !database.is_dir() {
        report.problem(place, "the store is not there", FROM_BACKUP);
        return Ok(report);
    }
    // Ours, and sled's own, which is held a little longer by a store that closes.
    let _locks = [directory.join("lock"), database.join("db")]
        .map(|file| lock(directory, &file))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let scratch = tempfile::Builder::new()
        .prefix("podman-swarm-check-")
        .tempdir()
        .map_err(io(&std::env::temp_dir()))?;
    let copy = scratch.path().join("store");
    copy_all(directory, &copy).map_err(io(directory))?;
    // sled panics at some of what it finds damaged.
    let read = catch_unwind(AssertUnwindSafe(|| {
        SledDisk::open(&copy).and_then(|disk| check_disk(&disk, &place, options))
    }));
    match read {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(
            error @ (OpenError::Locked { .. }
            | OpenError::Io { .. }
            | OpenError::Format { .. }
            | OpenError::Full(_)),
        )) => Err(error),
        Ok(Err(OpenError::Damaged { reason, .. })) => {
            report.problem(place, format!("is damaged: {reason}"), FROM_BACKUP);
            Ok(report)
        }
        Ok(Err(OpenError::WrongKey { .. })) => {
            report.problem(
                place,
                "was sealed under another key than encryption.key",
                "put the encryption.key back that it was written with: any node of the cluster has it",
            );
            Ok(report)
        }
        Err(_) => {
            report.problem(place, "is damaged: the database cannot be read", FROM_BACKUP);
            Ok(report)
        }
    }
}

fn lock(directory: &Path, path: &Path) -> Result<Option<File>, OpenError> {
    let failed = |source| OpenError::Io {
        path: path.display().to_string(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: directory.display().to_string(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Reads everything of a disk, as a start does.
fn check_disk(disk: &dyn Disk, place: &str, options: &OpenOptions) -> Result<CheckReport, OpenError> {
    let mut report = CheckReport::default();
    let seal = Seal::new(&options.seal_key);
    let unreadable = |error: crate::disk::DiskError| OpenError::Damaged {
        path: place.to_owned(),
        reason: format!("a record cannot be read: {error}"),
    };
    let mut meta = BTreeMap::new();
    disk.scan("m/", &mut |key, value| {
        meta.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
    })
    .map_err(unreadable)?;
    open::check_meta(&meta, &seal, place)?;
    if meta.is_empty() {
        report.problem(place, "the store is empty", FROM_BACKUP);
    } else {
        for name in [META_COPY, META_REVISION] {
            if !meta.contains_key(name) {
                report.problem(place, format!("its record {name} is missing"), FROM_BACKUP);
            }
        }
    }

    let mut tombstones = BTreeMap::<ObjectKey, Tombstone>::new();
    disk.scan(
        TOMBSTONES,
        &mut |key, value| match (open::object_key(key, TOMBSTONES), open::tombstone(value)) {
            (Some(key), Some(removed)) => {
                tombstones.insert(key, removed);
            }
            _ => report.problem(
                String::from_utf8_lossy(key),
                "a tombstone cannot be read",
                FROM_PEERS,
            ),
        },
    )
    .map_err(unreadable)?;
    report.tombstones = tombstones.len();
    disk.scan(UNREADABLE, &mut |key, _| {
        report.problem(
            String::from_utf8_lossy(key),
            "a start found the record of this object unreadable, and nothing has replaced it yet",
            FROM_PEERS,
        );
    })
    .map_err(unreadable)?;

    disk.scan(RESCUED, &mut |disk_key, value| {
        if let Err(reason) = Rescued::decode(disk_key, value, &seal) {
            report.problem(
                String::from_utf8_lossy(disk_key),
                format!("what was rescued of an object cannot be read: {reason}"),
                "what a user last wrote of that object through this node is lost, unless it is in a backup",
            );
        }
    })
    .map_err(unreadable)?;

    let uids = Uids::new(options.cluster_id.clone());
    disk.scan(DOCUMENTS, &mut |disk_key, value| {
        let named = String::from_utf8_lossy(disk_key);
        let Some(key) = open::object_key(disk_key, DOCUMENTS) else {
            return report.problem(named, "a record names no object of this version", FROM_PEERS);
        };
        match open::read(&key, value, &seal, &uids) {
            Ok(stored) => {
                *report.objects.entry(key.kind).or_default() += 1;
                let removed = tombstones.get(&key);
                if removed.is_some_and(|removed| stored.record.incarnation <= removed.incarnation) {
                    report.problem(
                        named,
                        "it was removed (a tombstone covers it) and is there all the same",
                        "report this as a fault of Podman Swarm; psctl delete removes it",
                    );
                }
            }
            Err(reason) => report.problem(named, format!("the record cannot be read: {reason}"), FROM_PEERS),
        }
    })
    .map_err(unreadable)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use schemas::Object;

    use super::*;
    use crate::disk::Write;
    use crate::record::{document_key, tombstone_key};
    use crate::types::{Author, NodeId, Via};
    use crate::{MemoryDisk, Store};

    fn options() -> OpenOptions {
        OpenOptions {
            cluster_id: "c".to_owned(),
            node: NodeId("n".to_owned()),
            seal_key: [7; 32],
        }
    }

    fn key() -> ObjectKey {
        ObjectKey::cluster(Kind::Namespace, "shop")
    }

    async fn fill(store: &Store) {
        for key in [
            key(),
            ObjectKey::cluster(Kind::ApiToken, "a"),
            ObjectKey::new(Kind::Service, "shop", "web"),
        ] {
            let mut object = Object::new(&key);
            object.set(&["spec", "note"], "x".repeat(5000));
            let author = Author {
                manager: "test".to_owned(),
                user: String::new(),
                via: Via::Api,
                unix_seconds: 0,
            };
            store.create(object, author).await.unwrap();
        }
        store.close().await;
    }

    /// Every file with its content and the time of its last change.
    fn state(folder: &Path) -> Vec<(String, Vec<u8>, SystemTime)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(state(&path));
            } else {
                let changed = path.metadata().unwrap().modified().unwrap();
                files.push((path.display().to_string(), fs::read(&path).unwrap(), changed));
            }
        }
        files.sort();
        files
    }

    fn wait_for(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "it is still in use");
            std::thread::yield_now();
        }
    }

    /// The check of a filled store after `spoil`.
    async fn spoiled(spoil: impl FnOnce(&mut MemoryDisk)) -> Vec<Problem> {
        let mut disk = MemoryDisk::default();
        fill(&Store::open_in_memory(disk.clone(), options()).unwrap()).await;
        spoil(&mut disk);
        check_disk(&disk, "memory", &options()).unwrap().problems
    }

    #[tokio::test]
    async fn a_healthy_store_has_no_problems_and_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        fill(&Store::open(folder.path(), options()).unwrap()).await;
        // A start writes the snapshot that the log is compared with.
        wait_for(|| SledDisk::open(folder.path()).is_ok());
        // sled ends its work a moment after its last handle goes.
        wait_for(|| !matches!(check(folder.path(), &options()), Err(OpenError::Locked { .. })));
        let before = state(folder.path());
        let report = check(folder.path(), &options()).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.objects.values().sum::<usize>(), 3);
        assert!(state(folder.path()) == before, "something was written");
        let other = OpenOptions {
            seal_key: [8; 32],
            ..options()
        };
        let report = check(folder.path(), &other).unwrap();
        assert!(report.problems[0].what.contains("another key"), "{report:?}");
        let log = File::options()
            .write(true)
            .open(folder.path().join("sled/db"))
            .unwrap();
        log.set_len(100).unwrap();
        let report = check(folder.path(), &options()).unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
    }

    #[tokio::test]
    async fn a_store_in_use_is_not_checked() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path(), options()).unwrap();
        assert!(matches!(
            check(folder.path(), &options()),
            Err(OpenError::Locked { .. })
        ));
    }

    #[tokio::test]
    async fn every_record_that_is_wrong_is_named() {
        assert_eq!(spoiled(|_| {}).await, []);
        let damage = |disk: &mut MemoryDisk, key: &ObjectKey| {
            let mut value = Vec::new();
            disk.scan(DOCUMENTS, &mut |found, bytes| {
                if found == document_key(key) {
                    value = bytes.to_vec();
                }
            })
            .unwrap();
            let middle = value.len() / 2;
            value[middle] ^= 1;
            disk.write(vec![Write::put(document_key(key), value)]).unwrap();
        };
        for key in [key(), ObjectKey::cluster(Kind::ApiToken, "a")] {
            let problems = spoiled(|disk| damage(disk, &key)).await;
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].place.contains(&key.to_string()), "{problems:?}");
        }
        let problems = spoiled(|disk| {
            let last = crate::incarnation::Incarnation::next(0, None).unwrap();
            disk.write(vec![Write::put(tombstone_key(&key()), last.to_string())])
                .unwrap();
        })
        .await;
        assert!(problems[0].what.contains("tombstone covers it"), "{problems:?}");
        let problems = spoiled(|disk| disk.write(vec![Write::put("t/nothing", "x")]).unwrap()).await;
        assert!(
            problems[0].what.contains("tombstone cannot be read"),
            "{problems:?}"
        );
    }
}
