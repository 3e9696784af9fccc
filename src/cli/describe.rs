//! `psctl describe`: an object in words, field by field, then its events.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use serde_json::{Map, Value};

use super::{CliError, Client, Global, resource};

#[derive(Args, Debug)]
pub(super) struct DescribeArgs {
    /// What to describe: KIND, KIND NAME..., or KIND/NAME...
    #[arg(required = true, value_name = "KIND")]
    words: Vec<String>,
    /// Only objects with these labels
    #[arg(long, short = 'l', value_name = "LABELS")]
    selector: Option<String>,
}

/// Carries out the command.
pub(super) async fn run(client: &Client, global: &Global, args: DescribeArgs) -> Result<(), CliError> {
    let targets = resource::parse(&args.words)?;
    resource::check_choice(&targets, args.selector.as_ref().map(|_| "--selector"))?;
    let mut first = true;
    for target in targets {
        let mut objects = Vec::new();
        if target.names.is_empty() {
            let mut path = resource::list_path(target.kind, Some(&global.namespace));
            if let Some(labels) = &args.selector {
                path += &format!("?labelSelector={}", resource::encode(labels));
            }
            let mut list = client.get_json(&path).await?;
            if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
                objects.append(items);
            }
        }
        for name in &target.names {
            objects.push(
                client
                    .get_json(&resource::object_path(target.kind, &global.namespace, name))
                    .await?,
            );
        }
        for object in objects {
            let events = events_of(client, &object).await?;
            let separator = if std::mem::take(&mut first) { "" } else { "\n\n" };
            write!(
                std::io::stdout().lock(),
                "{separator}{}",
                describe(&object, &events)
            )?;
        }
    }
    Ok(())
}

async fn events_of(client: &Client, object: &Value) -> Result<Vec<Value>, CliError> {
    let uid = object
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let selector = resource::encode(&format!("involvedObject.uid={uid}"));
    let mut list = client
        .get_json(&format!("/api/v1/events?fieldSelector={selector}"))
        .await?;
    let mut events = list
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .map(std::mem::take)
        .unwrap_or_default();
    events.sort_by_key(last_seen);
    Ok(events)
}

fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// When an event happened last: clients of `events.k8s.io/v1` say it otherwise than nodes do.
fn last_seen(event: &Value) -> String {
    first_of(
        event,
        &["/series/lastObservedTime", "/lastTimestamp", "/eventTime"],
    )
}

fn first_of(value: &Value, pointers: &[&str]) -> String {
    let mut said = pointers.iter().map(|pointer| text(value, pointer));
    said.find(|text| !text.is_empty()).unwrap_or_default()
}

/// Draws an object: the metadata that people look for, then spec, status and the rest, then events.
fn describe(object: &Value, events: &[Value]) -> String {
    let mut out = String::new();
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{:<20}{value}", format!("{name}:"));
        }
    };
    line("Name", text(&metadata, "/name"));
    line("Namespace", text(&metadata, "/namespace"));
    line("Labels", pairs(metadata.get("labels"), "="));
    line("Annotations", pairs(metadata.get("annotations"), ": "));
    line("Created", text(&metadata, "/creationTimestamp"));
    line("Deletion Asked For", text(&metadata, "/deletionTimestamp"));
    let controller = metadata
        .get("ownerReferences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for owner in controller.filter(|owner| owner.get("controller") == Some(&Value::Bool(true))) {
        line(
            "Controlled By",
            format!("{}/{}", text(owner, "/kind"), text(owner, "/name")),
        );
    }
    let mut top = object.as_object().cloned().unwrap_or_default();
    top.retain(|name, _| !["apiVersion", "kind", "metadata"].contains(&name.as_str()));
    fields(&mut out, "", &top, 0);
    if events.is_empty() {
        out.push_str("Events:             <none>\n");
    } else {
        out.push_str("Events:\n");
        let _ = writeln!(
            out,
            "  {:<9}{:<22}{:<28}{:<24}Message",
            "Type", "Reason", "Last Seen", "From"
        );
        for event in events {
            let count = event
                .pointer("/series/count")
                .or_else(|| event.get("count"))
                .and_then(Value::as_i64)
                .filter(|count| *count > 1);
            let seen = last_seen(event) + &count.map(|count| format!(" x{count}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "  {:<9}{:<22}{seen:<28}{:<24}{}",
                text(event, "/type"),
                text(event, "/reason"),
                first_of(event, &["/source/component", "/reportingComponent"]),
                text(event, "/message").replace('\n', " ")
            );
        }
    }
    out
}

fn pairs(map: Option<&Value>, separator: &str) -> String {
    let Some(map) = map.and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return "<none>".into();
    };
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| {
            format!(
                "{key}{separator}{}",
                value.as_str().unwrap_or_default().replace('\n', " ")
            )
        })
        .collect();
    lines.join(&format!("\n{:20}", ""))
}

