//! Ejection of a backend by failures of real traffic.
//!
//! `failures` failures within `window` eject a backend, provided that they are at least a tenth of what it was given
//! meanwhile: a count alone would throw out a busy backend for one failure in a thousand. The first ejection lasts
//! `eject`; each further one lasts twice as long, up to ten times `eject`, and every `eject` spent well takes one step back.
//!
//! The last backend of a pool is never ejected: the caller says whether another one could take the work, and asks again
//! with the next failure. When the time is over, a probed backend waits for its next successful probe; one that is not
//! probed comes back by itself.
//!
//! What counts as a failure is decided where it happens: refused, timed out, reset before the first byte. Our own shortages
//! (descriptors, ports, routes) are not the backend's failures.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::model::Passive;

/// Longest ejection as a multiple of the first.
const BACKOFF_MAX: u32 = 10;

/// Successes for each failure beyond which the failures are too few to matter.
const SUCCESSES_PER_FAILURE: u64 = 9;

/// Recent failures and past ejections of one backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlier {
    /// When, and after how many successes; the latest `failures` of them.
    recent: VecDeque<(Instant, u64)>,
    successes: u64,
    /// While ejected: the time before which nothing brings it back.
    until: Option<Instant>,
    /// Doublings of the next ejection.
    steps: u32,
    well_since: Option<Instant>,
}

impl Outlier {
    /// Whether it is ejected.
    pub fn is_ejected(&self) -> bool {
        self.until.is_some()
    }

    /// While ejected: the time from which it may return.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Work that went well.
    pub fn succeeded(&mut self, count: u64) {
        self.successes += count;
    }

    /// Work that failed. Returns for how long the backend is ejected, if it is. `may_eject`: another backend could take
    /// the work.
    pub fn failed(&mut self, now: Instant, passive: &Passive, may_eject: bool) -> Option<Duration> {
        if self.until.is_some() {
            return None;
        }
        let needed = passive.failures.max(1) as usize;
        self.recent.push_back((now, self.successes));
        while self.recent.len() > needed {
            self.recent.pop_front();
        }
        let &(first, successes) = self.recent.front()?;
        let enough = self.recent.len() == needed
            && now.saturating_duration_since(first) <= passive.window
            && self.successes - successes <= SUCCESSES_PER_FAILURE * needed as u64;
        if !enough || !may_eject {
            return None;
        }
        self.step_back(now, passive);
        let factor = 1u32.checked_shl(self.steps).unwrap_or(u32::MAX).min(BACKOFF_MAX);
        let length = passive.eject * factor;
        self.until = Some(now + length);
        self.steps = (self.steps + 1).min(BACKOFF_MAX);
        self.recent.clear();
        Some(length)
    }

    /// Time goes by: ends an ejection whose time is over, unless a probe has to. Says whether it did.
    pub fn tick(&mut self, now: Instant, probed: bool) -> bool {
        !probed && self.end(now)
    }

    /// A probe passed: ends an ejection whose time is over. Says whether it did.
    pub fn probe_passed(&mut self, now: Instant) -> bool {
        self.end(now)
    }

    /// Ends an ejection now and forgets everything: the operator said so.
    pub fn reset(&mut self) {
        *self = Outlier::default();
    }

    fn end(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
            self.well_since = Some(now);
        }
        over
    }

    /// Takes back a step for each `eject` spent well.
    fn step_back(&mut self, now: Instant, passive: &Passive) {
        let Some(since) = self.well_since.take() else {
            return;
        };
        let well = now.saturating_duration_since(since).as_nanos();
        let steps = well.checked_div(passive.eject.as_nanos()).unwrap_or(u128::MAX);
        self.steps = self.steps.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSIVE: Passive = Passive {
        failures: 3,
        window: Duration::from_secs(10),
        eject: Duration::from_secs(10),
    };

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Failures as (seconds, successes before it), then whether the last one ejects.
    /// Broken on purpose: no window (row 3), no comparison with successes (row 6).
    #[test]
    fn failures_within_the_window_that_weigh_something_eject() {
        let rows: [(&[(u64, u64)], bool); 7] = [
            (&[(0, 0), (1, 0)], false),
            (&[(0, 0), (1, 0), (2, 0)], true),
            (&[(0, 0), (6, 0), (11, 0)], false),
            (&[(0, 0), (6, 0), (11, 0), (12, 0)], true),
            (&[(0, 1000), (1, 10), (2, 10)], true),
            (&[(0, 0), (1, 1000), (2, 1000)], false),
            (&[(0, 0), (1, 1000), (2, 0), (3, 0)], true),
        ];
        for (row, (failures, wanted)) in rows.into_iter().enumerate() {
            let (mut outlier, start) = (Outlier::default(), Instant::now());
            let mut ejected = None;
            for &(at, successes) in failures {
                assert_eq!(ejected, None, "row {row}");
                outlier.succeeded(successes);
                ejected = outlier.failed(start + s(at), &PASSIVE, true);
            }
            assert_eq!(ejected.is_some(), wanted, "row {row}");
            assert_eq!(outlier.is_ejected(), wanted, "row {row}");
        }
    }

    fn fail_thrice(outlier: &mut Outlier, now: Instant) -> Option<Duration> {
        (0..3).filter_map(|_| outlier.failed(now, &PASSIVE, true)).last()
    }

    /// Columns: seconds spent well before it fails again, length of the ejection in seconds.
    /// Broken on purpose: no cap (row 5), no step back (row 7).
    #[test]
    fn ejections_back_off_and_forgive() {
        let (mut outlier, mut now) = (Outlier::default(), Instant::now());
        for (well, wanted) in [
            (0, 10),
            (1, 20),
            (1, 40),
            (1, 80),
            (1, 100),
            (1, 100),
            (25, 100),
            (45, 20),
            (1000, 10),
        ] {
            now += s(well);
            let length = fail_thrice(&mut outlier, now);
            assert_eq!(length, Some(s(wanted)), "after {well} s well");
            now += s(wanted);
            assert!(outlier.tick(now, false));
        }
    }

    #[test]
    fn the_last_one_stays_until_another_can_take_over() {
        let (mut outlier, now) = (Outlier::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(outlier.failed(now, &PASSIVE, false), None);
        }
        assert_eq!(outlier.failed(now, &PASSIVE, true), Some(s(10)));
    }

    /// Columns: probed, seconds after the ejection of 10 s, event, back.
    #[test]
    fn a_probe_or_time_alone_brings_it_back() {
        let rows = [
            (true, 9, "probe", false),
            (true, 10, "probe", true),
            (true, 60, "tick", false),
            (false, 9, "tick", false),
            (false, 10, "tick", true),
        ];
        for (probed, after, event, wanted) in rows {
            let (mut outlier, start) = (Outlier::default(), Instant::now());
            fail_thrice(&mut outlier, start);
            let now = start + s(after);
            let back = if event == "probe" {
                outlier.probe_passed(now)
            } else {
                outlier.tick(now, probed)
            };
            assert_eq!(
                (back, outlier.is_ejected()),
                (wanted, !wanted),
                "probed {probed}, {event} after {after} s"
            );
        }
    }

    #[test]
    fn failures_of_connections_still_under_way_do_not_prolong_an_ejection() {
        let (mut outlier, start) = (Outlier::default(), Instant::now());
        fail_thrice(&mut outlier, start);
        assert_eq!(fail_thrice(&mut outlier, start + s(5)), None);
        assert_eq!(outlier.until(), Some(start + s(10)));
    }
}
