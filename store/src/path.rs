//! Field paths of a flat document as text, and the tokens they are made of. Pure text: no values, no schema.
//!
//! A path is tokens joined by `/`:
//! * a map key, with `~` as `~0`, `/` as `~1`, and `~2` before one that is empty or begins like another token;
//! * `[web]`, a keyed element (`,` joins the values of several merge keys; a `,` within one is `~3`), `[web]#2` its
//!   second duplicate; alone at the end the *presence* of the element, and `[web]@1` its incarnation number 1, which holds
//!   the order at the end and leads to the element's fields otherwise;
//! * `<"x">`, an element of a set, numbered likewise;
//! * `{union}`, `{element}` and, at the root, `{immutable}`: several fields as one register.
//!
//! Leaves that are not the object's own begin with `@` (see `document.rs` and `owners.rs`).

use std::borrow::Cow;

/// The longest path: sixteen times the longest label key, with room for depth.
pub(crate) const MAX_PATH_BYTES: usize = 8 * 1024;
/// The most levels of a leaf: the tokens of its path, each in a map or a list of the object, and the levels of its value where
/// that is JSON. What is written here has [`crate::leaves::MAX_DEPTH`] and two for a group at most. Objects are kept as
/// JSON, of which `serde_json` reads 127 levels; a list of objects takes two of them.
pub(crate) const MAX_LEVELS: usize = 120;

/// The register group of all fields that cannot change after creation.
pub(crate) const IMMUTABLE: &str = "{immutable}";
/// The register group of the members of a union.
pub(crate) const UNION: &str = "{union}";
/// The register group of all fields of a list element that is one value.
pub(crate) const ELEMENT: &str = "{element}";

/// One step of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Token<'a> {
    Field(Cow<'a, str>),
    Element(Element<'a>),
    Group(&'a str),
}

/// A step into a list that merges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Element<'a> {
    /// The token without the number: what tells elements of one list apart.
    pub(crate) identity: &'a str,
    /// The value itself, for an element of a set.
    pub(crate) set_value: Option<Cow<'a, str>>,
    /// Counts how often this element was added; None in the path of its presence.
    pub(crate) number: Option<u32>,
}

impl Element<'_> {
    /// Returns the values of the merge keys; None, if it is an element of a set.
    pub(crate) fn key_values(&self) -> Option<Vec<String>> {
        let (inner, _) = self.identity.strip_prefix('[')?.rsplit_once(']')?;
        let values = inner.split(',').map(|value| Some(unescape(value)?.into_owned()));
        values.collect()
    }
}

/// Tells whether a path has more tokens than any of ours: a tree of it could be too deep for the stack.
pub(crate) fn is_too_deep(path: &str) -> bool {
    path.split('/').nth(MAX_LEVELS).is_some()
}

/// Appends a token to a path; the root is empty.
pub(crate) fn child(parent: &str, token: &str) -> String {
    if parent.is_empty() {
        token.to_owned()
    } else {
        format!("{parent}/{token}")
    }
}

/// Splits a path into its parent and the last token.
pub(crate) fn split_last(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Writes a map key as a token.
pub(crate) fn field(key: &str) -> Cow<'_, str> {
    let literal = key.is_empty() || key.starts_with(['[', '<', '{', '@']);
    if !literal && !key.contains(['~', '/']) {
        return Cow::Borrowed(key);
    }
    let escaped = key.replace('~', "~0").replace('/', "~1");
    Cow::Owned(if literal { format!("~2{escaped}") } else { escaped })
}

/// Writes the identity of a keyed element from the values of its merge keys.
pub(crate) fn keyed<'a>(values: impl Iterator<Item = Cow<'a, str>>) -> String {
    let parts: Vec<String> = values.map(|part| escape(&part).replace(',', "~3")).collect();
    format!("[{}]", parts.join(","))
}

/// Writes the identity of an element of a set.
pub(crate) fn set_element(value: &str) -> String {
    format!("<{}>", escape(value))
}

/// Writes the identity of the element of a list that is the `count`th of its identity, from 1.
pub(crate) fn duplicate(identity: &str, count: usize) -> String {
    if count > 1 {
        format!("{identity}#{count}")
    } else {
        identity.to_owned()
    }
}

/// Writes the token of an element's number.
pub(crate) fn numbered(identity: &str, number: u32) -> String {
    format!("{identity}@{number}")
}

fn escape(text: &str) -> String {
    text.replace('~', "~0").replace('/', "~1")
}

/// Undoes the escapes of a token; None, if it has one that does not exist.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('~') {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '~' => match characters.next()? {
                '0' => '~',
                '1' => '/',
                '3' => ',',
                _ => return None,
            },
            other => other,
        });
    }
    Some(Cow::Owned(plain))
}

