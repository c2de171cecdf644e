//! The load client: thousands of WebSocket clients on one thread, driven by epoll. A client owns a buffer only while it
//! has an incomplete frame; all clients read through one shared buffer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::runner::STALL_BUFFER;
use crate::{Error, wire};

/// Initial length of the shared read buffer, in bytes.
const READ: usize = 256 << 10;

/// Maximum number of clients in the handshake at once; fewer than a listener's backlog.
const CONNECTING: usize = 64;

/// The longest wait for events, so that [`Load::drive`] asks often enough whether to go on.
const TICK: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Upgrading,
    /// Waits for the channel to be advertised.
    Upgraded,
    /// Has sent its subscription.
    Subscribed,
    /// Closed by the server with this code, or without a code.
    Closed(Option<u16>),
}

struct Client {
    stream: TcpStream,
    state: State,
    subscription: u32,
    /// The beginning of an incomplete frame.
    part: Vec<u8>,
    /// The number that is expected next; `None` before the first message.
    next: Option<u64>,
    received: u64,
    gaps: u64,
}

/// The figures since [`Load::begin`].
pub struct Window {
    /// Nanoseconds from when a message was due to when it was read.
    pub latency: Histogram<u64>,
    pub received: u64,
    /// Number of messages that did not follow the one before.
    pub gaps: u64,
    /// Number of messages with a subscription id that is not the client's.
    pub misaddressed: u64,
}

impl Window {
    fn new() -> Self {
        // Values up to a minute, with two significant digits.
        let latency = Histogram::new_with_max(60_000_000_000, 2).expect("the bounds are in order");
        Self { latency, received: 0, gaps: 0, misaddressed: 0 }
    }
}

pub struct Load {
    poll: OwnedFd,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    connecting: usize,
    subscribed: usize,
    closed: usize,
    /// Number of clients, from the first on, with a receive buffer of [`STALL_BUFFER`] bytes that doesn't grow.
    small_buffers: usize,
    /// All clients subscribe with one id.
    equal_ids: bool,
    pub window: Window,
}

