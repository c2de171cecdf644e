//! The operations, and how they are drawn: at random from a seed, weighted so that the states of interest are frequent.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Subscribed, Unsubscribed};

use crate::hold::{self, Level};
use crate::model::Model;
use crate::plan::{Class, Pace, Plan};
use crate::state::{Joining, Stage, Viewer};
use crate::subject::{Conn, Gate, Inst, Lane, Msg, Published, Sent, Subject};

/// One operation of a room, its viewers, or the embedder.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A connection arrives: the first of its identity, a reconnect, or one that joined before the present one.
    Join {
        who: usize,
        conn: Conn,
    },
    /// The room reports an arrival once more, or late.
    Announce {
        who: usize,
        conn: Conn,
    },
    /// A connection is gone; the report may be late.
    Leave {
        who: usize,
        sid: u32,
    },
    /// Streams stall, in mid-write, or resume.
    SetBehavior {
        who: usize,
        behavior: Behavior,
    },
    /// From now on writes fail or panic, and no stream opens.
    Fail {
        who: usize,
        panic: bool,
    },
    /// Ends what `Fail` began.
    Recover {
        who: usize,
        behavior: Behavior,
    },
    HoldOpening {
        who: usize,
    },
    ReleaseOpening {
        who: usize,
    },
    LetOneOpen {
        who: usize,
    },
    FailOneOpening {
        who: usize,
        held: bool,
    },
    Gate {
        who: usize,
        gate: Gate,
    },
    /// With a rate of the subscriber's own, perhaps.
    Subscribe {
        to: Inst,
        topic: usize,
        tag: u32,
        wish: Option<Pace>,
    },
    Unsubscribe {
        to: Inst,
        topic: usize,
    },
    /// Sets a participant's total rate, in bytes per second.
    SetRate {
        to: Inst,
        rate: Option<u64>,
    },
    SetProfile {
        topic: usize,
        plan: Plan,
    },
    EndTopic {
        topic: usize,
    },
    Send {
        to: Inst,
        msg: Msg,
    },
    TrySend {
        to: Inst,
        msg: Msg,
    },
    Broadcast(Msg),
    TryBroadcast(Msg),
    /// Sends and broadcasts in one go if the timing can't matter, otherwise one by one.
    Burst(Vec<Self>),
    /// Time passes until every write under way has timed out; then every stalled stream resumes.
    TimePasses {
        ms: u64,
    },
    /// Time passes, but no write times out.
    Wait {
        ms: u64,
    },
    /// Forgets what an absent viewer received, so that comparing everything stays cheap.
    Forget {
        who: usize,
    },
}

impl Op {
    /// Whether a runtime without [accounts](crate::subject::Setup::accounts) supports this operation, too.
    pub(crate) fn is_plain(&self) -> bool {
        match self {
            Self::Broadcast(msg) | Self::TryBroadcast(msg) => msg.lane == Lane::All,
            Self::Burst(items) => items.iter().all(Self::is_plain),
            Self::Gate { .. } | Self::Subscribe { .. } | Self::Unsubscribe { .. } | Self::TimePasses { .. } => false,
            Self::SetRate { .. } | Self::SetProfile { .. } | Self::EndTopic { .. } | Self::Wait { .. } => false,
            _ => true,
        }
    }
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Sent(Sent),
    Published(Published),
    Subscribed(Subscribed),
    Unsubscribed(Unsubscribed),
    Each(Vec<Self>),
    /// The publisher is held.
    Waits,
}

/// The lengths of a topic's messages are multiples of its unit. So two topics that wait for a viewer seldom have the
/// same number of bytes: where one of the largest gives way, it is clear which.
const UNITS: [usize; 10] = [23, 29, 31, 37, 41, 43, 47, 53, 59, 61];

/// A message of almost this length fits in the smallest queue, and three of them are more than may be retained.
const LONG: usize = 320;

/// As good as forever for a message.
const AGELESS: u64 = 365 * 24 * 3600 * 1000;

/// The write time-out, on the paused clock. Far longer than anything else there, so that only [`Op::TimePasses`]
/// reaches it.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(20_000);

