//! Compares lanecast on real sockets with the servers that people use today and with floors. `peers run` is the load
//! client and the runner, and `peers serve KIND` is one of the servers that it starts. `peers slow` measures them on a
//! slow link. See `README.md` beside this package's manifest.

mod load;
mod memory;
mod options;
mod peer;
mod report;
mod runner;
mod serve;
mod server;
mod slow;
mod targets;
mod wire;

use std::process::ExitCode;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", kind] => kind.parse().map_err(Error::from).and_then(serve::serve),
        ["slow", kbit, seconds, servers @ ..] => slow(kbit, seconds, servers),
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

fn slow(kbit: &str, seconds: &str, servers: &[&str]) -> Result<(), Error> {
    let servers: Vec<_> = servers.iter().map(|name| name.parse()).collect::<Result<_, String>>()?;
    slow::run(kbit.parse()?, seconds.parse()?, &servers)
}
