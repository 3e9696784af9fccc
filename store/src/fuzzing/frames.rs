//! Frames of peers to small stores: whatever they take, they can be opened again, and they can still meet.

use arbitrary::Result;
use automerge::{ActorId, AutoCommit};
use bytes::Bytes;
use schemas::{Object, ObjectKey};

use super::replica::{self, Replica};
use super::values::{self, Source};
use super::{held, shown};
use crate::digest::{BUCKETS, BucketDigest};
use crate::frame::{self, Agreement, Blob, Body, Changes, Delta, Heads, Item, Summary, VERSION, Want};
use crate::incarnation::Tombstone;
use crate::random::seed;
use crate::{Author, Exchange, MemoryDisk, NodeId, Precondition, Via, WriteError};

const STEPS: usize = 16;

/// Lets two stores write, meet, and take frames that others made up or changed.
pub fn frames(input: &[u8]) {
    seed(1);
    let mut source = Source::new(input);
    let disks = [MemoryDisk::default(), MemoryDisk::default()];
    let mut world = World {
        replicas: [open(&disks[0], "a"), open(&disks[1], "b")],
        frames: Vec::new(),
        changes: Vec::new(),
        heads: Vec::new(),
    };
    // What runs out of bytes was tried up to there.
    let _ = world.run(&mut source);
    world.exchange(0);
    world.exchange(1);
    for (replica, disk) in world.replicas.into_iter().zip(disks) {
        let store = replica.close();
        let again = open(&disk.after_power_loss(), "again").close();
        assert_eq!(again.unreadable(), []);
        assert_eq!(held(&again), held(&store));
        assert_eq!(again.digest(), store.digest());
        assert_eq!(shown(&again), shown(&store));
    }
}

fn open(disk: &MemoryDisk, node: &str) -> Replica {
    Replica::open(disk, node).expect("a disk of our own")
}

struct World {
    replicas: [Replica; 2],
    /// What was sent so far.
    frames: Vec<Bytes>,
    /// Changes that were written so far, and their hashes.
    changes: Vec<Vec<u8>>,
    heads: Vec<[u8; 32]>,
}

fn author() -> Author {
    Author {
        manager: "git".to_owned(),
        user: "admin".to_owned(),
        via: Via::Api,
        unix_seconds: 0,
    }
}

