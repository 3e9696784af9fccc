//! The cluster's side of admission: checks a joiner's token, then what it says, then writes its Member object.
//!
//! Nothing of a request is parsed before its token is known to be right; how many may try at once is bounded.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use ipnet::IpNet;
use reconcilers::pod_range;
use schemas::{Kind, ObjectKey, names};
use store::{NodeId, Precondition, Store, WriteError};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::certificates::{self, Names};
use super::credentials::{Credentials, pem};
use super::join::{JoinAnswer, JoinRequest, PROTOCOL, Refusal};
use super::members::{self, Member};
use super::token::{self, Verdict};

/// Attempts that may be under way at once; each holds at most one body of 16 KiB.
const CONCURRENT_ATTEMPTS: usize = 4;
/// Wrong tokens of one address that are answered in a window; more are turned away unread until it is over. A secret has
/// 256 bits, so this bounds work, not guessing.
const FAILURES_IN_WINDOW: u32 = 20;
const FAILURE_WINDOW: Duration = Duration::from_secs(10);
/// Addresses whose failures are counted in a window, 64 KiB. Those of more are not: a check is cheap.
const MAX_FAILING_ADDRESSES: usize = 1024;

/// Admits nodes on behalf of the cluster.
pub(super) struct Admission {
    store: Store,
    credentials: Arc<Credentials>,
    pod_cidr: IpNet,
    caught_up: watch::Receiver<bool>,
    attempts: Semaphore,
    failures: std::sync::Mutex<Failures>,
    /// One admission at a time, so that two get different names and ranges.
    writing: Mutex<()>,
}

/// The wrong tokens of a window.
struct Failures {
    since: Instant,
    by_address: HashMap<IpAddr, u32>,
}

impl Failures {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            by_address: HashMap::new(),
        }
    }

    /// Tells whether the address has shown as many as are answered.
    fn exhausted(&mut self, address: IpAddr) -> bool {
        if self.since.elapsed() > FAILURE_WINDOW {
            *self = Self::new();
        }
        self.by_address
            .get(&address)
            .is_some_and(|count| *count >= FAILURES_IN_WINDOW)
    }

    fn add(&mut self, address: IpAddr) {
        if self.by_address.len() < MAX_FAILING_ADDRESSES || self.by_address.contains_key(&address) {
            *self.by_address.entry(address).or_default() += 1;
        }
    }
}

/// A refusal with its status.
pub(super) type Refused = (StatusCode, Refusal);

fn refuse(status: StatusCode, reason: impl Into<String>) -> Refused {
    let reason = reason.into();
    (status, Refusal { reason })
}

impl Admission {
    /// `caught_up`: whether the store holds what the cluster knew when this node came to it.
    pub(super) fn new(
        store: Store,
        credentials: Arc<Credentials>,
        pod_cidr: IpNet,
        caught_up: watch::Receiver<bool>,
    ) -> Self {
        Self {
            store,
            credentials,
            pod_cidr,
            caught_up,
            attempts: Semaphore::new(CONCURRENT_ATTEMPTS),
            failures: std::sync::Mutex::new(Failures::new()),
            writing: Mutex::new(()),
        }
    }

