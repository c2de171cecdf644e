//! Code that the benches share: a room whose participants only count, and the runtimes that are compared on it.
//!
//! The shards of a session are compiled in the bench that names its room, as they are in an embedder's program. What
//! they call here for each message is marked `#[inline]`: otherwise each message would cost calls that a room in the
//! same crate as the session doesn't pay for. The same holds for the baseline.
#![allow(missing_docs, missing_debug_implementations, reason = "only the benches and one test use this")]

pub mod baseline;
#[cfg(unix)]
pub mod clock;
pub mod contender;
pub mod counter;
pub mod fit;
pub mod quantile;
pub mod room;
pub mod sink;
