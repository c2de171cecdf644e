//! x
pub mod ids;
mod lane;
mod semaphore;
mod sync;
pub mod participant;
pub mod room;
#[cfg(feature = "telemetry")]
pub mod protocol;
#[cfg(feature = "telemetry")]
pub mod telemetry;
pub use ids::*; pub use lane::{Progress, EndReason, Message}; 
