//! The store's disk on sled.
//!
//! sled's flush hands its log to the kernel (`sync_file_range` on Linux), which does not survive the loss of power
//! (spacejam/sled#1452), and it never syncs the files in which it keeps long values. So a sync here is a flush, then
//! fdatasync of the log and fsync of every file that is new, and of its directory. Behind the log there is room of zeros.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskError, Write};
use crate::types::{OpenError, Shortage};

/// sled's own cache of pages. Objects are kept by the store, so this serves start-up alone.
const CACHE_BYTES: u64 = 8 << 20;
/// How long sled's threads may take to end after their database was closed, and how often that is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// sled's log is of segments, each with a header that is not zero.
const SEGMENT_BYTES: usize = 512 << 10;
/// Zeros written behind the log. A write over them changes neither the size of the file nor which of its blocks were written
/// to, so its sync waits for the data alone and not for the file system's journal: on ext4 a quarter of the time, and a
/// tenth at the 99th percentile. (Room that is only allocated gains nothing: its blocks are marked at the first write.)
/// Some thousand writes of 2 KB, so that few of them wait until there is more.
const ROOM_BYTES: u64 = 4 << 20;
/// Space that must stay free after a write: sled stops for good where it meets ENOSPC, so the limit is drawn before. It is
/// some segments of its log (512 KiB each) and a snapshot.
const RESERVED_BYTES: u64 = 32 << 20;
/// How much a batch can grow on disk: sled writes whole pages.
const WRITE_AMPLIFICATION: u64 = 4;

/// A directory with a lock and a sled database.
pub(crate) struct SledDisk {
    database: sled::Db,
    log: File,
    folder: PathBuf,
    /// Files beside the log that are synced.
    synced: BTreeSet<(PathBuf, OsString)>,
    reserved_bytes: u64,
    lock: File,
}

impl SledDisk {
    pub(crate) fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = || directory.display().to_string();
        let io = |source| OpenError::Io { path: path(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::Locked { path: path() },
            TryLockError::Error(source) => io(source),
        })?;
        let folder = directory.join("sled");
        let damaged = |reason: String| OpenError::Damaged { path: path(), reason };
        let started = Instant::now();
        let config = sled::Config::new()
            .path(&folder)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        let database = loop {
            // sled panics where its log is shorter than its snapshot says; nothing of a failed start is used again.
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| damaged("the log of the database was cut off or is missing".to_owned()))?;
            match opened {
                Ok(database) => break database,
                // The directory is ours: who has sled's lock are its threads of a database that this process has closed, until
                // they have ended what they were at.
                Err(sled::Error::Io(error)) if is_locked(&error) && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(sled::Error::Io(source)) => return Err(io(source)),
                Err(other) => return Err(damaged(other.to_string())),
            }
        };
        let log = File::options()
            .read(true)
            .write(true)
            .open(folder.join("db"))
            .map_err(io)?;
        for parent in [&folder, directory] {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(io)?;
        }
        Ok(Self {
            database,
            log,
            folder,
            synced: BTreeSet::new(),
            reserved_bytes: RESERVED_BYTES,
            lock,
        })
    }

    /// Sees to it that there is room behind the log. Only after a flush, when sled writes nothing; a segment is left out
    /// all the same, which it would write to next. What is room at a start is free to sled, which uses it or cuts it off.
    fn make_room(&self) -> io::Result<()> {
        let segment = SEGMENT_BYTES as u64;
        let length = self.log.metadata()?.len();
        let mut header = [0; 16];
        let middle = length.saturating_sub(ROOM_BYTES / 2) / segment * segment;
        let read = self.log.read_at(&mut header, middle)?;
        if read > 0 && header == [0; 16] || self.check_room(ROOM_BYTES).is_err() {
            return Ok(());
        }
        let zeros = vec![0; SEGMENT_BYTES];
        let start = length.next_multiple_of(segment) + segment;
        (start..start + ROOM_BYTES)
            .step_by(SEGMENT_BYTES)
            .try_for_each(|at| self.log.write_all_at(&zeros, at))
    }

    /// Syncs the files that sled has made since: long values and snapshots.
    fn sync_new_files(&mut self) -> io::Result<()> {
        let mut present = BTreeSet::new();
        for folder in [self.folder.clone(), self.folder.join("blobs")] {
            let mut is_changed = false;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let place = (folder.clone(), entry.file_name());
                if !self.synced.contains(&place) {
                    // sled may remove a file meanwhile; then nothing refers to it.
                    match File::open(entry.path()).and_then(|file| file.sync_all()) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        Ok(()) | Err(_) => is_changed = true,
                    }
                }
                present.insert(place);
            }
            if is_changed {
                File::open(&folder)?.sync_all()?;
            }
        }
        self.synced = present;
        Ok(())
    }
}

