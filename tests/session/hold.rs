//! Holding publishers while most participants are behind.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use lanecast::{
    BuildError, EndReason, Hold, OverloadPolicy, ParticipantIdentity, Session, SessionBuilder, SessionEvent,
    SessionStats, SubscriptionTag, Topic, TryBroadcastError,
};
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, sleep_until};

use crate::common::{
    Call, Stage, StageSink, Valve, event, id, live, memory, msg, presence, reset, settle, size, until, within,
};

/// What each sink takes per second.
const PACE: u32 = 5000;

/// How far a sink's writes may lie ahead of the clock before the sink isn't ready.
const AHEAD: Duration = Duration::from_millis(10);

/// A sink that takes [`PACE`] messages a second and counts them.
fn paced(taken: Arc<AtomicU64>) -> StageSink<Bytes> {
    let mut timer: Pin<Box<Sleep>> = Box::pin(sleep(Duration::ZERO));
    // When everything that the sink has taken is written.
    let mut written = Instant::now();
    let mut wait_until = move |at: Instant, cx: &mut Context<'_>| {
        if at <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        timer.as_mut().reset(at);
        timer.as_mut().poll(cx).map(Ok)
    };
    StageSink::new(move |call, cx| match (call, cx) {
        (Call::Ready, Some(cx)) => wait_until(written - AHEAD, cx),
        (Call::Flush, Some(cx)) => wait_until(written, cx),
        (Call::Send(_), _) => {
            // A timer fires up to a millisecond late; a sink that was idle for longer saves nothing up.
            written = written.max(Instant::now() - Duration::from_millis(2)) + Duration::from_secs(1) / PACE;
            taken.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }
        _ => Poll::Ready(Ok(())),
    })
}

/// A sink that never takes anything.
fn stalled() -> StageSink<Bytes> {
    StageSink::new(|call, _| match call {
        Call::Ready | Call::Flush => Poll::Pending,
        _ => Poll::Ready(Ok(())),
    })
}

/// Paced sinks, and sinks that are stalled from the start, also after a reset.
#[derive(Clone, Copy)]
struct Scene {
    policy: OverloadPolicy,
    viewers: usize,
    stalled: usize,
    /// Messages per second; `None`: as many as the session takes.
    offered: Option<u32>,
    seconds: usize,
}

/// What became of a scene.
struct Outcome {
    /// For each second, what each of the paced sinks took, over all instances of its identity.
    taken: Vec<Vec<u64>>,
    /// For each second, how many participants were present, a few times.
    present: Vec<f64>,
    stats: SessionStats,
    /// The identities that were reset, and how often.
    resets: BTreeMap<ParticipantIdentity, usize>,
}

impl Outcome {
    /// What the slowest of the paced sinks took per second, from second `from` on.
    fn slowest(&self, from: usize) -> u64 {
        let seconds = &self.taken[from..];
        let viewers = 0..seconds[0].len();
        let per_second = |viewer: usize| seconds.iter().map(|taken| taken[viewer]).sum::<u64>() / seconds.len() as u64;
        viewers.map(per_second).min().expect("there are viewers")
    }
}

fn name(viewer: usize) -> String {
    format!("v{viewer}")
}

impl Scene {
    fn hold(viewers: usize, offered: Option<u32>, seconds: usize) -> Self {
        Self { policy: Hold::default().into(), viewers, stalled: 0, offered, seconds }
    }

