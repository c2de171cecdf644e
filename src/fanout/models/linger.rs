//! Models of lingering: a shard whose time is never over reads what gathers as soon as anything else ends it.
//!
//! The shard gathers by the production [`Linger`], and reads and sleeps by the production [`Reader`]. That a direct
//! message ends it, and the order across the lanes, is in [`order`](super::order).

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use loom::thread;

use super::{Note, ONE_SLOT, Sleeping, Watch, port, reader, run, slot};
use crate::contract::UplinkState;
use crate::contract::topic::Audience;
use crate::fanout::log::publisher::Publisher;
use crate::fanout::log::{BroadcastLog, Entry, Position, Tail};
use crate::fanout::port::{Port, SleepCheck};
use crate::fanout::shard::linger::{GatherTimer, Linger};
use crate::fanout::shard::reader::{Found, Reader, Reading, Shard, Unread};
use crate::fanout::slot::Slot;
use crate::sync::fence;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, holds_narrowly, must_fail};

/// A time that is never over, so that a shard that misses what ends its gathering sleeps for ever.
#[derive(Debug)]
pub(super) struct NeverOver;

impl GatherTimer for NeverOver {
    fn begin(&mut self) {}

    fn is_over(&mut self, _: &mut Context<'_>) -> bool {
        false
    }
}

/// A shard without members that lingers. Mail calls it to read.
struct Gatherer {
    port: Arc<Port<Note>>,
    watch: Watch,
    linger: Linger<NeverOver>,
    most: u32,
}

impl Gatherer {
    fn new(port: &Arc<Port<Note>>, most: u32) -> Self {
        Self { port: Arc::clone(port), watch: Watch::default(), linger: Linger::new(Some(NeverOver)), most }
    }
}

impl Shard<Note, ()> for Gatherer {
    fn take_turn(&mut self, reader: &mut Reader<Note, ()>, cx: &mut Context<'_>) -> Found {
        let before = self.watch.mail;
        let input = reader.turn(cx, self);
        if input.tail.is_sealed() && reader.position() == input.tail.position() {
            Found::End
        } else if input.has_read || before != self.watch.mail {
            Found::Work
        } else {
            Found::Nothing
        }
    }

    fn next_command(&mut self, _: &mut Context<'_>) -> Option<()> {
        None
    }

    fn extent(&self) -> usize {
        ONE_SLOT.extent
    }

    fn on_mail(&mut self, slot: Slot) {
        self.watch.on_mail(slot);
    }

    fn on_ready(&mut self, _: Slot) {}

    fn begin_reading(&mut self, _: Position, _: Tail) -> Position {
        Position::END
    }

    fn lingers(&mut self, cx: &mut Context<'_>, unread: Unread<'_>) -> bool {
        self.linger.holds(cx, &self.port.log, unread, self.most, self.watch.mail > 0)
    }

    fn on_entry(&mut self, position: Position, entry: Entry<Note>) -> Reading<Note> {
        self.watch.on_entry(position, entry)
    }

    fn sleep_check(&self) -> SleepCheck {
        SleepCheck { gathers_until: self.linger.gathers_until(), ..ONE_SLOT }
    }
}

/// How the shard goes to sleep while entries gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathers {
    /// As in production.
    Right,
    /// Broken: declares what wakes it, and doesn't look once more for what has come in the meantime.
    WithoutLook,
}

/// Has the shard take turns on a thread of its own until it has read `count` entries, or finds the log sealed.
fn gather(port: &Arc<Port<Note>>, most: u32, gathers: Gathers, count: usize) -> thread::JoinHandle<Vec<Note>> {
    let (port, mut reader, mut shard) = (Arc::clone(port), reader(port), Gatherer::new(port, most));
    thread::spawn(move || {
        if gathers == Gathers::Right {
            run(&port, &mut reader, &mut shard, Sleeping::Right, |shard| shard.watch.read.len() == count);
            return shard.watch.read;
        }
        block_on(|cx| {
            port.signal.rise();
            loop {
                let found = ready!(poll_without_look(&port, &mut reader, cx, &mut shard));
                if found == Found::End || shard.watch.read.len() == count {
                    return Poll::Ready(());
                }
            }
        });
        shard.watch.read
    })
}

fn poll_without_look(
    port: &Port<Note>,
    reader: &mut Reader<Note, ()>,
    cx: &mut Context<'_>,
    shard: &mut Gatherer,
) -> Poll<Found> {
    loop {
        let found = shard.take_turn(reader, cx);
        if found != Found::Nothing {
            return Poll::Ready(found);
        }
        let check = shard.sleep_check();
        if let Some(until) = check.gathers_until {
            port.signal.doze_until(cx.waker(), until.number());
            return Poll::Pending;
        }
        if port.signal.sleeps_unless(cx.waker(), || port.has_work(reader.cursor(), reader.position(), check)) {
            return Poll::Pending;
        }
    }
}

