//! Collects what is left when an owner or a namespace is gone. The work for an object is its root's owner's.

use async_trait::async_trait;
use schemas::{KINDS, Kind, Object, ObjectKey};
use store::{WatchEvent, WatchScope};

use super::act::{Component, act_all};
use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::action::Action;
use crate::garbage::{collect, end};
use crate::ownership::Holding;

/// What one run looks at.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum GarbageKey {
    /// An object that has owners.
    Owned(ObjectKey),
    /// What the object that had this uid owned, in a namespace.
    Dependents { namespace: String, uid: String },
    /// A namespace that is being deleted.
    Namespace(String),
    /// What was created in namespaces that are gone.
    Orphans,
}

/// The garbage collector.
pub struct Garbage {
    context: Context,
}

impl Garbage {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// Returns the key of a namespace that is being deleted.
    fn going(&self, namespace: &str) -> Option<GarbageKey> {
        let object = self
            .context
            .object(&ObjectKey::cluster(Kind::Namespace, namespace));
        object
            .filter(|object| object.is_terminating())
            .map(|_| GarbageKey::Namespace(namespace.to_owned()))
    }

    /// Keeps the actions that are this node's to do; also says when others may become so.
    fn mine(&self, found: Vec<(ObjectKey, Action)>) -> (Vec<Action>, Next) {
        let mut actions = Vec::new();
        let mut next = Next::Done;
        for (root, action) in found {
            match self.context.holding(&root) {
                Holding::Mine => actions.push(action),
                Holding::Settling(wait) => next = Next::After(wait),
                Holding::Other => {}
            }
        }
        (actions, next)
    }

    fn collect(&self, object: &Object) -> Option<(ObjectKey, Action)> {
        let action = collect(object, |key, uid| self.context.store.is_removed(key, uid))?;
        Some((self.context.root(object)?, action))
    }

    /// All that users or controllers stored in a namespace.
    fn stored_in(&self, namespace: &str) -> Vec<std::sync::Arc<Object>> {
        KINDS
            .iter()
            .filter(|row| row.kind.is_namespaced())
            .flat_map(|row| self.context.store.list(row.kind, Some(namespace)).items)
            .filter(|view| view.stored)
            .map(|view| view.object)
            .collect()
    }

    fn in_namespace(&self, name: &str) -> Vec<(ObjectKey, Action)> {
        let key = ObjectKey::cluster(Kind::Namespace, name);
        let Some(namespace) = self
            .context
            .object(&key)
            .filter(|namespace| namespace.is_terminating())
        else {
            return Vec::new();
        };
        let left = self.stored_in(name);
        if left.is_empty() {
            return end(&namespace).map(|action| (key, action)).into_iter().collect();
        }
        left.iter()
            .filter_map(|object| Some((key.clone(), end(object)?)))
            .collect()
    }

    fn orphans(&self) -> Vec<(ObjectKey, Action)> {
        let keys = self.context.store.orphaned_by_namespace();
        let objects = keys.iter().filter_map(|key| self.context.object(key));
        objects
            .filter_map(|object| Some((self.context.root(&object)?, end(&object)?)))
            .collect()
    }
}

#[async_trait]
impl Reconciler for Garbage {
    type Key = GarbageKey;

