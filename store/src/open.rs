//! Opening: reads and checks what a disk holds, and makes the shared state of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use automerge::ActorId;
use schemas::ObjectKey;
use sha2::{Digest, Sha256};

use crate::disk::{Disk, DiskError, Write};
use crate::frame::{Closed, Header};
use crate::incarnation::{Tombstone, Uids};
use crate::index::{Change, Index, REVISION_BLOCK};
use crate::path;
use crate::promises::{PROMISES, Promise, Promises};
use crate::quarantine::{self, UNREADABLE};
use crate::random::random;
use crate::record::{
    DOCUMENTS, FORMAT, META_CANARY, META_CONTACT, META_COPY, META_FLOOR, META_FORMAT, META_REVISION,
    META_ROUND, OLDEST_FORMAT, Record, Stored, TOMBSTONES,
};
use crate::rescue::{RESCUED, Rescued};
use crate::seal::Seal;
use crate::shared::Shared;
use crate::types::{OpenError, OpenOptions};

/// A new store begins to count anywhere below 2^46: of 50 nodes two have one tag in 2 of 100 clusters, and then their
/// revisions shall not be equal. 2^22 starts, each of which takes a block of 2^24, are still below 2^47, so that a
/// `resourceVersion` fits an i64, which some clients read it as.
const FIRST_REVISION_SHIFT: u32 = 64 - 46;
const MAX_REVISION: u64 = 1 << 47;

const CANARY: &[u8] = b"podman-swarm";

/// Reads everything from a disk; prepares an empty one.
pub(crate) fn load(disk: &mut dyn Disk, path: &str, options: OpenOptions) -> Result<Shared, OpenError> {
    let seal = Seal::new(&options.seal_key);
    let io = |error: DiskError| match error {
        DiskError::Full(shortage) => OpenError::Full(shortage),
        DiskError::Damaged(reason) => OpenError::Damaged {
            path: path.to_owned(),
            reason,
        },
        DiskError::Io(source) => OpenError::Io {
            path: path.to_owned(),
            source,
        },
    };
    let mut meta = BTreeMap::new();
    disk.scan("m/", &mut |key, value| {
        meta.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
    })
    .map_err(io)?;
    check_meta(&meta, &seal, path)?;

    let last = match meta.contains_key(META_REVISION) {
        true => number(&meta, META_REVISION),
        false => random::<u64>() >> FIRST_REVISION_SHIFT,
    };
    if last > MAX_REVISION {
        let (path, reason) = (path.to_owned(), format!("{META_REVISION} is {last}"));
        return Err(OpenError::Damaged { path, reason });
    }
    let reserved = last + REVISION_BLOCK;
    let mut writes = vec![
        Write::put(META_REVISION, reserved.to_be_bytes()),
        Write::put(META_FORMAT, FORMAT.to_be_bytes()),
    ];
    let copy = match meta.get(META_COPY) {
        Some(copy) => copy.clone(),
        None => {
            let copy = random::<[u8; 16]>().to_vec();
            let canary = seal
                .seal(META_CANARY.as_bytes(), CANARY)
                .map_err(|error| OpenError::Damaged {
                    path: path.to_owned(),
                    reason: error.to_string(),
                })?;
            writes.push(Write::put(META_CANARY, canary));
            writes.push(Write::put(META_COPY, copy.clone()));
            copy
        }
    };
    let contact = contact(&meta, disk.identity());
    writes.push(Write::put(META_CONTACT, contact_record(contact, disk.identity())));
    disk.write(writes).and_then(|()| disk.sync()).map_err(io)?;

    let mut hasher = Sha256::new();
    hasher.update(&options.node.0);
    hasher.update(copy);
    hasher.update(disk.identity().to_be_bytes());
    let tag = hasher.finalize();
    let tag = u16::from_be_bytes([tag[0], tag[1]]);

    let uids = Uids::new(options.cluster_id);
    let mut index = Index::new(uids.clone(), tag, last + 1, reserved);
    // Of records that cannot be read, or are of no use any more: what to write instead of them.
    let mut set_aside = Vec::new();
    let mut unreadable = |disk_key: &[u8], key: Option<ObjectKey>, value: &[u8], reason: &str| {
        let disk_key_text = String::from_utf8_lossy(disk_key);
        match key {
            Some(key) => {
                tracing::error!(%key, reason, "a record cannot be read: its bytes are set aside, peers bring the object again");
                set_aside.extend(quarantine::set_aside(&key, disk_key, value));
            }
            // Of a kind that another version knows; it is left to that.
            None => tracing::error!(key = %disk_key_text, reason, "a record is left alone"),
        }
    };
    let mut tombstones = BTreeMap::new();
    disk.scan(
        TOMBSTONES,
        &mut |disk_key, value| match (object_key(disk_key, TOMBSTONES), tombstone(value)) {
            (Some(key), Some(removed)) => {
                tombstones.insert(key, removed);
            }
            (key, _) => unreadable(disk_key, key, value, "no tombstone"),
        },
    )
    .map_err(io)?;
    index.restore(registers(&meta), contact, tombstones);
    disk.scan(DOCUMENTS, &mut |disk_key, value| {
        let key = object_key(disk_key, DOCUMENTS);
        let stored = match &key {
            Some(key) => read(key, value, &seal, &uids).and_then(|stored| {
                let is_removed = index.removed(key) >= Some(stored.record.incarnation);
                (!is_removed)
                    .then_some(stored)
                    .ok_or_else(|| "it was removed".to_owned())
            }),
            None => Err("no key of this version".to_owned()),
        };
        match (key, stored) {
            (Some(key), Ok(stored)) => {
                index.publish(Change::Put {
                    key,
                    stored,
                    removed: None,
                });
            }
            (key, Err(reason)) => unreadable(disk_key, key, value, &reason),
            (None, Ok(_)) => {}
        }
    })
    .map_err(io)?;
    let promises = Promises::default();
    disk.scan(PROMISES, &mut |disk_key, value| {
        let key = object_key(disk_key, PROMISES);
        let record = key.as_ref().and_then(|key| index.record(key));
        let promise =
            Promise::decode(value).filter(|promise| record.is_some_and(|record| promise.is_of(&record)));
        match (key, promise) {
            (Some(key), Some(promise)) => promises.restore(key, promise),
            _ => set_aside.push(Write::remove(disk_key)),
        }
    })
    .map_err(io)?;
    if !set_aside.is_empty() {
        disk.write(set_aside).and_then(|()| disk.sync()).map_err(io)?;
    }
    disk.scan(UNREADABLE, &mut |disk_key, _| {
        if let Some(key) = object_key(disk_key, UNREADABLE) {
            index.quarantine.add(key);
        }
    })
    .map_err(io)?;
    disk.scan(
        RESCUED,
        &mut |disk_key, value| match Rescued::decode(disk_key, value, &seal) {
            Ok(rescued) => index.rescued.add(Arc::new(rescued)),
            Err(reason) => {
                let key = String::from_utf8_lossy(disk_key);
                tracing::error!(%key, reason, "what was rescued cannot be read, and is left alone");
            }
        },
    )
    .map_err(io)?;
    index.forget_history();
    Ok(Shared::new(options.node, uids, seal, index, promises))
}

