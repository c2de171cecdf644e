//! Amounts of messages and bytes: how much has been handed on, and how much may be.

/// An amount of messages and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
}

impl Load {
    /// One message of `bytes`.
    pub(crate) fn of_one(bytes: usize) -> Self {
        Self { messages: 1, bytes }
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.messages = self.messages.saturating_add(more.messages);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// Whether the load is as much as `quota` allows. One message is always allowed, however large.
    pub(crate) fn reaches(self, quota: Quota) -> bool {
        self.messages >= quota.messages || self.bytes as u64 >= quota.bytes
    }
}

/// How much may be handed on, or read from the log, before the reactor has to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

impl Quota {
    /// No quota at all.
    pub(crate) const UNBOUNDED: Self = Self { messages: u32::MAX, bytes: u64::MAX };

    /// What `load` leaves of the quota: at least one message.
    pub(crate) fn after(self, load: Load) -> Self {
        Self {
            messages: self.messages.saturating_sub(load.messages).max(1),
            bytes: self.bytes.saturating_sub(load.bytes as u64).max(1),
        }
    }
}

/// How much may gather for a joining member while its initial messages are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gathering {
    pub(crate) bytes: u64,
    /// How long the first gathered message may wait, in milliseconds.
    pub(crate) age: u64,
}

impl Gathering {
    /// What each message counts as in addition to its own bytes: its place on the shelf, so that empty messages are
    /// bounded as well.
    pub(crate) const PER_MESSAGE: u64 = 64;
}
