//! Whether the uplink has stalled.
//!
//! Writes that don't end may be the uplink's fault or one stream's own. With several participants the room writes a byte
//! to its own stream when nothing else moves: that goes the same way, behind everything that waits. If it arrives, what
//! still waits is stuck by itself; if it doesn't, nothing does. With one participant a stall counts as the uplink's.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use livekit::data_stream::api::StreamWriter;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, link};

/// With nothing moving for as long, the room lets something travel.
const PROBE_AFTER: Duration = Duration::from_millis(250);

/// The watch over one connection; it ends when this is dropped.
pub(super) struct Watch {
    stalled: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    pub(super) fn start(shared: Arc<Shared>, room: Arc<livekit::Room>) -> Self {
        let (tell, stalled) = watch::channel(false);
        let task = tokio::spawn(async move { run(&shared, &room, &tell).await });
        Self { stalled, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until it is found stalled, or flowing again. Safe to cancel.
    pub(super) async fn changed(&mut self) -> bool {
        if self.stalled.changed().await.is_err() {
            // It has ended with the connection, which others will notice.
            std::future::pending::<()>().await;
        }
        *self.stalled.borrow_and_update()
    }
}

async fn run(shared: &Shared, room: &livekit::Room, stalled: &watch::Sender<bool>) {
    let uplink = &shared.uplink;
    let after = shared.options.stall_after;
    let probe = match link::open_probe(room).await {
        Ok(probe) => probe,
        Err(error) => return tracing::debug!(%error, "no stream to probe the uplink with"),
    };
    loop {
        uplink.quiet(PROBE_AFTER).await;
        if shared.present().len() <= 1 {
            let movement = uplink.movement();
            if uplink.quiet_for().is_some_and(|quiet| quiet >= after) {
                stalled.send_replace(true);
                movement.await;
                stalled.send_replace(false);
            } else {
                let _ = timeout(after, movement).await;
            }
            continue;
        }
        let travelling = uplink.probe();
        let mut write = pin!(probe.write(&[0]));
        let arrived = match timeout(after - PROBE_AFTER, &mut write).await {
            Ok(arrived) => arrived,
            Err(_) => {
                stalled.send_replace(true);
                let arrived = write.await;
                stalled.send_replace(false);
                arrived
            }
        };
        match arrived {
            Ok(()) => travelling.done(),
            Err(error) => return tracing::debug!(%error, "the uplink can't be probed any more"),
        }
    }
}
