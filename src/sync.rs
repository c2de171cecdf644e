//! The one place that names atomics and lock-free containers, so that the model checker can be put in their stead.
//!
//! Built as usual, these are the real ones. Built with `--cfg lanecast_loom`, atomics and fences are loom's, and the
//! containers are stand-ins with only those orderings that the real type promises: a model shows that our algorithm
//! holds on top of that promise, not that the crate keeps it.

#[cfg(not(lanecast_loom))]
mod real {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use crossbeam::queue::ArrayQueue;
    pub(crate) use crossbeam_skiplist::SkipSet;
    pub(crate) use dashmap::Entry;
    pub(crate) use futures_util::task::AtomicWaker;
    pub(crate) use once_cell::race::OnceBox;
    pub(crate) use tokio::sync::Notify;
    /// Hashed by foldhash: a fraction of SipHash's time for short names. See the limitations.
    pub(crate) type DashMap<K, V> = dashmap::DashMap<K, V, foldhash::fast::RandomState>;

    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

#[cfg(not(lanecast_loom))]
pub(crate) use real::*;

#[cfg(lanecast_loom)]
mod model;
#[cfg(lanecast_loom)]
pub(crate) use model::*;
