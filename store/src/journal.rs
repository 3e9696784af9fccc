//! The journal before the database: makes a batch durable with one write and one sync. Only files here, and no database;
//! `sled_disk.rs` joins the two.
//!
//! Two files of zeros take turns. A record goes behind the last one of a file, over zeros or over records that nobody
//! needs any more, so that its sync waits for the data alone and not for the file system's journal. When a file is full the
//! other is begun, once the database has durably what is in that. Records have numbers, of which none is left out; the
//! database keeps the number of the last that it holds, and a start gives it those after.
//!
//! A record is a header (number, length and a checksum) and a batch in postcard, at a multiple of [`ALIGNMENT`]. One that
//! was torn by a crash is none. One that is missing between others was damaged, and is told from the last ones, which were
//! never acknowledged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk::Write;

/// A thousand writes of 2 KB: as much is written again after a crash, in about 0.1 s, and twice that is the most that waits for the
/// database (but for single batches that are larger).
pub(crate) const FILE_BYTES: u64 = 4 << 20;
const NAMES: [&str; 2] = ["journal.0", "journal.1"];
/// A disk writes sectors of at least this whole or not at all: no write touches one that holds an earlier record.
const ALIGNMENT: usize = 512;
/// In both files: no record takes less than [`ALIGNMENT`], but one that is larger than a file has one for itself.
const MOST_RECORDS: u64 = 2 * FILE_BYTES / ALIGNMENT as u64;
const NUMBER: usize = size_of::<u64>();
const HEADER: usize = NUMBER + 2 * size_of::<u32>();

/// Files that records are appended to.
pub(crate) struct Journal {
    files: [File; 2],
    /// The last record in each; what it says of a file that is not written to is what the database must hold before it is.
    last: [u64; 2],
    active: usize,
    at: u64,
    next: u64,
    salt: u64,
}

/// The records that files have, by number.
pub(crate) type Records = Vec<(u64, Vec<Write>)>;

impl Journal {
    /// Tells whether a folder has a journal.
    pub(crate) fn is_in(folder: &Path) -> bool {
        NAMES.iter().any(|name| folder.join(name).exists())
    }

    /// Opens the files of a folder, or makes them, and reads the records after `held`, the last one that the database has; the
    /// next one that is appended follows the last of them, over all others. None: some are missing that once were there.
    ///
    /// `salt` belongs to this journal for good: what users write cannot look like a record without knowing it.
    pub(crate) fn open(folder: &Path, held: u64, salt: u64) -> io::Result<Option<(Self, Records)>> {
        let is_new = held == 0;
        let [Some(first), Some(second)] = [
            open(&folder.join(NAMES[0]), is_new)?,
            open(&folder.join(NAMES[1]), is_new)?,
        ] else {
            return Ok(None);
        };
        let files = [first, second];
        let mut records = Records::new();
        for file in &files {
            read(file, held, salt, &mut records)?;
        }
        records.sort_by_key(|(number, _)| *number);
        let numbers = records.iter().map(|(number, _)| *number);
        if !numbers.eq((held + 1..).take(records.len())) {
            return Ok(None);
        }
        let journal = Self {
            files,
            last: [0; 2],
            active: 0,
            at: 0,
            next: held + 1 + records.len() as u64,
            salt,
        };
        Ok(Some((journal, records)))
    }

    /// Appends a batch; it is durable when this returns its number. Calls `hold` with a number where a file is begun
    /// anew: that returns when the database has durably all up to it.
    ///
    /// After an error nobody knows what is durable, and nothing may be appended any more.
    pub(crate) fn append(
        &mut self,
        batch: &[Write],
        hold: impl FnOnce(u64) -> io::Result<()>,
    ) -> io::Result<u64> {
        let record = record(self.next, batch, self.salt)?;
        let bytes = record.len().next_multiple_of(ALIGNMENT) as u64;
        if self.at > 0 && self.at + bytes > FILE_BYTES {
            let other = 1 - self.active;
            hold(self.last[other])?;
            (self.active, self.at) = (other, 0);
        }
        let file = &self.files[self.active];
        file.write_all_at(&record, self.at)?;
        file.sync_data()?;
        let number = self.next;
        self.last[self.active] = number;
        self.at += bytes;
        self.next += 1;
        Ok(number)
    }

