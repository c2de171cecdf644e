//! What is wrong with one request.

/// Most warnings one request is answered with; what is above is summed up in one more. A request may name any number
/// of channels, and an honest viewer that names many that are just gone shall not overflow by the answers; nor is
/// anything kept for what isn't said.
const MOST: usize = 16;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Warnings {
    texts: Vec<String>,
    more: usize,
}

impl Warnings {
    pub(super) fn push(&mut self, text: impl FnOnce() -> String) {
        if self.texts.len() < MOST {
            self.texts.push(text());
        } else {
            self.more += 1;
        }
    }

    /// Those of another part of the same request.
    pub(super) fn append(&mut self, others: Self) {
        self.more += others.more;
        others.texts.into_iter().for_each(|text| self.push(|| text));
    }

    /// What is said, in order.
    pub(super) fn into_texts(self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("{} more of this kind", self.more));
        self.texts.into_iter().chain(more)
    }
}
