//! etcd on the first host, beside the agent: the same file system, TLS, nothing else changed from its defaults.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::client::Server;
use crate::cluster::{self, Cluster};

const PORT: u16 = 2379;

/// A running etcd; ends when it is dropped.
pub(crate) struct Etcd {
    pub(crate) server: Server,
    /// Where it keeps its data, valid inside and outside of the host.
    pub(crate) directory: PathBuf,
    child: Child,
}

impl Etcd {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let address = cluster::address(1);
        let (authority, certificate, key) = certificates(&address);
        let certificate = cluster.write("etcd.crt", &certificate);
        let key = cluster.write("etcd.key", &key);
        let directory = cluster.scratch("etcd");
        let url = format!("https://{address}:{PORT}");
        let child = cluster.child(
            1,
            "etcd",
            &[
                &format!("--data-dir={}", directory.display()),
                &format!("--listen-client-urls={url}"),
                &format!("--advertise-client-urls={url}"),
                &format!("--cert-file={certificate}"),
                &format!("--key-file={key}"),
                "--log-level=error",
                "--logger=zap",
            ],
        );
        let etcd = Self {
            server: Server {
                address: format!("{address}:{PORT}").parse().expect("an address"),
                authority,
                token: None,
            },
            directory,
            child,
        };
        let health = format!("{url}/health");
        cluster.wait_for("etcd", Duration::from_secs(60), |cluster| {
            let seen = cluster.exec(1, &["curl", "-sk", "-m", "2", &health]);
            if seen.stdout.contains("true") {
                Ok(())
            } else {
                Err(seen)
            }
        });
        etcd
    }

    /// Its log and its database.
    pub(crate) fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.directory)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The blocks that a directory's files take.
pub(crate) fn disk_bytes(directory: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// A certificate authority, and a certificate for an address with its key, as PEM.
fn certificates(address: &str) -> (String, String, String) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let authority_certificate = authority.self_signed(&authority_key).expect("a certificate");
    let issuer = Issuer::new(authority, authority_key);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(address.parse().expect("an address"))];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    (
        authority_certificate.pem(),
        certificate.pem(),
        key.serialize_pem(),
    )
}
