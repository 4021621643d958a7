//! `least_time`: the least of response time times load, in proportion to weight.
//!
//! The cost of a backend is `latency * (active + 1) / weight`. Latency is a *peak* EWMA: a slower sample counts at once
//! and in full, quicker ones only win as time passes. So a backend that stalls is avoided with its first slow answer, and
//! comes back gradually. Between samples the value fades ([`decayed`]), so a backend that was slow once and gets no
//! traffic for it is tried again instead of being avoided for ever.
//!
//! A backend of unknown latency is tried, but not flooded: idle, it costs nothing and is next; with its trial under way it
//! counts as a backend of [`UNKNOWN_NS`] until the first sample arrives.

use super::alias::Alias;
use super::explain::{Reason, Trace};
use super::least::{self, Rule};
use super::{Cursor, Loads, View};

/// Latency assumed of a backend whose first trial is still under way.
pub const UNKNOWN_NS: u64 = 1_000_000_000;

struct Time;

impl<L: Loads> Rule<L> for Time {
    #[inline]
    fn load(&self, loads: &L, ix: usize) -> u64 {
        let active = u64::from(loads.active(ix));
        match (loads.latency_ns(ix), active) {
            (0, 0) => 0,
            (0, _) => UNKNOWN_NS.saturating_mul(active + 1),
            (known, _) => known.saturating_mul(active + 1),
        }
    }

    /// Only backends without any history are equals whatever their weights.
    #[inline]
    fn is_idle(&self, load: u64) -> bool {
        load == 0
    }
}

#[inline]
pub(super) fn pick<L: Loads, T: Trace>(
    view: &View<'_, L>,
    cursor: &mut Cursor,
    alias: Option<&Alias>,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    least::pick(view, cursor, alias, &Time, trace)
}

/// The new value of a peak EWMA after a sample. All in nanoseconds; the result is at least 1, because 0 means unknown.
///
/// `prev_ns` is the value stored at `prev_at_ns` (0 = none yet), `tau_ns` the time in which an old value fades to 1/e.
/// The pair (value, time) is all the state, so it fits two atomics; a lost race loses one sample.
pub fn peak_ewma(prev_ns: u64, prev_at_ns: u64, now_ns: u64, sample_ns: u64, tau_ns: u64) -> u64 {
    let sample = sample_ns.max(1);
    if prev_ns == 0 || sample >= prev_ns {
        return sample;
    }
    let kept = fade(prev_at_ns, now_ns, tau_ns);
    let value = sample as f64 + (prev_ns - sample) as f64 * kept;
    (value as u64).max(1)
}

/// A stored peak EWMA as it counts now, without a new sample: it fades towards 1, and stays 0 if unknown.
pub fn decayed(prev_ns: u64, prev_at_ns: u64, now_ns: u64, tau_ns: u64) -> u64 {
    if prev_ns == 0 {
        return 0;
    }
    ((prev_ns as f64 * fade(prev_at_ns, now_ns, tau_ns)) as u64).max(1)
}

/// Fraction of a value that is left: e^(-age / tau).
fn fade(at_ns: u64, now_ns: u64, tau_ns: u64) -> f64 {
    let age = now_ns.saturating_sub(at_ns) as f64;
    (-age / tau_ns.max(1) as f64).exp()
}
