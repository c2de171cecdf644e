//! The runtime under test as the test sees it: a small trait, and types for what can be observed.
//!
//! The trait uses the crate's public types where there are any. An instance is named by its identity and its number
//! among the instances of that identity, so that model and runtime name it alike.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lanecast::room::memory::OpenBehavior;
use lanecast::{Account, EndReason, Losses, Message, Subscribed, TopicStats, Unsubscribed};

use crate::hold;
use crate::plan::{Pace, Plan};
use crate::viewers::Viewers;

/// The longest time between two looks at those that are blocked, in milliseconds. The write time-out is longer by far.
const LONGEST_TICK: u64 = 2000;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Initial,
    All,
    Topic(usize),
    Direct,
}

/// A message: its producer, its number there, and its length. Carries no payload of that length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Msg {
    pub(crate) lane: Lane,
    pub(crate) from: usize,
    pub(crate) seq: u64,
    pub(crate) size: usize,
    /// The tag of the subscription, once the message is addressed.
    pub(crate) tag: Option<u32>,
}

impl Msg {
    /// Addresses a copy. Addressing it twice is an error: the tag is then one that no subscription has.
    pub(crate) fn addressed(self, tag: u32) -> Self {
        Self { tag: Some(if self.tag.is_none() { tag } else { u32::MAX }), ..self }
    }
}

/// Short, as streams are long: `A17/40` is message 17, to all, of 40 bytes.
impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lane {
            Lane::Initial => write!(f, "I")?,
            Lane::All => write!(f, "A")?,
            Lane::Topic(topic) => write!(f, "T{topic}:")?,
            Lane::Direct => write!(f, "D")?,
        }
        if self.from > 0 {
            write!(f, "p{}#", self.from)?;
        }
        write!(f, "{}/{}", self.seq, self.size)?;
        self.tag.map_or(Ok(()), |tag| write!(f, "@{tag}"))
    }
}

/// One instance: its identity, and its number among the instances of that identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inst {
    pub(crate) who: usize,
    pub(crate) nth: usize,
}

impl fmt::Debug for Inst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "viewer {}.{}", self.who, self.nth)
    }
}

/// A connection, as the room knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conn {
    pub(crate) sid: u32,
    pub(crate) joined_at: u64,
}

/// What computing a viewer's initial messages does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Ready,
    /// Waits until this is set to something else.
    Held,
    /// The closure panics once, and is ready the next time.
    PanicsOnce,
}

/// The outcome of a direct message. The adapter checks that a refused message is returned unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Queued,
    Full,
    Overflow,
    TooLarge,
    Closed,
}

/// The outcome of a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Taken,
    Full,
    TooLarge,
    Closed,
}

/// Why a connection wasn't registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Stale,
    Duplicate,
    OpenFailed,
    Panicked,
    Ended(EndReason),
    Other,
}

/// An event of the runtime. The sid is the event's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Joined(Inst, u32),
    Replaced {
        now: Inst,
        sid: u32,
        prior: Inst,
    },
    Left(Inst, u32),
    Reset(Inst, u32, EndReason),
    Refused {
        who: usize,
        sid: u32,
        why: Refusal,
    },
    JoinFailed {
        who: usize,
        sid: u32,
        why: Refusal,
    },
    /// Publishers are held.
    Held,
    /// No publisher has been held for a while.
    Released,
    Closed,
}

impl Event {
    /// Whether it tells of publishers that are held, or no longer.
    pub(crate) fn is_of_hold(&self) -> bool {
        matches!(self, Self::Held | Self::Released)
    }

    /// The viewer it is about.
    pub(crate) fn who(self) -> Option<usize> {
        match self {
            Self::Joined(inst, _) | Self::Left(inst, _) | Self::Reset(inst, ..) | Self::Replaced { now: inst, .. } => {
                Some(inst.who)
            }
            Self::Refused { who, .. } | Self::JoinFailed { who, .. } => Some(who),
            Self::Held | Self::Released | Self::Closed => None,
        }
    }
}

