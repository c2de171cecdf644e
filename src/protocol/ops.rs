//! The ops, which tag text messages with their kind, for each direction. Decoding a direction also needs the ops of the
//! other one: an op that only the other side may send has an error of its own.

/// The ops of messages from a client.
pub(super) mod client {
    pub(in crate::protocol) const SUBSCRIBE: &str = "subscribe";
    pub(in crate::protocol) const UNSUBSCRIBE: &str = "unsubscribe";
    pub(in crate::protocol) const ADVERTISE: &str = "advertise";
    pub(in crate::protocol) const UNADVERTISE: &str = "unadvertise";
    pub(in crate::protocol) const FETCH_ASSET: &str = "fetchAsset";
    pub(in crate::protocol) const GET_PARAMETERS: &str = "getParameters";
    pub(in crate::protocol) const SET_PARAMETERS: &str = "setParameters";
    pub(in crate::protocol) const SUBSCRIBE_PARAMETER_UPDATES: &str = "subscribeParameterUpdates";
    pub(in crate::protocol) const UNSUBSCRIBE_PARAMETER_UPDATES: &str = "unsubscribeParameterUpdates";
    pub(in crate::protocol) const SUBSCRIBE_CONNECTION_GRAPH: &str = "subscribeConnectionGraph";
    pub(in crate::protocol) const UNSUBSCRIBE_CONNECTION_GRAPH: &str = "unsubscribeConnectionGraph";

    /// Every op that a client may send.
    pub(in crate::protocol) const ALL: [&str; 11] = [
        SUBSCRIBE,
        UNSUBSCRIBE,
        ADVERTISE,
        UNADVERTISE,
        FETCH_ASSET,
        GET_PARAMETERS,
        SET_PARAMETERS,
        SUBSCRIBE_PARAMETER_UPDATES,
        UNSUBSCRIBE_PARAMETER_UPDATES,
        SUBSCRIBE_CONNECTION_GRAPH,
        UNSUBSCRIBE_CONNECTION_GRAPH,
    ];
}

/// The ops of messages from a server.
pub(super) mod server {
    pub(in crate::protocol) const SERVER_INFO: &str = "serverInfo";
    pub(in crate::protocol) const STATUS: &str = "status";
    pub(in crate::protocol) const REMOVE_STATUS: &str = "removeStatus";
    pub(in crate::protocol) const ADVERTISE: &str = "advertise";
    pub(in crate::protocol) const UNADVERTISE: &str = "unadvertise";
    pub(in crate::protocol) const ADVERTISE_SERVICES: &str = "advertiseServices";
    pub(in crate::protocol) const UNADVERTISE_SERVICES: &str = "unadvertiseServices";
    pub(in crate::protocol) const SERVICE_CALL_FAILURE: &str = "serviceCallFailure";
    pub(in crate::protocol) const PARAMETER_VALUES: &str = "parameterValues";
    pub(in crate::protocol) const CONNECTION_GRAPH_UPDATE: &str = "connectionGraphUpdate";

    /// Every op that a server may send.
    pub(in crate::protocol) const ALL: [&str; 10] = [
        SERVER_INFO,
        STATUS,
        REMOVE_STATUS,
        ADVERTISE,
        UNADVERTISE,
        ADVERTISE_SERVICES,
        UNADVERTISE_SERVICES,
        SERVICE_CALL_FAILURE,
        PARAMETER_VALUES,
        CONNECTION_GRAPH_UPDATE,
    ];
}
