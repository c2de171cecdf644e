//! Models of the fan-out for the model checker, each with the broken variants that it must catch.
//!
//! The models run the production types on the stand-ins of [`sync`](crate::sync). A model's shard works and sleeps by
//! the production [`Reader`], as [`FlushShard`](crate::fanout::shard::FlushShard) does; only broken variants put a turn
//! together by themselves, or go to sleep in another way. Models of one part alone (the log, the mail bits) read
//! without a shard.
//!
//! The shard always runs on a thread of its own. On a model's main thread, where loom begins, it would hide
//! interleavings.

mod capacity;
mod command;
mod control_queue;
mod growth;
mod hold;
mod linger;
mod log;
mod losses;
mod order;
mod outbox;
mod topic;
mod wake;

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use crate::contract::Message;
use crate::fanout::clock::Clock;
use crate::fanout::counters::SessionCounters;
use crate::fanout::log::{BroadcastLog, Dimensions, Entry, Position, Tail};
use crate::fanout::port::{Mail, Port, SleepCheck};
use crate::fanout::shard::reader::{Found, Horizon, Reader, Reading, Shard, Unread};
use crate::fanout::slot::Slot;
use crate::sync::AtomicBool;
use crate::sync::bits::Bits;
use crate::sync::kit::block_on;
use crate::sync::signal::Signal;

/// A message that consists of its name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Note(&'static str);

impl Message for Note {
    fn byte_len(&self) -> usize {
        1
    }
}

/// A log of `capacity` slots and one reader that doesn't grow.
fn dimensions(capacity: usize) -> Dimensions {
    Dimensions { first_slots: capacity, capacity, first_readers: 1, most_readers: 1 }
}

/// One shard's port, with capacity for one member, on a log of `capacity` slots.
fn port(capacity: usize) -> Arc<Port<Note>> {
    port_of(dimensions(capacity))
}

/// One shard's port, with capacity for one member, on a log of these dimensions.
fn port_of(dimensions: Dimensions) -> Arc<Port<Note>> {
    port_on(dimensions, |log| log)
}

/// A port on the log that `set` makes of a new one, which has one reader at first.
fn port_on(dimensions: Dimensions, set: impl FnOnce(BroadcastLog<Note>) -> BroadcastLog<Note>) -> Arc<Port<Note>> {
    let signal = Arc::new(Signal::new());
    let log = Arc::new(set(BroadcastLog::new(dimensions, [Arc::clone(&signal)])));
    Arc::new(Port {
        log,
        signal,
        mail: Mail::new(1),
        ready: Bits::new(1),
        behind: AtomicBool::new(false),
        counters: Arc::new(SessionCounters::new()),
        clock: Clock::new(),
        commands: mpsc::channel(1).0,
        begins: mpsc::channel(1).0,
    })
}

/// The position of the entry that `count` others come before.
fn position(count: u64) -> Position {
    Position::default().after(count)
}

/// The reader of the only shard. It takes no commands.
fn reader(port: &Arc<Port<Note>>) -> Reader<Note, ()> {
    Reader::new(Arc::clone(port), 0, 0)
}

/// The only slot.
fn slot() -> Slot {
    Slot::new(0)
}

/// A shard with one slot that neither holds back nor drains.
const ONE_SLOT: SleepCheck = SleepCheck { extent: 1, holds_back: false, is_draining: false, gathers_until: None };

/// How the shard goes to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleeping {
    /// As in production: declares itself asleep, then looks again at the slot at its position.
    Right,
    /// Broken: looks first and declares itself asleep second.
    LooksFirst,
    /// Broken: takes the tail as a sign that there is something to read.
    LooksAtTail,
    /// Broken: while entries gather, declares what wakes it, and doesn't look once more for what has come meanwhile.
    GathersWithoutLook,
}

/// Has the shard take turns, and sleep in between, until `is_done` says after a turn with work that it is done, or the
/// turn itself does.
fn run<S: Shard<Note, ()>>(
    port: &Port<Note>,
    reader: &mut Reader<Note, ()>,
    shard: &mut S,
    sleeping: Sleeping,
    mut is_done: impl FnMut(&mut S) -> bool,
) {
    block_on(|cx| {
        port.signal.rise();
        loop {
            let found = match sleeping {
                Sleeping::Right => ready!(reader.poll_work(cx, shard)),
                broken => ready!(poll_work_broken(port, reader, cx, shard, broken)),
            };
            if found == Found::End || is_done(shard) {
                return Poll::Ready(());
            }
        }
    });
}

fn poll_work_broken<S: Shard<Note, ()>>(
    port: &Port<Note>,
    reader: &mut Reader<Note, ()>,
    cx: &mut Context<'_>,
    shard: &mut S,
    sleeping: Sleeping,
) -> Poll<Found> {
    loop {
        let found = shard.take_turn(reader, cx);
        if found != Found::Nothing {
            return Poll::Ready(found);
        }
        let check = shard.sleep_check();
        let has_work = || port.has_work(reader.cursor(), reader.position(), check);
        let sleeps = match (sleeping, check.gathers_until) {
            (Sleeping::Right, _) | (Sleeping::GathersWithoutLook, None) => {
                port.signal.sleeps_unless(cx.waker(), has_work)
            }
            (Sleeping::GathersWithoutLook, Some(until)) => {
                port.signal.doze_until(cx.waker(), until.number());
                true
            }
            (Sleeping::LooksAtTail, _) => {
                let reads = || port.log.tail().position() != reader.position() || has_work();
                port.signal.sleeps_unless(cx.waker(), reads)
            }
            (Sleeping::LooksFirst, _) => {
                let found = has_work();
                if !found {
                    port.signal.doze(cx.waker());
                }
                !found
            }
        };
        if sleeps {
            return Poll::Pending;
        }
    }
}

/// A shard without members, which keeps what it reads and counts what wakes it.
#[derive(Default)]
struct Watch {
    read: Vec<Note>,
    mail: usize,
    ready: usize,
    /// How the shard lets entries gather, if it does. Mail calls it to read.
    linger: Option<linger::Lingering>,
}

impl Shard<Note, ()> for Watch {
    fn take_turn(&mut self, reader: &mut Reader<Note, ()>, cx: &mut Context<'_>) -> Found {
        let before = (self.mail, self.ready);
        let input = reader.turn(cx, self);
        if input.tail.is_sealed() && reader.position() == input.tail.position() {
            Found::End
        } else if input.has_read || before != (self.mail, self.ready) {
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

    fn on_mail(&mut self, _: Slot) {
        self.mail += 1;
    }

    fn on_ready(&mut self, _: Slot) {
        self.ready += 1;
    }

    fn begin_reading(&mut self, _: Position, _: Tail) -> Position {
        Position::END
    }

    fn lingers(&mut self, cx: &mut Context<'_>, unread: Unread<'_>) -> bool {
        let is_called = self.mail > 0;
        self.linger.as_mut().is_some_and(|linger| linger.gathers(cx, unread, is_called))
    }

    fn on_entry(&mut self, _: Position, entry: Entry<Note>) -> Reading<Note> {
        self.read.push(entry.message.expect("a message"));
        Reading::More
    }

    fn sleep_check(&self) -> SleepCheck {
        SleepCheck { gathers_until: self.linger.as_ref().and_then(linger::Lingering::until), ..ONE_SLOT }
    }
}

/// Reads the filled entries of the first `count`, frees their slots, and returns them.
fn read_first(port: &Arc<Port<Note>>, count: u64) -> Vec<Note> {
    let mut watch = Watch::default();
    reader(port).read(&Horizon::at(&port.log, position(count)), Position::END, &mut watch);
    watch.read
}
