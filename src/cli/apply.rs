//! `psctl apply`: reads manifests and hands them to a node, which validates all of them before it stores any.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use http::Method;
use schemas::Kind;
use serde_json::Value;

use super::{CliError, Client, Global, client, get, resource};

/// Largest file or download, bytes; the API takes no more either.
pub(super) const MAX_MANIFEST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// A file, a folder, a URL, or - for standard input; may be given several times
    #[arg(long = "filename", short, required = true, value_name = "FILE|DIR|-|URL")]
    filename: Vec<String>,
    /// Also read the folders below a folder
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, global: &Global, args: ApplyArgs) -> Result<(), CliError> {
    let manifest = read_manifests(&args.filename, args.recursive).await?;
    let path = format!(
        "/api/v1/manifests?fieldManager=psctl&namespace={}{}",
        resource::encode(&global.namespace),
        if args.dry_run { "&dryRun=All" } else { "" }
    );
    let body = Some(("application/yaml", Bytes::from(manifest)));
    let answer = client.send(Method::POST, &path, "application/json", body).await?;
    let answer = client.parse(answer).await?;
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    for item in answer
        .get("items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = |field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = Kind::from_api(text("apiVersion"), text("kind"))
            .map(get::named)
            .unwrap_or_default();
        writeln!(
            std::io::stdout(),
            "{name}/{} {}{suffix}",
            text("name"),
            text("result")
        )?;
    }
    Ok(())
}

/// Reads all files into one YAML stream.
pub(super) async fn read_manifests(sources: &[String], recursive: bool) -> Result<String, CliError> {
    let mut stream = String::new();
    let mut add = |text: &str| {
        // A document of its own, whatever the file before ended with.
        stream.push_str("\n---\n");
        stream.push_str(text);
    };
    for source in sources {
        if source == "-" {
            add(&read_stdin()?);
        } else if source.starts_with("http://") || source.starts_with("https://") {
            let bytes = client::download(source, MAX_MANIFEST_BYTES)
                .await
                .map_err(|reason| input(source, reason))?;
            add(&to_text(source, bytes.to_vec())?);
        } else {
            let files = files_of(Path::new(source), recursive).map_err(|error| input(source, error))?;
            if files.is_empty() {
                return Err(input(source, "the folder has no .yaml, .yml or .json file"));
            }
            for file in files {
                let name = file.display().to_string();
                let bytes = std::fs::read(&file).map_err(|error| input(&name, error))?;
                add(&to_text(&name, bytes)?);
            }
        }
    }
    Ok(stream)
}

fn read_stdin() -> Result<String, CliError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("reading a manifest from the terminal; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    stdin
        .lock()
        .take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| input("standard input", error))?;
    to_text("standard input", bytes)
}

fn to_text(what: &str, bytes: Vec<u8>) -> Result<String, CliError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(input(
            what,
            format!("larger than {} MiB", MAX_MANIFEST_BYTES / (1024 * 1024)),
        ));
    }
    String::from_utf8(bytes).map_err(|_| input(what, "not UTF-8 text"))
}

fn input(what: impl Into<String>, reason: impl std::fmt::Display) -> CliError {
    CliError::Input {
        what: what.into(),
        reason: reason.to_string(),
    }
}

/// Lists the manifests of a folder in the order of their names, or the file itself.
fn files_of(path: &Path, recursive: bool) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = std::fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                files.extend(files_of(&entry, true)?);
            }
        } else if entry
            .extension()
            .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known))
        {
            files.push(entry);
        }
    }
    Ok(files)
}
