//! Which wire format a peer speaks.

/// A wire format.
///
/// The two share most of their messages. What differs is how a viewer asks for channels and how
/// their messages name them, and that v2 measures round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireFormat {
    /// One WebSocket per viewer, which marks where a frame ends. A viewer subscribes under numbers of
    /// its own, and a message carries the number of the viewer it goes to.
    V1,
    /// One byte stream per direction and viewer, with [frames](super::stream) in it. A viewer
    /// subscribes to channels, and a message looks the same to all.
    V2,
}
