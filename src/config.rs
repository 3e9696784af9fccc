//! The agent's flags, their variables and defaults, checked before anything is touched.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgAction, ArgMatches, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use schemas::names;
use tracing::level_filters::LevelFilter;

use crate::api::PlainHttp;
use crate::gitops;
use crate::gossip::{self, JoinToken};

/// Default of `--ingress-tls-port`.
pub const DEFAULT_INGRESS_TLS_PORT: u16 = 443;
/// Smallest and largest value of `--dns-ttl`, seconds (RFC 2181 allows 2^31 - 1; a day is as much as makes sense).
const DNS_TTL_SECONDS: std::ops::RangeInclusive<i64> = 0..=86_400;

/// The labels that every node gets from its agent.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
pub const OS_LABEL: &str = "kubernetes.io/os";
pub const ARCHITECTURE_LABEL: &str = "kubernetes.io/arch";
const AGENT_LABELS: [&str; 3] = [HOSTNAME_LABEL, OS_LABEL, ARCHITECTURE_LABEL];
/// Smallest value of `--gitops-interval`: a fetch takes about as long.
const MIN_GITOPS_INTERVAL: Duration = Duration::from_secs(1);
/// Smallest value of `--backup-interval` but 0: names of backups have seconds.
const MIN_BACKUP_INTERVAL: Duration = Duration::from_secs(1);
/// Values of `--backup-retention`; hourly ones of a year are as much as makes sense in one directory.
const BACKUP_RETENTION: std::ops::RangeInclusive<i64> = 1..=8_784;

/// Podman Swarm's agent: one on every machine of the cluster.
#[derive(Parser, Debug)]
#[command(name = "podman-swarm-agent", version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub flags: Flags,
}

/// Reads the command line and the variables that stand for flags; ends the process where they are wrong (code 2).
///
/// A variable that is empty counts as not set: compose files and unit files write `JOIN=` for "none".
pub fn parse_arguments<P: Parser>() -> P {
    let mut matches: ArgMatches = without_variables(P::command(), is_empty_variable).get_matches();
    P::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.format(&mut P::command()).exit())
}

/// Takes from flags the variables that `ignored` names.
fn without_variables(command: clap::Command, ignored: fn(&OsStr) -> bool) -> clap::Command {
    command.mut_args(|flag| match flag.get_env() {
        Some(name) if ignored(name) => flag.env(None::<&'static str>),
        _ => flag,
    })
}

fn is_empty_variable(name: &OsStr) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

/// The value of a variable, unless it is empty.
fn variable(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Command {
    /// Take this node out of its cluster for good: its pods move to other nodes, its data directory is set aside
    Leave,
    /// Verify the data directory of an agent that does not run, and change nothing
    Check,
    /// Print the key that opens this cluster's backups, as `age -d -i` and `psctl restore` read it
    BackupIdentity,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A `key=value` of `--node-labels`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeLabel(pub String, pub String);

impl FromStr for NodeLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or("expected key=value, for instance disk=ssd")?;
        if AGENT_LABELS.contains(&key) {
            return Err(format!("the agent sets {key} itself; choose another key"));
        }
        if let Some(rule) = names::qualified_name(key).or_else(|| names::label_value(value)) {
            return Err(rule);
        }
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

/// Parses a duration of a flag: `60s`, `1m30s`.
///
/// # Errors
/// What was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    schemas::time::parse_duration(text)
        .ok_or_else(|| "expected a duration, for instance 60s or 1m30s".to_owned())
}

fn parse_gitops_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        short if short < MIN_GITOPS_INTERVAL => Err("expected at least 1s".to_owned()),
        interval => Ok(interval),
    }
}

fn parse_backup_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval.is_zero() || interval >= MIN_BACKUP_INTERVAL => Ok(interval),
        _ => Err("expected 0 or at least 1s".to_owned()),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        Ok(0) | Err(_) => Err("expected a port from 1 to 65535".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let expected = |_| "expected an IP address of this machine, for instance 10.0.0.1".to_owned();
    text.parse().map_err(expected)
}

