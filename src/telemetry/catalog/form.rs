//! The forms of announcements.

use crate::telemetry::version::Protocol;

/// The form in which channels are announced to a participant. Statuses look the same in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Form {
    /// Each channel carries its schema.
    Plain,
    /// Each schema is sent once, and channels refer to it.
    SchemaTable,
}

impl Form {
    pub(in crate::telemetry) const ALL: [Self; 2] = [Self::Plain, Self::SchemaTable];
    pub(in crate::telemetry) const COUNT: usize = Self::ALL.len();

    /// The form for a participant that speaks `protocol`.
    pub(super) fn of(protocol: &Protocol) -> Self {
        if protocol.has_schema_table() { Self::SchemaTable } else { Self::Plain }
    }
}
