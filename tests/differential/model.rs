//! What the runtime has to do, as plain sequential code: vectors, and one step after the other.
//!
//! The model takes one operation at a time and completes it. It knows nothing of queues, logs, shards or turns: a
//! message is delivered if its viewer's stream flows, and waits otherwise; if more waits than is allowed, the instance
//! is reset. Droppable messages wait [apart](crate::lossy). While most viewers are behind, publishers may be
//! [held](crate::hold).
//!
//! # Time
//! The paused clock stands still during an operation, and everything that is due at a time happens before an operation
//! at that time. A message that is too old is lost when it would be sent, or at a tick. Ticks are those of a session
//! with one shard; with several, no message grows too old. At which of the shard's ticks a write has timed out, and so
//! when it ticks after that, the model doesn't know: the test waits until there are no more ticks.

use std::collections::VecDeque;
use std::time::Duration;

use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Account, EndReason, Subscribed, TopicStats, Unsubscribed};

use crate::hold::{Change, HoldStats, Holding, Level};
use crate::linger::{Entry, Gathering};
use crate::lossy::Lost;
use crate::ops::{Op, Outcome};
use crate::plan::{Pace, Plan};
use crate::state::{Instance, Joining, Stage, Subscription, Viewer, Waiting, initial_of, lose};
use crate::subject::{Conn, Event, Figures, Gate, Inst, Lane, Msg, Published, Refusal, Sent, Setup, Stream};
use crate::subject::{Totals, View};

/// The expected state of the session and its viewers.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) setup: Setup,
    pub(crate) viewers: Vec<Viewer>,
    /// Number of broadcasts to all viewers so far: the state that initial messages report.
    pub(crate) state: u64,
    events: Vec<Event>,
    totals: Totals,
    closed: bool,
    /// Milliseconds since the session began.
    pub(crate) now: u64,
    /// When messages that are too old are looked for. A viewer that is blocked sets it.
    tick: Option<u64>,
    /// Viewers whose streams are opened, or that are joined again after a back-off, and when.
    joins: Vec<(u64, usize)>,
    pub(crate) hold: Holding,
    pub(crate) gathering: Gathering,
    pub(crate) topics: Vec<TopicState>,
}

/// What the model keeps of a topic.
#[derive(Clone, Debug)]
pub(crate) struct TopicState {
    pub(crate) plan: Plan,
    /// The messages for late subscribers.
    last: VecDeque<Msg>,
    stats: TopicStats,
}

impl Model {
    pub(crate) fn new(setup: &Setup) -> Self {
        let totals = Totals {
            participants: 0,
            live: 0,
            joins: 0,
            replacements: 0,
            stale_joins: 0,
            refused: 0,
            failed_joins: 0,
            resets: [0; 4],
            account: Account::default(),
            lag: 0,
            hold: HoldStats::default(),
            topics: Vec::new(),
            topic_stats: Vec::new(),
        };
        let topic = |plan: &Plan| TopicState { plan: *plan, last: VecDeque::new(), stats: TopicStats::default() };
        let topics = setup.topics.iter().map(topic).collect();
        let viewers = vec![Viewer::new(); setup.identities];
        let (setup, events, hold) = (setup.clone(), Vec::new(), Holding::new(setup.hold));
        let (joins, closed, tick) = (Vec::new(), false, None);
        Self {
            setup,
            viewers,
            state: 0,
            events,
            totals,
            closed,
            now: 0,
            tick,
            joins,
            hold,
            gathering: Gathering::default(),
            topics,
        }
    }

    /// The embedder changes its state before it broadcasts the change, even if the broadcast then waits or fails.
    pub(crate) fn announce(&mut self, op: &Op) {
        match op {
            Op::Broadcast(msg) | Op::TryBroadcast(msg) => self.state += u64::from(msg.lane == Lane::All),
            Op::Burst(burst) => burst.iter().for_each(|op| self.announce(op)),
            _ => {}
        }
    }

