//! Manifests as people write them, to objects; and objects to YAML.
//!
//! YAML streams, JSON and lists come in; each failure names its place. Nothing is defaulted or validated here: see
//! `validate`.
//!
//! serde_yaml does neither half: reading, it keeps the last of duplicate keys, does not apply `<<`, and knows the booleans
//! of YAML 1.2 alone; writing, it leaves `yes` bare, which kubectl then reads as a boolean. So reading stands on the events
//! of saphyr-parser with the scalars of kubectl's reader on top (module `yaml`), writing on its mirror image (`yaml_write`);
//! a property test holds serde_yaml against both as the second opinion.

use serde_json::Value;

use crate::Object;
use crate::yaml::Documents;
use crate::{defaults, json, yaml_write};

/// Largest object, as compact JSON: what fits one document of the store and one request of Kubernetes (etcd: 1.5 MiB).
pub const MAX_OBJECT_BYTES: usize = 1 << 20;

/// Largest manifest: 16 of the largest objects, or several thousand ordinary ones.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;

/// Levels of maps and lists: the deepest Kubernetes field lies at about 20, and recursion over trees stays off the
/// stack's end.
pub const MAX_DEPTH: usize = 64;

/// Values in a manifest, those that aliases repeat included: 16 bytes of source each at the full size.
pub const MAX_VALUES: usize = 1 << 20;

/// Text that aliases may repeat.
pub const MAX_ALIASED_BYTES: usize = MAX_OBJECT_BYTES;

/// Documents and items that are named as wrong: more than anyone reads. Reading ends with the last of them.
pub const MAX_ERRORS: usize = 256;
/// Keys that are there twice and are told of, each in so many bytes: who sends a megabyte of them hears of some.
const MAX_DUPLICATES: usize = 64;
const MAX_DUPLICATE_BYTES: usize = 256;

/// Why a manifest cannot be read, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {}", self.place(), problem.explained())]
pub struct ManifestError {
    /// Counted from 1; empty documents count.
    pub document: usize,
    /// Counted from 1, in the whole input.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    pub problem: Problem,
}

impl ManifestError {
    /// Returns where it is, as `document 2, line 5, column 1`.
    pub fn place(&self) -> String {
        format!(
            "document {}, line {}, column {}",
            self.document, self.line, self.column
        )
    }
}

/// What is wrong with a manifest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("the manifest has {0} bytes, more than {MAX_MANIFEST_BYTES}")]
    ManifestTooLarge(usize),
    #[error("the object has {0} bytes as JSON, more than {MAX_OBJECT_BYTES}")]
    ObjectTooLarge(usize),
    #[error("nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("more than {MAX_VALUES} values, those repeated by aliases included")]
    TooManyValues,
    #[error("aliases repeat more than {MAX_ALIASED_BYTES} bytes of text")]
    TooMuchAliased,
    #[error("not UTF-8 text")]
    NotUtf8,
    #[error("{0}")]
    Syntax(String),
    #[error("duplicate key `{0}`")]
    DuplicateKey(String),
    #[error("a key must be a scalar")]
    KeyNotScalar,
    #[error("`<<` takes a map or a list of maps")]
    MergeNotMap,
    #[error("an alias refers to what contains it")]
    RecursiveAlias,
    #[error("`{value}` is not a valid {tag}")]
    BadScalar { tag: &'static str, value: String },
    #[error("expected an object (a map with apiVersion, kind and metadata), found {0}")]
    NotAnObject(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Of an item of a list; the place is that of the list.
    #[error("items[{index}]: {problem}")]
    Item { index: usize, problem: Box<Problem> },
}

impl Problem {
    /// Returns what a user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Problem::ManifestTooLarge(_) => "apply it in several parts",
            Problem::NotUtf8 => "save the file as UTF-8",
            Problem::Syntax(text) if text.contains("tab") => "indent with spaces",
            Problem::Syntax(_) => "check indentation and quotes around this place",
            Problem::DuplicateKey(_) => "keep one of them",
            Problem::KeyNotScalar => "quote a key that begins with {, [ or ?",
            Problem::BadScalar { .. } => "quote it if it is meant as text",
            Problem::NotAnObject(_) => "separate objects with a line of three dashes",
            Problem::Missing("apiVersion") => "for instance `apiVersion: apps/v1`",
            Problem::Missing(_) => "for instance `kind: Deployment`",
            Problem::Item { problem, .. } => return problem.hint(),
            Problem::TooManyValues
            | Problem::TooMuchAliased
            | Problem::RecursiveAlias
            | Problem::MergeNotMap
            | Problem::ObjectTooLarge(_)
            | Problem::TooDeep => return None,
        })
    }

    /// Returns the problem with its hint.
    pub fn explained(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self} (hint: {hint})"),
            None => self.to_string(),
        }
    }
}

