//! Errors as text.

use std::error::Error;

/// Writes an error and its causes in one line. A cause that the text before it holds already is not repeated: some
/// libraries write their causes themselves.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: &'static str,
        #[source]
        cause: Option<Box<Told>>,
    }

    fn told(text: &'static str, cause: Option<Told>) -> Told {
        Told {
            text,
            cause: cause.map(Box::new),
        }
    }

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let error = told("connect", Some(told("tcp", Some(told("refused", None)))));
        assert_eq!(with_causes(&error), "connect: tcp: refused");
        let error = told("connect: refused", Some(told("refused", None)));
        assert_eq!(with_causes(&error), "connect: refused");
    }
}
