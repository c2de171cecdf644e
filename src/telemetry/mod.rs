//! Telemetry for viewers: channels, subscriptions, statuses and assets.
//!
//! [`Telemetry`] is a [session](SessionHandle) whose messages are frames of the wire formats that viewers speak. The
//! room is named only when telemetry is [built](Telemetry::builder): neither `Telemetry` nor its channels are generic
//! over it.
//!
//! A viewer that joins is told the server's name and capabilities, the channels and the current statuses. It then
//! subscribes to channels, and gets their messages. A message is encoded once, whatever formats its viewers speak. Only
//! the head, which has 13 bytes in v1 and 17 bytes in v2, differs from viewer to viewer; the payload is shared.
//!
//! ```
//! use lanecast::protocol::Frame;
//! use lanecast::room::memory::MemoryRoom;
//! use lanecast::telemetry::{Channel, Published, Schema, Telemetry};
//! use std::time::Duration;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let room: MemoryRoom<Frame> = MemoryRoom::new();
//! let telemetry = Telemetry::builder(room).name("rig-7").build()?;
//!
//! let schema = Schema::new("Speed", "jsonschema", r#"{"type":"object","properties":{"kmh":{"type":"number"}}}"#);
//! let speed = telemetry.advertise(Channel::new("/speed", "json").schema(schema)).await?;
//! // The channel has no subscribers yet: this publish cost two loads.
//! assert_eq!(speed.publish(r#"{"kmh":42}"#).await?, Published::ToNobody);
//!
//! speed.unadvertise().await?;
//! telemetry.close(Duration::from_secs(1)).await?;
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//! - The embedder advertises channels, publishes messages and sets statuses. One task, the announcer, makes every
//!   change of the tables of channels and statuses, so that tables and announcements keep one order. Publishing doesn't
//!   pass through it.
//! - The requests of each viewer are handled in order: each has taken effect before the next is handled. Only asset
//!   fetches run beside other requests.
//! - What a viewer has asked for belongs to its instance (its [`ClientId`]). After a reset, a fresh `serverInfo` tells
//!   the viewer that it has to subscribe again.
//! - A participant whose transport negotiated a [dialect](crate::room::Presence::dialect) speaks v1 of the format,
//!   every other participant v2: see [`WireFormat`](crate::protocol::WireFormat) and [`Viewer::protocol`]. A
//!   participant of v2 whose attribute `protocolVersion` names an [incompatible version](IncompatibleVersion) is told
//!   so and isn't registered.
//! - Answers to a viewer wait while its queue is at least half full, and the viewer's later requests wait behind them.
//! - A viewer is told of each channel once, whenever it joins, and of the end of a channel only if it was told of the
//!   channel. Channels are announced in messages of at most 100 channels and 256 KiB; a larger channel has a message of
//!   its own.
//! - A request that crosses the end of its channel on the network causes no warning.
//! - If [`time`](TelemetryBuilder::time) is on, v1 viewers are told the time of the server with their messages.
//! - A v2 viewer may ping, and is answered. From then on its [round trip](ViewerStats::round_trip) is measured, and it
//!   is reported when it is [silent](TelemetryBuilder::silence_timeout) for too long.
//!
//! # Limits
//! Every channel is reliable: a viewer that can't keep up is reset. Services, parameters, the connection graph and
//! publishing by clients are not offered yet; a viewer that asks for one of them is told so. A viewer that asks for a
//! video track gets messages.

mod advertised;
mod builder;
mod catalog;
mod channel;
mod clock;
mod error;
mod frame;
mod handle;
#[cfg(test)]
mod tests;
mod version;
mod viewer;

pub use self::advertised::{AdvertisedChannel, Published, Sample};
pub use self::builder::TelemetryBuilder;
pub use self::channel::Channel;
pub use self::error::{AnnounceError, PublishError, TryPublishError};
pub use self::handle::Telemetry;
pub use self::version::{IncompatibleVersion, Protocol};
pub use self::viewer::{AssetRequest, Permit, TooManyInFlight, Viewer, ViewerStats};
pub use crate::protocol::Schema;
pub use crate::protocol::server::{Status, StatusLevel};

#[cfg(doc)]
use crate::{ids::ClientId, session::SessionHandle};
