//! The port `PodNetwork` on bridge, cables and rules of our own.
//!
//! The kernel is asked, not remembered, wherever that costs little; kept here are the ranges, and the addresses given out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use reconcilers::ports::{Attachment, ContainerNetwork, HostPort, PodNetwork, PortError, PortRedirect};
use tokio::sync::{Mutex, watch};

use super::kernel;
use super::plan::{self, BRIDGE, HostPortEntry, ROUTE_METRIC, Range, TABLE};

/// The abstract socket of the agent that has the pod network of the machine.
const CLAIM: &str = "podman-swarm/network";

const TAKEN: &str = "the pod network of this machine belongs to another agent that runs on it, so that pods cannot run on this node: \
     stop the other agent, then start this one again";

/// The pod network of this node. One per machine (more exactly: per network namespace of the host): of a second agent, this
/// refuses to attach anything, does nothing else, and never touches what the first one made.
///
/// After a change of the node's range ([`PodNetwork::set_range`]) running pods keep their addresses, their former gateway and their way
/// out of the cluster, until they are detached. The other nodes' routes for that range, however, lead to its new owner: such pods reach
/// this node and what is outside, and nothing on other nodes, until they are replaced. The former gateway leaves with the last of them.
pub struct Network {
    range: watch::Sender<Option<Range>>,
    /// Addresses by pod, read from the kernel at the first call.
    addresses: Mutex<Option<HashMap<String, Ipv4Addr>>>,
    /// An abstract socket belongs to one network namespace and one process, and goes with it. None: another agent had it when this one
    /// started; it may restart at any time and find all as it was, so that it is not asked for again.
    claim: Option<UnixListener>,
}

impl Network {
    /// Takes over whatever an agent before this one left on the machine, once it is used.
    ///
    /// # Errors
    /// Without root, or where `ip`, `nft` or `nsenter` is missing.
    pub async fn new() -> Result<Self, PortError> {
        if !rustix::process::geteuid().is_root() {
            return Err(PortError::Refused {
                reason: "NotRoot",
                message: "a pod network needs root: bridges, routes and rules belong to the machine".into(),
            });
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
            kernel::run(program, &["-V"], "")
                .await
                .map_err(|error| PortError::Refused {
                    reason: "ProgramMissing",
                    message: format!("the pod network needs `{program}` (package {package}): {error}"),
                })?;
        }
        let claim = SocketAddr::from_abstract_name(CLAIM).and_then(|name| UnixListener::bind_addr(&name));
        Ok(Self {
            range: watch::Sender::new(None),
            addresses: Mutex::new(None),
            claim: claim.inspect_err(|error| tracing::warn!(%error, "{TAKEN}")).ok(),
        })
    }

    fn check_claim(&self) -> Result<(), PortError> {
        self.claim.as_ref().map(|_| ()).ok_or_else(|| PortError::Refused {
            reason: "NetworkTaken",
            message: TAKEN.into(),
        })
    }

    /// Removes all that this network made on the machine, for a node that leaves its cluster. Running containers lose their network.
    ///
    /// # Errors
    /// What could not be removed, after everything else was.
    pub async fn remove_all(&self) -> Result<(), PortError> {
        if self.claim.is_none() {
            return Ok(());
        }
        let mut addresses = self.addresses.lock().await;
        self.range.send_replace(None);
        let mut batch = plan::route_changes(&kernel::routes().await?, &BTreeMap::new());
        let uids: HashSet<String> = kernel::namespaces()
            .into_iter()
            .chain(kernel::cables().await?.into_keys())
            .collect();
        for uid in &uids {
            batch.push_str(&unplug(uid));
        }
        if kernel::bridge().await?.is_some_and(|bridge| bridge.is_ours) {
            batch.push_str(&format!("link del {BRIDGE}\n"));
        }
        *addresses = Some(HashMap::new());
        let links = kernel::ip_all(&batch).await;
        kernel::forget_forwarding().await;
        let rules = kernel::nft(&format!("add table ip {TABLE}\ndelete table ip {TABLE}\n")).await;
        links.and(rules)
    }

    /// Calls `told` with the gateway whenever there is a new one (None: none yet), until it is dropped. A call that has not
    /// ended by then is dropped.
    pub async fn follow_gateway<F: Future<Output = ()>>(&self, mut told: impl FnMut(Option<IpAddr>) -> F) {
        let mut ranges = self.range.subscribe();
        loop {
            let gateway = ranges.borrow_and_update().map(|range| range.gateway().into());
            let told = async {
                told(gateway).await;
                pending::<()>().await;
            };
            tokio::select! {
                changed = ranges.changed() => if changed.is_err() { return },
                () = told => {}
            }
        }
    }

    fn range(&self) -> Option<Range> {
        *self.range.borrow()
    }

