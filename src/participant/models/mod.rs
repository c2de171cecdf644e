//! Models of the registry and of the pending resets, each with the broken variants that it must catch.
//!
//! See `fanout::models` for how the models are built.

mod pending;
mod registry;
