//! `psctl get`: tables as the API server draws them, or the objects themselves.

use std::io::Write;

use clap::Args;
use futures::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use schemas::{Kind, Object};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;

use super::resource::{self, Target};
use super::{CliError, Client, Global, Output};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// What to show: KIND, KIND NAME..., KIND/NAME..., KIND,KIND or all
    #[arg(required = true, value_name = "KIND")]
    words: Vec<String>,
    /// In all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only objects with these labels, for instance app=web,tier!=cache
    #[arg(long, short = 'l', value_name = "LABELS")]
    selector: Option<String>,
    /// How to print
    #[arg(long, short)]
    output: Option<Output>,
    /// Add a column with the labels
    #[arg(long)]
    show_labels: bool,
    /// Leave out the line with the columns' names
    #[arg(long)]
    no_headers: bool,
    /// Go on and print what changes
    #[arg(long, short)]
    watch: bool,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, global: &Global, args: GetArgs) -> Result<(), CliError> {
    let targets = resource::parse(&args.words)?;
    if args.all_namespaces && targets.iter().any(|target| !target.names.is_empty()) {
        return Err(CliError::Usage {
            message: "an object cannot be taken by name from all namespaces".into(),
            hint: "name its namespace with -n",
        });
    }
    resource::check_choice(&targets, args.selector.as_ref().map(|_| "--selector"))?;
    if args.watch {
        return watch(client, global, &args, watched(&args, &targets)?).await;
    }
    match args.output {
        Some(Output::Json | Output::Yaml | Output::Name) => objects(client, global, &args, &targets).await,
        Some(Output::Wide) | None => tables(client, global, &args, &targets).await,
    }
}

/// Returns what a watch follows: one list, or one object.
fn watched<'a>(args: &GetArgs, targets: &'a [Target]) -> Result<&'a Target, CliError> {
    let message = match (args.output, targets) {
        (Some(Output::Json | Output::Yaml | Output::Name), _) => "--watch prints tables alone",
        (Some(Output::Wide) | None, [target]) if target.names.len() <= 1 => return Ok(target),
        (Some(Output::Wide) | None, _) => "--watch follows one kind, or one object of it",
    };
    Err(CliError::Usage {
        message: message.into(),
        hint: "psctl get KIND -w, or psctl get KIND NAME -w, with -o wide or without -o",
    })
}

fn list_query(args: &GetArgs) -> String {
    args.selector
        .as_ref()
        .map(|labels| format!("?labelSelector={}", resource::encode(labels)))
        .unwrap_or_default()
}

fn paths(global: &Global, args: &GetArgs, target: &Target) -> Vec<String> {
    if target.names.is_empty() {
        let namespace = (!args.all_namespaces).then_some(global.namespace.as_str());
        vec![format!(
            "{}{}",
            resource::list_path(target.kind, namespace),
            list_query(args)
        )]
    } else {
        target
            .names
            .iter()
            .map(|name| resource::object_path(target.kind, &global.namespace, name))
            .collect()
    }
}

/// Returns the path and query of the list that a watch follows.
fn watched_path(global: &Global, args: &GetArgs, target: &Target) -> String {
    let namespace = (!args.all_namespaces).then_some(global.namespace.as_str());
    let labels = args.selector.as_deref().unwrap_or_default();
    let field = target.names.first().map(|name| format!("metadata.name={name}"));
    format!(
        "{}?labelSelector={}&fieldSelector={}",
        resource::list_path(target.kind, namespace),
        resource::encode(labels),
        resource::encode(&field.unwrap_or_default())
    )
}

