//! What the crate promises, the limits of those promises, and how it works.

pub mod guarantees;
pub mod internals;
pub mod limitations;
