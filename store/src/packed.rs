//! Objects in little room: as JSON, and as trees while somebody uses them or did so lately.
//!
//! A tree takes ten to twenty times its JSON in memory (each map has a table and entries of a hundred bytes).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use schemas::Object;

use crate::json;

/// JSON of the trees that are kept for the next reader: all of a small cluster, and in memory ten times as much.
pub(crate) const RECENT_BYTES: usize = 1 << 20;

/// The trees that were made or read last.
#[derive(Default, Debug)]
pub(crate) struct Recent {
    trees: Mutex<Trees>,
}

#[derive(Default, Debug)]
struct Trees {
    /// With the bytes of their JSON.
    queue: VecDeque<(Arc<Object>, usize)>,
    bytes: usize,
}

/// An object that can always be had as a tree.
#[derive(Debug)]
pub(crate) struct Packed {
    json: Box<[u8]>,
    recent: Arc<Recent>,
    tree: Mutex<Weak<Object>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recent {
    fn keep(&self, tree: Arc<Object>, bytes: usize) {
        let mut dropped = Vec::new();
        let mut trees = lock(&self.trees);
        trees.queue.push_back((tree, bytes));
        trees.bytes += bytes;
        while trees.bytes > RECENT_BYTES
            && let Some((tree, bytes)) = trees.queue.pop_front()
        {
            trees.bytes -= bytes;
            dropped.push(tree);
        }
        // Trees are dropped piece by piece: nobody should wait for that.
        drop(trees);
    }
}

impl Packed {
    pub(crate) fn new(object: &Arc<Object>, recent: &Arc<Recent>) -> Self {
        let json = json::to_box(&**object);
        recent.keep(object.clone(), json.len());
        Self {
            json,
            recent: recent.clone(),
            tree: Mutex::new(Arc::downgrade(object)),
        }
    }

    /// Tells whether this is that object, without making a tree.
    pub(crate) fn is(&self, object: &Object) -> bool {
        json::is(object, &self.json)
    }

    /// Returns what it takes while nobody has its tree.
    pub(crate) fn bytes(&self) -> usize {
        self.json.len()
    }

    pub(crate) fn tree(&self) -> Arc<Object> {
        let (object, is_new) = self.made();
        if is_new {
            self.recent.keep(object.clone(), self.json.len());
        }
        object
    }

    /// [`Packed::tree`] for one of so many that each would only drive out the others.
    pub(crate) fn passing(&self) -> Arc<Object> {
        self.made().0
    }

    /// The tree, and whether it had to be made.
    fn made(&self) -> (Arc<Object>, bool) {
        let mut tree = lock(&self.tree);
        if let Some(tree) = tree.upgrade() {
            return (tree, false);
        }
        // Our own JSON can be read: no leaf has more levels than `path::MAX_LEVELS`.
        let object: Arc<Object> = Arc::new(serde_json::from_slice(&self.json).unwrap_or_default());
        *tree = Arc::downgrade(&object);
        (object, true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tree_is_shared_while_it_is_used_and_made_anew_after() {
        let recent = Arc::new(Recent::default());
        let float = json!({"a": {"b": [1.0, 0.1, 1e300, u64::MAX, 2.225_073_858_507_201_4e-308]}});
        let object = Arc::new(Object::from_value(float).unwrap());
        let packed = Packed::new(&object, &recent);
        assert!(Arc::ptr_eq(&packed.tree(), &object));
        let expected = Object::clone(&object);
        drop(object);
        for number in 0..1024 {
            let tree = Arc::new(Object::from_value(json!({ "n": number })).unwrap());
            recent.keep(tree, RECENT_BYTES / 1024);
        }
        assert!(lock(&packed.tree).upgrade().is_none());
        assert_eq!(*packed.tree(), expected);
    }
}
