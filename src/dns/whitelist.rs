//! Which names outside the cluster may be resolved: a listed host allows itself and its subdomains.

use std::collections::HashSet;
use std::str::FromStr;

use hickory_proto::rr::{LowerName, Name, RData, Record};
use reconcilers::ports::DnsWhitelist;

/// A whitelist, prepared for one hash lookup per label.
#[derive(Debug)]
pub(super) struct Whitelist {
    /// None: every name is allowed.
    hosts: Option<HashSet<LowerName>>,
}

impl Whitelist {
    /// Prepares a whitelist; a host that is no name cannot be asked for and is left out.
    pub(super) fn new(whitelist: &DnsWhitelist) -> Self {
        let parse = |host: &String| {
            let mut name = Name::from_str(host).ok()?;
            name.set_fqdn(true);
            Some(LowerName::from(name))
        };
        Self {
            hosts: whitelist
                .enabled
                .then(|| whitelist.hosts.iter().filter_map(parse).collect()),
        }
    }

    /// Tells whether `name`, or a domain above it, is listed.
    pub(super) fn allows(&self, name: &LowerName) -> bool {
        let Some(hosts) = &self.hosts else {
            return true;
        };
        let mut name = name.clone();
        while !name.is_root() {
            if hosts.contains(&name) {
                return true;
            }
            name = name.base_name();
        }
        false
    }

    /// Tells whether the target of every CNAME among `records` is allowed.
    pub(super) fn allows_targets(&self, records: &[Record]) -> bool {
        records.iter().all(|record| match &record.data {
            RData::CNAME(target) => self.allows(&LowerName::from(&target.0)),
            _ => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hosts: &[&str], name: &str, allowed: bool) {
        let whitelist = Whitelist::new(&DnsWhitelist {
            enabled: true,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        });
        let name = LowerName::from_str(name).expect("a name");
        assert_eq!(whitelist.allows(&name), allowed, "{name} with {hosts:?}");
    }

    #[test]
    fn a_host_allows_itself_and_its_subdomains_by_whole_labels() {
        check(&["example.com"], "example.com.", true);
        check(&["example.com"], "WWW.Example.COM.", true);
        check(&["example.com"], "a.b.example.com.", true);
        check(&["example.com"], "badexample.com.", false);
        check(&["example.com"], "com.", false);
        check(&["www.example.com"], "example.com.", false);
        check(&[], "example.com.", false);
    }

    #[test]
    fn a_whitelist_that_is_off_allows_all() {
        let name = LowerName::from_str("anything.test.").expect("a name");
        assert!(Whitelist::new(&DnsWhitelist::default()).allows(&name));
    }
}
