//! What a turn has for one member by topic.

use crate::contract::topic::SubscriptionTag;

/// The runs of a turn that reach one member by a topic: index and tag, ascending. The first is stored inline: a turn
/// usually has only one, so thousands of members need no memory of their own for it, and a walk has none to load.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    first: Option<(u32, SubscriptionTag)>,
    others: Vec<(u32, SubscriptionTag)>,
}

impl Inbox {
    pub(crate) fn push(&mut self, index: u32, tag: SubscriptionTag) {
        match self.first {
            None => self.first = Some((index, tag)),
            Some(_) => self.others.push((index, tag)),
        }
    }

    pub(crate) fn get(&self, at: usize) -> Option<(u32, SubscriptionTag)> {
        if at == 0 { self.first } else { self.others.get(at - 1).copied() }
    }

    pub(crate) fn clear(&mut self) {
        self.first = None;
        self.others.clear();
    }
}
