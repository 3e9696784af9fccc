//! What this version does with each kind and field, as Markdown for the documentation: from the kind table, the types and
//! the table of what is acted on.

use std::fmt::Write;

use crate::acted_on::{Part, is_probe, parts_of, probe_fields};
use crate::schema::{Shape, TypeId};
use crate::{FACES, KINDS, Kind, KindRow, Scope};

/// Returns two tables: the served kinds, and of those that are acted on their fields.
pub fn tables() -> String {
    let served: Vec<&KindRow> = KINDS.iter().filter(|row| row.served).collect();
    let mut text = String::from("| kind | version | names | subresources | |\n|---|---|---|---|---|\n");
    for row in &served {
        let scope = match row.scope {
            Scope::Namespaced => "",
            Scope::Cluster => " (no namespace)",
        };
        let names: Vec<&str> = [row.plural].iter().chain(row.short_names).copied().collect();
        let parts: Vec<String> = row
            .subresources
            .iter()
            .map(|part| format!("{part:?}").to_lowercase())
            .collect();
        _ = writeln!(
            text,
            "| {}{scope} | {} | {} | {} | {} |",
            row.name,
            api_versions(row),
            quoted(&names),
            quoted(&parts),
            treatment(row),
        );
    }
    text.push_str("\n| fields of | acted on | kept, with a warning |\n|---|---|---|\n");
    for row in &served {
        for part in parts_of(row.kind) {
            of_part(row.kind, part, &mut text);
        }
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
        let text = tables();
        for row in KINDS.iter().filter(|row| row.served) {
            assert!(text.contains(&format!("| {}", row.name)), "{}", row.name);
        }
        assert!(text.contains("| Event | v1, events.k8s.io/v1 | `events`, `ev` |"));
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
        assert!(text.contains("| NetworkPolicy | networking.k8s.io/v1 | `networkpolicies`, `netpol` |  | kept, with a warning for `spec` |"));
    }
}
