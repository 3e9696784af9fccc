//! Names of others: asked of the upstream servers, cached, and checked against the whitelist.
//!
//! Every answer ends within [`DEADLINE`]; a dead upstream is a SERVFAIL, never silence.

use std::net::SocketAddr;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use rand::seq::SliceRandom;
use reconcilers::ports::DnsWhitelist;
use tokio::sync::Semaphore;

use super::server::StartError;
use super::whitelist::Whitelist;
use super::zone::{Answer, Code};

/// One try at an upstream; with one retry it stays below [`DEADLINE`].
const TRY_TIMEOUT: Duration = Duration::from_millis(1200);
const RETRIES: usize = 1;

/// The whole of a lookup, CNAMEs followed included. Resolvers in containers give up after 5 s (resolv.conf).
const DEADLINE: Duration = Duration::from_millis(2500);

/// Cached responses: about 1 KiB each, so 8 MiB at most.
const CACHE_RESPONSES: u64 = 8192;

/// How long an answer may be cached, whatever its TTL says: a day, and negative ones five minutes.
const CACHE_LONGEST: Duration = Duration::from_secs(24 * 3600);
const CACHE_LONGEST_NEGATIVE: Duration = Duration::from_secs(300);

/// Lookups under way at once. Each costs a few KiB and an upstream socket; 1024 answered in 50 ms are 20,000 a second.
const MAX_LOOKUPS: usize = 1024;

/// The forwarder of one DNS server.
pub(super) struct Forwarder {
    /// None: there are no upstreams.
    resolver: Option<TokioResolver>,
    /// None until the first one arrives: what is allowed is not known, so every name fails.
    whitelist: ArcSwapOption<Whitelist>,
    permits: Semaphore,
}

impl Forwarder {
    pub(super) fn new(upstreams: &[SocketAddr]) -> Result<Self, StartError> {
        Ok(Self {
            resolver: resolver(upstreams)?,
            whitelist: ArcSwapOption::empty(),
            permits: Semaphore::new(MAX_LOOKUPS),
        })
    }

    pub(super) fn set_whitelist(&self, whitelist: &DnsWhitelist) {
        self.whitelist.store(Some(Whitelist::new(whitelist).into()));
    }

    /// Resolves a name of others. Refused, unless the name and the target of every alias on the way are allowed.
    pub(super) async fn resolve(&self, name: &Name, kind: RecordType) -> Answer {
        let Some(whitelist) = self.whitelist.load_full() else {
            return Answer::empty(Code::Failed);
        };
        if !whitelist.allows(&LowerName::from(name)) {
            return Answer::empty(Code::Refused);
        }
        let (Some(resolver), Ok(_permit)) = (&self.resolver, self.permits.try_acquire()) else {
            return Answer::empty(Code::Failed);
        };
        let found = match tokio::time::timeout(DEADLINE, resolver.lookup(name.clone(), kind)).await {
            Ok(found) => found,
            Err(_) => Err(NetError::Timeout),
        };
        match found {
            Ok(lookup) if whitelist.allows_targets(lookup.answers()) => Answer {
                records: shuffled(lookup.answers()),
                ..Answer::default()
            },
            Ok(_) => Answer::empty(Code::Refused),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Answer {
                code: match none.response_code {
                    ResponseCode::NXDomain => Code::NoName,
                    ResponseCode::NoError => Code::NoError,
                    _ => Code::Failed,
                },
                authority: none.soa.map(|soa| soa.into_record_of_rdata()),
                ..Answer::default()
            },
            Err(error) => {
                tracing::debug!(%name, %kind, %error, "upstream DNS failed");
                Answer::empty(Code::Failed)
            }
        }
    }
}

/// Aliases first and in their order, what they lead to in any: the cache would give the same first address for its TTL.
fn shuffled(answers: &[Record]) -> Vec<Record> {
    let (mut records, mut rest): (Vec<Record>, Vec<Record>) = answers
        .iter()
        .cloned()
        .partition(|record| record.record_type() == RecordType::CNAME);
    rest.shuffle(&mut rand::rng());
    records.append(&mut rest);
    records
}

fn resolver(upstreams: &[SocketAddr]) -> Result<Option<TokioResolver>, StartError> {
    if upstreams.is_empty() {
        return Ok(None);
    }
    let server = |address: &SocketAddr| {
        let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        udp.port = address.port();
        tcp.port = address.port();
        NameServerConfig::new(address.ip(), true, vec![udp, tcp])
    };
    let config = ResolverConfig::from_name_servers(upstreams.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = TRY_TIMEOUT;
    options.attempts = RETRIES;
    options.cache_size = CACHE_RESPONSES;
    options.positive_max_ttl = Some(CACHE_LONGEST);
    options.negative_max_ttl = Some(CACHE_LONGEST_NEGATIVE);
    // The whitelist checks every alias, so all of them must be in the answer.
    options.preserve_intermediates = true;
    options.use_hosts_file = ResolveHosts::Never;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map(Some)
        .map_err(|error| StartError::Upstreams(error.to_string()))
}
