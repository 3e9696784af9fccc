//! The sled database behind the journal. One thread writes to it.
//!
//! sled's flush hands its log to the kernel (`sync_file_range` on Linux), which does not survive the loss of power
//! (spacejam/sled#1452), and it never syncs the files in which it keeps long values: see [`Database::sync`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::disk::{DiskError, Write};
use crate::random::random;
use crate::types::OpenError;

/// sled's own cache of pages. Objects are kept by the store, so this serves start-up alone.
const CACHE_BYTES: u64 = 2 << 20;
/// How long sled's threads may take to end after their database was closed, and how often that is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const SEGMENT_BYTES: usize = 512 << 10;
/// The record in which the database says what of the journal it holds; written with each batch.
pub(crate) const HELD: &[u8] = b"j";

/// What a database holds of its journal.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    /// The last batch.
    pub(crate) number: u64,
    /// By which the journal's records are known to belong to this database.
    pub(crate) salt: u64,
    /// Of the [`trace`]s of all records. sled leaves out, without a word, what it finds damaged in its log: this tells.
    sum: u64,
}

impl Held {
    fn read(record: &[u8]) -> Option<Self> {
        let words: &[[u8; 8]; 3] = record.as_chunks().0.try_into().ok()?;
        let [number, salt, sum] = words.map(u64::from_le_bytes);
        Some(Self { number, salt, sum })
    }

    fn record(self) -> Vec<u8> {
        [self.number, self.salt, self.sum].map(u64::to_le_bytes).concat()
    }
}

/// A number that says which record it is.
fn trace(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(key.len().to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher
        .finalize()
        .first_chunk()
        .map_or(0, |start| u64::from_le_bytes(*start))
}

/// A sled database in a folder of its own.
pub(crate) struct Database {
    sled: sled::Db,
    held: Held,
    /// By key: of what is replaced the value need not be read.
    traces: HashMap<Vec<u8>, u64>,
    log: File,
    folder: PathBuf,
    /// Files beside the log that are synced.
    synced: BTreeSet<(PathBuf, OsString)>,
}

impl Database {
    /// Opens the database of a directory, or makes it, where that may be a new one.
    pub(crate) fn open(directory: &Path, may_be_new: bool) -> Result<Self, OpenError> {
        let path = || directory.display().to_string();
        let io = |source| OpenError::Io { path: path(), source };
        let damaged = |reason: &str| OpenError::Damaged {
            path: path(),
            reason: reason.to_owned(),
        };
        let folder = directory.join("sled");
        let started = Instant::now();
        let config = sled::Config::new()
            .path(&folder)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        let sled = loop {
            // sled panics where its log is shorter than its snapshot says; nothing of a failed start is used again.
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| damaged("the log of the database was cut off or is missing"))?;
            match opened {
                Ok(sled) => break sled,
                // The directory is ours: who has sled's lock are its threads of a database that this process has closed, until
                // they have ended what they were at.
                Err(sled::Error::Io(error)) if is_locked(&error) && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(open_error(directory, error)),
            }
        };
        let log = File::options()
            .read(true)
            .write(true)
            .open(folder.join("db"))
            .map_err(io)?;
        let failed = |error| open_error(directory, error);
        let mut traces = HashMap::new();
        for record in sled.iter() {
            let (key, value) = record.map_err(failed)?;
            if key.as_ref() != HELD {
                traces.insert(key.to_vec(), trace(&key, &value));
            }
        }
        let mut held = Held {
            number: 0,
            salt: random(),
            sum: traces.values().fold(0, |sum, trace| sum.wrapping_add(*trace)),
        };
        match sled.get(HELD).map_err(failed)? {
            Some(record) => {
                let found = held.sum;
                held = Held::read(&record)
                    .ok_or_else(|| damaged("it does not say what it holds of its journal"))?;
                if held.sum != found {
                    return Err(damaged(
                        "some of what was written to the database is not in it any more",
                    ));
                }
            }
            None if may_be_new => {}
            None => return Err(damaged("the database is empty, and was not")),
        }
        let mut database = Self {
            sled,
            held,
            traces,
            log,
            folder,
            synced: BTreeSet::new(),
        };
        // Before anything is written to the journal: its salt.
        database
            .apply(held.number, Vec::new())
            .and_then(|()| database.sync())
            .map_err(failed)?;
        Ok(database)
    }

    pub(crate) fn sled(&self) -> sled::Db {
        self.sled.clone()
    }

    pub(crate) fn held(&self) -> Held {
        self.held
    }

    /// Writes batches of the journal up to one: all of that or, after a crash, nothing.
    pub(crate) fn apply(&mut self, number: u64, batch: Vec<Write>) -> Result<(), sled::Error> {
        // Of several writes of a key the last counts.
        let writes: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            batch.into_iter().map(|write| (write.key, write.value)).collect();
        let mut sled_batch = sled::Batch::default();
        for (key, value) in writes {
            let (trace, before) = match value {
                Some(value) => {
                    let trace = trace(&key, &value);
                    sled_batch.insert(key.as_slice(), value);
                    (trace, self.traces.insert(key, trace))
                }
                None => {
                    sled_batch.remove(key.as_slice());
                    (0, self.traces.remove(&key))
                }
            };
            let sum = self.held.sum.wrapping_add(trace);
            self.held.sum = sum.wrapping_sub(before.unwrap_or_default());
        }
        self.held.number = number;
        sled_batch.insert(HELD, self.held.record());
        self.sled.apply_batch(sled_batch)
    }

    /// Returns when all that was written survives the loss of power: a flush, then fdatasync of the log and fsync of every
    /// file that is new, and of its directory.
    ///
    /// sled writes over a segment of its log when what it held has been written elsewhere. The sync before the flush sees to
    /// it that this is on the disk by then. It suffices if less than a segment was written since the last one.
    pub(crate) fn sync(&mut self) -> Result<(), sled::Error> {
        self.log.sync_data()?;
        self.sled.flush()?;
        self.log.sync_data()?;
        Ok(self.sync_new_files()?)
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

pub(crate) fn open_error(directory: &Path, error: sled::Error) -> OpenError {
    let path = directory.display().to_string();
    match error {
        sled::Error::Io(source) => OpenError::Io { path, source },
        other => OpenError::Damaged {
            path,
            reason: other.to_string(),
        },
    }
}

pub(crate) fn scan_error(error: sled::Error) -> DiskError {
    match error {
        sled::Error::Io(error) => DiskError::Io(error),
        other => DiskError::Damaged(other.to_string()),
    }
}
