//! The ingress of this node: an HTTP proxy (pingora) over an atomically swapped route table.
//!
//! Knows nothing of Ingress or Service objects: the table arrives whole through [`reconcilers::ports::RouteSink`].
//! Start with `server` (listener, limits, stop), then `routes` (which backend), `proxy` (what happens to a request).

mod proxy;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod upgrade;

pub use server::{Ingress, IngressConfig, StartError};
