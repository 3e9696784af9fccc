//! The cluster's own names, prepared for lookups. Pure: a question in, records out.
//!
//! Never resolves a name of others: it says [`Found::Foreign`] or [`Found::Alias`] and `handler` goes on from there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{self, SOA, SRV, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;
use reconcilers::ports::{Records, Zone};

/// How many aliases inside the zone are followed; more is a loop.
const MAX_ALIASES: usize = 8;

/// The version of the Kubernetes DNS specification, at `dns-version.<domain>`.
const DNS_SPECIFICATION_VERSION: &str = "1.1.0";

/// What the zone knows of a question.
#[derive(Debug)]
pub(super) enum Found {
    /// The whole answer.
    Answer(Box<Answer>),
    /// A CNAME of ours leads to a name of others: these records, then whatever `target` resolves to.
    Alias { records: Vec<Record>, target: Name },
    /// Not our name.
    Foreign,
}

/// An answer, before it becomes a message.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) authoritative: bool,
    pub(super) records: Vec<Record>,
    /// The SOA of a negative answer.
    pub(super) authority: Option<Record>,
    pub(super) additionals: Vec<Record>,
}

/// The response codes that answers of this server can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Code {
    #[default]
    NoError,
    NoName,
    Refused,
    Failed,
    Malformed,
    NotImplemented,
    BadVersion,
}

impl From<Code> for ResponseCode {
    fn from(code: Code) -> Self {
        match code {
            Code::NoError => ResponseCode::NoError,
            Code::NoName => ResponseCode::NXDomain,
            Code::Refused => ResponseCode::Refused,
            Code::Failed => ResponseCode::ServFail,
            Code::Malformed => ResponseCode::FormErr,
            Code::NotImplemented => ResponseCode::NotImp,
            Code::BadVersion => ResponseCode::BADVERS,
        }
    }
}

impl Answer {
    /// An answer without records.
    pub(super) fn empty(code: Code) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }
}

/// A zone with its names parsed and the names between them filled in.
#[derive(Debug)]
pub(super) struct PreparedZone {
    domain: LowerName,
    names: HashMap<LowerName, Entry>,
    reverse: HashMap<IpAddr, Vec<Name>>,
    ttl: u32,
    serial: u32,
    /// `ns.dns.<domain>`, the name server that SOA and NS name.
    name_server: Name,
    /// `hostmaster.<domain>`.
    mailbox: Name,
}

/// What a name of ours has; an empty entry is a name that exists without data.
#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// (port, target, weight).
    services: Vec<(u16, Name, u16)>,
    alias: Option<Name>,
    texts: Vec<String>,
}

impl PreparedZone {
    /// Prepares `zone`. Names that are no DNS names are left out: no question can name them. `name_servers` are the
    /// addresses at `ns.dns.<domain>`; `ttl_seconds` is that of every record, and of negative answers.
    pub(super) fn new(zone: &Zone, name_servers: Vec<IpAddr>, ttl_seconds: u32, serial: u32) -> Self {
        let domain = parse(&zone.domain).unwrap_or_else(Name::root);
        let below = |prefix: &str| parse(&format!("{prefix}.{}", zone.domain)).unwrap_or_else(Name::root);
        let mut prepared = Self {
            domain: LowerName::from(&domain),
            names: HashMap::with_capacity(zone.names.len() * 2),
            reverse: zone
                .reverse
                .iter()
                .map(|(address, names)| (*address, names.iter().filter_map(|name| parse(name)).collect()))
                .collect(),
            ttl: ttl_seconds,
            serial,
            name_server: below("ns.dns"),
            mailbox: below("hostmaster"),
        };
        prepared.insert(&domain, Entry::default());
        prepared.insert(
            &prepared.name_server.clone(),
            Entry {
                addresses: name_servers,
                ..Entry::default()
            },
        );
        prepared.insert(
            &below("dns-version"),
            Entry {
                texts: vec![DNS_SPECIFICATION_VERSION.to_owned()],
                ..Entry::default()
            },
        );
        for (text, records) in &zone.names {
            if let Some(name) = parse(text) {
                prepared.insert(&name, Entry::new(records));
            }
        }
        prepared
    }