/// Others must know the port, so it is never one that the kernel picks.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("the port must be from 1 to 65535".to_owned()),
        Err(_) => Err("expected ADDRESS:PORT, as the default is".to_owned()),
    }
}

fn parse_join(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("expected host:port, for instance 10.0.0.1:7946")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let named = host.parse::<IpAddr>().is_ok() || names::dns_subdomain(&host.to_ascii_lowercase()).is_none();
    match port.parse::<u16>() {
        Ok(1..) if named => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err("expected host:port, for instance 10.0.0.1:7946".to_owned()),
    }
}

/// A level, or a filter of `target=level` parts; a bare word that is no level would silence everything.
fn parse_log_level(text: &str) -> Result<String, String> {
    // An empty word would parse, as no level at all.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let fine = text.split(',').all(|part| {
        part.rsplit_once('=')
            .map_or(is_level(part), |(_, level)| is_level(level))
    });
    if fine {
        Ok(text.to_owned())
    } else {
        Err("expected error, warn, info, debug, trace or off, or target=level".to_owned())
    }
}

fn parse_upstream(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| "expected address:port, for instance 8.8.8.8:53".to_owned())
}

fn parse_pod_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| "expected a range, for instance 10.244.0.0/16".to_owned())?;
    match net {
        IpNet::V4(net) if (8..=22).contains(&net.prefix_len()) => Ok(IpNet::V4(net.trunc())),
        IpNet::V4(_) => {
            Err("the prefix must be from /8 to /22, so that each node gets a /24 of it".to_owned())
        }
        IpNet::V6(_) => Err("only IPv4 ranges are supported".to_owned()),
    }
}

