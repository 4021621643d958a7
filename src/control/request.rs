//! What the control thread is told and asked.

use std::net::IpAddr;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use super::phase::Order;
use super::publication::probe::Verdict;
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
    Upgrade(super::upgrade::Event),
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
    pub(super) fn order(&self) -> Order {
        match self {
            Request::Status { .. } | Request::Connections { .. } | Request::Metrics { .. } | Request::Health { .. } => {
                Order::Look
            }
            Request::Kill { .. } => Order::Kill,
            Request::Backend { .. } => Order::Backend,
            Request::Vip { .. } => Order::Vip,
            Request::Reload { .. } => Order::Reload,
        }
    }
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

/// `weir backend POOL/NAME ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipOrder {
    /// Let the next node have it.
    Demote,
    /// Take part again.
    Allow,
}
