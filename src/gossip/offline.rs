//! What a data directory says of its node while no agent runs on it: whether its files are there, private and fit together.
//! Only reads.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use store::{NodeId, Problem};

use super::certificates;
use super::credentials::{
    AUTHORITY, AUTHORITY_KEY, CLUSTER, ClusterKey, ENCRYPTION_KEY, NODE_CERTIFICATE, NODE_KEY, Remembered,
    TOKEN, parse_certificates,
};
use super::error::Error;
use super::files;
use super::token::JoinToken;
use crate::backup::Identity;

/// Files that their owner alone may read, with or without others of the list beside them.
const PRIVATE: [&str; 7] = [
    CLUSTER,
    ENCRYPTION_KEY,
    NODE_KEY,
    AUTHORITY_KEY,
    TOKEN,
    "api.token",
    "admin.kubeconfig",
];
const FROM_A_NODE: &str = "copy it from another node of the cluster (mode 0600)";
const JOIN_ANEW: &str =
    "let the node join anew with an empty data directory; in a cluster of one node, restore a backup there";

/// What was found in a data directory.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Files that were read.
    pub files: usize,
    pub problems: Vec<Problem>,
    /// The cluster and the node that it belongs to, if that can be read.
    pub member: Option<(String, NodeId)>,
    /// The key that the store is sealed under, and that of backups, if the cluster's key can be read.
    pub keys: Option<([u8; 32], Identity)>,
}

/// Reads the key for backups of the cluster that a data directory belongs to.
///
/// # Errors
/// `encryption.key` cannot be read.
pub fn backup_identity(data_dir: &Path) -> Result<Identity, Error> {
    let path = data_dir.join(ENCRYPTION_KEY);
    let key = ClusterKey::parse(&files::require(&path)?).ok_or_else(|| Error::Damaged {
        path,
        reason: "it must hold 32 bytes in base64".to_owned(),
    })?;
    Ok(key.backup_identity())
}

/// Looks at the files beside the store.
///
/// # Errors
/// A file is there and cannot be read.
pub fn inspect(data_dir: &Path, now: SystemTime) -> Result<Inspection, Error> {
    let mut look = Look {
        data_dir,
        found: Inspection::default(),
    };
    look.modes()?;
    look.identity()?;
    look.certificates(now)?;
    Ok(look.found)
}

struct Look<'a> {
    data_dir: &'a Path,
    found: Inspection,
}

impl Look<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    fn problem(&mut self, name: &str, what: impl Into<String>, remedy: &str) {
        self.found.problems.push(Problem {
            place: self.path(name).display().to_string(),
            what: what.into(),
            remedy: remedy.to_owned(),
        });
    }

    fn modes(&mut self) -> Result<(), Error> {
        for name in [""].into_iter().chain(PRIVATE) {
            let path = self.path(name);
            let mode = match std::fs::metadata(&path) {
                Ok(file) => file.permissions().mode() & 0o777,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let operation = "look at";
                    return Err(Error::File {
                        operation,
                        path,
                        source,
                    });
                }
            };
            if mode & 0o077 != 0 {
                let remedy = format!("chmod go= {}", path.display());
                self.problem(name, format!("others may use it (mode {mode:04o})"), &remedy);
            }
        }
        Ok(())
    }

    /// Reads a file and what it holds; None, with a problem, if that cannot be.
    fn parsed<T>(
        &mut self,
        name: &str,
        remedy: &str,
        parse: impl FnOnce(&Path, &str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let path = self.path(name);
        let text = match files::read(&path) {
            // No text is no reason to stop: what else is wrong is told as well.
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData => String::new(),
            read => match read? {
                Some(text) => text,
                None => {
                    self.problem(name, "is missing", remedy);
                    return Ok(None);
                }
            },
        };
        self.found.files += 1;
        match parse(&path, &text) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(reason) => {
                self.problem(name, format!("is damaged: {reason}"), remedy);
                Ok(None)
            }
        }
    }

    fn identity(&mut self) -> Result<(), Error> {
        let data_dir = self.data_dir;
        let remembered = self.parsed(CLUSTER, JOIN_ANEW, |_, _| match Remembered::load(data_dir) {
            Ok(Some(remembered)) => Ok(remembered),
            Ok(None) => Err("it is empty".to_owned()),
            Err(Error::Damaged { reason, .. }) => Err(reason),
            Err(error) => Err(error.to_string()),
        })?;
        self.found.member = remembered.map(|remembered| (remembered.cluster_id, remembered.node));
        let key = self.parsed(ENCRYPTION_KEY, FROM_A_NODE, |_, text| {
            ClusterKey::parse(text).ok_or_else(|| "it must hold 32 bytes in base64".to_owned())
        })?;
        self.found.keys = key.map(|key| (key.at_rest(), key.backup_identity()));
        Ok(())
    }

    fn certificates(&mut self, now: SystemTime) -> Result<(), Error> {
        let authority = self.certificate(AUTHORITY, FROM_A_NODE, now)?;
        let token = self.parsed(TOKEN, FROM_A_NODE, |_, text| {
            text.parse::<JoinToken>()
                .map_err(|_| "it holds no join token".to_owned())
        })?;
        if let (Some(authority), Some(token)) = (&authority, &token)
            && certificates::digest(authority) != token.authority_digest
        {
            self.problem(TOKEN, "names another CA than ca.crt", FROM_A_NODE);
        }
        let pair = |_: &Path, text: &str| KeyPair::from_pem(text).map_err(|error| error.to_string());
        // Where the users bring certificates, the cluster has no key for its CA and the node none in the directory.
        if self.path(AUTHORITY_KEY).exists()
            && let Some(key) = self.parsed(AUTHORITY_KEY, FROM_A_NODE, pair)?
            && let Some(authority) = &authority
            && certificates::node_id(authority) != Some(id_of(&key))
        {
            self.problem(AUTHORITY_KEY, "is not the key of ca.crt", FROM_A_NODE);
        }
        if !self.path(NODE_CERTIFICATE).exists() {
            return Ok(());
        }
        let own = self.certificate(
            NODE_CERTIFICATE,
            "remove it: the agent issues another at its start",
            now,
        )?;
        let Some(key) = self.parsed(NODE_KEY, JOIN_ANEW, pair)? else {
            return Ok(());
        };
        let node = id_of(&key);
        if own.is_some_and(|own| certificates::node_id(&own).as_ref() != Some(&node)) {
            let remedy = "remove it: the agent issues another at its start";
            self.problem(NODE_CERTIFICATE, "is not for node.key", remedy);
        }
        if self
            .found
            .member
            .as_ref()
            .is_some_and(|(_, member)| *member != node)
        {
            self.problem(NODE_KEY, "is not the key of the node in cluster.json", JOIN_ANEW);
        }
        Ok(())
    }

    fn certificate(
        &mut self,
        name: &str,
        remedy: &str,
        now: SystemTime,
    ) -> Result<Option<CertificateDer<'static>>, Error> {
        let parsed = self.parsed(name, remedy, |path, text| match parse_certificates(path, text) {
            Ok(mut list) => Ok(list.swap_remove(0)),
            Err(Error::Damaged { reason, .. }) => Err(reason),
            Err(error) => Err(error.to_string()),
        })?;
        if let Some(certificate) = &parsed
            && certificates::is_expired(certificate, now)
        {
            self.problem(name, "its time is over", remedy);
        }
        Ok(parsed)
    }
}

fn id_of(key: &KeyPair) -> NodeId {
    certificates::node_id_of_key(&key.subject_public_key_info())
}