/// Draws what comes after the name of a field: its value on the same line, or all below it, two spaces a level.
fn below(out: &mut String, field: &str, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if map.is_empty() => out.push_str("  {}\n"),
        Value::Object(map) => {
            out.push('\n');
            fields(out, field, map, depth + 1);
        }
        Value::Array(list) if list.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = list.iter().map(scalar).collect();
            let _ = writeln!(out, "  {}", items.join(", "));
        }
        Value::Array(list) => {
            out.push('\n');
            let dash = format!("{}  - ", "  ".repeat(depth));
            for item in list {
                out.push_str(&dash);
                match item {
                    Value::Object(map) => {
                        let mut inner = String::new();
                        fields(&mut inner, field, map, depth + 2);
                        out.push_str(inner.get(dash.len()..).unwrap_or_default());
                    }
                    other => _ = writeln!(out, "{}", scalar(other)),
                }
            }
        }
        other => _ = writeln!(out, "  {}", scalar(other)),
    }
}

/// Draws the fields below the field `parent`.
fn fields(out: &mut String, parent: &str, map: &Map<String, Value>, depth: usize) {
    let keys = has_keys_of_users(parent, map);
    let indent = "  ".repeat(depth);
    for (name, value) in map {
        let shown = if keys { name.clone() } else { title(name) };
        let _ = write!(out, "{indent}{shown}:");
        below(out, name, value, depth);
    }
}

/// Tells whether the keys below a field are words of users or of the machine, not names of fields.
fn has_keys_of_users(field: &str, map: &Map<String, Value>) -> bool {
    match field {
        "labels" | "matchLabels" | "nodeSelector" | "annotations" | "limits" | "requests" | "capacity"
        | "allocatable" => true,
        // A Service's is a map; a Deployment's has fields.
        "selector" => !["matchLabels", "matchExpressions"]
            .iter()
            .any(|name| map.contains_key(*name)),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', " "),
        other => other.to_string(),
    }
}

/// `containerPort` → `Container Port`; names that are not field names stay as they are.
fn title(name: &str) -> String {
    if name.contains(['.', '/', '-']) {
        return name.to_owned();
    }
    let mut out = String::new();
    for (index, character) in name.chars().enumerate() {
        match (index, character.is_ascii_uppercase()) {
            (0, _) => out.extend(character.to_uppercase()),
            (_, true) if !out.ends_with(|last: char| last.is_ascii_uppercase()) => {
                out.push(' ');
                out.push(character);
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_drawn_field_by_field() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "a", "args": ["x", "y"]}], "replicas": 3},
        });
        let drawn = describe(&object, &[]);
        for needle in [
            "Name:               web\n",
            "Labels:             app=web\n",
            "  Replicas:  3\n",
            "    - Name:  a\n",
            "      Args:  x, y\n",
        ] {
            assert!(drawn.contains(needle), "{needle:?} in\n{drawn}");
        }
        for (object, needle) in [
            (
                json!({"spec": {"selector": {"app": "hello"}}}),
                "  Selector:\n    app:  hello\n",
            ),
            (
                json!({"spec": {"selector": {"matchLabels": {"app": "hello"}}}}),
                "  Selector:\n    Match Labels:\n      app:  hello\n",
            ),
            (
                json!({"spec": {"nodeSelector": {"disk": "ssd"}, "resources": {"limits": {"cpu": "1"}}}}),
                "  Node Selector:\n    disk:  ssd\n  Resources:\n    Limits:\n      cpu:  1\n",
            ),
            (
                json!({"spec": {"template": {"metadata": {"labels": {"appName": "a"}}}}}),
                "      Labels:\n        appName:  a\n",
            ),
            (
                json!({"status": {"capacity": {"cpu": "2"}}}),
                "  Capacity:\n    cpu:  2\n",
            ),
        ] {
            let drawn = describe(&object, &[]);
            assert!(drawn.contains(needle), "{needle:?} in\n{drawn}");
        }
        let events = [
            json!({"type": "Normal", "reason": "Told", "lastTimestamp": "2027-01-15T08:00:00Z", "count": 2,
                "source": {"component": "kubelet"}, "message": "twice"}),
            json!({"type": "Normal", "reason": "Told", "eventTime": "2027-01-15T08:00:00.000001Z",
                "reportingComponent": "puller", "message": "once"}),
            json!({"type": "Normal", "reason": "Told", "eventTime": "2027-01-15T08:00:00.000001Z",
                "series": {"count": 7, "lastObservedTime": "2027-01-15T08:00:09.000001Z"}, "message": "often"}),
        ];
        let drawn = describe(&object, &events);
        for needle in [
            "2027-01-15T08:00:00Z x2     kubelet                 twice",
            "2027-01-15T08:00:00.000001Z puller                  once",
            "2027-01-15T08:00:09.000001Z x7                        often",
        ] {
            assert!(drawn.contains(needle), "{needle:?} in\n{drawn}");
        }
        assert_eq!(title("containerPort"), "Container Port");
        assert_eq!(title("podIPs"), "Pod IPs");
    }
}
