//! What a tokio runtime has to have for what is started on it.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::lane::caught::caught;

/// What is missing where something was to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lacking {
    Runtime,
    Timers,
}

/// The runtime here, if it has timers. Tokio tells that by a panic alone, which the process's panic hook hears.
pub(crate) fn current() -> Result<Handle, Lacking> {
    let runtime = Handle::try_current().map_err(|_| Lacking::Runtime)?;
    caught(|| drop(tokio::time::sleep(Duration::ZERO))).ok_or(Lacking::Timers)?;
    Ok(runtime)
}