/// Draws a topic's profile. Messages grow too old only if they may.
pub(crate) fn draw_plan(rng: &mut Rng, retains: bool, may_age: bool, unique: u64) -> Plan {
    let class = match rng.u8(..8) {
        0..2 => Class::Reliable,
        2..5 => {
            let age = match (may_age, rng.u8(..4)) {
                (false, _) => AGELESS,
                (true, 0) => rng.u64(10..100),
                (true, _) => rng.u64(50..2500),
            };
            Class::Lossy { messages: rng.u32(1..6), bytes: rng.u64(60..400), age }
        }
        _ => Class::Latest,
    };
    let pace = (class != Class::Reliable && rng.u8(..3) == 0).then(|| draw_pace(rng, unique));
    Plan { class, weight: rng.u16(1..4), pace, retain: if retains { rng.u32(1..5) } else { 0 } }
}

/// Two rates never have the same time.
fn draw_pace(rng: &mut Rng, unique: u64) -> Pace {
    if rng.u8(..4) == 0 {
        Pace::BytesPerSecond(rng.u64(200..3000))
    } else {
        Pace::Every(rng.u64(5..400) * 1000 + unique % 1000)
    }
}

/// A viewer that received more messages than this leaves, and its messages are forgotten.
const HISTORY: usize = 250;

/// Draws the operations of a run.
#[derive(Debug)]
pub(crate) struct Draw {
    pub(crate) rng: Rng,
    next_sid: u32,
    next_seq: u64,
    planned: VecDeque<Op>,
}

