//! The one table of facts about fields: which lists are keyed, sets or atomic, which maps are atomic, which members
//! exclude one another, and what cannot change after creation.
//!
//! The store's flat documents read the rules of server-side apply (`x-kubernetes-list-map-keys` of the API
//! documentation), strategic merge patches read `patchMergeKey`; the two differ in places, so a row holds both.
//! A field is named by the plain names on its way, with list elements skipped (`spec/containers/ports`); the path of a
//! list is also the path of its elements. What lies within an atomic list or map is atomic with it and not named here.
//! A test compares the table with the schemas of the types: no list is missing, no row names nothing.

use crate::Kind;

/// Version of this table; part of the store's document format, since it decides how objects are laid out.
pub const FIELDS_VERSION: u32 = 2;

/// A field that, alone or with others, tells the elements of a keyed list apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergeKey {
    pub field: &'static str,
    /// The value of an element that does not have the field; without one the field is required.
    pub default: Option<&'static str>,
}

/// How concurrent changes of a list come together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListRule {
    /// Elements are told apart by these fields and merge one by one.
    Keyed { keys: &'static [MergeKey] },
    /// Elements are scalars and each is there or not.
    Set,
    /// The list is one value.
    Atomic,
}

/// What a strategic merge patch does with a list (`patchStrategy`, `patchMergeKey`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchRule {
    /// Elements with the same value of this field are merged, others are added.
    MergeBy(&'static str),
    /// Scalars that are missing are added.
    MergeValues,
    /// The patch's list takes the place of the old one.
    Replace,
}

/// Members of a map that replace one another, as one register group.
#[derive(PartialEq, Eq, Debug)]
pub struct Union {
    /// The field that names the member in use, where there is one (`type` of a deployment's strategy).
    pub discriminator: Option<&'static str>,
    pub members: &'static [&'static str],
}

/// Returns the merge rule of the list at `path`; a list that the table does not know is atomic.
pub fn list_rule(kind: Kind, path: &[&str]) -> ListRule {
    find(kind, path)
        .and_then(|row| row.list)
        .map_or(ListRule::Atomic, |list| list.merge)
}

/// Returns the rule of strategic merge patches for the list at `path`; a list that the table does not know is replaced.
pub fn patch_rule(kind: Kind, path: &[&str]) -> PatchRule {
    find(kind, path)
        .and_then(|row| row.list)
        .map_or(PatchRule::Replace, |list| list.patch)
}

/// Tells whether the map at `path` (or each map in the list there) is one value, of which no part changes alone.
pub fn is_atomic_map(kind: Kind, path: &[&str]) -> bool {
    find(kind, path).is_some_and(|row| row.atomic_map)
}

/// What the table says of one field, for the documents of the API.
pub(crate) struct Mark {
    /// The names on the way to the field, joined by dots.
    pub(crate) path: String,
    pub(crate) list: Option<(ListRule, PatchRule)>,
    /// A strategic merge patch says which members stay (`retainKeys`).
    pub(crate) retain_keys: bool,
    pub(crate) atomic_map: bool,
}

/// Returns what the table says of a kind, or, without one, of every object.
pub(crate) fn marks(kind: Option<Kind>) -> Vec<Mark> {
    fn collect(rows: &[Row], prefix: &str, marks: &mut Vec<Mark>) {
        for row in rows {
            let path = format!("{prefix}{}", row.path);
            collect(row.holds, &format!("{path}."), marks);
            marks.push(Mark {
                path,
                list: row.list.map(|list| (list.merge, list.patch)),
                retain_keys: row.retain_keys,
                atomic_map: row.atomic_map,
            });
        }
    }
    let mut marks = Vec::new();
    collect(kind.map_or(METADATA_OF_ALL, rows_of), "", &mut marks);
    marks
}

/// Returns the union among the fields of the map at `path` (or of each map in the list there).
pub fn union_at(kind: Kind, path: &[&str]) -> Option<&'static Union> {
    find(kind, path).and_then(|row| row.union)
}

