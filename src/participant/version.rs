//! Which protocol a participant speaks, and whether we do.

use std::fmt;
use std::sync::Arc;

use semver::Version;

/// The attribute in which a participant advertises its version.
pub(crate) const VERSION_ATTRIBUTE: &str = "protocolVersion";

/// The version of a participant that advertises none, and the lowest we speak.
const LOWEST: Version = Version::new(2, 2, 0);

/// The version we advertise: everything of its major version from [`LOWEST`] on is accepted.
const OURS: Version = Version::new(2, 3, 0);

/// The longest advertised version that an error repeats, in characters.
const SHOWN: usize = 64;

/// What a participant speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// A version advertised in its attributes, or the default of those that advertise none.
    Version(Version),
    /// What its transport has negotiated: a WebSocket's subprotocol.
    Negotiated(Arc<str>),
}

impl Protocol {
    /// Checks an advertised version: same major version as ours and not below 2.2.0, which is also the default.
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

/// A participant advertises a protocol version that isn't spoken here: it is not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol version {advertised:?} is not supported: {}.x from {LOWEST} on is, {OURS} is best",
    OURS.major
)]
#[non_exhaustive]
pub struct IncompatibleVersion {
    /// What it advertised, at most 64 characters of it.
    pub advertised: String,
}
