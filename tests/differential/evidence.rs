//! What was observed after a concurrent run, and whether it is a possible outcome.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lanecast::{Account, EndReason, Losses, TopicStats};

use crate::plan::Plan;
use crate::subject::{Event, Figures, Inst, Lane, Msg, Stream, Totals, View};

/// What a producer did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) msg: Msg,
    /// The recipient of a direct message; `None` for a broadcast.
    pub(crate) to: Option<Inst>,
    pub(crate) taken: bool,
    /// The message was refused and counted, as its recipient had ended.
    pub(crate) closed: bool,
}

impl Entry {
    pub(crate) fn broadcast(msg: Msg, taken: bool) -> Self {
        Self { msg, to: None, taken, closed: false }
    }
}

/// A subscription, and each producer's number before and after the subscription began and ended.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) to: Inst,
    pub(crate) topic: usize,
    pub(crate) tag: u32,
    pub(crate) before: Vec<u64>,
    pub(crate) begun: Vec<u64>,
    pub(crate) ending: Option<Vec<u64>>,
    pub(crate) ended: Option<Vec<u64>>,
}

/// The initial messages: which instance they are for, and each producer's number.
pub(crate) fn initial(inst: Inst, state: &[AtomicU64]) -> Vec<Msg> {
    let message = |from, seq| Msg { lane: Lane::Initial, from, seq, size: 3, tag: None };
    let states = state.iter().enumerate().skip(1).map(|(from, at)| message(from, at.load(Ordering::SeqCst)));
    std::iter::once(message(0, inst.nth as u64)).chain(states).collect()
}

/// What was observed of a concurrent run.
pub(crate) struct Evidence<'a> {
    pub(crate) views: BTreeMap<usize, View>,
    pub(crate) totals: Totals,
    /// What each producer did, in its order.
    pub(crate) logs: &'a [Vec<Entry>],
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) topics: &'a [Plan],
    /// Viewers below this index miss nothing and have one instance.
    pub(crate) steady: usize,
    /// All events of the session, if it is over; otherwise empty.
    pub(crate) events: Vec<Event>,
}

/// Whether a message has to arrive, may arrive or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Must,
    /// It is offered for certain, and is droppable.
    Lossy,
    May,
    Not,
}

/// Each contradiction, with the viewer it concerns.
type Wrong = Vec<(Option<usize>, String)>;

