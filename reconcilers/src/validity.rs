//! Objects that are not valid although every edit of them was: two that were made at once can say what one could not
//! (`minReadySeconds` here, `progressDeadlineSeconds` there). They are stored as merged and shown with a condition. No
//! planner acts on them: what runs keeps running until somebody mends them. Pods, names and routes are kept as the last
//! form of them says that was valid.
//!
//! Objects of internal kinds are not looked at: agents alone write them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::{Object, ObjectKey, validate};
use serde_json::Value;

use crate::status::{condition, find_condition, put_condition};

/// The type of the condition, and the reason of the Event.
pub const MERGED_INVALID: &str = "MergedInvalid";
/// Errors that are named; who mends one sees the others.
const NAMED: usize = 3;
/// Objects whose faults are remembered; with more they are looked for anew. A cluster of 50 nodes has 5,500 pods, and may
/// have 10,000 other objects.
const REMEMBERED: usize = 16_384;

/// What is wrong with objects. Looked for once for each form of them, since it takes a while.
#[derive(Default)]
pub struct Faults {
    known: Mutex<HashMap<ObjectKey, Known>>,
}

struct Known {
    form: u64,
    fault: Option<String>,
    /// Of one that is not valid, the last form that was, once that was looked for.
    settled: Option<Option<Arc<Object>>>,
}

impl Faults {
    /// Says what is wrong with an object; None: it is valid.
    pub fn of(&self, object: &Object) -> Option<String> {
        self.fault_of(&object.key()?, form(object), object)
    }

    fn fault_of(&self, key: &ObjectKey, form: u64, object: &Object) -> Option<String> {
        let mut all = self.known();
        if let Some(known) = all.get(key).filter(|known| known.form == form) {
            return known.fault.clone();
        }
        let fault = fault(object);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        let known = Known {
            form,
            fault: fault.clone(),
            settled: None,
        };
        all.insert(key.clone(), known);
        fault
    }

    /// Returns an object that is valid, and of one that is not its last form that was; None: there was none. `forms` reads
    /// its earlier ones, the newest first.
    pub fn settled<I: Iterator<Item = Object>>(
        &self,
        object: &Arc<Object>,
        forms: impl FnOnce(&ObjectKey) -> I,
    ) -> Option<Arc<Object>> {
        let (key, form) = (object.key()?, form(object));
        if self.fault_of(&key, form, object).is_none() {
            return Some(object.clone());
        }
        let is_known = |known: &Known| (known.form == form).then(|| known.settled.clone()).flatten();
        if let Some(settled) = self.known().get(&key).and_then(is_known) {
            return settled;
        }
        let settled = forms(&key).find(|form| fault(form).is_none()).map(Arc::new);
        if let Some(known) = self.known().get_mut(&key).filter(|known| known.form == form) {
            known.settled = Some(settled.clone());
        }
        settled
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hashes all of an object but its status, which changes often. Its generation would not do: a fault can be in metadata.
fn form(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in &object.0 {
        match value {
            _ if name == "status" => {}
            Value::Object(metadata) if name == "metadata" => {
                let fields = metadata.iter().filter(|(name, _)| *name != "resourceVersion");
                fields.for_each(|field| field.hash(&mut hasher));
            }
            value => (name, value).hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// Names the first errors in what users and controllers wrote of an object.
fn fault(object: &Object) -> Option<String> {
    let errors = validate::validate(object);
    let written = errors.iter().filter(|error| !error.path.starts_with("status"));
    let named: Vec<String> = written.take(NAMED).map(ToString::to_string).collect();
    (!named.is_empty()).then(|| named.join("; "))
}

/// Adds to a status that the object is not valid, if it is not; `object` has the previous status. Returns what to tell
/// once: that it has become so.
pub fn show_fault(
    status: &mut Value,
    object: &Object,
    fault: Option<&str>,
    unix_seconds: i64,
) -> Option<String> {
    let Some(fault) = fault else {
        // A status that was taken over from before may say so still.
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
            conditions.retain(|condition| condition["type"] != MERGED_INVALID);
        }
        return None;
    };
    let previous = object.pointer("/status").cloned().unwrap_or(Value::Null);
    let message =
        format!("edits that were made at once do not fit together, and nothing is done about them: {fault}");
    let shown = condition(MERGED_INVALID, "True", "EditsDoNotFit", &message);
    put_condition(status, &previous, shown, unix_seconds);
    let is_new = find_condition(&previous, MERGED_INVALID).is_none();
    is_new.then_some(message)
}
