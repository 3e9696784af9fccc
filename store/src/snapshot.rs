//! All documents of some kinds at one moment, for backups: in the order of their keys, without what is projected over
//! them, and cheap until they are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::{Kind, Object, ObjectKey};

use crate::index::Written;
use crate::store::Store;

/// The documents of some kinds as they were at one moment; later writes do not change it.
#[derive(Debug)]
pub struct Snapshot {
    documents: BTreeMap<ObjectKey, Written>,
    digest: String,
}

impl Store {
    /// Takes the documents of some kinds, all under one lock.
    pub fn snapshot(&self, kinds: &[Kind]) -> Snapshot {
        let index = self.shared.index();
        let documents = kinds.iter().flat_map(|kind| index.written(*kind));
        Snapshot {
            documents: documents.map(|(key, written)| (key.clone(), written)).collect(),
            digest: index.digests().total(index.header()),
        }
    }
}

impl Snapshot {
    /// Returns a document as it was written.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.documents.get(key).map(|document| document.tree())
    }

    /// Reads the documents in the order of their keys: by kind, namespace and name.
    pub fn documents(&self) -> impl Iterator<Item = (&ObjectKey, Arc<Object>)> {
        self.documents
            .iter()
            .map(|(key, document)| (key, document.tree()))
    }

    /// Names the kind of each document.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.documents.keys().map(|key| key.kind)
    }

    /// Returns the digest that the whole store had then ([`Store::digest`]).
    pub fn digest(&self) -> &str {
        &self.digest
    }
}
