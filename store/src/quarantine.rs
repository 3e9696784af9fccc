//! Records that cannot be read: their bytes are set aside, and their names are kept from being given to other objects.
//!
//! | disk key | value |
//! |---|---|
//! | `q/` + hash of the bytes + `/` + disk key | the bytes of a record that could not be read; never overwritten, for people |
//! | `u/` + object key | that such a record is missing still; goes with the first change of the key that is stored |
//!
//! The object is then not there, and so not in the digest: the next exchange brings it from a peer that has it. Until then
//! nobody knows which incarnation was lost, so none is issued: two objects of one incarnation would become one. A deletion
//! decides: it removes all that the record can have held.

use std::collections::BTreeSet;

use schemas::{ObjectKey, hex};
use sha2::{Digest, Sha256};

use crate::disk::Write;
use crate::incarnation::{Incarnation, Seen, Tombstone};

pub(crate) const UNREADABLE: &str = "u/";
const SET_ASIDE: &str = "q/";
/// How far a deletion reaches beyond what is known to be removed: no name is used so often that an unreadable record or
/// tombstone held a higher number, and there is room for thousands of such deletions.
const REACH: u32 = 1 << 20;

/// The keys whose records could not be read, and that nothing has replaced yet.
#[derive(Default, Clone, Debug)]
pub(crate) struct Quarantine(BTreeSet<ObjectKey>);

impl Quarantine {
    pub(crate) fn add(&mut self, key: ObjectKey) {
        self.0.insert(key);
    }

    pub(crate) fn holds(&self, key: &ObjectKey) -> bool {
        self.0.contains(key)
    }

    /// Takes a key out of which something is known again.
    pub(crate) fn release(&mut self, key: &ObjectKey) {
        if self.0.remove(key) {
            tracing::warn!(%key, "an unreadable record was replaced; changes that this node alone had are in its bytes, which are kept");
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.iter()
    }
}

pub(crate) fn unreadable_key(key: &ObjectKey) -> Vec<u8> {
    format!("{UNREADABLE}{key}").into_bytes()
}

/// Sets a record aside that is of `key` and cannot be read.
pub(crate) fn set_aside(key: &ObjectKey, disk_key: &[u8], value: &[u8]) -> Vec<Write> {
    let hash = hex(&Sha256::digest(value)[..8]);
    let place = [format!("{SET_ASIDE}{hash}/").as_bytes(), disk_key].concat();
    vec![
        Write::put(place, value),
        Write::put(unreadable_key(key), ""),
        Write::remove(disk_key),
    ]
}

/// Returns what a deletion of a key removes of which nobody knows what it held.
pub(crate) fn beyond(round: u16, removed: Option<Incarnation>) -> Option<Tombstone> {
    let next = Incarnation::next(round, removed)?;
    let number = next.number.checked_add(REACH)?;
    Some(Tombstone::new(
        Incarnation { number, ..next },
        round,
        Seen::default(),
    ))
}
