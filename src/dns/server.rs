//! [`Dns`]: the entry point. Owns the listeners, whose set can change while it runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hickory_server::Server;
use reconcilers::ports::{DnsWhitelist, Zone, ZoneSink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;

use super::forward::Forwarder;
use super::handler::{Authority, Handler};
use super::tcp;
use super::zone::PreparedZone;

/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 256;

/// Between two tries to listen; it doubles.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// Whoever frees the port waits no longer than this for us to take it.
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a DNS server is to be set up.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// `--upstream-dns`; empty: names of others fail.
    pub upstreams: Vec<SocketAddr>,
    /// `--dns-ttl`, of all records of the zone and of negative answers.
    pub ttl_seconds: u32,
}

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the servers of --upstream-dns: {0}")]
    Upstreams(String),
}

/// Addresses that could not be listened on; all others of the set are served.
#[derive(Debug, thiserror::Error)]
#[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ListenError {
    pub failures: Vec<BindError>,
}

/// Why one address could not be listened on, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve DNS on {address} ({protocol}): {reason}")]
pub struct BindError {
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    /// What is wrong and what to do, in words.
    reason: String,
    pub kind: io::ErrorKind,
}

/// The DNS server of this node. Dropping it closes all listeners.
pub struct Dns {
    sink: Arc<Sink>,
    listeners: AsyncMutex<BTreeMap<SocketAddr, Listener>>,
}

/// Both sockets of one address, each served by tasks that end when it is dropped; so each address can go by itself.
struct Listener {
    udp: Server<Handler>,
    tcp: JoinSet<()>,
}

impl Dns {
    /// Makes a server without listeners, whose answers fail until zone and whitelist come; see [`Dns::listen`] and [`Dns::sink`].
    ///
    /// # Errors
    /// The upstreams cannot be used.
    pub fn start(config: DnsConfig) -> Result<Dns, StartError> {
        let authority = Arc::new(Authority {
            zone: ArcSwapOption::empty(),
            forwarder: Forwarder::new(&config.upstreams)?,
        });
        let source = Mutex::new(ZoneSource {
            zone: None,
            name_servers: Vec::new(),
            serial: 1,
        });
        Ok(Dns {
            sink: Arc::new(Sink {
                authority,
                source,
                ttl_seconds: config.ttl_seconds,
            }),
            listeners: AsyncMutex::default(),
        })
    }

    /// Where the zone and the whitelist go.
    pub fn sink(&self) -> Arc<dyn ZoneSink> {
        self.sink.clone()
    }

    /// Replaces the set of addresses served, over UDP and TCP. What is served already stays untouched; an address that
    /// this machine does not have (yet) can be listened on. Call again to retry what failed.
    ///
    /// # Errors
    /// The addresses that could not be bound; the others are served.
    pub async fn listen(&self, addresses: Vec<SocketAddr>) -> Result<(), ListenError> {
        let mut listeners = self.listeners.lock().await;
        for (_, listener) in listeners.extract_if(.., |address, _| !addresses.contains(address)) {
            close(listener).await;
        }
        let mut failures = Vec::new();
        for address in addresses {
            if listeners.contains_key(&address) {
                continue;
            }
            match bind(address) {
                Ok((udp, tcp)) => {
                    let handler = Handler(self.sink.authority.clone());
                    let mut listener = Listener {
                        udp: Server::new(handler.clone()),
                        tcp: JoinSet::new(),
                    };
                    listener.udp.register_socket(udp);
                    listener.tcp.spawn(tcp::serve(tcp, handler));
                    listeners.insert(address, listener);
                    tracing::info!(%address, "serving DNS");
                }
                Err(error) => failures.push(error),
            }
        }
        let reachable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let name_servers = listeners.keys().map(SocketAddr::ip).filter(reachable).collect();
        self.sink.change(|source| source.name_servers = name_servers);
        if failures.is_empty() {
            Ok(())
        } else {
            Err(ListenError { failures })
        }
    }

    /// Listens as [`Dns::listen`], and tries again what failed until all addresses are served. Dropping it leaves those that are.
    pub async fn listen_until_bound(&self, addresses: Vec<SocketAddr>) {
        let mut pause = LISTEN_PAUSE;
        while let Err(error) = self.listen(addresses.clone()).await {
            tracing::error!(%error, "not everybody can resolve names here, will retry");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LISTEN_PAUSE_MAX);
        }
    }

    /// Closes all listeners.
    pub async fn stop(&self) {
        for (_, listener) in std::mem::take(&mut *self.listeners.lock().await) {
            close(listener).await;
        }
    }
}

/// Closes the sockets of an address; when this returns, it can be bound again.
async fn close(mut listener: Listener) {
    listener.tcp.shutdown().await;
    if let Err(error) = listener.udp.shutdown_gracefully().await {
        tracing::debug!(%error, "DNS listener ended with an error");
    }
}

/// What the prepared zone is made of; it is made anew when any of it changes.
struct ZoneSource {
    zone: Option<Zone>,
    name_servers: Vec<IpAddr>,
    serial: u32,
}

struct Sink {
    authority: Arc<Authority>,
    source: Mutex<ZoneSource>,
    ttl_seconds: u32,
}

impl Sink {
    fn change(&self, change: impl FnOnce(&mut ZoneSource)) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut source);
        source.serial = source.serial.wrapping_add(1);
        let prepare = |zone| {
            let name_servers = source.name_servers.clone();
            Arc::new(PreparedZone::new(
                zone,
                name_servers,
                self.ttl_seconds,
                source.serial,
            ))
        };
        self.authority.zone.store(source.zone.as_ref().map(prepare));
    }
}

impl ZoneSink for Sink {
    fn set_zone(&self, zone: Zone) {
        self.change(|source| source.zone = Some(zone));
    }

    fn set_whitelist(&self, whitelist: DnsWhitelist) {
        self.authority.forwarder.set_whitelist(&whitelist);
    }
}

/// Binds both sockets of an address.
fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let explain = |protocol: &'static str| {
        move |error: io::Error| BindError {
            address,
            protocol,
            reason: remedy(address, &error),
            kind: error.kind(),
        }
    };
    let udp = bind_udp(address).map_err(explain("UDP"))?;
    let tcp = bind_tcp(address).map_err(explain("TCP"))?;
    Ok((udp, tcp))
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, SocketType::DGRAM)?;
    rustix::net::bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, SocketType::STREAM)?;
    // Connections of an agent that stopped a moment ago must not keep the next one from the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, TCP_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Makes a socket that may be bound to an address which is not there yet: the pod network's gateway comes with the first
/// pod, and goes.
fn socket(address: SocketAddr, kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
        }
    }
    Ok(socket)
}

/// Says what is wrong with an address, and what to do about it.
fn remedy(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has this port (`ss -lnptu 'sport = :{port}'` shows it; often dnsmasq, aardvark-dns, or \
             systemd-resolved, which by default holds 127.0.0.53 only): stop it there, or choose another --dns-port"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: choose a --dns-port above 1023, or set \
             `sysctl net.ipv4.ip_unprivileged_port_start={port}`"
        ),
        _ => error.to_string(),
    }
}
