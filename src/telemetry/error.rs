//! What can go wrong with channels and statuses.

use bytes::Bytes;

/// Why a channel or status was not announced. Nothing has changed then, and no viewer has been told anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The session is closed: nobody is left to be told.
    #[error("the session is closed")]
    Closed,
    /// The announcement alone exceeds the session's byte limit: make it smaller (of a channel, mostly its schema), or
    /// the limit larger ([`queue_bytes`](crate::SessionBuilder::queue_bytes), unless the room carries no more).
    #[error(
        "{what} has {bytes} bytes: more than the {limit} that a message may have (queue_bytes, or the room's limit)"
    )]
    TooLarge {
        /// Which announcement: names the channel.
        what: String,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: u64,
    },
    /// A channel of this topic is advertised already. Viewers show one channel per topic, and report any other as an
    /// error: publish through a clone of the first one's handle, or give this one a topic of its own.
    #[error("topic {topic:?} is advertised already, as channel {id}: share its handle, or choose another topic")]
    DuplicateTopic {
        /// The topic.
        topic: String,
        /// The number of the channel that has it.
        id: u64,
    },
    /// The channel's topic is empty: viewers would have nothing to list it by.
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
