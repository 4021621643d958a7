//! The small process that alone may change addresses.
//!
//! # How it works
//! `weir run` starts it before it has threads or a sandbox, by executing its own binary again with one end of a socket pair
//! as standard input; then the main process can drop every privilege. The keeper keeps CAP_NET_ADMIN and CAP_NET_RAW, reads
//! [`ToKeeper`], steps [`crate::failover::lease`], carries out what that says, and answers with [`FromKeeper`].
//!
//! # Invariants
//! * The channel is the only tie: when its last other end closes, whoever held it, the addresses go and the keeper ends.
//!   That end is one descriptor, so a new main process can inherit it and no VIP moves in an upgrade.
//! * Proofs of life carry the time at which they were given, on the clock that all processes of a machine share: what waited
//!   in the queue while the keeper was frozen proves nothing.
//!
//! # What it never does
//! It never decides who holds an address, opens no file on request, executes nothing, and listens on no network.

mod handle;
mod run;
mod sweep;
mod wire;

pub use handle::{KeeperHandle, spawn};
pub use run::main;
pub use sweep::sweep;
pub use wire::{FromKeeper, Target, ToKeeper};

/// The hidden subcommand under which the binary becomes a keeper.
pub const SUBCOMMAND: &str = "keeper";
