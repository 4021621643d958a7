//! What the control thread is told and asked.

use std::net::IpAddr;

use crossbeam_channel::Sender;

use super::discovery::Changed;
use super::phase::Operation;
use super::publication::probe::Verdict;
use super::upgrade;
use crate::api::question::{BackendOrder, Refusal, VipOrder};
use crate::link::LiveConnection;

/// One thing for the control thread to deal with.
#[derive(Debug)]
pub enum Input {
    /// A question or order from an operator.
    Request(Request),
    /// What came of a health probe.
    Verdict(Verdict),
    /// A signal.
    Signal(i32),
    /// A step of an upgrade.
    Upgrade(upgrade::Event),
    /// Other members than before are known.
    Members(Changed),
}

impl From<Changed> for Input {
    fn from(changed: Changed) -> Input {
        Input::Members(changed)
    }
}

impl From<Verdict> for Input {
    fn from(verdict: Verdict) -> Input {
        Input::Verdict(verdict)
    }
}

/// Questions and orders. `Err` holds a sentence for the operator.
#[derive(Debug)]
pub enum Request {
    /// The document of `weir status --json` and `/status`.
    Status {
        /// Answer.
        reply: Sender<serde_json::Value>,
    },
    /// Live connections and sessions over all workers, at most `limit`.
    Connections {
        /// At most.
        limit: usize,
        /// Answer.
        reply: Sender<Vec<LiveConnection>>,
    },
    /// End one connection or session.
    Kill {
        /// Its id.
        id: u64,
        /// Whether it was there.
        reply: Sender<bool>,
    },
    /// Change one backend until the next reload says otherwise.
    Backend {
        /// Pool name.
        pool: String,
        /// Backend name.
        name: String,
        /// What to do.
        order: BackendOrder,
        /// Over reloads.
        keep: bool,
        /// What was done.
        reply: Sender<Result<String, String>>,
    },
    /// Add a backend to a pool.
    BackendAdd {
        /// Pool name.
        pool: String,
        /// As in the configuration.
        address: String,
        /// 1 unless stated.
        weight: Option<u32>,
        /// Over reloads.
        keep: bool,
        /// What was done.
        reply: Sender<Result<String, String>>,
    },
    /// Take a backend out of its pool.
    BackendRemove {
        /// Pool name.
        pool: String,
        /// Backend name.
        name: String,
        /// Over reloads.
        keep: bool,
        /// What was done.
        reply: Sender<Result<String, String>>,
    },
    /// Move a VIP away from this node, or let it come back.
    Vip {
        /// Address, without prefix length.
        address: IpAddr,
        /// What to do.
        order: VipOrder,
        /// What was done.
        reply: Sender<Result<String, String>>,
    },
    /// Read the configuration again.
    Reload {
        /// What was done.
        reply: Sender<Result<String, Refusal>>,
    },
    /// The configuration in force, as a file that the check accepts.
    Dump {
        /// YAML.
        reply: Sender<String>,
    },
    /// The metrics page.
    Metrics {
        /// Prometheus text.
        reply: Sender<String>,
    },
    /// Whether every worker turns and every listener is bound; the error says what is wrong.
    Health {
        /// Answer.
        reply: Sender<Result<(), String>>,
    },
}

impl Request {
    /// What it amounts to.
    pub(super) fn operation(&self) -> Operation {
        match self {
            Request::Dump { .. }
            | Request::Status { .. }
            | Request::Connections { .. }
            | Request::Metrics { .. }
            | Request::Health { .. } => Operation::Look,
            Request::Kill { .. } => Operation::Kill,
            Request::Backend { .. } | Request::BackendAdd { .. } | Request::BackendRemove { .. } => Operation::Backend,
            Request::Vip { .. } => Operation::Vip,
            Request::Reload { .. } => Operation::Reload,
        }
    }
}
