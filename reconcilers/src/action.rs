//! What planners of workloads and garbage decide, in terms of stored objects. Executed by `controller::act`.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::{Object, ObjectKey};

/// One write. Each is safe to repeat, and to be done by two nodes at once.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates an object with a derived name; that it exists is success.
    Create(Object),
    /// Sets `spec.replicas`, `spec.minReadySeconds` (if given) and annotations of an existing object.
    Set {
        key: ObjectKey,
        uid: String,
        replicas: Option<u32>,
        min_ready_seconds: Option<i64>,
        annotations: BTreeMap<String, String>,
    },
    /// Puts a pod on a node, if it is on none yet.
    Place {
        key: ObjectKey,
        uid: String,
        node: String,
        /// For [`crate::pod_state::MEMBER_ANNOTATION`].
        member: String,
    },
    /// Takes the owner with uid `owner` off a pod, which then is a pod of its own.
    Release {
        key: ObjectKey,
        uid: String,
        owner: String,
    },
    /// Marks an object as being deleted. A pod's node takes the last step, elsewhere who takes its last finalizer does.
    Delete { key: ObjectKey, uid: String },
    /// Marks an object as being deleted, to go when all that it owns is gone.
    DeleteForeground { key: ObjectKey, uid: String },
    /// Takes off an object the finalizer by which what it owns is seen to.
    Unhold { key: ObjectKey, uid: String },
    /// Removes an object for good.
    Remove { key: ObjectKey, uid: String },
}

/// The outcome of planning: what to do, what cannot be done, and when to look again although nothing changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Pods that fit nowhere.
    pub unplaced: Vec<Unplaced>,
    pub again: Option<Duration>,
}

/// A pod that no node can take.
#[derive(Clone, Debug, PartialEq)]
pub struct Unplaced {
    pub key: ObjectKey,
    /// Empty, if it is not created yet.
    pub uid: String,
    /// In Kubernetes' words (`0/3 nodes are available: …`).
    pub message: String,
}

impl Plan {
    /// Asks to plan again after `pause` or earlier.
    pub fn look_again(&mut self, pause: Duration) {
        self.again = Some(self.again.map_or(pause, |again| again.min(pause)));
    }
}