/// Flags of `podman-swarm-agent`. Every flag can also be given as a variable of the name shown.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address and port for gossip (UDP) and peers (TCP)
    #[arg(
        long,
        env = "BIND_ADDR",
        default_value = "0.0.0.0:7946",
        value_parser = parse_listen,
        value_name = "ADDR:PORT"
    )]
    pub bind_addr: SocketAddr,
    /// Address that the other nodes and users reach this node at [default: that of the default route]
    #[arg(long, env = "ADVERTISE_ADDR", value_parser = parse_address, value_name = "ADDR")]
    pub advertise_addr: Option<IpAddr>,
    /// Address and port of the API
    #[arg(
        long,
        env = "API_ADDR",
        default_value = "0.0.0.0:8080",
        value_parser = parse_listen,
        value_name = "ADDR:PORT"
    )]
    pub api_addr: SocketAddr,
    /// Podman's socket [default: unix:///run/podman/podman.sock, the user's own socket when not root]
    #[arg(long, env = "PODMAN_SOCKET", value_name = "URL")]
    pub podman_socket: Option<String>,
    /// Where the node keeps its state [default: /var/lib/podman-swarm, the XDG state folder when not root]
    #[arg(long, global = true, env = "DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Nodes of the cluster to join, any of them, comma-separated
    #[arg(long, env = "JOIN", value_delimiter = ',', value_parser = parse_join, value_name = "ADDR:PORT")]
    pub join: Vec<String>,
    /// The token to join with, from join.token in the data directory of any node
    #[arg(long, env = "JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub join_token: Option<String>,
    /// The cluster's key, 32 bytes in base64 [default: made by the first node, handed over at join]
    #[arg(long, env = "ENCRYPTION_KEY", hide_env_values = true, value_name = "KEY")]
    pub encryption_key: Option<String>,
    /// A certificate of your own for this node (PEM)
    #[arg(
        long,
        env = "TLS_CERT",
        requires = "tls_key",
        requires = "tls_ca",
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The CA that all nodes' certificates come from (PEM)
    #[arg(long, env = "TLS_CA", requires = "tls_cert", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Do not check names in certificates (the CA is always checked)
    #[arg(long, env = "TLS_SKIP_VERIFY", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL")]
    pub tls_skip_verify: bool,
    /// Port of the ingress
    #[arg(long, env = "INGRESS_PORT", default_value_t = 80, value_parser = parse_port, value_name = "PORT")]
    pub ingress_port: u16,
    /// Port of the ingress for TLS (not served yet)
    #[arg(long, env = "INGRESS_TLS_PORT", default_value_t = DEFAULT_INGRESS_TLS_PORT, value_parser = parse_port, value_name = "PORT")]
    pub ingress_tls_port: u16,
    /// Run the ingress on this node
    #[arg(long, env = "ENABLE_INGRESS", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL")]
    pub enable_ingress: bool,
    /// Port of the DNS server
    #[arg(long, env = "DNS_PORT", default_value_t = 53, value_parser = parse_port, value_name = "PORT")]
    pub dns_port: u16,
    /// Domain of the cluster's names
    #[arg(
        long,
        env = "CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub cluster_domain: String,
    /// Where names outside the cluster are looked up, comma-separated
    #[arg(long, env = "UPSTREAM_DNS", default_value = "8.8.8.8:53,8.8.4.4:53", value_delimiter = ',', value_parser = parse_upstream, value_name = "ADDR:PORT")]
    pub upstream_dns: Vec<SocketAddr>,
    /// How long clients may keep a name of the cluster, seconds
    #[arg(long, env = "DNS_TTL", default_value_t = 5, value_parser = clap::value_parser!(u32).range(DNS_TTL_SECONDS), value_name = "SECONDS")]
    pub dns_ttl: u32,
    /// Ask for a token at the API
    #[arg(long, env = "ENABLE_API_AUTH", default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set, value_name = "BOOL")]
    pub enable_api_auth: bool,
    /// Who may use plain HTTP at the API
    #[arg(long, env = "PLAIN_HTTP", default_value = "loopback", value_name = "WHO")]
    pub plain_http: PlainHttp,
    /// How long a stopped or crashed agent may be away before its pods are replaced
    #[arg(long, env = "RESTART_GRACE", default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub restart_grace: Duration,
    /// Range of the pods' addresses; each node takes a /24 of it; the same on all nodes
    #[arg(long, env = "POD_CIDR", default_value = "10.244.0.0/16", value_parser = parse_pod_cidr, value_name = "CIDR")]
    pub pod_cidr: IpNet,
    /// Labels of this node, comma-separated
    #[arg(long, env = "NODE_LABELS", value_delimiter = ',', value_name = "KEY=VALUE")]
    pub node_labels: Vec<NodeLabel>,
    /// Git repository that the cluster follows
    #[arg(long, env = "GITOPS_REPO", value_name = "URL")]
    pub gitops_repo: Option<String>,
    /// Branch to follow
    #[arg(long, env = "GITOPS_BRANCH", default_value = "main", value_name = "BRANCH")]
    pub gitops_branch: String,
    /// Folder of the repository that holds the manifests
    #[arg(long, env = "GITOPS_PATH", default_value = "./", value_name = "PATH")]
    pub gitops_path: String,
    /// How often to look for new commits
    #[arg(long, env = "GITOPS_INTERVAL", default_value = "1m", value_parser = parse_gitops_interval, value_name = "DURATION")]
    pub gitops_interval: Duration,
    /// How often to make a backup, in the folder backups of the data directory, when something changed; 0: never
    #[arg(long, env = "BACKUP_INTERVAL", default_value = "1h", value_parser = parse_backup_interval, value_name = "DURATION")]
    pub backup_interval: Duration,
    /// How many of these backups stay
    #[arg(long, env = "BACKUP_RETENTION", default_value_t = 24, value_parser = clap::value_parser!(u32).range(BACKUP_RETENTION), value_name = "NUMBER")]
    pub backup_retention: u32,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,podman_swarm::dns=debug
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = parse_log_level, value_name = "LEVEL")]
    pub log_level: String,
    /// How to log
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// The flags with every default resolved on this machine.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub host_name: String,
    pub advertise: IpAddr,
    pub podman_socket: PathBuf,
    pub data_dir: PathBuf,
    pub flags: Flags,
}

