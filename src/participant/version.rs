//! The protocol that a participant speaks, and whether this crate supports it.

use std::fmt;
use std::sync::Arc;

use semver::Version;

/// The attribute in which a participant advertises its version.
pub(crate) const VERSION_ATTRIBUTE: &str = "protocolVersion";

/// The lowest version that this crate supports, and the version of a participant that advertises none.
const LOWEST: Version = Version::new(2, 2, 0);

/// The version that this crate implements. Versions with its major version are accepted from [`LOWEST`] on.
const OURS: Version = Version::new(2, 3, 0);

/// The length to which an error cuts the advertised version, in characters.
const SHOWN: usize = 64;

/// The protocol that a participant speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// The version that the participant advertises in its attributes, or 2.2.0 if it advertises none.
    Version(Version),
    /// The protocol that the transport has negotiated: a WebSocket's subprotocol.
    Negotiated(Arc<str>),
}

impl Protocol {
    /// Checks an advertised version. It must have the same major version as [`OURS`] and not be below 2.2.0, which is
    /// also the default.
    pub(crate) fn from_advertised(advertised: Option<&str>) -> Result<Self, IncompatibleVersion> {
        let Some(text) = advertised else { return Ok(Self::Version(LOWEST)) };
        match Version::parse(text) {
            Ok(version) if version.major == OURS.major && version >= LOWEST => Ok(Self::Version(version)),
            Ok(_) | Err(_) => Err(IncompatibleVersion { advertised: text.chars().take(SHOWN).collect() }),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => fmt::Display::fmt(version, f),
            Self::Negotiated(name) => f.write_str(name),
        }
    }
}

/// The participant advertises a protocol version that this crate doesn't support. The participant isn't registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol version {advertised:?} is not supported: use {}.x from {LOWEST} on, {OURS} is best",
    OURS.major
)]
#[non_exhaustive]
pub struct IncompatibleVersion {
    /// The version that the participant advertised, cut to 64 characters.
    pub advertised: String,
}
