//! `weir events`: follow what happens.

use std::process::ExitCode;

use serde_json::Value;

use super::client::{self, Client, Options};
use super::table;

/// Follow what happens: health, drains, members, virtual addresses, reloads, upgrades and every other line of the event log, from now
/// on, until weir stops or another process serves in its place. With --json one object a line; `weir api` has its fields.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

/// Prints what happens; 0 at the end of the process, 1 if it came without a word.
pub fn run(args: &Args) -> ExitCode {
    let options = &args.options;
    let mut print = |line: &str| match options.json {
        true => table::write(line),
        false => table::write(&format!("{}\n", table::clean(&sentence(line)))),
    };
    match Client::connect(&options.socket).and_then(|mut client| client.follow(&mut print)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => client::fail(options, &error),
    }
}

/// A record as the event log has it.
fn sentence(record: &str) -> String {
    let record: Value = serde_json::from_str(record).unwrap_or_default();
    let word = |key: &str| record[key].as_str().unwrap_or("?");
    let (level, message) = (word("level").to_uppercase(), word("message").replace('\n', "\n    "));
    format!("{} {level:<5} {message}", word("time"))
}
