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
//! A control queue is emptied completely, into `unplaced`, and stays first-in first-out. The first message stamped
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
//! # Turns
//! A turn visits all members if it carries a broadcast to everybody. Otherwise it visits only those that were noted:
//! with mail, woken by their sink, addressed by a topic, or not finished last time. A visit hands on at most the quota,
//! flushes, and leaves the rest for a turn after the reactor has run. The shard reads the log in the same way
//! ([`pace`](crate::fanout::shard::pace)): a healthy sink that is blocked would overflow if nothing could tell it that
//! its socket is writable again. Adjacent messages of the log with one audience are handed on as a run
//! ([`run`](crate::contract::run)). A walk over many members yields after [`SLICE`] and continues where it was; a
//! member that has ended in the meantime gets nothing more. The task runs outside tokio's cooperative budget, which
//! would make every sink look busy after about 170 writes.
//!
//! # A shared uplink
//! Where all sinks share one uplink ([`uplink`](crate::contract::uplink)), a member whose bound is half taken because
//! of it keeps the shard from reading on: the log fills, and holds publishers back. What a turn has already read is
//! placed beyond the bound. If no other write is under way, the shard reads one entry at each tick, which shows whether
//! the uplink carries it past the members that wait.
//!
//! # Sleep
//! See [`signal`](crate::sync::signal), and [`Port::has_work`](crate::fanout::outbox::Port::has_work) for what the
//! shard checks once more before it sleeps.

pub(crate) mod backlog;
pub(crate) mod brake;
pub(crate) mod command;
pub(crate) mod fault;
pub(crate) mod gauge;
pub(crate) mod inbox;
pub(crate) mod intake;
pub(crate) mod load;
pub(crate) mod member;
pub(crate) mod occupied;
pub(crate) mod owner;
pub(crate) mod pace;
pub(crate) mod parts;
pub(crate) mod reader;
pub(crate) mod roster;
pub(crate) mod shelf;
pub(crate) mod tick;
pub(crate) mod turn;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use slab::Slab;

use crate::caught::caught;
use crate::contract::EndReason;
use crate::contract::Message;
use crate::contract::topic::Audience;
use crate::contract::topic::{Subscribed, Unsubscribed};
use crate::contract::uplink::CLEARLY;
use crate::fanout::log::Entry;
use crate::fanout::outbox::Stance;
use crate::fanout::outbox::now_ms;
use crate::fanout::shard::brake::{Brake, Reading};
use crate::fanout::shard::command::{Admission, Begin, COMMAND_CAPACITY, Command, LAST_COMMANDS, empty};
use crate::fanout::shard::fault::Fault;
use crate::fanout::shard::member::{Member, Round, Stand, Sum};
use crate::fanout::shard::occupied::{Occupied, Word};
use crate::fanout::shard::owner::{Owner, SinkError};
use crate::fanout::shard::pace::Pace;
use crate::fanout::shard::parts::{Parts, unless_given_up};
use crate::fanout::shard::reader::{Horizon, Look, take_command};
use crate::fanout::shard::roster::Roster;
use crate::fanout::shard::shelf::Shelf;
use crate::fanout::shard::tick::Tick;
use crate::fanout::shard::turn::Turn;
use crate::sync::Ordering;

/// The largest number of members in a shard.
pub(crate) const SHARD_CAPACITY: usize = 1 << 18;

/// How long a shard works before it lets other tasks of its thread run.
const SLICE: Duration = Duration::from_millis(1);

/// Members visited between two reads of the clock.
const STRIDE: usize = 64;

enum Deferred<O: Owner<M>, M: Message> {
    Admit(Admission<O, M>),
    Command(Command),
}

