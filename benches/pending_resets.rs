//! Compares two concurrent sets for the pending resets: dashmap's and crossbeam's skip list.
//!
//! In the storm, two threads insert 5,000 instances each while the loop takes them out one by one. In the quiet case,
//! one insert and one take alternate.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_skiplist::SkipSet;
use dashmap::DashSet;

/// The client id and the sid of an instance, as the pending resets keep them.
type Entry = (u64, Arc<str>);

trait Pending: Default + Send + Sync + 'static {
    fn insert(&self, entry: Entry);
    fn take(&self) -> Option<Entry>;
}

impl Pending for SkipSet<Entry> {
    fn insert(&self, entry: Entry) {
        Self::insert(self, entry);
    }

    fn take(&self) -> Option<Entry> {
        self.pop_front().map(|entry| entry.value().clone())
    }
}

impl Pending for DashSet<Entry> {
    fn insert(&self, entry: Entry) {
        Self::insert(self, entry);
    }

    fn take(&self) -> Option<Entry> {
        let first = self.iter().next().map(|entry| entry.key().clone())?;
        self.remove(&first)
    }
}

fn storm<P: Pending>(entries: &[Vec<Entry>]) {
    let set = Arc::new(P::default());
    let inserters: Vec<_> = entries
        .iter()
        .map(|share| {
            let (set, share) = (Arc::clone(&set), share.clone());
            thread::spawn(move || share.into_iter().for_each(|entry| set.insert(entry)))
        })
        .collect();
    let expected = entries.iter().map(Vec::len).sum();
    let mut taken = HashSet::with_capacity(expected);
    while taken.len() < expected {
        match set.take() {
            Some((client, _)) => assert!(taken.insert(client), "taken once"),
            None => thread::yield_now(),
        }
    }
    inserters.into_iter().for_each(|inserter| inserter.join().expect("inserted"));
}

fn one_by_one<P: Pending>(set: &P, entry: &Entry) {
    set.insert(entry.clone());
    black_box(set.take());
}

fn sets(c: &mut Criterion) {
    let entries: Vec<Vec<Entry>> = (0..2)
        .map(|thread| (0..5_000).map(|n| (2 * n + thread, Arc::from(format!("PA_{n:06}_{thread}")))).collect())
        .collect();
    let mut group = c.benchmark_group("pending_resets/storm");
    group.sample_size(20);
    group.bench_function("skip_set", |b| b.iter(|| storm::<SkipSet<Entry>>(&entries)));
    group.bench_function("dash_set", |b| b.iter(|| storm::<DashSet<Entry>>(&entries)));
    group.finish();
    let mut group = c.benchmark_group("pending_resets/one_by_one");
    let (skip, dash) = (SkipSet::default(), DashSet::default());
    group.bench_function("skip_set", |b| b.iter(|| one_by_one(&skip, &entries[0][0])));
    group.bench_function("dash_set", |b| b.iter(|| one_by_one(&dash, &entries[0][0])));
    group.finish();
}

criterion_group!(benches, sets);
criterion_main!(benches);
