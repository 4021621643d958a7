//! The command line, one file a command.

pub mod check;
pub mod demo;
pub mod reference;
pub mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Where `weir` looks for its configuration.
pub const DEFAULT_CONFIG: &str = "/etc/weir/weir.yaml";

/// A layer-4 TCP and UDP load balancer with VIP failover.
#[derive(Debug, Parser)]
#[command(name = "weir", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground.
    Run(run::Args),
    /// See a working balancer: built-in backends, a built-in client, and a table of how the work was spread.
    Demo(demo::Args),
    /// Validate a configuration; prints every error.
    Check {
        /// Configuration file.
        #[arg(short, long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print every configuration key: type, unit, default, range, meaning.
    ConfigReference,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check { config } => check::run(&config),
        Command::ConfigReference => reference::run(),
    }
}
