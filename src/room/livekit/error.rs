//! Errors of the connection to a LiveKit room.

use std::error::Error;
use std::time::Duration;

use livekit::rtc_engine::EngineError;
use livekit::{DisconnectReason, RoomError};
use livekit_signaling::SignalError;

/// Why there is no connection to a LiveKit room, or no longer one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveKitError {
    /// The server refused the token: it is malformed, expired, signed with another secret, or for something else. Mint
    /// a fresh one with the key and secret that the server has.
    #[error("the server refused the token ({0}): mint one with the server's own key and secret")]
    Unauthorized(String),
    /// The server could not be reached, or the connection could not be set up.
    #[error("no connection to the server: {0}")]
    Connect(String),
    /// Connecting took longer than the [time-out](super::LiveKitRoomBuilder::connect_timeout).
    #[error("no connection to the server within {0:?}")]
    TimedOut(Duration),
    /// There was no token to connect with.
    #[error("no token to connect with: {0}")]
    Token(#[source] Box<dyn Error + Send + Sync>),
    /// The uplink made no progress for [too long](super::LiveKitRoomBuilder::lost_after), so the connection was given
    /// up.
    #[error("the uplink made no progress for {0:?}, so the connection was given up")]
    Stalled(Duration),
    /// The connection was lost, and the SDK has given up resuming it.
    #[error("disconnected from the room: {}", words(*.reason))]
    Disconnected {
        /// The SDK's reason.
        reason: DisconnectReason,
    },
}

impl LiveKitError {
    /// Wraps the SDK's error without the token, which the server repeats in its answer.
    pub(super) fn of_connect(error: &RoomError, token: &str) -> Self {
        debug_assert!(!token.is_empty(), "`Link::connect` refuses an empty token");
        let scrubbed = |said: &str| said.trim().replace(token, "(the token)");
        match error {
            RoomError::Engine(EngineError::Signal(SignalError::Client(status, said)))
                if matches!(status.as_u16(), 401 | 403) =>
            {
                Self::Unauthorized(scrubbed(&format!("{status}: {said}")))
            }
            RoomError::Engine(EngineError::Signal(SignalError::Handshake { status }))
                if matches!(status.as_u16(), 401 | 403) =>
            {
                Self::Unauthorized(status.to_string())
            }
            RoomError::Engine(EngineError::Signal(SignalError::TokenFormat)) => {
                Self::Unauthorized("it has characters that no token has".to_owned())
            }
            _ => Self::Connect(scrubbed(&error.to_string())),
        }
    }
}

impl LiveKitError {
    /// Whether connecting again would only do harm: it would displace a participant that is meant to be there, or defy
    /// the decision to remove this one.
    pub(super) fn is_final(&self) -> bool {
        use DisconnectReason::{DuplicateIdentity, ParticipantRemoved, RoomDeleted};
        matches!(self, Self::Disconnected { reason: DuplicateIdentity | ParticipantRemoved | RoomDeleted })
    }
}

fn words(reason: DisconnectReason) -> &'static str {
    match reason {
        DisconnectReason::DuplicateIdentity => "another participant uses our identity",
        DisconnectReason::ServerShutdown => "the server shuts down",
        DisconnectReason::ParticipantRemoved => "the server removed us",
        DisconnectReason::RoomDeleted => "the room was deleted",
        DisconnectReason::RoomClosed => "the room was closed",
        DisconnectReason::StateMismatch => "the server doesn't know us any more",
        DisconnectReason::SignalClose | DisconnectReason::UnknownReason => "the connection was lost",
        other => other.as_str_name(),
    }
}
