//! The page docs/kubernetes-compatibility.md: what people say, from `compatibility.md` beside this file, and what the tables of
//! the code say, where that has a mark for them.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::acted_on::{Part, is_probe, parts_of, probe_fields};
use crate::fields::{self, ListRule, Mark, MergeKey, PatchRule};
use crate::schema::{Shape, TypeId};
use crate::selector::fields_of;
use crate::{FACES, KINDS, Kind, KindRow, Scope, Subresource};

const TEMPLATE: &str = include_str!("compatibility.md");

/// What discovery says can be done.
pub struct Verbs {
    pub of_kinds: &'static [&'static str],
    pub behind: fn(Subresource) -> &'static [&'static str],
}

/// Returns the whole page.
pub fn page(verbs: &Verbs) -> String {
    let tables = [
        ("kinds", kinds()),
        ("verbs", format!("All kinds: {}.", quoted(verbs.of_kinds))),
        ("subresources", subresources(verbs)),
        ("fields", fields_acted_on()),
        ("immutable", immutable_and_selectable()),
        ("merging", merging()),
    ];
    let filled = |page: String, (name, table): &(&str, String)| {
        page.replace(&format!("<!-- {name} -->"), table.trim_end())
    };
    tables.iter().fold(TEMPLATE.to_owned(), filled)
}

fn served() -> impl Iterator<Item = &'static KindRow> {
    KINDS.iter().filter(|row| row.served)
}

fn kinds() -> String {
    let mut text = String::from("| kind | version | names | subresources | |\n|---|---|---|---|---|\n");
    for row in served() {
        let scope = match row.scope {
            Scope::Namespaced => "",
            Scope::Cluster => " (no namespace)",
        };
        let names: Vec<&str> = [row.plural].iter().chain(row.short_names).copied().collect();
        let parts: Vec<String> = row.subresources.iter().map(word).collect();
        _ = writeln!(
            text,
            "| {}{scope} | {} | {} | {} | {}{} |",
            row.name,
            api_versions(row),
            quoted(&names),
            quoted(&parts),
            treatment(row),
            remark(row.kind),
        );
    }
    text
}

fn api_versions(row: &KindRow) -> String {
    let faces = FACES.iter().filter(|face| face.kind == row.kind);
    let all = faces.map(KindRow::api_version);
    [row.api_version()]
        .into_iter()
        .chain(all)
        .collect::<Vec<_>>()
        .join(", ")
}

fn treatment(row: &KindRow) -> String {
    let parts = parts_of(row.kind);
    let idle: Vec<&str> = parts
        .iter()
        .filter(|part| part.fields.is_empty())
        .map(|part| part.path)
        .collect();
    match row.kind {
        Kind::Namespace => "acted on".to_owned(),
        _ if row.derived => "computed".to_owned(),
        _ if idle.len() < parts.len() => "acted on".to_owned(),
        _ if idle.is_empty() => "kept".to_owned(),
        _ => format!("kept, with a warning for {}", quoted(&idle)),
    }
}

/// What more there is to say of a kind than how it is treated.
fn remark(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => {
            "; `spec.unschedulable` (cordon), labels and taints that users set act on placement; of taints, `PreferNoSchedule` does nothing and `NoExecute` evicts nothing, with a warning"
        }
        Kind::Endpoints | Kind::EndpointSlice => {
            " for Services with a selector; written by hand for those without"
        }
        Kind::Event => "; kept by the node that saw it, for an hour, at most 2,000; not replicated",
        Kind::ConfigMap | Kind::Secret => "; pods do not get it yet",
        Kind::Lease => "; not backed up",
        Kind::NetworkPolicy => ". **It closes nothing**",
        Kind::PodDisruptionBudget => " by evictions (`kubectl drain`)",
        Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicationController | Kind::Job | Kind::CronJob => {
            ". **No pods are made for it yet**"
        }
        Kind::Namespace
        | Kind::Pod
        | Kind::Service
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::Ingress
        | Kind::ServiceAccount
        | Kind::PersistentVolumeClaim
        | Kind::PersistentVolume
        | Kind::StorageClass
        | Kind::IngressClass
        | Kind::PriorityClass
        | Kind::PodTemplate
        | Kind::ControllerRevision
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => "",
    }
}

