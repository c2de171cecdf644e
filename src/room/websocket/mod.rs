//! A room over WebSockets: a server on one or more TCP addresses.
//!
//! Each viewer has one connection, with one stream in each direction: a [`Frame`](crate::protocol::Frame) is a message,
//! text or binary. The viewer offers dialects as WebSocket subprotocols, and the server chooses the best of them. The
//! embedder's [hook](WebSocketRoomBuilder::on_upgrade) determines the viewer's identity.
//!
//! # How connections end
//! | what happened | close code |
//! |---|---|
//! | the viewer couldn't keep up, or a write failed (a reset), or its join failed: reconnect and start afresh | 1013 |
//! | a newer connection of the same identity took its place | 4000 |
//! | the session didn't admit it | 1008 |
//! | the session, the room or the stream was closed | 1001 |
//! | a message took too long [while others waited](super::PeerLimits) for memory: try again | 1013 |
//! | nothing was heard for the [idle time-out](WebSocketRoomBuilder::idle_timeout) | 1011 |
//! | the viewer took nothing for the [stall time-out](WebSocketRoomBuilder::stall_timeout) | none: it couldn't arrive |
//! | the viewer broke the WebSocket protocol; text that isn't UTF-8; a message over the size limit | 1002; 1007; 1009 |
//! | the viewer closed | its own code |
//!
//! A viewer that disappears, or that ends its side of the TCP connection without a close frame, is sent no close frame.
//!
//! Every close frame has a reason in words. Only the rest of the frame that was being written is sent before it; the
//! remaining backlog is discarded. A viewer that doesn't complete the close handshake in time is
//! [reset](WebSocketRoomBuilder::close_timeout).
//!
//! # Slow is not dead
//! A viewer on a slow link keeps its connection as long as its link drains: while bytes wait for the viewer, it has to
//! take some within the [stall time-out](WebSocketRoomBuilder::stall_timeout) of 34 s. The session's write time-out
//! doesn't apply. A viewer that takes everything has to be heard of within the [idle
//! time-out](WebSocketRoomBuilder::idle_timeout) of 40 s; it is, because it answers pings. Taking bytes that had to
//! wait counts as well. So a stuck viewer is closed at most 40 s after its last sign of life.
//!
//! Bytes that a proxy takes on behalf of the viewer count as taken: the server can't see how slow the viewer behind the
//! proxy is. A proxy that buffers more than 40 s of the viewer's link can make the viewer look silent; let it buffer
//! less, or raise the idle time-out.
//!
//! # What a connection costs
//! An idle connection has no buffers: reads and writes go through one buffer per thread. For a viewer that doesn't take
//! what it is sent, at most one batch waits here (64 KiB and a message; large payloads are shared by all viewers),
//! besides what the kernel has sent or holds [unsent](WebSocketRoomBuilder::unsent_bytes) (64 KiB). Both shrink for a
//! viewer whose link has proved slow. The rest waits in the session, which bounds it. What a viewer sends occupies at
//! most 10 KiB, in at most 16 messages, until it is taken; beyond that the viewer's socket isn't read. A message of
//! more than 2 KiB also takes its length from a [budget](WebSocketRoomBuilder::peer_limits) of 64 MiB for all viewers,
//! and each viewer has one such message at a time.
//!
//! # Viewers that send without pause
//! A viewer that has used up its allowance (1 ms of work, refilled at 0.5 ms per second) takes turns with other such
//! viewers at being read. Each turn is followed by a pause of at least a millisecond. Reading all of them takes at most
//! a quarter of a core, and decoding their long requests at most another quarter. Every other viewer is read at once.
//!
//! # Web pages
//! A browser lets any page that its user visits open a WebSocket to any address, this machine's own included. So with
//! the default settings, a connection is accepted
//! - if it has no `Origin` header: it comes from a program that isn't a browser;
//! - or if its `Origin` is the server itself: the host and port that its `Host` header names, or a [public
//!   URL](WebSocketRoomBuilder::public_url), since behind a proxy `Host` may be the proxy's own name for the server;
//! - or if its `Origin` is [allowed](WebSocketRoomBuilder::allow_origin).
//!
//! Any other connection, with the origin `null` included, gets 403 with a text that names the header and the setting to
//! change. On a loopback address, which can be reached from this machine only, `Host` also has to be a loopback name or
//! that of a public URL. Otherwise a page could make its own name resolve to 127.0.0.1 and pass for the server's own
//! page (DNS rebinding). On other addresses `Host` isn't checked, as their names aren't known. No header that a proxy
//! adds is trusted. The [hook](WebSocketRoomBuilder::on_upgrade) has the last word.
//!
//! # Limits
//! There is no TLS: put a proxy in front. No compression is negotiated: it would cost each viewer its own copy of each
//! payload.

mod batch;
mod bind;
mod builder;
mod close_reason;
mod connection;
mod decode;
mod directory;
mod inbox;
mod listen;
mod names;
mod origin;
mod page;
mod places;
mod reader;
mod rejection;
mod room;
mod shared;
mod sink;
mod socket;
#[cfg(test)]
mod tests;
mod unsent;
mod upgrade;
mod writer;

pub use self::builder::{BindError, WebSocketRoomBuilder};
pub use self::inbox::WebSocketInbox;
pub use self::rejection::Rejection;
pub use self::room::WebSocketRoom;
pub use self::sink::{WebSocketSink, WebSocketSinkError};
pub use self::upgrade::{Admission, UpgradeRequest};
