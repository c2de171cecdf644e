//! Order across the two lanes: a message that happened before another arrives before it, at every participant that gets
//! both.

use std::sync::{Arc, Barrier, mpsc};
use std::time::Instant;

use bytes::Bytes;
use lanecast::room::memory::MemoryRoom;
use lanecast::{Participant, Session, SubscriptionTag, Topic};

use crate::common::{
    self, Streams, Valve, close_settled, id, joined, live, memory, msg, presence, size, texts, within,
};

/// One thread sends directly and broadcasts in turn, in runs of every length up to five.
#[tokio::test]
async fn messages_of_one_thread_arrive_in_order() {
    for stalled in [false, true] {
        let (stage, streams) = Streams::stage(move |_| if stalled { Valve::shut() } else { Valve::open() });
        let session = stage.session(|builder| builder);
        stage.join(presence("ada", "PA_1", 1));
        let ada = live(&session, "ada").await;
        let expected = texts("m", 600);
        let mut run = 0;
        let mut direct = false;
        for (n, text) in expected.iter().enumerate() {
            if direct {
                ada.send(msg(text.clone())).expect("there is capacity");
            } else {
                session.broadcast(msg(text.clone())).await.expect("the session is open");
            }
            if run == 0 {
                direct = !direct;
                run = n % 5;
            } else {
                run -= 1;
            }
            if n % 97 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let valve = streams.nth("ada", 0).await;
        valve.release();
        valve.wait_for(|seen| seen.flushed.len() == 600).await;
        assert!(valve.lock().flushed == expected, "stalled: {stalled}");
        assert_eq!(session.stats().resets.total(), 0);
    }
}

/// A direct message that is pushed while broadcasts wait in the backlog keeps its place between them, also if the shard
/// hands the backlog on in many parts.
#[tokio::test]
async fn a_backlog_handed_on_in_parts_keeps_the_order() {
    let (stage, streams) = Streams::stage(|_| Valve::shut());
    let session = stage.session(|builder| builder.queue_capacity(40));
    stage.join(presence("ada", "PA_1", 1));
    let ada = live(&session, "ada").await;
    let valve = streams.nth("ada", 0).await;
    let mut expected = Vec::new();
    for round in 0..200 {
        for part in 0..3 {
            let text = format!("{round}.{part}");
            if part == 1 {
                ada.send(msg(text.clone())).expect("there is capacity");
            } else {
                session.broadcast(msg(text.clone())).await.expect("the session is open");
            }
            expected.push(text);
        }
        // In half of the rounds everything is flushed before the next, in the others it piles up.
        if round % 8 == 7 {
            while valve.lock().flushed.len() < expected.len() {
                valve.let_through(1);
                tokio::task::yield_now().await;
            }
        } else {
            tokio::task::yield_now().await;
        }
    }
    valve.release();
    valve.wait_for(|seen| seen.flushed.len() == expected.len()).await;
    assert!(valve.lock().flushed == expected);
}

/// What a thread does when it has the token.
fn act(session: &Session<MemoryRoom<Bytes>>, all: &[Participant<Bytes>], topic: &Topic, how: usize, text: &str) {
    let patience = Instant::now() + common::PATIENCE;
    let mut message = msg(text);
    loop {
        let answer = match how % 4 {
            0 => session.try_broadcast(message).map_err(lanecast::TryBroadcastError::into_message),
            1 => session.try_broadcast_to(topic, message).map_err(lanecast::TryBroadcastError::into_message),
            _ => {
                for participant in all {
                    let mut copy = message.clone();
                    while let Err(error) = participant.try_send(copy) {
                        assert!(Instant::now() < patience, "a queue never empties");
                        copy = error.into_message();
                        std::thread::yield_now();
                    }
                }
                Ok(())
            }
        };
        let Err(back) = answer else { return };
        assert!(Instant::now() < patience, "the log never empties");
        message = back;
        std::thread::yield_now();
    }
}

// 1. A token goes round three threads; the thread that has it sends, by one lane or the other, and hands it on. 2. A
// fourth thread sends noise by both lanes all the while, so that bits are set and queues filled already. 3. Every
// participant, on two shards, receives all of the token's messages, in the order in which they were sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_ordered_across_threads_arrive_in_order() {
    let rounds = size(3_000, 100_000);
    let (room, session) = memory(|builder| builder.shards(2).queue_capacity(4_096).log_capacity(64));
    let names = ["ada", "bob", "cyd", "dan"];
    let mut all = Vec::new();
    let topic = Topic::new();
    for name in names {
        let participant = joined(&room, &session, name).await;
        participant.subscribe(&topic, SubscriptionTag(0)).await;
        all.push(participant);
    }
    let all: Arc<[_]> = all.into();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel::<usize>()).unzip();
    senders[0].send(0).expect("the thread is about to listen");
    let mut threads = Vec::new();
    for (thread, receiver) in receivers.into_iter().enumerate() {
        let next = senders[(thread + 1) % 3].clone();
        let (session, all, topic) = (session.clone(), Arc::clone(&all), topic.clone());
        threads.push(std::thread::spawn(move || {
            while let Ok(step) = receiver.recv() {
                if step >= rounds {
                    let _ = next.send(step);
                    return;
                }
                // The pattern of lanes shifts against the three threads.
                act(&session, &all, &topic, step / 3 + step, &format!("t{step}"));
                let _ = next.send(step + 1);
            }
        }));
    }
    drop(senders);
    let noise = std::thread::spawn({
        let (session, all, topic) = (session.clone(), Arc::clone(&all), topic.clone());
        move || (0..rounds / 2).for_each(|n| act(&session, &all, &topic, n, "noise"))
    });
    let expected = texts("t", rounds);
    for name in names {
        let recorder = room.recorder(&id(name));
        let total = rounds + rounds / 2;
        let received = within(recorder.wait_for(|all| all[0].messages.len() == total)).await;
        let token: Vec<_> = received[0].messages.iter().filter(|text| text.starts_with(b"t")).cloned().collect();
        assert!(token == expected, "{name} saw the token out of order");
    }
    threads.into_iter().for_each(|thread| thread.join().expect("no thread panics"));
    noise.join().expect("no thread panics");
    assert_eq!(session.stats().resets.total(), 0);
    close_settled(&session).await;
}

