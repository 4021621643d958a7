//! etcd, the real one: three members in network namespaces, and what weir does with them.
//!
//! | file | asks |
//! |---|---|
//! | `cluster` | nothing: the members, and what can be done to them |
//! | `client` | the client: reading, transactions, leases, watches, TLS, passwords, members that are slow or gone |
//! | `nodes` | two nodes of weir that have etcd as their arbiter |
//! | `members` | pools whose members are keys |
//! | `votes` | the arbiter's thread: whose vote it is, whatever is delayed or repeated |

#[path = "../common/mod.rs"]
mod common;

mod client;
mod cluster;
mod members;
mod nodes;
mod votes;
