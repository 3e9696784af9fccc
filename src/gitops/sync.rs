//! What to apply and what to prune: pure functions of the manifests and of what was applied before.
//!
//! An object is pruned by the uid that it had when it was applied from this repository, so an object that someone else made
//! under the same name later is never touched.

use std::collections::{BTreeMap, HashMap};

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Map, Value};
use store::Applied;

use super::source::Snapshot;

/// Where an object without a namespace goes, as `kubectl apply` has it.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a repository has applied: objects by uid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    pub objects: BTreeMap<String, ObjectKey>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// All objects of the commit, namespaces first.
    pub apply: Vec<Object>,
    /// Uid and key of what was applied before and is no longer there, namespaces last.
    pub prune: Vec<(String, ObjectKey)>,
}

/// Why a commit is not applied: nothing of it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Every file that cannot be read, with place and reason.
    #[error("{}", .0.join("; "))]
    Unreadable(Vec<String>),
    #[error("{file}: {kind} `{api_version}` is not supported")]
    UnknownKind {
        file: String,
        api_version: String,
        kind: String,
    },
    #[error("{file}: an object of kind {kind} has no metadata.name")]
    NoName { file: String, kind: Kind },
    #[error("{key} is in both {first} and {second}")]
    Twice {
        key: ObjectKey,
        first: String,
        second: String,
    },
}

/// Reads the manifests of a snapshot; each object with the file that it is from.
///
/// # Errors
/// All files that cannot be read, together.
pub fn parse(snapshot: &Snapshot) -> Result<Vec<(String, Object)>, PlanError> {
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for (file, content) in &snapshot.files {
        match schemas::manifest::parse(content) {
            Ok(parsed) => objects.extend(parsed.into_iter().map(|object| (file.clone(), object))),
            Err(error) => errors.push(format!("{file}: {error}")),
        }
    }
    if errors.is_empty() {
        Ok(objects)
    } else {
        Err(PlanError::Unreadable(errors))
    }
}

/// Decides what to apply and what to prune.
///
/// # Errors
/// An object that cannot be named, or two of one name: nothing is to be done then.
pub fn plan(inventory: &Inventory, objects: Vec<(String, Object)>) -> Result<Plan, PlanError> {
    let mut files: HashMap<ObjectKey, String> = HashMap::with_capacity(objects.len());
    let mut apply = Vec::with_capacity(objects.len());
    for (file, mut object) in objects {
        let Some(kind) = object.kind().filter(|kind| kind.row().served) else {
            return Err(PlanError::UnknownKind {
                file,
                api_version: object.str_at("/apiVersion").to_owned(),
                kind: object.str_at("/kind").to_owned(),
            });
        };
        if kind.is_namespaced() && object.namespace().is_empty() {
            object.set(&["metadata", "namespace"], DEFAULT_NAMESPACE);
        }
        let Some(key) = object.key() else {
            return Err(PlanError::NoName { file, kind });
        };
        if let Some(first) = files.insert(key.clone(), file.clone()) {
            return Err(PlanError::Twice {
                key,
                first,
                second: file,
            });
        }
        apply.push(object);
    }
    apply.sort_by_key(|object| object.kind() != Some(Kind::Namespace));
    let gone = |(_, key): &(&String, &ObjectKey)| !files.contains_key(*key);
    let pair = |(uid, key): (&String, &ObjectKey)| (uid.clone(), key.clone());
    let mut prune: Vec<_> = inventory.objects.iter().filter(gone).map(pair).collect();
    prune.sort_by_key(|(_, key)| (key.kind == Kind::Namespace, key.clone()));
    Ok(Plan { apply, prune })
}

impl Inventory {
    /// Reads the inventory out of its object; entries that name nothing are left out.
    pub fn of(object: &Object) -> Self {
        let objects = object.pointer("/spec/objects").and_then(Value::as_object);
        let entry = |(uid, key): (&String, &Value)| Some((uid.clone(), key.as_str()?.parse().ok()?));
        Self {
            objects: objects.into_iter().flatten().filter_map(entry).collect(),
        }
    }

