//! What the event log says of the process as a whole.

use std::fmt;
use std::time::Duration;

use log::Level;
use serde::Serialize;

use super::events::Telling;

/// Something that has happened to the process as a whole.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Life {
    /// Another configuration is in force.
    Reload {
        /// Number of that configuration, which grows with each.
        generation: u64,
    },
    /// The configuration stays as it was.
    ReloadRefused {
        /// Why, line by line.
        reason: String,
    },
    /// The binary on disk is started, to serve in place of this process.
    Upgrade {
        /// Path of the program that is started.
        program: String,
    },
    /// It does not: this process goes on.
    UpgradeFailed {
        /// What went wrong, in words.
        reason: String,
    },
    /// Another process serves.
    Upgraded {
        /// Id of the process that serves now.
        pid: u32,
        /// Connections still open in this process.
        connections: u32,
        /// How long it may go on.
        grace_ms: u64,
    },
    /// Nothing is accepted any more.
    Stopping {
        /// What is open still.
        connections: u32,
        /// How long it may go on.
        grace_ms: u64,
    },
}

impl Telling for Life {
    fn level(&self) -> Level {
        match self {
            Life::ReloadRefused { .. } | Life::UpgradeFailed { .. } => Level::Error,
            _ => Level::Info,
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |ms: &u64| humantime::format_duration(Duration::from_millis(*ms));
        match self {
            Life::Reload { generation } => write!(f, "reloaded: generation {generation}"),
            Life::ReloadRefused { reason } => {
                write!(f, "reload refused, the old configuration stays in force: {reason}")
            }
            Life::Upgrade { program } => write!(f, "upgrade: starting {program}"),
            Life::UpgradeFailed { reason } => write!(f, "upgrade failed, this process goes on: {reason}"),
            Life::Upgraded {
                pid,
                connections,
                grace_ms,
            } => write!(
                f,
                "upgrade: process {pid} serves; {connections} connections may finish here within {}",
                time(grace_ms)
            ),
            Life::Stopping { connections, grace_ms } => {
                write!(
                    f,
                    "stopping: {connections} connections may finish within {}",
                    time(grace_ms)
                )
            }
        }
    }
}
