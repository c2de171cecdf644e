//! The model checker's replacements for the real atomics and containers.
//!
//! # Promises of each type
//! loom runs a closure in every interleaving, up to a bound on preemptions, and lets every load return every value that
//! the C++ memory model allows. loom sees only its own types, so each container is replaced by a stand-in. A stand-in
//! keeps its data in a `std` mutex, which loom doesn't see: loom switches threads only at its own operations, so the
//! mutex is never contended and orders nothing. The stand-in uses loom's atomics to express what becomes visible to
//! which thread. It has no ordering that its original doesn't promise:
//!
//! | type | what the original's documentation promises | what the stand-in does |
//! |---|---|---|
//! | [`ArrayQueue`] | first in, first out; bounded; `pop` is `None` only when the queue is empty | the pop of an element acquires what its push released, and nothing of other pushes; a full or empty answer may be stale |
//! | [`ArcSwap`] | every operation holds a SeqCst read-modify-write | less: load acquires, compare-and-swap is AcqRel on this one place |
//! | [`SkipSet`] | inserting and popping from any thread; each element is popped once | the pop of an element acquires what its insert released; an insert that didn't happen before the pop may be missed |
//! | [`DashMap`] | a reader-writer lock over each part of the map | loom's reader-writer lock, one for each of the first keys; accesses after a guard is dropped are unordered |
//! | [`OnceBox`] | the first caller to initialise wins, the others get its value | compare-exchange (AcqRel), loads acquire |
//! | [`Notify`] | `notify_waiters` wakes every wait that began before it, `notify_one` one wait, perhaps the next one | one relaxed read-modify-write each; only the wake-up makes visible what was done before the call |
//! | [`AtomicWaker`] | `register` acquires what earlier calls of `wake` released; a later `wake` wakes the registered task | one atomic step each: `register` acquires, `wake` releases |
//!
//! A model that uses the stand-ins shows that *our* algorithm holds if the originals keep those promises. It doesn't
//! check the originals. One stand-in is stronger than promised: loom's lock also orders a reader after an earlier
//! reader.
//!
//! # Broken variants
//! A model proves something only if it fails without the ordering it is about. [`Weaken`] removes that ordering below
//! the code under test, which stays unchanged: fences do nothing, or a claim orders nothing.

mod hidden;
mod map;
mod notify;
mod once;
mod queue;
mod set;
mod swap;
mod waker;
mod weaken;

#[cfg(test)]
pub(crate) mod kit;

pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering};

pub(crate) use self::map::{DashMap, Entry, new_map};
pub(crate) use self::notify::Notify;
pub(crate) use self::once::OnceBox;
pub(crate) use self::queue::ArrayQueue;
pub(crate) use self::set::SkipSet;
pub(crate) use self::swap::ArcSwap;
pub(crate) use self::waker::AtomicWaker;
pub(crate) use self::weaken::{AtomicBool, AtomicU64, AtomicUsize, AtomicWord, fence};
