//! The wire formats that viewers speak: encoding and decoding, without I/O.
//!
//! A message is a value ([`ServerMessage`], [`ClientMessage`]), and a [`Frame`] is its encoded form. A text frame is a
//! JSON object tagged with an `op`. A binary frame begins with a one-byte opcode and holds little-endian integers. A
//! frame carries no length of its own: a WebSocket marks where each frame ends, and a byte stream puts a
//! [prefix](stream) before each.
//!
//! There are two formats: [`WireFormat::V1`] on WebSockets and [`WireFormat::V2`] on byte streams. Most messages are
//! the same in both. When decoding, the caller names the format of the bytes: a message that exists only in the other
//! format is refused, except message data, which would be misread. Encoding needs no format: a message that exists in
//! only one format is encoded in that format, and a [`Frame`] of message data serves both.
//!
//! Both directions are here because this crate contains a server and a viewer. Neither direction keeps state. Decoding
//! never panics: any input yields a message or a [`DecodeError`]. A length that a peer announces is only ever compared
//! with the bytes that are there.
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
mod capability;
pub mod client;
mod error;
mod format;
mod frame;
mod ops;
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

pub(crate) use wire::FAULTS;
