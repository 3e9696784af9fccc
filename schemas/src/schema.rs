//! The types of Kubernetes' fields, as this version knows them: what is a string, a number, a list, and what is
//! required.
//!
//! Compiled once from the JSON schemas that k8s-openapi carries for its types, so that typed checks, unknown fields
//! and the completeness of [`crate::fields`] all come from the same place as the structs that planners read.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, events::v1 as events, networking::v1 as networking, policy::v1 as policy,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use crate::{Kind, event};

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Text,
    /// RFC 3339.
    Time,
    Boolean,
    Int32,
    Int64,
    Float,
    /// A number of 32 bits or a string (a port's name, a percentage).
    IntOrString,
    /// A string like `100m`, or a number.
    Quantity,
    List(Box<Shape>),
    /// Keys are free, values alike.
    Map(Box<Shape>),
    Struct(TypeId),
    /// Any JSON value.
    Any,
}

/// Index of a type in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TypeId(usize);

/// A type with named fields.
#[derive(Debug, Default)]
pub(crate) struct Type {
    pub(crate) fields: BTreeMap<String, Shape>,
    pub(crate) required: Vec<String>,
}

impl TypeId {
    /// Returns the type of a whole object. Internal kinds have none.
    pub(crate) fn of(kind: Kind) -> Option<TypeId> {
        SCHEMAS.roots.get(&kind).copied()
    }

    /// [`TypeId::of`] for an object as it is written: an Event has two forms.
    pub(crate) fn of_written(kind: Kind, api_version: &str) -> Option<TypeId> {
        match (kind, api_version) {
            (Kind::Event, event::API_VERSION) => {
                let name = <events::Event as JsonSchema>::schema_name();
                SCHEMAS.ids.get(&*name).copied()
            }
            _ => Self::of(kind),
        }
    }

    pub(crate) fn get(self) -> &'static Type {
        &SCHEMAS.types[self.0]
    }

    /// The name of the type, as Kubernetes' documents have it.
    #[cfg(test)]
    pub(crate) fn full_name(self) -> &'static str {
        let named = SCHEMAS.ids.iter().find(|(_, known)| **known == self);
        named.map_or("", |(name, _)| name)
    }
}

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(Schemas::compile);

#[derive(Default)]
struct Schemas {
    types: Vec<Type>,
    ids: HashMap<String, TypeId>,
    roots: HashMap<Kind, TypeId>,
}

impl Schemas {
    fn compile() -> Schemas {
        let (roots, definitions) = definitions();
        let mut schemas = Schemas::default();
        for (kind, name) in roots {
            let id = schemas.reserve(&name);
            schemas.roots.insert(kind, id);
        }
        for (name, definition) in &definitions {
            let id = schemas.reserve(name);
            let fields = definition.get("properties").and_then(Value::as_object);
            let fields = fields.into_iter().flatten();
            let fields = fields
                .map(|(name, schema)| (name.clone(), schemas.shape(schema)))
                .collect();
            let required = definition
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let required = required
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect();
            schemas.types[id.0] = Type { fields, required };
        }
        schemas
    }

    fn reserve(&mut self, name: &str) -> TypeId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = TypeId(self.types.len());
        self.types.push(Type::default());
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn shape(&mut self, schema: &Value) -> Shape {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            return match name.rsplit('.').next().unwrap_or(name) {
                "IntOrString" => Shape::IntOrString,
                "Quantity" => Shape::Quantity,
                "Time" | "MicroTime" => Shape::Time,
                "FieldsV1" | "RawExtension" => Shape::Any,
                _ => Shape::Struct(self.reserve(name)),
            };
        }
        let text = |name: &str| schema.get(name).and_then(Value::as_str).unwrap_or_default();
        match (text("type"), text("format")) {
            ("string", _) => Shape::Text,
            ("boolean", _) => Shape::Boolean,
            ("integer", "int32") => Shape::Int32,
            ("integer", _) => Shape::Int64,
            ("number", _) => Shape::Float,
            ("array", _) => Shape::List(Box::new(
                schema.get("items").map_or(Shape::Any, |items| self.shape(items)),
            )),
            ("object", _) => match schema.get("additionalProperties") {
                Some(values) => Shape::Map(Box::new(self.shape(values))),
                None => Shape::Any,
            },
            _ => Shape::Any,
        }
    }
}

/// Returns the names of the types of all kinds, and the JSON schemas of these, of the other form of Events and of all that
/// they refer to, by name.
fn definitions() -> (Vec<(Kind, String)>, serde_json::Map<String, Value>) {
    let mut generator = SchemaGenerator::default();
    add::<events::Event>(&mut generator);
    let kinds = crate::KINDS.iter().map(|row| row.kind);
    let roots = kinds.filter_map(|kind| Some((kind, register(kind, &mut generator)?)));
    (roots.collect(), generator.take_definitions(true))
}

/// What the API's documentation says of types and their fields, for tests: structs do not say what excludes what.
#[cfg(test)]
pub(crate) struct Documentation(serde_json::Map<String, Value>);

