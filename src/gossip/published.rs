//! What this node says of itself in gossip: a bounded map of strings.
//!
//! The bounds matter to everybody: a value that does not fit a datagram would be delivered to nobody, and starve every
//! later value of its node.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use reconcilers::ports::{Announcer, NodeFacts};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{error, warn};

/// NodeFacts as JSON.
pub(super) const FACTS: &str = "facts";
/// [`store::Store::digest`].
pub(super) const DIGEST: &str = "digest";
/// [`READY`] or [`STOPPED`]; the last of the first values, so that whoever sees it has all that came before it.
pub(super) const STATE: &str = "state";
pub(super) const READY: &str = "ready";
pub(super) const STOPPED: &str = "stopped";
/// Before a pod's uid: its status as JSON.
pub(super) const POD_PREFIX: &str = "pod/";

/// A pod's status: aim 1 KiB, never above (DESIGN §3).
const POD_LIMIT: usize = 4 * 1024;
/// A node's facts; the labels of a node are what can be many.
const FACTS_LIMIT: usize = 16 * 1024;
/// All values of a node: 50 nodes hold 12.8 MiB of one another then.
const NODE_LIMIT: usize = 256 * 1024;
/// Of these, the statuses of its pods: the rest is for facts, digest and state (at most [`FACTS_LIMIT`] and some hundred
/// bytes), which always fit.
const PODS_LIMIT: usize = NODE_LIMIT - FACTS_LIMIT - 1024;
/// What is left of a text in a status that is too large.
const SHORTENED_TEXT: usize = 128;

/// The statuses that this node publishes, kept to count them.
#[derive(Default)]
pub(super) struct Published {
    /// Bytes by key.
    values: BTreeMap<String, usize>,
    /// Of all values.
    bytes: usize,
    /// Values without room, until others take less of it. Nobody says them again: to their pods they are said. No more
    /// than the node has pods.
    waiting: BTreeMap<String, String>,
}

impl Published {
    /// Takes values on their way out (None: a removal) and returns what is to be published of them and of those that
    /// waited: a pod's status without room goes out in its shortest form, if at least that fits.
    pub(super) fn admit(
        &mut self,
        fresh: BTreeMap<String, Option<String>>,
    ) -> BTreeMap<String, Option<String>> {
        let waited = std::mem::take(&mut self.waiting);
        let mut values: BTreeMap<_, _> = waited
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        values.extend(fresh);
        // What takes less than before goes first, for the others to have its room.
        let (shrinking, growing): (Vec<_>, Vec<_>) = values
            .into_iter()
            .partition(|(key, value)| size(key, value.as_deref()) <= self.size_of(key));
        let mut admitted = BTreeMap::new();
        for (key, value) in shrinking.into_iter().chain(growing) {
            if self.account(&key, value.as_deref()) {
                admitted.insert(key, value);
                continue;
            }
            let Some(value) = value else { continue };
            if !waited.contains_key(&key) {
                error!(
                    key,
                    "this node says more than gossip carries: a value is shortened or waits"
                );
            }
            let shortest = serde_json::from_str(&value).ok().map(|status| least(&status));
            if let Some(shortest) = shortest.filter(|shortest| self.account(&key, Some(shortest))) {
                admitted.insert(key.clone(), Some(shortest));
            }
            self.waiting.insert(key, value);
        }
        admitted
    }

    fn size_of(&self, key: &str) -> usize {
        self.values.get(key).copied().unwrap_or(0)
    }

    /// Accounts for a value (None: its removal). False: it does not fit, and must not be published.
    fn account(&mut self, key: &str, value: Option<&str>) -> bool {
        if !key.starts_with(POD_PREFIX) {
            return true;
        }
        let old = self.size_of(key);
        let new = size(key, value);
        // Taking away or shrinking always helps.
        if self.bytes - old + new > PODS_LIMIT && new > old {
            return false;
        }
        self.bytes = self.bytes - old + new;
        if value.is_some() {
            self.values.insert(key.to_owned(), new);
        } else {
            self.values.remove(key);
        }
        true
    }
}

/// What a value takes; None, a removal: nothing.
fn size(key: &str, value: Option<&str>) -> usize {
    value.map_or(0, |value| key.len() + value.len())
}

/// Brings a pod's status below [`POD_LIMIT`]: texts are cut first, then what endpoints and schedulers do not need
/// goes. None: not even that fits.
pub(super) fn fit_pod(status: Value) -> Option<String> {
    let text = status.to_string();
    if text.len() <= POD_LIMIT {
        return Some(text);
    }
    let mut status = status;
    shorten(&mut status);
    let text = status.to_string();
    if text.len() <= POD_LIMIT {
        return Some(text);
    }
    let text = least(&status);
    (text.len() <= POD_LIMIT).then_some(text)
}

/// Returns what endpoints and schedulers need of a pod's status.
fn least(status: &Value) -> String {
    let mut least = json!({ "reason": "StatusTooLarge" });
    for field in ["phase", "podIP", "podIPs", "hostIP", "startTime", "conditions"] {
        if let Some(value) = status.get(field) {
            least[field] = value.clone();
        }
    }
    least.to_string()
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(SHORTENED_TEXT) {
                text.truncate(end);
                text.push('…');
            }
        }
        Value::Array(list) => list.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Values on their way into gossip; the newest of each key, so no more than the node has keys.
#[derive(Default)]
pub(super) struct Announcements {
    pending: Mutex<BTreeMap<String, Option<String>>>,
    pub(super) changed: Notify,
}

