//! Errors of channels and statuses.

use bytes::Bytes;

/// Why a channel or status was not announced. Nothing has changed then, and no viewer has been told anything, unless
/// the session closed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The session is closed: there are no viewers to tell.
    #[error("the session is closed")]
    Closed,
    /// The announcement alone exceeds the session's byte limit. Make the announcement smaller (the largest part of a
    /// channel's announcement is usually its schema), or raise the limit
    /// ([`queue_bytes`](crate::SessionBuilder::queue_bytes), unless the room carries no more).
    #[error("{what} has {bytes} bytes and exceeds the limit of {limit} bytes (queue_bytes, or the room's limit)")]
    TooLarge {
        /// Names the announcement; that of a channel by its topic.
        what: String,
        /// Length of the announcement, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A channel on this topic is advertised already. Viewers show one channel per topic, and report any other as an
    /// error: publish through a clone of the first channel's handle, or choose another topic for this one.
    #[error("topic {topic:?} is advertised already, as channel {id}: share its handle, or choose another topic")]
    DuplicateTopic {
        /// The topic of both channels.
        topic: String,
        /// The number of the advertised channel.
        id: u64,
    },
    /// The channel's topic is empty: viewers could not list the channel.
    #[error("a channel's topic is empty: give it a name, for example \"/speed\"")]
    EmptyTopic,
    /// The encoding of the channel's messages is empty: no viewer could read them.
    #[error("the encoding of channel {topic:?} is empty: name it, for example \"json\"")]
    EmptyEncoding {
        /// The channel's topic.
        topic: String,
    },
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The channel is no longer advertised, so it can have no subscribers. Advertise it again.
    #[error("the channel is not advertised any more")]
    Unadvertised,
    /// The session is closed: stop publishing.
    #[error("the session is closed")]
    Closed,
    /// The message alone exceeds the session's byte limit: make the message smaller, or raise the limit.
    #[error("the message has {bytes} bytes and exceeds the maximum size (queue_bytes, or the room's limit)")]
    TooLarge {
        /// Length of the message in bytes, its head included.
        bytes: usize,
    },
}

/// Why a message was not published at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryPublishError {
    /// The log is full: the shards have to catch up, or the uplink is stalled. The error gives the payload back: try
    /// again later, or wait with [`publish`](super::AdvertisedChannel::publish).
    #[error("the broadcast log is full: try later, or wait")]
    Full(Bytes),
    /// Waiting would not publish the message either.
    #[error(transparent)]
    Rejected(#[from] PublishError),
}