/// What becomes of keys that are in one map more than once.
pub(crate) enum Duplicates {
    /// The place is an error.
    Refused,
    /// The last counts; a sentence for each, at most [`MAX_DUPLICATES`].
    Noted(Vec<String>),
}

impl Duplicates {
    /// Takes note of one. False: it is refused.
    pub(crate) fn note(&mut self, sentence: impl FnOnce() -> String) -> bool {
        match self {
            Duplicates::Refused => return false,
            Duplicates::Noted(notes) if notes.len() < MAX_DUPLICATES => {
                let mut sentence = sentence();
                if sentence.len() > MAX_DUPLICATE_BYTES {
                    sentence.truncate(sentence.floor_char_boundary(MAX_DUPLICATE_BYTES));
                    sentence.push('…');
                }
                notes.push(sentence);
            }
            Duplicates::Noted(_) => {}
        }
        true
    }

    fn notes(self) -> Vec<String> {
        match self {
            Duplicates::Refused => Vec::new(),
            Duplicates::Noted(notes) => notes,
        }
    }
}

/// One document of a manifest and where it begins.
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) number: usize,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// What a manifest holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Parsed {
    /// In their order, without those that are wrong.
    pub objects: Vec<Object>,
    /// In the order of their places; at most [`MAX_ERRORS`].
    pub errors: Vec<ManifestError>,
}

/// Reads the objects of a manifest in their order: YAML (several documents) or JSON, lists flattened, empty documents
/// skipped. Kinds are not looked up here.
///
/// # Errors
/// The first thing that cannot be read, or a limit ([`MAX_MANIFEST_BYTES`] and its neighbours).
pub fn parse(bytes: &[u8]) -> Result<Vec<Object>, ManifestError> {
    let Parsed { objects, errors } = parse_all(bytes);
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(objects),
    }
}

/// Reads as [`parse`] does, past documents and items that are no objects. What is no YAML ends it: where the next
/// document begins is not known then.
pub fn parse_all(bytes: &[u8]) -> Parsed {
    let text = match checked_text(bytes) {
        Ok(text) => text,
        Err(error) => {
            return Parsed {
                objects: Vec::new(),
                errors: vec![error],
            };
        }
    };
    let (documents, unreadable) = documents(text, &mut Duplicates::Refused);
    let mut parsed = Parsed::default();
    for document in documents {
        let (mut problems, room) = (Vec::new(), MAX_ERRORS - parsed.errors.len());
        flatten(document.value, &mut parsed.objects, &mut problems);
        parsed
            .errors
            .extend(problems.into_iter().take(room).map(|problem| ManifestError {
                document: document.number,
                line: document.line,
                column: document.column,
                problem,
            }));
        if parsed.errors.len() == MAX_ERRORS {
            return parsed;
        }
    }
    parsed.errors.extend(unreadable);
    parsed
}

