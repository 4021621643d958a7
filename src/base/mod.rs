//! Building blocks without I/O and without a clock.

pub mod checksum;
pub mod gauge;
pub mod latest;
pub mod log_limit;
pub mod rng;
pub mod run_queue;
pub mod slab;
pub mod timers;
pub mod token;
pub mod words;

pub use gauge::Gauge;
pub use latest::Latest;
pub use log_limit::LogLimit;
pub use rng::Rng;
pub use run_queue::{RunQueue, Weight};
pub use slab::{Key, Slab};
pub use timers::Timers;
pub use token::{Kind, Side, Token};
pub(crate) use words::words;

/// Where files that `models/` runs under loom take their atomics from.
mod atomic {
    pub use std::sync::atomic::*;
}