    /// The number of the last record.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Has all syncs fail from now on, as those of a broken disk.
    #[cfg(test)]
    pub(crate) fn break_files(&mut self) {
        // It takes every write and cannot be synced.
        self.files = std::array::from_fn(|_| File::options().write(true).open("/dev/null").unwrap());
    }
}

/// Opens a file; a new one is made of zeros. None: it was cut off or is gone.
fn open(path: &Path, is_new: bool) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(is_new)
        .truncate(false)
        .open(path);
    let mut file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    if length < FILE_BYTES {
        if !is_new {
            return Ok(None);
        }
        file.seek(io::SeekFrom::Start(length))?;
        io::copy(&mut io::repeat(0).take(FILE_BYTES - length), &mut file)?;
        file.sync_all()?;
    }
    Ok(Some(file))
}

fn checksum(salt: u64, header: &[u8], batch: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(header);
    hasher.update(batch);
    hasher.finalize()
}

fn record(number: u64, batch: &[Write], salt: u64) -> io::Result<Vec<u8>> {
    let mut record = vec![0; HEADER];
    record[..NUMBER].copy_from_slice(&number.to_le_bytes());
    let mut record = postcard::to_extend(batch, record).map_err(io::Error::other)?;
    let length = u32::try_from(record.len() - HEADER).map_err(io::Error::other)?;
    record[NUMBER..HEADER - 4].copy_from_slice(&length.to_le_bytes());
    let (header, batch) = record.split_at(HEADER);
    let sum = checksum(salt, &header[..HEADER - 4], batch);
    record[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
    Ok(record)
}

/// Returns the record at a place of a file, if it is one after `held`, and its length.
fn record_at(file: &File, at: u64, held: u64, salt: u64) -> io::Result<Option<(u64, Vec<Write>, u64)>> {
    let room = file.metadata()?.len().saturating_sub(at);
    let mut header = [0; HEADER];
    if room < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut header, at)?;
    let (number, length, sum) = fields(header);
    let length = u64::from(length);
    // What lies there may be anything: no number is far from the last one.
    let is_near = number > held && number - held <= MOST_RECORDS;
    if !is_near || length > room - HEADER as u64 {
        return Ok(None);
    }
    let mut batch = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut batch, at + HEADER as u64)?;
    if checksum(salt, &header[..HEADER - 4], &batch) != sum {
        return Ok(None);
    }
    let writes = postcard::from_bytes(&batch).ok();
    Ok(writes.map(|writes| (number, writes, HEADER as u64 + length)))
}

/// Number, length and checksum.
fn fields(header: [u8; HEADER]) -> (u64, u32, u32) {
    let number = u64::from_le_bytes(std::array::from_fn(|at| header[at]));
    let word = |from: usize| u32::from_le_bytes(std::array::from_fn(|at| header[from + at]));
    (number, word(NUMBER), word(NUMBER + 4))
}

