//! Which members have something for their shard.

use crate::sync::bits::Bits;

/// Members with direct messages, or with an end to handle. Any thread sets a bit; only
/// [`Look::take_mail`](crate::fanout::shard::reader::Look::take_mail) takes bits.
#[derive(Debug)]
pub(crate) struct Mail(Bits);

impl Mail {
    /// Creates the set for the slots below `capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Bits::new(capacity))
    }

    /// Has the shard look at the member in `slot`.
    pub(crate) fn set(&self, slot: usize) {
        self.0.set(slot);
    }

    /// Whether a member below `extent` has mail.
    pub(crate) fn any(&self, extent: usize) -> bool {
        self.0.any(extent)
    }

    /// Takes the bits below `extent`, and calls `each` for every slot.
    pub(in crate::fanout) fn take(&self, extent: usize, each: impl FnMut(usize)) {
        self.0.take(extent, each);
    }
}
