//! What the pod network tells `ip` and `nft`, as text, and the choice of addresses. Pure.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use reconcilers::ports::{HostPort, PortRedirect, Protocol};
use schemas::hex;
use sha2::{Digest, Sha256};

pub(super) const BRIDGE: &str = "psw0";
pub(super) const NAMESPACE_PREFIX: &str = "psw-";
pub(super) const TABLE: &str = "podman_swarm";
/// Where `ip` keeps named namespaces, and Podman finds them.
pub(super) const NAMESPACES: &str = "/run/netns";
/// What marks an interface as ours (`ifalias`), whatever its name.
pub(super) const ALIAS: &str = "podman-swarm";

/// Marks our routes (`proto`); not in use by the kernel or by a routing daemon (iproute2's rt_protos).
pub(super) const ROUTE_PROTOCOL: u8 = 112;
/// Our routes stand beside those of others to the same range and behind them, and never replace one. A range that our own bridge
/// still serves stays local for the same reason.
pub(super) const ROUTE_METRIC: u32 = 112;

/// Namespaces are named by uid; Kubernetes' have 36 characters.
const UID_BYTES_MAX: usize = 64;

/// The smallest range that makes sense: network, gateway, broadcast and five pods.
const PREFIX_LENGTH_MAX: u8 = 29;

/// Tells whether a pod's uid can be part of a file name and of a command.
pub(super) fn is_uid(uid: &str) -> bool {
    (1..=UID_BYTES_MAX).contains(&uid.len())
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Names the pod's namespace.
pub(super) fn namespace(uid: &str) -> String {
    format!("{NAMESPACE_PREFIX}{uid}")
}

/// Names the node's end of the pod's cable: at most 15 characters, so a hash.
pub(super) fn cable(uid: &str) -> String {
    format!("psw{}", hex(&Sha256::digest(uid.as_bytes())[..6]))
}

/// The alias of a cable says whose it is: the kernel's own record of which pod has which address.
pub(super) fn cable_alias(uid: &str, address: Ipv4Addr) -> String {
    format!("{ALIAS} {uid} {address}")
}

/// Reads [`cable_alias`].
pub(super) fn parse_cable_alias(alias: &str) -> Option<(String, Ipv4Addr)> {
    let mut words = alias.strip_prefix(ALIAS)?.split_whitespace();
    let (uid, address) = (words.next()?, words.next()?.parse().ok()?);
    (is_uid(uid) && words.next().is_none()).then(|| (uid.to_owned(), address))
}

/// The ranges of cluster and node, once they are known to be usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) cluster: Ipv4Net,
    pub(super) node: Ipv4Net,
}

impl Range {
    /// Checks the ranges; the error says what is wrong with them.
    pub(super) fn new(cluster: IpNet, node: IpNet) -> Result<Self, String> {
        let (IpNet::V4(cluster), IpNet::V4(node)) = (cluster, node) else {
            return Err(format!(
                "the pod network takes IPv4 ranges only, not {cluster} and {node}"
            ));
        };
        let (cluster, node) = (cluster.trunc(), node.trunc());
        if !cluster.contains(&node) {
            return Err(format!(
                "the node's range {node} is not in the cluster's {cluster}"
            ));
        }
        if node.prefix_len() > PREFIX_LENGTH_MAX {
            return Err(format!(
                "the node's range {node} is too small: /{PREFIX_LENGTH_MAX} is the least"
            ));
        }
        Ok(Self { cluster, node })
    }

    /// The bridge's address: the first of the range.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.node.network().to_bits() + 1)
    }

    /// Chooses an address: the one that the uid hashes to, or the next that is free. Never the network's, the gateway's or
    /// the broadcast address. `None`: the range is full.
    pub(super) fn pick(&self, uid: &str, used: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let first = self.node.network().to_bits() + 2;
        let count = self.node.broadcast().to_bits() - first;
        let hash = Sha256::digest(uid.as_bytes());
        let start = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % count;
        (0..count)
            .map(|step| Ipv4Addr::from_bits(first + (start + step) % count))
            .find(|address| !used.contains(address))
    }
}

