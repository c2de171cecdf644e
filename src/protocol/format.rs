//! The versions of the wire format.

/// A version of the wire format.
///
/// The two versions share most of their messages. They differ in how a viewer subscribes to channels and in how message
/// data identifies its channel. Only v2 measures round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireFormat {
    /// One WebSocket per viewer; the WebSocket marks where each frame ends. A viewer subscribes with subscription ids
    /// of its own, and message data carries the subscription id of the viewer that it goes to.
    V1,
    /// One byte stream per direction and viewer, divided into [frames](super::stream). A viewer subscribes by channel
    /// id, and message data is the same for all viewers.
    V2,
}
