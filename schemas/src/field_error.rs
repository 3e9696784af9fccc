//! What is wrong with a field, in the words of Kubernetes' API server.

use std::fmt;

use serde_json::Value;

/// One reason to refuse an object.
#[derive(Clone, PartialEq, Debug)]
pub struct FieldError {
    /// `spec.template.spec.containers[0].image`
    pub path: String,
    pub reason: Reason,
    /// The value refused; null where there is none.
    pub value: Value,
    /// The rule that it breaks; may be empty.
    pub detail: String,
}

/// The class of a field error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    NotFound,
    Duplicate,
    Forbidden,
    TooLong,
    TypeInvalid,
}

impl Reason {
    /// Returns the `reason` of a cause in a Kubernetes `Status`.
    pub fn cause(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::NotFound => "FieldValueNotFound",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

impl FieldError {
    /// Returns the text without the path, as the `message` of a cause has it.
    pub fn message(&self) -> String {
        let Self { value, detail, .. } = self;
        let head = match self.reason {
            Reason::Required => "Required value".to_owned(),
            Reason::Invalid | Reason::TypeInvalid => format!("Invalid value: {value}"),
            Reason::NotSupported => format!("Unsupported value: {value}"),
            Reason::NotFound => format!("Not found: {value}"),
            Reason::Duplicate => format!("Duplicate value: {value}"),
            Reason::Forbidden => "Forbidden".to_owned(),
            Reason::TooLong => "Too long".to_owned(),
        };
        if detail.is_empty() {
            head
        } else {
            format!("{head}: {detail}")
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

impl std::error::Error for FieldError {}
