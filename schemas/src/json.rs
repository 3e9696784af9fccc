//! JSON read strictly: depth and number of values are checked, with positions, and duplicate keys are refused or noted.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::manifest::{Document, Duplicates, MAX_DEPTH, MAX_VALUES, ManifestError, Problem};

/// Reads one JSON value after the other. Of duplicate keys that are noted, the last counts.
pub(crate) fn documents(text: &str, duplicates: &mut Duplicates) -> Result<Vec<Document>, ManifestError> {
    let state = RefCell::new(State {
        values: 0,
        problem: None,
        duplicates,
        path: Vec::new(),
    });
    let mut documents = Vec::new();
    let mut rest = text;
    let (mut line, mut column) = (1, 1);
    loop {
        let trimmed = rest.trim_start();
        if trimmed.is_empty() {
            return Ok(documents);
        }
        advance(&mut line, &mut column, &rest[..rest.len() - trimmed.len()]);
        let number = documents.len() + 1;
        let mut source = serde_json::Deserializer::from_str(trimmed);
        let value = Strict {
            state: &state,
            depth: 0,
        }
        .deserialize(&mut source);
        let value = value.map_err(|error| ManifestError {
            document: number,
            line: line + error.line().saturating_sub(1),
            column: if error.line() <= 1 {
                column + error.column().saturating_sub(1)
            } else {
                error.column()
            },
            problem: state.borrow_mut().problem.take().unwrap_or_else(|| {
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default().to_owned();
                Problem::Syntax(text)
            }),
        })?;
        documents.push(Document {
            value,
            number,
            line,
            column,
        });
        // Only a stream tells how far the source was read.
        let end = source.into_iter::<IgnoredAny>().byte_offset();
        advance(&mut line, &mut column, &trimmed[..end]);
        rest = &trimmed[end..];
    }
}

/// Moves line and column (counted from 1) past `text`.
fn advance(line: &mut usize, column: &mut usize, text: &str) {
    let last_line = match text.rfind('\n') {
        Some(newline) => {
            *line += text.matches('\n').count();
            *column = 1;
            &text[newline + 1..]
        }
        None => text,
    };
    *column += last_line.chars().count();
}

struct State<'a> {
    values: usize,
    /// What was found, beside the text that serde's errors carry.
    problem: Option<Problem>,
    duplicates: &'a mut Duplicates,
    /// Where the reader is.
    path: Vec<Step>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl State<'_> {
    /// Notes that a key is there again, unless that is refused.
    fn repeated(&mut self, key: &str) -> bool {
        let steps = &self.path;
        self.duplicates.note(|| {
            let mut path = String::new();
            for step in steps {
                match step {
                    Step::Key(name) if path.is_empty() => path.push_str(name),
                    Step::Key(name) => path.extend([".", name]),
                    Step::Index(index) => path.push_str(&format!("[{index}]")),
                }
            }
            if !path.is_empty() {
                path.push('.');
            }
            format!("duplicate field \"{path}{key}\"")
        })
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    state: &'a RefCell<State<'a>>,
    depth: usize,
}

impl Strict<'_> {
    fn fail<E: serde::de::Error>(self, problem: Problem) -> E {
        let error = E::custom(&problem);
        self.state.borrow_mut().problem = Some(problem);
        error
    }

    /// Goes one level down.
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.fail(Problem::TooDeep));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        let values = {
            let mut state = self.state.borrow_mut();
            state.values += 1;
            state.values
        };
        if values > MAX_VALUES {
            return Err(self.fail(Problem::TooManyValues));
        }
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        loop {
            self.state.borrow_mut().path.push(Step::Index(list.len()));
            let value = source.next_element_seed(inner)?;
            self.state.borrow_mut().path.pop();
            match value {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = source.next_key::<String>()? {
            if map.contains_key(&key) && !self.state.borrow_mut().repeated(&key) {
                return Err(self.fail(Problem::DuplicateKey(key)));
            }
            self.state.borrow_mut().path.push(Step::Key(key.clone()));
            let value = source.next_value_seed(inner)?;
            self.state.borrow_mut().path.pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
