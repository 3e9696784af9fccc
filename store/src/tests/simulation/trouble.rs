//! What goes wrong, and the heal: partitions, crashes, full and failing disks, clocks, joins and removals.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::IndexedRandom;
use schemas::{Kind, Object, ObjectKey};

use super::model::{self, Shown};
use super::node::{Fate, Outcome, Purpose};
use super::world::{Event, World};
use crate::epoch::Epoch;
use crate::tests::author;
use crate::{CommitError, OpenError, Precondition};

/// How long a node is away while the others squash.
const AWAY_MS: std::ops::Range<u64> = 400..1600;
/// Rounds of exchanges after which all must be equal.
const SETTLE_ROUNDS: usize = 12;

impl World {
    /// Something goes wrong somewhere.
    pub(super) fn trouble(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|at| self.is_up(*at)).collect();
        let Some(node) = up.choose(&mut self.random).copied() else {
            return;
        };
        let ms = self.random.random_range(200..4000);
        match self.random.random_range(0..100) {
            0..20 if self.now_ms < self.away_until_ms => {}
            0..20 => {
                self.counters.bump("partitions");
                // Alone, or in groups.
                let sides = self.random.random_range(1..4);
                for at in 0..self.side.len() {
                    self.side[at] = self.random.random_range(0..sides);
                }
                if sides == 1 {
                    self.side[node] = sides;
                }
                let sides = self.side.clone();
                self.note(|| format!("partition {sides:?}"));
                self.after(2 * ms, Event::Heal);
            }
            20..48 => {
                let fate = match self.random.random_range(0..3) {
                    0 => Fate::Well,
                    1 => Fate::CutInSync,
                    _ => Fate::CutBeforeAnswer,
                };
                self.note(|| format!("node {node} will crash: {fate:?}"));
                match (&mut self.nodes[node].agent, fate) {
                    (_, Fate::Well) => self.crash(node),
                    (Some(agent), fate) => agent.fate = fate,
                    (None, _) => {}
                }
            }
            48..53 => {
                // It goes on with what it has in memory until somebody restarts it.
                self.counters.bump("failing disks");
                self.nodes[node].disk.set_failing(true);
                self.note(|| format!("node {node} has a failing disk"));
                self.after(ms, Event::Restart { node });
            }
            53..63 => {
                self.counters.bump("full disks");
                self.nodes[node].disk.set_full(true);
                self.note(|| format!("node {node} has a full disk"));
                self.after(ms, Event::Room { node });
            }
            63..73 => {
                self.counters.bump("clock jumps");
                self.nodes[node].clock_ahead_s += [-3600, 3600]
                    .choose(&mut self.random)
                    .copied()
                    .unwrap_or_default();
            }
            73..90 => self.be_away(node),
            90..95 => self.join(),
            _ => self.retire(node),
        }
    }

    /// A node is alone for a while in which the others edit an object and squash its history, and it is edited there too; then
    /// it returns with its old history.
    fn be_away(&mut self, node: usize) {
        let Some(view) = self
            .store(node)
            .and_then(|store| self.pick_live(&store, Kind::Deployment))
            .filter(|_| self.now_ms >= self.away_until_ms)
        else {
            return;
        };
        self.counters.bump("nodes away from squashes");
        self.note(|| format!("node {node} is away, and {} is edited", view.key));
        self.side.fill(0);
        self.side[node] = 1;
        let ms = self.random.random_range(AWAY_MS);
        self.away_until_ms = self.now_ms + ms;
        let alone = self.random.random_range(0..4);
        let others = self.weather.long + self.random.random_range(0..4);
        for (count, at, until_ms) in [(alone, Some(node), ms), (others, None, ms / 2)] {
            for _ in 0..count {
                let after_ms = self.random.random_range(0..until_ms);
                let key = view.key.clone();
                self.after(after_ms, Event::Edit { node: at, key });
            }
        }
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        for pair in others.windows(2) {
            let after_ms = self.random.random_range(ms / 2..ms * 3 / 4);
            self.after(
                after_ms,
                Event::Meet {
                    node: pair[0],
                    peer: pair[1],
                },
            );
        }
        for _ in 0..3 {
            let after_ms = self.random.random_range(ms * 3 / 4..ms);
            self.after(after_ms, Event::ProposeAgain);
        }
        self.after(ms, Event::Heal);
        // Its edit may come before it has compared anything.
        let key = view.key.clone();
        self.after(
            ms + 1,
            Event::Edit {
                node: Some(node),
                key,
            },
        );
        if let Some(peer) = others.choose(&mut self.random).copied() {
            let after_ms = ms + self.random.random_range(0..300);
            self.after(after_ms, Event::Meet { node, peer });
        }
    }

    /// Power is lost: what was not synced is gone, but for what had reached the disk by then.
    pub(super) fn crash(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.take() else {
            return;
        };
        self.counters.bump("crashes");
        for task in agent.tasks {
            if let Purpose::User(intent) = task.purpose {
                self.unanswered(intent);
            }
        }
        let bytes = self.nodes[node].disk.unsynced_bytes();
        let kept = self.random.random_range(0..=bytes);
        let (disk, torn) = self.nodes[node].disk.after_torn_write(kept);
        self.counters.add("torn writes", u64::from(torn));
        self.note(|| format!("node {node} crashed with {kept} of {bytes} bytes"));
        self.nodes[node].disk = disk;
        let ms = self.random.random_range(100..4000);
        self.after(ms, Event::Restart { node });
    }

    pub(super) fn restart(&mut self, node: usize) {
        if self.nodes[node].is_retired {
            return;
        }
        if self.is_up(node) {
            // Its disk failed: it comes back by itself.
            self.crash(node);
            return;
        }
        match self.nodes[node].start() {
            Ok(()) => {
                self.counters.bump("restarts");
                self.watch(node);
                self.check_durable(node);
            }
            Err(OpenError::Full(_)) => self.after(500, Event::Restart { node }),
            Err(error) => self.fail(format!("node {node} does not start: {error}")),
        }
    }

    /// A new node comes, with nothing.
    pub(super) fn join(&mut self) {
        let ready: Vec<usize> = (0..self.nodes.len()).filter(|at| self.is_ready(*at)).collect();
        let Some(by) = ready
            .choose(&mut self.random)
            .copied()
            .filter(|_| self.nodes.len() < self.nodes_max)
        else {
            return;
        };
        self.counters.bump("joins");
        let node = self.add_node();
        self.side[node] = self.side[by];
        self.note(|| format!("node {node} joins at {by}"));
        self.admit(by, node);
        self.after(100, Event::Exchange { node });
    }

    /// A node is removed from the cluster by another that holds all that it held, and its disk with it. (What a node alone
    /// holds that is removed without having been drained is lost with it.)
    fn retire(&mut self, node: usize) {
        let Some(held) = self.store(node).map(|store| store.digest()) else {
            return;
        };
        let ready: Vec<usize> = (0..self.nodes.len())
            .filter(|at| *at != node && self.is_ready(*at))
            .filter(|at| self.store(*at).is_some_and(|store| store.digest() == held))
            .collect();
        let left = self.nodes.iter().filter(|node| !node.is_retired).count();
        let Some(by) = ready.choose(&mut self.random).copied().filter(|_| left > 3) else {
            return;
        };
        self.counters.bump("nodes removed");
        self.note(|| format!("node {node} is removed by {by}"));
        self.crash(node);
        self.nodes[node].is_retired = true;
        let others: Vec<_> = (0..self.nodes.len()).filter_map(|at| self.store(at)).collect();
        let held = |key: &ObjectKey, uid: &str| {
            let views = others.iter().filter_map(|store| store.get(key));
            let same = views.filter(|view| view.object.uid() == uid);
            let stamps = same.filter_map(|view| model::seen(&view.object).get(&node).copied());
            stamps.max().unwrap_or_default()
        };
        let removed = |key: &ObjectKey, uid: &str| others.iter().any(|store| store.is_removed(key, uid));
        let removed_by = self.removed_by.remove(&node).unwrap_or_default();
        self.model.forgive(node, held, removed, &removed_by);
        let key = ObjectKey::cluster(Kind::Member, &self.nodes[node].id.0);
        if let Some(agent) = &mut self.nodes[by].agent {
            let store = agent.store.clone();
            agent.begin(Purpose::Own, async move {
                let removed = store
                    .remove(&key, &Precondition::default(), author("membership"))
                    .await;
                Outcome::Squash(
                    removed
                        .map(|_| 0)
                        .map_err(|error| CommitError::Failed(error.to_string())),
                )
            });
        }
        self.go_on(by);
    }

    // ------------------------------------------------------------ the end

    /// Heals everything, lets all meet, and judges what they show.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.is_healed = true;
        self.side.fill(0);
        let now_ms = i64::try_from(self.now_ms).unwrap_or(i64::MAX);
        let drifted = self.nodes.iter().map(|node| node.drifted_ms(now_ms) / 1000);
        let apart = drifted.clone().max() > drifted.min();
        self.counters
            .add("seeds with clocks that drifted apart", u64::from(apart));
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.set_full(false);
            if self.is_up(node) && self.chance(0.5) {
                self.crash(node);
            }
        }
        self.drain();
        self.check()?;
        // A disk that failed refuses until a restart.
        for node in 0..self.nodes.len() {
            if self.is_up(node) {
                self.crash(node);
            }
        }
        self.drain();
        self.check()?;
        let nodes: Vec<usize> = (0..self.nodes.len())
            .filter(|at| !self.nodes[*at].is_retired)
            .collect();
        for round in 0.. {
            if self.are_equal(&nodes)? {
                break;
            }
            if round == SETTLE_ROUNDS {
                return Err("the stores do not become equal".to_owned());
            }
            for at in 1..nodes.len() {
                self.exchange(nodes[at], nodes[at - 1]);
                self.drain();
                self.exchange(nodes[at], nodes[0]);
                self.drain();
                self.check()?;
            }
        }
        let shown = self.shown(nodes[0]);
        self.note(|| format!("in the end {shown:?}"));
        self.model.judge(&shown)?;
        self.judge_restarts(&nodes, &shown)
    }

    /// What is on the disks is what was shown.
    fn judge_restarts(&mut self, nodes: &[usize], shown: &BTreeMap<ObjectKey, Shown>) -> Result<(), String> {
        let digest = self.store(nodes[0]).map(|store| store.digest());
        for node in nodes {
            self.crash(*node);
            self.drain();
            self.check()?;
            if self.store(*node).map(|store| store.digest()) != digest || self.shown(*node) != *shown {
                return Err(format!("node {node} is another after a restart"));
            }
        }
        Ok(())
    }

    fn are_equal(&mut self, nodes: &[usize]) -> Result<bool, String> {
        let digests: Vec<Option<String>> = nodes
            .iter()
            .map(|at| self.store(*at).map(|store| store.digest()))
            .collect();
        if digests.iter().any(|digest| *digest != digests[0]) {
            return Ok(false);
        }
        let first = self.objects(nodes[0]);
        for node in &nodes[1..] {
            let other = self.objects(*node);
            if other != first {
                return Err(format!(
                    "nodes {} and {node} have one digest and hold\n{first:?}\n{other:?}",
                    nodes[0]
                ));
            }
        }
        Ok(true)
    }

    /// All that a node shows, without revisions.
    fn objects(&self, node: usize) -> Vec<Object> {
        let Some(store) = self.store(node) else {
            return Vec::new();
        };
        let kinds = schemas::KINDS.iter().map(|row| row.kind);
        let views = kinds.flat_map(|kind| store.list(kind, None).items);
        let objects = views.map(|view| {
            let mut object = Object::clone(&view.object);
            object.remove(&["metadata", "resourceVersion"]);
            object
        });
        objects.collect()
    }

    fn shown(&self, node: usize) -> BTreeMap<ObjectKey, Shown> {
        let Some(store) = self.store(node) else {
            return BTreeMap::new();
        };
        let kinds = [Kind::Deployment, Kind::ReplicaSet, Kind::Pod, Kind::Namespace];
        let views = kinds.into_iter().flat_map(|kind| store.list(kind, None).items);
        let shown = views.map(|view| {
            let record = store.shared.index().record(&view.key);
            let is_squashed = record.is_some_and(|record| record.epoch != Epoch::default());
            (view.key.clone(), Shown::of(&view.object, is_squashed))
        });
        shown.collect()
    }
}
