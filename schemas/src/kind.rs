//! The one kind table. Routes, discovery, tables, storage keys and `psctl` names are read from it.

use std::fmt;

/// A kind of object that the store can hold or the API can show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    Endpoints,
    Event,
    Deployment,
    ReplicaSet,
    Ingress,
    EndpointSlice,
    ConfigMap,
    Secret,
    ServiceAccount,
    PersistentVolumeClaim,
    PersistentVolume,
    StorageClass,
    IngressClass,
    NetworkPolicy,
    PodDisruptionBudget,
    PriorityClass,
    Lease,
    StatefulSet,
    DaemonSet,
    ReplicationController,
    PodTemplate,
    ControllerRevision,
    Job,
    CronJob,
    /// A machine that was admitted to the cluster: name, address, pod range, voter. Internal.
    Member,
    /// A bearer token of the API, hashed. Internal.
    ApiToken,
    /// A join token, hashed. Internal.
    JoinToken,
    /// The names that containers may resolve outside the cluster. Internal.
    DnsWhitelist,
    /// What a Git repository applied. Internal.
    GitInventory,
}

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// A part of an object that a path of the API can name behind the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subresource {
    /// Written apart from the rest.
    Status,
    Scale,
    Log,
    /// A deletion that whoever empties a node asks for.
    Eviction,
    /// A placement that somebody else than the scheduler decided on.
    Binding,
    /// A command in a container.
    Exec,
    /// The streams of a container's own process.
    Attach,
    /// Connections to ports.
    PortForward,
}

/// Who takes an object away that a user deletes, once no finalizer holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It goes at once.
    AtOnce,
    /// The node that it is placed on stops it first.
    ByNode,
    /// A controller empties it first.
    ByController,
}

/// One row of the kind table.
#[derive(Debug)]
pub struct KindRow {
    pub kind: Kind,
    /// The name in manifests, for instance `Deployment`.
    pub name: &'static str,
    /// The API group, empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub scope: Scope,
    /// Shown in the Kubernetes API. Internal kinds are not.
    pub served: bool,
    /// Member of the category `all` (`kubectl get all`).
    pub in_all: bool,
    /// Computed from other objects and from what nodes observe; a user's write is stored beside it.
    pub derived: bool,
    /// Sealed at rest; values are kept out of events.
    pub confidential: bool,
    /// Controllers make other objects for objects of this kind, which go with them.
    pub owner: bool,
    pub subresources: &'static [Subresource],
    pub ending: Ending,
    /// What is shown as `status.phase` before anyone observed one; empty: the kind has none.
    pub first_phase: &'static str,
}

const INTERNAL_GROUP: &str = "podman-swarm.io";

macro_rules! row {
    ($kind:ident, $group:expr, $plural:literal, $singular:literal, [$($short:literal),*], $scope:ident,
     served: $served:literal, in_all: $in_all:literal, derived: $derived:literal,
     confidential: $confidential:literal, owner: $owner:literal,
     [$($subresource:ident),*], $ending:ident, $first_phase:literal) => {
        KindRow {
            kind: Kind::$kind,
            name: stringify!($kind),
            group: $group,
            version: "v1",
            plural: $plural,
            singular: $singular,
            short_names: &[$($short),*],
            scope: Scope::$scope,
            served: $served,
            in_all: $in_all,
            derived: $derived,
            confidential: $confidential,
            owner: $owner,
            subresources: &[$(Subresource::$subresource),*],
            ending: Ending::$ending,
            first_phase: $first_phase,
        }
    };
}

