//! Why a datagram was not passed on: one vocabulary for metrics, status and tests.

use crate::base::words;

words! {
    /// Why a datagram was not passed on.
    pub enum Dropped {
        /// The kernel's receive buffer of a listening socket was full.
        KernelBuffer = "kernel_buffer",
        /// A send buffer was full.
        SendBuffer = "send_buffer",
        /// No route, interface down, filtered on this host, or the local address has moved away.
        Unreachable = "unreachable",
        /// Larger than the way out can carry.
        TooBig = "too_big",
        /// No backend was eligible.
        NoBackend = "no_backend",
        /// Those that could take a session have `max_connections`.
        Full = "full",
        /// Sessions of the process are at their cap and none could make room.
        LimitProcess = "limit_process",
        /// Sessions of the listener are at their cap and none could make room.
        LimitListener = "limit_listener",
        /// Sessions of the source are at their cap and none could make room.
        LimitSource = "limit_source",
        /// New sessions of the source come too fast.
        LimitRate = "limit_rate",
        /// The source is not allowed.
        Denied = "denied",
        /// No descriptor or memory for a session.
        NoDescriptor = "no_descriptor",
        /// No local port for a session.
        NoPort = "no_port",
    }
}

/// A running count that a socket keeps, turned into what is new. The same socket may be seen by several readers one after
/// the other, and a datagram carries the count as of its arrival, which may lie before the reader began: that is not new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally(u32);

impl Tally {
    /// For a socket whose count is `now`: that much has been counted elsewhere.
    pub fn starting_at(now: u32) -> Tally {
        Tally(now)
    }

    /// How much the count, modulo 2^32, has risen beyond all that was said before.
    pub fn rise(&mut self, said: u32) -> u32 {
        let rise = said.wrapping_sub(self.0);
        if rise.cast_signed() <= 0 {
            return 0;
        }
        self.0 = said;
        rise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Break tried: every difference taken for a rise (4 billion datagrams are lost at once).
    #[test]
    fn a_tally_counts_each_loss_once() {
        for (start, said, rises) in [
            (0, [0, 3, 3, 7], [0, 3, 0, 4]),
            // Taken over: what lies in the queue was counted before.
            (10, [4, 9, 10, 11], [0, 0, 0, 1]),
            (u32::MAX - 1, [u32::MAX, 0, 5, 5], [1, 1, 5, 0]),
        ] {
            let mut tally = Tally::starting_at(start);
            assert_eq!(said.map(|said| tally.rise(said)), rises, "from {start}");
        }
    }
}
