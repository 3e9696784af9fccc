//! The table of fields beside the types: complete, and nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::schema::{Documentation, Shape, TypeId};

fn split(path: &str) -> Vec<&str> {
    path.split('.').collect()
}

/// Visits every field of a type; does not enter what is one value as a whole.
fn walk(kind: Kind, shape: &Shape, path: &mut Vec<&'static str>, visit: &mut dyn FnMut(&[&str], &Shape)) {
    visit(path, shape);
    let inner = match shape {
        Shape::List(item) if matches!(list_rule(kind, path), ListRule::Keyed { .. }) => item,
        _ => shape,
    };
    let Shape::Struct(id) = inner else { return };
    if is_atomic_map(kind, path) {
        return;
    }
    for (name, field) in &id.get().fields {
        path.push(name);
        walk(kind, field, path, visit);
        path.pop();
    }
}

fn rows_with_paths(rows: &'static [Row], prefix: &str, found: &mut BTreeSet<String>) {
    for row in rows {
        let path = if prefix.is_empty() {
            row.path.to_owned()
        } else {
            format!("{prefix}.{}", row.path)
        };
        rows_with_paths(row.holds, &path, found);
        found.insert(path);
    }
}

#[test]
fn table_has_every_list_and_nothing_else() {
    for kind in crate::KINDS.iter().map(|row| row.kind) {
        let Some(root) = TypeId::of(kind) else { continue };
        let mut known = BTreeSet::new();
        rows_with_paths(METADATA_OF_ALL, "", &mut known);
        rows_with_paths(rows_of(kind), "", &mut known);
        let mut missing = Vec::new();
        walk(kind, &Shape::Struct(root), &mut Vec::new(), &mut |path, shape| {
            let row = find(kind, path);
            match shape {
                Shape::List(_) if row.is_none_or(|row| row.list.is_none()) => missing.push(path.join(".")),
                Shape::List(_) => {}
                _ => assert!(
                    row.is_none_or(|row| row.list.is_none()),
                    "{kind} {path:?} is no list"
                ),
            }
            known.remove(&path.join("."));
        });
        assert_eq!(
            missing,
            Vec::<String>::new(),
            "lists of {kind} that are not in the table"
        );
        assert_eq!(known, BTreeSet::new(), "rows of {kind} that name no field");
    }
}

#[test]
fn keys_and_members_are_fields() {
    for kind in crate::KINDS.iter().map(|row| row.kind) {
        let Some(root) = TypeId::of(kind) else { continue };
        walk(kind, &Shape::Struct(root), &mut Vec::new(), &mut |path, shape| {
            let Some(row) = find(kind, path) else { return };
            let mut names: Vec<&str> = Vec::new();
            if let Some(List {
                merge: ListRule::Keyed { keys },
                ..
            }) = row.list
            {
                names.extend(keys.iter().map(|key| key.field));
            }
            if let Some(List {
                patch: PatchRule::MergeBy(key),
                ..
            }) = row.list
            {
                names.push(key);
            }
            if let Some(union) = row.union {
                names.extend(union.members.iter().chain(&union.discriminator));
            }
            let element = match shape {
                Shape::List(item) => item,
                other => other,
            };
            for name in names {
                let Shape::Struct(id) = element else {
                    panic!("{kind} {path:?} holds no fields")
                };
                assert!(
                    id.get().fields.contains_key(name),
                    "{kind} {path:?} has no {name}"
                );
            }
        });
    }
}

