//! Tests of the whole program on real hosts: network namespaces with a Podman engine and an agent each.
//!
//! They need root and Debian's packages (`make install-packages`); without, each says why it is skipped, except in
//! CI, where that is a failure. One binary with modules, because every test binary links all of the program.

mod agent;
mod backup;
mod clients;
mod cluster;
mod dns;
mod gitops;
mod kubectl;
mod metrics;
mod nodes;
mod pods;
mod psctl;
mod repository;
mod sessions;
mod stories;
mod torture;
