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
    /// A signal that the process has received, by number.
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
        /// Takes the whole document.
        reply: Sender<serde_json::Value>,
    },
    /// Live connections and sessions over all workers, at most `limit`.
    Connections {
        /// How many are listed at most, over all engines.
        limit: usize,
        /// Takes the list, lowest id first.
        reply: Sender<Vec<LiveConnection>>,
    },
    /// End one connection or session.
    Kill {
        /// The id that [`LiveConnection::id`] shows.
        id: u64,
        /// Takes whether there was such a connection or session.
        reply: Sender<bool>,
    },
    /// Change one backend until the next reload says otherwise.
    Backend {
        /// Name of the pool.
        pool: String,
        /// Name of the backend within that pool.
        name: String,
        /// The change that is wanted.
        order: BackendOrder,
        /// The change outlasts reloads.
        keep: bool,
        /// Takes a sentence that says what was done.
        reply: Sender<Result<String, String>>,
    },
    /// Add a backend to a pool.
    BackendAdd {
        /// Name of the pool.
        pool: String,
        /// The backend's address, written as in the configuration.
        address: String,
        /// Its weight; `None` = 1.
        weight: Option<u32>,
        /// The change outlasts reloads.
        keep: bool,
        /// Takes a sentence that says what was done.
        reply: Sender<Result<String, String>>,
    },
    /// Take a backend out of its pool.
    BackendRemove {
        /// Name of the pool.
        pool: String,
        /// Name of the backend within that pool.
        name: String,
        /// The change outlasts reloads.
        keep: bool,
        /// Takes a sentence that says what was done.
        reply: Sender<Result<String, String>>,
    },
    /// Move a VIP away from this node, or let it come back.
    Vip {
        /// The virtual address, without prefix length.
        address: IpAddr,
        /// The change that is wanted.
        order: VipOrder,
        /// Takes a sentence that says what was done.
        reply: Sender<Result<String, String>>,
    },
    /// Read the configuration again.
    Reload {
        /// Takes a sentence that says what was done.
        reply: Sender<Result<String, Refusal>>,
    },
    /// Have the program on disk serve in place of this process.
    Upgrade {
        /// Takes a sentence that says what came of it, when it is over.
        reply: Sender<Result<String, String>>,
    },
    /// The configuration in force, as a file that the check accepts.
    Dump {
        /// Takes the configuration as YAML.
        reply: Sender<String>,
    },
    /// The metrics page.
    Metrics {
        /// Takes the page in Prometheus' text format.
        reply: Sender<String>,
    },
    /// Whether every worker turns and every listener is bound; the error says what is wrong.
    Health {
        /// Takes `Ok` if all is well.
        reply: Sender<Result<(), String>>,
    },
}

impl Request {
    /// The kind of operation that it is, for [`Phase`](super::phase) to admit or not.
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
            Request::Upgrade { .. } => Operation::Upgrade,
        }
    }
}
