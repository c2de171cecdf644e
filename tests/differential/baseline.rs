//! Runs the design that this crate is measured against through the same test.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lanecast::room::memory::{MemoryRoom, OpenBehavior};
use lanecast::{Account, Subscribed, Unsubscribed};
use lanecast_benches::baseline::{Baseline, Participant, Refused};

use crate::plan::{Pace, Plan};
use crate::subject::{Event, Gate, Inst, Lane, Msg, Published, Sent, Setup, Subject, Totals, View};
use crate::viewers::{Viewers, sid, who_is};

/// The baseline design as a runtime under test.
#[derive(Clone)]
pub(crate) struct Queues(Arc<Inner>);

struct Inner {
    session: Baseline<MemoryRoom<Bytes>>,
    viewers: Viewers<Bytes>,
    book: Arc<Mutex<Book>>,
}

/// Every instance and every message so far. Sinks carry a message's index in here.
#[derive(Default)]
struct Book {
    instances: HashMap<usize, Vec<Participant>>,
    by_id: HashMap<u64, Inst>,
    messages: Vec<Msg>,
}

impl Book {
    fn enter(&mut self, participant: Participant) -> Inst {
        let who = who_is(participant.identity());
        let all = self.instances.entry(who).or_default();
        let inst = Inst { who, nth: all.len() };
        self.by_id.insert(participant.id(), inst);
        all.push(participant);
        inst
    }

    fn write(&mut self, msg: Msg) -> Bytes {
        self.messages.push(msg);
        Bytes::copy_from_slice(&(self.messages.len() - 1).to_le_bytes())
    }

    fn read(&self, message: &Bytes) -> Msg {
        self.messages[usize::from_le_bytes(message[..].try_into().expect("the test wrote it"))]
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queues {
    fn offer(&self, to: Inst, msg: Msg, how: impl Fn(&Participant, Bytes) -> Result<(), Refused>, full: Sent) -> Sent {
        let mut book = lock(&self.0.book);
        let message = book.write(msg);
        match how(&book.instances[&to.who][to.nth], message) {
            Ok(()) => Sent::Queued,
            Err(Refused::Full(back)) => {
                assert_eq!(book.read(&back), msg, "another message came back");
                full
            }
            Err(Refused::Closed) => Sent::Closed,
        }
    }

    fn inst(&self, found: &Participant) -> Inst {
        lock(&self.0.book).by_id[&found.id()]
    }
}

impl Subject for Queues {
    type Wire = Bytes;

    const LONG_BURSTS: bool = false;
    const ACCOUNTS: bool = false;

    fn start(setup: &Setup) -> Self {
        let (viewers, book) = (Viewers::new(setup.identities), Arc::<Mutex<Book>>::default());
        let (initial, entered) = (Arc::clone(&setup.initial), Arc::clone(&book));
        let initial = move |participant| {
            let mut book = lock(&entered);
            let messages = initial(book.enter(participant));
            let messages: Vec<Bytes> = messages.into_iter().map(|msg| book.write(msg)).collect();
            Box::pin(async { messages }) as _
        };
        let session = Baseline::start(viewers.room().clone(), setup.queue_capacity as usize, Box::new(initial));
        Self(Arc::new(Inner { session, viewers, book }))
    }

    fn viewers(&self) -> &Viewers<Bytes> {
        &self.0.viewers
    }

    async fn fail_one_opening(&self, who: usize, then: OpenBehavior) {
        let recorder = self.0.viewers.recorder(who);
        recorder.set_open_behavior(OpenBehavior::Fails);
        // By now the opening has failed several times: the baseline retries at once.
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        recorder.set_open_behavior(then);
    }

    async fn send(&self, to: Inst, msg: Msg) -> Sent {
        self.offer(to, msg, Participant::send, Sent::Overflow)
    }

    async fn try_send(&self, to: Inst, msg: Msg) -> Sent {
        self.offer(to, msg, Participant::try_send, Sent::Full)
    }

    async fn broadcast(&self, msg: Msg) -> Published {
        assert_eq!(msg.lane, Lane::All);
        let message = lock(&self.0.book).write(msg);
        self.0.session.broadcast(&message);
        Published::Taken
    }

    /// The baseline's broadcast never waits.
    async fn try_broadcast(&self, msg: Msg) -> Published {
        self.broadcast(msg).await
    }

    async fn close(&self, deadline: Duration) -> Option<Account> {
        self.0.session.close(deadline).await;
        None
    }

    fn registered(&self, who: usize) -> Option<Inst> {
        self.0.session.participant(self.0.viewers.name(who)).map(|found| self.inst(&found))
    }

    fn view(&self, who: usize, sids: &[u32], _: usize) -> View {
        let by_sid = sids.iter().map(|&asked| {
            let found = self.0.session.participant_by_sid(&sid(asked));
            (asked, found.map(|found| self.inst(&found)))
        });
        let registered = self.registered(who);
        assert!(registered.is_none_or(|inst| inst.who == who), "a look-up by identity finds somebody else");
        let by_sid = by_sid.collect();
        let book = lock(&self.0.book);
        let streams = self.0.viewers.streams(who, |message| book.read(message));
        View { registered: registered.map(|inst| inst.nth), by_sid, instances: Vec::new(), streams }
    }

    // The baseline isn't asked for these.

    fn gate(&self, _: usize, _: Gate) {
        unreachable!("not a plain operation")
    }

    async fn subscribe(&self, _: Inst, _: usize, _: u32, _: Option<Pace>) -> Subscribed {
        unreachable!("not a plain operation")
    }

    async fn unsubscribe(&self, _: Inst, _: usize) -> Unsubscribed {
        unreachable!("not a plain operation")
    }

    fn set_rate(&self, _: Inst, _: Option<u64>) {
        unreachable!("not a plain operation")
    }

    fn set_profile(&self, _: usize, _: &Plan) {
        unreachable!("not a plain operation")
    }

    async fn end_topic(&self, _: usize) {
        unreachable!("not a plain operation")
    }

    fn totals(&self) -> Totals {
        unreachable!("it keeps no accounts")
    }

    async fn events(&self) -> Vec<Event> {
        unreachable!("it tells no events")
    }
}