#[cfg(test)]
impl Documentation {
    pub(crate) fn read() -> Self {
        Self(definitions().1)
    }

    /// The name of a type, its last part alone.
    pub(crate) fn name(id: TypeId) -> &'static str {
        let name = id.full_name();
        name.rsplit('.').next().unwrap_or(name)
    }

    /// What is said of a type, and of each of its fields.
    pub(crate) fn of(&self, id: TypeId) -> (String, BTreeMap<String, String>) {
        let text = |schema: &Value| {
            let text = schema["description"].as_str().unwrap_or_default().to_lowercase();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let definition = SCHEMAS
            .ids
            .iter()
            .find(|(_, known)| **known == id)
            .and_then(|(name, _)| self.0.get(name))
            .unwrap_or(&Value::Null);
        let fields = definition["properties"].as_object().into_iter().flatten();
        (
            text(definition),
            fields.map(|(name, field)| (name.clone(), text(field))).collect(),
        )
    }
}

/// Has the generator describe the type of a kind and all that it refers to; returns the type's name.
pub(crate) fn register(kind: Kind, generator: &mut SchemaGenerator) -> Option<String> {
    match kind {
        Kind::Namespace => add::<core::Namespace>(generator),
        Kind::Node => add::<core::Node>(generator),
        Kind::Pod => add::<core::Pod>(generator),
        Kind::Service => add::<core::Service>(generator),
        Kind::Endpoints => add::<core::Endpoints>(generator),
        Kind::Event => add::<core::Event>(generator),
        Kind::Deployment => add::<apps::Deployment>(generator),
        Kind::ReplicaSet => add::<apps::ReplicaSet>(generator),
        Kind::Ingress => add::<networking::Ingress>(generator),
        Kind::EndpointSlice => add::<discovery::EndpointSlice>(generator),
        Kind::ConfigMap => add::<core::ConfigMap>(generator),
        Kind::Secret => add::<core::Secret>(generator),
        Kind::ServiceAccount => add::<core::ServiceAccount>(generator),
        Kind::PersistentVolumeClaim => add::<core::PersistentVolumeClaim>(generator),
        Kind::PersistentVolume => add::<core::PersistentVolume>(generator),
        Kind::StorageClass => add::<storage::StorageClass>(generator),
        Kind::IngressClass => add::<networking::IngressClass>(generator),
        Kind::NetworkPolicy => add::<networking::NetworkPolicy>(generator),
        Kind::PodDisruptionBudget => add::<policy::PodDisruptionBudget>(generator),
        Kind::PriorityClass => add::<scheduling::PriorityClass>(generator),
        Kind::Lease => add::<coordination::Lease>(generator),
        Kind::StatefulSet => add::<apps::StatefulSet>(generator),
        Kind::DaemonSet => add::<apps::DaemonSet>(generator),
        Kind::ReplicationController => add::<core::ReplicationController>(generator),
        Kind::PodTemplate => add::<core::PodTemplate>(generator),
        Kind::ControllerRevision => add::<apps::ControllerRevision>(generator),
        Kind::Job => add::<batch::Job>(generator),
        Kind::CronJob => add::<batch::CronJob>(generator),
        Kind::Member | Kind::ApiToken | Kind::JoinToken | Kind::DnsWhitelist | Kind::GitInventory => None,
    }
}

pub(crate) fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> Option<String> {
    generator.subschema_for::<T>();
    Some(T::schema_name().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape_at(kind: Kind, path: &[&str]) -> Shape {
        path.iter().fold(
            Shape::Struct(TypeId::of(kind).unwrap()),
            |shape, name| match shape {
                Shape::Struct(id) => id.get().fields[*name].clone(),
                Shape::List(item) => match *item {
                    Shape::Struct(id) => id.get().fields[*name].clone(),
                    other => panic!("{name} in {other:?}"),
                },
                other => panic!("{name} in {other:?}"),
            },
        )
    }

    #[test]
    fn fields_have_their_kubernetes_types() {
        let container = ["spec", "template", "spec", "containers"];
        let at = |rest: &[&str]| shape_at(Kind::Deployment, &[&container[..], rest].concat());
        assert_eq!(at(&["image"]), Shape::Text);
        assert_eq!(at(&["ports", "containerPort"]), Shape::Int32);
        assert_eq!(at(&["livenessProbe", "httpGet", "port"]), Shape::IntOrString);
        assert_eq!(
            at(&["resources", "limits"]),
            Shape::Map(Box::new(Shape::Quantity))
        );
        assert_eq!(at(&["command"]), Shape::List(Box::new(Shape::Text)));
        assert_eq!(
            shape_at(Kind::Pod, &["metadata", "creationTimestamp"]),
            Shape::Time
        );
        assert_eq!(
            shape_at(Kind::Pod, &["spec", "activeDeadlineSeconds"]),
            Shape::Int64
        );
    }

    #[test]
    fn every_served_kind_has_a_type() {
        for row in crate::KINDS {
            assert_eq!(TypeId::of(row.kind).is_some(), row.served, "{}", row.name);
        }
    }
}
