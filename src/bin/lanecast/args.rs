//! The arguments of the command line.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::Failure;
#[cfg(feature = "server-livekit")]
use crate::livekit::livekit_variables;
use crate::output;

/// Default address, on which `serve` listens and to which `watch` connects.
const DEFAULT_ADDR: &str = "127.0.0.1:8765";

/// The arguments of `serve` that configure how it listens. They conflict with `--livekit`.
#[cfg(feature = "server-livekit")]
const LISTENING: [&str; 5] = ["addr", "insecure", "public_urls", "allowed_origins", "trusted_proxies"];

#[cfg(feature = "server-livekit")]
const LIVEKIT_SERVE: &str = concat!(
    "Join a LiveKit room on this server instead of listening. The credentials come from the environment: ",
    livekit_variables!()
);

#[cfg(feature = "server-livekit")]
const LIVEKIT_WATCH: &str = concat!(
    "Watch the device in a LiveKit room on this server. The credentials come from the environment: ",
    livekit_variables!()
);

#[derive(Debug, Parser)]
#[command(name = "lanecast", version, about = "Live telemetry to thousands of viewers")]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show this host's telemetry to Foxglove and to `lanecast watch`
    Serve(ServeArgs),
    /// Print what a server publishes, one message per line
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Join a LiveKit room on this server instead of listening
    #[cfg(feature = "server-livekit")]
    #[arg(long, value_name = "URL", conflicts_with_all = LISTENING, long_help = LIVEKIT_SERVE)]
    pub(crate) livekit: Option<String>,
    /// Address to listen on: HOST:PORT, on all addresses of HOST; port 0 picks one that is free
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_ADDR)]
    addr: String,
    #[command(flatten)]
    pub(crate) visitors: Visitors,
    /// Messages per second on each channel, from 0.1 to 50
    #[arg(long, value_name = "HZ", default_value = "2")]
    pub(crate) rate: Rate,
    /// Allow --addr to name an address that other hosts can reach: viewers are not authenticated
    #[arg(long)]
    insecure: bool,
    /// Name of the server that viewers see [default: the host's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Don't send the server's time, so that viewers stamp messages with their own clocks
    #[arg(long)]
    pub(crate) no_time: bool,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

/// Viewers to admit that are refused by default.
#[derive(Debug, Args)]
pub(crate) struct Visitors {
    /// A URL under which viewers reach this server, through a proxy for example; may be repeated
    #[arg(long = "public-url", value_name = "URL")]
    pub(crate) public_urls: Vec<String>,
    /// Let web pages of this origin connect, such as https://app.example.com; may be repeated
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    pub(crate) allowed_origins: Vec<String>,
    /// A proxy's address, from which any number of viewers may connect; may be repeated
    #[arg(long = "trusted-proxy", value_name = "IP")]
    pub(crate) trusted_proxies: Vec<IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Watch the device in a LiveKit room on this server
    #[cfg(feature = "server-livekit")]
    #[arg(long, value_name = "URL", long_help = LIVEKIT_WATCH)]
    pub(crate) livekit: Option<String>,
    /// Print one JSON object per line, for each message and each gap; anything else still goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit when the connection is lost, instead of connecting again
    #[arg(long)]
    pub(crate) no_reconnect: bool,
    /// Print the channels and exit
    #[arg(long, conflicts_with = "count")]
    pub(crate) list: bool,
    /// Exit after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
    /// Server to watch [default: ws://127.0.0.1:8765]; may be left out before topics
    #[arg(value_name = "URL")]
    first: Option<String>,
    /// Topics to print [default: all]
    #[arg(value_name = "TOPIC")]
    others: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Verbosity {
    /// Write more to standard error; repeat the option twice or three times for still more
    #[arg(short = 'v', long = "verbose", action = clap::ArgAction::Count)]
    times: u8,
}

/// Samples per second, from 0.1 to 50.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(f64);

impl Rate {
    pub(crate) fn period(self) -> Duration {
        Duration::from_secs_f64(1.0 / self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.0)
    }
}

impl std::str::FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hz = text.parse().ok().filter(|hz| (0.1..=50.0).contains(hz));
        hz.map(Self).ok_or("give a number from 0.1 to 50")
    }
}

/// Why the program ends without running a command.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Help or version was requested: the text to print.
    Help(String),
    /// The command line is invalid: the error message.
    Usage(String),
}

/// Parses the command line.
pub(crate) fn parse() -> Result<Command, Exit> {
    Line::try_parse().map(|line| line.command).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Help(error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Exit::Usage("no command given: use `lanecast serve` or `lanecast watch` (see `lanecast --help`)".to_owned())
        }
        _ => Exit::Usage(in_one_line(&error.to_string())),
    })
}

/// The first paragraph of clap's message, in one line. Hints and usage follow that paragraph.
fn in_one_line(message: &str) -> String {
    let first = message.split("\n\n").next().unwrap_or(message);
    let words: Vec<_> = first.trim_start_matches("error: ").split_whitespace().collect();
    format!("{} (see `--help`)", words.join(" "))
}