/// Tells whether a value, once it is there, stays for the object's life. `path` may lead to a leaf or to what holds
/// it; a container of mutable and immutable fields counts as mutable.
pub fn is_immutable(kind: Kind, path: &[&str]) -> bool {
    let (immutable, except) = immutable_paths(kind);
    let within = |prefixes: &[&str]| prefixes.iter().any(|prefix| strip(path, prefix).is_some());
    let leads_to = |targets: &[&str]| {
        targets.iter().any(|target| {
            let mut names = target.split('.');
            path.iter().all(|name| names.next() == Some(name))
        })
    };
    (within(METADATA_IMMUTABLE) || within(immutable)) && !within(except) && !leads_to(except)
}

/// Paths that no kind changes after creation.
pub(crate) const METADATA_IMMUTABLE: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.creationTimestamp",
    "metadata.generateName",
];

/// Paths that are immutable with all below them, and the exceptions within.
pub(crate) fn immutable_paths(kind: Kind) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        // `spec.nodeName` is placement: empty first, set once by the owner of the workload, and on a conflict the
        // store must be able to choose it apart from the rest.
        Kind::Pod => (
            &["spec"],
            &[
                "spec.nodeName",
                "spec.containers.image",
                "spec.initContainers.image",
                "spec.ephemeralContainers",
                "spec.activeDeadlineSeconds",
                "spec.terminationGracePeriodSeconds",
                "spec.tolerations",
                "spec.schedulingGates",
            ],
        ),
        Kind::Deployment | Kind::ReplicaSet | Kind::DaemonSet => (&["spec.selector"], &[]),
        Kind::StatefulSet => (&["spec"], SET_MUTABLE),
        Kind::ControllerRevision => (&["data"], &[]),
        Kind::Job => (JOB_IMMUTABLE, &[]),
        Kind::Service => (&["spec.clusterIP", "spec.clusterIPs"], &[]),
        Kind::EndpointSlice => (&["addressType"], &[]),
        Kind::Event => (&["involvedObject"], &[]),
        Kind::Secret => (&["type"], &[]),
        Kind::PersistentVolumeClaim => (&["spec"], CLAIM_MUTABLE),
        Kind::PersistentVolume => (&["spec"], VOLUME_MUTABLE),
        Kind::StorageClass => (
            &["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"],
            &[],
        ),
        Kind::IngressClass => (&["spec.controller"], &[]),
        Kind::PriorityClass => (&["preemptionPolicy", "value"], &[]),
        Kind::Namespace
        | Kind::Node
        | Kind::Endpoints
        | Kind::Ingress
        | Kind::ConfigMap
        | Kind::ServiceAccount
        | Kind::NetworkPolicy
        | Kind::PodDisruptionBudget
        | Kind::Lease
        | Kind::ReplicationController
        | Kind::PodTemplate
        | Kind::CronJob
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => (&[], &[]),
    }
}

/// What of a StatefulSet may change.
pub(crate) const SET_MUTABLE: &[&str] = &[
    "spec.replicas",
    "spec.ordinals",
    "spec.template",
    "spec.updateStrategy",
    "spec.revisionHistoryLimit",
    "spec.persistentVolumeClaimRetentionPolicy",
    "spec.minReadySeconds",
];

/// What of a Job says which pods are its own, and when it is done.
const JOB_IMMUTABLE: &[&str] = &[
    "spec.backoffLimitPerIndex",
    "spec.completionMode",
    "spec.completions",
    "spec.managedBy",
    "spec.podFailurePolicy",
    "spec.selector",
    "spec.successPolicy",
    "spec.template",
];

/// What of a claim may change; its volume once, when it is bound.
const CLAIM_MUTABLE: &[&str] = &[
    "spec.resources",
    "spec.volumeAttributesClassName",
    "spec.volumeName",
];

/// What of a volume may change: all but what it is.
const VOLUME_MUTABLE: &[&str] = &[
    "spec.accessModes",
    "spec.capacity",
    "spec.claimRef",
    "spec.mountOptions",
    "spec.nodeAffinity",
    "spec.persistentVolumeReclaimPolicy",
    "spec.storageClassName",
    "spec.volumeAttributesClassName",
];

// ---------------------------------------------------------------- rows

/// What is known of the field at `path`, relative to the type whose table holds the row.
struct Row {
    path: &'static str,
    list: Option<List>,
    atomic_map: bool,
    union: Option<&'static Union>,
    retain_keys: bool,
    /// The rows of what the field, or each element of it, holds.
    holds: &'static [Row],
}

