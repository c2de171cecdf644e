//! Stand-in for `once_cell::race::OnceBox`.

use std::fmt;
use std::sync::OnceLock;

use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{AcqRel, Acquire};

/// A value that is initialised once. The first caller's value is kept; a caller that races with it drops its own.
pub(crate) struct OnceBox<T> {
    made: AtomicBool,
    value: OnceLock<Box<T>>,
}

impl<T> OnceBox<T> {
    pub(crate) fn new() -> Self {
        Self { made: AtomicBool::new(false), value: OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.made.load(Acquire) { self.value.get().map(AsRef::as_ref) } else { None }
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> Box<T>) -> &T {
        if !self.made.load(Acquire) {
            let value = make();
            if self.made.compare_exchange(false, true, AcqRel, Acquire).is_ok() {
                // There is no loom operation in between, so no thread sees the flag without the value.
                assert!(self.value.set(value).is_ok(), "only the caller that set the flag sets the value");
            }
        }
        self.value.get().expect("the flag is set together with the value")
    }
}

impl<T> fmt::Debug for OnceBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceBox").finish_non_exhaustive()
    }
}
