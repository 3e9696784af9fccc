//! Fields that hold one of a few words: what they may hold. Validation and the OpenAPI documents read it from here.
//!
//! Source: the types that are marked `+enum` in k8s.io/api v0.33. Fields that the table does not name hold words that other
//! versions or programs may add to, or a list that is too long to be of use (`stopSignal`).

/// A field, and its words in the order in which Kubernetes names them in errors. In a list, each element is one.
pub(crate) struct Choice {
    /// The type that has the field: its package and version, and its name.
    pub(crate) of: &'static str,
    pub(crate) field: &'static str,
    pub(crate) words: &'static [&'static str],
}

type Words = &'static [&'static str];

pub(crate) const ACCESS_MODES: Words = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
pub(crate) const ADDRESS_TYPES: Words = &["FQDN", "IPv4", "IPv6"];
pub(crate) const COMPLETION_MODES: Words = &["NonIndexed", "Indexed"];
pub(crate) const CONCURRENCY_POLICIES: Words = &["Allow", "Forbid", "Replace"];
pub(crate) const DEPLOYMENT_STRATEGIES: Words = &["Recreate", "RollingUpdate"];
pub(crate) const DNS_POLICIES: Words = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
pub(crate) const EVICTION_POLICIES: Words = &["AlwaysAllow", "IfHealthyBudget"];
pub(crate) const EXIT_CODE_OPERATORS: Words = &["In", "NotIn"];
pub(crate) const FAILURE_ACTIONS: Words = &["Count", "FailIndex", "FailJob", "Ignore"];
pub(crate) const HOST_PATHS: Words = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
pub(crate) const MESSAGE_POLICIES: Words = &["FallbackToLogsOnError", "File"];
pub(crate) const PATH_TYPES: Words = &["Exact", "ImplementationSpecific", "Prefix"];
pub(crate) const POD_MANAGEMENT_POLICIES: Words = &["OrderedReady", "Parallel"];
pub(crate) const POLICY_TYPES: Words = &["Egress", "Ingress"];
pub(crate) const PREEMPTION_POLICIES: Words = &["Never", "PreemptLowerPriority"];
pub(crate) const PROTOCOLS: Words = &["SCTP", "TCP", "UDP"];
pub(crate) const PULL_POLICIES: Words = &["Always", "IfNotPresent", "Never"];
pub(crate) const RECLAIM_POLICIES: Words = &["Delete", "Recycle", "Retain"];
pub(crate) const REPLACEMENT_POLICIES: Words = &["Failed", "TerminatingOrFailed"];
pub(crate) const RESTART_POLICIES: Words = &["Always", "OnFailure", "Never"];
pub(crate) const SCHEMES: Words = &["HTTP", "HTTPS"];
pub(crate) const SERVICE_AFFINITIES: Words = &["ClientIP", "None"];
pub(crate) const SERVICE_TYPES: Words = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
pub(crate) const UPDATE_STRATEGIES: Words = &["OnDelete", "RollingUpdate"];
pub(crate) const VOLUME_BINDINGS: Words = &["Immediate", "WaitForFirstConsumer"];
pub(crate) const VOLUME_MODES: Words = &["Block", "Filesystem"];

const EFFECTS: Words = &["NoExecute", "NoSchedule", "PreferNoSchedule"];
const FAMILIES: Words = &["", "IPv4", "IPv6"];
const INCLUSIONS: Words = &["Honor", "Ignore"];
const PROFILES: Words = &["Localhost", "RuntimeDefault", "Unconfined"];
const SELECTIONS: Words = &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];
const TRAFFIC_POLICIES: Words = &["Cluster", "Local"];

const fn choice(of: &'static str, field: &'static str, words: Words) -> Choice {
    Choice { of, field, words }
}