/// What the command line asks for, with what that needs resolved and no more.
#[derive(Debug)]
pub enum Task {
    Run(Box<Config>),
    /// What takes the data directory alone.
    Directory(Command, PathBuf),
}

impl Task {
    /// Resolves the defaults that depend on the machine.
    ///
    /// # Errors
    /// One sentence that names flag, value and remedy.
    pub fn resolve(cli: Cli) -> Result<Self> {
        match cli.command {
            Some(command) => Ok(Self::Directory(command, data_dir(&cli.flags)?)),
            None => Ok(Self::Run(Box::new(Config::resolve(cli.flags)?))),
        }
    }
}

impl Config {
    /// Resolves the defaults that depend on the machine.
    ///
    /// # Errors
    /// One sentence that names flag, value and remedy.
    pub fn resolve(flags: Flags) -> Result<Self> {
        let host_name = host_name();
        let node_name = match (&flags.node_name, &host_name) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => bail!("--node-name: the host name cannot be read; name the node yourself"),
        };
        if let Some(rule) = names::dns_subdomain(&node_name) {
            bail!("--node-name: invalid value {node_name:?}: {rule}; choose another with --node-name");
        }
        let podman_socket = match &flags.podman_socket {
            Some(url) => socket_path(url)?,
            None if is_root() => "/run/podman/podman.sock".into(),
            None => match variable("XDG_RUNTIME_DIR") {
                Some(directory) => PathBuf::from(directory).join("podman/podman.sock"),
                None => format!(
                    "/run/user/{}/podman/podman.sock",
                    rustix::process::getuid().as_raw()
                )
                .into(),
            },
        };
        let data_dir = data_dir(&flags)?;
        if flags.join_token.is_some() && flags.join.is_empty() {
            bail!(
                "--join-token: there is nobody to show it to; name a node of the cluster with --join=ADDR:7946"
            );
        }
        // A member needs no token: it is in its cluster already, and --join says nothing new.
        if !flags.join.is_empty() && flags.join_token.is_none() && !gossip::has_identity(&data_dir) {
            bail!(
                "--join-token: --join={} needs it; the file join.token in the data directory of any node of the cluster holds it",
                flags.join.join(",")
            );
        }
        // Not by clap, which would print the value.
        if let Some(Err(error)) = flags
            .join_token
            .as_deref()
            .map(|token| token.trim().parse::<JoinToken>())
        {
            bail!("--join-token: {error}");
        }
        if let Some(key) = &flags.encryption_key
            && STANDARD.decode(key.trim()).map_or(0, |key| key.len()) != 32
        {
            bail!(
                "--encryption-key: expected 32 bytes in base64, for instance from `openssl rand -base64 32`"
            );
        }
        if let Some(rule) = names::dns_subdomain(&flags.cluster_domain) {
            bail!(
                "--cluster-domain: invalid value {:?}: {rule}",
                flags.cluster_domain
            );
        }
        if let Some(repository) = &flags.gitops_repo {
            check_gitops(repository, &flags, &data_dir)?;
        }
        // Last: what is wrong with the machine is said when nothing is wrong with the values.
        let advertise = match flags.advertise_addr {
            Some(address) if address.is_unspecified() => {
                bail!(
                    "--advertise-addr: {address} is no address that others can reach; give the one of this machine"
                )
            }
            Some(address) => address,
            None => default_route_address().ok_or(NoDefaultRoute)?,
        };
        if flags.pod_cidr.contains(&advertise) {
            bail!(
                "--pod-cidr: {} holds {advertise}, this machine's own address (--advertise-addr); give a range that no network of the machines uses",
                flags.pod_cidr
            );
        }
        let host_name = host_name.unwrap_or_else(|| node_name.clone());
        Ok(Self {
            node_name,
            host_name,
            advertise,
            podman_socket,
            data_dir,
            flags,
        })
    }
}