/// A flush shard; [`run`](Self::run) is its task.
pub(crate) struct FlushShard<O: Owner<M>, M: Message> {
    parts: Parts<O, M>,
    members: Slab<Member<O, M>>,
    /// The occupied slots of `members`.
    occupied: Occupied,
    /// No member has a slot at or above this one.
    extent: usize,
    roster: Roster,
    shelf: Shelf<M>,
    /// The first position that the shard hasn't read.
    position: u64,
    /// The entry at `position`, if it was taken and has to wait until the reactor has run.
    next: Option<Entry<M>>,
    deferred: VecDeque<(u64, Deferred<O, M>)>,
    turn: Turn<M>,
    /// Members that aren't finished, for the next turn.
    again: Vec<usize>,
    /// Members whose direct messages wait for a broadcast to be filled in, for the next turn that reads one.
    lagging: Vec<usize>,
    brake: Brake,
    pace: Pace,
    /// The log is sealed and read to its end: members with nothing left to deliver go.
    draining: bool,
    tick: Tick,
}

enum Step {
    Yield,
    Done,
}

impl<O: Owner<M>, M: Message> FlushShard<O, M> {
    pub(crate) fn new(parts: Parts<O, M>) -> Self {
        let pace = Pace::new(parts.limits, parts.batch_bytes);
        Self {
            members: Slab::new(),
            occupied: Occupied::default(),
            extent: 0,
            roster: Roster::default(),
            shelf: Shelf::new(),
            position: 0,
            next: None,
            deferred: VecDeque::new(),
            turn: Turn::new(pace.quota().messages),
            again: Vec::new(),
            lagging: Vec::new(),
            brake: Brake::default(),
            pace,
            draining: false,
            tick: Tick::for_timeout(parts.write_timeout, parts.uplink.as_ref().map_or(Duration::MAX, |_| CLEARLY)),
            parts,
        }
    }

    /// Runs until the log is sealed and every member is gone.
    pub(crate) async fn run(mut self) {
        loop {
            match poll_fn(|cx| self.poll_turns(cx)).await {
                // Tokio's own yield lets the reactor run before the task continues.
                Step::Yield => {
                    tokio::task::yield_now().await;
                    self.pace.yielded(self.turn.open);
                }
                Step::Done => {
                    // A join that is under way already holds a permit of the channel, and may use it after a check that
                    // finds nothing. The shard waits for it. The wait is short, because every join has been told to
                    // end.
                    self.parts.newcomers.close();
                    while let Some(admission) = self.parts.newcomers.recv().await {
                        self.admit_to_end(admission);
                    }
                    self.answer_the_last().await;
                    return;
                }
            }
        }
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let until = std::time::Instant::now() + SLICE;
        self.parts.port.signal.rise();
        loop {
            if !self.turn.open && !self.open_turn(cx) {
                if self.draining && self.members.is_empty() {
                    return Poll::Ready(Step::Done);
                }
                if self.sleeps(cx) {
                    return Poll::Pending;
                }
                continue;
            }
            if !self.walk(until) {
                return Poll::Ready(Step::Yield);
            }
            self.close_turn();
            if !self.again.is_empty() || self.pace.is_due() || std::time::Instant::now() >= until {
                return Poll::Ready(Step::Yield);
            }
        }
    }

    /// Announces that this shard sleeps, then checks once more for work. True if there is none.
    fn sleeps(&self, cx: &Context<'_>) -> bool {
        let Parts { port, gauge, .. } = &self.parts;
        let (is_braked, is_draining) = (self.brake.is_on, self.draining);
        let stance = Stance { position: self.position, extent: self.extent, is_braked, is_draining };
        let is_told_to_end = || gauge.abort.load(Ordering::Relaxed) && !self.members.is_empty();
        port.signal.sleeps_unless(cx.waker(), || port.has_work(stance) || is_told_to_end())
    }

