//! To whom a shard delivers: its members, what a turn has for them, and the visits.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::mpsc;

use crate::caught::caught;
use crate::contract::topic::{Audience, Counted, TopicKey};
use crate::contract::uplink::CLEARLY;
use crate::contract::{EndReason, Ending, Rate, Subscribed, SubscriptionTag, Topic, Unsubscribed, Uplink};
use crate::fanout::clock::SessionMs;
use crate::fanout::command::{AddedShards, Begin, Command, Start};
use crate::fanout::log::{Entry, Position, Tail};
use crate::fanout::member_handle::{MemberHandle, SinkError};
use crate::fanout::outbox::bound::Limits;
use crate::fanout::outbox::drain::{Admitted, Drain};
use crate::fanout::port::{Port, SleepCheck};
use crate::fanout::shard::backlog::SnapshotTaken;
use crate::fanout::shard::backpressure::{Backpressure, BehindFlag, MayRead};
use crate::fanout::shard::batch::{ReadBatch, TopicRun};
use crate::fanout::shard::budget::{Gathering, ReadBudget};
use crate::fanout::shard::linger::{GatherLimits, GatherSleep, Linger};
use crate::fanout::shard::member::{Fault, Member, MemberState, PassCounts, VisitContext};
use crate::fanout::shard::newcomer::Newcomer;
use crate::fanout::shard::occupied::{Occupied, Word};
use crate::fanout::shard::reader::{Found, Reader, Reading, Shard, Unread};
use crate::fanout::shard::retained::Retained;
use crate::fanout::shard::shared::{ShardControl, ShardStats};
use crate::fanout::shard::tick::Tick;
use crate::fanout::shard::timers::Timers;
use crate::fanout::shard::topics::{KeptTopics, TopicAudience, TopicIndex};
use crate::fanout::slot::{MemberRef, Slot, SlotSet};
use crate::time::millis;

/// The largest number of members in a shard.
pub(in crate::fanout) const SHARD_CAPACITY: usize = 1 << 18;

/// Members visited between two reads of the clock.
const STRIDE: usize = 64;

/// The parts that a shard is made from.
pub(in crate::fanout) struct ShardSettings<O: MemberHandle> {
    pub(in crate::fanout) index: usize,
    pub(in crate::fanout) port: Arc<Port<O::Message>>,
    pub(in crate::fanout) stats: Arc<ShardStats>,
    pub(in crate::fanout) control: Arc<ShardControl>,
    pub(in crate::fanout) newcomers: mpsc::Receiver<Newcomer<O>>,
    pub(in crate::fanout) commands: mpsc::Receiver<Command<O::Message>>,
    pub(in crate::fanout) begins: mpsc::Receiver<Begin<O::Message>>,
    pub(in crate::fanout) limits: Limits,
    pub(in crate::fanout) gathering: Gathering,
    /// How many bytes of droppable messages may wait for one member, and how many of retained ones.
    pub(in crate::fanout) lossy_bytes: u64,
    /// How many bytes one flush of the shard's sinks carries best.
    pub(in crate::fanout) batch_bytes: usize,
    pub(in crate::fanout) write_timeout: Duration,
    /// How long broadcasts may gather.
    pub(in crate::fanout) linger: Duration,
    /// The uplink that all sinks share, if they do.
    pub(in crate::fanout) uplink: Option<Uplink>,
}

impl<O: MemberHandle> ShardSettings<O> {
    /// The shared uplink, unless it has been stalled for longer than `uplink_patience`.
    fn uplink(&self, now: SessionMs) -> Option<&Uplink> {
        self.uplink.as_ref().filter(|_| !self.control.has_given_up(now))
    }
}

/// A request that takes effect at a position of the log.
pub(super) enum Request<O: MemberHandle> {
    Admit(Newcomer<O>),
    Command(Command<O::Message>),
}

/// When in a turn senders are told of the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    BeforeReading,
    AfterTurn,
}

/// A walk has two passes: members with a backlog are visited last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    First,
    Second,
}

/// How far a walk over the members came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    Done,
    TimeIsUp,
}