/// Reads the objects of a body, and what a strict decoder says of keys that are there twice, of which the last counts: as
/// Kubernetes, which leaves it to clients whether that is refused. `assumed` are version and kind of what does not say them.
///
/// # Errors
/// The first thing that cannot be read.
pub fn parse_last_wins(
    bytes: &[u8],
    assumed: Option<(&str, &str)>,
) -> Result<(Vec<Object>, Vec<String>), ManifestError> {
    let text = checked_text(bytes)?;
    let mut duplicates = Duplicates::Noted(Vec::new());
    let (documents, unreadable) = documents(text, &mut duplicates);
    if let Some(error) = unreadable {
        return Err(error);
    }
    let mut objects = Vec::new();
    for mut document in documents {
        if let (Some((api_version, kind)), Value::Object(map)) = (assumed, &mut document.value) {
            defaults::set_text(map, "apiVersion", api_version);
            defaults::set_text(map, "kind", kind);
        }
        let mut problems = Vec::new();
        flatten(document.value, &mut objects, &mut problems);
        if let Some(problem) = problems.into_iter().next() {
            return Err(ManifestError {
                document: document.number,
                line: document.line,
                column: document.column,
                problem,
            });
        }
    }
    Ok((objects, duplicates.notes()))
}

/// [`parse_last_wins`] for one value in JSON, whatever it is.
///
/// # Errors
/// What cannot be read, and a second value.
pub fn json_last_wins(bytes: &[u8]) -> Result<(Value, Vec<String>), ManifestError> {
    let mut duplicates = Duplicates::Noted(Vec::new());
    let mut documents = json::documents(checked_text(bytes)?, &mut duplicates)?.into_iter();
    let error = |place: Option<Document>, text: &str| {
        let (line, column) = place.map_or((1, 1), |document| (document.line, document.column));
        ManifestError {
            document: 1,
            line,
            column,
            problem: Problem::Syntax(text.to_owned()),
        }
    };
    match (documents.next(), documents.next()) {
        (Some(document), None) => Ok((document.value, duplicates.notes())),
        (None, _) => Err(error(None, "EOF while parsing a value")),
        (_, more) => Err(error(more, "trailing characters")),
    }
}

fn checked_text(bytes: &[u8]) -> Result<&str, ManifestError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(ManifestError {
            document: 1,
            line: 1,
            column: 1,
            problem: Problem::ManifestTooLarge(bytes.len()),
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line_start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1);
        ManifestError {
            document: 1,
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count(),
            problem: Problem::NotUtf8,
        }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Returns the documents up to the first that cannot be read. JSON where it is JSON (its strings have escapes that YAML
/// reads otherwise), else YAML.
fn documents(text: &str, duplicates: &mut Duplicates) -> (Vec<Document>, Option<ManifestError>) {
    if !text.trim_start().starts_with(['{', '[']) {
        return yaml_documents(text, duplicates);
    }
    match json::documents(text, duplicates) {
        Ok(documents) => (documents, None),
        // YAML's flow style looks like JSON; if it is neither, the message about JSON is what helps.
        Err(error) if matches!(error.problem, Problem::Syntax(_)) => {
            if let Duplicates::Noted(notes) = duplicates {
                notes.clear();
            }
            match yaml_documents(text, duplicates) {
                (_, Some(yaml)) if matches!(yaml.problem, Problem::Syntax(_)) => (Vec::new(), Some(error)),
                result => result,
            }
        }
        Err(error) => (Vec::new(), Some(error)),
    }
}

fn yaml_documents(text: &str, duplicates: &mut Duplicates) -> (Vec<Document>, Option<ManifestError>) {
    let mut documents = Vec::new();
    for document in Documents::new(text, duplicates) {
        match document {
            Ok(document) => documents.push(document),
            Err(error) => return (documents, Some(error)),
        }
    }
    (documents, None)
}

/// Adds the object, or those of a list (`kind: List`, `kind: PodList`), to `objects`, and what is wrong to `problems`.
fn flatten(value: Value, objects: &mut Vec<Object>, problems: &mut Vec<Problem>) {
    let mut map = match value {
        Value::Null => return,
        Value::Object(map) => map,
        other => return problems.push(Problem::NotAnObject(type_name(&other))),
    };
    let mut text = |field| match map.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        _ => {
            problems.push(Problem::Missing(field));
            None
        }
    };
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return;
    };
    if let (Some(item_kind), Some(Value::Array(_) | Value::Null)) =
        (kind.strip_suffix("List"), map.get("items"))
    {
        let items = map.remove("items").and_then(|items| match items {
            Value::Array(items) => Some(items),
            _ => None,
        });
        for (index, mut item) in items.unwrap_or_default().into_iter().enumerate() {
            // Items of a typed list do not say what they are.
            if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                item.entry("apiVersion")
                    .or_insert_with(|| api_version.clone().into());
                item.entry("kind").or_insert_with(|| item_kind.into());
            }
            let mut below = Vec::new();
            flatten(item, objects, &mut below);
            problems.extend(below.into_iter().map(|problem| Problem::Item {
                index,
                problem: Box::new(problem),
            }));
        }
        return;
    }
    let object = Object(map);
    let size = object_bytes(&object);
    if size > MAX_OBJECT_BYTES {
        return problems.push(Problem::ObjectTooLarge(size));
    }
    objects.push(object);
}

