//! Schemas, and the form of their data in JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::DecodeError;

/// Describes the messages of a channel, or one direction of a service.
///
/// `data` holds the schema itself, not its form on the wire. On the wire it is base64 for the encodings `protobuf` and
/// `flatbuffer`, and text for every other encoding (`jsonschema`, `ros1msg`, `ros2msg`, `ros2idl`, `omgidl`, or one
/// that this crate doesn't know). If the wire needs text but `data` is not UTF-8, base64 is sent instead. A reader
/// can't detect that, and takes the base64 for the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema {
    /// Name of the type, for example `sensor_msgs/msg/Imu`.
    pub name: String,
    /// How `data` describes the type, for example `jsonschema`; empty if a peer left it out.
    pub encoding: String,
    /// The schema itself, in the form that `encoding` defines.
    pub data: Bytes,
}

impl Schema {
    /// Makes a schema from its name, its encoding and its data.
    pub fn new(name: impl Into<String>, encoding: impl Into<String>, data: impl Into<Bytes>) -> Self {
        Self { name: name.into(), encoding: encoding.into(), data: data.into() }
    }

    /// The data in its JSON form: text or base64.
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

    /// Whether this stands for no schema: older forms of the format send empty fields then.
    pub(super) fn is_blank(&self) -> bool {
        self.name.is_empty() && self.encoding.is_empty() && self.data.is_empty()
    }
}

fn is_binary(encoding: &str) -> bool {
    matches!(encoding, "protobuf" | "flatbuffer")
}

/// The ids by which advertisements refer to schemas, counted from 1.
///
/// A viewer keeps the schemas it has received until the next `serverInfo`, so an id must mean the same schema for as
/// long as any viewer is connected. Therefore a table never removes a schema. Use one table for a whole server: it then
/// holds each distinct schema that was ever advertised, once. A table is needed for encoding only, not for decoding.
#[derive(Debug, Clone, Default)]
pub struct SchemaTable {
    ids: HashMap<Arc<Schema>, u64>,
}

impl SchemaTable {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the id of a schema. A schema that is not in the table yet gets the next id.
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
