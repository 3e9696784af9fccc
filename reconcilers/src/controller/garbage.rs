//! Collects what is left when an owner or a namespace is gone. The work for an object is its root's owner's.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use schemas::deletion::Propagation;
use schemas::{KINDS, Kind, Object, ObjectKey};
use store::{WatchEvent, WatchScope};

use super::act::{Component, act_all};
use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::action::Action;
use crate::garbage::{collect, end, finish, is_over};
use crate::ownership::Holding;

/// What one run looks at.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum GarbageKey {
    /// An object that has owners.
    Owned(ObjectKey),
    /// An object that is being deleted and waits until this has seen to what it owns.
    Owner(ObjectKey),
    /// A namespace that is being deleted.
    Namespace(String),
    /// What was created in namespaces that are gone.
    Orphans,
}

/// Tells whether an object is being deleted and waits for what becomes of what it owns, or for nothing any more: who took
/// the last finalizer off stopped before the last step, or two took one each.
fn is_waiting(object: &Object) -> bool {
    object.is_terminating() && (Propagation::of(object) != Propagation::Background || is_over(object))
}

/// Who owns what, as the watch told it: a deletion finds what it concerns without looking at everything.
#[derive(Default)]
struct Owners {
    /// The uids that an object names as its owners; not there without any.
    of: HashMap<ObjectKey, Vec<String>>,
    /// The other way round.
    owned: HashMap<String, BTreeSet<ObjectKey>>,
}

impl Owners {
    /// Takes in what an object that was put names as its owners; returns whether it names any.
    fn put(&mut self, object: &Object, key: &ObjectKey) -> bool {
        let owners = object.owner_references().into_iter().map(|owner| owner.uid);
        let owners: Vec<String> = owners.collect();
        if self.of.get(key).map(Vec::as_slice).unwrap_or_default() != owners {
            self.forget(key);
            for uid in &owners {
                self.owned.entry(uid.clone()).or_default().insert(key.clone());
            }
            if !owners.is_empty() {
                self.of.insert(key.clone(), owners.clone());
            }
        }
        !owners.is_empty()
    }

    fn forget(&mut self, key: &ObjectKey) {
        for uid in self.of.remove(key).unwrap_or_default() {
            if let Some(owned) = self.owned.get_mut(&uid) {
                owned.remove(key);
                if owned.is_empty() {
                    self.owned.remove(&uid);
                }
            }
        }
    }

    /// Forgets what went while the watch was cut off.
    fn keep(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        let gone: Vec<ObjectKey> = self.of.keys().filter(|key| !is_there(key)).cloned().collect();
        for key in &gone {
            self.forget(key);
        }
    }
}

/// The garbage collector.
pub struct Garbage {
    context: Context,
    owners: Mutex<Owners>,
}