    fn name(&self) -> &'static str {
        "garbage"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: Vec::new(),
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<GarbageKey> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, .. }) => {
                if view.key.kind == Kind::Namespace {
                    return self.going(&view.key.name).into_iter().collect();
                }
                let has_owners = view.object.pointer("/metadata/ownerReferences/0").is_some();
                let owned = has_owners.then(|| GarbageKey::Owned(view.key.clone()));
                self.going(&view.key.namespace).into_iter().chain(owned).collect()
            }
            Trigger::Store(WatchEvent::Deleted { view }) => match view.key.kind {
                Kind::Namespace => vec![GarbageKey::Orphans],
                Kind::Event | Kind::Endpoints | Kind::EndpointSlice => Vec::new(),
                kind => {
                    // Who goes often, pods, owns nothing of ours. What users gave to such owners goes with the next resync.
                    let dependents = kind.row().owner.then(|| GarbageKey::Dependents {
                        namespace: view.key.namespace.clone(),
                        uid: view.object.uid().to_owned(),
                    });
                    self.going(&view.key.namespace)
                        .into_iter()
                        .chain(dependents)
                        .collect()
                }
            },
            Trigger::Resync => vec![GarbageKey::Orphans],
            Trigger::Cluster(_) | Trigger::Runtime(_) => Vec::new(),
        }
    }

    async fn reconcile(&self, key: &GarbageKey) -> Result<Next, ReconcileError> {
        let found = match key {
            GarbageKey::Owned(key) => {
                let object = self.context.object(key);
                object
                    .and_then(|object| self.collect(&object))
                    .into_iter()
                    .collect()
            }
            GarbageKey::Dependents { namespace, uid } => self
                .stored_in(namespace)
                .iter()
                .filter(|object| object.owner_references().iter().any(|owner| owner.uid == *uid))
                .filter_map(|object| self.collect(object))
                .collect(),
            GarbageKey::Namespace(name) => self.in_namespace(name),
            GarbageKey::Orphans => self.orphans(),
        };
        let (actions, next) = self.mine(found);
        act_all(&self.context, Component::Garbage, actions).await?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use schemas::time::to_rfc3339;
    use serde_json::json;

    use super::super::fixture::{Fixture, author};
    use super::*;

    #[tokio::test]
    async fn what_a_pod_owns_goes_with_the_next_resync_and_is_not_looked_for_at_every_deletion() {
        let fixture = Fixture::new(110);
        let garbage = Garbage::new(fixture.context.clone());
        for (kind, looks) in [(Kind::ReplicaSet, 1), (Kind::Pod, 0)] {
            let owner = ObjectKey::new(kind, "default", "owner");
            let view = fixture.store.create(Object::new(&owner), author()).await.unwrap();
            let owned = ObjectKey::new(Kind::Service, "default", "owned");
            let mut object = Object::new(&owned);
            let reference = crate::replica_set::controller_reference(&view.object);
            object.set(&["metadata", "ownerReferences"], json!([reference]));
            fixture.store.create(object, author()).await.unwrap();
            fixture.remove(&owner).await;
            let keys = garbage.keys(&Trigger::Store(WatchEvent::Deleted { view }));
            assert_eq!(keys.len(), looks, "{kind}");
            // On resync, each object comes as it is.
            let view = fixture.store.get(&owned).unwrap();
            let resync = Trigger::Store(WatchEvent::Put { view, previous: None });
            for key in garbage.keys(&resync) {
                garbage.reconcile(&key).await.unwrap();
            }
            assert_eq!(fixture.context.object(&owned), None, "{kind}");
        }
    }

    #[tokio::test]
    async fn finalizers_hold_a_namespace_and_what_is_in_it() {
        let fixture = Fixture::new(110);
        let namespace = ObjectKey::cluster(Kind::Namespace, "shop");
        let service = ObjectKey::new(Kind::Service, "shop", "web");
        for key in [&namespace, &service] {
            let mut object = Object::new(key);
            object.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
            if key.kind == Kind::Namespace {
                object.set(&["metadata", "deletionTimestamp"], to_rfc3339(0));
            }
            fixture.store.create(object, author()).await.unwrap();
        }
        let garbage = Garbage::new(fixture.context.clone());
        let object = |key: &ObjectKey| fixture.context.object(key);
        let key = GarbageKey::Namespace("shop".to_owned());
        for _ in 0..2 {
            garbage.reconcile(&key).await.unwrap();
            let held = object(&service).expect("its finalizer holds it");
            assert_eq!(
                held.i64_at("/metadata/deletionGracePeriodSeconds"),
                Some(0),
                "only a pod has a grace"
            );
        }
        fixture.remove(&service).await;
        garbage.reconcile(&key).await.unwrap();
        assert!(object(&namespace).is_some(), "it has a finalizer of its own");
        fixture
            .edit(&namespace, &["metadata", "finalizers"], json!([]))
            .await;
        garbage.reconcile(&key).await.unwrap();
        assert_eq!(object(&namespace), None);
    }
}
