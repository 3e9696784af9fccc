//! All objects in memory: documents, projections and the views made of them, with revisions, watches and digests.
//!
//! Holds only what is durable (documents) or need not be (projections). Never waits for anything.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::compaction::{self, HEAVY_BYTES, LONG};
use crate::digest::Digests;
use crate::frame::{Going, Header};
use crate::incarnation::{Incarnation, Tombstone, Uids};
use crate::json;
use crate::leaves::compact_map;
use crate::packed::{Packed, Recent, SharedTexts};
use crate::quarantine::Quarantine;
use crate::record::{Record, Stored};
use crate::rescue::{RescueId, Sight, Waiting};
use crate::types::{Gone, Revision, View, WatchEvent};
use crate::watch::{Past, Scope, Watches};

/// How many revisions are reserved on disk at once: half of this is what can be issued while one write is under way.
pub(crate) const REVISION_BLOCK: u64 = 1 << 24;

/// What is known of one key.
#[derive(Default, Debug)]
struct Entry {
    record: Option<Arc<Record>>,
    projection: Option<Arc<Object>>,
    /// What the document has in the places of the projection's fields.
    covered: Map<String, Value>,
    shown: Option<(Arc<Packed>, Revision)>,
}

impl Entry {
    /// Returns what was written, from what is shown.
    fn written(&self) -> Option<Written> {
        self.record.as_ref()?;
        let (shown, _) = self.shown.as_ref()?;
        Some(Written {
            shown: shown.clone(),
            projection: self.projection.clone(),
            covered: self.covered.clone(),
        })
    }

    /// Drops what was computed for an incarnation that is gone; an object that is computed as a whole stays.
    fn forget_status(&mut self, key: &ObjectKey) {
        self.projection
            .take_if(|projection| projection.key().as_ref() != Some(key));
    }
}

/// A view whose tree may have to be read from JSON first: of a long list that takes its time, for which nobody else
/// needs to wait.
pub(crate) struct PackedView {
    pub(crate) key: ObjectKey,
    object: Arc<Packed>,
    pub(crate) revision: Revision,
    stored: bool,
}

impl PackedView {
    pub(crate) fn tree(&self) -> Arc<Object> {
        self.object.tree()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.object.bytes()
    }

    /// Returns `metadata.managedFields` as JSON.
    pub(crate) fn managed(&self) -> Option<&str> {
        self.object.managed.as_deref()
    }

    pub(crate) fn view(self) -> View {
        let object = self.object.tree();
        self.with(object)
    }

    /// [`PackedView::view`] for one of so many that their trees are not worth keeping.
    pub(crate) fn passing(self) -> View {
        let object = self.object.passing();
        self.with(object)
    }

    fn with(self, object: Arc<Object>) -> View {
        View {
            key: self.key,
            managed: self.object.managed.clone(),
            object,
            revision: self.revision,
            stored: self.stored,
        }
    }
}

/// An object as it was written, without what is projected over it; its tree is made when it is wanted.
#[derive(Debug)]
pub(crate) struct Written {
    shown: Arc<Packed>,
    projection: Option<Arc<Object>>,
    covered: Map<String, Value>,
}

impl Written {
    pub(crate) fn tree(&self) -> Arc<Object> {
        let shown = self.shown.tree();
        let Some(projection) = &self.projection else {
            return shown;
        };
        let fields = shown.0.iter().filter_map(|(name, value)| {
            let value = match projection.0.contains_key(name) {
                true => self.covered.get(name)?,
                false => value,
            };
            Some((name.clone(), value.clone()))
        });
        Arc::new(Object(fields.collect()))
    }
}

/// Whether other nodes are in reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Company {
    None,
    /// They are said to be, and none has said yet where it stands: this node may have to catch up. Whoever had what is created
    /// until then would have been sent it, which is noted before; so it can be stamped as when alone.
    Unheard,
    Met,
}

/// What the stamps of a change depend on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Stance {
    round: u16,
    bar: u16,
}

