//! Tests of the whole store through its interface, on disks in memory unless a file says otherwise.

mod bounds;
mod compaction;
mod crash;
mod disjoint;
mod durability;
mod generated;
mod history;
mod managed;
mod properties;
mod quarantine;
mod replicas;
mod rescue;
mod round_histories;
mod rounds;
mod simulation;
mod watching;
mod writing;

use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use crate::{Author, Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Store, Via, View, WriteError};

pub(crate) fn options(node: &str) -> OpenOptions {
    OpenOptions {
        cluster_id: "cluster".to_owned(),
        node: NodeId(node.to_owned()),
        seal_key: [7; 32],
    }
}

pub(crate) fn store(node: &str) -> Store {
    Store::open_in_memory(MemoryDisk::default(), options(node)).unwrap()
}

pub(crate) fn author(manager: &str) -> Author {
    Author {
        manager: manager.to_owned(),
        user: "admin".to_owned(),
        via: Via::Api,
        unix_seconds: 1_714_557_661,
    }
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

pub(crate) fn deployment(name: &str) -> Object {
    object(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [
                    {"name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}],
                     "ports": [{"containerPort": 80}]},
                    {"name": "log", "image": "log:1", "args": ["-v", "--x"]}
                ]}
            }
        }
    }))
}

pub(crate) fn key_of(object: &Object) -> ObjectKey {
    object.key().unwrap()
}

pub(crate) fn namespace(name: &str) -> Object {
    Object::new(&ObjectKey::cluster(Kind::Namespace, name))
}

pub(crate) async fn edit(store: &Store, key: &ObjectKey, change: impl Fn(&mut Object) + Send + Sync) -> View {
    let result: Result<View, WriteError> = store
        .update(key, &Precondition::default(), author("test"), |object| {
            let mut changed = object.clone();
            change(&mut changed);
            Ok(changed)
        })
        .await;
    result.unwrap()
}

/// Removes what the store says of an object, to compare it with what was written.
pub(crate) fn plain(object: &Object) -> Value {
    let mut value = Value::Object(object.0.clone());
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|name, _| {
            !["uid", "creationTimestamp", "generation", "resourceVersion"].contains(&name.as_str())
        });
    }
    value
}

/// Runs exchanges that `from` begins until there is nothing more to say; returns the number of frames.
pub(crate) async fn exchange(from: &Store, to: &Store) -> usize {
    let (from_id, to_id) = (NodeId("from".to_owned()), NodeId("to".to_owned()));
    let mut frames = 0;
    let mut next = from.begin_exchange(&to_id);
    let mut sides = [(to, &from_id), (from, &to_id)].into_iter().cycle();
    while let Exchange::Send(frame) = next {
        frames += 1;
        assert!(frames < 1000, "an exchange that does not end");
        let Some((receiver, sender)) = sides.next() else {
            break;
        };
        next = receiver.receive(sender, &frame).await.unwrap();
    }
    frames
}

/// Squashes histories of `long` changes or more but for the last `kept`, as the driver of compaction does: the store `at`
/// proposes to those who hear it, and goes on if they and it are a majority. Returns how many were squashed.
pub(crate) async fn squash(stores: &[&Store], at: usize, hear: &[bool], long: u64, kept: usize) -> usize {
    let Some(mut proposal) = stores[at].propose_beyond(long, kept) else {
        return 0;
    };
    let mut agreed = 1;
    let others = stores.iter().zip(hear).enumerate();
    for (_, (store, _)) in others.filter(|(other, (_, hears))| *other != at && **hears) {
        let peer = NodeId("proposer".to_owned());
        let Exchange::Send(answer) = store.receive(&peer, &proposal.frame()).await.unwrap() else {
            panic!("a proposal is answered");
        };
        proposal.answered(&answer);
        agreed += 1;
    }
    if agreed * 2 <= stores.len() {
        return 0;
    }
    stores[at].squash(proposal, agreed == stores.len()).await.unwrap()
}
