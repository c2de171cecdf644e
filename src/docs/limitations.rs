//! Where it ends.
//!
//! - **A shard must not be blocked.** A sink's `poll_*`, a waker, a message's `clone` and `drop`, and a `tracing` layer
//!   run on a flush shard: what blocks there delays that shard's share of the participants. Only
//!   [`try_broadcast`](crate::Session::try_broadcast) may be called there. A panic in a sink harms its participant alone;
//!   a panic in a message's `drop` may end the session.
//! - **A broadcast is cloned once per shard, and once per participant unless the room's sinks are
//!   [shown](crate::room::Room::start_send_run) what goes to many.** A message that doesn't share its payload when it
//!   is cloned makes that expensive.
//! - **Concurrent messages have no order**, and two participants may see them differently.
//! - **Delivered means taken by the transport**: the flush of the sink succeeded. What a network does with it
//!   afterwards is the transport's.
//! - **The queue of direct messages is allocated whole** for a participant for which more than sixteen wait at once,
//!   and stays as long as it does: queue capacity × (message size + 24) bytes. One that gets a message now and then has
//!   sixteen slots, one that is never sent anything directly none.
//! - **Identities are hashed by foldhash**, seeded by chance in each process. That keeps ordinary names apart, and
//!   doesn't claim to withstand a peer that measures and searches for names that collide: let the server choose
//!   identities, or check their form.
//! - **A shard has room for 262,144 participants**; beyond that joins fail.
//! - **A closure that owns its session keeps it for ever.** What is given to the builder lives as long as the session:
//!   let it have a [`WeakSession`](crate::WeakSession).
//! - **A waiting broadcast that is kept and not polled holds up all others**, as they are served in order.
//! - **A session needs a tokio runtime with time enabled**, for as long as it lives. If the runtime goes first, its
//!   sinks are dropped and nothing is delivered.
//! - **[`Session::stats`](crate::Session::stats) looks at every participant** for the oldest message: some
//!   microseconds per thousand. Ask a few times a second, not in a loop.
//! - **A viewer that stops reading is noticed late.** As long as the buffers between us and it take bytes, it keeps up:
//!   on a WebSocket some megabytes in the kernels of both sides.
//! - **A viewer that falls silent is reported, and that is all.** It is known only of one that pings, which WebSocket
//!   viewers never do; it is reset when its writes make no progress, not for saying nothing. An outage of our own looks
//!   the same from here: every viewer that pings is silent then. Its round trip is its own word as much as ours: it is
//!   the viewer who ends it.
//! - **A `tracing` subscriber that blocks stops the workers.** The crate logs on the tasks that serve viewers. A
//!   subscriber that writes to a pipe, as `tracing_subscriber::fmt` does to standard output, waits there while nobody
//!   reads it. Give it a writer with a thread of its own that drops what it has no space for, such as
//!   `tracing_appender::non_blocking`. `lanecast serve` does so: its log and its reports never hold up a viewer.
//! - **A room takes one file descriptor per connection**, and leaves the limit of the process as it is. When none is
//!   left, the WebSocket room tries again after 10 ms to 1 s, and warns once a minute; whatever else of the process
//!   opens files fails too. Raise the limit (`RLIMIT_NOFILE`), or set the room's `max_connections` below it; `lanecast
//!   serve` does both.
//! - **Bytes are counted by the longer of a frame's two forms.** A message of a channel has four bytes less on a
//!   WebSocket than limits and figures say; what a transport adds of its own (a WebSocket's header, the prefix of five
//!   on a stream) stands in none.
//! - **A frame that lies within one chunk of a stream keeps the chunk**, however small the frame, until it is dropped.
//! - **In a LiveKit room a slow viewer is the server's to bear.** It takes what we send whether or not a viewer keeps
//!   up, and keeps it: see [the room](crate::room).
//! - **Where an uplink is shared, a stuck stream holds the others up once**, for up to half a second if messages come
//!   faster than half its queue in that time: so long it takes to tell it from the uplink. While the uplink itself is
//!   congested, joins and subscriptions wait as publishers do.
//! - **All channels are reliable.** There is no lossy mode in which a slow viewer gets the latest value only.
//! - **Broadcasts with few participants gain little.** With some dozens of viewers a task per viewer is as fast; what
//!   the log buys grows with their number.
