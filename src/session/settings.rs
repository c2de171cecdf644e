//! The settings of a session: the options as they are given, and what is left of them when they are checked.

use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::accept::Accept;
use super::error::BuildError;
use super::overload::OverloadPolicy;
use super::stream::ControlStream;
#[cfg(any(feature = "telemetry", feature = "test-util"))]
use crate::contract::EndReason;
use crate::contract::Hold;
use crate::fanout::Limits;
use crate::participant::Participant;
use crate::room::Room;
use crate::time::{Backoff, LONGEST};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) type Initial<M> = Arc<dyn Fn(Participant<M>) -> BoxFuture<Vec<M>> + Send + Sync>;
pub(crate) type OnStream<R> = Arc<dyn Fn(ControlStream<R>) -> BoxFuture<()> + Send + Sync>;
#[cfg(any(feature = "telemetry", feature = "test-util"))]
pub(crate) type OnRetired<M> = Box<dyn Fn(&Participant<M>, EndReason) + Send + Sync>;

/// The maximum of log capacity times shards, as each shard has its own copy of the log. Some 2 GB, if the shards are
/// ever that far behind.
const MOST_PLACES: usize = 1 << 22;

const MOST_SHARDS: usize = 1024;

/// The maximum event capacity: some 250 bytes for each event that waits.
const MOST_EVENTS: usize = 1 << 20;

/// The longest time for which broadcasts may gather. Nothing is gained by more: a second's broadcasts fill a write.
const LONGEST_LINGER: Duration = Duration::from_secs(1);

/// A semaphore has to support the number of joins.
const MOST_JOINS: usize = 1 << 24;

/// The settings as the embedder gives them. [`SessionBuilder`](super::SessionBuilder) has the reason for each default.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) queue_capacity: u32,
    pub(crate) queue_bytes: u64,
    pub(crate) joining_bytes: u64,
    pub(crate) lossy_bytes: u64,
    pub(crate) log_capacity: usize,
    /// By default one, and more as they pay, up to one less than the runtime has workers.
    pub(crate) shards: Option<usize>,
    pub(crate) linger: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) uplink_patience: Duration,
    pub(crate) open_timeout: Duration,
    pub(crate) retire_timeout: Duration,
    pub(crate) concurrent_joins: usize,
    pub(crate) reset_backoff: Backoff,
    pub(crate) event_capacity: usize,
    pub(crate) overload: OverloadPolicy,
}

/// The settings of a session, which [`Options::check`] has checked.
pub(crate) struct Config {
    pub(crate) limits: Limits,
    /// How many bytes of broadcasts may gather for a participant that joins.
    pub(crate) joining_bytes: u64,
    /// How many bytes of droppable messages may wait for a participant.
    pub(crate) lossy_bytes: u64,
    /// The longest message the room can carry, in bytes.
    pub(crate) largest_carried: usize,
    pub(crate) log_capacity: usize,
    /// How many shards there are at first, and how many there may be.
    pub(crate) shards: RangeInclusive<usize>,
    pub(crate) linger: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) uplink_patience: Duration,
    pub(crate) open_timeout: Duration,
    pub(crate) retire_timeout: Duration,
    pub(crate) concurrent_joins: usize,
    pub(crate) backoff: Backoff,
    pub(crate) event_capacity: usize,
    pub(crate) hold: Option<Hold>,
}

/// The closures that the embedder gives to a session.
pub(crate) struct Hooks<R: Room> {
    pub(crate) initial: Initial<R::Message>,
    pub(crate) accept: Accept<R::Message>,
    pub(crate) on_stream: OnStream<R>,
    /// Called once for each instance, after its sink is back with the room.
    #[cfg(any(feature = "telemetry", feature = "test-util"))]
    pub(crate) on_retired: Vec<OnRetired<R::Message>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_capacity: 16_384,
            queue_bytes: 64 << 20,
            joining_bytes: 256 << 20,
            lossy_bytes: 16 << 20,
            log_capacity: 1024,
            shards: None,
            linger: Duration::ZERO,
            write_timeout: Duration::from_secs(5),
            uplink_patience: Duration::from_secs(30),
            open_timeout: Duration::from_secs(5),
            retire_timeout: Duration::from_secs(6),
            concurrent_joins: 64,
            reset_backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) },
            event_capacity: 1024,
            overload: OverloadPolicy::Reset,
        }
    }
}

