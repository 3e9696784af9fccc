//! `psctl restore`: shows what a backup would change in the cluster, and does it once the user says so.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::apply::input;
use super::{CliError, Client};
use crate::backup::{self, About, Action, Identity, Line, MAX_BACKUP_BYTES};

/// The longest line of an answer: names, and why something failed.
const MAX_LINE_BYTES: usize = 1 << 20;
/// What is read of a file: one sealed is a little longer, and one that is too long is refused by the node.
const MAX_FILE_BYTES: usize = MAX_BACKUP_BYTES + (1 << 20);

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup, or - for standard input
    #[arg(long, short, value_name = "FILE|-")]
    filename: String,
    /// Carry the plan out without asking
    #[arg(long)]
    yes: bool,
    /// Show the plan alone
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Remove objects that say something else than the backup, and make them anew
    #[arg(long)]
    replace: bool,
    /// The key of a backup of another cluster: its encryption.key, or the output of podman-swarm-agent backup-identity
    #[arg(long, value_name = "FILE")]
    encryption_key: Option<PathBuf>,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, args: RestoreArgs) -> Result<(), CliError> {
    let file = Bytes::from(read_file(&args)?);
    let plan = restore(client, &args, file.clone(), false).await?;
    print_summary("plan", false, &plan)?;
    if !plan.keys().any(|action| action.changes()) {
        println!("there is nothing to do");
        return ended(&plan);
    }
    if args.dry_run {
        return ended(&plan);
    }
    if !args.yes && !asked(&args)? {
        return Err(CliError::Usage {
            message: "nothing was changed".to_owned(),
            hint: "--yes carries the plan out",
        });
    }
    let done = restore(client, &args, file, true).await?;
    print_summary("restored", true, &done)?;
    ended(&done)
}

fn read_file(args: &RestoreArgs) -> Result<Vec<u8>, CliError> {
    let name = match args.filename.as_str() {
        "-" => "standard input",
        name => name,
    };
    let failed = |error: io::Error| input(name, error);
    let reader: Box<dyn Read> = match args.filename.as_str() {
        "-" => Box::new(io::stdin().lock()),
        name => Box::new(std::fs::File::open(name).map_err(failed)?),
    };
    let mut file = Vec::new();
    reader
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut file)
        .map_err(failed)?;
    if file.len() > MAX_FILE_BYTES {
        return Err(input(name, backup::ReadError::TooLarge));
    }
    let Some(path) = &args.encryption_key else {
        return Ok(file);
    };
    let shown = path.display().to_string();
    let key = std::fs::read_to_string(path).map_err(|error| input(&shown, error))?;
    let identity: Identity = key.parse().map_err(|error| input(&shown, error))?;
    backup::open(file, &identity).map_err(|error| input(name, error))
}

/// Lets a node plan or do it, prints what it says of each object, and returns how many there were of each.
async fn restore(
    client: &Client,
    args: &RestoreArgs,
    file: Bytes,
    act: bool,
) -> Result<BTreeMap<Action, usize>, CliError> {
    let path = format!(
        "/api/v1/restore?fieldManager=psctl&replace={}{}",
        args.replace,
        if act { "" } else { "&dryRun=All" }
    );
    let body = Some(("application/octet-stream", file));
    let answer = client
        .send(Method::POST, &path, "application/x-ndjson", body)
        .await?;
    let mut lines = Lines {
        body: answer.into_body(),
        read: Vec::new(),
    };
    while let Some(line) = lines.next(client).await? {
        match line {
            Line::Backup(about) if !act => writeln!(io::stdout(), "{}", described(&about))?,
            Line::Backup(_) => {}
            // Of a large backup most is there already.
            Line::Object(entry) if entry.action == Action::Unchanged => {}
            Line::Object(entry) => {
                let word = entry.action.word(act);
                let reason = match entry.message.as_str() {
                    "" => String::new(),
                    reason => format!(": {reason}"),
                };
                writeln!(io::stdout(), "{word:<9} {}{reason}", entry.object)?;
            }
            Line::End(counts) => return Ok(counts),
        }
    }
    let reason = match act {
        true => "not all was restored; restoring again goes on",
        false => "the plan is not complete",
    };
    Err(client.broken(reason).into())
}

