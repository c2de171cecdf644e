//! Message types for the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lanecast::{Message, SubscriptionTag};

/// A message that records the tag it was addressed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) text: String,
    pub(crate) tag: Option<u32>,
    /// How often this very copy was addressed.
    pub(crate) addressed: u32,
}

impl Note {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), tag: None, addressed: 0 }
    }
}

impl Message for Note {
    fn byte_len(&self) -> usize {
        self.text.len()
    }

    fn address(&mut self, tag: SubscriptionTag) {
        self.tag = Some(tag.0);
        self.addressed += 1;
    }
}

/// A message whose `clone`, `address` and `drop` have an effect when the lane calls them.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) number: usize,
    /// Makes `address` panic.
    pub(crate) explosive: bool,
    /// Incremented by each clone.
    pub(crate) on_clone: Option<Arc<AtomicUsize>>,
    pub(crate) alive: Arc<AtomicUsize>,
}

impl Trap {
    pub(crate) fn new(number: usize, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self { number, explosive: false, on_clone: None, alive: Arc::clone(alive) }
    }
}

impl Clone for Trap {
    fn clone(&self) -> Self {
        if let Some(clones) = &self.on_clone {
            clones.fetch_add(1, Ordering::SeqCst);
        }
        self.alive.fetch_add(1, Ordering::SeqCst);
        Self {
            number: self.number,
            explosive: self.explosive,
            on_clone: self.on_clone.clone(),
            alive: Arc::clone(&self.alive),
        }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Message for Trap {
    fn byte_len(&self) -> usize {
        8
    }

    fn address(&mut self, _tag: SubscriptionTag) {
        assert!(!self.explosive, "the trap went off");
    }
}
