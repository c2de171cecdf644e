//! The floors: servers that show what the system calls alone cost. One thread accepts clients and reads their messages.
//! Another thread writes, in a bare loop over all clients. The bytes are framed once, and patched with each client's
//! subscription id. With a batch of one, there is one write per client per message; otherwise, all messages in the
//! queue are written at once per client. A [`Walk`] determines how the writes reach the kernel: with a system call for
//! each write here, with one ring for all writes in [`super::uring`].
//!
//! Bytes that the kernel doesn't take are kept and tried again. A client that has too many of them is reset.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::net::sockopt;

use super::Peer;
use crate::{Error, wire};

/// Capacity of the writer's queue, and the maximum number of messages in a batch.
pub const QUEUE: usize = 1024;

/// Maximum number of bytes that may wait for a client.
pub(super) const MAX_LEFT: usize = 8 << 20;

/// How soon bytes that wait are tried again, and how soon a new client is noticed when there is nothing to write.
const RETRY: Duration = Duration::from_millis(1);
const REST: Duration = Duration::from_millis(5);

const LISTENER: u64 = u64::MAX;

pub struct Floor {
    address: SocketAddr,
    messages: SyncSender<(u64, Bytes)>,
    subscribers: Arc<AtomicUsize>,
}

/// A client that has subscribed.
pub(super) struct Subscriber {
    pub(super) stream: Arc<TcpStream>,
    pub(super) id: u32,
    gone: Arc<AtomicBool>,
    pub(super) left: Vec<u8>,
}

/// Framed messages, and the offsets of the subscription ids in them.
#[derive(Default)]
pub(super) struct Template {
    bytes: Vec<u8>,
    ids: Vec<usize>,
}

/// A walk over all clients, which writes to each.
pub(super) trait Walk: Sized {
    /// Called on the thread that writes.
    fn new() -> Result<Self, Error>;

    /// Writes the bytes that wait for each client, then `template`. Bytes that the kernel doesn't take wait. A client
    /// that is gone, whose write fails, or for which too many bytes wait is removed from `subscribers`.
    fn write_all(&mut self, subscribers: &mut Vec<Subscriber>, template: &mut Template);
}

impl Floor {
    pub(super) fn start<W: Walk>(batch: usize) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let subscribers = Arc::new(AtomicUsize::new(0));
        let (messages, to_write) = mpsc::sync_channel(QUEUE);
        let (joined, newcomers) = mpsc::channel();
        let door = Door::new(listener, joined)?;
        std::thread::Builder::new().name("door".into()).spawn(move || door.run())?;
        let writer = Writer { subscribers: Vec::new(), newcomers, count: Arc::clone(&subscribers), batch };
        std::thread::Builder::new().name("writer".into()).spawn(move || {
            let walk = W::new().expect("what the writer needs can be had");
            writer.run(walk, &to_write);
        })?;
        Ok(Self { address, messages, subscribers })
    }
}

impl Peer for Floor {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn publish(&self, payload: Bytes, log_time: u64) {
        // Sending fails only when the writer has panicked, which shows in the results.
        let _ = self.messages.send((log_time, payload));
    }

    fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }
}

struct Writer {
    subscribers: Vec<Subscriber>,
    newcomers: Receiver<Subscriber>,
    count: Arc<AtomicUsize>,
    batch: usize,
}

impl Writer {
    fn run(mut self, mut walk: impl Walk, messages: &Receiver<(u64, Bytes)>) {
        let mut template = Template::default();
        loop {
            let behind = self.subscribers.iter().any(|subscriber| !subscriber.left.is_empty());
            let first = messages.try_recv().or_else(|_| messages.recv_timeout(if behind { RETRY } else { REST }));
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            template.bytes.clear();
            template.ids.clear();
            for (time, payload) in first.into_iter().chain(messages.try_iter().take(self.batch - 1)) {
                template.push(time, &payload);
            }
            self.subscribers.extend(self.newcomers.try_iter());
            walk.write_all(&mut self.subscribers, &mut template);
            self.count.store(self.subscribers.len(), Ordering::Relaxed);
        }
    }
}

impl Template {
    fn push(&mut self, time: u64, payload: &[u8]) {
        wire::put_header(&mut self.bytes, wire::BINARY, wire::HEAD + payload.len());
        self.ids.push(self.bytes.len() + 1);
        self.bytes.extend_from_slice(&wire::head(0, time));
        self.bytes.extend_from_slice(payload);
    }

