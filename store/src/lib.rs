//! The desired state of the cluster: one automerge document per object, kept on disk, watched, and synced.
//!
//! Never here: sockets, Podman, what a kind means. Read [`Store`] first; then `leaves.rs` for how an object is laid out,
//! `prepare.rs` for how it is changed, `commit.rs` for how that becomes durable, and `sync.rs` for how replicas meet.

mod apply;
mod changed;
mod check;
mod commit;
mod compaction;
mod database;
mod digest;
mod disk;
mod document;
mod epoch;
mod field_set;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod incarnation;
mod incoming;
mod index;
mod journal;
mod json;
mod leaves;
mod managed;
mod memory_disk;
mod open;
mod order;
mod owners;
mod packed;
mod path;
mod prepare;
mod promises;
mod quarantine;
mod random;
mod record;
mod rescue;
mod rounds;
mod run_lengths;
mod seal;
mod settle;
mod shared;
mod sled_disk;
mod snapshot;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod types;
mod watch;

pub use check::{CheckReport, Problem, check};
pub use compaction::Proposal;
pub use frame::VERSION as PROTOCOL;
pub use history::compare;
pub use memory_disk::MemoryDisk;
pub use rescue::{Lost, RescueId, Rescued};
pub use rounds::Closing;
pub use snapshot::Snapshot;
pub use store::Store;
pub use types::{
    Applied, Author, ChangedFields, CommitError, Conflict, ConflictSide, Difference, DiskState, Exchange,
    FieldChange, Gone, History, HistoryChange, HistoryError, Listing, NodeId, OpenError, OpenOptions,
    Outcome, OwnedField, Precondition, Push, Received, Revision, Shortage, Standing, SyncError, Via, View,
    Views, WatchEvent, WatchScope, WriteError,
};
