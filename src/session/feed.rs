//! The channel from a session to its listeners: bounded, and no larger than what waits in it.
//!
//! An item is kept once for all listeners, until each has taken it. A listener that is more than the capacity behind
//! misses the oldest items and is told how many. Tokio's `broadcast` channel promises the same, and allocates its whole
//! capacity at once: for 1,024 events more than all else that an idle session holds.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use slab::Slab;
use tokio::sync::Notify;

use crate::caught::lock;

/// Places that stay allocated while nothing waits.
const FEW: usize = 32;

const WAITS: &str = "what lies between the first and the end waits";

/// The sending side. Dropping it ends the channel.
#[derive(Debug)]
pub(super) struct Feed<T>(Arc<Shared<T>>);

/// A listener.
#[derive(Debug)]
pub(super) struct Subscription<T> {
    shared: Arc<Shared<T>>,
    /// The key of the listener among the positions.
    key: usize,
}

/// What a listener gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<T> {
    Item(T),
    /// So many items were missed. The oldest that waits comes next.
    Missed(u64),
    /// Nothing follows.
    Ended,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    capacity: usize,
    /// Notified of each item, and of the end.
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    /// What some listener has yet to take.
    waiting: VecDeque<T>,
    /// The number of the first that waits.
    first: u64,
    /// For each listener, the number of the item that it gets next. It may lie below `first`.
    positions: Slab<u64>,
    has_ended: bool,
}

impl<T: Clone> Feed<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State { waiting: VecDeque::new(), first: 0, positions: Slab::new(), has_ended: false };
        Self(Arc::new(Shared { state: Mutex::new(state), capacity, changed: Notify::new() }))
    }

    /// Sends an item to all listeners. Without a listener it is dropped.
    pub(super) fn send(&self, item: T) {
        let mut state = lock(&self.0.state);
        if state.positions.is_empty() {
            return drop(state);
        }
        state.waiting.push_back(item);
        let oldest = if state.waiting.len() > self.0.capacity { state.waiting.pop_front() } else { None };
        state.first += u64::from(oldest.is_some());
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Creates a listener to what is sent from now on.
    pub(super) fn subscribe(&self) -> Subscription<T> {
        let mut state = lock(&self.0.state);
        let next = state.end();
        Subscription { shared: Arc::clone(&self.0), key: state.positions.insert(next) }
    }
}

impl<T> Drop for Feed<T> {
    fn drop(&mut self) {
        lock(&self.0.state).has_ended = true;
        self.0.changed.notify_waiters();
    }
}

impl<T: Clone> Subscription<T> {
    /// Waits for the next item.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, no item is lost.
    pub(super) async fn receive(&mut self) -> Received<T> {
        // A listener that always finds an item lets other tasks run.
        tokio::task::coop::consume_budget().await;
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(received) = lock(&self.shared.state).take(self.key) {
                return received;
            }
            changed.await;
        }
    }
}

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.positions.remove(self.key);
        let unneeded = state.take_unneeded();
        drop(state);
        // Without the lock: the drop of an item may run foreign code.
        drop(unneeded);
    }
}

impl<T> State<T> {
    /// The number of the next item that is sent.
    fn end(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    /// Takes out everything that every listener has taken.
    fn take_unneeded(&mut self) -> VecDeque<T> {
        let needed_from = self.positions.iter().map(|(_, position)| *position).min().unwrap_or(self.end());
        let count = usize::try_from(needed_from.saturating_sub(self.first)).expect(WAITS);
        self.first += count as u64;
        let kept = self.waiting.split_off(count);
        std::mem::replace(&mut self.waiting, kept)
    }
}

impl<T: Clone> State<T> {
    /// What the listener gets now, if there is anything.
    fn take(&mut self, key: usize) -> Option<Received<T>> {
        let position = self.positions[key];
        if position < self.first {
            self.positions[key] = self.first;
            return Some(Received::Missed(self.first - position));
        }
        if position == self.end() {
            return self.has_ended.then_some(Received::Ended);
        }
        self.positions[key] += 1;
        let is_first = position == self.first;
        if is_first && self.positions.iter().all(|(_, position)| *position > self.first) {
            self.first += 1;
            let item = self.waiting.pop_front().expect(WAITS);
            if self.waiting.is_empty() && self.waiting.capacity() > FEW {
                self.waiting = VecDeque::new();
            }
            return Some(Received::Item(item));
        }
        let at = usize::try_from(position - self.first).expect(WAITS);
        Some(Received::Item(self.waiting[at].clone()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now<T: Clone>(subscription: &mut Subscription<T>) -> Option<Received<T>> {
        subscription.receive().now_or_never()
    }

    #[test]
    fn each_listener_gets_everything_from_its_start_and_is_told_what_it_misses() {
        let feed = Feed::new(3);
        feed.send(0);
        let mut early = feed.subscribe();
        assert_eq!(now(&mut early), None);
        feed.send(1);
        feed.send(2);
        let mut late = feed.subscribe();
        feed.send(3);
        assert_eq!(now(&mut late), Some(Received::Item(3)));
        assert_eq!(now(&mut early), Some(Received::Item(1)));
        (4..8).for_each(|item| feed.send(item));
        assert_eq!(now(&mut early), Some(Received::Missed(3)));
        for item in 5..8 {
            assert_eq!(now(&mut early), Some(Received::Item(item)));
        }
        assert_eq!(now(&mut early), None);
        assert_eq!(now(&mut late), Some(Received::Missed(1)));
        drop(feed);
        for item in 5..8 {
            assert_eq!(now(&mut late), Some(Received::Item(item)));
        }
        assert_eq!(now(&mut late), Some(Received::Ended));
        assert_eq!(now(&mut early), Some(Received::Ended));
    }

    #[test]
    fn an_item_is_kept_no_longer_than_a_listener_needs_it() {
        let (feed, item) = (Feed::new(1_024), Arc::new(()));
        let (mut fast, mut slow) = (feed.subscribe(), feed.subscribe());
        (0..1_000).for_each(|_| feed.send(Arc::clone(&item)));
        assert_eq!(Arc::strong_count(&item), 1_001);
        while now(&mut fast).is_some() {}
        assert_eq!(Arc::strong_count(&item), 1_001);
        assert!(now(&mut slow).is_some());
        assert_eq!(Arc::strong_count(&item), 1_000);
        drop(slow);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(lock(&feed.0.state).waiting.capacity() <= FEW);
    }

    #[tokio::test]
    async fn a_listener_that_waits_is_woken_by_an_item_and_by_the_end() {
        let feed = Feed::new(1);
        let mut waiting = feed.subscribe();
        let (received, ()) = tokio::join!(waiting.receive(), async { feed.send(1) });
        assert_eq!(received, Received::Item(1));
        let (received, ()) = tokio::join!(waiting.receive(), async { drop(feed) });
        assert_eq!(received, Received::Ended);
    }
}