/// The members of a shard, and the turn that they are visited in.
pub(super) struct Delivery<O: MemberHandle> {
    pub(super) settings: ShardSettings<O>,
    members: Slab<Member<O>>,
    /// The occupied slots of `members`.
    occupied: Occupied,
    /// No member has a slot at or above this one.
    extent: usize,
    topics: TopicIndex<O::Message>,
    retained: Retained<O::Message>,
    pub(super) turn: TurnWork<O::Message>,
    /// Members that aren't finished, for the next turn.
    requeued: SlotSet,
    /// Members whose direct messages wait for a broadcast to be filled in, for the next turn that reads one.
    awaiting_entry: SlotSet,
    backpressure: Backpressure,
    pub(super) budget: ReadBudget,
    /// The log is sealed and read to its end: members with nothing left to deliver go.
    draining: bool,
    /// The shard has yielded since it last slept.
    is_awake: bool,
    tick: Tick,
    /// When members have to be visited whose messages are delayed.
    timers: Timers,
    linger: Linger<GatherSleep>,
}

/// The work of the current turn.
pub(super) struct TurnWork<M> {
    /// The turn has work, and not all of it is done.
    pub(super) is_open: bool,
    is_sealed: bool,
    /// The time has come to look for stuck members.
    is_ticked: bool,
    batch: ReadBatch<M>,
    /// The members to visit, unless there is something for all of them.
    noted: SlotSet,
    cursor: usize,
    /// The members with a backlog, visited in the second pass: their batches would displace the encoded bytes that the
    /// other members' sinks share.
    behind: SlotSet,
    behind_cursor: usize,
    now: SessionMs,
    counts: PassCounts,
}

impl<M> TurnWork<M> {
    /// Adds what the visits have done so far to the figures of the shard.
    fn publish_counts(&mut self, stats: &ShardStats) {
        let counts = std::mem::take(&mut self.counts);
        if counts.offered > 0 {
            stats.offered.add(counts.offered);
        }
        if counts.delivered > 0 {
            stats.delivered_bytes.add(counts.delivered_bytes);
            stats.delivered.add(counts.delivered);
        }
    }
}

impl<O: MemberHandle> Delivery<O> {
    pub(super) fn new(settings: ShardSettings<O>) -> Self {
        let budget = ReadBudget::new(settings.limits, settings.batch_bytes);
        let turn = TurnWork {
            is_open: false,
            is_sealed: false,
            is_ticked: false,
            batch: ReadBatch::new(budget.quota().messages),
            noted: SlotSet::default(),
            cursor: 0,
            behind: SlotSet::default(),
            behind_cursor: 0,
            now: SessionMs::default(),
            counts: PassCounts::default(),
        };
        // A hold ends at most a quarter of its patience late.
        let patience = settings.port.log.patience().map_or(Duration::MAX, |patience| patience / 4);
        let span = settings.uplink.as_ref().map_or(Duration::MAX, |_| CLEARLY).min(patience);
        Self {
            members: Slab::new(),
            occupied: Occupied::default(),
            extent: 0,
            topics: TopicIndex::new(),
            retained: Retained::new(),
            turn,
            requeued: SlotSet::default(),
            awaiting_entry: SlotSet::default(),
            backpressure: Backpressure::default(),
            budget,
            draining: false,
            is_awake: false,
            tick: Tick::for_timeout(settings.write_timeout, span),
            timers: Timers::default(),
            linger: Linger::new(GatherSleep::new(settings.linger)),
            settings,
        }
    }

    /// The member, if it is still in its slot.
    fn member(&mut self, member: MemberRef) -> Option<&mut Member<O>> {
        self.members.get_mut(member.slot.index()).filter(|there| there.drain().is(member))
    }

