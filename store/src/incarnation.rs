//! Incarnations of a name, and the uids that are derived from them. Pure.
//!
//! A tombstone is the highest removed incarnation of a key; what is at or below it stays removed, whoever brings it. When
//! it may be dropped: `rounds.rs`.
//! A uid holds its incarnation (masked, so that uids do not look alike), so that a uid can be judged without the object.

use std::fmt;
use std::str::FromStr;

use schemas::{ObjectKey, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Tells the objects apart that had one name, in the order of this type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Incarnation {
    /// Raised cluster-wide before old tombstones are dropped.
    pub(crate) round: u16,
    /// 1 + the highest removed one of this round; 0 for objects that are computed alone.
    pub(crate) number: u32,
}

impl Incarnation {
    /// Returns the incarnation that a new object gets; None when a name was used up.
    pub(crate) fn next(round: u16, removed: Option<Incarnation>) -> Option<Incarnation> {
        match removed {
            Some(removed) if removed.round >= round => Some(Incarnation {
                round: removed.round,
                number: removed.number.checked_add(1)?,
            }),
            Some(_) | None => Some(Incarnation { round, number: 1 }),
        }
    }
}

/// What is left of a removed object: all that had its key up to an incarnation is gone. Of two the greater stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(from = "TombstoneAsSaid")]
pub(crate) struct Tombstone {
    pub(crate) incarnation: Incarnation,
    /// The round of who laid it, and not below the incarnation's: it is dropped when that round is closed.
    pub(crate) laid: u16,
    /// A digest of the last edits that the document had where it was removed; zero, if nobody knows.
    pub(crate) seen: Seen,
}

/// A digest of the last edits in a document: `rescue.rs`.
pub(crate) type Seen = [u8; 8];

/// A tombstone as a peer says it.
#[derive(Deserialize)]
struct TombstoneAsSaid {
    incarnation: Incarnation,
    laid: u16,
    seen: Seen,
}

impl From<TombstoneAsSaid> for Tombstone {
    fn from(said: TombstoneAsSaid) -> Self {
        Self::new(said.incarnation, said.laid, said.seen)
    }
}

impl Tombstone {
    pub(crate) fn new(incarnation: Incarnation, round: u16, seen: Seen) -> Self {
        Self {
            incarnation,
            laid: round.max(incarnation.round),
            seen,
        }
    }
}

impl fmt::Display for Tombstone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.incarnation, self.laid, hex(&self.seen))
    }
}

impl FromStr for Tombstone {
    type Err = ();

    /// Reads what [`Display`](fmt::Display) writes, or an incarnation alone, as up to format 4.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(' ');
        let incarnation: Incarnation = parts.next().ok_or(())?.parse()?;
        let (Some(laid), Some(seen), None) = (parts.next(), parts.next(), parts.next()) else {
            let is_alone = !text.contains(' ');
            return is_alone
                .then(|| Self::new(incarnation, 0, Seen::default()))
                .ok_or(());
        };
        let digits = u64::from_str_radix(seen, 16).map_err(|_| ())?;
        let seen = (seen.len() == 2 * size_of::<Seen>()).then(|| digits.to_be_bytes());
        Ok(Self::new(
            incarnation,
            laid.parse().map_err(|_| ())?,
            seen.ok_or(())?,
        ))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.number)
    }
}

impl FromStr for Incarnation {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (round, number) = text.split_once('.').ok_or(())?;
        Ok(Self {
            round: round.parse().map_err(|_| ())?,
            number: number.parse().map_err(|_| ())?,
        })
    }
}

/// Derives the uids of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Uids {
    cluster_id: String,
}

impl Uids {
    pub(crate) fn new(cluster_id: String) -> Self {
        Self { cluster_id }
    }

