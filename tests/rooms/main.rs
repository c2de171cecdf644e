//! The rooms that speak to viewers: over WebSockets, and over the byte streams of a LiveKit room.

#[cfg(feature = "byte-stream")]
#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "byte-stream")]
mod byte_stream;
#[cfg(feature = "websocket")]
mod websocket_broadcast;
#[cfg(feature = "websocket")]
mod websocket_hold;
#[cfg(feature = "websocket")]
mod websocket_room;
#[cfg(feature = "websocket")]
mod websocket_session;
#[cfg(feature = "websocket")]
mod websocket_time;
