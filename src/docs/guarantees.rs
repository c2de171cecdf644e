//! What a session promises, whatever the interleaving.
//!
//! # Order
//! If one send or broadcast *happens before* another (the same thread did both, or one thread learned of the first
//! before it did the second), every participant that gets both gets them in that order. It holds across the lanes:
//! between direct messages and broadcasts, to everybody and to topics. Two that are concurrent may arrive in either
//! order, and in different orders at different participants if one of them is direct.
//!
//! The initial messages come first of all. Between two resets a participant gets every message once: no gap, no
//! duplicate.
//!
//! # Bound
//! What waits for one participant, over both lanes, never exceeds the session's
//! [`queue_capacity`](crate::SessionBuilder::queue_capacity) and [`queue_bytes`](crate::SessionBuilder::queue_bytes).
//! The message that would exceed it makes the participant *overflow*. Initial messages don't count, nor does what
//! gathered while they were computed. A burst longer than the capacity resets nobody who keeps up: a participant that
//! becomes busy has the reactor run at least four times before more than the capacity (of four or more) can wait for it,
//! of messages larger than a twelfth of `queue_bytes` at least once. A shard hands on a quarter of the capacity, at most
//! 512 messages, before it flushes and lets the reactor run; of a capacity from 1,024 to 2,047 it hands on 512 while all
//! keep up.
//!
//! [`SessionStats::half_full`](crate::SessionStats::half_full) says how many participants have half of their bound taken.
//!
//! Where the room's sinks [share an uplink](crate::room::Room::uplink), a participant that waits for the uplink doesn't
//! overflow: with half of its bound taken its shard reads no more of the log, and [`send`](crate::Participant::send)
//! gives the message back. What one turn has read may then stand beyond the bound. One whose write was passed by later
//! ones is stuck by itself, and bounded as ever.
//!
//! # Publishers
//! [`broadcast`](crate::Session::broadcast) waits while the shards are a whole log behind (the machine is out of
//! breath) or the uplink is stalled or full. It never waits for a participant. Those who wait are served in the order
//! they came, and [`try_broadcast`](crate::Session::try_broadcast) doesn't overtake them.
//!
//! # Faults
//! A participant that overflows, whose sink fails or panics, or makes no progress for the write time-out (the session's,
//! or the one that [its transport sets](crate::Progress::set_write_timeout)), is *reset*:
//! no further poll of its sink, everything undelivered counted as dropped with that reason, the sink handed back to the
//! room. The event loop then asks the room what it has for the identity now, and joins that: with a new
//! [`ClientId`](crate::ClientId), its initial messages first, and no subscriptions. Nobody else notices. An identity
//! that is reset again and again waits longer each time. Each fault of a registered instance is counted and told once,
//! whatever took its place before anybody looked, and while the session closes, too.
//!
//! A participant whose connection a write finds gone has [vanished](crate::EndReason::Vanished), if its room [can
//! tell](crate::room::Room::has_vanished): that is no fault. What was undelivered counts as abandoned, and listeners are
//! told that it left. If the room still has the connection, it starts afresh as after a reset, and waits as long.
//!
//! What listeners are told of an end has the account of that instance: what was delivered, and what was lost and why.
//!
//! # Rude peers
//! What a viewer sends is bounded in what it takes of the process. Of a WebSocket viewer one read is done at a time, and a viewer that sends without
//! pause is read in turns with others of its kind, which take at most a quarter of a core together. Its requests are parsed once;
//! those of more than 4 KiB on a thread apart, one at a time for all viewers of a telemetry. All long messages that
//! viewers have under way fit one [budget](crate::room::PeerLimits), which rooms may share, whoever of them sends or
//! stalls; besides, each connection has some 10 KiB of its own. A viewer whose long message finds the budget used up isn't
//! read for a while, and never for ever: messages are admitted in order, and one that isn't completed in time while others
//! wait ends its connection.
//!
//! # Joins
//! The newcomer's place in the log is fixed first, its initial messages are computed second, and every broadcast from
//! that place on follows them. So an embedder that changes its state first and broadcasts the change second has every
//! newcomer up to date: a change that races with a join may be told twice, never not at all. Subscribing works the same
//! way: it takes effect at one position of the log, and completes after that.
//!
//! What is broadcast while the initial messages are computed gathers under a bound of its own,
//! [`joining_bytes`](crate::SessionBuilder::joining_bytes) and twice the
//! [`open_timeout`](crate::SessionBuilder::open_timeout), and never counts against the ordinary one. By default a closure
//! may use its whole time-out while 5,000 messages of 10 kB are broadcast a second. Beyond the bound the attempt has failed
//! ([`JoinError::Outpaced`](crate::JoinError::Outpaced)); it is told, and tried again after a back-off. Once the initial
//! messages are there the newcomer begins at once, however full the log is.
//!
//! # Announcements
//! Telemetry goes further: a viewer is told of each channel and status once, and of the end of a channel only if it was
//! told of the channel, whenever it joins. A change has its place in the log and a joiner's snapshot is made for a
//! position, so that each change stands either in the snapshot or behind it. A channel or status that is refused was
//! never heard of. Channels are told in messages of at most 100 channels and 256 KiB; a larger channel goes alone.
//!
//! A viewer that is told the time of the server (capability `time`) never sees it step back, and gets it only with
//! messages.
//!
//! # Reconnects
//! Of two connections of one identity the one that joined later wins, in whatever order the room reports them. An equal
//! join time goes to the one registered later. A disconnect takes away only the connection it names.
//!
//! # Accounting
//! Every message is *offered* (a direct message when it is sent, a broadcast when its shard reaches it for that
//! participant) and then either *delivered* (the flush after it succeeded), *dropped* (overflow, failure, or sent to a
//! participant that had ended), *abandoned* (disconnect, vanishing, replacement, refusal, close) or *waiting*. At rest
//! the sum is exact, for each participant and for the session.
//!
//! # Ends
//! [`close`](crate::Session::close) takes no more messages, delivers what it has until the deadline, and ends every
//! task. [`cancel`](crate::Session::cancel), and dropping the last handle, do the same without delivering. A sink that
//! is polled when its participant ends isn't polled again.
//!
//! # How it is checked
//! The algorithms where threads meet (the claim and seal of the log, sleep and wake of the shards, the order across the
//! lanes and through a participant's chain of queues, the position of a command, the waits for room in the log and for
//! capacity in a queue, the count of a topic, the teardown of a queue, the pending resets, the registry) are run through
//! the model checker `loom`, each with a variant that must fail: `RUSTFLAGS="--cfg lanecast_loom" cargo test --lib
//! --release loom`. The models check our algorithms on top of what `ArrayQueue`, `ArcSwap`, `SkipSet`, `DashMap` and
//! tokio's `Notify` promise; they don't look into those crates. A differential test runs random operations against a
//! plain sequential model. What tells a congested uplink from a stuck stream has tests on a pipe that all share, by a
//! paused clock; the LiveKit room is tried on a real server, with viewers of the official SDK and of another author's.
