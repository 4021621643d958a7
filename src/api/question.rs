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
    /// The status document.
    Status,
    /// Live connections and sessions.
    Conns {
        /// At most.
        limit: usize,
    },
    /// End a connection or session.
    Kill {
        /// Its id.
        id: u64,
    },
    /// Change a backend.
    Backend {
        /// Pool.
        pool: String,
        /// Backend.
        name: String,
        /// What to do.
        order: BackendOrder,
        /// Over reloads; of a weight only.
        #[serde(default)]
        keep: bool,
    },
    /// Add a backend to a pool.
    BackendAdd {
        /// Pool.
        pool: String,
        /// As in the configuration.
        address: String,
        /// 1 unless stated.
        #[serde(default)]
        weight: Option<u32>,
        /// Over reloads.
        #[serde(default)]
        keep: bool,
    },
    /// Take a backend out of its pool.
    BackendRemove {
        /// Pool.
        pool: String,
        /// Backend.
        name: String,
        /// Over reloads.
        #[serde(default)]
        keep: bool,
    },
    /// Change a VIP.
    Vip {
        /// Without prefix length.
        address: IpAddr,
        /// What to do.
        order: VipOrder,
    },
    /// Read the configuration again.
    Reload,
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
        /// Number.
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
    /// As if down.
    Down,
    /// Another weight.
    Weight(u32),
}

/// `weir vip ADDRESS ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VipOrder {
    /// Let the next node have it.
    Demote,
    /// Take part again.
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
