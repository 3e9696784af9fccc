//! What a request of the Kubernetes API is about: its path read against the kind table, and its query.

use http::Uri;
use schemas::{Kind, KindRow, Subresource};

use super::status::{ApiError, ApiResult};

/// The part of an object that a path names behind the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    Served(Subresource),
    /// Known to Kubernetes and not served (yet), by its word.
    Unserved(&'static str),
}

/// What a path names.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The kind, as the group in the path serves it.
    pub(crate) row: &'static KindRow,
    /// None: a cluster-scoped kind, or all namespaces.
    pub(crate) namespace: Option<String>,
    /// None: the collection.
    pub(crate) name: Option<String>,
    pub(crate) behind: Option<Behind>,
}

impl Behind {
    fn parse(kind: Kind, word: &str) -> Option<Self> {
        let found = match word {
            "status" => Subresource::Status,
            "scale" => Subresource::Scale,
            "log" => Subresource::Log,
            "eviction" => Subresource::Eviction,
            "binding" => Subresource::Binding,
            "exec" => Subresource::Exec,
            "attach" => Subresource::Attach,
            "portforward" => Subresource::PortForward,
            "proxy" => {
                let has_one = matches!(kind, Kind::Pod | Kind::Service | Kind::Node);
                return has_one.then_some(Self::Unserved("proxy"));
            }
            "ephemeralcontainers" => {
                return (kind == Kind::Pod).then_some(Self::Unserved("ephemeralcontainers"));
            }
            "resize" => return (kind == Kind::Pod).then_some(Self::Unserved("resize")),
            "finalize" => return (kind == Kind::Namespace).then_some(Self::Unserved("finalize")),
            _ => return None,
        };
        kind.row()
            .subresources
            .contains(&found)
            .then_some(Self::Served(found))
    }
}

/// The last word of a subresource's path.
pub(crate) fn word(subresource: Subresource) -> &'static str {
    match subresource {
        Subresource::Status => "status",
        Subresource::Scale => "scale",
        Subresource::Log => "log",
        Subresource::Eviction => "eviction",
        Subresource::Binding => "binding",
        Subresource::Exec => "exec",
        Subresource::Attach => "attach",
        Subresource::PortForward => "portforward",
    }
}

impl Target {
    /// Reads a path; None if it names nothing that is served.
    pub(crate) fn parse(path: &str) -> Option<Target> {
        let mut segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, skip) = match segments.as_slice() {
            ["api", "v1", ..] => ("", 2),
            ["apis", group, "v1", ..] if !group.is_empty() => (*group, 3),
            _ => return None,
        };
        segments.drain(..skip);
        if segments.iter().any(|segment| segment.is_empty()) {
            return None;
        }
        let served = |plural: &str| KindRow::served().find(|row| row.group == group && row.plural == plural);
        let (row, namespace, rest) = match segments.as_slice() {
            // `namespaces/x/status` is the namespace's own; no kind has such a plural.
            ["namespaces", namespace, plural, rest @ ..]
                if served(plural).is_some_and(|row| row.kind.is_namespaced()) =>
            {
                (served(plural)?, Some((*namespace).to_owned()), rest)
            }
            [plural, rest @ ..] => (served(plural)?, None, rest),
            [] => return None,
        };
        // Objects in namespaces are named through their namespace.
        if row.kind.is_namespaced() && namespace.is_none() && !rest.is_empty() {
            return None;
        }
        let (name, behind) = match rest {
            [] => (None, None),
            [name] => (Some((*name).to_owned()), None),
            // What follows is a path of whom is asked.
            [name, word] | [name, word @ "proxy", ..] => {
                (Some((*name).to_owned()), Some(Behind::parse(row.kind, word)?))
            }
            _ => return None,
        };
        Some(Target {
            row,
            namespace,
            name,
            behind,
        })
    }
}

