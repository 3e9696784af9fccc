//! Objects in little room: as JSON, and as trees while somebody uses them or did so lately.
//!
//! A tree takes ten to twenty times its JSON in memory (each map has a table and entries of a hundred bytes).

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use schemas::Object;

use crate::json;

/// JSON of the trees that are kept for the next reader: all of a small cluster, and in memory ten times as much.
pub(crate) const RECENT_BYTES: usize = 1 << 20;

/// Texts that are kept without looking whether anybody has them.
const MIN_TEXTS: usize = 64;

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
    /// `metadata.managedFields` as JSON, which is not in the tree: few read it.
    pub(crate) managed: Option<Arc<str>>,
    recent: Arc<Recent>,
    tree: Mutex<Weak<Object>>,
}

/// Texts that many objects have in common: the pods of one ReplicaSet have the same fields of the same owners.
#[derive(Default, Debug)]
pub(crate) struct SharedTexts {
    texts: HashSet<Arc<str>>,
    /// So many may there be before those that nobody has any more are dropped.
    room: usize,
}

impl SharedTexts {
    /// Returns the one copy of a text.
    pub(crate) fn copy(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(text) = self.texts.get(&text) {
            return text.clone();
        }
        if self.texts.len() >= self.room {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            // Twice what is there: looking through them costs each text once or twice.
            self.room = MIN_TEXTS.max(2 * self.texts.len());
        }
        self.texts.insert(text.clone());
        text
    }
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
    pub(crate) fn new(object: &Arc<Object>, managed: Option<Arc<str>>, recent: &Arc<Recent>) -> Self {
        let json = json::to_box(&**object);
        recent.keep(object.clone(), json.len());
        Self {
            json,
            managed,
            recent: recent.clone(),
            tree: Mutex::new(Arc::downgrade(object)),
        }
    }

    /// Tells whether this is that object, without making a tree.
    pub(crate) fn is(&self, object: &Object, managed: Option<&Arc<str>>) -> bool {
        self.managed.as_ref() == managed && json::is(object, &self.json)
    }

    /// Returns what the object takes while nobody has its tree.
    pub(crate) fn bytes(&self) -> usize {
        self.json.len()
    }

    /// [`Packed::bytes`], and those of its `managedFields`: as if no other object had the same.
    pub(crate) fn all_bytes(&self) -> usize {
        self.json.len() + self.managed.as_ref().map_or(0, |managed| managed.len())
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
    fn equal_texts_are_one_and_go_with_the_last_who_has_them() {
        let mut shared = SharedTexts::default();
        let kept: Vec<Arc<str>> = (0..2).map(|_| shared.copy(Arc::from("kept"))).collect();
        assert!(Arc::ptr_eq(&kept[0], &kept[1]));
        for number in 0..10 * MIN_TEXTS {
            shared.copy(Arc::from(number.to_string()));
            assert!(shared.texts.len() <= MIN_TEXTS, "{}", shared.texts.len());
        }
        assert!(shared.texts.contains("kept"));
    }

    #[test]
    fn a_tree_is_shared_while_it_is_used_and_made_anew_after() {
        let recent = Arc::new(Recent::default());
        let float = json!({"a": {"b": [1.0, 0.1, 1e300, u64::MAX, 2.225_073_858_507_201_4e-308]}});
        let object = Arc::new(Object::from_value(float).unwrap());
        let packed = Packed::new(&object, None, &recent);
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
