//! `weir reload`: same as SIGHUP, but waits and says what came of it.

use std::process::ExitCode;

use super::client::{self, Options};
use crate::api::question::Question;

/// Read the configuration again, wait, and say what came of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

/// Reloads. Whatever is refused, the running configuration stays in force: 3 if the file is at fault, 1 if something that it
/// asks for cannot be had now.
pub fn run(args: Args) -> ExitCode {
    client::order(&args.options, &Question::Reload)
}
