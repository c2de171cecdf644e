//! The description of a channel.

use std::sync::Arc;

use super::error::AnnounceError;
use crate::protocol::{Schema, server};

/// Describes a channel: its topic, the encoding of its messages, and their schema.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a channel exists once it is advertised"]
pub struct Channel {
    topic: String,
    encoding: String,
    schema: Option<Arc<Schema>>,
}

impl Channel {
    /// Describes a channel on `topic` whose messages are encoded in `encoding`, for example `json` or `protobuf`.
    /// Neither may be empty, and a topic has one channel at a time.
    pub fn new(topic: impl Into<String>, encoding: impl Into<String>) -> Self {
        Self { topic: topic.into(), encoding: encoding.into(), schema: None }
    }

    /// Sets the schema of the channel's messages. Channels with the same schema share it on the wire where the format
    /// can.
    pub fn schema(mut self, schema: impl Into<Arc<Schema>>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Refuses a channel that no viewer could show.
    pub(super) fn check(&self) -> Result<(), AnnounceError> {
        if self.topic.is_empty() {
            return Err(AnnounceError::EmptyTopic);
        }
        if self.encoding.is_empty() {
            return Err(AnnounceError::EmptyEncoding { topic: self.topic.clone() });
        }
        Ok(())
    }

    /// The channel as viewers are told of it, under its number.
    pub(super) fn numbered(self, id: u64) -> server::Channel {
        let Self { topic, encoding, schema } = self;
        server::Channel { id, topic, encoding, schema }
    }
}