/// Every kind, in the order of [`Kind`].
#[rustfmt::skip]
pub const KINDS: &[KindRow] = &[
    row!(Namespace, "", "namespaces", "namespace", ["ns"], Cluster, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [Status], ByController, "Active"),
    row!(Node, "", "nodes", "node", ["no"], Cluster, served: true, in_all: false, derived: true,
        confidential: false, owner: false, [Status], AtOnce, ""),
    row!(Pod, "", "pods", "pod", ["po"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: false, [Status, Log, Eviction, Binding, Exec, Attach, PortForward], ByNode, "Pending"),
    row!(Service, "", "services", "service", ["svc"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: false, [Status], AtOnce, ""),
    row!(Endpoints, "", "endpoints", "endpoints", ["ep"], Namespaced, served: true, in_all: false, derived: true,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(Event, "", "events", "event", ["ev"], Namespaced, served: true, in_all: false, derived: true,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(Deployment, "apps", "deployments", "deployment", ["deploy"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status, Scale], AtOnce, ""),
    row!(ReplicaSet, "apps", "replicasets", "replicaset", ["rs"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status, Scale], AtOnce, ""),
    row!(Ingress, "networking.k8s.io", "ingresses", "ingress", ["ing"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [Status], AtOnce, ""),
    row!(EndpointSlice, "discovery.k8s.io", "endpointslices", "endpointslice", [], Namespaced, served: true, in_all: false, derived: true,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(ConfigMap, "", "configmaps", "configmap", ["cm"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(Secret, "", "secrets", "secret", [], Namespaced, served: true, in_all: false, derived: false,
        confidential: true, owner: false, [], AtOnce, ""),
    row!(ServiceAccount, "", "serviceaccounts", "serviceaccount", ["sa"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(PersistentVolumeClaim, "", "persistentvolumeclaims", "persistentvolumeclaim", ["pvc"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [Status], AtOnce, "Pending"),
    row!(PersistentVolume, "", "persistentvolumes", "persistentvolume", ["pv"], Cluster, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [Status], AtOnce, "Pending"),
    row!(StorageClass, "storage.k8s.io", "storageclasses", "storageclass", ["sc"], Cluster, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(IngressClass, "networking.k8s.io", "ingressclasses", "ingressclass", [], Cluster, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(NetworkPolicy, "networking.k8s.io", "networkpolicies", "networkpolicy", ["netpol"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(PodDisruptionBudget, "policy", "poddisruptionbudgets", "poddisruptionbudget", ["pdb"], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [Status], AtOnce, ""),
    row!(PriorityClass, "scheduling.k8s.io", "priorityclasses", "priorityclass", ["pc"], Cluster, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(Lease, "coordination.k8s.io", "leases", "lease", [], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(StatefulSet, "apps", "statefulsets", "statefulset", ["sts"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status, Scale], AtOnce, ""),
    row!(DaemonSet, "apps", "daemonsets", "daemonset", ["ds"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status], AtOnce, ""),
    row!(ReplicationController, "", "replicationcontrollers", "replicationcontroller", ["rc"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status, Scale], AtOnce, ""),
    row!(PodTemplate, "", "podtemplates", "podtemplate", [], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(ControllerRevision, "apps", "controllerrevisions", "controllerrevision", [], Namespaced, served: true, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(Job, "batch", "jobs", "job", [], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status], AtOnce, ""),
    row!(CronJob, "batch", "cronjobs", "cronjob", ["cj"], Namespaced, served: true, in_all: true, derived: false,
        confidential: false, owner: true, [Status], AtOnce, ""),
    row!(Member, INTERNAL_GROUP, "members", "member", [], Cluster, served: false, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(ApiToken, INTERNAL_GROUP, "apitokens", "apitoken", [], Cluster, served: false, in_all: false, derived: false,
        confidential: true, owner: false, [], AtOnce, ""),
    row!(JoinToken, INTERNAL_GROUP, "jointokens", "jointoken", [], Cluster, served: false, in_all: false, derived: false,
        confidential: true, owner: false, [], AtOnce, ""),
    row!(DnsWhitelist, INTERNAL_GROUP, "dnswhitelists", "dnswhitelist", [], Cluster, served: false, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
    row!(GitInventory, INTERNAL_GROUP, "gitinventories", "gitinventory", [], Cluster, served: false, in_all: false, derived: false,
        confidential: false, owner: false, [], AtOnce, ""),
];

/// Kinds that are served once more, in another group: the same objects, written otherwise (`crate::event`).
#[rustfmt::skip]
pub const FACES: &[KindRow] = &[
    row!(Event, crate::event::GROUP, "events", "event", ["ev"], Namespaced, served: true, in_all: false, derived: true,
        confidential: false, owner: false, [], AtOnce, ""),
];

impl Kind {
    /// Returns this kind's row of the table.
    pub fn row(self) -> &'static KindRow {
        &KINDS[self as usize]
    }

    /// Finds a kind by `apiVersion` and `kind` as manifests write them.
    pub fn from_api(api_version: &str, kind: &str) -> Option<Kind> {
        let mut rows = KINDS.iter().chain(FACES);
        rows.find(|row| row.name == kind && row.api_version() == api_version)
            .map(|row| row.kind)
    }

    /// Finds a served kind by what users type: plural, singular, short name or kind, in any case, also with
    /// its group behind a dot (`deployments.apps`).
    pub fn from_user(word: &str) -> Option<Kind> {
        let word = word.to_ascii_lowercase();
        let (word, group) = match word.split_once('.') {
            Some((word, group)) => (word.to_owned(), Some(group.to_owned())),
            None => (word, None),
        };
        KINDS
            .iter()
            .filter(|row| row.served)
            .filter(|row| group.as_deref().is_none_or(|group| row.group == group))
            .find(|row| {
                row.plural == word
                    || row.singular == word
                    || row.short_names.contains(&word.as_str())
                    || row.name.eq_ignore_ascii_case(&word)
            })
            .map(|row| row.kind)
    }

    /// Tells whether `/status` of objects of this kind is written apart from the rest.
    pub fn has_status(self) -> bool {
        self.row().subresources.contains(&Subresource::Status)
    }

    /// Tells whether `metadata.generation` counts the changes of objects of this kind, as Kubernetes' strategies have it: by
    /// those of others no controller asks which of them was observed.
    pub fn has_generation(self) -> bool {
        match self {
            Kind::Pod
            | Kind::Deployment
            | Kind::ReplicaSet
            | Kind::Ingress
            | Kind::EndpointSlice
            | Kind::IngressClass
            | Kind::NetworkPolicy
            | Kind::PodDisruptionBudget
            | Kind::PriorityClass
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicationController
            | Kind::PodTemplate
            | Kind::Job
            | Kind::CronJob => true,
            Kind::Namespace
            | Kind::Node
            | Kind::Service
            | Kind::Endpoints
            | Kind::Event
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::ServiceAccount
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::StorageClass
            | Kind::Lease
            | Kind::ControllerRevision
            | Kind::Member
            | Kind::ApiToken
            | Kind::JoinToken
            | Kind::DnsWhitelist
            | Kind::GitInventory => false,
        }
    }

    /// Tells whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.row().scope == Scope::Namespaced
    }
}

impl KindRow {
    /// Returns what is shown in the Kubernetes API, in the order of the tables.
    pub fn served() -> impl Iterator<Item = &'static KindRow> {
        KINDS.iter().chain(FACES).filter(|row| row.served)
    }

    /// Tells whether this is how its kind is kept, and not one of [`FACES`].
    pub fn is_own(&self) -> bool {
        self.group == self.kind.row().group
    }

    /// Returns `group/version`, or the version alone for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Returns `plural.group`, or the plural alone for the core group; unique, and the first part of storage keys.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum() {
        for (index, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, index, "{}", row.name);
        }
    }

    #[test]
    fn another_face_is_of_a_kind_that_is_served_in_the_same_way() {
        for face in FACES {
            let row = face.kind.row();
            assert!(!face.is_own() && row.is_own());
            assert!(row.served, "{}", row.name);
            let common = |row: &KindRow| (row.name, row.plural, row.singular, row.short_names, row.scope);
            assert_eq!(common(face), common(row));
            assert_eq!(Kind::from_api(&face.api_version(), face.name), Some(face.kind));
        }
    }

    #[test]
    fn users_find_kinds_by_every_name() {
        for (word, kind) in [
            ("deploy", Kind::Deployment),
            ("Deployments", Kind::Deployment),
            ("deployment.apps", Kind::Deployment),
            ("po", Kind::Pod),
            ("ing", Kind::Ingress),
            ("ns", Kind::Namespace),
        ] {
            assert_eq!(Kind::from_user(word), Some(kind), "{word}");
        }
        assert_eq!(
            Kind::from_user("members"),
            None,
            "internal kinds are not for users"
        );
    }
}
