//! The kernel engine: packets of its listeners are translated by a program at TC and never reach a socket.
//!
//! # How it works
//! `weir.bpf.c` is the program; its first comment is how packets and flows go. A helper process loads it, attaches it and holds it
//! ([`helper`]); this process works on the maps through descriptors, inside its sandbox. [`Kernel`] is the engine that control
//! knows: it writes each snapshot into the bank of the maps that is not in force and turns them over; a thread reads what flows
//! ended, ends those that are idle, and follows addresses of this host.
//!
//! | file | does |
//! |---|---|
//! | `weir.bpf.c`, `bpf/`, `weir.h` | the program, its parts, and what it shares with this process; `weir.bpf.o` is what clang makes of it (`scripts/kernel-object`) |
//! | `layout` | the shapes of the maps |
//! | `program` | loading and attaching |
//! | `helper`, `handle` | the process that holds them, and the main process's end |
//! | `maps` | the maps as the engine uses them |
//! | `tables`, `flows` | decisions: slots of a pool, fates of flows |
//! | `guards`, `sources` | who may come to a listener; what each source has |
//! | `refusals` | who was turned away, in the statistics |
//! | `resets` | what tells both sides of a connection that it is over |
//! | `places` | which listener and backend stands where in the maps |
//! | `ports` | local ports that mode `nat` uses |
//! | `news` | where listeners serve, for the event log |
//! | `core` | what is known; publication |
//! | `counts`, `elsewhere` | statistics; what the program and the workers tell each other |
//! | `account` | ends of flows: statistics, access records |
//! | `removal` | a flow is taken out of what counts it, all of it or nothing |
//! | `sweep` | how much of the tables is looked at, and when |
//! | `task` | the thread: sweeps, orders, news |
//! | `engine` | the engine as control knows it |
//!
//! # Invariants
//! * A packet sees one snapshot: services, pools and slots change with one store.
//! * A place in `listeners` and `backends` belongs to one identity until nothing refers to it any more; so counts of live flows are
//!   right over reloads, upgrades and restarts, and a process that finds maps of another one knows whose flows they are.
//! * Flows outlive this process, however it ends, for `restart_grace`.

mod account;
mod core;
mod counts;
mod elsewhere;
mod engine;
mod flows;
mod guards;
mod handle;
pub mod helper;
pub mod layout;
mod maps;
mod news;
mod places;
pub mod ports;
mod program;
mod refusals;
mod removal;
mod resets;
mod sources;
mod sweep;
pub mod tables;
mod task;

pub use engine::Kernel;
pub use handle::Attached;
pub use program::{Program, Sizes};

/// As a listener's `engine` names it.
const NAME: &str = "kernel";
