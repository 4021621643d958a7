//! The kernel's facilities, one a file; every `unsafe` block of the crate is below this module.

pub mod neigh;
pub mod netlink;
pub mod sched;
pub mod secret;
