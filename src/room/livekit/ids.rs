//! Conversions between this crate's ids and those of the SDK.

use crate::ids::{IdError, ParticipantIdentity, ParticipantSid};

/// A sid that LiveKit did not issue: LiveKit's begin with `PA_`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the sid of a LiveKit participant: those begin with PA_")]
pub struct NotLiveKitSid(pub ParticipantSid);

impl TryFrom<livekit::id::ParticipantIdentity> for ParticipantIdentity {
    type Error = IdError;

    /// # Errors
    /// [`IdError`] if the identity is empty or too long.
    fn try_from(identity: livekit::id::ParticipantIdentity) -> Result<Self, IdError> {
        Self::new(identity.as_str())
    }
}

impl From<&ParticipantIdentity> for livekit::id::ParticipantIdentity {
    fn from(identity: &ParticipantIdentity) -> Self {
        identity.as_str().into()
    }
}

impl TryFrom<livekit::id::ParticipantSid> for ParticipantSid {
    type Error = IdError;

    /// # Errors
    /// [`IdError`] if the sid is too long.
    fn try_from(sid: livekit::id::ParticipantSid) -> Result<Self, IdError> {
        Self::new(sid.as_str())
    }
}

impl TryFrom<&ParticipantSid> for livekit::id::ParticipantSid {
    type Error = NotLiveKitSid;

    /// # Errors
    /// [`NotLiveKitSid`] if a room of another kind issued the sid.
    fn try_from(sid: &ParticipantSid) -> Result<Self, NotLiveKitSid> {
        sid.as_str().to_owned().try_into().map_err(|_| NotLiveKitSid(sid.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_there_and_back() {
        let identity: ParticipantIdentity = "ada".parse().unwrap();
        let theirs = livekit::id::ParticipantIdentity::from(&identity);
        assert_eq!(ParticipantIdentity::try_from(theirs), Ok(identity));
        assert!(ParticipantIdentity::try_from(livekit::id::ParticipantIdentity::from("")).is_err());

        let sid: ParticipantSid = "PA_7".parse().unwrap();
        let theirs = livekit::id::ParticipantSid::try_from(&sid).unwrap();
        assert_eq!(ParticipantSid::try_from(theirs), Ok(sid));
    }

    #[test]
    fn only_livekit_demands_its_prefix() {
        let other: ParticipantSid = "ws-7".parse().unwrap();
        assert_eq!(livekit::id::ParticipantSid::try_from(&other), Err(NotLiveKitSid(other)));
    }
}
