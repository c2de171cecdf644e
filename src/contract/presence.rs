//! A participant's connection, as its room reports it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::ids::{ParticipantIdentity, ParticipantSid};
#[cfg(feature = "telemetry")]
use crate::protocol::Subprotocol;

/// Free-form keys and values that a room reports about a participant.
pub type Attributes = Arc<BTreeMap<String, String>>;

/// The empty attributes, which all participants without attributes share.
pub(crate) fn no_attributes() -> Attributes {
    static NONE: LazyLock<Attributes> = LazyLock::new(Attributes::default);
    Arc::clone(&NONE)
}

/// A participant's current connection, as its room sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Presence {
    /// The identity of the participant.
    pub identity: ParticipantIdentity,
    /// The room's id of the connection.
    pub sid: ParticipantSid,
    /// When the connection joined, by the server's clock: milliseconds since the epoch. Of two connections of one
    /// identity the later one wins.
    pub joined_at: u64,
    /// The attributes that the room reports.
    pub attributes: Attributes,
    /// The dialect that the transport has negotiated; `None` if the transport negotiates none. A session ignores it.
    /// [Telemetry](crate::telemetry) speaks it to the participant.
    #[cfg(feature = "telemetry")]
    pub dialect: Option<Subprotocol>,
}

impl Presence {
    /// Creates a presence without attributes.
    #[must_use]
    pub fn new(identity: ParticipantIdentity, sid: ParticipantSid, joined_at: u64) -> Self {
        Self {
            identity,
            sid,
            joined_at,
            attributes: no_attributes(),
            #[cfg(feature = "telemetry")]
            dialect: None,
        }
    }

    /// Adds an attribute, in place of any that has the same key.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.attributes).insert(key.into(), value.into());
        self
    }

    /// Sets the dialect that the transport has negotiated.
    #[cfg(feature = "telemetry")]
    #[must_use]
    pub fn with_dialect(mut self, dialect: Subprotocol) -> Self {
        self.dialect = Some(dialect);
        self
    }
}