impl Garbage {
    pub fn new(context: Context) -> Self {
        Self {
            context,
            owners: Mutex::default(),
        }
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the keys of owners that are being deleted and wait for what becomes of this object.
    fn waiting(&self, owned: &Object) -> Vec<GarbageKey> {
        let owners = owned.owner_references().into_iter().filter_map(|owner| {
            let kind = Kind::from_api(&owner.api_version, &owner.kind)?;
            let key = ObjectKey::new(kind, owned.namespace(), owner.name);
            let there = self.context.object(&key)?;
            (there.uid() == owner.uid && is_waiting(&there)).then_some(GarbageKey::Owner(key))
        });
        owners.collect()
    }

    fn finish(&self, key: &ObjectKey) -> Vec<(ObjectKey, Action)> {
        let owner = self.context.object(key).filter(|owner| is_waiting(owner));
        let Some(owner) = owner else { return Vec::new() };
        let Some(root) = self.context.root(&owner) else {
            return Vec::new();
        };
        let all = self.stored_in(&key.namespace);
        let actions = finish(&owner, all.iter().map(AsRef::as_ref));
        actions.into_iter().map(|action| (root.clone(), action)).collect()
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

    /// All that users or controllers stored in a namespace; without one, everywhere.
    fn stored_in(&self, namespace: &str) -> Vec<std::sync::Arc<Object>> {
        let namespace = (!namespace.is_empty()).then_some(namespace);
        KINDS
            .iter()
            .filter(|row| row.kind.is_namespaced() || namespace.is_none())
            .flat_map(|row| self.context.store.list(row.kind, namespace).items)
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
            Trigger::Store(WatchEvent::Put { view, previous }) => {
                let has_owners = self.owners().put(&view.object, &view.key);
                if view.key.kind == Kind::Namespace {
                    return self.going(&view.key.name).into_iter().collect();
                }
                let owned = has_owners.then(|| GarbageKey::Owned(view.key.clone()));
                let waits = is_waiting(&view.object).then(|| GarbageKey::Owner(view.key.clone()));
                // One that was let go has a reference less.
                let forms = previous.iter().chain([&view.object]);
                let waiting = forms.flat_map(|object| self.waiting(object));
                let going = self.going(&view.key.namespace).into_iter();
                going.chain(owned).chain(waits).chain(waiting).collect()
            }
            Trigger::Store(WatchEvent::Deleted { view }) => {
                let owned = {
                    let mut owners = self.owners();
                    owners.forget(&view.key);
                    owners.owned.get(view.object.uid()).cloned().unwrap_or_default()
                };
                let owned = owned.into_iter().map(GarbageKey::Owned);
                if view.key.kind == Kind::Namespace {
                    return owned.chain([GarbageKey::Orphans]).collect();
                }
                self.going(&view.key.namespace)
                    .into_iter()
                    .chain(owned)
                    .chain(self.waiting(&view.object))
                    .collect()
            }
            Trigger::Resync => {
                let store = &self.context.store;
                self.owners().keep(|key| store.get(key).is_some());
                vec![GarbageKey::Orphans]
            }
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
            GarbageKey::Owner(key) => self.finish(key),
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
    use store::View;

    use super::super::fixture::{Fixture, author};
    use super::*;

    #[tokio::test]
    async fn what_an_owner_of_any_kind_had_is_found_at_once_and_nothing_else_is_looked_at() {
        let fixture = Fixture::new(110);
        let garbage = Garbage::new(fixture.context.clone());
        for kind in [Kind::ReplicaSet, Kind::Pod, Kind::ConfigMap, Kind::Secret] {
            let owner = ObjectKey::new(kind, "default", "owner");
            let view = fixture.store.create(Object::new(&owner), author()).await.unwrap();
            let dependent = owned(&fixture, Kind::Service, "owned", &[&view]).await;
            let other = ObjectKey::new(kind, "default", "other");
            let other = fixture.store.create(Object::new(&other), author()).await.unwrap();
            for view in [&view, &dependent, &other] {
                let view = view.clone();
                garbage.keys(&Trigger::Store(WatchEvent::Put { view, previous: None }));
            }
            for (view, looks) in [(other, 0), (view, 1)] {
                fixture.remove(&view.key).await;
                let keys = garbage.keys(&Trigger::Store(WatchEvent::Deleted { view }));
                assert_eq!(keys.len(), looks, "{kind}");
                for key in keys {
                    garbage.reconcile(&key).await.unwrap();
                }
            }
            assert_eq!(fixture.context.object(&dependent.key), None, "{kind}");
            let view = dependent;
            garbage.keys(&Trigger::Store(WatchEvent::Deleted { view }));
            assert!(garbage.owners().of.is_empty() && garbage.owners().owned.is_empty());
        }
    }

    #[tokio::test]
    async fn what_went_unseen_is_forgotten_and_what_was_let_go_is_not_looked_at() {
        let fixture = Fixture::new(110);
        let garbage = Garbage::new(fixture.context.clone());
        let owner = ObjectKey::new(Kind::ConfigMap, "default", "owner");
        let owner = fixture.store.create(Object::new(&owner), author()).await.unwrap();
        let gone = owned(&fixture, Kind::Service, "gone", &[&owner]).await;
        let free = owned(&fixture, Kind::Service, "free", &[&owner]).await;
        for view in [&gone, &free] {
            let view = view.clone();
            garbage.keys(&Trigger::Store(WatchEvent::Put { view, previous: None }));
        }
        fixture.remove(&gone.key).await;
        fixture
            .edit(&free.key, &["metadata", "ownerReferences"], json!([]))
            .await;
        let view = fixture.store.get(&free.key).unwrap();
        garbage.keys(&Trigger::Store(WatchEvent::Put { view, previous: None }));
        garbage.keys(&Trigger::Resync);
        assert!(garbage.owners().of.is_empty() && garbage.owners().owned.is_empty());
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

    /// An object that `owners` own and that holds them.
    async fn owned(fixture: &Fixture, kind: Kind, name: &str, owners: &[&View]) -> View {
        let mut object = Object::new(&ObjectKey::new(kind, "default", name));
        let references = owners.iter().map(|owner| {
            let mut reference = crate::replica_set::controller_reference(&owner.object);
            reference["controller"] = json!(owner.key == owners[0].key);
            reference
        });
        object.set(&["metadata", "ownerReferences"], references.collect::<Vec<_>>());
        fixture.store.create(object, author()).await.unwrap()
    }

    /// Marks an object as users do, and lets the collector work until nothing calls for it.
    async fn delete(fixture: &Fixture, key: &ObjectKey, propagation: Propagation) {
        let mut watch = fixture.store.watch(
            WatchScope {
                kinds: Vec::new(),
                namespace: None,
            },
            None,
        );
        let garbage = Garbage::new(fixture.context.clone());
        let mark = |object: &Object| {
            Ok::<_, store::WriteError>(schemas::deletion::marked(&propagation.set(object), 0, 0))
        };
        let any = store::Precondition::default();
        fixture.store.update(key, &any, author(), mark).await.unwrap();
        let events = watch.as_mut().unwrap();
        while let Ok(event) = events.try_recv() {
            for key in garbage.keys(&Trigger::Store(event)) {
                garbage.reconcile(&key).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn what_an_owner_has_goes_first_or_stays_as_its_deletion_asks() {
        for propagation in [Propagation::Foreground, Propagation::Orphan] {
            let fixture = Fixture::new(110);
            fixture.admit().await;
            let key = ObjectKey::new(Kind::Deployment, "default", "web");
            let web = fixture.store.create(Object::new(&key), author()).await.unwrap();
            let set = owned(&fixture, Kind::ReplicaSet, "web-1", &[&web]).await;
            let pod = owned(&fixture, Kind::Pod, "web-1-a", &[&set]).await;
            fixture
                .edit(&pod.key, &["spec", "nodeName"], json!("node1"))
                .await;
            let other = ObjectKey::new(Kind::ConfigMap, "default", "other");
            let other = fixture.store.create(Object::new(&other), author()).await.unwrap();
            let shared = owned(&fixture, Kind::Service, "shared", &[&web, &other]).await;
            delete(&fixture, &key, propagation).await;
            let object = |key: &ObjectKey| fixture.context.object(key);
            let owners = |key: &ObjectKey| object(key).unwrap().owner_references().len();
            assert_eq!(owners(&shared.key), 1, "another owner keeps it");
            if propagation == Propagation::Orphan {
                assert_eq!(object(&key), None);
                assert_eq!((owners(&set.key), owners(&pod.key)), (0, 1));
                assert!(!object(&set.key).unwrap().is_terminating());
                continue;
            }
            for held in [&key, &set.key, &pod.key] {
                assert!(object(held).expect("its pod is there").is_terminating(), "{held}");
            }
            // Its node ends the pod.
            fixture.remove(&pod.key).await;
            let garbage = Garbage::new(fixture.context.clone());
            for gone in [&pod, &set] {
                let deleted = Trigger::Store(WatchEvent::Deleted { view: gone.clone() });
                for key in garbage.keys(&deleted) {
                    garbage.reconcile(&key).await.unwrap();
                }
            }
            assert_eq!((object(&set.key), object(&key)), (None, None));
        }
    }

    #[tokio::test]
    async fn a_finalizer_of_somebody_else_holds_an_owner_that_nothing_waits_for() {
        let fixture = Fixture::new(110);
        fixture.admit().await;
        let key = ObjectKey::new(Kind::Deployment, "default", "web");
        let mut web = Object::new(&key);
        web.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
        fixture.store.create(web, author()).await.unwrap();
        delete(&fixture, &key, Propagation::Foreground).await;
        let held = fixture.context.object(&key).unwrap();
        assert_eq!(
            held.pointer("/metadata/finalizers"),
            Some(&json!(["example.com/hold"]))
        );
    }

    #[tokio::test]
    async fn what_an_owner_without_a_namespace_has_is_found_in_all_of_them() {
        let fixture = Fixture::new(110);
        fixture.admit().await;
        let key = ObjectKey::cluster(Kind::StorageClass, "fast");
        let class = fixture.store.create(Object::new(&key), author()).await.unwrap();
        let settings = owned(&fixture, Kind::ConfigMap, "settings", &[&class]).await;
        delete(&fixture, &key, Propagation::Orphan).await;
        assert_eq!(fixture.context.object(&key), None);
        let left = fixture.context.object(&settings.key).expect("it was to stay");
        assert_eq!(left.owner_references(), []);
    }

    #[tokio::test]
    async fn what_nothing_holds_any_more_goes() {
        let fixture = Fixture::new(110);
        fixture.admit().await;
        let key = ObjectKey::new(Kind::Deployment, "default", "web");
        // As after two nodes took one finalizer each.
        fixture.store.create(Object::new(&key), author()).await.unwrap();
        delete(&fixture, &key, Propagation::Background).await;
        assert_eq!(fixture.context.object(&key), None);
    }
}