impl World {
    fn run(&mut self, source: &mut Source<'_>) -> Result<()> {
        let mut pushes = [0, 1].map(|at: usize| self.replicas[at].store.pushes());
        let mut stranger = AutoCommit::new().with_actor(ActorId::from([5; 16]));
        for _ in 0..STEPS {
            if source.is_empty() {
                break;
            }
            let at = source.choose_index(self.replicas.len())?;
            match source.int_in_range(0..=15_u8)? {
                0..=2 => {
                    let key = values::key(source)?;
                    let object = values::object(source, &key)?;
                    self.write(at, &key, object, source.arbitrary()?);
                }
                3 => {
                    let key = values::key(source)?;
                    let any = Precondition::default();
                    check(self.replicas[at].run(async |store| store.remove(&key, &any, author()).await));
                }
                4 => {
                    let frames = self.exchange(at);
                    self.frames.extend(frames);
                }
                5 => {
                    let floor = source.int_in_range(0..=2)?;
                    if let Some(mut proposal) = self.replicas[at].store.propose_beyond(1, floor) {
                        let answer = self.receive(1 - at, &proposal.frame());
                        if let Some(answer) = &answer {
                            proposal.answered(answer);
                        }
                        let all = answer.is_some();
                        let squashed = self.replicas[at].run(async |store| store.squash(proposal, all).await);
                        squashed.expect("a disk of memory");
                    }
                }
                6 => {
                    let change = values::change(source, &mut stranger)?;
                    self.learn(&change);
                }
                7 => {
                    let frame: Vec<u8> = source.arbitrary()?;
                    self.receive(at, &frame);
                }
                8 => {
                    let frame = [&VERSION.to_be_bytes()[..], source.arbitrary::<&[u8]>()?].concat();
                    self.receive(at, &frame);
                }
                9 if !self.frames.is_empty() => {
                    let frame = source.choose(&self.frames)?.to_vec();
                    let frame = if source.arbitrary()? {
                        values::mutated(source, frame)?
                    } else {
                        frame
                    };
                    self.receive(at, &frame);
                }
                _ => {
                    let body = self.body(at, source)?;
                    let header = values::header(source)?;
                    if let Ok(frame) = frame::encode(header, &body) {
                        // A stamp may have been put right.
                        let read = frame::decode(&frame).ok();
                        assert_eq!(read.is_some(), header.floor <= header.round);
                        let again = read.and_then(|(header, body)| frame::encode(header, &body).ok());
                        let same = again.as_ref().and_then(|frame| frame::decode(frame).ok());
                        assert_eq!(same, again.and_then(|_| frame::decode(&frame).ok()));
                        self.receive(at, &frame);
                    }
                }
            }
            for pushed in &mut pushes {
                while let Ok(push) = pushed.try_recv() {
                    let live = push.delta.live.iter();
                    live.flat_map(|live| &live.changes)
                        .for_each(|change| self.learn(&change.0));
                    let items = vec![Delta::clone(&push.delta)];
                    self.frames
                        .extend(frame::encode(push.header, &Body::Push { items }));
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, change: &[u8]) {
        if let Ok(parsed) = automerge::Change::from_bytes(change.to_vec()) {
            self.heads.push(parsed.hash().0);
            self.changes.push(change.to_vec());
        }
    }

    fn exchange(&mut self, from: usize) -> Vec<Bytes> {
        let [a, b] = &mut self.replicas;
        match from {
            0 => replica::exchange(a, b),
            _ => replica::exchange(b, a),
        }
    }

    fn write(&mut self, at: usize, key: &ObjectKey, object: Object, by_update: bool) {
        let replica = &mut self.replicas[at];
        if by_update && replica.store.get(key).is_some() {
            let change = |_: &Object| Ok::<_, WriteError>(object.clone());
            let any = Precondition::default();
            check(replica.run(async |store| store.update(key, &any, author(), change).await));
        } else {
            check(replica.run(async |store| store.apply(object, author(), true).await));
        }
    }

    /// Hands a frame over, and returns the answer.
    fn receive(&mut self, at: usize, frame: &[u8]) -> Option<Bytes> {
        let peer = NodeId("peer".to_owned());
        match self.replicas[at].run(async |store| store.receive(&peer, frame).await) {
            Ok(Exchange::Send(answer)) => {
                self.frames.push(answer.clone());
                Some(answer)
            }
            Ok(Exchange::Done) | Err(crate::SyncError::Malformed(_) | crate::SyncError::Version { .. }) => {
                None
            }
            Err(error) => panic!("a disk in memory does not fail: {error}"),
        }
    }

    /// Makes up what a replica is told.
    fn body(&self, at: usize, source: &mut Source<'_>) -> Result<Body> {
        let going = self.replicas[at].store.shared.index().going();
        let more = source.arbitrary()?;
        Ok(match source.int_in_range(0..=9_u8)? {
            0 => Body::Digests {
                buckets: vec![
                    BucketDigest::default();
                    *source.choose(&[BUCKETS, BUCKETS, 0, 1, BUCKETS + 1])?
                ],
                going,
            },
            1 | 2 => Body::Summary(Summary {
                going,
                buckets: if source.arbitrary()? {
                    (0..=u8::MAX).collect()
                } else {
                    source.arbitrary()?
                },
                items: self.some(source, Self::item)?,
                more,
            }),
            3..=5 => Body::Changes {
                items: self.some(source, Self::delta)?,
                wants: self.some(source, Self::want)?,
                more,
            },
            6 => Body::Answer {
                items: self.some(source, Self::delta)?,
                more,
                progress: source.arbitrary()?,
            },
            7 => Body::Push {
                items: self.some(source, Self::delta)?,
            },
            8 => Body::Propose {
                items: self.some(source, Self::item)?,
            },
            _ => Body::Agree {
                answers: vec![*source.choose(&[Agreement::No, Agreement::Yes, Agreement::YesCleanly])?],
            },
        })
    }

    fn some<T>(
        &self,
        source: &mut Source<'_>,
        one: impl Fn(&Self, &mut Source<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut list = Vec::new();
        for _ in 0..source.int_in_range(0..=3_u8)? {
            list.push(one(self, source)?);
        }
        Ok(list)
    }

    fn key(source: &mut Source<'_>) -> Result<String> {
        if source.ratio(7, 8)? {
            Ok(values::key(source)?.to_string())
        } else {
            values::text(source)
        }
    }

    fn removed(source: &mut Source<'_>) -> Result<Option<Tombstone>> {
        Ok(if source.ratio(1, 3)? {
            Some(values::tombstone(source)?)
        } else {
            None
        })
    }

    fn some_heads(&self, source: &mut Source<'_>) -> Result<Vec<[u8; 32]>> {
        self.some(source, |world, source| match world.heads.as_slice() {
            [] => source.arbitrary(),
            heads => source.choose(heads).copied(),
        })
    }

    fn item(&self, source: &mut Source<'_>) -> Result<Item> {
        Ok(Item {
            key: Self::key(source)?,
            removed: Self::removed(source)?,
            live: if source.arbitrary()? {
                Some(Heads {
                    incarnation: values::incarnation(source)?,
                    epoch: values::epoch(source, &self.heads)?,
                    heads: self.some_heads(source)?,
                })
            } else {
                None
            },
        })
    }

    fn want(&self, source: &mut Source<'_>) -> Result<Want> {
        Ok(Want {
            key: Self::key(source)?,
            incarnation: values::incarnation(source)?,
            epoch: values::epoch(source, &self.heads)?,
            heads: self.some_heads(source)?,
        })
    }

    fn delta(&self, source: &mut Source<'_>) -> Result<Delta> {
        Ok(Delta {
            key: Self::key(source)?,
            removed: Self::removed(source)?,
            live: if source.ratio(3, 4)? {
                Some(Changes {
                    incarnation: values::incarnation(source)?,
                    epoch: values::epoch(source, &self.heads)?,
                    changes: self.some(source, Self::change)?,
                })
            } else {
                None
            },
        })
    }

    fn change(&self, source: &mut Source<'_>) -> Result<Blob> {
        let known = match self.changes.as_slice() {
            [] => return Ok(Blob(values::chunk(1, source.arbitrary()?))),
            changes => source.choose(changes)?.clone(),
        };
        Ok(Blob(match source.int_in_range(0..=3_u8)? {
            0..=2 => known,
            _ => {
                let (of_type, content) = values::content(&known);
                values::chunk(of_type, &values::mutated(source, content.to_vec())?)
            }
        }))
    }
}

/// Whatever was taken before, a write is done or refused.
fn check<T>(result: std::result::Result<T, WriteError>) {
    if let Err(WriteError::Commit(error)) = result {
        panic!("a disk in memory does not fail: {error}");
    }
}
