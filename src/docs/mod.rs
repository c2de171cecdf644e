//! What is promised, and where it ends.

pub mod guarantees;
pub mod limitations;
