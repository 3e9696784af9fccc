//! `psctl delete`: by name, by labels, or whatever files name; waits until the objects are gone.

use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use schemas::deletion::DEFAULT_GRACE_SECONDS;
use schemas::{Kind, Object, ObjectKey};
use serde_json::Value;

use super::{CliError, Client, Global, apply, get, resource};
use crate::config::parse_duration;

/// How often a deleted object is asked for while it goes.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long it may take beyond its grace: its node notices, removes containers and network, and tells the others; what is in a
/// namespace goes before it.
const MARGIN: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// What to delete: KIND NAME..., or KIND/NAME...
    #[arg(
        value_name = "KIND",
        required_unless_present = "filename",
        conflicts_with = "filename"
    )]
    words: Vec<String>,
    /// Delete what a file names: a file, a folder, a URL, or -
    #[arg(long, short, value_name = "FILE|DIR|-|URL")]
    filename: Vec<String>,
    /// Also read the folders below a folder
    #[arg(long, short = 'R', requires = "filename")]
    recursive: bool,
    /// All objects of the kind with these labels
    #[arg(long, short = 'l', value_name = "LABELS", conflicts_with = "filename")]
    selector: Option<String>,
    /// All objects of the kind in the namespace
    #[arg(long, conflicts_with_all = ["selector", "filename"])]
    all: bool,
    /// Return at once, do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
    /// How long to wait [default: the object's grace and a minute]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with = "no_wait")]
    timeout: Option<Duration>,
    /// It is fine if an object is not there
    #[arg(long)]
    ignore_not_found: bool,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, global: &Global, args: DeleteArgs) -> Result<(), CliError> {
    let keys = if args.filename.is_empty() {
        named(client, global, &args).await?
    } else {
        let objects = apply::read_manifests(&args.filename, args.recursive).await?;
        keys_of(&objects, &global.namespace)?
    };
    if keys.is_empty() {
        eprintln!("No resources found");
    }
    let mut failed = false;
    let mut going = Vec::new();
    for key in keys {
        let path = resource::object_path(key.kind, &key.namespace, &key.name);
        match client.send(Method::DELETE, &path, "application/json", None).await {
            Ok(answer) => {
                writeln!(
                    std::io::stdout(),
                    "{} {:?} deleted",
                    get::named(key.kind),
                    key.name
                )?;
                let answer = client.parse(answer).await?;
                let patience = args.timeout.unwrap_or_else(|| grace_of(&answer) + MARGIN);
                going.push(Going {
                    key,
                    path,
                    uid: uid_of(&answer).map(str::to_owned),
                    patience,
                    since: Instant::now(),
                });
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error) => {
                eprintln!("error: {error}");
                failed = true;
            }
        }
    }
    if !args.no_wait {
        for going in going {
            match going.wait(client).await {
                Err(error @ CliError::StillThere { .. }) => {
                    eprintln!("error: {error}");
                    if let Some(hint) = error.hint() {
                        eprintln!("hint: {hint}");
                    }
                    failed = true;
                }
                ended => ended?,
            }
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

/// Returns what objects of files are called, the last first: namespaces usually stand before what is in them.
///
/// # Errors
/// All objects that cannot be found by what their files say.
fn keys_of(objects: &[Object], namespace: &str) -> Result<Vec<ObjectKey>, CliError> {
    let mut keys = Vec::new();
    let mut faults = Vec::new();
    for object in objects.iter().rev() {
        match key_of(object, namespace) {
            Ok(key) => keys.push(key),
            Err(fault) => faults.insert(0, fault),
        }
    }
    if faults.is_empty() {
        Ok(keys)
    } else {
        Err(CliError::Manifests(faults))
    }
}

fn key_of(object: &Object, namespace: &str) -> Result<ObjectKey, String> {
    let (kind, name) = (object.str_at("/kind"), object.name());
    let Some(mut key) = object.key() else {
        return Err(match object.kind() {
            Some(_) => format!("an object of kind {kind} has no metadata.name"),
            None => {
                let version = object.str_at("/apiVersion");
                format!("{name:?}: no matches for kind {kind:?} in version {version:?}")
            }
        });
    };
    if key.kind.is_namespaced() && key.namespace.is_empty() {
        key.namespace = namespace.to_owned();
    }
    Ok(key)
}

async fn named(client: &Client, global: &Global, args: &DeleteArgs) -> Result<Vec<ObjectKey>, CliError> {
    let targets = resource::parse(&args.words)?;
    let selector = args.selector.as_ref().map(|_| "--selector");
    resource::check_choice(&targets, selector.or(args.all.then_some("--all")))?;
    let mut keys = Vec::new();
    for target in targets {
        if target.names.is_empty() {
            if !args.all && args.selector.is_none() {
                return Err(CliError::Usage {
                    message: format!("which {}?", target.kind.row().plural),
                    hint: "name them, or give --selector LABELS, or --all",
                });
            }
            keys.extend(listed(client, global, target.kind, args.selector.as_deref()).await?);
        } else {
            keys.extend(
                target
                    .names
                    .iter()
                    .map(|name| ObjectKey::new(target.kind, &global.namespace, name)),
            );
        }
    }
    Ok(keys)
}

async fn listed(
    client: &Client,
    global: &Global,
    kind: Kind,
    selector: Option<&str>,
) -> Result<Vec<ObjectKey>, CliError> {
    let mut path = resource::list_path(kind, Some(&global.namespace));
    if let Some(labels) = selector {
        path += &format!("?labelSelector={}", resource::encode(labels));
    }
    let list = client.get_json(&path).await?;
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    Ok(items
        .filter_map(|item| item.pointer("/metadata/name").and_then(Value::as_str))
        .map(|name| ObjectKey::new(kind, &global.namespace, name))
        .collect())
}

/// Returns the uid of what a deletion's answer is about: the object as it goes, or a Status about one that is gone.
fn uid_of(answer: &Value) -> Option<&str> {
    answer
        .pointer("/metadata/uid")
        .or_else(|| answer.pointer("/details/uid"))
        .and_then(Value::as_str)
}

/// How long the object may take to end, by its own word.
fn grace_of(answer: &Value) -> Duration {
    let seconds = [
        "/metadata/deletionGracePeriodSeconds",
        "/spec/terminationGracePeriodSeconds",
    ]
    .iter()
    .find_map(|field| answer.pointer(field)?.as_u64());
    Duration::from_secs(seconds.unwrap_or(DEFAULT_GRACE_SECONDS.into()))
}

/// An object that was deleted and may not be gone yet.
struct Going {
    key: ObjectKey,
    path: String,
    uid: Option<String>,
    /// How long it is waited for, from `since` on.
    patience: Duration,
    since: Instant,
}

impl Going {
    /// Waits until the object is not there, or is another one of the same name.
    async fn wait(&self, client: &Client) -> Result<(), CliError> {
        loop {
            match client.get_json(&self.path).await {
                Ok(object) => {
                    let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
                    if self.uid.is_some() && uid != self.uid.as_deref() {
                        return Ok(());
                    }
                }
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if self.since.elapsed() >= self.patience {
                return Err(CliError::StillThere {
                    object: format!("{}/{}", get::named(self.key.kind), self.key.name),
                    seconds: self.patience.as_secs(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn files_and_a_choice_by_labels_are_not_both_taken() {
        for flags in ["--all", "-l app=web"] {
            let line = format!("psctl delete -f a.yaml {flags}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn every_object_of_a_file_that_cannot_be_found_is_told() {
        let object = |value: Value| Object::from_value(value).unwrap();
        let pod = object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}));
        let thing = object(json!({"apiVersion": "v9", "kind": "Thing", "metadata": {"name": "b"}}));
        let nameless = object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}));
        let named = ObjectKey::new(Kind::Pod, "shop", "a");
        assert_eq!(keys_of(std::slice::from_ref(&pod), "shop").unwrap(), [named]);
        let error = keys_of(&[pod, thing, nameless], "shop").unwrap_err().to_string();
        assert_eq!(
            error,
            "\"b\": no matches for kind \"Thing\" in version \"v9\"\n\
             error: an object of kind Pod has no metadata.name"
        );
    }

    #[test]
    fn both_answers_of_a_deletion_say_which_object() {
        for (answer, expected) in [
            (
                json!({"kind": "Pod", "metadata": {"name": "a", "uid": "u1"}}),
                Some("u1"),
            ),
            (
                json!({"kind": "Status", "metadata": {}, "details": {"name": "a", "uid": "u2"}}),
                Some("u2"),
            ),
            (json!({"kind": "Status", "metadata": {}}), None),
        ] {
            assert_eq!(uid_of(&answer), expected, "{answer}");
        }
    }

    #[test]
    fn an_object_is_given_its_own_grace() {
        for (answer, seconds) in [
            (
                json!({"metadata": {"deletionGracePeriodSeconds": 0}, "spec": {"terminationGracePeriodSeconds": 9}}),
                0,
            ),
            (
                json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 600}}),
                600,
            ),
            (json!({"metadata": {}}), DEFAULT_GRACE_SECONDS.into()),
        ] {
            assert_eq!(grace_of(&answer), Duration::from_secs(seconds), "{answer}");
        }
    }
}