#[derive(Clone, Copy)]
struct List {
    merge: ListRule,
    patch: PatchRule,
}

impl Row {
    const fn new(path: &'static str, list: Option<List>) -> Row {
        Row {
            path,
            list,
            atomic_map: false,
            union: None,
            retain_keys: false,
            holds: &[],
        }
    }

    const fn patch(mut self, patch: PatchRule) -> Row {
        if let Some(list) = &mut self.list {
            list.patch = patch;
        }
        self
    }

    const fn holds(mut self, rows: &'static [Row]) -> Row {
        self.holds = rows;
        self
    }

    const fn union(mut self, union: &'static Union) -> Row {
        self.union = Some(union);
        self
    }

    const fn retain_keys(mut self) -> Row {
        self.retain_keys = true;
        self
    }

    const fn unit(mut self) -> Row {
        self.atomic_map = true;
        self
    }
}

/// A list of maps that are told apart by `keys`; strategic merge patches merge by the first of them.
const fn keyed(path: &'static str, keys: &'static [MergeKey]) -> Row {
    let list = List {
        merge: ListRule::Keyed { keys },
        patch: PatchRule::MergeBy(keys[0].field),
    };
    Row::new(path, Some(list))
}

const fn set(path: &'static str) -> Row {
    Row::new(
        path,
        Some(List {
            merge: ListRule::Set,
            patch: PatchRule::MergeValues,
        }),
    )
}

const fn atomic(path: &'static str) -> Row {
    Row::new(
        path,
        Some(List {
            merge: ListRule::Atomic,
            patch: PatchRule::Replace,
        }),
    )
}

/// A map whose members merge one by one, with something to say of it or of what it holds.
const fn map(path: &'static str) -> Row {
    Row::new(path, None)
}

/// A map that is one value.
const fn atomic_map(path: &'static str) -> Row {
    Row::new(path, None).unit()
}

const fn key(field: &'static str) -> MergeKey {
    MergeKey { field, default: None }
}

/// Finds the row of exactly this path.
fn find(kind: Kind, path: &[&str]) -> Option<&'static Row> {
    find_in(METADATA_OF_ALL, path).or_else(|| find_in(rows_of(kind), path))
}

