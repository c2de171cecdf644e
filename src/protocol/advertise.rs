//! What a server says about its channels, in both forms.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
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

#[derive(Serialize)]
struct WireAdvertise<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemas: Vec<WireSchema<'a>>,
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
#[derive(Clone, Serialize, Deserialize)]
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

/// How much one message tells of at most: a viewer with the usual limit of 1 MiB for a message has to be able to read
/// it, and one that draws while it reads shouldn't have to stop for long.
const PIECE_CHANNELS: usize = 100;
const PIECE_BYTES: usize = 256 << 10;

/// Bytes of a message besides its channels and schemas: `{"op":"advertise","schemas":[],"channels":[]}`.
const FRAMING: usize = 43;

impl Advertise {
    /// Encodes the form with a schema table, numbered by `table`.
    ///
    /// The message carries every schema that it refers to, once each, whether or not an earlier
    /// message did: it says the same to every viewer, whenever that viewer came.
    pub fn encode_with_table(&self, table: &mut SchemaTable) -> Frame {
        let channels: Vec<_> = self.channels.iter().map(|channel| Described::new(channel, Some(table))).collect();
        encode_piece(&channels)
    }

    /// Encodes messages of at most 100 channels and 256 KiB each, in the form with a schema table if there is one. A
    /// channel that is larger goes alone.
    ///
    /// Each message carries the schemas that it refers to.
    pub fn encode_in_pieces(&self, mut table: Option<&mut SchemaTable>) -> Vec<Frame> {
        let mut pieces = Vec::new();
        let mut piece: Vec<Described<'_>> = Vec::new();
        let (mut schemas, mut bytes) = (HashSet::new(), FRAMING);
        for channel in &self.channels {
            let described = Described::new(channel, table.as_deref_mut());
            let mut more = 1 + json_len(&described.channel);
            if let Some(schema) = described.schema.filter(|schema| !schemas.contains(&schema.0)) {
                more += 1 + json_len(&WireSchema::from(schema));
            }
            if !piece.is_empty() && (piece.len() == PIECE_CHANNELS || bytes + more > PIECE_BYTES) {
                pieces.push(encode_piece(&piece));
                piece.clear();
                schemas.clear();
                bytes = FRAMING;
                more = 1 + json_len(&described.channel);
                more += described.schema.map_or(0, |schema| 1 + json_len(&WireSchema::from(schema)));
            }
            bytes += more;
            schemas.extend(described.schema.map(|(id, _)| id));
            piece.push(described);
        }
        if !piece.is_empty() {
            pieces.push(encode_piece(&piece));
        }
        pieces
    }

    pub(super) fn encode_plain(&self) -> Frame {
        let channels: Vec<_> = self.channels.iter().map(|channel| Described::new(channel, None)).collect();
        encode_piece(&channels)
    }

    pub(super) fn decode(text: &Text<'_>, faults: &mut Vec<DecodeError>) -> Result<Self, DecodeError> {
        let schemas = text.list_if_any("schemas", "schema", faults, |schema: WireSchema<'_>| {
            let WireSchema { id, name, encoding, data } = schema;
            let schema = Schema::from_wire(name.into_owned(), encoding.into_owned(), data.into_owned())?;
            Ok((id, Arc::new(schema)))
        })?;
        let table: HashMap<_, _> = schemas.into_iter().flatten().collect();
        let channels = text.list("channels", "channel", faults, |channel: WireChannel<'_>| channel.resolve(&table))?;
        Ok(Self { channels })
    }
}

/// A channel as it stands in JSON, and the schema that it refers to in the table, by its number.
#[derive(Clone)]
struct Described<'a> {
    channel: WireChannel<'a>,
    schema: Option<(u64, &'a Schema)>,
}

impl<'a> Described<'a> {
    fn new(channel: &'a Channel, table: Option<&mut SchemaTable>) -> Self {
        let bare = WireChannel::bare(channel);
        let schema = channel.schema.as_deref();
        let Some(table) = table else {
            let channel = WireChannel {
                schema_name: Some(schema.map_or("", |schema| &schema.name).into()),
                schema_encoding: schema
                    .map(|schema| Cow::from(&schema.encoding))
                    .filter(|encoding| !encoding.is_empty()),
                schema: Some(schema.map_or(Cow::Borrowed(""), Schema::wire_data)),
                ..bare
            };
            return Self { channel, schema: None };
        };
        let schema = channel.schema.as_ref().map(|schema| (table.id(schema), &**schema));
        Self { channel: WireChannel { schema_id: schema.map(|(id, _)| id), ..bare }, schema }
    }
}

fn encode_piece(channels: &[Described<'_>]) -> Frame {
    let schemas: BTreeMap<_, _> = channels.iter().filter_map(|channel| channel.schema).collect();
    let schemas = schemas.into_iter().map(WireSchema::from).collect();
    wire::text(OP, &WireAdvertise { schemas, channels: channels.iter().map(|each| each.channel.clone()).collect() })
}

/// How many bytes `value` takes as JSON, which isn't made for that.
fn json_len(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("it is a struct of numbers and texts, which JSON can hold");
    count.0
}

impl<'a> From<(u64, &'a Schema)> for WireSchema<'a> {
    fn from((id, schema): (u64, &'a Schema)) -> Self {
        Self {
            id,
            name: Cow::Borrowed(&schema.name),
            encoding: Cow::Borrowed(&schema.encoding),
            data: schema.wire_data(),
        }
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
