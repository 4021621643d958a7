//! Real nodes in network namespaces: processes are killed and stopped, links cut, and what clients see is measured.
//!
//! Every test builds its own bridge with hosts on it, and takes it down. Those that measure run one at a time. The long
//! variants are ignored by default (`cargo test --test vip -- --ignored`).
//!
//! Needs root, and `ip`, `bridge`, `arping` (iputils), `setpriv`; the long ones `stress-ng`. The helper that is a node without a
//! data plane is an example, which plain `cargo test` builds and `cargo test --test vip` does not.

mod addresses;
mod anycast;
mod failures;
mod hosts;
mod keeper;
mod keeper_ends;
mod left;
mod lock;
mod moves;
mod notify;
mod quorum;
mod reloads;
mod repairs;
mod steady;
mod strangers;
mod track;
mod whole;
