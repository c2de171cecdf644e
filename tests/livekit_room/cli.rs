//! The command line in a LiveKit room.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::kit::{Server, within};

fn lanecast(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lanecast"));
    command.args(words).args(["--livekit", &server.url]).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("LIVEKIT_TOKEN");
    command.env("LIVEKIT_ROOM", &server.room).env("LIVEKIT_API_KEY", &server.key);
    command.env("LIVEKIT_API_SECRET", &server.secret).env_remove("LIVEKIT_IDENTITY");
    command
}

/// Starts `lanecast serve`, and returns once it has listed all its channels.
async fn serve(server: &Server, words: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut serving = lanecast(server, words).spawn().expect("the program is built");
    let mut lines = BufReader::new(serving.stdout.take().expect("it is piped")).lines();
    let said = within(lines.next_line()).await.expect("it writes text").expect("it runs");
    assert!(said.starts_with("in room") && said.contains("/load"), "{said}");
    (serving, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_served_and_watched() {
    let Some(server) = Server::of_environment() else { return };
    let _serving = serve(&server, &["serve", "--rate", "20"]).await;
    let watched = lanecast(&server, &["watch", "--count", "3", "/session"]).output();
    let watched = within(watched).await.expect("the program is built");
    let (printed, said) = (String::from_utf8_lossy(&watched.stdout), String::from_utf8_lossy(&watched.stderr));
    assert!(watched.status.success(), "{said}");
    assert!(said.contains("! connected to") && said.contains("+ /cpu"), "{said}");
    assert_eq!(printed.lines().filter(|line| line.starts_with("/session ")).count(), 3, "{printed}");
}

/// `.ci/livekit` has built the example.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_can_be_watched() {
    let Some(server) = Server::of_environment() else { return };
    let mut example = Command::new(env!("CARGO"));
    example.args(["run", "--quiet", "--locked", "--offline", "--features", "server-livekit", "--example", "livekit"]);
    example.current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true).stdout(Stdio::piped());
    example.env("LIVEKIT_URL", &server.url).env("LIVEKIT_TOKEN", server.token("host"));
    let mut example = example.spawn().expect("cargo is there");
    let mut lines = BufReader::new(example.stdout.take().expect("it is piped")).lines();
    let said = within(lines.next_line()).await.expect("it writes text").expect("it runs");
    assert_eq!(said, "publishing /temperature");
    let watched = within(lanecast(&server, &["watch", "--count", "2", "/temperature"]).output()).await;
    let watched = watched.expect("the program is built");
    let printed = String::from_utf8_lossy(&watched.stdout);
    assert_eq!(printed.lines().filter(|line| line.contains("celsius")).count(), 2, "{printed}");
}

/// Secrets come from the environment or from files. An error takes one line, and contains no secret.
#[tokio::test(flavor = "multi_thread")]
async fn errors_take_one_line_and_contain_no_secret() {
    let Some(server) = Server::of_environment() else { return };
    let secret = "a secret of another server's, as long as it has to be";
    let file = std::env::temp_dir().join(format!("lanecast-{:x}", fastrand::u64(..)));
    std::fs::write(&file, format!("{}\n", server.token("host"))).expect("there is a place for files");
    let mut of_file = lanecast(&server, &["watch", "--list"]);
    of_file.env("LIVEKIT_TOKEN_FILE", &file);
    let mut cases = vec![
        (lanecast(&server, &["serve"]), "refused the token"),
        (lanecast(&server, &["watch"]), "the token"),
        (lanecast(&server, &["serve"]), "LIVEKIT_API_SECRET"),
        (lanecast(&server, &["serve"]), "can't be read"),
        (lanecast(&server, &["serve", "--addr", "127.0.0.1:0"]), "cannot be used with"),
    ];
    cases[0].0.env("LIVEKIT_API_SECRET", secret);
    cases[1].0.env("LIVEKIT_API_SECRET", secret);
    cases[2].0.env_remove("LIVEKIT_API_SECRET");
    cases[3].0.env("LIVEKIT_TOKEN_FILE", "/nowhere/at/all");
    for (command, says) in &mut cases {
        let output = within(command.output()).await.expect("the program is built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(*says), "{said}");
        assert!(said.lines().count() == 1 && !said.contains(secret) && !said.contains("eyJ"), "{said}");
    }
    let _serving = serve(&server, &["serve"]).await;
    let listed = within(of_file.output()).await.expect("the program is built");
    std::fs::remove_file(&file).expect("it is there");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("+ /load"));
}