impl Options {
    /// Checks the settings, in this order, for a runtime of so many `workers` and a room that carries messages up to
    /// `largest_carried` bytes.
    pub(crate) fn check(&self, workers: usize, largest_carried: usize) -> Result<Config, BuildError> {
        // What is allocated as it is needed, or counted by a semaphore, has to stay within what those support.
        let messages =
            within("queue_capacity", self.queue_capacity, 1..=Limits::LARGEST.messages, "from 1 to 8,388,607")?;
        let bytes = within("queue_bytes", self.queue_bytes, 1..=Limits::LARGEST.bytes, "from 1 to 512 GiB less 1")?;
        let joining_bytes = within("joining_bytes", self.joining_bytes, 1..=u64::MAX, "at least 1")?;
        let lossy_bytes = within("lossy_bytes", self.lossy_bytes, 1..=u64::MAX, "at least 1")?;
        let log_capacity = within("log_capacity", self.log_capacity, 1..=MOST_PLACES, "from 1 to 4,194,304")?;
        let spare = workers.saturating_sub(1).clamp(1, MOST_SHARDS);
        let most = within("shards", self.shards.unwrap_or(spare), 1..=MOST_SHARDS, "from 1 to 1,024")?;
        let shards = self.shards.unwrap_or(1)..=most;
        if log_capacity.saturating_mul(most) > MOST_PLACES {
            return Err(invalid(
                "log_capacity × shards",
                format_args!("{log_capacity} × {most}"),
                "at most 4,194,304, as each shard has its own copy of the log",
            ));
        }
        let concurrent_joins =
            within("concurrent_joins", self.concurrent_joins, 1..=MOST_JOINS, "from 1 to 16,777,216")?;
        let event_capacity = within("event_capacity", self.event_capacity, 1..=MOST_EVENTS, "from 1 to 1,048,576")?;
        if self.linger > LONGEST_LINGER {
            return Err(invalid("linger", format_args!("{:?}", self.linger), "at most 1 s"));
        }
        let write_timeout = positive("write_timeout", self.write_timeout)?;
        let open_timeout = positive("open_timeout", self.open_timeout)?;
        let Backoff { first, longest } = self.reset_backoff;
        if first.is_zero() || first > longest {
            let must = "longer than zero, and the longest at least the first";
            return Err(invalid("reset_backoff", format_args!("{first:?} to {longest:?}"), must));
        }
        let hold = match self.overload {
            OverloadPolicy::Reset => None,
            OverloadPolicy::Hold(hold) => Some(self.check_hold(hold)?),
        };
        Ok(Config {
            limits: Limits { messages, bytes, largest: bytes.min(largest_carried as u64) },
            joining_bytes,
            lossy_bytes,
            largest_carried,
            log_capacity,
            shards,
            linger: self.linger,
            write_timeout,
            uplink_patience: self.uplink_patience,
            open_timeout,
            retire_timeout: self.retire_timeout,
            concurrent_joins,
            backoff: Backoff { first: first.min(LONGEST), longest: longest.min(LONGEST) },
            event_capacity,
            hold,
        })
    }

    /// Checks the settings of a hold, and that the log fits beside them.
    fn check_hold(&self, Hold { share_percent, at_least, patience }: Hold) -> Result<Hold, BuildError> {
        let share_percent = within("hold.share_percent", share_percent, 1..=99, "from 1 to 99")?;
        let at_least = within("hold.at_least", at_least, 1..=u32::MAX, "at least 1")?;
        let patience = positive("hold.patience", patience)?;
        // A member whose backlog has reached half of its bound still gets what shards have in hand, at most a quarter,
        // and what stands in the log.
        if self.log_capacity > self.queue_capacity as usize / 4 {
            let must = "at most a quarter of queue_capacity, for publishers to be held (overload)";
            return Err(invalid("log_capacity", self.log_capacity, must));
        }
        Ok(Hold { share_percent, at_least, patience })
    }
}

/// Returns `value` if it is within `range`, which `must` names.
fn within<T: PartialOrd + fmt::Display>(
    setting: &'static str,
    value: T,
    range: RangeInclusive<T>,
    must: &'static str,
) -> Result<T, BuildError> {
    if range.contains(&value) { Ok(value) } else { Err(invalid(setting, value, must)) }
}

/// Returns `time` if it is longer than zero.
fn positive(setting: &'static str, time: Duration) -> Result<Duration, BuildError> {
    if time.is_zero() { Err(invalid(setting, format_args!("{time:?}"), "longer than zero")) } else { Ok(time) }
}

fn invalid(setting: &'static str, value: impl fmt::Display, must: &'static str) -> BuildError {
    BuildError::InvalidSetting { setting, value: value.to_string(), must }
}

impl Config {
    /// How long the first broadcast that gathers for a joining participant may wait: longer than computing its initial
    /// messages may take.
    pub(crate) fn joining_age(&self) -> Duration {
        self.open_timeout.saturating_mul(2)
    }
}

/// No initial messages, every connection is accepted, and streams are dropped.
impl<R: Room> Default for Hooks<R> {
    fn default() -> Self {
        Self {
            initial: Arc::new(|_| Box::pin(std::future::ready(Vec::new()))),
            accept: Arc::new(|_| Ok(())),
            on_stream: Arc::new(|stream| {
                drop(stream);
                Box::pin(std::future::ready(()))
            }),
            #[cfg(any(feature = "telemetry", feature = "test-util"))]
            on_retired: Vec::new(),
        }
    }
}
