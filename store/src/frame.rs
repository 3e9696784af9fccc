//! The frames that stores exchange: a version, the registers of the sender ([`Header`]), then postcard. Pure.

use bytes::Bytes;
use schemas::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::digest::BucketDigest;
use crate::epoch::Epoch;
use crate::incarnation::{Incarnation, Tombstone};
use crate::record::Record;
use crate::types::SyncError;

/// Version of the protocol, first in each frame (big endian). Stores of two versions do not talk.
pub const VERSION: u32 = 4;
/// The largest frame. The largest change of 3.5 MB fits; what does not fit travels in a further step.
pub(crate) const MAX_FRAME_BYTES: usize = 4 << 20;
/// How many bytes of wants are collected.
pub(crate) const WANTS_BYTES: usize = 256 << 10;

/// Where the sender stood before it collected what the frame says (`rounds.rs`): a frame that says less than that is refused
/// more, and never too little.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Header {
    /// Of new incarnations and tombstones.
    pub(crate) round: u16,
    /// Tombstones of rounds below this are dropped. Not above `round`.
    pub(crate) floor: u16,
    /// What was agreed on when `floor` was closed; zero, if nothing was yet.
    pub(crate) closed: Closed,
}

/// Tells apart what a store had to catch up with, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Going(pub(crate) u64);

/// A digest of what all held when a round was closed.
pub(crate) type Closed = [u8; 16];

/// Version, round, floor, digest.
pub(crate) const HEADER_BYTES: usize = 4 + 2 + 2 + size_of::<Closed>();

/// What a frame says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    /// First step: digests of all buckets, and what the sender has to catch up with.
    Digests {
        buckets: Vec<BucketDigest>,
        going: Going,
    },
    /// Second: what the other side holds in buckets that differ.
    Summary(Summary),
    /// Third: what the other side lacks, and what it is asked for.
    Changes {
        items: Vec<Delta>,
        wants: Vec<Want>,
        more: bool,
    },
    /// Fourth: what was asked for.
    Answer {
        items: Vec<Delta>,
        /// Something was left out in this exchange for want of room.
        more: bool,
        /// The changes of the third step brought something new.
        progress: bool,
    },
    /// Fresh changes, unasked.
    Push { items: Vec<Delta> },
    /// Asks whether the histories of these documents may be squashed up to these heads.
    Propose { items: Vec<Item> },
    /// To which of those, in their order.
    Agree { answers: Vec<Agreement> },
    /// Asks to close a round in which all hold this (`rounds.rs`).
    Close { round: u16, closed: Closed },
    /// The sender holds the same, and agrees to nobody else's.
    Agreed { round: u16, closed: Closed },
}

/// What is held in buckets that differ.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Of the digests that this answers.
    pub(crate) going: Going,
    pub(crate) buckets: Vec<u8>,
    pub(crate) items: Vec<Item>,
    /// More buckets differ than fit.
    pub(crate) more: bool,
}

/// What a replica says to a squash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Agreement {
    No,
    /// It holds all that the base would stand for, and will agree to no base that holds less.
    Yes,
    /// And all that it holds or will write builds on that.
    YesCleanly,
}

/// What is held of a key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) removed: Option<Tombstone>,
    pub(crate) live: Option<Heads>,
}

/// A state of a document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Heads {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) heads: Vec<[u8; 32]>,
}

/// What a replica lacks of a key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Delta {
    pub(crate) key: String,
    pub(crate) removed: Option<Tombstone>,
    pub(crate) live: Option<Changes>,
}

/// Changes of a document, causes before effects.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Changes {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) changes: Vec<Blob>,
}

/// Asks for what a document has beyond `heads`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Want {
    pub(crate) key: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) heads: Vec<[u8; 32]>,
}

/// Bytes that are encoded as one piece.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Blob(bytes.to_vec()))
    }
}

