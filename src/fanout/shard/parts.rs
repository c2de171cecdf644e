//! The parts from which a shard is made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::contract::Message;
use crate::contract::uplink::Uplink;
use crate::fanout::outbox::{Limits, Port};
use crate::fanout::shard::command::{Admission, Begin, Command};
use crate::fanout::shard::gauge::Gauge;
use crate::fanout::shard::load::Gathering;
use crate::fanout::shard::owner::Owner;

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
}

/// The shared uplink, unless it has been stalled for longer than `uplink_patience`.
pub(super) fn unless_given_up<O: Owner<M>, M: Message>(parts: &Parts<O, M>, now: u64) -> Option<&Uplink> {
    parts.uplink.as_ref().filter(|_| !parts.gauge.is_given_up(now))
}
