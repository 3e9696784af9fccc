//! Why this node cannot take part in a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::token::ParseTokenError;

/// What stops [`super::bootstrap()`] and [`super::prepare`]. The text is for the person who started the agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {protocol} {address}")]
    Bind {
        address: SocketAddr,
        protocol: &'static str,
        source: std::io::Error,
    },
    #[error("cannot {operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// A flag whose value cannot be used.
    #[error("{flag}: {reason}")]
    Flag { flag: &'static str, reason: String },
    #[error("--join-token does not parse")]
    Token(#[from] ParseTokenError),
    /// A member of the cluster (or of another one) answered, and said no.
    #[error("{address} refused this node: {reason}")]
    Refused { address: String, reason: String },
    /// By the other nodes, while this one was away.
    #[error("this node was removed from its cluster")]
    Removed,
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use the certificate or key for TLS")]
    Tls(#[from] rustls::Error),
    #[error("cannot write this node's membership")]
    Store(#[from] store::WriteError),
    #[error("gossip does not start: {0}")]
    Gossip(String),
}
