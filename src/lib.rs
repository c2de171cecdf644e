//! Live telemetry to thousands of participants in one session, none of whom can delay the publisher or each other.
//!
//! A device or server publishes. Each remote participant has its own reliable, ordered stream, over whatever transport
//! connects it. A participant that can't keep up is reset: its stream is torn down, and it starts afresh with its
//! initial messages. So no participant silently misses a message.
//!
//! # The parts
//! - A [`Session`] serves one room: it has the room's participants, the shards that deliver to them, and the event
//!   loop. It is built on a [`room::Room`], the transport: [`MemoryRoom`](room::memory::MemoryRoom) in process, a
//!   WebSocket server with the feature `websocket`, a LiveKit room with the feature `livekit`, or a room of your own in
//!   [thirty lines](room::Room#a-room-in-thirty-lines). A [`SessionHandle`] is a handle to a session whose type doesn't
//!   name the room.
//! - [`Session::broadcast`] writes a message once to a bounded log, whatever the number of participants. Flush shards
//!   carry it into the participants' sinks. [`Session::broadcast_to`] does the same for the subscribers of a [`Topic`].
//! - [`Participant::send`] sends to one participant, through that participant's own bounded queue.
//! - [`SessionBuilder::initial`] computes the messages that a participant gets first, when it joins and after each
//!   reset.
//!
//! # Guarantees and limitations
//! [`docs::guarantees`] states what the crate promises about order, bounds, joins, resets and ends.
//! [`docs::limitations`] states what it doesn't promise. [`docs::internals`] explains how the crate works, and
//! [`docs::performance`] where the time goes and how to choose settings.
//!
//! # Features
//! No feature is on by default, and the core needs none.
//! - `serde`: statistics, such as [`SessionStats`], can be serialized.
//! - `telemetry`: channels, subscriptions and the wire formats that viewers speak.
//! - `websocket`: a room that is a WebSocket server; implies `telemetry`.
//! - `byte-stream`: the streams of a LiveKit room without the room, in pure Rust; implies `telemetry`.
//! - `livekit`: a room of LiveKit participants, on the official SDK; implies `byte-stream`. Building it downloads the
//!   SDK's native library.
//! - `livekit-token`: mints LiveKit tokens from an API key and its secret.
//! - `server`: the command line, `lanecast serve` and `lanecast watch`; implies `websocket` and `serde`.
//! - `server-livekit`: the command line with `--livekit`; implies `server`, `livekit` and `livekit-token`.
//! - `test-util`: for an embedder's tests. Scripts, in which a participant of a
//!   [`MemoryRoom`](room::memory::MemoryRoom) is slow, fails or panics; and `SessionBuilder::on_retired`, a hook that
//!   learns of every instance that is retired. Not for production.
//!
//! # Example
//! ```
//! use bytes::Bytes;
//! use lanecast::{Session, SessionEvent, room::{Presence, memory::MemoryRoom}};
//! use std::time::Duration;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let room = MemoryRoom::new();
//! let session = Session::builder(room.clone())
//!     .initial(|_participant| async { vec![Bytes::from_static(b"state so far")] })
//!     .build()?;
//! let mut events = session.events();
//! room.join(Presence::new("ada".parse()?, "PA_1".parse()?, 1)).await?;
//! while !matches!(events.next().await, Some(SessionEvent::Joined(_))) {}
//!
//! session.broadcast(Bytes::from_static(b"speed 42")).await?;
//! session.participant(&"ada".parse()?).ok_or("ada is here")?.send(Bytes::from_static(b"for ada alone"))?;
//!
//! let report = session.close(Duration::from_secs(1)).await?;
//! assert_eq!(report.account.delivered, 3);
//! # Ok(()) }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod caught;
mod contract;
pub mod docs;
mod fanout;
pub mod ids;
pub mod participant;
#[cfg(feature = "telemetry")]
pub mod protocol;
pub mod room;
mod runtime;
pub mod session;
mod sync;
#[cfg(feature = "telemetry")]
pub mod telemetry;
mod time;

pub use self::contract::{
    Abandoned, Account, BroadcastId, BroadcastRun, Class, Dropped, EndReason, Hold, Latest, Losses, Lossy, Message,
    Profile, Progress, Rate, RunSink, Subscribed, SubscriptionTag, Topic, TopicStats, Unsubscribed, Uplink,
    UplinkWrite, Weight,
};
pub use self::ids::{ClientId, IdError, ParticipantIdentity, ParticipantSid};
pub use self::participant::{Participant, ParticipantStats, SendError, TrySendError};
pub use self::session::{
    BroadcastError, BuildError, CloseError, CloseReport, ControlStream, Events, InstanceId, JoinError, OverloadPolicy,
    Refusal, Resets, Session, SessionBuilder, SessionEvent, SessionHandle, SessionStats, TryBroadcastError,
    WeakSession, WeakSessionHandle,
};

/// Compiles the README's example as a doctest.
#[cfg(all(doctest, feature = "websocket"))]
#[doc = include_str!("../README.md")]
struct Readme;
