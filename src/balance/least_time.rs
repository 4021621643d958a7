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
use super::{Cursor, Loads, Options};

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
    view: &Options<'_, L>,
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, picker};
    use super::super::{Balance, Mask, Shares};
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    /// Columns: weights, active, latency in ms (0 = unknown), chosen.
    #[test]
    fn chooses_the_least_time_for_its_weight() {
        type Row = (&'static [u32], &'static [u32], &'static [u64], usize);
        let rows: [Row; 8] = [
            (&[1, 1], &[0, 0], &[5, 4], 1),
            (&[1, 1], &[1, 3], &[5, 4], 0),
            (&[4, 1], &[0, 0], &[8, 3], 0),
            (&[1, 1], &[0, 0], &[1, 0], 1),   // unknown and idle: tried
            (&[1, 1], &[0, 1], &[900, 0], 0), // its trial is under way: not flooded
            (&[1, 1], &[9, 1], &[900, 0], 1), // but not shunned
            (&[1, 1], &[4, 3], &[0, 0], 1),   // nothing known at all: fewest connections
            (&[1, 0], &[9, 0], &[900, 0], 0),
        ];
        for (row, (weights, active, latency_ms, wanted)) in rows.into_iter().enumerate() {
            let loads = Fake::timed(active, &latency_ms.iter().map(|ms| ms * MS).collect::<Vec<_>>());
            let picker = picker(Balance::LeastTime, weights);
            let got = picker.pick(
                &mut Cursor::new(0),
                0,
                &loads,
                &Shares::full(),
                &Mask::full(weights.len()),
            );
            assert_eq!(got, Some(wanted), "row {row}");
        }
    }

    proptest! {
        /// The oracle is a scan in 128 bits. Broken on purpose: cost without `+ 1`.
        #[test]
        fn agrees_with_an_exact_scan(
            pool in proptest::collection::vec((1u32..100, 0u32..500, 1u64..5_000_000_000), 2..=64),
        ) {
            let n = pool.len();
            let loads = Fake::timed(
                &pool.iter().map(|row| row.1).collect::<Vec<_>>(),
                &pool.iter().map(|row| row.2).collect::<Vec<_>>(),
            );
            let picker = picker(Balance::LeastTime, &pool.iter().map(|row| row.0).collect::<Vec<_>>());
            let chosen = picker.pick(&mut Cursor::new(0), 0, &loads, &Shares::full(), &Mask::full(n)).unwrap();
            let cost = |ix: usize| u128::from(pool[ix].2) * (u128::from(pool[ix].1) + 1);
            let weight = |ix: usize| u128::from(pool[ix].0);
            prop_assert!((0..n).all(|ix| cost(chosen) * weight(ix) <= cost(ix) * weight(chosen)));
        }

        /// Between a sample and the value before, never 0, and a peak counts in full.
        #[test]
        fn the_average_stays_between_its_inputs(
            prev in 0u64..1 << 40, sample in 0u64..1 << 40, age in 0u64..1 << 40, tau in 1u64..1 << 40,
        ) {
            let next = peak_ewma(prev, 1000, 1000 + age, sample, tau);
            prop_assert!(next >= 1 && next + 1 >= sample);
            if prev > 0 {
                prop_assert!(next <= prev.max(sample).max(1));
                prop_assert!(decayed(prev, 1000, 1000 + age, tau) <= prev);
            }
        }
    }

    #[test]
    fn peaks_count_at_once_and_fade_with_time() {
        let tau = 10_000 * MS;
        // prev ms, seconds since, sample ms, wanted ms
        let rows = [
            (0, 0, 7, 7),
            (5, 3, 90, 90),
            (90, 0, 5, 90),
            (90, 10, 5, 36),
            (90, 100, 5, 5),
        ];
        for (prev, since, sample, wanted) in rows {
            let got = peak_ewma(prev * MS, 0, since * 1000 * MS, sample * MS, tau) as f64 / MS as f64;
            assert!((got - f64::from(wanted)).abs() < 0.5, "{prev} {since} {sample}: {got}");
        }
        assert_eq!(decayed(0, 0, 5, tau), 0, "unknown stays unknown");
        assert_eq!(
            decayed(5, 10, 3, tau),
            5,
            "a clock that two cores read out of order does no harm"
        );
    }

    /// Four servers, one five times slower, one connection in ten arriving before the last has ended: the slow one is
    /// used less, and still gets some.
    #[test]
    fn a_slow_backend_gets_less_but_is_not_forgotten() {
        let (n, tau) = (4, 1000 * MS);
        let service = [2 * MS, 2 * MS, 10 * MS, 2 * MS];
        let (picker, mut cursor, mut rng) = (
            picker(Balance::LeastTime, &[1; 4]),
            Cursor::new(1),
            crate::base::Rng::new(2),
        );
        let (loads, mut ewma) = (Fake::timed(&[0; 4], &[0; 4]), [(0u64, 0u64); 4]);
        let (mut counts, mut running, mut now) = ([0u32; 4], Vec::<(u64, usize)>::new(), 0);
        for _ in 0..20_000 {
            now += rng.below(2 * MS);
            running.retain(|&(end, ix)| {
                if end <= now {
                    loads.close(ix);
                    ewma[ix] = (peak_ewma(ewma[ix].0, ewma[ix].1, end, service[ix], tau), end);
                }
                end > now
            });
            for (ix, &(value, at)) in ewma.iter().enumerate() {
                loads.latency_ns.borrow_mut()[ix] = decayed(value, at, now, tau);
            }
            let ix = picker
                .pick(&mut cursor, 0, &loads, &Shares::full(), &Mask::full(n))
                .unwrap();
            loads.open(ix);
            counts[ix] += 1;
            running.push((now + service[ix], ix));
        }
        assert!(
            counts[2] > 20 && counts[2] * 5 < counts[0].min(counts[1]).min(counts[3]),
            "{counts:?}"
        );
    }
}