async fn objects(
    client: &Client,
    global: &Global,
    args: &GetArgs,
    targets: &[Target],
) -> Result<(), CliError> {
    let mut items = Vec::new();
    let mut failed = false;
    for target in targets {
        for path in paths(global, args, target) {
            match client.get_json(&path).await {
                Ok(Value::Object(mut list)) if target.names.is_empty() => {
                    let row = target.kind.row();
                    for item in list
                        .get_mut("items")
                        .and_then(Value::as_array_mut)
                        .into_iter()
                        .flatten()
                    {
                        // Items of a list do not repeat what they are; alone they must say it.
                        item["apiVersion"] = row.api_version().into();
                        item["kind"] = row.name.into();
                        items.push(item.take());
                    }
                }
                Ok(object) => items.push(object),
                Err(error) => failed |= report(error)?,
            }
        }
    }
    let mut out = std::io::stdout().lock();
    if args.output == Some(Output::Name) {
        for item in items.into_iter().filter_map(Object::from_value) {
            let resource = item.kind().map(named).unwrap_or_default();
            writeln!(out, "{resource}/{}", item.name())?;
        }
    } else {
        // As kubectl: who owns what is long, and nobody reads it here.
        for metadata in items.iter_mut().filter_map(|item| item.get_mut("metadata")) {
            metadata
                .as_object_mut()
                .map(|metadata| metadata.remove("managedFields"));
        }
        let single = targets.len() == 1 && targets.iter().all(|target| target.names.len() == 1);
        let whole = match (single, items.len()) {
            (true, 1) => items.remove(0),
            (true, _) => return Err(CliError::Reported),
            (false, _) => json!({"apiVersion": "v1", "kind": "List", "items": items}),
        };
        let text = match args.output {
            Some(Output::Yaml) => Object::from_value(whole)
                .map(|object| schemas::manifest::to_yaml(&object))
                .unwrap_or_default(),
            Some(Output::Json | Output::Wide | Output::Name) | None => format!("{whole:#}\n"),
        };
        out.write_all(text.as_bytes())?;
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

/// Returns `pod`, `deployment.apps`: what kubectl prints before a name.
pub(super) fn named(kind: Kind) -> String {
    let row = kind.row();
    if row.group.is_empty() {
        row.singular.to_owned()
    } else {
        format!("{}.{}", row.singular, row.group)
    }
}

/// Prints a refusal of one of several requests and goes on; other errors end the command.
fn report(error: super::ClientError) -> Result<bool, CliError> {
    match error {
        super::ClientError::Refused { ref status } if status.code == http::StatusCode::NOT_FOUND => {
            eprintln!("error: {error}");
            Ok(true)
        }
        other => Err(other.into()),
    }
}

async fn tables(
    client: &Client,
    global: &Global,
    args: &GetArgs,
    targets: &[Target],
) -> Result<(), CliError> {
    let mut failed = false;
    let mut printed = 0;
    for target in targets {
        let mut table: Option<Value> = None;
        for path in paths(global, args, target) {
            let answer = match client.send(Method::GET, &path, TABLE, None).await {
                Ok(answer) => client.parse(answer).await?,
                Err(error) => {
                    failed |= report(error)?;
                    continue;
                }
            };
            match &mut table {
                None => table = Some(answer),
                Some(table) => {
                    let rows = answer
                        .get("rows")
                        .and_then(Value::as_array)
                        .cloned()
                        .unwrap_or_default();
                    if let Some(all) = table.get_mut("rows").and_then(Value::as_array_mut) {
                        all.extend(rows);
                    }
                }
            }
        }
        let Some(table) = table else { continue };
        let prefix = (targets.len() > 1).then(|| named(target.kind));
        let sheet = Sheet::new(&table, args, target.kind, prefix.as_deref());
        if !sheet.rows.is_empty() && printed > 0 {
            writeln!(std::io::stdout())?;
        }
        printed += sheet.rows.len();
        sheet.print(!args.no_headers)?;
    }
    if printed == 0 && !failed {
        if args.all_namespaces || targets.iter().all(|target| !target.kind.is_namespaced()) {
            eprintln!("No resources found");
        } else {
            eprintln!("No resources found in {} namespace.", global.namespace);
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

/// Prints a list, then a row for each change of it, until interrupted. An object is a list of one: a watch begins at the
/// list's version, of which the node remembers the changes since, where the object's own may be long ago.
async fn watch(client: &Client, global: &Global, args: &GetArgs, target: &Target) -> Result<(), CliError> {
    let list = watched_path(global, args, target);
    let table = client
        .parse(client.send(Method::GET, &list, TABLE, None).await?)
        .await?;
    let sheet = Sheet::new(&table, args, target.kind, None);
    if let (true, [name]) = (sheet.rows.is_empty(), target.names.as_slice()) {
        // Refused with the node's own words, unless the object was made just now.
        let path = resource::object_path(target.kind, &global.namespace, name);
        client.get_json(&path).await?;
    }
    sheet.print(!args.no_headers)?;
    let version = table
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let path = format!("{list}&watch=true&resourceVersion={}", resource::encode(version));
    let answer = client.send(Method::GET, &path, TABLE, None).await?;
    let body = answer
        .into_body()
        .into_data_stream()
        .map_err(std::io::Error::other);
    let mut lines = StreamReader::new(body).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| client.broken(error))? {
        let event: Value = serde_json::from_str(&line).map_err(|error| client.broken(error))?;
        match event.get("type").and_then(Value::as_str) {
            Some("BOOKMARK") | None => {}
            Some("ERROR") => {
                let message = event
                    .pointer("/object/message")
                    .and_then(Value::as_str)
                    .unwrap_or("the watch ended");
                return Err(client.broken(message).into());
            }
            Some(_) => {
                let mut columns = event.get("object").cloned().unwrap_or_default();
                if columns.get("columnDefinitions").is_none_or(Value::is_null) {
                    // Only a watch's first event names the columns.
                    columns["columnDefinitions"] =
                        table.get("columnDefinitions").cloned().unwrap_or_default();
                }
                Sheet::new(&columns, args, target.kind, None).print(false)?;
            }
        }
    }
    Ok(())
}

/// A table ready to be printed: cells as text, columns chosen.
struct Sheet {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Sheet {
    fn new(table: &Value, args: &GetArgs, kind: Kind, prefix: Option<&str>) -> Self {
        let list = |name: &str| {
            table
                .get(name)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let wide = args.output == Some(Output::Wide);
        let columns: Vec<(usize, String)> = list("columnDefinitions")
            .iter()
            .enumerate()
            .filter(|(_, column)| wide || column.get("priority").and_then(Value::as_i64).unwrap_or(0) == 0)
            .map(|(index, column)| {
                (
                    index,
                    column
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_uppercase(),
                )
            })
            .collect();
        let namespaced = args.all_namespaces && kind.is_namespaced();
        let mut headers: Vec<String> = columns.iter().map(|(_, name)| name.clone()).collect();
        if namespaced {
            headers.insert(0, "NAMESPACE".into());
        }
        if args.show_labels {
            headers.push("LABELS".into());
        }
        let rows = list("rows")
            .iter()
            .map(|row| {
                let mut cells: Vec<String> = columns
                    .iter()
                    .map(|(index, _)| cell(row.pointer(&format!("/cells/{index}"))))
                    .collect();
                if let (Some(prefix), Some(name)) = (prefix, cells.first_mut()) {
                    *name = format!("{prefix}/{name}");
                }
                if namespaced {
                    cells.insert(0, cell(row.pointer("/object/metadata/namespace")));
                }
                if args.show_labels {
                    cells.push(labels(row.pointer("/object/metadata/labels")));
                }
                cells
            })
            .collect();
        Self { headers, rows }
    }

    /// Prints columns three spaces apart, as kubectl does.
    fn print(&self, headers: bool) -> std::io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut widths: Vec<usize> = self.headers.iter().map(|header| header.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = std::io::stdout().lock();
        for row in headers.then_some(&self.headers).into_iter().chain(&self.rows) {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}   "))
                .collect();
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(text)) => text.replace('\n', "\\n"),
        Some(other) => other.to_string(),
    }
}

fn labels(value: Option<&Value>) -> String {
    let Some(map) = value.and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return "<none>".into();
    };
    let mut pairs: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> (Global, GetArgs) {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        match cli.command {
            Command::Get(args) => (cli.global, args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_watch_follows_one_list_and_an_object_as_a_list() {
        let check = |line: &str, expected: Option<&str>| {
            let (global, args) = parse(line);
            let targets = resource::parse(&args.words).unwrap();
            let path = watched(&args, &targets).map(|target| watched_path(&global, &args, target));
            assert_eq!(path.ok().as_deref(), expected, "{line}");
        };
        check(
            "psctl get pod a -w",
            Some("/api/v1/namespaces/default/pods?labelSelector=&fieldSelector=metadata.name%3Da"),
        );
        check(
            "psctl get pods -A -w -l app=web",
            Some("/api/v1/pods?labelSelector=app%3Dweb&fieldSelector="),
        );
        check("psctl get pod a b -w", None);
        check("psctl get pods,svc -w", None);
        check("psctl get pod/a svc/a -w", None);
        check("psctl get pods -w -o json", None);
    }
}