/// Tells whether sled says that somebody has its lock; it says so in words alone.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn disk_error(error: sled::Error) -> DiskError {
    DiskError::Io(match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    })
}

impl Disk for SledDisk {
    fn check_room(&self, bytes: u64) -> Result<(), DiskError> {
        let space = rustix::fs::statvfs(&self.folder).map_err(io::Error::from)?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        let needed_bytes = self
            .reserved_bytes
            .saturating_add(bytes.saturating_mul(WRITE_AMPLIFICATION));
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        let path = self.folder.parent().unwrap_or(&self.folder);
        Err(DiskError::Full(Shortage {
            path: path.display().to_string(),
            free_bytes,
            needed_bytes,
        }))
    }

    fn write(&mut self, batch: Vec<Write>) -> Result<(), DiskError> {
        self.check_room(batch.iter().map(Write::bytes).sum())?;
        let mut sled_batch = sled::Batch::default();
        for write in batch {
            match write.value {
                Some(value) => sled_batch.insert(write.key, value),
                None => sled_batch.remove(write.key),
            }
        }
        self.database.apply_batch(sled_batch).map_err(disk_error)
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.database.flush().map_err(disk_error)?;
        // Without room (a full disk) syncs are slower, and nothing else.
        if let Err(error) = self.make_room() {
            tracing::debug!(%error, "no room can be made behind the log");
        }
        self.log.sync_data()?;
        Ok(self.sync_new_files()?)
    }

    fn scan(&self, prefix: &str, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), DiskError> {
        for record in self.database.scan_prefix(prefix) {
            let (key, value) = record.map_err(disk_error)?;
            visit(&key, &value);
        }
        Ok(())
    }

    fn identity(&self) -> u64 {
        self.lock
            .metadata()
            .map_or(0, |file| file.ino() ^ file.dev().rotate_left(32))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn few_writes_change_the_size_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        let mut lengths = BTreeSet::new();
        for number in 0..5000 {
            disk.write(vec![Write::put(format!("d/{number}"), "v".repeat(2000))])
                .unwrap();
            disk.sync().unwrap();
            lengths.insert(disk.log.metadata().unwrap().len());
        }
        assert!(lengths.len() <= 6, "{lengths:?}");
        let longest = lengths.last().unwrap();
        assert!(*longest <= 20_000_000 + 2 * ROOM_BYTES, "{longest}");
        // What was room is free to sled, and all else is there.
        for _ in 0..3 {
            drop(disk);
            disk = SledDisk::open(folder.path()).unwrap();
            let mut count = 0;
            disk.scan("d/", &mut |_, _| count += 1).unwrap();
            assert_eq!(count, 5000);
            disk.write(vec![Write::put("last", "v")]).unwrap();
            disk.sync().unwrap();
        }
        let length = disk.log.metadata().unwrap().len();
        assert!(length <= longest + 2 * ROOM_BYTES, "{length} after {longest}");
    }

