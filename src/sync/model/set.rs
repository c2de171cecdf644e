//! Stands in for `crossbeam_skiplist::SkipSet`.

use std::fmt;

use loom::sync::atomic::AtomicU8;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::Hidden;

/// How many inserts a set of a model takes in its life.
const INSERTS: usize = 4;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const TAKEN: u8 = 2;

/// An ordered set: each element carries to who pops it what its insert released.
pub(crate) struct SkipSet<K> {
    /// One for each insert. All are read by a pop, or loom wouldn't know what it depends on.
    states: [AtomicU8; INSERTS],
    /// In the order of the inserts.
    keys: Hidden<Vec<K>>,
}

/// An element that was popped.
pub(crate) struct Popped<K>(K);

impl<K> Popped<K> {
    pub(crate) fn value(&self) -> &K {
        &self.0
    }
}

impl<K: Ord + Clone> SkipSet<K> {
    pub(crate) fn new() -> Self {
        Self { states: std::array::from_fn(|_| AtomicU8::new(ABSENT)), keys: Hidden::new(Vec::new()) }
    }

    pub(crate) fn insert(&self, key: K) {
        let index = {
            let mut keys = self.keys.get();
            assert!(!keys.contains(&key), "no model inserts twice: replacing isn't modelled");
            keys.push(key);
            keys.len() - 1
        };
        self.states[index].store(PRESENT, Release);
    }

    pub(crate) fn pop_front(&self) -> Option<Popped<K>> {
        let mut seen: Vec<usize> = (0..INSERTS).filter(|index| self.states[*index].load(Acquire) == PRESENT).collect();
        let keys = self.keys.get().clone();
        seen.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
        let mine = seen
            .into_iter()
            .find(|index| self.states[*index].compare_exchange(PRESENT, TAKEN, AcqRel, Relaxed).is_ok())?;
        Some(Popped(keys[mine].clone()))
    }
}

impl<K> fmt::Debug for SkipSet<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SkipSet").finish_non_exhaustive()
    }
}