/// A durable change of the documents.
#[derive(Debug)]
pub(crate) enum Change {
    Put {
        key: ObjectKey,
        stored: Stored,
        /// Of earlier incarnations, if that is new.
        removed: Option<Tombstone>,
    },
    /// Removes all incarnations of a key up to one.
    Bury { key: ObjectKey, removed: Tombstone },
    /// Takes a document away, and leaves no tombstone.
    TakeAway {
        key: ObjectKey,
        incarnation: Incarnation,
    },
    /// Drops a tombstone.
    Unbury { key: ObjectKey, removed: Tombstone },
    /// Drops what was rescued, and is safe.
    Forget(RescueId),
    /// Shows nothing: this node promised something (`promises.rs`).
    Promise,
}

impl Change {
    /// Returns the key whose object this changes.
    pub(crate) fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Put { key, .. } | Self::Bury { key, .. } | Self::TakeAway { key, .. } => Some(key),
            Self::Unbury { .. } | Self::Forget(_) | Self::Promise => None,
        }
    }

    /// Tells whether it makes a history long: now and then, as long as that is not squashed.
    pub(crate) fn is_long(&self) -> bool {
        match self {
            Change::Put { stored, .. } => {
                let record = &stored.record;
                // The object is written out only where it can matter.
                let is_heavy = || {
                    record.document.len() > HEAVY_BYTES
                        && compaction::is_heavy(record, json::len(&*stored.object))
                };
                record.changes >= LONG && record.changes.is_multiple_of(LONG / 2) || is_heavy()
            }
            Change::Bury { .. }
            | Change::TakeAway { .. }
            | Change::Unbury { .. }
            | Change::Forget(_)
            | Change::Promise => false,
        }
    }
}

/// The state of the store.
#[derive(Debug)]
pub(crate) struct Index {
    entries: BTreeMap<ObjectKey, Entry>,
    recent: Arc<Recent>,
    managed: SharedTexts,
    tombstones: BTreeMap<ObjectKey, Tombstone>,
    pub(crate) quarantine: Quarantine,
    pub(crate) rescued: Waiting,
    registers: Header,
    /// Where a peer stands that this node has to catch up with.
    target: Option<Header>,
    going: Going,
    /// How often this node has begun to have contact; never zero.
    contact: u64,
    company: Company,
    digests: Digests,
    watches: Watches,
    uids: Uids,
    tag: u16,
    counter: u64,
    /// Counters below this are this store's, by a durable record.
    reserved: u64,
}

