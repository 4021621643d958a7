//! `weir kill`: end one connection.

use std::process::ExitCode;

use super::client::{self, Options};
use crate::api::question::Question;

/// End one connection or UDP session.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its id, as `weir conns` lists it.
    id: u64,
    #[command(flatten)]
    options: Options,
}

/// Ends it; 1 if there is none with that id.
pub fn run(args: Args) -> ExitCode {
    client::order(&args.options, &Question::Kill { id: args.id })
}
