//! Backups: what is in one, the file that it is kept in, and the files that a node makes by itself.
//!
//! Never here: HTTP, and what a restore does to a cluster (`api::restore`). Read `stream.rs` for the file, `content.rs` for
//! what is in it, `age.rs` for how it is sealed, `periodic.rs` for the hourly ones.

mod age;
mod content;
mod periodic;
mod report;
mod stream;

pub use age::{AgeError, BadIdentity, Identity, is_sealed};
pub use content::{apart, is_backed_up, portable, snapshot};
pub use periodic::{PeriodicError, PeriodicFiles, is_backup_name};
pub use report::{Action, Entry, Line};
pub use stream::{
    About, Backup, FORMAT, MAX_BACKUP_BYTES, ReadError, Sealing, WriteError, open, read, write,
};
