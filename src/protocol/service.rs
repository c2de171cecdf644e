//! Services: their advertisements, calls and responses.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::wire::{self, Reader};
use super::{DecodeError, Frame, Schema, ops};

/// Announces services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvertiseServices {
    /// Services of the server, new to the client.
    pub services: Vec<Service>,
}

/// A service of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Service id, chosen by the server.
    pub id: u32,
    /// Name of the service.
    pub name: String,
    /// Type of the service, for example `std_srvs/Trigger`.
    pub type_name: String,
    /// Format of a request.
    pub request: ServiceSchema,
    /// Format of a response.
    pub response: ServiceSchema,
}

/// The format of one direction of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceSchema {
    /// The encoding and the schema are given.
    Described {
        /// Encoding of the payload, for example `json`.
        encoding: String,
        /// Schema of the payload.
        schema: Schema,
    },
    /// The older form: only the text of the schema. The text may be empty; the schema then follows from the service's
    /// type.
    Text(String),
}

/// A service call or its response: both have the same form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCall {
    /// Service id, from the server's advertisement.
    pub service_id: u32,
    /// Call id, chosen by the client. The response repeats it.
    pub call_id: u32,
    /// Encoding of the payload, for example `json`.
    pub encoding: String,
    /// The request or the response, in that encoding.
    pub payload: Bytes,
}

#[derive(Serialize)]
struct WireServices<'a> {
    services: Vec<WireService<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireService<'a> {
    id: u32,
    name: Cow<'a, str>,
    r#type: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    request: Option<WireDescribed<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_schema: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    response: Option<WireDescribed<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_schema: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescribed<'a> {
    encoding: Cow<'a, str>,
    schema_name: Cow<'a, str>,
    schema_encoding: Cow<'a, str>,
    schema: Cow<'a, str>,
}

impl AdvertiseServices {
    pub(super) fn encode(&self) -> Frame {
        let services = self.services.iter().map(|service| {
            let (request, request_schema) = service.request.to_wire();
            let (response, response_schema) = service.response.to_wire();
            WireService {
                id: service.id,
                name: Cow::Borrowed(&service.name),
                r#type: Cow::Borrowed(&service.type_name),
                request,
                request_schema,
                response,
                response_schema,
            }
        });
        wire::text(ops::server::ADVERTISE_SERVICES, &WireServices { services: services.collect() })
    }

    pub(super) fn decode(text: &wire::Text<'_>, faults: &mut Vec<DecodeError>) -> Result<Self, DecodeError> {
        let services = text.list("services", "service", faults, |service: WireService<'_>| {
            Ok(Service {
                id: service.id,
                name: service.name.into_owned(),
                type_name: service.r#type.into_owned(),
                request: ServiceSchema::from_wire(service.request, service.request_schema)?,
                response: ServiceSchema::from_wire(service.response, service.response_schema)?,
            })
        })?;
        Ok(Self { services })
    }
}

impl ServiceSchema {
    fn to_wire(&self) -> (Option<WireDescribed<'_>>, Option<Cow<'_, str>>) {
        match self {
            Self::Described { encoding, schema } => {
                let described = WireDescribed {
                    encoding: Cow::Borrowed(encoding),
                    schema_name: Cow::Borrowed(&schema.name),
                    schema_encoding: Cow::Borrowed(&schema.encoding),
                    schema: schema.wire_data(),
                };
                (Some(described), None)
            }
            Self::Text(text) => (None, Some(Cow::Borrowed(text))),
        }
    }

    /// If a peer sends both forms, the one with more information takes precedence.
    fn from_wire(described: Option<WireDescribed<'_>>, text: Option<Cow<'_, str>>) -> Result<Self, DecodeError> {
        let Some(described) = described else {
            return Ok(Self::Text(text.unwrap_or_default().into_owned()));
        };
        let WireDescribed { encoding, schema_name, schema_encoding, schema } = described;
        Ok(Self::Described {
            encoding: encoding.into_owned(),
            schema: Schema::from_wire(schema_name.into_owned(), schema_encoding.into_owned(), schema.into_owned())?,
        })
    }
}

impl ServiceCall {
    pub(super) fn encode(&self, opcode: u8) -> Frame {
        let fixed = 1 + 4 + 4 + 4;
        let mut buffer = BytesMut::with_capacity(fixed + self.encoding.len() + self.payload.len());
        buffer.put_u8(opcode);
        buffer.put_u32_le(self.service_id);
        buffer.put_u32_le(self.call_id);
        wire::put_string(&mut buffer, &self.encoding);
        buffer.put_slice(&self.payload);
        Frame::binary(buffer.freeze())
    }

    pub(super) fn decode(mut reader: Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            service_id: reader.u32()?,
            call_id: reader.u32()?,
            encoding: reader.string("encoding of a service call")?,
            payload: reader.rest(),
        })
    }
}
