//! Podman Swarm: the agent and the command line.
//!
//! Adapters (`podman`, `network`, `dns`, `ingress`, `gossip`) implement ports and do not know each other; `api` and
//! `gitops` know schemas and store; only `agent` sees all.

mod addresses;
pub mod agent;
pub mod api;
pub mod backup;
pub mod caller;
pub mod cli;
pub mod config;
pub mod dns;
pub mod gitops;
pub mod gossip;
pub mod ingress;
pub mod network;
pub mod podman;
pub mod relay;
#[cfg(test)]
mod sandbox;
