//! The life cycle of a session: participants join, fail, are reset and leave, and the session ends.
//!
//! A session owns its flush shards, its event loop and every task they start. The event loop takes room events and
//! pending resets in turn and decides what to do. Everything that waits runs in tasks of its own, at most one per
//! identity.

mod accept;
mod backoff;
mod builder;
mod close;
mod closing;
mod core;
mod erased;
mod error;
mod event_loop;
mod events;
mod feed;
mod goodbye;
mod handle;
mod join;
mod member;
mod overload;
mod report;
mod settings;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

pub use self::accept::Refusal;
pub use self::builder::SessionBuilder;
pub use self::erased::{SessionHandle, WeakSessionHandle};
pub use self::error::{BroadcastError, BuildError, CloseError, JoinError, TryBroadcastError};
pub use self::events::{Events, InstanceId, SessionEvent};
pub use self::handle::{Session, WeakSession};
pub use self::overload::OverloadPolicy;
pub use self::stats::{CloseReport, Resets, SessionStats};
pub use self::stream::ControlStream;
