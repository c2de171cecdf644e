//! One participant as its shard sees it: its sink, and its backlog while the sink is busy.
//!
//! A member whose sink is idle stores nothing: its messages are handed straight to the sink. The backlog of a busy
//! member keeps, in delivery order, references to the broadcasts that the shard [retains](Retained), which all busy
//! members share, and to the member's own messages. Droppable messages wait beside it, in
//! [queues](crate::fanout::shard::lossy) of their own.
//!
//! # Inlining
//! A visit to a member that keeps up runs in one function. With calls, a broadcast to 1,000 takes a third more
//! instructions (`.ci/instructions`). So the parts of the visit are inlined, although they have several callers, and
//! what is rare is kept out of line.
//!
//! # The order of the classes
//! A visit hands on the reliable messages that wait, then places what the turn has read, and last hands on droppable
//! messages. A reliable message goes straight into a ready sink if no reliable message waits. A droppable one does so
//! only if nothing waits for its turn in any class: otherwise the topic that is read first would pass all others by in
//! each turn.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_sink::Sink;

use crate::caught::caught;
use crate::contract::profile::Profile;
use crate::contract::run::BroadcastRun;
use crate::contract::topic::TopicKey;
use crate::contract::uplink::Uplink;
use crate::contract::{EndReason, Message, Progress, Rate, RunSink, SubscriptionTag, Topic};
use crate::fanout::clock::SessionMs;
use crate::fanout::log::Position;
use crate::fanout::member_handle::{MemberHandle, SinkError};
use crate::fanout::outbox::bound::Exceeded;
use crate::fanout::outbox::control_queue::Direct;
use crate::fanout::outbox::drain::Drain;
use crate::fanout::port::Port;
use crate::fanout::shard::backlog::{Backlog, Kind, Popped, SnapshotTaken};
use crate::fanout::shard::batch::{EntryMeta, ProfiledTopic, ReadBatch, TopicRun, TopicRuns, Treatment};
use crate::fanout::shard::budget::{Gathering, Load, Quota};
use crate::fanout::shard::link::LinkRate;
use crate::fanout::shard::lossy::{Change, LossyQueues, Rearmed, Taken};
use crate::fanout::shard::retained::{Handed, Retained};
use crate::fanout::slot::Slot;

type Outcome<T, O> = Result<T, Fault<SinkError<O>>>;

/// The state of a member between two visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberState {
    /// Everything that the member was given is delivered.
    Clear,
    /// The sink is busy and will wake the member.
    Blocked,
    /// The member had its share of this turn and needs another one.
    More,
    /// The member waits for its initial messages.
    Joining,
}

impl MemberState {
    /// Whether the member waits for its sink, or has more to deliver.
    pub(super) fn is_behind(self) -> bool {
        matches!(self, Self::Blocked | Self::More)
    }
}

/// What one or more visits did, for the accounts.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::fanout) struct PassCounts {
    pub(in crate::fanout) offered: u64,
    pub(in crate::fanout) delivered: u64,
    pub(in crate::fanout) delivered_bytes: u64,
}

impl PassCounts {
    pub(super) fn add(&mut self, more: &Self) {
        self.offered += more.offered;
        self.delivered += more.delivered;
        self.delivered_bytes += more.delivered_bytes;
    }
}

/// Why a member can't go on. The sink's error comes with it, and is formatted only if it is logged.
#[derive(Debug)]
pub(in crate::fanout) enum Fault<E> {
    Overflow,
    /// More gathered for the member while it joined than is allowed.
    Outpaced,
    Failed(E),
    Panicked,
    TimedOut,
}

impl<E: fmt::Debug> Fault<E> {
    /// The reason for which the participant ends; `has_vanished` tells whether a sink's error means that its peer is
    /// gone.
    pub(super) fn reason(&self, has_vanished: impl FnOnce(&E) -> bool) -> EndReason {
        match self {
            // `has_vanished` is foreign code: if it panics, the write counts as failed.
            Self::Failed(error) if caught(|| has_vanished(error)).unwrap_or(false) => EndReason::Vanished,
            Self::Overflow | Self::Outpaced => EndReason::Overflow,
            Self::Failed(_) => EndReason::WriteFailed,
            Self::Panicked => EndReason::WritePanicked,
            Self::TimedOut => EndReason::WriteTimedOut,
        }
    }

    pub(super) fn detail(&self) -> Option<&dyn fmt::Debug> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Overflow | Self::Outpaced | Self::Panicked | Self::TimedOut => None,
        }
    }
}

/// A participant in its shard.
///
/// The order of the fields in memory matters: what a visit to a clear member touches is together at the start of a
/// cache line, because a walk over thousands of members is bound by the lines it loads. The other fields are touched
/// only if something waits.
#[repr(C, align(64))]
pub(in crate::fanout) struct Member<O: MemberHandle> {
    pub(super) state: MemberState,
    /// The next completed flush must also give back what the bound counts, or note the time: something else than
    /// broadcasts has gone into the sink, or the member wasn't clear, or it has a `link`.
    needs_bookkeeping: bool,
    /// The messages in `uncounted` are droppable, so the bound never counts them. Outdated while there are none.
    uncounted_is_lossy: bool,
    /// The member has a `link`, a total rate or both. Kept here because both are on other cache lines.
    is_metered: bool,
    /// Messages between two places: offered, and neither in the sink nor in the backlog.
    in_hand: u32,
    /// Handed to the sink in this visit.
    handed_now: Load,
    /// In the sink, not flushed yet: the broadcasts that went straight into it, which the bound doesn't count yet.
    uncounted: Load,
    backlog: Option<Box<Backlog<O::Message>>>,
    drain: Drain<O>,
    sink: O::Sink,
    /// The runs of this turn that reach the member by a topic.
    topic_runs: TopicRuns,
    waker: Waker,
    /// In the sink: what the bound counts. Nothing, unless the member `needs_bookkeeping`.
    counted: Load,
    /// In the sink: what the bound never counts. Nothing, unless the member `needs_bookkeeping`.
    exempt: Load,
    /// The time since which the oldest message in the sink waits.
    handed_since: SessionMs,
    progress: Progress,
    progress_seen: u64,
    /// What the link carries. `None` if the sink wasn't busy lately; otherwise the member `needs_bookkeeping` and
    /// `is_metered`.
    link: Option<Box<LinkRate>>,
    /// When the member last made progress; maintained only while the member isn't clear.
    moved: SessionMs,
}

