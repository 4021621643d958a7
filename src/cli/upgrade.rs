//! `weir upgrade`: same as SIGUSR2, but waits and says what came of it.

use std::process::ExitCode;

use super::client::{self, Options};
use crate::api::question::Question;

/// Have the program on disk serve in place of the running process, wait, and say what came of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

/// Upgrades. When nothing comes of it, the running process goes on as if nothing had been tried.
pub fn run(args: Args) -> ExitCode {
    client::order(&args.options, &Question::Upgrade)
}
