//! The ReplicaSets of a Deployment: one per template (with its defaults), revisions for rollback, history.
//!
//! How many replicas each gets is decided in [`crate::rollout`], their pods in [`crate::replica_set`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::selector::LabelSelector;
use schemas::validate::defaulted;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Map, Value, json};

use crate::action::{Action, Plan};
use crate::derived::template_hash;
use crate::garbage::end;
use crate::pod_state::{Host, Now, PodState};
use crate::replica_set::{controller_reference, counts, min_ready_seconds};
use crate::rollout::{Rollout, Scaled, Strategy};

/// The label that tells the ReplicaSets of a Deployment, and their pods, apart.
pub const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";
/// Which rollout a ReplicaSet belongs to; `kubectl rollout history` and `undo` read it.
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY_ANNOTATION: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS_ANNOTATION: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS_ANNOTATION: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that are its own; the others are copied to its newest ReplicaSet.
const OWN_ANNOTATIONS: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION_ANNOTATION,
    REVISION_HISTORY_ANNOTATION,
    DESIRED_REPLICAS_ANNOTATION,
    MAX_REPLICAS_ANNOTATION,
];
/// Kubernetes' default of `spec.revisionHistoryLimit`.
const REVISION_HISTORY_LIMIT: i64 = 10;

/// A ReplicaSet and its pods, and, once planned, how many there are to be.
#[derive(Clone, Debug)]
pub struct ReplicaSetState {
    pub object: Arc<Object>,
    pub pods: Vec<PodState>,
    /// Pods that it controls although its selector does not match their labels: somebody took them out.
    pub strangers: Vec<PodState>,
    /// Names that new pods of this set cannot have: other pods have them, or had them until a while ago.
    pub taken_names: BTreeSet<String>,
    pub replicas: u32,
}

impl ReplicaSetState {
    pub fn new(object: Arc<Object>, pods: Vec<PodState>) -> Self {
        let selector = selector(&object);
        let is_own = |pod: &PodState| {
            selector
                .as_ref()
                .is_none_or(|selector| selector.matches_object(&pod.object))
        };
        let (pods, strangers) = pods.into_iter().partition::<Vec<_>, _>(is_own);
        let replicas = replicas(&object);
        Self {
            object,
            taken_names: strangers.iter().map(|pod| pod.name().to_owned()).collect(),
            pods,
            strangers,
            replicas,
        }
    }

    fn revision(&self) -> u64 {
        revision(&self.object)
    }
}

/// Returns `spec.selector` if it decides whose pods are whose: a set whose own template it does not match would make pods
/// without end, and one that is being deleted takes its pods along.
fn selector(set: &Object) -> Option<LabelSelector> {
    let selector = LabelSelector::from_object(set.pointer("/spec/selector")?).ok()?;
    let labels = set.pointer("/spec/template/metadata/labels")?;
    let decides = selector.matches(|key| labels[key].as_str()) && !set.is_terminating();
    decides.then_some(selector)
}

/// Returns `spec.replicas`, by default 1.
pub fn replicas(object: &Object) -> u32 {
    object
        .i64_at("/spec/replicas")
        .map_or(1, |replicas| u32::try_from(replicas.max(0)).unwrap_or(u32::MAX))
}

/// Returns the name of the ReplicaSet of a Deployment's present template; None if the template is missing. Of `sets`, its
/// own, one whose template differs in written or left out defaults alone is taken, so that nothing restarts for them.
pub fn new_replica_set_name(deployment: &Object, sets: &[ReplicaSetState]) -> Option<String> {
    let hash = template_hash(deployment.pointer("/spec/template")?);
    let name = format!("{}-{hash}", deployment.name());
    if sets.iter().any(|set| set.object.name() == name) {
        return Some(name);
    }
    let wanted = defaulted_template(deployment);
    let same = sets
        .iter()
        .filter(|set| defaulted_template(&set.object) == wanted)
        .max_by_key(|set| (set.revision(), set.object.name()));
    Some(same.map_or(name, |set| set.object.name().to_owned()))
}

/// Returns the template with Kubernetes' defaults, and without the label that is ours.
fn defaulted_template(owner: &Object) -> Option<Value> {
    let mut template = defaulted(owner).pointer("/spec/template").cloned()?;
    if let Some(labels) = template
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.remove(TEMPLATE_HASH_LABEL);
    }
    Some(template)
}

