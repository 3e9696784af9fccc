//! `resourceVersion`, `resourceVersionMatch`, `limit`, `continue`, `sendInitialEvents`: which state a list shows, and from
//! which a watch begins. Pure; as Kubernetes' "API concepts" has it (the table of list and watch semantics).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::ObjectKey;
use serde::{Deserialize, Serialize};
use store::Revision;

use crate::api::status::{ApiError, ApiResult, Cause};
use crate::api::target::{Query, Target};

/// The state that a list shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Newest,
    /// The newest, if that cannot be from before this.
    NotOlderThan(Revision),
    Exactly(Revision),
}

/// What a list is asked for beside selectors.
#[derive(Debug)]
pub(super) struct ListOptions {
    /// 0: all.
    pub(super) limit: usize,
    pub(super) state: State,
    /// The last object of the page before, of a list that goes on.
    pub(super) after: Option<ObjectKey>,
}

/// Where a watch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beginning {
    /// With all that is there, as additions; it may not be from before this.
    All(Option<Revision>),
    Now,
    After(Revision),
}

/// Where the next page of a list begins.
#[derive(Serialize, Deserialize)]
pub(super) struct Continue {
    /// The state that the first page showed; None: the newest, for who takes a list whose pages do not fit together.
    revision: Option<u64>,
    /// The last object that was shown.
    after: String,
}

