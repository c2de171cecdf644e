//! Topics: the audience of a broadcast that isn't for everybody.
//!
//! # The profile
//! A topic's [`Profile`] may change at any time. Shards keep a copy, and compare its version with the topic's at each
//! entry that they read. One word has the version and what publishers ask for:
//!
//! ```text
//! 63        2 1        0
//! | version   | urgent | retains |
//! ```
//!
//! The word is written with `Release` after the profile, and read with `Acquire`. A shard that reads an entry has
//! acquired its claim: it sees the profile that was set before the message was published, or a later one. Version 0 is
//! the default profile, so a topic that never had another costs one load.
//!
//! # The figures
//! Outcomes of messages that waited are added with `Release` by the shard that has counted them as offered before, and
//! read with `Acquire` before the offers: a reader that sees an outcome also sees its offer. Messages that went straight
//! into sinks are in one count, which [`stats`](Topic::stats) reads once and adds to both sides, so it is `Relaxed`.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use crate::caught::lock;
use crate::contract::account::{Losses, TopicStats};
use crate::contract::profile::Profile;
use crate::sync::{AtomicU64, AtomicUsize, OnceBox, Ordering};

/// A set of subscribers that a broadcast can be addressed to, and [how](Profile) its messages are handed on. Clones
/// name the same topic; topics are compared by identity.
#[derive(Clone)]
pub struct Topic(Arc<Inner>);

struct Inner {
    key: TopicKey,
    count: AtomicUsize,
    /// The version of the profile, and two flags.
    state: AtomicU64,
    profile: Mutex<Profile>,
    /// Made when the first message is counted.
    figures: OnceBox<Figures>,
}

/// What became of the messages of a topic that isn't reliable.
struct Figures {
    /// Messages that had to wait for a subscriber.
    offered: AtomicU64,
    /// Of those, the ones that were handed on since.
    handed_on: AtomicU64,
    /// Messages that went straight into sinks: offered, and handed on.
    straight: AtomicU64,
    ended: AtomicU64,
    lost: [AtomicU64; Losses::REASONS],
}

/// The tag that a subscriber chooses for its subscription, passed to [`Message::address`](crate::Message::address).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubscriptionTag(pub u32);

/// The topic's messages go to the log also while nobody is subscribed.
const RETAINS: u64 = 1;
/// The topic's messages end a session's linger.
const URGENT: u64 = 2;
/// How many bits of the word are flags.
const FLAGS: u32 = 2;

fn state_of(profile: &Profile, version: u64) -> u64 {
    let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
    version << FLAGS | flag(profile.urgent, URGENT) | flag(profile.retain > 0, RETAINS)
}