    /// Puts an entry, and the empty names between it and the domain (RFC 8020: what has names below it exists).
    fn insert(&mut self, name: &Name, entry: Entry) {
        let mut name = LowerName::from(name);
        if !self.domain.zone_of(&name) {
            return;
        }
        self.names.insert(name.clone(), entry);
        while name != self.domain {
            name = name.base_name();
            if self.names.contains_key(&name) {
                return;
            }
            self.names.insert(name.clone(), Entry::default());
        }
    }

    /// Answers a question about `name`, if it is ours.
    pub(super) fn find(&self, name: &LowerName, kind: RecordType) -> Found {
        if !self.domain.is_root() && self.domain.zone_of(name) {
            return self.find_own(name, kind);
        }
        let Ok(network) = Name::from(name).parse_arpa_name() else {
            return Found::Foreign;
        };
        let complete = network.prefix_len() == network.max_prefix_len();
        match self.reverse.get(&network.addr()).filter(|_| complete) {
            Some(names) => Found::Answer(Box::new(self.reverse_answer(name, kind, names))),
            None => Found::Foreign,
        }
    }

    fn find_own(&self, name: &LowerName, kind: RecordType) -> Found {
        let mut records = Vec::new();
        let mut current = name.clone();
        for _ in 0..=MAX_ALIASES {
            let Some(entry) = self.names.get(&current) else {
                return Found::Answer(Box::new(self.negative(Code::NoName, records)));
            };
            let alias = entry.alias.as_ref().filter(|_| kind != RecordType::CNAME);
            let Some(target) = alias else {
                return Found::Answer(Box::new(self.answer(&current, entry, kind, records)));
            };
            records.push(self.record(&current, RData::CNAME(rdata::CNAME(target.clone()))));
            let next = LowerName::from(target);
            if !self.domain.zone_of(&next) {
                return Found::Alias {
                    records,
                    target: target.clone(),
                };
            }
            current = next;
        }
        Found::Answer(Box::new(Answer::empty(Code::Failed)))
    }

    fn answer(&self, name: &LowerName, entry: &Entry, kind: RecordType, mut records: Vec<Record>) -> Answer {
        let mut additionals = Vec::new();
        let mut own: Vec<Record> = match kind {
            RecordType::A | RecordType::AAAA => {
                self.addresses(name, entry, |data| data.record_type() == kind)
            }
            RecordType::SRV => {
                let mut targets: Vec<&Name> = entry.services.iter().map(|(_, target, _)| target).collect();
                targets.sort();
                targets.dedup();
                for target in targets {
                    let target = LowerName::from(target);
                    if let Some(entry) = self.names.get(&target) {
                        additionals.extend(self.addresses(&target, entry, |_| true));
                    }
                }
                let record = |(port, target, weight): &(u16, Name, u16)| {
                    self.record(name, RData::SRV(SRV::new(0, *weight, *port, target.clone())))
                };
                entry.services.iter().map(record).collect()
            }
            RecordType::CNAME => {
                let record = |target: &Name| self.record(name, RData::CNAME(rdata::CNAME(target.clone())));
                entry.alias.iter().map(record).collect()
            }
            RecordType::TXT => {
                let record = |text: &String| self.record(name, RData::TXT(TXT::new(vec![text.clone()])));
                entry.texts.iter().map(record).collect()
            }
            RecordType::SOA if *name == self.domain => vec![self.soa()],
            RecordType::NS if *name == self.domain => {
                vec![self.record(name, RData::NS(rdata::NS(self.name_server.clone())))]
            }
            _ => Vec::new(),
        };
        if own.is_empty() {
            return self.negative(Code::NoError, records);
        }
        // Clients take the first address: another one each time spreads them over the pods.
        own.shuffle(&mut rand::rng());
        records.append(&mut own);
        Answer {
            authoritative: true,
            records,
            additionals,
            ..Answer::default()
        }
    }

