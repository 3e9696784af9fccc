//! The protobuf form beside what Kubernetes itself wrote in it, and damaged bytes.

use proptest::prelude::*;

use super::*;

/// An object that Kubernetes wrote in both forms: its name, in protobuf, in JSON.
type Example = (&'static str, &'static [u8], &'static str);

macro_rules! examples {
    ($($name:literal),* $(,)?) => {
        &[$((
            $name,
            include_bytes!(concat!("../protobuf/testdata/", $name, ".pb")),
            include_str!(concat!("../protobuf/testdata/", $name, ".json")),
        )),*]
    };
}

const EXAMPLES: &[Example] = examples![
    "apps.v1.Deployment",
    "authentication.k8s.io.v1.SelfSubjectReview",
    "authorization.k8s.io.v1.SelfSubjectAccessReview",
    "batch.v1.CronJob",
    "coordination.k8s.io.v1.Lease",
    "core.v1.ConfigMap",
    "core.v1.Namespace",
    "core.v1.Node",
    "core.v1.PersistentVolume",
    "core.v1.Pod",
    "core.v1.Secret",
    "core.v1.Service",
    "events.k8s.io.v1.Event",
    "networking.k8s.io.v1.NetworkPolicy",
    "policy.v1.PodDisruptionBudget",
];

#[test]
fn what_kubernetes_wrote_in_both_forms_is_the_same() {
    for (name, bytes, json) in EXAMPLES {
        let json: Value = serde_json::from_str(json).unwrap();
        assert_eq!(decode(bytes).unwrap(), json, "{name}");
    }
}

/// A table that lacks a type would read it as nothing.
#[test]
fn every_type_that_is_named_is_there() {
    for (of, fields) in TYPES.iter() {
        for field in fields {
            let is_scalar = field.kind.len() == 1;
            assert!(
                is_scalar || TYPES.contains_key(field.kind),
                "{of} {}: {}",
                field.number,
                field.kind
            );
        }
    }
    for row in crate::KindRow::served() {
        let of = type_of(&row.api_version(), row.name);
        assert!(TYPES.contains_key(of.as_str()), "{of}");
    }
}

/// No type holds itself, so that no bytes lead deep.
#[test]
fn types_end() {
    fn depth(of: &str, seen: &mut Vec<String>) {
        assert!(!seen.iter().any(|one| one == of), "{of} in {seen:?}");
        seen.push(of.to_owned());
        for field in TYPES.get(of).into_iter().flatten() {
            depth(field.kind, seen);
        }
        seen.pop();
    }
    for of in TYPES.keys() {
        depth(of, &mut Vec::new());
    }
}

#[test]
fn what_is_no_object_is_told() {
    for (bytes, expected) in [
        (&b""[..], "it does not begin with the four bytes `k8s\\0`"),
        (b"{\"kind\": 1}", "it does not begin with the four bytes `k8s\\0`"),
        (b"k8s\0\x0a\x05v1", "it is cut off"),
        (
            b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "a number has more than 64 bits",
        ),
        (b"k8s\0", " of  is not read in this form; send JSON"),
        (
            b"k8s\0\x0a\x0a\x0a\x02v1\x12\x04Poem",
            "Poem of v1 is not read in this form; send JSON",
        ),
        (
            b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x02\x08\x01",
            "field 1 of core/v1.Pod is of another form",
        ),
        (
            b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x05\x0a\x03\x0a\x01\xff",
            "field 1 of meta/v1.ObjectMeta is not UTF-8",
        ),
    ] {
        assert_eq!(decode(bytes).unwrap_err().to_string(), expected, "{bytes:?}");
    }
}

#[test]
fn zero_is_left_out_unless_it_says_something() {
    // replicas: 0 (may be absent), minReadySeconds: 0 (may not).
    let class = b"k8s\0\x0a\x25\x0a\x14scheduling.k8s.io/v1\x12\x0dPriorityClass\x12\x02\x10\x00";
    assert_eq!(
        decode(class).unwrap(),
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 0})
    );
    let deployment = b"k8s\0\x0a\x15\x0a\x07apps/v1\x12\x0aDeployment\x12\x06\x12\x04\x08\x00\x28\x00";
    assert_eq!(
        decode(deployment).unwrap(),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0}})
    );
}

proptest! {
    #[test]
    fn damaged_bytes_do_no_harm(which in any::<prop::sample::Index>(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = EXAMPLES[which.index(EXAMPLES.len())].1.to_vec();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let _ = decode(&bytes);
        let end = cut.index(bytes.len());
        let _ = decode(&bytes[..end]);
    }
}
