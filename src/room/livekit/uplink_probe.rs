//! Detects a stalled uplink.
//!
//! A write that doesn't end may be stuck in the uplink or in its own stream. With several participants, the room writes
//! a byte to a stream of its own when nothing else moves. The byte travels the same way, behind everything that waits.
//! If it arrives, the uplink moves, and the writes that still wait are stuck in their own streams. With one
//! participant, a stall counts as the uplink's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use livekit::data_stream::api::{ByteStreamWriter, StreamResult, StreamWriter};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::link;
use super::shared::Shared;
use crate::caught::lock;
use crate::contract::{Uplink, UplinkState};

/// How long nothing may move before the room sends a probe.
const PROBE_AFTER: Duration = Duration::from_millis(250);

/// Tells whether the uplink of one connection is stalled, for as long as this lives.
pub(super) struct UplinkProbe {
    stalled: watch::Receiver<UplinkState>,
    _task: AbortOnDropHandle<()>,
}

impl UplinkProbe {
    pub(super) fn start(shared: Arc<Shared>, room: Arc<livekit::Room>) -> Self {
        let (tell, stalled) = watch::channel(UplinkState::Flowing);
        let own = OwnStream { room, stream: Arc::default(), task: Mutex::new(None) };
        let task = tokio::spawn(async move {
            let alone = || shared.present().len() <= 1;
            run(&shared.uplink, shared.config.stall_after, alone, |uplink| own.send(uplink), &tell).await;
        });
        Self { stalled, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until the uplink is found stalled, or flowing again. Safe to cancel.
    pub(super) async fn changed(&mut self) -> UplinkState {
        if self.stalled.changed().await.is_err() {
            // The task has ended because the runtime is shutting down.
            std::future::pending::<()>().await;
        }
        *self.stalled.borrow_and_update()
    }
}

/// Reports when `uplink` stalls, with nothing moving for `after`, and when it flows again. `probe` sends a probe.
async fn run(
    uplink: &Uplink,
    after: Duration,
    alone: impl Fn() -> bool,
    probe: impl Fn(&Uplink),
    stalled: &watch::Sender<UplinkState>,
) {
    loop {
        uplink.quiet(PROBE_AFTER).await;
        if !alone() {
            probe(uplink);
        }
        tokio::select! {
            () = uplink.quiet(after) => {
                stalled.send_replace(UplinkState::Stalled);
                moves(uplink, after).await;
                stalled.send_replace(UplinkState::Flowing);
            }
            () = moves(uplink, PROBE_AFTER) => {}
        }
    }
}

/// Waits until a write has ended less than `span` ago, or none is in progress. A write that was given up doesn't count
/// as ended.
async fn moves(uplink: &Uplink, span: Duration) {
    loop {
        let movement = uplink.movement();
        if uplink.quiet_for().is_none_or(|quiet| quiet < span) {
            return;
        }
        movement.await;
    }
}

/// The stream of the room's own, which carries one byte at a time.
struct OwnStream {
    room: Arc<livekit::Room>,
    /// Locked while a byte travels.
    stream: Arc<tokio::sync::Mutex<Option<ByteStreamWriter>>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl OwnStream {
    fn send(&self, uplink: &Uplink) {
        let Ok(mut stream) = Arc::clone(&self.stream).try_lock_owned() else { return };
        let travelling = uplink.probe();
        let room = Arc::clone(&self.room);
        let task: JoinHandle<()> = tokio::spawn(async move {
            match write(&room, &mut stream).await {
                Ok(()) => travelling.done(),
                Err(error) => {
                    // The next byte goes on a fresh stream.
                    *stream = None;
                    tracing::debug!(%error, "the uplink could not be probed");
                }
            }
        });
        *lock(&self.task) = Some(AbortOnDropHandle::new(task));
    }
}

async fn write(room: &livekit::Room, stream: &mut Option<ByteStreamWriter>) -> StreamResult<()> {
    let writer = match stream {
        Some(writer) => writer,
        None => stream.insert(link::open_probe(room).await?),
    };
    writer.write(&[0]).await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use tokio::time::advance;

    use super::*;
    use crate::contract::{Progress, UplinkWrite};

    const AFTER: Duration = Duration::from_secs(1);

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// The uplink is slow but flows: a chunk ends every 300 ms, and a probe waits behind seven others for two seconds.
    #[tokio::test(start_paused = true)]
    async fn a_slow_uplink_is_not_a_stalled_one() {
        let uplink = Uplink::new();
        let pipe: RefCell<VecDeque<(Option<Progress>, UplinkWrite)>> = RefCell::default();
        for _ in 0..8 {
            let progress = Progress::default();
            let write = uplink.begin(&progress);
            pipe.borrow_mut().push_back((Some(progress), write));
        }
        let (tell, mut stalled) = watch::channel(UplinkState::Flowing);
        let probe = |uplink: &Uplink| {
            if pipe.borrow().iter().all(|(who, _)| who.is_some()) {
                pipe.borrow_mut().push_back((None, uplink.probe()));
            }
        };
        let drive = async {
            for _ in 0..100 {
                for _ in 0..30 {
                    advance(Duration::from_millis(10)).await;
                    settle().await;
                }
                let (who, write) = pipe.borrow_mut().pop_front().expect("there are eight");
                write.done();
                if let Some(progress) = who {
                    let write = uplink.begin(&progress);
                    pipe.borrow_mut().push_back((Some(progress), write));
                }
            }
        };
        tokio::select! {
            () = run(&uplink, AFTER, || false, probe, &tell) => {}
            () = drive => {}
        }
        assert!(!stalled.has_changed().expect("it is told"));
        assert_eq!(*stalled.borrow_and_update(), UplinkState::Flowing);
    }

    // 1. The only participant's write doesn't end: stalled. 2. That write is given up, and another takes its place:
    // still stalled.
    // 3. The other write ends: the uplink flows.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_doesnt_flow() {
        let uplink = Uplink::new();
        let (tell, mut stalled) = watch::channel(UplinkState::Flowing);
        let progress = Progress::default();
        let first = uplink.begin(&progress);
        let drive = async {
            stalled.changed().await.expect("it is told");
            assert_eq!(*stalled.borrow_and_update(), UplinkState::Stalled);
            let second = uplink.begin(&progress);
            drop(first);
            settle().await;
            assert!(!stalled.has_changed().expect("it is told"));
            second.done();
            stalled.changed().await.expect("it is told");
            assert_eq!(*stalled.borrow_and_update(), UplinkState::Flowing);
        };
        tokio::select! {
            () = run(&uplink, AFTER, || true, |_| panic!("nobody to tell apart"), &tell) => {}
            () = drive => {}
        }
    }

    /// Several participants have writes in progress, and the probe arrives: the streams are stuck, not the uplink.
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_arrives_is_movement() {
        let uplink = Uplink::new();
        let (tell, stalled) = watch::channel(UplinkState::Flowing);
        let (ada, bob) = (Progress::default(), Progress::default());
        let _stuck = [uplink.begin(&ada), uplink.begin(&bob)];
        let drive = async {
            for _ in 0..100 {
                advance(Duration::from_millis(100)).await;
                settle().await;
            }
        };
        tokio::select! {
            () = run(&uplink, AFTER, || false, |uplink| uplink.probe().done(), &tell) => {}
            () = drive => {}
        }
        assert!(!stalled.has_changed().expect("it is told"));
    }
}
