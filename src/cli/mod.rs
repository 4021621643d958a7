//! The command line, one file a command.

pub mod backend;
pub mod check;
pub mod client;
pub mod conns;
pub mod demo;
pub mod dump;
pub mod events;
pub mod explain;
pub mod generate;
pub mod import;
pub mod kill;
pub mod members;
pub mod reference;
pub mod reload;
pub mod run;
pub mod status;
pub mod table;
pub mod top;
pub mod upgrade;
pub mod vip;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};

/// Where `weir` looks for its configuration.
pub const DEFAULT_CONFIG: &str = "/etc/weir/weir.yaml";

/// With the commit that the package was made from (`scripts/package`), if it was.
static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("WEIR_COMMIT") {
    Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
    None => env!("CARGO_PKG_VERSION").into(),
});

/// A layer-4 TCP and UDP load balancer with VIP failover.
#[derive(Debug, Parser)]
#[command(name = "weir", version = VERSION.as_str(), propagate_version = true)]
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
    /// Make a configuration of one of HAProxy, nginx or keepalived; what has no meaning here goes to standard error.
    Import(import::Args),
    /// Tell which backend a client would get, and why.
    Explain(explain::Args),
    /// Listeners, pools, backends, VIPs, workers.
    Status(status::Args),
    /// Live connections and UDP sessions.
    Conns(conns::Args),
    /// Who is in a pool, where each came from, how old that knowledge is, the last error.
    Members(members::Args),
    /// End one connection.
    Kill(kill::Args),
    /// Change one backend until the next reload.
    Backend(backend::Args),
    /// Follow what happens: health, drains, members, virtual addresses, reloads, upgrades.
    Events(events::Args),
    /// Print the configuration in force, as a file.
    Dump(dump::DumpArgs),
    /// Print what a reload of a file would change.
    Diff(dump::DiffArgs),
    /// Print the schema of the admin protocol.
    Api,
    /// Planned move of a VIP to the next node, and back.
    Vip(vip::Args),
    /// Live view: rates, backends, VIPs, busiest connections.
    Top(top::Args),
    /// Read the configuration again; waits, and fails if it is refused.
    Reload(reload::Args),
    /// Have the program on disk serve in place of the running process; waits, and fails if nothing comes of it.
    Upgrade(upgrade::Args),
    /// The processes that install VIPs and routing rules; started by `weir run`, never by hand.
    #[command(hide = true, name = crate::keeper::SUBCOMMAND)]
    Keeper {
        /// Make the rules of `client_address: keep`.
        #[arg(long, conflicts_with = "sweep")]
        returns: bool,
        /// Remove the VIPs and rules of the configuration that a dead weir has left, and end.
        #[arg(long)]
        sweep: bool,
        /// Configuration file.
        #[arg(short, long, default_value = DEFAULT_CONFIG, requires = "sweep")]
        config: PathBuf,
    },
    /// The process that holds the kernel engine's program; started by `weir run`, never by hand.
    #[command(hide = true, name = crate::kernel::helper::SUBCOMMAND)]
    KernelHelper,
    /// The process that runs the operator's commands; started by `weir run`, never by hand.
    #[command(hide = true, name = crate::runner::SUBCOMMAND)]
    Runner,
    /// Print every configuration key: type, unit, default, range, meaning.
    ConfigReference,
    /// Make manual pages or shell completions.
    #[command(hide = true)]
    Generate(generate::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check { config } => check::run(&config),
        Command::Import(args) => import::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Status(args) => status::run(args),
        Command::Conns(args) => conns::run(args),
        Command::Members(args) => members::run(args),
        Command::Kill(args) => kill::run(args),
        Command::Backend(args) => backend::run(args),
        Command::Events(args) => events::run(&args),
        Command::Dump(args) => dump::dump(&args),
        Command::Diff(args) => dump::diff(&args),
        Command::Api => {
            table::print(&format!("{:#}\n", crate::api::schema::schema()));
            ExitCode::SUCCESS
        }
        Command::Vip(args) => vip::run(args),
        Command::Reload(args) => reload::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Top(args) => top::run(args),
        Command::Keeper {
            sweep: true, config, ..
        } => crate::keeper::sweep(&config),
        Command::Keeper { returns: true, .. } => crate::keeper::returns::main(),
        Command::Keeper { .. } => crate::keeper::main(),
        Command::KernelHelper => crate::kernel::helper::main(),
        Command::Runner => crate::runner::main(),
        Command::ConfigReference => reference::run(),
        Command::Generate(args) => generate::run(&args),
    }
}