impl Load {
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            buffer: vec![0; READ],
            connecting: 0,
            subscribed: 0,
            closed: 0,
            small_buffers: 0,
            equal_ids: false,
            window: Window::new(),
        })
    }

    /// Gives the first `count` clients a small receive buffer in the kernel.
    pub fn with_small_buffers(mut self, count: usize) -> Self {
        self.small_buffers = count;
        self
    }

    /// Lets all clients subscribe with one id.
    pub fn with_equal_ids(mut self, equal_ids: bool) -> Self {
        self.equal_ids = equal_ids;
        self
    }

    /// Number of connected clients that have sent their subscription.
    pub fn subscribed(&self) -> usize {
        self.subscribed
    }

    /// Connects clients until there are `count` of them. Gives up after `patience`.
    pub fn connect(&mut self, server: SocketAddr, count: usize, patience: Duration) -> Result<(), Error> {
        let until = Instant::now() + patience;
        while self.subscribed + self.closed < count {
            while self.clients.len() < count && self.connecting < CONNECTING {
                self.add(server)?;
            }
            self.poll(Duration::from_millis(1))?;
            if Instant::now() > until {
                return Err(format!("only {} of {count} clients got in", self.subscribed).into());
            }
        }
        Ok(())
    }

    fn add(&mut self, server: SocketAddr) -> Result<(), Error> {
        // The socket may block here: on loopback the kernel answers at once, because fewer connections wait than a
        // listener's backlog holds.
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        if self.clients.len() < self.small_buffers {
            sockopt::set_socket_recv_buffer_size(&socket, STALL_BUFFER)?;
        }
        rustix::net::connect(&socket, &server)?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Data in flight is of no interest once a measurement is over, and no port may stay taken.
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.write_all(wire::upgrade_request().as_bytes())?;
        let key = self.clients.len();
        epoll::add(&self.poll, &stream, epoll::EventData::new_u64(key as u64), epoll::EventFlags::IN)?;
        self.clients.push(Client {
            stream,
            state: State::Upgrading,
            subscription: if self.equal_ids { 1 } else { 1000 + 7 * key as u32 },
            part: Vec::new(),
            next: None,
            received: 0,
            gaps: 0,
        });
        self.connecting += 1;
        Ok(())
    }

    /// Stops or resumes reading from the first `count` clients.
    pub fn stall(&mut self, count: usize, stalled: bool) -> Result<(), Error> {
        for (key, client) in self.clients.iter().enumerate().take(count) {
            if matches!(client.state, State::Closed(_)) {
                continue;
            }
            let data = epoll::EventData::new_u64(key as u64);
            if stalled {
                epoll::delete(&self.poll, &client.stream)?;
            } else {
                epoll::add(&self.poll, &client.stream, data, epoll::EventFlags::IN)?;
            }
        }
        Ok(())
    }

    /// State, number of messages and number of gaps of each client, since [`begin`](Self::begin).
    pub fn each(&self) -> impl Iterator<Item = (State, u64, u64)> {
        self.clients.iter().map(|client| (client.state, client.received, client.gaps))
    }

    /// Resets all counts.
    pub fn begin(&mut self) {
        self.window = Window::new();
        for client in &mut self.clients {
            (client.received, client.gaps) = (0, 0);
        }
    }

    /// Reads until `done` returns true, for at most `limit`. Returns whether `done` did.
    pub fn drive(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<bool, Error> {
        let until = Instant::now() + limit;
        loop {
            if done(self) {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.poll(left.min(TICK))?;
        }
    }

    fn poll(&mut self, wait: Duration) -> Result<(), Error> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 512];
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().min(999_999_999) as _ };
        let count = match epoll::wait(&self.poll, &mut events, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => 0,
            count => count?,
        };
        for event in &events[..count] {
            self.read(event.data.u64() as usize);
        }
        Ok(())
    }

    /// Reads from a client once.
    fn read(&mut self, key: usize) {
        let client = &mut self.clients[key];
        let had = client.part.len();
        if self.buffer.len() < had + READ / 2 {
            self.buffer.resize(had + READ, 0);
        }
        self.buffer[..had].copy_from_slice(&client.part);
        let count = match client.stream.read(&mut self.buffer[had..]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) | Ok(0) => return self.lose(key, None),
            Ok(count) => count,
        };
        let input = &self.buffer[..had + count];
        let was = client.state;
        let used = client.take_in(input, &mut self.window);
        client.part.clear();
        client.part.extend_from_slice(&input[used..]);
        if client.part.is_empty() && client.part.capacity() > 0 {
            client.part = Vec::new();
        }
        let is = client.state;
        if let State::Closed(code) = is {
            client.state = was;
            self.lose(key, code);
        } else if is == State::Subscribed && was != State::Subscribed {
            self.connecting -= 1;
            self.subscribed += 1;
        }
    }

    fn lose(&mut self, key: usize, code: Option<u16>) {
        let client = &mut self.clients[key];
        match client.state {
            State::Closed(_) => return,
            State::Subscribed => self.subscribed -= 1,
            State::Upgrading | State::Upgraded => self.connecting -= 1,
        }
        client.state = State::Closed(code);
        self.closed += 1;
        // It is not an error if the stream isn't registered any more.
        let _ = epoll::delete(&self.poll, &client.stream);
        let _ = client.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Client {
    /// Handles all complete frames. Returns the number of their bytes.
    fn take_in(&mut self, input: &[u8], window: &mut Window) -> usize {
        let mut at = 0;
        if self.state == State::Upgrading {
            let Some(end) = input.windows(4).position(|end| end == b"\r\n\r\n") else { return 0 };
            if !input.starts_with(b"HTTP/1.1 101") {
                self.state = State::Closed(None);
                return input.len();
            }
            self.state = State::Upgraded;
            at = end + 4;
        }
        let now = wire::now();
        while let Some((first, head, len)) = wire::header(&input[at..]) {
            let Some(payload) = input.get(at + head..at + head + len) else { break };
            at += head + len;
            match first {
                wire::BINARY => self.receive(payload, now, window),
                wire::TEXT => self.hear(payload),
                wire::PING => self.say(wire::PONG, payload),
                wire::CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    self.state = State::Closed(code);
                    return input.len();
                }
                _ => {}
            }
        }
        at
    }

    fn receive(&mut self, message: &[u8], now: u64, window: &mut Window) {
        let Some((head, payload)) = message.split_at_checked(wire::HEAD) else { return };
        let (Some(number), Some(due)) = (payload.first_chunk(), payload.get(8..).and_then(|due| due.first_chunk()))
        else {
            return;
        };
        let (number, due) = (u64::from_le_bytes(*number), u64::from_le_bytes(*due));
        window.misaddressed += u64::from(head[1..5] != self.subscription.to_le_bytes());
        window.latency.saturating_record(now.saturating_sub(due));
        window.received += 1;
        self.received += 1;
        if self.next.is_some_and(|next| next != number) {
            self.gaps += 1;
            window.gaps += 1;
        }
        self.next = Some(number + 1);
    }

    fn hear(&mut self, text: &[u8]) {
        if self.state == State::Upgraded
            && let Some(channel) = wire::advertised_channel(text)
        {
            self.say(wire::TEXT, wire::subscribe(self.subscription, channel).as_bytes());
            self.state = State::Subscribed;
        }
    }

    /// Sends a frame. A client sends so little that its socket always takes it. If not, the next read shows that the
    /// connection has ended.
    fn say(&mut self, first: u8, payload: &[u8]) {
        let _ = self.stream.write_all(&wire::masked(first, payload));
    }
}
