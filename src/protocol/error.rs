//! The error of decoding a message.

use thiserror::Error;

use super::capability::Capability;

/// Maximum number of characters that an error quotes of a peer's text.
const EXCERPT: usize = 64;

/// Bytes from a peer could not be decoded as a message.
///
/// The peer sent something invalid, or something newer than this crate. The connection is still in sync, because the
/// transport marks where each frame ends. A server answers with a `status` of level error that carries the text of this
/// error, and goes on. The text is short whatever the peer sent: each quotation of the peer's text has at most 64
/// characters, and control characters in it are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The text is not JSON, or not the JSON that its `op` requires.
    #[error("invalid JSON message: {reason}")]
    InvalidJson {
        /// The parser's message, with line and column; those of an item of a list count from the item's beginning.
        reason: String,
    },
    /// The JSON has no `op`.
    #[error("message without an op")]
    MissingOp,
    /// The `op` is unknown.
    #[error("unknown op \"{op}\"")]
    UnknownOp {
        /// The first 64 characters of the `op`.
        op: String,
    },
    /// The `op` is one that only the other side may send.
    #[error("op \"{op}\" comes from the wrong side")]
    WrongDirection {
        /// The `op` that was received.
        op: &'static str,
    },
    /// The message needs a capability that the server doesn't offer. The fields of a text message are not read then.
    #[error("this server {}", capability.absence())]
    NotOffered {
        /// The missing capability.
        capability: Capability,
    },
    /// The first byte of a binary message is not an opcode that this side may receive.
    ///
    /// Each direction has its own opcode numbers, so an opcode that travels in the wrong direction is unknown, too,
    /// unless the same number has a meaning in this direction.
    #[error("unknown binary opcode {0}")]
    UnknownOpcode(u8),
    /// A binary message ends before the end of its required fields.
    #[error("truncated {message}: needs {need} bytes, has {got}")]
    Truncated {
        /// Name of the message, for example `ping`.
        message: &'static str,
        /// Required length in bytes, as far as the fields before the end determine it.
        need: usize,
        /// Actual length in bytes.
        got: usize,
    },
    /// A part that must be text is not UTF-8.
    #[error("{what} is not UTF-8")]
    InvalidUtf8 {
        /// Name of the part.
        what: &'static str,
    },
    /// A part that must be base64 is not.
    #[error("{what} is not base64")]
    InvalidBase64 {
        /// Name of the part.
        what: &'static str,
    },
    /// The status byte of a fetched asset is neither success (0) nor error (1).
    #[error("unknown asset status {0}")]
    UnknownAssetStatus(u8),
    /// A channel refers to a schema that its own message doesn't carry.
    #[error("unknown schema id {0}")]
    UnknownSchemaId(u64),
    /// An item of a list can't be read. The item is left out, and the others are read.
    #[error("{kind} {name}: {fault}")]
    InvalidItem {
        /// Kind of the item, for example a channel, a schema, a service or a parameter.
        kind: &'static str,
        /// The first 32 characters of the item's topic or name, in quotes, or the item's place in the list.
        name: String,
        /// Why the item can't be read.
        fault: Box<Self>,
    },
    /// A parameter's value does not match its type.
    #[error("parameter \"{name}\": {reason}")]
    InvalidParameter {
        /// The first 64 characters of the parameter's name.
        name: String,
        /// Why the value does not match.
        reason: &'static str,
    },
}

impl DecodeError {
    pub(super) fn unknown_op(op: &str) -> Self {
        Self::UnknownOp { op: excerpt(op) }
    }

    /// The error for an item of a list that is unreadable because of `fault`. A fault that names its parameter is
    /// returned as it is.
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

/// The parser's message may quote the peer, so it is cut. The position at its end is kept.
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

/// The first `most` characters of a peer's text, with control characters replaced.
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