impl ListOptions {
    /// Reads the options of a list.
    ///
    /// # Errors
    /// 400 and 422, as Kubernetes has them.
    pub(super) fn of(target: &Target, query: &Query) -> ApiResult<Self> {
        let limit = query.number::<usize>("limit")?.unwrap_or_default();
        let version = resource_version(query.text("resourceVersion"))?;
        let wanted = query.text("resourceVersionMatch");
        let mut wrong = Vec::new();
        if !wanted.is_empty() {
            if query.text("resourceVersion").is_empty() {
                wrong.push(forbidden_match("forbidden unless resourceVersion is provided"));
            }
            if !query.text("continue").is_empty() {
                wrong.push(forbidden_match("forbidden when continue is provided"));
            }
            if wanted == "Exact" && query.text("resourceVersion") == "0" {
                wrong.push(forbidden_match(
                    "\"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            if !matches!(wanted, "Exact" | "NotOlderThan") {
                wrong.push(unsupported_match(wanted, "\"Exact\", \"NotOlderThan\""));
            }
        }
        if query.has("sendInitialEvents") {
            wrong.push(cause("sendInitialEvents", "Forbidden", "forbidden for list"));
        }
        check(wrong)?;
        if !query.text("continue").is_empty() {
            if version.is_some() {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, after) = Continue::decode(query.text("continue"), target).ok_or_else(|| {
                ApiError::bad_request("continue key is not valid: it is not one of this list")
            })?;
            return Ok(Self {
                limit,
                state: revision.map_or(State::Newest, State::Exactly),
                after: Some(after),
            });
        }
        let state = match (version, wanted) {
            (None, _) => State::Newest,
            (Some(version), "Exact") => State::Exactly(version),
            (Some(version), "NotOlderThan") => State::NotOlderThan(version),
            // As it was before there was a match.
            (Some(version), _) if limit > 0 => State::Exactly(version),
            (Some(version), _) => State::NotOlderThan(version),
        };
        Ok(Self {
            limit,
            state,
            after: None,
        })
    }

    /// The answer when the state that was asked for is no longer kept: a list that went on may do so from the newest.
    pub(super) fn expired(&self) -> ApiError {
        let Some(after) = &self.after else {
            return ApiError::expired();
        };
        let mut error = ApiError::expired();
        error.message = "The provided continue parameter is too old to display a consistent list result. You can start a \
             new list without the continue parameter, or use the continue token in this response to retrieve the \
             remainder of the results. Continuing with the provided token results in an inconsistent list: objects \
             that were created, modified, or deleted between the time the first chunk was returned and now may show up \
             in the list."
            .to_owned();
        error.details.list_continue = Continue::encode(None, after);
        error
    }
}

impl Beginning {
    /// Reads where a watch is to begin.
    ///
    /// # Errors
    /// 400 and 422, as Kubernetes has them.
    pub(super) fn of(query: &Query) -> ApiResult<Self> {
        let wanted = query.text("resourceVersionMatch");
        let mut wrong = Vec::new();
        if query.has("sendInitialEvents") && wanted != "NotOlderThan" {
            wrong.push(forbidden_match("must be NotOlderThan for sendInitialEvents"));
        }
        if !wanted.is_empty() {
            if !query.has("sendInitialEvents") {
                wrong.push(forbidden_match(
                    "forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if wanted != "NotOlderThan" {
                wrong.push(unsupported_match(wanted, "\"NotOlderThan\""));
            }
        }
        check(wrong)?;
        let version = resource_version(query.text("resourceVersion"))?;
        // Without a version, what is there comes first unless the client declines.
        let initial = match query.has("sendInitialEvents") {
            true => query.flag("sendInitialEvents"),
            false => version.is_none(),
        };
        Ok(match (initial, version) {
            (true, version) => Self::All(version),
            (false, None) => Self::Now,
            (false, Some(version)) => Self::After(version),
        })
    }
}

impl Continue {
    /// Makes a token.
    pub(super) fn encode(revision: Option<Revision>, after: &ObjectKey) -> String {
        let token = Self {
            revision: revision.map(|revision| revision.0),
            after: after.to_string(),
        };
        // A struct of a number and a string is always JSON.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str, target: &Target) -> Option<(Option<Revision>, ObjectKey)> {
        let token: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let after: ObjectKey = token.after.parse().ok()?;
        let of_this_list = after.kind == target.row.kind
            && target
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == after.namespace);
        of_this_list.then(|| (token.revision.map(Revision), after))
    }
}

/// Reads a `resourceVersion`; None for "any".
///
/// # Errors
/// 400 for what is no version.
pub(super) fn resource_version(text: &str) -> ApiResult<Option<Revision>> {
    match text {
        "" | "0" => Ok(None),
        text => text
            .parse()
            .map(|revision| Some(Revision(revision)))
            .map_err(|_| {
                ApiError::bad_request(format!(
                    "resourceVersion: Invalid value: \"{text}\": not a version of this server"
                ))
            }),
    }
}

fn cause(field: &str, reason: &str, message: &str) -> Cause {
    Cause {
        reason: format!("FieldValue{reason}"),
        message: format!("{reason}: {field} is {message}"),
        field: field.to_owned(),
    }
}

fn forbidden_match(why: &str) -> Cause {
    cause("resourceVersionMatch", "Forbidden", why)
}

fn unsupported_match(value: &str, supported: &str) -> Cause {
    Cause {
        reason: "FieldValueNotSupported".to_owned(),
        message: format!("Unsupported value: \"{value}\": supported values: {supported}"),
        field: "resourceVersionMatch".to_owned(),
    }
}

fn check(wrong: Vec<Cause>) -> ApiResult<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ApiError::unprocessable("ListOptions.meta.k8s.io", "", wrong))
}

#[cfg(test)]
mod tests {
    use http::Uri;
    use schemas::Kind;

    use super::*;

    fn query(text: &str) -> Query {
        let uri: Uri = format!("/api/v1/pods?{text}").parse().unwrap();
        Query::of(&uri).unwrap()
    }

    fn target(path: &str) -> Target {
        Target::parse(path).unwrap()
    }