    /// Returns the uid of an incarnation: a version 8 UUID (RFC 9562) of 48 bits of masked incarnation and 74 of hash.
    pub(crate) fn uid(&self, key: &ObjectKey, incarnation: Incarnation) -> String {
        let key = key.to_string();
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&self.masked(&key, place(incarnation)));
        bytes[6..].copy_from_slice(&self.hash("uid", &key, incarnation)[..10]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = hex(&bytes);
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// Returns the incarnation of `key` that has this uid; None, if none can have it.
    pub(crate) fn incarnation(&self, key: &ObjectKey, uid: &str) -> Option<Incarnation> {
        let hex: Vec<u8> = uid.bytes().filter(|byte| *byte != b'-').collect();
        let mut place = [0; 6];
        for (byte, digits) in place.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let place = self.masked(&key.to_string(), place);
        let incarnation = Incarnation {
            round: u16::from_be_bytes([place[0], place[1]]),
            number: u32::from_be_bytes([place[2], place[3], place[4], place[5]]),
        };
        (self.uid(key, incarnation) == uid).then_some(incarnation)
    }

    /// Masks an incarnation, or undoes it.
    fn masked(&self, key: &str, mut place: [u8; 6]) -> [u8; 6] {
        let mask = self.hash("mask", key, Incarnation::default());
        for (byte, mask) in place.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        place
    }

    fn hash(&self, purpose: &str, key: &str, incarnation: Incarnation) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in [purpose, &self.cluster_id, key] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.update(place(incarnation));
        hasher.finalize().into()
    }
}

fn place(incarnation: Incarnation) -> [u8; 6] {
    let (round, number) = (incarnation.round.to_be_bytes(), incarnation.number.to_be_bytes());
    [round[0], round[1], number[0], number[1], number[2], number[3]]
}

#[cfg(test)]
mod tests {
    use schemas::Kind;

    use super::*;

    #[test]
    fn a_uid_tells_its_incarnation() {
        let uids = Uids::new("cluster".to_owned());
        let key = ObjectKey::new(Kind::Pod, "default", "web");
        let other = ObjectKey::new(Kind::Pod, "default", "db");
        for (round, number) in [(0, 1), (0, 2), (7, 70_000), (u16::MAX, u32::MAX)] {
            let incarnation = Incarnation { round, number };
            let uid = uids.uid(&key, incarnation);
            assert_eq!(uid.len(), 36);
            assert_eq!(uids.incarnation(&key, &uid), Some(incarnation));
            assert_eq!(uids.incarnation(&other, &uid), None);
            assert_eq!(Uids::new("other".to_owned()).incarnation(&key, &uid), None);
            assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
        }
        for bad in ["", "x", "00000000-0000-8000-8000-000000000000", "ключ", "-"] {
            assert_eq!(uids.incarnation(&key, bad), None);
        }
    }

    #[test]
    fn a_tombstone_is_read_as_it_was_written_and_as_before() {
        let incarnation = Incarnation { round: 3, number: 7 };
        let tombstone = Tombstone::new(incarnation, 5, [1; 8]);
        assert_eq!(tombstone.to_string().parse(), Ok(tombstone));
        assert_eq!("3.7".parse(), Ok(Tombstone::new(incarnation, 3, Seen::default())));
        for bad in [
            "",
            "3",
            "3.7 ",
            "3.7 5",
            "3.7 5 12",
            "3.7 5 0123456789abcdef x",
            "3.7 5 012345678abcdefg",
        ] {
            assert_eq!(bad.parse::<Tombstone>(), Err(()), "{bad}");
        }
        let too_early = Tombstone { laid: 2, ..tombstone };
        let said = postcard::to_stdvec(&too_early).unwrap();
        let read: Tombstone = postcard::from_bytes(&said).unwrap();
        assert_eq!(read, Tombstone { laid: 3, ..tombstone }, "as it is kept");
    }

    #[test]
    fn a_new_round_begins_above_the_removed_ones() {
        let at = |round, number| Incarnation { round, number };
        assert_eq!(Incarnation::next(0, None), Some(at(0, 1)));
        assert_eq!(Incarnation::next(0, Some(at(0, 4))), Some(at(0, 5)));
        assert_eq!(Incarnation::next(1, Some(at(0, 4))), Some(at(1, 1)));
        assert_eq!(Incarnation::next(1, Some(at(2, 1))), Some(at(2, 2)));
        assert_eq!(Incarnation::next(0, Some(at(0, u32::MAX))), None);
    }
}
