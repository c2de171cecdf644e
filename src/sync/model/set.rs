//! Stand-in for `crossbeam_skiplist::SkipSet`.

use std::fmt;

use loom::sync::atomic::AtomicU8;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::hidden::Hidden;

/// The most inserts in the lifetime of a set.
const INSERTS: usize = 4;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const TAKEN: u8 = 2;

/// An ordered set. The pop of an element acquires what the element's insert released.
pub(crate) struct SkipSet<K> {
    /// The state of each insert. A pop reads all of them: otherwise loom wouldn't know what the pop depends on.
    states: [AtomicU8; INSERTS],
    /// The keys, in the order of the inserts.
    keys: Hidden<Vec<K>>,
}

/// A popped element.
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
