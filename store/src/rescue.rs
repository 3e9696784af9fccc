//! Rescue: what users were told is stored and cannot be merged is set aside, in the batch that takes it away, for the agent
//! to write to a file.
//!
//! | disk key | value |
//! |---|---|
//! | `r/` + object key + `/` + hash | the object as it was, as JSON, sealed if its kind is confidential; until it is forgotten |
//!
//! Of the nodes that hold an object one sets it aside: the one through which its *last edit* came. Last are the edits on
//! which no other edit builds. If another node's builds on ours, that node has both, and the same rule when its copy goes.
//! If that node was removed from the cluster, all do it that hold a copy; and of what is replaced and was never deleted, since
//! that node may be removed before it hears of it. That is rare, so it may be done too often.
//! The deletion of an object names the last edits that the deleter saw ([`Seen`]); who has the same loses nothing.
//!
//! Who takes the last step of a deletion may have more than who decided on it could see: that is what the *mark*
//! (`metadata.deletionTimestamp`) builds on. What is in a namespace has no mark of its own when that is deleted, so the
//! mark of a namespace says what was in there ([`Sight`]). What builds on an object's mark was written in the knowledge that it goes,
//! and is no edit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use automerge::legacy::Key;
use automerge::{Change, ChangeHash, ObjId, ROOT, ReadDoc};
use schemas::{Kind, Object, ObjectKey, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::disk::Write;
use crate::document::{BadBytes, ChangeAuthor, Document};
use crate::epoch::{is_carried, is_loose_base, lasting_id};
use crate::incarnation::Seen;
use crate::index;
use crate::leaves;
use crate::prepare::Prepared;
use crate::record::{Record, show};
use crate::seal::Seal;
use crate::shared::Shared;
use crate::store::{Store, finished};
use crate::types::{CommitError, NodeId, Via};

pub(crate) const RESCUED: &str = "r/";
/// So many rescued objects wait for the agent at most, if it keeps up. More are kept all the same: each takes less than the
/// document that it is left of.
const WAITING: usize = 1000;
const OPEN: u8 = 0;
const SEALED: u8 = 1;
/// The leaf that says that an object is being deleted.
pub(crate) const MARK: &str = "metadata/deletionTimestamp";
/// Heads of documents that the mark of a namespace names at most, 16 characters each: 800 KB, of the 3.5 MB of a change. With more
/// in it, whoever collects it is taken for who deleted the namespace.
const MAX_SIGHT_HEADS: usize = 50_000;

/// Of a deletion that does not say which last edits the deleter saw.
pub(crate) const UNSEEN: Seen = [0; 8];

/// Names one rescued object in its store: object key, `/`, hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RescueId(String);

impl RescueId {
    /// Returns the hash at its end (hex).
    pub fn hash(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for RescueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an object could not be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Lost {
    /// Somebody deleted it who may not have seen the last edit.
    Deleted,
    /// Nobody deleted it: another was created under its name where it was not known, in a later round.
    Replaced,
    /// This node was away until deletions were forgotten.
    Stale,
    /// Its history was squashed to one that may lack the last edit.
    SquashedAway,
}

/// An object with an edit of a user that this node acknowledged and could not keep.
#[derive(Clone, PartialEq, Debug)]
pub struct Rescued {
    pub id: RescueId,
    pub key: ObjectKey,
    pub why: Lost,
    /// As this node had it, without projection; with uid.
    pub object: Object,
    /// Who made the last edit through this node; empty, if nobody proved who they are, or it is not known any more.
    pub user: String,
    /// The field manager of that edit.
    pub manager: String,
    /// Time of that edit, seconds since the Unix epoch.
    pub edited_unix_seconds: i64,
}

/// A record of a rescued object.
#[derive(Serialize, Deserialize)]
struct Kept {
    why: Lost,
    object: Object,
    user: String,
    manager: String,
    edited_unix_seconds: i64,
}

impl Rescued {
    fn new(
        key: &ObjectKey,
        why: Lost,
        object: Object,
        edit: ChangeAuthor,
    ) -> Result<(Self, Vec<u8>), BadBytes> {
        let kept = Kept {
            why,
            object,
            user: edit.user,
            manager: edit.manager,
            edited_unix_seconds: edit.unix_seconds,
        };
        let json = serde_json::to_vec(&kept).map_err(|error| BadBytes(error.to_string()))?;
        // The same, if it is done again after a crash.
        let hash = hex(&Sha256::digest(&json)[..8]);
        let id = RescueId(format!("{key}/{hash}"));
        Ok((Self::of(id, key.clone(), kept), json))
    }

    fn of(id: RescueId, key: ObjectKey, kept: Kept) -> Self {
        Self {
            id,
            key,
            why: kept.why,
            object: kept.object,
            user: kept.user,
            manager: kept.manager,
            edited_unix_seconds: kept.edited_unix_seconds,
        }
    }

    /// Reads a record.
    pub(crate) fn decode(disk_key: &[u8], value: &[u8], seal: &Seal) -> Result<Self, String> {
        let text = std::str::from_utf8(disk_key).ok();
        let id = text.and_then(|text| text.strip_prefix(RESCUED));
        let key = id.and_then(|id| id.rsplit_once('/')?.0.parse().ok());
        let (Some(id), Some(key)) = (id, key) else {
            return Err("no key of this version".to_owned());
        };
        let json = match value.split_first() {
            Some((&OPEN, json)) => json.to_vec(),
            Some((&SEALED, sealed)) => seal.unseal(disk_key, sealed).map_err(|error| error.to_string())?,
            Some(_) | None => return Err("unknown kind of record".to_owned()),
        };
        let kept: Kept = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        Ok(Self::of(RescueId(id.to_owned()), key, kept))
    }
}

fn disk_key(id: &RescueId) -> Vec<u8> {
    format!("{RESCUED}{id}").into_bytes()
}

/// Rescued objects that wait for the agent.
#[derive(Default, Debug)]
pub(crate) struct Waiting(BTreeMap<RescueId, Arc<Rescued>>);

impl Waiting {
    pub(crate) fn add(&mut self, rescued: Arc<Rescued>) {
        self.0.insert(rescued.id.clone(), rescued);
        if self.0.len() > WAITING {
            tracing::error!(
                waiting = self.0.len(),
                "rescued objects are not taken out of the store"
            );
        }
    }

    pub(crate) fn forget(&mut self, id: &RescueId) {
        self.0.remove(id);
    }
}

impl Store {
    /// Returns the rescued objects that wait to be taken out, in the order of their keys.
    pub fn rescued(&self) -> Vec<Arc<Rescued>> {
        self.shared.index().rescued.0.values().cloned().collect()
    }

    /// Is woken when an object was rescued.
    pub fn rescues(&self) -> Arc<Notify> {
        self.shared.rescues.clone()
    }

    /// Forgets a rescued object: it is in a safe place. Durable when this returns.
    ///
    /// # Errors
    /// The disk does not take it.
    pub async fn forget_rescued(&self, id: &RescueId) -> Result<(), CommitError> {
        let permit = self.permit().await?;
        let prepared = Prepared {
            writes: vec![Write::remove(disk_key(id))],
            change: index::Change::Forget(id.clone()),
            fresh: None,
            rescued: None,
        };
        finished(Self::enqueue(permit, None, prepared, Vec::new())).await?;
        Ok(())
    }
}

/// What was held in a namespace where somebody asked for its deletion: the heads of the documents in it, shortened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct Sight(BTreeSet<u64>);

/// Hexadecimal digits of a head.
const SIGHT_DIGITS: usize = 16;

impl Sight {
    /// Takes the heads of records; None, if there are too many.
    pub(crate) fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Option<Self> {
        let heads = records.flat_map(Record::heads).map(|head| Self::short(&head));
        let heads: BTreeSet<u64> = heads.collect();
        (heads.len() <= MAX_SIGHT_HEADS).then_some(Self(heads))
    }

    fn short(hash: &ChangeHash) -> u64 {
        hash.0
            .iter()
            .take(8)
            .fold(0, |short, byte| short << 8 | u64::from(*byte))
    }

    fn has(&self, hash: &ChangeHash) -> bool {
        self.0.contains(&Self::short(hash))
    }
}

impl From<Sight> for String {
    fn from(sight: Sight) -> Self {
        sight
            .0
            .iter()
            .map(|head| format!("{head:0SIGHT_DIGITS$x}"))
            .collect()
    }
}

impl From<String> for Sight {
    /// Leaves out what cannot be read: it counts as unseen.
    fn from(text: String) -> Self {
        let heads = text.as_bytes().chunks(SIGHT_DIGITS);
        let heads = heads.filter_map(|head| u64::from_str_radix(std::str::from_utf8(head).ok()?, 16).ok());
        Self(heads.collect())
    }
}

/// The namespace that was looked at last, and what its marks say was in it: mostly the next object is of the same one.
#[derive(Default)]
pub(crate) struct LastSight(Mutex<Option<Looked>>);

type Looked = (Arc<Record>, Option<Arc<Sight>>);

/// An edit of a user, or a base that may stand for some.
struct Edit {
    hash: ChangeHash,
    /// The same in every epoch.
    id: String,
    author: ChangeAuthor,
}

/// The last edits of an object that goes.
pub(crate) struct Edits {
    last: LastEdits,
    /// A digest of those that could be seen by who decided that it goes; [`UNSEEN`], if they could see nothing of it.
    pub(crate) seen: Seen,
    /// The changes that they could see; None: all.
    visible: Option<BTreeSet<ChangeHash>>,
}

impl Edits {
    /// Returns those that could not be seen by who decided that the object goes.
    pub(crate) fn unseen(self) -> LastEdits {
        let Some(visible) = self.visible else {
            return LastEdits::default();
        };
        let unseen = self.last.0.into_iter();
        LastEdits(unseen.filter(|edit| !visible.contains(&edit.hash)).collect())
    }
}

/// The edits on which no other edit builds.
#[derive(Default)]
pub(crate) struct LastEdits(Vec<Edit>);

impl LastEdits {
    /// Finds them among changes with all their causes. `knowing`: what was written in the knowledge that the object goes.
    fn of<'a>(changes: impl DoubleEndedIterator<Item = &'a Change>, knowing: &BTreeSet<ChangeHash>) -> Self {
        let mut built_on: BTreeSet<ChangeHash> = BTreeSet::new();
        let mut last = Vec::new();
        // What was carried over to a loose base was made without some of it; all else builds on the whole.
        let mut is_base_built_on = false;
        // Effects before causes.
        for change in changes.rev() {
            let hash = change.hash();
            let is_built_on = if is_loose_base(change) {
                is_base_built_on
            } else {
                built_on.contains(&hash)
            };
            let author = if is_built_on || knowing.contains(&hash) {
                None
            } else {
                editor(change)
            };
            if is_built_on || author.is_some() {
                built_on.extend(change.deps());
            }
            is_base_built_on |= author.is_some() && !is_carried(change);
            last.extend(author.map(|author| Edit {
                hash,
                id: lasting_id(change.actor_id(), change.seq()),
                author,
            }));
        }
        last.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        Self(last)
    }

    fn seen(&self) -> Seen {
        let mut hasher = Sha256::new();
        self.0.iter().for_each(|edit| hasher.update(&edit.id));
        let mut short = UNSEEN;
        short.copy_from_slice(&hasher.finalize()[..UNSEEN.len()]);
        short
    }
}

/// Returns changes and all that they build on.
fn with_causes(history: &[Change], changes: BTreeSet<ChangeHash>) -> BTreeSet<ChangeHash> {
    let mut found = changes;
    for change in history.iter().rev() {
        if found.contains(&change.hash()) {
            found.extend(change.deps());
        }
    }
    found
}

/// Returns what builds on changes.
fn effects(history: &[Change], causes: &BTreeSet<ChangeHash>) -> BTreeSet<ChangeHash> {
    let mut found = BTreeSet::new();
    if causes.is_empty() {
        return found;
    }
    for change in history {
        let mut deps = change.deps().iter();
        if deps.any(|dep| causes.contains(dep) || found.contains(dep)) {
            found.insert(change.hash());
        }
    }
    found
}

/// Returns who made a change, if it is an edit: what came from outside. A base may stand for edits. What has nobody's name on
/// it counts too: without authentication all has.
fn editor(change: &Change) -> Option<ChangeAuthor> {
    let said: ChangeAuthor = serde_json::from_str(change.message()?).ok()?;
    let author = ChangeAuthor {
        unix_seconds: change.timestamp(),
        ..said
    };
    if author.dropped.is_some() {
        return Some(author);
    }
    // A controller decides anew, and the repository is applied again.
    let is_edit = !author.is_controller() && author.via != Some(Via::GitOps);
    // Who asks for a deletion loses nothing by it.
    let is_mark = || {
        let mut operations = change.decode().operations.into_iter();
        operations.any(|operation| matches!(&operation.key, Key::Map(path) if path == MARK))
    };
    (is_edit && !is_mark()).then_some(author)
}

/// A change that says that an object is being deleted.
struct Mark {
    hash: ChangeHash,
    author: ChangeAuthor,
    is_carried: bool,
}

impl Document {
    /// Returns what says that this is being deleted: more than one, if several asked for it at once.
    fn marks(&mut self) -> Vec<Mark> {
        let values = self.automerge.get_all(&ROOT, MARK).unwrap_or_default();
        let ids: Vec<ObjId> = values.into_iter().map(|(_, id)| id).collect();
        let mark = |id: ObjId| {
            let hash = self.automerge.document().hash_for_opid(&id)?;
            let change = self.automerge.get_change_by_hash(&hash)?;
            Some(Mark {
                hash,
                author: serde_json::from_str(change.message()?).ok()?,
                is_carried: is_carried(&change),
            })
        };
        ids.into_iter().filter_map(mark).collect()
    }
}

impl Shared {
    fn has_left(&self, node: &NodeId) -> bool {
        let key = ObjectKey::cluster(Kind::Member, &node.0);
        let index = self.index();
        index.record(&key).is_none() && index.removed(&key).is_some()
    }

    /// Returns the last edits of an object that is taken away through `via`.
    pub(crate) fn edits(&self, key: &ObjectKey, record: &Record, document: &mut Document, via: Via) -> Edits {
        let marks = document.marks();
        let history = document.history();
        // Of what builds on a base one cannot tell when it was made.
        let told = marks.iter().filter(|mark| mark.author.dropped.is_none());
        let knowing = effects(&history, &told.map(|mark| mark.hash).collect());
        let last = LastEdits::of(history.iter(), &knowing);
        let Some(decided_at) = self.decided_at(key, record, &marks, &history, via) else {
            return Edits {
                seen: last.seen(),
                last,
                visible: None,
            };
        };
        let is_unknown = decided_at.is_empty();
        let mut visible = with_causes(&history, decided_at);
        // A mark that was carried over to a loose base was made without some of it.
        if marks.iter().any(|mark| mark.is_carried) {
            for base in history.iter().filter(|change| is_loose_base(change)) {
                visible.remove(&base.hash());
            }
        }
        let seen = history.iter().filter(|change| visible.contains(&change.hash()));
        let seen = LastEdits::of(seen, &knowing).seen();
        Edits {
            last,
            seen: if is_unknown { UNSEEN } else { seen },
            visible: Some(visible),
        }
    }

    /// Returns the changes of an object that were the newest where it was decided that it goes; None: all that are here.
    fn decided_at(
        &self,
        key: &ObjectKey,
        record: &Record,
        marks: &[Mark],
        history: &[Change],
        via: Via,
    ) -> Option<BTreeSet<ChangeHash>> {
        if marks.is_empty() && via != Via::Controller {
            return None;
        }
        match self.sight_of_namespace(key, record) {
            None if marks.is_empty() => None,
            None => Some(marks.iter().map(|mark| mark.hash).collect()),
            // What collects it decides nothing.
            Some(sight) => {
                let by_users = marks.iter().filter(|mark| !mark.author.is_controller());
                let in_sight = history.iter().map(Change::hash).filter(|hash| sight.has(hash));
                Some(by_users.map(|mark| mark.hash).chain(in_sight).collect())
            }
        }
    }

    /// Returns what was in the namespace of an object where somebody asked for the deletion of that, for which it goes: nothing, if
    /// the namespace is gone already. None, if it stays, or nobody says.
    fn sight_of_namespace(&self, key: &ObjectKey, record: &Record) -> Option<Arc<Sight>> {
        let name = ObjectKey::cluster(Kind::Namespace, &key.namespace);
        let (is_orphan, namespace) = {
            let index = self.index();
            (index.is_orphan(key, record), index.record(&name))
        };
        if is_orphan {
            return Some(Arc::default());
        }
        let namespace = namespace.filter(|_| key.kind.is_namespaced())?;
        let mut last = self.last_sight.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, sight)) = last.as_ref()
            && Arc::ptr_eq(of, &namespace)
        {
            return sight.clone();
        }
        let marks = self.load(&name, &namespace).map(|mut document| document.marks());
        let sights = marks
            .unwrap_or_default()
            .into_iter()
            .map(|mark| mark.author.sight);
        // Somebody saw all that any of them says.
        let sight = sights.reduce(|one, other| Some(Sight(&one?.0 | &other?.0)));
        let sight = sight.flatten().map(Arc::new);
        *last = Some((namespace, sight.clone()));
        sight
    }

    /// Sets aside what a record holds, which the batch of `prepared` takes away or replaces, if an edit of a user through
    /// this node may be lost with it: `seen` by who deleted it ([`UNSEEN`], if nobody says). What a controller owns is not
    /// set aside: it makes it again.
    ///
    /// # Errors
    /// It cannot be set aside, and must not be taken away.
    pub(crate) fn rescue(
        &self,
        prepared: &mut Prepared,
        key: &ObjectKey,
        record: &Record,
        why: Lost,
        seen_by_deleter: Seen,
    ) -> Result<(), BadBytes> {
        let mut document = record.load(self.actor(record.epoch))?;
        let edits = self.edits(key, record, &mut document, Via::Controller);
        if edits.last.seen() == seen_by_deleter {
            return Ok(());
        }
        // What could be seen may be known here, too.
        let is_known = seen_by_deleter != UNSEEN && edits.seen == seen_by_deleter;
        let lost = if is_known { edits.unseen() } else { edits.last };
        self.set_aside(prepared, key, record, &document, (why, lost))
    }

    /// Sets aside what a document holds, if one of these edits came through this node.
    pub(crate) fn set_aside(
        &self,
        prepared: &mut Prepared,
        key: &ObjectKey,
        record: &Record,
        document: &Document,
        (why, lost): (Lost, LastEdits),
    ) -> Result<(), BadBytes> {
        // Of who has left the cluster, or may leave it without having heard of this: rather too often than never.
        let is_everyones = why == Lost::Replaced;
        let is_ours =
            |edit: &Edit| is_everyones || edit.author.node == self.node || self.has_left(&edit.author.node);
        let ours = lost.0.into_iter().filter(is_ours);
        let Some(edit) = ours.max_by_key(|edit| edit.author.unix_seconds) else {
            return Ok(());
        };
        let uid = self.uids.uid(key, record.incarnation);
        let object = show(key, uid, record, leaves::materialise(&document.contents().leaves));
        if object.controller().is_some() {
            return Ok(());
        }
        let (rescued, json) = Rescued::new(key, why, object, edit.author)?;
        let place = disk_key(&rescued.id);
        let value = if key.kind.row().confidential {
            let sealed = self.seal.seal(&place, &json);
            [
                &[SEALED],
                sealed.map_err(|error| BadBytes(error.to_string()))?.as_slice(),
            ]
            .concat()
        } else {
            [&[OPEN], json.as_slice()].concat()
        };
        tracing::warn!(%key, ?why, user = rescued.user, "an edit cannot be kept and is set aside");
        prepared.writes.push(Write::put(place, value));
        prepared.rescued = Some(Arc::new(rescued));
        Ok(())
    }
}