fn publish(log: &BroadcastLog<Note>, name: &'static str) {
    log.publish(&Audience::All, Note(name)).expect("the log has capacity");
}

/// Two publishers, whose messages together are as many as a turn reads.
fn a_full_turn(gathers: Gathers) {
    let port = port(4);
    let shard = gather(&port, 2, gathers, 2);
    let publisher = thread::spawn({
        let port = Arc::clone(&port);
        move || publish(&port.log, "a")
    });
    publish(&port.log, "b");
    publisher.join().expect("the publisher doesn't panic");
    assert_eq!(shard.join().expect("the shard doesn't panic").len(), 2);
}

/// A message gathers, and the log is sealed.
fn a_seal(gathers: Gathers) {
    let port = port(4);
    let shard = gather(&port, 2, gathers, 2);
    publish(&port.log, "a");
    port.log.seal();
    assert_eq!(shard.join().expect("the shard doesn't panic"), [Note("a")]);
}

/// How a sender wakes the shard for a direct message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wakes {
    /// As in production.
    Always,
    /// Broken: as a publisher does, with the position that follows the broadcast that gathers.
    LikeAPublisher,
}

/// A message gathers, and its publisher leaves mail.
fn mail(wakes: Wakes) {
    let port = port(4);
    let shard = gather(&port, 2, Gathers::Right, 1);
    let stamp = port.log.publish(&Audience::All, Note("a")).expect("the log has capacity");
    port.mail.set(slot());
    match wakes {
        Wakes::Always => port.signal.wake(),
        Wakes::LikeAPublisher => {
            fence(crate::sync::Ordering::SeqCst);
            port.signal.wake_for(stamp.number());
        }
    }
    assert_eq!(shard.join().expect("the shard doesn't panic"), [Note("a")]);
}

/// A message gathers, and then a publisher has to wait, because of a stalled uplink. The gathered message is read while
/// it waits.
fn a_publisher_waits(publish_and_wait: fn(&Arc<BroadcastLog<Note>>)) {
    let port = port(4);
    let shard = gather(&port, 2, Gathers::Right, 1);
    publish(&port.log, "a");
    port.log.set_uplink(UplinkState::Stalled);
    let waiting = thread::spawn({
        let log = Arc::clone(&port.log);
        move || publish_and_wait(&log)
    });
    assert_eq!(shard.join().expect("the shard doesn't panic"), [Note("a")]);
    port.log.set_uplink(UplinkState::Flowing);
    waiting.join().expect("the publisher doesn't panic");
}

fn publish_in_line(log: &Arc<BroadcastLog<Note>>) {
    let publisher = Publisher::new(Arc::clone(log), u64::MAX);
    let mut publishing = pin!(publisher.publish(&Audience::All, Note("b")));
    assert_eq!(block_on(|cx| publishing.as_mut().poll(cx)), Ok(()));
}

/// Broken: waits and leaves the shards to their gathering.
fn publish_without_a_call(log: &Arc<BroadcastLog<Note>>) {
    block_on(|cx| {
        loop {
            if log.publish(&Audience::All, Note("b")).is_ok() {
                return Poll::Ready(());
            }
            if log.space_freed.sleeps_unless(cx.waker(), || log.has_space(log.tail())) {
                return Poll::Pending;
            }
        }
    });
}

#[test]
fn a_full_turn_ends_the_gathering() {
    holds_narrowly(|| a_full_turn(Gathers::Right));
}

#[test]
fn the_seal_ends_the_gathering() {
    holds(|| a_seal(Gathers::Right));
}

#[test]
fn mail_ends_the_gathering() {
    holds(|| mail(Wakes::Always));
}

#[test]
fn a_publisher_that_waits_ends_the_gathering() {
    holds_narrowly(|| a_publisher_waits(publish_in_line));
}

#[test]
fn broken_without_fences_a_full_turn_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_full_turn(Gathers::Right));
}

#[test]
fn broken_without_fences_the_seal_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_seal(Gathers::Right));
}

#[test]
fn broken_without_fences_a_publisher_that_waits_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_publisher_waits(publish_in_line));
}

#[test]
fn broken_without_a_last_look_a_full_turn_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_full_turn(Gathers::WithoutLook));
}

#[test]
fn broken_without_a_last_look_the_seal_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_seal(Gathers::WithoutLook));
}

#[test]
fn broken_mail_that_wakes_like_a_publisher_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || mail(Wakes::LikeAPublisher));
}

#[test]
fn broken_a_publisher_that_does_not_call_waits_beside_what_gathers() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_publisher_waits(publish_without_a_call));
}