    #[test]
    fn lists_show_what_kubernetes_says() {
        let check = |text: &str, expected: Result<State, u16>| {
            let found = ListOptions::of(&target("/api/v1/pods"), &query(text));
            let found = found
                .map(|options| options.state)
                .map_err(|error| error.code.as_u16());
            assert_eq!(found, expected, "{text}");
        };
        let seven = Revision(7);
        check("", Ok(State::Newest));
        check("limit=5", Ok(State::Newest));
        check("resourceVersion=0", Ok(State::Newest));
        check("resourceVersion=0&limit=5", Ok(State::Newest));
        check(
            "resourceVersion=0&resourceVersionMatch=NotOlderThan",
            Ok(State::Newest),
        );
        check("resourceVersion=7", Ok(State::NotOlderThan(seven)));
        check("resourceVersion=7&limit=5", Ok(State::Exactly(seven)));
        for limit in ["", "&limit=5"] {
            let with = |text: &str| format!("resourceVersion=7&resourceVersionMatch={text}{limit}");
            check(&with("Exact"), Ok(State::Exactly(seven)));
            check(&with("NotOlderThan"), Ok(State::NotOlderThan(seven)));
        }
        check("resourceVersion=0&resourceVersionMatch=Exact", Err(422));
        check("resourceVersionMatch=NotOlderThan", Err(422));
        check("resourceVersion=7&resourceVersionMatch=Latest", Err(422));
        check("sendInitialEvents=true", Err(422));
        check("resourceVersion=seven", Err(400));
        check("limit=-1", Err(400));
    }

    #[test]
    fn a_list_goes_on_where_its_own_token_says() {
        let after = ObjectKey::new(Kind::Pod, "a", "web");
        let exact = format!("continue={}", Continue::encode(Some(Revision(7)), &after));
        let check = |path: &str, text: &str, expected: Result<State, u16>| {
            let found = ListOptions::of(&target(path), &query(text));
            if let Ok(options) = &found {
                assert_eq!(options.after.as_ref(), Some(&after), "{text}");
            }
            let found = found
                .map(|options| options.state)
                .map_err(|error| error.code.as_u16());
            assert_eq!(found, expected, "{path} {text}");
        };
        let pods = "/api/v1/pods";
        check(pods, &exact, Ok(State::Exactly(Revision(7))));
        check(
            pods,
            &format!("{exact}&resourceVersion=0"),
            Ok(State::Exactly(Revision(7))),
        );
        check(pods, &format!("{exact}&resourceVersion=7"), Err(400));
        check(
            pods,
            &format!("{exact}&resourceVersion=0&resourceVersionMatch=NotOlderThan"),
            Err(422),
        );
        check("/api/v1/namespaces/b/pods", &exact, Err(400));
        check("/api/v1/services", &exact, Err(400));
        check(pods, "continue=nonsense", Err(400));
        let newest = format!("continue={}", Continue::encode(None, &after));
        check(pods, &newest, Ok(State::Newest));
    }

    #[test]
    fn watches_begin_where_kubernetes_says() {
        let check = |text: &str, expected: Result<Beginning, u16>| {
            let found = Beginning::of(&query(text)).map_err(|error| error.code.as_u16());
            assert_eq!(found, expected, "{text}");
        };
        let seven = Revision(7);
        let not_older = "resourceVersionMatch=NotOlderThan";
        check("", Ok(Beginning::All(None)));
        check("resourceVersion=0", Ok(Beginning::All(None)));
        check("resourceVersion=7", Ok(Beginning::After(seven)));
        check(
            &format!("sendInitialEvents=true&{not_older}"),
            Ok(Beginning::All(None)),
        );
        check(
            &format!("sendInitialEvents=true&{not_older}&resourceVersion=7"),
            Ok(Beginning::All(Some(seven))),
        );
        check(
            &format!("sendInitialEvents=false&{not_older}"),
            Ok(Beginning::Now),
        );
        check(
            &format!("sendInitialEvents=false&{not_older}&resourceVersion=7"),
            Ok(Beginning::After(seven)),
        );
        check("sendInitialEvents=true", Err(422));
        check(&format!("{not_older}&resourceVersion=7"), Err(422));
        check("sendInitialEvents=true&resourceVersionMatch=Exact", Err(422));
    }
}
