//! The word that publishers claim: the next position, the shape of the log, and the seal.
//!
//! | bits | meaning |
//! |---|---|
//! | 63 | the log is sealed |
//! | 59 to 62 | the log's readers, as a step of their growth |
//! | 55 to 58 | the log's slots, as a step of their growth |
//! | 0 to 54 | the next position: at a million broadcasts a second they last for eleven hundred years |
//!
//! Whatever a claim depends on is in this word, so that the claim's compare-exchange fails if it has changed: a
//! publisher makes as many copies as the log had readers when it read the word, and writes to the ring of that shape.

use std::fmt;

const SEALED: u64 = 1 << 63;
const SHAPE_SHIFT: u32 = 55;
const POSITION: u64 = (1 << SHAPE_SHIFT) - 1;

/// Bits of each of the two steps.
const STEP_BITS: u32 = 4;

/// How many steps a step's bits can tell apart.
pub(super) const STEPS: usize = 1 << STEP_BITS;

/// How many shapes there are.
pub(super) const SHAPES: usize = STEPS * STEPS;

/// The number of a broadcast in the log: the first has 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

impl Position {
    /// Behind every broadcast.
    pub(in crate::fanout) const END: Self = Self(u64::MAX);

    /// The position that lies `count` broadcasts behind this one.
    pub(crate) fn after(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// How many broadcasts come before this one.
    pub(in crate::fanout) fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How far the log has grown: the step of its slots, and the step of its readers. Neither step ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape(u8);

impl Shape {
    pub(super) fn new(slots_step: usize, readers_step: usize) -> Self {
        let number = (readers_step << STEP_BITS) | slots_step;
        Self(u8::try_from(number).expect("a log has fewer steps than their bits can tell apart"))
    }

    /// The number of the shape, below [`SHAPES`].
    #[inline]
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    #[inline]
    pub(super) fn slots_step(self) -> usize {
        usize::from(self.0) % STEPS
    }

    #[inline]
    pub(super) fn readers_step(self) -> usize {
        usize::from(self.0) / STEPS
    }
}

/// A value of the claimed word at the time it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fanout) struct Tail(u64);

impl Tail {
    pub(super) const SEAL: u64 = SEALED;

    #[inline]
    pub(super) fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline]
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// The next position to be claimed.
    #[inline]
    pub(in crate::fanout) fn position(self) -> Position {
        Position(self.0 & POSITION)
    }

    #[inline]
    pub(in crate::fanout) fn is_sealed(self) -> bool {
        self.0 & SEALED != 0
    }

    #[inline]
    pub(super) fn shape(self) -> Shape {
        // The cast drops the seal.
        Shape((self.0 >> SHAPE_SHIFT) as u8)
    }

    /// The word after the claim of one position.
    #[inline]
    pub(super) fn claimed(self) -> Self {
        Self(self.0 + 1)
    }

    /// The word of a log that has grown to `shape`.
    pub(super) fn with_shape(self, shape: Shape) -> Self {
        Self(self.0 & (SEALED | POSITION) | (u64::from(shape.0) << SHAPE_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_the_word_do_not_touch_each_other() {
        fastrand::seed(3);
        for _ in 0..1_000 {
            let shape = Shape::new(fastrand::usize(..STEPS), fastrand::usize(..STEPS));
            let position = fastrand::u64(..POSITION);
            for seal in [0, Tail::SEAL] {
                let tail = Tail::from_word(position | seal).with_shape(shape).claimed();
                assert_eq!(tail.position(), Position(position + 1));
                assert_eq!(tail.is_sealed(), seal != 0);
                assert_eq!(tail.shape(), shape);
                assert_eq!(Shape::new(shape.slots_step(), shape.readers_step()), shape);
            }
        }
    }
}
