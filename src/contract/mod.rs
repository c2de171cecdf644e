//! The types that the core and the transports share.
//!
//! A room imports this module, and nothing of the [fan-out](crate::fanout), of participants or of sessions. Of the wire
//! formats, this module knows one enum: the dialect that a transport may negotiate.

pub(crate) mod account;
pub(crate) mod end_reason;
pub(crate) mod hold;
pub(crate) mod message;
pub(crate) mod presence;
pub(crate) mod profile;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod run_sink;
#[cfg(feature = "serde")]
pub(crate) mod seconds;
pub(crate) mod topic;
pub(crate) mod uplink;

pub use self::account::{Abandoned, Account, Dropped, Losses, TopicStats};
pub use self::end_reason::EndReason;
pub(crate) use self::end_reason::Ending;
pub use self::hold::Hold;
pub use self::message::Message;
pub use self::presence::{Attributes, Presence};
pub use self::profile::{Class, Latest, Lossy, Profile, Rate, Weight};
pub use self::progress::Progress;
pub use self::run::{BroadcastId, BroadcastRun};
pub use self::run_sink::RunSink;
pub use self::topic::{Subscribed, SubscriptionTag, Topic, Unsubscribed};
pub(crate) use self::uplink::UplinkState;
pub use self::uplink::{Uplink, UplinkWrite};
