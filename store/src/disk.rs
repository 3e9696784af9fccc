//! What the store asks of a disk, and the suite that every implementation must pass.
//!
//! Implementations: `sled_disk.rs` for real, `memory_disk.rs` for tests and simulations.

use std::io;

use serde::{Deserialize, Serialize};

use crate::types::Shortage;

/// One record to be put (Some) or removed (None).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

impl Write {
    pub(crate) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.key.len() + self.value.as_ref().map_or(0, Vec::len)) as u64
    }

    pub(crate) fn remove(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            value: None,
        }
    }
}

/// Why a disk did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// Nothing was written; a later write may succeed.
    #[error(transparent)]
    Full(#[from] Shortage),
    /// What was written before is not all there any more.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// What was written since the last sync may be lost, and this disk must not be used on.
    #[error("input/output failed")]
    Io(#[from] io::Error),
}

/// An ordered map of records on stable storage, used by one thread.
pub(crate) trait Disk: Send {
    /// Tells whether a write of so many bytes would be tried.
    fn check_room(&self, bytes: u64) -> Result<(), DiskError>;

    /// Writes all of a batch or, after a crash, none of it.
    fn write(&mut self, batch: Vec<Write>) -> Result<(), DiskError>;

    /// Returns when all that was written survives the loss of power.
    fn sync(&mut self) -> Result<(), DiskError>;

    /// Visits records that were synced and whose key begins with `prefix`, in order.
    fn scan(&self, prefix: &str, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), DiskError>;

    /// Returns what tells this place from a copy of it.
    fn identity(&self) -> u64;
}

#[cfg(test)]
pub(crate) mod suite {
    use super::*;

    fn all(disk: &dyn Disk, prefix: &str) -> Vec<(Vec<u8>, usize)> {
        let mut found = Vec::new();
        disk.scan(prefix, &mut |key, value| found.push((key.to_vec(), value.len())))
            .unwrap();
        found
    }

    /// Checks what every disk promises; `reopen` gives the disk as it is after the loss of power.
    pub(crate) fn check<D: Disk>(disk: D, reopen: impl Fn(D) -> D) {
        let mut disk = disk;
        let long = vec![7; 3 << 19];
        let batch = vec![
            Write::put("a/2", "two"),
            Write::put("a/1", "one"),
            Write::put("b/1", long.clone()),
            Write::put("a/3", "three"),
        ];
        disk.write(batch).unwrap();
        disk.write(vec![Write::remove("a/3"), Write::put("a/2", "zwei")])
            .unwrap();
        disk.sync().unwrap();
        let mut disk = reopen(disk);
        assert_eq!(all(&disk, "a/"), [(b"a/1".to_vec(), 3), (b"a/2".to_vec(), 4)]);
        assert_eq!(all(&disk, "b/"), [(b"b/1".to_vec(), long.len())]);
        assert_eq!(all(&disk, "c/"), []);
        disk.write(vec![Write::put("b/1", "short"), Write::remove("absent")])
            .unwrap();
        disk.sync().unwrap();
        let disk = reopen(disk);
        assert_eq!(
            all(&disk, ""),
            [(b"a/1".to_vec(), 3), (b"a/2".to_vec(), 4), (b"b/1".to_vec(), 5)]
        );
    }
}
