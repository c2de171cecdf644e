//! The ids of a participant: identity, sid and client id.
//!
//! They are three types, so that one can't be passed for another. Identity and sid are reference-counted strings: a
//! clone increments a count, and comparison and hashing use the text.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The maximum length of an identity or sid, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// Why a text isn't a valid identity or sid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty: give at least one byte")]
    Empty {
        /// The kind of id that was to be created, for example "a participant sid".
        what: &'static str,
    },
    /// The text is longer than [`MAX_ID_BYTES`].
    #[error("{what} has {bytes} bytes: at most {MAX_ID_BYTES} are allowed")]
    TooLong {
        /// The kind of id that was to be created, for example "a participant sid".
        what: &'static str,
        /// The length of the text, in bytes.
        bytes: usize,
    },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Creates an id from `text`.
            ///
            /// # Errors
            /// [`IdError`] if `text` is empty or longer than [`MAX_ID_BYTES`].
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                match text.len() {
                    0 => Err(IdError::Empty { what: $what }),
                    1..=MAX_ID_BYTES => Ok(Self(text.into())),
                    bytes => Err(IdError::TooLong { what: $what, bytes }),
                }
            }

            /// Returns the id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;

            fn try_from(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

text_id! {
    /// The identity of a viewer. It stays the same when the viewer reconnects.
    ParticipantIdentity, "a participant identity"
}

text_id! {
    /// The room's id of one connection. The room never reuses it.
    ///
    /// A participant that is reset while its connection stays open keeps the sid. The instance is identified by its
    /// [`ClientId`].
    ParticipantSid, "a participant sid"
}

/// The id of one instance of a participant, unique in this process and never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(NonZeroU64);

impl ClientId {
    /// Returns the next unused id.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: the value has to be unique, and orders nothing.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(NonZeroU64::new(id).expect("2^64 instances take longer than a machine lasts"))
    }

    /// Returns the id as a number, for logs and tables.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({})", self.0)
    }
}
