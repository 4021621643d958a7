//! The kernel's facilities, one a file; every `unsafe` block of the crate is below this module.
//!
//! Calls return named outcomes where the caller must tell them apart, and `io::Error` where it need not.

pub mod bpf;
pub mod epoll;
pub mod ethtool;
pub mod handover;
pub mod limits;
pub mod mmsg;
pub mod neigh;
pub mod netlink;
mod option;
pub mod output;
pub mod pipe;
pub mod rights;
pub mod route;
pub mod rules;
pub mod sandbox;
pub mod sched;
pub mod secret;
pub mod socket;
pub mod systemd;
pub mod udp;
pub mod ways;
