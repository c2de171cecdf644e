//! What the messages of both directions are read from and written to.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::error::cleaned;
use super::{DecodeError, Frame, FrameKind};

/// A text frame whose `op` is known and whose fields are still to be read.
pub(super) struct Text<'a> {
    pub(super) op: String,
    json: &'a str,
}

impl<'a> Text<'a> {
    /// Reads no further than the op, if it comes first, as it does in what every known peer sends: a message is parsed
    /// once. Otherwise all of it is looked through.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Tag {
            op: Option<String>,
        }
        let json = std::str::from_utf8(data).map_err(|_| DecodeError::InvalidUtf8 { what: "text message" })?;
        // The parser would take an array for a struct, field by field.
        if json.trim_start().starts_with('[') {
            return Err(DecodeError::MissingOp);
        }
        if let Some(op) = first_op(json) {
            return Ok(Self { op, json });
        }
        let tag: Tag = serde_json::from_str(json)?;
        let op = tag.op.ok_or(DecodeError::MissingOp)?;
        Ok(Self { op, json })
    }

    pub(super) fn read<T: Deserialize<'a>>(&self) -> Result<T, DecodeError> {
        Ok(serde_json::from_str(self.json)?)
    }
}

/// Reads `null` as a field that is absent: some peers write it for what they don't have.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Most characters of an item's own name that an error repeats.
const NAME: usize = 32;

/// Most faults of one message that are told apart.
pub(super) const FAULTS: usize = 100;

/// Reads the items of a list one by one. What is wrong with those that can't be read goes to `faults`, as far as there
/// are not more than [`FAULTS`].
pub(super) fn each<T>(
    kind: &'static str,
    items: Vec<Value>,
    faults: &mut Vec<DecodeError>,
    mut read: impl FnMut(Value) -> Result<T, DecodeError>,
) -> Vec<T> {
    let mut readable = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        let name = ["topic", "name"].iter().find_map(|key| item.get(key)?.as_str());
        let name = name.map(|name| cleaned(name, NAME));
        match read(item) {
            Ok(item) => readable.push(item),
            Err(fault) if faults.len() < FAULTS => {
                let name = name.map_or_else(|| format!("number {}", at + 1), |name| format!("\"{name}\""));
                faults.push(DecodeError::item(kind, name, fault));
            }
            Err(_) => {}
        }
    }
    readable
}

/// The same for who is told of no faults: an error if nothing of the list can be read.
pub(super) fn any<T>(
    kind: &'static str,
    items: Vec<Value>,
    read: impl FnMut(Value) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut faults = Vec::new();
    let readable = each(kind, items, &mut faults, read);
    match faults.into_iter().next() {
        Some(fault) if readable.is_empty() => Err(fault),
        _ => Ok(readable),
    }
}

/// The op of an object that begins with it.
fn first_op(json: &str) -> Option<String> {
    struct FirstOp<'a>(&'a mut Option<String>);

    impl<'de> Visitor<'de> for FirstOp<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
            if map.next_key::<&str>()? == Some("op") {
                *self.0 = Some(map.next_value()?);
            }
            // The rest isn't read here.
            Err(M::Error::custom("no further"))
        }
    }

    let mut op = None;
    let _ = serde_json::Deserializer::from_str(json).deserialize_map(FirstOp(&mut op));
    op
}

/// Encodes a struct as a JSON object with a tag.
pub(super) fn text(op: &'static str, fields: &impl Serialize) -> Frame {
    #[derive(Serialize)]
    struct Tagged<'a, T> {
        op: &'static str,
        #[serde(flatten)]
        fields: &'a T,
    }
    let json = serde_json::to_string(&Tagged { op, fields });
    Frame::text(json.expect("messages are structs and maps with string keys, which JSON can hold"))
}

/// Encodes a binary message that holds one number.
pub(super) fn stamped(opcode: u8, number: u64) -> Frame {
    let mut head = [opcode; 1 + 8];
    head[1..].copy_from_slice(&number.to_le_bytes());
    Frame::with_head(FrameKind::Binary, head, Bytes::new())
}

/// Reads a binary message from its front.
pub(super) struct Reader<'a> {
    message: &'static str,
    data: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts after the opcode; `message` names it in errors.
    pub(super) fn new(message: &'static str, data: &'a Bytes) -> Self {
        Self { message, data, at: 1 }
    }

    /// The opcode, which says what to start a reader for.
    pub(super) fn opcode(data: &Bytes) -> Result<u8, DecodeError> {
        let truncated = DecodeError::Truncated { message: "binary message", need: 1, got: 0 };
        data.first().copied().ok_or(truncated)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        // Saturates on 32 bits, where no such slice can exist either.
        let need = self.at.saturating_add(len);
        let truncated = DecodeError::Truncated { message: self.message, need, got: self.data.len() };
        let taken = self.data.get(self.at..need).ok_or(truncated)?;
        self.at = need;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes preceded by their length (u32).
    pub(super) fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Text preceded by its length in bytes (u32); `what` names it in errors.
    pub(super) fn string(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let text = std::str::from_utf8(self.counted()?).map_err(|_| DecodeError::InvalidUtf8 { what })?;
        Ok(text.to_owned())
    }

    /// What is left, shared with the frame.
    pub(super) fn rest(self) -> Bytes {
        self.data.slice(self.at..)
    }
}

/// Appends text preceded by its length in bytes (u32), cut to what that length can say.
pub(super) fn put_string(buffer: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(u32::MAX as usize)];
    buffer.put_u32_le(text.len() as u32);
    buffer.put_slice(text.as_bytes());
}

/// Says of an op that this direction doesn't have whether the other one does.
pub(super) fn stray_op(op: &str, other_side: &[&'static str]) -> DecodeError {
    match other_side.iter().find(|known| **known == op) {
        Some(known) => DecodeError::WrongDirection { op: known },
        None => DecodeError::unknown_op(op),
    }
}
