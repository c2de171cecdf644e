//! Checks that the current tokio runtime has what the crate's tasks need.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::caught::caught;

/// What the caller's context lacks: a tokio runtime, or timers in that runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lacking {
    Runtime,
    Timers,
}

/// The current runtime, if it has timers. Tokio reports missing timers only by a panic, which is caught here; the
/// process's panic hook still sees it.
pub(crate) fn current() -> Result<Handle, Lacking> {
    let runtime = Handle::try_current().map_err(|_| Lacking::Runtime)?;
    caught(|| drop(tokio::time::sleep(Duration::ZERO))).ok_or(Lacking::Timers)?;
    Ok(runtime)
}