impl Delta {
    pub(crate) fn new(
        key: &ObjectKey,
        removed: Option<Tombstone>,
        record: Option<&Record>,
        changes: Vec<Vec<u8>>,
    ) -> Self {
        let live = record.filter(|_| !changes.is_empty()).map(|record| Changes {
            incarnation: record.incarnation,
            epoch: record.epoch,
            changes: changes.into_iter().map(Blob).collect(),
        });
        Self {
            key: key.to_string(),
            removed,
            live,
        }
    }

    /// Tells whether the other is of the same history, so that both can be stored at once.
    pub(crate) fn goes_on_with(&self, other: &Delta) -> bool {
        let history = |delta: &Delta| delta.live.as_ref().map(|live| (live.incarnation, live.epoch));
        self.key == other.key && history(self).is_some() && history(self) == history(other)
    }

    /// Takes in what [goes on](Delta::goes_on_with) with this.
    pub(crate) fn append(&mut self, other: &Delta) {
        self.removed = self.removed.max(other.removed);
        if let (Some(live), Some(other)) = (&mut self.live, &other.live) {
            live.changes.extend_from_slice(&other.changes);
        }
    }

    /// Returns about what this takes in a frame.
    pub(crate) fn bytes(&self) -> usize {
        let changes = self.live.iter().flat_map(|live| &live.changes);
        64 + self.key.len() + changes.map(|change| change.0.len() + 8).sum::<usize>()
    }
}

/// Keeps what fits a frame: of a document with a long history at least the first change, since the rest builds on it.
pub(crate) fn fit(deltas: Vec<Delta>) -> (Vec<Delta>, bool) {
    const ROOM: usize = MAX_FRAME_BYTES - (64 << 10) - WANTS_BYTES;
    let (mut kept, mut bytes) = (Vec::new(), 0);
    for mut delta in deltas {
        let size = delta.bytes();
        if bytes + size <= ROOM {
            bytes += size;
            kept.push(delta);
            continue;
        }
        if let Some(live) = &mut delta.live {
            let mut room = ROOM.saturating_sub(bytes + 128 + delta.key.len());
            let fitting = live.changes.iter().take_while(|change| {
                let fits = change.0.len() + 8 <= room;
                room = room.saturating_sub(change.0.len() + 8);
                fits
            });
            let count = fitting.count();
            live.changes.truncate(count);
            if count > 0 {
                kept.push(delta);
            }
        }
        return (kept, true);
    }
    (kept, false)
}

/// Writes a frame.
pub(crate) fn encode(header: Header, body: &Body) -> Result<Bytes, SyncError> {
    let mut frame = Vec::with_capacity(HEADER_BYTES);
    frame.extend(VERSION.to_be_bytes());
    frame.extend(header.round.to_be_bytes());
    frame.extend(header.floor.to_be_bytes());
    frame.extend(header.closed);
    let frame = postcard::to_extend(body, frame).map_err(|error| SyncError::Malformed(error.to_string()))?;
    Ok(frame.into())
}

/// Reads a frame, and nothing of one of another version.
pub(crate) fn decode(frame: &[u8]) -> Result<(Header, Body), SyncError> {
    if frame.len() > MAX_FRAME_BYTES {
        return Err(SyncError::Malformed(format!(
            "{} bytes, at most {MAX_FRAME_BYTES}",
            frame.len()
        )));
    }
    let malformed = |reason: &str| SyncError::Malformed(reason.to_owned());
    let (version, rest) = frame.split_first_chunk().ok_or_else(|| malformed("no version"))?;
    let theirs = u32::from_be_bytes(*version);
    if theirs != VERSION {
        return Err(SyncError::Version {
            ours: VERSION,
            theirs,
        });
    }
    let header = rest.split_first_chunk().and_then(|(round, rest)| {
        let (floor, rest) = rest.split_first_chunk()?;
        let (closed, body) = rest.split_first_chunk()?;
        let header = Header {
            round: u16::from_be_bytes(*round),
            floor: u16::from_be_bytes(*floor),
            closed: *closed,
        };
        (header.floor <= header.round).then_some((header, body))
    });
    let (header, body) = header.ok_or_else(|| malformed("no header"))?;
    let body = postcard::from_bytes(body).map_err(|error| SyncError::Malformed(error.to_string()))?;
    Ok((header, body))
}
