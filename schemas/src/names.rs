//! The forms of names, labels and ports, with Kubernetes' words for what breaks them.
//!
//! Each function returns what is wrong, or None. Source: `k8s.io/apimachinery/pkg/util/validation`.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} bytes"))
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_label_form(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if is_lower(*first) && is_lower(*last))
        && bytes.iter().all(|byte| is_lower(*byte) || *byte == b'-')
}

/// A DNS label (RFC 1123): names of namespaces, containers, volumes.
pub fn dns_label(text: &str) -> Option<String> {
    too_long(text, LABEL_MAX).or_else(|| {
        (!is_label_form(text)).then(|| {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .to_owned()
        })
    })
}

/// A DNS label that begins with a letter (RFC 1035): names of services.
pub fn dns_1035_label(text: &str) -> Option<String> {
    too_long(text, LABEL_MAX).or_else(|| {
        (!is_label_form(text) || text.as_bytes()[0].is_ascii_digit()).then(|| {
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
             is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned()
        })
    })
}

/// A DNS name (RFC 1123): names of most objects, hosts of ingresses.
pub fn dns_subdomain(text: &str) -> Option<String> {
    too_long(text, SUBDOMAIN_MAX).or_else(|| {
        (!text.split('.').all(is_label_form)).then(|| {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned()
        })
    })
}

/// A DNS name whose first label is `*`.
pub fn wildcard_dns_subdomain(text: &str) -> Option<String> {
    let rest = text
        .strip_prefix("*.")
        .filter(|rest| dns_subdomain(rest).is_none());
    (rest.is_none() || text.len() > SUBDOMAIN_MAX).then(|| {
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
         lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', \
         regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .to_owned()
    })
}

/// A key of a ConfigMap's or a Secret's data.
pub fn config_key(text: &str) -> Option<String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if let Some(problem) = too_long(text, SUBDOMAIN_MAX) {
        return Some(problem);
    }
    if text.is_empty() || !text.bytes().all(is_allowed) {
        return Some(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
             or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match text {
        "." | ".." => Some(format!("must not be '{text}'")),
        _ => text
            .starts_with("..")
            .then(|| "must not start with '..'".to_owned()),
    }
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last))
        if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A key of labels or annotations: `name` or `prefix/name`.
pub fn qualified_name(text: &str) -> Option<String> {
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return Some(format!(
                "{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                name_part_rule()
            ));
        }
        Some(("", _)) => return Some("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) => {
            if let Some(problem) = dns_subdomain(prefix) {
                return Some(format!("prefix part {problem}"));
            }
            name
        }
    };
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if let Some(problem) = too_long(name, LABEL_MAX) {
        return Some(format!("name part {problem}"));
    }
    (!is_qualified_part(name)).then(|| {
        format!(
            "name part {}",
            name_part_rule().trim_start_matches("a qualified name ")
        )
    })
}

fn name_part_rule() -> &'static str {
    "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
     alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
}

/// The value of a label.
pub fn label_value(text: &str) -> Option<String> {
    too_long(text, LABEL_MAX).or_else(|| {
        (!text.is_empty() && !is_qualified_part(text)).then(|| {
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
             validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned()
        })
    })
}

/// The name of a port (IANA service name).
pub fn port_name(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() > 15 {
        return Some("must be no more than 15 characters".to_owned());
    }
    if !bytes.iter().all(|byte| is_lower(*byte) || *byte == b'-') || bytes.is_empty() {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        return Some("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        return Some("must not contain consecutive hyphens".to_owned());
    }
    (text.starts_with('-') || text.ends_with('-')).then(|| "must not begin or end with a hyphen".to_owned())
}

/// The number of a port.
pub fn port_number(port: i64) -> Option<String> {
    (!(1..=65535).contains(&port)).then(|| "must be between 1 and 65535, inclusive".to_owned())
}

/// The name of an environment variable: any printable ASCII but `=`.
pub fn env_name(text: &str) -> Option<String> {
    (!text
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'='))
    .then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_accept_and_refuse() {
        type Form = fn(&str) -> Option<String>;
        let long = "a".repeat(64);
        for (name, form, good, bad) in [
            (
                "label",
                dns_label as Form,
                &["a", "my-name", "123-abc"][..],
                &["", "-a", "a-", "A", "a.b", "a_b", &long][..],
            ),
            ("1035", dns_1035_label, &["a", "abc-1"], &["", "1a", "a.b"]),
            (
                "subdomain",
                dns_subdomain,
                &["example.com", "a"],
                &["", "a..b", ".a", "a.", "A.b"],
            ),
            (
                "wildcard",
                wildcard_dns_subdomain,
                &["*.example.com"],
                &["*", "*.", "a.*.b", "example.com"],
            ),
            (
                "key",
                qualified_name,
                &["app", "app.kubernetes.io/name", "A_b.c"],
                &["", "/a", "a/", "a/b/c", "-a", "A!/b"],
            ),
            (
                "value",
                label_value,
                &["", "v1.2_3", "A"],
                &["-", "a b", "a/", &long],
            ),
            (
                "port",
                port_name,
                &["http", "h-2"],
                &["", "80", "-a", "a--b", "http_1", "much-too-long-a-name"],
            ),
            ("env", env_name, &["A", "a.b-c d"], &["a=b", "ä"]),
        ] {
            good.iter()
                .for_each(|text| assert_eq!(form(text), None, "{name} {text}"));
            bad.iter()
                .for_each(|text| assert!(form(text).is_some(), "{name} {text}"));
        }
    }
}
