//! What the crate doesn't do, and what its promises cost.
//!
//! - **A shard must not be blocked.** A sink's `poll_*`, a waker, a message's `clone` and `drop`, and a `tracing` layer
//!   run on a flush shard. Code that blocks there delays that shard's share of the participants. The only method that
//!   may publish from there is [`try_broadcast`](crate::Session::try_broadcast). A panic in a sink harms its
//!   participant alone.
//! - **A message's `drop` must not panic.** A panic there may end the session. If a second message's `drop` panics
//!   while the first is unwinding, for instance because both waited for one participant, the process aborts: that is
//!   Rust's rule for a panic within a panic.
//! - **A broadcast is cloned once for each shard after the first, and once per participant unless the sinks
//!   [take runs](crate::RunSink::start_send_run).** A message whose clones don't share their payload makes that
//!   expensive.
//! - **Concurrent messages have no order**, and two participants may see them in different orders.
//! - **Delivered means taken by the transport**: the flush of the sink succeeded. What the network does with the
//!   message afterwards is up to the transport.
//! - **The queue of direct messages grows and never shrinks.** It begins with sixteen slots of (message size + 24)
//!   bytes. Whenever all of its newest slots are taken, four times as many follow, up to some 1.3 times the default
//!   queue capacity in all. The slots stay as long as their participant does. A participant that is never sent a direct
//!   message has none.
//! - **What has grown stays.** A session's log and its shards grow with the session, and don't shrink when participants
//!   leave. Participants stay with the shard that they have joined: after a leave of many, shards may be uneven until
//!   others join, and more shards help those who join after them.
//! - **A backlog costs eight bytes per message to a topic**, for each participant that is behind: 131 kB at the default
//!   queue capacity. Messages to everybody cost eight bytes per uninterrupted run. The messages themselves are kept
//!   once.
//! - **A shard's memory for members doesn't shrink after a peak**: it keeps some hundred bytes for each vacant place.
//!   The cost of a broadcast depends on the members that are present, not on the peak.
//! - **Identities are hashed by foldhash**, with a random seed in each process. That spreads ordinary names, but isn't
//!   meant to withstand a peer that searches for colliding names by measuring. Let the server choose identities, or
//!   check their form.
//! - **A shard has a capacity of 262,144 participants.** Beyond that, joins fail.
//! - **A closure that owns its session keeps that session open forever.** What is given to the builder lives as long as
//!   the session: give the closure a [`WeakSession`](crate::WeakSession).
//! - **A waiting broadcast that is kept and not polled holds up all others**, because they are served in order.
//! - **A session needs a tokio runtime with time enabled**, for as long as the session lives. If the runtime ends
//!   first, the sinks are dropped and nothing is delivered. Tokio reports missing timers only by a panic:
//!   [`build`](crate::SessionBuilder::build) catches that panic, but the process's panic hook still runs.
//! - **[`Session::stats`](crate::Session::stats) looks at every participant** to find the oldest message, which takes
//!   some microseconds per thousand. Call it a few times a second, not in a loop.
//! - **The room decides whether a participant vanished or failed.** The WebSocket room tells them apart by the socket's
//!   error. The LiveKit room doesn't: a write fails there because of this host's own connection or stream, not because
//!   of a viewer that has gone, which the server reports. A custom room tells them apart in
//!   [`has_vanished`](crate::room::Room::has_vanished).
//! - **A viewer that stops reading is noticed late.** It appears to keep up as long as the buffers on the way to it
//!   take bytes. On a WebSocket these are the data on the network, 64 KiB that the kernel hasn't sent (on Linux), and
//!   the buffers of the viewer's own kernel or of a proxy, which may be megabytes. From then on the viewer has 34 s to
//!   take something: a slow viewer looks the same for that long.
//! - **A slow viewer isn't known as slow at once.** Its first batch and the kernel's window are those of a fast viewer:
//!   together up to 128 KiB, which take 4 s at 256 kbit/s, and a lossy topic's messages wait behind them. Once the link
//!   is measured, the sink is given what the link carries in 100 ms, and the kernel (on Linux) what it carries in 50 to
//!   100 ms, at least 4 KiB. A topic's age limit applies until the message is handed to the sink. Time in the sink, the
//!   kernel, a proxy or the network, including retransmission, comes on top.
//! - **A viewer that falls silent is reported, and nothing else happens.** Telemetry notices silence only of a viewer
//!   that has sent the protocol's pings, which WebSocket viewers never do. Telemetry doesn't reset it for its silence;
//!   it is reset when its writes make no progress. An outage of this host's own network looks the same from here: all
//!   viewers that ping fall silent at once. A viewer ends the measurement of its round trip, so the figure is partly
//!   self-reported.
//! - **A `tracing` subscriber that blocks stops the workers.** The crate logs on the tasks that serve viewers. A
//!   subscriber that writes to a pipe, as `tracing_subscriber::fmt` does to standard output, waits there while nobody
//!   reads the pipe. Give it a writer with a thread of its own that drops what it can't hold, such as
//!   `tracing_appender::non_blocking`. `lanecast serve` does so: its log and its reports never hold up a viewer.
//! - **A room takes one file descriptor per connection**, and leaves the limit of the process unchanged. When no
//!   descriptor is left, the WebSocket room tries again after 10 ms to 1 s, and warns once a minute. Other parts of the
//!   process that open files fail too. Raise the limit (`RLIMIT_NOFILE`), or set the room's `max_connections` below it;
//!   `lanecast serve` does both.
//! - **Bytes are counted by the longer of a frame's two forms.** A message of a channel is four bytes shorter on a
//!   WebSocket than limits and figures say. What a transport adds (a WebSocket's header, the prefix of five bytes on a
//!   stream) isn't counted.
//! - **Viewers that send often are read in turns**, even without an attack. A viewer that sends more than some 25
//!   messages a second over a long time uses up its allowance. All such viewers of a room together get some 900 reads
//!   of 4 KiB a second.
//! - **A long request waits during an attack.** A well-behaved viewer's request of more than 2 KiB then waits for some
//!   of the attackers' requests, usually for some seconds. A viewer that needs more than 20 s for one long message, or
//!   sends nothing of it for 5 s, may lose its connection then.
//! - **The SDK of a LiveKit room reads everything that arrives.** The [budget](crate::room::PeerLimits) there bounds
//!   only the frames that this crate assembles from it. Not reading a participant doesn't slow it down.
//! - **A frame that lies within one chunk of a stream keeps the whole chunk in memory**, however small the frame, until
//!   the frame is dropped.
//! - **In a LiveKit room the server carries a slow viewer's backlog.** The server takes what this host sends whether or
//!   not a viewer keeps up, and keeps it: see [the room](crate::room).
//! - **Where an uplink is shared, a stuck stream holds the others up once**, for up to half a second if the messages of
//!   that time exceed half of its queue. It takes that long to tell the stream from the uplink. While the uplink itself
//!   is congested, joins and subscriptions wait as publishers do.
//! - **A topic has one channel at a time.** Viewers show one channel per topic and report a second one as an error, so
//!   the second one is refused. Two sources of one topic share the handle of its channel.
//! - **A log time far ahead stops a viewer's clock**, where the server tells its time: the clock stands still until the
//!   other log times have caught up. Only the WebSocket room tells the time, and only in v1. The time is exact to a
//!   millisecond. For a viewer of a thousand messages a second or less, it costs one more small message with each
//!   message.
//! - **A change is announced once for each form of advertisement that is in use** (with or without a schema table).
//!   With viewers of both forms the change takes two places in the log.
//! - **Ended channels are kept while a viewer joins whose join began earlier**, for its snapshot. By default that is at
//!   most five seconds, the time-out for computing initial messages.
//! - **Web pages are known only by what their browser reports.** A WebSocket room refuses foreign pages by `Origin` and
//!   `Host`. A program can write any value there: the check keeps a user's browser from being used against that user,
//!   and is no authentication. A page whose own name is made to point to this server (DNS rebinding) is detected on a
//!   loopback address only, because elsewhere the server's names aren't known. On other addresses, check `Host` in the
//!   room's hook. A local file has the origin `null` in Chromium, as every sandboxed page has, and isn't let in.
//!   Desktop viewers send `file://`.
//! - **Connections are limited by address, and by nothing else.** One address can't take every place, but two can, and
//!   so can a trusted proxy: the viewers behind a proxy aren't distinguished.
//! - **All channels of telemetry are reliable.** [Classes](crate::Class) are for topics of a session; channels don't
//!   have them yet.
//! - **A retained topic costs memory without subscribers**: each shard keeps its last messages. It is forgotten with
//!   its [end](crate::Session::end_topic), or some time after its last handle is dropped, when the shard next looks for
//!   such topics.
//! - **A change of a topic's profile has no place in the log.** Messages that were broadcast before it, and that a
//!   shard hasn't read, may be handled either way.
//! - **Times are kept to the millisecond**: ages, and when a message that was delayed by a rate is handed on. A rate of
//!   more than a thousand messages a second hands on several in one millisecond only if they are broadcast then.
//! - **Holding publishers does nothing with few participants**: with fewer than
//!   [`at_least`](crate::Hold::at_least), eight by default, each participant that overflows is reset, as without it.
//!   Droppable messages and joining participants don't count.
//! - **A hold needs enough heavy participants at the same moment.** Viewers that fall behind one after the other, never
//!   more than the share at a time, are reset: for instance if one process reads many WebSockets in turn, and the
//!   publisher is so fast that a viewer's queue fills while the others are read. Each reset lowers the number that
//!   starts a hold. With half, the default, 84 to 100 of 100 such viewers are reset; with a
//!   [share](crate::Hold::share_percent) of 1 %, one is, and the publisher is held to what they read
//!   (`perf/README.md`). But then a few slow viewers slow down all.
//! - **Held publishers match the pace of the median participant.** A slower participant is still reset. The embedder
//!   decides what to do with a message that [`try_broadcast`](crate::Session::try_broadcast) returns.
//! - **Broadcasts with few participants gain little.** With some dozens of viewers a task per viewer is as fast; the
//!   advantage of the log grows with the number of viewers.
