//! The control plane: configuration, health, publication, administration.
//!
//! # How it works
//!
//! One thread owns all state ([`Control`]) and takes one [`Input`] at a time from a bounded queue. The signal handler, the prober,
//! the observer (admin socket and HTTP) and an upgrade under way only send. A question has a reply channel in it, and whoever asks
//! waits for the answer with a limit. Failures of backends that real traffic has seen come on a channel of their own, which drops
//! what it has no room for: they are samples.
//!
//! A round of the thread:
//!
//! 1. note that it is alive, which the election looks at;
//! 2. bring the counters that engines keep elsewhere up to date;
//! 3. let time act on pools: probes that are due, ejections that end, ramps, drains;
//! 4. publish, if anything has changed that engines act on; then shed connections, then log: whoever reads of a change can rely
//!    on it;
//! 5. send signs of life to the service manager, as long as every worker turns;
//! 6. end, if it was told to stop and nothing is open any more, or the time for that is up;
//! 7. take one input, or sleep until something is due, for a second at most.
//!
//! # Invariants
//!
//! 1. State changes in this thread alone.
//! 2. What engines act on leaves as one snapshot (`Control::publish`). Versions grow; a worker takes the newest and may skip others.
//! 3. A change that can be refused has two steps: *prepare*, which changes nothing, and *commit*, which cannot fail.
//! 4. Of the two processes of an upgrade one acts as the service at any time (`phase`).
//!
//! | file or folder | is about |
//! |---|---|
//! | `thread` | the state, start, the rounds, the end |
//! | `reload` | one configuration replaced by another, whole or not at all |
//! | `handover` | its part in an upgrade, as the old process and as the new one |
//! | `answers`, `amend`, `amending` | the operators' questions and orders; backends that they add and remove |
//! | `engines` | the table of engines, and the order in which they hear of a change |
//! | `phase` | which operations a process takes at which point of its life |
//! | `publication` | what engines act on: pools and health, listeners and sockets, the worker threads |
//! | [`discovery`] | members of pools that come and go: watching their sources |
//! | [`operator`] | the admin socket, HTTP, status, metrics, history, the page |
//! | [`upgrade`] | the conversation between two processes |
//! | [`election`] | the VIP machine with its beats |
//! | `event_log`, `events`, `life` | the log, whoever follows what happens, and what happens to the process |
//! | [`access_log`], `notifier` | the access log, the service manager |
//! | `returns` | the rules of `client_address: keep`: which are needed, and for how long |
//!
//! # What it never does
//!
//! It never touches a connection, and never waits for a peer, a client or a disk: logs and sockets of operators have threads of
//! their own. It waits for workers, for `SETTLE_MAX` (2 s) at most each time.

mod access_log;
mod amend;
mod amending;
mod answers;
mod capacity;
pub mod discovery;
pub mod election;
mod engines;
pub mod etcd;
pub mod event_log;
mod events;
mod handover;
#[cfg(test)]
mod kinds;
mod leaving;
mod life;
mod notifier;
pub mod operator;
mod phase;
mod publication;
mod reload;
pub mod request;
mod returns;
mod source;
mod thread;
pub mod upgrade;

use crate::keeper::returns::ReturnsHandle;

pub use capacity::Capacity;
pub use request::{Input, Request};
pub use source::Source;
pub use thread::Control;

/// The processes beside this one, started while it still has the rights that they need.
#[derive(Debug, Default)]
pub struct Processes {
    /// For `failover`.
    pub failover: Option<election::Helpers>,
    /// For `client_address: keep`.
    pub returns: Option<ReturnsHandle>,
}
