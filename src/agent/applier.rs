//! GitOps on the apply path of the API, and who of the nodes does the work.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use reconcilers::controller::Context;
use reconcilers::nodes::Nodes;
use reconcilers::ownership::{Holding, holding};
use reconcilers::ports::{EventKind, EventRecord, EventSink};
use schemas::{Kind, Object, ObjectKey};
use store::{Applied, Author, Outcome, Via, View};
use tokio_util::sync::CancellationToken;

use super::facts;
use crate::api::{self, ApiState, AppliedObject, ApplyOptions, ManifestError};
use crate::config::Config;
use crate::gitops::{Applier, ApplierError, DEFAULT_NAMESPACE, Gitops, GitopsConfig, MANAGER};

struct ApiApplier(ApiState);

impl ApiApplier {
    fn author(&self, manager: &str) -> Author {
        Author {
            manager: manager.to_owned(),
            user: String::new(),
            via: Via::GitOps,
            unix_seconds: self.0.clock.unix_seconds(),
        }
    }
}

impl ApiApplier {
    /// Nobody waits for the answer of an apply from Git: its warnings are told where users look.
    fn report(&self, view: &View, warnings: &[String]) {
        self.0.events.event(EventRecord {
            key: view.key.clone(),
            uid: view.object.uid().to_owned(),
            kind: EventKind::Warning,
            reason: "AppliedWithWarnings",
            message: warnings.join("; "),
            component: MANAGER,
        });
    }
}

#[async_trait]
impl Applier for ApiApplier {
    async fn apply(&self, objects: Vec<Object>, manager: &str) -> Result<Vec<Applied>, ApplierError> {
        let options = ApplyOptions {
            author: self.author(manager),
            default_namespace: DEFAULT_NAMESPACE.to_owned(),
            dry_run: false,
        };
        let (done, stopped) = match api::apply_all(&self.0.store, objects, &options).await {
            Ok(done) => (done, None),
            Err(ManifestError::Refused(refusals)) => {
                return Err(ApplierError::Refused(
                    refusals
                        .iter()
                        .map(|refusal| format!("{}: {}", refusal.object, refusal.error.message))
                        .collect(),
                ));
            }
            Err(ManifestError::Stopped { key, applied, error }) => {
                let reason = format!("stopped at {key} after {} objects: {error}", applied.len());
                (applied, Some(reason))
            }
        };
        let (mut applied, mut deleted) = (Vec::with_capacity(done.len()), None);
        for AppliedObject {
            key,
            outcome,
            warnings,
        } in done
        {
            match self.0.store.get(&key) {
                Some(view) => {
                    if outcome != Outcome::Unchanged && !warnings.is_empty() {
                        self.report(&view, &warnings);
                    }
                    applied.push(Applied { outcome, view });
                }
                None => deleted = Some(format!("{key} was deleted while it was applied")),
            }
        }
        match stopped.or(deleted) {
            None => Ok(applied),
            Some(reason) => Err(ApplierError::Stopped { applied, reason }),
        }
    }

    async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), ApplierError> {
        api::delete_if(&self.0, key, uid, self.author(MANAGER))
            .await
            .map_err(|error| ApplierError::Unavailable(error.message))
    }
}

/// Returns the task that follows the repository, while this node is the one of those with the same flag that does.
///
/// # Errors
/// A flag cannot be used.
pub(super) fn gitops(
    repository: &str,
    config: &Config,
    state: ApiState,
    context: &Context,
    shutdown: &CancellationToken,
) -> Result<impl Future<Output = ()> + use<>> {
    let flags = &config.flags;
    let gitops = Gitops::new(
        &GitopsConfig {
            repository: repository.to_owned(),
            branch: flags.gitops_branch.clone(),
            path: flags.gitops_path.clone(),
            interval: flags.gitops_interval,
            data_dir: config.data_dir.clone(),
        },
        Arc::new(ApiApplier(state)),
    )?;
    let (key, followed, context) = (gitops.key(), facts::followed(flags), context.clone());
    let (store, events, clock) = (
        context.store.clone(),
        context.events.clone(),
        context.clock.clone(),
    );
    let is_owner = move || {
        let members: Vec<_> = context
            .store
            .list(Kind::Member, None)
            .items
            .into_iter()
            .map(|view| view.object)
            .collect();
        let all = Nodes::read(&members, &[], &context.cluster.borrow());
        let followers = all
            .iter()
            .filter(|node| node.facts.gitops == followed)
            .cloned()
            .collect();
        holding(&key, &context.node, &followers, context.clock.now()) == Holding::Mine
    };
    Ok(gitops.run(store, events, clock, is_owner, shutdown.clone()))
}
