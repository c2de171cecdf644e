//! What the runtime has to do, as plain sequential code: vectors, and one step after the other.
//!
//! The model takes one operation at a time and completes it. It knows nothing of queues, logs, shards or turns: a
//! message is delivered if its viewer's stream flows, and waits otherwise; if more waits than is allowed, the instance
//! is reset.

use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Account, EndReason, Subscribed, Unsubscribed};

use crate::ops::{Op, Outcome};
use crate::state::{Instance, Joining, Stage, Viewer, Waiting, initial_of, lose};
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
            topics: Vec::new(),
        };
        let viewers = vec![Viewer::new(); setup.identities];
        Self { setup: setup.clone(), viewers, state: 0, events: Vec::new(), totals, closed: false }
    }

    /// Carries out `op` completely.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
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
            Op::Subscribe { to, topic, tag } => return Outcome::Subscribed(self.subscribe(to, topic, tag)),
            Op::Unsubscribe { to, topic } => return Outcome::Unsubscribed(self.unsubscribe(to, topic)),
            Op::Send { to, msg } => return Outcome::Sent(self.send(to, msg, true)),
            Op::TrySend { to, msg } => return Outcome::Sent(self.send(to, msg, false)),
            Op::Broadcast(msg) | Op::TryBroadcast(msg) => return Outcome::Published(self.broadcast(msg)),
            Op::Burst(ref burst) => return Outcome::Each(burst.iter().map(|op| self.apply(op)).collect()),
            Op::TimePasses => self.time_passes(),
            Op::Forget { who } => {
                let viewer = &mut self.viewers[who];
                viewer.streams.clear();
                (viewer.behavior, viewer.open_behavior) = (Behavior::Flow, OpenBehavior::Ready);
            }
        }
        Outcome::Done
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
        for msg in initial_of(who, state).into_iter().rev() {
            instance.waiting.push_front(Waiting { msg, counts: false });
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
        self.attempt(who);
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
        instance.subscriptions.clear();
        let lost = instance.waiting.drain(..).count() as u64;
        lose(&mut instance.account, reason, lost);
        lose(&mut self.totals.account, reason, lost);
        viewer.streams[instance.stream].closed = true;
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
            self.deliver(Inst { who, nth });
        }
    }

    /// Every write under way times out; then every stalled stream flows.
    fn time_passes(&mut self) {
        let stalled = |viewer: &Viewer| matches!(viewer.behavior, Behavior::Stall { .. });
        let stalled: Vec<usize> = (0..self.viewers.len()).filter(|&who| stalled(&self.viewers[who])).collect();
        for &who in &stalled {
            if let Some(nth) = self.viewers[who].registered
                && !self.viewers[who].instances[nth].waiting.is_empty()
            {
                self.fault(Inst { who, nth }, EndReason::WriteTimedOut);
            }
        }
        for who in stalled {
            self.set_behavior(who, Behavior::Flow);
        }
    }

    // Messages.

    /// Gives the waiting messages to the stream, if the stream takes them.
    fn deliver(&mut self, inst: Inst) {
        let viewer = &mut self.viewers[inst.who];
        let instance = &mut viewer.instances[inst.nth];
        if !instance.began || instance.ended.is_some() || instance.waiting.is_empty() {
            return;
        }
        match viewer.behavior {
            Behavior::Flow => {
                for waiting in instance.waiting.drain(..) {
                    for account in [&mut instance.account, &mut self.totals.account] {
                        account.delivered += 1;
                        account.delivered_bytes += waiting.msg.size as u64;
                    }
                    viewer.streams[instance.stream].messages.push(waiting.msg);
                }
            }
            Behavior::Fail => self.fault(inst, EndReason::WriteFailed),
            Behavior::Panic => self.fault(inst, EndReason::WritePanicked),
            _ => {}
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
        instance.waiting.push_back(Waiting { msg, counts: !gathers });
        instance.account.offered += 1;
        self.totals.account.offered += 1;
        if fits {
            self.deliver(inst);
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
            self.offer(to, msg);
        }
        match (fits, or_reset) {
            (true, _) => Sent::Queued,
            (false, true) => Sent::Overflow,
            (false, false) => Sent::Full,
        }
    }

    fn broadcast(&mut self, msg: Msg) -> Published {
        if let Lane::Topic(topic) = msg.lane
            && self.subscribers(topic) == 0
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
        self.state += u64::from(msg.lane == Lane::All);
        for who in 0..self.viewers.len() {
            // Two instances of one identity can be live: a registered one, and one that joins in its place.
            for inst in self.viewers[who].there().map(|nth| Inst { who, nth }).collect::<Vec<_>>() {
                match msg.lane {
                    Lane::Topic(topic) => {
                        let subscriptions = &self.viewers[who].instances[inst.nth].subscriptions;
                        if let Some(tag) = subscriptions.get(&topic).copied() {
                            self.offer(inst, msg.addressed(tag));
                        }
                    }
                    _ => self.offer(inst, msg),
                }
            }
        }
        Published::Taken
    }

    fn subscribe(&mut self, to: Inst, topic: usize, tag: u32) -> Subscribed {
        let instance = &mut self.viewers[to.who].instances[to.nth];
        if instance.ended.is_some() {
            return Subscribed::Closed;
        }
        match instance.subscriptions.insert(topic, tag) {
            None => Subscribed::New,
            Some(_) => Subscribed::Retagged,
        }
    }

    fn unsubscribe(&mut self, to: Inst, topic: usize) -> Unsubscribed {
        match self.viewers[to.who].instances[to.nth].subscriptions.remove(&topic) {
            Some(_) => Unsubscribed::Removed,
            None => Unsubscribed::NotSubscribed,
        }
    }

    fn subscribers(&self, topic: usize) -> usize {
        let instances = self.viewers.iter().flat_map(|viewer| viewer.there().map(|nth| &viewer.instances[nth]));
        instances.filter(|instance| instance.subscriptions.contains_key(&topic)).count()
    }

    /// Closes: messages that can't be delivered are lost, and all viewers are gone.
    pub(crate) fn close(&mut self) -> Account {
        for who in 0..self.viewers.len() {
            self.cancel_join(who);
            if let Some(nth) = self.viewers[who].registered.take() {
                self.end(Inst { who, nth }, EndReason::SessionClosed);
            }
        }
        self.closed = true;
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
            has_oldest: !instance.waiting.is_empty(),
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
        let topics = (0..self.setup.topics).map(|topic| self.subscribers(topic)).collect();
        Totals { participants: registered, live: registered, topics, ..self.totals.clone() }
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}
