//! The kernel's network state, read and changed through `ip` and `nft`: child processes with a time limit each.
//!
//! Decides nothing. A few milliseconds a call, against megabytes of netlink libraries.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use reconcilers::ports::PortError;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::os::fd::AsFd;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::plan::{
    ALIAS, BRIDGE, HostPortEntry, NAMESPACE_PREFIX, NAMESPACES, ROUTE_PROTOCOL, TABLE, parse_cable_alias,
};

/// These calls take milliseconds; a machine that needs longer than this is in trouble anyway.
const LIMIT: Duration = Duration::from_secs(10);

/// `f_type` of a namespace's file (linux/magic.h, NSFS_MAGIC). Another one: the file is left over from before a reboot.
const NAMESPACE_MAGIC: i64 = 0x6e73_6673;

/// Runs a program with a text as its input and returns its output.
pub(super) async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, PortError> {
    let failed = |message: String| PortError::Unavailable {
        operation: "change the pod network",
        message: format!("{program} {}: {message}", arguments.join(" ")),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // One that ends before it has read all says why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| failed(format!("not done after {} s", LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} ({})", reason.trim(), output.status)))
}

/// Runs commands of `ip`, up to the first that fails.
pub(super) async fn ip(batch: &str) -> Result<(), PortError> {
    run("ip", &["-batch", "-"], batch).await.map(drop)
}

/// Runs commands of `ip`, all of them; the error says which failed.
pub(super) async fn ip_all(batch: &str) -> Result<(), PortError> {
    run("ip", &["-force", "-batch", "-"], batch).await.map(drop)
}

/// Runs commands of `ip` in a pod's namespace.
pub(super) async fn ip_in(namespace: &str, batch: &str) -> Result<(), PortError> {
    run("ip", &["-n", namespace, "-batch", "-"], batch)
        .await
        .map(drop)
}

/// Runs commands of `nft` as one transaction.
pub(super) async fn nft(script: &str) -> Result<(), PortError> {
    run("nft", &["-f", "-"], script).await.map(drop)
}

/// Runs commands of `nft` in a pod's namespace as one transaction.
pub(super) async fn nft_in(namespace: &str, script: &str) -> Result<(), PortError> {
    let net = format!("--net={NAMESPACES}/{namespace}");
    run("nsenter", &[&net, "nft", "-f", "-"], script).await.map(drop)
}

async fn read<T: DeserializeOwned + Default>(program: &str, arguments: &[&str]) -> Result<T, PortError> {
    let text = run(program, arguments, "").await?;
    if text.trim().is_empty() {
        // How `ip -j` writes an empty list at times.
        return Ok(T::default());
    }
    serde_json::from_str(&text).map_err(|error| PortError::Unavailable {
        operation: "read the pod network",
        message: format!("{program} {}: {error}", arguments.join(" ")),
    })
}

/// Sets a parameter of the kernel (`net/ipv4/ip_forward`), for the namespace that this thread is in.
pub(super) fn set_parameter(name: &str, value: &str) -> Result<(), PortError> {
    std::fs::write(Path::new("/proc/sys").join(name), value).map_err(|error| PortError::Unavailable {
        operation: "set a kernel parameter",
        message: format!("{name}={value}: {error}"),
    })
}

/// Sets a parameter of the kernel for a pod's namespace, on a thread of its own that enters it.
pub(super) async fn set_parameter_in(
    namespace: &str,
    name: &'static str,
    value: &'static str,
) -> Result<(), PortError> {
    let path = namespace_path(namespace);
    let (done, result) = tokio::sync::oneshot::channel();
    let unavailable = |message: String| PortError::Unavailable {
        operation: "set a kernel parameter",
        message,
    };
    std::thread::Builder::new()
        .name("pod-namespace".into())
        .spawn(move || {
            let entered = File::open(&path).and_then(|file| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
            });
            let _ = done.send(match entered {
                Ok(()) => set_parameter(name, value),
                Err(error) => Err(unavailable(format!("{}: {error}", path.display()))),
            });
        })
        .map_err(|error| unavailable(error.to_string()))?;
    result
        .await
        .unwrap_or_else(|_| Err(unavailable("its thread ended".into())))
}

/// The path under which Podman joins a namespace.
pub(super) fn namespace_path(namespace: &str) -> PathBuf {
    Path::new(NAMESPACES).join(namespace)
}

/// Uids of the pods that have a namespace.
pub(super) fn namespaces() -> HashSet<String> {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else {
        // Nobody has made one yet.
        return HashSet::new();
    };
    entries
        .flatten()
        .filter(|entry| is_namespace(&entry.path()))
        .filter_map(|entry| {
            let name = entry.file_name();
            Some(name.to_str()?.strip_prefix(NAMESPACE_PREFIX)?.to_owned())
        })
        .collect()
}

pub(super) fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NAMESPACE_MAGIC)
}

#[derive(Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    ifalias: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    family: String,
    local: String,
    prefixlen: u8,
}

