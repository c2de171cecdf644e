//! What the crate promises, and the limits of those promises.

pub mod guarantees;
pub mod limitations;
