//! The namespaces that every cluster has.

use schemas::{Kind, Object, ObjectKey};
use store::{Author, Store, Via, WriteError};

/// As Kubernetes makes them.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates the namespaces that are not there. Call it on the first node of a new cluster, or when in sync: two nodes
/// that do it at once make the same objects.
///
/// # Errors
/// The store takes no writes.
pub async fn ensure_namespaces(store: &Store, unix_seconds: i64) -> Result<(), WriteError> {
    for name in NAMESPACES {
        let key = ObjectKey::cluster(Kind::Namespace, name);
        if store.get(&key).is_some() {
            continue;
        }
        let author = Author {
            manager: "podman-swarm".to_owned(),
            user: String::new(),
            via: Via::Controller,
            unix_seconds,
        };
        match store.create(Object::new(&key), author).await {
            // One that cannot be read is brought by a peer, or was given up by nobody yet.
            // Who catches up gets them from those who have them.
            Ok(_) | Err(WriteError::Exists(_) | WriteError::Unreadable(_) | WriteError::CatchingUp(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
