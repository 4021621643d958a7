//! The worker's door to the kernel: every call that moves, opens or closes something is imported from here, and in the unit
//! tests a seeded fake stands behind it (`worker::sim`). The names are those of [`crate::sys`]; nothing is added at run time.

use std::time::Instant;

#[cfg(test)]
pub(in crate::worker) use super::sim::calls::{epoll, limits, mmsg, pipe, socket, udp};
#[cfg(not(test))]
pub(in crate::worker) use crate::sys::{epoll, limits, mmsg, pipe, socket, udp};

/// The clock, read once a turn.
pub(in crate::worker) fn now() -> Instant {
    #[cfg(test)]
    return super::sim::calls::now();
    #[cfg(not(test))]
    Instant::now()
}
