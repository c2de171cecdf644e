//! The streams of a LiveKit room: frames on byte streams, in either direction.
//!
//! [`ByteStreamSink`] writes frames to a participant, [`ByteStreamInbox`] reads what a participant writes. Both work on
//! the streams of `livekit-data-stream`, which is pure Rust and all that the official SDK's room has of them; so they can
//! be tried in process, without a server and without the native library.

mod inbox;
mod sink;

pub use self::inbox::ByteStreamInbox;
pub use self::sink::{ByteStreamSink, ByteStreamSinkError, StreamLimits};
