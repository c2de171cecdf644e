//! What can go wrong with channels and statuses.

use bytes::Bytes;

/// Why a channel or status was not announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The session is closed: nobody is left to be told.
    #[error("the session is closed")]
    Closed,
    /// The announcement alone exceeds the session's byte limit: make it (mostly the schema) smaller, or the limit
    /// larger.
    #[error("the announcement has {bytes} bytes: more than may wait for a participant")]
    TooLarge {
        /// How long it is.
        bytes: usize,
    },
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The channel is no longer advertised: nobody can be subscribed to it. Advertise it again.
    #[error("the channel is not advertised any more")]
    Unadvertised,
    /// The session is closed: stop publishing.
    #[error("the session is closed")]
    Closed,
    /// The message alone exceeds the session's byte limit: make it smaller, or the limit larger.
    #[error("the message has {bytes} bytes: more than may wait for a participant")]
    TooLarge {
        /// How long it is, its head included.
        bytes: usize,
    },
}

/// Why a message was not published at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryPublishError {
    /// The shards have to catch up, or the uplink is stalled. The payload comes back: try later, or wait with
    /// [`publish`](super::AdvertisedChannel::publish).
    #[error("the broadcast log is full: try later, or wait")]
    Full(Bytes),
    /// It can't be published by waiting either.
    #[error(transparent)]
    Rejected(#[from] PublishError),
}
