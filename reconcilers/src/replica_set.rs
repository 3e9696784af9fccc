//! The pods of one ReplicaSet: as many active slots as replicas, one pod per slot.
//!
//! Each pod has a slot and an attempt (annotations), from which its name is derived, so that two owners make the same pods
//! and a healed partition knows which pods are one too many. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use crate::action::{Action, Plan, Unplaced};
use crate::derived::{hash, pod_name};
use crate::placement::Placement;
use crate::pod_state::{ATTEMPT_ANNOTATION, Host, MEMBER_ANNOTATION, Now, Phase, PodState, SLOT_ANNOTATION};
use schemas::time::from_rfc3339;

/// Pods that one plan makes of one ReplicaSet: Kubernetes' `BurstReplicas`. `spec.replicas` goes up to 2^31 - 1, and a plan
/// holds each pod in memory.
const CREATES_PER_PLAN: usize = 500;
/// Pods without a node beyond which no more are made: they show that there is no room, and each is tried again at every
/// change of a node. As many as one plan makes, more than four nodes can take.
const UNPLACED_MAX: usize = 500;
/// When to go on after [`CREATES_PER_PLAN`], should the pods just made not wake the next plan first.
const CREATES_PAUSE: Duration = Duration::from_secs(1);
/// Kubernetes' wish of a user which pods to remove first (the lowest).
const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A ReplicaSet with what its pods are to become.
#[derive(Clone, Copy)]
pub struct Pods<'a> {
    pub replica_set: &'a Object,
    /// How many are wanted; may be ahead of the document's `spec.replicas`.
    pub replicas: u32,
    /// All pods that it controls.
    pub pods: &'a [PodState],
    /// As in [`crate::deployment::ReplicaSetState::taken_names`].
    pub taken_names: &'a BTreeSet<String>,
}

/// A slot: numbered, or that of a pod that somebody else made and that has no number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Slot<'a> {
    Numbered(u32),
    Loose(&'a str),
}

fn slot_of(pod: &PodState) -> Slot<'_> {
    pod.slot().map_or(Slot::Loose(pod.name()), Slot::Numbered)
}

/// The active pods of a slot.
struct Filled<'a> {
    /// Counts as the replica: of the ready pods, or else of all, the one of the lowest attempt.
    kept: &'a PodState,
    surplus: Vec<&'a PodState>,
}

fn filled(pods: &[PodState]) -> BTreeMap<Slot<'_>, Filled<'_>> {
    let mut slots: BTreeMap<Slot<'_>, Filled<'_>> = BTreeMap::new();
    let mut active: Vec<&PodState> = pods.iter().filter(|pod| pod.is_active()).collect();
    active.sort_by_key(|pod| (pod.ready_since.is_none(), pod.attempt(), pod.name()));
    for pod in active {
        match slots.get_mut(&slot_of(pod)) {
            Some(filled) => filled.surplus.push(pod),
            None => {
                let surplus = Vec::new();
                slots.insert(slot_of(pod), Filled { kept: pod, surplus });
            }
        }
    }
    slots
}

/// How many replicas there are, by slots: a pod that is one too many for a while does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub replicas: u32,
    pub ready: u32,
    pub available: u32,
}

/// Counts the filled slots.
pub fn counts(pods: &[PodState], min_ready_seconds: i64, now: Now) -> Counts {
    let mut counts = Counts::default();
    for slot in filled(pods).values() {
        counts.replicas += 1;
        counts.ready += u32::from(slot.kept.ready_since.is_some());
        counts.available += u32::from(slot.kept.is_available(min_ready_seconds, now));
    }
    counts
}

/// Returns `spec.minReadySeconds`.
pub fn min_ready_seconds(owner: &Object) -> i64 {
    owner.i64_at("/spec/minReadySeconds").unwrap_or_default()
}