/// A hardware address that belongs to an IP address, so that no neighbour's ARP cache is wrong when the address has a new owner.
fn hardware_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    // 02: locally administered.
    format!("02:70:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// For `ip -batch`: makes the bridge. It keeps its hardware address when cables come and go.
pub(super) fn make_bridge(gateway: Ipv4Addr) -> String {
    format!(
        "link add {BRIDGE} address {} type bridge forward_delay 0 mcast_snooping 0\nlink set {BRIDGE} alias {ALIAS}\n",
        hardware_address(gateway)
    )
}

/// For `ip -batch`: gives the bridge its address, again or anew.
pub(super) fn address_bridge(range: &Range) -> String {
    format!(
        "addr replace {}/{} dev {BRIDGE}\nlink set {BRIDGE} up\n",
        range.gateway(),
        range.node.prefix_len()
    )
}

/// For `ip -batch` on the node: the pod's namespace, and a cable into it.
pub(super) fn lay_cable(uid: &str, address: Ipv4Addr) -> String {
    let (namespace, cable) = (namespace(uid), cable(uid));
    format!(
        "netns add {namespace}\n\
         link add {cable} type veth peer name eth0 address {} netns {namespace}\n",
        hardware_address(address)
    )
}

/// For `ip -batch` on the node: puts the cable into the bridge. Last of all, since from then on the pod counts as attached.
///
/// `hairpin`: where bridged frames pass the IP rules (br_netfilter, which Docker loads), a pod's call to its own host port goes back out
/// of the port that it came in by.
pub(super) fn plug_in(uid: &str, address: Ipv4Addr) -> String {
    let cable = cable(uid);
    format!(
        "link set {cable} alias \"{}\" addrgenmode none\n\
         link set {cable} master {BRIDGE} up\n\
         link set {cable} type bridge_slave hairpin on\n",
        cable_alias(uid, address)
    )
}

/// For `ip -batch` in the pod's namespace.
pub(super) fn address_pod(range: &Range, address: Ipv4Addr) -> String {
    format!(
        "link set lo up\naddr add {address}/{} dev eth0\nlink set eth0 up\nroute add default via {}\n",
        range.node.prefix_len(),
        range.gateway()
    )
}

/// For `nft -f`: the table as it should be for a range, in one transaction. Host ports of running pods stay.
pub(super) fn node_rules(range: &Range) -> String {
    let cluster = range.cluster;
    format!(
        r#"add table ip {TABLE}
add map ip {TABLE} host_ports {{ type inet_proto . inet_service : ipv4_addr . inet_service ; }}
add map ip {TABLE} host_ports_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service ; }}
add chain ip {TABLE} to_pods
add chain ip {TABLE} guard {{ type filter hook prerouting priority -300 ; }}
add chain ip {TABLE} prerouting {{ type nat hook prerouting priority -100 ; }}
add chain ip {TABLE} output {{ type nat hook output priority -100 ; }}
add chain ip {TABLE} postrouting {{ type nat hook postrouting priority 100 ; }}
flush table ip {TABLE}
add rule ip {TABLE} guard iifname "{BRIDGE}" ip daddr 127.0.0.0/8 drop comment "route_localnet is for our own host ports only"
add rule ip {TABLE} prerouting fib daddr type local jump to_pods
add rule ip {TABLE} output fib daddr type local jump to_pods
add rule ip {TABLE} to_pods dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at
add rule ip {TABLE} to_pods dnat ip to meta l4proto . th dport map @host_ports
add rule ip {TABLE} postrouting ip saddr 127.0.0.0/8 oifname "{BRIDGE}" masquerade comment "localhost to a host port"
add rule ip {TABLE} postrouting ip saddr {cluster} oifname "{BRIDGE}" ct status dnat masquerade comment "pod to a neighbour's host port"
add rule ip {TABLE} postrouting ip saddr {cluster} ip daddr != {cluster} oifname != "{BRIDGE}" masquerade comment "out of the cluster"
"#
    )
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// An entry of one of the two maps: its name, and key and value as `nft` writes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HostPortEntry {
    pub(super) map: &'static str,
    pub(super) key: String,
    pub(super) to: Ipv4Addr,
    pub(super) to_port: u16,
}

impl HostPortEntry {
    /// The entry for a host port; `None` for an IPv6 address, which no pod answers at.
    pub(super) fn new(port: &HostPort, pod: Ipv4Addr) -> Option<Self> {
        let key = format!("{} . {}", protocol(port.protocol), port.host_port);
        let (map, key) = match port.host_ip {
            None => ("host_ports", key),
            Some(IpAddr::V4(any)) if any.is_unspecified() => ("host_ports", key),
            Some(IpAddr::V4(address)) => ("host_ports_at", format!("{address} . {key}")),
            Some(IpAddr::V6(_)) => return None,
        };
        Some(Self {
            map,
            key,
            to: pod,
            to_port: port.container_port,
        })
    }

    /// For `nft -f`. Adding what is there already changes nothing; a key with another value is refused.
    pub(super) fn add(&self) -> String {
        let Self {
            map,
            key,
            to,
            to_port,
        } = self;
        format!("add element ip {TABLE} {map} {{ {key} : {to} . {to_port} }}\n")
    }

    /// For `nft -f`.
    pub(super) fn delete(&self) -> String {
        let Self { map, key, .. } = self;
        format!("delete element ip {TABLE} {map} {{ {key} }}\n")
    }
}

/// For `nft -f` in the pod's namespace: replaces the redirects. They hold for the pod's address alone, from outside and from the pod
/// itself, so `localhost` and other machines' ports are as they are.
pub(super) fn redirect_rules(address: Ipv4Addr, redirects: &[PortRedirect]) -> String {
    let mut rules = format!("add table ip {TABLE}\ndelete table ip {TABLE}\n");
    if redirects.is_empty() {
        return rules;
    }
    for chain in ["prerouting", "output"] {
        let _ = writeln!(
            rules,
            "add table ip {TABLE}\nadd chain ip {TABLE} {chain} {{ type nat hook {chain} priority -100 ; }}"
        );
        for redirect in redirects {
            let _ = writeln!(
                rules,
                "add rule ip {TABLE} {chain} ip daddr {address} {} dport {} dnat to :{}",
                protocol(redirect.protocol),
                redirect.from,
                redirect.to
            );
        }
    }
    rules
}