fn check_gitops(repository: &str, flags: &Flags, data_dir: &Path) -> Result<()> {
    match gitops::Source::new(repository, &flags.gitops_branch, &flags.gitops_path, data_dir) {
        Ok(_) => Ok(()),
        // Its reason repeats the URL, which may hold a password.
        Err(gitops::ConfigError::Repository { .. }) => {
            let shown = if repository.contains('@') {
                "the value (not shown: it may hold a password)".to_owned()
            } else {
                format!("{repository:?}")
            };
            bail!(
                "--gitops-repo: {shown} is no URL or path of a repository; expected, for instance, \
                 https://example.com/manifests.git"
            )
        }
        Err(error @ (gitops::ConfigError::Branch(_) | gitops::ConfigError::Path(_))) => Err(error.into()),
    }
}

/// Where the node keeps its state: what `--data-dir` says, or the place that depends on who runs the agent.
fn data_dir(flags: &Flags) -> Result<PathBuf> {
    if let Some(directory) = &flags.data_dir {
        return Ok(directory.clone());
    }
    if is_root() {
        return Ok("/var/lib/podman-swarm".into());
    }
    match (variable("XDG_STATE_HOME"), variable("HOME")) {
        (Some(state), _) => Ok(PathBuf::from(state).join("podman-swarm")),
        (None, Some(home)) => Ok(PathBuf::from(home).join(".local/state/podman-swarm")),
        (None, None) => bail!("--data-dir: neither XDG_STATE_HOME nor HOME is set; name a directory"),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn socket_path(url: &str) -> Result<PathBuf> {
    let path = url.strip_prefix("unix://").unwrap_or(url);
    if !path.starts_with('/') {
        bail!("--podman-socket: invalid value {url:?}: expected unix:///path/of/the.sock");
    }
    Ok(path.into())
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?.to_ascii_lowercase();
    (!name.is_empty()).then_some(name)
}

/// There is no address to tell the others: the network may be on its way, so that another try makes sense.
#[derive(Debug, thiserror::Error)]
#[error("--advertise-addr: this machine has no default route to take the address from; give its address")]
pub struct NoDefaultRoute;

/// Returns the address that packets to the Internet would carry. Sends nothing: connecting a UDP socket only looks
/// up the route.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Flags, clap::Error> {
        Cli::try_parse_from([&["podman-swarm-agent"], arguments].concat()).map(|cli| cli.flags)
    }

    #[test]
    fn boolean_flags_take_three_forms() {
        for (argument, expected) in [
            ("--enable-api-auth", true),
            ("--enable-api-auth=true", true),
            ("--enable-api-auth=false", false),
        ] {
            assert_eq!(
                parse(&[argument]).unwrap().enable_api_auth,
                expected,
                "{argument}"
            );
        }
        assert!(parse(&[]).unwrap().enable_ingress);
        assert!(!parse(&[]).unwrap().tls_skip_verify);
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (argument, needle) in [
            ("--bind-addr=nowhere", "--bind-addr"),
            ("--dns-port=0", "--dns-port"),
            ("--pod-cidr=10.0.0.0/30", "/22"),
            ("--restart-grace=soon", "60s"),
            ("--node-labels=a", "key=value"),
            ("--enable-ingress=perhaps", "--enable-ingress"),
            ("--plain-http=some", "loopback"),
            ("--bind-addr=0.0.0.0:0", "--bind-addr"),
            ("--api-addr=0.0.0.0:0", "--api-addr"),
            ("--log-level=", "--log-level"),
            ("--log-level=info,podman_swarm=", "--log-level"),
            ("--gitops-interval=0s", "at least 1s"),
            ("--backup-interval=10ms", "0 or at least 1s"),
            ("--backup-retention=0", "--backup-retention"),
            ("--node-labels=kubernetes.io/hostname=x", "choose another key"),
        ] {
            let error = parse(&[argument]).unwrap_err().to_string();
            assert!(error.contains(needle), "{argument}: {error}");
        }
    }

    #[test]
    fn a_pod_range_that_holds_the_machine_is_refused() {
        let resolve = |advertise: &str| {
            Config::resolve(parse(&["--pod-cidr=10.0.0.0/16", "--node-name=a", advertise]).unwrap())
        };
        let error = resolve("--advertise-addr=10.0.3.4").unwrap_err().to_string();
        assert!(
            error.contains("--pod-cidr: 10.0.0.0/16 holds 10.0.3.4"),
            "{error}"
        );
        resolve("--advertise-addr=10.1.0.1").unwrap();
    }

    #[test]
    fn leaving_takes_the_data_directory_alone() {
        // Running would refuse this address.
        let arguments = ["agent", "--advertise-addr=0.0.0.0", "leave", "--data-dir=/data"];
        let task = Task::resolve(Cli::try_parse_from(arguments).unwrap()).unwrap();
        assert!(
            matches!(&task, Task::Directory(Command::Leave, directory) if directory == Path::new("/data")),
            "{task:?}"
        );
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_touched() {
        for (arguments, words) in [
            (
                &["--join=10.0.0.2:7946"][..],
                &["--join-token", "10.0.0.2:7946"][..],
            ),
            (&["--gitops-repo="], &["--gitops-repo: \"\" "]),
            (
                &["--gitops-repo=https://u:secret@"],
                &["--gitops-repo: ", "not shown"],
            ),
            (
                &["--gitops-repo=https://h/r", "--gitops-branch=a..b"],
                &["--gitops-branch", "a..b"],
            ),
            (
                &["--gitops-repo=https://h/r", "--gitops-path=../b"],
                &["--gitops-path", "../b"],
            ),
        ] {
            let usual = ["--advertise-addr=10.0.0.1", "--data-dir=/nonexistent"];
            let flags = parse(&[&usual, arguments].concat()).unwrap();
            let error = format!("{:#}", Config::resolve(flags).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_member_needs_no_token_to_start_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cluster.json"), "{}").unwrap();
        let data_dir = format!("--data-dir={}", directory.path().display());
        let arguments = ["--join=10.0.0.2:7946", "--advertise-addr=10.0.0.1", &data_dir];
        Config::resolve(parse(&arguments).unwrap()).unwrap();
    }

    #[test]
    fn an_ignored_variable_leaves_its_flag() {
        use clap::{CommandFactory, FromArgMatches};
        let ignored: fn(&OsStr) -> bool = |name| name == "JOIN";
        let command = without_variables(Cli::command(), ignored);
        let variables: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_env).collect();
        assert!(!variables.contains(&OsStr::new("JOIN")), "{variables:?}");
        assert!(variables.contains(&OsStr::new("DATA_DIR")), "{variables:?}");
        let matches = command
            .try_get_matches_from(["agent", "--join=10.0.0.2:7946"])
            .unwrap();
        let parsed = Cli::from_arg_matches(&matches).unwrap();
        assert_eq!(parsed.flags.join, ["10.0.0.2:7946"]);
    }

    #[test]
    fn a_token_without_a_node_to_join_is_refused() {
        let flags = parse(&["--join-token=PSWTKN-1-x", "--advertise-addr=10.0.0.1"]).unwrap();
        let error = Config::resolve(flags).unwrap_err().to_string();
        assert!(error.contains("--join="), "{error}");
    }
}
