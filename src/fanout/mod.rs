//! The path of a message: control queue, broadcast log, flush shard.
//!
//! Two lanes lead to a participant. A broadcast is written once to the [log](log::BroadcastLog), whatever the number of
//! participants. A direct message goes to the participant's own control queue in its [outbox](outbox::Outbox). A [flush
//! shard](shard::FlushShard) takes messages from both lanes, in one order, and hands them to the sinks of its share of
//! the participants. This module knows bytes and sequence numbers, and nothing of rooms, formats or telemetry.
//!
//! [`Fanout`] is the face of the module: it has the log, the shards and their counters, and hands out [`Seat`]s. The
//! tables of where bytes wait, and of who wakes whom, are in ARCHITECTURE.md.

mod counters;
mod log;
#[cfg(all(test, lanecast_loom))]
mod models;
mod outbox;
mod shard;

use std::sync::Arc;
#[cfg(feature = "telemetry")]
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::counters::Totals;
use self::log::publisher::Publisher;
use self::outbox::{Port, now_ms};
use self::shard::command::{Admission, Begin, COMMAND_CAPACITY, Command};
use self::shard::gauge::{Gauge, OnTheWay};
use self::shard::load::Gathering;
use self::shard::parts::Parts;
use self::shard::{FlushShard, SHARD_CAPACITY};
use crate::contract::topic::Audience;
use crate::contract::{Account, Message, Progress, Subscribed, SubscriptionTag, Topic, Unsubscribed, Uplink};
use crate::sync::signal::Signal;
use crate::sync::{AtomicBool, Ordering};

pub(crate) use self::log::{BroadcastLog, PublishError};
pub(crate) use self::outbox::{LARGEST_LIMITS, Limits, Outbox, Refused, State};
#[cfg(test)]
pub(crate) use self::shard::command::Command as ShardCommand;
pub(crate) use self::shard::owner::{Newcomer, Owner};

/// The settings of a fan-out. The session's builder has checked them.
pub(crate) struct Settings {
    pub(crate) shards: usize,
    /// How many broadcasts the log holds.
    pub(crate) log_capacity: usize,
    pub(crate) limits: Limits,
    /// How many bytes of broadcasts may gather for a member that joins, and how long the first of them may wait.
    pub(crate) joining_bytes: u64,
    pub(crate) joining_age: Duration,
    /// How many bytes of messages one flush of a sink carries best.
    pub(crate) batch_bytes: usize,
    pub(crate) write_timeout: Duration,
    /// The uplink that all sinks share, if they do.
    pub(crate) uplink: Option<Uplink>,
}

/// The log, the shards that read it, and what they count.
pub(crate) struct Fanout<O: Owner<M>, M: Message> {
    log: Arc<BroadcastLog<M>>,
    publisher: Publisher<M>,
    shards: Box<[ShardHandle<O, M>]>,
    totals: Arc<Totals>,
    limits: Limits,
    uplink: Option<Uplink>,
    /// Whether the uplink is stalled, as the room says.
    stalled: AtomicBool,
    /// The zero of the clock by which shards and outboxes measure.
    epoch: Instant,
}

/// The fan-out's end of a shard: the state that both share, and the channels to the task that runs the shard.
struct ShardHandle<O: Owner<M>, M: Message> {
    port: Arc<Port<M>>,
    gauge: Arc<Gauge>,
    newcomers: mpsc::Sender<Admission<O, M>>,
    commands: mpsc::Sender<Command>,
    begins: mpsc::Sender<Begin<M>>,
}

impl<O: Owner<M>, M: Message> Fanout<O, M> {
    /// A fan-out, and its shards, each of which runs until the log is sealed and its last member is gone.
    pub(crate) fn new(settings: Settings) -> (Self, Vec<impl Future<Output = ()> + Send + use<O, M>>) {
        let Settings { limits, uplink, .. } = settings;
        let epoch = Instant::now();
        let totals = Arc::new(Totals::new());
        let signals: Box<[_]> = (0..settings.shards).map(|_| Arc::new(Signal::new())).collect();
        let log = Arc::new(BroadcastLog::new(settings.log_capacity, signals.clone()));
        let age = u64::try_from(settings.joining_age.as_millis()).unwrap_or(u64::MAX);
        let gathering = Gathering { bytes: settings.joining_bytes, age };
        let (mut shards, mut tasks) = (Vec::new(), Vec::new());
        for (index, signal) in signals.into_iter().enumerate() {
            let port = Port::new(Arc::clone(&log), signal, SHARD_CAPACITY, Arc::clone(&totals), epoch);
            let port = Arc::new(port);
            let gauge = Arc::new(Gauge::new());
            let (newcomers, newcomers_taken) = mpsc::channel(COMMAND_CAPACITY);
            let (commands, commands_taken) = mpsc::channel(COMMAND_CAPACITY);
            let (begins, begins_taken) = mpsc::channel(COMMAND_CAPACITY);
            let parts = Parts {
                index,
                port: Arc::clone(&port),
                gauge: Arc::clone(&gauge),
                newcomers: newcomers_taken,
                commands: commands_taken,
                begins: begins_taken,
                limits,
                gathering,
                batch_bytes: settings.batch_bytes,
                write_timeout: settings.write_timeout,
                uplink: uplink.clone(),
            };
            tasks.push(FlushShard::new(parts).run());
            shards.push(ShardHandle { port, gauge, newcomers, commands, begins });
        }
        let publisher = Publisher::new(Arc::clone(&log));
        let stalled = AtomicBool::new(false);
        (Self { log, publisher, shards: shards.into(), totals, limits, uplink, stalled, epoch }, tasks)
    }