    pub(super) fn for_id(&mut self, id: u32) -> &[u8] {
        for at in &self.ids {
            self.bytes[*at..*at + 4].copy_from_slice(&id.to_le_bytes());
        }
        &self.bytes
    }
}

/// A walk with a system call for each write.
pub(super) struct Calls;

impl Walk for Calls {
    fn new() -> Result<Self, Error> {
        Ok(Self)
    }

    fn write_all(&mut self, subscribers: &mut Vec<Subscriber>, template: &mut Template) {
        subscribers.retain_mut(|subscriber| {
            if subscriber.is_gone() {
                return false;
            }
            let bytes = template.for_id(subscriber.id);
            if bytes.is_empty() && subscriber.left.is_empty() {
                return true;
            }
            let fine = subscriber.write(bytes).is_ok() && subscriber.left.len() <= MAX_LEFT;
            if !fine {
                subscriber.reset();
            }
            fine
        });
    }
}

impl Subscriber {
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) {
        // A client that is gone already needs no reset.
        let _ = sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO));
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.left.is_empty() {
            let written = write(&self.stream, &self.left)?;
            self.left.drain(..written);
        }
        let written = if self.left.is_empty() && !bytes.is_empty() { write(&self.stream, bytes)? } else { 0 };
        self.left.extend_from_slice(&bytes[written..]);
        Ok(())
    }
}

fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

/// Accepts clients and reads their messages.
struct Door {
    poll: OwnedFd,
    listener: TcpListener,
    visitors: HashMap<u64, Visitor>,
    joined: mpsc::Sender<Subscriber>,
}

struct Visitor {
    stream: Arc<TcpStream>,
    heard: Vec<u8>,
    upgraded: bool,
    gone: Arc<AtomicBool>,
}

impl Door {
    fn new(listener: TcpListener, joined: mpsc::Sender<Subscriber>) -> Result<Self, Error> {
        listener.set_nonblocking(true)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        Ok(Self { poll, listener, visitors: HashMap::new(), joined })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("waiting for events failed: {error}"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    key => {
                        if !self.hear(key).unwrap_or(false)
                            && let Some(visitor) = self.visitors.remove(&key)
                        {
                            visitor.gone.store(true, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let key = stream.as_raw_fd() as u64;
            let prepared = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            let added = prepared.is_ok()
                && epoll::add(&self.poll, &stream, epoll::EventData::new_u64(key), epoll::EventFlags::IN).is_ok();
            if added {
                let (stream, gone) = (Arc::new(stream), Arc::default());
                self.visitors.insert(key, Visitor { stream, heard: Vec::new(), upgraded: false, gone });
            }
        }
    }

    /// Reads from a client. False if its connection has ended or it has sent no upgrade request.
    fn hear(&mut self, key: u64) -> io::Result<bool> {
        let Some(visitor) = self.visitors.get_mut(&key) else { return Ok(true) };
        let mut buffer = [0; 2048];
        let count = (&*visitor.stream).read(&mut buffer)?;
        if count == 0 {
            return Ok(false);
        }
        visitor.heard.extend_from_slice(&buffer[..count]);
        if !visitor.upgraded {
            let Some(end) = visitor.heard.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(true) };
            let request = String::from_utf8_lossy(&visitor.heard[..end]).into_owned();
            let Some(answer) = wire::upgrade_response(&request) else { return Ok(false) };
            let mut answer = answer.into_bytes();
            for text in [wire::SERVER_INFO, wire::ADVERTISE] {
                wire::put_header(&mut answer, wire::TEXT, text.len());
                answer.extend_from_slice(text.as_bytes());
            }
            (&*visitor.stream).write_all(&answer)?;
            visitor.heard.drain(..end + 4);
            visitor.upgraded = true;
        }
        while let Some((first, head, len)) = wire::header(&visitor.heard)
            && visitor.heard.len() >= head + len
        {
            let mut frame: Vec<u8> = visitor.heard.drain(..head + len).collect();
            let (mask, payload) = frame[head - 4..].split_at_mut(4);
            for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
                *byte ^= key;
            }
            if first == wire::TEXT
                && let Some(id) = wire::subscription_id(payload)
            {
                let (stream, gone) = (Arc::clone(&visitor.stream), Arc::clone(&visitor.gone));
                // Sending fails only when the writer has panicked.
                let _ = self.joined.send(Subscriber { stream, id, gone, left: Vec::new() });
            }
        }
        if visitor.heard.is_empty() {
            visitor.heard = Vec::new();
        }
        Ok(true)
    }
}