    /// Reserves the address of a pod: the one it has, or a free one. The flag says that it is new.
    async fn reserve(&self, range: &Range, uid: &str) -> Result<(Ipv4Addr, bool), PortError> {
        let mut guard = self.addresses.lock().await;
        let addresses = known(&mut guard).await?;
        if let Some(address) = addresses.get(uid) {
            return Ok((*address, false));
        }
        let used = addresses.values().copied().collect();
        let address = range.pick(uid, &used).ok_or_else(|| PortError::Refused {
            reason: "NoAddress",
            message: format!("all addresses of the node's pod range {} are in use", range.node),
        })?;
        addresses.insert(uid.to_owned(), address);
        Ok((address, true))
    }

    async fn plug(&self, range: &Range, uid: &str, address: Ipv4Addr) -> Result<(), PortError> {
        let namespace = plan::namespace(uid);
        let leftovers = unplug(uid);
        if !leftovers.is_empty() {
            kernel::ip_all(&leftovers).await?;
        }
        kernel::ip(&plan::lay_cable(uid, address)).await?;
        kernel::ip_in(&namespace, &plan::address_pod(range, address)).await?;
        // As Docker and containerd: port 80 needs no capability, since the namespace is the pod's own.
        kernel::set_parameter_in(&namespace, "net/ipv4/ip_unprivileged_port_start", "0").await?;
        kernel::ip(&plan::plug_in(uid, address)).await
    }

    /// Removes the gateways of former ranges that no pod needs any more.
    async fn retire_gateways(&self, pods: &HashMap<String, Ipv4Addr>) -> Result<(), PortError> {
        let (Some(range), Some(bridge)) = (self.range(), kernel::bridge().await?) else {
            return Ok(());
        };
        let unused =
            |net: &Ipv4Net| *net != range.node && !pods.values().any(|address| net.contains(address));
        let batch: String = bridge
            .addresses
            .iter()
            .filter(|(_, net)| unused(net))
            .map(|(address, net)| format!("addr del {address}/{} dev {BRIDGE}\n", net.prefix_len()))
            .collect();
        if batch.is_empty() {
            return Ok(());
        }
        kernel::ip_all(&batch).await
    }
}

/// The commands that take off the network what there is of a pod, be it all or the half of an attempt that was cut short.
fn unplug(uid: &str) -> String {
    let (cable, namespace) = (plan::cable(uid), plan::namespace(uid));
    let mut batch = String::new();
    if kernel::has_link(&cable) {
        batch.push_str(&format!("link del {cable}\n"));
    }
    if kernel::namespace_path(&namespace).exists() {
        batch.push_str(&format!("netns del {namespace}\n"));
    }
    batch
}

/// Reads the pods' addresses from the kernel the first time.
async fn known(
    addresses: &mut Option<HashMap<String, Ipv4Addr>>,
) -> Result<&mut HashMap<String, Ipv4Addr>, PortError> {
    match addresses {
        Some(known) => Ok(known),
        None => {
            let found = attached().await?;
            Ok(addresses.insert(found))
        }
    }
}

/// Pods with both a namespace and a cable.
async fn attached() -> Result<HashMap<String, Ipv4Addr>, PortError> {
    let namespaces = kernel::namespaces();
    let mut cables = kernel::cables().await?;
    cables.retain(|uid, _| namespaces.contains(uid));
    Ok(cables)
}

fn check(uid: &str) -> Result<(), PortError> {
    if plan::is_uid(uid) {
        return Ok(());
    }
    Err(PortError::Refused {
        reason: "InvalidUid",
        message: format!("`{uid}` is no uid: letters, digits and `-`, at most 64"),
    })
}

