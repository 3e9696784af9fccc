//! The route table, compiled for lookups, and the choice of an endpoint. Pure but for a counter per backend.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reconcilers::ports::{Backend, PathRoute, RouteTable};

/// A route table, compiled.
#[derive(Debug, Default)]
pub(super) struct Routes {
    hosts: HashMap<String, Paths>,
    wildcards: HashMap<String, Paths>,
    any_host: Paths,
    default: Option<Arc<Target>>,
}

/// The paths of one host. Both kinds are found by hashing, so a lookup costs the path's depth and not the number of rules.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Arc<Target>>,
    /// Without the final slash, so that `/` is empty.
    prefixes: HashMap<String, Arc<Target>>,
    /// Bytes; no element below this can end a prefix, which bounds the work for a hostile path.
    longest_prefix: usize,
}

/// A backend and whose turn it is.
#[derive(Debug)]
pub(super) struct Target {
    /// `namespace/service:port`.
    pub(super) name: String,
    local: Vec<SocketAddr>,
    remote: Vec<SocketAddr>,
    turn: AtomicUsize,
}

impl Routes {
    /// Compiles a table. Of two rules for one host and path the first stays.
    pub(super) fn new(table: &RouteTable) -> Self {
        let mut targets = HashMap::new();
        let mut target = |backend: &Arc<Backend>| -> Arc<Target> {
            let target = targets.entry(Arc::as_ptr(backend));
            target.or_insert_with(|| Arc::new(Target::new(backend))).clone()
        };
        let mut hosts = |by_host: &HashMap<String, Vec<PathRoute>>| {
            let compile = |(host, routes): (&String, &Vec<PathRoute>)| {
                (host.to_ascii_lowercase(), Paths::new(routes, &mut target))
            };
            by_host.iter().map(compile).collect()
        };
        Self {
            hosts: hosts(&table.hosts),
            wildcards: hosts(&table.wildcards),
            any_host: Paths::new(&table.any_host, &mut target),
            default: table.default_backend.as_ref().map(target),
        }
    }

    /// Finds the backend for a request: the rules of the host, of the wildcard that covers it, those for any host, the
    /// default backend. `host` is as [`host_name`] gives it, `path` as [`comparable_path`] does.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<Arc<Target>> {
        let wildcard = || {
            let (label, domain) = host.split_once('.')?;
            (!label.is_empty()).then(|| self.wildcards.get(domain))?
        };
        let find = |paths: &Paths| paths.find(path);
        (self.hosts.get(host).and_then(find))
            .or_else(|| wildcard().and_then(find))
            .or_else(|| self.any_host.find(path))
            .or_else(|| self.default.clone())
    }
}

impl Paths {
    fn new(routes: &[PathRoute], target: &mut impl FnMut(&Arc<Backend>) -> Arc<Target>) -> Self {
        let mut paths = Self::default();
        for route in routes {
            let path = comparable_path(&route.path);
            let target = target(&route.backend);
            if route.exact {
                paths.exact.entry(path).or_insert(target);
            } else {
                let prefix = path.trim_end_matches('/').to_owned();
                paths.longest_prefix = paths.longest_prefix.max(prefix.len());
                paths.prefixes.entry(prefix).or_insert(target);
            }
        }
        paths
    }