impl Draw {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { rng, next_sid: 1, next_seq: 1, planned: VecDeque::new() }
    }

    /// Returns the next operation.
    pub(crate) fn next(&mut self, model: &Model) -> Op {
        if let Some(op) = self.planned.pop_front().or_else(|| forget_somebody(model)) {
            return op;
        }
        loop {
            match self.draw(model) {
                Some(op) if model.setup.accounts || op.is_plain() => return op,
                _ => {}
            }
        }
    }

    fn draw(&mut self, model: &Model) -> Option<Op> {
        let topic = Lane::Topic(self.rng.usize(..model.topics.len()));
        match self.rng.u32(..if model.setup.hold.is_some() { 1300 } else { 1240 }) {
            0..60 => self.join(model, |viewer| viewer.present.is_none()),
            60..95 => self.join(model, |viewer| viewer.present.is_some()),
            95..105 => self.join_out_of_order(model),
            105..125 => self.announce(model),
            125..170 => self.leave(model),
            170..250 => self.subscribe(model),
            250..280 => self.unsubscribe(model),
            280..440 => Some(Op::Send { to: self.recipient(model)?, msg: self.message(model, Lane::Direct) }),
            440..520 => Some(Op::TrySend { to: self.recipient(model)?, msg: self.message(model, Lane::Direct) }),
            520..610 => Some(Op::Broadcast(self.message(model, Lane::All))),
            610..650 => Some(Op::TryBroadcast(self.message(model, Lane::All))),
            650..760 => Some(Op::Broadcast(self.message(model, topic))),
            760..800 => Some(Op::TryBroadcast(self.message(model, topic))),
            800..860 => self.burst(model),
            860..863 if model.setup.accounts => Some(self.long_burst(model)),
            860..863 => self.flood(model),
            863..905 => self.stall(model),
            905..925 => self.resume(model),
            925..995 => self.mishap(model),
            995..1000 => {
                let ms = u64::try_from(model.setup.write_timeout.as_millis()).expect("not that long") * 6 / 5;
                Some(Op::TimePasses { ms })
            }
            // The rest is of topics and time.
            1000.. if !model.setup.has_classes() => None,
            1000..1045 => Some(Op::Wait { ms: self.time() }),
            1045..1085 => self.set_profile(model),
            1085..1095 => Some(Op::EndTopic { topic: self.topic(model) }),
            1095..1110 => {
                let rate = (self.rng.u8(..3) > 0).then(|| self.rng.u64(300..4000));
                Some(Op::SetRate { to: self.recipient(model)?, rate })
            }
            1110..1200 => self.stream(model),
            1200..1215 => self.grow_old(model),
            1215..1240 => self.late_subscriber(model),
            1240..1270 => self.crowd(model),
            _ => self.relief(model),
        }
    }

    fn pick(&mut self, model: &Model, wanted: impl Fn(&Viewer) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..model.viewers.len()).filter(|who| wanted(&model.viewers[*who])).collect();
        self.rng.choice(all)
    }

    // Joins and departures.

    fn conn(&mut self, joined_at: u64) -> Conn {
        let sid = self.next_sid;
        self.next_sid += 1;
        Conn { sid, joined_at }
    }

    /// A connection that is at least as young as all present ones, often of the very same millisecond.
    fn join(&mut self, model: &Model, wanted: impl Fn(&Viewer) -> bool) -> Option<Op> {
        let who = self.pick(model, wanted)?;
        let viewer = &model.viewers[who];
        let there = viewer.registered_conn().into_iter().chain(viewer.joining.map(|joining| joining.conn));
        let youngest = there.map(|conn| conn.joined_at).max().unwrap_or_else(|| self.rng.u64(10..20));
        let later = self.rng.choice([0, 0, 1, 5]).unwrap_or(0);
        Some(Op::Join { who, conn: self.conn(youngest + later) })
    }

    /// A connection that joined before the registered one, by the room's clock.
    fn join_out_of_order(&mut self, model: &Model) -> Option<Op> {
        let who = self.pick(model, |viewer| viewer.registered.is_some() && viewer.joining.is_none())?;
        let joined_at = model.viewers[who].registered_conn()?.joined_at - self.rng.u64(1..3);
        Some(Op::Join { who, conn: self.conn(joined_at) })
    }

    /// A report of a connection that was present once, or still is.
    fn announce(&mut self, model: &Model) -> Option<Op> {
        let who = self.pick(model, |viewer| !viewer.conns.is_empty())?;
        let viewer = &model.viewers[who];
        let recent = &viewer.conns[viewer.conns.len().saturating_sub(3)..];
        let conn = self.rng.choice(recent.to_vec())?;
        // Otherwise room and event would contradict each other: the room lists the connection that is joining.
        let contradicts = |joining: Joining| joining.conn.sid != conn.sid && joining.conn.joined_at <= conn.joined_at;
        (!viewer.joining.is_some_and(contradicts)).then_some(Op::Announce { who, conn })
    }

    /// The present connection leaves, or one that left long ago is reported as gone.
    fn leave(&mut self, model: &Model) -> Option<Op> {
        if self.rng.bool() {
            let who = self.pick(model, |viewer| viewer.present.is_some())?;
            return Some(Op::Leave { who, sid: model.viewers[who].present?.sid });
        }
        let who = self.pick(model, |viewer| !viewer.conns.is_empty())?;
        let conns = &model.viewers[who].conns;
        let recent = &conns[conns.len().saturating_sub(4)..];
        Some(Op::Leave { who, sid: self.rng.choice(recent.to_vec())?.sid })
    }

    // How streams behave.

    fn stall(&mut self, model: &Model) -> Option<Op> {
        let who = self.pick(model, |viewer| !is_failing(viewer) && viewer.registered.is_some())?;
        Some(Op::SetBehavior { who, behavior: Behavior::Stall { capacity: self.rng.usize(..=most_in_stream(model)) } })
    }

    fn resume(&mut self, model: &Model) -> Option<Op> {
        let who = self.pick(model, is_stalled)?;
        Some(Op::SetBehavior { who, behavior: Behavior::Flow })
    }

    fn mishap(&mut self, model: &Model) -> Option<Op> {
        let is_opening = |viewer: &Viewer| viewer.joining.is_some_and(|joining| joining.stage == Stage::Opening);
        let is_held = |viewer: &Viewer| viewer.open_behavior == OpenBehavior::Held;
        Some(match self.rng.u32(..73) {
            0..14 => Op::Fail { who: self.pick(model, |viewer| !is_failing(viewer))?, panic: self.rng.bool() },
            14..28 => {
                let who = self.pick(model, is_failing)?;
                let stall = Behavior::Stall { capacity: most_in_stream(model) };
                let behavior = if self.rng.u8(..4) == 0 { stall } else { Behavior::Flow };
                Op::Recover { who, behavior }
            }
            28..34 => Op::HoldOpening { who: self.pick(model, |viewer| !is_held(viewer))? },
            34..42 => Op::ReleaseOpening { who: self.pick(model, |viewer| is_held(viewer) && !is_failing(viewer))? },
            42..48 => Op::LetOneOpen { who: self.pick(model, is_opening)? },
            48..54 => {
                let who = self.pick(model, is_opening)?;
                Op::FailOneOpening { who, held: is_failing(&model.viewers[who]) || self.rng.bool() }
            }
            54..60 => Op::Gate { who: self.pick(model, |viewer| viewer.gate == Gate::Ready)?, gate: Gate::Held },
            60..63 => {
                Op::Gate { who: self.pick(model, |viewer| viewer.gate != Gate::PanicsOnce)?, gate: Gate::PanicsOnce }
            }
            _ => Op::Gate { who: self.pick(model, |viewer| viewer.gate == Gate::Held)?, gate: Gate::Ready },
        })
    }

    // Messages.

    /// A live instance, or one that ended long ago.
    fn recipient(&mut self, model: &Model) -> Option<Inst> {
        if self.rng.u8(..16) == 0 {
            let who = self.pick(model, |viewer| !viewer.instances.is_empty())?;
            let count = model.viewers[who].instances.len();
            return Some(Inst { who, nth: self.rng.usize(count.saturating_sub(3)..count) });
        }
        // One message in four goes to a viewer for which others wait: that is where the interesting cases are.
        let waits = self.rng.u8(..4) == 0;
        let who = self.pick(model, |viewer| viewer.there().any(|nth| !waits || viewer.instances[nth].waits() > 0))?;
        let nth = self.rng.choice(model.viewers[who].there().collect::<Vec<_>>())?;
        Some(Inst { who, nth })
    }

    /// A topic; one of which messages wait, if possible, in two of three cases.
    fn topic(&mut self, model: &Model) -> usize {
        let all = 0..model.topics.len();
        let waits = all.clone().filter(|topic| model.waits_of(*topic) > 0);
        let waits: Vec<usize> = if self.rng.u8(..3) > 0 { waits.collect() } else { Vec::new() };
        self.rng.choice(waits).unwrap_or_else(|| self.rng.usize(all))
    }

    fn time(&mut self) -> u64 {
        match self.rng.u8(..4) {
            0 => self.rng.u64(1..20),
            1 => self.rng.u64(20..200),
            2 => self.rng.u64(200..1000),
            _ => self.rng.u64(1000..3000),
        }
    }

    fn set_profile(&mut self, model: &Model) -> Option<Op> {
        let topic = self.topic(model);
        let before = model.topics[topic].plan;
        self.next_seq += 1;
        let plan = loop {
            let plan = draw_plan(&mut self.rng, before.retain > 0, model.setup.may_age(), self.next_seq);
            // Mostly another class.
            if std::mem::discriminant(&plan.class) != std::mem::discriminant(&before.class) || self.rng.u8(..3) == 0 {
                break plan;
            }
        };
        if plan.retained() < before.retained() {
            if model.hold.is_held() {
                return None;
            }
            // Each shard forgets what is retained no longer when it reads the next message.
            let msg = Msg { size: UNITS[topic], ..self.message(model, Lane::Topic(topic)) };
            self.planned.push_back(Op::Broadcast(msg));
        }
        Some(Op::SetProfile { topic, plan })
    }

    /// Messages wait for a stalled viewer, until they are too old if they can be.
    fn grow_old(&mut self, model: &Model) -> Option<Op> {
        let to = self.blocked(model)?;
        let lossy = (0..model.topics.len()).filter(|topic| model.is_lossy_for(to, *topic));
        let topic = self.rng.choice(lossy.collect::<Vec<_>>())?;
        for _ in 0..self.rng.usize(1..4) {
            let msg = self.message(model, Lane::Topic(topic));
            self.planned.push_back(Op::Broadcast(msg));
        }
        self.planned.push_back(Op::Wait { ms: self.rng.u64(500..4500) });
        self.planned.pop_front()
    }

    /// Most viewers stall, and messages to all pile up.
    fn crowd(&mut self, model: &Model) -> Option<Op> {
        let there = (0..model.viewers.len()).filter(|who| {
            let viewer = &model.viewers[*who];
            viewer.registered.is_some() && !is_failing(viewer) && !is_stalled(viewer)
        });
        for who in there {
            if self.rng.u8(..4) > 0 {
                let behavior = Behavior::Stall { capacity: self.rng.usize(..=most_in_stream(model)) };
                self.planned.push_back(Op::SetBehavior { who, behavior });
            }
        }
        for _ in 0..self.rng.u32(model.setup.queue_capacity / 4..=model.setup.queue_capacity) {
            let msg = self.message(model, Lane::All);
            self.planned.push_back(if self.rng.u8(..8) == 0 { Op::TryBroadcast(msg) } else { Op::Broadcast(msg) });
        }
        if self.rng.bool() {
            self.planned.push_back(Op::Wait { ms: self.rng.u64(1..2500) });
        }
        self.planned.pop_front()
    }

    /// A heavy viewer goes on, a little later perhaps.
    fn relief(&mut self, model: &Model) -> Option<Op> {
        let is_heavy = |viewer: &Viewer| viewer.registered.is_some_and(|nth| viewer.instances[nth].is_heavy);
        let who = self.pick(model, |viewer| is_heavy(viewer) && is_stalled(viewer))?;
        if self.rng.bool() {
            self.planned.push_back(Op::Wait { ms: self.rng.u64(1..1500) });
        }
        self.planned.push_back(Op::SetBehavior { who, behavior: Behavior::Flow });
        self.planned.pop_front()
    }

    /// A stalled viewer subscribes to topics with retained messages, which are too long in all at times.
    fn late_subscriber(&mut self, model: &Model) -> Option<Op> {
        let to = self.blocked(model)?;
        let retained = (0..model.topics.len()).filter(|topic| model.has_snapshot_for(to, *topic));
        let retained: Vec<usize> = retained.collect();
        let is_long = self.rng.u8(..4) == 0;
        for &topic in retained.iter().filter(|_| is_long) {
            let size = LONG / UNITS[topic] * UNITS[topic];
            let msg = Msg { size, ..self.message(model, Lane::Topic(topic)) };
            self.planned.push_back(Op::Broadcast(msg));
        }
        for topic in retained {
            self.planned.push_back(Op::Subscribe { to, topic, tag: self.rng.u32(..1000), wish: None });
        }
        self.planned.pop_front()
    }

    fn blocked(&mut self, model: &Model) -> Option<Inst> {
        let blocked = |viewer: &Viewer| viewer.registered.filter(|nth| viewer.instances[*nth].blocked);
        let who = self.pick(model, |viewer| blocked(viewer).is_some())?;
        Some(Inst { who, nth: blocked(&model.viewers[who])? })
    }

    /// Some messages of one topic or two, one after the other.
    fn stream(&mut self, model: &Model) -> Option<Op> {
        let topics = [self.topic(model), self.rng.usize(..model.topics.len())];
        for _ in 0..self.rng.usize(1..6) {
            let topic = self.rng.choice(topics)?;
            let msg = self.message(model, Lane::Topic(topic));
            self.planned.push_back(Op::Broadcast(msg));
            if self.rng.u8(..4) == 0 {
                let ms = self.time() / 4;
                self.planned.push_back(Op::Wait { ms });
            }
        }
        self.planned.pop_front()
    }

    fn message(&mut self, model: &Model, lane: Lane) -> Msg {
        let limit = usize::try_from(model.setup.queue_bytes).expect("small");
        // At times the number of messages reaches its limit first, at times their bytes.
        let usual = limit / model.setup.queue_capacity as usize * 3 / 2;
        let size = match self.rng.u8(..64) {
            0 => 0,
            1 => limit + self.rng.usize(1..4),
            2 => limit,
            3..5 => self.rng.usize(limit / 4..=limit / 2),
            _ => self.rng.usize(1..=usual),
        };
        let size = match lane {
            Lane::Topic(topic) if size <= limit => match self.rng.u8(..16) {
                0 => 0,
                1 => UNITS[topic] * self.rng.usize(3..12),
                _ => UNITS[topic] * self.rng.usize(1..3),
            },
            _ => size,
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        Msg { lane, from: 0, seq, size, tag: None }
    }

    fn subscribe(&mut self, model: &Model) -> Option<Op> {
        let (topic, tag) = (self.rng.usize(..model.topics.len()), self.rng.u32(..1000));
        self.next_seq += 1;
        let wish =
            (model.setup.has_classes() && self.rng.u8(..5) == 0).then(|| draw_pace(&mut self.rng, self.next_seq));
        Some(Op::Subscribe { to: self.recipient(model)?, topic, tag, wish })
    }

    fn unsubscribe(&mut self, model: &Model) -> Option<Op> {
        Some(Op::Unsubscribe { to: self.recipient(model)?, topic: self.topic(model) })
    }

    /// The burst that is still under way when the session closes.
    pub(crate) fn last_burst<S: Subject>(&mut self, model: &Model) -> Option<Op> {
        let fits = |op: &Op| match op {
            Op::Burst(items) => is_timeless(model, items, S::LONG_BURSTS),
            _ => false,
        };
        (0..16).find_map(|_| self.burst(model).filter(|op| (model.setup.accounts || op.is_plain()) && fits(op)))
    }

    fn burst(&mut self, model: &Model) -> Option<Op> {
        let length = self.rng.usize(2..=8.min(model.setup.log_capacity.max(2)));
        let to = self.recipient(model)?;
        let topics = [0, self.rng.usize(..model.topics.len())];
        let item = |draw: &mut Self| {
            let lane = draw.rng.choice([Lane::All, Lane::Direct, Lane::Topic(topics[0]), Lane::Topic(topics[1])])?;
            let msg = draw.message(model, lane);
            Some(match (lane, draw.rng.bool()) {
                (Lane::Direct, true) => Op::Send { to, msg },
                (Lane::Direct, false) => Op::TrySend { to, msg },
                (_, true) => Op::Broadcast(msg),
                (_, false) => Op::TryBroadcast(msg),
            })
        };
        (0..length).map(|_| item(self)).collect::<Option<_>>().map(Op::Burst)
    }

    /// More direct messages to a stalled viewer than may wait.
    fn flood(&mut self, model: &Model) -> Option<Op> {
        let who = self.pick(model, |viewer| is_stalled(viewer) && viewer.registered.is_some())?;
        let to = Inst { who, nth: model.viewers[who].registered? };
        let flood = (0..model.setup.queue_capacity + 4).map(|_| {
            let msg = self.message(model, Lane::Direct);
            if self.rng.bool() { Op::Send { to, msg } } else { Op::TrySend { to, msg } }
        });
        Some(Op::Burst(flood.collect()))
    }

    /// Up to three times as many broadcasts as may wait, once nobody is stalled.
    fn long_burst(&mut self, model: &Model) -> Op {
        let stalled = (0..model.viewers.len()).filter(|who| is_stalled(&model.viewers[*who]));
        self.planned.extend(stalled.map(|who| Op::SetBehavior { who, behavior: Behavior::Flow }));
        let held = (0..model.viewers.len()).filter(|who| model.viewers[*who].gate == Gate::Held);
        self.planned.extend(held.map(|who| Op::Gate { who, gate: Gate::Ready }));
        let length = self.rng.usize(2..=3 * model.setup.queue_capacity as usize);
        let lanes = [Lane::All, Lane::Topic(0)];
        let burst = (0..length).map(|_| {
            let lane = lanes[self.rng.usize(..2)];
            Op::Broadcast(self.message(model, lane))
        });
        let burst = Op::Burst(burst.collect());
        self.planned.push_back(burst);
        self.planned.pop_front().expect("it was just planned")
    }
}

