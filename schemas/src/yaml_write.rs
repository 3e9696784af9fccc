//! JSON trees to YAML in kubectl's style: sorted keys, block style, lists flush with their key.
//!
//! Every reader must get back what was written, so text that some version of YAML takes for something else (`yes`,
//! `1:30`, `0o7`, a date) is quoted. serde_yaml quotes for YAML 1.2 alone: kubectl would read its `yes` as a boolean.

use serde_json::{Map, Value};

use crate::yaml::resolve;

/// Longer keys are marked as keys, as kubectl does: readers look for their colon in the next 1,024 characters alone.
const LONG_KEY_BYTES: usize = 128;

/// Writes a map as one document.
pub(crate) fn document(map: &Map<String, Value>) -> String {
    let mut out = String::new();
    if map.is_empty() {
        out.push_str("{}\n");
    }
    write_map(&mut out, map, 0);
    out
}

/// Writes a map whose first line begins at the cursor and the others at `indent`.
fn write_map(out: &mut String, map: &Map<String, Value>, indent: usize) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            push_spaces(out, indent);
        }
        let is_long = key.len() > LONG_KEY_BYTES;
        if is_long {
            out.push_str("? ");
        }
        match is_plain(key) {
            true => out.push_str(key),
            false => push_quoted(out, key),
        }
        if is_long {
            out.push('\n');
            push_spaces(out, indent);
        }
        out.push(':');
        match value {
            Value::Object(inner) if is_long && !inner.is_empty() => {
                out.push(' ');
                write_map(out, inner, indent + 2);
            }
            Value::Array(inner) if is_long && !inner.is_empty() => {
                out.push(' ');
                write_list(out, inner, indent + 2);
            }
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                push_spaces(out, indent + 2);
                write_map(out, inner, indent + 2);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                push_spaces(out, indent);
                write_list(out, inner, indent);
            }
            scalar => {
                out.push(' ');
                write_scalar(out, scalar, indent);
            }
        }
    }
}

fn write_list(out: &mut String, list: &[Value], indent: usize) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            push_spaces(out, indent);
        }
        out.push_str("- ");
        match value {
            Value::Object(inner) if !inner.is_empty() => write_map(out, inner, indent + 2),
            Value::Array(inner) if !inner.is_empty() => write_list(out, inner, indent + 2),
            scalar => write_scalar(out, scalar, indent),
        }
    }
}

/// Writes what fits behind a key, or a block whose lines begin two deeper than `indent`.
fn write_scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) if is_plain(text) => out.push_str(text),
        Value::String(text) if is_block(text) => return push_block(out, text, indent + 2),
        Value::String(text) => push_quoted(out, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
    out.push('\n');
}

fn push_spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Tells whether all readers take the bare text for this text.
fn is_plain(text: &str) -> bool {
    let harmless = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    let first = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '.' | '$' | '(' | '+');
    let base_60 = text.contains(':')
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b':' | b'.' | b'_' | b'+'));
    let date = text.len() > 4
        && text.bytes().take(4).all(|byte| byte.is_ascii_digit())
        && text.as_bytes()[4] == b'-';
    text.starts_with(first)
        && text.chars().all(harmless)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !base_60
        && !date
        && matches!(resolve(text), Ok(Value::String(_)))
}

/// Tells whether the text can stand as a literal block: several lines that are printable as they are.
fn is_block(text: &str) -> bool {
    let printable = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    // A first line that is blank or begins with a space would need its indentation declared.
    text.contains('\n') && !text.starts_with([' ', '\n']) && text.chars().all(printable)
}

fn push_block(out: &mut String, text: &str, indent: usize) {
    let body = text.trim_end_matches('\n');
    let chomping = match text.len() - body.len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    out.push('|');
    out.push_str(chomping);
    out.push('\n');
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        if !line.is_empty() {
            push_spaces(out, indent);
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// Writes text in double quotes; what does not print is escaped.
fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            ' ' => out.push(' '),
            c if c.is_ascii_graphic() || c.is_alphanumeric() => out.push(c),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn output_is_that_of_kubectl() {
        let value = json!({
            "spec": {
                "containers": [{"name": "web", "image": "nginx:1.27", "args": ["--a=b", "yes", "1"], "env": []}],
                "emptyDir": {}, "note": "one\ntwo\n", "replicas": 3, "zone": null, "list": [["a"], {}],
            },
            "kind": "Pod",
        });
        let expected = "\
kind: Pod
spec:
  containers:
  - args:
    - \"--a=b\"
    - \"yes\"
    - \"1\"
    env: []
    image: nginx:1.27
    name: web
  emptyDir: {}
  list:
  - - a
  - {}
  note: |
    one
    two
  replicas: 3
  zone: null
";
        assert_eq!(document(value.as_object().unwrap()), expected);
    }

    #[test]
    fn keys_that_are_too_long_to_be_found_are_marked() {
        for long in ["k".repeat(LONG_KEY_BYTES + 1), "ключ ".repeat(1000)] {
            let inner =
                json!({"a": 1, &long: [{&long: "x"}, ["y"], {}], "z": {&long: {&long: "one\ntwo\n"}}});
            let value = json!({"apiVersion": "v1", "kind": "Pod", &long: inner, "last": "yes"});
            let yaml = document(value.as_object().unwrap());
            assert!(yaml.contains("\n? "), "{yaml}");
            let read = crate::manifest::parse(yaml.as_bytes()).unwrap();
            assert_eq!(read[0].clone().into_value(), value, "{yaml}");
        }
        let short = "k".repeat(LONG_KEY_BYTES);
        assert_eq!(
            document(json!({&short: 1}).as_object().unwrap()),
            format!("{short}: 1\n")
        );
    }

    #[test]
    fn text_that_a_reader_could_mistake_is_quoted() {
        for text in [
            "yes",
            "Off",
            "y",
            "1",
            "1e3",
            "0o7",
            "1:30",
            "2001-01-01",
            "a: b",
            "a #b",
            "- a",
            "*a",
            "",
            " a",
            "~",
        ] {
            assert!(!is_plain(text), "{text}");
        }
        for text in [
            "web",
            "nginx:1.27",
            "10.0.0.1",
            "http://a/b#c",
            "100m",
            "app.kubernetes.io/name",
            "a b",
        ] {
            assert!(is_plain(text), "{text}");
        }
    }
}
