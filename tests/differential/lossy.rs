//! The droppable messages that wait for one viewer, as the model has it: a list for each topic.
//!
//! Topics take turns by deficit round robin, as in the paper: each turn adds the quantum to a topic's deficit, and the
//! topic goes on for as long as the deficit covers its messages.

use std::collections::{BTreeMap, VecDeque};

use crate::plan::{Class, Loss, Pace, Plan};
use crate::subject::Msg;

/// Bytes for a turn of a topic of weight 1.
const QUANTUM: u64 = 512;

/// Messages that were lost, each with its topic.
pub(crate) type Lost = Vec<(usize, Loss)>;

/// All times are in milliseconds since the session began, unless they are called micros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues {
    topics: BTreeMap<usize, Queue>,
    /// The topics whose messages may go, the one whose turn it is first.
    ready: VecDeque<usize>,
    /// The first of `ready` has got its quantum.
    in_turn: bool,
    budget: Option<Budget>,
}

#[derive(Clone, Debug)]
struct Queue {
    plan: Plan,
    wish: Option<Pace>,
    waiting: VecDeque<(Msg, u64)>,
    /// When the last message went, and its length, if there was a rate then.
    last: Option<(u64, usize)>,
    /// No message may go before this.
    due_micros: u64,
    deficit: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    Ready,
    /// The message waits for its time.
    Held,
}

/// The total rate: what a tenth of a second gives can be saved up.
#[derive(Clone, Copy, Debug)]
struct Budget {
    rate: u64,
    /// In thousandths of bytes.
    saved: i128,
    at: u64,
}

impl Queue {
    fn is_rated(&self) -> bool {
        self.wish.is_some() || self.plan.pace.is_some()
    }

    /// Messages, bytes and age that may wait.
    fn bounds(&self) -> (usize, u64, u64) {
        match self.plan.class {
            Class::Lossy { messages, bytes, age } if !self.is_rated() => (messages as usize, bytes, age),
            _ => (1, u64::MAX, u64::MAX),
        }
    }

    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|(msg, _)| msg.size as u64).sum()
    }

    /// A message goes now; the next one waits from here on, or from the time that the clock's grain has delayed.
    fn start_wait(&mut self, size: usize, now: u64) {
        if !self.is_rated() {
            return;
        }
        let now = now * 1000;
        let late = now.saturating_sub(self.due_micros);
        self.last = Some((if late < 1000 { self.due_micros } else { now }, size));
        self.due_micros = self.due_by_rates();
    }

    /// When the rates, as they are now, allow the next message.
    fn due_by_rates(&self) -> u64 {
        let Some((from, size)) = self.last else { return 0 };
        let paces = self.wish.into_iter().chain(self.plan.pace);
        paces.map(|pace| from + pace.wait_after(size)).max().unwrap_or(0)
    }

    fn why_replaced(&self) -> Loss {
        let conflates = self.is_rated() || !matches!(self.plan.class, Class::Lossy { .. });
        match self.state {
            _ if !conflates => Loss::Overflowed,
            State::Held => Loss::RateLimited,
            State::Ready | State::Empty => Loss::Conflated,
        }
    }
}