impl ServeArgs {
    /// The addresses to listen on. They must be loopback addresses, unless `--insecure` is given.
    pub(crate) fn addrs(&self) -> Result<Vec<SocketAddr>, Failure> {
        let given = &self.addr;
        let found: Vec<_> = given.to_socket_addrs().map_err(|error| no_address(given, &error))?.collect();
        if found.is_empty() {
            return Err(no_address(given, &"the name has no address"));
        }
        if self.insecure || found.iter().all(is_loopback) {
            return Ok(found);
        }
        Err(Failure::new(format!(
            "--addr {given} can be reached from other hosts, and viewers are not authenticated: add --insecure to \
             allow that"
        )))
    }
}

/// Whether an address can be reached only from this host.
pub(crate) fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The error for an `--addr` that is not an address.
fn no_address(given: &str, error: &dyn fmt::Display) -> Failure {
    let why = match given.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => error.to_string(),
        Some((host, _)) if !host.is_empty() => "the port has to be a number from 0 to 65535".to_owned(),
        _ => "it has to be HOST:PORT".to_owned(),
    };
    Failure::new(format!("--addr {given:?} is no address to listen on: {why}; give HOST:PORT, like {DEFAULT_ADDR}"))
}

impl WatchArgs {
    /// The topics, when none of the arguments is a server.
    #[cfg(feature = "server-livekit")]
    pub(crate) fn topics(&self) -> Vec<&str> {
        self.first.iter().chain(&self.others).map(String::as_str).collect()
    }

    /// The server and the topics. The first argument is a topic, too, unless it looks like a server.
    pub(crate) fn target(&self) -> (String, Vec<&str>) {
        let topics = self.others.iter().map(String::as_str);
        match self.first.as_deref() {
            Some(first) if first.contains("://") => (first.to_owned(), topics.collect()),
            Some(first) if is_host_and_port(first) => (format!("ws://{first}"), topics.collect()),
            // Not a valid server, and unlikely to be a topic: kept as the server, which is then refused with a
            // suggestion.
            Some(first) if is_like_server(first) => (first.to_owned(), topics.collect()),
            first => (format!("ws://{DEFAULT_ADDR}"), first.into_iter().chain(topics).collect()),
        }
    }
}

/// Whether `word` begins with a host and a port number, which may be out of range.
fn is_host_and_port(word: &str) -> bool {
    let authority = &word[..word.find(['/', '?', '#']).unwrap_or(word.len())];
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    !host.is_empty() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `word` is a host without a port, or begins like a URL.
fn is_like_server(word: &str) -> bool {
    let begins = |start: &str| word.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    let schemes = ["ws:", "wss:", "http:", "https:", "ws//", "wss//"];
    schemes.into_iter().any(begins)
        || word.eq_ignore_ascii_case("localhost")
        || word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

impl Verbosity {
    /// Writes the library's traces to standard error, down to the requested level.
    pub(crate) fn apply(&self) {
        let level = match self.times {
            0 => LevelFilter::WARN,
            1 => LevelFilter::INFO,
            2 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        // A separate thread writes the traces: a log that nobody reads must not block a worker.
        let log = tracing_subscriber::fmt().log_internal_errors(false).with_writer(output::stderr).with_ansi(false);
        log.with_max_level(level).init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Line::command().debug_assert();
    }

    #[test]
    fn the_first_word_is_the_server_if_it_looks_like_one() {
        let target = |words: &[&str]| {
            let line = Line::try_parse_from([&["lanecast", "watch"], words].concat()).unwrap();
            let Command::Watch(args) = line.command else { panic!("not watch") };
            let (url, topics) = args.target();
            (url, topics.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let default = "ws://127.0.0.1:8765".to_owned();
        assert_eq!(target(&[]), (default.clone(), vec![]));
        assert_eq!(target(&["/cpu", "/load"]), (default.clone(), vec!["/cpu".to_owned(), "/load".to_owned()]));
        assert_eq!(target(&["cpu"]), (default, vec!["cpu".to_owned()]));
        assert_eq!(target(&["ws://h:1", "/cpu"]), ("ws://h:1".to_owned(), vec!["/cpu".to_owned()]));
        assert_eq!(target(&["h:1"]), ("ws://h:1".to_owned(), vec![]));
        assert_eq!(target(&["[::1]:80"]), ("ws://[::1]:80".to_owned(), vec![]));
        assert_eq!(target(&["h:1/live?a=b"]), ("ws://h:1/live?a=b".to_owned(), vec![]));
        // Not valid servers, and not topics either.
        assert_eq!(target(&["h:99999", "/cpu"]), ("ws://h:99999".to_owned(), vec!["/cpu".to_owned()]));
        for word in ["localhost", "127.0.0.1", "[::1]", "ws:/h:x", "WS//h"] {
            assert_eq!(target(&[word]), (word.to_owned(), vec![]));
        }
    }

    #[test]
    fn usage_errors_take_one_line() {
        for words in [
            &["serve", "--nonsense"][..],
            &["serve", "--rate", "0"],
            &["fly"],
            &["watch", "--count", "0"],
            &["serve", "--rate"],
        ] {
            let error = Line::try_parse_from([&["lanecast"], words].concat()).unwrap_err();
            let line = in_one_line(&error.to_string());
            assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
        }
    }

    #[test]
    fn a_rate_is_checked() {
        for bad in ["0", "-1", "51", "NaN", "inf", "x", ""] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert_eq!("4".parse::<Rate>().unwrap().period(), Duration::from_millis(250));
    }
}
