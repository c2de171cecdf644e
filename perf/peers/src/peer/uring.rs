//! The single-write floor's walk through a ring: each client's write is put into the ring, and one system call performs
//! all of them.
//!
//! A write doesn't wait in the ring: it completes within that call, with as many bytes as the kernel took. So the ring
//! needs capacity only for a walk over [`ENTRIES`] clients (more clients take another call), nothing is ever cancelled,
//! and a slow client is treated as by the other floors. A write owns what it needs until it completes: the bytes, and a
//! handle of the stream.

use std::io::ErrorKind;
use std::mem;
use std::net::TcpStream;
use std::sync::Arc;

use compio_buf::IntoInner;
use compio_driver::op::Send;
use compio_driver::{Key, Proactor, PushEntry};
use rustix::net::SendFlags;

use super::floor::{MAX_LEFT, Subscriber, Template, Walk};
use crate::Error;

/// Maximum number of writes per system call.
const ENTRIES: u32 = 4096;

type Write = Send<Vec<u8>, Arc<TcpStream>>;

pub(super) struct Ring {
    proactor: Proactor,
    /// Writes in progress, each with the index of its client.
    begun: Vec<(usize, Key<Write>)>,
}

impl Walk for Ring {
    fn new() -> Result<Self, Error> {
        let proactor = Proactor::builder().capacity(ENTRIES).single_issuer(true).defer_taskrun(true).build()?;
        Ok(Self { proactor, begun: Vec::new() })
    }

    fn write_all(&mut self, subscribers: &mut Vec<Subscriber>, template: &mut Template) {
        subscribers.retain(|subscriber| !subscriber.is_gone());
        let mut failed = Vec::new();
        for (index, subscriber) in subscribers.iter_mut().enumerate() {
            let mut bytes = mem::take(&mut subscriber.left);
            bytes.extend_from_slice(template.for_id(subscriber.id));
            if bytes.is_empty() {
                subscriber.left = bytes;
                continue;
            }
            let write = Write::new(Arc::clone(&subscriber.stream), bytes, SendFlags::DONTWAIT);
            match self.proactor.push(write) {
                PushEntry::Pending(key) => self.begun.push((index, key)),
                // A write is handed back at once only if the ring fails.
                PushEntry::Ready(done) => panic!("a write can't be begun: {:?}", done.0),
            }
        }
        for (index, mut key) in self.begun.drain(..) {
            let done = loop {
                match self.proactor.pop(key) {
                    PushEntry::Ready(done) => break done,
                    PushEntry::Pending(pending) => key = pending,
                }
                match self.proactor.poll(None) {
                    Err(error) if error.kind() != ErrorKind::Interrupted => panic!("the ring fails: {error}"),
                    _ => {}
                }
            };
            let (written, mut bytes) = (done.0, done.1.into_inner());
            let subscriber = &mut subscribers[index];
            let fine = match written {
                Ok(count) => {
                    bytes.drain(..count);
                    bytes.len() <= MAX_LEFT
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock && bytes.len() <= MAX_LEFT,
            };
            subscriber.left = bytes;
            if !fine {
                subscriber.reset();
                failed.push(index);
            }
        }
        // In descending order, so that the client that is swapped into a place is one that stays.
        for index in failed.into_iter().rev() {
            subscribers.swap_remove(index);
        }
    }
}
