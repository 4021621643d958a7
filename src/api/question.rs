//! What is said on the admin socket: one JSON object a line, both ways.
//!
//! ```text
//! > {"command":"backend","pool":"web","name":"a","order":"drain"}
//! < {"ok":"web/a: drain"}
//! > {"command":"kill","id":12}
//! < {"error":"no connection or session has the id 12","cause":"runtime"}
//! ```
//!
//! `cause` is `configuration` if a reload was refused because of what the file says, else `runtime`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the socket is unless the configuration says otherwise.
pub const DEFAULT_PATH: &str = "/run/weir/admin.sock";
/// Bytes of one question.
pub const QUESTION_BYTES: u64 = 4096;

/// A question or order as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// The status document ([`Status`](super::status::Status)).
    Status,
    /// Live connections and sessions, each a [`Connection`](super::status::Connection).
    Conns {
        /// How many are listed at most; the process has a limit of its own besides.
        limit: usize,
    },
    /// End a connection or session.
    Kill {
        /// The id that `weir conns` shows.
        id: u64,
    },
    /// Change the state or weight of a backend.
    Backend {
        /// Name of the pool.
        pool: String,
        /// Name of the backend within that pool.
        name: String,
        /// The change that is wanted.
        order: BackendOrder,
        /// A weight outlasts reloads; refused with any other order.
        #[serde(default)]
        keep: bool,
    },
    /// Add a backend to a pool.
    BackendAdd {
        /// Name of the pool.
        pool: String,
        /// The backend's address, written as in the configuration.
        address: String,
        /// Its weight; 1 if absent.
        #[serde(default)]
        weight: Option<u32>,
        /// The change outlasts reloads.
        #[serde(default)]
        keep: bool,
    },
    /// Take a backend out of its pool.
    BackendRemove {
        /// Name of the pool.
        pool: String,
        /// Name of the backend within that pool.
        name: String,
        /// The change outlasts reloads.
        #[serde(default)]
        keep: bool,
    },
    /// Move a VIP away from this node, or let it come back.
    Vip {
        /// The virtual address, without prefix length.
        address: IpAddr,
        /// The change that is wanted.
        order: VipOrder,
    },
    /// Read the configuration again.
    Reload,
    /// Start the program on disk, and have it serve in place of this process.
    Upgrade,
    /// Follow what happens: see [`event`](super::event).
    Events,
    /// The configuration in force, as a file that the check accepts.
    Dump,
    /// The Prometheus page.
    Metrics,
    /// Whether all is well.
    Health,
    /// Samples of the last minutes after this number.
    History {
        /// Number of the newest sample that the reader has; 0 = none.
        since: u64,
    },
}

/// `weir backend POOL/NAME ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendOrder {
    /// Back to what health says, with the configured weight.
    Ready,
    /// No new work; what is open may finish.
    Drain,
    /// Treated as a backend that its probes have found down.
    Down,
    /// This weight instead of the configured one.
    Weight(u32),
}

/// `weir vip ADDRESS ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VipOrder {
    /// Let the next node have it.
    Demote,
    /// Let this node hold the address again.
    Allow,
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What would have to change.
    pub cause: RefusalCause,
    /// A sentence for the operator; of a configuration every line that `weir check` would print.
    pub reason: String,
}

/// Where the reason of a [`Refusal`] lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCause {
    /// In the configuration: it would be refused again.
    Configuration,
    /// In the state of things: an address in use, an upgrade under way. The same may succeed later.
    Runtime,
}

impl Refusal {
    /// Because of the configuration.
    pub fn configuration(reason: impl ToString) -> Refusal {
        Refusal {
            cause: RefusalCause::Configuration,
            reason: reason.to_string(),
        }
    }
}

impl From<String> for Refusal {
    /// Because of the state of things.
    fn from(reason: String) -> Refusal {
        Refusal {
            cause: RefusalCause::Runtime,
            reason,
        }
    }
}