    fn reverse_answer(&self, name: &LowerName, kind: RecordType, names: &[Name]) -> Answer {
        let record = |target: &Name| self.record(name, RData::PTR(rdata::PTR(target.clone())));
        let records: Vec<Record> = match kind {
            RecordType::PTR => names.iter().map(record).collect(),
            _ => Vec::new(),
        };
        let mut soa = self.soa();
        soa.name = name.into();
        Answer {
            authoritative: true,
            authority: records.is_empty().then_some(soa),
            records,
            ..Answer::default()
        }
    }

    /// No such name, or no such data: with the SOA, whose minimum says how long that may be remembered (RFC 2308).
    fn negative(&self, code: Code, records: Vec<Record>) -> Answer {
        Answer {
            code,
            authoritative: true,
            records,
            authority: Some(self.soa()),
            ..Answer::default()
        }
    }

    fn addresses(&self, name: &LowerName, entry: &Entry, wanted: impl Fn(&RData) -> bool) -> Vec<Record> {
        let data = entry.addresses.iter().map(|address| RData::from(*address));
        data.filter(|data| wanted(data))
            .map(|data| self.record(name, data))
            .collect()
    }

    fn record(&self, name: &LowerName, data: RData) -> Record {
        Record::from_rdata(name.into(), self.ttl, data)
    }

    fn soa(&self) -> Record {
        // Nobody transfers this zone: refresh, retry and expire are those of CoreDNS.
        let soa = SOA::new(
            self.name_server.clone(),
            self.mailbox.clone(),
            self.serial,
            7200,
            1800,
            86400,
            self.ttl,
        );
        self.record(&self.domain, RData::SOA(soa))
    }
}

impl Entry {
    fn new(records: &Records) -> Self {
        // As the port says: 100 shared among all, at least 1.
        let weight = (100 / records.services.len().max(1)).max(1) as u16;
        Self {
            addresses: records.addresses.clone(),
            services: records
                .services
                .iter()
                .filter_map(|service| Some((service.port, parse(&service.target)?, weight)))
                .collect(),
            alias: records.alias.as_deref().and_then(parse),
            texts: Vec::new(),
        }
    }
}