/// What a visit needs from the shard.
pub(in crate::fanout) struct VisitContext<'a, M> {
    pub(in crate::fanout) retained: &'a mut Retained<M>,
    pub(in crate::fanout) batch: &'a mut ReadBatch<M>,
    /// The position up to which the shard has read. Direct messages stamped at or below it have their place.
    pub(in crate::fanout) end: Position,
    /// How much one visit may hand on.
    pub(in crate::fanout) quota: Quota,
    /// How much may gather for a joining member.
    pub(in crate::fanout) gathering: &'a Gathering,
    /// How many bytes of droppable messages may wait for one member.
    pub(in crate::fanout) lossy_bytes: u64,
    /// The session ends, and nothing is delayed any more.
    pub(in crate::fanout) drains: bool,
    /// The uplink that all members share; `None` if there is none, or it was given up.
    pub(in crate::fanout) uplink: Option<&'a Uplink>,
    pub(in crate::fanout) now: SessionMs,
    /// What this visit has done so far.
    pub(in crate::fanout) counts: PassCounts,
}

/// Which messages are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Classes {
    Reliable,
    /// Reliable and droppable ones.
    All,
}

/// A single message on its way into the sink.
struct Outgoing<'a, M> {
    message: Handed<'a, M>,
    tag: Option<SubscriptionTag>,
    bytes: usize,
    /// The bound doesn't count the message.
    is_exempt: bool,
    waits_since: SessionMs,
}

impl<O: MemberHandle> Member<O> {
    pub(in crate::fanout) fn new(
        drain: Drain<O>,
        sink: O::Sink,
        progress: Progress,
        port: &Arc<Port<O::Message>>,
        slot: Slot,
    ) -> Self {
        let waker = Waker::from(Arc::new(MemberWaker { port: Arc::clone(port), slot }));
        Self {
            drain,
            sink,
            waker,
            progress,
            state: MemberState::Joining,
            needs_bookkeeping: false,
            uncounted_is_lossy: false,
            is_metered: false,
            in_hand: 0,
            handed_now: Load::default(),
            uncounted: Load::default(),
            backlog: None,
            topic_runs: TopicRuns::default(),
            counted: Load::default(),
            exempt: Load::default(),
            handed_since: SessionMs::default(),
            progress_seen: 0,
            link: None,
            moved: SessionMs::default(),
        }
    }

    pub(in crate::fanout) fn drain(&self) -> &Drain<O> {
        &self.drain
    }

    /// Takes everything out of the control queue. A direct message gets its place when the broadcasts sent before it
    /// have theirs.
    pub(in crate::fanout) fn collect_mail(&mut self) {
        let backlog = &mut self.backlog;
        self.drain.take_queue(|direct| {
            backlog.get_or_insert_with(Backlog::new).unordered.push_back(direct);
        });
    }

    /// Notes a run of this turn's batch that reaches the member by the subscription with this tag.
    pub(super) fn note_run(&mut self, run: TopicRun) {
        self.topic_runs.push(run);
    }

