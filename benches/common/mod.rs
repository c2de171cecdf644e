//! What the benches share: a room whose participants only count, and the runtimes that are compared on it.

pub(crate) mod contender;
pub(crate) mod counter;
pub(crate) mod fit;
pub(crate) mod room;
pub(crate) mod sink;