/// Returns the length of an object as JSON, in bytes: without `metadata.managedFields`, which servers say and nobody stores.
pub fn object_bytes(object: &Object) -> usize {
    let managed = object.pointer("/metadata/managedFields");
    let managed = managed.map_or(0, json_bytes);
    json_bytes(object).saturating_sub(managed)
}

fn json_bytes(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

/// Names the type of a value for a message to the user.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Writes an object as kubectl does: keys sorted, block style. [`parse`] reads the same object back.
pub fn to_yaml(object: &Object) -> String {
    yaml_write::document(&object.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        let objects = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        objects.iter().map(|object| object.name().to_owned()).collect()
    }

    fn refusal(text: &str) -> ManifestError {
        parse(text.as_bytes()).expect_err(text)
    }

    const HEAD: &str = "apiVersion: v1\nkind: Pod\n";

    #[test]
    fn streams_as_people_write_them() {
        let text = "\u{feff}# a comment\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: one}\r\n---\r\n---\r\n\
            # nothing here\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: two\r\n...\r\n";
        assert_eq!(names(text), ["one", "two"]);
        assert_eq!(names(""), Vec::<String>::new());
        assert_eq!(names("---\n# only a comment\n"), Vec::<String>::new());
    }

    #[test]
    fn block_scalars_keep_dashes() {
        let text = format!(
            "{HEAD}metadata:\n  name: a\n  annotations:\n    script: |\n      one\n      ---\n      two\n    folded: >-\n      a\n      b\n"
        );
        let objects = parse(text.as_bytes()).unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0].annotation("script"), Some("one\n---\ntwo\n"));
        assert_eq!(objects[0].annotation("folded"), Some("a b"));
    }

    #[test]
    fn json_and_lists_are_flattened() {
        assert_eq!(
            names(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a\ud83d\ude00\/"}}"#),
            ["a😀/"]
        );
        assert_eq!(
            names(&"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n".repeat(2)),
            ["a", "a"]
        );
        assert_eq!(
            names(
                "{apiVersion: v1, kind: Pod, metadata: {name: flow}}\n---\n{}\n"
                    .trim_end_matches("---\n{}\n")
            ),
            ["flow"]
        );
        let list = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Pod, metadata: {{name: a}}}}\n- apiVersion: v1\n  kind: PodList\n  items:\n  - metadata: {{name: b}}\n---\n{HEAD}metadata: {{name: c}}"
        );
        assert_eq!(names(&list), ["a", "b", "c"]);
        let objects = parse(list.as_bytes()).unwrap();
        assert_eq!(objects[1].kind(), Some(crate::Kind::Pod));
        assert_eq!(
            names("{apiVersion: v1, kind: List, items: }"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn duplicate_keys_are_refused_with_their_place() {
        let error = refusal(&format!(
            "{HEAD}metadata: {{name: a}}\n---\n{HEAD}metadata:\n  name: a\n  labels:\n    a: b\n  name: c\n"
        ));
        assert_eq!((error.document, error.line, error.column), (2, 11, 3));
        assert_eq!(
            error.to_string(),
            "document 2, line 11, column 3: duplicate key `name` (hint: keep one of them)"
        );
        let error = refusal("{\"apiVersion\": \"v1\",\n \"kind\": \"Pod\", \"kind\": \"Pod\"}");
        assert_eq!(
            (error.line, &error.problem),
            (2, &Problem::DuplicateKey("kind".to_owned()))
        );
    }

    #[test]
    fn the_last_of_duplicate_keys_can_win() {
        let text = r#"{"a": 1, "list": [0, {"b": {"c": 1, "c": 2, "c": 3}}], "a": {"d": 4}}"#;
        let (value, notes) = json_last_wins(text.as_bytes()).unwrap();
        assert_eq!(value, json!({"a": {"d": 4}, "list": [0, {"b": {"c": 3}}]}));
        let again = "duplicate field \"list[1].b.c\"";
        assert_eq!(notes, [again, again, "duplicate field \"a\""]);
        let (objects, notes) =
            parse_last_wins(format!("{HEAD}spec:\n  a: 1\n  a: 2\n").as_bytes(), None).unwrap();
        assert_eq!(objects[0].i64_at("/spec/a"), Some(2));
        assert_eq!(notes, ["line 5: key \"a\" already set in map"]);
        let many = format!("{{{}\"a\": 1}}", "\"a\": 0, ".repeat(MAX_ERRORS * 2));
        assert_eq!(json_last_wins(many.as_bytes()).unwrap().1.len(), MAX_DUPLICATES);
        let long = format!(r#"{{"{}": {{"": 0, "": 0}}}}"#, "ü".repeat(1 << 17));
        let notes = json_last_wins(long.as_bytes()).unwrap().1;
        assert!(
            notes.len() == 1 && notes[0].len() <= MAX_DUPLICATE_BYTES + '…'.len_utf8(),
            "{}",
            notes[0].len()
        );
        for text in ["", "{} {}", "{\"a\": }", "[1,]"] {
            let _ = json_last_wins(text.as_bytes()).expect_err(text);
        }
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
        assert_eq!(
            json_last_wins(deep.as_bytes()).unwrap_err().problem,
            Problem::TooDeep
        );
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        for (text, problem) in [
            ("just text", Problem::NotAnObject("string")),
            ("- a\n- b", Problem::NotAnObject("array")),
            ("kind: Pod", Problem::Missing("apiVersion")),
            ("apiVersion: v1", Problem::Missing("kind")),
            ("apiVersion: 1\nkind: Pod", Problem::Missing("apiVersion")),
            (
                "a: .inf",
                Problem::BadScalar {
                    tag: "number",
                    value: ".inf".to_owned(),
                },
            ),
            ("{[a]: b}", Problem::KeyNotScalar),
        ] {
            assert_eq!(refusal(text).problem, problem, "{text}");
        }
        for text in [
            "a: [",
            "a: b: c",
            "\tkey: a",
            "{\"a\": }]",
            "a: 'open",
            "a: &x",
            "%%",
        ] {
            let _ = parse(text.as_bytes()).expect_err(text);
        }
        let error = parse(b"a: b\nc: \xff").unwrap_err();
        assert_eq!(
            (error.line, error.column, error.problem),
            (2, 4, Problem::NotUtf8)
        );
    }

    #[test]
    fn every_document_says_what_is_wrong_with_it() {
        let good = format!("{HEAD}metadata: {{name: a}}");
        let list = "apiVersion: v1\nkind: List\nitems: [1, {apiVersion: v1, kind: Pod, metadata: {name: b}}, {kind: Pod}]";
        let text =
            format!("foo: bar\n---\n{good}\n---\nkind: Pod\n---\n- a\n---\n{list}\n---\na: b: c\n---\nx");
        let Parsed { objects, errors } = parse_all(text.as_bytes());
        assert_eq!(objects.iter().map(Object::name).collect::<Vec<_>>(), ["a", "b"]);
        let errors: Vec<String> = errors
            .iter()
            .map(|error| format!("{} {}: {}", error.document, error.line, error.problem))
            .collect();
        let object = "expected an object (a map with apiVersion, kind and metadata), found";
        assert_eq!(
            errors[..6],
            [
                "1 1: apiVersion is missing".to_owned(),
                "1 1: kind is missing".to_owned(),
                "3 7: apiVersion is missing".to_owned(),
                format!("4 9: {object} array"),
                format!("5 11: items[0]: {object} integer"),
                "5 11: items[2]: apiVersion is missing".to_owned(),
            ]
        );
        assert!(errors[6].starts_with("6 15: "), "{errors:?}");
        assert_eq!(errors.len(), 7);
    }

    #[test]
    fn limits_hold() {
        let deep = |open: &str, close: &str| {
            format!(
                "{HEAD}spec: {}{}",
                open.repeat(MAX_DEPTH),
                close.repeat(MAX_DEPTH)
            )
        };
        assert_eq!(refusal(&deep("[", "]")).problem, Problem::TooDeep);
        assert_eq!(
            refusal(&format!("{}{}", "[".repeat(65), "]".repeat(65))).problem,
            Problem::TooDeep
        );
        assert_eq!(refusal(&"[".repeat(100_000)).problem, Problem::TooDeep);
        let big = format!("{HEAD}metadata:\n  name: {}\n", "a".repeat(MAX_OBJECT_BYTES));
        assert!(matches!(refusal(&big).problem, Problem::ObjectTooLarge(_)));
        let wrong = "a\n---\n".repeat(MAX_ERRORS + 1);
        assert_eq!(parse_all(wrong.as_bytes()).errors.len(), MAX_ERRORS);
        assert!(matches!(
            refusal(&" ".repeat(MAX_MANIFEST_BYTES + 1)).problem,
            Problem::ManifestTooLarge(_)
        ));
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "\\PC{0,12}",
            "[-+]?[0-9_.:eExob]{1,6}",
            prop::sample::select(vec![
                "yes",
                "No",
                "on",
                "OFF",
                "y",
                "n",
                "true",
                "null",
                "~",
                "",
                "0644",
                "0x1f",
                "<<",
                "=",
                "-",
                "a: b",
                "# c",
                " lead",
                "trail ",
                "two\nlines",
                "two\nlines\n",
                "\n",
                "\t",
                "- a",
                "{",
                "*a",
                "&a",
                "!a",
                "2001-01-01",
                "12e03",
                "1_000",
                ".5",
                "0b1",
                "0o7",
                "---",
                "...",
                "%",
                "@",
                "`",
                "\r\n",
                "\u{feff}",
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn yaml_that_we_write_reads_back(spec in value()) {
            let object = Object::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec,
            })).unwrap();
            let yaml = to_yaml(&object);
            let read = parse(yaml.as_bytes()).map_err(|error| TestCaseError::fail(format!("{error}\n{yaml}")))?;
            prop_assert_eq!(&read, &vec![object.clone()], "{}", yaml);
            prop_assert_eq!(&serde_yaml::from_str::<Value>(&yaml).unwrap(), &object.clone().into_value(), "{}", yaml);
            let json = serde_json::to_vec_pretty(&object).unwrap();
            prop_assert_eq!(parse(&json).unwrap(), vec![object]);
        }

        #[test]
        fn no_input_panics(text in "[-a:{}\\[\\]&*!|> \n\t\"'0<#%,?~]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
