//! A server's channel advertisements, in both of their JSON forms.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::wire::{self, Text};
use super::{DecodeError, Frame, Schema, SchemaTable, ops};

/// Announces channels.
///
/// An advertisement has one of two forms on the wire. In the plain form, each channel carries its schema inline
/// ([`ServerMessage::encode`]). In the other form, the schemas stand in a table, and each channel refers to its schema
/// by number ([`Advertise::encode_with_table`]). That form is for a connection whose subprotocol [has a schema
/// table](super::Subprotocol::has_schema_table). Decoding accepts both.
///
/// [`ServerMessage::encode`]: super::ServerMessage::encode
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// Channels of the server, new to the viewer.
    pub channels: Vec<Channel>,
}

/// A channel of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Channel id, chosen by the server. It must be below 2^53 for viewers that store numbers as floating point.
    pub id: u64,
    /// Name of the topic.
    pub topic: String,
    /// Encoding of the channel's messages, for example `json` or `protobuf`.
    pub encoding: String,
    /// Schema of the channel's messages. It is shared, because many channels often have the same schema.
    ///
    /// The plain form can't distinguish a schema whose fields are all empty from no schema; decoding reads both as
    /// `None`.
    pub schema: Option<Arc<Schema>>,
}

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

/// A channel in JSON, with the fields of both forms. The plain form always has `schemaName` and `schema`, which are
/// empty if there is no schema.
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

/// Limits of one message, in channels and in bytes. A viewer with the usual limit of 1 MiB per message must be able to
/// read it, and a viewer that reads and draws on the same thread must not stop drawing for long.
const PIECE_CHANNELS: usize = 100;
const PIECE_BYTES: usize = 256 << 10;

/// Length in bytes of a message without channels and schemas: `{"op":"advertise","schemas":[],"channels":[]}`.
const FRAMING: usize = 43;

impl Advertise {
    /// Encodes the form with a schema table. `table` provides the schema ids.
    ///
    /// The message carries each schema that it refers to exactly once, even if an earlier message carried that schema.
    /// So it means the same to every viewer, whenever that viewer joined.
    pub fn encode_with_table(&self, table: &mut SchemaTable) -> Frame {
        let channels: Vec<_> = self.channels.iter().map(|channel| Described::new(channel, Some(table))).collect();
        encode_piece(&channels)
    }

    /// Encodes messages of at most 100 channels and 256 KiB each, in the form with a schema table if `table` is given.
    /// A channel that exceeds 256 KiB gets a message of its own.
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

/// A channel in its JSON form, with the id and the schema of its entry in the schema table, if there is one.
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
    wire::text(
        ops::server::ADVERTISE,
        &WireAdvertise { schemas, channels: channels.iter().map(|each| each.channel.clone()).collect() },
    )
}

/// Length of `value` as JSON, in bytes. The JSON is only counted, not stored.
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
            // Shared, not copied: with copies, a long schema and many channels would multiply the bytes that a peer
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