/// Tells whether the node has an interface of this name.
pub(super) fn has_link(name: &str) -> bool {
    // Unlike /sys/class/net, always about the namespace that we are in.
    Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// What the bridge is, if there is one.
pub(super) struct Bridge {
    pub(super) is_ours: bool,
    /// Its addresses with their ranges: more than one while pods of a former range run.
    pub(super) addresses: Vec<(Ipv4Addr, Ipv4Net)>,
}

/// Looks for the bridge.
pub(super) async fn bridge() -> Result<Option<Bridge>, PortError> {
    if !has_link(BRIDGE) {
        return Ok(None);
    }
    // Without `-d` the alias is left out.
    let links: Vec<Link> = read("ip", &["-d", "-j", "addr", "show", "dev", BRIDGE]).await?;
    Ok(links
        .into_iter()
        .find(|link| link.ifname == BRIDGE)
        .map(|link| Bridge {
            is_ours: link.ifalias == ALIAS,
            addresses: link
                .addr_info
                .iter()
                .filter(|address| address.family == "inet")
                .filter_map(|address| {
                    let local: Ipv4Addr = address.local.parse().ok()?;
                    Some((local, Ipv4Net::new(local, address.prefixlen).ok()?.trunc()))
                })
                .collect(),
        }))
}

/// Reads which pod has which address, from the cables in the bridge.
pub(super) async fn cables() -> Result<HashMap<String, Ipv4Addr>, PortError> {
    if !has_link(BRIDGE) {
        return Ok(HashMap::new());
    }
    let links: Vec<Link> = read("ip", &["-j", "link", "show", "master", BRIDGE]).await?;
    Ok(links
        .iter()
        .filter_map(|link| parse_cable_alias(&link.ifalias))
        .collect())
}

#[derive(Deserialize)]
struct Route {
    dst: String,
    #[serde(default)]
    gateway: String,
}

/// Reads our routes.
pub(super) async fn routes() -> Result<BTreeMap<Ipv4Net, Ipv4Addr>, PortError> {
    let protocol = ROUTE_PROTOCOL.to_string();
    let routes: Vec<Route> = read("ip", &["-j", "-4", "route", "show", "proto", &protocol]).await?;
    Ok(routes
        .iter()
        .filter_map(|route| {
            // A single address is written without its length.
            let range = route
                .dst
                .parse()
                .or_else(|_| format!("{}/32", route.dst).parse())
                .ok()?;
            // One whose gateway we cannot read is not what is wanted, and replaced.
            Some((range, route.gateway.parse().unwrap_or(Ipv4Addr::UNSPECIFIED)))
        })
        .collect())
}

/// Reads the host ports that lead to a pod.
pub(super) async fn host_ports(pod: Ipv4Addr) -> Result<Vec<HostPortEntry>, PortError> {
    let mut entries = Vec::new();
    for map in ["host_ports", "host_ports_at"] {
        let listing: Value = match read("nft", &["-j", "list", "map", "ip", TABLE, map]).await {
            Ok(listing) => listing,
            // No table yet: nothing leads anywhere.
            Err(PortError::Unavailable { message, .. }) if message.contains("No such file") => continue,
            Err(error) => return Err(error),
        };
        entries.extend(
            parse_host_ports(&listing, map)
                .into_iter()
                .filter(|entry| entry.to == pod),
        );
    }
    Ok(entries)
}

/// Reads `nft -j list map`: `{"nftables": [.., {"map": {"elem": [[{"concat": KEY}, {"concat": [ADDRESS, PORT]}], ..]}}]}`.
fn parse_host_ports(listing: &Value, map: &'static str) -> Vec<HostPortEntry> {
    let concatenation = |value: &Value| -> Option<Vec<String>> {
        value["concat"].as_array().map(|parts| {
            parts
                .iter()
                .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                .collect()
        })
    };
    let objects = listing["nftables"].as_array().into_iter().flatten();
    objects
        .filter_map(|object| object["map"]["elem"].as_array())
        .flatten()
        .filter_map(|element| {
            let key = concatenation(&element[0])?.join(" . ");
            let value = concatenation(&element[1])?;
            Some(HostPortEntry {
                map,
                key,
                to: value.first()?.parse().ok()?,
                to_port: value.get(1)?.parse().ok()?,
            })
        })
        .collect()
}

/// Lets forwarded packets of the bridge through where another program's firewall drops all that it has no rule for (Docker sets the
/// policy of FORWARD so): an accept in a table of our own would not count. Adds two rules with our name to that chain, by its own
/// program, or changes nothing.
pub(super) async fn allow_forwarding() -> Result<(), PortError> {
    // An absent chain is an error, and the usual case.
    let Ok(listing) = read::<Value>("nft", &["-j", "list", "chain", "ip", "filter", "FORWARD"]).await else {
        return Ok(());
    };
    let mut objects = listing["nftables"].as_array().into_iter().flatten();
    if !objects.any(|object| object["chain"]["policy"] == "drop") {
        return Ok(());
    }
    for direction in ["-i", "-o"] {
        if run("iptables", &forward_rule("-C", direction), "").await.is_err() {
            run("iptables", &forward_rule("-I", direction), "").await?;
        }
    }
    Ok(())
}

/// Takes back what [`allow_forwarding`] added, if it did.
pub(super) async fn forget_forwarding() {
    for direction in ["-i", "-o"] {
        // Where there is no such rule, or no iptables, there is nothing to take back.
        let _ = run("iptables", &forward_rule("-D", direction), "").await;
    }
}

fn forward_rule(command: &'static str, direction: &'static str) -> [&'static str; 11] {
    [
        "-w",
        command,
        "FORWARD",
        direction,
        BRIDGE,
        "-m",
        "comment",
        "--comment",
        ALIAS,
        "-j",
        "ACCEPT",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_read_back() {
        let listing = serde_json::json!({"nftables": [{"metainfo": {}}, {"map": {"name": "host_ports",
            "elem": [[{"concat": ["tcp", 80]}, {"concat": ["10.244.1.5", 8080]}]]}}]});
        assert_eq!(
            parse_host_ports(&listing, "host_ports"),
            [HostPortEntry {
                map: "host_ports",
                key: "tcp . 80".into(),
                to: Ipv4Addr::new(10, 244, 1, 5),
                to_port: 8080
            }]
        );
        assert_eq!(
            parse_host_ports(&serde_json::json!({"nftables": [{"map": {}}]}), "host_ports"),
            []
        );
    }
}
