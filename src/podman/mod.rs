//! Podman, as the container engine of this node: REST over its unix socket.
//!
//! Never here: the decision what runs where (reconcilers), addresses and namespaces of pods (`network`), starting an
//! engine (the machine's own is used). Nothing without our cluster's label is ever changed.
//!
//! Calls go through the crate `podman-api` where it does what we need; `socket` is a small client for the rest, and each
//! use of it says why. Next: `runtime` for the calls, `image` for names and pulls, `process` for stopping, `usage` for
//! what containers and the machine use.

mod create;
mod engine;
mod image;
mod memory_deaths;
mod process;
mod runtime;
mod session;
#[cfg(test)]
mod session_tests;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod usage;

pub use engine::{Engine, EngineError};
pub use runtime::Podman;
