//! JSON of what cannot fail to be written: maps with text keys. Pure.

use std::io;

use serde::Serialize;

/// Room that most objects fit in, so that writing one need not grow its buffer again and again.
const MOST_BYTES: usize = 4 << 10;

pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Writes what is kept for long: a buffer of exactly its size, made anew, leaves no hole beside it as one that shrank does.
pub(crate) fn to_box(value: &impl Serialize) -> Box<[u8]> {
    let mut buffer = Vec::with_capacity(MOST_BYTES);
    if serde_json::to_writer(&mut buffer, value).is_err() {
        buffer.clear();
    }
    Box::from(buffer.as_slice())
}

/// Returns the length of a value as JSON, in bytes.
pub(crate) fn len(value: &impl Serialize) -> usize {
    let mut counter = Counter(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}

/// Tells whether a value is written like this. Looks at no more than it must.
pub(crate) fn is(value: &impl Serialize, json: &[u8]) -> bool {
    let mut rest = Rest(json);
    serde_json::to_writer(&mut rest, value).is_ok() && rest.0.is_empty()
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is still to come, if what is written goes on as it began.
struct Rest<'a>(&'a [u8]);

impl io::Write for Rest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.strip_prefix(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_of_these_write_the_same() {
        let long = "x\n".repeat(MOST_BYTES);
        for value in [
            json!(null),
            json!({"a": [1, 2.5, {"b": "\u{1F600}"}]}),
            json!({ "long": long }),
        ] {
            let bytes = to_vec(&value);
            assert_eq!(*to_box(&value), *bytes);
            assert_eq!(len(&value), bytes.len());
            assert!(is(&value, &bytes));
            assert!(!is(&value, &bytes[..bytes.len() - 1]));
            assert!(!is(&value, &[bytes.as_slice(), b" "].concat()));
            assert!(!is(&json!(1), &bytes));
        }
    }
}
