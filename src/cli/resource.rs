//! The words of the command line that name objects: `pods`, `deploy/web`, `pod a b`, `pods,services`, `all`.

use schemas::{KINDS, Kind};

use super::CliError;

/// A kind and some names of it; no names means all of that kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) names: Vec<String>,
}

/// Reads the words after a command.
///
/// # Errors
/// A word that names no kind; both forms (`kind/name` and `kind name`) at once.
pub(super) fn parse(words: &[String]) -> Result<Vec<Target>, CliError> {
    let Some((first, rest)) = words.split_first() else {
        return Err(usage("no kind was named".into()));
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| slashed(word)).collect();
    }
    let kinds = if first == "all" {
        KINDS
            .iter()
            .filter(|row| row.in_all)
            .map(|row| row.kind)
            .collect()
    } else {
        first.split(',').map(kind).collect::<Result<Vec<_>, _>>()?
    };
    if kinds.len() > 1 && !rest.is_empty() {
        return Err(usage(
            "names cannot be given for several kinds at once; write kind/name kind/name".into(),
        ));
    }
    Ok(kinds
        .into_iter()
        .map(|kind| Target {
            kind,
            names: rest.to_vec(),
        })
        .collect())
}

/// Refuses flags that choose objects beside names, which choose them already: the flag would be ignored.
///
/// # Errors
/// `flag` is given, and a target has names.
pub(super) fn check_choice(targets: &[Target], flag: Option<&'static str>) -> Result<(), CliError> {
    match flag {
        Some(flag) if targets.iter().any(|target| !target.names.is_empty()) => Err(CliError::Usage {
            message: format!("{flag} cannot be given with names"),
            hint: "name the kind alone, or leave the flag out",
        }),
        _ => Ok(()),
    }
}

fn slashed(word: &str) -> Result<Target, CliError> {
    match word.split_once('/') {
        Some((kind_word, name)) if !name.is_empty() && !name.contains('/') => Ok(Target {
            kind: kind(kind_word)?,
            names: vec![name.to_owned()],
        }),
        _ => Err(usage(format!("{word:?} is not of the form kind/name"))),
    }
}

fn kind(word: &str) -> Result<Kind, CliError> {
    Kind::from_user(word).ok_or_else(|| usage(format!("there is no kind {word:?}")))
}

fn usage(message: String) -> CliError {
    CliError::Usage {
        message,
        hint: "kinds: pods, deployments, replicasets, services, ingresses, nodes, namespaces, events",
    }
}

/// Returns the path of a kind's list, in a namespace or (None) in all.
pub(super) fn list_path(kind: Kind, namespace: Option<&str>) -> String {
    let row = kind.row();
    let root = if row.group.is_empty() {
        format!("/api/{}", row.version)
    } else {
        format!("/apis/{}/{}", row.group, row.version)
    };
    match namespace {
        Some(namespace) if kind.is_namespaced() => {
            format!("{root}/namespaces/{}/{}", encode(namespace), row.plural)
        }
        Some(_) | None => format!("{root}/{}", row.plural),
    }
}

/// Returns the path of an object.
pub(super) fn object_path(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", list_path(kind, Some(namespace)), encode(name))
}

/// Percent-encodes a part of a path or of a query.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn objects_are_named_in_both_forms() {
        let target = |kind, names: &[&str]| Target {
            kind,
            names: names.iter().map(|name| name.to_string()).collect(),
        };
        assert_eq!(parse(&words("pods")).unwrap(), [target(Kind::Pod, &[])]);
        assert_eq!(parse(&words("po a b")).unwrap(), [target(Kind::Pod, &["a", "b"])]);
        assert_eq!(
            parse(&words("deploy/web svc/web")).unwrap(),
            [
                target(Kind::Deployment, &["web"]),
                target(Kind::Service, &["web"])
            ]
        );
        for bad in ["nothing", "pods/", "pods,svc web", "pod/a b"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_a_selector_are_not_both_taken() {
        let targets = |text| parse(&words(text)).unwrap();
        assert!(check_choice(&targets("pods"), Some("--selector")).is_ok());
        assert!(check_choice(&targets("pods a"), None).is_ok());
        for named in ["pods a", "pod/a", "pod/a svc/b"] {
            let refused = check_choice(&targets(named), Some("--selector"));
            assert!(matches!(refused, Err(CliError::Usage { .. })), "{named}");
        }
    }

    #[test]
    fn paths_are_those_of_kubernetes() {
        assert_eq!(
            object_path(Kind::Deployment, "a", "b"),
            "/apis/apps/v1/namespaces/a/deployments/b"
        );
        assert_eq!(object_path(Kind::Node, "a", "b"), "/api/v1/nodes/b");
        assert_eq!(list_path(Kind::Pod, None), "/api/v1/pods");
    }
}
