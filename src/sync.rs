//! The only place that names the atomics and lock-free containers that the models run, so that the model checker can
//! replace them.
//!
//! A normal build uses the real types. With `--cfg lanecast_loom`, atomics and fences are loom's, and the containers
//! are stand-ins with only the orderings that the real types promise. A model therefore shows that our algorithm holds
//! on top of those promises, not that the dependencies keep them.

pub(crate) mod bits;
pub(crate) mod capacity;
pub(crate) mod signal;
pub(crate) mod waiting;

#[cfg(not(lanecast_loom))]
mod real {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use crossbeam::queue::ArrayQueue;
    pub(crate) use crossbeam_skiplist::SkipSet;
    pub(crate) use dashmap::Entry;
    pub(crate) use futures_util::task::AtomicWaker;
    pub(crate) use once_cell::race::OnceBox;
    pub(crate) use tokio::sync::Notify;
    /// A map whose keys are hashed by foldhash, which takes a fraction of SipHash's time for short names. See the
    /// limitations.
    pub(crate) type DashMap<K, V> = dashmap::DashMap<K, V, foldhash::fast::RandomState>;

    /// The most parts of a map, each of which has a lock and takes 128 bytes. DashMap's default is four for each core,
    /// which on 64 cores would be most of an idle session's memory.
    const MOST_PARTS: usize = 32;

    /// Creates an empty map.
    pub(crate) fn new_map<K: Eq + std::hash::Hash, V>() -> DashMap<K, V> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let parts = (4 * cores).next_power_of_two().min(MOST_PARTS);
        DashMap::with_hasher_and_shard_amount(foldhash::fast::RandomState::default(), parts)
    }

    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    /// The state of a [`signal`](super::signal). The model checker replaces it in another way than the other numbers.
    pub(crate) type AtomicWord = AtomicU64;
}

#[cfg(not(lanecast_loom))]
pub(crate) use real::*;

#[cfg(lanecast_loom)]
mod model;
#[cfg(lanecast_loom)]
pub(crate) use model::*;