    /// Publishes as soon as the log has capacity. Never [`Refused::Full`].
    pub(crate) async fn publish(&self, audience: &Audience, message: M) -> Result<(), Refused<M>> {
        let message = self.fitting(message)?;
        self.publisher.publish(audience, message).await.map_err(Refused::Closed)
    }

    /// Publishes now or not at all.
    pub(crate) fn try_publish(&self, audience: &Audience, message: M) -> Result<(), Refused<M>> {
        let message = self.fitting(message)?;
        self.publisher.try_publish(audience, message).map_err(|error| match error {
            PublishError::Full(message) => Refused::Full(message),
            PublishError::Closed(message) => Refused::Closed(message),
        })
    }

    fn fitting(&self, message: M) -> Result<M, Refused<M>> {
        if message.byte_len() as u64 <= self.limits.largest { Ok(message) } else { Err(Refused::TooLarge(message)) }
    }

    /// Calls `attempt` until it has claimed its place in the log: see [`Publisher::claim`].
    #[cfg(feature = "telemetry")]
    pub(crate) async fn claim<T>(&self, attempt: impl FnMut(&BroadcastLog<M>) -> Poll<T>) -> T {
        self.publisher.claim(attempt).await
    }

    /// The length of the longest message that isn't refused, in bytes.
    #[cfg(feature = "telemetry")]
    pub(crate) fn largest_message(&self) -> u64 {
        self.limits.largest
    }

    /// Whether a message for `topic` would reach nobody, though the log is open.
    pub(crate) fn reaches_nobody(&self, topic: &Topic) -> bool {
        topic.subscribers() == 0 && !self.is_sealed()
    }

    /// A seat for a newcomer, in the shard that has the fewest members and newcomers on their way. Joins that choose at
    /// the same moment, on several threads, may choose the same shard.
    pub(crate) fn seat(&self) -> Seat<'_, O, M> {
        let emptiest = self.shards.iter().min_by_key(|shard| shard.gauge.population());
        let shard = emptiest.expect("the builder asks for at least one shard");
        Seat { fanout: self, shard, on_the_way: OnTheWay::to(&shard.gauge) }
    }

    /// Holds publishers back while the uplink is stalled, and spares the members for `patience`. False if that was so
    /// already.
    pub(crate) fn hold(&self, stalled: bool, patience: Duration) -> bool {
        // Relaxed: the event loop alone stores this flag and the times; shards compare the times with their clock.
        if self.stalled.swap(stalled, Ordering::Relaxed) == stalled {
            return false;
        }
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let until = if stalled { now_ms(self.epoch).saturating_add(patience) } else { 0 };
        for shard in &self.shards {
            shard.gauge.stalled_until.store(until, Ordering::Relaxed);
        }
        self.log.hold(stalled);
        true
    }

    /// Whether publishers are held back.
    pub(crate) fn is_held(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Closes the log to publishers: the shards deliver what there is, and end with their last member.
    pub(crate) fn seal(&self) {
        self.log.seal();
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.log.tail().is_sealed()
    }

    /// Makes every shard tear down all its members.
    pub(crate) fn abort(&self) {
        for shard in &self.shards {
            // Release, with the Acquire of a turn that begins: a shard that aborts sees what happened before. The
            // wake-up orders the flag with the shard's last look before it sleeps.
            shard.gauge.abort.store(true, Ordering::Release);
            shard.port.signal.wake();
        }
    }

    /// Sums up what became of the messages of all participants. Outcomes are read before offers: see
    /// [`counters`].
    pub(crate) fn account(&self) -> Account {
        let mut account = Account::default();
        self.totals.outcomes(&mut account);
        for shard in &self.shards {
            account.delivered += shard.gauge.delivered.get();
            account.delivered_bytes += shard.gauge.delivered_bytes.get();
        }
        account.offered = self.totals.direct_offered.get();
        account.offered += self.shards.iter().map(|shard| shard.gauge.offered.get()).sum::<u64>();
        account
    }

    /// How many broadcasts the slowest shard has yet to read.
    pub(crate) fn lag(&self) -> u64 {
        (0..self.shards.len()).map(|shard| self.log.lag(shard)).max().unwrap_or(0)
    }
}

