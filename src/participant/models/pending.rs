//! Models of the pending resets: no reset is lost, none is handed out twice, and the event loop doesn't sleep while a
//! reset waits.

use std::sync::Arc;
use std::task::{Context, Poll};

use loom::thread;

use crate::ids::{ClientId, ParticipantSid};
use crate::participant::pending::PendingResets;
use crate::sync::SkipSet;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, must_fail};
use crate::sync::signal::Signal;

type Reset = (ClientId, ParticipantSid);

/// The operations of the pending resets that the model uses. The production type and the broken variants have them.
trait Pending: Send + Sync + 'static {
    fn insert(&self, reset: Reset);
    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Reset>;
}

impl Pending for PendingResets {
    fn insert(&self, (client_id, sid): Reset) {
        self.insert(client_id, sid);
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Reset> {
        self.poll_take(cx)
    }
}

/// Broken: looks at the set, then declares itself asleep, and doesn't look again.
struct LooksOnce {
    set: SkipSet<Reset>,
    signal: Signal,
}

impl Pending for LooksOnce {
    fn insert(&self, reset: Reset) {
        self.set.insert(reset);
        self.signal.wake();
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Reset> {
        if let Some(taken) = self.set.pop_front() {
            return Poll::Ready(taken.value().clone());
        }
        self.signal.doze(cx.waker());
        Poll::Pending
    }
}

/// Two threads insert, and the event loop takes both resets out.
fn two_inserts(pending: impl Pending) {
    let pending = Arc::new(pending);
    let resets = ["PA_1", "PA_2"].map(|sid| (ClientId::next(), ParticipantSid::new(sid).expect("a short text")));
    let event_loop = thread::spawn({
        let pending = Arc::clone(&pending);
        move || {
            let mut taken = [0; 2].map(|_| block_on(|cx| pending.poll_take(cx)));
            assert!(block_on(|cx| Poll::Ready(pending.poll_take(cx).is_pending())), "there were two");
            taken.sort_unstable();
            taken
        }
    });
    let [first, second] = resets.clone();
    let inserter = thread::spawn({
        let pending = Arc::clone(&pending);
        move || pending.insert(first)
    });
    pending.insert(second);
    inserter.join().expect("the inserting thread doesn't panic");
    assert_eq!(event_loop.join().expect("the loop doesn't panic"), resets);
}

#[test]
fn every_reset_is_taken_once() {
    holds(|| two_inserts(PendingResets::new()));
}

#[test]
fn broken_without_fences_the_loop_sleeps_on_a_reset() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || two_inserts(PendingResets::new()));
}

#[test]
fn broken_without_a_second_look_the_loop_sleeps_on_a_reset() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || {
        two_inserts(LooksOnce { set: SkipSet::new(), signal: Signal::new() });
    });
}
