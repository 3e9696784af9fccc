//! YAML to JSON trees, as kubectl reads it: anchors, aliases and merge keys applied, scalars of YAML 1.1, duplicate keys
//! refused or noted.
//!
//! The syntax is saphyr-parser's. One deliberate difference from kubectl: a key beside `<<` always wins over
//! the merged one, as YAML says, also if it stands before it.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

use crate::manifest::{
    Document, Duplicates, MAX_ALIASED_BYTES, MAX_DEPTH, MAX_VALUES, ManifestError, Problem,
};

/// The documents of a stream, one by one; ends after the first error.
pub(crate) struct Documents<'a> {
    parser: Parser<'a, StrInput<'a>>,
    duplicates: &'a mut Duplicates,
    document: usize,
    anchors: HashMap<usize, Anchored>,
    values: usize,
    aliased_bytes: usize,
    done: bool,
}

/// A value that has an anchor, and what each copy of it costs.
struct Anchored {
    value: Value,
    cost: Cost,
}

#[derive(Clone, Copy, Default)]
struct Cost {
    values: usize,
    bytes: usize,
    depth: usize,
}

impl Cost {
    fn of(value: &Value) -> Cost {
        let mut cost = Cost::default();
        cost.add(value, 0);
        cost
    }

    fn add(&mut self, value: &Value, depth: usize) {
        self.values += 1;
        self.depth = self.depth.max(depth);
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => self.bytes += text.len(),
            Value::Array(list) => list.iter().for_each(|item| self.add(item, depth + 1)),
            Value::Object(map) => {
                for (key, item) in map {
                    self.bytes += key.len();
                    self.add(item, depth + 1);
                }
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let result = self.document().transpose();
        self.done = !matches!(result, Some(Ok(_)));
        result
    }
}

impl<'a> Documents<'a> {
    pub(crate) fn new(text: &'a str, duplicates: &'a mut Duplicates) -> Self {
        Self {
            parser: Parser::new_from_str(text),
            duplicates,
            document: 0,
            anchors: HashMap::new(),
            values: 0,
            aliased_bytes: 0,
            done: false,
        }
    }

    fn document(&mut self) -> Result<Option<Document>, ManifestError> {
        loop {
            let (event, _) = self.event()?;
            match event {
                Event::StreamEnd => return Ok(None),
                Event::DocumentStart(_) => break,
                _ => {}
            }
        }
        self.document += 1;
        self.anchors.clear();
        let (event, span) = self.event()?;
        let value = self.value(event, span, 0)?;
        let number = self.document;
        Ok(Some(Document {
            value,
            number,
            line: span.start.line(),
            column: span.start.col() + 1,
        }))
    }

    fn event(&mut self) -> Result<(Event<'a>, Span), ManifestError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(ManifestError {
                document: self.document.max(1),
                line: error.marker().line(),
                column: error.marker().col() + 1,
                problem: Problem::Syntax(error.info().to_owned()),
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn fail<T>(&self, span: Span, problem: Problem) -> Result<T, ManifestError> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        Err(ManifestError {
            document: self.document,
            line,
            column,
            problem,
        })
    }

    /// Builds the value that `event` begins; `depth` counts the maps and lists around it.
    fn value(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Value, ManifestError> {
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref());
                (value.or_else(|problem| self.fail(span, problem))?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(span, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(span, depth)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, span, depth),
            Event::StreamEnd => return self.fail(span, Problem::Syntax("unexpected end".to_owned())),
            _ => return self.fail(span, Problem::Syntax("expected a value".to_owned())),
        };
        // 0 is no anchor.
        if anchor != 0 {
            let cost = Cost::of(&value);
            self.copy(cost, span)?;
            self.anchors.insert(
                anchor,
                Anchored {
                    value: value.clone(),
                    cost,
                },
            );
        }
        Ok(value)
    }

    fn count(&mut self, values: usize, span: Span) -> Result<(), ManifestError> {
        self.values += values;
        if self.values > MAX_VALUES {
            return self.fail(span, Problem::TooManyValues);
        }
        Ok(())
    }