impl Announcements {
    pub(super) fn put(&self, key: impl Into<String>, value: Option<String>) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.into(), value);
        self.changed.notify_one();
    }

    pub(super) fn take(&self) -> BTreeMap<String, Option<String>> {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Announcer for Announcements {
    fn announce_pod(&self, pod_uid: &str, status: Option<Value>) {
        let Some(status) = status else {
            self.put(format!("{POD_PREFIX}{pod_uid}"), None);
            return;
        };
        match fit_pod(status) {
            Some(text) => self.put(format!("{POD_PREFIX}{pod_uid}"), Some(text)),
            None => error!(
                pod_uid,
                limit = POD_LIMIT,
                "the status of a pod is too large for gossip"
            ),
        }
    }

    fn announce_node(&self, facts: NodeFacts) {
        match facts_text(&facts) {
            Some(text) => self.put(FACTS, Some(text)),
            None => warn!(
                limit = FACTS_LIMIT,
                "this node's labels are too large for gossip: it keeps the last"
            ),
        }
    }
}

/// The text form of a node's facts; None if they are too large.
pub(super) fn facts_text(facts: &NodeFacts) -> Option<String> {
    let text = serde_json::to_string(facts).ok()?;
    (text.len() <= FACTS_LIMIT).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_statuses_lose_texts_first_and_details_next() {
        let small = json!({"phase": "Running"});
        assert_eq!(fit_pod(small.clone()), Some(small.to_string()));

        let wordy = json!({"phase": "Pending", "podIP": "10.0.0.1", "message": "é".repeat(POD_LIMIT)});
        let fitted: Value = serde_json::from_str(&fit_pod(wordy).unwrap()).unwrap();
        assert_eq!(fitted["podIP"], "10.0.0.1");
        assert_eq!(
            fitted["message"].as_str().unwrap().chars().count(),
            SHORTENED_TEXT + 1
        );

        let containers: Vec<_> = (0..200)
            .map(|index| json!({"name": format!("container-{index}")}))
            .collect();
        let wide = json!({"phase": "Running", "containerStatuses": containers});
        let fitted: Value = serde_json::from_str(&fit_pod(wide).unwrap()).unwrap();
        assert_eq!(fitted["phase"], "Running");
        assert_eq!(fitted["reason"], "StatusTooLarge");

        let hopeless = json!({"conditions": vec![json!({"type": "x".repeat(100)}); 100]});
        assert_eq!(fit_pod(hopeless), None);
    }

    /// A status that takes `bytes`.
    fn status(phase: &str, bytes: usize) -> String {
        let mut status = json!({"phase": phase, "message": ""});
        let length = status.to_string().len();
        status["message"] = "x".repeat(bytes - length).into();
        status.to_string()
    }

    fn say<const N: usize>(
        published: &mut Published,
        values: [(String, Option<String>); N],
    ) -> BTreeMap<String, Option<String>> {
        let admitted = published.admit(values.into());
        assert!(published.bytes <= PODS_LIMIT);
        admitted
    }

    #[test]
    fn a_status_without_room_is_shortened_and_told_when_there_is_room() {
        let mut published = Published::default();
        let key = |number: usize| format!("pod/{number:03}");
        let full = status("Running", POD_LIMIT);
        let room = PODS_LIMIT / (POD_LIMIT + key(0).len());
        for number in 0..room {
            let admitted = say(&mut published, [(key(number), Some(full.clone()))]);
            assert_eq!(admitted[&key(number)].as_ref(), Some(&full), "{number}");
        }
        let late = status("Pending", POD_LIMIT);
        let admitted = say(&mut published, [(key(900), Some(late.clone()))]);
        let shortest: Value = serde_json::from_str(admitted[&key(900)].as_deref().unwrap()).unwrap();
        assert_eq!(shortest, json!({"phase": "Pending", "reason": "StatusTooLarge"}));

        let admitted = say(&mut published, [(key(0), Some("{}".to_owned()))]);
        assert_eq!(admitted[&key(900)].as_ref(), Some(&late), "nobody says it again");
        assert!(published.waiting.is_empty());
    }

    #[test]
    fn a_full_node_still_says_its_state_and_what_waits_is_forgotten_with_its_pod() {
        let mut published = Published::default();
        let key = |number: usize| format!("pod/{number:05}");
        let small = status("Running", 40);
        // Nothing fits any more, not even in the shortest form.
        let room = PODS_LIMIT / (small.len() + key(0).len());
        for number in 0..room {
            assert_eq!(say(&mut published, [(key(number), Some(small.clone()))]).len(), 1);
        }
        assert_eq!(say(&mut published, [(key(90_000), Some(small.clone()))]).len(), 0);
        let own = [(STATE, READY.len()), (DIGEST, 64), (FACTS, FACTS_LIMIT)];
        for (name, bytes) in own {
            let admitted = say(&mut published, [(name.to_owned(), Some("x".repeat(bytes)))]);
            assert_eq!(admitted.len(), 1, "{name}");
        }
        let admitted = say(&mut published, [(key(90_000), None), (key(1), None)]);
        assert_eq!(admitted.values().flatten().count(), 0, "{admitted:?}");
        assert_eq!(say(&mut published, [(key(90_001), Some(small))]).len(), 1);
    }

    #[test]
    fn of_announcements_the_newest_counts() {
        let announcements = Announcements::default();
        announcements.announce_pod("a", Some(json!({"phase": "Pending"})));
        announcements.announce_pod("a", Some(json!({"phase": "Running"})));
        announcements.announce_pod("b", None);
        let taken = announcements.take();
        assert_eq!(taken["pod/a"].as_deref(), Some(r#"{"phase":"Running"}"#));
        assert_eq!(taken["pod/b"], None);
        assert!(announcements.take().is_empty());
    }
}
