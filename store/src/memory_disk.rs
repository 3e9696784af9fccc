//! A disk in memory, for tests and simulations: it loses what was not synced, fills up, fails and damages records when told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskError, Write};
use crate::types::Shortage;

/// What a damaged record holds.
pub(crate) const DAMAGED: [u8; 4] = [0, 255, 1, 2];

/// A disk in memory. Clones share one content.
#[derive(Clone, Default, Debug)]
pub struct MemoryDisk {
    content: Arc<Mutex<Content>>,
}

#[derive(Default, Debug, Clone)]
struct Content {
    written: BTreeMap<Vec<u8>, Vec<u8>>,
    synced: BTreeMap<Vec<u8>, Vec<u8>>,
    full: bool,
    failing: bool,
    syncs: u64,
}

impl MemoryDisk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a new disk with what this one would have after the loss of power. Whoever still writes to this one does
    /// not touch the new one.
    pub fn after_power_loss(&self) -> MemoryDisk {
        let synced = self.content().synced.clone();
        let content = Content {
            written: synced.clone(),
            synced,
            ..Content::default()
        };
        MemoryDisk {
            content: Arc::new(Mutex::new(content)),
        }
    }

    /// Refuses writes for want of space, or takes them again.
    pub fn set_full(&self, full: bool) {
        self.content().full = full;
    }

    /// Makes every sync fail.
    pub fn set_failing(&self, failing: bool) {
        self.content().failing = failing;
    }

    /// Makes a record unreadable, as a bad disk does: `d/` + object key, or `t/` + object key.
    pub fn damage(&self, record: &str) {
        let mut content = self.content();
        let key = record.as_bytes().to_vec();
        content.written.insert(key.clone(), DAMAGED.to_vec());
        content.synced.insert(key, DAMAGED.to_vec());
    }

    /// Returns how often it was synced.
    pub fn syncs(&self) -> u64 {
        self.content().syncs
    }
}

impl Disk for MemoryDisk {
    fn check_room(&self, bytes: u64) -> Result<(), DiskError> {
        match self.content().full {
            false => Ok(()),
            true => Err(DiskError::Full(Shortage {
                path: "memory".to_owned(),
                free_bytes: 0,
                needed_bytes: bytes.max(1),
            })),
        }
    }

    fn write(&mut self, batch: Vec<Write>) -> Result<(), DiskError> {
        self.check_room(batch.iter().map(Write::bytes).sum())?;
        let mut content = self.content();
        for write in batch {
            match write.value {
                Some(value) => content.written.insert(write.key, value),
                None => content.written.remove(&write.key),
            };
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let mut content = self.content();
        if content.failing {
            return Err(DiskError::Io(io::Error::other("told to fail")));
        }
        content.syncs += 1;
        content.synced = content.written.clone();
        Ok(())
    }

    fn scan(&self, prefix: &str, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), DiskError> {
        let content = self.content();
        let from_prefix = content.written.range(prefix.as_bytes().to_vec()..);
        for (key, value) in from_prefix.take_while(|(key, _)| key.starts_with(prefix.as_bytes())) {
            visit(key, value);
        }
        Ok(())
    }

    fn identity(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_the_suite() {
        crate::disk::suite::check(MemoryDisk::default(), |disk| disk.after_power_loss());
    }

    #[test]
    fn loses_what_was_not_synced() {
        let mut disk = MemoryDisk::default();
        disk.write(vec![Write::put("a", "1")]).unwrap();
        assert_eq!(disk.after_power_loss().content().written.len(), 0);
    }
}
