//! A channel of the catalog.
//!
//! # States
//! `Advertised → Unadvertised` or `Advertised → SessionEnded`. Only an `Advertised` channel may be published on or
//! subscribed to. A channel enters the table of channels after it was created, and leaves it after it was unadvertised:
//! see [`announcer`](super::announcer).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::contract::Topic;
use crate::protocol::server;
use crate::telemetry::channel::Channel;
use crate::telemetry::error::PublishError;

const ADVERTISED: u8 = 0;
const UNADVERTISED: u8 = 1;
const SESSION_ENDED: u8 = 2;

/// A channel, shared by its handles, the tables and the subscriptions.
#[derive(Debug)]
pub(in crate::telemetry) struct ChannelEntry {
    pub(in crate::telemetry) described: server::Channel,
    /// The subscribers.
    pub(in crate::telemetry) audience: Topic,
    /// Whether the log times of the channel's messages are the time of the server.
    pub(in crate::telemetry) tells_time: bool,
    stage: AtomicU8,
}

impl ChannelEntry {
    /// A channel that is advertised, and isn't in the tables yet.
    pub(in crate::telemetry) fn new(channel: Channel, id: u64, tells_time: bool) -> Self {
        Self { described: channel.numbered(id), audience: Topic::new(), tells_time, stage: AtomicU8::new(ADVERTISED) }
    }

    pub(in crate::telemetry) fn id(&self) -> u64 {
        self.described.id
    }

    /// Whether the channel may be published on, or why not.
    pub(in crate::telemetry) fn stage(&self) -> Result<(), PublishError> {
        // Acquire pairs with the AcqRel of `leave`: a caller that has learned of the unadvertise gets the error.
        match self.stage.load(Ordering::Acquire) {
            ADVERTISED => Ok(()),
            UNADVERTISED => Err(PublishError::Unadvertised),
            _ => Err(PublishError::Closed),
        }
    }

    pub(in crate::telemetry) fn is_advertised(&self) -> bool {
        self.stage().is_ok()
    }

    /// `Advertised → Unadvertised`.
    pub(in crate::telemetry) fn unadvertise(&self) -> Unadvertised {
        match self.leave(UNADVERTISED) {
            Ok(_) => Unadvertised::ByThis,
            Err(_) => Unadvertised::Before,
        }
    }

    /// `Advertised → SessionEnded`.
    pub(in crate::telemetry) fn end(&self) {
        // A channel that was unadvertised before stays so.
        let _ = self.leave(SESSION_ENDED);
    }

    fn leave(&self, stage: u8) -> Result<u8, u8> {
        self.stage.compare_exchange(ADVERTISED, stage, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// What a call to unadvertise a channel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Unadvertised {
    /// The channel is no longer advertised by this call.
    ByThis,
    /// It was not advertised any more.
    Before,
}
