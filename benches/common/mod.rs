//! Code that the benches share: a room whose participants only count, and the runtimes that are compared on it.

#[cfg(unix)]
pub(crate) mod clock;
pub(crate) mod contender;
pub(crate) mod counter;
pub(crate) mod fit;
pub(crate) mod quantile;
pub(crate) mod room;
pub(crate) mod sink;