fn word(part: &Subresource) -> String {
    format!("{part:?}").to_lowercase()
}

fn subresources(verbs: &Verbs) -> String {
    let mut kinds: BTreeMap<String, (&[&str], Vec<&str>)> = BTreeMap::new();
    for row in served() {
        for part in row.subresources {
            let entry = kinds
                .entry(word(part))
                .or_insert(((verbs.behind)(*part), Vec::new()));
            entry.1.push(row.name);
        }
    }
    let mut text = String::from("| subresource | verbs | of |\n|---|---|---|\n");
    for (part, (verbs, kinds)) in kinds {
        _ = writeln!(text, "| `{part}` | {} | {} |", quoted(verbs), kinds.join(", "));
    }
    text
}

fn immutable_and_selectable() -> String {
    let mut text = String::from(
        "| kind | cannot change | but for | selected by (`fieldSelector`) |\n|---|---|---|---|\n",
    );
    _ = writeln!(
        text,
        "| all | {} | | {} |",
        quoted(fields::METADATA_IMMUTABLE),
        quoted(crate::selector::COMMON_FIELDS)
    );
    for row in served() {
        let (immutable, except) = fields::immutable_paths(row.kind);
        let selectable = fields_of(row.kind);
        if !immutable.is_empty() || !selectable.is_empty() {
            let cells = [immutable, except, selectable].map(quoted);
            _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
    }
    text
}

/// How lists and maps come together of which the parts are not all on their own.
fn merging() -> String {
    let mut text = String::from("| kind | field | apply | strategic merge patch |\n|---|---|---|---|\n");
    let marks = |kind: Option<Kind>, name: &str, text: &mut String| {
        let mut units = Vec::new();
        for mark in fields::marks(kind) {
            if is_said_elsewhere(&mark.path) {
                continue;
            }
            if mark.atomic_map && mark.list.is_none() {
                units.push(mark.path);
            } else if let Some((merge, patch)) = how(&mark) {
                _ = writeln!(text, "| {name} | `{}` | {merge} | {patch} |", mark.path);
            }
        }
        if !units.is_empty() {
            _ = writeln!(text, "| {name} | {} | one value | |", quoted(&units));
        }
    };
    marks(None, "all", &mut text);
    for row in served() {
        marks(Some(row.kind), row.name, &mut text);
    }
    text
}

/// Pods of templates are pods, all containers are containers, and metadata is metadata.
fn is_said_elsewhere(path: &str) -> bool {
    let within = [
        "template.",
        "emplate.metadata.",
        "initContainers.",
        "ephemeralContainers.",
    ];
    within.iter().any(|name| path.contains(name))
}

fn how(mark: &Mark) -> Option<(String, String)> {
    let keys = |keys: &[MergeKey]| {
        let key = |key: &MergeKey| match key.default {
            Some(default) => format!("`{}` ({default})", key.field),
            None => format!("`{}`", key.field),
        };
        keys.iter().map(key).collect::<Vec<_>>().join(", ")
    };
    let retained = if mark.retain_keys { ", `$retainKeys`" } else { "" };
    let Some((merge, patch)) = mark.list else {
        return mark
            .retain_keys
            .then(|| ("field by field".to_owned(), "`$retainKeys`".to_owned()));
    };
    if (merge, patch) == (ListRule::Atomic, PatchRule::Replace) {
        return None;
    }
    let merge = match merge {
        ListRule::Keyed { keys: by } if mark.atomic_map => format!("by {}, each one value", keys(by)),
        ListRule::Keyed { keys: by } => format!("by {}", keys(by)),
        ListRule::Set => "a set".to_owned(),
        ListRule::Atomic => "one value".to_owned(),
    };
    let patch = match patch {
        PatchRule::MergeBy(key) => format!("by `{key}`{retained}"),
        PatchRule::MergeValues => "added".to_owned(),
        PatchRule::Replace => "replaced".to_owned(),
    };
    Some((merge, patch))
}

fn fields_acted_on() -> String {
    let mut text = String::from("| fields of | acted on | kept, with a warning |\n|---|---|---|\n");
    for row in served() {
        for part in parts_of(row.kind) {
            of_part(row.kind, part, &mut text);
        }
    }
    text
}

fn quoted(names: &[impl AsRef<str>]) -> String {
    let names = names.iter().map(|name| format!("`{}`", name.as_ref()));
    names.collect::<Vec<_>>().join(", ")
}

/// A row for the fields of a part, and one for each field of it that is acted on in part.
fn of_part(kind: Kind, part: &Part, text: &mut String) {
    // The pods of a template are pods.
    if part.fields.is_empty() || part.path == "spec.template.spec" {
        return;
    }
    let Some(root) = TypeId::of(kind) else { return };
    let shape = part.path.split('.').try_fold(Shape::Struct(root), |shape, name| {
        inner(&shape)?.get().fields.get(name).cloned()
    });
    if let Some(shape) = shape {
        of_fields(&format!("{kind} `{}", part.path), &shape, "", part.fields, text);
    }
}

/// The type of a field, or of the elements of a list.
fn inner(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Struct(id) => Some(*id),
        Shape::List(item) => inner(item),
        _ => None,
    }
}

