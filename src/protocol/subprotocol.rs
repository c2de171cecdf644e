//! The WebSocket subprotocols, and their negotiation.

/// Names of the supported WebSocket subprotocols, in order of preference.
pub const SUBPROTOCOLS: [&str; 3] =
    [Subprotocol::SdkV1_1.as_str(), Subprotocol::SdkV1.as_str(), Subprotocol::WebsocketV1.as_str()];

/// A supported WebSocket subprotocol. The order is that of preference: the least is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subprotocol {
    /// `foxglove.sdk.v1.1`: like `foxglove.sdk.v1`, but advertisements use a [schema table](super::SchemaTable).
    SdkV1_1,
    /// `foxglove.sdk.v1`.
    SdkV1,
    /// `foxglove.websocket.v1`, the older name of `foxglove.sdk.v1`.
    WebsocketV1,
}

impl Subprotocol {
    /// The name in the `Sec-WebSocket-Protocol` header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SdkV1_1 => "foxglove.sdk.v1.1",
            Self::SdkV1 => "foxglove.sdk.v1",
            Self::WebsocketV1 => "foxglove.websocket.v1",
        }
    }

    /// Whether channels are advertised with a [schema table](super::SchemaTable).
    pub const fn has_schema_table(self) -> bool {
        matches!(self, Self::SdkV1_1)
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::SdkV1_1, Self::SdkV1, Self::WebsocketV1].into_iter().find(|known| known.as_str() == name)
    }
}

/// Picks the best of the subprotocols that a client offers, whatever their order. `None` if none of them is supported.
///
/// Names are compared exactly. The caller must split the header at its commas and trim the parts.
pub fn negotiate<'a>(offered: impl Iterator<Item = &'a str>) -> Option<Subprotocol> {
    offered.filter_map(Subprotocol::from_name).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_offer_wins_whatever_the_order() {
        let pick = |offered: &[&str]| negotiate(offered.iter().copied());
        assert_eq!(pick(&["foxglove.websocket.v1", "foxglove.sdk.v1"]), Some(Subprotocol::SdkV1));
        assert_eq!(pick(&["x", "foxglove.websocket.v1"]), Some(Subprotocol::WebsocketV1));
        assert_eq!(pick(&["foxglove.sdk.v1", "foxglove.sdk.v1.1"]), Some(Subprotocol::SdkV1_1));
        assert_eq!(pick(&["foxglove.sdk.v2", "Foxglove.sdk.v1", " foxglove.sdk.v1", ""]), None);
        assert_eq!(pick(&[]), None);
    }

    #[test]
    fn the_names_are_listed_best_first() {
        assert_eq!(SUBPROTOCOLS, ["foxglove.sdk.v1.1", "foxglove.sdk.v1", "foxglove.websocket.v1"]);
        assert!(SUBPROTOCOLS.iter().map(|name| Subprotocol::from_name(name)).is_sorted());
    }
}