/// All of them.
pub(crate) const CHOICES: &[Choice] = &[
    choice("apps.v1.DaemonSetUpdateStrategy", "type", UPDATE_STRATEGIES),
    choice("apps.v1.DeploymentStrategy", "type", DEPLOYMENT_STRATEGIES),
    choice(
        "apps.v1.StatefulSetSpec",
        "podManagementPolicy",
        POD_MANAGEMENT_POLICIES,
    ),
    choice("apps.v1.StatefulSetUpdateStrategy", "type", UPDATE_STRATEGIES),
    choice("batch.v1.CronJobSpec", "concurrencyPolicy", CONCURRENCY_POLICIES),
    choice("batch.v1.JobSpec", "completionMode", COMPLETION_MODES),
    choice("batch.v1.JobSpec", "podReplacementPolicy", REPLACEMENT_POLICIES),
    choice(
        "batch.v1.PodFailurePolicyOnExitCodesRequirement",
        "operator",
        EXIT_CODE_OPERATORS,
    ),
    choice("batch.v1.PodFailurePolicyRule", "action", FAILURE_ACTIONS),
    choice("core.v1.AppArmorProfile", "type", PROFILES),
    choice(
        "core.v1.AzureDiskVolumeSource",
        "cachingMode",
        &["None", "ReadOnly", "ReadWrite"],
    ),
    choice(
        "core.v1.AzureDiskVolumeSource",
        "kind",
        &["Dedicated", "Managed", "Shared"],
    ),
    choice("core.v1.Container", "imagePullPolicy", PULL_POLICIES),
    choice("core.v1.Container", "terminationMessagePolicy", MESSAGE_POLICIES),
    choice("core.v1.ContainerPort", "protocol", PROTOCOLS),
    choice("core.v1.EndpointPort", "protocol", PROTOCOLS),
    choice("core.v1.EphemeralContainer", "imagePullPolicy", PULL_POLICIES),
    choice(
        "core.v1.EphemeralContainer",
        "terminationMessagePolicy",
        MESSAGE_POLICIES,
    ),
    choice("core.v1.HTTPGetAction", "scheme", SCHEMES),
    choice("core.v1.HostPathVolumeSource", "type", HOST_PATHS),
    choice("core.v1.ImageVolumeSource", "pullPolicy", PULL_POLICIES),
    choice(
        "core.v1.ModifyVolumeStatus",
        "status",
        &["InProgress", "Infeasible", "Pending"],
    ),
    choice("core.v1.NamespaceStatus", "phase", &["Active", "Terminating"]),
    choice("core.v1.NodeSelectorRequirement", "operator", SELECTIONS),
    choice(
        "core.v1.NodeStatus",
        "phase",
        &["Pending", "Running", "Terminated"],
    ),
    choice("core.v1.PersistentVolumeClaimSpec", "accessModes", ACCESS_MODES),
    choice("core.v1.PersistentVolumeClaimSpec", "volumeMode", VOLUME_MODES),
    choice("core.v1.PersistentVolumeClaimStatus", "accessModes", ACCESS_MODES),
    choice(
        "core.v1.PersistentVolumeClaimStatus",
        "phase",
        &["Bound", "Lost", "Pending"],
    ),
    choice("core.v1.PersistentVolumeSpec", "accessModes", ACCESS_MODES),
    choice(
        "core.v1.PersistentVolumeSpec",
        "persistentVolumeReclaimPolicy",
        RECLAIM_POLICIES,
    ),
    choice("core.v1.PersistentVolumeSpec", "volumeMode", VOLUME_MODES),
    choice(
        "core.v1.PersistentVolumeStatus",
        "phase",
        &["Available", "Bound", "Failed", "Pending", "Released"],
    ),
    choice(
        "core.v1.PodSecurityContext",
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
    ),
    choice(
        "core.v1.PodSecurityContext",
        "supplementalGroupsPolicy",
        &["Merge", "Strict"],
    ),
    choice("core.v1.PodSpec", "dnsPolicy", DNS_POLICIES),
    choice("core.v1.PodSpec", "preemptionPolicy", PREEMPTION_POLICIES),
    choice("core.v1.PodSpec", "restartPolicy", RESTART_POLICIES),
    choice(
        "core.v1.PodStatus",
        "phase",
        &["Failed", "Pending", "Running", "Succeeded", "Unknown"],
    ),
    choice(
        "core.v1.PodStatus",
        "qosClass",
        &["BestEffort", "Burstable", "Guaranteed"],
    ),
    choice("core.v1.PortStatus", "protocol", PROTOCOLS),
    choice("core.v1.SeccompProfile", "type", PROFILES),
    choice("core.v1.SecurityContext", "procMount", &["Default", "Unmasked"]),
    choice("core.v1.ServicePort", "protocol", PROTOCOLS),
    choice("core.v1.ServiceSpec", "externalTrafficPolicy", TRAFFIC_POLICIES),
    choice("core.v1.ServiceSpec", "internalTrafficPolicy", TRAFFIC_POLICIES),
    choice("core.v1.ServiceSpec", "ipFamilies", FAMILIES),
    choice(
        "core.v1.ServiceSpec",
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    ),
    choice("core.v1.ServiceSpec", "sessionAffinity", SERVICE_AFFINITIES),
    choice("core.v1.ServiceSpec", "type", SERVICE_TYPES),
    choice("core.v1.Taint", "effect", EFFECTS),
    choice("core.v1.Toleration", "effect", EFFECTS),
    choice("core.v1.Toleration", "operator", &["Equal", "Exists"]),
    choice(
        "core.v1.TopologySpreadConstraint",
        "nodeAffinityPolicy",
        INCLUSIONS,
    ),
    choice("core.v1.TopologySpreadConstraint", "nodeTaintsPolicy", INCLUSIONS),
    choice(
        "core.v1.TopologySpreadConstraint",
        "whenUnsatisfiable",
        &["DoNotSchedule", "ScheduleAnyway"],
    ),
    choice(
        "core.v1.VolumeMount",
        "mountPropagation",
        &["Bidirectional", "HostToContainer", "None"],
    ),
    choice("discovery.v1.EndpointPort", "protocol", PROTOCOLS),
    choice("discovery.v1.EndpointSlice", "addressType", ADDRESS_TYPES),
    choice("networking.v1.HTTPIngressPath", "pathType", PATH_TYPES),
    choice("networking.v1.IngressPortStatus", "protocol", PROTOCOLS),
    choice("networking.v1.NetworkPolicyPort", "protocol", PROTOCOLS),
    choice("networking.v1.NetworkPolicySpec", "policyTypes", POLICY_TYPES),
    choice(
        "policy.v1.PodDisruptionBudgetSpec",
        "unhealthyPodEvictionPolicy",
        EVICTION_POLICIES,
    ),
    choice(
        "scheduling.v1.PriorityClass",
        "preemptionPolicy",
        PREEMPTION_POLICIES,
    ),
    choice("storage.v1.StorageClass", "reclaimPolicy", RECLAIM_POLICIES),
    choice("storage.v1.StorageClass", "volumeBindingMode", VOLUME_BINDINGS),
];