pub(crate) fn is_failing(viewer: &Viewer) -> bool {
    matches!(viewer.behavior, Behavior::Fail | Behavior::Panic)
}

fn is_stalled(viewer: &Viewer) -> bool {
    matches!(viewer.behavior, Behavior::Stall { .. })
}

/// How many messages a stalled stream may take. With reliable topics it makes no difference whether a message waits in
/// the stream or before it. Otherwise it is one at most: a visit's quota, or the batch of a measured link, may end
/// before a larger number, and the model knows neither.
fn most_in_stream(model: &Model) -> usize {
    let is_plain = |plan: &Plan| plan.is_reliable() && plan.retain == 0;
    if model.setup.topics.iter().all(is_plain) { 3 } else { 1 }
}

/// A step towards forgetting a viewer that received too much.
fn forget_somebody(model: &Model) -> Option<Op> {
    let received = |viewer: &Viewer| viewer.streams.iter().map(|stream| 4 + stream.messages.len()).sum::<usize>();
    let who = (0..model.viewers.len()).find(|who| received(&model.viewers[*who]) > HISTORY)?;
    let viewer = &model.viewers[who];
    Some(match viewer.present.or_else(|| viewer.registered_conn()) {
        Some(conn) => Op::Leave { who, sid: conn.sid },
        None => Op::Forget { who },
    })
}

