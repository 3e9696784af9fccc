//! From a container of a pod's spec to the [`ContainerSpec`] that the runtime makes.
//!
//! Pure: no file is touched, no port called. Environment in [`super::env`], volumes in [`super::volumes`].
//! Source of the semantics: Kubernetes API reference, `Container` and `PodSpec`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use schemas::deletion::DEFAULT_GRACE_SECONDS;
use schemas::quantity::Quantity;
use schemas::{Object, ObjectKey, default_pull_policy, hex};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::volumes::SubPath;
use super::{env, volumes};
use crate::endpoints::protocol;
use crate::ports::{
    Attachment, ContainerNetwork, ContainerResources, ContainerSpec, DnsConfig, HostPort, PullPolicy, labels,
};

/// What pods need to know of the node they run on.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name, as `spec.nodeName` has it.
    pub name: String,
    /// The address that other nodes and users reach it at.
    pub address: IpAddr,
    pub cluster_id: String,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Volumes of pods are below `pods/` in it.
    pub data_dir: PathBuf,
    /// What containers without a limit may use.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// A pod that this node is to run: its document and the typed view of it.
#[derive(Clone, Debug)]
pub struct DesiredPod {
    pub key: ObjectKey,
    pub uid: String,
    pub object: Arc<Object>,
    spec: Arc<PodSpec>,
}

/// A container that cannot be made as its spec says (`CreateContainerConfigError`).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// All that a container's spec depends on besides the container itself.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    pub pod: &'a DesiredPod,
    pub node: &'a NodeSettings,
    /// Where containers reach this node's DNS, if the pod network is there.
    pub gateway: Option<IpAddr>,
    pub attachment: &'a Attachment,
    /// As whom the image runs, where `needs_image_user` says that it matters.
    pub image_user: &'a str,
}

/// Longest host name that Linux takes is 64 with its end mark.
const HOSTNAME_MAX: usize = 63;

impl DesiredPod {
    /// Reads a pod; None if it has no name, no spec, or fields of the wrong type (merged but invalid: nobody acts on it).
    pub fn read(object: Arc<Object>) -> Option<DesiredPod> {
        let key = object.key()?;
        let spec = object.view::<Pod>().ok()?.spec?;
        Some(DesiredPod {
            key,
            uid: object.uid().to_owned(),
            spec: Arc::new(spec),
            object,
        })
    }

    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Finds a container or init container.
    pub(super) fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }

    pub(super) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec
            .init_containers
            .iter()
            .flatten()
            .chain(&self.spec.containers)
    }

    pub(super) fn uses_host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    /// Ports of the node that lead to the pod.
    pub(super) fn host_ports(&self) -> Vec<HostPort> {
        if self.uses_host_network() {
            return Vec::new();
        }
        let ports = self
            .all_containers()
            .flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                Some(HostPort {
                    protocol: protocol(port.protocol.as_deref())?,
                    host_ip: port.host_ip.as_deref().and_then(|address| address.parse().ok()),
                    host_port: port
                        .host_port
                        .and_then(|port| port.try_into().ok())
                        .filter(|port| *port > 0)?,
                    container_port: port.container_port.try_into().ok()?,
                })
            })
            .collect()
    }
}

/// Reads a quantity in thousandths of its unit; None if it is none, or negative.
pub(super) fn thousandths(text: &str) -> Option<u64> {
    text.parse::<Quantity>().ok()?.millis().try_into().ok()
}

/// Reads a quantity in its unit (bytes); None if it is none, or negative.
pub(super) fn units(text: &str) -> Option<u64> {
    text.parse::<Quantity>().ok()?.value().try_into().ok()
}

/// Returns the pull policy of a container, with Kubernetes' default.
pub(super) fn pull_policy(container: &Container) -> PullPolicy {
    let image = container.image.as_deref().unwrap_or_default();
    let policy = container.image_pull_policy.as_deref();
    match policy.unwrap_or_else(|| default_pull_policy(image)) {
        "Never" => PullPolicy::Never,
        "IfNotPresent" => PullPolicy::IfNotPresent,
        _ => PullPolicy::Always,
    }
}

/// Hashes the part of a container's spec that makes it another container. Only fields without defaults, so that a new
/// version of this program, which may default more, restarts nothing; all others are immutable in a pod.
pub(super) fn spec_hash(container: &Container) -> String {
    let identity = json!({
        "name": container.name,
        "image": container.image,
        "command": container.command,
        "args": container.args,
        "workingDir": container.working_dir,
        "env": container.env.iter().flatten().map(|variable| (&variable.name, &variable.value)).collect::<Vec<_>>(),
    });
    hex(&Sha256::digest(identity.to_string().as_bytes())[..8])
}