    /// Starts the newcomers whose initial messages have arrived. This happens at once, because it takes no position.
    fn take_begins(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(Begin { member, initial })) = self.settings.begins.poll_recv(cx) {
            let (now, count) = (self.turn.now, initial.len() as u64);
            let Some(newcomer) = self.member(member) else { continue };
            let was = newcomer.state;
            newcomer.begin(initial, now);
            let is = newcomer.state;
            self.budget.note(was.is_behind(), is.is_behind());
            self.turn.counts.offered += count;
            self.turn.noted.insert(member.slot);
        }
    }

    /// Visits members until the turn is done or the time is up. The shard has read everything below `position`.
    #[inline]
    pub(super) fn walk(&mut self, position: Position, until: Instant) -> Walk {
        let everybody = !self.turn.batch.to_all().is_empty();
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
                    self.turn.noted.get(at)
                };
                let Some(slot) = slot else { return self.walk_behind(position, until) };
                self.turn.cursor = if everybody { slot.index() } else { at } + 1;
                self.visit(slot, position, Pass::First);
            }
            if Instant::now() >= until {
                return Walk::TimeIsUp;
            }
        }
    }

    /// Visits the members that the first pass has left for last.
    fn walk_behind(&mut self, position: Position, until: Instant) -> Walk {
        while let Some(slot) = self.turn.behind.get(self.turn.behind_cursor) {
            if self.turn.behind_cursor % STRIDE == STRIDE - 1 && Instant::now() >= until {
                return Walk::TimeIsUp;
            }
            self.turn.behind_cursor += 1;
            self.visit(slot, position, Pass::Second);
        }
        Walk::Done
    }

    #[inline]
    fn visit(&mut self, slot: Slot, position: Position, pass: Pass) {
        let Some(member) = self.members.get_mut(slot.index()) else { return };
        if pass == Pass::First && member.state.is_behind() {
            return self.turn.behind.insert(slot);
        }
        let mut visit = VisitContext {
            retained: &mut self.retained,
            batch: &mut self.turn.batch,
            end: position,
            quota: self.budget.quota(),
            gathering: &self.settings.gathering,
            lossy_bytes: self.settings.lossy_bytes,
            drains: self.draining,
            uplink: self.settings.uplink(self.turn.now),
            now: self.turn.now,
            counts: PassCounts::default(),
        };
        let was = member.state;
        // A panic of the sink or of a message is a fault.
        let visited = caught(|| member.visit(&mut visit)).unwrap_or(Err(Fault::Panicked));
        let counts = visit.counts;
        member.settle(&counts);
        self.turn.counts.add(&counts);
        self.budget.note(was.is_behind(), member.state.is_behind());
        if member.has_lossy_queues() {
            // What was offered is counted before what was lost of it.
            self.turn.publish_counts(&self.settings.stats);
            self.timers.follow_up(slot, member, self.turn.now);
            if member.has_ready_lossy() {
                self.tick.arm();
            }
        }
        if let Err(fault) = visited {
            return self.fail(slot, fault);
        }
        match member.state {
            MemberState::More => self.requeued.insert(slot),
            MemberState::Blocked => {
                self.tick.arm();
                if self.settings.uplink.is_some() {
                    self.backpressure.weigh(slot, member);
                }
            }
            MemberState::Clear | MemberState::Joining => {}
        }
        if member.has_unordered() {
            self.awaiting_entry.insert(slot);
        }
        if self.draining {
            self.end_if_done(slot);
        }
    }

    /// Notes that the shard yields, and has more work.
    pub(super) fn note_yield(&mut self) {
        if !self.is_awake {
            self.is_awake = true;
            self.settings.stats.set_awake_since(Some(self.turn.now));
        }
    }

    /// Notes that the shard sleeps.
    pub(super) fn note_sleep(&mut self) {
        if self.is_awake {
            self.is_awake = false;
            self.settings.stats.set_awake_since(None);
        }
    }

    /// Takes over what the first shard has kept of the messages below this shard's first position.
    pub(super) fn take_over(&mut self, kept: KeptTopics<O::Message>) {
        self.topics.take_over(kept);
    }

    pub(super) fn has_requeued(&self) -> bool {
        !self.requeued.is_empty()
    }

    /// Ends the turn. The shard has read everything below `position`.
    pub(super) fn close_turn(&mut self, position: Position) {
        self.turn.is_open = false;
        self.turn.noted.clear();
        self.turn.behind.clear();
        self.turn.behind_cursor = 0;
        self.retained.end_turn(&mut self.turn.batch);
        self.publish_counts();
        self.tell_senders(position, When::AfterTurn);
        if std::mem::take(&mut self.turn.is_ticked) {
            self.end_stuck();
        }
    }

    /// Lets go of members that are done, once the log is sealed and read to its end.
    pub(super) fn drain_if_sealed(&mut self, position: Position) {
        if self.turn.is_sealed && !self.draining && position == self.settings.port.log.tail().position() {
            self.draining = true;
            self.for_each_slot(Self::end_if_done);
            // Nothing is delayed any more.
            self.for_each_slot(|delivery, slot| {
                if delivery.members[slot.index()].has_lossy_queues() {
                    delivery.requeued.insert(slot);
                }
            });
        }
    }

    /// Wakes the senders that wait for the uplink if [`Port::behind`] has changed, or after a turn, which may have
    /// delivered something.
    fn tell_senders(&mut self, position: Position, when: When) {
        let Some(uplink) = &self.settings.uplink else { return };
        let port = &self.settings.port;
        let flag = self.backpressure.update_behind(port, position, port.log.tail().position());
        if flag == BehindFlag::Changed || when == When::AfterTurn {
            uplink.note_capacity();
        }
    }

    pub(super) fn publish_counts(&mut self) {
        self.turn.publish_counts(&self.settings.stats);
    }

    /// Carries out a request, whose position the shard has reached.
    pub(super) fn carry_out(&mut self, request: Request<O>, position: Position) {
        match request {
            Request::Admit(newcomer) => self.admit(newcomer, position),
            Request::Command(command) => self.apply(command, position),
        }
    }

    fn admit(&mut self, newcomer: Newcomer<O>, position: Position) {
        let Newcomer { handle, sink, progress, reply, on_the_way } = newcomer;
        let drain = Drain::new(handle);
        if self.draining {
            drain.end(EndReason::SessionClosed);
        } else if self.members.len() >= SHARD_CAPACITY {
            drain.end(EndReason::JoinFailed);
        }
        let entry = self.members.vacant_entry();
        let slot = Slot::new(entry.key());
        let admitted = drain.admit(slot);
        entry.insert(Member::new(drain, sink, progress, &self.settings.port, slot));
        self.occupied.insert(slot);
        self.extent = self.extent.max(slot.index() + 1);
        self.settings.stats.set_members(self.members.len());
        drop(on_the_way);
        match admitted {
            // It is not an error to have no receiver: a join that was cancelled ends the participant itself.
            Admitted::InTime => drop(reply.send(position)),
            Admitted::Ended => {
                if let Some(reason) = self.members[slot.index()].drain().end_reason() {
                    self.retire(slot, reason);
                }
            }
        }
    }

    /// Admits a newcomer that came too late, which hands its sink straight back.
    pub(super) fn admit_to_end(&mut self, newcomer: Newcomer<O>, position: Position) {
        self.draining = true;
        self.admit(newcomer, position);
    }

    fn apply(&mut self, command: Command<O::Message>, position: Position) {
        // It is not an error if the caller has stopped waiting: what it asked for stands.
        match command {
            Command::Subscribe { member, counted, tag, own_rate, reply } => {
                let outcome = match self.member(member) {
                    Some(_) => self.subscribe(member.slot, counted, tag, own_rate),
                    None => Subscribed::Closed,
                };
                let _ = reply.send((outcome, position));
            }
            Command::Unsubscribe { member, topic, reply } => {
                let outcome = match self.member(member) {
                    Some(_) => self.topics.unsubscribe(member.slot, topic),
                    None => Unsubscribed::NotSubscribed,
                };
                if outcome == Unsubscribed::Removed {
                    self.drop_topic(member.slot, topic);
                }
                let _ = reply.send(outcome);
            }
            // This shard has read exactly up to `from`, unless it is aborted and nobody subscribes any more.
            Command::AddShards(AddedShards { from, starts }) => {
                let Some(from) = from else { return };
                for start in starts {
                    // A message's clone may panic. Then nothing is handed over.
                    let kept = caught(|| self.topics.kept()).unwrap_or_default();
                    // It is not an error if the shard was dropped before it began.
                    let _ = start.send(Start { position: from, kept });
                }
            }
        }
    }

    fn subscribe(&mut self, slot: Slot, counted: Counted, tag: SubscriptionTag, own_rate: Option<Rate>) -> Subscribed {
        let topic = counted.topic().clone();
        let mut subscribed = self.topics.subscribe(slot, counted, tag, own_rate);
        // A message's clone may panic. Then nothing is retained.
        let snapshot = caught(|| self.topics.snapshot(&topic, subscribed == Subscribed::New));
        let (profile, last) = snapshot.unwrap_or_default();
        let (now, most) = (self.turn.now, self.settings.lossy_bytes);
        let member = &mut self.members[slot.index()];
        let (was, count) = (member.state, last.len() as u64);
        member.set_own_rate(&topic, &profile, own_rate, now);
        if count > 0 {
            match caught(|| member.push_snapshot((&topic, &profile), tag, last, most, now)) {
                Some(SnapshotTaken::Waits) => self.turn.counts.offered += count,
                Some(SnapshotTaken::TooLarge) | None => subscribed = Subscribed::WithoutRetained,
            }
        }
        self.budget.note(was.is_behind(), member.state.is_behind());
        if member.state == MemberState::More {
            self.requeued.insert(slot);
        }
        // The turn is over, and no visit has to follow: what has changed is counted here.
        member.note_oldest(&self.retained);
        if member.has_lossy_queues() {
            self.timers.follow_up(slot, member, now);
        }
        self.publish_counts();
        subscribed
    }

    /// Forgets a topic that ends: its subscriptions, what waits for them, and what is kept for late subscribers.
    ///
    /// What the turn has read of it has to be handed on, or to wait, before that. So an end is the first entry of its
    /// turn.
    fn on_topic_end(&mut self, entry: Entry<O::Message>) -> Reading<O::Message> {
        if !self.turn.batch.is_empty() {
            return Reading::Later(entry);
        }
        self.budget.add(0);
        if let Audience::Topic(topic) = entry.audience {
            let key = topic.key();
            for slot in self.topics.end(key) {
                self.drop_topic(slot, key);
            }
            self.members.iter().for_each(|(_, member)| member.drain().forget_losses(key));
        }
        if self.budget.goes_on() { Reading::More } else { Reading::Enough }
    }

    /// Drops what waits of a topic that a member has unsubscribed from.
    fn drop_topic(&mut self, slot: Slot, topic: TopicKey) {
        let member = &mut self.members[slot.index()];
        // The drop of a message may panic.
        if caught(|| member.drop_topic(topic, &mut self.retained)).is_none() {
            return self.fail(slot, Fault::Panicked);
        }
        if self.draining {
            self.end_if_done(slot);
        }
    }

    fn fail(&mut self, slot: Slot, fault: Fault<SinkError<O>>) {
        let Some(member) = self.members.get(slot.index()) else { return };
        let drain = member.drain();
        if matches!(fault, Fault::Outpaced) {
            drain.note_outpaced();
        }
        let reason = fault.reason(O::has_vanished);
        if drain.end(reason) == Ending::ByThis {
            drain.handle().faulted(reason, fault.detail());
        }
        let reason = drain.end_reason().unwrap_or(reason);
        // The drop of the sink's error is foreign code as well, and may panic.
        caught(|| drop(fault));
        self.retire(slot, reason);
    }

    fn retire(&mut self, slot: Slot, reason: EndReason) {
        self.publish_counts();
        self.topics.remove(slot);
        let member = self.members.remove(slot.index());
        self.occupied.remove(slot);
        if slot.index() + 1 == self.extent {
            self.extent = self.occupied.extent();
        }
        self.settings.stats.set_members(self.members.len());
        if let Some(due) = member.armed(self.turn.now) {
            self.timers.forget(slot, due);
        }
        self.budget.note(member.state.is_behind(), false);
        member.retire(&mut self.retained, reason);
    }

    /// Ends a member that has nothing left to deliver, or that is still joining, because the session ends.
    fn end_if_done(&mut self, slot: Slot) {
        let Some(member) = self.members.get(slot.index()) else { return };
        let done = match member.state {
            MemberState::Clear => !member.has_unordered() && !member.has_lossy(),
            MemberState::Joining => true,
            MemberState::Blocked | MemberState::More => false,
        };
        if done {
            self.end(slot);
        }
    }

    fn end(&mut self, slot: Slot) {
        let Some(member) = self.members.get(slot.index()) else { return };
        member.drain().end(EndReason::SessionClosed);
        let reason = member.drain().end_reason().unwrap_or(EndReason::SessionClosed);
        self.retire(slot, reason);
    }

    /// Ends all members. What the log still has for them counts as offered, and is lost with them.
    pub(super) fn end_all(&mut self, reader: &mut Reader<O::Message, Request<O>>) {
        self.miss_the_rest(reader);
        self.for_each_slot(Self::end);
    }

    /// Calls `each` for every member; the call may remove the member.
    fn for_each_slot(&mut self, mut each: impl FnMut(&mut Self, Slot)) {
        let mut from = 0;
        while let Some(slot) = self.occupied.next(from) {
            from = slot.index() + 1;
            each(self, slot);
        }
    }

    /// Reads the log to its end, only to count what members miss.
    fn miss_the_rest(&mut self, reader: &mut Reader<O::Message, Request<O>>) {
        let mut to_all: u32 = 0;
        reader.read_to_the_end(|entry| {
            match &entry.audience {
                _ if entry.message.is_none() => {}
                Audience::All => to_all = to_all.saturating_add(1),
                Audience::Topic(topic) => {
                    for subscriber in self.topics.audience(topic).subscribers {
                        self.members[subscriber.slot.index()].miss(1);
                        self.turn.counts.offered += 1;
                    }
                }
            }
            // A message's drop may panic, and a panic may be what has led here.
            caught(|| drop(entry));
        });
        for (_, member) in self.members.iter_mut().filter(|(_, member)| !member.drain().has_ended()) {
            member.miss(to_all);
            self.turn.counts.offered += u64::from(to_all);
        }
    }

    /// Ends blocked members that have made no progress for too long. Members that were woken have been visited by now,
    /// however often they wake themselves.
    fn end_stuck(&mut self) {
        let now = self.turn.now;
        let timeout = millis(self.settings.write_timeout);
        let spared = self.settings.control.spares_members(now);
        let uplink = self.settings.uplink(now);
        let mut stuck = Vec::new();
        let mut blocked = false;
        let mut from = 0;
        while let Some(slot) = self.occupied.next(from) {
            from = slot.index() + 1;
            let member = &mut self.members[slot.index()];
            if member.has_ready_lossy() {
                // The drop of a message may panic. Everything is counted by then.
                caught(|| member.sweep(&mut self.retained, now));
                self.timers.follow_up(slot, member, now);
            }
            if member.is_stuck(now, timeout, spared, uplink) {
                stuck.push(slot);
            } else {
                blocked |= member.state == MemberState::Blocked || member.has_ready_lossy();
            }
        }
        for slot in stuck {
            self.fail(slot, Fault::TimedOut);
        }
        // Each member that stays heavy for long is blocked, so some shard ticks for as long as publishers are held.
        self.settings.port.log.give_up_if_stuck(now);
        if blocked {
            self.tick.arm();
        }
    }
}

