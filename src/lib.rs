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
//! `docs/architecture.md` says where to find what in a minute, and where the next thing goes.
//!
//! ## Layers
//!
//! Imports point one way, downwards in this list, and no files import each other in a circle; `tests/architecture.rs` holds both.
//!
//! | layer | modules | may touch |
//! |---|---|---|
//! | values | [`base`] | nothing: no I/O, no clock |
//! | decisions | [`config`] [`balance`] [`health`] [`relay`] [`flow`] [`failover`] [`discovery`] | values; `now` and randomness are parameters |
//! | kernel | [`sys`] | every `unsafe`, one kernel facility a file |
//! | exchange | [`stats`] [`gate`] [`snapshot`] [`link`] [`api`] [`route`] [`routing`] [`queue`] | shared memory between the shells; what operators and the process say to each other |
//! | keeper | [`keeper`] | addresses of this machine, in a process of its own |
//! | runner | [`runner`] | the operator's commands, in a process of its own |
//! | shells | [`worker`] [`kernel`] [`control`] | sockets, files, processes, the clock |
//! | rim | [`cli`] [`app`] | everything |
//!
//! ## Vocabulary
//!
//! One word a thing, and one thing a word.
//!
//! | word | means |
//! |---|---|
//! | *listener* | a named set of bound addresses |
//! | *address*, *endpoint* | where a listener is bound ([`link::Address`]); a listener and one of its addresses |
//! | *pool*, *policy* | a named set of backends; everything its configuration says but who they are |
//! | *backend* | one server address of a pool; the two sides of a connection are *client* and *backend* |
//! | *route* | a server name of a listener and the pool that it leads to ([`routing`]); in [`mod@route`], the way to a backend |
//! | *member*, *source* | a backend, wherever it comes from; something outside that says who is in a pool |
//! | *identity* | pool and address of a backend as a number: what is known of it belongs to that, over reloads |
//! | *pick*, *choose* | the algorithm names one of the eligible; a pool tries picks until one has room |
//! | *permit* | the right to count at a listener or a backend, given back when it is dropped |
//! | *pair*, *lane* | a client connection with its backend connection; one direction of it |
//! | *session* | the UDP counterpart of a pair |
//! | *turn* | one round of a worker's event loop: mark, pump, accept, expire, adopt |
//! | *mark*, *pump*, *retire* | note readiness; move bytes; end and account |
//! | *key* | of the configuration; in `worker` and `base` a handle on a slab's entry ([`base::Key`]) |
//! | *probe*, *verdict* | a health check; what a run of them means |
//! | *reason*, *remark* | why a backend is in its state: a word ([`health::Reason`]); the sentence for people |
//! | *admin state* | ready, drain or down, as an operator or a backend's agent wants it ([`health::AdminState`]) |
//! | *failure* | of a backend, seen by real traffic |
//! | *shed* | have an engine end some connections of a backend |
//! | *engine* | what carries connections: the workers, and what stands beside them ([`link::Engine`]) |
//! | *snapshot*, *adopt* | the immutable view that engines act on; to act on a newer one |
//! | *prepare*, *commit* | everything of a change that can fail; the rest of it |
//! | *operation*, *order* | what a process can be told (reload, stop, ...); what an operator or control tells a part of it |
//! | *status* | the document that operators see |
//! | *beat* | a signed sign of life between nodes |
//! | *lease* | an address that the kernel removes by itself unless it is renewed |
//! | *predecessor*, *successor* | the processes of an upgrade: the one that serves, the one that will |

pub mod base;

pub mod balance;
pub mod config;
pub mod discovery;
pub mod failover;
pub mod flow;
pub mod health;
pub mod relay;

pub mod sys;

pub mod api;
pub mod gate;
pub mod link;
pub mod queue;
pub mod route;
pub mod routing;
pub mod snapshot;
pub mod stats;

pub mod keeper;
pub mod runner;

pub mod control;
pub mod kernel;
pub mod worker;

pub mod app;
pub mod cli;