    /// Adds what was applied.
    pub fn add(&mut self, applied: &[Applied]) {
        let entry = |Applied { view, .. }: &Applied| (view.object.uid().to_owned(), view.key.clone());
        self.objects.extend(applied.iter().map(entry));
    }

    /// Writes the inventory as a map, so that entries merge one by one.
    pub fn to_value(&self) -> Value {
        let entry = |(uid, key): (&String, &ObjectKey)| (uid.clone(), Value::from(key.to_string()));
        Value::Object(self.objects.iter().map(entry).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(files: &[(&str, &str)]) -> Snapshot {
        Snapshot {
            commit: "c".into(),
            files: files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))
                .collect(),
        }
    }

    fn service(name: &str) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
    }

    fn key(text: &str) -> ObjectKey {
        text.parse().expect("a key")
    }

    fn inventory(entries: &[(&str, &str)]) -> Inventory {
        Inventory {
            objects: entries
                .iter()
                .map(|(uid, text)| ((*uid).to_owned(), key(text)))
                .collect(),
        }
    }

    fn check_error(files: &[(&str, &str)], expected: &str) {
        let result = parse(&snapshot(files)).and_then(|objects| plan(&Inventory::default(), objects));
        let text = result.expect_err("refused").to_string();
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_is_gone_is_pruned_and_the_rest_applied_namespaces_first() {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        let files = [("a.yaml", service("web")), ("b.yaml", namespace.to_owned())];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        let before = inventory(&[
            ("u1", "services/default/web"),
            ("u2", "namespaces//old"),
            ("u3", "services/default/gone"),
        ]);
        let objects = parse(&snapshot(&files)).expect("parses");
        let plan = plan(&before, objects).expect("a plan");
        let applied: Vec<String> = plan
            .apply
            .iter()
            .filter_map(Object::key)
            .map(|key| key.to_string())
            .collect();
        assert_eq!(applied, ["namespaces//shop", "services/default/web"]);
        let pruned: Vec<&str> = plan.prune.iter().map(|(uid, _)| uid.as_str()).collect();
        assert_eq!(pruned, ["u3", "u2"]);
    }

    #[test]
    fn two_incarnations_of_one_name_stay_while_the_name_does() {
        let before = inventory(&[("u1", "services/default/web"), ("u2", "services/default/web")]);
        let objects = parse(&snapshot(&[("a.yaml", &service("web"))])).expect("parses");
        assert_eq!(plan(&before, objects).expect("a plan").prune, []);
    }

    #[test]
    fn a_commit_with_any_fault_is_refused_whole() {
        check_error(
            &[("a.yaml", &service("web")), ("b.yaml", "a: [")],
            "b.yaml: document 1",
        );
        check_error(&[("a.yaml", "a: ["), ("b.yaml", "b: [")], "b.yaml: document 1");
        check_error(
            &[("a.yaml", &service("web")), ("b.yaml", &service("web"))],
            "services/default/web is in both",
        );
        check_error(
            &[("a.yaml", "apiVersion: v9\nkind: Thing\n")],
            "a.yaml: Thing `v9` is not supported",
        );
        check_error(&[("a.yaml", "apiVersion: v1\nkind: Pod\n")], "no metadata.name");
        let internal = "apiVersion: podman-swarm.io/v1\nkind: ApiToken\nmetadata: {name: mine}\n";
        check_error(&[("a.yaml", internal)], "not supported");
    }

    #[test]
    fn the_inventory_survives_its_object() {
        let before = inventory(&[("u1", "services/default/web"), ("u2", "namespaces//shop")]);
        let mut object = Object::new(&ObjectKey::cluster(Kind::GitInventory, "main"));
        object.set(&["spec", "objects"], before.to_value());
        assert_eq!(Inventory::of(&object), before);
        assert_eq!(Inventory::of(&Object::default()), Inventory::default());
    }
}
