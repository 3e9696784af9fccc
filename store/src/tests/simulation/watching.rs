//! What is checked while the simulation runs: what a node holds after each commit and each start.

use schemas::ObjectKey;

use super::model::{self, Shown};
use super::node::Acknowledged;
use super::world::World;
use crate::document::Document;
use crate::epoch::Epoch;
use crate::incarnation::Incarnation;
use crate::{Lost, Store};

impl World {
    /// Looks at all that a node holds: what is gone stays gone, and revisions grow.
    pub(super) fn watch(&mut self, node: usize) {
        let Some(store) = self.store(node) else {
            return;
        };
        let revision = store.revision().0;
        let mut failures = Vec::new();
        if revision < self.nodes[node].revision {
            failures.push(format!(
                "revision {revision} on node {node} comes after {}",
                self.nodes[node].revision
            ));
        }
        let (mut epochs, mut changed) = (0, Vec::new());
        let mut changes = Vec::new();
        let mut touched = Vec::new();
        self.looks += 1;
        let look = self.looks;
        let watched = &mut self.nodes[node].watched;
        {
            let index = store.shared.index();
            for (key, removed, record) in index.held() {
                let live = record.map(|record| (record.incarnation, record.epoch));
                if let Some(seen) = watched.get_mut(key) {
                    seen.look = look;
                    let has_heads = record.is_none_or(|record| record.heads == seen.heads);
                    if seen.live == live && seen.removed == removed && has_heads {
                        continue;
                    }
                }
                let seen = watched.entry(key.clone()).or_default();
                seen.look = look;
                if seen.live != live || seen.removed != removed {
                    let live = live.map(|(incarnation, epoch)| (incarnation, epoch.dropped));
                    changes.push(format!("node {node}: {key} is {live:?}, removed {removed:?}"));
                }
                seen.removed = removed;
                seen.buried = seen.buried.max(removed.map(|removed| removed.incarnation));
                if let (Some((before, epoch)), Some((now, later))) = (seen.live, live) {
                    if before != now {
                        seen.gone.insert(before);
                        changed.push((key.clone(), before, now));
                    }
                    epochs += u64::from(before == now && epoch < later);
                    if before == now && epoch > later {
                        failures.push(format!("{key} on node {node} goes back to an earlier epoch"));
                    }
                }
                if let (Some((before, _)), None) = (seen.live, live) {
                    seen.gone.insert(before);
                }
                if let Some((now, _)) = live
                    && (Some(now) <= seen.buried || seen.gone.contains(&now))
                {
                    let buried = seen.buried;
                    failures.push(format!(
                        "{key} on node {node}: {now:?} is back, removed was {buried:?}"
                    ));
                }
                seen.live = live;
                if let Some(record) = record
                    && record.heads != seen.heads
                {
                    seen.heads.clone_from(&record.heads);
                    touched.push(key.clone());
                }
            }
            for (key, seen) in watched.iter_mut().filter(|(_, seen)| seen.look != look) {
                let live = seen.live.take();
                if seen.removed.take().is_some() || live.is_some() {
                    changes.push(format!("node {node}: nothing of {key} is held any more"));
                }
                seen.gone.extend(live.map(|(incarnation, _)| incarnation));
                seen.heads.clear();
            }
        }
        self.counters.add("epoch changes", epochs);
        changes.into_iter().for_each(|change| self.note(|| change));
        self.look_at_standing(node, &store, &changed);
        failures.extend(
            touched
                .into_iter()
                .filter_map(|key| self.judge_replica(node, &store, key)),
        );
        self.note(|| format!("node {node} is at {revision}, {}", store.digest()));
        failures.into_iter().for_each(|failure| self.fail(failure));
    }

    /// Looks at a document that has changed: it holds all that it held, and shows nothing that a write which it holds replaced.
    fn judge_replica(&mut self, node: usize, store: &Store, key: ObjectKey) -> Option<String> {
        let object = store.get(&key)?.object;
        let record = store.shared.index().record(&key);
        let shown = Shown::of(
            &object,
            record.is_some_and(|record| record.epoch != Epoch::default()),
        );
        self.tell(|| format!("node {node} shows {key}: {shown:?}"));
        let judged = self.model.judge_replica(&key, &shown);
        let Shown { uid, seen, .. } = shown;
        let watched = self.nodes[node].watched.entry(key.clone()).or_default();
        let before = std::mem::replace(&mut watched.held, (uid.clone(), seen.clone()));
        let is_there = |(writer, stamp): &(usize, u64)| seen.get(writer).is_some_and(|now| now >= stamp);
        let forgotten = before
            .1
            .into_iter()
            .filter(|_| before.0 == uid)
            .find(|write| !is_there(write));
        let forgotten = forgotten.map(|write| format!("it held write {write:?} and holds {seen:?}"));
        let error = judged.err().or(forgotten)?;
        self.tell(|| format!("node {node} holds of {key}:\n{}", history(store, &key)));
        Some(format!(
            "{key} {uid} on node {node}, which holds {seen:?}: {error}"
        ))
    }

