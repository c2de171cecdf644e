//! The wire formats viewers speak: encode, decode, nothing else.
//!
//! A message is a value ([`ServerMessage`], [`ClientMessage`]), a frame is its encoded form
//! ([`Frame`]). Text frames are JSON objects tagged with an `op`; binary frames begin with a
//! one-byte opcode and hold little-endian integers. A frame carries no length of its own: a
//! WebSocket marks where it ends, and in a byte stream it has a [prefix](stream).
//!
//! There are two formats, [`WireFormat::V1`] on WebSockets and [`WireFormat::V2`] on streams. Who
//! decodes says which; a message that only the other one has is unknown. A message to be encoded is
//! of the format that has it, and most are of both: see [`Frame`].
//!
//! Both directions are here, because this crate contains a server and a viewer. Neither direction
//! keeps state, and decoding is total: whatever the bytes, the result is a message or a
//! [`DecodeError`], never a panic, and a length that a peer announces is only ever compared with
//! the bytes that are there.
//!
//! ```
//! use bytes::Bytes;
//! use lanecast::protocol::{ClientMessage, DecodeError, FrameKind, WireFormat, client::Subscription};
//!
//! let text = Bytes::from_static(br#"{"op":"subscribe","subscriptions":[{"id":7,"channelId":1}]}"#);
//! let message = ClientMessage::decode(WireFormat::V1, FrameKind::Text, &text)?;
//! let ClientMessage::Subscribe(subscribe) = message else {
//!     panic!("not a subscription");
//! };
//! assert_eq!(subscribe.subscriptions, [Subscription { id: 7, channel_id: 1 }]);
//! # Ok::<(), DecodeError>(())
//! ```

mod advertise;
pub mod client;
mod error;
mod format;
mod frame;
mod parameter;
mod schema;
pub mod server;
mod service;
pub mod stream;
mod subprotocol;
#[cfg(test)]
mod tests;
mod wire;

pub use client::ClientMessage;
pub use error::DecodeError;
pub use format::WireFormat;
pub use frame::{Frame, FrameKind};
pub use parameter::{Parameter, ParameterValue};
pub use schema::{Schema, SchemaTable};
pub use server::ServerMessage;
pub use subprotocol::{SUBPROTOCOLS, Subprotocol, negotiate};