    /// Accounts for a copy of an anchored value: the one that is kept and those that aliases make.
    fn copy(&mut self, cost: Cost, span: Span) -> Result<(), ManifestError> {
        self.aliased_bytes += cost.bytes;
        if self.aliased_bytes > MAX_ALIASED_BYTES {
            return self.fail(span, Problem::TooMuchAliased);
        }
        self.count(cost.values, span)
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize) -> Result<Value, ManifestError> {
        let Some(cost) = self.anchors.get(&anchor).map(|anchored| anchored.cost) else {
            return self.fail(span, Problem::RecursiveAlias);
        };
        if depth + cost.depth > MAX_DEPTH {
            return self.fail(span, Problem::TooDeep);
        }
        self.copy(cost, span)?;
        Ok(self
            .anchors
            .get(&anchor)
            .map(|anchored| anchored.value.clone())
            .unwrap_or_default())
    }

    fn list(&mut self, span: Span, depth: usize) -> Result<Value, ManifestError> {
        if depth == MAX_DEPTH {
            return self.fail(span, Problem::TooDeep);
        }
        let mut list = Vec::new();
        loop {
            match self.event()? {
                (Event::SequenceEnd, _) => return Ok(Value::Array(list)),
                (event, span) => list.push(self.value(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, span: Span, depth: usize) -> Result<Value, ManifestError> {
        if depth == MAX_DEPTH {
            return self.fail(span, Problem::TooDeep);
        }
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, key_span) = self.event()?;
            let is_merge = match &event {
                Event::MappingEnd => break,
                Event::Scalar(text, ScalarStyle::Plain, _, None) => text == "<<",
                _ => false,
            };
            let key = self.value(event, key_span, depth + 1)?;
            let (event, span) = self.event()?;
            let value = self.value(event, span, depth + 1)?;
            if is_merge {
                merged.push(value_maps(value).or_else(|problem| self.fail(span, problem))?);
                continue;
            }
            let key = match key {
                Value::String(text) => text,
                Value::Bool(value) => value.to_string(),
                Value::Number(number) => number.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return self.fail(key_span, Problem::KeyNotScalar);
                }
            };
            let line = key_span.start.line();
            let note = || format!("line {line}: key \"{key}\" already set in map");
            if map.contains_key(&key) && !self.duplicates.note(note) {
                return self.fail(key_span, Problem::DuplicateKey(key));
            }
            map.insert(key, value);
        }
        for (key, value) in merged.into_iter().flatten().flatten() {
            map.entry(key).or_insert(value);
        }
        Ok(Value::Object(map))
    }
}

/// The maps that a merge key names.
fn value_maps(value: Value) -> Result<Vec<Map<String, Value>>, Problem> {
    let values = match value {
        Value::Array(list) => list,
        other => vec![other],
    };
    let maps = values.into_iter().map(|value| match value {
        Value::Object(map) => Ok(map),
        _ => Err(Problem::MergeNotMap),
    });
    maps.collect()
}

/// Reads a scalar by its tag, or by its look if it is plain.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, Problem> {
    let bad = |tag| Problem::BadScalar {
        tag,
        value: text.to_owned(),
    };
    match tag {
        None if style == ScalarStyle::Plain => resolve(text),
        None => Ok(text.into()),
        Some(tag) if tag.is_yaml_core_schema() => match (tag.suffix.as_str(), resolve(text)?) {
            ("null", Value::Null) => Ok(Value::Null),
            ("null", _) => Err(bad("null")),
            ("bool", value @ Value::Bool(_)) => Ok(value),
            ("bool", _) => Err(bad("boolean")),
            ("int", value @ Value::Number(_)) if !value.is_f64() => Ok(value),
            ("int", _) => Err(bad("integer")),
            ("float", value @ Value::Number(_)) => Ok(value),
            ("float", _) => Err(bad("number")),
            // Bytes have no place in JSON: a Secret's data is base64 text anyway.
            ("binary", _) => Err(bad("text (write base64 without !!binary)")),
            _ => Ok(text.into()),
        },
        // Tags of other applications mean nothing here.
        Some(_) => Ok(text.into()),
    }
}

/// Reads a plain scalar as kubectl's reader does (YAML 1.1, with its deviations: no base 60, `0644` is octal).
pub(crate) fn resolve(text: &str) -> Result<Value, Problem> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Ok(Value::Bool(true));
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Ok(Value::Bool(false));
        }
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return Err(Problem::BadScalar {
            tag: "number",
            value: text.to_owned(),
        });
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Ok(text.into());
    }
    let digits = text.replace('_', "");
    let number = integer(&digits).or_else(|| float(&digits));
    Ok(number.map_or_else(|| text.into(), Value::Number))
}

