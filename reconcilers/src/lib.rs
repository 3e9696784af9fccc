//! What brings the world in line with the desired state: pure plans, one control loop, and the ports they act through.
//!
//! Never here: sockets, Podman's REST, DNS packets. Only `controller` knows the store.

pub mod action;
pub mod budget;
pub mod controller;
pub mod deployment;
pub mod derived;
mod endpoints;
pub mod fakes;
pub mod garbage;
pub mod node_object;
pub mod nodes;
pub mod ownership;
pub mod placement;
pub mod pod;
pub mod pod_range;
pub mod pod_state;
pub mod ports;
pub mod redirects;
pub mod replica_set;
pub mod rollout;
pub mod routes;
pub mod service;
pub mod status;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
pub mod validity;
pub mod workload;
pub mod zone;
