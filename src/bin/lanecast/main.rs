//! The command-line program: `lanecast serve` publishes this host's telemetry, and `lanecast watch` prints what a
//! server publishes.

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

/// Why the program ends early, in one line for a person to read.
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
            // It is not an error if nobody reads standard output any more.
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

/// Writes `message` to standard error as exactly one line, whatever a peer or the system has put into it.
fn complain(message: &str) {
    output::stderr().write(&format!("lanecast: {}\n", text::escape(message)));
}
