//! The control-plane shell: configuration, health, publication, administration.
//!
//! # How it works
//!
//! One thread owns all of its state ([`Control`]) and works off one bounded queue of [`Input`]s; everybody else (signal handler,
//! prober, workers, admin socket, HTTP, election) only sends. Whoever asks something sends a [`Request`] with a reply channel in
//! it and waits with a limit. A round of the thread is: note that it lives (the election looks), let time do its work on pools,
//! publish what changed, show life to the service manager, take one input.
//!
//! A change of anything that engines act on ends in one publication (`Control::publish`) at the end of the round that made it.
//!
//! | file or folder | is about |
//! |---|---|
//! | `thread` | the state, start, the rounds, the end |
//! | `reload` | one configuration replaced by another, whole or not at all |
//! | `handover` | its part in an upgrade, as the old process and as the new one |
//! | `answers` | what operators ask and order |
//! | `engines` | the table of what carries connections: when each of them hears of what |
//! | [`phase`] | which orders a process takes at which point of its life |
//! | [`publication`] | what workers act on: pools and health, listeners and sockets, the workers themselves |
//! | [`discovery`] | members of pools that come and go: watching their sources |
//! | [`operator`] | the admin socket, HTTP, status, metrics, history, the page |
//! | [`upgrade`] | the conversation between two processes |
//! | [`election`] | the VIP machine with its beats |
//! | `event_log`, [`access_log`], `notifier` | the log, the access log, the service manager |
//!
//! # What it never does
//!
//! It never touches a connection, and never waits for a descriptor that somebody else has to read or write. It waits for
//! workers, for [`SETTLE_MAX`](publication::workers::SETTLE_MAX) at most each time.

pub mod access_log;
mod answers;
mod capacity;
pub mod discovery;
pub mod election;
mod engines;
pub mod etcd;
pub mod event_log;
mod handover;
mod notifier;
pub mod operator;
mod phase;
pub mod publication;
mod reload;
pub mod request;
mod source;
mod thread;
pub mod upgrade;

pub use capacity::Capacity;
pub use request::{Input, Request};
pub use source::Source;
pub use thread::Control;
