//! Rescue: what users were told is stored and cannot be merged is set aside, in the batch that takes it away, for the agent
//! to write to a file.
//!
//! | disk key | value |
//! |---|---|
//! | `r/` + object key + `/` + hash | the object as it was, as JSON, sealed if its kind is confidential; until it is forgotten |
//!
//! Of the nodes that hold an object one sets it aside: the one through which its *last edit* came. Last are the edits on
//! which no other edit builds. If another node's builds on ours, that node has both, and the same rule when its copy goes.
//! If that node was removed from the cluster, all do it that hold a copy.
//! The deletion of an object names the last edits that the deleter saw ([`Seen`]); who has the same loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use automerge::legacy::Key;
use automerge::{Change, ChangeHash};
use schemas::{Kind, Object, ObjectKey, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::disk::Write;
use crate::document::{BadBytes, ChangeAuthor, Document};
use crate::epoch::lasting_id;
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
const MARK: &str = "metadata/deletionTimestamp";

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

/// An edit of a user, or a base that may stand for some.
struct Edit {
    /// The same in every epoch.
    id: String,
    author: ChangeAuthor,
}

/// Returns the edits on which no other edit builds.
fn last_edits(history: &[Change]) -> Vec<Edit> {
    let mut built_on: BTreeSet<ChangeHash> = BTreeSet::new();
    let mut last = Vec::new();
    // Effects before causes.
    for change in history.iter().rev() {
        let is_built_on = built_on.contains(&change.hash());
        let author = if is_built_on { None } else { editor(change) };
        if is_built_on || author.is_some() {
            built_on.extend(change.deps());
        }
        last.extend(author.map(|author| Edit {
            id: lasting_id(change.actor_id(), change.seq()),
            author,
        }));
    }
    last.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    last
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
    let is_edit = match author.via {
        Some(Via::Apply | Via::Api) => true,
        // A controller decides anew, and the repository is applied again.
        Some(Via::GitOps | Via::Controller) => false,
        None => !author.user.is_empty(),
    };
    // Who asks for a deletion loses nothing by it.
    let is_mark = || {
        let mut operations = change.decode().operations.into_iter();
        operations.any(|operation| matches!(&operation.key, Key::Map(path) if path == MARK))
    };
    (is_edit && !is_mark()).then_some(author)
}

fn seen(edits: &[Edit]) -> Seen {
    let mut hasher = Sha256::new();
    edits.iter().for_each(|edit| hasher.update(&edit.id));
    let mut short = UNSEEN;
    short.copy_from_slice(&hasher.finalize()[..UNSEEN.len()]);
    short
}

impl Document {
    /// Returns what a deletion says of what the deleter saw.
    pub(crate) fn seen(&mut self) -> Seen {
        seen(&last_edits(&self.history()))
    }
}

impl Shared {
    fn has_left(&self, node: &NodeId) -> bool {
        let key = ObjectKey::cluster(Kind::Member, &node.0);
        let index = self.index();
        index.record(&key).is_none() && index.removed(&key).is_some()
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
        let edits = last_edits(&document.history());
        if seen(&edits) == seen_by_deleter {
            return Ok(());
        }
        // Of who has left the cluster, everybody does it: rather too often than never.
        let is_ours = |edit: &Edit| edit.author.node == self.node || self.has_left(&edit.author.node);
        let ours = edits.into_iter().filter(is_ours);
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
