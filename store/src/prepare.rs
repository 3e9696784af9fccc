//! Changes of one object, prepared in memory from what is held of it now. No disk, no waiting.

use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};

use crate::apply;
use crate::commit::Fresh;
use crate::disk::Write;
use crate::document::{Birth, ChangeAuthor, Contents, Desired, Document, FirstChange, WrittenChange};
use crate::epoch::Epoch;
use crate::incarnation::{Incarnation, Tombstone, Uids};
use crate::index::{Change, PackedView, set_resource_version};
use crate::leaves::{self, Leaves};
use crate::managed;
use crate::owners::{Operation, Owner};
use crate::record::{Record, Standing, Stored, document_key, show, tombstone_key};
use crate::rescue::{Lost, MARK, Rescued, UNSEEN};
use crate::shared::Shared;
use crate::types::{Author, Precondition, Revision, View, WriteError};

/// A change that is ready to be committed.
pub(crate) struct Prepared {
    pub(crate) writes: Vec<Write>,
    pub(crate) change: Change,
    pub(crate) fresh: Option<Fresh>,
    /// What is set aside in the same batch.
    pub(crate) rescued: Option<Arc<Rescued>>,
}

impl Prepared {
    /// Tells whether fields change, and not their owners alone.
    pub(crate) fn changes_fields(&self) -> bool {
        let change = self.fresh.as_ref().and_then(|fresh| fresh.change.as_ref());
        change.is_none_or(|change| change.has_fields)
    }
}

/// Whether an update says who owns what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ownership {
    /// By `managedFields`, which it sees.
    Said,
    Unsaid,
}

/// The manager of `kubectl apply --server-side`.
const KUBECTL: &str = "kubectl";
const MANAGED_FIELDS: [&str; 2] = ["metadata", "managedFields"];

/// The longest key: namespace and name have 253 characters each at most, and the longest resource 60.
const MAX_KEY_BYTES: usize = 1024;

fn invalid(key: impl ToString, reason: impl Into<String>) -> WriteError {
    WriteError::Invalid {
        key: key.to_string(),
        reason: reason.into(),
    }
}

/// Returns the key of an object that can be stored.
pub(crate) fn check(object: &Object) -> Result<ObjectKey, WriteError> {
    let Some(key) = object.key() else {
        return Err(invalid(object.name(), "no known apiVersion and kind, or no name"));
    };
    let text = key.to_string();
    if text.len() > MAX_KEY_BYTES || text.parse().as_ref() != Ok(&key) {
        return Err(invalid(text, "not a name, or not in a namespace"));
    }
    leaves::check_limits(object).map_err(|reason| invalid(&key, reason))?;
    Ok(key)
}

fn internal(key: &ObjectKey, error: impl std::fmt::Display) -> WriteError {
    invalid(key, error.to_string())
}

/// Returns an object without what the store itself says in it.
pub(crate) fn stripped(object: &Object) -> Object {
    let mut tree = object.clone();
    leaves::strip_system_fields(&mut tree);
    tree
}

/// Returns what an object that is applied demands of the stored one.
fn precondition(object: &Object) -> Precondition {
    let version = object.str_at("/metadata/resourceVersion").parse();
    Precondition {
        uid: Some(object.uid().to_owned()).filter(|uid| !uid.is_empty()),
        resource_version: version.ok().map(Revision),
    }
}

/// Checks a view, of which `uid` is the document's.
fn check_precondition(precondition: &Precondition, view: &PackedView, uid: &str) -> Result<(), WriteError> {
    let conflict = |reason| WriteError::Conflict {
        key: view.key.clone(),
        reason,
    };
    if let Some(wanted) = precondition.uid.as_ref()
        && wanted != uid
        && wanted != view.tree().uid()
    {
        return Err(conflict(format!("its uid is {uid}, not {wanted}")));
    }
    match precondition.resource_version {
        Some(wanted) if wanted != view.revision => Err(conflict(format!(
            "its resourceVersion is {}, not {wanted}",
            view.revision
        ))),
        Some(_) | None => Ok(()),
    }
}

/// An object that is to be changed.
struct Loaded<'a> {
    key: &'a ObjectKey,
    record: Arc<Record>,
    /// Of its view.
    revision: Revision,
    document: Document,
    contents: Contents,
}

impl Loaded<'_> {
    /// Returns the object as updates see it: without projection.
    fn object(&self, uids: &Uids) -> Object {
        let tree = leaves::materialise(&self.contents.leaves);
        let mut object = show(
            self.key,
            uids.uid(self.key, self.record.incarnation),
            &self.record,
            tree,
        );
        set_resource_version(&mut object, self.revision);
        object
    }
}

impl Shared {
    fn change_author(&self, author: &Author) -> ChangeAuthor {
        ChangeAuthor {
            manager: author.manager.clone(),
            user: author.user.clone(),
            node: self.node.clone(),
            via: Some(author.via),
            unix_seconds: author.unix_seconds,
            dropped: None,
            sight: None,
        }
    }

