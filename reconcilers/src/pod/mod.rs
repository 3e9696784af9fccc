//! Pods of this node: from documents to containers, and from containers to status.
//!
//! [`PodReconciler`] knows the store, [`PodRunner`] the ports; [`plan()`], [`status()`] and [`build`] are pure.

mod containers;
mod env;
mod memory;
mod plan;
mod probe;
mod probing;
mod reconciler;
mod runner;
mod spec;
mod status;
mod stop;
mod view;
mod volumes;

pub use memory::{Backoff, ContainerMemory, Failure, PodMemory};
pub use plan::{Action, Phase, Plan, StopReason, Wanted, plan};
pub use probe::{NetworkProber, ProbeKind, ProbeResults, ProbeTarget, Prober};
pub use reconciler::{PodAdapters, PodReconciler, WORKERS};
pub use runner::{Job, PodDocuments, PodPorts, PodRunner, Step};
pub use spec::{Built, ConfigError, DesiredPod, NodeSettings, Surroundings, build};
pub use status::{STATUS_BYTES_MAX, StatusInput, status};