impl Evidence<'_> {
    pub(crate) fn examine(&self) -> Wrong {
        let mut wrong = Wrong::new();
        for (&who, view) in &self.views {
            self.examine_streams(who, view, &mut wrong);
        }
        self.examine_totals(&mut wrong);
        self.examine_topics(&mut wrong);
        if !self.events.is_empty() {
            self.examine_events(&mut wrong);
        }
        wrong
    }

    fn examine_streams(&self, who: usize, view: &View, wrong: &mut Wrong) {
        let mut delivered = vec![(0, 0); view.instances.len()];
        for stream in &view.streams {
            let Some(first) = stream.messages.first() else { continue };
            let nth = usize::try_from(first.seq).unwrap_or(usize::MAX);
            if (first.lane, first.from) != (Lane::Initial, 0) || nth >= view.instances.len() {
                wrong.push((Some(who), format!("viewer {who}: a stream begins with {first:?}")));
                continue;
            }
            let inst = Inst { who, nth };
            let bytes = stream.messages.iter().map(|msg| msg.size as u64).sum::<u64>();
            let (figures, of_this) = (&view.instances[nth], &mut delivered[nth]);
            if of_this.0 > 0 || figures.sid != stream.sid || (figures.ended.is_some() != stream.closed) {
                wrong.push((Some(who), format!("{inst:?} is {figures:?}; its stream is not: {stream:?}")));
            }
            *of_this = (stream.messages.len() as u64, bytes);
            if let Err(what) = self.examine_stream(inst, stream) {
                wrong.push((Some(who), format!("{inst:?}, {figures:?}:\n  {what}")));
            }
        }
        for (nth, (figures, delivered)) in view.instances.iter().zip(delivered).enumerate() {
            let inst = Inst { who, nth };
            let account = figures.account;
            if (account.delivered, account.delivered_bytes) != delivered {
                wrong.push((Some(who), format!("{inst:?} received {delivered:?}, by {figures:?}")));
            }
            let closed = self.entries().filter(|entry| entry.to == Some(inst) && entry.closed).count();
            if account.dropped.closed != closed as u64 {
                wrong.push((Some(who), format!("{closed} came too late for {inst:?}, by {figures:?}")));
            }
            let lossy = account.dropped.lossy.total() + account.abandoned.unsubscribed;
            let lost = account.dropped.total() - account.dropped.closed + account.abandoned.total() - lossy;
            let for_its_reason = figures.ended.map_or(0, |reason| lost_for(&account, reason));
            if lost != for_its_reason || account.waiting() > 0 || figures.has_oldest {
                wrong.push((Some(who), format!("{inst:?} lost {lost}: {figures:?}")));
            }
            let mut by_topic = Losses::default();
            figures.losses.iter().for_each(|losses| add_losses(&mut by_topic, losses));
            if by_topic != account.dropped.lossy {
                wrong.push((Some(who), format!("{inst:?} lost {by_topic:?} over all topics: {figures:?}")));
            }
            if who < self.steady {
                self.examine_steady(inst, figures, wrong);
            }
        }
    }

    /// A viewer that keeps up received every message for it.
    fn examine_steady(&self, inst: Inst, figures: &Figures, wrong: &mut Wrong) {
        let is_due =
            |entry: &&Entry| entry.taken && matches!(self.fate(inst, entry, 0, false), Fate::Must | Fate::Lossy);
        let due = self.logs.len() as u64 + self.entries().filter(is_due).count() as u64;
        let kept = matches!(figures.ended, None | Some(EndReason::SessionClosed));
        let account = &figures.account;
        let arrived = due - account.dropped.lossy.total();
        if inst.nth > 0 || !kept || (account.offered, account.delivered) != (due, arrived) {
            wrong.push((Some(inst.who), format!("{inst:?} keeps up, and {due} were for it: {figures:?}")));
        }
    }

    /// The initial messages come first; then each producer's messages that have to arrive, in its order.
    fn examine_stream(&self, inst: Inst, stream: &Stream) -> Result<(), String> {
        let messages = &stream.messages;
        let is_initial = |msg: &Msg| msg.lane == Lane::Initial;
        let head = messages.iter().take_while(|msg| is_initial(msg)).count();
        if let Some(at) = (0..head).find(|at| messages[*at].from != *at) {
            return Err(format!("initial message {at} is {:?}", messages[at]));
        }
        if messages[head..].iter().any(is_initial)
            || (head < self.logs.len() && (messages.len() > head || !stream.closed))
        {
            return Err(format!("initial messages out of place: {messages:?}"));
        }
        if head < self.logs.len() {
            return Ok(());
        }
        let orders = std::iter::once(None).chain((0..self.topics.len()).map(Some));
        let producers = self.logs.iter().enumerate().skip(1);
        for ((from, log), order) in producers.flat_map(|producer| orders.clone().map(move |order| (producer, order))) {
            let is_of = |msg: &Msg| msg.from == from && self.order_of(msg) == order;
            let mut came = messages[head..].iter().filter(|msg| is_of(msg)).peekable();
            // Of the messages under way when the viewer came or subscribed: once one arrives, all that follow do.
            let mut begun = BTreeMap::new();
            for entry in log.iter().filter(|entry| entry.taken && is_of(&entry.msg)) {
                let fate = self.fate(inst, entry, messages[from].seq, begun.contains_key(&entry.msg.lane));
                let expected = self.as_received(inst, entry);
                if fate != Fate::Not && came.next_if(|msg| **msg == expected).is_some() {
                    begun.insert(entry.msg.lane, ());
                } else if fate == Fate::Must && (came.peek().is_some() || !stream.closed) {
                    let known: Vec<_> = self.subscriptions.iter().filter(|known| known.to == inst).collect();
                    let next = came.peek();
                    return Err(format!("{expected:?} has to come next, not {next:?}, with {known:?}: {messages:?}"));
                }
            }
            if let Some(msg) = came.next() {
                return Err(format!("{msg:?} has no place: {messages:?}"));
            }
        }
        Ok(())
    }

    /// What a message keeps its order with: all reliable ones, or those of its topic. Retained messages come late.
    fn order_of(&self, msg: &Msg) -> Option<usize> {
        match msg.lane {
            Lane::Topic(topic) if !self.topics[topic].is_reliable() || self.topics[topic].retain > 0 => Some(topic),
            _ => None,
        }
    }

    /// The fate of `entry` at `inst`, whose initial messages say that its producer was at `state`.
    fn fate(&self, inst: Inst, entry: &Entry, state: u64, begun: bool) -> Fate {
        let seq = entry.msg.seq;
        let is_droppable = matches!(entry.msg.lane, Lane::Topic(topic) if !self.topics[topic].is_reliable());
        let when = |is_due: bool| match (is_due || begun, is_droppable) {
            (true, true) => Fate::Lossy,
            (true, false) => Fate::Must,
            (false, _) => Fate::May,
        };
        match entry.msg.lane {
            Lane::Initial => Fate::Not,
            Lane::All => when(seq > state),
            Lane::Direct if entry.to == Some(inst) => Fate::Must,
            Lane::Direct => Fate::Not,
            Lane::Topic(topic) => {
                let Some(known) = self.subscription(inst, topic) else { return Fate::Not };
                let at = |states: &[u64]| states[entry.msg.from];
                let (retains, is_older) = (self.topics[topic].retain > 0, seq <= at(&known.begun));
                if retains && is_older && known.ending.is_some() {
                    // What was retained goes with the subscription, perhaps in part.
                    Fate::May
                } else if (seq < at(&known.before) && !retains)
                    || known.ended.as_ref().is_some_and(|ended| seq > at(ended))
                {
                    Fate::Not
                } else if known.ending.as_ref().is_some_and(|ending| seq >= at(ending)) {
                    Fate::May
                } else {
                    when(seq > at(&known.begun))
                }
            }
        }
    }

    fn as_received(&self, inst: Inst, entry: &Entry) -> Msg {
        match entry.msg.lane {
            Lane::Topic(topic) => {
                self.subscription(inst, topic).map_or(entry.msg, |known| entry.msg.addressed(known.tag))
            }
            _ => entry.msg,
        }
    }

    fn subscription(&self, to: Inst, topic: usize) -> Option<&Subscription> {
        self.subscriptions.iter().find(|known| known.to == to && known.topic == topic)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.logs.iter().flatten()
    }

    /// What was offered of a topic that isn't reliable was handed on, or lost for a reason that some viewer knows.
    fn examine_topics(&self, wrong: &mut Wrong) {
        for (topic, stats) in self.totals.topic_stats.iter().enumerate() {
            let mut lost = Losses::default();
            let all = self.views.values().flat_map(|view| &view.instances);
            all.for_each(|figures| add_losses(&mut lost, &figures.losses[topic]));
            let streams = self.views.values().flat_map(|view| &view.streams).flat_map(|stream| &stream.messages);
            let arrived = streams.filter(|msg| msg.lane == Lane::Topic(topic)).count() as u64;
            let outcomes = stats.handed_on + stats.lost.total() + stats.ended;
            let is_lossy = !self.topics[topic].is_reliable();
            let fine = if is_lossy { stats.handed_on >= arrived } else { *stats == TopicStats::default() };
            if outcomes != stats.offered || lost != stats.lost || !fine {
                let what = format!("topic {topic}: {arrived} arrived, viewers lost {lost:?}, by {stats:?}");
                wrong.push((None, what));
            }
        }
    }

    /// The session's figures are the sum of its instances' figures.
    fn examine_totals(&self, wrong: &mut Wrong) {
        let all = || self.views.values().flat_map(|view| &view.instances);
        let mut sum = Account::default();
        all().for_each(|figures| add(&mut sum, &figures.account));
        if sum != self.totals.account {
            wrong.push((None, format!("the session's account:\n  sum {sum:?}\n  is  {:?}", self.totals.account)));
        }
        let ended = |reason: EndReason| all().filter(|figures| figures.ended == Some(reason)).count() as u64;
        // An instance that failed before it was registered isn't counted as a reset.
        let faults: Vec<u64> = faults().map(ended).collect();
        if faults.iter().zip(self.totals.resets).any(|(failed, reset)| reset > *failed) {
            wrong.push((None, format!("{faults:?} have failed, by {:?}", self.totals)));
        }
        let is_there = |inst: Inst| self.views[&inst.who].instances[inst.nth].ended.is_none();
        let subscribed = |topic: usize| {
            let known = self.subscriptions.iter();
            known.filter(|known| known.topic == topic && known.ended.is_none() && is_there(known.to)).count()
        };
        let topics: Vec<usize> = (0..self.totals.topics.len()).map(subscribed).collect();
        if topics != self.totals.topics {
            wrong.push((None, format!("{topics:?} subscribe, by {:?}", self.totals)));
        }
    }

    /// Each instance has one event for its arrival, then one for its end. An instance without the first has no second.
    fn examine_events(&self, wrong: &mut Wrong) {
        let mut lives: BTreeMap<Inst, Vec<Event>> = BTreeMap::new();
        for event in &self.events {
            let about = match *event {
                Event::Joined(inst, _) | Event::Left(inst, _) | Event::Reset(inst, ..) => vec![inst],
                Event::Replaced { now, prior, .. } => vec![now, prior],
                _ => Vec::new(),
            };
            about.into_iter().for_each(|inst| lives.entry(inst).or_default().push(*event));
        }
        let came = |inst: Inst, event: &Event| match *event {
            Event::Joined(now, _) | Event::Replaced { now, .. } => now == inst,
            _ => false,
        };
        for (&inst, life) in &lives {
            let ended = self.views[&inst.who].instances[inst.nth].ended;
            let stayed = ended == Some(EndReason::SessionClosed);
            let fine = match &life[..] {
                [first] => came(inst, first) && stayed,
                [first, Event::Reset(_, _, reason)] => came(inst, first) && ended == Some(*reason),
                [first, Event::Left(..)] => {
                    came(inst, first) && matches!(ended, Some(EndReason::Disconnected | EndReason::Replaced))
                }
                [first, Event::Replaced { prior, .. }] => {
                    came(inst, first) && *prior == inst && ended == Some(EndReason::Replaced)
                }
                _ => false,
            };
            if !fine {
                wrong.push((Some(inst.who), format!("{inst:?}, {ended:?}, is told of thus: {life:?}")));
            }
        }
        let joins = lives.iter().filter(|(inst, life)| life.iter().any(|event| came(**inst, event))).count() as u64;
        if joins != self.totals.joins {
            wrong.push((None, format!("{joins} were told of, by {:?}", self.totals)));
        }
        let told =
            |reason| self.events.iter().filter(move |event| matches!(event, Event::Reset(.., why) if *why == reason));
        let resets: Vec<u64> = faults().map(|reason| told(reason).count() as u64).collect();
        if resets != self.totals.resets {
            wrong.push((None, format!("{resets:?} resets were told of, by {:?}", self.totals)));
        }
    }
}

