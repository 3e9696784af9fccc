//! The store's disk: a journal, which makes writes durable, before a sled database, which has what was written.
//!
//! A sync appends what was written to the journal; a thread gives it to the database later, where nobody waits for it: when
//! writers rest, when much has come together, when a file of the journal is to be used again, and at the end.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::database::{self, Database};
use crate::disk::{Disk, DiskError, Write};
use crate::journal::{self, Journal};
use crate::types::{OpenError, Shortage};

/// Space that must stay free after a write: sled stops for good where it meets ENOSPC, so the limit is drawn before. It is
/// some segments of its log (512 KiB each) and a snapshot.
const RESERVED_BYTES: u64 = 32 << 20;
/// How much a batch can grow on disk: sled writes whole pages.
const WRITE_AMPLIFICATION: u64 = 4;
/// So much the database gets as one: half a segment of sled's log (see [`Database::sync`]).
const TOGETHER_BYTES: u64 = 256 << 10;
/// When so much waits the database gets it also while others write, for the files of the journal to take turns. Before, it waits
/// for a rest: what the database writes holds up the syncs of the journal.
const PATIENT_BYTES: u64 = journal::FILE_BYTES / 4 * 3;
/// A rest: nothing was written for so long.
const REST: Duration = Duration::from_millis(50);

/// A directory with a lock, a journal and a sled database.
pub(crate) struct SledDisk {
    /// Written, and not synced yet.
    written: Vec<Write>,
    journal: Journal,
    feeder: Feeder,
    database: sled::Db,
    directory: PathBuf,
    reserved_bytes: u64,
    lock: File,
}

impl SledDisk {
    pub(crate) fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = || directory.display().to_string();
        let io = |source| OpenError::Io { path: path(), source };
        let damaged = |reason: String| OpenError::Damaged { path: path(), reason };
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
        let mut database = Database::open(directory, !Journal::is_in(directory))?;
        let held = database.held();
        let (journal, missing) = Journal::open(directory, held.number, held.salt)
            .map_err(io)?
            .ok_or_else(|| {
                damaged("the database and its journal do not fit together: writes are missing".to_owned())
            })?;
        if !missing.is_empty() {
            tracing::info!(
                batches = missing.len(),
                "writes of the journal are brought to the database"
            );
        }
        let failed = |error: sled::Error| database::open_error(directory, error);
        for (number, batch) in missing {
            database.apply(number, batch).map_err(failed)?;
        }
        database.sync().map_err(failed)?;
        File::open(directory)
            .and_then(|parent| parent.sync_all())
            .map_err(io)?;
        Ok(Self {
            written: Vec::new(),
            journal,
            database: database.sled(),
            feeder: Feeder::start(database).map_err(io)?,
            directory: directory.to_owned(),
            reserved_bytes: RESERVED_BYTES,
            lock,
        })
    }
}

impl Disk for SledDisk {
    fn check_room(&self, bytes: u64) -> Result<(), DiskError> {
        let space = rustix::fs::statvfs(&self.directory).map_err(io::Error::from)?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        let coming_bytes = self.feeder.waiting_bytes().saturating_add(bytes);
        let needed_bytes = self
            .reserved_bytes
            .saturating_add(coming_bytes.saturating_mul(WRITE_AMPLIFICATION));
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(DiskError::Full(Shortage {
            path: self.directory.display().to_string(),
            free_bytes,
            needed_bytes,
        }))
    }

    fn write(&mut self, batch: Vec<Write>) -> Result<(), DiskError> {
        self.check_room(bytes(&batch))?;
        self.written.extend(batch);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        if self.written.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.written);
        let number = self.journal.append(&batch, |number| self.feeder.hold(number))?;
        Ok(self.feeder.feed(number, batch)?)
    }

    fn scan(&self, prefix: &str, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), DiskError> {
        self.feeder.hold(self.journal.last())?;
        for record in self.database.scan_prefix(prefix) {
            let (key, value) = record.map_err(database::scan_error)?;
            if key != database::HELD {
                visit(&key, &value);
            }
        }
        Ok(())
    }

    fn identity(&self) -> u64 {
        self.lock
            .metadata()
            .map_or(0, |file| file.ino() ^ file.dev().rotate_left(32))
    }
}

