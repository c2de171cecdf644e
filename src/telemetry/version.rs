//! The protocol that a viewer speaks: which versions are supported, and what depends on the version.
//!
//! A viewer whose transport negotiated a [dialect](Presence::dialect) speaks that; no version is checked then. Every
//! other viewer advertises its version in an attribute, or speaks the lowest that is supported.

use std::fmt;

use semver::Version;

use crate::contract::Presence;
use crate::protocol::{Subprotocol, WireFormat};

/// The attribute in which a viewer advertises its version.
const ATTRIBUTE: &str = "protocolVersion";

/// The lowest version that this crate supports, and the version of a viewer that advertises none.
const LOWEST: Version = Version::new(2, 2, 0);

/// The version that this crate implements. Versions with its major version are accepted from [`LOWEST`] on.
const OURS: Version = Version::new(2, 3, 0);

/// The lowest version whose viewers understand a [schema table](crate::protocol::SchemaTable).
const SCHEMA_TABLE: Version = Version::new(2, 3, 0);

/// The length to which an error cuts the advertised version, in characters.
const SHOWN: usize = 64;

/// The protocol that a viewer speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// The version that the viewer advertises in its attribute `protocolVersion`, or 2.2.0 if it advertises none.
    Version(Version),
    /// The dialect that the transport has negotiated: a WebSocket's subprotocol.
    Dialect(Subprotocol),
}

impl Protocol {
    /// The protocol that the participant of a connection speaks. An advertised version must have the major version of
    /// [`OURS`] and not be below [`LOWEST`].
    pub(super) fn of(presence: &Presence) -> Result<Self, IncompatibleVersion> {
        if let Some(dialect) = presence.dialect {
            return Ok(Self::Dialect(dialect));
        }
        let Some(text) = presence.attributes.get(ATTRIBUTE) else { return Ok(Self::Version(LOWEST)) };
        match Version::parse(text) {
            Ok(version) if version.major == OURS.major && version >= LOWEST => Ok(Self::Version(version)),
            Ok(_) | Err(_) => Err(IncompatibleVersion { advertised: text.chars().take(SHOWN).collect() }),
        }
    }

    /// The wire format of the protocol: v1 for every dialect.
    pub(super) fn format(&self) -> WireFormat {
        match self {
            Self::Dialect(_) => WireFormat::V1,
            Self::Version(_) => WireFormat::V2,
        }
    }

    /// Whether channels are advertised with a schema table.
    pub(super) fn has_schema_table(&self) -> bool {
        match self {
            Self::Dialect(dialect) => dialect.has_schema_table(),
            Self::Version(version) => *version >= SCHEMA_TABLE,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => fmt::Display::fmt(version, f),
            Self::Dialect(dialect) => f.write_str(dialect.as_str()),
        }
    }
}

/// The viewer advertises a protocol version that this crate doesn't support. The viewer is told so in a status and
/// isn't registered: it has to be updated. [`JoinError::NotAccepted`](crate::JoinError::NotAccepted) carries this
/// error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol version {advertised:?} is not supported: use {}.x from {LOWEST} on, {OURS} is best",
    OURS.major
)]
#[non_exhaustive]
pub struct IncompatibleVersion {
    /// The version that the viewer advertised, cut to 64 characters.
    pub advertised: String,
}