/// The reasons that cause a reset, in the order of [`Totals::resets`].
fn faults() -> impl Iterator<Item = EndReason> {
    EndReason::ALL.into_iter().filter(|reason| reason.is_fault())
}

fn lost_for(account: &Account, reason: EndReason) -> u64 {
    match reason {
        EndReason::Overflow => account.dropped.overflow,
        EndReason::WriteFailed => account.dropped.write_failed,
        EndReason::WritePanicked => account.dropped.write_panicked,
        EndReason::WriteTimedOut => account.dropped.write_timed_out,
        EndReason::Replaced => account.abandoned.replaced,
        EndReason::Disconnected => account.abandoned.disconnected,
        EndReason::Vanished => account.abandoned.vanished,
        EndReason::Refused => account.abandoned.refused,
        EndReason::JoinFailed => account.abandoned.join_failed,
        EndReason::SessionClosed => account.abandoned.session_closed,
        _ => 0,
    }
}

fn add(sum: &mut Account, account: &Account) {
    sum.offered += account.offered;
    sum.delivered += account.delivered;
    sum.delivered_bytes += account.delivered_bytes;
    let (dropped, abandoned) = (&mut sum.dropped, &mut sum.abandoned);
    dropped.overflow += account.dropped.overflow;
    dropped.write_failed += account.dropped.write_failed;
    dropped.write_panicked += account.dropped.write_panicked;
    dropped.write_timed_out += account.dropped.write_timed_out;
    dropped.closed += account.dropped.closed;
    abandoned.replaced += account.abandoned.replaced;
    abandoned.disconnected += account.abandoned.disconnected;
    abandoned.vanished += account.abandoned.vanished;
    abandoned.refused += account.abandoned.refused;
    abandoned.join_failed += account.abandoned.join_failed;
    abandoned.session_closed += account.abandoned.session_closed;
    abandoned.unsubscribed += account.abandoned.unsubscribed;
    add_losses(&mut dropped.lossy, &account.dropped.lossy);
}

fn add_losses(sum: &mut Losses, losses: &Losses) {
    sum.overflowed += losses.overflowed;
    sum.expired += losses.expired;
    sum.conflated += losses.conflated;
    sum.rate_limited += losses.rate_limited;
}
