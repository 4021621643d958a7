//! One TCP connection pair as a pure state machine.
//!
//! [`Lane`] is one direction and answers "what next?"; [`Pair`] is the two lanes of a connection and knows how it ends;
//! [`pump`] drives a pair over anything that can carry out an [`Op`] (real sockets in `worker/io.rs`, a fake
//! edge-triggered kernel in `tests/relay_sim.rs`); [`Gather`] says when a source
//! is read at all; [`Cause`] is the one vocabulary of endings, and [`Cause::ending`] says
//! which of them look like an end to the reader.

mod cause;
mod ending;
mod gather;
mod gear;
pub mod hello;
mod lane;
mod pair;
mod peer;
pub mod proxy_header;

pub use cause::{By, Cause};
pub use ending::{Ending, LaneState, Source};
pub use gather::{GATHER_BYTES, Gather};
pub use gear::{Conduit, Gear};
pub use lane::{Done, Lane, Op};
pub use pair::{Budget, Io, Outcome, Pair, Pumped, pump};
pub use peer::Peer;
