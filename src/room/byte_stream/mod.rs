//! The streams of a LiveKit room: frames on byte streams, in either direction.
//!
//! [`ByteStreamSink`] writes frames to a participant, [`ByteStreamInbox`] reads what a participant writes. Both work on
//! the streams of `livekit-data-stream`, which is pure Rust and all that the official SDK's room has of them; so they
//! can be tried in process, without a server and without the native library.
//!
//! # What the writer does, and what follows from it
//! | `ByteStreamWriter` | so [`ByteStreamSink`] |
//! |---|---|
//! | A write answers when the transport has taken the chunk, not when it is delivered. | Delivered means that much here as well. |
//! | A write that is dropped while it waits loses its bytes, or sends them under a number that the next chunk has as well; the next write says that all is well. | A write is polled to its end, or the stream with it is finished: nothing else is ever written to it. |
//! | After a write that failed a later one may succeed, and leaves a hole. | After the first error every call fails. |
//! | A writer that is dropped makes the reader see a normal end. | A stream that isn't finished is closed with a reason, also when the sink is merely dropped; the reader gets an error. |
//! | Each call makes chunks of its own, the last of them short. | Frames that are handed over together are written together. |

mod batch;
mod inbox;
mod sink;

pub use self::inbox::ByteStreamInbox;
pub use self::sink::{ByteStreamSink, ByteStreamSinkError, StreamLimits};
