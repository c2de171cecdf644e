//! Models of the order across the two lanes: if one message happens before another, it arrives before it.
//!
//! Senders and publishers use the production log, outbox and bits. The shard visits a production [`Member`] whose sink
//! records what it is given, and reads by the production [`Reader`]; only broken variants read in another order.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_sink::Sink;
use loom::thread;

use super::linger::NeverOver;
use super::{Note, ONE_SLOT, Sleeping, Watch, port, reader, run, slot};
use crate::contract::topic::Audience;
use crate::contract::{EndReason, Progress, RunSink};
use crate::fanout::clock::SessionMs;
use crate::fanout::log::{Entry, Position, Tail};
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::outbox::Outbox;
use crate::fanout::outbox::bound::Limits;
use crate::fanout::outbox::drain::{Admitted, Drain};
use crate::fanout::port::{Port, SleepCheck};
use crate::fanout::shard::batch::ReadBatch;
use crate::fanout::shard::budget::{Gathering, Quota};
use crate::fanout::shard::linger::{GatherLimits, Linger};
use crate::fanout::shard::member::{Member, PassCounts, VisitContext};
use crate::fanout::shard::reader::{Found, Horizon, Look, Reader, Reading, Shard, Unread};
use crate::fanout::shard::retained::Retained;
use crate::fanout::slot::Slot;
use crate::ids::ClientId;
use crate::sync::kit::{SLEEPS_FOR_EVER, Weaken, holds, holds_narrowly, must_fail};
use crate::sync::{ArrayQueue, AtomicU64, Ordering};

/// How the shard takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// As in production: reads the tail first and the queues second, and delivers nothing at or above the tail.
    Right,
    /// Broken: reads the queues first and the tail second.
    QueuesFirst,
    /// Broken: delivers every filled entry, wherever the tail was.
    WhileFilled,
    /// Broken: places a direct message as soon as it is collected, whatever its stamp.
    IgnoresStamps,
}

/// A participant: its outbox, and the messages that its sink has recorded.
#[derive(Clone)]
pub(super) struct Viewer {
    pub(super) outbox: Arc<Outbox<Note>>,
    pub(super) delivered: Arc<Mutex<Vec<Note>>>,
}

impl Viewer {
    /// A participant for which at most `messages` messages may wait.
    pub(super) fn new(port: &Arc<Port<Note>>, messages: u32) -> Self {
        let limits = Limits { messages, bytes: u64::from(messages), largest: u64::MAX };
        let outbox = Arc::new(Outbox::new(Arc::clone(port), ClientId::next(), limits, None, Progress::default()));
        Self { outbox, delivered: Arc::default() }
    }

    /// A participant that its shard has admitted to slot 0, and for which at most `messages` messages may wait.
    pub(super) fn admitted(port: &Arc<Port<Note>>, messages: u32) -> Self {
        let viewer = Self::new(port, messages);
        assert_eq!(Drain::new(viewer.clone()).admit(slot()), Admitted::InTime);
        viewer
    }

    pub(super) fn send(&self, name: &'static str) {
        assert!(self.outbox.try_send(Note(name)).is_ok());
    }

    pub(super) fn delivered(&self) -> Vec<Note> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Creates the participant's member in its shard.
    fn member(&self, port: &Arc<Port<Note>>) -> Member<Self> {
        let sink = Recorder(Arc::clone(&self.delivered));
        let mut member = Member::new(Drain::new(self.clone()), sink, Progress::default(), port, slot());
        member.begin(Vec::new(), SessionMs::default());
        member
    }
}

impl MemberHandle for Viewer {
    type Message = Note;
    type Sink = Recorder;

    fn has_vanished(_: &Infallible) -> bool {
        false
    }

    fn outbox(&self) -> &Outbox<Note> {
        &self.outbox
    }

    fn faulted(&self, _: EndReason, _: Option<&dyn std::fmt::Debug>) {}

    fn retire(self, _: Self::Sink, _: EndReason) {}
}

/// A sink that takes every message at once and records it.
pub(super) struct Recorder(Arc<Mutex<Vec<Note>>>);

impl Sink<Note> for Recorder {
    type Error = Infallible;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, note: Note) -> Result<(), Infallible> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl RunSink<Note> for Recorder {}