fn integer(text: &str) -> Option<Number> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match unsigned.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &unsigned[2..]),
        Some("0o") => (8, &unsigned[2..]),
        Some("0b") => (2, &unsigned[2..]),
        _ if unsigned.len() > 1 && unsigned.starts_with('0') => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    // `from_str_radix` takes a sign of its own.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        return 0i64.checked_sub_unsigned(magnitude).map(Number::from);
    }
    Some(magnitude.into())
}

/// Reads `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; whole numbers become integers, as in kubectl's JSON.
fn float(text: &str) -> Option<Number> {
    if !text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    // Up to 2^53 every whole number is exact.
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Value, ManifestError> {
        Documents::new(text, &mut Duplicates::Refused)
            .next()
            .unwrap()
            .map(|document| document.value)
    }

    #[test]
    fn scalars_are_those_of_kubectl() {
        // Each line as kubectl 1.32 reads it.
        for (text, expected) in [
            (
                "[y, n, Y, yes, On, off, FALSE, \"yes\", ~, Null, ]",
                json!([true, false, true, true, true, false, false, "yes", null, null]),
            ),
            (
                "[0644, 0o644, 0x1F, 1_000, 1e3, 1.0, +5, -0, 0b11, 08, 1., .5, 12e03, 1:30, 0644.0]",
                json!([
                    420, 420, 31, 1000, 1000, 1, 5, 0, 3, 8, 1, 0.5, 12000, "1:30", 644
                ]),
            ),
            (
                "[2001-01-01, =, 18446744073709551615, -9223372036854775808, 1.5e400]",
                json!([
                    "2001-01-01",
                    "=",
                    18446744073709551615u64,
                    -9223372036854775808i64,
                    "1.5e400"
                ]),
            ),
            (
                "[!!str 1, !!int \"5\", !!float 3, !foo bar, ! 12, -1_0, 0x, 0.1e, -a, .]",
                json!(["1", 5, 3, "bar", "12", -10, "0x", "0.1e", "-a", "."]),
            ),
            (
                "{1: a, on: b, 1.5: c}",
                json!({"1": "a", "true": "b", "1.5": "c"}),
            ),
            ("{a: , b: ''}", json!({"a": null, "b": ""})),
            ("10.0.0.1", json!("10.0.0.1")),
            ("1.27.0", json!("1.27.0")),
            ("100m", json!("100m")),
            ("1e", json!("1e")),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn merge_keys_are_applied() {
        let base = "a: &a {p: 1, q: 2}\nb: &b {q: 8, z: 9}\n";
        for (text, expected) in [
            ("{<<: *a, q: 5}", json!({"p": 1, "q": 5})),
            ("{q: 5, <<: *a}", json!({"p": 1, "q": 5})),
            ("{<<: [*a, *b]}", json!({"p": 1, "q": 2, "z": 9})),
            ("{\"<<\": 1}", json!({"<<": 1})),
        ] {
            assert_eq!(
                read(&format!("{base}c: {text}")).unwrap()["c"],
                expected,
                "{text}"
            );
        }
        assert_eq!(read("{<<: 1}").unwrap_err().problem, Problem::MergeNotMap);
    }

    #[test]
    fn aliases_are_bounded() {
        let mut laughs = String::from("a0: &a0 [lol, lol]\n");
        for level in 1..40 {
            let previous = level - 1;
            laughs +=
                &format!("a{level}: &a{level} [*a{previous}, *a{previous}, *a{previous}, *a{previous}]\n");
        }
        let problem = read(&laughs).unwrap_err().problem;
        assert!(
            matches!(problem, Problem::TooManyValues | Problem::TooMuchAliased),
            "{problem}"
        );

        let chain = (1..100).fold("a0: &a0 []\n".to_owned(), |text, level| {
            format!("{text}a{level}: &a{level} [*a{}]\n", level - 1)
        });
        assert_eq!(read(&chain).unwrap_err().problem, Problem::TooDeep);
        assert_eq!(read("a: &a [*a]").unwrap_err().problem, Problem::RecursiveAlias);
        assert!(matches!(read("a: *a").unwrap_err().problem, Problem::Syntax(_)));
    }
}
