//! What is said between the main process and the keeper: JSON lists of messages, one list a packet.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::failover::timers::Timers;

/// Longest packet: a thousand addresses in their longest spelling fit.
pub const PACKET_MAX: usize = 192 * 1024;

/// Number of this protocol. A keeper outlives the main process in an upgrade, so the next one must speak as it does.
pub const PROTOCOL: u32 = 3;

/// An address and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// Address with prefix length.
    pub net: IpNet,
    /// Name of the interface.
    pub interface: String,
}

/// An address of the configuration, and how it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What.
    #[serde(flatten)]
    pub target: Target,
    /// Announced again so often while it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub garp_refresh: Option<Duration>,
    /// Once it has been held, packets to it are accepted for as long as the main process lives, also while it is not held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
}

/// From the main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// First of all, and whenever they change.
    Setup {
        /// Periods and patiences.
        timers: Timers,
    },
    /// The addresses of the configuration. New ones are swept; those no longer named are released and forgotten.
    Watch {
        /// All of them.
        kept: Vec<Kept>,
        /// Further interfaces whose state is wanted.
        interfaces: Vec<String>,
    },
    /// The main process is alive.
    Prove {
        /// When it was, on CLOCK_MONOTONIC.
        at: Duration,
    },
    /// Install.
    Hold {
        /// What.
        target: Target,
    },
    /// Announce.
    Announce {
        /// What.
        target: Target,
        /// A predecessor may still answer for it.
        insist: bool,
    },
    /// Remove.
    Release {
        /// What.
        target: Target,
    },
    /// Remove everything, and forget what was asked before.
    Reset {
        /// Comes back in the answer, when nothing is left.
        number: u64,
    },
}

/// From the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// It has started.
    Ready {
        /// Why it will be of no use, if so.
        problem: Option<String>,
    },
    /// It has read a proof of life.
    Ack,
    /// Nothing is held any more, and every earlier answer is void.
    Reset {
        /// From the request.
        number: u64,
    },
    /// Installed.
    Held {
        /// What.
        target: Target,
    },
    /// Removed, as asked.
    Released {
        /// What.
        target: Target,
    },
    /// Could not be installed.
    Failed {
        /// What.
        target: Target,
        /// Why.
        why: String,
    },
    /// Gone: somebody removed it, or it cannot be renewed.
    Lost {
        /// What.
        target: Target,
        /// Why.
        why: String,
    },
    /// Removed for want of a proof of life.
    Expired {
        /// What.
        target: Target,
    },
    /// State of an interface that carries one of the addresses, or whose state is wanted.
    Link {
        /// Its name.
        interface: String,
        /// Switched on, with a carrier.
        up: bool,
    },
    /// Somebody else has put one of the addresses on this host, or taken it off again.
    Foreign {
        /// What.
        target: Target,
        /// It is there.
        present: bool,
    },
    /// Something that people should read in the log.
    Note {
        /// Words.
        text: String,
    },
}
