//! What a server can do beyond sending messages. A viewer learns it from the server's description, and an error names
//! it when a message needs what the server doesn't offer.

use serde::{Deserialize, Serialize};

/// Something that a server can do beyond sending messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Capability {
    /// Clients may publish.
    ClientPublish,
    /// Clients may read and set parameters.
    Parameters,
    /// Clients may subscribe to changes of parameters.
    ParametersSubscribe,
    /// The server sends its time.
    Time,
    /// Clients may call services.
    Services,
    /// Clients may subscribe to the connection graph.
    ConnectionGraph,
    /// Clients may fetch assets.
    Assets,
}

impl Capability {
    /// Every capability.
    pub(super) const ALL: [Self; 7] = [
        Self::ClientPublish,
        Self::Parameters,
        Self::ParametersSubscribe,
        Self::Time,
        Self::Services,
        Self::ConnectionGraph,
        Self::Assets,
    ];

    /// The predicate of a sentence about a server without this capability.
    pub(super) fn absence(self) -> &'static str {
        match self {
            Self::ClientPublish => "takes no messages from viewers",
            Self::Parameters | Self::ParametersSubscribe => "has no parameters",
            Self::Time => "doesn't send its time",
            Self::Services => "has no services",
            Self::ConnectionGraph => "shows no connection graph",
            Self::Assets => "has no assets",
        }
    }
}