fn find_in(rows: &'static [Row], path: &[&str]) -> Option<&'static Row> {
    rows.iter().find_map(|row| match strip(path, row.path)? {
        [] => Some(row),
        rest => find_in(row.holds, rest),
    })
}

/// Takes the names of `prefix` (joined by dots) off the front of `path`.
fn strip<'a>(path: &'a [&'a str], prefix: &str) -> Option<&'a [&'a str]> {
    let mut rest = path;
    for name in prefix.split('.') {
        let (first, others) = rest.split_first()?;
        if *first != name {
            return None;
        }
        rest = others;
    }
    Some(rest)
}

fn rows_of(kind: Kind) -> &'static [Row] {
    match kind {
        Kind::Namespace => NAMESPACE,
        Kind::Node => NODE,
        Kind::Pod => POD,
        Kind::Service => SERVICE,
        Kind::Endpoints => ENDPOINTS,
        Kind::EndpointSlice => ENDPOINT_SLICE,
        Kind::Deployment => DEPLOYMENT,
        Kind::ReplicaSet => REPLICA_SET,
        Kind::Ingress => INGRESS,
        Kind::ServiceAccount => SERVICE_ACCOUNT,
        Kind::PersistentVolumeClaim => VOLUME_CLAIM,
        Kind::PersistentVolume => PERSISTENT_VOLUME,
        Kind::StorageClass => STORAGE_CLASS,
        Kind::NetworkPolicy => NETWORK_POLICY,
        Kind::PodDisruptionBudget => DISRUPTION_BUDGET,
        Kind::StatefulSet => STATEFUL_SET,
        Kind::DaemonSet => DAEMON_SET,
        Kind::ReplicationController => REPLICATION_CONTROLLER,
        Kind::PodTemplate => POD_TEMPLATE_KIND,
        Kind::Job => JOB,
        Kind::CronJob => CRON_JOB,
        Kind::DnsWhitelist => DNS_WHITELIST,
        // These have no lists; the other internal kinds have none that merge.
        Kind::ConfigMap
        | Kind::Secret
        | Kind::IngressClass
        | Kind::PriorityClass
        | Kind::Lease
        | Kind::ControllerRevision
        | Kind::Event
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::GitInventory => &[],
    }
}

// ---------------------------------------------------------------- the table

const NAME: &[MergeKey] = &[key("name")];
const TYPE: &[MergeKey] = &[key("type")];
const IP: &[MergeKey] = &[key("ip")];
const PROTOCOL: MergeKey = MergeKey {
    field: "protocol",
    default: Some("TCP"),
};

const DNS_WHITELIST: &[Row] = &[set("spec.hosts")];

const METADATA_OF_ALL: &[Row] = &[map("metadata").holds(METADATA)];

const METADATA: &[Row] = &[
    set("finalizers"),
    keyed("ownerReferences", &[key("uid")]).unit(),
    atomic("managedFields"),
];

const NAMESPACE: &[Row] = &[atomic("spec.finalizers"), keyed("status.conditions", TYPE)];

const NODE: &[Row] = &[
    set("spec.podCIDRs"),
    atomic("spec.taints"),
    atomic_map("spec.configSource.configMap"),
    keyed("status.addresses", TYPE),
    keyed("status.conditions", TYPE),
    atomic("status.images"),
    atomic("status.runtimeHandlers"),
    atomic("status.volumesAttached"),
    atomic("status.volumesInUse"),
];

const POD: &[Row] = &[
    map("spec").holds(POD_SPEC),
    keyed("status.conditions", TYPE),
    atomic("status.hostIPs").patch(PatchRule::MergeBy("ip")),
    keyed("status.podIPs", IP),
    atomic("status.containerStatuses"),
    atomic("status.initContainerStatuses"),
    atomic("status.ephemeralContainerStatuses"),
    keyed("status.resourceClaimStatuses", NAME),
];

const POD_TEMPLATE: &[Row] = &[map("metadata").holds(METADATA), map("spec").holds(POD_SPEC)];

const POD_SPEC: &[Row] = &[
    keyed("containers", NAME).holds(CONTAINER),
    keyed("initContainers", NAME).holds(CONTAINER),
    keyed("ephemeralContainers", NAME).holds(CONTAINER),
    keyed("volumes", NAME)
        .union(&VOLUME_SOURCE)
        .retain_keys()
        .holds(VOLUME),
    keyed("imagePullSecrets", NAME).unit(),
    keyed("hostAliases", IP).holds(&[atomic("hostnames")]),
    atomic("tolerations"),
    keyed(
        "topologySpreadConstraints",
        &[key("topologyKey"), key("whenUnsatisfiable")],
    )
    .holds(&[atomic("matchLabelKeys"), atomic_map("labelSelector")]),
    atomic("readinessGates"),
    keyed("schedulingGates", NAME),
    keyed("resourceClaims", NAME),
    keyed("resources.claims", NAME).patch(PatchRule::Replace),
    atomic_map("nodeSelector"),
    atomic("dnsConfig.nameservers"),
    atomic("dnsConfig.options"),
    atomic("dnsConfig.searches"),
    atomic_map("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"),
    atomic("affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution"),
    atomic("affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"),
    atomic("affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution"),
    atomic("affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution"),
    atomic("affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution"),
    atomic("securityContext.supplementalGroups"),
    atomic("securityContext.sysctls"),
    map("securityContext.seccompProfile").union(&LOCAL_PROFILE),
    map("securityContext.appArmorProfile").union(&LOCAL_PROFILE),
];

const CONTAINER: &[Row] = &[
    atomic("command"),
    atomic("args"),
    keyed("ports", &[key("containerPort"), PROTOCOL]),
    keyed("env", NAME).union(&ENV_VALUE).holds(&[
        map("valueFrom").union(&ENV_SOURCE),
        atomic_map("valueFrom.configMapKeyRef"),
        atomic_map("valueFrom.fieldRef"),
        atomic_map("valueFrom.resourceFieldRef"),
        atomic_map("valueFrom.secretKeyRef"),
    ]),
    atomic("envFrom"),
    keyed("volumeMounts", &[key("mountPath")]),
    keyed("volumeDevices", &[key("devicePath")]),
    atomic("resizePolicy"),
    keyed("resources.claims", NAME).patch(PatchRule::Replace),
    atomic("securityContext.capabilities.add"),
    atomic("securityContext.capabilities.drop"),
    map("securityContext.seccompProfile").union(&LOCAL_PROFILE),
    map("securityContext.appArmorProfile").union(&LOCAL_PROFILE),
    map("livenessProbe").union(&PROBE_HANDLER).holds(HANDLER),
    map("readinessProbe").union(&PROBE_HANDLER).holds(HANDLER),
    map("startupProbe").union(&PROBE_HANDLER).holds(HANDLER),
    map("lifecycle.postStart")
        .union(&LIFECYCLE_HANDLER)
        .holds(HANDLER),
    map("lifecycle.preStop").union(&LIFECYCLE_HANDLER).holds(HANDLER),
];

const HANDLER: &[Row] = &[atomic("exec.command"), atomic("httpGet.httpHeaders")];

const PROBE_HANDLER: Union = Union {
    discriminator: None,
    members: &["exec", "grpc", "httpGet", "tcpSocket"],
};
const LIFECYCLE_HANDLER: Union = Union {
    discriminator: None,
    members: &["exec", "httpGet", "sleep", "tcpSocket"],
};
const ENV_VALUE: Union = Union {
    discriminator: None,
    members: &["value", "valueFrom"],
};
const ENV_SOURCE: Union = Union {
    discriminator: None,
    members: &["configMapKeyRef", "fieldRef", "resourceFieldRef", "secretKeyRef"],
};
const LOCAL_PROFILE: Union = Union {
    discriminator: Some("type"),
    members: &["localhostProfile"],
};

const VOLUME_SOURCE: Union = Union {
    discriminator: None,
    members: &[
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "hostPath",
        "image",
        "iscsi",
        "nfs",
        "persistentVolumeClaim",
        "photonPersistentDisk",
        "portworxVolume",
        "projected",
        "quobyte",
        "rbd",
        "scaleIO",
        "secret",
        "storageos",
        "vsphereVolume",
    ],
};

const VOLUME: &[Row] = &[
    atomic("configMap.items"),
    atomic("secret.items"),
    atomic("downwardAPI.items"),
    atomic("projected.sources"),
    atomic("cephfs.monitors"),
    atomic_map("cephfs.secretRef"),
    atomic_map("cinder.secretRef"),
    atomic_map("csi.nodePublishSecretRef"),
    map("ephemeral.volumeClaimTemplate.metadata").holds(METADATA),
    atomic("ephemeral.volumeClaimTemplate.spec.accessModes"),
    atomic_map("ephemeral.volumeClaimTemplate.spec.dataSource"),
    atomic_map("ephemeral.volumeClaimTemplate.spec.selector"),
    atomic("fc.targetWWNs"),
    atomic("fc.wwids"),
    atomic_map("flexVolume.secretRef"),
    atomic("iscsi.portals"),
    atomic_map("iscsi.secretRef"),
    atomic("rbd.monitors"),
    atomic_map("rbd.secretRef"),
    atomic_map("scaleIO.secretRef"),
    atomic_map("storageos.secretRef"),
];

const SERVICE: &[Row] = &[
    keyed("spec.ports", &[key("port"), PROTOCOL]),
    atomic_map("spec.selector"),
    atomic("spec.clusterIPs"),
    atomic("spec.externalIPs"),
    atomic("spec.ipFamilies"),
    atomic("spec.loadBalancerSourceRanges"),
    keyed("status.conditions", TYPE),
    atomic("status.loadBalancer.ingress"),
];

const ENDPOINTS: &[Row] = &[atomic("subsets")];

const ENDPOINT_SLICE: &[Row] = &[atomic("endpoints"), atomic("ports")];

const DEPLOYMENT: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec.strategy").union(&STRATEGY).retain_keys(),
    map("spec.template").holds(POD_TEMPLATE),
    keyed("status.conditions", TYPE),
];