/// Returns `spec.strategy` in pods.
pub fn strategy(deployment: &Object) -> Strategy {
    Strategy::read(deployment.pointer("/spec/strategy"), replicas(deployment))
}

fn revision(object: &Object) -> u64 {
    object
        .annotation(REVISION_ANNOTATION)
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

fn number(object: &Object, annotation: &str) -> Option<u32> {
    object.annotation(annotation)?.parse().ok()
}

/// Adds to `plan` what brings the ReplicaSets of a Deployment in line, and sets the `replicas` of each, so that their
/// pods can be planned at once. Sets that are removed are taken out of `sets`.
pub fn plan(deployment: &Object, sets: &mut Vec<ReplicaSetState>, now: Now, plan: &mut Plan) {
    let Some(new_name) = new_replica_set_name(deployment, sets) else {
        return;
    };
    let paused = deployment.pointer("/spec/paused").and_then(Value::as_bool) == Some(true);
    sets.sort_by(|one, other| {
        let age = |set: &ReplicaSetState| {
            (
                set.object.name() == new_name,
                set.revision(),
                set.object.str_at("/metadata/creationTimestamp").to_owned(),
                set.object.name().to_owned(),
            )
        };
        age(one).cmp(&age(other))
    });
    let exists = sets.last().is_some_and(|set| set.object.name() == new_name);
    let old_count = if exists { sets.len() - 1 } else { sets.len() };
    let old_pods_run = sets.iter().take(old_count).flat_map(|set| &set.pods).any(may_run);

    let replicas = replicas(deployment);
    let strategy = strategy(deployment);
    let must_wait = paused || (strategy == Strategy::Recreate && old_pods_run);
    let create = !exists && !must_wait;
    let in_numbers = |set: &ReplicaSetState| Scaled {
        replicas: set.replicas,
        available: counts(&set.pods, min_ready_seconds(&set.object), now).available,
        desired: number(&set.object, DESIRED_REPLICAS_ANNOTATION),
        max: number(&set.object, MAX_REPLICAS_ANNOTATION),
    };
    let mut rollout = Rollout {
        old: sets.iter().take(old_count).map(in_numbers).collect(),
        new: match sets.get(old_count) {
            Some(set) => Some(in_numbers(set)),
            None => create.then(Scaled::default),
        },
    };
    if paused {
        rollout.rescale(replicas, strategy);
    } else {
        rollout.roll(replicas, strategy, old_pods_run);
    }

    let newest_revision = sets.iter().take(old_count).map(ReplicaSetState::revision).max();
    let new_revision = newest_revision.unwrap_or_default() + 1;
    for (index, (set, scaled)) in sets
        .iter_mut()
        .zip(rollout.old.iter().chain(&rollout.new))
        .enumerate()
    {
        let mut annotations = size_annotations(scaled);
        let mut min_ready = min_ready_seconds(&set.object);
        if index == old_count && !paused {
            min_ready = min_ready_seconds(deployment);
            annotations.extend(copied_annotations(deployment));
            annotations.extend(revision_annotations(&set.object, new_revision));
        }
        set_if_changed(&set.object, Some((scaled.replicas, min_ready)), annotations, plan);
        set.replicas = scaled.replicas;
    }
    if create {
        let scaled = rollout.new.unwrap_or_default();
        let mut annotations = copied_annotations(deployment);
        annotations.extend(size_annotations(&scaled));
        annotations.extend(revision_annotations(&Object::default(), new_revision));
        let set = new_replica_set(deployment, &new_name, scaled.replicas, annotations);
        plan.actions.push(Action::Create(set));
    }
    if !paused && (exists || create) {
        let current = sets
            .get(old_count)
            .map_or(0, ReplicaSetState::revision)
            .max(new_revision);
        let annotations = BTreeMap::from([(REVISION_ANNOTATION.to_owned(), current.to_string())]);
        set_if_changed(deployment, None, annotations, plan);
        forget_history(deployment, sets, old_count, plan);
    }
}

/// Its containers run or may come to run. What the plan itself removes at once does not.
fn may_run(pod: &PodState) -> bool {
    match pod.host {
        Host::Live | Host::Away(_) => !pod.is_finished(),
        Host::None | Host::Lost | Host::Removed | Host::Nowhere => false,
    }
}

fn size_annotations(scaled: &Scaled) -> BTreeMap<String, String> {
    [
        (DESIRED_REPLICAS_ANNOTATION, scaled.desired),
        (MAX_REPLICAS_ANNOTATION, scaled.max),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_string())))
    .collect()
}

