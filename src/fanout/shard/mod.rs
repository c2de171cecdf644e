//! A flush shard: the task that carries messages from control queues and log into the sinks of its share of the
//! participants.
//!
//! # The order across the lanes
//! If one send or broadcast happens before another, every participant that gets both gets them in that order. A direct
//! message carries the log's tail at the time it was sent, its *stamp*. Its place is behind every broadcast below the
//! stamp, and before every broadcast at or above it. A turn therefore
//! 1. reads the tail T first,
//! 2. takes the mail bits and empties the control queues they name second, and
//! 3. delivers nothing at or above T.
//!
//! The types of [`reader`](crate::fanout::shard::reader) hold the shard to this order.
//!
//! A direct message that happened before a broadcast below T was pushed, and its bit was set, before that broadcast was
//! claimed. Step 1 acquired the claim, so step 2 finds the message. If the shard read in the other order, or delivered
//! whatever slot is filled by now, the broadcast would overtake the message.
//!
//! A control queue is emptied completely, into `unordered`, and stays first-in first-out. The first message stamped
//! above what is being delivered holds back those behind it, which were sent concurrently with it or later. A turn ends
//! below the first slot that is claimed and not filled; direct messages stamped above that slot wait as well.
//!
//! # Positions
//! A command (admit, subscribe, unsubscribe) takes effect at the tail that is read after the command was taken: the
//! shard reads the log up to exactly that position, applies the command, and answers. Everything that was published
//! before the command was given is below that position. Everything that is published after the answer is at or above
//! it. The start of a newcomer, once its initial messages are computed ([`Begin`]), takes effect at once: the
//! newcomer's position is that of its admission.
//!
//! # Shards that are made later
//! A fan-out begins with one shard, and makes more while participants join. A new shard has its channels at once, so
//! newcomers can be sent to it, and its task waits. The first shard takes the request like a command: it adds the new
//! readers to the log, which fixes their position, reads the log up to exactly there, and tells them to begin. What it
//! keeps for late subscribers goes with that.
//!
//! # Turns
//! A turn visits all members if it carries a broadcast to everybody. Otherwise it visits only those that were noted:
//! with mail, woken by their sink, addressed by a topic, given their initial messages, or not finished last time. A
//! visit hands on at most the quota, flushes, and leaves the rest for a turn after the reactor has run. The shard reads
//! the log in the same way ([`budget`](crate::fanout::shard::budget)): a healthy sink that is blocked would overflow if
//! nothing could tell it that its socket is writable again. Adjacent messages of the log with one audience are handed
//! on as a run ([`run`](crate::contract::run)). A walk over many members yields after [`SLICE`] and continues where it
//! was; a member that has ended in the meantime gets nothing more. The task runs outside tokio's cooperative budget,
//! which would make every sink look busy after about 170 writes.
//!
//! # A shared uplink
//! Where all sinks share one uplink ([`uplink`](crate::contract::uplink)), a member whose bound is half taken because
//! of it keeps the shard from reading on: the log fills, and holds publishers back. What a turn has already read is
//! placed beyond the bound. If no other write is under way, the shard reads one entry at each tick, which shows whether
//! the uplink carries it past the members that wait.
//!
//! # Gathering
//! A shard may leave the log's entries unread for a while, so that more are handed on together
//! ([`linger`](crate::fanout::shard::linger)).
//!
//! # Sleep
//! See [`signal`](crate::sync::signal), and [`Port::has_work`](crate::fanout::port::Port::has_work) for what the
//! shard checks once more before it sleeps.

pub(in crate::fanout) mod backlog;
mod backpressure;
pub(in crate::fanout) mod batch;
pub(in crate::fanout) mod budget;
pub(in crate::fanout) mod delivery;
pub(in crate::fanout) mod linger;
mod link;
pub(in crate::fanout) mod lossy;
pub(in crate::fanout) mod member;
pub(in crate::fanout) mod newcomer;
mod occupied;
pub(in crate::fanout) mod reader;
pub(in crate::fanout) mod retained;
pub(in crate::fanout) mod shared;
mod tick;
mod timers;
pub(in crate::fanout) mod topics;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::caught::caught;
use crate::fanout::command::{COMMAND_CAPACITY, Start};
use crate::fanout::member_handle::MemberHandle;
use crate::fanout::shard::delivery::{Delivery, Request, ShardSettings, Walk};
use crate::fanout::shard::reader::{Found, Reader};

/// How long a shard works before it lets other tasks of its thread run.
const SLICE: Duration = Duration::from_millis(1);

/// How long a shard that ends waits for commands that are still being sent, which takes a few instructions.
const LAST_COMMANDS: Duration = Duration::from_millis(100);

/// A flush shard; [`run`](Self::run) is its task.
pub(in crate::fanout) struct FlushShard<O: MemberHandle> {
    reader: Reader<O::Message, Request<O>>,
    delivery: Delivery<O>,
}

enum Step {
    Yield,
    Done,
}

impl<O: MemberHandle> FlushShard<O> {
    pub(in crate::fanout) fn new(settings: ShardSettings<O>) -> Self {
        let reader = Reader::new(Arc::clone(&settings.port), settings.index, COMMAND_CAPACITY);
        Self { reader, delivery: Delivery::new(settings) }
    }