/// Reads a full name, with or without the final dot.
fn parse(text: &str) -> Option<Name> {
    let mut name = Name::from_str(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use reconcilers::ports::ServiceRecord;

    use super::*;

    fn zone() -> PreparedZone {
        let mut zone = Zone {
            domain: "cluster.local".into(),
            ..Zone::default()
        };
        let address = |last| IpAddr::from([10, 244, 0, last]);
        let mut put = |name: &str, records| zone.names.insert(name.to_owned(), records);
        put(
            "web.default.svc.cluster.local",
            Records {
                addresses: vec![
                    address(1),
                    address(2),
                    address(3),
                    "fd00::1".parse().expect("an address"),
                ],
                ..Records::default()
            },
        );
        put(
            "a.web.default.svc.cluster.local",
            Records {
                addresses: vec![address(1)],
                ..Records::default()
            },
        );
        put(
            "_http._tcp.web.default.svc.cluster.local",
            Records {
                services: vec![ServiceRecord {
                    port: 8080,
                    target: "a.web.default.svc.cluster.local".into(),
                }],
                ..Records::default()
            },
        );
        let alias = |target: &str| Records {
            alias: Some(target.into()),
            ..Records::default()
        };
        put(
            "inner.default.svc.cluster.local",
            alias("web.default.svc.cluster.local"),
        );
        put("outer.default.svc.cluster.local", alias("www.example.com"));
        put(
            "loop.default.svc.cluster.local",
            alias("loop.default.svc.cluster.local"),
        );
        zone.reverse
            .insert(address(1), vec!["a.web.default.svc.cluster.local".into()]);
        PreparedZone::new(&zone, vec![IpAddr::from([192, 0, 2, 1])], 5, 1)
    }

    fn answer(name: &str, kind: RecordType) -> Answer {
        let name = LowerName::from_str(name).expect("a name");
        match zone().find(&name, kind) {
            Found::Answer(answer) => *answer,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn check(name: &str, kind: RecordType, code: Code, records: usize) {
        let found = answer(name, kind);
        assert_eq!(
            (found.code, found.records.len()),
            (code, records),
            "{name} {kind}"
        );
        assert_eq!(
            found.authority.is_some(),
            records == 0,
            "a negative answer has an SOA: {name} {kind}"
        );
        assert!(
            found
                .records
                .iter()
                .chain(&found.authority)
                .all(|record| record.ttl == 5)
        );
    }

    #[test]
    fn answers_by_name_and_type() {
        check("web.default.svc.cluster.local.", RecordType::A, Code::NoError, 3);
        check("WEB.Default.svc.CLUSTER.local.", RecordType::A, Code::NoError, 3);
        check(
            "web.default.svc.cluster.local.",
            RecordType::AAAA,
            Code::NoError,
            1,
        );
        check("web.default.svc.cluster.local.", RecordType::MX, Code::NoError, 0);
        check(
            "a.web.default.svc.cluster.local.",
            RecordType::AAAA,
            Code::NoError,
            0,
        );
        check("none.default.svc.cluster.local.", RecordType::A, Code::NoName, 0);
        check(
            "none.web.default.svc.cluster.local.",
            RecordType::A,
            Code::NoName,
            0,
        );
        check("cluster.local.", RecordType::SOA, Code::NoError, 1);
        check("cluster.local.", RecordType::NS, Code::NoError, 1);
        check("cluster.local.", RecordType::A, Code::NoError, 0);
        check(
            "web.default.svc.cluster.local.",
            RecordType::SOA,
            Code::NoError,
            0,
        );
        check("ns.dns.cluster.local.", RecordType::A, Code::NoError, 1);
        check("dns-version.cluster.local.", RecordType::TXT, Code::NoError, 1);
    }

    #[test]
    fn a_name_between_exists_without_data() {
        for name in [
            "svc.cluster.local.",
            "default.svc.cluster.local.",
            "_tcp.web.default.svc.cluster.local.",
        ] {
            check(name, RecordType::A, Code::NoError, 0);
        }
    }

    #[test]
    fn srv_brings_the_addresses_of_its_targets() {
        let answer = answer("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV);
        let RData::SRV(service) = &answer.records[0].data else {
            panic!("{answer:?}");
        };
        assert_eq!((service.priority, service.weight, service.port), (0, 100, 8080));
        assert_eq!(answer.additionals[0].name, service.target);
        assert_eq!(
            answer.additionals[0].data,
            RData::from(IpAddr::from([10, 244, 0, 1]))
        );
    }

    #[test]
    fn reverse_names_of_others_are_foreign() {
        check("1.0.244.10.in-addr.arpa.", RecordType::PTR, Code::NoError, 1);
        check("1.0.244.10.in-addr.arpa.", RecordType::A, Code::NoError, 0);
        for name in [
            "2.0.244.10.in-addr.arpa.",
            "0.244.10.in-addr.arpa.",
            "example.com.",
            "local.",
            ".",
        ] {
            let name = LowerName::from_str(name).expect("a name");
            assert!(
                matches!(zone().find(&name, RecordType::PTR), Found::Foreign),
                "{name}"
            );
        }
    }

    #[test]
    fn aliases_are_followed_inside_and_handed_on_outside() {
        let inner = answer("inner.default.svc.cluster.local.", RecordType::AAAA);
        assert_eq!(inner.records[0].record_type(), RecordType::CNAME);
        assert_eq!(inner.records[1].record_type(), RecordType::AAAA);
        check(
            "inner.default.svc.cluster.local.",
            RecordType::CNAME,
            Code::NoError,
            1,
        );
        assert_eq!(
            answer("loop.default.svc.cluster.local.", RecordType::A).code,
            Code::Failed
        );
        let outer = LowerName::from_str("outer.default.svc.cluster.local.").expect("a name");
        match zone().find(&outer, RecordType::A) {
            Found::Alias { records, target } => {
                assert_eq!(target.to_string(), "www.example.com.");
                assert_eq!(records.len(), 1);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_come_in_another_order_each_time() {
        let first = |_| {
            answer("web.default.svc.cluster.local.", RecordType::A).records[0]
                .data
                .ip_addr()
        };
        let seen: std::collections::HashSet<_> = (0..200).map(first).collect();
        assert_eq!(seen.len(), 3, "each of three addresses is first at times");
    }
}
