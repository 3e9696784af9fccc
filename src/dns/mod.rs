//! The DNS server of this node: answers for the cluster's own names, forwards the rest behind a whitelist.
//!
//! Knows nothing of services or pods: the zone arrives whole through [`reconcilers::ports::ZoneSink`]. Start with
//! `server` (listeners and the entry point), then `handler` (who answers), `zone` (our names), `forward` (the rest).

mod forward;
mod handler;
mod server;
mod tcp;
#[cfg(test)]
mod tests;
mod whitelist;
mod zone;

pub use server::{BindError, Dns, DnsConfig, ListenError, StartError};