    /// Creates a shard that is made later, for [`run_added`](Self::run_added).
    pub(in crate::fanout) fn added(settings: ShardSettings<O>) -> Self {
        let reader = Reader::added(Arc::clone(&settings.port), settings.index, COMMAND_CAPACITY);
        Self { reader, delivery: Delivery::new(settings) }
    }

    /// Waits for the position from which the shard reads, then runs as [`run`](Self::run) does. If the fan-out ends
    /// before, the shard has no position, and turns away those who were sent to it.
    pub(in crate::fanout) async fn run_added(mut self, start: oneshot::Receiver<Start<O::Message>>) {
        match start.await {
            Ok(Start { position, kept }) => {
                self.delivery.take_over(kept);
                self.reader.begin_at(position);
                self.run().await;
            }
            Err(_) => self.turn_the_last_away().await,
        }
    }

    /// Runs until the log is sealed and every member is gone.
    pub(in crate::fanout) async fn run(mut self) {
        loop {
            match poll_fn(|cx| self.poll_turns(cx)).await {
                // Tokio's own yield lets the reactor run before the task continues.
                Step::Yield => {
                    self.delivery.note_yield();
                    tokio::task::yield_now().await;
                    self.delivery.budget.yielded(self.delivery.turn.is_open);
                }
                Step::Done => {
                    self.turn_the_last_away().await;
                    return;
                }
            }
        }
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let until = Instant::now() + SLICE;
        let Self { reader, delivery } = self;
        delivery.settings.port.signal.rise();
        let mut is_time_up = false;
        loop {
            if !delivery.turn.is_open {
                match reader.poll_work(cx, delivery) {
                    Poll::Ready(Found::End) => return Poll::Ready(Step::Done),
                    Poll::Ready(Found::Work | Found::Nothing) => {}
                    Poll::Pending => {
                        delivery.note_sleep();
                        return Poll::Pending;
                    }
                }
            }
            // Not before the shard has looked for work, as it sleeps if there is none. A task that yields instead, and
            // is the only one of its worker, makes tokio wake another worker, which finds nothing.
            if is_time_up {
                return Poll::Ready(Step::Yield);
            }
            if delivery.walk(reader.position(), until) == Walk::TimeIsUp {
                return Poll::Ready(Step::Yield);
            }
            delivery.close_turn(reader.position());
            while let Some(request) = reader.next_due() {
                delivery.carry_out(request, reader.position());
            }
            delivery.drain_if_sealed(reader.position());
            if delivery.has_requeued() || delivery.budget.is_due() {
                return Poll::Ready(Step::Yield);
            }
            is_time_up = Instant::now() >= until;
        }
    }

    /// Answers those who are in the channels, or still being sent there, after the last member is gone.
    async fn turn_the_last_away(&mut self) {
        let Self { reader, delivery } = self;
        // A join that is under way already holds a permit of the channel, and may use it after a check that finds
        // nothing. The shard waits for it. The wait is short, because every join has been told to end.
        delivery.settings.newcomers.close();
        while let Some(newcomer) = delivery.settings.newcomers.recv().await {
            delivery.admit_to_end(newcomer, reader.position());
        }
        // A subscription left in the channel would count in its topic for as long as anybody has a handle of the
        // participant. A sender that holds a permit and isn't polled is waited for no longer than `LAST_COMMANDS`.
        delivery.settings.commands.close();
        let answered = async {
            while let Some(command) = delivery.settings.commands.recv().await {
                // Every member is gone: the drop of the reply tells the subscriber so.
                caught(|| drop(command));
            }
        };
        let _ = tokio::time::timeout(LAST_COMMANDS, answered).await;
    }
}

impl<O: MemberHandle> Drop for FlushShard<O> {
    /// However the task ends (its runtime is shut down, or it panics), no caller waits forever and every sink is handed
    /// back.
    fn drop(&mut self) {
        let Self { reader, delivery } = self;
        delivery.end_all(reader);
        for newcomer in empty(&mut delivery.settings.newcomers) {
            delivery.admit_to_end(newcomer, reader.position());
        }
        for command in empty(&mut delivery.settings.commands) {
            caught(|| drop(command));
        }
        for begin in empty(&mut delivery.settings.begins) {
            caught(|| drop(begin));
        }
        while let Some(request) = reader.next_deferred() {
            if let Request::Admit(newcomer) = request {
                delivery.admit_to_end(newcomer, reader.position());
            }
        }
        delivery.publish_counts();
    }
}

/// Closes a channel and takes everything that is in it or still being sent. This can't wait for the task of a sender,
/// only for another thread, and for at most [`LAST_COMMANDS`].
fn empty<T>(channel: &mut mpsc::Receiver<T>) -> Vec<T> {
    channel.close();
    let begun = Instant::now();
    let mut taken = Vec::new();
    loop {
        taken.extend(std::iter::from_fn(|| channel.try_recv().ok()));
        let nobody_has_a_place = channel.capacity() == channel.max_capacity();
        if nobody_has_a_place || begun.elapsed() >= LAST_COMMANDS {
            return taken;
        }
        std::thread::yield_now();
    }
}