/// A place in a shard, chosen for a newcomer. Until the shard has admitted the newcomer, others see it as on its way.
pub(crate) struct Seat<'a, O: Owner<M>, M: Message> {
    fanout: &'a Fanout<O, M>,
    shard: &'a ShardHandle<O, M>,
    on_the_way: OnTheWay,
}

/// Why a newcomer wasn't admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The fan-out ends.
    Closed,
    /// The shard turned the newcomer away, or it had ended: its outbox says why.
    Ended,
}

impl<'a, O: Owner<M>, M: Message> Seat<'a, O, M> {
    /// The sending side of the newcomer, whose writes report to `progress`.
    pub(crate) fn outbox(&self, progress: &Progress) -> Outbox<M> {
        let Fanout { limits, uplink, .. } = self.fanout;
        let uplink = uplink.clone().map(|uplink| (uplink, progress.clone()));
        Outbox::new(Arc::clone(&self.shard.port), *limits, uplink)
    }

    /// The newcomer's line to its shard.
    pub(crate) fn line(&self) -> ShardLine {
        ShardLine { commands: self.shard.commands.clone() }
    }

    /// Has the shard take the newcomer in; returns once the newcomer's position in the log is fixed.
    pub(crate) async fn admit(self, newcomer: Newcomer<O, M>) -> Result<Admitted<'a, M>, NotAdmitted> {
        let Self { shard, on_the_way, .. } = self;
        let (reply, answer) = oneshot::channel();
        if shard.newcomers.send(Admission { newcomer, reply, on_the_way }).await.is_err() {
            return Err(NotAdmitted::Closed);
        }
        // If the shard admits no more members, the answer may never arrive: the session aborts all joins then.
        let position = answer.await.map_err(|_| NotAdmitted::Ended)?;
        Ok(Admitted { position, begins: &shard.begins })
    }
}

/// A member that waits for its initial messages.
pub(crate) struct Admitted<'a, M> {
    pub(crate) position: u64,
    begins: &'a mpsc::Sender<Begin<M>>,
}

impl<'a, M: Message> Admitted<'a, M> {
    /// Waits for a place in the shard's channel; `None` if the fan-out ends.
    pub(crate) async fn ready(self) -> Option<Start<'a, M>> {
        self.begins.reserve().await.ok().map(Start)
    }
}

/// A place in the channel by which a shard learns that a member begins.
pub(crate) struct Start<'a, M>(mpsc::Permit<'a, Begin<M>>);

impl<M: Message> Start<'_, M> {
    /// Has the shard deliver the initial messages, given with their lengths, and then what has gathered.
    pub(crate) fn begin(self, outbox: &Outbox<M>, key: u64, initial: Vec<(M, usize)>) {
        self.0.send(Begin { slot: outbox.slot(), key, initial });
    }
}

/// A member's line to its shard.
#[derive(Debug)]
pub(crate) struct ShardLine {
    commands: mpsc::Sender<Command>,
}

impl ShardLine {
    /// Subscribes the member with `key` to `topic`; also says from which position of the log on.
    pub(crate) async fn subscribe<M: Message>(
        &self,
        outbox: &Outbox<M>,
        key: u64,
        topic: &Topic,
        tag: SubscriptionTag,
    ) -> (Subscribed, u64) {
        let (reply, answer) = oneshot::channel();
        let command = Command::Subscribe { slot: outbox.slot(), key, counted: topic.raise(), tag, reply };
        self.ask(command, answer).await.unwrap_or((Subscribed::Closed, 0))
    }

    /// Ends the subscription of the member with `key` to `topic`.
    pub(crate) async fn unsubscribe<M: Message>(&self, outbox: &Outbox<M>, key: u64, topic: &Topic) -> Unsubscribed {
        let (reply, answer) = oneshot::channel();
        let command = Command::Unsubscribe { slot: outbox.slot(), key, topic: topic.key(), reply };
        self.ask(command, answer).await.unwrap_or(Unsubscribed::NotSubscribed)
    }

    /// Sends a command to the shard and waits for the answer. `None` if the shard has ended.
    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
        self.commands.send(command).await.ok()?;
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            // A shard that ends drops the commands that it doesn't carry out, which ends the wait for the answer. That
            // misses a command that arrives late because this future wasn't polled.
            () = self.commands.closed() => None,
        }
    }

    /// The channel itself, for a test of a command that is on its way.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> &mpsc::Sender<Command> {
        &self.commands
    }
}