/// The lines of an answer, as they come.
struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

impl Lines {
    async fn next(&mut self, client: &Client) -> Result<Option<Line>, CliError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(
                    serde_json::from_slice(&line).map_err(|error| client.broken(error))?,
                ));
            }
            if self.read.len() > MAX_LINE_BYTES {
                return Err(client.broken("a line of it has no end").into());
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(chunk) = frame.map_err(|error| client.broken(error))?.into_data() {
                self.read.extend_from_slice(&chunk);
            }
        }
    }
}

fn described(about: &About) -> String {
    format!(
        "backup of cluster {}, made by node {} ({}) at {}",
        about.cluster_id,
        about.node,
        about.version,
        schemas::time::to_rfc3339(about.created)
    )
}

fn print_summary(title: &str, done: bool, counts: &BTreeMap<Action, usize>) -> Result<(), CliError> {
    let parts: Vec<String> = counts
        .iter()
        .map(|(action, count)| format!("{count} {}", action.word(done)))
        .collect();
    let parts = if parts.is_empty() {
        "no objects".to_owned()
    } else {
        parts.join(", ")
    };
    Ok(writeln!(io::stdout(), "{title}: {parts}")?)
}

/// An object that could not be made is a failure, though all others were.
fn ended(counts: &BTreeMap<Action, usize>) -> Result<(), CliError> {
    match counts.contains_key(&Action::Refuse) || counts.contains_key(&Action::Fail) {
        true => Err(CliError::Reported),
        false => Ok(()),
    }
}

/// Asks who sits before the terminal; nobody does where the backup comes from standard input.
fn asked(args: &RestoreArgs) -> Result<bool, CliError> {
    let stdin = io::stdin();
    if args.filename == "-" || !stdin.is_terminal() {
        return Ok(false);
    }
    eprint!("carry it out? [y/N] ");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn what_contradicts_itself_is_wrong_usage() {
        for line in [
            "psctl restore",
            "psctl restore -f a --yes --dry-run",
            "psctl backup",
            "psctl backup -o a --encrypt --plain-secrets",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn only_what_could_not_be_made_is_a_failure() {
        let counts = |actions: &[Action]| actions.iter().map(|action| (*action, 1)).collect();
        assert!(ended(&counts(&[Action::Create, Action::Unchanged, Action::Skip])).is_ok());
        for failure in [Action::Refuse, Action::Fail] {
            assert!(ended(&counts(&[Action::Create, failure])).is_err(), "{failure:?}");
        }
    }

    #[test]
    fn a_file_is_opened_with_the_key_that_is_given_and_with_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let read = |file: &str, key: Option<PathBuf>| {
            read_file(&RestoreArgs {
                filename: folder.path().join(file).display().to_string(),
                yes: false,
                dry_run: false,
                replace: false,
                encryption_key: key,
            })
        };
        write("plain.yaml", b"kind: Backup\n");
        let right = write(
            "encryption.key",
            b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        );
        let wrong = write("other.key", STANDARD.encode([8; 32]).as_bytes());
        let none = write("no.key", b"secret words");
        let sealed = Identity::of_cluster_key(&[7; 32])
            .seal(b"kind: Backup\n")
            .unwrap();
        write("sealed.age", &sealed);
        assert_eq!(read("sealed.age", None).unwrap(), sealed, "the node opens it");
        assert_eq!(
            read("sealed.age", Some(right.clone())).unwrap(),
            b"kind: Backup\n"
        );
        assert_eq!(read("plain.yaml", Some(right)).unwrap(), b"kind: Backup\n");
        assert!(
            read("sealed.age", Some(wrong))
                .unwrap_err()
                .to_string()
                .contains("another key")
        );
        let error = read("sealed.age", Some(none)).unwrap_err().to_string();
        assert!(
            error.contains("no.key") && !error.contains("secret words"),
            "{error}"
        );
    }
}