    /// Lets an attempt begin, or turns it away before anything of it is read.
    pub(super) fn begin(&self, address: IpAddr) -> Result<SemaphorePermit<'_>, Refused> {
        // It may know neither tokens nor names yet; the joiner tries again.
        if !*self.caught_up.borrow() {
            return Err(refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node has not caught up with its cluster yet",
            ));
        }
        let busy = || {
            refuse(
                StatusCode::TOO_MANY_REQUESTS,
                "too many join attempts, try again later",
            )
        };
        if self.failures().exhausted(address) {
            return Err(busy());
        }
        self.attempts.try_acquire().map_err(|_| busy())
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks what the `Authorization` header holds; returns the token's id, and whether its uses are counted.
    pub(super) fn authenticate(&self, bearer: &str, address: IpAddr) -> Result<(String, bool), Refused> {
        let forbidden = |reason: &str| refuse(StatusCode::FORBIDDEN, reason);
        let verdict = token::parse_bearer(bearer).and_then(|(id, secret)| {
            let view = self.store.get(&ObjectKey::cluster(Kind::JoinToken, id))?;
            Some((id, token::judge(&view.object, secret, members::unix_seconds())))
        });
        match verdict {
            Some((id, Verdict::Valid { counted })) => Ok((id.to_owned(), counted)),
            Some((_, Verdict::Expired)) => Err(forbidden("the join token has expired")),
            Some((_, Verdict::UsedUp)) => Err(forbidden("the join token was used as often as it may be")),
            Some((_, Verdict::Wrong)) | None => {
                self.failures().add(address);
                Err(forbidden("the join token is not known to this cluster"))
            }
        }
    }

    /// Admits the bearer of an authenticated token. `certified`: the identity it proved while connecting, if it
    /// brought a certificate of the cluster's CA.
    pub(super) async fn admit(
        &self,
        token_id: &str,
        counted: bool,
        certified: Option<NodeId>,
        request: JoinRequest,
    ) -> Result<JoinAnswer, Refused> {
        if let Some(reason) = request.other_version() {
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        }
        if let Some(rule) = names::dns_subdomain(&request.node_name) {
            let name = request.node_name.escape_debug();
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                format!("`{name}` is no node name: {rule}"),
            ));
        }
        if request.address.is_unspecified() || request.gossip_port == 0 {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                format!(
                    "{}:{} is no address that others can reach the node at (--advertise-addr)",
                    request.address, request.gossip_port
                ),
            ));
        }
        let fingerprint = self.credentials.cluster_key.fingerprint();
        if request
            .key_fingerprint
            .as_ref()
            .is_some_and(|theirs| *theirs != fingerprint)
        {
            return Err(refuse(
                StatusCode::CONFLICT,
                "the node brings an encryption key (--encryption-key) that is not this cluster's",
            ));
        }
        if request.pod_cidr != self.pod_cidr {
            return Err(refuse(
                StatusCode::CONFLICT,
                format!(
                    "the node's pods would be in {} (--pod-cidr), those of this cluster are in {}: start the node with --pod-cidr={}",
                    request.pod_cidr, self.pod_cidr, self.pod_cidr
                ),
            ));
        }
        let (id, certificate) = self.identify(certified, &request)?;

        let _writing = self.writing.lock().await;
        let known = members::list(&self.store);
        if let Some(other) = known
            .values()
            .find(|member| member.name == request.node_name && member.id != id)
        {
            return Err(refuse(
                StatusCode::CONFLICT,
                format!(
                    "the node name `{}` is in use by the node at {} (choose another --node-name, or remove that node)",
                    other.name, other.address
                ),
            ));
        }
        // A node that joins again keeps its range.
        let range = known.get(&id).and_then(|member| member.pod_cidr).or_else(|| {
            let taken: Vec<IpNet> = known.values().filter_map(|member| member.pod_cidr).collect();
            pod_range::first_free(self.pod_cidr, &taken)
        });
        let Some(range) = range else {
            return Err(refuse(
                StatusCode::CONFLICT,
                format!("no pod range is left in {} (--pod-cidr)", self.pod_cidr),
            ));
        };
        let member = Member {
            id: id.clone(),
            name: request.node_name,
            address: (request.address, request.gossip_port).into(),
            pod_cidr: Some(range),
            voter: true,
        };
        let stored = async {
            if counted {
                self.count_use(token_id).await?;
            }
            members::put(&self.store, &member).await
        };
        stored.await.map_err(|error| {
            warn!(node = %id, error = %error, "cannot store a new member");
            refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the new member could not be stored, try again",
            )
        })?;
        info!(node = %id, name = member.name, address = %member.address, range = %range, "admitted a node");

        let mut addresses: std::collections::BTreeMap<_, _> = known
            .into_iter()
            .map(|(id, member)| (id, member.address))
            .collect();
        addresses.insert(id, member.address);
        Ok(JoinAnswer {
            protocol: PROTOCOL,
            cluster_id: self.credentials.cluster_id().to_owned(),
            certificate: certificate.map(|certificate| pem("CERTIFICATE", &certificate)),
            authority: self.credentials.authority_pem(),
            authority_key: self
                .credentials
                .authority
                .key
                .as_ref()
                .map(rcgen::KeyPair::serialize_pem),
            cluster_key: self.credentials.cluster_key.to_text(),
            join_token: self.credentials.join_token.to_string(),
            members: addresses,
        })
    }

    /// Finds out who joins, and issues its certificate if the cluster issues any.
    fn identify(
        &self,
        certified: Option<NodeId>,
        request: &JoinRequest,
    ) -> Result<(NodeId, Option<rustls::pki_types::CertificateDer<'static>>), Refused> {
        let Some(authority_key) = &self.credentials.authority.key else {
            return match certified {
                Some(id) => Ok((id, None)),
                None => Err(refuse(
                    StatusCode::BAD_REQUEST,
                    "the nodes of this cluster bring their own certificates (--tls-cert, --tls-key, --tls-ca)",
                )),
            };
        };
        let Some(certificate_request) = &request.certificate_request else {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "this cluster issues its certificates itself: join without --tls-*",
            ));
        };
        let names = Names {
            node_name: request.node_name.clone(),
            host_name: request.host_name.clone(),
            address: request.address,
        };
        let certificate = certificates::issue_for_request(
            certificate_request,
            &names,
            &self.credentials.authority.certificate,
            authority_key,
            SystemTime::now(),
        )
        .map_err(|error| {
            refuse(
                StatusCode::BAD_REQUEST,
                format!("no certificate can be issued: {error}"),
            )
        })?;
        let id = certificates::node_id(&certificate).ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                "no certificate can be issued for this key",
            )
        })?;
        Ok((id, Some(certificate)))
    }

    async fn count_use(&self, token_id: &str) -> Result<(), WriteError> {
        let key = ObjectKey::cluster(Kind::JoinToken, token_id);
        self.store
            .update::<WriteError>(&key, &Precondition::default(), members::author(), |object| {
                let mut changed = object.clone();
                changed.set(
                    &["spec", "uses"],
                    object.i64_at("/spec/uses").unwrap_or(0).saturating_add(1),
                );
                Ok(changed)
            })
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wrong_tokens_of_one_address_turn_no_other_away() {
        let guesser = IpAddr::from([192, 0, 2, 1]);
        let honest = IpAddr::from([192, 0, 2, 2]);
        let mut failures = Failures::new();
        for _ in 0..FAILURES_IN_WINDOW {
            assert!(!failures.exhausted(guesser));
            failures.add(guesser);
        }
        assert!(failures.exhausted(guesser));
        assert!(!failures.exhausted(honest));
        for number in 0..2 * MAX_FAILING_ADDRESSES as u32 {
            failures.add(std::net::Ipv4Addr::from(number).into());
        }
        assert_eq!(failures.by_address.len(), MAX_FAILING_ADDRESSES);
        assert!(failures.exhausted(guesser));
        assert!(!failures.exhausted(honest));
        failures.since -= 2 * FAILURE_WINDOW;
        assert!(!failures.exhausted(guesser), "the window is over");
    }
}
