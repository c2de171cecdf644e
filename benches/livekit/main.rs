//! The cost of the streams of a LiveKit room, beside a plain loop of `write` over the same streams: in process, and on
//! a real server if `LIVEKIT_URL` names one. Run by `perf/livekit.sh`.
//!
//! Arguments: `--test` (only the smaller cases, each once), `--out DIR` (where the table goes).

#[cfg(unix)]
mod in_process;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod rounds;
#[cfg(all(unix, feature = "livekit", feature = "livekit-token"))]
mod server;
#[cfg(all(unix, feature = "livekit", feature = "livekit-token"))]
mod viewers;
#[cfg(unix)]
mod way;

#[cfg(unix)]
fn main() {
    // cargo appends an argument of its own, `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    #[cfg(all(feature = "livekit", feature = "livekit-token"))]
    if let [mode, room, count] = arguments.as_slice()
        && mode == viewers::MODE
    {
        return viewers::main(room, count.parse().expect("a number of viewers"));
    }
    let testing = arguments.iter().any(|argument| argument == "--test");
    let mut report = report::Report::default();
    in_process::measure(testing, &mut report);
    on_a_server(testing, &mut report);
    if let Some(at) = arguments.iter().position(|argument| argument == "--out") {
        let folder = arguments.get(at + 1).expect("--out DIR");
        report.write(folder.as_ref()).expect("the results can be written");
    }
}

#[cfg(all(unix, feature = "livekit", feature = "livekit-token"))]
fn on_a_server(testing: bool, report: &mut report::Report) {
    if std::env::var_os("LIVEKIT_URL").is_none() {
        return report.say("On a server: left out, LIVEKIT_URL names none.");
    }
    server::measure(testing, report);
}

#[cfg(all(unix, not(all(feature = "livekit", feature = "livekit-token"))))]
fn on_a_server(_: bool, report: &mut report::Report) {
    report.say("On a server: left out, the features `livekit` and `livekit-token` are needed.");
}

#[cfg(not(unix))]
fn main() {
    println!("left out: reading the processor time needs Unix");
}
