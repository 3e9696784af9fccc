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
/// What is left of a text in a status that is too large.
const SHORTENED_TEXT: usize = 128;

/// This node's values, kept to count them.
#[derive(Default)]
pub(super) struct Published {
    values: BTreeMap<String, usize>,
    bytes: usize,
}

impl Published {
    /// Accounts for a value (None: its removal). False: it does not fit, and must not be published.
    pub(super) fn account(&mut self, key: &str, value: Option<&str>) -> bool {
        let old = self.values.get(key).copied().unwrap_or(0);
        let new = value.map_or(0, |value| key.len() + value.len());
        // Taking away or shrinking always helps.
        if self.bytes - old + new > NODE_LIMIT && new > old {
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
    let mut least = json!({ "reason": "StatusTooLarge" });
    for field in ["phase", "podIP", "podIPs", "hostIP", "startTime", "conditions"] {
        if let Some(value) = status.get(field) {
            least[field] = value.clone();
        }
    }
    let text = least.to_string();
    (text.len() <= POD_LIMIT).then_some(text)
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

    #[test]
    fn a_node_publishes_no_more_than_its_share() {
        let mut published = Published::default();
        let value = "x".repeat(POD_LIMIT);
        let mut accepted = 0;
        while published.account(&format!("pod/{accepted}"), Some(&value)) {
            accepted += 1;
        }
        assert_eq!(accepted, NODE_LIMIT / (POD_LIMIT + "pod/00".len()));
        assert!(!published.account("pod/more", Some(&value)));
        assert!(published.account("pod/0", Some("smaller")));
        assert!(published.account("pod/1", None));
        assert!(published.account("pod/more", Some(&value)));
        assert!(published.bytes <= NODE_LIMIT);
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
