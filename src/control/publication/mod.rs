//! What engines act on: pools with the health of their backends, listeners with their sockets, and the worker threads.
//!
//! # How it works
//!
//! | file | holds | decides |
//! |---|---|---|
//! | [`pools`] | every backend with its health, drain and weight | nothing: it feeds [`crate::health`] and logs what that says |
//! | [`probe`] | the sockets of health checks | what an answer is; when to ask and what follows is [`crate::health`]'s |
//! | [`endpoints`] | every listener with what it is bound to | which socket stays, moves or goes with a configuration |
//! | [`sockets`] | - | how an address is bound, and which worker gets which socket |
//! | [`inherited`] | sockets of a predecessor or of the service manager | which listener one belongs to |
//! | [`workers`] | the threads | - |
//!
//! A snapshot is made of [`endpoints`] and [`pools`]. A new configuration takes effect in this order, which is what keeps each
//! client served (`Control::commit`):
//!
//! 1. pools: a backend that stays keeps its health, connections and counters;
//! 2. listeners: which sockets are new, which change hands, which go;
//! 3. the engines beside the workers adopt: an address that one of them takes over is served there before its sockets close;
//! 4. workers empty the queues of TCP sockets that go, and close them, while they still know their listeners;
//! 5. workers adopt;
//! 6. workers get their new sockets; in an upgrade they wait until the process before lets go;
//! 7. UDP sockets that go are closed: another one at the same address must be there first;
//! 8. sockets are spread over additional workers, and workers that are too many retire.
//!
//! # Invariants
//!
//! 1. A listening socket is never closed while the configuration wants its address.
//! 2. A TCP socket is closed with its queue empty.
//! 3. What is known of a backend belongs to its identity (pool and address), over reloads and upgrades.
//! 4. What is logged has been published.

pub mod endpoints;
pub mod inherited;
pub mod pools;
pub mod probe;
pub mod sockets;
pub mod workers;
