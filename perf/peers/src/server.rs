//! The runner's side of a server process.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::peer::{BUN, Kind};
use crate::{Error, memory, wire};

const UWEBSOCKETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/uwebsockets.js");

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command that starts a server.
fn command(kind: Kind) -> Result<Command, Error> {
    if kind != Kind::UWebSockets {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", kind.name()]);
        return Ok(command);
    }
    if !kind.is_available() {
        return Err(format!("{kind}: bun isn't installed, run.sh installs it").into());
    }
    let mut command = Command::new(BUN);
    command.args([UWEBSOCKETS, wire::SUBPROTOCOL, wire::SERVER_INFO, wire::ADVERTISE]);
    Ok(command)
}

pub struct Server {
    process: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    /// The answer to `publish`, which may arrive while the answer to another command is awaited.
    published: RefCell<Option<(u64, u64)>>,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(kind: Kind) -> Result<Self, Error> {
        let mut process = command(kind)?.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let commands = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let first: String = lines.recv_timeout(PATIENCE)?;
        let address = first.strip_prefix("listening ").ok_or("the server doesn't listen")?.parse()?;
        Ok(Self { process, commands, lines, published: RefCell::new(None), address })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn resident(&self) -> Result<u64, Error> {
        memory::resident(self.id())
    }

    /// CPU time that the server has used, in nanoseconds.
    pub fn cpu(&mut self) -> Result<u64, Error> {
        self.ask("cpu")
    }

    pub fn subscribers(&mut self) -> Result<u64, Error> {
        self.ask("subscribers")
    }

    pub fn publish(&mut self, rate: f64, time: Duration, size: usize) -> Result<(), Error> {
        *self.published.borrow_mut() = None;
        writeln!(self.commands, "publish {rate} {} {size} {}", time.as_millis(), wire::now())?;
        Ok(())
    }

    /// The first number and the count of the published messages, once publishing is done.
    pub fn published(&self) -> Option<(u64, u64)> {
        while let Ok(line) = self.lines.try_recv() {
            self.note(&line);
        }
        *self.published.borrow()
    }

    fn ask(&mut self, what: &str) -> Result<u64, Error> {
        writeln!(self.commands, "{what}")?;
        let until = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()))?;
            match line.strip_prefix(what) {
                Some(answer) => return Ok(answer.trim().parse()?),
                None => self.note(&line),
            }
        }
    }

    fn note(&self, line: &str) {
        let mut words = line.split(' ');
        if words.next() == Some("published") {
            let mut number = || words.next().and_then(|word| word.parse().ok());
            *self.published.borrow_mut() = number().zip(number());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
