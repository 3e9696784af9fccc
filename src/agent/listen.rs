//! Taking ports, and what to do about one that cannot be had.

use std::io;
use std::net::SocketAddr;

use anyhow::anyhow;
use tokio::net::TcpSocket;

use crate::gossip;

/// Takes the API's port.
///
/// # Errors
/// One sentence that names flag, address and remedy.
pub(super) fn bind_api(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // A restarted agent must not wait for the connections of the last one to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bind().map_err(|error| refused("--api-addr", "TCP", address, &error))
}

/// Takes the peer port.
///
/// # Errors
/// One sentence that names flag, address and remedy.
pub(super) async fn bind_peers(address: SocketAddr) -> anyhow::Result<gossip::Sockets> {
    gossip::Sockets::bind(address).await.map_err(|error| match error {
        gossip::Error::Bind {
            address,
            protocol,
            source,
        } => refused("--bind-addr", protocol, address, &source),
        other => other.into(),
    })
}

fn refused(flag: &str, protocol: &str, address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let (ip, port) = (address.ip(), address.port());
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program has this port (`ss -lnptu 'sport = :{port}'` shows it; perhaps another agent): stop it, or \
                 choose another port"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{ip} is no address of this machine (`ip address` shows them): give one that is, or 0.0.0.0 for all"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "ports below 1024 need root or CAP_NET_BIND_SERVICE: choose one above 1023, or set \
                 `sysctl net.ipv4.ip_unprivileged_port_start={port}`"
            )
        }
        _ => error.to_string(),
    };
    anyhow!("{flag}: cannot listen on {protocol} {address}: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_refusal_has_its_own_remedy() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (address, remedy) in [
            (taken.local_addr().unwrap(), "choose another port"),
            // TEST-NET-1 (RFC 5737): nobody's.
            (([192, 0, 2, 1], 7946).into(), "no address of this machine"),
        ] {
            let api = bind_api(address).err().unwrap().to_string();
            let peers = bind_peers(address).await.err().unwrap().to_string();
            for (flag, error) in [("--api-addr", api), ("--bind-addr", peers)] {
                let words = [flag, &address.to_string(), remedy];
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
            }
        }
        let forbidden = io::ErrorKind::PermissionDenied.into();
        let error = refused("--api-addr", "TCP", ([0, 0, 0, 0], 80).into(), &forbidden).to_string();
        assert!(error.contains("need root"), "{error}");
    }
}