impl Index {
    /// Begins at a counter that was never issued; `reserved` is durable.
    pub(crate) fn new(uids: Uids, tag: u16, counter: u64, reserved: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            recent: Arc::default(),
            managed: SharedTexts::default(),
            tombstones: BTreeMap::new(),
            quarantine: Quarantine::default(),
            rescued: Waiting::default(),
            registers: Header::default(),
            target: None,
            going: Going::default(),
            contact: 1,
            company: Company::Met,
            digests: Digests::default(),
            watches: Watches::new(counter),
            uids,
            tag,
            counter,
            reserved,
        }
    }

    // -------------------------------------------------------------- reading

    fn view_of(key: &ObjectKey, entry: &Entry) -> Option<PackedView> {
        let (object, revision) = entry.shown.as_ref()?;
        Some(PackedView {
            key: key.clone(),
            object: object.clone(),
            revision: *revision,
            stored: entry.record.is_some(),
        })
    }

    pub(crate) fn packed(&self, key: &ObjectKey) -> Option<PackedView> {
        Self::view_of(key, self.entries.get(key)?)
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<View> {
        self.packed(key).map(PackedView::view)
    }

    fn entries_of<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Entry)> {
        let first = ObjectKey {
            kind,
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        let start = match after {
            Some(after) if *after > first => Bound::Excluded(after.clone()),
            Some(_) | None => Bound::Included(first),
        };
        self.entries
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| {
                key.kind == kind && namespace.is_none_or(|namespace| key.namespace == namespace)
            })
    }

    /// Lists a kind after a key, ordered by key, at the newest revision.
    pub(crate) fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
    ) -> (Vec<PackedView>, Revision) {
        let entries = self.entries_of(kind, namespace, after);
        let views = entries.filter_map(|(key, entry)| Self::view_of(key, entry));
        (views.collect(), self.revision())
    }

    /// [`Index::list`] as it was at a revision: what is shown, without the changes since.
    pub(crate) fn list_at(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        at: Revision,
    ) -> Result<(Vec<PackedView>, Revision), Gone> {
        let scope = Scope {
            kinds: vec![kind],
            namespace: namespace.map(str::to_owned),
            name: None,
        };
        let since = self.watches.since(&scope, self.issued(at)?)?;
        let mut changed: BTreeMap<&ObjectKey, &Past> = BTreeMap::new();
        for past in since
            .iter()
            .filter(|past| after.is_none_or(|after| past.key > *after))
        {
            // The first change is the one from the state that is asked for.
            changed.entry(&past.key).or_insert(past);
        }
        let (mut views, _) = self.list(kind, namespace, after);
        views.retain(|view| !changed.contains_key(&view.key));
        views.extend(changed.into_values().filter_map(|past| {
            let (object, revision) = past.before.clone()?;
            Some(PackedView {
                key: past.key.clone(),
                object,
                revision,
                stored: past.stored,
            })
        }));
        views.sort_by(|one, other| one.key.cmp(&other.key));
        Ok((views, at))
    }

    /// Returns the documents of a kind as they were written, with their keys.
    pub(crate) fn written(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, Written)> {
        self.entries_of(kind, None, None)
            .filter_map(|(key, entry)| Some((key, entry.written()?)))
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision::new(self.counter, self.tag)
    }

    /// Returns the counter of a revision of this store.
    pub(crate) fn issued(&self, revision: Revision) -> Result<u64, Gone> {
        let is_ours = revision.tag() == self.tag && revision.counter() <= self.counter;
        is_ours.then(|| revision.counter()).ok_or(Gone)
    }

    /// Returns what happened after `from` (nothing, if None), and up to which counter that is.
    pub(crate) fn since(&self, scope: &Scope, from: Option<Revision>) -> Result<(Vec<Arc<Past>>, u64), Gone> {
        let past = match from {
            Some(from) => self.watches.since(scope, self.issued(from)?)?,
            None => Vec::new(),
        };
        Ok((past, self.counter))
    }

    /// Begins a watch with a backlog, which is all up to `from`.
    pub(crate) fn follow(
        &mut self,
        scope: &Scope,
        backlog: Vec<WatchEvent>,
        from: u64,
    ) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        self.watches.follow(scope, backlog, from)
    }

    pub(crate) fn record(&self, key: &ObjectKey) -> Option<Arc<Record>> {
        self.entries.get(key)?.record.clone()
    }

    pub(crate) fn tombstone(&self, key: &ObjectKey) -> Option<Tombstone> {
        self.tombstones.get(key).copied()
    }

    /// Returns the highest removed incarnation.
    pub(crate) fn removed(&self, key: &ObjectKey) -> Option<Incarnation> {
        self.tombstone(key).map(|tombstone| tombstone.incarnation)
    }

    pub(crate) fn round(&self) -> u16 {
        self.registers.round
    }

    pub(crate) fn tombstones(&self) -> &BTreeMap<ObjectKey, Tombstone> {
        &self.tombstones
    }

    pub(crate) fn target(&self) -> Option<Header> {
        self.target
    }

    pub(crate) fn going(&self) -> Going {
        self.going
    }

    pub(crate) fn contact(&self) -> u64 {
        self.contact
    }

    /// Returns below which round documents are not taken from those whose floor is lower: this store's floor, or the one that
    /// it is catching up with.
    pub(crate) fn bar(&self) -> u16 {
        let target = self.target.map_or(0, |target| target.floor);
        self.registers.floor.max(target)
    }

    pub(crate) fn stance(&self) -> Stance {
        Stance {
            round: self.round(),
            bar: self.bar(),
        }
    }

    /// Returns the stamp of a document that is created now.
    pub(crate) fn unsent(&self) -> u64 {
        match self.company {
            Company::None | Company::Unheard => self.contact,
            Company::Met => 0,
        }
    }

    /// Tells whether no other node can have a document.
    pub(crate) fn is_unsent(&self, record: &Record) -> bool {
        record.unsent == self.contact
    }

    /// Returns what begins a frame whose items are collected from now on.
    pub(crate) fn header(&self) -> Header {
        self.registers
    }

    pub(crate) fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Visits what is held of every key that has a document or a tombstone.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&ObjectKey, Option<Tombstone>, Option<&Arc<Record>>)> {
        let documents = self.entries.iter().filter_map(|(key, entry)| {
            let record = entry.record.as_ref()?;
            Some((key, self.tombstone(key), Some(record)))
        });
        let removed = self
            .tombstones
            .iter()
            .filter(|(key, _)| self.entries.get(key).is_none_or(|entry| entry.record.is_none()));
        documents.chain(removed.map(|(key, tombstone)| (key, Some(*tombstone), None)))
    }

    /// Visits all documents, with the bytes of what is shown of each.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Record>, usize)> {
        self.entries.iter().filter_map(|(key, entry)| {
            let shown = entry.shown.as_ref().map_or(0, |(shown, _)| shown.bytes());
            Some((key, entry.record.as_ref()?, shown))
        })
    }

    /// Returns the incarnation of a namespace that something created in it now belongs to: its own, or, where it has
    /// not arrived yet, the next.
    pub(crate) fn namespace_incarnation(&self, namespace: &str) -> Option<Incarnation> {
        let key = ObjectKey::cluster(Kind::Namespace, namespace);
        match self.record(&key) {
            Some(record) => Some(record.incarnation),
            None => Incarnation::next(self.round(), self.removed(&key)),
        }
    }

    pub(crate) fn orphaned_by_namespace(&self) -> Vec<ObjectKey> {
        let orphaned = self.entries.iter().filter(|(key, entry)| {
            let record = entry.record.as_ref();
            record.is_some_and(|record| self.is_orphan(key, record))
        });
        orphaned.map(|(key, _)| key.clone()).collect()
    }

    /// Returns what is held in a namespace; None, if it is too much to be said.
    pub(crate) fn sight(&self, namespace: &str) -> Option<Sight> {
        let inside = self.entries.iter().filter(|(key, _)| key.namespace == namespace);
        Sight::of(inside.filter_map(|(_, entry)| entry.record.as_deref()))
    }

    /// Tells whether the namespace that an object was created in was removed.
    pub(crate) fn is_orphan(&self, key: &ObjectKey, record: &Record) -> bool {
        let removed = self.removed(&ObjectKey::cluster(Kind::Namespace, &key.namespace));
        let created_in = record.namespace;
        created_in.is_some_and(|created_in| removed.is_some_and(|removed| created_in <= removed))
    }

    // -------------------------------------------------------------- changing

    /// Takes a change in and returns the view after it, or, of a removal, the last one.
    pub(crate) fn publish(&mut self, change: Change) -> Option<View> {
        match change {
            Change::Put { key, stored, removed } => {
                self.quarantine.release(&key);
                self.toggle_digest(&key);
                self.bury(&key, removed);
                let before = self.record(&key).map(|record| record.incarnation);
                if before.is_some_and(|before| before != stored.record.incarnation) {
                    // Who watches sees the old object go before the new one comes.
                    self.take_away(&key);
                }
                let entry = self.entries.entry(key.clone()).or_default();
                entry.record = Some(stored.record);
                self.toggle_digest(&key);
                let managed = stored.managed.map(|text| self.managed.copy(text));
                self.show(&key, Some((stored.object, managed)));
                self.get(&key)
            }
            Change::Bury { key, removed } => {
                self.quarantine.release(&key);
                let last = self.get(&key);
                self.toggle_digest(&key);
                self.bury(&key, Some(removed));
                let held = self.record(&key).map(|record| record.incarnation);
                if held.is_some_and(|held| held <= removed.incarnation) {
                    self.take_away(&key);
                }
                self.toggle_digest(&key);
                last
            }
            Change::TakeAway { key, incarnation } => {
                let last = self.get(&key);
                if self.record(&key).map(|record| record.incarnation) == Some(incarnation) {
                    self.toggle_digest(&key);
                    self.take_away(&key);
                    self.toggle_digest(&key);
                }
                last
            }
            Change::Unbury { key, removed } => {
                if self.tombstone(&key) == Some(removed) {
                    self.unbury(&key);
                }
                None
            }
            Change::Forget(id) => {
                self.rescued.forget(&id);
                None
            }
            Change::Promise => None,
        }
    }

    /// Takes away a document and what was computed for it.
    fn take_away(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.record = None;
            entry.forget_status(key);
            self.show(key, None);
        }
    }

    fn bury(&mut self, key: &ObjectKey, removed: Option<Tombstone>) {
        if let Some(removed) = removed {
            let tombstone = self.tombstones.entry(key.clone()).or_insert(removed);
            *tombstone = removed.max(*tombstone);
        }
    }

    /// Drops a tombstone.
    fn unbury(&mut self, key: &ObjectKey) {
        self.toggle_digest(key);
        self.tombstones.remove(key);
        self.toggle_digest(key);
    }

    fn toggle_digest(&mut self, key: &ObjectKey) {
        let record = self.entries.get(key).and_then(|entry| entry.record.clone());
        self.digests.toggle(key, self.tombstone(key), record.as_deref());
    }

    /// Loads tombstones and registers at start.
    pub(crate) fn restore(
        &mut self,
        registers: Header,
        contact: u64,
        tombstones: BTreeMap<ObjectKey, Tombstone>,
    ) {
        (self.registers, self.contact) = (registers, contact);
        for (key, removed) in tombstones {
            self.toggle_digest(&key);
            self.bury(&key, Some(removed));
            self.toggle_digest(&key);
        }
    }

    pub(crate) fn project(&mut self, key: &ObjectKey, projection: Option<Object>) {
        // While the disk takes no reservation: after a restart, a revision would be issued again. Whoever projects does so
        // again later.
        if self.counter >= self.reserved {
            return;
        }
        let entry = self.entries.entry(key.clone()).or_default();
        // A status that was computed before its object went and comes after: nothing would ever take it away, and the next
        // object of this name would begin with it.
        let projection =
            projection.filter(|projection| entry.record.is_some() || projection.key().as_ref() == Some(key));
        if entry.projection.as_deref() == projection.as_ref() {
            if entry.shown.is_none() && entry.projection.is_none() {
                self.entries.remove(key);
            }
            return;
        }
        let written = entry.written();
        entry.projection = projection.map(Arc::new);
        self.show(
            key,
            written.map(|written| (written.tree(), written.shown.managed.clone())),
        );
    }

    /// Makes the view of a key anew from its document and projection; if that changes it, it is a new revision.
    fn show(&mut self, key: &ObjectKey, document: Option<(Arc<Object>, Option<Arc<str>>)>) {
        let next = Revision::new(self.counter + 1, self.tag);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.covered = Map::new();
        let (document, managed) = document.unzip();
        let managed = managed.flatten();
        let object = match (document, &entry.projection) {
            (Some(document), None) => Some(Arc::unwrap_or_clone(document)),
            (Some(document), Some(projection)) => {
                let mut object = Arc::unwrap_or_clone(document);
                let fields = projection.0.keys();
                let covered = fields.filter_map(|name| Some((name.clone(), object.0.get(name)?.clone())));
                entry.covered = covered.collect();
                lay_over(&mut object.0, &projection.0);
                Some(object)
            }
            (None, Some(projection)) if projection.key().as_ref() == Some(key) => {
                let mut object = Object::clone(projection);
                if object.uid().is_empty() {
                    object.set(&["metadata", "uid"], self.uids.uid(key, Incarnation::default()));
                }
                Some(object)
            }
            (None, Some(_) | None) => None,
        };
        let before = entry.shown.clone();
        let after = match (object, &before) {
            (Some(mut object), before) => {
                if let Some((before, revision)) = before {
                    set_resource_version(&mut object, *revision);
                    if before.is(&object, managed.as_ref()) {
                        return;
                    }
                }
                set_resource_version(&mut object, next);
                let object = Arc::new(Object(compact_map(object.0)));
                Some(Arc::new(Packed::new(&object, managed, &self.recent)))
            }
            (None, Some(_)) => None,
            (None, None) => {
                self.forget_if_empty(key);
                return;
            }
        };
        entry.shown = after.clone().map(|after| (after, next));
        self.counter += 1;
        self.watches.publish(Past {
            key: key.clone(),
            stored: entry.record.is_some(),
            before,
            after,
            revision: next,
        });
        self.forget_if_empty(key);
    }

    /// Lays what is projected of a key over an object.
    pub(crate) fn lay_projection(&self, key: &ObjectKey, object: &mut Object) {
        let entry = self.entries.get(key);
        if let Some(projection) = entry.and_then(|entry| entry.projection.as_ref()) {
            lay_over(&mut object.0, &projection.0);
        }
    }

    fn forget_if_empty(&mut self, key: &ObjectKey) {
        let is_empty = self.entries.get(key).is_some_and(|entry| {
            entry.record.is_none() && entry.projection.is_none() && entry.shown.is_none()
        });
        if is_empty {
            self.entries.remove(key);
        }
    }

    pub(crate) fn set_registers(&mut self, registers: Header, target: Option<Header>, contact: u64) {
        self.set_target(target);
        (self.registers, self.contact) = (registers, contact);
    }

    fn set_target(&mut self, target: Option<Header>) {
        if self.target != target {
            self.target = target;
            self.going.0 += 1;
        }
    }

    /// Drops tombstones.
    pub(crate) fn unbury_all(&mut self, keys: &[ObjectKey]) {
        keys.iter().for_each(|key| self.unbury(key));
    }

    /// Says whether other nodes are in reach. Alone, there is nobody to catch up with.
    pub(crate) fn set_alone(&mut self, alone: bool) {
        match (alone, self.company) {
            (true, _) => {
                self.company = Company::None;
                self.set_target(None);
            }
            (false, Company::None) => self.company = Company::Unheard,
            (false, Company::Unheard | Company::Met) => {}
        }
    }

    /// Tells whether others are in reach of which nothing has been heard yet.
    pub(crate) fn is_unheard(&self) -> bool {
        self.company == Company::Unheard
    }

    /// Says that where a peer stands is known here.
    pub(crate) fn heard(&mut self) {
        if self.is_unheard() {
            self.company = Company::Met;
        }
    }

    // -------------------------------------------------------------- revisions

    /// Returns up to where revisions should be reserved, when half of those that are have been issued.
    pub(crate) fn wanted_reservation(&self) -> Option<u64> {
        let left = self.reserved.saturating_sub(self.counter);
        (left < REVISION_BLOCK / 2).then(|| self.counter + REVISION_BLOCK)
    }

    pub(crate) fn set_reserved(&mut self, reserved: u64) {
        self.reserved = self.reserved.max(reserved);
    }

    /// Begins the history of watches now, after loading.
    pub(crate) fn forget_history(&mut self) {
        self.watches = Watches::new(self.counter);
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        self.watches.close();
    }
}

pub(crate) fn set_resource_version(object: &mut Object, revision: Revision) {
    object.set(&["metadata", "resourceVersion"], revision.to_string());
}

/// Merges maps, and conditions by their type; of other values the upper one stays.
fn lay_over(lower: &mut Map<String, Value>, upper: &Map<String, Value>) {
    for (name, value) in upper {
        match (lower.get_mut(name), value) {
            (Some(Value::Object(lower)), Value::Object(upper)) => lay_over(lower, upper),
            (Some(Value::Array(lower)), Value::Array(upper)) if name == "conditions" => {
                let is_upper = |one: &Value| upper.iter().any(|upper| upper["type"] == one["type"]);
                lower.retain(|one| !is_upper(one));
                lower.splice(..0, upper.iter().cloned());
            }
            (Some(slot), value) => *slot = value.clone(),
            (None, value) => {
                lower.insert(name.clone(), value.clone());
            }
        }
    }
}
