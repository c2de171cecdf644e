//! Models of the lane for the model checker, each with the broken variants that it must catch.
//!
//! The models run the production types on the stand-ins of [`sync`](crate::sync). Only the shard's outer loop is
//! written here again, as [`Watch`], because the real one needs tokio's clock and channels. The steps of a turn are
//! those of [`reader`](crate::fanout::shard::reader), which the shard uses as well; the places where a broken variant
//! departs from them are marked. How the shard goes to sleep, and what it looks at before, is production code.
//!
//! The shard always runs on a thread of its own. On a model's main thread, where loom begins, it would hide
//! interleavings.

mod command;
mod control_queue;
mod log;
mod order;
mod outbox;
mod relief;
mod topic;
mod wake;

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use crate::contract::Message;
use crate::fanout::counters::Totals;
use crate::fanout::log::BroadcastLog;
use crate::fanout::outbox::{Port, Stance};
use crate::fanout::shard::reader::Horizon;
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

/// One shard's port, with capacity for one member, on a log of `capacity` slots.
fn port(capacity: usize) -> Arc<Port<Note>> {
    let signal = Arc::new(Signal::new());
    let log = Arc::new(BroadcastLog::new(capacity, Box::new([Arc::clone(&signal)])));
    Arc::new(Port::new(log, signal, 1, Arc::new(Totals::new()), Instant::now()))
}

/// How the shard goes to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleeping {
    /// Correct: declares itself asleep, then looks again at the slot at its position.
    Right,
    /// Broken: looks first and declares itself asleep second.
    LooksFirst,
    /// Broken: takes the tail as a sign that there is something to read.
    LooksAtTail,
}

/// The shard's outer loop.
struct Watch {
    port: Arc<Port<Note>>,
    sleeping: Sleeping,
    position: u64,
}

impl Watch {
    fn new(port: &Arc<Port<Note>>, sleeping: Sleeping) -> Self {
        Self { port: Arc::clone(port), sleeping, position: 0 }
    }

    /// Takes turns, and sleeps in between, until a turn reports that the work is done.
    fn run(&mut self, mut turn: impl FnMut(&mut Self) -> bool) {
        block_on(|cx| {
            let port = Arc::clone(&self.port);
            port.signal.rise();
            loop {
                if turn(self) {
                    return Poll::Ready(());
                }
                if self.sleeps(cx) {
                    return Poll::Pending;
                }
            }
        });
    }

    fn sleeps(&self, cx: &Context<'_>) -> bool {
        let Port { log, signal, .. } = &*self.port;
        let stance = Stance { position: self.position, extent: 1, is_braked: false, is_draining: false };
        match self.sleeping {
            Sleeping::Right => signal.sleeps_unless(cx.waker(), || self.port.has_work(stance)),
            Sleeping::LooksFirst => {
                let found = self.port.has_work(stance);
                if !found {
                    signal.doze(cx.waker());
                }
                !found
            }
            Sleeping::LooksAtTail => {
                let reads = || log.tail().position() != self.position || self.port.has_work(stance);
                signal.sleeps_unless(cx.waker(), reads)
            }
        }
    }

    /// Reads the filled entries below the horizon, and frees their slots.
    fn read(&mut self, horizon: &Horizon<'_, Note>, mut each: impl FnMut(u64, Note)) {
        let start = self.position;
        while let Some(taken) = horizon.take(self.position) {
            each(self.position, taken.message);
            self.position += 1;
        }
        if self.position > start {
            self.port.log.advance(0, self.position);
        }
    }
}