impl Queues {
    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.topics.values().map(|queue| queue.waiting.len()).sum()
    }

    pub(crate) fn waits_for(&self, topic: usize) -> usize {
        self.topics.get(&topic).map_or(0, |queue| queue.waiting.len())
    }

    /// Whether there is nothing at all: no message, no rate.
    pub(crate) fn is_idle(&self) -> bool {
        self.topics.is_empty() && self.budget.is_none()
    }

    pub(crate) fn is_rated(&self, topic: usize) -> bool {
        self.topics.get(&topic).is_some_and(Queue::is_rated)
    }

    /// Whether a message may go now.
    pub(crate) fn may_go(&self, now: u64) -> bool {
        !self.ready.is_empty() && self.budget.is_none_or(|budget| budget.allows(now))
    }

    /// Whether a message waits for nothing but the stream, or for the total rate.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a new message of `topic` may go at once.
    pub(crate) fn is_open_for(&self, topic: usize, now: u64) -> bool {
        let waits = |queue: &Queue| !queue.waiting.is_empty() || queue.due_micros > now * 1000;
        let waits = self.topics.get(&topic).is_some_and(waits);
        self.ready.is_empty() && !waits && self.budget.is_none_or(|budget| budget.allows(now))
    }

    /// Takes over the profile of a topic, if there is something to keep of it.
    pub(crate) fn set_plan(&mut self, topic: usize, plan: &Plan, now: u64, lost: &mut Lost) {
        if let Some(queue) = self.topics.get_mut(&topic).filter(|queue| queue.plan != *plan) {
            queue.plan = *plan;
            self.apply_rates(topic, now, lost);
        }
    }

    fn queue(&mut self, topic: usize, plan: &Plan, now: u64, lost: &mut Lost) -> &mut Queue {
        self.set_plan(topic, plan, now, lost);
        let (wish, waiting, state) = (None, VecDeque::new(), State::Empty);
        let queue = Queue { plan: *plan, wish, waiting, last: None, due_micros: 0, deficit: 0, state };
        self.topics.entry(topic).or_insert(queue)
    }

    /// The rates or the bounds of a topic are others than before.
    fn apply_rates(&mut self, topic: usize, now: u64, lost: &mut Lost) {
        let queue = self.topics.get_mut(&topic).expect("it has a queue");
        queue.due_micros = queue.due_by_rates();
        while queue.waiting.len() > queue.bounds().0 {
            lost.push((topic, queue.why_replaced()));
            queue.waiting.pop_front();
        }
        let waits = queue.due_micros > now * 1000;
        match queue.state {
            State::Held if !waits => {
                queue.state = State::Ready;
                self.ready.push_back(topic);
            }
            State::Ready if waits => {
                self.leave_turns(topic);
                self.topics.get_mut(&topic).expect("it has a queue").state = State::Held;
            }
            State::Empty | State::Held | State::Ready => {}
        }
        self.forget_if_done(topic);
    }

    pub(crate) fn set_wish(&mut self, topic: usize, plan: &Plan, wish: Option<Pace>, now: u64, lost: &mut Lost) {
        if wish.is_some() || self.topics.contains_key(&topic) {
            self.queue(topic, plan, now, lost).wish = wish;
            self.apply_rates(topic, now, lost);
        }
    }

    /// Notes that a message went without waiting.
    pub(crate) fn note_gone(&mut self, topic: usize, plan: &Plan, size: usize, now: u64) {
        self.queue(topic, plan, now, &mut Lost::new()).start_wait(size, now);
        self.forget_if_done(topic);
    }

    /// Adds a message. What exceeds the bounds is lost, the oldest first.
    pub(crate) fn push(&mut self, topic: usize, plan: &Plan, msg: Msg, most_bytes: u64, now: u64) -> Lost {
        let mut lost = Lost::new();
        let queue = self.queue(topic, plan, now, &mut lost);
        let (messages, bytes, _) = queue.bounds();
        let size = msg.size as u64;
        while !queue.waiting.is_empty() && (queue.waiting.len() >= messages || queue.bytes() + size > bytes) {
            lost.push((topic, queue.why_replaced()));
            queue.waiting.pop_front();
        }
        // At the cost of the topic that has the most.
        while self.topics.values().map(Queue::bytes).sum::<u64>() > most_bytes.saturating_sub(size) {
            let (&largest, queue) = self.topics.iter_mut().max_by_key(|(_, queue)| queue.bytes()).expect("one waits");
            queue.waiting.pop_front();
            lost.push((largest, Loss::Overflowed));
            if largest != topic && queue.waiting.is_empty() {
                self.leave(largest);
            }
        }
        let queue = self.queue(topic, plan, now, &mut lost);
        queue.waiting.push_back((msg, now));
        if queue.state == State::Empty {
            if queue.due_micros > now * 1000 {
                queue.state = State::Held;
            } else {
                queue.state = State::Ready;
                self.ready.push_back(topic);
            }
        }
        lost
    }

    /// Lets the messages go whose time has come; all of them if the session ends.
    pub(crate) fn release_due(&mut self, now: u64, ends: bool) {
        if ends {
            self.budget = None;
        }
        let is_due = |queue: &Queue| queue.state == State::Held && (ends || queue.due_micros <= now * 1000);
        let due = self.topics.iter().filter(|(_, queue)| is_due(queue));
        let mut due: Vec<_> = due.map(|(topic, queue)| (queue.due_micros, *topic)).collect();
        due.sort_unstable();
        for (_, topic) in due {
            self.topics.get_mut(&topic).expect("it is there").state = State::Ready;
            self.ready.push_back(topic);
        }
    }

    /// When a message may go that may not go now.
    pub(crate) fn next_due(&self, now: u64) -> Option<u64> {
        let held = self.topics.values().filter(|queue| queue.state == State::Held);
        let held = held.map(|queue| queue.due_micros.div_ceil(1000)).min();
        let paused = self.budget.filter(|budget| !self.ready.is_empty() && !budget.allows(now));
        held.into_iter().chain(paused.map(Budget::allows_at)).min()
    }

    /// Whether a message that may not go yet may go exactly at `then`. With a total rate it is enough that one may go by
    /// `then`: each message that goes delays the next.
    pub(crate) fn may_become_due(&self, now: u64, then: u64) -> bool {
        let held = self.topics.values().filter(|queue| queue.state == State::Held);
        let is_due = held.map(|queue| queue.due_micros.div_ceil(1000)).any(|due| due == then);
        is_due || self.budget.is_some() && self.next_due(now).is_some_and(|due| due <= then)
    }

    /// Takes the message whose turn it is.
    pub(crate) fn next(&mut self, now: u64, lost: &mut Lost) -> Option<(usize, Msg)> {
        loop {
            let topic = *self.ready.front()?;
            self.expire(topic, now, lost);
            let alone = self.ready.len() == 1;
            let queue = self.topics.get_mut(&topic).expect("it is there");
            let Some((msg, _)) = queue.waiting.front().copied() else {
                self.leave(topic);
                continue;
            };
            if !self.in_turn {
                self.in_turn = true;
                queue.deficit += QUANTUM * u64::from(queue.weight());
            }
            if queue.deficit < msg.size as u64 && !alone {
                self.in_turn = false;
                self.ready.rotate_left(1);
                continue;
            }
            queue.deficit = queue.deficit.saturating_sub(msg.size as u64);
            queue.waiting.pop_front();
            queue.start_wait(msg.size, now);
            if queue.waiting.is_empty() {
                self.leave(topic);
            }
            return Some((topic, msg));
        }
    }

    /// Drops the messages of all topics that are too old.
    pub(crate) fn sweep(&mut self, now: u64, lost: &mut Lost) {
        for topic in self.ready.clone() {
            self.expire(topic, now, lost);
            if self.topics[&topic].waiting.is_empty() {
                self.leave(topic);
            }
        }
    }

    fn expire(&mut self, topic: usize, now: u64, lost: &mut Lost) {
        let queue = self.topics.get_mut(&topic).expect("it is there");
        let (.., age) = queue.bounds();
        while queue.waiting.pop_front_if(|(_, since)| now - *since > age).is_some() {
            lost.push((topic, Loss::Expired));
        }
    }

    /// A topic has nothing that may go.
    fn leave(&mut self, topic: usize) {
        self.leave_turns(topic);
        self.forget_if_done(topic);
    }

    fn leave_turns(&mut self, topic: usize) {
        self.in_turn &= self.ready.front() != Some(&topic);
        self.ready.retain(|ready| *ready != topic);
        let queue = self.topics.get_mut(&topic).expect("it is there");
        (queue.state, queue.deficit) = (State::Empty, 0);
    }

    fn forget_if_done(&mut self, topic: usize) {
        if self.topics.get(&topic).is_some_and(|queue| queue.state == State::Empty && !queue.is_rated()) {
            self.topics.remove(&topic);
        }
    }

    /// Takes out all that waits of a topic, and forgets its rates.
    pub(crate) fn take(&mut self, topic: usize) -> Vec<Msg> {
        self.in_turn &= self.ready.front() != Some(&topic);
        self.ready.retain(|ready| *ready != topic);
        self.topics.remove(&topic).into_iter().flat_map(|queue| queue.waiting).map(|(msg, _)| msg).collect()
    }

    /// How many messages wait of each topic.
    pub(crate) fn counts(&self) -> Vec<(usize, u64)> {
        self.topics.iter().map(|(topic, queue)| (*topic, queue.waiting.len() as u64)).collect()
    }

    /// Sets the total rate, in bytes per second; returns whether that changes anything.
    pub(crate) fn set_budget(&mut self, rate: Option<u64>, now: u64) -> bool {
        let changes = self.budget.map(|budget| budget.rate) != rate;
        if changes {
            // What was saved up, or is owed, stays.
            let before = self.budget.map_or(i128::MAX, |budget| budget.saved_at(now));
            self.budget = rate.map(|rate| Budget { rate, saved: before.min(i128::from(rate) * 100), at: now });
        }
        changes
    }

    pub(crate) fn charge(&mut self, size: usize, now: u64) {
        if let Some(budget) = &mut self.budget {
            // No more than a second's worth is owed, or the longest message.
            let (saved, cost) = (budget.saved_at(now), size as i128 * 1000);
            let most_owed = cost.max(i128::from(budget.rate) * 1000);
            budget.saved = (saved - cost).max(saved.min(-most_owed));
            budget.at = now;
        }
    }
}

impl Queue {
    fn weight(&self) -> u16 {
        if self.plan.is_reliable() { 1 } else { self.plan.weight }
    }
}

impl Budget {
    fn saved_at(&self, now: u64) -> i128 {
        let rate = i128::from(self.rate);
        (self.saved + rate * i128::from(now - self.at)).min(rate * 100)
    }

    fn allows(&self, now: u64) -> bool {
        self.saved_at(now) > 0
    }

    fn allows_at(self) -> u64 {
        let missing = u64::try_from((1 - self.saved).max(0)).expect("small");
        self.at + missing.div_ceil(self.rate)
    }
}