/// A shard with one member, to be run on a thread of its own.
pub(super) struct Serving {
    port: Arc<Port<Note>>,
    pub(super) member: Member<Viewer>,
    pub(super) retained: Retained<Note>,
    batch: ReadBatch<Note>,
    has_mail: bool,
    /// Why the member has ended, once its mail bit has said so.
    pub(super) ended: Option<EndReason>,
    order: Turn,
    linger: Linger<NeverOver>,
}

const QUOTA: Quota = Quota { messages: 8, bytes: u64::MAX };

impl Serving {
    pub(super) fn new(viewer: &Viewer, port: &Arc<Port<Note>>) -> Self {
        Self {
            port: Arc::clone(port),
            member: viewer.member(port),
            retained: Retained::new(),
            batch: ReadBatch::new(QUOTA.messages),
            has_mail: false,
            ended: None,
            order: Turn::Right,
            linger: Linger::new(None),
        }
    }

    /// Visits the member with what was read, up to `end`.
    pub(super) fn visit(&mut self, end: Position) {
        let mut visit = VisitContext {
            retained: &mut self.retained,
            batch: &mut self.batch,
            end: if self.order == Turn::IgnoresStamps { Position::END } else { end },
            quota: QUOTA,
            gathering: &Gathering { bytes: u64::MAX, age: u64::MAX },
            uplink: None,
            lossy_bytes: u64::MAX,
            drains: false,
            now: SessionMs::default(),
            counts: PassCounts::default(),
        };
        assert!(self.member.visit(&mut visit).is_ok());
        self.member.settle(&visit.counts);
        self.retained.end_turn(&mut self.batch);
    }

    /// Reads in the order of the broken variants.
    fn read_broken(&mut self, reader: &mut Reader<Note, ()>) {
        let port = Arc::clone(&self.port);
        // The horizon of the early look is thrown away.
        let _ = Look::new(&port).take_mail(ONE_SLOT.extent, |slot| self.on_mail(slot));
        let end = if self.order == Turn::QueuesFirst { port.log.tail().position() } else { Position::END };
        reader.read(&Horizon::at(&port.log, end), Position::END, self);
    }
}

impl Shard<Note, ()> for Serving {
    fn take_turn(&mut self, reader: &mut Reader<Note, ()>, cx: &mut Context<'_>) -> Found {
        let before = reader.position();
        match self.order {
            Turn::Right | Turn::IgnoresStamps => drop(reader.turn(cx, self)),
            Turn::QueuesFirst | Turn::WhileFilled => self.read_broken(reader),
        }
        let has_mail = std::mem::take(&mut self.has_mail);
        // A member that has ended gets nothing more. The visit finds that out.
        self.visit(reader.position());
        if has_mail || reader.position() > before { Found::Work } else { Found::Nothing }
    }

    fn next_command(&mut self, _: &mut Context<'_>) -> Option<()> {
        None
    }

    fn extent(&self) -> usize {
        ONE_SLOT.extent
    }

    fn on_mail(&mut self, _: Slot) {
        self.has_mail = true;
        self.ended = self.member.drain().end_reason();
        if self.ended.is_none() {
            self.member.collect_mail();
        }
    }

    fn on_ready(&mut self, _: Slot) {}

    fn begin_reading(&mut self, _: Position, _: Tail) -> Position {
        Position::END
    }

    fn lingers(&mut self, cx: &mut Context<'_>, unread: Unread<'_>) -> bool {
        let is_called = self.member.has_unordered();
        let limits = GatherLimits { entries: QUOTA.messages, age: Duration::MAX };
        self.linger.gathers(cx, &self.port.log, unread, limits, is_called)
    }

    fn on_entry(&mut self, position: Position, entry: Entry<Note>) -> Reading<Note> {
        self.batch.push(position, entry.bytes, entry.message.expect("a message"), None, None);
        Reading::More
    }

    fn sleep_check(&self) -> SleepCheck {
        SleepCheck { gathers_until: self.linger.gathers_until(), ..ONE_SLOT }
    }
}

