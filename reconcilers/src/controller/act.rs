//! Does what planners decided: one match, one write each. What another owner did already is success.

use futures::{StreamExt, TryStreamExt, stream};
use schemas::deletion::Propagation;
use schemas::{Kind, Object, ObjectKey, OwnerReference, deletion};
use serde_json::Value;
use store::{Author, Precondition, Via, WriteError};
use tracing::info;

use super::{Context, ReconcileError};
use crate::action::Action;
use crate::deployment::replicas;
use crate::pod_state::MEMBER_ANNOTATION;
use crate::ports::{EventKind, EventRecord};

/// Writes in flight at a time: enough to share group commits, few enough to leave the store to others.
const WRITES_AT_ONCE: usize = 16;

/// Who acts, as events and field managers name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Component {
    Workloads,
    Garbage,
}

impl Component {
    fn name(self, kind: Kind, action: &Action) -> &'static str {
        match (self, action) {
            (Component::Garbage, _) => "garbage-collector",
            (Component::Workloads, Action::Place { .. }) => "default-scheduler",
            (Component::Workloads, _) if kind == Kind::Pod => "replicaset-controller",
            (Component::Workloads, _) => "deployment-controller",
        }
    }
}

/// Does all actions, some at a time: first those that take something away, lest a rollout's surge be exceeded meanwhile.
/// Fails with the first error, when those in flight have ended or were dropped.
pub(super) async fn act_all(
    context: &Context,
    component: Component,
    actions: Vec<Action>,
) -> Result<(), ReconcileError> {
    let takes_away = |action: &Action| {
        matches!(
            action,
            Action::Delete { .. } | Action::DeleteForeground { .. } | Action::Remove { .. }
        )
    };
    let (first, then): (Vec<_>, Vec<_>) = actions.into_iter().partition(takes_away);
    for actions in [first, then] {
        stream::iter(actions)
            .map(Ok)
            .try_for_each_concurrent(WRITES_AT_ONCE, |action| act(context, component, action))
            .await?;
    }
    Ok(())
}

