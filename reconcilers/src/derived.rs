//! Names and choices derived by hash, so that two nodes that plan at once choose the same.
//!
//! Never random, never dependent on the order of maps. The results are a part of stored names: they must not change
//! from version to version.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Letters that Kubernetes uses for generated names: none that form words, none that look alike.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// 27^10 is 47 bits: the templates of one Deployment do not collide.
const TEMPLATE_HASH_LETTERS: usize = 10;
/// As Kubernetes' generated suffixes; planners step over the rare collision.
const POD_SUFFIX_LETTERS: usize = 5;

/// Returns 64 bits of SHA-256 over the parts, each with its length, so that no two lists of parts look alike.
pub fn hash(parts: &[&str]) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        text(&mut digest, part);
    }
    first_64_bits(digest)
}

/// Returns the value of the label `pod-template-hash`: ten letters from the template's content, whatever the order of
/// its maps.
pub fn template_hash(template: &Value) -> String {
    let mut digest = Sha256::new();
    canonical(&mut digest, template);
    letters(first_64_bits(digest), TEMPLATE_HASH_LETTERS)
}

/// Returns the name of a pod of a ReplicaSet: the set's name and five letters.
pub fn pod_name(replica_set: &str, owner_uid: &str, slot: u32, attempt: u32) -> String {
    let hash = hash(&["pod", owner_uid, &slot.to_string(), &attempt.to_string()]);
    format!("{replica_set}-{}", letters(hash, POD_SUFFIX_LETTERS))
}

fn letters(mut number: u64, count: usize) -> String {
    let base = LETTERS.len() as u64;
    let mut word = String::with_capacity(count);
    for _ in 0..count {
        word.push(char::from(LETTERS[(number % base) as usize]));
        number /= base;
    }
    word
}

fn first_64_bits(digest: Sha256) -> u64 {
    digest
        .finalize()
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn text(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_be_bytes());
    digest.update(text.as_bytes());
}

fn canonical(digest: &mut Sha256, value: &Value) {
    match value {
        Value::Null => digest.update(b"n"),
        Value::Bool(flag) => digest.update([b'b', u8::from(*flag)]),
        Value::Number(number) => {
            digest.update(b"#");
            text(digest, &number.to_string());
        }
        Value::String(string) => {
            digest.update(b"s");
            text(digest, string);
        }
        Value::Array(items) => {
            digest.update(b"[");
            digest.update((items.len() as u64).to_be_bytes());
            for item in items {
                canonical(digest, item);
            }
        }
        Value::Object(map) => {
            digest.update(b"{");
            digest.update((map.len() as u64).to_be_bytes());
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (key, item) in entries {
                text(digest, key);
                canonical(digest, item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_hash_depends_on_content_alone() {
        let one = template_hash(&json!({"a": 1, "b": {"c": ["x"], "d": null}}));
        let other = template_hash(&json!({"b": {"d": null, "c": ["x"]}, "a": 1}));
        assert_eq!(one, other);
        assert_ne!(one, template_hash(&json!({"a": 1, "b": {"c": ["y"], "d": null}})));
        assert_eq!(one, "zgrbkswsgp", "stored names must not change between versions");
    }

    #[test]
    fn pod_names_differ_by_owner_slot_and_attempt() {
        let name = pod_name("web-abc", "uid", 1, 0);
        assert!(
            name.starts_with("web-abc-") && name.len() == "web-abc-".len() + 5,
            "{name}"
        );
        for other in [
            pod_name("web-abc", "other", 1, 0),
            pod_name("web-abc", "uid", 2, 0),
            pod_name("web-abc", "uid", 1, 1),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
