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
    /// The address and its interface.
    #[serde(flatten)]
    pub target: Target,
    /// Time between further announcements while it is held; `None` = there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub garp_refresh: Option<Duration>,
    /// Once it has been held, packets to it are accepted for as long as the main process lives, also while it is not held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
}

/// A message from the main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// First of all, and whenever they change.
    Setup {
        /// Periods and patiences.
        timers: Timers,
    },
    /// The addresses of the configuration. New ones are swept; those no longer named are released and forgotten.
    Watch {
        /// Every address of the configuration: one that is missing here is given up.
        kept: Vec<Kept>,
        /// Further interfaces whose state is wanted.
        interfaces: Vec<String>,
    },
    /// The main process is alive.
    Prove {
        /// When it said so, as time on CLOCK_MONOTONIC.
        at: Duration,
    },
    /// Install the address, and renew it while proofs of life come.
    Hold {
        /// The address concerned.
        target: Target,
    },
    /// Tell the neighbours where the address is.
    Announce {
        /// The address concerned.
        target: Target,
        /// A predecessor may still answer for it.
        insist: bool,
    },
    /// Remove the address.
    Release {
        /// The address concerned.
        target: Target,
    },
    /// Remove everything, and forget what was asked before.
    Reset {
        /// Comes back in the answer, when nothing is left.
        number: u64,
    },
}

/// A message from the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// The keeper has started.
    Ready {
        /// Why it will be of no use, if so.
        problem: Option<String>,
    },
    /// It has read a proof of life.
    Ack,
    /// Nothing is held any more, and every earlier answer is void.
    Reset {
        /// The number of the request that this answers.
        number: u64,
    },
    /// The address is installed, as asked.
    Held {
        /// The address concerned.
        target: Target,
    },
    /// The address is removed, as asked.
    Released {
        /// The address concerned.
        target: Target,
    },
    /// The address could not be installed.
    Failed {
        /// The address concerned.
        target: Target,
        /// The kernel's refusal, in words.
        why: String,
    },
    /// The address is gone: somebody removed it, or it cannot be renewed.
    Lost {
        /// The address concerned.
        target: Target,
        /// What became of it, in words.
        why: String,
    },
    /// The address is removed for want of a proof of life.
    Expired {
        /// The address concerned.
        target: Target,
    },
    /// State of an interface that carries one of the addresses, or whose state is wanted.
    Link {
        /// Name of the interface.
        interface: String,
        /// True if it is switched on and has a carrier.
        up: bool,
    },
    /// Somebody else has put one of the addresses on this host, or taken it off again.
    Foreign {
        /// The address concerned.
        target: Target,
        /// True while it is there.
        present: bool,
    },
    /// Something that people should read in the log.
    Note {
        /// The line, without level or time.
        text: String,
    },
}