/// Runs `send` beside a shard that ends when it has delivered `count` messages. Returns what was delivered, in order.
fn deliver(count: usize, turn: Turn, send: impl FnOnce(&Viewer, &Arc<Port<Note>>)) -> Vec<Note> {
    deliver_lingering(count, turn, None, send)
}

/// The same with a shard that lets broadcasts gather, if it has a timer.
fn deliver_lingering(
    count: usize,
    turn: Turn,
    timer: Option<NeverOver>,
    send: impl FnOnce(&Viewer, &Arc<Port<Note>>),
) -> Vec<Note> {
    let port = if timer.is_some() { port(4) } else { port(2) };
    let viewer = Viewer::admitted(&port, 2);
    let shard = thread::spawn({
        let (port, mut reader, viewer) = (Arc::clone(&port), reader(&port), viewer.clone());
        let mut shard = Serving { order: turn, linger: Linger::new(timer), ..Serving::new(&viewer, &port) };
        move || run(&port, &mut reader, &mut shard, Sleeping::Right, |_| viewer.delivered().len() == count)
    });
    send(&viewer, &port);
    shard.join().expect("the shard doesn't panic");
    viewer.delivered()
}

const INVERTED: &str = "a message that happened before another arrived after it";

fn assert_order(delivered: &[Note], before: &'static str, after: &'static str) {
    let place = |name| delivered.iter().position(|note| *note == Note(name));
    assert!(place(before) < place(after), "{INVERTED}: {delivered:?}");
}

fn publish(port: &Port<Note>, name: &'static str) {
    port.log.publish(&Audience::All, Note(name)).expect("the log has capacity");
}

/// A direct message, then a broadcast, while a second sender sends to the same participant.
fn direct_then_broadcast(turn: Turn) {
    let delivered = deliver(3, turn, |viewer, port| {
        let second = thread::spawn({
            let viewer = viewer.clone();
            move || viewer.send("other")
        });
        viewer.send("direct");
        publish(port, "broadcast");
        second.join().expect("the sender doesn't panic");
    });
    assert_order(&delivered, "direct", "broadcast");
}

/// A broadcast, then a direct message, while a second publisher publishes.
fn broadcast_then_direct(turn: Turn) {
    let delivered = deliver(3, turn, |viewer, port| {
        let second = thread::spawn({
            let port = Arc::clone(port);
            move || publish(&port, "other")
        });
        publish(port, "broadcast");
        viewer.send("direct");
        second.join().expect("the publisher doesn't panic");
    });
    assert_order(&delivered, "broadcast", "direct");
}

/// One thread sends a direct message and tells another, which then publishes.
fn direct_handed_over(turn: Turn) {
    let told = Arc::new(AtomicU64::new(0));
    let delivered = deliver(2, turn, |viewer, port| {
        let second = thread::spawn({
            let (told, port) = (Arc::clone(&told), Arc::clone(port));
            move || publish(&port, if told.load(Ordering::Acquire) == 1 { "told" } else { "early" })
        });
        viewer.send("direct");
        told.store(1, Ordering::Release);
        second.join().expect("the publisher doesn't panic");
    });
    if delivered.contains(&Note("told")) {
        assert_order(&delivered, "direct", "told");
    }
}

/// One thread publishes and tells another, which then sends a direct message.
fn broadcast_handed_over(turn: Turn) {
    let told = Arc::new(AtomicU64::new(0));
    let delivered = deliver(2, turn, |viewer, port| {
        let second = thread::spawn({
            let (told, viewer) = (Arc::clone(&told), viewer.clone());
            move || viewer.send(if told.load(Ordering::Acquire) == 1 { "told" } else { "early" })
        });
        publish(port, "broadcast");
        told.store(1, Ordering::Release);
        second.join().expect("the sender doesn't panic");
    });
    if delivered.contains(&Note("told")) {
        assert_order(&delivered, "broadcast", "told");
    }
}

/// A broadcast gathers and a direct message follows, to a shard whose gathering no time ends.
fn direct_behind_gathered() {
    let delivered = deliver_lingering(2, Turn::Right, Some(NeverOver), |viewer, port| {
        publish(port, "gathers");
        viewer.send("direct");
    });
    assert_order(&delivered, "gathers", "direct");
}

#[test]
fn a_direct_message_ends_the_gathering_and_arrives_behind_it() {
    holds_narrowly(direct_behind_gathered);
}

