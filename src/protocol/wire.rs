//! Readers and writers that the messages of both directions share.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::error::cleaned;
use super::{DecodeError, Frame, FrameKind};

/// A text frame whose `op` is known and whose fields have not been read yet.
pub(super) struct Text<'a> {
    pub(super) op: String,
    json: &'a str,
}

impl<'a> Text<'a> {
    /// Reads the op. If the op comes first, as in the messages of all known peers, nothing after it is read here, so
    /// that a message is parsed once. Otherwise the whole message is searched for the op.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Tag {
            op: Option<String>,
        }
        let json = std::str::from_utf8(data).map_err(|_| DecodeError::InvalidUtf8 { what: "text message" })?;
        // The parser would read an array as a struct, field by field.
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

    /// Reads the id that some requests and their answers have.
    pub(super) fn id(&self) -> Result<Option<String>, DecodeError> {
        #[derive(Deserialize)]
        struct Identified {
            id: Option<String>,
        }
        self.read().map(|Identified { id }| id)
    }

    /// Reads the list in the field `name`. Each item is parsed as a `T` and converted by `read`; `kind` is the items'
    /// kind in errors. For each unreadable item an error is appended to `faults`, up to [`FAULTS`] of them. If the list
    /// as a whole is unreadable, none is.
    pub(super) fn list<T: Deserialize<'a>, U>(
        &self,
        name: &'static str,
        kind: &'static str,
        faults: &mut Vec<DecodeError>,
        read: impl FnMut(T) -> Result<U, DecodeError>,
    ) -> Result<Vec<U>, DecodeError> {
        let list = self.list_if_any(name, kind, faults, read)?;
        list.ok_or_else(|| serde_json::Error::missing_field(name).into())
    }

    /// Like [`list`](Self::list), but the field may be absent.
    pub(super) fn list_if_any<T: Deserialize<'a>, U>(
        &self,
        name: &'static str,
        kind: &'static str,
        faults: &mut Vec<DecodeError>,
        read: impl FnMut(T) -> Result<U, DecodeError>,
    ) -> Result<Option<Vec<U>>, DecodeError> {
        let before = faults.len();
        let mut json = serde_json::Deserializer::from_str(self.json);
        let seed = Items { kind, most: before + FAULTS, faults, read, item: PhantomData };
        let list = json.deserialize_map(Field { name, seed }).and_then(|list| json.end().map(|()| list));
        if list.is_err() {
            // Nothing is taken of it.
            faults.truncate(before);
        }
        Ok(list?)
    }
}

/// Reads `null` as the default, like an absent field: some peers write `null` for what they don't have.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Maximum number of characters that an error quotes of an item's name.
const NAME: usize = 32;

/// Maximum number of faults that are reported for one message.
pub(crate) const FAULTS: usize = 100;

/// Reads a list item by item. The value is `None` if the field is `null`.
///
/// Each item is parsed from its own JSON, so that an unreadable item does not end the list. The JSON of an item is not
/// kept after the item is read, because a peer's list may have any number of items.
struct Items<'f, T, F> {
    kind: &'static str,
    /// How many faults there may be, with those of other messages.
    most: usize,
    faults: &'f mut Vec<DecodeError>,
    read: F,
    item: PhantomData<T>,
}

impl<'de, T, U, F> DeserializeSeed<'de> for Items<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<U, DecodeError>,
{
    type Value = Option<Vec<U>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, T, U, F> Visitor<'de> for Items<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<U, DecodeError>,
{
    type Value = Option<Vec<U>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let Self { kind, most, faults, mut read, item: _ } = self;
        let mut readable = Vec::new();
        let mut number = 0_usize;
        while let Some(item) = items.next_element::<&RawValue>()? {
            number += 1;
            match serde_json::from_str(item.get()).map_err(DecodeError::from).and_then(&mut read) {
                Ok(item) => readable.push(item),
                Err(fault) if faults.len() < most => {
                    let name = name_of(item).map_or_else(|| format!("number {number}"), |name| format!("\"{name}\""));
                    faults.push(DecodeError::item(kind, name, fault));
                }
                Err(_) => {}
            }
        }
        Ok(Some(readable))
    }
}

/// Finds the field `name` of an object and reads it with `seed`.
struct Field<S> {
    name: &'static str,
    seed: S,
}

impl<'de, V, S: DeserializeSeed<'de, Value = Option<V>>> Visitor<'de> for Field<S> {
    type Value = Option<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let (mut seed, mut found) = (Some(self.seed), None);
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            if name == self.name {
                let seed = seed.take().ok_or_else(|| M::Error::duplicate_field(self.name))?;
                found = map.next_value_seed(seed)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// The topic or the name of an item, for an error.
fn name_of(item: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        topic: Option<&'a RawValue>,
        #[serde(borrow)]
        name: Option<&'a RawValue>,
    }
    let named: Named<'_> = serde_json::from_str(item.get()).ok()?;
    let names = [named.topic, named.name].into_iter().flatten();
    let name = names.filter_map(|name| serde_json::from_str::<String>(name.get()).ok()).next()?;
    Some(cleaned(&name, NAME))
}

/// The op of an object whose first field is the op.
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
            // This ends the parsing: the rest is not read here.
            Err(M::Error::custom("no further"))
        }
    }

    let mut op = None;
    let _ = serde_json::Deserializer::from_str(json).deserialize_map(FirstOp(&mut op));
    op
}

/// Encodes `fields` as a JSON object that is tagged with `op`.
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

/// Reads the fields of a binary message in order.
pub(super) struct Reader<'a> {
    message: &'static str,
    data: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts after the opcode. `message` is the message's name in errors.
    pub(super) fn new(message: &'static str, data: &'a Bytes) -> Self {
        Self { message, data, at: 1 }
    }

    /// Reads the opcode, which determines how the rest is read.
    pub(super) fn opcode(data: &Bytes) -> Result<u8, DecodeError> {
        let truncated = DecodeError::Truncated { message: "binary message", need: 1, got: 0 };
        data.first().copied().ok_or(truncated)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        // The sum can saturate only with 32-bit addresses, where no such slice can exist either.
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

    /// Reads bytes that are preceded by their length (u32).
    pub(super) fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Reads text that is preceded by its length in bytes (u32). `what` is the text's name in errors.
    pub(super) fn string(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let text = std::str::from_utf8(self.counted()?).map_err(|_| DecodeError::InvalidUtf8 { what })?;
        Ok(text.to_owned())
    }

    /// The remaining bytes, which share the memory of the frame.
    pub(super) fn rest(self) -> Bytes {
        self.data.slice(self.at..)
    }
}

/// Appends text, preceded by its length in bytes (u32). Text that is too long for that length is cut.
pub(super) fn put_string(buffer: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(u32::MAX as usize)];
    buffer.put_u32_le(text.len() as u32);
    buffer.put_slice(text.as_bytes());
}

/// The error for an op that this direction doesn't have: whether the other direction has the op, or neither.
pub(super) fn stray_op(op: &str, other_side: &[&'static str]) -> DecodeError {
    match other_side.iter().find(|known| **known == op) {
        Some(known) => DecodeError::WrongDirection { op: known },
        None => DecodeError::unknown_op(op),
    }
}
