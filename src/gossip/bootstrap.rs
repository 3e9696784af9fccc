//! From flags and a data directory to [`Credentials`]: use what is there, else join, else create a cluster.
//!
//! Comes before the store, which needs the cluster's and the node's identity to open. Every order of crash and restart
//! leads on: `cluster.json` is written last, and joining twice with one key is one admission.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemas::hex;
use store::NodeId;
use tokio::net::{TcpListener, UdpSocket};
use tracing::info;

use super::certificates::{self, Names};
use super::credentials::{
    AUTHORITY, AUTHORITY_KEY, Authority, CLUSTER, ClusterKey, Credentials, ENCRYPTION_KEY, NODE_CERTIFICATE,
    NODE_KEY, Remembered, TOKEN, parse_certificates, parse_key, pem,
};
use super::error::Error;
use super::token::JoinToken;
use super::{files, join};

/// How this node takes part in a cluster; the flags of the agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--data-dir`; must exist.
    pub data_dir: PathBuf,
    /// The address and port that others reach this node's peer port at (`--advertise-addr`).
    pub advertise: SocketAddr,
    /// `--node-name`.
    pub node_name: String,
    /// The host's name, for certificates.
    pub host_name: String,
    /// `--join`: `host:port` of members, tried in turn.
    pub join: Vec<String>,
    /// `--join-token`.
    pub join_token: Option<String>,
    /// `--encryption-key`: base64 of 32 bytes.
    pub encryption_key: Option<String>,
    /// `--tls-cert`, `--tls-key`, `--tls-ca`.
    pub tls: Option<UserTls>,
    /// `--tls-skip-verify`: names in certificates are not checked. The CA and identities are.
    pub tls_skip_verify: bool,
    /// `--pod-cidr`: nodes get their pod ranges from here.
    pub pod_cidr: IpNet,
    /// `--restart-grace`: an agent that is away for longer counts as dead with its containers.
    pub restart_grace: Duration,
}

/// Certificates that the user brings; the cluster then issues none.
#[derive(Clone, Debug)]
pub struct UserTls {
    /// Certificate, and intermediate ones if there are.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// One certificate: the CA of all nodes.
    pub authority: PathBuf,
}

