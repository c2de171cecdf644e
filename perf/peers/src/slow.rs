//! `peers slow`: how old messages are when they arrive over a slow link, and what the link carries of them.
//!
//! The link is the namespace's loopback: `perf/slow-links.sh` slows it down before it starts this.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::peer::Kind;
use crate::server::Server;
use crate::{Error, wire};

/// The stream is so many times what the link carries.
const TIMES: f64 = 10.0;

/// How long the server may take to subscribe the viewer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures each of `servers` for `seconds` with a stream of ten times `kbit` kbit/s, and prints a line of a table for
/// each.
pub fn run(kbit: f64, seconds: f64, servers: &[Kind]) -> Result<(), Error> {
    let size = (kbit as usize * 4).clamp(1000, 4000);
    for kind in servers {
        let mut server = Server::start(*kind)?;
        let mut viewer = Viewer::connect(server.address)?;
        let until = Instant::now() + PATIENCE;
        while server.subscribers()? == 0 {
            viewer.read()?;
            if Instant::now() > until {
                return Err("the viewer isn't subscribed".into());
            }
        }
        let rate = TIMES * kbit * 125.0 / size as f64;
        server.publish(rate, Duration::from_secs_f64(seconds), size)?;
        let begun = Instant::now();
        let mut resets = 0;
        while begun.elapsed().as_secs_f64() < seconds {
            if viewer.read()? == Reading::Closed {
                resets += 1;
                let before = viewer;
                viewer = Viewer { ages: before.ages, bytes: before.bytes, ..Viewer::connect(server.address)? };
            }
        }
        let age = |quantile| viewer.ages.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "| {kbit} kbit/s | {kind} | {:.2} | {:.2} | {:.2} | {:.0} | {} of {:.0} | {resets} |",
            age(0.5),
            age(0.99),
            age(1.0),
            viewer.bytes as f64 / 125.0 / seconds,
            viewer.ages.len(),
            rate * seconds,
        );
    }
    Ok(())
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    Closed,
}

struct Viewer {
    stream: TcpStream,
    /// What has arrived and isn't read; the beginning may be the answer to the upgrade.
    unread: Vec<u8>,
    is_upgraded: bool,
    /// Milliseconds from when a message was due until it arrived.
    ages: Histogram<u64>,
    /// Bytes of messages.
    bytes: u64,
}

impl Viewer {
    fn connect(server: SocketAddr) -> Result<Self, Error> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        stream.write_all(wire::upgrade_request().as_bytes())?;
        let ages = Histogram::new_with_max(3_600_000, 3).expect("the bounds are in order");
        Ok(Self { stream, unread: Vec::new(), is_upgraded: false, ages, bytes: 0 })
    }

    /// Reads what has arrived, and waits for it a little.
    fn read(&mut self) -> Result<Reading, Error> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Ok(Reading::Closed),
            Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(Reading::Open);
            }
            Err(_) => return Ok(Reading::Closed),
        }
        let now = wire::now();
        if !self.is_upgraded {
            let Some(end) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return Ok(Reading::Open);
            };
            self.unread.drain(..end + 4);
            self.is_upgraded = true;
        }
        while let Some((first, head, len)) = wire::header(&self.unread)
            && self.unread.len() >= head + len
        {
            let frame: Vec<u8> = self.unread.drain(..head + len).skip(head).collect();
            match first {
                wire::TEXT => {
                    if let Some(channel) = wire::advertised_channel(&frame) {
                        self.stream.write_all(&wire::masked(wire::TEXT, wire::subscribe(7, channel).as_bytes()))?;
                    }
                }
                wire::PING => self.stream.write_all(&wire::masked(wire::PONG, &frame))?,
                wire::CLOSE => return Ok(Reading::Closed),
                wire::BINARY if frame.first() == Some(&wire::MESSAGE_DATA) => {
                    let due = frame.get(wire::HEAD + 8..).and_then(|rest| rest.first_chunk());
                    let due = u64::from_le_bytes(*due.ok_or("a message without a time")?);
                    self.ages.saturating_record(now.saturating_sub(due) / 1_000_000);
                    self.bytes += (frame.len() - wire::HEAD) as u64;
                }
                _ => {}
            }
        }
        Ok(Reading::Open)
    }
}
