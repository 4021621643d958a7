//! The small processes that alone may change addresses and routing of this host.
//!
//! What follows is about the one that holds addresses; the one that makes routing rules is its sibling, [`returns`], so that what
//! one of them waits for never delays the other.
//!
//! # How it works
//! `weir run` starts it before it has threads or a sandbox, by executing its own binary again with one end of a socket pair
//! as standard input; then the main process can drop every privilege. The keeper keeps CAP_NET_ADMIN and CAP_NET_RAW, reads
//! [`ToKeeper`], steps [`crate::failover::lease`], carries out what that says, and answers with [`FromKeeper`].
//!
//! | file | does |
//! |---|---|
//! | `handle` | the main process's end: what is asked waits by state until the channel takes it |
//! | `wire` | the messages |
//! | `run` | the keeper's loop |
//! | `kernel` | the thread that waits for the kernel |
//! | `sweep` | `weir keeper --sweep` |
//! | [`returns`] | `weir keeper --returns`, the sibling |
//!
//! # Invariants
//! * The channel is the only tie: when its last other end closes, whoever held it, the addresses go and the keeper ends.
//!   That end is one descriptor, so a new main process can inherit it and no VIP moves in an upgrade.
//! * Proofs of life wait neither for the kernel nor for each other: whatever holds the kernel's network configuration lock
//!   delays changes of addresses, and nothing else. How late a renewal may be is the lease's affair.
//! * Proofs of life carry the time at which they were given, on the clock that all processes of a machine share: what waited
//!   in the queue while the keeper was frozen proves nothing.
//!
//! # What it never does
//! It never decides who holds an address, opens no file on request, executes nothing, and listens on no network.

mod handle;
mod kernel;
pub mod returns;
mod run;
mod sweep;
mod wire;

pub use handle::{KeeperHandle, spawn};
pub use run::main;
pub use sweep::sweep;
pub use wire::{FromKeeper, Kept, PROTOCOL, Target, ToKeeper};

/// The hidden subcommand under which the binary becomes a keeper.
pub const SUBCOMMAND: &str = "keeper";
