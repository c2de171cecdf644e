//! Models of the registry and of the pending resets, each with the broken variants that it must catch.
//!
//! See [`lane::loom_models`](crate::lane) for how the models are built.

mod pending;
mod registry;
