//! Where the time goes, what pays, where the crate loses, and how to choose settings.
//!
//! All figures were measured on two cores of a shared virtual machine and are recorded under `perf/`, with the commands
//! that repeat them; a page there says so where no command repeats a figure. Compare figures of one table only:
//! machines differ, and one machine differs from hour to hour. The *baseline* is the usual design, a bounded queue and
//! a task per viewer (see [`internals`](crate::docs::internals#the-first-idea-a-queue-and-a-task-per-viewer)).
//!
//! # Where the time goes
//! ## Per delivery
//! Without a network, with sinks that only count, a delivery takes these times in ns until the last participant has the
//! message (`perf/README.md`, "A broadcast"):
//!
//! | participants | one at a time: baseline | lanecast | in bursts of 16: baseline | lanecast |
//! |---|---|---|---|---|
//! | 16 | 1,500 | 478 | 230 | 125 |
//! | 1,000 | 311 | 45 | 112 | 2.8 |
//! | 16,000 | 893 | 50 | 833 | 6.9 |
//! | 64,000 | 1,200 | 136 | 886 | 8.0 |
//!
//! A burst is cheaper because a visit to a participant hands over everything that waits, and flushes once. Counted in
//! instructions, a delivery is 415, or 31 in a burst (`perf/results/instructions.md`). At 64,000, the participants'
//! state no longer fits the caches.
//!
//! In a profile of single broadcasts to 16,000 participants, the sinks' flush (here one locked addition) is 29 % of the
//! time, handing the message over in order with direct messages 20 %, finding the participant 19 %, deciding what its
//! sink needs 10 %, and the accounts 9 %. The publisher is 4 %, and everything else 7 % (`perf/README.md`, "Where a
//! delivery's time goes").
//!
//! ## Per write
//! On a socket, nearly all of a delivery is the kernel's write: 3.3 µs on loopback, plus 0.019 ns a byte
//! (`perf/growth.md`). With 1,000 WebSocket clients a delivery takes 5.7 µs of processor time, writes included. That is
//! 1.16 times what a bare loop of writes takes, or 1.08 times in a repetition (medians of the ratios within a round;
//! `perf/results/peers.md`, and `perf/README.md`, "On real sockets"). With thousands of clients the difference is 0.3
//! to 0.6 µs. It is memory access, because member, sink and connection have left the cache since their last message.
//!
//! ## Per publish
//! [`broadcast`](crate::Session::broadcast) takes its caller 115 ns with 16 participants and 255 ns with 16,000. Each
//! shard that sleeps costs another 1.2 µs, for waking it.
//!
//! # What pays
//! - **Messages that arrive together.** Only gathering divides the cost of a write. Publish what belongs together back
//!   to back, or as one message. Under load this happens without help: from 1,000 broadcasts a second on, a shard takes
//!   several at once, and 10,000 a second to 1,000 participants take 5 % of a core (without a network). On LiveKit, a
//!   burst of 64 small frames is one packet to each viewer, and a packet costs 10 to 15 µs.
//! - **Sinks that take runs.** A sink that overrides [`start_send_run`](crate::RunSink::start_send_run) needs no clone
//!   of each message. To 1,000 participants, a delivery then takes 45 ns instead of 52, and 2.8 instead of 14 in bursts
//!   (`perf/results/comparison.md`). Those of the WebSocket room and of the LiveKit room do so.
//! - **Payloads that clones share**, as [`bytes::Bytes`] does. Without a network their length then costs nothing.
//! - **Topics without subscribers.** [`broadcast_to`](crate::Session::broadcast_to) writes nothing to the log then, and
//!   [`publish_with`](crate::telemetry::AdvertisedChannel::publish_with) doesn't even compute the message.
//!
//! # What doesn't pay
//! - **As many shards as cores.** With two cores and sinks that only count, a second shard spent twice the processor
//!   time in the same 0.45 ms per broadcast to 16,000. (Part of that is the counter that the sinks share.)
//! - **Batching large messages on LiveKit.** A frame of 4 KiB takes the transport 100 to 150 µs either way.
//! - **`io_uring`** saves a tenth of a delivery with thousands of clients and nothing with a hundred. The crate doesn't
//!   use it (`perf/io-uring.md`).
//!
//! # Where the crate loses
//! - **Small sessions.** One message at a time to 16 viewers is little more than waking two threads, and the figures
//!   vary by more than the difference between the designs. On a LiveKit room's streams in process, one small frame at a
//!   time takes 2 to 4 times as long as in a plain loop of writes. With a transport that takes 10 µs for a packet, that
//!   can't be seen.
//! - **Idle memory.** A session takes 38 kB, whatever the number of the runtime's workers, and 1.3 kB for each
//!   participant. With 2,000 participants and a log that was full once, that is 1,765 bytes for each, and 1,553 in the
//!   baseline. After one direct message it is 3,357 and 1,585. An idle WebSocket client takes 3.5 kB, of which the bare
//!   loop needs 0.3.
//! - **Direct messages.** They gain less than broadcasts: 113 ns instead of 351 with one sending thread, 73 instead of
//!   182 with four.
//! - **Topics.** With 1,000 topics of 100 subscribers, a delivery takes 134 ns. The same deliveries to everybody take
//!   48 ns.
//! - **Joins, removals and look-ups.** In a quiet session they take about as long as in the baseline.
//! - **The tail of the latencies.** At one fixed rate and with thousands of clients, processor time is lower than that
//!   of axum with a tuned broadcast channel (7.5 and 9.2 µs per delivery to 9,000), but the 99th percentile is not: 72
//!   and 60 ms there, 30 and 28 ms with 4,000 clients. With 1,000 clients it is 1.04 times that of axum.
//! - **The highest rate.** With 1,000 clients, the highest clean rate is 0.84 of what a bare loop of gathered writes
//!   reaches. With 100 the two are alike.
//! - **Beside uWebSockets.** With 1,000 clients a delivery through `Telemetry` takes 1.01 times the processor time of
//!   uWebSockets', with 300 and 100 clients 1.05 and 0.89 times. On a machine twice as fast it was 1.17, 0.82 and 0.68
//!   times (`perf/README.md`, "Beside uWebSockets").
//! - **Connecting under load.** 1,000 clients that connect while 100 others get 1,000 messages a second take 0.21 s,
//!   and 0.10 s with the bare loop.
//! - **Large frames on LiveKit.** A frame of 15 KiB takes 1.5 to 3.8 times a plain loop's time in process, because it
//!   is copied once more for each viewer.
//!
//! # Choosing settings
//! The defaults are made for thousands of viewers. [`Session::stats`](crate::Session::stats) shows what to change:
//! [`shard_lag`](crate::SessionStats::shard_lag) is high if the shards can't keep up, and
//! [`half_full`](crate::SessionStats::half_full) if many viewers can't. Telemetry passes settings on with
//! [`configure`](crate::telemetry::TelemetryBuilder::configure).
//!
//! - **[`shards`](crate::SessionBuilder::shards)**: by default one. Their number doubles when there are 256 viewers per
//!   shard, or 16 if all shards are busy, up to one less than the runtime has workers. Each broadcast wakes every shard
//!   that sleeps, and a slot of the log has a copy of its message for each shard. So set the number to 1 if your
//!   viewers are many and your messages few, and to the number of cores if a few viewers are to be served on all of
//!   them.
//! - **[`queue_capacity`](crate::SessionBuilder::queue_capacity)**: by default 16,384, which a busy viewer fills in 9.0
//!   s at 1,820 messages a second, and in 3.3 s at 5,000. A full backlog takes 4.3 kB for each viewer if its messages
//!   are to everybody, 135 kB if they are to topics, and up to 2.5 MB if all of them were sent directly at once. Half
//!   the capacity takes about half of all these figures. Lower it if memory is short, or if viewers that are seconds
//!   behind had better start afresh.
//! - **[`queue_bytes`](crate::SessionBuilder::queue_bytes)**: by default 64 MiB. It is the limit that counts for
//!   messages of more than 4 KiB. A shard keeps a broadcast once, however many viewers wait for it, but direct messages
//!   are each viewer's own. The limit also bounds a single message. If it is twelve times the largest message or more,
//!   a viewer has the [guaranteed](crate::docs::guarantees#bound) three reactor runs before it can overflow by bytes.
//! - **[`log_capacity`](crate::SessionBuilder::log_capacity)**: by default 1,024. It is the burst that publishers can
//!   write without waiting for the shards. Raise it for longer bursts. Its slots are made as they are needed, 0.6 kB
//!   each, and kept. A longer log doesn't help shards that are too slow, and it keeps nothing for slow viewers.
//! - **[`joining_bytes`](crate::SessionBuilder::joining_bytes)**: by default 256 MiB. It bounds what is broadcast while
//!   a newcomer's initial messages are computed, so it has to exceed the rate in bytes times the time of that closure.
//!   A faster closure is better than a higher limit.
//! - **[`unsent_bytes`](crate::room::websocket::WebSocketRoomBuilder::unsent_bytes)**: by default 64 KiB. With it a
//!   stalled viewer holds 69 kB in the kernel, and 4,235 kB without a limit. A link of 100 Mbit/s with a round trip of
//!   50 ms is filled with it as without it. For a viewer whose link has proved slow it shrinks on its own
//!   (`perf/slow-links.md`).
//! - **[`linger`](crate::SessionBuilder::linger)**: by default zero, so the crate delays no message to gather more. Set
//!   it where broadcasts are frequent, viewers many, and some milliseconds don't matter. With 1,000 viewers and
//!   200 messages a second, 20 ms save seven tenths of the processor time (`perf/README.md`, "With a linger").
//!   Direct messages end the gathering: with some hundred a second to whichever viewers, nothing is saved.
//! - **Batching** has no other setting. A room of your own says in
//!   [`batch_bytes`](crate::room::Room::batch_bytes) how much one write carries best. Against loopback sockets, a
//!   full segment (65,483 bytes) is the cheapest write per byte.