const STRATEGY: Union = Union {
    discriminator: Some("type"),
    members: &["rollingUpdate"],
};

const REPLICA_SET: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec.template").holds(POD_TEMPLATE),
    keyed("status.conditions", TYPE),
];

const STATEFUL_SET: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec.template").holds(POD_TEMPLATE),
    map("spec.updateStrategy").union(&STRATEGY),
    atomic("spec.volumeClaimTemplates"),
    keyed("status.conditions", TYPE),
];

const DAEMON_SET: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec.template").holds(POD_TEMPLATE),
    map("spec.updateStrategy").union(&STRATEGY),
    keyed("status.conditions", TYPE),
];

const REPLICATION_CONTROLLER: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec.template").holds(POD_TEMPLATE),
    keyed("status.conditions", TYPE),
];

const POD_TEMPLATE_KIND: &[Row] = &[map("template").holds(POD_TEMPLATE)];

const JOB: &[Row] = &[
    map("spec").holds(JOB_SPEC),
    atomic("status.conditions").patch(PatchRule::MergeBy("type")),
    set("status.uncountedTerminatedPods.failed").patch(PatchRule::Replace),
    set("status.uncountedTerminatedPods.succeeded").patch(PatchRule::Replace),
];

const JOB_SPEC: &[Row] = &[
    atomic_map("selector"),
    map("template").holds(POD_TEMPLATE),
    atomic("podFailurePolicy.rules"),
    atomic("successPolicy.rules"),
];

