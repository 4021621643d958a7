//! What a run of probe results means.
//!
//! A backend that has never been probed is *starting*, and its first result decides at once: up or down. From then on it
//! takes `rise` successes in a row to come up and `fall` failures in a row to go down; a result that fits the present
//! condition ends the run. While a run against it is under way the condition is *in doubt*, and the next probe comes after
//! a quarter of the interval, so that a change is noticed early without probing more often when nothing happens.

use std::time::Duration;

/// Shortest time between two probes of a backend in doubt, unless the interval itself is shorter.
pub const FAST_MIN: Duration = Duration::from_millis(100);

/// What the probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// No probe has ended yet.
    Starting,
    /// It passes: the first probe did, or `rise` in a row.
    Up,
    /// It fails: the first probe did, or `fall` in a row.
    Down,
}

/// Condition of a backend, and the results against it so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    condition: Condition,
    against: u32,
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict {
            condition: Condition::Starting,
            against: 0,
        }
    }
}

impl Verdict {
    /// A backend that is not probed: always up.
    pub fn unprobed() -> Verdict {
        Verdict {
            condition: Condition::Up,
            against: 0,
        }
    }

    /// What the probes say.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Whether results against the present condition have begun to come in.
    pub fn in_doubt(&self) -> bool {
        self.against > 0
    }

    /// Whether the next probe shall try again and again before it fails: one lost packet must not take a backend down, but one
    /// that is down and silent is not worth more than a try.
    pub fn insists(&self) -> bool {
        self.condition != Condition::Down || self.in_doubt()
    }

    /// Takes a probe result; says whether the condition changed. `rise` and `fall` of 0 count as 1.
    pub fn observe(&mut self, passed: bool, rise: u32, fall: u32) -> bool {
        let (next, needed) = if passed {
            (Condition::Up, rise)
        } else {
            (Condition::Down, fall)
        };
        if next == self.condition {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.condition != Condition::Starting && self.against < needed {
            return false;
        }
        *self = Verdict {
            condition: next,
            against: 0,
        };
        true
    }

    /// Time from the start of one probe to that of the next.
    pub fn next_in(&self, interval: Duration) -> Duration {
        if self.in_doubt() {
            (interval / 4).max(FAST_MIN).min(interval)
        } else {
            interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Results (+ passed, - failed) and the condition after each (s, U, D; lower case: in doubt), rise 2 / fall 3.
    /// Broken on purpose: `against` not reset by a fitting result (rows 3, 5).
    #[test]
    fn rise_and_fall() {
        let rows = [
            ("+", "U"),
            ("-", "D"),
            ("+--+--+", "UuuUuuU"),
            ("+---", "UuuD"),
            ("-+-++", "DdDdU"),
            ("---++---", "DDDdUuuD"),
        ];
        for (results, wanted) in rows {
            let mut verdict = Verdict::default();
            assert_eq!((verdict.condition(), verdict.in_doubt()), (Condition::Starting, false));
            let got: String = results
                .chars()
                .map(|result| {
                    verdict.observe(result == '+', 2, 3);
                    let letter = if verdict.condition() == Condition::Up { 'U' } else { 'D' };
                    if verdict.in_doubt() {
                        letter.to_ascii_lowercase()
                    } else {
                        letter
                    }
                })
                .collect();
            assert_eq!(got, wanted, "{results}");
        }
    }

    /// Results, and whether the next probe insists. Broken on purpose: not insisting in doubt.
    #[test]
    fn only_a_backend_that_is_down_gets_a_single_try() {
        for (results, wanted) in [
            ("", true),
            ("+", true),
            ("+-", true),
            ("-", false),
            ("--", false),
            ("-+", true),
            ("-+-", false),
        ] {
            let mut verdict = Verdict::default();
            for result in results.chars() {
                verdict.observe(result == '+', 2, 3);
            }
            assert_eq!(verdict.insists(), wanted, "{results}");
        }
    }

    #[test]
    fn doubt_looks_again_sooner() {
        let ms = Duration::from_millis;
        // interval, in doubt
        for (interval, fast) in [(2000, 500), (200, 100), (60, 60), (60_000, 15_000)] {
            let mut verdict = Verdict::default();
            verdict.observe(true, 2, 3);
            assert_eq!(verdict.next_in(ms(interval)), ms(interval));
            verdict.observe(false, 2, 3);
            assert_eq!(verdict.next_in(ms(interval)), ms(fast));
        }
    }

    proptest! {
        /// The oracle looks at the whole history. Broken on purpose: `>` in place of `>=` for the run's length.
        #[test]
        fn agrees_with_the_history(
            results in proptest::collection::vec(any::<bool>(), 1..100), rise in 1u32..5, fall in 1u32..5,
        ) {
            let mut verdict = Verdict::default();
            let mut up = results[0];
            for at in 0..results.len() {
                let changed = verdict.observe(results[at], rise, fall);
                let run = results[..=at].iter().rev().take_while(|&&result| result == results[at]).count() as u32;
                let flips = results[at] != up && run >= if results[at] { rise } else { fall };
                up ^= flips;
                prop_assert_eq!(changed, flips || at == 0);
                prop_assert_eq!(verdict.condition() == Condition::Up, up);
            }
        }
    }
}
