//! The cluster's CA and the nodes' certificates. A node's identity is its public key, so names in certificates serve
//! users of the API; among peers they decide nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SigningKey,
};
use rustls::pki_types::CertificateDer;
use schemas::hex;
use sha2::{Digest, Sha256};
use store::NodeId;
use x509_parser::extensions::GeneralName;

/// The name in every certificate that we issue, for joiners, who know no node by name.
pub(super) const INTERNAL_NAME: &str = "node.podman-swarm.internal";

/// What pods call the API by.
const API_SERVICE_NAMES: [&str; 3] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates are renewed at a start within the last year, so a node that is started at all never runs out.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The CA outlives every certificate that it signs in its first ten years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// Certificates hold from a day before they were made: hosts' clocks differ, also by a wrong time zone.
const CLOCK_SKEW: Duration = DAY;

/// What a node's certificate says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) node_name: String,
    pub(super) host_name: String,
    pub(super) address: IpAddr,
}

impl Names {
    fn dns(&self) -> BTreeSet<String> {
        [&self.node_name, &self.host_name, "localhost", INTERNAL_NAME]
            .into_iter()
            .chain(API_SERVICE_NAMES)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        // An unspecified address names nobody.
        [
            self.address,
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
        ]
        .into_iter()
        .filter(|address| !address.is_unspecified())
        .collect()
    }
}

/// Makes the CA of a new cluster: certificate (PEM) and key.
pub(super) fn new_authority(
    cluster_id: &str,
    now: SystemTime,
) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_VALIDITY).into();
    params.distinguished_name = subject(&format!("Podman Swarm cluster {cluster_id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok((certificate, key))
}

/// Issues a certificate for our own key.
pub(super) fn issue(
    key: &KeyPair,
    names: &Names,
    authority: &CertificateDer<'_>,
    authority_key: &KeyPair,
    now: SystemTime,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_der(authority, authority_key)?;
    Ok(node_params(names, now)?.signed_by(key, &issuer)?.der().clone())
}

/// Makes the request of a joiner: its public key, and proof that it holds the private one.
pub(super) fn request(key: &impl SigningKey) -> Result<String, rcgen::Error> {
    CertificateParams::default().serialize_request(key)?.pem()
}

/// Issues a certificate for a joiner. Of the request only the key counts; what it asks for is not looked at.
pub(super) fn issue_for_request(
    request: &str,
    names: &Names,
    authority: &CertificateDer<'_>,
    authority_key: &KeyPair,
    now: SystemTime,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut request = CertificateSigningRequestParams::from_pem(request)?;
    request.params = node_params(names, now)?;
    let issuer = Issuer::from_ca_cert_der(authority, authority_key)?;
    Ok(request.signed_by(&issuer)?.der().clone())
}

fn node_params(names: &Names, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name = subject(&names.node_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    for name in names.dns() {
        params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    }
    params
        .subject_alt_names
        .extend(names.addresses().into_iter().map(SanType::IpAddress));
    Ok(params)
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "podman-swarm");
    name
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |duration| {
        i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Tells whether a certificate of ours still says the right names and holds for at least a year.
pub(super) fn is_current(certificate: &CertificateDer<'_>, names: &Names, now: SystemTime) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let validity = parsed.validity();
    if validity.not_after.timestamp() < unix_seconds(now + RENEW_BEFORE)
        || validity.not_before.timestamp() > unix_seconds(now)
    {
        return false;
    }
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return false;
    };
    let mut dns = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => {
                dns.insert((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                addresses.extend(address);
            }
            _ => {}
        }
    }
    dns == names.dns() && addresses == names.addresses()
}

/// Tells whether a certificate's time is over.
pub(super) fn is_expired(certificate: &CertificateDer<'_>, now: SystemTime) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.validity().not_after.timestamp() < unix_seconds(now))
}

/// Returns the identity of the holder of a certificate: the hex SHA-256 of its public key (SubjectPublicKeyInfo, DER).
pub(super) fn node_id(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(node_id_of_key(parsed.public_key().raw))
}

/// Returns the identity of the holder of a public key (SubjectPublicKeyInfo, DER).
pub(super) fn node_id_of_key(public_key: &[u8]) -> NodeId {
    NodeId(hex(&Sha256::digest(public_key)))
}

/// Returns the hex SHA-256 of a certificate (DER): what tokens pin.
pub(super) fn digest(certificate: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(certificate))
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;

    use super::*;

    fn names(node_name: &str) -> Names {
        Names {
            node_name: node_name.into(),
            host_name: "host".into(),
            address: [10, 0, 0, 1].into(),
        }
    }

    #[test]
    fn certificates_are_renewed_when_names_change_or_the_end_is_near() {
        let now = SystemTime::now();
        let (authority, authority_key) = new_authority("c", now).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = issue(&key, &names("a"), authority.der(), &authority_key, now).unwrap();
        assert!(is_current(&certificate, &names("a"), now));
        assert!(!is_current(&certificate, &names("b"), now));
        assert!(!is_current(
            &certificate,
            &names("a"),
            now + VALIDITY - RENEW_BEFORE + DAY
        ));
        assert_eq!(
            node_id(&certificate),
            Some(node_id_of_key(&key.subject_public_key_info()))
        );
    }

    #[test]
    fn requests_decide_the_key_and_nothing_else() {
        let now = SystemTime::now();
        let (authority, authority_key) = new_authority("c", now).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let issued = issue_for_request(&request, &names("a"), authority.der(), &authority_key, now).unwrap();
        assert!(is_current(&issued, &names("a"), now));
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(
            node_id(&issued),
            Some(node_id_of_key(&key.subject_public_key_info()))
        );
    }
}