    pub(crate) fn prepare_create(
        &self,
        key: &ObjectKey,
        object: &Object,
        author: &Author,
        operation: Operation,
    ) -> Result<Prepared, WriteError> {
        let (incarnation, birth, unsent) = {
            let index = self.index();
            if index.record(key).is_some() {
                return Err(WriteError::Exists(key.clone()));
            }
            if index.quarantine.holds(key) {
                return Err(WriteError::Unreadable(key.clone()));
            }
            let incarnation = Incarnation::next(index.round(), index.removed(key))
                .ok_or_else(|| invalid(key, "this name was used too often"))?;
            let namespace = (!key.namespace.is_empty()).then(|| index.namespace_incarnation(&key.namespace));
            let birth = Birth {
                unix_seconds: author.unix_seconds,
                namespace: namespace.flatten(),
            };
            (incarnation, birth, index.unsent())
        };
        let leaves = leaves::flatten(key.kind, &stripped(object), &Leaves::new());
        let actor = self.actor(Epoch::default());
        let author = self.change_author(author);
        let first = FirstChange::new(key.kind, leaves, birth, &author, operation, actor)
            .map_err(|error| internal(key, error))?;
        let standing = Standing {
            incarnation,
            epoch: Epoch::default(),
            generation: 1,
            changes: 1,
            unsent,
        };
        let record = Record::first(&first, standing);
        self.put(key, record, &first.contents, Some(first.written()))
    }

    /// Prepares an update; None if nothing changes.
    pub(crate) fn prepare_update<E: From<WriteError>>(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: &Author,
        ownership: Ownership,
        mut change: impl FnMut(&Object) -> Result<Object, E>,
    ) -> Result<Option<Prepared>, E> {
        let loaded = self.load_current(key, precondition)?;
        let mut current = loaded.object(&self.uids);
        if ownership == Ownership::Said {
            managed::show_in(&mut current, key.kind, &loaded.contents);
        }
        let mut changed = change(&current)?;
        let Contents {
            leaves: old, owners, ..
        } = &loaded.contents;
        let said = changed.remove(&MANAGED_FIELDS);
        let said = said.filter(|said| {
            ownership == Ownership::Said && current.pointer("/metadata/managedFields") != Some(said)
        });
        let owners = &said
            .and_then(|said| managed::assigned(key.kind, old, owners, &said))
            .unwrap_or_else(|| owners.clone());
        let (before, after) = (stripped(&current), stripped(&changed));
        if before == after && *owners == loaded.contents.owners {
            return Ok(None);
        }
        leaves::check_limits(&changed).map_err(|reason| invalid(key, reason))?;
        let leaves = leaves::flatten(key.kind, &after, old);
        let mut owners = apply::owners_after_update(old, &leaves, owners, &author.manager);
        owners.cap_updaters(&leaves, &Owner::new(Operation::Update, &author.manager));
        let desired = Desired {
            leaves,
            owners,
            is_applied: false,
        };
        Ok(self.write(loaded, desired, author)?)
    }

    /// Prepares an apply to an object that is there; None if nothing changes.
    pub(crate) fn prepare_apply(
        &self,
        key: &ObjectKey,
        object: &Object,
        author: &Author,
        force: bool,
    ) -> Result<Option<Prepared>, WriteError> {
        let loaded = self.load_current(key, &precondition(object))?;
        let Contents {
            leaves: old, owners, ..
        } = &loaded.contents;
        let named = leaves::flatten_named(key.kind, &stripped(object), old);
        let (mut leaves, mut owners) = apply::apply(key.kind, old, owners, named, &author.manager, force)
            .map_err(|fields| WriteError::Owned {
                key: key.clone(),
                fields,
            })?;
        if author.manager == KUBECTL {
            apply::renew_last_applied(object, &mut leaves, &mut owners);
        }
        leaves::check_limits(&leaves::materialise(&leaves)).map_err(|reason| invalid(key, reason))?;
        let desired = Desired {
            leaves,
            owners,
            is_applied: true,
        };
        self.write(loaded, desired, author)
    }

    pub(crate) fn prepare_remove(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
        author: &Author,
    ) -> Result<Prepared, WriteError> {
        let (record, _) = self.current(key, precondition)?;
        let mut document = self.load(key, &record);
        let edits = document
            .as_mut()
            .map(|document| self.edits(key, &record, document, author.via));
        let seen = edits.as_ref().map_or(UNSEEN, |edits| edits.seen);
        let removed = Tombstone::new(record.incarnation, self.index().round(), seen);
        let mut prepared = self.burial(key, removed, true);
        // What who decided that it goes has not seen is lost here, too.
        if let (Some(document), Some(edits)) = (document, edits) {
            let lost = (Lost::Deleted, edits.unseen());
            self.set_aside(&mut prepared, key, &record, &document, lost)
                .map_err(|error| internal(key, error))?;
        }
        Ok(prepared)
    }

