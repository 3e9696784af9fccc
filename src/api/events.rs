//! The Events of this node: counted, bounded, kept for an hour, and shown through the store as computed objects.
//!
//! Never replicated: a list asks the other live nodes for theirs ([`crate::api`]'s list does).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reconcilers::ports::{Clock, EventKind, EventRecord, EventSink, Moment};
use schemas::{Kind, Object, ObjectKey, hex, time};
use serde_json::json;
use sha2::{Digest, Sha256};
use store::{NodeId, Store, View};
use tokio_util::sync::CancellationToken;

use super::status::{ApiError, ApiResult};

/// How long an event is shown after it happened last, as in Kubernetes.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How often expired ones are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The one that is longest ago makes room. At [`MAX_EVENT_BYTES`] each below 8 MiB: what a node answers another with
/// (`MAX_PEER_EVENTS_BYTES`), and what is kept.
const MAX_EVENTS: usize = 2000;
/// The largest event of a client, as JSON: the longest message, four times. Ours have some 700 bytes.
const MAX_EVENT_BYTES: usize = 4 << 10;
/// As Kubernetes bounds `message`.
const MAX_MESSAGE_BYTES: usize = 1024;

/// This node's events.
pub struct Events {
    store: Store,
    node: NodeId,
    node_name: String,
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
}

/// What is kept; the objects are in the store.
#[derive(Default)]
struct Kept {
    /// When each happened last.
    last: HashMap<ObjectKey, Moment>,
    /// The names of what happened on this node, by [`identity`]; of some that are gone as well.
    named: HashMap<String, ObjectKey>,
    /// The stamp in the newest name.
    stamp: u64,
}

impl Kept {
    /// The key of what happened: the one it had before, or a new one, whose name sorts behind all earlier ones of the object.
    fn key(&mut self, id: &str, event: &EventRecord, unix_nanoseconds: u64) -> ObjectKey {
        let before = self.named.get(id).filter(|key| self.last.contains_key(key));
        if let Some(key) = before {
            return key.clone();
        }
        if self.named.len() >= 2 * MAX_EVENTS {
            self.named.retain(|_, key| self.last.contains_key(key));
        }
        self.stamp = unix_nanoseconds.max(self.stamp.saturating_add(1));
        let namespace = match event.key.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        // As Kubernetes names them; a few digits of the hash keep those of two nodes apart.
        let name = format!("{}.{:016x}{}", event.key.name, self.stamp, &id[..4]);
        let key = ObjectKey::new(Kind::Event, namespace, name);
        self.named.insert(id.to_owned(), key.clone());
        key
    }
}