#[test]
fn broken_without_fences_a_direct_message_waits_for_ever_behind_what_gathers() {
    must_fail(Weaken::Fences, SLEEPS_FOR_EVER, direct_behind_gathered);
}

#[test]
fn a_direct_message_before_a_broadcast_arrives_before_it() {
    holds_narrowly(|| direct_then_broadcast(Turn::Right));
}

#[test]
fn a_broadcast_before_a_direct_message_arrives_before_it() {
    holds_narrowly(|| broadcast_then_direct(Turn::Right));
}

#[test]
fn a_direct_message_arrives_before_a_broadcast_of_a_thread_that_was_told() {
    holds(|| direct_handed_over(Turn::Right));
}

#[test]
fn a_broadcast_arrives_before_a_direct_message_of_a_thread_that_was_told() {
    holds(|| broadcast_handed_over(Turn::Right));
}

#[test]
fn broken_queues_first_and_tail_second_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || direct_then_broadcast(Turn::QueuesFirst));
}

#[test]
fn broken_delivering_while_the_slot_is_filled_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || direct_then_broadcast(Turn::WhileFilled));
}

/// Only the handed-over variant inverts: a sender that publishes itself has the fence of its wake-up in between.
#[test]
fn broken_a_relaxed_claim_inverts() {
    must_fail(Weaken::Claim, INVERTED, || direct_handed_over(Turn::Right));
}

#[test]
fn broken_placing_a_direct_message_whatever_its_stamp_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || broadcast_then_direct(Turn::IgnoresStamps));
}

/// A queue, and two levels of bits that say that the queue has messages.
struct Mail {
    queue: ArrayQueue<Note>,
    leaf: AtomicU64,
    summary: AtomicU64,
    /// Broken if true: a sender that finds the leaf bit set leaves the summary bit to the sender that set the leaf.
    guarded: bool,
}

impl Mail {
    fn new(guarded: bool) -> Self {
        Self { queue: ArrayQueue::new(2), leaf: AtomicU64::new(0), summary: AtomicU64::new(0), guarded }
    }

    fn send(&self, name: &'static str) {
        assert_eq!(self.queue.push(Note(name)), Ok(()));
        let set_already = self.leaf.fetch_or(1, Ordering::AcqRel) != 0;
        if !(self.guarded && set_already) {
            self.summary.fetch_or(1, Ordering::AcqRel);
        }
    }

    fn collect(&self, delivered: &mut Vec<Note>) {
        if self.summary.load(Ordering::Acquire) != 0
            && self.summary.swap(0, Ordering::AcqRel) != 0
            && self.leaf.swap(0, Ordering::AcqRel) != 0
        {
            while let Some(note) = self.queue.pop() {
                delivered.push(note);
            }
        }
    }
}

/// Two senders to one participant, one of which publishes next, and a concurrent turn of the shard.
fn two_senders(guarded: bool) {
    let port = port(1);
    let mail = Arc::new(Mail::new(guarded));
    let shard = thread::spawn({
        let (port, mail, mut reader) = (Arc::clone(&port), Arc::clone(&mail), reader(&port));
        move || {
            let (mut delivered, mut watch) = (Vec::new(), Watch::default());
            let tail = port.log.tail();
            mail.collect(&mut delivered);
            reader.read(&Horizon::at(&port.log, tail.position()), Position::END, &mut watch);
            delivered.append(&mut watch.read);
            delivered
        }
    });
    let second = thread::spawn({
        let mail = Arc::clone(&mail);
        move || mail.send("other")
    });
    mail.send("direct");
    publish(&port, "broadcast");
    second.join().expect("the sender doesn't panic");
    let delivered = shard.join().expect("the shard doesn't panic");
    if delivered.contains(&Note("broadcast")) {
        assert!(delivered.contains(&Note("direct")), "{INVERTED}: {delivered:?}");
    }
}

#[test]
fn a_second_sender_sets_both_levels_of_bits() {
    holds(|| two_senders(false));
}

#[test]
fn broken_a_flag_that_sends_the_second_sender_home_inverts() {
    must_fail(Weaken::Nothing, INVERTED, || two_senders(true));
}
