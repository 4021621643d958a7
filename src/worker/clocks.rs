//! When an open connection must be looked at again, and why: pure.

use std::time::Duration;

use crate::config::model::Timeouts;
use crate::relay::Cause;

/// Why a connection's timer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    End(Cause),
    NextAttempt,
    /// The client has not told which server it wants.
    Hello,
    Reset,
    Resume,
    /// Bytes might have gathered of which the kernel does not tell.
    Gather,
    Ack,
    Look,
    Interim,
}

/// The moments that a connection has before it, milliseconds since the workers' epoch.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// Last byte in either direction, or the end of a rest that weir itself imposes.
    pub active_ms: u64,
    pub max_age_ms: Option<u64>,
    /// The lanes rest until then: for bandwidth or for memory.
    pub resume_ms: Option<u64>,
    /// When a source that lets bytes gather is looked at.
    pub gather_ms: Option<u64>,
    /// When the ACK of the backend's handshake is sent without the client's first bytes.
    pub ack_ms: Option<u64>,
    /// When the peers are looked at next: whether they are still there.
    pub look_ms: Option<u64>,
    /// When the next interim record is due.
    pub interim_ms: Option<u64>,
}

impl Clocks {
    /// What comes first while the connection is open.
    pub(super) fn due(&self, timeouts: &Timeouts, half_closed: bool) -> Option<(u64, Due)> {
        // Times are whole milliseconds, cut off: one more, so that nothing ends too soon.
        let quiet = |limit: Option<Duration>, cause| {
            limit.map(|limit| (self.active_ms + limit.as_millis() as u64 + 1, Due::End(cause)))
        };
        [
            quiet(timeouts.half_close.filter(|_| half_closed), Cause::HalfCloseTimeout),
            quiet(timeouts.idle, Cause::IdleTimeout),
            self.max_age_ms.map(|at| (at, Due::End(Cause::MaxAge))),
            self.resume_ms.map(|at| (at, Due::Resume)),
            self.gather_ms.map(|at| (at, Due::Gather)),
            self.ack_ms.map(|at| (at, Due::Ack)),
            self.look_ms.map(|at| (at, Due::Look)),
            self.interim_ms.map(|at| (at, Due::Interim)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|&(at, _)| at)
    }

    /// Rests. What waits for weir is not idle.
    pub(super) fn rest_until(&mut self, at_ms: u64) {
        self.resume_ms = Some(at_ms);
        self.active_ms = self.active_ms.max(at_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail: the half-close limit without a half-close, an idle time that is not one more than its limit.
    #[test]
    fn the_first_moment_comes_first() {
        let timeouts = |idle: u64, half_close: u64| Timeouts {
            idle: (idle > 0).then(|| Duration::from_millis(idle)),
            half_close: (half_close > 0).then(|| Duration::from_millis(half_close)),
            max_age: None,
            hello: Duration::ZERO,
        };
        let active = |active_ms| Clocks {
            active_ms,
            ..Clocks::default()
        };
        let ends = |at, cause| Some((at, Due::End(cause)));
        #[rustfmt::skip]
        let rows = [
            (active(100), timeouts(0, 0), false, None),
            (active(100), timeouts(50, 10), false, ends(151, Cause::IdleTimeout)),
            (active(100), timeouts(50, 10), true, ends(111, Cause::HalfCloseTimeout)),
            (active(100), timeouts(50, 70), true, ends(151, Cause::IdleTimeout)),
            (Clocks { max_age_ms: Some(120), ..active(100) }, timeouts(50, 0), false, ends(120, Cause::MaxAge)),
            (Clocks { ack_ms: Some(105), look_ms: Some(110), ..active(100) }, timeouts(50, 0), false, Some((105, Due::Ack))),
            (Clocks { look_ms: Some(110), interim_ms: Some(109), ..active(100) }, timeouts(0, 0), false, Some((109, Due::Interim))),
            (Clocks { gather_ms: Some(102), look_ms: Some(110), ..active(100) }, timeouts(50, 0), false, Some((102, Due::Gather))),
            (Clocks { resume_ms: Some(101), look_ms: Some(110), ..active(100) }, timeouts(0, 0), false, Some((101, Due::Resume))),
        ];
        for (clocks, timeouts, half_closed, due) in rows {
            assert_eq!(
                clocks.due(&timeouts, half_closed),
                due,
                "{clocks:?} {timeouts:?} {half_closed}"
            );
        }
        let mut resting = active(100);
        resting.rest_until(130);
        assert_eq!(resting.due(&timeouts(50, 0), false), Some((130, Due::Resume)));
        resting.resume_ms = None;
        assert_eq!(
            resting.due(&timeouts(50, 0), false),
            ends(181, Cause::IdleTimeout),
            "a rest is not idle"
        );
    }
}
