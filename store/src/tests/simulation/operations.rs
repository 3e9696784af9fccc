//! What users and controllers do: random operations on any node.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::model::{self, Effect, Written};
use super::node::{Done, Executed, Intent, Node, Outcome, Purpose};
use super::world::World;
use crate::{Author, Precondition, Store, Via, View, WriteError};

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
const LABELS: [&str; 3] = ["x", "y", "z"];
const CONTAINERS: [&str; 3] = ["web", "log", "aux"];
/// A namespace that comes and goes.
const OTHER: &str = "other";

/// The value that a write gives to fields: no other write gives it.
fn value(node: usize, stamp: u64) -> u64 {
    stamp << 8 | node as u64
}

fn stamped(object: &mut Object, node: usize, stamp: u64) {
    object.set(
        &["metadata", "annotations", &format!("w{node}")],
        stamp.to_string(),
    );
}

/// Returns the list, which is not there any more where its elements were removed at the same time.
fn containers(object: &mut Object) -> &mut Vec<Value> {
    let path = ["spec", "template", "spec", "containers"];
    if object.pointer("/spec/template/spec/containers").is_none() {
        object.set(&path, json!([]));
    }
    object.0["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .expect("it is a list in all objects")
}

/// A new object, and what it sets.
fn new_object(
    key: &ObjectKey,
    node: usize,
    stamp: u64,
    some: &mut StdRng,
) -> (Object, BTreeMap<String, Effect>) {
    let mut object = Object::new(key);
    stamped(&mut object, node, stamp);
    let mut effects = BTreeMap::new();
    if key.kind == Kind::Namespace {
        return (object, effects);
    }
    let value = value(node, stamp);
    object.set(
        &["spec"],
        json!({
            "replicas": value,
            "selector": {"matchLabels": {"app": key.name}},
            "template": {"spec": {"containers": []}},
        }),
    );
    effects.insert("replicas".to_owned(), Effect::Put(value));
    for label in LABELS.iter().filter(|_| some.random_bool(0.5)) {
        object.set(&["metadata", "labels", label], value.to_string());
        effects.insert(format!("label {label}"), Effect::Put(value));
    }
    for name in CONTAINERS.iter().filter(|_| some.random_bool(0.6)) {
        containers(&mut object).push(json!({"name": name, "image": value.to_string()}));
        effects.insert(format!("container {name}"), Effect::Add(value));
    }
    (object, effects)
}

/// Changes one to three fields of an object.
fn change(object: &mut Object, value: u64, some: &mut StdRng) -> BTreeMap<String, Effect> {
    let mut effects = BTreeMap::new();
    for _ in 0..some.random_range(1..4) {
        let label = LABELS[some.random_range(0..LABELS.len())];
        let container = CONTAINERS[some.random_range(0..CONTAINERS.len())];
        let is_removal = some.random_bool(0.4);
        let choice = some.random_range(0..10);
        let field = match choice {
            0..3 => "replicas".to_owned(),
            3..6 => format!("label {label}"),
            _ => format!("container {container}"),
        };
        if effects.contains_key(&field) {
            continue;
        }
        let effect = match choice {
            0..3 => {
                object.set(&["spec", "replicas"], value);
                Effect::Put(value)
            }
            3..6 if is_removal && object.remove(&["metadata", "labels", label]).is_some() => Effect::Delete,
            3..6 => {
                object.set(&["metadata", "labels", label], value.to_string());
                Effect::Put(value)
            }
            _ => {
                let list = containers(object);
                let at = list.iter().position(|one| one["name"] == container);
                match at {
                    Some(at) if is_removal => {
                        list.remove(at);
                        Effect::Remove
                    }
                    Some(at) => {
                        list[at]["image"] = value.to_string().into();
                        Effect::Edit(value)
                    }
                    None => {
                        let at = some.random_range(0..=list.len());
                        list.insert(at, json!({"name": container, "image": value.to_string()}));
                        Effect::Add(value)
                    }
                }
            }
        };
        effects.insert(field, effect);
    }
    effects
}

impl World {
    fn author(&self, node: usize, user: &str) -> Author {
        Author {
            manager: format!("manager{}", node % 3),
            user: user.to_owned(),
            via: Via::Api,
            unix_seconds: self.nodes[node].unix_seconds(self.now_ms),
        }
    }

    fn some(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.random.random())
    }

    fn pick_name(&mut self) -> ObjectKey {
        let namespace = if self.chance(0.25) { OTHER } else { "default" };
        let name = NAMES[self.random.random_range(0..self.weather.names)];
        ObjectKey::new(Kind::Deployment, namespace, name)
    }

    pub(super) fn pick_live(&mut self, store: &Store, kind: Kind) -> Option<View> {
        let items = store.list(kind, None).items;
        items.choose(&mut self.random).cloned()
    }

    /// One thing that somebody does on a node.
    pub(super) fn operate(&mut self, node: usize) {
        let Some(store) = self.store(node) else {
            return;
        };
        let owned = store.list(Kind::ReplicaSet, None).items;
        for view in &owned {
            self.is_garbage(node, &store, view);
        }
        match self.random.random_range(0..100) {
            0..48 => {
                if let Some(view) = self.pick_live(&store, Kind::Deployment) {
                    self.edit(node, &view, false);
                }
            }
            48..56 => {
                // On what was read some time ago, or now.
                let view = self.pick_live(&store, Kind::Deployment);
                let earlier = self.remembered.get(&node).cloned();
                let view = if self.chance(0.5) { earlier.or(view) } else { view };
                if let Some(view) = view {
                    self.edit(node, &view, true);
                }
                if let Some(view) = self.pick_live(&store, Kind::Deployment) {
                    self.remembered.insert(node, view);
                }
            }
            56..72 => {
                let key = self.pick_name();
                self.create(node, &key, None);
            }
            72..82 => {
                if let Some(view) = self.pick_live(&store, Kind::Deployment)
                    && self.chance(self.weather.removals)
                {
                    let resource_version = self.chance(0.5).then_some(view.revision);
                    self.remove(node, &view, resource_version, "admin");
                }
            }
            82..87 => {
                if let Some(owner) = self.pick_live(&store, Kind::Deployment) {
                    let name = format!("{}-{}", owner.key.name, self.random.random_range(0..2));
                    let key = ObjectKey::new(Kind::ReplicaSet, owner.key.namespace.as_str(), name);
                    self.create(node, &key, Some(&owner));
                }
            }
            87..91 => self.collect_owned(node, &store, &owned),
            91..94 => match store.get(&ObjectKey::cluster(Kind::Namespace, OTHER)) {
                Some(view) if self.chance(0.5) => self.remove(node, &view, None, "admin"),
                Some(_) => {}
                None => self.create(node, &ObjectKey::cluster(Kind::Namespace, OTHER), None),
            },
            94..96 => self.collect_orphaned(node, &store),
            _ => {
                // Names that are used once.
                self.counters.bump("names used once");
                let churned = store.list(Kind::Pod, None).items;
                match churned.choose(&mut self.random).cloned() {
                    Some(view) if self.chance(0.6) => self.remove(node, &view, None, "admin"),
                    _ => {
                        let name = format!("once{}", self.random.random_range(0..1_000_000));
                        self.create(node, &ObjectKey::new(Kind::Pod, "default", name), None);
                    }
                }
            }
        }
    }

    /// Somebody edits an object where it is there.
    pub(super) fn edit_somewhere(&mut self, node: Option<usize>, key: &ObjectKey) {
        let nodes: Vec<usize> = match node {
            Some(node) => vec![node],
            None => (0..self.nodes.len()).filter(|at| self.side[*at] == 0).collect(),
        };
        let views = nodes.into_iter().filter(|at| self.is_ready(*at));
        let views: Vec<(usize, View)> = views
            .filter_map(|at| Some((at, self.store(at)?.get(key)?)))
            .collect();
        if let Some((node, view)) = views.choose(&mut self.random).cloned() {
            self.edit(node, &view, false);
        }
    }

    /// Somebody has asked a store to write something.
    fn asked(&mut self, what: &'static str) {
        self.operations_left = self.operations_left.saturating_sub(1);
        self.counters.bump("operations");
        self.counters.bump(what);
    }

    fn create(&mut self, node: usize, key: &ObjectKey, owner: Option<&View>) {
        let stamp = Node::draw(&self.nodes[node].stamp);
        let (mut object, effects) = new_object(key, node, stamp, &mut self.some());
        if let Some(owner) = owner {
            let reference = json!([{"uid": owner.object.uid(), "kind": "Deployment", "name": owner.key.name, "apiVersion": "apps/v1"}]);
            object.set(&["metadata", "ownerReferences"], reference);
        }
        let written = Written {
            node,
            stamp,
            seen: model::Seen::new(),
            effects,
            is_users: true,
            is_acknowledged: false,
        };
        let author = self.author(node, "admin");
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let store = agent.store.clone();
        let intent = Intent::Create {
            key: key.clone(),
            written,
        };
        agent.begin(Purpose::User(intent), async move {
            Outcome::User(store.create(object, author).await)
        });
        self.asked("creations asked for");
        self.go_on(node);
    }

    fn edit(&mut self, node: usize, view: &View, is_conditional: bool) {
        let user = if self.chance(0.9) { "admin" } else { "" };
        let author = self.author(node, user);
        let mut some = self.some();
        let executed = Executed::default();
        let stamp = self.nodes[node].stamp.clone();
        let precondition = Precondition {
            uid: None,
            resource_version: is_conditional.then_some(view.revision),
        };
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let (store, key, seen_by_us) = (agent.store.clone(), view.key.clone(), executed.clone());
        let intent = Intent::Edit {
            key: key.clone(),
            executed,
            expected: is_conditional.then(|| view.clone()),
        };
        agent.begin(Purpose::User(intent), async move {
            let result: Result<View, WriteError> = store
                .update(&key, &precondition, author, |object| {
                    let stamp = Node::draw(&stamp);
                    let mut changed = object.clone();
                    let effects = change(&mut changed, value(node, stamp), &mut some);
                    stamped(&mut changed, node, stamp);
                    let written = Written {
                        node,
                        stamp,
                        seen: model::seen(object),
                        effects,
                        is_users: !user.is_empty(),
                        is_acknowledged: false,
                    };
                    *seen_by_us.lock().unwrap_or_else(PoisonError::into_inner) = Some(Done {
                        uid: object.uid().to_owned(),
                        written,
                        before: object.clone(),
                    });
                    Ok(changed)
                })
                .await;
            Outcome::User(result)
        });
        self.asked("edits asked for");
        self.go_on(node);
    }

    fn remove(&mut self, node: usize, view: &View, resource_version: Option<crate::Revision>, user: &str) {
        let uid = view.object.uid().to_owned();
        let precondition = Precondition {
            uid: Some(uid.clone()),
            resource_version,
        };
        let author = self.author(node, user);
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.remove(view.key.clone(), uid, precondition, author);
        }
        self.asked("removals asked for");
        self.go_on(node);
    }

    /// Garbage: what is owned by an object that was removed.
    fn collect_owned(&mut self, node: usize, store: &Store, owned: &[View]) {
        for view in owned {
            if self.is_garbage(node, store, view) {
                self.counters.bump("owned objects collected");
                self.remove(node, view, None, "");
            }
        }
    }

    /// Tells whether a node takes the owner of a ReplicaSet for removed, and whether it may.
    fn is_garbage(&mut self, node: usize, store: &Store, view: &View) -> bool {
        let owner = view.object.pointer("/metadata/ownerReferences/0");
        let owner = owner.cloned().unwrap_or_default();
        let name = owner["name"].as_str().unwrap_or_default();
        let key = ObjectKey::new(Kind::Deployment, view.key.namespace.as_str(), name);
        let uid = owner["uid"].as_str().unwrap_or_default();
        if !store.is_removed(&key, uid) {
            return false;
        }
        // Two nodes created it on both sides of a closed round: the later one stays, and its removal is one of both.
        let has_later = || {
            let held = store.get(&key);
            held.is_some_and(|owner| owner.object.uid() != uid) || self.model.may_have_been_removed(&key)
        };
        if !self.model.may_be_gone(&key, uid) && (store.floor() > 0 || has_later()) {
            // Or it never came here while its round was open. It must not come any more.
            self.model.must_be_gone(&key, uid);
        } else if !self.model.may_be_gone(&key, uid) {
            self.fail(format!(
                "{} is garbage on node {node}, and nobody removed its owner {key} {uid}",
                view.key
            ));
        }
        true
    }

    /// Garbage: what was created in a namespace that was removed.
    fn collect_orphaned(&mut self, node: usize, store: &Store) {
        for key in store.orphaned_by_namespace() {
            let namespace = ObjectKey::cluster(Kind::Namespace, &key.namespace);
            self.counters.bump("objects of removed namespaces collected");
            if !self.model.may_have_been_removed(&namespace) {
                self.fail(format!(
                    "{key} is collected on node {node}, and nobody removed its namespace"
                ));
            }
            if let Some(view) = store.get(&key) {
                self.remove(node, &view, None, "");
            }
        }
    }
}

/// Takes what an update found, if it came to that.
pub(super) fn take(executed: &Executed) -> Option<Done> {
    Arc::clone(executed)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}