fn bytes(batch: &[Write]) -> u64 {
    batch.iter().map(Write::bytes).sum()
}

/// A thread that gives batches to the database, some as one.
struct Feeder {
    /// What waits is in the journal too, whose size bounds it. None: at the end.
    jobs: Option<mpsc::Sender<Job>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

enum Job {
    Take(u64, Vec<Write>),
    /// Look at what is [wanted](State::wanted).
    Sync,
}

#[derive(Default)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The last batch that the database has durably.
    durable: u64,
    /// Somebody waits until it has this one.
    wanted: u64,
    waiting_bytes: u64,
    /// Why the database takes no more.
    failure: Option<String>,
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether somebody waits for batches up to `last`, or for some of them.
    fn is_wanted(&self, last: u64) -> bool {
        let state = self.state();
        state.durable < state.wanted && state.wanted <= last
    }
}

impl Feeder {
    fn start(mut database: Database) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let progress = Arc::new(Progress::default());
        progress.state().durable = database.held().number;
        let shared = progress.clone();
        let thread = thread::Builder::new()
            .name("store-database".to_owned())
            .spawn(move || {
                // What ends without a word, by a panic of sled's, has failed as well.
                let mut end = End(&shared, "it ended".to_owned());
                if let Err(error) = feed(&mut database, &queue, &shared) {
                    end.1 = error.to_string();
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            progress,
            thread: Some(thread),
        })
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent {
            Ok(())
        } else {
            Err(failed(&self.progress.state()))
        }
    }

    fn feed(&self, number: u64, batch: Vec<Write>) -> io::Result<()> {
        self.progress.state().waiting_bytes += bytes(&batch);
        self.send(Job::Take(number, batch))
    }

    /// Waits until the database has durably all up to a batch.
    fn hold(&self, number: u64) -> io::Result<()> {
        {
            let mut state = self.progress.state();
            if state.durable >= number {
                return Ok(());
            }
            state.wanted = state.wanted.max(number);
        }
        self.send(Job::Sync)?;
        let mut state = self.progress.state();
        while state.durable < number && state.failure.is_none() {
            state = self
                .progress
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.durable >= number {
            Ok(())
        } else {
            Err(failed(&state))
        }
    }

    fn waiting_bytes(&self) -> u64 {
        self.progress.state().waiting_bytes
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was told where it happened.
            let _ = thread.join();
        }
    }
}

fn failed(state: &State) -> io::Error {
    let reason = state.failure.as_deref().unwrap_or("it ended");
    io::Error::other(format!("the database takes no more: {reason}"))
}

/// Says that the thread has ended, however it did.
struct End<'a>(&'a Progress, String);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.state().failure = Some(std::mem::take(&mut self.1));
        self.0.changed.notify_all();
    }
}

/// Batches that the database has not got yet.
#[derive(Default)]
struct Waiting {
    batches: VecDeque<(u64, Vec<Write>)>,
    bytes: u64,
}

impl Waiting {
    fn add(&mut self, number: u64, batch: Vec<Write>) {
        self.bytes += bytes(&batch);
        self.batches.push_back((number, batch));
    }

    fn last(&self) -> u64 {
        self.batches.back().map_or(0, |(number, _)| *number)
    }

    /// Gives the database the first of them durably, as one.
    fn give_some(&mut self, database: &mut Database, progress: &Progress) -> Result<(), sled::Error> {
        let (mut last, mut together, mut together_bytes) = (database.held().number, Vec::new(), 0);
        while together_bytes < TOGETHER_BYTES
            && let Some((number, batch)) = self.batches.pop_front()
        {
            last = number;
            together_bytes += bytes(&batch);
            together.extend(batch);
        }
        database.apply(last, together)?;
        database.sync()?;
        self.bytes -= together_bytes;
        let mut state = progress.state();
        state.waiting_bytes -= together_bytes;
        state.durable = last;
        progress.changed.notify_all();
        Ok(())
    }
}

