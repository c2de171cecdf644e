//! Where it ends.
//!
//! - **A shard must not be blocked.** A sink's `poll_*`, a waker, a message's `clone` and `drop`, and a `tracing` layer
//!   run on a flush shard: what blocks there delays that shard's share of the participants. Only
//!   [`try_broadcast`](crate::Session::try_broadcast) may be called there. A panic in a sink harms its participant alone.
//! - **A message's `drop` must not panic.** One that does may end the session. If a second one does while the first is
//!   unwinding, for instance two messages that waited for one participant, the process aborts: that is Rust's rule for a
//!   panic within a panic.
//! - **A broadcast is cloned once per shard, and once per participant unless the room's sinks are
//!   [shown](crate::room::Room::start_send_run) what goes to many.** A message that doesn't share its payload when it
//!   is cloned makes that expensive.
//! - **Concurrent messages have no order**, and two participants may see them differently.
//! - **Delivered means taken by the transport**: the flush of the sink succeeded. What a network does with it
//!   afterwards is the transport's.
//! - **The queue of direct messages grows and never shrinks**: from sixteen slots of (message size + 24) bytes, fourfold
//!   whenever more messages wait for the shard at once, up to some 1.3 times the queue capacity. It stays as long as its
//!   participant does. A participant that is never sent anything directly has none.
//! - **A backlog costs eight bytes per message to a topic**, for each participant that is behind: 131 kB of the default
//!   queue capacity. Messages to everybody cost eight bytes per uninterrupted run. The messages themselves are kept once.
//! - **A shard's memory for members doesn't shrink after a peak**, some hundred bytes for each vacant place. A broadcast
//!   costs what is there.
//! - **Identities are hashed by foldhash**, seeded by chance in each process. That keeps ordinary names apart, and
//!   doesn't claim to withstand a peer that measures and searches for names that collide: let the server choose
//!   identities, or check their form.
//! - **A shard has room for 262,144 participants**; beyond that joins fail.
//! - **A closure that owns its session keeps it for ever.** What is given to the builder lives as long as the session:
//!   let it have a [`WeakSession`](crate::WeakSession).
//! - **A waiting broadcast that is kept and not polled holds up all others**, as they are served in order.
//! - **A session needs a tokio runtime with time enabled**, for as long as it lives. If the runtime goes first, its
//!   sinks are dropped and nothing is delivered. Tokio tells by a panic alone that it has no timers:
//!   [`build`](crate::SessionBuilder::build) catches that, and the process's panic hook hears it.
//! - **[`Session::stats`](crate::Session::stats) looks at every participant** for the oldest message: some
//!   microseconds per thousand. Ask a few times a second, not in a loop.
//! - **Vanished or failed is the room's word.** The WebSocket room tells them apart by what the socket says. The LiveKit
//!   room doesn't: a write there fails for our own connection or stream, not for a viewer that has gone, which the server
//!   reports. A room of your own says so in [`has_vanished`](crate::room::Room::has_vanished).
//! - **A viewer that stops reading is noticed late.** As long as the buffers between us and it take bytes, it keeps up:
//!   on a WebSocket what is on its way, 64 KiB unsent (on Linux), and what its own kernel or a proxy takes, which may be
//!   megabytes. Then it has 34 s to take something: a slow viewer looks the same for that long.
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
//! - **Viewers that send often are read in turns**, also without an attack: more than some 25 messages a second for long use
//!   up a viewer's allowance, and all such viewers of a room together get some 900 reads of 4 KiB a second.
//! - **Under attack a long request waits.** A viewer's own request of more than 2 KiB then waits for some of the attackers',
//!   usually for some seconds. A viewer that needs more than 20 s for one long message, or sends nothing of it for 5 s, may
//!   lose its connection then.
//! - **The SDK of a LiveKit room reads whatever comes.** The [budget](crate::room::PeerLimits) there bounds what this crate
//!   puts together of it; a participant that isn't read is held up by nothing.
//! - **A frame that lies within one chunk of a stream keeps the chunk**, however small the frame, until it is dropped.
//! - **In a LiveKit room a slow viewer is the server's to bear.** It takes what we send whether or not a viewer keeps
//!   up, and keeps it: see [the room](crate::room).
//! - **Where an uplink is shared, a stuck stream holds the others up once**, for up to half a second if messages come
//!   faster than half its queue in that time: so long it takes to tell it from the uplink. While the uplink itself is
//!   congested, joins and subscriptions wait as publishers do.
//! - **A topic has one channel at a time.** Viewers show one per topic and report a second one as an error, so it is
//!   refused. Two sources of one topic share the handle of its channel.
//! - **A log time far ahead stops a viewer's clock**, where the server tells its time: the clock stands still until the
//!   other log times have caught up. Only the WebSocket room tells the time, and only in v1; it isn't coarser than a
//!   millisecond, and costs a viewer of a thousand messages a second or less one more small message for each.
//! - **A change is announced once for each form of advertisement that is in use** (with or without a schema table):
//!   with viewers of both it takes two places in the log.
//! - **Ended channels are kept while a viewer joins that began before**, for its snapshot: five seconds at most by
//!   default, which is how long computing the initial messages may take.
//! - **Web pages are known by what their browser says of them.** A WebSocket room turns foreign ones away by `Origin`
//!   and `Host`, which a program can write as it likes: that keeps a user's browser from being used against that user,
//!   and is no authentication. A page whose own name is made to point to this server (DNS rebinding) is told on a
//!   loopback address only, since elsewhere the server's names aren't known: there, check `Host` in the room's hook. A
//!   local file has the origin `null` in Chromium, as every sandboxed page has, and isn't let in; desktop viewers send
//!   `file://`.
//! - **Connections are limited by address, and by nothing else.** One address can't take every place, but two can, and so can
//!   a trusted proxy: the viewers behind it aren't told apart.
//! - **All channels are reliable.** There is no lossy mode in which a slow viewer gets the latest value only.
//! - **Broadcasts with few participants gain little.** With some dozens of viewers a task per viewer is as fast; what
//!   the log buys grows with their number.
