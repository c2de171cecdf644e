//! Stand-in for `futures_util::task::AtomicWaker`.

use std::fmt;
use std::task::Waker;

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{Acquire, Release};

use super::hidden::Hidden;

/// A slot for the waker of one task. loom's own `AtomicWaker` is a mutex, so its `wake` also acquires what `register`
/// released, which the original doesn't promise. Here each operation is one step on one word, whose value has no
/// meaning.
pub(crate) struct AtomicWaker {
    word: AtomicUsize,
    waker: Hidden<Option<Waker>>,
}

impl AtomicWaker {
    pub(crate) fn new() -> Self {
        Self { word: AtomicUsize::new(0), waker: Hidden::new(None) }
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.word.fetch_add(1, Acquire);
        *self.waker.get() = Some(waker.clone());
    }

    pub(crate) fn wake(&self) {
        self.word.fetch_add(1, Release);
        let waker = self.waker.get().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for AtomicWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicWaker").finish_non_exhaustive()
    }
}
