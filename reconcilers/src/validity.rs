//! Objects that are not valid although every edit of them was: two that were made at once can say what one could not
//! (`minReadySeconds` here, `progressDeadlineSeconds` there). They are stored as merged and shown with a condition. No
//! planner of workloads acts on them: what runs keeps running until somebody mends them. Names and routes are made from
//! the last form of them that was valid.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::{Object, ObjectKey, validate};
use serde_json::Value;

use crate::status::{condition, find_condition, put_condition};

/// The type of the condition, and the reason of the Event.
pub const MERGED_INVALID: &str = "MergedInvalid";
/// Errors that are named; who mends one sees the others.
const NAMED: usize = 3;
/// Objects whose faults are remembered; with more they are looked for anew.
const REMEMBERED: usize = 8192;

/// What is wrong with objects. Looked for once for each `metadata.generation`, since it takes a while.
#[derive(Default)]
pub struct Faults {
    known: Mutex<HashMap<ObjectKey, Known>>,
}

struct Known {
    uid: String,
    generation: i64,
    fault: Option<String>,
    /// Of one that is not valid, the last form that was, once that was looked for.
    settled: Option<Option<Arc<Object>>>,
}

impl Faults {
    /// Says what is wrong with an object; None: it is valid.
    pub fn of(&self, object: &Object) -> Option<String> {
        let key = object.key()?;
        let mut all = self.known();
        if let Some(known) = all.get(&key).filter(|known| known.is_of(object)) {
            return known.fault.clone();
        }
        let fault = fault(object);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        let known = Known {
            uid: object.uid().to_owned(),
            generation: object.generation(),
            fault: fault.clone(),
            settled: None,
        };
        all.insert(key, known);
        fault
    }

    /// Returns an object that is valid, and of one that is not its last form that was; None: there was none. `forms` reads
    /// its earlier ones, the newest first.
    pub fn settled<I: Iterator<Item = Object>>(
        &self,
        object: &Arc<Object>,
        forms: impl FnOnce(&ObjectKey) -> I,
    ) -> Option<Arc<Object>> {
        if self.of(object).is_none() {
            return Some(object.clone());
        }
        let key = object.key()?;
        let is_known = |known: &Known| known.is_of(object).then(|| known.settled.clone()).flatten();
        if let Some(settled) = self.known().get(&key).and_then(is_known) {
            return settled;
        }
        let settled = forms(&key).find(|form| fault(form).is_none()).map(Arc::new);
        if let Some(known) = self.known().get_mut(&key).filter(|known| known.is_of(object)) {
            known.settled = Some(settled.clone());
        }
        settled
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_of(&self, object: &Object) -> bool {
        self.uid == object.uid() && self.generation == object.generation()
    }
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
    let fault = fault?;
    let previous = object.pointer("/status").cloned().unwrap_or(Value::Null);
    let message =
        format!("edits that were made at once do not fit together, and nothing is done about them: {fault}");
    let shown = condition(MERGED_INVALID, "True", "EditsDoNotFit", &message);
    put_condition(status, &previous, shown, unix_seconds);
    let is_new = find_condition(&previous, MERGED_INVALID).is_none();
    is_new.then_some(message)
}