async fn act(context: &Context, component: Component, action: Action) -> Result<(), ReconcileError> {
    let Some(key) = key(&action) else {
        return Ok(());
    };
    let manager = component.name(key.kind, &action);
    let author = Author {
        manager: manager.to_owned(),
        user: String::new(),
        via: Via::Controller,
        unix_seconds: context.clock.unix_seconds(),
    };
    let before = context.store.get(&key);
    let replicas = before.map_or(0, |before| replicas(&before.object));
    match write(context, author, action.clone()).await {
        Ok(true) => {
            info!(kind = %key.kind, namespace = key.namespace, name = key.name, action = verb(&action), "done");
            report(context, manager, (&key, replicas), &action);
            Ok(())
        }
        // Someone else did it, or made it pointless; what it is now wakes the next plan.
        Ok(false) | Err(WriteError::Exists(_) | WriteError::NotFound(_) | WriteError::Conflict { .. }) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes, and tells whether that changed anything.
async fn write(context: &Context, author: Author, action: Action) -> Result<bool, WriteError> {
    let of = |uid: String| Precondition {
        uid: Some(uid),
        resource_version: None,
    };
    let store = &context.store;
    match action {
        Action::Create(object) => store.create(object, author).await.map(|_| true),
        Action::Set {
            key,
            uid,
            replicas,
            min_ready_seconds,
            annotations,
        } => {
            let change = |object: &Object| {
                let mut object = object.clone();
                if let Some(replicas) = replicas {
                    object.set(&["spec", "replicas"], replicas);
                }
                if let Some(seconds) = min_ready_seconds {
                    object.set(&["spec", "minReadySeconds"], seconds);
                }
                for (name, value) in &annotations {
                    object.set(&["metadata", "annotations", name], value.clone());
                }
                object
            };
            update(context, &key, &of(uid), author, change).await
        }
        Action::Place {
            key,
            uid,
            node,
            member,
        } => {
            let change = |object: &Object| {
                let mut object = object.clone();
                if object.str_at("/spec/nodeName").is_empty() {
                    object.set(&["spec", "nodeName"], node.clone());
                    object.set(&["metadata", "annotations", MEMBER_ANNOTATION], member.clone());
                }
                object
            };
            update(context, &key, &of(uid), author, change).await
        }
        Action::Release { key, uid, owner } => {
            let change = |object: &Object| {
                let mut object = object.clone();
                if let Some(Value::Array(mut owners)) = object.pointer("/metadata/ownerReferences").cloned() {
                    owners.retain(|other| other["uid"] != *owner);
                    if owners.is_empty() {
                        object.remove(&["metadata", "ownerReferences"]);
                    } else {
                        object.set(&["metadata", "ownerReferences"], owners);
                    }
                }
                object
            };
            update(context, &key, &of(uid), author, change).await
        }
        Action::Delete { key, uid } => {
            let now = author.unix_seconds;
            update(context, &key, &of(uid), author, |object| {
                terminating(key.kind, object, now)
            })
            .await
        }
        Action::DeleteForeground { key, uid } => {
            let now = author.unix_seconds;
            update(context, &key, &of(uid), author, |object| {
                terminating(key.kind, &Propagation::Foreground.set(object), now)
            })
            .await
        }
        Action::Unhold { key, uid } => {
            update(context, &key, &of(uid), author, |object| {
                Propagation::Background.set(object)
            })
            .await
        }
        Action::Remove { key, uid } => store.remove(&key, &of(uid), author).await.map(|_| true),
    }
}

async fn update(
    context: &Context,
    key: &ObjectKey,
    precondition: &Precondition,
    author: Author,
    change: impl Fn(&Object) -> Object + Send + Sync,
) -> Result<bool, WriteError> {
    let mut changed = false;
    let change = |object: &Object| {
        let new = change(object);
        changed = new != *object;
        Ok::<_, WriteError>(new)
    };
    context.store.update(key, precondition, author, change).await?;
    Ok(changed)
}

/// Marks an object as being deleted with its own grace, unless it is already: what a user asked for stays.
fn terminating(kind: Kind, object: &Object, now_unix_seconds: i64) -> Object {
    if object.is_terminating() {
        return object.clone();
    }
    deletion::marked(
        object,
        deletion::own_grace_seconds(kind, object),
        now_unix_seconds,
    )
}

fn key(action: &Action) -> Option<ObjectKey> {
    match action {
        Action::Create(object) => object.key(),
        Action::Set { key, .. }
        | Action::Place { key, .. }
        | Action::Release { key, .. }
        | Action::Delete { key, .. }
        | Action::DeleteForeground { key, .. }
        | Action::Unhold { key, .. }
        | Action::Remove { key, .. } => Some(key.clone()),
    }
}

fn verb(action: &Action) -> &'static str {
    match action {
        Action::Create(_) => "create",
        Action::Set { .. } => "set",
        Action::Place { .. } => "place",
        Action::Release { .. } => "release",
        Action::Delete { .. } | Action::DeleteForeground { .. } => "delete",
        Action::Unhold { .. } => "unhold",
        Action::Remove { .. } => "remove",
    }
}

/// Records the events that Kubernetes' controllers record. `before`: the replicas of what the key names, before the action.
fn report(context: &Context, component: &'static str, (key, before): (&ObjectKey, u32), action: &Action) {
    let stored = context.store.get(key);
    let owner = match action {
        Action::Create(object) => object.controller(),
        _ => stored.as_ref().and_then(|view| view.object.controller()),
    };
    let on_owner = |reason: &'static str, message: String| {
        let OwnerReference {
            api_version,
            kind,
            name,
            uid,
            ..
        } = owner?;
        let kind = Kind::from_api(&api_version, &kind)?;
        Some((ObjectKey::new(kind, &key.namespace, name), uid, reason, message))
    };
    let event = match (key.kind, action) {
        (Kind::Pod, Action::Create(_)) => on_owner("SuccessfulCreate", format!("Created pod: {}", key.name)),
        (Kind::Pod, Action::Delete { .. }) => {
            on_owner("SuccessfulDelete", format!("Deleted pod: {}", key.name))
        }
        (Kind::Pod, Action::Place { node, uid, .. }) => Some((
            key.clone(),
            uid.clone(),
            "Scheduled",
            format!("Successfully assigned {}/{} to {node}", key.namespace, key.name),
        )),
        (Kind::ReplicaSet, Action::Create(object)) => {
            let replicas = object.i64_at("/spec/replicas").unwrap_or_default();
            on_owner(
                "ScalingReplicaSet",
                format!("Scaled up replica set {} from 0 to {replicas}", key.name),
            )
        }
        (
            Kind::ReplicaSet,
            Action::Set {
                replicas: Some(replicas),
                ..
            },
        ) => on_owner(
            "ScalingReplicaSet",
            format!(
                "Scaled {} replica set {} from {before} to {replicas}",
                if *replicas > before { "up" } else { "down" },
                key.name
            ),
        ),
        _ => None,
    };
    if let Some((key, uid, reason, message)) = event {
        context.events.event(EventRecord {
            key,
            uid,
            kind: EventKind::Normal,
            reason,
            message,
            component,
        });
    }
    if let (Kind::Pod, Action::Create(pod), Some(view)) = (key.kind, action, &stored) {
        let node = pod.str_at("/spec/nodeName");
        if !node.is_empty() {
            context.events.event(EventRecord {
                key: key.clone(),
                uid: view.object.uid().to_owned(),
                kind: EventKind::Normal,
                reason: "Scheduled",
                message: format!("Successfully assigned {}/{} to {node}", key.namespace, key.name),
                component: "default-scheduler",
            });
        }
    }
}
