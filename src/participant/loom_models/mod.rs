//! Models of who is registered and who waits to be reset, each with the broken variants that it has to catch.
//!
//! See [`lane::loom_models`](crate::lane) for how they are made.

mod pending;
mod registry;