/// Reads a token; None, if this is not one that the functions above write.
pub(crate) fn parse(token: &str) -> Option<Token<'_>> {
    match token.as_bytes().first()? {
        b'[' => element(token, ']'),
        b'<' => element(token, '>'),
        b'{' => matches!(token, IMMUTABLE | UNION | ELEMENT).then_some(Token::Group(token)),
        b'@' => None,
        _ => {
            let plain = match token.strip_prefix("~2") {
                Some(literal) => {
                    let plain = unescape(literal)?;
                    (plain.is_empty() || plain.starts_with(['[', '<', '{', '@'])).then_some(plain)?
                }
                None => unescape(token)?,
            };
            (field(&plain) == token).then_some(Token::Field(plain))
        }
    }
}

fn element(token: &str, close: char) -> Option<Token<'_>> {
    let end = token.rfind(close)?;
    let (inner, suffix) = (token.get(1..end)?, token.get(end + 1..)?);
    let plain = unescape(inner)?;
    let (duplicate, number) = match suffix.split_once('@') {
        Some((duplicate, number)) => (duplicate, Some(decimal(number)?)),
        None => (suffix, None),
    };
    if !duplicate.is_empty() {
        (decimal(duplicate.strip_prefix('#')?)? > 1).then_some(())?;
    }
    Some(Token::Element(Element {
        identity: &token[..end + 1 + duplicate.len()],
        set_value: (close == '>').then_some(plain),
        number,
    }))
}

/// Reads a number from 1 without sign or leading zeros, so that each has one spelling.
fn decimal(text: &str) -> Option<u32> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    canonical.then(|| text.parse().ok()).flatten()
}

/// Returns what the leaf at `path` is: of an element's presence, its order, or a value.
pub(crate) fn role(path: &str) -> Role {
    match split_last(path).1 {
        token if token.starts_with(['[', '<']) => match parse(token) {
            Some(Token::Element(Element { number: None, .. })) => Role::Presence,
            _ => Role::Order,
        },
        _ => Role::Value,
    }
}

/// What a leaf says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// `n`: the element is there under number n; `-n`: it was removed.
    Presence,
    /// A fractional index.
    Order,
    Value,
}

/// Shows a path to people: without numbers and escapes where they say nothing.
pub(crate) fn display(path: &str) -> String {
    let tokens = path.split('/').filter_map(|token| match parse(token) {
        Some(Token::Field(name)) => Some(name.into_owned()),
        Some(Token::Element(element)) => Some(unescape(element.identity)?.into_owned()),
        Some(Token::Group(_)) | None => None,
    });
    let mut text = String::new();
    for token in tokens {
        if !text.is_empty() && !token.starts_with(['[', '<']) {
            text.push('.');
        }
        text.push_str(&token);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_keys_survive_their_text() {
        for key in [
            "",
            "a",
            "/",
            "~",
            "~1",
            "~2",
            "~2[a",
            "[web]",
            "[web]@1",
            "<x>",
            "{union}",
            "@creator",
            "a/b~c",
            "#",
            "a.b",
            "]",
            "app.kubernetes.io/name",
            "ключ",
        ] {
            let token = field(key);
            assert!(!token.contains('/'), "{token}");
            assert_eq!(parse(&token), Some(Token::Field(key.into())), "{key} as {token}");
        }
    }

    #[test]
    fn elements_survive_their_text() {
        for values in [
            vec!["web"],
            vec!["80", "TCP"],
            vec!["a]@1"],
            vec!["]", ","],
            vec!["/~"],
            vec![""],
        ] {
            for (count, number) in [(1, None), (2, None), (1, Some(1)), (3, Some(12))] {
                let identity = keyed(values.iter().map(|value| Cow::Borrowed(*value)));
                let identity = duplicate(&identity, count);
                let token = number.map_or(identity.clone(), |number| numbered(&identity, number));
                assert!(!token.contains('/'));
                let Some(Token::Element(element)) = parse(&token) else {
                    panic!("{token}")
                };
                assert_eq!((element.identity, element.number), (identity.as_str(), number));
                let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
                assert_eq!(element.key_values(), Some(values));
            }
        }
    }

    #[test]
    fn refuses_what_it_never_writes() {
        for bad in [
            "",
            "[a",
            "[a]x",
            "[a]@0",
            "[a]@01",
            "[a]#1",
            "[a]@-1",
            "{other}",
            "~9",
            "~2a",
            "@x",
            "[a]@99999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn people_see_names_and_keys() {
        assert_eq!(
            display("spec/template/spec/containers/[web]@1/env/[A~1B]@3/{union}"),
            "spec.template.spec.containers[web].env[A/B]"
        );
    }
}