/// Whether the result is the same wherever the runtime is between the items of `burst`. That is so if for each instance
/// either all items fit, whatever has been delivered of them, or the instance keeps up and gets only broadcasts.
/// Droppable messages have to wait, all of them, or go to an instance that always kept up.
pub(crate) fn is_timeless(model: &Model, burst: &[Op], long_bursts: bool) -> bool {
    let (capacity, limit) = (u64::from(model.setup.queue_capacity), model.setup.queue_bytes);
    let is_for = |op: &Op, inst: Inst| match op {
        Op::Send { to, .. } | Op::TrySend { to, .. } => *to == inst,
        Op::Broadcast(msg) | Op::TryBroadcast(msg) => match msg.lane {
            Lane::Topic(topic) => model.viewers[inst.who].instances[inst.nth].subscriptions.contains_key(&topic),
            _ => true,
        },
        _ => false,
    };
    let is_droppable = |op: &Op, inst: Inst| match op {
        Op::Broadcast(Msg { lane: Lane::Topic(topic), .. })
        | Op::TryBroadcast(Msg { lane: Lane::Topic(topic), .. }) => model.is_lossy_for(inst, *topic),
        _ => false,
    };
    let size = |op: &Op| match op {
        Op::Send { msg, .. } | Op::TrySend { msg, .. } | Op::Broadcast(msg) | Op::TryBroadcast(msg) => {
            model.setup.weight(msg.size)
        }
        _ => 0,
    };
    let fits_in = |inst: Inst| {
        let viewer = &model.viewers[inst.who];
        let instance = &viewer.instances[inst.nth];
        let (mut messages, mut bytes) = instance.load(&model.setup);
        let for_it: Vec<&Op> = burst.iter().filter(|op| is_for(op, inst)).collect();
        let lossy = for_it.iter().any(|op| is_droppable(op, inst));
        for op in for_it.iter().filter(|op| size(op) <= limit && !is_droppable(op, inst)) {
            messages += 1;
            bytes += size(op);
        }
        let direct = for_it.iter().any(|op| matches!(op, Op::Send { .. } | Op::TrySend { .. }));
        // Nobody becomes heavy or light on the way.
        let keeps_up = viewer.behavior == Behavior::Flow && instance.began && !direct && !instance.was_blocked;
        let is_level = instance.is_heavy || keeps_up || model.setup.level((messages, bytes)) != Level::High;
        if model.setup.hold.is_some() && (!is_level || is_failing(viewer) && !for_it.is_empty()) {
            return false;
        }
        match viewer.behavior {
            Behavior::Fail | Behavior::Panic if instance.began => for_it.len() <= 1,
            _ if lossy && instance.began && !instance.blocked => {
                viewer.behavior == Behavior::Flow
                    && !direct
                    && !instance.was_blocked
                    && instance.lossy.is_idle()
                    && !for_it.iter().any(|op| model.is_rated_for(inst, op))
            }
            Behavior::Flow if instance.began && long_bursts && !direct => true,
            _ => messages <= capacity && bytes <= limit,
        }
    };
    is_taken_at_once(model, burst) && is_read_at_once(model, burst) && model.there().into_iter().all(fits_in)
}