    /// Opens a turn: collects what there is to do. False if there is nothing.
    fn open_turn(&mut self, cx: &mut Context<'_>) -> bool {
        let port = Arc::clone(&self.parts.port);
        self.turn.number += 1;
        self.turn.now = now_ms(port.epoch);
        self.turn.cursor = 0;
        let look = Look::new(&port);
        let tail = look.tail();
        self.turn.sealed = tail.is_sealed();

        let mut work = self.take_commands(cx);
        self.take_begins(cx);
        if self.parts.gauge.abort.load(Ordering::Acquire) {
            self.end_all();
        }
        let horizon = look.take_mail(self.extent, |slot| self.read_mail(slot));
        port.ready.take(self.extent, |slot| {
            if let Some(member) = self.members.get_mut(slot) {
                member.unblock();
                self.turn.note(member, slot);
            }
        });
        for slot in std::mem::take(&mut self.again) {
            if let Some(member) = self.members.get_mut(slot) {
                self.turn.note(member, slot);
            }
        }
        let ticked = self.tick.is_due(cx);
        self.turn.ticked |= ticked;
        work |= ticked;

        let until = self.deferred.front().map_or(u64::MAX, |(mark, _)| *mark);
        let uplink = unless_given_up(&self.parts, self.turn.now);
        let until = match self.brake.apply(&mut self.members, uplink) {
            Reading::Free => until,
            Reading::Trickle if ticked => until.min(self.position + 1),
            Reading::Trickle | Reading::Nothing => self.position,
        };
        self.tell_senders(false);
        let end = tail.position().min(until).min(self.position + u64::from(self.pace.begin()));
        let start = self.position;
        while self.position < end && self.pace.goes_on() {
            if !self.read_entry(&horizon) {
                break;
            }
        }
        work |= self.pace.is_cut();
        if self.position > start {
            port.log.advance(self.parts.index, self.position);
            for slot in std::mem::take(&mut self.lagging) {
                if let Some(member) = self.members.get_mut(slot) {
                    member.lagging = false;
                    self.turn.note(member, slot);
                }
            }
            work = true;
        }
        work |= !self.turn.noted.is_empty();
        work |= self.turn.sealed && !self.draining && self.position == tail.position();
        self.turn.open = work;
        work
    }

    /// Takes the available commands; each waits until the shard has read up to its position. True if one may be due.
    fn take_commands(&mut self, cx: &mut Context<'_>) -> bool {
        while self.deferred.len() < COMMAND_CAPACITY {
            let Parts { port, newcomers, commands, .. } = &mut self.parts;
            let next = take_command(&port.log, || match newcomers.poll_recv(cx) {
                Poll::Ready(Some(admission)) => Some(Deferred::Admit(admission)),
                Poll::Ready(None) | Poll::Pending => match commands.poll_recv(cx) {
                    Poll::Ready(Some(command)) => Some(Deferred::Command(command)),
                    Poll::Ready(None) | Poll::Pending => None,
                },
            });
            let Some(next) = next else { break };
            self.deferred.push_back(next);
        }
        self.deferred.front().is_some_and(|(mark, _)| *mark <= self.position)
    }

