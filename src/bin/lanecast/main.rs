//! The command line: `lanecast serve` shows this host's telemetry, `lanecast watch` prints what a server shows.

mod args;
mod descriptors;
mod host;
mod interrupts;
#[cfg(feature = "server-livekit")]
mod livekit;
mod output;
mod report;
mod secrets;
mod serve;
mod text;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

use self::args::Command;

/// Why the program ends early: one line for a person to read.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

fn main() -> ExitCode {
    secrets::collect();
    output::report_panics();
    let done = match args::parse() {
        Ok(Command::Serve(args)) => serve::run(&args),
        Ok(Command::Watch(args)) => watch::run(&args),
        Err(args::Exit::Help(text)) => {
            // Nobody reads it any more: fine.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(args::Exit::Usage(message)) => {
            complain(&message);
            output::finish();
            return ExitCode::from(2);
        }
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            complain(&message);
            ExitCode::FAILURE
        }
    };
    output::finish();
    code
}

/// Exactly one line, whatever a peer or the system has put into the message.
fn complain(message: &str) {
    output::stderr().write(&format!("lanecast: {}\n", text::escape(message)));
}
