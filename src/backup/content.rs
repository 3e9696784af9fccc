//! What of the desired state is in a backup: what users wrote, without what ties it to these nodes and this cluster.

use reconcilers::controller::is_of_this_cluster;
use schemas::{KINDS, Kind, Object, meta};
use store::{Snapshot, Store};

/// Tells whether objects of a kind are users' own, so that a backup has them.
pub fn is_backed_up(kind: Kind) -> bool {
    match kind {
        Kind::Namespace
        | Kind::Pod
        | Kind::Service
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::Ingress
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::ServiceAccount
        | Kind::PersistentVolumeClaim
        | Kind::PersistentVolume
        | Kind::StorageClass
        | Kind::IngressClass
        | Kind::NetworkPolicy
        | Kind::PodDisruptionBudget
        | Kind::PriorityClass
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::ReplicationController
        | Kind::PodTemplate
        | Kind::ControllerRevision
        | Kind::Job
        | Kind::CronJob
        | Kind::DnsWhitelist => true,
        // Those that somebody wrote by hand; computed ones are no documents.
        Kind::Endpoints | Kind::EndpointSlice => true,
        // Who the nodes are and who may come in belongs to a cluster and not to its content. An inventory names objects by
        // uids, which a restored object does not have; a lease says who holds something now.
        Kind::Lease
        | Kind::Node
        | Kind::Event
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::GitInventory => false,
    }
}

/// Takes all that a backup may have, at one moment.
pub fn snapshot(store: &Store) -> Snapshot {
    let kinds: Vec<Kind> = KINDS
        .iter()
        .map(|row| row.kind)
        .filter(|kind| is_backed_up(*kind))
        .collect();
    store.snapshot(&kinds)
}

/// Returns what a backup has of a document: without uid, times and versions, status, owners (whose uids will be others) and
/// the node of a pod. None for what is on its way out, and for what a controller owns or every cluster has, which is made again.
pub fn portable(document: &Object) -> Option<Object> {
    let is_made_here = document.key().is_some_and(|key| is_of_this_cluster(&key));
    if is_made_here || document.controller().is_some() || document.is_terminating() {
        return None;
    }
    Some(apart(document))
}

/// Returns a document without what ties it to this cluster, and as if nobody had asked to delete it.
pub fn apart(document: &Object) -> Object {
    let mut object = document.clone();
    for field in meta::SERVER_FIELDS.into_iter().chain(["ownerReferences"]) {
        object.remove(&["metadata", field]);
    }
    object.remove(&["status"]);
    // A file may be somebody's own.
    schemas::tidy_values(&mut object);
    if object.kind() == Some(Kind::Pod) {
        object.remove(&["spec", "nodeName"]);
    }
    object
}