    /// Carries out `op` completely.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        self.hold.begin();
        self.gathering.begin();
        let outcome = self.carry_out(op);
        if self.gathering.is_over(&self.setup) {
            self.read();
        }
        self.come_to_rest();
        outcome
    }

    fn carry_out(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Join { who, conn } => {
                self.viewers[who].present = Some(conn);
                self.viewers[who].conns.push(conn);
                self.active(who, conn);
            }
            Op::Announce { who, conn } => self.active(who, conn),
            Op::Leave { who, sid } => self.disconnected(who, sid),
            Op::SetBehavior { who, behavior } => self.set_behavior(who, behavior),
            Op::Fail { who, panic } => {
                self.viewers[who].open_behavior = OpenBehavior::Held;
                self.set_behavior(who, if panic { Behavior::Panic } else { Behavior::Fail });
            }
            Op::Recover { who, behavior } => {
                self.set_behavior(who, behavior);
                self.opening_ready(who);
            }
            Op::HoldOpening { who } => self.viewers[who].open_behavior = OpenBehavior::Held,
            Op::ReleaseOpening { who } => self.opening_ready(who),
            Op::LetOneOpen { who } => {
                if let Some(Joining { conn, stage: Stage::Opening }) = self.viewers[who].joining.take() {
                    self.opened(who, conn);
                }
            }
            Op::FailOneOpening { who, held } => {
                let joining = self.viewers[who].joining.take().expect("only a join under way can fail");
                self.viewers[who].open_behavior = if held { OpenBehavior::Held } else { OpenBehavior::Ready };
                self.join_failed(who, joining.conn, Refusal::OpenFailed);
            }
            Op::Gate { who, gate } => self.gate(who, gate),
            Op::Subscribe { to, topic, tag, wish } => {
                return Outcome::Subscribed(self.subscribe(to, topic, tag, wish));
            }
            Op::Unsubscribe { to, topic } => return Outcome::Unsubscribed(self.unsubscribe(to, topic)),
            Op::Send { to, msg } => return Outcome::Sent(self.send(to, msg, true)),
            Op::TrySend { to, msg } => return Outcome::Sent(self.send(to, msg, false)),
            Op::Broadcast(msg) => return self.broadcast(msg).map_or(Outcome::Waits, Outcome::Published),
            Op::TryBroadcast(msg) => return Outcome::Published(self.try_broadcast(msg)),
            Op::Burst(ref burst) => return Outcome::Each(burst.iter().map(|op| self.carry_out(op)).collect()),
            Op::SetRate { to, rate } => self.set_rate(to, rate),
            Op::SetProfile { topic, plan } => self.topics[topic].plan = plan,
            Op::EndTopic { topic } if self.hold.is_held() => {
                self.hold.waiting.push_back(Entry::EndTopic(topic));
                return Outcome::Waits;
            }
            Op::EndTopic { topic } => self.write(Entry::EndTopic(topic)),
            Op::Wait { ms } => self.advance_to(self.now + ms),
            Op::TimePasses { ms } => self.time_passes(ms),
            Op::Forget { who } => {
                let viewer = &mut self.viewers[who];
                viewer.streams.clear();
                (viewer.behavior, viewer.open_behavior) = (Behavior::Flow, OpenBehavior::Ready);
            }
        }
        Outcome::Done
    }

    /// Lets everything happen that follows without time passing.
    fn come_to_rest(&mut self) {
        while let Some(due) = self.joins.iter().position(|(at, _)| *at <= self.now) {
            let (_, who) = self.joins.remove(due);
            self.open(who);
        }
        self.let_publishers_go();
    }

    /// Publishers that wait go on, in their order, unless they are held.
    fn let_publishers_go(&mut self) {
        let (mut one_went, mut is_let_go, mut more) = (false, false, (0, 0));
        loop {
            self.hold.judge_order(self.now);
            // Nothing waits for the viewers to get what the one before has published.
            let has_gone = self.hold.gone.front().is_some_and(|at| *at <= self.now);
            let may_go = if self.hold.is_unsure() { has_gone } else { !self.hold.is_held() || one_went && has_gone };
            let Some(entry) = self.hold.waiting.pop_front_if(|_| may_go) else { break };
            self.hold.gone.pop_front();
            if let Entry::Broadcast(msg) = entry {
                more = (more.0 + 1, more.1 + self.setup.weight(msg.size));
            }
            if !std::mem::replace(&mut one_went, true) {
                is_let_go = self.hold.is_let_go();
                self.hold.begin_phase();
            }
            if is_let_go && self.setup.may_become_heavy(more) {
                // A viewer that hasn't emptied its queue yet may become heavy once more.
                self.hold.note_unsure(self.now);
            }
            self.write(entry);
        }
        self.hold.begin_phase();
    }

    /// Whether a message whose time comes may be handed on at the very moment at which that is handed on which `op`
    /// publishes: neither is promised to come first.
    pub(crate) fn may_coincide(&self, op: &Op) -> bool {
        let publishes = matches!(op, Op::Broadcast(_) | Op::TryBroadcast(_) | Op::EndTopic { .. } | Op::Burst(_));
        let then = self.now + self.gathering.time(&self.setup);
        let may_become_due = |inst: &Inst| {
            let instance = &self.viewers[inst.who].instances[inst.nth];
            instance.began && !instance.blocked && instance.lossy.may_become_due(self.now, then)
        };
        !self.setup.linger.is_zero() && publishes && self.there().iter().any(may_become_due)
    }

    /// Publishes: at once, or after a while with what else has gathered.
    fn write(&mut self, entry: Entry) {
        self.gathering.add(entry, &self.setup, self.now);
        if self.setup.linger.is_zero() {
            self.read();
        }
    }

    /// Hands on what has gathered.
    fn read(&mut self) {
        for entry in self.gathering.take() {
            match entry {
                Entry::Broadcast(msg) => self.publish(msg),
                Entry::EndTopic(topic) => self.end_topic(topic),
            }
        }
    }

    // Joins and departures.

    fn active(&mut self, who: usize, conn: Conn) {
        let viewer = &self.viewers[who];
        if let Some(joining) = viewer.joining {
            if joining.conn.sid == conn.sid {
                return;
            }
            if conn.joined_at < joining.conn.joined_at {
                return self.refused(who, conn, Refusal::Stale);
            }
            self.cancel_join(who);
        }
        match self.viewers[who].registered_conn() {
            Some(there) if there.sid == conn.sid => {}
            Some(there) if there.joined_at > conn.joined_at => self.refused(who, conn, Refusal::Stale),
            _ => self.attempt(who),
        }
    }

    /// Joins the connection that the room lists.
    fn attempt(&mut self, who: usize) {
        self.joins.push((self.now + self.setup.opening(), who));
    }

    fn open(&mut self, who: usize) {
        let viewer = &mut self.viewers[who];
        let Some(conn) = viewer.present else { return };
        match viewer.registered_conn() {
            // The room lists another connection than the announced one, and it needs no joining: no event.
            Some(there) if there.sid == conn.sid || there.joined_at > conn.joined_at => return,
            _ => {}
        }
        if viewer.open_behavior == OpenBehavior::Held {
            viewer.joining = Some(Joining { conn, stage: Stage::Opening });
        } else {
            self.opened(who, conn);
        }
    }

    fn opened(&mut self, who: usize, conn: Conn) {
        let viewer = &mut self.viewers[who];
        let nth = viewer.instances.len();
        viewer.instances.push(Instance::new(conn, viewer.streams.len()));
        viewer.streams.push(Stream { sid: conn.sid, messages: Vec::new(), closed: false });
        viewer.joining = Some(Joining { conn, stage: Stage::Initial(nth) });
        if viewer.gate != Gate::Held {
            self.compute_initial(who);
        }
    }

    fn compute_initial(&mut self, who: usize) {
        let state = self.state;
        let viewer = &mut self.viewers[who];
        let Some(Joining { conn, stage: Stage::Initial(nth) }) = viewer.joining else { return };
        viewer.joining = None;
        let inst = Inst { who, nth };
        if viewer.gate == Gate::PanicsOnce {
            viewer.gate = Gate::Ready;
            self.end(inst, EndReason::JoinFailed);
            return self.join_failed(who, conn, Refusal::Panicked);
        }
        let prior = viewer.registered.replace(nth);
        self.totals.joins += 1;
        if let Some(prior) = prior {
            let prior = Inst { who, nth: prior };
            self.end(prior, EndReason::Replaced);
            self.totals.replacements += 1;
            self.events.push(Event::Replaced { now: inst, sid: conn.sid, prior });
        } else {
            self.events.push(Event::Joined(inst, conn.sid));
        }
        let instance = &mut self.viewers[who].instances[nth];
        instance.began = true;
        let is_heavy = instance.is_heavy;
        self.count(inst, if is_heavy { Change::BegunHeavy } else { Change::Begun });
        let instance = &mut self.viewers[who].instances[nth];
        for msg in initial_of(who, state).into_iter().rev() {
            instance.waiting.push_front(Waiting { msg, counts: false, snapshot: None });
            instance.account.offered += 1;
            self.totals.account.offered += 1;
        }
        self.deliver(inst);
    }

    fn disconnected(&mut self, who: usize, sid: u32) {
        let viewer = &mut self.viewers[who];
        viewer.present.take_if(|present| present.sid == sid);
        if viewer.joining.is_some_and(|joining| joining.conn.sid == sid) {
            self.cancel_join(who);
        }
        let viewer = &mut self.viewers[who];
        if viewer.registered_conn().is_some_and(|there| there.sid == sid)
            && let Some(nth) = viewer.registered.take()
        {
            self.end(Inst { who, nth }, EndReason::Disconnected);
            self.events.push(Event::Left(Inst { who, nth }, sid));
        }
        // The connection that the room lists now has to be registered.
        let viewer = &self.viewers[who];
        if let (None, Some(present)) = (viewer.joining, viewer.present) {
            let there = viewer.registered_conn();
            if there.is_none_or(|there| there.sid != present.sid && there.joined_at <= present.joined_at) {
                self.attempt(who);
            }
        }
    }

    fn cancel_join(&mut self, who: usize) {
        if let Some(Joining { stage: Stage::Initial(nth), .. }) = self.viewers[who].joining.take() {
            self.end(Inst { who, nth }, EndReason::Refused);
        }
    }

    fn join_failed(&mut self, who: usize, conn: Conn, why: Refusal) {
        self.totals.failed_joins += 1;
        self.events.push(Event::JoinFailed { who, sid: conn.sid, why });
        // After a back-off of one tick of the clock.
        self.joins.push((self.now + 1 + self.setup.opening(), who));
    }

    fn refused(&mut self, who: usize, conn: Conn, why: Refusal) {
        let figure = if why == Refusal::Stale { &mut self.totals.stale_joins } else { &mut self.totals.refused };
        *figure += 1;
        self.events.push(Event::Refused { who, sid: conn.sid, why });
    }

    fn opening_ready(&mut self, who: usize) {
        let viewer = &mut self.viewers[who];
        viewer.open_behavior = OpenBehavior::Ready;
        if let Some(Joining { conn, .. }) = viewer.joining.take_if(|joining| joining.stage == Stage::Opening) {
            self.opened(who, conn);
        }
    }

    fn gate(&mut self, who: usize, gate: Gate) {
        self.viewers[who].gate = gate;
        if gate != Gate::Held {
            self.compute_initial(who);
        }
    }

    /// Ends an instance, unless it has ended. The messages that wait for it are lost, and its subscriptions end.
    fn end(&mut self, inst: Inst, reason: EndReason) {
        let viewer = &mut self.viewers[inst.who];
        let instance = &mut viewer.instances[inst.nth];
        if instance.ended.is_some() {
            return;
        }
        instance.ended = Some(reason);
        let unsubscribed = std::mem::take(&mut instance.subscriptions);
        let lost = instance.waits() as u64;
        for (topic, count) in instance.lossy.counts() {
            self.topics[topic].stats.ended += count;
        }
        instance.in_stream.clear();
        instance.waiting.clear();
        instance.lossy = crate::lossy::Queues::default();
        lose(&mut instance.account, reason, lost);
        lose(&mut self.totals.account, reason, lost);
        viewer.streams[instance.stream].closed = true;
        let (began, was_heavy) = (instance.began, instance.is_heavy);
        unsubscribed.into_keys().for_each(|topic| self.forget_unused(topic));
        if began {
            self.count(inst, if was_heavy { Change::RetiredHeavy } else { Change::RetiredLight });
        }
    }

    /// Ends an instance for a fault. If it was registered, it is joined afresh; if it was joining, the join has failed.
    fn fault(&mut self, inst: Inst, reason: EndReason) {
        self.end(inst, reason);
        let viewer = &mut self.viewers[inst.who];
        if let Some(failed) = viewer.joining.take_if(|joining| joining.stage == Stage::Initial(inst.nth)) {
            return self.join_failed(inst.who, failed.conn, Refusal::Ended(reason));
        }
        if viewer.registered.take_if(|nth| *nth == inst.nth).is_some() {
            self.totals.resets[reason as usize] += 1;
            self.events.push(Event::Reset(inst, viewer.instances[inst.nth].conn.sid, reason));
            if viewer.joining.is_none() {
                self.attempt(inst.who);
            }
        }
    }

    // How streams behave.

    fn set_behavior(&mut self, who: usize, behavior: Behavior) {
        self.viewers[who].behavior = behavior;
        if let Some(nth) = self.viewers[who].registered {
            self.viewers[who].instances[nth].blocked = false;
            self.deliver(Inst { who, nth });
        }
    }

    /// Every write under way times out; then every stalled stream flows.
    fn time_passes(&mut self, ms: u64) {
        let until = self.now + ms;
        // All rates have been kept by now, and no time-out is over.
        self.advance_to(self.now + ms / 4);
        let stalled = |viewer: &Viewer| matches!(viewer.behavior, Behavior::Stall { .. });
        let stalled: Vec<usize> = (0..self.viewers.len()).filter(|&who| stalled(&self.viewers[who])).collect();
        let is_blocked =
            |who: usize| self.viewers[who].registered.filter(|nth| self.viewers[who].instances[*nth].blocked);
        let late = stalled.iter().filter_map(|&who| Some(Inst { who, nth: is_blocked(who)? })).collect::<Vec<_>>();
        if self.setup.hold.is_some() && late.len() > 1 {
            // Each at a time of its own.
            self.hold.note_unsure(self.now);
        }
        for inst in late {
            self.fault(inst, EndReason::WriteTimedOut);
        }
        self.come_to_rest();
        self.advance_to(until);
        for who in stalled {
            self.set_behavior(who, Behavior::Flow);
        }
    }

    // Time.

    /// All instances that are there.
    pub(crate) fn there(&self) -> Vec<Inst> {
        let of = |(who, viewer): (usize, &Viewer)| viewer.there().map(move |nth| Inst { who, nth }).collect::<Vec<_>>();
        self.viewers.iter().enumerate().flat_map(of).collect()
    }

    /// Lets everything happen that is due up to `until`.
    pub(crate) fn advance_to(&mut self, until: u64) {
        loop {
            let instances = self.there();
            let due = |inst: &Inst| {
                let instance = &self.viewers[inst.who].instances[inst.nth];
                let waits = instance.began && !instance.blocked;
                waits.then(|| instance.lossy.next_due(self.now)).flatten().map(|due| due.max(self.now))
            };
            let dues: Vec<(u64, Inst)> = instances.iter().filter_map(|inst| Some((due(inst)?, *inst))).collect();
            let others = [self.gathering.until(), self.tick, self.hold.gives_up_at(), self.hold.is_released_at()]
                .into_iter()
                .flatten();
            let joins = self.joins.iter().map(|(at, _)| *at);
            let next = dues.iter().map(|(due, _)| *due).chain(others).chain(joins).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            if self.gathering.until() == Some(next) {
                self.read();
            }
            for (_, inst) in dues.into_iter().filter(|(due, _)| *due == next) {
                self.deliver(inst);
            }
            if self.tick == Some(next) {
                self.sweep();
            }
            if self.hold.is_released_at() == Some(next) {
                self.hold.tell_released(&mut self.events);
            }
            if self.hold.gives_up_at() == Some(next) {
                self.hold.give_up(next);
                // No stream is open yet that opens at the very same time.
                self.let_publishers_go();
            }
            self.come_to_rest();
        }
        self.now = self.now.max(until);
    }

    /// Whether there will be a tick.
    pub(crate) fn ticks(&self) -> bool {
        self.tick.is_some()
    }

    fn sweep(&mut self) {
        self.tick = None;
        for inst in self.there() {
            let mut lost = Lost::new();
            let instance = &mut self.viewers[inst.who].instances[inst.nth];
            instance.lossy.sweep(self.now, &mut lost);
            if instance.blocked || instance.lossy.has_ready() {
                self.tick = Some(self.now + self.setup.tick());
            }
            self.lose_lossy(inst, lost);
        }
    }

    // Which instances are heavy.

    fn count(&mut self, inst: Inst, change: Change) {
        self.hold.count(inst, change, self.now, &mut self.events);
    }

    /// Decides anew whether an instance is heavy: the number of its waiting messages, or of their bytes, has changed.
    fn weigh(&mut self, inst: Inst) {
        let instance = &mut self.viewers[inst.who].instances[inst.nth];
        if instance.ended.is_some() {
            return;
        }
        let is_heavy = match self.setup.level(instance.load(&self.setup)) {
            Level::Low => false,
            Level::Between => instance.is_heavy,
            Level::High => true,
        };
        if std::mem::replace(&mut instance.is_heavy, is_heavy) != is_heavy && instance.began {
            self.count(inst, if is_heavy { Change::Heavy } else { Change::Light });
        }
    }

    // Messages.

    /// Gives the waiting messages to the stream, as far as the stream takes them.
    fn deliver(&mut self, inst: Inst) {
        let (now, accounts) = (self.now, self.setup.accounts);
        let viewer = &mut self.viewers[inst.who];
        let instance = &mut viewer.instances[inst.nth];
        if instance.ended.is_some() {
            return;
        }
        instance.lossy.release_due(now, self.closed);
        if !instance.began || instance.blocked {
            if instance.lossy.has_ready() {
                self.tick.get_or_insert(now + self.setup.tick());
            }
            return;
        }
        let waits = !instance.in_stream.is_empty() || !instance.waiting.is_empty() || instance.lossy.may_go(now);
        let capacity = match viewer.behavior {
            Behavior::Fail | Behavior::Panic if waits => {
                if instance.lossy.has_ready() {
                    self.tick.get_or_insert(now + self.setup.tick());
                }
                let panics = viewer.behavior == Behavior::Panic;
                return self.fault(inst, if panics { EndReason::WritePanicked } else { EndReason::WriteFailed });
            }
            Behavior::Stall { capacity } => Some(capacity),
            _ => None,
        };
        let is_full = |instance: &Instance| capacity.is_some_and(|capacity| instance.in_stream.len() >= capacity);
        let is_writing = |instance: &Instance| capacity.is_some() && !instance.in_stream.is_empty();
        instance.blocked = is_writing(instance);
        while !instance.blocked && !instance.waiting.is_empty() {
            if is_full(instance) {
                instance.blocked = true;
            } else if let Some(waiting) = instance.waiting.pop_front() {
                instance.lossy.charge(waiting.msg.size, now);
                instance.in_stream.push(waiting);
            }
        }
        instance.blocked |= is_writing(instance);
        let mut lost = Lost::new();
        while !instance.blocked && instance.lossy.may_go(now) {
            if is_full(instance) {
                instance.blocked = true;
            } else if let Some((topic, msg)) = instance.lossy.next(now, &mut lost) {
                instance.lossy.charge(msg.size, now);
                self.topics[topic].stats.handed_on += 1;
                instance.in_stream.push(Waiting { msg, counts: false, snapshot: None });
            }
        }
        instance.blocked |= is_writing(instance);
        if instance.blocked || instance.lossy.has_ready() {
            self.tick.get_or_insert(now + self.setup.tick());
        }
        if instance.blocked {
            instance.was_blocked = true;
        } else {
            for Waiting { msg, .. } in instance.in_stream.drain(..) {
                for account in [&mut instance.account, &mut self.totals.account] {
                    account.delivered += 1;
                    account.delivered_bytes += msg.size as u64;
                }
                viewer.streams[instance.stream].messages.push(msg);
            }
        }
        let has_flushed = !instance.blocked;
        // A stream of the baseline isn't found busy: it has a queue before it.
        instance.blocked &= accounts;
        if has_flushed && instance.is_heavy {
            self.count(inst, Change::Progress);
        }
        self.lose_lossy(inst, lost);
        self.weigh(inst);
    }

    /// Counts messages that gave way to newer ones.
    fn lose_lossy(&mut self, inst: Inst, lost: Lost) {
        let instance = &mut self.viewers[inst.who].instances[inst.nth];
        for (topic, loss) in lost {
            loss.count(&mut instance.account.dropped.lossy);
            loss.count(&mut self.totals.account.dropped.lossy);
            loss.count(instance.losses.entry(topic).or_default());
            loss.count(&mut self.topics[topic].stats.lost);
        }
    }

    /// Offers a droppable message to a live instance.
    fn offer_lossy(&mut self, inst: Inst, topic: usize, msg: Msg) {
        let now = self.now;
        let TopicState { plan, stats, .. } = &mut self.topics[topic];
        let viewer = &mut self.viewers[inst.who];
        let instance = &mut viewer.instances[inst.nth];
        instance.account.offered += 1;
        self.totals.account.offered += 1;
        stats.offered += 1;
        instance.lossy.release_due(now, self.closed);
        let is_rated = plan.pace.is_some() || instance.subscriptions[&topic].wish.is_some();
        let mut lost = Lost::new();
        instance.lossy.set_plan(topic, plan, now, &mut lost);
        let is_first = instance.began && !instance.blocked && instance.waiting.is_empty();
        let is_full = matches!(viewer.behavior, Behavior::Stall { capacity: 0 });
        if is_first && instance.lossy.is_open_for(topic, now) {
            if !is_full {
                // A message at whose turn the sink is found broken isn't among the topic's figures.
                let is_broken = matches!(viewer.behavior, Behavior::Fail | Behavior::Panic);
                stats.offered -= u64::from(is_broken);
                stats.handed_on += u64::from(!is_broken);
                instance.lossy.charge(msg.size, now);
                if is_rated {
                    instance.lossy.note_gone(topic, plan, msg.size, now);
                }
                instance.in_stream.push(Waiting { msg, counts: false, snapshot: None });
                self.lose_lossy(inst, lost);
                return self.deliver(inst);
            }
            (instance.blocked, instance.was_blocked) = (true, true);
            self.tick.get_or_insert(now + self.setup.tick());
        }
        lost.extend(instance.lossy.push(topic, plan, msg, self.setup.lossy_bytes, now));
        self.lose_lossy(inst, lost);
        self.deliver(inst);
    }

    /// Puts what waits of a topic behind the reliable messages.
    fn make_reliable(&mut self, inst: Inst, topic: usize) {
        let instance = &mut self.viewers[inst.who].instances[inst.nth];
        for msg in instance.lossy.take(topic) {
            self.topics[topic].stats.handed_on += 1;
            instance.waiting.push_back(Waiting { msg, counts: false, snapshot: None });
        }
    }

    /// Whether one more message may wait for `inst`.
    fn has_room(&self, inst: Inst, size: usize) -> bool {
        let (messages, bytes) = self.viewers[inst.who].instances[inst.nth].load(&self.setup);
        messages < u64::from(self.setup.queue_capacity) && bytes + self.setup.weight(size) <= self.setup.queue_bytes
    }

    /// Offers a message to a live instance.
    fn offer(&mut self, inst: Inst, msg: Msg) {
        let instance = &self.viewers[inst.who].instances[inst.nth];
        // Broadcasts during a join have a bound of their own, which isn't reached here.
        let gathers = self.setup.accounts && !instance.began && matches!(msg.lane, Lane::All | Lane::Topic(_));
        let fits = gathers || self.has_room(inst, msg.size);
        let instance = &mut self.viewers[inst.who].instances[inst.nth];
        instance.waiting.push_back(Waiting { msg, counts: !gathers, snapshot: None });
        instance.account.offered += 1;
        self.totals.account.offered += 1;
        if fits {
            // A direct message waits until it is delivered. A broadcast that can be delivered at once never waits.
            if msg.lane == Lane::Direct {
                self.weigh(inst);
            }
            self.deliver(inst);
            self.weigh(inst);
        } else {
            self.fault(inst, EndReason::Overflow);
        }
    }

    fn send(&mut self, to: Inst, msg: Msg, or_reset: bool) -> Sent {
        let instance = &mut self.viewers[to.who].instances[to.nth];
        if instance.ended.is_some() {
            for account in [&mut instance.account, &mut self.totals.account] {
                account.offered += 1;
                account.dropped.closed += 1;
            }
            return Sent::Closed;
        }
        if self.setup.weight(msg.size) > self.setup.queue_bytes {
            return Sent::TooLarge;
        }
        let fits = self.has_room(to, msg.size);
        if fits || or_reset {
            if !self.gathering.entries.is_empty() {
                self.gathering.end();
                self.read();
            }
            self.offer(to, msg);
        }
        match (fits, or_reset) {
            (true, _) => Sent::Queued,
            (false, true) => Sent::Overflow,
            (false, false) => Sent::Full,
        }
    }

    /// Broadcasts as soon as publishers aren't held; `None` if they are.
    fn broadcast(&mut self, msg: Msg) -> Option<Published> {
        match self.try_broadcast(msg) {
            Published::Full => {
                self.hold.waiting.push_back(Entry::Broadcast(msg));
                None
            }
            published => Some(published),
        }
    }

    fn try_broadcast(&mut self, msg: Msg) -> Published {
        if let Lane::Topic(topic) = msg.lane
            && self.subscribers(topic) == 0
            && self.topics[topic].plan.retain == 0
            && !self.closed
        {
            return Published::Taken;
        }
        if self.setup.weight(msg.size) > self.setup.queue_bytes {
            return Published::TooLarge;
        }
        if self.closed {
            return Published::Closed;
        }
        if self.hold.is_held() {
            return Published::Full;
        }
        self.write(Entry::Broadcast(msg));
        Published::Taken
    }

    fn publish(&mut self, msg: Msg) {
        if let Lane::Topic(topic) = msg.lane {
            let TopicState { plan, last, .. } = &mut self.topics[topic];
            self.gathering.learn(topic, plan);
            last.push_back(msg);
            last.drain(..last.len().saturating_sub(plan.retained()));
        }
        for who in 0..self.viewers.len() {
            // Two instances of one identity can be live: a registered one, and one that joins in its place.
            for inst in self.viewers[who].there().map(|nth| Inst { who, nth }).collect::<Vec<_>>() {
                match msg.lane {
                    Lane::Topic(topic) => {
                        let subscriptions = &self.viewers[who].instances[inst.nth].subscriptions;
                        let Some(Subscription { tag, wish }) = subscriptions.get(&topic).copied() else { continue };
                        if self.topics[topic].plan.is_reliable() && wish.is_none() {
                            self.make_reliable(inst, topic);
                            self.offer(inst, msg.addressed(tag));
                        } else {
                            self.offer_lossy(inst, topic, msg.addressed(tag));
                        }
                    }
                    _ => self.offer(inst, msg),
                }
            }
        }
    }

    fn subscribe(&mut self, to: Inst, topic: usize, tag: u32, wish: Option<Pace>) -> Subscribed {
        let TopicState { plan, last, .. } = &mut self.topics[topic];
        last.drain(..last.len().saturating_sub(plan.retained()));
        let (plan, last) = (*plan, last.clone());
        let instance = &mut self.viewers[to.who].instances[to.nth];
        if instance.ended.is_some() {
            return Subscribed::Closed;
        }
        self.gathering.learn(topic, &plan);
        let mut lost = Lost::new();
        instance.lossy.set_wish(topic, &plan, wish, self.now, &mut lost);
        self.lose_lossy(to, lost);
        let instance = &mut self.viewers[to.who].instances[to.nth];
        if instance.subscriptions.insert(topic, Subscription { tag, wish }).is_some() {
            if plan.is_reliable() && wish.is_none() {
                self.make_reliable(to, topic);
            }
            self.deliver_if_something_may_go(to);
            return Subscribed::Retagged;
        }
        if last.is_empty() {
            return Subscribed::New;
        }
        let snapshots = instance.waiting.iter().filter(|waiting| waiting.snapshot.is_some()).map(|waiting| waiting.msg);
        let bytes: usize = snapshots.clone().chain(last.iter().copied()).map(|msg| msg.size).sum();
        if snapshots.count() > 0 && bytes as u64 > self.setup.lossy_bytes {
            return Subscribed::WithoutRetained;
        }
        if plan.pace.is_some() || instance.lossy.is_rated(topic) {
            let size = last.back().map_or(0, |msg| msg.size);
            instance.lossy.note_gone(topic, &plan, size, self.now);
        }
        for msg in last {
            let msg = msg.addressed(tag);
            instance.waiting.push_back(Waiting { msg, counts: false, snapshot: Some(topic) });
            instance.account.offered += 1;
            self.totals.account.offered += 1;
        }
        self.deliver_if_something_may_go(to);
        Subscribed::New
    }

    /// A viewer that may get nothing now isn't visited, and no tick begins.
    fn deliver_if_something_may_go(&mut self, inst: Inst) {
        let instance = &self.viewers[inst.who].instances[inst.nth];
        if instance.began && (!instance.waiting.is_empty() || instance.lossy.may_go(self.now)) {
            self.deliver(inst);
        }
    }

    fn unsubscribe(&mut self, to: Inst, topic: usize) -> Unsubscribed {
        if self.viewers[to.who].instances[to.nth].subscriptions.remove(&topic).is_none() {
            return Unsubscribed::NotSubscribed;
        }
        self.drop_topic(to, topic);
        self.forget_unused(topic);
        Unsubscribed::Removed
    }

    fn forget_unused(&mut self, topic: usize) {
        if self.subscribers(topic) == 0 && self.topics[topic].last.is_empty() {
            self.gathering.forget(topic);
        }
    }

    /// Drops what waits for a subscription that has ended: droppable and retained messages.
    fn drop_topic(&mut self, inst: Inst, topic: usize) {
        let instance = &mut self.viewers[inst.who].instances[inst.nth];
        let dropped = instance.lossy.take(topic).len() as u64;
        self.topics[topic].stats.ended += dropped;
        let before = instance.waiting.len();
        instance.waiting.retain(|waiting| waiting.snapshot != Some(topic));
        let dropped = dropped + (before - instance.waiting.len()) as u64;
        instance.account.abandoned.unsubscribed += dropped;
        self.totals.account.abandoned.unsubscribed += dropped;
    }

    /// Ends a topic: its subscriptions, and what waits for them. It begins anew with who subscribes then.
    fn end_topic(&mut self, topic: usize) {
        self.topics[topic].last.clear();
        self.gathering.forget(topic);
        for inst in self.there() {
            let instance = &mut self.viewers[inst.who].instances[inst.nth];
            let was_subscribed = instance.subscriptions.remove(&topic).is_some();
            if was_subscribed {
                self.drop_topic(inst, topic);
            }
            self.viewers[inst.who].instances[inst.nth].losses.remove(&topic);
        }
    }

    fn set_rate(&mut self, to: Inst, rate: Option<u64>) {
        let instance = &mut self.viewers[to.who].instances[to.nth];
        if instance.ended.is_none() && instance.lossy.set_budget(rate, self.now) {
            self.deliver(to);
        }
    }

    /// Whether an instance that subscribes gets retained messages.
    pub(crate) fn has_snapshot_for(&self, inst: Inst, topic: usize) -> bool {
        let instance = &self.viewers[inst.who].instances[inst.nth];
        let TopicState { plan, last, .. } = &self.topics[topic];
        let is_new = instance.ended.is_none() && !instance.subscriptions.contains_key(&topic);
        is_new && !last.is_empty() && plan.retained() > 0
    }

    /// How many messages of a topic wait, in all.
    pub(crate) fn waits_of(&self, topic: usize) -> usize {
        let instances = self.viewers.iter().flat_map(|viewer| viewer.there().map(|nth| &viewer.instances[nth]));
        instances.map(|instance| instance.waits_of(topic)).sum()
    }

    /// Whether the messages of a topic are droppable for an instance.
    pub(crate) fn is_lossy_for(&self, inst: Inst, topic: usize) -> bool {
        let subscriptions = &self.viewers[inst.who].instances[inst.nth].subscriptions;
        let has_wish = |subscription: &Subscription| subscription.wish.is_some();
        subscriptions.get(&topic).is_some_and(|known| has_wish(known) || !self.topics[topic].plan.is_reliable())
    }

    /// Whether a message is one of a topic that has to keep to a rate at an instance.
    pub(crate) fn is_rated_for(&self, inst: Inst, op: &Op) -> bool {
        let (Op::Broadcast(Msg { lane: Lane::Topic(topic), .. })
        | Op::TryBroadcast(Msg { lane: Lane::Topic(topic), .. })) = op
        else {
            return false;
        };
        let subscriptions = &self.viewers[inst.who].instances[inst.nth].subscriptions;
        let has_wish = subscriptions.get(topic).is_some_and(|known| known.wish.is_some());
        has_wish || self.topics[*topic].plan.pace.is_some()
    }

    fn subscribers(&self, topic: usize) -> usize {
        let instances = self.viewers.iter().flat_map(|viewer| viewer.there().map(|nth| &viewer.instances[nth]));
        instances.filter(|instance| instance.subscriptions.contains_key(&topic)).count()
    }

    /// Closes: nothing waits for its time any more. The streams of the viewers in `late` flow after half of the time up
    /// to the deadline. Messages that can't be delivered are lost, and all viewers are gone.
    pub(crate) fn close(&mut self, late: &[usize], deadline: Duration) -> Account {
        self.read();
        self.closed = true;
        self.joins.clear();
        self.hold.waiting.clear();
        // Participants go in no particular order.
        if self.setup.hold.is_some() {
            self.hold.note_unsure(self.now);
        }
        let half = u64::try_from(deadline.as_millis() / 2).expect("short");
        for who in 0..self.viewers.len() {
            self.cancel_join(who);
        }
        for inst in self.there() {
            self.deliver(inst);
        }
        self.advance_to(self.now + half);
        for who in late {
            self.set_behavior(*who, Behavior::Flow);
        }
        self.advance_to(self.now + half);
        for who in 0..self.viewers.len() {
            if let Some(nth) = self.viewers[who].registered.take() {
                self.end(Inst { who, nth }, EndReason::SessionClosed);
            }
        }
        self.events.push(Event::Closed);
        self.totals.account
    }

    // What can be observed.

    pub(crate) fn view(&self, who: usize, sids: &[u32], first: usize) -> View {
        let viewer = &self.viewers[who];
        let registered = viewer.registered.map(|nth| (viewer.instances[nth].conn.sid, Inst { who, nth }));
        let find = |sid: u32| registered.filter(|there| there.0 == sid).map(|there| there.1);
        let figures = |instance: &Instance| Figures {
            sid: instance.conn.sid,
            ended: instance.ended,
            account: instance.account,
            has_oldest: !instance.in_stream.is_empty() || !instance.waiting.is_empty(),
            losses: (0..self.topics.len())
                .map(|topic| instance.losses.get(&topic).copied().unwrap_or_default())
                .collect(),
        };
        View {
            registered: viewer.registered,
            by_sid: sids.iter().map(|sid| (*sid, find(*sid))).collect(),
            instances: viewer.instances[first.min(viewer.instances.len())..].iter().map(figures).collect(),
            streams: viewer.streams.clone(),
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let registered = self.viewers.iter().filter(|viewer| viewer.registered.is_some()).count();
        let topics = (0..self.topics.len()).map(|topic| self.subscribers(topic)).collect();
        let topic_stats = self.topics.iter().map(|topic| topic.stats).collect();
        let hold = self.hold.stats();
        Totals { participants: registered, live: registered, topics, topic_stats, hold, ..self.totals.clone() }
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.events);
        // When the session closes, nobody is told of holds any more.
        events.retain(|event| !self.closed || !event.is_of_hold());
        events
    }
}