impl Topic {
    /// Creates a reliable topic without subscribers.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Profile::default(), 0)
    }

    /// Creates a topic with this profile, without subscribers.
    #[must_use]
    pub fn with(profile: Profile) -> Self {
        Self::of(profile, u64::from(profile != Profile::default()))
    }

    fn of(profile: Profile, version: u64) -> Self {
        Self(Arc::new(Inner {
            key: TopicKey::next(),
            count: AtomicUsize::new(0),
            state: AtomicU64::new(state_of(&profile, version)),
            profile: Mutex::new(profile),
            figures: OnceBox::new(),
        }))
    }

    /// Returns how the topic's messages are handed on.
    #[must_use]
    pub fn profile(&self) -> Profile {
        *lock(&self.0.profile)
    }

    /// Changes how the topic's messages are handed on, from the next broadcast on. Works from any thread.
    ///
    /// Messages that were broadcast before and that a shard hasn't read yet may be handed on either way. What waits for
    /// a subscriber keeps its order: if the topic becomes reliable, the messages that wait become reliable before the
    /// next one, without counting against the subscriber's bound.
    pub fn set_profile(&self, profile: Profile) {
        let mut current = lock(&self.0.profile);
        *current = profile;
        self.0.state.store(state_of(&profile, self.version() + 1), Ordering::Release);
    }

    /// Rises each time the profile is set; 0 if it has been the default from the start and was never set.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.0.state.load(Ordering::Acquire) >> FLAGS
    }

    /// The profile, with its version.
    pub(crate) fn versioned(&self) -> (Profile, u64) {
        // Under the lock, so that the two belong together.
        let profile = lock(&self.0.profile);
        (*profile, self.version())
    }

    /// Whether the topic's messages end a session's linger.
    #[inline]
    pub(crate) fn is_urgent(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & URGENT != 0
    }

    /// Whether a broadcast to the topic would reach nobody, now or later.
    #[inline]
    pub(crate) fn reaches_nobody(&self) -> bool {
        self.subscribers() == 0 && self.0.state.load(Ordering::Acquire) & RETAINS == 0
    }

    /// Returns what became of the topic's messages, over all sessions in which it is used. Only messages that were
    /// droppable when a shard read them count.
    #[must_use]
    pub fn stats(&self) -> TopicStats {
        let mut stats = TopicStats::default();
        if let Some(figures) = self.0.figures.get() {
            // The outcomes first and the offers last, so that no difference is negative.
            let read = |figure: &AtomicU64| figure.load(Ordering::Acquire);
            stats.lost = Losses::from_counts(figures.lost.each_ref().map(read));
            stats.handed_on = read(&figures.handed_on);
            stats.ended = read(&figures.ended);
            let straight = figures.straight.load(Ordering::Relaxed);
            stats.handed_on += straight;
            stats.offered = read(&figures.offered) + straight;
        }
        stats
    }

    fn figures(&self) -> &Figures {
        self.0.figures.get_or_init(|| {
            Box::new(Figures {
                offered: AtomicU64::new(0),
                handed_on: AtomicU64::new(0),
                straight: AtomicU64::new(0),
                ended: AtomicU64::new(0),
                lost: std::array::from_fn(|_| AtomicU64::new(0)),
            })
        })
    }

    /// Counts messages that wait for subscribers as offered.
    pub(crate) fn count_offered(&self, messages: u64) {
        self.figures().offered.fetch_add(messages, Ordering::Release);
    }

    /// Counts messages that were offered before as handed on.
    pub(crate) fn count_handed_on(&self, messages: u64) {
        self.figures().handed_on.fetch_add(messages, Ordering::Release);
    }

    /// Counts messages that went straight into sinks as offered and handed on.
    pub(crate) fn count_straight(&self, messages: u64) {
        self.figures().straight.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts messages that waited for a subscriber when it ended, or ended its subscription.
    pub(crate) fn count_ended(&self, messages: u64) {
        self.figures().ended.fetch_add(messages, Ordering::Release);
    }

    /// Counts messages that were lost.
    pub(crate) fn count_lost(&self, lost: &Losses) {
        for (figure, count) in self.figures().lost.iter().zip(lost.counts()) {
            if count > 0 {
                figure.fetch_add(count, Ordering::Release);
            }
        }
    }

    pub(crate) fn downgrade(&self) -> WeakTopic {
        WeakTopic(Arc::downgrade(&self.0))
    }

    /// The number of subscribers, over all sessions in which this topic is used.
    ///
    /// The count rises before a subscription takes effect and falls after it has ended. Zero means that a broadcast to
    /// this topic would reach nobody but later subscribers, if the topic [retains](Profile::retain) messages.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        // Acquire, paired with the Release in the drop of `Counted`: a caller that sees a subscriber gone sees what
        // that subscriber was handed.
        self.0.count.load(Ordering::Acquire)
    }

    /// Counts a subscriber for as long as the returned value lives.
    pub(crate) fn raise(&self) -> Counted {
        // Relaxed: a caller that has learned of the subscription, through anything that orders the two, finds it
        // counted.
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// The identity of this topic.
    #[inline]
    pub(crate) fn key(&self) -> TopicKey {
        self.0.key
    }
}

/// A topic's number, which no other topic of the process ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TopicKey(u64);

impl TopicKey {
    fn next() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        // Relaxed: only the value has to be unique.
        Self(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// Tells whether a topic still has handles: nothing can be published to one that has none.
#[derive(Clone, Debug)]
pub(crate) struct WeakTopic(Weak<Inner>);

impl WeakTopic {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// One subscriber in its topic's count.
pub(crate) struct Counted(Topic);

impl Counted {
    pub(crate) fn topic(&self) -> &Topic {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Release: see `subscribers`.
        self.0.0.count.fetch_sub(1, Ordering::Release);
    }
}

impl Default for Topic {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Topic {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Topic {}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic")
            .field("key", &self.0.key.0)
            .field("subscribers", &self.subscribers())
            .finish_non_exhaustive()
    }
}

/// The outcome of a request to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subscribed {
    /// The participant gets the topic's messages from here on, after those that the topic [retains](Profile::retain).
    New,
    /// The participant gets the topic's messages from here on, but not those that the topic retains: too many bytes of
    /// retained messages wait for it already.
    WithoutRetained,
    /// The participant was subscribed already: from here on, its messages carry the new tag.
    Retagged,
    /// The participant has ended, and gets nothing.
    Closed,
}

/// The outcome of a request to unsubscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsubscribed {
    /// The participant gets nothing more of the topic from here on.
    Removed,
    /// The participant wasn't subscribed, or has ended.
    NotSubscribed,
}

/// The audience of a broadcast.
#[derive(Clone, Debug)]
pub(crate) enum Audience {
    /// Every participant of the session.
    All,
    /// The subscribers of a topic.
    Topic(Topic),
}
