//! UDP session table: pure, decides on addresses and counts, never sees payload, never reads a clock.
//!
//! # How it works
//!
//! UDP has no connections, so the table makes them: a **session** is everything one client endpoint says to one local
//! endpoint of one listener, from its first datagram until silence, a count or a cap ends it. Each session owns one
//! *connected* socket towards its backend. The kernel then demultiplexes replies (the socket a reply arrives on names its
//! session) and drops whatever does not come from that backend's address and port.
//!
//! ```text
//!               on_client: Unknown, open
//!                                             |
//!                                             v       on_error: Failed, or astray()
//!                                  +-------> Live ------------------------------------+
//!                                  |          |                                       v
//!                          rebound |          | finish (replies complete)           Astray: next datagram re-picks
//!                                  |          v                                       |
//!                                  +------- Parked: ended and accounted,              | on_client: Repick, rebound
//!                                  |        socket kept for the same client           |
//!                                  +--------------------------------------------------+
//!
//!            any state -> remove: idle, evicted, killed, listener gone
//! ```
//!
//! * **Live**: bound to a backend; datagrams pass. *Proven* once this backend has replied.
//! * **Astray**: its backend failed or left. Replies that are still under way are delivered. The next client datagram is
//!   answered with [`Step::Repick`].
//! * **Parked**: every request has had its replies (`replies: 1`, DNS). For the outside world the session is over and its
//!   record written. The socket stays for a moment, because the same client endpoint often asks again: then the next
//!   session costs no socket. Only the *same* endpoints can have it back. A pool across clients would have to prove that no
//!   late or duplicated reply is still under way, and nothing can prove that. Parked sessions are the first to go when
//!   descriptors are short.
//!
//! A session whose `requests` are used up leaves the index, so that the next datagram opens another one, and lives on for
//! the replies it is owed.
//!
//! # Replies and requests
//!
//! `replies: n` ends a session when its backend has answered *every* request with `n` datagrams, so that a client with
//! several queries in flight on one port loses none (nginx's `proxy_responses` means the same). `replies: 0` says that no
//! reply is expected: a session ends as soon as it is sent. `requests: n` counts client datagrams; `requests: 1` lets each
//! of them choose its backend.
//!
//! # Time
//!
//! Idle time is uniform in a listener, so one list a listener in order of last use is always sorted by expiry: the head
//! is the next to go and the longest idle. Moving a session to the tail is all that a datagram costs. Two lower bounds
//! (next expiry, next possible eviction) make "nothing to do" an integer comparison, also under a flood.
//!
//! # Caps
//!
//! Caps hold over all workers, so places are counted outside: the shell takes them before `open` and gives them back after
//! `remove` or when a session is parked (a parked one holds a descriptor and nothing else). Where a cap is reached the
//! table names a [`Table::victim`]: the longest idle session *within that cap*, if it is past half of its idle time. If
//! there is none, the new one is shed. A source at its cap can only evict its own sessions. A table knows the sessions of
//! one worker: what has fallen silent in another makes no room before it ends.
//!
//! # ICMP errors
//!
//! Only errors on a connected backend socket arrive here, so the kernel has matched all four address parts already. An
//! off-path forger can guess those. It cannot guess what we sent, and ICMP quotes it (the shell compares; [`Proof`]):
//!
//! | session | [`Proof::Firm`]: quotes us, port closed | [`Proof::Soft`]: quotes us, host or net unreachable | [`Proof::Short`]: quotes fewer bytes than nobody can guess, port closed | [`Proof::Bare`]: nothing to check |
//! |---|---|---|---|---|
//! | not proven | failed, blamed | failed, blamed | failed, not blamed | failed, not blamed |
//! | proven | failed, blamed | failed once it lasts [`CONFIRM`] without a reply, blamed | failed when a further request is refused before any reply, blamed | failed once it lasts [`CONFIRM`] without a reply, not blamed |
//!
//! The last two are ignored while every request has been followed by a reply. Nothing that proves little is ignored for
//! good: some systems quote no payload at all, short requests are all that some protocols send, and of a fast flow the
//! quoted request is no longer among the latest ones. Whoever speaks on to a backend that is gone must not do so for ever.
//!
//! An error is ignored when nothing was sent in the last [`RECENT`], so a stored-up one does nothing. A failed session
//! goes astray, and the refused datagram may be sent again once.
//!
//! # Invariants
//!
//! 1. A [`Key`](crate::base::Key) names one session for ever: after `remove` it names nothing (generations).
//! 2. At most one indexed session for the same [`Endpoints`], and `on_client` only ever answers with that one.
//! 3. Every list is sorted by last use; parked sessions have lists of their own and stand in no source's list.
//!
//! `tests/flow_sim.rs` holds them over thousands of seeds.

mod answers;
mod dropped;
mod endpoints;
mod errors;
mod line;
mod list;
mod sources;
mod table;

pub use answers::{After, Full, Step};
pub use dropped::{Dropped, Tally};
pub use endpoints::{Endpoints, ListenerIx};
pub use errors::{CONFIRM, OnError, Proof, RECENT};
pub use line::{PARKED_TIME, SessionLimits};
pub use table::{PARKED_MAX, SessionView, State, Table};
