//! A room of LiveKit participants: each has a byte stream of its own, through a server (an SFU).
//!
//! This process is one participant of a LiveKit room. Every other participant that could speak the format is a viewer:
//! the room opens a byte stream on the topic `control` to it alone, and it opens one in return. A stream carries frames
//! of the [v2](crate::protocol::WireFormat::V2) format. A viewer counts as present from when it can receive. It
//! advertises its version in the attribute `protocolVersion`.
//!
//! ```no_run
//! use lanecast::room::livekit::LiveKitRoom;
//! use lanecast::telemetry::{Channel, Telemetry};
//!
//! # async fn run(url: &str, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let room = LiveKitRoom::builder(url).connect(token).await?;
//! let telemetry = Telemetry::builder(room).name("rig-7").build()?;
//! let speed = telemetry.advertise(Channel::new("/speed", "json")).await?;
//! speed.publish(r#"{"kmh":42}"#).await?;
//! # Ok(()) }
//! ```
//!
//! # A stalled uplink and a stuck stream
//! All streams leave through one reliable data channel, which the SDK stops filling while 2 MiB wait in it. The data
//! channel is therefore an [uplink](crate::Uplink) that all participants share: while it is congested, publishers are
//! held back and no participant is reset. If nothing moves for [`stall_after`](LiveKitRoomBuilder::stall_after), the
//! session reports [`UplinkStalled`](crate::SessionEvent::UplinkStalled); it does so too while the SDK reconnects. A
//! stream that doesn't move while others do is stuck on its own, and its participant is reset. To detect that while no
//! other participant is being written to, the room keeps a stream to itself, which the server passes on to nobody, and
//! writes a byte to it when all other streams are quiet.
//!
//! # Slow viewers
//! The server takes what this host sends whether or not a viewer keeps up, so no viewer is slow here: a slow viewer's
//! messages wait in the server's buffer for its connection, and its frames arrive late. By default, livekit-server 1.13
//! drops nothing of a reliable stream while that connection stands, and lets the buffer grow: a viewer that reads more
//! slowly than this host publishes falls further and further behind. The viewer can tell by the log times of the
//! messages, and by the round trips of its pings. This ends when the server gives up the viewer's connection, some 20 s
//! after the connection has gone dead; the viewer then rejoins and starts afresh. A viewer that has pinged and falls
//! silent is [reported](crate::SessionEvent::Unresponsive).
//!
//! A server whose `rtc.datachannel_slow_threshold` or `rtc.data_channel_max_buffered_amount` is set drops chunks for a
//! viewer that reads more slowly than that. The viewer's SDK notices that a chunk is missing, and ends the stream with
//! an error, of which this host is not told. The viewer has to rejoin, and then starts afresh.
//!
//! # Lost connections
//! | event | consequence |
//! |---|---|
//! | the SDK reconnects and resumes | the uplink is stalled until then; the streams go on |
//! | the SDK reconnects with a fresh connection | every participant leaves and comes back, and has to open a fresh stream to this host as well: whatever it writes to the old one is lost |
//! | the connection is lost permanently, or takes nothing for [too long](LiveKitRoomBuilder::lost_after) | a room that was [connected](LiveKitRoomBuilder::connect) once ends the session with [`LiveKitError::Disconnected`] or [`LiveKitError::Stalled`]; in a [supervised](LiveKitRoomBuilder::connect_supervised) room every participant leaves, and the room connects again |
//! | another participant uses our identity, or the server removes us | the session ends, whether or not the room is supervised |
//!
//! # Limits
//! This host's uplink carries each viewer's copy of a message, as each viewer has a stream of its own. A frame has at
//! most 16 MiB, and a stream carries at most [4 GB](LiveKitRoomBuilder::stream_bytes), after which its participant is
//! reset: readers of the official SDK give up a stream above 5 GB. Data that a participant sends waits without bound in
//! the SDK until this room reads it.

mod builder;
mod driver;
mod error;
mod ids;
mod link;
mod room;
mod shared;
mod supervise;
#[cfg(feature = "livekit-token")]
mod token;
mod uplink_probe;

pub use self::builder::LiveKitRoomBuilder;
pub use self::error::LiveKitError;
pub use self::ids::NotLiveKitSid;
pub use self::room::LiveKitRoom;
pub use self::shared::Connection;
#[cfg(feature = "livekit-token")]
pub use self::token::{TokenError, TokenRequest};
