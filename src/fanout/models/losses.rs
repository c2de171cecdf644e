//! Models of the report of losses: the task that reports them learns of the last one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use loom::thread;

use crate::contract::Losses;
use crate::fanout::counters::SessionCounters;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds_narrowly, must_fail};

/// Two shards lose a message each. The task that reports losses waits until it has learned of both.
fn two_losses() {
    let counters = Arc::new(SessionCounters::new());
    let shards = [(); 2].map(|()| {
        let counters = Arc::clone(&counters);
        thread::spawn(move || counters.lose_lossy(&Losses::from_counts([1, 0, 0, 0]), 0))
    });
    while counters.losses().total() < 2 {
        let mut lost = pin!(counters.until_lost());
        block_on(|cx| lost.as_mut().poll(cx));
    }
    for shard in shards {
        shard.join().expect("a shard doesn't panic");
    }
}

#[test]
fn the_last_loss_is_reported() {
    holds_narrowly(two_losses);
}

#[test]
fn broken_without_fences_the_last_loss_goes_unreported() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, two_losses);
}
