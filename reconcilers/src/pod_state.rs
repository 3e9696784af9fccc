//! A pod as planners see it: its place in the workload, its node's fate, its readiness.

use std::sync::Arc;
use std::time::Duration;

use schemas::deletion::is_held;
use schemas::{Object, ObjectKey};
use serde_json::Value;

use crate::action::Action;
use crate::nodes::Nodes;
use crate::ports::{Liveness, Moment};
use crate::status::find_condition;
use schemas::time::from_rfc3339;

/// Which of the replicas of its ReplicaSet a pod is (decimal).
pub const SLOT_ANNOTATION: &str = "podman-swarm.io/slot";
/// How often this slot was filled before (decimal).
pub const ATTEMPT_ANNOTATION: &str = "podman-swarm.io/attempt";
/// `<id>/<uid>` of the Member that the pod was placed on, by us or by a user: tells a removed node from one not heard of
/// yet.
pub const MEMBER_ANNOTATION: &str = "podman-swarm.io/member";

/// After a node is seen dead, its pods are replaced. Seeing it takes up to 5.5 s and starting a pod about 1 s: with
/// [`crate::ownership::SETTLE`] all is well again below 10 s.
pub const DEAD_GRACE: Duration = Duration::from_secs(2);

/// When planners count a pod as lost with its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Graces {
    pub dead: Duration,
    /// `--restart-grace`: an agent that stopped or died alone, whose containers are taken to run; also a node that was not
    /// heard of since this agent started.
    pub restart: Duration,
}

impl Default for Graces {
    fn default() -> Self {
        Self {
            dead: DEAD_GRACE,
            restart: Duration::from_secs(60),
        }
    }
}

/// The two clocks of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    pub moment: Moment,
    /// For comparison with timestamps that other nodes wrote.
    pub unix_seconds: i64,
}

/// What became of the node that a pod was put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// It was put on none yet.
    None,
    Live,
    /// Not there, but it may return: lost after this time. `None`: this agent has not heard of the node yet.
    Away(Option<Duration>),
    /// Not there beyond its grace, but admitted: it may return with the pod running.
    Lost,
    /// No member any more.
    Removed,
    /// A user named a node that is no member: it may become one. Nothing runs there.
    Nowhere,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    Pending,
    Unknown,
    Running,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug)]
pub struct PodState {
    pub object: Arc<Object>,
    pub host: Host,
    pub phase: Phase,
    /// Seconds since the Unix epoch, if it is ready now.
    pub ready_since: Option<i64>,
    pub restarts: i64,
}

impl PodState {
    /// Reads a pod's view. `removed` tells whether the Member in [`MEMBER_ANNOTATION`] has a tombstone.
    pub fn read(
        object: Arc<Object>,
        nodes: &Nodes,
        removed: impl Fn(&str) -> bool,
        graces: Graces,
        now: Moment,
    ) -> Self {
        let node = object.str_at("/spec/nodeName");
        let known = nodes.get(node);
        let host = match known {
            _ if node.is_empty() => Host::None,
            Some(node) => {
                let grace = match node.liveness {
                    Liveness::Alive => None,
                    Liveness::Stopped | Liveness::AgentDown => Some(graces.restart),
                    Liveness::Dead if node.seen => Some(graces.dead),
                    Liveness::Dead => Some(graces.restart),
                };
                match grace.map(|grace| grace.saturating_sub(now.since(node.since))) {
                    None => Host::Live,
                    Some(Duration::ZERO) => Host::Lost,
                    Some(rest) => Host::Away(Some(rest)),
                }
            }
            None => match object.annotation(MEMBER_ANNOTATION) {
                Some(member) if removed(member) => Host::Removed,
                Some(_) => Host::Away(None),
                None => Host::Nowhere,
            },
        };
        let dead = known.is_some_and(|node| node.liveness == Liveness::Dead);
        let phase = match object.str_at("/status/phase") {
            "" | "Pending" => Phase::Pending,
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            _ => Phase::Unknown,
        };
        let ready_since = ready_condition(&object)
            .filter(|ready| !dead && ready["status"] == "True")
            .map(|ready| {
                ready["lastTransitionTime"]
                    .as_str()
                    .and_then(from_rfc3339)
                    .unwrap_or_default()
            });
        let statuses = object
            .pointer("/status/containerStatuses")
            .and_then(Value::as_array);
        let restarts = statuses
            .into_iter()
            .flatten()
            .filter_map(|status| status["restartCount"].as_i64())
            .sum();
        Self {
            host,
            phase,
            ready_since,
            restarts,
            object,
        }
    }

    pub fn name(&self) -> &str {
        self.object.name()
    }

    pub fn node(&self) -> &str {
        self.object.str_at("/spec/nodeName")
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(schemas::Kind::Pod, self.object.namespace(), self.object.name())
    }

    pub fn slot(&self) -> Option<u32> {
        self.object.annotation(SLOT_ANNOTATION)?.parse().ok()
    }

    pub fn attempt(&self) -> u32 {
        self.object
            .annotation(ATTEMPT_ANNOTATION)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    }

    /// Succeeded or failed for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Counts as one of the replicas: it runs, or may be expected to.
    pub fn is_active(&self) -> bool {
        let there = match self.host {
            Host::None | Host::Live | Host::Away(_) | Host::Nowhere => true,
            Host::Lost | Host::Removed => false,
        };
        there && !self.is_finished() && !self.object.is_terminating()
    }

