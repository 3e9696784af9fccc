//! An object as a JSON tree, and the key that names it.
//!
//! Objects stay trees so that a field unknown to this version is kept and shown; the k8s-openapi structs are
//! views of them ([`Object::view`]).

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{KINDS, Kind};

/// Kind, namespace and name of an object. Its text form is `resource/namespace/name`, with an empty namespace
/// for cluster-scoped kinds; it is also the storage key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    /// Names an object; `namespace` is ignored for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.is_namespaced() {
            namespace.into()
        } else {
            String::new()
        };
        Self {
            kind,
            namespace,
            name: name.into(),
        }
    }

    /// Names a cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self::new(kind, "", name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.kind.row().resource(),
            self.namespace,
            self.name
        )
    }
}

/// A storage key that does not name an object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an object key of the form resource/namespace/name")]
pub struct ParseKeyError(pub String);

impl FromStr for ObjectKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseKeyError(text.to_owned());
        let mut parts = text.splitn(3, '/');
        let (resource, namespace, name) = (
            parts.next().ok_or_else(bad)?,
            parts.next().ok_or_else(bad)?,
            parts.next().ok_or_else(bad)?,
        );
        let row = KINDS
            .iter()
            .find(|row| row.resource() == resource)
            .ok_or_else(bad)?;
        if name.is_empty() || row.kind.is_namespaced() == namespace.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            kind: row.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(default)]
    pub controller: Option<bool>,
    #[serde(default)]
    pub block_owner_deletion: Option<bool>,
}

/// An object as the API shows it: `apiVersion`, `kind`, `metadata` and the rest.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

impl Object {
    /// Makes an object of `kind` with name and namespace and nothing else.
    pub fn new(key: &ObjectKey) -> Self {
        let row = key.kind.row();
        let mut metadata = Map::new();
        metadata.insert("name".into(), key.name.clone().into());
        if !key.namespace.is_empty() {
            metadata.insert("namespace".into(), key.namespace.clone().into());
        }
        let mut root = Map::new();
        root.insert("apiVersion".into(), row.api_version().into());
        root.insert("kind".into(), row.name.into());
        root.insert("metadata".into(), Value::Object(metadata));
        Self(root)
    }

    /// Takes a JSON value; anything but a map gives `None`.
    pub fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self(map)),
            _ => None,
        }
    }

    /// Returns the tree as a JSON value.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Returns the kind, if the table has it.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_api(self.0.get("apiVersion")?.as_str()?, self.0.get("kind")?.as_str()?)
    }

    /// Returns the key, if kind and name are there.
    pub fn key(&self) -> Option<ObjectKey> {
        let kind = self.kind()?;
        let name = self.name();
        (!name.is_empty()).then(|| ObjectKey::new(kind, self.namespace(), name))
    }

    /// Returns the value at a JSON pointer (`/spec/replicas`).
    pub fn pointer(&self, pointer: &str) -> Option<&Value> {
        let path = pointer.strip_prefix('/')?;
        let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        let value = if first.contains('~') {
            self.0.get(&first.replace("~1", "/").replace("~0", "~"))?
        } else {
            self.0.get(first)?
        };
        value.pointer(rest)
    }

    /// Returns the string at a JSON pointer, or an empty one.
    pub fn str_at(&self, pointer: &str) -> &str {
        self.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the integer at a JSON pointer.
    pub fn i64_at(&self, pointer: &str) -> Option<i64> {
        self.pointer(pointer).and_then(Value::as_i64)
    }

    /// Puts a value at a path of map keys, making the maps on the way (and replacing what is not a map).
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else {
            return;
        };
        let mut map = &mut self.0;
        for parent in parents {
            let slot = map
                .entry((*parent).to_owned())
                .or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let Value::Object(next) = slot else { return };
            map = next;
        }
        map.insert((*last).to_owned(), value.into());
    }

    /// Removes the value at a path of map keys.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut map = &mut self.0;
        for parent in parents {
            map = map.get_mut(*parent)?.as_object_mut()?;
        }
        map.remove(*last)
    }

    pub fn name(&self) -> &str {
        self.str_at("/metadata/name")
    }

    pub fn namespace(&self) -> &str {
        self.str_at("/metadata/namespace")
    }

    pub fn uid(&self) -> &str {
        self.str_at("/metadata/uid")
    }

    pub fn generation(&self) -> i64 {
        self.i64_at("/metadata/generation").unwrap_or_default()
    }

    /// Tells whether a deletion was asked for (`metadata.deletionTimestamp`).
    pub fn is_terminating(&self) -> bool {
        !self.str_at("/metadata/deletionTimestamp").is_empty()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.get("metadata")?.get("labels")?.get(key)?.as_str()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.0.get("metadata")?.get("annotations")?.get(key)?.as_str()
    }

    /// Returns `metadata.ownerReferences`, without entries that do not parse.
    pub fn owner_references(&self) -> Vec<OwnerReference> {
        self.pointer("/metadata/ownerReferences")
            .and_then(Value::as_array)
            .map(|list| {
                list.iter()
                    .filter_map(|entry| OwnerReference::deserialize(entry).ok())
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Returns the owner reference with `controller: true`.
    pub fn controller(&self) -> Option<OwnerReference> {
        self.owner_references()
            .into_iter()
            .find(|owner| owner.controller == Some(true))
    }

    /// Reads the tree as a typed view, for instance `k8s_openapi::api::apps::v1::Deployment`.
    ///
    /// # Errors
    /// The first field whose type does not fit.
    pub fn view<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&Value::Object(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_form() {
        for key in [
            ObjectKey::new(Kind::Deployment, "default", "web"),
            ObjectKey::cluster(Kind::Namespace, "default"),
            ObjectKey::cluster(Kind::Member, "0a1b"),
        ] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for bad in [
            "",
            "pods",
            "pods/default",
            "pods//web",
            "namespaces/a/b",
            "nothing/a/b",
        ] {
            assert!(bad.parse::<ObjectKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn set_makes_the_maps_on_the_way() {
        let mut object = Object::default();
        object.set(&["spec", "replicas"], 3);
        assert_eq!(object.i64_at("/spec/replicas"), Some(3));
        assert_eq!(object.remove(&["spec", "replicas"]), Some(3.into()));
    }
}