/// The query of a request, as pairs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> ApiResult<Self> {
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map(|query| Self(query.0))
            .map_err(|error| ApiError::bad_request(format!("the query cannot be read: {error}")))
    }

    /// Returns a parameter's value, or an empty one.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .unwrap_or_default()
    }

    /// Returns all values of a parameter, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// Tells whether a parameter is there, with whatever value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// Reads a flag as Kubernetes does: present and neither `0` nor `false` in any case (Python writes `False`).
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .is_some_and(|(_, value)| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// Reads a number; None if it is absent.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("parameter {name}: `{text}` is not a number in range"))
            }),
        }
    }

    /// Tells whether nothing shall be stored.
    ///
    /// # Errors
    /// 400 for anything but `All`, which is all there is.
    pub(crate) fn dry_run(&self) -> ApiResult<bool> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(ApiError::bad_request(format!(
                "parameter dryRun: Unsupported value: \"{other}\": supported values: \"All\""
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, namespace, name and what is behind it.
    type Named<'a> = (Kind, Option<&'a str>, Option<&'a str>, Option<Behind>);

    #[test]
    fn flags_are_set_unless_they_are_0_or_false() {
        let query = Query::of(&"/x?a=1&b=0&c=False&d=false&e=&f=True".parse().unwrap()).unwrap();
        let set: Vec<&str> = ["a", "b", "c", "d", "e", "f", "g"]
            .into_iter()
            .filter(|name| query.flag(name))
            .collect();
        assert_eq!(set, ["a", "e", "f"]);
    }

    #[test]
    fn paths_name_what_kubernetes_says() {
        let check = |path: &str, expected: Option<Named<'_>>| {
            let found = Target::parse(path);
            let found = found.as_ref().map(|target| {
                (
                    target.row.kind,
                    target.namespace.as_deref(),
                    target.name.as_deref(),
                    target.behind,
                )
            });
            assert_eq!(found, expected, "{path}");
        };
        check("/api/v1/pods", Some((Kind::Pod, None, None, None)));
        check(
            "/api/v1/namespaces/a/pods",
            Some((Kind::Pod, Some("a"), None, None)),
        );
        check(
            "/api/v1/namespaces/a/pods/web",
            Some((Kind::Pod, Some("a"), Some("web"), None)),
        );
        check(
            "/api/v1/namespaces/a/pods/web/log",
            Some((
                Kind::Pod,
                Some("a"),
                Some("web"),
                Some(Behind::Served(Subresource::Log)),
            )),
        );
        check(
            "/api/v1/namespaces/a",
            Some((Kind::Namespace, None, Some("a"), None)),
        );
        check(
            "/api/v1/namespaces/a/status",
            Some((
                Kind::Namespace,
                None,
                Some("a"),
                Some(Behind::Served(Subresource::Status)),
            )),
        );
        check(
            "/apis/apps/v1/namespaces/a/deployments/web/scale",
            Some((
                Kind::Deployment,
                Some("a"),
                Some("web"),
                Some(Behind::Served(Subresource::Scale)),
            )),
        );
        check(
            "/api/v1/namespaces/a/pods/web/exec",
            Some((
                Kind::Pod,
                Some("a"),
                Some("web"),
                Some(Behind::Served(Subresource::Exec)),
            )),
        );
        check(
            "/apis/events.k8s.io/v1/namespaces/a/events/web.1",
            Some((Kind::Event, Some("a"), Some("web.1"), None)),
        );
        let proxy = Some(Behind::Unserved("proxy"));
        for (path, kind, namespace) in [
            ("/api/v1/namespaces/a/pods/web/proxy/", Kind::Pod, Some("a")),
            (
                "/api/v1/namespaces/a/services/web/proxy/x/y",
                Kind::Service,
                Some("a"),
            ),
            ("/api/v1/nodes/web/proxy/metrics", Kind::Node, None),
        ] {
            check(path, Some((kind, namespace, Some("web"), proxy)));
        }
        check("/apis/apps/v1/namespaces/a/deployments/web/proxy/x", None);
        check("/apis/events.k8s.io/v1/pods", None);
        check("/api/v1/pods/web", None);
        check("/api/v1/deployments/a/b", None);
        check("/apis/apps/v1/pods", None);
        check("/apis/podman-swarm.io/v1/apitokens", None);
        check("/api/v1/namespaces/a/nodes", None);
        check("/api/v1/namespaces/a/services/web/log", None);
        check("/api/v1/namespaces//pods", None);
    }
}
