//! The documents as clients get them.

use std::collections::BTreeSet;
use std::time::Instant;

use schemas::KINDS;

use super::*;

fn parsed(group: &'static str) -> Value {
    serde_json::from_slice(&v3_document(group)).unwrap()
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                found.insert(target.clone());
            }
            members.values().for_each(|member| references(member, found));
        }
        _ => {}
    }
}

#[test]
fn every_reference_leads_to_a_schema_and_every_kind_has_one() {
    for group in groups() {
        let document = parsed(group);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in &found {
            let place = target.strip_prefix('#').unwrap();
            assert!(
                document.pointer(place).is_some(),
                "{group}: {target} leads nowhere"
            );
        }
        for (group, kind) in kinds(group) {
            let place = format!(
                "#/components/schemas/{}",
                schemas::openapi::type_name(group, kind)
            );
            assert!(found.contains(&place), "{place} is at no path");
        }
    }
    let document = v2_document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in &found {
        assert!(
            document.pointer(target.strip_prefix('#').unwrap()).is_some(),
            "{target}"
        );
    }
}

#[test]
fn patches_of_every_kind_say_what_kubectl_looks_for() {
    for row in KINDS.iter().filter(|row| row.served) {
        let document = parsed(row.group);
        let of_kind = json!({"group": row.group, "version": "v1", "kind": row.name});
        let paths = document["paths"].as_object().unwrap().values();
        let patches: Vec<&Value> = paths
            .filter_map(|path| path.get("patch"))
            .filter(|patch| patch["x-kubernetes-group-version-kind"] == of_kind)
            .collect();
        assert!(!patches.is_empty(), "{}", row.name);
        for patch in patches {
            let text = patch.to_string();
            for part in ["fieldValidation", "dryRun", "strategic-merge-patch+json"] {
                assert!(text.contains(part), "{}: {part}", row.name);
            }
        }
    }
}

/// Numbers and what they lead to, of a protobuf message.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let value = match key & 7 {
            0 => number(&mut bytes).to_le_bytes().to_vec(),
            2 => {
                let length = usize::try_from(number(&mut bytes)).unwrap();
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, value));
    }
    found
}

/// The message of a name in a map of messages.
fn named(map: &[u8], field: u64, name: &str) -> Vec<u8> {
    let pairs = fields(map).into_iter().filter(|(number, _)| *number == field);
    pairs
        .map(|(_, pair)| fields(&pair))
        .find(|pair| pair[0].1 == name.as_bytes())
        .map(|pair| pair[1].1.clone())
        .unwrap_or_else(|| panic!("there is no {name}"))
}

fn at(message: &[u8], field: u64) -> Vec<u8> {
    let found = fields(message).into_iter().find(|(number, _)| *number == field);
    found.unwrap_or_else(|| panic!("there is no field {field}")).1
}

#[test]
fn protobuf_says_what_json_says() {
    let json = v2_document();
    let bytes = protobuf::document(&json);
    let definitions = at(&bytes, 9);
    let count = json["definitions"].as_object().unwrap().len();
    assert_eq!(fields(&definitions).len(), count);
    let spec = named(&definitions, 1, "io.k8s.api.core.v1.PodSpec");
    let containers = named(&at(&spec, 25), 1, "containers");
    let expected = &json["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        at(&containers, 4),
        expected["description"].as_str().unwrap().as_bytes()
    );
    assert_eq!(at(&at(&containers, 22), 1), b"array");
    let items = at(&at(&containers, 23), 1);
    assert_eq!(at(&items, 1), b"#/definitions/io.k8s.api.core.v1.Container");
    let key = named(&containers, 31, "x-kubernetes-patch-merge-key");
    assert_eq!(at(&key, 2), b"\"name\"");
}

/// Bounds that are far from what is there, and far below what a client would notice.
#[test]
fn documents_have_a_size_that_can_be_sent_often() {
    for group in groups() {
        let start = Instant::now();
        let document = v3_document(group);
        let took = start.elapsed();
        eprintln!("{group:?}: {} KiB in {took:?}", document.len() / 1024);
        assert!(document.len() < 1024 * 1024, "{group}: {}", document.len());
    }
    let start = Instant::now();
    let json = v2_document();
    let made = start.elapsed();
    let bytes = protobuf::document(&json);
    eprintln!(
        "v2: {} KiB in {made:?}, protobuf {} KiB in {:?}",
        json.to_string().len() / 1024,
        bytes.len() / 1024,
        start.elapsed() - made
    );
    assert!(bytes.len() < 2 * 1024 * 1024, "{}", bytes.len());
}