/// What a container is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    pub spec: ContainerSpec,
    /// Those of its mounts whose source must be found beneath a volume first.
    pub sub_paths: Vec<SubPath>,
}

/// Builds the spec of attempt number `attempt` of a container.
///
/// # Errors
/// It names something that is not there or not supported.
pub fn build(
    surroundings: &Surroundings<'_>,
    container: &Container,
    attempt: u32,
) -> Result<Built, ConfigError> {
    let Surroundings {
        pod,
        node,
        attachment,
        ..
    } = *surroundings;
    let spec = pod.spec();
    let environment = env::environment(surroundings, container)?;
    let (mounts, sub_paths) = volumes::mounts(surroundings, container, &environment)?;
    let security = container.security_context.as_ref();
    let capabilities = security.and_then(|context| context.capabilities.as_ref());
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words
            .iter()
            .flatten()
            .map(|word| env::expand(word, &environment))
            .collect()
    };
    let hostname = hostname(pod, node);
    let spec = ContainerSpec {
        name: container_name(pod, &container.name, attempt),
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        env: environment.clone(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: container_labels(surroundings, container, attempt),
        mounts,
        resources: resources(container)?,
        network: attachment.network.clone(),
        dns: dns(surroundings),
        hosts: hosts(surroundings, &hostname)?,
        hostname,
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        user: RunAs::of(pod, container).user(surroundings.image_user)?,
        privileged: security.and_then(|context| context.privileged) == Some(true),
        read_only_root: security.and_then(|context| context.read_only_root_filesystem) == Some(true),
        capabilities_add: capabilities.and_then(|list| list.add.clone()).unwrap_or_default(),
        capabilities_drop: capabilities
            .and_then(|list| list.drop.clone())
            .unwrap_or_default(),
        stop_timeout_seconds: spec
            .termination_grace_period_seconds
            .and_then(|seconds| seconds.try_into().ok())
            .unwrap_or(DEFAULT_GRACE_SECONDS),
    };
    Ok(Built { spec, sub_paths })
}

/// Podman's name: `<pod>_<namespace>_<container>_<uid>_<attempt>`. Of uids of one name, the first 13 characters (48 bits)
/// tell incarnations apart; the first 8 are the same until the last 16 bits have counted to their end.
fn container_name(pod: &DesiredPod, container: &str, attempt: u32) -> String {
    let uid: String = pod.uid.chars().take(13).collect();
    format!(
        "{}_{}_{container}_{uid}_{attempt}",
        pod.key.name, pod.key.namespace
    )
}

/// The labels by which a restarted agent knows its own.
fn container_labels(
    surroundings: &Surroundings<'_>,
    container: &Container,
    attempt: u32,
) -> BTreeMap<String, String> {
    let pod = surroundings.pod;
    [
        (labels::CLUSTER, surroundings.node.cluster_id.clone()),
        (labels::POD_NAMESPACE, pod.key.namespace.clone()),
        (labels::POD_NAME, pod.key.name.clone()),
        (labels::POD_UID, pod.uid.clone()),
        (labels::CONTAINER_NAME, container.name.clone()),
        (labels::SPEC_HASH, spec_hash(container)),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::POD_IP, surroundings.attachment.address.to_string()),
    ]
    .into_iter()
    .map(|(label, value)| (label.to_owned(), value))
    .collect()
}

fn resources(container: &Container) -> Result<ContainerResources, ConfigError> {
    let Some(resources) = &container.resources else {
        return Ok(ContainerResources::default());
    };
    let read = |list: &Option<BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
                resource: &str,
                parse: fn(&str) -> Option<u64>| {
        match list.as_ref().and_then(|list| list.get(resource)) {
            None => Ok(None),
            Some(quantity) => match parse(&quantity.0) {
                // A limit of nothing is none, as in Kubernetes.
                Some(value) => Ok(Some(value).filter(|value| *value > 0)),
                None => Err(ConfigError(format!(
                    "{resource} \"{}\" is not a quantity",
                    quantity.0
                ))),
            },
        }
    };
    Ok(ContainerResources {
        cpu_limit_millis: read(&resources.limits, "cpu", thousandths)?,
        cpu_request_millis: read(&resources.requests, "cpu", thousandths)?,
        memory_limit_bytes: read(&resources.limits, "memory", units)?,
    })
}

