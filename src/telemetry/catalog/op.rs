//! Operations on the tables, which the announcer carries out.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::entry::ChannelEntry;
use crate::protocol::server::Status;
use crate::telemetry::error::AnnounceError;

/// Receives an operation's outcome.
pub(super) type Done = oneshot::Sender<Result<(), AnnounceError>>;

/// An operation on the tables.
pub(in crate::telemetry) enum Op {
    Advertise {
        channel: Arc<ChannelEntry>,
        done: Done,
    },
    Unadvertise {
        channel: Arc<ChannelEntry>,
        /// `None` when the last handle of a channel was dropped: no caller waits for the outcome.
        done: Option<Done>,
    },
    Status {
        status: Status,
        done: Done,
    },
    RemoveStatus {
        ids: Vec<String>,
        done: Done,
    },
}