impl Config {
    pub(super) fn names(&self) -> Names {
        Names {
            node_name: self.node_name.clone(),
            host_name: self.host_name.clone(),
            address: self.advertise.ip(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }
}

/// The peer port, TCP and UDP. Bound before anything else, so that a port in use is the first thing told.
pub struct Sockets {
    pub(super) tcp: TcpListener,
    pub(super) udp: UdpSocket,
}

impl Sockets {
    /// Binds both. Port 0 takes a free one, the same for both.
    ///
    /// # Errors
    /// [`Error::Bind`], naming the address.
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        /// With port 0, the port that TCP got may be taken for UDP.
        const ATTEMPTS: u32 = 16;
        let failed = |protocol| {
            move |source| Error::Bind {
                address,
                protocol,
                source,
            }
        };
        let mut attempt = 1;
        loop {
            let tcp = TcpListener::bind(address).await.map_err(failed("TCP"))?;
            let local = tcp.local_addr().map_err(failed("TCP"))?;
            match UdpSocket::bind(local).await {
                Ok(udp) => return Ok(Self { tcp, udp }),
                Err(_) if address.port() == 0 && attempt < ATTEMPTS => attempt += 1,
                Err(source) => return Err(failed("UDP")(source)),
            }
        }
    }

    /// The address that is bound, with its real port.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Loads, obtains by joining, or creates this node's credentials.
///
/// Waits while no member answers; dropping it is safe at any time.
///
/// # Errors
/// A flag cannot be used, the directory is damaged or not writable, or the cluster refuses this node.
pub async fn bootstrap(config: &Config) -> Result<Credentials, Error> {
    let given_key = config
        .encryption_key
        .as_deref()
        .map(|text| {
            ClusterKey::parse(text).ok_or_else(|| Error::Flag {
                flag: "--encryption-key",
                reason: "it must be 32 bytes in base64".into(),
            })
        })
        .transpose()?;
    let own = config.tls.as_ref().map(OwnTls::load).transpose()?;
    if let Some(remembered) = Remembered::load(&config.data_dir)? {
        info!(
            cluster = remembered.cluster_id,
            node = %remembered.node,
            "using the data directory of a member"
        );
        return load(config, remembered, given_key, own);
    }
    if !config.join.is_empty() {
        return join_cluster(config, given_key, own).await;
    }
    create(config, given_key, own)
}

/// The files that make a directory a member's, the one that says so last: without it the others are nobody's.
pub const IDENTITY: [&str; 7] = [
    NODE_CERTIFICATE,
    NODE_KEY,
    AUTHORITY_KEY,
    AUTHORITY,
    ENCRYPTION_KEY,
    TOKEN,
    CLUSTER,
];

/// Tells whether a data directory belongs to a member of a cluster.
pub fn has_identity(data_dir: &Path) -> bool {
    data_dir.join(CLUSTER).exists()
}

/// What `--tls-*` name.
struct OwnTls {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
    node: NodeId,
}

impl OwnTls {
    fn load(paths: &UserTls) -> Result<Self, Error> {
        let certificates = |flag, path: &Path| {
            let parsed = files::require(path).and_then(|text| parse_certificates(path, &text));
            parsed.map_err(|error| of_flag(flag, error))
        };
        let mut chain = certificates("--tls-cert", &paths.certificate)?;
        let key = files::require(&paths.key)
            .and_then(|text| parse_key(&paths.key, &text))
            .map_err(|error| of_flag("--tls-key", error))?;
        let mut authorities = certificates("--tls-ca", &paths.authority)?;
        let (Some(authority), true) = (authorities.pop(), authorities.is_empty()) else {
            return Err(Error::Flag {
                flag: "--tls-ca",
                reason: "it must hold exactly one certificate, which join tokens then name".into(),
            });
        };
        let node = chain
            .first()
            .and_then(certificates::node_id)
            .ok_or_else(|| Error::Damaged {
                path: paths.certificate.clone(),
                reason: "it holds no certificate".into(),
            })?;
        // Joiners find the CA that the token names in the chain.
        if !chain.contains(&authority) {
            chain.push(authority.clone());
        }
        Ok(Self {
            chain,
            key,
            authority,
            node,
        })
    }
}

/// Says of a file that the user brings which flag names it, and what is expected there.
fn of_flag(flag: &'static str, error: Error) -> Error {
    let reason = match error {
        Error::File { path, source, .. } => format!(
            "cannot read {}: {source}; name a PEM file that the agent may read",
            path.display()
        ),
        Error::Damaged { path, reason } => {
            format!("cannot use {}: {reason}; name a PEM file", path.display())
        }
        other => return other,
    };
    Error::Flag { flag, reason }
}

/// This node's key pair: the saved one, or a new one, saved before it is used.
fn node_key(config: &Config) -> Result<KeyPair, Error> {
    let path = config.path(NODE_KEY);
    if let Some(text) = files::read(&path)? {
        return KeyPair::from_pem(&text).map_err(|error| Error::Damaged {
            path,
            reason: error.to_string(),
        });
    }
    let key = KeyPair::generate()?;
    files::write(&path, &key.serialize_pem())?;
    Ok(key)
}

fn load(
    config: &Config,
    remembered: Remembered,
    given_key: Option<ClusterKey>,
    own: Option<OwnTls>,
) -> Result<Credentials, Error> {
    let damaged = |name: &str, reason: &str| Error::Damaged {
        path: config.path(name),
        reason: reason.to_owned(),
    };
    let cluster_key = ClusterKey::parse(&files::require(&config.path(ENCRYPTION_KEY))?)
        .ok_or_else(|| damaged(ENCRYPTION_KEY, "it must hold 32 bytes in base64"))?;
    if given_key.is_some_and(|given| given != cluster_key) {
        return Err(Error::Flag {
            flag: "--encryption-key",
            reason: format!(
                "it is not the key of the cluster that {} belongs to",
                config.data_dir.display()
            ),
        });
    }
    let join_token: JoinToken = files::require(&config.path(TOKEN))?
        .parse()
        .map_err(|_| damaged(TOKEN, "it holds no join token"))?;
    let authority_path = config.path(AUTHORITY);
    let authority = parse_certificates(&authority_path, &files::require(&authority_path)?)?
        .into_iter()
        .next()
        .ok_or_else(|| damaged(AUTHORITY, "it holds no certificate"))?;
    let authority_key = files::read(&config.path(AUTHORITY_KEY))?
        .map(|text| KeyPair::from_pem(&text).map_err(|error| damaged(AUTHORITY_KEY, &error.to_string())))
        .transpose()?;

    let (node, chain, key) = match own {
        Some(own) => {
            if own.authority != authority {
                return Err(Error::Flag {
                    flag: "--tls-ca",
                    reason: "it is not the CA of this node's cluster".into(),
                });
            }
            (own.node, own.chain, own.key)
        }
        None => {
            let key = node_key(config)?;
            let path = config.path(NODE_CERTIFICATE);
            let saved = files::read(&path)?
                .map(|text| parse_certificates(&path, &text))
                .transpose()?
                .and_then(|list| list.into_iter().next());
            let now = SystemTime::now();
            let certificate = match (saved, &authority_key) {
                (Some(saved), _) if certificates::is_current(&saved, &config.names(), now) => saved,
                (_, Some(authority_key)) => {
                    let issued = certificates::issue(&key, &config.names(), &authority, authority_key, now)?;
                    files::write(&path, &pem("CERTIFICATE", &issued))?;
                    issued
                }
                // The cluster's certificates are the users', and this node was started without its own.
                (_, None) => {
                    return Err(Error::Flag {
                        flag: "--tls-cert",
                        reason: "the nodes of this cluster bring their own certificates".into(),
                    });
                }
            };
            let node = certificates::node_id_of_key(&key.subject_public_key_info());
            let key = parse_key(&config.path(NODE_KEY), &key.serialize_pem())?;
            (node, vec![certificate, authority.clone()], key)
        }
    };
    if node != remembered.node {
        return Err(damaged(
            CLUSTER,
            "it belongs to another private key than this node has (node.key or --tls-key)",
        ));
    }
    Ok(Credentials {
        directory: config.data_dir.clone(),
        remembered,
        cluster_key,
        authority: Authority {
            certificate: authority,
            key: authority_key,
        },
        join_token,
        chain,
        key,
    })
}

/// What is saved of a membership, whether it was created or granted.
struct Membership {
    remembered: Remembered,
    cluster_key: ClusterKey,
    join_token: JoinToken,
    authority: Authority,
    /// None where the user brings it.
    certificate: Option<CertificateDer<'static>>,
}

impl Membership {
    fn save(&self, config: &Config) -> Result<(), Error> {
        files::write(
            &config.path(AUTHORITY),
            &pem("CERTIFICATE", &self.authority.certificate),
        )?;
        match &self.authority.key {
            Some(key) => files::write(&config.path(AUTHORITY_KEY), &key.serialize_pem())?,
            None => files::remove(&config.path(AUTHORITY_KEY))?,
        }
        if let Some(certificate) = &self.certificate {
            files::write(&config.path(NODE_CERTIFICATE), &pem("CERTIFICATE", certificate))?;
        }
        files::write(
            &config.path(ENCRYPTION_KEY),
            &format!("{}\n", self.cluster_key.to_text()),
        )?;
        files::write(&config.path(TOKEN), &format!("{}\n", self.join_token))?;
        self.remembered.save(&config.data_dir)
    }
}

fn create(config: &Config, given_key: Option<ClusterKey>, own: Option<OwnTls>) -> Result<Credentials, Error> {
    use rand::RngExt;
    let cluster_id = hex(&rand::rng().random::<[u8; 16]>());
    let now = SystemTime::now();
    let (node, authority, certificate) = match &own {
        Some(own) => (
            own.node.clone(),
            Authority {
                certificate: own.authority.clone(),
                key: None,
            },
            None,
        ),
        None => {
            let key = node_key(config)?;
            let (authority, authority_key) = certificates::new_authority(&cluster_id, now)?;
            let certificate =
                certificates::issue(&key, &config.names(), authority.der(), &authority_key, now)?;
            (
                certificates::node_id_of_key(&key.subject_public_key_info()),
                Authority {
                    certificate: authority.der().clone(),
                    key: Some(authority_key),
                },
                Some(certificate),
            )
        }
    };
    let membership = Membership {
        remembered: Remembered::new(cluster_id, node, true),
        cluster_key: given_key.unwrap_or_else(ClusterKey::generate),
        join_token: JoinToken::generate(&certificates::digest(&authority.certificate)),
        authority,
        certificate,
    };
    membership.save(config)?;
    info!(
        cluster = membership.remembered.cluster_id,
        node = %membership.remembered.node,
        token_file = %config.path(TOKEN).display(),
        "created a cluster"
    );
    load(config, membership.remembered, None, own)
}

async fn join_cluster(
    config: &Config,
    given_key: Option<ClusterKey>,
    own: Option<OwnTls>,
) -> Result<Credentials, Error> {
    let token: JoinToken = match &config.join_token {
        Some(text) => text.parse()?,
        None => {
            return Err(Error::Flag {
                flag: "--join-token",
                reason: "--join needs it; the file join.token on every node of the cluster holds it".into(),
            });
        }
    };
    if let Some(own) = &own
        && certificates::digest(&own.authority) != token.authority_digest
    {
        return Err(Error::Flag {
            flag: "--tls-ca",
            reason: "it is not the CA that the join token names".into(),
        });
    }
    let key = own.is_none().then(|| node_key(config)).transpose()?;
    let request = join::JoinRequest {
        protocol: join::PROTOCOL,
        store_protocol: store::PROTOCOL,
        certificate_request: key.as_ref().map(certificates::request).transpose()?,
        node_name: config.node_name.clone(),
        host_name: config.host_name.clone(),
        address: config.advertise.ip(),
        gossip_port: config.advertise.port(),
        key_fingerprint: given_key.as_ref().map(ClusterKey::fingerprint),
        pod_cidr: config.pod_cidr,
    };
    let tls = super::tls::join_client(
        &token.authority_digest,
        config.tls_skip_verify,
        own.as_ref().map(|own| (own.chain.clone(), own.key.clone_key())),
    )?;
    let answer = join::join(&config.join, &token, tls, &request).await?;

    let node = match (&own, &key) {
        (Some(own), _) => own.node.clone(),
        (None, Some(key)) => certificates::node_id_of_key(&key.subject_public_key_info()),
        (None, None) => unreachable!("a key is made where no certificate is brought"),
    };
    let granted = answer.into_grant(&token)?;
    let mut remembered = Remembered::new(granted.cluster_id, node, false);
    remembered.peers = granted.members;
    remembered.peers.remove(&remembered.node);
    let membership = Membership {
        remembered,
        cluster_key: granted.cluster_key,
        join_token: granted.join_token,
        authority: Authority {
            certificate: granted.authority,
            key: granted.authority_key,
        },
        certificate: granted.certificate,
    };
    membership.save(config)?;
    info!(
        cluster = membership.remembered.cluster_id,
        node = %membership.remembered.node,
        peers = membership.remembered.peers.len(),
        "joined the cluster"
    );
    load(config, membership.remembered, given_key, own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> Config {
        Config {
            data_dir: directory.to_owned(),
            advertise: ([127, 0, 0, 1], 7946).into(),
            node_name: "node1".into(),
            host_name: "host1".into(),
            join: Vec::new(),
            join_token: None,
            encryption_key: None,
            tls: None,
            tls_skip_verify: false,
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            restart_grace: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn a_created_cluster_is_found_again_under_the_same_identity() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let first = bootstrap(&config).await.unwrap();
        let again = bootstrap(&config).await.unwrap();
        assert_eq!(first.node(), again.node());
        assert_eq!(first.cluster_id(), again.cluster_id());
        assert_eq!(first.seal_key(), again.seal_key());
        assert_eq!(first.chain, again.chain);
        again.api_tls().unwrap();

        let renamed = Config {
            node_name: "node2".into(),
            ..config.clone()
        };
        let renamed = bootstrap(&renamed).await.unwrap();
        assert_eq!(first.node(), renamed.node());
        assert_ne!(first.chain, renamed.chain, "the certificate names the node");

        for name in IDENTITY {
            std::fs::remove_file(directory.path().join(name)).unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let other = bootstrap(&config).await.unwrap();
        assert_ne!(first.cluster_id(), other.cluster_id());
    }

    #[tokio::test]
    async fn another_encryption_key_than_the_saved_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        config.encryption_key = Some(ClusterKey::generate().to_text());
        bootstrap(&config).await.unwrap();
        bootstrap(&config).await.unwrap();
        for bad in ["nonsense".to_owned(), ClusterKey::generate().to_text()] {
            config.encryption_key = Some(bad);
            let error = bootstrap(&config).await.err().unwrap();
            assert!(error.to_string().contains("--encryption-key"), "{error}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_name_their_flag() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (authority, key) = certificates::new_authority("users", SystemTime::now()).unwrap();
        files::write(&path("good"), &(authority.pem() + &key.serialize_pem())).unwrap();
        files::write(&path("empty"), "").unwrap();
        for (certificate, key, authority, flag, bad) in [
            ("none", "good", "good", "--tls-cert", "none"),
            ("good", "none", "good", "--tls-key", "none"),
            ("good", "good", "none", "--tls-ca", "none"),
            ("empty", "good", "good", "--tls-cert", "empty"),
            ("good", "empty", "good", "--tls-key", "empty"),
        ] {
            let error = OwnTls::load(&UserTls {
                certificate: path(certificate),
                key: path(key),
                authority: path(authority),
            });
            let error = error.err().unwrap().to_string();
            for word in [flag, path(bad).to_str().unwrap(), "name a PEM file"] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let taken = Sockets::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Sockets::bind(address).await.err().unwrap();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