const CRON_JOB: &[Row] = &[
    map("spec.jobTemplate.metadata").holds(METADATA),
    map("spec.jobTemplate.spec").holds(JOB_SPEC),
    atomic("status.active"),
];

const INGRESS: &[Row] = &[
    atomic("spec.rules"),
    atomic("spec.tls"),
    map("spec.defaultBackend").union(&INGRESS_BACKEND),
    atomic_map("spec.defaultBackend.resource"),
    atomic_map("spec.defaultBackend.service.port"),
    atomic("status.loadBalancer.ingress"),
];

const SERVICE_ACCOUNT: &[Row] = &[atomic("imagePullSecrets"), keyed("secrets", NAME).unit()];

const VOLUME_CLAIM: &[Row] = &[
    atomic("spec.accessModes"),
    atomic_map("spec.dataSource"),
    atomic_map("spec.selector"),
    atomic("status.accessModes"),
    keyed("status.conditions", TYPE),
];

const PERSISTENT_VOLUME: &[Row] = &[
    atomic("spec.accessModes"),
    atomic("spec.mountOptions"),
    atomic_map("spec.nodeAffinity.required"),
    atomic("spec.cephfs.monitors"),
    atomic_map("spec.cephfs.secretRef"),
    atomic_map("spec.cinder.secretRef"),
    atomic_map("spec.csi.controllerExpandSecretRef"),
    atomic_map("spec.csi.controllerPublishSecretRef"),
    atomic_map("spec.csi.nodeExpandSecretRef"),
    atomic_map("spec.csi.nodePublishSecretRef"),
    atomic_map("spec.csi.nodeStageSecretRef"),
    atomic("spec.fc.targetWWNs"),
    atomic("spec.fc.wwids"),
    atomic_map("spec.flexVolume.secretRef"),
    atomic("spec.iscsi.portals"),
    atomic_map("spec.iscsi.secretRef"),
    atomic("spec.rbd.monitors"),
    atomic_map("spec.rbd.secretRef"),
    atomic_map("spec.scaleIO.secretRef"),
    atomic_map("spec.storageos.secretRef"),
];

const STORAGE_CLASS: &[Row] = &[atomic("allowedTopologies"), atomic("mountOptions")];

const NETWORK_POLICY: &[Row] = &[
    atomic("spec.egress"),
    atomic("spec.ingress"),
    atomic_map("spec.podSelector"),
    atomic("spec.policyTypes"),
];

const DISRUPTION_BUDGET: &[Row] = &[
    atomic_map("spec.selector"),
    map("spec").union(&DISRUPTION_LIMIT),
    keyed("status.conditions", TYPE),
];

const DISRUPTION_LIMIT: Union = Union {
    discriminator: None,
    members: &["maxUnavailable", "minAvailable"],
};

const INGRESS_BACKEND: Union = Union {
    discriminator: None,
    members: &["resource", "service"],
};

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
