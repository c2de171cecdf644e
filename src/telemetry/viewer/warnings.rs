//! The warnings about one request.

/// The most warnings, and the most errors about single items, that one request is answered with; one further text
/// counts the rest. A request may name any number of channels: the answers must not flood a viewer that names many
/// channels wrongly, and nothing is stored for texts that aren't sent.
const MOST: usize = 16;

/// The texts to send, and the number of warnings beyond them.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    texts: Vec<String>,
    more: usize,
    /// There may be more than were counted.
    pub(super) is_cut: bool,
}

impl Warnings {
    pub(super) fn push(&mut self, text: impl FnOnce() -> String) {
        if self.texts.len() < MOST {
            self.texts.push(text());
        } else {
            self.more += 1;
        }
    }

    /// Adds the warnings about another part of the same request.
    pub(super) fn append(&mut self, others: Self) {
        self.more += others.more;
        others.texts.into_iter().for_each(|text| self.push(|| text));
    }

    /// The texts to send, in order.
    pub(super) fn into_texts(self) -> impl Iterator<Item = String> {
        let at_least = if self.is_cut { "at least " } else { "" };
        let more = (self.more > 0).then(|| format!("{at_least}{} more of this kind", self.more));
        self.texts.into_iter().chain(more)
    }
}