    #[test]
    fn passes_the_suite() {
        let folder = tempfile::tempdir().unwrap();
        crate::disk::suite::check(SledDisk::open(folder.path()).unwrap(), |disk| {
            drop(disk);
            SledDisk::open(folder.path()).unwrap()
        });
    }

    #[test]
    fn a_log_that_was_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        for number in 0..2000 {
            disk.write(vec![Write::put(format!("d/{number}"), "v".repeat(1000))])
                .unwrap();
        }
        disk.sync().unwrap();
        drop(disk);
        // A start writes the snapshot that the log is compared with.
        drop(SledDisk::open(folder.path()).unwrap());
        let log = File::options()
            .write(true)
            .open(folder.path().join("sled/db"))
            .unwrap();
        log.set_len(log.metadata().unwrap().len() / 2).unwrap();
        assert!(matches!(
            SledDisk::open(folder.path()),
            Err(OpenError::Damaged { .. })
        ));
    }

    /// Copies the files of a directory as they are now.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(one) = folders.pop() {
            for entry in std::fs::read_dir(one).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let place = path.strip_prefix(folder).unwrap().to_owned();
                    files.insert(place, std::fs::read(path).unwrap());
                }
            }
        }
        files
    }

    #[test]
    fn a_write_that_was_torn_takes_nothing_with_it() {
        const WRITTEN: usize = 200;
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        for number in 0..WRITTEN {
            disk.write(vec![Write::put(format!("d/{number}"), "v".repeat(700))])
                .unwrap();
            disk.sync().unwrap();
        }
        let before = files(folder.path());
        let last = (0..10).map(|number| Write::put(format!("last/{number}"), "w".repeat(2000)));
        disk.write(last.collect()).unwrap();
        disk.sync().unwrap();
        let after = files(folder.path());
        drop(disk);
        let differing: Vec<(&PathBuf, usize)> = after
            .iter()
            .flat_map(|(place, bytes)| {
                let old = before.get(place);
                let differs = move |at: &usize| old.and_then(|old| old.get(*at)) != bytes.get(*at);
                (0..bytes.len()).filter(differs).map(move |at| (place, at))
            })
            .collect();
        assert!(differing.len() > 20_000, "{}", differing.len());
        // How many bytes of the last write reached the disk, and what is in the place of the others.
        for (kept, filler) in (0..=16).flat_map(|part| [(part, None), (part, Some(0)), (part, Some(0xa5))]) {
            let mut torn = after.clone();
            for (place, at) in &differing[differing.len() * kept / 16..] {
                let old = before.get(*place).and_then(|old| old.get(*at)).copied();
                torn.get_mut(*place).unwrap()[*at] = filler.or(old).unwrap_or_default();
            }
            let copy = tempfile::tempdir().unwrap();
            for (place, bytes) in torn {
                let path = copy.path().join(place);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
            let disk = SledDisk::open(copy.path()).unwrap();
            let count = |prefix: &str| {
                let mut count = 0;
                disk.scan(prefix, &mut |_, _| count += 1).unwrap();
                count
            };
            assert_eq!(count("d/"), WRITTEN, "{kept}/16 kept, filled with {filler:?}");
            let last = count("last/");
            assert!(
                last == 0 || last == 10,
                "{last} of one batch: {kept}/16 kept, filled with {filler:?}"
            );
            assert!(kept < 16 || last == 10);
        }
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = SledDisk::open(folder.path()).unwrap();
        assert!(matches!(
            SledDisk::open(folder.path()),
            Err(OpenError::Locked { .. })
        ));
        drop(first);
        SledDisk::open(folder.path()).unwrap();
    }

    #[test]
    fn refuses_writes_before_the_space_is_gone_and_recovers() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        disk.reserved_bytes = u64::MAX / 2;
        assert!(matches!(
            disk.write(vec![Write::put("a", "1")]),
            Err(DiskError::Full(_))
        ));
        disk.reserved_bytes = 0;
        disk.write(vec![Write::put("a", "1")]).unwrap();
        disk.sync().unwrap();
    }
}