// 1. Two threads push into the same participant's queue at the same moment, so that the second finds the bit set. 2.
// Each then broadcasts. 3. Each one's direct message comes before its own broadcast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_does_not_overtake_its_senders_direct_message() {
    let rounds = size(2_000, 50_000);
    let (room, session) = memory(|builder| builder.queue_capacity(1 << 16));
    let ada = joined(&room, &session, "ada").await;
    let barrier = Arc::new(Barrier::new(2));
    let threads: Vec<_> = ["a", "b"]
        .map(|name| {
            let (session, ada, barrier) = (session.clone(), ada.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                for round in 0..rounds {
                    barrier.wait();
                    ada.try_send(msg(format!("{name}{}", 2 * round))).expect("there is capacity");
                    let mut message = msg(format!("{name}{}", 2 * round + 1));
                    while let Err(error) = session.try_broadcast(message) {
                        message = error.into_message();
                        std::thread::yield_now();
                    }
                }
            })
        })
        .into();
    let received = within(room.recorder(&id("ada")).wait_for(|all| all[0].messages.len() == 4 * rounds)).await;
    threads.into_iter().for_each(|thread| thread.join().expect("no thread panics"));
    for name in ["a", "b"] {
        let own: Vec<_> =
            received[0].messages.iter().filter(|text| text.starts_with(name.as_bytes())).cloned().collect();
        assert!(own == texts(name, 2 * rounds), "{name}'s messages are out of order");
    }
}
