//! The HTTP API: Kubernetes' paths and the native ones, on one port.
//!
//! [`router`] is the whole service, [`serve()`] the listener. Knows schemas and store; reaches other nodes through
//! [`crate::relay::Relay`] and containers through `ContainerRuntime`. Read `state.rs` next, then `resources/`.

mod auth;
mod backups;
mod content;
mod discovery;
mod events;
mod gzip;
mod health;
mod manifests;
mod metrics;
mod namespaces;
mod native;
mod openapi;
mod resources;
mod restore;
mod reviews;
mod selection;
mod serve;
mod state;
mod status;
mod streams;
pub mod tables;
mod target;
#[cfg(test)]
mod tests;
mod tokens;
mod unread;

pub use auth::{RELAYED_USER, admin_kubeconfig, create_token, knows_token};
pub use backups::BackupSource;
pub use events::Events;
pub use manifests::{AppliedObject, ApplyOptions, ManifestError, Refusal, apply_all};
pub use metrics::Metrics;
pub use namespaces::ensure_namespaces;
pub use resources::{delete_if, forget_node};
pub use serve::{PlainHttp, Stopping, serve};
pub use state::{ApiState, Build, router};
pub use status::{ApiError, ApiResult, Cause, Details};
pub use streams::Sessions;
pub use tokens::{node_token_name, revoke_tokens};
