//! One participant as its shard sees it: its sink, and its backlog while the sink is busy.
//!
//! A member whose sink is idle stores nothing: its messages are handed straight to the sink. The backlog of a busy
//! member keeps, in delivery order, references to the broadcasts on the shard's shelf, which all busy members share,
//! and to the member's own messages.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_sink::Sink;

use crate::contract::EndReason;
use crate::contract::Message;
use crate::contract::progress::Progress;
use crate::contract::run::BroadcastRun;
use crate::contract::topic::SubscriptionTag;
use crate::contract::uplink::Uplink;
use crate::fanout::outbox::Port;
use crate::fanout::shard::backlog::{Backlog, Kind, Popped};
use crate::fanout::shard::fault::Fault;
use crate::fanout::shard::inbox::Inbox;
use crate::fanout::shard::intake::{Intake, Mark};
use crate::fanout::shard::load::{Gathering, Load, Quota};
use crate::fanout::shard::owner::{Newcomer, Owner, SinkError};
use crate::fanout::shard::shelf::{Shelf, Taken};

type Outcome<T, O, M> = Result<T, Fault<SinkError<O, M>>>;

/// The state of a member between two visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Everything that the member was given is delivered.
    Clear,
    /// The sink is busy and will wake the member.
    Blocked,
    /// The member had its share of this turn and needs another one.
    More,
    /// The member waits for its initial messages.
    Joining,
}

/// What one or more visits did, for the accounts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) offered: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_bytes: u64,
}

/// A participant in its shard.
///
/// The order of the fields in memory matters: what a visit to a clear member touches is together at the start of a
/// cache line, because a walk over thousands of members is bound by the lines it loads. The other fields are touched
/// only if something waits.
#[repr(C, align(64))]
pub(crate) struct Member<O: Owner<M>, M: Message> {
    pub(crate) stand: Stand,
    /// Whether the shard lists the member among those that wait for a broadcast to be filled in.
    pub(crate) lagging: bool,
    /// Whether the shard lists the member among those whose bound is half taken.
    pub(crate) heavy: bool,
    /// The next completed flush has more to record than that the sink is empty.
    uncommon: bool,
    /// Messages between two places: offered, and neither in the sink nor in the backlog.
    in_hand: u32,
    /// Handed to the sink in this visit.
    handed_now: Load,
    /// In the sink, not flushed yet.
    handed: Load,
    backlog: Option<Box<Backlog<M>>>,
    pub(crate) owner: O,
    sink: O::Sink,
    /// The number of the turn that last noted the member for a visit.
    pub(crate) noted: u64,
    /// The runs of this turn that reach the member by a topic.
    pub(crate) inbox: Inbox,
    waker: Waker,
    /// The part of `handed` that the bound counts.
    held: Load,
    /// The part of `handed` that the bound never counts.
    exempt: Load,
    /// The time since which the oldest message in the sink waits, in the session's milliseconds.
    handed_since: u64,
    progress: Progress,
    progress_seen: u64,
    /// When the member last made progress, in the session's milliseconds; maintained only while the member isn't clear.
    moved: u64,
}

/// What a visit needs from the shard.
pub(crate) struct Round<'a, M> {
    pub(crate) shelf: &'a mut Shelf<M>,
    pub(crate) intake: &'a mut Intake<M>,
    /// The position up to which the shard has read. Direct messages stamped at or below it have their place.
    pub(crate) end: u64,
    /// How much one visit may hand on.
    pub(crate) quota: Quota,
    /// How much may gather for a joining member.
    pub(crate) gathering: &'a Gathering,
    /// The uplink that all members share; `None` if there is none, or it was given up.
    pub(crate) uplink: Option<&'a Uplink>,
    pub(crate) now: u64,
    /// What this visit has done so far.
    pub(crate) sum: Sum,
}

