//! What Podman Swarm knows about Kubernetes objects: kinds, fields, defaults, validation, patches.
//!
//! Pure: no IO, no clock, no async runtime. Everything that lists kinds reads [`KINDS`].
//!
//! From bytes to a stored object: [`manifest::parse`], [`validate::unknown_fields`], [`validate::validate`] and [`validate::warnings`]
//! on what was written, [`validate::validate_update`] beside what is stored, [`patch`] for changes; [`validate::defaulted`] on
//! reading. [`fields`] has the facts by which objects merge.

mod acted_on;
mod apps;
mod batch;
mod causes;
mod choices;
pub mod compatibility;
mod config;
mod core;
mod cron;
mod defaults;
pub mod deletion;
pub mod event;
mod field_error;
pub mod fields;
mod hex;
pub mod int_or_string;
mod json;
mod kind;
pub mod manifest;
pub mod meta;
pub mod names;
mod networking;
mod node;
mod object;
pub mod openapi;
pub mod patch;
mod pod;
mod policy;
pub mod protobuf;
pub mod quantity;
mod schema;
pub mod selector;
mod storage;
pub mod time;
mod typecheck;
pub mod validate;
mod yaml;
mod yaml_write;

pub use causes::with_causes;
pub use config::{illegal_base64, tidy_values};
pub use field_error::{FieldError, Reason};
pub use hex::hex;
pub use kind::{Ending, FACES, KINDS, Kind, KindRow, Scope, Subresource};
pub use object::{Object, ObjectKey, OwnerReference, ParseKeyError};
pub use pod::default_pull_policy;
