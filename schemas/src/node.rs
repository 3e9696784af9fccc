//! Walking a JSON tree with the path at hand, and collecting what is wrong with it.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::field_error::{FieldError, Reason};

/// A value in a tree, null if it is not there, and its path as users write it.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub(crate) path: String,
    pub(crate) value: &'a Value,
}

impl<'a> Node<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self {
            path: String::new(),
            value,
        }
    }

    /// Goes to a field.
    pub(crate) fn at(&self, name: &str) -> Node<'a> {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        Node {
            path,
            value: self.value.get(name).unwrap_or(&Value::Null),
        }
    }

    /// Goes to the elements of a list; of anything else there are none.
    pub(crate) fn items(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(move |(index, value)| Node {
            path: format!("{path}[{index}]"),
            value,
        })
    }

    /// Goes to the values of a map with free keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, Node<'a>)> + use<'a> {
        let path = self.path.clone();
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| {
            (
                key,
                Node {
                    path: format!("{path}[{key}]"),
                    value,
                },
            )
        })
    }

    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Returns the text, or none of it.
    pub(crate) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub(crate) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(crate) fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    pub(crate) fn map(&self) -> Option<&'a Map<String, Value>> {
        self.value.as_object()
    }

    pub(crate) fn is_empty_list(&self) -> bool {
        self.value.as_array().is_none_or(Vec::is_empty)
    }
}

/// Findings that are kept of one object: more than anyone reads, and few enough that comparing them costs nothing.
pub(crate) const MAX_FINDINGS: usize = 256;

/// Field errors in the order they were found, at most [`MAX_FINDINGS`].
#[derive(Default)]
pub(crate) struct Errors(pub(crate) Vec<FieldError>);

impl Errors {
    fn add(&mut self, node: &Node<'_>, reason: Reason, detail: impl Into<String>) {
        let error = FieldError {
            path: node.path.clone(),
            reason,
            value: node.value.clone(),
            detail: detail.into(),
        };
        if self.0.len() < MAX_FINDINGS && !self.0.contains(&error) {
            self.0.push(error);
        }
    }

    pub(crate) fn required(&mut self, node: &Node<'_>, detail: &str) {
        self.add(
            &Node {
                path: node.path.clone(),
                value: &Value::Null,
            },
            Reason::Required,
            detail,
        );
    }

    pub(crate) fn invalid(&mut self, node: &Node<'_>, detail: impl Into<String>) {
        self.add(node, Reason::Invalid, detail);
    }

    pub(crate) fn type_invalid(&mut self, node: &Node<'_>, expected: &str) {
        self.add(node, Reason::TypeInvalid, format!("must be of type {expected}"));
    }

    pub(crate) fn forbidden(&mut self, node: &Node<'_>, detail: impl Into<String>) {
        self.add(
            &Node {
                path: node.path.clone(),
                value: &Value::Null,
            },
            Reason::Forbidden,
            detail,
        );
    }

    pub(crate) fn duplicate(&mut self, node: &Node<'_>) {
        self.add(node, Reason::Duplicate, "");
    }

    pub(crate) fn not_found(&mut self, node: &Node<'_>) {
        self.add(node, Reason::NotFound, "");
    }

    pub(crate) fn too_long(&mut self, node: &Node<'_>, max: usize) {
        let node = Node {
            path: node.path.clone(),
            value: &Value::Null,
        };
        self.add(
            &node,
            Reason::TooLong,
            format!("may not be more than {max} bytes"),
        );
    }

    /// Checks text that is there against a form of [`crate::names`].
    pub(crate) fn form(&mut self, node: &Node<'_>, form: fn(&str) -> Option<String>) {
        if let Some(problem) = node.value.as_str().and_then(form) {
            self.invalid(node, problem);
        }
    }

    /// Checks text that must be there against a form of [`crate::names`].
    pub(crate) fn required_form(&mut self, node: &Node<'_>, form: fn(&str) -> Option<String>) {
        if node.text().is_empty() {
            self.required(node, "");
        } else {
            self.form(node, form);
        }
    }

    /// Checks text that is there against the values it may have.
    pub(crate) fn one_of(&mut self, node: &Node<'_>, supported: &[&str]) {
        if node.is_set() && !supported.contains(&node.text()) {
            self.not_supported(node, supported);
        }
    }

    pub(crate) fn not_supported(&mut self, node: &Node<'_>, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        self.add(
            node,
            Reason::NotSupported,
            format!("supported values: {}", supported.join(", ")),
        );
    }

    /// Checks that a number that is there is not below `minimum`.
    pub(crate) fn at_least(&mut self, node: &Node<'_>, minimum: i64) {
        if node.int().is_some_and(|number| number < minimum) {
            self.invalid(node, format!("must be greater than or equal to {minimum}"));
        }
    }

    /// Checks an IP address that is there.
    pub(crate) fn address(&mut self, node: &Node<'_>) {
        if node.is_set() && node.text().parse::<IpAddr>().is_err() {
            self.invalid(
                node,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }

    /// Checks a port that is a number or a name.
    pub(crate) fn port(&mut self, node: &Node<'_>) {
        match node.value {
            Value::Number(number) => {
                if let Some(problem) = crate::names::port_number(number.as_i64().unwrap_or_default()) {
                    self.invalid(node, problem);
                }
            }
            Value::String(_) => self.form(node, crate::names::port_name),
            Value::Null => self.required(node, ""),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
        }
    }
}
