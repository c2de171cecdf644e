//! What a session promises, however its threads interleave.
//!
//! # Order
//! A message is *droppable* for a participant if its topic is [lossy or latest](crate::Class), or if the participant's
//! subscription has a [rate of its own](crate::Participant::subscribe_at). Every other message is *reliable*. If one
//! send or broadcast of a reliable message *happens before* another (the same thread did both, or one thread learned of
//! the first before it did the second), every participant that gets both gets them in that order. This holds across the
//! lanes: between direct messages, broadcasts to everybody and broadcasts to topics. Two concurrent messages may arrive
//! in either order. If one of them is direct, the order may differ between participants.
//!
//! The droppable messages of one topic arrive in the order of their broadcasts, as far as they arrive. No order is
//! promised between two such topics, or between droppable and reliable messages: a participant that is behind gets
//! reliable messages first.
//!
//! A participant gets its initial messages before anything else. Between two resets it gets every reliable message
//! exactly once: no gap, no duplicate. It gets each droppable message at most once.
//!
//! # Classes
//! A topic has a [`Profile`](crate::Profile), which may change at any time. It says what may be lost at a participant
//! that is behind. A participant that keeps up gets every message of every class, unless a rate says otherwise.
//!
//! | class | a participant that is behind gets | what may wait for it |
//! |---|---|---|
//! | reliable | every message in order, until it overflows | the session's bound, see [below](#bound) |
//! | [lossy](crate::Lossy) | the newest messages | by default 64 messages, 4 MiB, for 1 s |
//! | [latest](crate::Latest) | the newest message | one message, for any time |
//!
//! - **No reset.** A droppable message never counts against a participant's bound, and never resets it.
//! - **Age.** It runs from when the participant's shard reads the message until the message is handed to the sink. Time
//!   in the sink, the kernel and the network comes on top: the WebSocket room keeps it small for a slow viewer.
//! - **Shares.** Reliable messages go first. Droppable messages follow by deficit round robin: each topic's bytes are
//!   in proportion to its weight, to within one message plus 512 bytes times the weight.
//! - **Rates.** A topic and [a subscription](crate::Participant::subscribe_at) may each have a [`Rate`](crate::Rate). A
//!   rate delays the newest message and never drops it; only [`lossy_bytes`](crate::SessionBuilder::lossy_bytes) may. A
//!   participant may have a [total rate](crate::Participant::set_rate), which delays droppable messages only.
//! - **Retained messages.** A late subscriber first gets the [last messages](crate::Profile::retain) of the topic, then
//!   those that are broadcast, with no gap and no duplicate between them.
//! - **Losses.** Whatever is dropped is counted with its [reason](crate::Losses): for each participant, for each
//!   participant and topic, for each topic and for the session. Listeners are told [once a
//!   second](crate::SessionEvent::Lost) at most. [Unsubscribing](crate::Participant::unsubscribe), or
//!   [ending](crate::Session::end_topic) the topic, discards its waiting droppable and retained messages, counted as
//!   [`unsubscribed`](crate::Abandoned::unsubscribed). Its waiting reliable messages are still delivered.
//!
//! # Bound
//! The backlog of one participant, over both lanes, never exceeds the session's
//! [`queue_capacity`](crate::SessionBuilder::queue_capacity) in messages or its
//! [`queue_bytes`](crate::SessionBuilder::queue_bytes) in bytes. A message that would exceed either limit makes the
//! participant *overflow*. Initial messages don't count, nor do the broadcasts that gathered while they were computed.
//!
//! A burst of broadcasts that is longer than the capacity doesn't reset a participant that keeps up. A shard hands on a
//! quarter of the capacity, at most 512 messages, and then flushes and lets the tokio reactor run, without which a busy
//! socket can't become writable again. (With a capacity from 1,024 to 2,047 a shard hands on 512 messages as long as
//! all participants keep up.) So a participant that becomes busy gets at least four reactor runs before its backlog can
//! exceed a capacity of four or more. Where `queue_bytes` is the limit that is reached first, the participant gets at
//! least three runs with messages of at most a twelfth of `queue_bytes`, and at least one with larger messages.
//!
//! [`SessionStats::half_full`](crate::SessionStats::half_full) counts the participants whose backlog has reached half
//! of either limit.
//!
//! Where the room's sinks [share an uplink](crate::room::Room::uplink), a participant that waits for the uplink doesn't
//! overflow. Once its backlog has reached half of either limit, its shard reads no more of the log, so the log fills
//! and holds publishers back. Once its queue is full, [`send`](crate::Participant::send) gives the message back. The
//! messages that the shard had already read in that turn may exceed the limit. A participant whose write was passed by
//! writes that began later is stuck on its own account, and overflows like any other.
//!
//! # Publishers
//! [`broadcast`](crate::Session::broadcast) waits while a shard is a whole log behind (the machine is overloaded), or
//! while the uplink is stalled or full. By default it never waits for a participant. Waiting publishers are served in
//! the order in which they came, and [`try_broadcast`](crate::Session::try_broadcast) doesn't overtake them.
//!
//! With [`OverloadPolicy::Hold`](crate::OverloadPolicy::Hold) publishers are also held while more than half of the
//! participants are *heavy*, if there are at least eight. A participant is heavy once its backlog reaches half of its
//! bound, until it falls below three eighths.
//! - **What waits:** `broadcast`, `end_topic` and announcements of telemetry wait;
//!   [`try_broadcast`](crate::Session::try_broadcast) returns the message. Deliveries, direct messages, joins,
//!   subscriptions and the close go on.
//! - **No overflow in the majority:** the free half of a bound takes what the log and the shards still have, if no
//!   message exceeds an eighth of `queue_bytes`. (With a `queue_capacity` of less than 1,024, each publisher that is
//!   inside `broadcast` when a hold begins may exceed that by one message.)
//! - **Minority:** a minority that falls behind is reset, and doesn't slow the others down.
//! - **Patience:** if no heavy participant makes progress for the patience (by default 2 s), publishers continue and
//!   participants overflow. Progress by one of them holds publishers again. So a majority that has stalled delays
//!   publishers for the patience. A majority of which only a few make progress delays them for a write time-out at
//!   most: then the others are reset.
//! - **Events:** listeners are told of the first hold in a series, and of the end of the series.
//!
//! # Linger
//! With a [linger](crate::SessionBuilder::linger), broadcasts gather for up to that time, counted from the first one.
//! The time that handing them on takes, and a millisecond of timer granularity, are taken off, but no more than half of
//! the linger. Order, bounds and accounts are the same as without. Members that are behind are visited meanwhile.
//! Joins, subscriptions, direct messages, messages of an [urgent](crate::Profile::urgent) topic, a publisher that waits
//! for the log, and the close end the gathering, so none of them waits for it.
//!
//! # Faults
//! A participant is *reset* if it overflows, if its sink fails or panics, or if its sink makes no progress for the
//! write time-out (the session's, or the one that [its transport sets](crate::Progress::set_write_timeout)). The
//! session doesn't poll the sink again, counts everything undelivered as dropped with that reason, and hands the sink
//! back to the room. The event loop then asks the room for the current connection of the identity, and joins that
//! connection with a new [`ClientId`](crate::ClientId), with its initial messages first, and without subscriptions. The
//! other participants notice nothing. An identity that is reset again and again waits longer each time. Each fault of a
//! registered instance is counted and reported to listeners once, even if another instance took its place before the
//! event loop looked, and even while the session closes.
//!
//! A participant has [vanished](crate::EndReason::Vanished) if a write finds its connection gone and its room [can
//! tell](crate::room::Room::has_vanished). This is not a fault. The undelivered messages count as abandoned, and
//! listeners are told that the participant left. If the room still has the connection, the participant starts afresh as
//! after a reset, with the same back-off.
//!
//! The event that reports the end of an instance carries its account: what was delivered, and what was lost and why.
//!
//! # Rude peers
//! What viewers send takes a bounded share of the process.
//!
//! - **Reading.** A WebSocket viewer is read once, and then other tasks run before its next read. Viewers that send
//!   without pause take turns with each other, and all of them together take at most a quarter of a core.
//! - **Parsing.** A request of more than 4 KiB is parsed on a separate thread, one at a
//!   time for all viewers of a telemetry.
//! - **Memory.** All messages of more than 2 KiB that viewers have under way fit one [budget](crate::room::PeerLimits),
//!   whichever viewers send or stall, and rooms may share the budget. In addition, each connection has some 10 KiB of
//!   its own.
//! - **Waiting.** If a viewer begins such a message while the budget is used up, the viewer isn't read until there is
//!   memory for the message. This wait ends: messages are admitted in order, and a message that isn't completed in time
//!   while others wait ends its connection (in a LiveKit room, its stream).
//!
//! # Joins
//! A connection that the hook [`accept`](crate::SessionBuilder::accept) refuses is never registered. It gets the hook's
//! message, if there is one, and nothing else; both happen once per connection.
//!
//! The session first fixes the newcomer's place in the log and then computes its initial messages. Every broadcast from
//! that place on follows the initial messages. So an embedder that changes its state first and broadcasts the change
//! second has every newcomer up to date: a change that races with a join may be told twice, but never not at all.
//! Subscribing works the same way: a subscription takes effect at one position of the log, and the call returns after
//! that.
//!
//! What is broadcast while the initial messages are computed gathers under separate limits,
//! [`joining_bytes`](crate::SessionBuilder::joining_bytes) and twice the
//! [`open_timeout`](crate::SessionBuilder::open_timeout), and never counts against the ordinary ones. With the defaults
//! a closure may use its whole time-out while 5,000 messages of 10 kB are broadcast a second. Beyond these limits the
//! attempt fails ([`JoinError::Outpaced`](crate::JoinError::Outpaced)). The failure is reported, and the join is tried
//! again after a back-off. Once the initial messages are computed, the newcomer begins at once, however full the log
//! is.
//!
//! # Announcements
//! Telemetry promises more: whenever a viewer joins, it is told of each channel and status once, and of the end of a
//! channel only if it was told of the channel. A change has its place in the log, and a joiner's snapshot is made for a
//! position, so each change is either in the snapshot or follows it. No viewer hears of a channel or status that is
//! refused. Channels are announced in messages of at most 100 channels and 256 KiB; a larger channel has a message of
//! its own.
//!
//! A viewer that is told the time of the server (capability `time`) never sees that time step back, and is told it only
//! together with messages.
//!
//! # Reconnects
//! Of two connections of one identity the one that joined later wins, in whatever order the room reports them. If the
//! join times are equal, the one registered later wins. A disconnect removes only the connection that it names.
//!
//! # Accounting
//! Every message is *offered* (a direct message when it is sent, a broadcast when its shard reaches it for that
//! participant) and then either *delivered* (the flush after it succeeded), *dropped* (overflow, failure, sent to a
//! participant that had ended, or [lost](crate::Losses) because it was droppable), *abandoned* (disconnect, vanishing,
//! replacement, refusal, a failed join, close, an end of the subscription) or *waiting*. At rest the sum is exact, for
//! each participant and for the session, and for the droppable messages of [each topic](crate::Topic::stats).
//!
//! # Ends
//! [`close`](crate::Session::close) accepts no more messages, delivers what it has until the deadline, and ends every
//! task. [`cancel`](crate::Session::cancel), and dropping the last handle, do the same without delivering. If a
//! participant ends while its sink is being polled, the session doesn't poll the sink again.
//!
//! # How it is checked
//! The algorithms where threads meet are run through the model checker `loom`, each with a variant that must fail:
//! `RUSTFLAGS="--cfg lanecast_loom" cargo test --lib --release models::`. They are the claim and seal of the log, its
//! growth and that of its readers, sleep and wake of the shards, also while broadcasts gather, the order across the
//! lanes and through a participant's chain of queues, the position of a command, the waits for free places in the log
//! and for capacity in a queue, the hold of publishers, the log's bytes, the count of a topic, the teardown of a queue,
//! the pending resets, and the registry. The models check the crate's own algorithms on top of what `ArrayQueue`,
//! `ArcSwap`, `SkipSet`, `DashMap` and tokio's `Notify` promise; they don't
//! look into those crates.
//!
//! A differential test runs random operations against a plain sequential model, also where publishers are held or
//! broadcasts gather. Tests with a paused clock, on a pipe that all sinks share, check how a congested uplink is told
//! from a stuck stream. The LiveKit room is tested on a real server, with viewers of the official SDK and of another
//! author's.