/// Adds to `plan` what brings the pods of one ReplicaSet in line. `carried` counts the pods of the whole workload by node
/// and grows with what is created here.
pub fn plan(
    set: Pods<'_>,
    carried: &mut BTreeMap<String, u32>,
    placement: &mut Placement,
    now: Now,
    plan: &mut Plan,
) {
    let min_ready = min_ready_seconds(set.replica_set);
    let mut slots = filled(set.pods);
    let wanted = usize::try_from(set.replicas).unwrap_or(usize::MAX);
    let surplus = slots.len().saturating_sub(wanted);
    for victim in victims(&slots, surplus, min_ready, now) {
        let Some(slot) = slots.remove(&victim) else {
            continue;
        };
        plan.actions.extend(slot.kept.end());
        plan.actions
            .extend(slot.surplus.iter().filter_map(|pod| pod.end()));
    }
    for slot in slots.values() {
        let here = |pod: &PodState| matches!(pod.host, Host::None | Host::Live);
        if here(slot.kept) && slot.surplus.iter().all(|pod| here(pod)) {
            plan.actions
                .extend(slot.surplus.iter().filter_map(|pod| pod.end()));
        }
    }
    let mut own: BTreeMap<String, u32> = BTreeMap::new();
    for slot in slots.values().filter(|slot| slot.kept.host != Host::None) {
        *own.entry(slot.kept.node().to_owned()).or_default() += 1;
    }
    let mut chooser = Chooser {
        own,
        carried,
        placement,
    };
    let unplaced_before = plan.unplaced.len();
    for slot in slots.values().filter(|slot| slot.kept.host == Host::None) {
        place(slot.kept, &mut chooser, plan);
    }
    let mut numbers: BTreeSet<u32> = slots
        .keys()
        .filter_map(|slot| match slot {
            Slot::Numbered(number) => Some(*number),
            Slot::Loose(_) => None,
        })
        .collect();
    let free = (0..u32::MAX).filter({
        let taken = numbers.clone();
        move |number| !taken.contains(number)
    });
    let missing = wanted.saturating_sub(slots.len());
    for number in free.take(missing.min(CREATES_PER_PLAN)) {
        // A node that takes one of them wakes the next plan.
        if plan.unplaced.len() - unplaced_before >= UNPLACED_MAX {
            break;
        }
        numbers.insert(number);
        create(set, number, &mut chooser, plan);
    }
    if missing > CREATES_PER_PLAN && plan.unplaced.len() - unplaced_before < UNPLACED_MAX {
        plan.look_again(CREATES_PAUSE);
    }
    for pod in set.pods.iter().filter(|pod| !pod.is_active()) {
        let slot_is_kept = pod.slot().is_some_and(|number| numbers.contains(&number));
        match pod.host {
            // It may still run there: when the node returns, the slot keeps the better one.
            Host::Lost if slot_is_kept && !pod.is_finished() && !pod.object.is_terminating() => {}
            Host::None | Host::Live | Host::Away(_) | Host::Lost | Host::Removed | Host::Nowhere => {
                plan.actions.extend(pod.end());
            }
        }
    }
    for slot in slots.values() {
        if let Some(rest) = slot
            .kept
            .available_in(min_ready, now)
            .filter(|rest| !rest.is_zero())
        {
            plan.look_again(rest);
        }
    }
}

/// Chooses the slots to give up, first to last: as Kubernetes ranks pods, but what is not available goes before what is, so
/// that a rollout never takes an available pod while it could take another. Of equals, one of the node that has the most
/// goes, counted without those that went before.
fn victims<'a>(
    slots: &BTreeMap<Slot<'a>, Filled<'a>>,
    count: usize,
    min_ready: i64,
    now: Now,
) -> Vec<Slot<'a>> {
    if count == 0 {
        return Vec::new();
    }
    let rank = |pod: &PodState| {
        let live = match pod.host {
            Host::None | Host::Live => true,
            Host::Away(_) | Host::Lost | Host::Removed | Host::Nowhere => false,
        };
        let cost = pod.object.annotation(DELETION_COST_ANNOTATION);
        let created = from_rfc3339(pod.object.str_at("/metadata/creationTimestamp"));
        let class = (
            (
                pod.host != Host::None,
                live || pod.ready_since.is_some(),
                pod.phase >= Phase::Running,
            ),
            (pod.ready_since.is_some(), pod.is_available(min_ready, now), live),
            cost.and_then(|cost| cost.parse::<i32>().ok()).unwrap_or_default(),
        );
        let among_equals = (
            (Reverse(pod.ready_since), Reverse(pod.restarts), Reverse(created)),
            hash(&["victim", pod.name(), pod.node()]),
        );
        (class, among_equals)
    };
    let ranked = slots
        .iter()
        .map(|(slot, filled)| (rank(filled.kept), slot, filled.kept.node()));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort();
    // How many a node still has when it is the turn of a pod: those that go later, and itself.
    let mut together: BTreeMap<&str, u32> = BTreeMap::new();
    let mut order: Vec<_> = ranked
        .into_iter()
        .rev()
        .map(|((class, among_equals), slot, node)| {
            let here = together.entry(node).or_default();
            *here += 1;
            (class, Reverse(*here), among_equals, slot)
        })
        .collect();
    order.sort();
    order
        .into_iter()
        .take(count)
        .map(|(.., slot)| slot.clone())
        .collect()
}

