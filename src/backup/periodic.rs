//! The backups that a node makes by itself: files that come whole or not at all, and of which the newest stay. They are
//! named `backup-YYYYMMDDTHHMMSSZ.yaml`, with `.age` behind it where they are sealed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use schemas::time;

use super::stream::WriteError;

const PREFIX: &str = "backup-";
const PLAIN: &str = ".yaml";
const SEALED: &str = ".yaml.age";
/// A file that is still written; one that is found was left by a crash.
const UNFINISHED: &str = ".unfinished";
/// Space that stays free beside a backup: twice what the store needs to take writes, which a backup must not stop.
const RESERVED_BYTES: u64 = 64 << 20;

/// Why a periodic backup was not made.
#[derive(Debug, thiserror::Error)]
pub enum PeriodicError {
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} has {free} bytes free, less than the {wanted} that a backup may need")]
    Space { path: PathBuf, free: u64, wanted: u64 },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A directory of backups.
#[derive(Clone, Debug)]
pub struct PeriodicFiles {
    directory: PathBuf,
    /// How many stay; at least one.
    retention: usize,
}

/// Tells whether a file is named as the backups that we make, and so is ours to remove.
pub fn is_backup_name(name: &str) -> bool {
    created_of(name).is_some()
}

/// The time in a name, seconds since the Unix epoch.
fn created_of(name: &str) -> Option<i64> {
    let rest = name.strip_prefix(PREFIX)?;
    let stamp = rest.strip_suffix(SEALED).or_else(|| rest.strip_suffix(PLAIN))?;
    let (date, clock) = stamp.strip_suffix('Z')?.split_once('T')?;
    let digits =
        |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(date, 8) || !digits(clock, 6) {
        return None;
    }
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    let (hour, minute, second) = (&clock[..2], &clock[2..4], &clock[4..]);
    time::from_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))
}

fn name_of(created: i64, sealed: bool) -> String {
    let stamp = time::to_rfc3339(created).replace(['-', ':'], "");
    format!("{PREFIX}{stamp}{}", if sealed { SEALED } else { PLAIN })
}

impl PeriodicFiles {
    /// Names a directory, which need not be there yet, and how many backups stay in it.
    pub fn new(directory: PathBuf, retention: usize) -> Self {
        Self {
            directory,
            retention: retention.max(1),
        }
    }

    /// Returns when the newest backup was made, by its name (seconds since the Unix epoch).
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn newest(&self) -> Result<Option<i64>, PeriodicError> {
        Ok(self.names()?.last().and_then(|name| created_of(name)))
    }

