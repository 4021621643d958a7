//! Whether a peer that owes an answer has vanished.
//!
//! A peer that is idle is asked by the kernel whether it is still there (SO_KEEPALIVE), but not while bytes are under way to
//! it. For those the kernel has TCP_USER_TIMEOUT, which cannot be used here: once the peer's window is full, it counts
//! the time until the window opens, whether or not the peer answers the questions about it, and so ends connections of
//! readers that merely pause (a player, a pager, a backup that waits for a tape). Without that option the kernel gives
//! up after a quarter of an hour. So weir judges by itself, from what TCP_INFO says.

/// What the kernel knows of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Bytes written and not acknowledged, whether they could be sent or wait for the window.
    pub unacknowledged: usize,
    /// Segments in a row, repeated ones or questions about the window, that were not answered.
    pub unanswered: u8,
    /// Time since it was last heard of, milliseconds.
    pub silent_ms: u64,
}

/// One segment may get lost, and questions about the window come up to two minutes apart: two must have gone unanswered.
const UNANSWERED_MIN: u8 = 2;

impl Peer {
    /// Whether bytes have been under way to it without any sign of life for `limit_ms`; `quiet_ms` ago the last ones
    /// were written.
    pub fn has_vanished(self, quiet_ms: u64, limit_ms: u64) -> bool {
        self.unacknowledged > 0
            && self.unanswered >= UNANSWERED_MIN
            && self.silent_ms >= limit_ms
            && quiet_ms >= limit_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_vanished() {
        // Unacknowledged, unanswered, silent since, last write; the limit is 100.
        let rows = [
            ("nothing is under way", (0, 0, 900), 900, false),
            ("gone", (1, 2, 100), 100, true),
            ("gone for long", (999, 9, 5_000), 5_000, true),
            ("a full window, questions answered", (999, 0, 60), 900, false),
            ("a full window, one question on its way", (999, 1, 120), 900, false),
            (
                "not heard of for long, but only just written to",
                (1, 2, 900),
                99,
                false,
            ),
            ("heard of lately, though much was lost", (1, 3, 99), 900, false),
        ];
        for (name, (unacknowledged, unanswered, silent_ms), quiet_ms, vanished) in rows {
            let peer = Peer {
                unacknowledged,
                unanswered,
                silent_ms,
            };
            assert_eq!(peer.has_vanished(quiet_ms, 100), vanished, "{name}");
        }
    }
}