    /// Starts the newcomers whose initial messages have arrived. This happens at once, because it takes no position.
    fn take_begins(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(begin)) = self.parts.begins.poll_recv(cx) {
            self.begin(begin);
        }
    }

    fn begin(&mut self, begin: Begin<M>) {
        let Begin { slot, key, initial } = begin;
        let (now, count) = (self.turn.now, initial.len() as u64);
        let Some(member) = self.members.get_mut(slot).filter(|member| member.owner.key() == key) else { return };
        let was_behind = member.is_behind();
        member.begin(initial, now);
        self.pace.note(was_behind, true);
        self.turn.sum.offered += count;
        self.turn.note(member, slot);
    }

    fn read_mail(&mut self, slot: usize) {
        let Some(member) = self.members.get_mut(slot) else { return };
        if let Some(reason) = member.owner.outbox().end_reason() {
            self.retire(slot, reason);
            return;
        }
        member.collect_mail();
        self.turn.note(member, slot);
    }

    /// Reads the entry at the position, if it is filled, and notes the members it is for. False if the entry isn't
    /// there or has to wait. An entry that is for no member of this shard counts no bytes.
    fn read_entry(&mut self, horizon: &Horizon<'_, M>) -> bool {
        let Some(taken) = self.next.take().or_else(|| horizon.take(self.position)) else { return false };
        let topic = match &taken.audience {
            Audience::All => None,
            Audience::Topic(topic) => Some(topic.key()),
        };
        let subscribers = topic.map_or(&[][..], |topic| self.roster.subscribers(topic));
        let is_for_nobody = topic.is_some() && subscribers.is_empty();
        if !is_for_nobody && !self.pace.fits(taken.bytes) {
            self.next = Some(taken);
            return false;
        }
        let seq = self.position;
        self.position += 1;
        self.pace.add(if is_for_nobody { 0 } else { taken.bytes });
        if is_for_nobody {
            return true;
        }
        if let Some(run) = self.turn.intake.push(seq, taken.bytes, taken.message, topic) {
            for subscriber in subscribers {
                let slot = subscriber.slot as usize;
                let member = self.members.get_mut(slot).expect("a member that leaves gives up its subscriptions");
                member.inbox.push(run, subscriber.tag);
                self.turn.note(member, slot);
            }
        }
        true
    }

    /// Visits members until the turn is done (true) or the time is up (false).
    fn walk(&mut self, until: std::time::Instant) -> bool {
        let everybody = !self.turn.intake.to_all().is_empty();
        // A visit ends no member but its own, so a word of slots stays valid while it is walked.
        let mut word = Word::default();
        loop {
            for _ in 0..STRIDE {
                let at = self.turn.cursor;
                let slot = if everybody {
                    word.pop().or_else(|| {
                        word = self.occupied.word(at)?;
                        word.pop()
                    })
                } else {
                    self.turn.noted.get(at).copied()
                };
                let Some(slot) = slot else { return true };
                self.turn.cursor = if everybody { slot } else { at } + 1;
                self.visit(slot);
            }
            if std::time::Instant::now() >= until {
                return false;
            }
        }
    }

    fn visit(&mut self, slot: usize) {
        let Some(member) = self.members.get_mut(slot) else { return };
        let mut round = Round {
            shelf: &mut self.shelf,
            intake: &mut self.turn.intake,
            end: self.position,
            quota: self.pace.quota(),
            gathering: &self.parts.gathering,
            uplink: unless_given_up(&self.parts, self.turn.now),
            now: self.turn.now,
            sum: Sum::default(),
        };
        let was_behind = member.is_behind();
        let visited = caught(|| member.visit(&mut round)).unwrap_or(Err(Fault::Panicked));
        self.pace.note(was_behind, member.is_behind());
        member.settle(&round.sum);
        self.turn.sum.offered += round.sum.offered;
        self.turn.sum.delivered += round.sum.delivered;
        self.turn.sum.delivered_bytes += round.sum.delivered_bytes;
        match visited {
            Err(fault) => return self.fail(slot, fault),
            Ok(()) if member.stand == Stand::More => self.again.push(slot),
            Ok(()) if member.stand == Stand::Blocked => {
                self.tick.arm();
                if self.parts.uplink.is_some() {
                    self.brake.weigh(slot, member);
                }
            }
            Ok(()) => {}
        }
        let member = &mut self.members[slot];
        if member.has_unplaced() && !member.lagging {
            member.lagging = true;
            self.lagging.push(slot);
        }
        if self.draining {
            self.drain(slot);
        }
    }

    /// Ends the turn, and carries out the commands that are due at this position.
    fn close_turn(&mut self) {
        self.turn.open = false;
        self.turn.noted.clear();
        self.shelf.end_turn(&mut self.turn.intake);
        self.publish_sum();
        self.tell_senders(true);
        if std::mem::take(&mut self.turn.ticked) {
            self.end_stuck();
        }
        while self.deferred.front().is_some_and(|(mark, _)| *mark <= self.position) {
            match self.deferred.pop_front() {
                Some((_, Deferred::Admit(admission))) => self.admit(admission),
                Some((_, Deferred::Command(command))) => self.apply(command),
                None => break,
            }
        }
        let tail = self.parts.port.log.tail();
        if self.turn.sealed && !self.draining && self.position == tail.position() {
            self.draining = true;
            self.for_each_slot(Self::drain);
        }
    }

    /// Wakes the senders that wait for the uplink, if something may have been delivered or
    /// [`Port::behind`](crate::fanout::outbox::Port::behind) has changed.
    fn tell_senders(&mut self, delivered: bool) {
        let Some(uplink) = &self.parts.uplink else { return };
        let port = &self.parts.port;
        if self.brake.tell(port, self.position, port.log.tail().position()) || delivered {
            uplink.note_room();
        }
    }

    fn publish_sum(&mut self) {
        let sum = std::mem::take(&mut self.turn.sum);
        let gauge = &self.parts.gauge;
        if sum.offered > 0 {
            gauge.offered.add(sum.offered);
        }
        if sum.delivered > 0 {
            gauge.delivered_bytes.add(sum.delivered_bytes);
            gauge.delivered.add(sum.delivered);
        }
    }

    fn admit(&mut self, admission: Admission<O, M>) {
        let Admission { newcomer, reply, on_the_way } = admission;
        let outbox = newcomer.owner.outbox();
        if self.draining {
            outbox.end(EndReason::SessionClosed);
        } else if self.members.len() >= SHARD_CAPACITY {
            outbox.end(EndReason::JoinFailed);
        }
        let entry = self.members.vacant_entry();
        let slot = entry.key();
        let in_time = outbox.admit(slot);
        entry.insert(Member::new(newcomer, &self.parts.port, slot));
        self.occupied.insert(slot);
        self.extent = self.extent.max(slot + 1);
        self.parts.gauge.members.store(self.members.len(), Ordering::Relaxed);
        drop(on_the_way);
        if in_time {
            // It is not an error to have no receiver: a join that was cancelled ends the participant itself.
            let _ = reply.send(self.position);
            return;
        }
        if let Some(reason) = self.members[slot].owner.outbox().end_reason() {
            self.retire(slot, reason);
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Subscribe { slot, key, counted, tag, reply } => {
                let known = self.member(slot, key).is_some();
                let slot = u32::try_from(slot).expect("a shard holds fewer members");
                let outcome = if known { self.roster.subscribe(slot, counted, tag) } else { Subscribed::Closed };
                // It is not an error if the caller has stopped waiting: the subscription stands.
                let _ = reply.send((outcome, self.position));
            }
            Command::Unsubscribe { slot, key, topic, reply } => {
                let known = self.member(slot, key).is_some();
                let slot = u32::try_from(slot).expect("a shard holds fewer members");
                let outcome = if known { self.roster.unsubscribe(slot, topic) } else { Unsubscribed::NotSubscribed };
                let _ = reply.send(outcome);
            }
        }
    }

    /// The member in `slot`, if it still is the one with this `key`.
    fn member(&mut self, slot: usize, key: u64) -> Option<&mut Member<O, M>> {
        self.members.get_mut(slot).filter(|member| member.owner.key() == key)
    }

    fn fail(&mut self, slot: usize, fault: Fault<SinkError<O, M>>) {
        let Some(member) = self.members.get(slot) else { return };
        let outbox = member.owner.outbox();
        if matches!(fault, Fault::Outpaced) {
            outbox.note_outpaced();
        }
        let reason = fault.reason(O::has_vanished);
        if outbox.end(reason) {
            member.owner.faulted(reason, fault.detail());
        }
        let reason = outbox.end_reason().unwrap_or(reason);
        // The drop of the sink's error is foreign code as well, and may panic.
        caught(|| drop(fault));
        self.retire(slot, reason);
    }

    fn retire(&mut self, slot: usize, reason: EndReason) {
        self.publish_sum();
        self.roster.remove(u32::try_from(slot).expect("a shard holds fewer members"));
        let member = self.members.remove(slot);
        self.pace.note(member.is_behind(), false);
        self.occupied.remove(slot);
        if slot + 1 == self.extent {
            self.extent = self.occupied.extent();
        }
        self.parts.gauge.members.store(self.members.len(), Ordering::Relaxed);
        member.retire(&mut self.shelf, reason);
    }

    /// Ends a member that has nothing left to deliver, or that is still joining, because the session ends.
    fn drain(&mut self, slot: usize) {
        let Some(member) = self.members.get(slot) else { return };
        let done = match member.stand {
            Stand::Clear => !member.has_unplaced(),
            Stand::Joining => true,
            Stand::Blocked | Stand::More => false,
        };
        if done {
            self.end(slot);
        }
    }

    /// Ends all members. What the log still has for them counts as offered, and is lost with them.
    fn end_all(&mut self) {
        self.miss_the_rest();
        self.for_each_slot(Self::end);
    }

    /// Calls `each` for every member; the call may remove the member.
    fn for_each_slot(&mut self, mut each: impl FnMut(&mut Self, usize)) {
        let mut from = 0;
        while let Some(slot) = self.occupied.next(from) {
            from = slot + 1;
            each(self, slot);
        }
    }

    fn end(&mut self, slot: usize) {
        let Some(member) = self.members.get(slot) else { return };
        let outbox = member.owner.outbox();
        outbox.end(EndReason::SessionClosed);
        let reason = outbox.end_reason().unwrap_or(EndReason::SessionClosed);
        self.retire(slot, reason);
    }

    /// Reads the log to its end, only to count what members miss.
    fn miss_the_rest(&mut self) {
        let mut to_all: u32 = 0;
        while let Some(taken) = self.next.take().or_else(|| self.parts.port.log.take(self.position)) {
            self.position += 1;
            match &taken.audience {
                Audience::All => to_all = to_all.saturating_add(1),
                Audience::Topic(topic) => {
                    for subscriber in self.roster.subscribers(topic.key()) {
                        self.members[subscriber.slot as usize].miss(1);
                        self.turn.sum.offered += 1;
                    }
                }
            }
            // A message's drop may panic, and a panic may be what has led here.
            caught(|| drop(taken));
        }
        self.parts.port.log.advance(self.parts.index, self.position);
        for (_, member) in self.members.iter_mut().filter(|(_, member)| !member.owner.outbox().has_ended()) {
            member.miss(to_all);
            self.turn.sum.offered += u64::from(to_all);
        }
    }

    /// Ends blocked members that have made no progress for too long. Members that were woken have been visited by now,
    /// however often they wake themselves.
    fn end_stuck(&mut self) {
        let timeout = u64::try_from(self.parts.write_timeout.as_millis()).unwrap_or(u64::MAX);
        let paused = self.parts.gauge.is_waited_for(self.turn.now);
        let uplink = unless_given_up(&self.parts, self.turn.now);
        let mut stuck = Vec::new();
        let mut blocked = false;
        let mut from = 0;
        while let Some(slot) = self.occupied.next(from) {
            from = slot + 1;
            let member = &mut self.members[slot];
            if member.is_stuck(self.turn.now, timeout, paused, uplink) {
                stuck.push(slot);
            } else {
                blocked |= member.stand == Stand::Blocked;
            }
        }
        for slot in stuck {
            self.fail(slot, Fault::TimedOut);
        }
        if blocked {
            self.tick.arm();
        }
    }
}

