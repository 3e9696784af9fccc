//! Disks with any bytes: they are opened or refused, and what opens once opens again as it was.

use std::sync::LazyLock;

use arbitrary::Result;
use automerge::{ActorId, AutoCommit};
use schemas::{Kind, Object, ObjectKey};
use serde::Serialize;

use super::replica::{Replica, exchange};
use super::values::{self, Source};
use super::{held, options, shown};
use crate::disk::{Disk, Write};
use crate::incarnation::Incarnation;
use crate::random::seed;
use crate::record::{Record, document_key, tombstone_key};
use crate::seal::Seal;
use crate::{Author, MemoryDisk, Precondition, Store, Via, WriteError};

const STEPS: usize = 12;

/// Opens a store on a disk of which some records were changed, and uses it.
pub fn records(input: &[u8]) {
    // The same for all inputs.
    static WHOLE: LazyLock<MemoryDisk> = LazyLock::new(whole);
    let mut disk = WHOLE.after_power_loss();
    seed(1);
    let mut source = Source::new(input);
    // What runs out of bytes is tried as it is.
    let _ = damage(&mut source, &mut disk);
    let Ok(replica) = Replica::open(&disk, "a") else {
        return;
    };
    let seen = |store: &Store| (held(store), store.digest(), store.unreadable(), shown(store));
    let before = seen(&replica.close());
    let mut replica = Replica::open(&disk, "a").expect("it was opened before");
    assert_eq!(seen(&replica.store), before);
    work(&mut replica);
    let store = replica.close();
    let again = Replica::open(&disk.after_power_loss(), "a").expect("it was open");
    assert_eq!(held(&again.store), held(&store));
    assert_eq!(again.store.digest(), store.digest());
    assert_eq!(shown(&again.store), shown(&store));
}

/// Returns a disk with an object in the open and a sealed one.
fn whole() -> MemoryDisk {
    seed(0);
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, "a").expect("an empty disk");
    for kind in [Kind::Deployment, Kind::ApiToken] {
        let mut object = Object::new(&ObjectKey::new(kind, "default", "a"));
        object.set(&["spec", "replicas"], 1);
        let created = replica.run(async |store| store.create(object, author()).await);
        created.expect("an object");
    }
    replica.close();
    disk
}