/// Gives batches to the database until there are no more, or it fails.
fn feed(
    database: &mut Database,
    queue: &mpsc::Receiver<Job>,
    progress: &Progress,
) -> Result<(), sled::Error> {
    let mut waiting = Waiting::default();
    loop {
        let is_worth_a_sync = waiting.bytes >= TOGETHER_BYTES;
        let job = queue.recv_timeout(if is_worth_a_sync { REST } else { Duration::MAX });
        let (is_due, is_end) = match job {
            Ok(Job::Take(number, batch)) => {
                waiting.add(number, batch);
                (waiting.bytes >= PATIENT_BYTES, false)
            }
            Ok(Job::Sync) => (false, false),
            Err(RecvTimeoutError::Timeout) => (true, false),
            Err(RecvTimeoutError::Disconnected) => (true, true),
        };
        while !waiting.batches.is_empty() && (is_due || progress.is_wanted(waiting.last())) {
            waiting.give_some(database, progress)?;
        }
        if is_end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use super::*;

    #[test]
    fn passes_the_suite() {
        let folder = tempfile::tempdir().unwrap();
        crate::disk::suite::check(SledDisk::open(folder.path()).unwrap(), |disk| {
            drop(disk);
            SledDisk::open(folder.path()).unwrap()
        });
    }

    /// Writes values under `d/` and syncs each.
    fn fill(disk: &mut SledDisk, numbers: std::ops::Range<usize>, bytes: usize) {
        for number in numbers {
            disk.write(vec![Write::put(format!("d/{number}"), noise(number, bytes))])
                .unwrap();
            disk.sync().unwrap();
        }
    }

    /// Bytes that compress little.
    fn noise(seed: usize, bytes: usize) -> Vec<u8> {
        let mut state = seed as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn count(disk: &SledDisk, prefix: &str) -> Result<usize, DiskError> {
        let mut count = 0;
        disk.scan(prefix, &mut |_, _| count += 1)?;
        Ok(count)
    }

    /// Copies the files of a directory as they are now.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(one) = folders.pop() {
            for entry in fs::read_dir(one).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let place = path.strip_prefix(folder).unwrap().to_owned();
                    files.insert(place, fs::read(path).unwrap());
                }
            }
        }
        files
    }

    fn folder_of(files: &BTreeMap<PathBuf, Vec<u8>>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (place, bytes) in files {
            let path = folder.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn what_the_database_has_not_got_yet_comes_from_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        // The database is not synced for so little; sled writes most of it all the same.
        fill(&mut disk, 0..50, 1000);
        let killed = folder_of(&files(folder.path()));
        let mut disk = SledDisk::open(killed.path()).unwrap();
        assert_eq!(count(&disk, "d/").unwrap(), 50);
        fill(&mut disk, 50..60, 1000);
        drop(disk);
        assert_eq!(count(&SledDisk::open(killed.path()).unwrap(), "d/").unwrap(), 60);
    }

    #[test]
    fn the_database_gets_what_is_worth_it_when_writers_rest() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..10, 64 << 10);
        let started = Instant::now();
        while disk.feeder.waiting_bytes() > 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "it waits for more");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(disk.feeder.progress.state().durable, disk.journal.last());
    }

    #[test]
    fn writes_without_end_take_turns_in_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        for round in 0..12 {
            fill(&mut disk, 0..8, (128 << 10) + round);
        }
        let killed = folder_of(&files(folder.path()));
        drop(disk);
        for folder in [&folder, &killed] {
            let disk = SledDisk::open(folder.path()).unwrap();
            let mut lengths = Vec::new();
            disk.scan("d/", &mut |_, value| lengths.push(value.len()))
                .unwrap();
            assert_eq!(lengths, [(128 << 10) + 11; 8]);
        }
    }

    #[test]
    fn a_disk_that_cannot_be_synced_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..1, 10);
        disk.journal.break_files();
        disk.write(vec![Write::put("d/1", "v")]).unwrap();
        assert!(matches!(disk.sync(), Err(DiskError::Io(_))));
    }

    #[test]
    fn a_database_that_fails_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..1, 10);
        disk.feeder.jobs = None;
        disk.write(vec![Write::put("d/1", "v")]).unwrap();
        assert!(matches!(disk.sync(), Err(DiskError::Io(_))));
        assert!(matches!(count(&disk, "d/"), Err(DiskError::Io(_))));
        drop(disk);
        // It was in the journal, though.
        assert_eq!(count(&SledDisk::open(folder.path()).unwrap(), "d/").unwrap(), 2);
    }

    #[test]
    fn a_database_or_journal_that_was_cut_off_is_told_or_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..40, 200_000);
        drop(disk);
        // A start writes the snapshot that the log is compared with.
        drop(SledDisk::open(folder.path()).unwrap());
        let whole = files(folder.path());
        for place in ["sled/db", "journal.0", "journal.1"] {
            for kept in [0, 2] {
                let mut files = whole.clone();
                let bytes = files.get_mut(Path::new(place)).unwrap();
                bytes.truncate(bytes.len() * kept / 4);
                let spoiled = folder_of(&files);
                match SledDisk::open(spoiled.path()) {
                    Err(OpenError::Damaged { .. }) => {}
                    Ok(disk) => assert_eq!(count(&disk, "d/").unwrap(), 40, "{kept}/4 of {place}"),
                    Err(other) => panic!("{kept}/4 of {place}: {other}"),
                }
            }
        }
    }

    /// Opens a copy, and counts what is there; None: it is told that something is wrong.
    fn found(files: &BTreeMap<PathBuf, Vec<u8>>) -> Option<usize> {
        let folder = folder_of(files);
        let read = || count(&SledDisk::open(folder.path()).ok()?, "d/").ok();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).ok()?
    }

    #[test]
    fn a_byte_that_changed_is_told_or_loses_nothing() {
        const WRITTEN: usize = 200;
        const PLACES: usize = 40;
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..WRITTEN, 3000);
        disk.feeder.hold(disk.journal.last()).unwrap();
        let whole = files(folder.path());
        let mut told = 0;
        for place in ["journal.0", "sled/db"] {
            let place = Path::new(place);
            let last = whole[place].iter().rposition(|byte| *byte != 0).unwrap();
            for at in (0..PLACES).map(|number| last * number / PLACES) {
                let mut spoiled = whole.clone();
                spoiled.get_mut(place).unwrap()[at] ^= 0x10;
                match found(&spoiled) {
                    Some(count) => assert_eq!(count, WRITTEN, "byte {at} of {}", place.display()),
                    None => told += 1,
                }
            }
        }
        assert!(told > 0);
    }

    #[test]
    fn a_write_that_was_torn_takes_nothing_with_it() {
        const WRITTEN: usize = 200;
        let folder = tempfile::tempdir().unwrap();
        let mut disk = SledDisk::open(folder.path()).unwrap();
        fill(&mut disk, 0..WRITTEN, 700);
        // What the thread does meanwhile belongs to no write.
        disk.feeder.hold(disk.journal.last()).unwrap();
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
            let copy = folder_of(&torn);
            let disk = SledDisk::open(copy.path()).unwrap();
            let case = format!("{kept}/16 kept, filled with {filler:?}");
            assert_eq!(count(&disk, "d/").unwrap(), WRITTEN, "{case}");
            let last = count(&disk, "last/").unwrap();
            assert!(last == 0 || last == 10, "{last} of one batch: {case}");
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
