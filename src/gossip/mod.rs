//! How nodes find, trust and hear one another: credentials and join, gossip over sealed datagrams, peer streams over
//! TLS, and the driver of the store's sync.
//!
//! Never here: what objects mean, what runs where. Start at [`bootstrap()`], then [`prepare`].

mod admission;
mod bootstrap;
mod certificates;
mod compaction;
mod conduct;
mod connections;
mod credentials;
mod datagram;
mod error;
mod files;
mod join;
mod members;
mod membership;
mod observation;
mod offline;
mod peer_server;
mod published;
mod rounds;
mod service;
mod sync;
mod tls;
mod token;
mod transport;

pub use bootstrap::{Config, IDENTITY, Sockets, UserTls, bootstrap, has_identity};
pub use credentials::Credentials;
pub use error::Error;
pub use files::write as write_private_file;
pub use members::Member;
pub use offline::{Inspection, backup_identity, inspect};
pub use service::{Gossip, Prepared, prepare};
pub use token::{JoinToken, ParseTokenError, join_token_object};

#[cfg(test)]
mod fuzzing;
#[cfg(test)]
mod tests;