fn copied_annotations(deployment: &Object) -> BTreeMap<String, String> {
    let annotations = deployment
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    annotations
        .into_iter()
        .flatten()
        .filter(|(name, _)| !OWN_ANNOTATIONS.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The newest set carries the highest revision; one that was rolled back to remembers those that it had.
fn revision_annotations(set: &Object, new_revision: u64) -> BTreeMap<String, String> {
    let had = revision(set);
    if had >= new_revision {
        return BTreeMap::new();
    }
    let mut annotations = BTreeMap::from([(REVISION_ANNOTATION.to_owned(), new_revision.to_string())]);
    if had > 0 {
        let earlier = set
            .annotation(REVISION_HISTORY_ANNOTATION)
            .filter(|text| !text.is_empty());
        let history = earlier.map_or(had.to_string(), |earlier| format!("{earlier},{had}"));
        annotations.insert(REVISION_HISTORY_ANNOTATION.to_owned(), history);
    }
    annotations
}

/// `wanted`: `replicas` and `minReadySeconds` of a ReplicaSet.
fn set_if_changed(
    object: &Object,
    wanted: Option<(u32, i64)>,
    mut annotations: BTreeMap<String, String>,
    plan: &mut Plan,
) {
    annotations.retain(|name, value| object.annotation(name) != Some(value));
    let (wanted_replicas, wanted_wait) = wanted.unzip();
    let replicas = wanted_replicas.filter(|wanted| *wanted != replicas(object));
    let min_ready_seconds = wanted_wait.filter(|wanted| *wanted != min_ready_seconds(object));
    let changes = replicas.is_some() || min_ready_seconds.is_some() || !annotations.is_empty();
    let Some(key) = object.key().filter(|_| changes) else {
        return;
    };
    plan.actions.push(Action::Set {
        key,
        uid: object.uid().to_owned(),
        replicas,
        min_ready_seconds,
        annotations,
    });
}

fn new_replica_set(
    deployment: &Object,
    name: &str,
    replicas: u32,
    annotations: BTreeMap<String, String>,
) -> Object {
    let mut set = Object::new(&ObjectKey::new(Kind::ReplicaSet, deployment.namespace(), name));
    let hash = name.rsplit('-').next().unwrap_or_default();
    let annotations: Map<String, Value> = annotations
        .into_iter()
        .map(|(name, value)| (name, value.into()))
        .collect();
    set.set(&["metadata", "annotations"], annotations);
    set.set(
        &["metadata", "ownerReferences"],
        json!([controller_reference(deployment)]),
    );
    set.set(&["spec", "replicas"], replicas);
    if let Some(seconds) = deployment.i64_at("/spec/minReadySeconds") {
        set.set(&["spec", "minReadySeconds"], seconds);
    }
    for part in ["selector", "template"] {
        if let Some(value) = deployment.pointer(&format!("/spec/{part}")) {
            set.set(&["spec", part], value.clone());
        }
    }
    set.set(&["spec", "selector", "matchLabels", TEMPLATE_HASH_LABEL], hash);
    set.set(
        &["spec", "template", "metadata", "labels", TEMPLATE_HASH_LABEL],
        hash,
    );
    if let Some(labels) = set.pointer("/spec/template/metadata/labels").cloned() {
        set.set(&["metadata", "labels"], labels);
    }
    set
}

/// Removes the oldest sets that have no pods, beyond `spec.revisionHistoryLimit`.
fn forget_history(deployment: &Object, sets: &mut Vec<ReplicaSetState>, old_count: usize, plan: &mut Plan) {
    let limit = deployment
        .i64_at("/spec/revisionHistoryLimit")
        .unwrap_or(REVISION_HISTORY_LIMIT);
    let surplus = old_count.saturating_sub(usize::try_from(limit).unwrap_or_default());
    let forgotten: Vec<Arc<Object>> = sets
        .iter()
        .take(surplus)
        .filter(|set| replicas(&set.object) == 0 && set.replicas == 0)
        .filter(|set| set.pods.is_empty() && set.strangers.is_empty())
        .map(|set| set.object.clone())
        .collect();
    sets.retain(|set| !forgotten.iter().any(|object| Arc::ptr_eq(object, &set.object)));
    plan.actions
        .extend(forgotten.iter().filter_map(|object| end(object)));
}
