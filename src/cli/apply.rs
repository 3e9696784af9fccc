//! `psctl apply`: reads manifests and hands them to a node, which validates all of them before it stores any.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use http::Method;
use schemas::manifest::{self, MAX_MANIFEST_BYTES};
use schemas::{Kind, Object};
use serde_json::Value;

use super::{CliError, Client, Global, client, get, resource};

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
    let objects = read_manifests(&args.filename, args.recursive).await?;
    let path = format!(
        "/api/v1/manifests?fieldManager=psctl&namespace={}{}",
        resource::encode(&global.namespace),
        if args.dry_run { "&dryRun=All" } else { "" }
    );
    let body = Some(("application/yaml", Bytes::from(to_documents(&objects)?)));
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

/// Reads the objects of all files, in their order.
///
/// # Errors
/// A file that cannot be read; or all that is wrong with the manifests, each with the name of its file and the place there.
pub(super) async fn read_manifests(sources: &[String], recursive: bool) -> Result<Vec<Object>, CliError> {
    let mut read = Manifests::default();
    for source in sources {
        if source == "-" {
            read.add("standard input", &read_stdin()?);
        } else if source.starts_with("http://") || source.starts_with("https://") {
            let bytes = client::download(source, MAX_MANIFEST_BYTES)
                .await
                .map_err(|reason| input(source, reason))?;
            read.add(source, &bytes);
        } else {
            let files = files_of(Path::new(source), recursive).map_err(|error| input(source, error))?;
            if files.is_empty() {
                return Err(input(source, "the folder has no .yaml, .yml or .json file"));
            }
            for file in files {
                let name = file.display().to_string();
                let bytes = std::fs::read(&file).map_err(|error| input(&name, error))?;
                read.add(&name, &bytes);
            }
        }
    }
    if read.faults.is_empty() {
        Ok(read.objects)
    } else {
        Err(CliError::Manifests(read.faults))
    }
}

/// What several files hold together. Each is parsed by itself: places in it are its own, and JSON is read as JSON.
#[derive(Default)]
struct Manifests {
    objects: Vec<Object>,
    faults: Vec<String>,
}

impl Manifests {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let parsed = manifest::parse_all(bytes);
        self.objects.extend(parsed.objects);
        self.faults
            .extend(parsed.errors.iter().map(|error| format!("{name}: {error}")));
    }
}

/// Writes objects as JSON documents, one a line.
fn to_documents(objects: &[Object]) -> Result<Vec<u8>, CliError> {
    let mut body = Vec::new();
    for object in objects {
        serde_json::to_writer(&mut body, object).map_err(std::io::Error::from)?;
        body.push(b'\n');
    }
    Ok(body)
}

fn read_stdin() -> Result<Vec<u8>, CliError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("reading a manifest from the terminal; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    stdin
        .lock()
        // One more than is allowed, so that the parser sees that it is too large.
        .take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| input("standard input", error))?;
    Ok(bytes)
}

pub(super) fn input(what: impl Into<String>, reason: impl std::fmt::Display) -> CliError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn faults_are_named_by_file_and_by_its_own_lines() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"),
            ("b.yaml", "apiVersion: v1\nkind: [\n"),
            ("c.yaml", "# nothing\n---\nkind: Namespace\n---\n- a list\n"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let read = |name: &str| {
            let source = directory.path().join(name).display().to_string();
            async move { read_manifests(&[source], false).await }
        };
        let faults = read("").await.unwrap_err().to_string();
        let lines: Vec<&str> = faults.lines().collect();
        let path = |name: &str| directory.path().join(name).display().to_string();
        assert!(
            lines[0].starts_with(&format!("{}: document 1, line ", path("b.yaml"))),
            "{faults}"
        );
        let second = format!("{}: document 1, line 3, ", path("c.yaml"));
        assert!(
            lines[1].contains(&second) && lines[1].contains("apiVersion"),
            "{faults}"
        );
        assert!(lines[2].contains("document 2"), "{faults}");
        assert_eq!((lines.len(), read("a.yaml").await.unwrap().len()), (3, 1));
    }

    #[tokio::test]
    async fn objects_go_to_the_node_as_they_were_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        // An escape that YAML does not know in this form.
        let text = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "annotations": {"b": "\ud83d\ude00"}}}"#;
        std::fs::write(&path, format!("{text}\n{text}")).unwrap();
        let objects = read_manifests(&[path.display().to_string()], false)
            .await
            .unwrap();
        assert_eq!(objects[0].annotation("b"), Some("\u{1f600}"));
        assert_eq!(
            manifest::parse(&to_documents(&objects).unwrap()).unwrap(),
            objects
        );
    }
}
