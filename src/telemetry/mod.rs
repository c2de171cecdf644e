//! What viewers ask for: channels, subscriptions, assets.

mod frame;
