//! What a node is and holds: keys, certificates, token, and what it remembers of the cluster. Lives in the data
//! directory in small private files; nothing here reaches a log.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemas::hex;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use store::NodeId;

use super::error::Error;
use super::token::JoinToken;
use super::{certificates, files, tls};
use crate::backup::Identity;

pub(super) const NODE_KEY: &str = "node.key";
pub(super) const NODE_CERTIFICATE: &str = "node.crt";
pub(super) const AUTHORITY: &str = "ca.crt";
pub(super) const AUTHORITY_KEY: &str = "ca.key";
pub(super) const ENCRYPTION_KEY: &str = "encryption.key";
pub(super) const TOKEN: &str = "join.token";
/// Written last: a directory with this file belongs to a cluster.
pub(super) const CLUSTER: &str = "cluster.json";

/// Version of `cluster.json`.
const CLUSTER_FORMAT: u32 = 1;

/// The cluster key: 32 random bytes that every other key is derived from.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ClusterKey([u8; 32]);

impl ClusterKey {
    pub(super) fn generate() -> Self {
        use rand::RngExt;
        Self(rand::rng().random())
    }

    /// Reads the text form, base64 of 32 bytes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.trim()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn to_text(&self) -> String {
        BASE64.encode(self.0)
    }

    /// Derives the key for one purpose.
    fn derive(&self, label: &str) -> [u8; 32] {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(b"podman-swarm"), &self.0)
            .expand(label.as_bytes(), &mut key)
            .expect("32 bytes are fewer than the 255 blocks that HKDF can give");
        key
    }

    /// Seals datagrams of gossip.
    pub(super) fn gossip(&self) -> [u8; 32] {
        self.derive("gossip v1")
    }

    /// Seals Secrets on disk.
    pub(super) fn at_rest(&self) -> [u8; 32] {
        self.derive("at rest v1")
    }

    /// Seals backups.
    pub(super) fn backup_identity(&self) -> Identity {
        Identity::of_cluster_key(&self.0)
    }

    /// What two holders compare to learn whether they hold the same key, without showing it (hex).
    pub(super) fn fingerprint(&self) -> String {
        hex(&self.derive("fingerprint v1"))
    }
}

/// The content of `cluster.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remembered {
    format: u32,
    pub(super) cluster_id: String,
    pub(super) node: NodeId,
    /// chitchat's generation of the last start; never used twice.
    pub(super) generation: u64,
    /// This node created the cluster, so it admits itself.
    pub(super) founder: bool,
    /// Where the other nodes were last.
    pub(super) peers: BTreeMap<NodeId, SocketAddr>,
    /// Nodes that were taken out of the cluster while this node knew them.
    #[serde(default)]
    pub(super) removed: BTreeSet<NodeId>,
}

impl Remembered {
    pub(super) fn new(cluster_id: String, node: NodeId, founder: bool) -> Self {
        Self {
            format: CLUSTER_FORMAT,
            cluster_id,
            node,
            generation: 0,
            founder,
            peers: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    pub(super) fn load(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(CLUSTER);
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        let remembered: Self = serde_json::from_str(&text).map_err(|error| Error::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if remembered.format != CLUSTER_FORMAT {
            return Err(Error::Damaged {
                path,
                reason: format!(
                    "it has format {}, this version reads {CLUSTER_FORMAT}",
                    remembered.format
                ),
            });
        }
        Ok(Some(remembered))
    }

    pub(super) fn save(&self, directory: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("maps with string keys and scalars are JSON");
        files::write(&directory.join(CLUSTER), &text)
    }
}

/// The cluster's certificate authority, as far as this node holds it.
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    /// None where every node brings its own certificate (`--tls-*`).
    pub(super) key: Option<rcgen::KeyPair>,
}

/// All that a member of the cluster holds. Made by [`super::bootstrap()`].
pub struct Credentials {
    pub(super) directory: PathBuf,
    pub(super) remembered: Remembered,
    pub(super) cluster_key: ClusterKey,
    pub(super) authority: Authority,
    pub(super) join_token: JoinToken,
    /// This node's certificate, then the CA's.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// The identity of this node.
    pub fn node(&self) -> &NodeId {
        &self.remembered.node
    }

    pub fn cluster_id(&self) -> &str {
        &self.remembered.cluster_id
    }

    /// The key for Secrets on disk, derived from the cluster key.
    pub fn seal_key(&self) -> [u8; 32] {
        self.cluster_key.at_rest()
    }

    /// The key for backups, derived from the cluster key.
    pub fn backup_identity(&self) -> Identity {
        self.cluster_key.backup_identity()
    }

    /// The CA's certificate (PEM), for kubeconfig files.
    pub fn authority_pem(&self) -> String {
        pem("CERTIFICATE", &self.authority.certificate)
    }

    /// TLS for the API: this node's certificate, HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// Key and certificate do not fit together (possible with `--tls-*` only).
    pub fn api_tls(&self) -> Result<Arc<ServerConfig>, Error> {
        Ok(tls::api_server(self)?)
    }
}

/// Reads the certificates of a PEM file.
pub(super) fn parse_certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let damaged = |reason: String| Error::Damaged {
        path: path.to_owned(),
        reason,
    };
    let list = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| damaged(error.to_string()))?;
    if list.is_empty() {
        return Err(damaged("it holds no certificate".into()));
    }
    if list.iter().any(|one| certificates::node_id(one).is_none()) {
        return Err(damaged("it holds what is no X.509 certificate".into()));
    }
    Ok(list)
}

/// Reads the private key of a PEM file.
pub(super) fn parse_key(path: &Path, text: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| Error::Damaged {
        path: path.to_owned(),
        reason: "it holds no private key (PEM)".into(),
    })
}

/// Writes DER as PEM.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        // Base64 is ASCII.
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_for_different_purposes_differ_and_survive_their_text_form() {
        let key = ClusterKey::generate();
        assert!(ClusterKey::parse(&format!("{}\n", key.to_text())) == Some(key.clone()));
        assert_ne!(key.gossip(), key.at_rest());
        assert_ne!(key.fingerprint(), hex(&key.gossip()));
        for bad in ["", "short", &BASE64.encode([0; 31]), "not base64!"] {
            assert!(ClusterKey::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_format_is_refused_and_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let mut remembered = Remembered::new("c".into(), NodeId("n".into()), true);
        remembered.save(directory.path()).unwrap();
        assert_eq!(
            Remembered::load(directory.path()).unwrap(),
            Some(remembered.clone())
        );
        remembered.format = 9;
        remembered.save(directory.path()).unwrap();
        let error = Remembered::load(directory.path()).unwrap_err();
        assert!(error.to_string().contains("format 9"), "{error}");
    }
}