/// A stream that was opened to a viewer, and what it received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) sid: u32,
    pub(crate) messages: Vec<Msg>,
    pub(crate) closed: bool,
}

/// The figures of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) sid: u32,
    pub(crate) ended: Option<EndReason>,
    pub(crate) account: Account,
    /// Whether the instance has an oldest waiting reliable message, or one in its stream.
    pub(crate) has_oldest: bool,
    /// What it has lost of each topic.
    pub(crate) losses: Vec<Losses>,
}

/// Everything observable of one viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The instance that a look-up by identity finds.
    pub(crate) registered: Option<usize>,
    /// The instances that look-ups by these sids find.
    pub(crate) by_sid: BTreeMap<u32, Option<Inst>>,
    /// The viewer's instances from the requested one on.
    pub(crate) instances: Vec<Figures>,
    pub(crate) streams: Vec<Stream>,
}

/// Everything observable of the whole session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) participants: usize,
    pub(crate) live: usize,
    pub(crate) joins: u64,
    pub(crate) replacements: u64,
    pub(crate) stale_joins: u64,
    pub(crate) refused: u64,
    pub(crate) failed_joins: u64,
    /// Overflow, write failed, panicked, timed out.
    pub(crate) resets: [u64; 4],
    pub(crate) account: Account,
    pub(crate) lag: u64,
    pub(crate) hold: hold::HoldStats,
    /// Number of subscribers of each topic.
    pub(crate) topics: Vec<usize>,
    /// What became of each topic's messages.
    pub(crate) topic_stats: Vec<TopicStats>,
}

/// Computes the initial messages of an instance, when they are asked for.
pub(crate) type Initial = Arc<dyn Fn(Inst) -> Vec<Msg> + Send + Sync>;

/// How a runtime is set up.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) identities: usize,
    /// The profile of each topic, to begin with.
    pub(crate) topics: Vec<Plan>,
    pub(crate) queue_capacity: u32,
    pub(crate) queue_bytes: u64,
    /// How many bytes of droppable messages may wait for a viewer, and how many of retained ones.
    pub(crate) lossy_bytes: u64,
    pub(crate) log_capacity: usize,
    pub(crate) shards: usize,
    /// How long broadcasts gather.
    pub(crate) linger: Duration,
    /// When publishers are held, if they are.
    pub(crate) hold: Option<hold::Policy>,
    pub(crate) write_timeout: Duration,
    /// Whether the runtime keeps accounts: its bound counts every waiting message, in messages and bytes, and it
    /// reports figures and events. Otherwise its bound counts messages without the one that is being written, it is
    /// only asked for [plain](crate::ops::Op::is_plain) operations, and the comparison covers the registered
    /// participants, the answers to sends, and what the streams receive.
    pub(crate) accounts: bool,
    pub(crate) initial: Initial,
}

impl Setup {
    /// Whether there are topics that aren't reliable, and rates.
    pub(crate) fn has_classes(&self) -> bool {
        self.accounts
    }

    /// Whether messages may grow too old: the model knows the ticks of one shard only.
    pub(crate) fn may_age(&self) -> bool {
        self.shards == 1
    }

    /// How long a stream takes to open, in milliseconds: where publishers may be held, those that wait go first.
    pub(crate) fn opening(&self) -> u64 {
        u64::from(self.hold.is_some())
    }

    /// The time between two looks at those that are blocked, in milliseconds.
    pub(crate) fn tick(&self) -> u64 {
        self.hold.map_or(LONGEST_TICK, |hold| hold.look().min(LONGEST_TICK))
    }

    /// How full the bound of a participant is, of which so much is taken.
    pub(crate) fn level(&self, taken: (u64, u64)) -> hold::Level {
        hold::Level::of(taken, self.limits())
    }

    /// Whether this much more may make a participant heavy that has only just become light.
    pub(crate) fn may_become_heavy(&self, more: (u64, u64)) -> bool {
        hold::Level::may_become_heavy(more, self.limits())
    }

