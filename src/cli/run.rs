//! `weir run`: from a file, or from flags.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::app;
use crate::config::Config;
use crate::control::Source;

/// What `weir run` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file.
    #[arg(short, long, default_value = super::DEFAULT_CONFIG, conflicts_with_all = ["listen", "backend"])]
    config: PathBuf,
    /// Serve this address without a file (repeatable).
    #[arg(long, value_name = "ADDR", requires = "backend")]
    listen: Vec<String>,
    /// A backend, `ADDR` or `ADDR,weight=N` (repeatable).
    #[arg(long, value_name = "ADDR", requires = "listen")]
    backend: Vec<String>,
    /// Serve UDP instead of TCP.
    #[arg(long, requires = "listen")]
    udp: bool,
    /// Algorithm.
    #[arg(long, value_name = "ALG", requires = "listen")]
    balance: Option<String>,
    /// Keep every right that the process was started with.
    #[arg(long)]
    no_sandbox: bool,
}

/// Runs `weir run`, until the process is told to end.
pub fn run(args: Args) -> ExitCode {
    if args.listen.is_empty() {
        return app::run(Source::File(args.config), !args.no_sandbox);
    }
    match Config::from_flags(&args.listen, &args.backend, args.udp, args.balance.as_deref()) {
        Ok(config) => app::run(Source::Flags(Box::new(config)), !args.no_sandbox),
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(app::EXIT_CONFIG)
        }
    }
}