    /// Whether the member has direct messages that wait for a broadcast to be filled in.
    pub(in crate::fanout) fn has_unordered(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.unordered.is_empty())
    }

    /// Gives the member its initial messages, ahead of everything that has gathered.
    pub(in crate::fanout) fn begin(&mut self, initial: Vec<(O::Message, usize)>, now: SessionMs) {
        self.drain.offer(initial.len() as u64);
        self.drain.count();
        self.state = MemberState::More;
        self.moved = now;
        if !initial.is_empty() {
            self.backlog.get_or_insert_with(Backlog::new).push_initial(initial, now);
        }
    }

    /// Notes that the sink has woken the member.
    pub(super) fn unblock(&mut self) {
        if self.state == MemberState::Blocked {
            self.state = MemberState::More;
        }
    }

    /// Delivers what waits and what this visit has for the member, as far as the sink takes it. The caller then
    /// [settles](Self::settle) the visit's counts, also after a panic.
    #[inline]
    pub(in crate::fanout) fn visit(&mut self, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        // The participant has ended, and the shard is about to learn of it: nothing more goes into the sink.
        if self.drain.has_ended() {
            self.topic_runs.clear();
            return Ok(());
        }
        let was = self.state;
        self.handed_now = Load::default();
        self.needs_bookkeeping |= was != MemberState::Clear;
        if let Some(backlog) = &mut self.backlog
            && let Some(lossy) = &mut backlog.lossy
        {
            lossy.release_due(visit.now, visit.drains);
        }
        if was == MemberState::More {
            self.drive_first(visit)?;
        }
        self.place_all(visit)?;
        self.drive(Classes::All, visit)?;
        // A member that was woken and is blocked again has made progress only if a flush completed, and the flush
        // records that.
        if self.state == MemberState::Blocked && was == MemberState::Clear {
            self.moved = visit.now;
            self.progress_seen = self.progress.total();
        }
        if self.backlog.is_some() || was != MemberState::Clear || self.state != MemberState::Clear {
            self.tidy(visit.retained, visit.now);
        }
        Ok(())
    }

    /// Adds what a visit did to the participant's account.
    pub(in crate::fanout) fn settle(&self, counts: &PassCounts) {
        if counts.offered > 0 {
            self.drain.offer(counts.offered);
        }
        if counts.delivered > 0 {
            self.drain.deliver(counts.delivered, counts.delivered_bytes);
        }
    }

    /// Ends the member: counts what it leaves undelivered and gives the sink back to the session.
    pub(in crate::fanout) fn retire(self, retained: &mut Retained<O::Message>, reason: EndReason) {
        let waits = self.backlog.as_ref().map_or(0, |backlog| backlog.len() as u64);
        self.drain.discount();
        self.drain.lose(u64::from(self.in_hand) + u64::from(self.in_sink().messages) + waits);
        self.drain.set_oldest(None);
        self.drain.into_handle().retire(self.sink, reason);
        // Last, because a message's drop may panic: by then everything is counted and the sink is handed back.
        if let Some(backlog) = self.backlog {
            backlog.release(retained);
        }
    }

    /// Counts `broadcasts` that are for the member, but that the shard, which is ending, won't hand on. They count as
    /// offered now, and as lost when the member retires.
    pub(super) fn miss(&mut self, broadcasts: u32) {
        self.drain.offer(u64::from(broadcasts));
        self.in_hand = self.in_hand.saturating_add(broadcasts);
    }

    /// Whether the member has made no progress for `timeout` (ms), or for the time-out that its transport has set. The
    /// time doesn't run while it is `spared`, or while the member waits for `uplink`.
    pub(super) fn is_stuck(&mut self, now: SessionMs, timeout: u64, spared: bool, uplink: Option<&Uplink>) -> bool {
        if self.state != MemberState::Blocked {
            return false;
        }
        let reported = self.progress.total();
        if spared || self.is_held_up(uplink) || reported != self.progress_seen {
            self.progress_seen = reported;
            self.moved = now;
            self.drain.note_progress(now);
        }
        now.since(self.moved) >= self.progress.write_timeout().unwrap_or(timeout)
    }

    /// Whether the member waits for the uplink that all share. Its backlog is then no fault of its own.
    pub(super) fn is_held_up(&self, uplink: Option<&Uplink>) -> bool {
        uplink.is_some_and(|uplink| uplink.holds(&self.progress))
    }

    /// Reserves capacity in the bound for messages from the log, beyond the bound if the uplink holds the member up.
    fn reserve(&self, messages: u32, bytes: usize, uplink: Option<&Uplink>) -> Outcome<(), O> {
        let reserved = self.drain.reserve(messages, bytes).or_else(|full| {
            if self.is_held_up(uplink) { self.drain.reserve_beyond(messages, bytes) } else { Err(full) }
        });
        reserved.map_err(|Exceeded| Fault::Overflow)
    }

    /// Merges what the visit has for the member with its direct messages, in one order.
    fn place_all(&mut self, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        let (mut by_all, mut by_topic) = (0, 0);
        let is_addressed = visit.batch.is_addressed();
        loop {
            let all = visit.batch.to_all().get(by_all).copied();
            // Not read without need: the topic runs are on another cache line.
            let topic = if is_addressed { self.topic_runs.get(by_topic) } else { None };
            let (run, topic) = match (all, topic) {
                (Some(all), Some(topic)) if all < topic.run => (all, None),
                (_, Some(topic)) => (topic.run, Some(topic)),
                (Some(all), None) => (all, None),
                (None, None) => break,
            };
            by_all += usize::from(topic.is_none());
            by_topic += usize::from(topic.is_some());
            let (run, treatment) = visit.batch.run(run);
            match (topic, treatment) {
                (None, _) | (_, Treatment::Plain) => self.place_run(run, topic.map(|topic| topic.tag), visit)?,
                (Some(topic), Treatment::Droppable(profiled)) if self.has_no_queues_or_directs() => {
                    self.place_droppable(run, profiled, topic, visit)?;
                }
                (Some(topic), Treatment::Droppable(profiled) | Treatment::ByProfile(profiled)) => {
                    self.place_profiled(run, profiled, topic, visit)?;
                }
            }
        }
        if by_topic > 0 {
            self.topic_runs.clear();
        }
        if self.has_unordered() { self.place_directs(visit.end, visit) } else { Ok(()) }
    }

    /// Places a run of broadcasts, and the direct messages that come before any of them.
    #[inline(always)]
    fn place_run(
        &mut self,
        mut run: Range<usize>,
        tag: Option<SubscriptionTag>,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<(), O> {
        while !run.is_empty() {
            let until = if self.has_unordered() { self.place_directs_before(&run, visit)? } else { run.end };
            while run.start < until {
                run.start += self.place_broadcasts(run.start..until, tag, visit)?;
            }
        }
        Ok(())
    }

    /// Whether the member has no queues of droppable messages, where rates are kept as well, and no direct messages
    /// whose place has to be found.
    #[inline]
    fn has_no_queues_or_directs(&self) -> bool {
        self.backlog.as_ref().is_none_or(|backlog| backlog.lossy.is_none() && backlog.unordered.is_empty())
    }

    /// Places a run of droppable messages of a topic without a rate, for a member that [has no queues and no direct
    /// messages](Self::has_no_queues_or_directs).
    #[inline(always)]
    fn place_droppable(
        &mut self,
        mut run: Range<usize>,
        profiled: u32,
        topic: TopicRun,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<(), O> {
        debug_assert!(!topic.has_own_rate, "a member with a rate of its own has queues");
        // First, because the sink may fail or panic when it is asked.
        visit.counts.offered += 1;
        self.in_hand = 1;
        if self.is_open(visit.quota)? {
            run.start += self.start_send_run(run.clone(), Some(topic.tag), visit, Some(profiled))?;
            if run.is_empty() {
                return Ok(());
            }
        } else {
            visit.counts.offered -= 1;
            self.in_hand = 0;
        }
        self.place_profiled(run, profiled, topic, visit)
    }

    /// Places a run of a profiled topic.
    #[inline(never)]
    fn place_profiled(
        &mut self,
        run: Range<usize>,
        profiled: u32,
        topic: TopicRun,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<(), O> {
        let ProfiledTopic { topic: of, profile, .. } = visit.batch.profiled(profiled);
        if profile.is_reliable() && !topic.has_own_rate {
            let of = of.key();
            // The topic's waiting messages are placed where this run is: behind the direct messages before the run.
            if self.has_unordered() {
                self.place_directs_before(&run, visit)?;
            }
            if let Some(backlog) = &mut self.backlog {
                backlog.make_reliable(of);
            }
            return self.place_run(run, Some(topic.tag), visit);
        }
        let is_rated = topic.has_own_rate || profile.rate().is_some();
        // One at a time if a rate has to be asked for each.
        let is_single = is_rated || self.has_total_rate();
        let mut at = run.start;
        while at < run.end {
            if self.has_unordered() {
                self.place_directs_before(&(at..run.end), visit)?;
            }
            visit.counts.offered += 1;
            self.in_hand = 1;
            if self.is_open_for_lossy(profiled, visit)? {
                let end = if is_single { at + 1 } else { run.end };
                at += self.start_send_run(at..end, Some(topic.tag), visit, Some(profiled))?;
                if is_rated {
                    self.start_rate(profiled, visit.batch.entries[at - 1].bytes, visit);
                }
            } else {
                self.queue_lossy(at, profiled, topic.tag, visit);
                at += 1;
            }
        }
        Ok(())
    }

    /// Puts a droppable broadcast that is in hand in its topic's queue.
    #[inline(never)]
    fn queue_lossy(
        &mut self,
        at: usize,
        profiled: u32,
        tag: SubscriptionTag,
        visit: &mut VisitContext<'_, O::Message>,
    ) {
        let key = visit.retained.keep(visit.batch, at, visit.now);
        let ProfiledTopic { topic, profile, .. } = visit.batch.profiled(profiled);
        topic.count_offered(1);
        let lossy = self.lossy();
        lossy.push((topic, profile), (key, tag), visit.lossy_bytes, visit.retained, visit.now);
        self.in_hand = 0;
        self.lossy().free(visit.retained);
    }

    /// Has the rate delay the next message of a topic, after one of `bytes` went straight into the sink.
    #[inline(never)]
    fn start_rate(&mut self, profiled: u32, bytes: usize, visit: &mut VisitContext<'_, O::Message>) {
        let now = visit.now;
        let ProfiledTopic { topic, profile, .. } = visit.batch.profiled(profiled);
        self.lossy().note_handed_on(topic, profile, bytes, now);
    }

    /// The member's queues of droppable messages.
    fn lossy(&mut self) -> &mut LossyQueues {
        self.backlog.get_or_insert_with(Backlog::new).lossy.get_or_insert_with(LossyQueues::new)
    }

    /// Whether a droppable message may go straight into the sink.
    fn is_open_for_lossy(&mut self, profiled: u32, visit: &mut VisitContext<'_, O::Message>) -> Outcome<bool, O> {
        if let Some(backlog) = &mut self.backlog
            && let Some(lossy) = &mut backlog.lossy
        {
            let ProfiledTopic { topic, profile, .. } = visit.batch.profiled(profiled);
            if !lossy.is_open(topic, profile, visit.now) {
                return Ok(false);
            }
        }
        // Otherwise messages would be dropped though the sink takes them.
        if self.state == MemberState::Clear && self.is_batch_full(visit.quota) {
            self.flush(visit)?;
        }
        self.is_open(visit.quota)
    }

    /// Places the direct messages that come before the first broadcast of a run. Returns the index of the broadcast
    /// before which the next direct message comes, or the end of the run if there is none.
    #[cold]
    fn place_directs_before(&mut self, run: &Range<usize>, visit: &VisitContext<'_, O::Message>) -> Outcome<usize, O> {
        let entries = &visit.batch.entries[run.clone()];
        self.place_directs(entries[0].position, visit)?;
        let next = self.backlog.as_ref().and_then(|backlog| backlog.unordered.front());
        Ok(next.map_or(run.end, |direct| run.start + entries.partition_point(|entry| entry.position < direct.stamp)))
    }

    /// Places every direct message up to the first one stamped above `position`.
    fn place_directs(&mut self, position: Position, visit: &VisitContext<'_, O::Message>) -> Outcome<(), O> {
        while let Some(backlog) = &mut self.backlog {
            let Some(direct) = backlog.unordered.pop_front_if(|direct| direct.stamp <= position) else { break };
            self.in_hand = 1;
            if self.is_open(visit.quota)? {
                let Direct { message, bytes, .. } = direct;
                let message = Handed::Own(message);
                let waits_since = visit.now;
                self.start_send(Outgoing { message, tag: None, bytes, is_exempt: false, waits_since }, visit.now)?;
            } else {
                let backlog = self.backlog.get_or_insert_with(Backlog::new);
                backlog.push_own(Kind::Direct, direct.message, direct.bytes, visit.now);
                self.in_hand = 0;
            }
        }
        Ok(())
    }

    /// Hands on the first of these broadcasts, or puts the first one in the backlog. Returns how many were placed.
    #[inline(always)]
    fn place_broadcasts(
        &mut self,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<usize, O> {
        visit.counts.offered += 1;
        self.in_hand = 1;
        if self.is_open(visit.quota)? {
            return self.start_send_run(range, tag, visit, None);
        }
        self.store_broadcast(range, tag, visit)
    }

    /// Puts the first of these broadcasts, which is in hand, in the backlog, or hands on the first ones after all.
    #[cold]
    fn store_broadcast(
        &mut self,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<usize, O> {
        if self.state == MemberState::Joining {
            return self.gather(range.start, tag, visit);
        }
        // The member had its share of this visit, and its sink wasn't asked whether it is busy: a flush may empty it.
        if self.state == MemberState::Clear {
            self.flush(visit)?;
        }
        let bytes = visit.batch.entries[range.start].bytes;
        let mut fits = self.reserve(1, bytes, visit.uplink);
        if fits.is_err() && matches!(self.state, MemberState::Clear | MemberState::More) {
            // The member isn't busy: exceeding the quota of a visit is better than an overflow.
            visit.quota = Quota::UNBOUNDED;
            self.drive(Classes::Reliable, visit)?;
            if self.is_open(visit.quota)? {
                return self.start_send_run(range, tag, visit, None);
            }
            fits = self.reserve(1, bytes, visit.uplink);
        }
        fits?;
        let key = visit.retained.keep(visit.batch, range.start, visit.now);
        self.backlog.get_or_insert_with(Backlog::new).push_retained(key, tag);
        self.in_hand = 0;
        Ok(1)
    }

    /// Puts a broadcast that is in hand in the backlog of a joining member, within the bound for gathering.
    #[cold]
    fn gather(
        &mut self,
        at: usize,
        tag: Option<SubscriptionTag>,
        visit: &mut VisitContext<'_, O::Message>,
    ) -> Outcome<usize, O> {
        let bytes = visit.batch.entries[at].bytes;
        let backlog = self.backlog.get_or_insert_with(Backlog::new);
        if !backlog.gather(bytes, visit.gathering, visit.retained, visit.now) {
            return Err(Fault::Outpaced);
        }
        backlog.push_retained(visit.retained.keep(visit.batch, at, visit.now), tag);
        self.in_hand = 0;
        Ok(1)
    }

    /// Gives the sink as many of the first of these broadcasts as it takes and the quota allows. One of them is in
    /// hand.
    #[inline(always)]
    fn start_send_run(
        &mut self,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
        visit: &mut VisitContext<'_, O::Message>,
        profiled: Option<u32>,
    ) -> Outcome<usize, O> {
        let count = self.allowed(&visit.batch.entries[range.clone()], visit.quota);
        if let Some(profiled) = profiled {
            // Before the call, which may fail or panic: the participant's account has what becomes of them.
            visit.batch.profiled(profiled).straight += count as u64;
        }
        let batch = &*visit.batch;
        let entries = &batch.entries[range.clone()];
        let messages = &batch.messages[range.start..range.start + count];
        let run = BroadcastRun::with_ids(messages, batch.first_id.after(range.start), tag);
        visit.counts.offered += count as u64 - 1;
        self.in_hand = count as u32;
        let taken = Pin::new(&mut self.sink).start_send_run(&run).map_err(Fault::Failed)?;
        assert!((1..=count).contains(&taken), "of {count} broadcasts a sink takes one to all, not {taken}");
        self.in_hand = 0;
        visit.counts.offered -= (count - taken) as u64;
        let last = &entries[taken - 1];
        let load = Load { messages: taken as u32, bytes: last.before + last.bytes - entries[0].before };
        self.note_handed(visit.now);
        self.handed_now.add(load);
        if self.uncounted_is_lossy == profiled.is_some() {
            self.uncounted.add(load);
        } else {
            self.add_other(load, profiled.is_some());
        }
        if self.is_metered {
            self.charge(load.bytes, visit.now);
        }
        if taken < count
            && let Some(profiled) = profiled
        {
            visit.batch.profiled(profiled).straight -= (count - taken) as u64;
        }
        Ok(taken)
    }

    /// Adds messages that went straight into the sink, of the other kind than those in `uncounted`.
    #[cold]
    fn add_other(&mut self, load: Load, is_lossy: bool) {
        if self.uncounted.messages > 0 {
            self.needs_bookkeeping = true;
            if is_lossy {
                return self.exempt.add(load);
            }
            self.exempt.add(std::mem::take(&mut self.uncounted));
        }
        self.uncounted_is_lossy = is_lossy;
        self.uncounted.add(load);
    }

    /// Charges the member's total rate, if it has one.
    #[inline(never)]
    fn charge(&mut self, bytes: usize, now: SessionMs) {
        if let Some(lossy) = self.backlog.as_mut().and_then(|backlog| backlog.lossy.as_mut()) {
            lossy.charge(bytes, now);
        }
    }

    fn has_total_rate(&self) -> bool {
        let lossy = self.backlog.as_ref().and_then(|backlog| backlog.lossy.as_ref());
        self.is_metered && lossy.is_some_and(|lossy| lossy.has_total_rate())
    }

    /// How many of the first of these broadcasts the quota allows. The quota must not be reached yet.
    #[inline]
    fn allowed(&self, entries: &[EntryMeta], quota: Quota) -> usize {
        // A turn reads no more than the quota, so all are allowed.
        if !self.needs_bookkeeping && self.handed_now.messages == 0 {
            return entries.len();
        }
        self.measure_allowed(entries, quota)
    }

    #[inline(never)]
    fn measure_allowed(&self, entries: &[EntryMeta], quota: Quota) -> usize {
        let mut left = quota.after(self.handed_now);
        if self.is_metered
            && let Some(link) = &self.link
        {
            let batch = link.quota(quota).after(self.in_sink());
            left.bytes = left.bytes.min(batch.bytes);
        } else if self.handed_now.messages == 0 {
            return entries.len();
        }
        let messages = entries.len().min(left.messages as usize);
        let begins_below = |entry: &EntryMeta| ((entry.before - entries[0].before) as u64) < left.bytes;
        if begins_below(&entries[messages - 1]) { messages } else { entries.partition_point(begins_below) }
    }

    /// Flushes, and hands on the backlog as far as the quota and the sink allow.
    #[inline(always)]
    fn drive(&mut self, classes: Classes, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        if self.state == MemberState::Joining || (self.state == MemberState::Blocked && self.handed_now.messages == 0) {
            return Ok(());
        }
        self.flush(visit)?;
        if self.backlog.is_none() && self.state != MemberState::Blocked {
            self.state = MemberState::Clear;
            return Ok(());
        }
        self.drive_backlog(classes, visit)
    }

    /// Hands on the reliable messages that wait, before the visit places more.
    #[cold]
    fn drive_first(&mut self, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        self.drive(Classes::Reliable, visit)
    }

    /// Hands on the backlog. Everything in the sink is flushed, unless the member is blocked.
    #[inline(never)]
    fn drive_backlog(&mut self, classes: Classes, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        loop {
            let waits = self.backlog.as_ref().is_some_and(|backlog| {
                !backlog.is_empty() || (classes == Classes::All && backlog.may_go_lossy(visit.now))
            });
            if self.state == MemberState::Blocked {
                return Ok(());
            }
            if !waits {
                self.state = MemberState::Clear;
                return Ok(());
            }
            if self.handed_now.reaches(visit.quota) {
                self.state = MemberState::More;
                // Everything handed to the sink is flushed. If the sink is found busy next, the time-out runs from
                // here.
                self.moved = visit.now;
                return Ok(());
            }
            self.hand_on(classes, visit)?;
            self.flush(visit)?;
        }
    }

    /// Hands on from the backlog until it is empty, the quota is used up, or the sink isn't ready.
    fn hand_on(&mut self, classes: Classes, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        while !self.has_had_enough(visit.quota)
            && self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty())
            && self.poll_ready()?
        {
            self.in_hand += 1;
            let backlog = self.backlog.as_mut().expect("it was just looked at");
            let since = backlog.oldest(visit.retained).unwrap_or(visit.now);
            let Popped { is_exempt, message, bytes, tag } = backlog.pop(visit.retained).expect("it isn't empty");
            self.start_send(Outgoing { message, tag, bytes, is_exempt, waits_since: since }, visit.now)?;
        }
        if classes == Classes::All { self.hand_on_lossy(visit) } else { Ok(()) }
    }

    /// Hands on droppable messages, in their turns, unless a reliable message waits.
    fn hand_on_lossy(&mut self, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        while !self.has_had_enough(visit.quota)
            && self.backlog.as_ref().is_some_and(|backlog| backlog.is_empty() && backlog.may_go_lossy(visit.now))
            && self.poll_ready()?
        {
            let waits_since = visit.now;
            let lossy = self.backlog.as_mut().and_then(|backlog| backlog.lossy.as_mut());
            let taken = lossy.expect("it was just looked at").pop(visit.retained, visit.now);
            let Some(Taken { message, bytes, tag }) = taken else { break };
            self.in_hand += 1;
            self.start_send(Outgoing { message, tag: Some(tag), bytes, is_exempt: true, waits_since }, visit.now)?;
        }
        if let Some(lossy) = self.backlog.as_mut().and_then(|backlog| backlog.lossy.as_mut()) {
            lossy.free(visit.retained);
        }
        Ok(())
    }

    /// Whether a message may go straight into the sink: nothing comes before it, the quota isn't reached and the sink
    /// is ready.
    fn is_open(&mut self, quota: Quota) -> Outcome<bool, O> {
        let first = matches!(self.state, MemberState::Clear)
            && !self.has_had_enough(quota)
            && self.backlog.as_ref().is_none_or(|backlog| backlog.is_empty());
        Ok(first && self.poll_ready()?)
    }

    /// Whether the sink is ready; if not, the member is blocked. A member that has ended in the meantime is blocked as
    /// well, and stays so.
    fn poll_ready(&mut self) -> Outcome<bool, O> {
        if self.drain.has_ended() {
            self.state = MemberState::Blocked;
            return Ok(false);
        }
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.sink).poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(Fault::Failed(error)),
            Poll::Pending => {
                self.state = MemberState::Blocked;
                Ok(false)
            }
        }
    }

    /// Gives the message in hand, a direct one or one that has waited, to the sink.
    #[inline(always)]
    fn start_send(
        &mut self,
        Outgoing { message, tag, bytes, is_exempt, waits_since }: Outgoing<'_, O::Message>,
        now: SessionMs,
    ) -> Outcome<(), O> {
        let sink = Pin::new(&mut self.sink);
        let taken = match message {
            Handed::Shared(message, id) => {
                let run = BroadcastRun::with_ids(std::slice::from_ref(message), id, tag);
                sink.start_send_run(&run).map(|taken| assert_eq!(taken, 1, "a sink takes what there is"))
            }
            Handed::Own(mut message) => {
                if let Some(tag) = tag {
                    message.address(tag);
                }
                sink.start_send(message)
            }
        };
        taken.map_err(Fault::Failed)?;
        self.in_hand -= 1;
        self.note_handed(waits_since);
        let load = Load::of_one(bytes);
        self.handed_now.add(load);
        let part = if is_exempt { &mut self.exempt } else { &mut self.counted };
        part.add(load);
        self.needs_bookkeeping = true;
        if self.is_metered {
            self.charge(bytes, now);
        }
        Ok(())
    }

    /// Notes since when the message waits that the sink has just taken, if it is the oldest there.
    fn note_handed(&mut self, since: SessionMs) {
        if self.is_sink_empty() {
            self.handed_since = since;
        }
    }

    /// Whether the sink has flushed all that it has taken.
    fn is_sink_empty(&self) -> bool {
        // The other parts are on another cache line, and empty in nearly all visits.
        self.uncounted.messages == 0
            && (!self.needs_bookkeeping || (self.counted.messages == 0 && self.exempt.messages == 0))
    }

    /// Everything that the sink has taken and not flushed.
    fn in_sink(&self) -> Load {
        let mut load = self.uncounted;
        load.add(self.counted);
        load.add(self.exempt);
        load
    }

    /// Flushes what the sink holds, if anything. If the flush doesn't complete at once, the member is blocked, and the
    /// bound also counts the broadcasts that went straight into the sink.
    #[inline(always)]
    fn flush(&mut self, visit: &mut VisitContext<'_, O::Message>) -> Outcome<(), O> {
        if self.is_sink_empty() {
            return Ok(());
        }
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.sink).poll_flush(&mut cx) {
            Poll::Ready(Ok(())) => {
                let mut flushed = std::mem::take(&mut self.uncounted);
                if self.needs_bookkeeping {
                    flushed.add(self.keep_books(visit.now));
                    self.note_drained(flushed.bytes, visit.now);
                }
                visit.counts.delivered += u64::from(flushed.messages);
                visit.counts.delivered_bytes += flushed.bytes as u64;
                // The sink may have been found busy earlier in this visit. After a completed flush it owes the member
                // no wake-up.
                if self.state == MemberState::Blocked {
                    self.state = MemberState::More;
                }
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Fault::Failed(error)),
            Poll::Pending => self.note_unflushed(visit),
        }
    }

    /// Takes note of a flush that didn't complete.
    #[cold]
    fn note_unflushed(&mut self, visit: &VisitContext<'_, O::Message>) -> Outcome<(), O> {
        self.state = MemberState::Blocked;
        self.needs_bookkeeping = true;
        self.note_busy(visit);
        if self.uncounted_is_lossy {
            self.exempt.add(std::mem::take(&mut self.uncounted));
            return Ok(());
        }
        self.reserve(self.uncounted.messages, self.uncounted.bytes, visit.uplink)?;
        self.counted.add(std::mem::take(&mut self.uncounted));
        Ok(())
    }

    /// Records a completed flush of a member that wasn't clear, or that was handed more than broadcasts. Returns what
    /// the sink has flushed besides those that went straight into it.
    #[cold]
    fn keep_books(&mut self, now: SessionMs) -> Load {
        self.needs_bookkeeping = false;
        let counted = std::mem::take(&mut self.counted);
        // First, because the member may be heavy no longer once it has given its capacity back.
        self.drain.note_progress(now);
        if counted.messages > 0 {
            self.drain.release(counted.messages, counted.bytes);
        }
        self.moved = now;
        let mut flushed = std::mem::take(&mut self.exempt);
        flushed.add(counted);
        flushed
    }

    /// Whether the sink of a slow member holds as much as its link carries in one batch.
    #[inline]
    fn is_batch_full(&self, quota: Quota) -> bool {
        self.is_metered && self.holds_a_batch(quota)
    }

    #[inline(never)]
    fn holds_a_batch(&self, quota: Quota) -> bool {
        self.link.as_ref().is_some_and(|link| self.in_sink().reaches(link.quota(quota)))
    }

    /// Whether the visit has handed on its quota, or the sink holds what the link carries in one batch.
    #[inline]
    fn has_had_enough(&self, quota: Quota) -> bool {
        self.handed_now.reaches(quota) || self.is_batch_full(quota)
    }

    /// Measures a member whose sink is busy, unless what it waits for is an uplink that all share.
    fn note_busy(&mut self, visit: &VisitContext<'_, O::Message>) {
        if visit.uplink.is_none() {
            let measured = self.progress.link_rate();
            self.link.get_or_insert_with(|| Box::new(LinkRate::resume(measured))).busy(visit.now);
            self.is_metered = true;
        }
    }

    /// Measures a member that has a link by what its sink has flushed.
    fn note_drained(&mut self, bytes: usize, now: SessionMs) {
        let Some(link) = &mut self.link else { return };
        link.flushed(bytes, now);
        if let Some(rate) = link.rate() {
            self.progress.set_link_rate(rate);
        }
        if link.is_over(now) {
            self.link = None;
            self.is_metered = self.has_total_rate();
        }
        self.needs_bookkeeping = self.link.is_some();
    }

    /// Records the age of the oldest message.
    pub(super) fn note_oldest(&self, retained: &Retained<O::Message>) {
        let oldest = if !self.is_sink_empty() {
            Some(self.handed_since)
        } else {
            self.backlog.as_ref().and_then(|backlog| backlog.oldest(retained))
        };
        self.drain.set_oldest(oldest);
    }

    /// Records the age of the oldest message, and frees a large backlog once it is empty.
    fn tidy(&mut self, retained: &Retained<O::Message>, now: SessionMs) {
        self.note_oldest(retained);
        if let Some(backlog) = &mut self.backlog {
            backlog.lossy.take_if(|lossy| lossy.is_idle(now));
            if self.state == MemberState::Clear
                && backlog.unordered.is_empty()
                && backlog.lossy.is_none()
                && backlog.is_large()
            {
                self.backlog = None;
            }
        }
    }

    /// Whether the member has queues of droppable messages, or rates.
    #[inline]
    pub(super) fn has_lossy_queues(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.lossy.is_some())
    }

    /// Whether a droppable message waits or is delayed.
    pub(super) fn has_lossy(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.has_lossy())
    }

    /// Adds to the accounts what the member's queues have lost. Returns when the shard has to visit the member again,
    /// if nothing else has it do so before.
    pub(super) fn follow_up(&mut self, now: SessionMs) -> Option<Rearmed> {
        let lossy = self.backlog.as_mut()?.lossy.as_mut()?;
        if lossy.has_losses() {
            let (lost, unsubscribed) = lossy.take_losses();
            self.drain.lose_lossy(lost, unsubscribed);
        }
        if self.state == MemberState::Joining { None } else { lossy.rearm(now) }
    }

    /// Drops the messages that are too old.
    pub(super) fn sweep(&mut self, retained: &mut Retained<O::Message>, now: SessionMs) {
        if let Some(lossy) = self.backlog.as_mut().and_then(|backlog| backlog.lossy.as_mut()) {
            lossy.sweep(retained, now);
            lossy.free(retained);
        }
    }

    /// When the shard's timers have the member visited, if that time is still to come.
    pub(super) fn armed(&self, now: SessionMs) -> Option<SessionMs> {
        self.backlog.as_ref()?.lossy.as_ref()?.armed(now)
    }

    /// Whether a droppable message waits for its turn, and may grow too old.
    pub(super) fn has_ready_lossy(&self) -> bool {
        self.backlog.as_ref().and_then(|backlog| backlog.lossy.as_ref()).is_some_and(|lossy| lossy.has_ready())
    }

    /// Takes over the total rate that the participant was given.
    pub(super) fn update_total_rate(&mut self, now: SessionMs) {
        let rate = self.drain.rate();
        if (rate.is_some() || self.has_total_rate()) && self.lossy().set_total_rate(rate, now) == Change::Made {
            self.is_metered = rate.is_some() || self.link.is_some();
            self.revisit(now);
        }
    }

    /// Gives the member's subscription to `topic` a rate of its own, or takes it away.
    pub(super) fn set_own_rate(&mut self, topic: &Topic, profile: &Profile, own_rate: Option<Rate>, now: SessionMs) {
        if own_rate.is_none() && !self.has_lossy_queues() {
            return;
        }
        self.lossy().set_own_rate(topic, profile, own_rate, now);
        if let Some(backlog) = &mut self.backlog {
            // A message that was delayed comes before the next one.
            let is_reliable = profile.is_reliable() && own_rate.is_none() && backlog.make_reliable(topic.key());
            if is_reliable || backlog.has_lossy() {
                self.revisit(now);
            }
        }
    }

    /// Adds the last messages of a topic for a new subscription.
    pub(super) fn push_snapshot(
        &mut self,
        (topic, profile): (&Topic, &Profile),
        tag: SubscriptionTag,
        messages: VecDeque<(O::Message, usize)>,
        most: u64,
        now: SessionMs,
    ) -> SnapshotTaken {
        let count = messages.len() as u64;
        let last = messages.back().map_or(0, |(_, bytes)| *bytes);
        let backlog = self.backlog.get_or_insert_with(Backlog::new);
        let taken = backlog.push_snapshot(topic.key(), tag, messages, most, now);
        if taken == SnapshotTaken::Waits {
            self.drain.offer(count);
            self.revisit(now);
            if profile.rate().is_some() || self.has_own_rate(topic.key()) {
                self.lossy().note_handed_on(topic, profile, last, now);
            }
        }
        taken
    }

    fn has_own_rate(&self, topic: TopicKey) -> bool {
        self.backlog.as_ref().and_then(|backlog| backlog.lossy.as_ref()).is_some_and(|lossy| lossy.is_rated(topic))
    }

    /// Has the next visit hand on what waits.
    fn revisit(&mut self, now: SessionMs) {
        if self.state == MemberState::Clear {
            self.state = MemberState::More;
            self.moved = now;
        }
    }

    /// Drops what waits of a topic that the member has unsubscribed from: droppable and retained messages.
    pub(super) fn drop_topic(&mut self, topic: TopicKey, retained: &mut Retained<O::Message>) {
        let Some(backlog) = &mut self.backlog else { return };
        let snapshot = backlog.take_snapshot(topic);
        let dropped = snapshot.len() as u64;
        // Counted before anything is dropped.
        if let Some(lossy) = &mut backlog.lossy {
            lossy.unsubscribe(topic);
            let (lost, unsubscribed) = lossy.take_losses();
            self.drain.lose_lossy(lost, dropped + unsubscribed);
        } else {
            self.drain.lose_lossy(std::iter::empty(), dropped);
        }
        if !snapshot.is_empty() {
            self.note_oldest(retained);
        }
        drop(snapshot);
        let Some(backlog) = &mut self.backlog else { return };
        if let Some(lossy) = &mut backlog.lossy {
            lossy.free(retained);
        }
    }
}

struct MemberWaker<M> {
    port: Arc<Port<M>>,
    slot: Slot,
}

impl<M: Message> Wake for MemberWaker<M> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.port.ready.set(self.slot.index());
        self.port.signal.wake();
    }
}
