//! The times at which a shard has to visit members whose messages are delayed by a rate.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Sleep, sleep_until};

use crate::fanout::clock::{Clock, SessionMs};
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::shard::lossy::Rearmed;
use crate::fanout::shard::member::Member;
use crate::fanout::slot::Slot;

/// Members by the time at which they are to be visited, each at most once. A shard whose members have no rates has no
/// timer.
#[derive(Default)]
pub(super) struct Timers {
    due: BTreeSet<(SessionMs, Slot)>,
    sleep: Option<Alarm>,
}

/// A timer of the runtime, and the time that it is set for.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    set_for: SessionMs,
}

impl Timers {
    /// Takes note of what the queues of the member in `slot` have lost, and has it visited when its next message is
    /// due.
    #[inline(never)]
    pub(super) fn follow_up<O: MemberHandle>(&mut self, slot: Slot, member: &mut Member<O>, now: SessionMs) {
        if let Some(Rearmed { before, due }) = member.follow_up(now) {
            if let Some(before) = before {
                self.due.remove(&(before, slot));
            }
            self.due.insert((due, slot));
        }
    }

    /// Forgets a member that leaves, and that was to be visited at `due`.
    pub(super) fn forget(&mut self, slot: Slot, due: SessionMs) {
        self.due.remove(&(due, slot));
    }

    /// Hands every slot whose time has come to `each`. If a time is still to come, the task of `cx` is woken then.
    /// Returns the time now, not before `now`: the members of those slots are visited at a time at which they are due.
    pub(super) fn take_due(
        &mut self,
        cx: &mut Context<'_>,
        clock: Clock,
        mut now: SessionMs,
        mut each: impl FnMut(Slot),
    ) -> SessionMs {
        loop {
            while let Some((due, slot)) = self.due.first().copied()
                && due <= now
            {
                self.due.pop_first();
                each(slot);
            }
            let Some((due, _)) = self.due.first().copied() else { return now };
            let alarm =
                self.sleep.get_or_insert_with(|| Alarm { sleep: Box::pin(sleep_until(clock.at(due))), set_for: due });
            if alarm.set_for != due {
                alarm.sleep.as_mut().reset(clock.at(due));
                alarm.set_for = due;
            }
            if alarm.sleep.as_mut().poll(cx).is_pending() {
                return now;
            }
            now = clock.now().max(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;

    // 1. The shard reads the clock. 2. The time of a member comes. 3. The shard takes the members that are due: this
    //    one
    // is visited by a time at which it is due.
    #[tokio::test(start_paused = true)]
    async fn a_member_is_due_by_the_time_of_its_visit() {
        let (clock, mut timers) = (Clock::new(), Timers::default());
        let (due, slot) = (SessionMs(5), Slot::new(3));
        timers.due.insert((due, slot));
        let mut cx = Context::from_waker(Waker::noop());
        let now = clock.now();
        assert_eq!(timers.take_due(&mut cx, clock, now, |_| panic!("it isn't due")), now);
        tokio::time::advance(Duration::from_millis(6)).await;
        let mut taken = Vec::new();
        let visited = timers.take_due(&mut cx, clock, now, |slot| taken.push(slot));
        assert_eq!(taken, [slot]);
        assert!(visited >= due, "{visited:?} is before {due:?}");
        assert!(visited <= clock.now());
    }
}
