//! Digests of what a store holds, in buckets, so that two stores find their differences without telling all. Pure.

use schemas::{ObjectKey, hex};
use sha2::{Digest, Sha256};

use crate::frame::Header;
use crate::incarnation::Tombstone;
use crate::record::Record;

/// How many buckets keys are spread over: of 10,000 objects, a difference in one costs a summary of 40.
pub(crate) const BUCKETS: usize = 256;

/// The digest of a bucket: of all its keys' digests, in no order.
pub(crate) type BucketDigest = [u8; 16];

/// The digests of all buckets, kept up to date.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Digests {
    buckets: Vec<BucketDigest>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            buckets: vec![BucketDigest::default(); BUCKETS],
        }
    }
}

impl Digests {
    pub(crate) fn buckets(&self) -> &[BucketDigest] {
        &self.buckets
    }

    /// Takes in, or takes out again, what is held of a key.
    pub(crate) fn toggle(&mut self, key: &ObjectKey, removed: Option<Tombstone>, record: Option<&Record>) {
        if removed.is_none() && record.is_none() {
            return;
        }
        let mut hasher = Sha256::new();
        hasher.update(key.to_string());
        let removed = removed.unwrap_or_default();
        hasher.update(removed.laid.to_be_bytes());
        hasher.update(removed.seen);
        let live = record.map(|record| record.incarnation).unwrap_or_default();
        for incarnation in [removed.incarnation, live] {
            hasher.update([0]);
            hasher.update(incarnation.round.to_be_bytes());
            hasher.update(incarnation.number.to_be_bytes());
        }
        if let Some(record) = record {
            hasher.update(record.epoch.dropped.to_be_bytes());
            hasher.update(record.epoch.base);
            record.heads.iter().for_each(|head| hasher.update(head));
        }
        let digest = hasher.finalize();
        for (byte, toggled) in self.buckets[bucket_of(key)].iter_mut().zip(digest) {
            *byte ^= toggled;
        }
    }

    /// Returns the hash of everything as hex.
    pub(crate) fn total(&self, header: Header) -> String {
        let mut hasher = Sha256::new();
        hasher.update(header.round.to_be_bytes());
        hasher.update(header.floor.to_be_bytes());
        self.buckets.iter().for_each(|bucket| hasher.update(bucket));
        hex(&hasher.finalize()[..16])
    }
}

/// Returns the bucket that a key belongs to.
pub(crate) fn bucket_of(key: &ObjectKey) -> usize {
    usize::from(Sha256::digest(key.to_string())[0])
}
