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
    /// The batches that are in the one and not in the other, as they lie in a log.
    unsynced: Vec<Vec<Write>>,
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
        self.after_torn_write(0).0
    }

    /// As [`MemoryDisk::after_power_loss`], where the first `kept_bytes` of what was not synced had reached the disk all the
    /// same. A batch of which a part is missing is left out: the second value tells whether there was one.
    pub(crate) fn after_torn_write(&self, mut kept_bytes: u64) -> (MemoryDisk, bool) {
        let content = self.content();
        let mut synced = content.synced.clone();
        let mut torn = false;
        for batch in &content.unsynced {
            let bytes = batch.iter().map(Write::bytes).sum();
            if kept_bytes < bytes {
                torn = kept_bytes > 0;
                break;
            }
            kept_bytes -= bytes;
            batch.iter().for_each(|write| apply(&mut synced, write));
        }
        let content = Content {
            written: synced.clone(),
            synced,
            ..Content::default()
        };
        let content = Arc::new(Mutex::new(content));
        (MemoryDisk { content }, torn)
    }

    /// Returns how much was written and not synced.
    #[cfg(test)]
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        let content = self.content();
        content.unsynced.iter().flatten().map(Write::bytes).sum()
    }

    /// Returns how many records there are, and of how many bytes with their keys.
    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize) {
        let content = self.content();
        let bytes = |(key, value): (&Vec<u8>, &Vec<u8>)| key.len() + value.len();
        (content.written.len(), content.written.iter().map(bytes).sum())
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

fn apply(records: &mut BTreeMap<Vec<u8>, Vec<u8>>, write: &Write) {
    match &write.value {
        Some(value) => records.insert(write.key.clone(), value.clone()),
        None => records.remove(&write.key),
    };
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
        batch.iter().for_each(|write| apply(&mut content.written, write));
        content.unsynced.push(batch);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let mut content = self.content();
        if content.failing {
            return Err(DiskError::Io(io::Error::other("told to fail")));
        }
        content.syncs += 1;
        let Content { synced, unsynced, .. } = &mut *content;
        unsynced
            .drain(..)
            .flatten()
            .for_each(|write| apply(synced, &write));
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
    fn loses_what_was_not_synced_and_torn_batches() {
        let mut disk = MemoryDisk::default();
        disk.write(vec![Write::put("a", "1")]).unwrap();
        assert_eq!(disk.after_power_loss().content().written.len(), 0);
        disk.write(vec![Write::put("b", "1"), Write::put("c", "1")])
            .unwrap();
        let records = |kept_bytes| {
            let (disk, torn) = disk.after_torn_write(kept_bytes);
            (disk.content().synced.len(), torn)
        };
        assert_eq!(
            [0, 1, 2, 5, 6].map(records),
            [(0, false), (0, true), (1, false), (1, true), (3, false)]
        );
    }
}
