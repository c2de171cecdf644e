//! The wire formats, without a room or a session.
#![cfg(feature = "telemetry")]

mod protocol_stream;
mod protocol_vectors;
