//! Publishing on an advertised channel.
//!
//! Publishing takes no lock: it reads the channel's state and the number of its subscribers and, if there are any,
//! hands one frame to the session. A publish that happened before the unadvertise goes out before it. A publish that
//! runs concurrently with the unadvertise may also go out behind it; viewers then don't know the subscription any more
//! and ignore the message.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::entry::{ChannelEntry, Unadvertised};
use super::catalog::op::Op;
use super::channel::Channel;
use super::clock::now_ns;
use super::error::{AnnounceError, PublishError, TryPublishError};
use super::handle::{Handle, Telemetry};
use crate::contract::Message;
use crate::protocol::Frame;
use crate::session::{BroadcastError, TryBroadcastError};

/// A message for a channel, as the closure of [`publish_with`](AdvertisedChannel::publish_with) returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<B> {
    /// The log time, in nanoseconds, usually since the epoch.
    pub log_time_ns: u64,
    /// The payload, in the encoding of the channel.
    pub payload: B,
}

impl<B> Sample<B> {
    /// A message with the current time as its log time.
    pub fn now(payload: B) -> Self {
        Self { log_time_ns: now_ns(), payload }
    }
}

/// The outcome of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// The message is on its way to the subscribers.
    Sent,
    /// The channel has no subscribers: nothing was sent.
    ToNobody,
}

/// A handle to an advertised channel. Clones are handles to the same channel. The channel is unadvertised when its last
/// handle is dropped, or by [`unadvertise`](Self::unadvertise).
pub struct AdvertisedChannel(Arc<Owned>);

struct Owned {
    channel: Arc<ChannelEntry>,
    handle: Arc<Handle>,
}

impl Telemetry {
    /// Announces `channel` to all viewers, and to every viewer that joins from now on.
    ///
    /// Returns once the announcement has its position in the log: messages that are published from then on come behind
    /// it.
    ///
    /// # Errors
    /// [`AnnounceError`] if the session is closed, the announcement exceeds the session's byte limit, the topic is
    /// advertised already, or topic or encoding is empty. The channel then doesn't exist, and no viewer was told of it,
    /// unless the session closed meanwhile.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, the channel may be announced for a moment and is then unadvertised.
    pub async fn advertise(&self, channel: Channel) -> Result<AdvertisedChannel, AnnounceError> {
        channel.check()?;
        let advertised = AdvertisedChannel::new(Arc::clone(&self.0), self.0.catalog.number(channel));
        let channel = Arc::clone(advertised.inner());
        self.0.announce(|done| Op::Advertise { channel, done }).await?;
        Ok(advertised)
    }
}

impl AdvertisedChannel {
    fn new(handle: Arc<Handle>, channel: Arc<ChannelEntry>) -> Self {
        Self(Arc::new(Owned { channel, handle }))
    }

    pub(super) fn inner(&self) -> &Arc<ChannelEntry> {
        &self.0.channel
    }

