//! Why bytes from a peer are not a message.

use thiserror::Error;

use super::server::Capability;

/// Most characters of a peer's own text that an error repeats.
const EXCERPT: usize = 64;

/// Bytes from a peer that are not a message.
///
/// The peer sent something wrong or something newer than this crate; the connection is still in
/// step, since the transport marks where each frame ends. A server answers with a `status` error
/// that carries this error's text and goes on. The text is short whatever the peer sent: of the
/// peer's own words it repeats 64 characters at most, control characters replaced.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The text is not JSON, or not the JSON that its `op` requires.
    #[error("invalid JSON message: {reason}")]
    InvalidJson {
        /// What is wrong, and where.
        reason: String,
    },
    /// The JSON has no `op`.
    #[error("message without an op")]
    MissingOp,
    /// The `op` is none that is known.
    #[error("unknown op \"{op}\"")]
    UnknownOp {
        /// The beginning of what the peer sent.
        op: String,
    },
    /// The `op` is one that only the other side may send.
    #[error("op \"{op}\" comes from the wrong side")]
    WrongDirection {
        /// The op.
        op: &'static str,
    },
    /// The message needs a capability that the server doesn't offer. Its fields weren't read.
    #[error("this server {}", capability.absence())]
    NotOffered {
        /// Which one.
        capability: Capability,
    },
    /// The first byte of a binary message is no opcode that this side may receive.
    ///
    /// Each direction numbers its opcodes for itself, so one that travels the wrong way looks
    /// unknown too.
    #[error("unknown binary opcode {0}")]
    UnknownOpcode(u8),
    /// A binary message ends before what it must hold.
    #[error("truncated {message}: needs {need} bytes, has {got}")]
    Truncated {
        /// Which message.
        message: &'static str,
        /// Length it must have at least, as far as that is known, in bytes.
        need: usize,
        /// Length it has, in bytes.
        got: usize,
    },
    /// Something that must be text is not UTF-8.
    #[error("{what} is not UTF-8")]
    InvalidUtf8 {
        /// Which part.
        what: &'static str,
    },
    /// Something that must be base64 isn't.
    #[error("{what} is not base64")]
    InvalidBase64 {
        /// Which part.
        what: &'static str,
    },
    /// The status byte of a fetched asset is neither success (0) nor error (1).
    #[error("unknown asset status {0}")]
    UnknownAssetStatus(u8),
    /// A channel refers to a schema that its own message doesn't carry.
    #[error("unknown schema id {0}")]
    UnknownSchemaId(u64),
    /// An item of a list can't be read. It is left out, and the others are read.
    #[error("{kind} {name}: {fault}")]
    InvalidItem {
        /// What it is: a channel, a schema, a service or a parameter.
        kind: &'static str,
        /// The beginning of its topic or name, in quotes, or its place in the list.
        name: String,
        /// What is wrong with it.
        fault: Box<Self>,
    },
    /// A parameter's value doesn't go with its type.
    #[error("parameter \"{name}\": {reason}")]
    InvalidParameter {
        /// The beginning of the parameter's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl DecodeError {
    pub(super) fn unknown_op(op: &str) -> Self {
        Self::UnknownOp { op: excerpt(op) }
    }

    /// An item of a list is unreadable for `fault`, which may name it already.
    pub(super) fn item(kind: &'static str, name: String, fault: Self) -> Self {
        match fault {
            Self::InvalidParameter { .. } => fault,
            fault => Self::InvalidItem { kind, name, fault: Box::new(fault) },
        }
    }

    pub(super) fn parameter(name: &str, reason: &'static str) -> Self {
        Self::InvalidParameter { name: excerpt(name), reason }
    }
}

/// The parser's messages quote the peer, so they are cut; the position at their end is kept.
impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        let full = error.to_string();
        let position = format!(" at line {} column {}", error.line(), error.column());
        let reason = full.strip_suffix(&position).map_or_else(|| excerpt(&full), |what| excerpt(what) + &position);
        Self::InvalidJson { reason }
    }
}

fn excerpt(text: &str) -> String {
    cleaned(text, EXCERPT)
}

/// The first `most` characters of a peer's text.
pub(super) fn cleaned(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_is_cut_and_cleaned() {
        let long = "\u{1b}[2J".to_owned() + &"ö".repeat(1000);
        let DecodeError::UnknownOp { op } = DecodeError::unknown_op(&long) else {
            panic!("not an unknown op");
        };
        assert_eq!(op.chars().count(), EXCERPT);
        assert!(op.starts_with("\u{fffd}[2Jö"));
    }

    #[test]
    fn a_parsers_message_is_cut_and_keeps_its_position() {
        let text = format!("\n\"{}\"", "x".repeat(1000));
        let error = DecodeError::from(serde_json::from_str::<u32>(&text).unwrap_err()).to_string();
        assert!(error.ends_with(" at line 2 column 1002"), "{error}");
        assert!(error.len() < 140, "{error}");
    }
}