/// The types whose fields exclude one another, with those fields of each that do not take part.
const UNIONS: &[(&str, &[&str])] = &[
    ("AppArmorProfile", &["type"]),
    ("DaemonSetUpdateStrategy", &["type"]),
    ("DeploymentStrategy", &["type"]),
    ("EnvVar", &["name"]),
    ("EnvVarSource", &[]),
    ("IngressBackend", &[]),
    ("LifecycleHandler", &[]),
    (
        "PodDisruptionBudgetSpec",
        &["selector", "unhealthyPodEvictionPolicy"],
    ),
    (
        "Probe",
        &[
            "failureThreshold",
            "initialDelaySeconds",
            "periodSeconds",
            "successThreshold",
            "terminationGracePeriodSeconds",
            "timeoutSeconds",
        ],
    ),
    ("SeccompProfile", &["type"]),
    ("StatefulSetUpdateStrategy", &["type"]),
    ("Volume", &["name"]),
];
/// Types of which the documentation says that fields exclude one another, and which are no unions all the same.
const NO_UNIONS: &[&str] = &[
    // "Exactly one" is the number of its pods on a node.
    "DaemonSetSpec",
    // What a volume is never changes, so that it is never mixed from two.
    "FCVolumeSource",
    "FlockerVolumeSource",
    // It has one field.
    "NodeConfigSource",
    // `resourceClaimName` and `resourceClaimTemplateName`: nothing here acts on them.
    "PodResourceClaim",
    // `subPath` and `subPathExpr`: two mounts of one path that were added at once may have both, and are not valid then.
    "VolumeMount",
];

/// How the documentation says it, in lower case.
const EXCLUSIVE: &[&str] = &[
    "exactly one",
    "only one of",
    "one and only one",
    "at most one of",
    "mutually exclusive",
    "mutually-exclusive",
    "but not both",
    "cannot be used if",
    "present only if",
    "must not be set for any other",
    "set if and only if",
];

#[test]
fn unions_are_those_of_the_types_and_complete() {
    let documentation = Documentation::read();
    let (mut found, mut described) = (BTreeSet::new(), BTreeSet::new());
    for kind in crate::KINDS.iter().map(|row| row.kind) {
        let Some(root) = TypeId::of(kind) else { continue };
        walk(kind, &Shape::Struct(root), &mut Vec::new(), &mut |path, shape| {
            let element = match shape {
                // What is one value as a whole cannot be mixed from two.
                Shape::List(item) if matches!(list_rule(kind, path), ListRule::Keyed { .. }) => item,
                other => other,
            };
            let is_member = |depth: &usize| {
                let union = union_at(kind, &path[..*depth]);
                union.is_some_and(|union| union.members.contains(&path[*depth]))
            };
            let is_within_member = (0..path.len()).any(|depth| is_member(&depth));
            let Shape::Struct(id) = element else { return };
            if is_atomic_map(kind, path) {
                return;
            }
            let name = Documentation::name(*id);
            let union = union_at(kind, path);
            let row = UNIONS.iter().find(|(union, _)| *union == name);
            assert_eq!(union.is_some(), row.is_some(), "{kind} {path:?} ({name})");
            if let (Some(union), Some((_, rest))) = (union, row) {
                let fields: Vec<&str> = id.get().fields.keys().map(String::as_str).collect();
                let mut known = [union.members, *rest].concat();
                known.sort_unstable();
                assert_eq!(known, fields, "{kind} {path:?} ({name})");
                found.insert(name);
            }
            let (of_type, of_fields) = documentation.of(*id);
            let says_so = |text: &String| EXCLUSIVE.iter().any(|words| text.contains(words));
            if !is_within_member && (says_so(&of_type) || of_fields.values().any(says_so)) {
                described.insert(name);
            }
        });
    }
    let unions: BTreeSet<&str> = UNIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, unions);
    let unknown: Vec<_> = described.iter().filter(|name| !unions.contains(*name)).collect();
    assert_eq!(unknown, NO_UNIONS.iter().collect::<Vec<_>>());
}

/// How the documentation says that a field stays as it was created, in lower case.
const STAYS: &[&str] = &[
    "cannot be updated",
    "is immutable",
    "can not be changed",
    "cannot be changed",
];
/// Fields that it says that of, and that can be changed here: nothing acts on them, or it hangs on what they say (`immutable`).
const CHANGES: &[&str] = &[
    "ConfigMap immutable",
    "Secret immutable",
    "Service spec.healthCheckNodePort",
    "Service spec.loadBalancerClass",
];