#[async_trait]
impl PodNetwork for Network {
    async fn set_range(&self, cluster: IpNet, node: IpNet) -> Result<(), PortError> {
        if self.claim.is_none() {
            return Ok(());
        }
        let range = Range::new(cluster, node).map_err(|message| PortError::Refused {
            reason: "InvalidRange",
            message,
        })?;
        let mut addresses = self.addresses.lock().await;
        kernel::set_parameter("net/ipv4/ip_forward", "1")?;
        match kernel::bridge().await? {
            None => kernel::ip(&plan::make_bridge(range.gateway())).await?,
            Some(bridge) if bridge.is_ours => {}
            Some(_) => {
                return Err(PortError::Refused {
                    reason: "BridgeTaken",
                    message: format!(
                        "an interface {BRIDGE} exists that Podman Swarm did not make; rename or remove it"
                    ),
                });
            }
        }
        kernel::ip(&plan::address_bridge(&range)).await?;
        // So that localhost reaches host ports; `guard` keeps pods from reaching the node's localhost in return.
        kernel::nft(&plan::node_rules(&range)).await?;
        kernel::set_parameter(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
        self.range.send_replace(Some(range));
        if let Err(error) = kernel::allow_forwarding().await {
            tracing::warn!(
                %error,
                "another program's firewall drops forwarded packets: pods reach only this node until `iptables -I FORWARD -i \
                 {BRIDGE} -j ACCEPT` and the same with -o allow them"
            );
        }
        let pods = known(&mut addresses).await?;
        // What an agent before this one began and did not finish.
        let torn: String = kernel::namespaces()
            .iter()
            .filter(|uid| !pods.contains_key(*uid))
            .map(|uid| unplug(uid))
            .collect();
        if !torn.is_empty() {
            kernel::ip_all(&torn).await?;
        }
        self.retire_gateways(pods).await
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.range().map(|range| range.gateway().into())
    }

    async fn set_routes(&self, routes: &BTreeMap<IpNet, IpAddr>) -> Result<(), PortError> {
        if self.claim.is_none() {
            return Ok(());
        }
        let mut wanted = BTreeMap::new();
        for (range, via) in routes {
            let (IpNet::V4(range), IpAddr::V4(via)) = (range, via) else {
                return Err(PortError::Refused {
                    reason: "InvalidRoute",
                    message: format!("the pod network takes IPv4 routes only, not {range} via {via}"),
                });
            };
            wanted.insert(range.trunc(), *via);
        }
        let changes = plan::route_changes(&kernel::routes().await?, &wanted);
        if changes.is_empty() {
            return Ok(());
        }
        tracing::debug!(metric = ROUTE_METRIC, %changes, "routes to other nodes' pods");
        // One node that is on no link of ours must not keep the others away.
        kernel::ip_all(&changes).await
    }

    async fn attach(&self, pod_uid: &str, host_ports: &[HostPort]) -> Result<Attachment, PortError> {
        check(pod_uid)?;
        self.check_claim()?;
        let range = self.range().ok_or_else(|| PortError::Unavailable {
            operation: "attach the pod",
            message: "this node has no pod range yet".into(),
        })?;
        let namespace = kernel::namespace_path(&plan::namespace(pod_uid));
        if !(kernel::is_namespace(&namespace) && kernel::has_link(&plan::cable(pod_uid))) {
            // If there was half of it, all of it is made anew, in the range of today.
            self.detach(pod_uid).await?;
        }
        let (address, is_new) = self.reserve(&range, pod_uid).await?;
        if is_new && let Err(error) = self.plug(&range, pod_uid, address).await {
            // The error to report is the first one.
            let _ = self.detach(pod_uid).await;
            return Err(error);
        }
        let entries: String = host_ports
            .iter()
            .filter_map(|port| HostPortEntry::new(port, address))
            .map(|entry| entry.add())
            .collect();
        if !entries.is_empty() {
            kernel::nft(&entries).await.map_err(|error| match error {
                PortError::Unavailable { message, .. } if message.contains("File exists") => {
                    PortError::Refused {
                        reason: "HostPortConflict",
                        message: format!("a host port of the pod leads to another pod already: {message}"),
                    }
                }
                other => other,
            })?;
        }
        Ok(Attachment {
            address: address.into(),
            network: ContainerNetwork::Namespace(namespace),
        })
    }

    async fn set_redirects(&self, pod_uid: &str, redirects: &[PortRedirect]) -> Result<(), PortError> {
        check(pod_uid)?;
        self.check_claim()?;
        let address = {
            let mut guard = self.addresses.lock().await;
            known(&mut guard).await?.get(pod_uid).copied()
        };
        let address =
            address.ok_or_else(|| PortError::NotFound(format!("the network namespace of pod {pod_uid}")))?;
        kernel::nft_in(
            &plan::namespace(pod_uid),
            &plan::redirect_rules(address, redirects),
        )
        .await
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), PortError> {
        check(pod_uid)?;
        if self.claim.is_none() {
            return Ok(());
        }
        let mut guard = self.addresses.lock().await;
        let addresses = known(&mut guard).await?;
        if let Some(address) = addresses.get(pod_uid) {
            let entries: String = kernel::host_ports(*address)
                .await?
                .iter()
                .map(HostPortEntry::delete)
                .collect();
            if !entries.is_empty() {
                kernel::nft(&entries).await?;
            }
        }
        let batch = unplug(pod_uid);
        if !batch.is_empty() {
            kernel::ip_all(&batch).await?;
        }
        if let Some(address) = addresses.remove(pod_uid)
            && self.range().is_some_and(|range| !range.node.contains(&address))
        {
            self.retire_gateways(addresses).await?;
        }
        Ok(())
    }

    async fn attached(&self) -> Result<HashMap<String, IpAddr>, PortError> {
        if self.claim.is_none() {
            return Ok(HashMap::new());
        }
        let found = attached().await?;
        Ok(found
            .into_iter()
            .map(|(uid, address)| (uid, address.into()))
            .collect())
    }
}