fn hostname(pod: &DesiredPod, node: &NodeSettings) -> String {
    let chosen = pod.spec().hostname.as_deref().filter(|name| !name.is_empty());
    let name = match chosen {
        Some(name) => name,
        None if pod.uses_host_network() => &node.name,
        None => &pod.key.name,
    };
    let cut: String = name.chars().take(HOSTNAME_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Lines for /etc/hosts: the pod's own name (not on the host's network, where the name is the host's), then aliases.
fn hosts(surroundings: &Surroundings<'_>, hostname: &str) -> Result<Vec<(String, IpAddr)>, ConfigError> {
    let Surroundings {
        pod,
        node,
        attachment,
        ..
    } = surroundings;
    let spec = pod.spec();
    let mut lines = Vec::new();
    if !pod.uses_host_network() {
        if let Some(subdomain) = spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
            let namespace = &pod.key.namespace;
            let full = format!("{hostname}.{subdomain}.{namespace}.svc.{}", node.cluster_domain);
            lines.push((full, attachment.address));
        }
        lines.push((hostname.to_owned(), attachment.address));
    }
    for alias in spec.host_aliases.iter().flatten() {
        let address = alias
            .ip
            .parse()
            .map_err(|_| ConfigError(format!("hostAliases: \"{}\" is not an address", alias.ip)))?;
        lines.extend(
            alias
                .hostnames
                .iter()
                .flatten()
                .map(|name| (name.clone(), address)),
        );
    }
    Ok(lines)
}

/// `dnsPolicy` and `dnsConfig`. No servers at all: the host's configuration, which the runtime takes by itself.
fn dns(surroundings: &Surroundings<'_>) -> DnsConfig {
    let Surroundings {
        pod, node, gateway, ..
    } = surroundings;
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirstWithHostNet" => true,
        "Default" | "None" => false,
        _ => !pod.uses_host_network(),
    };
    let mut dns = DnsConfig::default();
    if cluster_first {
        let domain = &node.cluster_domain;
        let reachable = if pod.uses_host_network() { None } else { *gateway };
        dns.servers.push(reachable.unwrap_or(node.address));
        dns.search = vec![
            format!("{}.svc.{domain}", pod.key.namespace),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        dns.options = vec!["ndots:5".to_owned()];
    }
    if let Some(config) = &spec.dns_config {
        for server in config
            .nameservers
            .iter()
            .flatten()
            .filter_map(|server| server.parse().ok())
        {
            if !dns.servers.contains(&server) {
                dns.servers.push(server);
            }
        }
        for search in config.searches.iter().flatten() {
            if !dns.search.contains(search) {
                dns.search.push(search.clone());
            }
        }
        for option in config.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|known| known.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    dns
}

/// Tells whether the user of a container depends on its image.
pub(super) fn needs_image_user(pod: &DesiredPod, container: &Container) -> bool {
    let run_as = RunAs::of(pod, container);
    run_as.user.is_none() && (run_as.group.is_some() || run_as.not_root)
}

/// As whom a container is to run: its own security context, then the pod's.
struct RunAs {
    user: Option<i64>,
    group: Option<i64>,
    not_root: bool,
}

impl RunAs {
    fn of(pod: &DesiredPod, container: &Container) -> RunAs {
        let own = container.security_context.as_ref();
        let shared = pod.spec().security_context.as_ref();
        let not_root = own
            .and_then(|context| context.run_as_non_root)
            .or_else(|| shared.and_then(|context| context.run_as_non_root));
        RunAs {
            user: own
                .and_then(|context| context.run_as_user)
                .or_else(|| shared.and_then(|context| context.run_as_user)),
            group: own
                .and_then(|context| context.run_as_group)
                .or_else(|| shared.and_then(|context| context.run_as_group)),
            not_root: not_root == Some(true),
        }
    }

    /// Returns `user[:group]`; None: as the image says.
    fn user(&self, image_user: &str) -> Result<Option<String>, ConfigError> {
        let image_user = image_user.split(':').next().unwrap_or_default();
        if self.not_root {
            self.check_not_root(image_user)?;
        }
        Ok(match (self.user, self.group) {
            (Some(user), Some(group)) => Some(format!("{user}:{group}")),
            (Some(user), None) => Some(user.to_string()),
            (None, Some(group)) if image_user.is_empty() => Some(format!("0:{group}")),
            (None, Some(group)) => Some(format!("{image_user}:{group}")),
            (None, None) => None,
        })
    }

    /// Refuses what kubelet refuses, in its words: a name may be anybody's, root's too.
    fn check_not_root(&self, image_user: &str) -> Result<(), ConfigError> {
        let image_id = match image_user {
            "" => Ok(0),
            name => name.parse::<u32>(),
        };
        Err(ConfigError(match (self.user, image_id) {
            (Some(0), _) => "container's runAsUser breaks non-root policy".to_owned(),
            (None, Ok(0)) => "container has runAsNonRoot and image will run as root".to_owned(),
            (None, Err(_)) => format!(
                "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root"
            ),
            (Some(_), _) | (None, Ok(_)) => return Ok(()),
        }))
    }
}

/// The attachment of a pod on the host's network.
pub(super) fn host_attachment(node: &NodeSettings) -> Attachment {
    Attachment {
        address: node.address,
        network: ContainerNetwork::Host,
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
