//! The API over a real store: requests through the router, and a real kubectl and kube-rs through the listener.

mod backups;
mod decoding;
mod documentation;
mod events;
mod eviction;
mod explain;
mod fixture;
mod foreign;
mod gzip;
mod history;
mod kept;
mod kube_rs;
mod kubectl;
mod kubectl_manifests;
mod kubectl_programs;
mod kubectl_refused;
mod kubectl_words;
mod listener;
mod metrics;
mod native;
mod nodes;
mod resources;
mod reviews;
mod sessions;
mod streams;
mod versions;
