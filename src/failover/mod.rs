//! VIP failover between nodes: pure.
//!
//! | file | decides |
//! |---|---|
//! | [`timers`] | every period and patience, derived from `beat` and `dead_after`, and the inequalities between them |
//! | [`bounds`] | how long two nodes may hold an address, and how long nobody does |
//! | [`table`] | who holds which address: one machine a VIP, fed with beats, fitness and the keeper's answers |
//! | [`arbiter`] | what is asked of a voter with memory, and how long its answers count |
//! | [`track`] | when what a node tracks is asked about, and what the answers mean |
//! | [`words`] | nothing: what the table is told, what it says, and the states between |
//! | [`lease`] | what the keeper does to the kernel: install, renew, remove, announce, notice others' changes |
//! | [`beat`] | bytes between nodes: handshake, signature, sequence numbers |
//!
//! Nothing here touches a socket or a clock. `tests/failover_sim` runs the same machines, several nodes at once, on a
//! virtual clock; `control::election` and `keeper` run them on real ones.

pub mod arbiter;
pub mod beat;
pub mod bounds;
pub mod lease;
pub mod table;
pub mod timers;
pub mod track;
pub mod words;

/// Index of a node in the configuration's `nodes`.
pub type NodeIx = usize;
/// Index of a virtual address in the configuration's `vips`.
pub type VipIx = usize;