    async fn run(self, set: impl FnOnce(SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>>) -> Outcome {
        let counters: Arc<Vec<_>> = Arc::new((0..self.viewers).map(|_| Arc::new(AtomicU64::new(0))).collect());
        let stage = Stage::new({
            let counters = Arc::clone(&counters);
            move |presence, _| {
                let viewer: usize = presence.identity.as_str()[1..].parse().expect("it is a number");
                let sink = if viewer < self.stalled { stalled() } else { paced(Arc::clone(&counters[viewer])) };
                async move { Ok(sink) }
            }
        });
        let session = stage.session(|builder| set(builder.overload(self.policy)));
        let mut events = session.events();
        let resets: Arc<Mutex<BTreeMap<ParticipantIdentity, usize>>> = Arc::default();
        let counted = tokio::spawn({
            let resets = Arc::clone(&resets);
            async move {
                while let Some(event) = events.next().await {
                    if let SessionEvent::Reset { who, .. } = event {
                        *resets.lock().expect("nothing panics").entry(who.identity).or_default() += 1;
                    }
                }
            }
        });
        for viewer in 0..self.viewers {
            stage.join(presence(&name(viewer), &format!("PA_{viewer}"), 1));
        }
        until(|| session.stats().participants == self.viewers).await;
        settle().await;
        let publisher = tokio::spawn(publish(session.clone(), self.offered));
        let mut outcome =
            Outcome { taken: Vec::new(), present: Vec::new(), stats: session.stats(), resets: BTreeMap::new() };
        let mut before = vec![0; self.viewers - self.stalled];
        for _ in 0..self.seconds {
            let mut present = 0;
            for _ in 0..20 {
                sleep(Duration::from_millis(50)).await;
                present += session.stats().participants;
            }
            let now: Vec<u64> = counters[self.stalled..].iter().map(|taken| taken.load(Ordering::Relaxed)).collect();
            outcome.taken.push(now.iter().zip(&before).map(|(now, before)| now - before).collect());
            outcome.present.push(present as f64 / 20.0);
            before = now;
        }
        outcome.stats = session.stats();
        publisher.abort();
        session.cancel();
        counted.await.expect("it doesn't panic");
        outcome.resets = resets.lock().expect("nothing panics").clone();
        outcome
    }
}

async fn publish(session: Session<Stage<Bytes>>, offered: Option<u32>) {
    let mut clock = interval(Duration::from_millis(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        match offered {
            Some(per_second) => {
                clock.tick().await;
                for _ in 0..per_second / 1000 {
                    session.broadcast(msg("reading")).await.expect("the session is open");
                }
            }
            None => session.broadcast(msg("reading")).await.expect("the session is open"),
        }
    }
}

/// A queue that a publisher at 6,000 a second half fills in one second.
fn small(builder: SessionBuilder<Stage<Bytes>>) -> SessionBuilder<Stage<Bytes>> {
    builder.queue_capacity(2048).log_capacity(512).shards(2)
}

// The clock is paused: it moves when nothing can run, so the sinks take exactly their pace, however slow the machine.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_is_too_fast_is_slowed_to_the_pace_of_the_participants() {
    let (viewers, seconds) = (size(20, 100), size(4, 20));
    for offered in [Some(6000), Some(10_000), None] {
        let outcome = Scene::hold(viewers, offered, seconds).run(small).await;
        assert!(outcome.resets.is_empty(), "nobody is reset at {offered:?}: {:?}", outcome.resets);
        assert!(outcome.slowest(0) >= 4500, "each gets its pace at {offered:?}: {}", outcome.slowest(0));
        assert!(outcome.stats.publisher_holds > 0, "at {offered:?}");
        assert!(outcome.stats.publishers_held_for > Duration::ZERO, "at {offered:?}");
        eprintln!("{offered:?}: {} {} holds, {:?}", outcome.slowest(0), outcome.stats.publisher_holds, outcome.stats.publishers_held_for);
    }
}

// A minority that has stalled is reset, again and again, and the others keep their pace: also if the minority is as
// large as can be, so that two of the others make it a majority.
#[tokio::test(start_paused = true)]
async fn a_minority_that_has_stalled_is_reset_and_costs_the_others_nothing() {
    let (viewers, seconds) = (size(20, 100), size(4, 20));
    let none = Scene::hold(viewers, Some(6000), seconds).run(small).await.slowest(1);
    for stalled in [1, viewers / 10, viewers / 2 - 1] {
        let scene = Scene { stalled, ..Scene::hold(viewers, Some(6000), seconds) };
        let outcome = scene.run(small).await;
        eprintln!("{stalled}: {} of {none}, {} holds, {:?}", outcome.slowest(1), outcome.stats.publisher_holds, outcome.resets);
        assert!(outcome.resets.keys().all(|who| who.as_str()[1..].parse::<usize>().is_ok_and(|v| v < stalled)));
        assert_eq!(outcome.resets.len(), stalled, "each that has stalled is reset");
        assert!(outcome.slowest(1) * 10 >= none * 9, "{stalled} stalled: {} of {none}", outcome.slowest(1));
    }
}
