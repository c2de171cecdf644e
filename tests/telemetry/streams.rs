//! Viewers' own streams: what a viewer is told when its stream fails, and which state its next stream finds.

use std::task::{Context, Poll, ready};

use futures_util::{Stream, StreamExt};
use lanecast::ParticipantIdentity;
use lanecast::Progress;
use lanecast::room::Inbound;
use lanecast::room::OpenError;
use lanecast::room::memory::MemorySink;

use super::*;

/// A room whose viewers send a v2 stream in chunks: the payload of each incoming frame is a chunk.
struct ChunkRoom(Room);

struct Chunks {
    chunks: mpsc::Receiver<Frame>,
    decoder: StreamDecoder,
    failure: Option<String>,
}

impl Inbound for Chunks {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Poll::Ready(Some(frame)),
                Ok(None) => {}
                Err(error) => {
                    self.failure = Some(error.to_string());
                    return Poll::Ready(None);
                }
            }
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.decoder.push(chunk.payload().clone()),
                None => return Poll::Ready(None),
            }
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

impl lanecast::room::Room for ChunkRoom {
    type Message = Frame;
    type Sink = MemorySink<Frame>;
    type Incoming = Chunks;

    fn events(&self) -> Option<impl Stream<Item = RoomEvent<Chunks>> + Send + 'static> {
        let events = self.0.events()?;
        Some(events.map(|event| match event {
            RoomEvent::Active(presence) => RoomEvent::Active(presence),
            RoomEvent::Disconnected { identity, sid } => RoomEvent::Disconnected { identity, sid },
            RoomEvent::StreamOpened { identity, sid, stream } => {
                let stream = Chunks { chunks: stream, decoder: StreamDecoder::default(), failure: None };
                RoomEvent::StreamOpened { identity, sid, stream }
            }
            other => panic!("{other:?}"),
        }))
    }

    fn participants(&self) -> Vec<Presence> {
        self.0.participants()
    }

    fn present(&self, identity: &ParticipantIdentity) -> Option<Presence> {
        self.0.present(identity)
    }

    async fn open(&self, to: &Presence, progress: Progress) -> Result<Self::Sink, OpenError> {
        self.0.open(to, progress).await
    }
}

impl Viewer {
    /// The same viewer over another stream of the same connection.
    async fn open_another(&self, room: &Room, name: &str) -> Self {
        let presence = presence(name, V2);
        let requests = room.open_incoming(&presence.identity, &presence.sid).await.unwrap();
        Self { recorder: self.recorder.clone(), requests, format: self.format }
    }

    async fn chunk(&self, bytes: Bytes) {
        self.requests.send(Frame::binary(bytes)).await.unwrap();
    }

    async fn say_in_chunks(&self, text: &str) {
        let mut bytes = chunk(&Frame::text(text));
        while !bytes.is_empty() {
            self.chunk(bytes.split_to(bytes.len().min(7))).await;
        }
    }

    async fn settle_in_chunks(&self) {
        let statuses = |seen: &[ServerMessage]| seen.iter().filter(|message| is_probe(message)).count();
        let before = statuses(&self.seen());
        self.say_in_chunks(r#"{"op":"getParameters","parameterNames":[]}"#).await;
        self.until("the probe's answer", |seen| statuses(seen) > before).await;
    }
}

#[tokio::test]
async fn a_viewer_is_told_why_its_stream_ended_and_may_open_another() {
    let room = Room::new();
    let telemetry = Telemetry::builder(ChunkRoom(room.clone())).build().unwrap();
    let one = telemetry.advertise(json_channel("/one")).await.unwrap();
    let two = telemetry.advertise(json_channel("/two")).await.unwrap();
    let gone = telemetry.advertise(json_channel("/gone")).await.unwrap();
    let viewer = Viewer::join(&room, "ada", V2).await;
    let subscribe = |channel: u64| format!(r#"{{"op":"subscribe","channels":[{{"id":{channel}}}]}}"#);
    // 1. The viewer subscribes, in chunks cut anywhere.
    for channel in [&one, &two, &gone] {
        viewer.say_in_chunks(&subscribe(channel.id())).await;
    }
    viewer.settle_in_chunks().await;
    assert_eq!(statuses(&viewer.told()), []);
    // 2. It sends bytes that can't be a frame: it is told once, and its subscriptions stay.
    viewer.chunk(Bytes::from_static(&[9, 0, 0, 0, 0])).await;
    viewer.until_status(StatusLevel::Error, "unknown frame kind 9").await;
    assert!(statuses(&viewer.told())[0].1.contains("you may open another"));
    one.publish("1").await.unwrap();
    viewer.until_channel_data(1).await;
    // 3. Over another stream it continues with the same state: it can't subscribe again to what it has, and may
    // unsubscribe.
    let again = viewer.open_another(&room, "ada").await;
    again.say_in_chunks(&subscribe(one.id())).await;
    again.say_in_chunks(&format!(r#"{{"op":"unsubscribe","channelIds":[{}]}}"#, two.id())).await;
    again.settle_in_chunks().await;
    let expected = (StatusLevel::Warning, format!("channel {} is subscribed to already", one.id()));
    assert_eq!(statuses(&again.told())[1..], [expected]);
    assert!(one.has_subscribers() && !two.has_subscribers());
    // 4. It ends the second stream itself, which causes no status; its subscriptions stay.
    drop(again.requests);
    one.publish("2").await.unwrap();
    viewer.until_channel_data(2).await;
    assert_eq!(statuses(&viewer.told()).len(), 2);
    // 5. A channel ends while no stream is open. On the next stream, unsubscribing from it causes no status.
    gone.unadvertise().await.unwrap();
    let third = viewer.open_another(&room, "ada").await;
    third.say_in_chunks(&format!(r#"{{"op":"unsubscribe","channelIds":[{}]}}"#, gone.id())).await;
    third.settle_in_chunks().await;
    assert_eq!(statuses(&third.told()).len(), 2);
    // 6. All this happened on one connection and one instance.
    assert_eq!(viewer.recorder.received().len(), 1);
    assert_eq!(telemetry.session().stats().joins, 1);
}