pub(crate) fn read(key: &ObjectKey, value: &[u8], seal: &Seal, uids: &Uids) -> Result<Stored, String> {
    let record = Record::decode(key, value, seal).map_err(|error| error.to_string())?;
    let mut document = record
        .load(ActorId::random())
        .map_err(|error| error.to_string())?;
    if document.heads() != record.heads() {
        return Err("its document has other heads".to_owned());
    }
    let contents = document.contents();
    if contents.leaves.keys().any(|path| path::is_too_deep(path)) {
        // No peer would take it.
        return Err("it has a path that is too deep".to_owned());
    }
    let uid = uids.uid(key, record.incarnation);
    Ok(Stored::new(key, uid, record, &contents))
}

pub(crate) fn check_meta(meta: &BTreeMap<String, Vec<u8>>, seal: &Seal, path: &str) -> Result<(), OpenError> {
    let path = path.to_owned();
    let Some(format) = meta.get(META_FORMAT) else {
        return if meta.is_empty() {
            Ok(())
        } else {
            let reason = "it has no format".to_owned();
            Err(OpenError::Damaged { path, reason })
        };
    };
    let found = format.as_slice().try_into().map_or(0, u32::from_be_bytes);
    if !(OLDEST_FORMAT..=FORMAT).contains(&found) {
        return Err(OpenError::Format {
            path,
            found,
            ours: FORMAT,
        });
    }
    let canary = meta.get(META_CANARY).ok_or_else(|| OpenError::Damaged {
        path: path.clone(),
        reason: "it has no canary".to_owned(),
    })?;
    match seal.unseal(META_CANARY.as_bytes(), canary) {
        Ok(plain) if plain == CANARY => Ok(()),
        Ok(_) | Err(_) => Err(OpenError::WrongKey { path }),
    }
}

fn number(meta: &BTreeMap<String, Vec<u8>>, name: &str) -> u64 {
    let bytes = meta.get(name).and_then(|value| value.as_slice().try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

pub(crate) fn object_key(disk_key: &[u8], prefix: &str) -> Option<ObjectKey> {
    std::str::from_utf8(disk_key)
        .ok()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}

fn registers(meta: &BTreeMap<String, Vec<u8>>) -> Header {
    let round = u16::try_from(number(meta, META_ROUND)).unwrap_or(u16::MAX);
    let floor = meta.get(META_FLOOR).and_then(|value| value.split_first_chunk());
    let (floor, closed) = floor.map_or((0, Closed::default()), |(floor, closed)| {
        let closed = closed.try_into().unwrap_or_default();
        (u16::from_be_bytes(*floor), closed)
    });
    Header {
        round: round.max(floor),
        floor,
        closed,
    }
}

/// Returns how often there was contact. In a copy of a directory nothing is sure to be unsent: once more.
fn contact(meta: &BTreeMap<String, Vec<u8>>, identity: u64) -> u64 {
    let record = meta.get(META_CONTACT).and_then(|value| value.split_first_chunk());
    record.map_or(1, |(contact, place)| {
        let contact = u64::from_be_bytes(*contact);
        contact + u64::from(place != identity.to_be_bytes())
    })
}

pub(crate) fn contact_record(contact: u64, identity: u64) -> Vec<u8> {
    [contact.to_be_bytes(), identity.to_be_bytes()].concat()
}

pub(crate) fn tombstone(value: &[u8]) -> Option<Tombstone> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