    /// After a restart: all that was acknowledged here is there.
    pub(super) fn check_durable(&mut self, node: usize) {
        let Some(store) = self.store(node) else {
            return;
        };
        let mut failures = Vec::new();
        for (key, acknowledged) in &self.nodes[node].acknowledged {
            let view = store.get(key);
            let now = view.as_ref().map(|view| view.object.uid());
            match acknowledged {
                Acknowledged::Holds { uid, stamp } if now == Some(uid.as_str()) => {
                    let held = view.and_then(|view| model::seen(&view.object).get(&node).copied());
                    if held.unwrap_or_default() < *stamp && !self.model.is_rescued(key, uid, node, *stamp) {
                        failures.push(format!("write {stamp} to {key} on node {node} was acknowledged and is lost: it has {held:?}"));
                    }
                }
                // Of what a tombstone took away, the end judges whether it might, and whether it is set aside.
                Acknowledged::Holds { uid, .. }
                    if !self.model.may_be_gone(key, uid) && !store.is_removed(key, uid) =>
                {
                    failures.push(format!("{key} {uid} on node {node} was acknowledged and is lost"));
                }
                Acknowledged::Removed { uid } if now == Some(uid.as_str()) => {
                    failures.push(format!(
                        "{key} {uid} on node {node} was removed, acknowledged, and is there again"
                    ));
                }
                Acknowledged::Holds { .. } | Acknowledged::Removed { .. } => {}
            }
        }
        failures.into_iter().for_each(|failure| self.fail(failure));
    }

    /// Takes in what a node did because it had been away, and what it set aside. `changed`: names that another incarnation has.
    fn look_at_standing(
        &mut self,
        node: usize,
        store: &Store,
        changed: &[(ObjectKey, Incarnation, Incarnation)],
    ) {
        let now = *store.standing().borrow();
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let before = std::mem::replace(&mut agent.standing, now);
        self.counters
            .add("stale catch-ups", now.catch_ups - before.catch_ups);
        self.counters
            .add("objects replayed", now.replayed - before.replayed);
        self.counters
            .add("objects taken away", now.taken_away - before.taken_away);
        if now.taken_away > before.taken_away {
            // Where another node's edit builds on one of this node's, that node sets the object aside: the end judges.
            let acknowledged = &mut self.nodes[node].acknowledged;
            acknowledged
                .retain(|key, last| matches!(last, Acknowledged::Removed { .. }) || store.get(key).is_some());
        }
        let tombstones = store.tombstones();
        let dropped = self.nodes[node].tombstones.saturating_sub(tombstones);
        self.counters.add("tombstones dropped", dropped as u64);
        self.nodes[node].tombstones = tombstones;
        if now != before {
            self.note(|| {
                format!(
                    "node {node}: {now:?}, round {}, floor {}",
                    store.round(),
                    store.floor()
                )
            });
        }
        for rescued in store.rescued() {
            if self.nodes[node].rescued.insert(rescued.id.clone()) {
                self.counters.bump(match rescued.why {
                    Lost::Deleted | Lost::Replaced => "rescued from deletions",
                    Lost::Stale => "rescued by stale nodes",
                    Lost::SquashedAway => "rescued from squashes",
                });
                let seen = model::seen(&rescued.object);
                self.model.rescued(&rescued.key, rescued.object.uid(), seen);
            }
        }
        let uids = &store.shared.uids;
        for (key, before, now) in changed {
            self.note(|| {
                format!(
                    "node {node}: {key} {} is replaced by {}",
                    uids.uid(key, *before),
                    uids.uid(key, *now)
                )
            });
        }
        if now.replayed > before.replayed {
            for (key, before, now) in changed {
                let seen = store
                    .get(key)
                    .map(|view| model::seen(&view.object))
                    .unwrap_or_default();
                self.model
                    .replayed(key, &uids.uid(key, *before), &uids.uid(key, *now), &seen);
            }
        }
    }
}

/// Tells all changes of a document, with what they do.
fn history(store: &Store, key: &ObjectKey) -> String {
    let record = store.shared.index().record(key);
    let mut document = record.and_then(|record| store.shared.load(key, &record));
    let changes = document.as_mut().map(Document::history).unwrap_or_default();
    let mut told = String::new();
    for change in changes {
        let (actor, deps) = (change.actor_id(), change.deps());
        told += &format!("  {} {actor} {} on {deps:?}\n", change.hash(), change.seq());
        for operation in change.decode().operations {
            told += &format!("    {:?} {:?}\n", operation.key, operation.action);
        }
    }
    told
}