/// Finds all records of a file after `held`, also those behind one that is torn or damaged. Piece by piece: as one, the file would
/// stay in the memory of the process.
fn read(file: &File, held: u64, salt: u64, records: &mut Records) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < length {
        let found = record_at(file, at, held, salt)?;
        let length = found.as_ref().map_or(1, |(.., length)| *length);
        records.extend(found.map(|(number, writes, _)| (number, writes)));
        at += length.next_multiple_of(ALIGNMENT as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const SALT: u64 = 7;

    fn batch(number: u64, bytes: usize) -> Vec<Write> {
        vec![
            Write::put(format!("d/{number}"), vec![number as u8; bytes]),
            Write::remove("d/x"),
        ]
    }

    fn open(folder: &Path, held: u64) -> (Journal, Vec<u64>) {
        let (journal, records) = Journal::open(folder, held, SALT).unwrap().unwrap();
        for (number, writes) in &records {
            assert_eq!(writes[0].key, format!("d/{number}").into_bytes());
        }
        (journal, records.into_iter().map(|(number, _)| number).collect())
    }

    /// Appends records of some bytes each, of which the database holds none unless it is asked to.
    fn append(journal: &mut Journal, count: usize, bytes: usize) -> Vec<u64> {
        let mut asked = Vec::new();
        for _ in 0..count {
            let writes = batch(journal.next, bytes);
            let hold = |number| {
                asked.push(number);
                Ok(())
            };
            journal.append(&writes, hold).unwrap();
        }
        asked
    }

    fn file(folder: &Path, at: usize) -> PathBuf {
        folder.join(NAMES[at])
    }

    #[test]
    fn what_the_database_lacks_is_read_again_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, records) = open(folder.path(), 0);
        assert_eq!(records, [0; 0]);
        append(&mut journal, 10, 2000);
        assert_eq!(open(folder.path(), 0).1, (1..=10).collect::<Vec<_>>());
        assert_eq!(open(folder.path(), 7).1, [8, 9, 10]);
        // What comes next lies over what the database holds.
        let (mut journal, _) = open(folder.path(), 7);
        append(&mut journal, 2, 100);
        assert_eq!(open(folder.path(), 10).1, [11, 12]);
        // Another journal's records are none.
        assert_eq!(Journal::open(folder.path(), 0, SALT + 1).unwrap().unwrap().1, []);
    }

    #[test]
    fn files_take_turns_and_ask_for_what_they_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(folder.path(), 0);
        // Four of a megabyte do not fit with their headers.
        assert_eq!(append(&mut journal, 3, 1 << 20), [0; 0]);
        assert_eq!(
            append(&mut journal, 3, 1 << 20),
            [0],
            "nothing is in the other one"
        );
        assert_eq!(append(&mut journal, 1, 1 << 20), [3]);
        assert_eq!(open(folder.path(), 3).1, [4, 5, 6, 7]);
        // One that is larger than a file has one for itself.
        assert_eq!(append(&mut journal, 1, 5 << 20), [6]);
        assert_eq!(append(&mut journal, 1, 10), [7]);
        assert_eq!(open(folder.path(), 7).1, [8, 9]);
    }

    #[test]
    fn a_record_that_was_torn_is_none_and_one_that_is_missing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(folder.path(), 0);
        append(&mut journal, 3, 2000);
        let whole = std::fs::read(file(folder.path(), 0)).unwrap();
        // Records of 2,0xx bytes lie at multiples of 2,048.
        let spoil = |places: std::ops::Range<usize>| {
            let mut bytes = whole.clone();
            bytes[places].iter_mut().for_each(|byte| *byte ^= 0x55);
            std::fs::write(file(folder.path(), 0), bytes).unwrap();
            let opened = Journal::open(folder.path(), 0, SALT).unwrap();
            opened.map(|(_, records)| records.len())
        };
        let read = File::open(file(folder.path(), 0)).unwrap();
        let starts: Vec<usize> = (0..whole.len())
            .step_by(ALIGNMENT)
            .filter(|at| record_at(&read, *at as u64, 0, SALT).unwrap().is_some())
            .collect();
        assert_eq!(starts.len(), 3);
        for at in [starts[2], starts[2] + 9, starts[2] + 1000] {
            assert_eq!(spoil(at..at + 1), Some(2), "the last one, torn at {at}");
            assert_eq!(spoil(at..starts[2] + 2000), Some(2));
        }
        for at in [0, 9, 500, starts[1], starts[1] + 1500] {
            assert_eq!(spoil(at..at + 1), None, "one of the middle, damaged at {at}");
        }
    }
}
