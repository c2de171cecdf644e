//! Viewers: what telemetry keeps of each of their instances, and what handles their requests.

mod answer;
pub(super) mod assets;
mod held;
pub(super) mod in_flight;
pub(super) mod instance;
mod pings;
mod pulse;
pub(super) mod requests;
mod silence;
mod stream;
mod subscriptions;
pub(super) mod viewers;
mod warnings;

pub use self::assets::AssetRequest;
pub use self::in_flight::TooManyInFlight;
pub use self::instance::{Permit, Viewer, ViewerStats};
