//! The parts from which a shard is made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Message;
use super::command::{Admission, Begin, Command};
use super::gauge::Gauge;
use super::load::Gathering;
use super::outbox::{Limits, Port};
use super::owner::Owner;
use super::uplink::Uplink;

/// Everything that a shard is given when it is created.
pub(crate) struct Parts<O: Owner<M>, M: Message> {
    pub(crate) index: usize,
    pub(crate) port: Arc<Port<M>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) newcomers: mpsc::Receiver<Admission<O, M>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) begins: mpsc::Receiver<Begin<M>>,
    pub(crate) limits: Limits,
    pub(crate) gathering: Gathering,
    /// How many bytes one flush of the shard's sinks carries best.
    pub(crate) batch_bytes: usize,
    pub(crate) write_timeout: Duration,
    /// The uplink that all sinks share, if they do.
    pub(crate) uplink: Option<Uplink>,
    /// The zero of the session's clock.
    pub(crate) epoch: Instant,
}

/// The shared uplink, unless it has been stalled for longer than `uplink_patience`.
pub(super) fn unless_given_up<O: Owner<M>, M: Message>(parts: &Parts<O, M>, now: u64) -> Option<&Uplink> {
    parts.uplink.as_ref().filter(|_| !parts.gauge.is_given_up(now))
}

/// Milliseconds since `epoch`.
pub(crate) fn now_ms(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}
