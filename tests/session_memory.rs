//! What a session costs in memory, whatever the number of the runtime's workers. Measured as the growth of the
//! process's resident memory, so this test has a binary of its own.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;
use std::task::Poll;
use std::{env, fs};

use bytes::Bytes;
use common::{Stage, StageSink, msg, presence, until};
use futures_util::future::join_all;
use lanecast::Session;
use tokio::runtime::Builder;

/// How many sessions are measured together.
const SESSIONS: usize = 200;

/// What an idle session may take, in bytes, and one with [`MEMBERS`].
const IDLE: usize = 60_000;
const WITH_MEMBERS: usize = 150_000;

const MEMBERS: usize = 20;

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is always there");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1_000
}

type Sessions = Vec<(Stage<Bytes>, Session<Stage<Bytes>>)>;

/// Builds the sessions, each in a room of its own whose sinks take everything and keep nothing.
fn build(count: usize) -> Sessions {
    let room = || Stage::<Bytes>::new(|_, _| async { Ok(StageSink::new(|_, _| Poll::Ready(Ok(())))) });
    (0..count).map(|_| room()).map(|stage| (stage.clone(), stage.session(|builder| builder))).collect()
}

/// Has `count` participants join each session.
async fn join(sessions: &Sessions, names: std::ops::Range<usize>) {
    for (stage, session) in sessions {
        for name in names.clone() {
            stage.join(presence(&format!("viewer-{name}"), &format!("PA_{name}"), 1));
        }
        until(|| session.stats().participants == names.end).await;
    }
}

/// Publishes one message after the other, far more than the log has slots.
async fn publish(sessions: &Sessions) {
    for (_, session) in sessions {
        for sent in 1..=2_000 {
            session.broadcast(msg("a message")).await.expect("the session is open");
            if sent % 8 == 0 {
                let before = session.stats().account;
                until(|| session.stats().shard_lag == 0).await;
                assert!(before.offered <= session.stats().account.offered);
            }
        }
    }
}

/// Names the number of workers to the process that measures with it.
const WORKERS: &str = "LANECAST_TEST_WORKERS";

/// Measures with so many workers, in a process that has done nothing else.
fn measure(workers: usize) {
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build().expect("a runtime");
    let (idle, with_members) = runtime.block_on(async {
        // What the first of them takes for all others: the stacks of the threads, tables of the test.
        let first = build(1);
        join(&first, 0..MEMBERS).await;
        publish(&first).await;
        let before = resident();
        let sessions = build(SESSIONS);
        // Every task of theirs has run once when a task that was spawned behind them has run on each worker.
        join_all((0..4 * workers).map(|_| tokio::spawn(tokio::task::yield_now()))).await;
        let idle = resident().saturating_sub(before) / SESSIONS;
        join(&sessions, 0..MEMBERS).await;
        publish(&sessions).await;
        (idle, resident().saturating_sub(before) / SESSIONS)
    });
    println!("{workers} workers: an idle session takes {idle} bytes, one with {MEMBERS} members {with_members}");
    assert!(idle <= IDLE, "an idle session takes {idle} bytes with {workers} workers");
    assert!(with_members <= WITH_MEMBERS, "a session with members takes {with_members} bytes with {workers} workers");
}

#[test]
fn a_session_takes_little_memory_whatever_the_number_of_workers() {
    if let Ok(workers) = env::var(WORKERS) {
        return measure(workers.parse().expect("this test has set it"));
    }
    for workers in [2, 64] {
        let mut again = Command::new(env::current_exe().expect("it runs"));
        again.args(["--exact", "a_session_takes_little_memory_whatever_the_number_of_workers", "--nocapture"]);
        let measured = again.env(WORKERS, workers.to_string()).status().expect("it runs once more");
        assert!(measured.success(), "with {workers} workers");
    }
}