/// Whether no publisher is held, and nothing is refused because the log is full. Its bounds are tight where publishers
/// may be held.
fn is_taken_at_once(model: &Model, burst: &[Op]) -> bool {
    if model.setup.hold.is_none() {
        return true;
    }
    let published = burst.iter().filter_map(|op| match op {
        Op::Broadcast(msg) | Op::TryBroadcast(msg) => Some(msg.size),
        _ => None,
    });
    let (slots, bytes) = (published.clone().count(), published.sum::<usize>() as u64);
    let fits = slots <= model.setup.log_capacity && bytes <= hold::Policy::log_bytes(model.setup.queue_bytes);
    let tries = burst.iter().any(|op| matches!(op, Op::TryBroadcast(_)));
    slots == 0 || !model.hold.is_held() && (fits || !tries)
}

/// Whether all of a burst is read at one time, or the time doesn't matter, where broadcasts gather. A direct message
/// ends the gathering of one shard. A publisher that waits for the log ends it for what is published so far.
fn is_read_at_once(model: &Model, burst: &[Op]) -> bool {
    let is_published = |op: &Op| matches!(op, Op::Broadcast(_) | Op::TryBroadcast(_));
    let direct_behind = burst.iter().skip_while(|op| !is_published(op)).any(|op| !is_published(op));
    let published = burst.iter().filter(|op| is_published(op)).count();
    let is_split = published > model.setup.log_capacity || model.setup.shards > 1 && direct_behind;
    let all_flow = model.viewers.iter().all(|viewer| {
        let is_idle = |nth: usize| viewer.instances[nth].lossy.is_idle() && !viewer.instances[nth].blocked;
        viewer.behavior == Behavior::Flow && viewer.there().all(is_idle)
    });
    model.setup.linger.is_zero() || !is_split || all_flow
}
