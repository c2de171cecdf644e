//! The streams of a LiveKit room: frames on byte streams, in either direction.
//!
//! [`ByteStreamSink`] writes frames to a participant, [`ByteStreamInbox`] reads the frames that a participant writes.
//! Both work on the streams of `livekit-data-stream`, which is pure Rust and which the official SDK's room uses as
//! well. So both can be tested in process, without a server and without the native library.
//!
//! # What the writer does, and what follows from it
//! | `ByteStreamWriter` | consequence for [`ByteStreamSink`] |
//! |---|---|
//! | A write completes when the transport has taken the chunk, not when the chunk is delivered. | Delivered means that much here as well. |
//! | A write that is dropped while it waits loses its bytes, or sends them under a number that the next chunk has as well; the next write reports success. | A write is polled to its end, or the stream is finished with it: nothing else is ever written to it. |
//! | After a failed write a later one may succeed, and leaves a gap. | After the first error every call fails. |
//! | When a writer is dropped, the reader sees a normal end. | A stream that isn't finished is closed with a reason, even if the sink is merely dropped; the reader gets an error. |
//! | Each call makes chunks of its own, the last of them short. | Frames that are handed over together are written together. |

mod chunk_buffer;
mod inbox;
mod sink;

pub use self::inbox::ByteStreamInbox;
pub use self::sink::{ByteStreamSink, ByteStreamSinkError, StreamLimits};
