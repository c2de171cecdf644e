//! x
pub mod ids;
mod lane;
pub mod participant;
#[cfg(feature = "telemetry")]
pub mod protocol;
pub mod room;
mod semaphore;
pub mod session;
mod sync;
#[cfg(feature = "telemetry")]
pub mod telemetry;

pub use self::ids::{ClientId, IdError, ParticipantIdentity, ParticipantSid};
pub use self::lane::{
    Abandoned, Account, Dropped, EndReason, Message, Progress, Subscribed, SubscriptionTag, Topic, Unsubscribed,
};
pub use self::participant::{Participant, ParticipantStats, SendError, TrySendError};
pub use self::semaphore::{AdmissionError, Permit};
pub use self::session::{
    BroadcastError, BuildError, CloseError, CloseReport, ControlStream, Events, JoinError, Session, SessionBuilder,
    SessionEvent, SessionStats, TryBroadcastError,
};