fn of_fields(place: &str, shape: &Shape, path: &str, known: &[&str], text: &mut String) {
    let below = |path: &str| format!("{path}.");
    let leads_on = |path: &str| {
        let on = below(path);
        known
            .iter()
            .any(|field| field.starts_with(&on) || field.strip_suffix("{}") == Some(path))
    };
    let Some(id) = inner(shape) else {
        // A map whose keys count.
        let on = below(path);
        let keys: Vec<&str> = known.iter().filter_map(|field| field.strip_prefix(&on)).collect();
        _ = writeln!(text, "| {place}` | {} | all others |", quoted(&keys));
        return;
    };
    let (mut acted, mut idle, mut partly) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &id.get().fields {
        // Init containers are containers.
        let known_as = if path.is_empty() && name == "initContainers" {
            "containers"
        } else {
            name
        };
        let path = if path.is_empty() {
            known_as.to_owned()
        } else {
            format!("{path}.{known_as}")
        };
        if known.contains(&path.as_str()) {
            acted.push(name.as_str());
        } else if leads_on(&path) {
            acted.push(name.as_str());
            if name != "initContainers" {
                partly.push((name, shape, path));
            }
        } else {
            idle.push(name.as_str());
        }
    }
    _ = writeln!(text, "| {place}` | {} | {} |", quoted(&acted), quoted(&idle));
    for (name, shape, path) in partly {
        let place = format!("{place}.{name}");
        match is_probe(&path, name) {
            true if name == "livenessProbe" => of_fields(&place, shape, "", probe_fields(), text),
            // All probes are alike.
            true => {}
            false => of_fields(&place, shape, &path, known, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_every_field_of_a_pod_has_its_place() {
        let text = page(&Verbs {
            of_kinds: &["get"],
            behind: |_| &["create"],
        });
        for row in served() {
            assert!(text.contains(&format!("| {}", row.name)), "{}", row.name);
        }
        assert!(text.contains("| Event | v1, events.k8s.io/v1 | `events`, `ev` |"));
        assert!(!text.contains("<!--"), "each mark has its table");
        let row = |place: &str| {
            let start = format!("| Pod `{place}` |");
            let row = text.lines().find(|line| line.starts_with(&start));
            row.unwrap_or_else(|| panic!("{place} is not in\n{text}"))
        };
        let (acted, idle) = row("spec").rsplit_once(" | ").unwrap();
        assert!(
            acted.contains("`nodeSelector`") && idle.contains("`affinity`"),
            "{acted} {idle}"
        );
        assert!(row("spec.containers.securityContext").contains("`capabilities`"));
        assert!(row("spec.containers.resources.limits").contains("`cpu`, `memory` | all others"));
        assert!(row("spec.containers.livenessProbe").contains("`failureThreshold`"));
        for line in [
            "| NetworkPolicy | networking.k8s.io/v1 | `networkpolicies`, `netpol` |  | kept, with a warning for `spec`. **It closes nothing** |",
            "All kinds: `get`.",
            "| `eviction` | `create` | Pod |",
            "| Pod | `spec.containers.ports` | by `containerPort`, `protocol` (TCP) | by `containerPort` |",
            "| Secret | `type` |  | `type` |",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
