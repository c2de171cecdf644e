//! Reasons why a connection is closed, and their close frames.

use crate::contract::EndReason;

/// The reason why a connection is closed, which determines its close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The session ended this participant.
    Ended(EndReason),
    /// The sink was closed or dropped without a reason.
    SinkDropped,
    /// The room is closing.
    RoomClosed,
    /// Nothing was heard of the client for too long.
    Silent,
    /// The client didn't complete a long message while others waited for the memory.
    Dawdled,
    /// The client broke the protocol or the size limit.
    Violation(Violation),
    /// The client closed, with this code.
    PeerClosed(u16),
    /// The client is gone; no close frame can reach it.
    PeerGone,
}

/// The rule that a client broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    Unmasked,
    ReservedBits,
    Opcode,
    FragmentedControl,
    LongControl,
    StrayContinuation,
    Interleaved,
    CloseFrame,
    Utf8,
    TooLarge,
}

/// A request to the task that serves a connection fits into a byte; zero is "none".
const SINK_DROPPED: u8 = 64;
const ROOM_CLOSED: u8 = 65;

impl CloseReason {
    /// The code and the reason of the close frame. Reasons are shorter than the 123 bytes that fit.
    pub(super) fn close_frame(self) -> Option<(u16, &'static str)> {
        let frame = match self {
            Self::Ended(reason) => (end_code(reason), reason.as_str()),
            Self::SinkDropped => (1001, "the server closed the connection"),
            Self::RoomClosed => (1001, "the room is closed"),
            Self::Silent => (1011, "the client was silent, and didn't answer a ping"),
            Self::Dawdled => (1013, "a long message took too long while others waited for the memory: try again"),
            Self::Violation(violation) => violation.frame(),
            Self::PeerClosed(code) => (code, "closed by the client"),
            Self::PeerGone => return None,
        };
        Some(frame)
    }

    /// The reason as one byte, if it can be requested from outside the serving task.
    pub(super) fn to_request(self) -> Option<u8> {
        match self {
            Self::Ended(reason) => Some(reason as u8 + 1),
            Self::SinkDropped => Some(SINK_DROPPED),
            Self::RoomClosed => Some(ROOM_CLOSED),
            Self::Silent | Self::Dawdled | Self::Violation(_) | Self::PeerClosed(_) | Self::PeerGone => None,
        }
    }

    /// The reverse of [`to_request`](Self::to_request); `None` for zero.
    pub(super) fn from_request(request: u8) -> Option<Self> {
        match request {
            SINK_DROPPED => Some(Self::SinkDropped),
            ROOM_CLOSED => Some(Self::RoomClosed),
            _ => EndReason::ALL.into_iter().map(Self::Ended).find(|ended| ended.to_request() == Some(request)),
        }
    }
}

fn end_code(reason: EndReason) -> u16 {
    match reason {
        EndReason::Overflow
        | EndReason::WriteFailed
        | EndReason::WritePanicked
        | EndReason::WriteTimedOut
        | EndReason::JoinFailed => 1013,
        EndReason::Replaced => 4000,
        EndReason::Refused => 1008,
        EndReason::Disconnected | EndReason::Vanished | EndReason::SessionClosed => 1001,
    }
}

impl Violation {
    fn frame(self) -> (u16, &'static str) {
        match self {
            Self::Unmasked => (1002, "a frame was not masked"),
            Self::ReservedBits => (1002, "a reserved bit was set"),
            Self::Opcode => (1002, "unknown opcode"),
            Self::FragmentedControl => (1002, "a control frame was fragmented"),
            Self::LongControl => (1002, "a control frame was longer than 125 bytes"),
            Self::StrayContinuation => (1002, "a continuation without a beginning"),
            Self::Interleaved => (1002, "a new message began inside a fragmented one"),
            Self::CloseFrame => (1002, "malformed close frame"),
            Self::Utf8 => (1007, "text that is not UTF-8"),
            Self::TooLarge => (1009, "a message over the size limit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_byte_and_reasons_fit_a_close_frame() {
        let ended = EndReason::ALL.into_iter().map(CloseReason::Ended);
        for close_reason in ended.chain([CloseReason::SinkDropped, CloseReason::RoomClosed]) {
            let request = close_reason.to_request().unwrap();
            assert_ne!(request, 0);
            assert_eq!(CloseReason::from_request(request), Some(close_reason));
            let (code, reason) = close_reason.close_frame().unwrap();
            assert!(reason.len() <= 123, "{reason}");
            assert!(!matches!(code, 0..1000 | 1004..=1006), "{code}");
        }
        assert_eq!(CloseReason::from_request(0), None);
    }

    #[test]
    fn what_may_pass_asks_the_client_to_come_back() {
        for reason in EndReason::ALL {
            let code = CloseReason::Ended(reason).close_frame().map(|(code, _)| code);
            assert_eq!(code == Some(1013), reason.is_fault() || reason == EndReason::JoinFailed, "{reason}");
        }
    }
}
