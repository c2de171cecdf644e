//! Models of a topic's subscriber count: the count is above zero while a thread knows of a subscription, and it falls
//! to zero only after the subscription has ended.

use std::sync::Arc;

use loom::thread;

use crate::contract::topic::Topic;
use crate::sync::kit::{Weaken, holds, must_fail};
use crate::sync::{AtomicU64, Ordering};

const UNCOUNTED: &str = "a publisher that knows of a subscription finds no subscriber";
const EARLY: &str = "no subscriber is left, and a message handed over before isn't visible";

/// A subscriber tells a publisher of its subscription. Broken unless the subscription is counted before.
fn told_of_a_subscription(counts_first: bool) {
    let (topic, told) = (Topic::new(), Arc::new(AtomicU64::new(0)));
    let subscriber = thread::spawn({
        let (topic, told) = (topic.clone(), Arc::clone(&told));
        move || {
            let counted = counts_first.then(|| topic.raise());
            told.store(1, Ordering::Release);
            counted.unwrap_or_else(|| topic.raise())
        }
    });
    if told.load(Ordering::Acquire) == 1 {
        assert_eq!(topic.subscribers(), 1, "{UNCOUNTED}");
    }
    let counted = subscriber.join().expect("the subscriber doesn't panic");
    assert_eq!(topic.subscribers(), 1);
    drop(counted);
    assert_eq!(topic.subscribers(), 0);
}

/// Two shards each hand their subscriber a last message and end its subscription.
fn last_messages() {
    let topic = Topic::new();
    let handed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let shards = [0, 1].map(|shard| {
        let (counted, handed) = (topic.raise(), Arc::clone(&handed));
        thread::spawn(move || {
            handed[shard].store(1, Ordering::Relaxed);
            drop(counted);
        })
    });
    if topic.subscribers() == 0 {
        assert!(handed.iter().all(|handed| handed.load(Ordering::Relaxed) == 1), "{EARLY}");
    }
    for shard in shards {
        shard.join().expect("a shard doesn't panic");
    }
}

#[test]
fn a_subscription_that_is_known_is_counted() {
    holds(|| told_of_a_subscription(true));
}

#[test]
fn broken_a_subscription_counted_late_is_known_before() {
    must_fail(Weaken::Nothing, UNCOUNTED, || told_of_a_subscription(false));
}

#[test]
fn a_count_that_has_fallen_shows_what_was_handed_over() {
    holds(last_messages);
}

#[test]
fn broken_a_count_that_falls_relaxed_hides_what_was_handed_over() {
    must_fail(Weaken::Fall, EARLY, last_messages);
}
