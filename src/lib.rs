//! Live telemetry to thousands of participants in one session, none of whom can delay the publisher or each other.
//!
//! A device or server publishes; each remote participant has a reliable, ordered stream of its own, over whatever
//! transport connects it. A participant that can't keep up is reset: torn down and started afresh with its initial
//! messages, so that it never silently misses a part.
//!
//! # The parts
//! - A [`Session`] is one room: its participants, their lanes, its event loop. It is built on a [`room::Room`], the
//!   transport: [`MemoryRoom`](room::memory::MemoryRoom) in process, a WebSocket server with the feature `websocket`, a
//!   LiveKit room with the feature `livekit`, or one of your own in [thirty lines](room::Room#a-room-in-thirty-lines).
//! - [`Session::broadcast`] writes a message once to a bounded log, whatever the number of participants; flush shards
//!   carry it into their sinks. [`Session::broadcast_to`] does the same for the subscribers of a [`Topic`].
//! - [`Participant::send`] sends to one participant, through a bounded queue of its own.
//! - [`SessionBuilder::initial`] says what a participant gets first of all, at its join and after each reset.
//!
//! # What holds
//! [`docs::guarantees`] says what is promised of order, bounds, joins, resets and ends; [`docs::limitations`] where it
//! ends.
//!
//! # Features
//! None is on by default: the core needs none.
//! - `telemetry`: channels, subscriptions and the wire formats that viewers speak.
//! - `websocket`: a room that is a WebSocket server; implies `telemetry`.
//! - `livekit`: a room of LiveKit participants, on the official SDK; implies `telemetry`, and `byte-stream`, which is
//!   its streams by themselves. Building it downloads the SDK's native library.
//! - `livekit-token`: mints tokens for it from a key and its secret.
//! - `server`: the command line, `lanecast serve` and `lanecast watch`; implies `websocket`. `server-livekit` is the
//!   same with `--livekit`.
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

pub mod docs;
pub mod ids;
mod lane;
pub mod participant;
#[cfg(feature = "telemetry")]
pub mod protocol;
pub mod room;
mod runtime;
mod semaphore;
pub mod session;
mod sync;
#[cfg(feature = "telemetry")]
pub mod telemetry;

pub use self::ids::{ClientId, IdError, ParticipantIdentity, ParticipantSid};
pub use self::lane::{
    Abandoned, Account, BroadcastId, BroadcastRun, Dropped, EndReason, Message, Progress, Subscribed, SubscriptionTag,
    Topic, Unsubscribed, Uplink, UplinkWrite,
};
pub use self::participant::{Participant, ParticipantStats, SendError, TrySendError};
pub use self::semaphore::{AdmissionError, Permit};
pub use self::session::{
    BroadcastError, BuildError, CloseError, CloseReport, ControlStream, Events, JoinError, Session, SessionBuilder,
    SessionEvent, SessionStats, TryBroadcastError, WeakSession,
};

/// The README's example, compiled.
#[cfg(all(doctest, feature = "websocket"))]
#[doc = include_str!("../README.md")]
struct Readme;