/// Chooses nodes while a plan grows.
pub(crate) struct Chooser<'a> {
    /// Pods of the same ReplicaSet by node: what a rollout ends with is spread.
    pub(crate) own: BTreeMap<String, u32>,
    /// Pods of the whole workload by node.
    pub(crate) carried: &'a mut BTreeMap<String, u32>,
    pub(crate) placement: &'a mut Placement,
}

impl Chooser<'_> {
    /// Chooses a node and counts the pod to it; returns the node's name and member annotation.
    fn choose(&mut self, pod: &Object) -> Result<(String, String), String> {
        let seed = format!("{}/{}", pod.namespace(), pod.name());
        let count =
            |counts: &BTreeMap<String, u32>, node: &str| counts.get(node).copied().unwrap_or_default();
        let node = self
            .placement
            .choose(pod, &seed, |node| {
                (count(&self.own, node), count(self.carried, node))
            })
            .map_err(|misfit| misfit.to_string())?;
        let (name, member) = (node.name.clone(), node.member());
        self.placement.occupy(&name, pod);
        *self.own.entry(name.clone()).or_default() += 1;
        *self.carried.entry(name.clone()).or_default() += 1;
        Ok((name, member))
    }
}

/// Puts a pod without a node on one, if one can take it.
pub(crate) fn place(pod: &PodState, chooser: &mut Chooser<'_>, plan: &mut Plan) {
    let (key, uid) = (pod.key(), pod.object.uid().to_owned());
    match chooser.choose(&pod.object) {
        Ok((node, member)) => plan.actions.push(Action::Place {
            key,
            uid,
            node,
            member,
        }),
        Err(message) => plan.unplaced.push(Unplaced { key, uid, message }),
    }
}

fn create(set: Pods<'_>, number: u32, chooser: &mut Chooser<'_>, plan: &mut Plan) {
    let owner = set.replica_set;
    let earlier = set.pods.iter().filter(|pod| pod.slot() == Some(number));
    let mut attempt = earlier
        .map(|pod| pod.attempt().saturating_add(1))
        .max()
        .unwrap_or_default();
    let name = loop {
        let name = pod_name(owner.name(), owner.uid(), number, attempt);
        // Five letters may collide with a pod of another slot, a pod that was taken out keeps its name, and one that was
        // removed is still known by it; step over it, as both owners would that know the same. Of two pods in a slot one goes.
        if !set.pods.iter().any(|pod| pod.name() == name) && !set.taken_names.contains(&name) {
            break name;
        }
        attempt = attempt.saturating_add(1);
    };
    let mut pod = from_template(owner, &name);
    pod.set(&["metadata", "annotations", SLOT_ANNOTATION], number.to_string());
    pod.set(
        &["metadata", "annotations", ATTEMPT_ANNOTATION],
        attempt.to_string(),
    );
    // A template may name a node itself, as in Kubernetes.
    if pod.str_at("/spec/nodeName").is_empty() {
        match chooser.choose(&pod) {
            Ok((node, member)) => {
                pod.set(&["spec", "nodeName"], node);
                pod.set(&["metadata", "annotations", MEMBER_ANNOTATION], member);
            }
            Err(message) => plan.unplaced.push(Unplaced {
                key: ObjectKey::new(Kind::Pod, pod.namespace(), pod.name()),
                uid: String::new(),
                message,
            }),
        }
    }
    plan.actions.push(Action::Create(pod));
}

/// Makes a pod of a ReplicaSet's template, owned by it.
fn from_template(owner: &Object, name: &str) -> Object {
    let mut pod = Object::new(&ObjectKey::new(Kind::Pod, owner.namespace(), name));
    for map in ["labels", "annotations"] {
        if let Some(value) = owner.pointer(&format!("/spec/template/metadata/{map}")) {
            pod.set(&["metadata", map], value.clone());
        }
    }
    pod.set(&["metadata", "generateName"], format!("{}-", owner.name()));
    pod.set(
        &["metadata", "ownerReferences"],
        json!([controller_reference(owner)]),
    );
    pod.set(
        &["spec"],
        owner
            .pointer("/spec/template/spec")
            .cloned()
            .unwrap_or_else(|| json!({})),
    );
    pod
}

/// Makes the entry of `metadata.ownerReferences` for what `owner` controls.
pub(crate) fn controller_reference(owner: &Object) -> Value {
    json!({
        "apiVersion": owner.str_at("/apiVersion"),
        "kind": owner.str_at("/kind"),
        "name": owner.name(),
        "uid": owner.uid(),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}
