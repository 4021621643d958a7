//! # weir: a layer-4 TCP and UDP load balancer
//!
//! Data flows one way, decisions are pure, effects live at the rim.
//!
//! ```text
//! conf/*.yaml -> config -> control ---Arc<Snapshot>---> worker 0..n : accept -> pick -> connect -> relay -> account
//!                            ^  |                          |
//!               probes, beats|  +-> failover -> actions    +-> counters (sharded by worker, read by control)
//! ```
//!
//! ## Layers
//!
//! Imports point one way, downwards in this list, and no files import each other in a circle; `tests/architecture.rs` holds both.
//!
//! | layer | modules | may touch |
//! |---|---|---|
//! | values | [`base`] | nothing: no I/O, no clock |
//! | decisions | [`config`] [`balance`] [`health`] [`relay`] [`flow`] [`failover`] | values; `now` and randomness are parameters |
//! | kernel | [`sys`] | every `unsafe`, one kernel facility a file |
//! | exchange | [`stats`] [`gate`] [`snapshot`] [`link`] [`api`] [`route`] | shared memory between the shells; what operators and the process say to each other |
//! | keeper | [`keeper`] | addresses of this machine, in a process of its own |
//! | runner | [`runner`] | the operator's commands, in a process of its own |
//! | shells | [`worker`] [`control`] | sockets, files, processes, the clock |
//! | rim | [`cli`] [`app`] | everything |
//!
//! ## Vocabulary
//!
//! *listener*: named set of bound addresses. *pool*: named set of backends with one policy. *backend*: one server address.
//! *pick*: choosing a backend. *pair*: a client connection and its backend connection. *lane*: one direction of a pair.
//! *session*: the UDP counterpart of a pair. *snapshot*: the immutable view that workers act on. *turn*: one round of a
//! worker's event loop (mark, pump, accept, expire, adopt). *mark*: note readiness. *pump*: move bytes. *retire*: end and account.
//! *probe*, *verdict*: a health check and what a run of them means. *beat*: a signed sign of life between nodes.
//! *lease*: an address that the kernel removes by itself unless it is renewed. The two sides are *client* and *backend*.

pub mod base;

pub mod balance;
pub mod config;
pub mod failover;
pub mod flow;
pub mod health;
pub mod relay;

pub mod sys;

pub mod api;
pub mod gate;
pub mod link;
pub mod route;
pub mod snapshot;
pub mod stats;

pub mod keeper;
pub mod runner;

pub mod control;
pub mod worker;

pub mod app;
pub mod cli;