impl<O: Owner<M>, M: Message> Drop for FlushShard<O, M> {
    /// However the task ends (its runtime is shut down, or it panics), no caller waits forever and every sink is handed
    /// back.
    fn drop(&mut self) {
        self.end_all();
        for admission in empty(&mut self.parts.newcomers) {
            self.admit_to_end(admission);
        }
        for command in empty(&mut self.parts.commands) {
            caught(|| drop(command));
        }
        while let Some((_, deferred)) = self.deferred.pop_front() {
            if let Deferred::Admit(admission) = deferred {
                self.admit_to_end(admission);
            }
        }
        self.publish_sum();
    }
}

impl<O: Owner<M>, M: Message> FlushShard<O, M> {
    /// Answers the commands that are in the channel or still being sent. A subscription left in the channel would count
    /// in its topic for as long as anybody has a handle of the participant. A sender that holds a permit and isn't
    /// polled is waited for no longer than [`LAST_COMMANDS`].
    async fn answer_the_last(&mut self) {
        self.parts.commands.close();
        let answered = async {
            while let Some(command) = self.parts.commands.recv().await {
                // Every member is gone: the drop of the reply tells the subscriber so.
                caught(|| drop(command));
            }
        };
        let _ = tokio::time::timeout(LAST_COMMANDS, answered).await;
    }

    /// Admits a newcomer that came too late, which hands its sink straight back.
    fn admit_to_end(&mut self, admission: Admission<O, M>) {
        self.draining = true;
        self.admit(admission);
    }
}
