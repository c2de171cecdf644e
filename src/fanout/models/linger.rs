//! Models of lingering: a shard whose time is never over reads what gathers as soon as anything else ends it.
//!
//! The shard gathers by the production [`Linger`], and reads and sleeps by the production [`Reader`]. That a direct
//! message ends it, and the order across the lanes, is in [`order`](super::order).

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use loom::thread;

use super::{Note, Sleeping, Watch, port, reader, run, slot};
use crate::contract::topic::Audience;
use crate::contract::{Profile, Topic, UplinkState};
use crate::fanout::log::publisher::Publisher;
use crate::fanout::log::{BroadcastLog, Position};
use crate::fanout::port::Port;
use crate::fanout::shard::linger::{GatherLimits, GatherTimer, Linger};
use crate::fanout::shard::reader::Unread;
use crate::sync::fence;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, block_on, holds, holds_narrowly, must_fail};

/// A time that is never over, so that a shard that misses what ends its gathering sleeps for ever.
#[derive(Debug)]
pub(super) struct NeverOver;

impl GatherTimer for NeverOver {
    fn begin(&mut self, _: Duration) {}

    fn is_over(&mut self, _: &mut Context<'_>) -> bool {
        false
    }
}

/// How a shard of a model lets entries gather.
pub(super) struct Lingering {
    port: Arc<Port<Note>>,
    linger: Linger<NeverOver>,
    most: u32,
}

impl Lingering {
    fn new(port: &Arc<Port<Note>>, most: u32) -> Self {
        Self { port: Arc::clone(port), linger: Linger::new(Some(NeverOver)), most }
    }

    pub(super) fn gathers(&mut self, cx: &mut Context<'_>, unread: Unread<'_>, is_called: bool) -> bool {
        let limits = GatherLimits { entries: self.most, age: Duration::MAX };
        self.linger.gathers(cx, &self.port.log, unread, limits, is_called)
    }

    pub(super) fn until(&self) -> Option<Position> {
        self.linger.gathers_until()
    }
}

/// Has the shard take turns on a thread of its own until it has read `count` entries, or finds the log sealed.
fn gather(port: &Arc<Port<Note>>, most: u32, sleeping: Sleeping, count: usize) -> thread::JoinHandle<Vec<Note>> {
    let (port, mut reader) = (Arc::clone(port), reader(port));
    let mut watch = Watch { linger: Some(Lingering::new(&port, most)), ..Watch::default() };
    thread::spawn(move || {
        run(&port, &mut reader, &mut watch, sleeping, |watch| watch.read.len() == count);
        watch.read
    })
}

fn publish(log: &BroadcastLog<Note>, name: &'static str) {
    log.publish(&Audience::All, Note(name)).expect("the log has capacity");
}

/// Two publishers, whose messages together are as many as a turn reads.
fn a_full_turn(sleeping: Sleeping) {
    let port = port(4);
    let shard = gather(&port, 2, sleeping, 2);
    let publisher = thread::spawn({
        let port = Arc::clone(&port);
        move || publish(&port.log, "a")
    });
    publish(&port.log, "b");
    publisher.join().expect("the publisher doesn't panic");
    assert_eq!(shard.join().expect("the shard doesn't panic").len(), 2);
}

/// A message gathers, and the log is sealed.
fn a_seal(sleeping: Sleeping) {
    let port = port(4);
    let shard = gather(&port, 2, sleeping, 2);
    publish(&port.log, "a");
    port.log.seal();
    assert_eq!(shard.join().expect("the shard doesn't panic"), [Note("a")]);
}

/// A message gathers, and an urgent one follows that doesn't fill a turn.
fn an_urgent_message(sleeping: Sleeping) {
    let port = port(4);
    let shard = gather(&port, 4, sleeping, 2);
    publish(&port.log, "a");
    let alarm = Topic::with(Profile::reliable().urgent());
    port.log.publish(&Audience::Topic(alarm), Note("b")).expect("the log has capacity");
    assert_eq!(shard.join().expect("the shard doesn't panic"), [Note("a"), Note("b")]);
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
    let shard = gather(&port, 2, Sleeping::Right, 1);
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
    let shard = gather(&port, 2, Sleeping::Right, 1);
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
    holds_narrowly(|| a_full_turn(Sleeping::Right));
}

#[test]
fn the_seal_ends_the_gathering() {
    holds(|| a_seal(Sleeping::Right));
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
fn an_urgent_message_ends_the_gathering() {
    holds(|| an_urgent_message(Sleeping::Right));
}

#[test]
fn broken_without_fences_an_urgent_message_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || an_urgent_message(Sleeping::Right));
}

#[test]
fn broken_without_a_last_look_an_urgent_message_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || an_urgent_message(Sleeping::GathersWithoutLook));
}

#[test]
fn broken_without_fences_a_full_turn_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_full_turn(Sleeping::Right));
}

#[test]
fn broken_without_fences_the_seal_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_seal(Sleeping::Right));
}

#[test]
fn broken_without_fences_a_publisher_that_waits_is_missed() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, || a_publisher_waits(publish_in_line));
}

#[test]
fn broken_without_a_last_look_a_full_turn_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_full_turn(Sleeping::GathersWithoutLook));
}

#[test]
fn broken_without_a_last_look_the_seal_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_seal(Sleeping::GathersWithoutLook));
}

#[test]
fn broken_mail_that_wakes_like_a_publisher_is_missed() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || mail(Wakes::LikeAPublisher));
}

#[test]
fn broken_a_publisher_that_does_not_call_waits_beside_what_gathers() {
    must_fail(Weaken::Nothing, SLEEPS_FOR_EVER, || a_publisher_waits(publish_without_a_call));
}
