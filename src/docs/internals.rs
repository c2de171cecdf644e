//! How the crate carries messages, and why it is built this way.
//!
//! This page is for readers of the source. Nothing on it is part of the API: the promises are in
//! [`guarantees`](crate::docs::guarantees). Names without a link are private items. `ARCHITECTURE.md` defines the
//! words, and lists where bytes wait and what wakes what. Figures are from `perf/README.md` unless another page is
//! named.
//!
//! # The first idea: a queue and a task per viewer
//! A server can give each viewer a bounded queue, and a task that takes messages out of the queue and writes them. A
//! broadcast puts a clone of the message into every queue. A viewer whose queue is full is too slow and is reset. This
//! is the usual design, and it is correct: no viewer delays the publisher or another viewer. `benches/src/baseline` has
//! it, with channels of flume and with maps behind a lock, for every comparison.
//!
//! # Why it fails
//! The number of viewers multiplies every step: a broadcast raises the payload's reference count, pushes into a queue
//! and wakes a task for each viewer. Measured on two cores:
//! - With 16,000 viewers, a broadcast takes its publisher 10.7 ms. One at a time, broadcasts take 893 ns per delivery
//!   until the last viewer has them.
//! - Little of that concerns the message. In the profile, 20 % of the time is locks, 20 % is dropping what the tasks'
//!   `select!`s made, and 18 % is sending into the channels. Handing the message to the sink and counting it is 2 %.
//!
//! A better queue isn't enough. The comparison has a variant, `direct-queues`, in which each viewer has a lock-free
//! queue and the shards described below deliver instead of tasks. A broadcast is still a send to each queue, and takes
//! 584 ns per delivery to 16,000 viewers. If the broadcast goes through the log, the same shards and sinks take 58 ns
//! (`lanecast-cloning` in `perf/results/comparison.md`). What costs is to touch a queue for each viewer.
//!
//! # What is done instead: one log, written once
//! `BroadcastLog` is a bounded ring that the whole session shares. A publisher claims the next position by raising
//! `tail`, puts the message into the slot of that position, and stores the position in the slot, which is thereby
//! filled. Each *shard*, a task that serves its share of the participants, reads every entry in order. A publish makes
//! one copy of the message and looks at one flag for each shard, whatever the number of participants. With 16,000 it
//! takes 255 ns.
//!
//! The ring is that of the [LMAX Disruptor] with several publishers. There as here, each reader reads every entry, the
//! slot says which lap its entry belongs to, and publishers compare the position they claim with a cached minimum of
//! the readers' positions. The main difference is that a slot holds a copy of the message for each shard, and the shard
//! takes its copy out. So a message has to be `Send` but not `Sync`, and an entry that all shards have read leaves the
//! ring at once. The copies are in an `ArrayQueue` of crossbeam, which is [Vyukov's bounded queue]. That queue stamps
//! its slots, too, but hands each item to one reader only.
//!
//! Two properties of the claim are easily lost. A loom model has the variant without each of them, which must fail:
//! - The claim is a compare-exchange after the check for capacity. With `fetch_add`, a publisher that then finds the
//!   log full has taken a position that it can't give back. Every shard stops at that hole.
//! - The log is sealed by the top bit of `tail`. With a flag beside `tail`, a publisher can find the flag unset and
//!   claim a position above the final tail. Its message is accepted, and no shard reads it.
//!
//! An idle session's log has sixteen slots and one reader. How many it has of either is a part of the word that is
//! claimed, and each such shape has a ring of its own. So a claim fails if the log has grown meanwhile, and the
//! publisher looks up the ring again and makes the copies that are missing. Three variants must fail in a model:
//! - With the number of readers beside `tail`, a publisher that has seen one reader makes one copy, and a second reader
//!   that begins below that position finds none.
//! - A publisher that keeps the ring that it has looked up before a claim that fails writes where no shard looks.
//! - If the rings share the cached minimum of the readers' positions, a publisher that doesn't know of a new reader
//!   raises it beyond what that reader has read, and another publisher overwrites the entry.
//!
//! Between the claim and the store there is no await, no code of the embedder and no drop of a message: every shard
//! waits at a slot that is claimed and not filled.
//!
//! A shard gives slots back when it has read them, not when their messages are delivered. So a publisher waits only
//! while some shard is a whole log behind, and never for a viewer. (A stalled or congested [uplink](crate::Uplink)
//! makes publishers wait, too.) Waiting publishers queue at a semaphore of tokio, which is fair. The first of them
//! sleeps until the log has capacity.
//!
//! # Shards visit members in order
//! A shard keeps its members in a slab and works in *turns*. A turn reads the tail, takes commands and mail, reads
//! entries of the log, and then visits members. If any entry is for everybody, it visits all members in the order of
//! their slots, which is their order in memory. Otherwise it visits those that were noted: the subscribers of the
//! entries' topics, members with mail, members that their sinks have woken, and members left over from the last turn. A
//! visit hands a member that keeps up its entries and flushes its sink; the member stores nothing. The fields that such
//! a visit touches are together at the start of a cache line. A member never changes its shard, and only its shard
//! touches it, so it has no lock.
//!
//! The task runs outside tokio's cooperative budget, under which every sink would look busy after some 170 writes in
//! one poll. Instead, the shard yields after a millisecond of work, and whenever its sinks need the reactor.
//!
//! # The order across the lanes
//! A direct message doesn't go through the log but into its participant's *control queue*. So two lanes lead to a
//! participant. If one message happens before another, they must arrive in that order, whichever lanes they take. This
//! rests on three things:
//! - **The stamp.** A sender reads `tail` before it pushes. Its message belongs behind every broadcast below this
//!   stamp, and before every broadcast at or above it.
//! - **The tail.** A turn first reads the tail T, and delivers nothing at or above T.
//! - **The mail.** After its push, a sender sets the member's *mail bit*. After it has read T, a turn takes the mail
//!   bits and empties the control queues that they name.
//!
//! Suppose that a direct message happens before a broadcast below T. Then its push and its mail bit happen before the
//! claim of that broadcast. Claims are read-modify-writes with `AcqRel`, and T is read with `Acquire`. So whatever
//! happened before a claim below T is visible to the turn, which finds the message. In the other direction, suppose
//! that a broadcast happens before a direct message. Then it lies below the stamp, and the message waits until the
//! broadcast has its place.
//!
//! The types of `src/fanout/shard/reader.rs` fix the order of the steps. A `Look` reads the tail, taking the mail turns
//! the look into a `Horizon`, and only a horizon gives out entries to deliver. Each of these variants looks right, and
//! a model catches it:
//!
//! | variant | what goes wrong |
//! |---|---|
//! | take the mail first, read the tail second | a broadcast claimed in between overtakes a direct message |
//! | deliver as long as slots are filled | so does a broadcast claimed during the turn |
//! | place direct messages whatever their stamps | a direct message overtakes a broadcast that isn't read yet |
//! | claim with `Relaxed` | the turn doesn't see what happened before a claim |
//! | set the mail bit only if it is unset | a broadcast overtakes the message of the second of two senders |
//!
//! The last variant is the most tempting. Mail bits have two levels, so that the shard finds a few members among
//! thousands: a sender sets a bit in a leaf, and then a bit for that leaf in a summary. It seems that a sender may
//! return if the leaf's bit is set already, because the sender that set it also sets the summary. But that sender may
//! be between the two steps. Meanwhile the second sender publishes a broadcast. The shard reads the tail, finds the
//! summary empty, and delivers the broadcast before the second sender's message. So `Bits::set` always writes both
//! levels.
//!
//! A command (to admit a participant, to subscribe or unsubscribe one) is handled the other way round: the shard takes
//! the command first, and reads the tail second. The command takes effect at that tail, above everything that was
//! published before the command was given.
//!
//! # Sleep and wake
//! Waking a shard costs a broadcast 1.2 µs (`perf/growth.md`). A publisher must not miss a shard that sleeps, and
//! shouldn't wake one that doesn't. `Signal` is the handshake between the two:
//!
//! | the shard | a publisher or a sender |
//! |---|---|
//! | stores a flag, that it sleeps | stores its work |
//! | passes a `SeqCst` fence | passes a `SeqCst` fence |
//! | looks for work once more | loads the flag, and wakes the shard if it is set |
//!
//! Each side raises a flag and then looks at the other side's, as the processes do in [Dekker's algorithm]. Here, too,
//! at least one of them sees the other's. Release and acquire don't ensure that: both sides may read old values, and
//! the shard sleeps on its work. The fences rule that out. They are fences and not `SeqCst` accesses because the model
//! checker, loom, supports the former and takes the latter for `AcqRel`. A publisher needs one fence for all shards.
//!
//! The shard looks for work at the slot at its position, not at the tail. Behind a slot that is claimed and not filled,
//! the tail would keep it spinning until the publisher's thread runs again. Models catch this variant, the one without
//! fences, and a shard that looks for work before it stores its flag.
//!
//! The flag of a shard that lets broadcasts gather ([`linger`](crate::SessionBuilder::linger)) is a position: a publish
//! below it leaves the shard asleep. Before it sleeps, the shard checks the slot of that position, the seal, publishers
//! that wait, urgent messages, and the log's bytes. Models catch the variant without that look, and a direct message
//! that wakes the shard only as a publish would.
//!
//! The same handshake serves publishers that wait for the log (where the shard is the waker), the event loop that waits
//! for pending resets, and tasks that wait for a participant's capacity (`CapacityNotify`).
//!
//! Each member has a waker of its own, which sets the member's *ready bit* and then wakes the shard. So a socket that
//! becomes writable costs a visit to one member.
//!
//! # The control queue: a chain of bounded queues
//! An `ArrayQueue` allocates all of its slots when it is made. `ControlQueue` is therefore a chain of them: the first
//! has 16 slots, and whenever the newest is full, one with four times as many follows, up to as many as messages may
//! wait. With the short first queue, a participant that got one direct message takes 3.2 kB instead of 59.8 (with a
//! capacity of 1,024). A push goes to the newest queue that the sender sees. The queues stay for as long as their
//! participant does.
//!
//! A drain has to hand over messages in the order of their pushes while senders go on pushing. To empty the queues from
//! the oldest to the newest is wrong. A sender may push into an old queue that was just emptied, learn of the next
//! queue, and push its next message there. The drain would hand over the second message and leave the first. So a drain
//! takes a message out of the newest queue and holds it back, empties the older queues, hands over what it finds there,
//! and only then the message that it holds. Everything that was pushed before that message is in an older queue by
//! then, or has come out. The older queues are emptied by the same rule, each with a message held back. Models catch
//! three variants: oldest first; a message held back of the newest queue alone, which is right for two queues and wrong
//! for three; and pushes that go back to the first queue when that has a free slot.
//!
//! # Runs and retained entries
//! Adjacent entries of a turn that have the same audience form a *run*. A member is told of a run once, and its sink is
//! shown the run in [one call](crate::RunSink::start_send_run). Each broadcast has an [id](crate::BroadcastId). The
//! WebSocket room's sinks encode into a buffer that passes from sink to sink on one thread, and whose messages are
//! known by their ids. A sink that is shown the same messages as the last one overwrites only the bytes that differ
//! between viewers. In bursts of 16, a delivery to one of 1,000 participants takes 2.8 ns, instead of 45 one at a time
//! (with sinks that only count).
//!
//! A message for a busy member can't stay in the ring, because that would hold publishers back. The shard *retains* it,
//! once for all members that need it, with a count of them. The count is a plain integer, since only the shard touches
//! it. The member's backlog names the message by the key under which it is retained. Messages that are kept one after
//! another usually have consecutive keys, and any number of such broadcasts to everybody is one item of eight bytes. A
//! broadcast to a topic is an item of its own, because it has the subscriber's tag. The last member that needs a
//! message takes it away. If 1,024 messages wait for each of 2,000 participants, a participant takes 2,063 bytes in
//! all, and 34,270 in the baseline.
//!
//! # Droppable messages
//! A topic's class makes no difference to a member that keeps up: the run goes from the log into its sink. If the
//! member is behind, messages of lossy and latest topics wait beside its backlog, in `LossyQueues`: a queue per topic,
//! of references to retained entries. So they can be dropped one by one, without touching the reliable order, and
//! topics can share a slow link by [deficit round robin]. Three details look optional and aren't:
//! - A droppable message goes straight into the sink only if no other waits, of whatever topic. Otherwise the topic
//!   that a turn reads first would pass the others by in each turn.
//! - Such messages in an unfinished flush are counted apart from the others, so a slow flush doesn't use up the bound.
//! - Members that are behind are visited at the end of a walk. Their own batches would overwrite the encoded bytes that
//!   the sinks of all others reuse.
//!
//! A late subscriber gets a topic's last messages from its shard, which keeps them as it reads the log. A ring that
//! publishers wrote beside the log would race with the log: written after the claim, it could miss a message below the
//! subscription's position; written before, it could repeat one above it.
//!
//! A topic is known by a number that is never used again. Its address would do as long as it lives, but a shard keeps
//! queues and messages of a topic longer than that. The end of a topic is an entry of the log, with the same place
//! among its messages for every shard.
//!
//! # The bound and the read budget
//! The bound of a participant covers both lanes: its control queue, its backlog and what its busy sink holds. Messages
//! and bytes are counted in one atomic word, so one compare-exchange checks and reserves both. (If a sender added first
//! and undid an excess, another sender could find a participant full that isn't.) A full control queue can't be the
//! bound, because the shard empties that queue into the backlog. For a member that keeps up, broadcasts leave the word
//! alone: they are counted only if the sink's flush doesn't complete at once.
//!
//! A busy sink can finish its flush only once tokio's reactor has run. If a shard read the whole log without a pause,
//! healthy members would overflow. `ReadBudget` therefore limits what a turn reads, and has the shard yield when it has
//! read half of that. The limit depends on the bound, so that a member that becomes busy gets a [guaranteed
//! number](crate::docs::guarantees#bound) of reactor runs before it can overflow. With the default settings a turn
//! reads up to 512 messages while all members keep up, up to 256 while some are behind, and in either case no more than
//! the message that completes 16 MiB. A turn ends earlier with a [full batch](crate::room::Room::batch_bytes) if the
//! rest wouldn't fill another one. Turns of a whole queue carry more (655,000 messages a second to 100 clients, instead
//! of 600,000), but a participant that isn't ready at that moment overflows at once or two turns later.
//!
//! # Reset
//! Several threads may want to end a participant at once: a sender that exceeds the bound, the shard whose write fails,
//! the event loop on a disconnect. One of them must act. An `Outbox` has a state word that goes `New → Live → Ended`,
//! the last with a reason, and `Outbox::end` succeeds for one caller. If the reason is a fault, or the viewer has
//! vanished, this caller adds the instance to the `PendingResets`, a skip list of crossbeam. The event loop takes the
//! oldest instance first, so that none starves. The state word makes a reset happen once, not the set.
//!
//! A message may be on its way meanwhile. Its sender pushes, passes a `SeqCst` fence and reads the state. The end
//! stores `Ended` and passes a fence before the shard drains the queue. These are Dekker's flags again: at least one of
//! the two sees the other's write, and the message is delivered or counted as lost.
//!
//! The event loop takes the instance out of the registry and asks the room for the connection that the identity has
//! now. If there is one, the loop starts a `Join`, of which each identity has at most one at a time. The join has a
//! shard fix the newcomer's position in the log. Only then does it compute the initial messages, while the broadcasts
//! from that position on gather in the newcomer's backlog.
//!
//! # The registry
//! A room may report the connections of an identity in any order. The registry keeps the latest: of two instances, the
//! one with the later `joined_at`, and of two with the same time, the one that is registered later. It has a slot per
//! identity, an `ArcSwap` in a `DashMap`. A registration loads the instance in the slot, gives up if that one joined
//! later, and otherwise replaces it by compare-and-swap. If another registration has come first, it looks again. So no
//! instance replaces a later one, and each instance that loses its place is handed to exactly one caller.
//!
//! A slot is swapped under the guard of its map entry, and leaves the map only while it holds the instance that is to
//! be removed. Without the guard, a registration could land in a slot that has just left the map, where no look-up
//! finds it. An instance goes live last, so that one that is found live is in both indexes, by identity and by sid.
//! Models catch a registration that loads and stores instead of comparing, the missing guard, and going live first.
//!
//! [`guarantees`](crate::docs::guarantees#how-it-is-checked) lists what the models cover, and what they take for
//! granted.
//!
//! [deficit round robin]: https://doi.org/10.1109/90.502236
//! [LMAX Disruptor]: https://lmax-exchange.github.io/disruptor/disruptor.html
//! [Vyukov's bounded queue]: http://www.1024cores.net/home/lock-free-algorithms/queues/bounded-mpmc-queue
//! [Dekker's algorithm]: https://www.cs.utexas.edu/~EWD/transcriptions/EWD01xx/EWD123.html