    /// Has been ready for `min_ready_seconds`.
    pub fn is_available(&self, min_ready_seconds: i64, now: Now) -> bool {
        self.available_in(min_ready_seconds, now) == Some(Duration::ZERO)
    }

    /// Returns how long until it is available if it stays ready, `min_ready_seconds` at most; None if it is not ready.
    pub fn available_in(&self, min_ready_seconds: i64, now: Now) -> Option<Duration> {
        // Its node's clock may be ahead of ours.
        let ready_for = now.unix_seconds.saturating_sub(self.ready_since?).max(0);
        let rest = min_ready_seconds.saturating_sub(ready_for).max(0);
        Some(Duration::from_secs(rest.unsigned_abs()))
    }

    /// Plans the next step towards the end of this pod, if it is ours: a live node ends it itself, and its finalizers hold
    /// it wherever it is.
    pub fn end(&self) -> Option<Action> {
        let (key, uid) = (self.key(), self.object.uid().to_owned());
        let goes_at_once = match self.host {
            Host::None | Host::Lost | Host::Removed | Host::Nowhere => !is_held(&self.object),
            Host::Live | Host::Away(_) => false,
        };
        match (goes_at_once, self.object.is_terminating()) {
            (true, _) => Some(Action::Remove { key, uid }),
            (false, true) => None,
            (false, false) => Some(Action::Delete { key, uid }),
        }
    }
}

/// Returns the condition `Ready` of a pod or node.
pub(crate) fn ready_condition(object: &Object) -> Option<&Value> {
    find_condition(object.pointer("/status")?, "Ready")
}

#[cfg(test)]
mod tests {
    use schemas::Kind;
    use serde_json::json;

    use super::*;
    use crate::nodes::testing::{node, nodes};

    fn seconds(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn a_pod_is_lost_after_the_grace_of_its_nodes_state() {
        let all = nodes([
            node("live"),
            node("dead").liveness(Liveness::Dead, seconds(100)),
            node("stopped").liveness(Liveness::Stopped, seconds(100)),
            node("unseen").unseen(),
        ]);
        for (name, at, expected) in [
            ("", 200, Host::None),
            ("live", 200, Host::Live),
            ("dead", 101, Host::Away(Some(Duration::from_secs(1)))),
            ("dead", 102, Host::Lost),
            ("stopped", 159, Host::Away(Some(Duration::from_secs(1)))),
            ("stopped", 160, Host::Lost),
            ("unseen", 59, Host::Away(Some(Duration::from_secs(1)))),
            ("unseen", 60, Host::Lost),
            ("removed", 200, Host::Removed),
            ("unheard-of", 200, Host::Away(None)),
            ("typo", 200, Host::Nowhere),
        ] {
            let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", "web"));
            pod.set(&["spec", "nodeName"], name);
            if name != "typo" {
                pod.set(
                    &["metadata", "annotations", MEMBER_ANNOTATION],
                    format!("{name}/uid"),
                );
            }
            let removed = |member: &str| member == "removed/uid";
            let state = PodState::read(Arc::new(pod), &all, removed, Graces::default(), seconds(at));
            assert_eq!(state.host, expected, "{name} at {at} s");
        }
    }

    #[test]
    fn finalizers_hold_a_pod_without_a_node_too() {
        let all = nodes([node("live")]);
        for (name, is_held, terminating, expected) in [
            ("", false, false, Some("remove")),
            ("", true, false, Some("delete")),
            ("", true, true, None),
            ("live", false, false, Some("delete")),
            ("live", false, true, None),
        ] {
            let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", "web"));
            pod.set(&["spec", "nodeName"], name);
            if is_held {
                pod.set(&["metadata", "finalizers"], json!(["example.com/hold"]));
            }
            if terminating {
                pod.set(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
            }
            let state = PodState::read(Arc::new(pod), &all, |_| false, Graces::default(), seconds(1));
            let action = state.end().map(|action| match action {
                Action::Delete { .. } => "delete",
                _ => "remove",
            });
            assert_eq!(action, expected, "{name} {is_held} {terminating}");
        }
    }

    #[test]
    fn a_dead_node_has_no_ready_pods_and_a_stopped_agent_keeps_them() {
        for (liveness, expected) in [
            (Liveness::Alive, Some(1_767_225_600)),
            (Liveness::Stopped, Some(1_767_225_600)),
            (Liveness::AgentDown, Some(1_767_225_600)),
            (Liveness::Dead, None),
        ] {
            let all = nodes([node("a").liveness(liveness, seconds(0))]);
            let mut pod = Object::new(&ObjectKey::new(Kind::Pod, "default", "web"));
            pod.set(&["spec", "nodeName"], "a");
            pod.set(
                &["status", "conditions"],
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]),
            );
            let state = PodState::read(Arc::new(pod), &all, |_| false, Graces::default(), seconds(1));
            assert_eq!(state.ready_since, expected, "{liveness:?}");
            let now = |unix_seconds| Now {
                moment: seconds(1),
                unix_seconds,
            };
            assert_eq!(
                state.available_in(30, now(1_767_225_610)),
                expected.map(|_| Duration::from_secs(20))
            );
            let its_clock_is_ahead = now(1_767_225_000);
            for wait in [0, 30] {
                assert_eq!(
                    state.available_in(wait, its_clock_is_ahead),
                    expected.map(|_| Duration::from_secs(wait.unsigned_abs()))
                );
            }
        }
    }
}