    fn limits(&self) -> (u64, u64) {
        (u64::from(self.queue_capacity), self.queue_bytes)
    }

    /// How much a message of `size` bytes takes of the byte bound.
    pub(crate) fn weight(&self, size: usize) -> u64 {
        if self.accounts { size as u64 } else { 0 }
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identities, queue_capacity, queue_bytes, lossy_bytes, log_capacity, shards, .. } = self;
        write!(f, "{identities} identities, queue of {queue_capacity} messages and {queue_bytes} bytes, ")?;
        write!(f, "{lossy_bytes} lossy bytes, log of {log_capacity}, {shards} shards, linger {:?}, ", self.linger)?;
        write!(f, "{:?}, {:?}", self.hold, self.topics)
    }
}

/// A runtime under test, with a room whose viewers the test controls. Clones are the same runtime.
pub(crate) trait Subject: Clone + Send + Sync + 'static {
    /// The message type of its room.
    type Wire: Message;

    /// Whether a burst of broadcasts longer than the queue capacity resets nobody whose sink keeps up.
    const LONG_BURSTS: bool;

    /// Whether it keeps [accounts](Setup::accounts).
    const ACCOUNTS: bool;

    /// The longest back-off before a viewer is joined again; the first is at most as long.
    const LONGEST_BACKOFF: Duration = Duration::from_millis(8);

    fn start(setup: &Setup) -> Self;

    /// The room, and what its viewers do.
    fn viewers(&self) -> &Viewers<Self::Wire>;
    /// Lets opening a stream to a viewer fail once, and sets what opening does from then on.
    fn fail_one_opening(&self, who: usize, then: OpenBehavior) -> impl Future<Output = ()> + Send;
    /// Sets what computing a viewer's initial messages does from now on.
    fn gate(&self, who: usize, gate: Gate);

    // What the embedder does.

    /// Subscribes, with a rate of the subscriber's own if there is one.
    fn subscribe(
        &self,
        to: Inst,
        topic: usize,
        tag: u32,
        wish: Option<Pace>,
    ) -> impl Future<Output = Subscribed> + Send;
    fn unsubscribe(&self, to: Inst, topic: usize) -> impl Future<Output = Unsubscribed> + Send;
    /// Sets the total rate of a participant, in bytes per second.
    fn set_rate(&self, to: Inst, rate: Option<u64>);
    fn set_profile(&self, topic: usize, plan: &Plan);
    fn end_topic(&self, topic: usize) -> impl Future<Output = ()> + Send;
    fn send(&self, to: Inst, msg: Msg) -> impl Future<Output = Sent> + Send;
    fn try_send(&self, to: Inst, msg: Msg) -> impl Future<Output = Sent> + Send;
    /// Broadcasts to all or to a topic, by the message's lane.
    fn broadcast(&self, msg: Msg) -> impl Future<Output = Published> + Send;
    fn try_broadcast(&self, msg: Msg) -> impl Future<Output = Published> + Send;
    /// Closes; returns the outcome of all messages, if the runtime accounts for them.
    fn close(&self, deadline: Duration) -> impl Future<Output = Option<Account>> + Send;

    // What can be observed.

    /// Waits until everything is at rest, on a paused clock: tokio advances it only when no task can run, so this
    /// sleeps for no real time, and until every other task sleeps. Longer than any back-off.
    fn settle(&self) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(Self::LONGEST_BACKOFF * 2)
    }
    /// The instance that a look-up by identity finds.
    fn registered(&self, who: usize) -> Option<Inst>;
    /// A viewer, its instances from `first` on, and what the look-ups by `sids` find.
    fn view(&self, who: usize, sids: &[u32], first: usize) -> View;
    fn totals(&self) -> Totals;
    /// The events since the last call. None was missed.
    fn events(&self) -> impl Future<Output = Vec<Event>> + Send;
}