    /// The channel's number, by which viewers know it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.channel.id()
    }

    /// The channel's topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.0.channel.described.topic
    }

    /// Whether the channel has subscribers: if not, there is no need to compute a message.
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        self.subscribers() > 0
    }

    /// Number of subscribers; 0 once the channel is no longer advertised.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        let channel = &self.0.channel;
        if channel.is_advertised() { channel.audience.subscribers() } else { 0 }
    }

    /// Publishes `payload` with the current time as its log time. Waits only while the shards are a whole log behind or
    /// the uplink is stalled, never for a viewer.
    ///
    /// # Errors
    /// [`PublishError`] if the message was not published.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, nothing was sent.
    pub async fn publish(&self, payload: impl Into<Bytes>) -> Result<Published, PublishError> {
        self.publish_with(|| Sample::now(payload)).await
    }

    /// Publishes `payload` with the log time `log_time_ns`, in nanoseconds, usually since the epoch; otherwise as
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`PublishError`] if the message was not published.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, nothing was sent.
    pub async fn publish_at(&self, log_time_ns: u64, payload: impl Into<Bytes>) -> Result<Published, PublishError> {
        self.publish_with(|| Sample { log_time_ns, payload }).await
    }

    /// Calls `sample` if the channel has subscribers, and publishes what it returns; otherwise as
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`PublishError`] if the message was not published.
    ///
    /// # Cancel safety
    /// If this future is dropped before it is done, nothing was sent.
    pub async fn publish_with<B: Into<Bytes>>(
        &self,
        sample: impl FnOnce() -> Sample<B>,
    ) -> Result<Published, PublishError> {
        let Some(frame) = self.frame(sample)? else { return Ok(Published::ToNobody) };
        match self.0.handle.session.broadcast_to(&self.0.channel.audience, frame).await {
            Ok(()) => Ok(Published::Sent),
            Err(BroadcastError::TooLarge(frame)) => Err(PublishError::TooLarge { bytes: frame.byte_len() }),
            Err(BroadcastError::Closed(_)) => Err(PublishError::Closed),
        }
    }

    /// Publishes `payload` with the current time as its log time, at once or not at all. Works from any thread.
    ///
    /// # Errors
    /// [`TryPublishError`] if the message was not published. If the log is full, the error gives the payload back.
    pub fn try_publish(&self, payload: impl Into<Bytes>) -> Result<Published, TryPublishError> {
        self.try_publish_with(|| Sample::now(payload))
    }

    /// Publishes `payload` with the log time `log_time_ns`, at once or not at all; otherwise as
    /// [`try_publish`](Self::try_publish).
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn try_publish_at(&self, log_time_ns: u64, payload: impl Into<Bytes>) -> Result<Published, TryPublishError> {
        self.try_publish_with(|| Sample { log_time_ns, payload })
    }

    /// Calls `sample` if the channel has subscribers, and publishes what it returns, at once or not at all; otherwise
    /// as [`publish_with`](Self::publish_with).
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    pub fn try_publish_with<B: Into<Bytes>>(
        &self,
        sample: impl FnOnce() -> Sample<B>,
    ) -> Result<Published, TryPublishError> {
        let Some(frame) = self.frame(sample)? else { return Ok(Published::ToNobody) };
        match self.0.handle.session.try_broadcast_to(&self.0.channel.audience, frame) {
            Ok(()) => Ok(Published::Sent),
            Err(TryBroadcastError::Full(frame)) => Err(TryPublishError::Full(frame.payload().clone())),
            Err(TryBroadcastError::TooLarge(frame)) => Err(PublishError::TooLarge { bytes: frame.byte_len() }.into()),
            Err(TryBroadcastError::Closed(_)) => Err(PublishError::Closed.into()),
        }
    }

    /// The frame for all subscribers, whatever format they speak. Each copy for a v1 viewer later gets that viewer's
    /// subscription id. `None` if there are no subscribers.
    fn frame<B: Into<Bytes>>(&self, sample: impl FnOnce() -> Sample<B>) -> Result<Option<Frame>, PublishError> {
        let channel = &self.0.channel;
        channel.stage()?;
        if channel.audience.subscribers() == 0 {
            return Ok(None);
        }
        let Sample { log_time_ns, payload } = sample();
        let frame = Frame::message_data(channel.id(), log_time_ns, payload.into());
        Ok(Some(if channel.tells_time { frame.live() } else { frame }))
    }

    /// Unadvertises the channel. From this call on, publishing fails and the subscriptions to the channel end. Returns
    /// once the announcement to every viewer has its position in the log. A second call does nothing, also through a
    /// clone.
    ///
    /// # Errors
    /// [`AnnounceError`] if the session is closed.
    ///
    /// # Cancel safety
    /// If this future is dropped after its first poll, the channel is unadvertised all the same.
    pub async fn unadvertise(&self) -> Result<(), AnnounceError> {
        let Owned { channel, handle } = &*self.0;
        if channel.unadvertise() == Unadvertised::Before {
            return Ok(());
        }
        let channel = Arc::clone(channel);
        handle.announce(|done| Op::Unadvertise { channel, done: Some(done) }).await
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.channel.unadvertise() == Unadvertised::ByThis {
            // A failed send means that the session has ended: there are no viewers to tell.
            let _ = self.handle.ops.send(Op::Unadvertise { channel: Arc::clone(&self.channel), done: None });
        }
    }
}

impl Clone for AdvertisedChannel {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl fmt::Debug for AdvertisedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channel = &self.0.channel;
        f.debug_struct("AdvertisedChannel")
            .field("id", &channel.id())
            .field("topic", &channel.described.topic)
            .field("subscribers", &channel.audience.subscribers())
            .finish_non_exhaustive()
    }
}
