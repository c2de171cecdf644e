//! Collects the results as Markdown, and prints them as they come.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

const HEAD: &str = "\
# Beside a plain loop of `write`

Written by `perf/livekit.sh`. `loop` awaits one viewer's write after the other's, `joined` all viewers' writes of a frame
together, `lanecast` is a session. Medians of interleaved rounds, with the middle half of the rounds; ratios are those
within a round.
";

/// The text that is written in the end.
pub(crate) struct Report(String);

impl Default for Report {
    fn default() -> Self {
        Self(HEAD.to_owned())
    }
}

impl Report {
    /// Adds a line or a paragraph.
    pub(crate) fn say(&mut self, text: &str) {
        self.line(&format!("\n{text}"));
    }

    /// Begins a table: its title, a paragraph about it, and its head.
    pub(crate) fn table(&mut self, title: &str, about: &str, columns: &[&str]) {
        self.say(&format!("## {title}\n\n{about}\n\n| {} |", columns.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(columns.len())));
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    /// Writes `livekit.md` into `folder`.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("livekit.md"), &self.0)
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        writeln!(self.0, "{line}").expect("a string takes everything");
    }
}