fn author() -> Author {
    Author {
        manager: "git".to_owned(),
        user: "admin".to_owned(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

fn damage(source: &mut Source<'_>, disk: &mut MemoryDisk) -> Result<()> {
    let seal = Seal::new(&options("a").seal_key);
    let mut known = Vec::new();
    disk.scan("", &mut |key, value| known.push((key.to_vec(), value.to_vec())))
        .expect("a disk in memory");
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        let key = values::key(source)?;
        let write = match source.int_in_range(0..=9_u8)? {
            0 => Write::put(source.arbitrary::<Vec<u8>>()?, source.arbitrary::<Vec<u8>>()?),
            1 => {
                let prefix = *source.choose(&["d/", "t/", "m/", "u/", "q/", "r/"])?;
                let name = if source.arbitrary()? {
                    key.to_string()
                } else {
                    values::text(source)?
                };
                Write::put(format!("{prefix}{name}"), source.arbitrary::<Vec<u8>>()?)
            }
            2 => {
                let (key, value) = source.choose(&known)?.clone();
                Write::put(key, values::mutated(source, value)?)
            }
            3 => Write::remove(source.choose(&known)?.0.clone()),
            4 => Write::put(tombstone_key(&key), values::tombstone(source)?.to_string()),
            5 => {
                // Of the format before, or none.
                let first = source.int_in_range(0..=6_u8)?;
                let record = before(source)?;
                Write::put(document_key(&key), [&[first][..], &record].concat())
            }
            _ => {
                let record = record(source)?;
                let bytes = record.encode(&key, &seal).expect("any record can be written");
                assert_eq!(Record::decode(&key, &bytes, &seal).ok(), Some(record));
                Write::put(document_key(&key), bytes)
            }
        };
        disk.write(vec![write])
            .and_then(|()| disk.sync())
            .expect("a disk in memory");
    }
    Ok(())
}

/// A document of any content: one that automerge made of any operations, or whose bytes were changed.
fn document(source: &mut Source<'_>) -> Result<(Vec<u8>, Vec<[u8; 32]>)> {
    let mut document = AutoCommit::new().with_actor(ActorId::from([3; 16]));
    for _ in 0..source.int_in_range(0..=2_u8)? {
        values::change(source, &mut document)?;
    }
    let mut heads: Vec<[u8; 32]> = document.get_heads().iter().map(|hash| hash.0).collect();
    heads.sort_unstable();
    let saved = document.save();
    let bytes = match source.int_in_range(0..=7_u8)? {
        0 => source.arbitrary()?,
        1 => values::chunk(source.int_in_range(0..=3)?, source.arbitrary()?),
        2 => {
            let (of_type, content) = values::content(&saved);
            values::chunk(of_type, &values::mutated(source, content.to_vec())?)
        }
        _ => saved,
    };
    Ok((bytes, heads))
}

fn record(source: &mut Source<'_>) -> Result<Record> {
    let (document, heads) = document(source)?;
    Ok(Record {
        incarnation: values::incarnation(source)?,
        epoch: values::epoch(source, &heads)?,
        generation: source.arbitrary()?,
        changes: source.arbitrary()?,
        heads,
        namespace: if source.arbitrary()? {
            Some(values::incarnation(source)?)
        } else {
            None
        },
        created_unix_seconds: source.arbitrary()?,
        document: document.into(),
        unsent: source.arbitrary()?,
    })
}

/// As the format before wrote it.
#[derive(Serialize)]
struct RecordBefore {
    incarnation: Incarnation,
    epoch: u32,
    generation: u64,
    heads: Vec<[u8; 32]>,
    namespace: Option<Incarnation>,
    created_unix_seconds: i64,
    document: Box<[u8]>,
}

fn before(source: &mut Source<'_>) -> Result<Vec<u8>> {
    let Record {
        incarnation,
        generation,
        heads,
        namespace,
        created_unix_seconds,
        document,
        ..
    } = record(source)?;
    let record = RecordBefore {
        incarnation,
        epoch: 0,
        generation,
        heads,
        namespace,
        created_unix_seconds,
        document,
    };
    Ok(postcard::to_stdvec(&record).unwrap_or_default())
}

/// Does with a store what agents do; whatever it holds, it answers.
fn work(replica: &mut Replica) {
    let mut other = Replica::open(&MemoryDisk::default(), "b").expect("an empty disk");
    exchange(replica, &mut other);
    exchange(&mut other, replica);
    replica.store.orphaned_by_namespace();
    if let Some(proposal) = replica.store.propose_beyond(1, 0) {
        let squashed = replica.run(async |store| store.squash(proposal, true).await);
        squashed.expect("a disk in memory");
    }
    let any = Precondition::default();
    for (key, object) in shown(&replica.store) {
        let _ = replica.store.history(&key, 10);
        assert_eq!(replica.store.get(&key).map(|view| view.key), Some(key.clone()));
        let change = |object: &Object| {
            let mut object = object.clone();
            object.set(&["spec", "replicas"], 7);
            Ok::<_, WriteError>(object)
        };
        check(replica.run(async |store| store.update(&key, &any, author(), change).await));
        check(replica.run(async |store| store.apply(object, author(), true).await));
        if key.name == "b" {
            check(replica.run(async |store| store.remove(&key, &any, author()).await));
        }
    }
    for key in replica.store.unreadable() {
        for gives_up in [false, true, false] {
            if gives_up {
                check(replica.run(async |store| store.give_up(&key).await));
            } else {
                check(replica.run(async |store| store.create(Object::new(&key), author()).await));
            }
        }
    }
}

fn check<T>(result: std::result::Result<T, WriteError>) {
    if let Err(WriteError::Commit(error)) = result {
        panic!("a disk in memory does not fail: {error}");
    }
}
