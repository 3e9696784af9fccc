//! `psctl history`, `psctl diff` and `psctl undo`: what an object was, what differs, and the way back.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::Method;
use schemas::{Kind, Object, manifest};
use serde_json::{Value, json};

use super::{CliError, Client, Global, get, resource};

/// Fields of one change in a table; `-o wide` shows all that the node tells.
const FIELDS_IN_TABLE: usize = 8;
/// Characters of a value in a table; `-o wide` shows all that the node tells.
const VALUE_IN_TABLE: usize = 40;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// How `history` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum HistoryOutput {
    Table,
    /// The table with all fields, whole values and whole managers
    Wide,
    Json,
    Yaml,
}

#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// The object: KIND/NAME or KIND NAME
    #[arg(required = true, value_name = "KIND/NAME")]
    words: Vec<String>,
    /// How to print
    #[arg(long, short, default_value = "table")]
    output: HistoryOutput,
    /// So many of the newest changes, at most 1000
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// The object: KIND/NAME or KIND NAME
    #[arg(required = true, value_name = "KIND/NAME")]
    words: Vec<String>,
    /// The change to compare from [default: what --to was made of]
    #[arg(long, value_name = "CHANGE")]
    from: Option<String>,
    /// The change to compare with [default: the object as it is]
    #[arg(long, value_name = "CHANGE")]
    to: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct UndoArgs {
    /// The object: KIND/NAME or KIND NAME
    #[arg(required = true, value_name = "KIND/NAME")]
    words: Vec<String>,
    /// The change that the object shall be as it was at
    #[arg(long, value_name = "CHANGE")]
    to: String,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// An object that was named alone.
struct Named {
    kind: Kind,
    name: String,
}

impl Named {
    fn parse(words: &[String]) -> Result<Self, CliError> {
        let several = || CliError::Usage {
            message: "one object has to be named".into(),
            hint: "write KIND/NAME, for instance deployment/web",
        };
        let mut targets = resource::parse(words)?;
        let (Some(target), true) = (targets.pop(), targets.is_empty()) else {
            return Err(several());
        };
        match <[String; 1]>::try_from(target.names) {
            Ok([name]) => Ok(Self {
                kind: target.kind,
                name,
            }),
            Err(_) => Err(several()),
        }
    }

    fn path(&self, global: &Global) -> String {
        let namespace = if self.kind.is_namespaced() {
            &global.namespace
        } else {
            "_"
        };
        format!(
            "/api/v1/history/{}/{}/{}",
            self.kind.row().resource(),
            resource::encode(namespace),
            resource::encode(&self.name)
        )
    }

    fn shown(&self) -> String {
        format!("{}/{}", get::named(self.kind), self.name)
    }
}

// ---------------------------------------------------------------- history

/// Carries out `history`.
pub(super) async fn history(client: &Client, global: &Global, args: HistoryArgs) -> Result<(), CliError> {
    let named = Named::parse(&args.words)?;
    let path = format!("{}?limit={}", named.path(global), args.limit);
    let answer = client.get_json(&path).await?;
    let text = match args.output {
        HistoryOutput::Json => format!("{answer:#}\n"),
        HistoryOutput::Yaml => Object::from_value(answer)
            .map(|object| manifest::to_yaml(&object))
            .unwrap_or_default(),
        HistoryOutput::Table => table(&answer, false),
        HistoryOutput::Wide => table(&answer, true),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Draws changes, the oldest first: a row for each field, of which the first says who, when and how.
fn table(answer: &Value, wide: bool) -> String {
    let headers = ["CHANGE", "WHEN", "NODE", "THROUGH", "BY", "FIELD", "OLD", "NEW"];
    let mut rows: Vec<[String; 8]> = vec![headers.map(str::to_owned)];
    for change in list(answer, "changes") {
        let mut begun = [
            text(change, "change").to_owned(),
            text(change, "time").to_owned(),
            text(change, "node").to_owned(),
            or_none(text(change, "through")),
            by(change, wide),
        ];
        let mut row = |field: String, old: String, new: String| {
            let [id, when, node, through, by] = std::mem::take(&mut begun);
            rows.push([id, when, node, through, by, field, old, new]);
        };
        let fields = list(change, "fields");
        if let Some(count) = change.get("compacted").and_then(Value::as_u64) {
            row(
                format!("({count} earlier changes were compacted)"),
                String::new(),
                String::new(),
            );
        } else if fields.is_empty() {
            row(
                "(no field: their owners, or an order)".into(),
                String::new(),
                String::new(),
            );
        }
        let shown = if wide { fields.len() } else { FIELDS_IN_TABLE };
        for field in fields.iter().take(shown) {
            row(
                escaped(text(field, "path")),
                value(field.get("old"), wide),
                value(field.get("new"), wide),
            );
        }
        let omitted = change.get("omittedFields").and_then(Value::as_u64).unwrap_or(0);
        let more = fields.len().saturating_sub(shown) as u64 + omitted;
        if more > 0 {
            let hint = if wide { "" } else { ", see -o wide" };
            row(format!("(and {more} more{hint})"), String::new(), String::new());
        }
    }
    let omitted = answer.get("omitted").and_then(Value::as_u64).unwrap_or(0);
    let mut drawn = String::new();
    if omitted > 0 {
        drawn += &format!("({omitted} earlier changes are not shown, see --limit)\n");
    }
    drawn + &aligned(&rows)
}

/// Writes columns three spaces apart, as `get` does.
fn aligned(rows: &[[String; 8]]) -> String {
    let mut widths = [0; 8];
    // Of the remarks in parentheses, which nothing stands beside, no column gets wider.
    for row in rows.iter() {
        for (width, cell) in widths
            .iter_mut()
            .zip(row)
            .filter(|(_, cell)| !cell.starts_with('('))
        {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut drawn = String::new();
    for row in rows {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}   "))
            .collect();
        drawn.push_str(line.trim_end());
        drawn.push('\n');
    }
    drawn
}

fn by(change: &Value, wide: bool) -> String {
    match (text(change, "user"), text(change, "manager")) {
        ("", manager) => or_none(manager),
        (user, manager) if wide => format!("{} ({})", escaped(user), escaped(manager)),
        (user, _) => escaped(user),
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        escaped(text)
    }
}

/// Writes a value on one line: as JSON, in which nothing a terminal would act on is left.
fn value(value: Option<&Value>, whole: bool) -> String {
    let Some(value) = value else {
        return "<none>".to_owned();
    };
    let text = escaped(&value.to_string());
    match text.char_indices().nth(VALUE_IN_TABLE) {
        Some((end, _)) if !whole => format!("{}…", &text[..end]),
        Some(_) | None => text,
    }
}

/// JSON escapes most control characters, not all (DEL, C1); names escape none.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

// ---------------------------------------------------------------- diff

/// Carries out `diff`. Exits as `kubectl diff`: 0 for equal, 1 for different.
pub(super) async fn diff(client: &Client, global: &Global, args: DiffArgs) -> Result<ExitCode, CliError> {
    let named = Named::parse(&args.words)?;
    let parameters = [("from", &args.from), ("to", &args.to)];
    let query: Vec<String> = parameters
        .into_iter()
        .filter_map(|(name, change)| Some(format!("{name}={}", resource::encode(change.as_ref()?))))
        .collect();
    let path = format!("{}/diff?{}", named.path(global), query.join("&"));
    let answer = client.get_json(&path).await?;
    if list(&answer, "fields").is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for (mark, side) in [("---", "from"), ("+++", "to")] {
        let changes: Vec<&str> = list(&answer, side).iter().filter_map(Value::as_str).collect();
        let changes = if changes.is_empty() {
            "(nothing)".to_owned()
        } else {
            changes.join(" ")
        };
        writeln!(out, "{mark} {} {changes}", named.shown())?;
    }
    out.write_all(lines(&answer, colours).as_bytes())?;
    Ok(ExitCode::from(1))
}

/// Writes what differs: `- path: old` and `+ path: new`.
fn lines(answer: &Value, colours: bool) -> String {
    let mut drawn = String::new();
    for field in list(answer, "fields") {
        for (mark, side, colour) in [('-', "old", RED), ('+', "new", GREEN)] {
            if let Some(said) = field.get(side) {
                let line = format!(
                    "{mark} {}: {}",
                    escaped(text(field, "path")),
                    value(Some(said), true)
                );
                drawn += &if colours {
                    format!("{colour}{line}{PLAIN}\n")
                } else {
                    format!("{line}\n")
                };
            }
        }
    }
    if let Some(more) = answer.get("omittedFields").and_then(Value::as_u64) {
        drawn += &format!("(and {more} more fields)\n");
    }
    drawn
}

// ---------------------------------------------------------------- undo

/// Carries out `undo`.
pub(super) async fn undo(client: &Client, global: &Global, args: UndoArgs) -> Result<(), CliError> {
    let named = Named::parse(&args.words)?;
    let path = format!(
        "{}?fieldManager=psctl{}",
        named.path(global),
        if args.dry_run { "&dryRun=All" } else { "" }
    );
    let body = Bytes::from(json!({"to": args.to}).to_string());
    let answer = client
        .send(
            Method::POST,
            &path,
            "application/json",
            Some(("application/json", body)),
        )
        .await?;
    let answer = client.parse(answer).await?;
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    let result = match text(&answer, "result") {
        "unchanged" => format!("unchanged, it is as it was at {}", args.to),
        _ => format!("undone to {}", args.to),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {result}{suffix}", named.shown())?;
    if args.dry_run {
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        out.write_all(lines(&answer, colours).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn one_object_is_named_in_either_form() {
        let global = Cli::try_parse_from(words("psctl history x -n shop"))
            .unwrap()
            .global;
        let check = |line: &str, expected: Option<&str>| {
            let path = Named::parse(&words(line)).ok().map(|named| named.path(&global));
            assert_eq!(path.as_deref(), expected, "{line}");
        };
        check("deploy/web", Some("/api/v1/history/deployments.apps/shop/web"));
        check("deploy web", Some("/api/v1/history/deployments.apps/shop/web"));
        check("no n1", Some("/api/v1/history/nodes/_/n1"));
        check("deploy/web deploy/api", None);
        check("deploy web api", None);
        check("deploy", None);
        check("deploy,svc", None);
        check("widget/web", None);
    }

    #[test]
    fn limits_are_checked_before_anything_is_asked() {
        let limit = |line: &str| match Cli::try_parse_from(words(line)).map(|cli| cli.command) {
            Ok(Command::History(args)) => Some(args.limit),
            Ok(_) | Err(_) => None,
        };
        assert_eq!(limit("psctl history po/a"), Some(100));
        assert_eq!(limit("psctl history po/a --limit 7"), Some(7));
        assert_eq!(limit("psctl history po/a --limit 0"), None);
        assert_eq!(limit("psctl history po/a --limit 1001"), None);
    }

    fn answer() -> Value {
        let values: Vec<Value> = (0..10)
            .map(|number| json!({"path": format!("f{number}"), "new": number}))
            .collect();
        json!({"omitted": 2, "changes": [
            {"change": "aaaaaaaa", "time": "2026-01-01T00:00:00Z", "node": "n1", "manager": "m", "compacted": 40, "fields": []},
            {"change": "bbbbbbbb", "time": "2026-01-01T00:00:01Z", "node": "n1", "through": "apply", "manager": "psctl",
             "user": "admin", "fields": [{"path": "spec.x", "old": "a\u{1b}[31m\u{9b}", "new": "y".repeat(80)}]},
            {"change": "cccccccc", "time": "2026-01-01T00:00:02Z", "node": "n2", "through": "controller", "manager": "m",
             "fields": values, "omittedFields": 5},
            {"change": "dddddddd", "time": "2026-01-01T00:00:03Z", "node": "n2", "through": "api", "manager": "m", "fields": []},
        ]})
    }

    #[test]
    fn tables_say_what_they_leave_out() {
        let drawn = table(&answer(), false);
        for said in [
            "(2 earlier changes are not shown, see --limit)\nCHANGE ",
            "(40 earlier changes were compacted)",
            "apply        admin   spec.x   \"a\\u001b[31m\\u{9b}\"",
            "yyy…",
            "(and 7 more, see -o wide)",
            "(no field: their owners, or an order)",
        ] {
            assert!(drawn.contains(said), "{said}: {drawn}");
        }
        let wide = table(&answer(), true);
        for said in ["(and 5 more)", "admin (psctl)", &"y".repeat(80)] {
            assert!(wide.contains(said), "{said}: {wide}");
        }
    }

    #[test]
    fn differences_read_as_those_of_diff() {
        let answer = json!({"fields": [
            {"path": "a", "old": 1, "new": 2}, {"path": "b", "old": "x"}, {"path": "c", "new": null},
        ], "omittedFields": 3});
        assert_eq!(
            lines(&answer, false),
            "- a: 1\n+ a: 2\n- b: \"x\"\n+ c: null\n(and 3 more fields)\n"
        );
        assert!(lines(&answer, true).starts_with("\u{1b}[31m- a: 1\u{1b}[0m\n\u{1b}[32m+ a: 2"));
    }
}