impl<O: Owner<M>, M: Message> Member<O, M> {
    pub(crate) fn new(newcomer: Newcomer<O, M>, port: &Arc<Port<M>>, slot: usize) -> Self {
        let waker = Waker::from(Arc::new(MemberWaker { port: Arc::clone(port), slot }));
        Self {
            owner: newcomer.owner,
            sink: newcomer.sink,
            waker,
            stand: Stand::Joining,
            lagging: false,
            heavy: false,
            handed_now: Load::default(),
            handed: Load::default(),
            backlog: None,
            inbox: Inbox::default(),
            noted: 0,
            held: Load::default(),
            exempt: Load::default(),
            handed_since: 0,
            in_hand: 0,
            uncommon: false,
            progress: newcomer.progress,
            progress_seen: 0,
            moved: 0,
        }
    }

    /// Takes everything out of the control queue. A direct message gets its place when the broadcasts sent before it
    /// have theirs.
    pub(crate) fn collect_mail(&mut self) {
        let backlog = &mut self.backlog;
        self.owner.outbox().take_queue(|direct| {
            backlog.get_or_insert_with(Backlog::new).unplaced.push_back(direct);
        });
    }

    /// Whether the member has direct messages that wait for a broadcast to be filled in.
    pub(crate) fn has_unplaced(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.unplaced.is_empty())
    }

    /// Gives the member its initial messages, ahead of everything that has gathered.
    pub(crate) fn begin(&mut self, initial: Vec<(M, usize)>, now: u64) {
        self.owner.outbox().offer_from_lane(initial.len() as u64);
        self.stand = Stand::More;
        self.moved = now;
        if initial.is_empty() {
            return;
        }
        self.backlog.get_or_insert_with(Backlog::new).push_initial(initial, now);
    }

    /// Whether the member waits for its sink, or has more to deliver.
    pub(crate) fn is_behind(&self) -> bool {
        matches!(self.stand, Stand::Blocked | Stand::More)
    }

    /// Notes that the sink has woken the member.
    pub(crate) fn unblock(&mut self) {
        if self.stand == Stand::Blocked {
            self.stand = Stand::More;
        }
    }

    /// Delivers what waits and what this round has for the member, as far as the sink takes it. The caller then calls
    /// [`settle`](Self::settle) with the round's sum, also after a panic.
    pub(crate) fn visit(&mut self, round: &mut Round<'_, M>) -> Outcome<(), O, M> {
        // The participant has ended, and the shard is about to learn of it: nothing more goes into the sink.
        if self.owner.outbox().has_ended() {
            self.inbox.clear();
            return Ok(());
        }
        let was = self.stand;
        self.handed_now = Load::default();
        self.uncommon |= was != Stand::Clear;
        if was == Stand::More {
            self.drive(round)?;
        }
        self.place_all(round)?;
        self.drive(round)?;
        // A member that was woken and is blocked again has made progress only if a flush completed, and the flush
        // records that.
        if self.stand == Stand::Blocked && was == Stand::Clear {
            self.moved = round.now;
            self.progress_seen = self.progress.total();
        }
        if self.backlog.is_some() || was != Stand::Clear || self.stand != Stand::Clear {
            self.tidy(round.shelf);
        }
        Ok(())
    }

    /// Adds what a visit did to the participant's account.
    pub(crate) fn settle(&self, sum: &Sum) {
        let outbox = self.owner.outbox();
        if sum.offered > 0 {
            outbox.offer_from_lane(sum.offered);
        }
        if sum.delivered > 0 {
            outbox.deliver(sum.delivered, sum.delivered_bytes);
        }
    }

    /// Ends the member: counts what it leaves undelivered and gives the sink back to its owner.
    pub(crate) fn retire(self, shelf: &mut Shelf<M>, reason: EndReason) {
        let outbox = self.owner.outbox();
        let waits = self.backlog.as_ref().map_or(0, |backlog| backlog.len() as u64);
        outbox.lose(u64::from(self.in_hand) + u64::from(self.handed.messages) + waits);
        outbox.lose_queue();
        outbox.set_oldest(None);
        self.owner.retire(self.sink, reason);
        // Last, because a message's drop may panic: by then everything is counted and the sink is handed back.
        if let Some(backlog) = self.backlog {
            backlog.release(shelf);
        }
    }

    /// Counts `broadcasts` that are for the member, but that the shard, which is ending, won't hand on. They count as
    /// offered now, and as lost when the member retires.
    pub(crate) fn miss(&mut self, broadcasts: u32) {
        self.owner.outbox().offer_from_lane(u64::from(broadcasts));
        self.in_hand = self.in_hand.saturating_add(broadcasts);
    }

    /// Whether the member has made no progress for `timeout` (ms), or for the time-out that its transport has set. The
    /// time doesn't run while `paused`, or while the member waits for `uplink`.
    pub(crate) fn is_stuck(&mut self, now: u64, timeout: u64, paused: bool, uplink: Option<&Uplink>) -> bool {
        if self.stand != Stand::Blocked {
            return false;
        }
        let reported = self.progress.total();
        if paused || self.is_held_up(uplink) || reported != self.progress_seen {
            self.progress_seen = reported;
            self.moved = now;
        }
        now.saturating_sub(self.moved) >= self.progress.write_timeout().unwrap_or(timeout)
    }

    /// Whether the member waits for the uplink that all share. Its backlog is then no fault of its own.
    pub(crate) fn is_held_up(&self, uplink: Option<&Uplink>) -> bool {
        uplink.is_some_and(|uplink| uplink.holds(&self.progress))
    }

    /// Reserves capacity in the bound for messages from the log, beyond the bound if the uplink holds the member up.
    fn reserve(&self, messages: u32, bytes: usize, uplink: Option<&Uplink>) -> Outcome<(), O, M> {
        let outbox = self.owner.outbox();
        let fits =
            outbox.reserve(messages, bytes) || (self.is_held_up(uplink) && outbox.reserve_beyond(messages, bytes));
        if fits { Ok(()) } else { Err(Fault::Overflow) }
    }

    /// Merges what the round has for the member with its direct messages, in one order.
    fn place_all(&mut self, round: &mut Round<'_, M>) -> Outcome<(), O, M> {
        let (mut by_all, mut by_topic) = (0, 0);
        let is_addressed = round.intake.is_addressed();
        loop {
            let all = round.intake.to_all().get(by_all).copied();
            // Not read without need: the inbox is on another cache line.
            let topic = if is_addressed { self.inbox.get(by_topic) } else { None };
            let (run, tag) = match (all, topic) {
                (Some(all), Some((run, _))) if all < run => (all, None),
                (_, Some((run, tag))) => (run, Some(tag)),
                (Some(all), None) => (all, None),
                (None, None) => break,
            };
            by_all += usize::from(tag.is_none());
            by_topic += usize::from(tag.is_some());
            self.place_run(round.intake.run(run), tag, round)?;
        }
        if by_topic > 0 {
            self.inbox.clear();
        }
        if self.has_unplaced() { self.place_directs(round.end, round) } else { Ok(()) }
    }

    /// Places a run of broadcasts, and the direct messages that come before any of them.
    fn place_run(
        &mut self,
        mut run: Range<usize>,
        tag: Option<SubscriptionTag>,
        round: &mut Round<'_, M>,
    ) -> Outcome<(), O, M> {
        while !run.is_empty() {
            let until = if self.has_unplaced() { self.place_directs_before(&run, round)? } else { run.end };
            while run.start < until {
                run.start += self.place_broadcasts(run.start..until, tag, round)?;
            }
        }
        Ok(())
    }

    /// Places the direct messages that come before the first broadcast of a run. Returns the index of the broadcast
    /// before which the next direct message comes, or the end of the run if there is none.
    #[cold]
    fn place_directs_before(&mut self, run: &Range<usize>, round: &Round<'_, M>) -> Outcome<usize, O, M> {
        let marks = &round.intake.marks[run.clone()];
        self.place_directs(marks[0].seq, round)?;
        let next = self.backlog.as_ref().and_then(|backlog| backlog.unplaced.front());
        Ok(next.map_or(run.end, |direct| run.start + marks.partition_point(|mark| mark.seq < direct.stamp)))
    }

    /// Places every direct message up to the first one stamped above `seq`.
    fn place_directs(&mut self, seq: u64, round: &Round<'_, M>) -> Outcome<(), O, M> {
        while let Some(backlog) = &mut self.backlog {
            let Some(direct) = backlog.unplaced.pop_front_if(|direct| direct.stamp <= seq) else { break };
            self.in_hand = 1;
            if self.is_open(round.quota)? {
                self.start_send(Taken::Own(direct.message), None, direct.bytes, false, round.now)?;
            } else {
                let backlog = self.backlog.get_or_insert_with(Backlog::new);
                backlog.push_own(Kind::Direct, direct.message, direct.bytes, round.now);
                self.in_hand = 0;
            }
        }
        Ok(())
    }

    /// Hands on the first of these broadcasts, or puts the first one in the backlog. Returns how many were placed.
    fn place_broadcasts(
        &mut self,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
        round: &mut Round<'_, M>,
    ) -> Outcome<usize, O, M> {
        round.sum.offered += 1;
        self.in_hand = 1;
        if self.is_open(round.quota)? {
            return self.start_send_run(range, tag, round);
        }
        if self.stand == Stand::Joining {
            return self.gather(range.start, tag, round);
        }
        // The member had its share of this visit, and its sink wasn't asked whether it is busy: a flush may empty it.
        if self.stand == Stand::Clear {
            self.flush(round)?;
        }
        let bytes = round.intake.marks[range.start].bytes;
        let mut fits = self.reserve(1, bytes, round.uplink);
        if fits.is_err() && matches!(self.stand, Stand::Clear | Stand::More) {
            // The member isn't busy: exceeding the quota of a visit is better than an overflow.
            round.quota = Quota::UNBOUNDED;
            self.drive(round)?;
            if self.is_open(round.quota)? {
                return self.start_send_run(range, tag, round);
            }
            fits = self.reserve(1, bytes, round.uplink);
        }
        fits?;
        let key = round.shelf.keep(round.intake, range.start, round.now);
        self.backlog.get_or_insert_with(Backlog::new).push_shelved(key, tag);
        self.in_hand = 0;
        Ok(1)
    }

    /// Puts a broadcast that is in hand in the backlog of a joining member, within the bound for gathering.
    #[cold]
    fn gather(&mut self, at: usize, tag: Option<SubscriptionTag>, round: &mut Round<'_, M>) -> Outcome<usize, O, M> {
        let bytes = round.intake.marks[at].bytes;
        let backlog = self.backlog.get_or_insert_with(Backlog::new);
        if !backlog.gather(bytes, round.gathering, round.shelf, round.now) {
            return Err(Fault::Outpaced);
        }
        backlog.push_shelved(round.shelf.keep(round.intake, at, round.now), tag);
        self.in_hand = 0;
        Ok(1)
    }

    /// Gives the sink as many of the first of these broadcasts as it takes and the quota allows. One of them is in
    /// hand.
    fn start_send_run(
        &mut self,
        range: Range<usize>,
        tag: Option<SubscriptionTag>,
        round: &mut Round<'_, M>,
    ) -> Outcome<usize, O, M> {
        let intake = &*round.intake;
        let marks = &intake.marks[range.clone()];
        let count = self.allowed(marks, round.quota);
        let messages = &intake.messages[range.start..range.start + count];
        let run = BroadcastRun::with_ids(messages, intake.first_id.after(range.start), tag);
        round.sum.offered += count as u64 - 1;
        self.in_hand = count as u32;
        let taken = O::start_send_run(Pin::new(&mut self.sink), &run).map_err(Fault::Failed)?;
        assert!((1..=count).contains(&taken), "of {count} broadcasts a sink takes one to all, not {taken}");
        self.in_hand = 0;
        round.sum.offered -= (count - taken) as u64;
        let last = &marks[taken - 1];
        let load = Load { messages: taken as u32, bytes: last.before + last.bytes - marks[0].before };
        self.note_handed(load, round.now);
        Ok(taken)
    }

    /// How many of the first of these broadcasts the quota allows. The quota must not be reached yet.
    fn allowed(&self, marks: &[Mark], quota: Quota) -> usize {
        if self.handed_now.messages == 0 {
            // A turn reads no more than the quota, so all are allowed.
            return marks.len();
        }
        let left = quota.after(self.handed_now);
        let messages = marks.len().min(left.messages as usize);
        let begins_below = |mark: &Mark| ((mark.before - marks[0].before) as u64) < left.bytes;
        if begins_below(&marks[messages - 1]) { messages } else { marks.partition_point(begins_below) }
    }

    /// Flushes, and hands on the backlog as far as the quota and the sink allow.
    fn drive(&mut self, round: &mut Round<'_, M>) -> Outcome<(), O, M> {
        if self.stand == Stand::Joining || (self.stand == Stand::Blocked && self.handed_now.messages == 0) {
            return Ok(());
        }
        self.flush(round)?;
        loop {
            let waits = self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty());
            if self.stand == Stand::Blocked {
                return Ok(());
            }
            if !waits {
                self.stand = Stand::Clear;
                return Ok(());
            }
            if self.handed_now.reaches(round.quota) {
                self.stand = Stand::More;
                // Everything handed to the sink is flushed. If the sink is found busy next, the time-out runs from
                // here.
                self.moved = round.now;
                return Ok(());
            }
            self.hand_on(round)?;
            self.flush(round)?;
        }
    }

    /// Hands on from the backlog until it is empty, the quota is used up, or the sink isn't ready.
    fn hand_on(&mut self, round: &mut Round<'_, M>) -> Outcome<(), O, M> {
        while !self.handed_now.reaches(round.quota)
            && self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty())
            && self.poll_ready()?
        {
            self.in_hand += 1;
            let backlog = self.backlog.as_mut().expect("it was just looked at");
            let since = backlog.oldest(round.shelf).unwrap_or(round.now);
            let Popped { is_exempt, message, bytes, tag } = backlog.pop(round.shelf).expect("it isn't empty");
            self.start_send(message, tag, bytes, is_exempt, since)?;
        }
        Ok(())
    }

    /// Whether a message may go straight into the sink: nothing comes before it, the quota isn't reached and the sink
    /// is ready.
    fn is_open(&mut self, quota: Quota) -> Outcome<bool, O, M> {
        let first = matches!(self.stand, Stand::Clear)
            && !self.handed_now.reaches(quota)
            && self.backlog.as_ref().is_none_or(|backlog| backlog.is_empty());
        Ok(first && self.poll_ready()?)
    }

    /// Whether the sink is ready; if not, the member is blocked. A member that has ended in the meantime is blocked as
    /// well, and stays so.
    fn poll_ready(&mut self) -> Outcome<bool, O, M> {
        if self.owner.outbox().has_ended() {
            self.stand = Stand::Blocked;
            return Ok(false);
        }
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.sink).poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(Fault::Failed(error)),
            Poll::Pending => {
                self.stand = Stand::Blocked;
                Ok(false)
            }
        }
    }

    /// Gives the message in hand, a direct one or one that has waited, to the sink, addressed by `tag`. The bound
    /// counts the message unless it `is_exempt`.
    fn start_send(
        &mut self,
        message: Taken<'_, M>,
        tag: Option<SubscriptionTag>,
        bytes: usize,
        is_exempt: bool,
        since: u64,
    ) -> Outcome<(), O, M> {
        let sink = Pin::new(&mut self.sink);
        let taken = match message {
            Taken::Shared(message, id) => {
                let run = BroadcastRun::with_ids(std::slice::from_ref(message), id, tag);
                O::start_send_run(sink, &run).map(|taken| assert_eq!(taken, 1, "a sink takes what there is"))
            }
            Taken::Own(mut message) => {
                if let Some(tag) = tag {
                    message.address(tag);
                }
                sink.start_send(message)
            }
        };
        taken.map_err(Fault::Failed)?;
        self.in_hand -= 1;
        let load = Load::of_one(bytes);
        self.note_handed(load, since);
        let counted = if is_exempt { &mut self.exempt } else { &mut self.held };
        counted.add(load);
        self.uncommon = true;
        Ok(())
    }

    /// Notes that the sink has taken `load`, whose oldest message waits since `since`.
    fn note_handed(&mut self, load: Load, since: u64) {
        self.handed_now.add(load);
        if self.handed.messages == 0 {
            self.handed_since = since;
        }
        self.handed.add(load);
    }

    /// Flushes what the sink holds, if anything. If the flush doesn't complete at once, the member is blocked, and the
    /// bound also counts the broadcasts that went straight into the sink.
    fn flush(&mut self, round: &mut Round<'_, M>) -> Outcome<(), O, M> {
        if self.handed.messages == 0 {
            return Ok(());
        }
        let mut cx = Context::from_waker(&self.waker);
        match Pin::new(&mut self.sink).poll_flush(&mut cx) {
            Poll::Ready(Ok(())) => {
                round.sum.delivered += u64::from(self.handed.messages);
                round.sum.delivered_bytes += self.handed.bytes as u64;
                self.handed = Load::default();
                // For a clear member that was handed nothing but broadcasts, there is no more to record.
                if self.uncommon {
                    self.flushed(round.now);
                }
                // The sink may have been found busy earlier in this visit. After a completed flush it owes the member
                // no wake-up.
                if self.stand == Stand::Blocked {
                    self.stand = Stand::More;
                }
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Fault::Failed(error)),
            Poll::Pending => {
                self.stand = Stand::Blocked;
                self.uncommon = true;
                let fresh = Load {
                    messages: self.handed.messages - self.held.messages - self.exempt.messages,
                    bytes: self.handed.bytes - self.held.bytes - self.exempt.bytes,
                };
                self.reserve(fresh.messages, fresh.bytes, round.uplink)?;
                self.held.add(fresh);
                Ok(())
            }
        }
    }

    /// Records a completed flush of a member that wasn't clear, or that was handed more than broadcasts.
    #[cold]
    fn flushed(&mut self, now: u64) {
        self.uncommon = false;
        if self.held.messages > 0 {
            self.owner.outbox().release(self.held.messages, self.held.bytes);
            self.held = Load::default();
        }
        self.exempt = Load::default();
        self.moved = now;
    }

    /// Records the age of the oldest message, and frees a large backlog once it is empty.
    fn tidy(&mut self, shelf: &Shelf<M>) {
        let outbox = self.owner.outbox();
        let oldest = if self.handed.messages > 0 {
            Some(self.handed_since)
        } else {
            self.backlog.as_ref().and_then(|backlog| backlog.oldest(shelf))
        };
        outbox.set_oldest(oldest);
        if self.stand == Stand::Clear && !self.has_unplaced() && self.backlog.as_ref().is_some_and(|b| b.is_large()) {
            self.backlog = None;
        }
    }
}

struct MemberWaker<M> {
    port: Arc<Port<M>>,
    slot: usize,
}

impl<M: Message> Wake for MemberWaker<M> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.port.ready.set(self.slot);
        self.port.signal.wake();
    }
}
