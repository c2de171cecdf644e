//! What the crate promises, the limits of those promises, how it works, and how fast it is.

pub mod guarantees;
pub mod internals;
pub mod limitations;
pub mod performance;