#[test]
fn what_the_types_say_stays_is_immutable() {
    let documentation = Documentation::read();
    let (mut changes, mut stays) = (BTreeSet::new(), 0);
    for kind in crate::KINDS.iter().map(|row| row.kind) {
        let Some(root) = TypeId::of(kind) else { continue };
        walk(kind, &Shape::Struct(root), &mut Vec::new(), &mut |path, shape| {
            let element = match shape {
                Shape::List(item) => item,
                other => other,
            };
            let Shape::Struct(id) = element else { return };
            // A template can change: it is for pods to come. Status is nobody's to keep.
            if path
                .iter()
                .any(|name| matches!(*name, "template" | "jobTemplate"))
                || path.first() == Some(&"status")
            {
                return;
            }
            for (name, text) in documentation.of(*id).1 {
                let field = [path, &[name.as_str()]].concat();
                let (_, except) = immutable_paths(kind);
                let is_excepted = except.iter().any(|except| {
                    let except = split(except);
                    strip(&except, &field.join(".")).is_some() || strip(&field, &except.join(".")).is_some()
                });
                if is_excepted || !STAYS.iter().any(|words| text.contains(words)) {
                    continue;
                }
                stays += 1;
                if !is_immutable(kind, &field) {
                    changes.insert(format!("{kind} {}", field.join(".")));
                }
            }
        });
    }
    assert!(stays > 50, "{stays}");
    assert_eq!(
        changes.iter().collect::<Vec<_>>(),
        CHANGES.iter().collect::<Vec<_>>()
    );
}

#[test]
fn the_same_fields_merge_wherever_a_pod_is() {
    for (kind, spec) in [(Kind::Pod, "spec"), (Kind::Deployment, "spec.template.spec")] {
        let at = |rest: &str| format!("{spec}.{rest}");
        let rule = |rest: &str| list_rule(kind, &split(&at(rest)));
        let ListRule::Keyed { keys } = rule("containers.ports") else {
            panic!("ports are keyed")
        };
        assert_eq!(
            keys.iter().map(|key| key.field).collect::<Vec<_>>(),
            ["containerPort", "protocol"]
        );
        assert_eq!(keys[1].default, Some("TCP"));
        assert_eq!(rule("containers.command"), ListRule::Atomic);
        assert_eq!(rule("made.up"), ListRule::Atomic);
        assert_eq!(
            patch_rule(kind, &split(&at("containers.ports"))),
            PatchRule::MergeBy("containerPort")
        );
        assert_eq!(patch_rule(kind, &split(&at("tolerations"))), PatchRule::Replace);
        assert!(is_atomic_map(kind, &split(&at("nodeSelector"))));
        assert!(!is_atomic_map(kind, &split(&at("containers.resources.limits"))));
        let probe = union_at(kind, &split(&at("initContainers.livenessProbe"))).unwrap();
        assert!(probe.members.contains(&"httpGet"));
    }
}

#[test]
fn immutable_fields_end_at_their_exceptions() {
    for (kind, path, expected) in [
        (Kind::Deployment, "metadata.name", true),
        (Kind::Deployment, "metadata.labels", false),
        (Kind::Deployment, "spec.selector.matchLabels.app", true),
        (Kind::Deployment, "spec.replicas", false),
        (Kind::Deployment, "spec", false),
        (Kind::Pod, "spec", false),
        (Kind::Pod, "spec.containers", false),
        (Kind::Pod, "spec.containers.image", false),
        (Kind::Pod, "spec.containers.command", true),
        (Kind::Pod, "spec.nodeName", false),
        (Kind::Pod, "spec.hostNetwork", true),
        (Kind::Pod, "status.phase", false),
    ] {
        assert_eq!(is_immutable(kind, &split(path)), expected, "{kind} {path}");
    }
}