impl<O: MemberHandle> Shard<O::Message, Request<O>> for Delivery<O> {
    fn take_turn(&mut self, reader: &mut Reader<O::Message, Request<O>>, cx: &mut Context<'_>) -> Found {
        self.turn.now = self.settings.port.clock.now();
        self.turn.cursor = 0;
        self.take_begins(cx);
        if self.settings.control.is_aborted() {
            self.end_all(reader);
        }
        let is_ticked = self.tick.is_due(cx);
        self.turn.is_ticked |= is_ticked;
        let (clock, now, noted) = (self.settings.port.clock, self.turn.now, &mut self.turn.noted);
        self.turn.now = self.timers.take_due(cx, clock, now, |slot| noted.insert(slot));
        let input = reader.turn(cx, self);
        if input.has_read {
            for slot in self.awaiting_entry.drain() {
                self.turn.noted.insert(slot);
            }
        }
        let has_work = is_ticked
            || input.has_due_command
            || input.has_read
            || self.budget.defers_to_yield()
            || !self.turn.noted.is_empty()
            || (self.turn.is_sealed && !self.draining && reader.position() == input.tail.position());
        self.turn.is_open = has_work;
        match has_work {
            true => Found::Work,
            false if self.draining && self.members.is_empty() => Found::End,
            false => Found::Nothing,
        }
    }