/// For `ip -batch`: makes our routes in the kernel those that are wanted. Empty: they are.
pub(super) fn route_changes(
    present: &BTreeMap<Ipv4Net, Ipv4Addr>,
    wanted: &BTreeMap<Ipv4Net, Ipv4Addr>,
) -> String {
    let mut batch = String::new();
    for (range, via) in wanted
        .iter()
        .filter(|(range, via)| present.get(range) != Some(via))
    {
        let _ = writeln!(
            batch,
            "route replace {range} via {via} proto {ROUTE_PROTOCOL} metric {ROUTE_METRIC}"
        );
    }
    for range in present.keys().filter(|range| !wanted.contains_key(range)) {
        let _ = writeln!(
            batch,
            "route del {range} proto {ROUTE_PROTOCOL} metric {ROUTE_METRIC}"
        );
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(cluster: &str, node: &str) -> Result<Range, String> {
        Range::new(cluster.parse().unwrap(), node.parse().unwrap())
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        for (cluster, node, works) in [
            ("10.244.0.0/16", "10.244.3.0/24", true),
            ("10.244.0.0/16", "10.244.3.0/29", true),
            ("10.244.0.0/16", "10.244.3.0/30", false),
            ("10.244.0.0/16", "10.245.3.0/24", false),
            ("fd00::/48", "fd00::/64", false),
        ] {
            assert_eq!(range(cluster, node).is_ok(), works, "{cluster} {node}");
        }
    }

    #[test]
    fn every_address_but_three_is_given_out_once() {
        let range = range("10.244.0.0/16", "10.244.3.0/28").unwrap();
        let mut used = HashSet::new();
        for number in 0.. {
            let uid = format!("pod-{number}");
            let Some(address) = range.pick(&uid, &used) else {
                break;
            };
            assert_eq!(range.pick(&uid, &used), Some(address), "the choice is stable");
            used.insert(address);
        }
        let expected: HashSet<Ipv4Addr> = (2..=14).map(|last| Ipv4Addr::new(10, 244, 3, last)).collect();
        assert_eq!(used, expected);
    }

    #[test]
    fn aliases_give_uid_and_address_back() {
        let address = Ipv4Addr::new(10, 244, 1, 9);
        let uid = "0f7c1e1e-8b1a-5d7e-9a51-0123456789ab";
        assert_eq!(
            parse_cable_alias(&cable_alias(uid, address)),
            Some((uid.to_owned(), address))
        );
        for foreign in [
            "",
            "uplink",
            "podman-swarm",
            "podman-swarm a/b 10.0.0.1",
            "podman-swarm a 10.0.0.1 c",
        ] {
            assert_eq!(parse_cable_alias(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(cable("0f7c1e1e-8b1a-5d7e-9a51-0123456789ab").len(), 15);
        for (uid, expected) in [
            ("a-1", true),
            ("", false),
            ("../x", false),
            ("a b", false),
            (&"a".repeat(65), false),
        ] {
            assert_eq!(is_uid(uid), expected, "{uid}");
        }
    }

    #[test]
    fn routes_change_only_where_they_differ() {
        let table = |pairs: &[(&str, &str)]| -> BTreeMap<Ipv4Net, Ipv4Addr> {
            pairs
                .iter()
                .map(|(range, via)| (range.parse().unwrap(), via.parse().unwrap()))
                .collect()
        };
        let wanted = table(&[("10.244.2.0/24", "192.0.2.2"), ("10.244.3.0/24", "192.0.2.3")]);
        assert_eq!(route_changes(&wanted, &wanted), "");
        assert_eq!(
            route_changes(
                &table(&[("10.244.2.0/24", "192.0.2.2"), ("10.244.9.0/24", "192.0.2.9")]),
                &wanted
            ),
            "route replace 10.244.3.0/24 via 192.0.2.3 proto 112 metric 112\nroute del 10.244.9.0/24 proto 112 metric 112\n"
        );
    }

    #[test]
    fn host_ports_at_an_address_of_the_other_family_lead_nowhere() {
        let port = |host_ip: Option<&str>| HostPort {
            protocol: Protocol::Udp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port: 53,
            container_port: 5353,
        };
        let pod = Ipv4Addr::new(10, 244, 1, 9);
        let add = |host_ip| HostPortEntry::new(&port(host_ip), pod).map(|entry| entry.add());
        assert_eq!(
            add(None).as_deref(),
            Some("add element ip podman_swarm host_ports { udp . 53 : 10.244.1.9 . 5353 }\n")
        );
        assert_eq!(add(Some("0.0.0.0")), add(None));
        assert_eq!(
            add(Some("192.0.2.7")).as_deref(),
            Some("add element ip podman_swarm host_ports_at { 192.0.2.7 . udp . 53 : 10.244.1.9 . 5353 }\n")
        );
        assert_eq!(add(Some("::1")), None);
    }
}