    /// Removes what is held of `key` up to an incarnation.
    pub(crate) fn burial(&self, key: &ObjectKey, removed: Tombstone, is_fresh: bool) -> Prepared {
        let covers = self
            .index()
            .record(key)
            .is_some_and(|record| record.incarnation <= removed.incarnation);
        let document = covers.then(|| Write::remove(document_key(key)));
        let tombstone = Write::put(tombstone_key(key), tombstone(removed));
        Prepared {
            writes: document.into_iter().chain([tombstone]).collect(),
            change: Change::Bury {
                key: key.clone(),
                removed,
            },
            fresh: is_fresh.then(|| Fresh {
                key: key.clone(),
                change: None,
            }),
            rescued: None,
        }
    }

    /// Returns what is held of a key, if the precondition holds.
    fn current(
        &self,
        key: &ObjectKey,
        precondition: &Precondition,
    ) -> Result<(Arc<Record>, Revision), WriteError> {
        let (record, view) = {
            let index = self.index();
            (index.record(key), index.packed(key))
        };
        let (Some(record), Some(view)) = (record, view) else {
            return Err(WriteError::NotFound(key.clone()));
        };
        let uid = self.uids.uid(key, record.incarnation);
        check_precondition(precondition, &view, &uid)?;
        Ok((record, view.revision))
    }

    /// Checks what an apply demands of a key that has no document: of what is computed, if anything is.
    pub(crate) fn check_without_document(&self, key: &ObjectKey, object: &Object) -> Result<(), WriteError> {
        let precondition = precondition(object);
        if precondition == Precondition::default() {
            return Ok(());
        }
        let view = self.index().packed(key);
        let view = view.ok_or_else(|| WriteError::NotFound(key.clone()))?;
        check_precondition(&precondition, &view, view.tree().uid())
    }

    fn load_current<'a>(
        &self,
        key: &'a ObjectKey,
        precondition: &Precondition,
    ) -> Result<Loaded<'a>, WriteError> {
        let (record, revision) = self.current(key, precondition)?;
        let document = record
            .load(self.actor(record.epoch))
            .map_err(|error| internal(key, error))?;
        let contents = document.contents();
        Ok(Loaded {
            key,
            record,
            revision,
            document,
            contents,
        })
    }

    fn write(
        &self,
        mut loaded: Loaded<'_>,
        desired: Desired,
        author: &Author,
    ) -> Result<Option<Prepared>, WriteError> {
        let Loaded {
            key,
            record,
            document,
            contents,
            ..
        } = &mut loaded;
        let is_applied = desired.is_applied;
        let mut author = self.change_author(author);
        let is_marked = |leaves: &Leaves| leaves.contains_key(MARK);
        if key.kind == Kind::Namespace && is_marked(&desired.leaves) && !is_marked(&contents.leaves) {
            author.sight = self.index().sight(&key.name);
        }
        let written = document.write(key.kind, contents, desired, &author);
        let Some(written) = written.map_err(|error| internal(key, error))? else {
            return Ok(None);
        };
        let mut standing = record.standing();
        standing.generation = standing.generation.saturating_add(written.is_spec.into());
        standing.changes = standing.changes.saturating_add(1);
        let record = Record::of(document, &contents.birth, standing);
        let prepared = self.put(key, record, contents, Some(written))?;
        // What an update adds of owners is bounded by the object, and what controllers do goes on.
        if is_applied && let Change::Put { stored, .. } = &prepared.change {
            let bytes = |managed: Option<&str>| managed.map_or(0, str::len);
            let before = self.index().packed(key);
            let before = bytes(before.as_ref().and_then(PackedView::managed));
            managed::check_size(before, bytes(stored.managed.as_deref()))
                .map_err(|reason| invalid(*key, reason))?;
        }
        Ok(Some(prepared))
    }

    pub(crate) fn put(
        &self,
        key: &ObjectKey,
        record: Record,
        contents: &Contents,
        written: Option<WrittenChange>,
    ) -> Result<Prepared, WriteError> {
        let value = record
            .encode(key, &self.seal)
            .map_err(|error| internal(key, error))?;
        let uid = self.uids.uid(key, record.incarnation);
        Ok(Prepared {
            writes: vec![Write::put(document_key(key), value)],
            change: Change::Put {
                key: key.clone(),
                stored: Stored::new(key, uid, record, contents),
                removed: None,
            },
            fresh: written.map(|change| Fresh {
                key: key.clone(),
                change: Some(change),
            }),
            rescued: None,
        })
    }

    /// Returns the view that a prepared change would have, for a dry run.
    pub(crate) fn preview(&self, prepared: Prepared) -> Option<View> {
        let Change::Put { key, stored, .. } = prepared.change else {
            return None;
        };
        let managed = stored.managed;
        let before = self.index().packed(&key).map(|view| view.revision);
        let mut object = Arc::unwrap_or_clone(stored.object);
        // What is not there has no version.
        if let Some(revision) = before {
            set_resource_version(&mut object, revision);
        }
        let revision = before.unwrap_or_default();
        Some(View {
            key,
            object: object.into(),
            managed,
            revision,
            stored: true,
        })
    }
}

pub(crate) fn tombstone(removed: Tombstone) -> Vec<u8> {
    removed.to_string().into_bytes()
}