    fn next_command(&mut self, cx: &mut Context<'_>) -> Option<Request<O>> {
        let ShardSettings { newcomers, commands, .. } = &mut self.settings;
        if let Poll::Ready(Some(newcomer)) = newcomers.poll_recv(cx) {
            return Some(Request::Admit(newcomer));
        }
        match commands.poll_recv(cx) {
            Poll::Ready(Some(command)) => Some(Request::Command(command)),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    fn fix_position(&mut self, request: &mut Request<O>) -> Option<Position> {
        let Request::Command(Command::AddShards(added)) = request else { return None };
        added.from = self.settings.port.log.add_readers();
        added.from
    }

    fn extent(&self) -> usize {
        self.extent
    }

    fn on_mail(&mut self, slot: Slot) {
        let Some(member) = self.members.get_mut(slot.index()) else { return };
        if let Some(reason) = member.drain().end_reason() {
            return self.retire(slot, reason);
        }
        member.collect_mail();
        let was = member.state;
        member.update_total_rate(self.turn.now);
        self.budget.note(was.is_behind(), member.state.is_behind());
        self.turn.noted.insert(slot);
    }

    fn on_ready(&mut self, slot: Slot) {
        if let Some(member) = self.members.get_mut(slot.index()) {
            member.unblock();
            self.turn.noted.insert(slot);
        }
    }

    fn begin_reading(&mut self, position: Position, tail: Tail) -> Position {
        self.turn.is_sealed = tail.is_sealed();
        for slot in self.requeued.drain() {
            self.turn.noted.insert(slot);
        }
        let uplink = self.settings.uplink(self.turn.now);
        let until = match self.backpressure.decide(&self.members, uplink) {
            MayRead::Everything => Position::END,
            MayRead::Trickle if self.turn.is_ticked => position.after(1),
            MayRead::Trickle | MayRead::Nothing => position,
        };
        self.tell_senders(position, When::BeforeReading);
        until.min(position.after(u64::from(self.budget.begin())))
    }

    #[inline]
    fn lingers(&mut self, cx: &mut Context<'_>, unread: Unread<'_>) -> bool {
        if self.settings.linger.is_zero() {
            return false;
        }
        let is_called = self.backpressure.holds_back() || !self.awaiting_entry.is_empty();
        let limits = GatherLimits { entries: self.budget.quota().messages, age: self.topics.least_age() };
        self.linger.gathers(cx, &self.settings.port.log, unread, limits, is_called)
    }

    /// Notes the members that the entry is for. An entry that is for no member of this shard counts no bytes.
    fn on_entry(&mut self, position: Position, entry: Entry<O::Message>) -> Reading<O::Message> {
        let Entry { audience, bytes, message: Some(message) } = entry else { return self.on_topic_end(entry) };
        let (topic, TopicAudience { mut subscribers, profiled }) = match &audience {
            Audience::All => (None, TopicAudience::NOBODY),
            Audience::Topic(topic) => (Some(topic), self.topics.audience(topic)),
        };
        let is_for_nobody = topic.is_some() && subscribers.is_empty();
        if !is_for_nobody && !self.budget.fits(bytes) {
            return Reading::Later(Entry { audience, bytes, message: Some(message) });
        }
        self.budget.add(if is_for_nobody { 0 } else { bytes });
        if let (Some(topic), Some((profile, _))) = (topic, &profiled)
            && profile.retained() > 0
        {
            // The clone or the drop of a message may panic. Then one less is retained.
            caught(|| self.topics.retain(topic.key(), &message, bytes));
            subscribers = self.topics.audience(topic).subscribers;
        }
        if is_for_nobody {
            return if self.budget.goes_on() { Reading::More } else { Reading::Enough };
        }
        let key = topic.map(Topic::key);
        let profiled = match audience {
            Audience::Topic(topic) => profiled.map(|(profile, version)| (topic, profile, version)),
            Audience::All => None,
        };
        if let Some(run) = self.turn.batch.push(position, bytes, message, key, profiled) {
            for subscriber in subscribers {
                let member = self.members.get_mut(subscriber.slot.index());
                let member = member.expect("a member that leaves gives up its subscriptions");
                member.note_run(TopicRun { run, tag: subscriber.tag, has_own_rate: subscriber.has_own_rate });
                self.turn.noted.insert(subscriber.slot);
            }
        }
        if self.budget.goes_on() { Reading::More } else { Reading::Enough }
    }

    fn sleep_check(&self) -> SleepCheck {
        let (holds_back, is_draining) = (self.backpressure.holds_back(), self.draining);
        SleepCheck { extent: self.extent, holds_back, is_draining, gathers_until: self.linger.gathers_until() }
    }

    fn is_called(&self) -> bool {
        self.settings.control.is_aborted() && !self.members.is_empty()
    }
}
