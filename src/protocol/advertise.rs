//! What a server says about its channels, in both forms.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::wire::{self, Text};
use super::{DecodeError, Frame, Schema, SchemaTable};

/// Says that channels exist.
///
/// It travels in one of two forms: each channel with its schema inline ([`ServerMessage::encode`]),
/// or the schemas in a table and the channels with a number each
/// ([`Advertise::encode_with_table`]), for a connection whose subprotocol [has a schema
/// table](super::Subprotocol::has_schema_table). Decoding accepts both.
///
/// [`ServerMessage::encode`]: super::ServerMessage::encode
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// The channels.
    pub channels: Vec<Channel>,
}

/// One channel of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// The server's number for it. Viewers that count in floating point need it below 2^53.
    pub id: u64,
    /// What it is called.
    pub topic: String,
    /// How its messages are encoded, for example `json` or `protobuf`.
    pub encoding: String,
    /// What its messages look like; shared, since many channels often have one schema.
    ///
    /// The plain form can't tell a schema whose every field is empty from none; it is read as none.
    pub schema: Option<Arc<Schema>>,
}

pub(super) const OP: &str = "advertise";

#[derive(Serialize, Deserialize)]
struct WireAdvertise<'a> {
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    schemas: Vec<WireSchema<'a>>,
    #[serde(borrow)]
    channels: Vec<WireChannel<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireSchema<'a> {
    id: u64,
    name: Cow<'a, str>,
    encoding: Cow<'a, str>,
    data: Cow<'a, str>,
}

/// The fields of both forms; the plain one always has name and schema, empty if there is none.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireChannel<'a> {
    id: u64,
    topic: Cow<'a, str>,
    encoding: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_encoding: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_id: Option<u64>,
}

impl Advertise {
    /// Encodes the form with a schema table, numbered by `table`.
    ///
    /// The message carries every schema that it refers to, once each, whether or not an earlier
    /// message did: it says the same to every viewer, whenever that viewer came.
    pub fn encode_with_table(&self, table: &mut SchemaTable) -> Frame {
        let mut schemas = BTreeMap::new();
        let channels = self.channels.iter().map(|channel| {
            let schema_id = channel.schema.as_ref().map(|schema| {
                let id = table.id(schema);
                schemas.insert(id, &**schema);
                id
            });
            WireChannel { schema_id, ..WireChannel::bare(channel) }
        });
        let channels = channels.collect();
        let schemas = schemas.into_iter().map(|(id, schema)| WireSchema {
            id,
            name: Cow::Borrowed(&schema.name),
            encoding: Cow::Borrowed(&schema.encoding),
            data: schema.wire_data(),
        });
        wire::text(OP, &WireAdvertise { schemas: schemas.collect(), channels })
    }

    pub(super) fn encode_plain(&self) -> Frame {
        let channels = self.channels.iter().map(|channel| {
            let schema = channel.schema.as_deref();
            WireChannel {
                schema_name: Some(schema.map_or("", |schema| &schema.name).into()),
                schema_encoding: schema
                    .map(|schema| Cow::from(&schema.encoding))
                    .filter(|encoding| !encoding.is_empty()),
                schema: Some(schema.map_or(Cow::Borrowed(""), Schema::wire_data)),
                ..WireChannel::bare(channel)
            }
        });
        wire::text(OP, &WireAdvertise { schemas: Vec::new(), channels: channels.collect() })
    }

    pub(super) fn decode(text: &Text<'_>) -> Result<Self, DecodeError> {
        let wire: WireAdvertise<'_> = text.read()?;
        let mut table = HashMap::new();
        for schema in wire.schemas {
            let WireSchema { id, name, encoding, data } = schema;
            let schema = Schema::from_wire(name.into_owned(), encoding.into_owned(), data.into_owned())?;
            table.insert(id, Arc::new(schema));
        }
        let channels = wire.channels.into_iter().map(|channel| channel.resolve(&table));
        Ok(Self { channels: channels.collect::<Result<_, _>>()? })
    }
}

impl<'a> WireChannel<'a> {
    fn bare(channel: &'a Channel) -> Self {
        Self {
            id: channel.id,
            topic: Cow::Borrowed(&channel.topic),
            encoding: Cow::Borrowed(&channel.encoding),
            schema_name: None,
            schema_encoding: None,
            schema: None,
            schema_id: None,
        }
    }

    fn resolve(self, table: &HashMap<u64, Arc<Schema>>) -> Result<Channel, DecodeError> {
        let schema = match self.schema_id {
            // Shared, not copied: else a long schema and many channels would multiply what a peer
            // sent.
            Some(id) => Some(Arc::clone(table.get(&id).ok_or(DecodeError::UnknownSchemaId(id))?)),
            None => {
                let field = |field: Option<Cow<'_, str>>| field.unwrap_or_default().into_owned();
                let encoding = field(self.schema_encoding);
                let schema = Schema::from_wire(field(self.schema_name), encoding, field(self.schema))?;
                (!schema.is_blank()).then(|| Arc::new(schema))
            }
        };
        Ok(Channel { id: self.id, topic: self.topic.into_owned(), encoding: self.encoding.into_owned(), schema })
    }
}
