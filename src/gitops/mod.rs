//! Follows a branch of a Git repository: what is in it is applied, what disappears from it is removed.
//!
//! Never stores an object itself: it goes through [`Applier`], the same path as `POST /api/v1/manifests`. Start with
//! `run` (the loop and one round of it), then `source` (Git), `sync` (what to apply and to prune).

mod run;
mod source;
mod sync;
#[cfg(test)]
mod tests;

pub use run::{Applier, ApplierError, Gitops, GitopsConfig, MANAGER};
pub use source::{ConfigError, Snapshot, Source, SourceError};
pub use sync::{DEFAULT_NAMESPACE, Inventory, Plan, PlanError, parse, plan};
