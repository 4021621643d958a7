//! The small process that runs the operator's commands.
//!
//! # How it works
//! `weir run` starts it beside the keeper, before it has threads or a sandbox, by executing its own binary again with one end of
//! a socket pair as standard input. It learns the commands of the configuration ([`ToRunner::Commands`]) once, while its
//! starter is still to be trusted. After that it is told only which of them to run, with which variables; a changed command is read
//! from the configuration file by the runner itself ([`ToRunner::Reload`]). So the process that is exposed to the network
//! keeps its sandbox, and whoever has taken it over can run nothing that the operator has not written down.
//!
//! # Invariants
//! * A command has a process group of its own, and a time limit after which the whole group is killed.
//! * At most [`RUNNING_MAX`] run at once; more wait.
//! * When the channel closes, what runs may finish within its time; then the runner ends.

mod handle;
mod run;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::model::{Failover, Track, Tracked};

pub use handle::{RunnerHandle, spawn};
pub use run::main;

/// The hidden subcommand under which the binary becomes a runner.
pub const SUBCOMMAND: &str = "runner";

/// Number of what is said between runner and caller. A runner outlives the main process in an upgrade, so the next one must speak
/// as it does.
pub const PROTOCOL: u32 = 1;

/// Commands that run at the same time.
pub const RUNNING_MAX: usize = 8;

/// Most bytes of one packet between runner and caller.
const PACKET_MAX: usize = 64 * 1024;

/// The commands of a configuration. One row for each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// `failover.notify`, program and arguments; empty = none.
    pub notify: Vec<String>,
    /// The scripts of `failover.track`, by the name of the track.
    #[serde(default)]
    pub track: BTreeMap<String, Vec<String>>,
}

/// Which command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Which {
    /// `failover.notify`.
    Notify,
    /// `exec` of this one in `failover.track`.
    Track(String),
}

impl Commands {
    fn get(&self, which: &Which) -> &[String] {
        match which {
            Which::Notify => &self.notify,
            Which::Track(name) => self.track.get(name).map_or(&[], Vec::as_slice),
        }
    }
}

impl From<&Failover> for Commands {
    fn from(failover: &Failover) -> Commands {
        let script = |track: &Track| match &track.what {
            Tracked::Script(command) => Some((track.name.clone(), command.clone())),
            Tracked::Tcp(_) | Tracked::Interface(_) => None,
        };
        Commands {
            notify: failover.notify.clone(),
            track: failover.track.iter().filter_map(script).collect(),
        }
    }
}

/// A message from the main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ToRunner {
    /// First of all, and only once.
    Commands {
        /// What may be run.
        commands: Commands,
        /// Where to read them again.
        file: Option<PathBuf>,
    },
    /// The configuration has changed.
    Reload,
    /// Run a command.
    Run(Run),
}

/// An order to run one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Comes back in the answer.
    pub id: u64,
    /// The command, one of the configuration's.
    pub which: Which,
    /// Variables in its environment, besides the runner's own.
    pub variables: Vec<(String, String)>,
    /// Time after which it is killed.
    pub limit: Duration,
}

/// The end of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The id that the order gave.
    pub id: u64,
    /// Exit status 0, or what went wrong.
    pub outcome: Result<(), String>,
}
