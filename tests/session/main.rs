//! Sessions over rooms in process: [`MemoryRoom`](lanecast::room::memory::MemoryRoom), and the stages of [`common`].

#[path = "../common/mod.rs"]
mod common;

mod accept;
mod broadcast;
mod classes;
mod close;
mod endings;
mod faults;
mod growth;
mod handle;
mod hold;
mod ids;
mod join;
mod linger;
mod order;
mod overflow;
mod queue;
mod registry;
mod reset;
mod runs;
mod shared_uplink;
mod stats;
mod stream;
mod told;
mod topics;
mod uplink;
