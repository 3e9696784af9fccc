//! What this node tells about itself, and the watch over its Podman.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reconcilers::ports::{Announcer, NodeFacts};
use schemas::hex;
use sha2::{Digest, Sha256};
use store::Store;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::{ARCHITECTURE_LABEL, Config, Flags, HOSTNAME_LABEL, OS_LABEL};
use crate::podman::{Engine, Podman};

/// Pods a node takes; Kubernetes' default.
const MAX_PODS: u32 = 110;
/// How often Podman is asked whether it answers. Its death also ends the events stream; this is for the node's status.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Describes this node.
pub(super) fn node_facts(config: &Config, engine: &Engine, store: &Store) -> NodeFacts {
    let mut labels = BTreeMap::from([
        (HOSTNAME_LABEL.to_owned(), config.node_name.clone()),
        (OS_LABEL.to_owned(), "linux".to_owned()),
        (ARCHITECTURE_LABEL.to_owned(), engine.architecture.clone()),
    ]);
    labels.extend(
        config
            .flags
            .node_labels
            .iter()
            .map(|label| (label.0.clone(), label.1.clone())),
    );
    NodeFacts {
        name: config.node_name.clone(),
        address: Some(config.advertise),
        labels,
        cpu_millis: u64::from(engine.cpus) * 1000,
        memory_bytes: engine.memory_bytes,
        max_pods: MAX_PODS,
        agent_version: format!("v{}", env!("CARGO_PKG_VERSION")),
        podman_version: engine.podman_version.clone(),
        kernel_version: engine.kernel_version.clone(),
        os_image: engine.os_image.clone(),
        architecture: engine.architecture.clone(),
        podman_error: String::new(),
        ingress: config.flags.enable_ingress,
        gitops: followed(&config.flags),
        revision_tag: Some(store.revision().tag()),
    }
}

/// Names what `--gitops-*` says by a hash: nodes that follow the same share the work, and a password in the URL is not
/// told to anybody. Empty: nothing is followed.
pub(super) fn followed(flags: &Flags) -> String {
    let Some(repository) = &flags.gitops_repo else {
        return String::new();
    };
    let text = [repository.as_str(), &flags.gitops_branch, &flags.gitops_path].join("\0");
    hex(&Sha256::digest(text.as_bytes())[..16])
}

/// Tells the cluster when Podman stops answering, and when it answers again.
pub(super) async fn watch_podman(
    podman: Arc<Podman>,
    announcer: Arc<dyn Announcer>,
    mut facts: NodeFacts,
    shutdown: CancellationToken,
) {
    let mut interval = tokio::time::interval(PING_INTERVAL);
    while shutdown.run_until_cancelled(interval.tick()).await.is_some() {
        let problem = podman
            .ping()
            .await
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        if problem == facts.podman_error {
            continue;
        }
        if problem.is_empty() {
            info!("Podman answers again");
        } else {
            error!(error = problem, "Podman does not answer");
        }
        facts.podman_error = problem;
        announcer.announce_node(facts.clone());
    }
}