    /// The exact path, else the longest prefix by whole elements.
    fn find(&self, path: &str) -> Option<Arc<Target>> {
        if let Some(target) = self.exact.get(path) {
            return Some(target.clone());
        }
        let mut prefix = path.trim_end_matches('/');
        loop {
            if prefix.len() <= self.longest_prefix
                && let Some(target) = self.prefixes.get(prefix)
            {
                return Some(target.clone());
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
    }
}

impl Target {
    fn new(backend: &Backend) -> Self {
        let addresses = |local| {
            let endpoints = backend
                .endpoints
                .iter()
                .filter(move |endpoint| endpoint.local == local);
            endpoints.map(|endpoint| endpoint.address).collect()
        };
        Self {
            name: backend.name.clone(),
            local: addresses(true),
            remote: addresses(false),
            // Tables are swapped often; starting at the first endpoint each time would favour it.
            turn: AtomicUsize::new(rand::random_range(0..1 << 16)),
        }
    }

    /// Tells whether there is no endpoint at all.
    pub(super) fn is_empty(&self) -> bool {
        self.local.is_empty() && self.remote.is_empty()
    }

    /// Chooses the next endpoint in turn that is not in `tried`; those of this node first.
    pub(super) fn next(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let next_of = |addresses: &[SocketAddr]| {
            let (before, from) = addresses.split_at(turn.checked_rem(addresses.len())?);
            let mut in_turn = from.iter().chain(before);
            in_turn.find(|address| !tried.contains(address)).copied()
        };
        next_of(&self.local).or_else(|| next_of(&self.remote))
    }
}

/// Reads the host out of an authority: without port and final dot, in lower case; IPv6 addresses keep their brackets.
pub(super) fn host_name(authority: &str) -> String {
    let host = match authority.rfind(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Brings a path into the form that rules are compared in, which is what a backend will take it for: `.` and `..` are
/// resolved, letters that were needlessly escaped are not (RFC 3986, 6.2.2), an escaped slash stays part of its element.
pub(super) fn comparable_path(path: &str) -> String {
    let mut elements: Vec<String> = Vec::new();
    let mut last_is_directory = false;
    for element in path.strip_prefix('/').unwrap_or_default().split('/') {
        let element = unescape_unreserved(element);
        last_is_directory = matches!(element.as_str(), "." | "..");
        match element.as_str() {
            "." => {}
            ".." => {
                elements.pop();
            }
            _ => elements.push(element),
        }
    }
    let mut comparable = String::with_capacity(path.len() + 1);
    for element in &elements {
        comparable.push('/');
        comparable.push_str(element);
    }
    if last_is_directory || elements.is_empty() {
        comparable.push('/');
    }
    comparable
}

fn unescape_unreserved(element: &str) -> String {
    let Some((first, rest)) = element.split_once('%') else {
        return element.to_owned();
    };
    let mut plain = first.to_owned();
    for part in rest.split('%') {
        let escaped = part
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[2..]);
            }
            Some(byte) => {
                plain.push_str(&format!("%{byte:02X}"));
                plain.push_str(&part[2..]);
            }
            None => {
                plain.push('%');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use reconcilers::ports::BackendEndpoint;

    use super::*;

    fn route(path: &str, exact: bool, name: &str) -> PathRoute {
        PathRoute {
            path: path.into(),
            exact,
            backend: Arc::new(Backend {
                name: name.into(),
                endpoints: Vec::new(),
            }),
        }
    }

    fn table() -> RouteTable {
        let mut table = RouteTable::default();
        table.hosts.insert(
            "shop.example.com".into(),
            vec![
                route("/", false, "shop"),
                route("/api", false, "api"),
                route("/api/v1/", false, "v1"),
                route("/api", true, "api-exact"),
                route("/only", true, "only"),
            ],
        );
        table.hosts.insert("[::1]".into(), vec![route("/", false, "six")]);
        table
            .hosts
            .insert("part.example.com".into(), vec![route("/part", false, "part")]);
        table
            .wildcards
            .insert("example.com".into(), vec![route("/", false, "wild")]);
        table.any_host = vec![route("/any", false, "any")];
        table.default_backend = Some(route("/", false, "default").backend);
        table
    }

    fn check(authority: &str, path: &str, expected: &str) {
        let found = Routes::new(&table()).find(&host_name(authority), &comparable_path(path));
        let found = found.map(|target| target.name.clone());
        assert_eq!(found.as_deref(), Some(expected), "{authority} {path}");
    }

    #[test]
    fn hosts_go_before_wildcards_before_any_host_before_the_default() {
        check("shop.example.com", "/any", "shop");
        check("SHOP.Example.com.:8080", "/x", "shop");
        check("other.example.com", "/x", "wild");
        check("part.example.com", "/part/x", "part");
        check("part.example.com", "/x", "wild");
        check("a.b.example.com", "/any/x", "any");
        check("example.com", "/any", "any");
        check(".example.com", "/x", "default");
        check("nowhere.test", "/x", "default");
        check("[::1]:80", "/", "six");
        check("", "/any", "any");
    }

    #[test]
    fn paths_match_by_element_longest_first_and_exact_before_prefix() {
        check("shop.example.com", "/api", "api-exact");
        check("shop.example.com", "/api/", "api");
        check("shop.example.com", "/apix", "shop");
        check("shop.example.com", "/api/v1", "v1");
        check("shop.example.com", "/api/v1/", "v1");
        check("shop.example.com", "/api/v1/pods", "v1");
        check("shop.example.com", "/api/v10", "api");
        check("shop.example.com", "/only", "only");
        check("shop.example.com", "/only/", "shop");
        check("shop.example.com", "*", "shop");
    }

    #[test]
    fn dots_and_escapes_do_not_lead_around_a_rule() {
        check("shop.example.com", "/x/../api/v1/y", "v1");
        check("shop.example.com", "/x/%2e%2E/api/v1/y", "v1");
        check("shop.example.com", "/%61pi/v1", "v1");
        check("shop.example.com", "/api/../only", "only");
        check("shop.example.com", "/../../only", "only");
        check("shop.example.com", "/api%2Fv1", "shop");
        check("shop.example.com", "/api/v1/..", "api");
        check("shop.example.com", "/api/./v1", "v1");
    }

    #[test]
    fn paths_are_compared_in_one_form() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("/a//b", "/a//b"),
            ("/a/", "/a/"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/%2f%zz%7E%e4%", "/%2F%zz~%E4%"),
            ("/%é", "/%é"),
        ] {
            assert_eq!(comparable_path(path), expected, "{path}");
        }
    }

    #[test]
    fn endpoints_take_turns_local_ones_first() {
        let address = |last| SocketAddr::from((Ipv4Addr::new(10, 244, 0, last), 80));
        let endpoint = |last, local| BackendEndpoint {
            address: address(last),
            local,
        };
        let target = Target::new(&Backend {
            name: "default/web:80".into(),
            endpoints: vec![
                endpoint(1, true),
                endpoint(2, false),
                endpoint(3, true),
                endpoint(4, false),
            ],
        });
        let mut seen: Vec<SocketAddr> = (0..4).filter_map(|_| target.next(&[])).collect();
        seen.sort();
        assert_eq!(seen, [address(1), address(1), address(3), address(3)]);
        let mut tried = Vec::new();
        while let Some(next) = target.next(&tried) {
            tried.push(next);
        }
        assert_eq!(tried.len(), 4);
        assert!(
            tried[..2].contains(&address(1)) && tried[..2].contains(&address(3)),
            "{tried:?}"
        );
    }
}
