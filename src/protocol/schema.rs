//! Schemas, and how their data travels inside JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::DecodeError;

/// What the messages of a channel or service look like.
///
/// `data` holds the schema itself, not its form on the wire. On the wire it is base64 for the
/// encodings `protobuf` and `flatbuffer`, and text for every other (`jsonschema`, `ros1msg`,
/// `ros2msg`, `ros2idl`, `omgidl`, or one that this crate doesn't know). Where text is due but
/// `data` is not UTF-8, base64 goes out instead; a reader can't tell, and takes the base64 for the
/// text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema {
    /// Name of the type, for example `sensor_msgs/msg/Imu`.
    pub name: String,
    /// How `data` describes the type, for example `jsonschema`; empty if a peer left it out.
    pub encoding: String,
    /// The schema.
    pub data: Bytes,
}

impl Schema {
    /// Makes a schema from its name, its encoding and its data.
    pub fn new(name: impl Into<String>, encoding: impl Into<String>, data: impl Into<Bytes>) -> Self {
        Self { name: name.into(), encoding: encoding.into(), data: data.into() }
    }

    /// The data as it stands in JSON.
    pub(super) fn wire_data(&self) -> Cow<'_, str> {
        if !is_binary(&self.encoding)
            && let Ok(text) = std::str::from_utf8(&self.data)
        {
            return Cow::Borrowed(text);
        }
        Cow::Owned(STANDARD.encode(&self.data))
    }

    pub(super) fn from_wire(name: String, encoding: String, data: String) -> Result<Self, DecodeError> {
        let data = if is_binary(&encoding) {
            STANDARD.decode(data).map_err(|_| DecodeError::InvalidBase64 { what: "schema" })?
        } else {
            data.into_bytes()
        };
        Ok(Self { name, encoding, data: data.into() })
    }

    /// What a schema looks like that isn't there: older forms of the format send empty fields.
    pub(super) fn is_blank(&self) -> bool {
        self.name.is_empty() && self.encoding.is_empty() && self.data.is_empty()
    }
}

fn is_binary(encoding: &str) -> bool {
    matches!(encoding, "protobuf" | "flatbuffer")
}

/// The numbers by which advertisements refer to schemas, counted from 1.
///
/// A viewer keeps what it was told until the next `serverInfo`, so a number must mean the same
/// schema for as long as any viewer is connected. A table therefore never forgets: use one for a
/// whole server and it holds each distinct schema that was ever advertised, once. It is for
/// encoding; decoding needs none.
#[derive(Debug, Clone, Default)]
pub struct SchemaTable {
    ids: HashMap<Arc<Schema>, u64>,
}

impl SchemaTable {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a schema: the one it has, else the next.
    pub fn id(&mut self, schema: &Arc<Schema>) -> u64 {
        let next = self.ids.len() as u64 + 1;
        *self.ids.entry(Arc::clone(schema)).or_insert(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_text_or_base64_by_encoding() {
        let wire = |encoding: &str, data: &'static [u8]| Schema::new("n", encoding, data).wire_data().into_owned();
        for text in ["jsonschema", "ros1msg", "ros2msg", "ros2idl", "omgidl", "a-new-one", ""] {
            assert_eq!(wire(text, b"{}"), "{}", "{text}");
            assert_eq!(wire(text, &[0xff, 0]), "/wA=", "{text}");
        }
        for binary in ["protobuf", "flatbuffer"] {
            assert_eq!(wire(binary, b"{}"), "e30=", "{binary}");
            let schema = Schema::new("n", binary, &[0xff, 0][..]);
            let read = Schema::from_wire("n".into(), binary.into(), schema.wire_data().into_owned());
            assert_eq!(read, Ok(schema));
            let broken = Schema::from_wire("n".into(), binary.into(), "not base64".into());
            assert_eq!(broken, Err(DecodeError::InvalidBase64 { what: "schema" }));
        }
    }

    #[test]
    fn equal_schemas_share_a_number() {
        let mut table = SchemaTable::new();
        let schema = |name: &str| Arc::new(Schema::new(name, "jsonschema", "{}"));
        assert_eq!([table.id(&schema("a")), table.id(&schema("b")), table.id(&schema("a"))], [1, 2, 1]);
    }
}