    /// Returns where the newest backup is, by its name.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn newest_path(&self) -> Result<Option<PathBuf>, PeriodicError> {
        Ok(self.names()?.last().map(|name| self.directory.join(name)))
    }

    /// Writes a backup and removes those that are more than stay; never the new one. A file of this name is there only when
    /// all of it survives the loss of power. Blocks.
    ///
    /// # Errors
    /// Nothing new is there then, and nothing was removed, unless only removing failed.
    pub fn write(
        &self,
        created: i64,
        sealed: bool,
        content: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<PathBuf, PeriodicError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| failed("create", &self.directory, source))?;
        self.remove_unfinished()?;
        self.check_space()?;
        let name = name_of(created, sealed);
        let path = self.directory.join(&name);
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        if let Err(error) = write_whole(&unfinished, content) {
            // What cannot be removed now is removed before the next one.
            _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        fs::rename(&unfinished, &path).map_err(|source| failed("name", &path, source))?;
        self.sync_directory()?;
        self.remove_surplus(&name)?;
        Ok(path)
    }

    /// The names of backups, the oldest first.
    fn names(&self) -> Result<Vec<String>, PeriodicError> {
        let mut names: Vec<String> = self
            .all_names()?
            .into_iter()
            .filter(|name| is_backup_name(name))
            .collect();
        names.sort();
        Ok(names)
    }

    fn all_names(&self) -> Result<Vec<String>, PeriodicError> {
        let read = |source| failed("read", &self.directory, source);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // Ours are ASCII.
            names.extend(entry.map_err(read)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn remove_unfinished(&self) -> Result<(), PeriodicError> {
        for name in self.all_names()? {
            if name.strip_suffix(UNFINISHED).is_some_and(is_backup_name) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn remove_surplus(&self, newest: &str) -> Result<(), PeriodicError> {
        let mut older = self.names()?;
        // A clock that ran ahead may have left names that sort behind this one.
        older.retain(|name| name != newest);
        let surplus = (older.len() + 1).saturating_sub(self.retention);
        for name in &older[..surplus] {
            self.remove(name)?;
        }
        self.sync_directory()
    }

    fn remove(&self, name: &str) -> Result<(), PeriodicError> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The next one may be a bit larger than the last.
    fn check_space(&self) -> Result<(), PeriodicError> {
        let path = &self.directory;
        let last = self.names()?.pop();
        let last = last
            .and_then(|name| fs::metadata(path.join(name)).ok())
            .map_or(0, |file| file.len());
        let wanted = RESERVED_BYTES + last + last / 4;
        let space = rustix::fs::statvfs(path).map_err(|error| failed("look at", path, error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < wanted {
            let path = path.clone();
            return Err(PeriodicError::Space { path, free, wanted });
        }
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), PeriodicError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| failed("sync", &self.directory, source))
    }
}

fn write_whole(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
) -> Result<(), PeriodicError> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| failed("create", path, source))?;
    let mut out = BufWriter::new(file);
    content(&mut out)?;
    let file = out
        .into_inner()
        .map_err(|error| failed("write", path, error.into_error()))?;
    file.sync_all().map_err(|source| failed("sync", path, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> PeriodicError {
    PeriodicError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const START: i64 = 1_800_000_000;

    fn files(retention: usize) -> (tempfile::TempDir, PeriodicFiles) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("backups");
        (folder, PeriodicFiles::new(directory, retention))
    }

    fn write(files: &PeriodicFiles, created: i64) -> PathBuf {
        files
            .write(created, false, |out| Ok(out.write_all(b"content")?))
            .unwrap()
    }

    fn listed(files: &PeriodicFiles) -> Vec<String> {
        let mut names = files.all_names().unwrap();
        names.sort();
        names
    }

    #[test]
    fn the_newest_stay_and_other_files_are_not_touched() {
        let (_folder, files) = files(3);
        let first = write(&files, START);
        assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(&files.directory).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let foreign = [
            "notes.txt",
            "backup-mine.yaml",
            "backup-20270115T080000Z.yaml.bak",
            "backup-20270115.yaml",
        ];
        for name in foreign {
            fs::write(files.directory.join(name), "mine").unwrap();
        }
        for hour in 1..6 {
            write(&files, START + hour * 3600);
        }
        let names = listed(&files);
        assert!(
            foreign.iter().all(|name| names.contains(&(*name).to_owned())),
            "{names:?}"
        );
        let ours: Vec<_> = names.iter().filter(|name| is_backup_name(name)).collect();
        assert_eq!(
            ours,
            [
                "backup-20270115T110000Z.yaml",
                "backup-20270115T120000Z.yaml",
                "backup-20270115T130000Z.yaml"
            ]
        );
        assert_eq!(files.newest().unwrap(), Some(START + 5 * 3600));
    }

    #[test]
    fn a_backup_is_kept_though_a_clock_ran_ahead_before() {
        let (_folder, files) = files(2);
        write(&files, START + 1_000_000);
        write(&files, START + 2_000_000);
        let now = write(&files, START);
        assert!(now.exists());
        assert_eq!(listed(&files).len(), 2);
    }

    #[test]
    fn an_interrupted_write_leaves_nothing_and_removes_nothing() {
        let (_folder, files) = files(1);
        let first = write(&files, START);
        let error = files.write(START + 1, true, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull).into())
        });
        assert!(
            matches!(error, Err(PeriodicError::Write(WriteError::Io(_)))),
            "{error:?}"
        );
        assert_eq!(listed(&files), [first.file_name().unwrap().to_str().unwrap()]);
        // As a crash leaves it: neither counted nor in the way.
        let left = files
            .directory
            .join(format!("{}{UNFINISHED}", name_of(START + 2, false)));
        fs::write(&left, "half").unwrap();
        assert_eq!(files.newest().unwrap(), Some(START));
        write(&files, START + 2);
        assert_eq!(listed(&files), [name_of(START + 2, false)]);
    }
}
