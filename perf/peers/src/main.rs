//! Compares lanecast on real sockets with the servers that people use today and with floors. `peers run` is the load
//! client and the runner, and `peers serve KIND` is one of the servers that it starts. See `README.md` beside this
//! package's manifest.

mod load;
mod memory;
mod options;
mod peer;
mod report;
mod runner;
mod serve;
mod server;
mod targets;
mod wire;

use std::process::ExitCode;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", kind] => kind.parse().map_err(Error::from).and_then(serve::serve),
        ["run", rest @ ..] => options::parse(rest).and_then(|options| runner::run(&options)),
        _ => Err(Error::from(options::USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}