impl Events {
    /// Makes an empty record of what happens on the node of this name.
    pub fn new(store: Store, node: NodeId, node_name: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            node,
            node_name: node_name.into(),
            clock,
            kept: Mutex::default(),
        }
    }

    /// Forgets expired events until `shutdown` fires.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        while shutdown.run_until_cancelled(sweep.tick()).await.is_some() {
            self.forget_expired();
        }
    }

    /// Forgets what happened last over an hour ago.
    pub fn forget_expired(&self) {
        let now = self.clock.now();
        let mut kept = self.lock();
        let expired = kept.last.extract_if(|_, last| now.since(*last) >= LIFETIME);
        for (key, _) in expired {
            self.store.project(&key, None);
        }
    }

    /// Keeps an event that a client made and that [`check_size`] passed; it has name and namespace.
    pub(crate) fn keep(&self, key: ObjectKey, object: Object) {
        self.insert(&mut self.lock(), key, object);
    }

    /// Puts a changed event in the place of the one that was seen at a version; false, if that has changed or is gone.
    pub(crate) fn replace(&self, seen: &View, object: Object) -> bool {
        let mut kept = self.lock();
        let is_there = kept.last.contains_key(&seen.key);
        let is_same = self
            .store
            .get(&seen.key)
            .is_some_and(|view| view.revision == seen.revision);
        if is_there && is_same {
            self.insert(&mut kept, seen.key.clone(), object);
        }
        is_there && is_same
    }

    fn insert(&self, kept: &mut Kept, key: ObjectKey, object: Object) {
        if kept.last.len() >= MAX_EVENTS
            && !kept.last.contains_key(&key)
            && let Some(oldest) = kept
                .last
                .iter()
                .min_by_key(|(_, last)| **last)
                .map(|(key, _)| key.clone())
        {
            kept.last.remove(&oldest);
            self.store.project(&oldest, None);
        }
        self.store.project(&key, Some(object));
        kept.last.insert(key, self.clock.now());
    }

    /// Forgets an event; false if it is not this node's.
    pub(crate) fn forget(&self, key: &ObjectKey) -> bool {
        let found = self.lock().last.remove(key).is_some();
        if found {
            self.store.project(key, None);
        }
        found
    }

    /// No panic can leave it half changed.
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event for what happened: the same one again, counted, if it happened before.
    fn object(&self, before: Option<&Object>, key: &ObjectKey, id: &str, event: &EventRecord) -> Object {
        let now = time::to_rfc3339(self.clock.unix_seconds());
        if let Some(before) = before {
            let mut object = before.clone();
            object.remove(&["metadata", "resourceVersion"]);
            let count = object.i64_at("/count").unwrap_or(1);
            object.set(&["count"], count.saturating_add(1));
            object.set(&["lastTimestamp"], now);
            return object;
        }
        let row = event.key.kind.row();
        let mut object = Object::new(key);
        object.set(&["metadata", "uid"], uuid(id));
        object.set(&["metadata", "creationTimestamp"], now.clone());
        let mut about = json!({
            "kind": row.name,
            "apiVersion": row.api_version(),
            "name": event.key.name,
            "uid": event.uid,
        });
        if !event.key.namespace.is_empty() {
            about["namespace"] = event.key.namespace.clone().into();
        }
        object.set(&["involvedObject"], about);
        object.set(&["reason"], event.reason);
        object.set(&["message"], truncated(&event.message));
        object.set(
            &["type"],
            match event.kind {
                EventKind::Normal => "Normal",
                EventKind::Warning => "Warning",
            },
        );
        object.set(
            &["source"],
            json!({"component": event.component, "host": self.node_name}),
        );
        object.set(&["reportingComponent"], event.component);
        object.set(&["reportingInstance"], self.node_name.clone());
        object.set(&["firstTimestamp"], now.clone());
        object.set(&["lastTimestamp"], now);
        object.set(&["count"], 1);
        object
    }
}

impl EventSink for Events {
    fn event(&self, event: EventRecord) {
        let id = identity(&self.node, &event);
        let mut kept = self.lock();
        let key = kept.key(&id, &event, self.clock.unix_nanoseconds());
        let before = self.store.get(&key).filter(|_| kept.last.contains_key(&key));
        let before = before.as_ref().map(|view| view.object.as_ref());
        let object = self.object(before, &key, &id, &event);
        self.insert(&mut kept, key, object);
    }
}

/// Refuses an event that is too large to be kept beside others.
pub(crate) fn check_size(object: &Object) -> ApiResult<()> {
    let bytes = serde_json::to_vec(&object.0).map_or(usize::MAX, |json| json.len());
    if bytes <= MAX_EVENT_BYTES {
        return Ok(());
    }
    Err(ApiError::too_large(MAX_EVENT_BYTES))
}

/// What makes two events the same one: node, object, reason, type, component and message.
fn identity(node: &NodeId, event: &EventRecord) -> String {
    let mut hash = Sha256::new();
    let key = event.key.to_string();
    let kind = match event.kind {
        EventKind::Normal => "N",
        EventKind::Warning => "W",
    };
    for part in [
        &node.0,
        &key,
        &event.uid,
        event.reason,
        kind,
        event.component,
        &event.message,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

/// Writes the first 32 hex digits in the form of a UUID.
pub(crate) fn uuid(hex: &str) -> String {
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32]
    )
}

fn truncated(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
