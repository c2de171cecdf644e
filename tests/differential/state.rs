//! What the model keeps of each viewer.

use std::collections::{BTreeMap, VecDeque};

use lanecast::room::memory::{Behavior, OpenBehavior};
use lanecast::{Account, EndReason, Losses};

use crate::lossy::Queues;
use crate::plan::Pace;
use crate::subject::{Conn, Gate, Lane, Msg, Setup, Stream};

/// The state of one identity.
#[derive(Clone, Debug)]
pub(crate) struct Viewer {
    /// The connection that the room lists.
    pub(crate) present: Option<Conn>,
    pub(crate) registered: Option<usize>,
    pub(crate) joining: Option<Joining>,
    pub(crate) behavior: Behavior,
    pub(crate) open_behavior: OpenBehavior,
    pub(crate) gate: Gate,
    pub(crate) instances: Vec<Instance>,
    pub(crate) streams: Vec<Stream>,
    /// Every connection so far, with its join time.
    pub(crate) conns: Vec<Conn>,
}

/// A join under way, and the step that it waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joining {
    pub(crate) conn: Conn,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The stream is being opened.
    Opening,
    /// The initial messages of this instance are being computed.
    Initial(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) conn: Conn,
    pub(crate) stream: usize,
    pub(crate) ended: Option<EndReason>,
    /// Whether the instance has its initial messages. Until then every message waits.
    pub(crate) began: bool,
    /// What the stream has taken and not finished to write.
    pub(crate) in_stream: Vec<Waiting>,
    /// The reliable messages that wait.
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) lossy: Queues,
    /// The stream was found busy, and hasn't changed its behavior since.
    pub(crate) blocked: bool,
    pub(crate) was_blocked: bool,
    /// Half of the bound was taken, and at least three eighths ever since: see [`hold`](crate::hold).
    pub(crate) is_heavy: bool,
    pub(crate) account: Account,
    pub(crate) losses: BTreeMap<usize, Losses>,
    pub(crate) subscriptions: BTreeMap<usize, Subscription>,
}

/// A subscription: its tag, and the subscriber's own rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscription {
    pub(crate) tag: u32,
    pub(crate) wish: Option<Pace>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) msg: Msg,
    /// Whether the bound counts the message; initial messages don't count.
    pub(crate) counts: bool,
    /// The topic whose retained messages this one belongs to.
    pub(crate) snapshot: Option<usize>,
}

impl Instance {
    pub(crate) fn new(conn: Conn, stream: usize) -> Self {
        Self {
            conn,
            stream,
            ended: None,
            began: false,
            in_stream: Vec::new(),
            waiting: VecDeque::new(),
            lossy: Queues::default(),
            blocked: false,
            was_blocked: false,
            is_heavy: false,
            account: Account::default(),
            losses: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
        }
    }

    /// What the bound counts: messages and bytes.
    pub(crate) fn load(&self, setup: &Setup) -> (u64, u64) {
        let being_written = usize::from(self.began && !setup.accounts);
        let counted = self.in_stream.iter().chain(&self.waiting).skip(being_written).filter(|waiting| waiting.counts);
        counted.fold((0, 0), |(messages, bytes), waiting| (messages + 1, bytes + setup.weight(waiting.msg.size)))
    }
}

impl Instance {
    /// How many messages wait.
    pub(crate) fn waits(&self) -> usize {
        self.in_stream.len() + self.waiting.len() + self.lossy.len()
    }

    /// Whether retained messages wait.
    pub(crate) fn has_snapshot(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.snapshot.is_some())
    }

    /// How many messages wait of a topic, outside the stream.
    pub(crate) fn waits_of(&self, topic: usize) -> usize {
        let of_topic = |waiting: &&Waiting| waiting.msg.lane == Lane::Topic(topic);
        self.waiting.iter().filter(of_topic).count() + self.lossy.waits_for(topic)
    }
}

/// The initial messages of a viewer. Every fourth viewer has none and isn't written to before something happens.
pub(crate) fn initial_of(who: usize, state: u64) -> Vec<Msg> {
    let message = |n| Msg { lane: Lane::Initial, from: n, seq: state, size: 5 * n + who, tag: None };
    (0..who % 4).map(message).collect()
}

/// Counts messages that were lost with an instance that ended for `reason`.
pub(crate) fn lose(account: &mut Account, reason: EndReason, count: u64) {
    *match reason {
        EndReason::Overflow => &mut account.dropped.overflow,
        EndReason::WriteFailed => &mut account.dropped.write_failed,
        EndReason::WritePanicked => &mut account.dropped.write_panicked,
        EndReason::WriteTimedOut => &mut account.dropped.write_timed_out,
        EndReason::Replaced => &mut account.abandoned.replaced,
        EndReason::Disconnected => &mut account.abandoned.disconnected,
        EndReason::Vanished => &mut account.abandoned.vanished,
        EndReason::Refused => &mut account.abandoned.refused,
        EndReason::JoinFailed => &mut account.abandoned.join_failed,
        EndReason::SessionClosed => &mut account.abandoned.session_closed,
        other => panic!("an unknown reason: {other}"),
    } += count;
}

impl Viewer {
    /// An identity that hasn't come yet and whose streams will flow.
    pub(crate) fn new() -> Self {
        Self {
            present: None,
            registered: None,
            joining: None,
            behavior: Behavior::Flow,
            open_behavior: OpenBehavior::Ready,
            gate: Gate::Ready,
            instances: Vec::new(),
            streams: Vec::new(),
            conns: Vec::new(),
        }
    }

    pub(crate) fn registered_conn(&self) -> Option<Conn> {
        self.registered.map(|nth| self.instances[nth].conn)
    }

    /// The instance whose initial messages are being computed.
    pub(crate) fn newcomer(&self) -> Option<usize> {
        match self.joining?.stage {
            Stage::Initial(nth) => Some(nth),
            Stage::Opening => None,
        }
    }

    /// The instances that get messages.
    pub(crate) fn there(&self) -> impl Iterator<Item = usize> {
        let alive = |nth: &usize| self.instances[*nth].ended.is_none();
        self.registered.into_iter().chain(self.newcomer()).filter(alive)
    }
}
